//! Who owns a tenant shard: claims in the bucket.
//!
//! An owner creates `palimpsest/claims/<tenant shard>/<generation>` before it reads any index; creation of an existing one fails, so no
//! two owners have the same generation. Before an owner deletes, reports to a source or acknowledges a change it *validates*: it lists
//! the claims from its own on. Its own and nothing above it must come back. A newer owner claims before it reads, so what the older one
//! wrote before a clean listing is what the newer one reads.
//!
//! The body of a claim is JSON: `{"version": 1, "nonce": "<32 hexadecimal digits>", "claimed_by": "<host>:<process id>"}`. The nonce tells
//! an owner whose answer was lost that the claim in its way is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use model::{Generation, TenantShardId};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::object_path::{ObjectPath, claims_prefix, index_prefix, timelines_prefix};
use crate::ports::{Body, Bucket, BucketError, ListRequest, PutIf};

/// So many others may claim a generation just before us until we give up.
const TAKE_ATTEMPTS: usize = 100;

/// Timelines whose indexes are looked for at once while a claim is taken.
const INDEX_LISTINGS: usize = 16;

/// Ownership of a tenant shard in one generation. Cheap to clone. Never taken again by itself: superseded, a process stops.
#[derive(Clone)]
pub struct Claim {
    inner: Arc<Inner>,
}

struct Inner {
    bucket: Arc<dyn Bucket>,
    tenant: TenantShardId,
    generation: Generation,
    /// Counts calls to validate.
    arrivals: AtomicU64,
    /// The last arrival that came before the start of a listing that came back clean. A queue as well as a value: who waits for it learns
    /// whether the listing just made began late enough to speak for it too. So any number of callers need two listings at a time.
    validated: Mutex<u64>,
    superseded: CancellationToken,
    /// Set before `superseded` is.
    superseded_by: std::sync::OnceLock<Generation>,
}

#[derive(Serialize, Deserialize)]
struct ClaimBody {
    version: u32,
    nonce: String,
    claimed_by: String,
}

/// Why a claim could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeClaimError {
    /// It is gone for good.
    #[error("tenant {0} was deleted")]
    Deleted(TenantShardId),
    /// Another owner claimed a higher generation right after us.
    #[error("tenant {tenant} was claimed in generation {by} while generation {own} was being taken")]
    Superseded {
        /// Whose.
        tenant: TenantShardId,
        /// What we took.
        own: Generation,
        /// What another took.
        by: Generation,
    },
    /// Others kept being faster.
    #[error("tenant {0} is being claimed by many processes at once")]
    Contended(TenantShardId),
    /// The highest possible generation is in use.
    #[error("tenant {0} has no generation left")]
    Exhausted(TenantShardId),
    /// The claim was there and is not any more.
    #[error(transparent)]
    Validate(Box<ValidateError>),
    /// The object store failed.
    #[error("cannot claim the tenant")]
    Bucket(#[from] BucketError),
}

/// Why a claim is not, or may not be, the newest.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// There is a newer owner.
    #[error("generation {own} of tenant {tenant} is superseded by generation {by}")]
    Superseded {
        /// Whose.
        tenant: TenantShardId,
        /// Ours.
        own: Generation,
        /// The newer one; [`Generation::DELETED`] when the tenant is being deleted.
        by: Generation,
    },
    /// Our own claim is not there, so a listing without newer ones proves nothing.
    #[error(
        "our own claim {path} is missing from the bucket: something deletes objects under palimpsest/claims/, such as a lifecycle rule; \
         remove it"
    )]
    Missing {
        /// Where it was.
        path: String,
    },
    /// The listing failed: nothing is known.
    #[error("cannot list the claims")]
    Bucket(#[from] BucketError),
}

