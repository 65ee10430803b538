//! What lies outside of processes: time, the bucket, and what befalls requests on their way to it. It is not part of any process, so that what was
//! sent arrives though its sender is dead.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use engine::bucket::MemoryBucket;
use engine::object_path::ObjectPath;
use engine::ports::{
    Body, Bucket, BucketError, Clock, ETag, ListRequest, Listing, Object, ObjectMeta, PutIf,
};
use model::PgTimestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::dice::Dice;
use crate::doctor::without_a_version;
use crate::scenario::{Class, Fault};

/// When every run begins: 2027-01-01.
const EPOCH: Duration = Duration::from_hours(499_656);

/// Faults that are part of the world for good: what the simulation must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Owners are never shown newer claims when they ask whether they are the newest.
    ValidationSkipped,
    /// Sources are told of WAL that is only in memory.
    MemoryReported,
    /// Puts replace whatever is there.
    PutsUnconditional,
    /// A put is not durable until some seconds later; the end of a process takes with it what is not.
    PutsUnsynced,
    /// A put is answered when its object has a name and a length, and some seconds later is all of it durable: the end of a process leaves zeros
    /// in the place of its second half.
    PutsTorn,
    /// A merge of layers leaves a version out.
    MergeDropsVersion,
    /// Nobody finds a tombstone.
    TombstonesHidden,
    /// WAL objects that are not the oldest are missing from listings until some minutes later.
    WalListedLate,
    /// Less history is kept than was asked for, by a record or two.
    CollectedEarly,
    /// An object that a delete names is not the only one to go: the layer before it in the bucket goes, too.
    LayerLost,
}

/// What may be wrong with the disk of a process for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskTrouble {
    /// Nothing more can be written.
    Full,
    /// Nothing can be written or read, and it says so.
    Failing,
    /// What is written of copies of objects is not what is read later, and nothing says so.
    Rotting,
}

/// A number for each process of a run, in the order of their starts.
pub type ProcessId = usize;

/// Counts of what happened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests to the bucket.
    pub requests: u64,
    /// Steps of the scenario, and what followed from them.
    pub operations: BTreeMap<&'static str, u64>,
    /// Faults that befell somebody.
    pub faults: BTreeMap<&'static str, u64>,
    /// Pages and sizes that were compared.
    pub compared: u64,
    /// What was promised.
    pub acknowledged: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// These and those.
    pub fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.compared += other.compared;
        for (mine, theirs) in [
            (&mut self.operations, &other.operations),
            (&mut self.faults, &other.faults),
            (&mut self.acknowledged, &other.acknowledged),
        ] {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
    }
}

/// How a process relates to the world.
#[derive(Clone, Copy, Debug)]
struct Reach {
    alive: bool,
    held_until: Instant,
    no_bucket_until: Instant,
    no_source_until: Instant,
    disk: Option<(DiskTrouble, Instant)>,
    /// Dies when so many more requests were sent.
    dies_in: Option<u64>,
    /// How far its wall clock is ahead.
    clock_ahead: i64,
}

struct State {
    processes: Vec<Reach>,
    armed: Vec<(Class, Fault)>,
    outage: Option<(Instant, bool)>,
    sent: BTreeMap<String, u64>,
    hash: u64,
    story: Option<Vec<String>>,
    violation: Option<String>,
    counts: Counts,
    clock_ahead: i64,
    /// When each claim came to be.
    claims: BTreeMap<u32, Instant>,
    /// Puts that are not durable yet, with what was there before.
    unsynced: Vec<(Instant, String, Option<Bytes>)>,
    /// When WAL objects came to be.
    wal_put: BTreeMap<String, Instant>,
    /// The last that an operator gave to a process.
    last_generation: u32,
}

