//! Heat maps: what of a tenant is near at hand, saved to the bucket, so that the next pod that has the tenant can have it near at hand too.
//!
//! A map is advice. It is put by the valid owner, and whoever writes last wins; one that cannot be read is ignored. [`record`] makes one, [`plan`]
//! makes of one what is to be fetched (pure), [`HeatMaps`] does it, for all tenants of the process.

mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use codec::heatmap::{HeatMap, HeatMapError};
use model::{Generation, TenantShardId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::plan::{Fetch, Known, Plan, plan};
use self::record::{Recorded, record};
use crate::blocking;
use crate::chunk_cache::{ChunkCache, FetchError};
use crate::claim::{Claim, ValidateError};
use crate::error_story::error_story;
use crate::layer_read::Layer;
use crate::object_path::ObjectPath;
use crate::ports::{Body, BucketError, PutIf};
use crate::tenant::{Mode, Phase, Tenant, Tenants, TimelineView};

/// How often it is looked which maps are due.
const SAVE_LOOK_EVERY: Duration = Duration::from_secs(10);

/// How often it is looked for tenants that came.
const WARM_UP_LOOK_EVERY: Duration = Duration::from_secs(1);

/// A map that is larger is not read.
const LARGEST_MAP: u64 = 32 << 20;

/// Hundredths of the disk's budget that may be filled before anybody asks.
const FILL_PERCENT: u64 = 90;

/// When and how.
#[derive(Clone, Copy, Debug)]
pub struct HeatMapPolicy {
    /// How often a tenant's map is saved, if it changed. Zero: never.
    pub period: Duration,
    /// How fast the disk is filled with what a map names, in bytes a second. Zero: not at all.
    pub warm_up_rate: u64,
}

impl Default for HeatMapPolicy {
    fn default() -> Self {
        HeatMapPolicy { period: Duration::from_mins(10), warm_up_rate: 64 << 20 }
    }
}

/// The heat maps of all tenants of a process. Cheap to clone.
#[derive(Clone)]
pub struct HeatMaps {
    tenants: Tenants,
    cache: Arc<ChunkCache>,
    policy: HeatMapPolicy,
    /// Owners that have, or will not get, what their predecessor had near at hand. Before that their own map would be poorer than that one.
    warm: Arc<Mutex<HashSet<Owner>>>,
}

/// A tenant shard as one of its owners has it.
type Owner = (TenantShardId, Generation);

fn owner(tenant: &Tenant) -> Owner {
    (tenant.shard(), tenant.claim().generation())
}

/// From 0 to 1, another one for each tenant.
fn owner_fraction(tenant: &Tenant) -> f64 {
    let mut hasher = DefaultHasher::new();
    owner(tenant).hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}

fn is_active(tenant: &Tenant) -> bool {
    tenant.hold().borrow().phase == Phase::Active && !tenant.is_deleting()
}

/// Why a map was not saved.
#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error(transparent)]
    Validate(#[from] ValidateError),
    #[error("cannot store the heat map")]
    Bucket(#[from] BucketError),
}

/// Why nothing was warmed up.
#[derive(Debug, thiserror::Error)]
enum WarmUpError {
    #[error("cannot read the heat map")]
    Bucket(#[from] BucketError),
    #[error("the heat map has {0} bytes")]
    TooLarge(u64),
    #[error("the heat map is ignored")]
    Malformed(#[from] HeatMapError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl HeatMaps {
    /// Of these tenants, which read through this cache.
    pub fn new(tenants: Tenants, cache: Arc<ChunkCache>, policy: HeatMapPolicy) -> HeatMaps {
        HeatMaps { tenants, cache, policy, warm: Arc::default() }
    }

    fn warm(&self) -> MutexGuard<'_, HashSet<Owner>> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves maps when they are due, until told to stop.
    pub async fn save(self, stop: CancellationToken) {
        if self.policy.period.is_zero() {
            return stop.cancelled().await;
        }
        let mut due: HashMap<Owner, (Instant, Option<u64>)> = HashMap::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SAVE_LOOK_EVERY) => {}
            }
            let tenants = self.tenants.attached();
            let attached: HashSet<Owner> = tenants.iter().map(|tenant| owner(tenant)).collect();
            due.retain(|owner, _| attached.contains(owner));
            self.warm().retain(|owner| attached.contains(owner));
            for tenant in tenants {
                let is_warm = self.warm().contains(&owner(&tenant));
                if !is_warm || !is_active(&tenant) || tenant.mode() != Mode::Single {
                    continue;
                }
                // Spread by the tenants' ids, which are as good as chance, so that not all come at once.
                let spread = owner_fraction(&tenant);
                let later =
                    |from: f64| Instant::now() + self.policy.period.mul_f64(from + (1.0 - from) * spread);
                let (at, known) = due.entry(owner(&tenant)).or_insert_with(|| (later(0.0), None));
                if *at > Instant::now() {
                    continue;
                }
                *at = later(0.8);
                let saved = tokio::select! {
                    biased;
                    saved = self.save_now(&tenant, *known) => saved,
                    () = stop.cancelled() => return,
                };
                match saved {
                    Ok(content) => *known = content,
                    Err(error) => {
                        debug!(tenant = %tenant.shard(), "heat map is not saved: {}", error_story(&error));
                    }
                }
            }
        }
    }

    /// Saves a tenant's map unless its content is `known`. Answers what it is now.
    async fn save_now(&self, tenant: &Tenant, known: Option<u64>) -> Result<Option<u64>, SaveError> {
        let timelines = layers_of(tenant);
        let (claim, period, now) = (tenant.claim().clone(), self.policy.period, tenant.claim().now());
        let cache = Arc::clone(&self.cache);
        let made = move || record(&timelines, claim.generation(), period, now, cache.period());
        let Ok(Recorded { map, content }) = blocking::run(made).await else { return Ok(known) };
        if map.timelines.is_empty() || known == Some(content) {
            return Ok(known);
        }
        put(tenant.claim(), &map).await?;
        Ok(Some(content))
    }

    /// Fetches what the maps of tenants that come name, one tenant after the other, until told to stop.
    pub async fn warm_up(self, stop: CancellationToken) {
        loop {
            for tenant in self.tenants.attached() {
                let is_done = self.warm().contains(&owner(&tenant));
                if is_done || !is_active(&tenant) {
                    continue;
                }
                let warmed = tokio::select! {
                    biased;
                    warmed = self.warm_up_now(&tenant) => warmed,
                    () = stop.cancelled() => return,
                };
                self.warm().insert(owner(&tenant));
                match warmed {
                    Ok(0) => {}
                    Ok(bytes) => info!(tenant = %tenant.shard(), bytes, "warmed up"),
                    Err(error) => {
                        warn!(tenant = %tenant.shard(), "not warmed up: {}", error_story(&error));
                    }
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(WARM_UP_LOOK_EVERY) => {}
            }
        }
    }

    async fn warm_up_now(&self, tenant: &Tenant) -> Result<u64, WarmUpError> {
        if self.policy.warm_up_rate == 0 {
            return Ok(0);
        }
        let Some(map) = load(tenant.claim()).await? else { return Ok(0) };
        let layers: Vec<Arc<Layer>> = layers_of(tenant).into_iter().flat_map(|(_, layers)| layers).collect();
        let goes_on = || is_active(tenant);
        fetch(&self.cache, self.policy.warm_up_rate, &map, tenant.shard(), &layers, goes_on).await
    }
}

/// Fetches what a map names of these layers, as long as it fits, whenever nobody waits for the bucket. Answers how many bytes came.
async fn fetch(
    cache: &ChunkCache,
    rate: u64,
    map: &HeatMap,
    shard: TenantShardId,
    layers: &[Arc<Layer>],
    goes_on: impl Fn() -> bool,
) -> Result<u64, WarmUpError> {
    let known: Vec<Known> = layers.iter().enumerate().filter_map(Known::of).collect();
    let Plan { fetches, heat } = plan(map, shard, &known);
    let now = cache.period();
    for (layer, heat) in heat {
        layers[layer].heat_cell().add(heat, now);
    }
    let mut bytes = 0;
    for Fetch { layer, chunks, hot } in fetches {
        cache.quiet().await;
        let fits = cache.disk_used() < cache.disk_allowed() / 100 * FILL_PERCENT;
        if !fits || !goes_on() {
            break;
        }
        let came = match layers[layer].object().warm_up(chunks, hot).await {
            // It was replaced meanwhile.
            Err(FetchError::Gone(_)) => 0,
            other => other?,
        };
        bytes += came;
        tokio::time::sleep(Duration::from_secs_f64(came as f64 / rate as f64)).await;
    }
    Ok(bytes)
}

/// The open timelines of a tenant, with their layers.
fn layers_of(tenant: &Tenant) -> record::Timelines {
    let open = tenant.views().into_iter().filter_map(|(id, view)| match view {
        TimelineView::Open(timeline) => Some((id, timeline.layers())),
        _ => None,
    });
    open.collect()
}

fn path_of(claim: &Claim) -> String {
    ObjectPath::HeatMap { tenant: claim.tenant() }.to_string()
}

/// Puts a map in place of whatever is there, as the valid owner.
async fn put(claim: &Claim, map: &HeatMap) -> Result<(), SaveError> {
    let (bucket, path) = (claim.bucket(), path_of(claim));
    claim.validate().await?;
    let condition = match bucket.head(&path).await {
        Ok(meta) => PutIf::Matches(meta.etag),
        Err(BucketError::NotFound(_)) => PutIf::Absent,
        Err(error) => return Err(error.into()),
    };
    bucket.put(&path, Body::Bytes(Bytes::from(map.to_json())), condition).await?;
    match claim.validate().await {
        // The tenant was deleted meanwhile, perhaps before our map came: anybody may finish that.
        Err(ValidateError::Superseded { by: Generation::DELETED, .. }) => Ok(bucket.delete(&[path]).await?),
        validated => Ok(validated?),
    }
}

/// The map that the last owner left, if it left one.
async fn load(claim: &Claim) -> Result<Option<HeatMap>, WarmUpError> {
    let (bucket, path) = (claim.bucket(), path_of(claim));
    let size = match bucket.head(&path).await {
        Ok(meta) => meta.size,
        Err(BucketError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if size > LARGEST_MAP {
        return Err(WarmUpError::TooLarge(size));
    }
    match bucket.get(&path, None).await {
        Ok(object) => Ok(Some(HeatMap::from_json(&object.bytes)?)),
        Err(BucketError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
