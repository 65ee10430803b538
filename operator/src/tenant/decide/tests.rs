//! The state machine, row by row, then properties that hold whatever is observed.

use proptest::prelude::*;

use super::*;
use crate::api::text::DurationText;
use crate::fixtures::{
    POOL_UID, answering, fresh_tenant, holding, no_answers, now, pool, report_mut, shard, silent, tenant,
};
use crate::pool::view::Storage;

fn draws() -> Draws {
    Draws { tenant_id: shard(1).tenant, attempt: "drawn".into() }
}

fn decide_with(tenant: &Tenant, pool: &PoolView, answers: &BTreeMap<ShardIndex, Answers>) -> Decision {
    decide(tenant, Observed { pool, id_taken_by: None, answers, draws: &draws(), now: now() })
}

fn decided(tenant: &Tenant, pageservers: impl IntoIterator<Item = Pageserver>) -> Decision {
    decide_with(tenant, &open(pageservers), &no_answers())
}

fn open(pageservers: impl IntoIterator<Item = Pageserver>) -> PoolView {
    PoolView::Open(pool(pageservers).into())
}

fn entry(generation: u32, attached: Option<Place>, target: Option<Target>) -> ShardStatus {
    ShardStatus { shard: "0000".into(), generation, attached, target }
}

fn place(pod: &str, instance: &str, generation: u32) -> Place {
    Place { pod: pod.into(), instance: instance.into(), generation, config: String::new() }
}

fn target(pod: &str, instance: &str, generation: u32) -> Target {
    Target {
        pod: pod.into(),
        instance: instance.into(),
        generation,
        step: Step::Attach,
        reason: TargetReason::New,
        attempt: "intended".into(),
        since: Time(now()),
    }
}

/// The shard's entry that the decision writes.
fn written(decision: &Decision) -> &ShardStatus {
    match &decision.action {
        Action::Commit(commit) => &commit.status.shards[0],
        action => panic!("{action:?} writes nothing"),
    }
}

fn appointed(decision: &Decision) -> (&str, u32, TargetReason) {
    let entry = written(decision);
    let target = entry.target.as_ref().expect("a target");
    assert_eq!(entry.generation, target.generation);
    assert_eq!(target.attempt, "drawn");
    (&target.pod, target.generation, target.reason)
}

fn calls(decision: &Decision) -> Vec<(&str, u32, CallKind)> {
    match &decision.action {
        Action::Call(calls) => calls.iter().map(|c| (c.pod.as_str(), c.generation, c.kind)).collect(),
        action => panic!("{action:?} calls nobody"),
    }
}

fn stuck(decision: &Decision) -> &'static str {
    match &decision.standing {
        Standing::Refused(stuck) => stuck.reason,
        Standing::Shards(shards) => match &shards[&ShardIndex::UNSHARDED] {
            ShardStanding::Stuck(stuck) => stuck.reason,
            standing => panic!("{standing:?} is not stuck"),
        },
    }
}

fn refused_with(refusal: Refusal) -> BTreeMap<ShardIndex, Answers> {
    let answers = Answers { refused: Some(("intended".into(), refusal)), ..Answers::default() };
    BTreeMap::from([(ShardIndex::UNSHARDED, answers)])
}

fn newer(generation: u32, pool_uid: &str) -> NewerOwner {
    NewerOwner { generation, pool_uid: pool_uid.into() }
}

/// `ps-0` holds the shard in generation 7 as the status says.
fn settled() -> (Tenant, Pageserver) {
    let tenant = tenant(entry(7, Some(place("ps-0", "a", 7)), None));
    (tenant, holding(answering("ps-0", "a"), shard(1), 7, ShardState::Active))
}

fn superseded(mut pageserver: Pageserver, by: NewerOwner) -> Pageserver {
    report_mut(&mut pageserver).shards.get_mut(&shard(1)).unwrap().superseded = Some(by);
    pageserver
}

