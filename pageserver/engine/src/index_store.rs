//! Indexes of a tenant's timelines in the bucket: which ones there are, which is current, and replacing it.
//!
//! Each owner writes its own index object, `index_part.json-<generation>`, and reads the newest that is not above its own. Writes carry a
//! sequence number and are conditional: the first creates, each later one replaces exactly the one before. So of two writes in flight, of
//! which one was believed lost, the older can never undo the newer.

use std::sync::Arc;

use bytes::Bytes;
use codec::index_part::{IndexPart, IndexPartError};
use futures::{StreamExt as _, TryStreamExt as _};
use model::{Generation, TenantShardId, TimelineId};

use crate::claim::{Claim, list_timeline_prefixes};
use crate::deletion::{buried, is_buried};
use crate::listing::list_paths;
use crate::object_path::{ObjectPath, index_prefix};
use crate::ports::{Body, Bucket, BucketError, ETag, Object, PutIf};

/// Indexes read at once while the branches of a timeline are looked for.
const INDEX_READS: usize = 16;

/// The indexes that one owner of a tenant shard sees. Cheap to clone.
#[derive(Clone)]
pub struct IndexStore {
    bucket: Arc<dyn Bucket>,
    tenant: TenantShardId,
    generation: Generation,
}

/// An index as it was found.
#[derive(Clone, Debug)]
pub struct FoundIndex {
    /// What it says.
    pub index: IndexPart,
    /// Who wrote it; `None` for one older than generations.
    pub generation: Option<Generation>,
    etag: ETag,
}

/// Why an index could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadIndexError {
    /// It was deleted, and no owner may bring it back.
    #[error("timeline {0} was deleted")]
    Buried(TimelineId),
    /// It is not an index that can be believed.
    #[error("index {path} cannot be used")]
    Malformed {
        /// Which object.
        path: String,
        /// Why.
        source: IndexPartError,
    },
    /// The object store failed.
    #[error("cannot read the index of timeline {timeline}")]
    Bucket {
        /// Which.
        timeline: TimelineId,
        /// Why.
        source: BucketError,
    },
}

impl IndexStore {
    /// What the holder of `claim` sees.
    pub fn new(claim: &Claim) -> Self {
        Self::as_of_generation(claim.bucket().clone(), claim.tenant(), claim.generation())
    }

    /// What an owner in `generation` would see: for looking without owning. [`Generation::LAST_OWNER`] sees the newest.
    pub fn as_of_generation(bucket: Arc<dyn Bucket>, tenant: TenantShardId, generation: Generation) -> Self {
        IndexStore { bucket, tenant, generation }
    }

    /// All timelines that have objects and were not deleted. One may still turn out to have no index, when only layers were put before its
    /// owner died.
    pub async fn timelines(&self) -> Result<Vec<TimelineId>, BucketError> {
        let (mut timelines, buried) = tokio::try_join!(
            list_timeline_prefixes(&*self.bucket, self.tenant),
            buried(&*self.bucket, self.tenant)
        )?;
        timelines.retain(|timeline| !buried.contains(timeline));
        Ok(timelines)
    }

    /// The index to go on from: the own one, else the newest below it. `None` when the timeline has none that this owner may read.
    pub async fn find(&self, timeline: TimelineId) -> Result<Option<FoundIndex>, LoadIndexError> {
        let failed = |source| LoadIndexError::Bucket { timeline, source };
        let (buried, found) =
            tokio::try_join!(is_buried(&*self.bucket, self.tenant, timeline), self.find_object(timeline))
                .map_err(failed)?;
        if buried {
            return Err(LoadIndexError::Buried(timeline));
        }
        let Some((generation, object)) = found else { return Ok(None) };
        let index = IndexPart::from_json(&object.bytes).map_err(|source| LoadIndexError::Malformed {
            path: ObjectPath::Index { tenant: self.tenant, timeline, generation }.to_string(),
            source,
        })?;
        Ok(Some(FoundIndex { index, generation, etag: object.meta.etag }))
    }

