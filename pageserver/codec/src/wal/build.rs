//! Making WAL: records with a right CRC, on pages with right headers. What a restored cluster starts from, and what tests feed.

use model::lsn::WAL_PAGE_SIZE;
use model::{BLOCK_SIZE, Lsn, PgMajor, RelTag, RmgrId, Tli, WalSegmentSize};

use crate::wal::crc;
use crate::wal::record::{HEADER_SIZE, MAX_BLOCK_ID};
use crate::wal::stream::{
    INFO_RMGR_MASK, INFO_XLOG_SWITCH, LongPageHeader, PAGE_FIRST_IS_CONTRECORD,
    PAGE_FIRST_IS_OVERWRITE_CONTRECORD, PAGE_LONG_HEADER, PageHeader, page_header_size,
};

/// What a record is to say; see [`RecordDraft::encode`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordDraft {
    /// Id of the resource manager.
    pub rmgr: u8,
    /// Flags, all eight bits.
    pub info: u8,
    /// The writing transaction, 0 for none.
    pub xid: u32,
    /// Replication origin.
    pub origin: Option<u16>,
    /// Block references, ids ascending from 0 to 32.
    pub blocks: Vec<BlockDraft>,
    /// Main data.
    pub main: Vec<u8>,
}

/// A block reference of a [`RecordDraft`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDraft {
    /// 0 to 32.
    pub id: u8,
    /// Relation and fork.
    pub rel: RelTag,
    /// Block number.
    pub block: u32,
    /// Redo initialises the page.
    pub will_init: bool,
    /// The page after the change, to be restored at redo (`true`) or to compare with; it is stored whole.
    pub image: Option<(Box<[u8; BLOCK_SIZE]>, bool)>,
    /// The block's data.
    pub data: Vec<u8>,
}

impl RecordDraft {
    /// A record without blocks.
    pub fn new(rmgr: RmgrId, info: u8, main: Vec<u8>) -> Self {
        RecordDraft { rmgr: rmgr.0, info, main, ..RecordDraft::default() }
    }

    /// The record's bytes, for a log in which it follows the record at `prev`.
    ///
    /// # Panics
    /// When a block id is above 32, ids do not ascend, a block's data reaches 64 KiB, or main data 1 GiB: such a record cannot be written.
    pub fn encode(&self, pg: PgMajor, prev: Lsn) -> Vec<u8> {
        let mut out = vec![0; HEADER_SIZE];
        out[4..8].copy_from_slice(&self.xid.to_le_bytes());
        out[8..16].copy_from_slice(&prev.0.to_le_bytes());
        out[16] = self.info;
        out[17] = self.rmgr;
        assert!(self.blocks.is_sorted_by(|a, b| a.id < b.id), "block ids must ascend");
        for block in &self.blocks {
            assert!(block.id <= MAX_BLOCK_ID, "block id {} is too high", block.id);
            let length = u16::try_from(block.data.len()).expect("a block's data is shorter than 64 KiB");
            let flag = |on: bool, flag: u8| if on { flag } else { 0 };
            out.push(block.id);
            out.push(
                block.rel.fork as u8
                    | flag(block.image.is_some(), 0x10)
                    | flag(length != 0, 0x20)
                    | flag(block.will_init, 0x40),
            );
            out.extend_from_slice(&length.to_le_bytes());
            if let Some((_, apply)) = block.image {
                out.extend_from_slice(&(BLOCK_SIZE as u16).to_le_bytes());
                out.extend_from_slice(&[0, 0]);
                out.push(flag(apply, if pg == PgMajor::V14 { 0x04 } else { 0x02 }));
            }
            for word in [block.rel.spc, block.rel.db, block.rel.rel, block.block] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        if let Some(origin) = self.origin {
            out.push(253);
            out.extend_from_slice(&origin.to_le_bytes());
        }
        match u8::try_from(self.main.len()) {
            Ok(0) => {}
            Ok(length) => out.extend_from_slice(&[255, length]),
            Err(_) => {
                assert!(self.main.len() < 1 << 30, "main data is too long");
                out.push(254);
                out.extend_from_slice(&(self.main.len() as u32).to_le_bytes());
            }
        }
        for block in &self.blocks {
            if let Some((page, _)) = &block.image {
                out.extend_from_slice(&page[..]);
            }
            out.extend_from_slice(&block.data);
        }
        out.extend_from_slice(&self.main);
        let length = out.len() as u32;
        out[0..4].copy_from_slice(&length.to_le_bytes());
        crc::seal(&mut out);
        out
    }
}

/// Writes a log, record after record, from a segment's beginning on.
#[derive(Clone, Debug)]
pub struct WalBuilder {
    pg: PgMajor,
    segment: WalSegmentSize,
    system_id: u64,
    tli: Tli,
    base: Lsn,
    prev: Lsn,
    bytes: Vec<u8>,
    /// Set while a page begins where an aborted record would go on.
    overwriting: bool,
}

impl WalBuilder {
    /// A log whose first record will begin at `start` (or at the next place where one can). The bytes begin with the segment that
    /// holds `start`; its pages up to there say that they are within a record that ends at `start`, so that a reader that begins at
    /// the segment's first byte finds the first record. `prev` is where that record says the one before it is.
    pub fn new(
        pg: PgMajor,
        segment: WalSegmentSize,
        system_id: u64,
        tli: Tli,
        start: Lsn,
        prev: Lsn,
    ) -> Self {
        let base = segment.start(start.align_up());
        let mut builder =
            WalBuilder { pg, segment, system_id, tli, base, prev, bytes: Vec::new(), overwriting: false };
        let start = start.align_up();
        let start = start.max(start.page_start().add(page_header_size(start.page_start(), segment)));
        let data_between = |from: Lsn| {
            let pages = (start.page_start().0 - from.page_start().0) / WAL_PAGE_SIZE;
            let headers: u64 = (1..=pages)
                .map(|n| page_header_size(from.page_start().add(n * WAL_PAGE_SIZE), segment))
                .sum();
            start.since(from) - headers
        };
        while builder.end() < start {
            if builder.end().0.is_multiple_of(WAL_PAGE_SIZE) {
                let first = builder.end().add(page_header_size(builder.end(), segment));
                builder.push_page_header(data_between(first) as u32);
            } else {
                let to_page_end = WAL_PAGE_SIZE - builder.end().0 % WAL_PAGE_SIZE;
                let count = to_page_end.min(start.since(builder.end()));
                builder.bytes.resize(builder.bytes.len() + count as usize, 0);
            }
        }
        builder
    }

