//! Backups that were made earlier, and a cluster that was shut down, become timelines; a source can be followed from their end on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::Method;
use model::{Lsn, TenantId, TimelineId};
use serde_json::json;
use testkit::oracle::shutdown_checkpoint;
use testkit::{BucketAt, Pageserver, Postgres, PostgresConfig, Shutdown};

const SUM: &str = "SELECT count(*) || ' ' || sum(hashtext(t::text)) FROM t";

struct Scene {
    postgres: Postgres,
    server: Pageserver,
    tenant: TenantId,
    timeline: TimelineId,
    _bucket: tempfile::TempDir,
}

impl Scene {
    /// A primary with some data, and a server whose directory of bases is next to the primary's data.
    async fn set(config: &PostgresConfig) -> Result<Scene> {
        let postgres = Postgres::start(config).await?;
        postgres.sql("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 5) AS filler FROM generate_series(1, 20000) n").await?;
        postgres.sql("CREATE UNLOGGED TABLE gone AS SELECT 1; CREATE EXTENSION amcheck").await?;
        let bases = postgres.home().display().to_string();
        let bucket = tempfile::tempdir()?;
        let at = BucketAt::Directory(bucket.path().to_owned());
        let server = Pageserver::start(at, &[("base_dir", &bases)]).await?;
        let (tenant, timeline) = (TenantId(rand::random()), TimelineId(rand::random()));
        Ok(Scene { postgres, server, tenant, timeline, _bucket: bucket })
    }

    async fn import(&self, name: &str) -> Result<(u16, serde_json::Value)> {
        let body = json!({ "new_timeline_id": self.timeline.to_string(), "base": { "path": name } });
        self.server.http(Method::POST, &format!("/v1/tenant/{}/timeline", self.tenant), Some(&body)).await
    }

    async fn wait_imported(&mut self) -> Result<Lsn> {
        self.server.wait_active(self.tenant, self.timeline, Duration::from_mins(1)).await?;
        self.server.last_record_lsn(self.tenant, self.timeline).await
    }

    async fn restored_sum(&self, lsn: Lsn) -> Result<String> {
        let home = self.server.restore(self.tenant, self.timeline, lsn).await?;
        let mut restored = Postgres::start_existing(self.postgres.major(), home, &[]).await?;
        let sum = restored.value(SUM).await?;
        restored.run_program("pg_amcheck", &["--all", "--heapallindexed"]).await?;
        restored.stop(Shutdown::Fast).await?;
        Ok(sum)
    }

    /// What was done since the backup arrives from the running primary.
    async fn goes_on_from_the_primary(&mut self) -> Result<()> {
        let path = format!("/v1/tenant/{}/timeline/{}/primary", self.tenant, self.timeline);
        let body = json!({ "dsn": self.postgres.dsn() });
        let (status, answer) = self.server.http(Method::PUT, &path, Some(&body)).await?;
        ensure!(status == 200, "{status} {answer}");
        self.postgres.sql("INSERT INTO t SELECT n, 'later' FROM generate_series(1, 1000) n").await?;
        let expected = self.postgres.value(SUM).await?;
        // A source that stops waits for those who follow it, not for one that is about to connect.
        let written = self.postgres.flushed_lsn().await?.parse()?;
        self.server.wait_for(self.tenant, self.timeline, written, Duration::from_mins(1)).await?;
        self.postgres.stop(Shutdown::Fast).await?;
        let end = shutdown_checkpoint(&self.postgres)?;
        self.server.wait_for(self.tenant, self.timeline, end, Duration::from_mins(1)).await?;
        let last = self.server.last_record_lsn(self.tenant, self.timeline).await?;
        let sum = self.restored_sum(last).await?;
        ensure!(sum == expected, "after following: {sum}, the primary had {expected}");
        Ok(())
    }
}

/// `pg_basebackup` with these arguments while rows are written, imported, restored, and followed on.
async fn backup_becomes_a_timeline(config: &PostgresConfig, arguments: &[&str]) -> Result<()> {
    let mut scene = Scene::set(config).await?;
    let place = scene.postgres.home().join("monday").display().to_string();
    let writer = scene.postgres.connect("postgres").await?;
    let writing = tokio::spawn(async move {
        for n in 0..200 {
            writer.batch_execute(&format!("UPDATE t SET filler = 'during {n}' WHERE n % 200 = {n}")).await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    let arguments = [&["-D", &place, "-c", "fast", "--no-sync"], arguments].concat();
    scene.postgres.run_program("pg_basebackup", &arguments).await?;
    writing.await??;

    let (status, answer) = scene.import("../postgres").await?;
    ensure!(status == 400, "a base outside of the directory: {status} {answer}");
    let (status, answer) = scene.import("monday").await?;
    ensure!(status == 201, "{status} {answer}");
    let end = scene.wait_imported().await?;
    // As of the backup's end it is whole; what exactly had been written by then nobody else knows.
    let sum = scene.restored_sum(end).await?;
    ensure!(sum.starts_with("20000 "), "at the backup's end: {sum}");
    scene.goes_on_from_the_primary().await
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_with_wal_inside_become_a_timeline() -> Result<()> {
    backup_becomes_a_timeline(&PostgresConfig::new(14), &["-Ft", "-X", "fetch"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_with_wal_apart_become_a_timeline() -> Result<()> {
    backup_becomes_a_timeline(&PostgresConfig::new(17).wal_segment_mib(1), &["-Ft", "-X", "stream"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_backup_becomes_a_timeline() -> Result<()> {
    backup_becomes_a_timeline(&PostgresConfig::new(18), &["-Fp", "-X", "stream"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_shut_down_becomes_a_timeline_and_one_that_runs_does_not() -> Result<()> {
    let mut scene = Scene::set(&PostgresConfig::new(16)).await?;
    let name = scene.postgres.data_dir().file_name().context("no name")?.to_string_lossy().into_owned();
    let (status, answer) = scene.import(&name).await?;
    ensure!(
        status == 412 && answer["msg"].as_str().is_some_and(|text| text.contains("in production")),
        "{status} {answer}"
    );
    let expected = scene.postgres.value(SUM).await?;
    scene.postgres.stop(Shutdown::Fast).await?;
    let (status, answer) = scene.import(&name).await?;
    ensure!(status == 201, "{status} {answer}");
    let end = scene.wait_imported().await?;
    let sum = scene.restored_sum(end).await?;
    ensure!(sum == expected, "restored {sum}, it was {expected}");
    scene.postgres.start_again().await?;
    scene.goes_on_from_the_primary().await
}
