//! From a tenant's timelines to the tree of segments that is summed up: no clock, no I/O.
//!
//! Each timeline is a chain of points: where it begins, where branches begin, LSNs that are kept by a lease or a name, the cutoff above which all
//! history is kept, its end. What lies above the cutoff is needed, of a lease or a name only the LSN itself. A timeline that is archived or hidden
//! needs nothing by itself: it costs what its living branches need of it. A point below a branch's beginning lies on its ancestor.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use model::{Lsn, TimelineId};
use serde::Serialize;

use super::segments::Segment;

/// What of a timeline counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineInput {
    /// Which.
    pub timeline: TimelineId,
    /// Where it branched off.
    pub ancestor: Option<(TimelineId, Lsn)>,
    /// The first LSN that can be read of a timeline without an ancestor.
    pub start: Lsn,
    /// Its end.
    pub last_record: Lsn,
    /// All history above it is kept.
    pub cutoff: Lsn,
    /// What was collected already lies below it. Only for whoever looks at the input.
    pub applied_cutoff: Lsn,
    /// The cutoff that was asked for, if one was. Likewise.
    pub asked_cutoff: Option<Lsn>,
    /// LSNs that are kept besides.
    pub kept: BTreeSet<Lsn>,
    /// Whether anything of it is needed by itself: not archived, not hidden.
    pub is_live: bool,
}

/// What a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PointKind {
    /// Where a timeline begins.
    BranchStart,
    /// Where a branch of it begins.
    BranchPoint,
    /// All history above is kept.
    GcCutOff,
    /// Kept by a lease or a name.
    LeasePoint,
    /// The need for it.
    LeaseEnd,
    /// Where a timeline ends.
    BranchEnd,
}

/// A segment, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeSegment {
    /// Without its size, which is still to be looked up.
    pub segment: Segment,
    /// Of which timeline.
    pub timeline: TimelineId,
    /// What its end is.
    pub kind: PointKind,
    /// Whether a snapshot may be kept at its end, so that its size matters. Where nothing has to be readable any more none can be made.
    pub wants_size: bool,
}

/// Timelines that are no tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TreeError {
    #[error("the ancestor of timeline {0} is not here, or they are ancestors of each other")]
    NoAncestor(TimelineId),
    #[error("timeline {0} begins before all history of its ancestor")]
    BeforeHistory(TimelineId),
}

