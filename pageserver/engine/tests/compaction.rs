//! Compaction and collection over a whole timeline: whatever is merged, imaged, trimmed or dropped, what can be read reads as before.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use codec::page::{Page, ZERO_PAGE};
use codec::wal::build::{BlockDraft, RecordDraft, WalBuilder};
use engine::as_of::ReadError;
use engine::bucket::MemoryBucket;
use engine::collect::KeepHistory;
use engine::compact::CompactionPolicy;
use engine::object_path::{ObjectPath, timeline_prefix};
use engine::ports::{Bucket, ListRequest};
use engine::sweep::find_orphans;
use engine::synthetic::SyntheticCluster;
use engine::tenant::{BranchPoint, Maintenance};
use engine::timeline::Timeline;
use model::{Fork, Key, LayerObjectName, Lsn, RelTag, RmgrId, TenantShardId, TimelineId, Tli};
use process::{Server, import};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const BASE: Lsn = Lsn(0x0200_0028);
const CLUSTER: SyntheticCluster = SyntheticCluster::at(BASE);
const BLOCKS: u32 = 40;

fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

fn main_timeline() -> TimelineId {
    "ffeeddccbbaa99887766554433221100".parse().unwrap()
}

fn rel(number: u32) -> RelTag {
    RelTag { spc: 1663, db: 5, rel: 16_384 + number, fork: Fork::Main }
}

/// A timeline with nothing in it but counters.
async fn make(bucket: &Arc<dyn Bucket>) {
    let clog = Key::slru_page(model::SlruKind::Clog, 0, 0);
    let clog_size = Key::slru_size(model::SlruKind::Clog, 0);
    let values = [(clog, ZERO_PAGE.to_vec()), (clog_size, 1u32.to_le_bytes().to_vec())];
    import(bucket, tenant(), main_timeline(), CLUSTER, values).await;
}

impl Server {
    fn timeline(&self, id: TimelineId) -> Timeline {
        self.tenants.timeline(tenant().tenant, id).unwrap()
    }

    async fn maintain(&self, id: TimelineId, settings: &Maintenance) -> Vec<&'static str> {
        let here = self.tenants.tenant(tenant().tenant).unwrap();
        let done =
            self.tenants.maintain_now(&here, &self.timeline(id), settings, SystemTime::now()).await.unwrap();
        done.iter().map(|job| job.kind).collect()
    }

    async fn stop(self) {
        self.tenants.shut_down(Duration::from_secs(10)).await;
    }
}

/// What a page is filled with: changes of one timeline, in order.
type Pages = BTreeMap<(u32, u32), Vec<(Lsn, u64)>>;

/// One line of history, and what must be read from it.
#[derive(Clone)]
struct History {
    id: TimelineId,
    wal: WalBuilder,
    fed: Lsn,
    pages: Pages,
    ends: Vec<Lsn>,
    xid: u32,
    page_of: fn(u64) -> Box<Page>,
}

fn page_of(number: u64) -> Box<Page> {
    let mut page = Box::new(ZERO_PAGE);
    page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
    page[8_000..8_008].copy_from_slice(&number.to_le_bytes());
    page
}

impl History {
    fn new() -> History {
        History {
            id: main_timeline(),
            fed: BASE,
            wal: CLUSTER.wal(),
            pages: BTreeMap::new(),
            ends: vec![],
            xid: 1_000,
            page_of,
        }
    }

    fn write(&mut self, rel_number: u32, block: u32, number: u64) {
        let image = Some(((self.page_of)(number), true));
        let block_draft =
            BlockDraft { id: 0, rel: rel(rel_number), block, will_init: false, image, data: vec![] };
        let draft = RecordDraft { blocks: vec![block_draft], ..RecordDraft::new(RmgrId::XLOG, 0xB0, vec![]) };
        let (_, end) = self.wal.push(&draft);
        self.pages.entry((rel_number, block)).or_default().push((end, number));
        self.ends.push(end);
    }

    fn commit(&mut self, time: i64) {
        let draft =
            RecordDraft { xid: self.xid, ..RecordDraft::new(RmgrId::XACT, 0, time.to_le_bytes().to_vec()) };
        self.xid += 1;
        let (_, end) = self.wal.push(&draft);
        self.ends.push(end);
    }

    async fn feed(&mut self, timeline: &Timeline) {
        let end = self.wal.end();
        let from = self.fed.since(self.wal.base()) as usize;
        let to = end.since(self.wal.base()) as usize;
        let bytes = Bytes::copy_from_slice(&self.wal.bytes()[from..to]);
        timeline.append_wal(self.fed, Tli(1), bytes).await.unwrap();
        timeline.wait_for(*self.ends.last().unwrap(), Duration::from_secs(10)).await.unwrap();
        self.fed = end;
    }

