//! `Tenant`: shards to keep attached, and the record of which process was given which generation of them.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use model::ShardIndex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::text::{ByteQuantity, DurationText, HexId, ParseTextError, fingerprint};

/// What a tenant is to be.
#[derive(CustomResource, KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq)]
#[kube(
    group = "palimpsest.dev",
    version = "v1alpha1",
    kind = "Tenant",
    namespaced,
    status = "TenantStatus",
    derive = "PartialEq",
    doc = "A set of shards that is kept attached to pageservers of a pool.",
    shortname = "pstenant",
    category = "palimpsest",
    selectable = ".spec.poolRef.name",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.poolRef.name"),
    printcolumn(name = "Shards", type_ = "integer", json_path = ".status.endpoints"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Tenant ID", type_ = "string", json_path = ".status.tenantID", priority = 1),
    printcolumn(name = "Pageserver", type_ = "string", json_path = ".status.shards[0].attached.pod", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 52").message("the name becomes a Service's: a DNS label that begins with a letter, at most 52 characters"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.shards) || (has(self.status) && has(self.status.shards) && oldSelf.status.shards.all(o, self.status.shards.exists(s, s.shard == o.shard)))").message("shard entries are never removed")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.tenantID) || (has(self.tenantID) && self.tenantID == oldSelf.tenantID)").message("tenantID is set once"))]
#[x_kube(validation = Rule::new("self.poolRef == oldSelf.poolRef").message("poolRef is immutable"))]
pub struct TenantSpec {
    /// The pool whose pageservers serve the tenant.
    pub pool_ref: PoolRef,
    /// The id of data that is in the bucket already. Drawn when left out.
    #[serde(rename = "tenantID", default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<HexId>,
    /// How pages are spread.
    #[serde(default)]
    pub sharding: Sharding,
    /// Whether pageservers are to serve it.
    #[serde(default)]
    pub activity: Activity,
    /// Warm copies of each shard.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2))]
    pub standbys: u32,
    /// Where its shards are wanted.
    #[serde(default)]
    pub placement: Placement,
    /// How its pageservers treat it; what is left out is as the pageservers have it.
    #[serde(default)]
    pub config: Config,
    /// What becomes of the data.
    #[serde(default)]
    pub retention: TenantRetention,
}

impl Tenant {
    /// Where its pool is: its own namespace, unless it says otherwise.
    pub fn pool_namespace(&self) -> &str {
        let named = self.spec.pool_ref.namespace.as_deref();
        named.or(self.metadata.namespace.as_deref()).unwrap_or_default()
    }
}

/// Names a pool.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolRef {
    /// Its namespace; the tenant's own when left out. The pool must allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

/// How pages are spread over shards.
#[derive(KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.count in [1, 2, 4, 8, 16, 32, 64, 128]").message("count must be a power of two, at most 128"))]
#[x_kube(validation = Rule::new("self.count >= oldSelf.count && self.stripeSizePages == oldSelf.stripeSizePages").message("count only grows, and stripeSizePages is immutable"))]
pub struct Sharding {
    /// How many shards. A tenant with a source that is an ordinary Postgres has one.
    #[schemars(range(min = 1, max = 128))]
    #[serde(default = "one_shard")]
    pub count: u32,
    /// So many consecutive pages of a relation are in the same shard.
    #[schemars(range(min = 1, max = 1_048_576))]
    #[serde(default = "stripe_of_16_mib")]
    pub stripe_size_pages: u32,
}

fn one_shard() -> u32 {
    1
}

fn stripe_of_16_mib() -> u32 {
    2048
}

impl Default for Sharding {
    fn default() -> Self {
        Sharding { count: one_shard(), stripe_size_pages: stripe_of_16_mib() }
    }
}

impl Sharding {
    /// The shards that there are to be.
    pub fn shards(&self) -> Vec<ShardIndex> {
        match self.count {
            0 | 1 => vec![ShardIndex::UNSHARDED],
            count => {
                (0..count).map(|number| ShardIndex { number: number as u8, count: count as u8 }).collect()
            }
        }
    }
}

/// Whether pageservers are to serve a tenant.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Activity {
    /// Each shard by one.
    #[default]
    Attached,
    /// None; the data stays in the bucket.
    Detached,
}

/// Where shards are wanted.
#[derive(Deserialize, Serialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Zones, the best first.
    #[schemars(length(max = 8), inner(length(max = 63)))]
    pub zones: Vec<String>,
    /// Whether shards of the tenant may share a pageserver.
    pub spread_shards: SpreadShards,
}

/// Whether shards of a tenant may share a pageserver.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum SpreadShards {
    /// When there are too few.
    #[default]
    Preferred,
    /// Never.
    Required,
}

/// How pageservers treat a tenant.
#[derive(Deserialize, Serialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// History of this length is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitr_interval: Option<DurationText>,
    /// At least this much WAL's worth of history is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gc_horizon: Option<ByteQuantity>,
    /// A layer is written at the latest when this much WAL was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_distance: Option<ByteQuantity>,
}

