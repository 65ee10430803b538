//! `tenant-manifest-<generation>.json`: which timelines of a tenant are in the bucket only, and what they keep their ancestors from losing.
//!
//! The object is Neon's, version 2. Fields that are not known are kept. What only we note of a timeline, so that its size is known without its
//! index, is in a field that other readers ignore. Whether a timeline exists, its index alone says; an entry without one means nothing.

use model::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use crate::index_part::{Unknown, UtcTime};

/// The newest version, and the one that is written.
pub const MANIFEST_VERSION: u32 = 2;

/// Archived timelines of a tenant shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TenantManifest {
    /// Of the format.
    pub version: u32,
    /// Pages of a stripe, where there are shards. Advice for those who lost it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stripe_size: Option<u32>,
    /// Which, by id.
    #[serde(default)]
    pub offloaded_timelines: Vec<OffloadedTimeline>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A timeline that is in the bucket only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OffloadedTimeline {
    /// Which.
    pub timeline_id: TimelineId,
    /// What it branched off.
    #[serde(default)]
    pub ancestor_timeline_id: Option<TimelineId>,
    /// Where: the ancestor stays readable there.
    #[serde(default)]
    pub ancestor_retain_lsn: Option<Lsn>,
    /// Since when.
    pub archived_at: UtcTime,
    /// What only we note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub palimpsest: Option<OffloadedDetails>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What only we note of an archived timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadedDetails {
    /// Of its layers.
    pub bytes: u64,
    /// How many it has.
    pub layers: u64,
    /// Where it ends.
    pub last_record_lsn: Lsn,
}

/// Why a manifest cannot be believed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TenantManifestError {
    #[error("the tenant manifest cannot be read")]
    Json(#[from] serde_json::Error),
    #[error("the tenant manifest has version {0}; up to {MANIFEST_VERSION} is known here")]
    TooNew(u32),
}

impl TenantManifest {
    /// Of these timelines.
    pub fn new(mut offloaded_timelines: Vec<OffloadedTimeline>) -> TenantManifest {
        offloaded_timelines.sort_by_key(|offloaded| offloaded.timeline_id);
        TenantManifest {
            version: MANIFEST_VERSION,
            stripe_size: None,
            offloaded_timelines,
            unknown: Unknown::new(),
        }
    }

    /// Reads it.
    pub fn from_json(bytes: &[u8]) -> Result<TenantManifest, TenantManifestError> {
        let manifest: TenantManifest = serde_json::from_slice(bytes)?;
        if manifest.version > MANIFEST_VERSION {
            return Err(TenantManifestError::TooNew(manifest.version));
        }
        Ok(manifest)
    }

    /// The object's bytes; deterministic.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only text keys and no failing values")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neons_manifest_round_trips_and_so_does_what_we_add() {
        let neon = serde_json::json!({"version": 2, "stripe_size": 2048, "offloaded_timelines": [{
            "timeline_id": "ffeeddccbbaa99887766554433221100", "ancestor_timeline_id": null, "ancestor_retain_lsn": null,
            "archived_at": "2024-07-19T09:00:00.123", "new": [1]}], "new": {"a": 1}});
        let manifest = TenantManifest::from_json(&serde_json::to_vec(&neon).unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&manifest.to_json()).unwrap(), neon);
        let ours = OffloadedTimeline {
            palimpsest: Some(OffloadedDetails { bytes: 7, layers: 1, last_record_lsn: Lsn(0x18) }),
            ancestor_timeline_id: Some(TimelineId([1; 16])),
            ancestor_retain_lsn: Some(Lsn(0x10)),
            timeline_id: TimelineId([2; 16]),
            ..manifest.offloaded_timelines[0].clone()
        };
        let both = TenantManifest::new(vec![manifest.offloaded_timelines[0].clone(), ours]);
        assert_eq!(both.offloaded_timelines[0].timeline_id, TimelineId([2; 16]));
        assert_eq!(TenantManifest::from_json(&both.to_json()).unwrap(), both);
    }

    #[test]
    fn what_is_newer_or_no_manifest_is_refused() {
        assert!(matches!(TenantManifest::from_json(b"{\"version\":3}"), Err(TenantManifestError::TooNew(3))));
        assert!(matches!(TenantManifest::from_json(b"{\"version\":"), Err(TenantManifestError::Json(_))));
        assert_eq!(TenantManifest::from_json(b"{\"version\":1}").unwrap().offloaded_timelines, []);
    }
}
