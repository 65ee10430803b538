//! Deletes the objects of layers that the index no longer names, each after its last reader.
//!
//! A deletion that fails is tried again. What is left when the timeline closes belongs to nobody's index: a later owner collects it ([`crate::sweep`]).

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::bucket::DELETE_BATCH;
use crate::claim::{Claim, ValidateError};

/// What comes within this time is deleted with one request and one listing of claims.
const GATHER: Duration = Duration::from_secs(2);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Takes the paths of objects that nobody needs any more.
pub(super) struct Reaper {
    pub claim: Claim,
    pub retired: mpsc::UnboundedReceiver<String>,
}

impl Reaper {
    /// Runs until stopped; what has come by then is deleted if the bucket does it at the first attempt.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ValidateError> {
        let mut pause = GATHER;
        let mut paths: Vec<String> = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(path) = self.retired.recv(), if paths.is_empty() => paths.push(path),
                () = tokio::time::sleep(pause), if !paths.is_empty() => {
                    self.gather(&mut paths);
                    match self.delete(&mut paths).await {
                        Ok(()) => pause = GATHER,
                        Err(superseded @ ValidateError::Superseded { .. }) => return Err(superseded),
                        Err(error) => {
                            warn!(error = %crate::error_story::error_story(&error), objects = paths.len(), "cannot delete layers that are not needed any more");
                            pause = (pause * 2).min(LONGEST_PAUSE);
                        }
                    }
                }
            }
        }
        self.gather(&mut paths);
        let _ = self.delete(&mut paths).await; // a later owner finds what is left
        Ok(())
    }

    fn gather(&mut self, paths: &mut Vec<String>) {
        while let Ok(path) = self.retired.try_recv() {
            paths.push(path);
        }
    }

    /// Deletes what is in `paths`, and leaves there what could not be.
    async fn delete(&self, paths: &mut Vec<String>) -> Result<(), ValidateError> {
        while !paths.is_empty() {
            let batch = paths.len().min(DELETE_BATCH);
            self.claim.validate().await?;
            self.claim.bucket().delete(&paths[..batch]).await?;
            paths.drain(..batch);
        }
        Ok(())
    }
}
