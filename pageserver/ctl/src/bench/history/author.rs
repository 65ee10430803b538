//! Writes WAL as a primary would, and a [`Book`] beside it of what every page must read as.

use std::collections::HashMap;

use codec::wal::build::{BlockDraft, RecordDraft, WalBuilder};
use model::{Lsn, PgTimestamp, RmgrId};

use super::book::{Book, PageId};
use super::pages::{page_of, payload, relation};
use super::place::{BASE, CLUSTER};

/// Blocks that one record of a bulk load has.
const LOADED_AT_ONCE: u32 = 16;
const HEAP_IN_PLACE: u8 = 0x70;
const XLOG_FULL_PAGES: u8 = 0xB0;
const SMGR_CREATE: u8 = 0x10;
const SMGR_TRUNCATE: u8 = 0x20;
const CLOG_ZERO_PAGE: u8 = 0x00;
const XIDS_A_CLOG_PAGE: u32 = 32_768;

/// One line of WAL.
pub struct Author {
    wal: WalBuilder,
    /// What must be read.
    pub book: Book,
    /// What commits say.
    pub time: PgTimestamp,
    /// The first change of a page after a checkpoint is written whole.
    pub whole_pages: bool,
    /// Of each relation, which pages were written whole since the last checkpoint.
    whole: HashMap<u32, Vec<u64>>,
    version: u32,
    xid: u32,
    written: u64,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Author {
    /// Goes on from an empty base.
    pub fn new(time: PgTimestamp) -> Author {
        let mut wal = CLUSTER.wal();
        // What comes before the base is not received.
        let (from, bytes) = wal.take();
        debug_assert_eq!(from.add(bytes.len() as u64), BASE);
        Author {
            wal,
            book: Book::default(),
            time,
            whole_pages: true,
            whole: HashMap::new(),
            version: 0,
            xid: 1_000,
            written: 0,
        }
    }

    /// Bytes of WAL since the beginning.
    pub fn written(&self) -> u64 {
        self.written + self.waiting() as u64
    }

    /// Bytes that wait to be taken.
    pub fn waiting(&self) -> usize {
        self.wal.bytes().len()
    }

    /// End of the last record.
    pub fn end(&self) -> Lsn {
        self.wal.end()
    }

    /// What was written since the last call, and where it begins.
    pub fn take(&mut self) -> (Lsn, Vec<u8>) {
        let (from, bytes) = self.wal.take();
        self.written += bytes.len() as u64;
        (from, bytes)
    }

    /// From now on each page is written whole once more.
    pub fn checkpoint(&mut self) {
        self.whole.clear();
    }

    /// Whether a page is not written whole yet since the last checkpoint; from now on it is.
    fn is_first(&mut self, (rel, block): PageId) -> bool {
        let words = self.whole.entry(rel).or_default();
        let (word, bit) = (block as usize / 64, 1 << (block % 64));
        words.resize(words.len().max(word + 1), 0);
        let was = words[word] & bit != 0;
        words[word] |= bit;
        !was
    }

    fn push(&mut self, draft: &RecordDraft) -> Lsn {
        self.wal.push(draft).1
    }

    fn record(&self, rmgr: RmgrId, info: u8, main: Vec<u8>) -> RecordDraft {
        RecordDraft { xid: self.xid, ..RecordDraft::new(rmgr, info, main) }
    }

    /// A new version of a page that exists.
    pub fn update(&mut self, page: PageId) {
        self.version += 1;
        let ((rel, block), version) = (page, self.version);
        let whole = self.whole_pages && self.is_first(page);
        let image = whole.then(|| (page_of(rel, block, version, self.wal.last_record()), true));
        let data = if whole { Vec::new() } else { payload(rel, block, version).to_vec() };
        let blocks = vec![BlockDraft { id: 0, rel: relation(rel), block, will_init: false, image, data }];
        let draft = RecordDraft { blocks, ..self.record(RmgrId::HEAP, HEAP_IN_PLACE, vec![1, 0, 0, 0]) };
        let end = self.push(&draft);
        self.book.write(page, end, version);
    }

    /// Adds whole pages to a relation, after making it if it is not there.
    pub fn load(&mut self, rel: u32, blocks: u32) {
        let tag = relation(rel);
        let mut from = self.book.size(rel, Lsn::MAX).unwrap_or_else(|| {
            let main = words(&[tag.spc, tag.db, tag.rel, 0]);
            let created = self.push(&self.record(RmgrId::SMGR, SMGR_CREATE, main));
            self.book.resize(rel, created, Some(0));
            0
        });
        let to = from + blocks;
        while from < to {
            let count = LOADED_AT_ONCE.min(to - from);
            let first = self.version + 1;
            self.version += count;
            let before = self.wal.last_record();
            let drafts = (0..count).map(|at| BlockDraft {
                id: at as u8,
                rel: tag,
                block: from + at,
                will_init: false,
                image: Some((page_of(rel, from + at, first + at, before), true)),
                data: Vec::new(),
            });
            let draft = RecordDraft {
                blocks: drafts.collect(),
                ..self.record(RmgrId::XLOG, XLOG_FULL_PAGES, Vec::new())
            };
            let end = self.push(&draft);
            for at in 0..count {
                self.book.write((rel, from + at), end, first + at);
                self.is_first((rel, from + at));
            }
            from += count;
            self.book.resize(rel, end, Some(from));
        }
        self.commit();
    }

    /// Ends a relation at `blocks`.
    pub fn truncate(&mut self, rel: u32, blocks: u32) {
        const MAIN: u32 = 1;
        let tag = relation(rel);
        let main = words(&[blocks, tag.spc, tag.db, tag.rel, MAIN]);
        let end = self.push(&self.record(RmgrId::SMGR, SMGR_TRUNCATE, main));
        self.book.resize(rel, end, Some(blocks));
        self.commit();
    }

    /// Drops a relation.
    pub fn remove(&mut self, rel: u32) {
        const HAS_INFO: u8 = 0x80;
        const HAS_RELATIONS: u32 = 0x4;
        let tag = relation(rel);
        let mut main = self.time.0.to_le_bytes().to_vec();
        main.extend(words(&[HAS_RELATIONS, 1, tag.spc, tag.db, tag.rel]));
        let end = self.push(&self.record(RmgrId::XACT, HAS_INFO, main));
        self.book.resize(rel, end, None);
        self.next_xid();
    }

    /// Ends the transaction.
    pub fn commit(&mut self) -> Lsn {
        let end = self.push(&self.record(RmgrId::XACT, 0, self.time.0.to_le_bytes().to_vec()));
        self.next_xid();
        end
    }

    fn next_xid(&mut self) {
        self.xid += 1;
        if self.xid.is_multiple_of(XIDS_A_CLOG_PAGE) {
            let number = i64::from(self.xid / XIDS_A_CLOG_PAGE);
            let draft = RecordDraft::new(RmgrId::CLOG, CLOG_ZERO_PAGE, number.to_le_bytes().to_vec());
            self.push(&draft);
        }
    }
}
