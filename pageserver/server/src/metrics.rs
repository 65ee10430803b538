//! The registry behind `/metrics`, and what a process says of itself there. Other counters lie beside the code that counts.

use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// What the process says of itself. Names are Neon's, so that its dashboards work.
pub struct ProcessMetrics {
    /// `libmetrics_tracing_event_count`: log lines by level.
    pub log_events: IntCounterVec,
    max_rss: IntGauge,
}

impl ProcessMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Self {
        let build = GaugeVec::new(
            Opts::new("libmetrics_build_info", "Which build this is"),
            &["revision", "build_tag"],
        )
        .expect("the name is well-formed");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), "palimpsest"]).set(1.0);
        registered(registry, build);

        let launched =
            Gauge::new("libmetrics_launch_timestamp", "Seconds since 1970 at which the process started")
                .expect("the name is well-formed");
        launched
            .set(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()));
        registered(registry, launched);

        let log_events = IntCounterVec::new(
            Opts::new("libmetrics_tracing_event_count", "Log lines, by level"),
            &["level"],
        )
        .expect("the name is well-formed");
        let max_rss =
            IntGauge::new("libmetrics_maxrss_kb", "Largest resident memory the process ever had, in KiB")
                .expect("the name is well-formed");
        ProcessMetrics {
            log_events: registered(registry, log_events),
            max_rss: registered(registry, max_rss),
        }
    }

    /// Brings up to date what is measured only when somebody asks.
    pub fn refresh(&self) {
        // `VmHWM` of /proc; absent elsewhere, and then the gauge stays 0.
        let high_water = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
            status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))
                .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        });
        self.max_rss.set(high_water.unwrap_or(0));
    }
}

/// Registers a collector and hands it back. Two collectors of one name are our own mistake.
pub fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("no two metrics have one name");
    collector
}

/// All metrics in Prometheus' text format.
pub fn text(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap_or_else(|error| format!("# {error}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_carries_what_was_counted() {
        let registry = Registry::new();
        let metrics = ProcessMetrics::register(&registry);
        metrics.log_events.with_label_values(&["warn"]).inc();
        metrics.refresh();
        let text = text(&registry);
        assert!(text.contains("libmetrics_tracing_event_count{level=\"warn\"} 1"), "{text}");
        assert!(text.contains("libmetrics_maxrss_kb"), "{text}");
    }
}
