//! Index tuples (`itup.h`): heap TID, then a word of size and flags, then null bitmap and data. In most indexes sizes are aligned.

use codec::bytes_in::BytesIn;

use crate::Fault;
use crate::fields::{align, u16_at};

/// Bytes of a tuple's header: TID and `t_info`.
pub(crate) const HEADER: usize = 8;
/// Where the word of size and flags is.
pub(crate) const INFO: usize = 6;
/// The bits of it that are the size.
pub(crate) const SIZE_MASK: u16 = 0x1FFF;

/// Size of the tuple that begins here, by its own header.
#[inline]
pub(crate) fn size(tuple: &[u8]) -> Result<usize, Fault> {
    let size = usize::from(u16_at(tuple, INFO)? & SIZE_MASK);
    if size < HEADER { Err(Fault::Record("an index tuple is shorter than its header")) } else { Ok(size) }
}

/// The next of several tuples that follow each other, as long as it says that it is.
#[inline]
pub(crate) fn take<'a>(input: &mut BytesIn<'a>) -> Result<&'a [u8], Fault> {
    let size = size(input.rest())?;
    Ok(input.take(size)?)
}

/// As [`take`], with the padding to an aligned length.
#[inline]
pub(crate) fn take_aligned<'a>(input: &mut BytesIn<'a>) -> Result<&'a [u8], Fault> {
    let size = align(size(input.rest())?);
    Ok(input.take(size)?)
}
