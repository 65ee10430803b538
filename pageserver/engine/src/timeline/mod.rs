//! A timeline: one line of history, its readers and its one writer.
//!
//! [`Timeline`] is what the rest of the process holds: cheap to clone, reads through immutable snapshots, speaks to the owner through
//! bounded channels. [`owner`] is the one task that changes anything; [`flush`] turns frozen tails into layers behind it; [`replay`] brings a
//! timeline back from the bucket; [`size`] tells how large it is.

mod chains;
pub mod flush;
pub mod lease;
pub mod named;
mod owner;
mod reap;
mod replay;
pub mod restore;
pub mod size;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use codec::wal::stream::WalError;
use futures::future::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use model::{
    BLOCK_SIZE, Key, LayerName, Lsn, PgMajor, PgTimestamp, RelTag, SlruKind, TenantShardId, TimelineId, Tli,
    WalSegmentSize,
};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::as_of::ReadError;
use crate::budget::TailBudget;
use crate::index_keeper::IndexKeeper;
use crate::ingest::{CountedSize, IngestError, SizeNow};
use crate::layer_read::{Layer, Retired};
use crate::layer_write::LayerStore;
use crate::read::{Ancestor, Snapshot, SnapshotAt};
use crate::retention::Retention;
use crate::wal_keeper::{KeepWalError, WalKeeper, WalKeeping};

pub use owner::OwnerError;
pub use replay::{OpenError, TimelineSurroundings, TimelineTasks, open};

/// How a timeline turns WAL into layers.
#[derive(Clone, Debug)]
pub struct TimelinePolicy {
    /// The open tail is frozen when it holds so many bytes.
    pub freeze_bytes: usize,
    /// … or when so many WAL objects lie above the layers: what a restart would have to fetch after a long trickle.
    pub max_wal_objects: usize,
    /// A page is made whole after so many changes in a row: what a read has to redo at most.
    pub max_chain: usize,
    /// With so many layers straight from the tail, no more are made until compaction has merged some: ingest waits. `None` where nobody compacts.
    pub max_l0: Option<usize>,
    /// Frozen tails that may wait for their layers; beyond it the source has to wait.
    pub max_frozen: usize,
    /// What happens to raw WAL.
    pub wal: WalKeeping,
    /// Turns for counting the logical size of timelines that do not say it: one for all of them.
    pub counting: Arc<Semaphore>,
}

impl Default for TimelinePolicy {
    fn default() -> Self {
        TimelinePolicy {
            freeze_bytes: 128 << 20,
            max_wal_objects: 1000,
            max_chain: 24,
            max_l0: None,
            max_frozen: 2,
            wal: WalKeeping::default(),
            counting: Arc::new(Semaphore::new(1)),
        }
    }
}

/// What never changes in an open timeline.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineFacts {
    /// Its name.
    pub timeline: TimelineId,
    /// Whose it is.
    pub tenant_shard: TenantShardId,
    /// Whose record formats its WAL has.
    pub pg: PgMajor,
    /// Of the source's cluster.
    pub system_identifier: u64,
    /// Of the source's cluster.
    pub wal_segment_size: WalSegmentSize,
    /// Its first LSN: where its base was taken.
    pub initdb_lsn: Lsn,
    /// Reads below this are refused: a base backup is not consistent before its end.
    pub readable_from: Lsn,
    /// Where it branched off, also if it has no ancestor any more.
    pub branched_at: Option<Lsn>,
}

