//! Heap tuples on a page (`htup_details.h`) and what records do to them.
//!
//! ```text
//! 0 u32 xmin  4 u32 xmax  8 u32 command id or xvac  12 tid ctid  18 u16 infomask2  20 u16 infomask  22 u8 header length
//! 23 null bitmap, padding, data
//! ```

use codec::bytes_in::BytesIn;
use codec::page::Page;

use crate::Fault;
use crate::fields::{Tid, slice_mut};
use crate::slotted::{self, Placing};

/// Bytes of the fixed part of a tuple's header.
pub(crate) const TUPLE_HEADER: usize = 23;

/// Bits of `infomask`.
pub(crate) mod infomask {
    pub(crate) const XMAX_KEYSHR_LOCK: u16 = 0x0010;
    pub(crate) const COMBO_CID: u16 = 0x0020;
    pub(crate) const XMAX_EXCL_LOCK: u16 = 0x0040;
    pub(crate) const XMAX_LOCK_ONLY: u16 = 0x0080;
    pub(crate) const XMIN_BITS: u16 = 0x0300;
    pub(crate) const XMAX_HINTS: u16 = 0x0C00;
    pub(crate) const XMAX_IS_MULTI: u16 = 0x1000;
    /// All that says something about `xmax`.
    pub(crate) const XMAX_BITS: u16 = 0x1CD0;
    /// Moved by a `VACUUM FULL` of before 9.0.
    pub(crate) const MOVED: u16 = 0xC000;
}

/// Bits of `infomask2`.
mod infomask2 {
    pub(super) const KEYS_UPDATED: u16 = 0x2000;
    pub(super) const HOT_UPDATED: u16 = 0x4000;
}

/// A tuple on a page.
pub(crate) struct Tuple<'p> {
    header: &'p mut [u8; TUPLE_HEADER],
    /// What follows the fixed header.
    pub(crate) rest: &'p mut [u8],
}

impl<'p> Tuple<'p> {
    /// The tuple behind a line pointer, which must be normal.
    #[inline]
    pub(crate) fn on(page: &'p mut Page, offset: u16) -> Result<Tuple<'p>, Fault> {
        let id = slotted::item_id(page, usize::from(offset))?;
        if !id.is_normal() {
            return Err(Fault::Item { offset, what: "holds no tuple" });
        }
        Tuple::of(slice_mut(page, id.at(), id.length())?)
    }

    #[inline]
    pub(crate) fn of(bytes: &'p mut [u8]) -> Result<Tuple<'p>, Fault> {
        let (header, rest) =
            bytes.split_first_chunk_mut().ok_or(Fault::Page("a heap tuple is shorter than its header"))?;
        Ok(Tuple { header, rest })
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self.header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.header[at], self.header[at + 1]])
    }