const FLUSH: CallKind = CallKind::Detach { flush: true };
const DROP: CallKind = CallKind::Detach { flush: false };

// Row 0.
#[test]
fn a_tenant_first_gets_the_finalizer() {
    let decision = decided(&fresh_tenant(), [answering("ps-0", "a")]);
    assert_eq!(decision.action, Action::AddFinalizer);
}

// Row 1.
#[test]
fn a_tenant_gets_an_id_and_an_entry_for_each_shard_before_anything_else() {
    let mut tenant = fresh_tenant();
    tenant.metadata.finalizers = Some(vec![FINALIZER.into()]);
    tenant.spec.sharding.count = 4;
    let Action::Commit(commit) = decided(&tenant, []).action else { panic!("writes") };
    assert_eq!(commit.status.tenant_id, Some(HexId(shard(1).tenant.to_string())));
    let shards: Vec<_> = commit.status.shards.iter().map(|s| (s.shard.as_str(), s.generation)).collect();
    assert_eq!(shards, [("0004", 0), ("0104", 0), ("0204", 0), ("0304", 0)]);
    let adopted = HexId("ab".repeat(16));
    tenant.spec.tenant_id = Some(adopted.clone());
    let Action::Commit(commit) = decided(&tenant, []).action else { panic!("writes") };
    assert_eq!(commit.status.tenant_id, Some(adopted));
}

#[test]
fn an_id_that_an_older_tenant_has_is_not_given_again() {
    let mut tenant = fresh_tenant();
    tenant.metadata.finalizers = Some(vec![FINALIZER.into()]);
    tenant.spec.tenant_id = Some(HexId("ab".repeat(16)));
    let pool = open([answering("ps-0", "a")]);
    let (answers, draws) = (no_answers(), draws());
    let observed = Observed {
        pool: &pool,
        id_taken_by: Some("team/elder"),
        answers: &answers,
        draws: &draws,
        now: now(),
    };
    assert_eq!(stuck(&decide(&tenant, observed)), "TenantIDInUse");
}

#[test]
fn a_pool_that_is_not_there_or_not_for_us_is_named() {
    let (tenant, _) = settled();
    for (pool, reason) in [
        (PoolView::Missing, "PoolNotFound"),
        (PoolView::NotAllowed, "NotAllowed"),
        (PoolView::Invalid("no".into()), "PoolInvalid"),
    ] {
        let decision = decide_with(&tenant, &pool, &no_answers());
        assert_eq!((stuck(&decision), decision.action), (reason, Action::Wait(None)));
    }
}

// Row 2.
#[test]
fn a_shard_that_nobody_has_gets_a_place_and_a_generation() {
    let decision = decided(&tenant(entry(0, None, None)), [answering("ps-0", "a")]);
    assert_eq!(appointed(&decision), ("ps-0", 1, TargetReason::New));
    let later = decided(&tenant(entry(41, None, None)), [answering("ps-0", "a")]);
    assert_eq!(appointed(&later), ("ps-0", 42, TargetReason::New));
}

#[test]
fn without_a_pageserver_that_can_take_it_a_shard_waits() {
    let tenant = tenant(entry(0, None, None));
    assert_eq!(stuck(&decided(&tenant, [])), "NoCapacity");
    let mut no_bucket = answering("ps-0", "a");
    report_mut(&mut no_bucket).storage = Storage::Unsafe;
    let decision = decided(&tenant, [no_bucket, silent("ps-1", 3)]);
    assert_eq!((stuck(&decision), &decision.action), ("NoCapacity", &Action::Wait(None)));
}

