//! SP-GiST, resource manager 16 (`spgxlog.h`). All that redo needs is in the main data; of other blocks it needs the numbers.
//!
//! ```text
//! special space, at 8184: u16 flags | u16 redirections | u16 placeholders | u16 page id
//! leaf tuple   u32 state:2 size:30 | u16 next:14 … | TID | data
//! inner tuple  u32 state:2 all the same:1 nodes:13 prefix size:16 | u16 size | pad | prefix | nodes, each an index tuple
//! dead tuple   u32 state:2 size:30 | u16 | TID redirection | u32 xid
//! 0x10 add leaf        block 0: leaf, 1: parent              0x20 move leafs   0: source, 1: target, 2: parent
//! 0x30 add node        0: inner, 1: its new page, 2: parent  0x40 split tuple  0: prefix, 1: postfix
//! 0x50 pick split      0: source, 1: target, 2: inner, 3: parent
//! 0x60 vacuum leaf     0x70 vacuum root     0x80 vacuum redirect
//! ```
//!
//! The main data of each is laid out at the type of that name below.

use codec::bytes_in::BytesIn;
use codec::page::Page;
use model::{BLOCK_SIZE, PgMajor};

use crate::fields::{Tid, put_u16, put_u32, slice, u16_at, u32_at};
use crate::hash::delete_listed;
use crate::index_tuple;
use crate::slotted::{self, MAX_INDEX_ITEMS, Placing};
use crate::step::Step;
use crate::{Applied, Fault};

const ADD_LEAF: u8 = 0x10;
const MOVE_LEAFS: u8 = 0x20;
const ADD_NODE: u8 = 0x30;
const SPLIT_TUPLE: u8 = 0x40;
const PICK_SPLIT: u8 = 0x50;
const VACUUM_LEAF: u8 = 0x60;
const VACUUM_ROOT: u8 = 0x70;
const VACUUM_REDIRECT: u8 = 0x80;

const SPECIAL_SIZE: usize = 8;
const FLAGS: usize = BLOCK_SIZE - SPECIAL_SIZE;
const REDIRECTIONS: usize = FLAGS + 2;
const PLACEHOLDERS: usize = FLAGS + 4;
const PAGE_ID: usize = FLAGS + 6;
const SPGIST_PAGE_ID: u16 = 0xFF82;

/// Flags of the special space.
mod flag {
    pub(super) const LEAF: u16 = 0x0004;
    pub(super) const NULLS: u16 = 0x0008;
}

/// What a tuple is; the lowest two bits of all tuples.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Redirect = 1,
    Dead = 2,
    Placeholder = 3,
}

