//! Shelves: stretches of the key space whose layers are looked at, and rewritten, together.
//!
//! Layers whose keys overlap stand on one shelf, so a job that rewrites some of a shelf's layers never meets the layers of another. Neighbours stand
//! together until there is a shelf's worth of bytes. Whatever is written is cut where shelves meet, and in the middle of shelves that have grown too
//! large: so shelves stay apart, and large ones come apart, without anything but the layers' own names to remember it by.

use model::{Key, KeyRange, LayerName, Lsn};

use crate::layer_map::MapLayer;

/// A layer as the policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFacts {
    /// What it covers.
    pub name: LayerName,
    /// Bytes of its object.
    pub size: u64,
    /// Of a delta that was rewritten so that only what these points read is left in it.
    pub trimmed_for: Option<Vec<Lsn>>,
    /// How often it was read lately.
    pub heat: u32,
}

impl MapLayer for LayerFacts {
    fn name(&self) -> &LayerName {
        &self.name
    }
}

/// Layers whose keys lie between the same two places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelf {
    /// From the first key of any of its layers to the last.
    pub keys: KeyRange,
    /// In order of start key.
    pub layers: Vec<LayerFacts>,
}

impl Shelf {
    /// Its deltas, newest first.
    pub fn deltas(&self) -> Vec<&LayerFacts> {
        let mut deltas: Vec<&LayerFacts> = self.layers.iter().filter(|layer| layer.name.is_delta()).collect();
        deltas.sort_by_key(|layer| std::cmp::Reverse((layer.name.lsns().end, layer.name.lsns().start)));
        deltas
    }

    /// The image layers that a read as of `at` can get to.
    pub fn newest_images(&self, at: Lsn) -> Vec<&LayerFacts> {
        let images =
            self.layers.iter().filter(|layer| !layer.name.is_delta() && layer.name.lsns().start <= at);
        let mut images: Vec<&LayerFacts> = images.collect();
        images.sort_by_key(|layer| std::cmp::Reverse(layer.name.lsns().start));
        let mut seen: Vec<&LayerFacts> = Vec::new();
        for image in images {
            let newer: Vec<&KeyRange> = seen.iter().map(|layer| layer.name.keys()).collect();
            if !crate::retention::covered(image.name.keys(), newer.into_iter()) {
                seen.push(image);
            }
        }
        seen
    }

    /// Where to cut it: at the start of a layer, wherever about `bytes` of images or, without any, of deltas have come together.
    fn inner_cuts(&self, bytes: u64) -> Vec<Key> {
        let images = self.newest_images(Lsn::MAX);
        let mut layers: Vec<&LayerFacts> = if images.is_empty() { self.deltas() } else { images };
        layers.sort_by_key(|layer| layer.name.keys().start);
        let mut cuts = Vec::new();
        let mut since = 0;
        for layer in layers {
            if since >= bytes && layer.name.keys().start > self.keys.start {
                cuts.push(layer.name.keys().start);
                since = 0;
            }
            since += layer.size;
        }
        cuts
    }
}

/// Sums sizes.
pub fn total<'a>(layers: impl IntoIterator<Item = &'a LayerFacts>) -> u64 {
    layers.into_iter().map(|layer| layer.size).sum()
}

/// Puts layers, L0s excepted, onto shelves of at least `bytes` where there are neighbours enough.
pub fn shelves(layers: &[LayerFacts], bytes: u64) -> Vec<Shelf> {
    let mut sorted: Vec<&LayerFacts> = layers.iter().collect();
    sorted.sort_by_key(|layer| layer.name.keys().start);
    let mut shelves: Vec<Shelf> = Vec::new();
    let mut held = 0;
    for layer in sorted {
        let keys = layer.name.keys();
        match shelves.last_mut() {
            Some(shelf) if keys.start < shelf.keys.end || held < bytes => {
                shelf.keys.end = shelf.keys.end.max(keys.end);
                shelf.layers.push(layer.clone());
                held += layer.size;
            }
            _ => {
                held = layer.size;
                shelves.push(Shelf { keys: keys.clone(), layers: vec![layer.clone()] });
            }
        }
    }
    shelves
}

/// Where layers that are written from now on end, so that the next shelves are no wider than these, and those that hold more than twice `bytes` come
/// apart.
pub fn cuts(shelves: &[Shelf], bytes: u64) -> Vec<Key> {
    let mut cuts = Vec::new();
    for (at, shelf) in shelves.iter().enumerate() {
        if at > 0 {
            cuts.push(shelf.keys.start);
        }
        if total(shelf.newest_images(Lsn::MAX)).max(shelf.deltas().first().map_or(0, |delta| delta.size))
            > 2 * bytes
        {
            cuts.extend(shelf.inner_cuts(bytes));
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u32) -> Key {
        Key { field6: number, ..Key::MIN }
    }

    fn layer(from: u32, to: u32, size: u64) -> LayerFacts {
        LayerFacts {
            name: LayerName::Image { keys: key(from)..key(to), lsn: Lsn(8) },
            size,
            trimmed_for: None,
            heat: 0,
        }
    }

    #[test]
    fn neighbours_stand_together_until_there_is_a_shelf_of_them_and_layers_that_overlap_always() {
        let layers =
            [layer(0, 10, 30), layer(10, 20, 30), layer(20, 30, 90), layer(25, 40, 5), layer(50, 60, 1)];
        let found: Vec<usize> = shelves(&layers, 50).iter().map(|shelf| shelf.layers.len()).collect();
        assert_eq!(found, [2, 2, 1]);
        assert_eq!(cuts(&shelves(&layers, 50), 50), [key(20), key(50)]);
        assert_eq!(shelves(&layers, 1_000).len(), 1);
    }

    #[test]
    fn a_shelf_that_has_grown_is_cut_where_its_images_meet() {
        let layers: Vec<LayerFacts> = (0..10).map(|n| layer(n * 10, n * 10 + 10, 30)).collect();
        let one = [Shelf { keys: key(0)..key(100), layers }];
        assert_eq!(cuts(&one, 100), [key(40), key(80)]);
    }

    proptest! {
        #[test]
        fn shelves_share_no_key_and_hold_every_layer(ranges in prop::collection::vec((0u32..100, 1u32..20, 1u64..50), 0..40), bytes in 1u64..100) {
            let layers: Vec<LayerFacts> = ranges.into_iter().map(|(from, keys, size)| layer(from, from + keys, size)).collect();
            let found = shelves(&layers, bytes);
            prop_assert_eq!(found.iter().map(|shelf| shelf.layers.len()).sum::<usize>(), layers.len());
            for pair in found.windows(2) {
                prop_assert!(pair[0].keys.end <= pair[1].keys.start);
            }
            // What is written is cut there, so the same shelves are found again with it.
            let cut = cuts(&found, u64::MAX / 4);
            prop_assert_eq!(cut.len() + usize::from(!found.is_empty()), found.len());
        }
    }
}
