//! How a tenant shard is held by this process.

use std::sync::Arc;

use model::Generation;
use serde::Serialize;

use crate::claim::ClaimedBy;

/// What may be done with an attached tenant shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything: this is the only place.
    Single,
    /// Another place may still be read from: nothing is deleted, and its source's slot is not taken.
    Multi,
    /// A newer owner is there or comes: reads are answered, nothing is written.
    Stale,
}

/// How far an attachment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Claimed; its timelines are being opened. What was in the way the last time, if anything.
    Loading(Option<Arc<str>>),
    /// Its timelines are open, or known to be broken.
    Active,
    /// It is being detached.
    Detaching,
}

/// A newer owner that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// Its generation; [`Generation::DELETED`] when the tenant is being deleted.
    pub generation: Generation,
    /// What its claim says of it, if that could be read.
    pub by: Option<ClaimedBy>,
}

/// How a tenant shard is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// As it was asked for; stale once a newer owner was seen.
    pub mode: Mode,
    /// How far it is.
    pub phase: Phase,
    /// The newer owner.
    pub superseded: Option<Superseded>,
}
