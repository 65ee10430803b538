//! A local directory as a bucket: each object is a file under its own path.
//!
//! A put writes a temporary file, syncs it, and moves it into place in one step: by `link`, which fails when the name exists, or by
//! `rename` under the bucket's lock after comparing the tag. Then the directory is synced. So no reader sees half an object and no
//! two processes create the same one. A file once in place never changes; a replaced object is another file.
//!
//! ```text
//! <root>/<object path>
//! <root>/.bucket/lock       held (flock) by conditional replaces and deletes
//! <root>/.bucket/new/…      files that are not yet objects
//! ```
//!
//! A tag is the file's inode, modification time and size. Since an inode may be used again within a clock tick, a put chooses the
//! nanoseconds of the modification time at random.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rustix::fs::FlockOperation;

use super::{
    AFTER_PREFIX, DELETE_BATCH, LIST_PAGE, ShortFile, check_path, rejected, resolve_range, unavailable,
};
use crate::ports::{
    Body, Bucket, BucketError, ETag, ListRequest, ListedObject, Listing, Object, ObjectMeta, PutIf,
};

/// The bucket's own folder in its root; no object's path may begin with it.
const OWN_FOLDER: &str = ".bucket";

/// Leftovers of killed processes are removed when they are older than this: no put takes so long.
const STALE_TEMPORARY: Duration = Duration::from_hours(24);

/// A put races with deletes that remove empty folders; it makes them again at most so often.
const FOLDER_RETRIES: usize = 100;

/// Bytes of a file that are copied at once.
const COPY_PIECE: u64 = 1 << 20;

/// A directory that holds objects. Any number of processes may use one at once.
#[derive(Clone, Debug)]
pub struct DirectoryBucket {
    root: Arc<Path>,
}

