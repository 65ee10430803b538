//! Compaction: history that stays readable at little cost, however it was written.
//!
//! [`shelf`] puts layers together that are rewritten together; [`choose`] decides, from their names and sizes alone, what to do next, and [`debt`] what is still to be done; [`stream`] reads the
//! layers of a job in order of keys, [`fold`] says what of each key's history is kept, [`write`] cuts that into layers where [`stretch`] finds room between keys, and [`run`] carries a
//! job out: new layers into the bucket, one change of the index, then the snapshot.

pub mod choose;
pub mod debt;
pub mod fold;
pub mod run;
pub mod shelf;
mod stream;
mod stretch;
mod write;

pub use choose::{Choice, CompactionPolicy, View, choose, depth};
pub use debt::{Debt, debt, time_near, view_of};
pub use run::{Avoid, Collect, CompactError, Done, FailedJob, compact_once, view};
