//! The engine's timelines as the page service reads them.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use codec::history::TimelineHistory;
use codec::index_part::Restore;
use engine::as_of::ReadError;
use engine::fullbackup::{self, FullBackupError, FullBackupOptions, TarSink};
use engine::tenant::Tenants;
use engine::timeline::{Timeline, WaitError};
use model::{Lsn, RelTag, SlruKind, TenantId, TimelineId, Tli};
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

    async fn slru_segment(
        &self,
        kind: SlruKind,
        segment: u32,
        lsn: Lsn,
    ) -> Result<Option<Bytes>, ReadError> {
        self.timeline.slru_segment(kind, segment, lsn).await
    }

    async fn backup(
        &self,
        kind: BackupKind,
        lsn: Lsn,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<(), BackupFailure> {
        if kind != BackupKind::Full {
            return Err(BackupFailure::Failed("base backups for remote pages are not offered yet".into()));
        }
        let options = self.backup_options(lsn).await?;
        let view = self.timeline.at(lsn);
        match fullbackup::write(&view, &options, &mut TarTo(out)).await {
            Ok(report) => {
                tracing::info!(timeline = %self.timeline.id(), %lsn, bytes = report.bytes, "sent a full backup");
                Ok(())
            }
            Err(FullBackupError::Sink(error)) => Err(BackupFailure::Send(error)),
            Err(FullBackupError::Read(error)) => Err(BackupFailure::Read(error)),
            Err(error) => Err(BackupFailure::Failed(Box::new(error))),
        }
    }
}

impl ServedTimeline {
    /// Notes the backup in the index before it is handed out: two of one LSN have the same system identifier and Postgres timeline, and
    /// only the nonce tells which of them later streams its WAL back.
    async fn backup_options(&self, lsn: Lsn) -> Result<FullBackupOptions, BackupFailure> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| BackupFailure::Failed(error);
        let index = self.timeline.index();
        let part = index.part().await;
        let switches = part.palimpsest.as_ref().map(|ours| ours.tli_history.clone()).unwrap_or_default();
        let mut switches = switches.iter().filter(|start| start.from <= lsn);
        let first = switches.next().map_or(Tli(1), |start| start.tli);
        let mut history = TimelineHistory::first(first);
        for start in switches {
            history = history
                .branch(start.tli, start.from, "followed by Palimpsest")
                .map_err(|error| failed(Box::new(error)))?;
        }
        let nonce: [u8; 16] = rand::random();
        let restore = Restore { nonce: hex::encode(nonce), lsn, tli: Tli(history.tli().0 + 1) };
        index
            .update(|part| {
                if let Some(ours) = &mut part.palimpsest {
                    ours.restores.push(restore);
                }
            })
            .await
            .map_err(|error| failed(Box::new(error)))?;
        index.claim().validate().await.map_err(|error| failed(Box::new(error)))?;
        let (last, prev) = self.timeline.last_and_prev();
        let mut options = FullBackupOptions::new(history, nonce);
        options.prev_lsn = (last == lsn && prev.is_valid()).then_some(prev);
        Ok(options)
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
