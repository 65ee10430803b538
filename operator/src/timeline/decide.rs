//! What to do next with a timeline: one pure function of its resource, of its tenant, and of what the tenant's pageservers report.
//!
//! The order is that of its life: a finalizer, an id, the place where it branches off (written down before it is made, so that a repeated
//! creation branches there too), the creation on every shard, its source and state, and in the end its deletion. Every call may be
//! repeated.

#![allow(clippy::result_large_err, reason = "an error is the decision, and is made once in a pass")]

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use model::{Lsn, ShardIndex, TenantId, TenantShardId, TimelineId};
use proto::v1::{LsnKind, Reason, SourceState, TimelineState, TimelineStatus as Reported};

use crate::api::condition::{self, ConditionStatus, Verdict};
use crate::api::tenant::{Activity, DeletionPolicy, Tenant};
use crate::api::text::{HexId, LsnText, fingerprint};
use crate::api::timeline::{Ancestor, Source, State, Timeline, TimelineStatus};
use crate::pool::view::{OpenPool, ShardState};

/// Held until nothing of a timeline remains that deletion of its resource must undo.
pub const FINALIZER: &str = "palimpsest.dev/timeline";
/// A commit may arrive so much later than its time says. A time is looked up only when it is older.
const COMMIT_LAG: Duration = Duration::from_secs(30);
/// So many names of branches are told.
const NAMES_TOLD: usize = 5;

/// All that a decision depends on besides the timeline itself.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The tenant that it names.
    pub tenant: Option<&'a Tenant>,
    /// That tenant's pool.
    pub pool: Option<&'a OpenPool>,
    /// The timeline that `spec.ancestor.timelineRef` names.
    pub ancestor: Option<&'a Timeline>,
    /// Names of timelines that branch off from it.
    pub branches: &'a [String],
    /// An older timeline of the tenant that has the same id.
    pub id_taken_by: Option<&'a str>,
    /// What was answered to earlier calls.
    pub answers: &'a Answers,
    /// An id that was drawn for this pass.
    pub drawn_id: TimelineId,
    /// The time.
    pub now: Timestamp,
}

/// What pageservers answered to calls about a timeline. May be forgotten at any time: calls are repeated then.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// Where it branches off.
    pub branch_point: Option<Result<(Lsn, LsnKind), Refusal>>,
    /// Under which generation each shard has it.
    pub created: BTreeMap<ShardIndex, Result<u32, Refusal>>,
    /// What it follows and is, by fingerprint.
    pub applied: Option<(String, Result<(), Refusal>)>,
    /// Whether it has left its ancestor.
    pub detached: Option<Result<(), Refusal>>,
    /// Which shards have deleted it, or let go of its source.
    pub ended: BTreeMap<ShardIndex, Result<(), Refusal>>,
}

/// Why a pageserver did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// What to do, and what is to be said.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// What is to be said.
    pub verdicts: Vec<Verdict>,
}

/// What to do with a timeline next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing, until something changes; look again after this time at the latest, if one is given.
    Wait(Option<Duration>),
    /// Add our finalizer.
    AddFinalizer,
    /// Write this status if the resource is still the one that was read.
    Commit(TimelineStatus),
    /// Call pageservers. Every call may be repeated.
    Call(Vec<Call>),
    /// Let the resource go.
    RemoveFinalizer,
}

/// A call to the pageserver that has a shard.
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
    /// What.
    pub kind: CallKind,
}

/// What a pageserver is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum CallKind {
    /// Where the last commit is that is not later than a time.
    FindTime(TimelineId, Timestamp),
    /// Where a timeline ends.
    FindEnd(TimelineId),
    /// Make the timeline.
    Create(TimelineId, Option<u32>, Origin),
    /// Let it be in this state and follow this source.
    Apply(TimelineId, State, Option<Source>, String),
    /// Let it leave its ancestor.
    Detach(TimelineId),
    /// Let it follow nothing any more.
    Unfollow(TimelineId),
    /// Delete it for good.
    Delete(TimelineId),
}

/// How a timeline begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Empty.
    Empty,
    /// As a branch.
    Branch(TimelineId, Lsn),
    /// As the state of a running primary.
    Import(Source),
}

