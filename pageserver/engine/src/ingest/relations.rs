//! Sizes of relations: creation, extension, truncation, removal.
//!
//! A fork exists when its size key has a value that is not empty; a directory entry says the same to those who list. Both are pushed at
//! the end of a record, once.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use codec::value::{Change, Value};
use codec::wal::payload::heap::HEAP_BLOCKS_PER_VM_PAGE;
use codec::wal::payload::smgr::Truncate;
use codec::wal::record::Record;
use model::{Fork, Key, Lsn, RelLocator, RelTag};

use super::logical_size::LogicalSizes;
use super::{At, Ingest, IngestError, Latest, PART_ZEROS, Part, decode_size, get, push_zero};
use crate::changes::Changes;

/// Forks whose size is remembered: some megabytes at most.
const REMEMBERED: usize = 65_536;
/// Sizes that are looked up at once.
const AT_ONCE: usize = 32;
/// Value of a directory entry.
const EXISTS: &[u8] = b"r";

/// Forks of recent records with their sizes.
#[derive(Debug, Default)]
pub(super) struct Relations {
    known: HashMap<RelTag, Known, BuildHasherDefault<RelHasher>>,
    /// Those whose stored size is no longer right.
    changed: Vec<RelTag>,
}

/// What is known of a fork.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Blocks; `None` when it does not exist.
    size: Option<u32>,
    /// As the timeline has it.
    stored: Option<u32>,
    /// Used since the last time that old ones were forgotten.
    is_recent: bool,
    /// Listed in `changed`.
    is_changed: bool,
}

impl Relations {
    /// What is remembered of a fork: nothing, or whether it exists and its size.
    #[allow(clippy::option_option, reason = "not knowing and knowing that there is none are both answers")]
    fn recall(&mut self, rel: RelTag) -> Option<Option<u32>> {
        let known = self.known.get_mut(&rel)?;
        known.is_recent = true;
        Some(known.size)
    }

    /// Remembers what the timeline has.
    fn learn(&mut self, rel: RelTag, size: Option<u32>) {
        let known = Known { size, stored: size, is_recent: true, is_changed: false };
        self.known.entry(rel).or_insert(known);
    }

    /// Changes the size of a fork that was recalled or learned before.
    fn set(&mut self, rel: RelTag, size: Option<u32>) {
        let known = self.known.entry(rel).or_insert(Known {
            size: None,
            stored: None,
            is_recent: true,
            is_changed: false,
        });
        if known.size != size {
            known.size = size;
            if !known.is_changed {
                known.is_changed = true;
                self.changed.push(rel);
            }
        }
    }

    /// Pushes sizes and directory entries that changed, then forgets forks that were not used for long.
    pub(super) fn push_changed(&mut self, changes: &mut Changes, lsn: Lsn, sizes: &mut LogicalSizes) {
        for rel in self.changed.drain(..) {
            let Some(known) = self.known.get_mut(&rel) else { continue };
            known.is_changed = false;
            if known.size == known.stored {
                continue;
            }
            if known.size.is_some() != known.stored.is_some() {
                let entry = if known.size.is_some() { EXISTS } else { &[] };
                changes.push(Key::rel_directory_entry(rel), lsn, &Value::Image(entry));
            }
            let bytes = known.size.map(u32::to_le_bytes);
            let bytes = bytes.as_ref().map_or(&[][..], |bytes| &bytes[..]);
            changes.push(Key::rel_size(rel), lsn, &Value::Image(bytes));
            sizes.resized(known.stored, known.size);
            known.stored = known.size;
        }
        if self.known.len() > REMEMBERED {
            self.known.retain(|_, known| std::mem::take(&mut known.is_recent));
            if self.known.len() > REMEMBERED / 2 {
                self.known.clear();
            }
        }
    }
}

impl Ingest {
    /// The size of a fork; `None` when it does not exist.
    pub(super) async fn size(
        &mut self,
        rel: RelTag,
        latest: &impl Latest,
    ) -> Result<Option<u32>, IngestError> {
        if let Some(size) = self.relations.recall(rel) {
            return Ok(size);
        }
        let size = stored_size(rel, self.at, latest).await?;
        self.relations.learn(rel, size);
        Ok(size)
    }

