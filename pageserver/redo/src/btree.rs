//! B-tree, resource manager 11 (`nbtxlog.h`), alike in 14 to 18 but for what is noted.
//!
//! ```text
//! special space, at 8176: u32 previous | u32 next | u32 level | u16 flags | u16 vacuum cycle
//! 0x00 insert leaf, 0x10 upper, 0x20 meta   main u16 offset; data 0: tuple; block 1: left child, 2: meta page, data 2: metadata
//! 0x50 insert post       main u16 offset; data: u16 position in the posting list | tuple
//! 0x30 split, new tuple left, 0x40 right    main u32 level | u16 first right | u16 new offset | u16 position
//!                        data 0: [tuple] high key; data 1: tuples of the new right page, last one first; 2: right sibling; 3: left child
//! 0x60 dedup             main u16 intervals; data: (u16 base offset, u16 items)…
//! 0x70 delete            main u32 xid | u16 deleted | u16 updated …; data: offsets of both, then per updated u16 count | u16 index…
//! 0xC0 vacuum            main u16 deleted | u16 updated; data as delete
//! 0xB0 mark half-dead    main u16 offset in parent | pad | u32 leaf | u32 left | u32 right | u32 top parent; block 0: leaf, 1: parent
//! 0x80, 0x90 unlink      main u32 left | u32 right | u32 level | pad | u64 safe xid | u32 leaf's left | u32 leaf's right | u32 leaf's top
//!                        block 0: target, 1: left, 2: right, 3: leaf, 4: meta page
//! 0xA0 new root          main u32 root | u32 level; data 0: tuples; block 1: left child; 2: meta page
//! 0xE0 meta cleanup      data 0: metadata
//! ```

use codec::bytes_in::BytesIn;
use codec::page::Page;
use model::{BLOCK_SIZE, PgMajor};

use crate::fields::{Tid, align, put, put_u16, put_u32, shift, slice, slice_mut, u16_at, u32_at};
use crate::index_tuple::{self, INFO, SIZE_MASK};
use crate::slotted::{self, MAX_INDEX_ITEMS, Placing};
use crate::step::{Step, read_whole};
use crate::{Applied, Fault};

const INSERT_LEAF: u8 = 0x00;
const INSERT_UPPER: u8 = 0x10;
const INSERT_META: u8 = 0x20;
const SPLIT_LEFT: u8 = 0x30;
const SPLIT_RIGHT: u8 = 0x40;
const INSERT_POST: u8 = 0x50;
const DEDUP: u8 = 0x60;
const DELETE: u8 = 0x70;
const UNLINK: u8 = 0x80;
const UNLINK_META: u8 = 0x90;
const NEW_ROOT: u8 = 0xA0;
const MARK_HALF_DEAD: u8 = 0xB0;
const VACUUM: u8 = 0xC0;
const META_CLEANUP: u8 = 0xE0;

pub(crate) const SPECIAL_SIZE: usize = 16;
const SPECIAL: usize = BLOCK_SIZE - SPECIAL_SIZE;
const PREVIOUS: usize = SPECIAL;
const NEXT: usize = SPECIAL + 4;
const LEVEL: usize = SPECIAL + 8;
pub(crate) const FLAGS: usize = SPECIAL + 12;
pub(crate) const CYCLE: usize = SPECIAL + 14;
/// No sibling there.
const NONE: u32 = 0;

