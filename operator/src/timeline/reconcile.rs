//! Carries out decisions about timelines.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action as Requeue;
use kube::{Resource as _, ResourceExt as _};
use model::TimelineId;
use tokio::time::Instant;

use super::calls::{self, Learnt};
use super::decide::{self, Action, Call, CallKind, Decision, FINALIZER, Observed};
use crate::api::condition;
use crate::api::text::HexId;
use crate::api::{Tenant, Timeline, TimelineStatus, Verdict};
use crate::context::{Context, RESYNC, ReconcileError};
use crate::pool::view::PoolView;

/// How soon a pass follows one that could not see enough, or whose calls went well.
const SOON: Duration = Duration::from_secs(1);
/// What was answered is looked at after so long.
const AFTER_CALLS: Duration = Duration::from_millis(100);

/// One pass over a timeline.
pub async fn reconcile(timeline: Arc<Timeline>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    context.cluster.ready().await?;
    let uid = timeline.uid().unwrap_or_default();
    if context.timelines.is_outdated(&uid, timeline.resource_version().as_deref(), Instant::now()) {
        return Ok(Requeue::requeue(SOON));
    }
    let namespace = timeline.namespace().unwrap_or_default();
    let tenant = context.cluster.tenants.get(&namespace, &timeline.spec.tenant_ref.name);
    let pool = match &tenant {
        Some(tenant) => match context.fleet.pool_of(tenant) {
            Some(PoolView::Open(pool)) => Some(pool),
            Some(_) => None,
            None => return Ok(Requeue::requeue(SOON)),
        },
        None => None,
    };
    let ancestor = timeline.spec.ancestor.as_ref().and_then(|ancestor| ancestor.timeline_ref.as_ref());
    let ancestor = ancestor.and_then(|named| context.cluster.timelines.get(&namespace, &named.name));
    let (branches, taken_by) = relatives(&context, &timeline);
    let observed = Observed {
        tenant: tenant.as_deref(),
        pool: pool.as_deref(),
        ancestor: ancestor.as_deref(),
        branches: &branches,
        id_taken_by: taken_by.as_deref(),
        answers: &context.timelines.answers(&uid, timeline.meta().generation),
        drawn_id: TimelineId(rand::random()),
        now: Timestamp::now(),
    };
    let decision = decide::decide(&timeline, observed);
    act(&context, &timeline, tenant.as_deref(), decision).await
}

/// Names of timelines that branch off from this one, and one that had its id first.
fn relatives(context: &Context, timeline: &Timeline) -> (Vec<String>, Option<String>) {
    let own_id = timeline.status.as_ref().and_then(|status| status.timeline_id.as_ref());
    let age = |one: &Timeline| (one.meta().creation_timestamp.clone().map(|time| time.0), one.uid());
    let mut branches = Vec::new();
    let mut taken_by = None;
    for other in context.cluster.timelines.all() {
        if other.namespace() != timeline.namespace()
            || other.uid() == timeline.uid()
            || other.spec.tenant_ref != timeline.spec.tenant_ref
        {
            continue;
        }
        if hangs_on(&other, &timeline.name_any(), own_id) {
            branches.push(other.name_any());
        }
        let given = other.status.as_ref().and_then(|status| status.timeline_id.as_ref());
        let wanted = timeline.spec.timeline_id.as_ref();
        let had_it = given == wanted
            || (given.is_none() && other.spec.timeline_id.as_ref() == wanted && age(&other) < age(timeline));
        if wanted.is_some() && had_it {
            taken_by = Some(other.name_any());
        }
    }
    branches.sort_unstable();
    (branches, taken_by)
}

/// Whether a timeline is a branch of the one of this name and id, as things stand.
fn hangs_on(other: &Timeline, name: &str, id: Option<&HexId>) -> bool {
    let status = other.status.as_ref();
    if status.is_some_and(|status| status.detached) {
        return false;
    }
    if let Some(moved_to) = status.and_then(|status| status.ancestor_timeline_id.as_ref()) {
        return id == Some(moved_to);
    }
    other.spec.ancestor.as_ref().is_some_and(|ancestor| {
        ancestor.timeline_ref.as_ref().is_some_and(|by_name| by_name.name == name)
            || (id.is_some() && ancestor.timeline_id.as_ref() == id)
    })
}

