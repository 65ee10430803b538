//! What lies outside of processes: time, the bucket, and what befalls requests on their way to it. It is not part of any process, so that what was
//! sent arrives though its sender is dead.

mod bucket;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use engine::bucket::MemoryBucket;
use engine::ports::{Body, Bucket as _, Clock, PutIf};
use model::PgTimestamp;
use tokio::time::Instant;

pub use bucket::{SimBucket, now};

use crate::dice::Dice;
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
