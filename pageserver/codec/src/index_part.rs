//! `index_part.json`: what a timeline consists of, the only thing that names its layers.
//!
//! The object is Neon's (format versions 1 to 15), written as version 15. Fields that are not known here are kept and written back, at
//! every level. What only we have is in a field that other readers ignore: `"palimpsest"`, once in the object ([`Extension`]) and once in
//! each layer's metadata ([`LayerDetails`]). An index without it is a plain Neon timeline's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::{Generation, LayerName, Lsn, PgMajor, PgTimestamp, ShardIndex, TimelineId, Tli, WalSegmentSize};
use serde::de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bytes_in::{BytesIn, Truncated};
use crate::layer::{ChecksumTable, FinishedLayer, LayerKind, Layout, ReadLayerError};

/// The newest format version, and the one that is written.
pub const LATEST_VERSION: u32 = 15;

/// The newest version of our own part.
pub const EXTENSION_FORMAT: u32 = 1;

/// Why nothing may be collected while a branch is detached from its ancestor.
pub const DETACH_ANCESTOR: &str = "DetachAncestor";

/// Earlier ancestors that are remembered of a timeline.
const LONGEST_LINEAGE: usize = 100;

/// Fields that are not known here, kept as they came.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// A timeline's index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexPart {
    #[serde(default, serialize_with = "latest_version")]
    version: u32,
    /// Every layer of the timeline, but not its ancestors'.
    #[serde(default, deserialize_with = "layers_in_bulk")]
    pub layer_metadata: BTreeMap<LayerName, LayerMetadata>,
    disk_consistent_lsn: Lsn,
    #[serde(rename = "metadata_bytes", alias = "metadata", deserialize_with = "either_metadata")]
    metadata: TimelineMetadata,
    /// Deletion has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<UtcTime>,
    /// Earlier ancestors.
    #[serde(default)]
    pub lineage: Lineage,
    /// How auxiliary files are stored; only `v2` is still read by anyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_aux_file_policy: Option<AuxFilePolicy>,
    /// Archived: kept, not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived_at: Option<UtcTime>,
    /// Why nothing of the tenant may be collected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc_blocking: Option<GcBlocking>,
    /// An import into Neon, done or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import_pgdata: Option<serde_json::Value>,
    /// Where relation directories are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rel_size_migration: Option<RelSizeMigration>,
    /// Obsolete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2_lsn: Option<Lsn>,
    /// How far old history was compacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc_compaction: Option<GcCompaction>,
    /// Not billed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked_invisible_at: Option<UtcTime>,
    /// From where on relation directories are sparse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rel_size_migrated_at: Option<Lsn>,
    /// What only we have; absent in a plain Neon timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub palimpsest: Option<Extension>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Where a timeline ends and comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineMetadata {
    /// The layers hold all WAL up to here. A multiple of 8.
    pub disk_consistent_lsn: Lsn,
    /// Start of the record that ends at `disk_consistent_lsn`, if that is known.
    pub prev_record_lsn: Option<Lsn>,
    /// The parent of a branch.
    pub ancestor_timeline: Option<TimelineId>,
    /// Where it branches off; 0 without an ancestor.
    pub ancestor_lsn: Lsn,
    /// Below this LSN versions may be missing.
    pub latest_gc_cutoff_lsn: Lsn,
    /// Where the timeline's root ancestor began.
    pub initdb_lsn: Lsn,
    /// The major version of Postgres.
    #[serde(default = "pg14")]
    pub pg_version: PgMajor,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Whatever version was read, the newest is written.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn latest_version<S: Serializer>(_read: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(LATEST_VERSION)
}

fn pg14() -> PgMajor {
    PgMajor::V14
}

/// What the index knows of a layer beyond its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerMetadata {
    /// Bytes of the object.
    pub file_size: u64,
    /// Its writer; absent for objects older than generations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The shard that wrote it, under whose prefix it is.
    #[serde(default = "unsharded", skip_serializing_if = "is_unsharded")]
    pub shard: ShardIndex,
    /// What only we know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub palimpsest: Option<LayerDetails>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

fn unsharded() -> ShardIndex {
    ShardIndex::UNSHARDED
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_unsharded(shard: &ShardIndex) -> bool {
    *shard == ShardIndex::UNSHARDED
}

/// What we note of a layer: enough to read its values without looking at its first block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerDetails {
    /// First block of the layer's index.
    pub index_start: u32,
    /// Root of the layer's index, counted from its first block.
    pub index_root: u32,
    /// First block of its checksum table; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums_start: Option<u32>,
    /// CRC-32C of the whole object.
    pub crc32c: u32,
    /// Oldest and newest commit among its changes, if it holds any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commits: Option<(PgTimestamp, PgTimestamp)>,
    /// Of a delta layer that compaction left with only what can be read as of these LSNs, ascending; the last one is where the horizon was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trimmed_for: Option<Vec<Lsn>>,
}

