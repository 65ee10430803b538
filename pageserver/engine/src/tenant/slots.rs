//! A tenant of this process, and what there is of each of its timelines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::{Generation, Lsn, TenantShardId, TimelineId};
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio_util::sync::CancellationToken;

use super::manifest::ManifestKeeper;
use super::{
    ArchivedTimeline, ChangeError, Followed, Hold, Mode, NotFound, Phase, Superseded, TenantConfig,
    TenantInfo, TimelineState,
};
use crate::claim::Claim;
use crate::index_keeper::IndexKeeper;
use crate::index_store::{IndexStore, LoadIndexError};
use crate::ports::BucketError;
use crate::retention::{self, Wishes};
use crate::tenant_size::SizeMemory;
use crate::timeline::{Timeline, TimelinePolicy};

/// How long the tasks of a deleted timeline may take to end: a layer or two may be on their way to the bucket.
const END_PATIENCE: Duration = Duration::from_mins(1);

/// One tenant shard that this process owns.
pub struct Tenant {
    shard: TenantShardId,
    claim: Claim,
    /// The operator's intent that attached it.
    attempt: Option<String>,
    hold: watch::Sender<Hold>,
    config: ArcSwap<TenantConfig>,
    /// Follows the configuration; all its timelines look at it.
    freeze_bytes: Arc<AtomicUsize>,
    /// Somebody waits for its timelines.
    pub(super) wanted: Notify,
    /// It was let go.
    pub(super) detached: CancellationToken,
    pub(super) index_store: IndexStore,
    pub(super) manifest: Mutex<ManifestKeeper>,
    pub(super) detaching: Detaching,
    timelines: RwLock<BTreeMap<TimelineId, Slot>>,
    /// What each timeline asked to be kept when it was last looked at; `None` where its index cannot be read. Also of those that are not open.
    wishes: StdMutex<BTreeMap<TimelineId, Option<Wishes>>>,
    /// Timelines whose tasks have not all ended.
    running: RwLock<BTreeMap<TimelineId, Running>>,
    /// One creation or deletion of a timeline at a time.
    pub(super) changing: Mutex<()>,
    /// Its deletion was asked for: nothing of it is changed any more.
    pub(super) deleting: CancellationToken,
    size: SizeMemory,
}

fn points_of(of: TimelineId, wishes: &BTreeMap<TimelineId, Option<Wishes>>) -> BTreeSet<Lsn> {
    let known = wishes.iter().filter_map(|(id, wishes)| Some((*id, wishes.clone()?)));
    retention::points(of, &known.collect())
}

/// What has to be kept is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index of timeline {0} cannot be read: what it reads of its ancestors is not known")]
pub struct UnknownWishes(pub TimelineId);

/// The one branch that is detached from its ancestor at a time, which takes long and leaves others alone.
#[derive(Default)]
pub(super) struct Detaching {
    turn: Mutex<()>,
    // Held to set or look.
    which: RwLock<Option<TimelineId>>,
}

/// The right to detach a branch.
pub(super) struct DetachingNow<'a> {
    detaching: &'a Detaching,
    _turn: MutexGuard<'a, ()>,
}

impl Detaching {
    /// Waits until no other is detached.
    pub(super) async fn begin(&self, timeline: TimelineId) -> DetachingNow<'_> {
        let turn = self.turn.lock().await;
        *self.which.write().expect("no holder panics") = Some(timeline);
        DetachingNow { detaching: self, _turn: turn }
    }

    /// Waits until none is detached.
    pub(super) async fn ended(&self) {
        drop(self.turn.lock().await);
    }
}

impl Drop for DetachingNow<'_> {
    fn drop(&mut self) {
        *self.detaching.which.write().expect("no holder panics") = None;
    }
}

/// Tasks of an open timeline.
#[derive(Clone)]
pub(super) struct Running {
    pub timeline: Timeline,
    pub ended: CancellationToken,
    /// Something went wrong on the way.
    pub failed: Arc<AtomicBool>,
}

/// What this process has of a timeline.
#[derive(Clone)]
pub(super) enum Slot {
    Open(Timeline),
    /// It is in the bucket only.
    Archived(Arc<ArchivedTimeline>),
    /// Its base is not there yet; nothing can be read. `running` while an import of this process is at it.
    Importing {
        index: Option<Arc<IndexKeeper>>,
        running: bool,
    },
    /// It could not be opened, or its tasks ended.
    Broken(Arc<str>),
    /// Its deletion was asked for. Some of it, or all, is still in the bucket.
    Deleting,
}

