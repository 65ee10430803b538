//! The one task that changes a timeline: decodes WAL, ingests it, publishes snapshots, freezes the tail.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use codec::value::Value;
use codec::wal::record::Record;
use codec::wal::stream::WalDecoder;
use model::{Key, KeyRange, Lsn, RelTag, Tli};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::chains::Chains;
use super::flush::{FlushError, Flushed, Frozen};
use super::{IngestStopped, Progress, ReceivedWal, Request, Shared, TimelinePolicy};
use crate::as_of::ReadError;
use crate::changes::Changes;
use crate::error_story::error_story;
use crate::ingest::{Ingest, Latest, Outcome};
use crate::read::{Ancestor, Snapshot};
use crate::retention::Retention;
use crate::tail::Tail;

/// A layer from the tail has so many times the bytes of the index that names it, if memory allows.
const LAYER_PER_INDEX: usize = 8;

/// Pause before ingest reads again what the bucket did not answer, which has tried for minutes then.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Why an owner ended.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Frozen tails cannot become layers any more.
    #[error("cannot store layers")]
    Flush(#[from] FlushError),
}

/// Owns all that changes in a timeline, so that it needs no locks.
pub(super) struct Owner {
    pub shared: Arc<Shared>,
    pub policy: TimelinePolicy,
    /// In place of the policy's own; may change.
    pub freeze_bytes: Arc<AtomicUsize>,
    pub decoder: WalDecoder,
    pub ingest: Ingest,
    pub ancestor: Option<Ancestor>,
    pub retention: Arc<Retention>,
    /// Ends the wait for a bucket that does not answer; `None` where ingest fails rather than waits.
    pub waits_until: Option<CancellationToken>,
    pub state: State,
    pub wal: mpsc::Receiver<ReceivedWal>,
    pub requests: mpsc::Receiver<Request>,
    /// `None` once nothing more is to be flushed.
    pub to_flush: Option<mpsc::UnboundedSender<Frozen>>,
    pub flushed: mpsc::UnboundedReceiver<Result<Flushed, FlushError>>,
}

/// What the owner keeps between records.
pub(super) struct State {
    pub last: Lsn,
    pub prev: Lsn,
    pub tli: Tli,
    /// Just past what is in layers or frozen.
    pub frozen_to: Lsn,
    pub open: Tail,
    pub frozen: Vec<Tail>,
    pub pending: Changes,
    pub scratch: Changes,
    /// Which keys are to be made whole soon.
    pub chains: Chains,
    /// Who waits for layers up to where.
    pub checkpoints: Vec<(Lsn, oneshot::Sender<Result<Lsn, String>>)>,
    /// Ingest has stopped for good; reads go on.
    pub failed: bool,
}

enum Event {
    Wal(ReceivedWal),
    Request(Request),
    Flushed(Result<Flushed, FlushError>),
    /// The memory of all tails is used up, and some of it is ours.
    MemoryFull,
    Stop,
}

/// The newest state, published or not.
struct Newest<'a> {
    snapshot: &'a Snapshot,
    pending: &'a Changes,
    waits_until: Option<&'a CancellationToken>,
}

impl Newest<'_> {
    /// Reads until the bucket answers: a record that was begun cannot be begun again, and one that is left out is the end of ingest.
    async fn patiently<T, F: Future<Output = Result<T, ReadError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<T, ReadError> {
        loop {
            match (read().await, self.waits_until) {
                (Err(ReadError::Away { .. }), Some(stop)) if !stop.is_cancelled() => {
                    let _ = tokio::time::timeout(READ_PAUSE, stop.cancelled()).await; // whichever comes first
                }
                (answer, _) => return answer,
            }
        }
    }
}

impl Latest for Newest<'_> {
    async fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        self.patiently(|| self.snapshot.get_over(self.pending, key)).await
    }

    async fn scan(&self, keys: KeyRange) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.patiently(|| self.snapshot.scan_over(Some(self.pending), keys.clone(), Lsn::MAX)).await
    }

    async fn pages(&self, rel: RelTag, blocks: std::ops::Range<u32>) -> Result<Bytes, ReadError> {
        self.patiently(|| self.snapshot.pages_over(self.pending, rel, blocks.clone())).await
    }
}