/// Flags of the special space.
pub(crate) mod flag {
    pub(crate) const LEAF: u16 = 0x0001;
    pub(crate) const ROOT: u16 = 0x0002;
    pub(crate) const DELETED: u16 = 0x0004;
    pub(crate) const META: u16 = 0x0008;
    pub(crate) const HALF_DEAD: u16 = 0x0010;
    pub(crate) const SPLIT_END: u16 = 0x0020;
    pub(crate) const HAS_GARBAGE: u16 = 0x0040;
    pub(crate) const INCOMPLETE_SPLIT: u16 = 0x0080;
    pub(crate) const HAS_FULL_XID: u16 = 0x0100;
}

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let (id, data) = (step.block.id, step.block.data);
    let mut main = step.main();
    match (step.record.info & 0xF0, id) {
        (INSERT_LEAF | INSERT_UPPER | INSERT_META, 0) => {
            slotted::add(page, data, usize::from(main.u16_le()?), Placing::Shift)?;
        }
        (INSERT_UPPER | INSERT_META | NEW_ROOT, 1) | (SPLIT_LEFT | SPLIT_RIGHT, 3) => {
            slotted::clear_bits(page, FLAGS, flag::INCOMPLETE_SPLIT)?;
        }
        (INSERT_META | NEW_ROOT, 2) | (UNLINK_META, 4) | (META_CLEANUP, 0) => init_meta(page, data)?,
        (INSERT_POST, 0) => insert_post(page, usize::from(main.u16_le()?), step.data())?,
        (SPLIT_LEFT | SPLIT_RIGHT, 0) => split_left_page(step, &Split::read(&mut main)?, page)?,
        (SPLIT_LEFT | SPLIT_RIGHT, 1) => {
            let level = Split::read(&mut main)?.level;
            let next = if step.has(2) { step.number_of(2)? } else { NONE };
            init(page, step.number_of(0)?, next, level, leaf_flag(level))?;
            restore_items(page, &step.data())?;
        }
        (SPLIT_LEFT | SPLIT_RIGHT, 2) => put_u32(page, PREVIOUS, step.number_of(1)?)?,
        (DEDUP, 0) => dedup(page, main.u16_le()?, step.data())?,
        (DELETE, 0) => {
            main.skip(4)?;
            remove(page, main.u16_le()?, main.u16_le()?, step.data())?;
            slotted::clear_bits(page, FLAGS, flag::HAS_GARBAGE)?;
        }
        (VACUUM, 0) => {
            remove(page, main.u16_le()?, main.u16_le()?, step.data())?;
            slotted::clear_bits(page, FLAGS, flag::HAS_GARBAGE)?;
            if step.record.pg >= PgMajor::V18 {
                put_u16(page, CYCLE, 0)?;
            }
        }
        (MARK_HALF_DEAD, 0) => {
            main.skip(8)?;
            init_half_dead(page, main.u32_le()?, main.u32_le()?, main.u32_le()?)?;
        }
        (MARK_HALF_DEAD, 1) => {
            let offset = usize::from(main.u16_le()?);
            let after = *slotted::item(page, offset + 1)?
                .first_chunk::<4>()
                .ok_or(Fault::Page("a pivot tuple is shorter than a block number"))?;
            put(slotted::item_mut(page, offset)?, 0, &after)?;
            slotted::delete(page, offset + 1)?;
        }
        (UNLINK | UNLINK_META, id @ 0..=3) => unlink(&Unlink::read(&mut main)?, id, page)?,
        (NEW_ROOT, 0) => {
            main.skip(4)?;
            let level = main.u32_le()?;
            init(page, NONE, NONE, level, flag::ROOT | leaf_flag(level))?;
            if level > 0 {
                restore_items(page, &step.data())?;
            }
        }
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

fn leaf_flag(level: u32) -> u16 {
    if level == 0 { flag::LEAF } else { 0 }
}

fn init(page: &mut Page, previous: u32, next: u32, level: u32, flags: u16) -> Result<(), Fault> {
    slotted::init(page, SPECIAL_SIZE);
    put_u32(page, PREVIOUS, previous)?;
    put_u32(page, NEXT, next)?;
    put_u32(page, LEVEL, level)?;
    put_u16(page, FLAGS, flags)
}

/// The metapage from `u32 version, root, level, fast root, fast level, deleted pages | bool all equal image`.
fn init_meta(page: &mut Page, data: &[u8]) -> Result<(), Fault> {
    const MAGIC: u32 = 0x053162;
    const CONTENTS: usize = 24;
    init(page, NONE, NONE, 0, flag::META)?;
    put_u32(page, CONTENTS, MAGIC)?;
    put(page, CONTENTS + 4, slice(data, 0, 24)?)?;
    // Number of heap tuples at the last cleanup: unknown.
    put(page, CONTENTS + 32, &(-1.0f64).to_le_bytes())?;
    put(page, CONTENTS + 40, slice(data, 24, 1)?)?;
    slotted::set_lower(page, CONTENTS + 48);
    Ok(())
}

/// A leaf that waits to be unlinked: nothing but a high key that points to the top of what is deleted.
fn init_half_dead(page: &mut Page, previous: u32, next: u32, top_parent: u32) -> Result<(), Fault> {
    init(page, previous, next, 0, flag::HALF_DEAD | flag::LEAF)?;
    let mut high_key = [0; index_tuple::HEADER];
    Tid { block: top_parent, offset: 0 }.put(&mut high_key, 0)?;
    put_u16(&mut high_key, INFO, index_tuple::HEADER as u16 | posting::ALT_TID)?;
    slotted::add(page, &high_key, 1, Placing::Shift)
}

/// Adds the tuples in `data`, where the one with the lowest offset number comes last.
fn restore_items(page: &mut Page, data: &BytesIn<'_>) -> Result<(), Fault> {
    let mut starts = [0u16; MAX_INDEX_ITEMS];
    let mut count = 0;
    let mut input = data.clone();
    while input.remaining() != 0 {
        let start = input.position() as u16; // block data is shorter than 64 KiB
        index_tuple::take_aligned(&mut input)?;
        *starts.get_mut(count).ok_or(Fault::Record("more tuples than a page holds"))? = start;
        count += 1;
    }
    let bytes = data.rest();
    let mut end = bytes.len();
    for (index, start) in starts[..count].iter().rev().enumerate() {
        let start = usize::from(*start);
        slotted::add(page, slice(bytes, start, end - start)?, index + 1, Placing::Shift)?;
        end = start;
    }
    Ok(())
}

/// Tuples that stand for many heap TIDs with the same key.
mod posting {
    use super::{Fault, INFO, SIZE_MASK, Tid, align, put, put_u16, shift, slice, slice_mut, u16_at};

    /// `t_info`: the TID field holds something else.
    pub(super) const ALT_TID: u16 = 0x2000;
    /// In the offset of that field: it is a posting list.
    const IS_POSTING: u16 = 0x2000;
    /// The rest of it: how many TIDs.
    const COUNT: u16 = 0x0FFF;

    /// Where a tuple's TIDs are. A plain tuple has one, at its beginning.
    #[derive(Clone, Copy)]
    pub(super) struct List {
        pub(super) at: usize,
        pub(super) count: usize,
        pub(super) is_posting: bool,
    }

    impl List {
        #[inline]
        pub(super) fn of(tuple: &[u8]) -> Result<List, Fault> {
            let tid = Tid::at(tuple, 0)?;
            if u16_at(tuple, INFO)? & ALT_TID == 0 || tid.offset & IS_POSTING == 0 {
                return Ok(List { at: 0, count: 1, is_posting: false });
            }
            let list =
                List { at: tid.block as usize, count: usize::from(tid.offset & COUNT), is_posting: true };
            slice(tuple, list.at, list.count * Tid::SIZE)?;
            Ok(list)
        }

        pub(super) fn bytes(self, tuple: &[u8]) -> Result<&[u8], Fault> {
            slice(tuple, self.at, self.count * Tid::SIZE)
        }

        /// Bytes of the tuple without its posting list.
        fn key_size(self, tuple: &[u8]) -> Result<usize, Fault> {
            if self.is_posting { Ok(self.at) } else { crate::index_tuple::size(tuple) }
        }
    }

    /// The highest TID of a posting list that is about to be split at `position`.
    pub(super) fn last_tid(tuple: &[u8], position: usize) -> Result<[u8; Tid::SIZE], Fault> {
        let list = List::of(tuple)?;
        if !list.is_posting || position == 0 || position >= list.count {
            return Err(Fault::Record("the posting list cannot be split there"));
        }
        Ok(Tid::at(tuple, list.at + (list.count - 1) * Tid::SIZE)?.to_bytes())
    }

    /// Puts `tid` at `position`; later TIDs move up and the last one drops out (`_bt_swap_posting`).
    pub(super) fn insert_tid(tuple: &mut [u8], position: usize, tid: &[u8]) -> Result<(), Fault> {
        last_tid(tuple, position)?;
        let list = List::of(tuple)?;
        let at = list.at + position * Tid::SIZE;
        shift(tuple, at, (list.count - 1 - position) * Tid::SIZE, at + Tid::SIZE)?;
        put(tuple, at, tid)
    }

    /// A tuple under construction: the key of another, and TIDs.
    pub(super) struct Builder<'b> {
        buffer: &'b mut [u8; super::BLOCK_SIZE],
        key: usize,
        end: usize,
    }

    impl<'b> Builder<'b> {
        pub(super) fn new(
            buffer: &'b mut [u8; super::BLOCK_SIZE],
            base: &[u8],
        ) -> Result<Builder<'b>, Fault> {
            let key = List::of(base)?.key_size(base)?;
            if key < crate::index_tuple::HEADER {
                return Err(Fault::Page("a posting list begins inside its tuple's header"));
            }
            put(buffer, 0, slice(base, 0, key)?)?;
            Ok(Builder { buffer, key, end: key })
        }

        pub(super) fn push(&mut self, tids: &[u8]) -> Result<(), Fault> {
            put(self.buffer, self.end, tids)?;
            self.end += tids.len();
            Ok(())
        }

        /// The tuple: with a posting list, or a plain one when there is one TID.
        pub(super) fn finish(self) -> Result<&'b [u8], Fault> {
            let count = (self.end - self.key) / Tid::SIZE;
            let info = u16_at(self.buffer, INFO)? & !SIZE_MASK;
            let size = match count {
                0 => return Err(Fault::Record("a tuple would be left without TIDs")),
                1 => {
                    self.buffer.copy_within(self.key..self.end, 0);
                    put_u16(self.buffer, INFO, info & !ALT_TID | self.key as u16)?;
                    self.key
                }
                _ => {
                    let size = align(self.end);
                    slice_mut(self.buffer, self.end, size - self.end)?.fill(0);
                    Tid { block: self.key as u32, offset: count as u16 | IS_POSTING }.put(self.buffer, 0)?;
                    put_u16(self.buffer, INFO, info | ALT_TID | size as u16)?;
                    size
                }
            };
            slice(self.buffer, 0, size)
        }
    }
}

