//! Playing a scenario.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use engine::as_of::ReadError;
use engine::import::LayerOut as _;
use engine::import_session::{ImportPlan, ImportedBase};
use engine::tenant::{BranchPoint, ChangeError, NotFound};
use engine::timeline::Timeline;
use engine::timeline::lease::{LeaseError, OutOfHistory};
use model::{Key, Lsn, PgMajor, PgTimestamp, Tli, WalSegmentSize};
use tokio::time::Instant;

use crate::check::{self, Reader, story};
use crate::cluster::{Base, Cluster, SEGMENT, SYSTEM};
use crate::dice::Dice;
use crate::ledger::{Ledger, Sure, shard};
use crate::process::{Process, Settings};
use crate::scenario::{Point, Scenario, What};
use crate::world::{Counts, Planted, World};

/// How long what is under way may take once nothing stands in its way.
const PATIENCE: Duration = Duration::from_hours(3);

/// Lines that a run has at most: reading them all is what a run takes its time for.
const MOST_LINES: usize = 8;

/// How a run went.
#[derive(Clone, Debug)]
pub struct Report {
    /// What must not have been, if anything was.
    pub violation: Option<String>,
    /// What happened how often.
    pub counts: Counts,
    /// The same for the same run only.
    pub hash: u64,
    /// How long it took in its own time.
    pub simulated: Duration,
    /// All that happened, if that was asked for.
    pub story: Vec<String>,
}

/// Plays a scenario. With `tells`, keeps the story.
pub fn play(scenario: &Scenario, planted: Option<Planted>, tells: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O can be made");
    runtime.block_on(async {
        let world = World::new(scenario.seed, planted, tells);
        let run = Run::new(&world, scenario.seed).await;
        run.play(scenario).await;
        let violation = world.violation();
        let simulated = world.elapsed();
        let (counts, hash, story) = world.summary();
        Report { violation, counts, hash, simulated, story }
    })
}

struct Run {
    world: Arc<World>,
    ledger: Arc<Ledger>,
    settings: Settings,
    /// All that ever were; the last one is the newest.
    processes: Mutex<Vec<Arc<Process>>>,
    /// A process is about to start.
    starting: Mutex<u32>,
}

impl Run {
    /// A tenant with one timeline, whose base is imported.
    async fn new(world: &Arc<World>, seed: u64) -> Arc<Run> {
        let mut dice = Dice::new(seed, "base");
        let pg = *dice.pick(&PgMajor::ALL);
        let (cluster, base) = Cluster::new(pg, &mut dice, world.pg_time());
        let ledger = Arc::new(Ledger::new(cluster));
        let run = Arc::new(Run {
            world: Arc::clone(world),
            ledger,
            settings: Settings::of(seed),
            processes: Mutex::default(),
            starting: Mutex::new(0),
        });
        run.start().await;
        let process = run.newest().expect("nothing is in its way yet");
        match run.import(&process, pg, base).await {
            Ok(timeline) => {
                run.ledger.lines()[0].made = Sure::Yes;
                process.follow(0, timeline);
            }
            Err(error) => world.violate(|| format!("the base was not imported: {}", story(&error))),
        }
        run
    }

    async fn import(&self, process: &Process, pg: PgMajor, base: Base) -> Result<Timeline, ChangeError> {
        let plan = ImportPlan {
            pg,
            system_identifier: SYSTEM,
            wal_segment_size: WalSegmentSize::new(SEGMENT).expect("1 MiB is one"),
            data_checksums: false,
            tli: Tli(1),
            source: None,
        };
        let id = self.ledger.lines()[0].id;
        let session = process.tenants.begin_import(shard().tenant, id, plan).await?;
        let mut layers = session.layers(base.lsn);
        let failed = |error: engine::import::LayerOutError| ChangeError::Import(error.to_string());
        layers.begin(Key::ALL).await.map_err(failed)?;
        for (key, value) in &base.values {
            layers.put(*key, value).await.map_err(failed)?;
        }
        layers.finish().await.map_err(failed)?;
        let base = ImportedBase { base_lsn: base.lsn, readable_from: base.lsn, tli: Tli(1) };
        session.finish(base, layers).await
    }

    fn processes(&self) -> Vec<Arc<Process>> {
        self.processes.lock().expect("no holder panics").clone()
    }

    /// The newest process that is alive.
    fn newest(&self) -> Option<Arc<Process>> {
        self.processes().into_iter().rev().find(|process| process.is_alive())
    }

