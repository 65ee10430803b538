//! The logical size of a timeline that was stored before the key for it existed.

mod process;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use codec::directory::DbDirectory;
use codec::logical_size::LogicalSize;
use codec::wal::build::RecordDraft;
use engine::bucket::MemoryBucket;
use engine::ports::Bucket;
use engine::synthetic::SyntheticCluster;
use engine::tenant::BranchPoint;
use engine::tenant_size::synthetic_size;
use engine::timeline::{Timeline, TimelinePolicy};
use model::{Fork, Key, Lsn, PgMajor, RelLocator, RmgrId, TenantShardId, TimelineId, Tli};
use process::{Server, import};

const PG: PgMajor = PgMajor::V17;
/// In the middle of a page of WAL, so that what follows begins with a record.
const BASE: Lsn = Lsn(0x0200_0100);
const REL: RelLocator = RelLocator { spc: 1663, db: 5, rel: 16_384 };
const PATIENCE: Duration = Duration::from_secs(10);

fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

fn id(number: u8) -> TimelineId {
    TimelineId([number; 16])
}

/// A base with two relations, as releases stored it that did not keep the logical size.
async fn old_base(bucket: &Arc<dyn Bucket>) {
    let (main, vm) = (REL.fork(Fork::Main), REL.fork(Fork::Vm));
    let other = RelLocator { rel: 16_385, ..REL }.fork(Fork::Main);
    let databases = DbDirectory { databases: [((1663, 5), false)].into() };
    let mut values = vec![(Key::DB_DIRECTORY, databases.encode())];
    for (rel, blocks) in [(main, 100u32), (vm, 1), (other, 20)] {
        values.push((Key::rel_size(rel), blocks.to_le_bytes().to_vec()));
        values.push((Key::rel_directory_entry(rel), b"r".to_vec()));
    }
    import(bucket, tenant(), id(1), SyntheticCluster::at(BASE), values).await;
}

/// Receives a record; answers its start and its end.
async fn receive(timeline: &Timeline, prev: Lsn, draft: RecordDraft) -> (Lsn, Lsn) {
    let from = timeline.received();
    let mut bytes = draft.encode(PG, prev);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let end = from.add(bytes.len() as u64);
    timeline.append_wal(from, Tli(1), Bytes::from(bytes)).await.unwrap();
    timeline.wait_for(end, PATIENCE).await.unwrap();
    (from, end)
}

fn truncate(blocks: u32) -> RecordDraft {
    let words = [blocks, REL.spc, REL.db, REL.rel, 7];
    let main = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    RecordDraft::new(RmgrId::SMGR, 0x20, main)
}

#[tokio::test]
async fn a_timeline_without_a_size_is_counted_while_it_goes_on_and_has_one_from_then_on() {
    let bucket: Arc<dyn Bucket> = Arc::new(MemoryBucket::default());
    old_base(&bucket).await;
    let size = |blocks, forks| LogicalSize { blocks, forks };
    let server = Server::with(&bucket, TimelinePolicy::default()).await;
    let tenants = &server.tenants;
    let main = tenants.timeline(tenant().tenant, id(1)).unwrap();
    let (first, first_end) = receive(&main, Lsn(0), truncate(60)).await;
    assert_eq!(main.counted_logical_size().await.unwrap(), size(81, 3), "the map stays a page");
    assert_eq!(main.logical_size_at(BASE).await.unwrap(), size(121, 3), "counted, as nothing says it");
    let (_, end) = receive(&main, first, truncate(10)).await;
    for (lsn, blocks) in [(first_end, 81), (end, 31)] {
        assert_eq!(main.logical_size_at(lsn).await.unwrap(), size(blocks, 3));
        assert_eq!(main.recounted_logical_size(lsn).await.unwrap(), size(blocks, 3));
    }
    let branch_at = |number, lsn| tenants.branch(tenant().tenant, id(number), id(1), BranchPoint::Lsn(lsn));
    let old = branch_at(2, BASE).await.unwrap();
    assert_eq!(old.counted_logical_size().await.unwrap(), size(121, 3));
    let new = branch_at(3, end).await.unwrap();
    assert_eq!(new.logical_size(), Some(size(31, 3)), "it has its parent's");

    let whole = tenants.tenant(tenant().tenant).unwrap();
    let made = synthetic_size(&whole, None, std::time::SystemTime::now()).await.unwrap();
    assert_eq!(made.size, 121 * 8192 + (end.0 - BASE.0), "a snapshot and the WAL since, for all three");
    assert_eq!(whole.size_memory().last(), Some(made));

    main.checkpoint().await.unwrap();
    assert!(tenants.shut_down(PATIENCE).await);
    let server = Server::with(&bucket, TimelinePolicy::default()).await;
    let tenants = &server.tenants;
    let main = tenants.timeline(tenant().tenant, id(1)).unwrap();
    assert_eq!(main.logical_size(), Some(size(31, 3)), "nothing has to be counted");
    assert!(main.info().remote_physical_size > 0);
}