    /// The branches of a timeline, by what the bucket says: also those that could not be opened count. An index that cannot be read is an error,
    /// since it may be a branch's.
    pub async fn children(&self, timeline: TimelineId) -> Result<Vec<TimelineId>, LoadIndexError> {
        let failed = |source| LoadIndexError::Bucket { timeline, source };
        let others = self.timelines().await.map_err(failed)?.into_iter().filter(|other| *other != timeline);
        futures::stream::iter(others)
            .map(|other| async move {
                let found = self.find(other).await?;
                let ancestor = found.and_then(|found| found.index.metadata().ancestor_timeline);
                Ok((ancestor == Some(timeline)).then_some(other))
            })
            .buffered(INDEX_READS)
            .try_filter_map(|child| async move { Ok(child) })
            .try_collect()
            .await
    }

    async fn find_object(
        &self,
        timeline: TimelineId,
    ) -> Result<Option<(Option<Generation>, Object)>, BucketError> {
        // The usual cases without a listing: a restart in place, and the owner before us.
        let before = self.generation.0.checked_sub(1).map(Generation);
        for generation in [Some(self.generation), before].into_iter().flatten() {
            if let Some(object) = self.get(timeline, Some(generation)).await? {
                return Ok(Some((Some(generation), object)));
            }
        }
        let paths = list_paths(&*self.bucket, &index_prefix(self.tenant, timeline)).await?;
        let generations = paths.iter().filter_map(|path| match path.parse() {
            Ok(ObjectPath::Index { generation, .. }) => Some(generation),
            _ => None,
        });
        // None, an index older than generations, is below all others.
        let Some(newest) = generations.filter(|found| *found <= Some(self.generation)).max() else {
            return Ok(None);
        };
        Ok(self.get(timeline, newest).await?.map(|object| (newest, object)))
    }

    async fn get(
        &self,
        timeline: TimelineId,
        generation: Option<Generation>,
    ) -> Result<Option<Object>, BucketError> {
        let path = ObjectPath::Index { tenant: self.tenant, timeline, generation }.to_string();
        match self.bucket.get(&path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(BucketError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the indexes of a timeline from now on; `found` is where it goes on from, `None` for a new timeline. There must be only one
    /// writer of a timeline.
    pub fn writer(&self, timeline: TimelineId, found: Option<&FoundIndex>) -> IndexWriter {
        // Only an index of our own generation is replaced; one of an earlier owner stays beside ours.
        let own = found.filter(|found| found.generation == Some(self.generation));
        let sequence = |found: &FoundIndex| found.index.palimpsest.as_ref().map_or(0, |ours| ours.sequence);
        let sequence = own.map_or(0, sequence);
        IndexWriter {
            bucket: self.bucket.clone(),
            path: ObjectPath::Index { tenant: self.tenant, timeline, generation: Some(self.generation) }
                .to_string(),
            current: own.map(|own| own.etag.clone()),
            settled: sequence,
            sequence,
            stopped: false,
        }
    }
}

/// Puts one timeline's indexes, one after the other.
pub struct IndexWriter {
    bucket: Arc<dyn Bucket>,
    path: String,
    /// The tag of the object of sequence number `settled`, if there is one.
    current: Option<ETag>,
    /// The last sequence number whose put is known to have been done.
    settled: u64,
    /// The last sequence number that was sent. Those above `settled` may have been done, or be done yet.
    sequence: u64,
    stopped: bool,
}

/// Why an index was not put.
#[derive(Debug, thiserror::Error)]
pub enum PutIndexError {
    /// Somebody else writes this generation's index. Nothing must be written any more.
    #[error(
        "index {path} was changed by somebody else: it has sequence number {found:?}, the last of ours is {last}"
    )]
    Stopped {
        /// Which object.
        path: String,
        /// The number found; `None` when the object has none or is gone.
        found: Option<u64>,
        /// The last that we sent.
        last: u64,
    },
    /// The index lacks our own part, which holds the sequence number.
    #[error("index {0} to be put has no palimpsest part")]
    Plain(String),
    /// The put that this change was a part of failed, or one that it was built upon.
    #[error("cannot put the index of timeline {timeline}: {reason}")]
    Together {
        /// Which.
        timeline: TimelineId,
        /// Why, with causes.
        reason: Arc<str>,
    },
    /// The object store failed. The index may or may not be in the bucket; the next put finds out.
    #[error("cannot put index {path}")]
    Bucket {
        /// Which object.
        path: String,
        /// Why.
        source: BucketError,
    },
}

impl IndexWriter {
    /// Whether an index of the own generation is in the bucket. Before it is, nothing about the timeline may be acknowledged.
    pub fn has_own_index(&self) -> bool {
        self.current.is_some()
    }

