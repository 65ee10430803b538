//! What a read takes: which tails and layers it looks into, and what each of them gives.
//!
//! The walk is a read's own, newest first and timeline by timeline, but one layer after the other, so that each can be told what it gave. Nobody needs
//! it to be fast.

use std::sync::Arc;

use bytes::Bytes;
use codec::value::is_image;
use model::{Key, LayerName, Lsn, RelTag, TimelineId};

use crate::as_of::ReadError;
use crate::layer_map::MapLayer as _;
use crate::read::Snapshot;
use crate::timeline::Timeline;

/// What a read of one key as of one LSN takes.
#[derive(Clone, Debug)]
pub struct Explained {
    /// Of which key.
    pub key: Key,
    /// As of when.
    pub lsn: Lsn,
    /// Layers that were looked into, those of ancestors included, whether they held the key or not.
    pub layers: usize,
    /// Changes that were redone; whole values are none.
    pub changes: usize,
    /// Ancestors that were read.
    pub ancestors: usize,
    /// What was looked into, newest first.
    pub steps: Vec<Step>,
    /// Layers that a read asks for as well when it must wait for the first, since it may need them; it did not. Newest first.
    pub spared: Vec<LayerName>,
    /// What came of it; `None` when the key has no value.
    pub value: Option<Bytes>,
}

/// One thing that was looked into.
#[derive(Clone, Debug)]
pub struct Step {
    /// Whose.
    pub timeline: TimelineId,
    /// Up to where its versions count.
    pub up_to: Lsn,
    /// What it was.
    pub place: Place,
    /// The changes it gave, newest first.
    pub versions: Vec<SeenVersion>,
    /// Bytes of the whole value that it gave, from an image layer.
    pub image: Option<usize>,
}

/// Where versions lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory, not in layers yet.
    Tail,
    /// In a layer.
    Layer {
        /// Which.
        name: LayerName,
        /// Its object in the bucket.
        object: String,
        /// Bytes of the object.
        size: u64,
    },
}

/// A version that a read uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenVersion {
    /// End of the record that made it.
    pub lsn: Lsn,
    /// Encoded.
    pub value: Bytes,
    /// Nothing older is needed.
    pub will_init: bool,
}

impl Explained {
    fn take(&mut self, step: Step) {
        self.layers += usize::from(matches!(step.place, Place::Layer { .. }));
        self.changes += step.versions.iter().filter(|version| !is_image(&version.value)).count();
        self.steps.push(step);
    }
}

impl Snapshot {
    /// Reads a key as of `lsn`, and tells how.
    pub async fn explain(&self, key: Key, lsn: Lsn) -> Result<Explained, ReadError> {
        let mut told = Explained {
            key,
            lsn,
            layers: 0,
            changes: 0,
            ancestors: 0,
            steps: Vec::new(),
            spared: Vec::new(),
            value: None,
        };
        if !key.is_inherited() && self.branched_at.is_some_and(|at| lsn <= at) {
            return Ok(told); // what is older is another cluster's
        }
        let mut below: Option<(Arc<Snapshot>, Lsn)> = None;
        let mut up_to = lsn;
        loop {
            let snapshot = below.as_ref().map_or(self, |(snapshot, _)| snapshot);
            let complete = snapshot.explain_own(key, up_to, &mut told).await?;
            let next = snapshot.ancestor.as_ref().filter(|_| !complete && key.is_inherited());
            let Some(ancestor) = next else { break };
            told.ancestors += 1;
            up_to = up_to.min(ancestor.lsn);
            below = Some((ancestor.view.load_full(), up_to));
        }
        told.value = self.get(key, lsn).await?;
        Ok(told)
    }

    /// Tells what this timeline alone gives; answers whether nothing older is needed.
    async fn explain_own(&self, key: Key, lsn: Lsn, told: &mut Explained) -> Result<bool, ReadError> {
        let lsn = self.check_kept(lsn)?;
        let step =
            |place, versions, image| Step { timeline: self.timeline, up_to: lsn, place, versions, image };
        let mut in_memory = Vec::new();
        'tails: for tail in std::iter::once(&self.open).chain(self.frozen.iter().rev()) {
            for batch in tail.batches().iter().rev() {
                for version in batch.versions_down(key, lsn) {
                    let will_init = version.will_init;
                    in_memory.push(SeenVersion { lsn: version.lsn, value: version.value, will_init });
                    if will_init {
                        break 'tails;
                    }
                }
            }
        }
        let mut complete = in_memory.last().is_some_and(|version| version.will_init);
        if !in_memory.is_empty() {
            told.take(step(Place::Tail, in_memory, None));
        }
        for visit in self.layers.visit_down(key, lsn) {
            let layer = visit.layer;
            if complete {
                told.spared.push(layer.name().clone());
                continue;
            }
            let place = Place::Layer {
                name: layer.name().clone(),
                object: layer.object_path().to_owned(),
                size: layer.file_size(),
            };
            if layer.is_delta() {
                let found = layer.versions_down(key, visit.above, lsn).await?.into_iter();
                let versions: Vec<SeenVersion> = found
                    .map(|version| SeenVersion {
                        lsn: version.lsn,
                        value: version.value,
                        will_init: version.will_init,
                    })
                    .collect();
                complete = versions.last().is_some_and(|version| version.will_init);
                told.take(step(place, versions, None));
            } else {
                let image = layer.image(key).await?;
                complete = image.is_some() || !key.is_sparse();
                told.take(step(place, Vec::new(), image.map(|image| image.len())));
            }
        }
        Ok(complete)
    }
}

impl Timeline {
    /// Reads a page and tells how, the lookup of its relation's size apart.
    pub async fn explain(&self, rel: RelTag, block: u32, lsn: Lsn) -> Result<Explained, ReadError> {
        self.view().load_full().explain(Key::rel_block(rel, block), lsn).await
    }
}
