//! Puts together what watches and what reconciles.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::{self, UnboundedSender};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::{Action as Requeue, Config as ControllerConfig};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, WatchStreamExt as _, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::{PageserverPool, Tenant, Timeline};
use crate::context::{Context, ReconcileError};
use crate::error_story::story;
use crate::fleet::credentials::Credentials;
use crate::fleet::{Cluster, Fleet, Wake};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::seen::{Seen, WatchEnded};
use crate::supervisor::Supervisor;
use crate::tenant::routing::{MANAGED_BY, MANAGER, RoutesSeen};
use crate::watch::{Scope, Watch, show, watch};
use crate::{pool, tenant, timeline};

/// So many resources of a kind are reconciled at once.
const CONCURRENCY: u16 = 32;
/// Events of one resource that come together make one pass.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A pass that failed is repeated after this time.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// How often gauges are counted anew.
const CENSUS: Duration = Duration::from_secs(15);

/// Ways to the API server.
pub struct Clients {
    /// Repeats what may be repeated.
    pub client: Client,
    /// Repeats nothing.
    pub strict: Client,
}

/// Everything that reconciles, ready to begin.
pub struct World {
    context: Arc<Context>,
    wake: Wake,
    pools: Reconciled<PageserverPool>,
    tenants: Reconciled<Tenant>,
    timelines: Reconciled<Timeline>,
}

/// The controllers of a kind, one for each part of the scope, and what they have seen.
struct Reconciled<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + 'static,
    K::DynamicType: Eq + Hash,
{
    controllers: Vec<Controller<K>>,
    seen: Seen<K>,
    wake: Vec<UnboundedSender<ObjectRef<K>>>,
}

impl World {
    /// Starts the watches of what is decided by, and prepares what reconciles.
    pub fn watch(
        clients: Clients,
        scope: &Scope,
        credentials: Credentials,
        identity: &str,
        metrics: &Metrics,
        supervisor: &Supervisor,
    ) -> World {
        let client = &clients.client;
        let changed = Arc::<Notify>::default();
        let pools = Reconciled::<PageserverPool>::new(scope, client);
        let tenants = Reconciled::<Tenant>::new(scope, client);
        let timelines = Reconciled::<Timeline>::new(scope, client);
        let wake = Wake {
            pools: pools.wake.clone(),
            tenants: tenants.wake.clone(),
            timelines: timelines.wake.clone(),
        };

        let all = watcher::Config::default();
        let look_again = || {
            let changed = changed.clone();
            move || changed.notify_one()
        };
        let (pod_changed, node_changed) = (look_again(), look_again());
        let pods = watch::<Pod>(scope.apis(client), &all, strip_pod, move |_| pod_changed());
        let nodes = watch::<Node>(vec![Api::all(client.clone())], &all, strip_node, move |_| node_changed());
        let (waking, affected) = (wake.clone(), tenants.seen.clone());
        let namespaces = watch::<Namespace>(
            vec![Api::all(client.clone())],
            &all,
            |_| {},
            move |namespace| {
                // Its labels may let its tenants into a pool, or not any more.
                for tenant in
                    affected.all().iter().filter(|tenant| tenant.namespace() == namespace.metadata.name)
                {
                    waking.tenant(&ObjectRef::from_obj(&**tenant));
                }
            },
        );
        let cluster = Cluster {
            pools: pools.seen.clone(),
            tenants: tenants.seen.clone(),
            timelines: timelines.seen.clone(),
            pods: keep(supervisor, "watch of pods", pods),
            nodes: keep(supervisor, "watch of nodes", nodes),
            namespaces: keep(supervisor, "watch of namespaces", namespaces),
        };
        let routes_seen = RoutesSeen::new(
            keep(supervisor, "watch of services", routes::<Service>(scope, client, &wake)),
            keep(supervisor, "watch of endpoint slices", routes::<EndpointSlice>(scope, client, &wake)),
            keep(supervisor, "watch of config maps", routes::<ConfigMap>(scope, client, &wake)),
        );
        let reporter =
            Reporter { controller: "palimpsest.dev/operator".into(), instance: Some(identity.into()) };
        let context = Arc::new(Context {
            client: client.clone(),
            recorder: Recorder::new(client.clone(), reporter),
            fleet: Fleet::new(cluster.clone(), credentials, changed),
            cluster,
            routes_seen,
            metrics: metrics.clone(),
            tenants: Memory::default(),
            timelines: Memory::default(),
            strict: clients.strict,
        });
        let timelines = timelines.with_relatives(scope, client);
        World { context, wake, pools, tenants, timelines }
    }

