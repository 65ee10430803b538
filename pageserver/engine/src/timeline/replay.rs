//! Bringing a timeline back: from its index and the WAL objects above it, with nothing on the local disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize};

use arc_swap::{ArcSwap, ArcSwapOption};
use codec::wal::stream::WalDecoder;
use codec::wal_object::{self, WalObjectError};
use model::{Lsn, TenantShardId, TimelineId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::chains::Chains;
use super::flush::Flusher;
use super::owner::{Owner, OwnerError, State};
use super::reap::Reaper;
use super::size::count_once;
use super::{IngestStopped, Progress, Shared, Timeline, TimelineFacts, TimelinePolicy};
use crate::as_of::ReadError;
use crate::blocking;
use crate::budget::TailBudget;
use crate::changes::Changes;
use crate::chunk_cache::ChunkCache;
use crate::claim::{Claim, ValidateError};
use crate::index_keeper::{IndexKeeper, IndexTrouble};
use crate::index_store::PutIndexError;
use crate::ingest::{Ingest, IngestError, Latest, SizeNow};
use crate::layer_map::LayerMap;
use crate::layer_write::LayerStore;
use crate::ports::{Bucket, BucketError};
use crate::read::{Ancestor, Snapshot};
use crate::read_counts::ReadCounts;
use crate::retention::Retention;
use crate::stored_wal::{StoredWal, list_wal, wal_path};
use crate::tail::Tail;
use crate::wal_keeper::{KeepWalError, WalKeeper, WalKeeperPlace};
use crate::wal_run::{WalHistory, WalRunError, contiguous_run};

/// How many received messages may wait for the owner: enough to keep it busy while the next one is read, little enough to stop the source soon.
const WAL_QUEUE: usize = 8;
/// Requests that may wait for the owner.
const REQUEST_QUEUE: usize = 64;

/// What timelines of one tenant shard share.
#[derive(Clone)]
pub struct TimelineSurroundings {
    /// The object store.
    pub bucket: Arc<dyn Bucket>,
    /// Ownership.
    pub claim: Claim,
    /// Local copies.
    pub cache: Arc<ChunkCache>,
    /// Memory for tails.
    pub budget: Arc<TailBudget>,
    /// How to turn WAL into layers.
    pub policy: TimelinePolicy,
    /// In place of the policy's own; may change.
    pub freeze_bytes: Arc<AtomicUsize>,
    /// How deep reads go.
    pub reads: Arc<ReadCounts>,
}

/// Why a timeline could not be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error("the index of the timeline does not make sense")]
    Index(#[from] IndexTrouble),
    #[error("cannot store the index")]
    PutIndex(#[from] PutIndexError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
    #[error("cannot read the bucket")]
    Bucket(#[from] BucketError),
    #[error("the timeline's WAL in the bucket is not whole")]
    Wal(#[from] WalRunError),
    #[error("WAL object {path} is damaged")]
    WalObject { path: String, source: WalObjectError },
    #[error("cannot read what ingest needs")]
    Ingest(#[from] IngestError),
    #[error("cannot store layers during replay")]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Keep(#[from] KeepWalError),
}

impl OpenError {
    /// Whether it is only the bucket, which may answer later.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            OpenError::Ingest(error) => is_away(error),
            OpenError::Bucket(BucketError::Unavailable { .. }) => true,
            _ => false,
        }
    }
}

fn is_away(error: &IngestError) -> bool {
    matches!(error, IngestError::Read { source: ReadError::Away { .. }, .. })
}

/// The tasks of an open timeline. Each ends when the timeline is stopped, or with the reason why it could not go on.
pub type TimelineTasks = JoinSet<(&'static str, Result<(), String>)>;

/// The state in a snapshot, before anything is pending.
struct Stored<'a>(&'a Snapshot);

impl Latest for Stored<'_> {
    async fn get(&self, key: model::Key) -> Result<Option<bytes::Bytes>, ReadError> {
        self.0.get(key, Lsn::MAX).await
    }

    async fn scan(&self, keys: model::KeyRange) -> Result<Vec<(model::Key, bytes::Bytes)>, ReadError> {
        self.0.scan(keys, Lsn::MAX).await
    }

    async fn pages(
        &self,
        rel: model::RelTag,
        blocks: std::ops::Range<u32>,
    ) -> Result<bytes::Bytes, ReadError> {
        self.0.pages(rel, blocks, Lsn::MAX).await
    }
}

/// Opens a timeline whose index was found: writes this owner's own index (naming the WAL objects it inherits), replays WAL, starts the tasks. `points` are
/// what others read of it below its cutoff.
pub async fn open(
    place: &TimelineSurroundings,
    index: Arc<IndexKeeper>,
    ancestor: Option<&Timeline>,
    points: impl IntoIterator<Item = Lsn>,
) -> Result<(Timeline, TimelineTasks), OpenError> {
    let found = index.facts().await?;
    let facts = found.facts.clone();
    let (tenant_shard, timeline) = (facts.tenant_shard, facts.timeline);
    let layer_store = Arc::new(LayerStore::new(
        Arc::clone(&place.bucket),
        Arc::clone(&place.cache),
        place.claim.clone(),
        tenant_shard,
        timeline,
    ));
    let layers = LayerMap::new(found.layers(&layer_store)?.into_iter().map(Arc::new));
    let all = list_wal(&*place.bucket, tenant_shard, timeline).await?;
    let run = contiguous_run(&found.wal, all, found.disk_consistent_lsn)?;
    index.inherit(&run).await?;
    place.claim.validate().await?;

    let ancestor =
        ancestor.zip(found.ancestor_lsn).map(|(parent, lsn)| Ancestor { view: parent.view(), lsn });
    // What the index says is kept, is: also what nobody asks for any more, until the index says that it is given up. Else it might go before, and then
    // be believed to be there by an owner who finds that it was asked for: by a branch whose index somebody put who was superseded by then.
    let kept = found.kept_lsns.clone().unwrap_or_else(|| points.into_iter().collect());
    let retention = Arc::new(Retention::new(facts.wal_segment_size, found.gc_cutoff, kept));
    let snapshot = Snapshot {
        timeline,
        pg: facts.pg,
        last: found.disk_consistent_lsn,
        open: Tail::default(),
        frozen: Arc::from([]),
        layers: Arc::new(layers),
        ancestor: ancestor.clone(),
        branched_at: facts.branched_at,
        retention: Arc::clone(&retention),
        reads: Arc::clone(&place.reads),
    };
    let ingest = Ingest::load(&Stored(&snapshot), facts.pg).await?;
    let (decoder, wal_start) =
        decoder_for(&facts, &found.wal, &run, found.disk_consistent_lsn, found.prev_record_lsn);
    let received = run.last().map_or(wal_start, |last| counted_end(&found.wal, last));
    let keeper = WalKeeper::new(received, run.clone(), place.policy.wal.clone());

    let (to_owner, wal) = mpsc::channel(WAL_QUEUE);
    let (ask_owner, requests) = mpsc::channel(REQUEST_QUEUE);
    // Not bounded by the channel but by the owner, which lets at most `max_frozen` + 1 tails wait.
    let (to_flush, frozen) = mpsc::unbounded_channel();
    let (flush_done, flushed) = mpsc::unbounded_channel();
    // Layers are dropped in places that cannot wait; there are as many as there were in the index.
    let (retired, to_reap) = mpsc::unbounded_channel();
    let progress = Progress {
        last: found.disk_consistent_lsn,
        prev: found.prev_record_lsn.unwrap_or(Lsn::INVALID),
        tli: found.tli.0,
        newest_commit: None,
        size: ingest.logical_size(),
        error: None,
    };
    let snapshot = Arc::new(snapshot);
    let shared = Arc::new(Shared {
        facts,
        view: Arc::new(ArcSwap::new(Arc::clone(&snapshot))),
        progress: watch::channel(progress.clone()).0,
        counted: Arc::clone(ingest.counted_size()),
        is_counted: watch::channel(()).0,
        resident: layer_store.resident(),
        disk_consistent: watch::channel(found.disk_consistent_lsn).0,
        wal: to_owner,
        requests: ask_owner,
        keeper: keeper.clone(),
        layers: Arc::clone(&layer_store),
        retired,
        index: Arc::clone(&index),
        budget: Arc::clone(&place.budget),
        stop: CancellationToken::new(),
        abandoned: AtomicBool::new(false),
        compaction_trouble: ArcSwapOption::empty(),
        layers_version: AtomicU64::new(0),
        too_deep: AtomicBool::new(false),
        l0_room: AtomicUsize::new(usize::MAX),
        source_time: AtomicI64::new(i64::MIN),
        closed: AtomicBool::new(false),
    });
    let replayed = CancellationToken::new();
    let flusher = Flusher {
        layers: layer_store,
        index,
        keeper: keeper.clone(),
        frozen,
        done: flush_done,
        stop: shared.stop.clone(),
        replayed: replayed.clone(),
        covered: Vec::new(),
    };
    let mut owner = Owner {
        shared: Arc::clone(&shared),
        policy: place.policy.clone(),
        freeze_bytes: Arc::clone(&place.freeze_bytes),
        decoder,
        ingest,
        ancestor,
        retention,
        waits_until: None,
        state: State {
            last: progress.last,
            prev: progress.prev,
            tli: found.tli,
            frozen_to: progress.last,
            open: Tail::default(),
            frozen: Vec::new(),
            pending: Changes::default(),
            scratch: Changes::default(),
            chains: Chains::default(),
            checkpoints: Vec::new(),
            failed: false,
        },
        wal,
        requests,
        to_flush: Some(to_flush),
        flushed,
    };
    let mut tasks: TimelineTasks = JoinSet::new();
    tasks.spawn(async move {
        flusher.run().await;
        ("flusher", Ok(()))
    });
    if let SizeNow::Since(_) = progress.size {
        let counted = Arc::clone(&shared.counted);
        let (is_counted, stop) = (shared.is_counted.clone(), shared.stop.clone());
        let counting = count_once(snapshot, Arc::clone(&place.policy.counting), counted, is_counted, stop);
        tasks.spawn(async move {
            counting.await;
            ("logical size", Ok(()))
        });
    }
    let newest = replay(place, tenant_shard, timeline, &mut owner, &found.wal, &run).await?;
    keeper.remember(&newest);
    owner.waits_until = Some(shared.stop.clone());
    replayed.cancel();
    let keeper_place = WalKeeperPlace {
        bucket: Arc::clone(&place.bucket),
        claim: place.claim.clone(),
        tenant_shard,
        timeline,
        pg: shared.facts.pg,
        system_identifier: shared.facts.system_identifier,
    };
    let reaper = Reaper { claim: place.claim.clone(), retired: to_reap };
    let stop = shared.stop.clone();
    tasks.spawn(async move { ("reaper", reaper.run(stop).await.map_err(|error| error.to_string())) });
    let stop = shared.stop.clone();
    tasks.spawn(async move {
        ("WAL keeper", keeper.run(keeper_place, stop).await.map_err(|error| error.to_string()))
    });
    tasks.spawn(async move {
        ("owner", owner.run().await.map_err(|error| crate::error_story::error_story(&error)))
    });
    Ok((Timeline { shared }, tasks))
}

/// The decoder that goes on where layers end, and the first byte of WAL that it needs. A branch without records of its own begins at the page of
/// its branch point: the cluster restored there skips from the page's header to its first record.
fn decoder_for(
    facts: &TimelineFacts,
    wal: &WalHistory,
    run: &[StoredWal],
    at: Lsn,
    prev: Option<Lsn>,
) -> (WalDecoder, Lsn) {
    let tli = wal.tli_at(at);
    // What followed an ordinary Postgres from its branch point on has WAL from exactly there.
    let fresh_branch = facts.branched_at == Some(at) && run.first().is_none_or(|first| first.start < at);
    let (decoder, start) = if fresh_branch {
        let page = at.page_start();
        (WalDecoder::at_first_record_after(facts.pg, facts.wal_segment_size, tli, page), page)
    } else {
        let decoder = WalDecoder::new(facts.pg, facts.wal_segment_size, tli, at);
        let decoder = match prev {
            Some(prev) => decoder.expecting_prev(prev),
            None => decoder,
        };
        (decoder, at)
    };
    (decoder.expecting_system_id(facts.system_identifier), start)
}

/// Feeds the WAL objects of the run to the owner. Bytes that two objects share must be equal. Answers the newest object's bytes.
async fn replay(
    place: &TimelineSurroundings,
    tenant_shard: TenantShardId,
    timeline: TimelineId,
    owner: &mut Owner,
    history: &WalHistory,
    run: &[StoredWal],
) -> Result<Vec<u8>, OpenError> {
    let mut before: Option<(Lsn, Vec<u8>)> = None;
    for object in run {
        let path = wal_path(tenant_shard, timeline, object);
        let bytes = place.bucket.get(&path, None).await?.bytes;
        let decoded =
            blocking::run(move || wal_object::decode(&bytes)).await.map_err(|_| KeepWalError::Stopped)?;
        let (header, mut raw) =
            decoded.map_err(|source| OpenError::WalObject { path: path.clone(), source })?;
        if (header.start, header.end, header.tli) != (object.start, object.end, object.tli)
            || header.system_id != owner.shared.facts.system_identifier
        {
            return Err(WalRunError::WrongObject { path }.into());
        }
        // The rest was received before it was known where the Postgres timeline ends.
        raw.truncate(counted_end(history, object).since(object.start) as usize);
        if let Some((start, older)) = &before {
            crate::wal_run::check_overlap(*start, older, object.start, &raw)
                .map_err(|at| WalRunError::Differ { path: path.clone(), at })?;
        }
        owner.wait_for_room().await?;
        match owner.take_wal(object.start, object.tli, &raw).await {
            Ok(()) => {}
            // All of it is done again when the bucket answers.
            Err(IngestStopped::Record { source, .. }) if is_away(&source) => return Err(source.into()),
            Err(stopped) => owner.fail(&stopped),
        }
        before = Some((object.start, raw));
    }
    if let (Some(first), Some(last)) = (run.first(), run.last()) {
        info!(%timeline, from = %first.start, to = %last.end, objects = run.len(), readable_to = %owner.state.last, "replayed WAL from the bucket");
    }
    Ok(before.map(|(_, raw)| raw).unwrap_or_default())
}

/// Just past the last byte of an object that is history.
fn counted_end(history: &WalHistory, object: &StoredWal) -> Lsn {
    history.left_at(object.tli).map_or(object.end, |left| left.min(object.end))
}
