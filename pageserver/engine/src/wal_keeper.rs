//! Raw WAL on its way into the bucket, before anything is made of it.
//!
//! A source may forget WAL only when the bucket has it. The keeper collects received bytes, seals them into objects (by size, or some
//! seconds after the first commit in them, or when asked), puts the objects in order, and says up to where WAL is safe:
//!
//! * *stored*: the contiguous end of objects whose put was answered;
//! * *flushed*: what was stored before a listing of claims that found no newer owner. Only this may be reported to the source.
//!
//! Memory is bounded: [`WalKeeper::append`] waits while too much is unsealed or in flight, which stops the reading of the socket.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use codec::wal_object;
use model::{Lsn, PgMajor, TenantShardId, TimelineId, Tli};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::blocking;
use crate::claim::{Claim, ValidateError};
use crate::ports::{Body, Bucket, BucketError, PutIf};
use crate::stored_wal::{StoredWal, wal_path};
use crate::wal_memory::{OWN_SHARE, WalMemory};

/// When WAL is sealed, stored and validated.
#[derive(Clone, Debug)]
pub struct WalKeeping {
    /// An object is sealed when it holds so many bytes.
    pub seal_bytes: usize,
    /// … or so long after the first commit in it.
    pub seal_age: Duration,
    /// WAL without commits is sealed after so long, so that a source does not keep it forever.
    pub idle_seal_age: Duration,
    /// Received bytes that are not in the bucket yet; beyond it the source has to wait.
    pub max_pending: usize,
    /// Claims are listed at most this often unless somebody waits for the answer.
    pub validate_every: Duration,
    /// The same bytes of all timelines together.
    pub memory: Arc<WalMemory>,
}

impl Default for WalKeeping {
    fn default() -> Self {
        WalKeeping {
            seal_bytes: 8 << 20,
            seal_age: Duration::from_secs(5),
            idle_seal_age: Duration::from_mins(10),
            max_pending: 64 << 20,
            validate_every: Duration::from_mins(1),
            memory: WalMemory::new(256 << 20),
        }
    }
}

impl WalKeeping {
    /// Bytes of WAL that one object holds at most.
    fn most_in_an_object(&self) -> usize {
        wal_object::MAX_RAW_SIZE.min(self.seal_bytes.max(1) * 2)
    }
}

/// Why WAL could not be kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeepWalError {
    /// A newer owner exists, or ownership cannot be shown.
    #[error("this owner may not store WAL any more: {0}")]
    Superseded(String),
    /// The bucket refuses the object for good.
    #[error("cannot store WAL: {0}")]
    Rejected(String),
    /// Bytes do not follow those received before.
    #[error("WAL at {got} does not follow what was received before, which ended at {expected}")]
    Gap {
        /// Where the bytes should have begun.
        expected: Lsn,
        /// Where they begin.
        got: Lsn,
    },
    /// Bytes that were received before come again, and are others.
    #[error("WAL at {0} differs from what was received before")]
    Differs(Lsn),
    /// The keeper was stopped.
    #[error("the timeline is shutting down")]
    Stopped,
}

/// Keeps the WAL of one timeline. Cheap to clone.
#[derive(Clone)]
pub struct WalKeeper {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the storing task.
    work: Notify,
    /// Wakes those who wait for room.
    room: Notify,
    stored: watch::Sender<Lsn>,
    flushed: watch::Sender<Lsn>,
    failed: watch::Sender<Option<KeepWalError>>,
    policy: WalKeeping,
}

impl Drop for Shared {
    /// What was not stored is forgotten: the source has it still.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.policy.memory.give_back(state.pending);
    }
}

struct State {
    runs: VecDeque<Run>,
    /// Just past the last byte received.
    received: Lsn,
    /// Received but not stored.
    pending: usize,
    first_pending: Option<Instant>,
    first_commit: Option<Instant>,
    /// Everything up to here is to be sealed now.
    seal_through: Lsn,
    /// Somebody waits for validation of what is stored up to here.
    validate_through: Lsn,
    objects: VecDeque<StoredWal>,
    /// Bytes of them.
    object_bytes: u64,
    /// The newest received bytes, up to `received`: a source that sends them again must send the same.
    recent: Vec<u8>,
}

/// How much of what was received last is kept to compare with.
const RECENT_BYTES: usize = 64 << 10;

