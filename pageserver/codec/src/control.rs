//! `global/pg_control` of Postgres 14 to 18 (`ControlFileData`, x86-64 layout): read, checked, changed, written.
//!
//! ```text
//!   0 u64 system identifier    8 u32 format version      12 u32 catalog version    16 u32 state
//!  24 i64 time                32 u64 checkpoint         40 CheckPoint, 88 bytes   128 u64 fake LSN of unlogged relations
//! 136 u64 min recovery point 144 u32 its timeline      152 u64 backup start      160 u64 backup end
//! 168 u8 backup end required 172 u32 wal_level         176 u8 wal_log_hints      180 u32 max_connections
//! 184 u32 max_worker_proc.   188 u32 max_wal_senders   192 u32 max_prepared      196 u32 max_locks_per_xact
//! 200 u8 track_commit_ts     204 u32 max align         208 f64 1234567.0         216 u32 block size
//! 220 u32 relation segment   224 u32 WAL block size    228 u32 WAL segment size  232 u32 name length
//! 236 u32 index keys         240 u32 TOAST chunk       244 u32 LO chunk          248 u8 float8 by value
//! 252 u32 checksum version   256 [18: u8 char signed]  nonce, 32 bytes           288 (18: 292) u32 CRC-32C
//! ```
//!
//! The file is 8,192 bytes, zero beyond the CRC. All numbers are little-endian.

use std::fmt;

use model::{Lsn, PgMajor, RELATION_SEGMENT_BLOCKS, Tli, WalSegmentSize};

use crate::bytes_in::{BytesIn, Truncated};
use crate::checkpoint::CHECKPOINT_SIZE;

/// Bytes of the file.
pub const CONTROL_FILE_SIZE: usize = 8192;

const CHECKPOINT_AT: usize = 40;
const TAIL_AT: usize = 256;
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// What `pg_control` says of the cluster (`DBState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "Postgres' own names")]
pub enum ClusterState {
    Startup = 0,
    ShutDown = 1,
    ShutDownInRecovery = 2,
    ShuttingDown = 3,
    InCrashRecovery = 4,
    InArchiveRecovery = 5,
    InProduction = 6,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<ClusterState> {
        use ClusterState as S;
        [
            S::Startup,
            S::ShutDown,
            S::ShutDownInRecovery,
            S::ShuttingDown,
            S::InCrashRecovery,
            S::InArchiveRecovery,
            S::InProduction,
        ]
        .into_iter()
        .find(|state| *state as u32 == number)
    }
}

impl fmt::Display for ClusterState {
    /// In the words of `pg_controldata`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClusterState::Startup => "starting up",
            ClusterState::ShutDown => "shut down",
            ClusterState::ShutDownInRecovery => "shut down in recovery",
            ClusterState::ShuttingDown => "shutting down",
            ClusterState::InCrashRecovery => "in crash recovery",
            ClusterState::InArchiveRecovery => "in archive recovery",
            ClusterState::InProduction => "in production",
        })
    }
}

/// The control file. What every supported cluster has alike (block sizes, alignment, number formats) is checked and not kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// Which major wrote it.
    pub pg: PgMajor,
    /// Names the cluster; chosen at `initdb`.
    pub system_identifier: u64,
    /// `CATALOG_VERSION_NO`; part of the names of tablespace directories.
    pub catalog_version: u32,
    /// How the cluster was left.
    pub state: ClusterState,
    /// When the file was written, in seconds since 1970.
    pub time: i64,
    /// Where the last checkpoint record begins.
    pub checkpoint_at: Lsn,
    /// The last checkpoint record's content, as it is in the file.
    pub checkpoint: [u8; CHECKPOINT_SIZE],
    /// Counts for unlogged relations.
    pub unlogged_lsn: Lsn,
    /// Recovery must reach this before the cluster is consistent; 0 when it is.
    pub min_recovery_point: Lsn,
    /// On which Postgres timeline.
    pub min_recovery_tli: Tli,
    /// Set while a restored base backup is recovered.
    pub backup_start: Lsn,
    /// Where that backup ended.
    pub backup_end: Lsn,
    /// Whether recovery must see the backup's end record.
    pub backup_end_required: bool,
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: u32,
    /// Setting of the primary.
    pub wal_log_hints: bool,
    /// Setting of the primary.
    pub max_connections: u32,
    /// Setting of the primary.
    pub max_worker_processes: u32,
    /// Setting of the primary.
    pub max_wal_senders: u32,
    /// Setting of the primary.
    pub max_prepared_xacts: u32,
    /// Setting of the primary.
    pub max_locks_per_xact: u32,
    /// Setting of the primary.
    pub track_commit_timestamp: bool,
    /// Chosen at `initdb`.
    pub wal_segment_size: WalSegmentSize,
    /// 0 when pages carry no checksums.
    pub data_checksum_version: u32,
    /// Bytes from 216 to 256 that are neither checked nor named here keep their values through this.
    fixed: [u8; TAIL_AT - FIXED_AT],
    /// Bytes 256 up to the CRC: the nonce, and from 18 on whether `char` is signed.
    tail: Vec<u8>,
}

