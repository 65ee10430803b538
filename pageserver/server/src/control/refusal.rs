//! The engine's errors as the API's.

use engine::claim::{ConfirmError, TakeClaimError, ValidateError};
use engine::deletion::DeleteTenantError;
use engine::error_story::error_story;
use engine::index_store::PutIndexError;
use engine::ports::BucketError;
use engine::tenant::{AttachAsError, ChangeError, ManifestError, NotFound, TenantConfigError};
use engine::timeline::lease::{LeaseError, OutOfHistory};
use engine::timeline::named::NameError;
use model::Generation;
use proto::v1::{ErrorDetail, Reason};
use tonic::{Code, Status};

use crate::source::client::ClientError;
use crate::source::followers::FollowRequestError;
use crate::source::import::ImportFailure;
use crate::source::receiver::FollowError;

/// When a call that found the bucket or a tenant not ready may be made again.
const RETRY_SECONDS: i64 = 2;

/// A failed call whose repetition does not help.
pub fn refused(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    proto::error::status(code, message, &ErrorDetail { reason: reason.into(), ..ErrorDetail::default() })
}

/// A failed call that may succeed soon.
pub fn not_now(reason: Reason, message: impl Into<String>) -> Status {
    let retry_after = Some(prost_types::Duration { seconds: RETRY_SECONDS, nanos: 0 });
    let detail = ErrorDetail { reason: reason.into(), retry_after, ..ErrorDetail::default() };
    proto::error::status(Code::Unavailable, message, &detail)
}

/// A field that makes no sense.
pub fn invalid(field: &'static str, what: &str) -> Status {
    refused(Code::InvalidArgument, Reason::Invalid, format!("{field} {what}"))
}

/// Another owner is in the way.
pub fn superseded(highest: Generation, pool_uid: String, message: impl Into<String>) -> Status {
    let reason = if highest == Generation::DELETED { Reason::TenantDeleted } else { Reason::Superseded };
    let detail =
        ErrorDetail { reason: reason.into(), highest_generation: highest.0, pool_uid, retry_after: None };
    proto::error::status(Code::FailedPrecondition, message, &detail)
}

/// An attachment that failed.
pub fn of_attach(error: AttachAsError) -> Status {
    let story = error_story(&error);
    match error {
        AttachAsError::Confirm(ConfirmError::Deleted(_)) => {
            superseded(Generation::DELETED, String::new(), story)
        }
        AttachAsError::Confirm(ConfirmError::Superseded { highest, by, .. }) => {
            superseded(highest, by.map(|by| by.pool_uid).unwrap_or_default(), story)
        }
        AttachAsError::Confirm(ConfirmError::Bucket(error)) => of_bucket(&error, story),
        AttachAsError::Config(error) => of_config(error, story),
        AttachAsError::Older { here, .. } => superseded(here, String::new(), story),
        AttachAsError::OtherAttempt { generation, .. } => superseded(generation, String::new(), story),
        AttachAsError::OtherShard(_) => refused(Code::FailedPrecondition, Reason::Invalid, story),
        AttachAsError::Stopping => not_now(Reason::Draining, story),
    }
}

fn of_config(error: TenantConfigError, story: String) -> Status {
    match error {
        TenantConfigError::Bucket(error) => of_bucket(&error, story),
        TenantConfigError::Validate(error) => of_change(error.into()),
        TenantConfigError::Malformed { .. } => refused(Code::Internal, Reason::Internal, story),
    }
}

/// A timeline or tenant that is not there, or not yet.
pub fn of_not_found(error: &NotFound) -> Status {
    let message = error.to_string();
    match error {
        NotFound::Tenant(_) => refused(Code::FailedPrecondition, Reason::NotAttached, message),
        NotFound::Timeline(_) => refused(Code::NotFound, Reason::TimelineUnknown, message),
        NotFound::Archived(_) => refused(Code::FailedPrecondition, Reason::TimelineArchived, message),
        NotFound::Loading(_) => not_now(Reason::Loading, message),
        NotFound::Importing(_) => not_now(Reason::TimelineNotReadable, message),
        NotFound::Broken { .. } => refused(Code::FailedPrecondition, Reason::TimelineNotReadable, message),
    }
}

