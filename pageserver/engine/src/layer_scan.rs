//! Reading a layer from one end to the other, for compaction: in long runs that neither wait for each value nor push out what readers use.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use codec::layer::blob::{BlobHead, Unpacker};
use codec::layer::{DeltaScan, ImageScan, Layout};
use model::{BLOCK_SIZE, Key, KeyRange, LayerName, Lsn};

use crate::as_of::ReadError;
use crate::chunk_cache::{CHUNK_SIZE, joined};
use crate::layer_map::MapLayer;
use crate::layer_read::Layer;

/// Chunks read at once: 512 KiB, so that a scan holds little and a GET is worth its price.
const RUN: u32 = 8;

/// A version as a layer has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of which key.
    pub key: Key,
    /// End of the record that made it; of a value of an image layer, the layer's LSN.
    pub lsn: Lsn,
    /// Whether it needs no older version.
    pub will_init: bool,
    /// Its bytes.
    pub value: StoredValue,
}

/// A value, by the kind of layer that it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredValue {
    /// The whole value, from an image layer.
    Image(Bytes),
    /// An encoded [`codec::value::Value`], from a delta layer.
    Encoded(Bytes),
}

/// Goes through the versions of a range of keys in one layer, by key and LSN.
pub struct LayerScan {
    layer: Arc<Layer>,
    layout: Layout,
    entries: Entries,
    /// Found in the index, their values not read yet.
    found: VecDeque<Entry>,
    /// Checked chunks from number `first` on.
    first: u32,
    chunks: Vec<Bytes>,
    unpacker: Unpacker,
}

enum Entries {
    Delta(DeltaScan),
    Image { scan: ImageScan, lsn: Lsn },
}

struct Entry {
    key: Key,
    lsn: Lsn,
    will_init: bool,
    at: u64,
}

impl LayerScan {
    /// Begins at the first key of the range.
    pub async fn open(layer: Arc<Layer>, keys: &KeyRange) -> Result<LayerScan, ReadError> {
        let layout = layer.known_layout().await?;
        let entries = match layer.name() {
            LayerName::Delta { .. } => {
                Entries::Delta(DeltaScan::range(&layout, (keys.start, Lsn(0))..(keys.end, Lsn(0))))
            }
            LayerName::Image { lsn, .. } => {
                Entries::Image { scan: ImageScan::range(&layout, keys), lsn: *lsn }
            }
        };
        let found = VecDeque::new();
        Ok(LayerScan {
            layer,
            layout,
            entries,
            found,
            first: 0,
            chunks: Vec::new(),
            unpacker: Unpacker::default(),
        })
    }

    /// The next version; `None` at the end of the range.
    pub async fn next(&mut self) -> Result<Option<Stored>, ReadError> {
        while self.found.is_empty() {
            let wanted = match &self.entries {
                Entries::Delta(scan) => scan.wants(),
                Entries::Image { scan, .. } => scan.wants(),
            };
            let Some(wanted) = wanted else { return Ok(None) };
            let block = self.layer.index_block(&self.layout, wanted).await?;
            self.feed(&block)?;
        }
        let Entry { key, lsn, will_init, at } = self.found.pop_front().expect("just filled");
        let head = self.bytes(at, (at + 4).min(self.layout.values_end())).await?;
        let head = BlobHead::parse(&self.layout, at, &head).map_err(|error| self.layer.damaged(error))?;
        let stored = self.bytes(head.start(), head.end()).await?;
        let value = if head.compressed {
            let unpacked = self.unpacker.unpack(&head, &stored);
            Bytes::from(unpacked.map_err(|error| self.layer.damaged(error))?.into_owned())
        } else {
            stored
        };
        let value = match self.entries {
            Entries::Delta(_) => StoredValue::Encoded(value),
            Entries::Image { .. } => StoredValue::Image(value),
        };
        Ok(Some(Stored { key, lsn, will_init, value }))
    }

    fn feed(&mut self, block: &[u8]) -> Result<(), ReadError> {
        let block = block.first_chunk::<BLOCK_SIZE>().expect("blocks are whole");
        let fed = match &mut self.entries {
            Entries::Delta(scan) => {
                let mut found = Vec::new();
                let fed = scan.feed(block, &mut found);
                self.found.extend(found.into_iter().map(|entry| Entry {
                    key: entry.key,
                    lsn: entry.lsn,
                    will_init: entry.will_init,
                    at: entry.at,
                }));
                fed
            }
            Entries::Image { scan, lsn } => {
                let mut found = Vec::new();
                let fed = scan.feed(block, &mut found);
                let lsn = *lsn;
                self.found.extend(found.into_iter().map(|entry| Entry {
                    key: entry.key,
                    lsn,
                    will_init: true,
                    at: entry.at,
                }));
                fed
            }
        };
        fed.map_err(|error| self.layer.damaged(error))
    }

    /// Bytes of the file, from the chunks at hand or after reading on.
    async fn bytes(&mut self, start: u64, end: u64) -> Result<Bytes, ReadError> {
        let wanted = (start / CHUNK_SIZE) as u32..(end.max(start + 1) - 1).div_euclid(CHUNK_SIZE) as u32 + 1;
        let have = self.first..self.first + self.chunks.len() as u32;
        if wanted.start < have.start || wanted.end > have.end {
            self.read_on(wanted.clone(), have).await?;
        }
        let pieces: Vec<Bytes> = wanted
            .map(|chunk| {
                let bytes = &self.chunks[(chunk - self.first) as usize];
                let base = u64::from(chunk) * CHUNK_SIZE;
                let from = start.saturating_sub(base).min(bytes.len() as u64) as usize;
                let to = (end - base).min(bytes.len() as u64) as usize;
                bytes.slice(from..to.max(from))
            })
            .collect();
        let all = joined(&pieces);
        if all.len() as u64 == end - start {
            return Ok(all);
        }
        Err(self.layer.damaged(codec::layer::ReadLayerError::Truncated {
            at: start,
            what: "value",
            wanted: end - start,
            left: all.len() as u64,
        }))
    }

    /// Keeps what is wanted of the chunks at hand, and reads what follows.
    async fn read_on(&mut self, wanted: Range<u32>, have: Range<u32>) -> Result<(), ReadError> {
        let kept =
            if have.contains(&wanted.start) { wanted.start..have.end } else { wanted.start..wanted.start };
        let to = wanted.end.max(kept.end + RUN).min(self.layer.chunk_count());
        if to < wanted.end {
            let at = u64::from(wanted.start) * CHUNK_SIZE;
            return Err(self.layer.damaged(codec::layer::ReadLayerError::Truncated {
                at,
                what: "value",
                wanted: u64::from(wanted.end - wanted.start) * CHUNK_SIZE,
                left: self.layer.file_size().saturating_sub(at),
            }));
        }
        let more = self.layer.chunks(&self.layout, kept.end..to).await?;
        self.chunks.drain(..(self.chunks.len() - kept.len()).min(self.chunks.len()));
        self.first = wanted.start;
        self.chunks.extend(more);
        Ok(())
    }
}
