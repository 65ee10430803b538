//! New versions on their way into a timeline.

use codec::value::Value;
use model::{Key, Lsn, PgTimestamp};

/// One new version: where its value lies in its batch's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What changed.
    pub key: Key,
    /// End of the record that changed it.
    pub lsn: Lsn,
    /// Offset of the encoded value.
    pub at: u32,
    /// Bytes of the encoded value.
    pub len: u32,
    /// Whether reconstruction can start here.
    pub will_init: bool,
}

/// A run of new versions in WAL order. At most one version per key and LSN: a later push for the same key at the same LSN replaces the
/// earlier one, so a record's effects are pushed in the order in which redo would apply them and never twice for a page.
#[derive(Debug, Default)]
pub struct Changes {
    /// In the order of pushing; LSNs never fall.
    pub entries: Vec<Entry>,
    /// Encoded values, back to back.
    pub bytes: Vec<u8>,
    /// Oldest and newest commit time among the changes.
    pub commit_times: Option<(PgTimestamp, PgTimestamp)>,
}

impl Changes {
    /// Adds a version.
    pub fn push(&mut self, key: Key, lsn: Lsn, value: &Value<'_>) {
        let at = self.bytes.len();
        value.encode(&mut self.bytes);
        let len = self.bytes.len() - at;
        debug_assert!(self.entries.last().is_none_or(|last| last.lsn <= lsn), "changes out of WAL order");
        self.entries.push(Entry { key, lsn, at: at as u32, len: len as u32, will_init: value.will_init() });
    }

    /// Notes a commit's time.
    pub fn committed_at(&mut self, time: PgTimestamp) {
        let (oldest, newest) = self.commit_times.unwrap_or((time, time));
        self.commit_times = Some((oldest.min(time), newest.max(time)));
    }

    /// The encoded value of one of the entries.
    pub fn value_bytes(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.at as usize..][..entry.len as usize]
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes it holds in memory.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>()
    }

    /// Moves another's changes behind these.
    pub fn append(&mut self, newer: &mut Changes) {
        let base = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&newer.bytes);
        self.entries.extend(newer.entries.iter().map(|entry| Entry { at: entry.at + base, ..*entry }));
        if let Some((oldest, newest)) = newer.commit_times {
            self.committed_at(oldest);
            self.committed_at(newest);
        }
        newer.clear();
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        self.commit_times = None;
    }
}