/// A shard of the tenant, and who has it.
struct Owner<'a> {
    shard: TenantShardId,
    pod: &'a str,
    instance: &'a str,
    generation: u32,
    reported: Vec<&'a Reported>,
}

/// Either the next step, or what this one found.
type Step<T> = Result<T, Decision>;

/// What to do next with a timeline.
pub fn decide(timeline: &Timeline, observed: Observed<'_>) -> Decision {
    let pass = Pass { timeline, observed, status: timeline.status.clone().unwrap_or_default() };
    let has_finalizer = timeline.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER);
    let decided = match (timeline.metadata.deletion_timestamp.is_some(), has_finalizer) {
        (true, false) => Err(Decision { action: Action::Wait(None), verdicts: Vec::new() }),
        (true, true) => pass.end(),
        (false, false) => Err(Decision { action: Action::AddFinalizer, verdicts: vec![pending()] }),
        (false, true) => pass.live(),
    };
    match decided {
        Ok(decision) | Err(decision) => decision,
    }
}

fn pending() -> Verdict {
    Verdict { type_: "Ready", status: ConditionStatus::Unknown, reason: "Pending", message: String::new() }
}

fn not_ready(reason: &'static str, message: impl Into<String>) -> Decision {
    Decision { action: Action::Wait(None), verdicts: vec![Verdict::no("Ready", reason, message)] }
}

fn commit(status: TimelineStatus) -> Decision {
    Decision { action: Action::Commit(status), verdicts: Vec::new() }
}

/// Calls that go out; if some were refused before, their refusal is told and they go out again.
fn call(calls: Vec<Call>, refusal: Option<&Refusal>, doing: &'static str, what: &str) -> Decision {
    let verdict = match refusal {
        Some(refusal) => {
            let (reason, message) = refusal.explain();
            Verdict::no("Ready", reason, message)
        }
        None => Verdict::no("Ready", doing, what),
    };
    Decision { action: Action::Call(calls), verdicts: vec![verdict] }
}

struct Pass<'a> {
    timeline: &'a Timeline,
    observed: Observed<'a>,
    status: TimelineStatus,
}

impl<'a> Pass<'a> {
    /// A timeline that is to be.
    fn live(&self) -> Step<Decision> {
        let id = self.named()?;
        let tenant = self.tenant()?;
        let owners = self.owners(tenant)?;
        // What is made needs its ancestor's resource no more.
        if !owners.iter().all(|owner| self.status.created.contains_key(&owner.shard.shard.to_string())) {
            let origin = self.origin(id, tenant, &owners)?;
            self.create(id, &owners, &origin)?;
        }
        let (is_archived, reported) = self.report(id, &owners)?;
        let applied = self.apply(id, &owners, is_archived, reported);
        Ok(self.detach(id, &owners, is_archived, applied))
    }

    /// Its id, written down before anything is asked in its name.
    fn named(&self) -> Step<TimelineId> {
        let Some(id) = &self.status.timeline_id else {
            if let (Some(other), Some(id)) = (self.observed.id_taken_by, &self.timeline.spec.timeline_id) {
                return Err(not_ready(
                    "TimelineIDInUse",
                    format!(
                        "Timeline {other} has the id {}: delete one of the two (with deletionPolicy Retain)",
                        id.0
                    ),
                ));
            }
            let drawn = || HexId(self.observed.drawn_id.to_string());
            let id = self.timeline.spec.timeline_id.clone().unwrap_or_else(drawn);
            return Err(commit(TimelineStatus { timeline_id: Some(id), ..self.status.clone() }));
        };
        id.timeline().map_err(|error| not_ready("InvalidStatus", format!("status.timelineID: {error}")))
    }