impl LayerMetadata {
    /// Of a layer just written by `generation` of `shard`.
    pub fn of(
        layer: &FinishedLayer,
        generation: Generation,
        shard: ShardIndex,
        commits: Option<(PgTimestamp, PgTimestamp)>,
    ) -> Self {
        let layout = &layer.layout;
        LayerMetadata {
            file_size: layout.file_size(),
            generation: Some(generation),
            shard,
            palimpsest: Some(LayerDetails {
                index_start: layout.index_start_block(),
                index_root: layout.index_root_block(),
                checksums_start: layout.checksums().map(ChecksumTable::start_block),
                crc32c: layer.crc32c,
                commits,
                trimmed_for: None,
            }),
            unknown: Unknown::new(),
        }
    }

    /// Where things are in the layer's file; `None` when only its block 0 can tell.
    pub fn layout(&self, name: &LayerName) -> Option<Result<Layout, ReadLayerError>> {
        let details = self.palimpsest.as_ref()?;
        let kind = if name.is_delta() { LayerKind::Delta } else { LayerKind::Image };
        Some(Layout::new(
            kind,
            self.file_size,
            details.index_start,
            details.index_root,
            details.checksums_start,
        ))
    }
}

/// Earlier ancestors of a timeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The history below was cut at 100 entries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reparenting_history_truncated: bool,
    /// Timelines that were the ancestor once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reparenting_history: Vec<TimelineId>,
    /// The ancestor before the timeline was detached from it: which, where, when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_ancestor: Option<(TimelineId, Lsn, UtcTime)>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Lineage {
    /// Notes that the timeline hangs on another ancestor than `from` now.
    pub fn moved_from(&mut self, from: TimelineId) {
        self.reparenting_history.push(from);
        let excess = self.reparenting_history.len().saturating_sub(LONGEST_LINEAGE);
        self.reparenting_history.drain(..excess);
        self.reparenting_history_truncated |= excess > 0;
    }

    /// Whether a timeline was the ancestor once.
    pub fn was_of(&self, ancestor: TimelineId) -> bool {
        self.reparenting_history.contains(&ancestor)
            || self.original_ancestor.as_ref().is_some_and(|(original, ..)| *original == ancestor)
    }
}

/// How auxiliary files are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the format's own names")]
pub enum AuxFilePolicy {
    V1,
    V2,
    CrossValidation,
}

/// Where relation directories are: in one value per database, in sparse keys, or in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the format's own names")]
pub enum RelSizeMigration {
    Legacy,
    Migrating,
    Migrated,
}

/// Why nothing of the tenant may be collected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GcBlocking {
    /// Since when.
    pub started_at: UtcTime,
    /// `Manual`, `DetachAncestor`.
    pub reasons: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How far old history was compacted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GcCompaction {
    /// Up to here.
    pub last_completed_lsn: Lsn,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What only we have of a timeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extension {
    /// Version of this part.
    pub format: u32,
    /// Counts the PUTs of this timeline's index by its generation, from 1. It tells a late PUT from a newer one.
    pub sequence: u64,
    /// Whose dialect of WAL the timeline was fed with.
    pub wal_flavour: WalFlavour,
    /// Why Neon cannot serve the timeline; empty when it can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_portable: Vec<NotPortable>,
    /// The cluster's `system_identifier`.
    #[serde(with = "u64_text")]
    pub system_identifier: u64,
    /// The cluster's WAL segment size in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// Whether the cluster's pages carry checksums.
    pub data_checksums: bool,
    /// The Postgres timelines that the WAL ran through, oldest first, and where each began to count here.
    pub tli_history: Vec<TliStart>,
    /// The timeline can be read from here on: an import's pages are consistent only from its backup's end.
    pub readable_from: Lsn,
    /// WAL objects of earlier generations that still count: those that end above `disk_consistent_lsn`. Objects of the index's own
    /// generation count without being named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wal_objects: Vec<WalObjectEntry>,
    /// Where WAL comes from; absent for a branch that nothing feeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// An import that has not ended: its layers do not make a readable timeline yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<Import>,
    /// Full backups handed out. Two of one LSN have the same system identifier and Postgres timeline; only the nonce tells them apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restores: Vec<Restore>,
    /// Why it takes no WAL any more, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived: Option<Archived>,
    /// LSNs that must stay readable until a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// LSNs that have names and stay readable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub named_lsns: BTreeMap<String, NamedLsn>,
    /// Below the cutoff only these LSNs can still be read, ascending: what is asked for besides was given up before it was. Absent before anything was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_lsns: Option<Vec<Lsn>>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Whose dialect of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalFlavour {
    /// Unpatched Postgres.
    Vanilla,
    /// Neon's Postgres.
    Neon,
}

/// A reason why Neon cannot serve a timeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotPortable {
    /// Its WAL carries no command ids.
    VanillaWal,
    /// Its major version of Postgres is newer than what Neon knows.
    PgVersion,
    /// It has tablespaces.
    Tablespaces,
    /// It keeps commit timestamps.
    CommitTimestamps,
    /// Its WAL segment size is not 16 MiB.
    WalSegmentSize,
    /// Values of kinds that Neon does not know.
    OwnValues,
    /// A reason of a newer version.
    #[serde(untagged)]
    Other(String),
}

