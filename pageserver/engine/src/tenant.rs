//! The tenants of a process: claims, open timelines, creating and deleting.
//!
//! Nothing is acknowledged before it is durable in the bucket and a listing of claims afterwards found no newer owner. A process that finds itself
//! superseded says so through [`Tenants::superseded`]; its main function then ends it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use model::{Generation, Lsn, PgTimestamp, TenantId, TenantShardId, TimelineId};
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::as_of::ReadError;
use crate::budget::TailBudget;
use crate::chunk_cache::ChunkCache;
use crate::claim::{Claim, TakeClaimError, ValidateError};
use crate::deletion::{self, DeleteTenantError};
use crate::error_story::error_story;
use crate::import_session::{ImportPlan, ImportSession};
use crate::index_keeper::{IndexKeeper, IndexTrouble};
use crate::index_store::{IndexStore, LoadIndexError, PutIndexError};
use crate::ports::{Bucket, BucketError, ListRequest};
use crate::timeline::{
    OpenError, Timeline, TimelineInfo, TimelinePolicy, TimelineSurroundings, TimelineTasks, open,
};
use crate::wal_keeper::KeepWalError;

/// How long the tasks of a deleted timeline may take to end: a layer or two may be on their way to the bucket.
const END_PATIENCE: Duration = Duration::from_mins(1);

/// All tenants that this process owns. Cheap to clone.
#[derive(Clone)]
pub struct Tenants {
    inner: Arc<Inner>,
}

struct Inner {
    bucket: Arc<dyn Bucket>,
    cache: Arc<ChunkCache>,
    budget: Arc<TailBudget>,
    policy: TimelinePolicy,
    tenants: RwLock<HashMap<TenantId, Arc<Tenant>>>,
    /// One creation or deletion of a tenant at a time.
    changing: Mutex<()>,
    superseded: watch::Sender<Option<String>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One tenant shard that this process owns.
pub struct Tenant {
    shard: TenantShardId,
    claim: Claim,
    index_store: IndexStore,
    timelines: RwLock<BTreeMap<TimelineId, Slot>>,
    /// Timelines whose tasks have not all ended.
    running: RwLock<HashMap<TimelineId, Running>>,
    /// One creation or deletion of a timeline at a time.
    changing: Mutex<()>,
    /// Nobody is interested any more in whether a newer owner comes: set when the tenant is being deleted.
    deleting: CancellationToken,
}

/// Tasks of an open timeline.
#[derive(Clone)]
struct Running {
    timeline: Timeline,
    ended: CancellationToken,
}

/// What this process has of a timeline.
#[derive(Clone)]
enum Slot {
    Open(Timeline),
    /// Its base is not there yet; nothing can be read. `running` while an import of this process is at it.
    Importing {
        index: Option<Arc<IndexKeeper>>,
        running: bool,
    },
    /// It could not be opened, or its tasks ended.
    Broken(Arc<str>),
    /// It is deleted, and some of it is still in the bucket.
    Deleting,
}

/// Why a timeline cannot be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NotFound {
    #[error("tenant {0} is not here")]
    Tenant(TenantId),
    #[error("timeline {0} is not here")]
    Timeline(TimelineId),
    #[error("timeline {0} is being imported")]
    Importing(TimelineId),
    #[error("timeline {timeline} is broken: {reason}")]
    Broken { timeline: TimelineId, reason: Arc<str> },
}

/// Why tenants could not be attached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AttachError {
    #[error("cannot claim tenant {tenant}")]
    Claim { tenant: TenantShardId, source: TakeClaimError },
    #[error("cannot list the bucket")]
    Bucket(#[from] BucketError),
    #[error("cannot find the timelines of tenant {tenant}")]
    Timelines { tenant: TenantShardId, source: BucketError },
}

