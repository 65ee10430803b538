//! `PageserverPool`: which pods are pageservers, which bucket they share, and how shards are spread over them.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::text::{DurationText, ParseTextError};

/// What a pool is. The operator does not own its pods: a `StatefulSet`, usually a chart's, does.
#[derive(CustomResource, KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq)]
#[kube(
    group = "palimpsest.dev",
    version = "v1alpha1",
    kind = "PageserverPool",
    namespaced,
    status = "PageserverPoolStatus",
    derive = "PartialEq",
    doc = "Pageservers that share a bucket, and how tenants are spread over them.",
    shortname = "pspool",
    category = "palimpsest",
    printcolumn(name = "Pageservers", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Usable", type_ = "integer", json_path = ".status.usable"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.storage.bucket", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52").message("the name must leave room for suffixes: at most 52 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct PageserverPoolSpec {
    /// Which pods of this namespace are pageservers of the pool.
    pub selector: PodSelector,
    /// Ports of the pods.
    #[serde(default)]
    pub ports: Ports,
    /// The bucket that the pageservers share.
    pub storage: Storage,
    /// How clients find the pageserver of a tenant.
    #[serde(default)]
    pub routing: Routing,
    /// Which tenants may use the pool.
    #[serde(default)]
    pub tenants: Tenants,
    /// Where shards are placed.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// When pageservers are emptied.
    #[serde(default)]
    pub drain: Drain,
    /// When pageservers count as lost.
    #[serde(default)]
    pub failure_detection: FailureDetection,
    /// How the operator proves to pageservers who it is.
    #[serde(default)]
    pub control_auth: ControlAuth,
}

/// Labels that a pod must have.
#[derive(KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.matchLabels.size() > 0").message("an empty selector would match every pod"))]
pub struct PodSelector {
    /// All of these.
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
}

/// Ports of a pageserver pod.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Ports {
    /// The control API, which only the operator speaks.
    #[schemars(range(min = 1, max = 65535))]
    pub control: u16,
    /// The page service, in Postgres' protocol.
    #[schemars(range(min = 1, max = 65535))]
    pub pg: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Ports { control: 6402, pg: 6400 }
    }
}

/// Where everything is kept.
#[derive(KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.provider == oldSelf.provider && self.bucket == oldSelf.bucket && (has(self.prefix) ? self.prefix : '') == (has(oldSelf.prefix) ? oldSelf.prefix : '')").message("provider, bucket and prefix are immutable: make another pool"))]
pub struct Storage {
    /// What kind of object store it is.
    pub provider: Provider,
    /// Its name.
    #[schemars(length(min = 3, max = 63))]
    pub bucket: String,
    /// What paths of all objects begin with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub prefix: String,
    /// Where it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub region: String,
    /// The URL of a store that is compatible with S3.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub endpoint: String,
    /// How pageservers prove to the store who they are.
    #[serde(default)]
    pub credentials: StorageCredentials,
    /// Whether a store without create-if-absent is accepted.
    #[serde(default)]
    pub conditional_writes: ConditionalWrites,
}

/// Kinds of object stores.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Provider {
    /// Amazon S3, or what is compatible with it.
    S3,
}

/// How pageservers get into the bucket. The operator does not need to.
#[derive(KubeSchema, Deserialize, Serialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.secretRef) == (self.mode == 'SecretRef')").message("secretRef is for mode SecretRef, which needs it"))]
pub struct StorageCredentials {
    /// By what.
    #[serde(default)]
    pub mode: StorageCredentialsMode,
    /// A Secret that the pods mount; the operator reads none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretName>,
}

/// Ways into a bucket.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum StorageCredentialsMode {
    /// What the pods' service account is given.
    #[default]
    WorkloadIdentity,
    /// A Secret.
    SecretRef,
}

/// A Secret of the pool's namespace.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct SecretName {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What to do with a store that has no create-if-absent.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ConditionalWrites {
    /// Attach nothing.
    #[default]
    Required,
    /// Go on: that no two processes own a tenant then rests on this cluster's etcd alone, and not on the bucket.
    BestEffort,
}

/// How clients find the pageserver of a tenant.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Routing {
    /// By what.
    pub mode: RoutingMode,
    /// The DNS domain of the cluster.
    #[schemars(length(min = 1, max = 253))]
    pub cluster_domain: String,
}

