//! Which layers a timeline has, and which of them a read of one key has to visit.
//!
//! A map never changes; adding and removing layers makes a new one that shares the layers themselves. Deltas straight from the tail (L0) hold
//! all keys: they are a short list, newest first, and one more costs a copy of that list. All other layers have ranges of keys of their own and are
//! in a search tree by key ([`ByKey`]), which is made anew when compaction replaces layers, once for each of its jobs.
//!
//! Whoever adds layers sees to it that for each key the deltas that cover it do not overlap in LSN: then newest first is one order for all of them.

use std::collections::HashSet;
use std::sync::Arc;

use model::{Key, KeyRange, LayerName, Lsn};
use smallvec::SmallVec;

/// One layer as the map sees it.
pub trait MapLayer {
    /// What it covers.
    fn name(&self) -> &LayerName;
}

/// The layers of a timeline. `L` is shared, not copied.
#[derive(Debug)]
pub struct LayerMap<L> {
    /// Deltas of all keys, newest first.
    l0: Arc<[Arc<L>]>,
    rest: Arc<ByKey<L>>,
}

impl<L> Default for LayerMap<L> {
    fn default() -> Self {
        LayerMap { l0: Arc::from([]), rest: Arc::new(ByKey { layers: Vec::new(), ends: Vec::new() }) }
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

/// Layers to visit, newest first. Reads are kept shallow, so they seldom leave the stack.
pub type Visits<'a, L> = SmallVec<[Visit<'a, L>; 12]>;

impl<L: MapLayer> LayerMap<L> {
    /// The map of these layers.
    pub fn new(layers: impl IntoIterator<Item = Arc<L>>) -> LayerMap<L> {
        LayerMap::default().with(layers)
    }

    /// This map with more layers.
    #[must_use]
    pub fn with(&self, layers: impl IntoIterator<Item = Arc<L>>) -> LayerMap<L> {
        self.edited(layers, &HashSet::new())
    }

    /// This map with more layers and without those named. Costs a copy of the list of L0s; and a pass over all others when any of them changes.
    #[must_use]
    pub fn edited(&self, add: impl IntoIterator<Item = Arc<L>>, remove: &HashSet<LayerName>) -> LayerMap<L> {
        let (mut l0, mut rest): (Vec<_>, Vec<_>) = add.into_iter().partition(|layer| layer.name().is_l0());
        l0.extend(self.l0.iter().filter(|layer| !remove.contains(layer.name())).cloned());
        l0.sort_by_key(|layer| std::cmp::Reverse((layer.name().lsns().end, layer.name().lsns().start)));
        let changes_rest = !rest.is_empty() || remove.iter().any(|name| !name.is_l0());
        let rest = if changes_rest {
            rest.extend(self.rest.layers.iter().filter(|layer| !remove.contains(layer.name())).cloned());
            Arc::new(ByKey::new(rest))
        } else {
            Arc::clone(&self.rest)
        };
        LayerMap { l0: l0.into(), rest }
    }

    /// The layers that can hold versions of `key` at or below `lsn`, newest first, ending with the image layer that makes older ones
    /// irrelevant, if there is one.
    pub fn visit_down(&self, key: Key, lsn: Lsn) -> Visits<'_, L> {
        let mut image: Option<&Arc<L>> = None;
        let mut deltas: SmallVec<[&Arc<L>; 12]> =
            self.l0.iter().filter(|layer| layer.name().lsns().start <= lsn).collect();
        self.rest.covering(key, &mut |layer| {
            let start = layer.name().lsns().start;
            if start > lsn {
                // too new
            } else if layer.name().is_delta() {
                deltas.push(layer);
            } else if image.is_none_or(|found| found.name().lsns().start < start) {
                image = Some(layer);
            }
        });
        let above = image.map_or(Lsn::INVALID, |image| image.name().lsns().start);
        deltas.retain(|layer| layer.name().lsns().end.0 > above.0 + 1);
        deltas.sort_by_key(|layer| std::cmp::Reverse((layer.name().lsns().end, layer.name().lsns().start)));
        deltas.into_iter().chain(image).map(|layer| Visit { layer, above }).collect()
    }

