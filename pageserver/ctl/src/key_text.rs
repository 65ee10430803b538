//! Keys and values in words.

use codec::value::{Change, Value};
use model::key::KeyKind;
use model::{Key, RmgrId};

/// What a key names.
pub fn key(key: Key) -> String {
    match key.kind() {
        Some(KeyKind::DbDirectory) => "databases".into(),
        Some(KeyKind::RelationMap { spc, db }) => format!("relation map {spc}/{db}"),
        Some(KeyKind::RelBlock { rel, block }) => format!("{rel} block {block}"),
        Some(KeyKind::RelSize(rel)) => format!("{rel} size"),
        Some(KeyKind::SlruDirectory(slru)) => format!("{} segments", slru.directory()),
        Some(KeyKind::SlruPage { slru, segment, page }) => {
            format!("{}/{segment:04X} page {page}", slru.directory())
        }
        Some(KeyKind::SlruSize { slru, segment }) => format!("{}/{segment:04X} size", slru.directory()),
        Some(KeyKind::TwoPhaseDirectory) => "prepared transactions".into(),
        Some(KeyKind::TwoPhaseFile { xid }) => format!("prepared transaction {xid}"),
        Some(KeyKind::ControlFile) => "pg_control".into(),
        Some(KeyKind::Checkpoint) => "checkpoint".into(),
        Some(KeyKind::TablespaceDirectory) => "tablespaces".into(),
        Some(KeyKind::LogicalSize) => "logical size".into(),
        Some(KeyKind::ReplicationOrigin(origin)) => format!("replication origin {origin}"),
        Some(KeyKind::RelDirectoryEntry(rel)) => format!("{rel} exists"),
        None => "?".into(),
    }
}

/// What a value says.
pub fn value(value: &Value<'_>) -> String {
    let change = match value {
        Value::Image([]) => return "tombstone".into(),
        Value::Image(bytes) => return format!("image of {} bytes", bytes.len()),
        Value::Change(change) => change,
    };
    match change {
        Change::Postgres { will_init, record } => {
            // Bytes 16 and 17 of a record's header: flags and resource manager.
            let what = match record {
                [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, info, rmgr, ..] => {
                    format!("{} {:#04X}", RmgrId(*rmgr), info & 0xF0)
                }
                _ => "too short".into(),
            };
            let init = if *will_init { ", initialises" } else { "" };
            format!("record {what} of {} bytes{init}", record.len())
        }
        Change::ZeroPage => "zero page".into(),
        other => format!("{other:?}"),
    }
}

/// A number of bytes, rounded.
pub fn bytes(count: u64) -> String {
    let mut unit = 0;
    let mut rounded = count as f64;
    while rounded >= 1024.0 && unit < 4 {
        rounded /= 1024.0;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB"][unit];
    if unit == 0 { format!("{count} {name}") } else { format!("{rounded:.1} {name}") }
}
