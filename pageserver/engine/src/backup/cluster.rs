//! What both backups have: the tar writer, and the files of a cluster that it makes from the values of a timeline.
//!
//! Nothing is gathered but one SLRU segment (256 KiB) or a few runs of pages; a slow receiver slows the reading down.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use codec::bytes_in::Truncated;
use codec::checkpoint::CheckPoint;
use codec::control::{ControlFile, ControlFileError};
use codec::directory::{DbDirectory, DirectoryError, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::history::HistoryError;
use codec::page::{self, Page};
use codec::slru;
use codec::tablespaces::TablespacesError;
use codec::tar_out;
use futures::{StreamExt, TryStreamExt, stream};
use model::key::KeyKind;
use model::lsn::WAL_PAGE_SIZE;
use model::{
    BLOCK_SIZE, Fork, Key, Lsn, PgMajor, RELATION_SEGMENT_BLOCKS, RelTag, SLRU_SEGMENT_PAGES, SlruKind,
};

use crate::as_of::{AsOf, ReadError};

/// Pages that are read and sent at once: 256 KiB.
const RUN_BLOCKS: u32 = 32;
/// Longest chunk that is sent.
const CHUNK_BYTES: usize = 256 << 10;
/// Runs that are being read while one is sent.
const RUNS_AHEAD: usize = 4;
/// Small values that are read at once.
const VALUES_AHEAD: usize = 32;

/// Takes the archive's bytes, in chunks of at most 256 KiB, and waits while the receiver is slow.
#[async_trait]
pub trait TarSink: Send {
    /// The next bytes.
    async fn send(&mut self, chunk: Bytes) -> io::Result<()>;
}

/// Why a cluster cannot be made from a timeline.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BackupError {
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
    #[error(
        "tablespace {spc} holds relations of database {db}: a base backup cannot have tablespaces, a full backup can"
    )]
    UserTablespace { spc: u32, db: u32 },
}

/// What every backup begins with.
pub(super) struct Basis {
    pub control: ControlFile,
    pub checkpoint: CheckPoint,
    /// Tablespace and database; whether there is a relation map.
    pub databases: BTreeMap<(u32, u32), bool>,
}

impl Basis {
    pub async fn load(view: &dyn AsOf) -> Result<Basis, BackupError> {
        let control = ControlFile::parse(&required(view, Key::CONTROL_FILE).await?)?;
        let stored = required(view, Key::CHECKPOINT).await?;
        let checkpoint = CheckPoint::decode(control.pg, &stored).map_err(BackupError::Checkpoint)?;
        let databases = DbDirectory::decode(&required(view, Key::DB_DIRECTORY).await?)?.databases;
        Ok(Basis { control, checkpoint, databases: databases.into_iter().collect() })
    }
}

/// The cluster's empty directories and those that files come in, but for `pg_wal` itself and the databases'.
pub(super) fn directories(pg: PgMajor) -> impl Iterator<Item = &'static str> {
    const DIRECTORIES: &[&str] = &[
        "global",
        "pg_wal/archive_status",
        "pg_wal/summaries",
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
        "base/1",
        "pg_replslot",
        "pg_tblspc",
        "pg_stat",
        "pg_stat_tmp",
        "pg_xact",
        "pg_logical",
        "pg_logical/snapshots",
        "pg_logical/mappings",
    ];
    DIRECTORIES.iter().copied().filter(move |path| pg >= PgMajor::V17 || *path != "pg_wal/summaries")
}

/// A value that must be there.
pub(super) async fn required(view: &dyn AsOf, key: Key) -> Result<Bytes, ReadError> {
    view.get(key)
        .await?
        .filter(|value| !value.is_empty())
        .ok_or(ReadError::MissingKey { key, lsn: view.lsn() })
}

/// The forks of a database's relations in a tablespace.
pub(super) async fn forks(view: &dyn AsOf, spc: u32, db: u32) -> Result<Vec<RelTag>, ReadError> {
    let entries = view.scan(Key::rel_directory_range(spc, db)).await?;
    Ok(entries
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(key, _)| match key.kind() {
            Some(KeyKind::RelDirectoryEntry(rel)) => Some(rel),
            _ => None,
        })
        .collect())
}

/// Writes one cluster.
pub(super) struct ClusterTar<'a> {
    pub view: &'a dyn AsOf,
    pub pg: PgMajor,
    out: &'a mut dyn TarSink,
    checksums: bool,
    directory_mode: u32,
    mtime: u64,
    pending: BytesMut,
    files: u64,
    bytes: u64,
}

impl<'a> ClusterTar<'a> {
    /// Directories get `directory_mode`.
    pub fn new(
        view: &'a dyn AsOf,
        control: &ControlFile,
        directory_mode: u32,
        out: &'a mut dyn TarSink,
    ) -> Self {
        let mtime = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        ClusterTar {
            view,
            pg: control.pg,
            out,
            checksums: control.has_checksums(),
            directory_mode,
            mtime,
            pending: BytesMut::new(),
            files: 0,
            bytes: 0,
        }
    }

