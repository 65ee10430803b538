//! Pageservers under an operator: tenants come and go between them, and no two are ever believed to own one.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use model::{Lsn, TenantId, TimelineId};
use proto::error::{detail, reason};
use proto::v1::{
    ConfigureTenantRequest, DeleteTenantDataRequest, DeleteTimelineRequest, Mode, Reason,
    SetTimelineSourceRequest, SetTimelineStateRequest, SourceState, StorageState, TenantConfig,
    TimelineState, TimelineStatus, WatchStatusRequest,
};
use testkit::cluster_files::PageKind;
use testkit::page_compare::{self, Verdict};
use testkit::{BucketAt, Fault, FaultProxy, Operated, Postgres, PostgresConfig, Versitygw};
use tonic::Code;

const MAJOR: u32 = 17;
const PATIENCE: Duration = Duration::from_secs(20);

fn ids() -> (TenantId, TimelineId) {
    (TenantId(rand::random()), TimelineId(rand::random()))
}

async fn server(bucket: &Path, pod: &str) -> Result<Operated> {
    Operated::start(BucketAt::Directory(bucket.to_owned()), pod, &[("wal_seal_age", "300ms")]).await
}

async fn end_of(postgres: &Postgres) -> Result<Lsn> {
    let lsn = postgres.value("SELECT pg_current_wal_insert_lsn()").await?;
    postgres.flushed_lsn().await?;
    Ok(lsn.parse()?)
}

/// The first page of table `t` on the server, and in the primary's file.
async fn pages(postgres: &Postgres, server: &Operated, tenant: TenantId, timeline: TimelineId) -> Result<()> {
    postgres.sql("CHECKPOINT").await?;
    let path = postgres.value("SELECT pg_relation_filepath('t')").await?;
    let file = std::fs::read(postgres.data_dir().join(&path))?;
    let rel: u32 = path.rsplit('/').next().context("a path")?.parse()?;
    let db: u32 =
        postgres.value("SELECT oid FROM pg_database WHERE datname = current_database()").await?.parse()?;
    let mut client = server.server.pages(tenant, timeline).await?;
    let rel = model::RelTag { spc: model::rel::DEFAULT_TABLESPACE, db, rel, fork: model::Fork::Main };
    let last = server.server.last_record_lsn(tenant, timeline).await?;
    let ours = client.page(rel, 0, last).await?;
    let (theirs, ours) = (file[..8192].try_into()?, ours[..].try_into()?);
    let verdict = page_compare::compare(PageKind::Heap, 0, theirs, ours)?;
    ensure!(matches!(verdict, Verdict::Same | Verdict::SameMasked), "the page is {verdict:?}");
    Ok(())
}

