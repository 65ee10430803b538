//! BRIN, resource manager 17 (`brin_xlog.h`). The bit 0x80 of info says that block 0 starts empty.
//!
//! ```text
//! special space, at 8184: … | u16 flags | u16 page type
//! range map page, from 24 on: TIDs, 1360 of them
//! 0x00 create           main u32 pages per range | u16 version
//! 0x10 insert           main u32 heap block | u32 pages per range | u16 offset; data 0: tuple; block 1: range map
//! 0x20 update           main u16 old offset | pad | as insert; block 2: the old tuple's page
//! 0x30 same-page update main u16 offset; data: tuple
//! 0x40 extend range map main u32 block; block 0: metapage, 1: new range map page
//! 0x50 desummarize      main u32 pages per range | u32 heap block | u16 offset; block 0: range map, 1: the tuple's page
//! ```

use codec::bytes_in::BytesIn;
use codec::page::Page;
use model::BLOCK_SIZE;

use crate::fields::{Tid, put_u16, put_u32};
use crate::slotted::{self, Placing};
use crate::step::Step;
use crate::{Applied, Fault};

const CREATE: u8 = 0x00;
const INSERT: u8 = 0x10;
const UPDATE: u8 = 0x20;
const SAME_PAGE_UPDATE: u8 = 0x30;
const EXTEND_MAP: u8 = 0x40;
const DESUMMARIZE: u8 = 0x50;
const OPERATION: u8 = 0x70;
const INIT_PAGE: u8 = 0x80;

const SPECIAL_SIZE: usize = 8;
pub(crate) const FLAGS: usize = BLOCK_SIZE - 4;
pub(crate) const PAGE_TYPE: usize = BLOCK_SIZE - 2;

/// What a page is, in its special space.
pub(crate) mod page_type {
    pub(crate) const META: u16 = 0xF091;
    pub(crate) const RANGE_MAP: u16 = 0xF092;
    pub(crate) const REGULAR: u16 = 0xF093;
}

/// Offsets in the metapage.
mod meta {
    pub(super) const MAGIC: usize = 24;
    pub(super) const VERSION: usize = 28;
    pub(super) const PAGES_PER_RANGE: usize = 32;
    pub(super) const LAST_MAP_PAGE: usize = 36;
    pub(super) const END: usize = 40;
}

/// TIDs on a range map page.
const MAP_ENTRIES: u32 = 1360;

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    const MAGIC: u32 = 0xA810_9CFA;
    let mut main = step.main();
    let data = step.block.data;
    match (step.record.info & OPERATION, step.block.id) {
        (CREATE, 0) => {
            let (pages_per_range, version) = (main.u32_le()?, main.u16_le()?);
            init(page, page_type::META)?;
            put_u32(page, meta::MAGIC, MAGIC)?;
            put_u32(page, meta::VERSION, version.into())?;
            put_u32(page, meta::PAGES_PER_RANGE, pages_per_range)?;
            put_u32(page, meta::LAST_MAP_PAGE, 0)?;
            slotted::set_lower(page, meta::END);
        }
        (INSERT, id @ (0 | 1)) => insert(step, id, &mut main, page)?,
        (UPDATE, id @ (0 | 1)) => {
            main.skip(4)?;
            insert(step, id, &mut main, page)?;
        }
        (UPDATE, 2) => slotted::delete_keeping_numbers(page, usize::from(main.u16_le()?))?,
        (SAME_PAGE_UPDATE, 0) => slotted::overwrite(page, usize::from(main.u16_le()?), data)?,
        (EXTEND_MAP, 0) => {
            put_u32(page, meta::LAST_MAP_PAGE, main.u32_le()?)?;
            // Metapages of before 11 count their contents as part of the hole.
            slotted::set_lower(page, meta::END);
        }
        (EXTEND_MAP, 1) => init(page, page_type::RANGE_MAP)?,
        (DESUMMARIZE, id @ (0 | 1)) => {
            let (pages_per_range, heap_block) = (main.u32_le()?, main.u32_le()?);
            if id == 0 {
                set_range(page, pages_per_range, heap_block, Tid::INVALID)?;
            } else {
                slotted::delete_keeping_numbers(page, usize::from(main.u16_le()?))?;
            }
        }
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

fn init(page: &mut Page, page_type: u16) -> Result<(), Fault> {
    slotted::init(page, SPECIAL_SIZE);
    put_u16(page, PAGE_TYPE, page_type)
}

fn insert(step: &Step<'_, '_>, id: u8, main: &mut BytesIn<'_>, page: &mut Page) -> Result<(), Fault> {
    let (heap_block, pages_per_range, offset) = (main.u32_le()?, main.u32_le()?, main.u16_le()?);
    if id == 1 {
        let tid = Tid { block: step.number_of(0)?, offset };
        return set_range(page, pages_per_range, heap_block, tid);
    }
    if step.record.info & INIT_PAGE != 0 {
        init(page, page_type::REGULAR)?;
    }
    slotted::add(page, step.block.data, usize::from(offset), Placing::Reuse)
}

/// Enters where the summary of a heap block's range is.
fn set_range(page: &mut Page, pages_per_range: u32, heap_block: u32, tid: Tid) -> Result<(), Fault> {
    let range = heap_block.checked_div(pages_per_range).ok_or(Fault::Record("a range has no pages"))?;
    tid.put(page, slotted::HEADER + (range % MAP_ENTRIES) as usize * Tid::SIZE)
}
