//! Raw WAL objects that are in the bucket: what is known of one, where it lies, which there are, and deleting those that layers cover.

use model::{Generation, Lsn, TenantShardId, TimelineId, Tli};
use tracing::info;

use crate::bucket::DELETE_BATCH;
use crate::listing::list_all;
use crate::object_path::{ObjectPath, wal_prefix};
use crate::ports::{Bucket, BucketError, ListRequest};

/// A raw WAL object that is in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWal {
    /// Postgres timeline of its bytes.
    pub tli: Tli,
    /// First byte.
    pub start: Lsn,
    /// Just past the last byte.
    pub end: Lsn,
    /// Who put it.
    pub generation: Generation,
    /// Bytes of the object.
    pub size: u64,
}

/// Where a WAL object lies.
pub fn wal_path(tenant_shard: TenantShardId, timeline: TimelineId, object: &StoredWal) -> String {
    ObjectPath::Wal {
        tenant: tenant_shard,
        timeline,
        tli: object.tli,
        start: object.start,
        end: object.end,
        generation: object.generation,
    }
    .to_string()
}

/// Every WAL object of a timeline in the bucket, in order of path.
pub async fn list_wal(
    bucket: &dyn Bucket,
    tenant_shard: TenantShardId,
    timeline: TimelineId,
) -> Result<Vec<StoredWal>, BucketError> {
    let prefix = wal_prefix(tenant_shard, timeline);
    let all = list_all(bucket, ListRequest { prefix: &prefix, ..ListRequest::default() }).await?;
    // What is not named like a WAL object is not ours to judge here; the scrubber reports it.
    let wal = all.objects.into_iter().filter_map(|object| match object.path.parse() {
        Ok(ObjectPath::Wal { tli, start, end, generation, .. }) => {
            Some(StoredWal { tli, start, end, generation, size: object.size })
        }
        _ => None,
    });
    Ok(wal.collect())
}

/// Deletes objects of the list; failures are left to the next owner's cleaning, which finds them covered.
pub async fn delete_wal(
    bucket: &dyn Bucket,
    tenant_shard: TenantShardId,
    timeline: TimelineId,
    objects: &[StoredWal],
) {
    for some in objects.chunks(DELETE_BATCH) {
        let paths: Vec<String> = some.iter().map(|object| wal_path(tenant_shard, timeline, object)).collect();
        if let Err(error) = bucket.delete(&paths).await {
            info!(%error, count = paths.len(), "covered WAL objects remain for now");
        }
    }
}
