//! Pages of items behind line pointers (`bufpage.c`): what heap and most indexes are made of.
//!
//! ```text
//! 24 line pointers, 4 bytes each | lower … hole … upper | items, each 8-aligned | special … 8192
//! line pointer: bits 0-14 offset, 15-16 state, 17-31 length
//! ```
//!
//! Every function leaves the bytes that Postgres' own would leave, the ones in the hole included.

use codec::page::Page;
use model::BLOCK_SIZE;

use crate::Fault;
use crate::fields::{align, put_u16, put_u32, shift, slice, slice_mut, u32_at};

/// Bytes of the header that all these pages begin with.
pub(crate) const HEADER: usize = 24;
/// Bytes of a line pointer.
pub(crate) const POINTER: usize = 4;
/// Most tuples on a heap page (`MaxHeapTuplesPerPage`).
pub(crate) const MAX_HEAP_ITEMS: usize = 291;
/// Most tuples on an index page (`MaxIndexTuplesPerPage`).
pub(crate) const MAX_INDEX_ITEMS: usize = 408;

/// Flag of the header: some line pointers may be unused (`PD_HAS_FREE_LINES`).
pub(crate) const HAS_FREE_LINES: u16 = 1;
/// Flag of the header: no room for another tuple version (`PD_PAGE_FULL`).
pub(crate) const PAGE_FULL: u16 = 2;
/// Flag of the header: all tuples are visible to everyone (`PD_ALL_VISIBLE`).
pub(crate) const ALL_VISIBLE: u16 = 4;

const FLAGS: usize = 10;
const LOWER: usize = 12;
const UPPER: usize = 14;
const SPECIAL: usize = 16;
const SIZE_AND_VERSION: usize = 18;
pub(crate) const PRUNE_XID: usize = 20;
/// Page size 8192 and layout version 4 in one word.
const VERSION: u16 = 0x2004;

/// A line pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct ItemId(pub(crate) u32);

impl ItemId {
    /// Free for reuse.
    pub(crate) const UNUSED: ItemId = ItemId(0);
    /// A dead tuple whose storage is gone already.
    pub(crate) const DEAD: ItemId = ItemId(3 << 15);
    pub(crate) const STATE_MASK: u32 = 3 << 15;

    #[inline]
    pub(crate) fn normal(at: usize, length: usize) -> ItemId {
        ItemId(at as u32 | 1 << 15 | (length as u32) << 17)
    }

    /// Points to another line pointer.
    pub(crate) fn redirect(to: u16) -> ItemId {
        ItemId(u32::from(to & 0x7FFF) | 2 << 15)
    }

    #[inline]
    pub(crate) fn at(self) -> usize {
        (self.0 & 0x7FFF) as usize
    }

    #[inline]
    pub(crate) fn length(self) -> usize {
        (self.0 >> 17) as usize
    }

    #[inline]
    pub(crate) fn is_used(self) -> bool {
        self.0 & Self::STATE_MASK != 0
    }

    #[inline]
    pub(crate) fn is_normal(self) -> bool {
        self.0 & Self::STATE_MASK == 1 << 15
    }

    #[inline]
    fn moved_to(self, at: usize) -> ItemId {
        ItemId(self.0 & !0x7FFF | at as u32)
    }
}

