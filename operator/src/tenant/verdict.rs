//! What a tenant's conditions say of a decision.

use model::ShardIndex;

use super::decide::{Action, Decision, ShardStanding, Standing, Stuck};
use crate::api::ConditionStatus;
use crate::api::condition::Verdict;
use crate::api::tenant::{TargetReason, Tenant};

/// Annotation of a tenant by which a move is asked for.
const MOVE_TO: &str = "palimpsest.dev/move-to";

/// What is to be said of a tenant now.
pub fn verdicts(tenant: &Tenant, decision: &Decision) -> Vec<Verdict> {
    let deleting = tenant.metadata.deletion_timestamp.is_some();
    match &decision.standing {
        Standing::Refused(stuck) => vec![
            Verdict::no("Accepted", stuck.reason, &stuck.message),
            Verdict::no("Ready", stuck.reason, &stuck.message),
        ],
        // Nothing is known yet, or anymore.
        Standing::Shards(shards) if shards.is_empty() => vec![accepted(tenant), pending(decision)],
        Standing::Shards(shards) => {
            let standings = || shards.iter().map(|(index, standing)| (*index, standing));
            vec![
                accepted(tenant),
                ready(standings(), deleting),
                progressing(standings()),
                degraded(standings()),
            ]
        }
    }
}

fn pending(decision: &Decision) -> Verdict {
    let reason = if matches!(decision.action, Action::RemoveFinalizer) { "Deleted" } else { "Pending" };
    Verdict { type_: "Ready", status: ConditionStatus::Unknown, reason, message: String::new() }
}

/// Whether everything that the spec asks for is done, or will be.
fn accepted(tenant: &Tenant) -> Verdict {
    let spec = &tenant.spec;
    let shards = tenant.status.as_ref().map_or(0, |status| status.shards.len());
    let annotated = |name| tenant.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(name));
    if let Err(error) = spec.config.settings() {
        Verdict::no(
            "Accepted",
            "InvalidConfig",
            format!("spec.config: {error}; it is ignored until corrected"),
        )
    } else if shards > 0 && spec.sharding.shards().len() != shards {
        Verdict::no(
            "Accepted",
            "ShardSplitNotSupported",
            format!("the tenant has {shards} shards and keeps them: this version cannot split shards"),
        )
    } else if spec.standbys > 0 {
        Verdict::no(
            "Accepted",
            "StandbysNotSupported",
            "the tenant is served without standbys: this version keeps none",
        )
    } else if annotated(MOVE_TO) {
        Verdict::no(
            "Accepted",
            "PlannedMoveNotSupported",
            format!(
                "this version moves a shard only when its pageserver is emptied; remove the annotation {MOVE_TO}"
            ),
        )
    } else {
        Verdict::yes("Accepted", "AsExpected", "")
    }
}

fn ready<'a>(
    mut standings: impl Iterator<Item = (ShardIndex, &'a ShardStanding)>,
    deleting: bool,
) -> Verdict {
    let not_served = standings.find(|(_, standing)| !matches!(standing, ShardStanding::Served(_)));
    match not_served {
        _ if deleting => Verdict::no("Ready", "Deleting", "the resource is being deleted"),
        None => Verdict::yes("Ready", "Routable", "every shard is served"),
        Some((index, standing)) => {
            let (reason, message) = explain(index, standing);
            Verdict::no("Ready", reason, message)
        }
    }
}

fn progressing<'a>(standings: impl Iterator<Item = (ShardIndex, &'a ShardStanding)>) -> Verdict {
    let changing = standings
        .filter(|(_, standing)| matches!(standing, ShardStanding::Changing(..) | ShardStanding::Releasing))
        .map(|(index, standing)| explain(index, standing))
        .next();
    match changing {
        Some((reason, message)) => Verdict::yes("Progressing", reason, message),
        None => Verdict::no("Progressing", "AsExpected", ""),
    }
}

fn degraded<'a>(standings: impl Iterator<Item = (ShardIndex, &'a ShardStanding)>) -> Verdict {
    let stuck = standings
        .filter(|(_, standing)| matches!(standing, ShardStanding::Stuck(_)))
        .map(|(index, standing)| explain(index, standing))
        .next();
    match stuck {
        Some((reason, message)) => Verdict::yes("Degraded", reason, message),
        None => Verdict::no("Degraded", "AsExpected", ""),
    }
}

