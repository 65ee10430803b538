//! What is fetched because of a heat map, and in which order.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use codec::heatmap::HeatMap;
use model::TenantShardId;

use crate::chunk_cache::CHUNK_SIZE;
use crate::layer_read::Layer;
use crate::object_path::ObjectPath;

/// Chunks of one GET at most (1 MiB): what a reader may have to wait for.
const GET_CHUNKS: u32 = 16;

/// A layer that there is.
pub(super) struct Known {
    /// Which of them.
    layer: usize,
    path: ObjectPath,
    size: u64,
}

impl Known {
    pub(super) fn of((layer, known): (usize, &Arc<Layer>)) -> Option<Known> {
        Some(Known { layer, path: known.object_path().parse().ok()?, size: known.file_size() })
    }
}

/// Chunks of a layer that are to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) layer: usize,
    pub(super) chunks: Range<u32>,
    /// They were used again and again.
    pub(super) hot: bool,
}

/// What a map leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Hottest first.
    pub(super) fetches: Vec<Fetch>,
    /// How hot layers were.
    pub(super) heat: Vec<(usize, u32)>,
}

/// Hot chunks of all layers, then the others; those of the hottest layer first. What the map names and there is not, or not so, is left out.
pub(super) fn plan(map: &HeatMap, shard: TenantShardId, known: &[Known]) -> Plan {
    let by_path: HashMap<&ObjectPath, &Known> = known.iter().map(|known| (&known.path, known)).collect();
    let mut wanted: Vec<(bool, u32, Fetch)> = Vec::new();
    let mut heat = Vec::new();
    for timeline in &map.timelines {
        for layer in timeline.layers.iter().filter(|layer| !layer.cold) {
            let metadata = &layer.metadata;
            let name = model::LayerObjectName { layer: layer.name.clone(), generation: metadata.generation };
            let tenant = TenantShardId { tenant: shard.tenant, shard: metadata.shard };
            let path = ObjectPath::Layer { tenant, timeline: timeline.timeline_id, name };
            let Some(there) = by_path.get(&path).filter(|there| there.size == metadata.file_size) else {
                continue;
            };
            let all = there.size.div_ceil(CHUNK_SIZE) as u32;
            let whole = [(0, all)];
            let (degrees, hot, kept) = match &layer.palimpsest {
                Some(chunks) => (chunks.heat, &chunks.hot[..], &chunks.kept[..]),
                None => (0, &[][..], &whole[..]),
            };
            if degrees > 0 {
                heat.push((there.layer, degrees));
            }
            for (is_hot, stretches) in [(true, hot), (false, kept)] {
                for (first, count) in stretches {
                    let end = first.saturating_add(*count).min(all);
                    for start in (*first..end).step_by(GET_CHUNKS as usize) {
                        let chunks = start..(start + GET_CHUNKS).min(end);
                        let fetch = Fetch { layer: there.layer, chunks, hot: is_hot };
                        wanted.push((is_hot, degrees, fetch));
                    }
                }
            }
        }
    }
    wanted.sort_by_key(|(is_hot, degrees, _)| Reverse((*is_hot, *degrees)));
    Plan { fetches: wanted.into_iter().map(|(_, _, fetch)| fetch).collect(), heat }
}

#[cfg(test)]
mod tests {
    use codec::heatmap::{ChunkHeat, LayerHeat, TimelineHeat};
    use codec::index_part::{LayerMetadata, Unknown};
    use model::{Generation, Key, LayerName, Lsn, TimelineId};

    use super::*;

    const SHARD: &str = "00112233445566778899aabbccddeeff";

    fn name(lsn: u64) -> LayerName {
        LayerName::Image { keys: Key::ALL, lsn: Lsn(lsn) }
    }

    fn known(layer: usize, size: u64) -> Known {
        let path = ObjectPath::Layer {
            tenant: SHARD.parse().unwrap(),
            timeline: TimelineId([1; 16]),
            name: name(layer as u64).in_generation(Generation(3)),
        };
        Known { layer, path, size }
    }

    fn heat(lsn: u64, file_size: u64, palimpsest: Option<ChunkHeat>) -> LayerHeat {
        let metadata = LayerMetadata {
            file_size,
            generation: Some(Generation(3)),
            shard: model::ShardIndex::UNSHARDED,
            palimpsest: None,
            unknown: Unknown::new(),
        };
        LayerHeat { name: name(lsn), metadata, access_time: 0, cold: false, palimpsest }
    }

    fn planned(layers: Vec<LayerHeat>) -> Plan {
        let timelines = vec![TimelineHeat { timeline_id: TimelineId([1; 16]), layers }];
        let map =
            HeatMap { generation: Generation(3), timelines, upload_period_ms: None, unknown: Unknown::new() };
        plan(&map, SHARD.parse().unwrap(), &[known(0, 40 * CHUNK_SIZE), known(1, 10 * CHUNK_SIZE)])
    }

    #[test]
    fn the_hottest_chunks_come_first_in_pieces_that_hold_nobody_up() {
        let cool = ChunkHeat { heat: 1, hot: vec![(30, 1)], kept: vec![(0, 20)] };
        let warm = ChunkHeat { heat: 9, hot: vec![(2, 2)], kept: vec![(5, 1)] };
        let plan = planned(vec![heat(0, 40 * CHUNK_SIZE, Some(cool)), heat(1, 10 * CHUNK_SIZE, Some(warm))]);
        let fetch = |layer, chunks, hot| Fetch { layer, chunks, hot };
        let expected = [
            fetch(1, 2..4, true),
            fetch(0, 30..31, true),
            fetch(1, 5..6, false),
            fetch(0, 0..16, false),
            fetch(0, 16..20, false),
        ];
        assert_eq!(plan.fetches, expected);
        assert_eq!(plan.heat, [(0, 1), (1, 9)]);
    }

    #[test]
    fn what_there_is_not_is_left_out_whatever_the_map_says() {
        let chunks =
            || Some(ChunkHeat { heat: 0, hot: vec![(9, u32::MAX), (u32::MAX, 7)], kept: vec![(11, 2)] });
        let plan = planned(vec![
            heat(1, 10 * CHUNK_SIZE, chunks()),
            heat(0, 39 * CHUNK_SIZE, chunks()),
            heat(7, 10 * CHUNK_SIZE, chunks()),
        ]);
        assert_eq!(plan.fetches, [Fetch { layer: 1, chunks: 9..10, hot: true }]);
    }

    #[test]
    fn a_layer_of_a_map_of_neons_is_fetched_whole_unless_it_is_cold() {
        let cold = LayerHeat { cold: true, ..heat(0, 40 * CHUNK_SIZE, None) };
        let plan = planned(vec![cold, heat(1, 10 * CHUNK_SIZE, None)]);
        assert_eq!(plan.fetches, [Fetch { layer: 1, chunks: 0..10, hot: false }]);
    }
}