#[inline]
fn header(page: &Page, at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

#[inline]
fn set_header(page: &mut Page, at: usize, value: usize) {
    page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
}

#[inline]
pub(crate) fn flags(page: &Page) -> u16 {
    header(page, FLAGS) as u16
}

#[inline]
pub(crate) fn set_flag(page: &mut Page, flag: u16, on: bool) {
    let flags = flags(page);
    set_header(page, FLAGS, usize::from(if on { flags | flag } else { flags & !flag }));
}

#[inline]
pub(crate) fn lower(page: &Page) -> usize {
    header(page, LOWER)
}

#[inline]
pub(crate) fn upper(page: &Page) -> usize {
    header(page, UPPER)
}

#[inline]
pub(crate) fn special(page: &Page) -> usize {
    header(page, SPECIAL)
}

#[inline]
pub(crate) fn set_lower(page: &mut Page, at: usize) {
    set_header(page, LOWER, at);
}

#[inline]
pub(crate) fn set_upper(page: &mut Page, at: usize) {
    set_header(page, UPPER, at);
}

/// Makes the page empty with `special` bytes at its end (`PageInit`).
pub(crate) fn init(page: &mut Page, special: usize) {
    page.fill(0);
    let special = BLOCK_SIZE - align(special);
    set_lower(page, HEADER);
    set_upper(page, special);
    set_header(page, SPECIAL, special);
    set_header(page, SIZE_AND_VERSION, usize::from(VERSION));
}

/// Where the line pointers end, the items begin, the special space begins; in order, and all within the page.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) lower: usize,
    pub(crate) upper: usize,
    pub(crate) special: usize,
}

#[inline]
pub(crate) fn layout(page: &Page) -> Result<Layout, Fault> {
    let (lower, upper, special) = (lower(page), upper(page), special(page));
    if HEADER <= lower && lower <= upper && upper <= special && special <= BLOCK_SIZE {
        Ok(Layout { lower, upper, special })
    } else {
        Err(Fault::Header { lower: lower as u16, upper: upper as u16, special: special as u16 })
    }
}

/// How many line pointers there are.
#[inline]
pub(crate) fn count(page: &Page) -> usize {
    lower(page).min(BLOCK_SIZE).saturating_sub(HEADER) / POINTER
}

/// Where the line pointer of an offset number is; offset numbers begin at 1.
#[inline]
fn pointer_at(offset: usize) -> usize {
    HEADER + (offset - 1) * POINTER
}

#[inline]
pub(crate) fn item_id(page: &Page, offset: usize) -> Result<ItemId, Fault> {
    if offset == 0 || offset > count(page) {
        return Err(Fault::Item { offset: offset as u16, what: "does not exist" });
    }
    u32_at(page, pointer_at(offset)).map(ItemId)
}

#[inline]
pub(crate) fn set_item_id(page: &mut Page, offset: usize, id: ItemId) -> Result<(), Fault> {
    if offset == 0 || offset > count(page) {
        return Err(Fault::Item { offset: offset as u16, what: "does not exist" });
    }
    put_u32(page, pointer_at(offset), id.0)
}

/// The bytes of an item, whatever its line pointer's state: index tuples keep theirs when they are marked dead.
#[inline]
pub(crate) fn item(page: &Page, offset: usize) -> Result<&[u8], Fault> {
    let id = item_id(page, offset)?;
    slice(page, id.at(), id.length())
}

/// As [`item`], to change it in place.
#[inline]
pub(crate) fn item_mut(page: &mut Page, offset: usize) -> Result<&mut [u8], Fault> {
    let id = item_id(page, offset)?;
    slice_mut(page, id.at(), id.length())
}

/// What [`reserve`] does when the offset number is in use already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placing {
    /// The later line pointers move up by one: indexes.
    Shift,
    /// The line pointer must be unused: BRIN.
    Reuse,
    /// As `Reuse`, and no more than a heap page holds.
    Heap,
}

