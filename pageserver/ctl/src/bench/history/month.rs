//! A month of writes in as much time as it takes: a hot set, counters, loads, truncations, drops, branches that come and go; ingest, compaction and collection
//! all at once. Throughout it is measured what is in the bucket, what goes up, how deep reads are; in the end everything that can be read is compared.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use engine::retention::Retention;
use engine::tenant::BranchPoint;
use model::{BLOCK_SIZE, Lsn, PgTimestamp, TimelineId};
use rand::RngExt as _;

use super::BenchHistory;
use super::book::PageId;
use super::place::{MAIN, TENANT, memory};
use super::readers::{Depth, compare, read_page};
use super::session::{MESSAGE, MONTH, Session};
use super::size::mib;

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
    named: u64,
    uploads: f64,
    depth: Depth,
    l0s: usize,
    waits: bool,
    resident: u64,
}

struct Run<'a> {
    arguments: &'a BenchHistory,
    session: Session,
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
    let session = Session::begin(arguments, &scaled).await?;
    let database = arguments.database.map_or(wal / 4, |size| size.0);
    let begun = session.author.time;
    let mut run = Run {
        arguments,
        session,
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
    run.session.end().await?;
    result
}

impl Run<'_> {
    async fn month(&mut self, wal: u64, freeze: u64) -> Result<()> {
        let started = Instant::now();
        for table in 0..TABLES {
            self.session.author.load(table, self.table_blocks);
            self.session.hand_over().await?;
        }
        self.session.author.load(COUNTERS, COUNTER_PAGES);
        self.session.hand_over().await?;
        self.loaded_wal = self.session.author.written();
        let mut moments: Vec<Moment> = Vec::new();
        let mut depth = Depth::default();
        let (mut steps, mut loads, mut samples, mut checkpoints, mut forgotten) = (0, 0, 0, 0, 0);
        loop {
            let done = self.session.author.written() - self.loaded_wal;
            if done >= wal {
                break;
            }
            let share = done as f64 / wal as f64;
            let is_due = |count: u64, of: u64| share * of as f64 >= count as f64 + 0.5;
            self.session.author.time = PgTimestamp(self.begun.0 + (MONTH.as_micros() as f64 * share) as i64);
            self.transaction();
            if self.session.author.waiting() >= MESSAGE {
                self.session.hand_over().await?;
            }
            if done / (4 * freeze) > checkpoints {
                checkpoints += 1;
                self.session.author.checkpoint();
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
                moments.push(self.moment(share, std::mem::take(&mut depth))?);
                if let Some(moment) = moments.last() {
                    moment.print(started.elapsed().as_secs_f64());
                }
            }
        }
        let written = started.elapsed();
        self.session.rest().await?;
        moments.push(self.moment(1.0, depth)?);
        if let Some(moment) = moments.last() {
            moment.print(started.elapsed().as_secs_f64());
        }
        self.report(&moments, written).await?;
        self.verify().await
    }

    /// A page of those that stay: most are of a small part of them, wherever that lies.
    fn pick(&mut self) -> PageId {
        let pages = u64::from(self.table_blocks) * u64::from(TABLES);
        let rank = if self.session.random.random_range(0..100) < ANYWHERE {
            self.session.random.random_range(0..pages)
        } else {
            let at: f64 = self.session.random.random();
            (at.powi(4) * pages as f64) as u64
        };
        let scattered = rank.wrapping_mul(2_654_435_761) % pages;
        ((scattered / u64::from(self.table_blocks)) as u32, (scattered % u64::from(self.table_blocks)) as u32)
    }

    fn transaction(&mut self) {
        if self.session.random.random_range(0..100) < COUNTING {
            let page = (COUNTERS, self.session.random.random_range(0..COUNTER_PAGES));
            self.session.author.update(page);
        }
        for _ in 0..self.session.random.random_range(1..5) {
            let page = self.pick();
            self.session.author.update(page);
        }
        self.session.author.commit();
    }

    /// Loads a relation, and truncates or drops older ones.
    fn load(&mut self) {
        let blocks = (self.table_blocks * TABLES / 50).max(1);
        self.session.author.load(self.next_load, blocks);
        self.loaded.push_back(self.next_load);
        self.next_load += 1;
        if self.loaded.len() > LOADED {
            let oldest = self.loaded.pop_front().expect("there are more than some");
            self.session.author.remove(oldest);
        }
        if self.next_load.is_multiple_of(3) {
            let first = self.loaded[0];
            self.session.author.truncate(first, blocks / 2);
        }
        if self.next_load.is_multiple_of(4) {
            let last = self.loaded[self.loaded.len() - 1];
            self.session.author.load(last, blocks / 4);
        }
    }

    async fn branch(&mut self, share: f64) -> Result<()> {
        self.branches_made += 1;
        let id = TimelineId([self.branches_made as u8 + 0x80; 16]);
        let at = self.session.timeline.last_record_lsn();
        self.session.place.tenants.branch(TENANT, id, MAIN, BranchPoint::Lsn(at)).await?;
        self.branches.push_back(Branch { id, at, until: share + BRANCH_LIVES });
        Ok(())
    }

    /// Compares what a branch reads, then deletes it.
    async fn drop_branch(&mut self) -> Result<()> {
        let Some(branch) = self.branches.pop_front() else { return Ok(()) };
        let timeline = self.session.place.tenants.timeline(TENANT, branch.id)?;
        let compared = compare(
            &timeline,
            &self.session.author.book,
            branch.at,
            self.arguments.pages,
            self.arguments.seed,
        )
        .await
        .with_context(|| format!("branch {} at {} does not read as it must", branch.id, branch.at))?;
        self.branch_pages += compared;
        drop(timeline);
        self.session.place.tenants.delete_timeline(TENANT, branch.id, async {}).await?;
        Ok(())
    }

    /// Reads some pages: half as of now, half as of any time; half of them hot.
    async fn sample(&mut self, depth: &mut Depth) -> Result<()> {
        let last = self.session.timeline.last_record_lsn();
        let cutoff = self.session.timeline.retention().cutoff;
        for at in 0..PAGES_A_SAMPLE {
            let page = if at % 8 == 7 {
                (COUNTERS, self.session.random.random_range(0..COUNTER_PAGES))
            } else if at % 2 == 0 {
                self.pick()
            } else {
                (
                    self.session.random.random_range(0..TABLES),
                    self.session.random.random_range(0..self.table_blocks),
                )
            };
            let lsn =
                if at % 4 < 2 { last } else { Lsn(self.session.random.random_range(cutoff.0..=last.0)) };
            let read = read_page(&self.session.timeline, &self.session.author.book, page, lsn, depth).await;
            // The cutoff may have moved on.
            if lsn >= self.session.timeline.retention().cutoff {
                read?;
            }
        }
        Ok(())
    }

    /// What must be remembered: what can be read, and what branches may begin to need.
    fn forget(&mut self) {
        let retention = self.session.timeline.retention();
        let branches = self.branches.iter().map(|branch| branch.at);
        let points = retention.points.iter().copied().chain(branches);
        self.session.author.book.forget(&Retention::new(retention.segment, retention.cutoff, points));
    }

    fn moment(&mut self, share: f64, depth: Depth) -> Result<Moment> {
        let written = self.session.author.written();
        let book = &self.session.author.book;
        let retention = self.session.timeline.retention();
        // Of a branch's point that is below the cutoff every page is kept that the next one reads otherwise.
        let points: Vec<Lsn> = retention.points.iter().copied().chain([retention.cutoff]).collect();
        let branches = points.windows(2).map(|pair| book.differing(pair[0], pair[1])).sum();
        let info = self.session.timeline.info();
        Ok(Moment {
            share,
            live: book.live(Lsn::MAX),
            retained: self.session.retained(),
            branches,
            stored: self.session.place.bucket.bytes(),
            named: self.session.named()?,
            uploads: self.session.place.bucket.total().put_bytes as f64 / written as f64,
            depth,
            l0s: info.l0_layers,
            waits: info.ingest_waits,
            resident: memory()?.1,
        })
    }

    async fn report(&self, moments: &[Moment], took: Duration) -> Result<()> {
        let page = self.session.page_bytes().await?;
        println!();
        println!(
            "MiB: live pages and retained WAL as layers have them, what branch points may need of pages that changed since; what indexes name, all objects"
        );
        println!("share    live retained branches    named  ratio  (no branches)   bucket  ratio");
        for moment in moments {
            let live = moment.live as f64 * page;
            let branches = moment.branches as f64 * page;
            let wanted = live + moment.retained as f64;
            println!(
                "{:>5.2} {:>7.1} {:>8.1} {:>8.1} {:>8.1} {:>6.2} {:>14.2} {:>8.1} {:>6.2}",
                moment.share,
                live / 1_048_576.0,
                mib(moment.retained),
                branches / 1_048_576.0,
                mib(moment.named),
                moment.named as f64 / (wanted + branches),
                moment.named as f64 / wanted,
                mib(moment.stored),
                moment.stored as f64 / (wanted + branches),
            );
        }
        let written = self.session.author.written();
        println!();
        self.session.print_requests();
        let mut depth = Depth::default();
        for moment in moments {
            depth.merge(&moment.depth);
        }
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
        let retention = self.session.timeline.retention();
        let last = self.session.timeline.last_record_lsn();
        let mut lsns = retention.points.clone();
        lsns.extend([retention.cutoff, last]);
        while lsns.len() < self.arguments.lsns {
            lsns.push(Lsn(self.session.random.random_range(retention.cutoff.0..=last.0)));
        }
        let (mut compared, mut forgotten) = (0, 0);
        for lsn in &lsns {
            let pages = compare(
                &self.session.timeline,
                &self.session.author.book,
                *lsn,
                self.arguments.pages,
                self.arguments.seed,
            );
            match pages.await {
                // The cutoff moves on meanwhile.
                Err(_) if !self.session.timeline.retention().keeps(*lsn) => forgotten += 1,
                pages => compared += pages?,
            }
        }
        println!(
            "{compared} pages at {} LSNs are as they were written ({forgotten} were collected meanwhile), and {} of {} branches before they were dropped ({:.1} s)",
            lsns.len() - forgotten,
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
            "{seconds:>6.1} s {:>5.2}: named {:>8.1} MiB, bucket {:>8.1} MiB, uploaded {:.2} per byte; layers p50 {} p99 {} most {}, changes p99 {} most {}; {} L0s{}; {:.0} MiB resident",
            self.share,
            mib(self.named),
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