impl Default for Routing {
    fn default() -> Self {
        Routing { mode: RoutingMode::Headless, cluster_domain: "cluster.local".into() }
    }
}

/// Ways to find a pageserver.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum RoutingMode {
    /// A headless Service for each tenant, with a name for each shard.
    #[default]
    Headless,
    /// None: something else reads the tenants' status.
    None,
}

/// Which tenants may use the pool.
#[derive(Deserialize, Serialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tenants {
    /// Those of which namespaces.
    pub allowed_namespaces: AllowedNamespaces,
}

/// A choice of namespaces.
#[derive(KubeSchema, Deserialize, Serialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.selector) == (self.from == 'Selector')").message("selector is for from: Selector, which needs it"))]
pub struct AllowedNamespaces {
    /// How they are chosen.
    #[serde(default)]
    pub from: NamespacesFrom,
    /// Labels that a namespace must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<PodSelector>,
}

/// How namespaces are chosen.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum NamespacesFrom {
    /// Only the pool's own.
    #[default]
    Same,
    /// Any.
    All,
    /// By labels.
    Selector,
}

/// Where shards are placed.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scheduling {
    /// The node label that names a zone.
    #[schemars(length(min = 1, max = 317))]
    pub zone_key: String,
    /// A pageserver with so many shards gets no more.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_shards_per_pageserver: u32,
    /// A pageserver whose cache disk is fuller gets no more.
    #[schemars(range(min = 1, max = 100))]
    pub disk_high_watermark_percent: u32,
}

impl Default for Scheduling {
    fn default() -> Self {
        Scheduling {
            zone_key: "topology.kubernetes.io/zone".into(),
            max_shards_per_pageserver: 2000,
            disk_high_watermark_percent: 85,
        }
    }
}

/// When pageservers are emptied, besides when their pods are being deleted.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Drain {
    /// Taints of a node that empty the pageservers on it.
    #[schemars(length(max = 16), inner(length(max = 317)))]
    pub taints: Vec<String>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { taints: vec!["node.kubernetes.io/unschedulable".into(), "karpenter.sh/disrupted".into()] }
    }
}

/// When pageservers count as lost.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureDetection {
    /// How often each is asked, at least.
    pub poll_interval: DurationText,
    /// After so long without an answer its shards are attached elsewhere.
    pub unreachable_after: DurationText,
    /// When more of them than this do not answer, the fault is taken to be with the operator, and nothing is attached elsewhere.
    #[schemars(range(min = 0, max = 100))]
    pub max_unhealthy_percent: u32,
}

impl Default for FailureDetection {
    fn default() -> Self {
        FailureDetection {
            poll_interval: DurationText("5s".into()),
            unreachable_after: DurationText("15s".into()),
            max_unhealthy_percent: 50,
        }
    }
}

impl FailureDetection {
    /// `poll_interval`, at least half a second.
    pub fn poll(&self) -> Result<Duration, ParseTextError> {
        Ok(self.poll_interval.duration()?.max(Duration::from_millis(500)))
    }

    /// `unreachable_after`, at least a second.
    pub fn patience(&self) -> Result<Duration, ParseTextError> {
        Ok(self.unreachable_after.duration()?.max(Duration::from_secs(1)))
    }
}

/// How the operator proves to pageservers who it is.
#[derive(KubeSchema, Deserialize, Serialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.serverName) == (self.mode == 'MutualTLS')").message("serverName is for mode MutualTLS, which needs it"))]
pub struct ControlAuth {
    /// By what.
    #[serde(default)]
    pub mode: ControlAuthMode,
    /// The name in the certificates of all pageservers of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
}

/// Ways to prove it.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ControlAuthMode {
    /// Certificates on both sides, from files that the operator is started with.
    MutualTLS,
    /// A shared secret in a file, unencrypted: for development.
    #[default]
    BearerFile,
}

/// What became of a pool.
#[derive(Deserialize, Serialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PageserverPoolStatus {
    /// `metadata.generation` that this was said of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that match the selector.
    #[serde(default)]
    pub replicas: u32,
    /// Those of them that take tenants.
    #[serde(default)]
    pub usable: u32,
    /// What is the case.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}
