//! The header that all Postgres pages but SLRU pages begin with (`bufpage.h`), and the page checksum (`checksum_impl.h`).
//!
//! ```text
//!  0 u32 lsn high  4 u32 lsn low   8 u16 checksum  10 u16 flags  12 u16 lower
//! 14 u16 upper    16 u16 special  18 u16 size|version  20 u32 prune xid  24 line pointers
//! ```

use model::{BLOCK_SIZE, Lsn};

/// One 8 KiB page.
pub type Page = [u8; BLOCK_SIZE];

/// A page of zeros: what a block that was never written reads as.
pub static ZERO_PAGE: Page = [0; BLOCK_SIZE];

/// Appends a page's bytes in small steps. A copy in one go takes the C library to an instruction (`rep movs`) that some processors carry out ten
/// times slower when source and target lie alike within their memory pages, as buffers of pages do.
pub fn append(page: &[u8], out: &mut Vec<u8>) {
    const STEP: usize = 1024;
    out.reserve(page.len());
    for step in page.chunks(STEP) {
        out.extend_from_slice(step);
    }
}

/// The LSN of the last record that changed the page.
pub fn lsn(page: &Page) -> Lsn {
    let word =
        |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn(word(0) << 32 | word(4))
}

/// Stamps the page with the end of the record that changed it.
pub fn set_lsn(page: &mut Page, lsn: Lsn) {
    page[0..4].copy_from_slice(&((lsn.0 >> 32) as u32).to_le_bytes());
    page[4..8].copy_from_slice(&(lsn.0 as u32).to_le_bytes());
}

/// Whether the page was never initialised (`PageIsNew`: `pd_upper` is 0). Such pages carry neither LSN nor checksum.
pub fn is_new(page: &Page) -> bool {
    page[14..16] == [0, 0]
}

/// Number of checksums calculated side by side (`N_SUMS`).
const LANES: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
/// Initial states of the lanes, Postgres' `checksumBaseOffsets`.
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// The checksum that Postgres expects in a page at `block` (`pg_checksum_page`); the stored checksum does not enter.
pub fn checksum(page: &Page, block: u32) -> u16 {
    let mix = |state: u32, value: u32| {
        let mixed = state ^ value;
        mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
    };
    let mut lanes = BASE_OFFSETS;
    for (row, words) in page.chunks_exact(4 * LANES).enumerate() {
        for (lane, word) in words.chunks_exact(4).enumerate() {
            let mut value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if row == 0 && lane == 2 {
                value &= 0xFFFF_0000; // bytes 8 and 9 are the checksum itself
            }
            lanes[lane] = mix(lanes[lane], value);
        }
    }
    for _ in 0..2 {
        for lane in &mut lanes {
            *lane = mix(*lane, 0);
        }
    }
    let folded = lanes.iter().fold(0, |sum, lane| sum ^ lane) ^ block;
    (folded % 65_535 + 1) as u16
}

/// Writes the checksum that belongs to a page at `block`; a new page gets none, as in Postgres.
pub fn set_checksum(page: &mut Page, block: u32) {
    if !is_new(page) {
        let sum = checksum(page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lsn_is_two_words() {
        let mut page = ZERO_PAGE;
        set_lsn(&mut page, Lsn(0x1_0203_0405_0607));
        assert_eq!(lsn(&page), Lsn(0x1_0203_0405_0607));
        assert_eq!(page[..8], [0x03, 0x02, 0x01, 0, 0x07, 0x06, 0x05, 0x04]);
    }

    #[test]
    fn the_stored_checksum_does_not_change_the_checksum() {
        let mut page = ZERO_PAGE;
        page[14] = 1;
        let sum = checksum(&page, 7);
        set_checksum(&mut page, 7);
        assert_eq!(checksum(&page, 7), sum);
        assert_ne!(checksum(&page, 8), sum);
        assert_ne!(sum, 0);
    }
}
