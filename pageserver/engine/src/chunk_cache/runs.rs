//! Which chunks the disk keeps. Pure: no file is touched here.
//!
//! Sixteen neighbours are a *run*, and stand in one queue together; what is there, and what was used, is known for each chunk. That makes two bytes
//! for a chunk when its neighbours are there too, and some forty when none is. A run begins on *probation*, which has an eighth of what is there
//! once the rest is in use. When its turn comes its used chunks move on with it to the *main* queue, and the others are evicted, but remembered:
//! one that is fetched again soon counts as used. In the main queue a chunk stays as long as it was used since the run's last turn.
//!
//! A turn evicts a chunk or takes a use back, so eviction costs constant time for each chunk that comes and each use.

use std::collections::HashMap;
use std::ops::Range;

use super::CHUNK_SIZE;
use super::list::{Link, List, NOBODY};

/// Chunks of a run.
pub(super) const RUN: u32 = 16;

/// The part of what is there that runs on probation have when the rest is in use.
const PROBATION_PART: u64 = 8;

/// Runs of which nothing is left are remembered, at least so many.
const FEWEST_GHOSTS: usize = 64;

/// An object, as this process numbers them.
pub(super) type ObjectId = u64;

/// The chunks of all objects that the disk has.
#[derive(Debug)]
pub(super) struct Runs {
    objects: HashMap<ObjectId, Placed>,
    slots: Vec<Run>,
    links: Vec<Link>,
    free: Vec<u32>,
    probation: List,
    main: List,
    ghosts: List,
    bytes: u64,
    on_probation: u64,
}

/// An object of which something is here, or was.
#[derive(Debug)]
struct Placed {
    size: u64,
    /// Slots by number of run.
    runs: Box<[u32]>,
    chunks: u32,
}

#[derive(Debug)]
struct Run {
    object: ObjectId,
    number: u32,
    /// A bit for each chunk: it is here.
    present: u16,
    /// … and was used.
    used: u16,
    /// It was evicted lately, unused.
    missed: u16,
    queue: Queue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Probation,
    Main,
    Ghosts,
}

/// Chunks of a run that are to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Evicted {
    pub(super) object: ObjectId,
    /// Which run of the object.
    pub(super) run: u32,
    /// A bit for each chunk of it.
    pub(super) chunks: u16,
    pub(super) bytes: u64,
    /// Nothing of the object is left.
    pub(super) is_last: bool,
}

fn bit(chunk: u32) -> u16 {
    1 << (chunk % RUN)
}

impl Placed {
    fn bytes_of(&self, run: u32, chunks: u16) -> u64 {
        let all = u64::from(chunks.count_ones()) * CHUNK_SIZE;
        // Only the object's last chunk may be short.
        let last = (self.size.div_ceil(CHUNK_SIZE).max(1) - 1) as u32;
        if last / RUN == run && chunks & bit(last) != 0 {
            all - ((u64::from(last) + 1) * CHUNK_SIZE - self.size)
        } else {
            all
        }
    }
}

impl Runs {
    /// Nothing yet.
    pub(super) fn new() -> Runs {
        Runs {
            objects: HashMap::new(),
            slots: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            probation: List::EMPTY,
            main: List::EMPTY,
            ghosts: List::EMPTY,
            bytes: 0,
            on_probation: 0,
        }
    }

