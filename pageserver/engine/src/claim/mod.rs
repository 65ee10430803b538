//! Who owns a tenant shard: claims in the bucket.
//!
//! An owner creates `palimpsest/claims/<tenant shard>/<generation>` before it reads any index; creation of an existing one fails, so no
//! two owners have the same generation. Before an owner deletes, reports to a source or acknowledges a change it *validates*: it lists
//! the claims from its own on. Its own and nothing above it must come back. A newer owner claims before it reads, so what the older one
//! wrote before a clean listing is what the newer one reads.
//!
//! [`take`] is how an owner comes to a claim: the next generation on its own authority, or one that an operator allocated. [`list`] reads what
//! claims there are; [`clean`] removes old ones.

mod clean;
mod list;
mod take;
#[cfg(test)]
mod testing;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use model::{Generation, LayerName, TenantShardId, TimelineId};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::SystemClock;
use crate::object_path::ObjectPath;
use crate::ports::{Bucket, BucketError, Clock};

use list::list_dated_claims;
pub(crate) use list::{list_claims, list_timeline_prefixes};
pub(crate) use take::create_deleted;
pub use take::{ClaimedBy, ConfirmError, TakeClaimError, claimed_by, last_claim};

/// Ownership of a tenant shard in one generation. Cheap to clone. Never taken again by itself: superseded, an owner stops to write.
#[derive(Clone)]
pub struct Claim {
    inner: Arc<Inner>,
    clock: Arc<dyn Clock>,
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
    superseded_by: OnceLock<Generation>,
    /// When the claim came to be by the store's clock, and when we heard of that: later.
    came_to_be: OnceLock<(SystemTime, Instant)>,
    layer_names: std::sync::Mutex<HashMap<TimelineId, LayerNames>>,
}

/// Names of a timeline's layers that its owner may not give to others.
pub(crate) type LayerNames = Arc<std::sync::Mutex<HashSet<LayerName>>>;

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
    fn new(bucket: Arc<dyn Bucket>, tenant: TenantShardId, generation: Generation) -> Claim {
        Claim {
            inner: Arc::new(Inner {
                bucket,
                tenant,
                generation,
                arrivals: AtomicU64::new(0),
                validated: Mutex::new(0),
                superseded: CancellationToken::new(),
                superseded_by: OnceLock::new(),
                came_to_be: OnceLock::new(),
                layer_names: std::sync::Mutex::default(),
            }),
            clock: Arc::new(SystemClock),
        }
    }

    /// The same claim, with another clock than the machine's for what its owner writes.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Claim {
        self.clock = clock;
        self
    }

    /// What somebody holds who only looks. It is not in the bucket, so it never validates, and nothing can be deleted, reported or acknowledged by it.
    pub(crate) fn of_onlooker(bucket: Arc<dyn Bucket>, tenant: TenantShardId) -> Claim {
        Claim::new(bucket, tenant, Generation::LAST_OWNER)
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

    /// The names of a timeline's layers that were put or are known in this generation. They outlast the timeline's being open: a name must not come back while
    /// the object that had it may still be deleted.
    pub(crate) fn layer_names(&self, timeline: TimelineId) -> LayerNames {
        let mut names = self.inner.layer_names.lock().expect("no holder panics");
        Arc::clone(names.entry(timeline).or_default())
    }

    /// The time of day, for what its owner writes.
    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// A time of day that has come: by our clock, and by the store's as far as it is known. What was promised until a time is over when that has
    /// come, and a clock that is ahead ends nothing early.
    pub fn surely_now(&self) -> SystemTime {
        let now = self.clock.now();
        self.inner.came_to_be.get().map_or(now, |(time, heard)| now.min(*time + heard.elapsed()))
    }

    /// Is cancelled once a newer owner was seen. Then nothing may be deleted, reported or acknowledged any more.
    pub fn superseded(&self) -> &CancellationToken {
        &self.inner.superseded
    }

    /// The newer owner's generation, once one was seen.
    pub fn superseded_by(&self) -> Option<Generation> {
        self.inner.superseded_by.get().copied()
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
        let claims = list_dated_claims(&*inner.bucket, inner.tenant, Some(inner.generation)).await?;
        match claims.last() {
            Some((newest, _)) if *newest > inner.generation => {
                let _ = inner.superseded_by.set(*newest);
                inner.superseded.cancel();
                self.check_superseded()
            }
            Some(_) => {
                self.note_time(&claims);
                *validated = covered;
                Ok(())
            }
            None => Err(ValidateError::Missing {
                path: ObjectPath::Claim { tenant: inner.tenant, generation: inner.generation }.to_string(),
            }),
        }
    }

    /// Takes note of when our claim came to be, by a listing.
    fn note_time(&self, claims: &[(Generation, Option<SystemTime>)]) {
        let own = claims.iter().find(|(claim, _)| *claim == self.inner.generation);
        if let Some((_, Some(time))) = own {
            let _ = self.inner.came_to_be.set((*time, Instant::now())); // the first time is enough
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

#[cfg(test)]
mod tests {
    use super::testing::{faulty, path, put, tenant};
    use super::*;
    use crate::bucket::faulty::{Fault, Operation, held};

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
