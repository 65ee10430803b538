//! Transactions (`xact.h`).
//!
//! ```text
//! commit, abort: i64 time | [u32 xinfo, if info & 0x80], then each part only if its bit of xinfo is set:
//!   0x001 u32 database, u32 tablespace      0x002 i32 n, n × u32 subxid     0x004 i32 n, n × relation (3 × u32) to drop
//!   0x100 i32 n, n × statistics entry to drop (15 to 17: 3 × u32; 18: 4 × u32)
//!   0x008 i32 n, n × 16 bytes of cache invalidation (commit only)
//!   0x010 u32 xid of the prepared transaction, then 0x080 zero-terminated gid
//!   0x020 u64 origin LSN, i64 origin time
//! ```
//!
//! The main data of a prepare record is the transaction's state file without the CRC at its end.

use model::{Lsn, PgMajor, PgTimestamp, RelLocator, RmgrId};

use crate::wal::payload::{Fields, INVALIDATION_SIZE, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

const HAS_INFO: u8 = 0x80;
const KIND_MASK: u8 = 0x70;

const XINFO_DBINFO: u32 = 1 << 0;
const XINFO_SUBXACTS: u32 = 1 << 1;
const XINFO_RELATIONS: u32 = 1 << 2;
const XINFO_INVALIDATIONS: u32 = 1 << 3;
const XINFO_TWO_PHASE: u32 = 1 << 4;
const XINFO_ORIGIN: u32 = 1 << 5;
const XINFO_AE_LOCKS: u32 = 1 << 6;
const XINFO_GID: u32 = 1 << 7;
const XINFO_DROPPED_STATS: u32 = 1 << 8;
/// Wishes about how to complete the transaction; they carry no data.
const XINFO_COMPLETION: u32 = 0b111 << 29;

/// Magic number of two-phase state files, in all majors.
pub const TWO_PHASE_MAGIC: u32 = 0x57F9_4534;
/// Longest global transaction identifier, with its terminating zero (`GIDSIZE`).
pub const GID_SIZE: u16 = 200;

/// A transaction's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XactRecord<'a> {
    /// `COMMIT`, or `COMMIT_PREPARED` when [`Finished::two_phase`] is set.
    Commit(Finished<'a>),
    /// `ABORT`, or `ABORT_PREPARED` when [`Finished::two_phase`] is set.
    Abort(Finished<'a>),
    /// `PREPARE`.
    Prepare(Prepare<'a>),
    /// `ASSIGNMENT`: these are subtransactions of that top-level transaction.
    Assignment {
        /// The top-level transaction.
        top: u32,
        /// Its subtransactions.
        subxids: Vec<u32>,
    },
    /// `INVALIDATIONS`, for logical decoding.
    Invalidations,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished<'a> {
    /// When.
    pub time: PgTimestamp,
    /// All its flags, also those without a part.
    pub xinfo: u32,
    /// Database and tablespace it ran in, when they matter for invalidations.
    pub database: Option<(u32, u32)>,
    /// Subtransactions that share its fate.
    pub subxids: Vec<u32>,
    /// Relations to drop, with all their forks.
    pub dropped: Vec<RelLocator>,
    /// Statistics entries to drop.
    pub dropped_stats: Vec<DroppedStats>,
    /// Cache invalidation messages, [`INVALIDATION_SIZE`] bytes each.
    pub invalidations: &'a [u8],
    /// The prepared transaction that this ends. The record's own xid is 0 then.
    pub two_phase: Option<TwoPhase<'a>>,
    /// Where and when it happened on the node that it was replicated from.
    pub origin: Option<(Lsn, PgTimestamp)>,
}

impl Finished<'_> {
    /// The transaction that ended: the prepared one, or the one that wrote `record`.
    pub fn xid(&self, record: &Record<'_>) -> u32 {
        self.two_phase.as_ref().map_or(record.xid, |two_phase| two_phase.xid)
    }

    /// The time to remember for the transaction (`pg_xact_commit_timestamp`): the origin's if there is one.
    pub fn commit_timestamp(&self) -> PgTimestamp {
        self.origin.map_or(self.time, |(_, time)| time)
    }
}

/// Which prepared transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwoPhase<'a> {
    /// Its xid.
    pub xid: u32,
    /// Its global identifier, without the terminating zero; written since `wal_level = logical` only.
    pub gid: Option<&'a [u8]>,
}

/// A statistics entry that ends with the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedStats {
    /// Kind of statistics.
    pub kind: i32,
    /// Database.
    pub db: u32,
    /// Object; 32 bits before 18.
    pub object: u64,
}

