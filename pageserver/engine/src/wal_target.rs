//! Where a receiver's WAL goes: while the base is being imported only into the bucket, later to the timeline's owner as well.

use bytes::Bytes;
use model::{Lsn, PgTimestamp, Tli};
use tokio::sync::watch;

use crate::timeline::{AppendError, Timeline};
use crate::wal_keeper::{KeepWalError, WalKeeper};

/// Takes WAL from a source. Cheap to clone.
#[derive(Clone)]
pub enum WalTarget {
    /// The base is not there yet: WAL is stored, not ingested.
    Importing(WalKeeper),
    /// A timeline that can be read.
    Open(Timeline),
}

impl WalTarget {
    /// Takes bytes; waits while too much is pending. Bytes received before are dropped.
    pub async fn append(&self, at: Lsn, tli: Tli, bytes: Bytes) -> Result<(), AppendError> {
        match self {
            WalTarget::Importing(keeper) => Ok(keeper.append(at, tli, &bytes).await?),
            WalTarget::Open(timeline) => timeline.append_wal(at, tli, bytes).await,
        }
    }

    /// What the source's clock says: no history is old by our clock alone.
    pub fn note_source_time(&self, time: PgTimestamp) {
        if let WalTarget::Open(timeline) = self {
            timeline.note_source_time(time);
        }
    }

    /// Just past the last byte received: where to go on.
    pub fn received(&self) -> Lsn {
        match self {
            WalTarget::Importing(keeper) => keeper.received(),
            WalTarget::Open(timeline) => timeline.received(),
        }
    }

    /// The newest received bytes that are still there to compare with begin here.
    pub fn known_from(&self) -> Lsn {
        match self {
            WalTarget::Importing(keeper) => keeper.known_from(),
            WalTarget::Open(timeline) => timeline.known_from(),
        }
    }

    /// What may be reported to the source as flushed.
    pub fn flushed(&self) -> watch::Receiver<Lsn> {
        match self {
            WalTarget::Importing(keeper) => keeper.flushed(),
            WalTarget::Open(timeline) => timeline.flushed(),
        }
    }

    /// Stores everything received now and lists claims; answers what may be reported.
    pub async fn seal_now(&self) -> Result<Lsn, KeepWalError> {
        match self {
            WalTarget::Importing(keeper) => keeper.seal_now().await,
            WalTarget::Open(timeline) => timeline.seal_now().await,
        }
    }
}
