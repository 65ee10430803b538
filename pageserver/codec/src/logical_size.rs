//! How much there is of all relations together, as of one LSN. Ours; Neon has no such key.
//!
//! ```text
//! u64 blocks | u64 forks      (both little-endian)
//! ```
//!
//! Both count every fork of every relation in every database, as their size keys say; SLRUs are left out. Of an unlogged relation only the init
//! fork has a history, so only that counts.

use model::BLOCK_SIZE;

/// Bytes of the stored form.
pub const LOGICAL_SIZE_BYTES: usize = 16;

/// All relations together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogicalSize {
    /// Blocks of all forks.
    pub blocks: u64,
    /// Forks that exist.
    pub forks: u64,
}

/// Bytes that are no logical size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a logical size has {0} bytes, expected 16")]
pub struct LogicalSizeError(usize);

impl LogicalSize {
    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<LogicalSize, LogicalSizeError> {
        let bytes: &[u8; LOGICAL_SIZE_BYTES] = bytes.try_into().map_err(|_| LogicalSizeError(bytes.len()))?;
        let number = u128::from_le_bytes(*bytes);
        Ok(LogicalSize { blocks: number as u64, forks: (number >> 64) as u64 })
    }

    /// The stored form.
    pub fn encode(self) -> [u8; LOGICAL_SIZE_BYTES] {
        (u128::from(self.forks) << 64 | u128::from(self.blocks)).to_le_bytes()
    }

    /// The blocks in bytes.
    pub fn bytes(self) -> u64 {
        self.blocks.saturating_mul(BLOCK_SIZE as u64)
    }

    /// The sum of both. Either may be a difference, which wraps around below zero.
    #[must_use]
    pub fn plus(self, other: LogicalSize) -> LogicalSize {
        LogicalSize {
            blocks: self.blocks.wrapping_add(other.blocks),
            forks: self.forks.wrapping_add(other.forks),
        }
    }

    /// This one after a fork had `before` blocks and has `after` now; `None` is one that does not exist.
    #[must_use]
    pub fn resized(self, before: Option<u32>, after: Option<u32>) -> LogicalSize {
        let blocks = |size: Option<u32>| u64::from(size.unwrap_or(0));
        LogicalSize {
            blocks: self.blocks.wrapping_add(blocks(after)).wrapping_sub(blocks(before)),
            forks: self
                .forks
                .wrapping_add(u64::from(after.is_some()))
                .wrapping_sub(u64::from(before.is_some())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_size_is_sixteen_bytes() {
        let size = LogicalSize { blocks: 0x0102, forks: 3 };
        assert_eq!(size.encode(), [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(LogicalSize::decode(&size.encode()), Ok(size));
        assert_eq!(size.bytes(), 0x0102 * 8192);
        assert!(LogicalSize::decode(&[0; 15]).is_err() && LogicalSize::decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn any_size_is_read_as_it_was_written(blocks: u64, forks: u64) {
            let size = LogicalSize { blocks, forks };
            prop_assert_eq!(LogicalSize::decode(&size.encode()), Ok(size));
        }

        #[test]
        fn a_difference_that_was_counted_first_leads_to_the_same_sum(
            base: u32,
            steps in prop::collection::vec((prop::option::of(0u32..9), prop::option::of(0u32..9)), 0..20),
        ) {
            let base = LogicalSize { blocks: u64::from(base), forks: 7 };
            let walk = |from| steps.iter().fold(from, |size: LogicalSize, (before, after)| size.resized(*before, *after));
            prop_assert_eq!(base.plus(walk(LogicalSize::default())), walk(base));
        }
    }
}