    /// Small pieces are gathered, big ones cut.
    async fn send(&mut self, mut chunk: Bytes) -> Result<(), BackupError> {
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

    /// The terminator, which makes all that was sent an archive. Answers how many files and bytes that were.
    pub async fn finish(mut self) -> Result<(u64, u64), BackupError> {
        self.send(Bytes::from_static(&tar_out::TERMINATOR)).await?;
        self.flush().await?;
        Ok((self.files, self.bytes))
    }

    async fn flush(&mut self) -> Result<(), BackupError> {
        if !self.pending.is_empty() {
            self.out.send(self.pending.split().freeze()).await?;
        }
        Ok(())
    }

    pub async fn directory(&mut self, path: &str) -> Result<(), BackupError> {
        self.send(tar_out::directory(path, self.directory_mode, self.mtime).into()).await
    }

    pub async fn symlink(&mut self, path: &str, target: &str) -> Result<(), BackupError> {
        self.send(tar_out::symlink(path, target, self.mtime).into()).await
    }

    async fn begin(&mut self, path: &str, size: u64) -> Result<(), BackupError> {
        self.files += 1;
        self.send(tar_out::file(path, size, self.mtime).into()).await
    }

    pub async fn file(&mut self, path: &str, content: Bytes) -> Result<(), BackupError> {
        let size = content.len() as u64;
        self.begin(path, size).await?;
        self.send(content).await?;
        self.send(tar_out::padding(size).into()).await
    }

    /// All segments of an SLRU. Postgres refuses to start when the page of the next entry is missing; it holds nothing yet, so it is made.
    pub async fn slru(
        &mut self,
        kind: SlruKind,
        checkpoint: &CheckPoint,
        control: &ControlFile,
    ) -> Result<(), BackupError> {
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

    /// Files of forks. What an init fork holds is sent as the main fork, too: the cluster looks cleanly shut down, so Postgres will not reset
    /// unlogged relations, and they are sent as reset.
    pub async fn relations(&mut self, directory: &str, wanted: Vec<RelTag>) -> Result<(), BackupError> {
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
                self.relation(rel, blocks, &name).await?;
            }
        }
        Ok(())
    }

    /// A fork's segments, from the pages of `rel`, under the name `path`.
    async fn relation(&mut self, rel: RelTag, blocks: u32, path: &str) -> Result<(), BackupError> {
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
    async fn blocks(&mut self, rel: RelTag, blocks: Range<u32>) -> Result<(), BackupError> {
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
                return Err(BackupError::BadValue { key, length: pages.len(), what: "a run of pages" });
            }
            let sent = if self.checksums { with_checksums(pages, run.start) } else { pages };
            self.send(sent).await?;
        }
        Ok(())
    }

    /// State of prepared transactions.
    pub async fn prepared_transactions(&mut self) -> Result<(), BackupError> {
        let Some(bytes) = self.view.get(Key::TWO_PHASE_DIRECTORY).await? else { return Ok(()) };
        for xid in TwoPhaseDirectory::decode(&bytes, self.pg)?.xids {
            let mut state = required(self.view, Key::two_phase_file(xid)).await?.to_vec();
            codec::two_phase::append_checksum(&mut state);
            let path = format!("pg_twophase/{}", codec::two_phase::file_name(self.pg, xid));
            self.file(&path, state.into()).await?;
        }
        Ok(())
    }

    /// How far replication origins are, if there are any.
    pub async fn replication_origins(&mut self) -> Result<(), BackupError> {
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
                Err(_) => return Err(BackupError::BadValue { key, length, what: "an LSN" }),
            }
        }
        if origins.is_empty() {
            return Ok(());
        }
        self.file("pg_logical/replorigin_checkpoint", codec::replorigin::encode(&origins).into()).await
    }

    /// A WAL segment of `size` bytes that begins at `segment`. Pages that `page` does not make are zeros.
    pub async fn wal_segment(
        &mut self,
        name: &str,
        segment: Lsn,
        size: u64,
        page: impl Fn(Lsn) -> Option<[u8; WAL_PAGE_SIZE as usize]> + Send,
    ) -> Result<(), BackupError> {
        self.begin(&format!("pg_wal/{name}"), size).await?;
        let run_bytes = u64::from(RUN_BLOCKS) * WAL_PAGE_SIZE;
        let mut done = 0;
        while done < size {
            let mut run = Vec::with_capacity(run_bytes as usize);
            while (run.len() as u64) < run_bytes.min(size - done) {
                let start = segment.add(done + run.len() as u64);
                match page(start) {
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
fn size_of_value(key: Key, value: Option<Bytes>) -> Result<Option<u32>, BackupError> {
    match value {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => {
            let length = value.len();
            let bytes = value[..].try_into();
            bytes.map(|bytes| Some(u32::from_le_bytes(bytes))).map_err(|_| BackupError::BadValue {
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
