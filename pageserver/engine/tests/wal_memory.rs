//! WAL that is not in the bucket yet is bounded for all timelines of a process together.

use std::sync::Arc;
use std::time::Duration;

use engine::bucket::MemoryBucket;
use engine::bucket::faulty::{Fault, FaultyBucket, Operation, held};
use engine::claim::Claim;
use engine::ports::Bucket;
use engine::wal_keeper::{WalKeeper, WalKeeperPlace, WalKeeping};
use engine::wal_memory::WalMemory;
use model::{Lsn, PgMajor, TimelineId, Tli};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const START: Lsn = Lsn(0x0200_0000);
static MESSAGE: [u8; 128 << 10] = [7; 128 << 10];
const SOON: Duration = Duration::from_secs(10);

fn keeper(bucket: &Arc<dyn Bucket>, claim: &Claim, memory: &Arc<WalMemory>, number: u8) -> WalKeeper {
    let never = Duration::from_hours(1);
    let memory = Arc::clone(memory);
    let policy = WalKeeping {
        seal_age: never,
        idle_seal_age: never,
        validate_every: never,
        memory,
        ..WalKeeping::default()
    };
    let keeper = WalKeeper::new(START, Vec::new(), policy);
    let place = WalKeeperPlace {
        bucket: bucket.clone(),
        claim: claim.clone(),
        tenant_shard: claim.tenant(),
        timeline: TimelineId([number; 16]),
        pg: PgMajor::V17,
        system_identifier: 1,
    };
    tokio::spawn(keeper.clone().run(place, CancellationToken::new()));
    keeper
}

async fn append(keeper: &WalKeeper, message: u64) {
    let at = START.add(message * MESSAGE.len() as u64);
    keeper.append(at, Tli(1), &MESSAGE).await.unwrap();
}

#[tokio::test]
async fn many_timelines_that_hold_a_little_each_store_it_when_it_is_much_together() {
    let bucket = FaultyBucket::new(Arc::new(MemoryBucket::default()));
    let bucket: Arc<dyn Bucket> = bucket;
    let claim =
        Claim::take(bucket.clone(), "00112233445566778899aabbccddeeff".parse().unwrap()).await.unwrap();
    let memory = WalMemory::new(1 << 20);
    let mut keepers = Vec::new();
    for number in 0..10 {
        let keeper = keeper(&bucket, &claim, &memory, number);
        timeout(SOON, append(&keeper, 0)).await.expect("the others make room");
        keepers.push(keeper);
    }
    // None of them has enough for an object of its own, and nothing happens because of time.
    timeout(SOON, keepers[0].stored().wait_for(|stored| *stored > START)).await.unwrap().unwrap();
    assert!(memory.held() <= 1 << 20, "{} bytes are held", memory.held());
    drop(keepers);
}

#[tokio::test]
async fn a_source_waits_while_the_bucket_takes_nothing_and_a_timeline_that_has_nothing_does_not() {
    let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
    let bucket: Arc<dyn Bucket> = faulty.clone();
    let claim =
        Claim::take(bucket.clone(), "00112233445566778899aabbccddeeff".parse().unwrap()).await.unwrap();
    let memory = WalMemory::new(256 << 10);
    let (busy, idle) = (keeper(&bucket, &claim, &memory, 1), keeper(&bucket, &claim, &memory, 2));
    let (gate, mut put) = held();
    faulty.once(Operation::Put, "/wal/", Fault::Hold(gate));
    append(&busy, 0).await;
    put.arrived().await;
    append(&busy, 1).await;
    assert!(timeout(Duration::from_millis(100), append(&busy, 2)).await.is_err(), "there is no room");
    timeout(SOON, append(&idle, 0)).await.expect("everyone may hold a little");
    put.release();
    timeout(SOON, append(&busy, 2)).await.expect("there is room again");
}
