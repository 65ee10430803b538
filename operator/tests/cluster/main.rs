//! The operator against a real API server, real pageservers and a real Postgres: with the roles that it has where people install it.

mod bad_input;
mod surroundings;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use operator::api::{Tenant, TenantStatus, Timeline, condition};
use serde_json::json;
use surroundings::{Surroundings, TEAM, eventually, following, is_ready, tenant};
use testkit::{Postgres, PostgresConfig};

fn generation_of(tenant: &Tenant) -> u32 {
    tenant.status.as_ref().and_then(|status| status.shards.first()).map_or(0, |shard| shard.generation)
}

fn pod_of(tenant: &Tenant) -> Option<&str> {
    Some(&tenant.status.as_ref()?.shards.first()?.attached.as_ref()?.pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_and_its_timeline_become_ready_and_follow_a_lost_pageserver_to_the_next() {
    becomes_ready_and_moves().await.unwrap();
}

async fn becomes_ready_and_moves() -> Result<()> {
    let around = Surroundings::new().await?;
    let primary = Postgres::start(&PostgresConfig::new(17)).await?;
    primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await?;
    let first = around.pageserver("main-0").await?;
    let _operator = around.operator("one")?;

    around.make(Some(TEAM), &tenant("acme", &json!({}))?).await?;
    around.make(Some(TEAM), &following("acme-main", primary.port(), None)?).await?;
    let ready = around.tenant_when("acme", is_ready).await?;
    ensure!((pod_of(&ready), generation_of(&ready)) == (Some("main-0"), 1), "{:?}", ready.status);
    let timeline_is_ready = |timeline: &Timeline| {
        let status = timeline.status.clone().unwrap_or_default();
        condition::is_true(&status.conditions, "Ready") && status.readable_from_lsn.is_some()
    };
    let made = around.timeline_when("acme-main", timeline_is_ready).await?;
    ensure!(made.status.and_then(|status| status.timeline_id).is_some(), "it has no id");

    // Clients find it by a Service of the tenant's name, and by the table of its shards.
    let services: Api<Service> = Api::namespaced(around.admin.clone(), TEAM);
    ensure!(services.get("acme").await?.spec.and_then(|spec| spec.cluster_ip).as_deref() == Some("None"));
    let maps: Api<ConfigMap> = Api::namespaced(around.admin.clone(), TEAM);
    ensure!(!maps.list(&ListParams::default().labels("palimpsest.dev/tenant=acme")).await?.items.is_empty());
    let slices: Api<EndpointSlice> = Api::namespaced(around.admin.clone(), TEAM);
    let of_service = ListParams::default().labels("kubernetes.io/service-name=acme");
    let leads_to = async |pod: &str| {
        let list = slices.list(&of_service).await?.items;
        let mut targets = list
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .filter_map(|one| one.target_ref.as_ref()?.name.clone());
        Ok(targets.next().as_deref() == Some(pod) && targets.next().is_none())
    };
    ensure!(leads_to("main-0").await?);

    around.lose("main-0", first).await?;
    let _second = around.pageserver("main-1").await?;
    let moved =
        around.tenant_when("acme", |tenant| pod_of(tenant) == Some("main-1") && is_ready(tenant)).await?;
    ensure!(generation_of(&moved) > 1, "generation {} is given again", generation_of(&moved));
    eventually("the Service leads to main-1", async || leads_to("main-1").await).await?;
    around.timeline_when("acme-main", timeline_is_ready).await?;
    ensure!(around.refused()?.is_empty(), "the operator lacks rights: {:?}", around.refused()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_that_die_at_any_moment_never_give_a_generation_twice() {
    operators_die().await.unwrap();
}

async fn operators_die() -> Result<()> {
    let around = Surroundings::new().await?;
    let mut server = Some(around.pageserver("main-0").await?);
    let names: Vec<String> = (0..5).map(|number| format!("tenant-{number}")).collect();
    for name in &names {
        around.make(Some(TEAM), &tenant(name, &json!({}))?).await?;
    }
    let mut highest = vec![0; names.len()];
    for round in 0..4 {
        // The one before holds the lease until that runs out; this one waits for it, as in any cluster.
        let mut leads = around.operator(&format!("operator-{round}"))?;
        for (name, highest) in names.iter().zip(&mut highest) {
            let pod = format!("main-{round}");
            let ready = around.tenant_when(name, |one| pod_of(one) == Some(&pod) && is_ready(one)).await?;
            ensure!(
                generation_of(&ready) > *highest,
                "{name} has generation {} again",
                generation_of(&ready)
            );
            *highest = generation_of(&ready);
        }
        around.lose(&format!("main-{round}"), server.take().context("one runs")?).await?;
        server = Some(around.pageserver(&format!("main-{}", round + 1)).await?);
        tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(0..400))).await;
        leads.process.kill();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_comes_back_and_everything_goes_on() {
    api_server_comes_back().await.unwrap();
}

async fn api_server_comes_back() -> Result<()> {
    let mut around = Surroundings::new().await?;
    let _server = around.pageserver("main-0").await?;
    let mut operator = around.operator("one")?;
    around.make(Some(TEAM), &tenant("before", &json!({}))?).await?;
    let before = around.tenant_when("before", is_ready).await?;
    around.plane.kill_api_server();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    ensure!(operator.process.exit_status().is_none(), "it ended: {}", operator.process.log_tail());
    around.plane.start_api_server_again().await?;
    around.make(Some(TEAM), &tenant("after", &json!({}))?).await?;
    around.tenant_when("after", is_ready).await?;
    let metrics = operator.metrics().await?;
    ensure!(metrics.lines().any(|line| line.ends_with("operator_leader 1")), "{metrics}");
    let still = around.tenant_when("before", is_ready).await?;
    ensure!(still.status == before.status, "{:?} was {:?}", still.status, before.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_written_is_refused_by_the_api_server_itself() {
    refusals().await.unwrap();
}

async fn refusals() -> Result<()> {
    let around = Surroundings::new().await?;
    let _server = around.pageserver("main-0").await?;
    let _operator = around.operator("one")?;
    around.make(Some(TEAM), &tenant("acme", &json!({}))?).await?;
    let ready = around.tenant_when("acme", is_ready).await?;
    let tenants = around.tenants();

    let mut lowered = ready.clone();
    lowered.status.as_mut().context("it has one")?.shards[0].generation = 0;
    let refused = tenants.replace_status("acme", &PostParams::default(), &lowered).await;
    let said = refused.err().context("a generation was lowered")?.to_string();
    ensure!(said.contains("generation"), "{said}");
    let mut emptied = ready.clone();
    emptied.status = Some(TenantStatus::default());
    let refused = tenants.replace_status("acme", &PostParams::default(), &emptied).await;
    let said = refused.err().context("a shard's record was removed")?.to_string();
    ensure!(said.contains("shard entries are never removed"), "{said}");
    let other_pool = json!({"spec": {"poolRef": {"name": "other"}}});
    let refused = tenants.patch("acme", &PatchParams::default(), &Patch::Merge(other_pool)).await;
    ensure!(refused.err().context("the pool was changed")?.to_string().contains("poolRef is immutable"));

    // Everything that was made for it names it as owner; it goes with its finalizer.
    let services: Api<Service> = Api::namespaced(around.admin.clone(), TEAM);
    let owner = services.get("acme").await?.metadata.owner_references.unwrap_or_default();
    ensure!(owner.iter().any(|owner| Some(&owner.uid) == ready.meta().uid.as_ref()), "{owner:?}");
    tenants.delete("acme", &DeleteParams::default()).await?;
    eventually("the tenant is gone", async || Ok(tenants.get_opt("acme").await?.is_none())).await?;
    ensure!(around.refused()?.is_empty(), "{:?}", around.refused()?);
    Ok(())
}
