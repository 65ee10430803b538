//! Raw WAL as it lies in the bucket: a header of 48 bytes, then one zstd frame.
//!
//! ```text
//!  0 "PALW"            4 u16 version, 1      6 u16 Postgres major
//!  8 u64 system identifier
//! 16 u32 Postgres timeline of the last page header at or before the end
//! 20 u32 raw length, which is end - start
//! 24 u64 start LSN    32 u64 end LSN (exclusive)
//! 40 u32 CRC-32C of the raw bytes
//! 44 u32 CRC-32C of bytes 0 to 43
//! 48 zstd frame of the raw bytes
//! ```
//!
//! All little-endian. Start and end may lie anywhere, within a record too: the bytes are the stream's, page headers and all.

use model::{Lsn, PgMajor, Tli};

use crate::bytes_in::{BytesIn, Truncated};

/// Bytes of the header.
pub const HEADER_SIZE: usize = 48;
/// Most raw bytes that one object may hold.
pub const MAX_RAW_SIZE: usize = 64 << 20;

const MAGIC: [u8; 4] = *b"PALW";
const VERSION: u16 = 1;
/// These objects are soon covered by layers and deleted: speed counts for more than size.
const ZSTD_LEVEL: i32 = 1;

/// What an object says of its WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalObjectHeader {
    /// Whose WAL format it is.
    pub pg: PgMajor,
    /// Whose WAL it is.
    pub system_id: u64,
    /// On which Postgres timeline.
    pub tli: Tli,
    /// LSN of the first byte.
    pub start: Lsn,
    /// LSN after the last byte.
    pub end: Lsn,
    /// Of the raw bytes.
    pub raw_crc: u32,
}

/// Bytes that are not a WAL object, or WAL that cannot be one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WalObjectError {
    #[error("WAL object is truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("not a WAL object: it begins with {0:02x?}, expected {MAGIC:02x?}")]
    Magic([u8; 4]),
    #[error("WAL object's header has CRC {found:#010x}, its bytes have {expected:#010x}")]
    HeaderCrc { found: u32, expected: u32 },
    #[error("WAL object has version {0}, expected {VERSION}")]
    Version(u16),
    #[error("WAL object is of Postgres {0}, expected 14 to 18")]
    Major(u16),
    #[error("WAL object from {start} to {end} says that it holds {length} bytes")]
    Range { start: Lsn, end: Lsn, length: u64 },
    #[error("WAL object from {start} holds {length} bytes, expected 1 to {MAX_RAW_SIZE}")]
    Size { start: Lsn, length: u64 },
    #[error("cannot decompress WAL object from {start} to {end}")]
    Zstd { start: Lsn, end: Lsn, source: std::io::Error },
    #[error("cannot compress WAL from {start} to {end}")]
    Compress { start: Lsn, end: Lsn, source: std::io::Error },
    #[error("WAL object from {start} to {end} holds {found} bytes")]
    RawLength { start: Lsn, end: Lsn, found: usize },
    #[error("WAL from {start} to {end} has CRC {found:#010x}, its header says {expected:#010x}")]
    RawCrc { start: Lsn, end: Lsn, found: u32, expected: u32 },
}

/// An object's bytes for `raw`, which begins at `start`.
pub fn encode(
    pg: PgMajor,
    system_id: u64,
    tli: Tli,
    start: Lsn,
    raw: &[u8],
) -> Result<Vec<u8>, WalObjectError> {
    let length = raw.len() as u64;
    let end = checked_end(start, length)?;
    let header = WalObjectHeader { pg, system_id, tli, start, end, raw_crc: crc32c::crc32c(raw) };
    let mut out = header.encode();
    let frame = zstd::bulk::compress(raw, ZSTD_LEVEL).map_err(|source| WalObjectError::Compress {
        start,
        end,
        source,
    })?;
    out.extend_from_slice(&frame);
    Ok(out)
}

/// The header and the raw bytes of an object; everything is checked.
pub fn decode(object: &[u8]) -> Result<(WalObjectHeader, Vec<u8>), WalObjectError> {
    let header = WalObjectHeader::decode(object)?;
    let WalObjectHeader { start, end, raw_crc: expected, .. } = header;
    let length = end.since(start) as usize;
    // Into exactly as much memory as the checked header calls for; a frame with more in it is an error.
    let raw = zstd::bulk::decompress(&object[HEADER_SIZE..], length)
        .map_err(|source| WalObjectError::Zstd { start, end, source })?;
    if raw.len() != length {
        return Err(WalObjectError::RawLength { start, end, found: raw.len() });
    }
    let found = crc32c::crc32c(&raw);
    if found != expected {
        return Err(WalObjectError::RawCrc { start, end, found, expected });
    }
    Ok((header, raw))
}

