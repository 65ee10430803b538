//! How clients find the pageservers of a tenant: a headless Service without a selector, an `EndpointSlice` with one host name for each shard,
//! and a `ConfigMap` with the addresses as clients want them. A pure function of committed status.
//!
//! An endpoint is ready from the commit that places its shard until the next one, whatever the pod's own readiness says: a pod that is
//! being emptied must be reachable until its shards have left.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt as _};

use crate::api::pool::{PageserverPoolSpec, RoutingMode};
use crate::api::tenant::Tenant;
use crate::api::text::fingerprint;
use crate::context::{Context, ReconcileError};
use crate::pool::view::OpenPool;
use crate::seen::Seen;

/// Label of everything that we make.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub const MANAGER: &str = "palimpsest.dev";
/// Name of the port of the page service.
const PG: &str = "pg";

/// What clients need to find a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    /// The name under which it is found.
    pub service: Service,
    /// Where that leads.
    pub slice: EndpointSlice,
    /// Names in the form that clients want.
    pub connection: ConfigMap,
}

/// The routes of a tenant. `None`: the pool wants none.
pub fn build(tenant: &Tenant, spec: &PageserverPoolSpec, pool: &OpenPool) -> Option<Routes> {
    if spec.routing.mode == RoutingMode::None {
        return None;
    }
    Some(Routes {
        service: service(tenant, spec),
        slice: slice(tenant, spec, pool),
        connection: connection(tenant, spec),
    })
}

fn metadata(tenant: &Tenant, suffix: &str) -> ObjectMeta {
    let labels = [
        (MANAGED_BY, MANAGER),
        ("app.kubernetes.io/name", "palimpsest"),
        ("palimpsest.dev/tenant", &tenant.name_any()),
    ];
    ObjectMeta {
        name: Some(format!("{}{suffix}", tenant.name_any())),
        namespace: tenant.namespace(),
        labels: Some(labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect()),
        owner_references: tenant
            .controller_owner_ref(&())
            .map(|owner| vec![OwnerReference { block_owner_deletion: None, ..owner }]),
        ..ObjectMeta::default()
    }
}

