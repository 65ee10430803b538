//! A timeline much larger than its cache: read everywhere without an error, and how many GETs wait for each other when nothing is at hand.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use engine::chunk_cache::CacheLimits;
use engine::ports::Bucket as _;
use model::BLOCK_SIZE;
use rand::RngExt as _;

use super::BenchHistory;
use super::book::Book;
use super::pages::{page_of, relation};
use super::place::{Limits, MAIN, TENANT};
use super::session::{MESSAGE, Session};
use super::size::mib;
use crate::bench::clock::{Samples, line};

const TABLE: u32 = 0;
const REMEMBERED: u32 = 97;
/// Servers that begin with nothing at hand, and pages that each is asked for.
const COLD_STARTS: u32 = 20;
const PAGES_EACH: u32 = 20;
const BATCH: u32 = 32;
/// How long a GET takes longer when it is counted which wait for each other.
const DELAY: Duration = Duration::from_millis(5);

/// Carries the mode out.
pub async fn run(arguments: &BenchHistory) -> Result<()> {
    let scaled = arguments.scaled(64 << 30);
    let mut session = Session::begin(arguments, &scaled).await?;
    session.author.book = Book::of_each(REMEMBERED);
    let database = arguments.database.map_or(1 << 30, |size| size.0);
    let pages = u32::try_from(database / BLOCK_SIZE as u64)?.max(2 * REMEMBERED);
    for from in (0..pages).step_by(1024) {
        session.author.load(TABLE, 1024.min(pages - from));
        session.hand_over().await?;
    }
    session.author.checkpoint();
    for _ in 0..pages / 4 {
        let block = session.random.random_range(0..pages);
        session.author.update((TABLE, block));
        if session.author.waiting() >= MESSAGE {
            session.hand_over().await?;
        }
    }
    session.author.commit();
    session.rest().await?;
    session.end().await?;

    let cache = CacheLimits {
        memory: arguments.cache_memory.0 as usize,
        disk: arguments.cache_disk.0,
        ..CacheLimits::default()
    };
    let limits = Limits { cache, ..scaled.limits };
    let place = session.place.again(&limits, scaled.policy.clone())?;
    place.tenants.attach_all().await?;
    let timeline = place.tenants.timeline(TENANT, MAIN)?;
    let last = timeline.last_record_lsn();
    let before = place.bucket.total();
    let (mut read, mut compared) = (0u64, 0u64);
    let begun = Instant::now();
    while read < u64::from(pages) {
        // Half of a batch are neighbours, as in a scan.
        let from = session.random.random_range(0..pages);
        let blocks: Vec<u32> = (0..BATCH)
            .map(|at| if at % 2 == 0 { (from + at) % pages } else { session.random.random_range(0..pages) })
            .collect();
        let asked: Vec<_> = blocks.iter().map(|block| (relation(TABLE), *block, last)).collect();
        let mut found = Vec::new();
        timeline.get_pages(&asked, &mut found).await;
        for (block, found) in blocks.iter().zip(found) {
            let found = found.with_context(|| format!("block {block} at {last}"))?;
            read += 1;
            if let Some((written, version)) = session.author.book.version((TABLE, *block), last) {
                ensure!(
                    found[..] == page_of(TABLE, *block, version, written)[..],
                    "block {block} is another version"
                );
                compared += 1;
            }
        }
    }
    let asked = place.bucket.total().since(before);
    println!(
        "{:.0} MiB of pages ({:.0} MiB of layers) from a cache of {:.0} MiB in memory and {:.0} on disk: {read} pages read without an error, {compared} of them compared; {} GETs of {:.0} KiB on average; {:.0} pages/s",
        mib(database),
        mib(timeline.info().remote_physical_size),
        mib(arguments.cache_memory.0),
        mib(arguments.cache_disk.0),
        asked.gets,
        asked.get_bytes as f64 / 1024.0 / asked.gets.max(1) as f64,
        read as f64 / begun.elapsed().as_secs_f64()
    );
    drop(timeline);
    place.tenants.shut_down(Duration::from_mins(1)).await;
    cold(&mut session, &Limits { get_delay: DELAY, ..limits }, &scaled.policy, pages).await
}

/// T3, counted where the bucket is asked.
async fn cold(
    session: &mut Session,
    limits: &Limits,
    policy: &engine::timeline::TimelinePolicy,
    pages: u32,
) -> Result<()> {
    let (mut first, mut later, mut floor) = (Samples::default(), Samples::default(), Samples::default());
    let (mut first_waits, mut later_waits, mut first_gets, mut later_gets) = (0, 0, 0, 0);
    for _ in 0..COLD_STARTS {
        let place = session.place.again(limits, policy.clone())?;
        place.tenants.attach_all().await?;
        let timeline = place.tenants.timeline(TENANT, MAIN)?;
        let last = timeline.last_record_lsn();
        for number in 0..PAGES_EACH {
            let block = session.random.random_range(0..pages);
            place.bucket.watch_gets();
            let begun = Instant::now();
            timeline.page(relation(TABLE), block, last).await?;
            let took = begun.elapsed();
            let (gets, waits) = place.bucket.watched_gets();
            // A page whose chunks came with another's tells nothing.
            if number == 0 {
                first.add(took);
                first_waits = first_waits.max(waits);
                first_gets += gets;
            } else if gets > 0 {
                later.add(took);
                later_waits = later_waits.max(waits);
                later_gets += gets;
            }
        }
        if let Some(layer) = timeline.layers().first() {
            let begun = Instant::now();
            place.bucket.get(layer.object_path(), Some(0..65_536)).await?;
            floor.add(begun.elapsed());
        }
        drop(timeline);
        place.tenants.shut_down(Duration::from_secs(10)).await;
    }
    let millis = |samples: &mut Samples| samples.quantile(0.5) / 1e6;
    let get = millis(&mut floor);
    line("T3 first page, nothing at hand, p50", millis(&mut first), get, "ms");
    println!(
        "    {:.1} GETs on average, at most {first_waits} one after the other (target 2)",
        first_gets as f64 / f64::from(COLD_STARTS)
    );
    line("T3 later pages, fetching, p50", millis(&mut later), get, "ms");
    println!(
        "    {:.1} GETs on average of {} pages, at most {later_waits} one after the other",
        later_gets as f64 / later.len().max(1) as f64,
        later.len()
    );
    Ok(())
}
