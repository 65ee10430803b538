//! Everything of ours in the cluster is lost, and the bucket is not: `pagectl adopt` says what it holds, and that is served again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::placed::Placed;
use e2e::platform::{self, Images, OPERATOR_NAMESPACE, POOL, POOL_NAMESPACE};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story};
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-recovered";
const KINDS: [&str; 3] =
    ["timelines.palimpsest.dev", "tenants.palimpsest.dev", "pageserverpools.palimpsest.dev"];

/// Removes the operator, the pool, all resources and their definitions, as if they had never been there: nobody lets go of anything in an orderly way.
fn lose_everything(cluster: &Cluster) -> Result<()> {
    for (release, namespace) in [("palimpsest", OPERATOR_NAMESPACE), (POOL, POOL_NAMESPACE)] {
        cluster.helm(&["uninstall", release, "--namespace", namespace, "--wait"])?;
    }
    let places = "--output=jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{\"\\n\"}{end}";
    for kind in KINDS {
        for line in cluster.kubectl(&["get", kind, "--all-namespaces", places])?.lines() {
            let Some((namespace, name)) = line.split_once(' ') else { continue };
            let freed =
                ["patch", kind, name, "--type=merge", "--patch", r#"{"metadata": {"finalizers": null}}"#];
            cluster.kubectl(&[&["--namespace", namespace], &freed[..]].concat())?;
        }
        cluster.kubectl(&["delete", "crd", kind, "--timeout=60s"])?;
    }
    cluster.kubectl(&["--namespace", OPERATOR_NAMESPACE, "delete", "leases", "--all"]).map(drop)
}

/// What `pagectl adopt` prints of a tenant, in the example's job, which has the keys of the bucket.
fn adopted(cluster: &Cluster, images: &Images, tenant: &str) -> Result<String> {
    let job = images.put_into(&platform::example("adopt.yaml")?);
    ensure!(job.contains("storage]"), "the example has another command");
    cluster.apply(&job.replace("storage]", &format!("storage, --tenant, '{tenant}']")))?;
    let ended = cluster.wait(POOL_NAMESPACE, "job/adopt", "Complete", Duration::from_mins(1));
    let said = cluster.kubectl(&["--namespace", POOL_NAMESPACE, "logs", "job/adopt"])?;
    cluster.kubectl(&["--namespace", POOL_NAMESPACE, "delete", "job/adopt"])?;
    ensure!(ended.is_ok(), "pagectl says {said}");
    Ok(said)
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn what_is_in_the_bucket_is_served_again_after_everything_else_is_lost() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [OPERATOR_NAMESPACE, POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("i-recovery", &cluster, &namespaces)?;

    story.step("A team's Postgres is followed");
    platform::install(&cluster, &images)?;
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    source.fill(1)?;
    platform::make_tenant(&cluster, TEAM)?;
    let lsn = source.settle()?;
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "acme-main")?;
    reader.compare(&source, "pgbench_accounts", PageKind::Heap, 5, lsn)?;
    let tenant = cluster.field(TEAM, "tenant/acme", ".status.tenantID")?;
    let before = Placed::of(&cluster, TEAM, "acme")?;

    story.step("The operator, the pool, all resources and their definitions are lost; the team works on");
    lose_everything(&cluster)?;
    source.sql("CREATE TABLE meanwhile AS SELECT generate_series(1, 10000) AS n")?;

    story.step("All is installed again, and pagectl prints what the bucket holds");
    let since = Instant::now();
    platform::install(&cluster, &images)?;
    let yaml = adopted(&cluster, &images, &tenant)?;
    story.fact(&format!("installed after {:.1} s; it says:\n{yaml}", since.elapsed().as_secs_f64()));
    let named = yaml.replace("\nmetadata: {name: ", &format!("\nmetadata: {{namespace: {TEAM}, name: "));
    cluster.apply(&named)?;
    let name = format!("t-{}", &tenant[..12]);
    for kind in ["tenants", "timelines"] {
        let ready = ["wait", "--for=condition=Ready", kind, "--all", "--timeout=120s"];
        cluster.kubectl(&[&["--namespace", TEAM], &ready[..]].concat())?;
    }
    let after = Placed::of(&cluster, TEAM, &name)?;
    ensure!(
        after.generation > before.generation,
        "generation {} follows {}",
        after.generation,
        before.generation
    );
    story.fact(&format!(
        "served after {:.1} s, in generation {} after {}",
        since.elapsed().as_secs_f64(),
        after.generation,
        before.generation
    ));

    story.step("Every page is as the source has it, and what happened meanwhile, too");
    let timeline = cluster.kubectl(&[
        "--namespace",
        TEAM,
        "get",
        "timelines",
        "--output=jsonpath={.items[0].metadata.name}",
    ])?;
    cluster.wait(TEAM, &format!("timeline/{timeline}"), "Following", Duration::from_mins(1))?;
    let lsn = source.settle()?;
    let reader = Reader::start(&cluster, &images, TEAM, &name, &timeline)?;
    let compared = reader.compare(&source, "pgbench_accounts", PageKind::Heap, 20, lsn)?
        + reader.compare(&source, "meanwhile", PageKind::Heap, 10, lsn)?;
    story.fact(&format!("{compared} pages at {lsn} are equal"));

    story.end(&[TEAM])
}