impl Claim {
    /// Takes the generation after the highest that any claim or index in the bucket has, once.
    pub async fn take(bucket: Arc<dyn Bucket>, tenant: TenantShardId) -> Result<Claim, TakeClaimError> {
        let mut highest = highest_index_generation(&*bucket, tenant).await?;
        let nonce = hex::encode(rand::random::<u128>().to_be_bytes());
        let body = body_of_claim(&nonce);
        for _ in 0..TAKE_ATTEMPTS {
            let claims = list_claims(&*bucket, tenant, None).await?;
            if claims.last() == Some(&Generation::DELETED) {
                return Err(TakeClaimError::Deleted(tenant));
            }
            highest = highest.max(claims.last().copied());
            let generation = match highest {
                None => Generation(1),
                Some(highest) => highest.next().ok_or(TakeClaimError::Exhausted(tenant))?,
            };
            if create(&*bucket, tenant, generation, &body, &nonce).await? {
                let claim = Claim::new(bucket, tenant, generation);
                // Another may have listed before our claim was there, or the tenant may be being deleted.
                return match claim.validate().await {
                    Ok(()) => Ok(claim),
                    Err(ValidateError::Superseded { by: Generation::DELETED, .. }) => {
                        Err(TakeClaimError::Deleted(tenant))
                    }
                    Err(ValidateError::Superseded { tenant, own, by }) => {
                        Err(TakeClaimError::Superseded { tenant, own, by })
                    }
                    Err(ValidateError::Bucket(error)) => Err(error.into()),
                    Err(error) => Err(TakeClaimError::Validate(Box::new(error))),
                };
            }
            highest = Some(generation);
        }
        Err(TakeClaimError::Contended(tenant))
    }

    fn new(bucket: Arc<dyn Bucket>, tenant: TenantShardId, generation: Generation) -> Claim {
        Claim {
            inner: Arc::new(Inner {
                bucket,
                tenant,
                generation,
                arrivals: AtomicU64::new(0),
                validated: Mutex::new(0),
                superseded: CancellationToken::new(),
                superseded_by: std::sync::OnceLock::new(),
            }),
        }
    }

    /// Whose.
    pub fn tenant(&self) -> TenantShardId {
        self.inner.tenant
    }

    /// As which owner.
    pub fn generation(&self) -> Generation {
        self.inner.generation
    }

    /// The bucket that it is in.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.inner.bucket
    }

    /// Is cancelled once a newer owner was seen. Then nothing may be deleted, reported or acknowledged any more.
    pub fn superseded(&self) -> &CancellationToken {
        &self.inner.superseded
    }

    /// Asks the bucket whether this is still the newest owner. `Ok` speaks for the time at which the call began: what was put before the
    /// call is seen by any newer owner. Callers that come at once share listings.
    pub async fn validate(&self) -> Result<(), ValidateError> {
        let inner = &*self.inner;
        self.check_superseded()?;
        let arrival = inner.arrivals.fetch_add(1, Ordering::SeqCst) + 1;
        let mut validated = inner.validated.lock().await;
        self.check_superseded()?;
        if *validated >= arrival {
            return Ok(());
        }
        let covered = inner.arrivals.load(Ordering::SeqCst);
        let claims = list_claims(&*inner.bucket, inner.tenant, Some(inner.generation)).await?;
        match claims.last() {
            Some(newest) if *newest > inner.generation => {
                let _ = inner.superseded_by.set(*newest);
                inner.superseded.cancel();
                self.check_superseded()
            }
            Some(_) => {
                *validated = covered;
                Ok(())
            }
            None => Err(ValidateError::Missing {
                path: ObjectPath::Claim { tenant: inner.tenant, generation: inner.generation }.to_string(),
            }),
        }
    }

    fn check_superseded(&self) -> Result<(), ValidateError> {
        match self.inner.superseded_by.get() {
            None => Ok(()),
            Some(by) => Err(ValidateError::Superseded {
                tenant: self.inner.tenant,
                own: self.inner.generation,
                by: *by,
            }),
        }
    }
}

