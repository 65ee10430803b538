//! Databases (`dbcommands_xlog.h`). 15 split creation in two and renumbered the drop.

use model::{PgMajor, RmgrId};

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A record about databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DbaseRecord {
    /// A directory is copied as it is at this point of WAL: `CREATE DATABASE` up to 14, its strategy `file_copy`, and
    /// `ALTER DATABASE SET TABLESPACE`.
    CreateFileCopy {
        /// New database.
        db: u32,
        /// Its tablespace.
        spc: u32,
        /// Database to copy.
        source_db: u32,
        /// Its tablespace.
        source_spc: u32,
    },
    /// A new empty directory; its content follows in WAL.
    CreateWalLog {
        /// New database.
        db: u32,
        /// Its tablespace.
        spc: u32,
    },
    /// The database's directories in these tablespaces are gone.
    Drop {
        /// Which database.
        db: u32,
        /// Where its directories were.
        spcs: Vec<u32>,
    },
}

impl DbaseRecord {
    /// Parses a record of resource manager [`RmgrId::DBASE`].
    pub fn parse(record: &Record<'_>) -> Result<DbaseRecord, PayloadError> {
        let is_14 = record.pg == PgMajor::V14;
        match kind_of(record, RmgrId::DBASE)? {
            0x00 => {
                let mut fields = Fields::of(record, "database copy");
                let (db, spc) = (fields.u32()?, fields.u32()?);
                let (source_db, source_spc) = (fields.u32()?, fields.u32()?);
                fields.end(DbaseRecord::CreateFileCopy { db, spc, source_db, source_spc })
            }
            0x10 if !is_14 => {
                let mut fields = Fields::of(record, "database create");
                let (db, spc) = (fields.u32()?, fields.u32()?);
                fields.end(DbaseRecord::CreateWalLog { db, spc })
            }
            kind if kind == if is_14 { 0x10 } else { 0x20 } => {
                let mut fields = Fields::of(record, "database drop");
                let db = fields.u32()?;
                let count = fields.count("number of tablespaces")?;
                let spcs = fields.items(count, 4, Fields::u32)?;
                fields.end(DbaseRecord::Drop { db, spcs })
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