impl DirectoryBucket {
    /// Opens the bucket in `root`, making the directory when it does not exist.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        let temporary = root.join(OWN_FOLDER).join("new");
        fs::create_dir_all(&temporary)?;
        let root = root.canonicalize()?;
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join(OWN_FOLDER).join("lock"))?;
        remove_stale(&temporary)?;
        Ok(DirectoryBucket { root: root.into() })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn file_of(&self, operation: &'static str, path: &str) -> Result<PathBuf, BucketError> {
        check_path(operation, path)?;
        if path == OWN_FOLDER || path.starts_with(".bucket/") {
            return Err(rejected(operation, path, "the path is the bucket's own"));
        }
        Ok(self.root.join(path))
    }

    /// Runs file operations where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &str,
        work: impl FnOnce(&Self) -> Result<T, BucketError> + Send + 'static,
    ) -> Result<T, BucketError> {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(&this)).await {
            Ok(result) => result,
            Err(error) => Err(unavailable(operation, path, error)),
        }
    }

    /// The lock that conditional replaces and deletes hold. Each call opens the file anew, as threads of one process must exclude each
    /// other too. Dropping the file unlocks.
    fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new().write(true).open(self.root.join(OWN_FOLDER).join("lock"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn get_now(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let name = self.file_of("get", path)?;
        let file = File::open(name).map_err(|error| failed("get", path, error))?;
        let meta = meta_of(path, &file.metadata().map_err(|error| failed("get", path, error))?)?;
        let range = resolve_range(path, range, meta.size)?;
        let length =
            usize::try_from(range.end - range.start).map_err(|error| rejected("get", path, error))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|error| unavailable("get", path, error))?;
        bytes.resize(length, 0);
        file.read_exact_at(&mut bytes, range.start).map_err(|error| failed("get", path, error))?;
        Ok(Object { bytes: bytes.into(), meta })
    }

    fn put_now(&self, path: &str, body: &Body, condition: &PutIf) -> Result<ETag, BucketError> {
        let target = self.file_of("put", path)?;
        // Saves the writing when it is in vain; what decides is below.
        if *condition == PutIf::Absent && target.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            return Err(BucketError::Precondition(path.into()));
        }
        let (temporary, etag) = self.write_temporary(path, body)?;
        match condition {
            PutIf::Absent => self.link_into_place(&temporary.0, &target),
            PutIf::Matches(expected) => self.replace(path, &temporary.0, &target, expected),
        }
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => BucketError::Precondition(path.into()),
            _ => failed("put", path, error),
        })?;
        Ok(etag)
    }

    /// The same file under another name: neither changes any more.
    fn copy_now(&self, from: &str, to: &str) -> Result<ETag, BucketError> {
        let (source, target) = (self.file_of("copy", from)?, self.file_of("copy", to)?);
        let meta = fs::metadata(&source).map_err(|error| failed("copy", from, error))?;
        self.link_into_place(&source, &target).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => BucketError::Precondition(to.into()),
            _ => failed("copy", from, error),
        })?;
        Ok(etag_of(&meta))
    }

    fn write_temporary(&self, path: &str, body: &Body) -> Result<(Temporary, ETag), BucketError> {
        let unique = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
        let temporary = Temporary(self.root.join(OWN_FOLDER).join("new").join(unique));
        let write = || -> io::Result<Option<ShortFile>> {
            let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary.0)?;
            match body {
                Body::Bytes(bytes) => file.write_all(bytes)?,
                Body::File { file: source, length } => {
                    let found = source.length()?;
                    if found < *length {
                        return Ok(Some(ShortFile { found, expected: *length }));
                    }
                    let mut piece = vec![0; COPY_PIECE.min(*length) as usize];
                    let mut at = 0;
                    while at < *length {
                        piece.truncate((*length - at).min(COPY_PIECE) as usize);
                        source.read_at(&mut piece, at)?;
                        file.write_all(&piece)?;
                        at += piece.len() as u64;
                    }
                }
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let nanos = rand::random_range(0..1_000_000_000);
            file.set_modified(UNIX_EPOCH + Duration::new(now.as_secs(), nanos))?;
            file.sync_all()?;
            Ok(None)
        };
        if let Some(short) = write().map_err(|error| failed("put", path, error))? {
            return Err(rejected("put", path, short));
        }
        let meta = fs::metadata(&temporary.0).map_err(|error| failed("put", path, error))?;
        let etag = etag_of(&meta);
        Ok((temporary, etag))
    }

    /// Gives the file its name if nothing has it.
    fn link_into_place(&self, temporary: &Path, target: &Path) -> io::Result<()> {
        let folder = target.parent().unwrap_or(&self.root);
        for attempt in 0.. {
            self.make_folder(folder)?;
            match fs::hard_link(temporary, target) {
                Ok(()) => break,
                // A delete found the folder empty just now.
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < FOLDER_RETRIES => {}
                Err(error) => return Err(error),
            }
        }
        sync_folder(folder)
    }

    fn replace(&self, path: &str, temporary: &Path, target: &Path, expected: &ETag) -> io::Result<()> {
        let _lock = self.lock()?;
        let found = match fs::metadata(target) {
            Ok(meta) if meta.is_file() => Some(etag_of(&meta)),
            Ok(_) => None,
            Err(error) if is_absence(&error) => None,
            Err(error) => return Err(error),
        };
        if found.as_ref() != Some(expected) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, path.to_owned()));
        }
        fs::rename(temporary, target)?;
        sync_folder(target.parent().unwrap_or(&self.root))
    }

    /// Makes a folder and those above it, each durable in its parent before anything is put into it.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() || !folder.starts_with(&self.root) {
            return Ok(());
        }
        let parent = folder.parent().unwrap_or(&self.root);
        for attempt in 0.. {
            self.make_folder(parent)?;
            match fs::create_dir(folder) {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => break,
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < FOLDER_RETRIES => {}
                Err(error) => return Err(error),
            }
        }
        match sync_folder(parent) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn delete_now(&self, paths: &[String]) -> Result<(), BucketError> {
        let lock = || self.lock().map_err(|error| failed("delete", "", error));
        let _lock = lock()?;
        let mut folders = std::collections::BTreeSet::new();
        for path in paths {
            let file = self.file_of("delete", path)?;
            match fs::remove_file(&file) {
                Ok(()) => folders.extend(file.parent().map(Path::to_path_buf)),
                // A folder: no object has this path.
                Err(error) if is_absence(&error) || error.kind() == ErrorKind::IsADirectory => {}
                Err(error) => return Err(failed("delete", path, error)),
            }
        }
        for folder in folders {
            match sync_folder(&folder) {
                Err(error) if !is_absence(&error) => {
                    return Err(failed("delete", &folder.to_string_lossy(), error));
                }
                _ => {}
            }
            self.remove_empty(&folder);
        }
        Ok(())
    }

    /// Removes a folder and those above it as far as they are empty, so that a listing shows no prefix without an object.
    fn remove_empty(&self, folder: &Path) {
        for folder in folder.ancestors().take_while(|folder| **folder != *self.root) {
            // Fails when there is something in it: that is the usual end.
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }

    fn list_now(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing, BucketError> {
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        if !folder.is_empty() {
            self.file_of("list", folder)?;
        }
        let mut walk = Walk { prefix, after, delimiter, limit, last: None, listing: Listing::default() };
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        walk.visit(&self.root, &folder).map_err(|error| failed("list", prefix, error))?;
        Ok(walk.listing)
    }
}

#[async_trait]
impl Bucket for DirectoryBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let name = path.to_owned();
        self.blocking("get", path, move |this| this.get_now(&name, range)).await
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let name = path.to_owned();
        self.blocking("put", path, move |this| this.put_now(&name, &body, &condition)).await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<ETag, BucketError> {
        let (source, target) = (from.to_owned(), to.to_owned());
        self.blocking("copy", to, move |this| this.copy_now(&source, &target)).await
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        let prefix = request.prefix.to_owned();
        let after = request.after.map(str::to_owned);
        let limit = request.limit.unwrap_or(LIST_PAGE).min(LIST_PAGE);
        let delimiter = request.delimiter;
        self.blocking("list", request.prefix, move |this| {
            this.list_now(&prefix, after.as_deref(), delimiter, limit)
        })
        .await
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        let name = path.to_owned();
        self.blocking("head", path, move |this| {
            let file = this.file_of("head", &name)?;
            meta_of(&name, &fs::metadata(file).map_err(|error| failed("head", &name, error))?)
        })
        .await
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        if paths.len() > DELETE_BATCH {
            return Err(rejected("delete", "", format!("{} paths in one delete", paths.len())));
        }
        let paths = paths.to_vec();
        self.blocking("delete", "", move |this| this.delete_now(&paths)).await
    }
}

