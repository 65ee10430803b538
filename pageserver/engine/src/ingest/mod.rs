//! From WAL to key versions: which keys does a record change, and how.
//!
//! [`Ingest`] follows Postgres' own recovery: what recovery would do to a file, this does to keys. Changes to pages are stored, not
//! applied; only what decides *which* keys change is worked out here (sizes, directories, counters). Two rules shape it:
//!
//! * A key gets at most one version per record. Block changes are pushed as they come; everything that several effects of one record may
//!   touch (sizes, directories, counters) is changed in memory first and pushed once, at the record's end.
//! * Nothing here is the only copy: all state is in the timeline too, so a restart begins with [`Ingest::load`].
//!
//! Page images stay inside their records (as versions that need no older one): there they lack their hole and keep Postgres'
//! compression, so they are never larger than the page, and restoring one at a read costs a copy.
//!
//! Reading order: this file (dispatch), [`relations`], [`databases`], [`slrus`], [`transactions`], [`counters`], [`logical_size`].

mod counters;
mod databases;
mod logical_size;
mod relations;
mod slrus;
mod transactions;

use std::future::Future;
use std::ops::Range;

use bytes::Bytes;
use codec::control::ControlFile;
use codec::tablespaces::Tablespaces;
use codec::value::{Change, Value};
use codec::wal::payload::PayloadError;
use codec::wal::payload::clog::ClogRecord;
use codec::wal::payload::commit_ts::CommitTsRecord;
use codec::wal::payload::dbase::DbaseRecord;
use codec::wal::payload::heap::vm_clears;
use codec::wal::payload::multixact::MultiXactRecord;
use codec::wal::payload::relmap::RelmapUpdate;
use codec::wal::payload::replorigin::ReplOriginRecord;
use codec::wal::payload::smgr::SmgrRecord;
use codec::wal::payload::standby::StandbyRecord;
use codec::wal::payload::tblspc::TblspcRecord;
use codec::wal::payload::xact::XactRecord;
use codec::wal::payload::xlog::{ParameterChange, XlogRecord};
use codec::wal::record::{Record, trim_into};
use model::{Fork, Key, KeyRange, Lsn, PgMajor, RelTag, RmgrId, SlruKind};

use crate::as_of::ReadError;
use crate::changes::Changes;
use counters::Counters;
use databases::Databases;
use logical_size::LogicalSizes;
use relations::Relations;
use slrus::Slrus;
use transactions::{Origins, TwoPhase};

pub use logical_size::{CountedSize, SizeNow};

/// What ingest reads of the timeline: as of the record before the one that is being ingested, pushed but unpublished changes included.
/// What the current call itself pushed need not be seen.
pub trait Latest: Sync {
    /// The value of a key; `None` when it has none. A tombstone is an empty value.
    fn get(&self, key: Key) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;

    /// Every key of a sparse range that has a value, with it, in key order; tombstones included.
    fn scan(&self, keys: KeyRange) -> impl Future<Output = Result<Vec<(Key, Bytes)>, ReadError>> + Send;

    /// Pages of a relation's fork, back to back; blocks never written are zeros.
    fn pages(&self, rel: RelTag, blocks: Range<u32>)
    -> impl Future<Output = Result<Bytes, ReadError>> + Send;
}

/// What became of a record.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All its effects are pushed.
    Whole,
    /// The record makes more versions than memory should hold (a database copied file by file, a huge gap). The changes pushed so far
    /// may be moved elsewhere, then [`Ingest::resume`] pushes the next part, until the outcome is [`Outcome::Whole`]. All parts have the
    /// record's end as their LSN, which must not become readable before the last part. Parts after the first but the last hold only
    /// pages, in key order and without overlap, that no directory names yet or that lie past their relation's stored size.
    Unfinished,
}

