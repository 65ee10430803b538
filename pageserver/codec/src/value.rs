//! What a key holds at an LSN: a whole value, or a change to the value before it.
//!
//! Layer files and the tail keep values in this form, which is Neon's (bincode, big-endian, fixed-width):
//!
//! ```text
//! u32 0 image   | u64 length | bytes
//! u32 1 change  | u32 tag, then by tag:
//!     0 Postgres record             u8 will_init | u64 length | record
//!     1 clear visibility-map bits   option u32 new heap block | option u32 old heap block | u8 bits
//!     2 transactions committed      u64 count | u32 xids… | i64 time
//!     3 transactions aborted        u64 count | u32 xids…
//!     4 multixact offset            u32 multixact | u32 offset
//!     5 multixact members           u32 first offset | u64 count | (u32 xid | u32 status)…
//!     7 truncate visibility map     u64 byte | u64 bit
//!   128 zero page (ours)
//!   129 commit timestamps (ours)    u64 count | u32 xids… | i64 time | u16 origin
//!   130 multixact offsets (ours)    u32 first multixact | u64 count | u32 offsets…
//! ```
//!
//! An option is a byte 0, or a byte 1 and the value. Tag 6 is a no-op of old Neon versions and is refused.
//! For an SLRU page a committed record and a Postgres one never mix; for the others the order of LSNs is the order of redo.

use model::PgTimestamp;

use crate::bytes_in::{BytesIn, Truncated};

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// The whole value.
    Image(&'a [u8]),
    /// How it differs from the version before; some changes need none (see [`Value::will_init`]).
    Change(Change<'a>),
}

/// A change to a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A record of Postgres, whole or trimmed to what its block needs.
    Postgres {
        /// Needs no older version.
        will_init: bool,
        /// Header included.
        record: &'a [u8],
    },
    /// Clears bits of one visibility-map page for up to two heap blocks.
    ClearVisibilityMap {
        /// Heap block of a new tuple version.
        new_heap_block: Option<u32>,
        /// Heap block of an old tuple version.
        old_heap_block: Option<u32>,
        /// Which bits: 1 all-visible, 2 all-frozen.
        bits: u8,
    },
    /// Sets the status of transactions on one commit-log page.
    Committed {
        /// All on the same page.
        xids: Vec<u32>,
        /// When.
        time: PgTimestamp,
    },
    /// Sets the status of transactions on one commit-log page.
    Aborted {
        /// All on the same page.
        xids: Vec<u32>,
    },
    /// One entry of a multixact offsets page.
    MultiXactOffset {
        /// Which multixact.
        multi: u32,
        /// Where its members begin.
        offset: u32,
    },
    /// Consecutive entries of one multixact members page.
    MultiXactMembers {
        /// Offset of the first.
        first: u32,
        /// Transaction and lock status of each.
        members: Vec<(u32, u32)>,
    },
    /// Clears the tail of a visibility-map page: all bytes after `byte`, and from `bit` on within it.
    TruncateVisibilityMap {
        /// Offset among the map bytes of the page.
        byte: u64,
        /// Bit within it, 0 to 7.
        bit: u64,
    },
    /// A page that was never written but lies within its relation or segment. Needs no older version.
    ZeroPage,
    /// Entries of one commit-timestamp page.
    CommitTimestamps {
        /// All on the same page.
        xids: Vec<u32>,
        /// When.
        time: PgTimestamp,
        /// Replication origin, 0 for none.
        origin: u16,
    },
    /// Consecutive entries of one multixact offsets page: a record that creates a multixact also says where the next one's members will
    /// begin.
    MultiXactOffsets {
        /// Multixact of the first entry.
        first: u32,
        /// Where the members of each begin.
        offsets: Vec<u32>,
    },
}

const TAG_IMAGE: u32 = 0;
const TAG_CHANGE: u32 = 1;
const TAG_POSTGRES: u32 = 0;
const TAG_CLEAR_VM: u32 = 1;
const TAG_COMMITTED: u32 = 2;
const TAG_ABORTED: u32 = 3;
const TAG_MULTI_OFFSET: u32 = 4;
const TAG_MULTI_MEMBERS: u32 = 5;
const TAG_TRUNCATE_VM: u32 = 7;
const TAG_ZERO_PAGE: u32 = 128;
const TAG_COMMIT_TS: u32 = 129;
const TAG_MULTI_OFFSETS: u32 = 130;

