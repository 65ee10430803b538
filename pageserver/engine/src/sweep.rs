//! Orphans: objects that nothing names. They come from uploads that a crash cut short, from owners that were superseded, from imports that were killed, from
//! deletions that failed.
//!
//! Only what an earlier generation put is looked at: what the own generation puts, its owner knows from memory. And only after the own index of the
//! timeline is in the bucket and validated: from then on nobody who counts will ever name such an object. A layer that was replaced stays as long as somebody
//! reads it ([`crate::held_objects`]). A grace time is kept besides, so that people who look into a bucket do not find it changing under them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use codec::index_part::IndexPart;
use model::{Generation, LayerObjectName, TenantShardId, TimelineId};

use crate::bucket::DELETE_BATCH;
use crate::claim::{Claim, ValidateError};
use crate::deletion;
use crate::held_objects::HeldObjects;
use crate::listing::list_all;
use crate::object_path::{ObjectPath, timeline_prefix, wal_prefix};
use crate::ports::{Bucket, BucketError, ListRequest, ListedObject};
use crate::stored_wal::{StoredWal, wal_path};

/// What a sweep found, and deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that nothing names and that are older than the grace time.
    pub orphans: Vec<String>,
    /// Their bytes, and those of what is still read.
    pub bytes: u64,
    /// Objects that nothing names and that are too young.
    pub young: usize,
    /// Objects whose names are not ours, which nobody touches.
    pub unknown: Vec<String>,
}

/// What of a timeline counts, for one owner.
struct Named {
    layers: BTreeSet<String>,
    wal: BTreeSet<String>,
}

/// The orphans of one timeline. `index` is the owner's own, in the bucket and validated; `None` when the timeline has none that the owner may read, and
/// then the owner itself must not be creating it.
///
/// Nothing is deleted here.
pub async fn find_orphans(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    timeline: TimelineId,
    own: Generation,
    index: Option<&IndexPart>,
    grace: Duration,
    now: SystemTime,
) -> Result<Swept, BucketError> {
    let named = Named::by(tenant, timeline, index);
    let mut swept = Swept::default();
    let mut indexes: Vec<(Generation, ListedObject)> = Vec::new();
    for object in all_below(bucket, &timeline_prefix(tenant, timeline)).await? {
        match object.path.parse() {
            Ok(ObjectPath::Index { generation, .. }) => {
                // One older than generations was written by nobody who could be an owner of ours.
                indexes.extend(generation.map(|generation| (generation, object)));
            }
            Ok(ObjectPath::Layer { name: LayerObjectName { generation, .. }, .. }) => {
                if generation < Some(own) && !named.layers.contains(&object.path) {
                    swept.take(object, grace, now);
                }
            }
            _ => swept.unknown.push(object.path),
        }
    }
    for object in all_below(bucket, &wal_prefix(tenant, timeline)).await? {
        match object.path.parse() {
            Ok(ObjectPath::Wal { generation, .. }) => {
                if generation < own && !named.wal.contains(&object.path) {
                    swept.take(object, grace, now);
                }
            }
            _ => swept.unknown.push(object.path),
        }
    }
    // Of older owners' indexes the newest stays: whoever looks for the owner before this one finds it at once.
    indexes.retain(|(generation, _)| *generation < own);
    indexes.sort_by_key(|(generation, _)| *generation);
    if index.is_some() {
        indexes.pop();
        for (_, object) in indexes {
            swept.take(object, grace, now);
        }
    }
    Ok(swept)
}

impl Named {
    fn by(tenant: TenantShardId, timeline: TimelineId, index: Option<&IndexPart>) -> Named {
        let layers = index.iter().flat_map(|index| &index.layer_metadata).map(|(name, metadata)| {
            let writer = TenantShardId { tenant: tenant.tenant, shard: metadata.shard };
            let name = LayerObjectName { layer: name.clone(), generation: metadata.generation };
            ObjectPath::Layer { tenant: writer, timeline, name }.to_string()
        });
        let objects =
            index.iter().filter_map(|index| index.palimpsest.as_ref()).flat_map(|ours| &ours.wal_objects);
        let wal = objects.map(|object| {
            let object = StoredWal {
                tli: object.tli,
                start: object.start,
                end: object.end,
                generation: object.generation,
                size: object.size,
            };
            wal_path(tenant, timeline, &object)
        });
        Named { layers: layers.collect(), wal: wal.collect() }
    }
}

impl Swept {
    fn take(&mut self, object: ListedObject, grace: Duration, now: SystemTime) {
        let age = object.modified.and_then(|modified| now.duration_since(modified).ok());
        if grace.is_zero() || age.is_some_and(|age| age >= grace) {
            self.bytes += object.size;
            self.orphans.push(object.path);
        } else {
            self.young += 1;
        }
    }

    fn append(&mut self, other: Swept) {
        self.orphans.extend(other.orphans);
        self.bytes += other.bytes;
        self.young += other.young;
        self.unknown.extend(other.unknown);
    }
}

/// Deletes the orphans of a timeline, each batch after a listing of claims that shows no newer owner.
pub async fn delete_orphans(claim: &Claim, orphans: &[String]) -> Result<(), ValidateError> {
    for batch in orphans.chunks(DELETE_BATCH) {
        claim.validate().await?;
        claim.bucket().delete(batch).await?;
    }
    Ok(())
}

/// A timeline that is open here.
pub struct Owned {
    /// Which.
    pub timeline: TimelineId,
    /// The owner's own index, as it is in the bucket.
    pub index: Arc<IndexPart>,
    /// Layers of earlier owners that are read, named by the index or not: those go after their last reader.
    pub held: HeldObjects,
}

/// Finds and deletes the orphans of timelines, and what remains of those that were deleted.
pub async fn sweep(
    claim: &Claim,
    open: &[Owned],
    grace: Duration,
    now: SystemTime,
) -> Result<Swept, ValidateError> {
    let (bucket, tenant) = (&**claim.bucket(), claim.tenant());
    let mut swept = Swept::default();
    for Owned { timeline, index, held } in open {
        claim.validate().await?;
        let mut found =
            find_orphans(bucket, tenant, *timeline, claim.generation(), Some(index), grace, now).await?;
        found.orphans.retain(|path| !held.contains(path));
        delete_orphans(claim, &found.orphans).await?;
        swept.append(found);
    }
    for timeline in deletion::buried(bucket, tenant).await? {
        if open.iter().all(|open| open.timeline != timeline) && deletion::has_remains(claim, timeline).await?
        {
            deletion::delete_timeline_data(claim, timeline).await?;
        }
    }
    Ok(swept)
}

async fn all_below(bucket: &dyn Bucket, prefix: &str) -> Result<Vec<ListedObject>, BucketError> {
    Ok(list_all(bucket, ListRequest { prefix, ..ListRequest::default() }).await?.objects)
}
