//! Pieces of objects, near at hand: a bounded memory tier over a bounded disk tier over ranged GETs.
//!
//! Nothing downloads a whole layer in order to read a page. A chunk is 64 KiB of an object, eight blocks of a layer file. The key of a chunk
//! contains the object's full path with its generation, through the id that an [`Object`] handle has in this process, so two writers' objects are
//! never confused. Objects never change, so a chunk never goes stale; the disk tier is emptied when a process starts.
//!
//! What comes from the bucket or the disk is not believed here: whoever reads a chunk checks it and then [`Object::admit`]s it to memory. What
//! memory holds has been checked. It also keeps values that were decompressed, since a page is read again more often than its neighbours are,
//! and decompressing it costs more than all the rest of reading it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Bytes, BytesMut};
use codec::layer::ReadLayerError;
use codec::layer::blob::{BlobHead, Unpacker};
use rustix::io::ReadWriteFlags;
use tokio::sync::watch;

use crate::error_story::error_story;
use crate::ports::{Bucket, BucketError};

/// Bytes of a chunk.
pub const CHUNK_SIZE: u64 = 64 << 10;

/// Memory shards: readers of different chunks seldom meet at one lock, which is held for a lookup only.
const SHARDS: usize = 32;

/// How much the cache may hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Bytes in memory.
    pub memory: usize,
    /// Bytes on disk.
    pub disk: u64,
}

impl Default for CacheLimits {
    fn default() -> Self {
        CacheLimits { memory: 256 << 20, disk: 20 << 30 }
    }
}

/// What the cache did since it was made.
#[derive(Debug, Default)]
pub struct CacheCounts {
    /// Chunks found in memory.
    pub memory_hits: AtomicU64,
    /// Decompressed values found in memory.
    pub value_hits: AtomicU64,
    /// Chunks found on disk.
    pub disk_hits: AtomicU64,
    /// GETs sent.
    pub fetches: AtomicU64,
    /// Bytes fetched.
    pub fetched_bytes: AtomicU64,
}

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
    /// The local disk does not.
    #[error("cannot read the local copy of {path}: {reason}")]
    Disk {
        /// Which object.
        path: Arc<str>,
        /// Why.
        reason: Arc<str>,
    },
}

/// Object and chunk.
type ChunkKey = (u64, u32);
/// Where those wait who want a chunk that another is fetching.
type Fetching = watch::Receiver<Option<Result<Bytes, FetchError>>>;

/// What memory holds of an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Piece {
    Chunk(u32),
    /// The decompressed value whose header begins at this offset.
    Value(u64),
}

/// Object and piece.
type PieceKey = (u64, Piece);

/// Mixes the numbers of a key. All are our own, so nobody can choose them to collide.
#[derive(Default)]
struct PieceHasher(u64);

impl Hasher for PieceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(29) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 >> 32;
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64); // which kind of piece
    }
}

/// The cache. One per process.
pub struct ChunkCache {
    bucket: Arc<dyn Bucket>,
    directory: PathBuf,
    memory: Vec<Mutex<MemoryShard>>,
    disk: Mutex<DiskTier>,
    in_flight: Mutex<HashMap<ChunkKey, Fetching>>,
    next_id: AtomicU64,
    clock: AtomicU64,
    memory_used: AtomicUsize,
    /// Decompressors that nobody uses at the moment: making one costs more than a page. At most one per thread that ever read at once.
    unpackers: Mutex<Vec<Unpacker>>,
    /// What it did.
    pub counts: CacheCounts,
}

/// A handle to one immutable object.
pub struct Object {
    cache: Arc<ChunkCache>,
    id: u64,
    path: Arc<str>,
    size: u64,
    /// Counts the bytes of it, and of others, that are on the local disk.
    resident: Arc<AtomicU64>,
    local: OnceLock<()>,
}

/// Pieces in memory under a clock: each has one chance after its last use.
struct MemoryShard {
    limit: usize,
    used: usize,
    index: HashMap<PieceKey, usize, BuildHasherDefault<PieceHasher>>,
    slots: Vec<Slot>,
    hand: usize,
}

struct Slot {
    key: PieceKey,
    bytes: Bytes,
    used_lately: bool,
}

impl MemoryShard {
    fn get(&mut self, key: PieceKey) -> Option<Bytes> {
        let slot = &mut self.slots[*self.index.get(&key)?];
        slot.used_lately = true;
        Some(slot.bytes.clone())
    }

