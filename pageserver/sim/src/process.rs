//! A process: the engine as a server holds it, and what of a server the engine needs, which is somebody who follows the sources.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::bucket::retry::{BucketMetrics, RetryPolicy, RetryingBucket};
use engine::budget::TailBudget;
use engine::chunk_cache::{CacheLimits, ChunkCache, Watermarks};
use engine::claim::{ClaimedBy, ValidateError};
use engine::collect::KeepHistory;
use engine::compact::CompactionPolicy;
use engine::heatmap::{HeatMapPolicy, HeatMaps};
use engine::object_path::ObjectPath;
use engine::ports::Bucket;
use engine::tenant::{AttachAs, Maintenance, Mode, Phase, Tenant, Tenants, TimelineView};
use engine::timeline::{Timeline, TimelinePolicy};
use engine::wal_keeper::WalKeeping;
use engine::wal_memory::WalMemory;
use model::{Lsn, TimelineId};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::disk::{Machine, SimDisk};
use crate::ledger::{Ledger, Seen, Sure, shard};
use crate::world::{Planted, ProcessId, SimBucket, SimClock, World, now};

/// What all processes of a run go by.
#[derive(Clone, Debug)]
pub struct Settings {
    freeze_bytes: usize,
    max_wal_objects: usize,
    max_frozen: usize,
    seal_bytes: usize,
    seal_age: Duration,
    idle_seal_age: Duration,
    max_pending: usize,
    validate_every: Duration,
    wal_memory: usize,
    tail_budget: usize,
    cache: CacheLimits,
    max_chain: usize,
    maintenance: Option<Maintenance>,
    /// Heat maps are saved, and fetched from. That looks around so often that days take long.
    pub heat: bool,
    /// Processes have what an operator tells them to attach, in generations that it allocates, and outlive their successors.
    pub operated: bool,
    /// How often an owner looks whether there is a newer one while it follows a source.
    claims_every: Duration,
    /// Bytes of one message of a source.
    message: usize,
}

impl Settings {
    /// Small, so that limits are met.
    pub fn of(seed: u64) -> Settings {
        let mut dice = Dice::new(seed, "settings");
        let max_pending = *dice.pick(&[32 << 10, 1 << 20, 64 << 20]);
        Settings {
            freeze_bytes: *dice.pick(&[16 << 10, 64 << 10, 256 << 10, 4 << 20]),
            max_wal_objects: *dice.pick(&[2, 10, 1000]),
            max_frozen: *dice.pick(&[1, 2, 4]),
            seal_bytes: max_pending.min(*dice.pick(&[1 << 10, 16 << 10, 128 << 10, 8 << 20])),
            seal_age: Duration::from_millis(*dice.pick(&[20, 5_000, 60_000])),
            idle_seal_age: Duration::from_secs(*dice.pick(&[10, 600])),
            max_pending,
            validate_every: Duration::from_secs(*dice.pick(&[1, 60])),
            wal_memory: *dice.pick(&[128 << 10, 256 << 20]),
            tail_budget: *dice.pick(&[128 << 10, 1 << 20, 64 << 20]),
            cache: CacheLimits {
                memory: *dice.pick(&[0, 16 << 20]),
                index_memory: *dice.pick(&[0, 4 << 20]),
                disk: *dice.pick(&[256 << 10, 64 << 20]),
                watermarks: Watermarks { most_used_percent: 80, least_free: 0 },
            },
            max_chain: *dice.pick(&[2, 8, 24]),
            maintenance: dice.permille(800).then(|| maintenance(&mut dice)),
            heat: dice.permille(150),
            operated: dice.permille(350),
            claims_every: Duration::from_secs(*dice.pick(&[60, 600])),
            message: *dice.pick(&[300, 8 << 10, 128 << 10]),
        }
    }

    /// How much history is kept; all of it when nobody collects.
    pub fn keep(&self) -> Option<KeepHistory> {
        self.maintenance.as_ref().map(|maintenance| maintenance.keep)
    }

