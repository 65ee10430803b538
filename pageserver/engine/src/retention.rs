//! Which LSNs of a timeline stay readable.
//!
//! Everything from the *cutoff* on, and below it single *points*: where branches begin, what is leased, what has a name. A point of a branch that
//! lies before its branch point is read from the ancestor, so it is a point there. Nothing else is promised, and what only others would need is collected
//! per key: so an old branch keeps what it reads, and not the whole history since.
//!
//! The cutoff is in the index before anything below it goes ([`crate::collect`]). A snapshot carries the retention that its layers fulfil, so that a
//! read never goes below it by accident, whichever way it came.

use std::collections::{BTreeMap, BTreeSet};

use model::lsn::{LONG_PAGE_HEADER, SHORT_PAGE_HEADER};
use model::{KeyRange, LayerName, Lsn, TimelineId, WalSegmentSize};

use crate::layer_map::MapLayer;

/// What of a timeline can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Every LSN from here on.
    pub cutoff: Lsn,
    /// Below it, exactly these. Ascending.
    pub points: Vec<Lsn>,
    /// Tells which pages of WAL have long headers.
    pub segment: WalSegmentSize,
}

impl Retention {
    /// Of these points only those below the cutoff are kept; the others need no mention.
    pub fn new(segment: WalSegmentSize, cutoff: Lsn, points: impl IntoIterator<Item = Lsn>) -> Retention {
        let points: BTreeSet<Lsn> = points.into_iter().filter(|point| *point < cutoff).collect();
        Retention { cutoff, points: points.into_iter().collect(), segment }
    }

    /// Whether what the timeline was at `lsn` can be read.
    #[inline]
    pub fn keeps(&self, lsn: Lsn) -> bool {
        self.kept(lsn).is_some()
    }

    /// As of when to read for `lsn`, if that can be read: another name of the same place, where only that is kept.
    #[inline]
    pub fn kept(&self, lsn: Lsn) -> Option<Lsn> {
        if lsn >= self.cutoff {
            return Some(lsn);
        }
        let next = self.points.get(self.points.partition_point(|point| *point < lsn)).unwrap_or(&self.cutoff);
        self.is_same_place(lsn, *next).then_some(*next)
    }

    /// The lowest LSN at or above `lsn` that can be read.
    pub fn first_from(&self, lsn: Lsn) -> Lsn {
        let next = self.points.get(self.points.partition_point(|point| *point < lsn));
        next.copied().unwrap_or(self.cutoff.max(lsn))
    }

    /// All points up to `lsn`, and the cutoff if it is not above it. Ascending: as of these, and from the last one on, history must stay.
    pub fn points_to(&self, lsn: Lsn) -> Vec<Lsn> {
        let points = self.points.iter().copied().take_while(|point| *point <= lsn);
        points.chain((self.cutoff <= lsn).then_some(self.cutoff)).collect()
    }

    /// Whether everything that these could read can be read by this one, too.
    pub fn covers(&self, other: &Retention) -> bool {
        self.cutoff <= other.cutoff && other.points.iter().all(|point| self.keeps(*point))
    }

    /// Whether no record can end after the first of two LSNs and up to the second: both lie in the header of a page of WAL, or right behind it.
    fn is_same_place(&self, lsn: Lsn, later: Lsn) -> bool {
        let page = later.page_start();
        let header = if self.segment.offset(page) == 0 { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER };
        lsn == later || (page <= lsn && later <= page.add(header))
    }
}

/// What one timeline asks to be kept, of itself and of its ancestors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The timeline it branched from, and where.
    pub ancestor: Option<(TimelineId, Lsn)>,
    /// The timeline that it leaves, and where: until the branches of that are moved over, it keeps what that keeps up to there.
    pub leaves: Option<(TimelineId, Lsn)>,
    /// Leases and named LSNs, in its own history: also LSNs before its branch point.
    pub lsns: Vec<Lsn>,
}

/// The points of timeline `of` among all timelines of its tenant: its own wishes, and where and what its descendants read.
pub fn points(of: TimelineId, wishes: &BTreeMap<TimelineId, Wishes>) -> BTreeSet<Lsn> {
    let mut children: BTreeMap<TimelineId, Vec<(TimelineId, Lsn)>> = BTreeMap::new();
    for (child, wishes) in wishes {
        if let Some((ancestor, at)) = wishes.ancestor {
            children.entry(ancestor).or_default().push((*child, at));
        }
    }
    let mut points = BTreeSet::new();
    // Up to where each timeline that was reached reads from `of`. A child is met once, since it has one ancestor.
    let mut reached: Vec<(TimelineId, Lsn)> = vec![(of, Lsn::MAX)];
    while let Some((timeline, up_to)) = reached.pop() {
        let own = wishes.get(&timeline).map_or(&[][..], |wishes| &wishes.lsns);
        points.extend(own.iter().copied().filter(|lsn| *lsn <= up_to));
        for (child, at) in children.remove(&timeline).unwrap_or_default() {
            let at = at.min(up_to);
            points.insert(at);
            reached.push((child, at));
        }
    }
    if let Some((left, at)) = wishes.get(&of).and_then(|wishes| wishes.leaves)
        && left != of
    {
        points.insert(at);
        let of_left = wishes.iter().filter(|(id, _)| **id != of).map(|(id, wishes)| (*id, wishes.clone()));
        points.extend(self::points(left, &of_left.collect()).into_iter().filter(|lsn| *lsn <= at));
    }
    points
}