    fn insert(&mut self, key: PieceKey, bytes: Bytes) {
        if self.index.contains_key(&key) || bytes.len() > self.limit {
            return;
        }
        while self.used + bytes.len() > self.limit {
            self.evict_one();
        }
        self.used += bytes.len();
        self.index.insert(key, self.slots.len());
        self.slots.push(Slot { key, bytes, used_lately: false });
    }

    fn evict_one(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = &mut self.slots[self.hand];
            if std::mem::take(&mut slot.used_lately) {
                self.hand += 1;
                continue;
            }
            self.remove(self.hand);
            return;
        }
    }

    fn remove(&mut self, at: usize) {
        let slot = self.slots.swap_remove(at);
        self.used -= slot.bytes.len();
        self.index.remove(&slot.key);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.key, at);
        }
    }
}

/// Sparse local copies of objects.
struct DiskTier {
    limit: u64,
    used: u64,
    objects: HashMap<u64, LocalObject>,
}

struct LocalObject {
    file: Arc<File>,
    path: PathBuf,
    present: Vec<u64>,
    bytes: u64,
    resident: Arc<AtomicU64>,
    last_used: u64,
}

impl LocalObject {
    fn has(&self, chunk: u32) -> bool {
        self.present.get(chunk as usize / 64).is_some_and(|word| word & (1 << (chunk % 64)) != 0)
    }
}

impl DiskTier {
    fn drop_object(&mut self, id: u64) {
        if let Some(object) = self.objects.remove(&id) {
            self.used -= object.bytes;
            object.resident.fetch_sub(object.bytes, Ordering::Relaxed);
            // A file that cannot be removed goes when the directory is emptied at the next start.
            let _ = std::fs::remove_file(object.path);
        }
    }

    /// Makes room by dropping the local copies that were used longest ago, `keep` excepted.
    fn shrink_to_limit(&mut self, keep: u64) {
        while self.used > self.limit {
            let oldest =
                self.objects.iter().filter(|(id, _)| **id != keep).min_by_key(|(_, object)| object.last_used);
            match oldest.map(|(id, _)| *id) {
                Some(id) => self.drop_object(id),
                None => return,
            }
        }
    }
}

impl ChunkCache {
    /// A cache in `directory`, which is emptied: the disk is only ever a cache.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        directory: &Path,
        limits: CacheLimits,
    ) -> io::Result<Arc<ChunkCache>> {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(directory)?,
        }
        let shard = || MemoryShard {
            limit: (limits.memory / SHARDS).max(CHUNK_SIZE as usize),
            used: 0,
            index: HashMap::default(),
            slots: Vec::new(),
            hand: 0,
        };
        Ok(Arc::new(ChunkCache {
            bucket,
            directory: directory.into(),
            memory: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            disk: Mutex::new(DiskTier { limit: limits.disk, used: 0, objects: HashMap::new() }),
            in_flight: Mutex::default(),
            next_id: AtomicU64::new(1),
            clock: AtomicU64::new(0),
            memory_used: AtomicUsize::new(0),
            unpackers: Mutex::default(),
            counts: CacheCounts::default(),
        }))
    }

    /// A handle to an object of `size` bytes.
    pub fn object(self: &Arc<Self>, path: &str, size: u64) -> Object {
        self.counted_object(path, size, &Arc::default())
    }

    /// The same; `resident` counts its bytes that are on the local disk, with those of others that share it.
    pub fn counted_object(self: &Arc<Self>, path: &str, size: u64, resident: &Arc<AtomicU64>) -> Object {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let resident = Arc::clone(resident);
        Object { cache: Arc::clone(self), id, path: path.into(), size, resident, local: OnceLock::new() }
    }

    /// Does something with a decompressor.
    fn with_unpacker<R>(&self, work: impl FnOnce(&mut Unpacker) -> R) -> R {
        let idle = self.unpackers.lock().expect("no holder panics").pop();
        let mut unpacker = idle.unwrap_or_default();
        let done = work(&mut unpacker);
        self.unpackers.lock().expect("no holder panics").push(unpacker);
        done
    }

    /// A path for a file that is going to be adopted.
    pub fn new_file_path(&self) -> PathBuf {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("new-{id:016x}"))
    }

    /// Bytes on disk.
    pub fn disk_used(&self) -> u64 {
        self.disk.lock().expect("no holder panics").used
    }

    /// Bytes in memory.
    pub fn memory_used(&self) -> usize {
        self.memory_used.load(Ordering::Relaxed)
    }

    fn shard(&self, key: PieceKey) -> &Mutex<MemoryShard> {
        // The table within the shard goes by other bits.
        let mixed = BuildHasherDefault::<PieceHasher>::default().hash_one(key);
        &self.memory[(mixed >> 40) as usize % SHARDS]
    }
}

