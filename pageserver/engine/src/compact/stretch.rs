//! Where keys lie close together in what a job reads.
//!
//! Pages that are loaded in order lie side by side. The size of their relation lies far behind them, and catalogs that change with it far before. A delta that
//! held all of these would cover what later ones bring of the same relation: they would stand upon each other though they share hardly a key, and would be
//! merged again and again. So what is written is cut where such a stretch begins and where it ends.

use model::Key;

use super::stream::Input;
use crate::as_of::ReadError;
use crate::layer_map::MapLayer as _;

/// Keys of one fork are far from each other with more blocks between them: 256 MiB.
const FAR: u32 = 1 << 15;

/// Long stretches of keys of which none is far from the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretches {
    /// First and last key of each that is known of, in order.
    ends: Vec<(Key, Key)>,
}

impl Stretches {
    /// Those of at least so many bytes in the deltas that are read. Costs a few blocks of each one's index.
    pub async fn of(inputs: &[Input], least: u64) -> Result<Stretches, ReadError> {
        let mut keys = Vec::new();
        for Input { layer, .. } in inputs.iter().filter(|input| input.layer.name().is_delta()) {
            let (outline, bytes) = layer.outline().await?;
            keys.extend(outline.into_iter().map(|key| (key, bytes)));
        }
        Ok(Stretches::among(keys, least))
    }

    /// Among keys each of which stands for so many bytes.
    fn among(mut keys: Vec<(Key, u64)>, least: u64) -> Stretches {
        keys.sort_unstable();
        let mut ends = Vec::new();
        for stretch in keys.chunk_by(|(key, _), (next, _)| !are_far(*key, *next)) {
            if stretch.iter().map(|(_, bytes)| bytes).sum::<u64>() >= least {
                ends.push((stretch[0].0, stretch[stretch.len() - 1].0));
            }
        }
        Stretches { ends }
    }

    /// Whether a stretch ends with `last`, or one begins with `key`, which follows it.
    pub fn part(&self, last: Key, key: Key) -> bool {
        are_far(last, key) && (self.has(last) || self.has(key))
    }

    /// Whether a key belongs to one of them: they may begin a little before what is known, and end a little later.
    fn has(&self, key: Key) -> bool {
        let after = self.ends.partition_point(|(_, last)| *last < key);
        let before = after.checked_sub(1).and_then(|before| self.ends.get(before));
        let is_in = |(first, _): &(Key, Key)| *first <= key || !are_far(key, *first);
        self.ends.get(after).is_some_and(is_in) || before.is_some_and(|(_, last)| !are_far(*last, key))
    }
}

/// Whether two keys, in order, have much room between them.
fn are_far(key: Key, next: Key) -> bool {
    let fork = |key: Key| (key.field1, key.field2, key.field3, key.field4, key.field5);
    fork(key) != fork(next) || next.field6 - key.field6 > FAR
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(relation: u32, block: u32) -> Key {
        Key { field4: relation, field6: block, ..Key::MIN }
    }

    #[test]
    fn a_load_is_a_stretch_between_catalogs_and_the_size_of_its_relation() {
        let load = (0..10).map(|leaf| (key(9, 70_000 + leaf * 500), 100));
        let around = [(key(1, 5), 100), (key(2, 7), 100), (key(9, u32::MAX), 100)];
        let found = Stretches::among(load.chain(around).collect(), 500);
        assert_eq!(found.ends, [(key(9, 70_000), key(9, 74_500))]);
        // The first leaf may begin with what comes before, and nothing is known of the last one's end.
        assert!(found.part(key(2, 7), key(9, 69_600)));
        assert!(found.part(key(9, 74_999), key(9, u32::MAX)));
        assert!(!found.part(key(9, 70_100), key(9, 70_101)));
        assert!(!found.part(key(1, 5), key(2, 7)));
        assert!(!found.part(key(9, u32::MAX), key(12, 0)));
    }

    proptest! {
        #[test]
        fn layers_are_parted_between_far_keys_only_and_around_each_stretch(
            blocks in prop::collection::btree_set((0u32..4, 0u32..300_000), 1..60),
            least in 1u64..20,
        ) {
            let keys: Vec<Key> = blocks.into_iter().map(|(relation, block)| key(relation, block)).collect();
            let stretches = Stretches::among(keys.iter().map(|key| (*key, 1)).collect(), least);
            for stretch in keys.chunk_by(|key, next| !stretches.part(*key, *next)) {
                let runs: Vec<&[Key]> = stretch.chunk_by(|key, next| !are_far(*key, *next)).collect();
                let long = runs.iter().filter(|run| run.len() as u64 >= least).count();
                prop_assert!(long == 0 || runs.len() == 1, "{:?}", runs);
            }
            for pair in keys.windows(2) {
                prop_assert!(!stretches.part(pair[0], pair[1]) || are_far(pair[0], pair[1]));
            }
        }
    }
}
