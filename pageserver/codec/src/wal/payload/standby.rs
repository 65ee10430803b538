//! What a hot standby needs to know (`standbydefs.h`).

use model::RmgrId;

use crate::wal::payload::{Fields, INVALIDATION_SIZE, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A record for hot standbys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandbyRecord {
    /// Access-exclusive locks that are held.
    Lock,
    /// Which transactions run.
    RunningXacts(RunningXacts),
    /// Cache invalidations outside of a transaction.
    Invalidations,
}

/// Which transactions run at a place in WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningXacts {
    /// Some subtransactions are not in the list.
    pub subxid_overflow: bool,
    /// The next xid to be given out, 32 bits of it.
    pub next_xid: u32,
    /// The oldest that runs, or the next one when none does.
    pub oldest_running_xid: u32,
    /// The newest that has ended.
    pub latest_completed_xid: u32,
    /// Those that run: top-level ones, then subtransactions.
    pub xids: Vec<u32>,
    /// How many of them are top-level.
    pub top_level: usize,
}

impl StandbyRecord {
    /// Parses a record of resource manager [`RmgrId::STANDBY`].
    pub fn parse(record: &Record<'_>) -> Result<StandbyRecord, PayloadError> {
        match kind_of(record, RmgrId::STANDBY)? {
            0x00 => {
                let mut fields = Fields::of(record, "standby lock");
                let count = fields.count("number of locks")?;
                fields.skip(count.saturating_mul(12))?;
                fields.end(StandbyRecord::Lock)
            }
            0x10 => {
                let mut fields = Fields::of(record, "running transactions");
                let top_level = fields.count("number of transactions")?;
                let subxids = fields.count("number of subtransactions")?;
                let subxid_overflow = fields.bool("subtransaction overflow")?;
                fields.skip(3)?;
                let next_xid = fields.u32()?;
                let oldest_running_xid = fields.u32()?;
                let latest_completed_xid = fields.u32()?;
                let xids = fields.xids(top_level.saturating_add(subxids))?;
                fields.end(StandbyRecord::RunningXacts(RunningXacts {
                    subxid_overflow,
                    next_xid,
                    oldest_running_xid,
                    latest_completed_xid,
                    xids,
                    top_level,
                }))
            }
            0x20 => {
                let mut fields = Fields::of(record, "standby invalidations");
                fields.skip(8)?;
                fields.bool("init file invalidation")?;
                fields.skip(3)?;
                let count = fields.count("number of messages")?;
                fields.skip(count.saturating_mul(INVALIDATION_SIZE))?;
                fields.end(StandbyRecord::Invalidations)
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