fn streams(told: &TimelineStatus) -> bool {
    told.state() == TimelineState::Active
        && told.source.as_ref().is_some_and(|source| source.state() == SourceState::Streaming)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_moves_from_one_server_to_another_and_the_first_knows_it_is_stale() {
    moves().await.unwrap();
}

async fn moves() -> Result<()> {
    let primary = Postgres::start(&PostgresConfig::new(MAJOR)).await?;
    primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut a = server(bucket.path(), "ps-0").await?;
    let mut b = server(bucket.path(), "ps-1").await?;

    a.attach(tenant, 1, "first").await?;
    a.attach(tenant, 1, "first").await?; // its answer was lost
    a.import(tenant, 1, timeline, &primary.dsn()).await?;
    a.import(tenant, 1, timeline, &primary.dsn()).await?;
    a.timeline_when(tenant, timeline, streams).await?;
    a.wait_for(tenant, timeline, end_of(&primary).await?).await?;
    pages(&primary, &a, tenant, timeline).await?;

    // Another gets it, as if the first were cut off from the operator.
    b.attach(tenant, 2, "second").await?;
    // Also when the source has nothing new to say.
    b.timeline_when(tenant, timeline, streams).await?;
    primary.sql("INSERT INTO t VALUES (2)").await?;
    b.wait_for(tenant, timeline, end_of(&primary).await?).await?;
    pages(&primary, &b, tenant, timeline).await?;
    let since = Instant::now();
    let stale = loop {
        let shard = a.shard(tenant).await?.context("it is still there")?;
        if shard.mode() == Mode::Stale && !shard.superseded_by_pool_uid.is_empty() {
            break shard;
        }
        ensure!(since.elapsed() < Duration::from_secs(90), "it is not stale: {shard:?}");
        primary.sql("INSERT INTO t VALUES (3)").await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    ensure!(stale.superseded_by == 2 && stale.generation == 1, "{stale:?}");
    let refused = a.branch(tenant, 1, TimelineId(rand::random()), (timeline, Lsn::MAX)).await.unwrap_err();
    ensure!(reason(&refused) == Reason::Mode, "{refused}");

    // What the first has can be read until it lets go; then clients are told to connect anew.
    let mut reader = a.server.pages(tenant, timeline).await?;
    let rel = model::RelTag { spc: 1663, db: 1, rel: 1249, fork: model::Fork::Main };
    let last = a.server.last_record_lsn(tenant, timeline).await?;
    reader.page(rel, 0, last).await?;
    ensure!(!a.detach(tenant, 1).await?, "what a superseded owner stores is nobody's");
    ensure!(a.shard(tenant).await?.is_none());
    a.detach(tenant, 1).await?;
    let gone = reader.page(rel, 0, last).await.unwrap_err().to_string();
    ensure!(gone.contains("reconnect"), "{gone}");

    // And back, in order this time.
    ensure!(b.detach(tenant, 2).await?, "not all was stored");
    a.attach(tenant, 3, "third").await?;
    a.wait_for(tenant, timeline, end_of(&primary).await?).await?;
    pages(&primary, &a, tenant, timeline).await?;
    let slots = primary.value("SELECT count(*) FROM pg_replication_slots").await?;
    ensure!(slots == "1", "{slots} slots");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_meant_for_this_process_or_generation_is_refused() {
    refusals().await.unwrap();
}

async fn refusals() -> Result<()> {
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut a = server(bucket.path(), "ps-0").await?;
    let mut b = server(bucket.path(), "ps-1").await?;
    a.attach(tenant, 5, "first").await?;

    // Another instance, another attempt, a lower generation, the same one elsewhere.
    let instance = std::mem::replace(&mut a.instance, "the process before".into());
    let refused = a.attach(tenant, 6, "second").await.unwrap_err();
    ensure!((refused.code(), reason(&refused)) == (Code::Aborted, Reason::OtherInstance), "{refused}");
    a.instance = instance;
    for (generation, attempt) in [(5, "second"), (4, "first")] {
        let refused = a.attach(tenant, generation, attempt).await.unwrap_err();
        let detail = detail(&refused).context("no detail")?;
        ensure!(detail.reason() == Reason::Superseded && detail.highest_generation == 5, "{refused}");
    }
    let refused = b.attach(tenant, 5, "second").await.unwrap_err();
    let told = detail(&refused).context("no detail")?;
    ensure!(told.highest_generation == 5 && told.pool_uid == "a pool of the tests", "{refused}");
    ensure!(refused.message().contains("ps-0"), "{refused}");

    // What is not attached here, and what is no source.
    let refused = b.import(tenant, 5, timeline, "host=127.0.0.1 port=1").await.unwrap_err();
    ensure!(reason(&refused) == Reason::NotAttached, "{refused}");
    let refused = a.import(tenant, 5, timeline, "host=127.0.0.1 port=1").await.unwrap_err();
    ensure!(
        reason(&refused) == Reason::SourceUnreachable && refused.code() == Code::Unavailable,
        "{refused}"
    );

    // HTTP changes nothing under an operator.
    let (code, answer) = a.server.http(Method::DELETE, &format!("/v1/tenant/{tenant}"), None).await?;
    ensure!(code == 403, "{code} {answer}");
    let (code, _) = a.server.http(Method::GET, &format!("/v1/tenant/{tenant}"), None).await?;
    ensure!(code == 200);

    // No token, no call.
    let bare = a.client.watch_status(tonic::Request::new(WatchStatusRequest::default())).await;
    ensure!(bare.err().map(|status| status.code()) == Some(Code::Unauthenticated));

    // Deleted for good: nobody can attach it again.
    let deletion = DeleteTenantDataRequest { mutation: a.mutation(tenant, 5, "delete") };
    ensure!(a.client.delete_tenant_data(Operated::request(deletion)).await?.into_inner().done);
    let again = DeleteTenantDataRequest { mutation: b.mutation(tenant, 5, "delete") };
    ensure!(b.client.delete_tenant_data(Operated::request(again)).await?.into_inner().done);
    let refused = b.attach(tenant, 6, "third").await.unwrap_err();
    ensure!(reason(&refused) == Reason::TenantDeleted, "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_killed_comes_back_as_another_instance_and_has_nothing() {
    killed().await.unwrap();
}

async fn killed() -> Result<()> {
    let primary = Postgres::start(&PostgresConfig::new(MAJOR)).await?;
    primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let branch = TimelineId(rand::random());
    let mut a = server(bucket.path(), "ps-0").await?;
    a.attach(tenant, 1, "first").await?;
    a.import(tenant, 1, timeline, &primary.dsn()).await?;
    a.timeline_when(tenant, timeline, |told| told.state() == TimelineState::Active).await?;
    let lsn = end_of(&primary).await?;
    a.wait_for(tenant, timeline, lsn).await?;
    a.branch(tenant, 1, branch, (timeline, lsn)).await?;
    a.branch(tenant, 1, branch, (timeline, lsn)).await?;

    let before = a.instance.clone();
    a.server.kill();
    a.server.wipe_disk()?;
    a.server.start_again().await?;
    a.look_again().await?;
    ensure!(a.instance != before);
    ensure!(a.shard(tenant).await?.is_none(), "it attached something by itself");
    a.attach(tenant, 2, "second").await?;
    primary.sql("INSERT INTO t VALUES (2)").await?;
    a.wait_for(tenant, timeline, end_of(&primary).await?).await?;
    a.wait_for(tenant, branch, lsn).await?;
    pages(&primary, &a, tenant, timeline).await?;

    // Stopped, it stays so over a change of hands, and the source keeps what comes next.
    let set = |a: &Operated, generation: u32, state: TimelineState| {
        let mutation = a.mutation(tenant, generation, "state");
        let (timeline_id, state) = (timeline.to_string(), state.into());
        Operated::request(SetTimelineStateRequest { mutation, timeline_id, state })
    };
    let request = set(&a, 2, TimelineState::Stopped);
    a.client.set_timeline_state(request).await?;
    a.detach(tenant, 2).await?;
    a.attach(tenant, 3, "third").await?;
    a.timeline_when(tenant, timeline, |told| told.state() == TimelineState::Stopped).await?;
    let until = a.server.last_record_lsn(tenant, timeline).await?;
    primary.sql("INSERT INTO t VALUES (3)").await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(a.server.last_record_lsn(tenant, timeline).await? == until, "it takes WAL");
    ensure!(primary.value("SELECT count(*) FROM pg_replication_slots").await? == "1");
    let request = set(&a, 3, TimelineState::Active);
    a.client.set_timeline_state(request).await?;
    a.wait_for(tenant, timeline, end_of(&primary).await?).await?;
    pages(&primary, &a, tenant, timeline).await?;

    // Left alone, it has no slot any more; deleted, it is gone, and so is its branch before it.
    let source = SetTimelineSourceRequest {
        mutation: a.mutation(tenant, 3, "leave"),
        timeline_id: timeline.to_string(),
        primary: None,
    };
    let answer = a.client.set_timeline_source(Operated::request(source)).await?.into_inner();
    ensure!(answer.warning.is_empty(), "{}", answer.warning);
    ensure!(primary.value("SELECT count(*) FROM pg_replication_slots").await? == "0");
    let delete = |a: &Operated, timeline: TimelineId| {
        let mutation = a.mutation(tenant, 3, "delete");
        Operated::request(DeleteTimelineRequest { mutation, timeline_id: timeline.to_string() })
    };
    let request = delete(&a, timeline);
    let refused = a.client.delete_timeline(request).await.unwrap_err();
    ensure!(reason(&refused) == Reason::TimelineHasBranches, "{refused}");
    for timeline in [branch, timeline, timeline] {
        let request = delete(&a, timeline);
        a.client.delete_timeline(request).await?;
    }
    ensure!(a.shard(tenant).await?.context("attached")?.timelines.is_empty());
    ensure!(a.server.stop().await? < PATIENCE);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_hears_of_every_change_and_of_nothing_else() {
    watches().await.unwrap();
}

async fn watches() -> Result<()> {
    let bucket = tempfile::tempdir()?;
    let mut a = server(bucket.path(), "ps-0").await?;
    let mut news =
        a.client.watch_status(Operated::request(WatchStatusRequest::default())).await?.into_inner();
    let first = news.message().await?.context("ended")?;
    ensure!(first.complete && first.shards.is_empty());
    let (tenant, other) = (TenantId(rand::random()), TenantId(rand::random()));
    a.attach(tenant, 1, "first").await?;
    let mut known = first.revision;
    let mut heard = Vec::new();
    while !heard.contains(&tenant.to_string()) {
        let change = news.message().await?.context("ended")?;
        ensure!(!change.complete && change.revision >= known);
        known = change.revision;
        heard.extend(change.shards.into_iter().map(|shard| shard.tenant_shard_id));
    }
    a.attach(other, 1, "first").await?;
    a.detach(tenant, 1).await?;
    let since = WatchStatusRequest { since_revision: known };
    let mut again = a.client.watch_status(Operated::request(since)).await?.into_inner();
    let mut gone = Vec::new();
    while !gone.contains(&tenant.to_string()) {
        gone.extend(again.message().await?.context("ended")?.gone);
    }
    let unknown = WatchStatusRequest { since_revision: u64::MAX };
    let refused = a.client.watch_status(Operated::request(unknown)).await.err().context("took it")?;
    ensure!(refused.code() == Code::OutOfRange);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_drained_takes_nothing_new_and_says_when_it_is_empty() {
    drains().await.unwrap();
}

async fn drains() -> Result<()> {
    let bucket = tempfile::tempdir()?;
    let mut a = server(bucket.path(), "ps-0").await?;
    let tenant = TenantId(rand::random());
    a.attach(tenant, 1, "first").await?;
    let drain = |deadline: &str| {
        let mut drain = tokio::process::Command::new(testkit::pageserver::binary("pageserver")?);
        drain.arg("-D").arg(a.server.workdir()).args(["drain", "--wait", "--deadline", deadline]);
        Ok::<_, anyhow::Error>(drain.kill_on_drop(true).spawn()?)
    };
    ensure!(drain("100ms")?.wait().await?.code() == Some(1), "it is not empty yet");
    let mut waiting = drain("30s")?;
    ensure!(a.status().await?.draining);
    let refused = a.attach(TenantId(rand::random()), 1, "second").await.unwrap_err();
    ensure!(reason(&refused) == Reason::Draining, "{refused}");
    ensure!(waiting.try_wait()?.is_none(), "it did not wait");
    ensure!(a.detach(tenant, 1).await?);
    ensure!(tokio::time::timeout(PATIENCE, waiting.wait()).await??.success());
    // Another process of the same directory begins anew.
    a.server.stop().await?;
    a.server.start_again().await?;
    a.look_again().await?;
    ensure!(!a.status().await?.draining);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_is_told_stays_with_it_wherever_it_goes() {
    configures().await.unwrap();
}

async fn configures() -> Result<()> {
    let primary = Postgres::start(&PostgresConfig::new(MAJOR)).await?;
    let bucket = tempfile::tempdir()?;
    let (tenant, timeline) = ids();
    let mut a = server(bucket.path(), "ps-0").await?;
    let mut b = server(bucket.path(), "ps-1").await?;
    a.attach(tenant, 1, "first").await?;
    let configure = |a: &Operated, bytes: u64| {
        let mutation = a.mutation(tenant, 1, "configure");
        let config = TenantConfig { checkpoint_distance_bytes: Some(bytes), ..TenantConfig::default() };
        Operated::request(ConfigureTenantRequest { mutation, config: Some(config) })
    };
    let request = configure(&a, 1);
    let refused = a.client.configure_tenant(request).await.unwrap_err();
    ensure!(reason(&refused) == Reason::Invalid && refused.message().contains("64 KiB"), "{refused}");
    let request = configure(&a, 256 << 10);
    a.client.configure_tenant(request).await?;
    a.detach(tenant, 1).await?;
    b.attach(tenant, 2, "second").await?;
    b.import(tenant, 2, timeline, &primary.dsn()).await?;
    b.wait_for(tenant, timeline, end_of(&primary).await?).await?;
    let before = layers(&b, tenant, timeline).await?;
    primary.sql("CREATE TABLE t AS SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n").await?;
    b.wait_for(tenant, timeline, end_of(&primary).await?).await?;
    let since = Instant::now();
    // Some 3 MB of changes at a quarter of one each.
    while layers(&b, tenant, timeline).await? < before + 3 {
        ensure!(since.elapsed() < PATIENCE, "no layers came to be");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn layers(server: &Operated, tenant: TenantId, timeline: TimelineId) -> Result<u64> {
    server.server.timeline(tenant, timeline).await?["layers"].as_u64().context("no count of layers")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_is_said_and_nothing_is_attached_until_it_is_back() {
    bucket_away().await.unwrap();
}

async fn bucket_away() -> Result<()> {
    let store = Versitygw::start().await?;
    let proxy = FaultProxy::start(store.port()).await?;
    proxy.set(Fault::Refuse);
    let bucket = BucketAt::S3 { endpoint: proxy.endpoint() };
    let mut a = Operated::start_without_bucket(bucket, "ps-0", &[]).await?;
    let tenant = TenantId(rand::random());
    let told = a.status().await?.storage.context("no word of the bucket")?;
    ensure!(told.state() == StorageState::Unavailable, "{told:?}");
    let refused = a.attach(tenant, 1, "first").await.unwrap_err();
    ensure!(
        reason(&refused) == Reason::StorageUnavailable && refused.code() == Code::Unavailable,
        "{refused}"
    );
    ensure!(detail(&refused).is_some_and(|detail| detail.retry_after.is_some()));
    proxy.set(Fault::None);
    let since = Instant::now();
    while let Err(refused) = a.attach(tenant, 1, "first").await {
        ensure!(since.elapsed() < Duration::from_mins(1), "{refused}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
