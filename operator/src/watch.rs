//! Watches of what the operator does not reconcile but decides by.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::select_all;
use futures::{FutureExt as _, Stream, StreamExt as _};
use kube::api::Api;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch::channel;

use crate::error_story::story;
use crate::seen::{Seen, Shown};

/// Which namespaces are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Cluster,
    /// These.
    Namespaces(Vec<String>),
}

impl Scope {
    /// An API for each part of the scope.
    pub fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Scope::Cluster => vec![Api::all(client.clone())],
            Scope::Namespaces(names) => {
                names.iter().map(|name| Api::namespaced(client.clone(), name)).collect()
            }
        }
    }
}

/// A watch that is running as long as its future is polled.
pub struct Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// What it shows.
    pub seen: Seen<K>,
    /// Keeps it up to date.
    pub keep: BoxFuture<'static, ()>,
}

/// Watches what `apis` show. `strip` takes away what nobody reads, before it is stored; `touched` is told every change.
pub fn watch<K>(
    apis: Vec<Api<K>>,
    config: &watcher::Config,
    strip: fn(&mut K),
    touched: impl Fn(&K) + Send + Sync + 'static,
) -> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    let touched = Arc::new(touched);
    let mut all = Vec::new();
    let mut streams = Vec::new();
    for api in apis {
        let stream = watcher(api, config.clone()).default_backoff().modify(move |object| {
            object.meta_mut().managed_fields = None;
            strip(object);
        });
        let (shown, stream) = show(stream);
        all.push(shown);
        streams.push(stream.boxed());
    }
    let keep = select_all(streams).for_each(move |event| {
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => touched(&object),
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), "the watch failed, tried again: {}", story(&error));
            }
        }
        std::future::ready(())
    });
    Watch { seen: Seen::new(all), keep: keep.boxed() }
}

/// Stores what a watch brings, before whoever polls the stream sees it.
pub fn show<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
) -> (Shown<K>, impl Stream<Item = watcher::Result<Event<K>>>)
where
    K: Resource<DynamicType = ()> + Clone,
{
    let (store, writer) = reflector::store();
    let (listed, is_listed) = channel(false);
    let events = events.reflect(writer).inspect(move |event| {
        if matches!(event, Ok(Event::InitDone)) {
            listed.send_replace(true);
        }
    });
    (Shown { store, is_listed }, events)
}
