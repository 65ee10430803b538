//! Many tenants are applied at once, each with a small timeline: all of them become ready. `E2E_TENANTS` says how many, by default 200.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::platform::{self, Images, OPERATOR_NAMESPACE, POOL_NAMESPACE};
use e2e::source::Source;
use e2e::{Cluster, Story};
use serde_json::Value;

const TEAM: &str = "team-many";

/// Sum of a metric of the operators, whichever of them leads.
fn metric(cluster: &Cluster, name: &str) -> Result<f64> {
    let path = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods");
    let pods = cluster.kubectl(&[
        "--namespace",
        OPERATOR_NAMESPACE,
        "get",
        "pods",
        "--selector=app.kubernetes.io/component=operator",
        "--output=jsonpath={.items[*].metadata.name}",
    ])?;
    let mut sum = 0.0;
    for pod in pods.split(' ') {
        let text = cluster.kubectl(&["get", "--raw", &format!("{path}/{pod}:8080/proxy/metrics")])?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        sum += lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(sum)
}

/// Memory that containers of this name use, in all of the cluster, bytes.
fn memory(cluster: &Cluster, container: &str) -> Result<u64> {
    let nodes = cluster.kubectl(&["get", "nodes", "--output=jsonpath={.items[*].metadata.name}"])?;
    let mut sum = 0;
    for node in nodes.split(' ') {
        let text =
            cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/stats/summary")])?;
        let summary: Value = serde_json::from_str(&text).context("a node's summary is no JSON")?;
        let pods = summary["pods"].as_array().into_iter().flatten();
        let containers = pods.flat_map(|pod| pod["containers"].as_array().into_iter().flatten());
        sum += containers
            .filter(|one| one["name"] == container)
            .filter_map(|one| one["memory"]["workingSetBytes"].as_u64())
            .sum::<u64>();
    }
    Ok(sum)
}

fn all_ready(cluster: &Cluster, kind: &str, within: Duration) -> Result<()> {
    let timeout = format!("--timeout={}s", within.as_secs());
    cluster
        .kubectl(&["--namespace", TEAM, "wait", "--for=condition=Ready", kind, "--all", &timeout])
        .map(drop)
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn many_tenants_applied_at_once_all_become_ready() -> Result<()> {
    let count: u32 = std::env::var("E2E_TENANTS").ok().map_or(Ok(200), |text| text.parse())?;
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [OPERATOR_NAMESPACE, POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("h-many-tenants", &cluster, &namespaces)?;

    story.step("A Postgres with room for many that follow it");
    platform::install(&cluster, &images)?;
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    let places = count + 10;
    source.sql(&format!("ALTER SYSTEM SET max_wal_senders = {places}"))?;
    source.sql(&format!("ALTER SYSTEM SET max_replication_slots = {places}"))?;
    source.sql(&format!("ALTER SYSTEM SET max_connections = {}", places + 100))?;
    source.start_again()?;

    story.step(&format!("{count} tenants are applied at once"));
    let writes = metric(&cluster, "operator_api_writes_total")?;
    let mut tenants = String::new();
    let mut timelines = String::new();
    for number in 0..count {
        writeln!(
            tenants,
            "---\n{{apiVersion: palimpsest.dev/v1alpha1, kind: Tenant, metadata: {{name: t{number}, namespace: {TEAM}}}, \
             spec: {{poolRef: {{namespace: {POOL_NAMESPACE}, name: main}}, retention: {{deletionProtection: false}}}}}}"
        )?;
        writeln!(
            timelines,
            "---\n{{apiVersion: palimpsest.dev/v1alpha1, kind: Timeline, metadata: {{name: t{number}, namespace: {TEAM}}}, \
             spec: {{tenantRef: {{name: t{number}}}, source: {{primary: {{host: postgres.{TEAM}.svc, sslMode: prefer}}, \
             credentials: acme}}}}}}"
        )?;
    }
    let since = Instant::now();
    cluster.apply(&tenants)?;
    all_ready(&cluster, "tenants", Duration::from_mins(5))?;
    let per_tenant = (metric(&cluster, "operator_api_writes_total")? - writes) / f64::from(count);
    story.fact(&format!(
        "all ready after {:.1} s, with {per_tenant:.1} writes to the API server each",
        since.elapsed().as_secs_f64()
    ));

    story.step("Each gets a timeline that follows the Postgres");
    let since = Instant::now();
    cluster.apply(&timelines)?;
    all_ready(&cluster, "timelines", Duration::from_mins(20))?;
    story.fact(&format!("all ready after {:.1} s", since.elapsed().as_secs_f64()));
    let per_tenant = (metric(&cluster, "operator_api_writes_total")? - writes) / f64::from(count);
    story.fact(&format!("{per_tenant:.1} writes to the API server for a tenant with a timeline"));
    for container in ["operator", "pageserver"] {
        story.fact(&format!("{container}: {} MB in all", memory(&cluster, container)? >> 20));
    }

    story.step("What rests costs nothing");
    let writes = metric(&cluster, "operator_api_writes_total")?;
    std::thread::sleep(Duration::from_mins(1));
    let idle = metric(&cluster, "operator_api_writes_total")? - writes;
    // Leases are renewed, and are no writes of ours to tenants.
    story.fact(&format!("{idle:.0} writes in a minute"));
    ensure!(idle < f64::from(count), "{idle} writes in a minute without any change");

    story.end(&[TEAM])
}