/// The world of one run.
pub struct World {
    seed: u64,
    began: Instant,
    store: MemoryBucket,
    /// Entries of one page of a listing.
    list_page: usize,
    planted: Option<Planted>,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
enum Request {
    Get(String, Option<Range<u64>>),
    Put(String, Bytes, PutIf),
    List { prefix: String, after: Option<String>, delimiter: bool, limit: Option<usize> },
    Head(String),
    Delete(Vec<String>),
}

enum Answer {
    Object(Object),
    Tag(ETag),
    Listing(Listing),
    Meta(ObjectMeta),
    Done,
}

type Answered = Result<Answer, BucketError>;

/// What becomes of a request.
struct Plan {
    before: Duration,
    after: Duration,
    fault: Option<Fault>,
    /// It arrives although its sender died while it was on its way.
    outlives: bool,
}

/// A process is dead.
#[derive(Debug)]
pub struct Dead;

impl World {
    /// A world at its beginning. With `tells`, it keeps a story.
    pub fn new(seed: u64, planted: Option<Planted>, tells: bool) -> Arc<World> {
        let mut dice = Dice::new(seed, "world");
        let state = State {
            processes: Vec::new(),
            armed: Vec::new(),
            outage: None,
            sent: BTreeMap::new(),
            hash: seed,
            story: tells.then(Vec::new),
            violation: None,
            counts: Counts::default(),
            clock_ahead: 0,
            claims: BTreeMap::new(),
            unsynced: Vec::new(),
            wal_put: BTreeMap::new(),
            last_generation: 0,
        };
        Arc::new(World {
            seed,
            began: Instant::now(),
            store: MemoryBucket::new(Arc::new(StoreClock(Instant::now()))),
            list_page: *dice.pick(&[2, 7, 1000]),
            planted,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The bucket itself, without anything that happens on the way to it.
    pub fn store(&self) -> &MemoryBucket {
        &self.store
    }

    /// An operator allocates a generation: one that nobody had.
    pub fn next_generation(&self) -> model::Generation {
        let mut state = self.state();
        state.last_generation += 1;
        model::Generation(state.last_generation)
    }

    /// What this run follows from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What is wrong with this world.
    pub fn planted(&self) -> Option<Planted> {
        self.planted
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The right time.
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + EPOCH + self.elapsed()
    }

    /// The right time, as Postgres counts it.
    pub fn pg_time(&self) -> PgTimestamp {
        PgTimestamp::from_system_time(self.time())
    }

    /// What the wall clock of a process shows.
    pub fn time_of(&self, process: ProcessId) -> SystemTime {
        let ahead = self.state().processes[process].clock_ahead;
        let shift = Duration::from_secs(ahead.unsigned_abs());
        if ahead >= 0 { self.time() + shift } else { self.time() - shift }
    }

    /// Adds a line to the story, and to what a replay must be equal in.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        let at = self.elapsed().as_millis();
        let mut state = self.state();
        if let Some(story) = &mut state.story {
            let line = line();
            story.push(format!("{:>10}.{:03} {line}", at / 1000, at % 1000));
        }
    }

    fn trace(&self, what: impl Hash) {
        let at = self.elapsed().as_millis() as u64;
        let mut state = self.state();
        let mut hasher = DefaultHasher::new();
        (state.hash, at, what).hash(&mut hasher);
        state.hash = hasher.finish();
    }

    /// Something that must not be. Only the first counts: what follows may follow from it.
    pub fn violate(&self, what: impl FnOnce() -> String) {
        if self.state().violation.is_none() {
            let what = what();
            self.tell(|| format!("WRONG: {what}"));
            self.state().violation = Some(what);
        }
    }

    /// What went wrong, if anything did.
    pub fn violation(&self) -> Option<String> {
        self.state().violation.clone()
    }

    /// Counts something that was done.
    pub fn did(&self, what: &'static str) {
        *self.state().counts.operations.entry(what).or_default() += 1;
    }

    /// Counts a promise.
    pub fn promised(&self, what: &'static str) {
        *self.state().counts.acknowledged.entry(what).or_default() += 1;
    }

    /// Counts a fault.
    pub fn befell(&self, what: &'static str) {
        *self.state().counts.faults.entry(what).or_default() += 1;
    }

    /// Counts comparisons.
    pub fn compared(&self, count: u64) {
        self.state().counts.compared += count;
    }

    /// What the run came to: counts, a number that is the same for the same run only, and the story.
    pub fn summary(&self) -> (Counts, u64, Vec<String>) {
        let mut state = self.state();
        (state.counts.clone(), state.hash, state.story.take().unwrap_or_default())
    }

    /// A process begins.
    pub fn new_process(&self) -> ProcessId {
        let now = Instant::now();
        let mut state = self.state();
        let clock_ahead = state.clock_ahead;
        state.processes.push(Reach {
            alive: true,
            held_until: now,
            no_bucket_until: now,
            no_source_until: now,
            disk: None,
            dies_in: None,
            clock_ahead,
        });
        state.processes.len() - 1
    }

    /// Whether a process is alive.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.state().processes[process].alive
    }

    /// A process ends, with all that it has in memory and on disk.
    pub fn kill(&self, process: ProcessId) {
        let was_alive = std::mem::replace(&mut self.state().processes[process].alive, false);
        if was_alive {
            self.forget_unsynced();
        }
    }

    fn forget_unsynced(&self) {
        let unsynced = std::mem::take(&mut self.state().unsynced);
        for (at, path, before) in unsynced.into_iter().rev() {
            if at.elapsed() >= Duration::from_secs(3) {
                continue;
            }
            let left = match self.planted {
                Some(Planted::PutsTorn) => now(self.store.get(&path, None)).ok().map(|object| {
                    let mut torn = object.bytes.to_vec();
                    torn[object.bytes.len() / 2..].fill(0);
                    torn.into()
                }),
                _ => before,
            };
            now(self.store.delete(std::slice::from_ref(&path))).expect("the path is sound");
            if let Some(left) = left {
                now(self.store.put(&path, Body::Bytes(left), PutIf::Absent)).expect("it was deleted");
            }
        }
    }

    /// A process will die at its n-th request from now on.
    pub fn kill_after(&self, process: ProcessId, requests: u64) {
        self.state().processes[process].dies_in = Some(requests);
    }

    /// A process stands still.
    pub fn hold(&self, process: ProcessId, time: Duration) {
        self.state().processes[process].held_until = Instant::now() + time;
    }

    /// A process does not reach the bucket.
    pub fn cut_off(&self, process: ProcessId, time: Duration) {
        self.state().processes[process].no_bucket_until = Instant::now() + time;
    }

    /// A process does not reach sources.
    pub fn cut_from_source(&self, process: ProcessId, time: Duration) {
        self.state().processes[process].no_source_until = Instant::now() + time;
    }

    /// Whether a process reaches sources.
    pub fn reaches_source(&self, process: ProcessId) -> bool {
        self.state().processes[process].no_source_until <= Instant::now()
    }

    /// The disk of a process is in trouble.
    pub fn trouble_disk(&self, process: ProcessId, trouble: DiskTrouble, time: Duration) {
        self.state().processes[process].disk = Some((trouble, Instant::now() + time));
    }

    /// Whether the disk of a process is in such trouble now.
    pub fn disk_meets(&self, process: ProcessId, trouble: DiskTrouble) -> bool {
        let now = Instant::now();
        self.state().processes[process].disk.is_some_and(|(kind, until)| kind == trouble && until > now)
    }

    /// The bucket is away.
    pub fn outage(&self, time: Duration, silent: bool) {
        self.state().outage = Some((Instant::now() + time, silent));
    }

    /// The next request of a class meets with a fault.
    pub fn arm(&self, class: Class, fault: Fault) {
        self.state().armed.push((class, fault));
    }

    /// The wall clock of a process, and of those that start later, jumps.
    pub fn jump_clock(&self, process: ProcessId, seconds: i64) {
        let mut state = self.state();
        state.clock_ahead += seconds;
        state.processes[process].clock_ahead = state.clock_ahead;
    }

    /// From now on nothing new befalls anybody. What is on its way stays on it.
    pub fn heal(&self) {
        let now = Instant::now();
        let mut state = self.state();
        state.armed.clear();
        state.outage = None;
        for process in &mut state.processes {
            process.held_until = now;
            process.no_bucket_until = now;
            process.no_source_until = now;
            process.disk = None;
            process.dies_in = None;
        }
    }

    /// When the claim of a newer owner came to be, if one did.
    pub fn superseded_since(&self, generation: model::Generation) -> Option<Instant> {
        self.state().claims.range(generation.0 + 1..).map(|(_, at)| *at).min()
    }

    /// Waits while a process stands still; forever when it is dead.
    pub async fn go_on(&self, process: ProcessId) {
        loop {
            let reach = self.state().processes[process];
            if !reach.alive {
                std::future::pending::<()>().await;
            }
            if reach.held_until <= Instant::now() {
                return;
            }
            // Short sleeps, since healing ends a hold.
            tokio::time::sleep_until(reach.held_until.min(Instant::now() + Duration::from_secs(1))).await;
        }
    }

    /// Decides what befalls a request.
    fn plan(&self, process: ProcessId, request: &Request) -> Plan {
        let mut state = self.state();
        let class = class_of(request);
        let path = request.path();
        let name = format!("{} {path}", request.name());
        let count = state.sent.entry(name.clone()).or_default();
        *count += 1;
        // Of its own name and number alone, so that a step less changes as little as may be.
        let mut dice = Dice::new(self.seed ^ *count, &name);
        let time = |dice: &mut Dice| {
            let usual = dice.from(1..20);
            Duration::from_millis(if dice.permille(20) { usual * 50 } else { usual })
        };
        let (before, after) = (time(&mut dice), time(&mut dice));
        let fits = |armed: &Class| {
            *armed == class || *armed == Class::Any || (*armed == Class::Put && is_put(class))
        };
        let armed = state.armed.iter().position(|(armed, _)| fits(armed));
        let fault = armed.map(|at| state.armed.remove(at).1);
        state.counts.requests += 1;
        let reach = &mut state.processes[process];
        if let Some(left) = reach.dies_in.as_mut() {
            if *left == 0 {
                reach.dies_in = None;
                drop(state);
                self.befell("crash at a request");
                self.kill(process);
            } else {
                *left -= 1;
            }
        }
        Plan { before, after, fault, outlives: dice.permille(500) }
    }

    async fn ask(self: &Arc<Self>, process: ProcessId, request: Request) -> Answered {
        self.go_on(process).await;
        let plan = self.plan(process, &request);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(Arc::clone(self).carry_out(process, request, plan, answer));
        let answered = match answered.await {
            Ok(answered) => answered,
            Err(_) => std::future::pending().await, // it is lost, and nobody says so
        };
        self.go_on(process).await;
        answered
    }

    async fn carry_out(
        self: Arc<Self>,
        process: ProcessId,
        request: Request,
        plan: Plan,
        answer: oneshot::Sender<Answered>,
    ) {
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        tokio::time::sleep(plan.before).await;
        match plan.fault {
            Some(Fault::Fail) => {
                self.befell("request failed");
                let _ = answer.send(Err(request.unavailable("it was made to fail")));
                return;
            }
            Some(Fault::Late(delay)) => {
                self.befell("request arrived late");
                let _ = answer.send(Err(request.unavailable("it is still on its way")));
                tokio::time::sleep(ms(delay)).await;
                let _ = self.arrive(process, &request);
                return;
            }
            Some(Fault::Slow(delay)) => {
                self.befell("request was slow");
                tokio::time::sleep(ms(delay)).await;
            }
            _ => {}
        }
        let (outage, no_bucket_until, alive) = {
            let state = self.state();
            let reach = state.processes[process];
            (state.outage, reach.no_bucket_until, reach.alive)
        };
        let is_silent = match outage.filter(|(until, _)| *until > Instant::now()) {
            Some((_, silent)) => Some(silent),
            None => (no_bucket_until > Instant::now()).then_some(true),
        };
        match is_silent {
            Some(true) => {
                self.befell("request into silence");
                // A connection that hangs is broken at last, long after whoever waits gave up.
                tokio::time::sleep(Duration::from_hours(1)).await;
                drop(answer);
                return;
            }
            Some(false) => {
                self.befell("request refused");
                let _ = answer.send(Err(request.unavailable("the bucket is away")));
                return;
            }
            None => {}
        }
        if !alive && !plan.outlives {
            return;
        }
        let answered = self.arrive(process, &request);
        match plan.fault {
            Some(Fault::LoseAnswer) => {
                self.befell("answer was lost");
                let _ = answer.send(Err(request.unavailable("its answer was lost")));
                return;
            }
            Some(Fault::SlowAnswer(delay)) => {
                self.befell("answer was slow");
                tokio::time::sleep(ms(delay)).await;
            }
            Some(Fault::Twice(delay)) => {
                self.befell("request arrived twice");
                let world = Arc::clone(&self);
                tokio::spawn(async move {
                    tokio::time::sleep(ms(delay)).await;
                    let _ = world.arrive(process, &request);
                });
            }
            Some(Fault::CutShort) => {
                if let Ok(Answer::Object(mut object)) = answered {
                    self.befell("answer was cut short");
                    object.bytes.truncate(object.bytes.len() / 2);
                    let _ = answer.send(Ok(Answer::Object(object)));
                    return;
                }
            }
            _ => {}
        }
        tokio::time::sleep(plan.after).await;
        let _ = answer.send(answered);
    }

    /// The request reaches the bucket, and is done.
    fn arrive(&self, process: ProcessId, request: &Request) -> Answered {
        let answered = match request {
            Request::Get(path, range) => now(self.store.get(path, range.clone())).map(Answer::Object),
            Request::Put(path, body, condition) => self.put(path, body, condition).map(Answer::Tag),
            Request::List { prefix, after, delimiter, limit } => {
                let limit = Some(limit.map_or(self.list_page, |limit| limit.min(self.list_page)));
                let request = ListRequest { prefix, after: after.as_deref(), delimiter: *delimiter, limit };
                now(self.store.list(request))
                    .map(|listing| Answer::Listing(self.as_listed(after.is_some(), listing)))
            }
            Request::Head(path) if self.is_hidden(path) => Err(BucketError::NotFound(path.clone())),
            Request::Head(path) => now(self.store.head(path)).map(Answer::Meta),
            Request::Delete(paths) => {
                if self.planted == Some(Planted::LayerLost)
                    && let Some(lost) = self.neighbour(&paths[0])
                {
                    now(self.store.delete(&[lost]))?;
                }
                now(self.store.delete(paths)).map(|()| Answer::Done)
            }
        };
        let outcome = outcome(&answered);
        // Claims tell the process id of whoever runs this.
        let size = if request.path().contains("/claims/") { 0 } else { request.size() };
        self.trace((process, request.name(), request.path(), size, &outcome));
        self.tell(|| format!("p{process} {} {} {outcome}", request.name(), request.path()));
        answered
    }

    fn put(&self, path: &str, body: &Bytes, condition: &PutIf) -> Result<ETag, BucketError> {
        let parsed = path.parse::<ObjectPath>();
        if self.planted == Some(Planted::PutsUnconditional) && matches!(parsed, Ok(ObjectPath::Index { .. }))
        {
            now(self.store.delete(&[path.to_owned()]))?;
            return now(self.store.put(path, Body::Bytes(body.clone()), PutIf::Absent));
        }
        let is_unsynced = match self.planted {
            Some(Planted::PutsUnsynced) => true,
            Some(Planted::PutsTorn) => {
                matches!(parsed, Ok(ObjectPath::Layer { .. } | ObjectPath::Wal { .. }))
            }
            _ => false,
        };
        let before = is_unsynced.then(|| now(self.store.get(path, None)).ok().map(|object| object.bytes));
        let body = match &parsed {
            Ok(ObjectPath::Layer { name, .. })
                if self.planted == Some(Planted::MergeDropsVersion)
                    && name.layer.is_delta()
                    && !name.layer.is_l0() =>
            {
                without_a_version(body).unwrap_or_else(|| body.clone())
            }
            _ => body.clone(),
        };
        let tag = now(self.store.put(path, Body::Bytes(body), condition.clone()))?;
        if let Some(before) = before {
            self.state().unsynced.push((Instant::now(), path.into(), before));
        }
        match parsed {
            Ok(ObjectPath::Claim { generation, .. }) => {
                self.state().claims.entry(generation.0).or_insert_with(Instant::now);
            }
            Ok(ObjectPath::Wal { .. }) => {
                self.state().wal_put.insert(path.into(), Instant::now());
            }
            _ => {}
        }
        Ok(tag)
    }

    /// A layer beside one that is deleted.
    fn neighbour(&self, path: &str) -> Option<String> {
        let Ok(ObjectPath::Layer { .. }) = path.parse() else { return None };
        let prefix = &path[..=path.rfind('/')?];
        let all = now(self.store.list(ListRequest { prefix, ..ListRequest::default() })).ok()?.objects;
        let is_layer = |path: &str| matches!(path.parse(), Ok(ObjectPath::Layer { .. }));
        all.into_iter().map(|object| object.path).find(|other| other != path && is_layer(other))
    }

    fn is_hidden(&self, path: &str) -> bool {
        self.planted == Some(Planted::TombstonesHidden) && path.contains("/tombstones/")
    }

    /// A listing as this world shows it.
    fn as_listed(&self, from_a_place: bool, mut listing: Listing) -> Listing {
        match self.planted {
            // Who validates lists from its own claim on.
            Some(Planted::ValidationSkipped) if from_a_place && are_claims(&listing) => {
                listing.objects.truncate(1);
                listing.next = None;
            }
            Some(Planted::TombstonesHidden) => listing.objects.retain(|object| !self.is_hidden(&object.path)),
            Some(Planted::WalListedLate) => {
                let state = self.state();
                let is_new = |path: &str| {
                    state.wal_put.get(path).is_some_and(|at| at.elapsed() < Duration::from_mins(5))
                };
                listing.objects.retain(|object| !is_new(&object.path));
            }
            _ => {}
        }
        listing
    }
}

impl Request {
    fn name(&self) -> &'static str {
        match self {
            Request::Get(..) => "get",
            Request::Put(..) => "put",
            Request::List { .. } => "list",
            Request::Head(..) => "head",
            Request::Delete(..) => "delete",
        }
    }

