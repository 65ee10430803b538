//! Typed details of a failed call.

use prost::Message as _;
use tonic::{Code, Status};

use crate::v1::{ErrorDetail, Reason};

/// How an [`ErrorDetail`] is named inside of a `google.rpc.Status`.
const TYPE_URL: &str = "type.googleapis.com/palimpsest.control.v1.ErrorDetail";

/// A status that carries `detail`, as `google.rpc.Status` in its details.
pub fn status(code: Code, message: impl Into<String>, detail: &ErrorDetail) -> Status {
    let message = message.into();
    let details = tonic_types::pb::Status {
        code: code.into(),
        message: message.clone(),
        details: vec![prost_types::Any { type_url: TYPE_URL.into(), value: detail.encode_to_vec() }],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The detail of a status, if it carries one that can be read.
pub fn detail(status: &Status) -> Option<ErrorDetail> {
    let details = tonic_types::pb::Status::decode(status.details()).ok()?;
    let any = details.details.into_iter().find(|any| any.type_url == TYPE_URL)?;
    ErrorDetail::decode(&any.value[..]).ok()
}

/// The reason that a status gives; [`Reason::Unspecified`] if it gives none.
pub fn reason(status: &Status) -> Reason {
    detail(status).map_or(Reason::Unspecified, |detail| detail.reason())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_comes_back_as_it_was() {
        let sent = ErrorDetail {
            reason: Reason::Superseded.into(),
            highest_generation: u32::MAX,
            retry_after: Some(prost_types::Duration { seconds: 1, nanos: 5 }),
            pool_uid: "a pool".into(),
        };
        let status = status(Code::FailedPrecondition, "another has it", &sent);
        assert_eq!(status.message(), "another has it");
        assert_eq!(detail(&status), Some(sent));
        assert_eq!(reason(&status), Reason::Superseded);
    }

    #[test]
    fn foreign_details_are_no_detail() {
        assert_eq!(detail(&Status::internal("broken")), None);
        for bytes in [&b"\xff\xff\xff"[..], b"\x0a\x05", b""] {
            let status = Status::with_details(Code::Internal, "", bytes.to_vec().into());
            assert_eq!(detail(&status), None);
            assert_eq!(reason(&status), Reason::Unspecified);
        }
    }
}