/// Bytes that are not a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ValueError {
    #[error("value is truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("unknown value tag {0}")]
    UnknownValue(u32),
    #[error("unknown change tag {0}")]
    UnknownChange(u32),
    #[error("{what} is {found}, expected {expected}")]
    Field { what: &'static str, found: u64, expected: &'static str },
    #[error("{0} bytes are left over after the value")]
    TrailingBytes(usize),
}

/// Whether an encoded value is a whole one; nothing but its tag is looked at.
pub fn is_image(encoded: &[u8]) -> bool {
    encoded.starts_with(&TAG_IMAGE.to_be_bytes())
}

impl<'a> Value<'a> {
    /// Whether reconstruction needs no older version.
    pub fn will_init(&self) -> bool {
        match self {
            Value::Image(_) | Value::Change(Change::ZeroPage) => true,
            Value::Change(Change::Postgres { will_init, .. }) => *will_init,
            Value::Change(_) => false,
        }
    }

    /// Reads a value; all bytes must belong to it.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Value<'a>, ValueError> {
        let mut input = BytesIn::new(bytes);
        let value = match input.u32_be()? {
            TAG_IMAGE => Value::Image(decode_bytes(&mut input)?),
            TAG_CHANGE => Value::Change(Change::decode(&mut input)?),
            tag => return Err(ValueError::UnknownValue(tag)),
        };
        match input.remaining() {
            0 => Ok(value),
            left => Err(ValueError::TrailingBytes(left)),
        }
    }

    /// Appends the value's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Image(bytes) => {
                put_u32(out, TAG_IMAGE);
                put_bytes(out, bytes);
            }
            Value::Change(change) => {
                put_u32(out, TAG_CHANGE);
                change.encode(out);
            }
        }
    }

    /// The value's bytes on their own.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

impl<'a> Change<'a> {
    #[inline]
    fn decode(input: &mut BytesIn<'a>) -> Result<Change<'a>, ValueError> {
        Ok(match input.u32_be()? {
            TAG_POSTGRES => {
                let will_init = decode_bool(input, "will_init")?;
                Change::Postgres { will_init, record: decode_bytes(input)? }
            }
            TAG_CLEAR_VM => Change::ClearVisibilityMap {
                new_heap_block: decode_option_u32(input)?,
                old_heap_block: decode_option_u32(input)?,
                bits: input.u8()?,
            },
            TAG_COMMITTED => {
                Change::Committed { xids: decode_u32s(input)?, time: PgTimestamp(input.i64_be()?) }
            }
            TAG_ABORTED => Change::Aborted { xids: decode_u32s(input)? },
            TAG_MULTI_OFFSET => Change::MultiXactOffset { multi: input.u32_be()?, offset: input.u32_be()? },
            TAG_MULTI_MEMBERS => {
                let first = input.u32_be()?;
                let count = decode_count(input, 8)?;
                let members =
                    (0..count)
                        .map(|_| Ok((input.u32_be()?, input.u32_be()?)))
                        .collect::<Result<_, Truncated>>()?;
                Change::MultiXactMembers { first, members }
            }
            TAG_TRUNCATE_VM => Change::TruncateVisibilityMap { byte: input.u64_be()?, bit: input.u64_be()? },
            TAG_ZERO_PAGE => Change::ZeroPage,
            TAG_COMMIT_TS => Change::CommitTimestamps {
                xids: decode_u32s(input)?,
                time: PgTimestamp(input.i64_be()?),
                origin: input.u16_be()?,
            },
            TAG_MULTI_OFFSETS => {
                Change::MultiXactOffsets { first: input.u32_be()?, offsets: decode_u32s(input)? }
            }
            tag => return Err(ValueError::UnknownChange(tag)),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Change::Postgres { will_init, record } => {
                put_u32(out, TAG_POSTGRES);
                out.push(u8::from(*will_init));
                put_bytes(out, record);
            }
            Change::ClearVisibilityMap { new_heap_block, old_heap_block, bits } => {
                put_u32(out, TAG_CLEAR_VM);
                for block in [new_heap_block, old_heap_block] {
                    out.push(u8::from(block.is_some()));
                    if let Some(block) = block {
                        put_u32(out, *block);
                    }
                }
                out.push(*bits);
            }
            Change::Committed { xids, time } => {
                put_u32(out, TAG_COMMITTED);
                put_u32s(out, xids);
                put_u64(out, time.0 as u64);
            }
            Change::Aborted { xids } => {
                put_u32(out, TAG_ABORTED);
                put_u32s(out, xids);
            }
            Change::MultiXactOffset { multi, offset } => {
                put_u32(out, TAG_MULTI_OFFSET);
                put_u32(out, *multi);
                put_u32(out, *offset);
            }
            Change::MultiXactMembers { first, members } => {
                put_u32(out, TAG_MULTI_MEMBERS);
                put_u32(out, *first);
                put_u64(out, members.len() as u64);
                for (xid, status) in members {
                    put_u32(out, *xid);
                    put_u32(out, *status);
                }
            }
            Change::TruncateVisibilityMap { byte, bit } => {
                put_u32(out, TAG_TRUNCATE_VM);
                put_u64(out, *byte);
                put_u64(out, *bit);
            }
            Change::ZeroPage => put_u32(out, TAG_ZERO_PAGE),
            Change::CommitTimestamps { xids, time, origin } => {
                put_u32(out, TAG_COMMIT_TS);
                put_u32s(out, xids);
                put_u64(out, time.0 as u64);
                out.extend_from_slice(&origin.to_be_bytes());
            }
            Change::MultiXactOffsets { first, offsets } => {
                put_u32(out, TAG_MULTI_OFFSETS);
                put_u32(out, *first);
                put_u32s(out, offsets);
            }
        }
    }
}

#[inline]
fn decode_count(input: &mut BytesIn<'_>, item_size: usize) -> Result<usize, ValueError> {
    let count = input.u64_be()?;
    let left = input.remaining() / item_size;
    usize::try_from(count).ok().filter(|count| *count <= left).ok_or(ValueError::Field {
        what: "count",
        found: count,
        expected: "no more than the bytes that follow hold",
    })
}

#[inline]
fn decode_bytes<'a>(input: &mut BytesIn<'a>) -> Result<&'a [u8], ValueError> {
    let length = decode_count(input, 1)?;
    Ok(input.take(length)?)
}

