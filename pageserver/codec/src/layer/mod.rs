//! Layer files: immutable, sorted, self-contained pieces of a timeline's history.
//!
//! The layout is Neon's. Everything is in blocks of 8 KiB and every integer is big-endian:
//!
//! ```text
//! block 0            summary: what the file is, where its index is; then zeros, among them our extension (see `summary`)
//! blocks 1..T        values, back to back from offset 8192, zero-padded (see `blob`)
//! blocks T..I        our table of checksums, one per block (see `checksum`); absent in Neon's own files
//! blocks I..         index: a B-tree from key to offset of the value; the root comes last (see `btree`)
//! ```
//!
//! A reader of the plain format finds the index through the summary and values through the index, so it never looks at the table.
//!
//! Writers ([`delta::DeltaWriter`], [`image::ImageWriter`]) take entries in key order and append the file to a buffer that the caller
//! drains. Readers do no I/O: [`delta::DeltaScan`] and [`image::ImageScan`] say which block they want and are fed its bytes.
//! [`file::LayerFile`] is the whole file in memory, built of the same pieces.
//!
//! Reading order: [`summary`], [`blob`], [`btree`], [`checksum`], [`image`], [`delta`], [`file`].

pub mod blob;
pub mod btree;
pub mod checksum;
pub mod delta;
pub mod file;
pub mod image;
pub mod summary;
#[cfg(test)]
mod tests;
mod write;

pub use btree::Direction;
pub use checksum::ChecksumTable;
pub use delta::{DeltaEntry, DeltaOutline, DeltaScan, DeltaWriter};
pub use file::{LayerFile, LayerReport, VerifyLayerError};
pub use image::{ImageEntry, ImageScan, ImageWriter};
pub use summary::Summary;
pub use write::{Checksums, FinishedLayer, WriteLayerError};

use model::BLOCK_SIZE;

/// One block of a layer file.
pub type Block = [u8; BLOCK_SIZE];

/// Bytes of a block as an offset or a size in a file.
pub const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// Where the values begin.
pub const VALUES_START: u64 = BLOCK_BYTES;

/// What a layer file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Whole values as of one LSN, by key.
    Image,
    /// Changes, by key and LSN.
    Delta,
}

/// Where things are in a layer file: all that reading one needs to know. It comes from block 0, or from `index_part.json`, which saves
/// reading block 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    kind: LayerKind,
    blocks: u32,
    index_start_block: u32,
    index_root_block: u32,
    checksums: Option<ChecksumTable>,
}

impl Layout {
    /// Checks that the parts fit into a file of `file_size` bytes. `index_root_block` counts from `index_start_block`;
    /// `checksum_start_block` is absent in plain files.
    pub fn new(
        kind: LayerKind,
        file_size: u64,
        index_start_block: u32,
        index_root_block: u32,
        checksum_start_block: Option<u32>,
    ) -> Result<Layout, ReadLayerError> {
        let blocks =
            u32::try_from(file_size / BLOCK_BYTES).ok().filter(|_| file_size.is_multiple_of(BLOCK_BYTES));
        let blocks = blocks.ok_or(ReadLayerError::Field {
            at: 0,
            what: "file size",
            found: file_size,
            expected: "a multiple of 8192 below 32 TiB",
        })?;
        if !(1..blocks).contains(&index_start_block) {
            return Err(ReadLayerError::Field {
                at: 0,
                what: "first block of the index",
                found: index_start_block.into(),
                expected: "a block of the file after the first",
            });
        }
        if index_root_block >= blocks - index_start_block {
            return Err(ReadLayerError::Field {
                at: 0,
                what: "root block of the index",
                found: index_root_block.into(),
                expected: "a block between the start of the index and the end of the file",
            });
        }
        let checksums = checksum_start_block
            .map(|start| ChecksumTable::new(start, index_start_block, blocks))
            .transpose()?;
        Ok(Layout { kind, blocks, index_start_block, index_root_block, checksums })
    }

    /// Whether it holds images or changes.
    pub fn kind(&self) -> LayerKind {
        self.kind
    }

    /// Bytes of the file.
    pub fn file_size(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES
    }

    /// Blocks of the file.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// First block of the index.
    pub fn index_start_block(&self) -> u32 {
        self.index_start_block
    }

    /// The root of the index, counted from [`Layout::index_start_block`].
    pub fn index_root_block(&self) -> u32 {
        self.index_root_block
    }

    /// The checksums of the file's blocks, unless it is a plain file.
    pub fn checksums(&self) -> Option<ChecksumTable> {
        self.checksums
    }

    /// End of the values' area: no value reaches further.
    pub fn values_end(&self) -> u64 {
        let block = self.checksums.map_or(self.index_start_block, ChecksumTable::start_block);
        u64::from(block) * BLOCK_BYTES
    }
}

/// Why a layer file cannot be believed. Offsets are in the file, in bytes; whoever knows the file's name adds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadLayerError {
    /// The file, or the piece of it at hand, ends too early.
    #[error("layer file ends too early: {what} needs {wanted} bytes at offset {at:#x}, {left} are there")]
    Truncated {
        /// Where.
        at: u64,
        /// What was being read.
        what: &'static str,
        /// Bytes needed.
        wanted: u64,
        /// Bytes there.
        left: u64,
    },
    /// A block is not what was written.
    #[error(
        "block at offset {at:#x} of the layer file is damaged: its checksum is {computed:08x}, expected {stored:08x}"
    )]
    Checksum {
        /// Where the block begins.
        at: u64,
        /// What was written.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A field has a value that it cannot have.
    #[error("at offset {at:#x} of the layer file: {what} is {found:#x}, expected {expected}")]
    Field {
        /// Where.
        at: u64,
        /// Which field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// Keys that must rise do not.
    #[error(
        "at offset {at:#x} of the layer file: key {found} breaks the order of the index, expected {expected}"
    )]
    KeyOrder {
        /// Start of the index block.
        at: u64,
        /// The key, in hexadecimal.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A compressed value does not decompress.
    #[error("compressed value at offset {at:#x} of the layer file is damaged: {reason}")]
    Zstd {
        /// Start of the value's header.
        at: u64,
        /// What the decompressor says.
        reason: String,
    },
}