    /// Compares everything with the timeline as of these LSNs.
    async fn check(&self, timeline: &Timeline, at: impl IntoIterator<Item = Lsn>) {
        for lsn in at {
            let mut sizes: BTreeMap<u32, u32> = BTreeMap::new();
            for ((rel_number, block), versions) in &self.pages {
                let seen = versions.iter().rev().find(|(end, _)| *end <= lsn);
                let Some((end, number)) = seen else { continue };
                let size = sizes.entry(*rel_number).or_default();
                *size = (*size).max(block + 1);
                let page = timeline.page(rel(*rel_number), *block, lsn).await.unwrap_or_else(|error| {
                    panic!(
                        "{} block {block} of {rel_number} at {lsn}: {}",
                        timeline.id(),
                        engine::error_story::error_story(&error)
                    )
                });
                let found = u64::from_le_bytes(page[8_000..8_008].try_into().unwrap());
                assert_eq!(found, *number, "block {block} of {rel_number} at {lsn}, written at {end}");
            }
            for (rel_number, size) in sizes {
                assert_eq!(
                    timeline.rel_size(rel(rel_number), lsn).await.unwrap(),
                    Some(size),
                    "{rel_number} at {lsn}"
                );
            }
        }
    }
}

fn settings(bytes: u64) -> Maintenance {
    Maintenance {
        keep: KeepHistory { interval: Duration::ZERO, bytes },
        compaction: CompactionPolicy {
            little: 4 << 10,
            shelf_bytes: 64 << 10,
            layer_bytes: 32 << 10,
            job_bytes: 16 << 20,
            chain: 8,
            ..CompactionPolicy::default()
        },
        ..Maintenance::default()
    }
}

/// Objects of a timeline's layers in the bucket that its index does not name.
async fn unnamed(bucket: &Arc<dyn Bucket>, timeline: &Timeline) -> BTreeSet<String> {
    let prefix = timeline_prefix(tenant(), timeline.id());
    let listing = bucket.list(ListRequest { prefix: &prefix, ..ListRequest::default() }).await.unwrap();
    let part = timeline.index().part().await;
    let named: BTreeSet<String> = part
        .layer_metadata
        .iter()
        .map(|(name, metadata)| {
            let name = LayerObjectName { layer: name.clone(), generation: metadata.generation };
            ObjectPath::Layer { tenant: tenant(), timeline: timeline.id(), name }.to_string()
        })
        .collect();
    let paths: BTreeSet<String> = listing.objects.into_iter().map(|object| object.path).collect();
    for name in &named {
        assert!(paths.contains(name), "{name} is named and not there");
    }
    paths.into_iter().filter(|path| !path.contains("index_part") && !named.contains(path)).collect()
}