// Row 3.
#[test]
fn a_target_is_called_until_it_serves_and_then_written_down() {
    let tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    assert_eq!(calls(&decided(&tenant, [answering("ps-0", "a")])), [("ps-0", 1, CallKind::Attach)]);
    let loading = holding(answering("ps-0", "a"), shard(1), 1, ShardState::Loading);
    assert_eq!(decided(&tenant, [loading]).action, Action::Wait(None));
    let active = holding(answering("ps-0", "a"), shard(1), 1, ShardState::Active);
    let decision = decided(&tenant, [active]);
    assert_eq!(*written(&decision), entry(1, Some(place("ps-0", "a", 1)), None));
}

#[test]
fn an_attempt_is_repeated_as_it_was() {
    let tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    let Action::Call(calls) = decided(&tenant, [answering("ps-0", "a")]).action else { panic!("calls") };
    assert_eq!((calls[0].attempt.as_str(), calls[0].instance.as_str()), ("intended", "a"));
}

#[test]
fn a_target_that_cannot_be_any_more_is_chosen_again_in_a_new_generation() {
    let tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    let other = || answering("ps-1", "b");
    let mut leaving = answering("ps-0", "a");
    leaving.leaving = Some(Leaving::Terminating);
    let mut starting = answering("ps-0", "a");
    starting.contact = Contact::Starting;
    for gone in [vec![], vec![leaving], vec![starting], vec![silent("ps-0", 16)]] {
        let decision = decided(&tenant, gone.into_iter().chain([other()]));
        assert_eq!(appointed(&decision), ("ps-1", 2, TargetReason::ChosenAgain));
    }
    let restarted = decided(&tenant, [answering("ps-0", "another"), other()]);
    assert_eq!(appointed(&restarted), ("ps-0", 2, TargetReason::ChosenAgain));
}

#[test]
fn a_target_that_is_silent_for_a_moment_is_waited_for() {
    let tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    let decision = decided(&tenant, [silent("ps-0", 5), answering("ps-1", "b")]);
    assert_eq!(decision.action, Action::Wait(Some(Duration::from_secs(10))));
}

#[test]
fn a_bucket_that_is_away_costs_no_generation() {
    let tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    let answers = refused_with(Refusal::Storage("503".into()));
    let decision = decide_with(&tenant, &open([answering("ps-0", "a")]), &answers);
    assert_eq!(calls(&decision), [("ps-0", 1, CallKind::Attach)]);
    assert_eq!(stuck(&decision), "StorageUnavailable");
}

#[test]
fn a_refusal_of_another_attempt_does_not_count() {
    let tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    let mut answers = refused_with(Refusal::Invalid("no".into()));
    answers.get_mut(&ShardIndex::UNSHARDED).unwrap().refused.as_mut().unwrap().0 = "earlier".into();
    let decision = decide_with(&tenant, &open([answering("ps-0", "a")]), &answers);
    assert_eq!(calls(&decision), [("ps-0", 1, CallKind::Attach)]);
    let decision =
        decide_with(&tenant, &open([answering("ps-0", "a")]), &refused_with(Refusal::Invalid("no".into())));
    assert_eq!((stuck(&decision), decision.action), ("Refused", Action::Wait(None)));
}

#[test]
fn a_lost_counter_is_corrected_by_what_the_bucket_has() {
    let tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    for uid in [POOL_UID, ""] {
        let answers = refused_with(Refusal::Superseded(newer(9, uid)));
        let decision = decide_with(&tenant, &open([answering("ps-0", "a")]), &answers);
        assert_eq!(appointed(&decision), ("ps-0", 10, TargetReason::Superseded));
    }
}

#[test]
fn a_tenant_of_another_pool_is_taken_over_only_when_a_person_says_so() {
    let mut tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    let answers = refused_with(Refusal::Superseded(newer(9, "theirs")));
    let pool = open([answering("ps-0", "a")]);
    let decision = decide_with(&tenant, &pool, &answers);
    assert_eq!((stuck(&decision), decision.action), ("ForeignOwner", Action::Wait(None)));
    tenant.metadata.annotations = Some(BTreeMap::from([(TAKE_OVER.into(), "someone".into())]));
    assert_eq!(stuck(&decide_with(&tenant, &pool, &answers)), "ForeignOwner");
    tenant.metadata.annotations = Some(BTreeMap::from([(TAKE_OVER.into(), "theirs".into())]));
    let decision = decide_with(&tenant, &pool, &answers);
    assert_eq!(appointed(&decision), ("ps-0", 10, TargetReason::Superseded));
}