/// Why a record could not be ingested.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The timeline could not be read.
    #[error("cannot read what the record at {at} changes")]
    Read {
        /// Start of the record; 0 while loading.
        at: Lsn,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A record of a kind that Postgres' resource managers of this major do not write.
    #[error("record at {at} is unknown: Postgres {pg}, resource manager {rmgr}, info {info:#04x}")]
    UnknownRecord {
        /// Start of the record.
        at: Lsn,
        /// Whose WAL.
        pg: PgMajor,
        /// Whose record.
        rmgr: RmgrId,
        /// Its info byte.
        info: u8,
    },
    /// A record whose content is not what its kind says.
    #[error("record at {at} of {rmgr} is malformed")]
    Malformed {
        /// Start of the record.
        at: Lsn,
        /// Whose record.
        rmgr: RmgrId,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value of the timeline that ingest builds on is missing or unreadable.
    #[error("the stored {what} (key {key}) cannot be used: {problem}")]
    Stored {
        /// What it is.
        what: &'static str,
        /// Where it is stored.
        key: Key,
        /// What is wrong with it.
        problem: String,
    },
}

/// All that ingest knows of a timeline between records; nothing in it is not also in the timeline.
#[derive(Debug)]
pub struct Ingest {
    pg: PgMajor,
    relations: Relations,
    databases: Databases,
    slrus: Slrus,
    two_phase: TwoPhase,
    origins: Origins,
    tablespaces: Tablespaces,
    counters: Counters,
    sizes: LogicalSizes,
    control: ControlFile,
    /// Transactions of the record at hand; kept for its memory.
    xids: Vec<u32>,
    /// A record without what the block at hand does not need; kept for its memory.
    trimmed: Vec<u8>,
    /// What is still to be pushed of the record at hand.
    unfinished: Vec<Part>,
    at: At,
}

/// Where in the WAL the record at hand is.
#[derive(Clone, Copy, Debug)]
struct At {
    start: Lsn,
    end: Lsn,
}

/// A part of a record's effects that is pushed in steps.
#[derive(Debug)]
enum Part {
    /// Blocks that read as zeros.
    Gap { rel: RelTag, blocks: Range<u32> },
    /// Pages that are copied to another relation.
    Copy { from: RelTag, to: RelTag, blocks: Range<u32> },
}

/// Versions of one part: bounds memory to some megabytes.
const PART_PAGES: u32 = 512;
/// Gaps up to this are pushed at once.
const PART_ZEROS: u32 = 65_536;

impl Ingest {
    /// Reads what ingest must know of a timeline: directories, counters, settings.
    pub async fn load(latest: &impl Latest, pg: PgMajor) -> Result<Ingest, IngestError> {
        let at = At { start: Lsn::INVALID, end: Lsn::INVALID };
        let tablespaces = match get(latest, Key::TABLESPACE_DIRECTORY, at).await? {
            None => Tablespaces::default(),
            Some(bytes) => Tablespaces::decode(&bytes)
                .map_err(|problem| stored("tablespace directory", Key::TABLESPACE_DIRECTORY, &problem))?,
        };
        let control = get(latest, Key::CONTROL_FILE, at)
            .await?
            .ok_or_else(|| stored("control file", Key::CONTROL_FILE, &"it is missing"))?;
        let control = ControlFile::parse(&control)
            .map_err(|problem| stored("control file", Key::CONTROL_FILE, &problem))?;
        Ok(Ingest {
            pg,
            relations: Relations::default(),
            databases: Databases::load(latest).await?,
            slrus: Slrus::load(latest).await?,
            two_phase: TwoPhase::load(latest, pg).await?,
            origins: Origins::load(latest).await?,
            tablespaces,
            counters: Counters::load(latest, pg).await?,
            sizes: LogicalSizes::load(latest).await?,
            control,
            xids: Vec::new(),
            trimmed: Vec::new(),
            unfinished: Vec::new(),
            at,
        })
    }

    /// The size of all relations together as of the last record.
    pub fn logical_size(&self) -> SizeNow {
        self.sizes.now
    }

    /// Where to put the size of all relations as of the LSN at which this was loaded, if the timeline did not have it then.
    pub fn counted_size(&self) -> &CountedSize {
        &self.sizes.counted
    }

    /// Appends to `changes` all versions that this record makes, at its end. `bytes` are the record's, header included.
    ///
    /// After an error this value no longer matches the timeline: load it again.
    pub async fn record(
        &mut self,
        record: &Record<'_>,
        bytes: &[u8],
        start: Lsn,
        end: Lsn,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<Outcome, IngestError> {
        self.at = At { start, end };
        if record.pg != self.pg || !is_known(record) {
            let (rmgr, info) = (record.rmgr, record.info);
            return Err(IngestError::UnknownRecord { at: start, pg: record.pg, rmgr, info });
        }
        self.counters.saw_xid(record.xid);
        for block in &record.blocks {
            // A hint-bit image that was not taken (15 and later, without full-page writes) says nothing.
            if record.rmgr == RmgrId::XLOG && block.image.is_none() && !block.will_init {
                continue;
            }
            let is_new = self.extend(record, block.rel, block.block, changes, latest).await?;
            // Recovery begins a new map page with zeros although its record does not say so.
            let will_init = block.is_base() || (is_new && block.rel.fork == Fork::Vm);
            self.trimmed.clear();
            let is_trimmed = trim_into(record, bytes, block.id, &mut self.trimmed);
            let kept = if is_trimmed { &self.trimmed } else { bytes };
            let change = Change::Postgres { will_init, record: kept };
            changes.push(Key::rel_block(block.rel, block.block), end, &Value::Change(change));
        }
        match record.rmgr {
            RmgrId::HEAP | RmgrId::HEAP2 => self.clear_visibility(record, changes, latest).await?,
            RmgrId::XACT => self.xact(record, changes, latest).await?,
            RmgrId::XLOG => self.xlog(record, changes, latest).await?,
            RmgrId::SMGR | RmgrId::DBASE | RmgrId::TBLSPC | RmgrId::RELMAP => {
                self.files(record, changes, latest).await?;
            }
            RmgrId::CLOG | RmgrId::MULTIXACT | RmgrId::COMMIT_TS => {
                self.slru(record, changes, latest).await?;
            }
            RmgrId::STANDBY => {
                if let StandbyRecord::RunningXacts(running) = self.parsed(record, StandbyRecord::parse)? {
                    self.counters.running(running.next_xid, running.oldest_running_xid);
                }
            }
            RmgrId::REPL_ORIGIN => match self.parsed(record, ReplOriginRecord::parse)? {
                ReplOriginRecord::Set { id, remote_lsn, force } => self.origins.set(id, remote_lsn, force),
                ReplOriginRecord::Drop { id } => self.origins.drop(id),
            },
            _ => {}
        }
        if self.unfinished.is_empty() { Ok(self.finish(changes)) } else { Ok(Outcome::Unfinished) }
    }

    /// Goes on with a record whose outcome was [`Outcome::Unfinished`].
    pub async fn resume(
        &mut self,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<Outcome, IngestError> {
        let mut left = PART_PAGES;
        while let Some(part) = self.unfinished.pop() {
            match part {
                Part::Gap { rel, blocks } => {
                    let end = blocks.end.min(blocks.start.saturating_add(PART_ZEROS));
                    for block in blocks.start..end {
                        push_zero(changes, Key::rel_block(rel, block), self.at.end);
                    }
                    if end < blocks.end {
                        self.unfinished.push(Part::Gap { rel, blocks: end..blocks.end });
                    }
                    left = 0;
                }
                Part::Copy { from, to, blocks } => {
                    let end = blocks.end.min(blocks.start.saturating_add(left));
                    self.copy_pages(from, to, blocks.start..end, changes, latest).await?;
                    left -= end - blocks.start;
                    if end < blocks.end {
                        self.unfinished.push(Part::Copy { from, to, blocks: end..blocks.end });
                    }
                }
            }
            if left == 0 {
                break;
            }
        }
        if self.unfinished.is_empty() { Ok(self.finish(changes)) } else { Ok(Outcome::Unfinished) }
    }

    /// Pushes what was gathered in memory, each key once.
    fn finish(&mut self, changes: &mut Changes) -> Outcome {
        let lsn = self.at.end;
        self.relations.push_changed(changes, lsn, &mut self.sizes);
        self.sizes.push_changed(changes, lsn);
        self.databases.push_changed(changes, lsn);
        self.slrus.push_changed(changes, lsn);
        self.two_phase.push_changed(changes, lsn);
        self.origins.push_changed(changes, lsn);
        self.counters.push_changed(changes, lsn);
        Outcome::Whole
    }

    async fn xlog(
        &mut self,
        record: &Record<'_>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        match self.parsed(record, XlogRecord::parse)? {
            XlogRecord::Checkpoint { is_shutdown, bytes } => {
                self.counters
                    .checkpoint(bytes, is_shutdown)
                    .map_err(|source| self.malformed(record, source))?;
            }
            XlogRecord::NextOid(oid) => self.counters.next_oid(oid),
            XlogRecord::ParameterChange(change) => self.parameters(change, changes, latest).await?,
            XlogRecord::FpwChange(on) => self.counters.full_page_writes(on),
            XlogRecord::EndOfRecovery { tli, prev_tli, wal_level, .. } => {
                self.counters.timeline(tli, prev_tli);
                if let Some(wal_level) = wal_level {
                    self.counters.wal_level(wal_level);
                }
            }
            XlogRecord::CheckpointRedo { wal_level } => self.counters.wal_level(wal_level),
            XlogRecord::Noop
            | XlogRecord::Switch
            | XlogRecord::BackupEnd(_)
            | XlogRecord::RestorePoint { .. }
            | XlogRecord::FpiForHint
            | XlogRecord::Fpi
            | XlogRecord::OverwriteContrecord { .. } => {}
        }
        Ok(())
    }

    /// Settings go to the stored control file; turning commit timestamps on or off makes or removes their pages.
    async fn parameters(
        &mut self,
        change: ParameterChange,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let tracked_before = self.control.track_commit_timestamp;
        let control = &mut self.control;
        control.max_connections = change.max_connections as u32;
        control.max_worker_processes = change.max_worker_processes as u32;
        control.max_wal_senders = change.max_wal_senders as u32;
        control.max_prepared_xacts = change.max_prepared_transactions as u32;
        control.max_locks_per_xact = change.max_locks_per_transaction as u32;
        control.wal_level = change.wal_level as u32;
        control.wal_log_hints = change.wal_log_hints;
        control.track_commit_timestamp = change.track_commit_timestamp;
        changes.push(Key::CONTROL_FILE, self.at.end, &Value::Image(&control.encode()));
        self.counters.wal_level(change.wal_level);
        match (tracked_before, change.track_commit_timestamp) {
            (false, true) => {
                let next = self.counters.commit_timestamps_on();
                self.begin_commit_timestamps(next, changes, latest).await?;
            }
            (true, false) => {
                self.counters.commit_timestamps_off();
                self.slrus.remove_segments(SlruKind::CommitTs, |_| true);
            }
            _ => {}
        }
        Ok(())
    }

    async fn files(
        &mut self,
        record: &Record<'_>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        match record.rmgr {
            RmgrId::SMGR => match self.parsed(record, SmgrRecord::parse)? {
                SmgrRecord::Create(rel) => self.create(rel, latest).await,
                SmgrRecord::Truncate(truncate) => self.truncate(truncate, changes, latest).await,
            },
            RmgrId::DBASE => match self.parsed(record, DbaseRecord::parse)? {
                DbaseRecord::CreateWalLog { db, spc } => {
                    self.databases.ensure(spc, db);
                    Ok(())
                }
                DbaseRecord::CreateFileCopy { db, spc, source_db, source_spc } => {
                    self.copy_database((source_spc, source_db), (spc, db), changes, latest).await
                }
                DbaseRecord::Drop { db, spcs } => {
                    for spc in spcs {
                        self.drop_database(spc, db, changes, latest).await?;
                    }
                    Ok(())
                }
            },
            RmgrId::TBLSPC => {
                match self.parsed(record, TblspcRecord::parse)? {
                    TblspcRecord::Create { spc, path } => {
                        self.tablespaces.paths.insert(spc, path.to_vec());
                    }
                    TblspcRecord::Drop { spc } => {
                        self.drop_databases_in(spc, changes, latest).await?;
                        self.tablespaces.paths.remove(&spc);
                    }
                }
                let directory = self.tablespaces.encode();
                changes.push(Key::TABLESPACE_DIRECTORY, self.at.end, &Value::Image(&directory));
                Ok(())
            }
            _ => {
                let update = self.parsed(record, RelmapUpdate::parse)?;
                codec::relmap::RelationMap::decode(self.pg, update.file)
                    .map_err(|source| self.malformed(record, source))?;
                self.databases.has_relation_map(update.spc, update.db);
                let key = Key::relation_map(update.spc, update.db);
                changes.push(key, self.at.end, &Value::Image(update.file));
                Ok(())
            }
        }
    }

    async fn slru(
        &mut self,
        record: &Record<'_>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        match record.rmgr {
            RmgrId::CLOG => match self.parsed(record, ClogRecord::parse)? {
                ClogRecord::ZeroPage(page) => self.zero_page(SlruKind::Clog, page, changes, latest).await,
                ClogRecord::Truncate { page, oldest_xid, oldest_xid_db } => {
                    self.counters.oldest_xid(oldest_xid, oldest_xid_db);
                    self.slrus.truncate(SlruKind::Clog, page);
                    Ok(())
                }
            },
            RmgrId::COMMIT_TS => match self.parsed(record, CommitTsRecord::parse)? {
                CommitTsRecord::ZeroPage(page) => {
                    self.zero_page(SlruKind::CommitTs, page, changes, latest).await
                }
                CommitTsRecord::Truncate { page, oldest_xid } => {
                    self.counters.oldest_commit_ts(oldest_xid);
                    self.slrus.truncate(SlruKind::CommitTs, page);
                    Ok(())
                }
            },
            _ => match self.parsed(record, MultiXactRecord::parse)? {
                MultiXactRecord::ZeroOffsetsPage(page) => self.zero_offsets_page(page, changes, latest).await,
                MultiXactRecord::ZeroMembersPage(page) => {
                    self.zero_page(SlruKind::MultiXactMembers, page, changes, latest).await
                }
                MultiXactRecord::Create { multi, offset, members } => {
                    self.create_multixact(multi, offset, &members, changes, latest).await
                }
                MultiXactRecord::Truncate { oldest_db, end_multi, start_offset, end_offset, .. } => {
                    self.counters.oldest_multi(end_multi, oldest_db);
                    self.slrus.truncate_multixacts(end_multi, start_offset, end_offset);
                    Ok(())
                }
            },
        }
    }

    async fn xact(
        &mut self,
        record: &Record<'_>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        match self.parsed(record, XactRecord::parse)? {
            XactRecord::Commit(finished) => self.ended(record, &finished, true, changes, latest).await,
            XactRecord::Abort(finished) => self.ended(record, &finished, false, changes, latest).await,
            XactRecord::Prepare(prepare) => {
                self.prepared(record, &prepare, changes);
                Ok(())
            }
            XactRecord::Assignment { top, subxids } => {
                self.counters.saw_xid(top);
                for xid in subxids {
                    self.counters.saw_xid(xid);
                }
                Ok(())
            }
            XactRecord::Invalidations => Ok(()),
        }
    }

    /// Heap changes clear bits of the visibility map. Where a record references the map's block, that block's redo does it; where it
    /// does not (all releases before 17.11 and 18.6), recovery does it on its own, and so does this.
    async fn clear_visibility(
        &mut self,
        record: &Record<'_>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let found = self.parsed(record, vm_clears)?;
        let mut merged: Option<(Key, Change<'_>)> = None;
        for clear in &found.clears {
            let (vm, block) = (clear.rel.fork(Fork::Vm), clear.vm_block());
            // Recovery would create a missing map page, only to clear bits that are not set.
            if record.block_of(vm, block).is_some() || self.size(vm, latest).await?.unwrap_or(0) <= block {
                continue;
            }
            let key = Key::rel_block(vm, block);
            let (new, old) =
                if clear.is_old { (None, Some(clear.heap_block)) } else { (Some(clear.heap_block), None) };
            match &mut merged {
                Some((known, Change::ClearVisibilityMap { new_heap_block, old_heap_block, .. }))
                    if *known == key =>
                {
                    *new_heap_block = new_heap_block.or(new);
                    *old_heap_block = old_heap_block.or(old);
                }
                _ => {
                    if let Some((key, change)) = merged.take() {
                        changes.push(key, self.at.end, &Value::Change(change));
                    }
                    let bits = clear.bits;
                    merged = Some((
                        key,
                        Change::ClearVisibilityMap { new_heap_block: new, old_heap_block: old, bits },
                    ));
                }
            }
        }
        if let Some((key, change)) = merged {
            changes.push(key, self.at.end, &Value::Change(change));
        }
        Ok(())
    }

    fn parsed<'r, T>(
        &self,
        record: &Record<'r>,
        parse: impl FnOnce(&Record<'r>) -> Result<T, PayloadError>,
    ) -> Result<T, IngestError> {
        parse(record).map_err(|source| self.malformed(record, source))
    }

    fn malformed(
        &self,
        record: &Record<'_>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> IngestError {
        IngestError::Malformed { at: self.at.start, rmgr: record.rmgr, source: Box::new(source) }
    }
}

