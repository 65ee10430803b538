//! What to do next with a timeline's layers. No clock, no I/O: from what there is and what is wanted to one job.
//!
//! The cost model, which `docs/architecture.md` tells in full: a byte of WAL is written once as WAL, once into an L0, once more when L0s are merged onto
//! shelves. After that a stack of deltas is flattened by whichever is cheaper: merging those of like size (what is written is a logarithm of what is
//! kept), or new images once the deltas above the old ones have several times their bytes. What nobody can read any more may grow to a fraction of all that
//! can be read; then it is collected where there is most of it, about twice that fraction, and a byte that stays is written again only after so many others.
//!
//! Reads weigh, too: where deltas are read very often, images are made before the stack is high, and no more often than reads come that pay for them.

use std::collections::BTreeSet;

use model::{Key, KeyRange, LayerName, Lsn, LsnRange};

use super::shelf::{LayerFacts, Shelf, cuts, groups, is_apart, shelves, total};
use crate::layer_write::NAMES;
use crate::retention::{Retention, unneeded};

/// What is wanted of layers.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactionPolicy {
    /// So many L0s are merged.
    pub l0_merge: usize,
    /// With so many L0s, ingest waits. With [`CompactionPolicy::max_deltas`] and an image these are what a read may visit at most, so there may be fewer of
    /// them while a stack is higher.
    pub l0_limit: usize,
    /// Deltas that may stand above an image, L0s excepted.
    pub max_deltas: usize,
    /// Images are made rather than deltas merged when those above the last images weigh so many times what these do.
    pub image_after: f64,
    /// A read of a delta lately weighs as much as so many bytes of it: what is read often is worth images sooner.
    pub read_weight: u64,
    /// Bytes that nobody can read any more, as a fraction of all others, at which they are collected where there are most of them.
    pub garbage: f64,
    /// Bytes below which nothing is worth a job.
    pub little: u64,
    /// Bytes of the layers that stand on one shelf.
    pub shelf_bytes: u64,
    /// Layers that are written are about so large.
    pub layer_bytes: u64,
    /// A job reads about so much at most.
    pub job_bytes: u64,
    /// A read redoes about so many changes at most.
    pub chain: usize,
}

impl Default for CompactionPolicy {
    fn default() -> Self {
        CompactionPolicy {
            l0_merge: 3,
            l0_limit: 4,
            max_deltas: 3,
            image_after: 3.0,
            read_weight: 2 << 10,
            garbage: 0.25,
            little: 1 << 20,
            shelf_bytes: 512 << 20,
            layer_bytes: 128 << 20,
            job_bytes: 2 << 30,
            chain: 24,
        }
    }
}

/// What there is.
#[derive(Clone, Debug)]
pub struct View {
    /// Deltas straight from the tail, oldest first.
    pub l0: Vec<LayerFacts>,
    /// All other layers.
    pub rest: Vec<LayerFacts>,
    /// What can be read.
    pub retention: Retention,
    /// Whether history goes on in an ancestor below these layers.
    pub is_branch: bool,
    /// Keys of which some cannot be made whole, such as pages of a resource manager that only an extension knows, or of which all were dropped: no new images
    /// there.
    pub beyond_redo: Vec<KeyRange>,
}

impl View {
    /// Whether new images can be made of all these keys: whole stacks of layers are at hand, and redo of none failed.
    fn may_image(&self, keys: &KeyRange) -> bool {
        !self.is_branch && self.beyond_redo.iter().all(|beyond| is_apart(beyond, keys))
    }
}

/// One job.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// Nothing is worth doing.
    Rest,
    /// These layers are needed by nobody.
    Drop(Vec<LayerName>),
    /// Deltas become fewer deltas of the same LSNs.
    Merge {
        /// Which.
        inputs: Vec<LayerName>,
        /// Image layers among them, which stay, and are built upon.
        base: Vec<LayerName>,
        /// All their keys.
        keys: KeyRange,
        /// All their LSNs.
        lsns: LsnRange,
        /// Where the new ones are cut.
        cuts: Vec<Key>,
    },
    /// New images of a range of keys.
    Image {
        /// What they are made of; all of it stays.
        inputs: Vec<LayerName>,
        /// Of which keys.
        keys: KeyRange,
        /// As of when.
        at: Lsn,
        /// Where they are cut.
        cuts: Vec<Key>,
    },
    /// What only LSNs can tell that nobody can read goes.
    Trim {
        /// Layers whose place is taken by what is written. They go, except for images that reach beyond the keys.
        inputs: Vec<LayerName>,
        /// Image layers that stay, and are built upon.
        base: Vec<LayerName>,
        /// All their keys.
        keys: KeyRange,
        /// All their LSNs.
        lsns: LsnRange,
        /// Below and at this LSN only points are kept; above it, everything.
        split: Lsn,
        /// Whether the state as of the first point becomes images.
        images: bool,
        /// Where what is written is cut.
        cuts: Vec<Key>,
    },
}

/// Chooses a job. `avoid` are ranges of keys in which a job failed lately.
pub fn choose(view: &View, policy: &CompactionPolicy, avoid: &[KeyRange]) -> Choice {
    choose_among(&shelves(&view.rest, policy.shelf_bytes), view, policy, avoid)
}

/// The same with the shelves at hand.
pub(super) fn choose_among(
    shelves: &[Shelf],
    view: &View,
    policy: &CompactionPolicy,
    avoid: &[KeyRange],
) -> Choice {
    let dropped: Vec<LayerName> = groups(&view.rest)
        .iter()
        .flat_map(|group| unneeded(group, &view.retention))
        .map(|layer| layer.name.clone())
        .collect();
    if !dropped.is_empty() {
        return Choice::Drop(dropped);
    }
    let is_clear = |keys: &KeyRange| avoid.iter().all(|other| is_apart(other, keys));
    let cut = cuts(shelves, policy.shelf_bytes);
    if has_buried(view) {
        return if avoid.contains(&Key::ALL) { Choice::Rest } else { merge_l0(view, policy, cut) };
    }
    let clear: Vec<(&Shelf, Option<Collection<'_>>)> = shelves
        .iter()
        .filter(|shelf| is_clear(&shelf.keys))
        .map(|shelf| (shelf, collection(shelf, view, policy)))
        .collect();
    let waste = Waste::of(&clear, policy);
    let mut jobs = Vec::new();
    for (shelf, collection) in clear {
        if let Some((urgency, job)) = flatten(shelf, view, policy, &cut) {
            // What can as well be collected makes the stack lower, too, and what it drops need not be merged before.
            let collected = collection.as_ref().filter(|other| other.is_near(policy) && other.lowers_stack());
            jobs.push((urgency, collected.map_or(job, |other| other.job(&cut))));
        }
        if let Some(collection) = collection
            && let Some(urgency) = waste.urgency(&collection)
        {
            jobs.push((urgency, collection.job(&cut)));
        }
    }
    // What makes reads deep comes first, then what frees most.
    jobs.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let next = jobs.into_iter().next();
    // A merge of L0s makes each stack higher by one. Where one is too high already, L0s wait; and when there are many of them, ingest does.
    if next.as_ref().is_none_or(|(urgency, _)| *urgency < URGENT)
        && !avoid.contains(&Key::ALL)
        && (view.l0.len() >= policy.l0_merge || l0s_are_old(view, policy))
    {
        return merge_l0(view, policy, cut);
    }
    next.map_or(Choice::Rest, |(_, job)| job)
}

/// What readers may have to visit at most: L0s, the deepest stack of deltas, and its image.
pub fn depth(view: &View, policy: &CompactionPolicy) -> usize {
    let shelves = shelves(&view.rest, policy.shelf_bytes);
    let stack = shelves.iter().map(|shelf| stack_height(shelf, view.is_branch) + 1).max();
    view.l0.len() + stack.unwrap_or(0)
}

/// How many L0s there may be, so that reads stay as shallow as is promised though a stack is too high. Never fewer than are merged: then there would be no
/// more of them, also where a stack cannot be made lower.
pub(super) fn l0_room(shelves: &[Shelf], is_branch: bool, policy: &CompactionPolicy) -> usize {
    let may_be_high = |shelf: &&Shelf| shelf.layers.len() > policy.max_deltas;
    let height = |shelf| stack_height(shelf, is_branch);
    let stack = shelves.iter().filter(may_be_high).map(height).max().unwrap_or(0);
    policy.l0_limit.saturating_sub(stack.saturating_sub(policy.max_deltas)).max(policy.l0_merge)
}

fn union<'a>(layers: impl IntoIterator<Item = &'a LayerName>) -> Option<(KeyRange, LsnRange)> {
    layers.into_iter().map(|name| (name.keys().clone(), name.lsns())).reduce(
        |(keys, lsns), (more_keys, more)| {
            (
                keys.start.min(more_keys.start)..keys.end.max(more_keys.end),
                lsns.start.min(more.start)..lsns.end.max(more.end),
            )
        },
    )
}

