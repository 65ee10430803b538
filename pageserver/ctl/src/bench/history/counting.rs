//! A bucket that counts what is asked of it, and knows what is in it.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Range};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use engine::object_path::ObjectPath;
use engine::ports::{Body, Bucket, BucketError, ETag, ListRequest, Listing, Object, ObjectMeta, PutIf};
use model::{LayerName, TimelineId};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Raw WAL.
    Wal,
    /// A layer straight from the tail.
    L0,
    /// Another layer of changes.
    Delta,
    /// A layer of images.
    Image,
    /// An index.
    Index,
    /// Anything else: claims, settings, tombstones.
    Other,
}

/// Requests of one class.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests {
    pub puts: u64,
    pub put_bytes: u64,
    pub gets: u64,
    pub get_bytes: u64,
    pub lists: u64,
    pub deletes: u64,
}

impl AddAssign for Requests {
    fn add_assign(&mut self, more: Requests) {
        self.puts += more.puts;
        self.put_bytes += more.put_bytes;
        self.gets += more.gets;
        self.get_bytes += more.get_bytes;
        self.lists += more.lists;
        self.deletes += more.deletes;
    }
}

/// What S3 takes for a request, in dollars. Deletions cost nothing.
const PUT_PRICE: f64 = 5.0 / 1e6;
const GET_PRICE: f64 = 0.4 / 1e6;

impl Requests {
    /// Since an earlier count.
    pub fn since(self, before: Requests) -> Requests {
        Requests {
            puts: self.puts - before.puts,
            put_bytes: self.put_bytes - before.put_bytes,
            gets: self.gets - before.gets,
            get_bytes: self.get_bytes - before.get_bytes,
            lists: self.lists - before.lists,
            deletes: self.deletes - before.deletes,
        }
    }

    /// Puts and listings, which are billed alike.
    pub fn put_class(self) -> u64 {
        self.puts + self.lists
    }

    /// What they cost at S3.
    pub fn dollars(self) -> f64 {
        self.put_class() as f64 * PUT_PRICE + self.gets as f64 * GET_PRICE
    }
}

/// A layer from the tail that was put.
#[derive(Clone, Debug)]
pub struct SeenL0 {
    pub timeline: TimelineId,
    pub name: LayerName,
    pub size: u64,
}

#[derive(Default)]
struct Seen {
    requests: BTreeMap<Class, Requests>,
    objects: BTreeMap<String, u64>,
    l0s: Vec<SeenL0>,
    gets: Option<Vec<(Instant, Instant)>>,
}

/// Counts, and hands on to another bucket.
pub struct CountingBucket {
    inner: Arc<dyn Bucket>,
    /// How long each GET takes longer.
    delay: Duration,
    seen: Mutex<Seen>,
}

fn class_of(path: &str) -> Class {
    match ObjectPath::from_str(path) {
        Ok(ObjectPath::Wal { .. }) => Class::Wal,
        Ok(ObjectPath::Index { .. }) => Class::Index,
        Ok(ObjectPath::Layer { name, .. }) => match name.layer {
            LayerName::Image { .. } => Class::Image,
            layer if layer.is_l0() => Class::L0,
            LayerName::Delta { .. } => Class::Delta,
        },
        _ if path.starts_with("palimpsest/wal/") => Class::Wal,
        _ => Class::Other,
    }
}

impl CountingBucket {
    /// Counts what is asked of `inner`; each GET takes `delay` longer.
    pub fn new(inner: Arc<dyn Bucket>, delay: Duration) -> CountingBucket {
        CountingBucket { inner, delay, seen: Mutex::default() }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder panics")
    }

    /// All requests so far, by class.
    pub fn requests(&self) -> BTreeMap<Class, Requests> {
        self.seen().requests.clone()
    }

    /// All requests so far.
    pub fn total(&self) -> Requests {
        let mut sum = Requests::default();
        self.seen().requests.values().for_each(|requests| sum += *requests);
        sum
    }

    /// Bytes that are in the bucket.
    pub fn bytes(&self) -> u64 {
        self.seen().objects.values().sum()
    }

    /// Bytes that are in the bucket, by class, with how many objects.
    pub fn stored(&self) -> BTreeMap<Class, (u64, u64)> {
        let mut stored: BTreeMap<Class, (u64, u64)> = BTreeMap::new();
        for (path, size) in &self.seen().objects {
            let (count, bytes) = stored.entry(class_of(path)).or_default();
            *count += 1;
            *bytes += size;
        }
        stored
    }

    /// Layers from tails that were ever put.
    pub fn l0s(&self) -> Vec<SeenL0> {
        self.seen().l0s.clone()
    }

    /// Notes from now on when each GET began and ended.
    pub fn watch_gets(&self) {
        self.seen().gets = Some(Vec::new());
    }

    /// How many GETs there were since [`CountingBucket::watch_gets`], and how many of them one after the other.
    pub fn watched_gets(&self) -> (usize, usize) {
        let mut gets = self.seen().gets.take().unwrap_or_default();
        gets.sort_by_key(|(_, end)| *end);
        let mut chain: Option<(usize, Instant)> = None;
        for (begin, end) in &gets {
            match chain {
                Some((count, last)) if *begin >= last => chain = Some((count + 1, *end)),
                Some(_) => {}
                None => chain = Some((1, *end)),
            }
        }
        (gets.len(), chain.map_or(0, |(count, _)| count))
    }

    fn count(&self, path: &str, more: Requests) {
        *self.seen().requests.entry(class_of(path)).or_default() += more;
    }
}

#[async_trait]
impl Bucket for CountingBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let begun = Instant::now();
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let found = self.inner.get(path, range).await;
        let get_bytes = found.as_ref().map_or(0, |object| object.bytes.len() as u64);
        self.count(path, Requests { gets: 1, get_bytes, ..Requests::default() });
        if let Some(gets) = &mut self.seen().gets {
            gets.push((begun, Instant::now()));
        }
        found
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let size = match &body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { length, .. } => *length,
        };
        let put = self.inner.put(path, body, condition).await;
        self.count(path, Requests { puts: 1, put_bytes: size, ..Requests::default() });
        if put.is_ok() {
            let mut seen = self.seen();
            seen.objects.insert(path.to_owned(), size);
            if let Ok(ObjectPath::Layer { timeline, name, .. }) = ObjectPath::from_str(path)
                && name.layer.is_l0()
            {
                seen.l0s.push(SeenL0 { timeline, name: name.layer, size });
            }
        }
        put
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        self.count(request.prefix, Requests { lists: 1, ..Requests::default() });
        self.inner.list(request).await
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        self.count(path, Requests { gets: 1, ..Requests::default() });
        self.inner.head(path).await
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        let deleted = self.inner.delete(paths).await;
        let first = paths.first().map_or("", String::as_str);
        self.count(first, Requests { deletes: 1, ..Requests::default() });
        if deleted.is_ok() {
            let mut seen = self.seen();
            for path in paths {
                seen.objects.remove(path);
            }
        }
        deleted
    }
}
