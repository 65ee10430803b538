//! Replication origins (`origin.h`).

use model::{Lsn, RmgrId};

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A record about replication origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplOriginRecord {
    /// How far this origin was replayed.
    Set {
        /// Which origin.
        id: u16,
        /// Up to where, in its own WAL.
        remote_lsn: Lsn,
        /// Also backwards.
        force: bool,
    },
    /// This origin is gone.
    Drop {
        /// Which origin.
        id: u16,
    },
}

impl ReplOriginRecord {
    /// Parses a record of resource manager [`RmgrId::REPL_ORIGIN`].
    pub fn parse(record: &Record<'_>) -> Result<ReplOriginRecord, PayloadError> {
        match kind_of(record, RmgrId::REPL_ORIGIN)? {
            0x00 => {
                let mut fields = Fields::of(record, "replication origin set");
                let remote_lsn = fields.lsn()?;
                let id = fields.u16()?;
                let force = fields.bool("force")?;
                fields.end_with_padding(5, ReplOriginRecord::Set { id, remote_lsn, force })
            }
            0x10 => {
                let mut fields = Fields::of(record, "replication origin drop");
                let id = fields.u16()?;
                fields.end(ReplOriginRecord::Drop { id })
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
