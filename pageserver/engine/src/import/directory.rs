//! A data directory on disk as the source of an import: a cluster that was shut down, or what `pg_basebackup -Fp` wrote.

use std::path::{Path, PathBuf};

use codec::backup_label::BackupLabel;
use codec::control::{ClusterState, ControlFile};
use codec::manifest::{ChecksumAlgorithm, ManifestIn};
use model::Lsn;
use tokio::io::AsyncReadExt;

use super::importer::{ImportError, ImportOptions, ImportProgress, ImportReport, Importer, SourceKind};
use super::layer_out::LayerOut;
use super::path::{is_ignored_directory, tablespace_of};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// A data directory, and what its own files say of how it is to be imported.
#[derive(Debug)]
pub struct DataDirectory {
    root: PathBuf,
    manifest: Option<PathBuf>,
    /// The options that fit it. Sizes may be changed.
    pub options: ImportOptions,
    /// Its control file.
    pub control: ControlFile,
}

impl DataDirectory {
    /// Looks at `pg_control`, `backup_label` and `backup_manifest`.
    pub async fn open(root: &Path) -> Result<DataDirectory, ImportError> {
        let control = ControlFile::parse(&read_whole(root, "global/pg_control").await?)?;
        let label = match tokio::fs::read_to_string(root.join("backup_label")).await {
            Ok(text) => Some(BackupLabel::parse(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(ImportError::Io { path: "backup_label".into(), source }),
        };
        let (kind, base_lsn) = match label {
            Some(label) => (SourceKind::Backup, label.start),
            None => (SourceKind::Stopped, control.redo()),
        };
        if kind == SourceKind::Stopped && control.state != ClusterState::ShutDown {
            return Err(ImportError::NotAsExpected {
                found: format!("a cluster that is {}, without a backup_label", control.state),
                expected: "a backup, or a cluster that was shut down cleanly".into(),
            });
        }
        let mut options = ImportOptions::new(control.pg, kind, base_lsn);
        let manifest =
            Some(root.join("backup_manifest")).filter(|path| kind == SourceKind::Backup && path.exists());
        if let Some(path) = &manifest {
            // A manifest without checksums still has sizes; any algorithm will do.
            options.manifest = Some(manifest_algorithm(path).await?.unwrap_or(ChecksumAlgorithm::Crc32c));
        }
        Ok(DataDirectory { root: root.into(), manifest, options, control })
    }

    /// Where its WAL is.
    pub fn wal(&self) -> PathBuf {
        self.root.join("pg_wal")
    }

    /// Imports it. `end` is where the backup ended if it has no manifest to say so; `told` hears how far it has come.
    pub async fn import<O: LayerOut>(
        self,
        out: O,
        end: Option<Lsn>,
        told: &(dyn Fn(ImportProgress) + Sync),
    ) -> Result<(ImportReport, O), ImportError> {
        let mut importer = Importer::new(self.options.clone(), out);
        let mut buffer = vec![0; READ_BYTES];
        let mut directories = vec![(String::new(), self.root.clone())];
        while let Some((below, place)) = directories.pop() {
            let mut subdirectories = Vec::new();
            for (name, link) in listing(&place).await? {
                let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
                let real = place.join(&name);
                if let (Some(target), Some(oid)) = (&link, tablespace_of(&path)) {
                    importer.tablespace(oid, target);
                }
                let unreadable = |source| ImportError::Io { path: path.clone(), source };
                // Links are followed: tablespaces are, and so may a big relation's directory be.
                let meta = tokio::fs::metadata(&real).await.map_err(unreadable)?;
                if meta.is_dir() {
                    if !is_ignored_directory(&path) {
                        if let (None, Some(oid)) = (&link, tablespace_of(&path)) {
                            importer.tablespace(oid, "");
                        }
                        subdirectories.push((path, real));
                    }
                } else if meta.is_file() {
                    send_file(&mut importer, &path, &real, meta.len(), &mut buffer).await?;
                    told(importer.progress());
                }
            }
            // The last one pushed comes next: keep the order of names.
            directories.extend(subdirectories.into_iter().rev());
        }
        if let Some(path) = &self.manifest {
            send_manifest(&mut importer, path, &mut buffer).await?;
        }
        importer.end(end).await
    }
}

pub(super) async fn send_manifest<O: LayerOut>(
    importer: &mut Importer<O>,
    path: &Path,
    buffer: &mut [u8],
) -> Result<(), ImportError> {
    let unreadable = |source| ImportError::Io { path: "backup_manifest".into(), source };
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    loop {
        let count = file.read(buffer).await.map_err(unreadable)?;
        if count == 0 {
            return Ok(());
        }
        importer.manifest_data(&buffer[..count])?;
    }
}

async fn send_file<O: LayerOut>(
    importer: &mut Importer<O>,
    path: &str,
    real: &Path,
    size: u64,
    buffer: &mut [u8],
) -> Result<(), ImportError> {
    let unreadable = |source| ImportError::Io { path: path.into(), source };
    let mut file = tokio::fs::File::open(real).await.map_err(unreadable)?;
    importer.file_begin(path, size)?;
    loop {
        let count = file.read(buffer).await.map_err(unreadable)?;
        if count == 0 {
            return importer.file_end().await;
        }
        importer.file_data(&buffer[..count]).await?;
    }
}

async fn read_whole(root: &Path, path: &str) -> Result<Vec<u8>, ImportError> {
    tokio::fs::read(root.join(path)).await.map_err(|source| ImportError::Io { path: path.into(), source })
}

/// Names in a directory, sorted, links with their target. `global` begins with `pg_control`, which says what pages have to look like.
async fn listing(place: &Path) -> Result<Vec<(String, Option<String>)>, ImportError> {
    let shown = place.display().to_string();
    let unreadable = |source| ImportError::Io { path: shown.clone(), source };
    let mut entries = tokio::fs::read_dir(place).await.map_err(unreadable)?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
        let name = entry.file_name().into_string().map_err(|name| ImportError::File {
            path: format!("{shown}/{}", name.display()),
            why: "has a name that is not UTF-8".into(),
        })?;
        let link = if entry.file_type().await.map_err(unreadable)?.is_symlink() {
            let target = tokio::fs::read_link(entry.path()).await.map_err(unreadable)?;
            Some(target.to_string_lossy().into_owned())
        } else {
            None
        };
        names.push((name, link));
    }
    names.sort_by_key(|(name, _)| (name != "global" && name != "pg_control", name.clone()));
    Ok(names)
}

/// How the first file of a manifest is summed up.
pub(super) async fn manifest_algorithm(path: &Path) -> Result<Option<ChecksumAlgorithm>, ImportError> {
    let unreadable = |source| ImportError::Io { path: "backup_manifest".into(), source };
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut manifest = ManifestIn::new();
    let mut buffer = vec![0; 4096];
    loop {
        let count = file.read(&mut buffer).await.map_err(unreadable)?;
        let mut first = None;
        manifest.push(&buffer[..count], |file| first = first.take().or(Some(file.checksum)))?;
        match first {
            Some(checksum) => return Ok(checksum.map(|(algorithm, _)| algorithm)),
            None if count == 0 => return Ok(None),
            None => {}
        }
    }
}