    /// Waits until what is decided by, and is not reconciled, was seen once.
    pub async fn surroundings_seen(&self) -> Result<(), WatchEnded> {
        self.context.cluster.pods.ready().await?;
        self.context.cluster.nodes.ready().await?;
        self.context.cluster.namespaces.ready().await
    }

    /// Reconciles until told to stop, and ends the passes that run.
    pub async fn reconcile(self, stop: CancellationToken) {
        let World { context, wake, pools, tenants, timelines } = self;
        let supervisor = Supervisor::new(stop.clone(), context.metrics.clone());
        let fleet = context.fleet.clone();
        supervisor.start("fleet", move |stop| {
            let (fleet, wake) = (fleet.clone(), wake.clone());
            async move { fleet.run(wake, stop).await }
        });
        let counted = context.clone();
        supervisor.start("census", move |stop| census(counted.clone(), stop));
        let mut running: Vec<BoxFuture<'static, ()>> = Vec::new();
        running.extend(pools.drive(&context, &stop, "PageserverPool", pool::reconcile::reconcile));
        running.extend(tenants.drive(&context, &stop, "Tenant", tenant::reconcile::reconcile));
        running.extend(timelines.drive(&context, &stop, "Timeline", timeline::reconcile::reconcile));
        futures::future::join_all(running).await;
        supervisor.ended().await;
    }
}

impl<K> Reconciled<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    fn new(scope: &Scope, client: &Client) -> Self {
        let (mut controllers, mut all, mut wake) = (Vec::new(), Vec::new(), Vec::new());
        let config = ControllerConfig::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
        for api in scope.apis::<K>(client) {
            let (sender, woken) = mpsc::unbounded();
            let (shown, events) = show(watcher(api, watcher::Config::default()));
            let controller = Controller::for_stream(events.applied_objects(), shown.store.clone());
            all.push(shown);
            controllers.push(controller.with_config(config.clone()).reconcile_on(woken));
            wake.push(sender);
        }
        Reconciled { controllers, seen: Seen::new(all), wake }
    }

    /// The controllers at work, until told to stop.
    fn drive<F>(
        self,
        context: &Arc<Context>,
        stop: &CancellationToken,
        kind: &'static str,
        reconcile: fn(Arc<K>, Arc<Context>) -> F,
    ) -> Vec<BoxFuture<'static, ()>>
    where
        F: Future<Output = Result<Requeue, ReconcileError>> + Send + 'static,
    {
        let drive_one = |controller: Controller<K>| {
            controller
                .graceful_shutdown_on(stop.clone().cancelled_owned())
                .run(
                    move |object, context| observed(kind, reconcile, object, context),
                    |_, _, _| Requeue::requeue(AFTER_FAILURE),
                    context.clone(),
                )
                // Failed passes were logged where they failed.
                .for_each(|_| std::future::ready(()))
                .boxed()
        };
        self.controllers.into_iter().map(drive_one).collect()
    }
}

impl Reconciled<Timeline> {
    /// A timeline is looked at again when its tenant changes, or its ancestor, or one of its branches.
    fn with_relatives(mut self, scope: &Scope, client: &Client) -> Self {
        let apis = scope.apis::<Tenant>(client).into_iter().zip(scope.apis::<Timeline>(client));
        self.controllers = self
            .controllers
            .into_iter()
            .zip(apis)
            .map(|(controller, (tenants, timelines))| {
                let (of_tenant, of_timeline) = (self.seen.clone(), self.seen.clone());
                controller
                    .watches(tenants, watcher::Config::default(), move |tenant: Tenant| {
                        related(&of_tenant, |timeline| {
                            timeline.namespace() == tenant.namespace()
                                && timeline.spec.tenant_ref.name == tenant.name_any()
                        })
                    })
                    .watches(timelines, watcher::Config::default(), move |changed: Timeline| {
                        related(&of_timeline, |timeline| {
                            timeline.namespace() == changed.namespace()
                                && (is_ancestor(&changed, timeline) || is_ancestor(timeline, &changed))
                        })
                    })
            })
            .collect();
        self
    }
}

