//! What the operator counts. No label names a tenant: there may be many.

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Seconds of calls and passes.
const SECONDS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 5.0, 15.0, 30.0];

/// All counters.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Tenants, by reason of their condition Ready.
    pub tenants: IntGaugeVec,
    /// Shards that statuses place, by `attached` or `target`.
    pub shards: IntGaugeVec,
    /// Generations given, by why.
    pub allocations: IntCounterVec,
    /// Whether a pageserver answers.
    pub pageserver_up: IntGaugeVec,
    /// Shards that a pageserver reports.
    pub pageserver_shards: IntGaugeVec,
    /// Calls to pageservers.
    pub rpc_seconds: HistogramVec,
    /// Writes to the API server.
    pub api_writes: IntCounterVec,
    /// Passes.
    pub reconcile_seconds: HistogramVec,
    /// Passes that failed.
    pub reconcile_errors: IntCounterVec,
    /// Whether this process leads.
    pub leader: IntGauge,
    /// Pools in which failover is held.
    pub failover_held: IntGaugeVec,
    /// Times that a task was started again.
    pub task_restarts: IntCounterVec,
}

impl Metrics {
    /// Counters at zero, in a registry of their own.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let histograms = HistogramVec::new(options, labels)?;
            registry.register(Box::new(histograms.clone()))?;
            Ok::<_, prometheus::Error>(histograms)
        };
        let leader = IntGauge::new("operator_leader", "Whether this process leads")?;
        registry.register(Box::new(leader.clone()))?;
        Ok(Metrics {
            tenants: gauges("operator_tenants", "Tenants by reason of their condition Ready", &["state"])?,
            shards: gauges("operator_shards", "Shards that statuses place", &["mode"])?,
            allocations: counters("operator_generation_allocations_total", "Generations given", &["reason"])?,
            pageserver_up: gauges(
                "operator_pageserver_up",
                "Whether a pageserver answers",
                &["namespace", "pod"],
            )?,
            pageserver_shards: gauges(
                "operator_pageserver_shards",
                "Shards that a pageserver reports to hold",
                &["namespace", "pod"],
            )?,
            rpc_seconds: histograms("operator_rpc_seconds", "Calls to pageservers", &["rpc", "code"])?,
            api_writes: counters(
                "operator_api_writes_total",
                "Writes to the API server",
                &["kind", "verb", "code"],
            )?,
            reconcile_seconds: histograms("operator_reconcile_seconds", "Passes over resources", &["kind"])?,
            reconcile_errors: counters(
                "operator_reconcile_errors_total",
                "Passes that failed",
                &["kind", "reason"],
            )?,
            leader,
            failover_held: gauges(
                "operator_failover_held",
                "Whether too many pageservers are silent to attach anything elsewhere",
                &["namespace", "pool"],
            )?,
            task_restarts: counters(
                "operator_task_restarts_total",
                "Tasks that failed and were started again",
                &["task"],
            )?,
            registry,
        })
    }

    /// All of them in Prometheus' text format.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// Counts a write to the API server.
    pub fn wrote<T>(&self, kind: &str, verb: &str, result: &kube::Result<T>) {
        let code = match result {
            Ok(_) => "200".to_owned(),
            Err(kube::Error::Api(status)) => status.code.to_string(),
            Err(_) => "none".to_owned(),
        };
        self.api_writes.with_label_values(&[kind, verb, &code]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::new().unwrap();
        metrics.allocations.with_label_values(&["Lost"]).inc();
        metrics.wrote::<()>("Tenant", "update", &Ok(()));
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        assert!(text.contains("operator_generation_allocations_total{reason=\"Lost\"} 1"), "{text}");
        assert!(
            text.contains("operator_api_writes_total{code=\"200\",kind=\"Tenant\",verb=\"update\"} 1"),
            "{text}"
        );
    }
}
