//! What a heat map says.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use codec::heatmap::{ChunkHeat, HeatMap, LayerHeat, TimelineHeat};
use codec::index_part::{LayerMetadata, Unknown};
use model::{Generation, TimelineId};

use crate::chunk_cache::HEAT_HALVES;
use crate::layer_map::MapLayer as _;
use crate::layer_read::Layer;
use crate::object_path::ObjectPath;

/// Timelines with their layers.
pub(super) type Timelines = Vec<(TimelineId, Vec<Arc<Layer>>)>;

/// A map.
pub(super) struct Recorded {
    pub(super) map: HeatMap,
    /// A hash of what it names, without what changes all the time.
    pub(super) content: u64,
}

/// The map of what is at hand now, in the given period of [`crate::chunk_cache::ChunkCache`].
pub(super) fn record(
    timelines: &Timelines,
    generation: Generation,
    upload_period: Duration,
    now: SystemTime,
    period: u32,
) -> Recorded {
    let mut hasher = DefaultHasher::new();
    let mut recorded = Vec::new();
    for (timeline_id, layers) in timelines {
        let mut hot: Vec<LayerHeat> =
            layers.iter().filter_map(|layer| layer_heat(layer, now, period)).collect();
        hot.sort_by(|a, b| {
            let newest_first = || b.name.lsns().end.cmp(&a.name.lsns().end);
            a.name.is_l0().cmp(&b.name.is_l0()).then_with(newest_first).then_with(|| a.name.cmp(&b.name))
        });
        timeline_id.hash(&mut hasher);
        for layer in &hot {
            let chunks = layer.palimpsest.as_ref().map(|chunks| (&chunks.hot, &chunks.kept));
            (&layer.name, layer.metadata.generation, chunks).hash(&mut hasher);
        }
        if !hot.is_empty() {
            recorded.push(TimelineHeat { timeline_id: *timeline_id, layers: hot });
        }
    }
    let map = HeatMap {
        generation,
        timelines: recorded,
        upload_period_ms: u64::try_from(upload_period.as_millis()).ok(),
        unknown: Unknown::new(),
    };
    Recorded { map, content: hasher.finish() }
}

/// `None` when nothing of the layer is at hand.
fn layer_heat(layer: &Layer, now: SystemTime, period: u32) -> Option<LayerHeat> {
    let at_hand = layer.object().at_hand();
    if at_hand.is_empty() {
        return None;
    }
    let Ok(ObjectPath::Layer { tenant, name, .. }) = layer.object_path().parse() else { return None };
    let stretches = |wanted: bool| {
        let of_kind = at_hand.iter().filter(|(_, hot)| *hot == wanted);
        of_kind.map(|(Range { start, end }, _)| (*start, end - start)).collect()
    };
    let since_last_use = HEAT_HALVES.saturating_mul(period.saturating_sub(layer.heat_cell().last()));
    let last_use = now.checked_sub(since_last_use).unwrap_or(UNIX_EPOCH);
    Some(LayerHeat {
        name: layer.name().clone(),
        metadata: LayerMetadata {
            file_size: layer.file_size(),
            generation: name.generation,
            shard: tenant.shard,
            palimpsest: None,
            unknown: Unknown::new(),
        },
        access_time: last_use.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        cold: false,
        palimpsest: Some(ChunkHeat { heat: layer.heat(), hot: stretches(true), kept: stretches(false) }),
    })
}
