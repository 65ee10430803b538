//! The engine's timelines as the page service reads them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use engine::as_of::ReadError;
use engine::backup::{BackupError, TarSink};
use engine::tenant::{Mode, NotFound, Tenant, Tenants};
use engine::timeline::lease::{LeaseError, OutOfHistory};
use engine::timeline::restore::RestoreError;
use engine::timeline::{Timeline, WaitError};
use model::{Lsn, RelTag, SlruKind, TenantId, TenantShardId, TimelineId};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::histories::{
    BackupFailure, BackupKind, Histories, History, HistoryNotFound, PageRequest, WaitFailure,
};
use crate::source::followers::Followers;

/// All timelines of the process.
#[derive(Clone)]
pub struct Served {
    /// The engine.
    pub tenants: Tenants,
    /// For messages about sources.
    pub followers: Followers,
    /// Who reads.
    pub readers: Readers,
}

/// How long a client waits for a tenant to be opened: with the bucket at hand it takes a moment.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);

/// One of them. Cheap to clone: one count.
#[derive(Clone)]
pub struct ServedTimeline {
    served: Arc<Session>,
}

/// What a session reads from.
struct Session {
    timeline: Timeline,
    tenant: Arc<Tenant>,
    followers: Followers,
    _seat: Seat,
}

/// How many sessions read from each tenant.
#[derive(Clone, Debug, Default)]
pub struct Readers {
    // Guards the counts; held to change one.
    seats: Arc<Mutex<HashMap<TenantId, u32>>>,
}

impl Readers {
    /// Sessions that read from a tenant now.
    pub fn of(&self, tenant: TenantId) -> u32 {
        self.lock().get(&tenant).copied().unwrap_or(0)
    }

    fn sit_down(&self, tenant: TenantId) -> Seat {
        *self.lock().entry(tenant).or_default() += 1;
        Seat { readers: self.clone(), tenant }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, u32>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that is counted.
struct Seat {
    readers: Readers,
    tenant: TenantId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.readers.lock();
        if let Some(count) = seats.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                seats.remove(&self.tenant);
            }
        }
    }
}

impl Histories for Served {
    type History = ServedTimeline;

    async fn history(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<ServedTimeline, HistoryNotFound> {
        let not_found = |error: NotFound| HistoryNotFound(error.to_string());
        let tenant = self.tenants.tenant(tenant).map_err(not_found)?;
        // What is not open then is answered as such.
        let _ = tokio::time::timeout(OPEN_PATIENCE, self.tenants.opened(&tenant)).await;
        let timeline = tenant.timeline(timeline).map_err(not_found)?;
        let seat = self.readers.sit_down(tenant.shard().tenant);
        let served = Session { timeline, tenant, followers: self.followers.clone(), _seat: seat };
        Ok(ServedTimeline { served: Arc::new(served) })
    }
}

impl History for ServedTimeline {
    type Page = Bytes;

    fn last_record_lsn(&self) -> Lsn {
        self.served.timeline.last_record_lsn()
    }

    fn readable_from(&self) -> Lsn {
        self.served.timeline.readable_from()
    }

    fn disk_consistent_lsn(&self) -> Lsn {
        self.served.timeline.disk_consistent_lsn()
    }

    fn source_status(&self) -> String {
        self.served.followers.status(self.served.timeline.id())
    }

    fn is_elsewhere(&self) -> bool {
        self.served.timeline.is_closed()
    }

    async fn wait_for(&self, lsn: Lsn, timeout: Duration) -> Result<(), WaitFailure> {
        let mut hold = self.served.tenant.hold();
        // Nothing more comes in here; it does elsewhere.
        let stale = hold.wait_for(|hold| hold.mode == Mode::Stale);
        let waited = tokio::select! {
            biased;
            waited = self.served.timeline.wait_for(lsn, timeout) => waited,
            _ = stale => return Err(WaitFailure::Elsewhere),
        };
        waited.map_err(|error| match error {
            WaitError::Timeout { .. } => WaitFailure::TimedOut,
            WaitError::Ingest(reason) => WaitFailure::Broken(reason.to_string()),
            WaitError::Stopped if self.is_elsewhere() => WaitFailure::Elsewhere,
            WaitError::Stopped => WaitFailure::Stopping,
        })
    }

    async fn get_pages(&self, requests: &[PageRequest], out: &mut Vec<Result<Bytes, ReadError>>) {
        self.served.timeline.get_pages(requests, out).await;
    }

    async fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, ReadError> {
        self.served.timeline.rel_size(rel, lsn).await
    }

    async fn db_size(&self, db: u32, lsn: Lsn) -> Result<u64, ReadError> {
        self.served.timeline.db_size(db, lsn).await
    }

    async fn slru_segment(&self, kind: SlruKind, segment: u32, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        self.served.timeline.slru_segment(kind, segment, lsn).await
    }

    fn tenant_shard(&self) -> TenantShardId {
        self.served.timeline.facts().tenant_shard
    }

    async fn lease(&self, lsn: Lsn, length: Duration) -> Result<Option<SystemTime>, LeaseError> {
        match self.served.timeline.lease_lsn(lsn, length, SystemTime::now()).await {
            Ok(until) => Ok(Some(until)),
            Err(LeaseError::OutOfHistory(OutOfHistory::TooOld { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn backup(
        &self,
        kind: BackupKind,
        lsn: Lsn,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<(), BackupFailure> {
        let out = &mut TarTo(out);
        let bytes = match kind {
            BackupKind::Full => {
                let (last, prev) = self.served.timeline.last_and_prev();
                let prev = Some(prev).filter(|prev| last == lsn && prev.is_valid());
                self.served.timeline.full_backup(lsn, prev, out).await.map(|report| report.bytes)
            }
            BackupKind::Base => self.served.timeline.base_backup(lsn, out).await.map(|report| report.bytes),
        };
        match bytes {
            Ok(bytes) => {
                tracing::info!(timeline = %self.served.timeline.id(), %lsn, bytes, ?kind, "sent a backup");
                Ok(())
            }
            Err(RestoreError::Write(BackupError::Sink(error))) => Err(BackupFailure::Send(error)),
            Err(RestoreError::Write(BackupError::Read(error))) => Err(BackupFailure::Read(error)),
            Err(error) => Err(BackupFailure::Failed(Box::new(error))),
        }
    }
}

/// The archive's bytes into a writer.
struct TarTo<'a, W>(&'a mut W);

#[async_trait]
impl<W: AsyncWrite + Unpin + Send> TarSink for TarTo<'_, W> {
    async fn send(&mut self, chunk: Bytes) -> std::io::Result<()> {
        self.0.write_all(&chunk).await
    }
}
