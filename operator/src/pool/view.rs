//! What is known of a pool and its pageservers at one moment. Everything that decides reads only this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::TenantShardId;

/// A pool as a tenant meets it.
#[derive(Clone, Debug)]
pub enum PoolView {
    /// There is none of that name.
    Missing,
    /// It does not take tenants of this namespace.
    NotAllowed,
    /// Its spec makes no sense; the text says what.
    Invalid(String),
    /// It takes them.
    Open(Arc<OpenPool>),
}

/// A pool that takes tenants.
#[derive(Clone, Debug, Default)]
pub struct OpenPool {
    /// Uid of its resource: who we are in claims.
    pub uid: String,
    /// A pageserver that is silent for longer is lost.
    pub patience: Duration,
    /// So many pageservers are silent that the fault is likely ours: nothing that does not answer counts as lost.
    pub held: bool,
    /// A pageserver with so many shards gets no more.
    pub max_shards: u32,
    /// One whose disk is fuller gets no more.
    pub disk_high_watermark_percent: u32,
    /// Whether a bucket without create-if-absent is accepted.
    pub best_effort: bool,
    /// By pod name.
    pub pageservers: BTreeMap<String, Pageserver>,
}

/// What is known of one pod of a pool.
#[derive(Clone, Debug)]
pub struct Pageserver {
    /// Name of the pod.
    pub pod: String,
    /// Its uid: another pod of the same name has another.
    pub pod_uid: String,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// The node that it is on.
    pub node: Option<String>,
    /// The zone of that node.
    pub zone: Option<String>,
    /// Why it is to be emptied, if it is.
    pub leaving: Option<Leaving>,
    /// Whether it answers.
    pub contact: Contact,
    /// Shards that committed statuses place there, whatever it reports.
    pub placed: u32,
}

/// Why a pageserver is to be emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Its pod is being deleted.
    Terminating,
    /// Its node has this taint.
    Tainted(String),
    /// Someone asked for it, by annotation.
    Asked,
    /// It says so itself.
    Draining,
}

impl Leaving {
    /// For people.
    pub fn reason(&self) -> String {
        match self {
            Leaving::Terminating => "its pod is being deleted".into(),
            Leaving::Tainted(taint) => format!("its node has the taint {taint}"),
            Leaving::Asked => "its pod has the annotation palimpsest.dev/drain".into(),
            Leaving::Draining => "it was told to drain".into(),
        }
    }
}

/// Whether a pageserver answers.
#[derive(Clone, Debug)]
pub enum Contact {
    /// No process runs in the pod yet: what ran before under its name is gone.
    Starting,
    /// It does not answer, since so long.
    Silent(Duration),
    /// It does.
    Answering(Arc<Report>),
}

/// What a pageserver says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What the process drew at its start.
    pub instance: String,
    /// Its version.
    pub version: String,
    /// What it found the bucket to be.
    pub storage: Storage,
    /// What there is to say of that.
    pub storage_message: String,
    /// Whether it is to be emptied.
    pub draining: bool,
    /// How full its cache disk is.
    pub disk_percent: u32,
    /// What it holds.
    pub shards: BTreeMap<TenantShardId, ReportedShard>,
}

/// What a pageserver found its bucket to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// It did not say.
    #[default]
    Unknown,
    /// One of two creators of an object is refused.
    Conditional,
    /// Not so.
    BestEffort,
    /// Not so, and it insists.
    Unsafe,
    /// It does not answer, or refuses.
    Unavailable,
}

/// A shard that a pageserver holds.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportedShard {
    /// As which owner.
    pub generation: u32,
    /// By which intent it was attached.
    pub attempt: String,
    /// How far it is.
    pub state: ShardState,
    /// What there is to say.
    pub message: String,
    /// A newer owner that it found in the bucket.
    pub superseded: Option<NewerOwner>,
    /// Its timelines.
    pub timelines: Vec<proto::v1::TimelineStatus>,
}

/// How far an attached shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// Its timelines are being opened.
    Loading,
    /// It serves.
    Active,
    /// It cannot.
    Broken,
    /// It is being let go.
    Detaching,
}

/// An owner in the bucket that is newer than the one who found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewerOwner {
    /// Its generation.
    pub generation: u32,
    /// Its pool, if its claim says so.
    pub pool_uid: String,
}

impl Pageserver {
    /// What it says, if it answers.
    pub fn report(&self) -> Option<&Report> {
        match &self.contact {
            Contact::Answering(report) => Some(report),
            Contact::Starting | Contact::Silent(_) => None,
        }
    }
}

impl OpenPool {
    /// Who reports to hold a shard.
    pub fn holders(
        &self,
        shard: TenantShardId,
    ) -> impl Iterator<Item = (&Pageserver, &Report, &ReportedShard)> {
        self.pageservers.values().filter_map(move |pageserver| {
            let report = pageserver.report()?;
            Some((pageserver, report, report.shards.get(&shard)?))
        })
    }

    /// Whether a pageserver takes tenants: it answers, its bucket is as it must be, and it is not being emptied.
    pub fn is_usable(&self, pageserver: &Pageserver) -> bool {
        pageserver.leaving.is_none()
            && pageserver
                .report()
                .is_some_and(|report| !report.draining && self.storage_is_fit(report.storage))
    }

    /// Whether a bucket may be used.
    pub fn storage_is_fit(&self, storage: Storage) -> bool {
        match storage {
            Storage::Conditional => true,
            Storage::BestEffort => self.best_effort,
            Storage::Unknown | Storage::Unsafe | Storage::Unavailable => false,
        }
    }
}
