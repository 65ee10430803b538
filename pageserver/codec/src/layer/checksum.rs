//! A CRC-32C for every block of a layer file, in the file itself. Ours; readers of the plain format never look at it.
//!
//! The table lies between the values and the index, in blocks of its own:
//!
//! ```text
//!    0 2046 × u32   CRC-32C of one covered block each; zeros after the last
//! 8184 u32          which block of the table this is, from 0
//! 8188 u32          CRC-32C of the bytes before
//! ```
//!
//! Covered are the blocks of values, then those of the index, in file order. Block 0 carries its own checksum (see
//! [`super::summary`]), and so does each block of the table: one block is enough to check the blocks that it covers.

use model::BLOCK_SIZE;

use super::{BLOCK_BYTES, Block, ReadLayerError};

/// Checksums in one block of the table.
pub const SUMS_PER_BLOCK: u32 = 2046;

const ORDINAL_AT: usize = 8184;
const CRC_AT: usize = 8188;

/// Where a file's checksums are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChecksumTable {
    start_block: u32,
    end_block: u32,
    covered: u32,
}

/// Where the checksum of one block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SumAt {
    /// Block of the file that holds it, a block of the table.
    pub table_block: u32,
    /// Which of that block's checksums it is.
    pub slot: usize,
}

impl ChecksumTable {
    /// The table that begins at `start_block` and ends where the index begins, in a file of `file_blocks` blocks.
    pub fn new(start_block: u32, index_start_block: u32, file_blocks: u32) -> Result<Self, ReadLayerError> {
        let wrong = |expected| ReadLayerError::Field {
            at: 0,
            what: "first block of the checksum table",
            found: start_block.into(),
            expected,
        };
        if !(1..index_start_block).contains(&start_block) || index_start_block >= file_blocks {
            return Err(wrong("a block between the summary and the index"));
        }
        let covered = (start_block - 1) + (file_blocks - index_start_block);
        if index_start_block - start_block != table_blocks(covered) {
            return Err(wrong("a place that leaves just the room that the table needs before the index"));
        }
        Ok(ChecksumTable { start_block, end_block: index_start_block, covered })
    }

    /// First block of the table.
    pub fn start_block(self) -> u32 {
        self.start_block
    }

    /// Blocks of the table.
    pub fn blocks(self) -> std::ops::Range<u32> {
        self.start_block..self.end_block
    }

    /// How many blocks it covers.
    pub fn covered(self) -> u32 {
        self.covered
    }

    /// Where the checksum of `block` is; `None` for block 0, for the table itself and past the end of the file.
    pub fn locate(self, block: u32) -> Option<SumAt> {
        let entry = if block < self.start_block {
            block.checked_sub(1)?
        } else {
            (self.start_block - 1) + block.checked_sub(self.end_block)?
        };
        (entry < self.covered).then(|| SumAt {
            table_block: self.start_block + entry / SUMS_PER_BLOCK,
            slot: (entry % SUMS_PER_BLOCK) as usize,
        })
    }

    /// Checks a block of the table, `table_block` of the file, against itself.
    pub fn check_table_block(self, table_block: u32, bytes: &Block) -> Result<(), ReadLayerError> {
        let at = u64::from(table_block) * BLOCK_BYTES;
        let (stored, computed) = (word(bytes, CRC_AT), crc32c::crc32c(&bytes[..CRC_AT]));
        if stored != computed {
            return Err(ReadLayerError::Checksum { at, stored, computed });
        }
        let ordinal = word(bytes, ORDINAL_AT);
        if Some(ordinal) != table_block.checked_sub(self.start_block) {
            return Err(ReadLayerError::Field {
                at: at + ORDINAL_AT as u64,
                what: "number of a block of checksums",
                found: ordinal.into(),
                expected: "its place in the table",
            });
        }
        Ok(())
    }

    /// Checks `block` of the file against the (checked) block of the table that [`ChecksumTable::locate`] names. Blocks that the table
    /// does not cover pass: they carry their own checksums.
    pub fn check(self, block: u32, bytes: &Block, table: &Block) -> Result<(), ReadLayerError> {
        let Some(SumAt { slot, .. }) = self.locate(block) else { return Ok(()) };
        let (stored, computed) = (word(table, slot * 4), crc32c::crc32c(bytes));
        if stored == computed {
            Ok(())
        } else {
            Err(ReadLayerError::Checksum { at: u64::from(block) * BLOCK_BYTES, stored, computed })
        }
    }
}

/// Blocks that a table for `covered` blocks takes.
pub(super) fn table_blocks(covered: u32) -> u32 {
    covered.div_ceil(SUMS_PER_BLOCK)
}

/// The table for these checksums, in whole blocks.
pub(super) fn encode(sums: &[u32], out: &mut Vec<u8>) {
    for (ordinal, sums) in sums.chunks(SUMS_PER_BLOCK as usize).enumerate() {
        let start = out.len();
        for sum in sums {
            out.extend_from_slice(&sum.to_be_bytes());
        }
        out.resize(start + ORDINAL_AT, 0);
        out.extend_from_slice(&(ordinal as u32).to_be_bytes());
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_be_bytes());
        debug_assert_eq!(out.len() - start, BLOCK_SIZE);
    }
}

fn word(bytes: &Block, at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_covered_block_has_a_place_of_its_own() {
        // 2,045 blocks of values and 3 of index: 2,048 covered, so two blocks of table.
        let table = ChecksumTable::new(2046, 2048, 2051).unwrap();
        assert_eq!(table.covered(), 2048);
        assert_eq!(table.locate(0), None);
        assert_eq!(table.locate(1), Some(SumAt { table_block: 2046, slot: 0 }));
        assert_eq!(table.locate(2045), Some(SumAt { table_block: 2046, slot: 2044 }));
        assert_eq!(table.locate(2046), None);
        assert_eq!(table.locate(2047), None);
        assert_eq!(table.locate(2048), Some(SumAt { table_block: 2046, slot: 2045 }));
        assert_eq!(table.locate(2049), Some(SumAt { table_block: 2047, slot: 0 }));
        assert_eq!(table.locate(2050), Some(SumAt { table_block: 2047, slot: 1 }));
        assert_eq!(table.locate(2051), None);
    }

    #[test]
    fn a_table_of_the_wrong_size_is_refused() {
        assert!(ChecksumTable::new(2046, 2047, 2050).is_err());
        assert!(ChecksumTable::new(0, 1, 3).is_err());
        assert!(ChecksumTable::new(2, 2, 3).is_err());
    }
}
