//! A platform team installs the charts; a team has the history of its Postgres kept, and reads pages of it.

use anyhow::{Context, Result};
use e2e::platform::{self, Images};
use e2e::reader::Reader;
use e2e::source::Source;
use e2e::{Cluster, Story, token};
use testkit::cluster_files::PageKind;

const TEAM: &str = "team-acme";

#[test]
#[ignore = "needs a cluster: make e2e"]
fn a_stock_postgres_is_imported_under_load_and_its_pages_are_read_by_the_tenants_service() -> Result<()> {
    let cluster = Cluster::from_environment()?;
    let images = Images::from_environment();
    let namespaces = [platform::OPERATOR_NAMESPACE, platform::POOL_NAMESPACE, TEAM];
    let mut story = Story::begin("a-import-and-read", &cluster, &namespaces)?;

    story.step("A platform team installs the operator, an S3 server and a pool of pageservers");
    platform::install(&cluster, &images)?;

    story.step("A team has an ordinary Postgres, with work on it");
    let source = Source::start(&cluster, &images, TEAM, "postgres")?;
    source.fill(5)?;
    source.load(&images)?;

    story.step("It applies a tenant and a timeline, and waits until they are ready");
    platform::make_tenant(&cluster, TEAM)?;
    story.fact(&cluster.kubectl(&["--namespace", TEAM, "get", "tenants,timelines"])?);

    story.step("Work goes on for a while, then rests");
    std::thread::sleep(std::time::Duration::from_secs(5));
    let lsn = source.rest()?;
    story.fact(&format!("everything was written at {lsn}"));

    story.step("A pod finds the pageserver by the name of the tenant's Service and reads the same pages as the source has");
    let reader = Reader::start(&cluster, &images, TEAM, "acme", "acme-main")?;
    let mut compared = 0;
    for (relation, kind, most) in [
        ("pgbench_accounts", PageKind::Heap, 40),
        ("pgbench_accounts_pkey", PageKind::Btree, 20),
        ("pgbench_history", PageKind::Heap, 10),
        ("pgbench_tellers", PageKind::Heap, 10),
        ("pg_class", PageKind::Heap, 20),
        ("pg_class_oid_index", PageKind::Btree, 5),
    ] {
        compared += reader.compare(&source, relation, kind, most, lsn)?;
    }
    story.fact(&format!("{compared} pages are equal"));

    story.step("Without a token, or with another tenant's, it is refused");
    let (_, oids, _) = source.relation("pgbench_accounts")?;
    for (whose, token) in [("no", None), ("another tenant's", Some(token::of_tenant(&"0".repeat(32))))] {
        let refused = reader.with_token(token).page(&oids, 0, lsn);
        let error = refused.err().with_context(|| format!("a page was read with {whose} token"))?;
        story.fact(&format!(
            "{whose} token: {}",
            error.root_cause().to_string().lines().last().unwrap_or_default()
        ));
    }

    story.end(&[TEAM])
}
