//! Calls to pageservers: a deadline for each, and what a failure means.

use std::time::Duration;

use model::TenantShardId;
use proto::v1::{ErrorDetail, Mutation, Reason};
use tonic::{Code, Response, Status};

use crate::metrics::Metrics;

/// A call that only looks, or writes down something small.
pub const SHORT: Duration = Duration::from_secs(10);
/// A call that claims, makes or deletes something.
pub const LONG: Duration = Duration::from_secs(25);
/// How long a pageserver may store what it has in memory before it lets go of a shard.
pub const FLUSH: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Clone, Debug, PartialEq)]
pub struct CallError {
    /// For programs.
    pub detail: ErrorDetail,
    /// For people.
    pub message: String,
}

impl CallError {
    /// What kind of failure.
    pub fn reason(&self) -> Reason {
        self.detail.reason()
    }

    /// Nobody answered.
    pub fn unanswered(message: impl Into<String>) -> CallError {
        CallError { detail: ErrorDetail::default(), message: message.into() }
    }
}

/// What every change says of itself.
pub fn mutation(shard: TenantShardId, generation: u32, attempt: &str, instance: &str) -> Mutation {
    Mutation {
        tenant_shard_id: shard.to_string(),
        generation,
        attempt: attempt.into(),
        expected_instance: instance.into(),
    }
}

/// As the API writes a length of time.
pub fn duration(of: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(of.as_secs()).unwrap_or(i64::MAX),
        nanos: of.subsec_nanos() as i32,
    }
}

/// Waits for an answer, and counts it.
pub async fn answer<T>(
    metrics: &Metrics,
    rpc: &str,
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    let started = tokio::time::Instant::now();
    let answered = tokio::time::timeout(deadline, call).await;
    let (code, result) = match answered {
        Ok(Ok(response)) => (Code::Ok, Ok(response.into_inner())),
        Ok(Err(status)) => {
            let detail = proto::error::detail(&status).unwrap_or_default();
            (status.code(), Err(CallError { detail, message: status.message().into() }))
        }
        Err(_) => {
            let message = format!("no answer within {} s", deadline.as_secs());
            (Code::DeadlineExceeded, Err(CallError::unanswered(message)))
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    metrics.rpc_seconds.with_label_values(&[rpc, &format!("{code:?}")]).observe(seconds);
    result
}
