//! What tenants and timelines look like as JSON.

use std::time::{Duration, SystemTime};

use codec::index_part::{IndexPart, NamedLsn, UtcTime};
use engine::tenant::{ArchivedTimeline, Tenant, TenantInfo, TimelineState};
use engine::tenant_size::SizeInputs;
use engine::tenant_size::segments::{Cost, Method, SegmentCost};
use engine::tenant_size::tree::TreeSegment;
use engine::timeline::TimelineInfo;
use model::{LayerName, Lsn, TenantShardId, TimelineId};
use serde_json::{Value, json};

use crate::source::followers::Followers;

/// A tenant, in lists and details.
pub fn tenant_json(info: &TenantInfo) -> Value {
    json!({
        "id": info.id,
        "state": {"slug": if info.deleting { "Stopping" } else { "Active" }},
        "current_physical_size": null,
        "attachment_status": {"slug": "attached"},
        "generation": info.generation.0,
    })
}

/// A timeline as the tenant knows it, whatever its state.
pub fn timeline_json(tenant: &Tenant, state: &TimelineState, followers: &Followers) -> Value {
    let absent = |timeline: TimelineId, state: Value| {
        json!({
            "tenant_id": tenant.shard(),
            "timeline_id": timeline,
            "state": state,
            "walreceiver_status": followers.status(timeline),
            "wal_source_connstr": followers.source(timeline),
        })
    };
    match state {
        TimelineState::Active(info) => active_json(tenant.shard(), info, followers),
        TimelineState::Archived(archived) => {
            let mut known = archived_json(tenant.shard(), archived);
            known["state"] = json!("Archived");
            known["is_archived"] = json!(true);
            known["walreceiver_status"] = json!(followers.status(archived.timeline));
            known
        }
        TimelineState::Importing { timeline, .. } => absent(*timeline, json!("Loading")),
        TimelineState::Deleting { timeline } => absent(*timeline, json!("Stopping")),
        TimelineState::Broken { timeline, reason, .. } => {
            absent(*timeline, json!({"Broken": {"reason": reason, "backtrace": ""}}))
        }
    }
}

fn active_json(tenant: TenantShardId, info: &TimelineInfo, followers: &Followers) -> Value {
    let facts = &info.facts;
    let id = facts.timeline;
    let (ancestor, ancestor_lsn) = info.ancestor.unzip();
    json!({
        "tenant_id": tenant,
        "timeline_id": id,
        "ancestor_timeline_id": ancestor,
        "ancestor_lsn": ancestor_lsn,
        "last_record_lsn": info.last_record_lsn,
        "prev_record_lsn": info.prev_record_lsn,
        "applied_gc_cutoff_lsn": info.gc_cutoff_lsn,
        "min_readable_lsn": info.min_readable_lsn,
        "disk_consistent_lsn": info.disk_consistent_lsn,
        "remote_consistent_lsn": info.remote_consistent_lsn,
        "remote_consistent_lsn_visible": info.remote_consistent_lsn,
        "initdb_lsn": facts.initdb_lsn,
        "current_logical_size": info.current_logical_size.unwrap_or(0),
        "current_logical_size_is_accurate": info.current_logical_size.is_some(),
        "current_logical_size_non_incremental": null,
        "current_physical_size": info.remote_physical_size,
        "resident_physical_size": info.resident_physical_size,
        "wal_source_connstr": followers.source(id),
        "pg_version": facts.pg,
        "state": if info.error.is_some() { json!({"Broken": {"reason": info.error, "backtrace": ""}}) } else { json!("Active") },
        "walreceiver_status": followers.status(id),
        "is_archived": followers.is_archived(id),
        "rel_size_migration": "migrated",
        "is_invisible": false,
        // Ours: where received WAL is.
        "system_identifier": facts.system_identifier.to_string(),
        "wal_segment_size": facts.wal_segment_size,
        "wal_received_lsn": info.wal_received_lsn,
        "wal_stored_lsn": info.wal_stored_lsn,
        "wal_flushed_lsn": info.wal_flushed_lsn,
        "wal_objects": info.wal_objects,
        "wal_objects_size": info.wal_objects_size,
        "layers": info.layers,
        "l0_layers": info.l0_layers,
        "ingest_waits_for_compaction": info.ingest_waits,
        "compaction_error": info.compaction_error,
        "index_puts": info.index_puts,
        "index_bytes_put": info.index_bytes,
        "tail_bytes": info.tail_bytes,
        "newest_commit": info.newest_commit.map(|time| rfc3339(time.to_system_time())),
    })
}

