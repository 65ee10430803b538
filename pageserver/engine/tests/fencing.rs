//! The interleavings that fencing closes, provoked against the engine's own pieces over a bucket that misbehaves as told.
//!
//! Owners are called A, B, C in the order of their generations. What concerns one piece alone (claims, the index writer, deletion, retries) is
//! tested beside it.

mod process;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use codec::index_part::UtcTime;
use engine::as_of::ReadError;
use engine::bucket::MemoryBucket;
use engine::bucket::faulty::{Fault, FaultyBucket, Operation, held};
use engine::claim::{Claim, TakeClaimError, ValidateError};
use engine::deletion;
use engine::index_keeper::IndexKeeper;
use engine::index_store::IndexStore;
use engine::layer_write::{LayerStore, WriteLayerError};
use engine::object_path::{ObjectPath, timeline_prefix, wal_prefix};
use engine::ports::{Body, Bucket, BucketError, ListRequest, PutIf};
use engine::stored_wal::list_wal;
use engine::synthetic::{SyntheticCluster, only_when_asked};
use engine::tenant::{BranchPoint, ChangeError};
use engine::timeline::Timeline;
use engine::timeline::lease::{LeaseError, OutOfHistory};
use engine::timeline::named::NameError;
use engine::wal_keeper::{KeepWalError, WalKeeper, WalKeeperPlace};
use engine::wal_run::{WalHistory, WalRunError, contiguous_run};
use model::{Generation, Key, LayerName, Lsn, TenantShardId, TimelineId, Tli};
use process::{Server, cache};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// In the middle of a page of WAL, so that what follows begins with a record.
const BASE: Lsn = Lsn(0x0200_0100);
const CLUSTER: SyntheticCluster = SyntheticCluster::at(BASE);
/// From the start of one record to that of the next.
const RECORD: u64 = 32;

fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

fn main_timeline() -> TimelineId {
    "ffeeddccbbaa99887766554433221100".parse().unwrap()
}

fn child_timeline() -> TimelineId {
    "0000000000000000000000000000c41d".parse().unwrap()
}

fn bad_network() -> (Arc<FaultyBucket>, Arc<dyn Bucket>) {
    let bucket = FaultyBucket::new(Arc::new(MemoryBucket::default()));
    (bucket.clone(), bucket)
}

async fn take(bucket: &Arc<dyn Bucket>) -> Claim {
    Claim::take(bucket.clone(), tenant()).await.unwrap()
}

async fn paths(bucket: &Arc<dyn Bucket>, prefix: &str) -> Vec<String> {
    let listing = bucket.list(ListRequest { prefix, ..ListRequest::default() }).await.unwrap();
    listing.objects.into_iter().map(|object| object.path).collect()
}

/// A record that moves the cluster's oid counter, and its padding: the shortest that changes a key.
fn next_oid_record(at: Lsn, prev: Lsn) -> [u8; RECORD as usize] {
    let mut record = [0; RECORD as usize];
    record[..4].copy_from_slice(&30u32.to_le_bytes());
    record[8..16].copy_from_slice(&prev.0.to_le_bytes());
    record[16] = 0x30;
    record[24..26].copy_from_slice(&[255, 4]);
    record[26..30].copy_from_slice(&(at.0 as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..30]), &record[..20]);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    record
}

/// `count` records from `from` on, and where they end.
fn records(from: Lsn, mut prev: Lsn, count: u64) -> (Bytes, Lsn) {
    let mut wal = Vec::new();
    for n in 0..count {
        let at = from.add(n * RECORD);
        wal.extend_from_slice(&next_oid_record(at, prev));
        prev = at;
    }
    (wal.into(), from.add(count * RECORD))
}

fn layer_store(bucket: &Arc<dyn Bucket>, claim: &Claim) -> (LayerStore, TempDir) {
    let (cache, disk) = cache(bucket);
    (LayerStore::new(bucket.clone(), cache, claim.clone(), tenant(), main_timeline()), disk)
}

async fn import(bucket: &Arc<dyn Bucket>) {
    process::import(bucket, tenant(), main_timeline(), CLUSTER, []).await;
}

impl Server {
    fn main(&self) -> Timeline {
        self.tenants.timeline(tenant().tenant, main_timeline()).unwrap()
    }

    /// Receives records at the end of the main timeline, and ingests them.
    async fn receive(&self, count: u64) -> Lsn {
        let timeline = self.main();
        let from = timeline.received();
        let prev = if from == BASE { Lsn(0) } else { Lsn(from.0 - RECORD) };
        let (wal, end) = records(from, prev, count);
        timeline.append_wal(from, Tli(1), wal).await.unwrap();
        timeline.wait_for(end, Duration::from_secs(10)).await.unwrap();
        end
    }

    async fn branch_at(&self, lsn: Lsn) -> Result<Timeline, ChangeError> {
        let at = BranchPoint::Lsn(lsn);
        self.tenants.branch(tenant().tenant, child_timeline(), main_timeline(), at).await
    }
}

struct Keeping {
    keeper: WalKeeper,
    task: JoinHandle<Result<(), KeepWalError>>,
    stop: CancellationToken,
}

