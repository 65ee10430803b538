//! Where things lie in Postgres' SLRUs, and how their wrapping numbers compare.
//!
//! An SLRU is a sequence of 8 KiB pages without headers, 32 to a segment file. What an entry is depends on the kind:
//!
//! ```text
//! commit log          2 bits per transaction, low bits first             32,768 per page
//! commit timestamps   i64 time | u16 origin per transaction                 819 per page, 2 bytes unused
//! multixact offsets   u32 offset of the first member per multixact        2,048 per page
//! multixact members   groups of 4: a flag byte each, then a u32 xid each  1,636 per page, 12 bytes unused
//! ```
//!
//! Transactions, multixacts and offsets count modulo 2^32, so "before" is a matter of distance, and what a truncation removes is
//! decided page by page as in Postgres (`SimpleLruTruncate` and the `PagePrecedes` function of each kind).

use model::{SLRU_SEGMENT_PAGES, SlruKind};

/// Transactions per commit-log page.
pub const CLOG_PER_PAGE: u32 = 32_768;
/// Transactions per commit-timestamp page.
pub const COMMIT_TS_PER_PAGE: u32 = 819;
/// Multixacts per offsets page.
pub const OFFSETS_PER_PAGE: u32 = 2_048;
/// Members per members page.
pub const MEMBERS_PER_PAGE: u32 = 1_636;
/// First transaction id that is not reserved.
pub const FIRST_NORMAL_XID: u32 = 3;
/// First valid multixact; 0 is none.
pub const FIRST_MULTI: u32 = 1;

/// A page of an SLRU: which segment, and which page of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAt {
    /// Segment number, in the file's name.
    pub segment: u32,
    /// 0 to 31.
    pub page: u32,
}

/// Splits a page number.
pub fn place(page: u32) -> PageAt {
    PageAt { segment: page / SLRU_SEGMENT_PAGES, page: page % SLRU_SEGMENT_PAGES }
}

/// The commit-log page of a transaction.
pub fn clog_page(xid: u32) -> u32 {
    xid / CLOG_PER_PAGE
}

/// The commit-timestamp page of a transaction.
pub fn commit_ts_page(xid: u32) -> u32 {
    xid / COMMIT_TS_PER_PAGE
}

/// The offsets page of a multixact.
pub fn offsets_page(multi: u32) -> u32 {
    multi / OFFSETS_PER_PAGE
}

/// The members page of an offset.
pub fn members_page(offset: u32) -> u32 {
    offset / MEMBERS_PER_PAGE
}

/// The multixact after this one.
pub fn next_multi(multi: u32) -> u32 {
    multi.wrapping_add(1).max(FIRST_MULTI)
}

/// The multixact before this one.
pub fn previous_multi(multi: u32) -> u32 {
    if multi <= FIRST_MULTI { u32::MAX } else { multi - 1 }
}

/// Whether transaction `a` is older than `b`. Reserved ids (below 3) are older than all others.
pub fn xid_precedes(a: u32, b: u32) -> bool {
    if a < FIRST_NORMAL_XID || b < FIRST_NORMAL_XID { a < b } else { wraps_before(a, b) }
}

/// Whether multixact (or offset) `a` is older than `b`.
pub fn wraps_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether every entry of page `a` is older than every entry of page `b`, as the kind's truncation judges.
pub fn page_precedes(kind: SlruKind, a: u32, b: u32) -> bool {
    let (per_page, first, precedes): (u32, u32, fn(u32, u32) -> bool) = match kind {
        SlruKind::Clog => (CLOG_PER_PAGE, FIRST_NORMAL_XID + 1, xid_precedes),
        SlruKind::CommitTs => (COMMIT_TS_PER_PAGE, FIRST_NORMAL_XID + 1, xid_precedes),
        SlruKind::MultiXactOffsets => (OFFSETS_PER_PAGE, FIRST_MULTI + 1, wraps_before),
        SlruKind::MultiXactMembers => (MEMBERS_PER_PAGE, 0, wraps_before),
    };
    let entry = |page: u32| page.wrapping_mul(per_page).wrapping_add(first);
    precedes(entry(a), entry(b)) && precedes(entry(a), entry(b).wrapping_add(per_page - 1))
}

