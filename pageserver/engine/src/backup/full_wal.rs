//! The WAL that a restored cluster begins with: nothing but page headers, and one shutdown checkpoint record.
//!
//! Headers before the record say that a record continues there ("contrecord"), with a length that falls from page to page and ends where
//! ours begins. So whoever reads the segment from its start (the WAL summarizer of 17 and later, `pg_waldump`) skips straight to our
//! record instead of stumbling over zeros.

use codec::checkpoint::CHECKPOINT_SIZE;
use model::lsn::{LONG_PAGE_HEADER, SHORT_PAGE_HEADER, WAL_PAGE_SIZE};
use model::{Lsn, PgMajor, Tli, WalSegmentSize};

/// Header, `0xFF`, length, checkpoint.
const RECORD_SIZE: usize = 24 + 2 + CHECKPOINT_SIZE;

const FIRST_IS_CONTRECORD: u16 = 1;
const LONG_HEADER: u16 = 2;

/// One shutdown checkpoint in otherwise empty WAL.
#[derive(Clone, Debug)]
pub struct StartingWal {
    pg: PgMajor,
    system_identifier: u64,
    segment_size: WalSegmentSize,
    tli: Tli,
    at: Lsn,
    record: [u8; RECORD_SIZE],
}

impl StartingWal {
    /// A record at `at`, where a record can start ([`Lsn::normalized`]). `prev` is where the record before it begins, or 0 when that is unknown:
    /// Postgres does not check it in the record that it starts from.
    pub fn new(
        pg: PgMajor,
        system_identifier: u64,
        segment_size: WalSegmentSize,
        tli: Tli,
        at: Lsn,
        prev: Lsn,
        checkpoint: &[u8; CHECKPOINT_SIZE],
    ) -> StartingWal {
        let mut record = [0; RECORD_SIZE];
        record[..4].copy_from_slice(&(RECORD_SIZE as u32).to_le_bytes());
        record[8..16].copy_from_slice(&prev.0.to_le_bytes());
        // Bytes 16 and 17: XLOG_CHECKPOINT_SHUTDOWN (0) of the resource manager XLOG (0).
        record[24] = 0xFF;
        record[25] = CHECKPOINT_SIZE as u8;
        record[26..].copy_from_slice(checkpoint);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        StartingWal { pg, system_identifier, segment_size, tli, at, record }
    }

    /// Starts of the segments that the record lies in: one, or two if it crosses from one to the next.
    pub fn segments(&self) -> Vec<Lsn> {
        let first = self.segment_size.start(self.at);
        let last = self.segment_size.start(Lsn(self.end().0 - 1));
        if first == last { vec![first] } else { vec![first, last] }
    }

    /// The name of the file of the segment that starts at `segment`.
    pub fn file_name(&self, segment: Lsn) -> String {
        self.segment_size.file_name(self.tli, segment)
    }

    /// The first byte after the record.
    pub fn end(&self) -> Lsn {
        let mut at = self.at;
        let mut left = RECORD_SIZE as u64;
        loop {
            let room = WAL_PAGE_SIZE - at.0 % WAL_PAGE_SIZE;
            if left <= room {
                return at.add(left);
            }
            left -= room;
            let next = at.add(room);
            at = next.add(self.header_size(next));
        }
    }

    fn header_size(&self, page: Lsn) -> u64 {
        if self.segment_size.offset(page) == 0 { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER }
    }

    /// Bytes of payload on pages from `from` (a page's start) up to `to`, headers not counted.
    fn payload_between(&self, from: Lsn, to: Lsn) -> u64 {
        let last = to.page_start();
        let pages = last.since(from) / WAL_PAGE_SIZE;
        let headers = match pages {
            0 => 0,
            // Only the segment's first page has a long header, and `from` is within the segment of `to` or starts it.
            _ => self.header_size(from) + (pages - 1) * SHORT_PAGE_HEADER,
        };
        let on_last = to.since(last).saturating_sub(self.header_size(last));
        pages * WAL_PAGE_SIZE - headers + on_last
    }

