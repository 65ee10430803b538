//! Visibility-map pages (`visibilitymap.c`).
//!
//! Bytes from 24 on are the map: 4 heap blocks per byte, 2 bits per heap block: 1 all-visible, 2 all-frozen.

use codec::page::Page;
use codec::wal::record::Record;
use model::{BLOCK_SIZE, RmgrId};

use crate::heap::{self, Insert, Mark, Update};
use crate::heap2;
use crate::slotted::HEADER;
use crate::step::Step;
use crate::{Applied, Fault};

/// Heap blocks that one visibility-map page covers.
pub const HEAP_BLOCKS_PER_PAGE: u32 = ((BLOCK_SIZE - HEADER) * 4) as u32;
/// Both bits of a heap block.
pub const ALL_BITS: u8 = 3;
/// The bit that says that all tuples are frozen.
pub const FROZEN_BIT: u8 = 2;

/// The visibility-map block that covers a heap block.
pub fn map_block(heap_block: u32) -> u32 {
    heap_block / HEAP_BLOCKS_PER_PAGE
}

/// Byte of the page and shift within it.
fn place(heap_block: u32) -> (usize, u32) {
    let index = heap_block % HEAP_BLOCKS_PER_PAGE;
    (HEADER + (index / 4) as usize, index % 4 * 2)
}

/// Bits that a record clears: of which heap block, which ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clear {
    /// The heap block.
    pub heap_block: u32,
    /// [`ALL_BITS`] or [`FROZEN_BIT`].
    pub bits: u8,
}

/// What a record of the heap clears in the visibility map of its relation: for an update first for the old tuple's block, then for the
/// new one's. Nothing for records of other resource managers.
///
/// Before 17.11 and 18.6 the map's blocks are not among the record's; since then they are, with fork [`model::Fork::Vm`], and redo of those
/// blocks does this.
pub fn clears(record: &Record<'_>) -> Result<[Option<Clear>; 2], Fault> {
    let number = |id: u8| record.block(id).map(|block| block.block).ok_or(Fault::MissingBlock(id));
    let clear = |flags: u8, flag: u8, id: u8, bits: u8| {
        (flags & flag != 0).then(|| number(id).map(|heap_block| Clear { heap_block, bits })).transpose()
    };
    let main = record.main;
    Ok(match (record.rmgr, record.info & heap::OPERATION) {
        (RmgrId::HEAP, heap::INSERT) => {
            [clear(Insert::read(main)?.flags, heap::ALL_VISIBLE_CLEARED, 0, ALL_BITS)?, None]
        }
        (RmgrId::HEAP, heap::DELETE) => {
            [clear(Mark::read(main)?.flags, heap::ALL_VISIBLE_CLEARED, 0, ALL_BITS)?, None]
        }
        (RmgrId::HEAP, heap::UPDATE | heap::HOT_UPDATE) => {
            let flags = Update::read(main)?.flags;
            // Block 1 is the old tuple's heap page when that is another one.
            let old = u8::from(record.block(1).is_some());
            [
                clear(flags, heap::OLD_ALL_VISIBLE_CLEARED, old, ALL_BITS)?,
                clear(flags, heap::NEW_ALL_VISIBLE_CLEARED, 0, ALL_BITS)?,
            ]
        }
        (RmgrId::HEAP, heap::LOCK) | (RmgrId::HEAP2, heap2::LOCK_UPDATED) => {
            [clear(Mark::read(main)?.flags, heap::ALL_VISIBLE_CLEARED, 0, FROZEN_BIT)?, None]
        }
        (RmgrId::HEAP2, heap2::MULTI_INSERT) => {
            let flags = main.first().copied().ok_or(Fault::Record("a multi insert has no flags"))?;
            [clear(flags, heap::ALL_VISIBLE_CLEARED, 0, ALL_BITS)?, None]
        }
        _ => [None, None],
    })
}

/// Clears bits of a heap block. The block must belong to this page; others of the same remainder cannot be told apart.
///
/// The page's LSN stays, as in Postgres' own recovery.
pub fn clear(page: &mut Page, heap_block: u32, bits: u8) {
    let (at, shift) = place(heap_block);
    page[at] &= !((bits & ALL_BITS) << shift);
}

/// Sets bits of a heap block.
pub(crate) fn set(page: &mut Page, heap_block: u32, bits: u8) {
    let (at, shift) = place(heap_block);
    page[at] |= (bits & ALL_BITS) << shift;
}

/// Forgets the heap blocks from `bit` (0 to 7) of map byte `byte` on (`visibilitymap_prepare_truncate`). The page's LSN stays.
pub fn truncate(page: &mut Page, byte: u64, bit: u64) -> Result<(), Fault> {
    let outside = Fault::Outside { at: byte as usize, length: 1 };
    let map = &mut page[HEADER..];
    let byte = usize::try_from(byte).ok().filter(|byte| *byte < map.len()).ok_or(outside)?;
    let kept = u32::try_from(bit).ok().and_then(|bit| 1u8.checked_shl(bit)).ok_or(outside)? - 1;
    map[byte] &= kept;
    map[byte + 1..].fill(0);
    Ok(())
}

/// Redo of a visibility-map page that is among the blocks of a heap record (from 17.11 and 18.6 on).
pub(crate) fn redo_registered(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    for cleared in clears(step.record)?.into_iter().flatten() {
        if map_block(cleared.heap_block) == step.block.block {
            clear(page, cleared.heap_block, cleared.bits);
        }
    }
    Ok(Applied::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::page::ZERO_PAGE;

    #[test]
    fn bits_of_one_heap_block_do_not_touch_its_neighbours() {
        let mut page = [0xFF; BLOCK_SIZE];
        clear(&mut page, 5, ALL_BITS);
        assert_eq!(page[25], 0b1111_0011);
        clear(&mut page, HEAP_BLOCKS_PER_PAGE + 7, FROZEN_BIT);
        assert_eq!(page[25], 0b0111_0011);
        let mut page = ZERO_PAGE;
        set(&mut page, HEAP_BLOCKS_PER_PAGE - 1, ALL_BITS);
        assert_eq!(page[BLOCK_SIZE - 1], 0b1100_0000);
    }

    #[test]
    fn truncating_keeps_what_lies_before() {
        let mut page = [0xFF; BLOCK_SIZE];
        truncate(&mut page, 2, 4).unwrap();
        assert_eq!(page[..28], [[0xFF; 26].as_slice(), &[0x0F, 0]].concat());
        assert!(page[27..].iter().all(|byte| *byte == 0));
        truncate(&mut page, 8167, 0).unwrap();
        assert!(truncate(&mut page, 8168, 0).is_err());
        assert!(truncate(&mut page, 0, 8).is_err());
    }
}
