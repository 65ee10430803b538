//! The memory that all tails of a process share.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts the bytes of all tails against one limit.
///
/// A timeline freezes its tail early when the process uses more than half of the limit, and takes no more WAL while it is used up;
/// the layers being written then free memory.
#[derive(Debug)]
pub struct TailBudget {
    limit: usize,
    used: AtomicUsize,
    freed: Notify,
    filled: Notify,
}

impl TailBudget {
    /// At most `limit` bytes.
    pub fn new(limit: usize) -> TailBudget {
        TailBudget { limit, used: AtomicUsize::new(0), freed: Notify::new(), filled: Notify::new() }
    }

    /// The limit in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes used now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that a tail grew by. Does not wait: what is in hand is kept, the next WAL waits.
    pub fn take(&self, bytes: usize) {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before < self.limit && before + bytes >= self.limit {
            self.filled.notify_waiters();
        }
    }

    /// Gives back bytes.
    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// Whether tails should be frozen early.
    pub fn is_short(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// Waits until it is used up: those who hold some of it without receiving anything must give it back then.
    pub async fn full(&self) {
        loop {
            let filled = self.filled.notified();
            if self.used() >= self.limit {
                return;
            }
            filled.await;
        }
    }

    /// Waits until there is room.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.used() < self.limit {
                return;
            }
            freed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_room_goes_on_when_some_is_given_back() {
        let budget = std::sync::Arc::new(TailBudget::new(100));
        budget.take(100);
        assert!(budget.is_short());
        let waiting = tokio::spawn({
            let budget = std::sync::Arc::clone(&budget);
            async move { budget.room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        budget.give_back(60);
        waiting.await.unwrap();
        assert!(!budget.is_short());
    }
}