impl State {
    const MASK: u32 = 3;
}

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let mut main = step.main();
    let id = step.block.id;
    match step.record.info & 0xF0 {
        ADD_LEAF => return add_leaf(step, &AddLeaf::read(&mut main)?, page),
        MOVE_LEAFS => move_leafs(step, &MoveLeafs::read(&mut main)?, page)?,
        ADD_NODE => return add_node(step, &AddNode::read(&mut main)?, page),
        SPLIT_TUPLE => split_tuple(id, &SplitTuple::read(&mut main)?, page)?,
        PICK_SPLIT => return pick_split(step, &PickSplit::read(&mut main)?, page),
        VACUUM_LEAF if id == 0 => vacuum_leaf(&mut main, page)?,
        VACUUM_ROOT if id == 0 => {
            let count = usize::from(main.u16_le()?);
            main.skip(10)?;
            delete_listed(page, main.take(count * 2)?)?;
        }
        VACUUM_REDIRECT if id == 0 => {
            let (count, first_placeholder) = (main.u16_le()?, main.u16_le()?);
            main.skip(if step.record.pg >= PgMajor::V16 { 6 } else { 4 })?;
            vacuum_redirect(page, main.take(usize::from(count) * 2)?, first_placeholder)?;
        }
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

fn bool_at(input: &mut BytesIn<'_>) -> Result<bool, Fault> {
    Ok(input.u8()? != 0)
}

fn init(page: &mut Page, is_leaf: bool, holds_nulls: bool) -> Result<(), Fault> {
    slotted::init(page, SPECIAL_SIZE);
    let flag = |on: bool, flag: u16| if on { flag } else { 0 };
    put_u16(page, FLAGS, flag(is_leaf, flag::LEAF) | flag(holds_nulls, flag::NULLS))?;
    put_u16(page, PAGE_ID, SPGIST_PAGE_ID)
}

/// Changes one of the counters in the special space.
fn count(page: &mut Page, counter: usize, difference: i32) -> Result<(), Fault> {
    let value = u16_at(page, counter)?;
    put_u16(page, counter, value.wrapping_add_signed(difference as i16))
}

/// Adds a tuple, in the place of a placeholder if there is an item already (`addOrReplaceTuple`).
fn add_or_replace(page: &mut Page, tuple: &[u8], offset: u16) -> Result<(), Fault> {
    let number = usize::from(offset);
    if number <= slotted::count(page) {
        if u32_at(slotted::item(page, number)?, 0)? & State::MASK != State::Placeholder as u32 {
            return Err(Fault::Item { offset, what: "is not a placeholder" });
        }
        count(page, PLACEHOLDERS, -1)?;
        slotted::delete(page, number)?;
    }
    slotted::add(page, tuple, number, Placing::Shift)
}

fn replace(page: &mut Page, tuple: &[u8], offset: u16) -> Result<(), Fault> {
    slotted::delete(page, usize::from(offset))?;
    slotted::add(page, tuple, usize::from(offset), Placing::Shift)
}

const DEAD_TUPLE: usize = 16;

/// `spgFormDeadTuple`: only a redirection says where to and since which transaction.
fn dead_tuple(state: State, target: Tid, xid: u32) -> Result<[u8; DEAD_TUPLE], Fault> {
    let mut tuple = [0; DEAD_TUPLE];
    put_u32(&mut tuple, 0, state as u32 | (DEAD_TUPLE as u32) << 2)?;
    if state == State::Redirect {
        target.put(&mut tuple, 6)?;
        put_u32(&mut tuple, 12, xid)?;
    } else {
        Tid::INVALID.put(&mut tuple, 6)?;
    }
    Ok(tuple)
}

/// What deleted tuples turn into.
#[derive(Clone, Copy)]
struct Deletion {
    /// The one that is listed first, which others may point to.
    first: State,
    rest: State,
    target: Tid,
    xid: u32,
}

impl Deletion {
    fn all(state: State) -> Deletion {
        Deletion { first: state, rest: state, target: Tid::INVALID, xid: 0 }
    }

    /// Replaces the tuples with the listed offset numbers (`spgPageIndexMultiDelete`).
    fn run(self, page: &mut Page, offsets: &[u8]) -> Result<(), Fault> {
        let mut sorted = [0u16; MAX_INDEX_ITEMS];
        let sorted =
            sorted.get_mut(..offsets.len() / 2).ok_or(Fault::Record("more tuples than a page holds"))?;
        for (slot, offset) in sorted.iter_mut().zip(offsets.chunks_exact(2)) {
            *slot = u16_at(offset, 0)?;
        }
        let Some(first) = sorted.first().copied() else { return Ok(()) };
        sorted.sort_unstable();
        slotted::delete_many(page, sorted.len(), |index| Ok(sorted[index]))?;
        for offset in sorted {
            let state = if *offset == first { self.first } else { self.rest };
            let tuple = dead_tuple(state, self.target, self.xid)?;
            slotted::add(page, &tuple, usize::from(*offset), Placing::Shift)?;
            match state {
                State::Redirect => count(page, REDIRECTIONS, 1)?,
                State::Placeholder => count(page, PLACEHOLDERS, 1)?,
                State::Dead => {}
            }
        }
        Ok(())
    }
}

/// Where a downlink is: a node of an inner tuple.
#[derive(Clone, Copy)]
struct Parent {
    offset: u16,
    node: u16,
}

impl Parent {
    /// Points the node somewhere else (`spgUpdateNodeLink`).
    fn point(self, page: &mut Page, target: Tid) -> Result<(), Fault> {
        const HEADER: usize = 8;
        let tuple = slotted::item_mut(page, usize::from(self.offset))?;
        let header = u32_at(tuple, 0)?;
        let nodes = header >> 3 & 0x1FFF;
        if u32::from(self.node) >= nodes {
            return Err(Fault::Record("the parent has no such node"));
        }
        let mut at = HEADER + (header >> 16) as usize;
        for _ in 0..self.node {
            at += index_tuple::size(slice(tuple, at, index_tuple::HEADER)?)?;
        }
        target.put(tuple, at)
    }
}

/// Sets which tuple of the page comes next in a leaf tuple's chain.
fn set_next(page: &mut Page, offset: u16, next: u16) -> Result<(), Fault> {
    const NEXT: usize = 4;
    const NEXT_MASK: u16 = 0x3FFF;
    let tuple = slotted::item_mut(page, usize::from(offset))?;
    let info = u16_at(tuple, NEXT)?;
    put_u16(tuple, NEXT, info & !NEXT_MASK | next & NEXT_MASK)
}

fn take_leaf<'a>(input: &mut BytesIn<'a>) -> Result<&'a [u8], Fault> {
    let size = u32_at(input.rest(), 0)? >> 2;
    Ok(input.take(size as usize)?)
}

