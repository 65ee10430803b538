//! A base that lies on disk, with the WAL that came with it.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use codec::control::ControlFile;
use codec::tar_in::{TarEvent, TarIn};
use model::{Lsn, Tli, WalSegmentSize};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::archives::Archives;
use super::directory::DataDirectory;
use super::importer::{ImportError, ImportOptions, ImportProgress, ImportReport};
use super::layer_out::LayerOut;
use crate::timeline::AppendError;
use crate::wal_target::WalTarget;

/// Bytes of WAL handed on at once.
const READ_BYTES: usize = 128 << 10;

/// A base on disk, in either form that `pg_basebackup` writes, or a cluster that was shut down.
#[derive(Debug)]
pub enum StoredBase {
    /// A data directory.
    Directory(DataDirectory),
    /// A directory of archives.
    Archives(Archives),
}

/// Where the WAL of a stored base is.
#[derive(Clone, Debug)]
pub enum StoredWal {
    /// Segment files.
    Directory(PathBuf),
    /// Segments in an archive, below this path in it.
    Archive(PathBuf, &'static str),
}

/// Why the WAL of a stored base cannot be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StoredWalError {
    #[error("cannot read {path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("cannot read {path}")]
    Tar { path: PathBuf, source: codec::tar_in::TarError },
    #[error("the backup needs WAL from {from} to {until}; {path} lacks it from {at} on")]
    Missing { from: Lsn, until: Lsn, at: Lsn, path: PathBuf },
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl StoredBase {
    /// Looks what lies there.
    pub async fn open(root: &Path) -> Result<StoredBase, ImportError> {
        if root.join("base.tar").exists() {
            return Archives::open(root).await.map(StoredBase::Archives);
        }
        if !root.join("global/pg_control").exists() {
            return Err(ImportError::Missing(
                "global/pg_control and no base.tar (compressed archives are not read)",
            ));
        }
        DataDirectory::open(root).await.map(StoredBase::Directory)
    }

    /// The source's control file.
    pub fn control(&self) -> &ControlFile {
        match self {
            StoredBase::Directory(directory) => &directory.control,
            StoredBase::Archives(archives) => &archives.control,
        }
    }

    /// How it is to be imported.
    pub fn options(&self) -> &ImportOptions {
        match self {
            StoredBase::Directory(directory) => &directory.options,
            StoredBase::Archives(archives) => &archives.options,
        }
    }

    /// Its WAL.
    pub fn wal(&self) -> StoredWal {
        match self {
            StoredBase::Directory(directory) => StoredWal::Directory(directory.wal()),
            StoredBase::Archives(archives) => {
                let (path, below) = archives.wal();
                StoredWal::Archive(path, below)
            }
        }
    }

    /// Imports it. `told` hears how far it has come.
    pub async fn import<O: LayerOut>(
        self,
        out: O,
        told: &(dyn Fn(ImportProgress) + Sync),
    ) -> Result<(ImportReport, O), ImportError> {
        match self {
            StoredBase::Directory(directory) => directory.import(out, None, told).await,
            StoredBase::Archives(archives) => archives.import(out, told).await,
        }
    }
}

impl StoredWal {
    /// Hands the WAL of Postgres timeline `tli` from `from` to `until` to a target. What the files hold after that is not looked at: it may be
    /// left over from their earlier use.
    pub async fn feed(
        &self,
        target: &WalTarget,
        (tli, segment): (Tli, WalSegmentSize),
        from: Lsn,
        until: Lsn,
    ) -> Result<(), StoredWalError> {
        let mut run = Run { target, tli, segment, at: from, until };
        let path = match self {
            StoredWal::Directory(path) => {
                run.feed_files(path).await?;
                path
            }
            StoredWal::Archive(path, below) => {
                run.feed_archive(path, below).await?;
                path
            }
        };
        if run.at < until {
            return Err(StoredWalError::Missing { from, until, at: run.at, path: path.clone() });
        }
        Ok(())
    }
}

/// A run of WAL on its way.
struct Run<'a> {
    target: &'a WalTarget,
    tli: Tli,
    segment: WalSegmentSize,
    at: Lsn,
    until: Lsn,
}

impl Run<'_> {
    /// Takes what is new of bytes that begin at `start`.
    async fn take(&mut self, start: Lsn, bytes: &[u8]) -> Result<(), StoredWalError> {
        let known = self.at.since(start).min(bytes.len() as u64) as usize;
        let wanted = self.until.since(start).min(bytes.len() as u64) as usize;
        // A gap ends the run; its place is told at the end.
        if start <= self.at && known < wanted {
            let fresh = Bytes::copy_from_slice(&bytes[known..wanted]);
            let length = fresh.len() as u64;
            self.target.append(self.at, self.tli, fresh).await?;
            self.at = self.at.add(length);
        }
        Ok(())
    }

    async fn feed_files(&mut self, directory: &Path) -> Result<(), StoredWalError> {
        let mut buffer = vec![0; READ_BYTES];
        while self.at < self.until {
            let path = directory.join(self.segment.file_name(self.tli, self.at));
            let unreadable = |source| StoredWalError::Io { path: path.clone(), source };
            let mut file = match File::open(&path).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                opened => opened.map_err(unreadable)?,
            };
            let offset = self.at.0 % self.segment.bytes();
            file.seek(std::io::SeekFrom::Start(offset)).await.map_err(unreadable)?;
            let mut left = self.segment.bytes() - offset;
            while left > 0 {
                let wanted = left.min(READ_BYTES as u64) as usize;
                let count = file.read(&mut buffer[..wanted]).await.map_err(unreadable)?;
                if count == 0 || self.at >= self.until {
                    break;
                }
                self.take(self.at, &buffer[..count]).await?;
                left -= count as u64;
            }
            if left > 0 {
                return Ok(()); // the file is short, or it was the last one
            }
        }
        Ok(())
    }

    async fn feed_archive(&mut self, path: &Path, below: &str) -> Result<(), StoredWalError> {
        let unreadable = |source| StoredWalError::Io { path: path.into(), source };
        let broken = |source| StoredWalError::Tar { path: path.into(), source };
        let mut file = File::open(path).await.map_err(unreadable)?;
        let (mut tar, mut buffer) = (TarIn::new(), vec![0; READ_BYTES]);
        let mut next: Option<Lsn> = None;
        while self.at < self.until {
            let count = file.read(&mut buffer).await.map_err(unreadable)?;
            if count == 0 {
                return Ok(());
            }
            let mut bytes = &buffer[..count];
            while let Some(event) = tar.next(&mut bytes).map_err(broken)? {
                match event {
                    TarEvent::Entry(entry) => {
                        next = entry.path.strip_prefix(below).and_then(|name| self.segment_start(name));
                    }
                    TarEvent::Data(data) => {
                        if let Some(start) = next {
                            self.take(start, data).await?;
                            next = Some(start.add(data.len() as u64));
                        }
                    }
                    TarEvent::EntryEnd => next = None,
                }
            }
        }
        Ok(())
    }

    /// Where a segment of the run's Postgres timeline begins, by its file's name.
    fn segment_start(&self, name: &str) -> Option<Lsn> {
        let number = |at: usize| u64::from_str_radix(name.get(at..at + 8)?, 16).ok();
        let (high, low) = (number(8)?, number(16)?);
        let start = Lsn((high << 32).checked_add(low.checked_mul(self.segment.bytes())?)?);
        (self.segment.file_name(self.tli, start) == name).then_some(start)
    }
}