/// A timeline as it is now, for people and the HTTP API.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are those of the API")]
pub struct TimelineInfo {
    #[serde(flatten)]
    pub facts: TimelineFacts,
    pub ancestor: Option<(TimelineId, Lsn)>,
    pub last_record_lsn: Lsn,
    pub prev_record_lsn: Lsn,
    pub disk_consistent_lsn: Lsn,
    pub remote_consistent_lsn: Lsn,
    pub wal_received_lsn: Lsn,
    pub wal_stored_lsn: Lsn,
    pub wal_flushed_lsn: Lsn,
    pub wal_objects: usize,
    pub wal_objects_size: u64,
    pub layers: usize,
    /// Bytes of all relations; `None` while they are being counted.
    pub current_logical_size: Option<u64>,
    pub remote_physical_size: u64,
    pub resident_physical_size: u64,
    pub tail_bytes: usize,
    pub newest_commit: Option<PgTimestamp>,
    pub gc_cutoff_lsn: Lsn,
    pub min_readable_lsn: Lsn,
    pub l0_layers: usize,
    /// Ingest waits until compaction has made reads less deep.
    pub ingest_waits: bool,
    /// Why the last compaction failed, if it did.
    pub compaction_error: Option<String>,
    /// Times that this owner has put the index, and all bytes of that.
    pub index_puts: u64,
    pub index_bytes: u64,
    /// Why ingest stopped, if it did.
    pub error: Option<String>,
}

/// How far ingest is.
#[derive(Clone, Debug, Default)]
struct Progress {
    last: Lsn,
    prev: Lsn,
    tli: u32,
    newest_commit: Option<PgTimestamp>,
    size: SizeNow,
    error: Option<Arc<str>>,
}

/// A timeline that is open in this process. Cheap to clone.
#[derive(Clone)]
pub struct Timeline {
    shared: Arc<Shared>,
}

struct Shared {
    facts: TimelineFacts,
    view: Arc<ArcSwap<Snapshot>>,
    progress: watch::Sender<Progress>,
    /// Size of all relations where ingest began, if the timeline did not say it.
    counted: CountedSize,
    /// Changes when that is there.
    is_counted: watch::Sender<()>,
    /// Bytes of its layers on the local disk.
    resident: Arc<AtomicU64>,
    disk_consistent: watch::Sender<Lsn>,
    wal: mpsc::Sender<ReceivedWal>,
    requests: mpsc::Sender<Request>,
    keeper: WalKeeper,
    layers: Arc<LayerStore>,
    retired: Retired,
    index: Arc<IndexKeeper>,
    budget: Arc<TailBudget>,
    stop: CancellationToken,
    /// What is only in memory is not wanted any more.
    abandoned: AtomicBool,
    /// Why the last compaction failed, if it did.
    compaction_trouble: ArcSwapOption<String>,
    /// How often its layers have changed.
    layers_version: AtomicU64,
    /// Ingest waits until there are fewer layers to read.
    too_deep: AtomicBool,
    /// So many deltas straight from the tail there may be, as compaction last saw it.
    l0_room: AtomicUsize,
    /// What the source's clock said last.
    source_time: AtomicI64,
    /// This process lets it go: who reads from it finds it elsewhere.
    closed: AtomicBool,
}

/// Bytes for the owner, already with the keeper.
struct ReceivedWal {
    at: Lsn,
    tli: Tli,
    bytes: Bytes,
}

/// What others ask of the owner.
enum Request {
    /// Freeze the open tail and answer when everything up to now is in layers that the index names.
    Checkpoint(oneshot::Sender<Result<Lsn, String>>),
    /// Reads find older history here from now on, and these layers besides.
    Rebase(Rebase, oneshot::Sender<()>),
    /// Answer the end of the last record; before that, if asked, take WAL of this Postgres timeline from that end on.
    Settle { go_on_as: Option<Tli>, answer: oneshot::Sender<Lsn> },
    /// Reads find these layers in place of those, which the index in the bucket names no longer.
    Replace { add: Vec<Arc<Layer>>, remove: HashSet<LayerName>, answer: oneshot::Sender<()> },
    /// Reads go by this retention from now on.
    Retain { retention: Arc<Retention>, answer: oneshot::Sender<()> },
}

/// Another place for what is older than a timeline's own history.
pub(crate) struct Rebase {
    /// Where that goes on; `None`: nowhere.
    pub ancestor: Option<Ancestor>,
    /// Layers that are the timeline's own besides.
    pub layers: Vec<Arc<Layer>>,
    /// What these and its others fulfil.
    pub retention: Arc<Retention>,
}

