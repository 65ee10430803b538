//! `pagectl bench`: our figures, each beside its floor measured in the same run.

mod bucket;
mod clock;
mod getpage;
mod history;
mod ingest;
mod redo;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measures, and says beside each figure what no implementation could beat.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Bucket(bucket::BenchBucket),
    Getpage(getpage::GetPage),
    History(history::BenchHistory),
    Ingest(ingest::BenchIngest),
    Redo(redo::BenchRedo),
}

/// Carries the verb out.
pub fn run(arguments: &Bench) -> Result<()> {
    match &arguments.verb {
        Verb::Bucket(arguments) => on_all_cores(bucket::run(arguments)),
        Verb::Getpage(arguments) => getpage::run(arguments),
        Verb::History(arguments) => on_all_cores(history::run(arguments)),
        Verb::Ingest(arguments) => on_all_cores(ingest::run(arguments)),
        Verb::Redo(arguments) => {
            redo::run(arguments);
            Ok(())
        }
    }
}

/// As in the server.
fn on_all_cores(verb: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(verb)
}
