//! Archiving timelines and bringing them back.
//!
//! An archived timeline is in the bucket only: it has no tasks, no memory and no local files, and nobody opens it until it is asked for. Its index
//! says so first, once everything that was received is in layers; then whatever feeds it ends and its source's slot goes; then its tasks end. On
//! the way back the manifest forgets it first; then one put of the index says that it is open and names the WAL that it inherits.

use std::sync::Arc;
use std::time::SystemTime;

use codec::index_part::{IndexPart, Lease, NamedLsn, Source, Unknown, UtcTime};
use codec::tenant_manifest::{OffloadedDetails, OffloadedTimeline};
use model::{Lsn, PgMajor, TenantId, TimelineId};
use serde::Serialize;
use tracing::{info, warn};

use super::slots::Slot;
use super::{ChangeError, Mode, NotFound, Tenant, Tenants};
use crate::error_story::error_story;
use crate::index_keeper::IndexKeeper;
use crate::index_store::FoundIndex;
use crate::retention::Wishes;
use crate::stored_wal::list_wal;
use crate::timeline::{OpenError, Timeline, open};
use crate::wal_run::contiguous_run;

/// What is known of an archived timeline without its index.
#[derive(Clone, Debug, Serialize)]
pub struct ArchivedTimeline {
    /// Which.
    pub timeline: TimelineId,
    /// Whose record formats its WAL has.
    pub pg: PgMajor,
    /// The timeline it branched from, and where: it keeps that readable.
    pub ancestor: Option<(TimelineId, Lsn)>,
    /// What it branched off before, if it was moved.
    pub moved_from: Vec<TimelineId>,
    /// Since when.
    pub archived_at: UtcTime,
    /// Why, in words.
    pub reason: Option<String>,
    /// Its first LSN.
    pub initdb_lsn: Lsn,
    /// Reads below this will be refused.
    pub readable_from: Option<Lsn>,
    /// Its layers hold everything up to here.
    pub disk_consistent_lsn: Lsn,
    /// Bytes of its layers.
    pub bytes: u64,
    /// How many layers it has.
    pub layers: usize,
    /// LSNs that are leased. Those below its branch point are kept by its ancestors.
    pub leases: Vec<Lease>,
    /// LSNs that have names, the same.
    pub named_lsns: Vec<NamedLsn>,
    /// A source whose slot may still be there.
    pub left: Option<Source>,
}

impl ArchivedTimeline {
    /// By its index; `None` for one that is not archived.
    pub fn of(timeline: TimelineId, part: &IndexPart) -> Option<ArchivedTimeline> {
        let archived_at = part.archived_at.clone().filter(|_| part.is_archived())?;
        let (metadata, ours) = (part.metadata(), part.palimpsest.as_ref());
        let why = ours.and_then(|ours| ours.archived.as_ref());
        Some(ArchivedTimeline {
            timeline,
            pg: metadata.pg_version,
            ancestor: metadata.ancestor_timeline.map(|ancestor| (ancestor, metadata.ancestor_lsn)),
            moved_from: part.lineage.reparenting_history.clone(),
            archived_at,
            reason: why.map(|why| why.reason.clone()),
            initdb_lsn: metadata.initdb_lsn,
            readable_from: ours.map(|ours| ours.readable_from),
            disk_consistent_lsn: part.disk_consistent_lsn(),
            bytes: part.layer_bytes(),
            layers: part.layer_metadata.len(),
            leases: ours.map(|ours| ours.leases.clone()).unwrap_or_default(),
            named_lsns: ours.map(|ours| ours.named_lsns.values().cloned().collect()).unwrap_or_default(),
            left: ours
                .and_then(|ours| ours.source.clone())
                .filter(|_| why.is_none_or(|why| !why.slot_dropped)),
        })
    }

    /// What it asks to be kept, of itself and of its ancestors, as long as that is valid.
    pub(super) fn wishes(&self, now: SystemTime) -> Wishes {
        let valid = |until: Option<&UtcTime>| until.is_none_or(|until| until.to_system_time() > now);
        let leases =
            self.leases.iter().filter(|lease| valid(Some(&lease.valid_until))).map(|lease| lease.lsn);
        let names = self.named_lsns.iter().filter(|named| valid(named.valid_until.as_ref()));
        let lsns = leases.chain(names.map(|named| named.lsn)).collect();
        Wishes { ancestor: self.ancestor, lsns, ..Wishes::default() }
    }

