//! Deleting timelines and tenants for good.
//!
//! A timeline's index says first that it is being deleted: no owner that reads this opens the timeline, or acknowledges anything about it. Then
//! it gets a tombstone, before its first object goes, and the tombstone stays: neither an owner that does not know yet, nor one that was told
//! to create the same timeline again, brings it back. So a tombstone whose put was believed lost ends nothing that anybody was promised
//! since: who promised would have read the mark, which was put and validated before. A tenant gets the claim `ffffffff`, which stays too; with it there
//! anyone may finish the deletion, and nobody can own the tenant again.

use std::collections::BTreeSet;

use bytes::Bytes;
use model::{Generation, TenantShardId, TimelineId};

use crate::bucket::DELETE_BATCH;
use crate::claim::{Claim, ValidateError, create_deleted, list_claims};
use crate::listing::list_paths;
use crate::object_path::{
    ObjectPath, config_prefix, index_prefix, metering_prefix, tenant_prefix, tenant_wal_prefix,
    timeline_prefix, tombstones_prefix, wal_prefix,
};
use crate::ports::{Body, Bucket, BucketError, ListRequest, PutIf};

/// Writes a timeline's tombstone, and validates. From then on it is deleted, whatever becomes of its objects. Its index says so already
/// ([`crate::index_keeper::IndexKeeper::mark_deleted`]), unless there is none that can be opened.
pub async fn bury(claim: &Claim, timeline: TimelineId) -> Result<(), ValidateError> {
    // An owner that was superseded long ago must not bury what the newer one just created.
    claim.validate().await?;
    let path = ObjectPath::Tombstone { tenant: claim.tenant(), timeline }.to_string();
    let body = Body::Bytes(Bytes::from(format!("{{\"version\":1,\"generation\":{}}}", claim.generation().0)));
    match claim.bucket().put(&path, body, PutIf::Absent).await {
        Ok(_) | Err(BucketError::Precondition(_)) => claim.validate().await,
        Err(error) => Err(error.into()),
    }
}

/// Whether the holder of a claim may delete its tenant: it is the newest owner, or the deletion was begun, by whomever.
pub async fn validate_deleter(claim: &Claim) -> Result<(), ValidateError> {
    match claim.validate().await {
        Err(ValidateError::Superseded { .. })
            if list_claims(&**claim.bucket(), claim.tenant(), Some(claim.generation()))
                .await?
                .contains(&Generation::DELETED) =>
        {
            Ok(())
        }
        validated => validated,
    }
}

