use std::time::SystemTime;

use model::{Key, LayerName, Lsn, RelTag, TimelineId};

use super::*;
use crate::bucket::MemoryBucket;
use crate::bucket::faulty::{Fault, FaultyBucket, Operation, held};
use crate::chunk_cache::{CHUNK_SIZE, CacheLimits, Watermarks};
use crate::disk::MemoryDisk;
use crate::layer_write::LayerStore;
use crate::ports::Bucket;

const PAGES: u32 = 1600;
const RATE: u64 = 1 << 20;

fn shard() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

fn timeline() -> TimelineId {
    TimelineId([1; 16])
}

fn key(block: u32) -> Key {
    let rel = RelTag { spc: 1663, db: 5, rel: 16384, fork: model::Fork::Main };
    Key::rel_block(rel, block)
}

fn page(block: u32) -> Vec<u8> {
    // Nothing that could be compressed.
    let mut state = u64::from(block) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..8192).map(|_| next()).collect()
}

/// A cache of its own, as another process has it.
fn process(bucket: &Arc<dyn Bucket>, claim: &Claim, disk_chunks: u64) -> (Arc<ChunkCache>, LayerStore) {
    let watermarks = Watermarks { most_used_percent: 100, least_free: 0 };
    // Memory is small, so that what is read again is read from disk.
    let limits =
        CacheLimits { memory: 1 << 20, index_memory: 1 << 18, disk: disk_chunks * CHUNK_SIZE, watermarks };
    let disk = Arc::new(MemoryDisk::new(1 << 40));
    let cache = ChunkCache::new(Arc::clone(bucket), disk, limits).unwrap();
    let store = LayerStore::new(Arc::clone(bucket), Arc::clone(&cache), claim.clone(), shard(), timeline());
    (cache, store)
}

struct World {
    faulty: Arc<FaultyBucket>,
    bucket: Arc<dyn Bucket>,
    claim: Claim,
    name: LayerName,
    size: u64,
}

/// A bucket with one layer in it, of some two hundred chunks.
async fn world() -> World {
    let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
    let bucket: Arc<dyn Bucket> = Arc::clone(&faulty) as Arc<dyn Bucket>;
    let claim = Claim::take(Arc::clone(&bucket), shard()).await.unwrap();
    let (_, store) = process(&bucket, &claim, 1000);
    let mut image = store.begin_image().unwrap();
    (0..PAGES).for_each(|block| image.push(key(block), &page(block)).unwrap());
    let name = LayerName::Image { keys: Key::ALL, lsn: Lsn(0x1000) };
    let written = store.finish_image(image, name.clone()).await.unwrap();
    World { faulty, bucket, claim, name, size: written.layer.file_size() }
}

impl World {
    fn open(&self, store: &LayerStore) -> Arc<Layer> {
        let name = self.name.clone().in_generation(self.claim.generation());
        Arc::new(store.open(shard(), name, self.size, None, None))
    }

    fn gets(&self) -> usize {
        self.faulty.count(Operation::Get, "timelines")
    }

    /// A process that has some of the layer near at hand: the first blocks were read again and again, the next ones once.
    async fn lived_in(&self) -> (Arc<ChunkCache>, Arc<Layer>) {
        let (cache, store) = process(&self.bucket, &self.claim, 1000);
        let layer = self.open(&store);
        for _ in 0..3 {
            read(&layer, 0..200).await;
        }
        read(&layer, 800..900).await;
        (cache, layer)
    }

    async fn saved(&self) -> HeatMap {
        let (cache, layer) = self.lived_in().await;
        let timelines = vec![(timeline(), vec![layer])];
        let period = Duration::from_mins(10);
        record(&timelines, self.claim.generation(), period, SystemTime::now(), cache.period()).map
    }
}

async fn read(layer: &Layer, blocks: std::ops::Range<u32>) {
    for block in blocks {
        assert_eq!(layer.image(key(block)).await.unwrap().unwrap(), page(block));
    }
}

