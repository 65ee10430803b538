//! Coming to a claim.
//!
//! The body of a claim is JSON: `{"version": 1, "nonce": "…", "claimed_by": "<host>:<process id>"}`, and `attached` where an operator
//! allocated the generation: which pool, pod, process and attempt. The nonce tells an owner whose answer was lost that the claim in its way is
//! its own.

use std::sync::Arc;

use bytes::Bytes;
use model::{Generation, TenantShardId};
use serde::{Deserialize, Serialize};

use super::list::{highest_index_generation, list_claims, list_dated_claims};
use super::{Claim, ValidateError};
use crate::object_path::ObjectPath;
use crate::ports::{Body, Bucket, BucketError, PutIf};

/// So many others may claim a generation just before us until we give up.
const TAKE_ATTEMPTS: usize = 100;

#[derive(Serialize, Deserialize)]
struct ClaimBody {
    version: u32,
    nonce: String,
    claimed_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attached: Option<ClaimedBy>,
}

/// Who confirms a generation that an operator allocated, as the claim tells others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedBy {
    /// The pool that the process belongs to.
    pub pool_uid: String,
    /// Its pod's name.
    pub pod: String,
    /// Its pod.
    pub pod_uid: String,
    /// The process: drawn at its start.
    pub instance: String,
    /// The operator's intent.
    pub attempt: String,
}

