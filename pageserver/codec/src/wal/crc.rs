//! The checksum of WAL records: CRC-32C (Castagnoli).

use crate::wal::record::HEADER_SIZE;

/// Where in the header the CRC lies: it covers what is before it and what comes after the header.
const CRC_AT: usize = 20;

/// The CRC that a record must carry (`xl_crc`): over everything after the header, then over the header up to the CRC itself.
///
/// `None` when the bytes are shorter than a header.
#[inline]
pub fn record_crc(record: &[u8]) -> Option<u32> {
    let (header, body) = record.split_at_checked(HEADER_SIZE)?;
    Some(crc32c::crc32c_append(crc32c::crc32c(body), &header[..CRC_AT]))
}

/// The CRC that a record does carry; `None` when the bytes are shorter than a header.
#[inline]
pub fn stored_crc(record: &[u8]) -> Option<u32> {
    let stored = record.get(CRC_AT..HEADER_SIZE)?.first_chunk()?;
    Some(u32::from_le_bytes(*stored))
}

/// Writes the CRC into a record whose other bytes are final. Bytes shorter than a header stay as they are.
pub fn seal(record: &mut [u8]) {
    if let Some(crc) = record_crc(record) {
        record[CRC_AT..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_covers_everything_but_itself() {
        let mut record = [7; 40];
        seal(&mut record);
        assert_eq!(record_crc(&record), stored_crc(&record));
        for at in (0..record.len()).filter(|at| !(CRC_AT..HEADER_SIZE).contains(at)) {
            record[at] ^= 1;
            assert_ne!(record_crc(&record), stored_crc(&record), "a flip at {at} went unnoticed");
            record[at] ^= 1;
        }
    }

    #[test]
    fn bytes_shorter_than_a_header_have_no_crc() {
        assert_eq!(record_crc(&[0; 23]), None);
        assert_eq!(stored_crc(&[0; 23]), None);
    }
}
