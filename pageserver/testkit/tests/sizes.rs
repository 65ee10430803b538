//! How large timelines and tenants are, and what is told of it to whoever bills it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use hyper::Method;
use model::{Lsn, TenantId, TimelineId};
use serde_json::Value;
use testkit::pageserver::{BucketAt, Pageserver};
use testkit::postgres::{Postgres, PostgresConfig};

const PATIENCE: Duration = Duration::from_mins(1);

/// The size as the timeline says it, after a look that it is the sum of all relations' sizes.
async fn logical_size(server: &Pageserver, tenant: TenantId, timeline: TimelineId) -> Result<u64> {
    let path = format!("/v1/tenant/{tenant}/timeline/{timeline}?include-non-incremental-logical-size=true");
    let (status, detail) = server.http(Method::GET, &path, None).await?;
    ensure!(status == 200, "{status} {detail}");
    ensure!(detail["current_logical_size_is_accurate"] == true, "{detail}");
    let size = detail["current_logical_size"].as_u64().context("no size")?;
    ensure!(detail["current_logical_size_non_incremental"] == size, "{detail}");
    Ok(size)
}

async fn caught_up(
    server: &mut Pageserver,
    postgres: &Postgres,
    tenant: TenantId,
    timeline: TimelineId,
) -> Result<Lsn> {
    // A record of its own, so that there is one that ends beyond what is to be seen.
    let lsn: Lsn = postgres.value("SELECT pg_logical_emit_message(false, 'sizes', '')").await?.parse()?;
    postgres.sql("CHECKPOINT").await?;
    server.wait_for(tenant, timeline, lsn, PATIENCE).await?;
    Ok(lsn)
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_follow_what_a_postgres_does_and_survive_a_restart() -> Result<()> {
    let postgres = Postgres::start(&PostgresConfig::new(17)).await?;
    postgres.sql("CREATE TABLE before AS SELECT generate_series(1, 50000) AS n").await?;
    let bucket = tempfile::tempdir()?;
    let at = BucketAt::Directory(bucket.path().to_owned());
    let settings = [("synthetic_size_calculation_interval", "1s"), ("layer_size", "1MiB")];
    let mut server = Pageserver::start(at, &settings).await?;
    let (tenant, timeline) = (TenantId(rand::random()), TimelineId(rand::random()));
    server.follow(tenant, timeline, &postgres.dsn()).await?;
    server.wait_active(tenant, timeline, PATIENCE).await?;
    caught_up(&mut server, &postgres, tenant, timeline).await?;
    let base = logical_size(&server, tenant, timeline).await?;
    // All databases' files, and what they share; some of that is not relations, and maps may be a page or two behind.
    let files: u64 = postgres
        .value("SELECT sum(pg_database_size(oid)) + (SELECT size FROM pg_stat_file('global/pg_control')) FROM pg_database")
        .await?
        .parse()?;
    ensure!(base.abs_diff(files) < files / 20, "{base} bytes, in files about {files}");

    postgres.sql("CREATE TABLE more AS SELECT generate_series(1, 200000) AS n").await?;
    let at_more = caught_up(&mut server, &postgres, tenant, timeline).await?;
    let with_more = logical_size(&server, tenant, timeline).await?;
    let relation: u64 = postgres.value("SELECT pg_relation_size('more')").await?.parse()?;
    // Postgres adds pages ahead of what it writes, without telling.
    let relation = relation / 10 * 9;
    ensure!(with_more >= base + relation, "{with_more} after {base}, with {relation} more");
    postgres.sql("CREATE DATABASE copied TEMPLATE template0 STRATEGY file_copy").await?;
    postgres.sql("DELETE FROM before WHERE n > 100").await?;
    postgres.sql("VACUUM before").await?;
    caught_up(&mut server, &postgres, tenant, timeline).await?;
    let with_copy = logical_size(&server, tenant, timeline).await?;
    ensure!(with_copy > with_more + (5 << 20), "a database has more than {} bytes", with_copy - with_more);
    postgres.sql("DROP DATABASE copied").await?;
    postgres.sql("DROP TABLE more").await?;
    let dropped_at = caught_up(&mut server, &postgres, tenant, timeline).await?;
    let dropped = logical_size(&server, tenant, timeline).await?;
    ensure!(dropped < base && with_more - dropped > relation, "{dropped}, {base} before");

    let branch = TimelineId(rand::random());
    server.branch(tenant, branch, timeline, at_more).await?;
    let branched = logical_size(&server, tenant, branch).await?;
    // Vacuum may have made a map between the two looks.
    ensure!(branched.abs_diff(with_more) < 1 << 20, "the branch has {branched}, its parent had {with_more}");
    server.kill();
    server.wipe_disk()?;
    server.start_again().await?;
    server.wait_for(tenant, timeline, dropped_at, PATIENCE).await?;
    ensure!(logical_size(&server, tenant, branch).await? == branched);
    ensure!(logical_size(&server, tenant, timeline).await? <= dropped + (1 << 20));

    // The tenant: a snapshot at the start of the history, what was written since, and the branch shares it.
    let path = format!("/v1/tenant/{tenant}/synthetic_size");
    let (status, whole) = server.http(Method::GET, &path, None).await?;
    ensure!(status == 200, "{status} {whole}");
    let written: Lsn = server.last_record_lsn(tenant, timeline).await?;
    let start = whole["inputs"]["segments"][0]["segment"].clone();
    let (from, snapshot) = (start["lsn"].as_u64().context("lsn")?, start["size"].as_u64().context("size")?);
    let size = whole["size"].as_u64().context("size")?;
    ensure!(size >= snapshot && size <= snapshot + (written.0 - from) + (1 << 20), "{whole}");
    let (_, inputs) = server.http(Method::GET, &format!("{path}?inputs_only=true"), None).await?;
    ensure!(
        inputs["size"].is_null() && inputs["inputs"]["timeline_inputs"].as_array().map(Vec::len) == Some(2)
    );

    let since = Instant::now();
    let wanted = [
        format!("pageserver_tenant_synthetic_cached_size_bytes{{tenant_id=\"{tenant}\"}}"),
        format!(
            "pageserver_current_logical_size{{shard_id=\"0000\",tenant_id=\"{tenant}\",timeline_id=\"{branch}\"}} {branched}"
        ),
        "pageserver_resident_physical_size_global ".into(),
    ];
    loop {
        let (_, metrics) = server.http_text("/metrics").await?;
        let Some(missing) = wanted.iter().find(|sample| !metrics.contains(*sample)) else { break };
        ensure!(since.elapsed() < PATIENCE, "no {missing} in {metrics}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let detail = server.timeline(tenant, timeline).await?;
    let (remote, resident) = (&detail["current_physical_size"], &detail["resident_physical_size"]);
    ensure!(remote.as_u64() > Some(0) && resident.as_u64() > Some(0), "{detail}");
    Ok(())
}

/// What a receiver got, by key.
#[derive(Default)]
struct Received {
    is_away: AtomicBool,
    /// It takes what it gets, and does not say so.
    is_silent: AtomicBool,
    events: Mutex<BTreeMap<String, Value>>,
    repeats: Mutex<usize>,
}

async fn receive(
    axum::extract::State(received): axum::extract::State<Arc<Received>>,
    axum::Json(body): axum::Json<Value>,
) -> StatusCode {
    if received.is_away.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    for event in body["events"].as_array().unwrap() {
        let key = event["idempotency_key"].as_str().unwrap().to_owned();
        if let Some(before) = received.events.lock().unwrap().insert(key, event.clone()) {
            assert_eq!(before, *event, "a repeat says the same");
            *received.repeats.lock().unwrap() += 1;
        }
    }
    if received.is_silent.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    StatusCode::OK
}

impl Received {
    fn of(&self, metric: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.values().filter(|event| event["metric"] == metric).cloned().collect()
    }

    fn written(&self) -> u64 {
        self.of("written_data_bytes_delta").iter().filter_map(|event| event["value"].as_u64()).sum()
    }

    async fn until(&self, what: &str, is_reached: impl Fn(&Received) -> bool) -> Result<()> {
        let since = Instant::now();
        while !is_reached(self) {
            ensure!(since.elapsed() < PATIENCE, "not {what} in time; told are {} bytes", self.written());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_adds_up_through_outages_lost_answers_and_lost_servers() -> Result<()> {
    let received = Arc::new(Received::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}/usage", listener.local_addr()?);
    let routes =
        axum::Router::new().route("/usage", axum::routing::post(receive)).with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let postgres = Postgres::start(&PostgresConfig::new(16)).await?;
    let bucket = tempfile::tempdir()?;
    let at = BucketAt::Directory(bucket.path().to_owned());
    let settings = [
        ("metric_collection_endpoint", &*endpoint),
        ("metric_collection_interval", "1s"),
        ("synthetic_size_calculation_interval", "1s"),
    ];
    let mut server = Pageserver::start(at, &settings).await?;
    let (tenant, timeline) = (TenantId(rand::random()), TimelineId(rand::random()));
    let body = serde_json::json!({"new_tenant_id": tenant.to_string()});
    let (status, answer) = server.http(Method::POST, "/v1/tenant", Some(&body)).await?;
    ensure!(status == 201, "{status} {answer}");
    // The first round only notes what there is; what begins later is told from its beginning on.
    received.until("begun", |received| !received.of("remote_storage_size").is_empty()).await?;
    server.follow(tenant, timeline, &postgres.dsn()).await?;
    server.wait_active(tenant, timeline, PATIENCE).await?;
    postgres.sql("CREATE TABLE t (n int)").await?;
    received.until("told", |received| received.written() > 0).await?;

    received.is_away.store(true, Ordering::SeqCst);
    postgres.sql("INSERT INTO t SELECT generate_series(1, 20000)").await?;
    caught_up(&mut server, &postgres, tenant, timeline).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.kill();
    server.wipe_disk()?;
    server.start_again().await?;
    received.is_away.store(false, Ordering::SeqCst);
    received.is_silent.store(true, Ordering::SeqCst);
    let before = received.written();
    received.until("told after the outage", |received| received.written() > before).await?;
    // It has them, and the server does not know it.
    server.kill();
    server.wipe_disk()?;
    received.is_silent.store(false, Ordering::SeqCst);
    server.start_again().await?;
    received.until("repeated", |received| *received.repeats.lock().unwrap() > 0).await?;
    postgres.sql("INSERT INTO t SELECT generate_series(1, 20000)").await?;
    let end = caught_up(&mut server, &postgres, tenant, timeline).await?;

    // Intervals follow each other without a gap, and add up to all that was written since the import.
    let newest = |metric: &str| {
        received.of(metric).iter().filter_map(|event| event["value"].as_u64()).max().unwrap_or(0)
    };
    received
        .until("all told", |received| {
            newest("written_size") >= end.0 && received.written() == newest("written_size_since_parent")
        })
        .await?;
    let mut deltas = received.of("written_data_bytes_delta");
    deltas.sort_by_key(|event| event["start_time"].as_str().map(str::to_owned));
    for pair in deltas.windows(2) {
        ensure!(pair[0]["stop_time"] == pair[1]["start_time"], "{} then {}", pair[0], pair[1]);
    }
    for metric in ["timeline_logical_size", "remote_storage_size", "resident_size", "synthetic_storage_size"]
    {
        ensure!(received.of(metric).iter().any(|event| event["value"].as_u64() > Some(0)), "no {metric}");
    }
    Ok(())
}
