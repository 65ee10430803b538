//! Delta layers: changes of a range of keys within a range of LSNs.
//!
//! The index maps a key and an LSN (18 + 8 bytes) to `offset << 1 | will_init`. The value there is a [`crate::value::Value`]. There is at most one
//! value per key and LSN. Neon writes these values as they are; a [`DeltaWriter`] that is told to compresses large ones, which are mostly images of
//! pages, each for itself as in an image layer.

use std::ops::{ControlFlow, Range};

use model::{Key, LayerName, Lsn, LsnRange, TenantId, TimelineId, key::KEY_SIZE};

use super::blob::Packer;
use super::btree::{Direction, Found, TreeScan};
use super::write::FileWriter;
use super::{Block, Checksums, FinishedLayer, Layout, ReadLayerError, WriteLayerError};

const DELTA_KEY: usize = KEY_SIZE + 8;

/// Changes shorter than this are not worth a frame of their own.
const COMPRESS_FROM: usize = 512;

fn delta_key(key: Key, lsn: Lsn) -> [u8; DELTA_KEY] {
    let mut bytes = [0; DELTA_KEY];
    bytes[..KEY_SIZE].copy_from_slice(&key.to_bytes());
    bytes[KEY_SIZE..].copy_from_slice(&lsn.0.to_be_bytes());
    bytes
}

fn split(bytes: &[u8; DELTA_KEY]) -> (Key, Lsn) {
    let (key, lsn) = bytes.split_first_chunk::<KEY_SIZE>().expect("a delta key is longer than a key");
    (Key::from_bytes(key), Lsn(u64::from_be_bytes(lsn.try_into().expect("eight bytes follow"))))
}

/// Writes a delta layer. Keeps the index and the checksums in memory, nothing else.
pub struct DeltaWriter {
    file: FileWriter<DELTA_KEY>,
    first: Option<Key>,
    last: Option<(Key, Lsn)>,
    /// Lowest and highest LSN added.
    lsns: Option<(Lsn, Lsn)>,
    packer: Option<Packer>,
}

impl DeltaWriter {
    /// An empty layer of `tenant` and `timeline`.
    pub fn new(tenant: TenantId, timeline: TimelineId, checksums: Checksums) -> Self {
        let file = FileWriter::new(tenant, timeline, checksums);
        DeltaWriter { file, first: None, last: None, lsns: None, packer: None }
    }

    /// Large values are compressed from now on, where that makes them smaller.
    #[must_use]
    pub fn compressing(mut self) -> Self {
        self.packer = Some(Packer::default());
        self
    }

    /// Adds a change: `value` is an encoded [`crate::value::Value`], `will_init` what it says of itself. `(key, lsn)` is above all before
    /// it. Appends to `out` what comes next in the file; the first byte ever appended has offset 8192.
    pub fn push(
        &mut self,
        key: Key,
        lsn: Lsn,
        will_init: bool,
        value: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), WriteLayerError> {
        if let Some((last_key, last_lsn)) = self.last.filter(|last| *last >= (key, lsn)) {
            return Err(WriteLayerError::OutOfOrder {
                last: format!("{last_key}@{last_lsn}"),
                next: format!("{key}@{lsn}"),
            });
        }
        let encode = |at: u64| at << 1 | u64::from(will_init);
        let packer = self.packer.as_mut().filter(|_| value.len() >= COMPRESS_FROM);
        let packed = packer.and_then(|packer| packer.pack(value));
        self.file.push(&delta_key(key, lsn), packed.unwrap_or(value), packed.is_some(), encode, out)?;
        self.first.get_or_insert(key);
        self.last = Some((key, lsn));
        let (lowest, highest) = self.lsns.unwrap_or((lsn, lsn));
        self.lsns = Some((lowest.min(lsn), highest.max(lsn)));
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

    /// First and last key added, for a name that fits.
    pub fn keys(&self) -> Option<(Key, Key)> {
        self.first.zip(self.last.map(|(key, _)| key))
    }

    /// Appends the rest of the file to `out`. `name` covers all keys and LSNs added.
    pub fn finish(self, name: LayerName, out: &mut Vec<u8>) -> Result<FinishedLayer, WriteLayerError> {
        let LayerName::Delta { keys, lsns } = &name else { return Err(WriteLayerError::WrongKind(name)) };
        let key = self.keys().and_then(|(a, b)| [a, b].into_iter().find(|key| !keys.contains(key)));
        let lsn = self.lsns.and_then(|(a, b)| [a, b].into_iter().find(|lsn| !lsns.contains(lsn)));
        let outside = key.map(|key| key.to_string()).or_else(|| lsn.map(|lsn| lsn.to_string()));
        if let Some(entry) = outside {
            return Err(WriteLayerError::OutsideOfName { entry, name });
        }
        self.file.finish(name, out)
    }
}

/// Where a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaEntry {
    /// What changed.
    pub key: Key,
    /// When.
    pub lsn: Lsn,
    /// Whether reconstruction can start here.
    pub will_init: bool,
    /// Where its value's header begins in the file, see [`super::blob`].
    pub at: u64,
    /// Where the next value begins, if the same index block knows: a hint at how much to read, not to be relied on.
    pub next: Option<u64>,
}