impl State {
    /// Adds what a record made to what is pending. A page that was changed often is made whole: its image takes the last change's place.
    async fn take_scratch(&mut self, view: &Snapshot, most: usize) {
        let mut whole: SmallVec<[(Key, Lsn); 4]> = SmallVec::new();
        for entry in &self.scratch.entries {
            let value = self.scratch.value_bytes(entry);
            if self.chains.note(entry.key, entry.will_init, value, most) {
                whole.push((entry.key, entry.lsn));
            }
        }
        self.pending.append(&mut self.scratch);
        for (key, lsn) in whole {
            // One that cannot be made whole stays a chain, and whoever reads it hears why.
            if let Ok(Some(page)) = view.get_over(&self.pending, key).await {
                self.pending.push(key, lsn, &Value::Image(&page));
            }
        }
    }
}

impl Owner {
    /// Runs until stopped or unable to store layers.
    pub async fn run(mut self) -> Result<(), OwnerError> {
        loop {
            match self.next_event().await {
                Event::Wal(received) => {
                    if let Err(stopped) = self.take_wal(received.at, received.tli, &received.bytes).await {
                        self.fail(&stopped);
                    }
                }
                Event::Request(Request::Checkpoint(answer)) => self.checkpoint(answer),
                Event::Request(Request::Rebase(rebase, answer)) => {
                    (self.ancestor, self.retention) = (rebase.ancestor, rebase.retention);
                    let layers = self.shared.view.load().layers.edited(rebase.layers, &HashSet::new());
                    self.store_view(Some(Arc::new(layers)));
                    let _ = answer.send(()); // who asked may have gone
                }
                Event::Request(Request::Settle { go_on_as, answer }) => {
                    if let Some(tli) = go_on_as {
                        self.go_on_as(tli);
                    }
                    let _ = answer.send(self.state.last); // who asked may have gone
                }
                Event::Request(Request::Replace { add, remove, answer }) => {
                    let layers = self.shared.view.load().layers.edited(add, &remove);
                    self.store_view(Some(Arc::new(layers)));
                    let _ = answer.send(()); // who asked may have gone
                    if self.should_freeze() {
                        self.freeze();
                    }
                }
                Event::Request(Request::Retain { retention, answer }) => {
                    self.retention = retention;
                    self.store_view(None);
                    let _ = answer.send(());
                }
                Event::Flushed(flushed) => self.adopt(flushed?),
                Event::MemoryFull => self.freeze(),
                Event::Stop => return self.close().await,
            }
        }
    }

