//! The operators: they read, look around, decide by the operator's own `decide`, and do one thing of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use model::ShardIndex;
use operator::api::tenant::{DeletionPolicy, TargetReason, Tenant, TenantStatus};
use operator::fleet::rpc::CallError;
use operator::pool::view::{
    Contact, Leaving, OpenPool, Pageserver, PoolView, Report, ReportedShard, ShardState, Storage,
};
use operator::tenant::calls::{Learnt, remember};
use operator::tenant::decide::{Action, Answers, Call, Decision, Draws, FINALIZER, News, Observed, decide};
use rand::RngExt as _;

use super::pods::{Held, Server};
use super::{POOL_UID, START, World};
use crate::broken::Broken;

/// How long a pageserver may be silent before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// An operator process.
#[derive(Default)]
pub struct Operator {
    incarnation: u64,
    cache: Option<(u64, Tenant)>,
    view: Option<PoolView>,
    answers: BTreeMap<ShardIndex, Answers>,
}

/// A call on its way.
#[derive(Clone)]
pub struct Message {
    from: usize,
    incarnation: u64,
    /// What is asked.
    pub call: Call,
}

/// An answer on its way.
pub struct Reply {
    /// To which call.
    pub to: Message,
    /// What it is.
    pub answered: Result<Learnt, CallError>,
}

/// The tenant's resource, and what it was before.
pub struct Etcd {
    version: u64,
    /// `None` once it is gone.
    pub tenant: Option<Tenant>,
    backups: Vec<Tenant>,
}

impl Etcd {
    /// With a tenant that was just made.
    pub fn new(tenant: Tenant) -> Etcd {
        Etcd { version: 1, tenant: Some(tenant), backups: Vec::new() }
    }

    /// Whether the resource, as it was last, knew of data and was to take it with it.
    pub fn was_to_delete(&self) -> bool {
        self.backups.last().is_some_and(|tenant| {
            let mut shards = tenant.status.iter().flat_map(|status| &status.shards);
            tenant.spec.retention.deletion_policy == DeletionPolicy::Delete
                && shards.any(|shard| shard.generation > 0)
        })
    }

    /// A user deletes the resource: it goes once nobody has a finalizer in it.
    pub fn delete(&mut self, policy: DeletionPolicy, now: i64) {
        let Some(tenant) = &self.tenant else { return };
        if tenant.metadata.finalizers.is_none() {
            self.remove();
        } else if tenant.metadata.deletion_timestamp.is_none() {
            self.change(|tenant| {
                tenant.spec.retention.deletion_policy = policy;
                tenant.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(now).expect("a time")));
            });
        }
    }

    fn remove(&mut self) {
        self.version += 1;
        self.tenant = None;
    }

    /// A write to the resource.
    pub fn change(&mut self, change: impl FnOnce(&mut Tenant)) {
        if let Some(tenant) = &mut self.tenant {
            change(tenant);
            self.version += 1;
            self.backups.push(tenant.clone());
        }
    }
}

impl World {
    /// An operator reads, looks around, or decides by what it read and saw before; or all of it at once.
    pub fn operate(&mut self, which: usize) {
        match self.random.random_range(0..8) {
            0 => self.read(which),
            1 => self.look(which),
            2..4 => drop(self.decide_and_do(which)),
            _ => {
                self.read(which);
                self.look(which);
                drop(self.decide_and_do(which));
            }
        }
    }

    /// It reads the resource.
    pub fn read(&mut self, which: usize) {
        let version = self.etcd.version;
        self.operators[which].cache = self.etcd.tenant.clone().map(|tenant| (version, tenant));
    }

    /// It asks all pageservers how they are.
    pub fn look(&mut self, which: usize) {
        let pageservers = self.servers.iter().map(|server| (server.pod.clone(), self.seen(server))).collect();
        self.operators[which].view = Some(PoolView::Open(Arc::new(OpenPool {
            uid: POOL_UID.into(),
            patience: PATIENCE,
            held: false,
            max_shards: 10,
            disk_high_watermark_percent: 85,
            best_effort: false,
            pageservers,
        })));
    }

    fn seen(&self, server: &Server) -> Pageserver {
        let contact = match server.silent_since {
            Some(since) => Contact::Silent(Duration::from_secs((self.now - since).unsigned_abs())),
            None => Contact::Answering(Arc::new(Report {
                instance: server.instance.clone(),
                storage: Storage::Conditional,
                shards: server.held.iter().filter_map(|held| Some((self.shard, reported(held)?))).collect(),
                ..Report::default()
            })),
        };
        Pageserver {
            pod: server.pod.clone(),
            pod_uid: server.pod.clone(),
            ip: None,
            node: None,
            zone: None,
            leaving: server.leaving.then_some(Leaving::Terminating),
            contact,
            placed: 0,
        }
    }