#[test]
fn a_deleted_tenant_is_not_attached_again() {
    let mut tenant = tenant(entry(1, None, Some(target("ps-0", "a", 1))));
    let pool = open([answering("ps-0", "a")]);
    for refusal in [Refusal::TenantDeleted, Refusal::Superseded(newer(u32::MAX, POOL_UID))] {
        let decision = decide_with(&tenant, &pool, &refused_with(refusal));
        assert_eq!((stuck(&decision), decision.action), ("TenantDeleted", Action::Wait(None)));
    }
    tenant.status.as_mut().unwrap().shards[0] = entry(Generation::LAST_OWNER.0, None, None);
    assert_eq!(stuck(&decide_with(&tenant, &pool, &no_answers())), "GenerationsExhausted");
}

// Row 4.
#[test]
fn a_shard_that_is_well_is_left_alone() {
    let (tenant, pageserver) = settled();
    let decision = decided(&tenant, [pageserver, answering("ps-1", "b")]);
    assert_eq!(decision.action, Action::Wait(None));
    let standing = ShardStanding::Served("ps-0".into());
    assert_eq!(decision.standing, Standing::Shards(BTreeMap::from([(ShardIndex::UNSHARDED, standing)])));
}

#[test]
fn a_configuration_is_sent_until_accepted_and_then_written_down() {
    let (mut tenant, pageserver) = settled();
    tenant.spec.config.pitr_interval = Some(DurationText("7h".into()));
    let wanted = tenant.spec.config.fingerprint();
    let pool = open([pageserver]);
    let decision = decide_with(&tenant, &pool, &no_answers());
    assert_eq!(calls(&decision), [("ps-0", 7, CallKind::Configure)]);
    let configured = Answers { configured: Some((7, wanted.clone())), ..Answers::default() };
    let answers = BTreeMap::from([(ShardIndex::UNSHARDED, configured)]);
    let decision = decide_with(&tenant, &pool, &answers);
    assert_eq!(written(&decision).attached.as_ref().unwrap().config, wanted);
}

// Rows 5 to 11 are not built; row 5 ends in an interrupting move.
#[test]
fn a_shard_leaves_a_pageserver_that_is_emptied_old_place_first() {
    let (mut tenant, mut old) = settled();
    old.leaving = Some(Leaving::Tainted("node.kubernetes.io/unschedulable".into()));
    let new = || answering("ps-1", "b");
    let decision = decided(&tenant, [old.clone(), new()]);
    assert_eq!(appointed(&decision), ("ps-1", 8, TargetReason::Drain));
    tenant.status.as_mut().unwrap().shards[0] = written(&decision).clone();
    assert_eq!(written(&decision).attached, Some(place("ps-0", "a", 7)), "clients are still sent there");
    assert_eq!(calls(&decided(&tenant, [old.clone(), new()])), [("ps-0", 7, FLUSH)]);
    report_mut(&mut old).shards.clear();
    assert_eq!(calls(&decided(&tenant, [old.clone(), new()])), [("ps-1", 8, CallKind::Attach)]);
    let attached = holding(new(), shard(1), 8, ShardState::Active);
    assert_eq!(*written(&decided(&tenant, [old, attached])), entry(8, Some(place("ps-1", "b", 8)), None));
}

#[test]
fn an_old_place_that_does_not_let_go_is_not_waited_for_for_ever() {
    let mut wanted = target("ps-1", "b", 8);
    wanted.since = Time(Timestamp::from_second(now().as_second() - 31).unwrap());
    let (_, old) = settled();
    let tenant = tenant(entry(8, Some(place("ps-0", "a", 7)), Some(wanted)));
    assert_eq!(calls(&decided(&tenant, [old, answering("ps-1", "b")])), [("ps-1", 8, CallKind::Attach)]);
}