    fn policy(&self) -> TimelinePolicy {
        TimelinePolicy {
            freeze_bytes: self.freeze_bytes,
            max_wal_objects: self.max_wal_objects,
            max_frozen: self.max_frozen,
            max_chain: self.max_chain,
            counting: Arc::new(Semaphore::new(1)),
            max_l0: self.maintenance.as_ref().map(|maintenance| maintenance.compaction.l0_limit),
            wal: WalKeeping {
                seal_bytes: self.seal_bytes,
                seal_age: self.seal_age,
                idle_seal_age: self.idle_seal_age,
                max_pending: self.max_pending,
                validate_every: self.validate_every,
                memory: WalMemory::new(self.wal_memory),
            },
        }
    }
}

/// Small layers and little history, so that much is rewritten.
fn maintenance(dice: &mut Dice) -> Maintenance {
    let l0_merge = dice.from(2..5) as usize;
    let layer_bytes = *dice.pick(&[16 << 10, 64 << 10, 512 << 10]);
    // Layers, shelves and jobs stand to each other about as they do in use; in some runs anyhow.
    let (shelf, job) = if dice.permille(800) {
        (layer_bytes * dice.from(2..8), layer_bytes * dice.from(8..32))
    } else {
        (*dice.pick(&[4 << 10, 64 << 10, 1 << 20]), *dice.pick(&[4 << 10, 64 << 10, 1 << 20]))
    };
    let compaction = CompactionPolicy {
        l0_merge,
        l0_limit: l0_merge + dice.from(1..4) as usize,
        max_deltas: dice.from(1..4) as usize,
        read_weight: 64,
        image_after: *dice.pick(&[0.5, 1.0, 3.0]),
        garbage: *dice.pick(&[0.05, 0.2]),
        little: *dice.pick(&[1, layer_bytes / 8]),
        shelf_bytes: shelf,
        layer_bytes,
        job_bytes: job,
        chain: *dice.pick(&[2, 8, 24]),
    };
    let interval = Duration::from_secs(*dice.pick(&[0, 60, 3_600, 604_800]));
    let bytes = *dice.pick(&[0, 16 << 10, 256 << 10, 64 << 20]);
    Maintenance {
        compaction,
        keep: KeepHistory { interval, bytes },
        period: Duration::from_secs(*dice.pick(&[2, 60])),
        collect_period: Duration::from_secs(*dice.pick(&[5, 600])),
        at_once: dice.from(1..4) as usize,
        grace: Duration::from_secs(*dice.pick(&[600, 86_400])),
    }
}

/// A process that owns the tenant, or thinks so.
pub struct Process {
    /// Which.
    pub id: ProcessId,
    /// Where.
    pub machine: Arc<Machine>,
    /// The engine.
    pub tenants: Tenants,
    world: Arc<World>,
    ledger: Arc<Ledger>,
    settings: Settings,
    /// Timelines whose sources are followed: one follower each.
    followed: Mutex<BTreeMap<usize, Timeline>>,
    /// Everything that the process does for somebody: ends with it.
    tasks: Mutex<JoinSet<()>>,
    /// It was told to end.
    ending: AtomicBool,
}

impl Process {
    /// Begins, with nothing but the bucket.
    pub fn new(
        world: &Arc<World>,
        ledger: &Arc<Ledger>,
        settings: &Settings,
        machine: Arc<Machine>,
    ) -> Arc<Process> {
        let id = world.new_process();
        machine.crash(&mut Dice::new(world.seed() ^ id as u64, "crash"));
        let disk = Arc::new(SimDisk::new(Arc::clone(&machine), Arc::clone(world), id));
        let bucket: Arc<dyn Bucket> = Arc::new(SimBucket::new(Arc::clone(world), id));
        let policy = RetryPolicy { spread_from: id as u64, ..RetryPolicy::default() };
        let bucket: Arc<dyn Bucket> =
            Arc::new(RetryingBucket::new(bucket, policy, BucketMetrics::new(), CancellationToken::new()));
        let cache = ChunkCache::new(Arc::clone(&bucket), disk, settings.cache).expect("the disk is there");
        let maps = settings.heat.then(|| (Arc::clone(&cache), HeatMapPolicy::default()));
        let clock = Arc::new(SimClock::new(Arc::clone(world), id));
        let budget = Arc::new(TailBudget::new(settings.tail_budget));
        let tenants = Tenants::new(bucket, cache, budget, settings.policy(), clock);
        world.tell(|| format!("p{id} starts"));
        let process = Arc::new(Process {
            id,
            machine,
            tenants,
            world: Arc::clone(world),
            ledger: Arc::clone(ledger),
            settings: settings.clone(),
            followed: Mutex::default(),
            tasks: Mutex::default(),
            ending: AtomicBool::new(false),
        });
        process.look_after(maps);
        process
    }