/// Makes room for an item and points line pointer `offset` there; gives the place to write to (`PageAddItemExtended`).
#[inline]
pub(crate) fn reserve(page: &mut Page, size: usize, offset: usize, placing: Placing) -> Result<usize, Fault> {
    let Layout { lower, upper, .. } = layout(page)?;
    let item = |what| Fault::Item { offset: offset as u16, what };
    let next = count(page) + 1;
    if offset == 0 || offset > next {
        return Err(item("is beyond the next free one"));
    }
    if placing == Placing::Heap && offset > MAX_HEAP_ITEMS {
        return Err(item("is more than a heap page holds"));
    }
    let is_shifted = offset < next && placing == Placing::Shift;
    if offset < next && !is_shifted {
        let id = item_id(page, offset)?;
        if id.is_used() || id.length() != 0 {
            return Err(item("is in use"));
        }
    }
    let new_lower = if offset == next || is_shifted { lower + POINTER } else { lower };
    let room = upper.saturating_sub(new_lower);
    if align(size) > room || size == 0 {
        return Err(Fault::NoRoom { size, room });
    }
    let at = upper - align(size);
    if is_shifted {
        let from = pointer_at(offset);
        shift(page, from, (next - offset) * POINTER, from + POINTER)?;
    }
    put_u32(page, pointer_at(offset), ItemId::normal(at, size).0)?;
    set_lower(page, new_lower);
    set_upper(page, at);
    Ok(at)
}

/// Adds an item.
#[inline]
pub(crate) fn add(page: &mut Page, item: &[u8], offset: usize, placing: Placing) -> Result<(), Fault> {
    let at = reserve(page, item.len(), offset, placing)?;
    slice_mut(page, at, item.len())?.copy_from_slice(item);
    Ok(())
}

