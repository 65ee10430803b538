//! What a job writes, cut into layers.

use codec::index_part::LayerMetadata;
use codec::value::{Change, Value};
use model::key::KeyKind;
use model::{Key, KeyRange, LayerName, Lsn, LsnRange, PgTimestamp, SlruKind};

use super::stretch::Stretches;
use crate::index_keeper::metadata_of;
use crate::layer_read::Layer;
use crate::layer_write::{DeltaFile, INDEX_BYTES, ImageFile, LayerStore, WriteLayerError, WrittenLayer};

/// A layer that a job wrote.
pub struct Piece {
    /// To read it.
    pub layer: Layer,
    /// Its name.
    pub name: LayerName,
    /// What an index says of it.
    pub metadata: LayerMetadata,
}

/// How much was written of a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grown {
    /// Bytes of its file.
    pub bytes: u64,
    /// … of which its index has so many.
    pub index: u64,
}

impl Grown {
    /// Of two that end together.
    #[must_use]
    pub fn and(self, other: Grown) -> Grown {
        Grown { bytes: self.bytes + other.bytes, index: self.index.max(other.index) }
    }

    fn reached(self, bytes: u64, index: u64) -> bool {
        self.bytes >= bytes || self.index >= index
    }
}

/// Where pieces end.
pub struct Cutter {
    /// The next one last.
    cuts: Vec<Key>,
    bytes: u64,
    stretches: Stretches,
    last: Option<Key>,
}

impl Cutter {
    /// Always at these keys and around these stretches, and otherwise after about so many bytes, where one relation follows another if it can be.
    pub fn new(mut cuts: Vec<Key>, bytes: u64, stretches: Stretches) -> Cutter {
        cuts.sort_unstable_by_key(|cut| std::cmp::Reverse(*cut));
        Cutter { cuts, bytes, stretches, last: None }
    }

    /// Where a piece that has grown so much ends before `key`, if it does.
    pub fn end_before(&mut self, key: Key, grown: Grown) -> Option<Key> {
        let mut crossed = None;
        while let Some(cut) = self.cuts.pop_if(|cut| *cut <= key) {
            crossed = crossed.or(self.last.map(|_| cut));
        }
        let relation = |key: Key| (key.field1, key.field2, key.field3, key.field4);
        let is_other = self.last.is_some_and(|last| relation(last) != relation(key));
        let is_apart = self.last.is_some_and(|last| self.stretches.part(last, key));
        self.last = Some(key);
        let is_full = grown.reached(self.bytes + self.bytes / 2, INDEX_BYTES)
            || (is_other && grown.reached(self.bytes, INDEX_BYTES / 2));
        crossed.or((is_full || is_apart).then_some(key))
    }
}

/// Deltas of one stretch of LSNs.
pub struct Deltas {
    lsns: LsnRange,
    trimmed_for: Option<Vec<Lsn>>,
    open: Option<DeltaFile>,
    commits: Option<(PgTimestamp, PgTimestamp)>,
    /// Of the piece that is being written.
    lowest: Lsn,
}

impl Deltas {
    /// Of these LSNs; where they were trimmed, for which points.
    pub fn new(lsns: LsnRange, trimmed_for: Option<Vec<Lsn>>) -> Deltas {
        Deltas { lsns, trimmed_for, open: None, commits: None, lowest: Lsn::MAX }
    }

    /// How much there is of the piece that is being written.
    pub fn grown(&self) -> Grown {
        let grown = |file: &DeltaFile| Grown { bytes: file.size(), index: file.index_size() };
        self.open.as_ref().map(grown).unwrap_or_default()
    }

    /// Adds a version.
    pub fn push(
        &mut self,
        store: &LayerStore,
        key: Key,
        lsn: Lsn,
        will_init: bool,
        value: &[u8],
    ) -> Result<(), WriteLayerError> {
        let file = match &mut self.open {
            Some(file) => file,
            none => none.insert(store.begin_delta()?),
        };
        if let Some(time) = commit_time(key, value) {
            let (oldest, newest) = self.commits.unwrap_or((time, time));
            self.commits = Some((oldest.min(time), newest.max(time)));
        }
        self.lowest = self.lowest.min(lsn);
        file.push(key, lsn, will_init, value)
    }

    /// Ends the piece that is being written, if there is one.
    pub async fn cut(&mut self, store: &LayerStore) -> Result<Option<Piece>, WriteLayerError> {
        let Some(file) = self.open.take() else { return Ok(None) };
        let (first, last) = file.keys().expect("a piece is begun with a version");
        let lowest = std::mem::replace(&mut self.lowest, Lsn::MAX);
        let name = store.unused_delta_name(first..last.next(), self.lsns.clone(), lowest)?;
        let commits = self.commits.take();
        let written = store.finish_delta(file, name, commits).await?;
        let mut piece = piece(store, written, commits);
        if let Some(details) = &mut piece.metadata.palimpsest {
            details.trimmed_for.clone_from(&self.trimmed_for);
        }
        Ok(Some(piece))
    }
}

/// The time of a commit that a version notes.
fn commit_time(key: Key, value: &[u8]) -> Option<PgTimestamp> {
    if !matches!(key.kind(), Some(KeyKind::SlruPage { slru: SlruKind::Clog, .. })) {
        return None;
    }
    match Value::decode(value) {
        Ok(Value::Change(Change::Committed { time, .. })) => Some(time),
        Ok(Value::Image(page)) => redo::slru::last_commit(page),
        _ => None,
    }
}

/// Images as of one LSN, which together cover all keys of a range.
pub struct Images {
    lsn: Lsn,
    from: Key,
    to: Key,
    /// Nobody reads anything below their LSN.
    is_lowest: bool,
    open: Option<ImageFile>,
}

impl Images {
    /// Of these keys; `is_lowest` when nobody reads anything below their LSN.
    pub fn new(keys: &KeyRange, lsn: Lsn, is_lowest: bool) -> Images {
        Images { lsn, from: keys.start, to: keys.end, is_lowest, open: None }
    }

    /// How much there is of the piece that is being written.
    pub fn grown(&self) -> Grown {
        let grown = |file: &ImageFile| Grown { bytes: file.size(), index: file.index_size() };
        self.open.as_ref().map(grown).unwrap_or_default()
    }

    /// Adds a value.
    pub fn push(&mut self, store: &LayerStore, key: Key, value: &[u8]) -> Result<(), WriteLayerError> {
        let file = match &mut self.open {
            Some(file) => file,
            none => none.insert(store.begin_image()?),
        };
        file.push(key, value)
    }

    /// Ends the piece that is being written just below `key`, where another begins, or at the end of the range.
    pub async fn cut(
        &mut self,
        store: &LayerStore,
        key: Option<Key>,
    ) -> Result<Option<Piece>, WriteLayerError> {
        let Some(file) = self.open.take() else { return Ok(None) };
        let end = key.unwrap_or(self.to);
        let name = store.unused_image_name(self.from..end, self.lsn, self.is_lowest)?;
        let written = store.finish_image(file, name).await?;
        self.from = end;
        Ok(Some(piece(store, written, None)))
    }
}

fn piece(store: &LayerStore, written: WrittenLayer, commits: Option<(PgTimestamp, PgTimestamp)>) -> Piece {
    let metadata = metadata_of(&written, store.claim(), commits);
    Piece { name: written.finished.name.clone(), layer: written.layer, metadata }
}
