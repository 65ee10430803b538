//! A Postgres that writes: WAL as the engine gets it, and beside it what the model knows of each record.
//!
//! Each record is one whose result is known without redo: images of pages, bytes put at places of a page, sizes, bits of the commit log. Only
//! tuples that are inserted into heap pages are placed by `redo`, which is held against Postgres elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use codec::checkpoint::CheckPoint;
use codec::page::{self, Page, ZERO_PAGE};
use codec::wal::build::{BlockDraft, RecordDraft, WalBuilder};
use codec::wal::record::Record;
use engine::synthetic::SyntheticCluster;
use model::{
    BLOCK_SIZE, Fork, Key, Lsn, PgMajor, PgTimestamp, RelLocator, RelTag, RmgrId, SlruKind, Tli,
    WalSegmentSize,
};

use crate::dice::Dice;
use crate::history::{History, Version};

/// All clusters of a run are of one family.
pub const SYSTEM: u64 = 7_300_000_000_000_000_042;
/// Small segments: their ends are met.
pub const SEGMENT: u64 = 1 << 20;
/// The one database.
pub const DB: u32 = 5;
/// Its tablespace.
pub const SPC: u32 = model::rel::DEFAULT_TABLESPACE;

const CLOG_PER_PAGE: u32 = codec::slru::CLOG_PER_PAGE;
/// Blocks that a relation has at most: reading all of them is what a run takes its time for.
const MOST_BLOCKS: u32 = 24;
/// Relations that exist at once, about.
const MOST_RELATIONS: usize = 8;
/// Bytes of a page before its data: what lies between is the hole.
const DATA_AT: u16 = 4096;

/// What a record makes of a key.
enum Made {
    Size(Option<u32>),
    /// Stamped with the record's end.
    Page(Box<Page>),
    /// Without an LSN of its own.
    Plain(Box<Page>),
}

/// One writer, on one Postgres timeline.
#[derive(Clone)]
pub struct Cluster {
    pg: PgMajor,
    /// Its Postgres timeline.
    pub tli: Tli,
    /// Where that began.
    pub tli_from: Lsn,
    wal: WalBuilder,
    /// What its WAL must be read as.
    pub history: History,
    rels: BTreeMap<RelTag, u32>,
    next_rel: u32,
    /// The last that was begun.
    last_xid: u32,
    newest_commit: PgTimestamp,
}

