//! The pageserver as a process: everything between the engine and the outside.
//!
//! Wire formats, HTTP bodies and environment variables stop here; further in there are only nouns. This crate decides nothing about
//! history: it turns requests into calls of the engine, answers into bytes, and a Postgres' replication stream into WAL for the engine.
//!
//! Reading order: [`config`], [`serve`] (the process from start to end), [`libpq`] over [`histories`] and [`served`], [`source`] (where WAL
//! comes from), [`http`], [`control`] (what an operator asks for), [`auth`] and [`tls`] (who may), [`sizes`] and [`consumption`] (what a bill is made of), [`supervisor`], [`drain`], [`workdir`], [`logging`], [`metrics`].

pub mod auth;
pub mod config;
pub mod consumption;
pub mod control;
pub mod drain;
pub mod histories;
pub mod http;
pub mod libpq;
pub mod logging;
pub mod metrics;
pub mod serve;
pub mod served;
pub mod sizes;
pub mod source;
pub mod supervisor;
pub mod tls;
pub mod workdir;