/// From where on a Postgres timeline counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TliStart {
    /// Which Postgres timeline.
    pub tli: Tli,
    /// Its WAL counts from here on; where the one before ended.
    pub from: Lsn,
}

/// A WAL object of an earlier generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalObjectEntry {
    /// The Postgres timeline of its WAL.
    pub tli: Tli,
    /// First byte of WAL.
    pub start: Lsn,
    /// Just past the last byte of WAL.
    pub end: Lsn,
    /// Its writer.
    pub generation: Generation,
    /// Bytes of the object.
    pub size: u64,
}

/// A Postgres that WAL comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// How to connect, in libpq's form, without secrets.
    pub conninfo: String,
    /// The physical replication slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// It is not followed until somebody says so again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// An import that has not ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Import {
    /// Tells this attempt from earlier ones.
    pub attempt: String,
    /// Since when.
    pub started_at: UtcTime,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A full backup that was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The text in its timeline history file.
    pub nonce: String,
    /// As of when.
    pub lsn: Lsn,
    /// The Postgres timeline that the restored cluster runs on.
    pub tli: Tli,
    /// This one is what the timeline follows; others of the same LSN are other histories.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub followed: bool,
}

/// Why a timeline takes no WAL any more: somebody archived it, or its source left it and another goes on in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Archived {
    /// In words.
    pub reason: String,
    /// Somebody asked for it, so it is in the bucket only. Without it the timeline stays readable beside its successor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_request: bool,
    /// The slot on its source is gone since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slot_dropped: bool,
    /// The timeline that goes on in its place, noted before that one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<TimelineId>,
    /// Where the successor branches off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Lsn>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// An LSN that must stay readable until a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Which LSN.
    pub lsn: Lsn,
    /// Until when.
    pub valid_until: UtcTime,
}

/// An LSN that has a name and stays readable, for good or until a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "NamedLsnForm")]
pub struct NamedLsn {
    /// Which LSN.
    pub lsn: Lsn,
    /// Until when; for good without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<UtcTime>,
    /// Since when; not known of those that were written in the old form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<UtcTime>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The two forms in which a named LSN is found: the old one is its LSN alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum NamedLsnForm {
    Plain(Lsn),
    Whole {
        lsn: Lsn,
        #[serde(default)]
        valid_until: Option<UtcTime>,
        #[serde(default)]
        created_at: Option<UtcTime>,
        #[serde(flatten)]
        unknown: Unknown,
    },
}

impl From<NamedLsnForm> for NamedLsn {
    fn from(form: NamedLsnForm) -> Self {
        match form {
            NamedLsnForm::Plain(lsn) => {
                NamedLsn { lsn, valid_until: None, created_at: None, unknown: Unknown::new() }
            }
            NamedLsnForm::Whole { lsn, valid_until, created_at, unknown } => {
                NamedLsn { lsn, valid_until, created_at, unknown }
            }
        }
    }
}

