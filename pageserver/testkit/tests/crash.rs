//! kill -9 at any moment, lost disks, a bad bucket: nothing that was acknowledged is lost, and in the end every page is
//! the primary's.
//!
//! `ORACLE=long` kills fifty times and keeps the bucket away for a minute; else six times and ten seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use model::{Lsn, TenantId, TimelineId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use testkit::oracle::same_as_primary;
use testkit::workload::{Workload, answers};
use testkit::{
    BucketAt, Fault, FaultProxy, Pageserver, Postgres, PostgresConfig, Shutdown, Versitygw, cluster_files,
};

/// How long WAL may take to arrive after all that was done to the server.
const PATIENCE: Duration = Duration::from_mins(3);

fn is_long() -> bool {
    std::env::var("ORACLE").as_deref() == Ok("long")
}

fn ids() -> (TenantId, TimelineId) {
    (TenantId(rand::random()), TimelineId(rand::random()))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_with_its_disk_wiped_it_ends_with_every_page() {
    let seed = std::env::var("ORACLE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    killed_often(seed, if is_long() { 50 } else { 6 }).await.with_context(|| format!("seed {seed}")).unwrap();
}

async fn killed_often(seed: u64, kills: u32) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut postgres = Postgres::start(&PostgresConfig::new(17).wal_segment_mib(1)).await?;
    postgres.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true").await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut server = Pageserver::start(BucketAt::Directory(bucket.path().to_owned()), &[]).await?;
    {
        let mut work = Workload::new(&postgres, seed, 1);
        work.prepare().await?;
        server.follow(tenant, timeline, &postgres.dsn()).await?;
        for kill in 0..kills {
            // The first kills fall into the import, later ones into ingest; work goes on through all of them.
            let after =
                Duration::from_millis(random.random_range(20..if kill < kills / 3 { 600 } else { 3_000 }));
            let (worked, killed) = tokio::join!(work.some_steps(2), async {
                tokio::time::sleep(after).await;
                server.kill();
                slot_is_not_ahead(&postgres, bucket.path()).await?;
                if kill % 2 == 0 {
                    server.wipe_disk()?;
                }
                server.start_again().await?;
                // A kill may have come before the timeline's creation was acknowledged.
                if server.timeline(tenant, timeline).await.is_err() {
                    server.follow(tenant, timeline, &postgres.dsn()).await?;
                }
                anyhow::Ok(())
            });
            worked?;
            killed.with_context(|| format!("kill {kill}"))?;
        }
        server.wait_active(tenant, timeline, Duration::from_mins(2)).await?;
        work.round().await?;
    }
    same_as_primary(&mut postgres, &mut server, (tenant, timeline), PATIENCE).await
}

/// The source may forget only WAL that the bucket has: no slot is past the furthest WAL object or layer.
async fn slot_is_not_ahead(postgres: &Postgres, bucket: &Path) -> Result<()> {
    let slots =
        postgres.sql("SELECT restart_lsn FROM pg_replication_slots WHERE restart_lsn IS NOT NULL").await?;
    let Some(slot) = slots.into_iter().filter_map(|row| row[0].as_deref()?.parse::<Lsn>().ok()).max() else {
        return Ok(());
    };
    let Some(stored) = furthest_stored(bucket)? else { return Ok(()) };
    ensure!(slot <= stored, "the slot is at {slot}, the bucket only has {stored}");
    Ok(())
}

/// The largest end of a WAL object, or of a layer's LSN range, by object names.
fn furthest_stored(directory: &Path) -> Result<Option<Lsn>> {
    let mut furthest = None;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            furthest_stored(&path)?
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_wal = path.components().any(|part| part.as_os_str() == "wal");
            name.split(['-', '_'])
                .filter(|part| part.len() == 16)
                .filter_map(|part| u64::from_str_radix(part, 16).ok())
                .map(Lsn)
                .max()
                .filter(|_| is_wal || name.contains("__"))
        };
        furthest = furthest.max(found);
    }
    Ok(furthest)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_and_the_disk_lost_together_cost_at_most_the_configured_age() {
    lost_together().await.unwrap();
}

