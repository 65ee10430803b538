//! Sources whose history forks or is lost: failovers, slots that the source gave up, restores of one place. And owners that change.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use model::{Lsn, TenantId, TimelineId};
use serde_json::{Value, json};
use testkit::oracle::same_as_primary;
use testkit::{BucketAt, Fault, FaultProxy, Pageserver, Postgres, PostgresConfig, Shutdown, account};

const MAJOR: u32 = 17;
const PATIENCE: Duration = Duration::from_secs(20);

fn ids() -> (TenantId, TimelineId) {
    (TenantId(rand::random()), TimelineId(rand::random()))
}

fn config() -> PostgresConfig {
    PostgresConfig::new(MAJOR).set("wal_keep_size", "64MB")
}

async fn server_over(bucket: &Path) -> Result<Pageserver> {
    Pageserver::start(BucketAt::Directory(bucket.to_owned()), &[("wal_seal_age", "300ms")]).await
}

/// A standby of `primary`, streaming.
async fn standby_of(primary: &Postgres) -> Result<Postgres> {
    let home = account::temp_dir_for(account::postgres_account()?)?;
    let data = home.path().join("data");
    let data = data.to_str().context("the path is UTF-8")?;
    primary
        .run_program("pg_basebackup", &["-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync"])
        .await?;
    Postgres::start_existing(MAJOR, home, &[]).await
}

/// The end of WAL, all of it flushed.
async fn end_of(postgres: &Postgres) -> Result<Lsn> {
    let lsn = postgres.value("SELECT pg_current_wal_insert_lsn()").await?;
    postgres.flushed_lsn().await?;
    Ok(lsn.parse()?)
}

