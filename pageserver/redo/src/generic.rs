//! Generic WAL, resource manager 20, which extensions use: data of each block is `(u16 offset | u16 length | bytes)…`.

use codec::page::Page;

use crate::fields::{put, slice_mut};
use crate::slotted;
use crate::step::Step;
use crate::{Applied, Fault};

pub(crate) fn redo(step: &Step<'_, '_>, page: &mut Page) -> Result<Applied, Fault> {
    let mut data = step.data();
    while data.remaining() != 0 {
        let (at, length) = (data.u16_le()?, data.u16_le()?);
        put(page, usize::from(at), data.take(usize::from(length))?)?;
    }
    // What lies in the hole is not in the record.
    let (lower, upper) = (slotted::lower(page), slotted::upper(page));
    let hole = upper.checked_sub(lower).ok_or(Fault::Page("the hole ends before it begins"))?;
    slice_mut(page, lower, hole)?.fill(0);
    Ok(Applied::Changed)
}