    fn path(&self) -> &str {
        match self {
            Request::Get(path, _) | Request::Put(path, ..) | Request::Head(path) => path,
            Request::List { prefix, .. } => prefix,
            Request::Delete(paths) => paths.first().map_or("", String::as_str),
        }
    }

    fn size(&self) -> usize {
        match self {
            Request::Put(_, body, _) => body.len(),
            Request::Delete(paths) => paths.len(),
            _ => 0,
        }
    }

    fn unavailable(&self, why: &'static str) -> BucketError {
        BucketError::Unavailable { operation: self.name(), path: self.path().into(), source: why.into() }
    }
}

fn are_claims(listing: &Listing) -> bool {
    listing.objects.first().is_some_and(|object| object.path.contains("/claims/"))
}

fn class_of(request: &Request) -> Class {
    match request {
        Request::Get(..) | Request::Head(..) => Class::Get,
        Request::List { .. } => Class::List,
        Request::Delete(..) => Class::Delete,
        Request::Put(path, ..) => match path.parse() {
            Ok(ObjectPath::Index { .. }) => Class::PutIndex,
            Ok(ObjectPath::Layer { .. }) => Class::PutLayer,
            Ok(ObjectPath::Wal { .. }) => Class::PutWal,
            Ok(ObjectPath::Claim { .. }) => Class::PutClaim,
            _ => Class::Put,
        },
    }
}

fn is_put(class: Class) -> bool {
    matches!(class, Class::PutIndex | Class::PutLayer | Class::PutWal | Class::PutClaim)
}

fn outcome(answered: &Answered) -> String {
    match answered {
        Ok(Answer::Object(object)) => format!("{} bytes", object.bytes.len()),
        Ok(Answer::Tag(_) | Answer::Done) => "done".into(),
        Ok(Answer::Listing(listing)) => format!("{} entries", listing.objects.len() + listing.prefixes.len()),
        Ok(Answer::Meta(_)) => "there".into(),
        Err(BucketError::NotFound(_)) => "not found".into(),
        Err(BucketError::Precondition(_)) => "precondition".into(),
        Err(_) => "error".into(),
    }
}

/// The answer of the bucket in memory, which never waits.
pub fn now<T>(request: impl Future<Output = T>) -> T {
    let mut request = std::pin::pin!(request);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match request.as_mut().poll(&mut context) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("a bucket in memory answers at once"),
    }
}

