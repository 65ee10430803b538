//! GiST, resource manager 14 (`gistxlog.h`).
//!
//! ```text
//! special space, at 8176: NSN, two words as an LSN | u32 right link | u16 flags | u16 page id
//! 0x00 page update  main u16 deleted | u16 inserted; data 0: u16 offset… | tuples; block 1: left child
//! 0x10 delete       to 15: main u32 xid | u16 count | u16 offset…; from 16 on: … | u16 count | bool | pad | u16 offset…
//! 0x30 page split   main u32 original right link | pad | u64 original NSN | bool leaf | pad | u16 pages | bool follow right
//!                   block 0: left child; from 1 on: pages, data i32 count | tuples
//! 0x60 page delete  main u64 xid | u16 offset in parent; block 0: leaf, 1: parent
//! ```
//!
//! A left child gets the record's own LSN as its NSN, also when it was restored from its image: the image cannot have it yet.

use codec::page::Page;
use model::{BLOCK_SIZE, Lsn, PgMajor};

use crate::fields::{put, put_u16, put_u32, u16_at};
use crate::hash::delete_listed;
use crate::index_tuple;
use crate::slotted::{self, Placing};
use crate::step::Step;
use crate::{Applied, Fault};

pub(crate) const PAGE_UPDATE: u8 = 0x00;
const DELETE: u8 = 0x10;
pub(crate) const PAGE_SPLIT: u8 = 0x30;
const PAGE_DELETE: u8 = 0x60;

const SPECIAL_SIZE: usize = 16;
pub(crate) const NSN: usize = BLOCK_SIZE - SPECIAL_SIZE;
const RIGHT_LINK: usize = NSN + 8;
pub(crate) const FLAGS: usize = NSN + 12;
const PAGE_ID: usize = NSN + 14;
const GIST_PAGE_ID: u16 = 0xFF81;
const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;

/// Flags of the special space.
pub(crate) mod flag {
    pub(crate) const LEAF: u16 = 0x0001;
    pub(crate) const DELETED: u16 = 0x0002;
    pub(crate) const TUPLES_DELETED: u16 = 0x0004;
    pub(crate) const FOLLOW_RIGHT: u16 = 0x0008;
    pub(crate) const HAS_GARBAGE: u16 = 0x0010;
}

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let mut main = step.main();
    match (step.record.info & 0xF0, step.block.id) {
        (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0) => {
            put_nsn(page, step.end)?;
            slotted::clear_bits(page, FLAGS, flag::FOLLOW_RIGHT)?;
        }
        (PAGE_UPDATE, 0) => update(step, main.u16_le()?, main.u16_le()?, page)?,
        (DELETE, 0) => {
            main.skip(4)?;
            let count = usize::from(main.u16_le()?);
            if step.record.pg >= PgMajor::V16 {
                main.skip(2)?;
            }
            delete_listed(page, main.take(count * 2)?)?;
            slotted::clear_bits(page, FLAGS, flag::HAS_GARBAGE)?;
            slotted::set_bits(page, FLAGS, flag::TUPLES_DELETED)?;
        }
        (PAGE_SPLIT, _) => split(step, page)?,
        (PAGE_DELETE, 0) => {
            slotted::set_bits(page, FLAGS, flag::DELETED)?;
            slotted::set_lower(page, slotted::HEADER + 8);
            put(page, slotted::HEADER, main.take(8)?)?;
        }
        (PAGE_DELETE, 1) => {
            main.skip(8)?;
            slotted::delete(page, usize::from(main.u16_le()?))?;
        }
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

fn put_nsn(page: &mut Page, nsn: Lsn) -> Result<(), Fault> {
    put_u32(page, NSN, (nsn.0 >> 32) as u32)?;
    put_u32(page, NSN + 4, nsn.0 as u32)
}

fn update(step: &Step<'_, '_>, deleted: u16, inserted: u16, page: &mut Page) -> Result<(), Fault> {
    let mut data = step.data();
    let offsets = data.take(usize::from(deleted) * 2)?;
    if deleted == 1 && inserted == 1 {
        slotted::overwrite(page, usize::from(u16_at(offsets, 0)?), index_tuple::take(&mut data)?)?;
    } else if deleted > 0 {
        delete_listed(page, offsets)?;
        if u16_at(page, FLAGS)? & flag::LEAF != 0 {
            slotted::set_bits(page, FLAGS, flag::TUPLES_DELETED)?;
        }
    }
    while data.remaining() != 0 {
        let tuple = index_tuple::take(&mut data)?;
        slotted::add(page, tuple, slotted::count(page) + 1, Placing::Shift)?;
    }
    Ok(())
}

/// One of the pages that a page was split into.
fn split(step: &Step<'_, '_>, page: &mut Page) -> Result<(), Fault> {
    let mut main = step.main();
    let original_right_link = main.u32_le()?;
    main.skip(4)?;
    let original_nsn = Lsn(main.u64_le()?);
    let is_leaf = main.u8()? != 0;
    main.skip(1)?;
    let pages = main.u16_le()?;
    let follows_right = main.u8()? != 0;
    let (id, block) = (step.block.id, step.block.block);
    let is_root_split = step.number_of(1)? == ROOT;
    let is_last = u16::from(id) >= pages;

    slotted::init(page, SPECIAL_SIZE);
    put_u16(page, PAGE_ID, GIST_PAGE_ID)?;
    let mut flags = if is_leaf && block != ROOT { flag::LEAF } else { 0 };
    let mut data = step.data();
    for _ in 0..data.i32_le()? {
        let tuple = index_tuple::take(&mut data)?;
        slotted::add(page, tuple, slotted::count(page) + 1, Placing::Shift)?;
    }
    put_nsn(page, original_nsn)?;
    if block == ROOT {
        put_u32(page, RIGHT_LINK, NONE)?;
    } else {
        let right = if is_last { original_right_link } else { step.number_of(id + 1)? };
        put_u32(page, RIGHT_LINK, right)?;
        if !is_last && !is_root_split && follows_right {
            flags |= flag::FOLLOW_RIGHT;
        }
    }
    put_u16(page, FLAGS, flags)
}
