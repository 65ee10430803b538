//! Making what a branch shares with its ancestors its own: their layers up to the branch point become objects of the branch.
//!
//! Whole layers are copied within the bucket. Deltas that reach beyond the branch point are written anew up to there, streamed, so that memory
//! holds the places of their versions and never their values. What a branch does not inherit (replication origins, auxiliary files) is in those
//! layers, too: images at the branch point hide it. All objects are of the branch's owner's generation, put if nothing is there.
//!
//! [`shares`] decides, [`inherit`] does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use codec::index_part::LayerMetadata;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use model::{Key, KeyRange, LayerName, Lsn, PgTimestamp};

use crate::as_of::ReadError;
use crate::index_keeper::metadata_of;
use crate::layer_map::MapLayer as _;
use crate::layer_read::Layer;
use crate::layer_write::{LayerStore, WriteLayerError};
use crate::tail::Version;
use crate::time::commit_of;

/// Layers that are copied or written at once.
const AT_ONCE: usize = 8;

/// What an ancestor has, up to where the branch sees it.
pub struct Shared {
    /// The last LSN that counts.
    pub bound: Lsn,
    /// Its layers, and what its index says of each.
    pub layers: Vec<(Arc<Layer>, LayerMetadata)>,
}

/// Why a branch did not get its own layers.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum InheritError {
    #[error("cannot read the ancestor's layers")]
    Read(#[from] ReadError),
    #[error("cannot write layers of the branch")]
    Write(#[from] WriteLayerError),
}

/// What of a layer becomes the branch's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it, as it is.
    Whole,
    /// Its versions up to this LSN.
    UpTo(Lsn),
    /// What it has of these keys, without what is not inherited.
    Keys(Vec<KeyRange>),
}

/// What a branch at `branch_lsn` takes of its ancestors' layers; of each ancestor, nearest first, up to where it counts and its layers' names.
/// Images of one LSN must not overlap: where two ancestors have one, that of the nearer counts.
pub fn shares(ancestors: &[(Lsn, Vec<LayerName>)], branch_lsn: Lsn) -> Vec<Vec<Option<Share>>> {
    let mut images: BTreeMap<Lsn, Vec<KeyRange>> = BTreeMap::new();
    let mut all = Vec::new();
    for (bound, names) in ancestors {
        let mut taken = Vec::new();
        let share = |name: &LayerName| match name {
            LayerName::Delta { lsns, .. } if lsns.start > *bound => None,
            LayerName::Delta { lsns, .. } if lsns.end <= bound.add(1) => Some(Share::Whole),
            LayerName::Delta { .. } => Some(Share::UpTo(*bound)),
            LayerName::Image { lsn, .. } if lsn > bound => None,
            LayerName::Image { keys, lsn } => {
                taken.push((*lsn, keys.clone()));
                let free = without(keys, images.get(lsn).map_or(&[], Vec::as_slice));
                let shows = *lsn == branch_lsn && overlap(keys, &Key::NOT_INHERITED);
                match free {
                    free if free.is_empty() => None,
                    free if !shows && free == [keys.clone()] => Some(Share::Whole),
                    free => Some(Share::Keys(free)),
                }
            }
        };
        all.push(names.iter().map(share).collect());
        for (lsn, keys) in taken {
            images.entry(lsn).or_default().push(keys);
        }
    }
    all
}

fn overlap(a: &KeyRange, b: &KeyRange) -> bool {
    a.start < b.end && b.start < a.end
}

/// What is left of a range.
fn without(range: &KeyRange, taken: &[KeyRange]) -> Vec<KeyRange> {
    let mut taken: Vec<&KeyRange> = taken.iter().filter(|taken| overlap(taken, range)).collect();
    taken.sort_by_key(|taken| taken.start);
    let (mut left, mut from) = (Vec::new(), range.start);
    for taken in taken {
        if from < taken.start {
            left.push(from..taken.start);
        }
        from = from.max(taken.end);
    }
    if from < range.end {
        left.push(from..range.end);
    }
    left
}

/// Layers that are the branch's now, and what its index has to say of each.
type Written = Vec<(LayerName, LayerMetadata)>;

