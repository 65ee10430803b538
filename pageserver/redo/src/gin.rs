//! GIN, resource manager 13 (`ginxlog.h`), alike in 14 to 18.
//!
//! ```text
//! special space, at 8184: u32 right link | u16 maximal offset | u16 flags
//! data page: right bound at 24, then from 32 on posting items of 10 bytes (child block, key TID), or on leaves compressed segments
//! 0x10 create tree       main u32 size | segments
//! 0x20 insert            main u16 flags | left child | right child, 4 bytes each unless leaf; block 1: left child
//!                        entry tree: data u16 offset | bool delete | pad | tuple
//!                        data leaf: data segment actions, see `recompress`; data page: data u16 offset | posting item
//! 0x30 split             blocks 0 to 2: images; block 3: left child
//! 0x40 vacuum page       an image
//! 0x50 delete page       main u16 offset in parent | pad | u32 right link | u32 xid; block 0: page, 1: parent, 2: left
//! 0x60 update meta page  main 12 relation | pad | 56 metadata | u32 tail before | u32 new right link | i32 tuples; block 1: tail, data tuples
//! 0x70 insert list page  main u32 right link | i32 tuples; data tuples
//! 0x80 delete list pages main 56 metadata | …; blocks from 1 on: pages
//! 0x90 vacuum data leaf  data segment actions
//! ```

use codec::bytes_in::BytesIn;
use codec::page::Page;
use model::BLOCK_SIZE;

use crate::fields::{Tid, put, put_u16, put_u32, shift, slice, u16_at};
use crate::index_tuple;
use crate::slotted::{self, Placing};
use crate::step::{Step, read_whole};
use crate::{Applied, Fault};

const CREATE_TREE: u8 = 0x10;
const INSERT: u8 = 0x20;
const SPLIT: u8 = 0x30;
const VACUUM_PAGE: u8 = 0x40;
const DELETE_PAGE: u8 = 0x50;
const UPDATE_META: u8 = 0x60;
const INSERT_LIST_PAGE: u8 = 0x70;
const DELETE_LIST_PAGES: u8 = 0x80;
const VACUUM_DATA_LEAF: u8 = 0x90;

const SPECIAL_SIZE: usize = 8;
const SPECIAL: usize = BLOCK_SIZE - SPECIAL_SIZE;
const RIGHT_LINK: usize = SPECIAL;
const MAX_OFFSET: usize = SPECIAL + 4;
pub(crate) const FLAGS: usize = SPECIAL + 6;
const NONE: u32 = u32::MAX;

/// Flags of the special space.
pub(crate) mod flag {
    pub(crate) const DATA: u16 = 0x0001;
    pub(crate) const LEAF: u16 = 0x0002;
    pub(crate) const DELETED: u16 = 0x0004;
    pub(crate) const META: u16 = 0x0008;
    pub(crate) const LIST: u16 = 0x0010;
    pub(crate) const LIST_FULL_ROW: u16 = 0x0020;
    pub(crate) const INCOMPLETE_SPLIT: u16 = 0x0040;
    pub(crate) const COMPRESSED: u16 = 0x0080;
}

