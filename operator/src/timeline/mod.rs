//! Timelines: histories in tenants.
//!
//! Reading order: [`decide`] (pure), then [`calls`] and [`reconcile`], which carry it out.

pub mod calls;
pub mod decide;
pub mod reconcile;
