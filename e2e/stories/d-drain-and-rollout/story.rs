//! A node is drained and pageservers are restarted one after the other, while somebody reads all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::platform::{self, Images, POOL_NAMESPACE};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story};
use model::Lsn;
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-drain";
/// Longest that a read may take, with all attempts.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the same pages again and again, with a connection for each, as computes do whose pageserver moves: they ask for its address again, and
/// try once a second. Every page must be what it was. Gives how long each read took.
fn read_on(
    reader: &Reader,
    oids: &str,
    lsn: Lsn,
    expected: &[Vec<u8>],
    stop: &AtomicBool,
) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for (block, page) in expected.iter().enumerate().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let since = Instant::now();
        let found = loop {
            match reader.page(oids, block as u32, lsn) {
                Ok(found) => break found,
                Err(error) if since.elapsed() > PATIENCE => {
                    return Err(error.context(format!("a read was not answered within {PATIENCE:?}")));
                }
                Err(_) => thread::sleep(Duration::from_secs(1)),
            }
        };
        ensure!(found == *page, "block {block} was read with other bytes than before");
        took.push(since.elapsed());
    }
    Ok(took)
}

fn distribution(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64();
    format!(
        "{} reads: half within {:.2} s, 99 % within {:.2} s, the longest {:.2} s",
        took.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn no_read_goes_wrong_while_a_node_is_drained_and_pageservers_are_restarted() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [platform::OPERATOR_NAMESPACE, POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("d-drain-and-rollout", &cluster, &namespaces)?;

    story.step("A team's Postgres is followed; pages of a table that rests are read and compared");
    platform::install(&cluster, &images)?;
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    source.sql(
        "CREATE TABLE rests AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 300) AS n",
    )?;
    source.fill(1)?;
    platform::make_tenant(&cluster, TEAM)?;
    let lsn = source.settle()?;
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "acme-main")?;
    reader.compare(&source, "rests", PageKind::Heap, 1000, lsn)?;
    let (_, oids, blocks) = source.relation("rests")?;
    let expected: Vec<Vec<u8>> =
        (0..blocks).map(|block| reader.page(&oids, block, lsn)).collect::<Result<_>>()?;
    source.load(&images)?;

    let stop = Arc::new(AtomicBool::new(false));
    let reading = {
        let (reader, stop) = (reader.clone(), Arc::clone(&stop));
        thread::spawn(move || read_on(&reader, &oids, lsn, &expected, &stop))
    };

    let attached =
        |path: &str| cluster.field(TEAM, "tenant/acme", &format!(".status.shards[0].attached.{path}"));
    let pod = attached("pod")?;
    let node = cluster.field(POOL_NAMESPACE, &format!("pod/{pod}"), ".spec.nodeName")?;
    story.step(&format!("Node {node} with pageserver {pod} is drained"));
    let since = Instant::now();
    let drained = cluster.kubectl(&[
        "drain",
        &node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--pod-selector=palimpsest.dev/pool=main",
        "--timeout=600s",
    ]);
    let moved = attached("pod")?;
    cluster.kubectl(&["uncordon", &node])?;
    drained?;
    ensure!(moved != pod, "the tenant is still at {pod}");
    story.fact(&format!("drained in {:.1} s; the tenant is at {moved}", since.elapsed().as_secs_f64()));
    cluster.rolled_out(POOL_NAMESPACE, "statefulset/main", Duration::from_mins(5))?;

    story.step("All pageservers are restarted, one after the other");
    let since = Instant::now();
    cluster.kubectl(&["--namespace", POOL_NAMESPACE, "rollout", "restart", "statefulset/main"])?;
    cluster.rolled_out(POOL_NAMESPACE, "statefulset/main", Duration::from_mins(15))?;
    story.fact(&format!("restarted in {:.1} s", since.elapsed().as_secs_f64()));

    story.step("All that was read in the meantime was right");
    stop.store(true, Ordering::Relaxed);
    let took = reading.join().ok().context("the reader panicked")??;
    ensure!(!took.is_empty(), "nothing was read");
    story.fact(&distribution(took));
    let lsn = source.rest()?;
    let compared = reader.compare(&source, "pgbench_accounts", PageKind::Heap, 30, lsn)?;
    story.fact(&format!("{compared} pages that were written in the meantime are equal at {lsn}"));

    story.end(&[TEAM])
}
