//! A whole layer file in memory: for tools and tests. The engine reads layers block by block instead.

use std::borrow::Cow;

use model::{BLOCK_SIZE, Key, LayerName, Lsn, LsnRange, key::KEY_SIZE};

use super::blob::{BlobHead, Unpacker};
use super::btree::Node;
use super::{
    BLOCK_BYTES, Block, DeltaEntry, DeltaScan, ImageEntry, ImageScan, LayerKind, Layout, ReadLayerError,
    Summary, VALUES_START,
};
use crate::value::{Value, ValueError};

/// A layer file whose summary makes sense.
pub struct LayerFile<'a> {
    bytes: &'a [u8],
    summary: Summary,
    layout: Layout,
}

/// What [`LayerFile::verify`] found in a sound file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerReport {
    /// Values.
    pub entries: u64,
    /// Of these, compressed.
    pub compressed: u64,
    /// Of these, values that need none before them; all of them in an image layer.
    pub will_init: u64,
    /// Bytes of the values as stored, headers included.
    pub stored_bytes: u64,
    /// Bytes of the values themselves.
    pub value_bytes: u64,
    /// Levels of the index.
    pub index_levels: u8,
    /// Blocks whose checksum was compared; 0 for a plain file.
    pub checked_blocks: u32,
    /// CRC-32C of the whole file.
    pub crc32c: u32,
}

/// Why a layer file is not sound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum VerifyLayerError {
    #[error(transparent)]
    File(#[from] ReadLayerError),
    #[error("value of {key} at {lsn}, at offset {at:#x} of the layer file, cannot be decoded: {source}")]
    Value { key: Key, lsn: Lsn, at: u64, source: ValueError },
    #[error("entry {entry} of the layer file lies outside of {name}")]
    OutsideOfName { entry: String, name: LayerName },
    #[error("value of {key} at {lsn}: the index says will_init={said}, the value says otherwise")]
    WillInit { key: Key, lsn: Lsn, said: bool },
    #[error(
        "{found} bytes at offset {at:#x} of the layer file belong to no value; expected none but zeros at the end"
    )]
    Gap { at: u64, found: u64 },
    #[error("the index uses {used} of its {blocks} blocks")]
    UnusedIndexBlocks { used: u32, blocks: u32 },
}

impl<'a> LayerFile<'a> {
    /// Reads block 0, and nothing else, of the whole file `bytes`.
    pub fn open(bytes: &'a [u8]) -> Result<Self, ReadLayerError> {
        let block0 = bytes.first_chunk().ok_or(ReadLayerError::Truncated {
            at: 0,
            what: "block 0",
            wanted: BLOCK_BYTES,
            left: bytes.len() as u64,
        })?;
        let summary = Summary::decode(block0)?;
        let layout = summary.layout(bytes.len() as u64)?;
        Ok(LayerFile { bytes, summary, layout })
    }

