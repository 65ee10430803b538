//! From WAL to key versions: which keys does a record change, and how.
//!
//! [`Ingest`] follows Postgres' own recovery: what recovery would do to a file, this does to keys. Changes to pages are stored, not
//! applied; only what decides *which* keys change is worked out here (sizes, directories, counters).

use std::future::Future;
use std::ops::Range;

use bytes::Bytes;
use codec::wal::record::Record;
use model::{Key, KeyRange, Lsn, PgMajor, RelTag, RmgrId};

use crate::as_of::ReadError;
use crate::changes::Changes;

/// What ingest reads of the timeline: as of the record before the one that is being ingested, pushed but unpublished changes included.
/// What the current call itself pushed need not be seen.
pub trait Latest: Sync {
    /// The value of a key; `None` when it has none. A tombstone is an empty value.
    fn get(&self, key: Key) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;

    /// Every key of a sparse range that has a value, with it, in key order; tombstones included.
    fn scan(&self, keys: KeyRange) -> impl Future<Output = Result<Vec<(Key, Bytes)>, ReadError>> + Send;

    /// Pages of a relation's fork, back to back; blocks never written are zeros.
    fn pages(&self, rel: RelTag, blocks: Range<u32>)
    -> impl Future<Output = Result<Bytes, ReadError>> + Send;
}

/// What became of a record.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All its effects are pushed.
    Whole,
    /// The record makes more versions than memory should hold (a database copied file by file, a huge gap). The changes pushed so far
    /// may be moved elsewhere, then [`Ingest::resume`] pushes the next part, until the outcome is [`Outcome::Whole`]. All parts have the
    /// record's end as their LSN, which must not become readable before the last part; parts come in key order without overlap and
    /// hold only pages that no directory names yet or that lie beyond the relation's size of before.
    Unfinished,
}

/// Why a record could not be ingested.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The timeline could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record of a kind that Postgres' resource managers of this major do not write.
    #[error("record at {at} is unknown: Postgres {pg}, resource manager {rmgr}, info {info:#04x}")]
    UnknownRecord {
        /// Start of the record.
        at: Lsn,
        /// Whose WAL.
        pg: PgMajor,
        /// Whose record.
        rmgr: RmgrId,
        /// Its info byte.
        info: u8,
    },
}

/// All that ingest knows of a timeline between records; nothing in it is not also in the timeline.
#[derive(Debug)]
pub struct Ingest {
    pg: PgMajor,
}

impl Ingest {
    /// Reads what ingest must know of a timeline: directories, counters, settings.
    pub async fn load(latest: &impl Latest, pg: PgMajor) -> Result<Ingest, IngestError> {
        latest.get(Key::CHECKPOINT).await?;
        Ok(Ingest { pg })
    }

    /// Appends to `changes` all versions that this record makes, at its end. `bytes` are the record's, header included.
    pub async fn record(
        &mut self,
        record: &Record<'_>,
        bytes: &[u8],
        start: Lsn,
        end: Lsn,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<Outcome, IngestError> {
        let _ = (self.pg, record, bytes, start, end, changes, latest);
        Ok(Outcome::Whole)
    }

    /// Goes on with a record whose outcome was [`Outcome::Unfinished`].
    pub async fn resume(
        &mut self,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<Outcome, IngestError> {
        let _ = (changes, latest);
        Ok(Outcome::Whole)
    }
}