/// A change that was not made.
pub fn of_change(error: ChangeError) -> Status {
    let story = error_story(&error);
    let precondition = |reason| refused(Code::FailedPrecondition, reason, story.clone());
    match error {
        ChangeError::NotFound(error) => of_not_found(&error),
        ChangeError::Refused(_) => refused(Code::OutOfRange, Reason::OutOfHistory, story),
        ChangeError::TenantExists(_) | ChangeError::Conflict(_) => {
            refused(Code::AlreadyExists, Reason::TimelineConflict, story)
        }
        ChangeError::Buried(_) => precondition(Reason::TimelineDeleted),
        ChangeError::HasChildren(..) | ChangeError::HasOpenChildren(..) => {
            precondition(Reason::TimelineHasBranches)
        }
        ChangeError::ArchivedAncestor(..) => precondition(Reason::TimelineArchived),
        ChangeError::NoAncestor(_) => precondition(Reason::Invalid),
        ChangeError::Detaching(_) => not_now(Reason::TimelineNotReadable, story),
        ChangeError::Manifest(ManifestError::Bucket(error)) => of_bucket(&error, story),
        ChangeError::Stale(_) | ChangeError::Multi(_) => precondition(Reason::Mode),
        ChangeError::Deleting(_) | ChangeError::Claim(TakeClaimError::Deleted(_)) => {
            superseded(Generation::DELETED, String::new(), story)
        }
        ChangeError::Validate(ValidateError::Superseded { by, .. }) => superseded(by, String::new(), story),
        ChangeError::DeleteTenant(DeleteTenantError::ForeignClaim { .. }) => precondition(Reason::Superseded),
        ChangeError::Config(error) => of_config(error, story),
        ChangeError::PutIndex(error) => of_put(error, story),
        ChangeError::StillRunning(_) => not_now(Reason::Loading, story),
        ChangeError::Elsewhere(_) => precondition(Reason::NotAttached),
        ChangeError::Bucket(error) | ChangeError::Validate(ValidateError::Bucket(error)) => {
            of_bucket(&error, story)
        }
        _ => refused(Code::Internal, Reason::Internal, story),
    }
}

/// An LSN that was not leased.
pub fn of_lease(error: LeaseError) -> Status {
    let story = error_story(&error);
    match error {
        LeaseError::OutOfHistory(OutOfHistory::Read(_)) => not_now(Reason::TimelineNotReadable, story),
        LeaseError::OutOfHistory(_) => refused(Code::OutOfRange, Reason::OutOfHistory, story),
        LeaseError::TooMany => refused(Code::ResourceExhausted, Reason::TooMany, story),
        LeaseError::NoPostgres => refused(Code::FailedPrecondition, Reason::Invalid, story),
        LeaseError::Index(error) => of_put(error, story),
        LeaseError::Validate(error) => of_change(error.into()),
    }
}

/// An LSN that was not named, or whose name was not ended.
pub fn of_name(error: NameError) -> Status {
    let story = error_story(&error);
    match error {
        NameError::Malformed(_) => refused(Code::InvalidArgument, Reason::Invalid, story),
        NameError::Taken { .. } => refused(Code::AlreadyExists, Reason::NameTaken, story),
        NameError::OutOfHistory(OutOfHistory::Read(_)) => not_now(Reason::TimelineNotReadable, story),
        NameError::OutOfHistory(_) => refused(Code::OutOfRange, Reason::OutOfHistory, story),
        NameError::TooMany => refused(Code::ResourceExhausted, Reason::TooMany, story),
        NameError::NoPostgres => refused(Code::FailedPrecondition, Reason::Invalid, story),
        NameError::Index(error) => of_put(error, story),
        NameError::Validate(error) => of_change(error.into()),
    }
}

fn of_put(error: PutIndexError, story: String) -> Status {
    match error {
        PutIndexError::Bucket { source, .. } => of_bucket(&source, story),
        PutIndexError::Together { .. } => not_now(Reason::StorageUnavailable, story),
        PutIndexError::Stopped { .. } | PutIndexError::Plain(_) => {
            refused(Code::Internal, Reason::Internal, story)
        }
    }
}

/// A source that is not followed.
pub fn of_source(error: FollowRequestError) -> Status {
    let story = error_story(&error);
    match error {
        FollowRequestError::ConnInfo(_) => refused(Code::InvalidArgument, Reason::Invalid, story),
        FollowRequestError::Change(error) | FollowRequestError::Import(ImportFailure::Change(error)) => {
            of_change(error)
        }
        FollowRequestError::Import(ImportFailure::Client(error))
        | FollowRequestError::Follow(FollowError::Client(error)) => of_client(&error, story),
        FollowRequestError::Archived(_)
        | FollowRequestError::OtherCluster { .. }
        | FollowRequestError::Import(_)
        | FollowRequestError::Follow(_) => refused(Code::FailedPrecondition, Reason::SourceUnfit, story),
    }
}

fn of_client(error: &ClientError, story: String) -> Status {
    match error {
        ClientError::Authentication(_) | ClientError::Tls(_) | ClientError::Server { .. } => {
            refused(Code::FailedPrecondition, Reason::SourceRefused, story)
        }
        _ => not_now(Reason::SourceUnreachable, story),
    }
}

fn of_bucket(error: &BucketError, story: String) -> Status {
    match error {
        BucketError::Unavailable { .. } | BucketError::Rejected { .. } => {
            not_now(Reason::StorageUnavailable, story)
        }
        _ => refused(Code::Internal, Reason::Internal, story),
    }
}
