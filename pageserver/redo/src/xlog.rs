//! Page images that belong to no other resource manager, resource manager 0: 0xA0 image for a hint bit, 0xB0 image.

use crate::step::Step;
use crate::{Applied, Fault};

const IMAGE_FOR_HINT: u8 = 0xA0;

/// Redo without an image. From 15 on, hint bits are announced even when `full_page_writes` is off, and then there is none.
pub(crate) fn redo(step: &Step<'_, '_>) -> Result<Applied, Fault> {
    match step.record.info & 0xF0 {
        IMAGE_FOR_HINT => Ok(Applied::Nothing),
        _ => Err(Fault::NoImage),
    }
}
