//! What the page service counts. Names are Neon's.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, exponential_buckets,
};

use crate::metrics::registered;

/// Counters of the page service.
#[derive(Clone)]
pub struct LibpqMetrics {
    /// `pageserver_smgr_query_seconds_global` by kind of request: from decoding to the answer being in the output.
    pub query_seconds: [Histogram; 5],
    /// `pageserver_smgr_query_started_global_count` by kind of request.
    pub queries_started: [IntCounter; 5],
    /// `pageserver_page_service_batch_size_global`.
    pub batch_size: Histogram,
    /// `pageserver_wait_lsn_seconds`.
    pub wait_lsn_seconds: Histogram,
    /// `pageserver_basebackup_query_seconds`, by result.
    pub basebackup_seconds: HistogramVec,
    /// `pageserver_compute_commands`, by command.
    pub commands: IntCounterVec,
    /// `pageserver_pagestream_handler_results_total`, by outcome.
    pub pagestream_results: IntCounterVec,
    /// `pageserver_live_connections_started`.
    pub connections_started: IntCounter,
    /// `pageserver_live_connections_finished`.
    pub connections_finished: IntCounter,
    /// Connections refused because there were too many.
    pub connections_refused: IntCounter,
}

/// Kinds of pagestream requests, as they index and label counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum QueryKind {
    Exists,
    Nblocks,
    GetPage,
    DbSize,
    GetSlruSegment,
}

const QUERY_LABELS: [&str; 5] =
    ["get_rel_exists", "get_rel_size", "get_page_at_lsn", "get_db_size", "get_slru_segment"];

impl LibpqMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Self {
        const WELL_FORMED: &str = "the name is well-formed";
        // 10 µs to 40 s: a hot page at one end, a wait for WAL at the other.
        let seconds = || exponential_buckets(0.000_01, 2.0, 22).expect("the bounds rise");
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let options = HistogramOpts::new(name, help).buckets(buckets);
            registered(registry, Histogram::with_opts(options).expect(WELL_FORMED))
        };
        let histograms = |name: &str, help: &str, label: &str| {
            let options = HistogramOpts::new(name, help).buckets(seconds());
            registered(registry, HistogramVec::new(options, &[label]).expect(WELL_FORMED))
        };
        let counters = |name: &str, help: &str, label: &str| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), &[label]).expect(WELL_FORMED))
        };
        let query_seconds = histograms(
            "pageserver_smgr_query_seconds_global",
            "Time to answer a pagestream request",
            "smgr_query_type",
        );
        let queries_started = counters(
            "pageserver_smgr_query_started_global_count",
            "Pagestream requests begun",
            "smgr_query_type",
        );
        let connections_started = counters(
            "pageserver_live_connections_started",
            "Connections accepted",
            "pageserver_connection_kind",
        );
        let connections_finished = counters(
            "pageserver_live_connections_finished",
            "Connections ended",
            "pageserver_connection_kind",
        );
        LibpqMetrics {
            query_seconds: QUERY_LABELS.map(|label| query_seconds.with_label_values(&[label])),
            queries_started: QUERY_LABELS.map(|label| queries_started.with_label_values(&[label])),
            batch_size: histogram(
                "pageserver_page_service_batch_size_global",
                "GetPage requests answered together",
                vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
            ),
            wait_lsn_seconds: histogram(
                "pageserver_wait_lsn_seconds",
                "Time requests waited for WAL",
                seconds(),
            ),
            basebackup_seconds: histograms(
                "pageserver_basebackup_query_seconds",
                "Time to send a base or full backup",
                "result",
            ),
            commands: counters("pageserver_compute_commands", "Commands received", "command"),
            pagestream_results: counters(
                "pageserver_pagestream_handler_results_total",
                "How pagestreams ended",
                "outcome",
            ),
            connections_started: connections_started.with_label_values(&["page_service"]),
            connections_finished: connections_finished.with_label_values(&["page_service"]),
            connections_refused: registered(
                registry,
                IntCounter::new(
                    "palimpsest_connections_refused_total",
                    "Connections refused because there were too many",
                )
                .expect(WELL_FORMED),
            ),
        }
    }

    /// Counts `count` answers that each took `seconds`.
    pub fn answered(&self, kind: QueryKind, count: usize, seconds: f64) {
        let histogram = &self.query_seconds[kind as usize];
        (0..count).for_each(|_| histogram.observe(seconds));
    }
}
