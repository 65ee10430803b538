//! Looking at everything in a bucket, as the newest owner of each tenant would.
//!
//! A server may be at work meanwhile. What it replaced between a look at the index and a look at a layer is asked for again before it is called missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use codec::heatmap::HeatMap;
use codec::index_part::IndexPart;
use codec::tenant_manifest::TenantManifest;
use codec::wal_object;
use engine::claim::last_claim;
use engine::deletion::buried;
use engine::error_story::error_story;
use engine::index_keeper::wishes_of;
use engine::index_store::{FoundIndex, IndexStore, LoadIndexError};
use engine::listing::list_all;
use engine::object_path::{
    ObjectPath, claims_prefix, config_prefix, tenant_prefix, tenant_wal_prefix, timelines_prefix, wal_prefix,
};
use engine::onlooker::snapshot;
use engine::ports::{Bucket, BucketError, ListRequest, ListedObject};
use engine::stored_wal::{StoredWal, list_wal, wal_path};
use engine::sweep::{Swept, find_orphans};
use engine::tenant::TenantConfig;
use engine::wal_run::{WalHistory, check_overlap, contiguous_run};
use futures::StreamExt as _;
use model::{Generation, Key, LayerName, Lsn, TenantId, TenantShardId, TimelineId};

use super::finding::{Finding, Kind};
use super::layer::{Checked, check_layer, layer_path};
use crate::buckets;

/// What to look at, and how.
pub struct Look {
    /// Where.
    pub bucket: Arc<dyn Bucket>,
    /// Only this tenant.
    pub tenant: Option<TenantId>,
    /// Layers looked at at once: memory is theirs.
    pub jobs: usize,
    /// What nothing names is an orphan when it is so old.
    pub grace: Duration,
    /// Now.
    pub now: SystemTime,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Tenant shards.
    pub tenants: u64,
    /// Timelines.
    pub timelines: u64,
    /// Layers.
    pub layers: u64,
    /// Their bytes.
    pub layer_bytes: u64,
    /// Values in them.
    pub values: u64,
    /// WAL objects.
    pub wal_objects: u64,
    /// Objects that nothing names and that are too young to be called orphans.
    pub young: u64,
    /// Objects that nothing names in the index of the present owner, which alone knows what it needs them for.
    pub of_present_owner: u64,
}

/// What a tenant shard's owner would have to do.
pub struct Waste {
    /// Whose.
    pub tenant: TenantShardId,
    /// The highest claim there is; `None` when nobody ever claimed it.
    pub last_claim: Option<Generation>,
    /// Something lies about that an owner of the next generation would delete.
    pub is_any: bool,
}

/// Takes findings as they come, and what was looked at so far.
pub trait Report {
    /// Something is wrong.
    fn found(&mut self, finding: Finding);
    /// So far so much was looked at.
    fn progress(&mut self, at: &str, totals: &Totals);
}

/// Every tenant shard that has objects.
pub async fn tenants(
    bucket: &dyn Bucket,
    only: Option<TenantId>,
) -> Result<BTreeSet<TenantShardId>, BucketError> {
    let mut found = BTreeSet::new();
    for prefix in
        ["tenants/", "palimpsest/claims/", "palimpsest/wal/", "palimpsest/tombstones/", "palimpsest/config/"]
    {
        let folders = folders(bucket, prefix).await?;
        let shards = folders.iter().filter_map(|name| name.parse::<TenantShardId>().ok());
        found.extend(shards.filter(|shard| only.is_none_or(|only| shard.tenant == only)));
    }
    Ok(found)
}

/// Names of folders directly below a prefix.
async fn folders(bucket: &dyn Bucket, prefix: &str) -> Result<Vec<String>, BucketError> {
    let request = ListRequest { prefix, delimiter: true, ..ListRequest::default() };
    let folders = list_all(bucket, request).await?.prefixes;
    Ok(folders.iter().map(|name| name[prefix.len()..].trim_end_matches('/').to_owned()).collect())
}