fn keep(bucket: &Arc<dyn Bucket>, claim: &Claim) -> Keeping {
    let keeper = WalKeeper::new(BASE, Vec::new(), only_when_asked().wal);
    let place = WalKeeperPlace {
        bucket: bucket.clone(),
        claim: claim.clone(),
        tenant_shard: tenant(),
        timeline: main_timeline(),
        pg: CLUSTER.pg,
        system_identifier: CLUSTER.system_identifier,
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(keeper.clone().run(place, stop.clone()));
    Keeping { keeper, task, stop }
}

fn spawn_seal(keeper: &WalKeeper) -> JoinHandle<Result<Lsn, KeepWalError>> {
    let keeper = keeper.clone();
    tokio::spawn(async move { keeper.seal_now().await })
}

// Reporting

#[tokio::test]
async fn flush_is_reported_only_after_the_put_and_a_listing_that_began_after_it() {
    let (faulty, bucket) = bad_network();
    let a = take(&bucket).await;
    let Keeping { keeper, .. } = keep(&bucket, &a);
    let (wal, end) = records(BASE, Lsn(0), 3);
    keeper.append(BASE, Tli(1), &wal).await.unwrap();
    let (put_gate, mut put) = held();
    let (list_gate, mut list) = held();
    faulty.once(Operation::Put, "/wal/", Fault::Hold(put_gate));
    faulty.once(Operation::List, "/claims/", Fault::Hold(list_gate));
    let sealed = spawn_seal(&keeper);
    put.arrived().await;
    assert_eq!(*keeper.flushed().borrow(), Lsn(0), "what is only in memory is not reported");
    put.release();
    list.arrived().await;
    assert_eq!(
        (*keeper.stored().borrow(), *keeper.flushed().borrow()),
        (end, Lsn(0)),
        "stored is not validated"
    );
    list.release();
    assert_eq!(sealed.await.unwrap().unwrap(), end);
    assert_eq!(*keeper.flushed().borrow(), end);
}

#[tokio::test]
async fn wal_put_before_a_newer_claim_and_validated_after_it_is_never_reported() {
    let (faulty, bucket) = bad_network();
    let a = take(&bucket).await;
    let Keeping { keeper, task, .. } = keep(&bucket, &a);
    let (wal, _) = records(BASE, Lsn(0), 3);
    keeper.append(BASE, Tli(1), &wal).await.unwrap();
    let (list_gate, mut list) = held();
    faulty.once(Operation::List, "/claims/", Fault::Hold(list_gate));
    let sealed = spawn_seal(&keeper);
    list.arrived().await;
    take(&bucket).await;
    list.release();
    assert!(matches!(sealed.await.unwrap(), Err(KeepWalError::Superseded(_))));
    assert!(matches!(task.await.unwrap(), Err(KeepWalError::Superseded(_))));
    assert_eq!(*keeper.flushed().borrow(), Lsn(0));
    assert!(a.superseded().is_cancelled());
}

#[tokio::test]
async fn wal_is_not_reported_when_the_own_claim_has_vanished() {
    let (_, bucket) = bad_network();
    let a = take(&bucket).await;
    let Keeping { keeper, .. } = keep(&bucket, &a);
    let claim = ObjectPath::Claim { tenant: tenant(), generation: a.generation() };
    bucket.delete(&[claim.to_string()]).await.unwrap();
    let (wal, _) = records(BASE, Lsn(0), 1);
    keeper.append(BASE, Tli(1), &wal).await.unwrap();
    assert!(keeper.seal_now().await.is_err());
    assert_eq!(*keeper.flushed().borrow(), Lsn(0));
}

// Rule 1

#[tokio::test]
async fn a_source_that_shuts_down_gets_its_answer_at_once_though_sealing_and_listing_are_hours_away() {
    let (_, bucket) = bad_network();
    let a = take(&bucket).await;
    let Keeping { keeper, task, stop } = keep(&bucket, &a);
    let (wal, end) = records(BASE, Lsn(0), 1);
    keeper.append(BASE, Tli(1), &wal).await.unwrap();
    let sealed = tokio::time::timeout(Duration::from_secs(10), keeper.seal_now()).await;
    assert_eq!(sealed.expect("it does not wait for the time of sealing").unwrap(), end);
    stop.cancel();
    task.await.unwrap().unwrap();
}

// Rules 2 and 7: beside `IndexWriter` and `deletion`; here with whole owners.

#[tokio::test]
async fn an_index_put_that_lands_after_its_wal_was_deleted_changes_nothing_for_the_next_owner() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    faulty.once(Operation::Put, "index_part", Fault::Late);
    let keeper = a.main().index().clone();
    assert!(keeper.update(|_| {}).await.is_err(), "without retries the caller hears of it");
    let end = a.receive(5).await;
    a.main().checkpoint().await.unwrap();
    a.main().seal_now().await.unwrap();
    let late = faulty.land_late().await;
    assert!(late.iter().all(|put| matches!(put, Err(BucketError::Precondition(_)))), "{late:?}");
    let b = Server::start(&bucket).await;
    assert_eq!(b.main().last_record_lsn(), end);
}

