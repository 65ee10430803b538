//! What a timeline must answer: every version of every key, in a map. Nothing of the engine is in here but the names of keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use codec::page::Page;
use model::key::KeyKind;
use model::{Key, Lsn, PgTimestamp, RelTag, SlruKind};

/// A version of a key.
#[derive(Clone, Debug)]
pub enum Version {
    /// Of a size: blocks or pages; `None` when it is gone.
    Size(Option<u32>),
    /// Of a page.
    Page(Arc<Page>),
}

/// One timeline's versions, those that it shares with its ancestors included.
#[derive(Clone, Debug)]
pub struct History {
    versions: BTreeMap<Key, Vec<(Lsn, Version)>>,
    /// Commits in their order.
    pub commits: Vec<(Lsn, PgTimestamp)>,
    /// Where each record begins and ends, in order.
    pub records: Vec<(Lsn, Lsn)>,
    /// Where the base is: the first LSN that can be read.
    pub base: Lsn,
}

/// What a read of a page must answer.
#[derive(Clone, Debug)]
pub enum PageThere {
    /// The relation does not exist.
    NoRelation,
    /// Zeros.
    Zeros,
    /// This.
    Page(Arc<Page>),
}

impl History {
    /// Nothing, as of `base`.
    pub fn new(base: Lsn) -> History {
        History { versions: BTreeMap::new(), commits: Vec::new(), records: Vec::new(), base }
    }

    /// Adds a version. LSNs of one key never fall; at the same LSN the later one counts.
    pub fn put(&mut self, key: Key, lsn: Lsn, version: Version) {
        let versions = self.versions.entry(key).or_default();
        match versions.last_mut() {
            Some(last) if last.0 == lsn => last.1 = version,
            Some(last) => {
                assert!(last.0 < lsn, "the model is written in the order of WAL");
                versions.push((lsn, version));
            }
            None => versions.push((lsn, version)),
        }
    }

    /// The version of a key as of `lsn`.
    pub fn at(&self, key: Key, lsn: Lsn) -> Option<&Version> {
        let versions = self.versions.get(&key)?;
        let after = versions.partition_point(|(at, _)| *at <= lsn);
        Some(&versions[after.checked_sub(1)?].1)
    }

    /// The same history up to `lsn`, for a branch.
    #[must_use]
    pub fn up_to(&self, lsn: Lsn) -> History {
        let versions = self.versions.iter().filter_map(|(key, versions)| {
            let end = versions.partition_point(|(at, _)| *at <= lsn);
            (end > 0).then(|| (*key, versions[..end].to_vec()))
        });
        History {
            versions: versions.collect(),
            commits: self.commits.iter().copied().filter(|(at, _)| *at <= lsn).collect(),
            records: self.records.iter().copied().filter(|(_, end)| *end <= lsn).collect(),
            base: self.base,
        }
    }

    /// End of the last record.
    pub fn end(&self) -> Lsn {
        self.records.last().map_or(self.base, |(_, end)| *end)
    }

    /// End of the last record that ends at or before `lsn`.
    pub fn record_end_at(&self, lsn: Lsn) -> Lsn {
        let after = self.records.partition_point(|(_, end)| *end <= lsn);
        after.checked_sub(1).map_or(self.base, |at| self.records[at].1)
    }

    /// Start of the record that ends at `lsn`.
    pub fn record_before(&self, lsn: Lsn) -> Option<Lsn> {
        let after = self.records.partition_point(|(_, end)| *end <= lsn);
        after.checked_sub(1).map(|at| self.records[at].0)
    }

    /// A size as of `lsn`.
    pub fn size(&self, key: Key, lsn: Lsn) -> Option<u32> {
        match self.at(key, lsn) {
            Some(Version::Size(size)) => *size,
            _ => None,
        }
    }

    /// What reading a page must answer.
    pub fn page(&self, rel: RelTag, block: u32, lsn: Lsn) -> PageThere {
        match self.size(Key::rel_size(rel), lsn) {
            None => PageThere::NoRelation,
            Some(size) if block >= size => PageThere::Zeros,
            Some(_) => match self.at(Key::rel_block(rel, block), lsn) {
                Some(Version::Page(page)) => PageThere::Page(Arc::clone(page)),
                _ => PageThere::Zeros,
            },
        }
    }

    /// Relations that exist as of `lsn`, with their sizes.
    pub fn relations(&self, lsn: Lsn) -> BTreeMap<RelTag, u32> {
        let sizes = self.versions.keys().filter_map(|key| match key.kind() {
            Some(KeyKind::RelSize(rel)) => Some((rel, self.size(*key, lsn)?)),
            _ => None,
        });
        sizes.collect()
    }

    /// Relations that ever existed.
    pub fn all_relations(&self) -> BTreeSet<RelTag> {
        let known = self.versions.keys().filter_map(|key| match key.kind() {
            Some(KeyKind::RelSize(rel)) => Some(rel),
            _ => None,
        });
        known.collect()
    }

    /// An SLRU segment as of `lsn`: its pages, zeros for those never written.
    pub fn slru_segment(&self, kind: SlruKind, segment: u32, lsn: Lsn) -> Option<Vec<u8>> {
        let pages = self.size(Key::slru_size(kind, segment), lsn)?;
        let mut bytes = Vec::new();
        for page in 0..pages {
            match self.at(Key::slru_page(kind, segment, page), lsn) {
                Some(Version::Page(page)) => bytes.extend_from_slice(&page[..]),
                _ => bytes.extend_from_slice(&codec::page::ZERO_PAGE),
            }
        }
        Some(bytes)
    }

    /// Keys that have pages, with how many versions each has.
    pub fn page_keys(&self) -> impl Iterator<Item = Key> {
        self.versions.keys().copied().filter(|key| matches!(key.kind(), Some(KeyKind::RelBlock { .. })))
    }

    /// LSNs at which a key changes.
    pub fn changes_of(&self, key: Key) -> impl Iterator<Item = Lsn> {
        self.versions.get(&key).into_iter().flatten().map(|(lsn, _)| *lsn)
    }

    /// The commit just before the first one after `time`, and that first one, among those in `from..=to`.
    pub fn around(&self, time: PgTimestamp, from: Lsn, to: Lsn) -> (Option<Lsn>, Option<Lsn>) {
        let counted = || self.commits.iter().filter(move |(lsn, _)| (from..=to).contains(lsn));
        let later = counted().find(|(_, at)| *at > time).map(|(lsn, _)| *lsn);
        let before =
            counted().map(|(lsn, _)| *lsn).take_while(|lsn| later.is_none_or(|later| *lsn < later)).last();
        (before, later)
    }
}
