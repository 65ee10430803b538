//! What a tenant's history costs, as a sum that a bill can use.
//!
//! The sum depends on what was written and on what is asked to be kept, not on how it happens to lie in layers: branches share what they have in
//! common, and neither compaction nor collection changes it. [`tree`] makes segments of the tenant's timelines, [`segments`] finds the least that
//! keeps what is needed; both are pure. Here their input is gathered: one read of one key for each point, and none for points seen before, as
//! the size at an LSN never changes.

pub mod segments;
pub mod tree;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use codec::index_part::IndexPart;
use model::{Lsn, TenantShardId, TimelineId};
use tokio::sync::Mutex;

use crate::as_of::ReadError;
use crate::tenant::{ArchivedTimeline, Tenant, TimelineView};
use crate::timeline::Timeline;
use crate::timeline::named::is_valid;
use segments::{Cost, CostError, Segment, least_cost};
use tree::{TimelineInput, TreeError, TreeSegment};

/// The size of a tenant, with how it came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntheticSize {
    /// Bytes; at least 1 where there is any timeline.
    pub size: u64,
    /// Of each segment, in the order of the tree's.
    pub cost: Cost,
    /// What it was made of.
    pub inputs: SizeInputs,
}

/// What the size of a tenant is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeInputs {
    /// Its timelines.
    pub timelines: Vec<TimelineInput>,
    /// The tree, with sizes.
    pub segments: Vec<TreeSegment>,
}

/// Why a tenant's size is not known.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SyntheticSizeError {
    #[error("timeline {timeline} is broken, so what the tenant costs is not known: {reason}")]
    Broken { timeline: TimelineId, reason: Arc<str> },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Cost(#[from] CostError),
    #[error("cannot read the size of timeline {timeline} at {lsn}")]
    Read { timeline: TimelineId, lsn: Lsn, source: ReadError },
    #[error("only shard 0 knows the size of a tenant, not {0}")]
    NotTheFirstShard(TenantShardId),
}

/// What is remembered of a tenant's size.
#[derive(Debug, Default)]
pub struct SizeMemory {
    /// Bytes of all relations at points of the last tree. Held while a size is made: one at a time.
    known: Mutex<HashMap<(TimelineId, Lsn), u64>>,
    last: ArcSwapOption<SyntheticSize>,
}

impl SizeMemory {
    /// The newest size, if there is one.
    pub fn last(&self) -> Option<Arc<SyntheticSize>> {
        self.last.load_full()
    }
}

/// The size of a tenant now. `retention` counts as if only so many bytes of WAL were kept of each timeline, or what is kept, if that is less; only without it the result is
/// remembered.
pub async fn synthetic_size(
    tenant: &Tenant,
    retention: Option<u64>,
    now: SystemTime,
) -> Result<Arc<SyntheticSize>, SyntheticSizeError> {
    let memory = tenant.size_memory();
    let mut known = memory.known.lock().await;
    let inputs = inputs(tenant, retention, now, &mut known).await?;
    let bare: Vec<Segment> = inputs.segments.iter().map(|segment| segment.segment).collect();
    let cost = least_cost(&bare)?;
    let size = cost.total.max(u64::from(!inputs.timelines.is_empty()));
    let made = Arc::new(SyntheticSize { size, cost, inputs });
    if retention.is_none() {
        memory.last.store(Some(Arc::clone(&made)));
    }
    Ok(made)
}

/// What it is made of, without the sum.
pub async fn size_inputs(
    tenant: &Tenant,
    retention: Option<u64>,
    now: SystemTime,
) -> Result<SizeInputs, SyntheticSizeError> {
    let mut known = tenant.size_memory().known.lock().await;
    inputs(tenant, retention, now, &mut known).await
}

async fn inputs(
    tenant: &Tenant,
    retention: Option<u64>,
    now: SystemTime,
    known: &mut HashMap<(TimelineId, Lsn), u64>,
) -> Result<SizeInputs, SyntheticSizeError> {
    if tenant.shard().shard.number != 0 {
        return Err(SyntheticSizeError::NotTheFirstShard(tenant.shard()));
    }
    let mut open: HashMap<TimelineId, Timeline> = HashMap::new();
    let mut timelines = Vec::new();
    for (id, view) in tenant.views() {
        match view {
            TimelineView::Open(timeline) => {
                timelines.push(input(&timeline, &*timeline.index().part().await, retention, now));
                open.insert(id, timeline);
            }
            TimelineView::Archived(archived) => timelines.push(archived_input(&archived)),
            // Nothing of it can be read yet, or any more.
            TimelineView::Importing | TimelineView::Deleting => {}
            TimelineView::Broken(reason) => return Err(SyntheticSizeError::Broken { timeline: id, reason }),
        }
    }
    let mut segments = tree::segments(&timelines)?;
    let mut still_known = HashMap::new();
    for segment in segments.iter_mut().filter(|segment| segment.wants_size) {
        let (timeline, lsn) = (segment.timeline, segment.segment.lsn);
        let size = match (known.get(&(timeline, lsn)), open.get(&timeline)) {
            (Some(size), _) => *size,
            (None, Some(open)) => open
                .logical_size_at(lsn)
                .await
                .map_err(|source| SyntheticSizeError::Read { timeline, lsn, source })?
                .bytes(),
            // What is archived is not read for this.
            (None, None) => continue,
        };
        known.insert((timeline, lsn), size); // also for the next attempt, should this one fail
        still_known.insert((timeline, lsn), size);
        segment.segment.size = Some(size);
    }
    *known = still_known;
    Ok(SizeInputs { timelines, segments })
}

/// An archived timeline: it counts for what its ancestors keep for it.
fn archived_input(archived: &ArchivedTimeline) -> TimelineInput {
    let last_record = archived.disk_consistent_lsn;
    TimelineInput {
        timeline: archived.timeline,
        ancestor: archived.ancestor,
        start: archived.readable_from.unwrap_or_default().max(archived.initdb_lsn),
        last_record,
        cutoff: last_record,
        applied_cutoff: last_record,
        asked_cutoff: None,
        kept: std::collections::BTreeSet::new(),
        is_live: false,
    }
}

/// What of a timeline must stay readable, by its index, and whether any of it is wanted for itself.
fn input(timeline: &Timeline, part: &IndexPart, retention: Option<u64>, now: SystemTime) -> TimelineInput {
    let facts = timeline.facts();
    let ours = part.palimpsest.as_ref();
    let leases = ours.into_iter().flat_map(|ours| &ours.leases);
    let leased = leases.filter(|lease| lease.valid_until.to_system_time() > now).map(|lease| lease.lsn);
    let names = ours.into_iter().flat_map(|ours| ours.named_lsns.values());
    let named = names.filter(|named| is_valid(named, now)).map(|named| named.lsn);
    let cutoff = part.metadata().latest_gc_cutoff_lsn;
    let last_record = timeline.last_record_lsn();
    let asked_cutoff = retention.map(|bytes| Lsn(last_record.0.saturating_sub(bytes)));
    TimelineInput {
        timeline: facts.timeline,
        ancestor: timeline.ancestor(),
        start: facts.readable_from.max(facts.initdb_lsn),
        last_record,
        cutoff: asked_cutoff.map_or(cutoff, |asked| asked.max(cutoff)),
        applied_cutoff: cutoff,
        asked_cutoff,
        kept: leased.chain(named).collect(),
        is_live: part.archived_at.is_none() && part.marked_invisible_at.is_none(),
    }
}
