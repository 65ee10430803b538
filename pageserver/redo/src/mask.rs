//! What may differ between a page that Postgres made on the primary and the same page made by redo: hint bits, command ids, free space.
//!
//! For comparing pages only; [`crate::apply`] never looks here. [`mask`] hides exactly what Postgres' own consistency check hides
//! (`bufmask.c` and the `rm_mask` of each resource manager, alike in 14 to 18); [`mask_strictly`] hides less where Postgres hides more
//! than differs.
//!
//! One difference is left that neither hides, since it is Postgres' own: redo of a GiST `DELETE` sets the flag "tuples deleted" of a
//! leaf, which the primary does not. Nothing reads the flag. [`clear_gist_tuples_deleted`] takes it out.

use codec::page::Page;
use model::{BLOCK_SIZE, Fork, RmgrId};

use crate::fields::{align, put_u16, put_u32, slice_mut, u16_at};
use crate::heap_tuple::{Tuple, infomask};
use crate::slotted::{self, HEADER, ItemId, PRUNE_XID};
use crate::{Fault, brin, btree, gin, gist, hash};

/// Takes out of a page that a record of `rmgr` changed what may differ. `block` is the page's number in its relation.
pub fn mask(rmgr: RmgrId, block: u32, page: &mut Page) -> Result<(), Fault> {
    const BRIN_EVACUATE: u16 = 0x0001;
    match rmgr {
        RmgrId::HEAP | RmgrId::HEAP2 => {
            lsn_and_checksum(page);
            hints(page)?;
            hole(page)?;
            heap_tuples(page, block, postgres_infomask)
        }
        RmgrId::BTREE => {
            lsn_and_checksum(page);
            hints(page)?;
            hole(page)?;
            if u16_at(page, btree::FLAGS)? & btree::flag::LEAF != 0 {
                line_pointer_states(page)?;
            }
            slotted::clear_bits(page, btree::FLAGS, btree::flag::HAS_GARBAGE | btree::flag::SPLIT_END)?;
            put_u16(page, btree::CYCLE, 0)
        }
        RmgrId::HASH => {
            lsn_and_checksum(page);
            hints(page)?;
            hole(page)?;
            match u16_at(page, hash::FLAGS)? & hash::flag::TYPE {
                hash::flag::UNUSED => contents(page)?,
                hash::flag::BUCKET | hash::flag::OVERFLOW => line_pointer_states(page)?,
                _ => {}
            }
            slotted::clear_bits(page, hash::FLAGS, hash::flag::HAS_DEAD_TUPLES)
        }
        RmgrId::GIN => {
            lsn_and_checksum(page);
            hints(page)?;
            if u16_at(page, gin::FLAGS)? & gin::flag::DELETED != 0 {
                contents(page)
            } else if slotted::lower(page) > HEADER {
                hole(page)
            } else {
                Ok(())
            }
        }
        RmgrId::GIST => {
            lsn_and_checksum(page);
            hints(page)?;
            hole(page)?;
            page[gist::NSN..gist::NSN + 8].fill(0);
            slotted::set_bits(page, gist::FLAGS, gist::flag::FOLLOW_RIGHT)?;
            if u16_at(page, gist::FLAGS)? & gist::flag::LEAF != 0 {
                line_pointer_states(page)?;
            }
            slotted::clear_bits(page, gist::FLAGS, gist::flag::HAS_GARBAGE)
        }
        RmgrId::SEQ | RmgrId::GENERIC => {
            lsn_and_checksum(page);
            hole(page)
        }
        RmgrId::SPGIST => {
            lsn_and_checksum(page);
            hints(page)?;
            if slotted::lower(page) >= HEADER { hole(page) } else { Ok(()) }
        }
        RmgrId::BRIN => {
            lsn_and_checksum(page);
            hints(page)?;
            let page_type = u16_at(page, brin::PAGE_TYPE)?;
            if page_type == brin::page_type::REGULAR
                || (page_type == brin::page_type::META && slotted::lower(page) > HEADER)
            {
                hole(page)?;
            }
            slotted::clear_bits(page, brin::FLAGS, BRIN_EVACUATE)
        }
        _ => {
            lsn_and_checksum(page);
            Ok(())
        }
    }
}

