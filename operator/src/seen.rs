//! What the API server shows us, kept up to date: one store for each watched namespace, or one for all.

use std::hash::Hash;
use std::sync::Arc;

use kube::Resource;
use kube::runtime::reflector::{ObjectRef, Store};

/// Resources of a kind, in all watched namespaces.
#[derive(Clone)]
pub struct Seen<K: Resource<DynamicType = ()> + Clone + 'static>(Arc<Vec<Store<K>>>);

/// The stores' writers are gone: the process is coming to its end.
#[derive(Debug, thiserror::Error)]
#[error("the watch of resources has ended")]
pub struct WatchEnded;

impl<K> Seen<K>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    /// What these stores have.
    pub fn new(stores: Vec<Store<K>>) -> Self {
        Seen(Arc::new(stores))
    }

    /// Waits until all that is there was seen once. Before that, absence means nothing.
    pub async fn ready(&self) -> Result<(), WatchEnded> {
        for store in self.0.iter() {
            store.wait_until_ready().await.map_err(|_| WatchEnded)?;
        }
        Ok(())
    }

    /// One resource.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_ref(&ObjectRef::new(name).within(namespace))
    }

    /// One resource that is in no namespace.
    pub fn get_cluster_wide(&self, name: &str) -> Option<Arc<K>> {
        self.get_ref(&ObjectRef::new(name))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.0.iter().flat_map(Store::state).collect()
    }

    fn get_ref(&self, named: &ObjectRef<K>) -> Option<Arc<K>> {
        self.0.iter().find_map(|store| store.get(named))
    }
}
