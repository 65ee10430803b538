//! The control API between the operator and pageservers.
//!
//! [`v1`] is generated from `palimpsest/control/v1/control.proto` and checked in, so that a build needs no compiler for it; a test compares
//! both. [`error`] is how a failed call says why in a form that programs understand.

pub mod error;

/// Version 1 of the API: messages, client and server.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated; the .proto file documents it")]
#[rustfmt::skip]
pub mod v1 {
    include!("generated/palimpsest.control.v1.rs");
}
