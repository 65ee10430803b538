//! How large a timeline is: all relations together, as of now or as of any LSN that can be read.
//!
//! Ingest keeps the size and stores it at each record that changes it, so a look at any LSN is one read of one key. What was written before
//! that key existed is counted: once in the background when the timeline is opened, and whenever an LSN below the first stored size is asked
//! for.

use std::sync::Arc;
use std::time::Duration;

use codec::directory::DbDirectory;
use codec::logical_size::LogicalSize;
use model::key::KeyKind;
use model::{Key, Lsn, RelTag};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Timeline;
use crate::as_of::ReadError;
use crate::error_story::error_story;
use crate::ingest::{CountedSize, SizeNow};
use crate::read::{Snapshot, malformed};

/// Relations whose sizes are read at once while they are counted.
const AT_ONCE: usize = 32;
/// Between attempts to count what cannot be read.
const PAUSE: Duration = Duration::from_secs(10);

impl Timeline {
    /// All relations together, as of the last record; `None` while what was there at the start is still being counted.
    pub fn logical_size(&self) -> Option<LogicalSize> {
        match self.shared.progress.borrow().size {
            SizeNow::Known(size) => Some(size),
            SizeNow::Since(difference) => self.shared.counted.get().map(|base| base.plus(difference)),
        }
    }

    /// The same, once it is known.
    pub async fn counted_logical_size(&self) -> Result<LogicalSize, ReadError> {
        let mut is_counted = self.shared.is_counted.subscribe();
        loop {
            is_counted.borrow_and_update();
            if let Some(size) = self.logical_size() {
                return Ok(size);
            }
            tokio::select! {
                biased;
                changed = is_counted.changed() => changed.map_err(|_| ReadError::Stopping)?,
                () = self.shared.stop.cancelled() => return Err(ReadError::Stopping),
            }
        }
    }

    /// All relations together as of an LSN that can be read.
    pub async fn logical_size_at(&self, lsn: Lsn) -> Result<LogicalSize, ReadError> {
        let view = self.shared.view.load_full();
        match stored(&view, lsn).await? {
            Some(size) => Ok(size),
            None => count(&view, lsn).await,
        }
    }
}

impl Timeline {
    /// The same, from the sizes of all relations: what [`Timeline::logical_size_at`] must be.
    pub async fn recounted_logical_size(&self, lsn: Lsn) -> Result<LogicalSize, ReadError> {
        count(&self.shared.view.load_full(), lsn).await
    }
}

/// The size that is stored as of an LSN, if it was kept then.
async fn stored(view: &Snapshot, lsn: Lsn) -> Result<Option<LogicalSize>, ReadError> {
    let key = Key::LOGICAL_SIZE;
    match view.get(key, lsn).await? {
        None => Ok(None),
        Some(bytes) => match LogicalSize::decode(&bytes) {
            Ok(size) => Ok(Some(size)),
            Err(problem) => Err(malformed(key, lsn, problem.to_string())),
        },
    }
}

/// The sum over all relations that exist as of an LSN.
async fn count(view: &Snapshot, lsn: Lsn) -> Result<LogicalSize, ReadError> {
    let key = Key::DB_DIRECTORY;
    let databases = match view.get(key, lsn).await? {
        None => DbDirectory::default(),
        Some(bytes) => {
            DbDirectory::decode(&bytes).map_err(|problem| malformed(key, lsn, problem.to_string()))?
        }
    };
    let mut total = LogicalSize::default();
    for (spc, db) in databases.databases.into_keys() {
        let entries = view.scan(Key::rel_directory_range(spc, db), lsn).await?;
        let rels: Vec<RelTag> = entries
            .into_iter()
            .filter(|(_, entry)| !entry.is_empty())
            .filter_map(|(key, _)| match key.kind() {
                Some(KeyKind::RelDirectoryEntry(rel)) => Some(rel),
                _ => None,
            })
            .collect();
        for rels in rels.chunks(AT_ONCE) {
            let sizes = rels.iter().map(|rel| view.rel_size(*rel, lsn));
            for size in futures::future::try_join_all(sizes).await? {
                total = total.resized(None, size);
            }
            // With everything in memory nothing above ever waits.
            tokio::task::yield_now().await;
        }
    }
    Ok(total)
}

/// Counts what a timeline had when it was opened, in a timeline that does not say it. Not begun before it is this one's turn, so that many old
/// timelines do not read all at once.
pub(super) async fn count_once(
    view: Arc<Snapshot>,
    turns: Arc<Semaphore>,
    counted: CountedSize,
    is_counted: tokio::sync::watch::Sender<()>,
    stop: CancellationToken,
) {
    let (timeline, lsn) = (view.timeline, view.last);
    let counting = async {
        let _turn = turns.acquire().await;
        loop {
            match count(&view, lsn).await {
                Ok(size) => return size,
                Err(error) => {
                    warn!(%timeline, error = %error_story(&error), "the logical size cannot be counted yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        size = counting => {
            info!(%timeline, %lsn, bytes = size.bytes(), forks = size.forks, "counted the logical size");
            let _ = counted.set(size); // only this task sets it
            is_counted.send_replace(());
        }
        () = stop.cancelled() => {}
    }
}
