//! Little-endian fields at offsets of a page, every access checked: offsets come from pages and records, which may hold anything.

use crate::Fault;

#[inline]
pub(crate) fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], Fault> {
    at.checked_add(length).and_then(|end| bytes.get(at..end)).ok_or(Fault::Outside { at, length })
}

#[inline]
pub(crate) fn slice_mut(bytes: &mut [u8], at: usize, length: usize) -> Result<&mut [u8], Fault> {
    at.checked_add(length).and_then(|end| bytes.get_mut(at..end)).ok_or(Fault::Outside { at, length })
}

#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Fault> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Fault::Outside { at, length: N })
}

#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Fault> {
    array(bytes, at).map(u16::from_le_bytes)
}

#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    array(bytes, at).map(u32::from_le_bytes)
}

#[inline]
pub(crate) fn f64_at(bytes: &[u8], at: usize) -> Result<f64, Fault> {
    array(bytes, at).map(f64::from_le_bytes)
}

/// Overwrites the bytes from `at` on.
#[inline]
pub(crate) fn put(bytes: &mut [u8], at: usize, source: &[u8]) -> Result<(), Fault> {
    slice_mut(bytes, at, source.len())?.copy_from_slice(source);
    Ok(())
}

#[inline]
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) -> Result<(), Fault> {
    put(bytes, at, &value.to_le_bytes())
}

#[inline]
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) -> Result<(), Fault> {
    put(bytes, at, &value.to_le_bytes())
}

/// Moves `length` bytes, also when source and target overlap.
#[inline]
pub(crate) fn shift(bytes: &mut [u8], from: usize, length: usize, to: usize) -> Result<(), Fault> {
    slice(bytes, to, length)?;
    slice(bytes, from, length)?;
    bytes.copy_within(from..from + length, to);
    Ok(())
}

/// A tuple identifier on disk: block high half, block low half, offset number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tid {
    pub(crate) block: u32,
    pub(crate) offset: u16,
}

impl Tid {
    /// Bytes of one.
    pub(crate) const SIZE: usize = 6;
    /// Points nowhere (`ItemPointerSetInvalid`).
    pub(crate) const INVALID: Tid = Tid { block: u32::MAX, offset: 0 };

    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; Tid::SIZE] {
        let [a, b] = ((self.block >> 16) as u16).to_le_bytes();
        let [c, d] = (self.block as u16).to_le_bytes();
        let [e, f] = self.offset.to_le_bytes();
        [a, b, c, d, e, f]
    }

    #[inline]
    pub(crate) fn from_bytes(bytes: [u8; Tid::SIZE]) -> Tid {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Tid { block: u32::from(half(0)) << 16 | u32::from(half(2)), offset: half(4) }
    }

    #[inline]
    pub(crate) fn at(bytes: &[u8], at: usize) -> Result<Tid, Fault> {
        array(bytes, at).map(Tid::from_bytes)
    }

    #[inline]
    pub(crate) fn put(self, bytes: &mut [u8], at: usize) -> Result<(), Fault> {
        put(bytes, at, &self.to_bytes())
    }
}

/// The next multiple of 8 (`MAXALIGN`).
#[inline]
pub(crate) const fn align(size: usize) -> usize {
    (size + 7) & !7
}