    fn in_manifest(&self) -> OffloadedTimeline {
        let (ancestor, at) = self.ancestor.unzip();
        OffloadedTimeline {
            timeline_id: self.timeline,
            ancestor_timeline_id: ancestor,
            ancestor_retain_lsn: at,
            archived_at: self.archived_at.clone(),
            palimpsest: Some(OffloadedDetails {
                bytes: self.bytes,
                layers: self.layers as u64,
                last_record_lsn: self.disk_consistent_lsn,
            }),
            unknown: Unknown::new(),
        }
    }
}

impl Tenants {
    /// Archives a timeline; refused while it has branches that are not archived. Once its index says so, `leave` is awaited if it has a source: it
    /// must end whatever feeds the timeline and drop the slot there, and answers what remains; then the timeline's own tasks end. What was interrupted goes on
    /// when it is asked for again, also by a later owner.
    pub async fn archive_timeline(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        leave: impl AsyncFnOnce(Source) -> Option<String>,
    ) -> Result<Option<String>, ChangeError> {
        let tenant = self.tenant(tenant)?;
        let _one = tenant.change().await?;
        if tenant.mode() == Mode::Multi {
            return Err(ChangeError::Multi(tenant.shard()));
        }
        if !matches!(tenant.slot(timeline), Some(Slot::Archived(_))) {
            let open = tenant.timeline(timeline)?;
            tenant.refuse_while_detaching(timeline)?;
            self.refuse_with_open_children(&tenant, timeline).await?;
            // Most of it while the source still waits for answers.
            open.seal_now().await?;
            open.checkpoint().await?;
            open.index().update(|part| part.archive(tenant.claim().now())).await?;
            tenant.claim().validate().await?;
            let archived = ArchivedTimeline::of(timeline, &*open.index().part().await);
            tenant.set(timeline, Slot::Archived(Arc::new(archived.expect("the index was just told so"))));
        }
        let remains = self.finish_archiving_of(&tenant, timeline, leave).await?;
        info!(%timeline, "archived");
        Ok(remains)
    }

    /// Goes on with the archiving of a timeline whose source was not left yet. Nothing is done to one that is not archived any more.
    pub async fn finish_archiving(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        leave: impl AsyncFnOnce(Source) -> Option<String>,
    ) -> Result<Option<String>, ChangeError> {
        let tenant = self.tenant(tenant)?;
        let _one = tenant.change().await?;
        self.finish_archiving_of(&tenant, timeline, leave).await
    }

    async fn finish_archiving_of(
        &self,
        tenant: &Tenant,
        timeline: TimelineId,
        leave: impl AsyncFnOnce(Source) -> Option<String>,
    ) -> Result<Option<String>, ChangeError> {
        let Some(Slot::Archived(archived)) = tenant.slot(timeline) else { return Ok(None) };
        tenant.claim().validate().await?;
        let remains = match &archived.left {
            Some(source) => leave(source.clone()).await,
            None => None,
        };
        // What came in meanwhile becomes a layer, too.
        tenant.end_running(timeline, true).await?;
        self.note_left(tenant, timeline, remains.is_none()).await?;
        self.name_archived(tenant).await;
        Ok(remains)
    }

    /// Notes what became of an archived timeline once nobody changes it any more, and in its index that its slot is gone, so that nobody looks for
    /// that again.
    async fn note_left(
        &self,
        tenant: &Tenant,
        timeline: TimelineId,
        slot_is_gone: bool,
    ) -> Result<(), ChangeError> {
        let index = self.archived_index(tenant, timeline).await?;
        let archived = ArchivedTimeline::of(timeline, &*index.part().await);
        if slot_is_gone && archived.is_some_and(|archived| archived.left.is_some()) {
            index
                .update(|part| {
                    if let Some(why) = part.palimpsest.as_mut().and_then(|ours| ours.archived.as_mut()) {
                        why.slot_dropped = true;
                    }
                })
                .await?;
        }
        if let Some(archived) = ArchivedTimeline::of(timeline, &*index.part().await) {
            tenant.set(timeline, Slot::Archived(Arc::new(archived)));
        }
        Ok(())
    }

