//! A team deletes what it needed, branches its history before that moment, and has a stock Postgres on the branch, which the branch then follows.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::platform::{self, Images};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story, token};
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-branch";
const ROWS: &str = "SELECT count(*) || ' rows, sum ' || sum(abalance) FROM pgbench_accounts";

#[test]
#[ignore = "needs a cluster: make e2e"]
fn rows_deleted_by_accident_are_in_a_postgres_started_from_a_branch_at_a_time_before() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [platform::OPERATOR_NAMESPACE, platform::POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("b-branch-and-restore", &cluster, &namespaces)?;

    story.step("A team's Postgres is followed");
    platform::install(&cluster, &images)?;
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    source.fill(2)?;
    platform::make_tenant(&cluster, TEAM)?;
    source.load(&images)?;
    sleep(Duration::from_secs(5));
    source.rest()?;

    story.step("Somebody deletes all accounts");
    let before = source.sql(ROWS)?;
    // Kubernetes' times have whole seconds.
    sleep(Duration::from_secs(2));
    let moment = source.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")?;
    sleep(Duration::from_secs(2));
    source.sql("DELETE FROM pgbench_accounts")?;
    let after = source.settle()?;
    ensure!(source.sql("SELECT count(*) FROM pgbench_accounts")? == "0");
    story.fact(&format!("there were {before} at {moment}"));
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "acme-main")?;
    reader.compare(&source, "pgbench_accounts", PageKind::Heap, 3, after)?;
    story.fact(&format!("the pageserver has the deletion, at {after}"));

    story.step("The team applies a branch at that time");
    let branch = platform::example("branch-at-timestamp.yaml")?;
    cluster.apply(&branch.replace("team-acme", TEAM).replace("2026-03-01T12:00:00Z", &moment))?;
    cluster.wait(TEAM, "timeline/before-the-accident", "Ready", Duration::from_mins(1))?;
    let lsn = cluster.field(TEAM, "timeline/before-the-accident", ".status.ancestorLSN")?;
    story.fact(&format!("it begins at {lsn}"));

    story.step("A stock Postgres starts from it, by an init container");
    let id = |resource, path| cluster.field(TEAM, resource, path);
    let (tenant, timeline) =
        (id("tenant/acme", ".status.tenantID")?, id("timeline/before-the-accident", ".status.timelineID")?);
    // Where clients need a token, the init container finds it in this Secret.
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Secret, metadata: {{name: acme-token, namespace: {TEAM}}}, stringData: {{token: {}}}}}",
        token::of_tenant(&tenant)
    ))?;
    let nobody = "\"00000000000000000000000000000000\"";
    let pod = images.put_into(&platform::example("restore-into-a-pod.yaml")?).replace("team-acme", TEAM);
    let pod =
        pod.replacen(nobody, &format!("\"{tenant}\""), 1).replacen(nobody, &format!("\"{timeline}\""), 1);
    cluster.apply(&pod)?;
    cluster.wait(TEAM, "pod/restored", "Ready", Duration::from_mins(2))?;
    let restored = Source::at(&cluster, TEAM, "restored");
    let now = restored.sql(ROWS)?;
    story.fact(&format!("it has {now}"));
    ensure!(now == before, "the restored Postgres has {now}, there were {before}");

    story.step("Its WAL streams into the branch");
    let host = format!("restored.{TEAM}.svc");
    cluster.kubectl(&[
        "--namespace", TEAM, "patch", "timeline/before-the-accident", "--type=merge", "--patch",
        &format!(r#"{{"spec": {{"source": {{"primary": {{"host": "{host}", "sslMode": "prefer"}}, "credentials": "acme"}}}}}}"#),
    ])?;
    cluster.wait(TEAM, "timeline/before-the-accident", "Following", Duration::from_mins(1))?;
    restored.sql("CREATE TABLE after_the_accident AS SELECT generate_series(1, 10000) AS n")?;
    let lsn = restored.settle()?;
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "before-the-accident")?;
    let compared = reader.compare(&restored, "after_the_accident", PageKind::Heap, 10, lsn)?
        + reader.compare(&restored, "pgbench_accounts", PageKind::Heap, 10, lsn)?;
    story.fact(&format!("{compared} pages at {lsn} are equal"));

    story.end(&[TEAM])
}