/// Where a data page's own data begins.
const DATA: usize = 32;
/// `GinMetaPageData`.
const METADATA_SIZE: usize = 56;

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let mut main = step.main();
    match (step.record.info & 0xF0, step.block.id) {
        (CREATE_TREE, 0) => {
            let size = main.u32_le()? as usize;
            init(page, flag::DATA | flag::LEAF | flag::COMPRESSED)?;
            put_data(page, main.take(size)?)?;
        }
        (INSERT, 0) => insert(step, page)?,
        (INSERT, 1) | (SPLIT, 3) => slotted::clear_bits(page, FLAGS, flag::INCOMPLETE_SPLIT)?,
        (SPLIT | VACUUM_PAGE, _) => return Err(Fault::NoImage),
        (VACUUM_DATA_LEAF, 0) => recompress(page, step.data())?,
        (DELETE_PAGE, id @ 0..=2) => {
            let offset = main.u16_le()?;
            main.skip(2)?;
            let (right, xid) = (main.u32_le()?, main.u32_le()?);
            match id {
                0 => {
                    slotted::set_bits(page, FLAGS, flag::DELETED)?;
                    put_u32(page, slotted::PRUNE_XID, xid)?;
                }
                1 => delete_posting_item(page, offset)?,
                _ => put_u32(page, RIGHT_LINK, right)?,
            }
        }
        (UPDATE_META, 0) => {
            main.skip(16)?;
            init_meta(page, main.take(METADATA_SIZE)?)?;
        }
        (UPDATE_META, 1) => {
            main.skip(16 + METADATA_SIZE + 4)?;
            let (right, tuples) = (main.u32_le()?, main.i32_le()?);
            if tuples > 0 {
                add_tuples(page, step.data(), tuples)?;
                let rows = u16_at(page, MAX_OFFSET)?;
                put_u16(page, MAX_OFFSET, rows.wrapping_add(1))?;
            } else {
                put_u32(page, RIGHT_LINK, right)?;
            }
        }
        (INSERT_LIST_PAGE, 0) => {
            let (right, tuples) = (main.u32_le()?, main.i32_le()?);
            init(page, flag::LIST)?;
            put_u32(page, RIGHT_LINK, right)?;
            if right == NONE {
                // The last page of the list ends with a whole row.
                put_u16(page, FLAGS, flag::LIST | flag::LIST_FULL_ROW)?;
                put_u16(page, MAX_OFFSET, 1)?;
            }
            add_tuples(page, step.data(), tuples)?;
        }
        (DELETE_LIST_PAGES, 0) => init_meta(page, main.take(METADATA_SIZE)?)?,
        (DELETE_LIST_PAGES, _) => init(page, flag::DELETED)?,
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

fn init(page: &mut Page, flags: u16) -> Result<(), Fault> {
    slotted::init(page, SPECIAL_SIZE);
    put_u32(page, RIGHT_LINK, NONE)?;
    put_u16(page, FLAGS, flags)
}

fn init_meta(page: &mut Page, metadata: &[u8]) -> Result<(), Fault> {
    init(page, flag::META)?;
    put(page, slotted::HEADER, metadata)?;
    slotted::set_lower(page, slotted::HEADER + METADATA_SIZE);
    Ok(())
}

/// Makes `data` all that a data page holds.
fn put_data(page: &mut Page, data: &[u8]) -> Result<(), Fault> {
    put(&mut page[..SPECIAL], DATA, data)?;
    slotted::set_lower(page, DATA + data.len());
    Ok(())
}

/// Appends tuples that lie end to end.
fn add_tuples(page: &mut Page, mut data: BytesIn<'_>, count: i32) -> Result<(), Fault> {
    for _ in 0..count {
        let tuple = index_tuple::take(&mut data)?;
        slotted::add(page, tuple, slotted::count(page) + 1, Placing::Shift)?;
    }
    read_whole(&data)
}

/// A block number as two halves, the high one first.
fn block_number(input: &mut BytesIn<'_>) -> Result<u32, Fault> {
    Ok(u32::from(input.u16_le()?) << 16 | u32::from(input.u16_le()?))
}

fn insert(step: &Step<'_, '_>, page: &mut Page) -> Result<(), Fault> {
    const IS_DATA: u16 = 0x01;
    const IS_LEAF: u16 = 0x02;
    let mut main = step.main();
    let flags = main.u16_le()?;
    let mut right_child = NONE;
    if flags & IS_LEAF == 0 {
        main.skip(4)?;
        right_child = block_number(&mut main)?;
    }
    let mut data = step.data();
    if flags & IS_DATA == 0 {
        let offset = usize::from(data.u16_le()?);
        let deletes = data.u8()? != 0;
        data.skip(1)?;
        if right_child != NONE {
            Tid { block: right_child, offset: 0 }.put(slotted::item_mut(page, offset)?, 0)?;
        }
        if deletes {
            slotted::delete(page, offset)?;
        }
        slotted::add(page, index_tuple::take(&mut data)?, offset, Placing::Shift)
    } else if flags & IS_LEAF == 0 {
        let offset = data.u16_le()?;
        insert_posting_item(page, offset, right_child, data.take(POSTING_ITEM)?)
    } else {
        recompress(page, data)
    }
}

/// Bytes of a posting item: a child block and the highest TID under it.
const POSTING_ITEM: usize = 10;

/// Where posting item `offset` of a page is, and how many bytes of items lie from there on.
fn posting_items_from(page: &Page, offset: u16) -> Result<(usize, usize), Fault> {
    let count = usize::from(u16_at(page, MAX_OFFSET)?);
    let before = usize::from(offset).wrapping_sub(1);
    let after = count.checked_sub(before).ok_or(Fault::Item { offset, what: "does not exist" })?;
    Ok((DATA + before * POSTING_ITEM, after * POSTING_ITEM))
}

fn set_posting_items(page: &mut Page, count: u16) -> Result<(), Fault> {
    put_u16(page, MAX_OFFSET, count)?;
    slotted::set_lower(page, DATA + usize::from(count) * POSTING_ITEM);
    Ok(())
}

/// After a split of the child at `offset`: what was its item goes to the right half, and `item` before it is the left half's.
fn insert_posting_item(page: &mut Page, offset: u16, right_child: u32, item: &[u8]) -> Result<(), Fault> {
    let (at, after) = posting_items_from(page, offset)?;
    let count = u16_at(page, MAX_OFFSET)?;
    let items = &mut page[..SPECIAL];
    let tid = Tid { block: right_child, offset: 0 }.to_bytes();
    put(items, at, &tid[..4])?;
    shift(items, at, after, at + POSTING_ITEM)?;
    put(items, at, item)?;
    set_posting_items(page, count.wrapping_add(1))
}

fn delete_posting_item(page: &mut Page, offset: u16) -> Result<(), Fault> {
    let (at, after) = posting_items_from(page, offset)?;
    let later = after.checked_sub(POSTING_ITEM).ok_or(Fault::Item { offset, what: "does not exist" })?;
    let count = u16_at(page, MAX_OFFSET)?;
    shift(&mut page[..SPECIAL], at + POSTING_ITEM, later, at)?;
    set_posting_items(page, count - 1)
}

/// Segments of compressed TIDs: `TID first | u16 length | length bytes of differences | pad to even`.
///
/// TIDs count as numbers of 43 bits, block and 11 bits of offset; differences are stored 7 bits to a byte, lowest first, the high bit
/// set on all bytes but a difference's last.
mod segment {
    use super::{Fault, Tid, put, put_u16, slice, u16_at};

    const HEADER: usize = 8;
    const LENGTH: usize = 6;
    const OFFSET_BITS: u32 = 11;
    /// No difference takes more bytes.
    const MAX_BYTES: u32 = 7;

    pub(super) fn size(segment: &[u8]) -> Result<usize, Fault> {
        let length = usize::from(u16_at(segment, LENGTH)?);
        Ok(HEADER + length.next_multiple_of(2))
    }

    pub(super) fn number(tid: Tid) -> u64 {
        u64::from(tid.block) << OFFSET_BITS | u64::from(tid.offset)
    }

    /// The TIDs of a segment as numbers.
    pub(super) struct Reader<'s> {
        next: Option<u64>,
        left: &'s [u8],
    }

    impl<'s> Reader<'s> {
        pub(super) fn new(segment: &'s [u8]) -> Result<Self, Fault> {
            let length = usize::from(u16_at(segment, LENGTH)?);
            Ok(Reader { next: Some(number(Tid::at(segment, 0)?)), left: slice(segment, HEADER, length)? })
        }

        pub(super) fn peek(&self) -> Option<u64> {
            self.next
        }

        pub(super) fn advance(&mut self) -> Result<(), Fault> {
            let Some(last) = self.next else { return Ok(()) };
            self.next = None;
            if self.left.is_empty() {
                return Ok(());
            }
            let mut difference = 0;
            for index in 0..MAX_BYTES {
                let (byte, left) =
                    self.left.split_first().ok_or(Fault::Page("a posting list ends within a TID"))?;
                self.left = left;
                difference |= u64::from(byte & 0x7F) << (7 * index);
                if byte & 0x80 == 0 {
                    self.next = Some(last + difference);
                    return Ok(());
                }
            }
            Err(Fault::Page("a TID of a posting list is too long"))
        }
    }

    /// Writes a segment TID by TID.
    pub(super) struct Writer {
        start: usize,
        end: usize,
        last: Option<u64>,
    }

    impl Writer {
        pub(super) fn new(start: usize) -> Self {
            Writer { start, end: start + HEADER, last: None }
        }

        pub(super) fn push(&mut self, out: &mut [u8], number: u64) -> Result<(), Fault> {
            let Some(last) = self.last.replace(number) else {
                let offset = number as u16 & ((1 << OFFSET_BITS) - 1);
                put(out, self.start, &Tid { block: (number >> OFFSET_BITS) as u32, offset }.to_bytes())?;
                return Ok(());
            };
            let mut difference = number
                .checked_sub(last)
                .filter(|difference| *difference != 0)
                .ok_or(Fault::Record("TIDs to add are not in ascending order"))?;
            while difference > 0x7F {
                put(out, self.end, &[0x80 | difference as u8])?;
                self.end += 1;
                difference >>= 7;
            }
            put(out, self.end, &[difference as u8])?;
            self.end += 1;
            Ok(())
        }

        /// Where the segment ends.
        pub(super) fn finish(self, out: &mut [u8]) -> Result<usize, Fault> {
            let length = self.end - self.start - HEADER;
            put_u16(out, self.start + LENGTH, length as u16)?;
            if length % 2 == 1 {
                put(out, self.end, &[0])?;
            }
            Ok(self.end + length % 2)
        }
    }
}

