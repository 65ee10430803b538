//! Reading layers through the chunk cache.
//!
//! The codec says which block it wants next; this file fetches and checks it. A layer that is only in the bucket costs two dependent GETs for
//! its first page: one for checksums and index, one for the values. Where parts of these were evicted, a chunk comes together with the checksums that it
//! is checked by. When everything is in memory nothing awaits.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use codec::layer::blob::BlobHead;
use codec::layer::{
    Block, ChecksumTable, DeltaEntry, DeltaOutline, DeltaScan, ImageScan, Layout, ReadLayerError, Summary,
    VALUES_START,
};
use model::{BLOCK_SIZE, Key, KeyRange, LayerName, Lsn, PgTimestamp};
use tokio::sync::{Mutex, OnceCell, mpsc};

use crate::as_of::ReadError;
use crate::chunk_cache::heat::Heat;
use crate::chunk_cache::{CHUNK_SIZE, FetchError, Object, PieceKind, ReadFor, joined};
use crate::claim::{Claim, ValidateError};
use crate::disk::OwnFile;
use crate::held_objects::HeldObject;
use crate::layer_map::MapLayer;
use crate::tail::Version;

const BLOCKS_PER_CHUNK: u32 = (CHUNK_SIZE / BLOCK_SIZE as u64) as u32;

/// A layer's index and checksums are fetched whole, at once, when they have at most so many bytes; else their end, where the root is. Layers that
/// compaction writes have smaller ones ([`crate::layer_write::INDEX_BYTES`]).
const WARM_BYTES: u64 = 4 << 20;
const WARM_CHUNKS: u32 = (WARM_BYTES / CHUNK_SIZE) as u32;

/// Of these, one GET fetches so many chunks: several at a time are faster than one after the other.
const WARM_GET: u32 = 16;

/// Stored values of pages are at most about so long, so one that begins nearer to the end of a chunk may go on in the next.
const LONG_VALUE: u64 = 8 << 10;

/// A layer of an open timeline.
pub struct Layer {
    name: LayerName,
    object: Object,
    claim: Claim,
    layout: OnceCell<Layout>,
    /// Held by who fetches the index, so that others need not.
    warming: Mutex<()>,
    commit_times: Option<(PgTimestamp, PgTimestamp)>,
    heat: Heat,
    /// Where to say that nobody reads it any more, once no index names it.
    retired: OnceLock<Retired>,
    /// Keeps an earlier owner's object from being swept.
    _held: Option<HeldObject>,
}

/// Takes the paths of objects that no index names and nobody reads.
pub type Retired = mpsc::UnboundedSender<String>;

/// Whoever still has a snapshot with a layer may read it, so its object goes after the last of them.
impl Drop for Layer {
    fn drop(&mut self) {
        if let Some(retired) = self.retired.get() {
            let _ = retired.send(self.object.path().to_owned()); // nobody deletes any more: a later owner finds it
        }
    }
}

impl MapLayer for Layer {
    fn name(&self) -> &LayerName {
        &self.name
    }
}

/// Why a block or a value could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadFileError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Damaged(#[from] ReadLayerError),
    #[error("{0}")]
    WrongFile(String),
    #[error("the object was deleted by a newer owner")]
    Superseded,
}

impl Layer {
    /// A layer of the object. `layout` saves a read of its first block.
    pub fn new(
        name: LayerName,
        object: Object,
        claim: Claim,
        layout: Option<Layout>,
        commit_times: Option<(PgTimestamp, PgTimestamp)>,
        held: Option<HeldObject>,
    ) -> Layer {
        Layer {
            name,
            object,
            claim,
            layout: OnceCell::new_with(layout),
            warming: Mutex::new(()),
            commit_times,
            heat: Heat::default(),
            retired: OnceLock::new(),
            _held: held,
        }
    }

    /// Its object is no longer named by the index in the bucket, and this owner was the newest afterwards: to be deleted when nobody reads it any more.
    pub fn retire(&self, to: Retired) {
        let _ = self.retired.set(to); // once is enough
    }

    /// Whether it holds changes.
    pub fn is_delta(&self) -> bool {
        self.name.is_delta()
    }

    /// Bytes of its file.
    pub fn file_size(&self) -> u64 {
        self.object.size()
    }

    /// Its object in the bucket.
    pub fn object_path(&self) -> &str {
        self.object.path()
    }

    /// Oldest and newest commit time in it, when known.
    pub fn commit_times(&self) -> Option<(PgTimestamp, PgTimestamp)> {
        self.commit_times
    }

