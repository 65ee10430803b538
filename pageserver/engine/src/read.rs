//! Reading: from a key and an LSN to a value.
//!
//! A read gathers the versions of its key newest first (open tail, frozen tails, layers down to an image, then the ancestor) until one needs
//! no predecessor, then redoes them oldest first. Everything it looks at belongs to immutable snapshots, so it takes no lock. When all
//! bytes are in memory nothing awaits.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use codec::page::ZERO_PAGE;
use futures::stream::{FuturesOrdered, StreamExt};
use model::{BLOCK_SIZE, Key, KeyRange, Lsn, PgMajor, RelTag, TimelineId};
use smallvec::SmallVec;

use crate::as_of::{AsOf, ReadError};
use crate::changes::Changes;
use crate::layer_map::{LayerMap, Visit};
use crate::layer_read::Layer;
use crate::read_counts::ReadCounts;
use crate::retention::Retention;
use crate::tail::{Tail, Version};

/// What a timeline holds at one moment. Never changes; readers keep it as long as they need it.
#[derive(Clone)]
pub struct Snapshot {
    /// Which timeline.
    pub timeline: TimelineId,
    /// Whose record formats.
    pub pg: PgMajor,
    /// End of the last record that is readable.
    pub last: Lsn,
    /// The newest versions.
    pub open: Tail,
    /// Versions that are being written to layers, oldest first.
    pub frozen: Arc<[Tail]>,
    /// Everything older.
    pub layers: Arc<LayerMap<Layer>>,
    /// Where history goes on below this timeline's first record.
    pub ancestor: Option<Ancestor>,
    /// Where it branched off, also if it has no ancestor any more: what is older and not inherited is not there.
    pub branched_at: Option<Lsn>,
    /// As of when these layers can be read.
    pub retention: Arc<Retention>,
    /// How deep reads go.
    pub reads: Arc<ReadCounts>,
}

/// The history that a branch shares.
#[derive(Clone)]
pub struct Ancestor {
    /// The ancestor's present snapshot. What lies at or below `lsn` reads the same in each of them.
    pub view: Arc<ArcSwap<Snapshot>>,
    /// The branch point; versions up to and including it are shared.
    pub lsn: Lsn,
}

/// Versions of one key, newest first, and what lies below them.
#[derive(Default)]
pub(crate) struct Chain {
    versions: SmallVec<[(Lsn, Bytes); 8]>,
    /// The last version gathered needs no predecessor, or is an image from an image layer.
    complete: bool,
    base: Option<Bytes>,
    /// Layers that were looked into.
    layers: usize,
}

impl Chain {
    /// Takes versions until one needs no predecessor.
    fn take(&mut self, versions: impl Iterator<Item = Version>) {
        for version in versions {
            self.versions.push((version.lsn, version.value));
            if version.will_init {
                self.complete = true;
                return;
            }
        }
    }
}

impl Chain {
    /// Versions that are redone: all but a whole value at the bottom.
    fn changes(&self) -> usize {
        let starts_whole = self.versions.last().is_some_and(|(_, value)| codec::value::is_image(value));
        self.versions.len() - usize::from(starts_whole)
    }
}

/// What one layer says of a key.
pub(crate) enum Visited {
    Versions(Vec<Version>),
    Image(Option<Bytes>),
}

pub(crate) async fn read_visit(visit: &Visit<'_, Layer>, key: Key, lsn: Lsn) -> Result<Visited, ReadError> {
    Ok(if visit.layer.is_delta() {
        Visited::Versions(visit.layer.versions_down(key, visit.above, lsn).await?)
    } else {
        Visited::Image(visit.layer.image(key).await?)
    })
}

impl Chain {
    pub(crate) fn take_visited(&mut self, visited: Visited, key: Key) {
        self.layers += 1;
        match visited {
            Visited::Versions(versions) => self.take(versions.into_iter()),
            Visited::Image(image) => {
                // An image layer of dense keys is complete: what it lacks did not exist.
                self.complete = image.is_some() || !key.is_sparse();
                self.base = image;
            }
        }
    }
}

impl Snapshot {
    /// Gathers what memory holds of a key.
    pub(crate) fn gather_tail(&self, key: Key, lsn: Lsn, chain: &mut Chain) {
        for tail in std::iter::once(&self.open).chain(self.frozen.iter().rev()) {
            for batch in tail.batches().iter().rev() {
                chain.take(batch.versions_down(key, lsn));
                if chain.complete {
                    return;
                }
            }
        }
    }

