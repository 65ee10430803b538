//! Which pieces memory keeps: those that were used again.
//!
//! A new piece is on *probation*, in a queue that has an eighth of the budget once the rest is needed. If it was used again by the time its turn
//! comes, it moves to the *main* queue, else it goes; a piece that comes back soon after it went was wanted after all and goes to the main
//! queue at once. In the main queue each piece has a few rounds for its uses. So pieces that are read once, however many, push out nothing but
//! each other.
//!
//! Whoever reads a page reads its chunk for several blocks within a moment, and a sequential reader for several pages. These are one use: a use
//! counts only when other pieces came since.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher};

use super::list::{Link, List};

/// The part of the budget that new pieces have when the rest is in use.
const PROBATION_PART: usize = 8;

/// A use counts when so many other pieces came since.
const ONE_USE: u32 = 2;

/// Rounds in the main queue that uses can earn.
const MOST_USES: u8 = 3;

/// Pieces that went without having been used are remembered, at least so many.
const FEWEST_GHOSTS: usize = 64;

/// Mixes the numbers of a key. All are our own, so nobody can choose them to collide.
#[derive(Default)]
pub(super) struct PieceHasher(u64);

impl Hasher for PieceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(29) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 >> 32;
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64); // which kind of piece
    }
}

/// Hashes keys of our own making.
pub(super) type PieceHash = BuildHasherDefault<PieceHasher>;

/// The hash of a key, the same wherever it is asked for.
pub(super) fn hash_of(key: &impl Hash) -> u64 {
    PieceHash::default().hash_one(key)
}

/// What becomes of a piece because it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It is worth more.
    Counts,
    /// Nothing: who looks comes by once.
    Leaves,
}

/// Pieces within a budget of bytes.
#[derive(Debug)]
pub(super) struct Queues<K, V> {
    limit: usize,
    used: usize,
    on_probation: usize,
    index: HashMap<K, u32, PieceHash>,
    slots: Vec<Option<Slot<K, V>>>,
    links: Vec<Link>,
    free: Vec<u32>,
    probation: List,
    main: List,
    ghosts: Ghosts,
    /// Counts pieces that came.
    arrivals: u32,
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    size: usize,
    arrival: u32,
    uses: u8,
    is_main: bool,
}

impl<K: Copy + Eq + Hash, V: Clone> Queues<K, V> {
    /// Nothing yet.
    pub(super) fn new(limit: usize) -> Queues<K, V> {
        Queues {
            limit,
            used: 0,
            on_probation: 0,
            index: HashMap::default(),
            slots: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            probation: List::EMPTY,
            main: List::EMPTY,
            ghosts: Ghosts::default(),
            arrivals: 0,
        }
    }

    /// Bytes of all pieces.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// A piece, if it is here.
    pub(super) fn get(&mut self, key: &K, counts: Use) -> Option<V> {
        let at = *self.index.get(key)?;
        let slot = self.slots[at as usize].as_mut().expect("what the index names is there");
        if counts == Use::Counts && self.arrivals.wrapping_sub(slot.arrival) >= ONE_USE {
            slot.uses = (slot.uses + 1).min(MOST_USES);
        }
        Some(slot.value.clone())
    }

    /// Whether a piece is here because it was used again and again.
    pub(super) fn is_hot(&self, key: &K) -> bool {
        let slot = self.index.get(key).and_then(|at| self.slots[*at as usize].as_ref());
        slot.is_some_and(|slot| slot.is_main || slot.uses > 0)
    }

    /// Takes a piece in, and lets others go for it. One that is here already, or has no room, changes nothing.
    pub(super) fn insert(&mut self, key: K, value: V, size: usize) {
        if self.index.contains_key(&key) || size > self.limit {
            return;
        }
        while self.used + size > self.limit {
            self.evict_one();
        }
        let is_main = self.ghosts.forget(hash_of(&key));
        self.arrivals = self.arrivals.wrapping_add(1);
        let slot = Slot { key, value, size, arrival: self.arrivals, uses: 0, is_main };
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.links.push(Link::LOOSE);
            (self.slots.len() - 1) as u32
        });
        self.slots[at as usize] = Some(slot);
        self.index.insert(key, at);
        self.used += size;
        if is_main {
            self.main.push(&mut self.links, at);
        } else {
            self.on_probation += size;
            self.probation.push(&mut self.links, at);
        }
    }

    fn evict_one(&mut self) {
        loop {
            let is_new = self.on_probation * PROBATION_PART >= self.limit || self.main.len() == 0;
            let queue = if is_new { &mut self.probation } else { &mut self.main };
            let Some(at) = queue.pop(&mut self.links) else { return };
            let place = &mut self.slots[at as usize];
            let slot = place.as_mut().expect("what stands in a queue is there");
            if is_new {
                self.on_probation -= slot.size;
            }
            if slot.uses > 0 {
                slot.uses = if is_new { 0 } else { slot.uses - 1 };
                slot.is_main = true;
                self.main.push(&mut self.links, at);
                continue;
            }
            self.used -= slot.size;
            let key = slot.key;
            *place = None;
            self.free.push(at);
            self.index.remove(&key);
            if is_new {
                self.ghosts.remember(hash_of(&key), self.index.len().max(FEWEST_GHOSTS));
            }
            return;
        }
    }
}

