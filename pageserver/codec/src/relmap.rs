//! A database's `pg_filenode.map`: which file holds a catalog that cannot look itself up (`relmapper.c`).
//!
//! ```text
//! 0 i32 magic | 4 i32 count | 8 then 62 (14, 15) or 64 (16 and later) entries of u32 catalog oid, u32 file number
//! | u32 CRC-32C of all before | 4 bytes padding (14, 15)
//! ```

use model::PgMajor;

use crate::bytes_in::{BytesIn, Truncated};

const MAGIC: u32 = 0x0059_2717;

/// Bytes of the file.
pub fn size(pg: PgMajor) -> usize {
    if pg <= PgMajor::V15 { 512 } else { 524 }
}

fn capacity(pg: PgMajor) -> usize {
    if pg <= PgMajor::V15 { 62 } else { 64 }
}

/// Bytes that are not a relation map of this major.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RelationMapError {
    #[error("relation map is truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("relation map is {found} bytes long, expected {expected}")]
    Length { found: usize, expected: usize },
    #[error("relation map has magic {0:#x}, expected 0x592717")]
    Magic(u32),
    #[error("relation map says that it has {found} entries, at most {most} are possible")]
    Count { found: u32, most: usize },
    #[error("relation map has checksum {calculated:#010x} but says {stored:#010x}")]
    Checksum { stored: u32, calculated: u32 },
}

/// Which file holds which catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationMap {
    /// Catalog oid and file number, in the file's order.
    pub entries: Vec<(u32, u32)>,
}

impl RelationMap {
    /// Reads and checks the whole file.
    pub fn decode(pg: PgMajor, bytes: &[u8]) -> Result<RelationMap, RelationMapError> {
        if bytes.len() != size(pg) {
            return Err(RelationMapError::Length { found: bytes.len(), expected: size(pg) });
        }
        let most = capacity(pg);
        let (body, tail) = bytes.split_at(8 + most * 8);
        let stored = BytesIn::new(tail).u32_le()?;
        let calculated = crc32c::crc32c(body);
        if stored != calculated {
            return Err(RelationMapError::Checksum { stored, calculated });
        }
        let mut input = BytesIn::new(body);
        let magic = input.u32_le()?;
        if magic != MAGIC {
            return Err(RelationMapError::Magic(magic));
        }
        let found = input.u32_le()?;
        if found as usize > most {
            return Err(RelationMapError::Count { found, most });
        }
        let entries =
            (0..found).map(|_| Ok((input.u32_le()?, input.u32_le()?))).collect::<Result<_, Truncated>>()?;
        Ok(RelationMap { entries })
    }

    /// The file's bytes. Entries past what the major has room for are left out.
    pub fn encode(&self, pg: PgMajor) -> Vec<u8> {
        let entries = &self.entries[..self.entries.len().min(capacity(pg))];
        let mut out = Vec::with_capacity(size(pg));
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        for (catalog, file) in entries {
            out.extend_from_slice(&catalog.to_le_bytes());
            out.extend_from_slice(&file.to_le_bytes());
        }
        out.resize(8 + capacity(pg) * 8, 0);
        let checksum = crc32c::crc32c(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out.resize(size(pg), 0);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_round_trips_in_every_major_and_a_flipped_bit_is_seen() {
        let map = RelationMap { entries: vec![(1259, 1259), (1249, 16_400)] };
        for pg in PgMajor::ALL {
            let mut bytes = map.encode(pg);
            assert_eq!(bytes.len(), size(pg));
            assert_eq!(RelationMap::decode(pg, &bytes), Ok(map.clone()));
            assert!(RelationMap::decode(pg, &bytes[1..]).is_err());
            bytes[13] ^= 4;
            assert!(matches!(RelationMap::decode(pg, &bytes), Err(RelationMapError::Checksum { .. })));
        }
    }
}
