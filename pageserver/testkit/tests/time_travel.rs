//! From a time to an LSN, to a branch, to a cluster that knows nothing of what came later.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::Method;
use model::{TenantId, TimelineId};
use serde_json::json;
use testkit::pageserver::{BucketAt, Pageserver};
use testkit::postgres::{Postgres, PostgresConfig, Shutdown};

/// Now, by the source's clock, in RFC 3339.
const NOW: &str = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_at_a_time_has_what_was_committed_by_then_and_nothing_else() -> Result<()> {
    let mut postgres = Postgres::start(&PostgresConfig::new(16)).await?;
    postgres.sql("CREATE TABLE t (n int)").await?;
    let bucket = tempfile::tempdir()?;
    let mut server = Pageserver::start(BucketAt::Directory(bucket.path().to_owned()), &[]).await?;
    let (tenant, timeline) = (TenantId(rand::random()), TimelineId(rand::random()));
    let before_all = postgres.value(NOW).await?;
    server.follow(tenant, timeline, &postgres.dsn()).await?;
    server.wait_active(tenant, timeline, Duration::from_mins(1)).await?;

    // What is committed next is committed later than this, and what is there was there before.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before_the_first = postgres.value(NOW).await?;
    let mut times = Vec::new();
    for n in 1..=4 {
        postgres.sql(&format!("INSERT INTO t VALUES ({n})")).await?;
        times.push(postgres.value(NOW).await?);
    }
    postgres.stop(Shutdown::Fast).await?;
    let end = testkit::oracle::shutdown_checkpoint(&postgres)?;
    server.wait_for(tenant, timeline, end, Duration::from_mins(1)).await?;

    let path = format!("/v1/tenant/{tenant}/timeline/{timeline}/get_lsn_by_timestamp?timestamp=");
    let kind = async |time: &str| -> Result<String> {
        let (status, answer) = server.http(Method::GET, &format!("{path}{time}"), None).await?;
        ensure!(status == 200, "{status} {answer}");
        Ok(answer["kind"].as_str().context("no kind")?.to_owned())
    };
    ensure!(kind(&before_all).await? == "past", "the time before the import is {}", kind(&before_all).await?);
    let found = kind(&before_the_first).await?;
    ensure!(found == "present", "a time between the import and the first commit is {found}");
    ensure!(kind(&times[1]).await? == "present", "a time between commits is {}", kind(&times[1]).await?);
    ensure!(
        kind("2100-01-01T00:00:00Z").await? == "future",
        "the year 2100 is {}",
        kind("2100-01-01T00:00:00Z").await?
    );

    let branch = TimelineId(rand::random());
    let body = json!({
        "new_timeline_id": branch.to_string(),
        "ancestor_timeline_id": timeline.to_string(),
        "ancestor_start_timestamp": times[1],
    });
    let (status, answer) =
        server.http(Method::POST, &format!("/v1/tenant/{tenant}/timeline"), Some(&body)).await?;
    ensure!(status == 201, "{status} {answer}");
    let lsn = server.last_record_lsn(tenant, branch).await?;
    let home = server.restore(tenant, branch, lsn).await?;
    let restored = Postgres::start_existing(16, home, &[]).await?;
    let rows = restored.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await?;
    ensure!(rows == "1,2", "the branch at the second commit's time has {rows}");
    Ok(())
}