/// Inserts into the middle of a posting list: the new TID takes its place in the list, and the list's last one comes after it as a tuple.
fn insert_post(page: &mut Page, offset: usize, mut data: BytesIn<'_>) -> Result<(), Fault> {
    let position = usize::from(data.u16_le()?);
    let new_item = data.rest();
    let list = slotted::item_mut(page, offset.wrapping_sub(1))?;
    let pushed_out = posting::last_tid(list, position)?;
    posting::insert_tid(list, position, slice(new_item, 0, Tid::SIZE)?)?;
    add_with_tid(page, new_item, pushed_out, offset)
}

/// Adds a tuple with another TID than it has.
fn add_with_tid(page: &mut Page, item: &[u8], tid: [u8; Tid::SIZE], offset: usize) -> Result<(), Fault> {
    slotted::add(page, item, offset, Placing::Shift)?;
    put(slotted::item_mut(page, offset)?, 0, &tid)
}

/// `xl_btree_split`.
struct Split {
    level: u32,
    first_right: usize,
    new_item: usize,
    posting_position: usize,
}

impl Split {
    fn read(main: &mut BytesIn<'_>) -> Result<Split, Fault> {
        Ok(Split {
            level: main.u32_le()?,
            first_right: usize::from(main.u16_le()?),
            new_item: usize::from(main.u16_le()?),
            posting_position: usize::from(main.u16_le()?),
        })
    }
}