/// The segments of a tenant, parents before their children.
pub fn segments(timelines: &[TimelineInput]) -> Result<Vec<TreeSegment>, TreeError> {
    let ordered = ancestors_first(timelines)?;
    let by_id: HashMap<TimelineId, &TimelineInput> =
        ordered.iter().map(|timeline| (timeline.timeline, *timeline)).collect();
    let mut points: HashMap<TimelineId, BTreeMap<Lsn, PointKind>> = HashMap::new();
    let mut leased: BTreeSet<(TimelineId, Lsn)> = BTreeSet::new();
    for timeline in &ordered {
        if timeline.is_live {
            // Above the cutoff everything is kept anyway.
            for lsn in timeline.kept.range(..=timeline.cutoff.min(timeline.last_record)) {
                let (home, lsn) = home_of(&by_id, timeline, *lsn);
                points.entry(home.timeline).or_default().insert(lsn, PointKind::LeasePoint);
                leased.insert((home.timeline, lsn));
            }
            let cutoff = timeline.cutoff.min(timeline.last_record);
            if cutoff > begin_of(timeline) {
                points.entry(timeline.timeline).or_default().insert(cutoff, PointKind::GcCutOff);
            }
        }
    }
    // Last, as of several things at one LSN this is what most others know it by.
    for timeline in &ordered {
        if let Some((ancestor, lsn)) = timeline.ancestor {
            let (home, point) = home_of(&by_id, by_id[&ancestor], lsn);
            if point != lsn {
                return Err(TreeError::BeforeHistory(timeline.timeline));
            }
            points.entry(home.timeline).or_default().insert(lsn, PointKind::BranchPoint);
        }
    }
    let mut segments: Vec<TreeSegment> = Vec::new();
    let mut places: HashMap<(TimelineId, Lsn), usize> = HashMap::new();
    for timeline in &ordered {
        let id = timeline.timeline;
        let mut add = |parent: Option<usize>, lsn: Lsn, needed: bool, kind: PointKind, wants_size: bool| {
            let segment = Segment { parent, lsn, size: None, needed };
            segments.push(TreeSegment { segment, timeline: id, kind, wants_size });
            segments.len() - 1
        };
        let parent = timeline.ancestor.map(|(ancestor, lsn)| {
            let (home, lsn) = home_of(&by_id, by_id[&ancestor], lsn);
            places[&(home.timeline, lsn)]
        });
        let (begin, points) = (begin_of(timeline), points.remove(&id).unwrap_or_default());
        // A branch begins where its ancestor has a point.
        let is_readable = begin >= timeline.cutoff.min(timeline.last_record) || points.contains_key(&begin);
        let mut at = add(parent, begin, false, PointKind::BranchStart, parent.is_none() && is_readable);
        let mut end = timeline.last_record;
        places.insert((id, begin), at);
        for (lsn, kind) in points {
            if lsn > begin {
                let needed = timeline.is_live && lsn > timeline.cutoff;
                at = add(Some(at), lsn, needed, kind, !needed);
                places.insert((id, lsn), at);
                // A branch may have been made since the timeline's end was looked up.
                end = end.max(lsn);
            }
            if leased.contains(&(id, lsn)) {
                add(Some(at), lsn, true, PointKind::LeaseEnd, false);
            }
        }
        add(Some(at), end, timeline.is_live, PointKind::BranchEnd, false);
    }
    Ok(segments)
}

/// Its first LSN.
fn begin_of(timeline: &TimelineInput) -> Lsn {
    timeline.ancestor.map_or(timeline.start, |(_, lsn)| lsn)
}

/// On which timeline an LSN of a timeline lies. One before all history lies at its beginning.
fn home_of<'a>(
    by_id: &HashMap<TimelineId, &'a TimelineInput>,
    timeline: &'a TimelineInput,
    lsn: Lsn,
) -> (&'a TimelineInput, Lsn) {
    let mut home = timeline;
    while let Some((ancestor, begin)) = home.ancestor
        && lsn < begin
    {
        home = by_id[&ancestor];
    }
    (home, lsn.max(begin_of(home)))
}

fn ancestors_first(timelines: &[TimelineInput]) -> Result<Vec<&TimelineInput>, TreeError> {
    let mut ordered: Vec<&TimelineInput> = Vec::with_capacity(timelines.len());
    let mut children: HashMap<Option<TimelineId>, Vec<&TimelineInput>> = HashMap::new();
    for timeline in timelines {
        children.entry(timeline.ancestor.map(|(id, _)| id)).or_default().push(timeline);
    }
    ordered.extend(children.remove(&None).unwrap_or_default());
    let mut next = 0;
    while next < ordered.len() {
        ordered.extend(children.remove(&Some(ordered[next].timeline)).unwrap_or_default());
        next += 1;
    }
    match children.into_values().flatten().map(|timeline| timeline.timeline).min() {
        Some(lost) => Err(TreeError::NoAncestor(lost)),
        None => Ok(ordered),
    }
}

#[cfg(test)]
mod tests {
    use super::super::segments::least_cost;
    use super::*;
    use proptest::prelude::*;

    fn id(number: u8) -> TimelineId {
        TimelineId([number; 16])
    }

    fn root(number: u8, start: u64, cutoff: u64, last: u64) -> TimelineInput {
        TimelineInput {
            timeline: id(number),
            ancestor: None,
            start: Lsn(start),
            last_record: Lsn(last),
            cutoff: Lsn(cutoff),
            applied_cutoff: Lsn(cutoff),
            asked_cutoff: None,
            kept: BTreeSet::new(),
            is_live: true,
        }
    }

