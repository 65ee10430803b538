//! What to do next with a tenant: one pure function of its resource and of what is known of its pool. No clock, no I/O.
//!
//! A pass does one of three things. It writes a status, and nothing else, so that an intent is recorded before anything follows from it.
//! Or it makes calls, each of which may be repeated. Or it waits. So an operator may die between any two effects: the next pass, of
//! whichever operator, finds in the status what was intended.
//!
//! A shard gets a new generation for every process that is to own it: a new place, a new process in the same place, or a newer owner found
//! in the bucket. It gets none for a call that is repeated, nor because the bucket is away.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use model::{Generation, ShardIndex, TenantId, TenantShardId};

use super::schedule::{self, Wanted};
use crate::api::tenant::{
    Activity, DeletionPolicy, Place, ShardStatus, Step, Target, TargetReason, Tenant, TenantStatus,
};
use crate::api::text::HexId;
use crate::pool::view::{
    Contact, Leaving, NewerOwner, OpenPool, Pageserver, PoolView, Report, ReportedShard, ShardState,
};

/// Held until nothing of a tenant remains that deletion of its resource must undo.
pub const FINALIZER: &str = "palimpsest.dev/tenant";
/// Annotation of a tenant: the uid of the pool from which its shards may be taken over.
pub const TAKE_OVER: &str = "palimpsest.dev/take-over";
/// A shard is attached elsewhere after so long, though its old place has not let go: claims keep that safe.
const DETACH_PATIENCE: Duration = Duration::from_secs(30);

/// All that a decision depends on besides the tenant itself.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The pool that the tenant names.
    pub pool: &'a PoolView,
    /// An older tenant that has the same id.
    pub id_taken_by: Option<&'a str>,
    /// What was answered to earlier calls.
    pub answers: &'a BTreeMap<ShardIndex, Answers>,
    /// Chance, for what is drawn in this pass.
    pub draws: &'a Draws,
    /// The time, for what is written down.
    pub now: Timestamp,
}

/// Chance.
#[derive(Clone, Debug)]
pub struct Draws {
    /// The id of a tenant that has none.
    pub tenant_id: TenantId,
    /// The attempt of a new intent.
    pub attempt: String,
}

/// What pageservers answered to calls about a shard. May be forgotten at any time: calls are repeated then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// The last attempt to attach that was refused, and why.
    pub refused: Option<(String, Refusal)>,
    /// Generation and configuration that were accepted last.
    pub configured: Option<(u32, String)>,
    /// The deletion of its data has begun, and cannot be undone.
    pub deletion_begun: bool,
    /// Its data is deleted.
    pub deleted: bool,
}

/// Why a pageserver did not attach a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is a newer owner, or another of the same generation.
    Superseded(NewerOwner),
    /// The tenant is deleted.
    TenantDeleted,
    /// It is being emptied, or another process runs there.
    NotThere,
    /// Its bucket does not answer, or has no create-if-absent. It may answer later.
    Storage(String),
    /// The call makes no sense to it. It will not later.
    Invalid(String),
    /// Anything else: ask again.
    Other(String),
}

/// What to do, and how every shard stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// How things are, for people.
    pub standing: Standing,
}

/// What to do with a tenant next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing, until something changes; look again after this time at the latest, if one is given.
    Wait(Option<Duration>),
    /// Add our finalizer.
    AddFinalizer,
    /// Write this status if the resource is still the one that was read.
    Commit(Commit),
    /// Call pageservers. Every call may be repeated.
    Call(Vec<Call>),
    /// Let the resource go.
    RemoveFinalizer,
}

/// A status to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The whole of it; its conditions are as they were.
    pub status: TenantStatus,
    /// What is new in it.
    pub news: Vec<News>,
}

/// What is new in a status.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The tenant has an id.
    Named(HexId),
    /// A generation was allocated.
    Allocated(ShardIndex, TargetReason, Target),
    /// A shard is attached.
    Attached(ShardIndex, Place),
    /// A shard's pageserver has the configuration of the spec.
    Configured(ShardIndex),
    /// A shard is detached.
    Released(ShardIndex),
}