#[tokio::test]
async fn a_deleted_timeline_stays_deleted_for_the_next_owner_and_its_name_is_refused() {
    let (_, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let b = Server::start(&bucket).await;
    let child = b.branch_at(BASE).await.unwrap();
    b.tenants.delete_timeline(tenant().tenant, child.id(), async {}).await.unwrap();
    assert!(deletion::is_buried(&*bucket, tenant(), child.id()).await.unwrap());
    // A knows nothing of B and creates the same branch: it is not acknowledged, and comes back to nobody.
    assert!(a.branch_at(BASE).await.is_err());
    assert!(matches!(b.branch_at(BASE).await, Err(ChangeError::Buried(_))));
    let c = Server::start(&bucket).await;
    assert!(c.tenants.timeline(tenant().tenant, child.id()).is_err());
    assert!(c.tenants.timeline(tenant().tenant, main_timeline()).is_ok());
}

#[tokio::test]
async fn a_branch_that_was_begun_and_not_answered_is_there_when_it_is_asked_for_again() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Arc::new(Server::start(&bucket).await);
    // Its first index is there, and so is the second, but nobody hears of that.
    let (gate, mut opening) = held();
    faulty.once(Operation::List, &wal_prefix(tenant(), child_timeline()), Fault::Hold(gate));
    let branching = {
        let a = Arc::clone(&a);
        tokio::spawn(async move { a.branch_at(BASE).await })
    };
    opening.arrived().await;
    faulty.once(Operation::Put, "index_part.json", Fault::LoseAnswer);
    opening.release();
    assert!(branching.await.unwrap().is_err());
    assert!(matches!(
        a.branch_at(BASE.add(8)).await,
        Err(ChangeError::Refused(_) | ChangeError::Conflict(_))
    ));
    assert_eq!(a.branch_at(BASE).await.unwrap().id(), child_timeline());
}

#[tokio::test]
async fn nothing_is_acknowledged_about_a_timeline_since_its_deletion_was_asked_for() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let child = a.branch_at(BASE).await.unwrap().id();
    // Neither what was to say it first nor the tombstone gets there in time; both may yet be done.
    for lost in ["index_part.json", "tombstone"] {
        faulty.once(Operation::Put, lost, Fault::Fail);
        a.tenants.delete_timeline(tenant().tenant, child, async {}).await.unwrap_err();
        assert!(!deletion::is_buried(&*bucket, tenant(), child).await.unwrap());
        assert!(matches!(a.branch_at(BASE).await, Err(ChangeError::Buried(_))), "{lost}");
    }
    // The next owner reads what the index says, and finishes it.
    let b = Server::start(&bucket).await;
    assert!(b.tenants.timeline(tenant().tenant, child).is_err());
    assert!(matches!(b.branch_at(BASE).await, Err(ChangeError::Buried(_))));
    b.tenants.delete_timeline(tenant().tenant, child, async {}).await.unwrap();
    assert!(deletion::is_buried(&*bucket, tenant(), child).await.unwrap());
    assert!(paths(&bucket, &timeline_prefix(tenant(), child)).await.is_empty());
}