    /// What a server does by itself.
    fn look_after(self: &Arc<Self>, maps: Option<(Arc<ChunkCache>, HeatMapPolicy)>) {
        let stop = CancellationToken::new();
        if let Some(mut maintenance) = self.settings.maintenance.clone() {
            if self.world.planted() == Some(Planted::CollectedEarly) {
                maintenance.keep.bytes = maintenance.keep.bytes.saturating_sub(512);
                maintenance.keep.interval = maintenance.keep.interval.saturating_sub(Duration::from_secs(5));
            }
            let (tenants, stop) = (self.tenants.clone(), stop.clone());
            self.spawn(async move { tenants.maintain(maintenance, stop).await });
        }
        if let Some((cache, policy)) = maps {
            let maps = HeatMaps::new(self.tenants.clone(), Arc::clone(&cache), policy);
            self.spawn(cache.keep(stop.clone()));
            self.spawn(maps.clone().save(stop.clone()));
            self.spawn(maps.warm_up(stop));
        }
    }

    /// Waits until it is not alive any more.
    pub async fn gone(&self) {
        while self.is_alive() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether it is alive.
    pub fn is_alive(&self) -> bool {
        self.world.is_alive(self.id)
    }

    /// Whether it was told to end. Then it gives up what it is about, and what it says of its timelines may not be so any more.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Does something as part of the process.
    pub fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("no holder panics");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Dies: nothing of it goes on. What it sent may still arrive.
    pub fn kill(&self) {
        self.world.kill(self.id);
        self.tasks.lock().expect("no holder panics").abort_all();
    }

    /// Whether all that was asked of it is answered, but for following.
    pub fn tenant(&self) -> Option<Arc<Tenant>> {
        self.tenants.tenant(shard().tenant).ok()
    }

    /// Claims the tenant and opens its timelines; then follows their sources. `false` when that is not to be: the process ends.
    pub async fn attach(self: &Arc<Self>) -> bool {
        let attached =
            if self.settings.operated { self.attach_as_told().await } else { self.attach_alone().await };
        let Some(tenant) = attached else { return false };
        self.world
            .tell(|| format!("p{} owns the tenant as generation {}", self.id, tenant.claim().generation()));
        for (id, view) in tenant.views() {
            match (view, self.ledger.number_of(id)) {
                (TimelineView::Open(timeline), Some(line)) => self.follow(line, timeline),
                (_, None) => {
                    self.world.violate(|| format!("timeline {id} is there, and nobody asked for it"));
                }
                _ => {}
            }
        }
        true
    }

    async fn attach_alone(self: &Arc<Self>) -> Option<Arc<Tenant>> {
        if let Err(error) = self.tenants.attach(shard()).await {
            self.world.tell(|| format!("p{} cannot attach: {error:?}", self.id));
            return None;
        }
        self.end_when_superseded();
        self.tenant()
    }

    /// As an operator has it, which may let the owner before go on being read for a while.
    async fn attach_as_told(self: &Arc<Self>) -> Option<Arc<Tenant>> {
        let generation = self.world.next_generation();
        let mut dice = Dice::new(self.world.seed() ^ u64::from(generation.0), "mode");
        let multi_for = dice.permille(300).then(|| Duration::from_secs(dice.from(1..60)));
        let mode = if multi_for.is_some() { Mode::Multi } else { Mode::Single };
        let by = ClaimedBy {
            pool_uid: "pool".into(),
            pod: format!("pod-{}", self.id),
            pod_uid: format!("pod-{}", self.id),
            instance: format!("instance-{}", self.id),
            attempt: format!("attempt-{generation}"),
        };
        let wanted = AttachAs { shard: shard(), generation, mode, by, config: None };
        let tenant = match self.tenants.attach_as(wanted).await {
            Ok(tenant) => tenant,
            Err(error) => {
                self.world.tell(|| format!("p{} cannot attach generation {generation}: {error:?}", self.id));
                return None;
            }
        };
        if let Some(time) = multi_for {
            let (this, tenant) = (Arc::clone(self), Arc::clone(&tenant));
            self.spawn(async move {
                tokio::time::sleep(time).await;
                this.tenants.set_mode(&tenant, Mode::Single);
            });
        }
        let hold = self.tenants.opened(&tenant).await;
        (hold.phase == Phase::Active).then_some(tenant)
    }

    /// Ends in order.
    pub async fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        match self.tenant().filter(|_| self.settings.operated) {
            Some(tenant) => {
                let generation = tenant.claim().generation();
                self.tenants.detach(shard(), generation, Some(Duration::from_mins(1))).await;
            }
            None => drop(self.tenants.shut_down(Duration::from_mins(1)).await),
        }
        self.kill();
    }

