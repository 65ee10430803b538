//! What records say beyond their blocks: transactions, files, SLRU pages, counters. One module per resource manager.
//!
//! Structs are C structs of Postgres, little-endian with natural alignment. Every parser checks that all bytes are there and that none
//! are left over, and refuses kinds of record that it does not know: what these records do cannot be guessed or skipped.

pub mod clog;
pub mod commit_ts;
pub mod dbase;
pub mod heap;
pub mod logical_message;
pub mod multixact;
pub mod relmap;
pub mod replorigin;
pub mod smgr;
pub mod standby;
pub mod tblspc;
pub mod xact;
pub mod xlog;

use model::{Lsn, PgTimestamp, RelLocator, RmgrId};

use crate::bytes_in::{BytesIn, Truncated};
use crate::wal::record::Record;
use crate::wal::stream::INFO_RMGR_MASK;

/// A record whose main data is not what its kind and major call for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PayloadError {
    #[error("{record} record: {source}")]
    Truncated { record: &'static str, source: Truncated },
    #[error("{record} record has {left} bytes too many")]
    TrailingBytes { record: &'static str, left: usize },
    #[error("{rmgr} has no record of kind {info:#04x} in Postgres {major}")]
    UnknownKind { rmgr: RmgrId, info: u8, major: u32 },
    #[error("{record} record has {field} {found}, expected {expected}")]
    Field { record: &'static str, field: &'static str, found: i64, expected: &'static str },
    #[error("record is of {found}, expected {expected}")]
    Rmgr { found: RmgrId, expected: RmgrId },
}

/// Bytes of one shared invalidation message (`SharedInvalidationMessage`).
pub const INVALIDATION_SIZE: usize = 16;

/// Checks whose record it is, and answers its kind: the high four bits of its info.
fn kind_of(record: &Record<'_>, rmgr: RmgrId) -> Result<u8, PayloadError> {
    if record.rmgr == rmgr {
        Ok(record.info & INFO_RMGR_MASK)
    } else {
        Err(PayloadError::Rmgr { found: record.rmgr, expected: rmgr })
    }
}

fn unknown_kind(record: &Record<'_>) -> PayloadError {
    PayloadError::UnknownKind {
        rmgr: record.rmgr,
        info: record.info & INFO_RMGR_MASK,
        major: record.pg.number(),
    }
}

/// Reads a record's main data field by field.
struct Fields<'a> {
    input: BytesIn<'a>,
    record: &'static str,
}

macro_rules! fields {
    ($($name:ident: $type:ty = $read:ident;)*) => {
        $(fn $name(&mut self) -> Result<$type, PayloadError> {
            let record = self.record;
            self.input.$read().map_err(|source| PayloadError::Truncated { record, source })
        })*
    };
}

impl<'a> Fields<'a> {
    /// `name` is for errors.
    fn of(record: &Record<'a>, name: &'static str) -> Self {
        Fields { input: BytesIn::new(record.main), record: name }
    }

    fields! {
        u8: u8 = u8;
        u16: u16 = u16_le;
        u32: u32 = u32_le;
        i32: i32 = i32_le;
        i64: i64 = i64_le;
        u64: u64 = u64_le;
    }

    fn lsn(&mut self) -> Result<Lsn, PayloadError> {
        self.u64().map(Lsn)
    }

    fn timestamp(&mut self) -> Result<PgTimestamp, PayloadError> {
        self.i64().map(PgTimestamp)
    }

    fn locator(&mut self) -> Result<RelLocator, PayloadError> {
        Ok(RelLocator { spc: self.u32()?, db: self.u32()?, rel: self.u32()? })
    }

    fn bool(&mut self, field: &'static str) -> Result<bool, PayloadError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(self.field(field, i64::from(found), "0 or 1")),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PayloadError> {
        let record = self.record;
        self.input.take(count).map_err(|source| PayloadError::Truncated { record, source })
    }

    fn skip(&mut self, count: usize) -> Result<(), PayloadError> {
        self.take(count).map(drop)
    }

    /// Skips to a multiple of 8 from the beginning of the main data.
    fn align(&mut self) -> Result<(), PayloadError> {
        self.skip(self.input.position().next_multiple_of(8) - self.input.position())
    }

    /// A C `int` that counts things.
    fn count(&mut self, field: &'static str) -> Result<usize, PayloadError> {
        let found = self.i32()?;
        usize::try_from(found).map_err(|_| self.field(field, i64::from(found), "0 or more"))
    }

    /// `count` items of `size` bytes each. That the bytes are there is checked before anything is allocated.
    fn items<T>(
        &mut self,
        count: usize,
        size: usize,
        read: impl Fn(&mut Fields<'a>) -> Result<T, PayloadError>,
    ) -> Result<Vec<T>, PayloadError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.take(count.saturating_mul(size))?;
        let mut fields = Fields { input: BytesIn::new(bytes), record: self.record };
        (0..count).map(|_| read(&mut fields)).collect()
    }

    fn xids(&mut self, count: usize) -> Result<Vec<u32>, PayloadError> {
        self.items(count, 4, Fields::u32)
    }

    fn locators(&mut self, count: usize) -> Result<Vec<RelLocator>, PayloadError> {
        self.items(count, 12, Fields::locator)
    }

    /// Bytes up to a zero byte, which is read but not answered.
    fn c_string(&mut self) -> Result<&'a [u8], PayloadError> {
        let rest = self.input.rest();
        let length = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        let text = self.take(length)?;
        self.skip(1)?;
        Ok(text)
    }

    fn field(&self, field: &'static str, found: i64, expected: &'static str) -> PayloadError {
        PayloadError::Field { record: self.record, field, found, expected }
    }

    /// Nothing may be left.
    fn end<T>(self, value: T) -> Result<T, PayloadError> {
        self.end_with_padding(0, value)
    }

    /// Nothing but a struct's tail padding, of up to `padding` bytes, may be left.
    fn end_with_padding<T>(self, padding: usize, value: T) -> Result<T, PayloadError> {
        match self.input.remaining() {
            left if left <= padding => Ok(value),
            left => Err(PayloadError::TrailingBytes { record: self.record, left }),
        }
    }
}

#[cfg(test)]
mod tests;