/// The clock of the bucket, which is right.
#[derive(Debug)]
struct StoreClock(Instant);

impl Clock for StoreClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + EPOCH + self.0.elapsed()
    }
}

/// The wall clock of one process.
#[derive(Clone)]
pub struct SimClock {
    world: Arc<World>,
    process: ProcessId,
}

impl SimClock {
    /// Of `process`.
    pub fn new(world: Arc<World>, process: ProcessId) -> SimClock {
        SimClock { world, process }
    }
}

impl std::fmt::Debug for SimClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SimClock").field(&self.process).finish()
    }
}

impl Clock for SimClock {
    fn now(&self) -> SystemTime {
        self.world.time_of(self.process)
    }
}

/// The bucket, as one process reaches it.
pub struct SimBucket {
    world: Arc<World>,
    process: ProcessId,
}

impl SimBucket {
    /// As `process` reaches it.
    pub fn new(world: Arc<World>, process: ProcessId) -> SimBucket {
        SimBucket { world, process }
    }
}

#[async_trait]
impl Bucket for SimBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        match self.world.ask(self.process, Request::Get(path.into(), range)).await? {
            Answer::Object(object) => Ok(object),
            _ => unreachable!("a get is answered with an object"),
        }
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let bytes = match body {
            Body::Bytes(bytes) => bytes,
            Body::File { file, length } => {
                let mut bytes = vec![0; length as usize];
                file.read_at(&mut bytes, 0).map_err(|error| BucketError::Unavailable {
                    operation: "put",
                    path: path.into(),
                    source: error.into(),
                })?;
                bytes.into()
            }
        };
        match self.world.ask(self.process, Request::Put(path.into(), bytes, condition)).await? {
            Answer::Tag(tag) => Ok(tag),
            _ => unreachable!("a put is answered with a tag"),
        }
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        let ListRequest { prefix, after, delimiter, limit } = request;
        let request = Request::List { prefix: prefix.into(), after: after.map(Into::into), delimiter, limit };
        match self.world.ask(self.process, request).await? {
            Answer::Listing(listing) => Ok(listing),
            _ => unreachable!("a list is answered with a listing"),
        }
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        match self.world.ask(self.process, Request::Head(path.into())).await? {
            Answer::Meta(meta) => Ok(meta),
            _ => unreachable!("a head is answered with what is known of an object"),
        }
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        self.world.ask(self.process, Request::Delete(paths.to_vec())).await.map(drop)
    }
}