/// A transaction that is prepared for two-phase commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// The record's main data: the state file's bytes up to its CRC.
    pub state: &'a [u8],
    /// Its xid.
    pub xid: u32,
    /// Where it ran.
    pub database: u32,
    /// When.
    pub prepared_at: PgTimestamp,
    /// Who prepared it.
    pub owner: u32,
    /// Its global identifier, without the terminating zero.
    pub gid: &'a [u8],
    /// Its subtransactions.
    pub subxids: Vec<u32>,
    /// Relations to drop when it commits.
    pub dropped_on_commit: Vec<RelLocator>,
    /// Relations to drop when it aborts.
    pub dropped_on_abort: Vec<RelLocator>,
    /// Where and when it happened on the node that it was replicated from; zeros otherwise.
    pub origin: (Lsn, PgTimestamp),
}

impl<'a> XactRecord<'a> {
    /// Parses a record of resource manager [`RmgrId::XACT`].
    pub fn parse(record: &Record<'a>) -> Result<XactRecord<'a>, PayloadError> {
        let kind = kind_of(record, RmgrId::XACT)?;
        if kind & HAS_INFO != 0 && !matches!(kind & KIND_MASK, 0x00 | 0x20 | 0x30 | 0x40) {
            return Err(unknown_kind(record));
        }
        match kind & KIND_MASK {
            0x00 => finished(record, Fields::of(record, "commit"), false).map(XactRecord::Commit),
            0x10 => prepare(record).map(XactRecord::Prepare),
            0x20 => finished(record, Fields::of(record, "abort"), false).map(XactRecord::Abort),
            0x30 => finished(record, Fields::of(record, "commit prepared"), true).map(XactRecord::Commit),
            0x40 => finished(record, Fields::of(record, "abort prepared"), true).map(XactRecord::Abort),
            0x50 => {
                let mut fields = Fields::of(record, "assignment");
                let top = fields.u32()?;
                let count = fields.count("number of subtransactions")?;
                let subxids = fields.xids(count)?;
                fields.end(XactRecord::Assignment { top, subxids })
            }
            0x60 => {
                let mut fields = Fields::of(record, "transaction invalidations");
                let count = fields.count("number of messages")?;
                fields.skip(count.saturating_mul(INVALIDATION_SIZE))?;
                fields.end(XactRecord::Invalidations)
            }
            _ => Err(unknown_kind(record)),
        }
    }
}

fn finished<'a>(
    record: &Record<'a>,
    mut fields: Fields<'a>,
    is_prepared: bool,
) -> Result<Finished<'a>, PayloadError> {
    let time = fields.timestamp()?;
    let xinfo = if record.info & HAS_INFO != 0 { fields.u32()? } else { 0 };
    let mut known = XINFO_DBINFO
        | XINFO_SUBXACTS
        | XINFO_RELATIONS
        | XINFO_INVALIDATIONS
        | XINFO_TWO_PHASE
        | XINFO_ORIGIN
        | XINFO_AE_LOCKS
        | XINFO_GID
        | XINFO_COMPLETION;
    if record.pg >= PgMajor::V15 {
        known |= XINFO_DROPPED_STATS;
    }
    if xinfo & !known != 0 {
        return Err(fields.field("xinfo", i64::from(xinfo), "only known flags"));
    }
    let has = |flag: u32| xinfo & flag != 0;
    let database = if has(XINFO_DBINFO) { Some((fields.u32()?, fields.u32()?)) } else { None };
    let mut subxids = Vec::new();
    if has(XINFO_SUBXACTS) {
        let count = fields.count("number of subtransactions")?;
        subxids = fields.xids(count)?;
    }
    let mut dropped = Vec::new();
    if has(XINFO_RELATIONS) {
        let count = fields.count("number of relations")?;
        dropped = fields.locators(count)?;
    }
    let mut dropped_stats = Vec::new();
    if has(XINFO_DROPPED_STATS) {
        let count = fields.count("number of statistics entries")?;
        dropped_stats = if record.pg >= PgMajor::V18 {
            fields.items(count, 16, |item| {
                let (kind, db) = (item.i32()?, item.u32()?);
                let (low, high) = (item.u32()?, item.u32()?);
                Ok(DroppedStats { kind, db, object: u64::from(high) << 32 | u64::from(low) })
            })?
        } else {
            fields.items(count, 12, |item| {
                Ok(DroppedStats { kind: item.i32()?, db: item.u32()?, object: u64::from(item.u32()?) })
            })?
        };
    }
    let mut invalidations: &[u8] = &[];
    if has(XINFO_INVALIDATIONS) {
        let count = fields.count("number of invalidations")?;
        invalidations = fields.take(count.saturating_mul(INVALIDATION_SIZE))?;
    }
    let mut two_phase = None;
    if has(XINFO_TWO_PHASE) {
        let xid = fields.u32()?;
        let gid = if has(XINFO_GID) { Some(fields.c_string()?) } else { None };
        two_phase = Some(TwoPhase { xid, gid });
    }
    if two_phase.is_some() != is_prepared {
        let expected =
            if is_prepared { "the prepared transaction's part" } else { "no prepared transaction" };
        return Err(fields.field("xinfo", i64::from(xinfo), expected));
    }
    let origin = if has(XINFO_ORIGIN) { Some((fields.lsn()?, fields.timestamp()?)) } else { None };
    fields.end(Finished {
        time,
        xinfo,
        database,
        subxids,
        dropped,
        dropped_stats,
        invalidations,
        two_phase,
        origin,
    })
}