/// A call to a pageserver.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Whom.
    pub pod: String,
    /// Which process there.
    pub instance: String,
    /// Which shard.
    pub shard: TenantShardId,
    /// As which owner.
    pub generation: u32,
    /// Which intent.
    pub attempt: String,
    /// What.
    pub kind: CallKind,
}

/// What a pageserver is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Claim the shard and serve it.
    Attach,
    /// Let go of it.
    Detach {
        /// Store what is in memory first.
        flush: bool,
    },
    /// Take over the configuration of the tenant's spec.
    Configure,
    /// Delete some of its data, for good.
    DeleteData,
}

/// How a tenant stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// Nothing can be done; reason and message say why.
    Refused(Stuck),
    /// Every shard for itself.
    Shards(BTreeMap<ShardIndex, ShardStanding>),
}

/// Something that a person, or time, has to resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// For programs.
    pub reason: &'static str,
    /// What it is, and what to do.
    pub message: String,
}

/// How a shard stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardStanding {
    /// It is served by this pod.
    Served(String),
    /// It is on its way to this pod.
    Changing(TargetReason, String),
    /// It is not served, or not for long.
    Stuck(Stuck),
    /// It is not to be served, and is not.
    Released,
    /// It is not to be served, and still is.
    Releasing,
}

/// What to do next with a tenant.
pub fn decide(tenant: &Tenant, observed: Observed<'_>) -> Decision {
    let has_finalizer = tenant.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER);
    let deleting = tenant.metadata.deletion_timestamp.is_some();
    match (deleting, has_finalizer) {
        (true, false) => wait(Standing::Shards(BTreeMap::new())),
        (false, false) => {
            Decision { action: Action::AddFinalizer, standing: Standing::Shards(BTreeMap::new()) }
        }
        (deleting, true) => pass(tenant, observed, deleting),
    }
}

fn wait(standing: Standing) -> Decision {
    Decision { action: Action::Wait(None), standing }
}

fn refused(reason: &'static str, message: String) -> Decision {
    wait(Standing::Refused(Stuck { reason, message }))
}

/// A pass over a tenant that has our finalizer.
fn pass(tenant: &Tenant, observed: Observed<'_>, deleting: bool) -> Decision {
    let status = tenant.status.clone().unwrap_or_default();
    let retain = tenant.spec.retention.deletion_policy == DeletionPolicy::Retain;
    let pool = match observed.pool {
        PoolView::Open(pool) => pool,
        // Nobody is known who could have anything of it.
        PoolView::Missing if deleting && (retain || was_never_attached(tenant)) => {
            return Decision { action: Action::RemoveFinalizer, standing: Standing::Shards(BTreeMap::new()) };
        }
        closed => return wait(Standing::Refused(closed_pool(tenant, closed))),
    };
    let Some(id) = &status.tenant_id else {
        return if deleting {
            Decision { action: Action::RemoveFinalizer, standing: Standing::Shards(BTreeMap::new()) }
        } else {
            name(tenant, observed)
        };
    };
    let tenant_id = match id.tenant() {
        Ok(id) => id,
        Err(error) => return refused("InvalidStatus", format!("status.tenantID: {error}; correct it")),
    };
    let cx = Pass { tenant, observed, pool, tenant_id, status: &status };
    if deleting {
        cx.delete(retain)
    } else if tenant.spec.activity == Activity::Detached {
        cx.rest()
    } else {
        cx.serve()
    }
}

fn closed_pool(tenant: &Tenant, pool: &PoolView) -> Stuck {
    let name = format!("{}/{}", tenant.pool_namespace(), tenant.spec.pool_ref.name);
    match pool {
        PoolView::NotAllowed => Stuck {
            reason: "NotAllowed",
            message: format!(
                "PageserverPool {name} does not take tenants of this namespace: change its spec.tenants.allowedNamespaces, or label the namespace"
            ),
        },
        PoolView::Invalid(why) => {
            Stuck { reason: "PoolInvalid", message: format!("PageserverPool {name}: {why}") }
        }
        PoolView::Missing | PoolView::Open(_) => Stuck {
            reason: "PoolNotFound",
            message: format!(
                "there is no PageserverPool {name}: make it, or make the tenant anew with another poolRef"
            ),
        },
    }
}

