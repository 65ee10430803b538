//! An engine at work: WAL goes in, maintenance runs beside it, requests are counted.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use bytes::Bytes;
use engine::bucket::MemoryBucket;
use engine::claim::Claim;
use engine::layer_write::LayerStore;
use engine::ports::Bucket;
use engine::timeline::Timeline;
use model::{Key, LayerName, Lsn, PgTimestamp, TenantShardId, TimelineId, Tli};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::author::Author;
use super::counting::Class;
use super::pages::{page_of, relation};
use super::place::{MAIN, Place, TENANT};
use super::size::mib;
use super::{BenchHistory, Scaled};

/// Bytes of WAL handed over at a time, as a receiver does.
pub const MESSAGE: usize = 128 << 10;
/// What commits say goes from so long ago to now.
pub const MONTH: Duration = Duration::from_hours(30 * 24);

/// One timeline that is written to, and all around it.
pub struct Session {
    pub place: Place,
    pub timeline: Timeline,
    pub author: Author,
    pub random: StdRng,
    maintaining: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Session {
    /// Begins with an empty timeline, and maintenance.
    pub async fn begin(arguments: &BenchHistory, scaled: &Scaled) -> Result<Session> {
        let mut session = Session::begin_alone(arguments, scaled).await?;
        let stop = CancellationToken::new();
        let (tenants, settings, told) =
            (session.place.tenants.clone(), scaled.maintenance.clone(), stop.clone());
        let task = tokio::spawn(async move { tenants.maintain(settings, told).await });
        session.maintaining = Some((stop, task));
        Ok(session)
    }

    /// Begins with an empty timeline that nobody looks after.
    pub async fn begin_alone(arguments: &BenchHistory, scaled: &Scaled) -> Result<Session> {
        let place = Place::new(&arguments.work, &scaled.limits, scaled.policy.clone())?;
        place.make_timeline(TENANT, MAIN).await?;
        place.tenants.attach_all().await?;
        let timeline = place.tenants.timeline(TENANT, MAIN)?;
        let begun = PgTimestamp::from_system_time(SystemTime::now() - MONTH);
        let random = StdRng::seed_from_u64(arguments.seed);
        Ok(Session { place, timeline, author: Author::new(begun), random, maintaining: None })
    }

    /// Stops all of it.
    pub async fn end(&mut self) -> Result<()> {
        if let Some((stop, task)) = self.maintaining.take() {
            stop.cancel();
            task.await?;
        }
        self.place.tenants.shut_down(Duration::from_mins(1)).await;
        Ok(())
    }

    /// Gives the timeline what was written.
    pub async fn hand_over(&mut self) -> Result<()> {
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

    /// Until all WAL is in layers and nothing is left to be done.
    pub async fn rest(&mut self) -> Result<()> {
        self.hand_over().await?;
        self.timeline.wait_for(self.author.end(), Duration::from_mins(10)).await?;
        self.timeline.checkpoint().await?;
        self.settle().await
    }

    /// Until compaction and deletion have nothing left to do.
    pub async fn settle(&self) -> Result<()> {
        const QUIET: u32 = 30;
        let mut quiet = 0;
        let mut before = (0, 0);
        while quiet < QUIET {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let jobs = self.place.tenants.maintenance().jobs.load(Relaxed);
            let now = (jobs, self.place.bucket.bytes());
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    /// Bytes of tail layers that the retained WAL was, or would be.
    pub fn retained(&self) -> u64 {
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

    /// Bytes that indexes name, WAL that is not in layers yet included.
    pub fn named(&self) -> Result<u64> {
        let tenant = self.place.tenants.tenant(TENANT)?;
        let opened = tenant.views().into_iter().filter_map(|(_, view)| match view {
            engine::tenant::TimelineView::Open(open) => Some(open.info().remote_physical_size),
            _ => None,
        });
        let wal = self.place.bucket.stored().get(&Class::Wal).map_or(0, |(_, bytes)| *bytes);
        Ok(opened.sum::<u64>() + wal)
    }

    /// Bytes of an image layer for each page that is live.
    pub async fn page_bytes(&self) -> Result<f64> {
        let shard = TenantShardId::unsharded(TENANT);
        let scratch: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        let claim = Claim::take(Arc::clone(&scratch), shard).await?;
        let store =
            LayerStore::new(scratch, Arc::clone(&self.place.cache), claim, shard, TimelineId([9; 16]));
        let mut image = store.begin_image()?;
        let mut count = 0u64;
        for (rel, size) in self.author.book.existing(Lsn::MAX) {
            let blocks: Vec<u32> = self.author.book.blocks(size).collect();
            for block in blocks.iter().copied().step_by(1 + blocks.len() / 1000) {
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

    /// What was asked of the bucket, by whom, for each byte of WAL.
    pub fn print_requests(&self) {
        let written = self.author.written();
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
                "    {kind:<8} {:>6}  wrote {:>9.1} MiB, {:.3} per byte of WAL; replaced {:>9.1} MiB; the largest {:>7.1} MiB",
                counts.jobs,
                mib(counts.written_bytes),
                counts.written_bytes as f64 / written as f64,
                mib(counts.removed_bytes),
                mib(counts.largest_bytes)
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
        println!(
            "T8a uploaded per byte of WAL: {:.2} (target 3); per byte of WAL as it is stored: {:.2}",
            total.put_bytes as f64 / written as f64,
            total.put_bytes as f64 / of(Class::Wal).put_bytes.max(1) as f64
        );
    }
}