#[tokio::test]
async fn a_timeline_with_a_branch_is_not_deleted_even_if_the_branch_could_not_be_opened() {
    let (_, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    a.branch_at(BASE).await.unwrap();
    // An object among the child's WAL that its index names and that is gone keeps it from opening.
    let index = a.tenants.timeline(tenant().tenant, child_timeline()).unwrap().index().clone();
    index
        .update(|part| {
            part.palimpsest.as_mut().unwrap().wal_objects.push(codec::index_part::WalObjectEntry {
                tli: Tli(1),
                start: BASE,
                end: BASE.add(RECORD),
                generation: Generation(1),
                size: 1,
            });
        })
        .await
        .unwrap();
    let b = Server::start(&bucket).await;
    assert!(b.tenants.timeline(tenant().tenant, child_timeline()).is_err());
    let deleted = b.tenants.delete_timeline(tenant().tenant, main_timeline(), async {}).await;
    assert!(matches!(deleted, Err(ChangeError::HasChildren(..))), "{deleted:?}");
    assert!(!deletion::is_buried(&*bucket, tenant(), main_timeline()).await.unwrap());
}

// Rule 3

#[tokio::test]
async fn an_owner_that_acknowledged_a_branch_has_its_own_indexes_so_an_older_owners_is_not_believed() {
    let (_, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let b = Server::start(&bucket).await;
    b.branch_at(BASE).await.unwrap();
    let own = |timeline, server: &Server| {
        let generation = server.tenants.tenant(tenant().tenant).unwrap().claim().generation();
        ObjectPath::Index { tenant: tenant(), timeline, generation: Some(generation) }.to_string()
    };
    bucket.head(&own(main_timeline(), &b)).await.unwrap();
    bucket.head(&own(child_timeline(), &b)).await.unwrap();
    // A, unaware, puts an index of the parent that lacks what the child needs.
    a.main().index().update(|part| part.layer_metadata.clear()).await.unwrap();
    let c = take(&bucket).await;
    let found = IndexStore::new(&c).find(main_timeline()).await.unwrap().unwrap();
    assert_eq!(found.generation, Some(Generation(c.generation().0 - 1)));
    assert!(!found.index.layer_metadata.is_empty());
}

// Rule 4

#[tokio::test]
async fn a_branch_in_the_tail_exists_only_after_the_parents_wal_is_stored_and_validated() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let end = a.receive(5).await;
    let at = Lsn(end.0 - RECORD);
    let (list_gate, mut list) = held();
    faulty.once(Operation::List, "/claims/", Fault::Hold(list_gate));
    let before = faulty.requests().len();
    let branching = {
        let tenants = a.tenants.clone();
        let point = BranchPoint::Lsn(at);
        tokio::spawn(async move {
            tenants.branch(tenant().tenant, child_timeline(), main_timeline(), point).await
        })
    };
    list.arrived().await;
    assert_eq!(paths(&bucket, &wal_prefix(tenant(), main_timeline())).await.len(), 1);
    assert!(paths(&bucket, &timeline_prefix(tenant(), child_timeline())).await.is_empty());
    list.release();
    branching.await.unwrap().unwrap();
    let requests = faulty.requests().split_off(before);
    let child_index = requests
        .iter()
        .position(|(op, path)| {
            *op == Operation::Put && path.starts_with(&timeline_prefix(tenant(), child_timeline()))
        })
        .unwrap();
    assert!(
        requests[child_index..].iter().any(|(op, path)| *op == Operation::List && path.contains("/claims/")),
        "a listing follows the child's index before it is acknowledged"
    );
    // The pod and the source are lost; the branch reads what it was promised.
    let b = Server::start(&bucket).await;
    let child = b.tenants.timeline(tenant().tenant, child_timeline()).unwrap();
    assert_eq!((child.last_record_lsn(), b.main().last_record_lsn()), (at, end));
}

#[tokio::test]
async fn a_branch_that_a_superseded_owner_was_asked_for_is_not_acknowledged() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let (put_gate, mut put) = held();
    faulty.once(Operation::Put, "index_part", Fault::Hold(put_gate));
    let branching = {
        let tenants = a.tenants.clone();
        let point = BranchPoint::Lsn(BASE);
        tokio::spawn(async move {
            tenants.branch(tenant().tenant, child_timeline(), main_timeline(), point).await
        })
    };
    put.arrived().await;
    take(&bucket).await;
    put.release();
    let error = branching.await.unwrap().err().expect("B may have listed before the index was there");
    assert!(matches!(error, ChangeError::Validate(ValidateError::Superseded { .. })), "{error}");
    let mut superseded = a.tenants.superseded();
    superseded.wait_for(Option::is_some).await.unwrap();
}

// Rules 5 and 9

#[tokio::test]
async fn covered_wal_goes_only_after_the_index_that_covers_it_was_validated() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    a.receive(5).await;
    a.main().seal_now().await.unwrap();
    let before = faulty.requests().len();
    let end = a.main().checkpoint().await.unwrap();
    assert_eq!(end, BASE.add(5 * RECORD));
    let requests = faulty.requests().split_off(before);
    let at = |wanted: Operation, part: &str| {
        requests.iter().position(|(op, path)| *op == wanted && path.contains(part)).unwrap()
    };
    let layer = at(Operation::Put, "/timelines/");
    let index = at(Operation::Put, "index_part");
    let validated = at(Operation::List, "/claims/");
    let deleted = at(Operation::Delete, "/wal/");
    assert!(layer < index && index < validated && validated < deleted, "{requests:?}");
    assert!(paths(&bucket, &wal_prefix(tenant(), main_timeline())).await.is_empty());
}

#[tokio::test]
async fn an_owner_superseded_while_it_flushes_deletes_no_wal() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    a.receive(5).await;
    a.main().seal_now().await.unwrap();
    let (put_gate, mut put) = held();
    faulty.once(Operation::Put, "index_part", Fault::Hold(put_gate));
    let main = a.main();
    let flushing = tokio::spawn(async move { main.checkpoint().await });
    put.arrived().await;
    let b = Server::start(&bucket).await;
    put.release();
    assert!(flushing.await.unwrap().is_err());
    assert_eq!(faulty.count(Operation::Delete, "/wal/"), 0);
    assert_eq!(b.main().last_record_lsn(), BASE.add(5 * RECORD));
}

