//! The operator dies at any moment, its lease goes to another, the bucket is away for a minute: nothing is lost, and no generation is used twice.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::placed::Placed;
use e2e::platform::{self, Images, OPERATOR_NAMESPACE, POOL_NAMESPACE};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story};
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-faults";

/// Something below three seconds that nobody knows beforehand.
fn some_moment() -> Duration {
    Duration::from_millis(RandomState::new().build_hasher().finish() % 3000)
}

#[test]
#[ignore = "needs a cluster: make e2e"]
fn nothing_is_lost_when_the_operator_dies_its_lease_moves_or_the_bucket_is_away() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [OPERATOR_NAMESPACE, POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("e-faults", &cluster, &namespaces)?;

    story.step("A team's Postgres is followed, with work on it");
    platform::install(&cluster, &images)?;
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    source.fill(1)?;
    platform::make_tenant(&cluster, TEAM)?;
    source.load(&images)?;
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "acme-main")?;

    let mut last = Placed::of(&cluster, TEAM, "acme")?;
    for round in 0..6 {
        let (how, arguments): (_, &[&str]) = if round % 2 == 0 {
            let operators = "--selector=app.kubernetes.io/component=operator";
            ("both operators are killed", &["delete", "pod", operators, "--force", "--grace-period=0"])
        } else {
            ("the lease is taken from the one that leads", &["delete", "lease/palimpsest"])
        };
        let moment = some_moment();
        story.step(&format!("Pageserver {} is lost, and {how} {moment:?} later", last.pod));
        last.lose(&cluster)?;
        sleep(moment);
        cluster.kubectl(&[&["--namespace", OPERATOR_NAMESPACE], arguments].concat())?;
        let next = last.succeeded(&cluster, TEAM, "acme", Duration::from_mins(3))?;
        story.fact(&format!(
            "attached to {} in generation {}, after {}",
            next.pod, next.generation, last.generation
        ));
        last = next;
        cluster.rolled_out(POOL_NAMESPACE, "statefulset/main", Duration::from_mins(3))?;
    }

    story.step("The bucket is away for a minute: nothing is moved, and work on the source goes on");
    let before = Placed::of(&cluster, TEAM, "acme")?;
    let worked =
        |source: &Source| -> Result<u64> { Ok(source.sql("SELECT count(*) FROM pgbench_history")?.parse()?) };
    let done = worked(&source)?;
    let scale = |replicas: &str| {
        cluster.kubectl(&[
            "--namespace",
            POOL_NAMESPACE,
            "scale",
            "deployment/s3",
            &format!("--replicas={replicas}"),
        ])
    };
    scale("0")?;
    sleep(Duration::from_mins(1));
    let meanwhile = worked(&source)? - done;
    let after = Placed::of(&cluster, TEAM, "acme")?;
    scale("1")?;
    cluster.rolled_out(POOL_NAMESPACE, "deployment/s3", Duration::from_mins(2))?;
    ensure!(after == before, "it was moved from {before:?} to {after:?}");
    ensure!(meanwhile > 0, "the source stood still");
    story.fact(&format!("{meanwhile} transactions meanwhile"));

    story.step("Work rests, and every page is as the source has it");
    let lsn = source.rest()?;
    let compared = reader.compare(&source, "pgbench_accounts", PageKind::Heap, 30, lsn)?
        + reader.compare(&source, "pgbench_history", PageKind::Heap, 20, lsn)?;
    story.fact(&format!("{compared} pages at {lsn} are equal"));

    story.end(&[TEAM])
}