#[test]
fn a_shard_stays_where_it_is_when_nobody_else_can_take_it() {
    let (tenant, mut old) = settled();
    old.leaving = Some(Leaving::Asked);
    let decision = decided(&tenant, [old.clone(), silent("ps-1", 3)]);
    assert_eq!((stuck(&decision), decision.action), ("NoCapacity", Action::Wait(None)));
    // The only pod of the pool: nobody will come before it is gone.
    old.leaving = Some(Leaving::Terminating);
    assert_eq!(calls(&decided(&tenant, [old.clone()])), [("ps-0", 7, FLUSH)]);
    assert!(matches!(decided(&tenant, [old, silent("ps-1", 3)]).action, Action::Wait(_)));
}

#[test]
fn a_step_of_a_newer_operator_is_not_touched() {
    for step in [Step::Warm, Step::Freeze, Step::CatchUp, Step::Linger, Step::Settle] {
        let tenant = tenant(entry(1, None, Some(Target { step, ..target("ps-0", "a", 1) })));
        let decision = decided(&tenant, [answering("ps-0", "a")]);
        assert_eq!((stuck(&decision), decision.action), ("StepUnknown", Action::Wait(None)));
    }
}

// Row 12.
#[test]
fn a_pageserver_that_started_again_gets_its_shard_back_in_a_new_generation() {
    let (tenant, _) = settled();
    let decision = decided(&tenant, [answering("ps-0", "reborn"), answering("ps-1", "b")]);
    assert_eq!(appointed(&decision), ("ps-0", 8, TargetReason::Restarted));
    assert_eq!(written(&decision).target.as_ref().unwrap().instance, "reborn");
}

// Row 12b.
#[test]
fn a_shard_that_its_pageserver_lost_is_given_again_above_all_that_was_seen() {
    let (tenant, holder) = settled();
    let decision = decided(&tenant, [answering("ps-0", "a"), answering("ps-1", "b")]);
    assert_eq!(appointed(&decision), ("ps-0", 8, TargetReason::Superseded));
    let ours = superseded(holder.clone(), newer(11, POOL_UID));
    assert_eq!(appointed(&decided(&tenant, [ours])), ("ps-0", 12, TargetReason::Superseded));
    let theirs = superseded(holder.clone(), newer(11, "theirs"));
    assert_eq!(stuck(&decided(&tenant, [theirs])), "ForeignOwner");
    let deleted = superseded(holder, newer(u32::MAX, POOL_UID));
    assert_eq!(stuck(&decided(&tenant, [deleted])), "TenantDeleted");
}

#[test]
fn generations_that_pageservers_report_are_never_given_again() {
    let (tenant, _) = settled();
    let ahead = holding(answering("ps-0", "a"), shard(1), 10, ShardState::Active);
    let further = holding(answering("ps-1", "b"), shard(1), 12, ShardState::Active);
    let decision = decided(&tenant, [ahead, further]);
    assert_eq!(appointed(&decision), ("ps-0", 13, TargetReason::Superseded));
}

// Row 13, and row 3 with `attached` set and its pod gone.
#[test]
fn a_shard_of_a_lost_pageserver_is_attached_elsewhere_and_clients_follow_at_the_end() {
    let (mut tenant, _) = settled();
    let new = || answering("ps-1", "b");
    let mut starting = answering("ps-0", "a");
    starting.contact = Contact::Starting;
    for lost in [vec![], vec![silent("ps-0", 16)], vec![starting]] {
        let decision = decided(&tenant, lost.into_iter().chain([new()]));
        assert_eq!(appointed(&decision), ("ps-1", 8, TargetReason::Lost));
    }
    tenant.status.as_mut().unwrap().shards[0] =
        entry(8, Some(place("ps-0", "a", 7)), Some(target("ps-1", "b", 8)));
    assert_eq!(calls(&decided(&tenant, [new()])), [("ps-1", 8, CallKind::Attach)]);
    let attached = || holding(new(), shard(1), 8, ShardState::Active);
    tenant.status.as_mut().unwrap().shards[0] = written(&decided(&tenant, [attached()])).clone();
    // The old one answers after all.
    let back = holding(answering("ps-0", "a"), shard(1), 7, ShardState::Active);
    assert_eq!(calls(&decided(&tenant, [back, attached()])), [("ps-0", 7, DROP)]);
}

