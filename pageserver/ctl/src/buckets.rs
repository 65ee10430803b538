//! Opening a bucket for verbs that go through all of it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use engine::bucket::config::{BucketConfig, BucketUrl, probe};
use engine::bucket::retry::BucketMetrics;
use engine::chunk_cache::{CacheLimits, ChunkCache};
use engine::disk::LocalDisk;
use engine::ports::{Bucket, ListRequest};
use tokio_util::sync::CancellationToken;

use crate::indexes;

/// A bucket that answers; requests are repeated from then on.
pub async fn open(url: &str, writes: bool) -> Result<Arc<dyn Bucket>> {
    let once = indexes::bucket(url).await?.with_context(|| format!("there is no directory {url}"))?;
    once.list(ListRequest { limit: Some(1), ..ListRequest::default() })
        .await
        .with_context(|| format!("cannot list {url}"))?;
    let location = if url.contains("://") {
        url.parse::<BucketUrl>()?
    } else {
        BucketUrl::Directory(std::path::absolute(url)?)
    };
    let bucket = BucketConfig::new(location).connect(BucketMetrics::new(), CancellationToken::new()).await?;
    if writes {
        probe(&bucket).await.context("the bucket cannot be written to as it must")?;
    }
    Ok(bucket)
}

/// A cache of its own for one look at a bucket; it goes with the folder.
pub fn temporary_cache(
    bucket: &Arc<dyn Bucket>,
    memory: usize,
    disk: u64,
) -> Result<(tempfile::TempDir, Arc<ChunkCache>)> {
    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let limits = CacheLimits { memory, disk, ..CacheLimits::default() };
    let local = Arc::new(LocalDisk::new(folder.path().join("cache")));
    let cache =
        ChunkCache::new(Arc::clone(bucket), local, limits).context("cannot make a temporary cache")?;
    Ok((folder, cache))
}
