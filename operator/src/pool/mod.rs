//! Pools: what is known of their pageservers.

pub mod hold;
pub mod reconcile;
pub mod view;
