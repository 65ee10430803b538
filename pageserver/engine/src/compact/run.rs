//! Carrying out what was chosen: new layers into the bucket, then one change of the index, then a listing of claims, then the snapshot.
//!
//! Only when nobody reads a layer any more that the index no longer names, its object goes ([`crate::timeline`]'s reaper). A job that fails changes nothing
//! that anybody sees; objects that it had put are named by nothing and go as well.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use codec::index_part::LayerMetadata;
use model::key::KeyKind;
use model::{Key, KeyRange, LayerName, Lsn, RelTag};
use tokio::sync::Mutex;
use tracing::info;

use super::choose::{Choice, CompactionPolicy, View, choose_among, l0_room};
use super::fold::{Fold, Kept, Rules, Surroundings};
use super::shelf::{LayerFacts, is_within, shelves};
use super::stream::{Input, Stream, Streamed};
use super::stretch::Stretches;
use super::write::{Cutter, Deltas, Images, Piece};
use crate::as_of::ReadError;
use crate::chunk_cache::as_scan;
use crate::claim::ValidateError;
use crate::index_keeper::Changed;
use crate::index_store::PutIndexError;
use crate::layer_map::MapLayer as _;
use crate::layer_read::Layer;
use crate::layer_scan::StoredValue;
use crate::layer_write::WriteLayerError;
use crate::read::Snapshot;
use crate::retention::Retention;
use crate::timeline::{AppendError, Timeline};

/// Of a trimmed delta so many points are noted at most; with more, that one of them went is noticed later.
const NOTED_POINTS: usize = 256;
/// A stretch of keys is worth a delta of its own when it has such a part of a layer's bytes.
const STRETCH_PART: u64 = 8;
/// Versions between two looks at whether others want the processor.
const VERSIONS_A_TURN: usize = 512;