    /// How the timelines are that it has.
    pub fn seen(&self) -> BTreeMap<TimelineId, Seen> {
        let Some(tenant) = self.tenant() else { return BTreeMap::new() };
        let generation = Some(tenant.claim().generation());
        let has_index = |timeline| {
            let path = ObjectPath::Index { tenant: shard(), timeline, generation }.to_string();
            now(self.world.store().get(&path, None)).is_ok()
        };
        let seen = tenant.views().into_iter().filter_map(|(id, view)| match view {
            TimelineView::Open(open) => {
                let ancestor = open.ancestor().map(|(ancestor, _)| ancestor);
                Some((id, Seen { ancestor, archived: Sure::No }))
            }
            TimelineView::Archived(archived) => {
                let ancestor = archived.ancestor.map(|(ancestor, _)| ancestor);
                let archived = if has_index(id) { Sure::Yes } else { Sure::Maybe };
                Some((id, Seen { ancestor, archived }))
            }
            _ => None,
        });
        seen.collect()
    }

    /// As a server on its own does.
    fn end_when_superseded(self: &Arc<Self>) {
        let this = Arc::clone(self);
        self.spawn(async move {
            let mut superseded = this.tenants.superseded();
            let _ = superseded.wait_for(Option::is_some).await;
            this.world.tell(|| format!("p{} was superseded, and ends", this.id));
            this.tenants.shut_down(Duration::from_secs(10)).await;
            this.world.kill(this.id);
        });
    }

