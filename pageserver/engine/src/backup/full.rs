//! The tar, file after file.
//!
//! Order: directories, settings, transaction state, relations by database, prepared transactions, WAL, and `global/pg_control` last, then the
//! terminator. A stream that broke off has neither: it does not unpack to something that starts.

use std::collections::BTreeSet;

use bytes::Bytes;
use codec::control::{ClusterState, ControlFile, tablespace_version_directory};
use codec::history::TimelineHistory;
use codec::tablespaces::Tablespaces;
use model::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use model::{Fork, Key, Lsn, PgMajor, RelLocator, RelTag, SlruKind, Tli};

use super::cluster::{BackupError, Basis, ClusterTar, TarSink, directories, forks, required};
use super::full_wal::StartingWal;
use super::settings;
use crate::as_of::AsOf;

/// Where 14, which cannot open a tablespace that is a plain directory, finds tablespaces: `pg_tblspc/<oid>` is a link into it.
const TABLESPACES_OF_14: &str = "tablespaces";

/// How the restored cluster is to be.
#[derive(Clone, Debug)]
pub struct FullBackupOptions {
    /// The history of the Postgres timeline that the view's LSN lies on.
    pub history: TimelineHistory,
    /// The Postgres timeline of the restored cluster; by default the one after the history's.
    pub tli: Option<Tli>,
    /// Tells this restore from others of the same LSN: stands in the history file.
    pub nonce: [u8; 16],
    /// Where the record before the view's LSN begins, if that is known.
    pub prev_lsn: Option<Lsn>,
    /// `wal_keep_size` of the restored cluster, MiB.
    pub wal_keep_mib: u32,
    /// Added to the end of `postgresql.conf`.
    pub settings: String,
}

