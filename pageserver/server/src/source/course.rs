//! What becomes of a source: told to people and programs while an import or a receiver is at it.

use std::sync::{Mutex, PoisonError};

use model::TimelineId;

/// How far it is, for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// It is being connected to.
    #[default]
    Connecting,
    /// Its base is on its way.
    Importing {
        /// Bytes read.
        done: u64,
        /// Bytes to read, about; 0 if unknown.
        total: u64,
    },
    /// A base from disk is imported; there is no source.
    Imported,
    /// Its WAL comes in.
    Streaming,
    /// It is away or refuses us; tried again.
    Disconnected,
    /// The WAL that comes next is gone there.
    SlotLost,
    /// Its history is not the timeline's.
    Diverged,
    /// Its history left the timeline's below its end: the timeline is archived, and another goes on.
    Archived {
        /// Which, if any.
        successor: Option<TimelineId>,
    },
    /// Nothing is received, because we were told so.
    Stopped,
}

/// What is told of one source.
#[derive(Debug, Default)]
pub struct SourceCourse {
    // Guards a word and a text; held to copy them.
    told: Mutex<(Stage, String)>,
}

impl SourceCourse {
    /// In words.
    pub fn text(&self) -> String {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// For programs.
    pub fn stage(&self) -> Stage {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Notes what it does now.
    pub fn set(&self, stage: Stage, text: impl Into<String>) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = (stage, text.into());
    }
}
