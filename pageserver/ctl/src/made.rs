//! Buckets for tests, written by the engine itself: a cluster's base, WAL on top of it, whatever compaction makes of both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use codec::directory::{DbDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::index_part::IndexPart;
use codec::page::{Page, ZERO_PAGE};
use codec::wal::build::{BlockDraft, RecordDraft, WalBuilder};
use engine::bucket::MemoryBucket;
use engine::budget::TailBudget;
use engine::claim::Claim;
use engine::clock::SystemClock;
use engine::collect::KeepHistory;
use engine::compact::CompactionPolicy;
use engine::index_keeper::{IndexKeeper, metadata_of};
use engine::layer_write::LayerStore;
use engine::ports::{Body, Bucket, ListRequest, PutIf};
use engine::synthetic::{SyntheticCluster, only_when_asked};
use engine::tenant::{BranchPoint, Maintenance, Tenants};
use engine::timeline::Timeline;
use model::{Fork, Key, LayerName, Lsn, PgMajor, RelTag, RmgrId, SlruKind, TenantShardId, TimelineId, Tli};

pub const PG: PgMajor = PgMajor::V17;
pub const BASE: Lsn = Lsn(0x0200_0028);
const CLUSTER: SyntheticCluster = SyntheticCluster::at(BASE);

pub fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

pub fn trunk() -> TimelineId {
    "ffeeddccbbaa99887766554433221100".parse().unwrap()
}

pub fn rel(number: u32) -> RelTag {
    RelTag { spc: 1663, db: 5, rel: 16_384 + number, fork: Fork::Main }
}

/// All that a cluster without relations consists of, by key.
pub fn base_entries() -> Vec<(Key, Vec<u8>)> {
    let databases = DbDirectory { databases: BTreeMap::from([((1663, 5), true), ((1664, 0), true)]) };
    let mut entries = vec![
        (Key::DB_DIRECTORY, databases.encode()),
        (Key::relation_map(1663, 5), vec![7; 524]),
        (Key::relation_map(1664, 0), vec![8; 524]),
        (Key::TWO_PHASE_DIRECTORY, TwoPhaseDirectory::default().encode(PG)),
    ];
    for slru in [SlruKind::Clog, SlruKind::MultiXactMembers, SlruKind::MultiXactOffsets] {
        entries.push((Key::slru_directory(slru), SlruSegmentDirectory { segments: [0].into() }.encode()));
        entries.push((Key::slru_page(slru, 0, 0), ZERO_PAGE.to_vec()));
        entries.push((Key::slru_size(slru, 0), 1u32.to_le_bytes().to_vec()));
    }
    entries.extend(CLUSTER.counters());
    entries.sort();
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
    let mut index = CLUSTER.index();
    let extension = index.palimpsest.as_mut().unwrap();
    extension.not_portable.clear();
    index
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
        let tenants = Tenants::new(
            bucket.clone(),
            cache,
            Arc::new(TailBudget::new(64 << 20)),
            only_when_asked(),
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
        History { wal: CLUSTER.wal(), fed: BASE, last: BASE, xid: 1_000 }
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
