//! What a pageserver tells of itself, as we believe it.

use model::TenantShardId;
use proto::v1::{self, ShardStatus, Status as Told, StorageState};

use crate::pool::view::{NewerOwner, Report, ReportedShard, ShardState, Storage};

/// Reads a status. Shards whose ids make no sense are left out: nobody asked for them.
pub fn report(told: &Told) -> Report {
    let storage = told.storage.clone().unwrap_or_default();
    let disk = told.disk.unwrap_or_default();
    Report {
        instance: told.instance.clone(),
        version: told.version.clone(),
        storage: match storage.state() {
            StorageState::Unspecified => Storage::Unknown,
            StorageState::Conditional => Storage::Conditional,
            StorageState::BestEffort => Storage::BestEffort,
            StorageState::Unsafe => Storage::Unsafe,
            StorageState::Unavailable => Storage::Unavailable,
        },
        storage_message: storage.message,
        draining: told.draining,
        disk_percent: disk.used.saturating_mul(100).checked_div(disk.total).unwrap_or(0) as u32,
        shards: told.shards.iter().filter_map(|shard| Some((id(shard)?, reported(shard)))).collect(),
    }
}

fn id(shard: &ShardStatus) -> Option<TenantShardId> {
    let id = shard.tenant_shard_id.parse();
    if id.is_err() {
        tracing::warn!(id = shard.tenant_shard_id, "a pageserver reports a shard whose id makes no sense");
    }
    id.ok()
}

fn reported(shard: &ShardStatus) -> ReportedShard {
    let superseded = (shard.superseded_by > 0 || shard.mode() == v1::Mode::Stale).then(|| NewerOwner {
        generation: shard.superseded_by,
        pool_uid: shard.superseded_by_pool_uid.clone(),
    });
    let mut timelines = shard.timelines.clone();
    for timeline in &mut timelines {
        // Moves all the time, and nothing is decided by it.
        timeline.last_record_lsn.clear();
    }
    ReportedShard {
        generation: shard.generation,
        attempt: shard.attempt.clone(),
        state: match shard.state() {
            v1::ShardState::Active => ShardState::Active,
            v1::ShardState::Broken => ShardState::Broken,
            v1::ShardState::Detaching => ShardState::Detaching,
            v1::ShardState::Loading | v1::ShardState::Unspecified => ShardState::Loading,
        },
        message: shard.message.clone(),
        superseded,
        timelines,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_shard_counts_as_superseded_and_a_nonsensical_one_not_at_all() {
        let shard = |id: &str, mode: v1::Mode, by: u32| ShardStatus {
            tenant_shard_id: id.into(),
            mode: mode.into(),
            superseded_by: by,
            ..ShardStatus::default()
        };
        let (a, b, c) = ("aa".repeat(16), "bb".repeat(16), "cc".repeat(16));
        let told = Told {
            shards: vec![
                shard(&a, v1::Mode::Single, 0),
                shard(&b, v1::Mode::Stale, 0),
                shard(&c, v1::Mode::Single, 7),
                shard("nonsense", v1::Mode::Single, 0),
            ],
            ..Told::default()
        };
        let report = report(&told);
        let superseded =
            |id: &str| report.shards[&id.parse().unwrap()].superseded.as_ref().map(|by| by.generation);
        assert_eq!((superseded(&a), superseded(&b), superseded(&c)), (None, Some(0), Some(7)));
        assert_eq!(report.shards.len(), 3);
    }
}