fn take_inner<'a>(input: &mut BytesIn<'a>) -> Result<&'a [u8], Fault> {
    let size = u16_at(input.rest(), 4)?;
    Ok(input.take(usize::from(size))?)
}

/// `bool new page | bool nulls | u16 leaf | u16 head | u16 parent | u16 node | leaf tuple`
struct AddLeaf<'a> {
    starts_empty: bool,
    holds_nulls: bool,
    leaf: u16,
    head: u16,
    parent: Parent,
    tuple: &'a [u8],
}

impl<'a> AddLeaf<'a> {
    fn read(main: &mut BytesIn<'a>) -> Result<Self, Fault> {
        Ok(AddLeaf {
            starts_empty: bool_at(main)?,
            holds_nulls: bool_at(main)?,
            leaf: main.u16_le()?,
            head: main.u16_le()?,
            parent: Parent { offset: main.u16_le()?, node: main.u16_le()? },
            tuple: take_leaf(main)?,
        })
    }
}

fn add_leaf(step: &Step<'_, '_>, add: &AddLeaf<'_>, page: &mut Page) -> Result<Applied, Fault> {
    match step.block.id {
        0 => {
            if add.starts_empty {
                init(page, true, add.holds_nulls)?;
            }
            if add.leaf == add.head {
                replace(page, add.tuple, add.leaf)?;
            } else {
                add_or_replace(page, add.tuple, add.leaf)?;
                if add.head != 0 {
                    set_next(page, add.head, add.leaf)?;
                }
            }
        }
        1 if add.parent.offset == 0 => return Ok(Applied::Nothing),
        1 => add.parent.point(page, Tid { block: step.number_of(0)?, offset: add.leaf })?,
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

/// `u16 moves | bool new page | bool replace dead | bool nulls | pad | u16 parent | u16 node | pad | u32 xid | bool build | pad`, then
/// offsets to delete, offsets to insert at (one more, or a single one when a dead tuple is replaced), leaf tuples
struct MoveLeafs<'a> {
    starts_empty: bool,
    holds_nulls: bool,
    parent: Parent,
    xid: u32,
    is_build: bool,
    deleted: &'a [u8],
    inserted: &'a [u8],
    tuples: BytesIn<'a>,
}

impl<'a> MoveLeafs<'a> {
    fn read(main: &mut BytesIn<'a>) -> Result<Self, Fault> {
        let moves = usize::from(main.u16_le()?);
        let (starts_empty, replaces_dead, holds_nulls) = (bool_at(main)?, bool_at(main)?, bool_at(main)?);
        main.skip(1)?;
        let parent = Parent { offset: main.u16_le()?, node: main.u16_le()? };
        main.skip(2)?;
        let (xid, is_build) = (main.u32_le()?, bool_at(main)?);
        main.skip(3)?;
        Ok(MoveLeafs {
            starts_empty,
            holds_nulls,
            parent,
            xid,
            is_build,
            deleted: main.take(moves * 2)?,
            inserted: main.take(if replaces_dead { 2 } else { (moves + 1) * 2 })?,
            tuples: main.clone(),
        })
    }
}

fn move_leafs(step: &Step<'_, '_>, moved: &MoveLeafs<'_>, page: &mut Page) -> Result<(), Fault> {
    let target = || -> Result<Tid, Fault> {
        let offset = u16_at(moved.inserted, moved.inserted.len() - 2)?;
        Ok(Tid { block: step.number_of(1)?, offset })
    };
    match step.block.id {
        0 => {
            let first = if moved.is_build { State::Placeholder } else { State::Redirect };
            Deletion { first, rest: State::Placeholder, target: target()?, xid: moved.xid }
                .run(page, moved.deleted)
        }
        1 => {
            if moved.starts_empty {
                init(page, true, moved.holds_nulls)?;
            }
            let mut tuples = moved.tuples.clone();
            for offset in moved.inserted.chunks_exact(2) {
                add_or_replace(page, take_leaf(&mut tuples)?, u16_at(offset, 0)?)?;
            }
            Ok(())
        }
        2 => moved.parent.point(page, target()?),
        _ => Err(Fault::UnknownOperation),
    }
}

/// `u16 offset | u16 new offset | bool new page | i8 parent's block | u16 parent | u16 node | pad | u32 xid | bool build | pad | inner tuple`
struct AddNode<'a> {
    offset: u16,
    new_offset: u16,
    starts_empty: bool,
    /// Which block reference holds the parent.
    parent_block: u8,
    parent: Parent,
    xid: u32,
    is_build: bool,
    tuple: &'a [u8],
}

