//! Many timelines that do nothing: what they cost in memory and requests; how fast a server begins with them; and what a commit now and then on each would cost.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use codec::wal::build::{RecordDraft, WalBuilder};
use engine::ports::{Body, Bucket as _, PutIf};
use engine::tenant::BranchPoint;
use engine::timeline::Timeline;
use model::{RmgrId, TenantId, TimelineId, Tli};

use super::BenchHistory;
use super::counting::Requests;
use super::place::{CLUSTER, MAIN, Place, memory};
use super::size::mib;
use crate::bench::clock::{Samples, cpu_time, line};

/// Timelines that trickle, and commits of each.
const TRICKLING: u32 = 200;
const COMMITS: u32 = 20;
const MINUTES_A_MONTH: f64 = 30.0 * 24.0 * 60.0;
const MANY: f64 = 10_000.0;

fn tenant(number: u32) -> TenantId {
    TenantId((0xA000_0000_0000_0000_0000_0000_0000_0000 + u128::from(number)).to_be_bytes())
}

fn branch(number: u32) -> TimelineId {
    TimelineId((0xB000_0000_0000_0000_0000_0000_0000_0000 + u128::from(number)).to_be_bytes())
}

/// Carries the mode out.
pub async fn run(arguments: &BenchHistory) -> Result<()> {
    let scaled = arguments.scaled(64 << 30);
    let place = Place::new(&arguments.work, &scaled.limits, scaled.policy.clone())?;
    let tenants = arguments.tenants.min(arguments.timelines);
    for number in 0..tenants {
        place.make_timeline(tenant(number), MAIN).await?;
    }
    let begun = Instant::now();
    place.tenants.attach_all().await?;
    let alone = memory()?.1;
    println!("{tenants} tenants with a timeline each attached in {:.2} s", begun.elapsed().as_secs_f64());
    let more = arguments.timelines - tenants;
    let (mut branching, mut putting) = (Samples::default(), Samples::default());
    for number in 0..more {
        let of = tenant(number % tenants);
        let begun = Instant::now();
        place.tenants.branch(of, branch(number), MAIN, BranchPoint::Tip).await?;
        if number + 200 >= more {
            branching.add(begun.elapsed());
            let path = format!("palimpsest/probes/{number:032x}");
            let begun = Instant::now();
            place.bucket.put(&path, Body::Bytes(Bytes::from(vec![1; 8 << 10])), PutIf::Absent).await?;
            putting.add(begun.elapsed());
        }
    }
    let all = memory()?.1;
    if more > 0 {
        let each = (all.saturating_sub(alone)) as f64 / f64::from(more);
        println!("T9 an idle timeline: {:.1} KiB of memory ({more} branches; target 24 KiB)", each / 1024.0);
        let millis = |samples: &mut Samples, share| samples.quantile(share) / 1e6;
        line(
            "T6a branch at head with as many, p50",
            millis(&mut branching, 0.5),
            millis(&mut putting, 0.5),
            "ms",
        );
    }
    let threads = std::fs::read_dir("/proc/self/task").context("cannot count threads")?.count();
    println!("    {threads} threads of the whole process");
    let opened = place.bucket.total();
    // By then each has shown that it is its owner's, and does nothing more.
    let settling = scaled.policy.wal.validate_every + Duration::from_secs(5);
    tokio::time::sleep(settling).await;
    let (before, used) = (place.bucket.total(), cpu_time(Path::new("/proc/self"))?);
    println!(
        "    {} put-class requests in the first {} s, in which each lists claims once",
        before.since(opened).put_class(),
        settling.as_secs()
    );
    let seconds = arguments.seconds.max(1);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let idle = place.bucket.total().since(before);
    let cpu = cpu_time(Path::new("/proc/self"))?.saturating_sub(used);
    let an_hour = 3600.0 / seconds as f64;
    println!(
        "T9 {} idle timelines in an hour: {:.0} put-class requests and {:.0} gets (seen in {seconds} s: {}, {}), {:.1} s of processor",
        arguments.timelines,
        idle.put_class() as f64 * an_hour,
        idle.gets as f64 * an_hour,
        idle.put_class(),
        idle.gets,
        cpu.as_secs_f64() * an_hour
    );
    if more > 0 {
        trickle(&place, tenants, TRICKLING.min(more)).await?;
    }
    place.tenants.shut_down(Duration::from_mins(1)).await;

    // The same once more in a process that has nothing of it.
    let again = place.again(&scaled.limits, scaled.policy)?;
    let begun = Instant::now();
    again.tenants.attach_all().await?;
    let took = begun.elapsed();
    let asked: Requests = again.bucket.total();
    println!(
        "T11 start with {tenants} tenants and {} timelines, empty disk: all active in {:.2} s (target 10 s for 10,000 tenants), {} put-class requests, {} gets; memory {:.0} MiB",
        arguments.timelines,
        took.as_secs_f64(),
        asked.put_class(),
        asked.gets,
        mib(memory()?.1)
    );
    again.tenants.shut_down(Duration::from_mins(1)).await;
    Ok(())
}

/// A log that goes on where a timeline is.
struct Trickle {
    timeline: Timeline,
    wal: WalBuilder,
    unsent: Vec<u8>,
    xid: u32,
}

impl Trickle {
    fn new(timeline: Timeline) -> Trickle {
        let (last, prev) = timeline.last_and_prev();
        let mut wal = CLUSTER.wal_from(last, prev);
        // A branch that received nothing yet takes the page that it begins in once more.
        let (from, mut bytes) = wal.take();
        let unsent = bytes.split_off(timeline.received().since(from) as usize);
        Trickle { timeline, wal, unsent, xid: 2_000 }
    }

    /// One commit, stored as it would be some seconds later.
    async fn commit(&mut self) -> Result<()> {
        let time = self.xid.into();
        self.xid += 1;
        let draft = RecordDraft {
            xid: self.xid,
            ..RecordDraft::new(RmgrId::XACT, 0, i64::to_le_bytes(time).to_vec())
        };
        self.wal.push(&draft);
        let (_, new) = self.wal.take();
        let at = self.timeline.received();
        let bytes = [std::mem::take(&mut self.unsent), new].concat();
        self.timeline.append_wal(at, Tli(1), Bytes::from(bytes)).await?;
        self.timeline.seal_now().await?;
        Ok(())
    }
}

/// T13: what a commit costs, and then many of them.
async fn trickle(place: &Place, tenants: u32, count: u32) -> Result<()> {
    let mut trickles = Vec::new();
    for number in 0..count {
        trickles.push(Trickle::new(place.tenants.timeline(tenant(number % tenants), branch(number))?));
    }
    let before = place.bucket.total();
    for _ in 0..COMMITS {
        for trickle in &mut trickles {
            trickle.commit().await?;
        }
    }
    let asked = place.bucket.total().since(before);
    let commits = f64::from(COMMITS * count);
    let (puts, lists) = (asked.puts as f64 / commits, asked.lists as f64 / commits);
    println!("T13 a commit that is stored at once: {puts:.2} puts, {lists:.2} listings of claims");
    for minutes in [5.0, 30.0, 60.0] {
        let commits = MANY * MINUTES_A_MONTH / minutes;
        let cost = asked.dollars() / f64::from(COMMITS * count) * commits;
        println!(
            "    10,000 branches, WAL stored every {minutes:.0} minutes: {:.1} million put-class requests, ${cost:.0} a month (target 60)",
            (puts + lists) * commits / 1e6
        );
    }
    Ok(())
}
