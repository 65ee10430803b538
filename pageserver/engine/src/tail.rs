//! The newest versions of a timeline, in memory: immutable sorted batches.
//!
//! The owner publishes a [`Batch`] every few milliseconds; readers see the batches of their snapshot and never a structure that changes.
//! Batches of like size are merged so that a read probes few of them. Merging moves only the 48-byte entries; values stay where they were put.

use std::sync::Arc;

use bytes::Bytes;
use model::{Key, KeyRange, Lsn, PgTimestamp};

use crate::changes::Changes;

/// How many batches of one size class may stand beside each other. A tail of N publishings is read by at most
/// `MERGE_FANOUT × log(N)` binary searches, and each entry is moved at most `log(N)` times (base `MERGE_FANOUT`).
const MERGE_FANOUT: usize = 4;

/// One version in a batch.
#[derive(Clone, Copy, Debug)]
struct Slot {
    key: Key,
    lsn: Lsn,
    arena: u32,
    at: u32,
    len: u32,
    will_init: bool,
}

/// Versions sorted by key, then LSN. Immutable.
#[derive(Debug)]
pub struct Batch {
    slots: Box<[Slot]>,
    arenas: Box<[Bytes]>,
    size: usize,
}

/// A version read from a batch.
#[derive(Clone, Debug)]
pub struct Version {
    /// Of which key.
    pub key: Key,
    /// End of the record that made it.
    pub lsn: Lsn,
    /// The encoded value.
    pub value: Bytes,
    /// Whether reconstruction can start here.
    pub will_init: bool,
}

impl Batch {
    /// Sorts what was collected. Of several versions with the same key and LSN the last one pushed counts.
    pub fn from_changes(changes: &mut Changes) -> Batch {
        let mut slots: Vec<Slot> = changes
            .entries
            .iter()
            .map(|entry| Slot {
                key: entry.key,
                lsn: entry.lsn,
                arena: 0,
                at: entry.at,
                len: entry.len,
                will_init: entry.will_init,
            })
            .collect();
        slots.sort_by_key(|slot| (slot.key, slot.lsn));
        let mut kept: Vec<Slot> = Vec::with_capacity(slots.len());
        for slot in slots {
            match kept.last_mut() {
                Some(last) if (last.key, last.lsn) == (slot.key, slot.lsn) => *last = slot,
                _ => kept.push(slot),
            }
        }
        // What was collected grew by doubling, and would lie here until the tail is a layer, up to half of it memory that nobody counts. A copy is as large as
        // it must be.
        let arena = Bytes::copy_from_slice(&std::mem::take(&mut changes.bytes));
        let size = arena.len() + kept.len() * size_of::<Slot>();
        changes.clear();
        Batch { slots: kept.into(), arenas: Box::new([arena]), size }
    }

    /// One batch with the versions of several. Batches come oldest first; they never share a key and LSN.
    fn merged(batches: &[Arc<Batch>]) -> Batch {
        let total = batches.iter().map(|batch| batch.slots.len()).sum();
        let mut slots = Vec::with_capacity(total);
        let mut arenas = Vec::new();
        for batch in batches {
            let base = arenas.len() as u32;
            arenas.extend(batch.arenas.iter().cloned());
            slots.extend(batch.slots.iter().map(|slot| Slot { arena: slot.arena + base, ..*slot }));
        }
        // Sorted runs back to back: the standard library's stable sort finds and merges them.
        slots.sort_by_key(|slot| (slot.key, slot.lsn));
        let size = batches.iter().map(|batch| batch.size).sum();
        Batch { slots: slots.into(), arenas: arenas.into(), size }
    }

    fn version(&self, slot: &Slot) -> Version {
        let at = slot.at as usize;
        let value = self.arenas[slot.arena as usize].slice(at..at + slot.len as usize);
        Version { key: slot.key, lsn: slot.lsn, value, will_init: slot.will_init }
    }

    /// The versions of `key` up to and including `lsn`, newest first.
    pub fn versions_down(&self, key: Key, lsn: Lsn) -> impl Iterator<Item = Version> + '_ {
        let end = self.slots.partition_point(|slot| (slot.key, slot.lsn) <= (key, lsn));
        self.slots[..end].iter().rev().take_while(move |slot| slot.key == key).map(|slot| self.version(slot))
    }

    /// All versions of the keys of a range, by key, then LSN.
    pub fn range(&self, keys: &KeyRange) -> impl Iterator<Item = Version> + '_ {
        let start = self.slots.partition_point(|slot| slot.key < keys.start);
        let end = self.slots.partition_point(|slot| slot.key < keys.end);
        self.slots[start..end.max(start)].iter().map(|slot| self.version(slot))
    }

    /// Hands over every version, by key, then LSN, with its encoded value, until an error.
    ///
    /// Values lie in the order of WAL, so in this order each is a miss of the processor's caches. A group of them is touched first, which
    /// makes their misses overlap: copying them is several times faster then.
    pub fn try_for_each<E>(
        &self,
        mut take: impl FnMut(Key, Lsn, bool, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        const GROUP: usize = 16;
        const CACHE_LINE: usize = 64;
        for group in self.slots.chunks(GROUP) {
            let touched = group.iter().fold(0, |touched: u8, slot| {
                let value = self.value(slot);
                let second = value.get(CACHE_LINE).or(value.last());
                touched ^ value.first().unwrap_or(&0) ^ second.unwrap_or(&0)
            });
            std::hint::black_box(touched);
            for slot in group {
                take(slot.key, slot.lsn, slot.will_init, self.value(slot))?;
            }
        }
        Ok(())
    }

    fn value(&self, slot: &Slot) -> &[u8] {
        &self.arenas[slot.arena as usize][slot.at as usize..][..slot.len as usize]
    }

    /// How many versions there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of memory it accounts for.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// A run of batches, oldest first. Cheap to clone; never changes.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    batches: Arc<[Arc<Batch>]>,
    size: usize,
    commit_times: Option<(PgTimestamp, PgTimestamp)>,
}

