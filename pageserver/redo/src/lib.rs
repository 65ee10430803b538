//! WAL redo of one block, in process: a record and the page before it give the page after it, for every built-in resource manager of
//! Postgres 14 to 18. Pure: no I/O, no clock, no allocation per change, and no page but the one at hand.
//!
//! [`apply`] redoes one record; [`reconstruct`] folds a chain of changes of one key into its value, which is what a read does. What
//! Postgres changes without naming the block in a record is in [`visibility`] and [`slru`]. [`mask`] is for comparing pages, never for
//! making them; [`check`] does so against Postgres.
//!
//! Records and pages come from outside: any bytes give a page or an error, never a panic or an endless loop.
//!
//! Reading order: `step`, `fields`, `slotted`, then one module per resource manager: `heap_tuple`, `heap`, `heap2`, `xlog`, …; `chain`.

mod brin;
mod btree;
mod chain;
pub mod check;
pub mod example;
mod fields;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod heap_tuple;
mod index_tuple;
pub mod mask;
mod sequence;
mod slotted;
pub mod slru;
mod spgist;
mod step;
pub mod visibility;
mod xlog;

use codec::bytes_in::Truncated;
use codec::page::{self, Page};
use codec::value::ValueError;
use codec::wal::image::{self, ImageError};
use codec::wal::record::{BlockRef, Record, RecordError};
use model::{Key, Lsn, RelTag, RmgrId};

pub use chain::reconstruct;
use step::Step;

/// What became of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is the page after the record now, LSN included.
    Changed,
    /// It was as new as the record, or newer.
    SkippedOlder,
    /// The record names the block but does not change it.
    Nothing,
}

/// Why a page could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RedoError {
    /// Only the extension that wrote the record knows how to redo it.
    #[error(
        "the record that ends at {lsn} belongs to resource manager {rmgr}, which is not built into Postgres"
    )]
    CustomRmgr { rmgr: RmgrId, lsn: Lsn },
    #[error("the record that ends at {lsn} is of an unknown type: {rmgr} with info {info:#04x}")]
    UnknownRecord { rmgr: RmgrId, info: u8, lsn: Lsn },
    #[error("cannot restore the image of block {block} of {rel} in the record that ends at {lsn}")]
    Image { rel: RelTag, block: u32, lsn: Lsn, source: ImageError },
    #[error(
        "cannot redo the record of {rmgr} with info {info:#04x} that ends at {lsn} on block {block} of {rel}"
    )]
    Failed { rmgr: RmgrId, info: u8, lsn: Lsn, rel: RelTag, block: u32, source: Fault },
    #[error("the change of key {key} at {lsn} is not a value")]
    Value { key: Key, lsn: Lsn, source: ValueError },
    #[error("the change of key {key} at {lsn} is not a WAL record")]
    Record { key: Key, lsn: Lsn, source: RecordError },
    #[error("the record that ends at {lsn} does not touch key {key}")]
    OtherBlock { key: Key, lsn: Lsn },
    #[error("key {key} has a change at {lsn} but no version before it")]
    NoBase { key: Key, lsn: Lsn },
    #[error("key {key} has neither a version nor a change")]
    Nothing { key: Key },
    #[error("the change of key {key} at {lsn} is for another kind of key")]
    WrongKind { key: Key, lsn: Lsn },
    #[error("the version of key {key} before {lsn} is {length} bytes long, which is not a page")]
    NotAPage { key: Key, lsn: Lsn, length: usize },
    #[error("cannot redo the change of key {key} at {lsn}")]
    Change { key: Key, lsn: Lsn, source: Fault },
}

