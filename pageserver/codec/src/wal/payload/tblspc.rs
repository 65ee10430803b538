//! Tablespaces (`tablespace.h`).

use model::RmgrId;

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A record about tablespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TblspcRecord<'a> {
    /// A new tablespace.
    Create {
        /// Its oid.
        spc: u32,
        /// Where it is on the source; empty for one in place.
        path: &'a [u8],
    },
    /// A tablespace is gone.
    Drop {
        /// Its oid.
        spc: u32,
    },
}

impl<'a> TblspcRecord<'a> {
    /// Parses a record of resource manager [`RmgrId::TBLSPC`].
    pub fn parse(record: &Record<'a>) -> Result<TblspcRecord<'a>, PayloadError> {
        match kind_of(record, RmgrId::TBLSPC)? {
            0x00 => {
                let mut fields = Fields::of(record, "tablespace create");
                let spc = fields.u32()?;
                let path = fields.c_string()?;
                fields.end(TblspcRecord::Create { spc, path })
            }
            0x10 => {
                let mut fields = Fields::of(record, "tablespace drop");
                let spc = fields.u32()?;
                fields.end(TblspcRecord::Drop { spc })
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
