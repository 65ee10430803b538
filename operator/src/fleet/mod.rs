//! The pageservers of all pools: who they are, what they say, and how they are called.
//!
//! Nothing here is stored: what is known is what pods, nodes and pageservers say now.

pub mod credentials;
pub mod link;
pub mod report;
pub mod roster;
pub mod rpc;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::credentials::Credentials;
use self::link::{Address, Client, Link};
use crate::api::pool::{ConditionalWrites, NamespacesFrom, PageserverPool};
use crate::api::{Tenant, Timeline};
use crate::pool::hold::failover_is_held;
use crate::pool::view::{Contact, OpenPool, Pageserver, PoolView};
use crate::seen::{Seen, WatchEnded};

/// Silence grows without that anything happens: it is looked at this often.
const SURVEY_INTERVAL: Duration = Duration::from_secs(1);
/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(20);

/// Namespace and name of a pool.
pub type PoolKey = (String, String);

/// What the API server shows, as far as pageservers are concerned.
#[derive(Clone)]
pub struct Cluster {
    /// Pools.
    pub pools: Seen<PageserverPool>,
    /// Tenants.
    pub tenants: Seen<Tenant>,
    /// Timelines.
    pub timelines: Seen<Timeline>,
    /// Pods, those that may be pageservers among them.
    pub pods: Seen<Pod>,
    /// Nodes.
    pub nodes: Seen<Node>,
    /// Namespaces.
    pub namespaces: Seen<Namespace>,
}

impl Cluster {
    /// Waits until all that is there was seen once.
    pub async fn ready(&self) -> Result<(), WatchEnded> {
        self.pools.ready().await?;
        self.tenants.ready().await?;
        self.timelines.ready().await?;
        self.pods.ready().await?;
        self.nodes.ready().await?;
        self.namespaces.ready().await
    }
}

/// Resources to look at again. The queues are unbounded, since whoever reads them keeps each resource but once.
#[derive(Clone)]
pub struct Wake {
    /// To those who reconcile tenants.
    pub tenants: Vec<UnboundedSender<ObjectRef<Tenant>>>,
    /// To those who reconcile timelines.
    pub timelines: Vec<UnboundedSender<ObjectRef<Timeline>>>,
    /// To those who reconcile pools.
    pub pools: Vec<UnboundedSender<ObjectRef<PageserverPool>>>,
}

impl Wake {
    /// A tenant is to be looked at again.
    pub fn tenant(&self, named: &ObjectRef<Tenant>) {
        wake(&self.tenants, named);
    }
}

fn wake<K: kube::Resource<DynamicType = ()>>(
    senders: &[UnboundedSender<ObjectRef<K>>],
    named: &ObjectRef<K>,
) {
    for sender in senders {
        // A closed one belongs to a controller that has ended.
        let _ = sender.unbounded_send(named.clone());
    }
}

/// All pageservers. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    credentials: Credentials,
    changed: Arc<Notify>,
    // Each guards one table, for a look-up or a replacement.
    links: Mutex<HashMap<(String, String), Link>>,
    pools: Mutex<BTreeMap<PoolKey, PoolView>>,
}

impl Fleet {
    /// The pageservers of the cluster, none of which is known yet.
    ///
    /// `changed` is to be notified when something about pods, nodes or pools is new.
    pub fn new(cluster: Cluster, credentials: Credentials, changed: Arc<Notify>) -> Fleet {
        Fleet {
            inner: Arc::new(Inner {
                cluster,
                credentials,
                changed,
                links: Mutex::default(),
                pools: Mutex::default(),
            }),
        }
    }

