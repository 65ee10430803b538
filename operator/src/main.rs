//! The binary `operator`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use operator::{crds, run};

/// The Kubernetes operator of Palimpsest.
#[derive(Parser)]
#[command(name = "operator", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Reconcile pools, tenants and timelines until told to end.
    Run(#[command(flatten)] Box<run::Settings>),
    /// Print the definitions of the custom resources as YAML.
    Crd,
}

fn main() -> ExitCode {
    match Arguments::parse().verb {
        Verb::Run(settings) => match run::run(&settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("cannot go on: {error:#}");
                eprintln!("operator: {error:#}");
                ExitCode::FAILURE
            }
        },
        Verb::Crd => print_crds(),
    }
}

fn print_crds() -> ExitCode {
    for crd in crds::all() {
        match crds::yaml(&crd) {
            Ok(yaml) => print!("---\n{yaml}"),
            Err(error) => {
                eprintln!("operator: cannot write the definitions: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