/// Whether a timeline was deleted. To be asked before it is created or attached.
pub async fn is_buried(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    timeline: TimelineId,
) -> Result<bool, BucketError> {
    match bucket.head(&ObjectPath::Tombstone { tenant, timeline }.to_string()).await {
        Ok(_) => Ok(true),
        Err(BucketError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// All deleted timelines of a tenant shard.
pub async fn buried(bucket: &dyn Bucket, tenant: TenantShardId) -> Result<BTreeSet<TimelineId>, BucketError> {
    let mut timelines = BTreeSet::new();
    for path in list_paths(bucket, &tombstones_prefix(tenant)).await? {
        if let Ok(ObjectPath::Tombstone { timeline, .. }) = path.parse() {
            timelines.insert(timeline);
        } else {
            tracing::warn!(path, "an object that is no tombstone lies among the tombstones");
        }
    }
    Ok(timelines)
}

/// Removes all objects of a buried timeline, its indexes last: as long as one is there, listing timelines finds what is left to do.
/// Answers how many objects went. May be run again.
pub async fn delete_timeline_data(claim: &Claim, timeline: TimelineId) -> Result<usize, ValidateError> {
    bury(claim, timeline).await?;
    let (bucket, tenant) = (&**claim.bucket(), claim.tenant());
    let indexes = index_prefix(tenant, timeline);
    let mut paths = list_paths(bucket, &wal_prefix(tenant, timeline)).await?;
    paths.extend(list_paths(bucket, &timeline_prefix(tenant, timeline)).await?);
    paths.sort_by_key(|path| path.starts_with(&indexes));
    for batch in paths.chunks(DELETE_BATCH) {
        claim.validate().await?;
        bucket.delete(batch).await?;
    }
    Ok(paths.len())
}

/// Whether a timeline was deleted, but not wholly.
pub(crate) async fn has_remains(claim: &Claim, timeline: TimelineId) -> Result<bool, BucketError> {
    let (bucket, tenant) = (&**claim.bucket(), claim.tenant());
    Ok(is_buried(bucket, tenant, timeline).await?
        && (has_any(bucket, &timeline_prefix(tenant, timeline)).await?
            || has_any(bucket, &wal_prefix(tenant, timeline)).await?))
}

/// Whether the deletion of a tenant shard that is not owned here was begun; `None` when there is no such tenant.
pub(crate) async fn deletion_begun(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<Option<bool>, BucketError> {
    let claims = list_claims(bucket, tenant, None).await?;
    if claims.contains(&Generation::DELETED) {
        return Ok(Some(true));
    }
    // One that was claimed and never had a timeline is forgotten at the next start, too.
    Ok(has_any(bucket, &tenant_prefix(tenant)).await?.then_some(false))
}

async fn has_any(bucket: &dyn Bucket, prefix: &str) -> Result<bool, BucketError> {
    let page = bucket.list(ListRequest { prefix, limit: Some(1), ..ListRequest::default() }).await?;
    Ok(!page.objects.is_empty())
}

/// Why a tenant was not deleted, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum DeleteTenantError {
    /// Somebody claimed the tenant while its deletion began. Nothing was deleted.
    #[error("tenant {tenant} was claimed in generation {by} while its deletion began: nothing was deleted")]
    ForeignClaim {
        /// Whose.
        tenant: TenantShardId,
        /// The claim that appeared.
        by: Generation,
    },
    /// The object store failed; to be run again.
    #[error("cannot delete the tenant")]
    Bucket(#[from] BucketError),
}

/// Deletes a tenant shard for good: the claim `ffffffff` first, then all objects but claims and tombstones. Needs no claim of one's own, so
/// that anyone can finish what another began. Answers how many objects went. May be run again.
pub async fn delete_tenant_data(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<usize, DeleteTenantError> {
    claim_deletion(bucket, tenant).await?;
    Ok(delete_tenant_objects(bucket, tenant).await?)
}

/// Puts the claim that keeps every owner away for good. `Ok`: it is there, and nobody claimed the tenant while it was put.
pub async fn claim_deletion(bucket: &dyn Bucket, tenant: TenantShardId) -> Result<(), DeleteTenantError> {
    let before = list_claims(bucket, tenant, None).await?;
    create_deleted(bucket, tenant).await?;
    let after = list_claims(bucket, tenant, None).await?;
    if let Some(by) = after.into_iter().find(|claim| *claim != Generation::DELETED && !before.contains(claim))
    {
        return Err(DeleteTenantError::ForeignClaim { tenant, by });
    }
    Ok(())
}

/// Removes all objects of a tenant shard but claims and tombstones. Only after [`claim_deletion`].
pub async fn delete_tenant_objects(bucket: &dyn Bucket, tenant: TenantShardId) -> Result<usize, BucketError> {
    let mut deleted = 0;
    let prefixes =
        [tenant_wal_prefix(tenant), config_prefix(tenant), metering_prefix(tenant), tenant_prefix(tenant)];
    for prefix in prefixes {
        let paths = list_paths(bucket, &prefix).await?;
        for batch in paths.chunks(DELETE_BATCH) {
            bucket.delete(batch).await?;
        }
        deleted += paths.len();
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::bucket::faulty::{Fault, FaultyBucket, Operation, held};
    use crate::claim::TakeClaimError;

    fn tenant() -> TenantShardId {
        "00112233445566778899aabbccddeeff".parse().unwrap()
    }

    fn timeline() -> TimelineId {
        "ffeeddccbbaa99887766554433221100".parse().unwrap()
    }

    async fn put(bucket: &dyn Bucket, path: &str) {
        bucket.put(path, Body::Bytes(Bytes::from_static(b"x")), PutIf::Absent).await.unwrap();
    }

    async fn populated() -> (Arc<FaultyBucket>, Arc<dyn Bucket>, Vec<String>) {
        let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        let paths = vec![
            format!("{}layer-1", timeline_prefix(tenant(), timeline())),
            format!("{}-00000001", index_prefix(tenant(), timeline())),
            format!("{}00000001/0-1-00000001", wal_prefix(tenant(), timeline())),
        ];
        for path in &paths {
            put(&*faulty, path).await;
        }
        (faulty.clone(), faulty, paths)
    }

    #[tokio::test]
    async fn a_tombstone_comes_before_the_first_delete_and_stays_and_the_index_goes_last() {
        let (faulty, bucket, _) = populated().await;
        let claim = Claim::take(bucket.clone(), tenant()).await.unwrap();
        assert!(!is_buried(&*bucket, tenant(), timeline()).await.unwrap());
        faulty.once(Operation::Delete, "", Fault::Fail);
        assert!(delete_timeline_data(&claim, timeline()).await.is_err());
        assert!(is_buried(&*bucket, tenant(), timeline()).await.unwrap());
        assert_eq!(delete_timeline_data(&claim, timeline()).await.unwrap(), 3);
        assert!(list_paths(&*bucket, &tenant_prefix(tenant())).await.unwrap().is_empty());
        assert!(list_paths(&*bucket, &tenant_wal_prefix(tenant())).await.unwrap().is_empty());
        assert_eq!(buried(&*bucket, tenant()).await.unwrap(), BTreeSet::from([timeline()]));
    }

    #[tokio::test]
    async fn a_superseded_owner_deletes_and_buries_nothing() {
        let (_, bucket, paths) = populated().await;
        let old = Claim::take(bucket.clone(), tenant()).await.unwrap();
        Claim::take(bucket.clone(), tenant()).await.unwrap();
        assert!(matches!(
            delete_timeline_data(&old, timeline()).await,
            Err(ValidateError::Superseded { .. })
        ));
        assert!(!is_buried(&*bucket, tenant(), timeline()).await.unwrap());
        for path in paths {
            bucket.head(&path).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_owner_superseded_between_its_tombstone_and_its_deletes_deletes_nothing() {
        let (faulty, bucket, paths) = populated().await;
        let old = Claim::take(bucket.clone(), tenant()).await.unwrap();
        let (gate, mut listing) = held();
        faulty.once(Operation::List, "palimpsest/wal", Fault::Hold(gate));
        let deleting = {
            let old = old.clone();
            tokio::spawn(async move { delete_timeline_data(&old, timeline()).await })
        };
        listing.arrived().await;
        Claim::take(bucket.clone(), tenant()).await.unwrap();
        listing.release();
        assert!(matches!(deleting.await.unwrap(), Err(ValidateError::Superseded { .. })));
        for path in paths {
            bucket.head(&path).await.unwrap();
        }
    }

    #[tokio::test]
    async fn when_a_deleter_dies_anyone_finishes_and_nobody_attaches() {
        let (faulty, bucket, _) = populated().await;
        faulty.once(Operation::Delete, "", Fault::Fail);
        assert!(delete_tenant_data(&*bucket, tenant()).await.is_err());
        assert!(matches!(Claim::take(bucket.clone(), tenant()).await, Err(TakeClaimError::Deleted(_))));
        assert!(delete_tenant_data(&*bucket, tenant()).await.unwrap() > 0);
        assert!(list_paths(&*bucket, "tenants/").await.unwrap().is_empty());
        assert_eq!(list_claims(&*bucket, tenant(), None).await.unwrap(), [Generation::DELETED]);
        assert_eq!(delete_tenant_data(&*bucket, tenant()).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_claim_that_appears_while_a_deletion_begins_stops_it() {
        let (faulty, bucket, paths) = populated().await;
        let (gate, mut deleter) = held();
        faulty.once(Operation::Put, "ffffffff", Fault::Hold(gate));
        let deleting = {
            let bucket = bucket.clone();
            tokio::spawn(async move { delete_tenant_data(&*bucket, tenant()).await })
        };
        deleter.arrived().await;
        let foreign = Claim::take(bucket.clone(), tenant()).await.unwrap();
        deleter.release();
        assert!(matches!(deleting.await.unwrap(), Err(DeleteTenantError::ForeignClaim { .. })));
        for path in paths {
            bucket.head(&path).await.unwrap();
        }
        assert!(foreign.validate().await.is_err(), "it learns of the deletion");
    }
}
