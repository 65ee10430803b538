//! Keeps the synthetic sizes of all tenants: each anew every while, one after the other, so that no more than one read is under way for them.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use engine::error_story::error_story;
use engine::tenant::Tenants;
use engine::tenant_size::{SyntheticSizeError, synthetic_size};
use prometheus::{IntCounter, Registry};
use tokio_util::sync::CancellationToken;

use crate::metrics::registered;

/// The first round comes so soon after the start at the latest.
const FIRST_WITHIN: Duration = Duration::from_secs(10);

/// What keeping them counts.
#[derive(Clone)]
pub struct SizeMetrics {
    made: IntCounter,
    failed: IntCounter,
}

impl SizeMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            registered(registry, IntCounter::new(name, help).expect("the name is well-formed"))
        };
        SizeMetrics {
            made: counter("palimpsest_synthetic_size_calculations_total", "Synthetic sizes that were made"),
            failed: counter(
                "palimpsest_synthetic_size_failures_total",
                "Synthetic sizes that could not be made: the last one stands",
            ),
        }
    }
}

/// Keeps them until told to stop.
pub async fn keep(
    tenants: Tenants,
    metrics: SizeMetrics,
    every: Duration,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut pause = FIRST_WITHIN.min(every).mul_f64(rand::random());
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
        tokio::select! {
            () = make_all(&tenants, &metrics) => {}
            () = stop.cancelled() => return Ok(()),
        }
        // Servers that were started together need not do it together.
        pause = every.mul_f64(rand::random_range(0.95..1.05));
    }
}

async fn make_all(tenants: &Tenants, metrics: &SizeMetrics) {
    for tenant in tenants.attached() {
        match synthetic_size(&tenant, None, SystemTime::now()).await {
            Ok(_) => metrics.made.inc(),
            Err(SyntheticSizeError::NotTheFirstShard(_)) => {}
            Err(error) => {
                metrics.failed.inc();
                tracing::warn!(tenant = %tenant.shard(), "no synthetic size: {}", error_story(&error));
            }
        }
    }
}