#[tokio::test]
async fn wal_that_a_superseded_owner_puts_after_its_successor_listed_does_not_count() {
    let (_, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let inherited = a.receive(5).await;
    a.main().seal_now().await.unwrap();
    let b = Server::start(&bucket).await;
    a.receive(3).await;
    assert!(a.main().seal_now().await.is_err(), "stored, but never reported");
    // The orphan is in the bucket; B goes on from what it inherited.
    assert_eq!(list_wal(&*bucket, tenant(), main_timeline()).await.unwrap().len(), 2);
    let end = b.receive(1).await;
    b.main().seal_now().await.unwrap();
    assert_eq!(end, inherited.add(RECORD));
    let c = Server::start(&bucket).await;
    assert_eq!(c.main().last_record_lsn(), end);
}

#[tokio::test]
async fn a_missing_inherited_wal_object_is_an_error_and_not_the_end_of_history() {
    let (_, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    a.receive(5).await;
    a.main().seal_now().await.unwrap();
    let b = Server::start(&bucket).await;
    drop(b);
    let wal = paths(&bucket, &wal_prefix(tenant(), main_timeline())).await;
    bucket.delete(&wal).await.unwrap();
    let c = Server::start(&bucket).await;
    let error =
        c.tenants.timeline(tenant().tenant, main_timeline()).err().expect("history would be cut short");
    assert!(error.to_string().contains("missing"), "{error}");
    let history = WalHistory { generation: None, inherited: Vec::new(), switches: vec![(Tli(1), BASE)] };
    let nothing: Result<_, WalRunError> = contiguous_run(&history, Vec::new(), BASE);
    assert!(nothing.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_missing_while_timelines_are_opened_may_be_a_newer_owners_doing() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    a.receive(5).await;
    a.main().seal_now().await.unwrap();
    let (gate, mut opening) = held();
    faulty.once(Operation::List, &wal_prefix(tenant(), main_timeline()), Fault::Hold(gate));
    let slow = {
        let bucket = bucket.clone();
        tokio::spawn(async move { Server::start(&bucket).await })
    };
    opening.arrived().await;
    let c = Server::start(&bucket).await;
    c.main().checkpoint().await.unwrap();
    assert!(paths(&bucket, &wal_prefix(tenant(), main_timeline())).await.is_empty());
    opening.release();
    let b = slow.await.unwrap();
    let error = b.tenants.timeline(tenant().tenant, main_timeline()).err().expect("it is C's now");
    assert!(error.to_string().contains("superseded"), "{error}");
}

// Rule 10

async fn write_layer(store: &LayerStore, value: &[u8]) -> Result<(), WriteLayerError> {
    let mut image = store.begin_image().unwrap();
    image.push(Key::CHECKPOINT, value).unwrap();
    let name = LayerName::Image { keys: Key::ALL, lsn: BASE };
    store.finish_image(image, name).await.map(drop)
}

#[tokio::test]
async fn a_layer_is_put_again_with_equal_bytes_only() {
    let (faulty, bucket) = bad_network();
    let a = take(&bucket).await;
    let (store, _disk) = layer_store(&bucket, &a);
    faulty.once(Operation::Put, "/timelines/", Fault::LoseAnswer);
    assert!(write_layer(&store, b"one").await.is_err());
    write_layer(&store, b"one").await.unwrap();
    let other = write_layer(&store, b"two").await;
    assert!(matches!(other, Err(WriteLayerError::Bucket { source: BucketError::Precondition(_), .. })));
}

#[tokio::test]
async fn an_owner_names_each_layer_anew_and_every_name_says_the_same_of_what_is_in_it() {
    let (_, bucket) = bad_network();
    let a = take(&bucket).await;
    let (store, _disk) = layer_store(&bucket, &a);
    let delta = |lowest| store.unused_delta_name(Key::ALL, Lsn(0x11)..Lsn(0x41), Lsn(lowest));
    let image = |down| store.unused_image_name(Key::ALL, Lsn(0x80), down);
    let begins = |name: LayerName| name.lsns().start.0;
    // A delta may begin with the lowest LSN in it, and not above.
    let names: Vec<u64> = (0..4).map(|_| begins(delta(0x14).unwrap())).collect();
    assert_eq!(names, [0x11, 0x12, 0x13, 0x14]);
    assert!(matches!(delta(0x14), Err(WriteLayerError::NameUsed(_))));
    assert_eq!(begins(delta(0x20).unwrap()), 0x15);
    // No change lies between an image's own LSN and those that it is moved to.
    let names: Vec<u64> = [false, false, true, true].map(|down| begins(image(down).unwrap())).into();
    assert_eq!(names, [0x80, 0x81, 0x7F, 0x7E]);
    let more = std::iter::from_fn(|| image(false).ok()).count();
    assert_eq!(more, 5);

    // The timeline is closed and opened again, with a layer that the owner before put. Its object, and what of ours is to be deleted, have other names.
    let (again, _disk) = layer_store(&bucket, &a);
    let theirs = LayerName::Image { keys: Key::ALL, lsn: Lsn(0x200) };
    let older = Generation(a.generation().0 - 1);
    let _layer = again.open(tenant(), theirs.clone().in_generation(older), 0, None, None);
    let name = again.unused_delta_name(Key::ALL, Lsn(0x11)..Lsn(0x41), Lsn(0x20)).unwrap();
    assert_eq!(begins(name), 0x16);
    assert_eq!(begins(again.unused_image_name(Key::ALL, Lsn(0x200), false).unwrap()), 0x201);
}

#[tokio::test]
async fn a_layer_put_that_lands_late_does_not_replace_the_one_of_the_second_run() {
    let (faulty, bucket) = bad_network();
    let a = take(&bucket).await;
    let (store, _disk) = layer_store(&bucket, &a);
    // The local file of the first run is gone when its put lands, as after a crash: from memory then.
    faulty.once(Operation::Put, "/timelines/", Fault::Late);
    assert!(write_layer(&store, b"first").await.is_err());
    write_layer(&store, b"second").await.unwrap();
    let before = bucket.get(&paths(&bucket, "tenants/").await[0], None).await.unwrap();
    assert!(faulty.land_late().await.iter().all(Result::is_err));
    assert_eq!(bucket.get(&paths(&bucket, "tenants/").await[0], None).await.unwrap().bytes, before.bytes);
}

// Rule 14

#[tokio::test]
async fn a_layer_that_a_newer_owner_deleted_is_reconnect_and_one_that_is_lost_is_an_error() {
    let (_, bucket) = bad_network();
    import(&bucket).await;
    let a = take(&bucket).await;
    let found = IndexStore::new(&a).find(main_timeline()).await.unwrap().unwrap();
    let keeper = IndexKeeper::new(a.clone(), main_timeline(), found);
    let (cold, _disk) = layer_store(&bucket, &a);
    let layers = keeper.facts().await.unwrap().layers(&cold).unwrap();
    let objects: Vec<String> = layers.iter().map(|layer| layer.object_path().to_owned()).collect();
    bucket.delete(&objects).await.unwrap();
    let lost = layers[0].image(Key::CHECKPOINT).await;
    assert!(matches!(lost, Err(ReadError::Layer { .. })), "{lost:?}");
    take(&bucket).await;
    let superseded = layers[0].image(Key::CHECKPOINT).await;
    assert!(matches!(superseded, Err(ReadError::Superseded)), "{superseded:?}");
}

// Rule 11

const LEASE: Duration = Duration::from_mins(10);

/// Now, as exactly as an index can say it.
fn now() -> SystemTime {
    UtcTime::from_system_time(SystemTime::now()).to_system_time()
}

fn index_path(generation: Generation) -> String {
    ObjectPath::Index { tenant: tenant(), timeline: main_timeline(), generation: Some(generation) }
        .to_string()
}

#[tokio::test]
async fn a_lease_is_granted_once_it_is_durable_and_claims_were_listed_after_that() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let end = a.receive(5).await;
    let before = faulty.requests().len();
    let now = now();
    // Not aligned, so that it is the next record's.
    let until = a.main().lease_lsn(Lsn(end.0 - RECORD - 3), LEASE, now).await.unwrap();
    assert_eq!(until, now + LEASE);
    let requests = faulty.requests().split_off(before);
    let operations: Vec<Operation> = requests.iter().map(|(operation, _)| *operation).collect();
    assert_eq!(operations, [Operation::Put, Operation::List], "{requests:?}");
    assert!(requests[0].1.contains("index_part") && requests[1].1.contains("/claims/"));

    // Prolonged by little: from what is durable, after a listing.
    let again = a.main().lease_lsn(Lsn(end.0 - RECORD), LEASE, now + LEASE / 20).await.unwrap();
    assert_eq!(again, until);
    let puts = faulty.requests().split_off(before).iter().filter(|(op, _)| *op == Operation::Put).count();
    assert_eq!(puts, 1);
    let later = a.main().lease_lsn(Lsn(end.0 - RECORD), LEASE, now + LEASE / 2).await.unwrap();
    assert_eq!(later, now + LEASE / 2 + LEASE);

    // The next owner has it.
    let b = Server::start(&bucket).await;
    let leases = b.main().index().part().await.palimpsest.as_ref().unwrap().leases.clone();
    assert_eq!(leases.len(), 1);
    assert_eq!((leases[0].lsn, leases[0].valid_until.to_system_time()), (Lsn(end.0 - RECORD), later));
}

#[tokio::test]
async fn a_lease_that_a_superseded_owner_was_asked_for_is_not_granted() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let (put_gate, mut put) = held();
    faulty.once(Operation::Put, "index_part", Fault::Hold(put_gate));
    let main = a.main();
    let leasing = tokio::spawn(async move { main.lease_lsn(BASE, LEASE, SystemTime::now()).await });
    put.arrived().await;
    // B may have read the index before the lease was in it, and collect.
    take(&bucket).await;
    put.release();
    let error = leasing.await.unwrap().unwrap_err();
    assert!(matches!(error, LeaseError::Validate(ValidateError::Superseded { .. })), "{error}");
    // Nor from what it believes to be durable.
    let error = a.main().lease_lsn(BASE, LEASE, SystemTime::now()).await.unwrap_err();
    assert!(matches!(error, LeaseError::Validate(ValidateError::Superseded { .. })), "{error}");
}

#[tokio::test]
async fn what_cannot_be_read_is_not_leased_and_what_is_over_leaves_the_index_with_its_next_change() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let end = a.receive(5).await;
    let now = now();
    let before = faulty.requests().len();
    let below = a.main().lease_lsn(Lsn(BASE.0 - 8), LEASE, now).await;
    assert!(
        matches!(below, Err(LeaseError::OutOfHistory(OutOfHistory::TooOld { oldest: BASE, .. }))),
        "{below:?}"
    );
    let beyond = a.main().lease_lsn(Lsn(end.0 + 1), LEASE, now).await;
    assert!(
        matches!(beyond, Err(LeaseError::OutOfHistory(OutOfHistory::Future { last, .. })) if last == end),
        "{beyond:?}"
    );
    assert_eq!(faulty.requests().len(), before, "nothing was asked of the bucket");
    let index = a.main().index().clone();
    index.update(|part| part.update_metadata(|metadata| metadata.latest_gc_cutoff_lsn = end)).await.unwrap();
    let collected = a.main().lease_lsn(BASE, LEASE, now).await;
    assert!(matches!(collected, Err(LeaseError::OutOfHistory(OutOfHistory::TooOld { .. }))), "{collected:?}");

    a.main().lease_lsn(end, LEASE, now - 2 * LEASE).await.unwrap();
    assert_eq!(index.part().await.palimpsest.as_ref().unwrap().leases.len(), 1);
    faulty.once(Operation::Put, "index_part", Fault::Fail);
    assert!(index.update(|_| {}).await.is_err());
    assert_eq!(
        index.part().await.palimpsest.as_ref().unwrap().leases.len(),
        1,
        "what was not put is not believed"
    );
    index.update(|_| {}).await.unwrap();
    assert_eq!(index.part().await.palimpsest.as_ref().unwrap().leases, []);
}

