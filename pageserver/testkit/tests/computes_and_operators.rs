//! What computes and operators ask of a running pageserver besides pages: base backups, leases, deletion.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use codec::control::{ClusterState, ControlFile};
use hyper::Method;
use model::{Lsn, TenantId, TimelineId};
use serde_json::{Value, json};
use testkit::{BucketAt, Pageserver, Postgres, PostgresConfig, Shutdown, page_client};

const MINUTE: Duration = Duration::from_mins(1);

fn ids() -> (TenantId, TimelineId) {
    (TenantId(rand::random()), TimelineId(rand::random()))
}

/// A pageserver that follows `postgres` and can be read.
async fn following(postgres: &Postgres, bucket: &Path) -> Result<(Pageserver, TenantId, TimelineId)> {
    let (tenant, timeline) = ids();
    let mut server = Pageserver::start(BucketAt::Directory(bucket.to_owned()), &[]).await?;
    server.follow(tenant, timeline, &postgres.dsn()).await?;
    server.wait_active(tenant, timeline, MINUTE).await?;
    Ok((server, tenant, timeline))
}

/// Contents of the files of a tar that a command answers with, by path.
async fn files_of(server: &Pageserver, command: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let to = tempfile::NamedTempFile::new()?;
    page_client::copy_out(&server.libpq_address(), command, to.path()).await?;
    let bytes = if command.contains("--gzip") {
        let gunzip = Command::new("gzip").arg("-dc").stdin(to.reopen()?).stdout(Stdio::piped()).spawn()?;
        let output = gunzip.wait_with_output()?;
        ensure!(output.status.success(), "{command}: what came is no gzip");
        output.stdout
    } else {
        std::fs::read(to.path())?
    };
    ensure!(bytes.ends_with(&[0; 1024]), "{command}: no terminator");
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&bytes[..]).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let path = entry.path()?.to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(path, content);
        }
    }
    Ok(files)
}

