//! The binary `pagectl`: looks into what Palimpsest stores, and into WAL; restores.

mod copy_out;
mod restore;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Looks into layers, indexes, buckets and WAL; restores clusters.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Restore(restore::Restore),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Restore(arguments) => restore::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