    /// Starts a process; answers when it has the tenant, or is gone.
    async fn start(self: &Arc<Self>) {
        *self.starting.lock().expect("no holder panics") += 1;
        let process = Process::new(&self.world, &self.ledger, &self.settings);
        self.processes.lock().expect("no holder panics").push(Arc::clone(&process));
        let (done, attached) = tokio::sync::oneshot::channel();
        let attaching = Arc::clone(&process);
        process.spawn(async move {
            let _ = done.send(attaching.attach().await);
        });
        if !attached.await.unwrap_or(false) {
            process.kill();
        }
        *self.starting.lock().expect("no holder panics") -= 1;
    }

    fn start_in(self: &Arc<Self>, away: Duration) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(away).await;
            this.start().await;
        });
    }

    async fn play(self: &Arc<Self>, scenario: &Scenario) {
        for (number, step) in scenario.steps.iter().enumerate() {
            // Who looks around every second does so a hundred thousand times a day.
            let most = if self.settings.heat { 3_600_000 } else { u64::MAX };
            tokio::time::sleep(Duration::from_millis(step.after.min(most))).await;
            if self.world.violation().is_some() {
                return;
            }
            if self.newest().is_none() && *self.starting.lock().expect("no holder panics") == 0 {
                self.start_in(Duration::from_secs(1));
            }
            self.world.tell(|| format!("--- {number}: {}", step.what));
            self.step(step.what).await;
        }
        self.quiet().await;
        self.end().await;
    }

    /// A line by its number in a scenario.
    fn line(&self, number: u8) -> usize {
        usize::from(number) % self.ledger.count()
    }

    fn timeline(process: &Process, line: usize, ledger: &Ledger) -> Option<Timeline> {
        let id = ledger.lines()[line].id;
        process.tenant()?.timeline(id).ok()
    }

    async fn step(self: &Arc<Self>, what: What) {
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        // What concerns no process.
        match what {
            What::Write { timeline, records, salt } => return self.write(self.line(timeline), records, salt),
            What::Outage { ms: time, silent } => {
                self.world.befell("outage");
                return self.world.outage(ms(time), silent);
            }
            What::Fault { class, fault } => return self.world.arm(class, fault),
            What::Quiet => return self.quiet().await,
            _ => {}
        }
        let Some(process) = self.newest() else { return };
        match what {
            What::Seal { timeline } => {
                self.world.did("seal");
                let (line, this) = (self.line(timeline), Arc::clone(&process));
                process.spawn(async move { this.seal(line).await });
            }
            What::Checkpoint { timeline } => {
                self.world.did("checkpoint");
                if let Some(timeline) = Self::timeline(&process, self.line(timeline), &self.ledger) {
                    process.spawn(async move { drop(timeline.checkpoint().await) });
                }
            }
            What::Branch { parent, point } => self.branch(&process, self.line(parent), point),
            What::Delete { timeline } => self.delete(&process, self.line(timeline)),
            What::Revive { timeline } => self.revive(&process, self.line(timeline)),
            What::Lease { timeline, part, minutes } => {
                self.lease(&process, self.line(timeline), part, Duration::from_mins(1 + u64::from(minutes)));
            }
            What::Read { timeline, count, salt } => {
                self.world.did("read");
                self.compare(&process, self.line(timeline), salt, Reading::Some(count.into()));
            }
            What::LsnAt { timeline, salt } => {
                self.world.did("look up a time");
                self.compare(&process, self.line(timeline), salt, Reading::Times);
            }
            What::Restart => {
                self.world.befell("restart");
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    process.tenants.shut_down(Duration::from_mins(1)).await;
                    process.kill();
                    this.start().await;
                });
            }
            What::Crash { requests, away } => {
                self.world.befell("crash");
                self.world.kill_after(process.id, requests.into());
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::time::sleep(ms(away)).await;
                    process.kill();
                    this.start().await;
                });
            }
            What::TakeOver => {
                self.world.befell("take-over");
                self.start_in(Duration::ZERO);
            }
            What::Pause { ms: time } => {
                self.world.befell("pause");
                self.world.hold(process.id, ms(time));
            }
            What::CutOff { ms: time } => {
                self.world.befell("cut off from the bucket");
                self.world.cut_off(process.id, ms(time));
            }
            What::NoSource { ms: time } => {
                self.world.befell("cut off from sources");
                self.world.cut_from_source(process.id, ms(time));
            }
            What::Clock { seconds } => {
                self.world.befell("clock jumped");
                self.world.jump_clock(process.id, seconds.into());
            }
            What::Write { .. } | What::Outage { .. } | What::Fault { .. } | What::Quiet => {}
        }
    }

    fn write(&self, line: usize, records: u16, salt: u32) {
        self.world.did("write");
        let now = self.world.pg_time();
        if let Some(cluster) = &mut self.ledger.lines()[line].cluster {
            let mut dice = Dice::new(self.world.seed() ^ u64::from(salt), "write");
            cluster.write(records.into(), &mut dice, now);
        }
        self.ledger.moved.notify_waiters();
    }

    fn branch(self: &Arc<Self>, process: &Arc<Process>, parent: usize, point: Point) {
        let Some(theirs) = Self::timeline(process, parent, &self.ledger) else { return };
        if self.ledger.count() >= MOST_LINES || self.ledger.lines()[parent].cluster.is_none() {
            return;
        }
        self.world.did("branch");
        let last = theirs.last_record_lsn();
        let (point, wanted) = {
            let lines = self.ledger.lines();
            let Some(cluster) = &lines[parent].cluster else { return };
            let history = &cluster.history;
            let part = |part: u16| {
                let base = history.base;
                history.record_end_at(Lsn(base.0 + last.since(base) * u64::from(part) / 1000))
            };
            match point {
                Point::Tip => (BranchPoint::Tip, None),
                Point::Lsn(at) => (BranchPoint::Lsn(part(at)), Some(part(at))),
                Point::Time(at) => {
                    let time = history
                        .commits
                        .get(history.commits.len() * usize::from(at) / 1001)
                        .map(|(_, at)| *at);
                    (BranchPoint::Time(time.unwrap_or(PgTimestamp(1 << 40))), None)
                }
            }
        };
        let (line, id) = self.ledger.ask_for_branch(parent);
        let parent_id = self.ledger.lines()[parent].id;
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            match process.tenants.branch(shard().tenant, id, parent_id, point).await {
                Ok(timeline) => {
                    let at = timeline.ancestor().map(|(_, at)| at);
                    if let (Some(wanted), Some(at)) = (wanted, at)
                        && at != wanted
                    {
                        this.world
                            .violate(|| format!("line {line} was asked for at {wanted}, and begins at {at}"));
                    }
                    if process.promised("branch", asked) {
                        this.world.tell(|| format!("line {line} was promised, from line {parent} at {at:?}"));
                        process.follow(line, timeline);
                        this.ledger.lines()[line].made = Sure::Yes;
                    }
                }
                Err(error) => {
                    this.world.tell(|| format!("line {line} was not promised: {}", story(&error)));
                    let is_wrong = match &error {
                        ChangeError::Refused(_) => wanted.is_some(),
                        ChangeError::Read(ReadError::BehindCutoff { asked, .. }) => {
                            this.must_keep(parent, *asked)
                        }
                        ChangeError::Conflict(_) | ChangeError::Buried(_) => true,
                        _ => false,
                    };
                    if is_wrong && process.is_alive() {
                        this.world.violate(|| format!("line {line} was refused: {}", story(&error)));
                    }
                }
            }
        });
    }

    fn delete(self: &Arc<Self>, process: &Arc<Process>, line: usize) {
        if line == 0 {
            return; // all else branches from it
        }
        self.world.did("delete");
        let id = self.ledger.lines()[line].id;
        {
            let line = &mut self.ledger.lines()[line];
            line.deleted = if line.deleted == Sure::Yes { Sure::Yes } else { Sure::Maybe };
        }
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            match process.tenants.delete_timeline(shard().tenant, id, async {}).await {
                Ok(()) => {
                    if process.promised("deletion", asked) {
                        this.world.tell(|| format!("line {line} was deleted"));
                        this.ledger.lines()[line].deleted = Sure::Yes;
                    }
                }
                Err(error) => {
                    this.world.tell(|| format!("line {line} was not deleted: {}", story(&error)));
                    // Nothing was begun: it stays as it was, if nobody else asks.
                    let was_refused = matches!(
                        error,
                        ChangeError::HasChildren(..)
                            | ChangeError::NotFound(NotFound::Tenant(_) | NotFound::Loading(_))
                            | ChangeError::Stale(_)
                    );
                    let mut lines = this.ledger.lines();
                    if was_refused && lines[line].deleted == Sure::Maybe && !lines[line].deletion_begun {
                        lines[line].deleted = Sure::No;
                    } else {
                        lines[line].deletion_begun = true;
                    }
                }
            }
        });
    }

    /// A name that was deleted is never used again.
    fn revive(self: &Arc<Self>, process: &Arc<Process>, line: usize) {
        let (id, parent) = {
            let lines = self.ledger.lines();
            let Some(parent) = lines[line].parent.filter(|_| lines[line].deleted == Sure::Yes) else {
                return;
            };
            (lines[line].id, lines[parent].id)
        };
        self.world.did("ask for what was deleted");
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        process.clone().spawn(async move {
            let again = process.tenants.branch(shard().tenant, id, parent, BranchPoint::Tip).await;
            if again.is_ok() && process.is_alive() {
                this.world.violate(|| format!("line {line} was deleted, and was made again"));
            }
        });
    }

    fn lease(self: &Arc<Self>, process: &Arc<Process>, line: usize, part: u16, length: Duration) {
        let Some(timeline) = Self::timeline(process, line, &self.ledger) else { return };
        self.world.did("lease");
        let base = timeline.readable_from();
        let lsn = Lsn(base.0 + timeline.last_record_lsn().since(base) * u64::from(part) / 1000);
        let lsn = match &self.ledger.lines()[line].cluster {
            Some(cluster) => cluster.history.record_end_at(lsn),
            None => return,
        };
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            let now = this.world.time_of(process.id);
            match timeline.lease_lsn(lsn, length, now).await {
                Ok(until) => {
                    if process.promised("lease", asked) {
                        let lsn = lsn.normalized(SEGMENT);
                        this.ledger.lines()[line].leases.push((lsn, until));
                    }
                }
                Err(LeaseError::OutOfHistory(OutOfHistory::TooOld { .. })) => {
                    if this.must_keep(line, lsn) && process.is_alive() {
                        this.world.violate(|| format!("{lsn} of line {line} is too old to be leased"));
                    }
                }
                Err(LeaseError::OutOfHistory(OutOfHistory::Future { .. }) | LeaseError::NoPostgres) => {
                    this.world.violate(|| format!("{lsn} of line {line} was not leased"));
                }
                Err(_) => {}
            }
        });
    }

    fn compare(self: &Arc<Self>, process: &Arc<Process>, line: usize, salt: u32, reading: Reading) {
        let Some(timeline) = Self::timeline(process, line, &self.ledger) else { return };
        let Some(history) = self.ledger.lines()[line].cluster.as_ref().map(|cluster| cluster.history.clone())
        else {
            return;
        };
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        process.clone().spawn(async move {
            let mut dice = Dice::new(this.world.seed() ^ u64::from(salt), "read");
            let reader = Reader {
                world: &this.world,
                process: &process,
                line,
                timeline: &timeline,
                history: &history,
                ledger: &this.ledger,
                keep: this.settings.keep(),
                must_answer: false,
            };
            match reading {
                Reading::Some(count) => reader.some(count, &mut dice).await,
                Reading::Times => reader.times(&mut dice).await,
            }
        });
    }

    /// Ends all faults, waits for what is under way, and looks at everything.
    async fn quiet(self: &Arc<Self>) {
        self.world.heal();
        let deadline = Instant::now() + PATIENCE;
        let Some(process) = self.settled(deadline).await else { return };
        self.check_all(&process, 2).await;
    }

    /// The newest process, once it has the tenant and all that its sources have.
    async fn settled(self: &Arc<Self>, deadline: Instant) -> Option<Arc<Process>> {
        loop {
            // What was armed before by a step that is only now under way.
            self.world.heal();
            if self.world.violation().is_some() {
                return None;
            }
            if Instant::now() >= deadline {
                let state = self.what_is_missing();
                self.world.violate(|| format!("what is under way does not come to an end: {state}"));
                return None;
            }
            if *self.starting.lock().expect("no holder panics") == 0 {
                match self.newest() {
                    None => self.start_in(Duration::ZERO),
                    Some(process) if self.has_all(&process) => return Some(process),
                    Some(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    fn what_is_missing(&self) -> String {
        let Some(process) = self.newest() else { return "no process lives".into() };
        let mut missing =
            format!("p{}, {} starting", process.id, self.starting.lock().expect("no holder panics"));
        for line in 0..self.ledger.count() {
            let timeline = Self::timeline(&process, line, &self.ledger);
            let lines = self.ledger.lines();
            let wanted = lines[line].cluster.as_ref().map(|cluster| cluster.history.end());
            let (made, deleted) = (lines[line].made, lines[line].deleted);
            drop(lines);
            let has = timeline
                .map(|timeline| (timeline.last_record_lsn(), timeline.received(), timeline.trouble()));
            let _ = write!(missing, "; line {line} made {made:?} deleted {deleted:?}: {has:?} of {wanted:?}");
        }
        missing
    }

    fn has_all(&self, process: &Arc<Process>) -> bool {
        let Some(tenant) = process.tenant() else { return false };
        // An older owner may be the newest process that lives when a newer one died.
        if self.world.superseded_since(tenant.claim().generation()).is_some() {
            process.kill();
            return false;
        }
        (0..self.ledger.count()).all(|line| {
            let timeline = Self::timeline(process, line, &self.ledger);
            let lines = self.ledger.lines();
            match (timeline, &lines[line].cluster) {
                (Some(timeline), Some(cluster)) => timeline.last_record_lsn() >= cluster.history.end(),
                _ => lines[line].made != Sure::Yes || lines[line].deleted != Sure::No,
            }
        })
    }

    async fn check_all(&self, process: &Arc<Process>, moments: u64) {
        check::promises(&self.world, &self.ledger, process);
        check::bucket(&self.world, &self.ledger, self.now());
        for line in 0..self.ledger.count() {
            let Some(timeline) = Self::timeline(process, line, &self.ledger) else { continue };
            let Some(history) =
                self.ledger.lines()[line].cluster.as_ref().map(|cluster| cluster.history.clone())
            else {
                continue;
            };
            let mut dice = Dice::new(self.world.seed() ^ line as u64, "check");
            let reader = Reader {
                world: &self.world,
                process,
                line,
                timeline: &timeline,
                history: &history,
                ledger: &self.ledger,
                keep: self.settings.keep(),
                must_answer: true,
            };
            reader.everything(moments, &mut dice).await;
            reader.some(20 * moments, &mut dice).await;
            reader.times(&mut dice).await;
            if self.world.violation().is_some() {
                return;
            }
        }
    }

    fn must_keep(&self, line: usize, lsn: Lsn) -> bool {
        let leases = !self.world.clock_was_ahead();
        self.ledger.must_keep(line, lsn, self.settings.keep(), self.world.time(), leases)
    }

    fn now(&self) -> SystemTime {
        self.world.time()
    }

    /// All processes are lost, and the sources with what they were told is safe: what was promised is read from the bucket alone.
    async fn end(self: &Arc<Self>) {
        if self.world.violation().is_some() {
            return;
        }
        self.world.tell(|| "--- everything but the bucket is lost".into());
        for process in self.processes() {
            process.kill();
        }
        let promised: Vec<(usize, Lsn)> = {
            let mut lines = self.ledger.lines();
            let ends = lines.iter_mut().enumerate().map(|(number, line)| {
                let end = line
                    .cluster
                    .as_ref()
                    .map_or(Lsn(0), |cluster| cluster.history.record_end_at(line.reported));
                // Nobody can be asked for more.
                line.lost = true;
                (number, end)
            });
            ends.collect()
        };
        // Whatever was on its way has arrived by then.
        tokio::time::sleep(Duration::from_hours(2)).await;
        self.start().await;
        let Some(process) = self.newest() else {
            return self.world.violate(|| "the tenant cannot be opened from the bucket alone".into());
        };
        for (line, end) in promised {
            let Some(timeline) = Self::timeline(&process, line, &self.ledger) else { continue };
            let last = timeline.last_record_lsn();
            if last < end {
                self.world.violate(|| {
                    format!(
                        "line {line} ends at {last}, and its source was told that WAL up to {end} is safe"
                    )
                });
            }
        }
        self.check_all(&process, 3).await;
        self.leave_nothing_behind(&process).await;
    }

    /// What nothing names goes; all that stays is named.
    async fn leave_nothing_behind(&self, process: &Arc<Process>) {
        tokio::time::sleep(Duration::from_mins(10)).await;
        let Some(tenant) = process.tenant() else { return };
        if self.world.violation().is_some() {
            return;
        }
        match process.tenants.sweep_tenant(&tenant, Duration::ZERO, self.now()).await {
            Ok(count) => self.world.tell(|| format!("{count} orphans went")),
            Err(error) => {
                return self.world.violate(|| format!("orphans cannot be swept: {}", story(&error)));
            }
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
        check::orphans(&self.world, &self.ledger, tenant.claim().generation());
        self.check_all(process, 1).await;
    }
}

#[derive(Clone, Copy)]
enum Reading {
    Some(u64),
    Times,
}
