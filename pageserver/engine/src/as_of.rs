//! A timeline as of one LSN: what a backup, a listing and ingest itself read from.

use async_trait::async_trait;
use bytes::Bytes;
use model::{Key, KeyRange, Lsn, RelTag};

/// Values of a timeline as of one LSN, reconstructed. Ancestors are included.
#[async_trait]
pub trait AsOf: Send + Sync {
    /// As of when.
    fn lsn(&self) -> Lsn;

    /// The value of a key; `None` when it has none (never written; a tombstone is an empty value).
    async fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError>;

    /// Pages `blocks` of a relation's fork, back to back, 8,192 bytes each. A block within the relation that was never written is zeros.
    async fn pages(&self, rel: RelTag, blocks: std::ops::Range<u32>) -> Result<Bytes, ReadError>;

    /// Every key of the range that has a value, with it, in key order; tombstones (empty values) included. For sparse ranges and other
    /// ranges known to be small.
    async fn scan(&self, keys: KeyRange) -> Result<Vec<(Key, Bytes)>, ReadError>;
}

/// Why a value could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no value where there must be one.
    #[error("key {key} has no value at {lsn}")]
    MissingKey {
        /// Which key.
        key: Key,
        /// As of when.
        lsn: Lsn,
    },
    /// The page needs redo that failed, for example of an extension's resource manager.
    #[error("cannot reconstruct key {key} at {lsn}")]
    Redo {
        /// Which key.
        key: Key,
        /// As of when.
        lsn: Lsn,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A layer could not be read.
    #[error("cannot read layer {layer}")]
    Layer {
        /// Which.
        layer: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The bucket did not answer, for minutes. It may yet.
    #[error("cannot read layer {layer} for now")]
    Away {
        /// Which.
        layer: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// That far back history is not kept.
    #[error(
        "LSN {asked} is below {cutoff}, before which only branch points, leases and named LSNs can be read"
    )]
    BehindCutoff {
        /// As of when.
        asked: Lsn,
        /// Where history that is kept as a whole begins.
        cutoff: Lsn,
    },
    /// A newer owner of the tenant deleted what this one believed to exist.
    #[error("superseded by a newer owner of the tenant")]
    Superseded,
    /// The timeline is shutting down.
    #[error("the timeline is shutting down")]
    Stopping,
}
