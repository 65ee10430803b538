//! Lists that the key space keeps as values: databases, SLRU segments, prepared transactions, relations of the old form.
//!
//! ```text
//! databases              u64 count | (u32 tablespace | u32 database | u8 has a relation map)…
//! SLRU segments          u64 count | u32 segment…
//! prepared transactions  u64 count | u32 xid…       Postgres 17 and newer: u64 xid with epoch…
//! relations (old)        u64 count | (u32 relation | u8 fork)…
//! ```
//!
//! Big-endian, and the order is not defined by the format; we write them sorted, so that the same list is always the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use model::{Fork, PgMajor};

use crate::bytes_in::{BytesIn, Truncated};

/// Bytes that are not the list they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DirectoryError {
    #[error("{what} list is truncated: {source}")]
    Truncated { what: &'static str, source: Truncated },
    #[error("{what} list of {count} entries takes {expected} bytes, it has {found}")]
    Length { what: &'static str, count: u64, expected: u64, found: u64 },
    #[error("{what} list, offset {at}: {found} is not {expected}")]
    Field { what: &'static str, at: usize, found: u64, expected: &'static str },
    #[error("{what} list, offset {at}: the entry is there twice")]
    Twice { what: &'static str, at: usize },
}

/// The databases of a cluster, by (tablespace, database) oid. Shared relations are database 0 of tablespace 1664.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DbDirectory {
    /// Whether a relation map was stored for it.
    pub databases: BTreeMap<(u32, u32), bool>,
}

/// The segments of an SLRU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlruSegmentDirectory {
    /// Segment numbers.
    pub segments: BTreeSet<u32>,
}

/// The prepared transactions of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TwoPhaseDirectory {
    /// Transaction ids; with their epochs from Postgres 17 on.
    pub xids: BTreeSet<u64>,
}

/// The relation forks of a database in a tablespace, in the one-value form that only Neon writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelDirectory {
    /// Relation file number and fork.
    pub relations: BTreeSet<(u32, Fork)>,
}

impl DbDirectory {
    /// Reads the list.
    pub fn decode(bytes: &[u8]) -> Result<Self, DirectoryError> {
        const WHAT: &str = "database";
        let mut databases = BTreeMap::new();
        decode_list(WHAT, bytes, 9, |input, at| {
            let database = (input.u32_be()?, input.u32_be()?);
            let has_map = match input.u8()? {
                0 => false,
                1 => true,
                found => return Ok(Entry::Wrong { at: at + 8, found: found.into(), expected: "0 or 1" }),
            };
            Ok(Entry::of(databases.insert(database, has_map).is_none()))
        })?;
        Ok(DbDirectory { databases })
    }

    /// The list's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = with_count(self.databases.len(), 9);
        for ((spc, db), has_map) in &self.databases {
            out.extend_from_slice(&spc.to_be_bytes());
            out.extend_from_slice(&db.to_be_bytes());
            out.push(u8::from(*has_map));
        }
        out
    }
}

impl SlruSegmentDirectory {
    /// Reads the list.
    pub fn decode(bytes: &[u8]) -> Result<Self, DirectoryError> {
        let mut segments = BTreeSet::new();
        decode_list("SLRU segment", bytes, 4, |input, _| Ok(Entry::of(segments.insert(input.u32_be()?))))?;
        Ok(SlruSegmentDirectory { segments })
    }

    /// The list's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = with_count(self.segments.len(), 4);
        for segment in &self.segments {
            out.extend_from_slice(&segment.to_be_bytes());
        }
        out
    }
}

impl TwoPhaseDirectory {
    /// Reads the list as `major` has it.
    pub fn decode(bytes: &[u8], major: PgMajor) -> Result<Self, DirectoryError> {
        let mut xids = BTreeSet::new();
        decode_list("prepared transaction", bytes, xid_width(major), |input, _| {
            let xid = if has_wide_xids(major) { input.u64_be()? } else { input.u32_be()?.into() };
            Ok(Entry::of(xids.insert(xid)))
        })?;
        Ok(TwoPhaseDirectory { xids })
    }

    /// The list's bytes as `major` has them. Before Postgres 17 epochs are dropped.
    pub fn encode(&self, major: PgMajor) -> Vec<u8> {
        let mut out = with_count(self.xids.len(), xid_width(major));
        for xid in &self.xids {
            if has_wide_xids(major) {
                out.extend_from_slice(&xid.to_be_bytes());
            } else {
                out.extend_from_slice(&(*xid as u32).to_be_bytes());
            }
        }
        out
    }
}

impl RelDirectory {
    /// Reads the list.
    pub fn decode(bytes: &[u8]) -> Result<Self, DirectoryError> {
        let mut relations = BTreeSet::new();
        decode_list("relation", bytes, 5, |input, at| {
            let (rel, fork) = (input.u32_be()?, input.u8()?);
            let Some(fork) = Fork::from_number(fork) else {
                return Ok(Entry::Wrong { at: at + 4, found: fork.into(), expected: "a fork, 0 to 3" });
            };
            Ok(Entry::of(relations.insert((rel, fork))))
        })?;
        Ok(RelDirectory { relations })
    }
}

