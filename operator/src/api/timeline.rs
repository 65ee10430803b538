//! `Timeline`: a history in a tenant, fresh, imported from a primary, or a branch.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::tenant::DeletionPolicy;
use super::text::{HexId, LsnText};

/// What a timeline is to be.
#[derive(CustomResource, KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq)]
#[kube(
    group = "palimpsest.dev",
    version = "v1alpha1",
    kind = "Timeline",
    namespaced,
    status = "TimelineStatus",
    derive = "PartialEq",
    doc = "A history of a Postgres cluster: fresh, imported from a running primary, or a branch of another.",
    shortname = "pstimeline",
    category = "palimpsest",
    selectable = ".spec.tenantRef.name",
    printcolumn(name = "Tenant", type_ = "string", json_path = ".spec.tenantRef.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Timeline ID", type_ = "string", json_path = ".status.timelineID"),
    printcolumn(name = "Branched at", type_ = "string", json_path = ".status.ancestorLSN", priority = 1),
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.source.primary.host", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name must have at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.timelineID) || (has(self.timelineID) && self.timelineID == oldSelf.timelineID)").message("timelineID is set once"))]
#[x_kube(validation = Rule::new("self.tenantRef == oldSelf.tenantRef").message("tenantRef is immutable"))]
#[x_kube(validation = Rule::new("has(self.ancestor) == has(oldSelf.ancestor) && (!has(self.ancestor) || self.ancestor == oldSelf.ancestor)").message("ancestor is immutable"))]
#[x_kube(validation = Rule::new("has(self.postgresVersion) == has(oldSelf.postgresVersion) && (!has(self.postgresVersion) || self.postgresVersion == oldSelf.postgresVersion)").message("postgresVersion is immutable"))]
#[x_kube(validation = Rule::new("!has(self.detachAncestor) || !self.detachAncestor || has(self.ancestor) || has(self.timelineID)").message("only a branch can be detached from its ancestor"))]
#[x_kube(validation = Rule::new("!has(oldSelf.detachAncestor) || !oldSelf.detachAncestor || (has(self.detachAncestor) && self.detachAncestor)").message("detachAncestor is not taken back"))]
pub struct TimelineSpec {
    /// The tenant that it belongs to.
    pub tenant_ref: LocalRef,
    /// The id of a history that is in the bucket already. Drawn when left out.
    #[serde(rename = "timelineID", default, skip_serializing_if = "Option::is_none")]
    pub timeline_id: Option<HexId>,
    /// Major version of its Postgres; taken from the source when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 14, max = 18))]
    pub postgres_version: Option<u32>,
    /// The timeline and the place in it that it begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestor: Option<Ancestor>,
    /// The Postgres that it follows. Without an ancestor its state is imported first; with one it must have been restored from this
    /// branch, and may be named later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Whether it is kept ready.
    #[serde(default)]
    pub state: State,
    /// Whether it leaves its ancestor: what it shares with that is copied once, and branches of the ancestor that begin at or below its own
    /// beginning are its branches from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach_ancestor: bool,
    /// What becomes of the data.
    #[serde(default)]
    pub retention: TimelineRetention,
}

/// Names a resource of the same namespace.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct LocalRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// Where a branch begins.
#[derive(KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.timelineRef) != has(self.timelineID)").message("name the ancestor by timelineRef or by timelineID, not both"))]
#[x_kube(validation = Rule::new("!(has(self.lsn) && has(self.timestamp))").message("branch at an lsn or at a timestamp, not both"))]
pub struct Ancestor {
    /// A `Timeline` of the same tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline_ref: Option<LocalRef>,
    /// A timeline of the same tenant that has no resource.
    #[serde(rename = "timelineID", default, skip_serializing_if = "Option::is_none")]
    pub timeline_id: Option<HexId>,
    /// At this place. Without it and without a timestamp: at the ancestor's end when the branch is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<LsnText>,
    /// At the last commit that is not later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Time>,
}

/// What a timeline follows.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A running, unpatched primary.
    pub primary: Primary,
    /// `pool`: the pool's client certificate. Else the name of a key in the one Secret that the pool's pods mount, with a password.
    #[serde(default = "pool_credentials")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub credentials: String,
}

/// What `credentials` says when the pool's client certificate is meant.
pub const POOL_CREDENTIALS: &str = "pool";

fn pool_credentials() -> String {
    POOL_CREDENTIALS.into()
}

/// A running primary.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Primary {
    /// Name or address.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._:a-zA-Z0-9]+$"))]
    pub host: String,
    /// Port.
    #[serde(default = "postgres_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// A role with REPLICATION.
    #[serde(default = "replication_user")]
    #[schemars(length(min = 1, max = 63))]
    pub user: String,
    /// How the connection is secured.
    #[serde(default)]
    pub ssl_mode: SslMode,
    /// The physical replication slot that is made and used; `palimpsest_<timelineID>` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[a-z0-9_]{1,63}$"), length(max = 63))]
    pub slot_name: Option<String>,
}

fn postgres_port() -> u16 {
    5432
}

fn replication_user() -> String {
    "palimpsest".into()
}

/// How a connection to Postgres is secured, in libpq's words.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Not.
    Disable,
    /// If the other side can.
    Prefer,
    /// Encrypted.
    Require,
    /// And with a certificate from a known authority.
    VerifyCa,
    /// And in that name.
    #[default]
    VerifyFull,
}

impl SslMode {
    /// As libpq writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

/// Whether a timeline is kept ready.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum State {
    /// It is read, and follows its source.
    #[default]
    Active,
    /// It is in the bucket only, and follows nothing. All its branches must be archived, too.
    Archived,
}

/// What becomes of a timeline's data.
#[derive(Deserialize, Serialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TimelineRetention {
    /// When the resource is deleted.
    pub deletion_policy: DeletionPolicy,
    /// Whether deletion of the resource is refused, by the `ValidatingAdmissionPolicy` of the chart.
    pub deletion_protection: bool,
}

/// What became of a timeline.
#[derive(Deserialize, Serialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimelineStatus {
    /// `metadata.generation` that this was said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Its id.
    #[serde(default, rename = "timelineID", skip_serializing_if = "Option::is_none")]
    pub timeline_id: Option<HexId>,
    /// Where it branched off: found once, before it was made.
    #[serde(default, rename = "ancestorLSN", skip_serializing_if = "Option::is_none")]
    pub ancestor_lsn: Option<LsnText>,
    /// Since where it can be read, once that is known.
    #[serde(default, rename = "readableFromLSN", skip_serializing_if = "Option::is_none")]
    pub readable_from_lsn: Option<LsnText>,
    /// Under which generation each shard said that it has the timeline.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 128))]
    pub created: BTreeMap<String, u32>,
    /// What it was last told to follow, and to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub applied: Option<String>,
    /// What it branches off now, if that is another timeline than its spec names: the one that it was moved to when that left their ancestor.
    #[serde(default, rename = "ancestorTimelineID", skip_serializing_if = "Option::is_none")]
    pub ancestor_timeline_id: Option<HexId>,
    /// Whether it has left its ancestor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// The timeline that goes on where the source's history left this one.
    #[serde(default, rename = "successorTimelineID", skip_serializing_if = "Option::is_none")]
    pub successor_timeline_id: Option<HexId>,
    /// What is the case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}
