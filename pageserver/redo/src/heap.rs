//! Heap, resource manager 10 (`heapam_xlog.h`).
//!
//! ```text
//! 0x00 insert      main: u16 offset | u8 flags
//! 0x10 delete      main: u32 xmax | u16 offset | u8 infobits | u8 flags
//! 0x20 update      main: u32 old xmax | u16 old offset | u8 old infobits | u8 flags | u32 new xmax | u16 new offset
//! 0x40 hot update        block 0 is the new tuple's page, 1 the old one's when that is another
//! 0x50 confirm     main: u16 offset
//! 0x60 lock        main: u32 xmax | u16 offset | u8 infobits | u8 flags
//! 0x70 in place    main: u16 offset …, data: what follows the tuple's header
//! new tuples, in block data: u16 infomask2 | u16 infomask | u8 header length | all that follows the 23 bytes of fixed header
//! ```
//!
//! Since 17.11 and 18.6 the visibility-map pages whose bits a record clears are among its blocks: see [`crate::visibility`].

use codec::bytes_in::{BytesIn, Truncated};
use codec::page::Page;
use codec::wal::record::Record;
use model::Fork;

use crate::fields::{shift, slice};
use crate::heap_tuple::{NewTuple, StoredHeader, TUPLE_HEADER, Tuple};
use crate::step::Step;
use crate::{Applied, Fault, slotted, visibility};

pub(crate) const INSERT: u8 = 0x00;
pub(crate) const DELETE: u8 = 0x10;
pub(crate) const UPDATE: u8 = 0x20;
pub(crate) const HOT_UPDATE: u8 = 0x40;
const CONFIRM: u8 = 0x50;
pub(crate) const LOCK: u8 = 0x60;
const IN_PLACE: u8 = 0x70;
/// Which operation; the bit above it is [`INIT_PAGE`].
pub(crate) const OPERATION: u8 = 0x70;
/// Redo starts from an empty page.
pub(crate) const INIT_PAGE: u8 = 0x80;

/// Flag of insert, delete and lock: the page's (lock: its frozen) bits in the visibility map were cleared.
pub(crate) const ALL_VISIBLE_CLEARED: u8 = 0x01;
/// Flag of update: the old page's bits were cleared.
pub(crate) const OLD_ALL_VISIBLE_CLEARED: u8 = 0x01;
/// Flag of update: the new page's bits were cleared.
pub(crate) const NEW_ALL_VISIBLE_CLEARED: u8 = 0x02;
const UPDATE_HAS_PREFIX: u8 = 0x20;
const UPDATE_HAS_SUFFIX: u8 = 0x40;
const DELETE_IS_SUPER: u8 = 0x08;
const DELETE_IS_PARTITION_MOVE: u8 = 0x10;

/// `ctid` of a tuple that moved to another partition.
const MOVED_PARTITIONS: (u32, u16) = (u32::MAX, 0xFFFD);

/// `xl_heap_insert`.
pub(crate) struct Insert {
    offset: u16,
    pub(crate) flags: u8,
}

impl Insert {
    pub(crate) fn read(main: &[u8]) -> Result<Self, Truncated> {
        let mut input = BytesIn::new(main);
        Ok(Insert { offset: input.u16_le()?, flags: input.u8()? })
    }
}

/// `xl_heap_delete`, `xl_heap_lock` and `xl_heap_lock_updated` are laid out alike.
pub(crate) struct Mark {
    pub(crate) xmax: u32,
    pub(crate) offset: u16,
    pub(crate) infobits: u8,
    pub(crate) flags: u8,
}

impl Mark {
    pub(crate) fn read(main: &[u8]) -> Result<Self, Truncated> {
        let mut input = BytesIn::new(main);
        Ok(Mark { xmax: input.u32_le()?, offset: input.u16_le()?, infobits: input.u8()?, flags: input.u8()? })
    }
}