impl<'a> AddNode<'a> {
    fn read(main: &mut BytesIn<'a>) -> Result<Self, Fault> {
        let (offset, new_offset) = (main.u16_le()?, main.u16_le()?);
        let (starts_empty, parent_block) = (bool_at(main)?, main.u8()?);
        let parent = Parent { offset: main.u16_le()?, node: main.u16_le()? };
        main.skip(2)?;
        let (xid, is_build) = (main.u32_le()?, bool_at(main)?);
        main.skip(3)?;
        let tuple = take_inner(main)?;
        Ok(AddNode { offset, new_offset, starts_empty, parent_block, parent, xid, is_build, tuple })
    }
}

fn add_node(step: &Step<'_, '_>, add: &AddNode<'_>, page: &mut Page) -> Result<Applied, Fault> {
    let id = step.block.id;
    if !step.has(1) {
        // It fits where it was.
        return match id {
            0 => replace(page, add.tuple, add.offset).map(|()| Applied::Changed),
            _ => Err(Fault::UnknownOperation),
        };
    }
    let target = Tid { block: step.number_of(1)?, offset: add.new_offset };
    match id {
        0 => {
            let (state, counter) = if add.is_build {
                (State::Placeholder, PLACEHOLDERS)
            } else {
                (State::Redirect, REDIRECTIONS)
            };
            replace(page, &dead_tuple(state, target, add.xid)?, add.offset)?;
            count(page, counter, 1)?;
        }
        1 => {
            if add.starts_empty {
                init(page, false, false)?;
            }
            add_or_replace(page, add.tuple, add.new_offset)?;
        }
        2 if add.parent_block != 2 => return Ok(Applied::Nothing),
        2 => {}
        _ => return Err(Fault::UnknownOperation),
    }
    if add.parent_block == id {
        add.parent.point(page, target)?;
    }
    Ok(Applied::Changed)
}

/// `u16 prefix offset | u16 postfix offset | bool new page | bool same page | prefix inner tuple | postfix inner tuple`
struct SplitTuple<'a> {
    prefix_offset: u16,
    postfix_offset: u16,
    starts_empty: bool,
    is_same_page: bool,
    prefix: &'a [u8],
    postfix: &'a [u8],
}

