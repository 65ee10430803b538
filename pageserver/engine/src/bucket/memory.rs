//! A bucket in memory, for tests and simulations.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{AFTER_PREFIX, DELETE_BATCH, LIST_PAGE, ShortFile, check_path, rejected, resolve_range};
use crate::clock::SystemClock;
use crate::ports::{
    Body, Bucket, BucketError, Clock, ETag, ListRequest, ListedObject, Listing, Object, ObjectMeta, PutIf,
};

/// Objects in a map. As exact as S3 in its conditions, and as durable as the process.
#[derive(Debug)]
pub struct MemoryBucket {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
}

impl Default for MemoryBucket {
    fn default() -> Self {
        MemoryBucket::new(Arc::new(SystemClock))
    }
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Bytes, ObjectMeta)>,
    writes: u64,
}

impl MemoryBucket {
    /// Empty; its objects are of the times that the clock tells.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        MemoryBucket { state: Mutex::default(), clock }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the map half-changed: every change is one insert or one remove.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Bucket for MemoryBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        check_path("get", path)?;
        let state = self.state();
        let (bytes, meta) = state.objects.get(path).ok_or_else(|| BucketError::NotFound(path.into()))?;
        let range = resolve_range(path, range, meta.size)?;
        Ok(Object { bytes: bytes.slice(range.start as usize..range.end as usize), meta: meta.clone() })
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        check_path("put", path)?;
        let bytes = match body {
            Body::Bytes(bytes) => bytes,
            Body::File { file, length } => {
                let found = file.length().map_err(|error| rejected("put", path, error))?;
                if found < length {
                    return Err(rejected("put", path, ShortFile { found, expected: length }));
                }
                let mut content = vec![0; length as usize];
                file.read_at(&mut content, 0).map_err(|error| rejected("put", path, error))?;
                content.into()
            }
        };
        let mut state = self.state();
        let found = state.objects.get(path).map(|(_, meta)| &meta.etag);
        let holds = match &condition {
            PutIf::Absent => found.is_none(),
            PutIf::Matches(expected) => found == Some(expected),
        };
        if !holds {
            return Err(BucketError::Precondition(path.into()));
        }
        state.writes += 1;
        let etag = ETag(format!("m{}", state.writes));
        let modified = Some(self.clock.now());
        let meta = ObjectMeta { size: bytes.len() as u64, etag: etag.clone(), modified };
        state.objects.insert(path.into(), (bytes, meta));
        Ok(etag)
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        let limit = request.limit.unwrap_or(LIST_PAGE).min(LIST_PAGE);
        let state = self.state();
        let mut listing = Listing::default();
        let mut from = match request.after {
            Some(after) if after >= request.prefix => Bound::Excluded(after.to_owned()),
            _ => Bound::Included(request.prefix.to_owned()),
        };
        let mut last = None;
        while let Some((path, (_, meta))) = state.objects.range((from.clone(), Bound::Unbounded)).next() {
            let Some(rest) = path.strip_prefix(request.prefix) else { break };
            if listing.objects.len() + listing.prefixes.len() == limit {
                listing.next = last;
                break;
            }
            let next = if let Some(slash) = rest.find('/').filter(|_| request.delimiter) {
                let folded = &path[..=request.prefix.len() + slash];
                listing.prefixes.push(folded.into());
                format!("{folded}{AFTER_PREFIX}")
            } else {
                let (size, modified) = (meta.size, meta.modified);
                listing.objects.push(ListedObject { path: path.clone(), size, modified });
                path.clone()
            };
            last = Some(next.clone());
            from = Bound::Excluded(next);
        }
        Ok(listing)
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        check_path("head", path)?;
        let state = self.state();
        state
            .objects
            .get(path)
            .map(|(_, meta)| meta.clone())
            .ok_or_else(|| BucketError::NotFound(path.into()))
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        if paths.len() > DELETE_BATCH {
            return Err(rejected("delete", "", format!("{} paths in one delete", paths.len())));
        }
        paths.iter().try_for_each(|path| check_path("delete", path))?;
        let mut state = self.state();
        for path in paths {
            state.objects.remove(path);
        }
        Ok(())
    }
}
