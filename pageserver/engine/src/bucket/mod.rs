//! Buckets: a directory, S3, and one in memory.
//!
//! Reading order: [`config`] (which one, and opening it), [`retry`] (what every caller goes through), [`directory`], [`s3`] (its `file_body` and its `lifecycle` rules), [`memory`], and
//! for tests and simulations [`faulty`].

pub mod config;
pub mod directory;
pub mod faulty;
mod file_body;
mod lifecycle;
pub mod memory;
pub mod retry;
pub mod s3;

#[cfg(test)]
mod contract;

use std::ops::Range;

use crate::ports::BucketError;

pub use config::{BucketConfig, BucketUrl, OpenBucketError, ProbeError, probe};
pub use directory::DirectoryBucket;
pub use memory::MemoryBucket;
pub use retry::{BucketMetrics, RetryPolicy};

/// Entries of one page of a listing when the request names no limit: what S3 answers at most.
pub const LIST_PAGE: usize = 1000;

/// Most paths that one delete may name, as S3 has it.
pub const DELETE_BATCH: usize = 1000;

/// Sorts after every path that begins with a folded prefix: where a listing goes on behind it.
const AFTER_PREFIX: char = char::MAX;

/// A path that no bucket takes.
#[derive(Debug, thiserror::Error)]
#[error("{path:?} is not an object path: {why}")]
struct BadPath {
    path: String,
    why: &'static str,
}

/// What every bucket asks of a path, so that none can escape a directory or means different objects to different stores.
fn check_path(operation: &'static str, path: &str) -> Result<(), BucketError> {
    let why = if path.is_empty() {
        "it is empty"
    } else if path.len() > 900 {
        "it is longer than 900 bytes"
    } else if path.bytes().any(|byte| !(0x20..0x7f).contains(&byte) || byte == b'\\') {
        "only printable ASCII without backslash is allowed"
    } else if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        "a component is empty, `.` or `..`"
    } else if path.split('/').any(|part| part.len() > 255) {
        "a component is longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(rejected(operation, path, BadPath { path: path.into(), why }))
}

/// A range of no object, or past its end.
#[derive(Debug, thiserror::Error)]
#[error("range {start}..{end} of an object of {size} bytes")]
struct BadRange {
    start: u64,
    end: u64,
    size: u64,
}

/// The part of an object of `size` bytes that a request names.
fn resolve_range(path: &str, range: Option<Range<u64>>, size: u64) -> Result<Range<u64>, BucketError> {
    match range {
        None => Ok(0..size),
        Some(range) if range.start < range.end && range.start < size => Ok(range.start..range.end.min(size)),
        Some(Range { start, end }) => Err(rejected("get", path, BadRange { start, end, size })),
    }
}

fn rejected(
    operation: &'static str,
    path: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> BucketError {
    BucketError::Rejected { operation, path: path.into(), source: source.into() }
}

fn unavailable(
    operation: &'static str,
    path: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> BucketError {
    BucketError::Unavailable { operation, path: path.into(), source: source.into() }
}

/// A local file that is shorter than the part of it that was to be stored.
#[derive(Debug, thiserror::Error)]
#[error("the file to store has {found} bytes, expected at least {expected}")]
struct ShortFile {
    found: u64,
    expected: u64,
}
