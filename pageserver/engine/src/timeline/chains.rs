//! How many changes of a key follow each other without an image, so that a page which is changed all the time does not become one that takes all the time
//! to read: after so many changes ingest makes the page whole.
//!
//! The count is kept across freezing, for a bounded number of keys: those that were changed last. Where more are changed, all of them seldom, compaction finds
//! chains that became long: an image among the changes of a tail is written with them again and again, and would not pay there.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use codec::value::{Change, Value};
use model::key::KeyKind;
use model::{Key, SlruKind};

/// Keys whose buckets are searched together.
const WAYS: usize = 8;
/// Buckets at first, and at most: 40 bytes each, so 5 MiB for a million keys that are changed again and again.
const FEW_BUCKETS: usize = 1 << 4;
const MOST_BUCKETS: usize = 1 << 17;
/// So many buckets are worth one change or one key that was forgotten.
const FEW_MATTER: usize = 16;

/// Keys that share the low bits of their hash, the last changed first. A place that was never taken has zeros.
#[derive(Clone, Debug, Default)]
struct Bucket {
    tags: [u32; WAYS],
    counts: [u8; WAYS],
}

impl Bucket {
    fn find(&self, tag: u32) -> Option<usize> {
        self.tags.iter().position(|other| *other == tag)
    }

    /// Counts a change. Answers the count, and whether a key with changes was forgotten for it.
    fn count(&mut self, tag: u32) -> (&mut u8, bool) {
        let known = self.find(tag);
        let (from, count) = match known {
            Some(at) => (at, self.counts[at]),
            None => (WAYS - 1, 0),
        };
        let forgets = known.is_none() && self.counts[from] > 0;
        self.tags.copy_within(..from, 1);
        self.counts.copy_within(..from, 1);
        (self.tags[0], self.counts[0]) = (tag, count.saturating_add(1));
        (&mut self.counts[0], forgets)
    }
}

/// Counts of changes since the last version that needs none before it.
#[derive(Debug, Default)]
pub(super) struct Chains {
    /// None until the first change, then a power of two of them.
    buckets: Vec<Bucket>,
    /// Keys that were forgotten since there are so many buckets.
    forgotten: usize,
    /// Changes since [`Chains::rest`].
    noted: usize,
}

impl Chains {
    /// Takes note of a version. Answers whether the key is to be made whole here, when chains may be `most` long.
    pub fn note(&mut self, key: Key, will_init: bool, value: &[u8], most: usize) -> bool {
        let tag = tag(key);
        if will_init {
            self.begin_anew(tag);
            return false;
        }
        if self.buckets.is_empty() {
            self.buckets.resize(FEW_BUCKETS, Bucket::default());
        } else if self.forgotten >= self.buckets.len() / FEW_MATTER && self.buckets.len() < MOST_BUCKETS {
            self.grow();
        }
        self.noted += 1;
        let at = self.bucket(tag);
        let (count, forgets) = self.buckets[at].count(tag);
        let is_long = usize::from(*count) >= most.min(u8::MAX.into()) && may_be_whole(key, value);
        if is_long {
            *count = 0;
        }
        self.forgotten += usize::from(forgets);
        is_long
    }

    /// A tail was frozen. When there were few changes in it beside what is counted, nothing is kept for more of them.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.noted) < self.buckets.len() / FEW_MATTER {
            *self = Chains::default();
        }
    }

    fn bucket(&self, tag: u32) -> usize {
        tag as usize & (self.buckets.len() - 1)
    }

    /// The key has a version that needs none before it.
    fn begin_anew(&mut self, tag: u32) {
        if self.buckets.is_empty() {
            return;
        }
        let at = self.bucket(tag);
        let bucket = &mut self.buckets[at];
        if let Some(way) = bucket.find(tag) {
            bucket.counts[way] = 0;
        }
    }

    /// Twice the buckets: one more bit of its tag says where a key goes.
    fn grow(&mut self) {
        let old = std::mem::take(&mut self.buckets);
        self.buckets = vec![Bucket::default(); old.len() * 2];
        self.forgotten = 0;
        for bucket in &old {
            let mut ways = [0; 2];
            let taken = |(tag, count): &(&u32, u8)| (**tag, *count) != (0, 0);
            for (tag, count) in bucket.tags.iter().zip(bucket.counts).filter(taken) {
                let at = self.bucket(*tag);
                let way = &mut ways[usize::from(at >= old.len())];
                (self.buckets[at].tags[*way], self.buckets[at].counts[*way]) = (*tag, count);
                *way += 1;
            }
        }
    }
}

/// What a key is known by. Two keys of one tag are counted as one, which makes images a little sooner.
fn tag(key: Key) -> u32 {
    // Always the same, so that the same WAL becomes the same layers.
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as u32
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
    use std::collections::HashMap;

    use model::{Fork, RelTag};
    use rand::RngExt as _;
    use rand::SeedableRng as _;

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
    fn hot_keys_are_counted_among_any_number_of_others() {
        let mut chains = Chains::default();
        let hot = page(u32::MAX - 1);
        let others = (MOST_BUCKETS * WAYS * 2) as u32;
        let mut whole = 0;
        for block in 0..others {
            assert!(!chains.note(page(block), false, &[], 24));
            if block % 1024 == 0 {
                whole += u32::from(chains.note(hot, false, &[], 24));
            }
        }
        assert_eq!(chains.buckets.len(), MOST_BUCKETS);
        assert!(others / 1024 / 24 - whole <= 1, "{whole}");
    }

    #[test]
    fn it_grows_with_what_is_changed_and_then_counts_nearly_every_key() {
        const PAGES: u32 = 200_000;
        let mut chains = Chains::default();
        let mut random = rand::rngs::StdRng::seed_from_u64(2);
        let mut lengths: HashMap<u32, usize> = HashMap::new();
        let mut whole = 0;
        for _ in 0..PAGES * 60 {
            let block = random.random_range(0..PAGES);
            let length = lengths.entry(block).or_default();
            *length += 1;
            if chains.note(page(block), false, &[], 24) {
                (*length, whole) = (0, whole + 1);
            }
        }
        let long = lengths.values().filter(|length| **length > 24).count();
        assert!(long < PAGES as usize / 200, "{long}");
        assert!(whole < PAGES * 60 / 22, "{whole}");
    }

    #[test]
    fn an_idle_timeline_keeps_nothing() {
        let mut chains = Chains::default();
        for block in 0..1_000 {
            chains.note(page(block), false, &[], 24);
        }
        chains.rest();
        assert!(!chains.buckets.is_empty());
        chains.note(page(1), false, &[], 24);
        chains.rest();
        assert!(chains.buckets.is_empty());
    }
}
