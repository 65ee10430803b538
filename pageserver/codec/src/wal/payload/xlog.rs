//! The log's own records (`pg_control.h`, `xlog_internal.h`).

use model::{Lsn, PgMajor, PgTimestamp, RmgrId, Tli};

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// Bytes of the struct `CheckPoint`, in all majors.
pub const CHECKPOINT_SIZE: usize = 88;

/// A record about the log itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XlogRecord<'a> {
    /// A checkpoint.
    Checkpoint {
        /// Taken at shutdown: no transaction runs, its counters are exact.
        is_shutdown: bool,
        /// The struct `CheckPoint`, [`CHECKPOINT_SIZE`] bytes.
        bytes: &'a [u8],
    },
    /// Means nothing.
    Noop,
    /// Oids below this one may be in use.
    NextOid(u32),
    /// The rest of the segment is unused.
    Switch,
    /// A base backup that started here is complete: it is consistent from this record on.
    BackupEnd(Lsn),
    /// Settings changed that standbys care for.
    ParameterChange(ParameterChange),
    /// A name for this place.
    RestorePoint {
        /// When it was made.
        time: PgTimestamp,
        /// Its name.
        name: &'a [u8],
    },
    /// `full_page_writes` from now on.
    FpwChange(bool),
    /// Recovery ended here, with a promotion or not.
    EndOfRecovery {
        /// When.
        time: PgTimestamp,
        /// The Postgres timeline from now on.
        tli: Tli,
        /// The one before.
        prev_tli: Tli,
        /// `wal_level`, since 17.
        wal_level: Option<i32>,
    },
    /// A page image because of a hint bit. Its blocks are in the record's references.
    FpiForHint,
    /// Page images. Its blocks are in the record's references.
    Fpi,
    /// The record that began there was cut off by a crash and never was.
    OverwriteContrecord {
        /// Where it began.
        lsn: Lsn,
        /// When it was given up.
        time: PgTimestamp,
    },
    /// An online checkpoint's redo point, since 17.
    CheckpointRedo {
        /// `wal_level`.
        wal_level: i32,
    },
}

/// Settings in `PARAMETER_CHANGE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the settings")]
pub struct ParameterChange {
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_transactions: i32,
    pub max_locks_per_transaction: i32,
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    pub wal_log_hints: bool,
    pub track_commit_timestamp: bool,
}

impl<'a> XlogRecord<'a> {
    /// Parses a record of resource manager [`RmgrId::XLOG`].
    pub fn parse(record: &Record<'a>) -> Result<XlogRecord<'a>, PayloadError> {
        let since_17 = record.pg >= PgMajor::V17;
        match kind_of(record, RmgrId::XLOG)? {
            kind @ (0x00 | 0x10) => {
                let mut fields = Fields::of(record, "checkpoint");
                let bytes = fields.take(CHECKPOINT_SIZE)?;
                fields.end(XlogRecord::Checkpoint { is_shutdown: kind == 0x00, bytes })
            }
            0x20 => Ok(XlogRecord::Noop),
            0x30 => {
                let mut fields = Fields::of(record, "next oid");
                let oid = fields.u32()?;
                fields.end(XlogRecord::NextOid(oid))
            }
            0x40 => Fields::of(record, "switch").end(XlogRecord::Switch),
            0x50 => {
                let mut fields = Fields::of(record, "backup end");
                let start = fields.lsn()?;
                fields.end(XlogRecord::BackupEnd(start))
            }
            0x60 => {
                let mut fields = Fields::of(record, "parameter change");
                let change = ParameterChange {
                    max_connections: fields.i32()?,
                    max_worker_processes: fields.i32()?,
                    max_wal_senders: fields.i32()?,
                    max_prepared_transactions: fields.i32()?,
                    max_locks_per_transaction: fields.i32()?,
                    wal_level: fields.i32()?,
                    wal_log_hints: fields.bool("wal_log_hints")?,
                    track_commit_timestamp: fields.bool("track_commit_timestamp")?,
                };
                fields.end_with_padding(2, XlogRecord::ParameterChange(change))
            }
            0x70 => {
                let mut fields = Fields::of(record, "restore point");
                let time = fields.timestamp()?;
                let name = fields.take(64)?;
                let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                fields.end(XlogRecord::RestorePoint { time, name: &name[..length] })
            }
            0x80 => {
                let mut fields = Fields::of(record, "full_page_writes change");
                let on = fields.bool("full_page_writes")?;
                fields.end(XlogRecord::FpwChange(on))
            }
            0x90 => {
                let mut fields = Fields::of(record, "end of recovery");
                let time = fields.timestamp()?;
                let (tli, prev_tli) = (Tli(fields.u32()?), Tli(fields.u32()?));
                let wal_level = if since_17 { Some(fields.i32()?) } else { None };
                let padding = if since_17 { 4 } else { 0 };
                fields.end_with_padding(padding, XlogRecord::EndOfRecovery { time, tli, prev_tli, wal_level })
            }
            0xA0 => Ok(XlogRecord::FpiForHint),
            0xB0 => Ok(XlogRecord::Fpi),
            0xD0 => {
                let mut fields = Fields::of(record, "overwrite contrecord");
                let (lsn, time) = (fields.lsn()?, fields.timestamp()?);
                fields.end(XlogRecord::OverwriteContrecord { lsn, time })
            }
            0xE0 if since_17 => {
                let mut fields = Fields::of(record, "checkpoint redo");
                let wal_level = fields.i32()?;
                fields.end(XlogRecord::CheckpointRedo { wal_level })
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