    fn tenant(&self) -> Step<&'a Tenant> {
        let name = &self.timeline.spec.tenant_ref.name;
        let Some(tenant) = self.observed.tenant else {
            let message = format!("there is no Tenant {name} in this namespace: make it");
            return Err(not_ready("TenantNotFound", message));
        };
        if tenant.metadata.deletion_timestamp.is_some() {
            return Err(not_ready("WaitingForTenant", format!("Tenant {name} is being deleted")));
        }
        if tenant.spec.activity == Activity::Detached {
            let message = format!("Tenant {name} is detached: set its spec.activity to Attached");
            return Err(not_ready("WaitingForTenant", message));
        }
        if self.timeline.spec.source.is_some() && tenant.spec.sharding.count > 1 {
            let message = format!(
                "Tenant {name} has {} shards; an ordinary Postgres needs a tenant with one",
                tenant.spec.sharding.count
            );
            return Err(not_ready("SourceNeedsOneShard", message));
        }
        Ok(tenant)
    }

    /// Who has the tenant's shards. All must be served: a timeline is made on every one.
    fn owners(&self, tenant: &'a Tenant) -> Step<Vec<Owner<'a>>> {
        let waiting = || {
            let name = &self.timeline.spec.tenant_ref.name;
            not_ready("WaitingForTenant", format!("Tenant {name} is not served yet; its conditions say why"))
        };
        let status = tenant.status.as_ref().ok_or_else(waiting)?;
        let pool = self.observed.pool.ok_or_else(waiting)?;
        let id: TenantId = status.tenant_id.as_ref().and_then(|id| id.tenant().ok()).ok_or_else(waiting)?;
        if status.shards.is_empty() {
            return Err(waiting());
        }
        status.shards.iter().map(|entry| owner(pool, id, entry).ok_or_else(waiting)).collect()
    }

    /// How it begins; for a branch, the place is found and written down first.
    fn origin(&self, id: TimelineId, tenant: &Tenant, owners: &[Owner<'_>]) -> Step<Origin> {
        let spec = &self.timeline.spec;
        let Some(ancestor) = &spec.ancestor else {
            return Ok(spec.source.clone().map_or(Origin::Empty, Origin::Import));
        };
        let parent = self.parent(ancestor)?;
        if parent == id {
            return Err(not_ready("InvalidAncestor", "a timeline cannot be its own ancestor"));
        }
        if let Some(lsn) = &self.status.ancestor_lsn {
            let lsn = lsn
                .lsn()
                .map_err(|error| not_ready("InvalidStatus", format!("status.ancestorLSN: {error}")))?;
            return Ok(Origin::Branch(parent, lsn));
        }
        let lsn = self.branch_point(ancestor, parent, tenant, owners)?;
        Err(commit(TimelineStatus { ancestor_lsn: Some(LsnText(lsn.to_string())), ..self.status.clone() }))
    }

    /// The id of its ancestor, which must be there.
    fn parent(&self, ancestor: &Ancestor) -> Step<TimelineId> {
        if let Some(id) = &ancestor.timeline_id {
            return id.timeline().map_err(|error| not_ready("InvalidAncestor", error.to_string()));
        }
        let name = ancestor.timeline_ref.as_ref().map(|named| named.name.as_str()).unwrap_or_default();
        let Some(parent) = self.observed.ancestor else {
            let message =
                format!("there is no Timeline {name} in this namespace: make it, or name another ancestor");
            return Err(not_ready("AncestorNotFound", message));
        };
        if parent.spec.tenant_ref != self.timeline.spec.tenant_ref {
            let message = format!(
                "Timeline {name} belongs to another tenant; a branch is made in its ancestor's tenant"
            );
            return Err(not_ready("AncestorNotFound", message));
        }
        let waiting = || {
            not_ready("WaitingForAncestor", format!("Timeline {name} is not ready; its conditions say why"))
        };
        let status = parent.status.as_ref().ok_or_else(waiting)?;
        if !condition::is_true(&status.conditions, "Ready") && status.readable_from_lsn.is_none() {
            return Err(waiting());
        }
        status.timeline_id.as_ref().and_then(|id| id.timeline().ok()).ok_or_else(waiting)
    }

    /// The place in its ancestor at which it begins.
    fn branch_point(
        &self,
        ancestor: &Ancestor,
        parent: TimelineId,
        tenant: &Tenant,
        owners: &[Owner<'_>],
    ) -> Step<Lsn> {
        if let Some(lsn) = &ancestor.lsn {
            return lsn.lsn().map_err(|error| not_ready("InvalidAncestor", error.to_string()));
        }
        let first = &owners[0];
        let Some(time) = ancestor.timestamp.as_ref().map(|time| time.0) else {
            return match &self.observed.answers.branch_point {
                Some(Ok((lsn, _))) => Ok(*lsn),
                answer => {
                    let refusal = answer.as_ref().and_then(|answer| answer.as_ref().err());
                    let calls = vec![first.call(CallKind::FindEnd(parent))];
                    Err(call(calls, refusal, "Branching", "the ancestor's end is looked up"))
                }
            };
        };
        let old_enough =
            self.observed.now.duration_since(time).unsigned_abs() > COMMIT_LAG && time < self.observed.now;
        if !old_enough {
            let message =
                format!("{time} is not over yet: the branch is made {} s after it", COMMIT_LAG.as_secs());
            let pause =
                Duration::try_from(time.duration_since(self.observed.now)).unwrap_or_default() + COMMIT_LAG;
            let verdicts = vec![Verdict::no("Ready", "TimestampInFuture", message)];
            return Err(Decision { action: Action::Wait(Some(pause)), verdicts });
        }
        let find = vec![first.call(CallKind::FindTime(parent, time))];
        match &self.observed.answers.branch_point {
            Some(Ok((lsn, LsnKind::Present))) => Ok(*lsn),
            // Nothing was committed since. That is so only if the ancestor has all that its source has.
            Some(Ok((lsn, LsnKind::Future))) if first.is_current(parent) => Ok(*lsn),
            Some(Ok((_, LsnKind::Future))) => Err(call(
                find,
                Some(&Refusal {
                    reason: Reason::OutOfHistory,
                    message: format!(
                        "the ancestor has no commit after {time} and does not follow its source now, so earlier ones may be missing: mend its \
                         source, or branch at an LSN"
                    ),
                }),
                "",
                "",
            )),
            Some(Ok((_, LsnKind::Past))) => Err(not_ready(
                "OutOfHistory",
                format!(
                    "{time} lies before the history that is kept in Tenant {}: name a later time",
                    tenant.metadata.name.as_deref().unwrap_or_default()
                ),
            )),
            Some(Ok(_)) => Err(call(
                find,
                Some(&Refusal {
                    reason: Reason::OutOfHistory,
                    message: "the ancestor has no commit with a time yet: branch at an LSN".into(),
                }),
                "",
                "",
            )),
            answer => {
                let refusal = answer.as_ref().and_then(|answer| answer.as_ref().err());
                Err(call(find, refusal, "Branching", "the time is looked up in the ancestor"))
            }
        }
    }

    /// It is made on every shard. An acknowledgement counts if the shard's owner is still the one that gave it.
    fn create(&self, id: TimelineId, owners: &[Owner<'_>], origin: &Origin) -> Step<()> {
        let mut status = self.status.clone();
        let mut calls = Vec::new();
        let mut refusal = None;
        let adopts = self.timeline.spec.timeline_id.is_some();
        // What is made follows its source from the beginning, unless it is a branch.
        let follows = matches!(origin, Origin::Import(_)) || self.timeline.spec.source.is_none();
        let mut complete = follows && self.timeline.spec.state == State::Active;
        for owner in owners {
            let name = owner.shard.shard.to_string();
            if status.created.contains_key(&name) {
                continue;
            }
            let acknowledged = match self.observed.answers.created.get(&owner.shard.shard) {
                Some(Ok(generation)) => *generation == owner.generation,
                Some(Err(refused)) => {
                    refusal = Some(refused);
                    false
                }
                None => false,
            };
            if acknowledged || (adopts && owner.reported(id).is_some()) {
                complete &= acknowledged;
                status.created.insert(name, owner.generation);
            } else if adopts && *origin == Origin::Empty {
                return Err(not_ready(
                    "TimelineNotFound",
                    format!(
                        "Tenant {} has no timeline {id}: correct spec.timelineID in a new resource, or leave it out to make a new timeline",
                        self.timeline.spec.tenant_ref.name
                    ),
                ));
            } else {
                let kind = CallKind::Create(id, self.timeline.spec.postgres_version, origin.clone());
                calls.push(owner.call(kind));
            }
        }
        if status.created != self.status.created {
            if complete && calls.is_empty() {
                status.applied = Some(self.wanted());
            }
            return Err(commit(status));
        }
        if calls.is_empty() {
            Ok(())
        } else {
            Err(call(calls, refusal, "Creating", "the timeline is being made"))
        }
    }

    /// It follows what it should, and is in the state that it should be in. Until then it is what it was reported to be: a branch can be
    /// read, and restored from, before the Postgres that it is to follow is there.
    fn apply(&self, id: TimelineId, owners: &[Owner<'_>], is_archived: bool, reported: Decision) -> Decision {
        let wanted = self.wanted();
        let spec = &self.timeline.spec;
        // What an owner was told once, the next one may not know: a call that was answered may have been the last of one that was superseded.
        let is_as_told = is_archived == (spec.state == State::Archived);
        // A timeline that was adopted goes on following what it follows, until its resource says otherwise.
        let asks_nothing = self.status.applied.is_none() && spec.source.is_none() && is_as_told;
        let is_applied = self.status.applied.as_ref() == Some(&wanted) && is_as_told;
        if asks_nothing || is_applied || matches!(reported.action, Action::Commit(_)) {
            return reported;
        }
        let is_noted = self.status.applied.as_ref() == Some(&wanted);
        let refusal = match &self.observed.answers.applied {
            Some((applied, Ok(()))) if *applied == wanted && !is_noted => {
                let status = TimelineStatus { applied: Some(wanted), ..self.status.clone() };
                return Decision { action: Action::Commit(status), ..reported };
            }
            Some((applied, Err(refusal))) if *applied == wanted => Some(refusal),
            _ => None,
        };
        let (state, source) = (spec.state, spec.source.clone());
        let apply =
            |owner: &Owner<'_>| owner.call(CallKind::Apply(id, state, source.clone(), wanted.clone()));
        let mut verdicts = reported.verdicts;
        if let Some(refusal) = refusal {
            let (reason, message) = refusal.explain();
            // What was asked for that is not the case.
            let type_ = match (spec.state, is_archived) {
                (State::Archived, _) => "Archived",
                (State::Active, true) => "Ready",
                (State::Active, false) => "Following",
            };
            verdicts.retain(|verdict| verdict.type_ != type_);
            verdicts.push(Verdict::no(type_, reason, message));
        }
        Decision { action: Action::Call(owners.iter().map(apply).collect()), verdicts }
    }

    /// It leaves its ancestor, if it is to. Only an open timeline can.
    fn detach(&self, id: TimelineId, owners: &[Owner<'_>], is_archived: bool, before: Decision) -> Decision {
        let spec = &self.timeline.spec;
        if !spec.detach_ancestor || matches!(before.action, Action::Commit(_)) {
            return before;
        }
        let Decision { action, mut verdicts } = before;
        if self.status.detached {
            verdicts.push(Verdict::yes("Detached", "Detached", "it stands alone"));
            return Decision { action, verdicts };
        }
        if is_archived || spec.state == State::Archived {
            let message = "it is archived: set spec.state to Active, so that it can leave its ancestor";
            verdicts.push(Verdict::no("Detached", "Archived", message));
            return Decision { action, verdicts };
        }
        match &self.observed.answers.detached {
            Some(Ok(())) => {
                let status =
                    TimelineStatus { detached: true, ancestor_timeline_id: None, ..self.status.clone() };
                return Decision { action: Action::Commit(status), verdicts };
            }
            Some(Err(refusal)) => {
                let (reason, message) = refusal.explain();
                verdicts.push(Verdict::no("Detached", reason, message));
            }
            None => verdicts.push(Verdict::no(
                "Detached",
                "Detaching",
                "what it shares with its ancestor is being copied",
            )),
        }
        // Beside what else is to be done: a source that is away is no reason to wait.
        let mut calls = match action {
            Action::Call(calls) => calls,
            _ => Vec::new(),
        };
        calls.extend(owners.iter().map(|owner| owner.call(CallKind::Detach(id))));
        Decision { action: Action::Call(calls), verdicts }
    }

    /// What it is to be and to follow, by fingerprint.
    fn wanted(&self) -> String {
        fingerprint(&(&self.timeline.spec.state, &self.timeline.spec.source))
    }

    /// What its pageserver says of it, and whether it is archived.
    fn report(&self, id: TimelineId, owners: &[Owner<'_>]) -> Step<(bool, Decision)> {
        let Some(reported) = owners.iter().map(|owner| owner.reported(id)).collect::<Option<Vec<_>>>() else {
            return Err(not_ready("Loading", "the timeline is being opened"));
        };
        let reported = reported[0];
        let source = reported.source.as_ref();
        let successor =
            source.map(|source| source.successor_timeline_id.as_str()).filter(|id| !id.is_empty());
        let mut status = self.status.clone();
        if status.readable_from_lsn.is_none()
            && matches!(
                reported.state(),
                TimelineState::Active | TimelineState::Stopped | TimelineState::Archived
            )
            && let Ok(lsn) = reported.readable_from_lsn.parse::<Lsn>()
            && lsn.is_valid()
        {
            status.readable_from_lsn = Some(LsnText(lsn.to_string()));
        }
        status.successor_timeline_id = successor.map(|id| HexId(id.into())).or(status.successor_timeline_id);
        if let Some(ancestor) = self.moved_to(reported) {
            status.ancestor_timeline_id = Some(HexId(ancestor.into()));
        }
        let is_archived = reported.state() == TimelineState::Archived;
        let mut verdicts = vec![self.ready(reported)];
        verdicts.extend(self.following(reported));
        verdicts.extend(self.archived(is_archived));
        let action = if status == self.status { Action::Wait(None) } else { Action::Commit(status) };
        Ok((is_archived, Decision { action, verdicts }))
    }

    /// The timeline that it hangs on, if that is not the one that its spec names.
    fn moved_to<'b>(&self, reported: &'b Reported) -> Option<&'b str> {
        let ancestor = self.timeline.spec.ancestor.as_ref()?;
        let of_resource = || Some(self.observed.ancestor?.status.as_ref()?.timeline_id.as_ref()?.0.as_str());
        let named = ancestor.timeline_id.as_ref().map(|id| id.0.as_str()).or_else(of_resource)?;
        Some(reported.ancestor_timeline_id.as_str()).filter(|found| !found.is_empty() && *found != named)
    }

    /// Whether it is in the bucket only, if that is or was asked for.
    fn archived(&self, is_archived: bool) -> Option<Verdict> {
        let wanted = self.timeline.spec.state == State::Archived;
        let was_told = self.status.conditions.iter().any(|condition| condition.type_ == "Archived");
        match (wanted, is_archived) {
            (_, true) => Some(Verdict::yes("Archived", "Archived", "it is in the bucket only")),
            (true, false) => Some(Verdict::no(
                "Archived",
                "Archiving",
                "what was received is being stored, then its source is left",
            )),
            (false, false) => was_told.then(|| Verdict::no("Archived", "Active", "")),
        }
    }

    fn ready(&self, reported: &Reported) -> Verdict {
        let imported = || {
            let source = reported.source.clone().unwrap_or_default();
            // In quarters: every change of a status is a write.
            match source.imported_bytes.saturating_mul(4).checked_div(source.total_bytes) {
                Some(quarters) => format!("more than {} % of the source is imported", quarters.min(3) * 25),
                None => "the source is being imported".into(),
            }
        };
        let with =
            |text: &str| if reported.message.is_empty() { text.into() } else { reported.message.clone() };
        match reported.state() {
            TimelineState::Active if self.timeline.spec.source.is_some() => {
                Verdict::yes("Ready", "Readable", "its history can be read")
            }
            TimelineState::Active => Verdict::yes("Ready", "Created", "it can be read"),
            TimelineState::Importing => match blocked_import(reported) {
                Some((reason, message)) => Verdict::no("Ready", reason, message),
                None => Verdict::no("Ready", "Importing", imported()),
            },
            TimelineState::Stopped => {
                Verdict::yes("Ready", "Stopped", with("its history can be read; it takes no WAL"))
            }
            TimelineState::Archived if self.timeline.spec.state == State::Active => {
                Verdict::no("Ready", "Unarchiving", "it is being opened again")
            }
            TimelineState::Archived => Verdict::no(
                "Ready",
                "Archived",
                "it is in the bucket only; set spec.state to Active to read it",
            ),
            TimelineState::Broken => Verdict::no("Ready", "Broken", with("its pageserver cannot open it")),
            TimelineState::Deleting => Verdict::no("Ready", "Deleting", with("it is being deleted")),
            TimelineState::Loading | TimelineState::Unspecified => {
                Verdict::no("Ready", "Loading", with("it is being opened"))
            }
        }
    }

    /// How it fares with its source, if it has one.
    fn following(&self, reported: &Reported) -> Option<Verdict> {
        let primary = &self.timeline.spec.source.as_ref()?.primary;
        if reported.state() == TimelineState::Archived {
            return Some(Verdict::no("Following", "Archived", "an archived timeline follows nothing"));
        }
        let Some(source) = reported.source.as_ref() else {
            return Some(Verdict::no("Following", "NotFollowing", "its pageserver follows no source"));
        };
        let said = &source.message;
        let host = &primary.host;
        Some(match source.state() {
            SourceState::Streaming => Verdict::yes("Following", "Streaming", ""),
            SourceState::Importing => {
                Verdict::no("Following", "Importing", "the state of the source is being imported")
            }
            SourceState::Connecting | SourceState::Unspecified => Verdict::no("Following", "Connecting", ""),
            SourceState::Disconnected => Verdict::no(
                "Following",
                "SourceUnreachable",
                format!("{host} is away or refuses us, tried again: {said}"),
            ),
            SourceState::SlotLost => Verdict::no(
                "Following",
                "SlotLost",
                format!(
                    "the WAL that comes next is gone on {host}: {said}. What was received stays readable; to go on, make a new Timeline with this \
                     source (it is imported anew), and raise max_slot_wal_keep_size there"
                ),
            ),
            SourceState::Diverged => Verdict::no(
                "Following",
                "Diverged",
                format!(
                    "the history of {host} is not this timeline's: {said}. Name the right source, or make a new Timeline for this one"
                ),
            ),
            SourceState::Parted => Verdict::no(
                "Following",
                "Parted",
                format!(
                    "the history of {host} left this timeline's below its end, and timeline {} goes on: make a Timeline with that timelineID \
                     and this source",
                    source.successor_timeline_id
                ),
            ),
        })
    }

    /// A timeline whose resource is being deleted.
    fn end(&self) -> Step<Decision> {
        let gone = || Ok(Decision { action: Action::RemoveFinalizer, verdicts: Vec::new() });
        let delete = self.timeline.spec.retention.deletion_policy == DeletionPolicy::Delete;
        let (Some(id), Some(tenant)) =
            (self.status.timeline_id.as_ref().and_then(|id| id.timeline().ok()), self.observed.tenant)
        else {
            return gone();
        };
        if delete && !self.observed.branches.is_empty() {
            let told = self.observed.branches.iter().take(NAMES_TOLD).map(String::as_str).collect::<Vec<_>>();
            let message = format!(
                "{} branch off from it: {}{}; delete them first",
                self.observed.branches.len(),
                told.join(", "),
                if self.observed.branches.len() > NAMES_TOLD { ", ..." } else { "" }
            );
            return Err(not_ready("BlockedByChildren", message));
        }
        let tenant_goes = tenant.metadata.deletion_timestamp.is_some();
        if tenant_goes && tenant.spec.retention.deletion_policy == DeletionPolicy::Delete {
            return gone();
        }
        let served = tenant.spec.activity == Activity::Attached && !tenant_goes;
        if !delete && (!served || self.timeline.spec.source.is_none()) {
            return gone();
        }
        if !served {
            let message = "its tenant is detached, so it cannot be deleted: attach the tenant, or set spec.retention.deletionPolicy to Retain";
            return Err(not_ready("WaitingForTenant", message));
        }
        let owners = self.owners(tenant)?;
        let ended = &self.observed.answers.ended;
        let left: Vec<_> =
            owners.iter().filter(|owner| !matches!(ended.get(&owner.shard.shard), Some(Ok(())))).collect();
        let refusal = left.iter().find_map(|owner| ended.get(&owner.shard.shard)?.as_ref().err());
        if left.is_empty() || (!delete && refusal.is_some_and(|refusal| !refusal.is_transient())) {
            return gone();
        }
        let kind = || if delete { CallKind::Delete(id) } else { CallKind::Unfollow(id) };
        let calls = left.iter().map(|owner| owner.call(kind())).collect();
        Ok(call(calls, refusal, "Deleting", "the timeline is being let go"))
    }
}

/// Why an import does not get on, if it does not.
fn blocked_import(reported: &Reported) -> Option<(&'static str, String)> {
    let source = reported.source.as_ref()?;
    let said = if source.message.is_empty() { &reported.message } else { &source.message };
    match source.state() {
        SourceState::Disconnected => {
            Some(("SourceUnreachable", format!("the source is away or refuses us, tried again: {said}")))
        }
        SourceState::SlotLost | SourceState::Diverged | SourceState::Parted => {
            Some(("ImportFailed", said.clone()))
        }
        _ => None,
    }
}

fn owner<'a>(
    pool: &'a OpenPool,
    tenant: TenantId,
    entry: &'a crate::api::tenant::ShardStatus,
) -> Option<Owner<'a>> {
    let place = entry.attached.as_ref().filter(|_| entry.target.is_none())?;
    let shard = TenantShardId { tenant, shard: entry.shard.parse().ok()? };
    let report =
        pool.pageservers.get(&place.pod)?.report().filter(|report| report.instance == place.instance)?;
    let held = report.shards.get(&shard)?;
    let serves =
        held.generation == place.generation && held.state == ShardState::Active && held.superseded.is_none();
    serves.then(|| Owner {
        shard,
        pod: &place.pod,
        instance: &place.instance,
        generation: place.generation,
        reported: held.timelines.iter().collect(),
    })
}

impl Owner<'_> {
    fn call(&self, kind: CallKind) -> Call {
        Call {
            pod: self.pod.into(),
            instance: self.instance.into(),
            shard: self.shard,
            generation: self.generation,
            kind,
        }
    }

    fn reported(&self, id: TimelineId) -> Option<&Reported> {
        let id = id.to_string();
        self.reported.iter().find(|reported| reported.timeline_id == id).copied()
    }

    /// Whether a timeline has all that its source has, or has no source.
    fn is_current(&self, id: TimelineId) -> bool {
        let source = self.reported(id).and_then(|reported| reported.source.as_ref());
        source.is_none_or(|source| source.state() == SourceState::Streaming)
    }
}

impl Refusal {
    /// Whether asking again may help without that anything was changed.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.reason,
            Reason::Unspecified
                | Reason::OtherInstance
                | Reason::Superseded
                | Reason::NotAttached
                | Reason::Loading
                | Reason::Draining
                | Reason::StorageUnavailable
                | Reason::Mode
                | Reason::TimelineNotReadable
                | Reason::Internal
        )
    }

    /// The reason of a condition, and what to do.
    fn explain(&self) -> (&'static str, String) {
        let (reason, remedy) = match self.reason {
            Reason::SourceUnreachable => (
                "SourceUnreachable",
                "check spec.source.primary, and that network policies let pageservers reach it",
            ),
            Reason::SourceRefused => (
                "SourceRefused",
                "check user, credentials, sslMode, wal_level and max_wal_senders, and that pg_hba.conf lets the role make replication connections",
            ),
            Reason::SourceUnfit => (
                "SourceUnfit",
                "a source is a primary of a supported version with wal_level replica or logical, and with a free slot and walsender",
            ),
            Reason::TimelineConflict => ("TimelineConflict", "leave spec.timelineID out, or name another"),
            Reason::TimelineDeleted => ("TimelineDeleted", "an id is not used again: make another resource"),
            Reason::TimelineUnknown => ("AncestorNotFound", "name an ancestor that the tenant has"),
            Reason::TimelineHasBranches => {
                ("BlockedByBranches", "delete its branches first, or archive them")
            }
            Reason::TimelineArchived => ("AncestorArchived", "set its ancestor's spec.state to Active"),
            Reason::TimelineNotReadable => ("NotReadable", "it goes on when the timeline can be read"),
            Reason::OutOfHistory => ("OutOfHistory", "name a place within the ancestor's history"),
            Reason::Invalid => ("Invalid", "correct the spec"),
            Reason::StorageUnavailable | Reason::StorageUnsafe => {
                ("StorageUnavailable", "it goes on when the bucket answers")
            }
            Reason::TenantDeleted => ("TenantDeleted", "its data is gone"),
            _ => ("PageserverError", "it is tried again"),
        };
        (reason, format!("{}; {remedy}", self.message.trim_end_matches(['.', ' '])))
    }
}

#[cfg(test)]
mod tests;