    /// Looks up the sizes of forks that are not remembered, many at once.
    pub(super) async fn learn_sizes(
        &mut self,
        rels: &[RelTag],
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let unknown: Vec<RelTag> =
            rels.iter().copied().filter(|rel| self.relations.recall(*rel).is_none()).collect();
        for rels in unknown.chunks(AT_ONCE) {
            let sizes = rels.iter().map(|rel| stored_size(*rel, self.at, latest));
            for (rel, size) in rels.iter().zip(futures::future::try_join_all(sizes).await?) {
                self.relations.learn(*rel, size);
            }
        }
        Ok(())
    }

    pub(super) fn set_size(&mut self, rel: RelTag, size: Option<u32>) {
        if size.is_some() {
            self.databases.ensure(rel.spc, rel.db);
        }
        self.relations.set(rel, size);
    }

    /// Makes sure that a fork reaches to this block, as every reference to a block does. Blocks between its old end and this one read as
    /// zeros from now on, whatever was there before a truncation. Answers whether the block is a new one.
    pub(super) async fn extend(
        &mut self,
        record: &Record<'_>,
        rel: RelTag,
        block: u32,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<bool, IngestError> {
        let size = match self.relations.recall(rel) {
            Some(size) => size,
            None => self.size(rel, latest).await?,
        };
        if size.is_some_and(|size| block < size) {
            return Ok(false);
        }
        let old = size.unwrap_or(0);
        if block - old > PART_ZEROS {
            self.unfinished.push(Part::Gap { rel, blocks: old..block });
        } else {
            for gap in (old..block).filter(|gap| record.block_of(rel, *gap).is_none()) {
                push_zero(changes, Key::rel_block(rel, gap), self.at.end);
            }
        }
        self.set_size(rel, Some(block + 1));
        Ok(true)
    }

    /// A fork's file is created; one that is there stays as it is.
    pub(super) async fn create(&mut self, rel: RelTag, latest: &impl Latest) -> Result<(), IngestError> {
        if self.size(rel, latest).await?.is_none() {
            self.set_size(rel, Some(0));
        }
        Ok(())
    }

    /// Cuts the forks of a relation where the main fork is to end.
    pub(super) async fn truncate(
        &mut self,
        cut: Truncate,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let main = cut.rel.fork(Fork::Main);
        let size = self.size(main, latest).await?;
        if cut.main {
            self.set_size(main, Some(size.unwrap_or(0).min(cut.blocks)));
        } else if size.is_none() {
            self.set_size(main, Some(0));
        }
        if cut.fsm {
            let rel = cut.rel.fork(Fork::Fsm);
            if let Some(size) = self.size(rel, latest).await? {
                let end = fsm_end(cut.blocks);
                if size >= end.blocks && end.cuts_last && end.blocks > 0 {
                    // Of the last page only the free space before the cut would stay. Zero means "none known", which is always allowed:
                    // vacuum finds it again.
                    push_zero(changes, Key::rel_block(rel, end.blocks - 1), self.at.end);
                }
                self.set_size(rel, Some(size.min(end.blocks)));
            }
        }
        if cut.vm {
            let rel = cut.rel.fork(Fork::Vm);
            if let Some(size) = self.size(rel, latest).await? {
                let page = cut.blocks / HEAP_BLOCKS_PER_VM_PAGE;
                let within = cut.blocks % HEAP_BLOCKS_PER_VM_PAGE;
                let end = page + u32::from(within != 0);
                if within != 0 && size > page {
                    let (byte, bit) = (u64::from(within / 4), u64::from(within % 4 * 2));
                    let change = Change::TruncateVisibilityMap { byte, bit };
                    changes.push(Key::rel_block(rel, page), self.at.end, &Value::Change(change));
                }
                self.set_size(rel, Some(size.min(end)));
            }
        }
        Ok(())
    }

    /// Removes all relations of a database in a tablespace.
    pub(super) async fn remove_all(
        &mut self,
        spc: u32,
        db: u32,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let rels = self.entries(Key::rel_directory_range(spc, db), latest).await?;
        self.learn_sizes(&rels, latest).await?;
        for rel in rels {
            self.relations.set(rel, None);
        }
        Ok(())
    }

    /// Removes all forks of a relation.
    pub(super) async fn remove(&mut self, rel: RelLocator, latest: &impl Latest) -> Result<(), IngestError> {
        let forks = Fork::ALL.map(|fork| rel.fork(fork));
        if forks.iter().any(|fork| self.relations.recall(*fork).is_none()) {
            let [first, .., last] = forks.map(Key::rel_directory_entry);
            let existing = self.entries(first..last.next(), latest).await?;
            self.learn_sizes(&existing, latest).await?;
            for fork in forks {
                self.relations.learn(fork, None);
            }
        }
        for fork in forks {
            self.set_size(fork, None);
        }
        Ok(())
    }

    /// Forks that directory entries name, in order; those that were created by the record at hand are not among them.
    pub(super) async fn entries(
        &self,
        keys: model::KeyRange,
        latest: &impl Latest,
    ) -> Result<Vec<RelTag>, IngestError> {
        let At { start: at, .. } = self.at;
        let entries = latest.scan(keys).await.map_err(|source| IngestError::Read { at, source })?;
        let existing = entries.into_iter().filter(|(_, value)| !value.is_empty());
        Ok(existing
            .filter_map(|(key, _)| match key.kind() {
                Some(model::key::KeyKind::RelDirectoryEntry(rel)) => Some(rel),
                _ => None,
            })
            .collect())
    }
}

/// The size of a fork as the timeline has it; `None` when it does not exist.
async fn stored_size(rel: RelTag, at: At, latest: &impl Latest) -> Result<Option<u32>, IngestError> {
    let key = Key::rel_size(rel);
    match get(latest, key, at).await? {
        Some(bytes) => Ok(Some(decode_size("relation size", key, &bytes)?)),
        None => Ok(None),
    }
}

/// Where a free space map ends.
#[derive(Debug, PartialEq, Eq)]
struct FsmEnd {
    blocks: u32,
    /// The last page also covers blocks that are cut.
    cuts_last: bool,
}

/// Where the free space map of a relation of so many blocks ends (`FreeSpaceMapPrepareTruncateRel`).
///
/// The map is a tree of three levels, each page of which has a slot per page below; pages are stored depth first. A leaf page covers
/// 4,069 heap blocks.
fn fsm_end(heap_blocks: u32) -> FsmEnd {
    const SLOTS: u32 = 4_069;
    let leaf = heap_blocks / SLOTS;
    // Pages before this leaf: the leaves, their parents up to and including its own, and theirs.
    let before = leaf + (leaf / SLOTS + 1) + (leaf / SLOTS / SLOTS + 1);
    let cuts_last = !heap_blocks.is_multiple_of(SLOTS);
    FsmEnd { blocks: before + u32::from(cuts_last), cuts_last }
}

/// Hashes relations quickly: their numbers come from a trusted source, and every block of every record is looked up.
#[derive(Debug, Default)]
pub(super) struct RelHasher(u64);

impl Hasher for RelHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = u128::from(self.0 ^ word ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93;
        self.0 = mixed as u64 ^ (mixed >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_space_map_ends_where_postgres_ends_it() {
        // An empty relation keeps the root and the middle page; a page of leaves comes with the first block.
        assert_eq!(fsm_end(0), FsmEnd { blocks: 2, cuts_last: false });
        assert_eq!(fsm_end(1), FsmEnd { blocks: 3, cuts_last: true });
        assert_eq!(fsm_end(4_069), FsmEnd { blocks: 3, cuts_last: false });
        assert_eq!(fsm_end(4_070), FsmEnd { blocks: 4, cuts_last: true });
        // After 4,069 leaves a second page of the middle level comes before the next leaf.
        assert_eq!(fsm_end(4_069 * 4_069), FsmEnd { blocks: 4_069 + 3, cuts_last: false });
    }
}