fn explain(index: ShardIndex, standing: &ShardStanding) -> (&'static str, String) {
    match standing {
        ShardStanding::Served(pod) => ("Routable", format!("shard {index} is served by {pod}")),
        ShardStanding::Changing(reason, pod) => {
            ("Attaching", format!("shard {index} is being attached to {pod}: {}", why(*reason)))
        }
        ShardStanding::Stuck(Stuck { reason, message }) => (*reason, format!("shard {index}: {message}")),
        ShardStanding::Released => ("Detached", "spec.activity is Detached".into()),
        ShardStanding::Releasing => ("Detaching", format!("shard {index} is being detached")),
    }
}

/// Why a shard gets another place, for people.
pub fn why(reason: TargetReason) -> &'static str {
    match reason {
        TargetReason::New => "it was not attached",
        TargetReason::Restarted => "its pageserver started again",
        TargetReason::Lost => "its pageserver is gone or does not answer",
        TargetReason::Drain => "its pageserver is being emptied",
        TargetReason::Superseded => "its pageserver does not own it any more",
        TargetReason::ChosenAgain => "it could not be attached where it was to be",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fixtures::fresh_tenant;

    fn said(
        tenant: &Tenant,
        standing: ShardStanding,
    ) -> BTreeMap<&'static str, (ConditionStatus, &'static str)> {
        let standing = Standing::Shards(BTreeMap::from([(ShardIndex::UNSHARDED, standing)]));
        let decision = Decision { action: Action::Wait(None), standing };
        verdicts(tenant, &decision).into_iter().map(|v| (v.type_, (v.status, v.reason))).collect()
    }

    #[test]
    fn a_tenant_is_ready_when_all_of_it_is_served_and_says_why_not_otherwise() {
        use ConditionStatus::{False, True};
        let tenant = fresh_tenant();
        let served = said(&tenant, ShardStanding::Served("ps-0".into()));
        assert_eq!(served["Ready"], (True, "Routable"));
        assert_eq!(served["Degraded"], (False, "AsExpected"));
        let changing = said(&tenant, ShardStanding::Changing(TargetReason::Lost, "ps-1".into()));
        assert_eq!((changing["Ready"], changing["Progressing"]), ((False, "Attaching"), (True, "Attaching")));
        let stuck = Stuck { reason: "ForeignOwner", message: "another".into() };
        let stuck = said(&tenant, ShardStanding::Stuck(stuck));
        assert_eq!((stuck["Ready"], stuck["Degraded"]), ((False, "ForeignOwner"), (True, "ForeignOwner")));
    }

    #[test]
    fn what_this_version_cannot_do_is_said_and_the_rest_is_done() {
        let served = || ShardStanding::Served("ps-0".into());
        let accepted = |change: fn(&mut Tenant)| {
            let mut tenant = crate::fixtures::tenant(crate::api::tenant::ShardStatus {
                shard: "0000".into(),
                generation: 0,
                attached: None,
                target: None,
            });
            change(&mut tenant);
            let said = said(&tenant, served());
            assert_eq!(said["Ready"].0, ConditionStatus::True);
            said["Accepted"].1
        };
        assert_eq!(accepted(|_| {}), "AsExpected");
        assert_eq!(accepted(|tenant| tenant.spec.sharding.count = 4), "ShardSplitNotSupported");
        assert_eq!(accepted(|tenant| tenant.spec.standbys = 1), "StandbysNotSupported");
        let moving = |tenant: &mut Tenant| {
            tenant.metadata.annotations = Some(BTreeMap::from([(MOVE_TO.into(), "ps-1".into())]));
        };
        assert_eq!(accepted(moving), "PlannedMoveNotSupported");
        let quantity = crate::api::text::ByteQuantity("99999999999P".into());
        let config = |tenant: &mut Tenant| tenant.spec.config.gc_horizon = None;
        assert_eq!(accepted(config), "AsExpected");
        let mut tenant = fresh_tenant();
        tenant.spec.config.gc_horizon = Some(quantity);
        assert_eq!(said(&tenant, served())["Accepted"].1, "InvalidConfig");
    }
}
