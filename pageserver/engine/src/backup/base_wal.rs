//! The WAL that a compute begins with: page headers, and on the page of the LSN the pretended tail of an earlier record.
//!
//! | where | header |
//! |---|---|
//! | the segment's first page | long; if the LSN lies on this page, what continues there ends at the LSN |
//! | the LSN's page, if another | short; what continues there ends at the LSN |
//! | everything else | zeros |
//!
//! A reader that starts on the LSN's page skips to the LSN, and Postgres writes on from there without having what came before.

use codec::wal::stream::{
    LongPageHeader, PAGE_FIRST_IS_CONTRECORD, PAGE_LONG_HEADER, PageHeader, page_header_size,
};
use model::lsn::WAL_PAGE_SIZE;
use model::{Lsn, PgMajor, Tli, WalSegmentSize};

/// One segment without records.
#[derive(Clone, Copy, Debug)]
pub struct EmptyWal {
    /// Whose.
    pub pg: PgMajor,
    /// Of the cluster.
    pub system_identifier: u64,
    /// Of the cluster.
    pub segment_size: WalSegmentSize,
    /// The Postgres timeline that the compute goes on with.
    pub tli: Tli,
    /// Where its first record goes.
    pub lsn: Lsn,
}

impl EmptyWal {
    /// Where the segment begins.
    pub fn segment(&self) -> Lsn {
        self.segment_size.start(self.lsn)
    }

    /// The segment's file.
    pub fn file_name(&self) -> String {
        self.segment_size.file_name(self.tli, self.lsn)
    }

    /// The page that begins at `start`; `None` for zeros.
    pub fn page(&self, start: Lsn) -> Option<[u8; WAL_PAGE_SIZE as usize]> {
        let is_first = start == self.segment();
        let is_last = start == self.lsn.page_start();
        if !is_first && !is_last {
            return None;
        }
        let size = page_header_size(start, self.segment_size);
        // An LSN within the header is the page's beginning: the first record follows the header.
        let skipped = if is_last { self.lsn.since(start).saturating_sub(size) as u32 } else { 0 };
        let mut info = if is_first { PAGE_LONG_HEADER } else { 0 };
        if skipped > 0 {
            info |= PAGE_FIRST_IS_CONTRECORD;
        }
        let header = PageHeader {
            magic: self.pg.wal_magic(),
            info,
            tli: self.tli,
            address: start,
            continuation: skipped,
            long: is_first.then(|| LongPageHeader {
                system_id: self.system_identifier,
                segment_size: self.segment_size.bytes() as u32,
                page_size: WAL_PAGE_SIZE as u32,
            }),
        };
        let mut bytes = Vec::with_capacity(size as usize);
        header.encode(&mut bytes);
        let mut page = [0; WAL_PAGE_SIZE as usize];
        page[..bytes.len()].copy_from_slice(&bytes);
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use codec::wal::build::RecordDraft;
    use codec::wal::stream::WalDecoder;
    use model::RmgrId;
    use proptest::prelude::*;

    use super::*;

    fn wal(lsn: Lsn) -> EmptyWal {
        let segment_size = WalSegmentSize::new(16 << 20).unwrap();
        EmptyWal { pg: PgMajor::V17, system_identifier: 77, segment_size, tli: Tli(1), lsn }
    }

    fn words(page: &[u8]) -> (u16, u16, u32, u64, u32) {
        let header = PageHeader::parse(page).unwrap();
        (header.magic, header.info, header.tli.0, header.address.0, header.continuation)
    }

    #[test]
    fn a_segments_pages_are_as_a_compute_expects_them() {
        // On the first page.
        let first = wal(Lsn(0x300_0128));
        assert_eq!(words(&first.page(Lsn(0x300_0000)).unwrap()), (0xD116, 3, 1, 0x300_0000, 0x128 - 40));
        let long = PageHeader::parse(&first.page(Lsn(0x300_0000)).unwrap()).unwrap().long.unwrap();
        assert_eq!((long.system_id, long.segment_size, long.page_size), (77, 16 << 20, 8192));
        assert!(first.page(Lsn(0x300_2000)).is_none());
        assert_eq!(first.file_name(), "000000010000000000000003");

        // On a later one.
        let later = wal(Lsn(0x300_4128));
        assert_eq!(words(&later.page(Lsn(0x300_0000)).unwrap()), (0xD116, 2, 1, 0x300_0000, 0));
        assert!(later.page(Lsn(0x300_2000)).is_none());
        assert_eq!(words(&later.page(Lsn(0x300_4000)).unwrap()), (0xD116, 1, 1, 0x300_4000, 0x128 - 24));

        // At a page's beginning, or on its header, nothing continues.
        for lsn in [0x300_4000, 0x300_4010, 0x300_4018] {
            assert_eq!(words(&wal(Lsn(lsn)).page(Lsn(0x300_4000)).unwrap()).1, 0);
        }
        assert_eq!(words(&wal(Lsn(0x300_0000)).page(Lsn(0x300_0000)).unwrap()).1, 2);
        for pg in PgMajor::ALL {
            let page = EmptyWal { pg, ..first }.page(Lsn(0x300_0000)).unwrap();
            assert_eq!(PgMajor::from_wal_magic(u16::from_le_bytes([page[0], page[1]])), Some(pg));
        }
    }

    proptest! {
        #[test]
        fn the_first_record_written_there_is_the_first_that_is_read(at in 0x300_0000u64..0x301_0000) {
            let wal = wal(Lsn(at));
            let begin = wal.lsn.normalized(wal.segment_size.bytes());
            let start = begin.page_start();
            let record = RecordDraft::new(RmgrId::XLOG, 0x20, vec![0; 8]).encode(wal.pg, Lsn::INVALID);
            let mut page = wal.page(start).map_or_else(|| [0; 8192].to_vec(), |page| page.to_vec());
            let from = (begin.0 - start.0) as usize;
            prop_assume!(from + record.len() <= page.len() && wal.page(start).is_some());
            page[from..from + record.len()].copy_from_slice(&record);
            let mut decoder = WalDecoder::at_first_record_after(wal.pg, wal.segment_size, wal.tli, start).expecting_system_id(77);
            decoder.feed(start, &page[..(from + record.len()).next_multiple_of(8).min(8192)]).unwrap();
            let found = decoder.next().unwrap().unwrap();
            prop_assert_eq!((found.start, found.bytes), (begin, &record[..]));
        }
    }
}