/// Which of these layers nothing that can be read needs any more. `layers` are all of a timeline whose keys overlap each other, L0s excepted.
///
/// A layer goes when for the first LSN from its start on that can be read there are image layers that cover all its keys, newer than everything in it
/// and not newer than that LSN. What is readable later finds those images, too, or newer ones.
pub fn unneeded<'a, L: MapLayer>(layers: &[&'a L], retention: &Retention) -> Vec<&'a L> {
    let images: Vec<(Lsn, &KeyRange)> = layers
        .iter()
        .filter_map(|layer| match layer.name() {
            LayerName::Image { keys, lsn } => Some((*lsn, keys)),
            LayerName::Delta { .. } => None,
        })
        .collect();
    let is_unneeded = |layer: &&'a L| {
        let (keys, lsns) = (layer.name().keys(), layer.name().lsns());
        let read_first = retention.first_from(lsns.start);
        // An image at L holds what deltas say up to and including L; an image layer gives way to a newer one.
        let newest = if layer.name().is_delta() { lsns.end.0 - 1 } else { lsns.end.0 };
        let takes_over = |lsn: Lsn| lsn.0 >= newest && lsn <= read_first;
        lsns.start < retention.cutoff
            && covered(keys, images.iter().filter(|(lsn, _)| takes_over(*lsn)).map(|(_, keys)| *keys))
    };
    layers.iter().copied().filter(is_unneeded).collect()
}

/// Whether `parts` together cover all of `keys`.
pub(crate) fn covered<'a>(keys: &KeyRange, parts: impl Iterator<Item = &'a KeyRange>) -> bool {
    let mut parts: Vec<&KeyRange> =
        parts.filter(|part| part.end > keys.start && part.start < keys.end).collect();
    parts.sort_by_key(|part| part.start);
    let mut to = keys.start;
    for part in parts {
        if part.start > to {
            return false;
        }
        to = to.max(part.end);
    }
    to >= keys.end
}

#[cfg(test)]
mod tests {
    use model::Key;
    use proptest::prelude::*;

    use super::*;

    impl MapLayer for LayerName {
        fn name(&self) -> &LayerName {
            self
        }
    }

    const SEGMENT: WalSegmentSize = WalSegmentSize::DEFAULT;

    /// Far from the header of a page.
    fn lsn(number: u64) -> Lsn {
        Lsn(0x1000 + number)
    }

    fn key(number: u32) -> Key {
        Key { field6: number, ..Key::MIN }
    }

    fn image(from: u32, to: u32, at: u64) -> LayerName {
        LayerName::Image { keys: key(from)..key(to), lsn: lsn(at) }
    }

    fn delta(from: u32, to: u32, lsns: std::ops::Range<u64>) -> LayerName {
        LayerName::Delta { keys: key(from)..key(to), lsns: lsn(lsns.start)..lsn(lsns.end) }
    }

    fn id(n: u8) -> TimelineId {
        format!("{n:032x}").parse().unwrap()
    }

    fn branch(ancestor: u8, at: u64, lsns: &[u64]) -> Wishes {
        let lsns = lsns.iter().copied().map(lsn).collect();
        Wishes { ancestor: Some((id(ancestor), lsn(at))), lsns, ..Wishes::default() }
    }

    #[test]
    fn a_timeline_keeps_where_its_descendants_begin_and_what_they_read_before_that() {
        let wishes = BTreeMap::from([
            (id(1), Wishes { lsns: vec![lsn(5)], ..Wishes::default() }),
            (id(2), branch(1, 100, &[40, 150])),
            (id(3), branch(2, 160, &[90, 155])),
            (id(4), branch(2, 70, &[])),
            (id(5), branch(9, 33, &[])),
        ]);
        let of = |n| points(id(n), &wishes).into_iter().map(|lsn| lsn.0 - 0x1000).collect::<Vec<_>>();
        assert_eq!(of(1), [5, 40, 70, 90, 100]);
        assert_eq!(of(2), [40, 70, 90, 150, 155, 160]);
        assert_eq!(of(3), [90, 155]);
    }