fn names(layers: &[&LayerFacts]) -> Vec<LayerName> {
    layers.iter().map(|layer| layer.name.clone()).collect()
}

/// Whether an L0 lies below what was merged already, as one of an ancestor does below a branch that stands alone now. Other layers must not be rewritten as if
/// it were not there, so it comes first.
fn has_buried(view: &View) -> bool {
    let highest = view.rest.iter().map(|layer| layer.name.lsns().end).max();
    view.l0.first().zip(highest).is_some_and(|(oldest, end)| oldest.name.lsns().start < end)
}

/// A timeline that nobody writes to has its last L0s below the cutoff for good: they are merged when they hold much beside all else.
fn l0s_are_old(view: &View, policy: &CompactionPolicy) -> bool {
    let is_old = |layer: &&LayerFacts| layer.name.lsns().end.0 <= view.retention.cutoff.0 + 1;
    let old = total(view.l0.iter().filter(is_old));
    old > policy.little && old as f64 > policy.garbage * total(&view.rest) as f64
}

fn merge_l0(view: &View, policy: &CompactionPolicy, cuts: Vec<Key>) -> Choice {
    let mut inputs: Vec<&LayerFacts> = Vec::new();
    let mut bytes = 0;
    for layer in &view.l0 {
        let joins = inputs.last().is_none_or(|last| last.name.lsns().end == layer.name.lsns().start);
        if !joins || (!inputs.is_empty() && bytes + layer.size > policy.job_bytes) {
            break;
        }
        bytes += layer.size;
        inputs.push(layer);
    }
    let Some((_, lsns)) = union(inputs.iter().map(|layer| &layer.name)) else { return Choice::Rest };
    Choice::Merge { inputs: names(&inputs), base: Vec::new(), keys: Key::ALL, lsns, cuts }
}

/// The most deltas that stand above the newest image of any key. Where there is none, and none in an ancestor, the lowest delta stands for it.
pub(super) fn stack_height(shelf: &Shelf, is_branch: bool) -> usize {
    heights(shelf, is_branch).map(|(_, height)| height).max().unwrap_or(0)
}

/// How high stacks are at keys where layers begin, or images end: only there they can become higher.
fn heights(shelf: &Shelf, is_branch: bool) -> impl Iterator<Item = (Key, usize)> {
    let deltas = shelf.deltas();
    let begin = shelf.layers.iter().map(|layer| layer.name.keys().start);
    let images_end =
        shelf.layers.iter().filter(|layer| !layer.name.is_delta()).map(|layer| layer.name.keys().end);
    let mut edges: Vec<Key> = begin.chain(images_end).filter(|key| shelf.keys.contains(key)).collect();
    edges.sort_unstable();
    edges.dedup();
    edges.into_iter().map(move |key| {
        let image = shelf
            .layers
            .iter()
            .filter(|layer| !layer.name.is_delta() && layer.name.keys().contains(&key))
            .map(|layer| layer.name.lsns().start)
            .max();
        let above = |layer: &&&LayerFacts| image.is_none_or(|image| layer.name.lsns().end.0 > image.0 + 1);
        let there = deltas.iter().filter(above).filter(|layer| layer.name.keys().contains(&key)).count();
        (key, there.saturating_sub(usize::from(image.is_none() && !is_branch)))
    })
}

type Job = (f64, Choice);

/// From here on a job comes before new layers.
const URGENT: f64 = 1e6;
/// So many times what there may be of garbage is too much.
const MUCH: f64 = 1.15;
/// A shelf is collected, if that saves a merge, when it has so many times what there may be of it.
const NEAR: f64 = 1.3;

/// A shelf on which reads go too deep, or so often below its images that new ones are worth it.
fn flatten(shelf: &Shelf, view: &View, policy: &CompactionPolicy, cuts: &[Key]) -> Option<Job> {
    let deltas = shelf.deltas();
    let may_be_high = deltas.len() > policy.max_deltas;
    if !may_be_high && deltas.iter().all(|layer| layer.heat == 0) {
        return None; // most shelves, each time
    }
    let images = shelf.newest_images(Lsn::MAX);
    let oldest_image = images.iter().map(|layer| layer.name.lsns().start).min();
    let above: Vec<&LayerFacts> = deltas
        .iter()
        .copied()
        .filter(|layer| oldest_image.is_none_or(|image| layer.name.lsns().end.0 > image.0 + 1))
        .collect();
    let height = if may_be_high { stack_height(shelf, view.is_branch) } else { above.len() };
    let is_high = height > policy.max_deltas;
    let urgency = if is_high { URGENT + height as f64 } else { 0.0 };
    let reads: u64 = above.iter().map(|layer| u64::from(layer.heat)).sum::<u64>() * policy.read_weight;
    // Where nothing is too high, reads alone must be worth it.
    let weight = reads + if is_high { total(above.iter().copied()) } else { 0 };
    let enough = policy.image_after * shelf.weight_of(&images) as f64;
    let may_image = view.may_image(&shelf.keys) && !images.is_empty() && !above.is_empty();
    if may_image && weight as f64 >= enough {
        let at = Lsn(deltas[0].name.lsns().end.0 - 1);
        let inputs: Vec<&LayerFacts> = above.into_iter().chain(images).collect();
        let image =
            Choice::Image { inputs: names(&inputs), keys: shelf.keys.clone(), at, cuts: cuts.to_vec() };
        return Some((urgency, image));
    }
    if is_high { Some((urgency, merge(shelf, &above, view, policy, cuts)?)) } else { None }
}