/// As [`mask`], but hides of heap tuples only hints of commit and abort and command ids, keeps the flag that says that all tuples of a
/// heap page are visible, and hides nothing but LSN and checksum of visibility-map pages, which Postgres takes for one big hole.
pub fn mask_strictly(rmgr: RmgrId, fork: Fork, block: u32, page: &mut Page) -> Result<(), Fault> {
    if fork == Fork::Vm {
        page[..HEADER].fill(0);
        return Ok(());
    }
    match rmgr {
        RmgrId::HEAP | RmgrId::HEAP2 => {
            let is_all_visible = slotted::flags(page) & slotted::ALL_VISIBLE != 0;
            lsn_and_checksum(page);
            hints(page)?;
            hole(page)?;
            slotted::set_flag(page, slotted::ALL_VISIBLE, is_all_visible);
            heap_tuples(page, block, strict_infomask)
        }
        _ => mask(rmgr, block, page),
    }
}

/// Takes the flag "tuples deleted" out of a GiST leaf: see the module.
pub fn clear_gist_tuples_deleted(page: &mut Page) -> Result<(), Fault> {
    if u16_at(page, gist::FLAGS)? & gist::flag::LEAF != 0 {
        slotted::clear_bits(page, gist::FLAGS, gist::flag::TUPLES_DELETED)?;
    }
    Ok(())
}

fn lsn_and_checksum(page: &mut Page) {
    page[..10].fill(0);
}

fn hints(page: &mut Page) -> Result<(), Fault> {
    let flags = slotted::HAS_FREE_LINES | slotted::PAGE_FULL | slotted::ALL_VISIBLE;
    slotted::set_flag(page, flags, false);
    put_u32(page, PRUNE_XID, 0)
}

fn hole(page: &mut Page) -> Result<(), Fault> {
    let layout = slotted::layout(page)?;
    page[layout.lower..layout.upper].fill(0);
    Ok(())
}

/// Line pointers of index leaves are marked dead without a record.
fn line_pointer_states(page: &mut Page) -> Result<(), Fault> {
    for offset in 1..=slotted::count(page) {
        let id = slotted::item_id(page, offset)?;
        if id.is_used() {
            slotted::set_item_id(page, offset, ItemId(id.0 & !ItemId::STATE_MASK))?;
        }
    }
    Ok(())
}

/// All but the header's first fields: the page holds nothing any more.
fn contents(page: &mut Page) -> Result<(), Fault> {
    page[HEADER..].fill(0);
    put_u32(page, 12, 0)
}

fn postgres_infomask(bits: u16) -> u16 {
    const ALL_BUT_ATTRIBUTES: u16 = 0xFFF0;
    if bits & infomask::XMIN_BITS == infomask::XMIN_BITS {
        bits & !infomask::XMAX_HINTS
    } else {
        bits & !ALL_BUT_ATTRIBUTES
    }
}

fn strict_infomask(bits: u16) -> u16 {
    // Replay cannot know that a command id stands for two.
    let bits = bits & !(infomask::XMAX_HINTS | infomask::COMBO_CID);
    // Both bits together say "frozen", which is no hint.
    if bits & infomask::XMIN_BITS == infomask::XMIN_BITS { bits } else { bits & !infomask::XMIN_BITS }
}

fn heap_tuples(page: &mut Page, block: u32, infomask: impl Fn(u16) -> u16) -> Result<(), Fault> {
    /// Offset in the ctid of a tuple that waits for its speculative insertion to be confirmed.
    const SPECULATIVE: u16 = 0xFFFE;
    for offset in 1..=slotted::count(page) {
        let id = slotted::item_id(page, offset)?;
        if id.is_normal() {
            let mut tuple = Tuple::on(page, offset as u16)?;
            tuple.set_infomask(infomask(tuple.infomask()));
            tuple.set_command_or_xvac(0);
            if tuple.ctid().offset == SPECULATIVE {
                tuple.set_ctid(block, offset as u16);
            }
        }
        if id.length() != 0 {
            let end = id.at() + id.length();
            let padded = id.at() + align(id.length());
            slice_mut(page, end, padded.min(BLOCK_SIZE).saturating_sub(end))?.fill(0);
        }
    }
    Ok(())
}