/// Makes what `ancestors`, nearest first, have up to where they count the branch's own. Answers what the branch's index has to say.
pub async fn inherit(
    store: &LayerStore,
    ancestors: &[Shared],
    branch_lsn: Lsn,
) -> Result<Written, InheritError> {
    let names: Vec<(Lsn, Vec<LayerName>)> = ancestors
        .iter()
        .map(|shared| {
            let names = shared.layers.iter().map(|(layer, _)| layer.name().clone()).collect();
            (shared.bound, names)
        })
        .collect();
    let decided = shares(&names, branch_lsn);
    let mut hidden = BTreeSet::new();
    for shared in ancestors {
        for (layer, _) in &shared.layers {
            let name = layer.name();
            if overlap(name.keys(), &Key::NOT_INHERITED) && name.lsns().start <= shared.bound {
                hidden.extend(layer.keys_in(Key::NOT_INHERITED, shared.bound).await?);
            }
        }
    }
    let mut works: Vec<BoxFuture<'_, Result<Written, InheritError>>> = Vec::new();
    // The images at the branch point that there will be anyway hide what they cover.
    let mut covered: Vec<KeyRange> = Vec::new();
    for (shared, decided) in ancestors.iter().zip(decided) {
        for ((layer, metadata), share) in shared.layers.iter().zip(decided) {
            let Some(share) = share else { continue };
            let at_branch = layer.name().lsns().start == branch_lsn;
            if let Share::Keys(keys) = &share
                && at_branch
            {
                covered.extend(keys.iter().cloned());
            }
            let hides = Some(&hidden).filter(|_| at_branch);
            works.push(take(store, (layer, metadata), share, hides).boxed());
        }
    }
    let mut works = futures::stream::iter(works).buffer_unordered(AT_ONCE);
    let mut written = Written::new();
    while let Some(some) = works.try_next().await? {
        written.extend(some);
    }
    drop(works);
    for keys in without(&Key::NOT_INHERITED, &covered) {
        let mut image = store.begin_image()?;
        for key in hidden.range(keys.clone()) {
            image.push(*key, &[])?;
        }
        if !image.is_empty() {
            let name = LayerName::Image { keys, lsn: branch_lsn };
            let image = store.finish_image(image, name.clone()).await?;
            written.push((name, metadata_of(&image, store.claim(), None)));
        }
    }
    Ok(written)
}

/// Makes what counts of a layer the branch's own.
async fn take(
    store: &LayerStore,
    (layer, metadata): (&Layer, &LayerMetadata),
    share: Share,
    hidden: Option<&BTreeSet<Key>>,
) -> Result<Written, InheritError> {
    match share {
        Share::Whole => {
            store.copy(layer).await?;
            let claim = store.claim();
            let (generation, shard) = (Some(claim.generation()), claim.tenant().shard);
            Ok(vec![(layer.name().clone(), LayerMetadata { generation, shard, ..metadata.clone() })])
        }
        Share::UpTo(bound) => cut(store, (layer, metadata), bound).await,
        Share::Keys(keys) => {
            let mut images = Written::new();
            for keys in keys {
                images.extend(image_of(store, layer, keys, hidden).await?);
            }
            Ok(images)
        }
    }
}

/// Writes some keys of an image layer anew; `hidden` and all that is not inherited become empty, where that is asked for.
async fn image_of(
    store: &LayerStore,
    layer: &Layer,
    keys: KeyRange,
    hidden: Option<&BTreeSet<Key>>,
) -> Result<Option<(LayerName, LayerMetadata)>, InheritError> {
    let mut places: BTreeMap<Key, Option<u64>> =
        hidden.map(|hidden| hidden.range(keys.clone()).map(|key| (*key, None)).collect()).unwrap_or_default();
    for (key, at) in layer.image_places(&keys).await? {
        let is_hidden = hidden.is_some() && !key.is_inherited();
        places.insert(key, Some(at).filter(|_| !is_hidden));
    }
    if places.is_empty() {
        return Ok(None);
    }
    let mut image = store.begin_image()?;
    for (key, place) in places {
        match place {
            Some(at) => image.push(key, &layer.value_at(at).await?)?,
            None => image.push(key, &[])?,
        }
    }
    let name = LayerName::Image { keys, lsn: layer.name().lsns().start };
    let image = store.finish_image(image, name.clone()).await?;
    Ok(Some((name, metadata_of(&image, store.claim(), None))))
}

