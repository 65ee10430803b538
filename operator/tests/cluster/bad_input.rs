//! What people get wrong: each ends in a condition that says what to do, and costs next to nothing while it stays so.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{Patch, PatchParams};
use operator::api::{Condition, ConditionStatus, Timeline, condition};
use serde_json::json;
use testkit::port::Port;
use testkit::postgres::Installation;
use testkit::process::Process;
use testkit::{BucketAt, Fault, FaultProxy, Pageserver, Postgres, PostgresConfig, Versitygw, account};

use crate::surroundings::{Operator, Surroundings, TEAM, eventually, following, is_ready, tenant};

const MAJOR: u32 = 17;

/// A condition that is as it should not be, with a message that has all of these words.
fn says(conditions: &[Condition], reason: &str, words: &[&str]) -> bool {
    conditions.iter().any(|condition| {
        let is_bad = (condition.status == ConditionStatus::True) == (condition.type_ == "Degraded");
        is_bad && condition.reason == reason && words.iter().all(|word| condition.message.contains(word))
    })
}

async fn tenant_says(around: &Surroundings, name: &str, reason: &str, words: &[&str]) -> Result<()> {
    let seen = around.tenant_when(name, |tenant| {
        tenant.status.as_ref().is_some_and(|status| says(&status.conditions, reason, words))
    });
    seen.await.map(drop).with_context(|| format!("{name}: {reason} {words:?}"))
}

async fn timeline_says(around: &Surroundings, name: &str, reason: &str, words: &[&str]) -> Result<()> {
    let seen = around.timeline_when(name, |timeline| {
        timeline.status.as_ref().is_some_and(|status| says(&status.conditions, reason, words))
    });
    seen.await.map(drop).with_context(|| format!("{name}: {reason} {words:?}"))
}