/// What a base consists of.
pub struct Base {
    /// Keys with their values.
    pub values: BTreeMap<Key, Vec<u8>>,
    /// As of.
    pub lsn: Lsn,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A page with some bytes of its own.
fn fresh_page(dice: &mut Dice) -> Box<Page> {
    let mut page = Box::new(ZERO_PAGE);
    page[12..14].copy_from_slice(&24u16.to_le_bytes());
    page[14..16].copy_from_slice(&DATA_AT.to_le_bytes());
    page[16..18].copy_from_slice(&(BLOCK_SIZE as u16).to_le_bytes());
    page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
    let count = dice.from(1..40) as usize;
    for n in 0..count {
        let at = usize::from(DATA_AT) + 8 * n;
        page[at..at + 8].copy_from_slice(&dice.draw().to_le_bytes());
    }
    page
}

impl Cluster {
    /// A new cluster with a base backup of it.
    pub fn new(pg: PgMajor, dice: &mut Dice, now: PgTimestamp) -> (Cluster, Base) {
        let base = Lsn(0x0200_0000 + dice.below(SEGMENT / 8) * 8).normalized(SEGMENT);
        let wal_segment_size = WalSegmentSize::new(SEGMENT).expect("1 MiB is one");
        let synthetic = SyntheticCluster { pg, system_identifier: SYSTEM, wal_segment_size, base };
        // Some begin just before their transactions need another page of the commit log.
        let next_xid = *dice.pick(&[1000, CLOG_PER_PAGE - 10, 100_000]);
        let mut values = BTreeMap::new();
        let mut history = History::new(base);
        let mut rels = BTreeMap::new();
        for n in 0..dice.from(1..4) as u32 {
            let rel = RelTag { spc: SPC, db: DB, rel: 16_384 + n, fork: Fork::Main };
            let blocks = dice.below(u64::from(MOST_BLOCKS) / 2) as u32;
            for block in 0..blocks {
                let mut page = fresh_page(dice);
                page::set_lsn(&mut page, Lsn(base.0 - 8));
                values.insert(Key::rel_block(rel, block), page.to_vec());
                history.put(Key::rel_block(rel, block), base, Version::Page(Arc::from(page)));
            }
            values.insert(Key::rel_size(rel), blocks.to_le_bytes().to_vec());
            values.insert(Key::rel_directory_entry(rel), b"r".to_vec());
            history.put(Key::rel_size(rel), base, Version::Size(Some(blocks)));
            rels.insert(rel, blocks);
        }
        let databases = BTreeMap::from([((SPC, DB), false)]);
        values.insert(Key::DB_DIRECTORY, codec::directory::DbDirectory { databases }.encode());
        let at = codec::slru::place(codec::slru::clog_page(next_xid));
        let segments = std::iter::once(at.segment).collect();
        let directory = codec::directory::SlruSegmentDirectory { segments }.encode();
        values.insert(Key::slru_directory(SlruKind::Clog), directory);
        values.insert(Key::slru_size(SlruKind::Clog, at.segment), (at.page + 1).to_le_bytes().to_vec());
        history.put(Key::slru_size(SlruKind::Clog, at.segment), base, Version::Size(Some(at.page + 1)));
        for page in 0..=at.page {
            values.insert(Key::slru_page(SlruKind::Clog, at.segment, page), ZERO_PAGE.to_vec());
        }
        values.extend(synthetic.counters());
        let checkpoint = CheckPoint { next_xid: u64::from(next_xid), ..synthetic.checkpoint() };
        values.insert(Key::CHECKPOINT, checkpoint.encode(pg).to_vec());
        let cluster = Cluster {
            pg,
            tli: Tli(1),
            tli_from: base,
            wal: synthetic.wal(),
            history,
            rels,
            next_rel: 16_400,
            last_xid: next_xid - 1,
            newest_commit: now,
        };
        (cluster, Base { values, lsn: base })
    }

    /// A standby of `self` that was promoted at `lsn`, where a record ends.
    #[must_use]
    pub fn promoted_at(&self, lsn: Lsn, tli: Tli) -> Cluster {
        let history = self.history.up_to(lsn);
        let segment = WalSegmentSize::new(SEGMENT).expect("1 MiB is one");
        let prev = history.record_before(lsn).unwrap_or(Lsn(0));
        let wal = WalBuilder::new(self.pg, segment, SYSTEM, tli, lsn, prev);
        let rels = history.relations(lsn);
        let newest_commit = history.commits.last().map_or(PgTimestamp(i64::MIN), |(_, time)| *time);
        // Numbers are never used twice; that those between are left out is as after a crash.
        let Cluster { pg, next_rel, last_xid, .. } = *self;
        Cluster { pg, tli, tli_from: lsn, wal, history, rels, next_rel, last_xid, newest_commit }
    }

    /// Just past its last byte of WAL.
    pub fn end(&self) -> Lsn {
        self.wal.end()
    }

    /// WAL from `from` on, at most `most` bytes.
    pub fn wal(&self, from: Lsn, most: usize) -> &[u8] {
        let bytes = &self.wal.bytes()[from.since(self.wal.base()) as usize..];
        &bytes[..bytes.len().min(most)]
    }

