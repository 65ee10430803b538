//! The custom resources, group `palimpsest.dev/v1alpha1`.
//!
//! What a user wants stands in a spec, which the operator never writes; what the operator allocated and found stands in a status. Nothing
//! that changes by itself, such as sizes and LSNs, is stored. Rules that span fields are CEL in the schema; there are no webhooks.

pub mod condition;
pub mod pool;
pub mod tenant;
pub mod text;
pub mod timeline;

pub use condition::{Condition, ConditionStatus, Verdict};
pub use pool::{PageserverPool, PageserverPoolSpec, PageserverPoolStatus};
pub use tenant::{Tenant, TenantSpec, TenantStatus};
pub use timeline::{Timeline, TimelineSpec, TimelineStatus};

/// API group of all our resources, and domain of our labels, annotations and finalizers.
pub const GROUP: &str = "palimpsest.dev";
