//! What one owner of a tenant had near at hand, the next one fetches before anybody asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use codec::heatmap::HeatMap;
use engine::bucket::MemoryBucket;
use engine::bucket::faulty::{FaultyBucket, Operation};
use engine::budget::TailBudget;
use engine::chunk_cache::{CacheLimits, ChunkCache, Watermarks};
use engine::claim::Claim;
use engine::clock::SystemClock;
use engine::disk::MemoryDisk;
use engine::heatmap::{HeatMapPolicy, HeatMaps};
use engine::layer_write::LayerStore;
use engine::object_path::ObjectPath;
use engine::ports::{Bucket, BucketError};
use engine::synthetic::SyntheticCluster;
use engine::tenant::Tenants;
use engine::timeline::TimelinePolicy;
use model::{Fork, Key, Lsn, RelTag, TenantShardId, TimelineId};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;

const BASE: Lsn = Lsn(0x0200_0028);
const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16_384, fork: Fork::Main };
const BLOCKS: u32 = 2000;

fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

fn timeline() -> TimelineId {
    "ffeeddccbbaa99887766554433221100".parse().unwrap()
}

/// Nothing that could be compressed.
fn page(block: u32) -> Vec<u8> {
    let mut page = vec![0; 8192];
    StdRng::seed_from_u64(block.into()).fill(&mut page[..]);
    page
}

fn cache(bucket: &Arc<dyn Bucket>) -> Arc<ChunkCache> {
    let watermarks = Watermarks { most_used_percent: 100, least_free: 0 };
    // Memory is small, so that the disk is read.
    let limits = CacheLimits { memory: 1 << 20, watermarks, ..CacheLimits::default() };
    ChunkCache::new(Arc::clone(bucket), Arc::new(MemoryDisk::new(1 << 40)), limits).unwrap()
}

/// A timeline whose base is one layer of many pages.
async fn import(bucket: &Arc<dyn Bucket>) {
    let claim = Claim::take(Arc::clone(bucket), tenant()).await.unwrap();
    let store = LayerStore::new(Arc::clone(bucket), cache(bucket), claim.clone(), tenant(), timeline());
    let pages = (0..BLOCKS).map(|block| (Key::rel_block(REL, block), page(block)));
    let size = (Key::rel_size(REL), BLOCKS.to_le_bytes().to_vec());
    SyntheticCluster::at(BASE).put(&store, claim, timeline(), pages.chain([size])).await.unwrap();
}

/// A process that owns the tenant and keeps its heat map.
struct Server {
    tenants: Tenants,
    cache: Arc<ChunkCache>,
    stop: CancellationToken,
}

impl Server {
    async fn start(bucket: &Arc<dyn Bucket>, policy: HeatMapPolicy) -> Server {
        let cache = cache(bucket);
        let tenants = Tenants::new(
            Arc::clone(bucket),
            Arc::clone(&cache),
            Arc::new(TailBudget::new(64 << 20)),
            TimelinePolicy::default(),
            Arc::new(SystemClock),
        );
        tenants.attach_all().await.unwrap();
        let maps = HeatMaps::new(tenants.clone(), Arc::clone(&cache), policy);
        let stop = CancellationToken::new();
        tokio::spawn(maps.clone().save(stop.clone()));
        tokio::spawn(maps.warm_up(stop.clone()));
        Server { tenants, cache, stop }
    }

    async fn read(&self, blocks: std::ops::Range<u32>) {
        let timeline = self.tenants.timeline(tenant().tenant, timeline()).unwrap();
        for block in blocks {
            assert_eq!(timeline.page(REL, block, BASE).await.unwrap(), page(block));
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        assert!(self.tenants.shut_down(Duration::from_secs(10)).await);
    }
}

async fn saved(bucket: &Arc<dyn Bucket>) -> Option<HeatMap> {
    match bucket.get(&ObjectPath::HeatMap { tenant: tenant() }.to_string(), None).await {
        Ok(object) => Some(HeatMap::from_json(&object.bytes).unwrap()),
        Err(BucketError::NotFound(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_owner_has_near_at_hand_what_the_last_one_had() {
    let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
    let bucket: Arc<dyn Bucket> = Arc::clone(&faulty) as Arc<dyn Bucket>;
    import(&bucket).await;
    let policy = HeatMapPolicy { period: Duration::from_mins(1), warm_up_rate: 1 << 20 };

    let first = Server::start(&bucket, policy).await;
    first.read(500..700).await;
    first.read(500..700).await;
    tokio::time::sleep(Duration::from_mins(3)).await;
    let map = saved(&bucket).await.expect("a period is over");
    let puts = faulty.count(Operation::Put, "heatmap");
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(faulty.count(Operation::Put, "heatmap"), puts, "nothing changed");
    first.stop().await;

    let second = Server::start(&bucket, policy).await;
    tokio::time::sleep(Duration::from_mins(3)).await;
    let warmed_up = second.cache.counts.warmed_up_bytes.load(Ordering::Relaxed);
    assert!((200 * 8192..300 * 8192).contains(&warmed_up), "{warmed_up}");
    let gets = faulty.count(Operation::Get, "__");
    second.read(500..700).await;
    assert_eq!(faulty.count(Operation::Get, "__"), gets);
    let chunks = |map: &HeatMap| {
        let chunks = map.timelines[0].layers[0].palimpsest.clone().unwrap();
        chunks.hot.iter().chain(&chunks.kept).map(|(_, count)| count).sum::<u32>()
    };
    assert_eq!(chunks(&saved(&bucket).await.unwrap()), chunks(&map), "it was not replaced by a poorer one");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_period_or_a_rate_nothing_is_saved_or_fetched() {
    let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
    let bucket: Arc<dyn Bucket> = Arc::clone(&faulty) as Arc<dyn Bucket>;
    import(&bucket).await;
    let server = Server::start(&bucket, HeatMapPolicy { period: Duration::ZERO, warm_up_rate: 0 }).await;
    server.read(0..10).await;
    tokio::time::sleep(Duration::from_hours(2)).await;
    assert!(saved(&bucket).await.is_none());
    assert_eq!(server.cache.counts.warmed_up_bytes.load(Ordering::Relaxed), 0);
    server.stop().await;
}