impl Object {
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

    fn chunk_len(&self, chunk: u32) -> u64 {
        (self.size - u64::from(chunk) * CHUNK_SIZE).min(CHUNK_SIZE)
    }

    /// The value whose header begins at offset `at`, if it was decompressed lately.
    pub fn unpacked(&self, at: u64) -> Option<Bytes> {
        self.find(Piece::Value(at), &self.cache.counts.value_hits)
    }

    /// The value whose header begins at offset `at`, decompressed from its stored bytes, and kept for a while.
    pub fn unpack(&self, at: u64, head: &BlobHead, stored: &[u8]) -> Result<Bytes, ReadLayerError> {
        let unpacked =
            self.cache.with_unpacker(|unpacker| unpacker.unpack(head, stored).map(Cow::into_owned));
        let value = Bytes::from(unpacked?);
        self.keep(Piece::Value(at), value.clone());
        Ok(value)
    }

    /// A chunk that memory holds: checked, and at hand without waiting.
    pub fn in_memory(&self, chunk: u32) -> Option<Bytes> {
        self.find(Piece::Chunk(chunk), &self.cache.counts.memory_hits)
    }

    /// Puts a checked chunk into memory.
    pub fn admit(&self, chunk: u32, bytes: Bytes) {
        self.keep(Piece::Chunk(chunk), bytes);
    }