async fn replayed(standby: &Postgres, lsn: Lsn) -> Result<()> {
    let since = Instant::now();
    while standby.value("SELECT pg_last_wal_replay_lsn()").await?.parse::<Lsn>()? < lsn {
        ensure!(since.elapsed() < PATIENCE, "the standby does not get to {lsn}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn promote(standby: &Postgres) -> Result<()> {
    ensure!(standby.value("SELECT pg_promote()").await? == "t", "not promoted");
    Ok(())
}

/// The timeline's detail, once `is` holds for it.
async fn detail_when(
    server: &Pageserver,
    tenant: TenantId,
    timeline: TimelineId,
    is: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let since = Instant::now();
    loop {
        let detail = server.timeline(tenant, timeline).await;
        if let Ok(detail) = &detail
            && is(detail)
        {
            return Ok(detail.clone());
        }
        ensure!(since.elapsed() < PATIENCE, "not after {PATIENCE:?}, but {detail:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn status(detail: &Value) -> &str {
    detail["walreceiver_status"].as_str().unwrap_or_default()
}

async fn set_source(
    server: &Pageserver,
    tenant: TenantId,
    timeline: TimelineId,
    source: &Postgres,
) -> Result<(u16, Value)> {
    let path = format!("/v1/tenant/{tenant}/timeline/{timeline}/primary");
    server.http(Method::PUT, &path, Some(&json!({"dsn": source.dsn()}))).await
}

async fn slots(postgres: &Postgres) -> Result<Vec<String>> {
    let rows = postgres.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1").await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_forked_above_us_is_followed() {
    clean_failovers().await.unwrap();
}

async fn clean_failovers() -> Result<()> {
    let mut primary = Postgres::start(&config()).await?;
    primary.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true; CREATE TABLE t (n int)").await?;
    let mut first = standby_of(&primary).await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut server = server_over(bucket.path()).await?;
    let dsn = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres",
        primary.port(),
        first.port()
    );
    server.follow(tenant, timeline, &dsn).await?;
    server.wait_active(tenant, timeline, PATIENCE).await?;

    // While we are away the primary writes on, and dies.
    server.stop().await?;
    primary.sql("INSERT INTO t SELECT generate_series(1, 5000)").await?;
    let end = end_of(&primary).await?;
    replayed(&first, end).await?;
    primary.crash();
    promote(&first).await?;
    first.sql("INSERT INTO t SELECT generate_series(5001, 6000)").await?;
    server.start_again().await?;
    server.wait_for(tenant, timeline, end_of(&first).await?, PATIENCE).await?;
    let detail = server.timeline(tenant, timeline).await?;
    ensure!(detail["is_archived"] == false, "{detail}");

    // And again while we follow: what it sent may end within a record that nobody has whole.
    let mut second = standby_of(&first).await?;
    first.sql("INSERT INTO t SELECT generate_series(6001, 9000)").await?;
    replayed(&second, end_of(&first).await?).await?;
    server.wait_for(tenant, timeline, end_of(&first).await?, PATIENCE).await?;
    first.stop(Shutdown::Immediate).await?;
    promote(&second).await?;
    second.sql("INSERT INTO t SELECT generate_series(9001, 9999)").await?;
    let end = end_of(&second).await?;
    let (code, answer) = set_source(&server, tenant, timeline, &second).await?;
    ensure!(code == 200, "{code} {answer}");
    server.wait_for(tenant, timeline, end, PATIENCE).await?;
    ensure!(second.value("SELECT count(*) FROM t").await? == "9999");

    // What is in the bucket is one history to the next owner, too.
    server.kill();
    server.wipe_disk()?;
    server.start_again().await?;
    second.sql("INSERT INTO t VALUES (10000)").await?;
    same_as_primary(&mut second, &mut server, (tenant, timeline), PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_whose_source_forked_below_it_is_archived_and_continued() {
    diverged_failover().await.unwrap();
}

async fn diverged_failover() -> Result<()> {
    let mut primary = Postgres::start(&config()).await?;
    primary.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true; CREATE TABLE t (n int)").await?;
    let mut standby = standby_of(&primary).await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut server = server_over(bucket.path()).await?;
    server.follow(tenant, timeline, &primary.dsn()).await?;
    server.wait_active(tenant, timeline, PATIENCE).await?;
    primary.sql("INSERT INTO t SELECT generate_series(1, 1000)").await?;
    replayed(&standby, end_of(&primary).await?).await?;
    standby.stop(Shutdown::Fast).await?;
    primary.sql("INSERT INTO t SELECT generate_series(1001, 3000)").await?;
    let lost = end_of(&primary).await?;
    server.wait_for(tenant, timeline, lost, PATIENCE).await?;
    primary.crash();
    standby.start_again().await?;
    promote(&standby).await?;
    standby.sql("INSERT INTO t SELECT generate_series(-500, 0)").await?;

    let (code, answer) = set_source(&server, tenant, timeline, &standby).await?;
    ensure!(code == 200, "{code} {answer}");
    let old = detail_when(&server, tenant, timeline, |detail| status(detail).contains("goes on as")).await?;
    ensure!(old["is_archived"] == true && old["state"] == "Active", "{old}");
    let successor: TimelineId = status(&old)
        .rsplit(' ')
        .next()
        .context("a status has words")?
        .parse()
        .context("names the successor")?;
    server.wait_for(tenant, successor, end_of(&standby).await?, PATIENCE).await?;

    // The archived one keeps what only it has, and takes no source.
    let (code, answer) = set_source(&server, tenant, timeline, &standby).await?;
    ensure!(code == 412, "{code} {answer}");
    let last = server.last_record_lsn(tenant, timeline).await?;
    ensure!(last >= lost, "{last} is below {lost}");
    let home = server.restore(tenant, timeline, lost).await?;
    let restored = Postgres::start_existing(MAJOR, home, &[]).await?;
    ensure!(restored.value("SELECT count(*) FROM t").await? == "3000");
    drop(restored);
    ensure!(slots(&standby).await? == [format!("palimpsest_{successor}")], "{:?}", slots(&standby).await?);

    // The bucket as a crash leaves it between archiving and making the successor: whoever comes next makes it.
    server.kill();
    server.wipe_disk()?;
    for of_successor in
        [format!("tenants/{tenant}/timelines/{successor}"), format!("palimpsest/wal/{tenant}/{successor}")]
    {
        std::fs::remove_dir_all(bucket.path().join(&of_successor)).context(of_successor)?;
    }
    server.start_again().await?;
    standby.sql("INSERT INTO t VALUES (-501)").await?;
    server.wait_for(tenant, successor, end_of(&standby).await?, PATIENCE).await?;
    detail_when(&server, tenant, timeline, |detail| detail["is_archived"] == true).await?;
    same_as_primary(&mut standby, &mut server, (tenant, successor), PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_made_anew_or_said_and_never_jumped() {
    lost_slot().await.unwrap();
}

async fn lost_slot() -> Result<()> {
    let primary = Postgres::start(
        &PostgresConfig::new(MAJOR)
            .wal_segment_mib(1)
            .set("max_slot_wal_keep_size", "2MB")
            .set("max_wal_size", "4MB")
            .set("min_wal_size", "2MB"),
    )
    .await?;
    primary.sql("CREATE TABLE t (n int, filler text)").await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut server = server_over(bucket.path()).await?;
    server.follow(tenant, timeline, &primary.dsn()).await?;
    server.wait_active(tenant, timeline, PATIENCE).await?;

    // The slot is gone, the WAL is not.
    server.stop().await?;
    primary.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await?;
    primary.sql("INSERT INTO t VALUES (1)").await?;
    server.start_again().await?;
    server.wait_for(tenant, timeline, end_of(&primary).await?, PATIENCE).await?;
    ensure!(slots(&primary).await? == [format!("palimpsest_{timeline}")]);

    // Both are gone.
    server.stop().await?;
    let before = end_of(&primary).await?;
    for _ in 0..6 {
        primary.sql("INSERT INTO t SELECT n, repeat('x', 900) FROM generate_series(1, 2500) n").await?;
        primary.sql("SELECT pg_switch_wal()").await?;
        primary.sql("CHECKPOINT").await?;
    }
    let status_of_slot = primary.value("SELECT wal_status FROM pg_replication_slots").await?;
    ensure!(status_of_slot == "lost", "the slot is {status_of_slot}");
    server.start_again().await?;
    let detail =
        detail_when(&server, tenant, timeline, |detail| status(detail).starts_with("SlotLost")).await?;
    let last: Lsn = detail["last_record_lsn"].as_str().context("no LSN")?.parse()?;
    ensure!(last <= before && detail["state"] == "Active", "{detail}");
    let (_, tasks) = server.http(Method::GET, "/v1/tasks", None).await?;
    ensure!(tasks.to_string().contains("no longer has the WAL"), "{tasks}");
    // It stays readable, goes nowhere, and costs the source nothing.
    let home = server.restore(tenant, timeline, last).await?;
    let restored = Postgres::start_existing(MAJOR, home, &[]).await?;
    ensure!(restored.value("SELECT count(*) FROM t").await? == "1");
    ensure!(server.last_record_lsn(tenant, timeline).await? == last);
    let since = Instant::now();
    while !slots(&primary).await?.is_empty() {
        ensure!(since.elapsed() < PATIENCE, "a slot remains");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A timeline that is deleted takes its slot along.
    let another = TimelineId(rand::random());
    server.follow(tenant, another, &primary.dsn()).await?;
    server.wait_active(tenant, another, PATIENCE).await?;
    let path = format!("/v1/tenant/{tenant}/timeline/{another}");
    let (code, answer) = server.http(Method::DELETE, &path, None).await?;
    ensure!(code == 202 && answer.is_null(), "{code} {answer}");
    let left = slots(&primary).await?;
    ensure!(!left.contains(&format!("palimpsest_{another}")), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_asked_for_does_not_outlive_its_timeline() {
    late_slot().await.unwrap();
}

/// The source hears of a wanted slot only after the one who wanted it was told to stop: had the deletion not waited for that, the slot would
/// come to be after it was dropped.
async fn late_slot() -> Result<()> {
    let primary = Postgres::start(&config()).await?;
    let proxy = FaultProxy::start(primary.port()).await?;
    let through = primary.dsn().replace(&primary.port().to_string(), &proxy.port().to_string());
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut server = server_over(bucket.path()).await?;
    server.follow(tenant, timeline, &through).await?;
    server.wait_active(tenant, timeline, PATIENCE).await?;
    server.stop().await?;
    proxy.set(Fault::StallAt("CREATE_REPLICATION_SLOT"));
    server.start_again().await?;
    tokio::time::timeout(PATIENCE, proxy.has_stalled()).await?;

    let path = format!("/v1/tenant/{tenant}/timeline/{timeline}");
    let deletion = server.http(Method::DELETE, &path, None);
    let source_hears = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.set(Fault::None);
    };
    let (deleted, ()) = tokio::join!(deletion, source_hears);
    let (code, answer) = deleted?;
    ensure!(code == 202 && answer.is_null(), "{code} {answer}");
    let since = Instant::now();
    while primary.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'").await?
        != "0"
    {
        ensure!(since.elapsed() < PATIENCE, "a walsender remains");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = slots(&primary).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_restores_of_one_place_are_two_histories() {
    two_restores().await.unwrap();
}

async fn two_restores() -> Result<()> {
    let primary = Postgres::start(&config()).await?;
    primary.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true; CREATE TABLE t (n int)").await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, main) = ids();
    let mut server = server_over(bucket.path()).await?;
    server.follow(tenant, main, &primary.dsn()).await?;
    server.wait_active(tenant, main, PATIENCE).await?;
    primary.sql("INSERT INTO t VALUES (1)").await?;
    let at = end_of(&primary).await?;
    server.wait_for(tenant, main, at, PATIENCE).await?;
    let branch = TimelineId(rand::random());
    server.branch(tenant, branch, main, at).await?;
    let mut one = Postgres::start_existing(MAJOR, server.restore(tenant, branch, at).await?, &[]).await?;
    let other = Postgres::start_existing(MAJOR, server.restore(tenant, branch, at).await?, &[]).await?;
    other.sql("INSERT INTO t SELECT generate_series(1, 1000)").await?;

    let (code, answer) = set_source(&server, tenant, branch, &one).await?;
    ensure!(code == 200, "{code} {answer}");
    one.sql("INSERT INTO t VALUES (2)").await?;
    server.wait_for(tenant, branch, end_of(&one).await?, PATIENCE).await?;

    let (code, answer) = set_source(&server, tenant, branch, &other).await?;
    ensure!(code == 412 && answer.to_string().contains("nonce"), "{code} {answer}");
    ensure!(slots(&other).await?.is_empty());

    // Nor is it taken when it comes to sit at the place of the first: the restart connects again.
    one.sql("INSERT INTO t VALUES (3)").await?;
    server.kill();
    server.wipe_disk()?;
    server.start_again().await?;
    server.wait_for(tenant, branch, end_of(&one).await?, PATIENCE).await?;
    same_as_primary(&mut one, &mut server, (tenant, branch), PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_takes_the_slot_and_the_old_one_leaves() {
    new_owner().await.unwrap();
}

async fn new_owner() -> Result<()> {
    let primary = Postgres::start(&config()).await?;
    primary.sql("CREATE TABLE t (n int)").await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut old = server_over(bucket.path()).await?;
    old.follow(tenant, timeline, &primary.dsn()).await?;
    old.wait_active(tenant, timeline, PATIENCE).await?;
    primary.sql("INSERT INTO t VALUES (1)").await?;
    old.wait_for(tenant, timeline, end_of(&primary).await?, PATIENCE).await?;

    let mut new = server_over(bucket.path()).await?;
    primary.sql("INSERT INTO t VALUES (2)").await?;
    new.wait_for(tenant, timeline, end_of(&primary).await?, PATIENCE).await?;
    let since = Instant::now();
    while old.process().context("it was started")?.exit_status().is_none() {
        ensure!(since.elapsed() < PATIENCE, "the old owner stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    primary.sql("INSERT INTO t VALUES (3)").await?;
    new.wait_for(tenant, timeline, end_of(&primary).await?, PATIENCE).await?;
    let active = primary.value("SELECT count(*) FROM pg_replication_slots WHERE active").await?;
    ensure!(active == "1", "{active} walsenders have slots");
    Ok(())
}
