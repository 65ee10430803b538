//! Heap, resource manager 9: what found no room among the operations of 10 (`heapam_xlog.h`).
//!
//! ```text
//! 0x10 prune          14, 15: main u32 xid | u16 redirected | u16 dead        data: (u16 from, u16 to)…, u16 dead…, u16 unused…
//!                     16:     the same | u8 is catalog
//!                     17, 18: main u8 reason | u8 flags | …, for 0x20 and 0x30 too; data as the flags say, see `PruneAndFreeze`
//! 0x20 vacuum         14-16:  main u16 unused                                 data: u16 unused…
//! 0x30 freeze         14, 15: main u32 cutoff | u16 tuples                    data: freeze plans of one tuple each
//!                     16:     main u32 horizon | u16 plans | u8               data: plans, then the offsets of each plan's tuples
//! 0x40 visible        main u32 horizon | u8 bits      block 0 is the visibility-map page, 1 the heap page
//! 0x50 multi insert   main u8 flags | pad | u16 tuples | u16 offset… (no offsets when the page starts empty)
//!                     data, each 2-aligned: u16 data length | stored header, 5 bytes | data
//! 0x60 lock updated   as lock of the other resource manager
//! ```

use codec::bytes_in::BytesIn;
use codec::page::Page;
use model::{Fork, PgMajor};

use crate::heap::{ALL_VISIBLE_CLEARED, Mark, OPERATION, starts_empty};
use crate::heap_tuple::{NewTuple, StoredHeader, Tuple};
use crate::slotted::{self, ItemId};
use crate::step::{Step, read_whole};
use crate::{Applied, Fault, visibility};

