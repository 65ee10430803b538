//! Two versions of a page: the primary's file and ours. Equal, equal but for what Postgres itself does not log, or not.

use anyhow::Result;
use codec::page::{self, Page};
use model::RmgrId;

use crate::cluster_files::PageKind;

/// How two pages compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Byte for byte, but for LSN and checksum.
    Same,
    /// Under Postgres' masks.
    SameMasked,
    /// But for something that Postgres does not log; the reason is the value's.
    Unlogged(Unlogged),
    /// Not.
    Different,
}

/// What Postgres changes on a primary without telling WAL, beyond its masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unlogged {
    /// WAL holds a sequence's value some calls ahead, so that calls in between need no record.
    SequenceAhead,
    /// Redo of a `GiST` deletion sets a flag that the primary does not, and that nothing reads.
    GistTuplesDeleted,
    /// The cache of pages with room in an SP-GiST metapage.
    SpgistLastUsed,
    /// A page given its kind before anything is put there; the first record initialises it again.
    InitialisedEmpty,
}

/// Compares block `block` of a relation's main or init fork.
pub fn compare(kind: PageKind, block: u32, theirs: &Page, ours: &Page) -> Result<Verdict> {
    let rmgr = match kind {
        PageKind::Heap => RmgrId::HEAP,
        PageKind::Sequence => RmgrId::SEQ,
        PageKind::Btree => RmgrId::BTREE,
        PageKind::Hash => RmgrId::HASH,
        PageKind::Gin => RmgrId::GIN,
        PageKind::Gist => RmgrId::GIST,
        PageKind::Spgist => RmgrId::SPGIST,
        PageKind::Brin => RmgrId::BRIN,
        PageKind::Generic => RmgrId::GENERIC,
    };
    // LSN and checksum are the page's first ten bytes.
    if theirs[10..] == ours[10..] {
        return Ok(Verdict::Same);
    }
    let (mut theirs, mut ours) = (Box::new(*theirs), Box::new(*ours));
    if page::is_new(&ours) {
        return Ok(if is_empty(&theirs) {
            Verdict::Unlogged(Unlogged::InitialisedEmpty)
        } else {
            Verdict::Different
        });
    }
    if page::is_new(&theirs) {
        return Ok(Verdict::Different);
    }
    redo::mask::mask(rmgr, block, &mut theirs)?;
    redo::mask::mask(rmgr, block, &mut ours)?;
    if theirs == ours {
        return Ok(Verdict::SameMasked);
    }
    let reason = match kind {
        PageKind::Sequence => {
            forgive_sequence(&mut theirs, &ours);
            Unlogged::SequenceAhead
        }
        PageKind::Gist => {
            redo::mask::clear_gist_tuples_deleted(&mut theirs)?;
            redo::mask::clear_gist_tuples_deleted(&mut ours)?;
            Unlogged::GistTuplesDeleted
        }
        PageKind::Spgist if block == 0 => {
            // Page header 24 bytes, magic 4 bytes, then the cache to pd_lower.
            theirs[28..].fill(0);
            ours[28..].fill(0);
            Unlogged::SpgistLastUsed
        }
        _ => return Ok(Verdict::Different),
    };
    Ok(if theirs == ours { Verdict::Unlogged(reason) } else { Verdict::Different })
}

/// Has a header and no content.
fn is_empty(page: &Page) -> bool {
    let half = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    let (lower, upper) = (half(12), half(14));
    page[..].iter().all(|byte| *byte == 0)
        || (lower <= 24 && upper >= lower && page[24..upper.min(page.len())].iter().all(|byte| *byte == 0))
}

/// A sequence's row: `last_value` i64, `log_cnt` i64, `is_called` bool, after a tuple header of 24 bytes. Copies ours
/// over theirs where ours is what WAL says: as far ahead as `log_cnt` of theirs promises, with no calls left.
fn forgive_sequence(theirs: &mut Page, ours: &Page) {
    let item = u32::from_le_bytes([ours[24], ours[25], ours[26], ours[27]]);
    let at = (item & 0x7FFF) as usize + 24;
    let Some(row) = ours.get(at..at + 17) else { return };
    let number = |bytes: &[u8], at: usize| bytes[at..].first_chunk().map_or(0, |c| i64::from_le_bytes(*c));
    let (their_value, their_left) = (number(theirs.as_slice(), at), number(theirs.as_slice(), at + 8));
    let (our_value, our_left) = (number(row, 0), number(row, 8));
    if our_left == 0 && (our_value - their_value).unsigned_abs() >= their_left.unsigned_abs() {
        theirs[at..at + 17].copy_from_slice(row);
    }
}

/// Visibility-map bits of two pages: how many of theirs we lack, how many we have that they lack.
pub fn visibility_bits(theirs: &Page, ours: &Page) -> (u64, u64) {
    theirs[24..].iter().zip(&ours[24..]).fold((0, 0), |(missing, extra), (theirs, ours)| {
        (missing + u64::from((theirs & !ours).count_ones()), extra + u64::from((ours & !theirs).count_ones()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap_page() -> Page {
        let mut page = [0; 8192];
        page[12..14].copy_from_slice(&28_u16.to_le_bytes());
        page[14..16].copy_from_slice(&8152_u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
        // One normal item of 40 bytes at 8152, its tuple header 24 bytes long.
        page[24..28].copy_from_slice(&(0x1FD8_u32 | 1 << 15 | 40 << 17).to_le_bytes());
        page[8152 + 22] = 24;
        page
    }

    #[test]
    fn any_byte_of_a_tuple_that_differs_is_a_difference() {
        let theirs = heap_page();
        let mut ours = theirs;
        ours[8152 + 30] ^= 1;
        assert_eq!(compare(PageKind::Heap, 0, &theirs, &ours).unwrap(), Verdict::Different);
        ours = theirs;
        ours[8152 + 21] ^= 1;
        assert_eq!(compare(PageKind::Heap, 0, &theirs, &ours).unwrap(), Verdict::SameMasked, "a hint bit");
        ours = theirs;
        ours[..10].fill(9);
        assert_eq!(compare(PageKind::Heap, 0, &theirs, &ours).unwrap(), Verdict::Same, "LSN and checksum");
        assert_eq!(
            compare(PageKind::Heap, 0, &theirs, &[0; 8192]).unwrap(),
            Verdict::Different,
            "a missing page"
        );
    }
}
