//! An old branch on a parent with many updates: what the parent keeps before and after one collection, beside what can be read. And what a branch costs to make, and
//! to find a time in history.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use engine::collect::KeepHistory;
use engine::ports::{Body, Bucket as _, PutIf};
use engine::tenant::{BranchPoint, Maintenance};
use model::{BLOCK_SIZE, Lsn, PgTimestamp, TimelineId};
use rand::RngExt as _;

use super::BenchHistory;
use super::place::{MAIN, TENANT};
use super::readers::compare;
use super::session::{MESSAGE, MONTH, Session};
use super::size::mib;
use crate::bench::clock::{Samples, line};

const TABLE: u32 = 0;
const MEASURED: u32 = 100;

/// Carries the mode out.
pub async fn run(arguments: &BenchHistory) -> Result<()> {
    let mut scaled = arguments.scaled(arguments.wal.0);
    // Nothing compacts but what is called below.
    scaled.policy.max_l0 = None;
    let mut session = Session::begin_alone(arguments, &scaled).await?;
    let database = arguments.database.map_or(arguments.wal.0 / 16, |size| size.0);
    let pages = (database / BLOCK_SIZE as u64).max(64) as u32;
    session.author.load(TABLE, pages);
    session.hand_over().await?;
    session.timeline.wait_for(session.author.end(), Duration::from_mins(10)).await?;
    let old = TimelineId([3; 16]);
    let at = session.timeline.last_record_lsn();
    session.place.tenants.branch(TENANT, old, MAIN, BranchPoint::Lsn(at)).await?;

    // A year during which nothing is collected, as where it was not asked for.
    let everything = KeepHistory { interval: MONTH * 24, bytes: u64::MAX };
    let hoarding = Maintenance { keep: everything, ..scaled.maintenance.clone() };
    let tenant = session.place.tenants.tenant(TENANT)?;
    let now = SystemTime::now();
    let (wal, mut looked_after) = (arguments.wal.0, 0);
    let begun = session.author.time;
    while session.author.written() < wal {
        let share = session.author.written() as f64 / wal as f64;
        session.author.time = PgTimestamp(begun.0 + (MONTH.as_micros() as f64 * share) as i64);
        let block = session.random.random_range(0..pages);
        session.author.update((TABLE, block));
        session.author.commit();
        if session.author.waiting() >= MESSAGE {
            session.hand_over().await?;
        }
        if session.author.written() / (16 * scaled.freeze as u64) > looked_after {
            looked_after += 1;
            session.author.checkpoint();
        }
        if session.timeline.l0_count() >= hoarding.compaction.l0_merge {
            session.place.tenants.maintain_now(&tenant, &session.timeline, &hoarding, now).await?;
        }
    }
    session.hand_over().await?;
    session.timeline.wait_for(session.author.end(), Duration::from_mins(10)).await?;
    session.timeline.checkpoint().await?;
    session.place.tenants.maintain_now(&tenant, &session.timeline, &hoarding, now).await?;

    let before = session.timeline.info().remote_physical_size;
    let short = Maintenance {
        keep: KeepHistory { interval: Duration::ZERO, bytes: scaled.freeze as u64 / 2 },
        ..scaled.maintenance.clone()
    };
    let begun = Instant::now();
    session.place.tenants.maintain_now(&tenant, &session.timeline, &short, now).await?;
    let took = begun.elapsed();
    let after = session.timeline.info().remote_physical_size;
    let page = session.page_bytes().await?;
    // What the branch reads, what the cutoff reads where that is something else, and what came since.
    let cutoff = session.timeline.retention().cutoff;
    let head = session.author.book.differing(at, cutoff) as f64 * page;
    let readable = f64::from(pages) * page + head + session.retained() as f64;
    println!(
        "an old branch on a parent of {:.0} MiB of pages and {:.0} MiB of WAL: the parent kept {:.1} MiB, after one collection ({:.1} s) {:.1} MiB",
        mib(database),
        mib(wal),
        mib(before),
        took.as_secs_f64(),
        mib(after)
    );
    line("kept, beside what branch and head read", mib(after), readable / 1_048_576.0, "MiB");
    let branch = session.place.tenants.timeline(TENANT, old)?;
    let compared = compare(&branch, &session.author.book, at, arguments.pages, arguments.seed)
        .await
        .context("the old branch does not read as it must")?;
    let compared =
        compared + compare(&session.timeline, &session.author.book, cutoff, arguments.pages, 1).await?;
    println!("    {compared} pages of the branch and at the cutoff are as they were written");
    branch_and_find(&mut session, pages).await?;
    session.end().await
}

/// T6a, T6c.
async fn branch_and_find(session: &mut Session, pages: u32) -> Result<()> {
    let (mut branching, mut putting, mut finding) =
        (Samples::default(), Samples::default(), Samples::default());
    let cutoff = session.timeline.retention().cutoff;
    for number in 0..MEASURED {
        let block = session.random.random_range(0..pages);
        session.author.update((TABLE, block));
        let end: Lsn = session.author.commit();
        session.hand_over().await?;
        session.timeline.wait_for(end, Duration::from_mins(1)).await?;
        let path = format!("palimpsest/probes/{number:032x}");
        let body = Body::Bytes(Bytes::from(vec![1; 8 << 10]));
        let begun = Instant::now();
        session.place.bucket.put(&path, body, PutIf::Absent).await?;
        putting.add(begun.elapsed());
        // Its WAL is in the bucket before the branch is.
        session.timeline.seal_now().await?;
        let id = TimelineId((0xB000_0000_0000_0000_0000_0000_0000_0000 + u128::from(number)).to_be_bytes());
        let begun = Instant::now();
        session.place.tenants.branch(TENANT, id, MAIN, BranchPoint::Tip).await?;
        branching.add(begun.elapsed());
        let span = session.author.time.0 - MONTH.as_micros() as i64 / 100;
        let time = PgTimestamp(session.random.random_range(span..session.author.time.0));
        let begun = Instant::now();
        session.timeline.lsn_at(time).await?;
        finding.add(begun.elapsed());
    }
    let millis = |samples: &mut Samples, share| samples.quantile(share) / 1e6;
    line(
        "T6a branch at head, stored and claimed, p50",
        millis(&mut branching, 0.5),
        millis(&mut putting, 0.5),
        "ms",
    );
    line("T6a branch at head, p99", millis(&mut branching, 0.99), millis(&mut putting, 0.99), "ms");
    println!(
        "T6c time to LSN: p50 {:.2} ms, p99 {:.2} ms (target 5); cutoff {cutoff}",
        millis(&mut finding, 0.5),
        millis(&mut finding, 0.99)
    );
    Ok(())
}