/// Why WAL was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// It could not be kept.
    #[error(transparent)]
    Keep(#[from] KeepWalError),
    /// It could not be ingested.
    #[error("ingest of the timeline has stopped: {0}")]
    Ingest(Arc<str>),
    /// The timeline is closing.
    #[error("the timeline is shutting down")]
    Stopped,
}

/// Why a wait for an LSN ended without it.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It did not arrive in time.
    #[error(
        "timed out while waiting for WAL record at LSN {wanted} to arrive, last_record_lsn {last} disk consistent LSN={disk_consistent}"
    )]
    Timeout {
        /// What was waited for.
        wanted: Lsn,
        /// How far ingest is.
        last: Lsn,
        /// How far layers are.
        disk_consistent: Lsn,
    },
    /// Ingest has stopped; it will not arrive.
    #[error("ingest of the timeline has stopped: {0}")]
    Ingest(Arc<str>),
    /// The timeline is closing.
    #[error("the timeline is shutting down")]
    Stopped,
}

impl Timeline {
    /// What never changes.
    pub fn facts(&self) -> &TimelineFacts {
        &self.shared.facts
    }

    /// Its name.
    pub fn id(&self) -> TimelineId {
        self.shared.facts.timeline
    }

    /// The timeline where its history goes on below its own, and from where on.
    pub fn ancestor(&self) -> Option<(TimelineId, Lsn)> {
        let view = self.shared.view.load();
        view.ancestor.as_ref().map(|ancestor| (ancestor.view.load().timeline, ancestor.lsn))
    }

    /// End of the last readable record.
    pub fn last_record_lsn(&self) -> Lsn {
        self.shared.progress.borrow().last
    }

    /// End of the last readable record and the start of that record (invalid right after opening a fresh branch).
    pub fn last_and_prev(&self) -> (Lsn, Lsn) {
        let progress = self.shared.progress.borrow();
        (progress.last, progress.prev)
    }

    /// Reads below this LSN are refused.
    pub fn readable_from(&self) -> Lsn {
        self.shared.facts.readable_from
    }

