//! The binary `pageserver`.

use std::process::ExitCode;

use server::config::{self, ConfigError, Verb};

fn main() -> ExitCode {
    let (config, complaints) = match config::read(std::env::args(), &std::env::vars().collect()) {
        Ok(Verb::Serve(config, complaints)) => (config, complaints),
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
