//! Pages of the SLRUs: commit log, multixacts, commit timestamps. They have no header; numbers index them directly.
//!
//! ```text
//! pg_xact               2 bits per xid, lowest first: 1 committed, 2 aborted         32,768 per page
//! pg_multixact/offsets  u32 per multixact                                             2,048 per page
//! pg_multixact/members  groups of 20 bytes: 4 status bytes, 4 u32 xids                1,636 per page
//! pg_commit_ts          i64 time, u16 origin                                            819 per page
//! ```
//!
//! A stored commit-log page may be followed by 8 bytes: the big-endian time of the last commit on it.

use codec::page::Page;
use model::{BLOCK_SIZE, PgTimestamp};

use crate::Fault;
use crate::fields::put;

/// Transactions per commit-log page.
pub const CLOG_XIDS_PER_PAGE: u32 = 32_768;
/// Multixacts per offsets page.
pub const OFFSETS_PER_PAGE: u32 = 2_048;
/// Members per members page.
pub const MEMBERS_PER_PAGE: u32 = 1_636;
/// Transactions per commit-timestamp page.
pub const COMMIT_TIMES_PER_PAGE: u32 = 819;
/// Bytes of a stored commit-log page that carries the time of its last commit.
pub const CLOG_WITH_TIME: usize = BLOCK_SIZE + 8;

const COMMITTED: u8 = 1;
const ABORTED: u8 = 2;
const MEMBERS_PER_GROUP: u32 = 4;
const GROUP_SIZE: usize = 20;
const COMMIT_TIME_SIZE: usize = 10;

/// Index of `number` on its page, which must be page `page_number`.
fn index_on(page_number: u32, number: u32, per_page: u32) -> Result<usize, Fault> {
    if number / per_page == page_number {
        Ok((number % per_page) as usize)
    } else {
        Err(Fault::OtherPage { number })
    }
}

fn set_status(page: &mut Page, page_number: u32, xids: &[u32], status: u8) -> Result<(), Fault> {
    for xid in xids {
        let index = index_on(page_number, *xid, CLOG_XIDS_PER_PAGE)?;
        let shift = index % 4 * 2;
        page[index / 4] = page[index / 4] & !(3 << shift) | status << shift;
    }
    Ok(())
}

/// Marks transactions of commit-log page `page_number` as committed.
pub fn set_committed(page: &mut Page, page_number: u32, xids: &[u32]) -> Result<(), Fault> {
    set_status(page, page_number, xids, COMMITTED)
}

/// Marks transactions of commit-log page `page_number` as aborted.
pub fn set_aborted(page: &mut Page, page_number: u32, xids: &[u32]) -> Result<(), Fault> {
    set_status(page, page_number, xids, ABORTED)
}

/// The time of the last commit on a stored commit-log page, when it carries one.
pub fn last_commit(stored: &[u8]) -> Option<PgTimestamp> {
    let time = stored.get(BLOCK_SIZE..)?.try_into().ok()?;
    Some(PgTimestamp(i64::from_be_bytes(time)))
}

/// Sets where the members of consecutive multixacts from `first` on begin, on offsets page `page_number`.
pub fn set_multixact_offsets(
    page: &mut Page,
    page_number: u32,
    first: u32,
    offsets: &[u32],
) -> Result<(), Fault> {
    let mut multi = first;
    for offset in offsets {
        let index = index_on(page_number, multi, OFFSETS_PER_PAGE)?;
        put(page, index * 4, &offset.to_le_bytes())?;
        multi = multi.wrapping_add(1);
    }
    Ok(())
}

/// Sets consecutive members, transaction and status, from `first` on, on members page `page_number`.
pub fn set_multixact_members(
    page: &mut Page,
    page_number: u32,
    first: u32,
    members: &[(u32, u32)],
) -> Result<(), Fault> {
    let mut number = first;
    for (xid, status) in members {
        let index = index_on(page_number, number, MEMBERS_PER_PAGE)?;
        let group = index / MEMBERS_PER_GROUP as usize * GROUP_SIZE;
        let within = index % MEMBERS_PER_GROUP as usize;
        page[group + within] = *status as u8;
        put(page, group + MEMBERS_PER_GROUP as usize + within * 4, &xid.to_le_bytes())?;
        number = number.wrapping_add(1);
    }
    Ok(())
}

/// Sets the commit time and replication origin of transactions of commit-timestamp page `page_number`.
pub fn set_commit_times(
    page: &mut Page,
    page_number: u32,
    xids: &[u32],
    time: PgTimestamp,
    origin: u16,
) -> Result<(), Fault> {
    for xid in xids {
        let at = index_on(page_number, *xid, COMMIT_TIMES_PER_PAGE)? * COMMIT_TIME_SIZE;
        put(page, at, &time.0.to_le_bytes())?;
        put(page, at + 8, &origin.to_le_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::page::ZERO_PAGE;

    #[test]
    fn a_transaction_has_two_bits_of_the_commit_log() {
        let mut page = ZERO_PAGE;
        set_committed(&mut page, 1, &[32_768, 32_771, 65_535]).unwrap();
        assert_eq!((page[0], page[8191]), (0b0100_0001, 0b0100_0000));
        set_aborted(&mut page, 1, &[32_771]).unwrap();
        assert_eq!(page[0], 0b1000_0001);
        assert_eq!(set_aborted(&mut page, 1, &[1]), Err(Fault::OtherPage { number: 1 }));
    }

    #[test]
    fn members_come_in_groups_of_four() {
        let mut page = ZERO_PAGE;
        set_multixact_members(&mut page, 1, 1_636 + 3, &[(0x01020304, 5), (0x0A0B0C0D, 1)]).unwrap();
        assert_eq!(page[3], 5);
        assert_eq!(page[16..21], [4, 3, 2, 1, 1]);
        assert_eq!(page[24..28], [0x0D, 0x0C, 0x0B, 0x0A]);
        assert!(set_multixact_members(&mut page, 1, 3_271, &[(1, 1), (2, 2)]).is_err());
    }

    #[test]
    fn offsets_and_commit_times_lie_by_number() {
        let mut page = ZERO_PAGE;
        set_multixact_offsets(&mut page, 2, 4_097, &[0x01020304, 5]).unwrap();
        assert_eq!(page[4..12], [4, 3, 2, 1, 5, 0, 0, 0]);
        assert!(set_multixact_offsets(&mut page, 2, 6_143, &[1, 2]).is_err());
        let mut page = ZERO_PAGE;
        set_commit_times(&mut page, 1, &[820], PgTimestamp(7), 9).unwrap();
        assert_eq!(page[10..20], [7, 0, 0, 0, 0, 0, 0, 0, 9, 0]);
        set_commit_times(&mut page, 1, &[1_637], PgTimestamp(7), 9).unwrap();
        assert!(set_commit_times(&mut page, 1, &[1_638], PgTimestamp(7), 9).is_err());
    }
}