    /// The page that starts at `start`, in one of [`StartingWal::segments`]; `None` once all further pages are zeros.
    pub fn page(&self, start: Lsn) -> Option<[u8; WAL_PAGE_SIZE as usize]> {
        if start >= self.end() {
            return None;
        }
        let header = self.header_size(start);
        let mut page = [0; WAL_PAGE_SIZE as usize];
        // What of a record that began earlier goes on here: the invented one before ours, or ours.
        let going_on = if start <= self.at.page_start() {
            self.payload_between(start, self.at)
        } else {
            (RECORD_SIZE - self.placed_before(start)) as u64
        };
        let mut info = if header == LONG_PAGE_HEADER { LONG_HEADER } else { 0 };
        if going_on > 0 {
            info |= FIRST_IS_CONTRECORD;
        }
        page[0..2].copy_from_slice(&self.pg.wal_magic().to_le_bytes());
        page[2..4].copy_from_slice(&info.to_le_bytes());
        page[4..8].copy_from_slice(&self.tli.0.to_le_bytes());
        page[8..16].copy_from_slice(&start.0.to_le_bytes());
        page[16..20].copy_from_slice(&(going_on as u32).to_le_bytes());
        if header == LONG_PAGE_HEADER {
            page[24..32].copy_from_slice(&self.system_identifier.to_le_bytes());
            page[32..36].copy_from_slice(&(self.segment_size.bytes() as u32).to_le_bytes());
            page[36..40].copy_from_slice(&(WAL_PAGE_SIZE as u32).to_le_bytes());
        }
        if start >= self.at.page_start() {
            let from = if start == self.at.page_start() { self.at.since(start) } else { header } as usize;
            let placed = self.placed_before(start);
            let count = (RECORD_SIZE - placed).min(page.len() - from);
            page[from..from + count].copy_from_slice(&self.record[placed..placed + count]);
        }
        Some(page)
    }

    /// Bytes of our record on pages before the one that starts at `start`.
    fn placed_before(&self, start: Lsn) -> usize {
        let mut placed = 0;
        let mut at = self.at;
        while at.page_start() < start && placed < RECORD_SIZE as u64 {
            let room = WAL_PAGE_SIZE - at.0 % WAL_PAGE_SIZE;
            placed += room;
            let next = at.add(room);
            at = next.add(self.header_size(next));
        }
        placed.min(RECORD_SIZE as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wal(at: Lsn) -> StartingWal {
        let segment = WalSegmentSize::new(1 << 20).unwrap();
        StartingWal::new(PgMajor::V17, 77, segment, Tli(2), at, Lsn(0), &std::array::from_fn(|i| i as u8))
    }

    /// Reads as Postgres does from a segment's start: skips what continues, then takes the record, across pages.
    fn first_record(wal: &StartingWal) -> (Lsn, Vec<u8>) {
        let header = |page: &[u8]| if page[2] & 2 != 0 { 40 } else { 24 };
        let remaining = |page: &[u8]| u32::from_le_bytes(page[16..20].try_into().unwrap()) as usize;
        let mut start = wal.segments()[0];
        let mut page = wal.page(start).unwrap();
        let mut offset = loop {
            let left = remaining(&page);
            assert_eq!(page[2] & 1 != 0, left > 0);
            if left.next_multiple_of(8) < page.len() - header(&page) {
                break header(&page) + left.next_multiple_of(8);
            }
            start = start.add(WAL_PAGE_SIZE);
            page = wal.page(start).unwrap();
        };
        let at = start.add(offset as u64);
        let mut record = Vec::new();
        while record.len() < RECORD_SIZE {
            let count = (RECORD_SIZE - record.len()).min(page.len() - offset);
            record.extend_from_slice(&page[offset..offset + count]);
            if record.len() < RECORD_SIZE {
                start = start.add(WAL_PAGE_SIZE);
                page = wal.page(start).unwrap();
                assert_eq!(remaining(&page), RECORD_SIZE - record.len());
                assert_eq!(page[2] & 1, 1);
                offset = header(&page);
            } else {
                assert_eq!(start.add((offset + count) as u64), wal.end());
            }
        }
        (at, record)
    }

    proptest! {
        #[test]
        fn a_reader_from_the_segments_start_finds_exactly_our_record(at in 0x10_0000u64..0x50_0000) {
            let wal = wal(Lsn(at).normalized(1 << 20));
            let (found, record) = first_record(&wal);
            prop_assert_eq!(found, wal.at);
            prop_assert_eq!(record, wal.record.to_vec());
        }
    }

    #[test]
    fn a_record_at_a_segments_end_needs_two_segments() {
        let crossing = wal(Lsn(0x2F_FFF8));
        assert_eq!(crossing.segments(), [Lsn(0x20_0000), Lsn(0x30_0000)]);
        let (found, record) = first_record(&crossing);
        assert_eq!((found, record), (crossing.at, crossing.record.to_vec()));
        assert_eq!(crossing.end(), Lsn(0x30_0000 + 40 + RECORD_SIZE as u64 - 8));
        assert_eq!(wal(Lsn(0x20_0028)).segments(), [Lsn(0x20_0000)]);
        assert!(wal(Lsn(0x20_0028)).page(Lsn(0x20_2000)).is_none());
    }
}
