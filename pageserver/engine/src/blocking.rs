//! Work that would hold others up.

use tokio::runtime::{Handle, RuntimeFlavor};

/// The work did not come to its end: it panicked, or the runtime is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the work was not done to its end")]
pub struct Ended;

/// Runs work that computes or blocks for long on a thread for blocking work. On a runtime of one thread it runs here and now: there is nobody
/// else to be kept free, and what a seeded run does must not depend on threads.
pub async fn run<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, Ended> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(work()),
        _ => tokio::task::spawn_blocking(work).await.map_err(|_| Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_it_in_place() {
        let here = std::thread::current().id();
        assert_eq!(run(|| std::thread::current().id()).await, Ok(here));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_runtime_of_many_threads_does_it_elsewhere_and_survives_a_panic() {
        let here = std::thread::current().id();
        assert_ne!(run(|| std::thread::current().id()).await, Ok(here));
        let panicking: fn() = || panic!("on purpose");
        assert_eq!(run(panicking).await, Err(Ended));
    }
}