    /// Looks at everything again and again, and wakes whom a change concerns.
    pub async fn run(&self, wake: Wake, stop: CancellationToken) -> Result<(), WatchEnded> {
        self.inner.cluster.ready().await?;
        let mut tick = tokio::time::interval(SURVEY_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.survey(&wake);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = tick.tick() => {}
                () = self.inner.changed.notified() => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    /// The pool that a tenant names, as it is for tenants of that namespace. `None` before the first survey saw it.
    pub fn pool_of(&self, tenant: &Tenant) -> Option<PoolView> {
        let namespace = tenant.pool_namespace();
        let Some(pool) = self.inner.cluster.pools.get(namespace, &tenant.spec.pool_ref.name) else {
            return Some(PoolView::Missing);
        };
        if !self.allows(&pool, &tenant.namespace().unwrap_or_default()) {
            return Some(PoolView::NotAllowed);
        }
        self.pool(&(namespace.into(), pool.name_any()))
    }

    /// A pool.
    pub fn pool(&self, key: &PoolKey) -> Option<PoolView> {
        lock(&self.inner.pools).get(key).cloned()
    }

    /// A client of a process, if that is the one that answers in the pod.
    pub fn client(&self, namespace: &str, pod: &str, instance: &str) -> Option<Client> {
        let links = lock(&self.inner.links);
        let link = links.get(&(namespace.to_owned(), pod.to_owned()))?;
        matches!(link.contact(), Contact::Answering(report) if report.instance == instance)
            .then(|| link.client())
            .flatten()
    }

    /// Why a pod does not answer.
    pub fn failure(&self, namespace: &str, pod: &str) -> Option<String> {
        lock(&self.inner.links).get(&(namespace.to_owned(), pod.to_owned()))?.failure()
    }

    fn allows(&self, pool: &PageserverPool, namespace: &str) -> bool {
        let allowed = &pool.spec.tenants.allowed_namespaces;
        match allowed.from {
            _ if pool.namespace().as_deref() == Some(namespace) => true,
            NamespacesFrom::Same => false,
            NamespacesFrom::All => true,
            NamespacesFrom::Selector => {
                let found = self.inner.cluster.namespaces.get_cluster_wide(namespace);
                let labels = found.as_ref().and_then(|namespace| namespace.metadata.labels.as_ref());
                allowed
                    .selector
                    .as_ref()
                    .is_some_and(|wanted| roster::labels_match(&wanted.match_labels, labels))
            }
        }
    }

    /// Makes and drops links, builds every pool's view anew, and wakes whom the difference concerns.
    fn survey(&self, wake_senders: &Wake) {
        let cluster = &self.inner.cluster;
        let placed = self.placed();
        let mut views = BTreeMap::new();
        let mut wanted = Vec::new();
        for pool in cluster.pools.all() {
            let key = (pool.namespace().unwrap_or_default(), pool.name_any());
            let view = match self.open(&pool, &key, &placed, &mut wanted) {
                Ok(open) => PoolView::Open(Arc::new(open)),
                Err(why) => PoolView::Invalid(why.to_string()),
            };
            views.insert(key, view);
        }
        lock(&self.inner.links).retain(|key, _| wanted.contains(key));
        let before = std::mem::replace(&mut *lock(&self.inner.pools), views.clone());
        for (key, view) in &views {
            if let Some(difference) = difference(before.get(key), view) {
                self.tell(wake_senders, key, &difference);
            }
        }
        for gone in before.keys().filter(|key| !views.contains_key(*key)) {
            self.tell(wake_senders, gone, &Difference::All);
        }
    }

    /// Shards that committed statuses place in each pod of each pool.
    fn placed(&self) -> HashMap<(PoolKey, String), u32> {
        let mut placed = HashMap::new();
        for tenant in self.inner.cluster.tenants.all() {
            let key = (tenant.pool_namespace().to_owned(), tenant.spec.pool_ref.name.clone());
            for shard in tenant.status.iter().flat_map(|status| &status.shards) {
                let target = shard.target.as_ref().map(|target| &target.pod);
                if let Some(pod) = target.or(shard.attached.as_ref().map(|place| &place.pod)) {
                    *placed.entry((key.clone(), pod.clone())).or_default() += 1;
                }
            }
        }
        placed
    }

    fn open(
        &self,
        pool: &PageserverPool,
        key: &PoolKey,
        placed: &HashMap<(PoolKey, String), u32>,
        wanted: &mut Vec<(String, String)>,
    ) -> Result<OpenPool, crate::api::text::ParseTextError> {
        let detection = &pool.spec.failure_detection;
        let (poll, patience) = (detection.poll()?, detection.patience()?);
        let mut pageservers = BTreeMap::new();
        for pod in self.inner.cluster.pods.all().iter().filter(|pod| roster::belongs(pool, pod)) {
            let name = pod.name_any();
            let contact = roster::running_ip(pod).map(|ip| {
                let link = (key.0.clone(), name.clone());
                wanted.push(link.clone());
                let address = Address {
                    pod_uid: pod.uid().unwrap_or_default(),
                    ip: ip.into(),
                    port: pool.spec.ports.control,
                    auth: pool.spec.control_auth.clone(),
                    poll,
                };
                self.contact(&link, address)
            });
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let node = node.and_then(|node| self.inner.cluster.nodes.get_cluster_wide(node));
            let placed = placed.get(&(key.clone(), name.clone())).copied().unwrap_or(0);
            pageservers.insert(name, roster::pageserver(&pool.spec, pod, node.as_deref(), contact, placed));
        }
        Ok(OpenPool {
            uid: pool.uid().unwrap_or_default(),
            patience,
            held: failover_is_held(pageservers.values(), patience, detection.max_unhealthy_percent),
            max_shards: pool.spec.scheduling.max_shards_per_pageserver,
            disk_high_watermark_percent: pool.spec.scheduling.disk_high_watermark_percent,
            best_effort: pool.spec.storage.conditional_writes == ConditionalWrites::BestEffort,
            pageservers,
        })
    }

    fn contact(&self, key: &(String, String), address: Address) -> Contact {
        let mut links = lock(&self.inner.links);
        if links.get(key).is_none_or(|link| link.address != address) {
            let link = Link::start(address, self.inner.credentials.clone(), self.inner.changed.clone());
            links.insert(key.clone(), link);
        }
        links[key].contact()
    }

    fn tell(&self, senders: &Wake, key: &PoolKey, difference: &Difference) {
        let pool = ObjectRef::<PageserverPool>::new(&key.1).within(&key.0);
        wake(&senders.pools, &pool);
        let mut concerned = Vec::new();
        for tenant in self.inner.cluster.tenants.all() {
            if difference.concerns(&tenant, key) {
                senders.tenant(&ObjectRef::from_obj(&*tenant));
                concerned.push((tenant.namespace(), tenant.name_any()));
            }
        }
        for timeline in self.inner.cluster.timelines.all() {
            if concerned.contains(&(timeline.namespace(), timeline.spec.tenant_ref.name.clone())) {
                wake(&senders.timelines, &ObjectRef::from_obj(&*timeline));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who is concerned by what is new in a pool.
#[derive(Debug, PartialEq)]
enum Difference {
    /// Everyone in it.
    All,
    /// Tenants of which something is reported otherwise than before.
    Tenants(Vec<model::TenantId>),
}

impl Difference {
    fn concerns(&self, tenant: &Tenant, pool: &PoolKey) -> bool {
        let named = (tenant.pool_namespace(), tenant.spec.pool_ref.name.as_str());
        named == (&pool.0, &pool.1)
            && match self {
                Difference::All => true,
                Difference::Tenants(ids) => {
                    let id =
                        tenant.status.as_ref().and_then(|status| status.tenant_id.as_ref()?.tenant().ok());
                    id.is_some_and(|id| ids.contains(&id))
                }
            }
    }
}

/// What is new in a pool, apart from that time goes by.
fn difference(before: Option<&PoolView>, after: &PoolView) -> Option<Difference> {
    let (Some(PoolView::Open(before)), PoolView::Open(after)) = (before, after) else {
        let same = matches!((before, after), (Some(PoolView::Invalid(a)), PoolView::Invalid(b)) if a == b);
        return (!same).then_some(Difference::All);
    };
    let standing = |pool: &OpenPool| {
        pool.pageservers.values().map(|one| (one.pod_uid.clone(), stance(pool, one))).collect::<Vec<_>>()
    };
    if before.held != after.held || standing(before) != standing(after) {
        return Some(Difference::All);
    }
    let mut tenants = Vec::new();
    for (pod, new) in &after.pageservers {
        let none = BTreeMap::new();
        let shards =
            |one: Option<&Pageserver>| one.and_then(Pageserver::report).map(|report| report.shards.clone());
        let (old, new) = (
            shards(before.pageservers.get(pod)).unwrap_or_else(|| none.clone()),
            shards(Some(new)).unwrap_or(none),
        );
        let changed = new.iter().filter(|(id, shard)| old.get(id) != Some(shard)).map(|(id, _)| id.tenant);
        let gone = old.keys().filter(|id| !new.contains_key(id)).map(|id| id.tenant);
        tenants.extend(changed.chain(gone));
    }
    (!tenants.is_empty()).then_some(Difference::Tenants(tenants))
}

/// What all tenants of a pool need to know of a pageserver.
#[derive(Debug, PartialEq)]
enum Stance {
    Starting,
    Silent { lost: bool },
    Answering { instance: String, usable: bool, leaving: bool },
}

fn stance(pool: &OpenPool, pageserver: &Pageserver) -> Stance {
    match &pageserver.contact {
        Contact::Starting => Stance::Starting,
        Contact::Silent(since) => Stance::Silent { lost: *since > pool.patience },
        Contact::Answering(report) => Stance::Answering {
            instance: report.instance.clone(),
            usable: pool.is_usable(pageserver),
            leaving: pageserver.leaving.is_some(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{answering, holding, pool, shard, silent};
    use crate::pool::view::ShardState;

    fn between(
        before: impl IntoIterator<Item = Pageserver>,
        after: impl IntoIterator<Item = Pageserver>,
    ) -> Option<Difference> {
        let open = |pageservers: Vec<Pageserver>| PoolView::Open(pool(pageservers).into());
        difference(Some(&open(before.into_iter().collect())), &open(after.into_iter().collect()))
    }

    #[test]
    fn time_that_goes_by_is_no_difference_until_patience_ends() {
        assert_eq!(between([silent("a", 3)], [silent("a", 4)]), None);
        assert_eq!(between([silent("a", 15)], [silent("a", 16)]), Some(Difference::All));
        assert_eq!(between([answering("a", "1")], [answering("a", "1")]), None);
        assert_eq!(between([answering("a", "1")], [answering("a", "2")]), Some(Difference::All));
        assert_eq!(between([], [answering("a", "1")]), Some(Difference::All));
    }

    #[test]
    fn a_shard_that_changes_concerns_its_tenant_only() {
        let with = |generation| [holding(answering("a", "1"), shard(3), generation, ShardState::Active)];
        assert_eq!(between(with(1), with(1)), None);
        assert_eq!(between(with(1), with(2)), Some(Difference::Tenants(vec![shard(3).tenant])));
        assert_eq!(between(with(1), [answering("a", "1")]), Some(Difference::Tenants(vec![shard(3).tenant])));
    }

    #[test]
    fn a_pool_that_becomes_usable_concerns_all() {
        let open = PoolView::Open(pool([]).into());
        let invalid = |why: &str| PoolView::Invalid(why.into());
        assert_eq!(difference(None, &open), Some(Difference::All));
        assert_eq!(difference(Some(&invalid("a")), &open), Some(Difference::All));
        assert_eq!(difference(Some(&invalid("a")), &invalid("a")), None);
    }
}