/// Merges the newest deltas of like size: each step at most what is above it, but two at least. So a byte is seldom merged with many fewer others. The lowest
/// deltas of all keys are one step: many of them may lie side by side below a few that cover as much. What stands nowhere where a stack is as high as may be
/// stays as it is.
///
/// What was trimmed is not merged with what is above the cutoff: that would be garbage again, to be cut in two once more.
fn merge<'a>(
    shelf: &'a Shelf,
    above: &[&'a LayerFacts],
    view: &View,
    policy: &CompactionPolicy,
    cuts: &[Key],
) -> Option<Choice> {
    let high = heights(shelf, view.is_branch).filter(|(_, height)| *height >= policy.max_deltas);
    let high: Vec<Key> = high.map(|(key, _)| key).collect();
    let stands_high = |layer: &&LayerFacts| high.iter().any(|key| layer.name.keys().contains(key));
    let is_above = |layer: &LayerFacts, other: &LayerFacts| {
        other.name.lsns().end <= layer.name.lsns().start && !is_apart(other.name.keys(), layer.name.keys())
    };
    let (upper, lowest): (Vec<&LayerFacts>, Vec<&LayerFacts>) = above
        .iter()
        .copied()
        .filter(stands_high)
        .partition(|layer| above.iter().any(|other| is_above(layer, other)));
    let mut steps = steps(&upper);
    steps.extend((!lowest.is_empty()).then_some(lowest));
    let is_settled = |layer: &&LayerFacts| {
        layer.trimmed_for.is_some() && layer.name.lsns().end.0 <= view.retention.cutoff.0 + 1
    };
    let settled = steps.iter().position(|step| step.iter().any(is_settled)).unwrap_or(steps.len());
    let chosen = of_like_size(&steps[..settled]).or_else(|| of_like_size(&steps[settled..]))?;
    with_what_lies_among(shelf, chosen, cuts)
}

/// What was written together is one step of a stack.
fn steps<'a>(newest_first: &[&'a LayerFacts]) -> Vec<Vec<&'a LayerFacts>> {
    let mut steps: Vec<Vec<&LayerFacts>> = Vec::new();
    for layer in newest_first {
        let lsns = layer.name.lsns();
        let reached = steps.last().and_then(|step| step.iter().map(|other| other.name.lsns().start).min());
        match steps.last_mut() {
            Some(step) if reached.is_some_and(|start| lsns.end > start) => step.push(layer),
            _ => steps.push(vec![layer]),
        }
    }
    steps
}

/// Of steps, newest first, those that are merged.
fn of_like_size<'a>(steps: &[Vec<&'a LayerFacts>]) -> Option<Vec<&'a LayerFacts>> {
    let mut chosen = steps.get(..2)?.concat();
    for step in &steps[2..] {
        if total(step.iter().copied()) > total(chosen.iter().copied()) {
            break;
        }
        chosen.extend(step);
    }
    Some(chosen)
}

/// Merges these deltas of a shelf. What is written has all their LSNs for its name, so whatever else has some of these goes with them where it shares their keys;
/// where it does not, what is written is cut around it.
fn with_what_lies_among<'a>(
    shelf: &'a Shelf,
    mut inputs: Vec<&'a LayerFacts>,
    cuts: &[Key],
) -> Option<Choice> {
    let mut others = shelf.deltas();
    others.retain(|layer| !inputs.contains(layer));
    loop {
        let (keys, lsns) = union(inputs.iter().map(|layer| &layer.name))?;
        let is_among = |layer: &LayerFacts| {
            let its = layer.name.lsns();
            its.start < lsns.end && lsns.start < its.end && !is_apart(layer.name.keys(), &keys)
        };
        let (among, apart): (Vec<_>, Vec<_>) = others.iter().copied().partition(|layer| is_among(layer));
        let (joins, beside): (Vec<&LayerFacts>, Vec<&LayerFacts>) = among
            .into_iter()
            .partition(|layer| inputs.iter().any(|input| !is_apart(input.name.keys(), layer.name.keys())));
        if joins.is_empty() {
            // Of what an image says, older deltas may be gone.
            let is_within = |layer: &&LayerFacts| {
                let name = &layer.name;
                !name.is_delta() && lsns.contains(&name.lsns().start) && !is_apart(name.keys(), &keys)
            };
            let base: Vec<&LayerFacts> = shelf.layers.iter().filter(is_within).collect();
            let around = beside.iter().flat_map(|layer| [layer.name.keys().start, layer.name.keys().end]);
            let cuts = cuts.iter().copied().chain(around).collect();
            return Some(Choice::Merge { inputs: names(&inputs), base: names(&base), keys, lsns, cuts });
        }
        inputs.extend(joins);
        others = [apart, beside].concat();
    }
}

/// What collecting on one shelf would do.
struct Collection<'a> {
    shelf: &'a Shelf,
    /// Bytes of which most would go.
    waste: u64,
    /// All others.
    wanted: u64,
    /// As in [`Choice::Trim`].
    inputs: Vec<&'a LayerFacts>,
    base: Vec<&'a LayerFacts>,
    lsns: LsnRange,
    split: Lsn,
    images: bool,
}

impl Collection<'_> {
    /// Whether there is so much more on this shelf than there may be on all of them that it would come soon.
    fn is_near(&self, policy: &CompactionPolicy) -> bool {
        self.waste as f64 >= policy.garbage * NEAR * self.wanted as f64
    }

    /// Whether new images would take over from deltas.
    fn lowers_stack(&self) -> bool {
        let goes = |layer: &&LayerFacts| layer.name.lsns().end.0 - 1 <= self.split.0;
        self.images && self.shelf.deltas().iter().any(goes)
    }

    fn job(&self, cuts: &[Key]) -> Choice {
        Choice::Trim {
            inputs: names(&self.inputs),
            base: names(&self.base),
            keys: self.shelf.keys.clone(),
            lsns: self.lsns.clone(),
            split: self.split,
            images: self.images,
            cuts: cuts.to_vec(),
        }
    }
}

/// What could be collected on all shelves together. They are not collected each when it has so much of it, but the one that has most when all have: so there
/// is always about as much garbage as there may be, and where it is collected there is more of it for each byte that must be written again.
struct Waste {
    is_due: bool,
    is_urgent: bool,
}

