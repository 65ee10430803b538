//! What is told of this process: its tenant shards, their timelines, and what has changed since.
//!
//! Nothing reports to the board: it looks at everything twice a second and compares, which costs microseconds a timeline and cannot forget a
//! change. LSNs, bytes and sessions are told, but are no change.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::chunk_cache::ChunkCache;
use engine::tenant::{Mode as HoldMode, Phase, Tenant, Tenants, TimelineView};
use model::TimelineId;
use proto::v1::{
    Disk, Mode, ShardState, ShardStatus, SourceState, SourceStatus, Status, TimelineState, TimelineStatus,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::storage::StorageWatch;
use crate::drain::DrainFiles;
use crate::served::Readers;
use crate::source::course::Stage;
use crate::source::followers::Followers;

/// How often the board looks around.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Shards that went away are remembered for watchers, so many; beyond, everything is told.
const MOST_GONE: usize = 10_000;

/// What the board looks at.
#[derive(Clone)]
pub struct BoardSources {
    /// Tenants.
    pub tenants: Tenants,
    /// Their sources.
    pub followers: Followers,
    /// Who reads.
    pub readers: Readers,
    /// The bucket.
    pub storage: StorageWatch,
    /// The local cache.
    pub cache: Arc<ChunkCache>,
    /// Bytes that the cache may have.
    pub cache_limit: u64,
    /// How the process beside this one asks for it to be emptied.
    pub drain: DrainFiles,
}

/// The board. Cheap to clone.
#[derive(Clone)]
pub struct Board {
    inner: Arc<Inner>,
}

struct Inner {
    instance: String,
    sources: BoardSources,
    draining: AtomicBool,
    // Guards what was seen; held to compare and to copy, never across an await.
    seen: Mutex<Seen>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct Seen {
    /// With the revision of their last change.
    shards: BTreeMap<String, (u64, ShardStatus)>,
    gone: BTreeMap<String, u64>,
    /// Older revisions cannot be compared with.
    oldest: u64,
    rest: Status,
}

impl Board {
    /// Of a process that just started.
    pub fn new(instance: String, sources: BoardSources) -> Board {
        let inner = Inner {
            instance,
            sources,
            draining: AtomicBool::new(false),
            seen: Mutex::default(),
            revision: watch::channel(1).0,
        };
        Board { inner: Arc::new(inner) }
    }

    /// This process.
    pub fn instance(&self) -> &str {
        &self.inner.instance
    }

    /// Changes as they come.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    /// Whether this process is to be emptied.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed) || self.inner.sources.drain.is_wanted()
    }

    /// Says whether this process is to be emptied.
    pub fn set_draining(&self, draining: bool) {
        self.inner.draining.store(draining, Ordering::Relaxed);
        self.look();
    }

    /// Looks until told to stop.
    pub async fn keep(self, stop: CancellationToken) -> Result<(), Infallible> {
        loop {
            self.look();
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Looks at everything now.
    pub fn look(&self) {
        let sources = &self.inner.sources;
        let now = sources.tenants.attached().into_iter().map(|tenant| {
            let status = shard_status(&tenant, sources);
            (status.tenant_shard_id.clone(), status)
        });
        let now: BTreeMap<String, ShardStatus> = now.collect();
        if self.is_draining() {
            sources.drain.tell(now.is_empty());
        }
        let rest = Status {
            instance: self.inner.instance.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            storage: Some(sources.storage.found()),
            draining: self.is_draining(),
            disk: Some(Disk { total: sources.cache_limit, used: sources.cache.disk_used() }),
            ..Status::default()
        };
        let mut seen = self.seen();
        let next = *self.inner.revision.borrow() + 1;
        if seen.compare(now, rest, next) {
            drop(seen);
            self.inner.revision.send_replace(next);
        }
    }

    /// Everything.
    pub fn everything(&self) -> Status {
        self.look();
        let seen = self.seen();
        let shards = seen.shards.values().map(|(_, shard)| shard.clone()).collect();
        Status { revision: *self.inner.revision.borrow(), complete: true, shards, ..seen.rest.clone() }
    }

    /// What changed after a revision; `None` when that is not one of this process, or too old.
    pub fn since(&self, revision: u64) -> Option<Status> {
        let seen = self.seen();
        let newest = *self.inner.revision.borrow();
        if revision > newest || revision < seen.oldest {
            return None;
        }
        let changed = seen.shards.values().filter(|(at, _)| *at > revision);
        Some(Status {
            revision: newest,
            complete: false,
            shards: changed.map(|(_, shard)| shard.clone()).collect(),
            gone: seen.gone.iter().filter(|(_, at)| **at > revision).map(|(id, _)| id.clone()).collect(),
            ..seen.rest.clone()
        })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Takes what there is now; answers whether anything is a change, which then is that of revision `next`.
    fn compare(&mut self, now: BTreeMap<String, ShardStatus>, rest: Status, next: u64) -> bool {
        let mut changed = steady_rest(&self.rest) != steady_rest(&rest);
        self.rest = rest;
        for id in self.shards.keys().filter(|id| !now.contains_key(*id)).cloned().collect::<Vec<_>>() {
            self.shards.remove(&id);
            self.gone.insert(id, next);
            changed = true;
        }
        for (id, status) in now {
            let before = self.shards.get(&id);
            let same = before.is_some_and(|(_, before)| steady(before) == steady(&status));
            let at = before.filter(|_| same).map_or(next, |(at, _)| *at);
            changed |= !same;
            self.gone.remove(&id);
            self.shards.insert(id, (at, status));
        }
        if self.gone.len() > MOST_GONE {
            self.gone.clear();
            self.oldest = next;
        }
        changed
    }
}

/// Without what moves all the time.
fn steady(shard: &ShardStatus) -> ShardStatus {
    let mut shard = ShardStatus { connections: 0, ..shard.clone() };
    for timeline in &mut shard.timelines {
        timeline.last_record_lsn.clear();
        if let Some(source) = &mut timeline.source {
            source.imported_bytes = 0;
            if matches!(source.state(), SourceState::Streaming | SourceState::Importing) {
                source.message.clear();
            }
        }
    }
    shard
}

fn steady_rest(rest: &Status) -> Status {
    Status { disk: None, ..rest.clone() }
}

fn shard_status(tenant: &Tenant, sources: &BoardSources) -> ShardStatus {
    let hold = tenant.hold().borrow().clone();
    let (state, message) = match hold.phase {
        Phase::Loading(trouble) => (ShardState::Loading, trouble.map(|trouble| trouble.to_string())),
        Phase::Active => (ShardState::Active, None),
        Phase::Detaching => (ShardState::Detaching, None),
    };
    let superseded = hold.superseded;
    ShardStatus {
        tenant_shard_id: tenant.shard().to_string(),
        generation: tenant.claim().generation().0,
        mode: mode_out(hold.mode).into(),
        state: state.into(),
        attempt: tenant.attempt().unwrap_or_default().into(),
        connections: sources.readers.of(tenant.shard().tenant),
        superseded_by: superseded.as_ref().map_or(0, |newer| newer.generation.0),
        superseded_by_pool_uid: superseded
            .and_then(|newer| newer.by)
            .map(|by| by.pool_uid)
            .unwrap_or_default(),
        message: message.unwrap_or_default(),
        timelines: tenant
            .views()
            .iter()
            .map(|(id, view)| timeline_status(*id, view, &sources.followers))
            .collect(),
    }
}

/// What is told of a timeline.
pub fn timeline_status(id: TimelineId, view: &TimelineView, followers: &Followers) -> TimelineStatus {
    let source = followers.stage(id).map(|stage| source_status(&stage, followers.status(id)));
    let mut status = TimelineStatus { timeline_id: id.to_string(), source, ..TimelineStatus::default() };
    match view {
        TimelineView::Open(timeline) => {
            let is_paused = followers.is_paused(id);
            status.set_state(if is_paused { TimelineState::Stopped } else { TimelineState::Active });
            // Ingest has stopped; what is there can be read.
            status.message = timeline.trouble().unwrap_or_default();
            status.last_record_lsn = timeline.last_record_lsn().to_string();
            status.readable_from_lsn = timeline.readable_from().to_string();
            status.ancestor_timeline_id =
                timeline.ancestor().map(|(ancestor, _)| ancestor.to_string()).unwrap_or_default();
        }
        TimelineView::Archived(archived) => {
            status.set_state(TimelineState::Archived);
            status.message = archived.reason.clone().unwrap_or_default();
            status.ancestor_timeline_id =
                archived.ancestor.map(|(ancestor, _)| ancestor.to_string()).unwrap_or_default();
            status.last_record_lsn = archived.disk_consistent_lsn.to_string();
            status.readable_from_lsn = archived.readable_from.map(|lsn| lsn.to_string()).unwrap_or_default();
        }
        TimelineView::Importing => status.set_state(TimelineState::Importing),
        TimelineView::Broken(reason) => {
            status.set_state(TimelineState::Broken);
            status.message = reason.to_string();
        }
        TimelineView::Deleting => status.set_state(TimelineState::Deleting),
    }
    status
}

fn source_status(stage: &Stage, message: String) -> SourceStatus {
    let state = match stage {
        Stage::Connecting => SourceState::Connecting,
        Stage::Importing { .. } => SourceState::Importing,
        Stage::Streaming => SourceState::Streaming,
        Stage::Disconnected | Stage::Stopped => SourceState::Disconnected,
        Stage::SlotLost => SourceState::SlotLost,
        Stage::Diverged => SourceState::Diverged,
        Stage::Archived { .. } => SourceState::Parted,
        Stage::Imported => SourceState::Unspecified,
    };
    let mut status = SourceStatus { state: state.into(), message, ..SourceStatus::default() };
    match stage {
        Stage::Importing { done, total } => (status.imported_bytes, status.total_bytes) = (*done, *total),
        Stage::Archived { successor: Some(successor) } => {
            status.successor_timeline_id = successor.to_string();
        }
        _ => {}
    }
    status
}

/// The engine's mode as the API's.
pub fn mode_out(mode: HoldMode) -> Mode {
    match mode {
        HoldMode::Single => Mode::Single,
        HoldMode::Multi => Mode::Multi,
        HoldMode::Stale => Mode::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, generation: u32, connections: u32) -> (String, ShardStatus) {
        let status =
            ShardStatus { tenant_shard_id: id.into(), generation, connections, ..ShardStatus::default() };
        (id.into(), status)
    }

    #[test]
    fn only_what_is_steady_is_a_change_and_what_went_is_told() {
        let mut seen = Seen::default();
        assert!(seen.compare([shard("a", 1, 0), shard("b", 1, 0)].into(), Status::default(), 2));
        assert!(!seen.compare([shard("a", 1, 5), shard("b", 1, 0)].into(), Status::default(), 3));
        assert_eq!(seen.shards["a"].1.connections, 5);
        assert!(seen.compare([shard("a", 2, 5)].into(), Status::default(), 3));
        assert_eq!((seen.shards["a"].0, seen.gone["b"]), (3, 3));
        assert!(seen.compare([shard("a", 2, 5), shard("b", 3, 0)].into(), Status::default(), 4));
        assert!(seen.gone.is_empty() && seen.shards["a"].0 == 3);
        assert!(seen.compare(
            [shard("a", 2, 5), shard("b", 3, 0)].into(),
            Status { draining: true, ..Status::default() },
            5
        ));
    }
}