impl ClaimedBy {
    /// The same for each try of one attempt in one process, and for nothing else.
    fn nonce(&self) -> String {
        format!("{}/{}", self.instance, self.attempt)
    }
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

/// Why a generation was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmError {
    /// It is gone for good.
    #[error("tenant {0} was deleted")]
    Deleted(TenantShardId),
    /// Another has this generation, or a higher one.
    #[error("generation {own} of tenant {tenant} is not free: the highest in the bucket is {highest}{}", .by.as_deref().map(described).unwrap_or_default())]
    Superseded {
        /// Whose.
        tenant: TenantShardId,
        /// What was to be confirmed.
        own: Generation,
        /// The highest that any claim or index has.
        highest: Generation,
        /// Whose that one is, if its claim says so.
        by: Option<Box<ClaimedBy>>,
    },
    /// The object store failed.
    #[error("cannot claim the tenant")]
    Bucket(#[from] BucketError),
}

fn described(by: &ClaimedBy) -> String {
    format!(", of pod {} in pool {}", by.pod, by.pool_uid)
}

impl Claim {
    /// Takes the generation after the highest that any claim or index in the bucket has, once.
    pub async fn take(bucket: Arc<dyn Bucket>, tenant: TenantShardId) -> Result<Claim, TakeClaimError> {
        let mut highest = highest_index_generation(&*bucket, tenant).await?;
        let nonce = hex::encode(rand::random::<u128>().to_be_bytes());
        let body = body_of_claim(&nonce, None);
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

    /// Confirms a generation that an operator allocated. The same by the same process for the same attempt succeeds again: its first answer was lost.
    pub async fn confirm(
        bucket: Arc<dyn Bucket>,
        tenant: TenantShardId,
        generation: Generation,
        by: &ClaimedBy,
    ) -> Result<Claim, ConfirmError> {
        if generation == Generation::DELETED {
            return Err(ConfirmError::Deleted(tenant));
        }
        let nonce = by.nonce();
        let body = body_of_claim(&nonce, Some(by));
        let is_ours = create(&*bucket, tenant, generation, &body, &nonce).await?;
        // After the own claim is there: whoever claims a higher one from now on sees it, and reads what we write until we see theirs.
        let claims = list_dated_claims(&*bucket, tenant, None).await?;
        let highest = claims.last().map(|(claim, _)| *claim);
        let highest = highest.max(highest_index_generation(&*bucket, tenant).await?).unwrap_or(generation);
        if highest == Generation::DELETED {
            return Err(ConfirmError::Deleted(tenant));
        }
        if highest > generation || !is_ours {
            let owner = claimed_by(&*bucket, tenant, highest).await?;
            return Err(ConfirmError::Superseded {
                tenant,
                own: generation,
                highest,
                by: owner.map(Box::new),
            });
        }
        let claim = Claim::new(bucket, tenant, generation);
        claim.note_time(&claims);
        Ok(claim)
    }
}

fn body_of_claim(nonce: &str, attached: Option<&ClaimedBy>) -> Bytes {
    // For people who look at it; nothing depends on it.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let claimed_by = format!("{}:{}", host.trim(), std::process::id());
    let body = ClaimBody { version: 1, nonce: nonce.into(), claimed_by, attached: attached.cloned() };
    serde_json::to_vec(&body).expect("a struct of strings and numbers is JSON").into()
}

/// Creates a claim. Answers whether it is ours; a claim in the way with our nonce is ours too, its first answer was lost.
async fn create(
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
    create(bucket, tenant, Generation::DELETED, &body_of_claim(&nonce, None), &nonce).await.map(drop)
}

/// Who has a claim, if it is there and says so.
pub async fn claimed_by(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    generation: Generation,
) -> Result<Option<ClaimedBy>, BucketError> {
    let path = ObjectPath::Claim { tenant, generation }.to_string();
    match bucket.get(&path, None).await {
        Ok(found) => {
            Ok(serde_json::from_slice::<ClaimBody>(&found.bytes).ok().and_then(|claim| claim.attached))
        }
        Err(BucketError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The highest claim of a tenant shard, and who has it, if it says so.
pub async fn last_claim(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<Option<(Generation, Option<ClaimedBy>)>, BucketError> {
    let Some(last) = list_claims(bucket, tenant, None).await?.pop() else { return Ok(None) };
    Ok(Some((last, claimed_by(bucket, tenant, last).await?)))
}

#[cfg(test)]
mod tests {
    use super::super::ValidateError;
    use super::super::testing::{faulty, path, put, tenant};
    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::bucket::faulty::{Fault, Operation, held};

    #[tokio::test]
    async fn a_claim_whose_answer_was_lost_is_recognised_as_our_own() {
        let memory: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let body = body_of_claim("aa", None);
        assert!(create(&*memory, tenant(), Generation(5), &body, "aa").await.unwrap());
        assert!(create(&*memory, tenant(), Generation(5), &body, "aa").await.unwrap());
        let other = body_of_claim("bb", None);
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

    fn pod(instance: &str, attempt: &str) -> ClaimedBy {
        ClaimedBy {
            pool_uid: "pool".into(),
            pod: "ps-0".into(),
            pod_uid: "uid".into(),
            instance: instance.into(),
            attempt: attempt.into(),
        }
    }

    async fn confirm(
        bucket: &Arc<dyn Bucket>,
        generation: u32,
        by: &ClaimedBy,
    ) -> Result<Claim, ConfirmError> {
        Claim::confirm(Arc::clone(bucket), tenant(), Generation(generation), by).await
    }

    #[tokio::test]
    async fn an_allocated_generation_is_confirmed_once_and_again_by_the_same_attempt_only() {
        let (_, bucket) = faulty();
        let first = confirm(&bucket, 7, &pod("a", "1")).await.unwrap();
        first.validate().await.unwrap();
        confirm(&bucket, 7, &pod("a", "1")).await.unwrap();
        for other in [pod("a", "2"), pod("b", "1")] {
            match confirm(&bucket, 7, &other).await {
                Err(ConfirmError::Superseded { highest: Generation(7), by: Some(by), .. }) => {
                    assert_eq!(*by, pod("a", "1"));
                }
                other => panic!("{:?}", other.map(|claim| claim.generation())),
            }
        }
        first.validate().await.unwrap();
        assert_eq!(confirm(&bucket, 8, &pod("b", "3")).await.unwrap().generation(), Generation(8));
        assert!(matches!(first.validate().await, Err(ValidateError::Superseded { by: Generation(8), .. })));
    }

    #[tokio::test]
    async fn a_lower_generation_is_told_the_highest_and_whose_it_is() {
        let (_, bucket) = faulty();
        confirm(&bucket, 9, &pod("a", "1")).await.unwrap();
        let refused = confirm(&bucket, 4, &pod("b", "2")).await.map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("of pod ps-0 in pool pool"), "{refused}");
        assert!(matches!(refused, ConfirmError::Superseded { highest: Generation(9), .. }));
    }

    #[tokio::test]
    async fn an_index_of_an_owner_without_claims_stands_in_the_way_too() {
        let (_, bucket) = faulty();
        let timeline = "ffeeddccbbaa99887766554433221100".parse().unwrap();
        let index = ObjectPath::Index { tenant: tenant(), timeline, generation: Some(Generation(0x20)) };
        put(&*bucket, &index.to_string()).await;
        let refused = confirm(&bucket, 5, &pod("a", "1")).await.map(|_| ()).unwrap_err();
        assert!(matches!(refused, ConfirmError::Superseded { highest: Generation(0x20), by: None, .. }));
    }

    #[tokio::test]
    async fn of_two_that_confirm_one_generation_at_once_one_has_it() {
        let (_, bucket) = faulty();
        for generation in 1..50 {
            let (a, b) = (pod("a", &generation.to_string()), pod("b", &generation.to_string()));
            let (a, b) = tokio::join!(confirm(&bucket, generation, &a), confirm(&bucket, generation, &b));
            assert_ne!(a.is_ok(), b.is_ok());
        }
    }

    #[tokio::test]
    async fn a_lower_generation_that_claims_late_is_refused_and_leaves_the_higher_one_valid() {
        let (faulty, bucket) = faulty();
        let (gate, mut slow) = held();
        faulty.once(Operation::Put, "claims", Fault::Hold(gate));
        let late = {
            let bucket = Arc::clone(&bucket);
            tokio::spawn(async move { confirm(&bucket, 3, &pod("a", "1")).await })
        };
        slow.arrived().await;
        let newer = confirm(&bucket, 4, &pod("b", "2")).await.unwrap();
        slow.release();
        assert!(matches!(late.await.unwrap(), Err(ConfirmError::Superseded { highest: Generation(4), .. })));
        newer.validate().await.unwrap();
    }

    #[tokio::test]
    async fn a_deleted_tenant_is_not_confirmed() {
        let (_, bucket) = faulty();
        create_deleted(&*bucket, tenant()).await.unwrap();
        for generation in [1, u32::MAX] {
            assert!(matches!(
                confirm(&bucket, generation, &pod("a", "1")).await,
                Err(ConfirmError::Deleted(_))
            ));
        }
    }
}