const PRUNE: u8 = 0x10;
const VACUUM: u8 = 0x20;
const FREEZE: u8 = 0x30;
const VISIBLE: u8 = 0x40;
pub(crate) const MULTI_INSERT: u8 = 0x50;
pub(crate) const LOCK_UPDATED: u8 = 0x60;
/// Flag of multi insert: every tuple is frozen and the page all-visible.
const ALL_FROZEN_SET: u8 = 0x20;

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let record = step.record;
    let operation = record.info & OPERATION;
    if step.block.rel.fork == Fork::Vm && operation != VISIBLE {
        return visibility::redo_registered(step, page);
    }
    let mut main = step.main();
    match operation {
        PRUNE | VACUUM | FREEZE if record.pg >= PgMajor::V17 => prune_and_freeze(step, page)?,
        PRUNE => {
            main.skip(4)?;
            let (redirected, dead) = (main.u16_le()?, main.u16_le()?);
            let mut data = step.data();
            prune(page, &mut data, redirected, dead, None)?;
            // 14 keeps unused line pointers at the end of the array.
            slotted::repair_fragmentation(page, record.pg >= PgMajor::V15)?;
        }
        VACUUM => {
            let unused = main.u16_le()?;
            let mut data = step.data();
            prune(page, &mut data, 0, 0, Some(unused))?;
            slotted::truncate_line_pointers(page)?;
        }
        FREEZE => {
            main.skip(4)?;
            let count = main.u16_le()?;
            let mut data = step.data();
            if record.pg <= PgMajor::V15 {
                for _ in 0..count {
                    let plan = FreezePlan::read_with_offset(&mut data)?;
                    plan.apply(page, plan.tuples_or_offset)?;
                }
            } else {
                let mut plans = BytesIn::new(data.take(usize::from(count) * FreezePlan::SIZE)?);
                freeze(page, &mut plans, &mut data)?;
            }
        }
        VISIBLE => return visible(step, page),
        MULTI_INSERT => multi_insert(step, page)?,
        LOCK_UPDATED => {
            let lock = Mark::read(record.main)?;
            let mut tuple = Tuple::on(page, lock.offset)?;
            tuple.set_xmax_bits(lock.infobits);
            tuple.set_xmax(lock.xmax);
        }
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

/// Sets line pointers to redirected, dead and unused, in this order; without a count all that is left are unused ones
/// (`heap_page_prune_execute`).
fn prune(
    page: &mut Page,
    data: &mut BytesIn<'_>,
    redirected: u16,
    dead: u16,
    unused: Option<u16>,
) -> Result<(), Fault> {
    for _ in 0..redirected {
        let (from, to) = (data.u16_le()?, data.u16_le()?);
        slotted::set_item_id(page, usize::from(from), ItemId::redirect(to))?;
    }
    for _ in 0..dead {
        slotted::set_item_id(page, usize::from(data.u16_le()?), ItemId::DEAD)?;
    }
    for _ in 0..unused.map_or(data.remaining() / 2, usize::from) {
        slotted::set_item_id(page, usize::from(data.u16_le()?), ItemId::UNUSED)?;
    }
    Ok(())
}

/// What freezing makes of a tuple's header (`xl_heap_freeze_tuple`, from 16 on `xlhp_freeze_plan`).
struct FreezePlan {
    xmax: u32,
    infomask2: u16,
    infomask: u16,
    flags: u8,
    /// To 15 the one tuple's offset number, from 16 on how many tuples share the plan.
    tuples_or_offset: u16,
}

impl FreezePlan {
    const SIZE: usize = 12;
    const FREEZE_XVAC: u8 = 0x02;
    const INVALID_XVAC: u8 = 0x04;
    const FROZEN_XID: u32 = 2;

    /// `u32 xmax | u16 offset | u16 infomask2 | u16 infomask | u8 flags | pad`
    fn read_with_offset(input: &mut BytesIn<'_>) -> Result<FreezePlan, Fault> {
        let (xmax, tuples_or_offset) = (input.u32_le()?, input.u16_le()?);
        let (infomask2, infomask, flags) = (input.u16_le()?, input.u16_le()?, input.u8()?);
        input.skip(1)?;
        Ok(FreezePlan { xmax, infomask2, infomask, flags, tuples_or_offset })
    }

    /// `u32 xmax | u16 infomask2 | u16 infomask | u8 flags | pad | u16 tuples`
    fn read_shared(input: &mut BytesIn<'_>) -> Result<FreezePlan, Fault> {
        let (xmax, infomask2, infomask) = (input.u32_le()?, input.u16_le()?, input.u16_le()?);
        let flags = input.u8()?;
        input.skip(1)?;
        Ok(FreezePlan { xmax, infomask2, infomask, flags, tuples_or_offset: input.u16_le()? })
    }

    fn apply(&self, page: &mut Page, offset: u16) -> Result<(), Fault> {
        let mut tuple = Tuple::on(page, offset)?;
        tuple.set_xmax(self.xmax);
        if self.flags & Self::FREEZE_XVAC != 0 {
            tuple.set_command_or_xvac(Self::FROZEN_XID);
        }
        if self.flags & Self::INVALID_XVAC != 0 {
            tuple.set_command_or_xvac(0);
        }
        tuple.set_infomask(self.infomask);
        tuple.set_infomask2(self.infomask2);
        Ok(())
    }
}

/// Applies plans to their tuples, whose offset numbers follow plan by plan.
fn freeze(page: &mut Page, plans: &mut BytesIn<'_>, offsets: &mut BytesIn<'_>) -> Result<(), Fault> {
    while plans.remaining() != 0 {
        let plan = FreezePlan::read_shared(plans)?;
        for _ in 0..plan.tuples_or_offset {
            plan.apply(page, offsets.u16_le()?)?;
        }
    }
    Ok(())
}

/// Flags of `xl_heap_prune` of 17 and later; the parts of the block data come in this order.
struct PruneAndFreeze;

impl PruneAndFreeze {
    /// Items moved; otherwise only line pointers at the end were cut off.
    const CLEANUP_LOCK: u8 = 0x04;
    /// `u16 plans | 2 pad | plans`, and after all other parts the offsets of the plans' tuples
    const HAS_FREEZE_PLANS: u8 = 0x10;
    /// `u16 count | (u16 from, u16 to)…`
    const HAS_REDIRECTIONS: u8 = 0x20;
    /// `u16 count | u16 offset…`
    const HAS_DEAD: u8 = 0x40;
    /// `u16 count | u16 offset…`
    const HAS_UNUSED: u8 = 0x80;
}

fn prune_and_freeze(step: &Step<'_, '_>, page: &mut Page) -> Result<(), Fault> {
    let mut main = step.main();
    main.skip(1)?;
    let flags = main.u8()?;
    let has = |flag: u8| flags & flag != 0;
    let mut data = step.data();
    let mut plans = BytesIn::new(&[]);
    if has(PruneAndFreeze::HAS_FREEZE_PLANS) {
        let count = usize::from(data.u16_le()?);
        data.skip(2)?;
        plans = BytesIn::new(data.take(count * FreezePlan::SIZE)?);
    }
    let mut pruned = 0;
    if has(PruneAndFreeze::HAS_REDIRECTIONS) {
        let count = data.u16_le()?;
        prune(page, &mut data, count, 0, Some(0))?;
        pruned += usize::from(count);
    }
    if has(PruneAndFreeze::HAS_DEAD) {
        let count = data.u16_le()?;
        prune(page, &mut data, 0, count, Some(0))?;
        pruned += usize::from(count);
    }
    if has(PruneAndFreeze::HAS_UNUSED) {
        let count = data.u16_le()?;
        prune(page, &mut data, 0, 0, Some(count))?;
        pruned += usize::from(count);
    }
    if pruned > 0 {
        if has(PruneAndFreeze::CLEANUP_LOCK) {
            slotted::repair_fragmentation(page, true)?;
        } else {
            slotted::truncate_line_pointers(page)?;
        }
    }
    freeze(page, &mut plans, &mut data)?;
    read_whole(&data)
}

/// Marks a heap page all-visible, in itself and in the map.
///
/// Postgres stamps the heap page with the record's LSN only under checksums or `wal_log_hints`, since otherwise the page may be written
/// before the record is; here the page is always stamped. Recovery compares LSNs only with later records, so nothing depends on it.
fn visible(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    match step.block.id {
        0 => {
            let mut main = step.main();
            main.skip(4)?;
            let bits = main.u8()?;
            if codec::page::is_new(page) {
                slotted::init(page, 0);
            }
            visibility::set(page, step.number_of(1)?, bits);
        }
        1 => slotted::set_flag(page, slotted::ALL_VISIBLE, true),
        _ => return Err(Fault::Record("a visible record has no such block")),
    }
    Ok(Applied::Changed)
}

fn multi_insert(step: &Step<'_, '_>, page: &mut Page) -> Result<(), Fault> {
    let mut main = step.main();
    let flags = main.u8()?;
    main.skip(1)?;
    let count = main.u16_le()?;
    let is_empty = starts_empty(step.record);
    if is_empty {
        slotted::init(page, 0);
    }
    let mut data = step.data();
    for index in 1..=count {
        let offset = if is_empty { index } else { main.u16_le()? };
        data.skip(data.position() % 2)?;
        let length = usize::from(data.u16_le()?);
        let header = StoredHeader::read(&mut data)?;
        let rest = data.take(length)?;
        NewTuple { header, xmin: step.record.xid, xmax: 0, block: step.block.block, offset }
            .put(page, rest)?;
    }
    if flags & ALL_VISIBLE_CLEARED != 0 {
        slotted::set_flag(page, slotted::ALL_VISIBLE, false);
    }
    if flags & ALL_FROZEN_SET != 0 {
        slotted::set_flag(page, slotted::ALL_VISIBLE, true);
    }
    read_whole(&data)
}