/// What there is of a timeline.
#[derive(Clone)]
pub enum TimelineView {
    /// It can be read.
    Open(Timeline),
    /// It is in the bucket only.
    Archived(Arc<ArchivedTimeline>),
    /// Its base is not there yet.
    Importing,
    /// It cannot be read; why.
    Broken(Arc<str>),
    /// It is deleted; its objects are going.
    Deleting,
}

impl Tenant {
    /// Claimed, with nothing open yet.
    pub(super) fn new(claim: Claim, mode: Mode, attempt: Option<String>) -> Tenant {
        Tenant {
            config: ArcSwap::default(),
            freeze_bytes: Arc::default(),
            shard: claim.tenant(),
            attempt,
            hold: watch::channel(Hold { mode, phase: Phase::Loading(None), superseded: None }).0,
            wanted: Notify::new(),
            detached: CancellationToken::new(),
            index_store: IndexStore::new(&claim),
            manifest: Mutex::new(ManifestKeeper::new(claim.clone())),
            detaching: Detaching::default(),
            claim,
            timelines: RwLock::default(),
            wishes: StdMutex::default(),
            running: RwLock::default(),
            changing: Mutex::default(),
            deleting: CancellationToken::new(),
            size: SizeMemory::default(),
        }
    }

    /// Which shard of which tenant.
    pub fn shard(&self) -> TenantShardId {
        self.shard
    }

    /// Ownership of it.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The operator's intent that attached it, if one did.
    pub fn attempt(&self) -> Option<&str> {
        self.attempt.as_deref()
    }

    /// What is remembered of its size.
    pub fn size_memory(&self) -> &SizeMemory {
        &self.size
    }

    /// How it is held, now and later.
    pub fn hold(&self) -> watch::Receiver<Hold> {
        self.hold.subscribe()
    }

    /// What may be done with it now.
    pub fn mode(&self) -> Mode {
        self.hold.borrow().mode
    }