/// Passes over resources so far.
async fn passes(operator: &Operator) -> Result<f64> {
    let metrics = operator.metrics().await?;
    let counts = metrics.lines().filter(|line| line.contains("operator_reconcile_seconds_count"));
    Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Waits until nothing is new any more: so many bad resources may cost six passes a minute each.
async fn is_quiet(operator: &Operator, resources: u32) -> Result<()> {
    const WHILE: Duration = Duration::from_secs(20);
    let most = f64::from(resources) * 6.0 * WHILE.as_secs_f64() / 60.0;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let before = passes(operator).await?;
        tokio::time::sleep(WHILE).await;
        seen.push(passes(operator).await? - before);
        if seen.last().is_some_and(|made| *made <= most) {
            return Ok(());
        }
    }
    bail!("{seen:?} passes over {resources} resources in {WHILE:?} each")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_cannot_be_says_why_and_what_to_do() {
    bad_tenants().await.unwrap();
}

async fn bad_tenants() -> Result<()> {
    let around = Surroundings::new().await?;
    let _server = around.pageserver("main-0").await?;
    let operator = around.operator("one")?;

    let id = "6f1c5c7b2e9d4f5f8a3f1f2c9f1d4e77";
    around.make(Some(TEAM), &tenant("first", &json!({"tenantID": id}))?).await?;
    around.tenant_when("first", is_ready).await?;
    around.make(Some(TEAM), &tenant("second", &json!({"tenantID": id}))?).await?;
    tenant_says(&around, "second", "TenantIDInUse", &["first"]).await?;
    around.make(Some(TEAM), &tenant("lost", &json!({"poolRef": {"name": "nowhere"}}))?).await?;
    tenant_says(&around, "lost", "PoolNotFound", &["team-acme/nowhere", "make it"]).await?;
    around.make(Some(TEAM), &tenant("wide", &json!({"sharding": {"count": 4}}))?).await?;
    tenant_says(&around, "wide", "Refused", &["one shard"]).await?;

    // What no condition could tell is refused where it is written.
    for (spec, said) in [
        (json!({"tenantID": "not hex"}), "tenantID"),
        (json!({"config": {"pitrInterval": "a while"}}), "pitrInterval"),
        (json!({"standbys": "two"}), "standbys"),
        (json!({"colour": "blue"}), "colour"),
    ] {
        let mut whole = json!({
            "apiVersion": "palimpsest.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "wrong"},
            "spec": {"poolRef": {"name": "main"}},
        });
        for (field, value) in spec.as_object().context("a spec")? {
            whole["spec"][field] = value.clone();
        }
        let refused = around.apply_strictly(&whole).await.err().context("it was accepted")?;
        ensure!(format!("{refused:#}").contains(said), "{refused:#}");
    }
    is_quiet(&operator, 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_cannot_be_used_is_said_of_its_pool_and_nothing_is_attached() {
    bad_buckets().await.unwrap();
}

async fn bad_buckets() -> Result<()> {
    let around = Surroundings::new().await?;
    let bucket = Versitygw::start().await?;
    let proxy = FaultProxy::start(bucket.port()).await?;
    proxy.set(Fault::Status(403));
    let pool = around.pool("forbidden").await?;
    let at = BucketAt::S3 { endpoint: proxy.endpoint() };
    let _server = around.pageserver_of(&pool, "forbidden-0", at, &[]).await?;
    let operator = around.operator("one")?;
    around
        .make(
            Some(TEAM),
            &tenant("acme", &json!({"poolRef": {"namespace": "storage", "name": "forbidden"}}))?,
        )
        .await?;
    tenant_says(&around, "acme", "NoCapacity", &["bucket"]).await?;
    is_quiet(&operator, 2).await?;
    proxy.set(Fault::None);
    around.tenant_when("acme", is_ready).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_without_conditional_writes_is_refused_unless_the_pool_accepts_it() {
    unconditional_bucket().await.unwrap();
}

async fn unconditional_bucket() -> Result<()> {
    let around = Surroundings::new().await?;
    let bucket = Versitygw::start_unconditional().await?;
    let pool = around.pool("plain").await?;
    let at = || BucketAt::S3 { endpoint: bucket.endpoint() };
    let server = around.pageserver_of(&pool, "plain-0", at(), &[]).await?;
    let operator = around.operator("one")?;
    let of_the_pool = json!({"poolRef": {"namespace": "storage", "name": "plain"}});
    around.make(Some(TEAM), &tenant("acme", &of_the_pool)?).await?;
    let pool_says = async |reason: &'static str, words: &[&str]| {
        let seen = around.pool_when("plain", |pool| {
            pool.status.as_ref().is_some_and(|status| says(&status.conditions, reason, words))
        });
        seen.await.map(drop).with_context(|| format!("the pool: {reason} {words:?}"))
    };
    pool_says("ConditionalWritesMissing", &["create-if-absent", "BestEffort"]).await?;
    tenant_says(&around, "acme", "NoCapacity", &["bucket"]).await?;
    is_quiet(&operator, 2).await?;

    // Whoever can live with it says so, to the operator and to the pageservers.
    let accepted = json!({"spec": {"storage": {"conditionalWrites": "BestEffort"}}});
    around.pools().patch("plain", &PatchParams::default(), &Patch::Merge(accepted)).await?;
    drop(server);
    let _server =
        around.pageserver_of(&pool, "plain-1", at(), &[("conditional_writes", "best-effort")]).await?;
    around.tenant_when("acme", is_ready).await?;
    pool_says("BestEffort", &["etcd"]).await
}

/// A pageserver whose passwords are in a directory.
async fn server_with(around: &Surroundings, passwords: &std::path::Path) -> Result<Pageserver> {
    let directory = passwords.display().to_string();
    let at = BucketAt::Directory(around.bucket.path().to_owned());
    around.pageserver_of(&around.main, "main-0", at, &[("credentials_dir", &directory)]).await
}

fn follows(timeline: &Timeline) -> bool {
    let status = timeline.status.clone().unwrap_or_default();
    condition::is_true(&status.conditions, "Following") && condition::is_true(&status.conditions, "Ready")
}

/// Somebody else streams from a slot.
fn hold_slot(primary: &Postgres, slot: &str) -> Result<Process> {
    let home = primary.make_dir(&format!("received-{slot}"))?;
    let mut command = account::command_as(None, &Installation::find(MAJOR)?.program("pg_receivewal")?);
    command
        .args(["-h", "127.0.0.1", "-p", &primary.port().to_string(), "-U", "postgres", "-S", slot, "-D"])
        .arg(&home);
    Process::start("pg_receivewal", command, &home.join("log"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_followed_is_said_of_its_timeline() {
    bad_sources().await.unwrap();
}

async fn bad_sources() -> Result<()> {
    let around = Surroundings::new().await?;
    let passwords = tempfile::tempdir()?;
    std::fs::write(passwords.path().join("wrong"), "not the password")?;
    let _server = server_with(&around, passwords.path()).await?;
    let operator = around.operator("one")?;
    around.make(Some(TEAM), &tenant("acme", &json!({}))?).await?;
    around.tenant_when("acme", is_ready).await?;

    let nobody = Port::take()?;
    around.make(Some(TEAM), &following("unreachable", nobody.number(), None)?).await?;
    timeline_says(&around, "unreachable", "SourceUnreachable", &["127.0.0.1"]).await?;

    let minimal = PostgresConfig::new(MAJOR)
        .set("wal_level", "minimal")
        .set("max_wal_senders", 0)
        .set("summarize_wal", "off");
    let minimal = Postgres::start(&minimal).await?;
    around.make(Some(TEAM), &following("minimal", minimal.port(), None)?).await?;
    timeline_says(&around, "minimal", "SourceRefused", &["wal_level"]).await?;

    let guarded = Postgres::start(&PostgresConfig::new(MAJOR)).await?;
    std::fs::write(
        guarded.data_dir().join("pg_hba.conf"),
        "local all all trust\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n",
    )?;
    guarded.sql("SELECT pg_reload_conf()").await?;
    around.make(Some(TEAM), &following("password", guarded.port(), Some("wrong"))?).await?;
    timeline_says(&around, "password", "SourceRefused", &["password"]).await?;
    around.make(Some(TEAM), &following("no-such-key", guarded.port(), Some("absent"))?).await?;
    timeline_says(&around, "no-such-key", "SourceRefused", &["absent"]).await?;

    let primary = Postgres::start(&PostgresConfig::new(MAJOR)).await?;
    let proxy = FaultProxy::start(primary.port()).await?;
    proxy.set(Fault::Refuse);
    around.make(Some(TEAM), &following("taken", proxy.port(), None)?).await?;
    timeline_says(&around, "taken", "SourceUnreachable", &[]).await?;
    let id = around
        .timelines()
        .get("taken")
        .await?
        .status
        .and_then(|status| status.timeline_id)
        .context("no id")?;
    let slot = format!("palimpsest_{}", serde_json::to_value(&id)?.as_str().context("text")?);
    primary.sql(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)")).await?;
    let _holder = hold_slot(&primary, &slot)?;
    let held = async |slot: &str| {
        let asked = format!(
            "SELECT coalesce(bool_or(active), false)::text FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        eventually(&format!("{slot} is held"), async || Ok(primary.value(&asked).await? == "true")).await
    };
    held(&slot).await?;
    proxy.set(Fault::None);
    // Under that name it can only be a connection of an owner before: it is ended, and the timeline has its slot.
    around.timeline_when("taken", follows).await?;

    // Under a name that somebody chose it may be anybody's.
    primary.sql("SELECT pg_create_physical_replication_slot('backups', true)").await?;
    let holder = hold_slot(&primary, "backups")?;
    held("backups").await?;
    let mut shared = following("shared-slot", primary.port(), None)?;
    shared.spec.source.as_mut().context("it has a source")?.primary.slot_name = Some("backups".into());
    around.make(Some(TEAM), &shared).await?;
    timeline_says(&around, "shared-slot", "SourceUnreachable", &["backups", "pg_receivewal", "another name"])
        .await?;
    drop(holder);
    around.timeline_when("shared-slot", follows).await?;
    held("backups").await?;

    let copy = primary.base_backup("copy").await?;
    let home = tempfile::tempdir()?;
    std::fs::rename(copy, home.path().join("data"))?;
    std::fs::write(home.path().join("data/standby.signal"), "")?;
    let standby = Postgres::start_existing(MAJOR, home, &[]).await?;
    around.make(Some(TEAM), &following("standby", standby.port(), None)?).await?;
    timeline_says(&around, "standby", "SourceUnfit", &["standby"]).await?;
    // The pool, its tenant, and seven timelines.
    is_quiet(&operator, 9).await
}
