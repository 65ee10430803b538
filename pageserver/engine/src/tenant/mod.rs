//! The tenants of a process: claims, open timelines, creating and deleting.
//!
//! Nothing is acknowledged before it is durable in the bucket and a listing of claims afterwards found no newer owner. A process on its own
//! claims every tenant in the bucket, and ends when it finds itself superseded ([`Tenants::superseded`]). Under an operator it has what it is
//! told to attach; a tenant that was superseded is held as stale: reads are answered, nothing is written.
//!
//! Reading order: [`hold`] (how a tenant is held), [`slots`] (a tenant and what there is of its timelines), [`attach`] (claiming, opening and
//! letting go), [`config`] (what it is told to do otherwise), [`open`] (bringing timelines back), [`maintain`] (keeping them small), [`change`] (creating, branching, deleting),
//! [`archive`] and [`manifest`] (putting timelines away and taking them out again), [`detach`] (making branches stand alone).

mod archive;
mod attach;
mod change;
mod config;
mod detach;
mod hold;
mod maintain;
mod manifest;
mod open;
mod slots;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use model::{Generation, Lsn, PgTimestamp, TenantId, TenantShardId, TimelineId};
use serde::Serialize;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::as_of::ReadError;
use crate::budget::TailBudget;
use crate::chunk_cache::ChunkCache;
use crate::claim::{TakeClaimError, ValidateError};
use crate::compact::FailedJob;
use crate::deletion::DeleteTenantError;
use crate::index_keeper::IndexTrouble;
use crate::index_store::{LoadIndexError, PutIndexError};
use crate::inherit::InheritError;
use crate::ports::{Bucket, BucketError, Clock};
use crate::read_counts::ReadCounts;
use crate::timeline::{AppendError, OpenError, Timeline, TimelineInfo, TimelinePolicy};
use crate::wal_keeper::KeepWalError;

pub use archive::ArchivedTimeline;
pub use attach::{AttachAs, AttachAsError, AttachError};
pub use config::{TenantConfig, TenantConfigError};
pub use hold::{Hold, Mode, Phase, Superseded};
pub use maintain::{Maintenance, MaintenanceCounts};
pub use manifest::ManifestError;
pub use slots::{Tenant, TimelineView, UnknownWishes};

/// Tenants whose timelines are opened at once, unless somebody waits for one.
const OPENING_AT_ONCE: usize = 8;

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
    clock: Arc<dyn Clock>,
    tenants: RwLock<BTreeMap<TenantId, Arc<Tenant>>>,
    /// One creation, attachment, detachment or deletion of a tenant at a time.
    changing: std::sync::Mutex<HashMap<TenantId, std::sync::Weak<Mutex<()>>>>,
    opening: Semaphore,
    superseded: watch::Sender<Option<String>>,
    maintenance: MaintenanceCounts,
    reads: Arc<ReadCounts>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Why a timeline cannot be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NotFound {
    #[error("tenant {0} is not here")]
    Tenant(TenantId),
    #[error("timeline {0} is not here")]
    Timeline(TimelineId),
    #[error(
        "timeline {0} is archived: it is in the bucket only, and must be unarchived before anything of it can be read"
    )]
    Archived(TimelineId),
    #[error("timeline {0} is being imported")]
    Importing(TimelineId),
    #[error("tenant {0} is not open yet")]
    Loading(TenantId),
    #[error("timeline {timeline} is broken: {reason}")]
    Broken { timeline: TimelineId, reason: Arc<str> },
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
    #[error("timeline {0} has branches that are not archived: {1}")]
    HasOpenChildren(TimelineId, String),
    #[error("timeline {0} is a branch of {1}, which is archived: unarchive that first")]
    ArchivedAncestor(TimelineId, TimelineId),
    #[error("timeline {0} has no ancestor and never had one")]
    NoAncestor(TimelineId),
    #[error("timeline {0} is being detached from its ancestor; when that is done it can be changed again")]
    Detaching(TimelineId),
    #[error("cannot make what the branch shares with its ancestor its own")]
    Inherit(#[from] InheritError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot store what was received")]
    Append(#[from] AppendError),
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
    #[error(transparent)]
    Config(#[from] TenantConfigError),
    #[error("the bucket does not do what it must")]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    UnknownWishes(#[from] UnknownWishes),
    #[error("cannot read the timeline")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Compact(Box<FailedJob>),
    #[error(transparent)]
    DeleteTenant(#[from] DeleteTenantError),
    #[error(
        "tasks of timeline {0} did not end in time; what was asked for goes on when it is asked for again"
    )]
    StillRunning(TimelineId),
    #[error("tenant {0} is held as stale: nothing of it can be changed here")]
    Stale(TenantShardId),
    #[error(
        "tenant {0} is held while another place may still read it: nothing of it can be deleted or archived yet"
    )]
    Multi(TenantShardId),
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
    /// How it is held.
    pub mode: Mode,
}

/// A timeline for lists: open, or why not.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum TimelineState {
    /// It can be read.
    Active(Box<TimelineInfo>),
    /// It is in the bucket only.
    Archived(Arc<ArchivedTimeline>),
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
            TimelineState::Archived(archived) => archived.timeline,
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
        clock: Arc<dyn Clock>,
    ) -> Tenants {
        Tenants {
            inner: Arc::new(Inner {
                bucket,
                cache,
                budget,
                policy,
                clock,
                tenants: RwLock::default(),
                changing: std::sync::Mutex::default(),
                opening: Semaphore::new(OPENING_AT_ONCE),
                superseded: watch::channel(None).0,
                maintenance: MaintenanceCounts::default(),
                reads: Arc::default(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// How deep reads of pages went since the process began.
    pub fn reads(&self) -> &Arc<ReadCounts> {
        &self.inner.reads
    }

    /// Turns to a text when this process was superseded: it must end then.
    pub fn superseded(&self) -> watch::Receiver<Option<String>> {
        self.inner.superseded.subscribe()
    }

    /// The object store.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.inner.bucket
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

    /// All tenants, however far they are.
    pub fn attached(&self) -> Vec<Arc<Tenant>> {
        self.inner.tenants.read().expect("no holder panics").values().cloned().collect()
    }

    /// All tenants.
    pub fn list(&self) -> Vec<TenantInfo> {
        let tenants = self.inner.tenants.read().expect("no holder panics");
        let mut list: Vec<TenantInfo> = tenants.values().map(|tenant| tenant.info()).collect();
        list.sort_by_key(|info| info.id);
        list
    }

    /// The right to create, attach, detach or delete a tenant, which one has at a time.
    async fn change_of(&self, tenant: TenantId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.inner.changing.lock().expect("no holder panics");
            locks.retain(|_, lock| lock.strong_count() > 0);
            let held = locks.get(&tenant).and_then(std::sync::Weak::upgrade);
            held.unwrap_or_else(|| {
                let lock = Arc::new(Mutex::new(()));
                locks.insert(tenant, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// Ends all timelines in order, storing what they hold, and waits for it at most so long.
    pub async fn shut_down(&self, patience: Duration) -> bool {
        self.inner.stop.cancel();
        for tenant in self.inner.tenants.read().expect("no holder panics").values() {
            tenant.stop_timelines();
        }
        self.inner.tasks.close();
        tokio::time::timeout(patience, self.inner.tasks.wait()).await.is_ok()
    }
}
