//! Creating, branching and deleting.

use std::sync::Arc;

use model::{Generation, Lsn, TenantId, TenantShardId, TimelineId};
use tracing::info;

use super::attach::AttachError;
use super::slots::Slot;
use super::{BranchPoint, ChangeError, Mode, NotFound, Tenant, Tenants};
use crate::deletion;
use crate::import_session::{ImportPlan, ImportSession};
use crate::index_keeper::IndexKeeper;
use crate::index_store::PutIndexError;
use crate::time::LsnAt;
use crate::timeline::{Timeline, open};

impl Tenants {
    /// Creates a tenant: claims it. Creating one that is here already changes nothing.
    pub async fn create_tenant(&self, tenant: TenantId) -> Result<Arc<Tenant>, ChangeError> {
        let _one = self.change_of(tenant).await;
        if let Ok(here) = self.tenant(tenant) {
            if here.deleting.is_cancelled() {
                return Err(ChangeError::Deleting(here.shard()));
            }
            here.claim().validate().await?;
            return Ok(here);
        }
        self.attach(TenantShardId::unsharded(tenant)).await.map_err(|error| match error {
            AttachError::Claim { source, .. } => ChangeError::Claim(source),
            AttachError::Config { source, .. } => ChangeError::Config(source),
            AttachError::Bucket(source) | AttachError::Timelines { source, .. } => {
                ChangeError::Bucket(source)
            }
        })
    }

    /// Creates a branch: an index that names its ancestor and the branch point. Asking again for the same branch changes nothing.
    pub async fn branch(
        &self,
        tenant: TenantId,
        new: TimelineId,
        ancestor: TimelineId,
        point: BranchPoint,
    ) -> Result<Timeline, ChangeError> {
        let tenant = self.tenant(tenant)?;
        let _one = tenant.change().await?;
        let parent = tenant.timeline(ancestor)?;
        let lsn = branch_lsn(&parent, point).await?;
        if let Some(Slot::Archived(here)) = tenant.slot(new) {
            tenant.claim().validate().await?;
            let same = here
                .ancestor
                .is_some_and(|(a, at)| a == ancestor && (at == lsn || point == BranchPoint::Tip));
            return Err(if same { NotFound::Archived(new).into() } else { ChangeError::Conflict(new) });
        }
        if let Ok(here) = tenant.timeline(new) {
            let mut same = here
                .ancestor()
                .is_some_and(|(a, at)| a == ancestor && (at == lsn || point == BranchPoint::Tip));
            if !same && here.facts().branched_at == Some(lsn) {
                // It left that ancestor since, or was moved.
                same = here.index().part().await.lineage.was_of(ancestor);
            }
            tenant.claim().validate().await?;
            return if same { Ok(here) } else { Err(ChangeError::Conflict(new)) };
        }
        self.refuse_taken(&tenant, new).await?;
        // What the branch shares must be in the bucket before anything says that the branch exists.
        if lsn > parent.disk_consistent_lsn() {
            parent.keeper().flush_through(lsn).await?;
        }
        let made = IndexKeeper::new_branch(tenant.claim().clone(), new, &parent, lsn).await;
        let index = match made {
            // It was begun before, and got further than anybody was told.
            Err(stopped @ PutIndexError::Stopped { .. }) => {
                let found = tenant.index_store.find(new).await?.ok_or(stopped)?;
                let metadata = found.index.metadata();
                if (metadata.ancestor_timeline, metadata.ancestor_lsn) != (Some(ancestor), lsn) {
                    return Err(ChangeError::Conflict(new));
                }
                IndexKeeper::new(tenant.claim().clone(), new, found)
            }
            made => made?,
        };
        let index = Arc::new(index);
        tenant.claim().validate().await?;
        tenant.note_wishes(new, Some(index.wishes().await));
        let points = tenant.known_points(new);
        let (opened, tasks) = open(&self.surroundings(&tenant), index, Some(&parent), points).await?;
        self.watch_tasks(&tenant, &opened, tasks);
        tenant.set(new, Slot::Open(opened.clone()));
        info!(timeline = %new, %ancestor, %lsn, "branched");
        Ok(opened)
    }

    /// Begins to import a timeline's base. A name whose earlier import did not finish may be used again; nothing of that one remains.
    pub async fn begin_import(
        &self,
        tenant: TenantId,
        new: TimelineId,
        plan: ImportPlan,
    ) -> Result<ImportSession, ChangeError> {
        let tenant = self.tenant(tenant)?;
        let _one = tenant.change().await?;
        let found = if let Some(Slot::Importing { index, running: false }) = tenant.slot(new) {
            index
        } else {
            self.refuse_taken(&tenant, new).await?;
            None
        };
        tenant.set(new, Slot::Importing { index: found.clone(), running: true });
        let begun = ImportSession::begin(self.clone(), Arc::clone(&tenant), new, plan, found).await;
        if begun.is_err() {
            tenant.import_ended(new);
        }
        begun
    }

    pub(crate) async fn open_imported(
        &self,
        tenant: &Arc<Tenant>,
        timeline: TimelineId,
        index: Arc<IndexKeeper>,
    ) -> Result<Timeline, ChangeError> {
        tenant.note_wishes(timeline, Some(index.wishes().await));
        let (opened, tasks) = open(&self.surroundings(tenant), index, None, []).await?;
        self.watch_tasks(tenant, &opened, tasks);
        tenant.set(timeline, Slot::Open(opened.clone()));
        Ok(opened)
    }

    async fn refuse_taken(&self, tenant: &Tenant, new: TimelineId) -> Result<(), ChangeError> {
        if deletion::is_buried(&**self.bucket(), tenant.shard(), new).await? {
            return Err(ChangeError::Buried(new));
        }
        match tenant.slot(new) {
            None => Ok(()),
            Some(Slot::Deleting) => Err(ChangeError::Buried(new)),
            Some(_) => Err(ChangeError::Conflict(new)),
        }
    }