/// Moves the line pointers of all items at or before `limit` by `distance` bytes.
fn follow_shift(page: &mut Page, limit: usize, distance: isize) -> Result<(), Fault> {
    let length = count(page) * POINTER;
    let pointers = slice_mut(page, HEADER, length)?;
    for bytes in pointers.chunks_exact_mut(POINTER) {
        let id = ItemId(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        if id.length() != 0 && id.at() <= limit {
            let at = id.at().checked_add_signed(distance).filter(|at| *at <= BLOCK_SIZE);
            let at = at.ok_or(Fault::Page("an item would move out of the page"))?;
            bytes.copy_from_slice(&id.moved_to(at).0.to_le_bytes());
        }
    }
    Ok(())
}

/// The line pointer of an item that lies where items lie.
fn placed_item(page: &Page, offset: usize) -> Result<(Layout, ItemId), Fault> {
    let layout = layout(page)?;
    let id = item_id(page, offset)?;
    if id.at() < layout.upper
        || id.at() + align(id.length()) > align(layout.special)
        || !id.at().is_multiple_of(8)
    {
        return Err(Fault::Item { offset: offset as u16, what: "points outside the items" });
    }
    Ok((layout, id))
}

/// Removes an item and its line pointer; the others close up (`PageIndexTupleDelete`).
pub(crate) fn delete(page: &mut Page, offset: usize) -> Result<(), Fault> {
    let (layout, id) = placed_item(page, offset)?;
    let size = align(id.length());
    let at = pointer_at(offset);
    let later = (count(page) - offset) * POINTER;
    shift(page, at + POINTER, later, at)?;
    shift(page, layout.upper, id.at() - layout.upper, layout.upper + size)?;
    set_upper(page, layout.upper + size);
    set_lower(page, layout.lower - POINTER);
    follow_shift(page, id.at(), size as isize)
}

/// Removes an item; its line pointer becomes unused, or goes when it is the last (`PageIndexTupleDeleteNoCompact`).
pub(crate) fn delete_keeping_numbers(page: &mut Page, offset: usize) -> Result<(), Fault> {
    let (layout, id) = placed_item(page, offset)?;
    let size = align(id.length());
    if offset < count(page) {
        set_item_id(page, offset, ItemId::UNUSED)?;
    } else {
        set_lower(page, layout.lower - POINTER);
    }
    shift(page, layout.upper, id.at() - layout.upper, layout.upper + size)?;
    set_upper(page, layout.upper + size);
    follow_shift(page, id.at(), size as isize)
}

/// Replaces an item, perhaps by one of another size (`PageIndexTupleOverwrite`).
pub(crate) fn overwrite(page: &mut Page, offset: usize, item: &[u8]) -> Result<(), Fault> {
    let (layout, id) = placed_item(page, offset)?;
    let (old, new) = (align(id.length()), align(item.len()));
    let room = old + layout.upper - layout.lower;
    if new > room || item.is_empty() {
        return Err(Fault::NoRoom { size: item.len(), room });
    }
    let distance = old as isize - new as isize;
    let at = id.at() + old - new;
    if distance != 0 {
        let upper = layout.upper + old - new;
        shift(page, layout.upper, id.at() - layout.upper, upper)?;
        set_upper(page, upper);
        follow_shift(page, id.at(), distance)?;
    }
    let state = id.0 & ItemId::STATE_MASK;
    set_item_id(page, offset, ItemId(at as u32 | state | (item.len() as u32) << 17))?;
    slice_mut(page, at, item.len())?.copy_from_slice(item);
    Ok(())
}

/// An item that [`compact`] moves.
#[derive(Clone, Copy, Default)]
struct Move {
    offset: u16,
    at: u16,
    /// Aligned: padding travels with its item.
    length: u16,
}

/// The items of a page in the order of their line pointers.
struct Moves<const MAX: usize> {
    items: [Move; MAX],
    count: usize,
    /// Each item lies before the one before it: they can move within the page.
    is_sorted: bool,
    last: usize,
    total: usize,
    layout: Layout,
}

impl<const MAX: usize> Moves<MAX> {
    fn new(layout: Layout) -> Self {
        Moves {
            items: [Move::default(); MAX],
            count: 0,
            is_sorted: true,
            last: layout.special,
            total: 0,
            layout,
        }
    }

    #[inline]
    fn push(&mut self, offset: usize, id: ItemId) -> Result<(), Fault> {
        let length = align(id.length());
        if id.at() < self.layout.upper || id.at() + length > self.layout.special {
            return Err(Fault::Item { offset: offset as u16, what: "points outside the items" });
        }
        let slot = self.items.get_mut(self.count).ok_or(Fault::Page("too many items"))?;
        *slot = Move { offset: offset as u16, at: id.at() as u16, length: length as u16 };
        self.count += 1;
        self.total += length;
        self.is_sorted &= id.at() < self.last;
        self.last = id.at();
        Ok(())
    }

    /// Packs the items against the special space in the order of their line pointers (`compactify_tuples`).
    fn compact(&self, page: &mut Page) -> Result<(), Fault> {
        let Layout { lower, special, .. } = self.layout;
        if self.total > special - lower.min(special) {
            return Err(Fault::Page("the items are longer than the page"));
        }
        let items = &self.items[..self.count];
        let mut upper = special;
        let in_place = items.iter().take_while(|item| {
            let (at, length) = (usize::from(item.at), usize::from(item.length));
            let stays = at + length == upper;
            upper -= if stays { length } else { 0 };
            stays
        });
        let stay = in_place.count();
        let moving = &items[stay..];
        if self.is_sorted {
            // Items that lie side by side move together.
            let mut tail = moving.first().map_or(0, |item| usize::from(item.at) + usize::from(item.length));
            let mut head = tail;
            for item in moving {
                let (at, length) = (usize::from(item.at), usize::from(item.length));
                if head != at + length {
                    shift(page, head, tail - head, upper)?;
                    tail = at + length;
                }
                upper -= length;
                head = at;
                Self::point(page, item.offset, upper)?;
            }
            shift(page, head, tail - head, upper)?;
        } else {
            let before = *page;
            for item in moving {
                let (at, length) = (usize::from(item.at), usize::from(item.length));
                upper -= length;
                slice_mut(page, upper, length)?.copy_from_slice(slice(&before, at, length)?);
                Self::point(page, item.offset, upper)?;
            }
        }
        set_upper(page, upper);
        Ok(())
    }

    #[inline]
    fn point(page: &mut Page, offset: u16, to: usize) -> Result<(), Fault> {
        let at = pointer_at(usize::from(offset));
        let id = ItemId(u32_at(page, at)?);
        put_u32(page, at, id.moved_to(to).0)
    }
}

/// Removes items with ascending offset numbers, read by `offset_number` (`PageIndexMultiDelete`).
pub(crate) fn delete_many(
    page: &mut Page,
    how_many: usize,
    offset_number: impl Fn(usize) -> Result<u16, Fault>,
) -> Result<(), Fault> {
    if how_many <= 2 {
        for index in (0..how_many).rev() {
            delete(page, usize::from(offset_number(index)?))?;
        }
        return Ok(());
    }
    let before = count(page);
    let mut moves = Moves::<MAX_INDEX_ITEMS>::new(layout(page)?);
    let mut deleted = 0;
    for offset in 1..=before {
        if deleted < how_many && usize::from(offset_number(deleted)?) == offset {
            deleted += 1;
            continue;
        }
        let id = item_id(page, offset)?;
        moves.push(offset - deleted, id)?;
        put_u32(page, pointer_at(offset - deleted), id.0)?;
    }
    if deleted != how_many {
        return Err(Fault::Record("offset numbers to delete are not those of items in ascending order"));
    }
    set_lower(page, HEADER + (before - deleted) * POINTER);
    moves.compact(page)
}

/// Closes the gaps between the items of a heap page (`PageRepairFragmentation`). From 15 on unused line pointers at the end go.
pub(crate) fn repair_fragmentation(page: &mut Page, truncates: bool) -> Result<(), Fault> {
    let total = count(page);
    let mut moves = Moves::<MAX_HEAP_ITEMS>::new(layout(page)?);
    let (mut unused, mut last_used) = (0, 0);
    for offset in 1..=total {
        let id = item_id(page, offset)?;
        if id.is_used() {
            if id.length() != 0 {
                moves.push(offset, id)?;
            }
            last_used = offset;
        } else {
            put_u32(page, pointer_at(offset), ItemId::UNUSED.0)?;
            unused += 1;
        }
    }
    moves.compact(page)?;
    if truncates {
        unused -= total - last_used;
        set_lower(page, HEADER + last_used * POINTER);
    }
    set_flag(page, HAS_FREE_LINES, unused > 0);
    Ok(())
}

/// Cuts unused line pointers off the end but keeps the first (`PageTruncateLinePointerArray`).
pub(crate) fn truncate_line_pointers(page: &mut Page) -> Result<(), Fault> {
    let total = count(page);
    let mut last_used = total;
    while last_used > 1 && !item_id(page, last_used)?.is_used() {
        last_used -= 1;
    }
    let mut has_unused = false;
    for offset in 1..=last_used {
        has_unused |= !item_id(page, offset)?.is_used();
    }
    if total > 0 {
        set_lower(page, HEADER + last_used * POINTER);
    }
    set_flag(page, HAS_FREE_LINES, has_unused);
    Ok(())
}

/// Oldest transaction that may have left something to prune (`PageSetPrunable`).
#[inline]
pub(crate) fn set_prunable(page: &mut Page, xid: u32) -> Result<(), Fault> {
    /// Below are the special transaction ids, which are older than all others.
    const FIRST_NORMAL: u32 = 3;
    let oldest = u32_at(page, PRUNE_XID)?;
    let precedes = if oldest < FIRST_NORMAL || xid < FIRST_NORMAL {
        xid < oldest
    } else {
        (xid.wrapping_sub(oldest) as i32) < 0
    };
    if oldest == 0 || precedes { put_u32(page, PRUNE_XID, xid) } else { Ok(()) }
}

/// Clears bits of a 16-bit field.
#[inline]
pub(crate) fn clear_bits(page: &mut Page, at: usize, bits: u16) -> Result<(), Fault> {
    let value = crate::fields::u16_at(page, at)?;
    put_u16(page, at, value & !bits)
}

/// Sets bits of a 16-bit field.
#[inline]
pub(crate) fn set_bits(page: &mut Page, at: usize, bits: u16) -> Result<(), Fault> {
    let value = crate::fields::u16_at(page, at)?;
    put_u16(page, at, value | bits)
}
