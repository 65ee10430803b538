//! Reading one object through the tiers.

use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use codec::layer::ReadLayerError;
use codec::layer::blob::BlobHead;
use futures::future::FutureExt as _;
use tokio::sync::watch;

use super::disk::Counted;
use super::memory::Piece;
use super::{CHUNK_SIZE, ChunkCache, PieceKind, ReadFor};
use crate::blocking;
use crate::disk::OwnFile;
use crate::error_story::error_story;
use crate::ports::BucketError;

/// Chunks that a scan fetches at once: it comes to the next ones soon.
const SCAN_AHEAD: u32 = 4;

/// Why a chunk could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The object is gone. Objects that an index names are only deleted by newer owners.
    #[error("object {0} does not exist")]
    Gone(Arc<str>),
    /// The object is not what it should be.
    #[error("object {path} has {found} bytes where {expected} were expected")]
    Size {
        /// Which object.
        path: Arc<str>,
        /// Bytes answered.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The bucket does not answer as it should.
    #[error("cannot read object {path}: {reason}")]
    Bucket {
        /// Which object.
        path: Arc<str>,
        /// Why, with causes.
        reason: Arc<str>,
    },
}

/// A handle to one immutable object. What is fetched of it is fetched in tasks of their own, which nobody's waiting can hold up.
#[derive(Clone)]
pub struct Object(Arc<Inner>);

/// What handles to an object share.
pub struct Inner {
    cache: Arc<ChunkCache>,
    id: u64,
    path: Arc<str>,
    size: u64,
    resident: Arc<AtomicU64>,
    local: OnceLock<()>,
}

impl Deref for Object {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// What is being fetched of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// A chunk.
    Chunk(u32),
    /// So many neighbours as a scan fetches at once.
    Group(u32),
}

/// Why a GET is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Somebody waits.
    Reader,
    /// A scan waits.
    Scan,
    /// Nobody waits.
    WarmUp,
}

impl Object {
    pub(super) fn new(
        cache: Arc<ChunkCache>,
        id: u64,
        path: Arc<str>,
        size: u64,
        resident: Arc<AtomicU64>,
    ) -> Object {
        Object(Arc::new(Inner { cache, id, path, size, resident, local: OnceLock::new() }))
    }

    fn counted(&self) -> Counted {
        Counted { id: self.id, size: self.size, resident: Arc::clone(&self.resident) }
    }