    /// The index of an archived timeline as our own: that of an earlier owner could still be changed by what it sent before it was superseded, so it is no
    /// ground to promise anything on.
    async fn archived_index(
        &self,
        tenant: &Tenant,
        timeline: TimelineId,
    ) -> Result<IndexKeeper, ChangeError> {
        let found = find_archived(tenant, timeline).await?;
        let is_own = found.generation == Some(tenant.claim().generation());
        let index = IndexKeeper::new(tenant.claim().clone(), timeline, found);
        if !is_own {
            self.inherit_wal(tenant, timeline, &index).await?;
            // That it was opened again may have come late.
            if !index.part().await.is_archived() {
                index.update(|part| part.archive(tenant.claim().now())).await?;
            }
            tenant.claim().validate().await?;
        }
        Ok(index)
    }

    /// Makes the index of a timeline that is not open this owner's own: it names the WAL that counts beside layers.
    pub(super) async fn inherit_wal(
        &self,
        tenant: &Tenant,
        timeline: TimelineId,
        index: &IndexKeeper,
    ) -> Result<(), ChangeError> {
        let wal = index.wal_history().await?;
        let end = index.part().await.disk_consistent_lsn();
        let all = list_wal(&**self.bucket(), tenant.shard(), timeline).await?;
        let run = contiguous_run(&wal, all, end).map_err(OpenError::from)?;
        Ok(index.inherit(&run).await?)
    }

    /// Opens an archived timeline again; refused while its ancestor is archived. One that is open already stays as it is.
    pub async fn unarchive_timeline(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Timeline, ChangeError> {
        let tenant = self.tenant(tenant)?;
        let _one = tenant.change().await?;
        if !matches!(tenant.slot(timeline), Some(Slot::Archived(_))) {
            let open = tenant.timeline(timeline)?;
            tenant.claim().validate().await?;
            return Ok(open);
        }
        // It may have been archived just now.
        tenant.end_running(timeline, true).await?;
        let mut found = find_archived(&tenant, timeline).await?;
        let parent = match found.index.metadata().ancestor_timeline {
            None => None,
            Some(ancestor) => match tenant.timeline(ancestor) {
                Err(NotFound::Archived(_)) => return Err(ChangeError::ArchivedAncestor(timeline, ancestor)),
                parent => Some(parent?),
            },
        };
        tenant.claim().validate().await?;
        let mut others = tenant.archived();
        others.retain(|other| other.timeline != timeline);
        let others = others.iter().map(|archived| archived.in_manifest()).collect();
        tenant.manifest.lock().await.name(others).await?;
        // Opening puts the index anyway, and names the WAL that it inherits: this goes with it.
        found.index.unarchive();
        let index = Arc::new(IndexKeeper::new(tenant.claim().clone(), timeline, found));
        tenant.note_wishes(timeline, Some(index.wishes().await));
        let points = tenant.known_points(timeline);
        let (opened, tasks) = open(&self.surroundings(&tenant), index, parent.as_ref(), points).await?;
        self.watch_tasks(&tenant, &opened, tasks);
        tenant.set(timeline, Slot::Open(opened.clone()));
        info!(%timeline, "unarchived");
        Ok(opened)
    }

    /// By what the bucket says, so that a branch that could not be opened counts.
    async fn refuse_with_open_children(
        &self,
        tenant: &Tenant,
        timeline: TimelineId,
    ) -> Result<(), ChangeError> {
        let mut children = tenant.index_store.children(timeline).await?;
        children.retain(|child| !matches!(tenant.slot(*child), Some(Slot::Archived(_) | Slot::Deleting)));
        if children.is_empty() {
            return Ok(());
        }
        let names = children.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(ChangeError::HasOpenChildren(timeline, names))
    }

    /// Makes the manifest say what indexes say. It repeats them only, so a failure is no harm: whoever comes next mends it.
    pub(super) async fn name_archived(&self, tenant: &Tenant) {
        let entries = tenant.archived().iter().map(|archived| archived.in_manifest()).collect();
        if let Err(error) = tenant.manifest.lock().await.name(entries).await {
            warn!(tenant = %tenant.shard(), "the manifest is not as it should be: {}", error_story(&error));
        }
    }
}

/// The index of an archived timeline that is not being deleted.
async fn find_archived(tenant: &Tenant, timeline: TimelineId) -> Result<FoundIndex, ChangeError> {
    let found = tenant.index_store.find(timeline).await?.ok_or(NotFound::Timeline(timeline))?;
    if found.index.deleted_at.is_some() {
        tenant.set(timeline, Slot::Deleting);
        return Err(ChangeError::Buried(timeline));
    }
    Ok(found)
}