impl<'a> SplitTuple<'a> {
    fn read(main: &mut BytesIn<'a>) -> Result<Self, Fault> {
        Ok(SplitTuple {
            prefix_offset: main.u16_le()?,
            postfix_offset: main.u16_le()?,
            starts_empty: bool_at(main)?,
            is_same_page: bool_at(main)?,
            prefix: take_inner(main)?,
            postfix: take_inner(main)?,
        })
    }
}

fn split_tuple(id: u8, split: &SplitTuple<'_>, page: &mut Page) -> Result<(), Fault> {
    match id {
        0 => {
            replace(page, split.prefix, split.prefix_offset)?;
            if split.is_same_page {
                add_or_replace(page, split.postfix, split.postfix_offset)?;
            }
            Ok(())
        }
        1 => {
            if split.starts_empty {
                init(page, false, false)?;
            }
            add_or_replace(page, split.postfix, split.postfix_offset)
        }
        _ => Err(Fault::UnknownOperation),
    }
}

/// `bool root | pad | u16 deletes | u16 inserts | bool new source | bool new target | u16 inner | bool new inner page | bool nulls |
/// bool parent on inner page | pad | u16 parent | u16 node | pad | u32 xid | bool build | pad`, then offsets to delete, offsets to insert
/// at, for each a byte 0 source or 1 target, the inner tuple, the leaf tuples
#[allow(clippy::struct_excessive_bools, reason = "they are the record's")]
struct PickSplit<'a> {
    is_root: bool,
    source_starts_empty: bool,
    target_starts_empty: bool,
    inner_offset: u16,
    inner_starts_empty: bool,
    holds_nulls: bool,
    parent_is_on_inner_page: bool,
    parent: Parent,
    xid: u32,
    is_build: bool,
    deleted: &'a [u8],
    inserted: &'a [u8],
    to_target: &'a [u8],
    inner: &'a [u8],
    leafs: BytesIn<'a>,
}

impl<'a> PickSplit<'a> {
    fn read(main: &mut BytesIn<'a>) -> Result<Self, Fault> {
        let is_root = bool_at(main)?;
        main.skip(1)?;
        let (deletes, inserts) = (usize::from(main.u16_le()?), usize::from(main.u16_le()?));
        let (source_starts_empty, target_starts_empty) = (bool_at(main)?, bool_at(main)?);
        let inner_offset = main.u16_le()?;
        let inner_starts_empty = bool_at(main)?;
        let (holds_nulls, parent_is_on_inner_page) = (bool_at(main)?, bool_at(main)?);
        main.skip(1)?;
        let parent = Parent { offset: main.u16_le()?, node: main.u16_le()? };
        main.skip(2)?;
        let (xid, is_build) = (main.u32_le()?, bool_at(main)?);
        main.skip(3)?;
        Ok(PickSplit {
            is_root,
            source_starts_empty,
            target_starts_empty,
            inner_offset,
            inner_starts_empty,
            holds_nulls,
            parent_is_on_inner_page,
            parent,
            xid,
            is_build,
            deleted: main.take(deletes * 2)?,
            inserted: main.take(inserts * 2)?,
            to_target: main.take(inserts)?,
            inner: take_inner(main)?,
            leafs: main.clone(),
        })
    }

    /// Adds the leaf tuples that belong to the source or the target page.
    fn add_leafs(&self, page: &mut Page, to_target: bool) -> Result<(), Fault> {
        let mut leafs = self.leafs.clone();
        for (offset, goes_to_target) in self.inserted.chunks_exact(2).zip(self.to_target) {
            let tuple = take_leaf(&mut leafs)?;
            if (*goes_to_target != 0) == to_target {
                add_or_replace(page, tuple, u16_at(offset, 0)?)?;
            }
        }
        Ok(())
    }
}

