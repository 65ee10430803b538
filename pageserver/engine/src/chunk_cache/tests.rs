use std::ops::Range;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use futures::future::join_all;

use super::*;
use crate::disk::MemoryDisk;
use crate::ports::{
    Body, BucketError, ETag, ListRequest, Listing, Object as BucketObject, ObjectMeta, PutIf,
};

const CHUNK: usize = CHUNK_SIZE as usize;

/// Objects of a size that no test could store: a chunk's bytes follow from the object's name and the chunk's number.
struct EndlessBucket {
    size: u64,
}

/// The name of an object is a number below 256.
fn content(path: &str, chunk: u64) -> [u8; 8] {
    let name: u64 = path.parse().unwrap();
    (name << 40 | chunk).to_le_bytes()
}

#[async_trait]
impl Bucket for EndlessBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<BucketObject, BucketError> {
        tokio::task::yield_now().await;
        let range = range.expect("only parts are asked for");
        let mut bytes = vec![0; (range.end - range.start) as usize];
        for (chunk, part) in (range.start / CHUNK_SIZE..).zip(bytes.chunks_mut(CHUNK)) {
            part[..8].copy_from_slice(&content(path, chunk));
        }
        let meta = ObjectMeta { size: self.size, etag: ETag(String::new()), modified: None };
        Ok(BucketObject { bytes: bytes.into(), meta })
    }

    async fn put(&self, _: &str, _: Body, _: PutIf) -> Result<ETag, BucketError> {
        unreachable!("nothing is stored")
    }

    async fn list(&self, _: ListRequest<'_>) -> Result<Listing, BucketError> {
        unreachable!("nothing is listed")
    }

    async fn head(&self, _: &str) -> Result<ObjectMeta, BucketError> {
        unreachable!("sizes are known")
    }

    async fn delete(&self, _: &[String]) -> Result<(), BucketError> {
        unreachable!("nothing is deleted")
    }
}

struct World {
    cache: Arc<ChunkCache>,
    disk: Arc<MemoryDisk>,
    objects: Vec<Object>,
}

/// Objects of `chunks` each, through a cache of so many chunks.
fn world(objects: usize, chunks: u64, memory: usize, on_disk: u64) -> World {
    let size = chunks * CHUNK_SIZE - 100;
    let watermarks = Watermarks { most_used_percent: 100, least_free: 10 * CHUNK_SIZE };
    let memory = memory * CHUNK;
    let limits = CacheLimits { memory, index_memory: memory / 4, disk: on_disk * CHUNK_SIZE, watermarks };
    let disk = Arc::new(MemoryDisk::new(1 << 50));
    let files = Arc::clone(&disk) as Arc<dyn Disk>;
    let cache = ChunkCache::new(Arc::new(EndlessBucket { size }), files, limits).unwrap();
    let objects = (0..objects).map(|name| cache.object(&name.to_string(), size)).collect();
    World { cache, disk, objects }
}

impl World {
    /// Reads a chunk as a layer does.
    async fn read(&self, object: usize, chunk: u32, kind: PieceKind, reading: ReadFor) {
        let handle = &self.objects[object];
        let bytes = if let Some(bytes) = handle.in_memory(chunk, kind, reading) {
            bytes
        } else {
            let bytes = handle.load(chunk, kind, reading).await.unwrap();
            handle.admit(chunk, kind, reading, bytes.clone());
            bytes
        };
        assert_eq!(bytes[..8], content(handle.path(), chunk.into()));
        assert_eq!(bytes.len() as u64, handle.chunk_len(chunk));
    }

    async fn read_all(&self, chunks: &[(usize, u32)]) -> u64 {
        let before = self.fetches();
        for (object, chunk) in chunks {
            self.read(*object, *chunk, PieceKind::Data, ReadFor::Reader).await;
        }
        self.fetches() - before
    }

