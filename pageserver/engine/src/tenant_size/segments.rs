//! The least that a tree of history costs: no clock, no I/O.
//!
//! History is cut into segments. Each begins where its parent ends and ends at its own LSN. There are two ways to be able to read what is at
//! a segment's end: keep a snapshot there, or keep the segment's WAL and be able to read its parent's end. A segment that is *needed* must be
//! readable at every LSN within, so its WAL is kept and its parent must be readable. Nobody else asks for anything, so what is not needed is
//! kept only if that is the cheapest way to have what is. Children share what is kept for their parent; it counts once.
//!
//! The sum is found from the leaves up: for each segment the least that it and all above it cost, once with its parent readable and once
//! without.

use model::Lsn;

/// A stretch of one line of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes on from: an earlier one of the list. A root has none.
    pub parent: Option<usize>,
    /// Its end.
    pub lsn: Lsn,
    /// Bytes of a snapshot at its end, where one may be kept.
    pub size: Option<u64>,
    /// Whether every LSN within it must be readable; of a root, whether its end must be.
    pub needed: bool,
}

/// How the end of a segment is kept readable in the cheapest way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By a snapshot.
    SnapshotHere,
    /// By WAL from the end of its parent.
    Wal,
    /// Not at all.
    Skipped,
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentCost {
    /// How it is kept.
    pub method: Method,
    /// Bytes of it and all that go on from it.
    pub accum_size: u64,
}

/// The least that all of it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The sum.
    pub total: u64,
    /// Of each segment, in their order.
    pub segments: Vec<SegmentCost>,
}

/// A tree that has no sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CostError {
    #[error("segment {0} comes before its parent, or ends before it")]
    Order(usize),
    #[error(
        "what goes on from segment {0} is needed, and nothing that it could be read from has a known size"
    )]
    Unreachable(usize),
}

/// Bytes, or no way at all.
type Bytes = Option<u64>;

fn sum(a: Bytes, b: Bytes) -> Bytes {
    Some(a?.saturating_add(b?))
}

/// The cheaper of two ways; the first of equals.
fn cheaper(a: (Bytes, Method), b: (Bytes, Method)) -> (Bytes, Method) {
    match (a.0, b.0) {
        (Some(x), Some(y)) if y < x => b,
        (None, Some(_)) => b,
        _ => a,
    }
}

/// The cheapest way to keep a segment and what goes on from it.
#[derive(Clone, Copy)]
struct Ways {
    with_parent: (Bytes, Method),
    without_parent: (Bytes, Method),
}