fn body_of_claim(nonce: &str) -> Bytes {
    // For people who look at it; nothing depends on it.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let claimed_by = format!("{}:{}", host.trim(), std::process::id());
    let body = ClaimBody { version: 1, nonce: nonce.into(), claimed_by };
    serde_json::to_vec(&body).expect("a struct of strings and numbers is JSON").into()
}

/// Creates a claim. Answers whether it is ours; a claim in the way with our nonce is ours too, its first answer was lost.
pub(crate) async fn create(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    generation: Generation,
    body: &Bytes,
    nonce: &str,
) -> Result<bool, BucketError> {
    let path = ObjectPath::Claim { tenant, generation }.to_string();
    match bucket.put(&path, Body::Bytes(body.clone()), PutIf::Absent).await {
        Ok(_) => Ok(true),
        Err(BucketError::Precondition(_)) => {
            let found = bucket.get(&path, None).await?;
            Ok(serde_json::from_slice::<ClaimBody>(&found.bytes).is_ok_and(|claim| claim.nonce == nonce))
        }
        Err(error) => Err(error),
    }
}

/// Creates the claim that deletes a tenant, if it is not there.
pub(crate) async fn create_deleted(bucket: &dyn Bucket, tenant: TenantShardId) -> Result<(), BucketError> {
    let nonce = hex::encode(rand::random::<u128>().to_be_bytes());
    // Whoever created it, the tenant is deleted.
    create(bucket, tenant, Generation::DELETED, &body_of_claim(&nonce), &nonce).await.map(drop)
}