    /// Its full path in the bucket.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u32 {
        self.size.div_ceil(CHUNK_SIZE) as u32
    }

    /// The cache through which it is read.
    pub(crate) fn cache(&self) -> &Arc<ChunkCache> {
        &self.cache
    }

    pub(super) fn chunk_len(&self, chunk: u32) -> u64 {
        (self.size - u64::from(chunk) * CHUNK_SIZE).min(CHUNK_SIZE)
    }

    /// The value whose header begins at offset `at`, if it was decompressed lately.
    pub fn unpacked(&self, at: u64, reading: ReadFor) -> Option<Bytes> {
        let hits = &self.cache.counts.value_hits;
        self.find(Piece::Value(at), PieceKind::Data, reading, hits)
    }

    /// The value whose header begins at offset `at`, decompressed from its stored bytes, and kept for a while, but not for a scan.
    pub fn unpack(
        &self,
        at: u64,
        head: &BlobHead,
        stored: &[u8],
        reading: ReadFor,
    ) -> Result<Bytes, ReadLayerError> {
        let unpacked =
            self.cache.with_unpacker(|unpacker| unpacker.unpack(head, stored).map(Cow::into_owned));
        let value = Bytes::from(unpacked?);
        if reading == ReadFor::Reader {
            self.cache.memory.insert((self.id, Piece::Value(at)), PieceKind::Data, reading, value.clone());
        }
        Ok(value)
    }

    /// A chunk that memory holds: checked, and at hand without waiting.
    pub fn in_memory(&self, chunk: u32, kind: PieceKind, reading: ReadFor) -> Option<Bytes> {
        let hits = &self.cache.counts.memory_hits;
        self.find(Piece::Chunk(chunk), kind, reading, hits)
    }

    /// Puts a checked chunk into memory.
    pub fn admit(&self, chunk: u32, kind: PieceKind, reading: ReadFor, bytes: Bytes) {
        self.cache.memory.insert((self.id, Piece::Chunk(chunk)), kind, reading, bytes);
    }

    fn find(&self, piece: Piece, kind: PieceKind, reading: ReadFor, hits: &AtomicU64) -> Option<Bytes> {
        let found = self.cache.memory.get((self.id, piece), kind, reading);
        if found.is_some() {
            hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// A chunk from disk or bucket, unchecked. Concurrent misses share one GET. For a scan that comes to the neighbours next, these are fetched
    /// too, and nothing is kept on disk, but for indexes.
    pub async fn load(&self, chunk: u32, kind: PieceKind, reading: ReadFor) -> Result<Bytes, FetchError> {
        if let Some(bytes) = self.read_local(chunk, reading == ReadFor::Reader).await {
            return Ok(bytes);
        }
        if reading == ReadFor::Scan && kind == PieceKind::Data {
            return self.load_ahead(chunk).await;
        }
        let this = self.clone();
        // Who needs a part of an index comes back to it, and finds it in memory then: nothing else would tell that it is in use.
        let hot = kind == PieceKind::Index && reading == ReadFor::Reader;
        let fetch = async move {
            let pieces = this.get_and_keep(chunk..chunk + 1, Purpose::Reader, hot).await;
            pieces.map(|mut pieces| pieces.swap_remove(0))
        };
        self.share(Wanted::Chunk(chunk), fetch).await
    }

    /// Whether memory or the local disk have a chunk. Counts as no use of it.
    pub fn is_at_hand(&self, chunk: u32, kind: PieceKind) -> bool {
        self.cache.memory.has((self.id, Piece::Chunk(chunk)), kind) || self.cache.disk.has(self.id, chunk)
    }

    /// Brings several stretches of chunks at once to the local disk, those that are missing with one GET where they are adjacent.
    pub async fn bring(&self, stretches: Vec<Range<u32>>) -> Result<(), FetchError> {
        let this = self.clone();
        let bringing = tokio::spawn(async move {
            let loads = stretches.into_iter().map(|chunks| this.load_all(chunks, ReadFor::Reader));
            futures::future::try_join_all(loads).await.map(drop)
        });
        bringing.await.unwrap_or_else(|ended| Err(self.ended(&ended)))
    }

    /// Chunks from disk or bucket, unchecked, for one who comes by once: what is on disk is used, and nothing that is fetched is kept. One GET where
    /// what is missing is adjacent.
    pub async fn load_run_once(&self, chunks: Range<u32>) -> Result<Vec<Bytes>, FetchError> {
        self.load_all(chunks, ReadFor::Scan).await
    }

    async fn load_all(&self, chunks: Range<u32>, reading: ReadFor) -> Result<Vec<Bytes>, FetchError> {
        let mut out = Vec::with_capacity(chunks.len());
        let mut next = chunks.start;
        while next < chunks.end {
            if let Some(bytes) = self.read_local(next, reading == ReadFor::Reader).await {
                out.push(bytes);
                next += 1;
                continue;
            }
            let missing = next..self.cache.disk.missing_end(self.id, next..chunks.end).max(next + 1);
            next = missing.end;
            out.extend(match reading {
                ReadFor::Reader => self.get_and_keep(missing, Purpose::Reader, false).await?,
                ReadFor::Scan => self.get(missing, Purpose::Scan).await?.1,
            });
        }
        Ok(out)
    }

    /// A chunk and its neighbours, which wait in the window.
    async fn load_ahead(&self, chunk: u32) -> Result<Bytes, FetchError> {
        let waiting = (self.id, Piece::Unchecked(chunk));
        if let Some(bytes) = self.cache.memory.get(waiting, PieceKind::Data, ReadFor::Scan) {
            return Ok(bytes);
        }
        let group = chunk / SCAN_AHEAD;
        let chunks = group * SCAN_AHEAD..((group + 1) * SCAN_AHEAD).min(self.chunks());
        let first = chunks.start;
        let this = self.clone();
        let fetch = async move {
            let (all, pieces) = this.get(chunks.clone(), Purpose::Scan).await?;
            for (chunk, bytes) in chunks.zip(pieces) {
                let key = (this.id, Piece::Unchecked(chunk));
                this.cache.memory.insert(key, PieceKind::Data, ReadFor::Scan, bytes);
            }
            Ok(all)
        };
        let all = self.share(Wanted::Group(group), fetch).await?;
        let start = u64::from(chunk - first) * CHUNK_SIZE;
        Ok(Bytes::copy_from_slice(&all[start as usize..(start + self.chunk_len(chunk)) as usize]))
    }

    /// A disk that fails has nothing: the bucket has it all.
    async fn read_local(&self, chunk: u32, counts: bool) -> Option<Bytes> {
        let length = self.chunk_len(chunk) as usize;
        let found = match self.cache.disk.read(self.id, chunk, length, counts).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::warn!(%error, object = %self.path, "cannot read the local copy of an object, which goes");
                self.forget_local_copy();
                return None;
            }
        };
        self.cache.counts.disk_hits.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    /// What is on disk of it is not to be used any more. Whether there was anything.
    pub(crate) fn forget_local_copy(&self) -> bool {
        self.cache.disk.forget(self.id)
    }

    /// One GET for all who want the same now.
    async fn share(
        &self,
        wanted: Wanted,
        fetch: impl Future<Output = Result<Bytes, FetchError>> + Send + 'static,
    ) -> Result<Bytes, FetchError> {
        let key = (self.id, wanted);
        let fetching = {
            let mut in_flight = self.cache.in_flight.lock().expect("no holder panics");
            let begin = || {
                let this = self.clone();
                let task = tokio::spawn(async move {
                    let _ends = InFlight { cache: Arc::clone(&this.cache), key };
                    fetch.await
                });
                let this = self.clone();
                task.map(move |ended| ended.unwrap_or_else(|ended| Err(this.ended(&ended)))).boxed().shared()
            };
            in_flight.entry(key).or_insert_with(begin).clone()
        };
        fetching.await
    }

    /// A task that fetched did not come to its end: the process is going away.
    fn ended(&self, ended: &tokio::task::JoinError) -> FetchError {
        FetchError::Bucket { path: Arc::clone(&self.path), reason: ended.to_string().into() }
    }

    async fn get_and_keep(
        &self,
        chunks: Range<u32>,
        purpose: Purpose,
        hot: bool,
    ) -> Result<Vec<Bytes>, FetchError> {
        let (all, pieces) = self.get(chunks.clone(), purpose).await?;
        self.keep_on_disk(chunks, all, hot).await;
        Ok(pieces)
    }

    /// One GET for adjacent chunks: all bytes, and each chunk's in memory of its own.
    async fn get(&self, chunks: Range<u32>, purpose: Purpose) -> Result<(Bytes, Vec<Bytes>), FetchError> {
        let counts = &self.cache.counts;
        let _waits = match purpose {
            Purpose::Reader => {
                counts.misses.fetch_add(chunks.len() as u64, Ordering::Relaxed);
                Some(Waiting::of(&self.cache.foreground))
            }
            Purpose::Scan => {
                counts.scan_misses.fetch_add(chunks.len() as u64, Ordering::Relaxed);
                None
            }
            Purpose::WarmUp => None,
        };
        let start = u64::from(chunks.start) * CHUNK_SIZE;
        let end = (u64::from(chunks.end) * CHUNK_SIZE).min(self.size);
        counts.fetches.fetch_add(1, Ordering::Relaxed);
        let object =
            self.cache.bucket.get(&self.path, Some(start..end)).await.map_err(|error| match error {
                BucketError::NotFound(_) => FetchError::Gone(Arc::clone(&self.path)),
                other => {
                    FetchError::Bucket { path: Arc::clone(&self.path), reason: error_story(&other).into() }
                }
            })?;
        let found = object.bytes.len() as u64;
        counts.fetched_bytes.fetch_add(found, Ordering::Relaxed);
        if object.meta.size != self.size || found != end - start {
            let (found, expected) = if object.meta.size == self.size {
                (found, end - start)
            } else {
                (object.meta.size, self.size)
            };
            return Err(FetchError::Size { path: Arc::clone(&self.path), found, expected });
        }
        if chunks.len() == 1 {
            return Ok((object.bytes.clone(), vec![object.bytes]));
        }
        // A slice would keep all of the answer in memory for as long as one chunk of it is used.
        let all = object.bytes;
        let pieces = all.chunks(CHUNK_SIZE as usize).map(Bytes::copy_from_slice).collect();
        Ok((all, pieces))
    }

    /// Writes fetched chunks to the disk tier. A disk that fails only makes the cache smaller.
    async fn keep_on_disk(&self, chunks: Range<u32>, bytes: Bytes, hot: bool) {
        let cache = Arc::clone(&self.cache);
        let object = self.counted();
        let kept = blocking::run(move || cache.disk.write(&object, chunks, &bytes, hot)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, object = %self.path, "cannot keep chunks on the local disk");
        }
    }

    /// Makes a complete local file the object's local copy. What is in use goes before it.
    pub async fn adopt(&self, file: OwnFile) {
        if self.local.set(()).is_ok() {
            let (cache, object) = (Arc::clone(&self.cache), self.counted());
            // What ended in a panic has said so; then the file is gone and the bucket has the bytes.
            let _ = blocking::run(move || cache.disk.adopt(&object, file)).await;
        }
    }

    /// Fetches those of the chunks that the disk does not have, though nobody asked. Answers how many bytes came.
    pub(crate) async fn warm_up(&self, chunks: Range<u32>, hot: bool) -> Result<u64, FetchError> {
        let mut bytes = 0;
        let mut next = chunks.start;
        let end = chunks.end.min(self.chunks());
        while next < end {
            if self.cache.disk.has(self.id, next) {
                next += 1;
                continue;
            }
            let missing = next..self.cache.disk.missing_end(self.id, next..end);
            next = missing.end;
            let came: usize =
                self.get_and_keep(missing, Purpose::WarmUp, hot).await?.iter().map(Bytes::len).sum();
            bytes += came as u64;
        }
        self.cache.counts.warmed_up_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// What is at hand on disk, as stretches of chunks that have or have not earned their place.
    pub(crate) fn at_hand(&self) -> Vec<(Range<u32>, bool)> {
        let mut stretches: Vec<(Range<u32>, bool)> = Vec::new();
        for (chunk, earned) in self.cache.disk.chunks_of(self.id) {
            // What memory serves again and again is seldom read from disk.
            let hot = earned || self.cache.memory.is_hot(self.id, chunk);
            match stretches.last_mut() {
                Some((last, same)) if last.end == chunk && *same == hot => last.end += 1,
                _ => stretches.push((chunk..chunk + 1, hot)),
            }
        }
        stretches
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cache.disk.forget(self.id);
    }
}

/// Takes a fetch off the list of those in flight, also when it is cancelled.
struct InFlight {
    cache: Arc<ChunkCache>,
    key: (u64, Wanted),
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Ok(mut in_flight) = self.cache.in_flight.lock() {
            in_flight.remove(&self.key);
        }
    }
}

/// Somebody who waits for the bucket.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn of(foreground: &'a watch::Sender<usize>) -> Self {
        foreground.send_modify(|waiting| *waiting += 1);
        Waiting(foreground)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}
