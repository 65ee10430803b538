//! Long tasks of the process: started by name, started again when they fail, awaited at the end.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// First pause before a failed task is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause. A task that then runs for so long counts as healthy.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Starts tasks and awaits their end. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    tracker: TaskTracker,
    stop: CancellationToken,
    metrics: Metrics,
    first_pause: Duration,
}

impl Supervisor {
    /// A supervisor whose tasks are told to end by `stop`.
    pub fn new(stop: CancellationToken, metrics: Metrics) -> Supervisor {
        Supervisor { tracker: TaskTracker::new(), stop, metrics, first_pause: FIRST_PAUSE }
    }

    /// Starts a task. `make` gives its future, once for every start.
    pub fn start<F, E>(
        &self,
        name: &'static str,
        mut make: impl FnMut(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let (stop, metrics, first_pause) = (self.stop.clone(), self.metrics.clone(), self.first_pause);
        self.tracker.spawn(async move {
            let mut pause = first_pause;
            while !stop.is_cancelled() {
                let started = Instant::now();
                let why = match AssertUnwindSafe(make(stop.clone())).catch_unwind().await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(_panic) => "panicked; the log has the place".into(),
                };
                pause = if started.elapsed() > LONGEST_PAUSE { first_pause } else { pause };
                tracing::error!(task = name, "a task failed and is started again: {why}");
                metrics.task_restarts.with_label_values(&[name]).inc();
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// Waits until all tasks have ended.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_started_again_until_it_ends() {
        let metrics = Metrics::new().unwrap();
        let supervisor = Supervisor {
            first_pause: Duration::from_micros(1),
            ..Supervisor::new(CancellationToken::new(), metrics.clone())
        };
        let starts = Arc::new(AtomicU32::new(0));
        let count = starts.clone();
        supervisor.start("flaky", move |_| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(n != 1, "a panic");
                if n < 3 { Err("a failure") } else { Ok(()) }
            }
        });
        supervisor.ended().await;
        assert_eq!(starts.load(Ordering::SeqCst), 4);
        assert_eq!(metrics.task_restarts.with_label_values(&["flaky"]).get(), 3);
    }
}
