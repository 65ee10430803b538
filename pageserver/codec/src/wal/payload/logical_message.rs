//! Messages for logical decoding (`message.h`). They change nothing.

use model::RmgrId;

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A message that `pg_logical_emit_message` wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Where it was written.
    pub db: u32,
    /// Whether it belongs to its transaction.
    pub is_transactional: bool,
    /// Whom it is for, without the terminating zero.
    pub prefix: &'a [u8],
    /// What it says.
    pub message: &'a [u8],
}

impl<'a> LogicalMessage<'a> {
    /// Parses a record of resource manager [`RmgrId::LOGICAL_MSG`].
    pub fn parse(record: &Record<'a>) -> Result<LogicalMessage<'a>, PayloadError> {
        if kind_of(record, RmgrId::LOGICAL_MSG)? != 0x00 {
            return Err(unknown_kind(record));
        }
        let mut fields = Fields::of(record, "logical message");
        let db = fields.u32()?;
        let is_transactional = fields.bool("transactional")?;
        fields.skip(3)?;
        let lengths = (fields.u64()?, fields.u64()?);
        let length = |found: u64| usize::try_from(found).unwrap_or(usize::MAX);
        let prefix = fields.take(length(lengths.0))?;
        let prefix = prefix
            .strip_suffix(&[0])
            .ok_or_else(|| fields.field("prefix length", lengths.0 as i64, "one with a terminating zero"))?;
        let message = fields.take(length(lengths.1))?;
        fields.end(LogicalMessage { db, is_transactional, prefix, message })
    }
}
