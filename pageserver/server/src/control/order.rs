//! What every change says of itself, checked.

use std::time::Duration;

use model::{Generation, Lsn, TenantShardId, TimelineId};
use proto::v1::{Mutation, Reason};
use tonic::{Code, Status};

use super::refusal::{invalid, refused};

/// Longest attempt: a ULID has 26 characters.
const LONGEST_ATTEMPT: usize = 64;
/// Longest time that a call may take to flush.
const LONGEST_FLUSH: Duration = Duration::from_mins(10);

/// A change of one tenant shard, as its owner.
#[derive(Clone, Debug)]
pub struct Order {
    /// Whose.
    pub shard: TenantShardId,
    /// As which owner.
    pub generation: Generation,
    /// The intent.
    pub attempt: String,
}

impl Order {
    /// Checks the fields, and that this process is meant.
    pub fn of(mutation: Option<Mutation>, instance: &str) -> Result<Order, Status> {
        let mutation = mutation.ok_or_else(|| invalid("mutation", "is missing"))?;
        meant_for(&mutation.expected_instance, instance)?;
        let shard = shard_of(&mutation.tenant_shard_id)?;
        if mutation.generation == 0 || Generation(mutation.generation) > Generation::LAST_OWNER {
            return Err(invalid("generation", "is none that an owner can have"));
        }
        if mutation.attempt.is_empty() || mutation.attempt.len() > LONGEST_ATTEMPT {
            return Err(invalid("attempt", "is empty or too long"));
        }
        Ok(Order { shard, generation: Generation(mutation.generation), attempt: mutation.attempt })
    }
}

/// Refuses what was meant for another process.
pub fn meant_for(expected: &str, instance: &str) -> Result<(), Status> {
    if expected == instance {
        return Ok(());
    }
    let message = format!("this is instance {instance}, not {expected:?}");
    Err(refused(Code::Aborted, Reason::OtherInstance, message))
}

/// A tenant shard's id.
pub fn shard_of(text: &str) -> Result<TenantShardId, Status> {
    text.parse().map_err(|_| invalid("tenant_shard_id", "is none"))
}

/// A timeline's id.
pub fn timeline_of(text: &str) -> Result<TimelineId, Status> {
    text.parse().map_err(|_| invalid("timeline_id", "is none"))
}

/// An LSN.
pub fn lsn_of(text: &str) -> Result<Lsn, Status> {
    text.parse().map_err(|_| invalid("lsn", "is none"))
}

/// A time to wait; `None` where none is given.
pub fn duration_of(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Status> {
    duration
        .map(|duration| {
            Duration::try_from(duration)
                .ok()
                .filter(|duration| *duration <= LONGEST_FLUSH)
                .ok_or_else(|| invalid(field, "is not between zero and ten minutes"))
        })
        .transpose()
}

/// How long something is to last; `None` where nothing is said.
pub fn length_of(
    length: Option<prost_types::Duration>,
    longest: Duration,
) -> Result<Option<Duration>, Status> {
    length
        .map(|length| {
            Duration::try_from(length)
                .ok()
                .filter(|length| !length.is_zero() && *length <= longest)
                .ok_or_else(|| invalid("length", "is not above zero, or too long"))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use proto::error::reason;

    use super::*;

    fn mutation() -> Mutation {
        Mutation {
            tenant_shard_id: "00112233445566778899aabbccddeeff".into(),
            generation: 7,
            attempt: "01JDBX6Q3V".into(),
            expected_instance: "here".into(),
        }
    }

    #[test]
    fn a_change_says_whose_as_whom_and_to_which_process() {
        let order = Order::of(Some(mutation()), "here").unwrap();
        assert_eq!(order.generation, Generation(7));
        let other = Order::of(Some(mutation()), "elsewhere").unwrap_err();
        assert_eq!((other.code(), reason(&other)), (Code::Aborted, Reason::OtherInstance));
        let wrong = [
            None,
            Some(Mutation { tenant_shard_id: "acme".into(), ..mutation() }),
            Some(Mutation { generation: 0, ..mutation() }),
            Some(Mutation { generation: u32::MAX, ..mutation() }),
            Some(Mutation { attempt: String::new(), ..mutation() }),
            Some(Mutation { attempt: "x".repeat(65), ..mutation() }),
        ];
        for mutation in wrong {
            let refused = Order::of(mutation, "here").unwrap_err();
            assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, Reason::Invalid));
        }
    }

    #[test]
    fn times_are_bounded() {
        let given = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        assert_eq!(duration_of("wait", None).unwrap(), None);
        assert_eq!(duration_of("wait", given(5)).unwrap(), Some(Duration::from_secs(5)));
        for wrong in [given(-1), given(601), given(i64::MAX)] {
            assert!(duration_of("wait", wrong).is_err());
        }
    }
}
