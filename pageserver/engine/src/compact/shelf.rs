//! Shelves: stretches of the key space whose layers are looked at, and rewritten, together.
//!
//! Deltas whose keys overlap stand on one shelf, so a job that rewrites some of a shelf's deltas never meets those of another. Neighbours stand
//! together until there is a shelf's worth of bytes. Whatever is written is cut where shelves meet, and in the middle of shelves that have grown too
//! large: so shelves stay apart, and large ones come apart, without anything but the layers' own names to remember it by.
//!
//! An image reaches up to where the next one begins, over keys that have no value yet. When much is loaded there, it stands on several shelves: each of them gets new images of its own keys in time, and the old one goes when
//! these have taken over all of it.

use std::collections::BTreeMap;

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

/// Layers whose keys lie between the same two places; images may reach beyond these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelf {
    /// From the first key of any of its layers to the last, or where an image reaches beyond, to the next shelf.
    pub keys: KeyRange,
    /// In order of start key. Of an image that begins on an earlier shelf the size is none: its bytes are counted once.
    pub layers: Vec<LayerFacts>,
}

impl Shelf {
    /// Its deltas, newest first.
    pub fn deltas(&self) -> Vec<&LayerFacts> {
        let mut deltas: Vec<&LayerFacts> = self.layers.iter().filter(|layer| layer.name.is_delta()).collect();
        deltas.sort_by_key(|layer| std::cmp::Reverse((layer.name.lsns().end, layer.name.lsns().start)));
        deltas
    }

    /// Whether a layer is on no other shelf.
    pub fn has_all_of(&self, layer: &LayerFacts) -> bool {
        is_within(layer.name.keys(), &self.keys)
    }

    /// The image layers that a read of its keys as of `at` can get to.
    pub fn newest_images(&self, at: Lsn) -> Vec<&LayerFacts> {
        let images =
            self.layers.iter().filter(|layer| !layer.name.is_delta() && layer.name.lsns().start <= at);
        let mut images: Vec<&LayerFacts> = images.collect();
        images.sort_by_key(|layer| std::cmp::Reverse(layer.name.lsns().start));
        let mut seen: Vec<&LayerFacts> = Vec::new();
        for image in images {
            let newer = seen.iter().map(|layer| layer.name.keys());
            if !crate::retention::covered(&self.part_of(image), newer) {
                seen.push(image);
            }
        }
        seen
    }

    /// What images weigh that a read ends at. Where none of them begins here, so that there may be nothing in them of these keys, the lowest deltas stand for
    /// what they will be.
    pub fn weight_of(&self, images: &[&LayerFacts]) -> u64 {
        let begins_here = |image: &&LayerFacts| image.name.keys().start >= self.keys.start;
        if images.is_empty() || images.iter().any(begins_here) {
            total(images.iter().copied())
        } else {
            total(self.lowest_deltas())
        }
    }

    /// One layer of deltas, of the oldest of all keys. In order of start key.
    fn lowest_deltas(&self) -> Vec<&LayerFacts> {
        let mut lowest: BTreeMap<Key, &LayerFacts> = BTreeMap::new();
        for delta in self.deltas().into_iter().rev() {
            let keys = delta.name.keys();
            let before = lowest.range(..keys.end).next_back();
            if before.is_none_or(|(_, other)| is_apart(other.name.keys(), keys)) {
                lowest.insert(keys.start, delta);
            }
        }
        lowest.into_values().collect()
    }

    fn part_of(&self, layer: &LayerFacts) -> KeyRange {
        let keys = layer.name.keys();
        keys.start.max(self.keys.start)..keys.end.min(self.keys.end)
    }

