//! The disk tier: a sparse local copy of each object of which anything is kept.
//!
//! Who reads does so without a lock, and looks afterwards whether anything of the file was evicted meanwhile: what it read may be the hole then, or
//! the chunk may have been evicted and written again, so it looks anew. Who writes into a file, or punches a hole, holds the file's `changes`, on a thread for
//! blocking work; before the hole is punched it is checked that the chunks did not come back.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::runs::{Evicted, ObjectId, RUN, Runs, missing_end};
use super::space::{Watermarks, allowed};
use super::{CHUNK_SIZE, CacheCounts};
use crate::blocking;
use crate::disk::OwnFile;
use crate::ports::Disk;

/// How often the file system is asked how full it is, at most.
const MEASURE_EVERY: Duration = Duration::from_secs(3);

/// A read that met evictions of the same file so often goes to the bucket.
const READ_ATTEMPTS: usize = 3;

pub(super) struct DiskTier {
    files: Arc<dyn Disk>,
    limit: u64,
    marks: Watermarks,
    next_file: AtomicU64,
    state: Mutex<State>,
    counts: Arc<CacheCounts>,
}

/// An object, and who counts what is here of it.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub(super) id: ObjectId,
    /// Bytes of the object.
    pub(super) size: u64,
    /// Counts the bytes of it, and of others, that are here.
    pub(super) resident: Arc<AtomicU64>,
}

struct State {
    runs: Runs,
    copies: HashMap<ObjectId, Arc<LocalCopy>>,
    /// Bytes that may be here: what is configured, or less when the file system is full.
    allowed: u64,
    measured: Option<Instant>,
}

/// What is here of an object.
#[derive(Debug)]
struct LocalCopy {
    file: OwnFile,
    /// Held to write or to punch.
    changes: Mutex<()>,
    /// Counts how often something of it was evicted.
    evictions: AtomicU64,
    /// Counts its bytes, with those of others.
    resident: Arc<AtomicU64>,
}

impl LocalCopy {
    fn new(file: OwnFile, resident: Arc<AtomicU64>) -> LocalCopy {
        LocalCopy { file, changes: Mutex::new(()), evictions: AtomicU64::new(0), resident }
    }
}

impl State {
    /// Forgets what is here of an object.
    fn remove(&mut self, object: ObjectId) -> Option<Arc<LocalCopy>> {
        let before = self.runs.bytes();
        self.runs.remove(object);
        let copy = self.copies.remove(&object)?;
        copy.resident.fetch_sub(before - self.runs.bytes(), Ordering::Relaxed);
        Some(copy)
    }

    /// Takes note of chunks of an object that are here now.
    fn insert(&mut self, object: &Counted, chunks: Range<u32>, hot: bool) {
        let before = self.runs.bytes();
        chunks.for_each(|chunk| self.runs.insert(object.id, object.size, chunk, hot));
        object.resident.fetch_add(self.runs.bytes() - before, Ordering::Relaxed);
    }
}

/// A hole to be punched, or a copy of which nothing is left.
struct Going {
    copy: Arc<LocalCopy>,
    evicted: Evicted,
}

impl DiskTier {
    pub(super) fn new(
        files: Arc<dyn Disk>,
        limit: u64,
        marks: Watermarks,
        counts: Arc<CacheCounts>,
    ) -> io::Result<DiskTier> {
        files.clear()?;
        let state = State { runs: Runs::new(), copies: HashMap::new(), allowed: limit, measured: None };
        Ok(DiskTier { files, limit, marks, next_file: AtomicU64::new(1), state: Mutex::new(state), counts })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub(super) fn new_file(&self) -> io::Result<OwnFile> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        OwnFile::create(Arc::clone(&self.files), format!("{number:016x}"))
    }

    /// Bytes that are here.
    pub(super) fn used(&self) -> u64 {
        self.state().runs.bytes()
    }

    /// Bytes that may be here.
    pub(super) fn allowed(&self) -> u64 {
        self.state().allowed
    }

    /// Whether a chunk is here.
    pub(super) fn has(&self, object: ObjectId, chunk: u32) -> bool {
        self.state().runs.has(object, chunk)
    }