/// Objects directly below a prefix, or, without a delimiter, anywhere below it.
async fn objects(
    bucket: &dyn Bucket,
    prefix: &str,
    delimiter: bool,
) -> Result<Vec<ListedObject>, BucketError> {
    let all = list_all(bucket, ListRequest { prefix, delimiter, ..ListRequest::default() }).await?;
    Ok(all.objects)
}

async fn has_any(bucket: &dyn Bucket, prefix: &str) -> Result<bool, BucketError> {
    let page = bucket.list(ListRequest { prefix, limit: Some(1), ..ListRequest::default() }).await?;
    Ok(!page.objects.is_empty())
}

/// One tenant shard while it is being looked at.
struct Shard<'a> {
    look: &'a Look,
    tenant: TenantShardId,
    report: &'a mut dyn Report,
    totals: &'a mut Totals,
}

/// Looks at one tenant shard.
pub async fn look_at(
    options: &Look,
    tenant: TenantShardId,
    totals: &mut Totals,
    report: &mut dyn Report,
) -> Result<Waste> {
    totals.tenants += 1;
    let bucket = &*options.bucket;
    let last =
        last_claim(bucket, tenant).await.context("cannot list claims")?.map(|(generation, _)| generation);
    let mut shard = Shard { look: options, tenant, report, totals };
    if last == Some(Generation::DELETED) {
        let is_any = shard.remains_of_tenant().await?;
        return Ok(Waste { tenant, last_claim: last, is_any });
    }
    shard.small_objects().await?;
    let is_any = shard.timelines(last).await?;
    Ok(Waste { tenant, last_claim: last, is_any })
}

