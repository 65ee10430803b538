//! How fast images are made of deltas.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use codec::value::{Change, Value};
use codec::wal::build::{BlockDraft, RecordDraft};
use engine::compact::CompactionPolicy;
use engine::tenant::Maintenance;
use model::{BLOCK_SIZE, Key, Lsn, RmgrId};

use super::BenchHistory;
use super::pages::{page_of, payload, relation};
use super::place::{CLUSTER, TENANT};
use super::readers::compare;
use super::session::Session;
use crate::bench::clock::{cpu_time, line, median_nanos};

const TABLE: u32 = 0;
/// Changes of each page since it was whole.
const CHANGES: u32 = 2;

/// Carries the mode out.
pub async fn run(arguments: &BenchHistory) -> Result<()> {
    let mut scaled = arguments.scaled(64 << 30);
    scaled.policy.max_l0 = None;
    let mut session = Session::begin_alone(arguments, &scaled).await?;
    let database = arguments.database.map_or(256 << 20, |size| size.0);
    let pages = (database / BLOCK_SIZE as u64) as u32;
    session.author.load(TABLE, pages);
    for _ in 0..CHANGES {
        for block in 0..pages {
            session.author.update((TABLE, block));
        }
        session.hand_over().await?;
    }
    session.author.commit();
    session.hand_over().await?;
    session.timeline.wait_for(session.author.end(), Duration::from_mins(10)).await?;
    session.timeline.checkpoint().await?;
    let tenant = session.place.tenants.tenant(TENANT)?;
    let now = SystemTime::now();
    let merging = Maintenance {
        compaction: CompactionPolicy {
            l0_merge: 1,
            max_deltas: usize::MAX,
            ..scaled.maintenance.compaction.clone()
        },
        ..scaled.maintenance.clone()
    };
    session.place.tenants.maintain_now(&tenant, &session.timeline, &merging, now).await?;
    let imaging = Maintenance {
        compaction: CompactionPolicy { max_deltas: 0, image_after: 0.0, ..merging.compaction.clone() },
        ..merging
    };
    let process = Path::new("/proc/self");
    let (begun, used) = (Instant::now(), cpu_time(process)?);
    let done = session.place.tenants.maintain_now(&tenant, &session.timeline, &imaging, now).await?;
    let (took, cpu) = (begun.elapsed(), cpu_time(process)?.saturating_sub(used));
    let image = done.iter().find(|done| done.kind == "image").context("no images were made")?;
    // The floor: the same redo and nothing else, and packing a page as layers have it.
    let key = Key::rel_block(relation(TABLE), 7);
    let base = page_of(TABLE, 7, 1, Lsn(0x0300_0000));
    let changes: Vec<(Lsn, Bytes)> =
        (0..CHANGES).map(|at| (Lsn(0x0400_0000 + u64::from(at) * 256), change(at))).collect();
    let redo = median_nanos(|| {
        redo::reconstruct(
            Some(&base[..]),
            changes.iter().map(|(lsn, value)| (*lsn, &value[..])),
            CLUSTER.pg,
            key,
        )
        .is_ok()
    });
    let pack = median_nanos(|| zstd::bulk::compress(&base[..], 1).map(|packed| packed.len()));
    let each = cpu.as_secs_f64() * 1e9 / f64::from(pages);
    let rate = |nanos: f64| 1e6 / nanos;
    line("T8c images from 2 changes, thousand pages/s/core", rate(each), rate(redo + pack), "k/s");
    println!(
        "    {pages} pages, {} layers, {:.2} s, {:.2} s of processor; the floor is redo ({:.2} us) and zstd-1 ({:.2} us) of a page; target 150",
        image.added,
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        redo / 1e3,
        pack / 1e3
    );
    let last = session.timeline.last_record_lsn();
    let compared =
        compare(&session.timeline, &session.author.book, last, arguments.pages, arguments.seed).await?;
    println!("    {compared} pages are as they were written");
    session.end().await
}

/// A change as a delta layer has it.
fn change(at: u32) -> Bytes {
    let block = BlockDraft {
        id: 0,
        rel: relation(TABLE),
        block: 7,
        will_init: false,
        image: None,
        data: payload(TABLE, 7, at + 2).to_vec(),
    };
    let draft =
        RecordDraft { blocks: vec![block], xid: 9, ..RecordDraft::new(RmgrId::HEAP, 0x70, vec![1, 0, 0, 0]) };
    let record = draft.encode(CLUSTER.pg, Lsn(0x0300_0000));
    Value::Change(Change::Postgres { will_init: false, record: &record }).to_bytes().into()
}
