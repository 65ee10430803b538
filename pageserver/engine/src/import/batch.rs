//! Small things, gathered until they fill a layer.
//!
//! A cluster has thousands of relations of a few pages; a layer each would be absurd. But layers of one LSN must not overlap, and a layer
//! claims its whole range: no key of a later file may fall into it. Files arrive in the archive's order, not in key order, so what is
//! known of the order decides what may be written early:
//!
//! - while everything fits into memory, nothing is written; at the end all is, in as few layers as the big relations in between allow;
//! - when memory runs short, a database whose files have all arrived (archives keep a directory's files together) is written over its
//!   own range, and of the one that is arriving the biggest files, each over its exact blocks.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use model::key::KeyKind;
use model::{Key, KeyRange};

use super::layer_out::{LayerOut, LayerOutError};

/// Bytes that an entry costs besides its value.
const ENTRY_OVERHEAD: u64 = 64;

/// What arrives together in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The files of a database in one tablespace.
    Database {
        /// Tablespace.
        spc: u32,
        /// Database.
        db: u32,
    },
    /// Whatever else: always written last.
    Rest,
}

impl Group {
    fn of(key: Key) -> Group {
        match key.kind() {
            Some(KeyKind::RelBlock { rel, .. } | KeyKind::RelSize(rel) | KeyKind::RelDirectoryEntry(rel)) => {
                Group::Database { spc: rel.spc, db: rel.db }
            }
            Some(KeyKind::RelationMap { spc, db }) => Group::Database { spc, db },
            _ => Group::Rest,
        }
    }
}

/// The gathered values, and which key ranges were already written.
#[derive(Debug)]
pub struct Batch {
    values: BTreeMap<Key, Vec<u8>>,
    bytes: u64,
    /// Exact ranges of consecutive keys that one file brought: first key to number of keys.
    files: BTreeMap<Key, u32>,
    /// Starts of ranges that are written.
    written: BTreeMap<Key, Key>,
    closed: HashSet<Group>,
    layer_bytes: u64,
    /// Layers written.
    pub layers: u64,
}

impl Batch {
    /// Layers are cut at `layer_bytes` of values.
    pub fn new(layer_bytes: u64) -> Batch {
        Batch {
            values: BTreeMap::new(),
            bytes: 0,
            files: BTreeMap::new(),
            written: BTreeMap::new(),
            closed: HashSet::new(),
            layer_bytes,
            layers: 0,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the group's layers are written, so that nothing can be added to it.
    pub fn is_closed(&self, group: Group) -> bool {
        self.closed.contains(&group)
    }

    /// Adds a value.
    pub fn put(&mut self, key: Key, value: Vec<u8>) {
        self.bytes += value.len() as u64 + ENTRY_OVERHEAD;
        if let Some(old) = self.values.insert(key, value) {
            self.bytes -= old.len() as u64 + ENTRY_OVERHEAD;
        }
    }

    /// Notes that `count` consecutive keys from `first` on were all put and that no other key can come between them.
    pub fn file_is_whole(&mut self, first: Key, count: u32) {
        if count > 0 {
            self.files.insert(first, count);
        }
    }

    /// Drops what was gathered of a range.
    pub fn forget(&mut self, keys: KeyRange) {
        let gone: Vec<Key> = self.values.range(keys.clone()).map(|(key, _)| *key).collect();
        for key in gone {
            self.take(key);
        }
        self.forget_files(&keys);
    }

    fn forget_files(&mut self, keys: &KeyRange) {
        let gone: Vec<Key> = self.files.range(keys.clone()).map(|(first, _)| *first).collect();
        for first in gone {
            self.files.remove(&first);
        }
    }

    /// Notes a range that was written elsewhere.
    pub fn was_written(&mut self, keys: KeyRange) {
        self.written.insert(keys.start, keys.end);
        self.layers += 1;
    }

    fn take(&mut self, key: Key) -> Option<Vec<u8>> {
        let value = self.values.remove(&key)?;
        self.bytes -= value.len() as u64 + ENTRY_OVERHEAD;
        Some(value)
    }

    /// Groups that are gathered and complete: all but `arriving`.
    pub fn complete_groups(&self, arriving: Group) -> Vec<Group> {
        let mut groups = Vec::new();
        let mut from = Bound::Unbounded;
        while let Some((key, _)) = self.values.range((from, Bound::Unbounded)).next() {
            let group = Group::of(*key);
            if group != Group::Rest && group != arriving && !groups.contains(&group) {
                groups.push(group);
            }
            from = match group {
                Group::Database { spc, db } if key.field1 == 0 => {
                    Bound::Included(Key::database_range(spc, db).end)
                }
                Group::Database { spc, db } => Bound::Included(Key::rel_directory_range(spc, db).end),
                Group::Rest => Bound::Excluded(*key),
            };
        }
        groups
    }

    /// Writes all of a complete group.
    pub async fn write_group(&mut self, group: Group, out: &mut dyn LayerOut) -> Result<(), LayerOutError> {
        if let Group::Database { spc, db } = group {
            self.write(Key::database_range(spc, db), out).await?;
            self.write(Key::rel_directory_range(spc, db), out).await?;
        }
        self.closed.insert(group);
        Ok(())
    }

    /// Writes the biggest whole files, each over its exact range, until at most `goal` bytes are held.
    pub async fn write_biggest_files(
        &mut self,
        goal: u64,
        out: &mut dyn LayerOut,
    ) -> Result<(), LayerOutError> {
        let mut files: Vec<(u32, Key)> = self.files.iter().map(|(first, count)| (*count, *first)).collect();
        files.sort_unstable_by(|a, b| b.cmp(a));
        for (count, first) in files {
            if self.bytes <= goal {
                break;
            }
            let end = Key { field6: first.field6 + count, ..first };
            self.write(first..end, out).await?;
        }
        Ok(())
    }

    /// Writes everything that is left.
    pub async fn write_rest(&mut self, out: &mut dyn LayerOut) -> Result<(), LayerOutError> {
        // Sparse keys have layers of their own, as their absence means something else.
        let sparse = Key { field1: 0x60, ..Key::MIN };
        self.write(Key::MIN..sparse, out).await?;
        self.write(sparse..Key::MAX, out).await
    }

    /// Writes the gathered values of a range, in as many layers as their size and the ranges already written ask for.
    async fn write(&mut self, keys: KeyRange, out: &mut dyn LayerOut) -> Result<(), LayerOutError> {
        for layer in self.cut(&keys) {
            out.begin(layer.clone()).await?;
            let inside: Vec<Key> = self.values.range(layer.clone()).map(|(key, _)| *key).collect();
            for key in inside {
                let value = self.take(key).expect("it was just listed");
                out.put(key, &value).await?;
            }
            out.finish().await?;
            self.was_written(layer);
        }
        self.forget_files(&keys);
        Ok(())
    }

    fn cut(&self, keys: &KeyRange) -> Vec<KeyRange> {
        let mut layers: Vec<KeyRange> = Vec::new();
        let mut bytes = 0;
        for (key, value) in self.values.range(keys.clone()) {
            let between = |last: Key| self.written.range(last..*key).next().is_some();
            match layers.last_mut() {
                Some(layer) if bytes < self.layer_bytes && !between(layer.end) => layer.end = key.next(),
                _ => {
                    layers.push(*key..key.next());
                    bytes = 0;
                }
            }
            bytes += value.len() as u64;
        }
        layers
    }
}
