//! Carries out decisions about tenants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action as Requeue;
use kube::{Resource as _, ResourceExt as _};
use model::{ShardIndex, TenantId};
use tokio::time::Instant;

use super::calls;
use super::decide::{self, Action, Answers, Call, Commit, Decision, Draws, FINALIZER, News, Observed};
use super::routing;
use super::verdict::{verdicts, why};
use crate::api::condition;
use crate::api::tenant::{Tenant, TenantStatus};
use crate::context::{Context, RESYNC, ReconcileError};
use crate::fleet::rpc::CallError;
use crate::pool::view::PoolView;

/// What is remembered of a tenant between passes.
pub type Remembered = BTreeMap<ShardIndex, Answers>;

/// How soon a pass follows one that could not see enough, or whose write was refused.
const SOON: Duration = Duration::from_secs(1);
/// What was answered is looked at after so long.
const AFTER_CALLS: Duration = Duration::from_millis(100);

/// One pass over a tenant.
pub async fn reconcile(tenant: Arc<Tenant>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    context.cluster.ready().await?;
    let uid = tenant.uid().unwrap_or_default();
    if context.tenants.is_outdated(&uid, tenant.resource_version().as_deref(), Instant::now()) {
        return Ok(Requeue::requeue(SOON));
    }
    let Some(pool) = context.fleet.pool_of(&tenant) else { return Ok(Requeue::requeue(SOON)) };
    assert_routes(&context, &tenant, &pool).await?;
    let answers = context.tenants.answers(&uid, tenant.meta().generation);
    let taken_by = id_taken_by(&context, &tenant);
    let observed = Observed {
        pool: &pool,
        id_taken_by: taken_by.as_deref(),
        answers: &answers,
        draws: &draw(),
        now: Timestamp::now(),
    };
    let decision = decide::decide(&tenant, observed);
    act(&context, &tenant, &pool, decision).await
}

fn draw() -> Draws {
    Draws { tenant_id: TenantId(rand::random()), attempt: hex::encode(rand::random::<u128>().to_be_bytes()) }
}

/// Clients are sent where the committed status says, before anything else.
async fn assert_routes(context: &Context, tenant: &Tenant, pool: &PoolView) -> Result<(), ReconcileError> {
    let named = tenant.status.as_ref().is_some_and(|status| status.tenant_id.is_some());
    let (PoolView::Open(open), true, false) = (pool, named, tenant.meta().deletion_timestamp.is_some())
    else {
        return Ok(());
    };
    let Some(resource) = context.cluster.pools.get(tenant.pool_namespace(), &tenant.spec.pool_ref.name)
    else {
        return Ok(());
    };
    match routing::build(tenant, &resource.spec, open) {
        Some(routes) => routing::assert(context, &routes).await,
        None => Ok(()),
    }
}

/// Another tenant that has the id which this one asks for, and had it first.
fn id_taken_by(context: &Context, tenant: &Tenant) -> Option<String> {
    let wanted = tenant.spec.tenant_id.as_ref()?;
    let age = |one: &Tenant| (one.meta().creation_timestamp.clone().map(|time| time.0), one.uid());
    let has = |other: &Tenant| {
        let given = other.status.as_ref().and_then(|status| status.tenant_id.as_ref());
        given == Some(wanted)
            || (given.is_none() && other.spec.tenant_id.as_ref() == Some(wanted) && age(other) < age(tenant))
    };
    let all = context.cluster.tenants.all();
    let other = all.iter().find(|other| other.uid() != tenant.uid() && has(other))?;
    Some(format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any()))
}