    fn log(&mut self, draft: &RecordDraft, made: Vec<(Key, Made)>) -> Lsn {
        let (start, end) = self.wal.push(draft);
        self.history.records.push((start, end));
        for (key, made) in made {
            let version = match made {
                Made::Size(size) => Version::Size(size),
                Made::Page(mut page) => {
                    page::set_lsn(&mut page, end);
                    Version::Page(Arc::from(page))
                }
                Made::Plain(page) => Version::Page(Arc::from(page)),
            };
            self.history.put(key, end, version);
        }
        end
    }

    fn draft(&self, rmgr: RmgrId, info: u8, main: Vec<u8>) -> RecordDraft {
        RecordDraft { xid: self.last_xid, ..RecordDraft::new(rmgr, info, main) }
    }

    fn page_now(&self, rel: RelTag, block: u32) -> Box<Page> {
        match self.history.at(Key::rel_block(rel, block), Lsn::MAX) {
            Some(Version::Page(page)) => Box::new(**page),
            _ => Box::new(ZERO_PAGE),
        }
    }

    fn any_rel(&self, dice: &mut Dice) -> Option<(RelTag, u32)> {
        let at = dice.below(self.rels.len() as u64) as usize;
        self.rels.iter().nth(at).map(|(rel, blocks)| (*rel, *blocks))
    }

    /// Writes `count` records, what kind each is is chance.
    pub fn write(&mut self, count: u64, dice: &mut Dice, now: PgTimestamp) {
        for _ in 0..count {
            match dice.below(100) {
                0..=5 => self.create(),
                6..=35 => self.images(dice),
                36..=60 => self.change(dice),
                61..=75 => self.insert(dice),
                76..=79 => self.truncate(dice),
                80..=94 => self.end_transaction(dice, now),
                95..=96 => self.next_oid(dice),
                97 => self.log_nothing(dice),
                98 => self.skip_transactions(dice),
                _ => self.switch_segment(dice),
            }
        }
        // What nobody sees is not asked for either: what is left open ends now.
        if dice.permille(700) {
            self.end_transaction(dice, now);
        }
    }

    fn create(&mut self) {
        if self.rels.len() >= MOST_RELATIONS {
            return;
        }
        self.next_rel += 1;
        let rel = RelTag { spc: SPC, db: DB, rel: self.next_rel, fork: Fork::Main };
        let main = words(&[rel.spc, rel.db, rel.rel, rel.fork as u32]);
        let draft = self.draft(RmgrId::SMGR, 0x10, main);
        self.log(&draft, vec![(Key::rel_size(rel), Made::Size(Some(0)))]);
        self.rels.insert(rel, 0);
    }

    /// Images of some blocks of a relation, some of them new, perhaps with a gap.
    fn images(&mut self, dice: &mut Dice) {
        let Some((rel, size)) = self.any_rel(dice) else { return };
        let first = if dice.permille(500) || size == 0 {
            size + if dice.permille(100) { dice.below(4) as u32 } else { 0 }
        } else {
            dice.below(u64::from(size)) as u32
        };
        let first = first.min(MOST_BLOCKS - 1);
        let last = (first + dice.skewed(3) as u32).min(MOST_BLOCKS - 1);
        let mut draft = self.draft(RmgrId::XLOG, 0xB0, Vec::new());
        let mut made = Vec::new();
        for gap in size..first {
            made.push((Key::rel_block(rel, gap), Made::Plain(Box::new(ZERO_PAGE))));
        }
        for (id, block) in (first..=last).enumerate() {
            let page = fresh_page(dice);
            draft.blocks.push(BlockDraft {
                id: id as u8,
                rel,
                block,
                will_init: false,
                image: Some((page.clone(), true)),
                data: Vec::new(),
            });
            made.push((Key::rel_block(rel, block), Made::Page(page)));
        }
        if last >= size {
            made.push((Key::rel_size(rel), Made::Size(Some(last + 1))));
            self.rels.insert(rel, last + 1);
        }
        self.log(&draft, made);
    }

