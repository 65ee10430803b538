//! Archiving, unarchiving and detaching timelines: what could be read before can be read after, whatever breaks off in between.

mod process;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use codec::index_part::{Source, Unknown};
use codec::page::ZERO_PAGE;
use codec::tenant_manifest::TenantManifest;
use codec::wal::build::{BlockDraft, RecordDraft, WalBuilder};
use engine::bucket::MemoryBucket;
use engine::bucket::faulty::{Fault, FaultyBucket, Operation};
use engine::object_path::{manifest_prefix, timeline_prefix, wal_prefix};
use engine::ports::{Bucket, ListRequest};
use engine::synthetic::SyntheticCluster;
use engine::tenant::{BranchPoint, ChangeError, NotFound, TimelineView};
use engine::timeline::Timeline;
use model::{Fork, Key, Lsn, RelTag, RmgrId, SlruKind, TenantShardId, TimelineId, Tli};
use process::{Server, import};

const BASE: Lsn = Lsn(0x0200_0100);
const CLUSTER: SyntheticCluster = SyntheticCluster::at(BASE);
const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16_384, fork: Fork::Main };
/// Blocks that records write to.
const BLOCKS: u64 = 7;
const MAIN: TimelineId = TimelineId([0x11; 16]);

fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

fn id(n: u8) -> TimelineId {
    TimelineId([n; 16])
}

/// A bucket, and the logs of what feeds its timelines.
struct World {
    faulty: Arc<FaultyBucket>,
    bucket: Arc<dyn Bucket>,
    logs: HashMap<TimelineId, WalBuilder>,
    written: u64,
}

/// The sums of what can be read: by timeline, LSN and key.
type Readable = BTreeMap<(TimelineId, Lsn, Key), Option<u32>>;

