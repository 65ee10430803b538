//! `pagectl redo-check`: redoes WAL that carries the pages that must come out (`wal_consistency_checking`) and compares.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use codec::page::{Page, ZERO_PAGE};
use codec::wal::kind_name::kind_name;
use model::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use model::{BLOCK_SIZE, Lsn, PgMajor, RELATION_SEGMENT_BLOCKS, RelTag, RmgrId, Tli};
use redo::check::{Checker, Finding, RecordKind, Tally, Verdict, What};

use crate::wal_files::{WalEnd, WalFiles};

/// Redoes WAL written under `wal_consistency_checking` and compares every page with the one that Postgres made.
///
/// Fails when a page differs under Postgres' own masks (but for one flag of `GiST` leaves that redo in Postgres sets and the primary
/// does not), or when a record cannot be redone.
#[derive(Debug, clap::Args)]
pub struct RedoCheck {
    /// A directory of WAL segment files (`pg_wal`, an archive), or one segment file.
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
    /// A data directory as it was at the start, for pages that existed before. Without it their first image is believed.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Writes both pages of every difference here, as `<LSN>-<relation>-<block>.ours` and `.theirs`.
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
    /// How many findings to describe.
    #[arg(long, default_value_t = 40)]
    show: usize,
    /// Also describe pages that are equal only under masks, and visibility maps, which Postgres does not compare.
    #[arg(long)]
    all: bool,
}

/// Carries the command out.
pub fn run(arguments: &RedoCheck) -> Result<()> {
    let files = WalFiles::open(&arguments.path, arguments.timeline.map(Tli))?;
    if let Some(dump) = &arguments.dump {
        std::fs::create_dir_all(dump).with_context(|| format!("cannot make {}", dump.display()))?;
    }
    let mut checker = Checker::new(|rel, block| read_page(arguments.data.as_deref()?, rel, block));
    let mut shown = 0;
    let mut bytes = 0u64;
    let since = Instant::now();
    let end = files.for_each(arguments.start, |raw| {
        if arguments.end.is_some_and(|end| raw.start >= end) {
            return Ok(ControlFlow::Break(()));
        }
        bytes += raw.bytes.len() as u64;
        let record = raw.parse().with_context(|| format!("cannot read the record at {}", raw.start))?;
        let mut dumped = Ok(());
        checker.check(&record, raw.bytes, raw.end, &mut |finding| {
            if !arguments.all && !is_failure(&finding) {
                return;
            }
            shown += 1;
            if shown <= arguments.show {
                describe(files.pg, &finding);
            }
            if let (Some(dir), Ok(())) = (&arguments.dump, &dumped) {
                dumped = dump(dir, &finding);
            }
        });
        dumped?;
        Ok(ControlFlow::Continue(()))
    })?;
    let total = print_tallies(files.pg, checker.tallies().iter());
    let end = match end {
        WalEnd::Enough => "where told".to_owned(),
        WalEnd::Files(at) => format!("at {at}"),
        WalEnd::Invalid(error) => format!("where WAL does: {error}"),
    };
    println!(
        "Postgres {}: {} records, {:.1} MB, in {:.1} s; ended {end}",
        files.pg,
        total.records,
        bytes as f64 / 1e6,
        since.elapsed().as_secs_f64()
    );
    if total.different != 0 || total.errors != 0 {
        bail!("{} pages differ, {} could not be redone", total.different, total.errors);
    }
    Ok(())
}

/// Whether the check fails because of it.
fn is_failure(finding: &Finding) -> bool {
    matches!(finding.what, What::Error(_) | What::Difference { verdict: Verdict::Different, .. })
}

fn name(pg: PgMajor, kind: RecordKind) -> String {
    let rmgr = RmgrId(kind.rmgr);
    match kind_name(pg, rmgr, kind.operation) {
        Some(name) => format!("{rmgr}/{name}"),
        None => format!("{rmgr}/{:02X}", kind.operation),
    }
}

fn print_tallies<'t>(pg: PgMajor, tallies: impl Iterator<Item = (&'t RecordKind, &'t Tally)>) -> Tally {
    println!(
        "{:<28}{:>9}{:>9}{:>9}{:>8}{:>9}{:>10}{:>9}{:>9}{:>9}{:>6}{:>7}{:>7}{:>6}{:>7}",
        "record",
        "records",
        "blocks",
        "restored",
        "seeded",
        "unchanged",
        "compared",
        "equal",
        "strict",
        "masked",
        "gist",
        "map<",
        "map>",
        "diff",
        "errors"
    );
    let mut total = Tally::default();
    let line = |name: &str, tally: &Tally| {
        let Tally { records, blocks, restored, seeded, unchanged, compared, equal, equal_strictly, .. } =
            tally;
        let Tally { equal_masked, documented, map_behind, map_ahead, different, errors, .. } = tally;
        println!(
            "{name:<28}{records:>9}{blocks:>9}{restored:>9}{seeded:>8}{unchanged:>9}{compared:>10}{equal:>9}\
             {equal_strictly:>9}{equal_masked:>9}{documented:>6}{map_behind:>7}{map_ahead:>7}{different:>6}{errors:>7}"
        );
    };
    for (kind, tally) in tallies {
        total.add(tally);
        if tally.blocks != 0 {
            line(&name(pg, *kind), tally);
        }
    }
    line("all", &total);
    total
}

fn describe(pg: PgMajor, finding: &Finding) {
    let Finding { lsn, kind, id, rel, block, what } = finding;
    print!("{lsn} {} block {id} of the record, {rel} block {block}: ", name(pg, *kind));
    match what {
        What::Error(error) => println!("{error}"),
        What::Difference { verdict, ours, theirs } => {
            let different: Vec<usize> = (10..BLOCK_SIZE).filter(|at| ours[*at] != theirs[*at]).collect();
            print!("{verdict:?}, {} bytes before masking:", different.len());
            for at in different.iter().take(12) {
                print!(" {at}: {:02x} for {:02x}", ours[*at], theirs[*at]);
            }
            println!();
        }
    }
}

fn dump(dir: &Path, finding: &Finding) -> Result<()> {
    let What::Difference { ours, theirs, .. } = &finding.what else { return Ok(()) };
    let Finding { lsn, rel, block, .. } = finding;
    let rel = rel.to_string().replace('/', "_");
    for (page, whose) in [(ours, "ours"), (theirs, "theirs")] {
        let path = dir.join(format!("{:016X}-{rel}-{block}.{whose}", lsn.0));
        std::fs::write(&path, &page[..]).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A page of a data directory, if it is there.
fn read_page(data: &Path, rel: RelTag, block: u32) -> Option<Box<Page>> {
    let dir = match rel.spc {
        GLOBAL_TABLESPACE => data.join("global"),
        DEFAULT_TABLESPACE => data.join("base").join(rel.db.to_string()),
        spc => {
            let mut versions = std::fs::read_dir(data.join("pg_tblspc").join(spc.to_string())).ok()?;
            let version = versions.find_map(Result::ok)?;
            version.path().join(rel.db.to_string())
        }
    };
    let segment = block / RELATION_SEGMENT_BLOCKS;
    let suffix = if segment == 0 { String::new() } else { format!(".{segment}") };
    let mut file = File::open(dir.join(format!("{}{}{suffix}", rel.rel, rel.fork.suffix()))).ok()?;
    let at = u64::from(block % RELATION_SEGMENT_BLOCKS) * BLOCK_SIZE as u64;
    file.seek(SeekFrom::Start(at)).ok()?;
    let mut page = Box::new(ZERO_PAGE);
    file.read_exact(&mut page[..]).ok()?;
    Some(page)
}
