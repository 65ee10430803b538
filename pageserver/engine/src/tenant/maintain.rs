//! Keeping history small and readable, in the background: which timeline is looked at next, what failed and rests, how much runs at once.
//!
//! A timeline is looked at when its layers have changed since it was at rest, and when its cutoff may move. The deepest goes first. A job that fails
//! leaves its keys alone for a while, a longer one each time; everything else of the timeline goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use model::{KeyRange, TenantId, TimelineId};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Mode, Phase, Tenant, Tenants, TimelineView};
use crate::claim::ValidateError;
use crate::collect::KeepHistory;
use crate::compact::{Avoid, Collect, CompactError, CompactionPolicy, Done, compact_once};
use crate::error_story::error_story;
use crate::sweep::{Owned, sweep};
use crate::timeline::Timeline;

/// How history is kept small.
#[derive(Clone, Debug, PartialEq)]
pub struct Maintenance {
    /// When layers are rewritten, and how.
    pub compaction: CompactionPolicy,
    /// How much history is kept, unless the tenant says otherwise.
    pub keep: KeepHistory,
    /// How often timelines are looked at whose layers have changed.
    pub period: Duration,
    /// How often a cutoff may move.
    pub collect_period: Duration,
    /// Timelines that are compacted at once.
    pub at_once: usize,
    /// Objects that nothing names go when they are so old; as often, they are looked for.
    pub grace: Duration,
}

impl Default for Maintenance {
    fn default() -> Self {
        Maintenance {
            compaction: CompactionPolicy::default(),
            keep: KeepHistory::default(),
            period: Duration::from_secs(2),
            collect_period: Duration::from_mins(10),
            at_once: 2,
            grace: Duration::from_hours(24),
        }
    }
}

/// First and longest rest of keys in which a job failed.
const FIRST_REST: Duration = Duration::from_secs(10);
const LONGEST_REST: Duration = Duration::from_mins(10);
/// Jobs of one timeline in a row; then others have their turn.
const JOBS_IN_A_ROW: usize = 8;

/// What maintenance has done since the process began.
#[derive(Debug, Default)]
pub struct MaintenanceCounts {
    /// Jobs that came to their end.
    pub jobs: AtomicU64,
    /// Jobs that failed.
    pub failures: AtomicU64,
    /// Bytes of layers that it wrote.
    pub written_bytes: AtomicU64,
    /// Bytes of layers that it replaced.
    pub removed_bytes: AtomicU64,
    /// Times that a cutoff moved.
    pub cutoffs: AtomicU64,
    /// Orphans deleted.
    pub orphans: AtomicU64,
    /// Jobs and bytes by what the jobs were.
    kinds: Mutex<BTreeMap<&'static str, KindCounts>>,
}

/// What jobs of one kind have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCounts {
    /// How many there were.
    pub jobs: u64,
    /// Bytes of layers that they wrote.
    pub written_bytes: u64,
    /// Bytes of layers that they replaced.
    pub removed_bytes: u64,
    /// The most bytes that one of them wrote or replaced.
    pub largest_bytes: u64,
}

impl MaintenanceCounts {
    /// What jobs of each kind have done; the names are those of [`Done::kind`].
    pub fn kinds(&self) -> BTreeMap<&'static str, KindCounts> {
        self.kinds.lock().expect("no holder panics").clone()
    }
}

type Id = (TenantId, TimelineId);

/// What is remembered of a timeline between two looks at it.
#[derive(Default)]
struct Care {
    /// Its layers when there was nothing to do.
    rested_at: Option<u64>,
    collected: Option<Instant>,
    /// Keys in which a job failed lately.
    failing: FailingKeys,
    /// … since a page could not be made whole, or there was none.
    beyond_redo: FailingKeys,
    /// After a look that found nothing to be done, or failed, it is not looked at before.
    not_before: Option<Instant>,
    running: bool,
}

/// Ranges of keys that are left alone for a while.
#[derive(Default)]
struct FailingKeys(Vec<Failing>);

struct Failing {
    keys: KeyRange,
    until: Instant,
    rest: Duration,
}