#[test]
fn silence_within_patience_changes_nothing() {
    let (tenant, _) = settled();
    let decision = decided(&tenant, [silent("ps-0", 15), answering("ps-1", "b")]);
    assert_eq!(decision.action, Action::Wait(Some(Duration::ZERO)));
}

#[test]
fn nothing_is_attached_elsewhere_while_failover_is_held() {
    let (tenant, _) = settled();
    let mut pool = pool([silent("ps-0", 16), answering("ps-1", "b")]);
    pool.held = true;
    let decision = decide_with(&tenant, &PoolView::Open(pool.into()), &no_answers());
    assert_eq!((stuck(&decision), decision.action), ("FailoverHeld", Action::Wait(None)));
}

#[test]
fn a_stray_above_what_the_status_knows_is_left_alone() {
    let (tenant, holder) = settled();
    let ahead = holding(answering("ps-1", "b"), shard(1), 8, ShardState::Active);
    assert_eq!(decided(&tenant, [holder, ahead]).action, Action::Wait(None));
}

// Row 14.
#[test]
fn a_tenant_that_is_to_rest_is_detached_and_keeps_its_generation() {
    let (mut tenant, holder) = settled();
    tenant.spec.activity = Activity::Detached;
    assert_eq!(calls(&decided(&tenant, [holder])), [("ps-0", 7, FLUSH)]);
    let silent_for_now = decided(&tenant, [silent("ps-0", 5)]);
    assert_eq!(silent_for_now.action, Action::Wait(Some(Duration::from_secs(10))));
    for gone in [answering("ps-0", "a"), silent("ps-0", 16)] {
        assert_eq!(*written(&decided(&tenant, [gone])), entry(7, None, None));
    }
    tenant.status.as_mut().unwrap().shards[0] = entry(7, None, None);
    assert_eq!(decided(&tenant, [answering("ps-0", "a")]).action, Action::Wait(None));
}

fn deleting(mut tenant: Tenant, policy: DeletionPolicy) -> Tenant {
    tenant.metadata.deletion_timestamp = Some(Time(now()));
    tenant.spec.retention.deletion_policy = policy;
    tenant
}

// Row 15.
#[test]
fn a_retained_tenant_is_detached_and_let_go() {
    let (tenant, holder) = settled();
    let tenant = deleting(tenant, DeletionPolicy::Retain);
    assert_eq!(calls(&decided(&tenant, [holder])), [("ps-0", 7, FLUSH)]);
    assert!(matches!(decided(&tenant, [silent("ps-0", 5)]).action, Action::Wait(Some(_))));
    for gone in [vec![], vec![answering("ps-0", "a")], vec![silent("ps-0", 16)]] {
        assert_eq!(decided(&tenant, gone).action, Action::RemoveFinalizer);
    }
    let without_pool = decide_with(&tenant, &PoolView::Missing, &no_answers());
    assert_eq!(without_pool.action, Action::RemoveFinalizer);
}

