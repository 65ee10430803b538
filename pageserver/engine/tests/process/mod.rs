//! A process over a bucket, with a local disk that goes when the process does.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use engine::budget::TailBudget;
use engine::chunk_cache::{CacheLimits, ChunkCache};
use engine::claim::Claim;
use engine::clock::SystemClock;
use engine::disk::LocalDisk;
use engine::layer_write::LayerStore;
use engine::ports::Bucket;
use engine::synthetic::{SyntheticCluster, only_when_asked};
use engine::tenant::Tenants;
use engine::timeline::TimelinePolicy;
use model::{Key, TenantShardId, TimelineId};
use tempfile::TempDir;

/// A process that owns the tenants of a bucket.
pub struct Server {
    pub tenants: Tenants,
    _disk: TempDir,
}

impl Server {
    /// Starts one that makes layers only when asked.
    pub async fn start(bucket: &Arc<dyn Bucket>) -> Server {
        Server::with(bucket, only_when_asked()).await
    }

    /// Starts one.
    pub async fn with(bucket: &Arc<dyn Bucket>, policy: TimelinePolicy) -> Server {
        let (cache, disk) = cache(bucket);
        let budget = Arc::new(TailBudget::new(64 << 20));
        let tenants = Tenants::new(bucket.clone(), cache, budget, policy, Arc::new(SystemClock));
        tenants.attach_all().await.unwrap();
        Server { tenants, _disk: disk }
    }
}

/// A cache over an empty disk.
pub fn cache(bucket: &Arc<dyn Bucket>) -> (Arc<ChunkCache>, TempDir) {
    let disk = tempfile::tempdir().unwrap();
    let files = Arc::new(LocalDisk::new(disk.path().join("cache")));
    (ChunkCache::new(bucket.clone(), files, CacheLimits::default()).unwrap(), disk)
}

/// Puts what an import would: a base layer and an index that names it, as a first owner that is gone.
pub async fn import(
    bucket: &Arc<dyn Bucket>,
    tenant: TenantShardId,
    timeline: TimelineId,
    cluster: SyntheticCluster,
    values: impl IntoIterator<Item = (Key, Vec<u8>)>,
) {
    let claim = Claim::take(bucket.clone(), tenant).await.unwrap();
    let (cache, _disk) = cache(bucket);
    let store = LayerStore::new(bucket.clone(), cache, claim.clone(), tenant, timeline);
    cluster.put(&store, claim, timeline, values).await.unwrap();
}