    fn find(&self, piece: Piece, hits: &AtomicU64) -> Option<Bytes> {
        let key = (self.id, piece);
        let found = self.cache.shard(key).lock().expect("no holder panics").get(key);
        if found.is_some() {
            hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    fn keep(&self, piece: Piece, bytes: Bytes) {
        let key = (self.id, piece);
        let mut shard = self.cache.shard(key).lock().expect("no holder panics");
        let before = shard.used;
        shard.insert(key, bytes);
        let after = shard.used;
        drop(shard);
        self.cache.memory_used.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// A chunk from disk or bucket, unchecked. Concurrent misses share one GET.
    pub async fn load(&self, chunk: u32) -> Result<Bytes, FetchError> {
        if let Some(bytes) = self.read_local(chunk).await? {
            return Ok(bytes);
        }
        self.fetch(chunk..chunk + 1).await.map(|mut chunks| chunks.swap_remove(0))
    }

    /// Chunks from disk or bucket, unchecked, those that are missing with one GET where they are adjacent.
    pub async fn load_run(&self, chunks: std::ops::Range<u32>) -> Result<Vec<Bytes>, FetchError> {
        let mut out = Vec::with_capacity(chunks.len());
        let mut next = chunks.start;
        while next < chunks.end {
            if let Some(bytes) = self.read_local(next).await? {
                out.push(bytes);
                next += 1;
            } else {
                let missing = self.missing_from(next, chunks.end);
                out.extend(self.fetch(next..missing).await?);
                next = missing;
            }
        }
        Ok(out)
    }

    /// The end of the run of chunks from `first` on that the disk does not have.
    fn missing_from(&self, first: u32, end: u32) -> u32 {
        let disk = self.cache.disk.lock().expect("no holder panics");
        let object = disk.objects.get(&self.id);
        (first..end).find(|chunk| object.is_some_and(|object| object.has(*chunk))).unwrap_or(end)
    }

    async fn read_local(&self, chunk: u32) -> Result<Option<Bytes>, FetchError> {
        let file = {
            let mut disk = self.cache.disk.lock().expect("no holder panics");
            let now = self.cache.clock.fetch_add(1, Ordering::Relaxed);
            let Some(object) = disk.objects.get_mut(&self.id).filter(|object| object.has(chunk)) else {
                return Ok(None);
            };
            object.last_used = now;
            Arc::clone(&object.file)
        };
        let failed = |error: io::Error| FetchError::Disk {
            path: Arc::clone(&self.path),
            reason: error.to_string().into(),
        };
        let length = self.chunk_len(chunk) as usize;
        let offset = u64::from(chunk) * CHUNK_SIZE;
        self.cache.counts.disk_hits.fetch_add(1, Ordering::Relaxed);
        // What the kernel has at hand is read here; only what it must wait for goes to another thread.
        let mut buffer = vec![0; length];
        let at_hand = rustix::io::preadv2(
            &file,
            &mut [io::IoSliceMut::new(&mut buffer)],
            offset,
            ReadWriteFlags::NOWAIT,
        );
        if at_hand.is_ok_and(|read| read == length) {
            return Ok(Some(buffer.into()));
        }
        let read =
            tokio::task::spawn_blocking(move || file.read_exact_at(&mut buffer, offset).map(|()| buffer));
        let bytes = read.await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?;
        Ok(Some(bytes.into()))
    }

    /// One GET for adjacent chunks. The first chunk's waiters share it.
    async fn fetch(&self, chunks: std::ops::Range<u32>) -> Result<Vec<Bytes>, FetchError> {
        let key = (self.id, chunks.start);
        if chunks.len() == 1 {
            let (answer, mut waiting) = {
                let mut in_flight = self.cache.in_flight.lock().expect("no holder panics");
                if let Some(waiting) = in_flight.get(&key) {
                    (None, waiting.clone())
                } else {
                    let (answer, waiting) = watch::channel(None);
                    in_flight.insert(key, waiting.clone());
                    (Some(answer), waiting)
                }
            };
            let Some(answer) = answer else {
                let answered = waiting.wait_for(Option::is_some).await.map(|result| result.clone());
                return match answered {
                    Ok(Some(result)) => result.map(|bytes| vec![bytes]),
                    // Who was fetching went away: do it ourselves.
                    _ => self.get_and_keep(chunks).await,
                };
            };
            let cleanup = InFlight { cache: &self.cache, key };
            let result = self.get_and_keep(chunks).await.map(|mut chunks| chunks.swap_remove(0));
            answer.send_replace(Some(result.clone()));
            drop(cleanup);
            return result.map(|bytes| vec![bytes]);
        }
        self.get_and_keep(chunks).await
    }

    async fn get_and_keep(&self, chunks: std::ops::Range<u32>) -> Result<Vec<Bytes>, FetchError> {
        let start = u64::from(chunks.start) * CHUNK_SIZE;
        let end = (u64::from(chunks.end) * CHUNK_SIZE).min(self.size);
        self.cache.counts.fetches.fetch_add(1, Ordering::Relaxed);
        let object =
            self.cache.bucket.get(&self.path, Some(start..end)).await.map_err(|error| match error {
                BucketError::NotFound(_) => FetchError::Gone(Arc::clone(&self.path)),
                other => {
                    FetchError::Bucket { path: Arc::clone(&self.path), reason: error_story(&other).into() }
                }
            })?;
        let found = object.bytes.len() as u64;
        self.cache.counts.fetched_bytes.fetch_add(found, Ordering::Relaxed);
        if object.meta.size != self.size || found != end - start {
            let (found, expected) = if object.meta.size == self.size {
                (found, end - start)
            } else {
                (object.meta.size, self.size)
            };
            return Err(FetchError::Size { path: Arc::clone(&self.path), found, expected });
        }
        let pieces: Vec<Bytes> = chunks
            .clone()
            .map(|chunk| {
                let at = u64::from(chunk) * CHUNK_SIZE - start;
                object.bytes.slice(at as usize..(at + self.chunk_len(chunk)) as usize)
            })
            .collect();
        self.keep_on_disk(chunks, object.bytes).await;
        Ok(pieces)
    }

    /// Writes fetched chunks to the disk tier. A disk that fails only makes the cache smaller.
    async fn keep_on_disk(&self, chunks: std::ops::Range<u32>, bytes: Bytes) {
        let cache = Arc::clone(&self.cache);
        let (id, total, resident) = (self.id, self.chunks(), Arc::clone(&self.resident));
        let kept =
            tokio::task::spawn_blocking(move || cache.write_to_disk(id, total, chunks, &bytes, resident))
                .await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, object = %self.path, "cannot keep chunks on the local disk");
        }
    }

    /// Makes a complete local file the object's local copy.
    pub fn adopt(&self, file: &Path) -> io::Result<()> {
        if self.local.set(()).is_err() {
            return Ok(());
        }
        let path = self.cache.directory.join(format!("{:016x}", self.id));
        std::fs::rename(file, &path)?;
        let opened = Arc::new(File::open(&path)?);
        let chunks = self.chunks();
        let mut present = vec![u64::MAX; (chunks as usize).div_ceil(64)];
        if let Some(last) = present.last_mut().filter(|_| !chunks.is_multiple_of(64)) {
            *last = (1 << (chunks % 64)) - 1;
        }
        let mut disk = self.cache.disk.lock().expect("no holder panics");
        let last_used = self.cache.clock.fetch_add(1, Ordering::Relaxed);
        disk.drop_object(self.id);
        disk.used += self.size;
        self.resident.fetch_add(self.size, Ordering::Relaxed);
        let resident = Arc::clone(&self.resident);
        disk.objects.insert(
            self.id,
            LocalObject { file: opened, path, present, bytes: self.size, resident, last_used },
        );
        disk.shrink_to_limit(self.id);
        Ok(())
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Ok(mut disk) = self.cache.disk.lock() {
            disk.drop_object(self.id);
        }
    }
}

impl ChunkCache {
    fn write_to_disk(
        &self,
        id: u64,
        total: u32,
        chunks: std::ops::Range<u32>,
        bytes: &[u8],
        resident: Arc<AtomicU64>,
    ) -> io::Result<()> {
        let file = {
            let mut disk = self.disk.lock().expect("no holder panics");
            let now = self.clock.fetch_add(1, Ordering::Relaxed);
            if let Some(object) = disk.objects.get(&id) {
                Arc::clone(&object.file)
            } else {
                let path = self.directory.join(format!("{id:016x}"));
                let file =
                    Arc::new(File::options().read(true).write(true).create(true).truncate(true).open(&path)?);
                let present = vec![0; (total as usize).div_ceil(64)];
                let file_of = Arc::clone(&file);
                let object = LocalObject { file: file_of, path, present, bytes: 0, resident, last_used: now };
                disk.objects.insert(id, object);
                file
            }
        };
        file.write_all_at(bytes, u64::from(chunks.start) * CHUNK_SIZE)?;
        let mut disk = self.disk.lock().expect("no holder panics");
        let Some(object) = disk.objects.get_mut(&id).filter(|object| Arc::ptr_eq(&object.file, &file)) else {
            return Ok(()); // dropped meanwhile
        };
        let mut grown = 0;
        for (index, piece) in chunks.zip(bytes.chunks(CHUNK_SIZE as usize)) {
            if !object.has(index) {
                object.present[index as usize / 64] |= 1 << (index % 64);
                grown += piece.len() as u64;
            }
        }
        object.bytes += grown;
        object.resident.fetch_add(grown, Ordering::Relaxed);
        disk.used += grown;
        disk.shrink_to_limit(id);
        Ok(())
    }
}

/// Takes a fetch off the list of those in flight, also when it is cancelled.
struct InFlight<'a> {
    cache: &'a ChunkCache,
    key: ChunkKey,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Ok(mut in_flight) = self.cache.in_flight.lock() {
            in_flight.remove(&self.key);
        }
    }
}