/// Rebuilds the left page of a split with its new high key and what stays of its tuples, in their order.
fn split_left_page(step: &Step<'_, '_>, split: &Split, page: &mut Page) -> Result<(), Fault> {
    let is_new_left = step.record.info & 0xF0 == SPLIT_LEFT;
    let before = *page;
    let mut data = step.data();
    let mut new_item: &[u8] = &[];
    let mut new_tid = [0; Tid::SIZE];
    let mut split_list = 0; // offset numbers begin at 1
    if is_new_left || split.posting_position != 0 {
        new_item = index_tuple::take_aligned(&mut data)?;
        new_tid = Tid::at(new_item, 0)?.to_bytes();
        if split.posting_position != 0 {
            split_list = split.new_item.wrapping_sub(1);
            new_tid = posting::last_tid(slotted::item(&before, split_list)?, split.posting_position)?;
        }
    }
    let high_key = index_tuple::take_aligned(&mut data)?;
    read_whole(&data)?;

    slotted::init(page, SPECIAL_SIZE);
    page[SPECIAL..].copy_from_slice(&before[SPECIAL..]);
    slotted::add(page, high_key, 1, Placing::Shift)?;
    let mut to = 2;
    for from in first_data_item(&before)?..split.first_right {
        if is_new_left && from == split.new_item {
            add_with_tid(page, new_item, new_tid, to)?;
            to += 1;
        }
        slotted::add(page, slotted::item(&before, from)?, to, Placing::Shift)?;
        if from == split_list {
            let list = slotted::item_mut(page, to)?;
            posting::insert_tid(list, split.posting_position, slice(new_item, 0, Tid::SIZE)?)?;
        }
        to += 1;
    }
    if is_new_left && split.new_item == split.first_right {
        add_with_tid(page, new_item, new_tid, to)?;
    }
    put_u16(page, FLAGS, flag::INCOMPLETE_SPLIT | leaf_flag(split.level))?;
    put_u32(page, NEXT, step.number_of(1)?)?;
    put_u16(page, CYCLE, 0)
}

/// The first offset number that is not the high key; the rightmost page has none.
fn first_data_item(page: &Page) -> Result<usize, Fault> {
    Ok(if u32_at(page, NEXT)? == NONE { 1 } else { 2 })
}