/// Why a job did not come to its end. Nothing was changed, or the index was and the next owner goes by it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CompactError {
    #[error("cannot read what is to be compacted")]
    Read(#[from] ReadError),
    #[error("cannot write a compacted layer")]
    Write(#[from] WriteLayerError),
    #[error("cannot store the index")]
    Index(#[from] PutIndexError),
    #[error(transparent)]
    Validate(#[from] ValidateError),
    #[error(transparent)]
    Stopped(#[from] AppendError),
    #[error("layer {0} is not among the timeline's any more")]
    Gone(LayerName),
    #[error("there is nothing to make images of between {from} and {to}")]
    NothingThere { from: Key, to: Key },
}

/// A job that failed, and in which keys.
#[derive(Debug, thiserror::Error)]
#[error("compaction of keys {} to {} failed", keys.start, keys.end)]
pub struct FailedJob {
    /// Of which keys it was to be.
    pub keys: KeyRange,
    /// Why.
    pub source: CompactError,
}

impl FailedJob {
    /// Whether a job that makes no images would do: some page could not be made whole, and is left its changes; or all that there is was dropped, so that an
    /// image would be empty.
    pub fn would_do_without_images(&self) -> bool {
        matches!(self.source, CompactError::Read(ReadError::Redo { .. }) | CompactError::NothingThere { .. })
    }
}

/// What a job did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What it was: `drop`; `merge`, of deltas straight from the tail; `stack`, of others; `image`; `trim`.
    pub kind: &'static str,
    /// Layers that went.
    pub removed: usize,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Layers that came.
    pub added: usize,
    /// Their bytes.
    pub added_bytes: u64,
}

/// Where jobs failed lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Avoid {
    /// Nothing is done there.
    pub keys: Vec<KeyRange>,
    /// No images are made there.
    pub images: Vec<KeyRange>,
}

/// Whether a job may give up what nobody can read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// What is below the cutoff and read as of no point.
    Garbage,
    /// Nothing, as it is not known what others read.
    Nothing,
}

/// What there is of a timeline's layers, for the policy.
pub async fn view(timeline: &Timeline) -> View {
    let part = timeline.index().part().await;
    let snapshot = timeline.view().load_full();
    let facts = |layer: &Arc<Layer>| {
        let details = part.layer_metadata.get(layer.name()).and_then(|metadata| metadata.palimpsest.as_ref());
        LayerFacts {
            name: layer.name().clone(),
            size: layer.file_size(),
            trimmed_for: details.and_then(|details| details.trimmed_for.clone()),
            heat: layer.heat(),
        }
    };
    View {
        l0: snapshot.layers.l0().iter().rev().map(facts).collect(),
        rest: snapshot.layers.by_key().iter().map(facts).collect(),
        retention: Retention::clone(&snapshot.retention),
        is_branch: snapshot.ancestor.is_some(),
        beyond_redo: Vec::new(),
    }
}

/// Does the next job, if there is one worth doing, by what can be read now. There must be one caller at a time for a timeline.
pub async fn compact_once(
    timeline: &Timeline,
    policy: &CompactionPolicy,
    avoid: Avoid,
    collect: Collect,
) -> Result<Option<Done>, FailedJob> {
    let mut view = view(timeline).await;
    view.beyond_redo = avoid.images;
    if collect == Collect::Nothing {
        view.retention = Retention::new(view.retention.segment, Lsn(0), []);
    }
    let shelves = shelves(&view.rest, policy.shelf_bytes);
    let choice = choose_among(&shelves, &view, policy, &avoid.keys);
    timeline.note_l0_room(l0_room(&shelves, view.is_branch, policy));
    drop(shelves);
    let keys = match &choice {
        Choice::Rest => return Ok(None),
        Choice::Drop(_) => Key::ALL,
        Choice::Merge { keys, .. } | Choice::Image { keys, .. } | Choice::Trim { keys, .. } => keys.clone(),
    };
    // It comes by everything once.
    let done = as_scan(Box::pin(carry_out(timeline, policy, &view.retention, choice)))
        .await
        .map_err(|source| FailedJob { keys, source })?;
    info!(timeline = %timeline.id(), kind = done.kind, removed = done.removed, removed_bytes = done.removed_bytes, added = done.added, added_bytes = done.added_bytes, "compacted");
    Ok(Some(done))
}

async fn carry_out(
    timeline: &Timeline,
    policy: &CompactionPolicy,
    retention: &Retention,
    choice: Choice,
) -> Result<Done, CompactError> {
    let snapshot = timeline.view().load_full();
    let (kind, rewrite, remove) = match choice {
        Choice::Rest => return Ok(Done::default()),
        Choice::Drop(names) => {
            let layers = found(&snapshot, &names)?;
            return replace(timeline, "drop", Vec::new(), layers).await;
        }
        Choice::Merge { inputs, base, keys, lsns, cuts } => {
            let top = Lsn(lsns.end.0 - 1);
            let mut points = retention.points_to(top);
            points.retain(|point| *point >= lsns.start);
            if retention.cutoff > top {
                points.push(top); // what lies above builds upon it
            }
            let layers = found(&snapshot, &inputs)?;
            let trimmed_for = (retention.cutoff > top).then(|| noted(&points));
            let rules = Rules { points, images: false, above: true, chain: policy.chain };
            let lower = Deltas::new(lsns.clone(), trimmed_for);
            let kind = if inputs[0].is_l0() { "merge" } else { "stack" };
            let mut read = reading(&layers, false);
            read.extend(reading(&found(&snapshot, &base)?, true));
            let rewrite = Rewrite {
                keys,
                below: before(lsns.start),
                rules,
                split: Lsn::MAX,
                lower,
                upper: None,
                cuts,
                read,
            };
            (kind, rewrite, layers)
        }
        Choice::Image { inputs, keys, at, cuts } => {
            let layers = found(&snapshot, &inputs)?;
            let rules = Rules { points: vec![at], images: true, above: false, chain: policy.chain };
            let lower = Deltas::new(at..at.add(1), None);
            let rewrite = Rewrite {
                keys,
                below: Lsn::INVALID,
                rules,
                split: at,
                lower,
                upper: None,
                cuts,
                read: reading(&layers, false),
            };
            ("image", rewrite, Vec::new())
        }
        Choice::Trim { inputs, base, keys, lsns, split, images, cuts } => {
            let mut layers = found(&snapshot, &inputs)?;
            let mut read = reading(&layers, false);
            read.extend(reading(&found(&snapshot, &base)?, true));
            let mut points = retention.points_to(split);
            if points.last() != Some(&split) {
                points.push(split);
            }
            if !images {
                points.retain(|point| *point >= lsns.start);
            }
            let from = if images { points[0].add(1) } else { lsns.start };
            let lower = Deltas::new(from..split.add(1), Some(noted(&points)));
            let upper = (lsns.end.0 > split.0 + 1).then(|| Deltas::new(split.add(1)..lsns.end, None));
            let rules = Rules { points, images, above: true, chain: policy.chain };
            layers.retain(|layer| is_within(layer.name().keys(), &keys));
            let rewrite = Rewrite { keys, below: Lsn::INVALID, rules, split, lower, upper, cuts, read };
            ("trim", rewrite, layers)
        }
    };
    let pieces = rewrite.run(timeline, &snapshot, policy).await?;
    replace(timeline, kind, pieces, remove).await
}

/// Just below an LSN; invalid when nothing is.
fn before(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_sub(1))
}