#[tokio::test]
async fn a_name_is_answered_like_a_lease_and_so_is_its_end() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let end = a.receive(5).await;
    let now = now();
    let operations = |before: usize| -> Vec<Operation> {
        faulty.requests().split_off(before).iter().map(|(operation, _)| *operation).collect()
    };
    let before = faulty.requests().len();
    let named = a.main().name_lsn("x", Lsn(end.0 - RECORD - 3), None, now).await.unwrap();
    assert_eq!((named.lsn, named.valid_until), (Lsn(end.0 - RECORD), None));
    assert_eq!(operations(before), [Operation::Put, Operation::List]);
    // Again: from what is durable, after a listing.
    let before = faulty.requests().len();
    a.main().name_lsn("x", Lsn(end.0 - RECORD), None, now).await.unwrap();
    assert_eq!(operations(before), [Operation::List]);
    let taken = a.main().name_lsn("x", end, None, now).await;
    assert!(matches!(taken, Err(NameError::Taken { .. })), "{taken:?}");
    for (lsn, what) in [(Lsn(BASE.0 - 8), "below"), (Lsn(end.0 + 1), "beyond")] {
        let refused = a.main().name_lsn("y", lsn, None, now).await;
        assert!(matches!(refused, Err(NameError::OutOfHistory(_))), "{what}: {refused:?}");
    }
    // One whose put was not answered may be there or not; asked for again it is.
    faulty.once(Operation::Put, "index_part", Fault::LoseAnswer);
    a.main().name_lsn("z", end, Some(LEASE), now).await.unwrap_err();
    a.main().name_lsn("z", end, Some(LEASE), now).await.unwrap();

    let b = Server::start(&bucket).await;
    let names: Vec<String> = b.main().named_lsns(now).await.into_keys().collect();
    assert_eq!(names, ["x", "z"]);
    assert_eq!(b.main().named_lsns(now + LEASE).await.len(), 1, "one is over");
    let superseded = a.main().name_lsn("x", Lsn(end.0 - RECORD), None, now).await;
    assert!(matches!(superseded, Err(NameError::Validate(ValidateError::Superseded { .. }))));

    let before = faulty.requests().len();
    b.main().forget_named_lsn("x").await.unwrap();
    assert_eq!(operations(before), [Operation::Put, Operation::List]);
    b.main().forget_named_lsn("x").await.unwrap();
    let c = Server::start(&bucket).await;
    assert_eq!(c.main().named_lsns(now).await.into_keys().collect::<Vec<_>>(), ["z"]);
}

