//! The tar, file after file.
//!
//! Order: directories, settings, transaction state, relations by database, prepared transactions, WAL, and `global/pg_control` last, then the
//! terminator. A stream that broke off has neither: it does not unpack to something that starts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use codec::bytes_in::Truncated;
use codec::checkpoint::CheckPoint;
use codec::control::{ClusterState, ControlFile, ControlFileError, tablespace_version_directory};
use codec::directory::{DbDirectory, DirectoryError, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::history::{HistoryError, TimelineHistory};
use codec::page::{self, Page};
use codec::slru;
use codec::tablespaces::{Tablespaces, TablespacesError};
use codec::tar_out;
use futures::{StreamExt, TryStreamExt, stream};
use model::key::KeyKind;
use model::lsn::WAL_PAGE_SIZE;
use model::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use model::{
    BLOCK_SIZE, Fork, Key, Lsn, PgMajor, RELATION_SEGMENT_BLOCKS, RelLocator, RelTag, SLRU_SEGMENT_PAGES,
    SlruKind, Tli,
};

use super::settings;
use super::wal::StartingWal;
use crate::as_of::{AsOf, ReadError};

/// Pages that are read and sent at once: 256 KiB.
const RUN_BLOCKS: u32 = 32;
/// Longest chunk that is sent.
const CHUNK_BYTES: usize = 256 << 10;
/// Runs that are being read while one is sent.
const RUNS_AHEAD: usize = 4;
/// Small values that are read at once.
const VALUES_AHEAD: usize = 32;
/// Where 14, which cannot open a tablespace that is a plain directory, finds tablespaces: `pg_tblspc/<oid>` is a link into it.
const TABLESPACES_OF_14: &str = "tablespaces";

/// Takes the archive's bytes, in chunks of at most 256 KiB, and waits while the receiver is slow.
#[async_trait]
pub trait TarSink: Send {
    /// The next bytes.
    async fn send(&mut self, chunk: Bytes) -> io::Result<()>;
}

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

/// Why a cluster cannot be restored from a timeline.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FullBackupError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the receiver is gone")]
    Sink(#[from] io::Error),
    #[error("the timeline's control file is unusable")]
    ControlFile(#[from] ControlFileError),
    #[error("the timeline's checkpoint is unusable")]
    Checkpoint(#[source] Truncated),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Tablespaces(#[from] TablespacesError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error("key {key} has a value of {length} bytes, which cannot be {what}")]
    BadValue { key: Key, length: usize, what: &'static str },
}

/// The cluster's empty directories and those that files below come in. All are 0700.
const DIRECTORIES: &[&str] = &[
    "global",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_twophase",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "base",
    "pg_replslot",
    "pg_tblspc",
    "pg_stat",
    "pg_stat_tmp",
    "pg_xact",
    "pg_logical",
    "pg_logical/snapshots",
    "pg_logical/mappings",
];

/// Streams the cluster as of the view's LSN to `out`. When this fails, what was sent is no archive: it lacks `pg_control` and the terminator.
pub async fn write(
    view: &dyn AsOf,
    options: &FullBackupOptions,
    out: &mut dyn TarSink,
) -> Result<FullBackupReport, FullBackupError> {
    let mut control = ControlFile::parse(&required(view, Key::CONTROL_FILE).await?)?;
    let stored = required(view, Key::CHECKPOINT).await?;
    let mut checkpoint = CheckPoint::decode(control.pg, &stored).map_err(FullBackupError::Checkpoint)?;

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

    let mtime = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut cluster = Writer {
        view,
        out,
        pg: control.pg,
        checksums: control.has_checksums(),
        mtime,
        pending: BytesMut::new(),
        files: 0,
        bytes: 0,
    };
    let databases = DbDirectory::decode(&required(view, Key::DB_DIRECTORY).await?)?.databases;
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

    for directory in DIRECTORIES {
        cluster.directory(directory).await?;
    }
    if control.pg >= PgMajor::V17 {
        cluster.directory("pg_wal/summaries").await?;
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
        cluster.wal_segment(&wal, segment, control.wal_segment_size.bytes()).await?;
    }
    cluster.file("global/pg_control", control.encode().into()).await?;
    cluster.send(Bytes::from_static(&tar_out::TERMINATOR)).await?;
    cluster.flush().await?;
    Ok(FullBackupReport {
        checkpoint: at,
        end: wal.end(),
        tli,
        history,
        files: cluster.files,
        bytes: cluster.bytes,
    })
}

async fn required(view: &dyn AsOf, key: Key) -> Result<Bytes, ReadError> {
    view.get(key)
        .await?
        .filter(|value| !value.is_empty())
        .ok_or(ReadError::MissingKey { key, lsn: view.lsn() })
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

struct Writer<'a> {
    view: &'a dyn AsOf,
    out: &'a mut dyn TarSink,
    pg: PgMajor,
    checksums: bool,
    mtime: u64,
    pending: BytesMut,
    files: u64,
    bytes: u64,
}

impl Writer<'_> {
    /// Small pieces are gathered, big ones cut.
    async fn send(&mut self, mut chunk: Bytes) -> Result<(), FullBackupError> {
        self.bytes += chunk.len() as u64;
        if self.pending.len() + chunk.len() <= CHUNK_BYTES {
            self.pending.extend_from_slice(&chunk);
            return Ok(());
        }
        self.flush().await?;
        while chunk.len() > CHUNK_BYTES {
            self.out.send(chunk.split_to(CHUNK_BYTES)).await?;
        }
        Ok(self.out.send(chunk).await?)
    }

    async fn flush(&mut self) -> Result<(), FullBackupError> {
        if !self.pending.is_empty() {
            self.out.send(self.pending.split().freeze()).await?;
        }
        Ok(())
    }

    async fn directory(&mut self, path: &str) -> Result<(), FullBackupError> {
        self.send(tar_out::directory(path, self.mtime).into()).await
    }

    async fn begin(&mut self, path: &str, size: u64) -> Result<(), FullBackupError> {
        self.files += 1;
        self.send(tar_out::file(path, size, self.mtime).into()).await
    }

    async fn file(&mut self, path: &str, content: Bytes) -> Result<(), FullBackupError> {
        let size = content.len() as u64;
        self.begin(path, size).await?;
        self.send(content).await?;
        self.send(tar_out::padding(size).into()).await
    }

    async fn tablespaces(&mut self, tablespaces: &BTreeSet<u32>) -> Result<(), FullBackupError> {
        if self.pg == PgMajor::V14 && !tablespaces.is_empty() {
            self.directory(TABLESPACES_OF_14).await?;
        }
        for spc in tablespaces {
            if self.pg == PgMajor::V14 {
                self.directory(&format!("{TABLESPACES_OF_14}/{spc}")).await?;
                let target = format!("../{TABLESPACES_OF_14}/{spc}");
                let link = tar_out::symlink(&format!("pg_tblspc/{spc}"), &target, self.mtime);
                self.send(link.into()).await?;
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
    ) -> Result<(), FullBackupError> {
        let mut conf = settings::postgresql_conf(control, lsn, has_tablespaces, options.wal_keep_mib);
        conf.push_str(&options.settings);
        self.file("PG_VERSION", format!("{}\n", self.pg).into()).await?;
        self.file("postgresql.conf", conf.into()).await?;
        self.file("postgresql.auto.conf", Bytes::new()).await?;
        self.file("pg_hba.conf", Bytes::from_static(settings::pg_hba_conf().as_bytes())).await?;
        self.file("pg_ident.conf", Bytes::new()).await
    }

    /// All segments of an SLRU. Postgres refuses to start when the page of the next entry is missing; it holds nothing yet, so it is made.
    async fn slru(
        &mut self,
        kind: SlruKind,
        checkpoint: &CheckPoint,
        control: &ControlFile,
    ) -> Result<(), FullBackupError> {
        let directory = Key::slru_directory(kind);
        let mut segments = BTreeMap::new();
        if let Some(bytes) = self.view.get(directory).await? {
            for segment in SlruSegmentDirectory::decode(&bytes)?.segments {
                let key = Key::slru_size(kind, segment);
                let pages = size_of_value(key, self.view.get(key).await?)?;
                if let Some(pages) = pages {
                    segments.insert(segment, pages.min(SLRU_SEGMENT_PAGES));
                }
            }
        }
        let stored = segments.clone();
        let next = match kind {
            SlruKind::Clog => Some(slru::clog_page(checkpoint.next_xid as u32)),
            SlruKind::MultiXactOffsets => Some(slru::offsets_page(checkpoint.next_multi)),
            SlruKind::MultiXactMembers => Some(slru::members_page(checkpoint.next_multi_offset)),
            SlruKind::CommitTs if control.track_commit_timestamp => {
                Some(slru::commit_ts_page(checkpoint.next_xid as u32))
            }
            SlruKind::CommitTs => None,
        };
        if let Some(place) = next.map(slru::place) {
            let pages = segments.entry(place.segment).or_insert(0);
            *pages = (*pages).max(place.page + 1);
        }
        for (segment, pages) in segments {
            let size = u64::from(pages) * BLOCK_SIZE as u64;
            self.begin(&format!("{}/{segment:04X}", kind.directory()), size).await?;
            let kept = stored.get(&segment).copied().unwrap_or(0);
            let view = self.view;
            let mut values = stream::iter(0..kept)
                .map(|page| async move { view.get(Key::slru_page(kind, segment, page)).await })
                .buffered(VALUES_AHEAD);
            let mut content = Vec::with_capacity(size as usize);
            while let Some(value) = values.try_next().await? {
                let value = value.unwrap_or_default();
                // A commit-log page may carry the time of its last commit behind it.
                content.extend_from_slice(&value[..value.len().min(BLOCK_SIZE)]);
                content.resize(content.len().next_multiple_of(BLOCK_SIZE), 0);
                if value.is_empty() {
                    content.extend_from_slice(&page::ZERO_PAGE);
                }
            }
            drop(values);
            content.resize(size as usize, 0);
            self.send(content.into()).await?;
        }
        Ok(())
    }

    async fn database(&mut self, spc: u32, db: u32, has_map: bool) -> Result<(), FullBackupError> {
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
        let forks: Vec<RelTag> = self
            .view
            .scan(Key::rel_directory_range(spc, db))
            .await?
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(key, _)| match key.kind() {
                Some(KeyKind::RelDirectoryEntry(rel)) => Some(rel),
                _ => None,
            })
            .collect();
        let unlogged: BTreeSet<RelLocator> =
            forks.iter().filter(|rel| rel.fork == Fork::Init).map(|rel| rel.locator()).collect();
        let wanted: Vec<RelTag> = forks
            .into_iter()
            .filter(|rel| rel.fork == Fork::Init || !unlogged.contains(&rel.locator()))
            .collect();
        let view = self.view;
        let mut sizes = stream::iter(wanted)
            .map(|rel| async move {
                let key = Key::rel_size(rel);
                view.get(key).await.map(|value| (rel, key, value))
            })
            .buffered(VALUES_AHEAD);
        while let Some((rel, key, value)) = sizes.try_next().await? {
            // A size that says "dropped" beside an entry that says "exists" is a fork that was never written to.
            let blocks = size_of_value(key, value)?.unwrap_or(0);
            let name = format!("{directory}/{}", rel.rel);
            self.relation(rel, blocks, &format!("{name}{}", rel.fork.suffix())).await?;
            if rel.fork == Fork::Init {
                // The cluster looks cleanly shut down, so Postgres will not reset unlogged relations: they are sent as reset.
                self.relation(rel, blocks, &name).await?;
            }
        }
        Ok(())
    }

    /// A fork's segments, from the pages of `rel`, under the name `path`.
    async fn relation(&mut self, rel: RelTag, blocks: u32, path: &str) -> Result<(), FullBackupError> {
        let mut start = 0;
        loop {
            let end = blocks.min(start + RELATION_SEGMENT_BLOCKS);
            let segment = start / RELATION_SEGMENT_BLOCKS;
            let size = u64::from(end - start) * BLOCK_SIZE as u64;
            if segment == 0 {
                self.begin(path, size).await?;
            } else {
                self.begin(&format!("{path}.{segment}"), size).await?;
            }
            self.blocks(rel, start..end).await?;
            start = end;
            if start >= blocks {
                return Ok(());
            }
        }
    }

    /// Pages are whole tar blocks: they need no padding.
    async fn blocks(&mut self, rel: RelTag, blocks: Range<u32>) -> Result<(), FullBackupError> {
        let view = self.view;
        let end = blocks.end;
        let mut runs = stream::iter(blocks.step_by(RUN_BLOCKS as usize))
            .map(|start| async move {
                let run = start..end.min(start + RUN_BLOCKS);
                view.pages(rel, run.clone()).await.map(|pages| (run, pages))
            })
            .buffered(RUNS_AHEAD);
        while let Some((run, pages)) = runs.try_next().await? {
            if pages.len() != run.len() * BLOCK_SIZE {
                let key = Key::rel_block(rel, run.start);
                return Err(FullBackupError::BadValue { key, length: pages.len(), what: "a run of pages" });
            }
            let sent = if self.checksums { with_checksums(pages, run.start) } else { pages };
            self.send(sent).await?;
        }
        Ok(())
    }

    async fn prepared_transactions(&mut self) -> Result<(), FullBackupError> {
        let Some(bytes) = self.view.get(Key::TWO_PHASE_DIRECTORY).await? else { return Ok(()) };
        for xid in TwoPhaseDirectory::decode(&bytes, self.pg)?.xids {
            let mut state = required(self.view, Key::two_phase_file(xid)).await?.to_vec();
            codec::two_phase::append_checksum(&mut state);
            let path = format!("pg_twophase/{}", codec::two_phase::file_name(self.pg, xid));
            self.file(&path, state.into()).await?;
        }
        Ok(())
    }

    async fn replication_origins(&mut self) -> Result<(), FullBackupError> {
        let mut origins = BTreeMap::new();
        for (key, value) in self.view.scan(Key::replication_origin_range()).await? {
            let Some(KeyKind::ReplicationOrigin(origin)) = key.kind() else { continue };
            let length = value.len();
            match value[..].try_into().map(u64::from_be_bytes) {
                Ok(0) => {}
                Ok(lsn) => {
                    origins.insert(origin, Lsn(lsn));
                }
                Err(_) if length == 0 => {}
                Err(_) => return Err(FullBackupError::BadValue { key, length, what: "an LSN" }),
            }
        }
        if origins.is_empty() {
            return Ok(());
        }
        self.file("pg_logical/replorigin_checkpoint", codec::replorigin::encode(&origins).into()).await
    }

    async fn wal_segment(
        &mut self,
        wal: &StartingWal,
        segment: Lsn,
        size: u64,
    ) -> Result<(), FullBackupError> {
        self.begin(&format!("pg_wal/{}", wal.file_name(segment)), size).await?;
        let run_bytes = u64::from(RUN_BLOCKS) * WAL_PAGE_SIZE;
        let mut done = 0;
        while done < size {
            let mut run = Vec::with_capacity(run_bytes as usize);
            while (run.len() as u64) < run_bytes.min(size - done) {
                let start = segment.add(done + run.len() as u64);
                match wal.page(start) {
                    Some(page) => run.extend_from_slice(&page),
                    None => run.extend_from_slice(&page::ZERO_PAGE),
                }
            }
            done += run.len() as u64;
            self.send(run.into()).await?;
        }
        Ok(())
    }
}

/// A size, `None` for what does not exist.
fn size_of_value(key: Key, value: Option<Bytes>) -> Result<Option<u32>, FullBackupError> {
    match value {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => {
            let length = value.len();
            let bytes = value[..].try_into();
            bytes.map(|bytes| Some(u32::from_le_bytes(bytes))).map_err(|_| FullBackupError::BadValue {
                key,
                length,
                what: "a size",
            })
        }
    }
}

/// Pages are stored as redo left them; Postgres stamps checksums when it writes pages out, and so do we.
fn with_checksums(pages: Bytes, first: u32) -> Bytes {
    let mut pages = Vec::from(pages);
    for (block, page) in (first..).zip(pages.chunks_exact_mut(BLOCK_SIZE)) {
        let page: &mut Page = page.try_into().expect("chunks are of a page's size");
        page::set_checksum(page, block);
    }
    pages.into()
}
