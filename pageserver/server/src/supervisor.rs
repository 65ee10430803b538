//! Every long task of the process: started here by name, restarted with backoff when it fails, shown over HTTP, awaited at the end.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// First pause before a failed task is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause. A task that then runs for this long counts as healthy, and its next failure starts at the first pause again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Starts tasks and knows how they fare. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    // Guards the table of tasks; held for a look-up or an update, never across an await.
    tasks: Arc<Mutex<BTreeMap<String, TaskReport>>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// A task that was started.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    stop: CancellationToken,
    ended: CancellationToken,
}

impl TaskHandle {
    /// Tells it to come to its end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// The same, and waits for the end.
    pub async fn end(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

/// What is known of a task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskReport {
    /// Unique among the tasks.
    pub name: String,
    /// What it does now.
    pub state: TaskState,
    /// Times it was started again after a failure.
    pub restarts: u64,
    /// Why it last failed.
    pub last_error: Option<String>,
    /// Seconds since 1970 when `state` began.
    pub since: f64,
}

/// What a task does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It runs.
    Running,
    /// It failed and waits to be started again.
    BackingOff,
    /// It came to its end.
    Finished,
    /// It failed and is not started again.
    Failed,
}

/// What to do when a task fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Start it again after a pause that doubles.
    Restart,
    /// Leave it so. For tasks whose failure is an answer, such as an import's.
    Keep,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new() -> Self {
        Supervisor { tasks: Arc::default(), tracker: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// Starts a task. `make` gives its future, once for every start; the token it gets tells it to come to its end. A task of the same name
    /// that runs is told to end by its own token's owner, not by this call; its report is replaced.
    pub fn start<M, F, E>(&self, name: impl Into<String>, on_failure: OnFailure, make: M) -> TaskHandle
    where
        M: FnMut(CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        self.start_unless(name, move |_: &E| on_failure == OnFailure::Keep, make)
    }

    /// The same; a failure that `is_final` is left so, any other is followed by another start.
    pub fn start_unless<M, F, E>(
        &self,
        name: impl Into<String>,
        is_final: impl Fn(&E) -> bool + Send + 'static,
        mut make: M,
    ) -> TaskHandle
    where
        M: FnMut(CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let name: String = name.into();
        let stop = self.stop.child_token();
        self.update(&name, |task| {
            *task = TaskReport { name: task.name.clone(), ..TaskReport::starting("") };
        });
        let this = self.clone();
        let token = stop.clone();
        let ended = CancellationToken::new();
        let at_end = ended.clone().drop_guard();
        let span = tracing::info_span!("task", task = %name);
        self.tracker.spawn(
            async move {
                let _at_end = at_end;
                let mut pause = FIRST_PAUSE;
                loop {
                    let started = Instant::now();
                    // The future is dropped whole after a panic, so nobody sees what it left half done.
                    let failure = match AssertUnwindSafe(make(token.clone())).catch_unwind().await {
                        Ok(Ok(())) => None,
                        Ok(Err(error)) => Some((error.to_string(), is_final(&error))),
                        Err(_panic) => Some(("panicked; the log has the place".into(), false)),
                    };
                    let Some((error, is_final)) = failure else {
                        this.update(&name, |task| task.enter(TaskState::Finished));
                        return;
                    };
                    if token.is_cancelled() || is_final {
                        tracing::warn!("failed: {error}");
                        this.update(&name, |task| task.fail(TaskState::Failed, error));
                        return;
                    }
                    if started.elapsed() >= LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                    tracing::warn!("failed, starts again in {pause:?}: {error}");
                    this.update(&name, |task| task.fail(TaskState::BackingOff, error));
                    tokio::select! {
                        () = token.cancelled() => {
                            this.update(&name, |task| task.enter(TaskState::Finished));
                            return;
                        }
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    this.update(&name, |task| {
                        task.restarts += 1;
                        task.enter(TaskState::Running);
                    });
                }
            }
            .instrument(span),
        );
        TaskHandle { stop, ended }
    }

    /// Every task there is or was, by name.
    pub fn list(&self) -> Vec<TaskReport> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Forgets a task that is over, such as one of a deleted timeline.
    pub fn forget(&self, name: &str) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Ends when the tasks are told to end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells every task to end and waits for them; answers whether all did within the time.
    pub async fn shut_down(&self, within: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
    }

    fn update(&self, name: &str, change: impl FnOnce(&mut TaskReport)) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        change(tasks.entry(name.into()).or_insert_with(|| TaskReport::starting(name)));
    }
}

impl TaskReport {
    fn starting(name: &str) -> Self {
        TaskReport {
            name: name.into(),
            state: TaskState::Running,
            restarts: 0,
            last_error: None,
            since: now(),
        }
    }

    fn enter(&mut self, state: TaskState) {
        self.state = state;
        self.since = now();
    }

    fn fail(&mut self, state: TaskState, error: String) {
        self.last_error = Some(error);
        self.enter(state);
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn until(supervisor: &Supervisor, name: &str, is: impl Fn(&TaskReport) -> bool) -> TaskReport {
        for _ in 0..10_000 {
            if let Some(report) = supervisor.list().into_iter().find(|task| task.name == name && is(task)) {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} never got there: {:?}", supervisor.list());
    }

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_started_again_and_shown() {
        let supervisor = Supervisor::new();
        let starts = Arc::new(AtomicU32::new(0));
        supervisor.start("shaky", OnFailure::Restart, move |_stop| {
            let start = starts.fetch_add(1, Ordering::Relaxed);
            async move {
                match start {
                    0 => Err("first"),
                    1 => panic!("second"),
                    _ => Ok(()),
                }
            }
        });
        let report = until(&supervisor, "shaky", |task| task.state == TaskState::Finished).await;
        assert_eq!(report.restarts, 2);
        assert!(report.last_error.unwrap().contains("panicked"));
    }

    #[tokio::test]
    async fn a_failure_that_is_an_answer_is_kept() {
        let supervisor = Supervisor::new();
        supervisor.start("import", OnFailure::Keep, |_stop| async { Err::<(), _>("no such host") });
        let report = until(&supervisor, "import", |task| task.state == TaskState::Failed).await;
        assert_eq!(report.last_error.as_deref(), Some("no such host"));
        assert_eq!(report.restarts, 0);
    }

    #[tokio::test]
    async fn shutting_down_waits_for_tasks_up_to_its_limit() {
        let supervisor = Supervisor::new();
        supervisor.start("obedient", OnFailure::Restart, |stop| async move {
            stop.cancelled().await;
            Ok::<(), String>(())
        });
        assert!(supervisor.shut_down(Duration::from_secs(1)).await);

        let supervisor = Supervisor::new();
        supervisor.start("deaf", OnFailure::Restart, |_stop| std::future::pending::<Result<(), String>>());
        assert!(!supervisor.shut_down(Duration::from_millis(20)).await);
    }
}
