//! Playing a scenario.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use engine::import::LayerOut as _;
use engine::import_session::{ImportPlan, ImportedBase};
use engine::tenant::{ChangeError, Mode};
use engine::timeline::Timeline;
use model::{Generation, Key, Lsn, PgMajor, Tli, WalSegmentSize};
use tokio::time::Instant;

use crate::asks::Reading;
use crate::check::{self, Reader, story};
use crate::cluster::{Base, Cluster, SEGMENT, SYSTEM};
use crate::dice::Dice;
use crate::disk::Machine;
use crate::ledger::{Ledger, Sure, shard};
use crate::process::{Process, Settings};
use crate::scenario::{Scenario, What};
use crate::world::{Counts, Planted, World};

/// How long what is under way may take once nothing stands in its way.
const PATIENCE: Duration = Duration::from_hours(3);

/// How long nothing comes until layers must be at rest, and how often they may be rewritten in that time, since a cutoff may still move.
const REST: Duration = Duration::from_mins(20);
const MOST_JOBS_AT_REST: u64 = 100;

/// Lines that a run has at most: reading them all is what a run takes its time for.
pub(crate) const MOST_LINES: usize = 8;

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

/// A run on its way.
pub(crate) struct Run {
    pub(crate) world: Arc<World>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) settings: Settings,
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
        run.start(None).await;
        if let Some(process) = run.newest() {
            run.to_be_single(&process).await;
        }
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

    /// Starts a process, on the machine of one that died or on another; answers when it has the tenant, or is gone.
    async fn start(self: &Arc<Self>, machine: Option<Arc<Machine>>) {
        *self.starting.lock().expect("no holder panics") += 1;
        // A machine has one process at a time.
        let is_free = |machine: &Arc<Machine>| {
            !self.processes().iter().any(|other| other.is_alive() && Arc::ptr_eq(&other.machine, machine))
        };
        let machine = machine.filter(is_free).unwrap_or_default();
        let process = Process::new(&self.world, &self.ledger, &self.settings, machine);
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
            this.start(None).await;
        });
    }

    /// The newest process is attached anew, without ending.
    fn attach_again(self: &Arc<Self>, process: Arc<Process>) {
        let (this, attaching) = (Arc::clone(self), Arc::clone(&process));
        *this.starting.lock().expect("no holder panics") += 1;
        let (done, attached) = tokio::sync::oneshot::channel();
        // At once, while it lives: then its end is the end of this, too.
        process.spawn(async move {
            let _ = done.send(attaching.attach().await);
        });
        tokio::spawn(async move {
            if !attached.await.unwrap_or(false) {
                process.kill();
            }
            *this.starting.lock().expect("no holder panics") -= 1;
        });
    }

    /// Waits until nobody else may read any more what a process has.
    async fn to_be_single(&self, process: &Process) {
        let Some(mut hold) = process.tenant().map(|tenant| tenant.hold()) else { return };
        let _ = hold.wait_for(|hold| hold.mode != Mode::Multi).await;
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

    pub(crate) fn timeline(process: &Process, line: usize, ledger: &Ledger) -> Option<Timeline> {
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
            What::Archive { timeline } => self.archive(&process, self.line(timeline)),
            What::Unarchive { timeline } => self.unarchive(&process, self.line(timeline)),
            What::Detach { timeline } => self.detach(&process, self.line(timeline)),
            What::Name { timeline, part, minutes } => {
                let length = (minutes > 0).then(|| Duration::from_mins(minutes.into()));
                self.name(&process, self.line(timeline), part, length);
            }
            What::Forget { timeline, which } => self.forget(&process, self.line(timeline), which),
            What::Lease { timeline, part, minutes } => {
                self.lease(&process, self.line(timeline), part, Duration::from_mins(1 + u64::from(minutes)));
            }
            What::Read { timeline, count, salt } => {
                self.world.did("read");
                self.compare(
                    &self.reader(process, salt),
                    self.line(timeline),
                    salt,
                    Reading::Some(count.into()),
                );
            }
            What::LsnAt { timeline, salt } => {
                self.world.did("look up a time");
                self.compare(&process, self.line(timeline), salt, Reading::Times);
            }
            What::Restart => {
                self.world.befell("restart");
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    process.end().await;
                    this.start(Some(Arc::clone(&process.machine))).await;
                });
            }
            What::Crash { requests, away } => {
                self.world.befell("crash");
                self.world.kill_after(process.id, requests.into());
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::time::sleep(ms(away)).await;
                    process.kill();
                    this.start(Some(Arc::clone(&process.machine))).await;
                });
            }
            What::TakeOver
                if self.settings.operated && self.world.elapsed().as_millis().is_multiple_of(3) =>
            {
                self.world.befell("attached anew");
                self.attach_again(process);
            }
            What::TakeOver => {
                self.world.befell("take-over");
                self.start_in(Duration::ZERO);
            }
            What::Disk { trouble, ms: time } => {
                self.world.befell("disk in trouble");
                self.world.trouble_disk(process.id, trouble, ms(time));
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

    /// Now and then, one that is not the newest is read from.
    fn reader(&self, newest: Arc<Process>, salt: u32) -> Arc<Process> {
        let mut alive = self.processes();
        alive.retain(|process| process.is_alive() && process.tenant().is_some());
        if salt.is_multiple_of(5) && !alive.is_empty() {
            return alive.swap_remove(salt as usize / 5 % alive.len());
        }
        newest
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

    /// Ends all faults, waits for what is under way, and looks at everything.
    async fn quiet(self: &Arc<Self>) {
        self.world.heal();
        let deadline = Instant::now() + PATIENCE;
        let Some(process) = self.settled(deadline).await else { return };
        // It may have been told to end, or to crash, just before: then it is not asked further.
        tokio::select! {
            biased; // a seed is the same run each time
            () = self.check_all(&process, 2) => {}
            () = process.gone() => {}
        }
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
                    Some(process) if self.has_all(&process) => {
                        self.ledger.settle(
                            process.id,
                            &process.seen(),
                            self.settings.keep(),
                            self.world.time(),
                        );
                        return Some(process);
                    }
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
            let (made, deleted, archived) = (lines[line].made, lines[line].deleted, lines[line].archived);
            drop(lines);
            let has = timeline
                .map(|timeline| (timeline.last_record_lsn(), timeline.received(), timeline.trouble()));
            let _ = write!(
                missing,
                "; line {line} made {made:?} deleted {deleted:?} archived {archived:?}: {has:?} of {wanted:?}"
            );
        }
        missing
    }

    fn has_all(&self, process: &Arc<Process>) -> bool {
        let Some(tenant) = process.tenant().filter(|_| !process.is_ending()) else { return false };
        // An older owner may be the newest process that lives when a newer one died.
        if self.world.superseded_since(tenant.claim().generation()).is_some() {
            process.kill();
            return false;
        }
        if tenant.mode() != Mode::Single || self.ledger.waits_for(process.id) {
            return false;
        }
        (0..self.ledger.count()).all(|line| {
            let timeline = Self::timeline(process, line, &self.ledger);
            let lines = self.ledger.lines();
            match (timeline, &lines[line].cluster) {
                (Some(timeline), Some(cluster)) => timeline.last_record_lsn() >= cluster.history.end(),
                _ => {
                    lines[line].made != Sure::Yes
                        || lines[line].deleted != Sure::No
                        || lines[line].archived != Sure::No
                }
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

    pub(crate) fn must_keep(&self, line: usize, lsn: Lsn) -> bool {
        self.ledger.must_keep(line, lsn, self.settings.keep(), self.world.time())
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
        self.start(None).await;
        let Some(process) = self.newest() else {
            return self.world.violate(|| "the tenant cannot be opened from the bucket alone".into());
        };
        self.to_be_single(&process).await;
        check::promises(&self.world, &self.ledger, &process);
        self.unarchive_all(&process).await;
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

    /// What is archived is opened again, ancestors first.
    async fn unarchive_all(&self, process: &Arc<Process>) {
        let mut refused = String::new();
        for _ in 0..=self.ledger.count() {
            let Some(tenant) = process.tenant() else { return };
            let archived = tenant.archived();
            if archived.is_empty() {
                return;
            }
            for archived in archived {
                let opened = process.tenants.unarchive_timeline(shard().tenant, archived.timeline).await;
                match (opened, self.ledger.number_of(archived.timeline)) {
                    (Ok(timeline), Some(line)) => {
                        self.ledger.lines()[line].archived = Sure::No;
                        process.follow(line, timeline);
                    }
                    (Err(error), _) => refused = story(&error),
                    (Ok(_), None) => {}
                }
            }
        }
        self.world.violate(|| format!("what was archived cannot be opened from the bucket alone: {refused}"));
    }

    /// Where nothing comes any more, layers are rewritten no more.
    async fn comes_to_rest(&self, process: &Process) {
        let jobs = || process.tenants.maintenance().jobs.load(Ordering::Relaxed);
        let before = jobs();
        tokio::time::sleep(REST).await;
        let since = jobs() - before;
        if since > MOST_JOBS_AT_REST {
            self.world.violate(|| {
                format!("{since} times layers were rewritten in {REST:?}, in which nothing came")
            });
        }
    }

    /// What a job has just put, or just taken out of an index, is named by nothing, but not for long.
    async fn all_is_named(&self, own: Generation) {
        let before = check::unnamed(&self.world, &self.ledger, own);
        if before.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
        let after = check::unnamed(&self.world, &self.ledger, own);
        if let Some(path) = before.intersection(&after).next() {
            self.world.violate(|| format!("{path} is there, and nothing names it"));
        }
    }

    /// What nothing names goes; all that stays is named.
    async fn leave_nothing_behind(&self, process: &Arc<Process>) {
        tokio::time::sleep(Duration::from_mins(10)).await;
        self.comes_to_rest(process).await;
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
        self.all_is_named(tenant.claim().generation()).await;
        self.check_all(process, 1).await;
    }
}
