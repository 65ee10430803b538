//! The management API. Routes, bodies and status codes are Neon's where it has them.
//!
//! Reading order: [`service`] (routes), [`answer`] (errors), [`timelines`] (what a timeline looks like), [`metrics`] (`/metrics`).

pub mod answer;
pub mod metrics;
pub mod service;
pub mod timelines;
