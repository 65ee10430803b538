//! A month of writes in as much time as it takes: a hot set, counters, loads, truncations, drops, branches that come and go; ingest, compaction and collection
//! all at once. Throughout it is measured what is in the bucket, what goes up, how deep reads are; in the end everything that can be read is compared.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use engine::layer_write::LayerStore;
use engine::ports::Bucket;
use engine::retention::Retention;
use engine::tenant::BranchPoint;
use engine::timeline::Timeline;
use model::{BLOCK_SIZE, Key, LayerName, Lsn, PgTimestamp, TenantShardId, TimelineId, Tli};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;

use super::BenchHistory;
use super::author::Author;
use super::book::PageId;
use super::counting::Class;
use super::pages::{page_of, relation};
use super::place::{MAIN, Place, TENANT, memory};
use super::readers::{Depth, compare, read_page};
use super::size::mib;

/// Bytes of WAL handed over at a time, as a receiver does.
const MESSAGE: usize = 128 << 10;
const MONTH: Duration = Duration::from_secs(30 * 86_400);
/// Relations that stay; then counters; then what is loaded and dropped again.
const TABLES: u32 = 16;
const COUNTERS: u32 = TABLES;
const COUNTER_PAGES: u32 = 8;
const FIRST_LOAD: u32 = COUNTERS + 1;
const LOADS: u64 = 40;
/// Of loaded relations so many are there at once.
const LOADED: usize = 3;
const BRANCHES: u64 = 50;
/// Parts of the month that a branch lives.
const BRANCH_LIVES: f64 = 0.1;
/// Transactions of each hundred that count something, and that change anything but the hot set.
const COUNTING: u32 = 15;
const ANYWHERE: u32 = 20;
const STEPS: u64 = 20;
const SAMPLES: u64 = 1000;
const PAGES_A_SAMPLE: usize = 16;

struct Branch {
    id: TimelineId,
    at: Lsn,
    until: f64,
}

/// What is known at one moment, for the lines that are printed once all is known.
struct Moment {
    share: f64,
    live: u64,
    retained: u64,
    branches: u64,
    stored: u64,
    uploads: f64,
    depth: Depth,
    l0s: usize,
    waits: bool,
    resident: u64,
}

struct Run<'a> {
    arguments: &'a BenchHistory,
    place: Place,
    timeline: Timeline,
    author: Author,
    random: StdRng,
    table_blocks: u32,
    loaded: VecDeque<u32>,
    next_load: u32,
    branches: VecDeque<Branch>,
    branches_made: u64,
    branch_pages: usize,
    begun: PgTimestamp,
    loaded_wal: u64,
}

/// Carries the mode out.
pub async fn run(arguments: &BenchHistory) -> Result<()> {
    let wal = arguments.wal.0;
    let scaled = arguments.scaled(wal);
    let place = Place::new(&arguments.work, &scaled.limits, scaled.policy.clone())?;
    place.make_timeline(TENANT, MAIN).await?;
    place.tenants.attach_all().await?;
    let timeline = place.tenants.timeline(TENANT, MAIN)?;
    let stop = CancellationToken::new();
    let maintaining = {
        let (tenants, settings, stop) = (place.tenants.clone(), scaled.maintenance.clone(), stop.clone());
        tokio::spawn(async move { tenants.maintain(settings, stop).await })
    };
    let database = arguments.database.map_or(wal / 4, |size| size.0);
    let begun = PgTimestamp::from_system_time(SystemTime::now() - MONTH);
    let mut run = Run {
        arguments,
        place,
        timeline,
        author: Author::new(begun),
        random: StdRng::seed_from_u64(arguments.seed),
        table_blocks: (database / BLOCK_SIZE as u64 / u64::from(TABLES)).max(1) as u32,
        loaded: VecDeque::new(),
        next_load: FIRST_LOAD,
        branches: VecDeque::new(),
        branches_made: 0,
        branch_pages: 0,
        begun,
        loaded_wal: 0,
    };
    println!(
        "{:.0} MiB of WAL, {:.0} MiB of pages that stay, tails of {:.1} MiB, {} days of 30 are kept",
        mib(wal),
        mib(database),
        mib(scaled.freeze as u64),
        arguments.keep_days
    );
    let result = run.month(wal, scaled.freeze as u64).await;
    stop.cancel();
    maintaining.await?;
    run.place.tenants.shut_down(Duration::from_mins(1)).await;
    result
}

