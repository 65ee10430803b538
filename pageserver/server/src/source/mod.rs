//! A Postgres as the source of WAL: an unpatched primary, spoken to as its standbys do.
//!
//! Reading order: [`conninfo`] (where and as whom), [`secure`] (TLS), [`client`] (a connection), [`base_backup`], [`replication`] (the messages of a stream),
//! [`course`] (what is told of it), [`receiver`] (follows a source and reports what is safe in the bucket), [`import`] (a new timeline from a source), [`stored`]
//! (one from a base on our own disk), [`followers`] (all of them).

pub mod base_backup;
pub mod client;
pub mod conninfo;
pub mod course;
pub mod followers;
pub mod import;
pub mod receiver;
pub mod replication;
pub mod secure;
pub mod stored;