    /// Replaces the timeline's index; sets its sequence number. `Ok`: it is durable and is what a next owner reads, unless one has claimed
    /// the tenant before; that takes a validation *after* this call. Dropping the future midway is allowed, as is calling again after an
    /// error. Answers how many bytes the index has.
    pub async fn put(&mut self, index: &mut IndexPart) -> Result<usize, PutIndexError> {
        if self.stopped {
            return Err(self.stopped_at(None));
        }
        let Some(ours) = &mut index.palimpsest else { return Err(PutIndexError::Plain(self.path.clone())) };
        // Never used again, even if nothing is sent: what comes back under this number is this index.
        self.sequence += 1;
        ours.sequence = self.sequence;
        let body = Bytes::from(index.to_json());
        loop {
            let condition = self.current.clone().map_or(PutIf::Absent, PutIf::Matches);
            match self.bucket.put(&self.path, Body::Bytes(body.clone()), condition).await {
                Ok(etag) => {
                    self.settle(etag, self.sequence);
                    return Ok(body.len());
                }
                Err(BucketError::Precondition(_)) => {}
                Err(source) => return Err(self.failed(source)),
            }
            // Something of ours that was believed lost got there, or somebody else's.
            let found = match self.bucket.get(&self.path, None).await {
                Ok(found) => found,
                Err(BucketError::NotFound(_)) => return Err(self.stop(None)),
                Err(source) => return Err(self.failed(source)),
            };
            if found.bytes == body {
                self.settle(found.meta.etag, self.sequence);
                return Ok(body.len());
            }
            let number = IndexPart::from_json(&found.bytes)
                .ok()
                .and_then(|index| index.palimpsest)
                .map(|ours| ours.sequence);
            match number {
                // Each round settles a higher number, so this ends.
                Some(number) if number > self.settled && number < self.sequence => {
                    self.settle(found.meta.etag, number);
                }
                number => return Err(self.stop(number)),
            }
        }
    }

    fn settle(&mut self, etag: ETag, sequence: u64) {
        self.current = Some(etag);
        self.settled = sequence;
    }

    fn failed(&self, source: BucketError) -> PutIndexError {
        PutIndexError::Bucket { path: self.path.clone(), source }
    }

    fn stop(&mut self, found: Option<u64>) -> PutIndexError {
        self.stopped = true;
        self.stopped_at(found)
    }

    fn stopped_at(&self, found: Option<u64>) -> PutIndexError {
        PutIndexError::Stopped { path: self.path.clone(), found, last: self.sequence }
    }
}

#[cfg(test)]
mod tests {
    use codec::index_part::{EXTENSION_FORMAT, Extension, TimelineMetadata, Unknown, WalFlavour};
    use model::{Lsn, PgMajor, WalSegmentSize};

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::bucket::faulty::{Fault, FaultyBucket, Operation};
    use crate::deletion::bury;

    fn tenant() -> TenantShardId {
        "00112233445566778899aabbccddeeff".parse().unwrap()
    }

    fn timeline() -> TimelineId {
        "ffeeddccbbaa99887766554433221100".parse().unwrap()
    }

    fn index(lsn: u64) -> IndexPart {
        let metadata = TimelineMetadata {
            disk_consistent_lsn: Lsn(lsn),
            prev_record_lsn: None,
            ancestor_timeline: None,
            ancestor_lsn: Lsn(0),
            latest_gc_cutoff_lsn: Lsn(8),
            initdb_lsn: Lsn(8),
            pg_version: PgMajor::V17,
            unknown: Unknown::new(),
        };
        let extension = Extension {
            format: EXTENSION_FORMAT,
            sequence: 0,
            wal_flavour: WalFlavour::Vanilla,
            not_portable: vec![],
            system_identifier: 1,
            wal_segment_size: WalSegmentSize::new(16 << 20).unwrap(),
            data_checksums: false,
            tli_history: vec![],
            readable_from: Lsn(8),
            wal_objects: vec![],
            source: None,
            import: None,
            restores: vec![],
            archived: None,
            leases: vec![],
            named_lsns: std::collections::BTreeMap::new(),
            kept_lsns: None,
            unknown: Unknown::new(),
        };
        IndexPart::new(metadata, Some(extension))
    }