fn prepare<'a>(record: &Record<'a>) -> Result<Prepare<'a>, PayloadError> {
    prepare_state(record.pg, record.main)
}

/// Parses a two-phase state file without its CRC, which is also the main data of a prepare record (`TwoPhaseFileHeader`). What follows
/// the lists, the state of locks and the like, is not looked into.
pub fn prepare_state(pg: PgMajor, state: &[u8]) -> Result<Prepare<'_>, PayloadError> {
    let mut fields = Fields { input: crate::bytes_in::BytesIn::new(state), record: "prepare" };
    let magic = fields.u32()?;
    if magic != TWO_PHASE_MAGIC {
        return Err(fields.field("magic", i64::from(magic), "0x57F94534"));
    }
    let total_len = fields.u32()?;
    if u64::from(total_len) != state.len() as u64 + 4 {
        return Err(fields.field("total length", i64::from(total_len), "the record's main data and a CRC"));
    }
    let xid = fields.u32()?;
    let database = fields.u32()?;
    let prepared_at = fields.timestamp()?;
    let owner = fields.u32()?;
    let subxids = fields.count("number of subtransactions")?;
    let commit_rels = fields.count("number of relations to drop on commit")?;
    let abort_rels = fields.count("number of relations to drop on abort")?;
    let (commit_stats, abort_stats) = if pg >= PgMajor::V15 {
        (fields.count("number of statistics entries")?, fields.count("number of statistics entries")?)
    } else {
        (0, 0)
    };
    let invalidations = fields.count("number of invalidations")?;
    fields.bool("init file invalidation")?;
    fields.skip(1)?;
    let gid_len = fields.u16()?;
    if gid_len == 0 || gid_len > GID_SIZE {
        return Err(fields.field("gid length", i64::from(gid_len), "1 to 200"));
    }
    let origin = (fields.lsn()?, fields.timestamp()?);
    fields.align()?;
    let gid = fields.take(usize::from(gid_len))?;
    let gid = gid.strip_suffix(&[0]).ok_or_else(|| fields.field("gid", 0, "a terminating zero"))?;
    fields.align()?;
    let subxids = fields.xids(subxids)?;
    fields.align()?;
    let dropped_on_commit = fields.locators(commit_rels)?;
    fields.align()?;
    let dropped_on_abort = fields.locators(abort_rels)?;
    fields.align()?;
    let stats_size = if pg >= PgMajor::V18 { 16 } else { 12 };
    for count in [commit_stats, abort_stats] {
        fields.skip(count.saturating_mul(stats_size))?;
        fields.align()?;
    }
    fields.skip(invalidations.saturating_mul(INVALIDATION_SIZE))?;
    Ok(Prepare {
        state,
        xid,
        database,
        prepared_at,
        owner,
        gid,
        subxids,
        dropped_on_commit,
        dropped_on_abort,
        origin,
    })
}