/// What is wrong with a record or the page that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Fault {
    #[error("the record is too short: {0}")]
    Truncated(#[from] Truncated),
    #[error("{0}")]
    Record(&'static str),
    #[error("the record has no block reference {0}")]
    MissingBlock(u8),
    #[error("the record must have an image of the block but has none")]
    NoImage,
    #[error("the operation is unknown")]
    UnknownOperation,
    #[error("{0}")]
    Page(&'static str),
    #[error("the page's lower {lower}, upper {upper} and special {special} are out of order")]
    Header { lower: u16, upper: u16, special: u16 },
    #[error("line pointer {offset} {what}")]
    Item { offset: u16, what: &'static str },
    #[error("no room for an item of {size} bytes, only for {room}")]
    NoRoom { size: usize, room: usize },
    #[error("{length} bytes at offset {at} are not within the page or tuple")]
    Outside { at: usize, length: usize },
    #[error("number {number} is not on this page")]
    OtherPage { number: u32 },
}

/// Redoes `record`, which ends at `end`, on one of its blocks. The record may be trimmed to this block.
///
/// A change at or below the page's LSN is skipped, since the page has it already. An image that is to be applied, and a record that
/// initialises the page, are applied whatever the page holds: they mend pages that were copied while they were written.
///
/// After an error the page holds rubbish.
pub fn apply<'a>(
    record: &Record<'a>,
    block: &BlockRef<'a>,
    end: Lsn,
    page: &mut Page,
) -> Result<Applied, RedoError> {
    let (rmgr, info) = (record.rmgr, record.info);
    if rmgr.is_custom() {
        return Err(RedoError::CustomRmgr { rmgr, lsn: end });
    }
    if !knows(rmgr, info) {
        return Err(RedoError::UnknownRecord { rmgr, info, lsn: end });
    }
    let mut is_restored = false;
    if let Some(image) = block.image.filter(|image| image.apply) {
        image::restore(&image, page).map_err(|source| RedoError::Image {
            rel: block.rel,
            block: block.block,
            lsn: end,
            source,
        })?;
        if !changes_restored(record, block) {
            if !page::is_new(page) {
                page::set_lsn(page, end);
            }
            return Ok(Applied::Changed);
        }
        is_restored = true;
    }
    if !is_restored && !block.will_init && end <= page::lsn(page) {
        return Ok(Applied::SkippedOlder);
    }
    let step = Step { record, block, end };
    let applied = match rmgr {
        RmgrId::XLOG => xlog::redo(&step),
        RmgrId::HEAP => heap::redo(&step, page),
        RmgrId::HEAP2 => heap2::redo(&step, page),
        RmgrId::BTREE => btree::redo(&step, page),
        RmgrId::HASH => hash::redo(&step, page),
        RmgrId::GIN => gin::redo(&step, page),
        RmgrId::GIST => gist::redo(&step, page),
        RmgrId::SEQ => sequence::redo(&step, page),
        RmgrId::SPGIST => spgist::redo(&step, page),
        RmgrId::BRIN => brin::redo(&step, page),
        RmgrId::GENERIC => generic::redo(&step, page),
        _ => Err(Fault::UnknownOperation),
    }
    .map_err(|source| match source {
        Fault::UnknownOperation => RedoError::UnknownRecord { rmgr, info, lsn: end },
        source => RedoError::Failed { rmgr, info, lsn: end, rel: block.rel, block: block.block, source },
    })?;
    if applied == Applied::Changed {
        page::set_lsn(page, end);
    }
    Ok(applied)
}

/// Whether this is a type of record of 14 to 18 that touches blocks. `info` may carry Postgres' own low four bits.
pub fn knows(rmgr: RmgrId, info: u8) -> bool {
    // Bit n stands for info n << 4.
    let operations: u16 = match rmgr {
        RmgrId::XLOG => 0b0000_1100_0000_0000,
        RmgrId::HEAP2 => 0b0010_0000_0111_1110,
        RmgrId::HEAP => 0b0000_0101_1111_0111,
        RmgrId::BTREE => 0b0101_1111_1111_1111,
        RmgrId::HASH => 0b0001_1111_1111_1111,
        RmgrId::GIN => 0b0000_0011_1111_1110,
        RmgrId::GIST => 0b0000_0000_0100_1011,
        RmgrId::SEQ | RmgrId::GENERIC => 0b0000_0000_0000_0001,
        RmgrId::SPGIST => 0b0000_0001_1111_1110,
        RmgrId::BRIN => 0b0000_0110_0011_1111,
        _ => 0,
    };
    operations & 1 << (info >> 4) != 0
}

/// Whether Postgres goes on to change a page that it restored from its image. The image of a GiST left child lacks what is only known
/// when the record has its LSN; those of a hash split have all, but Postgres writes it again.
fn changes_restored(record: &Record<'_>, block: &BlockRef<'_>) -> bool {
    matches!(
        (record.rmgr, record.info & 0xF0, block.id),
        (RmgrId::GIST, gist::PAGE_UPDATE, 1)
            | (RmgrId::GIST, gist::PAGE_SPLIT, 0)
            | (RmgrId::HASH, hash::SPLIT_ALLOCATE, 0)
            | (RmgrId::HASH, hash::SPLIT_COMPLETE, _)
    )
}