    /// Bytes at places of a page; the first pages of a relation are hot.
    fn change(&mut self, dice: &mut Dice) {
        let Some((rel, size)) = self.any_rel(dice) else { return };
        let block = dice.skewed(u64::from(size.saturating_sub(1))) as u32;
        let mut page = self.page_now(rel, block);
        if block >= size || page[14..16] != DATA_AT.to_le_bytes() {
            return;
        }
        let mut data = Vec::new();
        for _ in 0..=dice.skewed(3) {
            let at = usize::from(DATA_AT) + dice.below(500) as usize * 8;
            let bytes = dice.draw().to_le_bytes();
            let bytes = &bytes[..dice.from(1..9) as usize];
            page[at..at + bytes.len()].copy_from_slice(bytes);
            data.extend_from_slice(&(at as u16).to_le_bytes());
            data.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
            data.extend_from_slice(bytes);
        }
        let mut draft = self.draft(RmgrId::GENERIC, 0, Vec::new());
        draft.blocks.push(BlockDraft { id: 0, rel, block, will_init: false, image: None, data });
        self.log(&draft, vec![(Key::rel_block(rel, block), Made::Page(page))]);
    }

    /// A tuple on a heap page, which is a new one when the last is full or of another kind.
    fn insert(&mut self, dice: &mut Dice) {
        let Some((rel, size)) = self.any_rel(dice) else { return };
        let is_heap = |page: &Page| {
            page[16..18] == (BLOCK_SIZE as u16).to_le_bytes() && page[14..16] != DATA_AT.to_le_bytes()
        };
        let heap =
            (0..size).rev().map(|block| (block, self.page_now(rel, block))).find(|(_, page)| is_heap(page));
        let room = |page: &Page| {
            let word = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
            word(14).saturating_sub(word(12))
        };
        let (block, mut page, is_new) = match heap {
            Some((block, page)) if room(&page) > 600 => (block, page, false),
            _ if size < MOST_BLOCKS => (size, Box::new(ZERO_PAGE), true),
            _ => return,
        };
        let items = (u16::from_le_bytes([page[12], page[13]]).max(24) - 24) / 4;
        let main = [&(items + 1).to_le_bytes()[..], &[0]].concat();
        // infomask2 with the number of columns, infomask, header length; then padding and the columns.
        let mut data = [&1u16.to_le_bytes()[..], &0x0802u16.to_le_bytes(), &[24, 0]].concat();
        for _ in 0..dice.from(1..50) {
            data.extend_from_slice(&dice.draw().to_le_bytes());
        }
        let mut draft = self.draft(RmgrId::HEAP, if is_new { 0x80 } else { 0 }, main);
        draft.blocks.push(BlockDraft { id: 0, rel, block, will_init: is_new, image: None, data });
        let bytes = draft.encode(self.pg, self.wal.last_record());
        let record = Record::parse(self.pg, &bytes).expect("it was just made");
        // Its LSN is not known yet; it is stamped when it is.
        redo::apply(&record, &record.blocks[0], Lsn::MAX, &mut page).expect("there is room for the tuple");
        let mut made = vec![(Key::rel_block(rel, block), Made::Page(page))];
        if is_new {
            made.push((Key::rel_size(rel), Made::Size(Some(size + 1))));
            self.rels.insert(rel, size + 1);
        }
        self.log(&draft, made);
    }

    fn truncate(&mut self, dice: &mut Dice) {
        let Some((rel, size)) = self.any_rel(dice) else { return };
        let blocks = dice.below(u64::from(size) + 1) as u32;
        let draft = self.draft(RmgrId::SMGR, 0x20, words(&[blocks, rel.spc, rel.db, rel.rel, 7]));
        let made =
            if blocks < size { vec![(Key::rel_size(rel), Made::Size(Some(blocks)))] } else { Vec::new() };
        self.log(&draft, made);
        self.rels.insert(rel, blocks);
    }