impl Run<'_> {
    async fn month(&mut self, wal: u64, freeze: u64) -> Result<()> {
        let started = Instant::now();
        for table in 0..TABLES {
            self.author.load(table, self.table_blocks);
            self.hand_over().await?;
        }
        self.author.load(COUNTERS, COUNTER_PAGES);
        self.hand_over().await?;
        self.loaded_wal = self.author.written();
        let mut moments: Vec<Moment> = Vec::new();
        let mut depth = Depth::default();
        let (mut steps, mut loads, mut samples, mut checkpoints, mut forgotten) = (0, 0, 0, 0, 0);
        loop {
            let done = self.author.written() - self.loaded_wal;
            if done >= wal {
                break;
            }
            let share = done as f64 / wal as f64;
            let is_due = |count: u64, of: u64| share * of as f64 >= count as f64 + 0.5;
            self.author.time = PgTimestamp(self.begun.0 + (MONTH.as_micros() as f64 * share) as i64);
            self.transaction();
            if self.author.waiting() >= MESSAGE {
                self.hand_over().await?;
            }
            if done / (4 * freeze) > checkpoints {
                checkpoints += 1;
                self.author.checkpoint();
            }
            if is_due(loads, LOADS) {
                loads += 1;
                self.load();
            }
            if is_due(self.branches_made, BRANCHES) {
                self.branch(share).await?;
            }
            while self.branches.front().is_some_and(|branch| branch.until <= share) {
                self.drop_branch().await?;
            }
            if is_due(samples, SAMPLES) {
                samples += 1;
                self.sample(&mut depth).await?;
            }
            if is_due(forgotten, 4 * STEPS) {
                forgotten += 1;
                self.forget();
            }
            if is_due(steps, STEPS) {
                steps += 1;
                moments.push(self.moment(share, std::mem::take(&mut depth)).await?);
                if let Some(moment) = moments.last() {
                    moment.print(self.begun_after(started));
                }
            }
        }
        self.hand_over().await?;
        self.timeline.wait_for(self.author.end(), Duration::from_mins(10)).await?;
        let written = started.elapsed();
        self.timeline.checkpoint().await?;
        self.settle().await?;
        moments.push(self.moment(1.0, depth).await?);
        if let Some(moment) = moments.last() {
            moment.print(self.begun_after(started));
        }
        self.report(&moments, written).await?;
        self.verify().await
    }

    fn begun_after(&self, started: Instant) -> f64 {
        started.elapsed().as_secs_f64()
    }

    /// A page of those that stay: most are of a small part of them, wherever that lies.
    fn pick(&mut self) -> PageId {
        let pages = u64::from(self.table_blocks) * u64::from(TABLES);
        let rank = if self.random.random_range(0..100) < ANYWHERE {
            self.random.random_range(0..pages)
        } else {
            let at: f64 = self.random.random();
            (at.powi(4) * pages as f64) as u64
        };
        let scattered = rank.wrapping_mul(2_654_435_761) % pages;
        ((scattered / u64::from(self.table_blocks)) as u32, (scattered % u64::from(self.table_blocks)) as u32)
    }

    fn transaction(&mut self) {
        if self.random.random_range(0..100) < COUNTING {
            let page = (COUNTERS, self.random.random_range(0..COUNTER_PAGES));
            self.author.update(page);
        }
        for _ in 0..self.random.random_range(1..5) {
            let page = self.pick();
            self.author.update(page);
        }
        self.author.commit();
    }

    /// Loads a relation, and truncates or drops older ones.
    fn load(&mut self) {
        let blocks = (self.table_blocks * TABLES / 50).max(1);
        self.author.load(self.next_load, blocks);
        self.loaded.push_back(self.next_load);
        self.next_load += 1;
        if self.loaded.len() > LOADED {
            let oldest = self.loaded.pop_front().expect("there are more than some");
            self.author.remove(oldest);
        }
        if self.next_load.is_multiple_of(3) {
            let first = self.loaded[0];
            self.author.truncate(first, blocks / 2);
        }
        if self.next_load.is_multiple_of(4) {
            let last = self.loaded[self.loaded.len() - 1];
            self.author.load(last, blocks / 4);
        }
    }

    /// Gives the timeline what was written.
    async fn hand_over(&mut self) -> Result<()> {
        let (mut at, bytes) = self.author.take();
        let bytes = Bytes::from(bytes);
        for start in (0..bytes.len()).step_by(MESSAGE) {
            let piece = bytes.slice(start..bytes.len().min(start + MESSAGE));
            let length = piece.len() as u64;
            self.timeline.append_wal(at, Tli(1), piece).await?;
            at = at.add(length);
        }
        Ok(())
    }

    async fn branch(&mut self, share: f64) -> Result<()> {
        self.branches_made += 1;
        let id = TimelineId([self.branches_made as u8 + 0x80; 16]);
        let at = self.timeline.last_record_lsn();
        self.place.tenants.branch(TENANT, id, MAIN, BranchPoint::Lsn(at)).await?;
        self.branches.push_back(Branch { id, at, until: share + BRANCH_LIVES });
        Ok(())
    }

    /// Compares what a branch reads, then deletes it.
    async fn drop_branch(&mut self) -> Result<()> {
        let Some(branch) = self.branches.pop_front() else { return Ok(()) };
        let timeline = self.place.tenants.timeline(TENANT, branch.id)?;
        let compared =
            compare(&timeline, &self.author.book, branch.at, self.arguments.pages, self.arguments.seed)
                .await
                .with_context(|| format!("branch {} at {} does not read as it must", branch.id, branch.at))?;
        self.branch_pages += compared;
        drop(timeline);
        self.place.tenants.delete_timeline(TENANT, branch.id, async {}).await?;
        Ok(())
    }

    /// Reads some pages: half as of now, half as of any time; half of them hot.
    async fn sample(&mut self, depth: &mut Depth) -> Result<()> {
        let last = self.timeline.last_record_lsn();
        let cutoff = self.timeline.retention().cutoff;
        for at in 0..PAGES_A_SAMPLE {
            let page = if at % 8 == 7 {
                (COUNTERS, self.random.random_range(0..COUNTER_PAGES))
            } else if at % 2 == 0 {
                self.pick()
            } else {
                (self.random.random_range(0..TABLES), self.random.random_range(0..self.table_blocks))
            };
            let lsn = if at % 4 < 2 { last } else { Lsn(self.random.random_range(cutoff.0..=last.0)) };
            let read = read_page(&self.timeline, &self.author.book, page, lsn, depth).await;
            // The cutoff may have moved on.
            if lsn >= self.timeline.retention().cutoff {
                read?;
            }
        }
        Ok(())
    }

    /// What must be remembered: what can be read, and what branches may begin to need.
    fn forget(&mut self) {
        let retention = self.timeline.retention();
        let branches = self.branches.iter().map(|branch| branch.at);
        let points = retention.points.iter().copied().chain(branches);
        self.author.book.forget(&Retention::new(retention.cutoff, points));
    }

    /// Until compaction and deletion have nothing left to do.
    async fn settle(&self) -> Result<()> {
        const QUIET: u32 = 30;
        let mut quiet = 0;
        let mut before = (0, 0);
        while quiet < QUIET {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let jobs = self.place.tenants.maintenance().jobs.load(std::sync::atomic::Ordering::Relaxed);
            let now = (jobs, self.place.bucket.bytes());
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    /// Bytes of tail layers that the retained WAL was, or would be.
    fn retained(&self) -> u64 {
        let (cutoff, last) = (self.timeline.retention().cutoff, self.timeline.last_record_lsn());
        let l0s: Vec<_> =
            self.place.bucket.l0s().into_iter().filter(|layer| layer.timeline == MAIN).collect();
        let (bytes, lsns) = l0s.iter().fold((0, 0), |(bytes, lsns), layer| {
            let span = layer.name.lsns();
            (bytes + layer.size, lsns + span.end.since(span.start))
        });
        let density = if lsns == 0 { 0.0 } else { bytes as f64 / lsns as f64 };
        let held: f64 = l0s
            .iter()
            .map(|layer| {
                let span = layer.name.lsns();
                let inside = span.end.since(span.start.max(cutoff));
                layer.size as f64 * inside as f64 / span.end.since(span.start) as f64
            })
            .sum();
        let covered = l0s.iter().map(|layer| layer.name.lsns().end).max().unwrap_or(cutoff);
        (held + last.since(covered) as f64 * density) as u64
    }

    async fn moment(&mut self, share: f64, depth: Depth) -> Result<Moment> {
        let written = self.author.written();
        let book = &self.author.book;
        let retention = self.timeline.retention();
        // Of a branch's point that is below the cutoff every page is kept that the next one reads otherwise.
        let points: Vec<Lsn> = retention.points.iter().copied().chain([retention.cutoff]).collect();
        let branches = points.windows(2).map(|pair| book.differing(pair[0], pair[1])).sum();
        let info = self.timeline.info();
        Ok(Moment {
            share,
            live: book.live(Lsn::MAX),
            retained: self.retained(),
            branches,
            stored: self.place.bucket.bytes(),
            uploads: self.place.bucket.total().put_bytes as f64 / written as f64,
            depth,
            l0s: info.l0_layers,
            waits: info.ingest_waits,
            resident: memory()?.1,
        })
    }

    /// Bytes of an image layer for each page that is live.
    async fn page_bytes(&self) -> Result<f64> {
        let shard = TenantShardId::unsharded(TENANT);
        let scratch: Arc<dyn Bucket> = Arc::new(engine::bucket::MemoryBucket::default());
        let claim = engine::claim::Claim::take(Arc::clone(&scratch), shard).await?;
        let store =
            LayerStore::new(scratch, Arc::clone(&self.place.cache), claim, shard, TimelineId([9; 16]));
        let mut image = store.begin_image()?;
        let mut count = 0u64;
        for (rel, size) in self.author.book.existing(Lsn::MAX) {
            for block in (0..size).step_by(1 + size as usize / 1000) {
                if let Some((lsn, version)) = self.author.book.version((rel, block), Lsn::MAX) {
                    image
                        .push(Key::rel_block(relation(rel), block), &page_of(rel, block, version, lsn)[..])?;
                    count += 1;
                }
            }
        }
        ensure!(count > 0, "there are no pages");
        let written = store.finish_image(image, LayerName::Image { keys: Key::ALL, lsn: Lsn(8) }).await?;
        Ok(written.layer.file_size() as f64 / count as f64)
    }

    async fn report(&self, moments: &[Moment], took: Duration) -> Result<()> {
        let page = self.page_bytes().await?;
        println!();
        println!("share    live  retained  branches    bucket   ratio  (without branches)   MiB");
        for moment in moments {
            let live = moment.live as f64 * page;
            let branches = moment.branches as f64 * page;
            let wanted = live + moment.retained as f64;
            println!(
                "{:>5.2} {:>7.1} {:>9.1} {:>9.1} {:>9.1} {:>7.2} {:>7.2}",
                moment.share,
                live / 1048576.0,
                mib(moment.retained),
                branches / 1048576.0,
                mib(moment.stored),
                moment.stored as f64 / (wanted + branches),
                moment.stored as f64 / wanted,
            );
        }
        let written = self.author.written();
        println!();
        println!("in the bucket:");
        for (class, (count, bytes)) in self.place.bucket.stored() {
            println!("    {class:<8?} {count:>6} objects {:>9.1} MiB", mib(bytes));
        }
        println!("asked of the bucket:");
        for (class, requests) in self.place.bucket.requests() {
            println!(
                "    {class:<8?} {:>7} puts {:>9.1} MiB, {:.3} per byte of WAL; {:>7} gets {:>9.1} MiB; {:>6} lists; {:>6} deletes",
                requests.puts,
                mib(requests.put_bytes),
                requests.put_bytes as f64 / written as f64,
                requests.gets,
                mib(requests.get_bytes),
                requests.lists,
                requests.deletes
            );
        }
        println!("jobs:");
        for (kind, counts) in self.place.tenants.maintenance().kinds() {
            println!(
                "    {kind:<8} {:>6}  wrote {:>9.1} MiB, {:.3} per byte of WAL; replaced {:>9.1} MiB",
                counts.jobs,
                mib(counts.written_bytes),
                counts.written_bytes as f64 / written as f64,
                mib(counts.removed_bytes)
            );
        }
        let by_class = self.place.bucket.requests();
        let of = |class| by_class.get(&class).copied().unwrap_or_default();
        let total = self.place.bucket.total();
        let (index, flushes) = (of(Class::Index), of(Class::L0).puts.max(1));
        println!(
            "index: {} puts for {flushes} layers of tails, {:.1} KiB for each of these",
            index.puts,
            index.put_bytes as f64 / 1024.0 / flushes as f64
        );
        println!(
            "requests: {} put-class and {} gets, ${:.4}; ${:.2} for each TiB of WAL",
            total.put_class(),
            total.gets,
            total.dollars(),
            total.dollars() / (written as f64 / (1u64 << 40) as f64)
        );
        let mut depth = Depth::default();
        moments.iter().for_each(|moment| depth.merge(&moment.depth));
        let worst =
            |of: &dyn Fn(&Depth) -> usize| moments.iter().map(|moment| of(&moment.depth)).max().unwrap_or(0);
        println!(
            "T8b layers a read: p50 {}, p99 {}, most {} (p99 of the worst twentieth {}; target 8); changes redone: p50 {}, p99 {}, most {} (target 32); {} reads",
            depth.layers.quantile(0.5),
            depth.layers.quantile(0.99),
            depth.layers.quantile(1.0),
            worst(&|depth| depth.layers.quantile(0.99)),
            depth.changes.quantile(0.5),
            depth.changes.quantile(0.99),
            depth.changes.quantile(1.0),
            depth.layers.len()
        );
        let compressed = of(Class::Wal).put_bytes;
        println!(
            "T8a uploaded per byte of WAL: {:.2} (target 3); per byte of WAL as it is stored: {:.2}",
            total.put_bytes as f64 / written as f64,
            total.put_bytes as f64 / compressed.max(1) as f64
        );
        println!(
            "{:.0} MiB of WAL in {:.1} s, {:.1} MiB/s; memory at most {:.0} MiB with the book",
            mib(written),
            took.as_secs_f64(),
            mib(written) / took.as_secs_f64(),
            mib(memory()?.0)
        );
        Ok(())
    }

    /// Compares all that can be read with the book.
    async fn verify(&mut self) -> Result<()> {
        let begun = Instant::now();
        let retention = self.timeline.retention();
        let last = self.timeline.last_record_lsn();
        let mut lsns = retention.points.clone();
        lsns.extend([retention.cutoff, last]);
        while lsns.len() < self.arguments.lsns {
            lsns.push(Lsn(self.random.random_range(retention.cutoff.0..=last.0)));
        }
        let mut compared = 0;
        for lsn in &lsns {
            compared +=
                compare(&self.timeline, &self.author.book, *lsn, self.arguments.pages, self.arguments.seed)
                    .await?;
        }
        println!(
            "{compared} pages at {} LSNs are as they were written, and {} of {} branches before they were dropped ({:.1} s)",
            lsns.len(),
            self.branch_pages,
            self.branches_made,
            begun.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

impl Moment {
    fn print(&self, seconds: f64) {
        println!(
            "{seconds:>6.1} s {:>5.2}: bucket {:>8.1} MiB, uploaded {:.2} per byte; layers p50 {} p99 {} most {}, changes p99 {} most {}; {} L0s{}; {:.0} MiB resident",
            self.share,
            mib(self.stored),
            self.uploads,
            self.depth.layers.quantile(0.5),
            self.depth.layers.quantile(0.99),
            self.depth.layers.quantile(1.0),
            self.depth.changes.quantile(0.99),
            self.depth.changes.quantile(1.0),
            self.l0s,
            if self.waits { ", ingest waits" } else { "" },
            mib(self.resident)
        );
    }
}
