//! How much of a file system the cache may have.

use crate::ports::DiskSpace;

/// How full the file system may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// At most so many hundredths of it are in use, by whomever …
    pub most_used_percent: u8,
    /// … and so many bytes stay free.
    pub least_free: u64,
}

impl Default for Watermarks {
    fn default() -> Self {
        Watermarks { most_used_percent: 80, least_free: 2 << 30 }
    }
}

/// How many bytes we may have, of which `ours` are there already, so that `limit` and the watermarks hold.
pub(super) fn allowed(limit: u64, ours: u64, space: DiskSpace, marks: Watermarks) -> u64 {
    let in_use = i128::from(space.total.saturating_sub(space.available));
    let most = i128::from(space.total) * i128::from(marks.most_used_percent) / 100;
    let room = (most - in_use).min(i128::from(space.available) - i128::from(marks.least_free));
    u64::try_from((i128::from(ours) + room).max(0)).map_or(limit, |allowed| allowed.min(limit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_limit_and_both_watermarks_hold() {
        let marks = Watermarks { most_used_percent: 80, least_free: 10 };
        let space = |available| DiskSpace { total: 100, available };
        // Plenty of room: what is configured.
        assert_eq!(allowed(20, 5, space(90), marks), 20);
        // 70 in use, 30 of them ours: ten more.
        assert_eq!(allowed(90, 30, space(30), marks), 40);
        // 85 in use: five have to go.
        assert_eq!(allowed(90, 30, space(15), marks), 25);
        // Others use more than we could give back.
        assert_eq!(allowed(90, 3, space(0), marks), 0);
        let free = Watermarks { most_used_percent: 100, least_free: 10 };
        assert_eq!(allowed(90, 30, space(15), free), 35);
    }

    proptest! {
        #[test]
        fn when_we_have_what_is_allowed_the_watermarks_hold_or_we_have_nothing(
            total in 1u64..1 << 50, available in 0u64..1 << 50, ours in 0u64..1 << 50, limit in 0u64..1 << 50,
            most_used_percent in 0u8..=100, least_free in 0u64..1 << 50,
        ) {
            let (available, ours) = (available.min(total), ours.min(total - available.min(total)));
            let marks = Watermarks { most_used_percent, least_free };
            let ours_then = allowed(limit, ours, DiskSpace { total, available }, marks);
            prop_assert!(ours_then <= limit);
            if ours_then > 0 {
                let available_then = i128::from(available) + i128::from(ours) - i128::from(ours_then);
                prop_assert!(available_then >= i128::from(least_free));
                prop_assert!((i128::from(total) - available_then) * 100 <= i128::from(total) * i128::from(most_used_percent));
            }
        }
    }
}