    /// The end of the run of chunks from `chunks.start` on that are not here.
    pub(super) fn missing_end(&self, object: ObjectId, chunks: Range<u32>) -> u32 {
        missing_end(&self.state().runs, object, chunks)
    }

    /// What is here of an object, and whether it has earned its place.
    pub(super) fn chunks_of(&self, object: ObjectId) -> Vec<(u32, bool)> {
        self.state().runs.chunks_of(object).collect()
    }

    /// A chunk of `length` bytes, if it is here. It was used then, if `counts`.
    pub(super) async fn read(
        &self,
        object: ObjectId,
        chunk: u32,
        length: usize,
        counts: bool,
    ) -> io::Result<Option<Bytes>> {
        for _ in 0..READ_ATTEMPTS {
            let (copy, evictions) = {
                let mut state = self.state();
                let is_here =
                    if counts { state.runs.touch(object, chunk) } else { state.runs.has(object, chunk) };
                match state.copies.get(&object) {
                    Some(copy) if is_here => (Arc::clone(copy), copy.evictions.load(Ordering::SeqCst)),
                    _ => return Ok(None),
                }
            };
            let offset = u64::from(chunk) * CHUNK_SIZE;
            // What the kernel has at hand is read here; only what it must wait for goes to another thread.
            let mut buffer = vec![0; length];
            if !copy.file.file().read_at_hand(&mut buffer, offset) {
                let copy = Arc::clone(&copy);
                let read = move || copy.file.file().read_at(&mut buffer, offset).map(|()| buffer);
                buffer = blocking::run(read).await.map_err(io::Error::other)??;
            }
            if copy.evictions.load(Ordering::SeqCst) == evictions {
                return Ok(Some(buffer.into()));
            }
        }
        Ok(None)
    }

    /// Keeps adjacent chunks. Blocks.
    pub(super) fn write(
        &self,
        counted: &Counted,
        chunks: Range<u32>,
        bytes: &[u8],
        hot: bool,
    ) -> io::Result<()> {
        let object = counted.id;
        self.measure_by_and_by();
        let held = self.state().copies.get(&object).cloned();
        let copy = if let Some(copy) = held {
            copy
        } else {
            let new = Arc::new(LocalCopy::new(self.new_file()?, Arc::clone(&counted.resident)));
            Arc::clone(self.state().copies.entry(object).or_insert(new))
        };
        let alone = copy.changes.lock().expect("no holder panics");
        if let Err(error) = copy.file.file().write_at(bytes, u64::from(chunks.start) * CHUNK_SIZE) {
            drop(alone);
            if error.kind() == io::ErrorKind::StorageFull {
                self.make_room();
            }
            return Err(error);
        }
        let mut state = self.state();
        // Else it was dropped meanwhile.
        if state.copies.get(&object).is_some_and(|current| Arc::ptr_eq(current, &copy)) {
            state.insert(counted, chunks, hot);
        }
        drop(state);
        drop(alone);
        self.shrink();
        Ok(())
    }

    /// Makes a whole file the copy of an object. Blocks.
    pub(super) fn adopt(&self, counted: &Counted, file: OwnFile) {
        let before = {
            let mut state = self.state();
            let before = state.remove(counted.id);
            let copy = LocalCopy::new(file, Arc::clone(&counted.resident));
            state.copies.insert(counted.id, Arc::new(copy));
            state.insert(counted, 0..counted.size.div_ceil(CHUNK_SIZE) as u32, false);
            before
        };
        drop(before);
        self.measure_by_and_by();
        self.shrink();
    }

    /// Forgets what is here of an object. Whether there was anything.
    pub(super) fn forget(&self, object: ObjectId) -> bool {
        let Ok(mut state) = self.state.lock() else { return false };
        let copy = state.remove(object);
        drop(state);
        copy.is_some()
    }

    /// Asks the file system how full it is, and makes room if it is too full. Blocks.
    pub(super) fn measure(&self) {
        self.state().measured = Some(Instant::now());
        match self.files.space() {
            Ok(space) => {
                let mut state = self.state();
                state.allowed = allowed(self.limit, state.runs.bytes(), space, self.marks);
                drop(state);
                self.shrink();
            }
            Err(error) => tracing::warn!(%error, "cannot find out how full the disk of the cache is"),
        }
    }