    /// Up to where everything is in layers that the index in the bucket names.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        *self.shared.disk_consistent.borrow()
    }

    /// Up to where WAL may be reported to the source: in the bucket, and this owner was the newest afterwards.
    pub fn flushed(&self) -> watch::Receiver<Lsn> {
        self.shared.keeper.flushed()
    }

    /// Just past the last byte of WAL received: where a receiver goes on.
    pub fn received(&self) -> Lsn {
        self.shared.keeper.received()
    }

    /// The newest received bytes that are still there to compare with begin here.
    pub fn known_from(&self) -> Lsn {
        self.shared.keeper.known_from()
    }

    /// The Postgres timeline of the newest record.
    pub fn tli(&self) -> Tli {
        Tli(self.shared.progress.borrow().tli)
    }

    /// The object store's view of this timeline.
    pub fn index(&self) -> &Arc<IndexKeeper> {
        &self.shared.index
    }

    pub(crate) fn view(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.shared.view)
    }

    pub(crate) fn layer_store(&self) -> &LayerStore {
        &self.shared.layers
    }

    /// Where layers are retired to whose objects are to be deleted.
    pub(crate) fn retired(&self) -> Retired {
        self.shared.retired.clone()
    }

    pub(crate) fn keeper(&self) -> &WalKeeper {
        &self.shared.keeper
    }

    /// Tells the owner to finish; [`open`]'s tasks end soon after.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// The same for a timeline that is deleted: what is not in layers yet does not become any.
    pub(crate) fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::Relaxed);
        self.stop();
    }

    /// Tells the owner to finish because this process lets the timeline go; whether what is in memory is stored first.
    pub(crate) fn close(&self, flush: bool) {
        self.shared.closed.store(true, Ordering::Relaxed);
        if flush { self.stop() } else { self.abandon() }
    }

    /// Whether this process has let it go: reads from it belong elsewhere.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed)
    }

    /// Whether it is closing or closed.
    pub fn is_stopped(&self) -> bool {
        self.shared.stop.is_cancelled()
    }

    /// Why ingest stopped, if it did. What is readable stays readable.
    pub fn trouble(&self) -> Option<String> {
        self.shared.progress.borrow().error.as_ref().map(ToString::to_string)
    }

    /// How it is.
    pub fn info(&self) -> TimelineInfo {
        let progress = self.shared.progress.borrow().clone();
        let view = self.shared.view.load();
        TimelineInfo {
            facts: self.shared.facts.clone(),
            ancestor: self.ancestor(),
            last_record_lsn: progress.last,
            prev_record_lsn: progress.prev,
            disk_consistent_lsn: self.disk_consistent_lsn(),
            remote_consistent_lsn: self.disk_consistent_lsn(),
            wal_received_lsn: self.shared.keeper.received(),
            wal_stored_lsn: *self.shared.keeper.stored().borrow(),
            wal_flushed_lsn: *self.shared.keeper.flushed().borrow(),
            wal_objects: self.shared.keeper.object_count(),
            wal_objects_size: self.shared.keeper.object_bytes(),
            layers: view.layers.len(),
            current_logical_size: self.logical_size().map(codec::logical_size::LogicalSize::bytes),
            remote_physical_size: self.shared.index.layer_bytes(),
            resident_physical_size: self.shared.resident.load(Ordering::Relaxed),
            tail_bytes: view.open.size() + view.frozen.iter().map(crate::tail::Tail::size).sum::<usize>(),
            newest_commit: progress.newest_commit,
            gc_cutoff_lsn: view.retention.cutoff,
            min_readable_lsn: view.retention.cutoff.max(self.readable_from()),
            l0_layers: view.layers.l0().len(),
            ingest_waits: self.is_too_deep(),
            compaction_error: self.compaction_trouble().map(|trouble| trouble.to_string()),
            index_puts: self.shared.index.counts.puts.load(Ordering::Relaxed),
            index_bytes: self.shared.index.counts.bytes.load(Ordering::Relaxed),
            error: progress.error.map(|error| error.to_string()),
        }
    }

    /// How many deltas straight from the tail there are: every read of a key that they do not hold looks into all of them.
    pub fn l0_count(&self) -> usize {
        self.shared.view.load().layers.l0().len()
    }

    /// Changes whenever its layers do.
    pub(crate) fn layers_seen(&self) -> u64 {
        self.shared.layers_version.load(Ordering::Acquire)
    }

    /// Takes note of how many deltas straight from the tail there may be.
    pub(crate) fn note_l0_room(&self, room: usize) {
        self.shared.l0_room.store(room, Ordering::Relaxed);
    }

    /// Notes how the last compaction went.
    pub(crate) fn note_compaction(&self, trouble: Option<String>) {
        self.shared.compaction_trouble.store(trouble.map(Arc::new));
    }

    /// Why the last compaction failed, if it did.
    pub fn compaction_trouble(&self) -> Option<Arc<String>> {
        self.shared.compaction_trouble.load_full()
    }

    /// Whether ingest waits for compaction: taking more would make reads deeper than they may be.
    pub fn is_too_deep(&self) -> bool {
        self.shared.too_deep.load(Ordering::Relaxed)
    }

    /// What the source's clock says, as its messages tell it.
    pub fn note_source_time(&self, time: PgTimestamp) {
        self.shared.source_time.store(time.0, Ordering::Relaxed);
    }

    /// What the source's clock said last, since this process follows it.
    pub fn source_time(&self) -> Option<PgTimestamp> {
        Some(PgTimestamp(self.shared.source_time.load(Ordering::Relaxed))).filter(|time| time.0 != i64::MIN)
    }

    /// The layers of the timeline itself, for pictures and people.
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        self.shared.view.load().layers.all().cloned().collect()
    }

    /// Takes WAL from a source. Waits while memory is full, which stops the reading of the source. Bytes received before are dropped.
    pub async fn append_wal(&self, at: Lsn, tli: Tli, bytes: Bytes) -> Result<(), AppendError> {
        // The place in the owner's queue comes first: after it, nothing can come between keeper and owner.
        let place = self.shared.wal.reserve().await.map_err(|_| self.why_stopped())?;
        self.shared.keeper.append(at, tli, &bytes).await?;
        place.send(ReceivedWal { at, tli, bytes });
        Ok(())
    }

    /// Waits until all received WAL is ingested. Answers the end of the last record: what was received past it is the beginning of another.
    pub async fn settled(&self) -> Result<Lsn, AppendError> {
        self.settle(None).await
    }

    /// Forgets the beginning of a record that was received past the last whole one, or the page before a branch point, and takes WAL of Postgres
    /// timeline `tli` from the end of the last record on. The index must know the switch by then.
    pub(crate) async fn go_on_as(&self, tli: Tli) -> Result<Lsn, AppendError> {
        self.shared.keeper.seal_now().await?;
        let at = self.settle(Some(tli)).await?;
        if !self.shared.keeper.go_on_at(at) {
            return Err(AppendError::Stopped);
        }
        Ok(at)
    }

    async fn settle(&self, go_on_as: Option<Tli>) -> Result<Lsn, AppendError> {
        let queue = &self.shared.wal;
        // All places are free when the owner has taken everything; it answers when it has ingested that.
        let places = queue.reserve_many(queue.max_capacity()).await.map_err(|_| self.why_stopped())?;
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Settle { go_on_as, answer }).await?;
        let settled = answered.await.map_err(|_| self.why_stopped());
        drop(places);
        settled
    }

    fn why_stopped(&self) -> AppendError {
        self.shared.progress.borrow().error.clone().map_or(AppendError::Stopped, AppendError::Ingest)
    }

    /// Has reads find other layers: `add` in place of `remove`, which the index in the bucket names no longer.
    pub(crate) async fn replace_layers(
        &self,
        add: Vec<Arc<Layer>>,
        remove: HashSet<LayerName>,
    ) -> Result<(), AppendError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Replace { add, remove, answer }).await?;
        answered.await.map_err(|_| self.why_stopped())
    }

    /// Has reads go by another retention. Below its cutoff, only its points stay readable from now on.
    pub(crate) async fn retain(&self, retention: Arc<Retention>) -> Result<(), AppendError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Retain { retention, answer }).await?;
        answered.await.map_err(|_| self.why_stopped())
    }

    /// As of when it can be read, as far as its own layers go.
    pub fn retention(&self) -> Arc<Retention> {
        Arc::clone(&self.shared.view.load().retention)
    }

    /// Whether history of `lsn` is kept, here and in the ancestors that it is read from.
    pub fn check_kept(&self, lsn: Lsn) -> Result<(), ReadError> {
        let mut view = self.shared.view.load_full();
        let mut lsn = lsn;
        loop {
            view.check_kept(lsn)?;
            let Some(ancestor) = view.ancestor.as_ref().filter(|ancestor| lsn <= ancestor.lsn) else {
                return Ok(());
            };
            lsn = lsn.min(ancestor.lsn);
            let next = ancestor.view.load_full();
            view = next;
        }
    }

    async fn ask(&self, request: Request) -> Result<(), AppendError> {
        self.shared.requests.send(request).await.map_err(|_| self.why_stopped())
    }

    /// Stores all received WAL now and lists claims; answers what may be reported to the source.
    pub async fn seal_now(&self) -> Result<Lsn, KeepWalError> {
        self.shared.keeper.seal_now().await
    }

    /// Freezes the tail and waits until all of it is in layers that the index names. Answers up to where.
    pub async fn checkpoint(&self) -> Result<Lsn, AppendError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Checkpoint(answer)).await?;
        answered.await.map_err(|_| self.why_stopped())?.map_err(|error| AppendError::Ingest(error.into()))
    }

    /// Reads what is older than its own history from elsewhere, which its index says already. Whoever reads now reads the same from what there was
    /// before.
    pub(crate) async fn rebase(&self, rebase: Rebase) -> Result<(), AppendError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Rebase(rebase, answer)).await?;
        answered.await.map_err(|_| self.why_stopped())
    }

    /// Waits until the record that ends at `lsn` is readable.
    pub async fn wait_for(&self, lsn: Lsn, timeout: Duration) -> Result<(), WaitError> {
        let mut progress = self.shared.progress.subscribe();
        if progress.borrow_and_update().last >= lsn {
            return Ok(());
        }
        let arrived = async {
            loop {
                {
                    let now = progress.borrow_and_update();
                    if now.last >= lsn {
                        return Ok(());
                    }
                    if let Some(error) = &now.error {
                        return Err(WaitError::Ingest(Arc::clone(error)));
                    }
                }
                tokio::select! {
                    biased;
                    changed = progress.changed() => changed.map_err(|_| WaitError::Stopped)?,
                    () = self.shared.stop.cancelled() => return Err(WaitError::Stopped),
                }
            }
        };
        tokio::time::timeout(timeout, arrived).await.unwrap_or_else(|_| {
            Err(WaitError::Timeout {
                wanted: lsn,
                last: self.last_record_lsn(),
                disk_consistent: self.disk_consistent_lsn(),
            })
        })
    }

    /// The timeline as of `lsn`, which must be readable.
    pub fn at(&self, lsn: Lsn) -> SnapshotAt {
        SnapshotAt { snapshot: self.shared.view.load_full(), lsn }
    }

    /// The size of a relation's fork in blocks; `None` when it does not exist.
    pub async fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, ReadError> {
        self.shared.view.load_full().rel_size(rel, lsn).await
    }

    /// One page as of an LSN. A block past the end is zeros; a relation that does not exist is an error, but for the forks that
    /// Postgres may look for in vain (free space and visibility maps), which read as empty.
    pub async fn page(&self, rel: RelTag, block: u32, lsn: Lsn) -> Result<Bytes, ReadError> {
        let view = self.shared.view.load_full();
        page_of(&view, rel, None, block, lsn).await
    }

    /// Several pages, each as of its own LSN, answered in order. All of one snapshot. Those that must wait for bytes wait together.
    pub async fn get_pages(&self, requests: &[(RelTag, u32, Lsn)], out: &mut Vec<Result<Bytes, ReadError>>) {
        let Some(&(rel, _, lsn)) = requests.first() else { return };
        let view = self.shared.view.load_full();
        // Most batches are of one relation as of one LSN: its size is looked up once, if that takes no waiting.
        let is_uniform = requests.iter().all(|(other, _, at)| (*other, *at) == (rel, lsn));
        let mut size = std::pin::pin!(view.rel_size(rel, lsn));
        let looked_up = if is_uniform { futures::poll!(size.as_mut()) } else { Poll::Ready(Ok(None)) };
        let known = match &looked_up {
            Poll::Ready(Ok(size)) => *size,
            _ => None,
        };
        let mut waiting = FuturesUnordered::new();
        for (rel, block, lsn) in requests {
            let (place, mut read) = (out.len(), Box::pin(page_of(&view, *rel, known, *block, *lsn)));
            match futures::poll!(read.as_mut()) {
                Poll::Ready(page) => out.push(page),
                Poll::Pending => {
                    out.push(Err(ReadError::Stopping)); // until its bytes are here
                    waiting.push(read.map(move |page| (place, page)));
                }
            }
        }
        let arrivals = async {
            while let Some((place, page)) = waiting.next().await {
                out[place] = page;
            }
        };
        if looked_up.is_pending() {
            // The reads look the size up themselves, and share what this lookup is fetching.
            let _ = futures::join!(arrivals, size);
        } else {
            arrivals.await;
        }
    }

    /// Bytes of a database's relations in the default tablespace, 8,192 a block.
    pub async fn db_size(&self, db: u32, lsn: Lsn) -> Result<u64, ReadError> {
        let view = self.shared.view.load_full();
        let mut blocks = 0;
        for (key, value) in
            view.scan(Key::rel_directory_range(model::rel::DEFAULT_TABLESPACE, db), lsn).await?
        {
            let rel = match key.kind() {
                Some(model::key::KeyKind::RelDirectoryEntry(rel)) if !value.is_empty() => rel,
                _ => continue,
            };
            blocks += u64::from(view.rel_size(rel, lsn).await?.unwrap_or(0));
        }
        Ok(blocks * BLOCK_SIZE as u64)
    }

    /// The pages of an SLRU segment, back to back; `None` when there is no such segment.
    pub async fn slru_segment(
        &self,
        kind: SlruKind,
        segment: u32,
        lsn: Lsn,
    ) -> Result<Option<Bytes>, ReadError> {
        let view = self.shared.view.load_full();
        let key = Key::slru_size(kind, segment);
        let Some(pages) = crate::read::decode_size(key, lsn, view.get(key, lsn).await?.as_deref())? else {
            return Ok(None);
        };
        let mut out =
            bytes::BytesMut::with_capacity(pages.min(model::SLRU_SEGMENT_PAGES) as usize * BLOCK_SIZE);
        for page in 0..pages.min(model::SLRU_SEGMENT_PAGES) {
            let key = Key::slru_page(kind, segment, page);
            match view.get(key, lsn).await? {
                // A commit-log page may carry the time of its last commit behind its 8,192 bytes.
                Some(bytes) if bytes.len() >= BLOCK_SIZE => out.extend_from_slice(&bytes[..BLOCK_SIZE]),
                Some(bytes) => {
                    return Err(crate::read::malformed(key, lsn, format!("page of {} bytes", bytes.len())));
                }
                None => out.extend_from_slice(&codec::page::ZERO_PAGE),
            }
        }
        Ok(Some(out.freeze()))
    }

    /// How much memory its tail may use, with all others'.
    pub fn budget(&self) -> &Arc<TailBudget> {
        &self.shared.budget
    }
}

