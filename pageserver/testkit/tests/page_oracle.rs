//! The page oracle: Postgres' own files are the truth.
//!
//! A primary runs everything it can while a pageserver follows it, then stops cleanly. Every block of every permanent
//! relation and every SLRU page, read through `pagestream_v3` at the final LSN, must equal the primary's file under
//! Postgres' masks. At LSNs of the past a fullbackup must start, pass `pg_amcheck`, and answer what was answered live.
//!
//! Layers are small, so that all this goes through merges, images and trimming; and of history only the last megabytes and what is leased are kept.
//!
//! `ORACLE=long` runs every combination of settings with ten restores each; `ORACLE_SEED` chooses another seed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use model::{Lsn, TenantId, TimelineId};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use testkit::oracle::{Pages, compare_relations, compare_slrus, shutdown_checkpoint};
use testkit::workload::{Moment, Workload, answers};
use testkit::{BucketAt, Pageserver, Postgres, PostgresConfig, Shutdown, cluster_files};

/// One run's settings.
#[derive(Clone, Copy, Debug)]
struct Run {
    major: u32,
    full_page_writes: bool,
    checksums: bool,
    compression: &'static str,
    wal_segment_mib: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_postgres_14_is_what_the_primary_has() {
    run_major(
        14,
        Run { major: 14, full_page_writes: true, checksums: false, compression: "off", wal_segment_mib: 1 },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_postgres_15_is_what_the_primary_has() {
    run_major(
        15,
        Run { major: 15, full_page_writes: false, checksums: true, compression: "lz4", wal_segment_mib: 64 },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_postgres_16_is_what_the_primary_has() {
    run_major(
        16,
        Run { major: 16, full_page_writes: true, checksums: true, compression: "pglz", wal_segment_mib: 1 },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_postgres_17_is_what_the_primary_has() {
    run_major(
        17,
        Run {
            major: 17,
            full_page_writes: false,
            checksums: false,
            compression: "pglz",
            wal_segment_mib: 64,
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_postgres_18_is_what_the_primary_has() {
    run_major(
        18,
        Run { major: 18, full_page_writes: true, checksums: true, compression: "off", wal_segment_mib: 16 },
    )
    .await;
}

/// Postgres' own redo is right by definition: if the oracle refused its pages, the oracle would be wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_postgres_itself_passes() {
    standby(15).await.unwrap();
}

async fn standby(major: u32) -> Result<()> {
    // In-place tablespaces, as a standby on the same machine cannot use the primary's directories.
    let mut postgres = Postgres::start(&PostgresConfig::new(major)).await?;
    postgres.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true").await?;
    let mut work = Workload::new(&postgres, 1, 1);
    let spaces = postgres.make_dir("mapped")?;
    work.prepare().await?;
    work.round().await?;
    let home = testkit::account::temp_dir_for(testkit::account::postgres_account()?)?;
    let data = home.path().join("data");
    let mapping = format!("{}={}", postgres.home().join("space one").display(), spaces.join("one").display());
    postgres
        .run_program(
            "pg_basebackup",
            &[
                "-D",
                &data.display().to_string(),
                "-X",
                "stream",
                "-c",
                "fast",
                "--no-sync",
                "-R",
                "-T",
                &mapping,
            ],
        )
        .await?;
    let mut standby =
        Postgres::start_existing(major, home, &[("hot_standby", "on"), ("autovacuum", "off")]).await?;
    // The tablespaces a round makes in passing would need their directories on the standby: the last round's steps
    // that matter most, one by one.
    work.quiet_round().await?;
    let relations = cluster_files::permanent_relations(&postgres).await?;
    postgres.stop(Shutdown::Fast).await?;
    let end = shutdown_checkpoint(&postgres)?;
    let since = Instant::now();
    loop {
        let at: Lsn = standby.value("SELECT pg_last_wal_replay_lsn()").await?.parse()?;
        if at >= end {
            break;
        }
        ensure!(
            since.elapsed() < Duration::from_mins(1),
            "the standby is at {at}, not {end}:\n{}",
            standby.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    standby.stop(Shutdown::Fast).await?;
    let mut pages = Pages::Files(standby.data_dir().to_owned());
    let tally = compare_relations(&postgres, &relations, &mut pages).await?;
    println!("standby: {tally}SLRU pages: {}", compare_slrus(&postgres, &mut pages).await?);
    tally.verdict()
}

async fn run_major(major: u32, chosen: Run) {
    let seed = std::env::var("ORACLE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(u64::from(major));
    if std::env::var("ORACLE").as_deref() != Ok("long") {
        oracle(chosen, seed, 3, 2).await.with_context(|| format!("{chosen:?}, seed {seed}")).unwrap();
        return;
    }
    let mut failures = Vec::new();
    for number in 0..16_u8 {
        let bit = |n: u32| number & (1 << n) != 0;
        let compression = match (bit(2), major) {
            (false, _) => "off",
            (true, 14) => "on",
            (true, 15) => ["lz4", "zstd", "pglz"][usize::from(number) % 3],
            (true, _) => "pglz",
        };
        let run = Run {
            major,
            full_page_writes: bit(0),
            checksums: bit(1),
            compression,
            wal_segment_mib: if bit(3) { 64 } else { 1 },
        };
        let seed = seed * 1_000 + u64::from(number);
        // The other combinations are worth their hours also when one fails.
        if let Err(error) = oracle(run, seed, 12, 10).await {
            let failure = format!("{run:?}, seed {seed}: {error:?}");
            println!("FAILED: {failure}");
            failures.push(failure);
        }
    }
    assert!(failures.is_empty(), "{} of 16 runs failed:\n{}", failures.len(), failures.join("\n"));
}

/// What makes a few megabytes of WAL pass through everything that becomes of layers, and history short.
const SMALL_LAYERS: [(&str, &str); 7] = [
    ("layer_size", "512KiB"),
    ("compaction_period", "100ms"),
    ("gc_period", "500ms"),
    ("pitr_interval", "0s"),
    ("gc_horizon", "2MiB"),
    ("orphan_grace", "1s"),
    ("lsn_lease_length", "3h"),
];

/// Runs one primary and compares. `rounds` of work are recorded, `restores` of them are brought back.
async fn oracle(run: Run, seed: u64, rounds: usize, restores: usize) -> Result<()> {
    let began = Instant::now();
    let config = PostgresConfig::new(run.major)
        .checksums(run.checksums)
        .wal_segment_mib(run.wal_segment_mib)
        .set("full_page_writes", if run.full_page_writes { "on" } else { "off" })
        .set("wal_compression", run.compression);
    let mut postgres = Postgres::start(&config).await?;
    postgres.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true").await?;
    let mut work = Workload::new(&postgres, seed, 1);
    work.prepare().await?;
    work.round().await?;

    let bucket = tempfile::tempdir()?;
    let mut server = Pageserver::start(BucketAt::Directory(bucket.path().to_owned()), &SMALL_LAYERS).await?;
    let (tenant, timeline) = (TenantId(rand::random()), TimelineId(rand::random()));
    server.follow(tenant, timeline, &postgres.dsn()).await?;
    // The base backup is taken while all this goes on.
    work.round().await?;
    server.wait_active(tenant, timeline, Duration::from_mins(2)).await?;
    let followed = began.elapsed();

    let mut moments = Vec::new();
    for _ in 0..rounds {
        work.round().await?;
        let moment = work.record().await?;
        server.wait_for(tenant, timeline, moment.lsn, Duration::from_mins(2)).await?;
        server.lease(tenant, timeline, moment.lsn).await?;
        moments.push(moment);
    }
    let relations = cluster_files::permanent_relations(&postgres).await?;
    let stopped_in = postgres.stop(Shutdown::Fast).await?;
    ensure!(
        stopped_in < Duration::from_secs(10),
        "the primary took {stopped_in:?} to stop while it was followed"
    );

    let end = shutdown_checkpoint(&postgres)?;
    server.wait_for(tenant, timeline, end, Duration::from_mins(3)).await?;
    let last = server.last_record_lsn(tenant, timeline).await?;
    let mut pages = Pages::Served(server.pages(tenant, timeline).await?, last);
    let tally = compare_relations(&postgres, &relations, &mut pages).await?;
    let slru_pages = compare_slrus(&postgres, &mut pages).await?;
    println!(
        "Postgres {} ({run:?}): followed after {followed:.1?}, worked until {:.1?}, compared by {:.1?}\n{tally}  SLRU pages: {slru_pages}",
        run.major,
        followed,
        began.elapsed()
    );
    tally.verdict()?;
    let (_, metrics) = server.http_text("/metrics").await?;
    let maintenance: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("palimpsest_maintenance")).collect();
    println!("{}", maintenance.join("\n"));
    let log = server.log();
    let failed: Vec<&str> = log.lines().filter(|line| line.contains("a compaction failed")).collect();
    ensure!(failed.is_empty(), "compactions failed:\n{}", failed.join("\n"));
    for what in ["jobs", "cutoffs_moved"] {
        let none = format!("palimpsest_maintenance{{what=\"{what}\"}} 0\n");
        ensure!(!metrics.contains(&none), "nothing was compacted, or collected");
    }

    let mut random = StdRng::seed_from_u64(seed ^ 1);
    moments.shuffle(&mut random);
    // Two at a time: one reads pages while the other checks indexes.
    futures::stream::iter(moments.iter().take(restores))
        .map(|moment| restore_and_ask(&server, run.major, tenant, timeline, moment))
        .buffer_unordered(2)
        .try_collect::<()>()
        .await?;
    println!(
        "Postgres {}: {restores} restores answered as recorded; {:.1?} in all",
        run.major,
        began.elapsed()
    );
    Ok(())
}

async fn restore_and_ask(
    server: &Pageserver,
    major: u32,
    tenant: TenantId,
    timeline: TimelineId,
    moment: &Moment,
) -> Result<()> {
    let home = server
        .restore(tenant, timeline, moment.lsn)
        .await
        .with_context(|| format!("fullbackup at {}", moment.lsn))?;
    let settings = [("max_prepared_transactions", "20"), ("shared_buffers", "32MB")];
    let mut restored = Postgres::start_existing(major, home, &settings)
        .await
        .with_context(|| format!("restored at {}", moment.lsn))?;
    let now = answers(&restored).await?;
    for (recorded, now) in moment.answers.lines().zip(now.lines()) {
        ensure!(recorded == now, "at {}: recorded live: {recorded}\nrestored: {now}", moment.lsn);
    }
    ensure!(
        moment.answers.lines().count() == now.lines().count(),
        "at {}: more or fewer answers",
        moment.lsn
    );
    restored.run_program("pg_amcheck", &["--all", "--heapallindexed"]).await?;
    restored.stop(Shutdown::Fast).await?;
    Ok(())
}
