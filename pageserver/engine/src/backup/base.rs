//! Neon's base backup: what a compute that reads pages from here starts from.
//!
//! Order, as `compute_ctl` and Neon's own server have it: directories, settings, SLRU segments, databases, prepared transactions, replication
//! origins, `neon.signal` and `zenith.signal`, `global/pg_control`, one WAL segment without records, the terminator. A stream that broke off
//! has no terminator.
//!
//! Differences, where history is of a kind that Neon's own cannot be: the WAL segment has the cluster's size and the name of its Postgres
//! timeline, and the segments of `pg_commit_ts` are there when the cluster tracks commit timestamps, since their pages cannot be asked for.
//! Timelines here have no replication slots and no other auxiliary files, so a backup for a replica is like any other.

use std::collections::BTreeMap;

use bytes::Bytes;
use codec::control::ClusterState;
use model::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use model::{Fork, Key, Lsn, PgMajor, RelTag, SlruKind, Tli};

use super::base_wal::EmptyWal;
use super::cluster::{BackupError, Basis, ClusterTar, TarSink, directories, forks, required};
use super::settings;
use crate::as_of::AsOf;

/// What is known of the record before the backup's LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrevLsn {
    /// It begins here.
    At(Lsn),
    /// The LSN is where a branch begins: the first record of the branch may name none.
    None,
    /// Not known: a compute may read, not write.
    Unknown,
}

impl PrevLsn {
    /// The content of `neon.signal`.
    fn signal(self) -> String {
        match self {
            PrevLsn::At(lsn) => format!("PREV LSN: {lsn}"),
            PrevLsn::None => "PREV LSN: none".into(),
            PrevLsn::Unknown => "PREV LSN: invalid".into(),
        }
    }
}

/// What the values of the timeline do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// The Postgres timeline of the view's LSN.
    pub tli: Tli,
    /// The record before it.
    pub prev: PrevLsn,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseBackupReport {
    /// Files.
    pub files: u64,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// Streams what a compute starts from as of the view's LSN to `out`. When this fails, what was sent lacks the terminator.
pub async fn write(
    view: &dyn AsOf,
    options: BaseBackupOptions,
    out: &mut dyn TarSink,
) -> Result<BaseBackupReport, BackupError> {
    let Basis { mut control, mut checkpoint, databases } = Basis::load(view).await?;
    let lsn = view.lsn();
    let segment_size = control.wal_segment_size;
    let mut cluster = ClusterTar::new(view, &control, 0o755, out);
    let databases = wanted(view, control.pg, databases).await?;

    for directory in directories(control.pg) {
        cluster.directory(directory).await?;
    }
    cluster.file("pg_hba.conf", Bytes::from_static(settings::pg_hba_conf().as_bytes())).await?;
    cluster.file("pg_ident.conf", Bytes::new()).await?;
    cluster.file("postgresql.auto.conf", Bytes::new()).await?;
    for kind in SlruKind::ALL {
        cluster.slru(kind, &checkpoint, &control).await?;
    }
    for database in databases {
        database.write(&mut cluster).await?;
    }
    cluster.prepared_transactions().await?;
    cluster.replication_origins().await?;
    for signal in ["neon.signal", "zenith.signal"] {
        cluster.file(signal, options.prev.signal().into()).await?;
    }

    checkpoint.redo = lsn.normalized(segment_size.bytes());
    checkpoint.tli = options.tli;
    checkpoint.prev_tli = options.tli;
    control.state = ClusterState::ShutDown;
    control.checkpoint_at = Lsn::INVALID;
    control.checkpoint = checkpoint.encode(control.pg);
    // What a base backup of the source was taken amid is long over at the LSN.
    control.min_recovery_point = Lsn::INVALID;
    control.min_recovery_tli = Tli(0);
    control.backup_start = Lsn::INVALID;
    control.backup_end = Lsn::INVALID;
    control.backup_end_required = false;
    cluster.file("global/pg_control", control.encode().into()).await?;
    let wal = EmptyWal {
        pg: control.pg,
        system_identifier: control.system_identifier,
        segment_size,
        tli: options.tli,
        lsn,
    };
    cluster
        .wal_segment(&wal.file_name(), wal.segment(), segment_size.bytes(), |start| wal.page(start))
        .await?;
    let (files, bytes) = cluster.finish().await?;
    Ok(BaseBackupReport { files, bytes })
}

/// A database that the backup has.
struct Database {
    spc: u32,
    db: u32,
    map: Option<Bytes>,
    /// Init forks of unlogged relations.
    unlogged: Vec<RelTag>,
}

/// Databases that have anything. One in a tablespace of the user's cannot be had, which is found out before the first byte goes.
async fn wanted(
    view: &dyn AsOf,
    pg: PgMajor,
    databases: BTreeMap<(u32, u32), bool>,
) -> Result<Vec<Database>, BackupError> {
    let mut wanted = Vec::new();
    for ((spc, db), has_map) in databases {
        let mut unlogged = forks(view, spc, db).await?;
        if !has_map && unlogged.is_empty() && spc != GLOBAL_TABLESPACE {
            continue;
        }
        if !matches!(spc, DEFAULT_TABLESPACE | GLOBAL_TABLESPACE) {
            return Err(BackupError::UserTablespace { spc, db });
        }
        unlogged.retain(|rel| rel.fork == Fork::Init);
        let map = if has_map { Some(relation_map(view, pg, spc, db).await?) } else { None };
        wanted.push(Database { spc, db, map, unlogged });
    }
    Ok(wanted)
}

async fn relation_map(view: &dyn AsOf, pg: PgMajor, spc: u32, db: u32) -> Result<Bytes, BackupError> {
    let key = Key::relation_map(spc, db);
    let map = required(view, key).await?;
    if map.len() == codec::relmap::size(pg) {
        Ok(map)
    } else {
        Err(BackupError::BadValue { key, length: map.len(), what: "a relation map of its major" })
    }
}

impl Database {
    async fn write(self, cluster: &mut ClusterTar<'_>) -> Result<(), BackupError> {
        let version = version_file(cluster.pg);
        let directory = if self.spc == GLOBAL_TABLESPACE {
            cluster.file("PG_VERSION", version.into()).await?;
            "global".to_owned()
        } else {
            let directory = format!("base/{}", self.db);
            cluster.directory(&directory).await?;
            if self.map.is_some() {
                cluster.file(&format!("{directory}/PG_VERSION"), version.into()).await?;
            }
            directory
        };
        if let Some(map) = self.map {
            cluster.file(&format!("{directory}/pg_filenode.map"), map).await?;
        }
        cluster.relations(&directory, self.unlogged).await
    }
}

/// `PG_VERSION`, in a compute of 14 and 15 without the newline that `initdb` writes.
fn version_file(pg: PgMajor) -> String {
    if pg <= PgMajor::V15 { pg.to_string() } else { format!("{pg}\n") }
}
