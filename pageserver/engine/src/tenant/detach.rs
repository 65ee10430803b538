//! Detaching a branch from its ancestor: it gets layers of its own for what it shares, and the ancestor's other branches below hang on it from then on.
//!
//! The branch's index first says that nothing of the tenant may be collected (`gc_blocking`), then, in one put, that all the new layers are its and
//! that it has no ancestor. That put is what counts: before it nothing happened but that some objects are in the way, which are of this generation
//! and named by nobody; after it each sibling is moved over by one put of its own index, which may be repeated. At the end collection is
//! allowed again. An owner that finds a detachment that broke off finishes it, if it counts already, and otherwise forgets it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use codec::index_part::{DETACH_ANCESTOR, IndexPart, LayerMetadata, UtcTime};
use model::{LayerName, LayerObjectName, Lsn, TenantId, TimelineId};
use tracing::{info, warn};

use super::slots::Slot;
use super::{ArchivedTimeline, ChangeError, Mode, NotFound, Tenant, Tenants};
use crate::error_story::error_story;
use crate::index_keeper::{IndexKeeper, wishes_of};
use crate::index_store::PutIndexError;
use crate::inherit::{self, Shared};
use crate::layer_map::MapLayer as _;
use crate::layer_read::Layer;
use crate::layer_write::LayerStore;
use crate::read::Ancestor;
use crate::retention::Retention;
use crate::timeline::{Rebase, Timeline};

/// How often, and how long apart, an ancestor's layers and its index are looked at until they are of one moment.
const LOOKS: usize = 100;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

