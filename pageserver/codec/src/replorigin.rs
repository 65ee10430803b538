//! `pg_logical/replorigin_checkpoint`: how far each replication origin was replayed (`origin.c`).
//!
//! ```text
//! u32 magic 0x1257DADE | per origin: u16 id, 6 bytes padding, u64 remote LSN | u32 CRC-32C of all before     (little-endian)
//! ```

use std::collections::BTreeMap;

use model::Lsn;

use crate::bytes_in::{BytesIn, Truncated};

const MAGIC: u32 = 0x1257_DADE;

/// Bytes that are not such a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ReplicationOriginsError {
    #[error("replication origins are truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("replication origins have checksum {calculated:#010x} but say {stored:#010x}")]
    Checksum { stored: u32, calculated: u32 },
    #[error("replication origins have magic {0:#x}, expected 0x1257dade")]
    Magic(u32),
}

/// Origins by id.
pub fn decode(file: &[u8]) -> Result<BTreeMap<u16, Lsn>, ReplicationOriginsError> {
    let (body, stored) =
        file.split_last_chunk::<4>().ok_or(Truncated { at: 0, wanted: 4, left: file.len() })?;
    let (stored, calculated) = (u32::from_le_bytes(*stored), crc32c::crc32c(body));
    if stored != calculated {
        return Err(ReplicationOriginsError::Checksum { stored, calculated });
    }
    let mut input = BytesIn::new(body);
    let magic = input.u32_le()?;
    if magic != MAGIC {
        return Err(ReplicationOriginsError::Magic(magic));
    }
    let mut origins = BTreeMap::new();
    while input.remaining() > 0 {
        let id = input.u16_le()?;
        input.skip(6)?;
        origins.insert(id, Lsn(input.u64_le()?));
    }
    Ok(origins)
}

/// The file's bytes.
pub fn encode(origins: &BTreeMap<u16, Lsn>) -> Vec<u8> {
    let mut out = MAGIC.to_le_bytes().to_vec();
    for (id, lsn) in origins {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&lsn.0.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_round_trip_and_no_flipped_bit_is_believed() {
        let origins = BTreeMap::from([(1, Lsn(0x1234)), (700, Lsn(0x1_0000_0000))]);
        let file = encode(&origins);
        assert_eq!(file.len(), 40);
        assert_eq!(decode(&file), Ok(origins));
        for bit in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(decode(b"abc").is_err());
    }
}