/// Hashes of keys that went lately.
#[derive(Debug, Default)]
struct Ghosts {
    in_order: VecDeque<u64>,
    all: HashSet<u64, PieceHash>,
}

impl Ghosts {
    fn remember(&mut self, hash: u64, most: usize) {
        while self.in_order.len() >= most {
            if let Some(oldest) = self.in_order.pop_front() {
                self.all.remove(&oldest);
            }
        }
        self.in_order.push_back(hash);
        self.all.insert(hash);
    }

    /// Whether it was remembered. It is not any more.
    fn forget(&mut self, hash: u64) -> bool {
        self.all.remove(&hash)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(queues: &mut Queues<u32, u32>, key: u32, size: usize) -> bool {
        let found = queues.get(&key, Use::Counts);
        assert!(found.is_none_or(|value| value == key));
        if found.is_none() {
            queues.insert(key, key, size);
        }
        found.is_some()
    }

    /// Reads 60 hot pieces in turn, with pieces in between that nobody reads again; answers how many of the hot ones were found in the last round.
    fn hits_of_a_hot_set(
        queues: &mut Queues<u32, u32>,
        rounds: u32,
        between: u32,
        next_cold: &mut u32,
    ) -> u32 {
        let mut hits = 0;
        for _ in 0..rounds {
            hits = 0;
            for key in 0..60 {
                hits += u32::from(read(queues, key, 1));
                for _ in 0..between {
                    read(queues, *next_cold, 1);
                    *next_cold += 1;
                }
            }
        }
        hits
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_used_again_and_again() {
        let (mut queues, mut cold) = (Queues::new(100), 1000);
        assert_eq!(hits_of_a_hot_set(&mut queues, 5, 1, &mut cold), 60);
        for _ in 0..10_000 {
            read(&mut queues, cold, 1);
            cold += 1;
        }
        assert_eq!(hits_of_a_hot_set(&mut queues, 1, 0, &mut cold), 60);
    }

    #[test]
    fn several_reads_within_a_moment_are_one_use() {
        let (mut queues, mut cold) = (Queues::new(100), 1000);
        hits_of_a_hot_set(&mut queues, 5, 1, &mut cold);
        // A sequential scan reads eight pages of each chunk.
        for _ in 0..10_000 {
            for _ in 0..8 {
                read(&mut queues, cold, 1);
            }
            cold += 1;
        }
        assert_eq!(hits_of_a_hot_set(&mut queues, 1, 0, &mut cold), 60);
    }

    #[test]
    fn what_went_and_is_wanted_again_comes_to_stay() {
        let mut queues = Queues::new(100);
        for key in 0..150 {
            read(&mut queues, key, 1);
        }
        assert!(!queues.is_hot(&20));
        assert!(!read(&mut queues, 20, 1));
        assert!(queues.is_hot(&20));
        for key in 1000..2000 {
            read(&mut queues, key, 1);
        }
        assert!(read(&mut queues, 20, 1));
    }

    #[test]
    fn a_changed_working_set_is_learned() {
        let (mut queues, mut cold) = (Queues::new(100), 1_000_000);
        hits_of_a_hot_set(&mut queues, 20, 1, &mut cold);
        for _ in 0..40 {
            for key in 500..560 {
                read(&mut queues, key, 1);
                read(&mut queues, cold, 1);
                cold += 1;
            }
        }
        let found = (500..560).filter(|key| queues.get(key, Use::Leaves).is_some()).count();
        assert!(found >= 55, "{found} of 60");
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_sums_are_right(
            limit in 1usize..200,
            steps in prop::collection::vec((0u32..60, 1usize..40, any::<bool>()), 0..400),
        ) {
            let mut queues: Queues<u32, u32> = Queues::new(limit);
            for (key, size, counts) in steps {
                let use_of = if counts { Use::Counts } else { Use::Leaves };
                if let Some(value) = queues.get(&key, use_of) {
                    prop_assert_eq!(value, key);
                } else {
                    queues.insert(key, key, size);
                    prop_assert_eq!(queues.get(&key, Use::Leaves).is_some(), size <= limit);
                }
                prop_assert!(queues.used() <= limit);
                let there = || queues.slots.iter().flatten();
                prop_assert_eq!(there().map(|slot| slot.size).sum::<usize>(), queues.used);
                let new = there().filter(|slot| !slot.is_main).map(|slot| slot.size).sum::<usize>();
                prop_assert_eq!(new, queues.on_probation);
                prop_assert_eq!(queues.index.len(), queues.probation.len() + queues.main.len());
                prop_assert!(queues.ghosts.in_order.len() <= queues.index.len().max(FEWEST_GHOSTS) + 60);
            }
        }
    }
}
