//! The key space: everything that has versions has a [`Key`].
//!
//! A key packs to 18 bytes, all big-endian, ordered field by field:
//!
//! ```text
//!  0      1          5          9          13     14         18
//!  | kind | tablesp. | database | relation | fork | block    |
//!  | u8   | u32      | u32      | u32      | u8   | u32      |
//! ```
//!
//! | what | kind | tablespace | database | relation | fork | block |
//! |---|---|---|---|---|---|---|
//! | database directory | 00 | 0 | 0 | 0 | 00 | 0 |
//! | relation map file | 00 | spc | db | 0 | 00 | 0 |
//! | relation block | 00 | spc | db | rel | fork | block |
//! | relation size | 00 | spc | db | rel | fork | FFFFFFFF |
//! | SLRU directory | 01 | kind | 0 | 0 | 00 | 0 |
//! | SLRU page | 01 | kind | 1 | segment | 00 | 0..31 |
//! | SLRU segment size | 01 | kind | 1 | segment | 00 | FFFFFFFF |
//! | two-phase directory | 02 | 0 | 0 | 0 | 00 | 0 |
//! | two-phase file | 02 | 0 | 0 | xid 40..63 | xid 32..39 | xid 0..31 |
//! | control file | 03 | 0 | 0 | 0 | 00 | 0 |
//! | checkpoint | 03 | 0 | 0 | 0 | 00 | 1 |
//! | tablespace directory (ours) | 03 | 0 | 0 | 0 | 00 | 3 |
//! | logical size (ours) | 03 | 0 | 0 | 0 | 00 | 4 |
//! | replication origin | 63 | 0 | 0 | 0 | 00 | origin id |
//! | relation directory entry | 65 | spc | db | rel | fork | 1 |
//!
//! Kinds 0x60 to 0x7E are sparse: a missing key is no error there, and scans list what exists. The layout up to here is Neon's
//! but for the lines marked as ours. SLRU kind 3 (commit timestamps) is ours too.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Fork, RelTag, SlruKind};

/// Bytes of a packed key.
pub const KEY_SIZE: usize = 18;

/// The name of one versioned thing. See the module for what its fields mean.
///
/// Text form: exactly 36 hexadecimal digits, upper case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Key {
    /// Kind of thing, the key space's prefix.
    pub field1: u8,
    /// Tablespace oid, or SLRU kind.
    pub field2: u32,
    /// Database oid.
    pub field3: u32,
    /// Relation file number, or SLRU segment.
    pub field4: u32,
    /// Fork.
    pub field5: u8,
    /// Block number; `FFFFFFFF` for a size.
    pub field6: u32,
}

/// Keys from `start` (inclusive) to `end` (exclusive).
pub type KeyRange = Range<Key>;

/// What `field6` is in the key of a size.
pub const SIZE_BLOCK: u32 = u32::MAX;

const REL: u8 = 0x00;
const SLRU: u8 = 0x01;
const TWO_PHASE: u8 = 0x02;
const CONTROL: u8 = 0x03;
const AUX_FILE: u8 = 0x62;
const ORIGIN: u8 = 0x63;
const REL_DIRECTORY: u8 = 0x65;
const SPARSE: Range<u8> = 0x60..0x7F;

impl Key {
    /// Below every key.
    pub const MIN: Key = Key { field1: 0, field2: 0, field3: 0, field4: 0, field5: 0, field6: 0 };
    /// Above every key; only ever the end of a range.
    pub const MAX: Key = Key {
        field1: u8::MAX,
        field2: u32::MAX,
        field3: u32::MAX,
        field4: u32::MAX,
        field5: u8::MAX,
        field6: u32::MAX,
    };
    /// The list of databases.
    pub const DB_DIRECTORY: Key = Key::MIN;
    /// The list of prepared transactions.
    pub const TWO_PHASE_DIRECTORY: Key = Key { field1: TWO_PHASE, ..Key::MIN };
    /// `global/pg_control`, as imported.
    pub const CONTROL_FILE: Key = Key { field1: CONTROL, ..Key::MIN };
    /// The `CheckPoint` struct, kept up to date from WAL.
    pub const CHECKPOINT: Key = Key { field1: CONTROL, field6: 1, ..Key::MIN };
    /// The list of tablespaces and their paths on the source. Ours.
    pub const TABLESPACE_DIRECTORY: Key = Key { field1: CONTROL, field6: 3, ..Key::MIN };
    /// How much there is of all relations together. Ours.
    pub const LOGICAL_SIZE: Key = Key { field1: CONTROL, field6: 4, ..Key::MIN };

    /// Every key.
    pub const ALL: KeyRange = Key::MIN..Key::MAX;