impl Waste {
    fn of(shelves: &[(&Shelf, Option<Collection<'_>>)], policy: &CompactionPolicy) -> Waste {
        let (mut waste, mut wanted) = (0, 0);
        for (shelf, collection) in shelves {
            waste += collection.as_ref().map_or(0, |collection| collection.waste);
            wanted +=
                collection.as_ref().map_or_else(|| total(&shelf.layers), |collection| collection.wanted);
        }
        let may_be = policy.garbage * wanted as f64;
        Waste { is_due: waste as f64 >= may_be, is_urgent: waste as f64 >= may_be * MUCH }
    }

    /// How urgent it is to collect on a shelf, if it is worth it. Where it costs no more than it frees, it always is.
    fn urgency(&self, of: &Collection<'_>) -> Option<f64> {
        let gain = of.waste as f64 / (of.wanted + of.waste) as f64;
        let is_cheap = of.waste >= of.wanted;
        (self.is_due || is_cheap).then_some(if self.is_urgent { URGENT + gain } else { gain })
    }
}

/// What can be collected on a shelf, and how.
fn collection<'a>(shelf: &'a Shelf, view: &View, policy: &CompactionPolicy) -> Option<Collection<'a>> {
    let retention = &view.retention;
    let split = split_at(shelf, retention.cutoff)?;
    let points = retention.points_to(split);
    let (deltas, later) = reaching_below(shelf, split);
    let (old, fresh): (Vec<&LayerFacts>, Vec<&LayerFacts>) =
        deltas.iter().partition(|layer| is_trimmed(layer, split, retention));
    let garbage: u64 = fresh.iter().map(|layer| below(layer, split)).sum();
    if garbage <= policy.little {
        return None;
    }
    let crossing =
        total(deltas.iter().copied()) - deltas.iter().map(|layer| below(layer, split)).sum::<u64>();
    let above = total(later) + crossing;
    let trimmed: u64 = old.iter().map(|layer| below(layer, split)).sum();
    let first = points.first().copied().unwrap_or(split).min(split);
    let images = shelf.newest_images(first);
    let readable = shelf.weight_of(&images);
    // Images of that very place may have any of the names for it.
    let stale = images.iter().any(|image| image.name.lsns().start.0 + NAMES <= first.0);
    let may_image = view.may_image(&shelf.keys) && !images.is_empty() && stale;
    // What was trimmed up to the first point says again what images say: new ones take both over. What was trimmed for later points must stay.
    let doubled =
        |layer: &&LayerFacts| (below(layer, split) as f64 * share_to(layer, first.min(split), split)) as u64;
    let doubled: u64 = if may_image { old.iter().map(doubled).sum() } else { 0 };
    let wanted = readable + trimmed - doubled + above;
    let waste = garbage + doubled;
    // Either way is judged by what is written for each byte that goes. How much of what is fresh stays when it is trimmed is known from what stayed before.
    let survives = survival(&old, trimmed, &fresh, garbage, split);
    let stays = trimmed as f64 + survives * garbage as f64;
    let by_trimming = (stays + crossing as f64) / ((1.0 - survives) * garbage as f64);
    let by_imaging = (readable + crossing + trimmed - doubled) as f64 / waste as f64;
    let new_images = may_image && (by_imaging <= by_trimming || garbage >= readable);
    let stays = |image: &&LayerFacts| !shelf.has_all_of(image);
    let reachable = |layer: &&LayerFacts| !layer.name.is_delta() && layer.name.lsns().start <= split;
    let (early, later): (Vec<&LayerFacts>, Vec<&LayerFacts>) =
        shelf.layers.iter().filter(reachable).partition(|image| image.name.lsns().start <= first);
    // What is later than what the first point reads is a state that the deltas tell as well. Where it stands on other shelves, too, it stays.
    let (mut base, later): (Vec<&LayerFacts>, Vec<&LayerFacts>) = later.into_iter().partition(stays);
    let becomes_versions = !new_images && !later.is_empty();
    let mut inputs: Vec<&LayerFacts> = deltas.into_iter().chain(later).collect();
    if new_images {
        inputs.extend(early.into_iter().filter(|image| !stays(image) || images.contains(image)));
    } else {
        base.extend(&images);
    }
    let spans = |layer: &&&LayerFacts| layer.name.is_delta() || !new_images;
    let (_, mut lsns) = union(inputs.iter().filter(spans).map(|layer| &layer.name))?;
    if becomes_versions {
        // An image whose deltas went before is what is left of them: it becomes versions of its own LSN. What is written begins well before that, so that there
        // are names for it; nothing else on the shelf has these LSNs.
        lsns.start = lsns.start.min(first.add(1));
    }
    Some(Collection { shelf, waste, wanted, inputs, base, lsns, split, images: new_images })
}

/// The deltas of a shelf that reach below the split, and those above it. What lies beside one that reaches over the split, and not above it, goes with the
/// former: what is written together has one stretch of LSNs, and nothing older than another delta of its keys may seem to be newer.
fn reaching_below(shelf: &Shelf, split: Lsn) -> (Vec<&LayerFacts>, Vec<&LayerFacts>) {
    let reaches = |step: &Vec<&LayerFacts>| step.iter().any(|layer| layer.name.lsns().start <= split);
    let (below, above): (Vec<_>, Vec<_>) = steps(&shelf.deltas()).into_iter().partition(reaches);
    (below.concat(), above.concat())
}

/// Which part of a layer's LSNs up to `split` is not above `to`.
fn share_to(layer: &LayerFacts, to: Lsn, split: Lsn) -> f64 {
    let lsns = layer.name.lsns();
    let all = lsns.end.min(split.add(1)).since(lsns.start).max(1);
    to.add(1).min(lsns.end).since(lsns.start).min(all) as f64 / all as f64
}

/// Which part of fresh bytes will stay when they are trimmed: what stayed of earlier ones for each byte of WAL, beside what these have. Where nothing was
/// trimmed yet, much: pages that are written whole after each checkpoint seldom are twice.
fn survival(old: &[&LayerFacts], trimmed: u64, fresh: &[&LayerFacts], garbage: u64, split: Lsn) -> f64 {
    const UNKNOWN: f64 = 0.85;
    const MOST: f64 = 0.95;
    let span = |layers: &[&LayerFacts]| {
        let start = layers.iter().map(|layer| layer.name.lsns().start).min()?;
        let end = layers.iter().map(|layer| layer.name.lsns().end).max()?;
        Some(end.min(split.add(1)).since(start).max(1) as f64)
    };
    match (span(old), span(fresh)) {
        (Some(old), Some(fresh)) if trimmed > 0 && garbage > 0 => {
            ((trimmed as f64 / old) / (garbage as f64 / fresh)).min(MOST)
        }
        _ => UNKNOWN,
    }
}

/// Bytes of a delta that lie at or below the split. Of one that reaches above it, a part.
pub(super) fn below(layer: &LayerFacts, split: Lsn) -> u64 {
    let lsns = layer.name.lsns();
    let share = (split.0 + 1).saturating_sub(lsns.start.0) as f64 / (lsns.end.0 - lsns.start.0) as f64;
    (layer.size as f64 * share.min(1.0)) as u64
}

/// Whether all that is left in a delta at or below the split is still read.
fn is_trimmed(layer: &LayerFacts, split: Lsn, retention: &Retention) -> bool {
    let still_read = |point: &Lsn| *point >= split || retention.keeps(*point);
    // The last of its points is where the cutoff was then; later ones took over from it.
    layer.trimmed_for.as_ref().is_some_and(|points| points.iter().rev().skip(1).all(still_read))
}

/// Deltas of a shelf that reach below the split, and of which not all is known to be still read there.
pub(super) fn fresh_deltas<'a>(shelf: &'a Shelf, split: Lsn, retention: &Retention) -> Vec<&'a LayerFacts> {
    let mut deltas = shelf.deltas();
    deltas.retain(|layer| layer.name.lsns().start <= split && !is_trimmed(layer, split, retention));
    deltas
}

/// Up to where a shelf's history is trimmed: the highest LSN up to the cutoff that no delta reaches across, if that leaves little; else the cutoff.
pub(super) fn split_at(shelf: &Shelf, cutoff: Lsn) -> Option<Lsn> {
    let spans: Vec<LsnRange> = shelf.deltas().iter().map(|layer| layer.name.lsns()).collect();
    let lowest = spans.iter().map(|lsns| lsns.start).min().filter(|start| *start <= cutoff)?;
    let ends: BTreeSet<Lsn> =
        spans.iter().map(|lsns| Lsn(lsns.end.0 - 1)).filter(|end| *end <= cutoff).collect();
    let is_clean = |end: &Lsn| spans.iter().all(|lsns| lsns.start > *end || lsns.end.0 - 1 <= end.0);
    let clean = ends.into_iter().rev().find(is_clean);
    // A merged delta may reach over the cutoff for long; half of what could go is worth cutting it in two.
    let reach = cutoff.since(lowest);
    let is_crossed = spans.iter().any(|lsns| lsns.start <= cutoff && lsns.end.0 - 1 > cutoff.0);
    match clean {
        Some(end) if !is_crossed || cutoff.since(end) * 2 <= reach => Some(end),
        _ => Some(cutoff),
    }
}

