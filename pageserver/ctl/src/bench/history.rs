//! `pagectl bench history`: what it costs to keep history small and readable, in one process over a bucket in a directory, with WAL that is made up beside a
//! book of what every page must read as.

mod author;
mod book;
mod branch;
mod counting;
mod idle;
mod images;
mod layers;
mod month;
mod pages;
mod place;
mod readers;
mod scale;
mod session;
mod size;
mod small_cache;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use engine::chunk_cache::CacheLimits;
use engine::collect::KeepHistory;
use engine::compact::CompactionPolicy;
use engine::tenant::Maintenance;
use engine::timeline::TimelinePolicy;

use place::Limits;
use size::ByteCount;

/// History under load: what it costs in bytes, requests, memory and depth of reads.
#[derive(Debug, Args)]
pub struct BenchHistory {
    /// What is looked at.
    #[arg(long, value_enum, default_value_t = Mode::Month)]
    mode: Mode,
    /// How much WAL is written.
    #[arg(long, default_value = "1GiB")]
    wal: ByteCount,
    /// Pages that are there all the time, in bytes; a quarter of the WAL if not said.
    #[arg(long)]
    database: Option<ByteCount>,
    /// Bytes at which a tail becomes a layer; a 64th of the WAL if not said, and 128 MiB at most. Shelves, layers and jobs are as much smaller than usual.
    #[arg(long)]
    freeze: Option<ByteCount>,
    /// Sizes of the database in `scale`.
    #[arg(long, value_delimiter = ',', default_values = ["1GiB", "5GiB", "20GiB"])]
    key_space: Vec<ByteCount>,
    /// WAL of updates in `scale`, in parts of the key space.
    #[arg(long, default_value_t = 0.5)]
    updates: f64,
    /// Days of history that are kept, of the month that passes.
    #[arg(long, default_value_t = 2.0)]
    keep_days: f64,
    /// LSNs at which everything is compared with the book in the end.
    #[arg(long, default_value_t = 200)]
    lsns: usize,
    /// Pages that are compared at each of them, if there are more.
    #[arg(long, default_value_t = 2000)]
    pages: usize,
    /// What is random is chosen by this number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Memory of all tails; that of two if not said. With less, they become layers before they are large, which are merged once more.
    #[arg(long)]
    tail_memory: Option<ByteCount>,
    /// Memory of the cache.
    #[arg(long, default_value = "64MiB")]
    cache_memory: ByteCount,
    /// Disk of the cache in `small-cache`.
    #[arg(long, default_value = "192MiB")]
    cache_disk: ByteCount,
    /// Timelines in `idle`.
    #[arg(long, default_value_t = 10_000)]
    timelines: u32,
    /// Tenants that these belong to.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
    /// How long it is watched in `idle` that nothing happens.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the bucket and the local files are made, and removed again.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    work: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A month of skewed writes, loads, drops and branches in as much time as it takes.
    Month,
    /// The same work for each byte at several sizes of the database, each in a process of its own.
    Scale,
    /// One of these.
    OneScale,
    /// An old branch on a parent with many updates: what is kept before and after collection; making branches, finding times.
    Branch,
    /// A database much larger than the cache; GETs of a cold read.
    SmallCache,
    /// Very many timelines that do nothing, or little.
    Idle,
    /// Timelines with very many layers.
    Layers,
    /// How fast images are made.
    Images,
}

/// What is usual, at a scale.
struct Scaled {
    freeze: usize,
    limits: Limits,
    policy: TimelinePolicy,
    maintenance: Maintenance,
}

impl BenchHistory {
    /// Settings at which `wal` bytes are about as many layers as a larger history would be at usual ones.
    fn scaled(&self, wal: u64) -> Scaled {
        let usual = TimelinePolicy::default();
        let freeze =
            self.freeze.map_or(wal / 64, |freeze| freeze.0).clamp(256 << 10, usual.freeze_bytes as u64);
        let scale = freeze as f64 / usual.freeze_bytes as f64;
        let scaled = |bytes: u64| (bytes as f64 * scale) as u64;
        let compaction = CompactionPolicy::default();
        let compaction = CompactionPolicy {
            little: scaled(compaction.little).max(16 << 10),
            shelf_bytes: scaled(compaction.shelf_bytes),
            layer_bytes: scaled(compaction.layer_bytes),
            job_bytes: scaled(compaction.job_bytes),
            read_weight: scaled(compaction.read_weight),
            ..compaction
        };
        let keep =
            KeepHistory { interval: Duration::from_secs_f64(self.keep_days * 86_400.0), bytes: freeze };
        let maintenance = Maintenance {
            period: Maintenance::default().period.mul_f64(scale).max(Duration::from_millis(10)),
            // A month passes in a quarter of an hour here: every minute would be every second day.
            collect_period: Duration::from_secs_f64((6.0 * scale).clamp(0.2, 6.0)),
            compaction,
            keep,
            ..Maintenance::default()
        };
        let mut policy = TimelinePolicy {
            freeze_bytes: freeze as usize,
            max_l0: Some(maintenance.compaction.l0_limit),
            ..usual
        };
        policy.wal.seal_bytes = scaled(policy.wal.seal_bytes as u64).max(128 << 10) as usize;
        let cache = CacheLimits { memory: self.cache_memory.0 as usize, ..CacheLimits::default() };
        let tail_memory = self.tail_memory.map_or(2 * freeze, |memory| memory.0) as usize;
        let limits = Limits { tail_memory, cache, get_delay: Duration::ZERO };
        Scaled { freeze: freeze as usize, limits, policy, maintenance }
    }
}

/// Carries the verb out.
pub async fn run(arguments: &BenchHistory) -> Result<()> {
    match arguments.mode {
        Mode::Month => month::run(arguments).await,
        Mode::Scale => scale::run(arguments),
        Mode::OneScale => scale::run_one(arguments).await,
        Mode::Branch => branch::run(arguments).await,
        Mode::SmallCache => small_cache::run(arguments).await,
        Mode::Idle => idle::run(arguments).await,
        Mode::Layers => layers::run(arguments).await,
        Mode::Images => images::run(arguments).await,
    }
}
