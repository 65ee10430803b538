//! All that the engine asks of the world.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

/// An object store with one name space: S3, or a directory.
///
/// Paths are relative, `/`-separated, without `.` or `..`. Every method may be called concurrently.
#[async_trait]
pub trait Bucket: Send + Sync + 'static {
    /// A whole object, or the part of it that `range` (in bytes, end exclusive) names. A range that reaches past the end answers what
    /// there is; one that starts past the end is [`BucketError::Rejected`].
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError>;

    /// Stores an object, all or nothing, durable when it answers. Answers the new object's tag.
    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError>;

    /// Stores the bytes of one object under another path, if nothing is there, as a put would. Only of objects that never change. A store that
    /// cannot do that by itself moves the bytes through this process.
    async fn copy(&self, from: &str, to: &str) -> Result<ETag, BucketError> {
        let found = self.get(from, None).await?;
        let (size, length) = (found.meta.size, found.bytes.len() as u64);
        if length != size {
            return Err(BucketError::Unavailable {
                operation: "copy",
                path: from.into(),
                source: format!("the answer broke off after {length} of {size} bytes").into(),
            });
        }
        self.put(to, Body::Bytes(found.bytes), PutIf::Absent).await
    }

    /// Up to `limit` objects (at most one store-defined page when `None`) whose path begins with `prefix`, in byte order of path, after
    /// `after`. With `delimiter`, everything below the next `/` after `prefix` is one entry of `prefixes`.
    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError>;

    /// Size and tag of an object.
    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError>;

    /// Removes objects; those that do not exist are no error. At most 1,000 a call.
    async fn delete(&self, paths: &[String]) -> Result<(), BucketError>;
}

/// What identifies an object's content for conditional replacement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

/// When a put may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutIf {
    /// Nothing is there.
    Absent,
    /// What is there has this tag.
    Matches(ETag),
}

/// What to store.
#[derive(Clone, Debug)]
pub enum Body {
    /// From memory.
    Bytes(Bytes),
    /// A local file's first `length` bytes, read in pieces.
    File {
        /// Which.
        file: Arc<dyn DiskFile>,
        /// How much of it.
        length: u64,
    },
}

/// An object, or a part of one.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its bytes.
    pub bytes: Bytes,
    /// About the whole object.
    pub meta: ObjectMeta,
}

/// What a store says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes of the whole object.
    pub size: u64,
    /// For conditional replacement.
    pub etag: ETag,
    /// By the store's clock.
    pub modified: Option<SystemTime>,
}

/// What to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListRequest<'a> {
    /// What paths begin with.
    pub prefix: &'a str,
    /// Only paths after this one.
    pub after: Option<&'a str>,
    /// Fold what lies below the next `/`.
    pub delimiter: bool,
    /// At most so many.
    pub limit: Option<usize>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Paths and sizes, in byte order of path.
    pub objects: Vec<ListedObject>,
    /// Folded prefixes, each ending in `/`.
    pub prefixes: Vec<String>,
    /// Where to go on, when there is more: the `after` of the next request.
    pub next: Option<String>,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Full path.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// By the store's clock.
    pub modified: Option<SystemTime>,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// No such object.
    #[error("object {0} does not exist")]
    NotFound(String),
    /// The put's condition did not hold.
    #[error("object {0} is not as the write expected")]
    Precondition(String),
    /// Worth trying again: the store is slow, away or overloaded, or the connection broke.
    #[error("object store is unavailable ({operation} {path})")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// On which object or prefix.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Trying again will not help: refused, malformed, no such bucket.
    #[error("object store rejected {operation} {path}")]
    Rejected {
        /// What was tried.
        operation: &'static str,
        /// On which object or prefix.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The time of day, for what people and policies go by. What waits or measures a duration asks the runtime's timer instead.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now. It may go backwards.
    fn now(&self) -> SystemTime;
}

/// Local files, which belong to this process alone. Nothing on a disk has to outlive the process.
///
/// Calls block for as long as the disk takes, but for [`DiskFile::read_at_hand`].
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Removes whatever is there, and makes the place if there is none.
    fn clear(&self) -> io::Result<()>;

    /// A new, empty file. Names are of letters, digits and `-`.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Takes a file's name away. Whoever has it open goes on using it; then its space is free.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// How full the file system is.
    fn space(&self) -> io::Result<DiskSpace>;
}

/// How full a file system is, with everything on it that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Its bytes.
    pub total: u64,
    /// Those that can still be written.
    pub available: u64,
}

/// An open local file. What was never written, or was punched out, reads as zeros up to the end.
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Fills the buffer if that takes no waiting. `false`: ask [`DiskFile::read_at`]; the buffer holds anything.
    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool;

    /// Fills the buffer. An end of the file before the buffer's end is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all bytes. The file grows as needed. Nothing is synced.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Gives the space of a stretch back. The file's length stays.
    fn punch_hole(&self, range: Range<u64>) -> io::Result<()>;

    /// Where it ends.
    fn length(&self) -> io::Result<u64>;
}