/// Does what was decided. A status is written alone: what follows from it is the next pass's.
async fn act(
    context: &Context,
    tenant: &Tenant,
    pool: &PoolView,
    decision: Decision,
) -> Result<Requeue, ReconcileError> {
    let said = verdicts(tenant, &decision);
    match decision.action {
        Action::AddFinalizer => {
            context.set_finalizer(tenant, FINALIZER, true).await?;
            Ok(Requeue::await_change())
        }
        Action::RemoveFinalizer => {
            context.set_finalizer(tenant, FINALIZER, false).await?;
            context.tenants.forget(&tenant.uid().unwrap_or_default());
            Ok(Requeue::await_change())
        }
        Action::Commit(Commit { status, news }) => {
            write(context, tenant, status, &said).await?;
            for news in &news {
                tell(context, tenant, news).await;
            }
            Ok(Requeue::await_change())
        }
        Action::Call(calls) => {
            write(context, tenant, tenant.status.clone().unwrap_or_default(), &said).await?;
            Ok(Requeue::requeue(make(context, tenant, pool, &calls).await))
        }
        Action::Wait(pause) => {
            write(context, tenant, tenant.status.clone().unwrap_or_default(), &said).await?;
            Ok(Requeue::requeue(pause.map_or(RESYNC, |pause| pause + SOON)))
        }
    }
}

/// Writes a status with what is to be said, if that is anything new.
async fn write(
    context: &Context,
    tenant: &Tenant,
    mut status: TenantStatus,
    said: &[condition::Verdict],
) -> Result<(), ReconcileError> {
    let generation = tenant.meta().generation;
    status.conditions = condition::merge(&status.conditions, said, generation, Timestamp::now());
    if !said.is_empty() {
        status.observed_generation = generation;
    }
    status.endpoints = status.shards.iter().filter(|shard| shard.attached.is_some()).count() as u32;
    if tenant.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let next = Tenant { status: Some(status), ..tenant.clone() };
    context.put_status(&next).await?;
    context.tenants.replaced(
        &tenant.uid().unwrap_or_default(),
        tenant.resource_version().as_deref(),
        Instant::now(),
    );
    Ok(())
}

/// Makes all calls at once. Answers when to look again.
async fn make(context: &Context, tenant: &Tenant, pool: &PoolView, made: &[Call]) -> Duration {
    let PoolView::Open(open) = pool else { return RESYNC };
    let uid = tenant.uid().unwrap_or_default();
    let which = format!("{made:?}");
    if let Some(pause) = context.tenants.pause(&uid, &which, Instant::now()) {
        return pause;
    }
    let namespace = tenant.pool_namespace();
    let answered =
        join_all(made.iter().map(|call| calls::make(context, tenant, namespace, &open.uid, call))).await;
    let mut failure: Option<&CallError> = None;
    let mut is_news = false;
    for (call, answered) in made.iter().zip(&answered) {
        is_news |= context.tenants.learn(&uid, |answers| calls::remember(answers, call, answered));
        if let Err(error) = answered {
            tracing::info!(pod = call.pod, kind = ?call.kind, "a call failed: {}", error.message);
            failure = Some(error);
        }
    }
    if failure.is_none() {
        context.tenants.succeeded(&uid);
        return SOON;
    }
    let pause = context.tenants.failed(&uid, &which, false, Instant::now());
    // What was learnt may change what is to be done: that is decided at once, and the same calls wait.
    if is_news { AFTER_CALLS } else { pause }
}

async fn tell(context: &Context, tenant: &Tenant, news: &News) {
    let about = tenant.object_ref(&());
    let (is_warning, reason, note) = match news {
        News::Named(id) => (false, "Named", format!("the tenant has the id {}", id.0)),
        News::Allocated(shard, reason, target) => {
            context.metrics.allocations.with_label_values(&[&format!("{reason:?}")]).inc();
            let note = format!(
                "shard {shard} goes to {} in generation {}: {}",
                target.pod,
                target.generation,
                why(*reason)
            );
            (!matches!(reason, crate::api::tenant::TargetReason::New), "Attaching", note)
        }
        News::Attached(shard, place) => (
            false,
            "Attached",
            format!("shard {shard} is served by {} in generation {}", place.pod, place.generation),
        ),
        News::Configured(shard) => {
            (false, "Configured", format!("shard {shard} has the configuration of the spec"))
        }
        News::Released(shard) => (false, "Detached", format!("shard {shard} is detached")),
    };
    context.event(&about, is_warning, reason, "Reconcile", note).await;
}