impl Shard<'_> {
    fn bucket(&self) -> &dyn Bucket {
        &*self.look.bucket
    }

    fn found(
        &mut self,
        kind: Kind,
        timeline: Option<TimelineId>,
        object: impl Into<String>,
        what: impl Into<String>,
    ) {
        let (tenant, object, what) = (self.tenant, object.into(), what.into());
        self.report.found(Finding { kind, tenant, timeline, object, what });
    }

    async fn remains_of_tenant(&mut self) -> Result<bool> {
        let mut is_any = false;
        for prefix in [tenant_prefix(self.tenant), tenant_wal_prefix(self.tenant), config_prefix(self.tenant)]
        {
            if has_any(self.bucket(), &prefix).await? {
                is_any = true;
                self.found(
                    Kind::Remains,
                    None,
                    prefix,
                    "the tenant was deleted, its objects are still there",
                );
            }
        }
        Ok(is_any)
    }

    /// Claims, settings, and what lies beside the timelines.
    async fn small_objects(&mut self) -> Result<()> {
        for object in objects(self.bucket(), &claims_prefix(self.tenant), false).await? {
            let Ok(ObjectPath::Claim { .. }) = object.path.parse() else {
                self.found(Kind::Unknown, None, object.path, "lies among the claims and is none");
                continue;
            };
            self.check_json::<ClaimText>(Kind::MalformedClaim, &object.path).await?;
        }
        for object in objects(self.bucket(), &config_prefix(self.tenant), false).await? {
            let Ok(ObjectPath::Config { .. }) = object.path.parse() else {
                self.found(Kind::Unknown, None, object.path, "lies among the settings and is none");
                continue;
            };
            self.check_json::<TenantConfig>(Kind::MalformedConfig, &object.path).await?;
        }
        for object in objects(self.bucket(), &tenant_prefix(self.tenant), true).await? {
            let name = object.path.rsplit('/').next().unwrap_or_default();
            if name == "heatmap-v1.json" {
                self.check_json::<HeatMap>(Kind::MalformedHeatMap, &object.path).await?;
            } else if matches!(object.path.parse(), Ok(ObjectPath::Manifest { .. })) {
                self.check_json::<TenantManifest>(Kind::MalformedManifest, &object.path).await?;
            } else {
                self.found(Kind::Unknown, None, object.path, "its name is not ours");
            }
        }
        Ok(())
    }

    async fn check_json<T: for<'de> serde::Deserialize<'de>>(
        &mut self,
        kind: Kind,
        path: &str,
    ) -> Result<()> {
        match self.bucket().get(path, None).await {
            Ok(object) => {
                if let Err(error) = serde_json::from_slice::<T>(&object.bytes) {
                    self.found(kind, None, path, error.to_string());
                }
                Ok(())
            }
            // Replaced or cleaned meanwhile.
            Err(BucketError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All timelines. Answers whether there is something to be deleted.
    async fn timelines(&mut self, last: Option<Generation>) -> Result<bool> {
        let store =
            IndexStore::as_of_generation(Arc::clone(&self.look.bucket), self.tenant, Generation::LAST_OWNER);
        let dead = buried(self.bucket(), self.tenant).await?;
        let ids = timeline_ids(self.bucket(), self.tenant).await?;
        let mut is_any = false;
        let mut indexes: BTreeMap<TimelineId, FoundIndex> = BTreeMap::new();
        let mut malformed: BTreeSet<TimelineId> = BTreeSet::new();
        for id in ids.difference(&dead).copied() {
            match store.find(id).await {
                Ok(Some(found)) => drop(indexes.insert(id, found)),
                Ok(None) | Err(LoadIndexError::Buried(_)) => {}
                Err(LoadIndexError::Malformed { path, source }) => {
                    self.found(Kind::MalformedIndex, Some(id), path, error_story(&source));
                    malformed.insert(id);
                }
                Err(error @ LoadIndexError::Bucket { .. }) => return Err(error.into()),
            }
        }
        for id in ids.intersection(&dead) {
            is_any = true;
            let what = "the timeline was deleted, objects of it are still there";
            self.found(
                Kind::Remains,
                Some(*id),
                engine::object_path::timeline_prefix(self.tenant, *id),
                what,
            );
        }
        let mut branch_points: BTreeMap<TimelineId, Vec<(TimelineId, Lsn)>> = BTreeMap::new();
        for (id, found) in &indexes {
            self.totals.timelines += 1;
            if let Some((ancestor, at)) = self.check_ancestor(*id, found, &indexes, &malformed, &dead).await?
            {
                branch_points.entry(ancestor).or_default().push((*id, at));
            }
            if found.index.deleted_at.is_some() {
                is_any = true;
                let path = index_path(self.tenant, *id, found.generation);
                self.found(
                    Kind::UnfinishedDeletion,
                    Some(*id),
                    path,
                    "the timeline is to be deleted, and is still there",
                );
                continue;
            }
            self.check_layers(&store, *id, found).await?;
            self.check_wal(&store, *id, found).await?;
        }
        self.check_branch_points(&indexes, &branch_points).await?;
        for id in ids.difference(&dead).filter(|id| !malformed.contains(id)) {
            is_any |= self.orphans(*id, indexes.get(id), last).await?;
        }
        Ok(is_any)
    }

    /// Answers where it begins, if that is in layers of its ancestor.
    async fn check_ancestor(
        &mut self,
        id: TimelineId,
        found: &FoundIndex,
        indexes: &BTreeMap<TimelineId, FoundIndex>,
        malformed: &BTreeSet<TimelineId>,
        dead: &BTreeSet<TimelineId>,
    ) -> Result<Option<(TimelineId, Lsn)>> {
        let metadata = found.index.metadata();
        let Some(ancestor) = metadata.ancestor_timeline else { return Ok(None) };
        let at = metadata.ancestor_lsn;
        let path = index_path(self.tenant, id, found.generation);
        if malformed.contains(&ancestor) {
            return Ok(None); // that one was told
        }
        let Some(parent) = indexes.get(&ancestor) else {
            let (kind, what) = if dead.contains(&ancestor) {
                (Kind::DeletedAncestor, "was deleted")
            } else {
                (Kind::MissingAncestor, "is not in the bucket")
            };
            self.found(
                kind,
                Some(id),
                path,
                format!("timeline {ancestor}, which it goes on from at {at}, {what}"),
            );
            return Ok(None);
        };
        if parent.index.deleted_at.is_some() {
            let what = format!("timeline {ancestor}, which it goes on from at {at}, is being deleted");
            self.found(Kind::DeletedAncestor, Some(id), path, what);
            return Ok(None);
        }
        let end = self.end_of(ancestor, parent).await?;
        if at > end {
            let what = format!("it goes on from timeline {ancestor} at {at}, which ends at {end}");
            self.found(Kind::UnreadableBranchPoint, Some(id), path, what);
        }
        Ok((at <= parent.index.disk_consistent_lsn()).then_some((ancestor, at)))
    }

    /// Every cluster has a checkpoint: whether it can be read tells whether history is whole where branches begin.
    async fn check_branch_points(
        &mut self,
        indexes: &BTreeMap<TimelineId, FoundIndex>,
        branch_points: &BTreeMap<TimelineId, Vec<(TimelineId, Lsn)>>,
    ) -> Result<()> {
        if branch_points.is_empty() {
            return Ok(());
        }
        let (_folder, cache) = buckets::temporary_cache(&self.look.bucket, 16 << 20, 256 << 20)?;
        let wishes = indexes.iter().map(|(id, found)| (*id, wishes_of(&found.index))).collect();
        let index_of = |id| indexes.get(&id).map(|found| &found.index);
        for (ancestor, branches) in branch_points {
            let seen = snapshot(&self.look.bucket, &cache, self.tenant, *ancestor, &index_of, &wishes);
            for (id, at) in branches {
                let read = match &seen {
                    Ok(seen) => seen.get(Key::CHECKPOINT, *at).await.map_err(|error| error_story(&error)),
                    Err(error) => Err(error_story(error)),
                };
                let why = match read {
                    Ok(Some(_)) => continue,
                    Ok(None) => "there is no checkpoint".into(),
                    Err(why) => why,
                };
                let what =
                    format!("it goes on from timeline {ancestor} at {at}, which cannot be read there: {why}");
                let generation = indexes.get(id).and_then(|found| found.generation);
                self.found(
                    Kind::UnreadableBranchPoint,
                    Some(*id),
                    index_path(self.tenant, *id, generation),
                    what,
                );
            }
        }
        Ok(())
    }

    /// Where a timeline ends: what layers hold, and the WAL that counts.
    async fn end_of(&self, id: TimelineId, found: &FoundIndex) -> Result<Lsn> {
        let covered = found.index.disk_consistent_lsn();
        let listed = list_wal(self.bucket(), self.tenant, id).await?;
        // What is wrong with WAL is told where the timeline itself is looked at.
        let run = contiguous_run(&history_of(found), listed, covered).unwrap_or_default();
        Ok(run.last().map_or(covered, |last| last.end.max(covered)))
    }

    async fn check_layers(&mut self, store: &IndexStore, id: TimelineId, found: &FoundIndex) -> Result<()> {
        let (bucket, tenant) = (Arc::clone(&self.look.bucket), self.tenant);
        let layers =
            found.index.layer_metadata.iter().map(|(name, metadata)| {
                let path = layer_path(tenant, id, name, metadata);
                let (bucket, name, metadata) = (Arc::clone(&bucket), name.clone(), metadata.clone());
                async move {
                    (name.clone(), path.clone(), check_layer(bucket, tenant, path, name, metadata).await)
                }
            });
        let mut checks = futures::stream::iter(layers).buffer_unordered(self.look.jobs.max(1));
        let mut gone: Vec<(LayerName, String)> = Vec::new();
        while let Some((name, path, checked)) = checks.next().await {
            match checked? {
                Checked::Sound { bytes, values } => {
                    self.totals.layers += 1;
                    self.totals.layer_bytes += bytes;
                    self.totals.values += values;
                }
                Checked::Gone => gone.push((name, path)),
                Checked::Wrong(kind, what) => {
                    self.totals.layers += 1;
                    self.found(kind, Some(id), path, what);
                }
            }
            let totals = self.totals.clone();
            self.report.progress(&format!("timeline {id}"), &totals);
        }
        drop(checks);
        if !gone.is_empty() {
            // A server at work replaces layers: then its index does not name them any more.
            let now = store.find(id).await.ok().flatten();
            let still = |name: &LayerName| {
                now.as_ref().is_some_and(|now| now.index.layer_metadata.contains_key(name))
            };
            for (_, path) in gone.into_iter().filter(|(name, _)| still(name)) {
                self.found(Kind::MissingLayer, Some(id), path, "the index names it, and it is not there");
            }
        }
        Ok(())
    }

    async fn check_wal(&mut self, store: &IndexStore, id: TimelineId, found: &FoundIndex) -> Result<()> {
        let Some(ours) = &found.index.palimpsest else { return Ok(()) };
        let mut found = found.clone();
        let mut tries = 0;
        let run = loop {
            let listed = list_wal(self.bucket(), self.tenant, id).await?;
            match contiguous_run(&history_of(&found), listed, found.index.disk_consistent_lsn()) {
                Ok(run) => break run,
                // A server at work deletes what its layers cover: its newest index says so.
                Err(_) if tries == 0 => match store.find(id).await.ok().flatten() {
                    Some(newer) => (found, tries) = (newer, 1),
                    None => return Ok(()),
                },
                Err(error) => {
                    let path = wal_prefix(self.tenant, id);
                    self.found(Kind::MissingWal, Some(id), path, error.to_string());
                    return Ok(());
                }
            }
        };
        let mut before: Option<(Lsn, Vec<u8>)> = None;
        for object in &run {
            self.totals.wal_objects += 1;
            let path = wal_path(self.tenant, id, object);
            let bytes = match self.bucket().get(&path, None).await {
                Ok(read) => read.bytes,
                Err(BucketError::NotFound(_)) => continue, // covered and deleted meanwhile
                Err(error) => return Err(error.into()),
            };
            let decoded = tokio::task::spawn_blocking(move || wal_object::decode(&bytes)).await?;
            match decoded {
                Err(error) => self.found(Kind::DamagedWal, Some(id), path, error_story(&error)),
                Ok((header, raw)) => {
                    if (header.start, header.end, header.tli) != (object.start, object.end, object.tli) {
                        self.found(
                            Kind::DamagedWal,
                            Some(id),
                            path.clone(),
                            "it holds other WAL than its name says",
                        );
                    } else if header.system_id != ours.system_identifier {
                        self.found(
                            Kind::DamagedWal,
                            Some(id),
                            path.clone(),
                            "it holds another cluster's WAL",
                        );
                    } else if let Some((start, older)) = &before
                        && let Err(at) = check_overlap(*start, older, object.start, &raw)
                    {
                        let what = format!("it differs at {at} from the object before it");
                        self.found(Kind::DamagedWal, Some(id), path, what);
                    }
                    before = Some((object.start, raw));
                }
            }
        }
        Ok(())
    }

    /// Whatever nothing names of one timeline. Answers whether an owner of the next generation would delete something.
    async fn orphans(
        &mut self,
        id: TimelineId,
        found: Option<&FoundIndex>,
        last: Option<Generation>,
    ) -> Result<bool> {
        // Of the index's own generation WAL counts without being named, and only its writer knows of its layers. Without an index, the present owner may
        // just be creating the timeline.
        let own = match found {
            Some(found) => found.generation,
            None => last,
        }
        .unwrap_or(Generation(0));
        let index = found.map(|found| &found.index);
        let seen =
            |own| find_orphans(self.bucket(), self.tenant, id, own, index, self.look.grace, self.look.now);
        let swept: Swept = seen(own).await?;
        let after = seen(Generation::LAST_OWNER).await?;
        let is_layer = |path: &&String| matches!(path.parse(), Ok(ObjectPath::Layer { .. }));
        let of_present =
            after.orphans.iter().filter(is_layer).filter(|path| !swept.orphans.contains(path)).count();
        self.totals.of_present_owner += of_present as u64;
        self.totals.young += swept.young as u64;
        let is_any = !swept.orphans.is_empty() || of_present > 0;
        for path in swept.orphans {
            let kind = match path.parse() {
                Ok(ObjectPath::Index { .. }) => Kind::OldIndex,
                _ => Kind::Orphan,
            };
            let what = if kind == Kind::OldIndex { "a newer owner has its own" } else { "nothing names it" };
            self.found(kind, Some(id), path, what);
        }
        for path in swept.unknown {
            // Neon's own first image of a cluster: of no use here, and nobody's to delete.
            if !path.ends_with("/initdb.tar.zst") {
                self.found(Kind::Unknown, Some(id), path, "its name is not ours");
            }
        }
        Ok(is_any)
    }
}

fn history_of(found: &FoundIndex) -> WalHistory {
    let ours = found.index.palimpsest.as_ref();
    WalHistory {
        generation: found.generation,
        inherited: ours
            .iter()
            .flat_map(|ours| &ours.wal_objects)
            .map(|object| StoredWal {
                tli: object.tli,
                start: object.start,
                end: object.end,
                generation: object.generation,
                size: object.size,
            })
            .collect(),
        switches: ours
            .iter()
            .flat_map(|ours| &ours.tli_history)
            .map(|start| (start.tli, start.from))
            .collect(),
    }
}

fn index_path(tenant: TenantShardId, timeline: TimelineId, generation: Option<Generation>) -> String {
    ObjectPath::Index { tenant, timeline, generation }.to_string()
}

/// All that any claim says.
#[derive(serde::Deserialize)]
struct ClaimText {
    #[serde(rename = "nonce")]
    _nonce: String,
}

/// Timelines that have any object, be it only WAL.
pub async fn timeline_ids(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<BTreeSet<TimelineId>, BucketError> {
    let mut names = folders(bucket, &timelines_prefix(tenant)).await?;
    names.extend(folders(bucket, &tenant_wal_prefix(tenant)).await?);
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Layers that other shards of the tenant name under this one's prefix: after a split, a shard's children read what it wrote.
pub async fn named_by_other_shards(
    bucket: &Arc<dyn Bucket>,
    tenant: TenantShardId,
) -> Result<BTreeSet<String>> {
    let mut named = BTreeSet::new();
    for shard in tenants(&**bucket, Some(tenant.tenant)).await?.into_iter().filter(|shard| *shard != tenant) {
        let store = IndexStore::as_of_generation(Arc::clone(bucket), shard, Generation::LAST_OWNER);
        for id in store.timelines().await? {
            let Some(found) = store.find(id).await? else { continue };
            let theirs =
                found.index.layer_metadata.iter().filter(|(_, metadata)| metadata.shard == tenant.shard);
            named.extend(theirs.map(|(name, metadata)| layer_path(shard, id, name, metadata)));
        }
    }
    Ok(named)
}

/// The WAL that counts, for an owner that is about to write its own index.
pub async fn inherited_wal(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    timeline: TimelineId,
    found: &FoundIndex,
) -> Result<Vec<StoredWal>> {
    let listed = list_wal(bucket, tenant, timeline).await?;
    Ok(contiguous_run(&history_of(found), listed, found.index.disk_consistent_lsn())?)
}

/// Whether an index can be written anew by us.
pub fn is_ours(index: &IndexPart) -> bool {
    index.palimpsest.is_some()
}