    /// It decides by what it read and saw, and does it. Answers what it was.
    pub fn decide_and_do(&mut self, which: usize) -> Option<Decision> {
        self.drawn += 1;
        let draws = Draws { tenant_id: self.shard.tenant, attempt: format!("attempt-{}", self.drawn) };
        let now = Timestamp::from_second(START + self.now).expect("a time");
        let operator = &self.operators[which];
        let (version, tenant) = operator.cache.as_ref()?;
        let observed = Observed {
            pool: operator.view.as_ref()?,
            id_taken_by: None,
            answers: &operator.answers,
            draws: &draws,
            now,
        };
        let (version, decision) = (*version, decide(tenant, observed));
        self.act(which, version, decision.action.clone());
        Some(decision)
    }

    fn act(&mut self, which: usize, version: u64, action: Action) {
        match action {
            Action::Commit(commit) => self.commit(which, version, commit.status, &commit.news),
            Action::Call(calls) => {
                let incarnation = self.operators[which].incarnation;
                // It may die between any two of them.
                let sent = self.random.random_range(1..=calls.len());
                for call in calls.into_iter().take(sent) {
                    self.story(|| {
                        format!("operator {which} calls {}: {:?} as {}", call.pod, call.kind, call.generation)
                    });
                    self.calls.push(Message { from: which, incarnation, call });
                }
            }
            Action::Wait(_) => {}
            Action::AddFinalizer if version == self.etcd.version => {
                self.etcd.change(|tenant| tenant.metadata.finalizers = Some(vec![FINALIZER.into()]));
            }
            Action::RemoveFinalizer if version == self.etcd.version => {
                self.story(|| format!("operator {which} lets the tenant go"));
                self.etcd.remove();
            }
            Action::AddFinalizer | Action::RemoveFinalizer => self.read(which),
        }
    }

    /// A write to etcd. Its answer may be lost, which the operator can only find out by reading again.
    fn commit(&mut self, which: usize, version: u64, mut status: TenantStatus, news: &[News]) {
        let before = self.etcd.tenant.as_ref().and_then(|tenant| tenant.status.clone()).unwrap_or_default();
        if self.broken == Broken::SameGenerationForNewProcess {
            keep_generation(&mut status, &before);
        }
        if version == self.etcd.version || self.broken == Broken::StatusOverwritten {
            self.story(|| format!("operator {which} writes {}", brief(news)));
            self.check_commit(&before, &status);
            self.etcd.change(|tenant| tenant.status = Some(status));
        }
        if self.random.random_bool(0.8) {
            self.read(which);
        } else {
            self.operators[which].cache = None;
        }
    }

    /// It forgets everything; who is elected next begins anew.
    pub fn crash_operator(&mut self, which: usize) {
        self.story(|| format!("operator {which} dies"));
        let incarnation = self.operators[which].incarnation + 1;
        self.operators[which] = Operator { incarnation, ..Operator::default() };
    }

    /// Etcd is as it was some writes ago. What was given since is forgotten by all but the bucket and the pageservers.
    pub fn restore_etcd(&mut self) {
        let kept = self.etcd.backups.len().saturating_sub(self.random.random_range(1..6));
        let Some(tenant) = self.etcd.backups.get(kept).cloned() else { return };
        self.story(|| format!("etcd is restored to {:?}", tenant.status));
        self.etcd.backups.truncate(kept + 1);
        self.etcd.tenant = Some(tenant);
        self.etcd.version += 1;
        // Its users are started anew, as after any restoration.
        for which in 0..self.operators.len() {
            self.crash_operator(which);
        }
        self.calls.clear();
        self.ledger.restored += 1;
    }

    /// An answer arrives, if who asked is still there.
    pub fn deliver_reply(&mut self) {
        if self.replies.is_empty() {
            return;
        }
        let which = self.random.random_range(0..self.replies.len());
        let Reply { to, answered } = self.replies.swap_remove(which);
        let operator = &mut self.operators[to.from];
        if operator.incarnation == to.incarnation {
            remember(&mut operator.answers, &to.call, &answered);
        }
    }
}

fn reported(held: &Held) -> Option<ReportedShard> {
    // A claim that is being made is reported once it is made.
    held.claim.as_ref()?;
    Some(ReportedShard {
        generation: held.generation.0,
        attempt: held.attempt.clone(),
        state: if held.opened.is_some() { ShardState::Active } else { ShardState::Loading },
        message: String::new(),
        superseded: held.superseded.clone(),
        timelines: Vec::new(),
    })
}

/// The bug: whoever started again gets what the process before had.
fn keep_generation(status: &mut TenantStatus, before: &TenantStatus) {
    for (old, new) in before.shards.iter().zip(&mut status.shards) {
        if let Some(target) = &mut new.target
            && target.reason == TargetReason::Restarted
        {
            target.generation = old.generation;
            new.generation = old.generation;
        }
    }
}

fn brief(news: &[News]) -> String {
    let texts: Vec<String> = news
        .iter()
        .map(|news| match news {
            News::Named(_) => "its name".into(),
            News::Allocated(_, reason, to) => {
                format!("that {} of {} is to be {} ({reason:?})", to.instance, to.pod, to.generation)
            }
            News::Attached(_, place) => format!("that {} has it as {}", place.pod, place.generation),
            News::Configured(_) => "that it is configured".into(),
            News::Released(_) => "that nobody has it".into(),
        })
        .collect();
    texts.join(", ")
}
