//! Image layers: whole values of a range of keys as of one LSN.
//!
//! The index maps a key (18 bytes) to its value's offset. The value is a page or a directory as it is, without further wrapping. In
//! dense key space a key of the layer's range that is not in it does not exist at its LSN.

use std::ops::ControlFlow;

use model::{Key, KeyRange, LayerName, TenantId, TimelineId, key::KEY_SIZE};

use super::blob::Packer;
use super::btree::{Direction, Found, TreeScan};
use super::write::FileWriter;
use super::{Block, Checksums, FinishedLayer, Layout, ReadLayerError, WriteLayerError};

/// Writes an image layer. Keeps the index and the checksums in memory, nothing else.
pub struct ImageWriter {
    file: FileWriter<KEY_SIZE>,
    packer: Packer,
    first: Option<Key>,
    last: Option<Key>,
}

impl ImageWriter {
    /// An empty layer of `tenant` and `timeline`.
    pub fn new(tenant: TenantId, timeline: TimelineId, checksums: Checksums) -> Self {
        let file = FileWriter::new(tenant, timeline, checksums);
        ImageWriter { file, packer: Packer::default(), first: None, last: None }
    }

    /// Adds the value of `key`, which is above all keys before it; compressed if that makes it smaller. Appends to `out` what comes next
    /// in the file; the first byte ever appended has offset 8192.
    pub fn push(&mut self, key: Key, value: &[u8], out: &mut Vec<u8>) -> Result<(), WriteLayerError> {
        if let Some(last) = self.last.filter(|last| *last >= key) {
            return Err(WriteLayerError::OutOfOrder { last: last.to_string(), next: key.to_string() });
        }
        match self.packer.pack(value) {
            Some(packed) => self.file.push(&key.to_bytes(), packed, true, |at| at, out)?,
            None => self.file.push(&key.to_bytes(), value, false, |at| at, out)?,
        }
        self.first.get_or_insert(key);
        self.last = Some(key);
        Ok(())
    }

    /// Bytes of the file if it ended now, up to a few blocks.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Bytes of the index if it ended now, up to a few blocks.
    pub fn index_size(&self) -> u64 {
        self.file.index_size()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.file.is_empty()
    }

    /// Appends the rest of the file to `out`. `name` covers all keys added.
    pub fn finish(self, name: LayerName, out: &mut Vec<u8>) -> Result<FinishedLayer, WriteLayerError> {
        let LayerName::Image { keys, .. } = &name else { return Err(WriteLayerError::WrongKind(name)) };
        let outside = [self.first, self.last].into_iter().flatten().find(|key| !keys.contains(key));
        if let Some(key) = outside {
            return Err(WriteLayerError::OutsideOfName { entry: key.to_string(), name });
        }
        self.file.finish(name, out)
    }
}

/// Where a value of an image layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// Whose value.
    pub key: Key,
    /// Where its header begins in the file, see [`super::blob`].
    pub at: u64,
    /// Where the next value begins, if the same index block knows: a hint at how much to read, not to be relied on.
    pub next: Option<u64>,
}

/// Finds values of an image layer. It does no I/O: feed it the block that [`ImageScan::wants`] names until that is `None`.
#[derive(Clone, Debug)]
pub struct ImageScan(TreeScan<KEY_SIZE>);

impl ImageScan {
    /// The value of one key.
    pub fn key(layout: &Layout, key: Key) -> Self {
        Self::range(layout, &(key..key.next()))
    }

    /// The values of a range of keys, in key order.
    pub fn range(layout: &Layout, keys: &KeyRange) -> Self {
        ImageScan(TreeScan::new(layout, keys.start.to_bytes()..keys.end.to_bytes(), Direction::Ascending))
    }

    /// The block of the file to feed next; `None` at the end.
    pub fn wants(&self) -> Option<u32> {
        self.0.wants()
    }

    /// The blocks known to be wanted, the next one first.
    pub fn will_want(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.will_want()
    }

    /// Takes the bytes of the block that [`ImageScan::wants`] names; what it tells is appended to `found`.
    pub fn feed(&mut self, block: &Block, found: &mut Vec<ImageEntry>) -> Result<(), ReadLayerError> {
        self.0.feed(block, |Found { key, value, next }| {
            found.push(ImageEntry { key: Key::from_bytes(&key), at: value, next });
            ControlFlow::Continue(())
        })
    }
}