/// `xl_heap_update`.
pub(crate) struct Update {
    old_xmax: u32,
    old_offset: u16,
    old_infobits: u8,
    pub(crate) flags: u8,
    new_xmax: u32,
    new_offset: u16,
}

impl Update {
    pub(crate) fn read(main: &[u8]) -> Result<Self, Truncated> {
        let mut input = BytesIn::new(main);
        Ok(Update {
            old_xmax: input.u32_le()?,
            old_offset: input.u16_le()?,
            old_infobits: input.u8()?,
            flags: input.u8()?,
            new_xmax: input.u32_le()?,
            new_offset: input.u16_le()?,
        })
    }
}

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let record = step.record;
    if step.block.rel.fork == Fork::Vm {
        return visibility::redo_registered(step, page);
    }
    match record.info & OPERATION {
        INSERT => insert(step, &Insert::read(record.main)?, page)?,
        DELETE => delete(step, &Mark::read(record.main)?, page)?,
        operation @ (UPDATE | HOT_UPDATE) => {
            update(step, &Update::read(record.main)?, operation == HOT_UPDATE, page)?;
        }
        CONFIRM => {
            let offset = BytesIn::new(record.main).u16_le()?;
            Tuple::on(page, offset)?.set_ctid(step.block.block, offset);
        }
        LOCK => lock(step, &Mark::read(record.main)?, page)?,
        IN_PLACE => {
            let offset = BytesIn::new(record.main).u16_le()?;
            let tuple = Tuple::on(page, offset)?;
            let data = tuple
                .header_length()
                .checked_sub(TUPLE_HEADER)
                .and_then(|skip| tuple.rest.get_mut(skip..))
                .filter(|data| data.len() == step.block.data.len())
                .ok_or(Fault::Record("the new data is not as long as the tuple"))?;
            data.copy_from_slice(step.block.data);
        }
        _ => return Err(Fault::UnknownOperation),
    }
    Ok(Applied::Changed)
}

/// Whether redo of the record's block 0 begins with an empty page.
pub(crate) fn starts_empty(record: &Record<'_>) -> bool {
    record.info & INIT_PAGE != 0
}

fn insert(step: &Step<'_, '_>, insert: &Insert, page: &mut Page) -> Result<(), Fault> {
    if starts_empty(step.record) {
        slotted::init(page, 0);
    }
    let mut data = step.data();
    let header = StoredHeader::read(&mut data)?;
    let block = step.block.block;
    NewTuple { header, xmin: step.record.xid, xmax: 0, block, offset: insert.offset }
        .put(page, data.rest())?;
    if insert.flags & ALL_VISIBLE_CLEARED != 0 {
        slotted::set_flag(page, slotted::ALL_VISIBLE, false);
    }
    Ok(())
}

fn delete(step: &Step<'_, '_>, delete: &Mark, page: &mut Page) -> Result<(), Fault> {
    let mut tuple = Tuple::on(page, delete.offset)?;
    tuple.set_xmax_bits(delete.infobits);
    tuple.set_hot_updated(false);
    if delete.flags & DELETE_IS_SUPER != 0 {
        tuple.set_xmin(0);
    } else {
        tuple.set_xmax(delete.xmax);
    }
    tuple.reset_command();
    let (block, offset) = if delete.flags & DELETE_IS_PARTITION_MOVE != 0 {
        MOVED_PARTITIONS
    } else {
        (step.block.block, delete.offset)
    };
    tuple.set_ctid(block, offset);
    slotted::set_prunable(page, step.record.xid)?;
    if delete.flags & ALL_VISIBLE_CLEARED != 0 {
        slotted::set_flag(page, slotted::ALL_VISIBLE, false);
    }
    Ok(())
}

