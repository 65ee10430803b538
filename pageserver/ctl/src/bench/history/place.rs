//! An engine over a directory: a counting bucket, a cache, tenants; and timelines that begin with nothing in them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use codec::checkpoint::{CHECKPOINT_SIZE, CheckPoint};
use codec::control::{catalog_version, format_version};
use codec::index_part::{IndexPart, TimelineMetadata, Unknown};
use codec::page::ZERO_PAGE;
use engine::bucket::DirectoryBucket;
use engine::budget::TailBudget;
use engine::chunk_cache::{CacheLimits, ChunkCache};
use engine::claim::Claim;
use engine::clock::SystemClock;
use engine::disk::LocalDisk;
use engine::index_keeper::{IndexKeeper, metadata_of, vanilla_extension};
use engine::layer_write::LayerStore;
use engine::ports::Bucket;
use engine::tenant::Tenants;
use engine::timeline::TimelinePolicy;
use model::{
    Key, LayerName, Lsn, PgMajor, SlruKind, TenantId, TenantShardId, TimelineId, Tli, WalSegmentSize,
};

use super::counting::CountingBucket;

pub const PG: PgMajor = PgMajor::V17;
pub const SYSTEM: u64 = 7_000_000_000_000_000_001;
/// Where every history begins.
pub const BASE: Lsn = Lsn(0x0200_0028);
pub const TENANT: TenantId = TenantId([1; 16]);
pub const MAIN: TimelineId = TimelineId([2; 16]);

/// How much an engine may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of tails.
    pub tail_memory: usize,
    /// What the cache holds.
    pub cache: CacheLimits,
    /// How long each GET takes longer.
    pub get_delay: Duration,
}

/// An engine, and the directory that all it does is in.
pub struct Place {
    pub bucket: Arc<CountingBucket>,
    pub cache: Arc<ChunkCache>,
    pub tenants: Tenants,
    directory: Arc<tempfile::TempDir>,
}

fn control_file() -> Vec<u8> {
    let mut out = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &SYSTEM.to_le_bytes());
    put(8, &format_version(PG).to_le_bytes());
    put(12, &catalog_version(PG).to_le_bytes());
    put(16, &6u32.to_le_bytes());
    put(204, &8u32.to_le_bytes());
    put(208, &1_234_567.0f64.to_le_bytes());
    put(216, &8192u32.to_le_bytes());
    put(220, &131_072u32.to_le_bytes());
    put(224, &8192u32.to_le_bytes());
    put(228, &(16u32 << 20).to_le_bytes());
    let crc = crc32c::crc32c(&out[..288]);
    out[288..292].copy_from_slice(&crc.to_le_bytes());
    out
}

fn checkpoint() -> Result<[u8; CHECKPOINT_SIZE]> {
    let zero = CheckPoint::decode(PG, &[0; CHECKPOINT_SIZE])?;
    let checkpoint = CheckPoint {
        redo: BASE,
        tli: Tli(1),
        prev_tli: Tli(1),
        next_xid: 1000,
        next_oid: 20_000,
        next_multi: 1,
        oldest_xid: 3,
        oldest_multi: 1,
        ..zero
    };
    Ok(checkpoint.encode(PG))
}

/// The index of a timeline that begins at [`BASE`].
pub fn empty_index() -> IndexPart {
    let metadata = TimelineMetadata {
        disk_consistent_lsn: BASE,
        prev_record_lsn: None,
        ancestor_timeline: None,
        ancestor_lsn: Lsn(0),
        latest_gc_cutoff_lsn: BASE,
        initdb_lsn: BASE,
        pg_version: PG,
        unknown: Unknown::new(),
    };
    let mut extension = vanilla_extension(SYSTEM, WalSegmentSize::DEFAULT, false, Tli(1), BASE);
    extension.readable_from = BASE;
    IndexPart::new(metadata, Some(extension))
}

impl Place {
    /// An engine in a new directory below `work`.
    pub fn new(work: &Path, limits: &Limits, policy: TimelinePolicy) -> Result<Place> {
        let directory = tempfile::tempdir_in(work).context("cannot make a directory to work in")?;
        Place::over(Arc::new(directory), limits, policy)
    }

    /// Another engine over the bucket of this one, which should have been shut down, with nothing of the bucket at hand.
    pub fn again(&self, limits: &Limits, policy: TimelinePolicy) -> Result<Place> {
        Place::over(Arc::clone(&self.directory), limits, policy)
    }

    fn over(directory: Arc<tempfile::TempDir>, limits: &Limits, policy: TimelinePolicy) -> Result<Place> {
        let inner = Arc::new(DirectoryBucket::open(directory.path().join("bucket"))?);
        let bucket = Arc::new(CountingBucket::new(inner, limits.get_delay));
        let shared: Arc<dyn Bucket> = Arc::clone(&bucket) as Arc<dyn Bucket>;
        let files = Arc::new(LocalDisk::new(directory.path().join("cache")));
        let cache = ChunkCache::new(Arc::clone(&shared), files, limits.cache)?;
        let budget = Arc::new(TailBudget::new(limits.tail_memory));
        let tenants = Tenants::new(shared, Arc::clone(&cache), budget, policy, Arc::new(SystemClock));
        Ok(Place { bucket, cache, tenants, directory })
    }

    /// Puts a timeline into the bucket that has nothing in it but counters. The tenant must not be attached.
    pub async fn make_timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<()> {
        let shard = TenantShardId::unsharded(tenant);
        let bucket: Arc<dyn Bucket> = Arc::clone(&self.bucket) as Arc<dyn Bucket>;
        let claim = Claim::take(Arc::clone(&bucket), shard).await?;
        let store = LayerStore::new(bucket, Arc::clone(&self.cache), claim.clone(), shard, timeline);
        let mut image = store.begin_image()?;
        let mut entries = vec![
            (Key::CHECKPOINT, checkpoint()?.to_vec()),
            (Key::CONTROL_FILE, control_file()),
            (Key::slru_page(SlruKind::Clog, 0, 0), ZERO_PAGE.to_vec()),
            (Key::slru_size(SlruKind::Clog, 0), 1u32.to_le_bytes().to_vec()),
        ];
        entries.sort_by_key(|(key, _)| *key);
        for (key, value) in entries {
            image.push(key, &value)?;
        }
        let written = store.finish_image(image, LayerName::Image { keys: Key::ALL, lsn: BASE }).await?;
        let mut part = empty_index();
        part.layer_metadata.insert(written.finished.name.clone(), metadata_of(&written, &claim, None));
        IndexKeeper::create(claim, timeline, part).await?;
        Ok(())
    }
}

/// Highest memory use of this process so far, in bytes, and the use now.
pub fn memory() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|number| number.parse().ok());
        kib.map_or(0, |kib: u64| kib << 10)
    };
    Ok((field("VmHWM:"), field("VmRSS:")))
}
