//! Relation maps (`relmapper.h`).

use model::RmgrId;

use crate::relmap;
use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A whole new relation map file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelmapUpdate<'a> {
    /// Whose map: a database's, or 0 for the shared one.
    pub db: u32,
    /// Its tablespace.
    pub spc: u32,
    /// The file: 512 bytes in 14 and 15, 524 since 16. Its own CRC is not checked here.
    pub file: &'a [u8],
}

impl<'a> RelmapUpdate<'a> {
    /// Parses a record of resource manager [`RmgrId::RELMAP`].
    pub fn parse(record: &Record<'a>) -> Result<RelmapUpdate<'a>, PayloadError> {
        if kind_of(record, RmgrId::RELMAP)? != 0x00 {
            return Err(unknown_kind(record));
        }
        let mut fields = Fields::of(record, "relation map update");
        let (db, spc) = (fields.u32()?, fields.u32()?);
        let size = fields.count("size")?;
        if size != relmap::size(record.pg) {
            return Err(fields.field("size", size as i64, "512 up to 15, 524 since 16"));
        }
        let file = fields.take(size)?;
        fields.end(RelmapUpdate { db, spc, file })
    }
}
