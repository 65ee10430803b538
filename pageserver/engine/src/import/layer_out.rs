//! Where an import's layers go.

use async_trait::async_trait;
use model::{Key, KeyRange};

/// Writes image layers, one at a time, all at the import's base LSN.
///
/// Ranges of the layers of one import never overlap. A key of a layer's range that is not put does not exist.
#[async_trait]
pub trait LayerOut: Send {
    /// Begins a layer over exactly these keys.
    async fn begin(&mut self, keys: KeyRange) -> Result<(), LayerOutError>;

    /// Adds a value. Keys are within the layer's range and rise.
    async fn put(&mut self, key: Key, value: &[u8]) -> Result<(), LayerOutError>;

    /// Ends the layer. It need not be durable yet.
    async fn finish(&mut self) -> Result<(), LayerOutError>;
}

/// A layer could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write an image layer")]
pub struct LayerOutError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
