//! The life of a timeline: WAL in, pages out, everything in the bucket.
//!
//! Reading order: [`ports`] (what the engine asks of the world), [`changes`] (new versions on their way in), [`as_of`] (a timeline at an LSN).

pub mod as_of;
pub mod changes;
pub mod ingest;
pub mod ports;
