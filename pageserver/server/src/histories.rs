//! What the wire services ask of the engine. The engine implements it; so does an in-memory history, for tests and fuzzers.

use std::error::Error;
use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use engine::as_of::ReadError;
use engine::timeline::lease::LeaseError;
use model::{Lsn, RelTag, SlruKind, TenantId, TenantShardId, TimelineId};
use tokio::io::AsyncWrite;

/// An LSN that is not named for good is named for at most so long: a hundred years.
pub const LONGEST_NAME: Duration = Duration::from_hours(24 * 36_525);

/// All timelines that are served.
pub trait Histories: Clone + Send + Sync + 'static {
    /// One of them.
    type History: History;

    /// Looks a timeline up; waits until its tenant is open.
    fn history(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> impl Future<Output = Result<Self::History, HistoryNotFound>> + Send;
}

/// There is no such timeline here, or it cannot be read yet. The text says which.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HistoryNotFound(pub String);

/// One page to read: relation fork, block, as of when.
pub type PageRequest = (RelTag, u32, Lsn);

/// A timeline, as computes read it. Cheap to clone.
pub trait History: Clone + Send + Sync + 'static {
    /// 8,192 bytes.
    type Page: AsRef<[u8]> + Send + Sync;

    /// End of the newest record that can be read.
    fn last_record_lsn(&self) -> Lsn;

    /// Oldest LSN that can be read.
    fn readable_from(&self) -> Lsn;

    /// End of what is in layers in the bucket. For messages.
    fn disk_consistent_lsn(&self) -> Lsn;

    /// Where WAL comes from and how that goes. For messages.
    fn source_status(&self) -> String;

    /// Whether it is served elsewhere from now on: the client is to connect anew.
    fn is_elsewhere(&self) -> bool;

    /// Waits until `last_record_lsn` is at or past `lsn`.
    fn wait_for(&self, lsn: Lsn, timeout: Duration) -> impl Future<Output = Result<(), WaitFailure>> + Send;

    /// Reads pages; answers as many results as there are requests, in their order, appended to `out`. A block past the relation's end is
    /// zeros, and so is any of a free space or visibility map that does not exist.
    fn get_pages(
        &self,
        requests: &[PageRequest],
        out: &mut Vec<Result<Self::Page, ReadError>>,
    ) -> impl Future<Output = ()> + Send;

    /// Size of a fork in blocks; `None` when it does not exist.
    fn rel_size(&self, rel: RelTag, lsn: Lsn) -> impl Future<Output = Result<Option<u32>, ReadError>> + Send;

    /// Bytes of a database's relations in the default tablespace; 0 for an unknown one.
    fn db_size(&self, db: u32, lsn: Lsn) -> impl Future<Output = Result<u64, ReadError>> + Send;

    /// Pages of an SLRU segment, back to back; `None` when it does not exist.
    fn slru_segment(
        &self,
        kind: SlruKind,
        segment: u32,
        lsn: Lsn,
    ) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;

    /// Which shard of its tenant this is.
    fn tenant_shard(&self) -> TenantShardId;

    /// Keeps an LSN readable for so long from now on. Answers until when, once that is durable; `None` when the LSN cannot be read already.
    fn lease(
        &self,
        lsn: Lsn,
        length: Duration,
    ) -> impl Future<Output = Result<Option<SystemTime>, LeaseError>> + Send;

    /// Writes a tar of the cluster as of `lsn`. Ends the tar properly only when all of it was written.
    fn backup(
        &self,
        kind: BackupKind,
        lsn: Lsn,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> impl Future<Output = Result<(), BackupFailure>> + Send;
}

/// Which tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupKind {
    /// A whole cluster that stock Postgres starts.
    Full,
    /// What a compute with remote pages starts from: everything but the relations' blocks. One for a replica, without replication slots, is no
    /// different: a timeline has none.
    Base,
}

/// Why an LSN was not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitFailure {
    /// Its time is over.
    #[error("timed out")]
    TimedOut,
    /// Ingest has stopped, so it will not be reached. Says why.
    #[error("ingest has stopped: {0}")]
    Broken(String),
    /// It is served elsewhere from now on.
    #[error("reconnect")]
    Elsewhere,
    /// The timeline ends.
    #[error("the timeline is shutting down")]
    Stopping,
}

/// Why a backup was not written whole.
#[derive(Debug, thiserror::Error)]
pub enum BackupFailure {
    /// The receiver is gone.
    #[error("cannot send the backup")]
    Send(#[source] std::io::Error),
    /// Reading the timeline failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Anything else, such as an LSN between records or a kind that is not offered.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
}