/// A page of a relation, whose size may be known already. Otherwise both are looked up at once: with nothing at hand either is a GET.
async fn page_of(
    view: &Snapshot,
    rel: RelTag,
    known: Option<u32>,
    block: u32,
    lsn: Lsn,
) -> Result<Bytes, ReadError> {
    let size = async {
        match known {
            Some(size) => Ok(Some(size)),
            None => view.rel_size(rel, lsn).await,
        }
    };
    let (size, page) = futures::join!(size, view.page(rel, block, lsn));
    match size? {
        Some(size) if block < size => page,
        Some(_) => Ok(Bytes::from_static(&codec::page::ZERO_PAGE)),
        None if matches!(rel.fork, model::Fork::Fsm | model::Fork::Vm) => {
            Ok(Bytes::from_static(&codec::page::ZERO_PAGE))
        }
        None => Err(ReadError::MissingKey { key: Key::rel_size(rel), lsn }),
    }
}

/// Why ingest stopped: its input cannot be believed, or the timeline cannot be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum IngestStopped {
    /// The WAL is damaged or does not fit.
    #[error("WAL cannot be decoded")]
    Wal(#[from] WalError),
    /// A record cannot be ingested.
    #[error("WAL record at {start} cannot be ingested")]
    Record {
        /// Where the record begins.
        start: Lsn,
        /// Why.
        source: IngestError,
    },
    /// A record cannot be parsed.
    #[error("WAL record at {start} cannot be parsed")]
    Parse {
        /// Where the record begins.
        start: Lsn,
        /// Why.
        source: codec::wal::record::RecordError,
    },
}
