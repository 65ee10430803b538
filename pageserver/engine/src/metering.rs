//! How much WAL of each timeline was billed: kept in the bucket, so that nothing is billed twice or left out when a server ends or a tenant moves.
//!
//! What was written is told to somebody as amounts from one LSN to the next, each with a key by which the receiver knows a repeat. A meter says up
//! to where its timeline was told, and which amount was told last without an answer: that one is told again, with the same key, before anything
//! else is. [`TenantMeters`] holds a tenant's meters; all that changes them is pure.
//!
//! Each owner writes `palimpsest/metering/<tenant shard>/<generation>`, and the newest that is not newer than the reader counts. An amount is told
//! only after it was stored and a listing of claims found no newer owner. So whoever comes next either finds it stored, and repeats it with its
//! key, or it was never told. A local disk would not do: it goes with the pod, and does not move with the tenant.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use codec::index_part::UtcTime;
use model::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use crate::claim::{Claim, ValidateError};
use crate::listing::list_paths;
use crate::object_path::{ObjectPath, metering_prefix};
use crate::ports::{Body, BucketError, PutIf};

const VERSION: u32 = 1;

/// The meters of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantMeters {
    version: u32,
    /// When its timelines were last looked at and something was found.
    pub at: UtcTime,
    /// Of each timeline.
    pub timelines: BTreeMap<TimelineId, Meter>,
}

/// How far a timeline's WAL was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// Up to here, and it was taken.
    pub told: Lsn,
    /// When that was.
    pub at: UtcTime,
    /// What was told after it, and maybe not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untaken: Option<Untaken>,
}

/// An amount that nobody is known to have taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untaken {
    /// Its end.
    pub to: Lsn,
    /// When that was.
    pub at: UtcTime,
    /// By which a repeat is known.
    pub key: String,
}

/// An amount to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Of which timeline.
    pub timeline: TimelineId,
    /// Bytes of WAL.
    pub bytes: u64,
    /// From when …
    pub start: UtcTime,
    /// … until when they were written.
    pub stop: UtcTime,
    /// By which a repeat is known.
    pub key: String,
}

/// A timeline as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Which.
    pub timeline: TimelineId,
    /// Its first LSN.
    pub begin: Lsn,
    /// Its end.
    pub last_record: Lsn,
}

/// Why meters cannot be read or stored.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MeteringError {
    #[error("{path} is not what meters are stored as")]
    Malformed { path: String, source: serde_json::Error },
    #[error("{path} has version {version}, expected 1")]
    Version { path: String, version: u32 },
    #[error("the bucket does not do what it must")]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
}

impl TenantMeters {
    /// Of a tenant that is looked at for the first time: what was written before is nobody's business.
    pub fn begin(timelines: &[Metered], now: SystemTime) -> TenantMeters {
        let now = UtcTime::from_system_time(now);
        let meter = |timeline: &Metered| Meter { told: timeline.last_record, at: now.clone(), untaken: None };
        TenantMeters {
            version: VERSION,
            timelines: timelines.iter().map(|timeline| (timeline.timeline, meter(timeline))).collect(),
            at: now,
        }
    }

    /// Looks at the tenant's timelines that can be read, and answers what is to be told of them. Meters of those that no longer exist go. A timeline that is new since the last look was
    /// written from its beginning on. What was told without an answer is told again as it was, and what came after it has to wait.
    pub fn look(
        &mut self,
        timelines: &[Metered],
        exists: impl Fn(TimelineId) -> bool,
        now: SystemTime,
        mut new_key: impl FnMut() -> String,
    ) -> Vec<Amount> {
        let now = UtcTime::from_system_time(now);
        let last_look = std::mem::replace(&mut self.at, now.clone());
        self.timelines.retain(|id, meter| meter.untaken.is_some() || exists(*id));
        for timeline in timelines {
            let meter = self.timelines.entry(timeline.timeline).or_insert_with(|| Meter {
                told: timeline.begin,
                at: last_look.clone(),
                untaken: None,
            });
            if meter.untaken.is_none() && timeline.last_record > meter.told {
                meter.untaken = Some(Untaken { to: timeline.last_record, at: now.clone(), key: new_key() });
            }
        }
        let amounts = self.timelines.iter().filter_map(|(timeline, meter)| {
            let untaken = meter.untaken.as_ref()?;
            Some(Amount {
                timeline: *timeline,
                bytes: untaken.to.since(meter.told),
                start: meter.at.clone(),
                stop: untaken.at.clone(),
                key: untaken.key.clone(),
            })
        });
        amounts.collect()
    }

