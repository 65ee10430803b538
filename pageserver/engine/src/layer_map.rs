//! Which layers a timeline has, and which of them a read of one key has to visit.
//!
//! A map never changes; adding layers makes a new one that shares the layers themselves. Today a timeline has deltas of all keys straight
//! from the tail (L0) and the image layers of its import, so two sorted lists answer every question in logarithmic time plus the layers
//! visited. Compaction, when it comes, brings deltas of narrower key ranges: they belong into this file, behind the same [`LayerMap::visit_down`].

use std::sync::Arc;

use model::{Key, KeyRange, LayerName, Lsn};

/// One layer as the map sees it.
pub trait MapLayer {
    /// What it covers.
    fn name(&self) -> &LayerName;
}

/// The layers of a timeline. `L` is shared, not copied.
#[derive(Debug)]
pub struct LayerMap<L> {
    /// By end, newest first.
    deltas: Vec<Arc<L>>,
    /// By LSN, newest first; within one LSN by start key.
    images: Vec<ImageSet<L>>,
}

/// Image layers of one LSN: their key ranges never overlap.
#[derive(Debug)]
struct ImageSet<L> {
    lsn: Lsn,
    layers: Arc<Vec<Arc<L>>>,
}

impl<L> Clone for ImageSet<L> {
    fn clone(&self) -> Self {
        ImageSet { lsn: self.lsn, layers: Arc::clone(&self.layers) }
    }
}

impl<L> Default for LayerMap<L> {
    fn default() -> Self {
        LayerMap { deltas: Vec::new(), images: Vec::new() }
    }
}

/// A stretch of a layer's LSNs that a read has to look at.
#[derive(Debug)]
pub struct Visit<'a, L> {
    /// Which layer.
    pub layer: &'a Arc<L>,
    /// Versions above this LSN count (exclusive); below it an image takes over. Meaningless for an image layer.
    pub above: Lsn,
}

impl<L: MapLayer> LayerMap<L> {
    /// The map of these layers.
    pub fn new(layers: impl IntoIterator<Item = Arc<L>>) -> LayerMap<L> {
        let mut map = LayerMap::default();
        let mut images: Vec<Arc<L>> = Vec::new();
        for layer in layers {
            if layer.name().is_delta() { map.deltas.push(layer) } else { images.push(layer) }
        }
        map.sort_deltas();
        images.sort_by(|a, b| {
            a.name().lsns().start.cmp(&b.name().lsns().start).reverse().then_with(|| a.name().cmp(b.name()))
        });
        for run in images.chunk_by(|a, b| a.name().lsns() == b.name().lsns()) {
            map.images.push(ImageSet { lsn: run[0].name().lsns().start, layers: Arc::new(run.to_vec()) });
        }
        map
    }

    /// This map with more layers. Costs a copy of the list of deltas (16 bytes each) and of the image sets touched.
    #[must_use]
    pub fn with(&self, layers: impl IntoIterator<Item = Arc<L>>) -> LayerMap<L> {
        let mut map = LayerMap { deltas: self.deltas.clone(), images: self.images.clone() };
        for layer in layers {
            if layer.name().is_delta() {
                map.deltas.push(layer);
            } else {
                map.insert_image(layer);
            }
        }
        map.sort_deltas();
        map
    }

    fn sort_deltas(&mut self) {
        self.deltas
            .sort_by_key(|layer| std::cmp::Reverse((layer.name().lsns().end, layer.name().lsns().start)));
    }

    fn insert_image(&mut self, layer: Arc<L>) {
        let lsn = layer.name().lsns().start;
        let set = match self.images.binary_search_by(|set| lsn.cmp(&set.lsn)) {
            Ok(at) => at,
            Err(at) => {
                self.images.insert(at, ImageSet { lsn, layers: Arc::default() });
                at
            }
        };
        let mut layers = self.images[set].layers.to_vec();
        let at = layers.partition_point(|other| other.name() < layer.name());
        layers.insert(at, layer);
        self.images[set].layers = Arc::new(layers);
    }

    /// The newest image layer at or below `lsn` whose range holds `key`.
    fn image_below(&self, key: Key, lsn: Lsn) -> Option<(Lsn, &Arc<L>)> {
        let first = self.images.partition_point(|set| set.lsn > lsn);
        self.images[first..].iter().find_map(|set| {
            let after = set.layers.partition_point(|layer| layer.name().keys().start <= key);
            let layer = set.layers.get(after.checked_sub(1)?)?;
            layer.name().keys().contains(&key).then_some((set.lsn, layer))
        })
    }