impl Tenants {
    /// Makes a branch stand alone, and moves branches of its ancestor that begin at or below its branch point over to it. Answers which those are. One
    /// that stands alone already stays as it is. Changes of other timelines of the tenant go on while layers are copied.
    pub async fn detach_ancestor(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Vec<TimelineId>, ChangeError> {
        let tenant = self.tenant(tenant)?;
        let _one = tenant.detaching.begin(timeline).await;
        let chain = {
            let _no_other = tenant.change().await?;
            if tenant.mode() == Mode::Multi {
                return Err(ChangeError::Multi(tenant.shard()));
            }
            let open = tenant.timeline(timeline)?;
            tenant.claim().validate().await?;
            let part = open.index().part().await;
            if part.metadata().ancestor_timeline.is_none() {
                let Some((from, at, _)) = part.lineage.original_ancestor.clone() else {
                    return Err(ChangeError::NoAncestor(timeline));
                };
                if part.gc_blocked_by(DETACH_ANCESTOR) {
                    self.finish_detaching(&tenant, &open, from, at).await?;
                }
                return Ok(moved(&tenant, &open, from).await);
            }
            let chain = chain_of(&tenant, &open)?;
            if !part.gc_blocked_by(DETACH_ANCESTOR) {
                open.index().update(|part| part.block_gc(DETACH_ANCESTOR, tenant.claim().now())).await?;
            }
            // From here on nothing goes that the branch needs: whoever collects looks at this first.
            tenant.claim().validate().await?;
            chain
        };
        let (open, from, at) = (chain.branch.clone(), chain.ancestors[0].0.id(), chain.ancestors[0].1);
        let copied = tokio::select! {
            biased;
            copied = self.copy_shared(&chain) => copied?,
            () = tenant.deleting.cancelled() => return Err(ChangeError::Deleting(tenant.shard())),
            () = tenant.detached.cancelled() => return Err(ChangeError::Stale(tenant.shard())),
        };
        let _no_other = tenant.change().await?;
        if open.is_stopped() || open.ancestor() != Some((from, at)) {
            return Err(ChangeError::Conflict(timeline));
        }
        let Copied { layers, cutoff } = copied;
        let count = layers.len();
        tenant.refresh_wishes().await;
        let kept = kept_of_ancestors(&tenant, &open, from, at);
        open.index()
            .update(|part| {
                part.layer_metadata.extend(layers);
                part.update_metadata(|metadata| {
                    metadata.ancestor_timeline = None;
                    metadata.ancestor_lsn = Lsn::INVALID;
                    metadata.latest_gc_cutoff_lsn = metadata.latest_gc_cutoff_lsn.max(cutoff);
                });
                let now = UtcTime::from_system_time(tenant.claim().now());
                part.lineage.original_ancestor = Some((from, at, now));
                keep_lsns(part, kept);
            })
            .await?;
        tenant.claim().validate().await?;
        self.finish_detaching(&tenant, &open, from, at).await?;
        info!(%timeline, ancestor = %from, %at, layers = count, "detached from its ancestor");
        Ok(moved(&tenant, &open, from).await)
    }

    /// Copies layers of the ancestors as far as the branch sees them.
    async fn copy_shared(&self, chain: &Chain) -> Result<Copied, ChangeError> {
        let (mut ancestors, mut cutoff) = (Vec::new(), Lsn::INVALID);
        for (ancestor, bound) in &chain.ancestors {
            if ancestor.disk_consistent_lsn() < *bound {
                ancestor.checkpoint().await?;
            }
            let (layers, theirs) = layers_of(ancestor, *bound).await?;
            // What is not there below an ancestor's cutoff is not there in the branch either.
            cutoff = cutoff.max(theirs.min(*bound));
            ancestors.push(Shared { bound: *bound, layers });
        }
        let layers = inherit::inherit(chain.branch.layer_store(), &ancestors, chain.ancestors[0].1).await?;
        Ok(Copied { layers, cutoff })
    }

    /// Does what follows once the index of `open` says that it has no ancestor: readers see its own layers, siblings move over, and collection is
    /// allowed again. May be repeated.
    async fn finish_detaching(
        &self,
        tenant: &Arc<Tenant>,
        open: &Timeline,
        from: TimelineId,
        at: Lsn,
    ) -> Result<(), ChangeError> {
        if open.ancestor().is_some() {
            let part = open.index().part().await;
            let layers = part.layer_metadata.iter().filter(|(name, _)| name.lsns().end <= at.add(1));
            let layers =
                layers.map(|(name, metadata)| opened(open.layer_store(), tenant, name, metadata)).collect();
            // What was kept of the ancestors is kept here: by the index, and what of them was read.
            tenant.note_wishes(open.id(), Some(open.index().wishes().await));
            let cutoff = open.retention().cutoff.max(part.metadata().latest_gc_cutoff_lsn);
            // As the index says, and as a later owner reads it there.
            let kept = part.palimpsest.as_ref().and_then(|ours| ours.kept_lsns.clone());
            let segment = open.facts().wal_segment_size;
            let retention = Retention::new(segment, cutoff, kept.unwrap_or_default());
            open.rebase(Rebase { ancestor: None, layers, retention: Arc::new(retention) }).await?;
        }
        for sibling in tenant.open_timelines() {
            // Also one whose index was put before, in vain for its readers.
            let part = sibling.index().part().await;
            let metadata = part.metadata();
            let hangs = (metadata.ancestor_timeline, metadata.ancestor_lsn);
            if hangs.0 == Some(from) && hangs.1 <= at && sibling.id() != open.id() {
                if !open.retention().keeps(hangs.1) {
                    warn!(timeline = %sibling.id(), at = %hangs.1, "stays where it is: where it begins is not kept elsewhere");
                    continue;
                }
                sibling
                    .index()
                    .update(|part| {
                        part.update_metadata(|metadata| metadata.ancestor_timeline = Some(open.id()));
                        part.lineage.moved_from(from);
                    })
                    .await?;
                tenant.claim().validate().await?;
            } else if hangs.0 != Some(open.id()) {
                continue;
            }
            if sibling.ancestor().is_some_and(|(ancestor, _)| ancestor != open.id()) {
                let ancestor = Some(Ancestor { view: open.view(), lsn: hangs.1 });
                let retention = sibling.retention();
                sibling.rebase(Rebase { ancestor, layers: Vec::new(), retention }).await?;
                tenant.note_wishes(sibling.id(), Some(sibling.index().wishes().await));
            }
        }
        for archived in tenant.archived() {
            let hangs = archived.ancestor.filter(|(ancestor, lsn)| *ancestor == from && *lsn <= at);
            if hangs.is_some_and(|(_, lsn)| open.retention().keeps(lsn)) {
                self.move_archived(tenant, archived.timeline, from, open.id()).await?;
            }
        }
        self.name_archived(tenant).await;
        open.index().update(|part| part.unblock_gc(DETACH_ANCESTOR)).await?;
        Ok(tenant.claim().validate().await?)
    }

    /// Moves an archived branch over. Its index becomes this owner's own, and so names the WAL that it inherits.
    async fn move_archived(
        &self,
        tenant: &Tenant,
        timeline: TimelineId,
        from: TimelineId,
        to: TimelineId,
    ) -> Result<(), ChangeError> {
        let found = tenant.index_store.find(timeline).await?.ok_or(NotFound::Timeline(timeline))?;
        if found.index.deleted_at.is_some() {
            return Ok(());
        }
        let index = IndexKeeper::new(tenant.claim().clone(), timeline, found);
        self.inherit_wal(tenant, timeline, &index).await?;
        index
            .update(|part| {
                part.update_metadata(|metadata| metadata.ancestor_timeline = Some(to));
                part.lineage.moved_from(from);
            })
            .await?;
        tenant.claim().validate().await?;
        if let Some(archived) = ArchivedTimeline::of(timeline, &*index.part().await) {
            tenant.note_wishes(timeline, Some(archived.wishes(tenant.claim().surely_now())));
            tenant.set(timeline, Slot::Archived(Arc::new(archived)));
        }
        Ok(())
    }

    /// Settles what an owner before us began: what counts is finished, what does not is forgotten.
    pub(super) async fn settle_detachments(&self, tenant: &Arc<Tenant>) {
        for open in tenant.open_timelines() {
            if !open.index().gc_blocked_by(DETACH_ANCESTOR).await {
                continue;
            }
            let part = open.index().part().await;
            let left = (part.metadata().ancestor_timeline, &part.lineage.original_ancestor);
            let settled = if let (None, Some((from, at, _))) = left {
                self.finish_detaching(tenant, &open, *from, *at).await
            } else {
                let unblocked = open.index().update(|part| part.unblock_gc(DETACH_ANCESTOR)).await;
                unblocked.map_err(PutIndexError::into)
            };
            if let Err(error) = settled {
                warn!(timeline = %open.id(), "its detachment from its ancestor is not finished: {}", error_story(&error));
            }
        }
    }
}

/// What is read of a branch below its cutoff, and of its ancestor by those that may be moved over: as far as it is there.
fn kept_of_ancestors(tenant: &Tenant, open: &Timeline, from: TimelineId, at: Lsn) -> BTreeSet<Lsn> {
    let mut kept = tenant.known_points(from);
    kept.retain(|point| *point <= at);
    kept.extend(tenant.known_points(open.id()));
    kept.retain(|point| open.check_kept(*point).is_ok());
    kept
}

/// Says in an index which LSNs are kept below its cutoff: these, and what it promised meanwhile.
fn keep_lsns(part: &mut IndexPart, kept: BTreeSet<Lsn>) {
    let (cutoff, promised) = (part.metadata().latest_gc_cutoff_lsn, wishes_of(part).lsns);
    if let Some(ours) = &mut part.palimpsest {
        let kept = kept.into_iter().chain(promised);
        ours.kept_lsns = Some(Retention::new(ours.wal_segment_size, cutoff, kept).points);
    }
}

/// A branch and its ancestors, nearest first, each with the last LSN that the branch sees of it.
struct Chain {
    branch: Timeline,
    ancestors: Vec<(Timeline, Lsn)>,
}

/// Layers that are the branch's own now, and below which LSN versions may be missing in them.
struct Copied {
    layers: Vec<(LayerName, LayerMetadata)>,
    cutoff: Lsn,
}

fn chain_of(tenant: &Tenant, branch: &Timeline) -> Result<Chain, NotFound> {
    let mut ancestors: Vec<(Timeline, Lsn)> = Vec::new();
    let (mut next, mut bound) = (branch.ancestor(), Lsn::MAX);
    while let Some((ancestor, lsn)) = next {
        let ancestor = tenant.timeline(ancestor)?;
        bound = bound.min(lsn);
        next = ancestor.ancestor();
        ancestors.push((ancestor, bound));
    }
    Ok(Chain { branch: branch.clone(), ancestors })
}

/// The layers of a timeline that hold anything up to `bound`, with what its index says of them, and its cutoff. A layer that is held here stays in
/// the bucket.
async fn layers_of(
    timeline: &Timeline,
    bound: Lsn,
) -> Result<(Vec<(Arc<Layer>, LayerMetadata)>, Lsn), ChangeError> {
    for _ in 0..LOOKS {
        let mut layers = timeline.layers();
        let part = timeline.index().part().await;
        layers.retain(|layer| layer.name().lsns().start <= bound);
        let known: Option<Vec<_>> = layers
            .into_iter()
            .map(|layer| {
                let metadata = part.layer_metadata.get(layer.name())?.clone();
                Some((layer, metadata))
            })
            .collect();
        if let Some(known) = known {
            return Ok((known, part.metadata().latest_gc_cutoff_lsn));
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Err(ChangeError::Refused(format!("the layers of timeline {} change too fast", timeline.id())))
}

/// A layer that the index names.
fn opened(store: &LayerStore, tenant: &Tenant, name: &LayerName, metadata: &LayerMetadata) -> Arc<Layer> {
    let object_name = LayerObjectName { layer: name.clone(), generation: metadata.generation };
    let writer = model::TenantShardId { tenant: tenant.shard().tenant, shard: metadata.shard };
    // What cannot be believed is found out from the layer itself.
    let layout = metadata.layout(name).and_then(Result::ok);
    let commits = metadata.palimpsest.as_ref().and_then(|details| details.commits);
    Arc::new(store.open(writer, object_name, metadata.file_size, layout, commits))
}

/// Branches that were moved over to a timeline when it left its ancestor.
async fn moved(tenant: &Tenant, open: &Timeline, from: TimelineId) -> Vec<TimelineId> {
    let mut moved = Vec::new();
    for sibling in tenant.open_timelines() {
        let hangs_here = sibling.ancestor().is_some_and(|(ancestor, _)| ancestor == open.id());
        if hangs_here && sibling.index().part().await.lineage.reparenting_history.contains(&from) {
            moved.push(sibling.id());
        }
    }
    let archived = tenant.archived();
    let archived = archived.iter().filter(|archived| {
        archived.ancestor.is_some_and(|(ancestor, _)| ancestor == open.id())
            && archived.moved_from.contains(&from)
    });
    moved.extend(archived.map(|archived| archived.timeline));
    moved.sort_unstable();
    moved
}