/// A 64-bit number as decimal text, since many readers of JSON keep only 53 bits.
mod u64_text {
    use super::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why an index cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum IndexPartError {
    /// It is not JSON of the right shape; the source names line and column.
    #[error("index_part.json cannot be read")]
    Json(#[from] serde_json::Error),
    /// It was written by something newer.
    #[error("index_part.json has {what} {found}; up to {known} is known here")]
    TooNew {
        /// Version of what.
        what: &'static str,
        /// Its number.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// A field contradicts another one.
    #[error("index_part.json: {what} is {found}, expected {expected}")]
    Field {
        /// Which.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
}

impl IndexPart {
    /// An index without layers.
    pub fn new(metadata: TimelineMetadata, palimpsest: Option<Extension>) -> Self {
        IndexPart {
            version: LATEST_VERSION,
            layer_metadata: BTreeMap::new(),
            disk_consistent_lsn: metadata.disk_consistent_lsn,
            metadata,
            deleted_at: None,
            lineage: Lineage::default(),
            last_aux_file_policy: Some(AuxFilePolicy::V2),
            archived_at: None,
            gc_blocking: None,
            import_pgdata: None,
            rel_size_migration: Some(RelSizeMigration::Migrated),
            l2_lsn: None,
            gc_compaction: None,
            marked_invisible_at: None,
            rel_size_migrated_at: None,
            palimpsest,
            unknown: Unknown::new(),
        }
    }

    /// Reads an index and checks what its fields say of each other.
    pub fn from_json(bytes: &[u8]) -> Result<Self, IndexPartError> {
        let index: IndexPart = serde_json::from_slice(bytes)?;
        let too_new = |what, found, known| Err(IndexPartError::TooNew { what, found, known });
        if index.version > LATEST_VERSION {
            return too_new("format version", index.version, LATEST_VERSION);
        }
        if let Some(format) = index.palimpsest.as_ref().map(|ours| ours.format)
            && format > EXTENSION_FORMAT
        {
            return too_new("palimpsest format", format, EXTENSION_FORMAT);
        }
        let lsn = index.metadata.disk_consistent_lsn;
        if lsn != index.disk_consistent_lsn {
            return Err(IndexPartError::Field {
                what: "disk_consistent_lsn",
                found: index.disk_consistent_lsn.to_string(),
                expected: format!("{lsn}, as in metadata_bytes"),
            });
        }
        if !lsn.is_aligned() {
            return Err(IndexPartError::Field {
                what: "disk_consistent_lsn",
                found: lsn.to_string(),
                expected: "a multiple of 8".into(),
            });
        }
        Ok(index)
    }

    /// The object's bytes. Always in the newest format; deterministic.
    pub fn to_json(&self) -> Vec<u8> {
        // A layer of ours takes some 300 bytes; growing a large buffer by doubling would copy it many times.
        let mut bytes = Vec::with_capacity(4096 + 320 * self.layer_metadata.len());
        serde_json::to_writer(&mut bytes, self).expect("an index has only text keys and no failing values");
        bytes
    }

    /// The format version that it was read with.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The layers hold all WAL up to here.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        self.disk_consistent_lsn
    }

    /// Whether the timeline is in the bucket only, because somebody archived it. One that its source left stays readable, whatever `archived_at` says.
    pub fn is_archived(&self) -> bool {
        let why = self.palimpsest.as_ref().and_then(|ours| ours.archived.as_ref());
        self.archived_at.is_some() && why.is_none_or(|why| why.on_request || why.successor.is_none())
    }

    /// Says that the timeline is in the bucket only from now on.
    pub fn archive(&mut self, now: SystemTime) {
        self.archived_at.get_or_insert_with(|| UtcTime::from_system_time(now));
        if let Some(ours) = &mut self.palimpsest {
            let why = ours.archived.get_or_insert_with(|| Archived {
                reason: "it was asked for".into(),
                on_request: true,
                slot_dropped: false,
                successor: None,
                at: None,
                unknown: Unknown::new(),
            });
            why.on_request = true;
        }
    }

    /// Takes that back. What its source left stays so.
    pub fn unarchive(&mut self) {
        self.archived_at = None;
        if let Some(ours) = &mut self.palimpsest {
            ours.archived = ours.archived.take().filter(|why| why.successor.is_some());
            if let Some(why) = &mut ours.archived {
                (why.on_request, why.slot_dropped) = (false, false);
            }
        }
    }

    /// Whether nothing of the tenant may be collected, for this reason.
    pub fn gc_blocked_by(&self, reason: &str) -> bool {
        self.gc_blocking.as_ref().is_some_and(|blocking| blocking.reasons.iter().any(|one| one == reason))
    }

    /// Says that nothing of the tenant may be collected, for this reason.
    pub fn block_gc(&mut self, reason: &str, now: SystemTime) {
        let blocking = self.gc_blocking.get_or_insert_with(|| GcBlocking {
            started_at: UtcTime::from_system_time(now),
            reasons: Vec::new(),
            unknown: Unknown::new(),
        });
        if !blocking.reasons.iter().any(|one| one == reason) {
            blocking.reasons.push(reason.to_owned());
        }
    }

    /// Takes that back; other reasons stay.
    pub fn unblock_gc(&mut self, reason: &str) {
        self.gc_blocking = self.gc_blocking.take().and_then(|mut blocking| {
            blocking.reasons.retain(|one| one != reason);
            (!blocking.reasons.is_empty()).then_some(blocking)
        });
    }

    /// Bytes of all its layers.
    pub fn layer_bytes(&self) -> u64 {
        self.layer_metadata.values().map(|layer| layer.file_size).sum()
    }

    /// Where the timeline ends and comes from.
    pub fn metadata(&self) -> &TimelineMetadata {
        &self.metadata
    }

    /// Changes the metadata, and what the index repeats of it.
    pub fn update_metadata(&mut self, change: impl FnOnce(&mut TimelineMetadata)) {
        change(&mut self.metadata);
        self.disk_consistent_lsn = self.metadata.disk_consistent_lsn;
    }
}

/// The old form of the metadata: 512 bytes, as a JSON array of numbers.
///
/// ```text
/// 0 u32 CRC-32C of bytes 8..size   4 u16 size   6 u16 format, 4 or 3
/// 8 u64 disk-consistent LSN | option u64 previous record | option [16] ancestor | u64 ancestor LSN | u64 gc cutoff
///   u64 initdb LSN | u32 Postgres version (not in format 3, which means 14) | zeros
/// ```
pub mod legacy_metadata {
    use super::{BytesIn, PgMajor, TimelineId, TimelineMetadata, Truncated, Unknown};
    use model::Lsn;

    /// Bytes of the old form.
    pub const SIZE: usize = 512;

    const HEADER: usize = 8;

    /// Why the bytes are not metadata.
    #[derive(Debug, PartialEq, Eq, thiserror::Error)]
    #[allow(missing_docs, reason = "the messages say it")]
    pub enum LegacyMetadataError {
        #[error("metadata bytes are truncated: {0}")]
        Truncated(#[from] Truncated),
        #[error("metadata bytes are damaged: their checksum is {computed:08x}, expected {stored:08x}")]
        Checksum { stored: u32, computed: u32 },
        #[error("{what} of the metadata bytes is {found}, expected {expected}")]
        Field { what: &'static str, found: u64, expected: &'static str },
    }

    /// Reads the old form.
    pub fn decode(bytes: &[u8]) -> Result<TimelineMetadata, LegacyMetadataError> {
        let field = |what, found: u64, expected| Err(LegacyMetadataError::Field { what, found, expected });
        let mut input = BytesIn::new(bytes);
        let (stored, size, format) = (input.u32_be()?, usize::from(input.u16_be()?), input.u16_be()?);
        let Some(body) = bytes.get(HEADER..size) else {
            return field("size", size as u64, "8 to the number of bytes");
        };
        let computed = crc32c::crc32c(body);
        if stored != computed {
            return Err(LegacyMetadataError::Checksum { stored, computed });
        }
        if !matches!(format, 3 | 4) {
            return field("format", format.into(), "3 or 4");
        }
        let mut body = BytesIn::new(body);
        let option = |body: &mut BytesIn<'_>| match body.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            found => {
                Err(LegacyMetadataError::Field { what: "option", found: found.into(), expected: "0 or 1" })
            }
        };
        let disk_consistent_lsn = Lsn(body.u64_be()?);
        let prev_record_lsn = if option(&mut body)? { Some(Lsn(body.u64_be()?)) } else { None };
        let ancestor_timeline = if option(&mut body)? { Some(TimelineId(body.array()?)) } else { None };
        let (ancestor_lsn, latest_gc_cutoff_lsn) = (Lsn(body.u64_be()?), Lsn(body.u64_be()?));
        let initdb_lsn = Lsn(body.u64_be()?);
        let pg_version = if format == 3 {
            PgMajor::V14
        } else {
            let number = body.u32_be()?;
            match PgMajor::try_from(number) {
                Ok(major) => major,
                Err(_) => return field("Postgres version", number.into(), "14 to 18"),
            }
        };
        if body.remaining() > 0 {
            return field("size", size as u64, "just what the fields take");
        }
        Ok(TimelineMetadata {
            disk_consistent_lsn,
            prev_record_lsn,
            ancestor_timeline,
            ancestor_lsn,
            latest_gc_cutoff_lsn,
            initdb_lsn,
            pg_version,
            unknown: Unknown::new(),
        })
    }
}

/// Reads the layers into a list first: they come sorted, and a map built from a sorted list needs few comparisons, where adding a hundred
/// thousand long names one by one spends most of its time on them.
fn layers_in_bulk<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<LayerName, LayerMetadata>, D::Error> {
    struct Layers;
    impl<'de> Visitor<'de> for Layers {
        type Value = BTreeMap<LayerName, LayerMetadata>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map from layer names to their metadata")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut layers = Vec::new();
            while let Some(layer) = map.next_entry()? {
                layers.push(layer);
            }
            Ok(layers.into_iter().collect())
        }
    }
    deserializer.deserialize_map(Layers)
}

/// Reads metadata in its modern form, an object, or in its old one, an array of 512 numbers.
fn either_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TimelineMetadata, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = TimelineMetadata;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("timeline metadata: an object, or an array of 512 bytes")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TimelineMetadata, A::Error> {
            TimelineMetadata::deserialize(MapAccessDeserializer::new(map))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TimelineMetadata, A::Error> {
            let mut bytes = Vec::with_capacity(legacy_metadata::SIZE);
            while let Some(byte) = seq.next_element::<u8>()? {
                if bytes.len() == legacy_metadata::SIZE {
                    return Err(serde::de::Error::custom("metadata has more than 512 bytes"));
                }
                bytes.push(byte);
            }
            legacy_metadata::decode(&bytes).map_err(serde::de::Error::custom)
        }
    }
    deserializer.deserialize_any(Either)
}