    /// Where to cut it when it has grown to more than twice `bytes`: at the start of a layer, wherever about so many have come together of images, or of deltas that
    /// were loaded into the room of one.
    fn inner_cuts(&self, bytes: u64) -> Vec<Key> {
        if total(&self.layers) <= 2 * bytes {
            return Vec::new(); // most shelves, each time
        }
        let mut images = self.newest_images(Lsn::MAX);
        images.sort_by_key(|layer| layer.name.keys().start);
        let mut cuts = self.cuts_among(&images, bytes);
        let room_of = |delta: &&LayerFacts| {
            images.partition_point(|image| image.name.keys().start <= delta.name.keys().start)
        };
        for loaded in self.lowest_deltas().chunk_by(|a, b| room_of(a) == room_of(b)) {
            cuts.extend(self.cuts_among(loaded, bytes));
        }
        cuts
    }

    fn cuts_among(&self, layers: &[&LayerFacts], bytes: u64) -> Vec<Key> {
        let mut cuts = Vec::new();
        let mut since = 0;
        let grown = if total(layers.iter().copied()) > 2 * bytes { layers } else { &[] };
        for layer in grown {
            if since >= bytes && layer.name.keys().start > self.keys.start {
                cuts.push(layer.name.keys().start);
                since = 0;
            }
            since += layer.size;
        }
        cuts
    }

    /// Where its deltas end when there are enough of them for a shelf: what comes behind them shall not stand with them because both have the last key.
    fn full_to(&self, bytes: u64) -> Option<Key> {
        let end = self
            .layers
            .iter()
            .filter(|layer| layer.name.is_delta())
            .map(|layer| layer.name.keys().end)
            .max()?;
        let images = self.layers.iter().filter(|layer| !layer.name.is_delta() && layer.name.keys().end > end);
        let image = images.map(|layer| layer.name.keys().start).max();
        let is_since = |layer: &&LayerFacts| {
            layer.name.is_delta() && image.is_none_or(|image| layer.name.keys().start >= image)
        };
        let since = total(self.layers.iter().filter(is_since));
        let least = if image.is_some() { ROOM * bytes } else { bytes };
        (since >= least).then_some(end)
    }
}

/// Sums sizes.
pub fn total<'a>(layers: impl IntoIterator<Item = &'a LayerFacts>) -> u64 {
    layers.into_iter().map(|layer| layer.size).sum()
}

/// Whether two ranges share no key.
pub fn is_apart(a: &KeyRange, b: &KeyRange) -> bool {
    a.end <= b.start || b.end <= a.start
}

/// Whether a range has no key that `all` has not.
pub fn is_within(keys: &KeyRange, all: &KeyRange) -> bool {
    all.start <= keys.start && keys.end <= all.end
}

/// Layers in groups that have no key in common. In order of start key.
pub fn groups(layers: &[LayerFacts]) -> Vec<Vec<&LayerFacts>> {
    let mut sorted: Vec<&LayerFacts> = layers.iter().collect();
    sorted.sort_by_key(|layer| layer.name.keys().start);
    let mut groups: Vec<Vec<&LayerFacts>> = Vec::new();
    let mut end = Key::MIN;
    for layer in sorted {
        let keys = layer.name.keys();
        match groups.last_mut() {
            Some(group) if keys.start < end => group.push(layer),
            _ => groups.push(vec![layer]),
        }
        end = end.max(keys.end);
    }
    groups
}

/// Puts layers, L0s excepted, onto shelves of at least `bytes` where there are neighbours enough.
pub fn shelves(layers: &[LayerFacts], bytes: u64) -> Vec<Shelf> {
    let mut sorted: Vec<&LayerFacts> = layers.iter().collect();
    sorted.sort_by_key(|layer| (layer.name.keys().start, layer.name.is_delta()));
    let mut shelves = Vec::new();
    let mut filling: Option<Filling> = None;
    for layer in sorted {
        let open = filling.get_or_insert_with(|| Filling::from(layer.name.keys().start));
        if open.may_end_before(layer, bytes) {
            shelves.push(open.end_before(layer.name.keys().start));
        }
        open.take(layer);
    }
    shelves.extend(filling.map(|filling| filling.shelf));
    shelves
}

/// So many shelves' worth within the keys of one image come apart, though it stands on both shelves then.
const ROOM: u64 = 2;

