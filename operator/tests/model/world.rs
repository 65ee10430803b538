//! Everything that there is, and what may happen to it.

mod ledger;
mod operators;
mod pods;

use std::collections::BTreeSet;

use model::{Generation, Lsn, TenantId, TenantShardId};
use operator::api::tenant::{Activity, DeletionPolicy, Tenant, TenantSpec};
use operator::tenant::decide::{Action, Decision, ShardStanding, Standing};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::broken::Broken;
use crate::bucket::{Fate, SteppedBucket};
use crate::source::Source;
use ledger::Ledger;
use operators::{Etcd, Message, Operator, Reply};
use pods::Server;

/// Steps in which anything may happen.
pub const STEPS: usize = 300;
/// Rounds after the last fault within which all must be well.
const CALM_ROUNDS: usize = 400;
/// How long each takes, and how many requests a pageserver makes in it at most.
const CALM_SECONDS: i64 = 3;
const CALM_REQUESTS: usize = 10;
/// Rounds without any change after which all is settled.
const SETTLED_ROUNDS: usize = 4;
const POOL_UID: &str = "pool";
/// When the world begins, in seconds since 1970.
const START: i64 = 1_800_000_000;

/// What becomes of a source that dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceFate {
    /// A standby goes on that has all that any owner has of it.
    HasAll,
    /// One goes on that has what was reported to be safe, and perhaps no more.
    LacksWhatWasNotReported,
    /// A cluster goes on that was restored from what the owner has; another restore of the same place may come instead.
    Restored,
}

/// The model.
pub struct World {
    seed: u64,
    /// Drawn anew for each step, so that steps can be left out without changing the others.
    random: SmallRng,
    broken: Broken,
    story: Option<Vec<String>>,
    now: i64,
    drawn: u64,
    calm: bool,
    /// What users want most.
    favourite: u32,
    /// A bit for each kind of fault that happens.
    faults: u32,
    /// What becomes of the source when it dies.
    fate: SourceFate,
    shard: TenantShardId,
    bucket: SteppedBucket,
    source: Source,
    etcd: Etcd,
    servers: Vec<Server>,
    operators: Vec<Operator>,
    calls: Vec<Message>,
    replies: Vec<Reply>,
    ledger: Ledger,
    violation: Option<String>,
}

/// What became of a world.
pub struct End {
    /// What must not be, if it was.
    pub violation: Option<String>,
    /// What happened, if that was to be told.
    pub story: Vec<String>,
}

impl World {
    /// Plays a seed: first anything may happen, then nothing bad happens any more and all must become well.
    pub fn play(seed: u64, broken: Broken, skipped: &BTreeSet<usize>, tell: bool) -> End {
        let mut world = World::new(seed, broken, tell);
        let violation = world.run(skipped).err();
        End { violation, story: world.story.unwrap_or_default() }
    }

    fn new(seed: u64, broken: Broken, tell: bool) -> World {
        let mut random = SmallRng::seed_from_u64(seed);
        World {
            seed,
            favourite: random.random_range(pods::FIRST_WISH..pods::LAST_WISH),
            faults: random.random(),
            fate: match random.random_range(0..10) {
                0..6 => SourceFate::HasAll,
                6..8 => SourceFate::LacksWhatWasNotReported,
                _ => SourceFate::Restored,
            },
            random,
            broken,
            story: tell.then(Vec::new),
            now: 0,
            drawn: 0,
            calm: false,
            shard: TenantShardId::unsharded(TenantId([7; 16])),
            bucket: SteppedBucket::new(broken),
            source: Source::new(),
            etcd: Etcd::new(new_tenant()),
            servers: (0..3).map(Server::new).collect(),
            operators: vec![Operator::default(), Operator::default()],
            calls: Vec::new(),
            replies: Vec::new(),
            ledger: Ledger::default(),
            violation: None,
        }
    }

    fn run(&mut self, skipped: &BTreeSet<usize>) -> Result<(), String> {
        for step in (0..STEPS).filter(|step| !skipped.contains(step)) {
            self.draw_anew(step);
            self.step();
            self.check()?;
        }
        self.draw_anew(STEPS);
        self.heal();
        let mut settled = 0;
        for round in 1..=CALM_ROUNDS {
            self.draw_anew(STEPS + round);
            settled = if self.calm_round() { settled + 1 } else { 0 };
            self.check()?;
            if settled == SETTLED_ROUNDS {
                return self.check_end();
            }
        }
        let status = self.etcd.tenant.as_ref().map(|tenant| &tenant.status);
        let (told, end) = (self.source.told, self.source.end);
        Err(format!(
            "not well after {CALM_ROUNDS} rounds without faults: the source was told {told} of {end}, {status:?}"
        ))
    }

    fn draw_anew(&mut self, step: usize) {
        self.random = SmallRng::seed_from_u64(self.seed.wrapping_mul(10_007).wrapping_add(step as u64));
    }

    fn check(&mut self) -> Result<(), String> {
        self.violation.take().map_or(Ok(()), Err)
    }

    fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn story(&mut self, tell: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let text = tell();
            // What is repeated says nothing new.
            if !story.last().is_some_and(|last| last.ends_with(&text)) {
                story.push(format!("{:>5} s  {text}", self.now));
            }
        }
    }

    fn step(&mut self) {
        self.now += self.random.random_range(0..3);
        let server = self.random.random_range(0..self.servers.len());
        let operator = self.random.random_range(0..self.operators.len());
        match self.random.random_range(0..1000) {
            0..200 => self.operate(operator),
            200..320 => self.deliver_call(),
            320..380 => self.deliver_reply(),
            380..780 => {
                for _ in 0..self.random.random_range(1..9) {
                    self.work(server);
                }
            }
            780..830 => self.source_writes(),
            830..860 => self.bucket_fault(),
            860..890 => self.late_request_lands(),
            fault => self.fault(fault, server, operator),
        }
    }

    /// In each world only some kinds of faults happen, others in each: so that some come far enough to go wrong in ways that take long.
    fn fault(&mut self, fault: u32, server: usize, operator: usize) {
        let (kind, up) = (fault % 10, self.servers[server].up);
        if self.faults & (1 << kind) == 0 {
            return;
        }
        match kind {
            0 => self.maybe(0.3, up, |world| world.kill_or_start(server)),
            1 | 2 => self.maybe(0.5, !self.servers[server].cut_off, |world| world.cut_off_or_heal(server)),
            3 | 4 => self.maybe(0.5, !self.servers[server].paused, |world| world.pause_or_resume(server)),
            5 => self.crash_operator(operator),
            6 if self.source.followed => self.swap_restores(),
            6 if self.source.down && self.fate != SourceFate::Restored => self.source_goes_on(),
            6 if !self.source.down && self.source.restored.is_none() => self.source_dies(),
            6 => {}
            7 if self.random.random_bool(0.3) => self.user_acts(),
            7 => self.servers[server].leaving ^= true,
            8 => self.restore_etcd(),
            _ if self.random.random_bool(0.5) => drop(self.take_call()),
            _ => self.repeat_call(),
        }
    }

    /// What is well goes wrong sometimes; what is wrong becomes well at once, so that most is well most of the time.
    fn maybe(&mut self, chance: f64, is_well: bool, toggle: impl FnOnce(&mut World)) {
        if !is_well || self.random.random_bool(chance) {
            toggle(self);
        }
    }

    // What may happen.

    fn source_writes(&mut self) {
        let (records, commits) = (self.random.random_range(1..6), self.random.random_bool(0.7));
        self.source.write(records, commits);
    }

    fn source_dies(&mut self) {
        self.source.die();
        self.story(|| "the source dies".into());
    }

    /// The source is replaced by another cluster that was restored at the same place, or that one by the first.
    fn swap_restores(&mut self) {
        self.source.impostor ^= true;
        self.source.stream = None;
        let impostor = self.source.impostor;
        self.story(|| {
            format!("the source is {} restore", if impostor { "replaced by another" } else { "the first" })
        });
    }

    /// A standby goes on that has all that the keeper of its history may count on, or all that was reported.
    fn source_goes_on(&mut self) {
        let Some(safe) = self.safe_end() else { return };
        let lacks = self.fate == SourceFate::LacksWhatWasNotReported;
        let safe = if lacks { self.source.told } else { safe };
        // Whoever goes on has seen the ones before.
        let (_, last_line) = *self.source.lines.last().expect("there is a first");
        let (from, to) = (safe.max(last_line).0 / 8, self.source.end.0 / 8);
        let at = Lsn(8 * self.random.random_range(from..=to.max(from)));
        self.source.fail_over(at);
        if lacks {
            self.ledger.cut(at);
        }
        self.story(|| format!("a standby of the source goes on from {at}"));
    }

    fn repeat_call(&mut self) {
        if let Some(call) = self.take_call() {
            self.calls.push(call.clone());
            self.calls.push(call);
        }
    }

    fn bucket_fault(&mut self) {
        let fates = [Fate::Refused, Fate::AnswerLost, Fate::Late, Fate::Late];
        let count = self.random.random_range(1..4);
        let drawn: Vec<Fate> = (0..count).map(|_| fates[self.random.random_range(0..fates.len())]).collect();
        self.story(|| format!("the bucket's next requests: {drawn:?}"));
        self.bucket.next_fates(drawn);
    }

    fn late_request_lands(&mut self) {
        let late = self.bucket.late();
        if late > 0 {
            let landed = self.bucket.land(self.random.random_range(0..late));
            self.story(|| landed);
        }
    }

    fn kill_or_start(&mut self, which: usize) {
        self.let_go(which);
        self.drawn += 1;
        let (now, drawn) = (self.now, self.drawn);
        let server = &mut self.servers[which];
        server.up = !server.up;
        if server.up {
            server.instance = format!("{which}.{drawn}");
        }
        server.note_contact(now);
        let up = server.up;
        self.story(|| format!("ps-{which} {}", if up { "starts" } else { "is killed" }));
    }

    fn cut_off_or_heal(&mut self, which: usize) {
        let now = self.now;
        let server = &mut self.servers[which];
        server.cut_off = !server.cut_off;
        server.note_contact(now);
        let cut_off = server.cut_off;
        self.story(|| {
            format!("ps-{which} is {} the operators", if cut_off { "cut off from" } else { "back with" })
        });
    }

    fn pause_or_resume(&mut self, which: usize) {
        let now = self.now;
        let server = &mut self.servers[which];
        server.paused = !server.paused;
        server.note_contact(now);
        let paused = server.paused;
        self.story(|| format!("ps-{which} {}", if paused { "stands still" } else { "goes on" }));
    }

    fn user_acts(&mut self) {
        let choice = self.random.random_range(0..8);
        self.story(|| {
            format!("the user {}", ["deletes the tenant", "changes the activity"][usize::from(choice < 6)])
        });
        match choice {
            0..6 => self.etcd.change(|tenant| {
                let activity = &mut tenant.spec.activity;
                *activity = match activity {
                    Activity::Attached => Activity::Detached,
                    Activity::Detached => Activity::Attached,
                };
            }),
            6 => self.etcd.delete(DeletionPolicy::Delete, START + self.now),
            _ => self.etcd.delete(DeletionPolicy::Retain, START + self.now),
        }
    }

    // The end.

    /// Nothing bad happens any more, but that one pageserver may stay as it is for good. The source shuts down.
    fn heal(&mut self) {
        self.story(|| "no more faults; the source shuts down".into());
        self.calm = true;
        self.bucket.next_fates([]);
        while self.bucket.late() > 0 {
            self.late_request_lands();
        }
        let left_alone = self.random.random_range(0..2 * self.servers.len());
        for which in 0..self.servers.len() {
            self.servers[which].leaving = false;
            if self.servers[which].cut_off && which != left_alone {
                self.cut_off_or_heal(which);
            }
            if self.servers[which].paused && which != left_alone {
                self.pause_or_resume(which);
            }
            if !self.servers[which].up && which != left_alone {
                self.kill_or_start(which);
            }
        }
        self.etcd.change(|tenant| tenant.spec.activity = Activity::Attached);
        // A primary that comes back is the same.
        self.source.down = false;
        self.source.impostor = false;
        self.source.write(1, false);
        self.source.stopping = true;
    }

    /// One operator and all pageservers do all that they can. Answers whether nothing is to be done any more.
    fn calm_round(&mut self) -> bool {
        self.now += CALM_SECONDS;
        let stream = self.source.stream.clone();
        while !self.calls.is_empty() {
            self.deliver_call();
        }
        for which in 0..self.servers.len() {
            for _ in 0..CALM_REQUESTS {
                if self.servers[which].is_busy() || self.random.random_bool(0.2) {
                    self.work(which);
                }
            }
        }
        while !self.replies.is_empty() {
            self.deliver_reply();
        }
        self.read(0);
        self.look(0);
        let decision = self.decide_and_do(0);
        stream == self.source.stream && self.is_well(decision.as_ref())
    }

    /// Whether all is as the user wants it, or as it has to be.
    fn is_well(&self, decision: Option<&Decision>) -> bool {
        let Some(tenant) = &self.etcd.tenant else { return true };
        let Some(Decision { action: Action::Wait(_), standing: Standing::Shards(shards) }) = decision else {
            return false;
        };
        if tenant.metadata.deletion_timestamp.is_some() {
            return false;
        }
        shards.values().all(|standing| match standing {
            ShardStanding::Served(pod) => self.source.told == self.source.end && self.has_slot(pod),
            // Etcd was restored to before the deletion, which nothing undoes.
            ShardStanding::Stuck(stuck) => stuck.reason == "TenantDeleted" && self.is_being_deleted(),
            _ => false,
        })
    }

    fn has_slot(&self, pod: &str) -> bool {
        (0..self.servers.len()).any(|which| self.servers[which].pod == pod && self.streams(which))
    }

    /// The shard is where the status says, and its owner is the newest. Or all is gone.
    fn check_end(&mut self) -> Result<(), String> {
        let Some(tenant) = &self.etcd.tenant else { return self.check_gone() };
        if self.is_being_deleted() {
            return Ok(());
        }
        let status = tenant.status.clone().unwrap_or_default();
        let place = status.shards[0].attached.clone().ok_or("nobody has the shard")?;
        let which =
            self.servers.iter().position(|server| server.pod == place.pod).ok_or("there is no such pod")?;
        let held =
            self.servers[which].held.as_ref().filter(|held| held.generation == Generation(place.generation));
        let held = held.ok_or_else(|| format!("{place:?} does not have the shard"))?;
        if held.superseded.is_some() {
            return Err(format!("{place:?} is superseded"));
        }
        self.check_named()
    }

    /// Data that was to be deleted is, and nobody can bring it back.
    fn check_gone(&self) -> Result<(), String> {
        if self.etcd.was_to_delete() && !self.is_being_deleted() {
            return Err("the tenant was let go, and its data can be owned again".into());
        }
        Ok(())
    }
}

fn new_tenant() -> Tenant {
    let spec: TenantSpec =
        serde_json::from_value(serde_json::json!({"poolRef": {"name": "main"}})).expect("a tenant's spec");
    Tenant::new("acme", spec)
}
