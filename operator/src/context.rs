//! What every reconciler has at hand.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::fleet::{Cluster, Fleet};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::seen::WatchEnded;
use crate::tenant::routing::RoutesSeen;
use crate::{tenant, timeline};

/// Our name as the one who manages fields.
pub const FIELD_MANAGER: &str = "palimpsest.dev";
/// A write takes no longer.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Without any event a resource is looked at this often.
pub const RESYNC: Duration = Duration::from_mins(10);

/// What every reconciler has at hand.
pub struct Context {
    /// For what may be repeated.
    pub client: Client,
    /// For writes that depend on the version read: it repeats nothing by itself, which would hide whether the first went through.
    pub strict: Client,
    /// What the API server shows.
    pub cluster: Cluster,
    /// The pageservers.
    pub fleet: Fleet,
    /// Services and the like that are there.
    pub routes_seen: RoutesSeen,
    /// Tells events.
    pub recorder: Recorder,
    /// Counts.
    pub metrics: Metrics,
    /// What is remembered of tenants.
    pub tenants: Memory<tenant::reconcile::Remembered>,
    /// What is remembered of timelines.
    pub timelines: Memory<timeline::decide::Answers>,
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused, or did not answer.
    #[error("cannot write {what}")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// It did not answer in time. The write may have gone through.
    #[error("the write of {0} was not answered in time")]
    Late(&'static str),
    /// The process is coming to its end.
    #[error(transparent)]
    Ended(#[from] WatchEnded),
}

impl ReconcileError {
    /// For metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            _ if self.is_conflict() => "conflict",
            ReconcileError::Write { .. } => "api",
            ReconcileError::Late(_) => "late",
            ReconcileError::Ended(_) => "ended",
        }
    }

    /// Whether someone else wrote first, as the next pass sees.
    pub fn is_conflict(&self) -> bool {
        let ReconcileError::Write { source, .. } = self else { return false };
        matches!(&**source, kube::Error::Api(status) if status.code == 409)
    }
}

impl Context {
    /// Writes the status of `resource`, if the resource is still at the version it has here.
    pub async fn put_status<K>(&self, resource: &K) -> Result<K, ReconcileError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.strict.clone(), &resource.namespace().unwrap_or_default());
        let name = resource.name_any();
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let written = within("a status", api.replace_status(&name, &parameters, resource)).await;
        self.count(&K::kind(&()), "update", written, "a status")
    }

    /// Adds or removes a finalizer, if the resource is still at the version it has here.
    pub async fn set_finalizer<K>(
        &self,
        resource: &K,
        finalizer: &str,
        present: bool,
    ) -> Result<(), ReconcileError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let mut finalizers = resource.finalizers().to_vec();
        finalizers.retain(|name| name != finalizer);
        if present {
            finalizers.push(finalizer.into());
        }
        let patch =
            json!({"metadata": {"resourceVersion": resource.resource_version(), "finalizers": finalizers}});
        let api = Api::<K>::namespaced(self.strict.clone(), &resource.namespace().unwrap_or_default());
        let name = resource.name_any();
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let written = within("a finalizer", api.patch(&name, &parameters, &Patch::Merge(&patch))).await;
        self.count(&K::kind(&()), "patch", written, "a finalizer").map(drop)
    }

    /// Makes an object of ours what it should be.
    pub async fn apply<K>(&self, namespace: &str, name: &str, object: &K) -> Result<K, ReconcileError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let written = within("an object", api.patch(name, &parameters, &Patch::Apply(object))).await;
        self.count(&K::kind(&()), "patch", written, "an object")
    }

    /// Tells an event about a resource. One that cannot be told is no reason to stop.
    pub async fn event(
        &self,
        about: &ObjectReference,
        is_warning: bool,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = Event {
            type_: if is_warning { EventType::Warning } else { EventType::Normal },
            reason: reason.into(),
            note: Some(note),
            action: action.into(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!("cannot tell an event: {}", crate::error_story::story(&error));
        }
    }

    fn count<T>(
        &self,
        kind: &str,
        verb: &str,
        written: Result<kube::Result<T>, ReconcileError>,
        what: &'static str,
    ) -> Result<T, ReconcileError> {
        let result = written?;
        self.metrics.wrote(kind, verb, &result);
        result.map_err(|source| ReconcileError::Write { what, source: Box::new(source) })
    }
}

async fn within<T>(
    what: &'static str,
    write: impl Future<Output = kube::Result<T>>,
) -> Result<kube::Result<T>, ReconcileError> {
    tokio::time::timeout(WRITE_DEADLINE, write).await.map_err(|_| ReconcileError::Late(what))
}
