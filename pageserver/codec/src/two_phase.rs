//! State files of prepared transactions (`twophase.c`), under `pg_twophase/`: their names and checksums. Their content is also what
//! PREPARE records carry; `wal::payload::xact` reads it.
//!
//! A stored value is the file without the CRC-32C in its last four bytes.

use model::PgMajor;

use crate::bytes_in::Truncated;

/// Bytes that are not the state file of a prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TwoPhaseError {
    #[error("two-phase state is truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("two-phase state has checksum {calculated:#010x} but says {stored:#010x}")]
    Checksum { stored: u32, calculated: u32 },
}

/// The state file's name under `pg_twophase/`. From 17 on `xid` carries its epoch in the high half.
pub fn file_name(pg: PgMajor, xid: u64) -> String {
    if pg >= PgMajor::V17 { format!("{xid:016X}") } else { format!("{:08X}", xid as u32) }
}

/// The transaction that a state file's name means.
pub fn parse_file_name(pg: PgMajor, name: &str) -> Option<u64> {
    let digits = if pg >= PgMajor::V17 { 16 } else { 8 };
    let is_name =
        name.len() == digits && name.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_lowercase());
    is_name.then(|| u64::from_str_radix(name, 16).ok()).flatten()
}

/// Appends the checksum that the file has and the stored value has not.
pub fn append_checksum(state: &mut Vec<u8>) {
    let checksum = crc32c::crc32c(state);
    state.extend_from_slice(&checksum.to_le_bytes());
}

/// A file's content without its checksum, which is checked.
pub fn strip_checksum(file: &[u8]) -> Result<&[u8], TwoPhaseError> {
    let truncated = Truncated { at: 0, wanted: 4, left: file.len() };
    let (state, stored) = file.split_last_chunk::<4>().ok_or(truncated)?;
    let stored = u32::from_le_bytes(*stored);
    let calculated = crc32c::crc32c(state);
    if stored == calculated { Ok(state) } else { Err(TwoPhaseError::Checksum { stored, calculated }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_in_a_state_file_is_seen() {
        let mut file = b"state".to_vec();
        append_checksum(&mut file);
        assert_eq!(strip_checksum(&file), Ok(&b"state"[..]));
        file[2] ^= 1;
        assert!(matches!(strip_checksum(&file), Err(TwoPhaseError::Checksum { .. })));
        assert!(matches!(strip_checksum(b"abc"), Err(TwoPhaseError::Truncated(_))));
    }

    #[test]
    fn names_carry_the_epoch_from_17_on() {
        assert_eq!(file_name(PgMajor::V16, 0x3_0000_02EE), "000002EE");
        assert_eq!(file_name(PgMajor::V17, 0x3_0000_02EE), "00000003000002EE");
        assert_eq!(parse_file_name(PgMajor::V17, "00000003000002EE"), Some(0x3_0000_02EE));
        assert_eq!(parse_file_name(PgMajor::V16, "00000003000002EE"), None);
        assert_eq!(parse_file_name(PgMajor::V16, "+00002EE"), None);
    }
}