    fn faulty() -> (Arc<FaultyBucket>, Arc<dyn Bucket>) {
        let bucket = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        (bucket.clone(), bucket)
    }

    fn store(bucket: &Arc<dyn Bucket>, generation: u32) -> IndexStore {
        IndexStore::as_of_generation(bucket.clone(), tenant(), Generation(generation))
    }

    async fn found(bucket: &Arc<dyn Bucket>, generation: u32) -> Option<(u64, Option<u32>)> {
        let found = store(bucket, generation).find(timeline()).await.unwrap()?;
        Some((found.index.disk_consistent_lsn().0, found.generation.map(|generation| generation.0)))
    }

    async fn put(bucket: &Arc<dyn Bucket>, generation: u32, lsn: u64) {
        store(bucket, generation).writer(timeline(), None).put(&mut index(lsn)).await.unwrap();
    }

    #[tokio::test]
    async fn an_owner_reads_its_own_index_or_the_newest_below_and_never_one_above() {
        let (faulty, bucket) = faulty();
        assert_eq!(found(&bucket, 9).await, None);
        let legacy = ObjectPath::Index { tenant: tenant(), timeline: timeline(), generation: None };
        let body = Body::Bytes(index(8).to_json().into());
        bucket.put(&legacy.to_string(), body, PutIf::Absent).await.unwrap();
        assert_eq!(found(&bucket, 9).await, Some((8, None)));
        put(&bucket, 2, 16).await;
        put(&bucket, 10, 24).await;
        assert_eq!(found(&bucket, 1).await, Some((8, None)));
        assert_eq!(found(&bucket, 9).await, Some((16, Some(2))));
        let lists = faulty.count(Operation::List, "");
        assert_eq!(found(&bucket, 11).await, Some((24, Some(10))));
        assert_eq!(found(&bucket, 10).await, Some((24, Some(10))));
        assert_eq!(faulty.count(Operation::List, ""), lists, "the owner just before needs no listing");
    }

    #[tokio::test]
    async fn each_put_replaces_the_one_before_and_leaves_the_last_owners_alone() {
        let (_, bucket) = faulty();
        put(&bucket, 1, 8).await;
        let store2 = store(&bucket, 2);
        let before = store2.find(timeline()).await.unwrap();
        let mut writer = store2.writer(timeline(), before.as_ref());
        assert!(!writer.has_own_index());
        for lsn in [16, 24, 32] {
            writer.put(&mut index(lsn)).await.unwrap();
        }
        assert!(writer.has_own_index());
        assert_eq!(found(&bucket, 2).await, Some((32, Some(2))));
        assert_eq!(found(&bucket, 1).await, Some((8, Some(1))));
        let own = store2.find(timeline()).await.unwrap().unwrap();
        assert_eq!(own.index.palimpsest.as_ref().unwrap().sequence, 3);
        let mut resumed = store2.writer(timeline(), Some(&own));
        resumed.put(&mut index(40)).await.unwrap();
        assert_eq!(found(&bucket, 2).await, Some((40, Some(2))));
    }

    #[tokio::test]
    async fn an_index_put_that_lands_late_does_not_undo_a_newer_one() {
        let (faulty, bucket) = faulty();
        let mut writer = store(&bucket, 1).writer(timeline(), None);
        for lsn in [8, 16] {
            faulty.once(Operation::Put, "index_part", Fault::Late);
            assert!(writer.put(&mut index(lsn)).await.is_err());
        }
        writer.put(&mut index(24)).await.unwrap();
        faulty.once(Operation::Put, "index_part", Fault::Late);
        assert!(writer.put(&mut index(32)).await.is_err());
        writer.put(&mut index(40)).await.unwrap();
        let late = faulty.land_late().await;
        assert_eq!(late.len(), 3);
        assert!(late.iter().all(|put| matches!(put, Err(BucketError::Precondition(_)))));
        assert_eq!(found(&bucket, 2).await, Some((40, Some(1))));
        writer.put(&mut index(48)).await.unwrap();
    }