    fn set_half(&mut self, at: usize, value: u16) {
        self.header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn set_xmin(&mut self, xid: u32) {
        self.set_word(0, xid);
    }

    pub(crate) fn set_xmax(&mut self, xid: u32) {
        self.set_word(4, xid);
    }

    /// The field that holds a command id, or the transaction of an old `VACUUM FULL`.
    pub(crate) fn set_command_or_xvac(&mut self, value: u32) {
        self.set_word(8, value);
    }

    pub(crate) fn ctid(&self) -> Tid {
        let bytes = self.header[12..].first_chunk().expect("11 bytes are more than 6");
        Tid::from_bytes(*bytes)
    }

    pub(crate) fn set_ctid(&mut self, block: u32, offset: u16) {
        self.header[12..18].copy_from_slice(&Tid { block, offset }.to_bytes());
    }

    pub(crate) fn infomask(&self) -> u16 {
        self.half(20)
    }

    pub(crate) fn set_infomask(&mut self, bits: u16) {
        self.set_half(20, bits);
    }

    pub(crate) fn set_infomask2(&mut self, bits: u16) {
        self.set_half(18, bits);
    }

    /// Bytes of the whole header with bitmap and padding.
    pub(crate) fn header_length(&self) -> usize {
        usize::from(self.header[22])
    }

    pub(crate) fn set_hot_updated(&mut self, on: bool) {
        let bits = self.half(18) & !infomask2::HOT_UPDATED;
        self.set_infomask2(bits | if on { infomask2::HOT_UPDATED } else { 0 });
    }

    /// Replay does not know command ids: it leaves the first (`HeapTupleHeaderSetCmax(…, FirstCommandId, false)`).
    pub(crate) fn reset_command(&mut self) {
        self.set_command_or_xvac(0);
        self.set_infomask(self.infomask() & !infomask::COMBO_CID);
    }

    /// Replaces all that is said about `xmax` by a record's few bits (`fix_infomask_from_infobits`).
    pub(crate) fn set_xmax_bits(&mut self, infobits: u8) {
        const IS_MULTI: u8 = 0x01;
        const LOCK_ONLY: u8 = 0x02;
        const EXCL_LOCK: u8 = 0x04;
        const KEYSHR_LOCK: u8 = 0x08;
        const KEYS_UPDATED: u8 = 0x10;
        let flag = |bit: u8, flag: u16| if infobits & bit != 0 { flag } else { 0 };
        self.set_infomask(
            self.infomask() & !(infomask::XMAX_BITS | infomask::MOVED)
                | flag(IS_MULTI, infomask::XMAX_IS_MULTI)
                | flag(LOCK_ONLY, infomask::XMAX_LOCK_ONLY)
                | flag(EXCL_LOCK, infomask::XMAX_EXCL_LOCK)
                | flag(KEYSHR_LOCK, infomask::XMAX_KEYSHR_LOCK),
        );
        let bits = self.half(18) & !infomask2::KEYS_UPDATED;
        self.set_infomask2(bits | flag(KEYS_UPDATED, infomask2::KEYS_UPDATED));
    }

    /// Whether `xmax` only locks the tuple (`HEAP_XMAX_IS_LOCKED_ONLY`).
    pub(crate) fn is_only_locked(&self) -> bool {
        let mask = infomask::XMAX_IS_MULTI | infomask::XMAX_EXCL_LOCK | infomask::XMAX_KEYSHR_LOCK;
        self.infomask() & infomask::XMAX_LOCK_ONLY != 0 || self.infomask() & mask == infomask::XMAX_EXCL_LOCK
    }
}

/// What a record keeps of a new tuple's header (`xl_heap_header`).
#[derive(Clone, Copy)]
pub(crate) struct StoredHeader {
    infomask2: u16,
    infomask: u16,
    pub(crate) length: u8,
}

impl StoredHeader {
    #[inline]
    pub(crate) fn read(input: &mut BytesIn<'_>) -> Result<StoredHeader, Fault> {
        Ok(StoredHeader { infomask2: input.u16_le()?, infomask: input.u16_le()?, length: input.u8()? })
    }
}

/// A tuple version that a record creates.
pub(crate) struct NewTuple {
    pub(crate) header: StoredHeader,
    pub(crate) xmin: u32,
    pub(crate) xmax: u32,
    /// Where it is, which is also what its ctid says.
    pub(crate) block: u32,
    pub(crate) offset: u16,
}

impl NewTuple {
    /// Reserves the tuple's place with `length` bytes after the fixed header and writes that header; gives where the rest goes.
    #[inline]
    pub(crate) fn place(&self, page: &mut Page, length: usize) -> Result<usize, Fault> {
        let size = TUPLE_HEADER + length;
        let at = slotted::reserve(page, size, usize::from(self.offset), Placing::Heap)?;
        let mut tuple = Tuple::of(slice_mut(page, at, size)?)?;
        tuple.set_xmin(self.xmin);
        tuple.set_xmax(self.xmax);
        tuple.set_command_or_xvac(0);
        tuple.set_ctid(self.block, self.offset);
        tuple.set_infomask2(self.header.infomask2);
        tuple.set_infomask(self.header.infomask & !infomask::COMBO_CID);
        tuple.header[22] = self.header.length;
        Ok(at + TUPLE_HEADER)
    }

    /// As [`NewTuple::place`], with all that follows the fixed header.
    #[inline]
    pub(crate) fn put(&self, page: &mut Page, rest: &[u8]) -> Result<(), Fault> {
        let at = self.place(page, rest.len())?;
        slice_mut(page, at, rest.len())?.copy_from_slice(rest);
        Ok(())
    }
}
