//! Writing layers: into a local file first, with bounded memory; then one PUT; then the file becomes the cache's local copy.
//!
//! The local file is not synced: the bucket is the truth, and a file that is lost before its PUT was never named by an index.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use codec::layer::{Checksums, DeltaWriter, FinishedLayer, ImageWriter, Layout};
use model::{
    BLOCK_SIZE, Key, KeyRange, LayerName, LayerObjectName, Lsn, LsnRange, PgTimestamp, TenantShardId,
    TimelineId,
};

use crate::blocking::{self, Ended};
use crate::bucket::retry::{read_back, same_object};
use crate::chunk_cache::ChunkCache;
use crate::claim::{Claim, LayerNames};
use crate::disk::OwnFile;
use crate::held_objects::HeldObjects;
use crate::layer_map::MapLayer as _;
use crate::layer_read::Layer;
use crate::object_path::ObjectPath;
use crate::ports::{Body, Bucket, BucketError, PutIf};

/// A layer whose extent is free to choose ends when its index has so many bytes, so that a cold read has all of it after one wait.
pub const INDEX_BYTES: u64 = 3 << 20;

/// So many names say the same of an image layer: LSNs at which something changes are multiples of 8.
pub const NAMES: u64 = 7;
/// So many names of a delta are tried at most.
const DELTA_NAMES: u64 = 4_096;

/// Bytes collected before they are written to the file.
const BUFFER: usize = 1 << 20;

/// Writes and opens the layers of one timeline.
pub struct LayerStore {
    bucket: Arc<dyn Bucket>,
    cache: Arc<ChunkCache>,
    claim: Claim,
    tenant_shard: TenantShardId,
    timeline: TimelineId,
    /// Names that this owner has put, or tried to: none of them is ever put again with other bytes. And those of layers that it opened: an index names one
    /// layer by each, whoever put it.
    names: LayerNames,
    resident: Arc<AtomicU64>,
    held: HeldObjects,
}

