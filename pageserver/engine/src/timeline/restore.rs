//! Making clusters from a timeline, and following the Postgres timelines that they start.

use codec::history::{HistoryError, TimelineHistory};
use codec::index_part::{Archived, Restore, TliStart, Unknown};
use model::{Lsn, TimelineId, Tli};

use super::{AppendError, Timeline};
use crate::backup::{
    BackupError, BaseBackupOptions, BaseBackupReport, FullBackupOptions, FullBackupReport, PrevLsn, TarSink,
    base, full,
};
use crate::chunk_cache::as_scan;
use crate::claim::ValidateError;
use crate::index_store::PutIndexError;

/// How the reason begins in the history file of a cluster that was restored from here; the restore's nonce in hexadecimal follows.
pub const RESTORED_REASON: &str = "restored by Palimpsest, ";

/// Why a cluster was not made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RestoreError {
    #[error(transparent)]
    Write(#[from] BackupError),
    #[error("the timeline's history of Postgres timelines is broken")]
    History(#[from] HistoryError),
    #[error("cannot remember the restore")]
    Index(#[from] PutIndexError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
    #[error("the timeline does not follow a Postgres")]
    NoPostgres,
}

/// Why a switch to another Postgres timeline was not taken.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SwitchError {
    #[error(
        "Postgres timeline {tli} from {from} on does not follow Postgres timeline {last}, which begins at {last_from}"
    )]
    Backwards { tli: Tli, from: Lsn, last: Tli, last_from: Lsn },
    #[error("WAL of Postgres timeline {last} was taken up to {received}, past the switch to {tli} at {from}")]
    Forked { tli: Tli, from: Lsn, last: Tli, received: Lsn },
    #[error("cannot note the switch")]
    Index(#[from] PutIndexError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("the timeline does not follow a Postgres")]
    NoPostgres,
}

impl Timeline {
    /// The history of Postgres timelines up to `lsn`, as far back as this timeline knows.
    pub async fn postgres_history(&self, lsn: Lsn) -> Result<TimelineHistory, RestoreError> {
        let part = self.index().part().await;
        let ours = part.palimpsest.as_ref().ok_or(RestoreError::NoPostgres)?;
        let (first, later) = ours.tli_history.split_first().ok_or(RestoreError::NoPostgres)?;
        let mut history = TimelineHistory::first(first.tli);
        for start in later.iter().take_while(|start| start.from <= lsn) {
            let restore = ours.restores.iter().find(|restore| restore.followed && restore.tli == start.tli);
            let reason = restore.map_or_else(
                || "followed by Palimpsest".to_owned(),
                |restore| format!("{RESTORED_REASON}{}", restore.nonce),
            );
            history = history.branch(start.tli, start.from, &reason)?;
        }
        Ok(history)
    }

    /// Streams a cluster as of `lsn` that stock Postgres starts at once, on a new Postgres timeline. What tells this restore from others of the same
    /// LSN is remembered before the first byte goes.
    pub async fn full_backup(
        &self,
        lsn: Lsn,
        prev: Option<Lsn>,
        out: &mut dyn TarSink,
    ) -> Result<FullBackupReport, RestoreError> {
        let nonce: [u8; 16] = rand::random();
        let mut options = FullBackupOptions::new(self.postgres_history(lsn).await?, nonce);
        options.prev_lsn = prev;
        let tli = Tli(options.history.tli().0 + 1);
        let restore = Restore { nonce: hex::encode(nonce), lsn, tli, followed: false };
        self.index()
            .update(|part| {
                if let Some(ours) = &mut part.palimpsest {
                    ours.restores.push(restore);
                }
            })
            .await?;
        self.index().claim().validate().await?;
        // It comes by everything once.
        Ok(as_scan(full::write(&self.at(lsn), &options, out)).await?)
    }