fn below(files: &BTreeMap<String, Vec<u8>>, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let found = files.iter().filter(|(path, _)| path.starts_with(prefix));
    found.map(|(path, content)| (path.clone(), content.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_has_what_a_full_one_has_but_for_the_relations() -> Result<()> {
    let config = PostgresConfig::new(17).set("max_prepared_transactions", 5);
    let mut postgres = Postgres::start(&config).await?;
    let bucket = tempfile::tempdir()?;
    let (mut server, tenant, timeline) = following(&postgres, bucket.path()).await?;
    postgres
        .sql(
            "CREATE TABLE locked (n int PRIMARY KEY); INSERT INTO locked VALUES (1);
             BEGIN; SELECT * FROM locked FOR SHARE; SAVEPOINT x; SELECT * FROM locked FOR UPDATE; COMMIT;
             CREATE UNLOGGED TABLE volatile (n int PRIMARY KEY);",
        )
        .await?;
    postgres.sql("BEGIN; INSERT INTO locked VALUES (2); PREPARE TRANSACTION 'waiting'").await?;
    for n in 10..500 {
        postgres.sql(&format!("INSERT INTO locked VALUES ({n})")).await?;
    }
    postgres.stop(Shutdown::Fast).await?;
    let end = testkit::oracle::shutdown_checkpoint(&postgres)?;
    server.wait_for(tenant, timeline, end, MINUTE).await?;
    let last = server.last_record_lsn(tenant, timeline).await?;

    let base = files_of(&server, &format!("basebackup {tenant} {timeline} {last}")).await?;
    let full = files_of(&server, &format!("fullbackup {tenant} {timeline} {last}")).await?;
    for prefix in ["pg_xact/", "pg_multixact/", "pg_twophase/"] {
        ensure!(!below(&base, prefix).is_empty(), "nothing in {prefix}");
        ensure!(below(&base, prefix) == below(&full, prefix), "{prefix} differs");
    }
    let mut init_forks = 0;
    for (path, content) in below(&base, "base/") {
        ensure!(full.get(&path) == Some(&content) || path.ends_with("PG_VERSION"), "{path} differs");
        init_forks += u32::from(path.ends_with("_init"));
    }
    // The table and its index.
    ensure!(init_forks == 2, "{init_forks} init forks");

    // Compressed, for a replica, and without an LSN: the same files.
    for arguments in ["", "latest --gzip", "--replica --gzip"] {
        let same = files_of(&server, &format!("basebackup {tenant} {timeline} {arguments}")).await?;
        ensure!(same == base, "{arguments:?} has other files");
    }

    let detail = server.timeline(tenant, timeline).await?;
    let prev = detail["prev_record_lsn"].as_str().context("no prev_record_lsn")?;
    ensure!(base["neon.signal"] == format!("PREV LSN: {prev}").as_bytes());
    ensure!(base["zenith.signal"] == base["neon.signal"]);
    let control = ControlFile::parse(&base["global/pg_control"])?;
    let begin = last.normalized(control.wal_segment_size.bytes());
    ensure!(
        (control.state, control.redo(), control.checkpoint_at) == (ClusterState::ShutDown, begin, Lsn(0))
    );

    // Elsewhere it is not known what came before, and at a branch point nothing did.
    let earlier = Lsn(last.0 - 8);
    let unknown = files_of(&server, &format!("basebackup {tenant} {timeline} {earlier}")).await?;
    ensure!(unknown["neon.signal"] == b"PREV LSN: invalid");
    let branch = TimelineId(rand::random());
    server.branch(tenant, branch, timeline, earlier).await?;
    let fresh = files_of(&server, &format!("basebackup {tenant} {branch}")).await?;
    ensure!(fresh["neon.signal"] == b"PREV LSN: none");
    Ok(())
}

/// A row's one column; `None` for NULL.
async fn lease(
    server: &Pageserver,
    tenant: TenantId,
    timeline: TimelineId,
    lsn: Lsn,
) -> Result<Option<String>> {
    let address = server.libpq_address();
    let (host, port) = address.split_once(':').context("host:port")?;
    let parameters = format!("host={host} port={port} user=cloud_admin");
    let (client, connection) = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(connection);
    let answer = client.simple_query(&format!("lease lsn {tenant} {timeline} {lsn}")).await;
    driver.abort();
    let row = answer?.into_iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.context("no row")?.get("valid_until").map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_a_lost_server() -> Result<()> {
    let postgres = Postgres::start(&PostgresConfig::new(16)).await?;
    let bucket = tempfile::tempdir()?;
    let (mut server, tenant, timeline) = following(&postgres, bucket.path()).await?;
    let last = server.last_record_lsn(tenant, timeline).await?;
    let asked = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    let until = lease(&server, tenant, timeline, last).await?.context("refused")?;
    let length = until.parse::<u128>()? - asked;
    ensure!((600_000..660_000).contains(&length), "{length} ms");
    // At once again: what is durable already.
    ensure!(lease(&server, tenant, timeline, last).await?.as_deref() == Some(until.as_str()));
    ensure!(lease(&server, tenant, timeline, Lsn(8)).await?.is_none());
    ensure!(
        lease(&server, tenant, timeline, Lsn(last.0 << 8)).await.is_err(),
        "a lease of what may never be"
    );

    server.kill();
    server.wipe_disk()?;
    server.start_again().await?;
    ensure!(
        lease(&server, tenant, timeline, last).await?.as_deref() == Some(until.as_str()),
        "it is forgotten"
    );

    let path = format!("/v1/tenant/{tenant}/timeline/{timeline}/lsn_lease");
    let (status, answer) = server.http(Method::POST, &path, Some(&json!({"lsn": last}))).await?;
    ensure!(
        status == 200 && answer["valid_until"].as_str().is_some_and(|text| text.ends_with('Z')),
        "{answer}"
    );
    let (status, answer) = server.http(Method::POST, &path, Some(&json!({"lsn": "0/8"}))).await?;
    ensure!(status == 500 && answer["msg"].as_str().is_some_and(|text| text.contains("below")), "{answer}");
    let path = format!(
        "/v1/tenant/{tenant}/timeline/{timeline}/get_lsn_by_timestamp?timestamp=2100-01-01T00:00:00Z&with_lease=true"
    );
    let (status, answer) = server.http(Method::GET, &path, None).await?;
    ensure!(status == 200 && answer["valid_until"].is_string(), "{answer}");
    Ok(())
}

/// Objects below a folder of the bucket.
fn objects(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        count += if path.is_dir() { objects(&path)? } else { 1 };
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tenant_leaves_the_bucket_and_its_sources() -> Result<()> {
    let postgres = Postgres::start(&PostgresConfig::new(15)).await?;
    postgres.sql("CREATE TABLE t (n int)").await?;
    let bucket = tempfile::tempdir()?;
    let (mut server, tenant, timeline) = following(&postgres, bucket.path()).await?;
    let other = TenantId(rand::random());
    server.follow(other, TimelineId(rand::random()), &postgres.dsn()).await?;
    postgres.sql("INSERT INTO t SELECT generate_series(1, 10000)").await?;
    let last = server.last_record_lsn(tenant, timeline).await?;
    let (branch, leaf) = (TimelineId(rand::random()), TimelineId(rand::random()));
    server.branch(tenant, branch, timeline, last).await?;
    server.branch(tenant, leaf, branch, last).await?;
    let of = |timeline: TimelineId| format!("/v1/tenant/{tenant}/timeline/{timeline}");

    let (status, answer) = server.http(Method::DELETE, &of(branch), None).await?;
    ensure!(status == 412, "it has a branch: {status} {answer}");
    let (status, answer) = server.http(Method::DELETE, &of(leaf), None).await?;
    ensure!((status, &answer) == (202, &Value::Null), "{status} {answer}");
    for method in [Method::GET, Method::DELETE] {
        let (status, answer) = server.http(method, &of(leaf), None).await?;
        ensure!(status == 404, "{status} {answer}");
    }

    let path = format!("/v1/tenant/{tenant}");
    let (status, answer) = server.http(Method::DELETE, &path, None).await?;
    ensure!((status, &answer) == (200, &Value::Null), "{status} {answer}");
    ensure!(objects(&bucket.path().join(format!("tenants/{tenant}")))? == 0);
    ensure!(objects(&bucket.path().join(format!("palimpsest/wal/{tenant}")))? == 0);
    let slots = postgres.sql("SELECT slot_name FROM pg_replication_slots").await?;
    let ours = format!("palimpsest_{timeline}");
    ensure!(!slots.iter().any(|row| row[0].as_deref() == Some(&ours)), "{slots:?}");
    for method in [Method::GET, Method::DELETE] {
        let (status, answer) = server.http(method, &path, None).await?;
        ensure!(status == 404, "{status} {answer}");
    }
    let (status, answer) =
        server.http(Method::POST, "/v1/tenant", Some(&json!({"new_tenant_id": tenant.to_string()}))).await?;
    ensure!(status == 409, "{status} {answer}");

    // The server lives, and so does the other tenant, which may still be on its way.
    let (_, tasks) = server.http(Method::GET, "/v1/tasks", None).await?;
    ensure!(!tasks.to_string().contains(&timeline.to_string()), "{tasks}");
    ensure!(server.process().is_some_and(|process| process.exit_status().is_none()), "it ended");
    let (status, answer) = server.http(Method::DELETE, &format!("/v1/tenant/{other}"), None).await?;
    ensure!(status == 200, "{status} {answer}");
    ensure!(objects(&bucket.path().join("tenants"))? == 0);
    server.stop().await?;
    server.start_again().await?;
    let (status, answer) = server.http(Method::GET, "/v1/tenant", None).await?;
    ensure!((status, &answer) == (200, &json!([])), "{status} {answer}");
    Ok(())
}
