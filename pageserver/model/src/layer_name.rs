//! Names of layers. A layer's name says which keys and which LSNs it covers; the index and the bucket use it.
//!
//! ```text
//! image   <start key>-<end key>__<lsn>
//! delta   <start key>-<end key>__<start lsn>-<end lsn>
//! ```
//!
//! Keys are 36 hexadecimal digits, LSNs 16; ends are exclusive. An object's name adds `-<generation>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Generation, Key, KeyRange, Lsn, LsnRange};

/// The canonical name of a layer: its identity within a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LayerName {
    /// Whole values of `keys` as of `lsn`.
    Image {
        /// What it covers. In dense key space a key of the range that is not in the layer does not exist at `lsn`.
        keys: KeyRange,
        /// As of when.
        lsn: Lsn,
    },
    /// Changes of `keys` within `lsns`.
    Delta {
        /// What it covers.
        keys: KeyRange,
        /// From the first change to just past the last.
        lsns: LsnRange,
    },
}

impl LayerName {
    /// The keys it covers.
    pub fn keys(&self) -> &KeyRange {
        match self {
            LayerName::Image { keys, .. } | LayerName::Delta { keys, .. } => keys,
        }
    }

    /// The LSNs it covers; an image at L covers [L, L+1).
    pub fn lsns(&self) -> LsnRange {
        match self {
            LayerName::Image { lsn, .. } => *lsn..Lsn(lsn.0 + 1),
            LayerName::Delta { lsns, .. } => lsns.clone(),
        }
    }

    /// Whether it holds changes rather than whole values.
    pub fn is_delta(&self) -> bool {
        matches!(self, LayerName::Delta { .. })
    }

    /// Whether it is a delta straight from the tail: all keys, a stretch of LSNs.
    pub fn is_l0(&self) -> bool {
        matches!(self, LayerName::Delta { keys, .. } if *keys == Key::ALL)
    }

    /// Its object's name when `generation` wrote it.
    pub fn in_generation(self, generation: Generation) -> LayerObjectName {
        LayerObjectName { layer: self, generation: Some(generation) }
    }
}

impl PartialOrd for LayerName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for LayerName {
    /// As their texts sort, which is by keys, then LSNs.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let sort_key = |name: &LayerName| {
            let lsns = name.lsns();
            (name.keys().start, name.keys().end, lsns.start, name.is_delta().then_some(lsns.end))
        };
        sort_key(self).cmp(&sort_key(other))
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys();
        write!(f, "{}-{}__", keys.start, keys.end)?;
        match self {
            LayerName::Image { lsn, .. } => write!(f, "{:016X}", lsn.0),
            LayerName::Delta { lsns, .. } => write!(f, "{:016X}-{:016X}", lsns.start.0, lsns.end.0),
        }
    }
}

/// A text that is not a layer's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a layer name")]
pub struct ParseLayerNameError(String);

fn parse_lsn16(text: &str) -> Option<Lsn> {
    let wellformed = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    wellformed.then(|| u64::from_str_radix(text, 16).ok().map(Lsn)).flatten()
}

fn parse_layer_name(text: &str) -> Option<LayerName> {
    let (keys, lsns) = text.split_once("__")?;
    let (start, end) = keys.split_once('-')?;
    let keys: KeyRange = start.parse().ok()?..end.parse().ok()?;
    let name = match lsns.split_once('-') {
        None => LayerName::Image { keys, lsn: parse_lsn16(lsns).filter(|lsn| *lsn < Lsn::MAX)? },
        Some((start, end)) => LayerName::Delta { keys, lsns: parse_lsn16(start)?..parse_lsn16(end)? },
    };
    (!name.keys().is_empty() && !name.lsns().is_empty()).then_some(name)
}

impl FromStr for LayerName {
    type Err = ParseLayerNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_layer_name(text).ok_or_else(|| ParseLayerNameError(text.into()))
    }
}

impl Serialize for LayerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a layer's object in the bucket: the layer, and who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerObjectName {
    /// Which layer.
    pub layer: LayerName,
    /// Its writer; `None` only for objects older than generations.
    pub generation: Option<Generation>,
}

impl fmt::Display for LayerObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layer.fmt(f)?;
        self.generation.map_or(Ok(()), |generation| write!(f, "-{generation}"))
    }
}

impl FromStr for LayerObjectName {
    type Err = ParseLayerNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(layer) = parse_layer_name(text) {
            return Ok(LayerObjectName { layer, generation: None });
        }
        text.rsplit_once('-')
            .and_then(|(layer, generation)| Some((parse_layer_name(layer)?, generation.parse().ok()?)))
            .map(|(layer, generation)| LayerObjectName { layer, generation: Some(generation) })
            .ok_or_else(|| ParseLayerNameError(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const L0: &str = "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000002000001-0000000002000029";
    const IMAGE: &str =
        "000000067F00000005000040000000000000-000000067F00000005000040000100000000__0000000002000000";

    #[test]
    fn names_say_what_they_cover() {
        let delta: LayerName = L0.parse().unwrap();
        assert!(delta.is_l0());
        assert_eq!(delta.lsns(), Lsn(0x2000001)..Lsn(0x2000029));
        let image: LayerName = IMAGE.parse().unwrap();
        assert!(!image.is_delta() && !image.is_l0());
        assert_eq!(image.lsns(), Lsn(0x2000000)..Lsn(0x2000001));
    }

    #[test]
    fn an_object_name_carries_its_writer() {
        let object: LayerObjectName = format!("{L0}-0000001f").parse().unwrap();
        assert_eq!(object.generation, Some(Generation(0x1F)));
        assert_eq!(object.to_string(), format!("{L0}-0000001f"));
        assert_eq!(IMAGE.parse::<LayerObjectName>().unwrap().generation, None);
        let image: LayerObjectName = format!("{IMAGE}-00000002").parse().unwrap();
        assert!(!image.layer.is_delta());
    }

    #[test]
    fn empty_and_backward_ranges_are_no_layers() {
        let key = Key::MIN;
        for bad in [
            format!("{key}-{key}__0000000002000000"),
            format!("{}-{key}__0000000002000000", Key::MAX),
            format!("{key}-{}__0000000002000001-0000000002000001", Key::MAX),
            format!("{key}-{}__FFFFFFFFFFFFFFFF", Key::MAX),
            L0[1..].to_string(),
            format!("{L0}-1"),
            String::new(),
        ] {
            assert!(bad.parse::<LayerName>().is_err(), "{bad} was accepted");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(a: [u8; 18], b: [u8; 18], start: u64, length in 1u64..1 << 40, delta: bool) {
            let (a, b) = (Key::from_bytes(&a), Key::from_bytes(&b));
            prop_assume!(a != b && start < u64::MAX - (1 << 40));
            let keys = a.min(b)..a.max(b);
            let name = if delta {
                LayerName::Delta { keys, lsns: Lsn(start)..Lsn(start + length) }
            } else {
                LayerName::Image { keys, lsn: Lsn(start) }
            };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }
    }
}