    /// Streams what a compute that reads its pages from here starts from, as of `lsn`.
    pub async fn base_backup(
        &self,
        lsn: Lsn,
        out: &mut dyn TarSink,
    ) -> Result<BaseBackupReport, RestoreError> {
        let (last, prev) = self.last_and_prev();
        let prev = if last == lsn && prev.is_valid() {
            PrevLsn::At(prev)
        } else if self.facts().branched_at == Some(lsn) {
            PrevLsn::None
        } else {
            PrevLsn::Unknown
        };
        let tli = self.postgres_history(lsn).await?.tli();
        Ok(base::write(&self.at(lsn), BaseBackupOptions { tli, prev }, out).await?)
    }

    /// Notes that the source went on as another Postgres timeline, before any of its WAL is stored. A switch that is known already changes nothing.
    ///
    /// `nonce` is that of the restore which made the Postgres timeline, if one did. The beginning of a record that was received past the switch is
    /// forgotten: the Postgres that went on did not have it.
    pub async fn note_switch(&self, tli: Tli, from: Lsn, nonce: Option<&str>) -> Result<(), SwitchError> {
        let part = self.index().part().await;
        let starts = part.palimpsest.as_ref().map(|ours| ours.tli_history.clone()).unwrap_or_default();
        let last = *starts.last().ok_or(SwitchError::NoPostgres)?;
        let ingested = self.settled().await?;
        let branched_at = self.facts().branched_at.unwrap_or(Lsn::INVALID);
        if !starts.iter().any(|start| (start.tli, start.from) == (tli, from)) {
            if tli <= last.tli || from < last.from {
                return Err(SwitchError::Backwards { tli, from, last: last.tli, last_from: last.from });
            }
            if ingested > branched_at && ingested > from {
                return Err(SwitchError::Forked { tli, from, last: last.tli, received: ingested });
            }
            self.index()
                .update(|part| {
                    if let Some(ours) = &mut part.palimpsest {
                        ours.tli_history.push(TliStart { tli, from });
                        for restore in &mut ours.restores {
                            restore.followed |= nonce == Some(restore.nonce.as_str());
                        }
                    }
                })
                .await?;
            self.index().claim().validate().await?;
        }
        if ingested == from && self.received() > from && self.tli() < tli {
            tracing::info!(received = %self.received(), %from, "the beginning of a record is dropped: the source went on without it");
            self.go_on_as(tli).await?;
        }
        Ok(())
    }

    /// A branch that follows an ordinary Postgres takes WAL from exactly its branch point on, not from that page's beginning, where a cluster that was
    /// restored there begins.
    pub async fn begin_at_branch_point(&self, tli: Tli) -> Result<(), SwitchError> {
        // Elsewhere what is received may end before the last record, too: in the unused rest of a segment, which must not be missing in the bucket.
        let last = self.last_record_lsn();
        let is_fresh_branch = self.facts().branched_at == Some(last);
        if is_fresh_branch && self.received() < last {
            self.go_on_as(tli).await?;
        }
        Ok(())
    }

    /// Why it takes no WAL any more and what goes on in its place, if its source left it.
    pub async fn succession(&self) -> Option<Archived> {
        self.index().part().await.palimpsest.as_ref().and_then(|ours| ours.archived.clone())
    }

    /// Retires it because its source left it: nothing is received any more, all stays readable, `successor` goes on from `at`. That is on record
    /// before anything of the successor is, so that it can be made by whoever comes next. What is retired already stays as it is.
    pub async fn retire(
        &self,
        reason: &str,
        successor: TimelineId,
        at: Lsn,
    ) -> Result<Archived, SwitchError> {
        if self.succession().await.is_none() {
            // No source has this WAL any more: what is not in the bucket when nobody receives any longer would be lost.
            self.seal_now().await.map_err(AppendError::from)?;
            self.index()
                .update(|part| {
                    if let Some(ours) = &mut part.palimpsest {
                        ours.archived = Some(Archived {
                            reason: reason.to_owned(),
                            on_request: false,
                            slot_dropped: false,
                            successor: Some(successor),
                            at: Some(at),
                            unknown: Unknown::new(),
                        });
                    }
                })
                .await?;
        }
        self.index().claim().validate().await?;
        self.succession().await.ok_or(SwitchError::NoPostgres)
    }
}