/// Bytes of several chunks as one.
pub fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [one] => one.clone(),
        many => {
            let mut all = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            for piece in many {
                all.extend_from_slice(piece);
            }
            all.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::ports::{Body, PutIf};

    #[tokio::test]
    async fn what_lies_on_the_local_disk_is_counted_until_it_goes() {
        let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let size = 2 * CHUNK_SIZE + 100;
        for path in ["one", "other"] {
            let body = Body::Bytes(vec![7; size as usize].into());
            bucket.put(path, body, PutIf::Absent).await.unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let limits = CacheLimits { memory: 1 << 20, disk: 3 * CHUNK_SIZE };
        let cache = ChunkCache::new(bucket, &directory.path().join("cache"), limits).unwrap();
        let (first, second) = (Arc::default(), Arc::default());
        let one = cache.counted_object("one", size, &first);
        let other = cache.counted_object("other", size, &second);
        let counted = || (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        one.load(2).await.unwrap();
        one.load(2).await.unwrap();
        assert_eq!(counted(), (100, 0));
        one.load_run(0..3).await.unwrap();
        assert_eq!(counted(), (size, 0));
        other.load_run(0..2).await.unwrap();
        assert_eq!(counted(), (0, 2 * CHUNK_SIZE), "there was no room for both");
        assert_eq!(cache.disk_used(), 2 * CHUNK_SIZE);
        drop(other);
        assert_eq!(counted(), (0, 0));
        let file = cache.new_file_path();
        std::fs::write(&file, vec![7; size as usize]).unwrap();
        one.adopt(&file).unwrap();
        assert_eq!(counted(), (size, 0));
    }
}