/// Whether no data can be there under the tenant's id: it was drawn here, and no owner was ever appointed.
fn was_never_attached(tenant: &Tenant) -> bool {
    let shards = tenant.status.iter().flat_map(|status| &status.shards);
    tenant.spec.tenant_id.is_none() && shards.into_iter().all(|shard| shard.generation == 0)
}

/// Gives a tenant its id.
fn name(tenant: &Tenant, observed: Observed<'_>) -> Decision {
    if let (Some(other), Some(id)) = (observed.id_taken_by, &tenant.spec.tenant_id) {
        return refused(
            "TenantIDInUse",
            format!("Tenant {other} has the id {}: delete one of the two (with deletionPolicy Retain)", id.0),
        );
    }
    let id = match &tenant.spec.tenant_id {
        Some(id) => id.clone(),
        None => HexId(observed.draws.tenant_id.to_string()),
    };
    let shards = tenant.spec.sharding.shards().into_iter();
    let shards = shards.map(|shard| ShardStatus {
        shard: shard.to_string(),
        generation: 0,
        attached: None,
        target: None,
    });
    let status = TenantStatus {
        tenant_id: Some(id.clone()),
        shards: shards.collect(),
        ..tenant.status.clone().unwrap_or_default()
    };
    Decision {
        action: Action::Commit(Commit { status, news: vec![News::Named(id)] }),
        standing: Standing::Shards(BTreeMap::new()),
    }
}

/// A pass over a tenant that has an id and a pool.
struct Pass<'a> {
    tenant: &'a Tenant,
    observed: Observed<'a>,
    pool: &'a OpenPool,
    tenant_id: TenantId,
    status: &'a TenantStatus,
}

/// What to do next with a shard, and how it stands.
struct ShardDecision {
    next: Next,
    standing: ShardStanding,
}

#[allow(clippy::large_enum_variant, reason = "one is alive at a time")]
enum Next {
    Rest,
    RestFor(Duration),
    Write(ShardStatus, News),
    Call(Call),
    /// Nothing of it remains that deletion of the tenant waits for.
    Done,
}

impl ShardDecision {
    fn rest(standing: ShardStanding) -> Self {
        ShardDecision { next: Next::Rest, standing }
    }

    fn stuck(reason: &'static str, message: impl Into<String>) -> Self {
        ShardDecision::rest(ShardStanding::Stuck(Stuck { reason, message: message.into() }))
    }
}