fn noted(points: &[Lsn]) -> Vec<Lsn> {
    if points.len() <= NOTED_POINTS { points.to_vec() } else { points.last().copied().into_iter().collect() }
}

fn reading(layers: &[Arc<Layer>], is_base: bool) -> Vec<Input> {
    layers.iter().map(|layer| Input { layer: Arc::clone(layer), is_base }).collect()
}

fn found(snapshot: &Snapshot, names: &[LayerName]) -> Result<Vec<Arc<Layer>>, CompactError> {
    let by_name: HashMap<&LayerName, &Arc<Layer>> =
        snapshot.layers.all().map(|layer| (layer.name(), layer)).collect();
    names
        .iter()
        .map(|name| {
            by_name.get(name).map(|layer| Arc::clone(layer)).ok_or_else(|| CompactError::Gone(name.clone()))
        })
        .collect()
}

/// New layers in place of old ones: in the index, then validated, then for readers. The old objects go when nobody reads them any more.
async fn replace(
    timeline: &Timeline,
    kind: &'static str,
    pieces: Vec<Piece>,
    old: Vec<Arc<Layer>>,
) -> Result<Done, CompactError> {
    let done = Done {
        kind,
        removed: old.len(),
        removed_bytes: old.iter().map(|layer| layer.file_size()).sum(),
        added: pieces.len(),
        added_bytes: pieces.iter().map(|piece| piece.layer.file_size()).sum(),
    };
    let names: HashSet<LayerName> = old.iter().map(|layer| layer.name().clone()).collect();
    let new: Vec<(LayerName, LayerMetadata)> =
        pieces.iter().map(|piece| (piece.name.clone(), piece.metadata.clone())).collect();
    timeline
        .index()
        .change(|part| {
            part.layer_metadata.retain(|name, _| !names.contains(name));
            part.layer_metadata.extend(new);
            Ok::<_, PutIndexError>(Changed::Yes)
        })
        .await?;
    timeline.index().claim().validate().await?;
    let layers = pieces.into_iter().map(|piece| Arc::new(piece.layer)).collect();
    timeline.replace_layers(layers, names).await?;
    for layer in old {
        layer.retire(timeline.retired());
    }
    Ok(done)
}

/// Layers to be written in place of others.
struct Rewrite {
    keys: KeyRange,
    read: Vec<Input>,
    /// As of when what lies below is read; invalid when only an ancestor does.
    below: Lsn,
    rules: Rules,
    /// Versions up to here go to `lower`, others to `upper`.
    split: Lsn,
    lower: Deltas,
    upper: Option<Deltas>,
    cuts: Vec<Key>,
}

impl Rewrite {
    /// Reads, folds, writes. What was put when something fails is named by nothing, and goes again.
    async fn run(
        self,
        timeline: &Timeline,
        snapshot: &Snapshot,
        policy: &CompactionPolicy,
    ) -> Result<Vec<Piece>, CompactError> {
        let keys = self.keys.clone();
        let only_images = self.rules.images && !self.rules.above;
        let mut pieces: Vec<Piece> = Vec::new();
        match self.write(timeline, snapshot, policy, &mut pieces).await {
            Ok(()) if pieces.is_empty() && only_images => {
                Err(CompactError::NothingThere { from: keys.start, to: keys.end })
            }
            Ok(()) => Ok(pieces),
            Err(error) => {
                for piece in &pieces {
                    piece.layer.retire(timeline.retired());
                }
                Err(error)
            }
        }
    }

