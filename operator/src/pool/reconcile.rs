//! Says how a pool fares, opens its pods' readiness gates, and ends what no tenant of ours wants any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action as Requeue;
use kube::{Resource as _, ResourceExt as _};
use model::{TenantId, TenantShardId};
use proto::v1::DetachRequest;
use serde_json::json;

use super::view::{Contact, OpenPool, Pageserver, PoolView, Storage};
use crate::api::condition::{self, ConditionStatus, Verdict};
use crate::api::pool::{PageserverPool, PageserverPoolStatus};
use crate::context::{Context, FIELD_MANAGER, RESYNC, ReconcileError};
use crate::fleet::roster;
use crate::fleet::rpc::{FLUSH, SHORT, answer, duration, mutation};

/// Readiness gate of pageserver pods: open once the pageserver takes tenants, so that a rollout goes on no sooner.
pub const FILLED: &str = "palimpsest.dev/filled";
/// How soon a pass follows one that could not see enough.
const SOON: Duration = Duration::from_secs(1);

/// One pass over a pool.
pub async fn reconcile(pool: Arc<PageserverPool>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    context.cluster.ready().await?;
    let key = (pool.namespace().unwrap_or_default(), pool.name_any());
    let Some(view) = context.fleet.pool(&key) else { return Ok(Requeue::requeue(SOON)) };
    let before = pool.status.clone().unwrap_or_default();
    let mut status = match &view {
        PoolView::Open(open) => {
            measure(&context, &key.0, &key.1, open);
            let (replicas, usable) = (open.pageservers.len(), usable(open).count());
            PageserverPoolStatus { replicas: replicas as u32, usable: usable as u32, ..before.clone() }
        }
        PoolView::Missing | PoolView::NotAllowed | PoolView::Invalid(_) => before.clone(),
    };
    let said = verdicts(&view, |pod| context.fleet.failure(&key.0, pod));
    status.conditions = condition::merge(&before.conditions, &said, pool.meta().generation, Timestamp::now());
    status.observed_generation = pool.meta().generation;
    if status != before {
        let next = PageserverPool { status: Some(status), ..(*pool).clone() };
        context.put_status(&next).await?;
    }
    if let PoolView::Open(open) = &view {
        open_gates(&context, &pool, open).await?;
        end_orphans(&context, &key.0, open).await;
    }
    Ok(Requeue::requeue(RESYNC))
}

fn usable(pool: &OpenPool) -> impl Iterator<Item = &Pageserver> {
    pool.pageservers.values().filter(|one| pool.is_usable(one))
}

/// What is to be said of a pool. `failure` tells why a pod does not answer.
fn verdicts(view: &PoolView, failure: impl Fn(&str) -> Option<String>) -> Vec<Verdict> {
    let pool = match view {
        PoolView::Open(pool) => pool,
        PoolView::Invalid(why) => {
            return vec![Verdict::no("Ready", "Invalid", format!("{why}; correct the spec"))];
        }
        PoolView::Missing | PoolView::NotAllowed => return Vec::new(),
    };
    vec![ready(pool, failure), storage(pool), held(pool)]
}

fn ready(pool: &OpenPool, failure: impl Fn(&str) -> Option<String>) -> Verdict {
    let (all, usable) = (pool.pageservers.len(), usable(pool).count());
    let told = format!("{usable} of {all} pageservers usable");
    let silent = pool.pageservers.values().find(|one| matches!(one.contact, Contact::Silent(_)));
    let because =
        silent.and_then(|one| Some(format!("; {}: {}", one.pod, failure(&one.pod)?))).unwrap_or_default();
    match (all, usable) {
        (0, _) => Verdict::no("Ready", "NoPageservers", "no pod of the namespace matches spec.selector"),
        (_, 0) => Verdict::no("Ready", "NoneUsable", told + &because),
        (all, usable) if all == usable => Verdict::yes("Ready", "AllUsable", told),
        _ => Verdict::yes("Ready", "SomeUsable", told + &because),
    }
}

