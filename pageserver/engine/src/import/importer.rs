//! The import itself: file after file in, layers out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use codec::backup_label::{BackupLabel, BackupLabelError};
use codec::checkpoint::CheckPoint;
use codec::control::{ClusterState, ControlFile, ControlFileError};
use codec::directory::{DbDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::logical_size::LogicalSize;
use codec::manifest::{ChecksumAlgorithm, FileSum, ManifestError, ManifestFile, ManifestIn};
use codec::page::{self, Page};
use codec::tablespace_map::TablespaceMapError;
use codec::tablespaces::Tablespaces;
use codec::tar_in::{TarError, TarEvent, TarIn, TarKind};
use model::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use model::{
    BLOCK_SIZE, Fork, Key, Lsn, PgMajor, RELATION_SEGMENT_BLOCKS, RelLocator, RelTag, SLRU_SEGMENT_PAGES,
    SlruKind, Tli,
};

use super::batch::{Batch, Group};
use super::layer_out::{LayerOut, LayerOutError};
use super::path::{FileKind, kind_of, tablespace_of};

/// Largest file that is read whole: state of a prepared transaction with millions of subtransactions.
const MAX_SMALL_FILE: u64 = 64 << 20;
/// How many names an error or a report lists.
const MAX_NAMED: usize = 20;

/// In what state the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A base backup: consistent only with its WAL.
    Backup,
    /// A cluster that was shut down cleanly.
    Stopped,
}

/// What to import, and how much memory to use.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Major of the source.
    pub pg: PgMajor,
    /// State of the files.
    pub kind: SourceKind,
    /// The LSN of all layers: where the backup's WAL begins; of a stopped cluster, redo of its last checkpoint.
    pub base_lsn: Lsn,
    /// How the manifest sums files up; `None` when there is no manifest.
    pub manifest: Option<ChecksumAlgorithm>,
    /// Whether archives must end with a terminator: not those that Postgres 14 sends.
    pub terminated_archives: bool,
    /// Memory for what is gathered.
    pub buffer_bytes: u64,
    /// Where layers are cut.
    pub layer_bytes: u64,
    /// Files of this size and above get layers of their own.
    pub big_file_bytes: u64,
}

impl ImportOptions {
    /// With the usual sizes: 64 MiB of memory, layers of 128 MiB, own layers from 8 MiB on.
    pub fn new(pg: PgMajor, kind: SourceKind, base_lsn: Lsn) -> ImportOptions {
        ImportOptions {
            pg,
            kind,
            base_lsn,
            manifest: None,
            terminated_archives: pg >= PgMajor::V15,
            buffer_bytes: 64 << 20,
            layer_bytes: 128 << 20,
            big_file_bytes: 8 << 20,
        }
    }
}

/// What was imported.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// The source's control file.
    pub control: ControlFile,
    /// Its last checkpoint.
    pub checkpoint: CheckPoint,
    /// The LSN of the layers; WAL is to be ingested from here on.
    pub base_lsn: Lsn,
    /// Reads are right from here on: the backup's end, or the base LSN of a stopped cluster.
    pub readable_from: Lsn,
    /// The Postgres timeline of the base LSN.
    pub tli: Tli,
    /// Files imported.
    pub files: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Pages of relations.
    pub pages: u64,
    /// Layers written.
    pub layers: u64,
    /// Files that ended within a page, which only WAL completes (backups only).
    pub cut_pages: u64,
    /// Files that nobody knows, up to 20 of them by name.
    pub unknown: Vec<String>,
    /// How many there were.
    pub unknown_count: u64,
}

/// How far an import has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportProgress {
    /// Files imported.
    pub files: u64,
    /// Bytes of content seen.
    pub bytes: u64,
    /// Layers written.
    pub layers: u64,
}