    /// An amount was taken: what comes next begins at its end.
    pub fn taken(&mut self, timeline: TimelineId, key: &str) {
        if let Some(meter) = self.timelines.get_mut(&timeline)
            && let Some(untaken) = meter.untaken.take_if(|untaken| untaken.key == key)
        {
            (meter.told, meter.at) = (untaken.to, untaken.at);
        }
    }

    /// An amount was refused for good: the next one counts it again, with another key.
    pub fn refused(&mut self, timeline: TimelineId, key: &str) {
        if let Some(meter) = self.timelines.get_mut(&timeline) {
            meter.untaken.take_if(|untaken| untaken.key == key);
        }
    }

    /// Whether both say the same of all timelines.
    pub fn says_as(&self, other: &TenantMeters) -> bool {
        self.timelines == other.timelines
    }
}

/// The meters as an owner finds them; `None` for a tenant that was never looked at.
pub async fn load(claim: &Claim) -> Result<Option<TenantMeters>, MeteringError> {
    let bucket = claim.bucket();
    let paths = list_paths(&**bucket, &metering_prefix(claim.tenant())).await?;
    let generations = paths.iter().filter_map(|path| match path.parse() {
        Ok(ObjectPath::Metering { generation, .. }) if generation <= claim.generation() => Some(generation),
        _ => None,
    });
    let Some(generation) = generations.max() else { return Ok(None) };
    let path = ObjectPath::Metering { tenant: claim.tenant(), generation }.to_string();
    let found = bucket.get(&path, None).await?;
    let meters: TenantMeters = serde_json::from_slice(&found.bytes)
        .map_err(|source| MeteringError::Malformed { path: path.clone(), source })?;
    match meters.version {
        VERSION => Ok(Some(meters)),
        version => Err(MeteringError::Version { path, version }),
    }
}

