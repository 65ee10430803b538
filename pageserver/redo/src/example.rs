//! The history of one heap page, made by hand: what benchmarks redo.

use codec::value::{Change, Value};
use codec::wal::build::{BlockDraft, RecordDraft};
use model::{Fork, Key, Lsn, PgMajor, RelTag, RmgrId};

/// Whose record formats the history has.
pub const PG: PgMajor = PgMajor::V16;
const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };
const BLOCK: u32 = 7;

/// The page's key.
pub fn key() -> Key {
    Key::rel_block(REL, BLOCK)
}

/// 227 changes as they are stored, each with the LSN of its record's end, oldest first: narrow rows inserted until the page is full, the first of
/// which begins the page, then one of them deleted.
pub fn page_history() -> Vec<(Lsn, Vec<u8>)> {
    const INSERT: u8 = 0x00;
    const DELETE: u8 = 0x10;
    const INIT_PAGE: u8 = 0x80;
    const ROWS: u16 = 226;
    let insert = |offset: u16| {
        let is_first = offset == 1;
        let main = [offset.to_le_bytes().as_slice(), &[0]].concat();
        // Header of one attribute, its flags, its length; a byte of padding; an integer.
        let data = [1, 0, 0, 8, 24, 0, 1, 2, 3, 4].to_vec();
        stored(offset, INSERT | if is_first { INIT_PAGE } else { 0 }, is_first, main, data)
    };
    let mut history: Vec<_> = (1..=ROWS).map(insert).collect();
    let main = [701u32.to_le_bytes().as_slice(), &5u16.to_le_bytes(), &[0, 0]].concat();
    history.push(stored(ROWS + 1, DELETE, false, main, Vec::new()));
    history
}

fn stored(number: u16, info: u8, will_init: bool, main: Vec<u8>, data: Vec<u8>) -> (Lsn, Vec<u8>) {
    let block = BlockDraft { id: 0, rel: REL, block: BLOCK, will_init, image: None, data };
    let record = RecordDraft { xid: 700, blocks: vec![block], ..RecordDraft::new(RmgrId::HEAP, info, main) }
        .encode(PG, Lsn(8));
    let change = Change::Postgres { will_init, record: &record };
    (Lsn(1000 + u64::from(number) * 80), Value::Change(change).to_bytes())
}
