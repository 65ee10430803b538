//! What each kind of record does to keys, one effect at a time, from hand-made records.

mod store;

use codec::checkpoint::CheckPoint;
use codec::control::ControlFile;
use codec::directory::{DbDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::logical_size::LogicalSize;
use codec::page::{Page, ZERO_PAGE};
use codec::slru;
use codec::tablespaces::Tablespaces;
use codec::value::{Change, Value};
use codec::wal::build::{BlockDraft, RecordDraft};
use codec::wal::record::Record;
use engine::ingest::{Ingest, IngestError, SizeNow};
use model::{BLOCK_SIZE, Fork, Key, Lsn, PgMajor, RelLocator, RelTag, RmgrId, SlruKind};
use proptest::prelude::*;
use store::Store;

const REL: RelLocator = RelLocator { spc: 1663, db: 5, rel: 16_384 };
const MAIN: RelTag = RelTag { spc: 1663, db: 5, rel: 16_384, fork: Fork::Main };
const XID: u32 = 700;

/// A timeline with nothing in it but counters and settings, and ingest over it.
struct World {
    store: Store,
    ingest: Ingest,
    lsn: Lsn,
}

impl World {
    async fn new(pg: PgMajor) -> World {
        let zero = CheckPoint::decode(pg, &[0; 88]).unwrap();
        let checkpoint =
            CheckPoint { next_xid: u64::from(XID), next_multi: 1, oldest_xid: 3, oldest_multi: 1, ..zero };
        World::with(pg, checkpoint, false).await
    }

    async fn with(pg: PgMajor, checkpoint: CheckPoint, commit_timestamps: bool) -> World {
        let mut store = Store::new(pg);
        let at = Lsn(0x1000);
        store.put(Key::CHECKPOINT, at, &Value::Image(&checkpoint.encode(pg)));
        store.put(Key::CONTROL_FILE, at, &Value::Image(&control_file(pg, commit_timestamps)));
        store.put(Key::LOGICAL_SIZE, at, &Value::Image(&LogicalSize::default().encode()));
        let ingest = Ingest::load(&store, pg).await.unwrap();
        World { store, ingest, lsn: at }
    }

    /// Ingests a record; answers the number of parts it took.
    async fn try_add(&mut self, draft: &RecordDraft) -> Result<usize, IngestError> {
        let bytes = draft.encode(self.store.pg, self.lsn);
        let record = Record::parse(self.store.pg, &bytes).unwrap();
        let (start, end) = (self.lsn, Lsn(self.lsn.0 + bytes.len() as u64).align_up());
        self.lsn = end;
        let parts = self.store.ingest(&mut self.ingest, &record, &bytes, start, end).await;
        if parts.is_ok() {
            let counted = self.store.counted_size();
            assert_eq!(self.store.stored_size(), Some(counted));
            assert_eq!(self.ingest.logical_size(), SizeNow::Known(counted));
        }
        parts
    }

    async fn add(&mut self, draft: RecordDraft) -> usize {
        self.try_add(&draft).await.unwrap()
    }

    async fn reload(&mut self) {
        self.ingest = Ingest::load(&self.store, self.store.pg).await.unwrap();
    }

    /// Versions that the last record made, by key.
    fn last(&self) -> Vec<Key> {
        let is_last =
            |versions: &Vec<(Lsn, Vec<u8>)>| versions.last().is_some_and(|(lsn, _)| *lsn == self.lsn);
        self.store.versions.iter().filter(|(_, versions)| is_last(versions)).map(|(key, _)| *key).collect()
    }

    fn size(&self, rel: RelTag) -> Option<u32> {
        self.store.size(Key::rel_size(rel))
    }

    fn exists(&self, rel: RelTag) -> bool {
        self.value(Key::rel_directory_entry(rel)).is_some_and(|value| value == b"r")
    }

    fn value(&self, key: Key) -> Option<Vec<u8>> {
        self.store.value(key).unwrap()
    }

    fn change(&self, key: Key) -> Option<Value<'_>> {
        let (_, bytes) = self.store.versions.get(&key)?.last()?;
        Some(Value::decode(bytes).unwrap())
    }

    fn slru(&self, kind: SlruKind, page: u32) -> Vec<u8> {
        let at = slru::place(page);
        self.value(Key::slru_page(kind, at.segment, at.page)).unwrap_or_default()
    }

    fn segments(&self, kind: SlruKind) -> Vec<u32> {
        self.value(Key::slru_directory(kind)).map_or(Vec::new(), |bytes| {
            SlruSegmentDirectory::decode(&bytes).unwrap().segments.into_iter().collect()
        })
    }

    fn checkpoint(&self) -> CheckPoint {
        CheckPoint::decode(self.store.pg, &self.value(Key::CHECKPOINT).unwrap()).unwrap()
    }
}

