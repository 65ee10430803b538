//! The Kubernetes operator of Palimpsest.
//!
//! Keeps every shard of every tenant attached to one pageserver, and makes the timelines that are asked for. It never reads Secrets, never
//! touches a bucket, and never creates or deletes pods.
//!
//! Reading order: [`api`] (the custom resources), [`crds`]; what decides: [`pool`], [`tenant`], [`timeline`]; what is decided by: [`seen`],
//! [`watch`], [`fleet`]; what carries it out: [`context`], [`memory`], [`metrics`]; the process: [`run`], [`world`], [`lease`],
//! [`supervisor`], [`http`].

pub mod api;
pub mod context;
pub mod crds;
pub mod error_story;
#[cfg(test)]
mod fixtures;
pub mod fleet;
pub mod http;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod pool;
pub mod run;
pub mod seen;
pub mod supervisor;
pub mod tenant;
pub mod timeline;
pub mod watch;
pub mod world;