#[cfg(test)]
mod tests {
    use model::WalSegmentSize;
    use proptest::prelude::*;

    use super::super::shelf::is_within;
    use super::*;

    /// Far from the header of a page.
    fn lsn(number: u64) -> Lsn {
        Lsn(0x1000 + number)
    }

    fn key(number: u32) -> Key {
        Key { field6: number, ..Key::MIN }
    }

    fn facts(name: LayerName, size: u64) -> LayerFacts {
        LayerFacts { name, size, trimmed_for: None, heat: 0 }
    }

    fn image(keys: std::ops::Range<u32>, at: u64, size: u64) -> LayerFacts {
        facts(LayerName::Image { keys: key(keys.start)..key(keys.end), lsn: lsn(at) }, size)
    }

    fn delta(keys: std::ops::Range<u32>, lsns: std::ops::Range<u64>, size: u64) -> LayerFacts {
        let lsns = lsn(lsns.start)..lsn(lsns.end);
        facts(LayerName::Delta { keys: key(keys.start)..key(keys.end), lsns }, size)
    }

    fn l0(lsns: std::ops::Range<u64>, size: u64) -> LayerFacts {
        facts(LayerName::Delta { keys: Key::ALL, lsns: lsn(lsns.start)..lsn(lsns.end) }, size)
    }

    fn policy() -> CompactionPolicy {
        CompactionPolicy {
            little: 0,
            garbage: 0.15,
            shelf_bytes: 100,
            layer_bytes: 50,
            job_bytes: 1_000,
            ..CompactionPolicy::default()
        }
    }

    fn view(l0: Vec<LayerFacts>, rest: Vec<LayerFacts>, cutoff: u64, points: &[u64]) -> View {
        let retention = Retention::new(WalSegmentSize::DEFAULT, lsn(cutoff), points.iter().copied().map(lsn));
        View { l0, rest, retention, is_branch: false, beyond_redo: Vec::new() }
    }

    fn base() -> Vec<LayerFacts> {
        vec![image(0..9, 10, 100), image(9..20, 10, 100)]
    }

    #[test]
    fn nothing_is_done_while_reads_are_shallow_and_little_can_go() {
        let rest = [base(), vec![delta(0..20, 11..31, 30)]].concat();
        let quiet = view(vec![l0(31..41, 9), l0(41..51, 9)], rest, 10, &[]);
        assert_eq!(choose(&quiet, &policy(), &[]), Choice::Rest);
        assert_eq!(depth(&quiet, &policy()), 4);
    }

    #[test]
    fn l0s_are_merged_oldest_first_and_cut_where_shelves_meet() {
        let l0s = vec![l0(11..21, 600), l0(21..31, 300), l0(31..41, 600)];
        let Choice::Merge { inputs, lsns, cuts, .. } = choose(&view(l0s, base(), 10, &[]), &policy(), &[])
        else {
            panic!("no merge");
        };
        assert_eq!((inputs.len(), lsns, cuts), (2, lsn(11)..lsn(31), vec![key(9)]));
    }

    #[test]
    fn a_deep_stack_is_merged_while_it_is_small_beside_its_images_and_imaged_when_it_is_not() {
        let stack = |sizes: [u64; 4]| {
            let delta = |(n, size): (usize, &u64)| delta(0..9, 11 + n as u64 * 10..21 + n as u64 * 10, *size);
            sizes.iter().enumerate().map(delta).collect::<Vec<_>>()
        };
        let choice = |sizes| choose(&view(vec![], [base(), stack(sizes)].concat(), 10, &[]), &policy(), &[]);
        let Choice::Merge { inputs, lsns, keys, .. } = choice([150, 30, 20, 10]) else { panic!("no merge") };
        assert_eq!((inputs.len(), lsns, keys), (3, lsn(21)..lsn(51), key(0)..key(9)));
        let Choice::Merge { inputs, .. } = choice([90, 5, 10, 10]) else { panic!("no merge") };
        assert_eq!(inputs.len(), 3);
        let Choice::Image { at, keys, inputs, .. } = choice([200, 80, 20, 10]) else { panic!("no images") };
        assert_eq!((at, keys, inputs.len()), (lsn(50), key(0)..key(9), 5));
    }

