//! Pieces of objects, near at hand: a bounded memory tier over a bounded disk tier over ranged GETs.
//!
//! Nothing downloads a whole layer in order to read a page. A chunk is 64 KiB of an object, eight blocks of a layer file. The key of a chunk
//! contains the object's full path with its generation, through the id that an [`Object`] handle has in this process, so two writers' objects are
//! never confused. Objects never change, so a chunk never goes stale; the disk tier is emptied when a process starts.
//!
//! What comes from the bucket or the disk is not believed here: whoever reads a chunk checks it and then [`Object::admit`]s it to memory. What
//! memory holds has been checked. It also keeps values that were decompressed, since a page is read again more often than its neighbours are,
//! and decompressing it costs more than all the rest of reading it.
//!
//! Reading order: [`queues`] and [`runs`] (what memory and disk keep, pure; both go through slabs in [`list`]s), [`space`] (how much of a file system
//! we may have), [`memory`], [`disk`], [`heat`], [`reading`], then [`object`] (reading one object).

mod disk;
pub(crate) mod heat;
mod list;
mod memory;
mod object;
mod queues;
mod reading;
mod runs;
mod space;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use codec::layer::blob::Unpacker;
use futures::future::{BoxFuture, Shared};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::disk::DiskTier;
use self::memory::MemoryTier;
use self::object::Wanted;
use crate::blocking;
use crate::disk::OwnFile;
use crate::ports::{Bucket, Disk};

pub use object::{FetchError, Object};
pub use reading::{ReadFor, as_scan};
pub use space::Watermarks;

/// Bytes of a chunk.
pub const CHUNK_SIZE: u64 = 64 << 10;

/// After this time what was read counts half.
pub const HEAT_HALVES: Duration = Duration::from_mins(10);

/// How often the disk is measured when nothing is written to it.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How much the cache may hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Bytes in memory.
    pub memory: usize,
    /// Of these, bytes for indexes of layers, which data never pushes out. At most half counts.
    pub index_memory: usize,
    /// Bytes on disk.
    pub disk: u64,
    /// How full the file system may become; the cache gives way.
    pub watermarks: Watermarks,
}

impl Default for CacheLimits {
    fn default() -> Self {
        CacheLimits {
            memory: 256 << 20,
            index_memory: 64 << 20,
            disk: 20 << 30,
            watermarks: Watermarks::default(),
        }
    }
}

/// What is in a chunk of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// Blocks of its index or checksums, among others perhaps.
    Index,
    /// Values.
    Data,
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
    /// Chunks that were fetched for somebody who waited.
    pub misses: AtomicU64,
    /// Chunks that were fetched for scans.
    pub scan_misses: AtomicU64,
    /// GETs sent.
    pub fetches: AtomicU64,
    /// Bytes fetched.
    pub fetched_bytes: AtomicU64,
    /// Bytes evicted from the disk because the budget was used up.
    pub evicted_by_budget_bytes: AtomicU64,
    /// Bytes evicted from the disk because the file system was full.
    pub evicted_by_watermark_bytes: AtomicU64,
    /// Bytes fetched before anybody asked, because a heat map named them.
    pub warmed_up_bytes: AtomicU64,
}

/// Where those wait who want what another is fetching. They go on in the order in which they came.
type Fetching = Shared<BoxFuture<'static, Result<Bytes, FetchError>>>;

/// The cache. One per process.
pub struct ChunkCache {
    bucket: Arc<dyn Bucket>,
    memory: MemoryTier,
    disk: DiskTier,
    in_flight: Mutex<HashMap<(u64, Wanted), Fetching>>,
    next_id: AtomicU64,
    /// GETs that somebody waits for.
    foreground: watch::Sender<usize>,
    /// The period in which uses count full.
    period: AtomicU32,
    /// Decompressors that nobody uses at the moment: making one costs more than a page. At most one per thread that ever read at once.
    unpackers: Mutex<Vec<Unpacker>>,
    /// What it did.
    pub counts: Arc<CacheCounts>,
}

impl ChunkCache {
    /// A cache on a disk, which is cleared: it is only ever a cache.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        disk: Arc<dyn Disk>,
        limits: CacheLimits,
    ) -> io::Result<Arc<ChunkCache>> {
        let counts = Arc::new(CacheCounts::default());
        Ok(Arc::new(ChunkCache {
            bucket,
            memory: MemoryTier::new(limits.memory, limits.index_memory),
            disk: DiskTier::new(disk, limits.disk, limits.watermarks, Arc::clone(&counts))?,
            in_flight: Mutex::default(),
            next_id: AtomicU64::new(1),
            foreground: watch::channel(0).0,
            period: AtomicU32::new(1),
            unpackers: Mutex::default(),
            counts,
        }))
    }

    /// A handle to an object of `size` bytes.
    pub fn object(self: &Arc<Self>, path: &str, size: u64) -> Object {
        self.counted_object(path, size, &Arc::default())
    }

    /// The same; `resident` counts its bytes that are on the local disk, with those of others that share it.
    pub fn counted_object(self: &Arc<Self>, path: &str, size: u64, resident: &Arc<AtomicU64>) -> Object {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Object::new(Arc::clone(self), id, path.into(), size, Arc::clone(resident))
    }

    /// A file for a layer that is going to be adopted.
    pub fn new_file(&self) -> io::Result<OwnFile> {
        self.disk.new_file()
    }

    /// Bytes on disk.
    pub fn disk_used(&self) -> u64 {
        self.disk.used()
    }

    /// Bytes that may be on disk: what is configured, or less while the file system is full.
    pub fn disk_allowed(&self) -> u64 {
        self.disk.allowed()
    }

    /// Bytes in memory.
    pub fn memory_used(&self) -> usize {
        self.memory.used().0
    }

    /// Bytes in memory that are of indexes.
    pub fn pinned(&self) -> usize {
        self.memory.used().1
    }

    /// Follows time: measures the disk though nothing is written to it, and lets heat cool down. Ends when told to stop.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut cooled = tokio::time::Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let this = Arc::clone(&self);
            // What ended in a panic has said so.
            let _ = blocking::run(move || this.disk.measure()).await;
            while cooled.elapsed() >= HEAT_HALVES {
                cooled += HEAT_HALVES;
                self.cool();
            }
        }
    }

    /// What was read until now counts half.
    pub fn cool(&self) {
        self.period.fetch_add(1, Ordering::Relaxed);
    }

    /// The period in which uses count full.
    pub(crate) fn period(&self) -> u32 {
        self.period.load(Ordering::Relaxed)
    }

    /// Waits until nobody waits for the bucket.
    pub(crate) async fn quiet(&self) {
        let mut waiting = self.foreground.subscribe();
        // The sender lives as long as the cache.
        let _ = waiting.wait_for(|waiting| *waiting == 0).await;
    }

    /// Does something with a decompressor.
    fn with_unpacker<R>(&self, work: impl FnOnce(&mut Unpacker) -> R) -> R {
        let idle = self.unpackers.lock().expect("no holder panics").pop();
        let mut unpacker = idle.unwrap_or_default();
        let done = work(&mut unpacker);
        self.unpackers.lock().expect("no holder panics").push(unpacker);
        done
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
