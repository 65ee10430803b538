//! Answers that are errors: a status and `{"msg": "…"}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::as_of::ReadError;
use engine::claim::{TakeClaimError, ValidateError};
use engine::deletion::DeleteTenantError;
use engine::tenant::{ChangeError, NotFound};
use engine::tenant_size::SyntheticSizeError;
use engine::timeline::lease::LeaseError;
use engine::timeline::named::NameError;
use serde_json::json;

use crate::source::followers::FollowRequestError;
use crate::source::import::ImportFailure;
use crate::source::receiver::FollowError;
use crate::source::stored::{NoSuchBase, StoredBaseError};
use engine::error_story::error_story;

/// A request that was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// How it failed.
    pub status: StatusCode,
    /// Why.
    pub msg: String,
}

impl Refused {
    /// With a status and a text.
    pub fn new(status: StatusCode, msg: impl Into<String>) -> Self {
        Refused { status, msg: msg.into() }
    }

    /// 400.
    pub fn bad_request(msg: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, msg)
    }

    fn conflict(msg: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, format!("Conflict: {msg}"))
    }

    fn precondition(msg: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, format!("Precondition failed: {msg}"))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "msg": self.msg }))).into_response()
    }
}

impl From<NotFound> for Refused {
    fn from(error: NotFound) -> Self {
        match &error {
            NotFound::Tenant(tenant) => {
                Self::new(StatusCode::NOT_FOUND, format!("NotFound: tenant {tenant}"))
            }
            NotFound::Timeline(_) => Self::new(StatusCode::NOT_FOUND, format!("NotFound: {error}")),
            NotFound::Archived(_) => Self::precondition(error),
            NotFound::Importing(_) | NotFound::Loading(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            NotFound::Broken { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl From<ReadError> for Refused {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Superseded | ReadError::Stopping | ReadError::Away { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error_story(&error))
            }
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error_story(&error)),
        }
    }
}

impl From<SyntheticSizeError> for Refused {
    fn from(error: SyntheticSizeError) -> Self {
        match error {
            SyntheticSizeError::NotTheFirstShard(_) => Self::bad_request(error.to_string()),
            SyntheticSizeError::Read { source: ReadError::Superseded | ReadError::Stopping, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error_story(&error))
            }
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error_story(&error)),
        }
    }
}

impl From<ChangeError> for Refused {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound(error) => error.into(),
            ChangeError::Refused(reason) => Self::new(StatusCode::NOT_ACCEPTABLE, reason),
            ChangeError::TenantExists(_)
            | ChangeError::Conflict(_)
            | ChangeError::Buried(_)
            | ChangeError::Deleting(_)
            | ChangeError::Stale(_)
            | ChangeError::Multi(_)
            | ChangeError::Elsewhere(_)
            | ChangeError::NoAncestor(_)
            | ChangeError::Detaching(_)
            | ChangeError::DeleteTenant(DeleteTenantError::ForeignClaim { .. }) => Self::conflict(error),
            ChangeError::Claim(source @ TakeClaimError::Deleted(_)) => Self::conflict(source),
            ChangeError::StillRunning(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            ChangeError::HasChildren(..)
            | ChangeError::HasOpenChildren(..)
            | ChangeError::ArchivedAncestor(..) => Self::precondition(error),
            ChangeError::Validate(ValidateError::Superseded { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            ChangeError::Read(error) => error.into(),
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error_story(&error)),
        }
    }
}

impl From<LeaseError> for Refused {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Validate(ValidateError::Superseded { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            // Also what is refused: clients know no other answer.
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error_story(&error)),
        }
    }
}

impl From<NameError> for Refused {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Malformed(_) => Self::bad_request(error.to_string()),
            NameError::OutOfHistory(_) => Self::new(StatusCode::NOT_ACCEPTABLE, error.to_string()),
            NameError::Taken { .. } => Self::conflict(error),
            NameError::TooMany | NameError::NoPostgres => Self::precondition(error),
            NameError::Validate(ValidateError::Superseded { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error_story(&error)),
        }
    }
}

impl From<NoSuchBase> for Refused {
    fn from(error: NoSuchBase) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<StoredBaseError> for Refused {
    fn from(error: StoredBaseError) -> Self {
        match error {
            StoredBaseError::Import(_) => Self::precondition(error_story(&error)),
            StoredBaseError::Change(error) => error.into(),
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error_story(&error)),
        }
    }
}

impl From<FollowRequestError> for Refused {
    fn from(error: FollowRequestError) -> Self {
        match error {
            FollowRequestError::ConnInfo(error) => Self::bad_request(error.to_string()),
            FollowRequestError::Change(error) | FollowRequestError::Import(ImportFailure::Change(error)) => {
                error.into()
            }
            error @ (FollowRequestError::OtherCluster { .. }
            | FollowRequestError::Archived(_)
            | FollowRequestError::Follow(FollowError::Diverged(_))
            | FollowRequestError::Import(ImportFailure::Standby)) => Self::precondition(error),
            // The source is away or says no: nothing of ours is wrong, trying again may help.
            error => Self::new(StatusCode::SERVICE_UNAVAILABLE, error_story(&error)),
        }
    }
}