/// Whether Postgres' resource managers of this major write such records. Those of extensions are known to them alone.
fn is_known(record: &Record<'_>) -> bool {
    if record.rmgr.is_custom() {
        return record.pg >= PgMajor::V15;
    }
    // A bit per value of the high four bits of info.
    let kinds: u16 = match record.rmgr {
        RmgrId::XLOG if record.pg >= PgMajor::V17 => 0x6FFF,
        RmgrId::XLOG => 0x2FFF,
        RmgrId::XACT => 0x1D7F,
        RmgrId::SMGR => 0x0006,
        RmgrId::DBASE if record.pg >= PgMajor::V15 => 0x0007,
        RmgrId::DBASE | RmgrId::CLOG | RmgrId::TBLSPC | RmgrId::COMMIT_TS | RmgrId::REPL_ORIGIN => 0x0003,
        RmgrId::MULTIXACT => 0x000F,
        RmgrId::STANDBY => 0x0007,
        RmgrId::RELMAP | RmgrId::SEQ | RmgrId::GENERIC | RmgrId::LOGICAL_MSG => 0x0001,
        // The highest bit says that the page is initialised.
        RmgrId::HEAP2 => 0x20FF,
        RmgrId::HEAP => 0x15FF,
        RmgrId::BTREE => 0x7FFF,
        RmgrId::HASH => 0x1FFF,
        RmgrId::GIN => 0x03FE,
        RmgrId::GIST => 0x00CF,
        RmgrId::SPGIST => 0x01FE,
        RmgrId::BRIN => 0x063F,
        _ => 0,
    };
    kinds >> (record.info >> 4) & 1 != 0
}

fn push_zero(changes: &mut Changes, key: Key, lsn: Lsn) {
    changes.push(key, lsn, &Value::Change(Change::ZeroPage));
}

fn stored(what: &'static str, key: Key, problem: &dyn std::fmt::Display) -> IngestError {
    IngestError::Stored { what, key, problem: problem.to_string() }
}

/// A value; tombstones are none.
async fn get(latest: &impl Latest, key: Key, at: At) -> Result<Option<Bytes>, IngestError> {
    let value = latest.get(key).await.map_err(|source| IngestError::Read { at: at.start, source })?;
    Ok(value.filter(|bytes| !bytes.is_empty()))
}

/// A stored size in blocks or pages.
fn decode_size(what: &'static str, key: Key, bytes: &[u8]) -> Result<u32, IngestError> {
    let bytes: [u8; 4] = bytes
        .try_into()
        .map_err(|_| stored(what, key, &format_args!("it is {} bytes long, expected 4", bytes.len())))?;
    Ok(u32::from_le_bytes(bytes))
}