/// Why a source cannot be imported.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error("archive {archive:?}")]
    Tar { archive: String, source: TarError },
    #[error(transparent)]
    Output(#[from] LayerOutError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    #[error(transparent)]
    BackupLabel(#[from] BackupLabelError),
    #[error(transparent)]
    TablespaceMap(#[from] TablespaceMapError),
    #[error("file {path}: {why}")]
    File { path: String, why: String },
    #[error("the backup does not match its manifest: {0}")]
    AgainstManifest(String),
    #[error("the source has no {0}")]
    Missing(&'static str),
    #[error("the source is {found}, expected {expected}")]
    NotAsExpected { found: String, expected: String },
    #[error("cannot read {path}")]
    Io { path: String, source: std::io::Error },
}

pub(super) fn in_file(path: &str, why: impl std::fmt::Display) -> ImportError {
    ImportError::File { path: path.into(), why: why.to_string() }
}

/// The file that is being read.
struct OpenFile {
    path: String,
    kind: FileKind,
    size: u64,
    received: u64,
    sum: Option<FileSum>,
    content: Content,
}

enum Content {
    Skipped,
    Whole(Vec<u8>),
    Pages(Pages),
}

/// A file that is a run of pages.
struct Pages {
    first: Key,
    next: u32,
    cut: Vec<u8>,
    to: PagesTo,
}

enum PagesTo {
    Batch,
    /// Layers of its own; the number says how many pages the open one has still room for.
    Layers {
        room: u32,
        per_layer: u32,
    },
}

/// What is known of one seen file until the manifest comes.
struct Seen {
    size: u64,
    sum: Vec<u8>,
}

/// Takes a source in, file after file. Either [`Importer::archive_begin`] and [`Importer::archive_data`], or
/// [`Importer::file_begin`], [`Importer::file_data`] and [`Importer::file_end`]; then the manifest if there is one; then [`Importer::end`].
pub struct Importer<O> {
    options: ImportOptions,
    out: O,
    batch: Batch,
    archive: Option<(String, String, TarIn)>,
    file: Option<OpenFile>,
    seen: HashMap<String, Seen>,
    manifest: Option<ManifestIn>,
    against_manifest: Vec<String>,
    arriving: Group,
    /// Segments of forks: number of blocks by segment number.
    forks: BTreeMap<RelTag, Vec<(u32, u32)>>,
    /// Of forks whose sizes are written.
    logical_size: LogicalSize,
    databases: BTreeMap<(u32, u32), bool>,
    slru: BTreeMap<SlruKind, BTreeSet<u32>>,
    prepared: BTreeSet<u64>,
    tablespaces: Tablespaces,
    control: Option<ControlFile>,
    label: Option<BackupLabel>,
    has_version: bool,
    files: u64,
    bytes: u64,
    pages: u64,
    cut_pages: u64,
    unknown: Vec<String>,
    unknown_count: u64,
}

impl<O: LayerOut> Importer<O> {
    /// Before the first file.
    pub fn new(options: ImportOptions, out: O) -> Self {
        let batch = Batch::new(options.layer_bytes);
        Importer {
            manifest: options.manifest.map(|_| ManifestIn::new()),
            options,
            out,
            batch,
            archive: None,
            file: None,
            seen: HashMap::new(),
            against_manifest: Vec::new(),
            arriving: Group::Rest,
            forks: BTreeMap::new(),
            logical_size: LogicalSize::default(),
            databases: BTreeMap::new(),
            slru: BTreeMap::new(),
            prepared: BTreeSet::new(),
            tablespaces: Tablespaces::default(),
            control: None,
            label: None,
            has_version: false,
            files: 0,
            bytes: 0,
            pages: 0,
            cut_pages: 0,
            unknown: Vec::new(),
            unknown_count: 0,
        }
    }

    /// How far it has come.
    pub fn progress(&self) -> ImportProgress {
        ImportProgress { files: self.files, bytes: self.bytes, layers: self.batch.layers }
    }

    /// A tar archive begins: `base.tar`, or `<oid>.tar` of a tablespace that lies at `location` on the source (as the replication protocol
    /// announces it; an in-place tablespace's is relative).
    pub fn archive_begin(&mut self, name: &str, location: Option<&str>) -> Result<(), ImportError> {
        self.archive_end()?;
        let prefix = match name.strip_suffix(".tar").unwrap_or(name) {
            "base" => String::new(),
            digits => {
                let unknown = || in_file(name, "an archive that is neither base.tar nor <oid>.tar");
                let oid: u32 = digits.parse().map_err(|_| unknown())?;
                self.tablespace(oid, location.unwrap_or(""));
                format!("pg_tblspc/{oid}/")
            }
        };
        self.archive = Some((name.into(), prefix, TarIn::new()));
        Ok(())
    }

    /// Notes a tablespace and where it lies on the source. A relative path means in place.
    pub fn tablespace(&mut self, oid: u32, path: &str) {
        let path = if path.starts_with('/') { path.as_bytes().to_vec() } else { Vec::new() };
        let known = self.tablespaces.paths.entry(oid).or_default();
        if known.is_empty() {
            *known = path;
        }
    }

    /// The next bytes of the archive.
    pub async fn archive_data(&mut self, mut bytes: &[u8]) -> Result<(), ImportError> {
        let Some((name, prefix, mut tar)) = self.archive.take() else {
            return Err(ImportError::Missing("archive that these bytes belong to"));
        };
        let result = loop {
            let event = match tar.next(&mut bytes) {
                Ok(None) => break Ok(()),
                Ok(Some(event)) => event,
                Err(source) => break Err(ImportError::Tar { archive: name.clone(), source }),
            };
            let done = match event {
                TarEvent::Entry(entry) => {
                    let path = format!("{prefix}{}", entry.path);
                    match entry.kind {
                        TarKind::File => self.file_begin(&path, entry.size),
                        TarKind::Directory => {
                            if let Some(oid) = tablespace_of(&path) {
                                self.tablespace(oid, "");
                            }
                            Ok(())
                        }
                        TarKind::Symlink { target } => {
                            self.link(&path, &target);
                            Ok(())
                        }
                    }
                }
                TarEvent::Data(data) => self.file_data(data).await,
                TarEvent::EntryEnd if self.file.is_some() => self.file_end().await,
                TarEvent::EntryEnd => Ok(()),
            };
            if let Err(error) = done {
                break Err(error);
            }
        };
        self.archive = Some((name, prefix, tar));
        result
    }

    fn archive_end(&mut self) -> Result<(), ImportError> {
        if let Some((archive, _, tar)) = self.archive.take() {
            tar.finish(self.options.terminated_archives)
                .map_err(|source| ImportError::Tar { archive, source })?;
        }
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) {
        match tablespace_of(path) {
            Some(oid) => self.tablespace(oid, target),
            // pg_wal may be a link; it is left out anyway.
            None if path == "pg_wal" => {}
            None => self.note_unknown(path),
        }
    }

    fn note_unknown(&mut self, path: &str) {
        self.unknown_count += 1;
        if self.unknown.len() < MAX_NAMED {
            self.unknown.push(path.into());
        }
    }

    /// A file begins; `path` is below the data directory.
    pub fn file_begin(&mut self, path: &str, size: u64) -> Result<(), ImportError> {
        if self.file.is_some() {
            return Err(in_file(path, "begins before the file before it ended"));
        }
        let kind = kind_of(self.options.pg, path);
        let pages = |first: Key| Pages { first, next: 0, cut: Vec::new(), to: PagesTo::Batch };
        let content = match &kind {
            FileKind::Relation { rel, segment } => {
                if size > u64::from(RELATION_SEGMENT_BLOCKS) * BLOCK_SIZE as u64 {
                    return Err(in_file(path, "is longer than a relation's segment can be"));
                }
                self.enter(Group::Database { spc: rel.spc, db: rel.db }, path)?;
                let mut pages = pages(Key::rel_block(*rel, segment * RELATION_SEGMENT_BLOCKS));
                if size >= self.options.big_file_bytes {
                    let per_layer = (self.options.layer_bytes / BLOCK_SIZE as u64).max(1) as u32;
                    pages.to = PagesTo::Layers { room: 0, per_layer };
                }
                Content::Pages(pages)
            }
            FileKind::Slru { kind, segment } => {
                if size > u64::from(SLRU_SEGMENT_PAGES) * BLOCK_SIZE as u64 {
                    return Err(in_file(path, "is longer than an SLRU's segment can be"));
                }
                self.enter(Group::Rest, path)?;
                Content::Pages(pages(Key::slru_page(*kind, *segment, 0)))
            }
            FileKind::Ignored(_) => Content::Skipped,
            FileKind::Unknown => {
                self.note_unknown(path);
                Content::Skipped
            }
            _ if size > MAX_SMALL_FILE => return Err(in_file(path, "is unbelievably long")),
            FileKind::RelationMap { spc, db } | FileKind::DatabaseVersion { spc, db } => {
                self.enter(Group::Database { spc: *spc, db: *db }, path)?;
                Content::Whole(Vec::new())
            }
            _ => Content::Whole(Vec::new()),
        };
        let sum = self.options.manifest.map(FileSum::new);
        self.file = Some(OpenFile { path: path.into(), kind, size, received: 0, sum, content });
        Ok(())
    }

    fn enter(&mut self, group: Group, path: &str) -> Result<(), ImportError> {
        if self.batch.is_closed(group) {
            return Err(in_file(path, "comes apart from the other files of its directory"));
        }
        self.arriving = group;
        Ok(())
    }

    /// The next bytes of the file.
    pub async fn file_data(&mut self, mut bytes: &[u8]) -> Result<(), ImportError> {
        let Some(mut file) = self.file.take() else {
            return Err(ImportError::Missing("file that these bytes belong to"));
        };
        file.received += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        if file.received > file.size {
            return Err(in_file(&file.path, "is longer than announced"));
        }
        if let Some(sum) = &mut file.sum {
            sum.update(bytes);
        }
        match &mut file.content {
            Content::Skipped => {}
            Content::Whole(content) => content.extend_from_slice(bytes),
            Content::Pages(pages) => {
                if !pages.cut.is_empty() {
                    let wanted = (BLOCK_SIZE - pages.cut.len()).min(bytes.len());
                    pages.cut.extend_from_slice(&bytes[..wanted]);
                    bytes = &bytes[wanted..];
                    if pages.cut.len() == BLOCK_SIZE {
                        let whole = std::mem::take(&mut pages.cut);
                        let left = (file.size - file.received) + bytes.len() as u64;
                        self.page(&file.path, pages, &whole, left).await?;
                    }
                }
                let mut chunks = bytes.chunks_exact(BLOCK_SIZE);
                let mut left = (file.size - file.received) + bytes.len() as u64;
                for whole in &mut chunks {
                    left -= BLOCK_SIZE as u64;
                    self.page(&file.path, pages, whole, left).await?;
                }
                pages.cut.extend_from_slice(chunks.remainder());
            }
        }
        self.file = Some(file);
        Ok(())
    }

    /// One page; `left` bytes of its file follow.
    async fn page(
        &mut self,
        path: &str,
        pages: &mut Pages,
        content: &[u8],
        left: u64,
    ) -> Result<(), ImportError> {
        let key = Key { field6: pages.first.field6 + pages.next, ..pages.first };
        if self.options.kind == SourceKind::Stopped && key.field1 == 0 {
            let whole: &Page = content.try_into().expect("pages are passed whole");
            self.check_page(path, whole, key.field6)?;
        }
        if let PagesTo::Layers { room, per_layer } = &mut pages.to {
            if *room == 0 {
                let count = (left.div_ceil(BLOCK_SIZE as u64) as u32 + 1).min(*per_layer);
                let end = Key { field6: key.field6 + count, ..key };
                self.out.begin(key..end).await?;
                self.batch.was_written(key..end);
                *room = count;
            }
            self.out.put(key, content).await?;
            *room -= 1;
            if *room == 0 {
                self.out.finish().await?;
            }
        } else {
            self.batch.put(key, content.to_vec());
        }
        pages.next += 1;
        self.pages += u64::from(key.field1 == 0);
        Ok(())
    }

    /// A stopped cluster's pages bear right checksums, if they bear any. Whether they do is known once `pg_control` was seen; a source that
    /// brings it first (a directory does) is checked.
    fn check_page(&self, path: &str, page: &Page, block: u32) -> Result<(), ImportError> {
        let checked = self.control.as_ref().is_some_and(ControlFile::has_checksums);
        if checked && !page::is_new(page) {
            let stored = u16::from_le_bytes([page[8], page[9]]);
            let computed = page::checksum(page, block);
            if stored != computed {
                let why = format!("block {block} has checksum {computed:#06x} but says {stored:#06x}");
                return Err(in_file(path, why));
            }
        }
        Ok(())
    }

    /// The file's end.
    pub async fn file_end(&mut self) -> Result<(), ImportError> {
        let Some(mut file) = self.file.take() else {
            return Err(ImportError::Missing("file that ends here"));
        };
        if file.received != file.size {
            return Err(in_file(&file.path, format!("ends after {} of {} bytes", file.received, file.size)));
        }
        if let Some(sum) = file.sum.take() {
            let seen = Seen { size: file.size, sum: sum.finish() };
            if self.seen.insert(file.path.clone(), seen).is_some() {
                return Err(in_file(&file.path, "comes twice"));
            }
        }
        let content = match &mut file.content {
            Content::Skipped => return Ok(()),
            Content::Pages(pages) => {
                if !pages.cut.is_empty() {
                    if self.options.kind == SourceKind::Stopped {
                        return Err(in_file(&file.path, "ends within a page"));
                    }
                    // The file was growing while it was copied; WAL completes the page.
                    let mut whole = std::mem::take(&mut pages.cut);
                    whole.resize(BLOCK_SIZE, 0);
                    self.cut_pages += 1;
                    self.page(&file.path, pages, &whole, 0).await?;
                }
                self.files += 1;
                if matches!(pages.to, PagesTo::Batch) {
                    self.batch.file_is_whole(pages.first, pages.next);
                }
                return self.pages_end(&file.kind, pages.next, &file.path).await;
            }
            Content::Whole(content) => std::mem::take(content),
        };
        self.files += 1;
        self.small_file(&file.path, &file.kind, content)
    }

    async fn pages_end(&mut self, kind: &FileKind, count: u32, path: &str) -> Result<(), ImportError> {
        match kind {
            FileKind::Relation { rel, segment } => {
                let segments = self.forks.entry(*rel).or_default();
                if segments.iter().any(|(number, _)| number == segment) {
                    return Err(in_file(path, "comes twice"));
                }
                segments.push((*segment, count));
                self.databases.entry((rel.spc, rel.db)).or_default();
            }
            FileKind::Slru { kind, segment } => {
                self.slru.entry(*kind).or_default().insert(*segment);
                self.batch.put(Key::slru_size(*kind, *segment), count.to_le_bytes().to_vec());
            }
            _ => {}
        }
        if self.batch.bytes() > self.options.buffer_bytes {
            self.relieve().await?;
        }
        Ok(())
    }

    /// Makes room by writing what no later file can touch.
    async fn relieve(&mut self) -> Result<(), ImportError> {
        for group in self.batch.complete_groups(self.arriving) {
            self.write_sizes(group)?;
            self.batch.write_group(group, &mut self.out).await?;
        }
        if self.batch.bytes() > self.options.buffer_bytes / 2 {
            self.batch.write_biggest_files(self.options.buffer_bytes / 2, &mut self.out).await?;
        }
        Ok(())
    }

    /// Sizes and directory entries of a database's relations, or of all that are left.
    fn write_sizes(&mut self, group: Group) -> Result<(), ImportError> {
        let forks = match group {
            Group::Rest => std::mem::take(&mut self.forks),
            Group::Database { spc, db } => {
                let of = |spc, db| RelTag { spc, db, rel: 0, fork: Fork::Main };
                let mut from = self.forks.split_off(&of(spc, db));
                let mut after = from.split_off(&RelTag { rel: u32::MAX, fork: Fork::Init, ..of(spc, db) });
                self.forks.append(&mut after);
                from
            }
        };
        let unlogged: BTreeSet<RelLocator> =
            forks.keys().filter(|rel| rel.fork == Fork::Init).map(|rel| rel.locator()).collect();
        for (rel, mut segments) in forks {
            if rel.fork != Fork::Init && unlogged.contains(&rel.locator()) {
                // Only the init fork of an unlogged relation has a history.
                self.batch.forget(Key::rel_range(rel));
                continue;
            }
            segments.sort_unstable();
            let size =
                fork_size(&segments, self.options.kind).map_err(|why| in_file(&rel.to_string(), why))?;
            self.batch.put(Key::rel_size(rel), size.to_le_bytes().to_vec());
            self.batch.put(Key::rel_directory_entry(rel), b"r".to_vec());
            self.logical_size = self.logical_size.resized(None, Some(size));
        }
        Ok(())
    }

    fn small_file(&mut self, path: &str, kind: &FileKind, content: Vec<u8>) -> Result<(), ImportError> {
        let pg = self.options.pg;
        let text = |content: Vec<u8>| String::from_utf8(content).map_err(|_| in_file(path, "is not UTF-8"));
        match kind {
            FileKind::RelationMap { spc, db } => {
                codec::relmap::RelationMap::decode(pg, &content).map_err(|error| in_file(path, error))?;
                self.databases.insert((*spc, *db), true);
                self.batch.put(Key::relation_map(*spc, *db), content);
            }
            FileKind::DatabaseVersion { spc, db } => {
                self.check_version(path, &text(content)?)?;
                self.databases.entry((*spc, *db)).or_default();
            }
            FileKind::ClusterVersion => {
                self.check_version(path, &text(content)?)?;
                self.has_version = true;
            }
            FileKind::TwoPhase { xid } => {
                let state =
                    codec::two_phase::strip_checksum(&content).map_err(|error| in_file(path, error))?;
                self.prepared.insert(*xid);
                self.batch.put(Key::two_phase_file(*xid), state.to_vec());
            }
            FileKind::ReplicationOrigins => {
                let origins = codec::replorigin::decode(&content).map_err(|error| in_file(path, error))?;
                for (origin, lsn) in origins {
                    self.batch.put(Key::replication_origin(origin), lsn.0.to_be_bytes().to_vec());
                }
            }
            FileKind::ControlFile => {
                let control = ControlFile::parse(&content)?;
                if control.pg != pg {
                    return Err(ImportError::NotAsExpected {
                        found: format!("a cluster of Postgres {}", control.pg),
                        expected: format!("Postgres {pg}"),
                    });
                }
                self.control = Some(control);
            }
            FileKind::BackupLabel => {
                let label = BackupLabel::parse(&text(content)?)?;
                // Said at once and not after terabytes.
                self.check_start(label.start)?;
                self.label = Some(label);
            }
            FileKind::TablespaceMap => {
                for mapped in codec::tablespace_map::parse(&text(content)?)? {
                    self.tablespace(mapped.oid, &mapped.path);
                }
            }
            FileKind::Relation { .. } | FileKind::Slru { .. } | FileKind::Ignored(_) | FileKind::Unknown => {}
        }
        Ok(())
    }

    fn check_version(&self, path: &str, text: &str) -> Result<(), ImportError> {
        if text.trim() == self.options.pg.to_string() {
            return Ok(());
        }
        Err(in_file(path, format!("says {:?}, expected {}", text.trim(), self.options.pg)))
    }

    /// The next bytes of the manifest, which comes after all files.
    pub fn manifest_data(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        let (Some(manifest), Some(algorithm)) = (&mut self.manifest, self.options.manifest) else {
            return Err(ImportError::Missing("agreement on a manifest"));
        };
        let (seen, wrong) = (&mut self.seen, &mut self.against_manifest);
        manifest.push(bytes, |file| {
            if let Err(why) = check_against(&file, seen.remove(&file.path), algorithm)
                && wrong.len() < MAX_NAMED
            {
                wrong.push(why);
            }
        })?;
        Ok(())
    }

    /// The end of the source. `end` is where the backup ended, as the server or the manifest says; a stopped cluster has none.
    ///
    /// Writes what is left, checks that all is there, and answers the output with the report.
    pub async fn end(mut self, end: Option<Lsn>) -> Result<(ImportReport, O), ImportError> {
        self.archive_end()?;
        if self.file.is_some() {
            return Err(ImportError::Missing("end of its last file"));
        }
        let end = self.check_manifest()?.or(end);
        let control = self.control.take().ok_or(ImportError::Missing("global/pg_control"))?;
        if !self.has_version {
            return Err(ImportError::Missing("PG_VERSION"));
        }
        if self.databases.get(&(GLOBAL_TABLESPACE, 0)) != Some(&true) {
            return Err(ImportError::Missing("global/pg_filenode.map"));
        }
        let tli = self.check_base(&control)?;
        let readable_from = match self.options.kind {
            SourceKind::Stopped => self.options.base_lsn,
            SourceKind::Backup => end.ok_or(ImportError::Missing("end LSN"))?.max(self.options.base_lsn),
        };
        let truncated = |error| in_file("global/pg_control", error);
        let checkpoint = CheckPoint::decode(control.pg, &control.checkpoint).map_err(truncated)?;
        self.write_sizes(Group::Rest)?;
        self.write_directories(&control);
        self.batch.write_rest(&mut self.out).await?;
        let report = ImportReport {
            control,
            checkpoint,
            base_lsn: self.options.base_lsn,
            readable_from,
            tli,
            files: self.files,
            bytes: self.bytes,
            pages: self.pages,
            layers: self.batch.layers,
            cut_pages: self.cut_pages,
            unknown: self.unknown,
            unknown_count: self.unknown_count,
        };
        Ok((report, self.out))
    }

    /// Where the manifest says that the backup ended; `None` without a manifest.
    fn check_manifest(&mut self) -> Result<Option<Lsn>, ImportError> {
        let Some(manifest) = self.manifest.take() else { return Ok(None) };
        let end = manifest.finish()?;
        for path in self.seen.keys().filter(|path| !is_exempt_from_manifest(path)) {
            if self.against_manifest.len() < MAX_NAMED {
                self.against_manifest.push(format!("{path} is not in it"));
            }
        }
        if !self.against_manifest.is_empty() {
            return Err(ImportError::AgainstManifest(self.against_manifest.join("; ")));
        }
        if let (Some(stated), Some(control)) = (end.system_identifier, &self.control)
            && stated != control.system_identifier
        {
            return Err(ImportError::AgainstManifest(format!(
                "it is of system {stated}, the files are of {}",
                control.system_identifier
            )));
        }
        let newest = end.wal_ranges.iter().max_by_key(|range| range.tli);
        Ok(newest.map(|range| range.end))
    }

    /// Checks that the files are of the moment that was expected; answers their Postgres timeline.
    fn check_base(&self, control: &ControlFile) -> Result<Tli, ImportError> {
        let (tli, start) = match self.options.kind {
            SourceKind::Backup => {
                let label = self.label.as_ref().ok_or(ImportError::Missing("backup_label"))?;
                if label.from_standby {
                    return Err(ImportError::NotAsExpected {
                        found: "a backup of a standby".into(),
                        expected: "one of a primary".into(),
                    });
                }
                (label.tli, label.start)
            }
            SourceKind::Stopped => {
                if control.state != ClusterState::ShutDown || self.label.is_some() {
                    let label = if self.label.is_some() { " with a backup_label" } else { "" };
                    return Err(ImportError::NotAsExpected {
                        found: format!("a cluster that is {}{label}", control.state),
                        expected: "one that was shut down cleanly".into(),
                    });
                }
                (control.tli(), control.redo())
            }
        };
        self.check_start(start)?;
        Ok(tli)
    }

    fn check_start(&self, start: Lsn) -> Result<(), ImportError> {
        let base = self.options.base_lsn;
        if start == base {
            return Ok(());
        }
        Err(ImportError::NotAsExpected { found: format!("of {start}"), expected: format!("of {base}") })
    }

    fn write_directories(&mut self, control: &ControlFile) {
        for (spc, _) in self.databases.keys() {
            if !matches!(*spc, DEFAULT_TABLESPACE | GLOBAL_TABLESPACE) {
                self.tablespaces.paths.entry(*spc).or_default();
            }
        }
        let databases = DbDirectory { databases: std::mem::take(&mut self.databases) };
        self.batch.put(Key::DB_DIRECTORY, databases.encode());
        for kind in SlruKind::ALL {
            let segments = SlruSegmentDirectory { segments: self.slru.remove(&kind).unwrap_or_default() };
            self.batch.put(Key::slru_directory(kind), segments.encode());
        }
        let prepared = TwoPhaseDirectory { xids: std::mem::take(&mut self.prepared) };
        self.batch.put(Key::TWO_PHASE_DIRECTORY, prepared.encode(control.pg));
        self.batch.put(Key::TABLESPACE_DIRECTORY, self.tablespaces.encode());
        self.batch.put(Key::LOGICAL_SIZE, self.logical_size.encode().to_vec());
        self.batch.put(Key::CONTROL_FILE, control.encode());
        self.batch.put(Key::CHECKPOINT, control.checkpoint.to_vec());
    }
}

/// What `pg_basebackup` adds or changes after the server made the manifest, and what the manifest leaves out (`pg_verifybackup` alike).
fn is_exempt_from_manifest(path: &str) -> bool {
    path.starts_with("pg_wal/")
        || matches!(path, "backup_manifest" | "postgresql.auto.conf" | "recovery.signal" | "standby.signal")
}

fn check_against(
    file: &ManifestFile,
    seen: Option<Seen>,
    algorithm: ChecksumAlgorithm,
) -> Result<(), String> {
    let path = &file.path;
    let Some(seen) = seen else {
        return if is_exempt_from_manifest(path) { Ok(()) } else { Err(format!("{path} is missing")) };
    };
    if is_exempt_from_manifest(path) {
        return Ok(());
    }
    if seen.size != file.size {
        return Err(format!("{path} has {} bytes instead of {}", seen.size, file.size));
    }
    match &file.checksum {
        Some((used, _)) if *used != algorithm => {
            Err(format!("{path} has a checksum of another kind than agreed"))
        }
        Some((_, sum)) if *sum != seen.sum => Err(format!("{path} has a wrong checksum")),
        Some(_) | None => Ok(()),
    }
}

/// Blocks of a fork, given those of its segments in order.
fn fork_size(segments: &[(u32, u32)], kind: SourceKind) -> Result<u32, &'static str> {
    let end_of = |(segment, blocks): &(u32, u32)| segment * RELATION_SEGMENT_BLOCKS + blocks;
    if kind == SourceKind::Backup {
        // Segments were copied at different moments: WAL settles what lies between.
        return Ok(segments.iter().filter(|(_, blocks)| *blocks > 0).map(end_of).max().unwrap_or(0));
    }
    // As Postgres counts: up to the first segment that is not full; empty ones may follow.
    let mut size = 0;
    for (at, segment) in segments.iter().enumerate() {
        let goes_on = segment.0 == at as u32 && size == segment.0 * RELATION_SEGMENT_BLOCKS;
        match goes_on {
            true => size = end_of(segment),
            false if segment.1 == 0 => {}
            false => return Err("a segment before its last one is not full"),
        }
    }
    Ok(size)
}
