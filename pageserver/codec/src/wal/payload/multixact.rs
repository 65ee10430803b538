//! Multixacts (`multixact.h`). Page numbers are 32 bits up to 16, 64 bits since 17.

use model::RmgrId;

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// Highest status of a member (`MultiXactStatusUpdate`).
pub const MAX_MEMBER_STATUS: u32 = 5;

/// A record about `pg_multixact`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiXactRecord {
    /// This page of `offsets` exists from now on, all zeros.
    ZeroOffsetsPage(u32),
    /// This page of `members` exists from now on, all zeros.
    ZeroMembersPage(u32),
    /// A new multixact.
    Create {
        /// Its id.
        multi: u32,
        /// Where its members begin.
        offset: u32,
        /// Transactions and what each did (0 to [`MAX_MEMBER_STATUS`]).
        members: Vec<(u32, u32)>,
    },
    /// Multixacts before `end_multi` are gone, and with them members before `end_offset`.
    Truncate {
        /// The database that holds the oldest one back.
        oldest_db: u32,
        /// The oldest multixact before.
        start_multi: u32,
        /// The oldest multixact from now on.
        end_multi: u32,
        /// Where members began before.
        start_offset: u32,
        /// Where members begin from now on.
        end_offset: u32,
    },
}

impl MultiXactRecord {
    /// Parses a record of resource manager [`RmgrId::MULTIXACT`].
    pub fn parse(record: &Record<'_>) -> Result<MultiXactRecord, PayloadError> {
        match kind_of(record, RmgrId::MULTIXACT)? {
            0x00 => {
                let mut fields = Fields::of(record, "multixact offsets zero page");
                let page = fields.slru_page(record.pg)?;
                fields.end(MultiXactRecord::ZeroOffsetsPage(page))
            }
            0x10 => {
                let mut fields = Fields::of(record, "multixact members zero page");
                let page = fields.slru_page(record.pg)?;
                fields.end(MultiXactRecord::ZeroMembersPage(page))
            }
            0x20 => {
                let mut fields = Fields::of(record, "multixact create");
                let (multi, offset) = (fields.u32()?, fields.u32()?);
                let count = fields.count("number of members")?;
                let members = fields.items(count, 8, |item| {
                    let (xid, status) = (item.u32()?, item.u32()?);
                    if status > MAX_MEMBER_STATUS {
                        return Err(item.field("member status", i64::from(status), "0 to 5"));
                    }
                    Ok((xid, status))
                })?;
                fields.end(MultiXactRecord::Create { multi, offset, members })
            }
            0x30 => {
                let mut fields = Fields::of(record, "multixact truncate");
                let truncate = MultiXactRecord::Truncate {
                    oldest_db: fields.u32()?,
                    start_multi: fields.u32()?,
                    end_multi: fields.u32()?,
                    start_offset: fields.u32()?,
                    end_offset: fields.u32()?,
                };
                fields.end(truncate)
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