    /// Gathers from layers, newest first. Where the first bytes are at hand the next layer is only looked at when it is needed. Where they are not, all
    /// layers that may be needed are asked at once, so that a page never costs more waits than one layer's.
    async fn gather_layers(&self, key: Key, lsn: Lsn, chain: &mut Chain) -> Result<(), ReadError> {
        let visits = self.layers.visit_down(key, lsn);
        let mut reads = visits.iter().map(|visit| Box::pin(read_visit(visit, key, lsn)));
        while let Some(mut read) = reads.next() {
            match futures::poll!(read.as_mut()) {
                Poll::Ready(found) => chain.take_visited(found?, key),
                Poll::Pending => {
                    let mut rest: FuturesOrdered<_> = std::iter::once(read).chain(reads).collect();
                    while let Some(found) = rest.next().await {
                        chain.take_visited(found?, key);
                        if chain.complete {
                            break;
                        }
                    }
                    return Ok(());
                }
            }
            if chain.complete {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The value of a key as its layers have it at `lsn`, which need not be an LSN that is kept: for those who rewrite what lies above it. With an
    /// invalid LSN, what the ancestor says.
    pub(crate) async fn below(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        let mut chain = Chain::default();
        if lsn.is_valid() {
            self.gather_layers(key, lsn, &mut chain).await?;
        }
        if !chain.complete
            && key.is_inherited()
            && let Some(ancestor) = &self.ancestor
        {
            let at = if lsn.is_valid() { lsn.min(ancestor.lsn) } else { ancestor.lsn };
            ancestor.view.load_full().gather(key, at, &mut chain).await?;
        }
        self.redo(key, lsn, &chain)
    }

    async fn gather(&self, key: Key, lsn: Lsn, chain: &mut Chain) -> Result<(), ReadError> {
        let mut below = self.gather_own(key, lsn, chain).await?;
        while let Some((snapshot, lsn)) = below {
            below = snapshot.gather_own(key, lsn, chain).await?;
        }
        Ok(())
    }

    /// Gathers from this timeline alone; answers where to go on, if anywhere.
    async fn gather_own(
        &self,
        key: Key,
        lsn: Lsn,
        chain: &mut Chain,
    ) -> Result<Option<(Arc<Snapshot>, Lsn)>, ReadError> {
        let lsn = self.check_kept(lsn)?;
        self.gather_tail(key, lsn, chain);
        if !chain.complete {
            self.gather_layers(key, lsn, chain).await?;
        }
        Ok(self.goes_on_in(key, lsn, chain))
    }

    /// Where a read goes on below this timeline's own history, if anywhere.
    pub(crate) fn goes_on_in(&self, key: Key, lsn: Lsn, chain: &Chain) -> Option<(Arc<Snapshot>, Lsn)> {
        let goes_on = !chain.complete && key.is_inherited();
        let ancestor = self.ancestor.as_ref().filter(|_| goes_on)?;
        Some((ancestor.view.load_full(), lsn.min(ancestor.lsn)))
    }

    /// As of when to read for `lsn`, if what these layers were then was kept. Asked of every snapshot on the way, since each timeline keeps what it must.
    pub(crate) fn check_kept(&self, lsn: Lsn) -> Result<Lsn, ReadError> {
        let behind = ReadError::BehindCutoff { asked: lsn, cutoff: self.retention.cutoff };
        self.retention.kept(lsn).ok_or(behind)
    }

    pub(crate) fn redo(&self, key: Key, lsn: Lsn, chain: &Chain) -> Result<Option<Bytes>, ReadError> {
        if chain.versions.is_empty() {
            return Ok(chain.base.clone());
        }
        let oldest_first = chain.versions.iter().rev().map(|(lsn, value)| (*lsn, &value[..]));
        redo::reconstruct(chain.base.as_deref(), oldest_first, self.pg, key)
            .map(|value| Some(Bytes::from(value)))
            .map_err(|error| ReadError::Redo { key, lsn, source: Box::new(error) })
    }

    /// The value of a key as of `lsn`; `None` when it has none.
    pub async fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        if !key.is_inherited() && self.branched_at.is_some_and(|at| lsn <= at) {
            return Ok(None);
        }
        let mut chain = Chain::default();
        self.gather(key, lsn, &mut chain).await?;
        if key.is_rel_block() {
            self.reads.count(chain.layers, chain.changes());
        }
        self.redo(key, lsn, &chain)
    }

    /// The value as of the newest change, with changes that are not published yet on top.
    pub async fn get_over(&self, pending: &Changes, key: Key) -> Result<Option<Bytes>, ReadError> {
        let mut chain = Chain::default();
        for entry in pending.entries.iter().rev().filter(|entry| entry.key == key) {
            chain.versions.push((entry.lsn, Bytes::copy_from_slice(pending.value_bytes(entry))));
            if entry.will_init {
                chain.complete = true;
                break;
            }
        }
        if !chain.complete {
            self.gather(key, Lsn::MAX, &mut chain).await?;
        }
        self.redo(key, Lsn::MAX, &chain)
    }

    /// The size of a relation's fork in blocks; `None` when it does not exist.
    pub async fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, ReadError> {
        let key = Key::rel_size(rel);
        decode_size(key, lsn, self.get(key, lsn).await?.as_deref())
    }

    /// One page of a relation; zeros where it was never written. The caller knows that `block` is below the relation's size.
    pub async fn page(&self, rel: RelTag, block: u32, lsn: Lsn) -> Result<Bytes, ReadError> {
        let key = Key::rel_block(rel, block);
        match self.get(key, lsn).await? {
            None => Ok(Bytes::from_static(&ZERO_PAGE)),
            Some(page) if page.len() == BLOCK_SIZE => Ok(page),
            Some(other) => Err(malformed(key, lsn, format!("page of {} bytes", other.len()))),
        }
    }

    /// Pages of a relation, back to back.
    pub async fn pages(&self, rel: RelTag, blocks: Range<u32>, lsn: Lsn) -> Result<Bytes, ReadError> {
        let mut out = BytesMut::with_capacity(blocks.len() * BLOCK_SIZE);
        let mut reads: FuturesOrdered<_> = blocks.map(|block| self.page(rel, block, lsn)).collect();
        while let Some(page) = reads.next().await {
            out.extend_from_slice(&page?);
        }
        Ok(out.freeze())
    }

    /// Pages of a relation as of the newest change, with changes that are not published yet on top.
    pub async fn pages_over(
        &self,
        pending: &Changes,
        rel: RelTag,
        blocks: Range<u32>,
    ) -> Result<Bytes, ReadError> {
        let mut out = BytesMut::with_capacity(blocks.len() * BLOCK_SIZE);
        for block in blocks {
            let key = Key::rel_block(rel, block);
            match self.get_over(pending, key).await? {
                None => out.extend_from_slice(&ZERO_PAGE),
                Some(page) if page.len() == BLOCK_SIZE => out.extend_from_slice(&page),
                Some(other) => {
                    return Err(malformed(key, Lsn::MAX, format!("page of {} bytes", other.len())));
                }
            }
        }
        Ok(out.freeze())
    }

    /// Every key of a range that has a value as of `lsn`, in key order. Meant for ranges of few keys.
    pub async fn scan(&self, keys: KeyRange, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.scan_over(None, keys, lsn).await
    }

    /// As [`Snapshot::scan`], as of the newest change, with changes that are not published yet on top.
    pub async fn scan_over(
        &self,
        pending: Option<&Changes>,
        keys: KeyRange,
        lsn: Lsn,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let mut found = BTreeSet::new();
        if let Some(pending) = pending {
            found.extend(pending.entries.iter().map(|entry| entry.key).filter(|key| keys.contains(key)));
        }
        let mut below = self.find_own(&keys, lsn, &mut found).await?;
        while let Some((snapshot, lsn)) = below {
            below = snapshot.find_own(&keys, lsn, &mut found).await?;
        }
        let mut values = Vec::with_capacity(found.len());
        for key in found {
            let value = match pending {
                Some(pending) => self.get_over(pending, key).await?,
                None => self.get(key, lsn).await?,
            };
            values.extend(value.map(|value| (key, value)));
        }
        Ok(values)
    }
}

impl Snapshot {
    /// Which keys of a range have versions in this timeline alone; answers where to go on, if anywhere.
    async fn find_own(
        &self,
        keys: &KeyRange,
        lsn: Lsn,
        found: &mut BTreeSet<Key>,
    ) -> Result<Option<(Arc<Snapshot>, Lsn)>, ReadError> {
        let lsn = self.check_kept(lsn)?;
        for tail in std::iter::once(&self.open).chain(self.frozen.iter()) {
            for batch in tail.batches() {
                found.extend(
                    batch.range(keys).filter(|version| version.lsn <= lsn).map(|version| version.key),
                );
            }
        }
        for layer in self.layers.overlapping(keys, lsn) {
            found.extend(layer.keys_in(keys.clone(), lsn).await?);
        }
        Ok(self.ancestor.as_ref().map(|ancestor| (ancestor.view.load_full(), lsn.min(ancestor.lsn))))
    }
}

/// A relation's size from its stored form: empty means dropped.
pub(crate) fn decode_size(key: Key, lsn: Lsn, value: Option<&[u8]>) -> Result<Option<u32>, ReadError> {
    match value {
        None | Some([]) => Ok(None),
        Some(bytes) => match bytes.try_into() {
            Ok(bytes) => Ok(Some(u32::from_le_bytes(bytes))),
            Err(_) => Err(malformed(key, lsn, format!("size of {} bytes", bytes.len()))),
        },
    }
}

pub(crate) fn malformed(key: Key, lsn: Lsn, what: String) -> ReadError {
    ReadError::Redo { key, lsn, source: what.into() }
}

/// A snapshot as of one of its LSNs.
pub struct SnapshotAt {
    /// What is read.
    pub snapshot: Arc<Snapshot>,
    /// As of when.
    pub lsn: Lsn,
}

#[async_trait]
impl AsOf for SnapshotAt {
    fn lsn(&self) -> Lsn {
        self.lsn
    }

    async fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        self.snapshot.get(key, self.lsn).await
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Bytes, ReadError> {
        self.snapshot.pages(rel, blocks, self.lsn).await
    }

    async fn scan(&self, keys: KeyRange) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.snapshot.scan(keys, self.lsn).await
    }
}
