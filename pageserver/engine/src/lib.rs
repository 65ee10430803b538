//! The life of a timeline: WAL in, pages out, everything in the bucket.
//!
//! Reading order: [`ports`] (what the engine asks of the world), [`changes`] (new versions on their way in), [`as_of`] (a timeline at an LSN),
//! [`object_path`] (every object we write), [`bucket`],
//! [`claim`] (who owns a tenant), [`deletion`], [`index_store`].

pub mod as_of;
pub mod bucket;
pub mod changes;
pub mod claim;
pub mod deletion;
pub mod index_store;
pub mod ingest;
pub mod object_path;
pub mod ports;
