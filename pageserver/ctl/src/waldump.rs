//! `pagectl waldump`: WAL records, one a line, in the format of `pg_waldump` without its descriptions.

use std::io::{BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use codec::wal::describe::describe;
use model::{Lsn, Tli};

use crate::wal_files::{WalEnd, WalFiles};

/// Prints the records of WAL segment files.
#[derive(Debug, clap::Args)]
pub struct Waldump {
    /// A directory of segment files (`pg_wal`, an archive), or one segment file.
    path: PathBuf,
    /// Where to begin: the start of a record. The first one in the files, if not given.
    #[arg(long, short)]
    start: Option<Lsn>,
    /// Where to stop: no record that begins here or later.
    #[arg(long, short)]
    end: Option<Lsn>,
    /// The newest Postgres timeline to read.
    #[arg(long, short)]
    timeline: Option<u32>,
    /// How many records at most.
    #[arg(long, short = 'n')]
    limit: Option<u64>,
    /// Also say what is special about page images, each block on a line of its own.
    #[arg(long, short)]
    bkp_details: bool,
}

/// Carries the command out.
pub fn run(arguments: &Waldump) -> Result<()> {
    let files = WalFiles::open(&arguments.path, arguments.timeline.map(Tli))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut line = String::new();
    let mut count = 0;
    let end = files.for_each(arguments.start, |raw| {
        if arguments.end.is_some_and(|end| raw.start >= end)
            || arguments.limit.is_some_and(|limit| count >= limit)
        {
            return Ok(ControlFlow::Break(()));
        }
        count += 1;
        let record = raw.parse().with_context(|| format!("cannot read the record at {}", raw.start))?;
        line.clear();
        describe(raw.start, &record, arguments.bkp_details, &mut line);
        match out.write_all(line.as_bytes()) {
            // Whoever reads our output had enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                return Ok(ControlFlow::Break(()));
            }
            written => written?,
        }
        Ok(ControlFlow::Continue(()))
    })?;
    match out.flush() {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    match end {
        WalEnd::Enough => {}
        WalEnd::Files(at) => eprintln!("the files end at {at}"),
        WalEnd::Invalid(error) => eprintln!("WAL ends: {error}"),
    }
    Ok(())
}