    const fn of(field1: u8, field2: u32, field3: u32, field4: u32, field5: u8, field6: u32) -> Key {
        Key { field1, field2, field3, field4, field5, field6 }
    }

    /// One block of a relation's fork.
    pub fn rel_block(rel: RelTag, block: u32) -> Key {
        Key::of(REL, rel.spc, rel.db, rel.rel, rel.fork as u8, block)
    }

    /// The size of a relation's fork. An empty value means that the fork was dropped.
    pub fn rel_size(rel: RelTag) -> Key {
        Key::rel_block(rel, SIZE_BLOCK)
    }

    /// All blocks of a relation's fork and its size.
    pub fn rel_range(rel: RelTag) -> KeyRange {
        let last = Key::rel_size(rel);
        Key::rel_block(rel, 0)..last.next()
    }

    /// Says that a relation's fork exists; one of many under a database, so that listing needs no big value.
    pub fn rel_directory_entry(rel: RelTag) -> Key {
        Key::of(REL_DIRECTORY, rel.spc, rel.db, rel.rel, rel.fork as u8, 1)
    }

    /// The directory entries of all relations of a database in a tablespace.
    pub fn rel_directory_range(spc: u32, db: u32) -> KeyRange {
        Key::of(REL_DIRECTORY, spc, db, 0, 0, 0)..Key::of(REL_DIRECTORY, spc, db, u32::MAX, u8::MAX, u32::MAX)
    }

    /// Every relation directory entry of the timeline.
    pub fn rel_directory_all() -> KeyRange {
        Key { field1: REL_DIRECTORY, ..Key::MIN }..Key { field1: REL_DIRECTORY + 1, ..Key::MIN }
    }

    /// A database's `pg_filenode.map` in a tablespace.
    pub fn relation_map(spc: u32, db: u32) -> Key {
        Key::of(REL, spc, db, 0, 0, 0)
    }

    /// Everything of a database in a tablespace but its directory entries.
    pub fn database_range(spc: u32, db: u32) -> KeyRange {
        Key::of(REL, spc, db, 0, 0, 0)..Key::of(REL, spc, db, u32::MAX, u8::MAX, u32::MAX)
    }

    /// The list of an SLRU's segments.
    pub fn slru_directory(kind: SlruKind) -> Key {
        Key::of(SLRU, kind as u32, 0, 0, 0, 0)
    }

    /// One page of an SLRU segment; `page` is below 32.
    pub fn slru_page(kind: SlruKind, segment: u32, page: u32) -> Key {
        Key::of(SLRU, kind as u32, 1, segment, 0, page)
    }

    /// How many pages an SLRU segment has.
    pub fn slru_size(kind: SlruKind, segment: u32) -> Key {
        Key::slru_page(kind, segment, SIZE_BLOCK)
    }

    /// All pages of all segments of an SLRU.
    pub fn slru_range(kind: SlruKind) -> KeyRange {
        Key::of(SLRU, kind as u32, 1, 0, 0, 0)..Key::of(SLRU, kind as u32, 2, 0, 0, 0)
    }

    /// A prepared transaction's state file. `xid` carries its epoch in the high half from Postgres 17 on.
    pub fn two_phase_file(xid: u64) -> Key {
        Key::of(TWO_PHASE, 0, 0, (xid >> 40) as u32, (xid >> 32) as u8, xid as u32)
    }

    /// How far a replication origin was replayed.
    pub fn replication_origin(origin: u16) -> Key {
        Key::of(ORIGIN, 0, 0, 0, 0, u32::from(origin))
    }

    /// Every replication origin.
    pub fn replication_origin_range() -> KeyRange {
        Key::replication_origin(0)..Key::of(ORIGIN, 0, 0, 0, 0, 0x1_0000)
    }

    /// Where keys are sparse: absence is no error, scans list what exists.
    pub fn is_sparse(self) -> bool {
        SPARSE.contains(&self.field1)
    }

