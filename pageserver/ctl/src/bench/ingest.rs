//! `pagectl bench ingest`: versions into layers, and WAL into versions.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use codec::value::{Change, Value};
use codec::wal::record::Record;
use engine::bucket::directory::DirectoryBucket;
use engine::budget::TailBudget;
use engine::changes::Changes;
use engine::chunk_cache::{CacheLimits, ChunkCache};
use engine::claim::Claim;
use engine::clock::SystemClock;
use engine::disk::LocalDisk;
use engine::import::directory::DataDirectory;
use engine::import_session::{ImportPlan, ImportedBase};
use engine::layer_write::{DeltaFile, LayerStore, WriteLayerError};
use engine::ports::Bucket;
use engine::tail::Tail;
use engine::tenant::Tenants;
use engine::timeline::TimelinePolicy;
use model::{Fork, Key, LayerName, Lsn, RelTag, TenantId, TenantShardId, TimelineId, Tli};
use tokio::task::JoinHandle;

use super::clock::line;
use crate::wal_files::WalFiles;

/// Bytes of WAL handed over at a time, as a receiver does.
const MESSAGE: usize = 128 << 10;
const MIB: f64 = 1048576.0;

/// Versions into layers: pre-decoded ones of 100 bytes with random keys; or, with a data directory and its WAL, all of it from the first byte.
#[derive(Debug, Args)]
pub struct BenchIngest {
    /// How much is ingested when there is no WAL.
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=65536))]
    size: u32,
    /// A cluster that was shut down cleanly: the base that the WAL goes on from.
    #[arg(long, requires = "wal")]
    base: Option<PathBuf>,
    /// Its `pg_wal`, as of later.
    #[arg(long, requires = "base")]
    wal: Option<PathBuf>,
    /// Where the bucket and the local files are made, and removed again.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    work: PathBuf,
}

/// A bucket in a directory, and all that an engine needs.
struct Place {
    directory: tempfile::TempDir,
    bucket: Arc<dyn Bucket>,
    cache: Arc<ChunkCache>,
}

impl Place {
    fn new(work: &Path) -> Result<Place> {
        let directory = tempfile::tempdir_in(work).context("cannot make a directory to work in")?;
        let bucket: Arc<dyn Bucket> = Arc::new(DirectoryBucket::open(directory.path().join("bucket"))?);
        let cache = ChunkCache::new(
            Arc::clone(&bucket),
            Arc::new(LocalDisk::new(directory.path().join("cache"))),
            CacheLimits::default(),
        )?;
        Ok(Place { directory, bucket, cache })
    }
}

/// Carries the verb out.
pub async fn run(arguments: &BenchIngest) -> Result<()> {
    let place = Place::new(&arguments.work)?;
    match (&arguments.base, &arguments.wal) {
        (Some(base), Some(wal)) => catch_up(&place, base, wal).await,
        _ => values(&place, u64::from(arguments.size) << 20).await,
    }
}

/// Pre-decoded versions through the tail into L0 layers, the next tail filling while the last one is written.
async fn values(place: &Place, size: u64) -> Result<()> {
    const VALUE: usize = 100;
    const PUBLISH: u64 = 1024;
    const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };
    let floor = copy_and_write(&place.directory.path().join("floor"), size)?;

    let tenant = TenantShardId::unsharded(TenantId([1; 16]));
    let claim = Claim::take(Arc::clone(&place.bucket), tenant).await?;
    let timeline = TimelineId([2; 16]);
    let (bucket, cache) = (Arc::clone(&place.bucket), Arc::clone(&place.cache));
    let store = Arc::new(LayerStore::new(bucket, cache, claim, tenant, timeline));
    let freeze = TimelinePolicy::default().freeze_bytes;
    let record = [7; VALUE];
    let value = Value::Change(Change::Postgres { will_init: false, record: &record });
    let begun = Instant::now();
    let (mut tail, mut changes, mut from, mut lsn) = (Tail::default(), Changes::default(), Lsn(8), Lsn(8));
    let mut flushing: Option<JoinHandle<Result<u64, WriteLayerError>>> = None;
    let mut written = 0;
    let count = size / VALUE as u64;
    for number in 1..=count {
        lsn = lsn.add(8);
        changes.push(Key::rel_block(REL, rand::random_range(0..1 << 24)), lsn, &value);
        if number % PUBLISH == 0 || number == count {
            tail = tail.with(&mut changes);
        }
        if tail.size() >= freeze || number == count {
            if let Some(flushing) = flushing.take() {
                written += flushing.await??;
            }
            let frozen = std::mem::take(&mut tail);
            let name = LayerName::Delta { keys: Key::ALL, lsns: from.add(1)..lsn.add(1) };
            from = lsn;
            let store = Arc::clone(&store);
            flushing = Some(tokio::spawn(async move {
                let fill = move |file: &mut DeltaFile| {
                    frozen
                        .merged()
                        .try_for_each(|key, lsn, will_init, value| file.push(key, lsn, will_init, value))
                };
                Ok(store.write_delta(name, None, fill).await?.layer.file_size())
            }));
        }
    }
    if let Some(flushing) = flushing {
        written += flushing.await??;
    }
    let rate = size as f64 / MIB / begun.elapsed().as_secs_f64();
    line("T4a versions of 100 B, random keys, with L0", rate, floor, "MiB/s");
    println!("    {count} versions, {:.0} MiB of layers", written as f64 / MIB);
    Ok(())
}