const FIXED_AT: usize = 204;

/// Why bytes are not a control file that we can use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ControlFileError {
    #[error("pg_control is too short")]
    Truncated(#[from] Truncated),
    #[error(
        "pg_control has format {format} and catalog {catalog}: no release of Postgres 14 to 18 writes that"
    )]
    UnknownVersion { format: u32, catalog: u32 },
    #[error("pg_control's CRC is {stored:#010x} but its content has {computed:#010x}")]
    Crc { stored: u32, computed: u32 },
    #[error("pg_control says {what} = {found}, only {expected} is supported")]
    Unsupported { what: &'static str, found: u64, expected: u64 },
    #[error("pg_control has an unknown cluster state {0}")]
    UnknownState(u32),
    #[error("pg_control's {what} at offset {at} is {found}, neither 0 nor 1")]
    NotABool { what: &'static str, at: usize, found: u8 },
    #[error(transparent)]
    WalSegmentSize(#[from] model::InvalidWalSegmentSize),
}

/// `PG_CONTROL_VERSION` of a major.
pub fn format_version(pg: PgMajor) -> u32 {
    match pg {
        PgMajor::V14 | PgMajor::V15 | PgMajor::V16 => 1300,
        PgMajor::V17 => 1700,
        PgMajor::V18 => 1800,
    }
}

/// `CATALOG_VERSION_NO` of a major's releases; it never changes within a major.
pub fn catalog_version(pg: PgMajor) -> u32 {
    match pg {
        PgMajor::V14 => 202_107_181,
        PgMajor::V15 => 202_209_061,
        PgMajor::V16 => 202_307_071,
        PgMajor::V17 => 202_406_281,
        PgMajor::V18 => 202_506_291,
    }
}

fn crc_at(pg: PgMajor) -> usize {
    if pg == PgMajor::V18 { 292 } else { 288 }
}

/// The name of the directory that a major makes in every tablespace.
pub fn tablespace_version_directory(pg: PgMajor) -> String {
    format!("PG_{pg}_{}", catalog_version(pg))
}

impl ControlFile {
    /// Of a cluster in production of which nothing else is known: its last checkpoint and all settings are zero. For clusters that no `initdb` made.
    pub fn new(pg: PgMajor, system_identifier: u64, wal_segment_size: WalSegmentSize) -> ControlFile {
        let mut fixed = [0; TAIL_AT - FIXED_AT];
        let mut put = |at: usize, bytes: &[u8]| fixed[at - FIXED_AT..][..bytes.len()].copy_from_slice(bytes);
        put(204, &8u32.to_le_bytes());
        put(208, &FLOAT_FORMAT.to_le_bytes());
        put(216, &8192u32.to_le_bytes());
        put(220, &RELATION_SEGMENT_BLOCKS.to_le_bytes());
        put(224, &8192u32.to_le_bytes());
        put(228, &(wal_segment_size.bytes() as u32).to_le_bytes());
        ControlFile {
            pg,
            system_identifier,
            catalog_version: catalog_version(pg),
            state: ClusterState::InProduction,
            time: 0,
            checkpoint_at: Lsn(0),
            checkpoint: [0; CHECKPOINT_SIZE],
            unlogged_lsn: Lsn(0),
            min_recovery_point: Lsn(0),
            min_recovery_tli: Tli(0),
            backup_start: Lsn(0),
            backup_end: Lsn(0),
            backup_end_required: false,
            wal_level: 0,
            wal_log_hints: false,
            max_connections: 0,
            max_worker_processes: 0,
            max_wal_senders: 0,
            max_prepared_xacts: 0,
            max_locks_per_xact: 0,
            track_commit_timestamp: false,
            wal_segment_size,
            data_checksum_version: 0,
            fixed,
            tail: vec![0; crc_at(pg) - TAIL_AT],
        }
    }

    /// Reads the file. Version and CRC are checked before anything else is believed.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
        let mut input = BytesIn::new(bytes);
        let system_identifier = input.u64_le()?;
        let (format, catalog) = (input.u32_le()?, input.u32_le()?);
        let pg = PgMajor::ALL
            .into_iter()
            .find(|pg| format_version(*pg) == format && catalog_version(*pg) == catalog)
            .ok_or(ControlFileError::UnknownVersion { format, catalog })?;
        let covered = BytesIn::new(bytes).take(crc_at(pg))?;
        let mut end = BytesIn::new(bytes);
        end.skip(crc_at(pg))?;
        let (stored, computed) = (end.u32_le()?, crc32c::crc32c(covered));
        if stored != computed {
            return Err(ControlFileError::Crc { stored, computed });
        }
        let fields = Fields { bytes: covered };
        for (what, at, expected) in [
            ("maximum alignment", 204, 8),
            ("block size", 216, 8192),
            ("blocks per relation segment", 220, u64::from(RELATION_SEGMENT_BLOCKS)),
            ("WAL block size", 224, 8192),
        ] {
            let found = u64::from(fields.u32(at));
            if found != expected {
                return Err(ControlFileError::Unsupported { what, found, expected });
            }
        }
        let float = fields.u64(208);
        if float != FLOAT_FORMAT.to_bits() {
            let expected = FLOAT_FORMAT.to_bits();
            return Err(ControlFileError::Unsupported { what: "float format", found: float, expected });
        }
        let state = fields.u32(16);
        Ok(ControlFile {
            pg,
            system_identifier,
            catalog_version: catalog,
            state: ClusterState::from_number(state).ok_or(ControlFileError::UnknownState(state))?,
            time: fields.u64(24) as i64,
            checkpoint_at: Lsn(fields.u64(32)),
            checkpoint: fields.array(CHECKPOINT_AT),
            unlogged_lsn: Lsn(fields.u64(128)),
            min_recovery_point: Lsn(fields.u64(136)),
            min_recovery_tli: Tli(fields.u32(144)),
            backup_start: Lsn(fields.u64(152)),
            backup_end: Lsn(fields.u64(160)),
            backup_end_required: fields.bool("backup end required", 168)?,
            wal_level: fields.u32(172),
            wal_log_hints: fields.bool("wal_log_hints", 176)?,
            max_connections: fields.u32(180),
            max_worker_processes: fields.u32(184),
            max_wal_senders: fields.u32(188),
            max_prepared_xacts: fields.u32(192),
            max_locks_per_xact: fields.u32(196),
            track_commit_timestamp: fields.bool("track_commit_timestamp", 200)?,
            wal_segment_size: WalSegmentSize::new(u64::from(fields.u32(228)))?,
            data_checksum_version: fields.u32(252),
            fixed: fields.array(FIXED_AT),
            tail: covered[TAIL_AT..].to_vec(),
        })
    }

    /// The file's 8,192 bytes, with a fresh CRC.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; CONTROL_FILE_SIZE];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.system_identifier.to_le_bytes());
        put(8, &format_version(self.pg).to_le_bytes());
        put(12, &self.catalog_version.to_le_bytes());
        put(16, &(self.state as u32).to_le_bytes());
        put(24, &self.time.to_le_bytes());
        put(32, &self.checkpoint_at.0.to_le_bytes());
        put(CHECKPOINT_AT, &self.checkpoint);
        put(128, &self.unlogged_lsn.0.to_le_bytes());
        put(136, &self.min_recovery_point.0.to_le_bytes());
        put(144, &self.min_recovery_tli.0.to_le_bytes());
        put(152, &self.backup_start.0.to_le_bytes());
        put(160, &self.backup_end.0.to_le_bytes());
        put(168, &[u8::from(self.backup_end_required)]);
        put(172, &self.wal_level.to_le_bytes());
        put(176, &[u8::from(self.wal_log_hints)]);
        put(180, &self.max_connections.to_le_bytes());
        put(184, &self.max_worker_processes.to_le_bytes());
        put(188, &self.max_wal_senders.to_le_bytes());
        put(192, &self.max_prepared_xacts.to_le_bytes());
        put(196, &self.max_locks_per_xact.to_le_bytes());
        put(200, &[u8::from(self.track_commit_timestamp)]);
        put(FIXED_AT, &self.fixed);
        put(228, &(self.wal_segment_size.bytes() as u32).to_le_bytes());
        put(252, &self.data_checksum_version.to_le_bytes());
        put(TAIL_AT, &self.tail);
        let crc = crc32c::crc32c(&out[..crc_at(self.pg)]);
        out[crc_at(self.pg)..][..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Where redo from the last checkpoint begins: its record itself after a clean shutdown.
    pub fn redo(&self) -> Lsn {
        Lsn(Fields { bytes: &self.checkpoint }.u64(0))
    }

    /// The Postgres timeline of the last checkpoint.
    pub fn tli(&self) -> Tli {
        Tli(Fields { bytes: &self.checkpoint }.u32(8))
    }

    /// Whether pages carry checksums.
    pub fn has_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }

    /// 18: whether `char` is signed where the cluster was made; `None` in older majors, which do not say.
    pub fn default_char_signed(&self) -> Option<bool> {
        (self.pg == PgMajor::V18).then(|| self.tail.first() == Some(&1))
    }
}

/// Fields of a slice that was checked to be long enough for all of them.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        *self.bytes[at..].first_chunk().expect("the slice reaches to the CRC, past every field")
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn bool(&self, what: &'static str, at: usize) -> Result<bool, ControlFileError> {
        match self.bytes[at] {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(ControlFileError::NotABool { what, at, found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No field is zero.
    fn sample(pg: PgMajor) -> ControlFile {
        let segment = WalSegmentSize::new(1 << 20).unwrap();
        let mut control = ControlFile {
            time: 1_795_265_530,
            checkpoint_at: Lsn(0x1741500),
            checkpoint: std::array::from_fn(|i| i as u8),
            unlogged_lsn: Lsn(1000),
            min_recovery_point: Lsn(0x17),
            min_recovery_tli: Tli(3),
            backup_start: Lsn(5),
            backup_end: Lsn(6),
            backup_end_required: true,
            wal_level: 2,
            wal_log_hints: true,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_xacts: 7,
            max_locks_per_xact: 64,
            track_commit_timestamp: true,
            data_checksum_version: 1,
            tail: vec![1; crc_at(pg) - TAIL_AT],
            ..ControlFile::new(pg, 7_710_606_737_096_929_117, segment)
        };
        control.fixed[252 - FIXED_AT] = 1; // as in the field of its own
        control
    }

    #[test]
    fn every_field_survives_a_round_trip_in_every_major() {
        for pg in PgMajor::ALL {
            let control = sample(pg);
            let bytes = control.encode();
            assert_eq!(bytes.len(), CONTROL_FILE_SIZE);
            assert_eq!(ControlFile::parse(&bytes), Ok(control));
        }
    }

    #[test]
    fn no_flipped_bit_up_to_the_crc_is_believed() {
        let bytes = sample(PgMajor::V18).encode();
        for bit in 0..296 * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ControlFile::parse(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_short_file_is_an_error_at_every_length() {
        let bytes = sample(PgMajor::V15).encode();
        for length in 0..292 {
            assert!(ControlFile::parse(&bytes[..length]).is_err(), "{length}");
        }
        assert!(ControlFile::parse(&bytes[..292]).is_ok());
    }

    #[test]
    fn a_cluster_with_another_block_size_is_refused_by_name() {
        let mut bytes = sample(PgMajor::V16).encode();
        bytes[216..220].copy_from_slice(&4096u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        let error = ControlFile::parse(&bytes).unwrap_err().to_string();
        assert_eq!(error, "pg_control says block size = 4096, only 8192 is supported");
    }
}
