//! What both kinds of layer writers share: the file is appended to a buffer in order, block 0 comes at the end.

use model::{BLOCK_SIZE, LayerName, TenantId, TimelineId};

use super::blob::{self, MAX_STORED};
use super::btree::{MAX_VALUE, TreeBuilder};
use super::checksum;
use super::{BLOCK_BYTES, Block, Layout, Summary, VALUES_START};

/// Whether a file gets our table of checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksums {
    /// One per block. Readers of the plain format ignore it.
    #[default]
    PerBlock,
    /// None: the file is byte for byte what the plain format says.
    Omit,
}

/// A finished layer. The file is `block0`, then all that was appended to the caller's buffers.
#[derive(Clone, Debug)]
pub struct FinishedLayer {
    /// The layer.
    pub name: LayerName,
    /// The file's first 8,192 bytes.
    pub block0: Box<Block>,
    /// Where things are in it; knows the file's size.
    pub layout: Layout,
    /// CRC-32C of the whole file.
    pub crc32c: u32,
    /// How many values it holds.
    pub entries: u64,
}

/// Why a layer cannot be written. All but the size limits are mistakes of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteLayerError {
    /// Entries come in strictly rising order.
    #[error("layer entry {next} does not come after {last}")]
    OutOfOrder {
        /// The entry before, as key or key@LSN.
        last: String,
        /// The entry.
        next: String,
    },
    /// An entry that the layer's name does not cover.
    #[error("layer entry {entry} lies outside of {name}")]
    OutsideOfName {
        /// As key or key@LSN.
        entry: String,
        /// The name.
        name: LayerName,
    },
    /// An image layer was given a delta's name, or the other way round.
    #[error("{0} names the other kind of layer")]
    WrongKind(LayerName),
    /// A layer holds at least one entry.
    #[error("a layer without entries cannot be written")]
    Empty,
    /// The format cannot hold it.
    #[error("{what} of {found} bytes is more than a layer file can hold ({limit})")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// Bytes.
        found: u64,
        /// Bytes.
        limit: u64,
    },
}

/// Appends values and their index.
pub(super) struct FileWriter<const L: usize> {
    tenant: TenantId,
    timeline: TimelineId,
    tree: TreeBuilder<L>,
    /// Offset in the file of the next byte.
    at: u64,
    sums: Option<BlockSums>,
    /// CRC-32C of everything after block 0.
    crc: u32,
    entries: u64,
}

/// Checksums of the blocks appended so far.
#[derive(Default)]
struct BlockSums {
    closed: Vec<u32>,
    open: u32,
}

impl BlockSums {
    /// Takes bytes that begin at offset `at` of the file.
    fn append(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - at % BLOCK_BYTES) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.open = crc32c::crc32c_append(self.open, now);
            at += now.len() as u64;
            if at.is_multiple_of(BLOCK_BYTES) {
                self.closed.push(std::mem::take(&mut self.open));
            }
            bytes = later;
        }
    }
}

impl<const L: usize> FileWriter<L> {
    pub(super) fn new(tenant: TenantId, timeline: TimelineId, checksums: Checksums) -> Self {
        FileWriter {
            tenant,
            timeline,
            tree: TreeBuilder::new(),
            at: VALUES_START,
            sums: (checksums == Checksums::PerBlock).then(BlockSums::default),
            crc: 0,
            entries: 0,
        }
    }

    /// Bytes of the file if it ended now, up to a few blocks.
    pub(super) fn size(&self) -> u64 {
        self.at + self.tree.size() + self.sums.as_ref().map_or(0, |sums| 4 * sums.closed.len() as u64)
    }

    /// Bytes of the index if it ended now, up to a few blocks.
    pub(super) fn index_size(&self) -> u64 {
        self.tree.size()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Appends a value and its entry in the index. `encode` makes the entry of the value's offset.
    pub(super) fn push(
        &mut self,
        key: &[u8; L],
        stored: &[u8],
        compressed: bool,
        encode: impl FnOnce(u64) -> u64,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteLayerError> {
        let too_large = |what, found: u64, limit| Err(WriteLayerError::TooLarge { what, found, limit });
        if stored.len() > MAX_STORED {
            return too_large("value", stored.len() as u64, MAX_STORED as u64);
        }
        let value = encode(self.at);
        if value > MAX_VALUE {
            return too_large("layer file", self.at, MAX_VALUE);
        }
        let start = out.len();
        blob::put_header(stored.len(), compressed, out);
        out.extend_from_slice(stored);
        self.account(&out[start..]);
        self.tree.push(key, value);
        self.entries += 1;
        Ok(())
    }

    fn account(&mut self, appended: &[u8]) {
        if let Some(sums) = &mut self.sums {
            sums.append(self.at, appended);
        }
        self.crc = crc32c::crc32c_append(self.crc, appended);
        self.at += appended.len() as u64;
    }

    /// Appends padding, checksums and index; makes block 0.
    pub(super) fn finish(
        mut self,
        name: LayerName,
        out: &mut Vec<u8>,
    ) -> Result<FinishedLayer, WriteLayerError> {
        if self.entries == 0 {
            return Err(WriteLayerError::Empty);
        }
        let padding = (self.at.next_multiple_of(BLOCK_BYTES) - self.at) as usize;
        let start = out.len();
        out.resize(start + padding, 0);
        self.account(&out[start..]);

        let (index, index_root_block) = std::mem::replace(&mut self.tree, TreeBuilder::new()).finish();
        let values_end_block = (self.at / BLOCK_BYTES) as u32;
        let mut index_start_block = values_end_block;
        let mut extension = None;
        if let Some(sums) = self.sums.take() {
            let mut sums = sums.closed;
            sums.extend(index.chunks_exact(BLOCK_SIZE).map(crc32c::crc32c));
            let covered = sums.len() as u32;
            extension = Some((values_end_block, covered));
            index_start_block += checksum::table_blocks(covered);
            let start = out.len();
            checksum::encode(&sums, out);
            self.account(&out[start..]);
        }
        let start = out.len();
        out.extend_from_slice(&index);
        self.account(&out[start..]);

        let summary = Summary {
            tenant: self.tenant,
            timeline: self.timeline,
            name,
            index_start_block,
            index_root_block,
            checksums: extension,
        };
        let block0 = summary.encode();
        let layout = summary.layout(self.at).expect("the writer's own numbers fit together");
        let crc32c =
            crc32c::crc32c_combine(crc32c::crc32c(&block0[..]), self.crc, (self.at - BLOCK_BYTES) as usize);
        Ok(FinishedLayer { name: summary.name, block0, layout, crc32c, entries: self.entries })
    }
}
