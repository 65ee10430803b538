//! What the cluster knows is older than what the bucket knows, or somebody else's: etcd is restored from a snapshot, two installations meet in one
//! bucket, a tenant is deleted while its owner is cut off.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::nodes::{Nodes, Objects};
use e2e::placed::Placed;
use e2e::platform::{
    self, Images, OPERATOR_NAMESPACE, OTHER_NAMESPACE, OTHER_OPERATOR, OTHER_POOL, POOL_NAMESPACE,
};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story};
use model::Lsn;
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-restored";
const OTHER_TEAM: &str = "team-other";

fn compare(reader: &Reader, source: &Source, lsn: Lsn) -> Result<u32> {
    Ok(reader.compare(source, "pgbench_accounts", PageKind::Heap, 20, lsn)?
        + reader.compare(source, "pgbench_accounts_pkey", PageKind::Btree, 10, lsn)?)
}

/// What a tenant says of why it is not ready.
fn reason(cluster: &Cluster, namespace: &str) -> Result<String> {
    cluster.field(namespace, "tenant/acme", ".status.conditions[?(@.type==\"Ready\")].reason")
}

fn take_over(cluster: &Cluster, namespace: &str, from_pool: &str) -> Result<()> {
    let annotation = format!("palimpsest.dev/take-over={from_pool}");
    let arguments = ["--namespace", namespace, "annotate", "--overwrite", "tenant/acme", &annotation];
    cluster.kubectl(&arguments).map(drop)
}

/// Three owners follow each other; then etcd knows nothing of them.
fn etcd_is_restored(story: &mut Story, cluster: &Cluster, nodes: &Nodes) -> Result<()> {
    story.step("etcd is restored from a snapshot taken three owners earlier");
    let before = Placed::of(cluster, TEAM, "acme")?;
    nodes.snapshot()?;
    let mut last = before.clone();
    for _ in 0..3 {
        last.lose(cluster)?;
        last = last.succeeded(cluster, TEAM, "acme", Duration::from_mins(2))?;
        cluster.rolled_out(POOL_NAMESPACE, "statefulset/main", Duration::from_mins(3))?;
    }
    let since = Instant::now();
    nodes.restore()?;
    story.fact(&format!(
        "restored in {:.1} s; it was {} and is {before:?}",
        since.elapsed().as_secs_f64(),
        last.generation
    ));
    cluster.until("attached in a generation that nobody had", Duration::from_mins(4), |cluster| {
        Ok(Placed::of(cluster, TEAM, "acme")?.generation > last.generation)
    })?;
    cluster.wait(TEAM, "tenant/acme", "Ready", Duration::from_mins(2))?;
    let now = Placed::of(cluster, TEAM, "acme")?;
    story.fact(&format!(
        "generation {} follows {}, after {:.1} s",
        now.generation,
        last.generation,
        since.elapsed().as_secs_f64()
    ));
    // Pods of the snapshot are not those that run: everything settles before the story goes on.
    for workload in ["deployment/coredns", "daemonset/kube-proxy"] {
        cluster.rolled_out("kube-system", workload, Duration::from_mins(3))?;
    }
    cluster.rolled_out(OPERATOR_NAMESPACE, "deployment/palimpsest", Duration::from_mins(3))?;
    platform::pool_is_ready(cluster, platform::POOL, POOL_NAMESPACE)
}

/// A second installation has the same bucket, and is told of the same tenant.
fn two_pools_meet(story: &mut Story, cluster: &Cluster, images: &Images) -> Result<()> {
    story.step(
        "A second installation, with its own operator and pool, has the same bucket and is told of the same tenant: it is refused",
    );
    platform::install_operator(cluster, images, &[POOL_NAMESPACE, TEAM])?;
    platform::install_other_operator(cluster, images, &[OTHER_NAMESPACE, OTHER_TEAM])?;
    platform::make_secrets_of_pool(cluster, OTHER_NAMESPACE)?;
    platform::install_pool(cluster, images, OTHER_POOL, OTHER_NAMESPACE, 1)?;
    platform::pool_is_ready(cluster, OTHER_POOL, OTHER_NAMESPACE)?;
    let id = cluster.field(TEAM, "tenant/acme", ".status.tenantID")?;
    let before = Placed::of(cluster, TEAM, "acme")?;
    cluster.apply(&format!(
        "{{apiVersion: palimpsest.dev/v1alpha1, kind: Tenant, metadata: {{name: acme, namespace: {OTHER_TEAM}}}, \
         spec: {{poolRef: {{namespace: {OTHER_NAMESPACE}, name: {OTHER_POOL}}}, tenantID: {id}, retention: {{deletionProtection: false}}}}}}"
    ))?;
    let foreign = |namespace: &'static str| {
        cluster.until("refused for its foreign owner", Duration::from_mins(1), |cluster| {
            Ok(reason(cluster, namespace)? == "ForeignOwner")
        })
    };
    foreign(OTHER_TEAM)?;
    sleep(Duration::from_secs(10));
    let still = Placed::of(cluster, TEAM, "acme")?;
    ensure!(still == before, "{before:?} became {still:?}");

    story.step(
        "A person lets it have the tenant: the first pool's notices and stays away, until it is taken back",
    );
    let uid =
        |namespace, pool: &str| cluster.field(namespace, &format!("pageserverpool/{pool}"), ".metadata.uid");
    take_over(cluster, OTHER_TEAM, &uid(POOL_NAMESPACE, platform::POOL)?)?;
    cluster.wait(OTHER_TEAM, "tenant/acme", "Ready", Duration::from_mins(1))?;
    foreign(TEAM)?;
    let theirs = Placed::of(cluster, OTHER_TEAM, "acme")?;
    sleep(Duration::from_secs(15));
    ensure!(Placed::of(cluster, OTHER_TEAM, "acme")? == theirs, "they fight over it");
    story.fact(&format!("generation {} is the other pool's", theirs.generation));
    cluster.kubectl(&["--namespace", OTHER_TEAM, "delete", "tenant/acme", "--timeout=60s"])?;
    take_over(cluster, TEAM, &uid(OTHER_NAMESPACE, OTHER_POOL)?)?;
    cluster.wait(TEAM, "tenant/acme", "Ready", Duration::from_mins(1))?;
    let ours = Placed::of(cluster, TEAM, "acme")?;
    ensure!(ours.generation > theirs.generation, "{ours:?} follows {theirs:?}");
    for release in [OTHER_POOL, OTHER_OPERATOR] {
        cluster.helm(&["uninstall", release, "--namespace", OTHER_NAMESPACE, "--wait"])?;
    }
    platform::install_operator(cluster, images, &[])
}