/// A layer that is in the bucket.
pub struct WrittenLayer {
    /// To read it.
    pub layer: Layer,
    /// What an index has to say of it.
    pub finished: FinishedLayer,
}

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WriteLayerError {
    #[error("cannot write the local file of a layer")]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Format(#[from] codec::layer::WriteLayerError),
    #[error("cannot store layer {name}")]
    Bucket { name: Box<LayerName>, source: BucketError },
    #[error("this owner has written layer {0} and all other names for it before")]
    NameUsed(LayerName),
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// A local file that grows by appending, whose first block is written last.
struct LayerFile {
    file: OwnFile,
    end: u64,
    buffer: Vec<u8>,
}

impl LayerFile {
    fn new(file: OwnFile) -> LayerFile {
        LayerFile { file, end: BLOCK_SIZE as u64, buffer: Vec::with_capacity(BUFFER + (BUFFER >> 2)) }
    }

    fn spill(&mut self, at_least: usize) -> std::io::Result<()> {
        if self.buffer.len() >= at_least {
            self.file.file().write_at(&self.buffer, self.end)?;
            self.end += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    fn finish(mut self, finished: &FinishedLayer) -> std::io::Result<OwnFile> {
        self.spill(0)?;
        self.file.file().write_at(&finished.block0[..], 0)?;
        Ok(self.file)
    }
}

/// A delta layer being written.
pub struct DeltaFile {
    writer: DeltaWriter,
    file: LayerFile,
}

impl DeltaFile {
    /// Adds a version, in order of key and LSN.
    pub fn push(&mut self, key: Key, lsn: Lsn, will_init: bool, value: &[u8]) -> Result<(), WriteLayerError> {
        self.writer.push(key, lsn, will_init, value, &mut self.file.buffer)?;
        Ok(self.file.spill(BUFFER)?)
    }

    /// Bytes of the file if it ended now.
    pub fn size(&self) -> u64 {
        self.writer.size()
    }

    /// Bytes of its index if it ended now.
    pub fn index_size(&self) -> u64 {
        self.writer.index_size()
    }

    /// First and last key added.
    pub fn keys(&self) -> Option<(Key, Key)> {
        self.writer.keys()
    }
}

/// An image layer being written.
pub struct ImageFile {
    writer: ImageWriter,
    file: LayerFile,
}

impl ImageFile {
    /// Adds a value, in order of key.
    pub fn push(&mut self, key: Key, value: &[u8]) -> Result<(), WriteLayerError> {
        self.writer.push(key, value, &mut self.file.buffer)?;
        Ok(self.file.spill(BUFFER)?)
    }

    /// Bytes of the file if it ended now.
    pub fn size(&self) -> u64 {
        self.writer.size()
    }

    /// Bytes of its index if it ended now.
    pub fn index_size(&self) -> u64 {
        self.writer.index_size()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.writer.is_empty()
    }
}

impl LayerStore {
    /// For the layers of one timeline, written as the claim's owner.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        cache: Arc<ChunkCache>,
        claim: Claim,
        tenant_shard: TenantShardId,
        timeline: TimelineId,
    ) -> LayerStore {
        let (resident, held) = (Arc::default(), HeldObjects::default());
        let names = claim.layer_names(timeline);
        LayerStore { bucket, cache, claim, tenant_shard, timeline, names, resident, held }
    }

    /// A name for a delta that says the same as these keys and LSNs, and that this owner has not used yet: it may begin anywhere up to the lowest LSN in it.
    pub fn unused_delta_name(
        &self,
        keys: KeyRange,
        lsns: LsnRange,
        lowest: Lsn,
    ) -> Result<LayerName, WriteLayerError> {
        let room = lowest.0.saturating_sub(lsns.start.0).min(DELTA_NAMES - 1);
        self.unused(
            (0..=room).map(|by| LayerName::Delta { keys: keys.clone(), lsns: lsns.start.add(by)..lsns.end }),
        )
    }

    /// A name for an image layer as of an LSN that this owner has not used yet. LSNs at which something changes are multiples of 8, so there is room for
    /// others between them, until that is used up. It moves up, or down with `down`, where nothing below its own LSN is read.
    pub fn unused_image_name(
        &self,
        keys: KeyRange,
        lsn: Lsn,
        down: bool,
    ) -> Result<LayerName, WriteLayerError> {
        let moved = |by| if down { Lsn(lsn.0 - by) } else { lsn.add(by) };
        self.unused((0..NAMES).map(|by| LayerName::Image { keys: keys.clone(), lsn: moved(by) }))
    }

    fn unused(&self, names: impl Iterator<Item = LayerName>) -> Result<LayerName, WriteLayerError> {
        let mut used = self.names.lock().expect("no holder panics");
        let mut first = None;
        for name in names {
            if used.insert(name.clone()) {
                return Ok(name);
            }
            first.get_or_insert(name);
        }
        Err(WriteLayerError::NameUsed(first.expect("there is one name at least")))
    }

    /// Counts the bytes of its layers that are on the local disk.
    pub fn resident(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.resident)
    }

    /// Layers of earlier owners that are open here.
    pub fn held(&self) -> &HeldObjects {
        &self.held
    }

    /// A layer that an index names. `tenant_shard` is its writer's.
    pub fn open(
        &self,
        tenant: TenantShardId,
        object_name: LayerObjectName,
        size: u64,
        layout: Option<Layout>,
        commit_times: Option<(PgTimestamp, PgTimestamp)>,
    ) -> Layer {
        let name = object_name.layer.clone();
        self.names.lock().expect("no holder panics").insert(name.clone());
        let is_own = object_name.generation == Some(self.claim.generation());
        let path = ObjectPath::Layer { tenant, timeline: self.timeline, name: object_name }.to_string();
        let object = self.cache.counted_object(&path, size, &self.resident);
        let held = (!is_own).then(|| self.held.hold(&path));
        Layer::new(name, object, self.claim.clone(), layout, commit_times, held)
    }

    /// Makes a layer of another timeline also one of this timeline, under the same name.
    pub async fn copy(&self, layer: &Layer) -> Result<(), WriteLayerError> {
        let name = layer.name().clone();
        let object_name = name.clone().in_generation(self.claim.generation());
        let (tenant, timeline) = (self.tenant_shard, self.timeline);
        let to = ObjectPath::Layer { tenant, timeline, name: object_name }.to_string();
        let from = layer.object_path();
        self.names.lock().expect("no holder panics").insert(name.clone());
        let failed = |source| WriteLayerError::Bucket { name: Box::new(name.clone()), source };
        match self.bucket.copy(from, &to).await {
            Ok(_) => Ok(()),
            // As with what is written: an earlier run in this generation got here.
            Err(BucketError::Precondition(path)) => {
                let same = same_object(&*self.bucket, from, &to).await.map_err(failed)?;
                same.map(drop).ok_or(BucketError::Precondition(path)).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes a delta layer. `fill` runs on a thread for blocking work.
    pub async fn write_delta(
        &self,
        name: LayerName,
        commit_times: Option<(PgTimestamp, PgTimestamp)>,
        fill: impl FnOnce(&mut DeltaFile) -> Result<(), WriteLayerError> + Send + 'static,
    ) -> Result<WrittenLayer, WriteLayerError> {
        let cache = Arc::clone(&self.cache);
        let writer = self.delta_writer();
        let work = blocking::run(move || {
            let mut delta = DeltaFile { writer, file: LayerFile::new(cache.new_file()?) };
            fill(&mut delta)?;
            let DeltaFile { writer, mut file } = delta;
            let finished = writer.finish(name, &mut file.buffer)?;
            Ok::<_, WriteLayerError>((file.finish(&finished)?, finished))
        });
        let (file, finished) = work.await??;
        self.upload(file, finished, commit_times).await
    }

    /// As whom layers are written.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    fn delta_writer(&self) -> DeltaWriter {
        DeltaWriter::new(self.tenant_shard.tenant, self.timeline, Checksums::PerBlock).compressing()
    }

    /// Begins a delta layer.
    pub fn begin_delta(&self) -> Result<DeltaFile, WriteLayerError> {
        Ok(DeltaFile { writer: self.delta_writer(), file: LayerFile::new(self.cache.new_file()?) })
    }

    /// Ends a delta layer and stores it under this name.
    pub async fn finish_delta(
        &self,
        delta: DeltaFile,
        name: LayerName,
        commit_times: Option<(PgTimestamp, PgTimestamp)>,
    ) -> Result<WrittenLayer, WriteLayerError> {
        let DeltaFile { writer, mut file } = delta;
        let finished = writer.finish(name, &mut file.buffer)?;
        self.upload(file.finish(&finished)?, finished, commit_times).await
    }

    /// Begins an image layer.
    pub fn begin_image(&self) -> Result<ImageFile, WriteLayerError> {
        let writer = ImageWriter::new(self.tenant_shard.tenant, self.timeline, Checksums::PerBlock);
        Ok(ImageFile { writer, file: LayerFile::new(self.cache.new_file()?) })
    }

    /// Ends an image layer and stores it under this name.
    pub async fn finish_image(
        &self,
        image: ImageFile,
        name: LayerName,
    ) -> Result<WrittenLayer, WriteLayerError> {
        let ImageFile { writer, mut file } = image;
        let finished = writer.finish(name, &mut file.buffer)?;
        self.upload(file.finish(&finished)?, finished, None).await
    }

    async fn upload(
        &self,
        file: OwnFile,
        finished: FinishedLayer,
        commit_times: Option<(PgTimestamp, PgTimestamp)>,
    ) -> Result<WrittenLayer, WriteLayerError> {
        let (name, layout) = (&finished.name, finished.layout);
        let object_name = name.clone().in_generation(self.claim.generation());
        let layer = self.open(self.tenant_shard, object_name, layout.file_size(), Some(layout), commit_times);
        let body = Body::File { file: Arc::clone(file.file()), length: layout.file_size() };
        let failed = |source| WriteLayerError::Bucket { name: Box::new(name.clone()), source };
        match self.bucket.put(layer.object_path(), body.clone(), PutIf::Absent).await {
            Ok(_) => {}
            // An earlier run of this work in this generation got here. No key is ever put again with other bytes, so they must be equal.
            Err(BucketError::Precondition(path)) => {
                let same = read_back(&*self.bucket, &path, &body).await.map_err(failed)?;
                same.ok_or(BucketError::Precondition(path)).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        layer.adopt(file).await;
        Ok(WrittenLayer { layer, finished })
    }
}
