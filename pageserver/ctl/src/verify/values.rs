//! What one layer file holds. Pure.

use codec::checkpoint::CHECKPOINT_SIZE;
use codec::control::CONTROL_FILE_SIZE;
use codec::directory::{DbDirectory, RelDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::index_part::LayerMetadata;
use codec::layer::blob::Unpacker;
use codec::layer::{LayerFile, LayerKind};
use codec::value::{Change, Value};
use engine::error_story::error_story;
use model::key::KeyKind;
use model::{BLOCK_SIZE, Fork, Key, LayerName, Lsn, PgMajor, SlruKind, TenantId, TimelineId};

use super::{Rule, Violation, Violations};

/// Most bytes of a value.
const LARGEST_VALUE: usize = 0x0FFF_FFFF;

/// What was found in a file.
#[derive(Debug, Default)]
pub struct File {
    pub violations: Vec<Violation>,
    /// All of it can be read.
    pub is_whole: bool,
    /// Compressed values of a delta.
    pub compressed_changes: u64,
    /// Values of a key that only we have, which Neon never asks for.
    pub own_values: u64,
}

/// Looks at a whole file.
pub fn check_file(
    bytes: &[u8],
    tenant: TenantId,
    timeline: TimelineId,
    pg: PgMajor,
    name: &LayerName,
    metadata: &LayerMetadata,
) -> File {
    let mut violations = Violations::new(timeline);
    let mut checked = File::default();
    match look_into(bytes, tenant, pg, name, metadata, &mut violations) {
        Ok(counts) => {
            checked.is_whole = true;
            (checked.compressed_changes, checked.own_values) = counts;
        }
        Err((rule, what)) => violations.add(rule, Some(name), None, None, what),
    }
    checked.violations = violations.told;
    checked
}

/// Answers how many values of a delta are compressed, and how many are of keys that only we have; or why no more can be said.
fn look_into(
    bytes: &[u8],
    tenant: TenantId,
    pg: PgMajor,
    name: &LayerName,
    metadata: &LayerMetadata,
    violations: &mut Violations,
) -> Result<(u64, u64), (Rule, String)> {
    if bytes.len() as u64 != metadata.file_size {
        let what = format!("it has {} bytes, the index says {}", bytes.len(), metadata.file_size);
        return Err((Rule::Readable, what));
    }
    let file = LayerFile::open(bytes).map_err(|error| (Rule::Summary, error_story(&error)))?;
    let summary = file.summary();
    if summary.name != *name || summary.tenant != tenant {
        let what = format!("its first block says that it is {} of tenant {}", summary.name, summary.tenant);
        violations.add(Rule::Summary, Some(name), None, None, what);
    }
    let unreadable = |error: &dyn std::error::Error| (Rule::Readable, error_story(error));
    let report = file.verify().map_err(|error| unreadable(&error))?;
    if report.entries == 0 {
        violations.add(Rule::Entries, Some(name), None, None, "it holds nothing");
    }
    let mut unpacker = Unpacker::default();
    let mut last = None;
    let mut own = 0;
    let mut in_order = |entry: (Key, Lsn), violations: &mut Violations| {
        if last.replace(entry).is_some_and(|last| last >= entry) {
            violations.add(
                Rule::Entries,
                Some(name),
                Some(entry.0),
                Some(entry.1),
                "it is not above the entry before it",
            );
        }
    };
    match file.layout().kind() {
        LayerKind::Image => {
            let lsn = name.lsns().start;
            for entry in file.images().map_err(|error| unreadable(&error))? {
                in_order((entry.key, lsn), violations);
                own += u64::from(entry.key == Key::LOGICAL_SIZE);
                let (_, value) = file.value(entry.at, &mut unpacker).map_err(|error| unreadable(&error))?;
                if let Err((rule, what)) = check_whole(pg, entry.key, &value) {
                    violations.add(rule, Some(name), Some(entry.key), Some(lsn), what);
                }
            }
            Ok((0, own))
        }
        LayerKind::Delta => {
            for entry in file.deltas().map_err(|error| unreadable(&error))? {
                in_order((entry.key, entry.lsn), violations);
                own += u64::from(entry.key == Key::LOGICAL_SIZE);
                let (_, value) = file.value(entry.at, &mut unpacker).map_err(|error| unreadable(&error))?;
                let checked = match Value::decode(&value) {
                    Err(error) => Err((Rule::Value, error_story(&error))),
                    Ok(Value::Image(whole)) => check_whole(pg, entry.key, whole),
                    Ok(Value::Change(change)) => check_change(entry.key, &change),
                };
                if let Err((rule, what)) = checked {
                    violations.add(rule, Some(name), Some(entry.key), Some(entry.lsn), what);
                }
            }
            Ok((report.compressed, own))
        }
    }
}

/// A database's list of relations, in the form that only Neon writes.
pub fn is_rel_directory(key: Key) -> bool {
    (key.field1, key.field4, key.field5, key.field6) == (0, 0, 0, 1)
}

/// Whether a whole value is as Neon has it.
pub fn check_whole(pg: PgMajor, key: Key, value: &[u8]) -> Result<(), (Rule, String)> {
    check_key(key)?;
    if value.len() > LARGEST_VALUE {
        return Err((Rule::Size, format!("it has {} bytes", value.len())));
    }
    let length = |allowed: &[usize]| {
        if allowed.contains(&value.len()) {
            return Ok(());
        }
        Err((Rule::Value, format!("it has {} bytes, expected {allowed:?}", value.len())))
    };
    let list = |decoded: Result<(), String>| decoded.map_err(|why| (Rule::Value, why));
    match key.kind() {
        Some(KeyKind::DbDirectory) => list(DbDirectory::decode(value).map(drop).map_err(|e| e.to_string())),
        Some(KeyKind::RelationMap { .. }) => length(&[if pg <= PgMajor::V15 { 512 } else { 524 }]),
        Some(KeyKind::RelSize(_) | KeyKind::SlruSize { .. }) => length(&[4]),
        Some(KeyKind::SlruDirectory(_)) => {
            list(SlruSegmentDirectory::decode(value).map(drop).map_err(|e| e.to_string()))
        }
        // The time of the last commit on it may follow.
        Some(KeyKind::SlruPage { slru: SlruKind::Clog, .. }) => length(&[BLOCK_SIZE, BLOCK_SIZE + 8]),
        Some(KeyKind::RelBlock { .. } | KeyKind::SlruPage { .. }) => length(&[BLOCK_SIZE]),
        Some(KeyKind::TwoPhaseDirectory) => {
            list(TwoPhaseDirectory::decode(value, pg).map(drop).map_err(|e| e.to_string()))
        }
        Some(KeyKind::ControlFile) => length(&[CONTROL_FILE_SIZE]),
        Some(KeyKind::Checkpoint) => length(&[CHECKPOINT_SIZE]),
        Some(KeyKind::ReplicationOrigin(_)) => length(&[0, 8]),
        Some(KeyKind::RelDirectoryEntry(_)) => match value {
            b"" | b"r" => Ok(()),
            _ => Err((Rule::Value, "it is neither empty nor \"r\"".into())),
        },
        Some(KeyKind::TwoPhaseFile { .. } | KeyKind::TablespaceDirectory | KeyKind::LogicalSize) => Ok(()),
        None if is_rel_directory(key) => {
            list(RelDirectory::decode(value).map(drop).map_err(|e| e.to_string()))
        }
        None => list(check_aux_files(value)),
    }
}

/// u8 version 1, then (u32 length, path, u32 length, content) each. Empty: no file.
fn check_aux_files(value: &[u8]) -> Result<(), String> {
    let Some((version, mut rest)) = value.split_first() else { return Ok(()) };
    if *version != 1 {
        return Err(format!("auxiliary files of version {version}, expected 1"));
    }
    while !rest.is_empty() {
        for _ in 0..2 {
            let (length, after) = rest.split_first_chunk::<4>().ok_or("auxiliary files are truncated")?;
            rest =
                after.get(u32::from_be_bytes(*length) as usize..).ok_or("auxiliary files are truncated")?;
        }
    }
    Ok(())
}

fn check_key(key: Key) -> Result<(), (Rule, String)> {
    let no = |what: &str| Err((Rule::KeySpace, what.to_owned()));
    if key.field1 >= 0x80 || key.field2 > 0xFFFF {
        return no("it has no compact form of 16 bytes");
    }
    match key.kind() {
        Some(KeyKind::TablespaceDirectory) => no("tablespaces are unknown to Neon"),
        Some(
            KeyKind::SlruDirectory(SlruKind::CommitTs)
            | KeyKind::SlruPage { slru: SlruKind::CommitTs, .. }
            | KeyKind::SlruSize { slru: SlruKind::CommitTs, .. },
        ) => no("commit timestamps are unknown to Neon"),
        Some(KeyKind::RelBlock { rel, .. } | KeyKind::RelSize(rel) | KeyKind::RelDirectoryEntry(rel))
            if ![1663, 1664].contains(&rel.spc) =>
        {
            no("it is of a tablespace of its own")
        }
        Some(_) => Ok(()),
        None if is_rel_directory(key) || key.field1 == 0x62 => Ok(()),
        None => no("no key of Neon's is like it"),
    }
}

/// Whether a change is one that Neon can redo on this key.
pub fn check_change(key: Key, change: &Change<'_>) -> Result<(), (Rule, String)> {
    check_key(key)?;
    let fits = match (key.kind(), change) {
        (_, Change::ZeroPage | Change::CommitTimestamps { .. } | Change::MultiXactOffsets { .. }) => {
            return Err((Rule::Value, "a change that Neon does not know".into()));
        }
        (Some(KeyKind::RelBlock { .. }), Change::Postgres { record, .. }) => {
            let told = record.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
            if record.len() < 24 || told != Some(record.len()) {
                let what = format!("a record of {} bytes says that it has {told:?}", record.len());
                return Err((Rule::Value, what));
            }
            true
        }
        (
            Some(KeyKind::RelBlock { rel, .. }),
            Change::ClearVisibilityMap { .. } | Change::TruncateVisibilityMap { .. },
        ) => rel.fork == Fork::Vm,
        (Some(KeyKind::SlruPage { slru, .. }), Change::Committed { .. } | Change::Aborted { .. }) => {
            slru == SlruKind::Clog
        }
        (Some(KeyKind::SlruPage { slru, .. }), Change::MultiXactOffset { .. }) => {
            slru == SlruKind::MultiXactOffsets
        }
        (Some(KeyKind::SlruPage { slru, .. }), Change::MultiXactMembers { .. }) => {
            slru == SlruKind::MultiXactMembers
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err((Rule::Value, "a change for another kind of key".into())) }
}