// Row 16.
#[test]
fn data_is_deleted_by_its_owner_and_then_the_tenant_is_let_go() {
    let (tenant, holder) = settled();
    let tenant = deleting(tenant, DeletionPolicy::Delete);
    assert_eq!(calls(&decided(&tenant, [holder.clone()])), [("ps-0", 7, CallKind::DeleteData)]);
    let deleted = Answers { deleted: true, ..Answers::default() };
    let answers = BTreeMap::from([(ShardIndex::UNSHARDED, deleted)]);
    // Everyone who reports it must let go first.
    let decision = decide_with(&tenant, &open([holder]), &answers);
    assert_eq!(calls(&decision), [("ps-0", 7, FLUSH)]);
    let decision = decide_with(&tenant, &open([answering("ps-0", "a")]), &answers);
    assert_eq!(decision.action, Action::RemoveFinalizer);
}

#[test]
fn a_tenant_must_have_an_owner_before_its_data_is_deleted() {
    let tenant = deleting(tenant(entry(3, None, None)), DeletionPolicy::Delete);
    let decision = decided(&tenant, [answering("ps-0", "a")]);
    assert_eq!(appointed(&decision), ("ps-0", 4, TargetReason::New));
}

#[test]
fn a_deletion_that_has_begun_is_finished_by_anyone() {
    let tenant = tenant(entry(5, Some(place("ps-9", "z", 4)), Some(target("ps-0", "a", 5))));
    let tenant = deleting(tenant, DeletionPolicy::Delete);
    let decision =
        decide_with(&tenant, &open([answering("ps-0", "a")]), &refused_with(Refusal::TenantDeleted));
    assert_eq!(calls(&decision), [("ps-0", 5, CallKind::DeleteData)]);
    let alone = decide_with(&tenant, &open([]), &refused_with(Refusal::TenantDeleted));
    assert_eq!(stuck(&alone), "NoCapacity");
}

#[test]
fn a_tenant_that_never_had_an_owner_is_let_go_at_once() {
    let tenant = deleting(tenant(entry(0, None, None)), DeletionPolicy::Delete);
    assert_eq!(decided(&tenant, [answering("ps-0", "a")]).action, Action::RemoveFinalizer);
    let mut adopted = tenant.clone();
    adopted.spec.tenant_id = adopted.status.as_ref().unwrap().tenant_id.clone();
    assert_eq!(appointed(&decided(&adopted, [answering("ps-0", "a")])).1, 1);
    let without_pool = decide_with(&adopted, &PoolView::Missing, &no_answers());
    assert_eq!(stuck(&without_pool), "PoolNotFound");
}

#[test]
fn data_of_an_owner_that_a_restored_status_does_not_know_is_deleted_and_not_forgotten() {
    // Etcd is as it was before the first owner, who has the shard nevertheless.
    let tenant = deleting(tenant(entry(0, None, None)), DeletionPolicy::Delete);
    let holder = holding(answering("ps-0", "a"), shard(1), 1, ShardState::Active);
    assert_eq!(appointed(&decided(&tenant, [holder])), ("ps-0", 2, TargetReason::New));
}

prop_compose! {
    fn any_held()(generation in 0_u32..6, state in 0_usize..4, by in proptest::option::of((0_u32..8, 0_usize..3)))
        -> ReportedShard {
        ReportedShard {
            generation,
            attempt: "intended".into(),
            state: [ShardState::Loading, ShardState::Active, ShardState::Broken, ShardState::Detaching][state],
            message: String::new(),
            superseded: by.map(|(generation, uid)| newer(if generation == 7 { u32::MAX } else { generation }, ["", POOL_UID, "theirs"][uid])),
            timelines: Vec::new(),
        }
    }
}

prop_compose! {
    fn any_pageserver(n: usize)(
        contact in 0..5, silence in 0_u64..30, instance in 0_usize..2, leaving in 0_usize..4, held in proptest::option::of(any_held()),
    ) -> Pageserver {
        let pod = format!("ps-{n}");
        let mut pageserver = match contact {
            0 => Pageserver { contact: Contact::Starting, ..answering(&pod, "") },
            1 => silent(&pod, silence),
            _ => answering(&pod, ["a", "b"][instance]),
        };
        pageserver.leaving =
            [None, None, Some(Leaving::Terminating), Some(Leaving::Asked)][leaving].clone();
        if let (Contact::Answering(_), Some(held)) = (&pageserver.contact, held) {
            report_mut(&mut pageserver).shards.insert(shard(1), held);
        }
        pageserver
    }
}

