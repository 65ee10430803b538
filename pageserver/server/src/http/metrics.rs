//! Gauges of tenants and timelines, brought up to date when somebody asks. Names are Neon's where it has them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::budget::TailBudget;
use engine::chunk_cache::ChunkCache;
use engine::tenant::{Tenants, TimelineState};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use crate::metrics::registered;
use crate::source::followers::Followers;

const LABELS: [&str; 3] = ["tenant_id", "shard_id", "timeline_id"];
const GAUGES: [(&str, &str); 12] = [
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
];

/// What is collected at a scrape.
pub struct EngineMetrics {
    timelines: [IntGaugeVec; GAUGES.len()],
    states: IntGaugeVec,
    followed: IntGauge,
    tail_used: IntGauge,
    tail_limit: IntGauge,
    cache: IntGaugeVec,
    maintenance: IntGaugeVec,
}

impl EngineMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Self {
        const WELL_FORMED: &str = "the name is well-formed";
        let gauge =
            |name: &str, help: &str| registered(registry, IntGauge::new(name, help).expect(WELL_FORMED));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntGaugeVec::new(Opts::new(name, help), labels).expect(WELL_FORMED))
        };
        EngineMetrics {
            timelines: GAUGES.map(|(name, help)| gauges(name, help, &LABELS)),
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
        }
    }

    /// Brings them up to date. Timelines that are gone lose their samples.
    pub fn refresh(
        &self,
        tenants: &Tenants,
        followers: &Followers,
        cache: &Arc<ChunkCache>,
        budget: &TailBudget,
    ) {
        self.timelines.iter().for_each(IntGaugeVec::reset);
        let mut states = [("Active", 0), ("Loading", 0), ("Broken", 0), ("Stopping", 0)];
        for tenant in tenants.list() {
            let Ok(tenant) = tenants.tenant(tenant.id.tenant) else { continue };
            let shard = tenant.shard();
            for state in tenant.list() {
                match state {
                    TimelineState::Active(info) => {
                        states[0].1 += 1;
                        let labels = [
                            shard.tenant.to_string(),
                            shard.shard.to_string(),
                            info.facts.timeline.to_string(),
                        ];
                        let values = [
                            info.last_record_lsn.0,
                            info.disk_consistent_lsn.0,
                            info.remote_consistent_lsn.0,
                            info.remote_physical_size,
                            info.layers as u64,
                            info.gc_cutoff_lsn.0,
                            info.l0_layers as u64,
                            u64::from(info.ingest_waits),
                            u64::from(info.compaction_error.is_some()),
                            info.wal_received_lsn.0,
                            info.wal_flushed_lsn.0,
                            info.tail_bytes as u64,
                        ];
                        for (gauge, value) in self.timelines.iter().zip(values) {
                            gauge.with_label_values(&labels).set(value as i64);
                        }
                    }
                    TimelineState::Importing { .. } => states[1].1 += 1,
                    TimelineState::Broken { .. } => states[2].1 += 1,
                    TimelineState::Deleting { .. } => states[3].1 += 1,
                }
            }
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
