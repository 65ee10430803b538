//! `heatmap-v1.json`: which layers of a tenant, and which chunks of them, are worth having near at hand.
//!
//! The object is Neon's. What only we have, the chunks, is in a field of each layer that other readers ignore: `"palimpsest"`. A map is advice: what
//! it names may be gone, and what it says of sizes need not be true.

use model::{Generation, LayerName, TimelineId};
use serde::{Deserialize, Serialize};

use crate::index_part::{LayerMetadata, Unknown};

/// A tenant's heat map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeatMap {
    /// Who wrote it.
    pub generation: Generation,
    /// Its timelines.
    pub timelines: Vec<TimelineHeat>,
    /// How often it is written.
    #[serde(default)]
    pub upload_period_ms: Option<u64>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The layers of a timeline that are near at hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineHeat {
    /// Which.
    pub timeline_id: TimelineId,
    /// Whole layers first, those straight from the tail last; newest first.
    pub layers: Vec<LayerHeat>,
}

/// A layer of which something is near at hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerHeat {
    /// Which.
    pub name: LayerName,
    /// Its object.
    pub metadata: LayerMetadata,
    /// About when it was read last, in seconds since 1970.
    pub access_time: u64,
    /// Not worth fetching.
    #[serde(default)]
    pub cold: bool,
    /// Which chunks; absent in a map of Neon's, which means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub palimpsest: Option<ChunkHeat>,
}

/// Chunks of 64 KiB that are near at hand, in stretches: the first one's number, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkHeat {
    /// How often the layer was read lately.
    #[serde(default)]
    pub heat: u32,
    /// Chunks that were used again and again.
    #[serde(default)]
    pub hot: Vec<(u32, u32)>,
    /// The others.
    #[serde(default)]
    pub kept: Vec<(u32, u32)>,
}

/// Why an object is no heat map.
#[derive(Debug, thiserror::Error)]
#[error("not a heat map")]
pub struct HeatMapError(#[from] serde_json::Error);

impl HeatMap {
    /// Reads the object.
    pub fn from_json(json: &[u8]) -> Result<HeatMap, HeatMapError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// The object.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with text keys and numbers are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEONS: &str = r#"{"generation":3,"timelines":[{"timeline_id":"ffeeddccbbaa99887766554433221100","layers":[
        {"name":"000000067F00000005000040000000000000-000000067F00000005000040000100000000__0000000002000000",
         "metadata":{"file_size":8192,"generation":2},"access_time":1700000000,"cold":false}]}],
        "upload_period_ms":60000,"future":[1]}"#;

    #[test]
    fn a_map_of_neons_is_read_and_kept_as_it_is() {
        let map = HeatMap::from_json(NEONS.as_bytes()).unwrap();
        let layer = &map.timelines[0].layers[0];
        assert_eq!((layer.metadata.file_size, layer.palimpsest.as_ref()), (8192, None));
        let written: serde_json::Value = serde_json::from_slice(&map.to_json()).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(NEONS).unwrap());
    }

    #[test]
    fn chunks_come_back_as_they_were_written() {
        let mut map = HeatMap::from_json(NEONS.as_bytes()).unwrap();
        let chunks = ChunkHeat { heat: 9, hot: vec![(0, 3), (17, 1)], kept: vec![(3, 2)] };
        map.timelines[0].layers[0].palimpsest = Some(chunks);
        assert_eq!(HeatMap::from_json(&map.to_json()).unwrap(), map);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in
            [&b""[..], b"[]", b"{}", b"{\"generation\":-1,\"timelines\":[]}", b"\xff", b"{\"timelines\":7}"]
        {
            assert!(HeatMap::from_json(bad).is_err(), "{bad:?}");
        }
        let bad_name = NEONS.replace("__0000000002000000", "__x");
        assert!(HeatMap::from_json(bad_name.as_bytes()).is_err());
    }
}