    /// What this names, when it names one of the things of the module's table.
    pub fn kind(self) -> Option<KeyKind> {
        let Key { field1, field2, field3, field4, field5, field6 } = self;
        let rel =
            || Fork::from_number(field5).map(|fork| RelTag { spc: field2, db: field3, rel: field4, fork });
        match field1 {
            REL if self == Key::DB_DIRECTORY => Some(KeyKind::DbDirectory),
            REL if field4 == 0 && field5 == 0 && field6 == 0 => {
                Some(KeyKind::RelationMap { spc: field2, db: field3 })
            }
            REL if field4 == 0 => None,
            REL if field6 == SIZE_BLOCK => rel().map(KeyKind::RelSize),
            REL => rel().map(|rel| KeyKind::RelBlock { rel, block: field6 }),
            SLRU => {
                let slru = SlruKind::from_number(u8::try_from(field2).ok()?)?;
                match (field3, field5, field6) {
                    (0, 0, 0) if field4 == 0 => Some(KeyKind::SlruDirectory(slru)),
                    (1, 0, SIZE_BLOCK) => Some(KeyKind::SlruSize { slru, segment: field4 }),
                    (1, 0, page @ 0..32) => Some(KeyKind::SlruPage { slru, segment: field4, page }),
                    _ => None,
                }
            }
            TWO_PHASE if self == Key::TWO_PHASE_DIRECTORY => Some(KeyKind::TwoPhaseDirectory),
            TWO_PHASE if field2 == 0 && field3 == 0 && field4 < 1 << 24 => Some(KeyKind::TwoPhaseFile {
                xid: u64::from(field4) << 40 | u64::from(field5) << 32 | u64::from(field6),
            }),
            CONTROL if self == Key::CONTROL_FILE => Some(KeyKind::ControlFile),
            CONTROL if self == Key::CHECKPOINT => Some(KeyKind::Checkpoint),
            CONTROL if self == Key::TABLESPACE_DIRECTORY => Some(KeyKind::TablespaceDirectory),
            CONTROL if self == Key::LOGICAL_SIZE => Some(KeyKind::LogicalSize),
            ORIGIN => u16::try_from(field6).ok().map(KeyKind::ReplicationOrigin),
            REL_DIRECTORY if field6 == 1 => rel().map(KeyKind::RelDirectoryEntry),
            _ => None,
        }
    }

    /// Whether it is of a page of a relation.
    #[inline]
    pub fn is_rel_block(self) -> bool {
        self.field1 == 0 && self.field4 != 0 && self.field6 != u32::MAX
    }

    /// Whether a branch sees its ancestor's value of this key below the branch point. Auxiliary files and replication
    /// origins belong to one cluster and are not inherited.
    pub fn is_inherited(self) -> bool {
        !(AUX_FILE..=ORIGIN).contains(&self.field1)
    }

    /// All keys that a branch does not inherit.
    pub const NOT_INHERITED: KeyRange =
        Key { field1: AUX_FILE, ..Key::MIN }..Key { field1: ORIGIN + 1, ..Key::MIN };

    /// The smallest key above this one; [`Key::MAX`] stays.
    #[must_use]
    pub fn next(self) -> Key {
        if self == Key::MAX {
            return self;
        }
        let mut key = self;
        let mut carry;
        (key.field6, carry) = key.field6.overflowing_add(1);
        if carry {
            (key.field5, carry) = key.field5.overflowing_add(1);
        }
        if carry {
            (key.field4, carry) = key.field4.overflowing_add(1);
        }
        if carry {
            (key.field3, carry) = key.field3.overflowing_add(1);
        }
        if carry {
            (key.field2, carry) = key.field2.overflowing_add(1);
        }
        if carry {
            key.field1 += 1;
        }
        key
    }

    /// The 18 bytes, in the order in which keys sort.
    pub fn to_bytes(self) -> [u8; KEY_SIZE] {
        let mut bytes = [0; KEY_SIZE];
        bytes[0] = self.field1;
        bytes[1..5].copy_from_slice(&self.field2.to_be_bytes());
        bytes[5..9].copy_from_slice(&self.field3.to_be_bytes());
        bytes[9..13].copy_from_slice(&self.field4.to_be_bytes());
        bytes[13] = self.field5;
        bytes[14..18].copy_from_slice(&self.field6.to_be_bytes());
        bytes
    }

    #[inline]
    fn as_numbers(self) -> (u128, u64) {
        let kind_and_space = u64::from(self.field1) << 32 | u64::from(self.field2);
        let database_and_relation = u64::from(self.field3) << 32 | u64::from(self.field4);
        let fork_and_block = u64::from(self.field5) << 32 | u64::from(self.field6);
        (u128::from(kind_and_space) << 64 | u128::from(database_and_relation), fork_and_block)
    }

    /// The key that these 18 bytes are.
    pub fn from_bytes(bytes: &[u8; KEY_SIZE]) -> Key {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Key::of(bytes[0], word(1), word(5), word(9), bytes[13], word(14))
    }
}

/// Field by field, in their order. Compared as two numbers: sorting and searching versions does little else, and the first fields are
/// mostly alike.
impl Ord for Key {
    #[inline]
    fn cmp(&self, other: &Key) -> Ordering {
        self.as_numbers().cmp(&other.as_numbers())
    }
}