// Deletion, with whole owners

#[tokio::test]
async fn objects_of_a_deleted_timeline_go_only_after_what_feeds_it_and_its_own_tasks_ended() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    a.receive(5).await;
    let (put_gate, mut put) = held();
    faulty.once(Operation::Put, "/timelines/", Fault::Hold(put_gate));
    let main = a.main();
    let flushing = tokio::spawn(async move { main.checkpoint().await });
    put.arrived().await;
    let (left, mut leaving) = tokio::sync::oneshot::channel::<()>();
    let deleting = {
        let tenants = a.tenants.clone();
        let leave = async { left.send(()).unwrap() };
        tokio::spawn(async move { tenants.delete_timeline(tenant().tenant, main_timeline(), leave).await })
    };
    (&mut leaving).await.unwrap();
    assert!(deletion::is_buried(&*bucket, tenant(), main_timeline()).await.unwrap());
    assert!(a.tenants.timeline(tenant().tenant, main_timeline()).is_err(), "nothing can be read any more");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!deleting.is_finished() && faulty.count(Operation::Delete, "") == 0, "a layer is on its way");
    put.release();
    deleting.await.unwrap().unwrap();
    let _ = flushing.await.unwrap();
    assert!(paths(&bucket, &timeline_prefix(tenant(), main_timeline())).await.is_empty());
    assert!(paths(&bucket, &wal_prefix(tenant(), main_timeline())).await.is_empty());
    let again = a.tenants.delete_timeline(tenant().tenant, main_timeline(), async {}).await;
    assert!(matches!(again, Err(ChangeError::NotFound(_))), "{again:?}");
}

