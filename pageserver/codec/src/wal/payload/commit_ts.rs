//! Commit timestamps (`commit_ts.h`). Page numbers are 32 bits up to 16, 64 bits since 17.

use model::RmgrId;

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A record about `pg_commit_ts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitTsRecord {
    /// This page exists from now on, all zeros.
    ZeroPage(u32),
    /// Segments that lie wholly before this page are gone.
    Truncate {
        /// The first page still needed.
        page: u32,
        /// The oldest transaction whose time is kept.
        oldest_xid: u32,
    },
}

impl CommitTsRecord {
    /// Parses a record of resource manager [`RmgrId::COMMIT_TS`].
    pub fn parse(record: &Record<'_>) -> Result<CommitTsRecord, PayloadError> {
        match kind_of(record, RmgrId::COMMIT_TS)? {
            0x00 => {
                let mut fields = Fields::of(record, "commit timestamp zero page");
                let page = fields.slru_page(record.pg)?;
                fields.end(CommitTsRecord::ZeroPage(page))
            }
            0x10 => {
                let mut fields = Fields::of(record, "commit timestamp truncate");
                let page = fields.slru_page(record.pg)?;
                let oldest_xid = fields.u32()?;
                fields.end_with_padding(4, CommitTsRecord::Truncate { page, oldest_xid })
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