    /// Deletes a timeline for good; refused while it has branches. From then on nothing about it is acknowledged any more, even when the bucket
    /// fails: what was sent may yet be done. Once its index says so and its tombstone is durable, `leave` is awaited, which must end whatever feeds
    /// the timeline; then its own tasks end; and only then its objects go, so that nothing puts another one. What was interrupted goes on when it
    /// is asked for again, also by a later owner.
    pub async fn delete_timeline<T>(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        leave: impl Future<Output = T>,
    ) -> Result<T, ChangeError> {
        let tenant = self.tenant(tenant)?;
        let _one = tenant.change().await?;
        if tenant.mode() == Mode::Multi {
            return Err(ChangeError::Multi(tenant.shard()));
        }
        tenant.refuse_while_detaching(timeline)?;
        if tenant.slot(timeline).is_some() {
            let mut children = tenant.index_store.children(timeline).await?;
            // What could not be told that it hangs on another now.
            let open = tenant.open_timelines();
            let hangs_on_it =
                |open: &&Timeline| open.ancestor().is_some_and(|(ancestor, _)| ancestor == timeline);
            children.extend(open.iter().filter(hangs_on_it).map(Timeline::id));
            children.sort_unstable();
            children.dedup();
            if !children.is_empty() {
                return Err(ChangeError::HasChildren(
                    timeline,
                    children.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                ));
            }
            let index = tenant.index_to_mark(timeline).await?;
            tenant.claim().validate().await?;
            tenant.set(timeline, Slot::Deleting);
            if let Some(index) = index {
                index.mark_deleted().await?;
            }
            deletion::bury(tenant.claim(), timeline).await?;
        } else if !deletion::has_remains(tenant.claim(), timeline).await? {
            return Err(NotFound::Timeline(timeline).into());
        }
        tenant.set(timeline, Slot::Deleting);
        let left = leave.await;
        tenant.abandon(timeline).await?;
        let objects = deletion::delete_timeline_data(tenant.claim(), timeline).await?;
        tenant.remove(timeline);
        self.name_archived(&tenant).await;
        info!(%timeline, objects, "deleted");
        Ok(left)
    }

    /// Deletes a tenant for good, with all its timelines. The claim that deletes the tenant is put first; then `leave` must end whatever feeds
    /// them; then their tasks end, and only then its objects go, so that nothing puts another one. Until that claim is there its timelines go on,
    /// though nothing of them can be changed any more: the claim may have been put though the bucket did not say so. What was interrupted goes on when it is asked for again, also in a process that does not own the
    /// tenant: nobody can any more.
    pub async fn delete_tenant<T, F: Future<Output = T>>(
        &self,
        shard: TenantShardId,
        leave: impl FnOnce(Vec<TimelineId>) -> F,
    ) -> Result<T, ChangeError> {
        let _one = self.change_of(shard.tenant).await;
        let here = self.tenant(shard.tenant).ok().filter(|here| here.shard() == shard);
        let Some(tenant) = here else {
            let absent = NotFound::Tenant(shard.tenant);
            return match deletion::deletion_begun(&**self.bucket(), shard).await? {
                None => Err(absent.into()),
                Some(false) => Err(ChangeError::Elsewhere(shard)),
                Some(true) => {
                    let left = leave(Vec::new()).await;
                    match deletion::delete_tenant_data(&**self.bucket(), shard).await? {
                        0 => Err(absent.into()),
                        objects => {
                            info!(tenant = %shard, objects, "the tenant's deletion was finished");
                            Ok(left)
                        }
                    }
                }
            };
        };
        let _no_other = tenant.changing.lock().await;
        // An owner that was superseded, also since it was asked before, must not delete what is the newer one's.
        deletion::validate_deleter(tenant.claim()).await?;
        tenant.deleting.cancel();
        deletion::claim_deletion(&**self.bucket(), shard).await?;
        tenant.supersede(Generation::DELETED);
        let timelines = tenant.delete_slots();
        tenant.detaching.ended().await;
        let left = leave(timelines).await;
        // An import may have become a timeline just before it was told to end.
        for timeline in tenant.delete_slots() {
            tenant.abandon(timeline).await?;
        }
        let objects = deletion::delete_tenant_objects(&**self.bucket(), shard).await?;
        self.inner.tenants.write().expect("no holder panics").remove(&shard.tenant);
        tenant.detached.cancel();
        info!(tenant = %shard, objects, "tenant was deleted");
        Ok(left)
    }
}

async fn branch_lsn(parent: &Timeline, point: BranchPoint) -> Result<Lsn, ChangeError> {
    let last = parent.last_record_lsn();
    let lsn = match point {
        BranchPoint::Tip => last,
        BranchPoint::Lsn(lsn) => lsn.align_up(),
        BranchPoint::Time(time) => match parent.lsn_at(time).await? {
            LsnAt::Present(lsn) | LsnAt::Future(lsn) => lsn,
            LsnAt::Past(_) | LsnAt::NoData(_) => {
                return Err(ChangeError::Refused(
                    "the time lies before the first commit of the timeline".into(),
                ));
            }
        },
    };
    if lsn < parent.readable_from() {
        return Err(ChangeError::Refused(format!(
            "{lsn} is before {}, where the timeline becomes readable",
            parent.readable_from()
        )));
    }
    parent.check_kept(lsn)?;
    if lsn > last {
        return Err(ChangeError::Refused(format!("{lsn} is beyond {last}, the end of the timeline")));
    }
    Ok(lsn)
}
