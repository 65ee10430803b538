//! `pagectl bench redo`: a page's history redone in process.

use clap::Args;
use codec::page::ZERO_PAGE;
use redo::example::{PG, key, page_history};
use redo::reconstruct;

use super::clock::{line, median_nanos};

/// Redoes 2 and 227 records on a page, beside a copy of a page, which every read makes at least once.
#[derive(Debug, Args)]
pub struct BenchRedo {}

/// Carries the verb out.
pub fn run(_: &BenchRedo) {
    let history = page_history();
    let as_read = |some: &[(model::Lsn, Vec<u8>)], base: Option<&[u8]>| {
        let oldest_first = some.iter().map(|(lsn, value)| (*lsn, value.as_slice()));
        reconstruct(base, oldest_first, PG, key()).expect("the records are well-formed")
    };
    let base = as_read(&history[..1], None);
    let mut page = ZERO_PAGE.to_vec();
    let floor =
        median_nanos(|| std::hint::black_box(&mut page).copy_from_slice(std::hint::black_box(&ZERO_PAGE)));
    let two = median_nanos(|| as_read(&history[1..3], Some(&base)));
    let many = median_nanos(|| as_read(&history, Some(&base)));
    line("T2a redo of 2 records on a page", two / 1e3, floor / 1e3, "us");
    line("T2b redo of 227 records", many / 1e3, floor / 1e3, "us");
    println!("    that is {:.0} ns a record", many / history.len() as f64);
}