    fn fetches(&self) -> u64 {
        self.cache.counts.fetches.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn ten_gigabytes_are_read_through_a_small_cache() {
    let (objects, chunks) = (80, 2048);
    let world = world(objects, chunks, 64, 512);
    let mut turn = 1u64;
    for step in 0..20_000 {
        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Two reads of three go to a small part.
        let (object, chunk) = if step % 3 == 0 {
            ((turn >> 33) as usize % objects, (turn >> 40) as u32 % chunks as u32)
        } else {
            ((turn >> 33) as usize % 10, (turn >> 40) as u32 % 30)
        };
        world.read(object, chunk, PieceKind::Data, ReadFor::Reader).await;
        assert!(world.cache.disk_used() <= 512 * CHUNK_SIZE);
        assert!(world.cache.memory_used() <= 64 * CHUNK);
    }
    assert!(world.disk.used() <= 512 * CHUNK_SIZE);
    let fetches = world.fetches();
    // A third is never seen twice; of the others nearly all have come to stay.
    assert!((6500..8500).contains(&fetches), "{fetches}");
}

#[tokio::test]
async fn neither_a_scan_nor_a_reader_of_everything_flushes_the_working_set() {
    let world = world(40, 64, 64, 256);
    let working_set: Vec<(usize, u32)> = (0..120).map(|n| (n % 8, (n / 8 * 4) as u32)).collect();
    for _ in 0..4 {
        world.read_all(&working_set).await;
    }
    assert_eq!(world.read_all(&working_set).await, 0);
    for object in 0..40 {
        for chunk in 0..64 {
            for _ in 0..8 {
                world.read(object, chunk, PieceKind::Data, ReadFor::Scan).await;
            }
        }
    }
    assert_eq!(world.read_all(&working_set).await, 0, "a scan");
    assert!(world.cache.disk_used() <= 120 * CHUNK_SIZE, "what a scan fetched is not kept");
    for object in 8..40 {
        for chunk in 0..64 {
            for _ in 0..8 {
                world.read(object, chunk, PieceKind::Data, ReadFor::Reader).await;
            }
        }
    }
    assert_eq!(world.read_all(&working_set).await, 0, "a reader of everything");
}

#[tokio::test]
async fn a_scan_that_reads_many_pages_at_once_fetches_each_chunk_once() {
    let world = world(1, 64, 64, 256);
    for chunks in [0..8u32, 8..16] {
        join_all(
            chunks
                .flat_map(|chunk| [chunk; 8])
                .map(|chunk| world.read(0, chunk, PieceKind::Data, ReadFor::Scan)),
        )
        .await;
    }
    assert_eq!(world.fetches(), 4, "four chunks at a time");
    assert_eq!((world.cache.disk_used(), world.disk.used()), (0, 0));
    let once = world.objects[0].load_run_once(20..40).await.unwrap();
    assert_eq!((once.len(), world.fetches(), world.cache.disk_used()), (20, 5, 0));
}

#[tokio::test]
async fn who_comes_by_once_uses_what_is_at_hand() {
    let world = world(1, 64, 64, 256);
    world.objects[0].bring(std::iter::once(10..20).collect()).await.unwrap();
    assert_eq!(world.fetches(), 1);
    let chunks = world.objects[0].load_run_once(5..25).await.unwrap();
    for (chunk, bytes) in (5..).zip(&chunks) {
        assert_eq!(bytes[..8], content("0", chunk));
    }
    assert_eq!((chunks.len(), world.fetches()), (20, 3), "before and after it");
    assert_eq!(world.cache.disk_used(), 10 * CHUNK_SIZE);
}

#[tokio::test]
async fn data_never_pushes_an_index_out() {
    let world = world(40, 64, 64, 256);
    for object in 0..8 {
        world.read(object, 63, PieceKind::Index, ReadFor::Reader).await;
    }
    for object in 0..40 {
        for chunk in 0..60 {
            world.read(object, chunk, PieceKind::Data, ReadFor::Reader).await;
        }
    }
    let is_here = |object: &Object| object.in_memory(63, PieceKind::Index, ReadFor::Reader).is_some();
    assert!(world.objects[..8].iter().all(is_here));
    for object in 0..40 {
        world.read(object, 63, PieceKind::Index, ReadFor::Reader).await;
    }
    assert!(world.cache.pinned() <= 16 * CHUNK, "their budget is bounded as well");
}

#[tokio::test]
async fn concurrent_readers_of_a_chunk_share_one_get() {
    let world = world(1, 64, 64, 256);
    join_all((0..10).map(|_| world.read(0, 7, PieceKind::Data, ReadFor::Reader))).await;
    assert_eq!(world.fetches(), 1);
}

#[tokio::test]
async fn a_reader_keeps_its_bytes_when_they_are_evicted() {
    let world = world(4, 64, 16, 16);
    let held = world.objects[0].load(3, PieceKind::Data, ReadFor::Reader).await.unwrap();
    for object in 0..4 {
        for chunk in 0..64 {
            world.read(object, chunk, PieceKind::Data, ReadFor::Reader).await;
        }
    }
    assert_eq!(held[..8], content("0", 3));
    drop(world.objects);
    assert_eq!((world.cache.disk_used(), world.disk.names().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn time_cools_down_and_the_disk_is_measured_though_nobody_writes() {
    let world = world(1, 64, 64, 256);
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(Arc::clone(&world.cache).keep(stop.clone()));
    world.objects[0].bring(std::iter::once(0..64).collect()).await.unwrap();
    world.disk.set_others((1 << 50) - 10 * CHUNK_SIZE);
    tokio::time::sleep(HEAT_HALVES * 3 + LOOK_EVERY).await;
    assert_eq!(world.cache.period(), 4);
    assert!(world.cache.disk_used() <= 10 * CHUNK_SIZE, "{}", world.cache.disk_used());
    stop.cancel();
    keeping.await.unwrap();
}

#[tokio::test]
async fn what_lies_on_the_local_disk_is_counted_until_it_goes() {
    let World { cache, objects, .. } = world(0, 3, 64, 3);
    assert!(objects.is_empty());
    let size = 3 * CHUNK_SIZE - 100;
    let (first, second) = (Arc::default(), Arc::default());
    let one = cache.counted_object("1", size, &first);
    let other = cache.counted_object("2", size, &second);
    let counted = || (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
    one.load(2, PieceKind::Data, ReadFor::Reader).await.unwrap();
    one.load(2, PieceKind::Data, ReadFor::Reader).await.unwrap();
    assert_eq!(counted(), (CHUNK_SIZE - 100, 0));
    one.load(0, PieceKind::Data, ReadFor::Reader).await.unwrap();
    one.load(1, PieceKind::Data, ReadFor::Reader).await.unwrap();
    assert_eq!(counted(), (size, 0));
    other.load(0, PieceKind::Data, ReadFor::Reader).await.unwrap();
    let (of_one, of_other) = counted();
    assert_eq!(of_one + of_other, cache.disk_used(), "what was evicted is not counted");
    drop(one);
    assert_eq!(counted().0, 0);
    drop(other);
    assert_eq!((counted(), cache.disk_used()), ((0, 0), 0));
}