impl Tenants {
    /// Looks after all tenants until stopped. To be called once for a process.
    pub async fn maintain(&self, settings: Maintenance, stop: CancellationToken) {
        let mut cares: HashMap<Id, Care> = HashMap::new();
        let mut jobs: JoinSet<(Id, Care)> = JoinSet::new();
        let mut sweeps: HashMap<TenantId, Instant> = HashMap::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = jobs.join_next(), if !jobs.is_empty() => {
                    if let Ok((id, care)) = ended {
                        cares.insert(id, Care { running: false, ..care });
                    }
                }
                () = tokio::time::sleep(settings.period) => {}
            }
            self.sweep_due(&settings, &mut sweeps).await;
            for (tenant, timeline) in self.deepest_first() {
                if jobs.len() >= settings.at_once {
                    break;
                }
                let id = (tenant.shard().tenant, timeline.id());
                let care = cares.entry(id).or_default();
                if care.running || !care.is_due(&timeline, &settings) {
                    continue;
                }
                let care = std::mem::replace(care, Care { running: true, ..Care::default() });
                let (this, settings) = (self.clone(), settings.clone());
                jobs.spawn(async move { (id, this.look_after(&tenant, &timeline, &settings, care).await) });
            }
            self.forget_closed(&mut cares);
        }
        // Jobs stop by themselves where their timelines do, and change nothing when they are dropped.
        jobs.shutdown().await;
    }

    /// What maintenance has done.
    pub fn maintenance(&self) -> &MaintenanceCounts {
        &self.inner.maintenance
    }

    /// Does at once what maintenance would do for a timeline in its time, until nothing is left to be done. For tests, and for people in a hurry.
    pub async fn maintain_now(
        &self,
        tenant: &Tenant,
        timeline: &Timeline,
        settings: &Maintenance,
        now: SystemTime,
    ) -> Result<Vec<Done>, super::ChangeError> {
        tenant.move_cutoff(timeline, tenant.keep(settings.keep), now).await?;
        let collect = collect_of(tenant, timeline).await;
        let mut done = Vec::new();
        while let Some(job) = compact_once(timeline, &settings.compaction, Avoid::default(), collect)
            .await
            .map_err(|error| super::ChangeError::Compact(Box::new(error)))?
        {
            self.count(&job);
            done.push(job);
        }
        Ok(done)
    }

    fn deepest_first(&self) -> Vec<(Arc<Tenant>, Timeline)> {
        let mut timelines: Vec<(usize, Arc<Tenant>, Timeline)> = Vec::new();
        for tenant in self.attached() {
            let hold = tenant.hold().borrow().clone();
            // Elsewhere somebody may still read what this owner would delete.
            if hold.mode != Mode::Single || hold.phase != Phase::Active || tenant.deleting.is_cancelled() {
                continue;
            }
            timelines.extend(tenant.views().into_iter().filter_map(|(_, view)| match view {
                TimelineView::Open(open) => Some((open.l0_count(), Arc::clone(&tenant), open)),
                _ => None,
            }));
        }
        timelines.sort_by_key(|(l0s, ..)| std::cmp::Reverse(*l0s));
        timelines.into_iter().map(|(_, tenant, timeline)| (tenant, timeline)).collect()
    }

    fn forget_closed(&self, cares: &mut HashMap<Id, Care>) {
        cares.retain(|(tenant, timeline), care| care.running || self.timeline(*tenant, *timeline).is_ok());
    }

    async fn look_after(
        &self,
        tenant: &Tenant,
        timeline: &Timeline,
        settings: &Maintenance,
        mut care: Care,
    ) -> Care {
        let now = Instant::now();
        if care.collected.is_none_or(|at| now.duration_since(at) >= settings.collect_period) {
            care.collected = Some(now);
            let before = timeline.retention().cutoff;
            match tenant.move_cutoff(timeline, tenant.keep(settings.keep), tenant.claim().now()).await {
                Ok(after) if after.cutoff > before => {
                    self.inner.maintenance.cutoffs.fetch_add(1, Relaxed);
                }
                Ok(_) => {}
                Err(error) => {
                    debug!(timeline = %timeline.id(), error = %error_story(&error), "the cutoff does not move for now");
                }
            }
        }
        let collect = collect_of(tenant, timeline).await;
        care.not_before = None;
        for _ in 0..JOBS_IN_A_ROW {
            let avoid = Avoid { keys: care.failing.resting(), images: care.beyond_redo.resting() };
            let layers = timeline.layers_seen();
            match compact_once(timeline, &settings.compaction, avoid, collect).await {
                Ok(Some(done)) => self.count(&done),
                Ok(None) => {
                    care.not_before = Some(Instant::now() + settings.period);
                    // Keys that rest are looked at again later.
                    care.rested_at = care.failing.0.is_empty().then_some(layers);
                    timeline.note_compaction(None);
                    break;
                }
                Err(failed) => {
                    care.not_before = Some(Instant::now() + settings.period);
                    self.inner.maintenance.failures.fetch_add(1, Relaxed);
                    if timeline.is_stopped() || is_superseded(&failed.source) {
                        break;
                    }
                    let story = error_story(&failed);
                    let makes_images = !care.beyond_redo.resting().contains(&failed.keys);
                    if failed.would_do_without_images() && makes_images {
                        let rest = care.beyond_redo.rest(failed.keys);
                        warn!(timeline = %timeline.id(), error = %story, "a compaction failed; no images are made of its keys for {rest:?}");
                    } else {
                        let rest = care.failing.rest(failed.keys);
                        warn!(timeline = %timeline.id(), error = %story, "a compaction failed; its keys rest for {rest:?}");
                    }
                    timeline.note_compaction(Some(story));
                }
            }
        }
        care
    }

    fn count(&self, done: &Done) {
        let counts = &self.inner.maintenance;
        counts.jobs.fetch_add(1, Relaxed);
        counts.written_bytes.fetch_add(done.added_bytes, Relaxed);
        counts.removed_bytes.fetch_add(done.removed_bytes, Relaxed);
        let mut kinds = counts.kinds.lock().expect("no holder panics");
        let kind = kinds.entry(done.kind).or_default();
        kind.jobs += 1;
        kind.written_bytes += done.added_bytes;
        kind.removed_bytes += done.removed_bytes;
        kind.largest_bytes = kind.largest_bytes.max(done.added_bytes).max(done.removed_bytes);
    }

    async fn sweep_due(&self, settings: &Maintenance, last: &mut HashMap<TenantId, Instant>) {
        for tenant in self.attached() {
            let id = tenant.shard().tenant;
            // The first time when what a crash of the owner before left is old enough.
            let at = *last.entry(id).or_insert_with(Instant::now);
            let hold = tenant.hold().borrow().clone();
            if at.elapsed() < settings.grace || hold.mode != Mode::Single || hold.phase != Phase::Active {
                continue;
            }
            last.insert(id, Instant::now());
            if let Err(error) = self.sweep_tenant(&tenant, settings.grace, tenant.claim().now()).await {
                info!(tenant = %tenant.shard(), error = %error_story(&error), "orphans remain for now");
            }
        }
        last.retain(|id, _| self.tenant(*id).is_ok());
    }

    /// Deletes what nothing names of a tenant's timelines that are open. Answers how many objects went.
    pub async fn sweep_tenant(
        &self,
        tenant: &Tenant,
        grace: Duration,
        now: SystemTime,
    ) -> Result<usize, ValidateError> {
        let mut owned = Vec::new();
        for (timeline, view) in tenant.views() {
            if let TimelineView::Open(open) = view {
                let (index, held) = (open.index().part().await, open.layer_store().held().clone());
                owned.push(Owned { timeline, index, held });
            }
        }
        let swept = sweep(tenant.claim(), &owned, grace, now).await?;
        if !swept.orphans.is_empty() {
            info!(tenant = %tenant.shard(), objects = swept.orphans.len(), bytes = swept.bytes, "deleted what nothing names");
        }
        self.inner.maintenance.orphans.fetch_add(swept.orphans.len() as u64, Relaxed);
        Ok(swept.orphans.len())
    }
}