fn has_wide_xids(major: PgMajor) -> bool {
    major >= PgMajor::V17
}

fn xid_width(major: PgMajor) -> usize {
    if has_wide_xids(major) { 8 } else { 4 }
}

/// What one entry turned out to be.
enum Entry {
    New,
    Known,
    Wrong { at: usize, found: u64, expected: &'static str },
}

impl Entry {
    fn of(is_new: bool) -> Entry {
        if is_new { Entry::New } else { Entry::Known }
    }
}

/// Reads a count and as many entries of `width` bytes, and nothing after them.
fn decode_list(
    what: &'static str,
    bytes: &[u8],
    width: usize,
    mut read: impl FnMut(&mut BytesIn<'_>, usize) -> Result<Entry, Truncated>,
) -> Result<(), DirectoryError> {
    let mut input = BytesIn::new(bytes);
    let count = input.u64_be().map_err(|source| DirectoryError::Truncated { what, source })?;
    let found = bytes.len() as u64;
    let expected = count.checked_mul(width as u64).and_then(|length| length.checked_add(8));
    if expected != Some(found) {
        let expected = expected.unwrap_or(u64::MAX);
        return Err(DirectoryError::Length { what, count, expected, found });
    }
    for _ in 0..count {
        let at = input.position();
        match read(&mut input, at).map_err(|source| DirectoryError::Truncated { what, source })? {
            Entry::New => {}
            Entry::Known => return Err(DirectoryError::Twice { what, at }),
            Entry::Wrong { at, found, expected } => {
                return Err(DirectoryError::Field { what, at, found, expected });
            }
        }
    }
    Ok(())
}

fn with_count(count: usize, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + count * width);
    out.extend_from_slice(&(count as u64).to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_have_the_bytes_of_the_format() {
        let databases = BTreeMap::from([((1664, 0), true), ((1663, 5), false)]);
        let directory = DbDirectory { databases };
        assert_eq!(
            hex::encode(directory.encode()),
            concat!("0000000000000002", "0000067f0000000500", "000006800000000001")
        );
        let xids = BTreeSet::from([0x1_0000_0003]);
        let prepared = TwoPhaseDirectory { xids };
        assert_eq!(hex::encode(prepared.encode(PgMajor::V17)), "00000000000000010000000100000003");
        assert_eq!(hex::encode(prepared.encode(PgMajor::V16)), "000000000000000100000003");
    }

    #[test]
    fn a_list_of_another_length_is_refused() {
        let segments = SlruSegmentDirectory { segments: BTreeSet::from([1, 2, 3]) };
        let bytes = segments.encode();
        for length in 0..bytes.len() {
            assert!(SlruSegmentDirectory::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(SlruSegmentDirectory::decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(SlruSegmentDirectory::decode(&u64::MAX.to_be_bytes()).is_err());
        let twice = [&2u64.to_be_bytes()[..], &[0, 0, 0, 7, 0, 0, 0, 7]].concat();
        assert!(matches!(SlruSegmentDirectory::decode(&twice), Err(DirectoryError::Twice { at: 12, .. })));
    }

    #[test]
    fn relations_of_the_old_form_are_read_in_any_order() {
        let bytes = hex::decode(concat!("0000000000000002", "0000400102", "0000400000")).unwrap();
        let directory = RelDirectory::decode(&bytes).unwrap();
        assert_eq!(directory.relations, BTreeSet::from([(0x4000, Fork::Main), (0x4001, Fork::Vm)]));
        let bytes = hex::decode("00000000000000010000400104").unwrap();
        assert!(matches!(RelDirectory::decode(&bytes), Err(DirectoryError::Field { at: 12, .. })));
    }

    proptest! {
        #[test]
        fn lists_round_trip(databases: BTreeMap<(u32, u32), bool>, segments: BTreeSet<u32>, xids: BTreeSet<u64>) {
            let databases = DbDirectory { databases };
            prop_assert_eq!(DbDirectory::decode(&databases.encode()), Ok(databases));
            let segments = SlruSegmentDirectory { segments };
            prop_assert_eq!(SlruSegmentDirectory::decode(&segments.encode()), Ok(segments));
            let xids = TwoPhaseDirectory { xids };
            prop_assert_eq!(TwoPhaseDirectory::decode(&xids.encode(PgMajor::V18), PgMajor::V18), Ok(xids));
        }

        #[test]
        fn any_bytes_are_a_list_or_an_error(bytes: Vec<u8>) {
            if let Ok(directory) = DbDirectory::decode(&bytes) {
                prop_assert_eq!(directory.encode().len(), bytes.len());
            }
            let _ = RelDirectory::decode(&bytes);
            let _ = TwoPhaseDirectory::decode(&bytes, PgMajor::V14);
        }
    }
}