#[tokio::test(start_paused = true)]
async fn another_process_has_near_at_hand_what_the_first_had() {
    let world = world().await;
    put(&world.claim, &world.saved().await).await.unwrap();
    let map = load(&world.claim).await.unwrap().expect("it was put");

    let (cache, store) = process(&world.bucket, &world.claim, 1000);
    let layer = world.open(&store);
    let began = Instant::now();
    let bytes = fetch(&cache, RATE, &map, shard(), &[Arc::clone(&layer)], || true).await.unwrap();
    assert!((300 * 8192..400 * 8192).contains(&bytes), "{bytes}");
    assert_eq!(cache.disk_used(), bytes);
    assert!(began.elapsed() >= Duration::from_secs_f64(bytes as f64 / RATE as f64), "it takes its time");
    assert_eq!(layer.heat(), 700);
    let gets = world.gets();
    read(&layer, 0..200).await;
    read(&layer, 800..900).await;
    assert_eq!(world.gets(), gets, "nothing has to be fetched any more");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_evicted_for_what_nobody_asked_for_and_the_hottest_comes_first() {
    let world = world().await;
    let map = world.saved().await;
    let (cache, store) = process(&world.bucket, &world.claim, 40);
    let layer = world.open(&store);
    fetch(&cache, RATE, &map, shard(), &[Arc::clone(&layer)], || true).await.unwrap();
    assert!(cache.disk_used() <= 40 * CHUNK_SIZE);
    assert_eq!(cache.counts.evicted_by_budget_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
    let gets = world.gets();
    read(&layer, 0..200).await;
    assert_eq!(world.gets(), gets);
}

#[tokio::test(start_paused = true)]
async fn it_gives_way_to_whoever_waits_for_the_bucket() {
    let world = world().await;
    let map = world.saved().await;
    let (cache, store) = process(&world.bucket, &world.claim, 1000);
    let layer = world.open(&store);
    read(&layer, 0..1).await;
    let (gate, mut waiting) = held();
    world.faulty.once(Operation::Get, "timelines", Fault::Hold(gate));
    let reader = {
        let layer = Arc::clone(&layer);
        tokio::spawn(async move { read(&layer, 1500..1501).await })
    };
    waiting.arrived().await;
    let gets = world.gets();
    let warming = {
        let (cache, layers) = (Arc::clone(&cache), [Arc::clone(&layer)]);
        tokio::spawn(async move { fetch(&cache, RATE, &map, shard(), &layers, || true).await })
    };
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(world.gets(), gets, "somebody waits");
    waiting.release();
    reader.await.unwrap();
    assert!(warming.await.unwrap().unwrap() > 0);
}

#[tokio::test]
async fn who_writes_last_wins_but_only_the_owner_writes() {
    let world = world().await;
    let mut map = world.saved().await;
    put(&world.claim, &map).await.unwrap();
    map.upload_period_ms = Some(7);
    put(&world.claim, &map).await.unwrap();
    assert_eq!(load(&world.claim).await.unwrap().unwrap(), map);
    let next = Claim::take(Arc::clone(&world.bucket), shard()).await.unwrap();
    map.upload_period_ms = Some(8);
    assert!(matches!(put(&world.claim, &map).await, Err(SaveError::Validate(_))));
    assert_eq!(load(&next).await.unwrap().unwrap().upload_period_ms, Some(7));
}

#[tokio::test]
async fn a_map_that_comes_too_late_does_not_outlive_its_tenant() {
    let world = world().await;
    let map = world.saved().await;
    let (gate, mut on_its_way) = held();
    world.faulty.once(Operation::Put, "heatmap", Fault::Hold(gate));
    let late = {
        let (claim, map) = (world.claim.clone(), map.clone());
        tokio::spawn(async move { put(&claim, &map).await })
    };
    on_its_way.arrived().await;
    crate::deletion::delete_tenant_data(&*world.bucket, shard()).await.unwrap();
    on_its_way.release();
    late.await.unwrap().unwrap();
    assert!(load(&world.claim).await.unwrap().is_none());
    // One that came in time goes with everything else.
    let path = path_of(&world.claim);
    world.bucket.put(&path, Body::Bytes(map.to_json().into()), PutIf::Absent).await.unwrap();
    crate::deletion::delete_tenant_data(&*world.bucket, shard()).await.unwrap();
    assert!(load(&world.claim).await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_no_map_is_refused() {
    let world = world().await;
    let path = path_of(&world.claim);
    world
        .bucket
        .put(&path, Body::Bytes(Bytes::from_static(b"{\"generation\":")), PutIf::Absent)
        .await
        .unwrap();
    assert!(matches!(load(&world.claim).await, Err(WarmUpError::Malformed(_))));
}

#[tokio::test]
async fn the_content_of_a_map_is_the_same_as_long_as_the_same_is_at_hand() {
    let world = world().await;
    let (cache, layer) = world.lived_in().await;
    let timelines = vec![(timeline(), vec![Arc::clone(&layer)])];
    let content = || {
        let generation = world.claim.generation();
        record(&timelines, generation, Duration::ZERO, SystemTime::now(), cache.period()).content
    };
    let before = content();
    cache.cool();
    assert_eq!(content(), before);
    read(&layer, 1500..1501).await;
    assert_ne!(content(), before);
}
