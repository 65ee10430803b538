//! How many changes of a key follow each other without an image, so that a page which is changed all the time does not become one that takes all the time
//! to read: after so many changes ingest makes the page whole.
//!
//! Only keys that are changed often matter, so the count is kept for a bounded number of them, and across freezing. What it misses, compaction finds.

use std::collections::HashMap;

use codec::value::{Change, Value};
use model::key::KeyKind;
use model::{Key, SlruKind};

/// Keys that are counted at most: 40 bytes each.
const MOST_KEYS: usize = 1 << 16;

/// Counts of changes since the last version that needs none before it.
#[derive(Debug, Default)]
pub(super) struct Chains {
    counts: HashMap<Key, u16>,
}

impl Chains {
    /// Takes note of a version. Answers whether the key is to be made whole here, when chains may be `most` long.
    pub fn note(&mut self, key: Key, will_init: bool, value: &[u8], most: usize) -> bool {
        if will_init {
            self.counts.remove(&key);
            return false;
        }
        if self.counts.len() >= MOST_KEYS && !self.counts.contains_key(&key) {
            self.forget_the_seldom();
        }
        let count = self.counts.entry(key).or_default();
        *count = count.saturating_add(1);
        if usize::from(*count) < most || !may_be_whole(key, value) {
            return false;
        }
        *count = 0;
        true
    }

    /// Makes room: half of the range of counts goes, which is nearly all keys.
    fn forget_the_seldom(&mut self) {
        self.counts.retain(|_, count| *count > 8);
        if self.counts.len() >= MOST_KEYS / 2 {
            self.counts.clear();
        }
    }
}

/// A page of the commit log only where a commit changed it: as an image it carries that commit's time. Sizes and directories are whole always.
fn may_be_whole(key: Key, value: &[u8]) -> bool {
    match key.kind() {
        Some(KeyKind::SlruPage { slru: SlruKind::Clog, .. }) => {
            matches!(Value::decode(value), Ok(Value::Change(Change::Committed { .. })))
        }
        Some(KeyKind::RelBlock { .. } | KeyKind::SlruPage { .. }) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use model::{Fork, RelTag};

    use super::*;

    fn page(block: u32) -> Key {
        Key::rel_block(RelTag { spc: 1663, db: 5, rel: 16_384, fork: Fork::Main }, block)
    }

    #[test]
    fn a_hot_page_is_made_whole_again_and_again_and_an_image_begins_anew() {
        let mut chains = Chains::default();
        let whole: Vec<usize> = (1..=20).filter(|_| chains.note(page(1), false, &[], 8)).collect();
        assert_eq!(whole, [8, 16]);
        chains.note(page(1), true, &[], 8);
        assert!((0..7).all(|_| !chains.note(page(1), false, &[], 8)));
        assert!(chains.note(page(1), false, &[], 8));
    }

    #[test]
    fn there_are_never_more_keys_than_there_is_room_for_and_hot_ones_stay() {
        let mut chains = Chains::default();
        for _ in 0..20 {
            chains.note(page(u32::MAX - 1), false, &[], 100);
        }
        for block in 0..(MOST_KEYS as u32 * 3) {
            chains.note(page(block), false, &[], 100);
            assert!(chains.counts.len() <= MOST_KEYS);
        }
        assert_eq!(chains.counts[&page(u32::MAX - 1)], 20);
    }
}