/// Whether truncating to begin with page `cutoff` removes this segment: only when its first and last page are both before it.
pub fn segment_is_truncated(kind: SlruKind, segment: u32, cutoff: u32) -> bool {
    let first = segment.wrapping_mul(SLRU_SEGMENT_PAGES);
    page_precedes(kind, first, cutoff) && page_precedes(kind, first + (SLRU_SEGMENT_PAGES - 1), cutoff)
}

/// The members segments that a truncation from `oldest` to `new_oldest` (offsets) removes: from the first one's segment up to but not
/// including the last one's, around the end of the number space if need be. Answers whether `segment` is one of them.
pub fn members_segment_is_truncated(segment: u32, oldest: u32, new_oldest: u32) -> bool {
    let start = place(members_page(oldest)).segment;
    let end = place(members_page(new_oldest)).segment;
    if start <= end { (start..end).contains(&segment) } else { segment >= start || segment < end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn before_is_a_matter_of_distance() {
        assert!(xid_precedes(10, 11) && !xid_precedes(11, 10) && !xid_precedes(10, 10));
        assert!(xid_precedes(u32::MAX, 3), "numbers wrap around");
        assert!(xid_precedes(2, u32::MAX), "a reserved id is older than all");
        assert!(wraps_before(u32::MAX, 0));
        assert_eq!(next_multi(u32::MAX), 1);
        assert_eq!(previous_multi(1), u32::MAX);
        assert_eq!(previous_multi(next_multi(7)), 7);
    }

    #[test]
    fn truncation_removes_whole_segments_before_the_cutoff_only() {
        use SlruKind::{Clog, CommitTs, MultiXactOffsets};
        for kind in [Clog, CommitTs, MultiXactOffsets] {
            assert!(segment_is_truncated(kind, 0, 32), "{kind:?}: the segment right before the cutoff goes");
            assert!(!segment_is_truncated(kind, 0, 31), "{kind:?}: its last page is still needed");
            assert!(!segment_is_truncated(kind, 1, 32), "{kind:?}: the cutoff's own segment stays");
            assert!(!segment_is_truncated(kind, 5, 32), "{kind:?}: later segments stay");
        }
        // The very last number that a list can hold.
        assert!(segment_is_truncated(MultiXactOffsets, u32::MAX, 1));
        // Transaction 0x100: segments shortly before the end of the number space are its past.
        let last_segment = clog_page(u32::MAX) / SLRU_SEGMENT_PAGES;
        assert!(segment_is_truncated(Clog, last_segment, clog_page(0x100)));
        assert!(!segment_is_truncated(Clog, 0, clog_page(0xF000_0000)), "the future is no past");
    }

    #[test]
    fn truncating_members_goes_around_the_end() {
        let per_segment = MEMBERS_PER_PAGE * SLRU_SEGMENT_PAGES;
        let last = place(members_page(u32::MAX)).segment;
        assert_eq!(last, 82_040);
        let gone = |segment| members_segment_is_truncated(segment, u32::MAX - 5, per_segment + 1);
        assert!(gone(last) && gone(0));
        assert!(!gone(1) && !gone(last - 1));
        assert!(!members_segment_is_truncated(3, 3 * per_segment, 3 * per_segment + 7), "nothing to remove");
    }

    proptest! {
        #[test]
        fn no_page_number_panics(a: u32, b: u32) {
            for kind in SlruKind::ALL {
                let both = page_precedes(kind, a, b) && page_precedes(kind, b, a);
                prop_assert!(!both);
                let segment = a / SLRU_SEGMENT_PAGES;
                prop_assert!(!segment_is_truncated(kind, segment, segment * SLRU_SEGMENT_PAGES));
            }
        }
    }
}
