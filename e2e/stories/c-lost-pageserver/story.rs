//! A pageserver is lost with its disk while work goes on: another one serves the same history from the bucket.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::placed::Placed;
use e2e::platform::{self, Images};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story};
use model::Lsn;
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-lost";

#[test]
#[ignore = "needs a cluster: make e2e"]
fn pages_are_served_elsewhere_after_a_pageserver_is_lost_with_its_disk() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [platform::OPERATOR_NAMESPACE, platform::POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("c-lost-pageserver", &cluster, &namespaces)?;

    story.step("A team's Postgres is followed, with work on it");
    platform::install(&cluster, &images)?;
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    source.fill(2)?;
    platform::make_tenant(&cluster, TEAM)?;
    source.load(&images)?;
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "acme-main")?;
    let (_, oids, _) = source.relation("pgbench_accounts")?;
    sleep(Duration::from_secs(5));

    let mut generations = vec![Placed::of(&cluster, TEAM, "acme")?.generation];
    for _ in 0..2 {
        let before = Placed::of(&cluster, TEAM, "acme")?;
        let (pod, generation) = (&before.pod, before.generation);
        story.step(&format!("Pod {pod} is deleted by force, with its disk; it held generation {generation}"));
        // WAL that was flushed before the loss, and may have been in the lost memory only.
        let then: Lsn = source.sql("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        let killed = Instant::now();
        before.lose(&cluster)?;
        cluster.until("served elsewhere", Duration::from_mins(2), |cluster| {
            let now = Placed::of(cluster, TEAM, "acme")?;
            ensure!(now.instance != before.instance, "it is still placed at the lost instance");
            Ok(reader.page(&oids, 0, then)?.len() == 8192)
        })?;
        let now = Placed::of(&cluster, TEAM, "acme")?;
        story.fact(&format!(
            "first page from {}, generation {}, after {:.1} s",
            now.pod,
            now.generation,
            killed.elapsed().as_secs_f64()
        ));
        generations.push(now.generation);
    }
    ensure!(generations.windows(2).all(|pair| pair[0] < pair[1]), "generations were {generations:?}");

    story.step("Work rests, and every page is as the source has it");
    let lsn = source.rest()?;
    let compared = reader.compare(&source, "pgbench_accounts", PageKind::Heap, 30, lsn)?
        + reader.compare(&source, "pgbench_accounts_pkey", PageKind::Btree, 15, lsn)?
        + reader.compare(&source, "pgbench_history", PageKind::Heap, 15, lsn)?;
    story.fact(&format!("{compared} pages at {lsn} are equal"));
    let slots = source.sql("SELECT slot_name, wal_status FROM pg_replication_slots")?;
    ensure!(slots.lines().count() == 1 && !slots.contains("lost"), "the source's slots are {slots}");

    story.end(&[TEAM])
}