impl Pass<'_> {
    /// Every shard by one pageserver.
    fn serve(&self) -> Decision {
        self.each(|shard, entry| self.serve_shard(shard, entry))
    }

    /// No shard by any.
    fn rest(&self) -> Decision {
        self.each(|shard, entry| {
            if let Some(call) = self.release(shard, entry) {
                return call;
            }
            if entry.attached.is_none() && entry.target.is_none() {
                return ShardDecision::rest(ShardStanding::Released);
            }
            let released = ShardStatus { attached: None, target: None, ..entry.clone() };
            ShardDecision {
                next: Next::Write(released, News::Released(shard.shard)),
                standing: ShardStanding::Releasing,
            }
        })
    }

    fn delete(&self, retain: bool) -> Decision {
        self.each(|shard, entry| {
            if retain {
                let done = || ShardDecision { next: Next::Done, standing: ShardStanding::Released };
                return self.release(shard, entry).unwrap_or_else(done);
            }
            self.delete_shard(shard, entry)
        })
    }

    /// Decides for each shard, and joins what is to be done: writes come first and alone, then calls; what waits does not hold up others.
    fn each(&self, decide: impl Fn(TenantShardId, &ShardStatus) -> ShardDecision) -> Decision {
        let mut status = self.status.clone();
        let (mut news, mut calls, mut pause) = (Vec::new(), Vec::new(), None);
        let mut standings = BTreeMap::new();
        let mut done = 0;
        for entry in &mut status.shards {
            let Ok(index) = entry.shard.parse::<ShardIndex>() else {
                return refused("InvalidStatus", format!("status.shards: {:?} names no shard", entry.shard));
            };
            let shard = TenantShardId { tenant: self.tenant_id, shard: index };
            let decided = decide(shard, entry);
            standings.insert(index, decided.standing);
            let strays = self.strays(shard, entry);
            match decided.next {
                Next::Rest => {}
                Next::RestFor(time) => pause = Some(pause.map_or(time, |pause: Duration| pause.min(time))),
                Next::Write(next, what) => {
                    *entry = next;
                    news.push(what);
                }
                Next::Call(call) => calls.push(call),
                Next::Done => done += 1,
            }
            for stray in strays {
                if !calls.iter().any(|call| (&call.pod, call.shard) == (&stray.pod, stray.shard)) {
                    calls.push(stray);
                }
            }
        }
        let action = if !news.is_empty() {
            Action::Commit(Commit { status, news })
        } else if !calls.is_empty() {
            Action::Call(calls)
        } else if done == standings.len() && self.tenant.metadata.deletion_timestamp.is_some() {
            Action::RemoveFinalizer
        } else {
            Action::Wait(pause)
        };
        Decision { action, standing: Standing::Shards(standings) }
    }

    fn serve_shard(&self, shard: TenantShardId, entry: &ShardStatus) -> ShardDecision {
        match (&entry.target, &entry.attached) {
            (Some(target), _) => self.pursue(shard, entry, target),
            (None, Some(place)) => self.keep(shard, entry, place),
            (None, None) => self.appoint(shard, entry, TargetReason::New, None, None),
        }
    }

    /// A shard that is attached, as far as the status says.
    fn keep(&self, shard: TenantShardId, entry: &ShardStatus, place: &Place) -> ShardDecision {
        let served = || ShardStanding::Served(place.pod.clone());
        let same = Some(place.pod.as_str());
        let Some(pageserver) = self.pool.pageservers.get(&place.pod) else {
            return self.appoint(shard, entry, TargetReason::Lost, None, None);
        };
        let report = match &pageserver.contact {
            Contact::Starting => return self.appoint(shard, entry, TargetReason::Lost, None, None),
            Contact::Silent(since) if *since <= self.pool.patience => {
                return ShardDecision {
                    next: Next::RestFor(self.pool.patience.saturating_sub(*since)),
                    standing: served(),
                };
            }
            Contact::Silent(_) if self.pool.held => return held(&place.pod),
            Contact::Silent(_) => return self.appoint(shard, entry, TargetReason::Lost, None, same),
            Contact::Answering(report) if report.instance != place.instance => {
                return self.appoint(shard, entry, TargetReason::Restarted, same, None);
            }
            Contact::Answering(report) => report,
        };
        match report.shards.get(&shard) {
            Some(reported) if reported.generation == place.generation => {
                self.keep_held(shard, entry, place, pageserver, reported)
            }
            // It was detached behind our back, or another operator's status was lost.
            _ => self.appoint(shard, entry, TargetReason::Superseded, same, None),
        }
    }

    /// A shard that its pageserver reports to hold as it should.
    fn keep_held(
        &self,
        shard: TenantShardId,
        entry: &ShardStatus,
        place: &Place,
        pageserver: &Pageserver,
        reported: &ReportedShard,
    ) -> ShardDecision {
        if let Some(newer) = &reported.superseded {
            return match self.obstacle(newer) {
                Some(stuck) => ShardDecision::rest(ShardStanding::Stuck(stuck)),
                None => self.appoint(shard, entry, TargetReason::Superseded, Some(&place.pod), None),
            };
        }
        if reported.state == ShardState::Broken {
            return broken(&place.pod, &reported.message);
        }
        if let Some(leaving) = &pageserver.leaving {
            return self.leave(shard, entry, place, leaving);
        }
        self.configure(shard, entry, place)
    }

    /// A shard whose pageserver is to be emptied.
    fn leave(
        &self,
        shard: TenantShardId,
        entry: &ShardStatus,
        place: &Place,
        leaving: &Leaving,
    ) -> ShardDecision {
        let decided = self.appoint(shard, entry, TargetReason::Drain, None, Some(&place.pod));
        let is_alone = || {
            let others = self.pool.pageservers.values().filter(|other| other.pod != place.pod);
            others.into_iter().all(|other| other.leaving.is_some())
        };
        // Nobody will take it before the pod is gone: what it has is stored now, so that the pod need not wait for its deadline.
        if matches!(decided.next, Next::Rest) && *leaving == Leaving::Terminating && is_alone() {
            let next = Next::Call(Self::detach(shard, &place.pod, &place.instance, place.generation, true));
            return ShardDecision { next, standing: decided.standing };
        }
        decided
    }

    /// A shard that is well: does its pageserver have the tenant's configuration?
    fn configure(&self, shard: TenantShardId, entry: &ShardStatus, place: &Place) -> ShardDecision {
        let standing = ShardStanding::Served(place.pod.clone());
        let wanted = self.tenant.spec.config.fingerprint();
        if self.tenant.spec.config.settings().is_err() || place.config == wanted {
            return ShardDecision::rest(standing);
        }
        let accepted = self.answers(shard).and_then(|answers| answers.configured.as_ref());
        if accepted == Some(&(place.generation, wanted.clone())) {
            let place = Place { config: wanted, ..place.clone() };
            let configured = ShardStatus { attached: Some(place), ..entry.clone() };
            return ShardDecision { next: Next::Write(configured, News::Configured(shard.shard)), standing };
        }
        let call = Call {
            pod: place.pod.clone(),
            instance: place.instance.clone(),
            shard,
            generation: place.generation,
            attempt: format!("configure-{wanted}"),
            kind: CallKind::Configure,
        };
        ShardDecision { next: Next::Call(call), standing }
    }

    /// A shard that is on its way to a place.
    #[allow(clippy::match_same_arms, reason = "the order of the arms is what is decided")]
    fn pursue(&self, shard: TenantShardId, entry: &ShardStatus, target: &Target) -> ShardDecision {
        let changing = || ShardStanding::Changing(target.reason, target.pod.clone());
        let again = |prefer| self.appoint(shard, entry, TargetReason::ChosenAgain, prefer, None);
        if target.step != Step::Attach {
            return ShardDecision::stuck(
                "StepUnknown",
                format!(
                    "shard {} is in step {:?} of a move that this version of the operator does not know: run the newer one",
                    entry.shard, target.step
                ),
            );
        }
        let same = Some(target.pod.as_str());
        let Some(pageserver) = self.pool.pageservers.get(&target.pod) else { return again(None) };
        let report = match &pageserver.contact {
            Contact::Starting => return again(None),
            Contact::Silent(since) if *since <= self.pool.patience => {
                return ShardDecision {
                    next: Next::RestFor(self.pool.patience.saturating_sub(*since)),
                    standing: changing(),
                };
            }
            Contact::Silent(_) if self.pool.held => return held(&target.pod),
            Contact::Silent(_) => return again(None),
            Contact::Answering(report) if report.instance != target.instance => return again(same),
            Contact::Answering(report) => report,
        };
        match report.shards.get(&shard) {
            Some(reported) if reported.generation == target.generation => {
                self.follow(shard, entry, target, reported)
            }
            Some(reported) if reported.generation > target.generation => {
                self.appoint(shard, entry, TargetReason::Superseded, same, None)
            }
            _ if pageserver.leaving.is_some() => again(None),
            _ => self.attach(shard, entry, target),
        }
    }

    /// A shard that its target has claimed.
    fn follow(
        &self,
        shard: TenantShardId,
        entry: &ShardStatus,
        target: &Target,
        reported: &ReportedShard,
    ) -> ShardDecision {
        let changing = ShardStanding::Changing(target.reason, target.pod.clone());
        if let Some(newer) = &reported.superseded {
            return match self.obstacle(newer) {
                Some(stuck) => ShardDecision::rest(ShardStanding::Stuck(stuck)),
                None => self.appoint(shard, entry, TargetReason::Superseded, Some(&target.pod), None),
            };
        }
        match reported.state {
            ShardState::Active => {
                let place = Place {
                    pod: target.pod.clone(),
                    instance: target.instance.clone(),
                    generation: target.generation,
                    // The bucket has what an earlier owner was given.
                    config: entry.attached.as_ref().map_or_else(String::new, |before| before.config.clone()),
                };
                let news = News::Attached(shard.shard, place.clone());
                let attached = ShardStatus { attached: Some(place), target: None, ..entry.clone() };
                ShardDecision { next: Next::Write(attached, news), standing: changing }
            }
            ShardState::Broken => broken(&target.pod, &reported.message),
            ShardState::Loading | ShardState::Detaching => ShardDecision::rest(changing),
        }
    }

    /// A shard that its target does not have yet. The old place lets go first, unless it is gone or takes too long.
    fn attach(&self, shard: TenantShardId, entry: &ShardStatus, target: &Target) -> ShardDecision {
        let changing = ShardStanding::Changing(target.reason, target.pod.clone());
        if let Some((place, old)) = self.old_holder(shard, entry)
            && (old.instance.as_str(), place.pod.as_str()) != (target.instance.as_str(), target.pod.as_str())
            && self.age(target) < DETACH_PATIENCE
        {
            let call = Self::detach(shard, &place.pod, &place.instance, place.generation, true);
            return ShardDecision { next: Next::Call(call), standing: changing };
        }
        let call = Next::Call(Call {
            pod: target.pod.clone(),
            instance: target.instance.clone(),
            shard,
            generation: target.generation,
            attempt: target.attempt.clone(),
            kind: CallKind::Attach,
        });
        match self.refusal(shard, target) {
            None => ShardDecision { next: call, standing: changing },
            Some(Refusal::Superseded(newer)) => match self.obstacle(newer) {
                Some(stuck) => ShardDecision::rest(ShardStanding::Stuck(stuck)),
                None => self.appoint(shard, entry, TargetReason::Superseded, Some(&target.pod), None),
            },
            Some(Refusal::TenantDeleted) => ShardDecision::rest(ShardStanding::Stuck(tenant_deleted())),
            Some(Refusal::NotThere) => {
                self.appoint(shard, entry, TargetReason::ChosenAgain, None, Some(&target.pod))
            }
            Some(Refusal::Invalid(why)) => {
                ShardDecision::stuck("Refused", format!("{} refuses: {why}", target.pod))
            }
            Some(Refusal::Storage(why)) => {
                stuck_and(call, "StorageUnavailable", format!("{}: {why}", target.pod))
            }
            Some(Refusal::Other(why)) => stuck_and(call, "AttachFailed", format!("{}: {why}", target.pod)),
        }
    }

    /// Who is to own the shard next. Allocates a generation, which nobody was ever given.
    fn appoint(
        &self,
        shard: TenantShardId,
        entry: &ShardStatus,
        reason: TargetReason,
        prefer: Option<&str>,
        exclude: Option<&str>,
    ) -> ShardDecision {
        let siblings: Vec<_> = self
            .status
            .shards
            .iter()
            .filter(|other| other.shard != entry.shard)
            .filter_map(|other| {
                let target = other.target.as_ref().map(|target| target.pod.as_str());
                target.or(other.attached.as_ref().map(|place| place.pod.as_str()))
            })
            .collect();
        let wanted =
            Wanted { shard, placement: &self.tenant.spec.placement, siblings: &siblings, prefer, exclude };
        let (pageserver, report) = match schedule::choose(self.pool, wanted) {
            Ok(chosen) => chosen,
            Err(why) => {
                return ShardDecision::stuck("NoCapacity", format!("{why}; add pageservers, or wait"));
            }
        };
        let Some(generation) = self.highest_generation(shard, entry).next() else {
            return ShardDecision::stuck(
                "GenerationsExhausted",
                "no generation is left: this tenant must be copied under a new id",
            );
        };
        let target = Target {
            pod: pageserver.pod.clone(),
            instance: report.instance.clone(),
            generation: generation.0,
            step: Step::Attach,
            reason,
            attempt: self.observed.draws.attempt.clone(),
            since: Time(self.observed.now),
        };
        let standing = ShardStanding::Changing(reason, target.pod.clone());
        let news = News::Allocated(shard.shard, reason, target.clone());
        let next = ShardStatus { generation: generation.0, target: Some(target), ..entry.clone() };
        ShardDecision { next: Next::Write(next, news), standing }
    }

    /// The highest generation that anyone is known to have had.
    fn highest_generation(&self, shard: TenantShardId, entry: &ShardStatus) -> Generation {
        let reported = self.pool.holders(shard).flat_map(|(_, _, held)| {
            let newer = held.superseded.as_ref().map_or(0, |newer| newer.generation);
            [held.generation, newer]
        });
        let refused = match self.answers(shard).and_then(|answers| answers.refused.as_ref()) {
            Some((_, Refusal::Superseded(newer))) => newer.generation,
            _ => 0,
        };
        let highest =
            reported.chain([entry.generation, refused]).filter(|one| *one != Generation::DELETED.0).max();
        Generation(highest.unwrap_or(entry.generation))
    }

    /// Why a newer owner is not to be superseded in turn.
    fn obstacle(&self, newer: &NewerOwner) -> Option<Stuck> {
        if newer.generation == Generation::DELETED.0 {
            return Some(tenant_deleted());
        }
        let foreign = !newer.pool_uid.is_empty() && newer.pool_uid != self.pool.uid;
        let taken_over = self.tenant.metadata.annotations.as_ref().and_then(|all| all.get(TAKE_OVER));
        (foreign && taken_over != Some(&newer.pool_uid)).then(|| Stuck {
            reason: "ForeignOwner",
            message: format!(
                "a pageserver of the pool with uid {} owns this tenant: if that pool is gone for good, or is not to have it, annotate this \
                 tenant with {TAKE_OVER}={}",
                newer.pool_uid, newer.pool_uid
            ),
        })
    }

    /// Whoever still holds the shard lets go of it; a pageserver that is silent gets some time to answer. `None`: nobody has it.
    fn release(&self, shard: TenantShardId, entry: &ShardStatus) -> Option<ShardDecision> {
        if let Some((pageserver, report, held)) = self.pool.holders(shard).next() {
            let call = Self::detach(shard, &pageserver.pod, &report.instance, held.generation, true);
            return Some(ShardDecision { next: Next::Call(call), standing: ShardStanding::Releasing });
        }
        let places = [
            entry.attached.as_ref().map(|place| place.pod.as_str()),
            entry.target.as_ref().map(|target| target.pod.as_str()),
        ];
        let silent =
            places.into_iter().flatten().find_map(|pod| match self.pool.pageservers.get(pod)?.contact {
                Contact::Silent(since) => self.pool.patience.checked_sub(since),
                Contact::Starting | Contact::Answering(_) => None,
            })?;
        Some(ShardDecision { next: Next::RestFor(silent), standing: ShardStanding::Releasing })
    }

    /// A shard whose data is to be deleted: whoever owns it begins, and once it has begun anyone can go on.
    fn delete_shard(&self, shard: TenantShardId, entry: &ShardStatus) -> ShardDecision {
        let known = self.answers(shard).cloned().unwrap_or_default();
        // A status that was restored from before the first owner does not know of those who have it since.
        let is_unknown = was_never_attached(self.tenant) && self.pool.holders(shard).next().is_none();
        if known.deleted || is_unknown {
            let done = || ShardDecision { next: Next::Done, standing: ShardStanding::Released };
            return self.release(shard, entry).unwrap_or_else(done);
        }
        let begun = known.deletion_begun
            || matches!(known.refused, Some((_, Refusal::TenantDeleted)))
            || self.pool.holders(shard).any(|(_, _, held)| {
                held.superseded.as_ref().is_some_and(|newer| newer.generation == Generation::DELETED.0)
            });
        let owner = self.current_owner(shard, entry);
        let anyone = || {
            self.pool
                .pageservers
                .values()
                .find(|one| self.pool.is_usable(one))
                .and_then(|one| Some((one, one.report()?)))
        };
        let deleter = if begun { owner.or_else(anyone) } else { owner };
        let Some((pageserver, report)) = deleter else {
            return if begun {
                ShardDecision::stuck("NoCapacity", "no pageserver can delete the data; add one, or wait")
            } else {
                self.serve_shard(shard, entry)
            };
        };
        // A status that was restored may know of an older owner than the pageserver, which refuses what is meant for that one.
        let held = report.shards.get(&shard).map_or(0, |held| held.generation);
        let call = Call {
            pod: pageserver.pod.clone(),
            instance: report.instance.clone(),
            shard,
            generation: entry.generation.max(held),
            attempt: format!("delete-{}", self.tenant.metadata.uid.as_deref().unwrap_or_default()),
            kind: CallKind::DeleteData,
        };
        ShardDecision { next: Next::Call(call), standing: ShardStanding::Releasing }
    }

    /// The pageserver that owns the shard by status and by its own report.
    fn current_owner(&self, shard: TenantShardId, entry: &ShardStatus) -> Option<(&Pageserver, &Report)> {
        if entry.target.is_some() {
            return None;
        }
        let place = entry.attached.as_ref()?;
        let pageserver = self.pool.pageservers.get(&place.pod)?;
        let report = pageserver.report().filter(|report| report.instance == place.instance)?;
        let held = report.shards.get(&shard)?;
        (held.generation == place.generation && held.superseded.is_none()).then_some((pageserver, report))
    }

    /// The old place of a shard, if it answers and still has it.
    fn old_holder<'b>(&self, shard: TenantShardId, entry: &'b ShardStatus) -> Option<(&'b Place, &Report)> {
        let place = entry.attached.as_ref()?;
        let report = self.pool.pageservers.get(&place.pod)?.report()?;
        let held = report.instance == place.instance
            && report.shards.get(&shard).is_some_and(|held| held.generation == place.generation);
        held.then_some((place, report))
    }

    /// Whoever has the shard, or had it, and is not to: lets go. A generation above what the status has is none of ours to end: the status
    /// that was read may be old.
    fn strays(&self, shard: TenantShardId, entry: &ShardStatus) -> Vec<Call> {
        let meant = [
            entry.attached.as_ref().map(|place| (&place.pod, place.generation)),
            entry.target.as_ref().map(|target| (&target.pod, target.generation)),
        ];
        self.pool
            .holders(shard)
            .filter(|(pageserver, _, held)| {
                held.generation <= entry.generation
                    && !meant.contains(&Some((&pageserver.pod, held.generation)))
                    && held.state != ShardState::Detaching
            })
            .map(|(pageserver, report, held)| {
                Self::detach(shard, &pageserver.pod, &report.instance, held.generation, false)
            })
            .collect()
    }

    fn detach(shard: TenantShardId, pod: &str, instance: &str, generation: u32, flush: bool) -> Call {
        Call {
            pod: pod.into(),
            instance: instance.into(),
            shard,
            generation,
            attempt: format!("detach-{generation}"),
            kind: CallKind::Detach { flush },
        }
    }

    fn answers(&self, shard: TenantShardId) -> Option<&Answers> {
        self.observed.answers.get(&shard.shard)
    }

    fn refusal(&self, shard: TenantShardId, target: &Target) -> Option<&Refusal> {
        let (attempt, refusal) = self.answers(shard)?.refused.as_ref()?;
        (*attempt == target.attempt).then_some(refusal)
    }

    fn age(&self, target: &Target) -> Duration {
        self.observed.now.duration_since(target.since.0).unsigned_abs()
    }
}

fn stuck_and(next: Next, reason: &'static str, message: String) -> ShardDecision {
    ShardDecision { next, standing: ShardStanding::Stuck(Stuck { reason, message }) }
}

fn held(pod: &str) -> ShardDecision {
    ShardDecision::stuck(
        "FailoverHeld",
        format!(
            "{pod} does not answer, and neither do too many other pageservers: the shard is not attached elsewhere until most answer again"
        ),
    )
}

fn broken(pod: &str, message: &str) -> ShardDecision {
    ShardDecision::stuck("Broken", format!("{pod} cannot serve the shard: {message}"))
}

fn tenant_deleted() -> Stuck {
    Stuck {
        reason: "TenantDeleted",
        message: "the data of this tenant was deleted, or is being deleted: its id cannot be used again"
            .into(),
    }
}

#[cfg(test)]
mod tests;