    /// Whether its deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        self.deleting.is_cancelled()
    }

    /// What it is told to do otherwise than the server does.
    pub fn config(&self) -> TenantConfig {
        TenantConfig::clone(&self.config.load())
    }

    /// Goes by a configuration from now on; `policy` is the server's own.
    pub(super) fn go_by(&self, config: TenantConfig, policy: &TimelinePolicy) {
        let freeze_bytes =
            config.checkpoint_distance_bytes.map_or(policy.freeze_bytes, |bytes| bytes as usize);
        self.freeze_bytes.store(freeze_bytes, Ordering::Relaxed);
        self.config.store(Arc::new(config));
    }

    /// Bytes of changes that are gathered into one layer, now and later.
    pub(super) fn freeze_bytes(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.freeze_bytes)
    }

    pub(super) fn change_hold(&self, change: impl FnOnce(&mut Hold)) {
        self.hold.send_if_modified(|hold| {
            let before = hold.clone();
            change(hold);
            *hold != before
        });
    }

    /// There is a newer owner, or the tenant is being deleted: from now on it is held as stale.
    pub(super) fn supersede(&self, generation: Generation) {
        self.change_hold(|hold| {
            hold.mode = Mode::Stale;
            hold.superseded = Some(Superseded { generation, by: None });
        });
    }

    pub(super) fn slot(&self, timeline: TimelineId) -> Option<Slot> {
        self.timelines.read().expect("no holder panics").get(&timeline).cloned()
    }

    pub(super) fn set(&self, timeline: TimelineId, slot: Slot) {
        self.timelines.write().expect("no holder panics").insert(timeline, slot);
    }

    /// What a timeline asks to be kept, of itself and its ancestors; `None` when that cannot be known.
    pub(super) fn note_wishes(&self, timeline: TimelineId, wishes: Option<Wishes>) {
        self.wishes.lock().expect("no holder panics").insert(timeline, wishes);
    }

    /// Which LSNs of a timeline must be kept below its cutoff, by what its indexes said when they were last looked at.
    pub(crate) fn kept_points(&self, of: TimelineId) -> Result<BTreeSet<Lsn>, UnknownWishes> {
        let wishes = self.wishes.lock().expect("no holder panics");
        match wishes.iter().find(|(_, wishes)| wishes.is_none()) {
            Some((unknown, _)) => Err(UnknownWishes(*unknown)),
            None => Ok(points_of(of, &wishes)),
        }
    }

    /// The same as far as it is known: what can be read of a timeline while nothing may be collected.
    pub(crate) fn known_points(&self, of: TimelineId) -> BTreeSet<Lsn> {
        points_of(of, &self.wishes.lock().expect("no holder panics"))
    }

    /// Looks again at what the open timelines ask to be kept.
    pub(crate) async fn refresh_wishes(&self) {
        for (timeline, view) in self.views() {
            match view {
                TimelineView::Open(open) => self.note_wishes(timeline, Some(open.index().wishes().await)),
                TimelineView::Archived(archived) => {
                    self.note_wishes(timeline, Some(archived.wishes(self.claim.surely_now())));
                }
                TimelineView::Deleting => {
                    drop(self.wishes.lock().expect("no holder panics").remove(&timeline));
                }
                TimelineView::Importing | TimelineView::Broken(_) => {}
            }
        }
    }

    pub(super) fn remove(&self, timeline: TimelineId) {
        self.wishes.lock().expect("no holder panics").remove(&timeline);
        self.timelines.write().expect("no holder panics").remove(&timeline);
    }

    /// For a change of its timelines: one at a time, and none when it is deleted.
    pub(crate) async fn change(&self) -> Result<MutexGuard<'_, ()>, ChangeError> {
        let one = self.changing.lock().await;
        if self.deleting.is_cancelled() {
            return Err(ChangeError::Deleting(self.shard));
        }
        let hold = self.hold.borrow();
        match (&hold.phase, hold.mode) {
            (_, Mode::Stale) | (Phase::Detaching, _) => Err(ChangeError::Stale(self.shard)),
            (Phase::Loading(_), _) => Err(NotFound::Loading(self.shard.tenant).into()),
            (Phase::Active, _) => Ok(one),
        }
    }

    /// Nothing can be read any more. Answers all timelines that there were.
    pub(super) fn delete_slots(&self) -> Vec<TimelineId> {
        let mut timelines = self.timelines.write().expect("no holder panics");
        timelines.values_mut().for_each(|slot| *slot = Slot::Deleting);
        timelines.keys().copied().collect()
    }

    /// Ends the tasks of a timeline that is deleted, and waits for that.
    pub(super) async fn abandon(&self, timeline: TimelineId) -> Result<(), ChangeError> {
        let running = self.running.read().expect("no holder panics").get(&timeline).cloned();
        if let Some(Running { timeline: open, ended, .. }) = running {
            open.abandon();
            tokio::time::timeout(END_PATIENCE, ended.cancelled())
                .await
                .map_err(|_| ChangeError::StillRunning(timeline))?;
        }
        // Whatever became of it meanwhile.
        self.set(timeline, Slot::Deleting);
        Ok(())
    }

    /// Ends the tasks of a timeline that is let go of, if it has any, and waits for that; with `flush`, what is in memory is stored first.
    pub(super) async fn end_running(&self, timeline: TimelineId, flush: bool) -> Result<(), ChangeError> {
        let running = self.running.read().expect("no holder panics").get(&timeline).cloned();
        let Some(Running { timeline: open, ended, .. }) = running else { return Ok(()) };
        open.close(flush);
        tokio::time::timeout(END_PATIENCE, ended.cancelled())
            .await
            .map_err(|_| ChangeError::StillRunning(timeline))
    }

    /// A branch that is being detached is neither deleted nor archived: its objects are on their way.
    pub(super) fn refuse_while_detaching(&self, timeline: TimelineId) -> Result<(), ChangeError> {
        match *self.detaching.which.read().expect("no holder panics") {
            Some(detaching) if detaching == timeline => Err(ChangeError::Detaching(timeline)),
            _ => Ok(()),
        }
    }

    /// All open timelines.
    pub fn open_timelines(&self) -> Vec<Timeline> {
        let timelines = self.timelines.read().expect("no holder panics");
        let open = timelines.values().filter_map(|slot| match slot {
            Slot::Open(open) => Some(open.clone()),
            _ => None,
        });
        open.collect()
    }

    /// All archived timelines.
    pub fn archived(&self) -> Vec<Arc<ArchivedTimeline>> {
        let timelines = self.timelines.read().expect("no holder panics");
        let archived = timelines.values().filter_map(|slot| match slot {
            Slot::Archived(archived) => Some(Arc::clone(archived)),
            _ => None,
        });
        archived.collect()
    }

    /// Remembers the tasks of a timeline until they have ended.
    pub(super) fn now_running(&self, running: Running) {
        self.running.write().expect("no holder panics").insert(running.timeline.id(), running);
    }

    /// Its tasks have ended.
    pub(super) fn no_longer_running(&self, timeline: TimelineId) {
        self.running.write().expect("no holder panics").remove(&timeline);
    }

    /// Tells the tasks of all timelines to end, in order.
    pub(super) fn stop_timelines(&self) {
        for running in self.running.read().expect("no holder panics").values() {
            running.timeline.stop();
        }
    }

    /// Ends all timelines because the tenant is let go: sessions that read from them are told to connect anew. With `flush`, what is in memory is
    /// stored first. Answers whether all of it is; waits at most so long.
    pub(super) async fn close_timelines(&self, flush: bool, within: Duration) -> bool {
        let running: Vec<Running> =
            self.running.read().expect("no holder panics").values().cloned().collect();
        for running in &running {
            running.timeline.close(flush);
        }
        let ended = futures::future::join_all(running.iter().map(|running| running.ended.cancelled()));
        let in_time = tokio::time::timeout(within, ended).await.is_ok();
        // Those whose tasks had ended before, too.
        for slot in std::mem::take(&mut *self.timelines.write().expect("no holder panics")).into_values() {
            if let Slot::Open(timeline) = slot {
                timeline.close(false);
            }
        }
        flush && in_time && running.iter().all(|running| !running.failed.load(Ordering::Relaxed))
    }

    pub(super) fn is_stopped(&self, timeline: TimelineId) -> bool {
        match self.slot(timeline) {
            Some(Slot::Open(open)) => open.is_stopped(),
            Some(Slot::Deleting | Slot::Archived(_)) | None => true,
            Some(_) => false,
        }
    }

    /// A timeline that can be read.
    pub fn timeline(&self, timeline: TimelineId) -> Result<Timeline, NotFound> {
        match self.slot(timeline) {
            Some(Slot::Open(open)) => Ok(open),
            Some(Slot::Archived(_)) => Err(NotFound::Archived(timeline)),
            Some(Slot::Importing { .. }) => Err(NotFound::Importing(timeline)),
            Some(Slot::Broken(reason)) => Err(NotFound::Broken { timeline, reason }),
            None if matches!(self.hold.borrow().phase, Phase::Loading(_)) => {
                Err(NotFound::Loading(self.shard.tenant))
            }
            Some(Slot::Deleting) | None => Err(NotFound::Timeline(timeline)),
        }
    }

    /// The import of this process has its index in the bucket: what becomes of it now, the name stays taken.
    pub(crate) fn import_begun(&self, timeline: TimelineId, index: &Arc<IndexKeeper>) {
        self.set(timeline, Slot::Importing { index: Some(Arc::clone(index)), running: true });
    }

    /// An import of this process ended. Unless it made the timeline, the name is free for another attempt.
    pub(crate) fn import_ended(&self, timeline: TimelineId) {
        let mut timelines = self.timelines.write().expect("no holder panics");
        match timelines.get_mut(&timeline) {
            Some(Slot::Importing { index: None, .. }) => drop(timelines.remove(&timeline)),
            Some(Slot::Importing { running, .. }) => *running = false,
            _ => {}
        }
    }

    /// What there is of each timeline.
    pub fn views(&self) -> Vec<(TimelineId, TimelineView)> {
        let timelines = self.timelines.read().expect("no holder panics");
        let view = |slot: &Slot| match slot {
            Slot::Open(timeline) => TimelineView::Open(timeline.clone()),
            Slot::Archived(archived) => TimelineView::Archived(Arc::clone(archived)),
            Slot::Importing { .. } => TimelineView::Importing,
            Slot::Broken(reason) => TimelineView::Broken(Arc::clone(reason)),
            Slot::Deleting => TimelineView::Deleting,
        };
        timelines.iter().map(|(id, slot)| (*id, view(slot))).collect()
    }

    /// Where a timeline's WAL comes from, by its index.
    pub async fn source_of(&self, timeline: TimelineId) -> Option<codec::index_part::Source> {
        let index = match self.slot(timeline)? {
            Slot::Open(open) => Arc::clone(open.index()),
            Slot::Importing { index: Some(index), .. } => index,
            _ => return None,
        };
        index.source().await.map(|(source, _)| source)
    }

    /// The index of a timeline, as whoever changes it here has it; else as it is in the bucket. `None` when there is none to be changed.
    pub(super) async fn index_to_mark(
        &self,
        timeline: TimelineId,
    ) -> Result<Option<Arc<IndexKeeper>>, BucketError> {
        if let Some(Slot::Importing { index: Some(index), .. }) = self.slot(timeline) {
            return Ok(Some(index));
        }
        if let Some(running) = self.running.read().expect("no holder panics").get(&timeline) {
            return Ok(Some(Arc::clone(running.timeline.index())));
        }
        match self.index_store.find(timeline).await {
            Ok(found) => {
                Ok(found.map(|found| Arc::new(IndexKeeper::new(self.claim.clone(), timeline, found))))
            }
            Err(LoadIndexError::Bucket { source, .. }) => Err(source),
            Err(LoadIndexError::Buried(_) | LoadIndexError::Malformed { .. }) => Ok(None),
        }
    }

    /// Stores what is in memory of all its timelines. Answers whether all of it is in the bucket.
    pub async fn flush(&self) -> bool {
        let open = self.views().into_iter().filter_map(|(_, view)| match view {
            TimelineView::Open(timeline) => Some(timeline),
            _ => None,
        });
        let flushes = open.map(|timeline| async move {
            timeline.seal_now().await.is_ok() && timeline.checkpoint().await.is_ok()
        });
        futures::future::join_all(flushes).await.into_iter().all(|flushed| flushed)
    }

    /// Timelines that follow a source, with it, and those whose import is to be started over.
    pub async fn followed(&self) -> Vec<Followed> {
        let slots: Vec<(TimelineId, Slot)> = {
            let timelines = self.timelines.read().expect("no holder panics");
            timelines.iter().map(|(id, slot)| (*id, slot.clone())).collect()
        };
        let mut followed = Vec::new();
        for (id, slot) in slots {
            let (index, timeline) = match slot {
                Slot::Open(open) => (Arc::clone(open.index()), Some(open)),
                Slot::Importing { index: Some(index), running: false } => (index, None),
                _ => continue,
            };
            if let Some((source, _)) = index.source().await {
                followed.push(Followed { id, timeline, source });
            }
        }
        followed
    }

    /// Bytes of the layers of all its timelines in the bucket, but of those that could not be opened.
    pub fn remote_physical_size(&self) -> u64 {
        let timelines = self.timelines.read().expect("no holder panics");
        let open = timelines.values().filter_map(|slot| match slot {
            Slot::Open(open) => Some(open.index().layer_bytes()),
            Slot::Archived(archived) => Some(archived.bytes),
            _ => None,
        });
        open.sum()
    }

    /// All timelines.
    pub fn list(&self) -> Vec<TimelineState> {
        let timelines = self.timelines.read().expect("no holder panics");
        timelines
            .iter()
            .map(|(timeline, slot)| match slot {
                Slot::Open(open) => TimelineState::Active(Box::new(open.info())),
                Slot::Archived(archived) => TimelineState::Archived(Arc::clone(archived)),
                Slot::Importing { .. } => TimelineState::Importing { timeline: *timeline },
                Slot::Broken(reason) => {
                    TimelineState::Broken { timeline: *timeline, reason: Arc::clone(reason) }
                }
                Slot::Deleting => TimelineState::Deleting { timeline: *timeline },
            })
            .collect()
    }

    pub(super) fn info(&self) -> TenantInfo {
        TenantInfo {
            id: self.shard,
            generation: self.claim.generation(),
            timelines: self.timelines.read().expect("no holder panics").len(),
            deleting: self.deleting.is_cancelled(),
            mode: self.mode(),
        }
    }
}