/// A file that goes away with its owner. Once renamed, there is nothing left to remove.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A listing under way: visits folders in byte order of path.
struct Walk<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
    delimiter: bool,
    limit: usize,
    /// Where to go on behind what was listed last.
    last: Option<String>,
    listing: Listing,
}

impl Walk<'_> {
    /// Lists what is in `folder`, which is empty or ends in `/`. Answers whether the page is full.
    fn visit(&mut self, root: &Path, folder: &str) -> io::Result<bool> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if is_absence(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if folder.is_empty() && name == OWN_FOLDER {
                continue;
            }
            // With its slash a folder sorts where the paths in it do.
            if kind.is_dir() {
                names.push(format!("{folder}{name}/"));
            } else if kind.is_file() {
                names.push(format!("{folder}{name}"));
            }
        }
        names.sort_unstable();
        for path in names {
            let full = if path.ends_with('/') {
                let nothing_inside =
                    self.after.is_some_and(|after| after > path.as_str() && !after.starts_with(&path));
                let below_prefix = path.starts_with(self.prefix);
                if nothing_inside || !(below_prefix || self.prefix.starts_with(&path)) {
                    false
                } else if self.delimiter && below_prefix {
                    self.fold(root, path)?
                } else {
                    self.visit(root, &path)?
                }
            } else {
                self.file(root, path)?
            };
            if full {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_full(&mut self) -> bool {
        let full = self.listing.objects.len() + self.listing.prefixes.len() >= self.limit;
        if full {
            self.listing.next = self.last.take();
        }
        full
    }

    fn file(&mut self, root: &Path, path: String) -> io::Result<bool> {
        if !path.starts_with(self.prefix) || self.after.is_some_and(|after| path.as_str() <= after) {
            return Ok(false);
        }
        let meta = match fs::metadata(root.join(&path)) {
            Ok(meta) => meta,
            Err(error) if is_absence(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.is_full() {
            return Ok(true);
        }
        self.last = Some(path.clone());
        self.listing.objects.push(ListedObject { path, size: meta.len(), modified: meta.modified().ok() });
        Ok(false)
    }

    /// One entry for all that is in a folder, if there is an object behind `after`.
    fn fold(&mut self, root: &Path, path: String) -> io::Result<bool> {
        let mut inside = Walk {
            prefix: &path,
            after: self.after,
            delimiter: false,
            limit: 1,
            last: None,
            listing: Listing::default(),
        };
        inside.visit(root, &path)?;
        if inside.listing.objects.is_empty() {
            return Ok(false);
        }
        if self.is_full() {
            return Ok(true);
        }
        self.last = Some(format!("{path}{AFTER_PREFIX}"));
        self.listing.prefixes.push(path);
        Ok(false)
    }
}

fn remove_stale(folder: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| now.duration_since(time));
        if matches!(age, Ok(Ok(age)) if age > STALE_TEMPORARY) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn etag_of(meta: &fs::Metadata) -> ETag {
    ETag(format!("{:x}-{:x}.{:08x}-{:x}", meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

fn meta_of(path: &str, meta: &fs::Metadata) -> Result<ObjectMeta, BucketError> {
    if !meta.is_file() {
        return Err(BucketError::NotFound(path.into()));
    }
    Ok(ObjectMeta { size: meta.len(), etag: etag_of(meta), modified: meta.modified().ok() })
}

/// Nothing has this path, or something above it is an object.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn failed(operation: &'static str, path: &str, error: io::Error) -> BucketError {
    let reads = matches!(operation, "get" | "head" | "copy");
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory if reads => {
            BucketError::NotFound(path.into())
        }
        ErrorKind::PermissionDenied
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename
        | ErrorKind::ReadOnlyFilesystem => rejected(operation, path, error),
        _ => unavailable(operation, path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[tokio::test]
    async fn no_path_leads_out_of_the_directory_or_into_its_own_folder() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = DirectoryBucket::open(folder.path().join("bucket")).unwrap();
        for path in ["../x", "/x", "a/../../x", "a//x", "", "a/", ".bucket/lock", ".bucket"] {
            let put = bucket.put(path, Body::Bytes(Bytes::from_static(b"x")), PutIf::Absent).await;
            assert!(matches!(put, Err(BucketError::Rejected { .. })), "{path:?}: {put:?}");
            assert!(matches!(bucket.get(path, None).await, Err(BucketError::Rejected { .. })), "{path:?}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(bucket.list(ListRequest { prefix: "../", ..ListRequest::default() }).await.is_err());
    }

    #[tokio::test]
    async fn puts_leave_no_temporary_file_and_deletes_no_empty_folder() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = DirectoryBucket::open(folder.path()).unwrap();
        for _ in 0..2 {
            let _ = bucket.put("a/b/c", Body::Bytes(Bytes::from_static(b"x")), PutIf::Absent).await;
        }
        bucket.delete(&["a/b/c".into(), "a/b/missing".into(), "a".into()]).await.unwrap();
        assert!(!folder.path().join("a").exists());
        assert_eq!(fs::read_dir(folder.path().join(".bucket/new")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn puts_and_deletes_in_one_folder_do_not_trip_over_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = DirectoryBucket::open(folder.path()).unwrap();
        let work = (0..4).map(|worker| {
            let bucket = bucket.clone();
            tokio::spawn(async move {
                for round in 0..25 {
                    let path = format!("deep/er/{worker}-{round}");
                    let body = Body::Bytes(Bytes::from_static(b"x"));
                    bucket.put(&path, body, PutIf::Absent).await.unwrap();
                    bucket.delete(&[path]).await.unwrap();
                }
            })
        });
        for done in futures::future::join_all(work).await {
            done.unwrap();
        }
    }
}