/// A leaf of before 9.4, a plain array of TIDs, becomes one of a single segment (as `ginRedoRecompress` does).
fn compress_old_leaf(page: &mut Page) -> Result<(), Fault> {
    let before = *page;
    let count = usize::from(u16_at(page, MAX_OFFSET)?);
    let mut end = DATA;
    if count > 0 {
        let mut writer = segment::Writer::new(DATA);
        for tid in slice(&before, DATA, count * Tid::SIZE)?.chunks_exact(Tid::SIZE) {
            writer.push(&mut page[..SPECIAL], segment::number(Tid::at(tid, 0)?))?;
        }
        end = writer.finish(&mut page[..SPECIAL])?;
    }
    slotted::set_lower(page, end);
    slotted::set_bits(page, FLAGS, flag::COMPRESSED)?;
    put_u16(page, MAX_OFFSET, 0)
}

/// Changes a leaf's segments: `u16 count`, then per action `u8 segment | u8 action`, and by action
/// 1 delete: nothing; 2 insert before it, 3 replace: a segment; 4 add: `u16 count | TID…`.
fn recompress(page: &mut Page, mut data: BytesIn<'_>) -> Result<(), Fault> {
    const DELETE: u8 = 1;
    const INSERT: u8 = 2;
    const REPLACE: u8 = 3;
    const ADD: u8 = 4;
    if u16_at(page, FLAGS)? & flag::COMPRESSED == 0 {
        compress_old_leaf(page)?;
    }
    let before = *page;
    let length = slotted::lower(&before)
        .checked_sub(DATA)
        .ok_or(Fault::Page("a leaf's data ends before it begins"))?;
    let mut old = BytesIn::new(slice(&before[..SPECIAL], DATA, length)?);
    let out = &mut page[..SPECIAL];
    let mut end = DATA;
    let append = |out: &mut [u8], end: &mut usize, bytes: &[u8]| -> Result<(), Fault> {
        put(out, *end, bytes)?;
        *end += bytes.len();
        Ok(())
    };
    let mut at_segment = 0;
    for _ in 0..data.u16_le()? {
        let (number, action) = (data.u8()?, data.u8()?);
        while at_segment < number {
            let size = segment::size(old.rest())?;
            append(out, &mut end, old.take(size)?)?;
            at_segment += 1;
        }
        match action {
            DELETE => {}
            INSERT | REPLACE => {
                let size = segment::size(data.rest())?;
                append(out, &mut end, data.take(size)?)?;
            }
            ADD => {
                let count = usize::from(data.u16_le()?);
                let added = data.take(count * Tid::SIZE)?;
                end = merge(out, end, old.rest(), added)?;
            }
            _ => return Err(Fault::Record("the action on a segment is unknown")),
        }
        if action != INSERT {
            let size = segment::size(old.rest())?;
            old.skip(size)?;
            at_segment = at_segment.wrapping_add(1);
        }
    }
    append(out, &mut end, old.rest())?;
    slotted::set_lower(page, end);
    Ok(())
}