/// Merges runs of tuples with equal keys into posting lists.
fn dedup(page: &mut Page, intervals: u16, mut data: BytesIn<'_>) -> Result<(), Fault> {
    let before = *page;
    let first = first_data_item(&before)?;
    slotted::init(page, SPECIAL_SIZE);
    page[SPECIAL..].copy_from_slice(&before[SPECIAL..]);
    if first == 2 {
        slotted::add(page, slotted::item(&before, 1)?, 1, Placing::Shift)?;
    }
    let mut intervals = (0..intervals).map(|_| -> Result<_, Fault> {
        Ok((usize::from(data.u16_le()?), usize::from(data.u16_le()?).max(1)))
    });
    let mut buffer = [0; BLOCK_SIZE];
    let mut next = intervals.next().transpose()?;
    let (mut from, mut to) = (first, first);
    let count = slotted::count(&before);
    while from <= count {
        let run = match next {
            Some((base, items)) if base == from => {
                next = intervals.next().transpose()?;
                items
            }
            _ => 1,
        };
        let base = slotted::item(&before, from)?;
        if run == 1 {
            slotted::add(page, slice(base, 0, index_tuple::size(base)?)?, to, Placing::Shift)?;
        } else {
            let mut list = posting::Builder::new(&mut buffer, base)?;
            for merged in from..from + run {
                let tuple = slotted::item(&before, merged)?;
                list.push(posting::List::of(tuple)?.bytes(tuple)?)?;
            }
            slotted::add(page, list.finish()?, to, Placing::Shift)?;
        }
        from += run;
        to += 1;
    }
    if next.is_some() {
        return Err(Fault::Record("intervals to merge are not those of tuples in ascending order"));
    }
    slotted::clear_bits(page, FLAGS, flag::HAS_GARBAGE)
}

/// Takes TIDs out of posting lists, then removes whole tuples.
fn remove(page: &mut Page, deleted: u16, updated: u16, mut input: BytesIn<'_>) -> Result<(), Fault> {
    let (deleted, updated) = (usize::from(deleted), usize::from(updated));
    let deleted_offsets = input.take(deleted * 2)?;
    let updated_offsets = input.take(updated * 2)?;
    if updated > 0 {
        let mut buffer = [0; BLOCK_SIZE];
        for offset in updated_offsets.chunks_exact(2) {
            let offset = usize::from(u16_at(offset, 0)?);
            let tuple = slotted::item(page, offset)?;
            let tids = posting::List::of(tuple)?.bytes(tuple)?;
            let gone = usize::from(input.u16_le()?);
            let mut gone = BytesIn::new(input.take(gone * 2)?);
            let mut shorter = posting::Builder::new(&mut buffer, tuple)?;
            let mut next_gone = gone.u16_le().ok();
            for (index, tid) in tids.chunks_exact(Tid::SIZE).enumerate() {
                if next_gone.map(usize::from) == Some(index) {
                    next_gone = gone.u16_le().ok();
                } else {
                    shorter.push(tid)?;
                }
            }
            if next_gone.is_some() {
                return Err(Fault::Record("TIDs to remove are not those of the tuple in ascending order"));
            }
            slotted::overwrite(page, offset, shorter.finish()?)?;
        }
    }
    slotted::delete_many(page, deleted, |index| u16_at(deleted_offsets, index * 2))
}

/// `xl_btree_unlink_page`.
struct Unlink {
    left: u32,
    right: u32,
    level: u32,
    safe_xid: [u8; 8],
    leaf_left: u32,
    leaf_right: u32,
    leaf_top_parent: u32,
}

impl Unlink {
    fn read(main: &mut BytesIn<'_>) -> Result<Unlink, Fault> {
        let (left, right, level) = (main.u32_le()?, main.u32_le()?, main.u32_le()?);
        main.skip(4)?;
        Ok(Unlink {
            left,
            right,
            level,
            safe_xid: main.array()?,
            leaf_left: main.u32_le()?,
            leaf_right: main.u32_le()?,
            leaf_top_parent: main.u32_le()?,
        })
    }
}

fn unlink(unlink: &Unlink, id: u8, page: &mut Page) -> Result<(), Fault> {
    match id {
        0 => {
            let flags = flag::DELETED | flag::HAS_FULL_XID | leaf_flag(unlink.level);
            init(page, unlink.left, unlink.right, unlink.level, flags)?;
            put(page, slotted::HEADER, &unlink.safe_xid)?;
            slotted::set_lower(page, slotted::HEADER + 8);
            Ok(())
        }
        1 => put_u32(page, NEXT, unlink.right),
        2 => put_u32(page, PREVIOUS, unlink.left),
        _ => init_half_dead(page, unlink.leaf_left, unlink.leaf_right, unlink.leaf_top_parent),
    }
}
