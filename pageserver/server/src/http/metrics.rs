//! Gauges of tenants and timelines, brought up to date when somebody asks. Names are Neon's where it has them.
//!
//! A server may have more timelines than anybody wants to store series of, most of them idle. So only the largest have gauges of their own, by
//! what they have in the bucket: which these are seldom changes, so series do not come and go. All count in the sums.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use engine::budget::TailBudget;
use engine::chunk_cache::ChunkCache;
use engine::compact::{CompactionPolicy, Debt, debt, time_near, view};
use engine::tenant::{Tenants, TimelineState};
use engine::timeline::TimelineInfo;
use model::{Lsn, PgTimestamp, TimelineId};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use crate::metrics::registered;
use crate::source::followers::Followers;

const LABELS: [&str; 3] = ["tenant_id", "shard_id", "timeline_id"];
const GAUGES: [(&str, &str); 19] = [
    ("pageserver_last_record_lsn", "End of the newest readable record"),
    ("pageserver_disk_consistent_lsn", "Up to where everything is in layers in the bucket"),
    ("pageserver_projected_remote_consistent_lsn", "The same"),
    ("pageserver_remote_physical_size", "Bytes of layers in the bucket"),
    ("pageserver_layer_count", "Layers"),
    ("pageserver_applied_gc_cutoff_lsn", "Where history that is kept as a whole begins"),
    ("palimpsest_l0_layers", "Layers straight from the tail, which every read may have to look into"),
    ("palimpsest_ingest_waits", "1 while ingest waits for compaction, since reads would become too deep"),
    ("palimpsest_compaction_failing", "1 while a part of the timeline cannot be compacted"),
    ("palimpsest_wal_received_lsn", "End of received WAL"),
    ("palimpsest_wal_flushed_lsn", "End of WAL that was reported to the source as safe"),
    ("palimpsest_tail_bytes", "Memory of changes that are not in layers yet"),
    (
        "pageserver_current_logical_size",
        "Bytes of all relations as of the newest record; absent while they are counted",
    ),
    ("pageserver_resident_physical_size", "Bytes of layers on the local disk"),
    ("palimpsest_wal_object_bytes", "Bytes of raw WAL in the bucket that no layer covers yet"),
    ("palimpsest_debt_merge_bytes", "Bytes of layers that compaction has still to merge"),
    ("palimpsest_debt_deepest_layers", "Layers that a read may have to visit at most"),
    (
        "palimpsest_debt_garbage_bytes",
        "Bytes of history below the cutoff that compaction has not looked at since; much of it nobody can read",
    ),
    (
        "palimpsest_cutoff_time_seconds",
        "About when the oldest moment was, in seconds since 1970, that can be read as any other; absent when that is not known",
    ),
];

/// What is collected at a scrape.
pub struct EngineMetrics {
    timelines: [IntGaugeVec; GAUGES.len()],
    /// Timelines, and tenants, that have gauges of their own at most.
    most: usize,
    without_gauges: IntGauge,
    remote_bytes: IntGauge,
    resident_bytes: IntGauge,
    wal_object_bytes: IntGauge,
    synthetic_sizes: IntGaugeVec,
    states: IntGaugeVec,
    followed: IntGauge,
    tail_used: IntGauge,
    tail_limit: IntGauge,
    cache: IntGaugeVec,
    maintenance: IntGaugeVec,
    policy: CompactionPolicy,
    debts: Mutex<HashMap<TimelineId, KnownDebt>>,
}

/// The debt of a timeline, and what it was when that was made: it is made anew when its layers have changed.
#[derive(Clone)]
struct KnownDebt {
    of: (usize, u64, Lsn, Lsn),
    debt: Debt,
    cutoff_time: Option<PgTimestamp>,
}

