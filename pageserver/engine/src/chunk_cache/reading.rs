//! Who reads.

tokio::task_local! {
    static READING: ReadFor;
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFor {
    /// Somebody who may come back: what is read is kept, and worth more each time.
    Reader,
    /// One who comes by everything once: a full backup, a compaction. What is at hand is used, and nothing kept but for a moment.
    Scan,
}

impl ReadFor {
    /// For whom the running task reads.
    pub(crate) fn current() -> ReadFor {
        READING.try_with(|reading| *reading).unwrap_or(ReadFor::Reader)
    }
}

/// Does work whose reads of layers are a scan's, however deep below they are. Tasks that it spawns read for themselves.
pub async fn as_scan<R>(work: impl Future<Output = R>) -> R {
    READING.scope(ReadFor::Scan, work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_done_within_a_scan_is_a_scan() {
        assert_eq!(ReadFor::current(), ReadFor::Reader);
        let within = as_scan(async {
            tokio::task::yield_now().await;
            ReadFor::current()
        });
        assert_eq!(futures::join!(within, async { ReadFor::current() }), (ReadFor::Scan, ReadFor::Reader));
    }
}
