//! How much received WAL all timelines of a process may hold that is not in the bucket yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Below this a timeline may always hold WAL, or many timelines could keep each other from receiving anything.
pub const OWN_SHARE: usize = 64 << 10;

/// Counts received bytes that are not stored. Above half of the limit everyone stores early; at the limit sources have to wait.
#[derive(Debug)]
pub struct WalMemory {
    held: AtomicUsize,
    limit: usize,
    is_short: AtomicBool,
    shortage: Notify,
    room: Notify,
}

impl WalMemory {
    /// Room for `limit` bytes.
    pub fn new(limit: usize) -> Arc<WalMemory> {
        let (held, is_short) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(WalMemory { held, limit, is_short, shortage: Notify::new(), room: Notify::new() })
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether so much is held that timelines store what they have.
    pub fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Waits until [`WalMemory::is_short`].
    pub async fn short(&self) {
        loop {
            let shortage = self.shortage.notified();
            if self.is_short() {
                return;
            }
            shortage.await;
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.held() >= self.limit
    }

    /// Is told when bytes were given back after this was called.
    pub(crate) fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    pub(crate) fn take(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held >= self.limit / 2 && !self.is_short.swap(true, Ordering::Relaxed) {
            self.shortage.notify_waiters();
        }
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        let held = self.held.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if held < self.limit / 4 {
            self.is_short.store(false, Ordering::Relaxed);
        }
        self.room.notify_waiters();
    }
}