/// A time as the index writes it: UTC, `YYYY-MM-DDTHH:MM:SS[.fraction]`, without zone. Kept as text, so that reading and writing lose
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct UtcTime(String);

/// A text that is not `YYYY-MM-DDTHH:MM:SS[.fraction]`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time of the form YYYY-MM-DDTHH:MM:SS[.fraction]")]
pub struct ParseUtcTimeError(String);

impl UtcTime {
    /// To the microsecond.
    pub fn from_system_time(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let micros = since.subsec_micros();
        UtcTime(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}"))
    }

    /// The instant; clamped to 1970 below.
    pub fn to_system_time(&self) -> SystemTime {
        let since = parse_utc(&self.0).expect("the constructors check the text");
        UNIX_EPOCH + since
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for UtcTime {
    type Err = ParseUtcTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_utc(text).map(|_| UtcTime(text.into())).ok_or_else(|| ParseUtcTimeError(text.into()))
    }
}

impl<'de> Deserialize<'de> for UtcTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn parse_utc(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let bytes = whole.as_bytes();
    let shape = bytes.len() == 19
        && bytes.iter().zip(b"0000-00-00T00:00:00").all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            mark => byte == mark,
        });
    if !shape || fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| whole[range].parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let sane =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !sane {
        return None;
    }
    let nanos = fraction.parse::<u64>().ok()? * 10u64.pow(9 - fraction.len() as u32);
    let days = days_from_civil(year, month, day);
    Some(Duration::new(days * 86_400 + hour * 3600 + minute * 60 + second, nanos as u32))
}