async fn lost_together() -> Result<()> {
    let mut postgres = Postgres::start(&PostgresConfig::new(18)).await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut server = Pageserver::start(BucketAt::Directory(bucket.path().to_owned()), &[]).await?;
    postgres.sql("CREATE TABLE ticks (n serial, at timestamptz DEFAULT clock_timestamp())").await?;
    server.follow(tenant, timeline, &postgres.dsn()).await?;
    server.wait_active(tenant, timeline, Duration::from_mins(1)).await?;
    let client = postgres.connect("postgres").await?;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(12) {
        testkit::postgres::query(&client, "INSERT INTO ticks DEFAULT VALUES").await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let crashed_at = postgres.value("SELECT extract(epoch FROM clock_timestamp())").await?;
    postgres.crash();
    server.kill();
    server.wipe_disk()?;
    drop(postgres);
    server.start_again().await?;
    let last = server.last_record_lsn(tenant, timeline).await?;
    let home = server.restore(tenant, timeline, last).await?;
    let restored = Postgres::start_existing(18, home, &[]).await?;
    let age: f64 = restored
        .value(&format!("SELECT {crashed_at} - extract(epoch FROM max(at)) FROM ticks"))
        .await?
        .parse()?;
    println!("lost with source and disk: {age:.1} s");
    ensure!(age < 7.0, "{age} s of commits are lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_bucket_costs_memory_within_the_budget_and_no_data() {
    bad_bucket().await.unwrap();
}

async fn bad_bucket() -> Result<()> {
    let mut postgres = Postgres::start(&PostgresConfig::new(16)).await?;
    postgres.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true").await?;
    let store = Versitygw::start().await?;
    let proxy = FaultProxy::start(store.port()).await?;
    let (tenant, timeline) = ids();
    let mut server = Pageserver::start(BucketAt::S3 { endpoint: proxy.endpoint() }, &[]).await?;
    let moment = {
        let mut work = Workload::new(&postgres, 5, 1);
        work.prepare().await?;
        server.follow(tenant, timeline, &postgres.dsn()).await?;
        server.wait_active(tenant, timeline, Duration::from_mins(2)).await?;
        let each = Duration::from_secs(if is_long() { 15 } else { 3 });
        let mut peak = 0;
        for fault in [
            Fault::Refuse,
            Fault::Status(503),
            Fault::Slow { bytes_a_second: 200_000 },
            Fault::CutAfter { bytes: 100 },
        ] {
            proxy.set(fault);
            let since = Instant::now();
            while since.elapsed() < each {
                work.some_steps(1).await?;
                peak = peak.max(server.resident_bytes()?);
            }
        }
        // Away altogether: the primary still stops quickly and comes back.
        proxy.set(Fault::Stall);
        tokio::time::sleep(Duration::from_secs(1)).await;
        peak = peak.max(server.resident_bytes()?);
        proxy.set(Fault::None);
        println!("peak resident memory with a bad bucket: {} MiB", peak >> 20);
        // The default tail budget, and 256 MiB.
        ensure!(peak < (512 + 256) << 20, "{} MiB resident", peak >> 20);
        work.record().await?
    };
    server.wait_for(tenant, timeline, moment.lsn, Duration::from_mins(3)).await?;
    let home = server.restore(tenant, timeline, moment.lsn).await?;
    let restored = Postgres::start_existing(16, home, &[("max_prepared_transactions", "20")]).await?;
    ensure!(answers(&restored).await? == moment.answers, "the restored cluster answers otherwise");
    drop(restored);
    proxy.set(Fault::Stall);
    let relations = cluster_files::permanent_relations(&postgres).await?;
    ensure!(relations.len() > 100, "only {} relations", relations.len());
    let took = postgres.stop(Shutdown::Fast).await?;
    ensure!(took < Duration::from_secs(10), "the primary took {took:?} to stop with the bucket away");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_on_one_bucket_the_later_goes_on_and_the_earlier_exits() {
    two_servers().await.unwrap();
}

async fn two_servers() -> Result<()> {
    let mut postgres = Postgres::start(&PostgresConfig::new(17)).await?;
    postgres.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true; CREATE TABLE t (n int)").await?;
    let store = Versitygw::start().await?;
    let bucket = BucketAt::S3 { endpoint: store.endpoint() };
    let (tenant, timeline) = ids();
    let mut earlier = Pageserver::start(bucket.clone(), &[]).await?;
    earlier.follow(tenant, timeline, &postgres.dsn()).await?;
    earlier.wait_active(tenant, timeline, Duration::from_mins(1)).await?;
    let mut later = Pageserver::start(bucket, &[]).await?;
    // Enough WAL, over enough time, that the earlier one has something to report and finds that it must not.
    let since = Instant::now();
    let process = earlier.process().context("it was started")?;
    let status = loop {
        if let Some(status) = process.exit_status() {
            break status;
        }
        ensure!(
            since.elapsed() < Duration::from_secs(90),
            "the earlier server still runs:\n{}",
            process.log_tail()
        );
        postgres.sql("INSERT INTO t SELECT generate_series(1, 20000)").await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    ensure!(!status.success(), "the superseded server ended without an error");
    later.wait_active(tenant, timeline, Duration::from_mins(1)).await?;
    same_as_primary(&mut postgres, &mut later, (tenant, timeline), PATIENCE).await
}