    #[test]
    fn a_branch_that_leaves_its_ancestor_keeps_what_that_keeps_until_all_are_moved() {
        let leaving = Wishes { leaves: Some((id(1), lsn(100))), lsns: vec![lsn(150)], ..Wishes::default() };
        let mut wishes = BTreeMap::from([
            (id(1), Wishes { lsns: vec![lsn(5), lsn(120)], ..Wishes::default() }),
            (id(2), leaving),
            (id(3), branch(1, 60, &[30, 70])),
            (id(4), branch(1, 110, &[20])),
        ]);
        let of = |n, wishes: &BTreeMap<_, _>| {
            points(id(n), wishes).into_iter().map(|lsn| lsn.0 - 0x1000).collect::<Vec<_>>()
        };
        assert_eq!(of(2, &wishes), [5, 20, 30, 60, 100, 150]);
        assert_eq!(of(1, &wishes), [5, 20, 30, 60, 110, 120]);
        wishes.insert(id(3), branch(2, 60, &[30, 70]));
        wishes.get_mut(&id(2)).unwrap().leaves = None;
        assert_eq!(of(2, &wishes), [30, 60, 150]);
    }

    #[test]
    fn what_images_took_over_goes_unless_a_point_reads_it() {
        let layers = [
            image(0, 10, 10),
            delta(0, 10, 11..21),
            image(0, 5, 20),
            image(5, 10, 20),
            delta(0, 10, 21..31),
            image(0, 10, 30),
        ];
        let gone = |cutoff, points: &[u64]| {
            let retention = Retention::new(SEGMENT, lsn(cutoff), points.iter().copied().map(lsn));
            let layers: Vec<&LayerName> = layers.iter().collect();
            unneeded(&layers, &retention).into_iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let names = |some: &[usize]| some.iter().map(|at| layers[*at].to_string()).collect::<Vec<_>>();
        assert_eq!(gone(19, &[]), names(&[]));
        assert_eq!(gone(20, &[]), names(&[0, 1]));
        assert_eq!(gone(30, &[]), names(&[0, 1, 2, 3, 4]));
        assert_eq!(gone(30, &[15]), names(&[2, 3, 4]));
        assert_eq!(gone(30, &[10]), names(&[1, 2, 3, 4]));
        assert_eq!(gone(30, &[25]), names(&[0, 1]));
        assert_eq!(gone(30, &[20, 29]), names(&[0, 1]));
    }

    #[test]
    fn one_place_has_several_names_around_a_page_header_of_wal() {
        let kept = |points: &[u64], lsn| {
            let points = points.iter().map(|lsn| Lsn(SEGMENT.bytes() + lsn));
            let kept = Retention::new(SEGMENT, Lsn(SEGMENT.bytes() + 0x9000), points);
            kept.kept(Lsn(SEGMENT.bytes() + lsn)).map(|lsn| Lsn(lsn.0 - SEGMENT.bytes()))
        };
        assert_eq!(kept(&[0x4018], 0x4000), Some(Lsn(0x4018)));
        assert_eq!(kept(&[0x28], 0x18), Some(Lsn(0x28)), "where a file of WAL begins, headers are longer");
        assert_eq!(kept(&[0x30], 0x28), None);
        assert_eq!(kept(&[0x4028], 0x4018), None, "a record that began on the page before may end there");
        assert_eq!(kept(&[0x4018], 0x4020), None, "a point that was passed");
        assert_eq!(kept(&[0x4030], 0x4000), None, "a record may end there");
        assert_eq!(kept(&[0x4018], 0x3FF8), None);
        assert_eq!(kept(&[], 0x8FF8), None);
        assert_eq!(kept(&[], 0x9000), Some(Lsn(0x9000)));
    }

    fn any_layer() -> impl Strategy<Value = LayerName> {
        (0u32..12, 1u32..8, 0u64..40, 1u64..12, any::<bool>()).prop_map(|(from, keys, at, lsns, is_image)| {
            if is_image { image(from, from + keys, at) } else { delta(from, from + keys, at..at + lsns) }
        })
    }

    proptest! {
        /// A layer matters to a read when no image layer of that key lies above all of it and not above the read.
        #[test]
        fn what_goes_matters_to_no_read_that_is_allowed(
            layers in prop::collection::vec(any_layer(), 0..20), cutoff in 0u64..50, points in prop::collection::vec(0u64..50, 0..4), asked in 0u32..20, at in 0u64..60,
        ) {
            let retention = Retention::new(SEGMENT, lsn(cutoff), points.into_iter().map(lsn));
            prop_assume!(retention.keeps(lsn(at)));
            let all: Vec<&LayerName> = layers.iter().collect();
            let gone: Vec<LayerName> = unneeded(&all, &retention).into_iter().cloned().collect();
            let left: Vec<&LayerName> = layers.iter().filter(|layer| !gone.contains(layer)).collect();
            let newest_image = |of: &mut dyn Iterator<Item = &LayerName>| {
                of.filter(|l| !l.is_delta() && l.keys().contains(&key(asked)) && l.lsns().start <= lsn(at)).map(|l| l.lsns().start).max()
            };
            let before = newest_image(&mut layers.iter());
            prop_assert_eq!(before, newest_image(&mut left.into_iter()));
            for delta in gone.iter().filter(|layer| layer.is_delta() && layer.keys().contains(&key(asked)) && layer.lsns().start <= lsn(at)) {
                prop_assert!(before.is_some_and(|image| image.0 >= delta.lsns().end.0 - 1), "{} at {}", delta, at);
            }
        }
    }
}
