//! Consumption: what a bill is made of, told to somebody every while.
//!
//! A round looks at every tenant and makes events: how much there is now of several things, and how much WAL was written since the last round.
//! The former are samples: one that is lost is made up for by the next. The latter are amounts that must add up, so meters for them are kept in the
//! bucket ([`engine::metering`]): each amount is sent at least once, always with the same key, whatever becomes of this server. A round that is not
//! taken yet goes before the next, which is left out.
//!
//! Reading order: [`event`], [`sink`], [`delivery`], then the rounds here.

pub mod delivery;
pub mod event;
pub mod sink;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use engine::error_story::error_story;
use engine::metering::{self, Amount, Metered, MeteringError, TenantMeters};
use engine::tenant::{Mode, Phase, Tenant, Tenants, TimelineState};
use engine::timeline::TimelineInfo;
use futures::stream::StreamExt as _;
use model::{Generation, TenantId, TimelineId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use delivery::{ConsumptionMetrics, Delivery, Fate};
use event::{Event, Keys, Metric, When};
use sink::Sink;

/// The first round comes so soon after the start at the latest.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// Tenants whose meters are stored at once.
const AT_ONCE: usize = 8;

/// Who tells what to whom.
#[derive(Clone)]
pub struct Consumption {
    /// Whose consumption.
    pub tenants: Tenants,
    /// To whom.
    pub sink: Sink,
    /// How often.
    pub every: Duration,
    /// Name of this server, which no other has.
    pub server: String,
    /// What is counted.
    pub metrics: ConsumptionMetrics,
}

/// The meters of a tenant, as one of its owners.
struct Meters {
    generation: Generation,
    now: TenantMeters,
    /// As they are in the bucket.
    stored: Option<TenantMeters>,
}

/// What there is of a tenant in a round.
struct Seen {
    tenant: Arc<Tenant>,
    metered: Vec<Metered>,
    /// Also those that cannot be read at the moment.
    existing: HashSet<TimelineId>,
    meters: Option<Meters>,
}

impl Consumption {
    /// Makes and sends rounds until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut meters = HashMap::new();
        let mut delivery = Delivery::default();
        let mut keys = Keys::new(self.server.clone());
        let mut due = Instant::now() + FIRST_WITHIN.min(self.every).mul_f64(rand::random());
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = stop.cancelled() => return Ok(()),
            }
            due = Instant::now() + self.every;
            tokio::select! {
                () = self.round(&mut meters, &mut delivery, &mut keys, due) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    async fn round(
        &self,
        meters: &mut HashMap<TenantId, Meters>,
        delivery: &mut Delivery,
        keys: &mut Keys,
        until: Instant,
    ) {
        if delivery.is_done() {
            let events = self.collect(meters, keys, SystemTime::now()).await;
            delivery.begin(events, &self.metrics);
        } else {
            self.metrics.rounds_left_out.inc();
        }
        let ended = |event: &Event, fate: Fate| {
            let (Metric::WrittenDataBytesDelta, Some(timeline)) = (event.metric, event.timeline) else {
                return;
            };
            let Some(meters) = meters.get_mut(&event.tenant) else { return };
            match fate {
                Fate::Taken => meters.now.taken(timeline, &event.key),
                Fate::Refused => meters.now.refused(timeline, &event.key),
            }
        };
        delivery.go_on(&self.sink, until, &self.metrics, ended).await;
    }

    /// What is to be told now. Meters of tenants that are gone are forgotten here; the bucket has them.
    async fn collect(
        &self,
        meters: &mut HashMap<TenantId, Meters>,
        keys: &mut Keys,
        now: SystemTime,
    ) -> Vec<Event> {
        keys.begin(now);
        let mut before = std::mem::take(meters);
        let (mut events, mut seen) = (Vec::new(), Vec::new());
        for tenant in self.tenants.attached() {
            let (shard, hold) = (tenant.shard(), tenant.hold().borrow().clone());
            if shard.shard.number != 0 || hold.mode == Mode::Stale || hold.phase != Phase::Active {
                continue;
            }
            let states = tenant.list();
            let samples = samples(&tenant, &states);
            let event = |(metric, timeline, value)| Event {
                metric,
                tenant: shard.tenant,
                timeline,
                when: When::Absolute(now),
                value,
                key: keys.make(),
            };
            events.extend(samples.into_iter().map(event));
            let is_there = |state: &&TimelineState| !matches!(state, TimelineState::Deleting { .. });
            let generation = tenant.claim().generation();
            seen.push(Seen {
                metered: active(&states).map(metered).collect(),
                existing: states.iter().filter(is_there).map(TimelineState::id).collect(),
                meters: before.remove(&shard.tenant).filter(|meters| meters.generation == generation),
                tenant,
            });
        }
        let keys = Mutex::new(keys);
        let looks = seen.into_iter().map(|seen| {
            let keys = &keys;
            async move {
                let tenant = Arc::clone(&seen.tenant);
                let (meters, amounts) =
                    look(seen, now, || keys.lock().unwrap_or_else(PoisonError::into_inner).make()).await;
                (tenant, meters, amounts)
            }
        });
        let mut looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some((tenant, kept, amounts)) = looks.next().await {
            let id = tenant.shard().tenant;
            meters.extend(kept.map(|kept| (id, kept)));
            match amounts {
                Ok(amounts) => events.extend(amounts.into_iter().map(|amount| told(id, amount))),
                Err(error) => {
                    self.metrics.unmetered.inc();
                    tracing::warn!(tenant = %id, "what was written cannot be told now: {}", error_story(&error));
                }
            }
        }
        events
    }
}

fn active(states: &[TimelineState]) -> impl Iterator<Item = &TimelineInfo> {
    states.iter().filter_map(|state| match state {
        TimelineState::Active(info) => Some(&**info),
        _ => None,
    })
}

/// What an archived timeline has in the bucket.
fn archived_bytes(state: &TimelineState) -> u64 {
    match state {
        TimelineState::Archived(archived) => archived.bytes,
        _ => 0,
    }
}

fn metered(info: &TimelineInfo) -> Metered {
    let facts = &info.facts;
    Metered {
        timeline: facts.timeline,
        begin: facts.branched_at.unwrap_or(facts.readable_from),
        last_record: info.last_record_lsn,
    }
}

/// How much there is of a tenant and its timelines.
fn samples(tenant: &Tenant, states: &[TimelineState]) -> Vec<(Metric, Option<TimelineId>, u64)> {
    let mut samples = Vec::new();
    let (mut remote, mut resident) = (0, 0);
    remote += states.iter().map(archived_bytes).sum::<u64>();
    for info in active(states) {
        let timeline = Some(info.facts.timeline);
        let end = info.last_record_lsn;
        samples.push((Metric::WrittenSize, timeline, end.0));
        let begin = metered(info).begin;
        samples.push((Metric::WrittenSizeSinceParent, timeline, end.0.saturating_sub(begin.0)));
        // Nothing is said of what is not known yet.
        samples.extend(info.current_logical_size.map(|size| (Metric::TimelineLogicalSize, timeline, size)));
        remote += info.remote_physical_size + info.wal_objects_size;
        resident += info.resident_physical_size;
    }
    samples.push((Metric::RemoteStorageSize, None, remote));
    samples.push((Metric::ResidentSize, None, resident));
    let made = tenant.size_memory().last();
    samples.extend(made.map(|made| (Metric::SyntheticStorageSize, None, made.size)));
    samples
}

/// What a tenant's timelines wrote, once the bucket knows that it is told.
async fn look(
    seen: Seen,
    now: SystemTime,
    new_key: impl FnMut() -> String,
) -> (Option<Meters>, Result<Vec<Amount>, MeteringError>) {
    let claim = seen.tenant.claim();
    let mut meters = match seen.meters {
        Some(meters) => meters,
        None => match metering::load(claim).await {
            Ok(stored) => {
                let begin = || TenantMeters::begin(&seen.metered, now);
                let meters = stored.clone().unwrap_or_else(begin);
                Meters { generation: claim.generation(), now: meters, stored }
            }
            Err(error) => return (None, Err(error)),
        },
    };
    let exists = |timeline: TimelineId| seen.existing.contains(&timeline);
    let amounts = meters.now.look(&seen.metered, exists, now, new_key);
    if meters.stored.as_ref().is_none_or(|stored| !stored.says_as(&meters.now)) {
        if let Err(error) = metering::store(claim, &meters.now).await {
            return (Some(meters), Err(error));
        }
        meters.stored = Some(meters.now.clone());
    }
    (Some(meters), Ok(amounts))
}

fn told(tenant: TenantId, amount: Amount) -> Event {
    Event {
        metric: Metric::WrittenDataBytesDelta,
        tenant,
        timeline: Some(amount.timeline),
        when: When::Incremental(amount.start.to_system_time(), amount.stop.to_system_time()),
        value: amount.bytes,
        key: amount.key,
    }
}