    #[tokio::test]
    async fn an_index_put_believed_lost_that_was_done_is_built_upon() {
        let (faulty, bucket) = faulty();
        let mut writer = store(&bucket, 1).writer(timeline(), None);
        for lsn in [8, 16] {
            faulty.once(Operation::Put, "index_part", Fault::LoseAnswer);
            assert!(writer.put(&mut index(lsn)).await.is_err());
        }
        assert_eq!(found(&bucket, 1).await, Some((8, Some(1))), "the second found the first in its way");
        writer.put(&mut index(24)).await.unwrap();
        assert_eq!(found(&bucket, 1).await, Some((24, Some(1))));
    }

    #[tokio::test]
    async fn a_late_put_between_a_failure_and_the_next_put_is_built_upon() {
        let (faulty, bucket) = faulty();
        let mut writer = store(&bucket, 1).writer(timeline(), None);
        writer.put(&mut index(8)).await.unwrap();
        faulty.once(Operation::Put, "index_part", Fault::Late);
        assert!(writer.put(&mut index(16)).await.is_err());
        faulty.land_late().await.pop().unwrap().unwrap();
        assert_eq!(found(&bucket, 1).await, Some((16, Some(1))));
        writer.put(&mut index(24)).await.unwrap();
        assert_eq!(found(&bucket, 1).await, Some((24, Some(1))));
    }

    #[tokio::test]
    async fn a_writer_that_finds_anothers_index_in_its_place_stops_for_good() {
        let (_, bucket) = faulty();
        let mut first = store(&bucket, 1).writer(timeline(), None);
        let mut second = store(&bucket, 1).writer(timeline(), None);
        first.put(&mut index(8)).await.unwrap();
        let stopped = second.put(&mut index(16)).await;
        assert!(matches!(stopped, Err(PutIndexError::Stopped { found: Some(1), .. })), "{stopped:?}");
        assert!(matches!(second.put(&mut index(24)).await, Err(PutIndexError::Stopped { .. })));
        first.put(&mut index(32)).await.unwrap();
        assert_eq!(found(&bucket, 1).await, Some((32, Some(1))));
        let path =
            ObjectPath::Index { tenant: tenant(), timeline: timeline(), generation: Some(Generation(1)) };
        bucket.delete(&[path.to_string()]).await.unwrap();
        let gone = first.put(&mut index(40)).await;
        assert!(matches!(gone, Err(PutIndexError::Stopped { found: None, .. })), "{gone:?}");
    }

    #[tokio::test]
    async fn an_index_that_an_unaware_owner_puts_again_does_not_bring_a_deleted_timeline_back() {
        let (_, bucket) = faulty();
        let unaware = Claim::take(bucket.clone(), tenant()).await.unwrap();
        let mut writer = IndexStore::new(&unaware).writer(timeline(), None);
        writer.put(&mut index(8)).await.unwrap();
        let owner = Claim::take(bucket.clone(), tenant()).await.unwrap();
        assert_eq!(IndexStore::new(&owner).timelines().await.unwrap(), [timeline()]);
        bury(&owner, timeline()).await.unwrap();
        crate::deletion::delete_timeline_data(&owner, timeline()).await.unwrap();
        store(&bucket, 1).writer(timeline(), None).put(&mut index(8)).await.unwrap();
        let next = Claim::take(bucket.clone(), tenant()).await.unwrap();
        assert!(IndexStore::new(&next).timelines().await.unwrap().is_empty());
        let error = IndexStore::new(&next).find(timeline()).await.unwrap_err();
        assert!(matches!(error, LoadIndexError::Buried(_)));
        assert!(unaware.validate().await.is_err(), "so it acknowledges nothing");
    }

    #[tokio::test]
    async fn a_malformed_index_is_named() {
        let (_, bucket) = faulty();
        let path =
            ObjectPath::Index { tenant: tenant(), timeline: timeline(), generation: Some(Generation(1)) };
        let body = Body::Bytes(Bytes::from_static(b"{\"version\": 15"));
        bucket.put(&path.to_string(), body, PutIf::Absent).await.unwrap();
        let error = store(&bucket, 1).find(timeline()).await.unwrap_err();
        assert!(error.to_string().contains(&path.to_string()), "{error}");
    }
}