impl EngineMetrics {
    /// Registers them. `policy` says what is debt.
    pub fn register(registry: &Registry, most: usize, policy: CompactionPolicy) -> Self {
        const WELL_FORMED: &str = "the name is well-formed";
        let gauge =
            |name: &str, help: &str| registered(registry, IntGauge::new(name, help).expect(WELL_FORMED));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntGaugeVec::new(Opts::new(name, help), labels).expect(WELL_FORMED))
        };
        EngineMetrics {
            timelines: GAUGES.map(|(name, help)| gauges(name, help, &LABELS)),
            most,
            without_gauges: gauge(
                "palimpsest_timelines_without_gauges",
                "Timelines that have no gauges of their own because others are larger",
            ),
            remote_bytes: gauge(
                "pageserver_remote_physical_size_global",
                "Bytes of layers of all timelines in the bucket",
            ),
            resident_bytes: gauge(
                "pageserver_resident_physical_size_global",
                "Bytes of layers of all timelines on the local disk",
            ),
            wal_object_bytes: gauge(
                "palimpsest_wal_object_bytes_global",
                "Bytes of raw WAL of all timelines in the bucket that no layer covers yet",
            ),
            synthetic_sizes: gauges(
                "pageserver_tenant_synthetic_cached_size_bytes",
                "What the history of a tenant costs, as it was last made",
                &["tenant_id"],
            ),
            states: gauges("pageserver_timeline_states_count", "Timelines, by state", &["state"]),
            followed: gauge(
                "pageserver_walreceiver_active_managers",
                "Sources that are followed or imported",
            ),
            tail_used: gauge(
                "palimpsest_tail_memory_bytes",
                "Memory of all changes that are not in layers yet",
            ),
            tail_limit: gauge("palimpsest_tail_memory_limit_bytes", "The most that they may use"),
            cache: gauges(
                "palimpsest_chunk_cache",
                "The chunk cache: what it holds, and what it did",
                &["what"],
            ),
            maintenance: gauges(
                "palimpsest_maintenance",
                "Compaction and collection since the process began: jobs, failures, bytes, cutoffs moved, orphans",
                &["what"],
            ),
            policy,
            debts: Mutex::default(),
        }
    }

    async fn debt(&self, tenants: &Tenants, info: &TimelineInfo) -> Option<KnownDebt> {
        let id = info.facts.timeline;
        let of = (info.layers, info.remote_physical_size, info.disk_consistent_lsn, info.gc_cutoff_lsn);
        let known = self.debts.lock().expect("no holder panics").get(&id).cloned();
        if let Some(known) = known.filter(|known| known.of == of) {
            return Some(known);
        }
        let timeline = tenants.timeline(info.facts.tenant_shard.tenant, id).ok()?;
        let debt = debt(&view(&timeline).await, &self.policy);
        let cutoff_time = time_near(&*timeline.index().part().await, info.gc_cutoff_lsn);
        let known = KnownDebt { of, debt, cutoff_time };
        self.debts.lock().expect("no holder panics").insert(id, known.clone());
        Some(known)
    }

    fn show(&self, info: &TimelineInfo, debt: Option<&KnownDebt>) {
        let shard = info.facts.tenant_shard;
        let labels = [shard.tenant.to_string(), shard.shard.to_string(), info.facts.timeline.to_string()];
        let values = [
            Some(info.last_record_lsn.0),
            Some(info.disk_consistent_lsn.0),
            Some(info.remote_consistent_lsn.0),
            Some(info.remote_physical_size),
            Some(info.layers as u64),
            Some(info.gc_cutoff_lsn.0),
            Some(info.l0_layers as u64),
            Some(u64::from(info.ingest_waits)),
            Some(u64::from(info.compaction_error.is_some())),
            Some(info.wal_received_lsn.0),
            Some(info.wal_flushed_lsn.0),
            Some(info.tail_bytes as u64),
            info.current_logical_size,
            Some(info.resident_physical_size),
            Some(info.wal_objects_size),
            debt.map(|known| known.debt.merge_bytes),
            debt.map(|known| known.debt.deepest as u64),
            debt.map(|known| known.debt.garbage_bytes),
            debt.and_then(|known| known.cutoff_time).map(seconds),
        ];
        for (gauge, value) in self.timelines.iter().zip(values) {
            if let Some(value) = value {
                gauge.with_label_values(&labels).set(value as i64);
            }
        }
    }

    /// Brings them up to date. Timelines that are gone lose their samples.
    pub async fn refresh(
        &self,
        tenants: &Tenants,
        followers: &Followers,
        cache: &Arc<ChunkCache>,
        budget: &TailBudget,
    ) {
        self.timelines.iter().for_each(IntGaugeVec::reset);
        self.synthetic_sizes.reset();
        let mut states = [("Active", 0), ("Loading", 0), ("Broken", 0), ("Stopping", 0), ("Archived", 0)];
        let (mut active, mut sizes) = (Vec::new(), Vec::new());
        for tenant in tenants.attached() {
            if let Some(made) = tenant.size_memory().last() {
                sizes.push((made.size, tenant.shard().tenant));
            }
            for state in tenant.list() {
                match state {
                    TimelineState::Active(info) => {
                        states[0].1 += 1;
                        active.push(info);
                    }
                    TimelineState::Importing { .. } => states[1].1 += 1,
                    TimelineState::Broken { .. } => states[2].1 += 1,
                    TimelineState::Deleting { .. } => states[3].1 += 1,
                    TimelineState::Archived(_) => states[4].1 += 1,
                }
            }
        }
        let sum = |of: fn(&TimelineInfo) -> u64| active.iter().map(|info| of(info)).sum::<u64>() as i64;
        self.remote_bytes.set(sum(|info| info.remote_physical_size));
        self.resident_bytes.set(sum(|info| info.resident_physical_size));
        self.wal_object_bytes.set(sum(|info| info.wal_objects_size));
        self.without_gauges.set(active.len().saturating_sub(self.most) as i64);
        let shown = largest(active, self.most, |info| {
            (info.remote_physical_size + info.wal_objects_size, info.facts.timeline)
        });
        for info in &shown {
            self.show(info, self.debt(tenants, info).await.as_ref());
        }
        let ids: HashSet<TimelineId> = shown.iter().map(|info| info.facts.timeline).collect();
        self.debts.lock().expect("no holder panics").retain(|id, _| ids.contains(id));
        for (size, tenant) in largest(sizes, self.most, |size| *size) {
            self.synthetic_sizes.with_label_values(&[&tenant.to_string()]).set(size as i64);
        }
        for (state, count) in states {
            self.states.with_label_values(&[state]).set(count);
        }
        self.followed.set(followers.count() as i64);
        self.tail_used.set(budget.used() as i64);
        self.tail_limit.set(budget.limit() as i64);
        let counts = tenants.maintenance();
        for (what, value) in [
            ("jobs", &counts.jobs),
            ("failures", &counts.failures),
            ("written_bytes", &counts.written_bytes),
            ("removed_bytes", &counts.removed_bytes),
            ("cutoffs_moved", &counts.cutoffs),
            ("orphans_deleted", &counts.orphans),
        ] {
            self.maintenance.with_label_values(&[what]).set(value.load(Ordering::Relaxed) as i64);
        }
        let counts = &cache.counts;
        for (what, value) in [
            ("memory_bytes", cache.memory_used() as u64),
            ("pinned_bytes", cache.pinned() as u64),
            ("disk_bytes", cache.disk_used()),
            ("disk_allowed_bytes", cache.disk_allowed()),
            ("misses", counts.misses.load(Ordering::Relaxed)),
            ("scan_misses", counts.scan_misses.load(Ordering::Relaxed)),
            ("evicted_by_budget_bytes", counts.evicted_by_budget_bytes.load(Ordering::Relaxed)),
            ("evicted_by_watermark_bytes", counts.evicted_by_watermark_bytes.load(Ordering::Relaxed)),
            ("warmed_up_bytes", counts.warmed_up_bytes.load(Ordering::Relaxed)),
            ("memory_hits", cache.counts.memory_hits.load(Ordering::Relaxed)),
            ("value_hits", cache.counts.value_hits.load(Ordering::Relaxed)),
            ("disk_hits", cache.counts.disk_hits.load(Ordering::Relaxed)),
            ("fetches", cache.counts.fetches.load(Ordering::Relaxed)),
            ("fetched_bytes", cache.counts.fetched_bytes.load(Ordering::Relaxed)),
        ] {
            self.cache.with_label_values(&[what]).set(value as i64);
        }
    }
}