    fn branch(number: u8, of: u8, at: u64, cutoff: u64, last: u64) -> TimelineInput {
        TimelineInput { ancestor: Some((id(of), Lsn(at))), ..root(number, 0, cutoff, last) }
    }

    /// The cost where a snapshot has as many bytes as `size` says for its LSN.
    fn cost(timelines: &[TimelineInput], size: impl Fn(Lsn) -> u64) -> u64 {
        let mut tree = segments(timelines).unwrap();
        for segment in &mut tree {
            if segment.wants_size {
                segment.segment.size = Some(size(segment.segment.lsn));
            }
        }
        let bare: Vec<Segment> = tree.iter().map(|segment| segment.segment).collect();
        least_cost(&bare).unwrap().total
    }

    fn kinds(timelines: &[TimelineInput]) -> Vec<(u8, PointKind, u64, bool)> {
        let tree = segments(timelines).unwrap();
        tree.iter().map(|s| (s.timeline.0[0], s.kind, s.segment.lsn.0, s.segment.needed)).collect()
    }

    #[test]
    fn a_timeline_is_a_chain_of_its_points() {
        use PointKind::{BranchEnd, BranchPoint, BranchStart, GcCutOff, LeaseEnd, LeasePoint};
        let mut main = root(1, 100, 500, 900);
        main.kept = BTreeSet::from([Lsn(300), Lsn(700)]);
        let branch = branch(2, 1, 600, 550, 650);
        assert_eq!(
            kinds(&[branch, main]),
            [
                (1, BranchStart, 100, false),
                (1, LeasePoint, 300, false),
                (1, LeaseEnd, 300, true),
                (1, GcCutOff, 500, false),
                (1, BranchPoint, 600, true),
                (1, BranchEnd, 900, true),
                (2, BranchStart, 600, false),
                (2, BranchEnd, 650, true),
            ],
            "a lease above the cutoff asks for nothing more"
        );
    }

    #[test]
    fn the_whole_of_a_timeline_is_a_snapshot_and_what_was_written_since() {
        assert_eq!(cost(&[root(1, 100, 500, 900)], |_| 50), 50 + 400);
        assert_eq!(cost(&[root(1, 100, 900, 900)], |_| 50), 50, "idle for longer than history is kept");
        assert_eq!(cost(&[root(1, 100, 100, 900)], |_| 50), 50 + 800, "nothing is old enough to go");
        let growing = |lsn: Lsn| lsn.0 * 10;
        assert_eq!(
            cost(&[root(1, 1, 500, 900)], growing),
            5_000 + 400,
            "what it was below the cutoff is gone"
        );
        let kept = TimelineInput { kept: BTreeSet::from([Lsn(1)]), ..root(1, 1, 500, 900) };
        assert_eq!(cost(&[kept], growing), 10 + 899, "unless it is kept");
        assert_eq!(cost(&[root(1, 100, 0, 900)], |_| 50), 50 + 800);
    }

    #[test]
    fn a_lease_costs_what_it_holds_back() {
        let mut main = root(1, 0, 10_000, 10_100);
        assert_eq!(cost(std::slice::from_ref(&main), |_| 400), 500);
        main.kept.insert(Lsn(50));
        assert_eq!(cost(std::slice::from_ref(&main), |_| 400), 500 + 400);
        main.kept.insert(Lsn(60));
        assert_eq!(cost(&[main], |_| 400), 500 + 400 + 10, "two close to each other share");
    }

    #[test]
    fn archived_and_hidden_timelines_cost_only_what_others_need_of_them() {
        let mut main = root(1, 0, 5_000, 9_000);
        main.kept.insert(Lsn(1_000));
        main.is_live = false;
        assert_eq!(cost(std::slice::from_ref(&main), |_| 400), 0);
        let fork = branch(2, 1, 7_000, 7_500, 8_000);
        assert_eq!(cost(&[main, fork], |_| 400), 400 + 500);
    }

