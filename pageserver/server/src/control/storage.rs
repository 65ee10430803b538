//! Whether the bucket can be trusted: found out at start, before any tenant is attached.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use engine::bucket::{ProbeError, probe};
use engine::error_story::error_story;
use engine::ports::Bucket;
use proto::v1::{Reason, Storage, StorageState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::refusal::{not_now, refused};

/// Pause before a bucket that did not answer is tried again.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// What is known of the bucket.
#[derive(Clone)]
pub struct StorageWatch {
    found: watch::Sender<Storage>,
}

impl Default for StorageWatch {
    fn default() -> Self {
        let storage = Storage { state: StorageState::Unavailable.into(), message: "not asked yet".into() };
        StorageWatch { found: watch::channel(storage).0 }
    }
}

impl StorageWatch {
    /// As it is known now.
    pub fn found(&self) -> Storage {
        self.found.borrow().clone()
    }

    /// Refuses what needs a bucket that can be trusted.
    pub fn check(&self) -> Result<(), Status> {
        let found = self.found.borrow();
        let message = || format!("the bucket: {}", found.message);
        match found.state() {
            StorageState::Conditional | StorageState::BestEffort => Ok(()),
            StorageState::Unsafe => Err(refused(Code::FailedPrecondition, Reason::StorageUnsafe, message())),
            StorageState::Unavailable | StorageState::Unspecified => {
                Err(not_now(Reason::StorageUnavailable, message()))
            }
        }
    }

    /// Asks the bucket until it can be used. With `required`, one that ignores conditions cannot.
    pub async fn find_out(
        self,
        bucket: Arc<dyn Bucket>,
        required: bool,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        loop {
            let (state, message) = match probe(&bucket).await {
                Ok(()) => (StorageState::Conditional, "it creates only what is not there".to_owned()),
                Err(error @ ProbeError::Condition(_)) if !required => {
                    (StorageState::BestEffort, error_story(&error))
                }
                Err(error @ ProbeError::Condition(_)) => (StorageState::Unsafe, error_story(&error)),
                Err(error @ ProbeError::Bucket(_)) => (StorageState::Unavailable, error_story(&error)),
            };
            tracing::info!(state = state.as_str_name(), "the bucket: {message}");
            self.found.send_replace(Storage { state: state.into(), message });
            if matches!(state, StorageState::Conditional | StorageState::BestEffort) {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(PROBE_EVERY) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}