    /// Makes a complete local file its local copy.
    pub(crate) async fn adopt(&self, file: OwnFile) {
        self.object.adopt(file).await;
    }

    /// How often it was read lately: reads of one key each, by readers and not by scans. Counts half after
    /// [`crate::chunk_cache::HEAT_HALVES`].
    pub fn heat(&self) -> u32 {
        self.heat.value(self.object.cache().period())
    }

    pub(crate) fn heat_cell(&self) -> &Heat {
        &self.heat
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    fn touch(&self, reading: ReadFor) {
        if reading == ReadFor::Reader {
            self.heat.touch(self.object.cache().period());
        }
    }

    /// The value of `key` in an image layer.
    pub async fn image(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        let reading = ReadFor::current();
        self.touch(reading);
        self.try_image(key, reading).await.map_err(|error| self.story(error))
    }

    /// The versions of `key` in a delta layer above `above` (exclusive) up to `lsn` (inclusive), newest first, ending with the first that
    /// needs no predecessor.
    pub async fn versions_down(&self, key: Key, above: Lsn, lsn: Lsn) -> Result<Vec<Version>, ReadError> {
        let reading = ReadFor::current();
        self.touch(reading);
        self.try_versions_down(key, above, lsn, reading).await.map_err(|error| self.story(error))
    }

    /// Every version in a delta layer of keys of `keys`, by key and LSN.
    pub async fn versions_of(&self, keys: &KeyRange) -> Result<Vec<Version>, ReadError> {
        self.try_versions_of(keys, ReadFor::current()).await.map_err(|error| self.story(error))
    }

    /// The keys of a range that have a version at or below `lsn` here.
    pub async fn keys_in(&self, keys: KeyRange, lsn: Lsn) -> Result<Vec<Key>, ReadError> {
        self.try_keys_in(&keys, lsn, ReadFor::current()).await.map_err(|error| self.story(error))
    }

    /// Where the versions of a delta layer up to an LSN are in its file, by key and LSN.
    pub(crate) async fn delta_places(&self, lsn: Lsn) -> Result<Vec<DeltaEntry>, ReadError> {
        let places = async {
            let layout = self.layout().await?;
            let mut scan = DeltaScan::range(layout, (Key::MIN, Lsn(0))..(Key::MAX, Lsn::MAX));
            let (mut found, mut places) = (Vec::new(), Vec::new());
            while let Some(wanted) = scan.wants() {
                scan.feed(as_block(&self.block(layout, wanted, ReadFor::Scan).await?), &mut found)?;
                places.extend(found.drain(..).filter(|entry: &DeltaEntry| entry.lsn <= lsn));
            }
            Ok(places)
        };
        places.await.map_err(|error| self.story(error))
    }

    /// Where the values of an image layer are in its file, by key.
    pub(crate) async fn image_places(&self, keys: &KeyRange) -> Result<Vec<(Key, u64)>, ReadError> {
        let places = async {
            let layout = self.layout().await?;
            let mut scan = ImageScan::range(layout, keys);
            let mut found = Vec::new();
            while let Some(wanted) = scan.wants() {
                scan.feed(as_block(&self.block(layout, wanted, ReadFor::Scan).await?), &mut found)?;
            }
            Ok(found.into_iter().map(|entry| (entry.key, entry.at)).collect())
        };
        places.await.map_err(|error| self.story(error))
    }

    /// The value at such a place.
    pub(crate) async fn value_at(&self, at: u64) -> Result<Bytes, ReadError> {
        let value = async { self.value(self.layout().await?, at, ReadFor::Scan).await };
        value.await.map_err(|error| self.story(error))
    }

    fn story(&self, error: ReadFileError) -> ReadError {
        match error {
            ReadFileError::Superseded => ReadError::Superseded,
            away @ ReadFileError::Fetch(FetchError::Bucket { .. }) => {
                ReadError::Away { layer: self.object.path().into(), source: Box::new(away) }
            }
            other => ReadError::Layer { layer: self.object.path().into(), source: Box::new(other) },
        }
    }

    async fn try_image(&self, key: Key, reading: ReadFor) -> Result<Option<Bytes>, ReadFileError> {
        let layout = self.layout().await?;
        let mut scan = ImageScan::key(layout, key);
        let mut found = Vec::new();
        while let Some(wanted) = scan.wants() {
            scan.feed(as_block(&self.block(layout, wanted, reading).await?), &mut found)?;
        }
        match found.first() {
            Some(entry) => {
                self.bring_values(layout, (entry.at, entry.at), reading).await?;
                self.value(layout, entry.at, reading).await.map(Some)
            }
            None => Ok(None),
        }
    }

    async fn try_versions_down(
        &self,
        key: Key,
        above: Lsn,
        lsn: Lsn,
        reading: ReadFor,
    ) -> Result<Vec<Version>, ReadFileError> {
        let layout = self.layout().await?;
        let lsns = Lsn(above.0.saturating_add(1))..Lsn(lsn.0.saturating_add(1));
        if lsns.is_empty() {
            return Ok(Vec::new());
        }
        let mut scan = DeltaScan::key(layout, key, &lsns);
        let mut found = Vec::new();
        while let Some(wanted) = scan.wants() {
            scan.feed(as_block(&self.block(layout, wanted, reading).await?), &mut found)?;
        }
        let offsets = || found.iter().map(|entry| entry.at);
        if let Some(ends) = offsets().min().zip(offsets().max()) {
            self.bring_values(layout, ends, reading).await?;
        }
        let mut versions = Vec::with_capacity(found.len());
        for entry in found {
            let value = self.value(layout, entry.at, reading).await?;
            versions.push(Version { key, lsn: entry.lsn, value, will_init: entry.will_init });
        }
        Ok(versions)
    }

    async fn try_versions_of(
        &self,
        keys: &KeyRange,
        reading: ReadFor,
    ) -> Result<Vec<Version>, ReadFileError> {
        let layout = self.layout().await?;
        let mut scan = DeltaScan::range(layout, (keys.start, Lsn(0))..(keys.end, Lsn(0)));
        let mut found = Vec::new();
        while let Some(wanted) = scan.wants() {
            scan.feed(as_block(&self.block(layout, wanted, reading).await?), &mut found)?;
        }
        let mut versions = Vec::with_capacity(found.len());
        for entry in found {
            let value = self.value(layout, entry.at, reading).await?;
            versions.push(Version { key: entry.key, lsn: entry.lsn, value, will_init: entry.will_init });
        }
        Ok(versions)
    }

    async fn try_keys_in(
        &self,
        keys: &KeyRange,
        lsn: Lsn,
        reading: ReadFor,
    ) -> Result<Vec<Key>, ReadFileError> {
        let layout = self.layout().await?;
        let mut out = Vec::new();
        if self.is_delta() {
            let mut scan = DeltaScan::range(layout, (keys.start, Lsn(0))..(keys.end, Lsn(0)));
            let mut found = Vec::new();
            while let Some(wanted) = scan.wants() {
                scan.feed(as_block(&self.block(layout, wanted, reading).await?), &mut found)?;
            }
            out.extend(found.into_iter().filter(|entry| entry.lsn <= lsn).map(|entry| entry.key));
            out.dedup();
        } else {
            let mut scan = ImageScan::range(layout, keys);
            let mut found = Vec::new();
            while let Some(wanted) = scan.wants() {
                scan.feed(as_block(&self.block(layout, wanted, reading).await?), &mut found)?;
            }
            out.extend(found.into_iter().map(|entry| entry.key));
        }
        Ok(out)
    }

    async fn layout(&self) -> Result<&Layout, ReadFileError> {
        match self.layout.get() {
            Some(layout) => Ok(layout),
            None => Box::pin(self.load_layout()).await, // seldom, and what is in a future of its own makes others no larger
        }
    }

    async fn load_layout(&self) -> Result<&Layout, ReadFileError> {
        self.layout
            .get_or_try_init(|| async {
                let read = async || {
                    let chunk = self.raw_chunk(0, PieceKind::Data, ReadFor::Reader).await?;
                    let block = chunk.first_chunk::<BLOCK_SIZE>().ok_or_else(|| too_short(0, chunk.len()))?;
                    Ok(Summary::decode(block)?)
                };
                let summary = self.again_if_only_local(read(), read()).await?;
                if summary.name != self.name {
                    return Err(ReadFileError::WrongFile(format!(
                        "the file says that it is {}",
                        summary.name
                    )));
                }
                Ok(summary.layout(self.object.size())?)
            })
            .await
    }

    /// Fetches what is missing of checksums and index, all at once, where not even the root is at hand: more than one of them will be wanted.
    async fn warm(&self, layout: &Layout) -> Result<(), ReadFileError> {
        let root = (layout.index_start_block() + layout.index_root_block()) / BLOCKS_PER_CHUNK;
        if self.is_at_hand(layout, root) {
            return Ok(());
        }
        let _warming = self.warming.lock().await;
        if self.is_at_hand(layout, root) {
            return Ok(());
        }
        let first = layout.checksums().map_or(layout.index_start_block(), ChecksumTable::start_block);
        let chunks = first / BLOCKS_PER_CHUNK..self.object.chunks();
        let end = chunks.end.saturating_sub(WARM_CHUNKS).max(chunks.start)..chunks.end;
        let mut gets: Vec<Range<u32>> = (end.start..end.end)
            .step_by(WARM_GET as usize)
            .map(|from| from..(from + WARM_GET).min(end.end))
            .collect();
        if end.start > chunks.start {
            let sums = layout.index_start_block().div_ceil(BLOCKS_PER_CHUNK);
            gets.push(chunks.start..sums.min(end.start));
        }
        Ok(self.object.bring(gets).await?)
    }

    fn is_at_hand(&self, layout: &Layout, chunk: u32) -> bool {
        self.object.is_at_hand(chunk, kind_of(layout, chunk))
    }

    /// Has the values of one key at hand, whose headers begin from offset `first` to `last`: where they may be in several chunks, these are fetched at once.
    async fn bring_values(
        &self,
        layout: &Layout,
        (first, last): (u64, u64),
        reading: ReadFor,
    ) -> Result<(), ReadFileError> {
        let end = (last + LONG_VALUE).min(layout.values_end()).max(last + 1);
        let chunks = (first / CHUNK_SIZE) as u32..(end - 1).div_euclid(CHUNK_SIZE) as u32 + 1;
        if chunks.len() == 1 || reading == ReadFor::Scan || self.object.unpacked(first, reading).is_some() {
            return Ok(());
        }
        let mut missing = chunks.filter(|chunk| !self.is_at_hand(layout, *chunk));
        let Some(first) = missing.next() else { return Ok(()) };
        if let Some(last) = missing.last() {
            let sums = self.missing_sums(layout, first).map(|sums| sums..sums + 1);
            Box::pin(self.object.bring(std::iter::once(first..last + 1).chain(sums).collect())).await?;
        }
        Ok(())
    }

    /// A checked block.
    async fn block(&self, layout: &Layout, block: u32, reading: ReadFor) -> Result<Bytes, ReadFileError> {
        let chunk = self.chunk(layout, block / BLOCKS_PER_CHUNK, reading).await?;
        let at = (block % BLOCKS_PER_CHUNK) as usize * BLOCK_SIZE;
        if chunk.len() < at + BLOCK_SIZE {
            return Err(too_short(u64::from(block) * BLOCK_SIZE as u64, chunk.len() - at.min(chunk.len())));
        }
        Ok(chunk.slice(at..at + BLOCK_SIZE))
    }

    /// A checked chunk.
    async fn chunk(&self, layout: &Layout, chunk: u32, reading: ReadFor) -> Result<Bytes, ReadFileError> {
        if let Some(bytes) = self.object.in_memory(chunk, kind_of(layout, chunk), reading) {
            return Ok(bytes);
        }
        Box::pin(self.load_chunk(layout, chunk, reading)).await
    }

    async fn load_chunk(
        &self,
        layout: &Layout,
        chunk: u32,
        reading: ReadFor,
    ) -> Result<Bytes, ReadFileError> {
        if u64::from(chunk) * CHUNK_SIZE >= layout.values_end() {
            self.warm(layout).await?;
        }
        let kind = kind_of(layout, chunk);
        let read = async || {
            let (bytes, sums) = if let Some(sums) = self.missing_sums(layout, chunk) {
                let sums_of = self.raw_chunk(sums, PieceKind::Index, reading);
                let (bytes, of) = tokio::try_join!(self.raw_chunk(chunk, kind, reading), sums_of)?;
                (bytes, (sums, of))
            } else {
                let bytes = self.raw_chunk(chunk, kind, reading).await?;
                (bytes.clone(), (chunk, bytes))
            };
            self.check_chunk(layout, chunk, &bytes, reading, &sums).await.map(|()| bytes)
        };
        let bytes = self.again_if_only_local(read(), read()).await?;
        self.object.admit(chunk, kind, reading, bytes.clone());
        Ok(bytes)
    }

    /// The chunk with the checksums of this one, if it is another one and not at hand either: one need not wait for the other.
    fn missing_sums(&self, layout: &Layout, chunk: u32) -> Option<u32> {
        let table = layout.checksums()?;
        let mut blocks = chunk * BLOCKS_PER_CHUNK..(chunk + 1) * BLOCKS_PER_CHUNK;
        let sums = blocks.find_map(|block| table.locate(block))?.table_block / BLOCKS_PER_CHUNK;
        (sums != chunk && !self.is_at_hand(layout, sums)).then_some(sums)
    }

    /// What is read may be damaged in the local copy only: that goes, and the object is worth another look.
    async fn again_if_only_local<T>(
        &self,
        read: impl Future<Output = Result<T, ReadFileError>>,
        again: impl Future<Output = Result<T, ReadFileError>>,
    ) -> Result<T, ReadFileError> {
        match read.await {
            Err(ReadFileError::Damaged(error)) if self.object.forget_local_copy() => {
                let object = self.object.path();
                tracing::warn!(%error, object, "the local copy of a layer may be damaged, and goes");
                again.await
            }
            other => other,
        }
    }

    /// Adjacent chunks, checked, for one who reads the layer from one end to the other: what is at hand is used, and nothing that is fetched is kept.
    pub(crate) async fn chunks(&self, layout: &Layout, chunks: Range<u32>) -> Result<Vec<Bytes>, ReadError> {
        let read = async || {
            let loaded = match self.object.load_run_once(chunks.clone()).await {
                Err(FetchError::Gone(path)) => Err(self.gone(path).await),
                other => Ok(other?),
            }?;
            for (chunk, bytes) in chunks.clone().zip(&loaded) {
                self.check_chunk(layout, chunk, bytes, ReadFor::Scan, &(chunk, bytes.clone())).await?;
            }
            Ok(loaded)
        };
        self.again_if_only_local(read(), read()).await.map_err(|error| self.story(error))
    }

    /// A checked block of the index, for the same.
    pub(crate) async fn index_block(&self, layout: &Layout, block: u32) -> Result<Bytes, ReadError> {
        self.block(layout, block, ReadFor::Scan).await.map_err(|error| self.story(error))
    }

    /// Of a delta layer, a key for every so many bytes of its values, and how many these are.
    pub(crate) async fn outline(&self) -> Result<(Vec<Key>, u64), ReadError> {
        let outline = async {
            let layout = self.layout().await?;
            let mut outline = DeltaOutline::new(layout);
            let mut found = Vec::new();
            while let Some(wanted) = outline.wants() {
                outline.feed(as_block(&self.block(layout, wanted, ReadFor::Scan).await?), &mut found)?;
            }
            let bytes = layout.values_end() - VALUES_START;
            let each = bytes / found.len().max(1) as u64;
            Ok((found, each))
        };
        outline.await.map_err(|error| self.story(error))
    }

    /// Where things are in its file.
    pub(crate) async fn known_layout(&self) -> Result<Layout, ReadError> {
        self.layout().await.copied().map_err(|error| self.story(error))
    }

    /// How many chunks its object has.
    pub(crate) fn chunk_count(&self) -> u32 {
        self.object.chunks()
    }

    /// What is wrong with it, if that is more than that somebody else owns it now.
    pub(crate) fn damaged(&self, error: ReadLayerError) -> ReadError {
        self.story(error.into())
    }

    /// Checks a chunk by checksums. Those in `sums`, a chunk and its bytes, are taken from there; else they are read like any, which counts as a use of
    /// them.
    async fn check_chunk(
        &self,
        layout: &Layout,
        chunk: u32,
        bytes: &Bytes,
        reading: ReadFor,
        sums: &(u32, Bytes),
    ) -> Result<(), ReadFileError> {
        let Some(table) = layout.checksums() else { return Ok(()) };
        let mut at_hand: Option<(u32, Bytes)> = None;
        for (number, block) in (chunk * BLOCKS_PER_CHUNK..).zip(bytes.chunks_exact(BLOCK_SIZE)) {
            if number == 0 {
                Summary::decode(as_block(block))?;
            } else if table.blocks().contains(&number) {
                table.check_table_block(number, as_block(block))?;
            } else if let Some(sum) = table.locate(number) {
                let of = match at_hand.take().filter(|(at_hand, _)| *at_hand == sum.table_block) {
                    Some((_, of)) => of,
                    None => self.checked_sums(table, sum.table_block, sums, reading).await?,
                };
                table.check(number, as_block(block), as_block(&of))?;
                at_hand = Some((sum.table_block, of));
            }
        }
        Ok(())
    }

    /// A block of the table of checksums, which checks itself: where they are kept they may be damaged, too.
    async fn checked_sums(
        &self,
        table: ChecksumTable,
        table_block: u32,
        (at_hand, bytes): &(u32, Bytes),
        reading: ReadFor,
    ) -> Result<Bytes, ReadFileError> {
        let chunk = table_block / BLOCKS_PER_CHUNK;
        let bytes = if chunk == *at_hand {
            bytes.clone()
        } else {
            match self.object.in_memory(chunk, PieceKind::Index, reading) {
                Some(bytes) => bytes,
                None => self.raw_chunk(chunk, PieceKind::Index, reading).await?,
            }
        };
        let at = (table_block % BLOCKS_PER_CHUNK) as usize * BLOCK_SIZE;
        if bytes.len() < at + BLOCK_SIZE {
            return Err(too_short(at as u64, bytes.len()));
        }
        let sums = bytes.slice(at..at + BLOCK_SIZE);
        table.check_table_block(table_block, as_block(&sums))?;
        Ok(sums)
    }

    async fn raw_chunk(&self, chunk: u32, kind: PieceKind, reading: ReadFor) -> Result<Bytes, ReadFileError> {
        match self.object.load(chunk, kind, reading).await {
            Err(FetchError::Gone(path)) => Err(self.gone(path).await),
            other => Ok(other?),
        }
    }

    /// Only a newer owner deletes what an index names: ask before believing that it is lost.
    async fn gone(&self, path: Arc<str>) -> ReadFileError {
        if matches!(self.claim.validate().await, Err(ValidateError::Superseded { .. })) {
            ReadFileError::Superseded
        } else {
            FetchError::Gone(path).into()
        }
    }

    /// The value whose header begins at offset `at`.
    async fn value(&self, layout: &Layout, at: u64, reading: ReadFor) -> Result<Bytes, ReadFileError> {
        if let Some(value) = self.object.unpacked(at, reading) {
            return Ok(value);
        }
        let chunk = self.chunk(layout, (at / CHUNK_SIZE) as u32, reading).await?;
        let within = (at % CHUNK_SIZE) as usize;
        let rest = chunk.slice(within.min(chunk.len())..);
        let head = if rest.len() >= 4 {
            BlobHead::parse(layout, at, &rest)?
        } else {
            BlobHead::parse(
                layout,
                at,
                &self.bytes(layout, at, (at + 4).min(layout.values_end()), reading).await?,
            )?
        };
        let stored = self.bytes(layout, head.start(), head.end(), reading).await?;
        if !head.compressed {
            return Ok(stored);
        }
        Ok(self.object.unpack(at, &head, &stored, reading)?)
    }

    /// Checked bytes from anywhere in the file.
    async fn bytes(
        &self,
        layout: &Layout,
        start: u64,
        end: u64,
        reading: ReadFor,
    ) -> Result<Bytes, ReadFileError> {
        let (first, last) = ((start / CHUNK_SIZE) as u32, (end.max(start + 1) - 1) / CHUNK_SIZE);
        let mut pieces = Vec::with_capacity(2);
        for chunk in first..=last as u32 {
            let bytes = self.chunk(layout, chunk, reading).await?;
            let base = u64::from(chunk) * CHUNK_SIZE;
            let from = start.saturating_sub(base) as usize;
            let to = (end - base).min(bytes.len() as u64) as usize;
            if from > to {
                return Err(too_short(start, bytes.len()));
            }
            pieces.push(bytes.slice(from..to));
        }
        let all = joined(&pieces);
        if all.len() as u64 == end - start { Ok(all) } else { Err(too_short(start, all.len())) }
    }
}

/// A chunk in which the index or the checksums begin holds values, too, and is worth as much as they are.
fn kind_of(layout: &Layout, chunk: u32) -> PieceKind {
    if (u64::from(chunk) + 1) * CHUNK_SIZE > layout.values_end() { PieceKind::Index } else { PieceKind::Data }
}

fn as_block(bytes: &[u8]) -> &Block {
    bytes.first_chunk().expect("callers hold whole blocks")
}

fn too_short(at: u64, left: usize) -> ReadFileError {
    ReadLayerError::Truncated { at, what: "block", wanted: BLOCK_SIZE as u64, left: left as u64 }.into()
}
