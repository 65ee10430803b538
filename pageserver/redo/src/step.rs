//! What redo of one block sees: the record, which of its blocks, and where the record ends.

use codec::bytes_in::BytesIn;
use codec::wal::record::{BlockRef, Record};
use model::Lsn;

use crate::Fault;

/// One block of one record.
pub(crate) struct Step<'r, 'a> {
    pub(crate) record: &'r Record<'a>,
    pub(crate) block: &'r BlockRef<'a>,
    /// End of the record: the page's next LSN.
    pub(crate) end: Lsn,
}

impl<'a> Step<'_, 'a> {
    pub(crate) fn main(&self) -> BytesIn<'a> {
        BytesIn::new(self.record.main)
    }

    pub(crate) fn data(&self) -> BytesIn<'a> {
        BytesIn::new(self.block.data)
    }

    /// The block number behind another of the record's references.
    #[inline]
    pub(crate) fn number_of(&self, id: u8) -> Result<u32, Fault> {
        self.record.block(id).map(|block| block.block).ok_or(Fault::MissingBlock(id))
    }

    pub(crate) fn has(&self, id: u8) -> bool {
        self.record.block(id).is_some()
    }
}

/// Refuses bytes that redo does not know.
pub(crate) fn read_whole(input: &BytesIn<'_>) -> Result<(), Fault> {
    if input.remaining() == 0 { Ok(()) } else { Err(Fault::Record("bytes are left over")) }
}
