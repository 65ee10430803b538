//! Deleting what nothing names: as an owner, who alone may.
//!
//! The tenant is claimed first. From then on nobody who counts changes it, a server that had it on its own ends, and this owner's own index of a timeline,
//! in the bucket and validated, says what of older generations is still needed. What it does not name goes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use engine::claim::{Claim, claimed_by, last_claim};
use engine::deletion::{buried, delete_tenant_data, delete_timeline_data};
use engine::index_keeper::IndexKeeper;
use engine::index_store::{IndexStore, LoadIndexError};
use engine::ports::Bucket;
use engine::sweep::{delete_orphans, find_orphans};
use model::{Generation, TenantShardId, TimelineId};

use super::look::{Waste, inherited_wal, is_ours, named_by_other_shards, timeline_ids};

/// What was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Deleted {
    /// Objects.
    pub objects: u64,
    /// Bytes of those that nothing named.
    pub orphan_bytes: u64,
    /// Timelines of which nothing could be deleted, and why.
    pub left_alone: Vec<String>,
}

/// Whether the tenant may be claimed from whoever has it.
pub async fn check_owner(bucket: &dyn Bucket, tenant: TenantShardId, take_over: bool) -> Result<()> {
    let Some((generation, _)) = last_claim(bucket, tenant).await? else { return Ok(()) };
    if let Some(owner) = claimed_by(bucket, tenant, generation).await?
        && !take_over
    {
        bail!(
            "an operator gave tenant {tenant} to pod {} of pool {} (generation {generation}): nothing of it is deleted. Pageservers delete orphans by \
             themselves; if there is no operator any more, --take-over takes the tenant from it",
            owner.pod,
            owner.pool_uid
        );
    }
    Ok(())
}

/// Deletes what `waste` speaks of.
pub async fn clean(
    bucket: &Arc<dyn Bucket>,
    waste: &Waste,
    take_over: bool,
    grace: Duration,
    now: SystemTime,
    deleted: &mut Deleted,
) -> Result<()> {
    let tenant = waste.tenant;
    if waste.last_claim == Some(Generation::DELETED) {
        // Whoever began that was the last to decide anything about it.
        deleted.objects += delete_tenant_data(&**bucket, tenant).await? as u64;
        return Ok(());
    }
    check_owner(&**bucket, tenant, take_over).await?;
    let shared = named_by_other_shards(bucket, tenant).await?;
    let claim = Claim::take(Arc::clone(bucket), tenant).await.context("cannot claim the tenant")?;
    eprintln!(
        "tenant {tenant} is claimed in generation {}: whoever had it before has lost it",
        claim.generation()
    );
    let store = IndexStore::new(&claim);
    let dead = buried(&**bucket, tenant).await?;
    for timeline in dead.iter().copied() {
        deleted.objects += delete_timeline_data(&claim, timeline).await? as u64;
    }
    for timeline in timeline_ids(&**bucket, tenant).await?.difference(&dead).copied() {
        match clean_timeline(&claim, &store, timeline, &shared, grace, now, deleted).await? {
            None => {}
            Some(why) => deleted.left_alone.push(format!("timeline {timeline} of tenant {tenant}: {why}")),
        }
    }
    Ok(())
}

/// Answers why nothing could be deleted, if so.
async fn clean_timeline(
    claim: &Claim,
    store: &IndexStore,
    timeline: TimelineId,
    shared: &BTreeSet<String>,
    grace: Duration,
    now: SystemTime,
    deleted: &mut Deleted,
) -> Result<Option<String>> {
    let (bucket, tenant) = (&**claim.bucket(), claim.tenant());
    let found = match store.find(timeline).await {
        Ok(found) => found,
        Err(LoadIndexError::Bucket { source, .. }) => return Err(source.into()),
        Err(error) => return Ok(Some(engine::error_story::error_story(&error))),
    };
    let index = match found {
        None => None,
        Some(found) if found.index.deleted_at.is_some() => {
            let children = match store.children(timeline).await {
                Ok(children) => children,
                Err(LoadIndexError::Bucket { source, .. }) => return Err(source.into()),
                Err(error) => return Ok(Some(engine::error_story::error_story(&error))),
            };
            if let Some(child) = children.first() {
                return Ok(Some(format!("it is to be deleted, but timeline {child} goes on from it")));
            }
            deleted.objects += delete_timeline_data(claim, timeline).await? as u64;
            return Ok(None);
        }
        Some(found) if !is_ours(&found.index) => {
            return Ok(Some("its index is Neon's, which is not written here".into()));
        }
        Some(found) if found.index.palimpsest.as_ref().is_some_and(|ours| ours.import.is_some()) => {
            return Ok(Some("its import has not ended: whoever asked for it asks again".into()));
        }
        Some(found) => {
            let run = match inherited_wal(bucket, tenant, timeline, &found).await {
                Ok(run) => run,
                Err(error) => return Ok(Some(format!("{error:#}"))),
            };
            // What an owner does that goes on with it: its own index, which names the WAL that still counts.
            let keeper = IndexKeeper::new(claim.clone(), timeline, found);
            keeper.inherit(&run).await.context("cannot store the index")?;
            claim.validate().await?;
            Some(keeper.part().await)
        }
    };
    let mut found =
        find_orphans(bucket, tenant, timeline, claim.generation(), index.as_deref(), grace, now).await?;
    found.orphans.retain(|path| !shared.contains(path));
    delete_orphans(claim, &found.orphans).await?;
    deleted.objects += found.orphans.len() as u64;
    deleted.orphan_bytes += found.bytes;
    Ok(None)
}