fn pick_split(step: &Step<'_, '_>, split: &PickSplit<'_>, page: &mut Page) -> Result<Applied, Fault> {
    let inner = Tid { block: step.number_of(2)?, offset: split.inner_offset };
    match step.block.id {
        // A split root is there only as the page of the new inner tuple.
        0 if split.is_root => return Ok(Applied::Nothing),
        0 => {
            if split.source_starts_empty {
                init(page, true, split.holds_nulls)?;
            } else if split.is_build {
                Deletion::all(State::Placeholder).run(page, split.deleted)?;
            } else {
                let first = State::Redirect;
                Deletion { first, rest: State::Placeholder, target: inner, xid: split.xid }
                    .run(page, split.deleted)?;
            }
            split.add_leafs(page, false)?;
        }
        1 => {
            if split.target_starts_empty {
                init(page, true, split.holds_nulls)?;
            }
            split.add_leafs(page, true)?;
        }
        2 => {
            if split.inner_starts_empty {
                init(page, false, split.holds_nulls)?;
            }
            add_or_replace(page, split.inner, split.inner_offset)?;
            if split.parent_is_on_inner_page {
                split.parent.point(page, inner)?;
            }
        }
        3 => split.parent.point(page, inner)?,
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

/// `u16 dead | u16 placeholders | u16 moves | u16 chains | u32 xid | bool build | pad`, then offsets: dead ones, placeholders, where moves
/// come from, where they go, chain tuples, what comes after each
fn vacuum_leaf(main: &mut BytesIn<'_>, page: &mut Page) -> Result<(), Fault> {
    let (dead, placeholders) = (usize::from(main.u16_le()?), usize::from(main.u16_le()?));
    let (moves, chains) = (usize::from(main.u16_le()?), usize::from(main.u16_le()?));
    main.skip(8)?;
    let dead = main.take(dead * 2)?;
    let placeholders = main.take(placeholders * 2)?;
    let (sources, targets) = (main.take(moves * 2)?, main.take(moves * 2)?);
    let (chained, next) = (main.take(chains * 2)?, main.take(chains * 2)?);
    Deletion::all(State::Dead).run(page, dead)?;
    Deletion::all(State::Placeholder).run(page, placeholders)?;
    // Moving is swapping line pointers; what was at the target becomes a placeholder then.
    for (source, target) in sources.chunks_exact(2).zip(targets.chunks_exact(2)) {
        let (source, target) = (usize::from(u16_at(source, 0)?), usize::from(u16_at(target, 0)?));
        let (from, to) = (slotted::item_id(page, source)?, slotted::item_id(page, target)?);
        slotted::set_item_id(page, source, to)?;
        slotted::set_item_id(page, target, from)?;
    }
    Deletion::all(State::Placeholder).run(page, sources)?;
    for (tuple, next) in chained.chunks_exact(2).zip(next.chunks_exact(2)) {
        set_next(page, u16_at(tuple, 0)?, u16_at(next, 0)?)?;
    }
    Ok(())
}

/// Turns redirections that nobody follows any more into placeholders, and removes placeholders at the end of the page.
fn vacuum_redirect(page: &mut Page, redirections: &[u8], first_placeholder: u16) -> Result<(), Fault> {
    for offset in redirections.chunks_exact(2) {
        let tuple = slotted::item_mut(page, usize::from(u16_at(offset, 0)?))?;
        let header = u32_at(tuple, 0)?;
        put_u32(tuple, 0, header | State::Placeholder as u32)?;
        Tid::INVALID.put(tuple, 6)?;
    }
    let turned = (redirections.len() / 2) as i32;
    count(page, REDIRECTIONS, -turned)?;
    count(page, PLACEHOLDERS, turned)?;
    let first = usize::from(first_placeholder);
    if first != 0 {
        let last = slotted::count(page);
        let removed = (last + 1)
            .checked_sub(first)
            .ok_or(Fault::Item { offset: first_placeholder, what: "does not exist" })?;
        count(page, PLACEHOLDERS, -(removed as i32))?;
        slotted::delete_many(page, removed, |index| Ok((first + index) as u16))?;
    }
    Ok(())
}
