//! How many changes of a key follow each other without an image, so that a page which is changed all the time does not become one that takes all the time
//! to read: after so many changes ingest makes the page whole.
//!
//! The count is kept across freezing, for a bounded number of keys: those that were changed last. Of any other it is unknown what was made of it before: it
//! may have been forgotten, or this process may be new, or the timeline a branch. Its count begins at most of what a chain may have, so that what is read
//! is never much more than one chain. Where more keys are changed than are counted, all of them seldom, none gets as far as that while it is known: an image
//! among the changes of a tail is written with them again and again, and would not pay there.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use codec::value::{Change, Value};
use model::key::KeyKind;
use model::{Key, SlruKind};

/// Keys whose buckets are searched together.
const WAYS: usize = 8;
/// Buckets at first, and at most: 64 bytes each, so 8 MiB for a million keys that are changed again and again.
const FEW_BUCKETS: usize = 1 << 4;
const MOST_BUCKETS: usize = 1 << 17;
/// So many buckets are worth one key that was forgotten: where more than a bucket's keys share it, each of them is, again and again.
const WORTH_A_KEY: usize = 256;
/// So many buckets are worth one change in each tail.
const WORTH_A_CHANGE: usize = 16;

/// A key with its count: the key's tag above [`COUNT_BITS`] bits of count. A place that was never taken is zero.
type Counted = u64;
const COUNT_BITS: u32 = 8;

/// Keys that share the low bits of their tags, the last changed first. They fill a line of the processor's cache.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Bucket([Counted; WAYS]);

impl Bucket {
    fn find(&self, tag: u64) -> Option<usize> {
        self.0.iter().position(|counted| *counted != 0 && counted >> COUNT_BITS == tag)
    }

    /// Moves a key to the front, with one change more than it had, or than `unknown`. Answers the count, and whether another key was forgotten for it.
    fn count(&mut self, tag: u64, unknown: u8) -> (u8, bool) {
        let known = self.find(tag);
        let from = known.unwrap_or(WAYS - 1);
        let forgets = known.is_none() && self.0[from] != 0;
        let count = known.map_or(unknown, |at| self.0[at] as u8).saturating_add(1);
        self.0.copy_within(..from, 1);
        self.0[0] = tag << COUNT_BITS | u64::from(count);
        (count, forgets)
    }

    /// Begins to count anew, if the key is known.
    fn begin_anew(&mut self, tag: u64) {
        if let Some(way) = self.find(tag) {
            self.0[way] = tag << COUNT_BITS;
        }
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
        } else if self.forgotten > self.buckets.len() / WORTH_A_KEY && self.buckets.len() < MOST_BUCKETS {
            self.grow();
        }
        self.noted += 1;
        let most = most.min(u8::MAX.into());
        let bucket = self.bucket_of(tag);
        let (count, forgets) = bucket.count(tag, unknown(most));
        let is_long = usize::from(count) >= most && may_be_whole(key, value);
        if is_long {
            bucket.begin_anew(tag);
        }
        self.forgotten += usize::from(forgets);
        is_long
    }

    /// A tail of so many bytes was frozen. When the counts take more than it did, and there were few changes in it, none is kept for more of them.
    pub fn rest(&mut self, bytes: usize) {
        let is_little = bytes < self.buckets.len() * size_of::<Bucket>();
        if std::mem::take(&mut self.noted) < self.buckets.len() / WORTH_A_CHANGE && is_little {
            *self = Chains::default();
        }
    }

    fn bucket_of(&mut self, tag: u64) -> &mut Bucket {
        let at = tag as usize & (self.buckets.len() - 1);
        &mut self.buckets[at]
    }

    /// The key has a version that needs none before it.
    fn begin_anew(&mut self, tag: u64) {
        if !self.buckets.is_empty() {
            self.bucket_of(tag).begin_anew(tag);
        }
    }

    /// Twice the buckets: one more bit of its tag says where a key goes.
    fn grow(&mut self) {
        let old = std::mem::take(&mut self.buckets);
        self.buckets = vec![Bucket::default(); old.len() * 2];
        self.forgotten = 0;
        for (at, bucket) in old.iter().enumerate() {
            let mut ways = [0; 2];
            for counted in bucket.0.iter().filter(|counted| **counted != 0) {
                let half = usize::from((counted >> COUNT_BITS) as usize & old.len() != 0);
                self.buckets[at + half * old.len()].0[ways[half]] = *counted;
                ways[half] += 1;
            }
        }
    }
}

/// What a key is known by: the same in every process, so that the same WAL becomes the same layers. Among a million keys hardly two have the same.
fn tag(key: Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() >> COUNT_BITS
}

/// The count of a key of which none is known, where chains may be `most` long. So what it had and what it gets are at most a third more than that.
fn unknown(most: usize) -> u8 {
    (most * 2 / 3) as u8
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
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn page(block: u32) -> Key {
        Key::rel_block(RelTag { spc: 1663, db: 5, rel: 16_384, fork: Fork::Main }, block)
    }

    /// Which of the next changes of a page make it whole.
    fn whole_by(chains: &mut Chains, key: Key, changes: usize, most: usize) -> Vec<usize> {
        (1..=changes).filter(|_| chains.note(key, false, &[], most)).collect()
    }

    #[test]
    fn a_hot_page_is_made_whole_again_and_again_and_an_image_begins_anew() {
        let mut chains = Chains::default();
        // What the page had before is not known.
        assert_eq!(whole_by(&mut chains, page(1), 35, 12), [4, 16, 28]);
        chains.note(page(1), true, &[], 12);
        assert_eq!(whole_by(&mut chains, page(1), 24, 12), [12, 24]);
    }

    #[test]
    fn hot_keys_are_counted_among_any_number_of_others_that_stay_as_they_are() {
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
        assert!((others / 1024 / 24).abs_diff(whole) <= 1, "{whole}");
    }

    #[test]
    fn hardly_a_chain_is_a_third_longer_though_keys_are_forgotten_and_few_images_are_made_for_that() {
        const PAGES: u32 = 200_000;
        let mut chains = Chains::default();
        let mut random = StdRng::seed_from_u64(2);
        let mut lengths: HashMap<u32, usize> = HashMap::new();
        let (mut whole, mut longer) = (0, 0);
        for turn in 0..PAGES * 60 {
            let block = random.random_range(0..PAGES);
            let length = lengths.entry(block).or_default();
            *length += 1;
            if chains.note(page(block), false, &[], 24) {
                (*length, whole) = (0, whole + 1);
            }
            // Those that were forgotten more than once.
            longer += usize::from(*length == 32);
            // As a process that comes after this one begins.
            if turn == PAGES * 30 {
                assert!(whole < PAGES * 30 / 18, "{whole}");
                chains = Chains::default();
            }
        }
        assert!(whole < PAGES * 60 / 18, "{whole}");
        assert!(longer < PAGES as usize / 2_000, "{longer}");
    }

    #[test]
    fn an_idle_timeline_keeps_nothing_and_one_that_loads_everything() {
        const LOADED: usize = 1 << 24;
        let mut chains = Chains::default();
        for block in 0..1_000 {
            chains.note(page(block), false, &[], 24);
        }
        for bytes in [1_000, LOADED] {
            chains.rest(bytes);
            assert!(!chains.buckets.is_empty());
            chains.note(page(1), false, &[], 24);
        }
        chains.rest(1_000);
        assert!(chains.buckets.is_empty());
    }
}
