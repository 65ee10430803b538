//! Looking at one layer: its size, its name, each of its checksums.

use std::sync::Arc;

use anyhow::Result;
use codec::index_part::LayerMetadata;
use codec::layer::LayerFile;
use engine::error_story::error_story;
use engine::object_path::ObjectPath;
use engine::ports::{Bucket, BucketError};
use model::{LayerName, LayerObjectName, TenantShardId, TimelineId};

use super::finding::Kind;

/// Where a layer lies that an index names.
pub fn layer_path(
    tenant: TenantShardId,
    timeline: TimelineId,
    name: &LayerName,
    metadata: &LayerMetadata,
) -> String {
    let tenant = TenantShardId { tenant: tenant.tenant, shard: metadata.shard };
    let name = LayerObjectName { layer: name.clone(), generation: metadata.generation };
    ObjectPath::Layer { tenant, timeline, name }.to_string()
}

/// How a layer was found.
pub enum Checked {
    /// As it should be: its size, and how many values it has.
    Sound { bytes: u64, values: u64 },
    /// There is no such object.
    Gone,
    /// What is wrong, and how.
    Wrong(Kind, String),
}

/// Reads a layer and compares it with what its index says of it.
pub async fn check_layer(
    bucket: Arc<dyn Bucket>,
    tenant: TenantShardId,
    path: String,
    name: LayerName,
    metadata: LayerMetadata,
) -> Result<Checked> {
    let bytes = match bucket.get(&path, None).await {
        Ok(object) => object.bytes,
        Err(BucketError::NotFound(_)) => return Ok(Checked::Gone),
        Err(error) => return Err(anyhow::Error::new(error).context(format!("cannot read {path}"))),
    };
    Ok(tokio::task::spawn_blocking(move || check_layer_bytes(tenant, &name, &metadata, &bytes)).await?)
}

fn check_layer_bytes(
    tenant: TenantShardId,
    name: &LayerName,
    metadata: &LayerMetadata,
    bytes: &[u8],
) -> Checked {
    if bytes.len() as u64 != metadata.file_size {
        let what = format!("it has {} bytes, the index says {}", bytes.len(), metadata.file_size);
        return Checked::Wrong(Kind::WrongSize, what);
    }
    let file = match LayerFile::open(bytes) {
        Ok(file) => file,
        Err(error) => return Checked::Wrong(Kind::DamagedLayer, error_story(&error)),
    };
    let summary = file.summary();
    if summary.name != *name || summary.tenant != tenant.tenant {
        let what = format!("it says that it is {} of tenant {}", summary.name, summary.tenant);
        return Checked::Wrong(Kind::WrongLayer, what);
    }
    match metadata.layout(name) {
        Some(Ok(layout)) if layout != *file.layout() => {
            return Checked::Wrong(Kind::WrongLayer, "its parts lie elsewhere than the index says".into());
        }
        Some(Err(error)) => return Checked::Wrong(Kind::WrongLayer, error_story(&error)),
        _ => {}
    }
    match file.verify() {
        Err(error) => Checked::Wrong(Kind::DamagedLayer, error_story(&error)),
        Ok(report) => match &metadata.palimpsest {
            Some(details) if details.crc32c != report.crc32c => {
                let what =
                    format!("its CRC-32C is {:08x}, the index says {:08x}", report.crc32c, details.crc32c);
                Checked::Wrong(Kind::WrongChecksum, what)
            }
            _ => Checked::Sound { bytes: bytes.len() as u64, values: report.entries },
        },
    }
}
