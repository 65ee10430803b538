//! Pages whose content follows from which page it is and which of its versions.
//!
//! Two tuples: one of [`PAYLOAD`] bytes that a heap-in-place record overwrites, and one that fills the rest of the page and never changes. Both compress about
//! as pages do, two to three times.

use codec::page::{self, Page, ZERO_PAGE};
use model::{BLOCK_SIZE, Fork, Lsn, RelTag};

/// Bytes of a version that differ from the version before.
pub const PAYLOAD: usize = 96;
const TUPLE_HEADER: usize = 24;
const CHANGING: usize = TUPLE_HEADER + PAYLOAD;
const CHANGING_AT: usize = BLOCK_SIZE - CHANGING;
const FILLING_AT: usize = 32;
const FILLING: usize = CHANGING_AT - FILLING_AT;

/// The main fork of a relation that belongs to the benchmark.
pub fn relation(number: u32) -> RelTag {
    RelTag { spc: 1663, db: 5, rel: 16_384 + number, fork: Fork::Main }
}

/// Bytes that look random; splitmix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Of each sixteen bytes some are noise and the others one of few words, as in rows.
    fn fill(&mut self, bytes: &mut [u8], random: usize) {
        const WORDS: [&[u8; 16]; 4] =
            [b"Lorem ipsum dolo", b"r sit amet, cons", b"ectetur adipisci", b"ng elit, sed do "];
        for piece in bytes.chunks_mut(16) {
            let noise = self.next();
            piece.copy_from_slice(&WORDS[(noise >> 62) as usize][..piece.len()]);
            let random = random.min(piece.len());
            piece[..random].copy_from_slice(&noise.to_le_bytes()[..random]);
        }
    }
}

/// What a record of this version writes.
pub fn payload(rel: u32, block: u32, version: u32) -> [u8; PAYLOAD] {
    let mut bytes = [0; PAYLOAD];
    let seed =
        u64::from(rel) << 40 ^ u64::from(block) << 8 ^ u64::from(version).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    Noise(seed).fill(&mut bytes, 8);
    bytes[..4].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// The whole page; `lsn` is the end of the record that made this version.
pub fn page_of(rel: u32, block: u32, version: u32, lsn: Lsn) -> Box<Page> {
    let mut page = Box::new(ZERO_PAGE);
    page::set_lsn(&mut page, lsn);
    let line_pointer = |at: usize, length: usize| (at as u32 | 1 << 15 | (length as u32) << 17).to_le_bytes();
    page[12..14].copy_from_slice(&(FILLING_AT as u16).to_le_bytes());
    page[14..16].copy_from_slice(&(FILLING_AT as u16).to_le_bytes());
    page[16..18].copy_from_slice(&(BLOCK_SIZE as u16).to_le_bytes());
    page[18..20].copy_from_slice(&(BLOCK_SIZE as u16 | 4).to_le_bytes());
    page[24..28].copy_from_slice(&line_pointer(CHANGING_AT, CHANGING));
    page[28..32].copy_from_slice(&line_pointer(FILLING_AT, FILLING));
    Noise(u64::from(rel) << 32 | u64::from(block)).fill(&mut page[FILLING_AT..CHANGING_AT], 5);
    for at in [CHANGING_AT, FILLING_AT] {
        page[at..at + TUPLE_HEADER].fill(0);
        page[at + 22] = TUPLE_HEADER as u8;
    }
    page[CHANGING_AT + TUPLE_HEADER..].copy_from_slice(&payload(rel, block, version));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_compress_as_pages_do_and_versions_differ_in_their_payload_only() {
        let (one, two) = (page_of(1, 2, 3, Lsn(8)), page_of(1, 2, 4, Lsn(8)));
        let ratio = BLOCK_SIZE as f64 / zstd::bulk::compress(&one[..], 1).unwrap().len() as f64;
        assert!((2.0..3.0).contains(&ratio), "{ratio}");
        assert_eq!(one[..CHANGING_AT + TUPLE_HEADER], two[..CHANGING_AT + TUPLE_HEADER]);
        assert_ne!(one, two);
    }
}
