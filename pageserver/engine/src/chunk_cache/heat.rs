//! How much something is read lately: a count that halves with each period.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count. The period of the last use is in the upper half, the count in the lower.
#[derive(Debug, Default)]
pub(crate) struct Heat(AtomicU64);

fn parts(cell: u64) -> (u32, u32) {
    ((cell >> 32) as u32, cell as u32)
}

fn cell(period: u32, count: u32) -> u64 {
    u64::from(period) << 32 | u64::from(count)
}

fn decayed((period, count): (u32, u32), now: u32) -> u32 {
    count.checked_shr(now.saturating_sub(period)).unwrap_or(0)
}

impl Heat {
    /// One use. Costs an addition, but for the first in a period.
    pub(crate) fn touch(&self, now: u32) {
        let seen = self.0.load(Ordering::Relaxed);
        match parts(seen) {
            (period, count) if period == now => {
                if count < u32::MAX / 2 {
                    self.0.fetch_add(1, Ordering::Relaxed);
                }
            }
            older => self.move_on(seen, decayed(older, now).saturating_add(1), now),
        }
    }

    /// Many uses at once, from before.
    pub(crate) fn add(&self, count: u32, now: u32) {
        let seen = self.0.load(Ordering::Relaxed);
        self.move_on(seen, decayed(parts(seen), now).saturating_add(count).min(u32::MAX / 2), now);
    }

    fn move_on(&self, seen: u64, count: u32, now: u32) {
        // If another use came first, this one is not counted: it is a measure, not a sum.
        let _ = self.0.compare_exchange(seen, cell(now, count), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Uses, the older the less they count.
    pub(crate) fn value(&self, now: u32) -> u32 {
        decayed(parts(self.0.load(Ordering::Relaxed)), now)
    }

    /// The period of the last use.
    pub(crate) fn last(&self) -> u32 {
        parts(self.0.load(Ordering::Relaxed)).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_count_half_after_each_period() {
        let heat = Heat::default();
        (0..100).for_each(|_| heat.touch(3));
        assert_eq!([3, 4, 5, 50].map(|now| heat.value(now)), [100, 50, 25, 0]);
        heat.touch(4);
        assert_eq!((heat.value(4), heat.last()), (51, 4));
        heat.add(9, 5);
        assert_eq!(heat.value(5), 34);
        heat.add(u32::MAX, 5);
        heat.touch(5);
        assert_eq!(heat.value(5), u32::MAX / 2);
    }
}