prop_compose! {
    fn any_entry()(
        generation in 0_u32..6,
        attached in proptest::option::of((0..3, 0_usize..2, 0_u32..6)),
        wanted in proptest::option::of((0..3, 0_usize..2, 0_u32..6)),
    ) -> ShardStatus {
        let instance = |i: usize| ["a", "b"][i];
        entry(
            generation,
            attached.map(|(pod, i, g)| place(&format!("ps-{pod}"), instance(i), g.min(generation))),
            wanted.map(|(pod, i, g)| target(&format!("ps-{pod}"), instance(i), g.min(generation))),
        )
    }
}

prop_compose! {
    fn any_refusal()(kind in 0..7, generation in 0_u32..9) -> BTreeMap<ShardIndex, Answers> {
        match kind {
            0 => refused_with(Refusal::Superseded(newer(generation, POOL_UID))),
            1 => refused_with(Refusal::TenantDeleted),
            2 => refused_with(Refusal::NotThere),
            3 => refused_with(Refusal::Storage(String::new())),
            _ => no_answers(),
        }
    }
}

proptest! {
    /// Whatever is observed: what is written never lowers a generation, an owner that is appointed gets one that nobody has or had, and
    /// only an attachment that its pageserver reports becomes the committed one.
    #[test]
    fn a_generation_is_given_once(
        entry in any_entry(), a in any_pageserver(0), b in any_pageserver(1), answers in any_refusal(), doing in 0..4, held: bool,
    ) {
        let mut tenant = tenant(entry.clone());
        tenant.spec.activity = if doing == 1 { Activity::Detached } else { Activity::Attached };
        if doing > 1 {
            tenant = deleting(tenant, if doing == 2 { DeletionPolicy::Retain } else { DeletionPolicy::Delete });
        }
        let mut pool = pool([a, b]);
        pool.held = held;
        let seen: Vec<u32> = pool.holders(shard(1)).map(|(_, _, held)| held.generation).collect();
        let reported: Vec<_> = pool.holders(shard(1)).map(|(p, r, held)| (p.pod.clone(), r.instance.clone(), held.generation)).collect();
        let decision = decide_with(&tenant, &PoolView::Open(pool.into()), &answers);
        match decision.action {
            Action::Commit(commit) => {
                let next = &commit.status.shards[0];
                prop_assert!(next.generation >= entry.generation);
                if next.target != entry.target && let Some(target) = &next.target {
                    prop_assert!(target.generation > entry.generation);
                    prop_assert!(seen.iter().all(|seen| *seen < target.generation));
                    prop_assert_eq!(&next.attached, &entry.attached);
                }
                if next.attached != entry.attached && let Some(place) = &next.attached {
                    prop_assert!(reported.contains(&(place.pod.clone(), place.instance.clone(), place.generation)));
                    prop_assert!(next.target.is_none());
                }
            }
            Action::Call(calls) => for call in calls {
                let named = match call.kind {
                    // What is asked for was committed before.
                    CallKind::Attach => entry.target.as_ref().is_some_and(|t| (&t.pod, t.generation) == (&call.pod, call.generation)),
                    CallKind::Detach { .. } => reported.contains(&(call.pod, call.instance, call.generation)),
                    CallKind::Configure => false,
                    CallKind::DeleteData => doing == 3,
                };
                prop_assert!(named);
            },
            Action::RemoveFinalizer => prop_assert!(doing > 1 && reported.is_empty()),
            Action::AddFinalizer => prop_assert!(false, "it is there"),
            Action::Wait(_) => {}
        }
    }
}