impl State {
    /// Adds bytes that follow all that were received, in runs of so many at most.
    fn add(&mut self, tli: Tli, mut bytes: &[u8], limit: usize) {
        let mut start = self.received;
        while !bytes.is_empty() {
            let run = match self.runs.back_mut() {
                Some(run) if run.tli == tli && run.bytes.len() < limit => run,
                _ => self.runs.push_back_mut(Run { tli, start, bytes: Vec::new() }),
            };
            let taken = run.take(bytes, limit);
            bytes = &bytes[taken..];
            start = start.add(taken as u64);
        }
        self.received = start;
    }

    fn remember(&mut self, bytes: &[u8]) {
        self.recent.extend_from_slice(&bytes[bytes.len().saturating_sub(RECENT_BYTES)..]);
        // Not at every message: moving bytes costs more than holding twice as many.
        if self.recent.len() > 2 * RECENT_BYTES {
            let old = self.recent.len() - RECENT_BYTES;
            self.recent.drain(..old);
        }
    }

    /// The first place where `bytes` at `at` differ from what was received before, as far as that is still known.
    fn difference(&self, at: Lsn, bytes: &[u8]) -> Option<Lsn> {
        let known_from = self.received.0 - self.recent.len() as u64;
        crate::wal_run::check_overlap(Lsn(known_from), &self.recent, at, bytes).err()
    }
}

/// Consecutive received bytes of one Postgres timeline, of as many as an object holds at most.
struct Run {
    tli: Tli,
    start: Lsn,
    bytes: Vec<u8>,
}

