//! Postgres' clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Microseconds since 2000-01-01 00:00:00 UTC (Postgres' `TimestampTz`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PgTimestamp(pub i64);

/// 2000-01-01 in microseconds since 1970-01-01.
const EPOCH_OFFSET_US: i64 = 946_684_800_000_000;

impl PgTimestamp {
    /// The same instant on the system's clock; clamped at its ends.
    pub fn to_system_time(self) -> SystemTime {
        let unix_us = self.0.saturating_add(EPOCH_OFFSET_US);
        let distance = Duration::from_micros(unix_us.unsigned_abs());
        if unix_us >= 0 {
            UNIX_EPOCH + distance
        } else {
            UNIX_EPOCH.checked_sub(distance).unwrap_or(UNIX_EPOCH)
        }
    }

    /// From the system's clock; clamped at the ends of Postgres' range.
    pub fn from_system_time(time: SystemTime) -> Self {
        let unix_us = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
        };
        PgTimestamp(unix_us.saturating_sub(EPOCH_OFFSET_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_the_year_2000() {
        let y2k = UNIX_EPOCH + Duration::from_hours(10_957 * 24);
        assert_eq!(PgTimestamp::from_system_time(y2k), PgTimestamp(0));
        assert_eq!(PgTimestamp(0).to_system_time(), y2k);
        assert_eq!(
            PgTimestamp::from_system_time(PgTimestamp(-1_000_000).to_system_time()),
            PgTimestamp(-1_000_000)
        );
    }
}
