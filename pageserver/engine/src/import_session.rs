//! A timeline's base on its way in: begun, filled, and either finished or left for the next attempt.
//!
//! From the beginning there is an index that says "import in progress", so that nobody takes the name and a restart knows what to start over. What
//! a killed attempt left behind is deleted when the next one begins: objects of earlier generations that no index names, after the own index is
//! validated.

use std::sync::Arc;

use async_trait::async_trait;
use codec::index_part::{
    Import, IndexPart, LayerMetadata, NotPortable, Source, TimelineMetadata, TliStart, Unknown, UtcTime,
};
use model::{Key, KeyRange, LayerName, Lsn, PgMajor, TimelineId, Tli, WalSegmentSize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::blocking::Ended;
use crate::import::{LayerOut, LayerOutError};
use crate::index_keeper::{IndexKeeper, vanilla_extension};
use crate::layer_write::{ImageFile, LayerStore, WriteLayerError};
use crate::listing::list_paths;
use crate::object_path::{ObjectPath, timeline_prefix};
use crate::stored_wal::{delete_wal, list_wal};
use crate::tenant::{ChangeError, Tenant, Tenants};
use crate::timeline::Timeline;
use crate::wal_keeper::{KeepWalError, WalKeeper, WalKeeperPlace};
use crate::wal_target::WalTarget;

/// Layers that may be on their way to the bucket at once: their files are the import's use of the disk.
const UPLOADS: usize = 3;

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct ImportPlan {
    /// Whose record formats.
    pub pg: PgMajor,
    /// Of the source's cluster.
    pub system_identifier: u64,
    /// Of the source's cluster.
    pub wal_segment_size: WalSegmentSize,
    /// Whether the source's pages carry checksums.
    pub data_checksums: bool,
    /// The source's Postgres timeline.
    pub tli: Tli,
    /// Where WAL comes from afterwards; `None` for a base without a source.
    pub source: Option<Source>,
}

/// How a base ended up.
#[derive(Clone, Copy, Debug)]
pub struct ImportedBase {
    /// The LSN of its pages.
    pub base_lsn: Lsn,
    /// Reads are right from here on.
    pub readable_from: Lsn,
    /// The Postgres timeline at the base.
    pub tli: Tli,
}

/// An import in progress.
pub struct ImportSession {
    tenants: Tenants,
    tenant: Arc<Tenant>,
    timeline: TimelineId,
    plan: ImportPlan,
    index: Arc<IndexKeeper>,
    store: Arc<LayerStore>,
    keeper: Option<WalKeeper>,
    keeper_task: JoinSet<Result<(), KeepWalError>>,
    stop: CancellationToken,
}

impl ImportSession {
    pub(crate) async fn begin(
        tenants: Tenants,
        tenant: Arc<Tenant>,
        timeline: TimelineId,
        plan: ImportPlan,
        found: Option<Arc<IndexKeeper>>,
    ) -> Result<ImportSession, ChangeError> {
        let attempt = hex::encode(rand::random::<u128>().to_be_bytes());
        let mut ours = vanilla_extension(
            plan.system_identifier,
            plan.wal_segment_size,
            plan.data_checksums,
            plan.tli,
            Lsn::INVALID,
        );
        if plan.pg > PgMajor::V17 {
            ours.not_portable.push(NotPortable::PgVersion);
        }
        if plan.wal_segment_size != WalSegmentSize::DEFAULT {
            ours.not_portable.push(NotPortable::WalSegmentSize);
        }
        ours.source = plan.source.clone();
        ours.import = Some(Import {
            attempt,
            started_at: UtcTime::from_system_time(tenant.claim().now()),
            unknown: Unknown::new(),
        });
        let metadata = TimelineMetadata {
            disk_consistent_lsn: Lsn::INVALID,
            prev_record_lsn: None,
            ancestor_timeline: None,
            ancestor_lsn: Lsn::INVALID,
            latest_gc_cutoff_lsn: Lsn::INVALID,
            initdb_lsn: Lsn::INVALID,
            pg_version: plan.pg,
            unknown: Unknown::new(),
        };
        let part = IndexPart::new(metadata, Some(ours));
        let index = match found {
            Some(index) => {
                index.update(|old| *old = part).await?;
                index
            }
            None => Arc::new(IndexKeeper::create(tenant.claim().clone(), timeline, part).await?),
        };
        tenant.import_begun(timeline, &index);
        tenant.claim().validate().await?;
        let surroundings = tenants.surroundings(&tenant);
        let store = Arc::new(LayerStore::new(
            surroundings.bucket,
            surroundings.cache,
            surroundings.claim,
            tenant.shard(),
            timeline,
        ));
        let session = ImportSession {
            tenants,
            tenant,
            timeline,
            plan,
            index,
            store,
            keeper: None,
            keeper_task: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        session.delete_leftovers().await?;
        Ok(session)
    }

    /// Deletes what earlier owners' attempts left. Their generations are below ours and our index, which is validated, names none of it.
    async fn delete_leftovers(&self) -> Result<(), ChangeError> {
        let claim = self.tenant.claim();
        let (bucket, own) = (claim.bucket(), claim.generation());
        let prefix = timeline_prefix(self.tenant.shard(), self.timeline);
        let mut leftovers = list_paths(&**bucket, &prefix).await?;
        leftovers.retain(|path| match path.parse() {
            Ok(ObjectPath::Layer { name, .. }) => name.generation.is_some_and(|generation| generation < own),
            _ => false,
        });
        let mut wal = list_wal(&**bucket, self.tenant.shard(), self.timeline).await?;
        wal.retain(|object| object.generation < own);
        if leftovers.is_empty() && wal.is_empty() {
            return Ok(());
        }
        info!(timeline = %self.timeline, layers = leftovers.len(), wal = wal.len(), "deleting what an earlier import left");
        claim.validate().await?;
        for some in leftovers.chunks(1000) {
            bucket.delete(some).await?;
        }
        delete_wal(&**bucket, self.tenant.shard(), self.timeline, &wal).await;
        Ok(())
    }

    /// Which timeline.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Begins to store WAL from `start` on; a receiver may run on the answer while the base is being filled.
    pub fn keep_wal(&mut self, start: Lsn) -> WalTarget {
        let keeper = WalKeeper::new(start, Vec::new(), self.tenants.surroundings(&self.tenant).policy.wal);
        let claim = self.tenant.claim().clone();
        let place = WalKeeperPlace {
            bucket: Arc::clone(claim.bucket()),
            claim,
            tenant_shard: self.tenant.shard(),
            timeline: self.timeline,
            pg: self.plan.pg,
            system_identifier: self.plan.system_identifier,
        };
        self.keeper_task.spawn(keeper.clone().run(place, self.stop.clone()));
        self.keeper = Some(keeper.clone());
        WalTarget::Importing(keeper)
    }

    /// Where the base's layers go.
    pub fn layers(&self, base_lsn: Lsn) -> ImportLayers {
        ImportLayers {
            store: Arc::clone(&self.store),
            lsn: base_lsn,
            open: None,
            uploads: JoinSet::new(),
            written: Vec::new(),
            generation: self.tenant.claim().generation(),
            shard: self.tenant.shard().shard,
        }
    }

    /// Makes the base readable: WAL up to its consistency point is in the bucket, the index names its layers, the timeline opens. The receiver that
    /// ran on [`ImportSession::keep_wal`]'s answer must have stopped.
    pub async fn finish(mut self, base: ImportedBase, layers: ImportLayers) -> Result<Timeline, ChangeError> {
        let written = layers.finished().await.map_err(|error| ChangeError::Import(error.to_string()))?;
        if let Some(keeper) = &self.keeper {
            if keeper.received() < base.readable_from {
                return Err(ChangeError::Import(format!(
                    "WAL was received up to {}, the base is only consistent from {} on",
                    keeper.received(),
                    base.readable_from
                )));
            }
            keeper.seal_now().await?;
            self.stop.cancel();
            while let Some(ended) = self.keeper_task.join_next().await {
                ended.map_err(|_| KeepWalError::Stopped)??;
            }
        }
        self.index
            .update(|part| {
                part.layer_metadata.extend(written);
                part.update_metadata(|metadata| {
                    metadata.disk_consistent_lsn = base.base_lsn;
                    metadata.initdb_lsn = base.base_lsn;
                    metadata.latest_gc_cutoff_lsn = base.base_lsn;
                });
                part.rel_size_migrated_at = Some(base.base_lsn);
                if let Some(ours) = &mut part.palimpsest {
                    ours.readable_from = base.readable_from;
                    ours.tli_history = vec![TliStart { tli: base.tli, from: base.base_lsn }];
                    ours.import = None;
                }
            })
            .await?;
        self.tenant.claim().validate().await?;
        self.tenants.open_imported(&self.tenant, self.timeline, Arc::clone(&self.index)).await
    }
}

impl Drop for ImportSession {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tenant.import_ended(self.timeline);
    }
}

/// Writes the image layers of a base. At most [`UPLOADS`] finished ones wait on the local disk.
pub struct ImportLayers {
    store: Arc<LayerStore>,
    lsn: Lsn,
    open: Option<(KeyRange, ImageFile)>,
    uploads: JoinSet<Result<(LayerName, LayerMetadata), WriteLayerError>>,
    written: Vec<(LayerName, LayerMetadata)>,
    generation: model::Generation,
    shard: model::ShardIndex,
}

impl ImportLayers {
    async fn one_uploaded(&mut self) -> Result<(), WriteLayerError> {
        if let Some(uploaded) = self.uploads.join_next().await {
            self.written.push(uploaded.map_err(|_| Ended)??);
        }
        Ok(())
    }

    async fn finished(mut self) -> Result<Vec<(LayerName, LayerMetadata)>, WriteLayerError> {
        while !self.uploads.is_empty() {
            self.one_uploaded().await?;
        }
        if self.open.is_some() {
            warn!("an image layer of the import was begun and never finished");
        }
        Ok(self.written)
    }
}

fn out_error(error: impl std::error::Error + Send + Sync + 'static) -> LayerOutError {
    LayerOutError(Box::new(error))
}

#[async_trait]
impl LayerOut for ImportLayers {
    async fn begin(&mut self, keys: KeyRange) -> Result<(), LayerOutError> {
        self.open = Some((keys, self.store.begin_image().map_err(out_error)?));
        Ok(())
    }

    async fn put(&mut self, key: Key, value: &[u8]) -> Result<(), LayerOutError> {
        let (_, file) = self.open.as_mut().expect("the importer begins a layer before it puts");
        file.push(key, value).map_err(out_error)
    }

    async fn finish(&mut self) -> Result<(), LayerOutError> {
        let (keys, file) = self.open.take().expect("the importer begins a layer before it finishes it");
        if file.is_empty() {
            return Ok(()); // nothing exists in that range, and no layer says so
        }
        while self.uploads.len() >= UPLOADS {
            self.one_uploaded().await.map_err(out_error)?;
        }
        let name = LayerName::Image { keys, lsn: self.lsn };
        let (store, generation, shard) = (Arc::clone(&self.store), self.generation, self.shard);
        self.uploads.spawn(async move {
            let written = store.finish_image(file, name.clone()).await?;
            Ok((name, LayerMetadata::of(&written.finished, generation, shard, None)))
        });
        Ok(())
    }
}
