//! How deep reads of pages go: layers that one looks into, and changes that it redoes. Debt that compaction has not paid yet shows here first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};

/// Depths below this are counted one by one, so that sums are exact; what is deeper counts as this.
const DEEPEST: usize = 255;

const LAYER_BOUNDS: [usize; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32];
const CHANGE_BOUNDS: [usize; 13] = [0, 1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 128];

/// Reads of pages, by depth. One for a process; counting is one increment for each of the two.
#[derive(Debug, Default)]
pub struct ReadCounts {
    layers: Depths,
    changes: Depths,
}

#[derive(Debug)]
struct Depths([AtomicU64; DEEPEST + 1]);

impl Default for Depths {
    fn default() -> Depths {
        Depths(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl ReadCounts {
    /// Counts a read.
    #[inline]
    pub fn count(&self, layers: usize, changes: usize) {
        self.layers.0[layers.min(DEEPEST)].fetch_add(1, Relaxed);
        self.changes.0[changes.min(DEEPEST)].fetch_add(1, Relaxed);
    }

    /// Reads that looked into so many layers, by number of layers.
    pub fn layers(&self) -> Vec<u64> {
        self.layers.all()
    }

    /// Reads that redid so many changes, by number of changes.
    pub fn changes(&self) -> Vec<u64> {
        self.changes.all()
    }

    /// Makes them visible.
    pub fn register(self: &Arc<Self>, registry: &prometheus::Registry) -> prometheus::Result<()> {
        let desc =
            |name: &str, help: &str| Desc::new(name.into(), help.into(), Vec::new(), HashMap::default());
        registry.register(Box::new(ReadDepths {
            counts: Arc::clone(self),
            layers: desc("palimpsest_read_layers", "Layers that a read of a page looked into")?,
            changes: desc("palimpsest_read_changes", "Changes that a read of a page redid")?,
        }))
    }
}

impl Depths {
    fn all(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Relaxed)).collect()
    }
}

/// Shows counts as histograms.
struct ReadDepths {
    counts: Arc<ReadCounts>,
    layers: Desc,
    changes: Desc,
}

impl Collector for ReadDepths {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.layers, &self.changes]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        vec![
            family(&self.layers, histogram(&self.counts.layers(), &LAYER_BOUNDS)),
            family(&self.changes, histogram(&self.counts.changes(), &CHANGE_BOUNDS)),
        ]
    }
}

fn family(desc: &Desc, histogram: Histogram) -> MetricFamily {
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let mut family = MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(vec![metric]);
    family
}

fn histogram(counts: &[u64], bounds: &[usize]) -> Histogram {
    let buckets = bounds.iter().map(|bound| {
        let mut bucket = Bucket::default();
        bucket.set_cumulative_count(counts[..=*bound].iter().sum());
        bucket.set_upper_bound(*bound as f64);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram
        .set_sample_sum(counts.iter().enumerate().map(|(depth, count)| depth as f64 * *count as f64).sum());
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_show_as_histograms_with_exact_sums() {
        let counts = Arc::new(ReadCounts::default());
        for (layers, changes) in [(1, 0), (4, 3), (4, 24), (9, 1_000)] {
            counts.count(layers, changes);
        }
        let registry = prometheus::Registry::new();
        counts.register(&registry).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "palimpsest_read_layers_bucket{le=\"3\"} 1",
            "palimpsest_read_layers_bucket{le=\"4\"} 3",
            "palimpsest_read_layers_bucket{le=\"+Inf\"} 4",
            "palimpsest_read_layers_sum 18",
            "palimpsest_read_changes_bucket{le=\"24\"} 3",
            "palimpsest_read_changes_sum 282",
            "palimpsest_read_changes_count 4",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
