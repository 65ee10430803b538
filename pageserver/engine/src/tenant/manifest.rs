//! The tenant's manifest: which of its timelines are in the bucket only.
//!
//! Indexes decide; the manifest repeats what they say, so that sizes are known without them, and so that Neon leaves the timelines closed. An entry
//! comes after the index says that its timeline is archived, and goes before the index says that it is not any more. Each owner writes an object
//! of its own, replaced as it is, and reads the newest that is not newer than itself, as with configurations.

use bytes::Bytes;
use codec::tenant_manifest::{OffloadedTimeline, TenantManifest, TenantManifestError};
use model::Generation;

use crate::claim::Claim;
use crate::listing::list_paths;
use crate::object_path::{ObjectPath, manifest_prefix};
use crate::ports::{Body, BucketError, ETag, PutIf};

/// The manifest of an owner, and its place in the bucket.
pub(super) struct ManifestKeeper {
    claim: Claim,
    /// As the newest object in the bucket has it.
    known: Option<TenantManifest>,
    /// The tag of the own object, if there is one.
    own: Option<ETag>,
    /// A put of ours failed, and may be done yet: whatever is known, the next one is made.
    unsettled: bool,
}

/// Why a manifest was not read or put.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ManifestError {
    #[error("manifest {path} cannot be used")]
    Malformed { path: String, source: TenantManifestError },
    #[error("the bucket does not do what it must")]
    Bucket(#[from] BucketError),
}

impl ManifestKeeper {
    /// Of an owner that has not looked yet.
    pub fn new(claim: Claim) -> ManifestKeeper {
        ManifestKeeper { claim, known: None, own: None, unsettled: false }
    }

    /// Looks for what there is.
    pub async fn find(&mut self) -> Result<(), ManifestError> {
        let (bucket, tenant) = (self.claim.bucket(), self.claim.tenant());
        let own = self.claim.generation();
        let paths = list_paths(&**bucket, &manifest_prefix(tenant)).await?;
        let newest: Option<Generation> = paths
            .iter()
            .filter_map(|path| match path.parse() {
                Ok(ObjectPath::Manifest { generation, .. }) if generation <= own => Some(generation),
                _ => None,
            })
            .max();
        let Some(generation) = newest else { return Ok(()) };
        let path = ObjectPath::Manifest { tenant, generation }.to_string();
        let found = bucket.get(&path, None).await?;
        let manifest = TenantManifest::from_json(&found.bytes);
        self.known = Some(manifest.map_err(|source| ManifestError::Malformed { path, source })?);
        self.own = (generation == own).then_some(found.meta.etag);
        Ok(())
    }

    /// Makes the manifest name these timelines, unless it does. What else it said stays.
    pub async fn name(&mut self, offloaded: Vec<OffloadedTimeline>) -> Result<(), ManifestError> {
        if self.known.is_none() {
            self.find().await?;
        }
        let before = self.known.clone();
        let mut manifest = TenantManifest::new(offloaded);
        if let Some(before) = before {
            manifest.stripe_size = before.stripe_size;
            manifest.unknown.clone_from(&before.unknown);
            for entry in &mut manifest.offloaded_timelines {
                let known =
                    before.offloaded_timelines.iter().find(|known| known.timeline_id == entry.timeline_id);
                if let Some(known) = known {
                    entry.unknown.clone_from(&known.unknown);
                }
            }
            if manifest == before && !self.unsettled {
                return Ok(());
            }
        } else if manifest.offloaded_timelines.is_empty() && !self.unsettled {
            return Ok(());
        }
        self.unsettled = true;
        self.put(&manifest).await?;
        self.unsettled = false;
        self.known = Some(manifest);
        Ok(())
    }

    async fn put(&mut self, manifest: &TenantManifest) -> Result<(), ManifestError> {
        let (tenant, generation) = (self.claim.tenant(), self.claim.generation());
        let path = ObjectPath::Manifest { tenant, generation }.to_string();
        let body = Bytes::from(manifest.to_json());
        let bucket = self.claim.bucket();
        loop {
            let condition = self.own.clone().map_or(PutIf::Absent, PutIf::Matches);
            match bucket.put(&path, Body::Bytes(body.clone()), condition).await {
                Ok(etag) => {
                    self.own = Some(etag);
                    return Ok(());
                }
                // One of ours that was believed lost got there. It is replaced as it is, so that no other of them lands on top later.
                Err(BucketError::Precondition(_)) => {
                    let found = bucket.get(&path, None).await?;
                    self.own = Some(found.meta.etag);
                    if found.bytes == body {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use codec::index_part::Unknown;
    use model::TimelineId;

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::bucket::faulty::{Fault, FaultyBucket, Operation};
    use crate::ports::Bucket;

    fn entry(n: u8) -> OffloadedTimeline {
        OffloadedTimeline {
            timeline_id: TimelineId([n; 16]),
            ancestor_timeline_id: None,
            ancestor_retain_lsn: None,
            archived_at: "2026-04-01T00:00:00".parse().unwrap(),
            palimpsest: None,
            unknown: Unknown::new(),
        }
    }

    async fn owner(bucket: &Arc<dyn Bucket>) -> ManifestKeeper {
        let tenant = "00112233445566778899aabbccddeeff".parse().unwrap();
        ManifestKeeper::new(Claim::take(Arc::clone(bucket), tenant).await.unwrap())
    }

    async fn found(bucket: &Arc<dyn Bucket>) -> Vec<TimelineId> {
        let mut next = owner(bucket).await;
        next.find().await.unwrap();
        let known = next.known.map(|manifest| manifest.offloaded_timelines).unwrap_or_default();
        known.iter().map(|offloaded| offloaded.timeline_id).collect()
    }

    #[tokio::test]
    async fn an_owner_goes_on_from_the_newest_manifest_and_puts_none_that_says_nothing_new() {
        let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        let bucket: Arc<dyn Bucket> = faulty.clone();
        let mut a = owner(&bucket).await;
        a.name(Vec::new()).await.unwrap();
        assert_eq!(faulty.count(Operation::Put, "tenant-manifest"), 0);
        a.name(vec![entry(2), entry(1)]).await.unwrap();
        assert_eq!(found(&bucket).await, [1, 2].map(|n| TimelineId([n; 16])));
        let mut b = owner(&bucket).await;
        b.name(vec![entry(1), entry(2)]).await.unwrap();
        assert_eq!(faulty.count(Operation::Put, "tenant-manifest"), 1);
        b.name(vec![entry(2)]).await.unwrap();
        // The older one's does not count any more.
        a.name(vec![entry(1)]).await.unwrap();
        assert_eq!(found(&bucket).await, [TimelineId([2; 16])]);
    }

    #[tokio::test]
    async fn a_manifest_whose_put_was_believed_lost_never_replaces_a_later_one() {
        let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        let bucket: Arc<dyn Bucket> = faulty.clone();
        let mut a = owner(&bucket).await;
        for fault in [Fault::LoseAnswer, Fault::Late, Fault::LoseAnswer] {
            faulty.once(Operation::Put, "tenant-manifest", fault);
            a.name(vec![entry(1)]).await.unwrap_err();
            a.name(vec![entry(2)]).await.unwrap();
            faulty.land_late().await;
            assert_eq!(found(&bucket).await, [TimelineId([2; 16])]);
        }
    }
}
