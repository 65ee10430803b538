//! The same work for each byte at several sizes of the database, each in a process of its own: what is written for a byte of WAL, and the memory that takes.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use engine::retention::Retention;
use model::{BLOCK_SIZE, Lsn};
use rand::RngExt as _;

use super::BenchHistory;
use super::book::Book;
use super::place::memory;
use super::readers::{Depth, compare, read_page};
use super::session::{MESSAGE, Session};
use super::size::{ByteCount, mib};

const TABLE: u32 = 0;
/// Only so manieth pages are compared.
const REMEMBERED: u32 = 1009;
const SAMPLES: u64 = 400;

/// Runs each size in a child, which prints its own lines.
pub fn run(arguments: &BenchHistory) -> Result<()> {
    for size in &arguments.key_space {
        let mut child = Command::new(std::env::current_exe().context("cannot find this program")?);
        child.args(["bench", "history", "--mode", "one-scale"]);
        let updates = (size.0 as f64 * arguments.updates) as u64;
        child.args(["--key-space", &size.to_string(), "--wal", &ByteCount(updates).to_string()]);
        child.args(["--cache-memory", &arguments.cache_memory.to_string()]);
        if let Some(freeze) = arguments.freeze {
            child.args(["--freeze", &freeze.to_string()]);
        }
        if let Some(memory) = arguments.tail_memory {
            child.args(["--tail-memory", &memory.to_string()]);
        }
        child.arg("--work").arg(&arguments.work);
        let status = child.status().context("cannot run this program once more")?;
        ensure!(status.success(), "the run over {size} of pages failed");
    }
    Ok(())
}

/// One size: all pages once in random order, then as many updates as asked for, anywhere.
pub async fn run_one(arguments: &BenchHistory) -> Result<()> {
    let size = arguments.key_space.first().copied().context("--key-space is needed")?;
    let scaled = arguments.scaled(64 << 30);
    let mut session = Session::begin(arguments, &scaled).await?;
    session.author.book = Book::of_each(REMEMBERED);
    let begun = Instant::now();
    let pages = u32::try_from(size.0 / BLOCK_SIZE as u64).context("the key space is too large")?;
    let mut loaded = 0;
    while loaded < pages {
        let count = (pages - loaded).min(1024);
        session.author.load(TABLE, count);
        session.hand_over().await?;
        loaded += count;
    }
    session.rest().await?;
    let load = begun.elapsed();
    let (after_load, loaded_jobs) =
        (session.place.bucket.total(), session.place.tenants.maintenance().kinds());
    let loaded_wal = session.author.written();
    println!(
        "{size} of pages: loaded with {:.0} MiB of WAL in {:.0} s, {:.2} uploaded for each byte, {:.0} MiB named; memory at most {:.0} MiB",
        mib(loaded_wal),
        load.as_secs_f64(),
        after_load.put_bytes as f64 / loaded_wal as f64,
        mib(session.named()?),
        mib(memory()?.0)
    );
    let begun = Instant::now();
    let (mut checkpoints, mut samples, mut depth) = (0, 0, Depth::default());
    loop {
        let done = session.author.written() - loaded_wal;
        if done >= arguments.wal.0 {
            break;
        }
        for _ in 0..8 {
            let block = session.random.random_range(0..pages);
            session.author.update((TABLE, block));
        }
        session.author.commit();
        if session.author.waiting() >= MESSAGE {
            session.hand_over().await?;
        }
        if done / (4 * scaled.freeze as u64) > checkpoints {
            checkpoints += 1;
            session.author.checkpoint();
        }
        if done as f64 / arguments.wal.0 as f64 * SAMPLES as f64 >= f64::from(samples) {
            samples += 1;
            let lsn = session.timeline.last_record_lsn();
            let block = session.random.random_range(0..pages / REMEMBERED + 1) * REMEMBERED;
            read_page(&session.timeline, &session.author.book, (TABLE, block), lsn, &mut depth).await?;
            let retention = Retention::clone(&session.timeline.retention());
            session.author.book.forget(&retention);
        }
    }
    session.rest().await?;
    let took = begun.elapsed();
    let wal = session.author.written() - loaded_wal;
    let uploads = session.place.bucket.total().since(after_load);
    println!(
        "{size} of pages: T8a {:.2} uploaded for each byte of WAL under random updates; {:.0} MiB in {:.0} s; layers a read p99 {} most {}, changes p99 {} most {}; memory at most {:.0} MiB (target 512); {:.0} MiB named",
        uploads.put_bytes as f64 / wal as f64,
        mib(wal),
        took.as_secs_f64(),
        depth.layers.quantile(0.99),
        depth.layers.quantile(1.0),
        depth.changes.quantile(0.99),
        depth.changes.quantile(1.0),
        mib(memory()?.0),
        mib(session.named()?),
    );
    for (kind, counts) in session.place.tenants.maintenance().kinds() {
        let before = loaded_jobs.get(kind).copied().unwrap_or_default();
        println!(
            "    {kind:<8} {:>5} jobs wrote {:.3} for each byte of WAL; the largest of all {:.0} MiB, {:.0} of the load",
            counts.jobs - before.jobs,
            (counts.written_bytes - before.written_bytes) as f64 / wal as f64,
            mib(counts.largest_bytes),
            mib(before.largest_bytes)
        );
    }
    let last: Lsn = session.timeline.last_record_lsn();
    let compared = compare(&session.timeline, &session.author.book, last, usize::MAX, arguments.seed).await?;
    println!(
        "    {compared} pages are as they were written; memory at most {:.0} MiB after comparing, too",
        mib(memory()?.0)
    );
    session.print_requests();
    session.end().await
}
