//! Turns frozen tails into L0 layers: write, upload, name in the index, validate; then the WAL below is no longer needed.

use std::sync::Arc;
use std::time::Duration;

use model::{Key, LayerName, Lsn, LsnRange};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::claim::ValidateError;
use crate::index_keeper::{IndexKeeper, metadata_of};
use crate::index_store::PutIndexError;
use crate::layer_read::Layer;
use crate::layer_write::{DeltaFile, LayerStore, WriteLayerError, WrittenLayer};
use crate::stored_wal::{StoredWal, delete_wal};
use crate::tail::Tail;
use crate::wal_keeper::WalKeeper;

/// Pause before a layer is written once more that the local disk did not take.
const DISK_PAUSE: Duration = Duration::from_secs(5);

/// A tail that no longer grows.
pub(super) struct Frozen {
    pub tail: Tail,
    pub lsns: LsnRange,
    /// End of its last record.
    pub last: Lsn,
    /// Start of its last record.
    pub prev: Lsn,
}

/// The layer that a frozen tail has become; the index in the bucket names it.
pub(super) struct Flushed {
    pub layer: Arc<Layer>,
    pub last: Lsn,
}

/// Why a tail did not become a layer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FlushError {
    #[error("cannot write a layer")]
    Write(#[from] WriteLayerError),
    #[error("cannot store the index")]
    Index(#[from] PutIndexError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
}

/// Flushes tails one after the other, in their order.
pub(super) struct Flusher {
    pub layers: Arc<LayerStore>,
    pub index: Arc<IndexKeeper>,
    pub keeper: WalKeeper,
    pub frozen: mpsc::UnboundedReceiver<Frozen>,
    pub done: mpsc::UnboundedSender<Result<Flushed, FlushError>>,
    pub stop: CancellationToken,
    /// Is cancelled when replay has read all WAL objects that it needs: a segment that was switched away is covered as a whole by a tail that is frozen
    /// after its last record, though replay has still to come by the rest of its bytes.
    pub replayed: CancellationToken,
    /// WAL objects that nobody but replay needs any more.
    pub covered: Vec<StoredWal>,
}

impl Flusher {
    /// Runs until the owner is gone or a tail cannot be flushed.
    pub async fn run(mut self) {
        loop {
            let frozen = tokio::select! {
                biased;
                frozen = self.frozen.recv() => frozen,
                () = self.replayed.cancelled(), if !self.covered.is_empty() => {
                    self.delete_covered().await;
                    continue;
                }
            };
            let Some(frozen) = frozen else { return };
            let result = self.flush(frozen).await;
            let failed = result.is_err();
            if self.done.send(result).is_err() || failed {
                return; // the owner hears of the failure, or is gone
            }
        }
    }

    async fn delete_covered(&mut self) {
        let covered = std::mem::take(&mut self.covered);
        let claim = self.index.claim();
        delete_wal(&**claim.bucket(), claim.tenant(), self.index.timeline(), &covered).await;
    }

    async fn flush(&mut self, frozen: Frozen) -> Result<Flushed, FlushError> {
        let name = LayerName::Delta { keys: Key::ALL, lsns: frozen.lsns.clone() };
        let commit_times = frozen.tail.commit_times();
        let written = self.write(&frozen.tail, &name).await?;
        let claim = self.index.claim();
        self.index
            .update(|part| {
                let metadata = metadata_of(&written, claim, commit_times);
                part.layer_metadata.insert(written.finished.name.clone(), metadata);
                part.update_metadata(|metadata| {
                    metadata.disk_consistent_lsn = frozen.last;
                    metadata.prev_record_lsn = Some(frozen.prev);
                });
                if let Some(ours) = &mut part.palimpsest {
                    ours.wal_objects.retain(|object| object.end > frozen.last);
                }
            })
            .await?;
        claim.validate().await?;
        let covered = self.keeper.take_covered(frozen.last);
        let (timeline, wal_objects) = (self.index.timeline(), covered.len());
        self.covered.extend(covered);
        if self.replayed.is_cancelled() {
            self.delete_covered().await;
        }
        let layer = Arc::new(written.layer);
        info!(%timeline, layer = %name, bytes = layer.file_size(), wal_objects, "tail became a layer");
        Ok(Flushed { layer, last: frozen.last })
    }

    /// Writes a tail's layer. While the local disk is full or fails, the tail waits, and WAL waits for it: the bucket has what was received.
    async fn write(&self, tail: &Tail, name: &LayerName) -> Result<WrittenLayer, WriteLayerError> {
        loop {
            let tail = tail.clone();
            let commit_times = tail.commit_times();
            let fill = move |file: &mut DeltaFile| {
                tail.merged().try_for_each(|key, lsn, will_init, value| file.push(key, lsn, will_init, value))
            };
            match self.layers.write_delta(name.clone(), commit_times, fill).await {
                Err(WriteLayerError::File(error)) if !self.stop.is_cancelled() => {
                    let timeline = self.index.timeline();
                    warn!(%timeline, layer = %name, %error, "the local disk does not take a layer, trying again");
                }
                other => return other,
            }
            let _ = tokio::time::timeout(DISK_PAUSE, self.stop.cancelled()).await; // whichever comes first
        }
    }
}
