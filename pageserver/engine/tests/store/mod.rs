//! A timeline in a map: the model that ingest is tested against.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use codec::logical_size::LogicalSize;
use codec::page::ZERO_PAGE;
use codec::value::Value;
use engine::as_of::ReadError;
use engine::changes::Changes;
use engine::ingest::{Ingest, IngestError, Latest, Outcome};
use model::key::KeyKind;
use model::{Key, KeyRange, Lsn, PgMajor, RelTag};

/// Every version of every key, as encoded values.
pub struct Store {
    pub pg: PgMajor,
    pub versions: BTreeMap<Key, Vec<(Lsn, Vec<u8>)>>,
}

impl Store {
    pub fn new(pg: PgMajor) -> Store {
        Store { pg, versions: BTreeMap::new() }
    }

    pub fn put(&mut self, key: Key, lsn: Lsn, value: &Value<'_>) {
        self.versions.entry(key).or_default().push((lsn, value.to_bytes()));
    }

    /// Takes over what ingest pushed. Fails the test when a key gets two versions of one LSN, or an older one after a newer.
    pub fn take(&mut self, changes: &mut Changes) {
        for entry in &changes.entries {
            let versions = self.versions.entry(entry.key).or_default();
            if let Some((last, _)) = versions.last() {
                assert!(
                    *last < entry.lsn,
                    "key {} ({:?}): {} after {last}",
                    entry.key,
                    entry.key.kind(),
                    entry.lsn
                );
            }
            versions.push((entry.lsn, changes.value_bytes(entry).to_vec()));
        }
        changes.clear();
    }

    /// The newest value, reconstructed.
    pub fn value(&self, key: Key) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(versions) = self.versions.get(&key) else { return Ok(None) };
        let is_base = |bytes: &[u8]| Value::decode(bytes).expect("values were encoded by us").will_init();
        let from = versions.iter().rposition(|(_, bytes)| is_base(bytes)).unwrap_or(0);
        let changes = versions[from..].iter().map(|(lsn, bytes)| (*lsn, &bytes[..]));
        let lsn = versions.last().map_or(Lsn::INVALID, |(lsn, _)| *lsn);
        redo::reconstruct(None, changes, self.pg, key).map(Some).map_err(|source| ReadError::Redo {
            key,
            lsn,
            source: Box::new(source),
        })
    }

    /// A size; `None` when there is none or it was dropped.
    pub fn size(&self, key: Key) -> Option<u32> {
        let bytes = self.value(key).expect("sizes are images")?;
        (!bytes.is_empty()).then(|| u32::from_le_bytes(bytes[..].try_into().expect("sizes have four bytes")))
    }

    /// The sum of all sizes, counted one by one.
    pub fn counted_size(&self) -> LogicalSize {
        let entries = self.versions.range(Key::rel_directory_all()).filter_map(|(key, _)| match key.kind() {
            Some(KeyKind::RelDirectoryEntry(rel)) => Some(rel),
            _ => None,
        });
        let sizes = entries.map(|rel| self.size(Key::rel_size(rel)));
        sizes.fold(LogicalSize::default(), |sum, size| sum.resized(None, size))
    }

    /// The sum of all sizes, as ingest says it.
    pub fn stored_size(&self) -> Option<LogicalSize> {
        let bytes = self.value(Key::LOGICAL_SIZE).expect("it is an image")?;
        Some(LogicalSize::decode(&bytes).expect("ingest encoded it"))
    }

    /// Ingests one record, with all its parts.
    pub async fn ingest(
        &mut self,
        ingest: &mut Ingest,
        record: &codec::wal::record::Record<'_>,
        bytes: &[u8],
        start: Lsn,
        end: Lsn,
    ) -> Result<usize, IngestError> {
        let mut changes = Changes::default();
        let mut outcome = ingest.record(record, bytes, start, end, &mut changes, self).await?;
        let mut parts = 1;
        while outcome == Outcome::Unfinished {
            self.take(&mut changes);
            outcome = ingest.resume(&mut changes, self).await?;
            parts += 1;
        }
        self.take(&mut changes);
        Ok(parts)
    }
}

impl Latest for Store {
    async fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        Ok(self.value(key)?.map(Bytes::from))
    }

    async fn scan(&self, keys: KeyRange) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let mut found = Vec::new();
        for key in self.versions.range(keys).map(|(key, _)| *key) {
            found.extend(self.value(key)?.map(|value| (key, Bytes::from(value))));
        }
        Ok(found)
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Bytes, ReadError> {
        let mut pages = Vec::new();
        for block in blocks {
            match self.value(Key::rel_block(rel, block))? {
                Some(page) => pages.extend_from_slice(&page),
                None => pages.extend_from_slice(&ZERO_PAGE),
            }
        }
        Ok(pages.into())
    }
}
