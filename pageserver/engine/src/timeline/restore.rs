//! Restoring clusters from a timeline, and following the Postgres timelines that they start.

use codec::history::{HistoryError, TimelineHistory};
use codec::index_part::{Restore, TliStart};
use model::{Lsn, Tli};

use super::Timeline;
use crate::claim::ValidateError;
use crate::fullbackup::{self, FullBackupError, FullBackupOptions, FullBackupReport, TarSink};
use crate::index_store::PutIndexError;

/// Why a cluster was not restored.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RestoreError {
    #[error(transparent)]
    Write(#[from] FullBackupError),
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
    #[error("the timeline does not follow a Postgres")]
    NoPostgres,
}

impl Timeline {
    /// The history of Postgres timelines up to `lsn`, as far back as this timeline knows.
    pub async fn postgres_history(&self, lsn: Lsn) -> Result<TimelineHistory, RestoreError> {
        let part = self.index().part().await;
        let starts = part.palimpsest.map(|ours| ours.tli_history).unwrap_or_default();
        let (first, later) = starts.split_first().ok_or(RestoreError::NoPostgres)?;
        let mut history = TimelineHistory::first(first.tli);
        for start in later.iter().take_while(|start| start.from <= lsn) {
            history = history.branch(start.tli, start.from, "followed by Palimpsest")?;
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
        let restore = Restore { nonce: hex::encode(nonce), lsn, tli };
        self.index()
            .update(|part| {
                if let Some(ours) = &mut part.palimpsest {
                    ours.restores.push(restore);
                }
            })
            .await?;
        self.index().claim().validate().await?;
        Ok(fullbackup::write(&self.at(lsn), &options, out).await?)
    }

    /// Notes that the source went on as another Postgres timeline, before any of its WAL is stored. A switch that is known already changes nothing.
    pub async fn note_switch(&self, tli: Tli, from: Lsn) -> Result<(), SwitchError> {
        let part = self.index().part().await;
        let starts = part.palimpsest.map(|ours| ours.tli_history).unwrap_or_default();
        let last = *starts.last().ok_or(SwitchError::NoPostgres)?;
        if starts.iter().any(|start| (start.tli, start.from) == (tli, from)) {
            return Ok(());
        }
        if tli <= last.tli || from < last.from {
            return Err(SwitchError::Backwards { tli, from, last: last.tli, last_from: last.from });
        }
        let has_own_wal = self.last_record_lsn() > self.facts().ancestor.map_or(Lsn::INVALID, |(_, lsn)| lsn);
        if has_own_wal && self.last_record_lsn() > from {
            return Err(SwitchError::Forked { tli, from, last: last.tli, received: self.last_record_lsn() });
        }
        self.index()
            .update(|part| {
                if let Some(ours) = &mut part.palimpsest {
                    ours.tli_history.push(TliStart { tli, from });
                }
            })
            .await?;
        Ok(self.index().claim().validate().await?)
    }
}