    /// The layers that can hold versions of `key` at or below `lsn`, newest first, ending with the image layer that makes older ones
    /// irrelevant, if there is one.
    pub fn visit_down(&self, key: Key, lsn: Lsn) -> impl Iterator<Item = Visit<'_, L>> {
        let image = self.image_below(key, lsn);
        let above = image.map_or(Lsn::INVALID, |(at, _)| at);
        // Deltas of one timeline do not overlap in LSN, so the list is sorted by start as well.
        let first = self.deltas.partition_point(|layer| layer.name().lsns().start > lsn);
        self.deltas[first..]
            .iter()
            .take_while(move |layer| layer.name().lsns().end.0 > above.0 + 1)
            .filter(move |layer| layer.name().keys().contains(&key))
            .map(move |layer| Visit { layer, above })
            .chain(image.map(move |(at, layer)| Visit { layer, above: at }))
    }

    /// Every layer that can hold versions of keys of `keys` at or below `lsn`: deltas newest first, then images newest first.
    pub fn overlapping(&self, keys: &KeyRange, lsn: Lsn) -> impl Iterator<Item = &Arc<L>> {
        let overlaps = move |layer: &&Arc<L>| {
            let covered = layer.name().keys();
            covered.start < keys.end && keys.start < covered.end && layer.name().lsns().start <= lsn
        };
        self.deltas.iter().chain(self.images.iter().flat_map(|set| set.layers.iter())).filter(overlaps)
    }

    /// Every layer.
    pub fn all(&self) -> impl Iterator<Item = &Arc<L>> {
        self.deltas.iter().chain(self.images.iter().flat_map(|set| set.layers.iter()))
    }

    /// Deltas, newest first.
    pub fn deltas(&self) -> &[Arc<L>] {
        &self.deltas
    }

    /// How many layers there are.
    pub fn len(&self) -> usize {
        self.deltas.len() + self.images.iter().map(|set| set.layers.len()).sum::<usize>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.images.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Named(LayerName);

    impl MapLayer for Named {
        fn name(&self) -> &LayerName {
            &self.0
        }
    }

    fn key(number: u32) -> Key {
        Key { field6: number, ..Key::MIN }
    }

    fn image(from: u32, to: u32, lsn: u64) -> Arc<Named> {
        Arc::new(Named(LayerName::Image { keys: key(from)..key(to), lsn: Lsn(lsn) }))
    }

    fn l0(from: u64, to: u64) -> Arc<Named> {
        Arc::new(Named(LayerName::Delta { keys: Key::ALL, lsns: Lsn(from)..Lsn(to) }))
    }

    fn visits(map: &LayerMap<Named>, asked: u32, lsn: u64) -> Vec<LayerName> {
        map.visit_down(key(asked), Lsn(lsn)).map(|visit| visit.layer.0.clone()).collect()
    }

    #[test]
    fn a_read_goes_down_to_the_newest_image_of_its_key() {
        let layers = [image(0, 10, 100), image(10, 20, 100), l0(101, 151), l0(151, 201), l0(201, 251)];
        let map = LayerMap::new(layers.clone());
        assert_eq!(
            visits(&map, 12, 210),
            [&layers[4], &layers[3], &layers[2], &layers[1]].map(|l| l.0.clone())
        );
        assert_eq!(visits(&map, 3, 150), [&layers[2], &layers[0]].map(|l| l.0.clone()));
        assert_eq!(visits(&map, 3, 100), [layers[0].0.clone()]);
        assert_eq!(visits(&map, 3, 99), []);
        assert_eq!(visits(&map, 25, 160), [&layers[3], &layers[2]].map(|l| l.0.clone()));
    }

    #[test]
    fn an_image_within_a_delta_hides_what_is_older_than_it() {
        let map = LayerMap::new([l0(101, 201), l0(201, 301), image(0, 10, 250)]);
        let found: Vec<(LayerName, Lsn)> =
            map.visit_down(key(1), Lsn(260)).map(|v| (v.layer.0.clone(), v.above)).collect();
        assert_eq!(found, [(l0(201, 301).0.clone(), Lsn(250)), (image(0, 10, 250).0.clone(), Lsn(250))]);
    }

    proptest! {
        #[test]
        fn adding_layers_one_by_one_gives_the_same_map(cuts in prop::collection::btree_set(1u64..500, 2..20), asked in 0u32..30, lsn in 0u64..520) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let mut layers: Vec<Arc<Named>> = cuts.windows(2).map(|pair| l0(pair[0], pair[1])).collect();
            layers.extend([image(0, 7, 40), image(7, 20, 40), image(3, 9, 90)]);
            let whole = LayerMap::new(layers.clone());
            let grown = layers.into_iter().rev().fold(LayerMap::default(), |map, layer| map.with([layer]));
            prop_assert_eq!(visits(&whole, asked, lsn), visits(&grown, asked, lsn));
            prop_assert_eq!(whole.len(), grown.len());
        }
    }
}