    /// LSN of the first byte.
    pub fn base(&self) -> Lsn {
        self.base
    }

    /// Where the bytes end.
    pub fn end(&self) -> Lsn {
        self.base.add(self.bytes.len() as u64)
    }

    /// Start of the last record.
    pub fn last_record(&self) -> Lsn {
        self.prev
    }

    /// All bytes so far, from [`WalBuilder::base`] on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the bytes so far, and where they begin; from now on [`WalBuilder::base`] is where they end. For logs too long to be held.
    pub fn take(&mut self) -> (Lsn, Vec<u8>) {
        let (from, end) = (self.base, self.end());
        self.base = end;
        (from, std::mem::take(&mut self.bytes))
    }

    /// Pages begun from now on are of this Postgres timeline.
    pub fn set_tli(&mut self, tli: Tli) {
        self.tli = tli;
    }

    /// All bytes, padded with zeros to whole segments: the content of segment files.
    pub fn into_segments(mut self) -> Vec<u8> {
        let size = self.segment.bytes() as usize;
        self.bytes.resize(self.bytes.len().div_ceil(size) * size, 0);
        self.bytes
    }

    /// Adds a record. Answers where it begins, and where it ends for readers: aligned, after `XLOG_SWITCH` the next segment.
    pub fn push(&mut self, draft: &RecordDraft) -> (Lsn, Lsn) {
        let record = draft.encode(self.pg, self.prev);
        let start = self.push_bytes(&record);
        if draft.rmgr == RmgrId::XLOG.0 && draft.info & INFO_RMGR_MASK == INFO_XLOG_SWITCH {
            let size = self.segment.bytes();
            let end = self.end().0.div_ceil(size) * size;
            self.bytes.resize(self.bytes.len() + (end - self.end().0) as usize, 0);
        }
        (start, self.end())
    }

    /// Adds the beginning of a record as a crash leaves it: all bytes up to the page boundary after its first `keep` bytes (or the
    /// record's own end before that). Then the page comes on which recovery says that it gave the record up. The next record should be
    /// an `XLOG_OVERWRITE_CONTRECORD` with the LSN that this answers. The record must be longer than what is left of the page.
    pub fn push_aborted(&mut self, draft: &RecordDraft, keep: usize) -> Lsn {
        let record = draft.encode(self.pg, self.prev);
        let prev = self.prev;
        let start = self.push_bytes(&record);
        self.prev = prev;
        let page = WAL_PAGE_SIZE as usize;
        let cut = (start.since(self.base) as usize + keep).next_multiple_of(page).min(self.bytes.len());
        self.bytes.truncate(cut / page * page);
        self.overwriting = true;
        start
    }

    fn push_bytes(&mut self, record: &[u8]) -> Lsn {
        let mut left = record;
        if self.end().0.is_multiple_of(WAL_PAGE_SIZE) {
            self.push_page_header(0);
        }
        let start = self.end();
        self.prev = start;
        loop {
            let room = (WAL_PAGE_SIZE - self.end().0 % WAL_PAGE_SIZE) as usize;
            let (now, later) = left.split_at(left.len().min(room));
            self.bytes.extend_from_slice(now);
            left = later;
            if left.is_empty() {
                break;
            }
            self.push_page_header(left.len() as u32);
        }
        let padding = self.end().align_up().since(self.end()) as usize;
        self.bytes.resize(self.bytes.len() + padding, 0);
        start
    }

    fn push_page_header(&mut self, continuation: u32) {
        let address = self.end();
        let is_first = self.segment.offset(address) == 0;
        let mut info = 0;
        if continuation != 0 {
            info |= PAGE_FIRST_IS_CONTRECORD;
        } else if self.overwriting {
            info |= PAGE_FIRST_IS_OVERWRITE_CONTRECORD;
        }
        self.overwriting = false;
        if is_first {
            info |= PAGE_LONG_HEADER;
        }
        let header = PageHeader {
            magic: self.pg.wal_magic(),
            info,
            tli: self.tli,
            address,
            continuation,
            long: is_first.then_some(LongPageHeader {
                system_id: self.system_id,
                segment_size: self.segment.bytes() as u32,
                page_size: WAL_PAGE_SIZE as u32,
            }),
        };
        header.encode(&mut self.bytes);
    }
}