fn seconds(time: PgTimestamp) -> u64 {
    time.to_system_time().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The largest of them, at most so many.
fn largest<T, K: Ord>(mut all: Vec<T>, most: usize, size: impl Fn(&T) -> K) -> Vec<T> {
    if all.len() > most {
        all.select_nth_unstable_by_key(most, |one| std::cmp::Reverse(size(one)));
        all.truncate(most);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in an expression that begin like ours. Those of operators are not of this process.
    fn names(expression: &str) -> Vec<String> {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let ours = words.filter(|word| {
            ["pageserver_", "palimpsest_", "libmetrics_"].iter().any(|start| word.starts_with(start))
        });
        ours.map(ToOwned::to_owned).collect()
    }

    #[test]
    fn every_metric_that_the_dashboard_names_is_registered() {
        let registry = Registry::new();
        EngineMetrics::register(&registry, 1, CompactionPolicy::default());
        engine::bucket::BucketMetrics::new().register(&registry).unwrap();
        Arc::new(engine::read_counts::ReadCounts::default()).register(&registry).unwrap();
        crate::libpq::metrics::LibpqMetrics::register(&registry);
        crate::metrics::ProcessMetrics::register(&registry);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/palimpsest/dashboards/palimpsest.json");
        let dashboard: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut named = HashSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                named.extend(names(target["expr"].as_str().unwrap()));
            }
        }
        assert!(named.len() > 10, "{named:?}");
        for name in named {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is_known = [Some(name.as_str()), base].into_iter().flatten().any(|name| {
                let same = IntGauge::new(name, "The same name again").unwrap();
                registry.register(Box::new(same)).is_err()
            });
            assert!(is_known, "{name} is in the dashboard, and nothing here is called so");
        }
    }

    #[test]
    fn only_the_largest_have_gauges_of_their_own() {
        let mut some = largest(vec![3, 9, 1, 7, 5], 2, |size| *size);
        some.sort_unstable();
        assert_eq!(some, [7, 9]);
        assert_eq!(largest(vec![1, 2], 2, |size| *size).len(), 2);
        assert!(largest(vec![1, 2], 0, |size| *size).is_empty());
    }
}