/// A shelf to which layers come in order of start key, an image before deltas.
struct Filling {
    shelf: Shelf,
    /// Bytes of all that begins on it.
    held: u64,
    deltas_end: Key,
    /// Where images end that reach up to the last layer, and how much there was when they had come.
    images: Vec<(Key, u64)>,
}

impl Filling {
    fn from(key: Key) -> Filling {
        let shelf = Shelf { keys: key..key, layers: Vec::new() };
        Filling { shelf, held: 0, deltas_end: key, images: Vec::new() }
    }

    /// Whether a shelf may begin with this layer. Within the keys of an image it takes more than usual, for then two shelves must have got new images
    /// before that one goes; and less where newer images meet, which is where shelves came apart before.
    fn may_end_before(&mut self, layer: &LayerFacts, bytes: u64) -> bool {
        let key = layer.name.keys().start;
        self.images.retain(|(end, _)| *end >= key);
        let is_edge = !layer.name.is_delta() || self.images.iter().any(|(end, _)| *end == key);
        let across = self.images.iter().filter(|(end, _)| *end > key);
        let is_enough = match across.map(|(_, held)| self.held - held).min() {
            None => self.held >= bytes,
            Some(since) if is_edge => since >= bytes / 2,
            Some(since) => since >= ROOM * bytes,
        };
        is_enough && key >= self.deltas_end && key > self.shelf.keys.start
    }

    /// Ends this shelf, and begins the next one.
    fn end_before(&mut self, key: Key) -> Shelf {
        let mut next = Filling::from(key);
        for image in self.shelf.layers.iter().filter(|layer| layer.name.keys().end > key) {
            next.take(&LayerFacts { size: 0, ..image.clone() });
        }
        let mut ended = std::mem::replace(self, next).shelf;
        ended.keys.end = ended.keys.end.min(key);
        ended
    }

    fn take(&mut self, layer: &LayerFacts) {
        let end = layer.name.keys().end;
        self.held += layer.size;
        if layer.name.is_delta() {
            self.deltas_end = self.deltas_end.max(end);
        } else {
            self.images.push((end, self.held));
        }
        self.shelf.keys.end = self.shelf.keys.end.max(end);
        self.shelf.layers.push(layer.clone());
    }
}