    /// Bytes that are here.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn slot(&self, object: ObjectId, chunk: u32) -> Option<u32> {
        let slot = *self.objects.get(&object)?.runs.get((chunk / RUN) as usize)?;
        (slot != NOBODY).then_some(slot)
    }

    /// Whether a chunk is here.
    pub(super) fn has(&self, object: ObjectId, chunk: u32) -> bool {
        self.slot(object, chunk).is_some_and(|slot| self.slots[slot as usize].present & bit(chunk) != 0)
    }

    /// Whether a chunk is here; it was used then.
    pub(super) fn touch(&mut self, object: ObjectId, chunk: u32) -> bool {
        let Some(slot) = self.slot(object, chunk) else { return false };
        let run = &mut self.slots[slot as usize];
        run.used |= run.present & bit(chunk);
        run.present & bit(chunk) != 0
    }

    /// Chunks of a run that are here, of those asked for.
    pub(super) fn present(&self, object: ObjectId, run: u32, chunks: u16) -> u16 {
        self.slot(object, run * RUN).map_or(0, |slot| self.slots[slot as usize].present & chunks)
    }

    /// Puts a chunk in. One that is `hot` counts as used.
    pub(super) fn insert(&mut self, object: ObjectId, size: u64, chunk: u32, hot: bool) {
        let placed = self.objects.entry(object).or_insert_with(|| {
            let chunks = size.div_ceil(CHUNK_SIZE) as u32;
            Placed { size, runs: vec![NOBODY; chunks.div_ceil(RUN) as usize].into(), chunks: 0 }
        });
        let number = chunk / RUN;
        let place = &mut placed.runs[number as usize];
        let is_new = *place == NOBODY;
        if is_new {
            let run = Run { object, number, present: 0, used: 0, missed: 0, queue: Queue::Probation };
            *place = if let Some(slot) = self.free.pop() {
                self.slots[slot as usize] = run;
                slot
            } else {
                self.slots.push(run);
                self.links.push(Link::LOOSE);
                (self.slots.len() - 1) as u32
            };
        }
        let slot = *place;
        let run = &mut self.slots[slot as usize];
        let wanted = hot || run.missed & bit(chunk) != 0;
        run.missed &= !bit(chunk);
        if wanted {
            run.used |= bit(chunk);
        }
        if run.present & bit(chunk) != 0 {
            return;
        }
        run.present |= bit(chunk);
        placed.chunks += 1;
        let bytes = placed.bytes_of(number, bit(chunk));
        self.bytes += bytes;
        if is_new || run.queue == Queue::Ghosts {
            if !is_new {
                self.ghosts.remove(&mut self.links, slot);
            }
            run.queue = if wanted { Queue::Main } else { Queue::Probation };
            let list = if wanted { &mut self.main } else { &mut self.probation };
            list.push(&mut self.links, slot);
        }
        if run.queue == Queue::Probation {
            self.on_probation += bytes;
        }
    }

    /// Chooses chunks that go, and takes them out. `None` when nothing is left.
    pub(super) fn evict(&mut self) -> Option<Evicted> {
        loop {
            let is_new = self.on_probation * PROBATION_PART >= self.bytes || self.main.len() == 0;
            let queue = if is_new { &mut self.probation } else { &mut self.main };
            let slot = queue.pop(&mut self.links)?;
            let run = &mut self.slots[slot as usize];
            let placed = self.objects.get_mut(&run.object).expect("a run's object is there");
            if is_new {
                self.on_probation -= placed.bytes_of(run.number, run.present);
            }
            let going = run.present & !run.used;
            run.present &= run.used;
            run.used = 0;
            let mut ended = None;
            if run.present != 0 {
                run.queue = Queue::Main;
                self.main.push(&mut self.links, slot);
            } else if is_new {
                run.queue = Queue::Ghosts;
                self.ghosts.push(&mut self.links, slot);
                if self.ghosts.len() > FEWEST_GHOSTS.max(self.probation.len() + self.main.len()) {
                    ended = self.ghosts.pop(&mut self.links);
                }
            } else {
                ended = Some(slot);
            }
            if is_new {
                run.missed |= going;
            }
            let (object, number) = (run.object, run.number);
            placed.chunks -= going.count_ones();
            let bytes = placed.bytes_of(number, going);
            let is_last = placed.chunks == 0;
            self.bytes -= bytes;
            if let Some(ended) = ended {
                self.end(ended);
            }
            if going != 0 {
                return Some(Evicted { object, run: number, chunks: going, bytes, is_last });
            }
        }
    }

    /// Forgets a run that stands in no queue.
    fn end(&mut self, slot: u32) {
        let Run { object, number, .. } = self.slots[slot as usize];
        if let Some(placed) = self.objects.get_mut(&object) {
            placed.runs[number as usize] = NOBODY;
        }
        self.free.push(slot);
    }

    /// Forgets an object.
    pub(super) fn remove(&mut self, object: ObjectId) {
        let Some(placed) = self.objects.remove(&object) else { return };
        for slot in placed.runs.iter().copied().filter(|slot| *slot != NOBODY) {
            let run = &self.slots[slot as usize];
            let bytes = placed.bytes_of(run.number, run.present);
            self.bytes -= bytes;
            if run.queue == Queue::Probation {
                self.on_probation -= bytes;
            }
            let list = match run.queue {
                Queue::Probation => &mut self.probation,
                Queue::Main => &mut self.main,
                Queue::Ghosts => &mut self.ghosts,
            };
            list.remove(&mut self.links, slot);
            self.free.push(slot);
        }
    }

    /// What is here of an object, in order: each chunk, and whether it has earned its place.
    pub(super) fn chunks_of(&self, object: ObjectId) -> impl Iterator<Item = (u32, bool)> {
        let slots = self.objects.get(&object).into_iter().flat_map(|placed| placed.runs.iter());
        slots.filter(|slot| **slot != NOBODY).flat_map(|slot| {
            let run = &self.slots[*slot as usize];
            let there = (0..RUN).filter(|chunk| run.present & bit(*chunk) != 0);
            there.map(|chunk| {
                (run.number * RUN + chunk, run.queue == Queue::Main || run.used & bit(chunk) != 0)
            })
        })
    }
}