/// Does what was decided. A status is written alone: what follows from it is the next pass's.
async fn act(
    context: &Context,
    timeline: &Timeline,
    tenant: Option<&Tenant>,
    decision: Decision,
) -> Result<Requeue, ReconcileError> {
    let before = || timeline.status.clone().unwrap_or_default();
    match decision.action {
        Action::AddFinalizer => {
            context.set_finalizer(timeline, FINALIZER, true).await?;
            Ok(Requeue::await_change())
        }
        Action::RemoveFinalizer => {
            context.set_finalizer(timeline, FINALIZER, false).await?;
            context.timelines.forget(&timeline.uid().unwrap_or_default());
            Ok(Requeue::await_change())
        }
        Action::Commit(status) => {
            write(context, timeline, status, &decision.verdicts).await?;
            Ok(Requeue::await_change())
        }
        Action::Call(calls) => {
            write(context, timeline, before(), &decision.verdicts).await?;
            Ok(Requeue::requeue(make(context, timeline, tenant, &calls).await))
        }
        Action::Wait(pause) => {
            write(context, timeline, before(), &decision.verdicts).await?;
            Ok(Requeue::requeue(pause.map_or(RESYNC, |pause| pause + SOON)))
        }
    }
}

/// Writes a status with what is to be said, if that is anything new.
async fn write(
    context: &Context,
    timeline: &Timeline,
    mut status: TimelineStatus,
    said: &[Verdict],
) -> Result<(), ReconcileError> {
    let generation = timeline.meta().generation;
    let was_ready = condition::is_true(&status.conditions, "Ready");
    status.conditions = condition::merge(&status.conditions, said, generation, Timestamp::now());
    if !said.is_empty() {
        status.observed_generation = generation;
    }
    if timeline.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let told = status.conditions.iter().find(|condition| condition.type_ == "Ready").cloned();
    let is_ready = condition::is_true(&status.conditions, "Ready");
    let next = Timeline { status: Some(status), ..timeline.clone() };
    context.put_status(&next).await?;
    context.timelines.replaced(
        &timeline.uid().unwrap_or_default(),
        timeline.resource_version().as_deref(),
        Instant::now(),
    );
    if let (true, Some(told)) = (was_ready != is_ready, told) {
        context.event(&timeline.object_ref(&()), !is_ready, &told.reason, "Reconcile", told.message).await;
    }
    Ok(())
}

/// Makes all calls at once. Answers when to look again.
async fn make(context: &Context, timeline: &Timeline, tenant: Option<&Tenant>, made: &[Call]) -> Duration {
    let uid = timeline.uid().unwrap_or_default();
    let which = format!("{made:?}");
    if let Some(pause) = context.timelines.pause(&uid, &which, Instant::now()) {
        return pause;
    }
    let own = timeline.metadata.namespace.as_deref().unwrap_or_default();
    let namespace = tenant.map_or(own, Tenant::pool_namespace);
    let answered = join_all(made.iter().map(|call| calls::make(context, namespace, call))).await;
    let mut failure = None;
    let mut is_news = false;
    for (call, answered) in made.iter().zip(&answered) {
        is_news |= context.timelines.learn(&uid, |answers| calls::remember(answers, call, answered));
        match answered {
            Ok(Learnt::Ended(warning) | Learnt::Applied(_, warning)) if !warning.is_empty() => {
                let action = if matches!(call.kind, CallKind::Delete(_)) { "Delete" } else { "Reconcile" };
                context.event(&timeline.object_ref(&()), true, "SourceLeft", action, warning.clone()).await;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::info!(pod = call.pod, "a call about a timeline failed: {}", error.message);
                failure = Some(decide::Refusal { reason: error.reason(), message: error.message.clone() });
            }
        }
    }
    let Some(refusal) = failure else {
        context.timelines.succeeded(&uid);
        return AFTER_CALLS;
    };
    let pause = context.timelines.failed(&uid, &which, !refusal.is_transient(), Instant::now());
    // What was learnt may change what is to be said or done: that is decided at once, and the same calls wait.
    if is_news { AFTER_CALLS } else { pause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_hangs_on_what_its_spec_names_until_it_is_moved_or_stands_alone() {
        let id = |text: &str| HexId(text.repeat(32));
        let spec =
            serde_json::json!({"tenantRef": {"name": "acme"}, "ancestor": {"timelineRef": {"name": "main"}}});
        let mut branch = Timeline::new("branch", serde_json::from_value(spec).unwrap());
        let (main, other) = (id("a"), id("b"));
        assert!(hangs_on(&branch, "main", Some(&main)) && !hangs_on(&branch, "other", Some(&other)));
        branch.status.get_or_insert_default().ancestor_timeline_id = Some(other.clone());
        assert!(!hangs_on(&branch, "main", Some(&main)) && hangs_on(&branch, "other", Some(&other)));
        branch.status.get_or_insert_default().detached = true;
        assert!(!hangs_on(&branch, "main", Some(&main)) && !hangs_on(&branch, "other", Some(&other)));
    }
}
