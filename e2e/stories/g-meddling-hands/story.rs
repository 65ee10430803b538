//! What people do to resources by hand: it is mended, refused, or does no harm.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::platform::{self, Images, POOL_NAMESPACE};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story};
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-hands";
const GUARDED: &str = "team-guarded";

fn refusal(result: Result<String>, said: &str) -> Result<()> {
    let error = result.err().with_context(|| format!("it was done, and should have been refused: {said}"))?;
    ensure!(format!("{error:#}").contains(said), "it was refused otherwise: {error:#}");
    Ok(())
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn what_is_changed_by_hand_is_mended_or_refused_and_deleted_resources_leave_their_data() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [platform::OPERATOR_NAMESPACE, POOL_NAMESPACE, TEAM, GUARDED];
    let mut story = Story::begin("g-meddling-hands", &cluster, &namespaces)?;
    let patch = |namespace: &str, resource: &str, patch: &str| {
        cluster.kubectl(&["--namespace", namespace, "patch", resource, "--type=merge", "--patch", patch])
    };

    story.step("A team's Postgres is followed");
    platform::install(&cluster, &images)?;
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    source.fill(1)?;
    platform::make_tenant(&cluster, TEAM)?;
    let lsn = source.settle()?;

    story.step("Its EndpointSlice is deleted, and one that leads elsewhere is put there");
    let address =
        |cluster: &Cluster| cluster.field(TEAM, "endpointslice/acme-ps", ".endpoints[0].addresses[0]");
    let right = address(&cluster)?;
    let since = Instant::now();
    cluster.kubectl(&["--namespace", TEAM, "delete", "endpointslice/acme-ps"])?;
    cluster.until("there again", Duration::from_secs(20), |cluster| Ok(address(cluster)? == right))?;
    story.fact(&format!("there again after {:.1} s", since.elapsed().as_secs_f64()));
    patch(
        TEAM,
        "endpointslice/acme-ps",
        r#"{"endpoints": [{"addresses": ["192.0.2.1"], "hostname": "s0000"}]}"#,
    )?;
    cluster.until("mended", Duration::from_secs(20), |cluster| Ok(address(cluster)? == right))?;

    story.step("A generation is lowered, an entry taken away: refused");
    let status = |patch: &str| {
        cluster.kubectl(&[
            "--namespace",
            TEAM,
            "patch",
            "tenant/acme",
            "--subresource=status",
            "--type=json",
            "--patch",
            patch,
        ])
    };
    let lower = r#"[{"op": "replace", "path": "/status/shards/0/generation", "value": 0}]"#;
    refusal(status(lower), "generation never decreases")?;
    refusal(status(r#"[{"op": "remove", "path": "/status/shards"}]"#), "never removed")?;

    story.step("The tenant is protected; then it is deleted, and made again with its ids: the data was kept");
    refusal(
        cluster.kubectl(&["--namespace", TEAM, "delete", "tenant/acme", "--timeout=30s"]),
        "deletionProtection",
    )?;
    let tenant = cluster.field(TEAM, "tenant/acme", ".status.tenantID")?;
    let timeline = cluster.field(TEAM, "timeline/acme-main", ".status.timelineID")?;
    let generation = |cluster: &Cluster| -> Result<u64> {
        Ok(cluster.field(TEAM, "tenant/acme", ".status.shards[0].generation")?.parse()?)
    };
    let before = generation(&cluster)?;
    cluster.kubectl(&["--namespace", TEAM, "delete", "timeline/acme-main", "--timeout=60s"])?;
    patch(TEAM, "tenant/acme", r#"{"spec": {"retention": {"deletionProtection": false}}}"#)?;
    cluster.kubectl(&["--namespace", TEAM, "delete", "tenant/acme", "--timeout=60s"])?;
    cluster.apply(&format!(
        r"
apiVersion: palimpsest.dev/v1alpha1
kind: Tenant
metadata: {{name: acme, namespace: {TEAM}}}
spec: {{poolRef: {{namespace: {POOL_NAMESPACE}, name: main}}, tenantID: {tenant}, retention: {{deletionProtection: false}}}}
---
apiVersion: palimpsest.dev/v1alpha1
kind: Timeline
metadata: {{name: acme-main, namespace: {TEAM}}}
spec: {{tenantRef: {{name: acme}}, timelineID: {timeline}}}
"
    ))?;
    cluster.wait(TEAM, "tenant/acme", "Ready", Duration::from_mins(1))?;
    cluster.wait(TEAM, "timeline/acme-main", "Ready", Duration::from_mins(1))?;
    let after = generation(&cluster)?;
    ensure!(after > before, "generation {after} follows {before}");
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "acme-main")?;
    let compared = reader.compare(&source, "pgbench_accounts", PageKind::Heap, 20, lsn)?;
    story.fact(&format!("{compared} pages at {lsn} are equal, in generation {after} after {before}"));

    story.step("A namespace with a protected tenant is deleted: it stays, and says why");
    cluster.apply(&format!(
        "{{apiVersion: palimpsest.dev/v1alpha1, kind: Tenant, metadata: {{name: kept, namespace: {GUARDED}}}, \
         spec: {{poolRef: {{namespace: {POOL_NAMESPACE}, name: main}}, retention: {{deletionProtection: true}}}}}}"
    ))?;
    cluster.wait(GUARDED, "tenant/kept", "Ready", Duration::from_mins(1))?;
    cluster.kubectl(&["delete", "namespace", GUARDED, "--wait=false"])?;
    cluster.until("the namespace says why", Duration::from_mins(1), |cluster| {
        let said =
            cluster.field("default", &format!("namespace/{GUARDED}"), ".status.conditions[*].message")?;
        ensure!(said.contains("deletionProtection"), "{said}");
        Ok(true)
    })?;
    cluster.field(GUARDED, "tenant/kept", ".metadata.name")?;
    patch(GUARDED, "tenant/kept", r#"{"spec": {"retention": {"deletionProtection": false}}}"#)?;
    let since = Instant::now();
    cluster.kubectl(&["wait", "--for=delete", &format!("namespace/{GUARDED}"), "--timeout=180s"])?;
    story.fact(&format!("gone {:.1} s after the protection was taken away", since.elapsed().as_secs_f64()));

    story.end(&[TEAM])
}