/// Fails with the first things that differ.
#[track_caller]
fn assert_same(found: &Readable, expected: &Readable) {
    let places = found.keys().chain(expected.keys()).filter(|place| found.get(place) != expected.get(place));
    let differ: Vec<_> = places.take(5).map(|place| (place, found.get(place), expected.get(place))).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

impl World {
    /// A timeline whose base holds some keys of all kinds.
    async fn new() -> World {
        let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        let bucket: Arc<dyn Bucket> = faulty.clone();
        let origin = (Key::replication_origin(1), 77u64.to_be_bytes().to_vec());
        import(&bucket, tenant(), MAIN, CLUSTER, [origin]).await;
        World { faulty, bucket, logs: HashMap::from([(MAIN, CLUSTER.wal())]), written: 0 }
    }

    async fn start(&self) -> Server {
        Server::start(&self.bucket).await
    }

    /// Makes a record: images of blocks, and now and then where a replication origin is, or a commit.
    fn record(&mut self) -> RecordDraft {
        self.written += 1;
        let n = self.written;
        let xid = 2000 + n as u32;
        let base = |rmgr, info, main| RecordDraft { xid, ..RecordDraft::new(rmgr, info, main) };
        match n % 5 {
            1 => {
                let main = [&n.to_le_bytes()[..], &[(n % 3) as u8 + 1, 0, 1, 0, 0, 0, 0, 0]].concat();
                base(RmgrId::REPL_ORIGIN, 0x00, main)
            }
            2 => base(RmgrId::XACT, 0x00, (n as i64 * 1000).to_le_bytes().to_vec()),
            _ => {
                let blocks = [n % BLOCKS, (n * 3 + 1) % BLOCKS];
                let mut blocks: Vec<u64> = blocks.to_vec();
                blocks.dedup();
                let drafts = blocks.iter().enumerate().map(|(place, block)| {
                    let mut page = Box::new(ZERO_PAGE);
                    page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
                    page[8000..8008].copy_from_slice(&n.to_le_bytes());
                    BlockDraft {
                        id: place as u8,
                        rel: REL,
                        block: *block as u32,
                        will_init: false,
                        image: Some((page, true)),
                        data: Vec::new(),
                    }
                });
                RecordDraft { blocks: drafts.collect(), ..base(RmgrId::XLOG, 0xB0, Vec::new()) }
            }
        }
    }

    /// Lets a timeline receive and ingest records; answers where each ends.
    async fn grow(&mut self, server: &Server, timeline: TimelineId, count: usize) -> Vec<Lsn> {
        let ends: Vec<Lsn> = (0..count)
            .map(|_| {
                let record = self.record();
                self.logs.get_mut(&timeline).unwrap().push(&record).1
            })
            .collect();
        self.send(server, timeline).await;
        ends
    }

    /// Lets a timeline receive what it lacks of its log.
    async fn send(&self, server: &Server, timeline: TimelineId) {
        let (open, log) = (server.open(timeline), &self.logs[&timeline]);
        let from = open.received();
        let bytes = Bytes::copy_from_slice(&log.bytes()[from.since(log.base()) as usize..]);
        if !bytes.is_empty() {
            open.append_wal(from, Tli(1), bytes).await.unwrap();
        }
        open.wait_for(log.end(), Duration::from_secs(10)).await.unwrap();
    }

    async fn branch(&mut self, server: &Server, new: TimelineId, parent: TimelineId, at: Lsn) -> Timeline {
        let point = BranchPoint::Lsn(at);
        let made = server.tenants.branch(tenant().tenant, new, parent, point).await.unwrap();
        self.logs.insert(new, CLUSTER.wal_from(at, Lsn(8)));
        made
    }

    async fn paths(&self, prefix: &str) -> Vec<String> {
        let listing = self.bucket.list(ListRequest { prefix, ..ListRequest::default() }).await.unwrap();
        listing.objects.into_iter().map(|object| object.path).collect()
    }

    async fn manifest(&self) -> TenantManifest {
        let newest = self.paths(&manifest_prefix(tenant())).await.pop().unwrap();
        TenantManifest::from_json(&self.bucket.get(&newest, None).await.unwrap().bytes).unwrap()
    }
}

/// Keys that tests look at.
fn keys() -> Vec<Key> {
    let mut keys: Vec<Key> = (0..BLOCKS as u32).map(|block| Key::rel_block(REL, block)).collect();
    keys.extend([Key::rel_size(REL), Key::CHECKPOINT, Key::CONTROL_FILE, Key::rel_directory_entry(REL)]);
    keys.extend((1..4).map(Key::replication_origin));
    keys.push(Key::slru_page(SlruKind::Clog, 0, 0));
    keys
}

impl Server {
    fn open(&self, timeline: TimelineId) -> Timeline {
        self.tenants.timeline(tenant().tenant, timeline).unwrap()
    }

    async fn archive(&self, timeline: TimelineId) -> Result<Option<String>, ChangeError> {
        self.tenants.archive_timeline(tenant().tenant, timeline, async |_| None).await
    }

    async fn unarchive(&self, timeline: TimelineId) -> Result<Timeline, ChangeError> {
        self.tenants.unarchive_timeline(tenant().tenant, timeline).await
    }

    async fn read(&self, timelines: &[TimelineId], lsns: &[Lsn]) -> Readable {
        let mut readable = Readable::new();
        for timeline in timelines {
            let open = self.open(*timeline);
            for lsn in lsns.iter().filter(|lsn| **lsn <= open.last_record_lsn()) {
                for key in keys() {
                    let value = open.at(*lsn).snapshot.get(key, *lsn).await.unwrap();
                    // An origin that is empty is none.
                    let value = value.filter(|value| key.is_inherited() || !value.is_empty());
                    readable.insert((*timeline, *lsn, key), value.map(|value| crc32c::crc32c(&value)));
                }
            }
        }
        readable
    }

    fn is_archived(&self, timeline: TimelineId) -> bool {
        matches!(
            self.tenants.timeline(tenant().tenant, timeline),
            Err(NotFound::Archived(archived)) if archived == timeline
        )
    }
}

#[tokio::test]
async fn an_archived_timeline_is_in_the_bucket_only_and_comes_back_as_it_was() {
    let mut world = World::new().await;
    let a = world.start().await;
    let mut lsns = world.grow(&a, MAIN, 10).await;
    a.open(MAIN).checkpoint().await.unwrap();
    lsns.extend(world.grow(&a, MAIN, 10).await);
    let before = a.read(&[MAIN], &lsns).await;
    let open = a.open(MAIN);
    assert!(a.tenants.tenant(tenant().tenant).unwrap().archived().is_empty());
    a.archive(MAIN).await.unwrap();
    assert!(a.is_archived(MAIN) && open.is_closed());
    assert!(world.paths(&wal_prefix(tenant(), MAIN)).await.is_empty(), "all of it is in layers");
    let view = a.tenants.tenant(tenant().tenant).unwrap().views().pop().unwrap().1;
    let TimelineView::Archived(archived) = view else { panic!("it is archived") };
    assert_eq!(archived.disk_consistent_lsn, *lsns.last().unwrap());
    let offloaded = world.manifest().await.offloaded_timelines;
    assert_eq!((offloaded[0].timeline_id, offloaded[0].ancestor_retain_lsn), (MAIN, None));
    let details = offloaded[0].palimpsest.as_ref().unwrap();
    assert_eq!((details.bytes, details.layers), (archived.bytes, archived.layers as u64));
    assert!(details.bytes > 0 && details.layers == 3, "{details:?}");
    // Again is no error, and neither of the next owners opens it.
    a.archive(MAIN).await.unwrap();
    let before_b = world.faulty.requests().len();
    let b = world.start().await;
    assert!(b.is_archived(MAIN));
    let written = world.faulty.requests().split_off(before_b);
    let written = written.iter().filter(|(op, path)| *op == Operation::Put && !path.contains("claims"));
    assert_eq!(written.count(), 0);
    let c = world.start().await;
    c.unarchive(MAIN).await.unwrap();
    assert_same(&c.read(&[MAIN], &lsns).await, &before);
    assert!(world.manifest().await.offloaded_timelines.is_empty());
    // It goes on, also for the owner after that.
    lsns.extend(world.grow(&c, MAIN, 10).await);
    c.open(MAIN).seal_now().await.unwrap();
    let before = c.read(&[MAIN], &lsns).await;
    let d = world.start().await;
    assert_same(&d.read(&[MAIN], &lsns).await, &before);
    d.unarchive(MAIN).await.unwrap();
}

#[tokio::test]
async fn branches_are_archived_first_and_ancestors_unarchived_first() {
    let mut world = World::new().await;
    let a = world.start().await;
    let lsns = world.grow(&a, MAIN, 10).await;
    world.branch(&a, id(2), MAIN, lsns[4]).await;
    let refused = a.archive(MAIN).await;
    assert!(matches!(refused, Err(ChangeError::HasOpenChildren(..))), "{refused:?}");
    a.archive(id(2)).await.unwrap();
    assert_eq!(world.manifest().await.offloaded_timelines[0].ancestor_retain_lsn, Some(lsns[4]));
    let point = BranchPoint::Lsn(lsns[4]);
    let again = a.tenants.branch(tenant().tenant, id(2), MAIN, point).await.err().unwrap();
    assert!(matches!(again, ChangeError::NotFound(NotFound::Archived(_))), "{again:?}");
    let other =
        a.tenants.branch(tenant().tenant, id(2), MAIN, BranchPoint::Lsn(lsns[5])).await.err().unwrap();
    assert!(matches!(other, ChangeError::Conflict(_)), "{other:?}");
    a.archive(MAIN).await.unwrap();
    let from_archived = a.tenants.branch(tenant().tenant, id(3), MAIN, point).await.err().unwrap();
    assert!(matches!(from_archived, ChangeError::NotFound(NotFound::Archived(MAIN))), "{from_archived:?}");
    for server in [a, world.start().await] {
        let refused = server.unarchive(id(2)).await.err().unwrap();
        assert!(matches!(refused, ChangeError::ArchivedAncestor(_, MAIN)), "{refused:?}");
    }
    let b = world.start().await;
    b.unarchive(MAIN).await.unwrap();
    b.unarchive(id(2)).await.unwrap();
    world.grow(&b, id(2), 5).await;
    // An archived one is deleted like any other, and its ancestor only after it.
    b.archive(id(2)).await.unwrap();
    let refused = b.tenants.delete_timeline(tenant().tenant, MAIN, async {}).await;
    assert!(matches!(refused, Err(ChangeError::HasChildren(..))), "{refused:?}");
    b.tenants.delete_timeline(tenant().tenant, id(2), async {}).await.unwrap();
    assert!(world.manifest().await.offloaded_timelines.is_empty());
    assert!(world.paths(&timeline_prefix(tenant(), id(2))).await.is_empty());
    b.tenants.delete_timeline(tenant().tenant, MAIN, async {}).await.unwrap();
}

#[tokio::test]
async fn the_slot_of_a_source_is_dropped_after_the_index_says_archived_and_looked_for_until_it_is() {
    let mut world = World::new().await;
    let a = world.start().await;
    world.grow(&a, MAIN, 5).await;
    let source = Source {
        conninfo: "host=db".into(),
        slot: Some("palimpsest".into()),
        paused: false,
        unknown: Unknown::new(),
    };
    let stored = source.clone();
    a.open(MAIN)
        .index()
        .update(|part| part.palimpsest.as_mut().unwrap().source = Some(stored))
        .await
        .unwrap();
    let before = world.faulty.requests().len();
    let faulty = world.faulty.clone();
    let leave = async |left: Source| {
        assert_eq!(left, source);
        let requests = faulty.requests().split_off(before);
        let put =
            requests.iter().rposition(|(op, path)| *op == Operation::Put && path.contains("index_part"));
        let listed =
            requests.iter().rposition(|(op, path)| *op == Operation::List && path.contains("claims"));
        assert!(put < listed, "{requests:?}");
        Some("the slot remains".to_owned())
    };
    let remains = a.tenants.archive_timeline(tenant().tenant, MAIN, leave).await.unwrap();
    assert_eq!(remains.as_deref(), Some("the slot remains"));
    let left = |server: &Server| server.tenants.tenant(tenant().tenant).unwrap().archived()[0].left.clone();
    assert_eq!(left(&a).as_ref(), Some(&source));
    let b = world.start().await;
    assert_eq!(left(&b).as_ref(), Some(&source), "the next owner looks for it again");
    b.unarchive(MAIN).await.unwrap();
    b.archive(MAIN).await.unwrap();
    assert_eq!(left(&b), None);
    let c = world.start().await;
    let never = async |_| panic!("nothing is left");
    c.tenants.archive_timeline(tenant().tenant, MAIN, never).await.unwrap();
    c.unarchive(MAIN).await.unwrap();
    assert_eq!(c.open(MAIN).index().source().await.unwrap().0, source, "it can be followed again");
}

/// Every place where a request can fail on the way of `act`, each with a new world: fails there, and says with what state the world is left.
async fn broken_off_everywhere<F: AsyncFn(&mut World, &Server) -> bool>(
    prepare: impl AsyncFn(&mut World) -> Server,
    act: F,
    check: impl AsyncFn(&mut World, Server),
) {
    for fault in ["fail", "lose", "late"] {
        for operation in [Operation::Put, Operation::List, Operation::Get, Operation::Delete] {
            for skipped in 0.. {
                let mut world = World::new().await;
                let server = prepare(&mut world).await;
                // Requests before the one that fails are let through.
                for _ in 0..skipped {
                    world.faulty.once(operation, "", Fault::Slow(Duration::ZERO));
                }
                world.faulty.once(
                    operation,
                    "",
                    match fault {
                        "fail" => Fault::Fail,
                        "lose" => Fault::LoseAnswer,
                        _ if matches!(operation, Operation::Put | Operation::Delete) => Fault::Late,
                        _ => break,
                    },
                );
                let before = world.faulty.requests().len();
                let went_well = act(&mut world, &server).await;
                let count = world
                    .faulty
                    .requests()
                    .split_off(before)
                    .iter()
                    .filter(|(op, _)| *op == operation)
                    .count();
                // Whatever was not used up must not hit what follows.
                world.faulty.forget();
                check(&mut world, server).await;
                if went_well && count <= skipped {
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn archiving_that_breaks_off_anywhere_loses_nothing_and_goes_on_here_or_with_the_next_owner() {
    broken_off_everywhere(
        async |world| {
            let a = world.start().await;
            world.grow(&a, MAIN, 8).await;
            a
        },
        async |_, server| server.archive(MAIN).await.is_ok(),
        async |world, a| {
            let lsns: Vec<Lsn> = vec![world.logs[&MAIN].end()];
            drop(a);
            let b = world.start().await;
            world.faulty.land_late().await;
            if !b.is_archived(MAIN) {
                // What was not in the bucket was not reported to the source, which has it yet.
                world.send(&b, MAIN).await;
            }
            b.archive(MAIN).await.unwrap();
            assert!(b.is_archived(MAIN));
            assert_eq!(world.manifest().await.offloaded_timelines.len(), 1);
            let c = world.start().await;
            assert!(c.is_archived(MAIN));
            c.unarchive(MAIN).await.unwrap();
            assert_eq!(c.open(MAIN).last_record_lsn(), lsns[0]);
            let page = c.read(&[MAIN], &lsns).await;
            assert!(page.values().any(Option::is_some));
        },
    )
    .await;
}

#[tokio::test]
async fn unarchiving_that_breaks_off_anywhere_loses_nothing_and_goes_on_here_or_with_the_next_owner() {
    for with_the_next in [false, true] {
        broken_off_everywhere(
            async |world| {
                let a = world.start().await;
                world.grow(&a, MAIN, 8).await;
                a.archive(MAIN).await.unwrap();
                world.start().await
            },
            async |_, server| server.unarchive(MAIN).await.is_ok(),
            async |world, mut server| {
                world.faulty.land_late().await;
                if with_the_next {
                    server = world.start().await;
                }
                server.unarchive(MAIN).await.unwrap();
                assert!(world.paths(&manifest_prefix(tenant())).await.len() <= 3);
                assert!(world.manifest().await.offloaded_timelines.is_empty());
                let end = world.logs[&MAIN].end();
                assert_eq!(server.open(MAIN).last_record_lsn(), end);
                let ends = world.grow(&server, MAIN, 3).await;
                server.open(MAIN).seal_now().await.unwrap();
                let next = world.start().await;
                assert_eq!(next.open(MAIN).last_record_lsn(), ends[2]);
            },
        )
        .await;
    }
}

// Detaching from ancestors

const BRANCH: TimelineId = TimelineId([2; 16]);
const BELOW: TimelineId = TimelineId([3; 16]);
const ABOVE: TimelineId = TimelineId([4; 16]);
const ARCHIVED: TimelineId = TimelineId([5; 16]);

/// A timeline with layers below, across and above the point where a branch begins, and other branches on both sides of it. Answers all ends of records.
async fn family(world: &mut World, server: &Server) -> Vec<Lsn> {
    let mut lsns = world.grow(server, MAIN, 6).await;
    server.open(MAIN).checkpoint().await.unwrap();
    lsns.extend(world.grow(server, MAIN, 10).await);
    server.open(MAIN).checkpoint().await.unwrap();
    lsns.extend(world.grow(server, MAIN, 4).await);
    for (timeline, at) in [(BRANCH, 10), (BELOW, 4), (ABOVE, 13), (ARCHIVED, 7)] {
        world.branch(server, timeline, MAIN, lsns[at]).await;
    }
    for timeline in [BRANCH, BELOW, ABOVE, ARCHIVED] {
        lsns.extend(world.grow(server, timeline, 5).await);
        server.open(timeline).seal_now().await.unwrap();
    }
    server.open(MAIN).seal_now().await.unwrap();
    lsns.sort_unstable();
    lsns.dedup();
    lsns
}

impl Server {
    async fn detach(&self, timeline: TimelineId) -> Result<Vec<TimelineId>, ChangeError> {
        self.tenants.detach_ancestor(tenant().tenant, timeline).await
    }

    async fn delete(&self, timeline: TimelineId) -> Result<(), ChangeError> {
        self.tenants.delete_timeline(tenant().tenant, timeline, async {}).await
    }

    fn ancestor_of(&self, timeline: TimelineId) -> Option<TimelineId> {
        self.open(timeline).ancestor().map(|(ancestor, _)| ancestor)
    }

    /// Nothing hangs on the main timeline any more but what began above the branch.
    async fn check_detached(&self) {
        assert_eq!(self.ancestor_of(BRANCH), None);
        assert_eq!(self.ancestor_of(BELOW), Some(BRANCH));
        assert_eq!(self.ancestor_of(ABOVE), Some(MAIN));
        let archived = self.tenants.tenant(tenant().tenant).unwrap().archived();
        assert_eq!(archived[0].ancestor.map(|(ancestor, _)| ancestor), Some(BRANCH));
        for timeline in [MAIN, BRANCH, BELOW, ABOVE] {
            assert_eq!(self.open(timeline).index().part().await.gc_blocking, None);
        }
    }
}

#[tokio::test]
async fn a_detached_branch_and_all_others_read_as_before_and_its_ancestor_can_go() {
    let mut world = World::new().await;
    let a = world.start().await;
    let lsns = family(&mut world, &a).await;
    let branched_at = a.open(BRANCH).ancestor().unwrap().1;
    let family = [MAIN, BRANCH, BELOW, ABOVE];
    let before = a.read(&family, &lsns).await;
    let of_archived = a.read(&[ARCHIVED], &lsns).await;
    a.archive(ARCHIVED).await.unwrap();
    let reader = a.open(BRANCH).at(branched_at);
    assert_eq!(a.detach(BRANCH).await.unwrap(), [BELOW, ARCHIVED]);
    a.check_detached().await;
    assert_same(&a.read(&family, &lsns).await, &before);
    // Who read before reads on, and asking again changes nothing.
    let key = Key::rel_block(REL, 1);
    let value = reader.snapshot.get(key, branched_at).await.unwrap();
    assert_eq!(value.map(|value| crc32c::crc32c(&value)), before[&(BRANCH, branched_at, key)]);
    assert_eq!(a.detach(BRANCH).await.unwrap(), [BELOW, ARCHIVED]);
    assert!(matches!(a.detach(MAIN).await, Err(ChangeError::NoAncestor(MAIN))));
    let part = a.open(BRANCH).index().part().await;
    let (from, at, _) = part.lineage.original_ancestor.clone().unwrap();
    assert_eq!((from, at), (MAIN, branched_at));
    assert!(
        part.layer_metadata
            .keys()
            .all(|name| name.lsns().end <= branched_at.add(1) || name.lsns().start > branched_at)
    );
    assert_eq!(a.open(BELOW).index().part().await.lineage.reparenting_history, [MAIN]);
    // A branch that was made before is the same branch.
    let point = BranchPoint::Lsn(branched_at);
    assert_eq!(a.tenants.branch(tenant().tenant, BRANCH, MAIN, point).await.unwrap().id(), BRANCH);

    let b = world.start().await;
    assert_same(&b.read(&family, &lsns).await, &before);
    let refused = b.delete(MAIN).await;
    assert!(matches!(refused, Err(ChangeError::HasChildren(..))), "{refused:?}");
    b.delete(ABOVE).await.unwrap();
    b.delete(MAIN).await.unwrap();
    b.unarchive(ARCHIVED).await.unwrap();
    for server in [b, world.start().await] {
        let left: Readable = before
            .iter()
            .filter(|((of, ..), _)| [BRANCH, BELOW].contains(of))
            .map(|(k, v)| (*k, *v))
            .collect();
        assert_same(&server.read(&[BRANCH, BELOW], &lsns).await, &left);
        assert_same(&server.read(&[ARCHIVED], &lsns).await, &of_archived);
    }
    // Nothing of the replication origins that the ancestor had is in the branch.
    let c = world.start().await;
    let ends = world.grow(&c, BELOW, 1).await;
    c.open(BELOW).checkpoint().await.unwrap();
    for lsn in [branched_at, *ends.last().unwrap()] {
        let origins =
            c.open(BRANCH).at(lsn).snapshot.get(Key::replication_origin(1), branched_at).await.unwrap();
        assert_eq!(origins, None);
    }
}

#[tokio::test]
async fn a_branch_of_a_branch_gets_what_it_sees_of_all_its_ancestors() {
    let mut world = World::new().await;
    let a = world.start().await;
    let mut lsns = world.grow(&a, MAIN, 12).await;
    world.branch(&a, id(7), MAIN, lsns[8]).await;
    let mut own = world.grow(&a, id(7), 8).await;
    world.branch(&a, id(8), id(7), own[3]).await;
    // One that begins in its grandparent's part of the history.
    world.branch(&a, id(9), id(7), lsns[5]).await;
    own.extend(world.grow(&a, id(8), 6).await);
    own.extend(world.grow(&a, id(9), 6).await);
    lsns.extend(own);
    let family = [MAIN, id(7), id(8), id(9)];
    let before = a.read(&family, &lsns).await;
    assert_eq!(a.detach(id(8)).await.unwrap(), [id(9)]);
    assert_same(&a.read(&family, &lsns).await, &before);
    for timeline in family {
        a.open(timeline).seal_now().await.unwrap();
    }
    let b = world.start().await;
    assert_same(&b.read(&family, &lsns).await, &before);
    b.delete(id(7)).await.unwrap();
    b.delete(MAIN).await.unwrap();
    // What was moved can stand alone, too.
    assert_eq!(b.detach(id(9)).await.unwrap(), []);
    b.delete(id(8)).await.unwrap();
    let c = world.start().await;
    let left: Readable = before.iter().filter(|((of, ..), _)| *of == id(9)).map(|(k, v)| (*k, *v)).collect();
    assert_same(&c.read(&[id(9)], &lsns).await, &left);
}

#[tokio::test]
async fn a_branch_that_has_nothing_of_its_own_yet_begins_after_its_detachment_as_it_would_have() {
    for restart in [false, true] {
        let mut world = World::new().await;
        let a = world.start().await;
        let mut lsns = world.grow(&a, MAIN, 9).await;
        world.branch(&a, BRANCH, MAIN, lsns[5]).await;
        a.detach(BRANCH).await.unwrap();
        let server = if restart { world.start().await } else { a };
        lsns.extend(world.grow(&server, BRANCH, 6).await);
        server.open(BRANCH).seal_now().await.unwrap();
        let before = server.read(&[BRANCH], &lsns).await;
        let next = world.start().await;
        assert_same(&next.read(&[BRANCH], &lsns).await, &before);
    }
}

#[tokio::test]
async fn a_branch_at_its_ancestors_first_lsn_gets_the_base_without_what_is_not_inherited() {
    let mut world = World::new().await;
    let a = world.start().await;
    world.grow(&a, MAIN, 9).await;
    world.branch(&a, BRANCH, MAIN, BASE).await;
    let mut lsns = world.grow(&a, BRANCH, 6).await;
    lsns.push(BASE);
    a.open(BRANCH).seal_now().await.unwrap();
    let before = a.read(&[BRANCH], &lsns).await;
    a.detach(BRANCH).await.unwrap();
    assert_same(&a.read(&[BRANCH], &lsns).await, &before);
    a.delete(MAIN).await.unwrap();
    let b = world.start().await;
    assert_same(&b.read(&[BRANCH], &lsns).await, &before);
}

#[tokio::test]
async fn a_branch_is_detached_or_not_wherever_that_breaks_off_and_nothing_reads_otherwise() {
    let family_of = [MAIN, BRANCH, BELOW, ABOVE];
    for with_the_next in [false, true] {
        broken_off_everywhere(
            async |world| {
                let a = world.start().await;
                family(world, &a).await;
                a.archive(ARCHIVED).await.unwrap();
                world.start().await
            },
            async |_, server| server.detach(BRANCH).await.is_ok(),
            async |world, mut server| {
                let lsns: Vec<Lsn> = family_of.iter().map(|timeline| world.logs[timeline].end()).collect();
                let mut lsns = lsns;
                lsns.extend([BASE, server.open(BRANCH).facts().branched_at.unwrap()]);
                if with_the_next {
                    server = world.start().await;
                    world.faulty.land_late().await;
                    // Whatever was begun is done or forgotten.
                    for timeline in family_of {
                        assert_eq!(server.open(timeline).index().part().await.gc_blocking, None);
                    }
                }
                let before = server.read(&family_of, &lsns).await;
                if server.detach(BRANCH).await.is_err() {
                    // What could not be stored keeps a timeline from going on here.
                    server = world.start().await;
                    server.detach(BRANCH).await.unwrap();
                }
                world.faulty.land_late().await;
                server.check_detached().await;
                assert_same(&server.read(&family_of, &lsns).await, &before);
                let next = world.start().await;
                next.check_detached().await;
                assert_same(&next.read(&family_of, &lsns).await, &before);
                next.delete(ABOVE).await.unwrap();
                next.delete(MAIN).await.unwrap();
                let last = world.start().await;
                let left = [BRANCH, BELOW];
                let expected: Readable =
                    before.iter().filter(|((of, ..), _)| left.contains(of)).map(|(k, v)| (*k, *v)).collect();
                assert_same(&last.read(&left, &lsns).await, &expected);
                last.unarchive(ARCHIVED).await.unwrap();
            },
        )
        .await;
    }
}

#[tokio::test]
async fn what_a_superseded_owner_detaches_counts_for_nobody() {
    let mut world = World::new().await;
    let a = world.start().await;
    let lsns = family(&mut world, &a).await;
    a.archive(ARCHIVED).await.unwrap();
    let before = a.read(&[BRANCH, BELOW], &lsns).await;
    let b = world.start().await;
    assert!(a.detach(BRANCH).await.is_err());
    b.open(BRANCH).index().update(|_| {}).await.unwrap();
    let c = world.start().await;
    assert_eq!(c.ancestor_of(BRANCH), Some(MAIN));
    assert_same(&c.read(&[BRANCH, BELOW], &lsns).await, &before);
    c.detach(BRANCH).await.unwrap();
    assert_same(&c.read(&[BRANCH, BELOW], &lsns).await, &before);
}