    /// Follows the source of a timeline as long as both are there.
    pub fn follow(self: &Arc<Self>, line: usize, timeline: Timeline) {
        if let Some(at) = timeline.facts().branched_at
            && let Err(broken) = self.ledger.begins_at(line, at)
        {
            return self.world.violate(|| broken.0);
        }
        {
            let mut followed = self.followed.lock().expect("no holder panics");
            if followed.get(&line).is_some_and(|known| !known.is_stopped()) {
                return; // it was open all the time
            }
            followed.insert(line, timeline.clone());
        }
        let this = Arc::clone(self);
        self.spawn(async move {
            while !timeline.is_stopped() {
                this.world.go_on(this.id).await;
                let Some(mode) = this.tenant().map(|tenant| tenant.mode()) else { return };
                if mode == Mode::Stale {
                    return;
                }
                // While another may have the source's slot, it is left alone.
                if mode == Mode::Single && this.world.reaches_source(this.id) {
                    match this.connection(line, &timeline).await {
                        Ok(()) => return,
                        Err(reason) => {
                            this.world.tell(|| format!("p{} stops following line {line}: {reason}", this.id));
                        }
                    }
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
    }

    /// One connection to a source. `Ok` when it is not to be made again.
    async fn connection(&self, line: usize, timeline: &Timeline) -> Result<(), String> {
        let Some(tenant) = self.tenant() else { return Ok(()) };
        let claim = tenant.claim();
        match claim.validate().await {
            Ok(()) => {}
            Err(error @ ValidateError::Bucket(_)) => return Err(error.to_string()),
            Err(_) => return Ok(()),
        }
        self.world.go_on(self.id).await;
        let connection = self.ledger.connect(line);
        let switch = {
            let lines = self.ledger.lines();
            let cluster = lines[line].cluster.as_ref();
            cluster.filter(|_| lines[line].born_of.is_some()).map(|cluster| (cluster.tli, cluster.tli_from))
        };
        if let Some((tli, from)) = switch {
            timeline.begin_at_branch_point(tli).await.map_err(|error| error.to_string())?;
            timeline.note_switch(tli, from, None).await.map_err(|error| error.to_string())?;
        }
        let mut flushed = timeline.flushed();
        let mut validate_at = tokio::time::Instant::now() + self.settings.claims_every;
        loop {
            self.world.go_on(self.id).await;
            if !self.world.reaches_source(self.id) {
                return Err("it cannot be reached".into());
            }
            if !self.ledger.is_connected(line, connection) {
                return Err("another has connected".into());
            }
            let told = if self.world.planted() == Some(Planted::MemoryReported) {
                timeline.received()
            } else {
                *flushed.borrow_and_update()
            };
            self.report(line, &tenant, told);
            let moved = self.ledger.moved.notified();
            let from = timeline.received();
            let is_superseded = self.world.superseded_since(claim.generation()).is_some();
            if is_superseded && from < self.ledger.lines()[line].reported {
                return Err("the source keeps no such WAL: a newer owner said that it is safe".into());
            }
            let more = self.ledger.wal(line, from, self.settings.message);
            match more {
                Err(broken) => {
                    self.world.violate(|| broken.0);
                    return Ok(());
                }
                Ok(Some((tli, bytes))) => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let end = from.add(bytes.len() as u64);
                    self.ledger.took(line, claim.generation(), end);
                    timeline.note_source_time(self.world.pg_time());
                    timeline.append_wal(from, tli, bytes).await.map_err(|error| error.to_string())?;
                }
                Ok(None) => tokio::select! {
                    biased;
                    () = moved => {}
                    changed = flushed.changed() => changed.map_err(|_| "the timeline is gone")?,
                    () = tokio::time::sleep_until(validate_at) => {
                        match claim.validate().await {
                            Ok(()) | Err(ValidateError::Bucket(_)) => {}
                            Err(_) => return Ok(()),
                        }
                        validate_at = tokio::time::Instant::now() + self.settings.claims_every;
                    }
                },
            }
            if timeline.is_stopped() {
                return Ok(());
            }
        }
    }

    /// Tells a source that WAL is safe.
    fn report(&self, line: usize, tenant: &Tenant, lsn: Lsn) {
        let generation = tenant.claim().generation();
        let superseded = self.world.superseded_since(generation);
        if lsn > self.ledger.lines()[line].reported {
            match self.ledger.report(line, generation, lsn, superseded) {
                Ok(()) => self.world.promised("WAL reported"),
                Err(broken) => self.world.violate(|| broken.0),
            }
        }
    }

    /// The source asks for an answer now, if this process follows it.
    pub async fn seal(&self, line: usize) {
        let Some(tenant) = self.tenant() else { return };
        let followed = self.followed.lock().expect("no holder panics").get(&line).cloned();
        let Some(timeline) = followed else { return };
        if let Ok(lsn) = timeline.seal_now().await
            && self.is_alive()
            && self.world.reaches_source(self.id)
        {
            self.report(line, &tenant, lsn);
        }
    }

    /// A promise was given. `asked` is when it was asked for.
    pub fn promised(&self, what: &'static str, asked: tokio::time::Instant) -> bool {
        if !self.is_alive() {
            return false; // the answer went nowhere
        }
        self.world.promised(what);
        if let Some(tenant) = self.tenant() {
            let generation = tenant.claim().generation();
            if self.world.superseded_since(generation).is_some_and(|since| since < asked) {
                self.world.violate(|| {
                    format!("generation {generation} promised a {what} that was asked for when there was a newer owner")
                });
            }
        }
        true
    }

    /// Whether a line is to be there, as far as is known.
    pub fn expects(&self, line: usize) -> bool {
        let lines = self.ledger.lines();
        lines[line].made == Sure::Yes && lines[line].deleted == Sure::No
    }
}