/// The end of the run of chunks from `chunks.start` on that the disk does not have.
pub(super) fn missing_end(runs: &Runs, object: ObjectId, chunks: Range<u32>) -> u32 {
    chunks.clone().find(|chunk| runs.has(object, *chunk)).unwrap_or(chunks.end)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 40 * CHUNK_SIZE + 100;

    fn shrink(runs: &mut Runs, limit: u64) -> u64 {
        let mut turns = 0;
        while runs.bytes() > limit {
            runs.evict().expect("there is something");
            turns += 1;
        }
        turns
    }

    /// Reads a chunk as the cache does: from here, or it comes.
    fn read(runs: &mut Runs, object: ObjectId, chunk: u32, limit: u64) {
        if !runs.touch(object, chunk) {
            runs.insert(object, SIZE, chunk, false);
            shrink(runs, limit);
        }
    }

    #[test]
    fn a_scan_over_many_objects_leaves_the_working_set() {
        let (mut runs, limit) = (Runs::new(), 64 * CHUNK_SIZE);
        let hot: Vec<(ObjectId, u32)> = (0..40).map(|n| (n % 5, (n / 5) as u32 * 3)).collect();
        for _ in 0..3 {
            for (object, chunk) in &hot {
                read(&mut runs, *object, *chunk, limit);
            }
        }
        for object in 100..1100 {
            (0..41).for_each(|chunk| read(&mut runs, object, chunk, limit));
        }
        let left = hot.iter().filter(|(object, chunk)| runs.has(*object, *chunk)).count();
        assert_eq!(left, hot.len());
    }

    #[test]
    fn a_whole_new_file_pushes_out_nothing_that_was_used() {
        let (mut runs, limit) = (Runs::new(), 64 * CHUNK_SIZE);
        for _ in 0..2 {
            (0..40).for_each(|chunk| read(&mut runs, 1, chunk, limit));
        }
        for object in 2..20 {
            (0..41).for_each(|chunk| runs.insert(object, SIZE, chunk, false));
            shrink(&mut runs, limit);
        }
        assert!((0..40).all(|chunk| runs.has(1, chunk)));
        assert!(runs.bytes() <= limit);
    }

    #[test]
    fn one_that_is_fetched_again_soon_counts_as_used() {
        let (mut runs, limit) = (Runs::new(), 32 * CHUNK_SIZE);
        (0..41).for_each(|chunk| read(&mut runs, 1, chunk, limit));
        assert!(!runs.has(1, 0));
        read(&mut runs, 1, 0, limit);
        (2..50).for_each(|object| (0..41).for_each(|chunk| read(&mut runs, object, chunk, limit)));
        assert!(runs.has(1, 0) && !runs.has(1, 20));
    }

    #[test]
    fn a_chunk_costs_little() {
        assert!(size_of::<Run>() + size_of::<Link>() <= 32);
        let mut runs = Runs::new();
        for object in 0..10 {
            (0..2048).for_each(|chunk| runs.insert(object, 2048 * CHUNK_SIZE, chunk, false));
        }
        let bytes = runs.slots.len() * (size_of::<Run>() + size_of::<Link>() + size_of::<u32>());
        assert!(bytes / (10 * 2048) <= 3, "{bytes}");
    }

    #[test]
    fn of_objects_that_went_little_is_remembered() {
        let mut runs = Runs::new();
        for object in 0..50_000 {
            runs.insert(object, SIZE, 0, object % 2 == 0);
        }
        assert_eq!(shrink(&mut runs, 0), 50_000);
        assert_eq!((runs.bytes(), runs.evict()), (0, None));
        assert!(runs.slots.len() - runs.free.len() <= 25_000);
        (0..50_000).for_each(|object| runs.remove(object));
        assert_eq!(runs.slots.len(), runs.free.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Read(ObjectId, u32),
        Insert(ObjectId, u32, bool),
        Evict,
        Remove(ObjectId),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..5, 0u32..41).prop_map(|(object, chunk)| Step::Read(object, chunk)),
            4 => (0u64..5, 0u32..41, any::<bool>()).prop_map(|(object, chunk, hot)| Step::Insert(object, chunk, hot)),
            3 => Just(Step::Evict),
            1 => (0u64..5).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn what_is_here_is_what_came_and_did_not_go(steps in prop::collection::vec(step(), 0..300)) {
            let (mut runs, mut model) = (Runs::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Read(object, chunk) => prop_assert_eq!(runs.touch(object, chunk), model.contains(&(object, chunk))),
                    Step::Insert(object, chunk, hot) => {
                        runs.insert(object, SIZE, chunk, hot);
                        model.insert((object, chunk));
                    }
                    Step::Evict => match runs.evict() {
                        None => prop_assert!(model.is_empty()),
                        Some(evicted) => {
                            prop_assert!(evicted.chunks != 0);
                            for chunk in (0..RUN).filter(|chunk| evicted.chunks & bit(*chunk) != 0) {
                                prop_assert!(model.remove(&(evicted.object, evicted.run * RUN + chunk)));
                            }
                            let left = model.iter().any(|(object, _)| *object == evicted.object);
                            prop_assert_eq!(evicted.is_last, !left);
                        }
                    },
                    Step::Remove(object) => {
                        runs.remove(object);
                        model.retain(|(other, _)| *other != object);
                    }
                }
                let length = |chunk: u32| if chunk == 40 { 100 } else { CHUNK_SIZE };
                prop_assert_eq!(runs.bytes(), model.iter().map(|(_, chunk)| length(*chunk)).sum::<u64>());
                let here: Vec<(ObjectId, u32)> =
                    (0..5).flat_map(|id| runs.chunks_of(id).map(move |(chunk, _)| (id, chunk)).collect::<Vec<_>>()).collect();
                prop_assert_eq!(here, model.iter().copied().collect::<Vec<_>>());
                let new: u64 = runs.objects.values().flat_map(|placed| placed.runs.iter().map(move |slot| (placed, *slot)))
                    .filter(|(_, slot)| *slot != NOBODY)
                    .map(|(placed, slot)| (placed, &runs.slots[slot as usize]))
                    .filter(|(_, run)| run.queue == Queue::Probation)
                    .map(|(placed, run)| placed.bytes_of(run.number, run.present)).sum();
                prop_assert_eq!(new, runs.on_probation);
            }
        }
    }
}
