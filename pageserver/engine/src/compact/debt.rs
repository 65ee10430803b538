//! Debt: what compaction has still to do, and what it costs readers and the bucket until then. Pure.

use codec::index_part::IndexPart;
use model::{LayerName, Lsn, PgTimestamp};

use super::choose::{CompactionPolicy, View, below, depth, fresh_deltas, split_at, stack_height};
use super::shelf::{LayerFacts, shelves, total};
use crate::retention::Retention;

/// What is still to be done for a timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Debt {
    /// Bytes of layers that are to be merged, or made images of: L0s, and stacks that are too high.
    pub merge_bytes: u64,
    /// Layers that a read may have to visit at most.
    pub deepest: usize,
    /// Bytes of history below the cutoff that no job has looked at since the cutoff passed it. Much of them nobody can read any more.
    pub garbage_bytes: u64,
}

/// What is still to be done for these layers.
pub fn debt(view: &View, policy: &CompactionPolicy) -> Debt {
    let mut debt = Debt { merge_bytes: total(&view.l0), deepest: depth(view, policy), garbage_bytes: 0 };
    for shelf in shelves(&view.rest, policy.shelf_bytes) {
        if stack_height(&shelf, view.is_branch) > policy.max_deltas {
            debt.merge_bytes += total(shelf.deltas());
        }
        if let Some(split) = split_at(&shelf, view.retention.cutoff) {
            let fresh = fresh_deltas(&shelf, split, &view.retention);
            debt.garbage_bytes += fresh.into_iter().map(|layer| below(layer, split)).sum::<u64>();
        }
    }
    debt
}

/// What there is of a timeline's layers, by its index.
pub fn view_of(part: &IndexPart, retention: Retention) -> View {
    let (mut l0, rest): (Vec<LayerFacts>, Vec<LayerFacts>) = part
        .layer_metadata
        .iter()
        .map(|(name, metadata)| LayerFacts {
            name: name.clone(),
            size: metadata.file_size,
            trimmed_for: metadata.palimpsest.as_ref().and_then(|details| details.trimmed_for.clone()),
            heat: 0,
        })
        .partition(|layer| layer.name.is_l0());
    l0.sort_by_key(|layer| layer.name.lsns().start);
    View {
        l0,
        rest,
        retention,
        is_branch: part.metadata().ancestor_timeline.is_some(),
        beyond_redo: Vec::new(),
    }
}

/// About when `lsn` was the newest: the newest commit in layers that end there or before, else the oldest in those that reach across it.
pub fn time_near(part: &IndexPart, lsn: Lsn) -> Option<PgTimestamp> {
    let commits = |(name, metadata): (&LayerName, &codec::index_part::LayerMetadata)| {
        let commits = metadata.palimpsest.as_ref()?.commits?;
        Some((name.lsns(), commits))
    };
    let known = || part.layer_metadata.iter().filter_map(commits);
    let before = known().filter(|(lsns, _)| lsns.end.0 <= lsn.0 + 1).map(|(_, (_, newest))| newest).max();
    let across = known().filter(|(lsns, _)| lsns.start <= lsn && lsns.end.0 > lsn.0 + 1);
    before.max(across.map(|(_, (oldest, _))| oldest).min())
}

#[cfg(test)]
mod tests {
    use model::{Key, WalSegmentSize};

    use super::*;

    fn key(number: u32) -> Key {
        Key { field6: number, ..Key::MIN }
    }

    fn delta(keys: std::ops::Range<u32>, lsns: std::ops::Range<u64>, size: u64) -> LayerFacts {
        let name =
            LayerName::Delta { keys: key(keys.start)..key(keys.end), lsns: Lsn(lsns.start)..Lsn(lsns.end) };
        LayerFacts { name, size, trimmed_for: None, heat: 0 }
    }

    fn view(cutoff: u64) -> View {
        let image = LayerName::Image { keys: key(0)..key(9), lsn: Lsn(10) };
        let mut rest = vec![LayerFacts { name: image, size: 100, trimmed_for: None, heat: 0 }];
        rest.extend((0..4).map(|n| delta(0..9, 11 + n * 10..21 + n * 10, 10 << n)));
        let l0 = LayerFacts {
            name: LayerName::Delta { keys: Key::ALL, lsns: Lsn(51)..Lsn(61) },
            size: 7,
            trimmed_for: None,
            heat: 0,
        };
        View {
            l0: vec![l0],
            rest,
            retention: Retention::new(WalSegmentSize::DEFAULT, Lsn(cutoff), []),
            is_branch: false,
            beyond_redo: Vec::new(),
        }
    }

    #[test]
    fn what_is_too_deep_is_to_be_merged_and_what_the_cutoff_passed_may_be_garbage() {
        let policy = CompactionPolicy::default();
        assert_eq!(debt(&view(10), &policy), Debt { merge_bytes: 7 + 150, deepest: 6, garbage_bytes: 0 });
        assert_eq!(debt(&view(30), &policy).garbage_bytes, 10 + 20);
        let mut shallow = view(10);
        shallow.rest.pop();
        assert_eq!(debt(&shallow, &policy), Debt { merge_bytes: 7, deepest: 5, garbage_bytes: 0 });
    }

    #[test]
    fn what_was_trimmed_for_all_that_can_be_read_is_no_garbage() {
        let mut trimmed = view(30);
        for layer in &mut trimmed.rest {
            layer.trimmed_for = layer.name.is_delta().then(|| vec![Lsn(30)]);
        }
        assert_eq!(debt(&trimmed, &CompactionPolicy::default()).garbage_bytes, 0);
    }
}
