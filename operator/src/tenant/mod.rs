//! Tenants: which pageserver has which shard.
//!
//! Reading order: [`decide`] and [`schedule`] (pure), [`verdict`] (what is said of it), [`routing`] (how clients follow), then [`calls`] and
//! [`reconcile`], which carry it out.

pub mod calls;
pub mod decide;
pub mod reconcile;
pub mod routing;
pub mod schedule;
pub mod verdict;