/// Finds changes in a delta layer. It does no I/O: feed it the block that [`DeltaScan::wants`] names until that is `None`.
#[derive(Clone, Debug)]
pub struct DeltaScan {
    tree: TreeScan<DELTA_KEY>,
    until_init: bool,
}

impl DeltaScan {
    /// What it takes to reconstruct `key`: its changes within `lsns`, newest first, ending with the first that needs none before it.
    pub fn key(layout: &Layout, key: Key, lsns: &LsnRange) -> Self {
        let keys = delta_key(key, lsns.start)..delta_key(key, lsns.end);
        DeltaScan { tree: TreeScan::new(layout, keys, Direction::Descending), until_init: true }
    }

    /// Every change from (key, LSN) to (key, LSN), end exclusive, in that order.
    pub fn range(layout: &Layout, range: Range<(Key, Lsn)>) -> Self {
        let keys = delta_key(range.start.0, range.start.1)..delta_key(range.end.0, range.end.1);
        DeltaScan { tree: TreeScan::new(layout, keys, Direction::Ascending), until_init: false }
    }

    /// Every change in the layer, by key and LSN.
    pub fn all(layout: &Layout) -> Self {
        Self::range(layout, (Key::MIN, Lsn(0))..(Key::MAX, Lsn::MAX))
    }

    /// The block of the file to feed next; `None` at the end.
    pub fn wants(&self) -> Option<u32> {
        self.tree.wants()
    }

    /// The blocks known to be wanted, the next one first. A search for one key may end before it wants them.
    pub fn will_want(&self) -> impl Iterator<Item = u32> + '_ {
        self.tree.will_want()
    }

    /// Takes the bytes of the block that [`DeltaScan::wants`] names; what it tells is appended to `found`.
    pub fn feed(&mut self, block: &Block, found: &mut Vec<DeltaEntry>) -> Result<(), ReadLayerError> {
        let until_init = self.until_init;
        self.tree.feed(block, |Found { key, value, next }| {
            let (key, lsn) = split(&key);
            let will_init = value & 1 == 1;
            found.push(DeltaEntry { key, lsn, will_init, at: value >> 1, next: next.map(|next| next >> 1) });
            if will_init && until_init { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }
}

/// Finds the first key of each leaf of a delta layer's index, without reading these: how keys, and so bytes, are spread over the layer. Fed like a
/// [`DeltaScan`].
#[derive(Clone, Debug)]
pub struct DeltaOutline {
    tree: TreeScan<DELTA_KEY>,
}

impl DeltaOutline {
    /// Of the whole layer.
    pub fn new(layout: &Layout) -> Self {
        let keys = delta_key(Key::MIN, Lsn(0))..delta_key(Key::MAX, Lsn::MAX);
        DeltaOutline { tree: TreeScan::new(layout, keys, Direction::Ascending) }
    }

    /// The block of the file to feed next; `None` at the end.
    pub fn wants(&self) -> Option<u32> {
        self.tree.wants()
    }

    /// Takes the bytes of the block that [`DeltaOutline::wants`] names; first keys of leaves are appended to `found`, in order.
    pub fn feed(&mut self, block: &Block, found: &mut Vec<Key>) -> Result<(), ReadLayerError> {
        self.tree.feed_to_leaves(block, |key| found.push(split(&key).0))
    }
}
