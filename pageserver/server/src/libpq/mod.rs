//! The page service: what computes and `psql` speak to.
//!
//! Postgres' wire protocol 3, of which it understands what a Neon compute and common drivers send; formats and texts are Neon's.
//!
//! Reading order: [`service`] (accepts), [`session`] (commands of one connection), [`pagestream`] (the hot path), [`connection`] (bytes in
//! and out), [`command`], [`startup`], [`wire`], [`metrics`], [`garbage`] (any bytes, for fuzzers).

pub mod command;
pub mod connection;
pub mod garbage;
pub mod metrics;
pub mod pagestream;
pub mod service;
pub mod session;
pub mod startup;
pub mod wire;

#[cfg(test)]
mod tests;
