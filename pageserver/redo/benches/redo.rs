//! What redo of a page costs in process: two records, and as many as a page takes, beside a copy of a page, below which no read can be.

use std::hint::black_box;

use codec::page::ZERO_PAGE;
use criterion::{Criterion, criterion_group, criterion_main};
use redo::example::{PG, key, page_history};
use redo::reconstruct;

fn redo(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("redo");
    group.bench_function("floor: copy of a page", |bencher| {
        bencher.iter(|| black_box(*black_box(&ZERO_PAGE)));
    });
    group.bench_function("floor: copy of a page to the heap", |bencher| {
        bencher.iter(|| black_box(black_box(&ZERO_PAGE).to_vec()));
    });
    let many = page_history();
    let first = many[..1].iter().map(|(lsn, bytes)| (*lsn, bytes.as_slice()));
    let base = reconstruct(None, first, PG, key()).expect("the first record needs no base");
    // As in a read: the page before is at hand. The first of the 227 begins the page anew.
    for (name, history) in [("2 records", &many[1..3]), ("227 records", &many[..])] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let history = history.iter().map(|(lsn, bytes)| (*lsn, bytes.as_slice()));
                reconstruct(black_box(Some(&base)), history, PG, key()).expect("the records are well-formed")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, redo);
criterion_main!(benches);