/// A [`Config`] as values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// See [`Config::pitr_interval`].
    pub pitr_interval: Option<Duration>,
    /// Bytes; see [`Config::gc_horizon`].
    pub gc_horizon: Option<u64>,
    /// Bytes; see [`Config::checkpoint_distance`].
    pub checkpoint_distance: Option<u64>,
}

impl Config {
    /// What it says.
    pub fn settings(&self) -> Result<Settings, ParseTextError> {
        Ok(Settings {
            pitr_interval: self.pitr_interval.as_ref().map(DurationText::duration).transpose()?,
            gc_horizon: self.gc_horizon.as_ref().map(ByteQuantity::bytes).transpose()?,
            checkpoint_distance: self.checkpoint_distance.as_ref().map(ByteQuantity::bytes).transpose()?,
        })
    }

    /// Tells one configuration from another: 16 hexadecimal digits, nothing for an empty one.
    pub fn fingerprint(&self) -> String {
        if *self == Config::default() { String::new() } else { fingerprint(self) }
    }
}

/// What becomes of a tenant's data.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TenantRetention {
    /// When the resource is deleted.
    pub deletion_policy: DeletionPolicy,
    /// Whether deletion of the resource is refused, by the `ValidatingAdmissionPolicy` of the chart.
    pub deletion_protection: bool,
}

impl Default for TenantRetention {
    fn default() -> Self {
        TenantRetention { deletion_policy: DeletionPolicy::Retain, deletion_protection: true }
    }
}

/// What becomes of data when its resource is deleted.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays in the bucket.
    #[default]
    Retain,
    /// It is deleted, for good.
    Delete,
}

/// What the operator allocated to a tenant, and what is the case.
#[derive(Deserialize, Serialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// `metadata.generation` that this was said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The id of its data.
    #[serde(default, rename = "tenantID", skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<HexId>,
    /// Which process has which shard. Sorted; entries are never removed, since their generations must not be given again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["shard".into()]))]
    #[schemars(length(max = 128))]
    pub shards: Vec<ShardStatus>,
    /// Shards that clients find.
    #[serde(default)]
    pub endpoints: u32,
    /// What is the case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// The record of one shard.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.generation >= oldSelf.generation").message("generation never decreases"))]
#[x_kube(validation = Rule::new("!has(self.attached) || self.attached.generation <= self.generation").message("attached.generation was never allocated"))]
#[x_kube(validation = Rule::new("!has(self.target) || self.target.generation <= self.generation").message("target.generation was never allocated"))]
pub struct ShardStatus {
    /// Number and count of shards, two hexadecimal digits each; `0000` when there is but one.
    #[schemars(regex(pattern = "^[0-9a-f]{4}$"), length(max = 4))]
    pub shard: String,
    /// Highest generation that was ever allocated.
    #[schemars(schema_with = "generation_schema")]
    pub generation: u32,
    /// Where it is. Clients are sent there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Place>,
    /// Where it is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// A process that has a shard.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Name of its pod.
    #[schemars(length(min = 1, max = 253))]
    pub pod: String,
    /// What it drew when it started.
    #[schemars(length(min = 1, max = 64))]
    pub instance: String,
    /// As which owner.
    #[schemars(schema_with = "generation_schema")]
    pub generation: u32,
    /// Which `spec.config` it was given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 16))]
    pub config: String,
}

/// A process that is to have a shard.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of its pod.
    #[schemars(length(min = 1, max = 253))]
    pub pod: String,
    /// What it drew when it started.
    #[schemars(length(min = 1, max = 64))]
    pub instance: String,
    /// As which owner.
    #[schemars(schema_with = "generation_schema")]
    pub generation: u32,
    /// How far this is.
    pub step: Step,
    /// Why.
    pub reason: TargetReason,
    /// Drawn once for the intent: tells an answer to it from any other.
    #[schemars(length(min = 1, max = 32))]
    pub attempt: String,
    /// Since when.
    pub since: Time,
}

/// How far a change of place is. Only `Attach` is entered yet; the others belong to moves without an interruption.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Step {
    /// The new place fills its cache.
    Warm,
    /// The old place stores what it has and stops writing.
    Freeze,
    /// The new place takes the shard over.
    Attach,
    /// The new place receives what the old one has.
    CatchUp,
    /// Clients leave the old place.
    Linger,
    /// The old place lets go.
    Settle,
}

/// Why a shard gets a new generation.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum TargetReason {
    /// It is not attached.
    New,
    /// Its pageserver started again.
    Restarted,
    /// Its pageserver is gone, or does not answer.
    Lost,
    /// Its pageserver is being emptied.
    Drain,
    /// Its pageserver does not have it any more, or found a newer owner.
    Superseded,
    /// Where it was to be it cannot be.
    ChosenAgain,
}

fn generation_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": 4_294_967_294_u32 })
}