/// Days of 400 years.
const DAYS_PER_ERA: u64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: u64 = 719_468;

/// Days since 1970-01-01 in the Gregorian calendar; 0 for days before.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March: the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.saturating_sub(1), month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    days.saturating_sub(EPOCH_DAYS)
}

/// Year, month and day of a day since 1970-01-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + EPOCH_DAYS;
    let (era, day) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEON: &str = r#"{"version":15,
        "layer_metadata":{
          "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000002000000":
             {"file_size":8036352,"generation":1},
          "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000002000001-0000000012000001":
             {"file_size":268443648,"generation":3,"shard":"0104"}},
        "disk_consistent_lsn":"0/12000000",
        "metadata_bytes":{"disk_consistent_lsn":"0/12000000","prev_record_lsn":"0/11FFFF68","ancestor_timeline":null,
          "ancestor_lsn":"0/0","latest_gc_cutoff_lsn":"0/2000000","initdb_lsn":"0/2000000","pg_version":17},
        "lineage":{}}"#;

    fn extension() -> Extension {
        Extension {
            format: EXTENSION_FORMAT,
            sequence: 7,
            wal_flavour: WalFlavour::Vanilla,
            not_portable: vec![NotPortable::VanillaWal, NotPortable::Other("moon_phase".into())],
            system_identifier: u64::MAX - 1,
            wal_segment_size: WalSegmentSize::DEFAULT,
            data_checksums: true,
            tli_history: vec![TliStart { tli: Tli(1), from: Lsn(0x2000028) }],
            readable_from: Lsn(0x2000100),
            wal_objects: vec![WalObjectEntry {
                tli: Tli(1),
                start: Lsn(0x12000000),
                end: Lsn(0x12001000),
                generation: Generation(3),
                size: 517,
            }],
            source: Some(Source {
                paused: true,
                conninfo: "host=db user=replicator".into(),
                slot: Some("palimpsest".into()),
                unknown: Unknown::new(),
            }),
            import: None,
            restores: vec![Restore {
                nonce: "f00".into(),
                lsn: Lsn(0x3000000),
                tli: Tli(2),
                followed: false,
            }],
            archived: None,
            leases: vec![Lease { lsn: Lsn(0x3000000), valid_until: "2026-05-01T00:00:00".parse().unwrap() }],
            kept_lsns: Some(vec![Lsn(0x100_0000), Lsn(0x100_0028)]),
            named_lsns: BTreeMap::from([(
                "before-the-accident".into(),
                NamedLsn {
                    lsn: Lsn(0x3000000),
                    valid_until: Some("2026-05-01T00:00:00".parse().unwrap()),
                    created_at: Some("2026-04-01T00:00:00".parse().unwrap()),
                    unknown: Unknown::new(),
                },
            )]),
            unknown: Unknown::new(),
        }
    }

    #[test]
    fn a_neon_index_is_read_and_written_without_loss() {
        let index = IndexPart::from_json(NEON.as_bytes()).unwrap();
        assert_eq!(index.disk_consistent_lsn(), Lsn(0x12000000));
        assert_eq!(index.metadata().pg_version, PgMajor::V17);
        assert_eq!(index.palimpsest, None);
        let delta = index.layer_metadata.iter().find(|(name, _)| name.is_delta()).unwrap().1;
        assert_eq!(delta.shard, ShardIndex { number: 1, count: 4 });
        assert_eq!(delta.generation, Some(Generation(3)));
        let written: serde_json::Value = serde_json::from_slice(&index.to_json()).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(NEON).unwrap());
    }

    #[test]
    fn unknown_fields_are_kept_at_every_level() {
        let mut json: serde_json::Value = serde_json::from_str(NEON).unwrap();
        let new = serde_json::json!({"deep": [1, 2.5, "x", null]});
        json["lineage"]["new"] = new.clone();
        json["metadata_bytes"]["new"] = new.clone();
        json["gc_compaction"] = serde_json::json!({"last_completed_lsn": "0/10", "new": new});
        json["gc_blocking"] =
            serde_json::json!({"started_at": "2024-07-19T09:00:00.123", "reasons": ["Manual"], "new": new});
        json["palimpsest"] = serde_json::to_value(extension()).unwrap();
        json["palimpsest"]["new"] = new.clone();
        json["palimpsest"]["source"]["new"] = new.clone();
        for (_, layer) in json["layer_metadata"].as_object_mut().unwrap() {
            layer["new"] = new.clone();
        }
        json["import_pgdata"] = serde_json::json!({"V1": {"InProgress": {"idempotency_key": "k"}}});
        json["new"] = new;
        let index = IndexPart::from_json(&serde_json::to_vec(&json).unwrap()).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&index.to_json()).unwrap();
        assert_eq!(written, json);
    }

    #[test]
    fn an_unknown_number_does_not_drift_from_one_rewriting_to_the_next() {
        let mut json =
            NEON.replace("\"lineage\":{}", "\"lineage\":{\"new\":[3.5555555555555547e+76,0.1,-1e-300]}");
        for _ in 0..3 {
            let written = IndexPart::from_json(json.as_bytes()).unwrap().to_json();
            assert!(String::from_utf8_lossy(&written).contains("[3.5555555555555547e+76,0.1,-1e-300]"));
            json = String::from_utf8(written).unwrap();
        }
    }

    #[test]
    fn our_part_round_trips() {
        let mut index = IndexPart::from_json(NEON.as_bytes()).unwrap();
        index.palimpsest = Some(extension());
        let name = index.layer_metadata.keys().next().unwrap().clone();
        let layer = index.layer_metadata.get_mut(&name).unwrap();
        assert!(layer.layout(&name).is_none());
        layer.palimpsest = Some(LayerDetails {
            index_start: 900,
            index_root: 80,
            checksums_start: Some(899),
            crc32c: 0xDEAD_BEEF,
            commits: Some((PgTimestamp(5), PgTimestamp(9))),
            trimmed_for: None,
        });
        let layout = layer.layout(&name).unwrap().unwrap();
        assert_eq!(layout.checksums().unwrap().covered(), 979);
        assert_eq!(IndexPart::from_json(&index.to_json()).unwrap(), index);
    }

    #[test]
    fn collection_is_blocked_until_the_last_reason_is_gone() {
        let mut index = IndexPart::from_json(NEON.as_bytes()).unwrap();
        index.block_gc(DETACH_ANCESTOR, UNIX_EPOCH);
        index.block_gc("Manual", UNIX_EPOCH + Duration::from_secs(9));
        index.block_gc(DETACH_ANCESTOR, UNIX_EPOCH);
        assert_eq!(index.gc_blocking.as_ref().unwrap().reasons, [DETACH_ANCESTOR, "Manual"]);
        index.unblock_gc(DETACH_ANCESTOR);
        assert!(index.gc_blocked_by("Manual") && !index.gc_blocked_by(DETACH_ANCESTOR));
        index.unblock_gc("Manual");
        assert_eq!(index.gc_blocking, None);
    }

    #[test]
    fn earlier_ancestors_are_remembered_up_to_a_hundred() {
        let mut lineage = Lineage::default();
        for n in 0..=100u8 {
            assert!(!lineage.reparenting_history_truncated);
            lineage.moved_from(TimelineId([n; 16]));
        }
        assert!(lineage.reparenting_history_truncated);
        assert_eq!(
            (lineage.reparenting_history.len(), lineage.reparenting_history[0]),
            (100, TimelineId([1; 16]))
        );
    }

    #[test]
    fn what_its_source_left_is_archived_only_when_somebody_asks_for_it() {
        let mut index = IndexPart::from_json(NEON.as_bytes()).unwrap();
        let at = UNIX_EPOCH + Duration::from_secs(1 << 30);
        index.archive(at);
        assert!(index.is_archived());
        index.unarchive();
        assert!(!index.is_archived() && index.archived_at.is_none());
        let left = Archived {
            reason: "left".into(),
            on_request: false,
            slot_dropped: false,
            successor: Some(TimelineId([1; 16])),
            at: Some(Lsn(8)),
            unknown: Unknown::new(),
        };
        index.palimpsest = Some(Extension { archived: Some(left.clone()), ..extension() });
        // As it was once written.
        index.archived_at = Some(UtcTime::from_system_time(at));
        assert!(!index.is_archived());
        index.archive(at);
        assert!(index.is_archived());
        assert_eq!(IndexPart::from_json(&index.to_json()).unwrap(), index);
        index.unarchive();
        assert_eq!((index.is_archived(), &index.palimpsest.unwrap().archived), (false, &Some(left)));
        assert_eq!(index.archived_at, None);
    }

    #[test]
    fn a_named_lsn_of_the_old_form_is_understood_and_written_in_the_new_one() {
        let mut json: serde_json::Value = serde_json::from_str(NEON).unwrap();
        json["palimpsest"] = serde_json::to_value(extension()).unwrap();
        json["palimpsest"]["named_lsns"] =
            serde_json::json!({"old": "0/3000000", "new": {"lsn": "0/3000008", "later": [1]}});
        let index = IndexPart::from_json(&serde_json::to_vec(&json).unwrap()).unwrap();
        let named = &index.palimpsest.as_ref().unwrap().named_lsns;
        assert_eq!((named["old"].lsn, &named["old"].created_at), (Lsn(0x3000000), &None));
        let written: serde_json::Value = serde_json::from_slice(&index.to_json()).unwrap();
        assert_eq!(
            written["palimpsest"]["named_lsns"],
            serde_json::json!({"old": {"lsn": "0/3000000"}, "new": {"lsn": "0/3000008", "later": [1]}})
        );
    }

    #[test]
    fn metadata_of_the_old_form_is_understood() {
        let body = concat!(
            "c817765000360004",
            "0000000012000000",
            "010000000011ffff68",
            "00",
            "0000000000000000",
            "0000000002000000",
            "0000000002000000",
            "00000011"
        );
        let mut bytes = hex::decode(body).unwrap();
        bytes.resize(512, 0);
        let modern = IndexPart::from_json(NEON.as_bytes()).unwrap();
        assert_eq!(legacy_metadata::decode(&bytes).as_ref(), Ok(modern.metadata()));

        let mut json: serde_json::Value = serde_json::from_str(NEON).unwrap();
        json.as_object_mut().unwrap().remove("metadata_bytes");
        json["metadata"] = serde_json::to_value(&bytes).unwrap();
        json["version"] = 4.into();
        let index = IndexPart::from_json(&serde_json::to_vec(&json).unwrap()).unwrap();
        assert_eq!((index.version(), index.metadata()), (4, modern.metadata()));
        assert_eq!(index.to_json(), modern.to_json());

        for at in 0..0x36 {
            bytes[at] ^= 1;
            assert!(legacy_metadata::decode(&bytes).is_err(), "byte {at}");
            bytes[at] ^= 1;
        }
        assert!(legacy_metadata::decode(&bytes[..40]).is_err());
    }

    #[test]
    fn what_is_newer_or_contradicts_itself_is_refused() {
        let edit = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut json: serde_json::Value = serde_json::from_str(NEON).unwrap();
            change(&mut json);
            IndexPart::from_json(&serde_json::to_vec(&json).unwrap())
        };
        assert!(edit(&|_| {}).is_ok());
        assert!(matches!(edit(&|json| json["version"] = 16.into()), Err(IndexPartError::TooNew { .. })));
        assert!(matches!(
            edit(&|json| json["disk_consistent_lsn"] = "0/12000008".into()),
            Err(IndexPartError::Field { .. })
        ));
        let newer = Extension { format: 2, ..extension() };
        let newer = serde_json::to_value(newer).unwrap();
        assert!(matches!(
            edit(&|json| json["palimpsest"] = newer.clone()),
            Err(IndexPartError::TooNew { what: "palimpsest format", .. })
        ));
        assert!(matches!(IndexPart::from_json(b"{"), Err(IndexPartError::Json(_))));
        assert!(matches!(
            edit(&|json| json["metadata_bytes"]["pg_version"] = 13.into()),
            Err(IndexPartError::Json(_))
        ));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let time = |text: &str| text.parse::<UtcTime>().map(|time| time.to_system_time());
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(time("1970-01-01T00:00:00"), Ok(at(0)));
        assert_eq!(time("2000-02-29T12:34:56"), Ok(at(951_827_696)));
        assert_eq!(time("2024-07-19T09:00:00.25"), Ok(at(1_721_379_600) + Duration::from_millis(250)));
        for bad in ["", "2024-07-19", "2024-07-19T09:00:00Z", "2024-13-19T09:00:00", "2024-07-19T09:00:00."] {
            assert!(time(bad).is_err(), "{bad} was accepted");
        }
    }

    proptest! {
        #[test]
        fn times_round_trip(micros in 0u64..250_000_000_000_000_000) {
            let time = UNIX_EPOCH + Duration::from_micros(micros);
            prop_assert_eq!(UtcTime::from_system_time(time).to_system_time(), time);
        }

        #[test]
        fn any_bytes_are_legacy_metadata_or_an_error(bytes: Vec<u8>) {
            let _ = legacy_metadata::decode(&bytes);
        }
    }
}