    /// A commit or an abort, perhaps with a relation that is dropped.
    fn end_transaction(&mut self, dice: &mut Dice, now: PgTimestamp) {
        let is_commit = dice.permille(850);
        let now = now.max(PgTimestamp(self.newest_commit.0 + dice.below(1000) as i64));
        let dropped = (self.rels.len() > 1 && dice.permille(120)).then(|| self.any_rel(dice)).flatten();
        let mut main = now.0.to_le_bytes().to_vec();
        let mut info = if is_commit { 0x00 } else { 0x20 };
        let mut made = Vec::new();
        if let Some((rel, _)) = dropped {
            info |= 0x80;
            main.extend(words(&[0x4, 1, rel.spc, rel.db, rel.rel]));
            made.push((Key::rel_size(rel), Made::Size(None)));
            self.rels.remove(&rel);
        }
        let xid = self.begin_transaction();
        let draft = self.draft(RmgrId::XACT, info, main);
        let at = codec::slru::place(codec::slru::clog_page(xid));
        let key = Key::slru_page(SlruKind::Clog, at.segment, at.page);
        let mut page = match self.history.at(key, Lsn::MAX) {
            Some(Version::Page(page)) => Box::new(**page),
            _ => Box::new(ZERO_PAGE),
        };
        let place = xid % CLOG_PER_PAGE;
        let status = if is_commit { 0b01 } else { 0b10 };
        page[place as usize / 4] |= status << (2 * (place % 4));
        made.push((key, Made::Plain(page)));
        let end = self.log(&draft, made);
        if is_commit {
            self.history.commits.push((end, now));
            self.newest_commit = now;
        }
    }

    /// The next transaction, whose page of the commit log has begun.
    fn begin_transaction(&mut self) -> u32 {
        self.last_xid += 1;
        let at = codec::slru::place(codec::slru::clog_page(self.last_xid));
        let size = self.history.size(Key::slru_size(SlruKind::Clog, at.segment), Lsn::MAX);
        if size.is_none_or(|size| size <= at.page) {
            self.zero_status_page();
        }
        self.last_xid
    }

    /// Many transactions that nobody saw: the commit log's next page begins.
    fn skip_transactions(&mut self, dice: &mut Dice) {
        if dice.permille(300) {
            self.last_xid = (self.last_xid / CLOG_PER_PAGE + 1) * CLOG_PER_PAGE - 1;
        }
    }

    fn zero_status_page(&mut self) {
        let page = codec::slru::clog_page(self.last_xid);
        let main = if self.pg >= PgMajor::V17 {
            i64::from(page).to_le_bytes().to_vec()
        } else {
            page.to_le_bytes().to_vec()
        };
        let draft = RecordDraft::new(RmgrId::CLOG, 0, main);
        let at = codec::slru::place(page);
        let made = vec![
            (Key::slru_page(SlruKind::Clog, at.segment, at.page), Made::Plain(Box::new(ZERO_PAGE))),
            (Key::slru_size(SlruKind::Clog, at.segment), Made::Size(Some(at.page + 1))),
        ];
        self.log(&draft, made);
    }

    fn next_oid(&mut self, dice: &mut Dice) {
        let draft = RecordDraft::new(RmgrId::XLOG, 0x30, words(&[20_000 + dice.below(1 << 20) as u32]));
        self.log(&draft, Vec::new());
    }

    /// A record that changes nothing, of any size.
    fn log_nothing(&mut self, dice: &mut Dice) {
        let size = dice.skewed(40_000) as usize;
        let main = (0..size).map(|_| dice.draw() as u8).collect();
        let draft = RecordDraft::new(RmgrId::XLOG, 0x20, main);
        self.log(&draft, Vec::new());
    }

    fn switch_segment(&mut self, dice: &mut Dice) {
        if dice.permille(100) {
            self.log(&RecordDraft::new(RmgrId::XLOG, 0x40, Vec::new()), Vec::new());
        }
    }
}

/// A relation of the database that is never there.
pub fn no_such_relation() -> RelTag {
    RelLocator { spc: SPC, db: DB, rel: 9 }.fork(Fork::Main)
}