/// The least that a forest of segments costs, parents before their children.
pub fn least_cost(segments: &[Segment]) -> Result<Cost, CostError> {
    // Of the children of each segment: if its end is readable, and if not.
    let mut children: Vec<(Bytes, Bytes)> = vec![(Some(0), Some(0)); segments.len()];
    let mut ways = Vec::with_capacity(segments.len());
    for (at, segment) in segments.iter().enumerate().rev() {
        let (if_readable, if_not) = children[at];
        let may_be_snapshot = !segment.needed || segment.parent.is_none();
        let snapshot = (sum(segment.size.filter(|_| may_be_snapshot), if_readable), Method::SnapshotHere);
        let skipped = (if_not.filter(|_| !segment.needed), Method::Skipped);
        let without_parent = cheaper(skipped, snapshot);
        let mut with_parent = without_parent;
        if let Some(parent) = segment.parent {
            let length =
                segments.get(parent).filter(|_| parent < at).and_then(|p| segment.lsn.0.checked_sub(p.lsn.0));
            let length = length.ok_or(CostError::Order(at))?;
            with_parent = cheaper(without_parent, (sum(Some(length), if_readable), Method::Wal));
            let (with, without) = &mut children[parent];
            *with = sum(*with, with_parent.0);
            *without = sum(*without, without_parent.0);
        }
        ways.push(Ways { with_parent, without_parent });
    }
    ways.reverse();
    // From the roots: whether the end of each is readable decides which way its children go.
    let mut total = 0u64;
    let mut costs: Vec<SegmentCost> = Vec::with_capacity(segments.len());
    for (at, (segment, ways)) in segments.iter().zip(&ways).enumerate() {
        let is_parent_readable = segment.parent.is_some_and(|parent| costs[parent].method != Method::Skipped);
        let (bytes, method) = if is_parent_readable { ways.with_parent } else { ways.without_parent };
        let accum_size = bytes.ok_or(CostError::Unreachable(at))?;
        if segment.parent.is_none() {
            total = total.saturating_add(accum_size);
        }
        costs.push(SegmentCost { method, accum_size });
    }
    Ok(Cost { total, segments: costs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(
        parent: impl Into<Option<usize>>,
        lsn: u64,
        size: impl Into<Option<u64>>,
        needed: bool,
    ) -> Segment {
        Segment { parent: parent.into(), lsn: Lsn(lsn), size: size.into(), needed }
    }

    fn total(segments: &[Segment]) -> u64 {
        least_cost(segments).unwrap().total
    }

    #[test]
    fn one_line_costs_a_snapshot_at_the_cutoff_and_the_wal_after_it() {
        let line = |start: u64, cutoff: u64| {
            [segment(None, 0, start, false), segment(0, 1000, cutoff, false), segment(1, 1300, None, true)]
        };
        assert_eq!(total(&line(5_000, 5_500)), 5_500 + 300);
        // It was so small at the start that all of its WAL costs less.
        assert_eq!(total(&line(100, 5_500)), 100 + 1_300);
        let cost = least_cost(&line(100, 5_500)).unwrap();
        let methods: Vec<_> = cost.segments.iter().map(|segment| segment.method).collect();
        assert_eq!(methods, [Method::SnapshotHere, Method::Wal, Method::Wal]);
    }

    #[test]
    fn branches_share_what_their_parent_has() {
        let mut tree = vec![
            segment(None, 0, 10_000, false),
            segment(0, 1_000, 10_000, false), // a branch point, and the cutoff
            segment(1, 2_000, None, true),
        ];
        assert_eq!(total(&tree), 11_000);
        for branch in 1..=3u64 {
            let start = tree.len();
            tree.push(segment(1, 1_000, None, false));
            tree.push(segment(start, 1_000 + 10 * branch, None, true));
        }
        assert_eq!(total(&tree), 11_000 + 10 + 20 + 30, "only what the branches wrote is new");
    }

    #[test]
    fn an_old_branch_costs_a_snapshot_of_its_own_when_the_wal_between_would_cost_more() {
        let tree = [
            segment(None, 0, 10, false),
            segment(0, 100, 500, false),       // the branch point
            segment(1, 1_000_000, 800, false), // the cutoff
            segment(2, 1_000_100, None, true),
            segment(1, 100, None, false),
            segment(4, 150, None, true),
        ];
        // The start with its WAL, 110, is cheaper than a snapshot of 500 at the branch point.
        assert_eq!(total(&tree), (800 + 100) + (10 + 100 + 50));
    }

    #[test]
    fn what_nobody_needs_costs_nothing() {
        assert_eq!(total(&[]), 0);
        assert_eq!(total(&[segment(None, 0, 77, false), segment(0, 9, 88, false)]), 0);
    }

    #[test]
    fn a_tree_that_makes_no_sense_is_refused() {
        assert_eq!(least_cost(&[segment(0, 0, 1, false)]), Err(CostError::Order(0)));
        assert_eq!(
            least_cost(&[segment(None, 5, 1, false), segment(0, 4, 1, true)]),
            Err(CostError::Order(1))
        );
        let unknown = [segment(None, 0, None, false), segment(0, 4, None, true)];
        assert_eq!(least_cost(&unknown), Err(CostError::Unreachable(0)));
    }

    fn tree(most: usize) -> impl Strategy<Value = Vec<Segment>> {
        let part = (
            any::<prop::sample::Index>(),
            prop::bool::weighted(0.15),
            0u64..8,
            prop::option::weighted(0.8, 0u64..12),
            any::<bool>(),
        );
        prop::collection::vec(part, 0..=most).prop_map(|parts| {
            let mut segments: Vec<Segment> = Vec::new();
            for (parent, is_root, length, size, needed) in parts {
                let parent = (!is_root && !segments.is_empty()).then(|| parent.index(segments.len()));
                let from = parent.map_or(100, |parent| segments[parent].lsn.0);
                segments.push(Segment { parent, lsn: Lsn(from + length), size, needed });
            }
            segments
        })
    }

    /// Every way to keep snapshots and WAL, tried.
    fn brute_force(segments: &[Segment]) -> Option<u64> {
        let count = segments.len();
        let mut best = None;
        for choice in 0u32..1 << (2 * count) {
            let has_snapshot = |at: usize| choice >> (2 * at) & 1 != 0;
            let has_wal = |at: usize| choice >> (2 * at + 1) & 1 != 0;
            let mut readable = vec![false; count];
            let (mut bytes, mut is_enough) = (0, true);
            for (at, segment) in segments.iter().enumerate() {
                let from = segment.parent.is_some_and(|parent| readable[parent]);
                is_enough &= !has_snapshot(at) || segment.size.is_some();
                is_enough &= !has_wal(at) || segment.parent.is_some();
                readable[at] = has_snapshot(at) || (has_wal(at) && from);
                let within = has_wal(at) && from;
                is_enough &= !segment.needed || if segment.parent.is_some() { within } else { readable[at] };
                bytes += segment.size.filter(|_| has_snapshot(at)).unwrap_or(0);
                if has_wal(at) {
                    bytes += segment.parent.map_or(0, |parent| segment.lsn.0 - segments[parent].lsn.0);
                }
            }
            if is_enough && best.is_none_or(|best| bytes < best) {
                best = Some(bytes);
            }
        }
        best
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn no_way_of_keeping_a_tree_costs_less(segments in tree(6)) {
            prop_assert_eq!(least_cost(&segments).ok().map(|cost| cost.total), brute_force(&segments));
        }

        #[test]
        fn what_the_methods_cost_is_the_sum(segments in tree(40)) {
            let Ok(cost) = least_cost(&segments) else { return Ok(()) };
            let mut sum = 0;
            for (segment, kept) in segments.iter().zip(&cost.segments) {
                let readable = segment.parent.is_some_and(|parent| cost.segments[parent].method != Method::Skipped);
                sum += match kept.method {
                    Method::SnapshotHere => segment.size.unwrap(),
                    Method::Wal => segment.lsn.0 - segments[segment.parent.unwrap()].lsn.0,
                    Method::Skipped => 0,
                };
                prop_assert!(kept.method != Method::Wal || readable);
                prop_assert!(!segment.needed || kept.method == Method::Wal || segment.parent.is_none());
            }
            prop_assert_eq!(sum, cost.total);
        }

        #[test]
        fn asking_for_less_never_costs_more(segments in tree(12), at in any::<prop::sample::Index>()) {
            prop_assume!(!segments.is_empty());
            let Ok(before) = least_cost(&segments) else { return Ok(()) };
            let mut less = segments.clone();
            less[at.index(segments.len())].needed = false;
            prop_assert!(least_cost(&less).unwrap().total <= before.total);
        }
    }
}
