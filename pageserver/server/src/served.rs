//! The engine's timelines as the page service reads them.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use engine::as_of::ReadError;
use engine::backup::{BackupError, TarSink};
use engine::tenant::Tenants;
use engine::timeline::lease::LeaseError;
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
}

/// One of them.
#[derive(Clone)]
pub struct ServedTimeline {
    timeline: Timeline,
    followers: Followers,
}

impl Histories for Served {
    type History = ServedTimeline;

    fn history(&self, tenant: TenantId, timeline: TimelineId) -> Result<ServedTimeline, HistoryNotFound> {
        match self.tenants.timeline(tenant, timeline) {
            Ok(timeline) => Ok(ServedTimeline { timeline, followers: self.followers.clone() }),
            Err(error) => Err(HistoryNotFound(error.to_string())),
        }
    }
}

impl History for ServedTimeline {
    type Page = Bytes;

    fn last_record_lsn(&self) -> Lsn {
        self.timeline.last_record_lsn()
    }

    fn readable_from(&self) -> Lsn {
        self.timeline.readable_from()
    }

    fn disk_consistent_lsn(&self) -> Lsn {
        self.timeline.disk_consistent_lsn()
    }

    fn source_status(&self) -> String {
        self.followers.status(self.timeline.id())
    }

    async fn wait_for(&self, lsn: Lsn, timeout: Duration) -> Result<(), WaitFailure> {
        self.timeline.wait_for(lsn, timeout).await.map_err(|error| match error {
            WaitError::Timeout { .. } => WaitFailure::TimedOut,
            WaitError::Ingest(reason) => WaitFailure::Broken(reason.to_string()),
            WaitError::Stopped => WaitFailure::Stopping,
        })
    }

    async fn get_pages(&self, requests: &[PageRequest], out: &mut Vec<Result<Bytes, ReadError>>) {
        self.timeline.get_pages(requests, out).await;
    }

    async fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, ReadError> {
        self.timeline.rel_size(rel, lsn).await
    }

    async fn db_size(&self, db: u32, lsn: Lsn) -> Result<u64, ReadError> {
        self.timeline.db_size(db, lsn).await
    }

    async fn slru_segment(&self, kind: SlruKind, segment: u32, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        self.timeline.slru_segment(kind, segment, lsn).await
    }

    fn tenant_shard(&self) -> TenantShardId {
        self.timeline.facts().tenant_shard
    }

    async fn lease(&self, lsn: Lsn, length: Duration) -> Result<Option<SystemTime>, LeaseError> {
        match self.timeline.lease_lsn(lsn, length, SystemTime::now()).await {
            Ok(until) => Ok(Some(until)),
            Err(LeaseError::TooOld { .. }) => Ok(None),
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
                let (last, prev) = self.timeline.last_and_prev();
                let prev = Some(prev).filter(|prev| last == lsn && prev.is_valid());
                self.timeline.full_backup(lsn, prev, out).await.map(|report| report.bytes)
            }
            BackupKind::Base => self.timeline.base_backup(lsn, out).await.map(|report| report.bytes),
        };
        match bytes {
            Ok(bytes) => {
                tracing::info!(timeline = %self.timeline.id(), %lsn, bytes, ?kind, "sent a backup");
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
