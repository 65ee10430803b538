//! What a tenant may be told to do otherwise than the server does, kept in the bucket: the bucket alone brings a tenant back.
//!
//! Each owner that changes it writes `palimpsest/config/<tenant shard>/<generation>`; the newest that is not newer than the reader counts. So an
//! owner that was superseded cannot change what its successor does. The object is JSON, and fields that are not known are an error: a wish that is
//! not understood must not be taken for fulfilled.

use std::time::Duration;

use bytes::Bytes;
use model::{Generation, TenantShardId};
use serde::{Deserialize, Serialize};

use crate::claim::{Claim, ValidateError};
use crate::listing::list_paths;
use crate::object_path::{ObjectPath, config_prefix};
use crate::ports::{Body, Bucket, BucketError, PutIf};

/// Fewest and most bytes of changes that are gathered into one layer.
const CHECKPOINT_DISTANCES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 40;

/// A tenant's own settings. What is not set is as the server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// History of so many seconds is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitr_interval_seconds: Option<u64>,
    /// History of so many bytes of WAL is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc_horizon_bytes: Option<u64>,
    /// Changes of a timeline that are gathered into one layer, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_distance_bytes: Option<u64>,
}

impl TenantConfig {
    /// How long history is kept, if that is set.
    pub fn pitr_interval(&self) -> Option<Duration> {
        self.pitr_interval_seconds.map(Duration::from_secs)
    }

    /// Whether it can be followed; says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        match self.checkpoint_distance_bytes {
            Some(bytes) if !CHECKPOINT_DISTANCES.contains(&bytes) => {
                Err(format!("a checkpoint distance of {bytes} bytes is not between 64 KiB and 1 TiB"))
            }
            _ => Ok(()),
        }
    }
}

/// Why a tenant's settings cannot be read or stored.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TenantConfigError {
    #[error("{path} is no configuration of a tenant")]
    Malformed { path: String, source: serde_json::Error },
    #[error("the bucket does not do what it must")]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
}

/// What a new owner goes by: what is wanted, stored unless it is so already, else what it finds.
pub(super) async fn settle(
    claim: &Claim,
    wanted: Option<TenantConfig>,
) -> Result<TenantConfig, TenantConfigError> {
    let found = load(claim).await?;
    match wanted {
        Some(wanted) if wanted != found => {
            store(claim, &wanted).await?;
            Ok(wanted)
        }
        _ => Ok(found),
    }
}

/// What an owner finds.
pub(super) async fn load(claim: &Claim) -> Result<TenantConfig, TenantConfigError> {
    let (bucket, tenant) = (&**claim.bucket(), claim.tenant());
    let Some(generation) = newest(bucket, tenant, claim.generation()).await? else {
        return Ok(TenantConfig::default());
    };
    let path = ObjectPath::Config { tenant, generation }.to_string();
    let found = bucket.get(&path, None).await?;
    serde_json::from_slice(&found.bytes).map_err(|source| TenantConfigError::Malformed { path, source })
}

/// Stores settings as this owner's, and validates.
pub(super) async fn store(claim: &Claim, config: &TenantConfig) -> Result<(), TenantConfigError> {
    let path = ObjectPath::Config { tenant: claim.tenant(), generation: claim.generation() }.to_string();
    let bytes = Bytes::from(serde_json::to_vec(config).expect("a struct of numbers is JSON"));
    let bucket = claim.bucket();
    let put = |put_if| bucket.put(&path, Body::Bytes(bytes.clone()), put_if);
    match put(PutIf::Absent).await {
        Err(BucketError::Precondition(_)) => {
            // Written by this owner before: replaced as it is now, so that no older attempt of ours lands on top of it later.
            let etag = bucket.head(&path).await?.etag;
            put(PutIf::Matches(etag)).await?;
        }
        stored => drop(stored?),
    }
    Ok(claim.validate().await?)
}

async fn newest(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    not_above: Generation,
) -> Result<Option<Generation>, BucketError> {
    let prefix = config_prefix(tenant);
    let mut newest = None;
    for path in list_paths(bucket, &prefix).await? {
        match path.parse() {
            Ok(ObjectPath::Config { generation, .. }) if generation <= not_above => {
                newest = newest.max(Some(generation));
            }
            Ok(_) => {}
            Err(_) => tracing::warn!(path, "an object that is no configuration lies among those"),
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::claim::ClaimedBy;

    fn config(bytes: u64) -> TenantConfig {
        TenantConfig { checkpoint_distance_bytes: Some(bytes), ..TenantConfig::default() }
    }

    async fn owner(bucket: &Arc<dyn Bucket>, generation: u32) -> Claim {
        let tenant = "00112233445566778899aabbccddeeff".parse().unwrap();
        let by = ClaimedBy {
            pool_uid: String::new(),
            pod: String::new(),
            pod_uid: String::new(),
            instance: format!("instance {generation}"),
            attempt: "1".into(),
        };
        Claim::confirm(Arc::clone(bucket), tenant, Generation(generation), &by).await.unwrap()
    }

    #[tokio::test]
    async fn the_next_owner_finds_what_was_set_and_an_older_one_cannot_change_it() {
        let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let first = owner(&bucket, 1).await;
        assert_eq!(load(&first).await.unwrap(), TenantConfig::default());
        store(&first, &config(1 << 20)).await.unwrap();
        store(&first, &config(2 << 20)).await.unwrap();
        let second = owner(&bucket, 2).await;
        assert_eq!(load(&second).await.unwrap(), config(2 << 20));
        store(&second, &config(3 << 20)).await.unwrap();
        // It learns that it is superseded, and what it wrote counts for nobody.
        assert!(matches!(store(&first, &config(4 << 20)).await, Err(TenantConfigError::Validate(_))));
        assert_eq!(load(&owner(&bucket, 3).await).await.unwrap(), config(3 << 20));
    }

    #[tokio::test]
    async fn a_wish_that_is_not_understood_is_an_error() {
        let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let claim = owner(&bucket, 1).await;
        let path = ObjectPath::Config { tenant: claim.tenant(), generation: Generation(1) }.to_string();
        let body = Body::Bytes(Bytes::from_static(b"{\"keep_everything\":true}"));
        bucket.put(&path, body, PutIf::Absent).await.unwrap();
        let error = load(&claim).await.unwrap_err();
        assert!(crate::error_story::error_story(&error).contains("keep_everything"));
        assert!(config(1).check().is_err() && config(1 << 20).check().is_ok());
    }
}