    #[test]
    fn points_below_a_branch_lie_on_its_ancestors() {
        use PointKind::{BranchEnd, BranchPoint, BranchStart, LeaseEnd, LeasePoint};
        let main = TimelineInput { is_live: false, ..root(1, 0, 0, 900) };
        let mut child = branch(2, 1, 500, 600, 600);
        child.kept.insert(Lsn(300));
        let grandchild = branch(3, 2, 400, 400, 450);
        let kinds = kinds(&[grandchild, child, main]);
        assert_eq!(
            kinds[..6],
            [
                (1, BranchStart, 0, false),
                (1, LeasePoint, 300, false),
                (1, LeaseEnd, 300, true),
                (1, BranchPoint, 400, false),
                (1, BranchPoint, 500, false),
                (1, BranchEnd, 900, false),
            ]
        );
        assert!(kinds.contains(&(3, BranchStart, 400, false)));
    }

    #[test]
    fn lost_and_circular_ancestors_are_named() {
        assert_eq!(segments(&[branch(2, 1, 5, 5, 9)]), Err(TreeError::NoAncestor(id(2))));
        let circle = [branch(2, 3, 5, 5, 9), branch(3, 2, 5, 5, 9)];
        assert_eq!(segments(&circle), Err(TreeError::NoAncestor(id(2))));
        let early = [root(1, 100, 100, 900), branch(2, 1, 50, 60, 70)];
        assert_eq!(segments(&early), Err(TreeError::BeforeHistory(id(2))));
    }

    fn tenant() -> impl Strategy<Value = Vec<TimelineInput>> {
        let timeline = (
            any::<prop::sample::Index>(),
            any::<bool>(),
            0u64..100,
            0u64..100,
            0u64..200,
            prop::collection::btree_set((0u64..300).prop_map(Lsn), 0..3),
            prop::bool::weighted(0.8),
        );
        prop::collection::vec(timeline, 1..9).prop_map(|timelines| {
            let mut made: Vec<TimelineInput> = Vec::new();
            for (of, is_root, at, length, cutoff, kept, is_live) in timelines {
                let number = made.len() as u8 + 1;
                let ancestor = (!is_root && !made.is_empty()).then(|| &made[of.index(made.len())]);
                let ancestor = ancestor.map(|of| (of.timeline, Lsn(at.min(of.last_record.0).max(10))));
                let begin = ancestor.map_or(10, |(_, lsn)| lsn.0);
                made.push(TimelineInput {
                    timeline: id(number),
                    ancestor,
                    start: Lsn(10),
                    last_record: Lsn(begin + length),
                    cutoff: Lsn(cutoff),
                    applied_cutoff: Lsn(cutoff),
                    asked_cutoff: None,
                    kept,
                    is_live,
                });
            }
            made
        })
    }

    proptest! {
        #[test]
        fn any_tenant_has_a_cost_in_whatever_order_its_timelines_come(mut timelines in tenant(), size in 0u64..500) {
            let forward = cost(&timelines, |lsn| size + lsn.0 / 3);
            timelines.reverse();
            prop_assert_eq!(cost(&timelines, |lsn| size + lsn.0 / 3), forward);
        }

        #[test]
        fn a_branch_never_costs_more_than_a_copy_of_the_history_it_needs(timelines in tenant(), size in 0u64..500) {
            // Each live timeline alone, as if it had a history of its own.
            let alone: u64 = timelines
                .iter()
                .filter(|timeline| timeline.is_live)
                .map(|timeline| {
                    let begin = begin_of(timeline);
                    let kept = timeline.kept.iter().filter(|lsn| **lsn <= timeline.cutoff).count() as u64;
                    let cutoff = timeline.cutoff.clamp(begin, timeline.last_record);
                    size + (timeline.last_record.0 - cutoff.0) + kept * size
                })
                .sum();
            prop_assert!(cost(&timelines, |_| size) <= alone);
        }
    }
}