/// Until the objects of replaced layers are gone.
async fn reaped(bucket: &Arc<dyn Bucket>, timeline: &Timeline) {
    for _ in 0..200 {
        if unnamed(bucket, timeline).await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("still there: {:?}", unnamed(bucket, timeline).await);
}

fn some_of(random: &mut StdRng, lsns: &[Lsn], count: usize) -> Vec<Lsn> {
    (0..count.min(lsns.len())).map(|_| lsns[random.random_range(0..lsns.len())]).collect()
}

#[tokio::test]
async fn what_can_be_read_reads_the_same_whatever_is_merged_imaged_trimmed_or_dropped() {
    for seed in 0..6u64 {
        let mut random = StdRng::seed_from_u64(seed);
        let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        make(&bucket).await;
        let mut server = Server::start(&bucket).await;
        let mut main = History::new();
        let mut branches: Vec<(Lsn, History)> = Vec::new();
        let settings = settings([0, 20 << 10, 100 << 10][seed as usize % 3]);
        let mut kinds: BTreeSet<&str> = BTreeSet::new();
        let mut number = seed << 32;
        for round in 0..40 {
            let timeline = server.timeline(main.id);
            for _ in 0..random.random_range(5..40) {
                number += 1;
                // Some pages are hot.
                let block = if random.random_bool(0.5) {
                    random.random_range(0..3)
                } else {
                    random.random_range(0..BLOCKS)
                };
                main.write(random.random_range(0..4), block, number);
                main.commit(number as i64);
            }
            main.feed(&timeline).await;
            timeline.checkpoint().await.unwrap();
            if round % 9 == 4 {
                let id: TimelineId = format!("{:032x}", 0xb0 + round).parse().unwrap();
                let at = timeline.last_record_lsn();
                server.tenants.branch(tenant().tenant, id, main.id, BranchPoint::Lsn(at)).await.unwrap();
                branches.push((at, History { id, ..main.clone() }));
            }
            kinds.extend(server.maintain(main.id, &settings).await);
            for (_, branch) in &mut branches {
                kinds.extend(server.maintain(branch.id, &settings).await);
            }
            let retention = timeline.retention();
            let kept: Vec<Lsn> = main.ends.iter().copied().filter(|lsn| retention.keeps(*lsn)).collect();
            main.check(&timeline, some_of(&mut random, &kept, 6)).await;
            main.check(&timeline, [retention.cutoff, timeline.last_record_lsn()]).await;
            for (at, branch) in &branches {
                branch.check(&server.timeline(branch.id), [*at]).await;
            }
            if random.random_bool(0.1) && branches.len() > 1 {
                let (_, gone) = branches.remove(0);
                server.tenants.delete_timeline(tenant().tenant, gone.id, async {}).await.unwrap();
            }
            if random.random_bool(0.1) {
                server.stop().await;
                server = Server::start(&bucket).await;
            }
        }
        let timeline = server.timeline(main.id);
        if let Some(gone) = main.ends.iter().find(|lsn| !timeline.retention().keeps(**lsn)) {
            let error = timeline.page(rel(0), 0, *gone).await.unwrap_err();
            assert!(matches!(error, ReadError::BehindCutoff { .. }), "{error}");
        }
        let deepest = timeline.layers().len();
        assert!(deepest < 60, "{deepest} layers");
        assert!(kinds.contains("merge") && kinds.contains("trim"), "seed {seed}: {kinds:?}");
        reaped(&bucket, &timeline).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_layer_of_an_owner_before_that_was_replaced_is_not_swept_while_somebody_reads_it() {
    let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
    make(&bucket).await;
    let mut main = History::new();
    let server = Server::start(&bucket).await;
    let timeline = server.timeline(main.id);
    for number in 0..60 {
        main.write(0, number as u32 % BLOCKS, number);
        main.commit(number as i64);
        if number % 10 == 9 {
            main.feed(&timeline).await;
            timeline.checkpoint().await.unwrap();
        }
    }
    server.stop().await;

    let server = Server::start(&bucket).await;
    let timeline = server.timeline(main.id);
    let read = timeline.layers();
    assert!(!server.maintain(main.id, &settings(0)).await.is_empty());
    let here = server.tenants.tenant(tenant().tenant).unwrap();
    let sweep = || server.tenants.sweep_tenant(&here, Duration::ZERO, SystemTime::now());
    sweep().await.unwrap();
    // By the index alone they could go.
    let (own, part) = (here.claim().generation(), timeline.index().part().await);
    let now = SystemTime::now();
    let found =
        find_orphans(&*bucket, tenant(), main.id, own, Some(&part), Duration::ZERO, now).await.unwrap();
    assert!(read.iter().any(|layer| found.orphans.iter().any(|orphan| orphan == layer.object_path())));
    for layer in &read {
        let path = layer.object_path();
        assert!(bucket.head(path).await.is_ok(), "{path} was swept");
    }
    // Nobody reads them any more: whoever comes first deletes them.
    drop(read);
    sweep().await.unwrap();
    reaped(&bucket, &timeline).await;
    main.check(&timeline, [timeline.last_record_lsn()]).await;
    server.stop().await;
}

/// A page that does not compress, so that a relation stands on several shelves.
fn noisy_page(number: u64) -> Box<Page> {
    let mut page = page_of(number);
    StdRng::seed_from_u64(number).fill(&mut page[24..8_000]);
    page
}

#[tokio::test]
async fn pages_stay_whose_relation_has_its_size_on_a_shelf_that_was_collected_further() {
    for seed in 0..4u64 {
        let mut random = StdRng::seed_from_u64(seed);
        let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
        make(&bucket).await;
        let server = Server::start(&bucket).await;
        let mut main = History::new();
        main.page_of = noisy_page;
        let timeline = server.timeline(main.id);
        let mut number = seed << 32;
        for round in 0..60 {
            // Now one part of the relation is written to and now another, so that shelves are not collected up to the same LSN.
            let part = random.random_range(0..4) * 40;
            for _ in 0..random.random_range(5..25) {
                number += 1;
                main.write(0, part + random.random_range(0..40), number);
                main.commit(number as i64);
            }
            main.feed(&timeline).await;
            timeline.checkpoint().await.unwrap();
            server.maintain(main.id, &settings(if round % 2 == 0 { 200 << 10 } else { 100 << 10 })).await;
            main.check(&timeline, [timeline.retention().cutoff, timeline.last_record_lsn()]).await;
        }
        server.stop().await;
    }
}
