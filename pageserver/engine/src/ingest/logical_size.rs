//! How much there is of all relations together: kept in memory, stored at each record that changes it.
//!
//! A timeline that is older than this key has no such value. What was there when ingest began is then counted by somebody else, while ingest
//! goes on and keeps the difference; once it is counted, the next record stores the sum.

use std::sync::{Arc, OnceLock};

use codec::logical_size::LogicalSize;
use codec::value::Value;
use model::{Key, Lsn};

use super::{At, IngestError, Latest, get, stored};
use crate::changes::Changes;

/// What ingest knows of the logical size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeNow {
    /// This is it.
    Known(LogicalSize),
    /// It is by so much more (or, wrapped around, less) than where ingest began, which is still to be counted.
    Since(LogicalSize),
}

impl Default for SizeNow {
    fn default() -> Self {
        SizeNow::Since(LogicalSize::default())
    }
}

/// Where the size of all relations is put, once, as of the LSN at which ingest was loaded.
pub type CountedSize = Arc<OnceLock<LogicalSize>>;

/// The sum as of the last record.
#[derive(Debug)]
pub(super) struct LogicalSizes {
    pub now: SizeNow,
    stored: Option<LogicalSize>,
    pub counted: CountedSize,
}

impl LogicalSizes {
    pub(super) async fn load(latest: &impl Latest) -> Result<LogicalSizes, IngestError> {
        let at = At { start: Lsn::INVALID, end: Lsn::INVALID };
        let key = Key::LOGICAL_SIZE;
        let stored = match get(latest, key, at).await? {
            None => None,
            Some(bytes) => Some(
                LogicalSize::decode(&bytes).map_err(|problem| self::stored("logical size", key, &problem))?,
            ),
        };
        let now = stored.map_or(SizeNow::default(), SizeNow::Known);
        Ok(LogicalSizes { now, stored, counted: CountedSize::default() })
    }

    /// A fork had `before` blocks and has `after` now.
    pub(super) fn resized(&mut self, before: Option<u32>, after: Option<u32>) {
        let (SizeNow::Known(size) | SizeNow::Since(size)) = &mut self.now;
        *size = size.resized(before, after);
    }

    /// Pushes the size if the stored one is no longer right.
    pub(super) fn push_changed(&mut self, changes: &mut Changes, lsn: Lsn) {
        let size = match (self.now, self.counted.get()) {
            (SizeNow::Known(size), _) => size,
            (SizeNow::Since(difference), Some(base)) => base.plus(difference),
            (SizeNow::Since(_), None) => return,
        };
        self.now = SizeNow::Known(size);
        if self.stored != Some(size) {
            changes.push(Key::LOGICAL_SIZE, lsn, &Value::Image(&size.encode()));
            self.stored = Some(size);
        }
    }
}