impl Tail {
    /// This tail and one more batch, newer than all others. Takes the collected changes and leaves them empty.
    #[must_use]
    pub fn with(&self, changes: &mut Changes) -> Tail {
        let commit_times = match (self.commit_times, changes.commit_times) {
            (Some(old), Some(new)) => Some((old.0.min(new.0), old.1.max(new.1))),
            (old, new) => old.or(new),
        };
        let batch = Arc::new(Batch::from_changes(changes));
        let size = self.size + batch.size();
        let mut batches = self.batches.to_vec();
        batches.push(batch);
        while let Some(run) = run_to_merge(&batches) {
            let merged = Arc::new(Batch::merged(&batches[run..]));
            batches.truncate(run);
            batches.push(merged);
        }
        Tail { batches: batches.into(), size, commit_times }
    }

    /// Batches, oldest first.
    pub fn batches(&self) -> &[Arc<Batch>] {
        &self.batches
    }

    /// All batches as one.
    pub fn merged(&self) -> Batch {
        Batch::merged(&self.batches)
    }

    /// Bytes of memory it accounts for.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Oldest and newest commit time in it.
    pub fn commit_times(&self) -> Option<(PgTimestamp, PgTimestamp)> {
        self.commit_times
    }
}

/// Where a run of batches begins that are of one size class and enough to merge. Only the newest batches can be such a run.
fn run_to_merge(batches: &[Arc<Batch>]) -> Option<usize> {
    let class = |batch: &Arc<Batch>| batch.len().max(256).ilog2() / MERGE_FANOUT.ilog2();
    let newest = class(batches.last()?);
    let run = batches.iter().rev().take_while(|batch| class(batch) <= newest).count();
    (run >= MERGE_FANOUT).then(|| batches.len() - run)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use codec::value::Value;
    use proptest::prelude::*;

    use super::*;

    fn key(number: u32) -> Key {
        Key { field6: number, ..Key::MIN }
    }

    proptest! {
        #[test]
        fn a_tail_answers_as_a_map_would(
            publishings in prop::collection::vec(prop::collection::vec((0u32..8, 0u8..), 0..40), 1..60),
            asked_key in 0u32..9,
            asked_lsn in 0u64..3000,
        ) {
            let mut tail = Tail::default();
            let mut model: BTreeMap<(Key, Lsn), Vec<u8>> = BTreeMap::new();
            let mut lsn = 0;
            for publishing in publishings {
                let mut changes = Changes::default();
                for (number, byte) in publishing {
                    lsn += u64::from(byte) % 2; // sometimes the same LSN again: the last push counts
                    changes.push(key(number), Lsn(lsn), &Value::Image(&[byte]));
                    model.insert((key(number), Lsn(lsn)), Value::Image(&[byte]).to_bytes());
                }
                lsn += 1;
                if !changes.is_empty() {
                    tail = tail.with(&mut changes);
                }
            }
            let mut found: Vec<(Lsn, Vec<u8>)> = tail.batches().iter()
                .flat_map(|batch| batch.versions_down(key(asked_key), Lsn(asked_lsn)).map(|v| (v.lsn, v.value.to_vec())).collect::<Vec<_>>())
                .collect();
            found.sort();
            let expected: Vec<(Lsn, Vec<u8>)> = model.range((key(asked_key), Lsn(0))..=(key(asked_key), Lsn(asked_lsn)))
                .map(|((_, lsn), value)| (*lsn, value.clone())).collect();
            prop_assert_eq!(found, expected);
            let mut all = Vec::new();
            let Ok(()) = tail.merged().try_for_each(|key, lsn, _, value| {
                all.push(((key, lsn), value.to_vec()));
                Ok::<_, std::convert::Infallible>(())
            });
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
            prop_assert!(tail.batches().len() <= 4 * 8, "{} batches", tail.batches().len());
        }
    }

    #[test]
    fn a_batch_holds_no_more_memory_than_it_says() {
        let mut changes = Changes::default();
        for lsn in 1..100 {
            changes.push(key(1), Lsn(lsn), &Value::Image(&[7; 1_000]));
        }
        assert!(changes.bytes.capacity() > changes.bytes.len(), "else this shows nothing");
        let batch = Batch::from_changes(&mut changes);
        let (slots, size) = (batch.slots.len() * size_of::<Slot>(), batch.size());
        let held = batch.arenas.into_iter().map(|arena| arena.try_into_mut().unwrap().capacity());
        assert_eq!(held.sum::<usize>(), size - slots);
    }

    #[test]
    fn batches_are_in_order_of_time_after_merging() {
        let mut tail = Tail::default();
        for lsn in 1..1000 {
            let mut changes = Changes::default();
            changes.push(key(1), Lsn(lsn), &Value::Image(b"x"));
            tail = tail.with(&mut changes);
        }
        let newest: Vec<Lsn> =
            tail.batches().iter().map(|b| b.versions_down(key(1), Lsn::MAX).next().unwrap().lsn).collect();
        assert!(newest.is_sorted(), "{newest:?}");
        assert!(tail.batches().len() < 20);
    }
}
