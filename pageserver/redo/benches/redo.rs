//! What redo of a page costs in process: two records, and as many as a page takes, beside a copy of a page, below which no read can be.

use std::hint::black_box;

use codec::page::ZERO_PAGE;
use codec::value::{Change, Value};
use codec::wal::build::{BlockDraft, RecordDraft};
use criterion::{Criterion, criterion_group, criterion_main};
use model::{Fork, Key, Lsn, PgMajor, RelTag, RmgrId};
use redo::reconstruct;

const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };

/// A record as it is stored, with the LSN of its end.
fn stored(number: u16, info: u8, will_init: bool, main: Vec<u8>, data: Vec<u8>) -> (Lsn, Vec<u8>) {
    let block = BlockDraft { id: 0, rel: REL, block: 7, will_init, image: None, data };
    let record = RecordDraft { xid: 700, blocks: vec![block], ..RecordDraft::new(RmgrId::HEAP, info, main) }
        .encode(PgMajor::V16, Lsn(8));
    let change = Change::Postgres { will_init, record: &record };
    (Lsn(1000 + u64::from(number) * 80), Value::Change(change).to_bytes())
}

/// Narrow rows inserted until the page is full, the first of which begins it, and one of them deleted.
fn chain() -> Vec<(Lsn, Vec<u8>)> {
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
    let mut chain: Vec<_> = (1..=ROWS).map(insert).collect();
    let main = [701u32.to_le_bytes().as_slice(), &5u16.to_le_bytes(), &[0, 0]].concat();
    chain.push(stored(ROWS + 1, DELETE, false, main, Vec::new()));
    chain
}

fn redo(criterion: &mut Criterion) {
    let key = Key::rel_block(REL, 7);
    let mut group = criterion.benchmark_group("redo");
    group.bench_function("floor: copy of a page", |bencher| {
        bencher.iter(|| black_box(*black_box(&ZERO_PAGE)));
    });
    group.bench_function("floor: copy of a page to the heap", |bencher| {
        bencher.iter(|| black_box(black_box(&ZERO_PAGE).to_vec()));
    });
    let many = chain();
    let first = many[..1].iter().map(|(lsn, bytes)| (*lsn, bytes.as_slice()));
    let base = reconstruct(None, first, PgMajor::V16, key).expect("the first record needs no base");
    // As in a read: the page before is at hand. The first of the 227 begins the page anew.
    for (name, chain) in [("2 records", &many[1..3]), ("227 records", &many[..])] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let chain = chain.iter().map(|(lsn, bytes)| (*lsn, bytes.as_slice()));
                reconstruct(black_box(Some(&base)), chain, PgMajor::V16, key)
                    .expect("the records are well-formed")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, redo);
criterion_main!(benches);