impl PartialOrd for Key {
    #[inline]
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a [`Key`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is a line of the module's table")]
pub enum KeyKind {
    DbDirectory,
    RelationMap { spc: u32, db: u32 },
    RelBlock { rel: RelTag, block: u32 },
    RelSize(RelTag),
    SlruDirectory(SlruKind),
    SlruPage { slru: SlruKind, segment: u32, page: u32 },
    SlruSize { slru: SlruKind, segment: u32 },
    TwoPhaseDirectory,
    TwoPhaseFile { xid: u64 },
    ControlFile,
    Checkpoint,
    TablespaceDirectory,
    LogicalSize,
    ReplicationOrigin(u16),
    RelDirectoryEntry(RelTag),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { field1, field2, field3, field4, field5, field6 } = self;
        write!(f, "{field1:02X}{field2:08X}{field3:08X}{field4:08X}{field5:02X}{field6:08X}")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 36 hexadecimal digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key (36 hexadecimal digits)")]
pub struct ParseKeyError(String);

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; KEY_SIZE];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseKeyError(text.into()))?;
        Ok(Key::from_bytes(&bytes))
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REL_TAG: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };

    #[test]
    fn text_is_36_digits() {
        let text = "000000067F00000005000040000000000007";
        assert_eq!(Key::rel_block(REL_TAG, 7).to_string(), text);
        assert_eq!(text.parse(), Ok(Key::rel_block(REL_TAG, 7)));
        assert!(text[1..].parse::<Key>().is_err());
    }

    #[test]
    fn next_carries_through_all_fields() {
        assert_eq!(Key::rel_size(REL_TAG).next(), Key::rel_block(RelTag { fork: Fork::Fsm, ..REL_TAG }, 0));
        let high = Key { field1: 3, ..Key::MAX };
        assert_eq!(high.next(), Key { field1: 4, ..Key::MIN });
        assert_eq!(Key::MAX.next(), Key::MAX);
    }

    #[test]
    fn every_kind_of_key_says_what_it_is() {
        use KeyKind as K;
        let slru = SlruKind::CommitTs;
        for (key, kind) in [
            (Key::DB_DIRECTORY, K::DbDirectory),
            (Key::relation_map(1663, 5), K::RelationMap { spc: 1663, db: 5 }),
            (Key::rel_block(REL_TAG, 9), K::RelBlock { rel: REL_TAG, block: 9 }),
            (Key::rel_size(REL_TAG), K::RelSize(REL_TAG)),
            (Key::slru_directory(slru), K::SlruDirectory(slru)),
            (Key::slru_page(slru, 3, 31), K::SlruPage { slru, segment: 3, page: 31 }),
            (Key::slru_size(slru, 3), K::SlruSize { slru, segment: 3 }),
            (Key::TWO_PHASE_DIRECTORY, K::TwoPhaseDirectory),
            (Key::two_phase_file(0x12_3456_789A_BCDE), K::TwoPhaseFile { xid: 0x12_3456_789A_BCDE }),
            (Key::CONTROL_FILE, K::ControlFile),
            (Key::CHECKPOINT, K::Checkpoint),
            (Key::TABLESPACE_DIRECTORY, K::TablespaceDirectory),
            (Key::LOGICAL_SIZE, K::LogicalSize),
            (Key::replication_origin(7), K::ReplicationOrigin(7)),
            (Key::rel_directory_entry(REL_TAG), K::RelDirectoryEntry(REL_TAG)),
        ] {
            assert_eq!(key.kind(), Some(kind), "{key}");
        }
        assert_eq!(Key::MAX.kind(), None);
        assert_eq!(Key::slru_page(slru, 3, 32).kind(), None);
    }

    fn any_key() -> impl Strategy<Value = Key> {
        any::<[u8; KEY_SIZE]>().prop_map(|bytes| Key::from_bytes(&bytes))
    }

    proptest! {
        #[test]
        fn bytes_and_text_round_trip_and_sort_alike(a in any_key(), b in any_key()) {
            prop_assert_eq!(Key::from_bytes(&a.to_bytes()), a);
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn next_is_the_smallest_larger_key(key in any_key()) {
            let as_number = |key: Key| key.to_bytes().iter().fold([0u64; 3], |mut n, byte| {
                n[0] = n[0] << 8 | n[1] >> 56; n[1] = n[1] << 8 | n[2] >> 56; n[2] = n[2] << 8 | u64::from(*byte); n
            });
            if key != Key::MAX {
                let (low, high) = (as_number(key), as_number(key.next()));
                let carry2 = low[2].wrapping_add(1);
                let carry1 = low[1].wrapping_add(u64::from(carry2 == 0));
                let carry0 = low[0] + u64::from(carry2 == 0 && carry1 == 0);
                prop_assert_eq!(high, [carry0, carry1, carry2]);
            }
        }
    }
}
