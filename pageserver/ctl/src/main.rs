//! The binary `pagectl`: looks into what Palimpsest stores, and into WAL; restores; measures.

mod adopt;
mod bench;
mod buckets;
mod copy_out;
mod drawing;
mod explain;
mod index;
mod indexes;
mod key_text;
mod layer;
#[cfg(test)]
mod made;
mod page;
mod page_stream;
mod ready;
mod redo_check;
mod restore;
mod scrub;
mod timeline_draw;
mod verify;
mod wal_files;
mod waldump;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// As the pageserver's, so that what is measured here is true there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Looks into layers, indexes, buckets and WAL; restores clusters; measures.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Adopt(adopt::Adopt),
    Bench(bench::Bench),
    Explain(explain::Explain),
    Index(index::Index),
    Layer(layer::Layer),
    Page(page::Page),
    Ready(ready::Ready),
    RedoCheck(redo_check::RedoCheck),
    Restore(restore::Restore),
    Scrub(scrub::Scrub),
    Timeline(timeline_draw::Timeline),
    Verify(verify::Verify),
    Waldump(waldump::Waldump),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Adopt(arguments) => wait(adopt::run(&arguments)),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Explain(arguments) => wait(explain::run(&arguments)),
        Verb::Index(arguments) => wait(index::run(&arguments)),
        Verb::Layer(arguments) => layer::run(&arguments),
        Verb::Page(arguments) => page::run(&arguments),
        Verb::Ready(arguments) => wait(ready::run(&arguments)),
        Verb::RedoCheck(arguments) => redo_check::run(&arguments),
        Verb::Restore(arguments) => restore::run(&arguments),
        // It tells more by its status than whether it came to its end.
        Verb::Scrub(arguments) => return scrub::run(&arguments),
        Verb::Timeline(arguments) => wait(timeline_draw::run(&arguments)),
        Verb::Verify(arguments) => return verify::run(&arguments),
        Verb::Waldump(arguments) => waldump::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a verb that talks to servers or buckets.
fn wait(verb: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(verb)
}
