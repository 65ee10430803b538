//! Hash index, resource manager 12 (`hash_xlog.h`).
//!
//! ```text
//! special space, at 8176: u32 previous | u32 next | u32 bucket | u16 flags | u16 page id
//! metapage, at 24: see `meta`
//! 0x00 init meta page    main f64 tuples | u32 hash function | u16 fill factor
//! 0x10 init bitmap page  main u16 bytes; block 0: bitmap, 1: meta page
//! 0x20 insert            main u16 offset; data 0: tuple; block 1: meta page
//! 0x30 add overflow page main u16 bitmap bytes | bool found; block 0: new, data 0: u32 bucket; 1: left; 2: bitmap, data 2: u32 bit;
//!                        3: new bitmap; 4: meta page, data 4: u32 first free
//! 0x40 split allocate    main u32 new bucket | u16 old flag | u16 new flag | u8 flags; block 0: old bucket, 1: new, 2: meta page
//! 0x50 split page        an image
//! 0x60 split complete    main u16 old flag | u16 new flag; block 0: old bucket, 1: new
//! 0x70 move contents     main u16 tuples | bool; block 1: data u16 offset… | tuples; block 2: data u16 offset…
//! 0x80 squeeze           main u32 previous | u32 next | u16 tuples | bool | bool previous is written to; blocks 1 to 6: see `squeeze`
//! 0x90 delete            main bool clear dead mark | bool; block 1: data u16 offset…
//! 0xA0 split cleanup     0xB0 update meta page: main f64 tuples
//! 0xC0 vacuum one page   main u32 xid | count, i32 to 15, u16 and bool from 16 on | u16 offset…; block 1: meta page
//! ```
//!
//! Block 0 of 0x70, 0x80 and 0x90 is there only so that replay locks the bucket.

use codec::bytes_in::BytesIn;
use codec::page::Page;
use model::{BLOCK_SIZE, PgMajor};

use crate::fields::{f64_at, put, put_u16, put_u32, slice_mut, u16_at, u32_at};
use crate::slotted::{self, Placing};
use crate::step::{Step, read_whole};
use crate::{Applied, Fault, index_tuple};

const INIT_META: u8 = 0x00;
const INIT_BITMAP: u8 = 0x10;
const INSERT: u8 = 0x20;
const ADD_OVERFLOW: u8 = 0x30;
pub(crate) const SPLIT_ALLOCATE: u8 = 0x40;
const SPLIT_PAGE: u8 = 0x50;
pub(crate) const SPLIT_COMPLETE: u8 = 0x60;
const MOVE_CONTENTS: u8 = 0x70;
const SQUEEZE: u8 = 0x80;
const DELETE: u8 = 0x90;
const SPLIT_CLEANUP: u8 = 0xA0;
const UPDATE_META: u8 = 0xB0;
const VACUUM_ONE_PAGE: u8 = 0xC0;

const SPECIAL_SIZE: usize = 16;
const SPECIAL: usize = BLOCK_SIZE - SPECIAL_SIZE;
const PREVIOUS: usize = SPECIAL;
const NEXT: usize = SPECIAL + 4;
const BUCKET: usize = SPECIAL + 8;
pub(crate) const FLAGS: usize = SPECIAL + 12;
const PAGE_ID: usize = SPECIAL + 14;
const HASH_PAGE_ID: u16 = 0xFF80;
const NONE: u32 = u32::MAX;

/// Flags of the special space; the low four bits are the page's type.
pub(crate) mod flag {
    pub(crate) const TYPE: u16 = 0x000F;
    pub(crate) const UNUSED: u16 = 0;
    pub(crate) const OVERFLOW: u16 = 0x0001;
    pub(crate) const BUCKET: u16 = 0x0002;
    pub(crate) const BITMAP: u16 = 0x0004;
    pub(crate) const META: u16 = 0x0008;
    pub(crate) const NEEDS_SPLIT_CLEANUP: u16 = 0x0040;
    pub(crate) const HAS_DEAD_TUPLES: u16 = 0x0080;
}

