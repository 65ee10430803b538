//! An owner's own index of a timeline, and the only place that changes it.
//!
//! Changes are gathered: who changes the index while it is being put has its change in the next put, together with all others that came meanwhile.
//! So the index is written once for many of them, and each is answered when it is in the bucket. A put that fails takes with it what was built
//! upon it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, OnceLock};

use codec::index_part::{
    DETACH_ANCESTOR, Extension, IndexPart, LayerMetadata, NotPortable, TimelineMetadata, TliStart, UtcTime,
    WalFlavour, WalObjectEntry,
};
use model::{LayerName, LayerObjectName, Lsn, PgTimestamp, TenantShardId, TimelineId, Tli, WalSegmentSize};
use tokio::sync::Mutex;

use crate::claim::Claim;
use crate::error_story::error_story;
use crate::index_store::{FoundIndex, IndexStore, IndexWriter, PutIndexError};
use crate::layer_read::Layer;
use crate::layer_write::{LayerStore, WrittenLayer};
use crate::retention::{Retention, Wishes, points};
use crate::stored_wal::StoredWal;
use crate::timeline::lease::drop_expired;
use crate::timeline::{Timeline, TimelineFacts};
use crate::wal_run::WalHistory;

/// Keeps and writes the index of one timeline as one owner.
pub struct IndexKeeper {
    claim: Claim,
    timeline: TimelineId,
    /// Guards values, never held across an await.
    state: StdMutex<State>,
    /// Held while an index is put: puts of one timeline are one after the other.
    writer: Mutex<IndexWriter>,
    /// What was put so far.
    pub counts: IndexCounts,
}

/// What writing a timeline's index cost.
#[derive(Debug, Default)]
pub struct IndexCounts {
    /// Changes asked for.
    pub changes: AtomicU64,
    /// Puts.
    pub puts: AtomicU64,
    /// Bytes put.
    pub bytes: AtomicU64,
    /// Bytes of the last put.
    pub last_bytes: AtomicU64,
    /// Bytes of the layers that the index in the bucket names.
    pub layer_bytes: AtomicU64,
}

struct State {
    /// As it is in the bucket.
    settled: Arc<IndexPart>,
    /// With the changes that are not there yet.
    newest: IndexPart,
    /// What becomes of the changes being gathered; `None` while there are none.
    gathering: Option<Outcome>,
    /// What becomes of those being put.
    under_way: Vec<Outcome>,
    /// Whose objects count beside the inherited ones: the index that was found, until the own one is written.
    found_generation: Option<model::Generation>,
}

/// How a put went, once that is known.
type Outcome = Arc<OnceLock<Result<(), Arc<str>>>>;

/// Whether an index has to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It says something new.
    Yes,
    /// What is in the bucket says it already.
    No,
}

/// What an index must say to be opened here, and does not.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum IndexTrouble {
    #[error("the timeline has no palimpsest part: timelines written by Neon cannot be opened yet")]
    Plain,
    #[error("the timeline's WAL is of flavour neon, which cannot be followed yet")]
    NeonWal,
    #[error("layer {layer} has a layout that does not fit its size")]
    Layout { layer: LayerName, source: codec::layer::ReadLayerError },
    #[error("the timeline's base import is not finished")]
    Importing,
}

/// What opening a timeline takes from its index.
pub struct IndexFacts {
    /// What never changes.
    pub facts: TimelineFacts,
    /// Where its ancestor's history begins to be its own, if it has one.
    pub ancestor_lsn: Option<Lsn>,
    /// Up to where layers cover everything.
    pub disk_consistent_lsn: Lsn,
    /// Start of the record that ends there, when known.
    pub prev_record_lsn: Option<Lsn>,
    /// The Postgres timeline there.
    pub tli: Tli,
    /// Below it only single LSNs can be read.
    pub gc_cutoff: Lsn,
    /// Which those are, if that was ever said.
    pub kept_lsns: Option<Vec<Lsn>>,
    /// Which WAL objects count.
    pub wal: WalHistory,
    layers: Vec<(LayerObjectName, LayerMetadata)>,
    tenant_shard: TenantShardId,
}