async fn collect_of(tenant: &Tenant, timeline: &Timeline) -> Collect {
    if tenant.may_collect(timeline).await { Collect::Garbage } else { Collect::Nothing }
}

fn is_superseded(error: &CompactError) -> bool {
    matches!(
        error,
        CompactError::Validate(ValidateError::Superseded { .. })
            | CompactError::Read(crate::as_of::ReadError::Superseded)
    )
}

impl Care {
    fn is_due(&self, timeline: &Timeline, settings: &Maintenance) -> bool {
        self.not_before.is_none_or(|at| at <= Instant::now())
            && (self.rested_at != Some(timeline.layers_seen())
                || self.collected.is_none_or(|at| at.elapsed() >= settings.collect_period))
    }
}

impl FailingKeys {
    /// Those that rest now. Such as have worked, or not been asked for, for long are forgotten.
    fn resting(&mut self) -> Vec<KeyRange> {
        let now = Instant::now();
        self.0.retain(|failing| failing.until + failing.rest * 2 > now);
        self.0.iter().filter(|failing| failing.until > now).map(|failing| failing.keys.clone()).collect()
    }

    /// Leaves keys alone, for longer than the last time.
    fn rest(&mut self, keys: KeyRange) -> Duration {
        let known = self.0.iter_mut().find(|failing| failing.keys == keys);
        let rest = known.as_ref().map_or(FIRST_REST, |failing| (failing.rest * 2).min(LONGEST_REST));
        let until = Instant::now() + rest;
        match known {
            Some(failing) => (failing.until, failing.rest) = (until, rest),
            None => self.0.push(Failing { keys, until, rest }),
        }
        rest
    }
}

impl Tenant {
    /// How much history is kept of it.
    pub fn keep(&self, default: KeepHistory) -> KeepHistory {
        let config = self.config();
        KeepHistory {
            interval: config.pitr_interval().unwrap_or(default.interval),
            bytes: config.gc_horizon_bytes.unwrap_or(default.bytes),
        }
    }
}