    fn measure_by_and_by(&self) {
        let last = self.state().measured;
        if last.is_none_or(|last| last.elapsed() >= MEASURE_EVERY) {
            self.measure();
        }
    }

    /// There was no room, whatever was measured: an eighth goes.
    fn make_room(&self) {
        let mut state = self.state();
        state.allowed = state.allowed.min(state.runs.bytes() / 8 * 7);
        drop(state);
        self.shrink();
    }

    /// Evicts what is above what is allowed.
    fn shrink(&self) {
        let mut going = Vec::new();
        let mut state = self.state();
        let by_watermark = state.allowed < self.limit;
        while state.runs.bytes() > state.allowed {
            let Some(evicted) = state.runs.evict() else { break };
            let counter = if by_watermark {
                &self.counts.evicted_by_watermark_bytes
            } else {
                &self.counts.evicted_by_budget_bytes
            };
            counter.fetch_add(evicted.bytes, Ordering::Relaxed);
            let copy = if evicted.is_last {
                state.copies.remove(&evicted.object)
            } else {
                state.copies.get(&evicted.object).cloned()
            };
            if let Some(copy) = copy {
                copy.resident.fetch_sub(evicted.bytes, Ordering::Relaxed);
                copy.evictions.fetch_add(1, Ordering::SeqCst);
                going.push(Going { copy, evicted });
            }
        }
        drop(state);
        for going in going {
            self.punch(going);
        }
    }

    /// Gives the space of evicted chunks back.
    fn punch(&self, Going { copy, evicted }: Going) {
        // Nothing is left: the file goes with its last reader.
        if evicted.is_last {
            return;
        }
        let alone = copy.changes.lock().expect("no holder panics");
        let back = self.state().runs.present(evicted.object, evicted.run, evicted.chunks);
        let holes = holes(evicted.chunks & !back);
        let first = evicted.run * RUN;
        let punched = holes.into_iter().try_for_each(|hole| {
            let at = |chunk: u32| u64::from(first + chunk) * CHUNK_SIZE;
            copy.file.file().punch_hole(at(hole.start)..at(hole.end))
        });
        drop(alone);
        if let Err(error) = punched {
            tracing::debug!(%error, "cannot punch a hole, the whole local copy goes");
            let mut state = self.state();
            if state.copies.get(&evicted.object).is_some_and(|current| Arc::ptr_eq(current, &copy)) {
                state.remove(evicted.object);
            }
        }
    }
}