    /// The one place where the owner waits. WAL is left in its queue while there is no room for what it becomes.
    async fn next_event(&mut self) -> Event {
        let has_room = self.state.frozen.len() <= self.policy.max_frozen && !self.must_wait_for_compaction();
        let budget = Arc::clone(&self.shared.budget);
        let wal = async {
            if self.state.frozen.is_empty() && budget.used() >= budget.limit() {
                budget.room().await; // others hold it all; theirs shrink without us
            } else if budget.used() >= budget.limit() || !has_room {
                std::future::pending::<()>().await; // our own flush or compaction ends this wait, through its own event
            }
            self.wal.recv().await
        };
        // Others may wait for what we hold while nothing comes that would make us look.
        let holds_some = !self.state.open.is_empty() && self.state.frozen.is_empty();
        let full = async { if holds_some { budget.full().await } else { std::future::pending().await } };
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Event::Stop,
            Some(flushed) = self.flushed.recv() => Event::Flushed(flushed),
            Some(request) = self.requests.recv() => Event::Request(request),
            () = full => Event::MemoryFull,
            Some(received) = wal => Event::Wal(received),
            else => Event::Stop,
        }
    }

    /// Decodes and ingests bytes, then publishes what they made. What was decoded before an error is published, too.
    pub async fn take_wal(&mut self, at: Lsn, tli: Tli, bytes: &[u8]) -> Result<(), IngestStopped> {
        if self.state.failed {
            return Ok(());
        }
        let known = self.decoder.fed_to().since(at).min(bytes.len() as u64);
        let result = match self.decoder.feed(at.add(known), &bytes[known as usize..]) {
            Ok(()) => self.ingest_decoded().await,
            Err(error) => Err(error.into()),
        };
        self.state.tli = self.state.tli.max(tli);
        self.publish();
        if self.should_freeze() {
            self.freeze();
        }
        result
    }

    async fn ingest_decoded(&mut self) -> Result<(), IngestStopped> {
        let view = self.shared.view.load_full();
        let most = self.policy.max_chain;
        let Owner { decoder, ingest, state, shared, waits_until, .. } = self;
        let waits_until = waits_until.as_ref();
        let pg = shared.facts.pg;
        while let Some(raw) = decoder.next()? {
            let (start, end) = (raw.start, raw.end);
            let record =
                Record::parse(pg, raw.bytes).map_err(|source| IngestStopped::Parse { start, source })?;
            let failed = |source| IngestStopped::Record { start, source };
            let mut newest = Newest { snapshot: &view, pending: &state.pending, waits_until };
            let mut outcome = ingest
                .record(&record, raw.bytes, start, end, &mut state.scratch, &newest)
                .await
                .map_err(failed)?;
            while outcome == Outcome::Unfinished {
                state.take_scratch(&view, most).await;
                newest = Newest { snapshot: &view, pending: &state.pending, waits_until };
                outcome = ingest.resume(&mut state.scratch, &newest).await.map_err(failed)?;
            }
            if state.scratch.commit_times.is_some() {
                shared.keeper.commit_seen(end);
            }
            state.take_scratch(&view, most).await;
            state.last = end;
            state.prev = start;
        }
        Ok(())
    }

    /// Makes what was ingested readable.
    pub fn publish(&mut self) {
        let state = &mut self.state;
        let newest_commit = state.pending.commit_times.map(|(_, newest)| newest);
        if !state.pending.is_empty() {
            let before = state.open.size();
            state.open = state.open.with(&mut state.pending);
            self.shared.budget.take(state.open.size() - before);
        }
        state.pending.clear();
        self.store_view(None);
        let state = &self.state;
        self.shared.progress.send_if_modified(|progress| {
            let moved = progress.last != state.last;
            progress.last = state.last;
            progress.prev = state.prev;
            progress.tli = state.tli.0;
            progress.size = self.ingest.logical_size();
            progress.newest_commit = progress.newest_commit.max(newest_commit);
            moved
        });
    }

    fn store_view(&self, layers: Option<Arc<crate::layer_map::LayerMap<crate::layer_read::Layer>>>) {
        let old = self.shared.view.load_full();
        let changes_layers = layers.is_some();
        let view = Snapshot {
            timeline: old.timeline,
            pg: old.pg,
            last: self.state.last,
            open: self.state.open.clone(),
            frozen: self.state.frozen.clone().into(),
            layers: layers.unwrap_or_else(|| Arc::clone(&old.layers)),
            ancestor: self.ancestor.clone(),
            branched_at: old.branched_at,
            retention: Arc::clone(&self.retention),
            reads: Arc::clone(&old.reads),
        };
        self.shared.view.store(Arc::new(view));
        if changes_layers {
            self.shared.layers_version.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether the tail is due to become a layer, and another one would make reads too deep.
    fn must_wait_for_compaction(&self) -> bool {
        let l0s = self.shared.view.load().layers.l0().len() + self.state.frozen.len();
        let room = self.shared.l0_room.load(Ordering::Relaxed);
        let too_deep = self.policy.max_l0.is_some_and(|most| l0s >= most.min(room)) && self.is_due();
        self.shared.too_deep.store(too_deep, Ordering::Relaxed);
        too_deep
    }

    fn should_freeze(&self) -> bool {
        self.is_due() && !self.must_wait_for_compaction()
    }

    /// Whether the tail has grown to a layer, or to what must do for one: where memory is short or there are too many WAL objects.
    fn is_due(&self) -> bool {
        let size = self.state.open.size();
        // Tails are flushed one after the other, so memory is free no sooner when a small one waits behind another: it can as well grow.
        let may_be_small = size > 0 && self.state.frozen.is_empty();
        let must_be = || {
            let budget = &self.shared.budget;
            (budget.is_short() && size >= budget.limit() / 8)
                || budget.used() >= budget.limit()
                || self.shared.keeper.object_count() >= self.policy.max_wal_objects
        };
        size >= self.freeze_at() || (may_be_small && must_be())
    }

    /// Bytes at which the tail is frozen. Each layer costs a put of the whole index, so where that is large, layers are.
    fn freeze_at(&self) -> usize {
        let index = self.shared.index.counts.last_bytes.load(Ordering::Relaxed) as usize;
        let wanted = self.freeze_bytes.load(Ordering::Relaxed);
        wanted.max((index * LAYER_PER_INDEX).min(self.shared.budget.limit() / 8))
    }

    /// Moves the open tail behind, to become a layer.
    pub fn freeze(&mut self) {
        let state = &mut self.state;
        if state.open.is_empty() {
            return;
        }
        let tail = std::mem::take(&mut state.open);
        let lsns = state.frozen_to.add(1)..state.last.add(1);
        info!(timeline = %self.shared.facts.timeline, from = %lsns.start, to = %state.last, bytes = tail.size(), "freezing the tail");
        state.frozen_to = state.last;
        state.chains.rest(tail.size());
        state.frozen.push(tail.clone());
        // The receiver only goes away with the flusher, whose last word comes through `flushed`.
        if let Some(to_flush) = &self.to_flush {
            let _ = to_flush.send(Frozen { tail, lsns, last: state.last, prev: state.prev });
        }
        self.store_view(None);
    }

    /// The next byte of WAL is the one at the end of the last record.
    fn go_on_as(&mut self, tli: Tli) {
        let facts = &self.shared.facts;
        let decoder = WalDecoder::new(facts.pg, facts.wal_segment_size, tli, self.state.last)
            .expecting_system_id(facts.system_identifier);
        self.decoder = match self.state.prev {
            prev if prev.is_valid() => decoder.expecting_prev(prev),
            _ => decoder,
        };
    }

    fn checkpoint(&mut self, answer: oneshot::Sender<Result<Lsn, String>>) {
        self.freeze();
        let done = *self.shared.disk_consistent.borrow();
        if done >= self.state.frozen_to {
            let _ = answer.send(Ok(done));
        } else {
            self.state.checkpoints.push((self.state.frozen_to, answer));
        }
    }

    /// Replaces the oldest frozen tail by the layer it has become.
    fn adopt(&mut self, flushed: Flushed) {
        let tail = self.state.frozen.remove(0);
        let layers = self.shared.view.load().layers.with([flushed.layer]);
        self.store_view(Some(Arc::new(layers)));
        self.shared.budget.give_back(tail.size());
        self.shared.disk_consistent.send_replace(flushed.last);
        let (done, waiting) = std::mem::take(&mut self.state.checkpoints)
            .into_iter()
            .partition(|(lsn, _)| *lsn <= flushed.last);
        self.state.checkpoints = waiting;
        for (_, answer) in done {
            let _ = answer.send(Ok(flushed.last)); // who asked may have gone
        }
    }

    /// Waits until another message's worth of WAL may be taken. For replay, which does not go through the queue.
    pub async fn wait_for_room(&mut self) -> Result<(), OwnerError> {
        while self.state.frozen.len() > self.policy.max_frozen
            || (!self.state.frozen.is_empty() && self.shared.budget.used() >= self.shared.budget.limit())
        {
            match self.flushed.recv().await {
                Some(flushed) => self.adopt(flushed?),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Ingest cannot go on: says why to all who ask. What is readable stays readable.
    pub fn fail(&mut self, stopped: &IngestStopped) {
        let story = error_story(stopped);
        error!(timeline = %self.shared.facts.timeline, error = %story, "ingest has stopped");
        self.state.failed = true;
        self.wal.close();
        self.shared.progress.send_modify(|progress: &mut Progress| progress.error = Some(story.into()));
    }

    /// Writes out what is left; the keeper stores raw WAL on its own.
    async fn close(mut self) -> Result<(), OwnerError> {
        if !self.shared.abandoned.load(Ordering::Relaxed) {
            self.freeze();
        }
        self.to_flush = None;
        // Whoever still looks at it goes by the layers that there are up to where it says that there are.
        while let Some(flushed) = self.flushed.recv().await {
            self.adopt(flushed?);
        }
        Ok(())
    }
}

/// However it ends, others may use its memory.
impl Drop for Owner {
    fn drop(&mut self) {
        let held = self.state.open.size() + self.state.frozen.iter().map(Tail::size).sum::<usize>();
        self.shared.budget.give_back(held);
    }
}
