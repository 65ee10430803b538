//! The binary `pageserver`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use server::config::{self, ConfigError, Verb};

/// Buffers of many sizes come and go on many threads. The C library's allocator keeps half as much again as they need, and limits are for what is resident.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (config, complaints) = match config::read(std::env::args(), &std::env::vars().collect()) {
        Ok(Verb::Serve(config, complaints)) => (config, complaints),
        Ok(Verb::Drain(workdir, wait)) => return drained(&workdir, wait),
        Ok(Verb::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(error) => {
            eprintln!("pageserver: {:#}", anyhow::Error::from(error));
            return ExitCode::from(2);
        }
    };
    match server::serve::run(&config, &complaints) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Also to the log, which may go elsewhere than people look.
            tracing::error!("cannot go on: {error:#}");
            eprintln!("pageserver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn drained(workdir: &Path, wait: Option<Duration>) -> ExitCode {
    match server::drain::drain(workdir, wait) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("pageserver: tenants are still attached: nobody has moved them in time");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("pageserver: cannot write to {}: {error}", workdir.display());
            ExitCode::FAILURE
        }
    }
}