impl WalObjectHeader {
    /// Reads and checks the header that `bytes` begin with; they need not be the whole object.
    pub fn decode(bytes: &[u8]) -> Result<WalObjectHeader, WalObjectError> {
        let mut input = BytesIn::new(bytes);
        let magic = input.array()?;
        if magic != MAGIC {
            return Err(WalObjectError::Magic(magic));
        }
        let version = input.u16_le()?;
        let major = input.u16_le()?;
        let system_id = input.u64_le()?;
        let tli = Tli(input.u32_le()?);
        let length = u64::from(input.u32_le()?);
        let start = Lsn(input.u64_le()?);
        let end = Lsn(input.u64_le()?);
        let raw_crc = input.u32_le()?;
        let expected = crc32c::crc32c(&bytes[..input.position()]);
        let found = input.u32_le()?;
        if found != expected {
            return Err(WalObjectError::HeaderCrc { found, expected });
        }
        if version != VERSION {
            return Err(WalObjectError::Version(version));
        }
        let pg = PgMajor::ALL
            .into_iter()
            .find(|known| known.number() == u32::from(major))
            .ok_or(WalObjectError::Major(major))?;
        if checked_end(start, length)? != end {
            return Err(WalObjectError::Range { start, end, length });
        }
        Ok(WalObjectHeader { pg, system_id, tli, start, end, raw_crc })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_SIZE);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.pg.number() as u16).to_le_bytes());
        out.extend_from_slice(&self.system_id.to_le_bytes());
        out.extend_from_slice(&self.tli.0.to_le_bytes());
        out.extend_from_slice(&(self.end.since(self.start) as u32).to_le_bytes());
        out.extend_from_slice(&self.start.0.to_le_bytes());
        out.extend_from_slice(&self.end.0.to_le_bytes());
        out.extend_from_slice(&self.raw_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }
}

fn checked_end(start: Lsn, length: u64) -> Result<Lsn, WalObjectError> {
    if length == 0 || length > MAX_RAW_SIZE as u64 {
        return Err(WalObjectError::Size { start, length });
    }
    start.0.checked_add(length).map(Lsn).ok_or(WalObjectError::Size { start, length })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(raw: &[u8]) -> Vec<u8> {
        encode(PgMajor::V17, 42, Tli(3), Lsn(0x5000), raw).unwrap()
    }

    #[test]
    fn the_header_is_as_documented() {
        let bytes = object(&[7; 1000]);
        assert_eq!(bytes[..8], [b'P', b'A', b'L', b'W', 1, 0, 17, 0]);
        assert_eq!(bytes[16..24], [3, 0, 0, 0, 0xE8, 3, 0, 0]);
        assert_eq!(bytes[24..28], [0, 0x50, 0, 0]);
        assert_eq!(bytes[32..36], [0xE8, 0x53, 0, 0]);
        assert!(bytes.len() < 100, "{} bytes: it should be compressed", bytes.len());
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        assert!(matches!(
            encode(PgMajor::V17, 42, Tli(3), Lsn(8), &[]),
            Err(WalObjectError::Size { length: 0, .. })
        ));
        assert!(matches!(
            encode(PgMajor::V17, 42, Tli(3), Lsn(u64::MAX), &[1]),
            Err(WalObjectError::Size { .. })
        ));
        let huge = WalObjectHeader {
            pg: PgMajor::V14,
            system_id: 0,
            tli: Tli(1),
            start: Lsn(8),
            end: Lsn(8 + MAX_RAW_SIZE as u64 + 1),
            raw_crc: 0,
        };
        assert!(matches!(WalObjectHeader::decode(&huge.encode()), Err(WalObjectError::Size { .. })));
    }

    #[test]
    fn a_frame_with_more_in_it_than_the_header_says_is_refused() {
        let mut bytes = object(&[7; 1000])[..HEADER_SIZE].to_vec();
        bytes.extend(zstd::bulk::compress(&vec![7; 100_000], 1).unwrap());
        assert!(matches!(decode(&bytes), Err(WalObjectError::Zstd { .. })));
        bytes.truncate(HEADER_SIZE);
        bytes.extend(zstd::bulk::compress(&[7; 10], 1).unwrap());
        assert!(matches!(decode(&bytes), Err(WalObjectError::RawLength { found: 10, .. })));
    }

    proptest! {
        #[test]
        fn raw_bytes_round_trip(raw in prop::collection::vec(any::<u8>(), 1..5000), start in 0..1u64 << 60) {
            let bytes = encode(PgMajor::V14, 42, Tli(3), Lsn(start), &raw).unwrap();
            let (header, decoded) = decode(&bytes).unwrap();
            prop_assert_eq!(decoded, raw);
            prop_assert_eq!(header, WalObjectHeader::decode(&bytes[..HEADER_SIZE]).unwrap());
            prop_assert_eq!((header.start, header.system_id, header.tli), (Lsn(start), 42, Tli(3)));
        }

        #[test]
        fn a_flipped_bit_or_a_cut_is_an_error(at: prop::sample::Index, bit in 0..8u8) {
            let raw: Vec<u8> = (0..3000u32).flat_map(|n| (n * n).to_le_bytes()).collect();
            let mut bytes = object(&raw);
            let at = at.index(bytes.len());
            prop_assert!(decode(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            // Some bits of a zstd frame header mean nothing; then the content must still be right.
            if let Ok((_, decoded)) = decode(&bytes) {
                prop_assert!(at >= HEADER_SIZE && decoded == raw);
            }
        }
    }
}
