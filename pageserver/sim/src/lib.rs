//! The engine, whole and unchanged, in a world that follows from a seed: its clock, its disk, its bucket and the Postgres that it follows.
//!
//! A run is a list of steps ([`scenario`]): what is asked of the engine, and what befalls it. All of it happens in one thread and in simulated time, so
//! a seed is the same run each time, and hours take milliseconds. What the engine answers is compared with a model that keeps every version of
//! every page in a map ([`history`]), and what it promised is looked for after everything but the bucket was lost ([`check`]).
//!
//! It never ships, and nothing of the engine knows of it.
//!
//! Reading order: [`scenario`], [`dice`] (all chance), [`world`] (time, the bucket, faults), [`doctor`] (layers with a
//! fault), [`disk`], [`cluster`] (a Postgres that writes), [`history`],
//! [`ledger`] (what was asked for and promised), [`process`] (a server), [`run`], [`asks`] (what is asked of it), [`check`], [`shrink`].

pub mod asks;
pub mod check;
pub mod cluster;
pub mod dice;
pub mod disk;
pub mod doctor;
pub mod history;
pub mod ledger;
pub mod process;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod world;
