//! All that the engine asks of the world.

use std::ops::Range;
use std::path::PathBuf;
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
    /// A local file's first `length` bytes, streamed.
    File {
        /// Where.
        path: PathBuf,
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