/// Writes the segment that holds the TIDs of `segment` and the `added` ones, both ascending.
fn merge(out: &mut [u8], start: usize, segment: &[u8], added: &[u8]) -> Result<usize, Fault> {
    let mut old = segment::Reader::new(segment)?;
    let mut added = added.chunks_exact(Tid::SIZE).map(|tid| Tid::at(tid, 0).map(segment::number));
    let mut new = added.next().transpose()?;
    let mut writer = segment::Writer::new(start);
    loop {
        let next = match (old.peek(), new) {
            (None, None) => return writer.finish(out),
            (Some(a), Some(b)) => a.min(b),
            (Some(number), None) | (None, Some(number)) => number,
        };
        writer.push(out, next)?;
        if old.peek() == Some(next) {
            old.advance()?;
        }
        if new == Some(next) {
            new = added.next().transpose()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_was_written_reads_back() {
        let numbers = [1, 2, 200, 201 + (1 << 40), (1 << 43) - 1];
        let mut out = [0; 64];
        let mut writer = segment::Writer::new(0);
        for number in numbers {
            writer.push(&mut out, number).unwrap();
        }
        let end = writer.finish(&mut out).unwrap();
        assert_eq!(segment::size(&out), Ok(end));
        let mut reader = segment::Reader::new(&out[..end]).unwrap();
        for number in numbers {
            assert_eq!(reader.peek(), Some(number));
            reader.advance().unwrap();
        }
        assert_eq!(reader.peek(), None);
    }

    #[test]
    fn merging_drops_what_is_there_already() {
        let mut old = [0; 64];
        let mut writer = segment::Writer::new(0);
        for number in [5, 9] {
            writer.push(&mut old, number).unwrap();
        }
        let end = writer.finish(&mut old).unwrap();
        let added: Vec<u8> =
            [3, 9, 11].into_iter().flat_map(|offset| Tid { block: 0, offset }.to_bytes()).collect();
        let mut out = [0; 64];
        let end = merge(&mut out, 0, &old[..end], &added).unwrap();
        assert_eq!(out[..end], [0, 0, 0, 0, 3, 0, 3, 0, 2, 4, 2, 0]);
        let descending: Vec<u8> = added.chunks_exact(6).rev().flatten().copied().collect();
        assert!(merge(&mut out, 0, &old, &descending).is_err());
    }
}
