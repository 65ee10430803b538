//! Buckets for tests, written by the engine itself: a cluster's base, WAL on top of it, whatever compaction makes of both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use codec::checkpoint::CheckPoint;
use codec::control::{catalog_version, format_version};
use codec::directory::{DbDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::index_part::{IndexPart, TimelineMetadata, Unknown};
use codec::page::{Page, ZERO_PAGE};
use codec::wal::build::{BlockDraft, RecordDraft, WalBuilder};
use engine::bucket::MemoryBucket;
use engine::budget::TailBudget;
use engine::claim::Claim;
use engine::clock::SystemClock;
use engine::collect::KeepHistory;
use engine::compact::CompactionPolicy;
use engine::index_keeper::{IndexKeeper, metadata_of, vanilla_extension};
use engine::layer_write::LayerStore;
use engine::ports::{Body, Bucket, ListRequest, PutIf};
use engine::tenant::{BranchPoint, Maintenance, Tenants};
use engine::timeline::{Timeline, TimelinePolicy};
use engine::wal_keeper::WalKeeping;
use model::{
    Fork, Key, LayerName, Lsn, PgMajor, RelTag, RmgrId, SlruKind, TenantShardId, TimelineId, Tli,
    WalSegmentSize,
};

pub const PG: PgMajor = PgMajor::V17;
pub const BASE: Lsn = Lsn(0x0200_0028);
const SYSTEM: u64 = 7_000_000_000_000_000_001;

pub fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

pub fn trunk() -> TimelineId {
    "ffeeddccbbaa99887766554433221100".parse().unwrap()
}

pub fn rel(number: u32) -> RelTag {
    RelTag { spc: 1663, db: 5, rel: 16_384 + number, fork: Fork::Main }
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

fn checkpoint() -> Vec<u8> {
    let zero = CheckPoint::decode(PG, &[0; 88]).unwrap();
    let point = CheckPoint {
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
    point.encode(PG).to_vec()
}

/// All that a cluster without relations consists of, by key.
pub fn base_entries() -> Vec<(Key, Vec<u8>)> {
    let databases = DbDirectory { databases: BTreeMap::from([((1663, 5), true), ((1664, 0), true)]) };
    let mut entries = vec![
        (Key::DB_DIRECTORY, databases.encode()),
        (Key::relation_map(1663, 5), vec![7; 524]),
        (Key::relation_map(1664, 0), vec![8; 524]),
        (Key::TWO_PHASE_DIRECTORY, TwoPhaseDirectory::default().encode(PG)),
        (Key::CHECKPOINT, checkpoint()),
        (Key::CONTROL_FILE, control_file()),
    ];
    for slru in [SlruKind::Clog, SlruKind::MultiXactMembers, SlruKind::MultiXactOffsets] {
        entries.push((Key::slru_directory(slru), SlruSegmentDirectory { segments: [0].into() }.encode()));
        entries.push((Key::slru_page(slru, 0, 0), ZERO_PAGE.to_vec()));
        entries.push((Key::slru_size(slru, 0), 1u32.to_le_bytes().to_vec()));
    }
    entries.sort_by_key(|(key, _)| *key);
    entries
}

/// Writes layers as an owner.
pub struct Writer {
    pub claim: Claim,
    pub store: LayerStore,
    _disk: tempfile::TempDir,
}

impl Writer {
    /// Takes the next generation of the tenant.
    pub async fn take(bucket: &Arc<dyn Bucket>, timeline: TimelineId) -> Writer {
        let claim = Claim::take(bucket.clone(), tenant()).await.unwrap();
        let (disk, cache) = crate::buckets::temporary_cache(bucket, 64 << 20, 1 << 30).unwrap();
        let store = LayerStore::new(bucket.clone(), cache, claim.clone(), tenant(), timeline);
        Writer { claim, store, _disk: disk }
    }

    pub async fn image(
        &self,
        index: &mut IndexPart,
        keys: model::KeyRange,
        lsn: Lsn,
        entries: &[(Key, Vec<u8>)],
    ) -> LayerName {
        let mut image = self.store.begin_image().unwrap();
        for (key, value) in entries {
            image.push(*key, value).unwrap();
        }
        let written = self.store.finish_image(image, LayerName::Image { keys, lsn }).await.unwrap();
        let name = written.finished.name.clone();
        index.layer_metadata.insert(name.clone(), metadata_of(&written, &self.claim, None));
        name
    }

    /// `versions`: key, LSN, encoded value.
    pub async fn delta(
        &self,
        index: &mut IndexPart,
        keys: model::KeyRange,
        lsns: model::LsnRange,
        versions: &[(Key, Lsn, Vec<u8>)],
    ) -> LayerName {
        let mut delta = self.store.begin_delta().unwrap();
        for (key, lsn, value) in versions {
            let will_init = codec::value::Value::decode(value).is_ok_and(|value| value.will_init());
            delta.push(*key, *lsn, will_init, value).unwrap();
        }
        let name = LayerName::Delta { keys, lsns };
        let written = self.store.finish_delta(delta, name, None).await.unwrap();
        let name = written.finished.name.clone();
        index.layer_metadata.insert(name.clone(), metadata_of(&written, &self.claim, None));
        name
    }
}

/// The index of a cluster that begins at [`BASE`], without layers. It says that Neon can serve it.
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
    extension.not_portable.clear();
    IndexPart::new(metadata, Some(extension))
}

/// A cluster without relations, in a bucket.
pub async fn make() -> Arc<dyn Bucket> {
    let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
    let writer = Writer::take(&bucket, trunk()).await;
    let mut part = empty_index();
    writer.image(&mut part, Key::ALL, BASE, &base_entries()).await;
    IndexKeeper::create(writer.claim, trunk(), part).await.unwrap();
    bucket
}

/// Serves the bucket.
pub struct Server {
    pub tenants: Tenants,
    _disk: tempfile::TempDir,
}

impl Server {
    pub async fn start(bucket: &Arc<dyn Bucket>) -> Server {
        let (disk, cache) = crate::buckets::temporary_cache(bucket, 64 << 20, 1 << 30).unwrap();
        let never = Duration::from_hours(1);
        let wal = WalKeeping {
            seal_age: never,
            idle_seal_age: never,
            validate_every: never,
            ..WalKeeping::default()
        };
        let policy = TimelinePolicy { wal, ..TimelinePolicy::default() };
        let tenants = Tenants::new(
            bucket.clone(),
            cache,
            Arc::new(TailBudget::new(64 << 20)),
            policy,
            Arc::new(SystemClock),
        );
        tenants.attach_all().await.unwrap();
        Server { tenants, _disk: disk }
    }

    pub fn timeline(&self, id: TimelineId) -> Timeline {
        self.tenants.timeline(tenant().tenant, id).unwrap()
    }

    /// Keeps so many bytes of history, and compacts until there is nothing left to do.
    pub async fn maintain(&self, id: TimelineId, keep: u64) -> Vec<&'static str> {
        let settings = Maintenance {
            keep: KeepHistory { interval: Duration::ZERO, bytes: keep },
            compaction: CompactionPolicy {
                little: 4 << 10,
                shelf_bytes: 64 << 10,
                layer_bytes: 32 << 10,
                job_bytes: 16 << 20,
                chain: 8,
                ..CompactionPolicy::default()
            },
            ..Maintenance::default()
        };
        let here = self.tenants.tenant(tenant().tenant).unwrap();
        let now = SystemTime::now();
        let done = self.tenants.maintain_now(&here, &self.timeline(id), &settings, now).await.unwrap();
        done.iter().map(|job| job.kind).collect()
    }

    pub async fn branch(&self, id: TimelineId, of: TimelineId, at: Lsn) -> Timeline {
        self.tenants.branch(tenant().tenant, id, of, BranchPoint::Lsn(at)).await.unwrap()
    }

    pub async fn stop(self) {
        self.tenants.shut_down(Duration::from_secs(10)).await;
    }
}

/// WAL, and how much of it was fed.
pub struct History {
    wal: WalBuilder,
    fed: Lsn,
    last: Lsn,
    xid: u32,
}

pub fn page_of(number: u64) -> Box<Page> {
    let mut page = Box::new(ZERO_PAGE);
    page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
    page[8_000..8_008].copy_from_slice(&number.to_le_bytes());
    page
}

impl History {
    pub fn new() -> History {
        let wal = WalBuilder::new(PG, WalSegmentSize::DEFAULT, SYSTEM, Tli(1), BASE, Lsn(0));
        History { wal, fed: BASE, last: BASE, xid: 1_000 }
    }

    /// A whole page, and a commit.
    pub fn write(&mut self, rel_number: u32, block: u32, number: u64) -> Lsn {
        let image = Some((page_of(number), true));
        let block = BlockDraft { id: 0, rel: rel(rel_number), block, will_init: false, image, data: vec![] };
        let draft = RecordDraft { blocks: vec![block], ..RecordDraft::new(RmgrId::XLOG, 0xB0, vec![]) };
        self.wal.push(&draft);
        let commit =
            RecordDraft { xid: self.xid, ..RecordDraft::new(RmgrId::XACT, 0, 1i64.to_le_bytes().to_vec()) };
        self.xid += 1;
        self.last = self.wal.push(&commit).1;
        self.last
    }

    pub async fn feed(&mut self, timeline: &Timeline) {
        let (from, to) =
            (self.fed.since(self.wal.base()) as usize, self.wal.end().since(self.wal.base()) as usize);
        let bytes = Bytes::copy_from_slice(&self.wal.bytes()[from..to]);
        timeline.append_wal(self.fed, Tli(1), bytes).await.unwrap();
        timeline.wait_for(self.last, Duration::from_secs(10)).await.unwrap();
        self.fed = self.wal.end();
    }
}

/// Paths of all objects below a prefix.
pub async fn paths(bucket: &Arc<dyn Bucket>, prefix: &str) -> Vec<String> {
    let listing = bucket.list(ListRequest { prefix, ..ListRequest::default() }).await.unwrap();
    listing.objects.into_iter().map(|object| object.path).collect()
}

/// The bucket as it is at this moment.
pub async fn copy(bucket: &Arc<dyn Bucket>) -> Arc<dyn Bucket> {
    let copied: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
    for path in paths(bucket, "").await {
        if let Ok(object) = bucket.get(&path, None).await {
            copied.put(&path, Body::Bytes(object.bytes), PutIf::Absent).await.unwrap();
        }
    }
    copied
}

/// Puts other bytes in an object's place, as a failing disk would.
pub async fn overwrite(bucket: &Arc<dyn Bucket>, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = match bucket.get(path, None).await {
        Ok(found) => found.bytes.to_vec(),
        Err(_) => Vec::new(),
    };
    change(&mut bytes);
    bucket.delete(&[path.to_owned()]).await.unwrap();
    bucket.put(path, Body::Bytes(bytes.into()), PutIf::Absent).await.unwrap();
}