/// MiB a second of a copy in memory and a write of the copy, in order, until it is on the disk.
fn copy_and_write(path: &Path, size: u64) -> Result<f64> {
    const PIECE: usize = 1 << 20;
    let (from, mut piece) = (vec![7u8; PIECE], vec![0u8; PIECE]);
    let begun = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..size.div_ceil(PIECE as u64) {
        piece.copy_from_slice(black_box(&from));
        file.write_all(black_box(&piece))?;
    }
    file.sync_data()?;
    let rate = size as f64 / MIB / begun.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// A base imported, then all WAL after it: until it can be read, and until it is in layers.
async fn catch_up(place: &Place, base: &Path, wal: &Path) -> Result<()> {
    let files = WalFiles::open(wal, None)?;
    let directory = DataDirectory::open(base).await.context("cannot import the base")?;
    let start = directory.options.base_lsn;
    // The floor: every record found and parsed, and nothing done with it.
    let begun = Instant::now();
    let (mut records, mut end) = (0u64, start);
    files.for_each(Some(start), |raw| {
        black_box(Record::parse(files.pg, raw.bytes)?);
        records += 1;
        end = raw.end;
        Ok(ControlFlow::Continue(()))
    })?;
    let decoded = begun.elapsed();

    let budget = Arc::new(TailBudget::new(512 << 20));
    let tenants = Tenants::new(
        Arc::clone(&place.bucket),
        Arc::clone(&place.cache),
        budget,
        TimelinePolicy::default(),
        Arc::new(SystemClock),
    );
    let (tenant, timeline) = (TenantId([1; 16]), TimelineId([2; 16]));
    tenants.create_tenant(tenant).await?;
    let plan = ImportPlan {
        pg: files.pg,
        system_identifier: directory.control.system_identifier,
        wal_segment_size: files.segment,
        data_checksums: false,
        tli: Tli(1),
        source: None,
    };
    let session = tenants.begin_import(tenant, timeline, plan).await?;
    let layers = session.layers(start);
    let (report, layers) = directory.import(layers, None, &|_| ()).await?;
    let based =
        ImportedBase { base_lsn: report.base_lsn, readable_from: report.readable_from, tli: report.tli };
    let timeline = session.finish(based, layers).await?;

    let begun = Instant::now();
    let from = timeline.received();
    for (first, tli, path) in files.from(from) {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut at = first;
        while at < end {
            let mut bytes = vec![0; MESSAGE.min(end.since(at) as usize)];
            let count = file.read(&mut bytes)?;
            if count == 0 {
                break;
            }
            bytes.truncate(count);
            timeline.append_wal(at, tli, Bytes::from(bytes)).await?;
            at = at.add(count as u64);
        }
    }
    timeline.wait_for(end, Duration::from_hours(1)).await?;
    let readable = begun.elapsed();
    timeline.checkpoint().await?;
    let in_layers = begun.elapsed();
    let last = timeline.last_record_lsn();
    tenants.shut_down(Duration::from_mins(1)).await;
    ensure!(last >= end, "only {last} was reached of {end}");

    let size = end.since(start) as f64 / MIB;
    println!("WAL: {size:.0} MiB, {records} records, {start} to {end}");
    let rate = |took: Duration| size / took.as_secs_f64();
    println!("floor, decoded only: {:.2} s, {:.0} MiB/s", decoded.as_secs_f64(), rate(decoded));
    println!("T4b readable: {:.2} s, {:.0} MiB/s", readable.as_secs_f64(), rate(readable));
    println!("T4b in layers in the bucket: {:.2} s, {:.0} MiB/s", in_layers.as_secs_f64(), rate(in_layers));
    Ok(())
}