/// The tenant is deleted, with its data, while its owner is cut off.
fn deleted_while_cut_off(
    story: &mut Story,
    cluster: &Cluster,
    nodes: &Nodes,
    objects: &Objects,
) -> Result<()> {
    story.step("The tenant is deleted with its data while its owner is cut off");
    let id = cluster.field(TEAM, "tenant/acme", ".status.tenantID")?;
    let owner = Placed::away_from(cluster, TEAM, "acme", objects.node())?;
    let node = owner.node(cluster)?;
    ensure!(!objects.with(&id)?.is_empty(), "there is nothing to delete");
    let cut = nodes.cut_off(&node)?;
    let delete = r#"{"spec": {"retention": {"deletionPolicy": "Delete", "deletionProtection": false}}}"#;
    for resource in ["timeline/acme-main", "tenant/acme"] {
        cluster.kubectl(&["--namespace", TEAM, "patch", resource, "--type=merge", "--patch", delete])?;
    }
    let since = Instant::now();
    cluster.kubectl(&[
        "--namespace",
        TEAM,
        "delete",
        "timeline/acme-main",
        "tenant/acme",
        "--timeout=240s",
    ])?;
    let names =
        |objects: &Objects| -> Result<BTreeSet<String>> { Ok(objects.with(&id)?.into_iter().collect()) };
    let left = names(objects)?;
    story.fact(&format!("deleted in {:.1} s; what is left: {left:?}", since.elapsed().as_secs_f64()));
    let is_tombstone =
        |name: &String| name.contains("palimpsest/claims/") || name.contains("palimpsest/tombstones/");
    ensure!(left.iter().all(is_tombstone), "data is left behind");
    ensure!(left.iter().any(|name| name.ends_with("/ffffffff")), "nothing says that it was deleted");

    story.step("The owner is back: it writes nothing any more");
    drop(cut);
    cluster.wait("default", &format!("node/{node}"), "Ready", Duration::from_mins(2))?;
    sleep(Duration::from_secs(45));
    let later = names(objects)?;
    let new: Vec<_> = later.difference(&left).collect();
    ensure!(new.is_empty(), "the old owner wrote {new:?}");
    platform::pool_is_ready(cluster, platform::POOL, POOL_NAMESPACE)
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn the_bucket_knows_better_than_a_restored_cluster_another_installation_or_an_owner_that_was_cut_off()
-> Result<()> {
    let cluster = Cluster::from_environment()?;
    let Some(nodes) = Nodes::of(&cluster)? else {
        eprintln!(
            "f-restored-state: the nodes of this cluster are no containers of this machine, so nothing is told"
        );
        return Ok(());
    };
    let images = Images::from_environment();
    let namespaces = [OPERATOR_NAMESPACE, POOL_NAMESPACE, OTHER_NAMESPACE, TEAM, OTHER_TEAM];
    let mut story = Story::begin("f-restored-state", &cluster, &namespaces)?;

    story.step("A team's Postgres was followed, and rests");
    platform::install(&cluster, &images)?;
    let objects = Objects::of(&nodes, POOL_NAMESPACE)?;
    let source = Source::start_on(&cluster, &images, TEAM, "postgres", Some(objects.node()))?;
    source.fill(1)?;
    platform::make_tenant(&cluster, TEAM)?;
    let lsn = source.settle()?;
    let reader = Reader::start_on(&cluster, &images, (TEAM, Some(objects.node())), "acme", "acme-main")?;
    compare(&reader, &source, lsn)?;

    etcd_is_restored(&mut story, &cluster, &nodes)?;
    let compared = compare(&reader, &source, lsn).context("after etcd was restored")?;
    story.fact(&format!("{compared} pages at {lsn} are equal"));
    two_pools_meet(&mut story, &cluster, &images)?;
    let compared = compare(&reader, &source, lsn).context("after the tenant was taken back")?;
    story.fact(&format!("{compared} pages at {lsn} are equal"));
    deleted_while_cut_off(&mut story, &cluster, &nodes, &objects)?;

    story.end(&[TEAM, OTHER_TEAM, OTHER_NAMESPACE])
}