/// The claims of a tenant shard, ascending; with `from`, only that and those above it.
pub(crate) async fn list_claims(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    from: Option<Generation>,
) -> Result<Vec<Generation>, BucketError> {
    let prefix = claims_prefix(tenant);
    // `after` excludes: the generation before ours brings our own back.
    let mut after = from
        .and_then(|from| from.0.checked_sub(1))
        .map(|before| ObjectPath::Claim { tenant, generation: Generation(before) }.to_string());
    let mut claims = Vec::new();
    loop {
        let request = ListRequest { prefix: &prefix, after: after.as_deref(), ..ListRequest::default() };
        let page = bucket.list(request).await?;
        for object in page.objects {
            if let Ok(ObjectPath::Claim { generation, .. }) = object.path.parse() {
                claims.push(generation);
            } else {
                tracing::warn!(path = object.path, "an object that is no claim lies among the claims");
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    claims.sort_unstable();
    claims.retain(|claim| from.is_none_or(|from| *claim >= from));
    Ok(claims)
}

/// The highest generation of any index of the tenant shard: a pageserver that writes no claims may have owned it.
async fn highest_index_generation(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<Option<Generation>, BucketError> {
    let timelines = list_timeline_prefixes(bucket, tenant).await?;
    futures::stream::iter(timelines)
        .map(|timeline| async move {
            let prefix = index_prefix(tenant, timeline);
            let mut highest = None;
            let mut after: Option<String> = None;
            loop {
                let request =
                    ListRequest { prefix: &prefix, after: after.as_deref(), ..ListRequest::default() };
                let page = bucket.list(request).await?;
                for object in &page.objects {
                    if let Ok(ObjectPath::Index { generation, .. }) = object.path.parse() {
                        highest = highest.max(generation);
                    }
                }
                match page.next {
                    Some(next) => after = Some(next),
                    None => return Ok(highest),
                }
            }
        })
        .buffer_unordered(INDEX_LISTINGS)
        .try_fold(None, |a: Option<Generation>, b| async move { Ok(a.max(b)) })
        .await
}

/// The timelines that have any object in Neon's layout, in order.
pub(crate) async fn list_timeline_prefixes(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<Vec<model::TimelineId>, BucketError> {
    let prefix = timelines_prefix(tenant);
    let mut timelines = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let request = ListRequest {
            prefix: &prefix,
            after: after.as_deref(),
            delimiter: true,
            ..ListRequest::default()
        };
        let page = bucket.list(request).await?;
        for folder in &page.prefixes {
            if let Ok(timeline) = folder[prefix.len()..].trim_end_matches('/').parse() {
                timelines.push(timeline);
            } else {
                tracing::warn!(folder, "a folder that is no timeline lies among the timelines");
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(timelines),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::bucket::faulty::{Fault, FaultyBucket, Operation, held};

    fn tenant() -> TenantShardId {
        "00112233445566778899aabbccddeeff".parse().unwrap()
    }

    fn faulty() -> (Arc<FaultyBucket>, Arc<dyn Bucket>) {
        let bucket = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        (bucket.clone(), bucket)
    }

    fn path(generation: u32) -> String {
        ObjectPath::Claim { tenant: tenant(), generation: Generation(generation) }.to_string()
    }

    async fn put(bucket: &dyn Bucket, path: &str) {
        bucket.put(path, Body::Bytes(Bytes::from_static(b"{}")), PutIf::Absent).await.unwrap();
    }

    #[tokio::test]
    async fn each_owner_has_the_next_generation_and_supersedes_the_one_before() {
        let (_, bucket) = faulty();
        let first = Claim::take(bucket.clone(), tenant()).await.unwrap();
        assert_eq!(first.generation(), Generation(1));
        first.validate().await.unwrap();
        let second = Claim::take(bucket, tenant()).await.unwrap();
        assert_eq!(second.generation(), Generation(2));
        second.validate().await.unwrap();
        assert!(!first.superseded().is_cancelled());
        assert!(matches!(
            first.validate().await,
            Err(ValidateError::Superseded { by: Generation(2), own: Generation(1), .. })
        ));
        assert!(first.superseded().is_cancelled());
    }

    #[tokio::test]
    async fn an_owner_that_was_superseded_once_stays_superseded_without_asking() {
        let (faulty, bucket) = faulty();
        let claim = Claim::take(bucket.clone(), tenant()).await.unwrap();
        put(&*bucket, &path(9)).await;
        assert!(claim.validate().await.is_err());
        bucket.delete(&[path(9)]).await.unwrap();
        let asked = faulty.requests().len();
        assert!(matches!(claim.validate().await, Err(ValidateError::Superseded { .. })));
        assert_eq!(faulty.requests().len(), asked);
    }

    #[tokio::test]
    async fn a_missing_own_claim_is_not_taken_for_the_absence_of_newer_ones() {
        let (_, bucket) = faulty();
        let claim = Claim::take(bucket.clone(), tenant()).await.unwrap();
        bucket.delete(&[path(1)]).await.unwrap();
        let error = claim.validate().await.unwrap_err();
        assert!(matches!(error, ValidateError::Missing { .. }));
        assert!(error.to_string().contains("lifecycle rule"));
        put(&*bucket, &path(2)).await;
        assert!(matches!(claim.validate().await, Err(ValidateError::Superseded { .. })));
    }

    #[tokio::test]
    async fn a_listing_that_fails_validates_nothing() {
        let (faulty, bucket) = faulty();
        let claim = Claim::take(bucket, tenant()).await.unwrap();
        faulty.once(Operation::List, "claims", Fault::Fail);
        assert!(matches!(claim.validate().await, Err(ValidateError::Bucket(_))));
        assert!(!claim.superseded().is_cancelled());
        claim.validate().await.unwrap();
    }

    #[tokio::test]
    async fn a_claim_whose_answer_was_lost_is_recognised_as_our_own() {
        let memory: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let body = body_of_claim("aa");
        assert!(create(&*memory, tenant(), Generation(5), &body, "aa").await.unwrap());
        assert!(create(&*memory, tenant(), Generation(5), &body, "aa").await.unwrap());
        let other = body_of_claim("bb");
        assert!(!create(&*memory, tenant(), Generation(5), &other, "bb").await.unwrap());
    }

    #[tokio::test]
    async fn of_many_that_claim_at_once_no_two_have_the_same_generation_and_at_most_one_is_valid() {
        let (_, bucket) = faulty();
        let takers = (0..8).map(|_| tokio::spawn(Claim::take(bucket.clone(), tenant())));
        let mut taken = Vec::new();
        for result in futures::future::join_all(takers).await {
            match result.unwrap() {
                Ok(claim) => taken.push(claim),
                Err(error) => assert!(matches!(error, TakeClaimError::Superseded { .. }), "{error}"),
            }
        }
        let mut generations: Vec<_> = taken.iter().map(Claim::generation).collect();
        generations.sort_unstable();
        generations.dedup();
        assert_eq!(generations.len(), taken.len());
        let mut valid = 0;
        for claim in &taken {
            valid += usize::from(claim.validate().await.is_ok());
        }
        assert_eq!(valid, 1);
    }

    #[tokio::test]
    async fn a_slow_taker_goes_above_those_that_were_faster() {
        let (faulty, bucket) = faulty();
        let (gate, mut slow) = held();
        faulty.once(Operation::Put, "claims", Fault::Hold(gate));
        let late = tokio::spawn(Claim::take(bucket.clone(), tenant()));
        slow.arrived().await;
        // The other got generation 1 too early for us to see; then a third came.
        let newer = Claim::take(bucket.clone(), tenant()).await.unwrap();
        let newest = Claim::take(bucket.clone(), tenant()).await.unwrap();
        slow.release();
        let late = late.await.unwrap().unwrap();
        assert_eq!(late.generation(), Generation(3), "generation 1 was taken, and 2 too");
        assert!(newer.validate().await.is_err() && newest.validate().await.is_err());
    }

    #[tokio::test]
    async fn a_deleted_tenant_cannot_be_claimed_nor_by_one_that_listed_before_the_deletion() {
        let (faulty, bucket) = faulty();
        let (gate, mut slow) = held();
        faulty.once(Operation::Put, "claims", Fault::Hold(gate));
        let taker = tokio::spawn(Claim::take(bucket.clone(), tenant()));
        slow.arrived().await;
        create_deleted(&*bucket, tenant()).await.unwrap();
        slow.release();
        assert!(matches!(taker.await.unwrap(), Err(TakeClaimError::Deleted(_))));
        assert!(matches!(Claim::take(bucket, tenant()).await, Err(TakeClaimError::Deleted(_))));
    }

    #[tokio::test]
    async fn an_index_of_an_owner_without_claims_counts() {
        let (_, bucket) = faulty();
        let timeline = "ffeeddccbbaa99887766554433221100".parse().unwrap();
        let index = |generation| {
            ObjectPath::Index { tenant: tenant(), timeline, generation: Some(Generation(generation)) }
                .to_string()
        };
        put(&*bucket, &index(0x10)).await;
        put(&*bucket, &index(0x9)).await;
        assert_eq!(Claim::take(bucket, tenant()).await.unwrap().generation(), Generation(0x11));
    }

    #[tokio::test]
    async fn generations_end_before_the_one_that_deletes() {
        let (_, bucket) = faulty();
        put(&*bucket, &path(Generation::LAST_OWNER.0)).await;
        assert!(matches!(Claim::take(bucket, tenant()).await, Err(TakeClaimError::Exhausted(_))));
    }

    #[tokio::test]
    async fn callers_that_come_while_a_listing_runs_share_the_next_one_and_not_that_one() {
        let (faulty, bucket) = faulty();
        let claim = Claim::take(bucket.clone(), tenant()).await.unwrap();
        let (gate, mut first_list) = held();
        faulty.once(Operation::List, "claims", Fault::Hold(gate));
        let before = faulty.count(Operation::List, "claims");
        let validate = |claim: Claim| tokio::spawn(async move { claim.validate().await });
        let first = validate(claim.clone());
        first_list.arrived().await;
        let others: Vec<_> = (0..10).map(|_| validate(claim.clone())).collect();
        tokio::task::yield_now().await;
        first_list.release();
        first.await.unwrap().unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert_eq!(faulty.count(Operation::List, "claims") - before, 2);
    }
}