/// Where layers that are written from now on end, so that the next shelves are no wider than these, and those that hold more than twice `bytes` come
/// apart.
pub fn cuts(shelves: &[Shelf], bytes: u64) -> Vec<Key> {
    let mut cuts = Vec::new();
    for (at, shelf) in shelves.iter().enumerate() {
        if at > 0 {
            cuts.push(shelf.keys.start);
        }
        cuts.extend(shelf.inner_cuts(bytes));
        cuts.extend(shelf.full_to(bytes));
    }
    cuts.sort_unstable();
    cuts.dedup();
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

    fn delta(from: u32, to: u32, size: u64) -> LayerFacts {
        let name = LayerName::Delta { keys: key(from)..key(to), lsns: Lsn(11)..Lsn(21) };
        LayerFacts { name, ..layer(from, to, size) }
    }

    #[test]
    fn what_is_loaded_within_the_keys_of_an_image_stands_on_shelves_of_its_own_with_that_image_on_each() {
        let loaded = (0..5).map(|n| delta(20 + n * 10, 30 + n * 10, 100));
        let wide: Vec<LayerFacts> =
            [layer(0, 10, 50), layer(10, 1_000, 50)].into_iter().chain(loaded).collect();
        let found = shelves(&wide, 100);
        let keys: Vec<KeyRange> = found.iter().map(|shelf| shelf.keys.clone()).collect();
        assert_eq!(keys, [key(0)..key(40), key(40)..key(60), key(60)..key(1_000)]);
        let image_on = |shelf: &Shelf| {
            shelf.layers.iter().find(|layer| layer.name == wide[1].name).map(|layer| layer.size)
        };
        assert_eq!(found.iter().map(image_on).collect::<Vec<_>>(), [Some(50), Some(0), Some(0)]);
        assert!(!found[1].has_all_of(&wide[1]) && found[1].has_all_of(&wide[4]));
        // Where it begins it weighs what it has; elsewhere what was loaded tells what images will weigh.
        let weight = |shelf: &Shelf| shelf.weight_of(&shelf.newest_images(Lsn::MAX));
        assert_eq!(found.iter().map(weight).collect::<Vec<_>>(), [100, 200, 100]);
        assert_eq!(groups(&wide).iter().map(Vec::len).collect::<Vec<_>>(), [1, 6]);

        // With images of its own, a shelf stays one, and is done with the old image.
        let newer = |from, to| LayerFacts {
            name: LayerName::Image { keys: key(from)..key(to), lsn: Lsn(20) },
            ..layer(from, to, 100)
        };
        let mut imaged = wide.clone();
        imaged.retain(|layer| !is_within(layer.name.keys(), &(key(40)..key(60))));
        imaged.extend([newer(40, 50), newer(50, 60)]);
        let found = shelves(&imaged, 100);
        let keys: Vec<KeyRange> = found.iter().map(|shelf| shelf.keys.clone()).collect();
        assert_eq!(keys, [key(0)..key(40), key(40)..key(50), key(50)..key(60), key(60)..key(1_000)]);
        let newest: Vec<&LayerName> =
            found[1].newest_images(Lsn::MAX).iter().map(|layer| &layer.name).collect();
        assert_eq!(newest, [&newer(40, 50).name]);
    }

    #[test]
    fn a_shelf_that_is_full_ends_with_its_deltas() {
        let ends = |sizes: [u64; 2]| {
            let layers = [layer(0, 1_000, 50), delta(20, 30, sizes[0]), delta(29, 40, sizes[1])];
            cuts(&shelves(&layers, 100), 100)
        };
        assert_eq!(ends([100, 90]), []);
        assert_eq!(ends([100, 100]), [key(40)]);
        let branch = |size| cuts(&shelves(&[delta(20, 30, size)], 100), 100);
        assert_eq!((branch(90), branch(100)), (vec![], vec![key(30)]));
    }

    #[test]
    fn what_grows_all_over_the_room_of_an_image_is_cut_there() {
        let layers = [layer(0, 1_000, 50), delta(20, 40, 120), delta(40, 60, 120), delta(60, 80, 120)];
        let over = LayerFacts {
            name: LayerName::Delta { keys: key(20)..key(80), lsns: Lsn(21)..Lsn(31) },
            ..delta(20, 80, 30)
        };
        let all = [&layers[..], &[over]].concat();
        let found = shelves(&all, 100);
        assert_eq!((found.len(), cuts(&found, 100)), (1, vec![key(40), key(60), key(80)]));
    }

    proptest! {
        #[test]
        fn shelves_share_no_delta_and_hold_every_layer(
            ranges in prop::collection::vec((0u32..100, 1u32..20, 1u64..50, any::<bool>()), 0..40), bytes in 1u64..100,
        ) {
            let of = |(from, keys, size, is_delta)| if is_delta { delta(from, from + keys, size) } else { layer(from, from + keys, size) };
            let layers: Vec<LayerFacts> = ranges.into_iter().map(of).collect();
            let found = shelves(&layers, bytes);
            prop_assert_eq!(found.iter().map(|shelf| total(&shelf.layers)).sum::<u64>(), total(&layers));
            for pair in found.windows(2) {
                prop_assert!(pair[0].keys.end <= pair[1].keys.start);
            }
            for layer in &layers {
                let on: Vec<&Shelf> = found.iter().filter(|shelf| shelf.layers.iter().any(|other| other.name == layer.name)).collect();
                let parts: Vec<KeyRange> = on.iter().map(|shelf| shelf.part_of(layer)).collect();
                prop_assert!(crate::retention::covered(layer.name.keys(), parts.iter()));
                prop_assert!(on.len() == 1 || !layer.name.is_delta());
                prop_assert!(parts.iter().all(|part| part.start < part.end));
            }
            // What is written is cut there.
            let cut = cuts(&found, bytes);
            prop_assert!(found.iter().skip(1).all(|shelf| cut.contains(&shelf.keys.start)));
        }
    }
}