fn related(seen: &Seen<Timeline>, which: impl Fn(&Timeline) -> bool) -> Vec<ObjectRef<Timeline>> {
    seen.all()
        .iter()
        .filter(|timeline| which(timeline))
        .map(|timeline| ObjectRef::from_obj(&**timeline))
        .collect()
}

fn is_ancestor(ancestor: &Timeline, branch: &Timeline) -> bool {
    let id = ancestor.status.as_ref().and_then(|status| status.timeline_id.as_ref());
    branch.spec.ancestor.as_ref().is_some_and(|named| {
        named.timeline_ref.as_ref().is_some_and(|by_name| by_name.name == ancestor.name_any())
            || (id.is_some() && named.timeline_id.as_ref() == id)
    })
}

/// A pass, timed and counted; a failed one is logged here, and nowhere else.
async fn observed<K, F>(
    kind: &'static str,
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Requeue, ReconcileError>
where
    K: Resource<DynamicType = ()>,
    F: Future<Output = Result<Requeue, ReconcileError>>,
{
    let started = tokio::time::Instant::now();
    let named = ObjectRef::from_obj(&*object);
    let result = reconcile(object, context.clone()).await;
    let seconds = started.elapsed().as_secs_f64();
    context.metrics.reconcile_seconds.with_label_values(&[kind]).observe(seconds);
    if let Err(error) = &result {
        context.metrics.reconcile_errors.with_label_values(&[kind, error.reason()]).inc();
        if error.is_conflict() {
            tracing::debug!(object = %named, "someone else wrote first: {}", story(error));
        } else {
            tracing::warn!(object = %named, "a pass failed: {}", story(error));
        }
    }
    result
}

/// Lets a watch run until the process ends.
fn keep<K>(supervisor: &Supervisor, name: &'static str, watch: Watch<K>) -> Seen<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    // It retries by itself and never ends: it is started but once.
    let mut keep = Some(watch.keep);
    supervisor.start(name, move |stop| {
        let keep = keep.take();
        async move {
            if let Some(keep) = keep {
                stop.run_until_cancelled(keep).await;
            }
            Ok::<_, std::convert::Infallible>(())
        }
    });
    watch.seen
}

/// Watches objects that we made; a change wakes the tenant that they belong to.
fn routes<K>(scope: &Scope, client: &Client, wake: &Wake) -> Watch<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + Sync + 'static,
{
    let ours = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
    let wake = wake.clone();
    watch(
        scope.apis(client),
        &ours,
        |_| {},
        move |object: &PartialObjectMeta<K>| {
            let owner = object.owner_references().iter().find(|owner| owner.kind == "Tenant");
            if let (Some(owner), Some(namespace)) = (owner, object.namespace()) {
                wake.tenant(&ObjectRef::new(&owner.name).within(&namespace));
            }
        },
    )
}

/// Leaves of a pod what tells whether it is a pageserver, where it is, and how it fares.
fn strip_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = k8s_openapi::api::core::v1::PodSpec {
            node_name: spec.node_name.take(),
            readiness_gates: spec.readiness_gates.take(),
            ..Default::default()
        };
    }
    if let Some(status) = &mut pod.status {
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase: status.phase.take(),
            pod_ip: status.pod_ip.take(),
            conditions: status.conditions.take(),
            ..Default::default()
        };
    }
}

/// Leaves of a node its labels and taints.
fn strip_node(node: &mut Node) {
    node.status = None;
    node.metadata.annotations = None;
}

/// Counts tenants and shards now and then.
async fn census(context: Arc<Context>, stop: CancellationToken) -> Result<(), WatchEnded> {
    context.cluster.tenants.ready().await?;
    let mut tick = tokio::time::interval(CENSUS);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let (tenants, shards) = (&context.metrics.tenants, &context.metrics.shards);
        tenants.reset();
        shards.reset();
        for tenant in context.cluster.tenants.all() {
            let status = tenant.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
            tenants.with_label_values(&[ready.map_or("Pending", |ready| ready.reason.as_str())]).inc();
            for shard in &status.shards {
                let mode = match (&shard.target, &shard.attached) {
                    (Some(_), _) => "target",
                    (None, Some(_)) => "attached",
                    (None, None) => "detached",
                };
                shards.with_label_values(&[mode]).inc();
            }
        }
    }
    Ok(())
}