#[tokio::test]
async fn the_deletion_of_a_timeline_that_broke_off_goes_on_here_or_with_the_next_owner() {
    for with_the_next in [false, true] {
        let (faulty, bucket) = bad_network();
        import(&bucket).await;
        let mut owner = Server::start(&bucket).await;
        faulty.once(Operation::Delete, "", Fault::Fail);
        owner.tenants.delete_timeline(tenant().tenant, main_timeline(), async {}).await.unwrap_err();
        assert!(!paths(&bucket, &timeline_prefix(tenant(), main_timeline())).await.is_empty());
        if with_the_next {
            owner = Server::start(&bucket).await;
        }
        owner.tenants.delete_timeline(tenant().tenant, main_timeline(), async {}).await.unwrap();
        assert!(paths(&bucket, &timeline_prefix(tenant(), main_timeline())).await.is_empty());
        let again = owner.tenants.delete_timeline(tenant().tenant, main_timeline(), async {}).await;
        assert!(matches!(again, Err(ChangeError::NotFound(_))), "{again:?}");
    }
}

#[tokio::test]
async fn the_deletion_of_a_tenant_that_broke_off_is_finished_by_a_repeat_here_or_after_a_restart() {
    for after_a_restart in [false, true] {
        let (faulty, bucket) = bad_network();
        import(&bucket).await;
        let mut owner = Server::start(&bucket).await;
        owner.receive(5).await;
        let child = owner.branch_at(BASE).await.unwrap().id();
        let superseded = owner.tenants.superseded();
        faulty.once(Operation::Delete, "", Fault::Fail);
        let told = async |timelines: Vec<TimelineId>| assert_eq!(timelines, [child, main_timeline()]);
        owner.tenants.delete_tenant(tenant(), told).await.unwrap_err();
        assert!(owner.tenants.timeline(tenant().tenant, main_timeline()).is_err());
        assert!(owner.branch_at(BASE).await.is_err());
        assert!(owner.tenants.create_tenant(tenant().tenant).await.is_err());
        assert!(!paths(&bucket, "tenants/").await.is_empty());
        assert!(superseded.borrow().is_none(), "the own deletion is no newer owner");
        if after_a_restart {
            owner = Server::start(&bucket).await;
            assert!(owner.tenants.list().is_empty());
        }
        owner.tenants.delete_tenant(tenant(), async |_| ()).await.unwrap();
        assert!(paths(&bucket, "tenants/").await.is_empty());
        assert!(paths(&bucket, "palimpsest/wal/").await.is_empty());
        let again = owner.tenants.delete_tenant(tenant(), async |_| ()).await;
        assert!(matches!(again, Err(ChangeError::NotFound(_))), "{again:?}");
        assert!(matches!(
            owner.tenants.create_tenant(tenant().tenant).await,
            Err(ChangeError::Claim(TakeClaimError::Deleted(_)))
        ));
    }
}

#[tokio::test]
async fn until_the_deletion_of_a_tenant_is_claimed_its_timelines_go_on_and_nothing_of_them_is_changed() {
    let (faulty, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    a.receive(5).await;
    faulty.once(Operation::Put, "ffffffff", Fault::Fail);
    let leave = async |_| panic!("nothing is left before it is known to be deleted");
    a.tenants.delete_tenant(tenant(), leave).await.unwrap_err();
    let reached = a.receive(5).await;
    assert!(a.main().seal_now().await.unwrap() >= reached);
    assert!(a.branch_at(BASE).await.is_err());
    // A newer owner's data is not deleted by the one who was asked before.
    let b = Server::start(&bucket).await;
    let again = a.tenants.delete_tenant(tenant(), async |_| ()).await;
    assert!(matches!(again, Err(ChangeError::Validate(ValidateError::Superseded { .. }))), "{again:?}");
    assert_eq!(b.main().last_record_lsn(), reached);
    // But what the newer one began anyone may finish.
    faulty.once(Operation::Delete, "", Fault::Fail);
    b.tenants.delete_tenant(tenant(), async |_| ()).await.unwrap_err();
    a.tenants.delete_tenant(tenant(), async |_| ()).await.unwrap();
    assert!(paths(&bucket, "tenants/").await.is_empty());
}

#[tokio::test]
async fn a_tenant_of_another_owner_is_not_deleted() {
    let (_, bucket) = bad_network();
    import(&bucket).await;
    let a = Server::start(&bucket).await;
    let b = Server::start(&bucket).await;
    let stale = a.tenants.delete_tenant(tenant(), async |_| ()).await;
    assert!(matches!(stale, Err(ChangeError::Validate(ValidateError::Superseded { .. }))), "{stale:?}");
    let other: TenantShardId = "ffffffffffffffffffffffffffffffff".parse().unwrap();
    let absent = b.tenants.delete_tenant(other, async |_| ()).await;
    assert!(matches!(absent, Err(ChangeError::NotFound(_))), "{absent:?}");
    let index = format!("tenants/{other}/timelines/{}/index_part.json-00000001", main_timeline());
    bucket.put(&index, Body::Bytes(Bytes::from_static(b"{}")), PutIf::Absent).await.unwrap();
    let elsewhere = b.tenants.delete_tenant(other, async |_| ()).await;
    assert!(matches!(elsewhere, Err(ChangeError::Elsewhere(_))), "{elsewhere:?}");
    bucket.head(&index_path(Generation(1))).await.unwrap();
    b.receive(1).await;
}