/// Stretches of bits that are set.
fn holes(chunks: u16) -> Vec<Range<u32>> {
    let mut holes: Vec<Range<u32>> = Vec::new();
    for chunk in (0..RUN).filter(|chunk| chunks & (1 << chunk) != 0) {
        match holes.last_mut() {
            Some(last) if last.end == chunk => last.end += 1,
            _ => holes.push(chunk..chunk + 1),
        }
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    const CHUNK: usize = CHUNK_SIZE as usize;

    fn tier(files: &Arc<MemoryDisk>, limit_chunks: u64) -> DiskTier {
        let marks = Watermarks { most_used_percent: 80, least_free: 0 };
        let files: Arc<dyn Disk> = Arc::clone(files) as Arc<dyn Disk>;
        DiskTier::new(files, limit_chunks * CHUNK_SIZE, marks, Arc::default()).unwrap()
    }

    fn object(id: ObjectId) -> Counted {
        Counted { id, size: 32 * CHUNK_SIZE, resident: Arc::default() }
    }

    #[test]
    fn stretches_of_chunks_are_punched_at_once() {
        assert_eq!(holes(0), []);
        assert_eq!(holes(0b1000_0000_0000_0110), [1..3, 15..16]);
        assert_eq!(holes(u16::MAX).first(), Some(&(0..16)));
    }

    #[tokio::test]
    async fn what_is_evicted_gives_its_space_back() {
        let files = Arc::new(MemoryDisk::new(1 << 40));
        let tier = tier(&files, 24);
        for chunk in 0..32 {
            tier.write(&object(1), chunk..chunk + 1, &vec![chunk as u8 + 1; CHUNK], chunk == 3).unwrap();
        }
        assert!(tier.used() <= 24 * CHUNK_SIZE);
        assert_eq!(files.used(), tier.used());
        let hot = tier.read(1, 3, CHUNK, true).await.unwrap().expect("it counted as used");
        assert!(hot.iter().all(|byte| *byte == 4));
        assert!(tier.read(1, 4, CHUNK, true).await.unwrap().is_none());
        let evicted = tier.counts.evicted_by_budget_bytes.load(Ordering::Relaxed);
        assert_eq!(evicted + tier.used(), 32 * CHUNK_SIZE);
        tier.forget(1);
        assert_eq!((files.used(), files.names().len(), tier.used()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_file_system_makes_the_cache_smaller_and_room_makes_it_larger() {
        let files = Arc::new(MemoryDisk::new(100 * CHUNK_SIZE));
        let tier = tier(&files, 60);
        for id in 1..=2 {
            tier.adopt(&object(id), whole_file(&tier));
        }
        assert!((40 * CHUNK_SIZE..=60 * CHUNK_SIZE).contains(&tier.used()));
        files.set_others(50 * CHUNK_SIZE);
        tier.write(&object(3), 0..1, &vec![1; CHUNK], false).unwrap();
        assert_eq!(tier.allowed(), 60 * CHUNK_SIZE, "measured a moment ago");
        tokio::time::advance(MEASURE_EVERY).await;
        tier.write(&object(3), 1..2, &vec![1; CHUNK], false).unwrap();
        assert!(tier.used() <= 30 * CHUNK_SIZE, "{}", tier.used() / CHUNK_SIZE);
        assert!(files.used() <= 30 * CHUNK_SIZE);
        assert!(tier.counts.evicted_by_watermark_bytes.load(Ordering::Relaxed) > 0);
        files.set_others(0);
        tier.measure();
        assert_eq!(tier.allowed(), 60 * CHUNK_SIZE);
    }

    #[tokio::test]
    async fn a_disk_without_room_evicts_instead_of_failing_again() {
        let files = Arc::new(MemoryDisk::new(40 * CHUNK_SIZE));
        let marks = Watermarks { most_used_percent: 100, least_free: 0 };
        let disk: Arc<dyn Disk> = Arc::clone(&files) as Arc<dyn Disk>;
        let tier = DiskTier::new(disk, 1 << 40, marks, Arc::default()).unwrap();
        tier.adopt(&object(1), whole_file(&tier));
        // Others were quicker than the next measurement.
        files.set_others(8 * CHUNK_SIZE);
        let full = tier.write(&object(2), 0..1, &vec![1; CHUNK], false).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        tier.write(&object(2), 0..1, &vec![1; CHUNK], false).unwrap();
    }

    fn whole_file(tier: &DiskTier) -> OwnFile {
        let file = tier.new_file().unwrap();
        file.file().write_at(&vec![7; 32 * CHUNK], 0).unwrap();
        file
    }

    #[test]
    fn nothing_is_read_wrong_while_it_is_evicted_and_comes_back() {
        let files = Arc::new(MemoryDisk::new(1 << 40));
        let tier = Arc::new(tier(&files, 20));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
        let byte_of = |id: u64, chunk: u32| (id * 31 + u64::from(chunk)) as u8 | 1;
        let tasks: Vec<_> = (0..4)
            .map(|task: u64| {
                let tier = Arc::clone(&tier);
                runtime.spawn(async move {
                    let (mut found, mut turn) = (0, task * 7919);
                    for _ in 0..3000 {
                        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let (id, chunk) = ((turn >> 40) % 2, (turn >> 50) as u32 % 12);
                        match tier.read(id, chunk, CHUNK, true).await.unwrap() {
                            Some(bytes) => {
                                assert!(bytes.iter().all(|byte| *byte == byte_of(id, chunk)));
                                found += 1;
                            }
                            None => tier
                                .write(&object(id), chunk..chunk + 1, &vec![byte_of(id, chunk); CHUNK], false)
                                .unwrap(),
                        }
                    }
                    found
                })
            })
            .collect();
        let found: u32 =
            runtime.block_on(futures::future::join_all(tasks)).into_iter().map(Result::unwrap).sum();
        assert!(found > 1000, "{found}");
        assert!(files.used() <= 20 * CHUNK_SIZE);
    }
}