    #[test]
    fn where_there_is_no_image_the_lowest_delta_stands_for_it_unless_an_ancestor_has_more() {
        let stack =
            |count: u64| (0..count).map(|n| delta(0..9, 11 + n * 10..21 + n * 10, 90 - n * 10)).collect();
        let inputs = |count, is_branch| {
            let view = View { is_branch, ..view(vec![], stack(count), 10, &[]) };
            match choose(&view, &policy(), &[]) {
                Choice::Merge { inputs, .. } => (inputs.len(), depth(&view, &policy())),
                Choice::Rest => (0, depth(&view, &policy())),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(inputs(4, false), (0, 4));
        assert_eq!(inputs(5, false), (5, 5));
        assert_eq!(inputs(3, true), (0, 4));
        assert_eq!(inputs(4, true), (4, 5));
    }

    #[test]
    fn what_was_loaded_side_by_side_is_not_merged_with_less_that_covers_all_of_it() {
        let wide = (0..4).map(|n| delta(0..20, 41 + n * 10..51 + n * 10, 50));
        let loaded = [delta(0..4, 11..21, 90), delta(4..9, 21..31, 90), delta(9..20, 31..41, 90)];
        let inputs = |low: &[LayerFacts]| {
            let rest = low.iter().cloned().chain(wide.clone()).collect();
            let policy = CompactionPolicy { shelf_bytes: 1_000, ..policy() };
            match choose(&view(vec![], rest, 10, &[]), &policy, &[]) {
                Choice::Merge { inputs, .. } => inputs.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(inputs(&loaded), 4);
        let smaller = loaded.map(|layer| LayerFacts { size: 60, ..layer });
        assert_eq!(inputs(&smaller), 7);
    }

    #[test]
    fn what_shares_its_keys_with_no_other_stays_and_what_is_written_is_cut_around_it() {
        // Each load brings pages of its own, and some of what lies before all of them and behind.
        let loads = (0..5).flat_map(|n| {
            let (lsns, from) = (11 + n * 10..21 + n * 10, 10 + n as u32 * 4);
            [delta(0..3, lsns.clone(), 5), delta(from..from + 3, lsns.clone(), 50), delta(40..41, lsns, 5)]
        });
        let policy = CompactionPolicy { shelf_bytes: 1_000, ..policy() };
        let Choice::Merge { inputs, keys, lsns, mut cuts, .. } =
            choose(&view(vec![], loads.collect(), 10, &[]), &policy, &[])
        else {
            panic!("no merge");
        };
        assert_eq!((inputs.len(), keys, lsns), (10, key(0)..key(41), lsn(11)..lsn(61)));
        cuts.sort_unstable();
        assert_eq!(cuts, [10, 13, 14, 17, 18, 21, 22, 25, 26, 29].map(key));
    }

    #[test]
    fn what_lies_among_merged_deltas_is_merged_with_them_and_images_there_are_built_upon() {
        let old = [image(0..9, 10, 900), image(9..15, 25, 900)];
        let high = (0..4).map(|n| delta(0..5, 11 + n * 10..21 + n * 10, 9)).collect::<Vec<_>>();
        let beside = [delta(4..8, 31..41, 9), delta(7..12, 11..31, 9), delta(11..15, 5..11, 9)];
        // Of two layers at one key none may have LSNs of the other's, so what is high ends where its neighbour begins.
        let high = high.into_iter().map(|layer| match layer.name.lsns() {
            lsns if lsns.start == lsn(31) => delta(0..4, 31..41, layer.size),
            _ => layer,
        });
        let rest: Vec<LayerFacts> = old.iter().cloned().chain(high).chain(beside.clone()).collect();
        let policy = CompactionPolicy { shelf_bytes: 10_000, ..policy() };
        let Choice::Merge { inputs, base, keys, lsns, .. } =
            choose(&view(vec![], rest, 5, &[]), &policy, &[])
        else {
            panic!("no merge");
        };
        assert_eq!((inputs.len(), keys, lsns), (6, key(0)..key(12), lsn(11)..lsn(51)));
        assert!(!inputs.contains(&beside[2].name));
        assert_eq!(base, [old[1].name.clone()]);
    }

    #[test]
    fn what_images_took_over_is_dropped_when_the_cutoff_has_passed_them() {
        let rest = [base(), vec![delta(0..9, 11..21, 30), image(0..9, 20, 100)]].concat();
        assert_eq!(choose(&view(vec![], rest.clone(), 12, &[]), &policy(), &[]), Choice::Rest);
        let Choice::Drop(dropped) = choose(&view(vec![], rest.clone(), 20, &[]), &policy(), &[]) else {
            panic!("nothing dropped");
        };
        assert_eq!(dropped, [rest[0].name.clone(), rest[2].name.clone()]);
    }

    #[test]
    fn garbage_is_collected_when_there_is_enough_of_it_and_images_are_made_anew_when_they_are_half_forgotten()
    {
        let with = |deltas: Vec<LayerFacts>| [base(), deltas].concat();
        let choice = |deltas, cutoff, points: &[u64]| {
            choose(&view(vec![], with(deltas), cutoff, points), &policy(), &[])
        };
        assert_eq!(choice(vec![delta(0..9, 11..21, 10)], 30, &[]), Choice::Rest);
        let Choice::Trim { inputs, base, split, images, lsns, .. } =
            choice(vec![delta(0..9, 11..21, 30)], 30, &[])
        else {
            panic!("nothing trimmed");
        };
        assert_eq!((inputs.len(), base.len(), split, images, lsns), (2, 0, lsn(20), true, lsn(11)..lsn(21)));
        let trimmed = LayerFacts { trimmed_for: Some(vec![lsn(20)]), ..delta(0..9, 11..21, 30) };
        assert_eq!(choice(vec![trimmed.clone()], 30, &[]), Choice::Rest, "once is enough");
        let Choice::Trim { images, inputs, .. } = choice(vec![trimmed, delta(0..9, 21..31, 30)], 30, &[])
        else {
            panic!("nothing trimmed");
        };
        assert_eq!((images, inputs.len()), (true, 3));
    }

    #[test]
    fn there_is_as_much_garbage_as_there_may_be_of_all_shelves_and_then_the_one_with_most_is_collected() {
        let choice = |shelves: u32, sizes: [u64; 2]| {
            let mut layers: Vec<LayerFacts> =
                (0..shelves).map(|n| image(n * 9..n * 9 + 9, 10, 100)).collect();
            layers.extend((0..2).zip(sizes).map(|(n, size)| delta(n * 9..n * 9 + 9, 11..21, size)));
            match choose(&view(vec![], layers, 30, &[]), &policy(), &[]) {
                Choice::Trim { keys, .. } => Some(keys),
                Choice::Rest => None,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(choice(2, [9, 20]), None);
        assert_eq!(choice(2, [9, 21]), Some(key(9)..key(18)));
        assert_eq!(choice(3, [9, 35]), None);
        assert_eq!(choice(3, [37, 8]), Some(key(0)..key(9)));
        assert_eq!(choice(30, [99, 99]), None);
        assert_eq!(choice(30, [20, 100]), Some(key(9)..key(18)), "it frees what it costs");
    }

    #[test]
    fn what_is_kept_above_the_cutoff_allows_for_more_garbage_below_it() {
        let with = |above| [base(), vec![delta(0..9, 11..21, 40), delta(0..9, 21..31, above)]].concat();
        let choice = |above| choose(&view(vec![], with(above), 20, &[]), &policy(), &[]);
        assert!(matches!(choice(10), Choice::Trim { .. }));
        assert_eq!(choice(100), Choice::Rest);
    }

    #[test]
    fn images_are_made_anew_when_little_of_what_is_trimmed_goes_and_not_while_much_does() {
        let choice = |trimmed, fresh| {
            let old = LayerFacts { trimmed_for: Some(vec![Lsn(20)]), ..delta(0..9, 11..21, trimmed) };
            let rest = [base(), vec![old, delta(0..9, 21..31, fresh)]].concat();
            match choose(&view(vec![], rest, 30, &[]), &policy(), &[]) {
                Choice::Trim { images, .. } => Some(images),
                _ => None,
            }
        };
        assert_eq!(choice(2, 30), Some(false), "of fifteen bytes one stays");
        assert_eq!(choice(15, 20), Some(true), "of four bytes three stay");
        assert_eq!(choice(2, 10), None);
    }

    #[test]
    fn where_a_stack_is_too_high_tails_wait_until_it_is_lower() {
        let l0s = || vec![l0(51..61, 9), l0(61..71, 9), l0(71..81, 9)];
        let stack = |count: u64| (0..count).map(|n| delta(0..9, 11 + n * 10..21 + n * 10, 5)).collect();
        let choice = |count| choose(&view(l0s(), [base(), stack(count)].concat(), 10, &[]), &policy(), &[]);
        let Choice::Merge { inputs, .. } = choice(3) else { panic!("no merge") };
        assert!(inputs[0].is_l0());
        let Choice::Merge { inputs, .. } = choice(4) else { panic!("no merge") };
        assert!(!inputs[0].is_l0());
    }

    #[test]
    fn the_higher_a_stack_is_the_fewer_l0s_there_may_be() {
        let room = |count: u64| {
            let stack = (0..count).map(|n| delta(0..9, 11 + n * 10..21 + n * 10, 5)).collect();
            let policy = policy();
            l0_room(&shelves(&[base(), stack].concat(), policy.shelf_bytes), false, &policy)
        };
        assert_eq!([0, 3, 4, 9].map(room), [4, 4, 3, 3]);
    }

    #[test]
    fn a_deep_stack_that_is_about_to_be_collected_is_not_merged_before() {
        let deltas = |sizes: [u64; 4]| {
            let delta = |(n, size): (usize, &u64)| delta(0..9, 11 + n as u64 * 10..21 + n as u64 * 10, *size);
            [base(), sizes.iter().enumerate().map(delta).collect()].concat()
        };
        let choice = |sizes, cutoff| choose(&view(vec![], deltas(sizes), cutoff, &[]), &policy(), &[]);
        let Choice::Trim { split, .. } = choice([9, 9, 9, 2], 40) else { panic!("not collected") };
        assert_eq!(split, lsn(40));
        assert!(matches!(choice([9, 9, 9, 2], 20), Choice::Merge { .. }), "little of it can go");
    }

    #[test]
    fn a_point_that_is_gone_makes_garbage_of_what_was_kept_for_it() {
        let kept = LayerFacts { trimmed_for: Some(vec![lsn(15), lsn(20)]), ..delta(0..9, 11..21, 30) };
        let rest = [base(), vec![kept]].concat();
        assert_eq!(choose(&view(vec![], rest.clone(), 30, &[15]), &policy(), &[]), Choice::Rest);
        assert!(matches!(choose(&view(vec![], rest, 30, &[]), &policy(), &[]), Choice::Trim { .. }));
    }

    #[test]
    fn a_delta_that_reaches_far_over_the_cutoff_is_cut_in_two() {
        let rest = [base(), vec![delta(0..9, 11..1_000, 200)]].concat();
        let Choice::Trim { split, lsns, .. } = choose(&view(vec![], rest, 800, &[]), &policy(), &[]) else {
            panic!("nothing trimmed");
        };
        assert_eq!((split, lsns), (lsn(800), lsn(11)..lsn(1_000)));
    }

    #[test]
    fn an_l0_below_what_was_merged_already_comes_before_all_else() {
        let deep = (0..5).map(|n| delta(0..9, 21 + n * 10..31 + n * 10, 200)).collect();
        let rest = [base(), deep].concat();
        let buried = view(vec![l0(11..21, 9), l0(71..81, 9)], rest, 60, &[]);
        let Choice::Merge { inputs, lsns, .. } = choose(&buried, &policy(), &[]) else { panic!("no merge") };
        assert_eq!((inputs, lsns), (vec![buried.l0[0].name.clone()], lsn(11)..lsn(21)));
        assert_eq!(choose(&buried, &policy(), &[Key::ALL]), Choice::Rest);
    }

    #[test]
    fn what_lies_beside_a_delta_that_is_cut_in_two_is_rewritten_with_it() {
        let others = [delta(5..9, 41..81, 20), delta(0..9, 81..91, 20)];
        let crossing = [delta(0..5, 11..81, 100), delta(5..9, 11..41, 60)];
        let rest = [&base()[..], &crossing, &others].concat();
        let Choice::Trim { inputs, split, lsns, .. } = choose(&view(vec![], rest, 35, &[]), &policy(), &[])
        else {
            panic!("nothing trimmed");
        };
        assert_eq!((split, lsns), (lsn(35), lsn(11)..lsn(81)));
        assert!(inputs.contains(&others[0].name) && !inputs.contains(&others[1].name));
    }

    #[test]
    fn images_whose_deltas_went_before_are_collected_with_their_own_lsn() {
        // As of 10 the first images are read; what came between it and the second images was dropped then.
        let rest = [base(), vec![image(0..9, 20, 100), delta(0..9, 21..31, 300)]].concat();
        let Choice::Trim { inputs, lsns, images, .. } =
            choose(&view(vec![], rest, 40, &[10]), &policy(), &[])
        else {
            panic!("nothing trimmed");
        };
        assert_eq!((inputs.len(), lsns, images), (2, lsn(11)..lsn(31), false));
    }

    #[test]
    fn images_of_a_place_are_not_made_again_because_they_have_another_name_for_it() {
        let made_anew = |at| {
            let images = vec![image(0..9, at, 100), image(9..20, at, 100)];
            let rest = [images, vec![delta(0..9, 31..61, 300)]].concat();
            match choose(&view(vec![], rest, 60, &[30]), &policy(), &[]) {
                Choice::Trim { images, .. } => images,
                other => panic!("{other:?}"),
            }
        };
        assert!(made_anew(30 - NAMES));
        assert!(!made_anew(30 - NAMES + 1));
        assert!(!made_anew(30));
    }

    #[test]
    fn where_a_page_cannot_be_made_whole_history_is_kept_small_without_images() {
        let choice = |rest: Vec<LayerFacts>, cutoff| {
            let mut view = view(vec![], rest, cutoff, &[]);
            let usual = choose(&view, &policy(), &[]);
            view.beyond_redo = vec![key(3)..key(4)];
            (usual, choose(&view, &policy(), &[]))
        };
        let deep = [base(), (1..6).map(|n| delta(0..9, n * 10 + 1..n * 10 + 11, 200)).collect()].concat();
        let (usual, other) = choice(deep, 10);
        assert!(matches!(usual, Choice::Image { .. }), "{usual:?}");
        assert!(matches!(other, Choice::Merge { .. }), "{other:?}");
        let garbage = [base(), vec![delta(0..9, 11..41, 300)]].concat();
        let (usual, other) = choice(garbage, 40);
        assert!(matches!(usual, Choice::Trim { images: true, .. }), "{usual:?}");
        assert!(matches!(other, Choice::Trim { images: false, .. }), "{other:?}");
    }

    #[test]
    fn what_is_read_often_gets_images_before_its_stack_is_high_and_new_ones_when_it_was_read_again() {
        let choice = |heat, deltas: &[u64]| {
            let delta = |(n, size): (usize, &u64)| LayerFacts {
                heat,
                ..delta(0..20, 11 + n as u64 * 10..21 + n as u64 * 10, *size)
            };
            let rest = [base(), deltas.iter().enumerate().map(delta).collect()].concat();
            choose(&view(vec![], rest, 10, &[]), &CompactionPolicy { read_weight: 10, ..policy() }, &[])
        };
        assert_eq!(choice(59, &[5]), Choice::Rest);
        assert!(matches!(choice(60, &[5]), Choice::Image { at, .. } if at == lsn(20)));
        assert!(matches!(choice(30, &[5, 5]), Choice::Image { at, .. } if at == lsn(30)));
        assert!(matches!(choice(0, &[9, 9, 9, 9]), Choice::Merge { .. }));
        assert!(matches!(choice(15, &[9, 9, 9, 9]), Choice::Image { .. }));
    }

    #[test]
    fn what_was_cut_at_the_cutoff_is_not_merged_across_it_again() {
        let policy = CompactionPolicy { max_deltas: 1, ..policy() };
        let trimmed = |lsns| LayerFacts { trimmed_for: Some(vec![lsn(40)]), ..delta(0..9, lsns, 10) };
        let merged = |rest: Vec<LayerFacts>| {
            let rest = [base(), rest].concat();
            match choose(&view(vec![], rest, 40, &[]), &policy, &[]) {
                Choice::Merge { lsns, .. } => Some(lsns),
                Choice::Rest => None,
                other => panic!("{other:?}"),
            }
        };
        let above = |from: u64| delta(0..9, from..from + 10, 10);
        assert_eq!(merged(vec![trimmed(11..41), above(41)]), None);
        assert_eq!(merged(vec![trimmed(11..41), above(41), above(51)]), Some(lsn(41)..lsn(61)));
        assert_eq!(merged(vec![trimmed(11..21), trimmed(21..41), above(41)]), Some(lsn(11)..lsn(41)));
    }

    #[test]
    fn l0s_are_merged_though_a_job_elsewhere_failed() {
        let l0s = vec![l0(11..21, 60), l0(21..31, 30), l0(31..41, 60)];
        let l0s = view(l0s, base(), 10, &[]);
        assert!(matches!(choose(&l0s, &policy(), &[key(0)..key(9)]), Choice::Merge { .. }));
        assert_eq!(choose(&l0s, &policy(), &[Key::ALL]), Choice::Rest);
    }

    proptest! {
        #[test]
        fn nothing_that_stays_lies_among_what_is_merged(
            steps in prop::collection::vec(prop::collection::vec((1u32..20, 1u64..100, any::<bool>()), 1..6), 4..12),
        ) {
            // Each step covers the keys in other pieces, some of them not at all.
            let mut rest = base();
            for (n, pieces) in (0..).zip(steps) {
                let mut from = 0;
                for (width, size, is_there) in pieces {
                    if is_there {
                        rest.push(delta(from..from + width, 11 + n * 10..21 + n * 10, size));
                    }
                    from += width;
                }
            }
            let policy = CompactionPolicy { image_after: f64::INFINITY, ..policy() };
            let mut view = view(vec![], rest, 10, &[]);
            // Until it rests, each job leaves fewer deltas, none of which has keys and LSNs in common with another.
            while let Choice::Merge { inputs, keys, lsns, mut cuts, .. } = choose(&view, &policy, &[]) {
                prop_assert!(inputs.len() > 1);
                view.rest.retain(|layer| !inputs.contains(&layer.name));
                cuts.extend([keys.start, keys.end]);
                cuts.sort_unstable();
                for piece in cuts.windows(2) {
                    let within = inputs.iter().map(LayerName::keys).filter_map(|keys| {
                        let part = keys.start.max(piece[0])..keys.end.min(piece[1]);
                        (!part.is_empty()).then_some(part)
                    });
                    let hull = within.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
                    view.rest.extend(hull.map(|keys| facts(LayerName::Delta { keys, lsns: lsns.clone() }, 50)));
                }
                let deltas: Vec<&LayerName> =
                    view.rest.iter().map(|layer| &layer.name).filter(|name| name.is_delta()).collect();
                for (at, one) in deltas.iter().enumerate() {
                    for other in &deltas[at + 1..] {
                        let (a, b) = (one.lsns(), other.lsns());
                        let overlap = a.start < b.end && b.start < a.end && !is_apart(one.keys(), other.keys());
                        prop_assert!(!overlap, "{one} and {other}");
                    }
                }
            }
            prop_assert!(depth(&view, &policy) <= policy.max_deltas + 1);
        }
    }

    /// A table that grows behind all images, each merge of L0s changing the last page of the one before; half of it is below the cutoff.
    struct Growing {
        view: View,
        policy: CompactionPolicy,
        /// What was written, and the most that one job read.
        written: u64,
        most: u64,
    }

    impl Growing {
        fn new() -> Growing {
            let rest = vec![image(0..10, 10, 60), image(10..1_000_000, 10, 60)];
            let policy = CompactionPolicy { little: 5, garbage: 0.25, layer_bytes: 25, ..policy() };
            Growing { view: view(vec![], rest, 10, &[]), policy, written: 0, most: 0 }
        }

        /// What lies between cuts, a layer's worth at a time.
        fn pieces(&self, keys: std::ops::Range<u32>, mut cuts: Vec<Key>) -> Vec<std::ops::Range<u32>> {
            let bytes = self.policy.layer_bytes as u32;
            cuts.sort_unstable();
            let mut inner: Vec<u32> =
                cuts.iter().map(|cut| cut.field6).filter(|cut| keys.contains(cut)).collect();
            inner.extend([keys.start, keys.end]);
            inner.sort_unstable();
            inner.dedup();
            let between = inner.windows(2).map(|pair| pair[0]..pair[1]);
            between
                .flat_map(|part| {
                    let end = part.end;
                    part.step_by(bytes as usize).map(move |from| from..end.min(from + bytes))
                })
                .collect()
        }

        fn load(&mut self, keys: std::ops::Range<u32>, lsns: std::ops::Range<u64>) {
            let cuts = cuts(&shelves(&self.view.rest, self.policy.shelf_bytes), self.policy.shelf_bytes);
            for part in self.pieces(keys, cuts) {
                let size = u64::from(part.end - part.start);
                self.view.rest.push(delta(part, lsns.clone(), size));
            }
        }

        fn compact(&mut self, loaded: u32) {
            loop {
                match choose(&self.view, &self.policy, &[]) {
                    Choice::Rest => return,
                    Choice::Drop(names) => self.view.rest.retain(|layer| !names.contains(&layer.name)),
                    Choice::Trim { inputs, base, keys, split, images: true, cuts, .. } => {
                        assert!(base.is_empty());
                        let is_input = |layer: &&LayerFacts| inputs.contains(&layer.name);
                        let read = self.view.rest.iter().filter(is_input);
                        self.most = self.most.max(total(read.filter(|layer| layer.name.is_delta())));
                        self.view.rest.retain(|layer| {
                            let stays = !is_within(layer.name.keys(), &keys);
                            stays || !inputs.contains(&layer.name)
                        });
                        let live = keys.start.field6..keys.end.field6.min(loaded);
                        let mut parts = self.pieces(live, cuts);
                        parts.last_mut().expect("something is there").end = keys.end.field6;
                        for part in parts {
                            let size = u64::from(part.end.min(loaded) - part.start);
                            self.written += size;
                            self.view.rest.push(image(part, split.0 - 0x1000, size));
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_load_into_the_room_of_one_image_is_collected_a_few_shelves_at_a_time(
            size in 20u32..400, shared in 0u32..2, late in 1u64..20,
        ) {
            let mut growing = Growing::new();
            let loaded = |rounds: u64| 20 + rounds as u32 * size;
            for n in 0..30 + late {
                if n < 30 {
                    growing.load(loaded(n) - shared..loaded(n + 1), 11 + n * 10..21 + n * 10);
                }
                if n >= late {
                    growing.view.retention.cutoff = lsn(20 + (n - late) * 10);
                    growing.compact(loaded((n + 1).min(30)));
                }
            }
            let shelf = growing.policy.shelf_bytes;
            prop_assert!(growing.most <= 3 * shelf + u64::from(size), "a job read {}", growing.most);
            let often = 1.0 / growing.policy.garbage;
            let written = growing.written as f64 / f64::from(loaded(30));
            prop_assert!(written <= often, "{written} were written for each byte");
            // The first image of the table is needed only where the last of the load was not worth a job yet.
            let wide = growing.view.rest.iter().any(|layer| layer.name == image(10..1_000_000, 10, 60).name);
            let found = shelves(&growing.view.rest, shelf);
            let last = total(found.last().expect("something is there").deltas());
            prop_assert!(!wide || (1..shelf).contains(&last), "{last} are left on the last shelf");
            let left = total(growing.view.rest.iter().filter(|layer| layer.name.is_delta()));
            prop_assert!(left as f64 <= 0.3 * total(&growing.view.rest) as f64, "{left} are left of the load");
        }
    }

    #[test]
    fn a_range_in_which_a_job_failed_is_left_alone_and_others_go_on() {
        let rest = [base(), vec![delta(0..9, 11..21, 60), delta(9..20, 11..21, 50)]].concat();
        let both = view(vec![], rest, 30, &[]);
        let Choice::Trim { keys, .. } = choose(&both, &policy(), &[]) else { panic!("nothing trimmed") };
        let Choice::Trim { keys: other, .. } = choose(&both, &policy(), std::slice::from_ref(&keys)) else {
            panic!("all avoided")
        };
        assert_ne!(keys, other);
        assert_eq!(choose(&both, &policy(), &[keys, other]), Choice::Rest);
    }
}