fn storage(pool: &OpenPool) -> Verdict {
    let reports: Vec<_> = pool.pageservers.values().filter_map(Pageserver::report).collect();
    let worst = |storage| reports.iter().find(|report| report.storage == storage);
    if let Some(report) = worst(Storage::Unsafe) {
        let message = format!(
            "the bucket has no create-if-absent: use one that has it, or set spec.storage.conditionalWrites to BestEffort and never restore \
             etcd without raising generations; {}",
            report.storage_message
        );
        return Verdict::no("StorageVerified", "ConditionalWritesMissing", message);
    }
    if let Some(report) = worst(Storage::Unavailable) {
        let message = format!("the bucket does not answer, or refuses: {}", report.storage_message);
        return Verdict::no("StorageVerified", "StorageUnavailable", message);
    }
    if worst(Storage::BestEffort).is_some() {
        let message =
            "the bucket has no create-if-absent: that no two processes own a tenant rests on etcd alone";
        return Verdict::no("StorageVerified", "BestEffort", message);
    }
    if worst(Storage::Conditional).is_some() {
        return Verdict::yes(
            "StorageVerified",
            "ConditionalWritesOK",
            "one of two creators of an object is refused",
        );
    }
    Verdict {
        type_: "StorageVerified",
        status: ConditionStatus::Unknown,
        reason: "NotAsked",
        message: "no pageserver has answered yet".into(),
    }
}

fn held(pool: &OpenPool) -> Verdict {
    if pool.held {
        let message = "too many pageservers do not answer: check the way from the operator to them; nothing is attached elsewhere meanwhile";
        return Verdict::yes("FailoverHeld", "TooManySilent", message);
    }
    Verdict::no("FailoverHeld", "BelowThreshold", "")
}

fn measure(context: &Context, namespace: &str, name: &str, pool: &OpenPool) {
    let metrics = &context.metrics;
    metrics.failover_held.with_label_values(&[namespace, name]).set(pool.held.into());
    for pageserver in pool.pageservers.values() {
        let labels = [namespace, &pageserver.pod];
        let report = pageserver.report();
        metrics.pageserver_up.with_label_values(&labels).set(report.is_some().into());
        let shards = report.map_or(0, |report| report.shards.len());
        metrics.pageserver_shards.with_label_values(&labels).set(shards as i64);
    }
}

/// Opens the gate of every pod that takes tenants and has a gate that is not open.
async fn open_gates(
    context: &Context,
    resource: &PageserverPool,
    pool: &OpenPool,
) -> Result<(), ReconcileError> {
    for pod in context.cluster.pods.all().iter().filter(|pod| roster::belongs(resource, pod)) {
        let takes_tenants = pool
            .pageservers
            .get(&pod.name_any())
            .is_some_and(|one| Some(&one.pod_uid) == pod.uid().as_ref() && pool.is_usable(one));
        if takes_tenants && has_closed_gate(pod) {
            open_gate(context, pod).await?;
        }
    }
    Ok(())
}

fn has_closed_gate(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    let has_gate = gates.into_iter().flatten().any(|gate| gate.condition_type == FILLED);
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let open = conditions.into_iter().flatten().any(|one| one.type_ == FILLED && one.status == "True");
    has_gate && !open
}

async fn open_gate(context: &Context, pod: &Pod) -> Result<(), ReconcileError> {
    let api = Api::<Pod>::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    let condition = json!({
        "type": FILLED, "status": "True", "reason": "TakesTenants", "message": "the pageserver takes tenants",
        "lastTransitionTime": now.to_string(),
    });
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let written = api.patch_status(&pod.name_any(), &parameters, &Patch::Strategic(&patch)).await;
    context.metrics.wrote("Pod", "patch", &written);
    match written {
        Ok(_) => Ok(()),
        // Another pod has its name by now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(source) => Err(ReconcileError::Write { what: "a readiness gate", source: Box::new(source) }),
    }
}

/// Shards that pageservers hold and of which no tenant is known.
fn orphans<'a>(
    pool: &'a OpenPool,
    known: &BTreeSet<TenantId>,
) -> Vec<(&'a Pageserver, &'a str, TenantShardId, u32)> {
    let holding = pool.pageservers.values().filter_map(|pageserver| Some((pageserver, pageserver.report()?)));
    holding
        .flat_map(|(pageserver, report)| {
            let shards = report.shards.iter().filter(|(shard, _)| !known.contains(&shard.tenant));
            shards.map(move |(shard, held)| (pageserver, report.instance.as_str(), *shard, held.generation))
        })
        .collect()
}