#[inline]
fn decode_bool(input: &mut BytesIn<'_>, what: &'static str) -> Result<bool, ValueError> {
    match input.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(ValueError::Field { what, found: found.into(), expected: "0 or 1" }),
    }
}

fn decode_option_u32(input: &mut BytesIn<'_>) -> Result<Option<u32>, ValueError> {
    Ok(if decode_bool(input, "option")? { Some(input.u32_be()?) } else { None })
}

fn decode_u32s(input: &mut BytesIn<'_>) -> Result<Vec<u32>, ValueError> {
    let count = decode_count(input, 4)?;
    Ok((0..count).map(|_| input.u32_be()).collect::<Result<_, Truncated>>()?)
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_u32s(out: &mut Vec<u8>, values: &[u32]) {
    put_u64(out, values.len() as u64);
    for value in values {
        put_u32(out, *value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_image_and_a_record_have_the_bytes_of_the_format() {
        assert_eq!(hex::encode(Value::Image(b"abc").to_bytes()), "000000000000000000000003616263");
        let record = Value::Change(Change::Postgres { will_init: true, record: &[0xAA, 0xBB] });
        assert_eq!(hex::encode(record.to_bytes()), "0000000100000000010000000000000002aabb");
    }

    #[test]
    fn a_count_cannot_ask_for_more_than_there_is() {
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 3];
        bytes.extend_from_slice(&u64::MAX.to_be_bytes());
        assert!(matches!(Value::decode(&bytes), Err(ValueError::Field { .. })));
    }

    proptest! {
        #[test]
        fn changes_round_trip(xids: Vec<u32>, time: i64, a: Option<u32>, b: u32, pairs: Vec<(u32, u32)>, bytes: Vec<u8>, flag: bool) {
            for change in [
                Change::Postgres { will_init: flag, record: &bytes },
                Change::ClearVisibilityMap { new_heap_block: a, old_heap_block: Some(b), bits: 3 },
                Change::Committed { xids: xids.clone(), time: PgTimestamp(time) },
                Change::Aborted { xids: xids.clone() },
                Change::MultiXactOffset { multi: b, offset: b ^ 5 },
                Change::MultiXactMembers { first: b, members: pairs },
                Change::TruncateVisibilityMap { byte: u64::from(b), bit: 7 },
                Change::ZeroPage,
                Change::MultiXactOffsets { first: b, offsets: xids.clone() },
                Change::CommitTimestamps { xids, time: PgTimestamp(time), origin: 7 },
            ] {
                let value = Value::Change(change);
                let encoded = value.to_bytes();
                prop_assert_eq!(Value::decode(&encoded), Ok(value.clone()));
                prop_assert!(Value::decode(&encoded[..encoded.len() - 1]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes: Vec<u8>) {
            if let Ok(value) = Value::decode(&bytes) {
                prop_assert_eq!(value.to_bytes(), bytes);
            }
        }
    }
}
