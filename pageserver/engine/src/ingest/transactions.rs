//! Ends of transactions, prepared transactions, replication origins.

use std::collections::BTreeMap;

use codec::directory::TwoPhaseDirectory;
use codec::slru::{clog_page, commit_ts_page};
use codec::value::{Change, Value};
use codec::wal::payload::xact::{Finished, Prepare};
use codec::wal::record::Record;
use model::{Key, Lsn, PgMajor, SlruKind};

use super::{At, Ingest, IngestError, Latest, get, stored};
use crate::changes::Changes;

/// Which transactions are prepared.
#[derive(Debug)]
pub(super) struct TwoPhase {
    pg: PgMajor,
    directory: TwoPhaseDirectory,
    is_changed: bool,
}

impl TwoPhase {
    pub(super) async fn load(latest: &impl Latest, pg: PgMajor) -> Result<TwoPhase, IngestError> {
        let at = At { start: Lsn::INVALID, end: Lsn::INVALID };
        let key = Key::TWO_PHASE_DIRECTORY;
        let directory = match get(latest, key, at).await? {
            None => TwoPhaseDirectory::default(),
            Some(bytes) => TwoPhaseDirectory::decode(&bytes, pg)
                .map_err(|problem| stored("directory of prepared transactions", key, &problem))?,
        };
        Ok(TwoPhase { pg, directory, is_changed: false })
    }

    pub(super) fn push_changed(&mut self, changes: &mut Changes, lsn: Lsn) {
        if std::mem::take(&mut self.is_changed) {
            let bytes = self.directory.encode(self.pg);
            changes.push(Key::TWO_PHASE_DIRECTORY, lsn, &Value::Image(&bytes));
        }
    }
}

/// How far replication origins were replayed.
#[derive(Debug, Default)]
pub(super) struct Origins {
    known: BTreeMap<u16, Lsn>,
    changed: Vec<u16>,
}

impl Origins {
    pub(super) async fn load(latest: &impl Latest) -> Result<Origins, IngestError> {
        let entries = latest
            .scan(Key::replication_origin_range())
            .await
            .map_err(|source| IngestError::Read { at: Lsn::INVALID, source })?;
        let mut known = BTreeMap::new();
        for (key, value) in entries.into_iter().filter(|(_, value)| !value.is_empty()) {
            let lsn: [u8; 8] = value[..]
                .try_into()
                .map_err(|_| stored("replication origin", key, &format_args!("{} bytes", value.len())))?;
            let lsn = Lsn(u64::from_be_bytes(lsn));
            if lsn.is_valid() {
                known.insert(key.field6 as u16, lsn);
            }
        }
        Ok(Origins { known, changed: Vec::new() })
    }

    /// An origin was replayed up to here; backwards only by force.
    pub(super) fn set(&mut self, id: u16, lsn: Lsn, force: bool) {
        let known = self.known.entry(id).or_insert(Lsn::INVALID);
        if *known < lsn || (force && *known != lsn) {
            *known = lsn;
            self.changed.push(id);
        }
    }

    pub(super) fn drop(&mut self, id: u16) {
        if self.known.remove(&id).is_some() {
            self.changed.push(id);
        }
    }

    pub(super) fn push_changed(&mut self, changes: &mut Changes, lsn: Lsn) {
        // A record changes at most one.
        if let Some(id) = self.changed.pop() {
            self.changed.clear();
            let bytes = self.known.get(&id).map(|remote| remote.0.to_be_bytes());
            let bytes = bytes.as_ref().map_or(&[][..], |bytes| &bytes[..]);
            changes.push(Key::replication_origin(id), lsn, &Value::Image(bytes));
        }
    }
}

impl Ingest {
    /// A transaction ended, prepared or not, with its subtransactions.
    pub(super) async fn ended(
        &mut self,
        record: &Record<'_>,
        finished: &Finished<'_>,
        is_commit: bool,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let xid = finished.xid(record);
        let mut xids = std::mem::take(&mut self.xids);
        xids.clear();
        xids.extend(std::iter::once(xid).chain(finished.subxids.iter().copied()).filter(|xid| *xid != 0));
        for xid in &xids {
            self.counters.saw_xid(*xid);
        }
        if is_commit {
            changes.committed_at(finished.time);
        }
        let status = |xids| {
            let time = finished.time;
            if is_commit { Change::Committed { xids, time } } else { Change::Aborted { xids } }
        };
        xids = self.change_xids(SlruKind::Clog, clog_page, status, xids, changes, latest).await?;
        if is_commit && self.control.track_commit_timestamp {
            for xid in &xids {
                self.counters.commit_ts(*xid);
            }
            let (time, origin) = (finished.commit_timestamp(), record.origin.unwrap_or(0));
            let stamps = |xids| Change::CommitTimestamps { xids, time, origin };
            xids =
                self.change_xids(SlruKind::CommitTs, commit_ts_page, stamps, xids, changes, latest).await?;
        }
        self.xids = xids;
        for rel in &finished.dropped {
            self.remove(*rel, latest).await?;
        }
        if let Some(two_phase) = &finished.two_phase {
            let xid = self.two_phase_xid(two_phase.xid);
            if self.two_phase.directory.xids.remove(&xid) {
                self.two_phase.is_changed = true;
                changes.push(Key::two_phase_file(xid), self.at.end, &Value::Image(&[]));
            }
        }
        if let (Some(id), Some((remote, _))) = (record.origin, finished.origin) {
            self.origins.set(id, remote, false);
        }
        Ok(())
    }

    /// Pushes one change for each page that these transactions lie on. Answers the transactions, perhaps in another order, for their
    /// memory.
    async fn change_xids<'c>(
        &mut self,
        kind: SlruKind,
        page_of: fn(u32) -> u32,
        change: impl Fn(Vec<u32>) -> Change<'c>,
        mut xids: Vec<u32>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<Vec<u32>, IngestError> {
        let Some(first) = xids.first().map(|xid| page_of(*xid)) else { return Ok(xids) };
        if xids.iter().all(|xid| page_of(*xid) == first) {
            let value = Value::Change(change(xids));
            self.change_slru(kind, first, &value, changes, latest).await?;
            return Ok(match value {
                Value::Change(
                    Change::Committed { xids, .. }
                    | Change::Aborted { xids }
                    | Change::CommitTimestamps { xids, .. },
                ) => xids,
                _ => Vec::new(),
            });
        }
        xids.sort_unstable();
        xids.dedup();
        for page in xids.chunk_by(|a, b| page_of(*a) == page_of(*b)) {
            let value = Value::Change(change(page.to_vec()));
            self.change_slru(kind, page_of(page[0]), &value, changes, latest).await?;
        }
        Ok(xids)
    }

    /// A transaction was prepared: its state is a file until it ends.
    pub(super) fn prepared(&mut self, record: &Record<'_>, prepare: &Prepare<'_>, changes: &mut Changes) {
        self.counters.saw_xid(prepare.xid);
        for xid in &prepare.subxids {
            self.counters.saw_xid(*xid);
        }
        let xid = self.two_phase_xid(prepare.xid);
        changes.push(Key::two_phase_file(xid), self.at.end, &Value::Image(prepare.state));
        self.two_phase.is_changed |= self.two_phase.directory.xids.insert(xid);
        if let (Some(id), (remote, _)) = (record.origin, prepare.origin) {
            self.origins.set(id, remote, false);
        }
    }

    /// The name of a prepared transaction's state: with its epoch from 17 on.
    fn two_phase_xid(&self, xid: u32) -> u64 {
        if self.pg >= PgMajor::V17 { self.counters.with_epoch(xid) } else { u64::from(xid) }
    }
}
