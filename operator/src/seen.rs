//! What the API server shows us, kept up to date: one store for each watched namespace, or one for all.

use std::hash::Hash;
use std::sync::Arc;

use kube::Resource;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::watch;

/// Resources of a kind, in all watched namespaces.
#[derive(Clone)]
pub struct Seen<K: Resource<DynamicType = ()> + Clone + 'static>(Arc<Vec<Shown<K>>>);

/// What one watch shows.
pub struct Shown<K: Resource<DynamicType = ()> + Clone + 'static> {
    /// What is there, as far as it was seen.
    pub store: Store<K>,
    /// Whether all of it was seen. A store's own wait wakes only the last of those who wait, which may be a controller's.
    pub is_listed: watch::Receiver<bool>,
}

/// The stores' writers are gone: the process is coming to its end.
#[derive(Debug, thiserror::Error)]
#[error("the watch of resources has ended")]
pub struct WatchEnded;

impl<K> Seen<K>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    /// What these watches show.
    pub fn new(shown: Vec<Shown<K>>) -> Self {
        Seen(Arc::new(shown))
    }

    /// Waits until all that is there was seen once. Before that, absence means nothing.
    pub async fn ready(&self) -> Result<(), WatchEnded> {
        for shown in self.0.iter() {
            shown.is_listed.clone().wait_for(|is_listed| *is_listed).await.map_err(|_| WatchEnded)?;
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
        self.0.iter().flat_map(|shown| shown.store.state()).collect()
    }

    fn get_ref(&self, named: &ObjectRef<K>) -> Option<Arc<K>> {
        self.0.iter().find_map(|shown| shown.store.get(named))
    }
}
