//! Looking at a timeline without owning it: its snapshot as the newest index in the bucket has it. WAL that is in no layer yet is not looked at.
//!
//! Nothing is claimed and nothing is written. An owner that is at work may delete what is being read; then a read fails, and is to be tried again.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use codec::index_part::{IndexPart, LayerMetadata};
use model::{Generation, LayerName, LayerObjectName, Lsn, TenantShardId, TimelineId};

use crate::chunk_cache::ChunkCache;
use crate::claim::Claim;
use crate::index_keeper::{retention_of, wishes_of};
use crate::index_store::{IndexStore, LoadIndexError};
use crate::layer_map::LayerMap;
use crate::layer_write::LayerStore;
use crate::ports::{Bucket, BucketError};
use crate::read::{Ancestor, Snapshot};
use crate::retention::Wishes;
use crate::tail::Tail;

/// Branches of branches of branches: an index that claims more is damaged, or its own ancestor.
const MOST_ANCESTORS: usize = 1_000;

/// Why a timeline cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LookError {
    #[error(transparent)]
    Load(#[from] LoadIndexError),
    #[error("cannot list the bucket")]
    Bucket(#[from] BucketError),
    #[error("timeline {0} has no index")]
    NoIndex(TimelineId),
    #[error("timeline {0} has too many ancestors")]
    TooManyAncestors(TimelineId),
    #[error("layer {layer} of timeline {timeline} has a layout that does not fit its size")]
    Layout { timeline: TimelineId, layer: Box<LayerName>, source: Box<codec::layer::ReadLayerError> },
}

/// A timeline as its newest index has it, its ancestors below it. All of a tenant's timelines are asked for what they want to be kept.
pub async fn look(
    bucket: &Arc<dyn Bucket>,
    cache: &Arc<ChunkCache>,
    tenant: TenantShardId,
    timeline: TimelineId,
) -> Result<Arc<Snapshot>, LookError> {
    let store = IndexStore::as_of_generation(Arc::clone(bucket), tenant, Generation::LAST_OWNER);
    let mut indexes = BTreeMap::new();
    for id in store.timelines().await? {
        if let Some(found) = store.find(id).await? {
            indexes.insert(id, found.index);
        }
    }
    let wishes = indexes.iter().map(|(id, index)| (*id, wishes_of(index))).collect();
    snapshot(bucket, cache, tenant, timeline, &|id| indexes.get(&id), &wishes)
}

/// The same from indexes at hand. `wishes` are those of all timelines.
pub fn snapshot<'a>(
    bucket: &Arc<dyn Bucket>,
    cache: &Arc<ChunkCache>,
    tenant: TenantShardId,
    timeline: TimelineId,
    index_of: &dyn Fn(TimelineId) -> Option<&'a IndexPart>,
    wishes: &BTreeMap<TimelineId, Wishes>,
) -> Result<Arc<Snapshot>, LookError> {
    let mut line = Vec::new();
    let mut next = Some(timeline);
    while let Some(id) = next {
        let index = index_of(id).ok_or(LookError::NoIndex(id))?;
        line.push((id, index));
        next = index.metadata().ancestor_timeline;
        if line.len() > MOST_ANCESTORS {
            return Err(LookError::TooManyAncestors(timeline));
        }
    }
    let mut below: Option<Arc<Snapshot>> = None;
    while let Some((id, index)) = line.pop() {
        let metadata = index.metadata();
        let ancestor =
            below.map(|view| Ancestor { view: Arc::new(ArcSwap::new(view)), lsn: metadata.ancestor_lsn });
        below = Some(Arc::new(Snapshot {
            timeline: id,
            pg: metadata.pg_version,
            last: metadata.disk_consistent_lsn,
            open: Tail::default(),
            frozen: Arc::from([]),
            layers: Arc::new(layers(bucket, cache, tenant, id, index)?),
            ancestor,
            branched_at: branched_at(index),
            retention: Arc::new(retention_of(id, index, wishes)),
            reads: Arc::default(),
        }));
    }
    below.ok_or(LookError::NoIndex(timeline))
}

/// Where a timeline branched off, also if it has no ancestor any more.
fn branched_at(index: &IndexPart) -> Option<Lsn> {
    let metadata = index.metadata();
    let left = index.lineage.original_ancestor.as_ref().map(|(_, lsn, _)| *lsn);
    metadata.ancestor_timeline.map(|_| metadata.ancestor_lsn).or(left)
}

fn layers(
    bucket: &Arc<dyn Bucket>,
    cache: &Arc<ChunkCache>,
    tenant: TenantShardId,
    timeline: TimelineId,
    index: &IndexPart,
) -> Result<LayerMap<crate::layer_read::Layer>, LookError> {
    let claim = Claim::of_onlooker(Arc::clone(bucket), tenant);
    let store = LayerStore::new(Arc::clone(bucket), Arc::clone(cache), claim, tenant, timeline);
    let open = |(name, metadata): (&LayerName, &LayerMetadata)| {
        let layout = metadata.layout(name).transpose().map_err(|source| LookError::Layout {
            timeline,
            layer: Box::new(name.clone()),
            source: Box::new(source),
        })?;
        let writer = TenantShardId { tenant: tenant.tenant, shard: metadata.shard };
        let name = LayerObjectName { layer: name.clone(), generation: metadata.generation };
        let commits = metadata.palimpsest.as_ref().and_then(|details| details.commits);
        Ok(Arc::new(store.open(writer, name, metadata.file_size, layout, commits)))
    };
    Ok(LayerMap::new(index.layer_metadata.iter().map(open).collect::<Result<Vec<_>, LookError>>()?))
}