/// Lets pageservers go of tenants that are gone: such as one whose resource was deleted while its pageserver was away. What they have stays in
/// the bucket.
async fn end_orphans(context: &Context, namespace: &str, pool: &OpenPool) {
    let tenants = context.cluster.tenants.all();
    let known = tenants
        .iter()
        .filter_map(|tenant| tenant.status.as_ref()?.tenant_id.as_ref()?.tenant().ok())
        .collect();
    for (pageserver, instance, shard, generation) in orphans(pool, &known) {
        let Some(mut client) = context.fleet.client(namespace, &pageserver.pod, instance) else { continue };
        tracing::info!(pod = pageserver.pod, %shard, generation, "detaching a shard of no known tenant");
        let request = DetachRequest {
            mutation: Some(mutation(shard, generation, &format!("detach-{generation}"), instance)),
            flush_within: Some(duration(FLUSH)),
        };
        if let Err(error) = answer(&context.metrics, "Detach", FLUSH + SHORT, client.detach(request)).await {
            tracing::warn!(pod = pageserver.pod, %shard, "cannot detach: {}", error.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{answering, holding, pool, report_mut, shard, silent};
    use crate::pool::view::ShardState;

    fn said(pageservers: impl IntoIterator<Item = Pageserver>) -> Vec<(&'static str, &'static str)> {
        let view = PoolView::Open(pool(pageservers).into());
        verdicts(&view, |_| Some("connection refused".into())).iter().map(|v| (v.type_, v.reason)).collect()
    }

    #[test]
    fn a_pool_says_how_many_of_it_are_usable_and_what_is_wrong_with_the_bucket() {
        let fine = || answering("ps-0", "a");
        assert_eq!(
            said([fine()]),
            [
                ("Ready", "AllUsable"),
                ("StorageVerified", "ConditionalWritesOK"),
                ("FailoverHeld", "BelowThreshold")
            ]
        );
        assert_eq!(said([])[0], ("Ready", "NoPageservers"));
        assert_eq!(said([silent("ps-1", 3)])[0], ("Ready", "NoneUsable"));
        assert_eq!(said([fine(), silent("ps-1", 3)])[0], ("Ready", "SomeUsable"));
        for (storage, reason) in [
            (Storage::Unsafe, "ConditionalWritesMissing"),
            (Storage::Unavailable, "StorageUnavailable"),
            (Storage::BestEffort, "BestEffort"),
        ] {
            let mut pageserver = answering("ps-1", "b");
            report_mut(&mut pageserver).storage = storage;
            assert_eq!(said([fine(), pageserver])[1], ("StorageVerified", reason));
        }
        let view = PoolView::Open(pool([silent("ps-1", 3)]).into());
        let told = verdicts(&view, |_| Some("connection refused".into()));
        assert_eq!(told[0].message, "0 of 1 pageservers usable; ps-1: connection refused");
    }

    #[test]
    fn a_gate_is_opened_once_and_only_where_there_is_one() {
        let pod = |gates: serde_json::Value, conditions: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {}, "spec": {"containers": [], "readinessGates": gates}, "status": {"conditions": conditions},
            }))
            .unwrap()
        };
        let gate = json!([{"conditionType": FILLED}]);
        assert!(has_closed_gate(&pod(gate.clone(), json!([]))));
        assert!(has_closed_gate(&pod(gate.clone(), json!([{"type": FILLED, "status": "False"}]))));
        assert!(!has_closed_gate(&pod(gate, json!([{"type": FILLED, "status": "True"}]))));
        assert!(!has_closed_gate(&pod(json!([]), json!([]))));
    }

    #[test]
    fn only_shards_of_unknown_tenants_are_orphans() {
        let holder = holding(answering("ps-0", "a"), shard(1), 3, ShardState::Active);
        let pool = pool([holding(holder, shard(2), 4, ShardState::Active)]);
        let known = BTreeSet::from([shard(1).tenant]);
        let orphans: Vec<_> = orphans(&pool, &known).into_iter().map(|(_, _, shard, g)| (shard, g)).collect();
        assert_eq!(orphans, [(shard(2), 4)]);
    }
}
