//! Sequences, resource manager 15: 0x00 log: main 12 bytes relation, then the sequence's only tuple.

use codec::page::Page;
use model::BLOCK_SIZE;

use crate::fields::put_u32;
use crate::slotted::{self, Placing};
use crate::step::Step;
use crate::{Applied, Fault};

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    const MAGIC: u32 = 0x1717;
    const SPECIAL_SIZE: usize = 4;
    let mut main = step.main();
    main.skip(12)?;
    slotted::init(page, SPECIAL_SIZE);
    put_u32(page, BLOCK_SIZE - 8, MAGIC)?;
    slotted::add(page, main.rest(), 1, Placing::Shift)?;
    Ok(Applied::Changed)
}