/// The size of a tenant as Neon tells it: with the tree that it was made of, and unless only that was asked for, the sum.
pub fn synthetic_size_json(tenant: TenantShardId, inputs: &SizeInputs, sum: Option<(u64, &Cost)>) -> Value {
    let segments: Vec<Value> = inputs
        .segments
        .iter()
        .map(|TreeSegment { segment, timeline, kind, .. }| {
            json!({
                "segment": {
                    "parent": segment.parent,
                    "lsn": segment.lsn.0,
                    "size": segment.size,
                    "needed": segment.needed,
                },
                "timeline_id": timeline,
                "kind": kind,
            })
        })
        .collect();
    let timelines: Vec<Value> = inputs
        .timelines
        .iter()
        .map(|timeline| {
            let (ancestor, ancestor_lsn) = timeline.ancestor.unzip();
            json!({
                "timeline_id": timeline.timeline,
                "ancestor_id": ancestor,
                "ancestor_lsn": ancestor_lsn.unwrap_or(Lsn::INVALID),
                "last_record": timeline.last_record,
                "latest_gc_cutoff": timeline.applied_cutoff,
                "next_pitr_cutoff": timeline.cutoff,
                "retention_param_cutoff": timeline.asked_cutoff,
                "lease_points": timeline.kept,
                // Ours: archived and hidden ones count only for their branches.
                "is_live": timeline.is_live,
            })
        })
        .collect();
    let costs = sum.map(|(_, cost)| {
        let one = |cost: &SegmentCost| {
            let method = match cost.method {
                Method::SnapshotHere => "SnapshotHere",
                Method::Wal => "Wal",
                Method::Skipped => "Skipped",
            };
            json!({"method": method, "accum_size": cost.accum_size})
        };
        cost.segments.iter().map(one).collect::<Vec<_>>()
    });
    json!({
        "id": tenant.tenant,
        "size": sum.map(|(size, _)| size),
        "segment_sizes": costs,
        "inputs": {"segments": segments, "timeline_inputs": timelines},
    })
}

/// A timeline that is in the bucket only.
pub fn archived_json(tenant: TenantShardId, archived: &ArchivedTimeline) -> Value {
    let (ancestor, ancestor_lsn) = archived.ancestor.unzip();
    json!({
        "tenant_id": tenant,
        "timeline_id": archived.timeline,
        "ancestor_timeline_id": ancestor,
        "ancestor_retain_lsn": ancestor_lsn,
        "archived_at": archived.archived_at,
        // Ours: what is known of it all the same.
        "ancestor_lsn": ancestor_lsn,
        "archived_because": archived.reason,
        "pg_version": archived.pg,
        "initdb_lsn": archived.initdb_lsn,
        "last_record_lsn": archived.disk_consistent_lsn,
        "disk_consistent_lsn": archived.disk_consistent_lsn,
        "current_physical_size": archived.bytes,
        "layers": archived.layers,
    })
}

/// The layer map: what is in the tail, and every layer that the index names.
pub fn layer_map_json(info: &TimelineInfo, part: &IndexPart) -> Value {
    let access = json!({"access_time": 0, "residence_time": 0, "visible": true});
    let layers: Vec<Value> = part
        .layer_metadata
        .iter()
        .map(|(name, metadata)| {
            let mut layer = json!({
                "layer_file_name": name.to_string(),
                "layer_file_size": metadata.file_size,
                "remote": true,
                "access_stats": access,
            });
            match name {
                LayerName::Delta { lsns, .. } => {
                    layer["kind"] = json!("Delta");
                    layer["lsn_start"] = json!(lsns.start);
                    layer["lsn_end"] = json!(lsns.end);
                    layer["l0"] = json!(true);
                }
                LayerName::Image { lsn, .. } => {
                    layer["kind"] = json!("Image");
                    layer["lsn_start"] = json!(lsn);
                }
            }
            layer
        })
        .collect();
    let open: &[Value] = &[json!({"kind": "Open", "lsn_start": info.disk_consistent_lsn})];
    let in_memory = if info.tail_bytes > 0 { open } else { &[] };
    json!({"in_memory_layers": in_memory, "historic_layers": layers})
}

/// An LSN that has a name.
pub fn named_lsn_json(name: &str, named: &NamedLsn) -> Value {
    let time = |time: &Option<UtcTime>| time.as_ref().map(|time| rfc3339(time.to_system_time()));
    json!({
        "name": name,
        "lsn": named.lsn,
        "valid_until": time(&named.valid_until),
        "created_at": time(&named.created_at),
    })
}

/// An instant in RFC 3339, UTC, milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// An instant from RFC 3339 with any offset.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    // A `+` in a query arrives as a space when the client did not encode it.
    let text = text.trim().replace(' ', "+");
    if text.ends_with(['Z', 'z']) {
        return humantime::parse_rfc3339(&text.to_ascii_uppercase()).ok();
    }
    let at = text.len().checked_sub(6)?;
    let (local, offset) = (text.get(..at)?, text.get(at..)?);
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let minutes = hours.parse::<u64>().ok()? * 60 + minutes.parse::<u64>().ok()?;
    let distance = Duration::from_secs(minutes * 60);
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    match offset.as_bytes()[0] {
        b'+' => local.checked_sub(distance),
        b'-' => local.checked_add(distance),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_have_any_offset() {
        let utc = parse_rfc3339("2026-01-02T03:04:05.5Z").unwrap();
        assert_eq!(rfc3339(utc), "2026-01-02T03:04:05.500Z");
        assert_eq!(parse_rfc3339("2026-01-02T05:04:05.5+02:00"), Some(utc));
        assert_eq!(parse_rfc3339("2026-01-02T05:04:05.5 02:00"), Some(utc));
        assert_eq!(parse_rfc3339("2026-01-01T23:34:05.5-03:30"), Some(utc));
        for bad in ["", "now", "2026-01-02", "2026-01-02T03:04:05", "2026-01-02T03:04:05+aa:bb", "ä+01:00"] {
            assert_eq!(parse_rfc3339(bad), None, "{bad:?}");
        }
    }
}