/// Why a timeline was not created, branched or deleted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ChangeError {
    #[error(transparent)]
    NotFound(#[from] NotFound),
    #[error("{0}")]
    Refused(String),
    #[error("tenant {0} exists already")]
    TenantExists(TenantId),
    #[error("timeline {0} exists already and differs from what is asked")]
    Conflict(TimelineId),
    #[error("timeline {0} was deleted; its name cannot be used again")]
    Buried(TimelineId),
    #[error("timeline {0} has branches: {1}")]
    HasChildren(TimelineId, String),
    #[error(transparent)]
    Validate(#[from] ValidateError),
    #[error("cannot claim the tenant")]
    Claim(#[from] TakeClaimError),
    #[error(transparent)]
    Keep(#[from] KeepWalError),
    #[error("cannot store the index")]
    PutIndex(#[from] PutIndexError),
    #[error(transparent)]
    LoadIndex(#[from] LoadIndexError),
    #[error(transparent)]
    Index(#[from] IndexTrouble),
    #[error("cannot open the timeline")]
    Open(#[from] OpenError),
    #[error("the import failed: {0}")]
    Import(String),
    #[error("the bucket does not do what it must")]
    Bucket(#[from] BucketError),
    #[error("cannot read the timeline")]
    Read(#[from] ReadError),
    #[error(transparent)]
    DeleteTenant(#[from] DeleteTenantError),
    #[error("tasks of timeline {0} did not end in time; its deletion goes on when it is asked for again")]
    StillRunning(TimelineId),
    #[error("tenant {0} is being deleted")]
    Deleting(TenantShardId),
    #[error("tenant {0} is not here, but in the bucket: another server may own it")]
    Elsewhere(TenantShardId),
}

/// A timeline with a source.
#[derive(Clone)]
pub struct Followed {
    /// Which.
    pub id: TimelineId,
    /// To follow on; `None` when its base is still missing.
    pub timeline: Option<Timeline>,
    /// Where its WAL comes from.
    pub source: codec::index_part::Source,
}

/// Where a branch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchPoint {
    /// At the newest record.
    Tip,
    /// At this LSN.
    Lsn(Lsn),
    /// Before the first commit after this time.
    Time(PgTimestamp),
}

/// A tenant for lists.
#[derive(Clone, Debug, Serialize)]
pub struct TenantInfo {
    /// Which shard of which tenant.
    pub id: TenantShardId,
    /// As which owner.
    pub generation: Generation,
    /// How many timelines are known.
    pub timelines: usize,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// A timeline for lists: open, or why not.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum TimelineState {
    /// It can be read.
    Active(Box<TimelineInfo>),
    /// Its base is being imported.
    Importing {
        /// Which.
        timeline: TimelineId,
    },
    /// It cannot.
    Broken {
        /// Which.
        timeline: TimelineId,
        /// Why.
        reason: Arc<str>,
    },
    /// It is deleted; its objects are going.
    Deleting {
        /// Which.
        timeline: TimelineId,
    },
}

impl TimelineState {
    /// Which timeline.
    pub fn id(&self) -> TimelineId {
        match self {
            TimelineState::Active(info) => info.facts.timeline,
            TimelineState::Importing { timeline }
            | TimelineState::Broken { timeline, .. }
            | TimelineState::Deleting { timeline } => *timeline,
        }
    }
}

impl Tenants {
    /// No tenants yet.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        cache: Arc<ChunkCache>,
        budget: Arc<TailBudget>,
        policy: TimelinePolicy,
    ) -> Tenants {
        Tenants {
            inner: Arc::new(Inner {
                bucket,
                cache,
                budget,
                policy,
                tenants: RwLock::default(),
                changing: Mutex::default(),
                superseded: watch::channel(None).0,
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Turns to a text when this process was superseded: it must end then.
    pub fn superseded(&self) -> watch::Receiver<Option<String>> {
        self.inner.superseded.subscribe()
    }

    /// The object store.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.inner.bucket
    }

    /// Claims every tenant in the bucket and opens its timelines. Meant to be called once, at start.
    pub async fn attach_all(&self) -> Result<(), AttachError> {
        let mut after: Option<String> = None;
        loop {
            let request =
                ListRequest { prefix: "tenants/", after: after.as_deref(), delimiter: true, limit: None };
            let page = self.inner.bucket.list(request).await?;
            for prefix in &page.prefixes {
                let Some(shard) =
                    prefix.strip_prefix("tenants/").and_then(|name| name.trim_end_matches('/').parse().ok())
                else {
                    warn!(%prefix, "not a tenant's prefix, left alone");
                    continue;
                };
                match self.attach(shard).await {
                    Ok(_) => {}
                    Err(AttachError::Claim { source: TakeClaimError::Deleted(_), .. }) => {
                        info!(tenant = %shard, "tenant was deleted, left alone");
                    }
                    Err(error) => return Err(error),
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Claims a tenant and opens its timelines, ancestors first.
    pub async fn attach(&self, shard: TenantShardId) -> Result<Arc<Tenant>, AttachError> {
        let claim = Claim::take(Arc::clone(&self.inner.bucket), shard)
            .await
            .map_err(|source| AttachError::Claim { tenant: shard, source })?;
        info!(tenant = %shard, generation = %claim.generation(), "claimed");
        let tenant = Arc::new(Tenant {
            shard,
            index_store: IndexStore::new(&claim),
            claim,
            timelines: RwLock::default(),
            running: RwLock::default(),
            changing: Mutex::default(),
            deleting: CancellationToken::new(),
        });
        self.watch_claim(&tenant);
        self.open_timelines(&tenant)
            .await
            .map_err(|source| AttachError::Timelines { tenant: shard, source })?;
        self.inner.tenants.write().expect("no holder panics").insert(shard.tenant, Arc::clone(&tenant));
        Ok(tenant)
    }

    fn watch_claim(&self, tenant: &Tenant) {
        let (claim, deleting) = (&tenant.claim, tenant.deleting.clone());
        let (token, superseded, stop) =
            (claim.superseded().clone(), self.inner.superseded.clone(), self.inner.stop.clone());
        let (tenant, generation) = (claim.tenant(), claim.generation());
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                // The claim that deletes a tenant is above ours.
                () = deleting.cancelled() => {}
                () = token.cancelled() => {
                    let story = format!("generation {generation} of tenant {tenant} was superseded by a newer owner");
                    superseded.send_replace(Some(story));
                }
            }
        });
    }

    async fn open_timelines(&self, tenant: &Arc<Tenant>) -> Result<(), BucketError> {
        let mut waiting = Vec::new();
        for timeline in tenant.index_store.timelines().await? {
            match tenant.index_store.find(timeline).await {
                Ok(Some(found)) => waiting
                    .push((timeline, Arc::new(IndexKeeper::new(tenant.claim.clone(), timeline, found)))),
                Ok(None) => {}
                Err(error) => tenant.set(timeline, Slot::Broken(error_story(&error).into())),
            }
        }
        // Ancestors first; what is left at the end has an ancestor that is not here.
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut later = Vec::new();
            for (timeline, index) in waiting {
                let ancestor = index.ancestor().await.map(|(ancestor, _)| ancestor);
                match ancestor {
                    Some(ancestor) if tenant.slot(ancestor).is_none() => later.push((timeline, index)),
                    _ => self.open_found(tenant, timeline, index, ancestor).await,
                }
            }
            if later.len() == before {
                for (timeline, _) in later.drain(..) {
                    tenant.set(timeline, Slot::Broken("its ancestor is not in the bucket".into()));
                }
            }
            waiting = later;
        }
        Ok(())
    }

    async fn open_found(
        &self,
        tenant: &Arc<Tenant>,
        timeline: TimelineId,
        index: Arc<IndexKeeper>,
        ancestor: Option<TimelineId>,
    ) {
        if index.import_in_progress().await {
            // Nothing of an unfinished import can be read; whoever asked for it asks again, and what it left is collected then.
            tenant.set(timeline, Slot::Importing { index: Some(index), running: false });
            return;
        }
        let opened = async {
            let parent = ancestor
                .map(|ancestor| tenant.timeline(ancestor))
                .transpose()
                .map_err(|error| error.to_string())?;
            let surroundings = self.surroundings(tenant);
            open(&surroundings, index, parent.as_ref()).await.map_err(|error| error_story(&error))
        };
        match opened.await {
            Ok((opened, tasks)) => {
                info!(%timeline, last = %opened.last_record_lsn(), "timeline is open");
                self.watch_tasks(tenant, &opened, tasks);
                tenant.set(timeline, Slot::Open(opened));
            }
            Err(reason) => {
                error!(%timeline, %reason, "timeline cannot be opened");
                tenant.set(timeline, Slot::Broken(reason.into()));
            }
        }
    }

    pub(crate) fn surroundings(&self, tenant: &Tenant) -> TimelineSurroundings {
        TimelineSurroundings {
            bucket: Arc::clone(&self.inner.bucket),
            claim: tenant.claim.clone(),
            cache: Arc::clone(&self.inner.cache),
            budget: Arc::clone(&self.inner.budget),
            policy: self.inner.policy,
        }
    }

    /// Sees to it that the end of a timeline's tasks is noticed.
    fn watch_tasks(&self, tenant: &Arc<Tenant>, open: &Timeline, mut tasks: TimelineTasks) {
        let (tenant, timeline) = (Arc::clone(tenant), open.id());
        let ended = CancellationToken::new();
        let running = Running { timeline: open.clone(), ended: ended.clone() };
        tenant.running.write().expect("no holder panics").insert(timeline, running);
        self.inner.tasks.spawn(async move {
            let _at_end = ended.drop_guard();
            while let Some(ended) = tasks.join_next().await {
                let trouble = match ended {
                    Ok((_, Ok(()))) => None,
                    Ok((task, Err(error))) => Some(format!("{task}: {error}")),
                    Err(panic) => Some(format!("a task of the timeline panicked: {panic}")),
                };
                if let Some(trouble) = trouble.filter(|_| !tenant.is_stopped(timeline)) {
                    error!(%timeline, error = %trouble, "timeline stopped");
                    if let Ok(open) = tenant.timeline(timeline) {
                        open.stop();
                    }
                    tenant.set(timeline, Slot::Broken(trouble.into()));
                }
            }
            tenant.running.write().expect("no holder panics").remove(&timeline);
        });
    }

    /// A tenant that this process owns.
    pub fn tenant(&self, tenant: TenantId) -> Result<Arc<Tenant>, NotFound> {
        self.inner
            .tenants
            .read()
            .expect("no holder panics")
            .get(&tenant)
            .cloned()
            .ok_or(NotFound::Tenant(tenant))
    }

    /// A timeline that can be read.
    pub fn timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<Timeline, NotFound> {
        self.tenant(tenant)?.timeline(timeline)
    }

    /// All tenants.
    pub fn list(&self) -> Vec<TenantInfo> {
        let tenants = self.inner.tenants.read().expect("no holder panics");
        let mut list: Vec<TenantInfo> = tenants.values().map(|tenant| tenant.info()).collect();
        list.sort_by_key(|info| info.id);
        list
    }

    /// Creates a tenant: claims it. Creating one that is here already changes nothing.
    pub async fn create_tenant(&self, tenant: TenantId) -> Result<Arc<Tenant>, ChangeError> {
        let _one = self.inner.changing.lock().await;
        if let Ok(here) = self.tenant(tenant) {
            if here.deleting.is_cancelled() {
                return Err(ChangeError::Deleting(here.shard));
            }
            here.claim.validate().await?;
            return Ok(here);
        }
        self.attach(TenantShardId::unsharded(tenant)).await.map_err(|error| match error {
            AttachError::Claim { source, .. } => ChangeError::Claim(source),
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
        if let Ok(here) = tenant.timeline(new) {
            let same = here
                .facts()
                .ancestor
                .is_some_and(|(a, at)| a == ancestor && (at == lsn || point == BranchPoint::Tip));
            tenant.claim.validate().await?;
            return if same { Ok(here) } else { Err(ChangeError::Conflict(new)) };
        }
        self.refuse_taken(&tenant, new).await?;
        // What the branch shares must be in the bucket before anything says that the branch exists.
        if lsn > parent.disk_consistent_lsn() {
            parent.keeper().flush_through(lsn).await?;
        }
        let index = Arc::new(IndexKeeper::new_branch(tenant.claim.clone(), new, &parent, lsn).await?);
        tenant.claim.validate().await?;
        let (opened, tasks) = open(&self.surroundings(&tenant), index, Some(&parent)).await?;
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
        let (opened, tasks) = open(&self.surroundings(tenant), index, None).await?;
        self.watch_tasks(tenant, &opened, tasks);
        tenant.set(timeline, Slot::Open(opened.clone()));
        Ok(opened)
    }

    async fn refuse_taken(&self, tenant: &Tenant, new: TimelineId) -> Result<(), ChangeError> {
        if deletion::is_buried(&**self.bucket(), tenant.shard, new).await? {
            return Err(ChangeError::Buried(new));
        }
        match tenant.slot(new) {
            None => Ok(()),
            Some(_) => Err(ChangeError::Conflict(new)),
        }
    }

    /// Deletes a timeline for good; refused while it has branches. Once its tombstone is durable, `leave` is awaited, which must end whatever feeds
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
        if tenant.slot(timeline).is_some() {
            let children = tenant.index_store.children(timeline).await?;
            if !children.is_empty() {
                return Err(ChangeError::HasChildren(
                    timeline,
                    children.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                ));
            }
            deletion::bury(&tenant.claim, timeline).await?;
        } else if !deletion::has_remains(&tenant.claim, timeline).await? {
            return Err(NotFound::Timeline(timeline).into());
        }
        tenant.set(timeline, Slot::Deleting);
        let left = leave.await;
        tenant.abandon(timeline).await?;
        let objects = deletion::delete_timeline_data(&tenant.claim, timeline).await?;
        tenant.timelines.write().expect("no holder panics").remove(&timeline);
        info!(%timeline, objects, "deleted");
        Ok(left)
    }

    /// Deletes a tenant for good, with all its timelines. `leave` must end whatever feeds them; then their tasks end; then the claim that deletes
    /// the tenant is put, and its objects go. What was interrupted goes on when it is asked for again, also in a process that does not own the
    /// tenant: nobody can any more.
    pub async fn delete_tenant<T, F: Future<Output = T>>(
        &self,
        shard: TenantShardId,
        leave: impl FnOnce(Vec<TimelineId>) -> F,
    ) -> Result<T, ChangeError> {
        let _one = self.inner.changing.lock().await;
        let here = self.tenant(shard.tenant).ok().filter(|here| here.shard == shard);
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
        if !tenant.deleting.is_cancelled() {
            // An owner that was superseded long ago must not delete what is the newer one's.
            tenant.claim.validate().await?;
            tenant.deleting.cancel();
        }
        let timelines = tenant.delete_slots();
        let left = leave(timelines).await;
        // An import may have become a timeline just before it was told to end.
        for timeline in tenant.delete_slots() {
            tenant.abandon(timeline).await?;
        }
        let objects = deletion::delete_tenant_data(&**self.bucket(), shard).await?;
        self.inner.tenants.write().expect("no holder panics").remove(&shard.tenant);
        info!(tenant = %shard, objects, "tenant was deleted");
        Ok(left)
    }

    /// Ends all timelines in order, storing what they hold, and waits for it at most so long.
    pub async fn shut_down(&self, patience: Duration) -> bool {
        self.inner.stop.cancel();
        for tenant in self.inner.tenants.read().expect("no holder panics").values() {
            for slot in tenant.timelines.read().expect("no holder panics").values() {
                if let Slot::Open(timeline) = slot {
                    timeline.stop();
                }
            }
        }
        self.inner.tasks.close();
        tokio::time::timeout(patience, self.inner.tasks.wait()).await.is_ok()
    }
}

async fn branch_lsn(parent: &Timeline, point: BranchPoint) -> Result<Lsn, ChangeError> {
    let last = parent.last_record_lsn();
    let lsn = match point {
        BranchPoint::Tip => last,
        BranchPoint::Lsn(lsn) => lsn.align_up(),
        BranchPoint::Time(time) => match parent.lsn_at(time).await? {
            crate::time::LsnAt::Present(lsn) | crate::time::LsnAt::Future(lsn) => lsn,
            crate::time::LsnAt::Past(_) | crate::time::LsnAt::NoData(_) => {
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
    if lsn > last {
        return Err(ChangeError::Refused(format!("{lsn} is beyond {last}, the end of the timeline")));
    }
    Ok(lsn)
}

impl Tenant {
    /// Which shard of which tenant.
    pub fn shard(&self) -> TenantShardId {
        self.shard
    }

    /// Ownership of it.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    fn slot(&self, timeline: TimelineId) -> Option<Slot> {
        self.timelines.read().expect("no holder panics").get(&timeline).cloned()
    }

    fn set(&self, timeline: TimelineId, slot: Slot) {
        self.timelines.write().expect("no holder panics").insert(timeline, slot);
    }

    /// For a change of its timelines: one at a time, and none when it is deleted.
    async fn change(&self) -> Result<MutexGuard<'_, ()>, ChangeError> {
        let one = self.changing.lock().await;
        if self.deleting.is_cancelled() { Err(ChangeError::Deleting(self.shard)) } else { Ok(one) }
    }

    /// Nothing can be read any more. Answers all timelines that there were.
    fn delete_slots(&self) -> Vec<TimelineId> {
        let mut timelines = self.timelines.write().expect("no holder panics");
        timelines.values_mut().for_each(|slot| *slot = Slot::Deleting);
        timelines.keys().copied().collect()
    }

    /// Ends the tasks of a timeline that is deleted, and waits for that.
    async fn abandon(&self, timeline: TimelineId) -> Result<(), ChangeError> {
        let running = self.running.read().expect("no holder panics").get(&timeline).cloned();
        if let Some(Running { timeline: open, ended }) = running {
            open.abandon();
            tokio::time::timeout(END_PATIENCE, ended.cancelled())
                .await
                .map_err(|_| ChangeError::StillRunning(timeline))?;
        }
        // Whatever became of it meanwhile.
        self.set(timeline, Slot::Deleting);
        Ok(())
    }

    fn is_stopped(&self, timeline: TimelineId) -> bool {
        match self.slot(timeline) {
            Some(Slot::Open(open)) => open.is_stopped(),
            Some(Slot::Deleting) | None => true,
            Some(_) => false,
        }
    }

    /// A timeline that can be read.
    pub fn timeline(&self, timeline: TimelineId) -> Result<Timeline, NotFound> {
        match self.slot(timeline) {
            Some(Slot::Open(open)) => Ok(open),
            Some(Slot::Importing { .. }) => Err(NotFound::Importing(timeline)),
            Some(Slot::Broken(reason)) => Err(NotFound::Broken { timeline, reason }),
            Some(Slot::Deleting) | None => Err(NotFound::Timeline(timeline)),
        }
    }

    /// The import of this process has its index in the bucket: what becomes of it now, the name stays taken.
    pub(crate) fn import_begun(&self, timeline: TimelineId, index: &Arc<IndexKeeper>) {
        self.set(timeline, Slot::Importing { index: Some(Arc::clone(index)), running: true });
    }

    /// An import of this process ended. Unless it made the timeline, the name is free for another attempt.
    pub(crate) fn import_ended(&self, timeline: TimelineId) {
        let mut timelines = self.timelines.write().expect("no holder panics");
        match timelines.get_mut(&timeline) {
            Some(Slot::Importing { index: None, .. }) => drop(timelines.remove(&timeline)),
            Some(Slot::Importing { running, .. }) => *running = false,
            _ => {}
        }
    }

    /// Timelines that follow a source, with it, and those whose import is to be started over.
    pub async fn followed(&self) -> Vec<Followed> {
        let slots: Vec<(TimelineId, Slot)> = {
            let timelines = self.timelines.read().expect("no holder panics");
            timelines.iter().map(|(id, slot)| (*id, slot.clone())).collect()
        };
        let mut followed = Vec::new();
        for (id, slot) in slots {
            let (index, timeline) = match slot {
                Slot::Open(open) => (Arc::clone(open.index()), Some(open)),
                Slot::Importing { index: Some(index), running: false } => (index, None),
                _ => continue,
            };
            if let Some((source, _)) = index.source().await {
                followed.push(Followed { id, timeline, source });
            }
        }
        followed
    }

    /// All timelines.
    pub fn list(&self) -> Vec<TimelineState> {
        let timelines = self.timelines.read().expect("no holder panics");
        timelines
            .iter()
            .map(|(timeline, slot)| match slot {
                Slot::Open(open) => TimelineState::Active(Box::new(open.info())),
                Slot::Importing { .. } => TimelineState::Importing { timeline: *timeline },
                Slot::Broken(reason) => {
                    TimelineState::Broken { timeline: *timeline, reason: Arc::clone(reason) }
                }
                Slot::Deleting => TimelineState::Deleting { timeline: *timeline },
            })
            .collect()
    }

    fn info(&self) -> TenantInfo {
        TenantInfo {
            id: self.shard,
            generation: self.claim.generation(),
            timelines: self.timelines.read().expect("no holder panics").len(),
            deleting: self.deleting.is_cancelled(),
        }
    }
}