fn control_file(pg: PgMajor, commit_timestamps: bool) -> Vec<u8> {
    let mut control = ControlFile::new(pg, 0, model::WalSegmentSize::DEFAULT);
    control.track_commit_timestamp = commit_timestamps;
    control.encode()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn record(rmgr: RmgrId, info: u8, main: Vec<u8>) -> RecordDraft {
    RecordDraft { xid: XID, ..RecordDraft::new(rmgr, info, main) }
}

fn block(id: u8, rel: RelTag, block: u32) -> BlockDraft {
    BlockDraft { id, rel, block, will_init: false, image: None, data: vec![1] }
}

fn page(first: u8) -> Box<Page> {
    let mut page = Box::new(ZERO_PAGE);
    page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
    page[BLOCK_SIZE - 1] = first;
    page
}

/// Images of blocks of one fork.
fn images(rel: RelTag, blocks: &[u32]) -> RecordDraft {
    let drafts = blocks.iter().enumerate().map(|(id, number)| BlockDraft {
        image: Some((page(*number as u8), true)),
        data: Vec::new(),
        ..block(id as u8, rel, *number)
    });
    RecordDraft { blocks: drafts.collect(), ..record(RmgrId::XLOG, 0xB0, Vec::new()) }
}

fn truncate(blocks: u32, flags: u32) -> RecordDraft {
    record(RmgrId::SMGR, 0x20, words(&[blocks, REL.spc, REL.db, REL.rel, flags]))
}

/// A commit or abort with subtransactions and dropped relations.
fn end_of_transaction(info: u8, subxids: &[u32], dropped: &[RelLocator]) -> RecordDraft {
    let mut main = 1_000i64.to_le_bytes().to_vec();
    main.extend(words(&[0x2 | 0x4, subxids.len() as u32]));
    main.extend(words(subxids));
    main.extend(words(&[dropped.len() as u32]));
    for rel in dropped {
        main.extend(words(&[rel.spc, rel.db, rel.rel]));
    }
    record(RmgrId::XACT, info | 0x80, main)
}

fn commit(xid: u32) -> RecordDraft {
    RecordDraft { xid, ..record(RmgrId::XACT, 0x00, 1_000i64.to_le_bytes().to_vec()) }
}

#[tokio::test]
async fn a_block_reference_creates_and_extends_and_gaps_read_as_zeros() {
    let mut world = World::new(PgMajor::V15).await;
    world.add(images(MAIN, &[0, 4, 3])).await;
    assert_eq!(world.size(MAIN), Some(5));
    assert!(world.exists(MAIN));
    for (number, first) in [(0, 0), (1, 0), (2, 0), (3, 3), (4, 4)] {
        assert_eq!(world.value(Key::rel_block(MAIN, number)).unwrap()[BLOCK_SIZE - 1], first);
    }
    assert_eq!(world.change(Key::rel_block(MAIN, 1)), Some(Value::Change(Change::ZeroPage)));
    let databases = DbDirectory::decode(&world.value(Key::DB_DIRECTORY).unwrap()).unwrap().databases;
    assert_eq!(databases.into_iter().collect::<Vec<_>>(), [((1663, 5), false)]);
    world.add(images(MAIN, &[2])).await;
    assert_eq!(world.last(), [Key::rel_block(MAIN, 2)], "no other key changes");
}

#[tokio::test]
async fn a_huge_gap_comes_in_parts() {
    let mut world = World::new(PgMajor::V15).await;
    let parts = world.add(images(MAIN, &[200_000])).await;
    assert_eq!(parts, 5, "four parts of zeros after the first");
    assert_eq!(world.size(MAIN), Some(200_001));
    for number in [0, 65_535, 65_536, 199_999] {
        assert_eq!(world.value(Key::rel_block(MAIN, number)).unwrap(), ZERO_PAGE);
    }
}

#[tokio::test]
async fn a_truncated_block_does_not_reappear() {
    let mut world = World::new(PgMajor::V15).await;
    world.add(images(MAIN, &[0, 1, 2, 3])).await;
    world.add(truncate(1, 7)).await;
    assert_eq!(world.size(MAIN), Some(1));
    world.reload().await;
    world.add(images(MAIN, &[3])).await;
    assert_eq!(world.size(MAIN), Some(4));
    assert_eq!(world.value(Key::rel_block(MAIN, 1)).unwrap(), ZERO_PAGE);
    assert_eq!(world.value(Key::rel_block(MAIN, 2)).unwrap(), ZERO_PAGE);
}

#[tokio::test]
async fn truncation_cuts_the_visibility_map_and_the_free_space_map() {
    let mut world = World::new(PgMajor::V15).await;
    let (fsm, vm) = (REL.fork(Fork::Fsm), REL.fork(Fork::Vm));
    world.add(images(MAIN, &[0])).await;
    world.add(images(fsm, &[0, 1, 2, 3, 4, 5])).await;
    let full =
        BlockDraft { image: Some((Box::new([0xFF; BLOCK_SIZE]), true)), data: Vec::new(), ..block(0, vm, 1) };
    world.add(RecordDraft { blocks: vec![full], ..record(RmgrId::XLOG, 0xB0, Vec::new()) }).await;
    world.add(images(vm, &[2])).await;
    world.add(truncate(32_672 + 5, 7)).await;
    assert_eq!(world.size(MAIN), Some(1), "a relation that is shorter already stays so");
    assert_eq!(world.size(vm), Some(2));
    let map = world.value(Key::rel_block(vm, 1)).unwrap();
    assert_eq!(map[24..27], [0xFF, 0x03, 0], "four heap blocks of the first byte, one of the second");
    // Heap block 32,677 is on the ninth leaf: pages 0 and 1 are upper levels.
    assert_eq!(world.size(fsm), Some(6), "the free space map was shorter already");
    world.add(truncate(4_070, 7)).await;
    assert_eq!(world.size(fsm), Some(4));
    assert_eq!(world.value(Key::rel_block(fsm, 3)).unwrap(), ZERO_PAGE);
    assert_eq!(world.size(vm), Some(1));
    world.add(truncate(0, 7)).await;
    assert_eq!((world.size(MAIN), world.size(vm), world.size(fsm)), (Some(0), Some(0), Some(2)));
}

#[tokio::test]
async fn commits_drop_all_forks_and_their_relations_can_come_back() {
    let mut world = World::new(PgMajor::V16).await;
    let (vm, init) = (REL.fork(Fork::Vm), REL.fork(Fork::Init));
    world.add(images(MAIN, &[0])).await;
    world.add(images(vm, &[0])).await;
    world.add(record(RmgrId::SMGR, 0x10, words(&[REL.spc, REL.db, REL.rel, 3]))).await;
    assert_eq!(world.size(init), Some(0));
    world.reload().await;
    let unknown = RelLocator { rel: 9, ..REL };
    world.add(end_of_transaction(0x00, &[], &[REL, unknown])).await;
    for fork in [MAIN, vm, init] {
        assert_eq!(world.size(fork), None);
        assert!(!world.exists(fork));
    }
    assert!(!world.last().contains(&Key::rel_size(unknown.fork(Fork::Main))), "nothing to remove");
    // A record of before a base backup's end may name what was dropped meanwhile.
    world.add(images(MAIN, &[1])).await;
    assert_eq!(world.size(MAIN), Some(2));
    world.add(end_of_transaction(0x20, &[], &[REL])).await;
    assert_eq!(world.size(MAIN), None, "aborts drop too");
}

#[tokio::test]
async fn heap_records_clear_visibility_bits_that_no_reference_names() {
    for pg in PgMajor::ALL {
        let mut world = World::new(pg).await;
        let vm = REL.fork(Fork::Vm);
        let update = |registered: bool| {
            // Both tuples' pages were all-visible.
            let main = [&words(&[0])[..], &[1, 0, 0, 3], &words(&[0])[..], &[1, 0]].concat();
            let mut blocks = vec![block(0, MAIN, 7), block(1, MAIN, 9)];
            if registered {
                blocks.push(block(2, vm, 0));
            }
            RecordDraft { blocks, ..record(RmgrId::HEAP, 0x20, main) }
        };
        world.add(images(MAIN, &[40_000])).await;
        world.add(update(false)).await;
        assert_eq!(world.size(vm), None, "there is no map to clear");
        world.add(images(vm, &[0, 1])).await;
        world.add(update(false)).await;
        let both = Change::ClearVisibilityMap { new_heap_block: Some(7), old_heap_block: Some(9), bits: 3 };
        assert_eq!(world.change(Key::rel_block(vm, 0)), Some(Value::Change(both)));
        world.add(update(true)).await;
        let redone = world.change(Key::rel_block(vm, 0));
        assert!(
            matches!(redone, Some(Value::Change(Change::Postgres { .. }))),
            "the reference's redo clears"
        );
        let lock = [&words(&[0])[..], &[1, 0, 0, 1]].concat();
        let lock = RecordDraft { blocks: vec![block(0, MAIN, 32_673)], ..record(RmgrId::HEAP, 0x60, lock) };
        world.add(lock).await;
        let frozen =
            Change::ClearVisibilityMap { new_heap_block: Some(32_673), old_heap_block: None, bits: 2 };
        assert_eq!(world.change(Key::rel_block(vm, 1)), Some(Value::Change(frozen)));
    }
}

#[tokio::test]
async fn a_new_page_of_the_visibility_map_begins_empty_whatever_was_there_before() {
    let mut world = World::new(PgMajor::V15).await;
    let vm = REL.fork(Fork::Vm);
    world.add(images(MAIN, &[0])).await;
    let full =
        BlockDraft { image: Some((Box::new([0xFF; BLOCK_SIZE]), true)), data: Vec::new(), ..block(0, vm, 0) };
    world.add(RecordDraft { blocks: vec![full], ..record(RmgrId::XLOG, 0xB0, Vec::new()) }).await;
    world.add(truncate(0, 7)).await;
    world.add(images(MAIN, &[0])).await;
    let blocks = vec![BlockDraft { data: Vec::new(), ..block(0, vm, 0) }, block(1, MAIN, 0)];
    let visible = RecordDraft { blocks, ..record(RmgrId::HEAP2, 0x40, vec![0, 0, 0, 0, 1]) };
    world.add(visible).await;
    assert_eq!(world.value(Key::rel_block(vm, 0)).unwrap()[24..26], [1, 0]);
}

#[tokio::test]
async fn the_commit_log_gets_one_version_a_page() {
    let mut world = World::new(PgMajor::V15).await;
    world.add(record(RmgrId::CLOG, 0x00, words(&[0]))).await;
    world.add(commit(XID)).await;
    assert_eq!(world.slru(SlruKind::Clog, 0)[175], 0b01);
    assert_eq!(world.last().len(), 1, "a commit is one version and no more, most of the time");
    // Subtransactions on both sides of a page boundary, with the second page missing.
    world.add(end_of_transaction(0x20, &[32_770, 701, 32_769], &[])).await;
    assert_eq!(world.slru(SlruKind::Clog, 0)[175], 0b1010);
    assert_eq!(world.slru(SlruKind::Clog, 1)[0], 0b0010_1000);
    assert_eq!(world.store.size(Key::slru_size(SlruKind::Clog, 0)), Some(2));
    assert_eq!(world.checkpoint().next_xid, 33_792, "the step above 32,771");
}

#[tokio::test]
async fn slru_truncation_removes_segments_and_a_page_that_comes_back_is_empty() {
    for pg in PgMajor::ALL {
        let mut world = World::new(pg).await;
        let number = |page: u32| if pg >= PgMajor::V17 { words(&[page, 0]) } else { words(&[page]) };
        for page in [0, 31, 32, 33] {
            world.add(record(RmgrId::CLOG, 0x00, number(page))).await;
        }
        world.add(commit(XID)).await;
        assert_eq!(world.segments(SlruKind::Clog), [0, 1]);
        let cut = [number(32), words(&[1_048_576 + 5, 4])].concat();
        world.add(record(RmgrId::CLOG, 0x10, cut)).await;
        assert_eq!(world.segments(SlruKind::Clog), [1]);
        assert_eq!(world.store.size(Key::slru_size(SlruKind::Clog, 0)), None);
        assert_eq!((world.checkpoint().oldest_xid, world.checkpoint().oldest_xid_db), (1_048_581, 4));
        world.reload().await;
        world.add(record(RmgrId::CLOG, 0x00, number(1))).await;
        assert_eq!(world.slru(SlruKind::Clog, 0), ZERO_PAGE);
    }
}

fn multixact(multi: u32, offset: u32, members: &[u32]) -> RecordDraft {
    let members: Vec<u32> = members.iter().flat_map(|xid| [*xid, 1]).collect();
    let count = members.len() as u32 / 2;
    record(RmgrId::MULTIXACT, 0x20, [words(&[multi, offset, count]), words(&members)].concat())
}

fn offset_of(world: &World, multi: u32) -> u32 {
    let page = world.slru(SlruKind::MultiXactOffsets, slru::offsets_page(multi));
    let at = (multi % 2_048) as usize * 4;
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

#[tokio::test]
async fn a_multixact_says_where_the_next_one_begins_even_on_a_page_that_is_not_there() {
    let mut world = World::new(PgMajor::V15).await;
    world.add(record(RmgrId::MULTIXACT, 0x00, words(&[0]))).await;
    world.add(record(RmgrId::MULTIXACT, 0x10, words(&[0]))).await;
    // Records may come out of order.
    world.add(multixact(2_046, 12, &[800, 801])).await;
    world.add(multixact(2_045, 10, &[802, 803])).await;
    assert_eq!([2_045, 2_046, 2_047].map(|multi| offset_of(&world, multi)), [10, 12, 14]);
    world.add(multixact(2_047, 14, &[804, 805])).await;
    assert_eq!(offset_of(&world, 2_048), 16);
    world.reload().await;
    world.add(record(RmgrId::MULTIXACT, 0x00, words(&[1]))).await;
    assert_eq!(offset_of(&world, 2_048), 16, "an older primary begins the page only now");
    let checkpoint = world.checkpoint();
    assert_eq!((checkpoint.next_multi, checkpoint.next_multi_offset), (2_048, 16));
    assert!(checkpoint.next_xid > 805);
    let members = world.slru(SlruKind::MultiXactMembers, 0);
    // Offset 12 is the first of the fourth group of 20 bytes.
    assert_eq!((members[60], &members[64..68]), (1, &800u32.to_le_bytes()[..]));
}

#[tokio::test]
async fn members_of_one_multixact_may_lie_on_several_pages() {
    let mut world = World::new(PgMajor::V15).await;
    let members: Vec<u32> = (1_000..5_000).collect();
    world.add(multixact(5, 1_630, &members)).await;
    assert_eq!(world.store.size(Key::slru_size(SlruKind::MultiXactMembers, 0)), Some(4));
    let last = world.slru(SlruKind::MultiXactMembers, 3);
    let index = (1_630 + 3_999) % 1_636;
    let at = index / 4 * 20 + 4 + index % 4 * 4;
    assert_eq!(last[at..at + 4], 4_999u32.to_le_bytes());
    // Around the end of the number space.
    world.add(multixact(6, u32::MAX - 1, &[1, 2, 3])).await;
    assert_eq!(world.slru(SlruKind::MultiXactMembers, 0)[4..8], 3u32.to_le_bytes());
    assert_eq!(offset_of(&world, 7), 1, "offset 0 is left out");
}

#[tokio::test]
async fn truncating_multixacts_removes_members_and_offsets() {
    let mut world = World::new(PgMajor::V15).await;
    for page in [0, 32, 64] {
        world.add(record(RmgrId::MULTIXACT, 0x00, words(&[page]))).await;
        world.add(record(RmgrId::MULTIXACT, 0x10, words(&[page]))).await;
    }
    let (multi, offset) = (32 * 2_048 + 1, 64 * 1_636);
    world.add(record(RmgrId::MULTIXACT, 0x30, words(&[4, 1, multi, 0, offset]))).await;
    assert_eq!(world.segments(SlruKind::MultiXactMembers), [2]);
    assert_eq!(world.segments(SlruKind::MultiXactOffsets), [1, 2]);
    assert_eq!((world.checkpoint().oldest_multi, world.checkpoint().oldest_multi_db), (multi, 4));
}

#[tokio::test]
async fn commit_timestamps_follow_the_setting() {
    let mut world = World::new(PgMajor::V15).await;
    let setting = |on: u8| [words(&[100, 8, 10, 0, 64, 1]), vec![0, on]].concat();
    world.add(commit(XID)).await;
    assert_eq!(world.segments(SlruKind::CommitTs), [0u32; 0]);
    world.add(RecordDraft { xid: 0, ..record(RmgrId::XLOG, 0x60, setting(1)) }).await;
    assert_eq!(world.segments(SlruKind::CommitTs), [0]);
    assert_eq!(world.checkpoint().oldest_commit_ts_xid, XID + 1);
    world.reload().await;
    world.add(RecordDraft { origin: Some(3), ..commit(XID + 1) }).await;
    let at = (XID + 1) as usize * 10;
    assert_eq!(world.slru(SlruKind::CommitTs, 0)[at..at + 10], [0xE8, 3, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert!(world.checkpoint().newest_commit_ts_xid > XID);
    let control = ControlFile::parse(&world.value(Key::CONTROL_FILE).unwrap()).unwrap();
    assert_eq!((control.track_commit_timestamp, control.max_connections), (true, 100));
    world.add(RecordDraft { xid: 0, ..record(RmgrId::XLOG, 0x60, setting(0)) }).await;
    assert_eq!(world.segments(SlruKind::CommitTs), [0u32; 0]);
    assert_eq!(world.checkpoint().newest_commit_ts_xid, 0);
}

fn prepare(pg: PgMajor, xid: u32) -> RecordDraft {
    let mut main = words(&[0x57F9_4534, 0, xid, 5]);
    main.extend(7i64.to_le_bytes());
    main.extend(words(&[10, 1, 0, 0]));
    if pg >= PgMajor::V15 {
        main.extend(words(&[0, 0]));
    }
    main.extend([words(&[0]), vec![0, 0, 4, 0]].concat());
    main.extend([0; 16]);
    main.extend(*b"abc\0\0\0\0\0");
    main.extend(words(&[xid + 1, 0]));
    let total = main.len() as u32 + 4;
    main[4..8].copy_from_slice(&total.to_le_bytes());
    RecordDraft { xid, ..record(RmgrId::XACT, 0x10, main) }
}

#[tokio::test]
async fn prepared_transactions_are_files_until_they_end() {
    for pg in PgMajor::ALL {
        let zero = CheckPoint::decode(pg, &[0; 88]).unwrap();
        let next_xid = 2 << 32 | u64::from(XID);
        let mut world = World::with(pg, CheckPoint { next_xid, ..zero }, false).await;
        let draft = prepare(pg, XID + 5);
        let epoch = if pg >= PgMajor::V17 { 2u64 << 32 } else { 0 };
        let key = Key::two_phase_file(epoch | u64::from(XID + 5));
        world.add(draft.clone()).await;
        assert_eq!(world.value(key).as_ref(), Some(&draft.main));
        assert_eq!(world.checkpoint().next_xid, 2 << 32 | 1_024);
        world.reload().await;
        let mut main = 1_000i64.to_le_bytes().to_vec();
        main.extend(words(&[0x2 | 0x10, 1, XID + 6, XID + 5]));
        world.add(RecordDraft { xid: 0, ..record(RmgrId::XACT, 0x30 | 0x80, main) }).await;
        assert_eq!(world.value(key).as_deref(), Some(&[][..]));
        let directory = world.value(Key::TWO_PHASE_DIRECTORY).unwrap();
        assert!(TwoPhaseDirectory::decode(&directory, pg).unwrap().xids.is_empty());
        // 705 and 706 are the second and third of their byte.
        assert_eq!(world.slru(SlruKind::Clog, 0)[176], 0b0001_0100);
    }
}

#[tokio::test]
async fn replication_origins_go_forward_unless_forced() {
    let mut world = World::new(PgMajor::V15).await;
    let set = |lsn: u64, force: u8| {
        let main = [&lsn.to_le_bytes()[..], &[3, 0, force, 0, 0, 0, 0, 0]].concat();
        record(RmgrId::REPL_ORIGIN, 0x00, main)
    };
    let key = Key::replication_origin(3);
    for (lsn, force, expected) in [(50, 0, 50), (40, 0, 50), (40, 1, 40)] {
        world.add(set(lsn, force)).await;
        assert_eq!(world.value(key).unwrap(), u64::to_be_bytes(expected));
    }
    world.reload().await;
    let mut main = 1_000i64.to_le_bytes().to_vec();
    main.extend(words(&[0x20]));
    main.extend([90u64.to_le_bytes(), 5u64.to_le_bytes()].concat());
    world.add(RecordDraft { origin: Some(3), ..record(RmgrId::XACT, 0x80, main) }).await;
    assert_eq!(world.value(key).unwrap(), 90u64.to_be_bytes());
    world.add(record(RmgrId::REPL_ORIGIN, 0x10, vec![3, 0])).await;
    assert_eq!(world.value(key).as_deref(), Some(&[][..]));
}

#[tokio::test]
async fn a_database_copied_by_files_has_all_that_its_template_had() {
    for pg in PgMajor::ALL {
        let mut world = World::new(pg).await;
        let template = RelTag { db: 1, ..MAIN };
        let many: Vec<u32> = (0..30).collect();
        for first in 0..40u32 {
            let blocks: Vec<u32> = many.iter().map(|block| first * 30 + block).collect();
            world.add(images(template, &blocks)).await;
        }
        world.add(images(RelTag { fork: Fork::Vm, ..template }, &[0])).await;
        let map = codec::relmap::RelationMap { entries: vec![(1259, 1259)] }.encode(pg);
        let update = [words(&[1, 1663, map.len() as u32]), map.clone()].concat();
        world.add(record(RmgrId::RELMAP, 0x00, update)).await;
        // Something of an earlier copy that must go.
        let stale = RelTag { db: 9, rel: 77, ..MAIN };
        world.add(images(stale, &[0])).await;
        world.reload().await;
        let parts = world.add(record(RmgrId::DBASE, 0x00, words(&[9, 1663, 1, 1663]))).await;
        assert_eq!(parts, 4, "1,201 pages, 512 at a time, after the first part");
        let copy = RelTag { db: 9, ..template };
        assert_eq!(world.size(copy), Some(1_200));
        assert_eq!(world.size(RelTag { fork: Fork::Vm, ..copy }), Some(1));
        assert_eq!(world.size(stale), None);
        for number in [0, 511, 512, 1_199] {
            let of = |rel| world.value(Key::rel_block(rel, number)).unwrap();
            assert_eq!(of(copy), of(template));
        }
        assert_eq!(world.value(Key::relation_map(1663, 9)), Some(map));
        let drop = if pg == PgMajor::V14 { 0x10 } else { 0x20 };
        world.add(record(RmgrId::DBASE, drop, words(&[9, 1, 1663]))).await;
        assert_eq!(world.size(copy), None);
        assert!(!world.exists(copy) && world.exists(template));
        let databases = DbDirectory::decode(&world.value(Key::DB_DIRECTORY).unwrap()).unwrap().databases;
        assert_eq!(databases.into_keys().collect::<Vec<_>>(), [(1663, 1)]);
    }
}

#[tokio::test]
async fn tablespaces_are_remembered_with_their_paths() {
    let mut world = World::new(PgMajor::V15).await;
    let create =
        |oid: u32, path: &[u8]| record(RmgrId::TBLSPC, 0x00, [&words(&[oid])[..], path, &[0]].concat());
    world.add(create(16_400, b"/srv/fast")).await;
    world.add(create(16_401, b"")).await;
    world.reload().await;
    world.add(record(RmgrId::TBLSPC, 0x10, words(&[16_400]))).await;
    let directory = Tablespaces::decode(&world.value(Key::TABLESPACE_DIRECTORY).unwrap()).unwrap();
    assert_eq!(directory.paths.into_iter().collect::<Vec<_>>(), [(16_401, Vec::new())]);
}

#[tokio::test]
async fn what_postgres_does_not_write_is_an_error_that_names_it() {
    let mut world = World::new(PgMajor::V14).await;
    for (rmgr, info) in [
        (RmgrId::XLOG, 0xE0),
        (RmgrId::DBASE, 0x20),
        (RmgrId::BTREE, 0xF0),
        (RmgrId::HEAP2, 0xF0),
        (RmgrId(22), 0),
        (RmgrId(130), 0),
    ] {
        let error = world.try_add(&record(rmgr, info, Vec::new())).await.unwrap_err();
        assert!(matches!(error, IngestError::UnknownRecord { .. }), "{error}");
        assert!(error.to_string().contains(&rmgr.to_string()), "{error}");
    }
    let short = world.try_add(&record(RmgrId::SMGR, 0x10, vec![1])).await.unwrap_err();
    assert!(matches!(short, IngestError::Malformed { .. }), "{short}");
    // Extensions' records are kept: what they mean is found out when they are read.
    let mut world = World::new(PgMajor::V15).await;
    world.add(RecordDraft { blocks: vec![block(0, MAIN, 0)], ..record(RmgrId(130), 0x30, Vec::new()) }).await;
    assert!(world.store.value(Key::rel_block(MAIN, 0)).is_err());
    assert_eq!(world.size(MAIN), Some(1));
}

#[tokio::test]
async fn a_hint_image_that_was_not_taken_says_nothing() {
    let mut world = World::new(PgMajor::V15).await;
    let empty = BlockDraft { data: Vec::new(), ..block(0, MAIN, 3) };
    world.add(RecordDraft { xid: 0, blocks: vec![empty], ..record(RmgrId::XLOG, 0xA0, Vec::new()) }).await;
    assert!(world.last().is_empty());
}

/// What changes how much there is.
#[derive(Clone, Debug)]
enum Resize {
    Write { fork: Fork, blocks: Vec<u32> },
    Create(Fork),
    Truncate(u32),
    DropRelation,
    CopyDatabase,
    DropCopy,
    Restart,
}

fn resize() -> impl Strategy<Value = Resize> {
    let fork = || prop::sample::select(Fork::ALL.to_vec());
    prop_oneof![
        4 => (fork(), prop::collection::btree_set(0u32..40, 1..4))
            .prop_map(|(fork, blocks)| Resize::Write { fork, blocks: blocks.into_iter().collect() }),
        1 => fork().prop_map(Resize::Create),
        2 => (0u32..40).prop_map(Resize::Truncate),
        1 => Just(Resize::DropRelation),
        1 => Just(Resize::CopyDatabase),
        1 => Just(Resize::DropCopy),
        1 => Just(Resize::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_logical_size_is_the_sum_of_all_sizes_after_every_record(
        steps in prop::collection::vec((resize(), 0u32..3), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(PgMajor::V15).await;
            for (step, number) in steps {
                let rel = RelLocator { rel: 16_384 + number, ..REL };
                let words_of = |more: u32| words(&[rel.spc, rel.db, rel.rel, more]);
                let draft = match step {
                    Resize::Write { fork, blocks } => images(rel.fork(fork), &blocks),
                    Resize::Create(fork) => record(RmgrId::SMGR, 0x10, words_of(u32::from(fork as u8))),
                    Resize::Truncate(blocks) => {
                        record(RmgrId::SMGR, 0x20, words(&[blocks, rel.spc, rel.db, rel.rel, 7]))
                    }
                    Resize::DropRelation => end_of_transaction(0x00, &[], &[rel]),
                    Resize::CopyDatabase => record(RmgrId::DBASE, 0x00, words(&[9, rel.spc, rel.db, rel.spc])),
                    Resize::DropCopy => record(RmgrId::DBASE, 0x20, words(&[9, 1, rel.spc])),
                    Resize::Restart => {
                        world.reload().await;
                        continue;
                    }
                };
                world.add(draft).await; // which compares
            }
        });
    }
}

#[tokio::test]
async fn a_size_that_is_counted_while_ingest_goes_on_is_stored_with_the_next_record() {
    let mut world = World::new(PgMajor::V15).await;
    world.add(images(MAIN, &[4])).await;
    world.store.versions.remove(&Key::LOGICAL_SIZE);
    let base = world.store.counted_size();
    let mut old = Ingest::load(&world.store, world.store.pg).await.unwrap();
    for (at, blocks) in [(0x10_0000, 6), (0x20_0000, 2)] {
        let bytes = truncate(blocks, 7).encode(world.store.pg, Lsn(at));
        let record = Record::parse(world.store.pg, &bytes).unwrap();
        let end = Lsn(at + bytes.len() as u64).align_up();
        world.store.ingest(&mut old, &record, &bytes, Lsn(at), end).await.unwrap();
    }
    assert_eq!(world.store.stored_size(), None, "nobody knows it yet");
    let difference = LogicalSize { blocks: 0u64.wrapping_sub(3), forks: 0 };
    assert_eq!(old.logical_size(), SizeNow::Since(difference));
    old.counted_size().set(base).unwrap();
    let bytes = commit(XID).encode(world.store.pg, Lsn(0x30_0000));
    let record = Record::parse(world.store.pg, &bytes).unwrap();
    world.store.ingest(&mut old, &record, &bytes, Lsn(0x30_0000), Lsn(0x30_0100)).await.unwrap();
    assert_eq!(world.store.stored_size(), Some(LogicalSize { blocks: 2, forks: 1 }));
    assert_eq!(world.store.counted_size(), LogicalSize { blocks: 2, forks: 1 });
}