fn service(tenant: &Tenant, spec: &PageserverPoolSpec) -> Service {
    Service {
        metadata: metadata(tenant, ""),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            ports: Some(vec![ServicePort {
                name: Some(PG.into()),
                port: i32::from(spec.ports.pg),
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn slice(tenant: &Tenant, spec: &PageserverPoolSpec, pool: &OpenPool) -> EndpointSlice {
    let mut metadata = metadata(tenant, "-ps");
    let labels = metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/service-name".into(), tenant.name_any());
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), MANAGER.into());
    let endpoints: Vec<_> = tenant
        .status
        .iter()
        .flat_map(|status| &status.shards)
        .filter_map(|shard| {
            let pageserver = pool.pageservers.get(&shard.attached.as_ref()?.pod)?;
            Some(Endpoint {
                addresses: vec![pageserver.ip.clone()?],
                hostname: Some(host(&shard.shard)),
                conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
                node_name: pageserver.node.clone(),
                zone: pageserver.zone.clone(),
                target_ref: Some(ObjectReference {
                    kind: Some("Pod".into()),
                    name: Some(pageserver.pod.clone()),
                    namespace: Some(tenant.pool_namespace().into()),
                    uid: Some(pageserver.pod_uid.clone()),
                    ..ObjectReference::default()
                }),
                ..Endpoint::default()
            })
        })
        .collect();
    let is_v6 = endpoints.iter().any(|endpoint| endpoint.addresses.iter().any(|ip| ip.contains(':')));
    EndpointSlice {
        metadata,
        address_type: if is_v6 { "IPv6" } else { "IPv4" }.into(),
        endpoints,
        ports: Some(vec![EndpointPort {
            name: Some(PG.into()),
            port: Some(i32::from(spec.ports.pg)),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        }]),
    }
}

/// Shard count, stripe size, and an address for each shard, in order. Changes only when shards are split.
fn connection(tenant: &Tenant, spec: &PageserverPoolSpec) -> ConfigMap {
    let status = tenant.status.clone().unwrap_or_default();
    let service = format!(
        "{}.{}.svc.{}",
        tenant.name_any(),
        tenant.namespace().unwrap_or_default(),
        spec.routing.cluster_domain
    );
    let urls: Vec<_> = status
        .shards
        .iter()
        .map(|shard| format!("postgresql://{}.{service}:{}", host(&shard.shard), spec.ports.pg))
        .collect();
    let data = BTreeMap::from([
        ("pageserver_connstring".to_owned(), urls.join(",")),
        ("shard_count".to_owned(), status.shards.len().to_string()),
        ("stripe_size".to_owned(), tenant.spec.sharding.stripe_size_pages.to_string()),
        ("tenant_id".to_owned(), status.tenant_id.map(|id| id.0).unwrap_or_default()),
    ]);
    ConfigMap { metadata: metadata(tenant, "-conn"), data: Some(data), ..ConfigMap::default() }
}

fn host(shard: &str) -> String {
    format!("s{shard}")
}

/// What is there of all tenants' routes, and what we made it.
pub struct RoutesSeen {
    /// Services of ours.
    pub services: Seen<PartialObjectMeta<Service>>,
    /// `EndpointSlices` of ours.
    pub slices: Seen<PartialObjectMeta<EndpointSlice>>,
    /// `ConfigMaps` of ours.
    pub connections: Seen<PartialObjectMeta<ConfigMap>>,
    // Guards the table of what was written: fingerprint and version by kind, namespace and name.
    written: Mutex<HashMap<String, (String, Option<String>)>>,
}

impl RoutesSeen {
    /// Nothing was written yet.
    pub fn new(
        services: Seen<PartialObjectMeta<Service>>,
        slices: Seen<PartialObjectMeta<EndpointSlice>>,
        connections: Seen<PartialObjectMeta<ConfigMap>>,
    ) -> RoutesSeen {
        RoutesSeen { services, slices, connections, written: Mutex::default() }
    }
}

/// Makes a tenant's routes what they should be: what is missing, other than it should be, or was changed by someone else.
pub async fn assert(context: &Context, routes: &Routes) -> Result<(), ReconcileError> {
    let seen = &context.routes_seen;
    assert_one(context, &seen.services, &routes.service).await?;
    assert_one(context, &seen.slices, &routes.slice).await?;
    assert_one(context, &seen.connections, &routes.connection).await
}

async fn assert_one<K>(
    context: &Context,
    seen: &Seen<PartialObjectMeta<K>>,
    object: &K,
) -> Result<(), ReconcileError>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + serde::Serialize
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let key = ObjectRef::from_obj(object).to_string();
    let wanted = fingerprint(object);
    let found = seen.get(&namespace, &name).and_then(|found| found.resource_version());
    let as_written = {
        let written = context.routes_seen.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(&key) == Some(&(wanted.clone(), found.clone())) && found.is_some()
    };
    if as_written {
        return Ok(());
    }
    let applied = context.apply(&namespace, &name, object).await?;
    let mut written = context.routes_seen.written.lock().unwrap_or_else(PoisonError::into_inner);
    written.insert(key, (wanted, applied.resource_version()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::tenant::{Place, ShardStatus};
    use crate::fixtures::{answering, pool};
    use crate::pool::view::Leaving;

    fn spec() -> PageserverPoolSpec {
        serde_json::from_value(json!({
            "selector": {"matchLabels": {"a": "b"}}, "storage": {"provider": "S3", "bucket": "bucket"},
        }))
        .unwrap()
    }

    fn tenant_on(pods: &[Option<&str>]) -> Tenant {
        let shards = pods.iter().enumerate().map(|(n, pod)| ShardStatus {
            shard: format!("{n:02x}{:02x}", pods.len()),
            generation: 3,
            attached: pod.map(|pod| Place {
                pod: pod.into(),
                instance: "i".into(),
                generation: 3,
                config: String::new(),
            }),
            target: None,
        });
        let shards: Vec<_> = shards.collect();
        let mut tenant = crate::fixtures::tenant(shards[0].clone());
        tenant.status.as_mut().unwrap().shards = shards;
        tenant
    }

    #[test]
    fn every_attached_shard_has_a_host_name_that_leads_to_its_pod() {
        let mut leaving = answering("ps-1", "b");
        leaving.leaving = Some(Leaving::Terminating);
        leaving.ip = Some("10.0.0.2".into());
        let routes = build(
            &tenant_on(&[Some("ps-0"), Some("ps-1"), None, Some("gone")]),
            &spec(),
            &pool([answering("ps-0", "a"), leaving]),
        )
        .unwrap();
        let endpoints = routes.slice.endpoints;
        let told: Vec<_> = endpoints
            .iter()
            .map(|e| {
                (
                    e.hostname.as_deref().unwrap(),
                    e.addresses[0].as_str(),
                    e.conditions.as_ref().unwrap().ready,
                )
            })
            .collect();
        assert_eq!(told, [("s0004", "10.0.0.1", Some(true)), ("s0104", "10.0.0.2", Some(true))]);
        assert_eq!(routes.slice.metadata.labels.unwrap()["kubernetes.io/service-name"], "acme");
        assert_eq!(routes.service.spec.unwrap().cluster_ip.as_deref(), Some("None"));
    }

    #[test]
    fn the_connection_names_shards_and_not_places() {
        let here = connection(&tenant_on(&[Some("ps-0"), None]), &spec());
        let there = connection(&tenant_on(&[None, Some("ps-1")]), &spec());
        assert_eq!(here, there);
        assert_eq!(
            here.data.unwrap()["pageserver_connstring"],
            "postgresql://s0002.acme.team.svc.cluster.local:6400,postgresql://s0102.acme.team.svc.cluster.local:6400"
        );
    }

    #[test]
    fn a_pool_without_routing_gets_none() {
        let mut spec = spec();
        spec.routing.mode = RoutingMode::None;
        assert_eq!(build(&tenant_on(&[Some("ps-0")]), &spec, &pool([])), None);
    }
}
