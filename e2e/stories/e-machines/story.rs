//! The API server is away for a minute, the leading operator stands still, a node is cut off while its pageserver runs on: clients are served, and
//! what was cut off does no harm when it is back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::nodes::{Nodes, Objects};
use e2e::placed::Placed;
use e2e::platform::{self, Images, OPERATOR_NAMESPACE, POOL_NAMESPACE};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story};
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-machines";

/// Who leads: the pod, and the node that it is on.
fn leader(cluster: &Cluster) -> Result<(String, String)> {
    // Who is named may be gone, and who is there may not have reached the API server since it came back.
    let renewed = || cluster.field(OPERATOR_NAMESPACE, "lease/palimpsest", ".spec.renewTime");
    let before = renewed()?;
    cluster.until("an operator leads", Duration::from_mins(2), |_| Ok(renewed()? != before))?;
    let pod = cluster.field(OPERATOR_NAMESPACE, "lease/palimpsest", ".spec.holderIdentity")?;
    let node = cluster.field(OPERATOR_NAMESPACE, &format!("pod/{pod}"), ".spec.nodeName")?;
    Ok((pod, node))
}

/// The container of a pod, as its node knows it.
fn container(nodes: &Nodes, node: &str, namespace: &str, pod: &str) -> Result<String> {
    let (pod, namespace) =
        (format!("io.kubernetes.pod.name={pod}"), format!("io.kubernetes.pod.namespace={namespace}"));
    let id = nodes.run(node, &["crictl", "ps", "--quiet", "--label", &pod, "--label", &namespace])?;
    ensure!(!id.is_empty() && !id.contains('\n'), "on {node} {pod} has containers {id:?}");
    Ok(id)
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn clients_are_served_while_machines_stop_or_are_cut_off_and_nothing_is_lost_when_they_are_back() -> Result<()>
{
    let cluster = Cluster::from_environment()?;
    let Some(nodes) = Nodes::of(&cluster)? else {
        eprintln!(
            "e-machines: the nodes of this cluster are no containers of this machine, so nothing is told"
        );
        return Ok(());
    };
    let images = Images::from_environment();
    let namespaces = [OPERATOR_NAMESPACE, POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("e-machines", &cluster, &namespaces)?;

    story.step("A team's Postgres is followed; it, its clients and the bucket are on one node, the pageserver on another");
    platform::install(&cluster, &images)?;
    let home = Objects::of(&nodes, POOL_NAMESPACE)?.node().to_owned();
    let source = Source::start_on(&cluster, &images, TEAM, "postgres", Some(&home))?;
    source.fill(1)?;
    platform::make_tenant(&cluster, TEAM)?;
    let lsn = source.settle()?;
    let reader = Reader::start_on(&cluster, &images, (TEAM, Some(&home)), "acme", "acme-main")?;
    let (_, oids, _) = source.relation("pgbench_accounts")?;
    let page = reader.page(&oids, 0, lsn)?;
    source.load(&images)?;
    let before = Placed::away_from(&cluster, TEAM, "acme", &home)?;
    story.fact(&format!("{} on {}", before.pod, before.node(&cluster)?));

    story.step("The API server is stopped for a minute: pages are read, and nothing is moved");
    let client = container(&nodes, &home, TEAM, "reader")?;
    let on_node = |words: &[&str]| nodes.run(&home, &[&["crictl", "exec", &client], words].concat());
    let stopped = nodes.stop_api_server()?;
    let since = Instant::now();
    let mut reads = 0;
    while since.elapsed() < Duration::from_mins(1) {
        let found = reader.page_by(&oids, 0, lsn, on_node).context("while the API server was away")?;
        ensure!(found == page, "the page was read with other bytes than before");
        reads += 1;
        sleep(Duration::from_millis(500));
    }
    drop(stopped);
    nodes.api_answers()?;
    cluster.wait(TEAM, "tenant/acme", "Ready", Duration::from_mins(1))?;
    let after = Placed::of(&cluster, TEAM, "acme")?;
    ensure!(after == before, "it was moved from {before:?} to {after:?}");
    story.fact(&format!("{reads} reads; it is where it was"));

    story.step("The operator that leads stands still; another leads, and a pageserver is lost; then the first wakes up");
    cluster.rolled_out(OPERATOR_NAMESPACE, "deployment/palimpsest", Duration::from_mins(3))?;
    let (pod, node) = leader(&cluster)?;
    let process = container(&nodes, &node, OPERATOR_NAMESPACE, &pod)?;
    let pid = ["crictl", "inspect", "--output=go-template", "--template={{.info.pid}}", &process];
    let pid = nodes.run(&node, &pid)?;
    nodes.run(&node, &["kill", "-STOP", &pid])?;
    before.lose(&cluster)?;
    let next = before.succeeded(&cluster, TEAM, "acme", Duration::from_mins(2))?;
    let leads = leader(&cluster)?.0;
    ensure!(leads != pod, "{leads} stands still, and leads");
    nodes.run(&node, &["kill", "-CONT", &pid])?;
    sleep(Duration::from_secs(15));
    cluster.wait(TEAM, "tenant/acme", "Ready", Duration::from_mins(1))?;
    let still = Placed::of(&cluster, TEAM, "acme")?;
    ensure!(still == next, "it was moved from {next:?} to {still:?} by one that leads no more");
    story.fact(&format!(
        "{leads} leads after {pod}; generation {} after {}",
        next.generation, before.generation
    ));
    cluster.rolled_out(POOL_NAMESPACE, "statefulset/main", Duration::from_mins(3))?;

    story.step("The node of the pageserver is cut off from the others, and the pageserver runs on");
    let before = Placed::away_from(&cluster, TEAM, "acme", &home)?;
    let node = before.node(&cluster)?;
    let since = Instant::now();
    let cut = nodes.cut_off(&node)?;
    let next = before.succeeded(&cluster, TEAM, "acme", Duration::from_mins(2))?;
    cluster.until("served elsewhere", Duration::from_mins(1), |_| Ok(reader.page(&oids, 0, lsn)? == page))?;
    story.fact(&format!(
        "served by {} in generation {} after {:.1} s",
        next.pod,
        next.generation,
        since.elapsed().as_secs_f64()
    ));
    sleep(Duration::from_secs(20));

    story.step("It is back: the one that was cut off lets go, and nothing is moved again");
    drop(cut);
    cluster.wait("default", &format!("node/{node}"), "Ready", Duration::from_mins(2))?;
    sleep(Duration::from_secs(20));
    cluster.wait(TEAM, "tenant/acme", "Ready", Duration::from_mins(1))?;
    let still = Placed::of(&cluster, TEAM, "acme")?;
    ensure!(still == next, "it was moved from {next:?} to {still:?}");

    story.step("Work rests, and every page is as the source has it");
    let lsn = source.rest()?;
    let compared = reader.compare(&source, "pgbench_accounts", PageKind::Heap, 30, lsn)?
        + reader.compare(&source, "pgbench_history", PageKind::Heap, 20, lsn)?;
    story.fact(&format!("{compared} pages at {lsn} are equal"));
    platform::pool_is_ready(&cluster, platform::POOL, POOL_NAMESPACE)?;

    story.end(&[TEAM])
}