/// Offsets of `HashMetaPageData` in the page.
mod meta {
    const START: usize = 24;
    pub(super) const MAGIC: usize = START;
    pub(super) const VERSION: usize = START + 4;
    pub(super) const TUPLES: usize = START + 8;
    pub(super) const FILL_FACTOR: usize = START + 16;
    pub(super) const BUCKET_SIZE: usize = START + 18;
    pub(super) const BITMAP_SIZE: usize = START + 20;
    pub(super) const BITMAP_SHIFT: usize = START + 22;
    pub(super) const MAX_BUCKET: usize = START + 24;
    pub(super) const HIGH_MASK: usize = START + 28;
    pub(super) const LOW_MASK: usize = START + 32;
    pub(super) const SPLIT_POINT: usize = START + 36;
    pub(super) const FIRST_FREE: usize = START + 40;
    pub(super) const BITMAPS: usize = START + 44;
    pub(super) const FUNCTION: usize = START + 48;
    /// Overflow pages before each split point, 98 words.
    pub(super) const SPARES: usize = START + 52;
    /// Blocks of the bitmap pages, 1024 words.
    pub(super) const BITMAP_BLOCKS: usize = START + 444;
    pub(super) const END: usize = START + 4544;
}

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let mut main = step.main();
    let mut data = step.data();
    match (step.record.info & 0xF0, step.block.id) {
        (INIT_META, 0) => init_meta(page, &mut main)?,
        (INIT_BITMAP, 0) | (ADD_OVERFLOW, 3) => init_bitmap(page, main.u16_le()?)?,
        (INIT_BITMAP, 1) => {
            let buckets = u32_at(page, meta::MAX_BUCKET)?.wrapping_add(1);
            add_bitmap(page, buckets.wrapping_add(1))?;
        }
        (INSERT, 0) => {
            slotted::add(page, data.rest(), usize::from(main.u16_le()?), Placing::Shift)?;
        }
        (INSERT, 1) => add_tuples(page, 1.0)?,
        (ADD_OVERFLOW, 0) => {
            init(page, step.number_of(1)?, data.u32_le()?, flag::OVERFLOW)?;
        }
        (ADD_OVERFLOW, 1) => put_u32(page, NEXT, step.number_of(0)?)?,
        (ADD_OVERFLOW, 2) => set_bitmap_bit(page, data.u32_le()?, true)?,
        (ADD_OVERFLOW, 4) => {
            put_u32(page, meta::FIRST_FREE, data.u32_le()?)?;
            main.skip(2)?;
            if main.u8()? == 0 {
                add_spare(page)?;
                if step.has(3) {
                    add_bitmap(page, step.number_of(3)?)?;
                    add_spare(page)?;
                }
            }
        }
        (SPLIT_ALLOCATE, 0 | 1) => {
            let (bucket, old_flags, new_flags) = (main.u32_le()?, main.u16_le()?, main.u16_le()?);
            if step.block.id == 0 {
                put_u16(page, FLAGS, old_flags)?;
                put_u32(page, PREVIOUS, bucket)?;
            } else {
                init(page, bucket, bucket, new_flags)?;
            }
        }
        (SPLIT_ALLOCATE, 2) => split_meta(page, &mut main, &mut data)?,
        (SPLIT_PAGE, _) => return Err(Fault::NoImage),
        (SPLIT_COMPLETE, id @ (0 | 1)) => {
            main.skip(usize::from(id) * 2)?;
            put_u16(page, FLAGS, main.u16_le()?)?;
        }
        (MOVE_CONTENTS | SQUEEZE | DELETE, 0) => return Ok(Applied::Nothing),
        (MOVE_CONTENTS, 1) => add_moved(page, main.u16_le()?, data)?,
        (MOVE_CONTENTS, 2) => delete_listed(page, data.rest())?,
        (SQUEEZE, id) => return squeeze(page, id, &mut main, data),
        (DELETE, 1) => {
            delete_listed(page, data.rest())?;
            if main.u8()? != 0 {
                slotted::clear_bits(page, FLAGS, flag::HAS_DEAD_TUPLES)?;
            }
        }
        (SPLIT_CLEANUP, 0) => slotted::clear_bits(page, FLAGS, flag::NEEDS_SPLIT_CLEANUP)?,
        (UPDATE_META, 0) => put(page, meta::TUPLES, main.take(8)?)?,
        (VACUUM_ONE_PAGE, id @ (0 | 1)) => {
            main.skip(4)?;
            let count = if step.record.pg >= PgMajor::V16 {
                let count = u32::from(main.u16_le()?);
                main.skip(2)?;
                count
            } else {
                main.u32_le()?
            };
            if id == 0 {
                delete_listed(page, main.take(count as usize * 2)?)?;
                slotted::clear_bits(page, FLAGS, flag::HAS_DEAD_TUPLES)?;
            } else {
                add_tuples(page, -f64::from(count))?;
            }
        }
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

fn init(page: &mut Page, previous: u32, bucket: u32, flags: u16) -> Result<(), Fault> {
    slotted::init(page, SPECIAL_SIZE);
    put_u32(page, PREVIOUS, previous)?;
    put_u32(page, NEXT, NONE)?;
    put_u32(page, BUCKET, bucket)?;
    put_u16(page, FLAGS, flags)?;
    put_u16(page, PAGE_ID, HASH_PAGE_ID)
}

/// How bucket counts are laid out: they double up to split point 9, from there each doubling takes four steps
/// (`_hash_spareindex`, `_hash_get_totalbuckets`).
mod split_point {
    const WITHOUT_STEPS: u32 = 10;

    fn log2_rounded_up(number: u32) -> u32 {
        if number <= 1 { 0 } else { u32::BITS - (number - 1).leading_zeros() }
    }

    /// The split point at which there are `buckets`, at most 2^30.
    pub(super) fn of(buckets: u32) -> u32 {
        let doubling = log2_rounded_up(buckets);
        if doubling < WITHOUT_STEPS {
            return doubling;
        }
        let step = (buckets - 1) >> (doubling - 3) & 3;
        WITHOUT_STEPS + ((doubling - WITHOUT_STEPS) << 2) + step
    }

    /// How many buckets there are at a split point.
    pub(super) fn buckets(point: u32) -> u32 {
        if point < WITHOUT_STEPS {
            return 1 << point;
        }
        let half = 1 << (WITHOUT_STEPS + ((point - WITHOUT_STEPS) >> 2) - 1);
        half + (half >> 2) * (((point - WITHOUT_STEPS) & 3) + 1)
    }
}

fn init_meta(page: &mut Page, main: &mut BytesIn<'_>) -> Result<(), Fault> {
    const MAGIC: u32 = 0x0644_0640;
    const VERSION: u32 = 4;
    /// Bytes of a page without header and special space.
    const BUCKET_SIZE: u16 = 8152;
    const BITMAP_SIZE: u16 = 4096;
    /// Log2 of the bits of a bitmap page.
    const BITMAP_SHIFT: u16 = 15;
    const MAX_BUCKETS: u32 = 1 << 30;
    let tuples = f64::from_le_bytes(main.array()?);
    let (function, fill_factor) = (main.u32_le()?, main.u16_le()?);
    let wanted = tuples / f64::from(fill_factor);
    let buckets = if wanted <= 2.0 {
        2
    } else if wanted >= f64::from(MAX_BUCKETS) {
        MAX_BUCKETS
    } else {
        split_point::buckets(split_point::of(wanted as u32))
    };
    let point = split_point::of(buckets);
    let high_mask = (buckets + 1).next_power_of_two() - 1;
    init(page, NONE, NONE, flag::META)?;
    put_u32(page, meta::MAGIC, MAGIC)?;
    put_u32(page, meta::VERSION, VERSION)?;
    put_u16(page, meta::FILL_FACTOR, fill_factor)?;
    put_u16(page, meta::BUCKET_SIZE, BUCKET_SIZE)?;
    put_u16(page, meta::BITMAP_SIZE, BITMAP_SIZE)?;
    put_u16(page, meta::BITMAP_SHIFT, BITMAP_SHIFT)?;
    put_u32(page, meta::MAX_BUCKET, buckets - 1)?;
    put_u32(page, meta::HIGH_MASK, high_mask)?;
    put_u32(page, meta::LOW_MASK, high_mask >> 1)?;
    put_u32(page, meta::SPLIT_POINT, point)?;
    put_u32(page, meta::FUNCTION, function)?;
    put_u32(page, meta::SPARES + point as usize * 4, 1)?;
    slotted::set_lower(page, meta::END);
    Ok(())
}

/// A bitmap of overflow pages with all in use.
fn init_bitmap(page: &mut Page, bytes: u16) -> Result<(), Fault> {
    init(page, NONE, NONE, flag::BITMAP)?;
    let end = slotted::HEADER + usize::from(bytes);
    slice_mut(&mut page[..SPECIAL], slotted::HEADER, usize::from(bytes))?.fill(0xFF);
    slotted::set_lower(page, end);
    Ok(())
}

fn set_bitmap_bit(page: &mut Page, bit: u32, on: bool) -> Result<(), Fault> {
    let byte = &mut slice_mut(&mut page[..SPECIAL], slotted::HEADER + bit as usize / 8, 1)?[0];
    let mask = 1 << (bit % 8);
    *byte = if on { *byte | mask } else { *byte & !mask };
    Ok(())
}

/// Enters the block of a new bitmap page into the metapage.
fn add_bitmap(page: &mut Page, block: u32) -> Result<(), Fault> {
    let bitmaps = u32_at(page, meta::BITMAPS)?;
    put_u32(&mut page[..meta::END], meta::BITMAP_BLOCKS + bitmaps as usize * 4, block)?;
    put_u32(page, meta::BITMAPS, bitmaps.wrapping_add(1))
}

/// Counts an overflow page at the current split point.
fn add_spare(page: &mut Page) -> Result<(), Fault> {
    let at = meta::SPARES + u32_at(page, meta::SPLIT_POINT)? as usize * 4;
    let spares = u32_at(&page[..meta::BITMAP_BLOCKS], at)?;
    put_u32(page, at, spares.wrapping_add(1))
}

fn add_tuples(page: &mut Page, count: f64) -> Result<(), Fault> {
    let tuples = f64_at(page, meta::TUPLES)? + count;
    put(page, meta::TUPLES, &tuples.to_le_bytes())
}

fn split_meta(page: &mut Page, main: &mut BytesIn<'_>, data: &mut BytesIn<'_>) -> Result<(), Fault> {
    const MASKS_CHANGE: u8 = 0x01;
    const SPLIT_POINT_CHANGES: u8 = 0x02;
    put_u32(page, meta::MAX_BUCKET, main.u32_le()?)?;
    main.skip(4)?;
    let flags = main.u8()?;
    if flags & MASKS_CHANGE != 0 {
        put_u32(page, meta::LOW_MASK, data.u32_le()?)?;
        put_u32(page, meta::HIGH_MASK, data.u32_le()?)?;
    }
    if flags & SPLIT_POINT_CHANGES != 0 {
        let point = data.u32_le()?;
        let spares = data.u32_le()?;
        put_u32(&mut page[..meta::BITMAP_BLOCKS], meta::SPARES + point as usize * 4, spares)?;
        put_u32(page, meta::SPLIT_POINT, point)?;
    }
    Ok(())
}

/// Adds tuples at the offset numbers that come before them.
fn add_moved(page: &mut Page, count: u16, mut data: BytesIn<'_>) -> Result<(), Fault> {
    if count == 0 {
        return Ok(());
    }
    let offsets = data.take(usize::from(count) * 2)?;
    for offset in offsets.chunks_exact(2) {
        let tuple = index_tuple::take_aligned(&mut data)?;
        slotted::add(page, tuple, usize::from(u16_at(offset, 0)?), Placing::Shift)?;
    }
    read_whole(&data)
}

/// Deletes the items whose offset numbers these are.
pub(crate) fn delete_listed(page: &mut Page, offsets: &[u8]) -> Result<(), Fault> {
    slotted::delete_many(page, offsets.len() / 2, |index| u16_at(offsets, index * 2))
}

/// Frees an overflow page: its tuples go to another page of the bucket (block 1), it becomes unused (2), its neighbours (3, 4) close up,
/// the bitmap (5) and the metapage (6) note it. The neighbour before it may be the page that gets the tuples.
fn squeeze(page: &mut Page, id: u8, main: &mut BytesIn<'_>, mut data: BytesIn<'_>) -> Result<Applied, Fault> {
    let (previous, next, tuples) = (main.u32_le()?, main.u32_le()?, main.u16_le()?);
    main.skip(1)?;
    let previous_is_written = main.u8()? != 0;
    match id {
        1 => {
            add_moved(page, tuples, data)?;
            if previous_is_written {
                put_u32(page, NEXT, next)?;
            } else if tuples == 0 {
                return Ok(Applied::Nothing); // from 17 on, there only to be locked
            }
        }
        2 => init(page, NONE, NONE, flag::UNUSED)?,
        3 => put_u32(page, NEXT, next)?,
        4 => put_u32(page, PREVIOUS, previous)?,
        5 => set_bitmap_bit(page, data.u32_le()?, false)?,
        6 => put_u32(page, meta::FIRST_FREE, data.u32_le()?)?,
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}
