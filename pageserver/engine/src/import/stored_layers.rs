//! An import's layers in the bucket, each as soon as it is whole.

use async_trait::async_trait;
use model::{Key, KeyRange, LayerName, Lsn};

use super::layer_out::{LayerOut, LayerOutError};
use crate::layer_write::{ImageFile, LayerStore, WrittenLayer};

/// Writes image layers at one LSN to a timeline's bucket. The index names them when the import is complete, not before.
pub struct StoredLayers<'a> {
    store: &'a LayerStore,
    lsn: Lsn,
    open: Option<(KeyRange, ImageFile)>,
    /// What is in the bucket, in the order of writing.
    pub written: Vec<WrittenLayer>,
}

impl<'a> StoredLayers<'a> {
    /// Nothing written yet.
    pub fn new(store: &'a LayerStore, lsn: Lsn) -> StoredLayers<'a> {
        StoredLayers { store, lsn, open: None, written: Vec::new() }
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> LayerOutError {
    LayerOutError(Box::new(error))
}

#[async_trait]
impl LayerOut for StoredLayers<'_> {
    async fn begin(&mut self, keys: KeyRange) -> Result<(), LayerOutError> {
        debug_assert!(self.open.is_none(), "one layer at a time");
        self.open = Some((keys, self.store.begin_image().map_err(failed)?));
        Ok(())
    }

    async fn put(&mut self, key: Key, value: &[u8]) -> Result<(), LayerOutError> {
        let (_, image) = self.open.as_mut().expect("a layer was begun");
        image.push(key, value).map_err(failed)
    }

    async fn finish(&mut self) -> Result<(), LayerOutError> {
        let (keys, image) = self.open.take().expect("a layer was begun");
        let name = LayerName::Image { keys, lsn: self.lsn };
        self.written.push(self.store.finish_image(image, name).await.map_err(failed)?);
        Ok(())
    }
}
