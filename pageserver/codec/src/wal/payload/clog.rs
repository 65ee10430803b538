//! The commit log (`clog.h`). Page numbers are 32 bits up to 16, 64 bits since 17.

use model::{PgMajor, RmgrId};

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A record about `pg_xact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClogRecord {
    /// This page exists from now on, all zeros.
    ZeroPage(u32),
    /// Segments that lie wholly before this page are gone.
    Truncate {
        /// The first page still needed.
        page: u32,
        /// The oldest transaction whose status is still needed.
        oldest_xid: u32,
        /// The database that holds it back.
        oldest_xid_db: u32,
    },
}

impl ClogRecord {
    /// Parses a record of resource manager [`RmgrId::CLOG`].
    pub fn parse(record: &Record<'_>) -> Result<ClogRecord, PayloadError> {
        match kind_of(record, RmgrId::CLOG)? {
            0x00 => {
                let mut fields = Fields::of(record, "commit log zero page");
                let page = fields.slru_page(record.pg)?;
                fields.end(ClogRecord::ZeroPage(page))
            }
            0x10 => {
                let mut fields = Fields::of(record, "commit log truncate");
                let page = fields.slru_page(record.pg)?;
                let (oldest_xid, oldest_xid_db) = (fields.u32()?, fields.u32()?);
                fields.end(ClogRecord::Truncate { page, oldest_xid, oldest_xid_db })
            }
            _ => Err(unknown_kind(record)),
        }
    }
}

impl Fields<'_> {
    /// A page of an SLRU: a C `int` up to 16, an `int64` since 17. Those of the SLRUs that are in WAL fit 32 bits in all majors.
    pub(super) fn slru_page(&mut self, pg: PgMajor) -> Result<u32, PayloadError> {
        let found = if pg >= PgMajor::V17 { self.i64()? } else { i64::from(self.i32()?) };
        u32::try_from(found).map_err(|_| self.field("page", found, "0 to 2^32 - 1"))
    }
}