/// Stores meters as this owner's, and validates: what they say may be told then. The first time, what owners before this one stored is removed.
pub async fn store(claim: &Claim, meters: &TenantMeters) -> Result<(), MeteringError> {
    let own = ObjectPath::Metering { tenant: claim.tenant(), generation: claim.generation() }.to_string();
    let bytes = Bytes::from(serde_json::to_vec(meters).expect("its keys are texts"));
    let bucket = claim.bucket();
    let put = |put_if| bucket.put(&own, Body::Bytes(bytes.clone()), put_if);
    let is_first = match put(PutIf::Absent).await {
        Err(BucketError::Precondition(_)) => {
            // Replaced as it is now, so that no older attempt of ours lands on top of it later.
            let etag = bucket.head(&own).await?.etag;
            put(PutIf::Matches(etag)).await?;
            false
        }
        stored => {
            stored?;
            true
        }
    };
    claim.validate().await?;
    if is_first {
        let older = |path: &String| match path.parse() {
            Ok(ObjectPath::Metering { generation, .. }) => generation < claim.generation(),
            _ => false,
        };
        let mut paths = list_paths(&**bucket, &metering_prefix(claim.tenant())).await?;
        paths.retain(older);
        if !paths.is_empty() {
            bucket.delete(&paths).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use model::Generation;
    use proptest::prelude::*;

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::claim::ClaimedBy;
    use crate::ports::Bucket;

    fn id(number: u8) -> TimelineId {
        TimelineId([number; 16])
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn metered(number: u8, last_record: u64) -> Metered {
        Metered { timeline: id(number), begin: Lsn(100), last_record: Lsn(last_record) }
    }

    fn all(_: TimelineId) -> bool {
        true
    }

    fn keys() -> impl FnMut() -> String {
        let mut next = 0;
        move || {
            next += 1;
            format!("key {next}")
        }
    }

    #[test]
    fn an_amount_is_repeated_as_it_was_until_it_is_taken_and_the_next_begins_at_its_end() {
        let mut key = keys();
        let mut meters = TenantMeters::begin(&[metered(1, 500)], at(0));
        assert_eq!(meters.look(&[metered(1, 500)], all, at(10), &mut key), []);
        let told = meters.look(&[metered(1, 700)], all, at(20), &mut key);
        assert_eq!((told[0].bytes, &*told[0].key), (200, "key 1"));
        assert_eq!(meters.look(&[metered(1, 900)], all, at(30), &mut key), told, "not 400, and no other key");
        meters.taken(id(1), "key 0");
        meters.taken(id(1), "key 1");
        let next = meters.look(&[metered(1, 900)], all, at(40), &mut key);
        assert_eq!((next[0].bytes, &next[0].start, &*next[0].key), (200, &told[0].stop, "key 2"));
        meters.refused(id(1), "key 2");
        let next = meters.look(&[metered(1, 950)], all, at(50), &mut key);
        assert_eq!((next[0].bytes, &next[0].start, &*next[0].key), (250, &told[0].stop, "key 3"));
    }

    #[test]
    fn a_timeline_that_is_new_was_written_since_the_last_look() {
        let mut key = keys();
        let mut meters = TenantMeters::begin(&[metered(1, 500)], at(0));
        meters.look(&[metered(1, 500)], all, at(10), &mut key);
        let told = meters.look(&[metered(1, 500), metered(2, 130)], all, at(20), &mut key);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].timeline, told[0].bytes), (id(2), 30));
        assert_eq!(told[0].start, UtcTime::from_system_time(at(10)));
        // It goes; what was not taken is still told.
        let first = |timeline| timeline == id(1);
        assert_eq!(meters.look(&[metered(1, 500)], first, at(30), &mut key), told);
        meters.taken(id(2), &told[0].key);
        meters.look(&[metered(1, 500)], first, at(40), &mut key);
        assert_eq!(meters.timelines.len(), 1);
    }

    proptest! {
        /// However often telling fails and servers change, amounts with different keys add up to what was written, once.
        #[test]
        fn what_was_told_adds_up_to_what_was_written(
            steps in prop::collection::vec((0u64..50, 0u8..4), 1..40),
        ) {
            let mut key = keys();
            let mut last = 500;
            let mut meters = TenantMeters::begin(&[metered(1, last)], at(0));
            let mut received = BTreeMap::new();
            for (step, (written, fate)) in steps.into_iter().enumerate() {
                last += written;
                let told = meters.look(&[metered(1, last)], all, at(step as u64), &mut key);
                let stored = meters.clone();
                for amount in told {
                    match fate {
                        // Taken, but the answer is lost, maybe with the server.
                        0 => drop(received.insert(amount.key.clone(), amount.bytes)),
                        1 => {
                            received.insert(amount.key.clone(), amount.bytes);
                            meters = stored.clone();
                        }
                        2 if !received.contains_key(&amount.key) => meters.refused(id(1), &amount.key),
                        _ => {
                            if let Some(before) = received.insert(amount.key.clone(), amount.bytes) {
                                prop_assert_eq!(before, amount.bytes);
                            }
                            meters.taken(id(1), &amount.key);
                        }
                    }
                }
            }
            for step in 0..2 {
                for amount in meters.look(&[metered(1, last)], all, at(1000 + step), &mut key) {
                    received.insert(amount.key.clone(), amount.bytes);
                    meters.taken(id(1), &amount.key);
                }
            }
            prop_assert_eq!(received.values().sum::<u64>(), last - 500);
        }
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
    async fn the_next_owner_repeats_what_was_stored_and_one_that_was_superseded_tells_nothing_more() {
        let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let mut key = keys();
        let first = owner(&bucket, 1).await;
        assert_eq!(load(&first).await.unwrap(), None);
        let mut meters = TenantMeters::begin(&[metered(1, 500)], at(0));
        store(&first, &meters).await.unwrap();
        let told = meters.look(&[metered(1, 700)], all, at(10), &mut key);
        store(&first, &meters).await.unwrap();

        let second = owner(&bucket, 2).await;
        let mut found = load(&second).await.unwrap().unwrap();
        assert_eq!(found.look(&[metered(1, 800)], all, at(20), &mut key), told);
        store(&second, &found).await.unwrap();
        assert_eq!(list_paths(&*bucket, "palimpsest/metering/").await.unwrap().len(), 1);

        meters.taken(id(1), &told[0].key);
        meters.look(&[metered(1, 900)], all, at(30), &mut key);
        assert!(matches!(store(&first, &meters).await, Err(MeteringError::Validate(_))));
        assert_eq!(
            load(&owner(&bucket, 3).await).await.unwrap(),
            Some(found),
            "nor does it change what counts"
        );
    }
}