/// Writes the versions of a delta layer up to an LSN; nothing where there are none.
async fn cut(
    store: &LayerStore,
    (layer, metadata): (&Layer, &LayerMetadata),
    bound: Lsn,
) -> Result<Written, InheritError> {
    let places = layer.delta_places(bound).await?;
    let Some(lowest) = places.iter().map(|place| place.lsn).min() else { return Ok(Written::new()) };
    let mut delta = store.begin_delta()?;
    let mut commits: Option<(PgTimestamp, PgTimestamp)> = None;
    for place in places {
        let value = layer.value_at(place.at).await?;
        let version = Version { key: place.key, lsn: place.lsn, value, will_init: place.will_init };
        if let Some((_, time)) = commit_of(&version) {
            let (oldest, newest) = commits.unwrap_or((time, time));
            commits = Some((oldest.min(time), newest.max(time)));
        }
        delta.push(version.key, version.lsn, version.will_init, &version.value)?;
    }
    let whole = layer.name();
    // An earlier attempt may have used a name for what the layer was then.
    let lsns = whole.lsns().start..bound.add(1);
    let name = store.unused_delta_name(whole.keys().clone(), lsns, lowest)?;
    let written = store.finish_delta(delta, name.clone(), commits).await?;
    let mut own = metadata_of(&written, store.claim(), commits);
    if let (Some(own), Some(theirs)) = (&mut own.palimpsest, &metadata.palimpsest) {
        own.trimmed_for.clone_from(&theirs.trimmed_for);
    }
    Ok(vec![(name, own)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        Key { field6: n, ..Key::MIN }
    }

    fn delta(from: u64, to: u64) -> LayerName {
        LayerName::Delta { keys: Key::ALL, lsns: Lsn(from)..Lsn(to) }
    }

    fn image(keys: KeyRange, lsn: u64) -> LayerName {
        LayerName::Image { keys, lsn: Lsn(lsn) }
    }

    #[test]
    fn layers_up_to_the_branch_point_are_taken_and_those_across_it_up_to_there() {
        let names = vec![
            delta(1, 100),
            delta(100, 201),
            delta(150, 202),
            delta(201, 300),
            image(Key::ALL, 100),
            image(key(1)..key(5), 200),
            image(Key::ALL, 201),
        ];
        let taken = shares(&[(Lsn(200), names)], Lsn(200)).remove(0);
        let expected = [
            Some(Share::Whole),
            Some(Share::Whole),
            Some(Share::UpTo(Lsn(200))),
            None,
            Some(Share::Whole),
            Some(Share::Whole),
            None,
        ];
        assert_eq!(taken, expected);
    }

    #[test]
    fn of_each_ancestor_counts_what_the_one_before_it_sees() {
        let near = vec![delta(51, 150), image(key(0)..key(10), 50)];
        let far = vec![
            delta(1, 40),
            delta(40, 90),
            delta(60, 90),
            image(key(0)..key(10), 50),
            image(key(5)..key(20), 50),
            image(key(0)..key(10), 30),
        ];
        let taken = shares(&[(Lsn(100), near), (Lsn(50), far)], Lsn(100));
        assert_eq!(taken[0], [Some(Share::UpTo(Lsn(100))), Some(Share::Whole)]);
        let expected = [
            Some(Share::Whole),
            Some(Share::UpTo(Lsn(50))),
            None,
            None,
            Some(Share::Keys(vec![key(10)..key(20)])),
            Some(Share::Whole),
        ];
        assert_eq!(taken[1], expected);
    }

    #[test]
    fn an_image_at_the_branch_point_is_written_anew_where_it_shows_what_is_not_inherited() {
        let names = vec![image(Key::ALL, 100), image(Key::ALL, 99)];
        let taken = shares(&[(Lsn(100), names)], Lsn(100)).remove(0);
        assert_eq!(taken, [Some(Share::Keys(vec![Key::ALL])), Some(Share::Whole)]);
    }

    #[test]
    fn what_is_left_of_a_range() {
        let range = key(10)..key(20);
        let cases: [(&[KeyRange], &[KeyRange]); 5] = [
            (&[], std::slice::from_ref(&range)),
            (&[key(0)..key(10), key(20)..key(30)], std::slice::from_ref(&range)),
            (&[key(0)..key(30)], &[]),
            (&[key(15)..key(17), key(12)..key(13)], &[key(10)..key(12), key(13)..key(15), key(17)..key(20)]),
            (&[key(5)..key(12), key(18)..key(25)], &[key(12)..key(18)]),
        ];
        for (taken, left) in cases {
            assert_eq!(without(&range, taken), left);
        }
    }
}