    async fn write(
        mut self,
        timeline: &Timeline,
        snapshot: &Snapshot,
        policy: &CompactionPolicy,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), CompactError> {
        let store = timeline.layer_store();
        let around = Around { snapshot, below: self.below, sizes: Mutex::default() };
        let first = self.rules.points.first().copied().unwrap_or(Lsn::INVALID);
        let mut images = Images::new(&self.keys, first, self.rules.above);
        let stretches = Stretches::of(&self.read, policy.layer_bytes / STRETCH_PART).await?;
        let mut delta_cutter = Cutter::new(self.cuts.clone(), policy.layer_bytes, stretches);
        let mut image_cutter =
            Cutter::new(std::mem::take(&mut self.cuts), policy.layer_bytes, Stretches::default());
        let mut stream = Stream::new(std::mem::take(&mut self.read), self.keys.clone());
        let rules = self.rules.clone();
        let mut fold: Option<(Key, Fold<'_>)> = None;
        let mut kept: Vec<Kept> = Vec::new();
        let mut turn = 0;
        loop {
            let next = stream.next().await?;
            let key = next.as_ref().map(|next| next.version.key);
            if let Some((done, ended)) = fold.take_if(|(open, _)| Some(*open) != key) {
                ended.finish(&around, &mut kept).await?;
                let has_versions = kept.iter().any(|kept| matches!(kept, Kept::Version { .. }));
                let grown =
                    self.lower.grown().and(self.upper.as_ref().map(Deltas::grown).unwrap_or_default());
                if has_versions && delta_cutter.end_before(done, grown).is_some() {
                    pieces.extend(self.lower.cut(store).await?);
                    if let Some(upper) = &mut self.upper {
                        pieces.extend(upper.cut(store).await?);
                    }
                }
                for kept in kept.drain(..) {
                    match kept {
                        Kept::Image(value) => {
                            if let Some(end) = image_cutter.end_before(done, images.grown()) {
                                pieces.extend(images.cut(store, Some(end)).await?);
                            }
                            images.push(store, done, &value)?;
                        }
                        Kept::Version { lsn, will_init, value } if lsn <= self.split => {
                            self.lower.push(store, done, lsn, will_init, &value)?;
                        }
                        Kept::Version { lsn, will_init, value } => {
                            let upper = self.upper.as_mut().expect("LSNs above the split were announced");
                            upper.push(store, done, lsn, will_init, &value)?;
                        }
                    }
                }
            }
            let Some(Streamed { version, is_base }) = next else { break };
            let (_, open) =
                fold.get_or_insert_with(|| (version.key, Fold::new(&rules, snapshot.pg, version.key)));
            match version.value {
                StoredValue::Image(image) if is_base => {
                    open.build_on(version.lsn, image, &around, &mut kept).await?;
                }
                _ => open.take(version, &around, &mut kept).await?,
            }
            turn += 1;
            if turn % VERSIONS_A_TURN == 0 {
                if timeline.is_stopped() {
                    return Err(AppendError::Stopped.into());
                }
                tokio::task::yield_now().await;
            }
        }
        pieces.extend(images.cut(store, None).await?);
        pieces.extend(self.lower.cut(store).await?);
        if let Some(upper) = &mut self.upper {
            pieces.extend(upper.cut(store).await?);
        }
        Ok(())
    }
}

/// A relation's size as of some LSNs; `None` where it is not there.
type SizeAt = HashMap<Lsn, Option<u32>>;

/// What lies around the layers of a job.
struct Around<'a> {
    snapshot: &'a Snapshot,
    below: Lsn,
    /// Sizes of the relation whose blocks are on their way.
    sizes: Mutex<Option<(RelTag, SizeAt)>>,
}

impl Surroundings for Around<'_> {
    async fn below(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        self.snapshot.below(key, self.below).await
    }

    /// Nothing of a relation that is not there can be read. A block past the end of one that is there stays: should the relation grow again, not
    /// every resource manager begins such a block anew.
    async fn is_live(&self, key: Key, at: Lsn) -> Result<bool, ReadError> {
        let at = self.snapshot.retention.first_from(at);
        let Some(KeyKind::RelBlock { rel, .. }) = key.kind() else { return Ok(true) };
        let mut sizes = self.sizes.lock().await;
        let (known, sizes) = sizes.get_or_insert_with(|| (rel, HashMap::new()));
        if *known != rel {
            *known = rel;
            sizes.clear();
        }
        if let Some(size) = sizes.get(&at) {
            return Ok(size.is_some());
        }
        let size_key = Key::rel_size(rel);
        let value = self.snapshot.below(size_key, at).await?;
        let size = crate::read::decode_size(size_key, at, value.as_deref())?;
        sizes.insert(at, size);
        Ok(size.is_some())
    }
}