impl FullBackupOptions {
    /// The usual ones. The nonce must be random.
    pub fn new(history: TimelineHistory, nonce: [u8; 16]) -> FullBackupOptions {
        FullBackupOptions {
            history,
            tli: None,
            nonce,
            prev_lsn: None,
            wal_keep_mib: 100 << 10,
            settings: String::new(),
        }
    }
}

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullBackupReport {
    /// Where the restored cluster's first record, the shutdown checkpoint, begins: the view's LSN, or just after the page header there.
    pub checkpoint: Lsn,
    /// Where that record ends: the restored cluster's own WAL goes on here.
    pub end: Lsn,
    /// The restored cluster's Postgres timeline.
    pub tli: Tli,
    /// Its history.
    pub history: TimelineHistory,
    /// Files.
    pub files: u64,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// Streams the cluster as of the view's LSN to `out`. When this fails, what was sent is no archive: it lacks `pg_control` and the terminator.
pub async fn write(
    view: &dyn AsOf,
    options: &FullBackupOptions,
    out: &mut dyn TarSink,
) -> Result<FullBackupReport, BackupError> {
    let Basis { mut control, mut checkpoint, databases } = Basis::load(view).await?;
    let lsn = view.lsn();
    let at = lsn.normalized(control.wal_segment_size.bytes());
    let tli = options.tli.unwrap_or(Tli(options.history.tli().0 + 1));
    let reason = format!("{}{}", crate::timeline::restore::RESTORED_REASON, hex::encode(options.nonce));
    let history = options.history.branch(tli, lsn, &reason)?;
    checkpoint.redo = at;
    checkpoint.tli = tli;
    checkpoint.prev_tli = tli;
    checkpoint.oldest_active_xid = 0;
    let checkpoint_bytes = checkpoint.encode(control.pg);
    control.state = ClusterState::ShutDown;
    control.checkpoint_at = at;
    control.checkpoint = checkpoint_bytes;
    control.min_recovery_point = Lsn::INVALID;
    control.min_recovery_tli = Tli(0);
    control.backup_start = Lsn::INVALID;
    control.backup_end = Lsn::INVALID;
    control.backup_end_required = false;
    let prev = options.prev_lsn.unwrap_or(Lsn::INVALID);
    let wal = StartingWal::new(
        control.pg,
        control.system_identifier,
        control.wal_segment_size,
        tli,
        at,
        prev,
        &checkpoint_bytes,
    );

    let mut tablespaces = match view.get(Key::TABLESPACE_DIRECTORY).await? {
        Some(bytes) => Tablespaces::decode(&bytes)?.paths.into_keys().collect(),
        None => BTreeSet::new(),
    };
    tablespaces.extend(
        databases
            .keys()
            .map(|(spc, _)| *spc)
            .filter(|spc| !matches!(*spc, DEFAULT_TABLESPACE | GLOBAL_TABLESPACE)),
    );

    let mut cluster = ClusterTar::new(view, &control, 0o700, out);
    for directory in directories(control.pg) {
        match directory {
            // Comes with its database.
            "base/1" => continue,
            "pg_wal/archive_status" => cluster.directory("pg_wal").await?,
            _ => {}
        }
        cluster.directory(directory).await?;
    }
    cluster.tablespaces(&tablespaces).await?;
    cluster.settings(&control, lsn, !tablespaces.is_empty(), options).await?;
    for kind in SlruKind::ALL {
        cluster.slru(kind, &checkpoint, &control).await?;
    }
    for ((spc, db), has_map) in databases {
        cluster.database(spc, db, has_map).await?;
    }
    cluster.prepared_transactions().await?;
    cluster.replication_origins().await?;
    let history_path = format!("pg_wal/{}", TimelineHistory::file_name(tli));
    cluster.file(&history_path, history.to_text().into()).await?;
    for segment in wal.segments() {
        let size = control.wal_segment_size.bytes();
        cluster.wal_segment(&wal.file_name(segment), segment, size, |start| wal.page(start)).await?;
    }
    cluster.file("global/pg_control", control.encode().into()).await?;
    let (files, bytes) = cluster.finish().await?;
    Ok(FullBackupReport { checkpoint: at, end: wal.end(), tli, history, files, bytes })
}

/// The directory of a database in a tablespace.
fn database_directory(pg: PgMajor, spc: u32, db: u32) -> String {
    match spc {
        GLOBAL_TABLESPACE => "global".into(),
        DEFAULT_TABLESPACE => format!("base/{db}"),
        spc => format!("{}/{db}", tablespace_directory(pg, spc)),
    }
}

/// What a major looks for in a tablespace.
fn tablespace_directory(pg: PgMajor, spc: u32) -> String {
    let root = if pg == PgMajor::V14 { TABLESPACES_OF_14 } else { "pg_tblspc" };
    format!("{root}/{spc}/{}", tablespace_version_directory(pg))
}

impl ClusterTar<'_> {
    async fn tablespaces(&mut self, tablespaces: &BTreeSet<u32>) -> Result<(), BackupError> {
        if self.pg == PgMajor::V14 && !tablespaces.is_empty() {
            self.directory(TABLESPACES_OF_14).await?;
        }
        for spc in tablespaces {
            if self.pg == PgMajor::V14 {
                self.directory(&format!("{TABLESPACES_OF_14}/{spc}")).await?;
                let target = format!("../{TABLESPACES_OF_14}/{spc}");
                self.symlink(&format!("pg_tblspc/{spc}"), &target).await?;
            } else {
                self.directory(&format!("pg_tblspc/{spc}")).await?;
            }
            self.directory(&tablespace_directory(self.pg, *spc)).await?;
        }
        Ok(())
    }

    async fn settings(
        &mut self,
        control: &ControlFile,
        lsn: Lsn,
        has_tablespaces: bool,
        options: &FullBackupOptions,
    ) -> Result<(), BackupError> {
        let mut conf = settings::postgresql_conf(control, lsn, has_tablespaces, options.wal_keep_mib);
        conf.push_str(&options.settings);
        self.file("PG_VERSION", format!("{}\n", self.pg).into()).await?;
        self.file("postgresql.conf", conf.into()).await?;
        self.file("postgresql.auto.conf", Bytes::new()).await?;
        self.file("pg_hba.conf", Bytes::from_static(settings::pg_hba_conf().as_bytes())).await?;
        self.file("pg_ident.conf", Bytes::new()).await
    }

    async fn database(&mut self, spc: u32, db: u32, has_map: bool) -> Result<(), BackupError> {
        let directory = database_directory(self.pg, spc, db);
        if spc != GLOBAL_TABLESPACE {
            self.directory(&directory).await?;
        }
        if has_map {
            if spc != GLOBAL_TABLESPACE {
                self.file(&format!("{directory}/PG_VERSION"), format!("{}\n", self.pg).into()).await?;
            }
            let map = required(self.view, Key::relation_map(spc, db)).await?;
            self.file(&format!("{directory}/pg_filenode.map"), map).await?;
        }
        let forks = forks(self.view, spc, db).await?;
        let unlogged: BTreeSet<RelLocator> =
            forks.iter().filter(|rel| rel.fork == Fork::Init).map(|rel| rel.locator()).collect();
        let wanted: Vec<RelTag> = forks
            .into_iter()
            .filter(|rel| rel.fork == Fork::Init || !unlogged.contains(&rel.locator()))
            .collect();
        self.relations(&directory, wanted).await
    }
}
