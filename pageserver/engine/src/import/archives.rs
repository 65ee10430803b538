//! Archives on disk as the source of an import, as `pg_basebackup -Ft` writes them: `base.tar`, one `<oid>.tar` for each tablespace,
//! `pg_wal.tar` unless the WAL is in `base.tar`, and `backup_manifest`.

use std::path::{Path, PathBuf};

use codec::backup_label::BackupLabel;
use codec::control::ControlFile;
use codec::manifest::ChecksumAlgorithm;
use codec::tar_in::{TarEvent, TarIn};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::directory::{manifest_algorithm, send_manifest};
use super::importer::{
    ImportError, ImportOptions, ImportProgress, ImportReport, Importer, SourceKind, in_file,
};
use super::layer_out::LayerOut;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// `pg_control` has 8 KiB, a label a few hundred bytes.
const MAX_HEAD: usize = 64 << 10;

/// A directory of archives, and what they say of how they are to be imported.
#[derive(Debug)]
pub struct Archives {
    root: PathBuf,
    /// Those of tablespaces, then `base.tar`.
    names: Vec<String>,
    manifest: PathBuf,
    /// The options that fit. Sizes may be changed.
    pub options: ImportOptions,
    /// The source's control file.
    pub control: ControlFile,
}

impl Archives {
    /// Looks at the names and reads `base.tar` through for its label and control file.
    pub async fn open(root: &Path) -> Result<Archives, ImportError> {
        let names = archive_names(root).await?;
        let manifest = root.join("backup_manifest");
        if !manifest.exists() {
            return Err(ImportError::Missing("backup_manifest, which says where the backup ended"));
        }
        let (label, control) = head_of(&root.join("base.tar")).await?;
        let mut options = ImportOptions::new(control.pg, SourceKind::Backup, label.start);
        options.manifest = Some(manifest_algorithm(&manifest).await?.unwrap_or(ChecksumAlgorithm::Crc32c));
        Ok(Archives { root: root.into(), names, manifest, options, control })
    }

    /// The archive that holds WAL, and what its segments' paths there begin with.
    pub fn wal(&self) -> (PathBuf, &'static str) {
        let apart = self.root.join("pg_wal.tar");
        if apart.exists() { (apart, "") } else { (self.root.join("base.tar"), "pg_wal/") }
    }

    /// Imports them. `told` hears how far it has come.
    pub async fn import<O: LayerOut>(
        self,
        out: O,
        told: &(dyn Fn(ImportProgress) + Sync),
    ) -> Result<(ImportReport, O), ImportError> {
        let mut importer = Importer::new(self.options, out);
        let mut buffer = vec![0; READ_BYTES];
        for name in &self.names {
            // Where a tablespace lies, base.tar says in its map.
            importer.archive_begin(name, None)?;
            let unreadable = |source| ImportError::Io { path: name.clone(), source };
            let mut file = File::open(self.root.join(name)).await.map_err(unreadable)?;
            loop {
                let count = file.read(&mut buffer).await.map_err(unreadable)?;
                if count == 0 {
                    break;
                }
                importer.archive_data(&buffer[..count]).await?;
                told(importer.progress());
            }
        }
        send_manifest(&mut importer, &self.manifest, &mut buffer).await?;
        importer.end(None).await
    }
}

/// The archives of a directory in the order of their import. Files that are no part of a backup are refused: a compressed archive must not be
/// taken for one that is not there.
async fn archive_names(root: &Path) -> Result<Vec<String>, ImportError> {
    let unreadable = |source| ImportError::Io { path: root.display().to_string(), source };
    let mut entries = tokio::fs::read_dir(root).await.map_err(unreadable)?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.strip_suffix(".tar") {
            Some("pg_wal") => {}
            Some(stem) if stem == "base" || stem.bytes().all(|digit| digit.is_ascii_digit()) => {
                names.push(name);
            }
            None if name == "backup_manifest" => {}
            _ => {
                return Err(in_file(&name, "is neither base.tar, <oid>.tar, pg_wal.tar nor backup_manifest"));
            }
        }
    }
    names.sort_by_key(|name| (name == "base.tar", name.clone()));
    Ok(names)
}

/// The label and the control file in `base.tar`; the former is its first file, the latter its last but for WAL.
async fn head_of(base: &Path) -> Result<(BackupLabel, ControlFile), ImportError> {
    let unreadable = |source| ImportError::Io { path: "base.tar".into(), source };
    let broken = |source| ImportError::Tar { archive: "base.tar".into(), source };
    let mut file = File::open(base).await.map_err(unreadable)?;
    let (mut tar, mut buffer) = (TarIn::new(), vec![0; READ_BYTES]);
    let (mut label, mut control) = (None, None);
    let mut open: Option<(String, Vec<u8>)> = None;
    loop {
        let count = file.read(&mut buffer).await.map_err(unreadable)?;
        if count == 0 {
            return Err(ImportError::Missing(if label.is_none() {
                "backup_label"
            } else {
                "global/pg_control"
            }));
        }
        let mut bytes = &buffer[..count];
        while let Some(event) = tar.next(&mut bytes).map_err(broken)? {
            match event {
                TarEvent::Entry(entry)
                    if matches!(entry.path.as_str(), "backup_label" | "global/pg_control") =>
                {
                    open = Some((entry.path, Vec::new()));
                }
                TarEvent::Data(data) => {
                    if let Some((path, content)) = &mut open {
                        if content.len() + data.len() > MAX_HEAD {
                            return Err(in_file(path, "is too long"));
                        }
                        content.extend_from_slice(data);
                    }
                }
                TarEvent::Entry(_) => {}
                TarEvent::EntryEnd => match open.take() {
                    Some((path, content)) if path == "backup_label" => {
                        label = Some(BackupLabel::parse(&String::from_utf8_lossy(&content))?);
                    }
                    Some((_, content)) => control = Some(ControlFile::parse(&content)?),
                    None => {}
                },
            }
        }
        if let (Some(_), Some(_)) = (&label, &control) {
            return Ok((label.take().expect("just seen"), control.take().expect("just seen")));
        }
    }
}
