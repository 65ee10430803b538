//! An engine over a directory: a counting bucket, a cache, tenants; and timelines that begin with nothing in them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use codec::page::ZERO_PAGE;
use engine::bucket::DirectoryBucket;
use engine::budget::TailBudget;
use engine::chunk_cache::{CacheLimits, ChunkCache};
use engine::claim::Claim;
use engine::clock::SystemClock;
use engine::disk::LocalDisk;
use engine::layer_write::LayerStore;
use engine::ports::Bucket;
use engine::synthetic::SyntheticCluster;
use engine::tenant::Tenants;
use engine::timeline::TimelinePolicy;
use model::{Key, Lsn, SlruKind, TenantId, TenantShardId, TimelineId};

use super::counting::CountingBucket;

/// Where every history begins.
pub const BASE: Lsn = Lsn(0x0200_0028);
pub const CLUSTER: SyntheticCluster = SyntheticCluster::at(BASE);
pub const TENANT: TenantId = TenantId([1; 16]);
pub const MAIN: TimelineId = TimelineId([2; 16]);

/// How much an engine may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of tails.
    pub tail_memory: usize,
    /// What the cache holds.
    pub cache: CacheLimits,
    /// How long each GET takes longer.
    pub get_delay: Duration,
}

/// An engine, and the directory that all it does is in.
pub struct Place {
    pub bucket: Arc<CountingBucket>,
    pub cache: Arc<ChunkCache>,
    pub tenants: Tenants,
    directory: Arc<tempfile::TempDir>,
}

impl Place {
    /// An engine in a new directory below `work`.
    pub fn new(work: &Path, limits: &Limits, policy: TimelinePolicy) -> Result<Place> {
        let directory = tempfile::tempdir_in(work).context("cannot make a directory to work in")?;
        Place::over(Arc::new(directory), limits, policy)
    }

    /// Another engine over the bucket of this one, which should have been shut down, with nothing of the bucket at hand.
    pub fn again(&self, limits: &Limits, policy: TimelinePolicy) -> Result<Place> {
        Place::over(Arc::clone(&self.directory), limits, policy)
    }

    fn over(directory: Arc<tempfile::TempDir>, limits: &Limits, policy: TimelinePolicy) -> Result<Place> {
        let inner = Arc::new(DirectoryBucket::open(directory.path().join("bucket"))?);
        let bucket = Arc::new(CountingBucket::new(inner, limits.get_delay));
        let shared: Arc<dyn Bucket> = Arc::clone(&bucket) as Arc<dyn Bucket>;
        let files = Arc::new(LocalDisk::new(directory.path().join("cache")));
        let cache = ChunkCache::new(Arc::clone(&shared), files, limits.cache)?;
        let budget = Arc::new(TailBudget::new(limits.tail_memory));
        let tenants = Tenants::new(shared, Arc::clone(&cache), budget, policy, Arc::new(SystemClock));
        Ok(Place { bucket, cache, tenants, directory })
    }

    /// Puts a timeline into the bucket that has nothing in it but counters. The tenant must not be attached.
    pub async fn make_timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<()> {
        let shard = TenantShardId::unsharded(tenant);
        let bucket: Arc<dyn Bucket> = Arc::clone(&self.bucket) as Arc<dyn Bucket>;
        let claim = Claim::take(Arc::clone(&bucket), shard).await?;
        let store = LayerStore::new(bucket, Arc::clone(&self.cache), claim.clone(), shard, timeline);
        let clog = (Key::slru_page(SlruKind::Clog, 0, 0), ZERO_PAGE.to_vec());
        let clog_size = (Key::slru_size(SlruKind::Clog, 0), 1u32.to_le_bytes().to_vec());
        Ok(CLUSTER.put(&store, claim, timeline, [clog, clog_size]).await?)
    }
}

/// Highest memory use of this process so far, in bytes, and the use now.
pub fn memory() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|number| number.parse().ok());
        kib.map_or(0, |kib: u64| kib << 10)
    };
    Ok((field("VmHWM:"), field("VmRSS:")))
}
