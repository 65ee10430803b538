//! Which visibility-map bits heap records clear (`heapam_xlog.h`).
//!
//! Up to 16, and in 17 and 18 before their minor releases 17.11 and 18.6, the map's blocks are not among a record's block references:
//! recovery clears the bits because the heap change says so. Newer ones register them.

use model::{BLOCK_SIZE, Fork, RelLocator, RmgrId};
use smallvec::SmallVec;

use crate::wal::payload::{Fields, PayloadError};
use crate::wal::record::Record;

/// All tuples on the heap page are visible to everyone.
pub const VM_ALL_VISIBLE: u8 = 0x01;
/// All tuples on the heap page are frozen.
pub const VM_ALL_FROZEN: u8 = 0x02;
/// Bytes of a page before its map begins.
pub const VM_PAGE_HEADER: usize = 24;
/// Heap blocks that one page of the map covers: four to a byte.
pub const HEAP_BLOCKS_PER_VM_PAGE: u32 = ((BLOCK_SIZE - VM_PAGE_HEADER) * 4) as u32;

/// The bits that a record clears.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmClears {
    /// One entry per heap block, none twice.
    pub clears: SmallVec<[VmClear; 2]>,
    /// The record has map blocks among its references, whose redo does the clearing. When it has none, the clears are left to whoever
    /// ingests the record.
    pub is_registered: bool,
}

/// Bits of one heap block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClear {
    /// The heap relation.
    pub rel: RelLocator,
    /// Its block.
    pub heap_block: u32,
    /// [`VM_ALL_VISIBLE`] and [`VM_ALL_FROZEN`], or the latter alone.
    pub bits: u8,
    /// The block holds the old version of an updated tuple, and not the new one.
    pub is_old: bool,
}

impl VmClear {
    /// The block of the map that holds the bits.
    pub fn vm_block(&self) -> u32 {
        self.heap_block / HEAP_BLOCKS_PER_VM_PAGE
    }
}

const HEAP_INSERT: u8 = 0x00;
const HEAP_DELETE: u8 = 0x10;
const HEAP_UPDATE: u8 = 0x20;
const HEAP_HOT_UPDATE: u8 = 0x40;
const HEAP_LOCK: u8 = 0x60;
const HEAP2_MULTI_INSERT: u8 = 0x50;
const HEAP2_LOCK_UPDATED: u8 = 0x60;
/// The kind's bits; the highest says that the page is initialised.
const KIND_MASK: u8 = 0x70;

/// Which bits `record` clears. Nothing for records that are not the heap's.
pub fn vm_clears(record: &Record<'_>) -> Result<VmClears, PayloadError> {
    const BOTH: u8 = VM_ALL_VISIBLE | VM_ALL_FROZEN;
    // Where the flags lie, which bit of them clears what, in the page of the tuple (or of its new version).
    let (name, flags_at, flag, bits) = match (record.rmgr, record.info & KIND_MASK) {
        (RmgrId::HEAP, HEAP_INSERT) => ("heap insert", 2, 0x01, BOTH),
        (RmgrId::HEAP, HEAP_DELETE) => ("heap delete", 7, 0x01, BOTH),
        (RmgrId::HEAP, HEAP_UPDATE | HEAP_HOT_UPDATE) => ("heap update", 7, 0x02, BOTH),
        (RmgrId::HEAP, HEAP_LOCK) => ("heap lock", 7, 0x01, VM_ALL_FROZEN),
        (RmgrId::HEAP2, HEAP2_MULTI_INSERT) => ("heap multi-insert", 0, 0x01, BOTH),
        (RmgrId::HEAP2, HEAP2_LOCK_UPDATED) => ("heap lock updated", 7, 0x01, VM_ALL_FROZEN),
        _ => return Ok(VmClears::default()),
    };
    let is_update =
        record.rmgr == RmgrId::HEAP && matches!(record.info & KIND_MASK, HEAP_UPDATE | HEAP_HOT_UPDATE);
    let mut fields = Fields::of(record, name);
    fields.skip(flags_at)?;
    let flags = fields.u8()?;
    let mut result = VmClears {
        clears: SmallVec::new(),
        is_registered: record.blocks.iter().any(|block| block.rel.fork == Fork::Vm),
    };
    let heap_block = |id: u8| record.block(id).filter(|block| block.rel.fork == Fork::Main);
    let page = heap_block(0).ok_or_else(|| fields.field("number of heap blocks", 0, "a heap block 0"))?;
    if flags & flag != 0 {
        let rel = page.rel.locator();
        result.clears.push(VmClear { rel, heap_block: page.block, bits, is_old: false });
    }
    // An update names the page of the old version only when it is another one.
    if is_update && flags & 0x01 != 0 {
        let old = heap_block(1).unwrap_or(page);
        if !result.clears.iter().any(|clear| clear.heap_block == old.block) {
            let rel = old.rel.locator();
            result.clears.push(VmClear { rel, heap_block: old.block, bits, is_old: true });
        }
    }
    Ok(result)
}