fn update(step: &Step<'_, '_>, update: &Update, is_hot: bool, page: &mut Page) -> Result<(), Fault> {
    let new_block = step.number_of(0)?;
    let is_same_page = step.record.block(1).is_none();
    let is_new = step.block.id == 0;
    let is_old = step.block.id == 1 || (is_new && is_same_page);
    if !is_new && !is_old {
        return Err(Fault::Record("a heap update has no such block"));
    }
    if is_old {
        let mut tuple = Tuple::on(page, update.old_offset)?;
        tuple.set_xmax_bits(update.old_infobits);
        tuple.set_hot_updated(is_hot);
        tuple.set_xmax(update.old_xmax);
        tuple.reset_command();
        tuple.set_ctid(new_block, update.new_offset);
        slotted::set_prunable(page, step.record.xid)?;
        if update.flags & OLD_ALL_VISIBLE_CLEARED != 0 {
            slotted::set_flag(page, slotted::ALL_VISIBLE, false);
        }
    }
    if is_new {
        if starts_empty(step.record) && !is_same_page {
            slotted::init(page, 0);
        }
        put_new_version(step, update, is_same_page, page)?;
        if update.flags & NEW_ALL_VISIBLE_CLEARED != 0 {
            slotted::set_flag(page, slotted::ALL_VISIBLE, false);
        }
    }
    Ok(())
}

/// Adds the new tuple of an update. What its data has in common with the old tuple, at the beginning or the end, is not in the record;
/// Postgres leaves it out only when both are on one page.
fn put_new_version(
    step: &Step<'_, '_>,
    update: &Update,
    is_same_page: bool,
    page: &mut Page,
) -> Result<(), Fault> {
    let mut data = step.data();
    let mut shared = |flag: u8| if update.flags & flag != 0 { data.u16_le().map(usize::from) } else { Ok(0) };
    let (prefix, suffix) = (shared(UPDATE_HAS_PREFIX)?, shared(UPDATE_HAS_SUFFIX)?);
    let header = StoredHeader::read(&mut data)?;
    let stored = data.rest();
    let new = NewTuple {
        header,
        xmin: step.record.xid,
        xmax: update.new_xmax,
        block: step.block.block,
        offset: update.new_offset,
    };
    if prefix == 0 && suffix == 0 {
        return new.put(page, stored);
    }
    if !is_same_page {
        return Err(Fault::Record("the new tuple shares data with a tuple of another page"));
    }
    let old = slotted::item_id(page, usize::from(update.old_offset))?;
    let old_header = usize::from(slice(page, old.at(), TUPLE_HEADER)?[TUPLE_HEADER - 1]);
    let too_much = Fault::Record("the new tuple shares more than the old one has");
    let old_data = old.length().checked_sub(old_header).ok_or(too_much)?;
    if prefix > old_data || suffix > old_data {
        return Err(too_much);
    }
    // The bitmap and padding precede the data, so they come before the shared beginning.
    let before = if prefix == 0 {
        0
    } else {
        usize::from(header.length)
            .checked_sub(TUPLE_HEADER)
            .filter(|bitmap| *bitmap <= stored.len())
            .ok_or(Fault::Record("the new tuple is shorter than its header"))?
    };
    let (bitmap, middle) = stored.split_at(before);
    let at = new.place(page, stored.len() + prefix + suffix)?;
    crate::fields::put(page, at, bitmap)?;
    shift(page, old.at() + old_header, prefix, at + bitmap.len())?;
    crate::fields::put(page, at + bitmap.len() + prefix, middle)?;
    shift(page, old.at() + old.length() - suffix, suffix, at + stored.len() + prefix)
}

fn lock(step: &Step<'_, '_>, lock: &Mark, page: &mut Page) -> Result<(), Fault> {
    let mut tuple = Tuple::on(page, lock.offset)?;
    tuple.set_xmax_bits(lock.infobits);
    if tuple.is_only_locked() {
        tuple.set_hot_updated(false);
        tuple.set_ctid(step.block.block, lock.offset);
    }
    tuple.set_xmax(lock.xmax);
    tuple.reset_command();
    Ok(())
}