impl IndexFacts {
    /// Handles to all layers.
    pub fn layers(&self, store: &LayerStore) -> Result<Vec<Layer>, IndexTrouble> {
        self.layers
            .iter()
            .map(|(name, metadata)| {
                let layout = metadata
                    .layout(&name.layer)
                    .transpose()
                    .map_err(|source| IndexTrouble::Layout { layer: name.layer.clone(), source })?;
                let writer = TenantShardId { tenant: self.tenant_shard.tenant, shard: metadata.shard };
                let commits = metadata.palimpsest.as_ref().and_then(|details| details.commits);
                Ok(store.open(writer, name.clone(), metadata.file_size, layout, commits))
            })
            .collect()
    }
}

impl IndexKeeper {
    /// Of an index that was found.
    pub fn new(claim: Claim, timeline: TimelineId, found: FoundIndex) -> IndexKeeper {
        let writer = IndexStore::new(&claim).writer(timeline, Some(&found));
        Self::of(claim, timeline, found.index, found.generation, writer)
    }

    fn of(
        claim: Claim,
        timeline: TimelineId,
        part: IndexPart,
        found_generation: Option<model::Generation>,
        writer: IndexWriter,
    ) -> IndexKeeper {
        let state = State {
            settled: Arc::new(part.clone()),
            newest: part,
            gathering: None,
            under_way: Vec::new(),
            found_generation,
        };
        let counts = IndexCounts::default();
        counts.layer_bytes.store(layer_bytes(&state.settled), Relaxed);
        IndexKeeper { claim, timeline, state: StdMutex::new(state), writer: Mutex::new(writer), counts }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Of a timeline that does not exist yet: puts its first index.
    pub async fn create(
        claim: Claim,
        timeline: TimelineId,
        part: IndexPart,
    ) -> Result<IndexKeeper, PutIndexError> {
        let writer = IndexStore::new(&claim).writer(timeline, None);
        // Its own objects count from the beginning.
        let generation = Some(claim.generation());
        let keeper = Self::of(claim, timeline, part, generation, writer);
        keeper.update(|_| {}).await?;
        Ok(keeper)
    }

    /// Of a branch of `parent` at `lsn`: puts its first index.
    pub async fn new_branch(
        claim: Claim,
        timeline: TimelineId,
        parent: &Timeline,
        lsn: Lsn,
    ) -> Result<IndexKeeper, PutIndexError> {
        let (last, prev) = parent.last_and_prev();
        let facts = parent.facts();
        let theirs = parent.index().part().await;
        let metadata = TimelineMetadata {
            disk_consistent_lsn: lsn,
            prev_record_lsn: Some(prev).filter(|prev| last == lsn && prev.is_valid()),
            ancestor_timeline: Some(facts.timeline),
            ancestor_lsn: lsn,
            // A point that was kept below the cutoff is all that there is of the history before.
            latest_gc_cutoff_lsn: theirs.metadata().latest_gc_cutoff_lsn.min(lsn),
            initdb_lsn: facts.initdb_lsn,
            pg_version: facts.pg,
            unknown: codec::index_part::Unknown::new(),
        };
        let ours = theirs.palimpsest.as_ref().map(|parent| Extension {
            sequence: 0,
            tli_history: parent.tli_history.iter().filter(|start| start.from <= lsn).copied().collect(),
            readable_from: facts.readable_from,
            wal_objects: Vec::new(),
            source: None,
            import: None,
            // What was restored from the shared part is known to the branch, too.
            restores: parent.restores.iter().filter(|restore| restore.lsn <= lsn).cloned().collect(),
            archived: None,
            leases: Vec::new(),
            named_lsns: std::collections::BTreeMap::default(),
            kept_lsns: None,
            ..parent.clone()
        });
        let mut part = IndexPart::new(metadata, ours);
        part.rel_size_migrated_at = theirs.rel_size_migrated_at;
        Self::create(claim, timeline, part).await
    }

    /// Which timeline.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// As whom.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Bytes of the layers that the index in the bucket names.
    pub fn layer_bytes(&self) -> u64 {
        self.counts.layer_bytes.load(Relaxed)
    }

    /// The index as it was last put or found.
    #[allow(clippy::unused_async, reason = "callers need not know that it does not wait")]
    pub async fn part(&self) -> Arc<IndexPart> {
        Arc::clone(&self.state().settled)
    }

    /// The timeline it branched from, and where.
    pub async fn ancestor(&self) -> Option<(TimelineId, Lsn)> {
        let part = self.part().await;
        let metadata = part.metadata();
        metadata.ancestor_timeline.map(|ancestor| (ancestor, metadata.ancestor_lsn))
    }

    /// Whether its base is not there yet.
    pub async fn import_in_progress(&self) -> bool {
        self.part().await.palimpsest.as_ref().is_some_and(|ours| ours.import.is_some())
    }

    /// Where its WAL comes from, and whether its base is still missing.
    pub async fn source(&self) -> Option<(codec::index_part::Source, bool)> {
        let part = self.part().await;
        let ours = part.palimpsest.as_ref()?;
        ours.source.clone().map(|source| (source, ours.import.is_some()))
    }

    /// What it asks to be kept, of itself and of its ancestors.
    pub async fn wishes(&self) -> Wishes {
        let part = self.part().await;
        wishes_of(&part)
    }

    /// What opening the timeline needs.
    pub async fn facts(&self) -> Result<IndexFacts, IndexTrouble> {
        let part = self.part().await;
        let metadata = part.metadata();
        let ours = part.palimpsest.as_ref().ok_or(IndexTrouble::Plain)?;
        if ours.wal_flavour == WalFlavour::Neon {
            return Err(IndexTrouble::NeonWal);
        }
        if ours.import.is_some() {
            return Err(IndexTrouble::Importing);
        }
        let wal = wal_history(ours, self.state().found_generation);
        let tenant_shard = self.claim.tenant();
        let ancestor_lsn = metadata.ancestor_timeline.map(|_| metadata.ancestor_lsn);
        Ok(IndexFacts {
            facts: TimelineFacts {
                timeline: self.timeline,
                tenant_shard,
                pg: metadata.pg_version,
                system_identifier: ours.system_identifier,
                wal_segment_size: ours.wal_segment_size,
                initdb_lsn: metadata.initdb_lsn,
                readable_from: ours.readable_from,
                branched_at: ancestor_lsn
                    .or_else(|| part.lineage.original_ancestor.as_ref().map(|(_, lsn, _)| *lsn)),
            },
            ancestor_lsn,
            disk_consistent_lsn: metadata.disk_consistent_lsn,
            prev_record_lsn: metadata.prev_record_lsn,
            gc_cutoff: metadata.latest_gc_cutoff_lsn,
            kept_lsns: ours.kept_lsns.clone(),
            tli: wal.tli_at(metadata.disk_consistent_lsn),
            wal,
            layers: part
                .layer_metadata
                .iter()
                .map(|(name, metadata)| {
                    (
                        LayerObjectName { layer: name.clone(), generation: metadata.generation },
                        metadata.clone(),
                    )
                })
                .collect(),
            tenant_shard,
        })
    }

    /// Which WAL objects count.
    pub async fn wal_history(&self) -> Result<WalHistory, IndexTrouble> {
        let part = self.part().await;
        let ours = part.palimpsest.as_ref().ok_or(IndexTrouble::Plain)?;
        Ok(wal_history(ours, self.state().found_generation))
    }

    /// Whether nothing of the tenant may be collected, for this reason.
    pub async fn gc_blocked_by(&self, reason: &str) -> bool {
        self.part().await.gc_blocked_by(reason)
    }

    /// Writes this owner's own index, which names the WAL objects that it inherits.
    pub async fn inherit(&self, run: &[StoredWal]) -> Result<(), PutIndexError> {
        let objects: Vec<WalObjectEntry> = run.iter().map(entry).collect();
        self.update(|part| {
            if let Some(ours) = &mut part.palimpsest {
                ours.wal_objects = objects;
            }
        })
        .await?;
        self.state().found_generation = Some(self.claim.generation());
        Ok(())
    }

    /// Says in the index that the timeline is being deleted, for good. `Ok` without a put for an index without our own part: nothing that it names
    /// can be opened here.
    pub async fn mark_deleted(&self) -> Result<(), PutIndexError> {
        self.change(|part| {
            if part.deleted_at.is_some() || part.palimpsest.is_none() {
                return Ok(Changed::No);
            }
            part.deleted_at = Some(UtcTime::from_system_time(self.claim.now()));
            Ok(Changed::Yes)
        })
        .await
    }

    /// Changes the index and puts it. What fails to be put is not kept.
    pub async fn update(&self, change: impl FnOnce(&mut IndexPart)) -> Result<(), PutIndexError> {
        self.change(|part| {
            change(part);
            Ok(Changed::Yes)
        })
        .await
    }

    /// The same, unless `change` refuses or finds nothing to change.
    pub async fn change<E: From<PutIndexError>>(
        &self,
        change: impl FnOnce(&mut IndexPart) -> Result<Changed, E>,
    ) -> Result<(), E> {
        self.counts.changes.fetch_add(1, Relaxed);
        let Some(outcome) = self.gather(change)? else { return Ok(()) };
        // Whoever comes first puts what all have gathered; the others find that it was done.
        let mut writer = self.writer.lock().await;
        loop {
            match outcome.get() {
                Some(Ok(())) => return Ok(()),
                Some(Err(reason)) => {
                    let (timeline, reason) = (self.timeline, Arc::clone(reason));
                    return Err(PutIndexError::Together { timeline, reason }.into());
                }
                None => self.put_gathered(&mut writer).await?,
            }
        }
    }

    /// Makes a change that is not in the bucket yet. `None` when there is nothing to be put, also by others.
    fn gather<E>(
        &self,
        change: impl FnOnce(&mut IndexPart) -> Result<Changed, E>,
    ) -> Result<Option<Outcome>, E> {
        let mut state = self.state();
        if let Some(ours) = &mut state.newest.palimpsest {
            drop_expired(ours, self.claim.surely_now());
        }
        if change(&mut state.newest)? == Changed::No {
            // It may be so only in what others have changed and not put yet.
            return Ok(state.gathering.as_ref().or(state.under_way.last()).cloned());
        }
        Ok(Some(Arc::clone(state.gathering.get_or_insert_default())))
    }

    async fn put_gathered(&self, writer: &mut IndexWriter) -> Result<(), PutIndexError> {
        let (mut part, outcomes) = {
            let mut state = self.state();
            // What is under way while nobody puts belongs to somebody who went away in the middle.
            let gathered = state.gathering.take();
            state.under_way.extend(gathered);
            (state.newest.clone(), state.under_way.clone())
        };
        self.counts.puts.fetch_add(1, Relaxed);
        let put = writer.put(&mut part).await;
        let mut state = self.state();
        state.under_way.clear();
        match &put {
            Ok(bytes) => {
                self.counts.bytes.fetch_add(*bytes as u64, Relaxed);
                self.counts.last_bytes.store(*bytes as u64, Relaxed);
                self.counts.layer_bytes.store(layer_bytes(&part), Relaxed);
                state.settled = Arc::new(part);
                for outcome in &*outcomes {
                    let _ = outcome.set(Ok(())); // it is told once
                }
            }
            Err(error) => {
                state.newest = IndexPart::clone(&state.settled);
                let reason: Arc<str> = error_story(error).into();
                let built_upon = state.gathering.take();
                for outcome in outcomes.iter().chain(&built_upon) {
                    let _ = outcome.set(Err(Arc::clone(&reason)));
                }
            }
        }
        put.map(drop)
    }
}

fn wal_history(ours: &Extension, generation: Option<model::Generation>) -> WalHistory {
    WalHistory {
        generation,
        inherited: ours.wal_objects.iter().map(stored).collect(),
        switches: ours.tli_history.iter().map(|start| (start.tli, start.from)).collect(),
    }
}

fn layer_bytes(part: &IndexPart) -> u64 {
    part.layer_metadata.values().map(|metadata| metadata.file_size).sum()
}

fn stored(entry: &WalObjectEntry) -> StoredWal {
    StoredWal {
        tli: entry.tli,
        start: entry.start,
        end: entry.end,
        generation: entry.generation,
        size: entry.size,
    }
}

fn entry(object: &StoredWal) -> WalObjectEntry {
    WalObjectEntry {
        tli: object.tli,
        start: object.start,
        end: object.end,
        generation: object.generation,
        size: object.size,
    }
}

/// What an index asks to be kept, of its timeline and of that one's ancestors.
pub fn wishes_of(part: &IndexPart) -> Wishes {
    let metadata = part.metadata();
    let ours = part.palimpsest.as_ref();
    let leases = ours.iter().flat_map(|ours| ours.leases.iter().map(|lease| lease.lsn));
    let names = ours.iter().flat_map(|ours| ours.named_lsns.values().map(|named| named.lsn));
    let left = part.lineage.original_ancestor.as_ref().map(|(ancestor, lsn, _)| (*ancestor, *lsn));
    Wishes {
        ancestor: metadata.ancestor_timeline.map(|ancestor| (ancestor, metadata.ancestor_lsn)),
        leaves: left.filter(|_| part.gc_blocked_by(DETACH_ANCESTOR)),
        lsns: leases.chain(names).collect(),
    }
}

/// What of timeline `id` can be read by its index and what all timelines of its tenant wish.
pub fn retention_of(id: TimelineId, part: &IndexPart, wishes: &BTreeMap<TimelineId, Wishes>) -> Retention {
    let segment = part.palimpsest.as_ref().map_or(WalSegmentSize::DEFAULT, |ours| ours.wal_segment_size);
    Retention::new(segment, part.metadata().latest_gc_cutoff_lsn, points(id, wishes))
}

/// What an index says of a layer that the holder of a claim wrote.
pub fn metadata_of(
    written: &WrittenLayer,
    claim: &Claim,
    commits: Option<(PgTimestamp, PgTimestamp)>,
) -> LayerMetadata {
    LayerMetadata::of(&written.finished, claim.generation(), claim.tenant().shard, commits)
}

/// What a new timeline that follows an ordinary Postgres says of itself.
pub fn vanilla_extension(
    system_identifier: u64,
    wal_segment_size: model::WalSegmentSize,
    data_checksums: bool,
    tli: Tli,
    from: Lsn,
) -> Extension {
    Extension {
        format: codec::index_part::EXTENSION_FORMAT,
        sequence: 0,
        wal_flavour: WalFlavour::Vanilla,
        not_portable: vec![NotPortable::VanillaWal, NotPortable::OwnValues],
        system_identifier,
        wal_segment_size,
        data_checksums,
        tli_history: vec![TliStart { tli, from }],
        readable_from: Lsn::MAX,
        wal_objects: Vec::new(),
        source: None,
        import: None,
        restores: Vec::new(),
        archived: None,
        leases: Vec::new(),
        named_lsns: std::collections::BTreeMap::default(),
        kept_lsns: None,
        unknown: codec::index_part::Unknown::new(),
    }
}
