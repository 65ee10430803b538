//! What an index says, without a look at its layers. Pure.

use codec::index_part::IndexPart;
use model::{LayerName, Lsn, PgMajor};

use super::{Rule, Violations};

/// A single PUT takes no more.
const LARGEST_FILE: u64 = 4_500_000_000;

/// Checks an index against itself and its ancestor's, which is in the bucket if there is one.
pub fn check(index: &IndexPart, parent: Option<&IndexPart>, violations: &mut Violations) {
    check_metadata(index, parent, violations);
    check_layers(index, violations);
    check_overlaps(index, violations);
}

fn check_metadata(index: &IndexPart, parent: Option<&IndexPart>, violations: &mut Violations) {
    let metadata = index.metadata();
    let mut wrong = |rule, lsn: Option<Lsn>, what: String| violations.add(rule, None, None, lsn, what);
    let end = metadata.disk_consistent_lsn;
    if metadata.pg_version > PgMajor::V17 {
        wrong(Rule::Index, None, format!("Postgres {} is not known to Neon", metadata.pg_version));
    }
    let is_importing = index.palimpsest.as_ref().is_some_and(|ours| ours.import.is_some());
    if is_importing {
        wrong(Rule::Index, None, "its import has not ended".into());
    }
    if index.layer_metadata.is_empty()
        && metadata.ancestor_timeline.is_none()
        && index.import_pgdata.is_none()
    {
        wrong(Rule::Index, None, "it has neither layers nor an ancestor nor an import".into());
    }
    if !end.is_valid() {
        wrong(Rule::Metadata, None, "its layers end nowhere".into());
    }
    if metadata.prev_record_lsn.is_some_and(|prev| prev.is_valid() && prev >= end) {
        wrong(
            Rule::Metadata,
            metadata.prev_record_lsn,
            format!("the last record begins behind its end {end}"),
        );
    }
    if metadata.latest_gc_cutoff_lsn > end {
        wrong(
            Rule::Metadata,
            Some(metadata.latest_gc_cutoff_lsn),
            format!("the cutoff lies beyond the end {end}"),
        );
    }
    if !metadata.initdb_lsn.is_aligned() {
        wrong(Rule::Metadata, Some(metadata.initdb_lsn), "the root's beginning is no multiple of 8".into());
    }
    let Some(ancestor) = metadata.ancestor_timeline else {
        if metadata.ancestor_lsn.is_valid() {
            wrong(
                Rule::Metadata,
                Some(metadata.ancestor_lsn),
                "it has a branch point and no ancestor".into(),
            );
        }
        if end < metadata.initdb_lsn {
            wrong(Rule::Metadata, Some(end), format!("it ends before it begins at {}", metadata.initdb_lsn));
        }
        return;
    };
    let at = metadata.ancestor_lsn;
    if !at.is_valid() || !at.is_aligned() {
        wrong(Rule::Metadata, Some(at), "its branch point is no multiple of 8".into());
    }
    if end < at {
        wrong(Rule::Metadata, Some(end), format!("it ends before its branch point {at}"));
    }
    if index.layer_metadata.is_empty() && end != at {
        wrong(
            Rule::Metadata,
            Some(end),
            format!("a branch without layers ends elsewhere than at its branch point {at}"),
        );
    }
    let Some(parent) = parent else {
        wrong(Rule::Metadata, None, format!("its ancestor {ancestor} is not in the bucket"));
        return;
    };
    let theirs = parent.metadata();
    if theirs.disk_consistent_lsn < at {
        let end = theirs.disk_consistent_lsn;
        wrong(
            Rule::Metadata,
            Some(at),
            format!("its ancestor's layers end at {end}, before the branch point"),
        );
    }
    if theirs.pg_version != metadata.pg_version {
        wrong(Rule::Metadata, None, format!("its ancestor is of Postgres {}", theirs.pg_version));
    }
    if theirs.initdb_lsn != metadata.initdb_lsn {
        wrong(
            Rule::Metadata,
            Some(metadata.initdb_lsn),
            format!("its ancestor's root began at {}", theirs.initdb_lsn),
        );
    }
}

fn check_layers(index: &IndexPart, violations: &mut Violations) {
    let metadata = index.metadata();
    let end = metadata.disk_consistent_lsn;
    let begin = match metadata.ancestor_timeline {
        Some(_) => Lsn(metadata.ancestor_lsn.0.saturating_add(1)),
        None => metadata.initdb_lsn,
    };
    for (name, layer) in &index.layer_metadata {
        let (keys, lsns) = (name.keys(), name.lsns());
        let is_future = match name {
            LayerName::Image { lsn, .. } => *lsn > end,
            LayerName::Delta { lsns, .. } => lsns.end.0 > end.0.saturating_add(1),
        };
        if is_future {
            let what = format!("it reaches beyond {end}, up to where the index is");
            violations.add(Rule::FutureLayer, Some(name), None, Some(lsns.start), what);
        }
        if keys.is_empty() || lsns.is_empty() {
            violations.add(Rule::Entries, Some(name), None, None, "its ranges are empty");
        }
        // A branch's images may stand at the branch point itself, its changes come after it.
        let is_at_branch_point = !name.is_delta() && lsns.start.0 + 1 == begin.0;
        if lsns.start < begin && !is_at_branch_point {
            let what = format!("it lies before {begin}, where the timeline begins");
            violations.add(Rule::Metadata, Some(name), None, Some(lsns.start), what);
        }
        if layer.file_size > LARGEST_FILE || !layer.file_size.is_multiple_of(model::BLOCK_SIZE as u64) {
            let what = format!(
                "its file has {} bytes, not a multiple of 8192 up to {LARGEST_FILE}",
                layer.file_size
            );
            violations.add(Rule::Size, Some(name), None, None, what);
        }
    }
}

/// For deltas of more than one key: no other delta begins or ends strictly within its LSNs, unless they share no key.
fn check_overlaps(index: &IndexPart, violations: &mut Violations) {
    let is_single = |name: &LayerName| name.keys().start.next() >= name.keys().end;
    let deltas: Vec<&LayerName> =
        index.layer_metadata.keys().filter(|name| name.is_delta() && !is_single(name)).collect();
    let mut borders: Vec<(Lsn, &LayerName)> =
        deltas.iter().flat_map(|name| [(name.lsns().start, *name), (name.lsns().end, *name)]).collect();
    borders.sort_unstable_by_key(|(lsn, _)| *lsn);
    for name in &deltas {
        let (keys, lsns) = (name.keys(), name.lsns());
        let from = borders.partition_point(|(lsn, _)| *lsn <= lsns.start);
        let inside = borders[from..].iter().take_while(|(lsn, _)| *lsn < lsns.end);
        let shares = |other: &LayerName| other.keys().start < keys.end && keys.start < other.keys().end;
        if let Some((lsn, other)) = inside.into_iter().find(|(_, other)| shares(other)) {
            let what = format!("layer {other} shares keys with it and begins or ends within it");
            violations.add(Rule::DeltaOverlap, Some(name), None, Some(*lsn), what);
        }
    }
}