    /// Every layer that can hold versions of keys of `keys` at or below `lsn`, in no order.
    pub fn overlapping(&self, keys: &KeyRange, lsn: Lsn) -> Vec<&Arc<L>> {
        let mut found: Vec<&Arc<L>> = self.l0.iter().collect();
        self.rest.overlapping(keys, &mut |layer| found.push(layer));
        found.retain(|layer| layer.name().lsns().start <= lsn);
        found
    }

    /// Every layer.
    pub fn all(&self) -> impl Iterator<Item = &Arc<L>> {
        self.l0.iter().chain(&self.rest.layers)
    }

    /// Deltas straight from the tail, newest first.
    pub fn l0(&self) -> &[Arc<L>] {
        &self.l0
    }

    /// All layers but L0s, by start key.
    pub fn by_key(&self) -> &[Arc<L>] {
        &self.rest.layers
    }

    /// How many layers there are.
    pub fn len(&self) -> usize {
        self.l0.len() + self.rest.layers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Layers sorted by start key. The sorted list is also a balanced search tree, whose root is the middle element, and so on down; each node knows
/// the highest end below it. So all layers that cover a key are found in logarithmic time for each.
#[derive(Debug)]
struct ByKey<L> {
    layers: Vec<Arc<L>>,
    /// Of each node, the highest end of a key range in its subtree.
    ends: Vec<Key>,
}

impl<L: MapLayer> ByKey<L> {
    fn new(mut layers: Vec<Arc<L>>) -> ByKey<L> {
        layers.sort_by(|a, b| a.name().cmp(b.name()));
        let mut ends = vec![Key::MIN; layers.len()];
        fill_ends(&layers, &mut ends);
        ByKey { layers, ends }
    }

    fn covering<'a>(&'a self, key: Key, found: &mut impl FnMut(&'a Arc<L>)) {
        visit(&self.layers, &self.ends, &(key..key), &|keys| keys.start <= key, found);
    }

    fn overlapping<'a>(&'a self, keys: &KeyRange, found: &mut impl FnMut(&'a Arc<L>)) {
        visit(&self.layers, &self.ends, keys, &|covered| covered.start < keys.end, found);
    }
}

fn fill_ends<L: MapLayer>(layers: &[Arc<L>], ends: &mut [Key]) -> Key {
    if layers.is_empty() {
        return Key::MIN;
    }
    let middle = layers.len() / 2;
    let (left, right) = ends.split_at_mut(middle);
    let (here, right) = right.split_first_mut().expect("the middle of a list that is not empty");
    let below = fill_ends(&layers[..middle], left).max(fill_ends(&layers[middle + 1..], right));
    *here = below.max(layers[middle].name().keys().end);
    *here
}

/// Hands over, by start key, the layers that end after `keys` begins and whose range `begins_in_time`.
fn visit<'a, L: MapLayer>(
    layers: &'a [Arc<L>],
    ends: &[Key],
    keys: &KeyRange,
    begins_in_time: &impl Fn(&KeyRange) -> bool,
    found: &mut impl FnMut(&'a Arc<L>),
) {
    if layers.is_empty() {
        return;
    }
    let middle = layers.len() / 2;
    if ends[middle] <= keys.start {
        return;
    }
    visit(&layers[..middle], &ends[..middle], keys, begins_in_time, found);
    let here = &layers[middle];
    if begins_in_time(here.name().keys()) {
        if here.name().keys().end > keys.start {
            found(here);
        }
        visit(&layers[middle + 1..], &ends[middle + 1..], keys, begins_in_time, found);
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

    fn delta(keys: std::ops::Range<u32>, from: u64, to: u64) -> Arc<Named> {
        Arc::new(Named(LayerName::Delta { keys: key(keys.start)..key(keys.end), lsns: Lsn(from)..Lsn(to) }))
    }

    fn l0(from: u64, to: u64) -> Arc<Named> {
        Arc::new(Named(LayerName::Delta { keys: Key::ALL, lsns: Lsn(from)..Lsn(to) }))
    }

    fn visits(map: &LayerMap<Named>, asked: u32, lsn: u64) -> Vec<LayerName> {
        map.visit_down(key(asked), Lsn(lsn)).iter().map(|visit| visit.layer.0.clone()).collect()
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
            map.visit_down(key(1), Lsn(260)).iter().map(|v| (v.layer.0.clone(), v.above)).collect();
        assert_eq!(found, [(l0(201, 301).0.clone(), Lsn(250)), (image(0, 10, 250).0.clone(), Lsn(250))]);
    }

    #[test]
    fn layers_that_were_replaced_are_not_visited_and_the_map_before_still_has_them() {
        let old = [l0(101, 151), l0(151, 201), image(0, 20, 100)];
        let map = LayerMap::new(old.clone());
        let new = [delta(0..7, 101, 201), delta(7..20, 101, 201)];
        let gone = HashSet::from([old[0].0.clone(), old[1].0.clone()]);
        let merged = map.edited(new.clone(), &gone);
        assert_eq!(visits(&merged, 7, 300), [new[1].0.clone(), old[2].0.clone()]);
        assert_eq!(visits(&merged, 6, 150), [new[0].0.clone(), old[2].0.clone()]);
        assert_eq!(visits(&map, 7, 300), [&old[1], &old[0], &old[2]].map(|layer| layer.0.clone()));
        assert_eq!(merged.len(), 3);
    }

    /// A layer of each kind anywhere among few keys and LSNs.
    fn any_layer() -> impl Strategy<Value = Arc<Named>> {
        (0u32..40, 1u32..30, 1u64..60, 1u64..20, 0u8..5).prop_map(
            |(from, length, lsn, lsns, kind)| match kind {
                0 => l0(lsn, lsn + lsns),
                1 | 2 => image(from, from + length, lsn),
                _ => delta(from..from + length, lsn, lsn + lsns),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_visited_is_what_a_look_at_every_layer_finds(layers in prop::collection::vec(any_layer(), 0..60), asked in 0u32..75, lsn in 1u64..80) {
            let map = LayerMap::new(layers.clone());
            let covers = |layer: &&Arc<Named>| layer.0.keys().contains(&key(asked)) && layer.0.lsns().start <= Lsn(lsn);
            let above = layers.iter().filter(covers).filter(|layer| !layer.0.is_delta()).map(|layer| layer.0.lsns().start).max();
            let mut deltas: Vec<_> = layers
                .iter()
                .filter(covers)
                .filter(|layer| layer.0.is_delta() && above.is_none_or(|above| layer.0.lsns().end.0 > above.0 + 1))
                .map(|layer| layer.0.lsns())
                .collect();
            deltas.sort_by_key(|lsns| std::cmp::Reverse((lsns.end, lsns.start)));
            let found = map.visit_down(key(asked), Lsn(lsn));
            let (images, found): (Vec<_>, Vec<_>) = found.iter().map(|visit| &visit.layer.0).partition(|name| !name.is_delta());
            prop_assert_eq!(found.iter().map(|name| name.lsns()).collect::<Vec<_>>(), deltas);
            prop_assert_eq!(images.first().map(|name| name.lsns().start), above);
            let range = key(asked)..key(asked + 3);
            let overlapping = layers
                .iter()
                .filter(|layer| layer.0.keys().start < range.end && range.start < layer.0.keys().end && layer.0.lsns().start <= Lsn(lsn))
                .count();
            prop_assert_eq!(map.overlapping(&range, Lsn(lsn)).len(), overlapping);
        }

        #[test]
        fn adding_and_removing_layers_one_by_one_gives_the_same_map(layers in prop::collection::vec(any_layer(), 0..30), others in prop::collection::vec(any_layer(), 0..30), asked in 0u32..75, lsn in 0u64..80) {
            let kept: Vec<_> = layers.iter().filter(|layer| others.iter().all(|other| other.0 != layer.0)).cloned().collect();
            let whole = LayerMap::new(kept);
            let grown = layers.into_iter().chain(others.clone()).fold(LayerMap::default(), |map, layer| map.with([layer]));
            let shrunk = others.iter().fold(grown, |map, layer| map.edited([], &HashSet::from([layer.0.clone()])));
            prop_assert_eq!(visits(&whole, asked, lsn).len(), visits(&shrunk, asked, lsn).len());
            prop_assert_eq!(whole.len(), shrunk.len());
        }
    }
}