impl Run {
    /// Takes as many of the bytes that follow as fit. Answers how many.
    fn take(&mut self, following: &[u8], limit: usize) -> usize {
        let taken = following.len().min(limit - self.bytes.len());
        let wanted = self.bytes.len() + taken;
        if wanted > self.bytes.capacity() {
            // By doubling, but never beyond what it may hold.
            let capacity = wanted.next_power_of_two().min(limit);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(&following[..taken]);
        taken
    }
}

/// Where and as whom a keeper stores.
pub struct WalKeeperPlace {
    /// The object store.
    pub bucket: Arc<dyn Bucket>,
    /// Ownership.
    pub claim: Claim,
    /// Whose WAL.
    pub tenant_shard: TenantShardId,
    /// Which timeline's.
    pub timeline: TimelineId,
    /// Whose format the WAL has.
    pub pg: PgMajor,
    /// Of the source's cluster; every object carries it.
    pub system_identifier: u64,
}

impl WalKeeper {
    /// A keeper whose next byte is at `received`, with the objects that are in the bucket already. Run [`WalKeeper::run`] beside it.
    pub fn new(received: Lsn, objects: Vec<StoredWal>, policy: WalKeeping) -> WalKeeper {
        let state = State {
            runs: VecDeque::new(),
            received,
            pending: 0,
            first_pending: None,
            first_commit: None,
            seal_through: Lsn::INVALID,
            validate_through: Lsn::INVALID,
            object_bytes: objects.iter().map(|object| object.size).sum(),
            objects: objects.into(),
            recent: Vec::new(),
        };
        let shared = Shared {
            state: Mutex::new(state),
            work: Notify::new(),
            room: Notify::new(),
            stored: watch::channel(received).0,
            flushed: watch::channel(Lsn::INVALID).0,
            failed: watch::channel(None).0,
            policy,
        };
        WalKeeper { shared: Arc::new(shared) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("no code that holds this lock panics")
    }

    /// Takes received bytes; waits while too much is pending. Bytes that were received before are dropped, after a look whether
    /// they are the same.
    pub async fn append(&self, at: Lsn, tli: Tli, bytes: &[u8]) -> Result<(), KeepWalError> {
        let memory = &self.shared.policy.memory;
        loop {
            let (own_room, room) = (self.shared.room.notified(), memory.room());
            if let Some(error) = self.shared.failed.borrow().clone() {
                return Err(error);
            }
            let pending = self.state().pending;
            if pending < self.shared.policy.max_pending && (pending < OWN_SHARE || !memory.is_full()) {
                break;
            }
            tokio::select! {
                biased;
                () = own_room => {}
                () = room => {}
            }
        }
        let must_wake = {
            let mut state = self.state();
            if at > state.received {
                return Err(KeepWalError::Gap { expected: state.received, got: at });
            }
            if let Some(at) = state.difference(at, bytes) {
                return Err(KeepWalError::Differs(at));
            }
            let known = state.received.since(at).min(bytes.len() as u64);
            let fresh = &bytes[known as usize..];
            if fresh.is_empty() {
                return Ok(());
            }
            state.add(tli, fresh, self.shared.policy.most_in_an_object());
            state.remember(fresh);
            state.pending += fresh.len();
            memory.take(fresh.len());
            // Whoever stores has no deadline as long as there is nothing, and must hear of the first bytes.
            let is_first = state.first_pending.is_none();
            state.first_pending.get_or_insert_with(Instant::now);
            is_first
                || state.pending >= self.shared.policy.seal_bytes
                || (state.pending >= OWN_SHARE
                    && (state.pending - fresh.len() < OWN_SHARE || memory.is_short()))
        };
        if must_wake {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// Notes the bytes that end where the first append goes on, to compare with.
    pub(crate) fn remember(&self, newest: &[u8]) {
        let mut state = self.state();
        if state.recent.is_empty() {
            state.remember(newest);
        }
    }

    /// The newest received bytes that are still known begin here.
    pub fn known_from(&self) -> Lsn {
        let state = self.state();
        Lsn(state.received.0 - state.recent.len() as u64)
    }

    /// The next byte is the one at `at`, whatever was received. Answers whether that was possible: everything received must be stored.
    pub(crate) fn go_on_at(&self, at: Lsn) -> bool {
        let mut state = self.state();
        if state.pending > 0 {
            return false;
        }
        let kept = if at > state.received {
            0
        } else {
            state.recent.len().saturating_sub(state.received.since(at) as usize)
        };
        state.recent.truncate(kept);
        state.received = at;
        state.seal_through = state.seal_through.min(at);
        state.validate_through = state.validate_through.min(at);
        self.shared.stored.send_modify(|stored| *stored = at);
        self.shared.flushed.send_modify(|flushed| *flushed = at.min(*flushed));
        true
    }

    /// Says that what was received up to `through` holds a commit: from now on its age counts.
    pub fn commit_seen(&self, through: Lsn) {
        let mut state = self.state();
        // What is on its way to the bucket already needs no deadline: with nothing left to seal, one would pass over and over.
        let is_unsealed = state.runs.front().is_some_and(|run| through > run.start);
        if state.first_commit.is_none() && is_unsealed {
            state.first_commit = Some(Instant::now());
            drop(state);
            self.shared.work.notify_one();
        }
    }

    /// Seals all that was received, stores it, lists claims; answers up to where WAL is flushed then.
    pub async fn seal_now(&self) -> Result<Lsn, KeepWalError> {
        let through = self.received();
        self.flush_through(through).await?;
        Ok(*self.shared.flushed.borrow())
    }

    /// Waits until WAL up to `lsn` (which must have been received) is flushed, and makes that happen now.
    pub async fn flush_through(&self, lsn: Lsn) -> Result<(), KeepWalError> {
        let mut flushed = self.shared.flushed.subscribe();
        let mut failed = self.shared.failed.subscribe();
        {
            let mut state = self.state();
            let lsn = lsn.min(state.received);
            state.seal_through = state.seal_through.max(lsn);
            state.validate_through = state.validate_through.max(lsn);
        }
        self.shared.work.notify_one();
        let wanted = lsn.min(self.received());
        loop {
            if *flushed.borrow_and_update() >= wanted {
                return Ok(());
            }
            if let Some(error) = failed.borrow_and_update().clone() {
                return Err(error);
            }
            tokio::select! {
                biased;
                changed = flushed.changed() => changed.map_err(|_| KeepWalError::Stopped)?,
                changed = failed.changed() => changed.map_err(|_| KeepWalError::Stopped)?,
            }
        }
    }

    /// Just past the last byte received.
    pub fn received(&self) -> Lsn {
        self.state().received
    }

    /// Up to where WAL is in the bucket, validated or not.
    pub fn stored(&self) -> watch::Receiver<Lsn> {
        self.shared.stored.subscribe()
    }

    /// Up to where WAL is in the bucket and this owner was seen to be the newest afterwards: what may be reported.
    pub fn flushed(&self) -> watch::Receiver<Lsn> {
        self.shared.flushed.subscribe()
    }

    /// The objects in the bucket, oldest first.
    pub fn objects(&self) -> Vec<StoredWal> {
        self.state().objects.iter().cloned().collect()
    }

    /// How many objects are in the bucket.
    pub fn object_count(&self) -> usize {
        self.state().objects.len()
    }

    /// Bytes of the objects in the bucket.
    pub fn object_bytes(&self) -> u64 {
        self.state().object_bytes
    }

    /// Received bytes that are not in the bucket.
    pub fn pending(&self) -> usize {
        self.state().pending
    }

    /// Takes the objects that end at or below `lsn` off the list; the caller deletes them, after the index that covers them is validated.
    #[must_use]
    pub fn take_covered(&self, lsn: Lsn) -> Vec<StoredWal> {
        let mut state = self.state();
        let covered = state.objects.iter().take_while(|object| object.end <= lsn).count();
        let covered: Vec<StoredWal> = state.objects.drain(..covered).collect();
        state.object_bytes -= covered.iter().map(|object| object.size).sum::<u64>();
        covered
    }

    /// Stores until stopped or superseded. On an orderly stop, what was received is stored first.
    pub async fn run(self, place: WalKeeperPlace, stop: CancellationToken) -> Result<(), KeepWalError> {
        let result = self.store_until(&place, &stop).await;
        let end = result.clone().err().unwrap_or(KeepWalError::Stopped);
        self.shared.failed.send_replace(Some(end));
        self.shared.room.notify_waiters();
        result
    }

    async fn store_until(
        &self,
        place: &WalKeeperPlace,
        stop: &CancellationToken,
    ) -> Result<(), KeepWalError> {
        let mut validated_at = Instant::now();
        loop {
            while let Some(run) = self.take_due(stop.is_cancelled()) {
                self.store(place, run).await?;
            }
            let stored = *self.shared.stored.borrow();
            let flushed = *self.shared.flushed.borrow();
            let asked = { self.state().validate_through };
            let due = asked > flushed && stored >= asked;
            let unreported = stored > flushed && validated_at.elapsed() >= self.shared.policy.validate_every;
            if due || unreported || (stop.is_cancelled() && stored > flushed) {
                place.claim.validate().await.map_err(|error| match error {
                    ValidateError::Bucket(error) => KeepWalError::Rejected(error.to_string()),
                    error => KeepWalError::Superseded(error.to_string()),
                })?;
                validated_at = Instant::now();
                self.shared.flushed.send_replace(stored);
                continue;
            }
            if stop.is_cancelled() {
                return Ok(());
            }
            let validate_at = (stored > flushed).then(|| validated_at + self.shared.policy.validate_every);
            let wake_at = [self.seal_deadline(), validate_at].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = self.shared.work.notified() => {}
                () = sleep_until(wake_at) => {}
                () = stop.cancelled() => {}
                () = self.must_store_early() => {}
            }
        }
    }

    fn seal_deadline(&self) -> Option<Instant> {
        let state = self.state();
        let by_commit = state.first_commit.map(|at| at + self.shared.policy.seal_age);
        let idle = state.first_pending.map(|at| at + self.shared.policy.idle_seal_age);
        [by_commit, idle].into_iter().flatten().min()
    }

    /// Waits until memory is short, and what we hold is worth an object.
    async fn must_store_early(&self) {
        if self.state().pending < OWN_SHARE {
            // Whoever brings more wakes us.
            std::future::pending::<()>().await;
        }
        self.shared.policy.memory.short().await;
    }

    /// The next object's bytes, if it is time to seal one.
    fn take_due(&self, stopping: bool) -> Option<Run> {
        let deadline = self.seal_deadline();
        let mut state = self.state();
        let front = state.runs.front()?;
        let due = stopping
            || state.pending >= self.shared.policy.seal_bytes
            || state.runs.len() > 1
            || state.seal_through > front.start
            || (state.pending >= OWN_SHARE && self.shared.policy.memory.is_short())
            || deadline.is_some_and(|at| at <= Instant::now());
        if !due {
            return None;
        }
        let run = state.runs.pop_front()?;
        if state.runs.is_empty() {
            state.first_commit = None;
            state.first_pending = None;
        }
        Some(run)
    }

    async fn store(&self, place: &WalKeeperPlace, run: Run) -> Result<(), KeepWalError> {
        let raw_len = run.bytes.len();
        let (start, end) = (run.start, run.start.add(raw_len as u64));
        let (pg, system_identifier, tli) = (place.pg, place.system_identifier, run.tli);
        let encoded =
            blocking::run(move || wal_object::encode(pg, system_identifier, tli, start, &run.bytes))
                .await
                .map_err(|_| KeepWalError::Stopped)?;
        let encoded = encoded.map_err(|error| KeepWalError::Rejected(error.to_string()))?;
        let object =
            StoredWal { tli, start, end, generation: place.claim.generation(), size: encoded.len() as u64 };
        let path = wal_path(place.tenant_shard, place.timeline, &object);
        place.bucket.put(&path, Body::Bytes(Bytes::from(encoded)), PutIf::Absent).await.map_err(|error| {
            match error {
                BucketError::Precondition(_) => KeepWalError::Superseded(error.to_string()),
                other => KeepWalError::Rejected(other.to_string()),
            }
        })?;
        debug!(%start, %end, size = object.size, "stored WAL");
        {
            let mut state = self.state();
            state.object_bytes += object.size;
            state.objects.push_back(object);
            state.pending -= raw_len;
        }
        self.shared.policy.memory.give_back(raw_len);
        self.shared.stored.send_replace(end);
        self.shared.room.notify_waiters();
        Ok(())
    }
}

/// Sleeps until then, or forever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::bucket::faulty::{Fault, FaultyBucket, Operation, held};

    proptest! {
        #[test]
        fn received_bytes_lie_in_runs_of_one_object_each_which_take_no_more_memory_than_that(
            messages in prop::collection::vec((1u32..3, prop::collection::vec(any::<u8>(), 0..300)), 0..40),
            limit in 1usize..200,
        ) {
            let keeper = WalKeeper::new(Lsn(1_000), Vec::new(), WalKeeping::default());
            let mut state = keeper.state();
            let mut all: Vec<(Tli, u8)> = Vec::new();
            let mut tli = 1;
            for (other, bytes) in &messages {
                tli = tli.max(*other);
                state.add(Tli(tli), bytes, limit);
                all.extend(bytes.iter().map(|byte| (Tli(tli), *byte)));
            }
            let mut at = Lsn(1_000);
            let mut found: Vec<(Tli, u8)> = Vec::new();
            for (number, run) in state.runs.iter().enumerate() {
                prop_assert_eq!(run.start, at);
                prop_assert!(run.bytes.capacity() <= limit);
                let next = state.runs.get(number + 1);
                prop_assert!(run.bytes.len() == limit || next.is_none_or(|next| next.tli != run.tli));
                at = at.add(run.bytes.len() as u64);
                found.extend(run.bytes.iter().map(|byte| (run.tli, *byte)));
            }
            prop_assert_eq!(state.received, at);
            prop_assert_eq!(found, all);
        }
    }

    #[tokio::test]
    async fn a_commit_that_is_on_its_way_to_the_bucket_sets_no_deadline_that_nothing_is_left_for() {
        let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        let bucket: Arc<dyn Bucket> = faulty.clone();
        let tenant_shard = "00112233445566778899aabbccddeeff".parse().unwrap();
        let claim = Claim::take(Arc::clone(&bucket), tenant_shard).await.unwrap();
        let start = Lsn(0x0100_0100);
        let keeper = WalKeeper::new(start, Vec::new(), WalKeeping::default());
        let place = WalKeeperPlace {
            bucket,
            claim,
            tenant_shard,
            timeline: "ffeeddccbbaa99887766554433221100".parse().unwrap(),
            pg: PgMajor::V17,
            system_identifier: 1,
        };
        let running = tokio::spawn(keeper.clone().run(place, CancellationToken::new()));
        keeper.append(start, Tli(1), b"a record").await.unwrap();
        let (gate, mut slow) = held();
        faulty.once(Operation::Put, "palimpsest/wal", Fault::Hold(gate));
        let sealing = tokio::spawn({
            let keeper = keeper.clone();
            async move { keeper.seal_now().await }
        });
        slow.arrived().await;
        keeper.commit_seen(start.add(8));
        slow.release();
        assert_eq!(sealing.await.unwrap().unwrap(), start.add(8));
        assert_eq!(keeper.seal_deadline(), None);
        keeper.append(start.add(8), Tli(1), b"a commit").await.unwrap();
        keeper.commit_seen(start.add(16));
        assert!(keeper.state().first_commit.is_some());
        running.abort();
    }
}