    /// What block 0 says.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// One block, checked if the file has checksums.
    pub fn block(&self, block: u32) -> Result<&'a Block, ReadLayerError> {
        let bytes = self.raw_block(block)?;
        if let Some(table) = self.layout.checksums()
            && let Some(at) = table.locate(block)
        {
            let sums = self.raw_block(at.table_block)?;
            table.check_table_block(at.table_block, sums)?;
            table.check(block, bytes, sums)?;
        }
        Ok(bytes)
    }

    fn raw_block(&self, block: u32) -> Result<&'a Block, ReadLayerError> {
        let at = block as usize * BLOCK_SIZE;
        self.bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(ReadLayerError::Truncated {
            at: at as u64,
            what: "block",
            wanted: BLOCK_BYTES,
            left: (self.bytes.len() as u64).saturating_sub(at as u64),
        })
    }

    /// The value whose header is at offset `at`, and its header.
    pub fn value(
        &self,
        at: u64,
        unpacker: &mut Unpacker,
    ) -> Result<(BlobHead, Cow<'a, [u8]>), ReadLayerError> {
        let head = self.blob_head(at)?;
        for block in at / BLOCK_BYTES..head.end().div_ceil(BLOCK_BYTES) {
            self.block(block as u32)?;
        }
        self.unpacked(head, unpacker)
    }

    fn blob_head(&self, at: u64) -> Result<BlobHead, ReadLayerError> {
        let rest = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        BlobHead::parse(&self.layout, at, rest)
    }

    fn unpacked(
        &self,
        head: BlobHead,
        unpacker: &mut Unpacker,
    ) -> Result<(BlobHead, Cow<'a, [u8]>), ReadLayerError> {
        let stored = &self.bytes[head.start() as usize..head.end() as usize];
        Ok((head, unpacker.unpack(&head, stored)?))
    }

    /// The value of `key` in an image layer.
    pub fn image(&self, key: Key) -> Result<Option<Cow<'a, [u8]>>, ReadLayerError> {
        let entries = self.scan_images(ImageScan::key(&self.layout, key))?;
        entries.first().map(|entry| Ok(self.value(entry.at, &mut Unpacker::default())?.1)).transpose()
    }

    /// What reconstructs `key` within `lsns` from a delta layer, newest first; see [`DeltaScan::key`].
    pub fn changes(&self, key: Key, lsns: &LsnRange) -> Result<Vec<DeltaEntry>, ReadLayerError> {
        self.scan_deltas(DeltaScan::key(&self.layout, key, lsns))
    }

    /// All entries of an image layer, in key order; none of a delta layer.
    pub fn images(&self) -> Result<Vec<ImageEntry>, ReadLayerError> {
        match self.layout.kind() {
            LayerKind::Image => self.scan_images(ImageScan::range(&self.layout, &Key::ALL)),
            LayerKind::Delta => Ok(Vec::new()),
        }
    }

    /// All entries of a delta layer, by key and LSN; none of an image layer.
    pub fn deltas(&self) -> Result<Vec<DeltaEntry>, ReadLayerError> {
        match self.layout.kind() {
            LayerKind::Delta => self.scan_deltas(DeltaScan::all(&self.layout)),
            LayerKind::Image => Ok(Vec::new()),
        }
    }

    fn scan_images(&self, mut scan: ImageScan) -> Result<Vec<ImageEntry>, ReadLayerError> {
        let mut found = Vec::new();
        while let Some(block) = scan.wants() {
            scan.feed(self.block(block)?, &mut found)?;
        }
        Ok(found)
    }

    fn scan_deltas(&self, mut scan: DeltaScan) -> Result<Vec<DeltaEntry>, ReadLayerError> {
        let mut found = Vec::new();
        while let Some(block) = scan.wants() {
            scan.feed(self.block(block)?, &mut found)?;
        }
        Ok(found)
    }

    /// Goes through everything: checksums, index, values. What it lets pass can be read.
    pub fn verify(&self) -> Result<LayerReport, VerifyLayerError> {
        let checked_blocks = self.verify_checksums()?;
        let mut report = LayerReport {
            checked_blocks,
            crc32c: crc32c::crc32c(self.bytes),
            index_levels: self.verify_index_blocks()?,
            ..LayerReport::default()
        };
        let mut unpacker = Unpacker::default();
        let mut end = VALUES_START;
        let mut take = |at: u64, report: &mut LayerReport| {
            // All blocks were compared above; once per value would be a hundred times over for small ones.
            let (head, value) = self.unpacked(self.blob_head(at)?, &mut unpacker)?;
            if at != end {
                return Err(VerifyLayerError::Gap { at: end.min(at), found: at.abs_diff(end) });
            }
            end = head.end();
            report.entries += 1;
            report.compressed += u64::from(head.compressed);
            report.stored_bytes += head.end() - head.at;
            report.value_bytes += value.len() as u64;
            Ok(value)
        };
        let name = &self.summary.name;
        let outside = |entry| Err(VerifyLayerError::OutsideOfName { entry, name: name.clone() });
        for ImageEntry { key, at, .. } in self.images()? {
            if !name.keys().contains(&key) {
                return outside(key.to_string());
            }
            take(at, &mut report)?;
            report.will_init += 1;
        }
        for DeltaEntry { key, lsn, will_init, at, .. } in self.deltas()? {
            if !name.keys().contains(&key) || !name.lsns().contains(&lsn) {
                return outside(format!("{key}@{lsn}"));
            }
            let bytes = take(at, &mut report)?;
            let value =
                Value::decode(&bytes).map_err(|source| VerifyLayerError::Value { key, lsn, at, source })?;
            if value.will_init() != will_init {
                return Err(VerifyLayerError::WillInit { key, lsn, said: will_init });
            }
            report.will_init += u64::from(will_init);
        }
        let padding = &self.bytes[end as usize..self.layout.values_end() as usize];
        if padding.len() >= BLOCK_SIZE || padding.iter().any(|byte| *byte != 0) {
            return Err(VerifyLayerError::Gap { at: end, found: padding.len() as u64 });
        }
        Ok(report)
    }

    fn verify_checksums(&self) -> Result<u32, ReadLayerError> {
        let Some(table) = self.layout.checksums() else { return Ok(0) };
        for block in table.blocks() {
            table.check_table_block(block, self.raw_block(block)?)?;
        }
        for block in 1..self.layout.blocks() {
            if let Some(at) = table.locate(block) {
                table.check(block, self.raw_block(block)?, self.raw_block(at.table_block)?)?;
            }
        }
        Ok(table.covered())
    }

    /// Checks that each index block is a node, that the root is the last, and that scanning everything uses them all.
    fn verify_index_blocks(&self) -> Result<u8, VerifyLayerError> {
        let blocks = self.layout.blocks() - self.layout.index_start_block();
        let mut levels = 0;
        for block in self.layout.index_start_block()..self.layout.blocks() {
            let at = u64::from(block) * BLOCK_BYTES;
            let level = match self.layout.kind() {
                LayerKind::Image => Node::<KEY_SIZE>::parse(self.raw_block(block)?, at)?.level,
                LayerKind::Delta => Node::<{ KEY_SIZE + 8 }>::parse(self.raw_block(block)?, at)?.level,
            };
            levels = level.saturating_add(1);
        }
        let mut used = 0;
        match self.layout.kind() {
            LayerKind::Image => {
                let mut scan = ImageScan::range(&self.layout, &Key::ALL);
                let mut found = Vec::new();
                while let Some(block) = scan.wants() {
                    scan.feed(self.raw_block(block)?, &mut found)?;
                    found.clear();
                    used += 1;
                }
            }
            LayerKind::Delta => {
                let mut scan = DeltaScan::all(&self.layout);
                let mut found = Vec::new();
                while let Some(block) = scan.wants() {
                    scan.feed(self.raw_block(block)?, &mut found)?;
                    found.clear();
                    used += 1;
                }
            }
        }
        if used != blocks || self.layout.index_root_block() != blocks - 1 {
            return Err(VerifyLayerError::UnusedIndexBlocks { used, blocks });
        }
        Ok(levels)
    }
}
