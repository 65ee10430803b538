//! The life of a timeline, step by step.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proto::v1::SourceStatus;
use serde_json::json;

use super::*;
use crate::api::tenant::{Place, ShardStatus};
use crate::fixtures::{answering, holding, now, pool, report_mut, shard};
use crate::pool::view::Pageserver;

const ID: TimelineId = TimelineId([0xab; 16]);
const PARENT: TimelineId = TimelineId([0xcd; 16]);

/// A timeline that has its finalizer and its id.
fn timeline(spec: serde_json::Value) -> Timeline {
    let mut merged = json!({"tenantRef": {"name": "acme"}});
    let serde_json::Value::Object(fields) = spec else { panic!("{spec} is no object") };
    merged.as_object_mut().unwrap().extend(fields);
    let mut timeline = Timeline::new("main", serde_json::from_value(merged).unwrap());
    timeline.metadata.namespace = Some("team".into());
    timeline.metadata.finalizers = Some(vec![FINALIZER.into()]);
    timeline.status.get_or_insert_default().timeline_id = Some(HexId(ID.to_string()));
    timeline
}

fn tenant() -> Tenant {
    let place = Place { pod: "ps-0".into(), instance: "a".into(), generation: 7, config: String::new() };
    crate::fixtures::tenant(ShardStatus {
        shard: "0000".into(),
        generation: 7,
        attached: Some(place),
        target: None,
    })
}

fn server(timelines: Vec<Reported>) -> Pageserver {
    let mut server = holding(answering("ps-0", "a"), shard(1), 7, ShardState::Active);
    report_mut(&mut server).shards.get_mut(&shard(1)).unwrap().timelines = timelines;
    server
}

fn reported(id: TimelineId, state: TimelineState, source: Option<SourceState>) -> Reported {
    let source = source.map(|state| SourceStatus { state: state.into(), ..SourceStatus::default() });
    Reported {
        timeline_id: id.to_string(),
        state: state.into(),
        source,
        readable_from_lsn: "0/16B3748".into(),
        ..Reported::default()
    }
}

struct Scene {
    timeline: Timeline,
    tenant: Option<Tenant>,
    servers: Vec<Pageserver>,
    ancestor: Option<Timeline>,
    branches: Vec<String>,
    answers: Answers,
}

impl Scene {
    fn of(spec: serde_json::Value) -> Scene {
        Scene {
            timeline: timeline(spec),
            tenant: Some(tenant()),
            servers: vec![server(vec![])],
            ancestor: None,
            branches: vec![],
            answers: Answers::default(),
        }
    }

    fn status(&mut self) -> &mut TimelineStatus {
        self.timeline.status.as_mut().unwrap()
    }

    fn decide(&self) -> Decision {
        let pool = pool(self.servers.clone());
        decide(
            &self.timeline,
            Observed {
                tenant: self.tenant.as_ref(),
                pool: Some(&pool),
                ancestor: self.ancestor.as_ref(),
                branches: &self.branches,
                id_taken_by: None,
                answers: &self.answers,
                drawn_id: ID,
                now: now(),
            },
        )
    }

    fn reason(&self) -> &'static str {
        self.decide().verdicts[0].reason
    }

    fn called(&self) -> CallKind {
        match self.decide().action {
            Action::Call(calls) => {
                assert_eq!((calls[0].pod.as_str(), calls[0].generation), ("ps-0", 7));
                calls[0].kind.clone()
            }
            action => panic!("{action:?} calls nobody"),
        }
    }

    fn written(&self) -> TimelineStatus {
        match self.decide().action {
            Action::Commit(status) => status,
            action => panic!("{action:?} writes nothing"),
        }
    }
}

fn refused(reason: Reason) -> Refusal {
    Refusal { reason, message: "because".into() }
}

fn source() -> serde_json::Value {
    json!({"primary": {"host": "pg-rw"}})
}

#[test]
fn a_timeline_gets_its_finalizer_then_its_id_then_is_made() {
    let mut scene = Scene::of(json!({}));
    scene.timeline.metadata.finalizers = None;
    assert_eq!(scene.decide().action, Action::AddFinalizer);
    scene.timeline.metadata.finalizers = Some(vec![FINALIZER.into()]);
    scene.timeline.status = None;
    assert_eq!(scene.written().timeline_id, Some(HexId(ID.to_string())));
    *scene.timeline.status.get_or_insert_default() = scene.written();
    assert_eq!(scene.called(), CallKind::Create(ID, None, Origin::Empty));
    scene.answers.created.insert(ShardIndex::UNSHARDED, Ok(7));
    *scene.status() = scene.written();
    assert_eq!(scene.status().created["0000"], 7);
    assert!(scene.status().applied.is_some(), "it was made as it is to be");
    assert_eq!(scene.reason(), "Loading");
    scene.servers = vec![server(vec![reported(ID, TimelineState::Active, None)])];
    *scene.status() = scene.written();
    assert_eq!(scene.status().readable_from_lsn, Some(LsnText("0/16B3748".into())));
    assert_eq!((scene.reason(), scene.decide().action), ("Created", Action::Wait(None)));
}

#[test]
fn an_acknowledgement_of_an_earlier_owner_does_not_count() {
    let mut scene = Scene::of(json!({}));
    scene.answers.created.insert(ShardIndex::UNSHARDED, Ok(6));
    assert_eq!(scene.called(), CallKind::Create(ID, None, Origin::Empty));
}

#[test]
fn a_timeline_waits_for_its_tenant_and_says_for_what() {
    let mut scene = Scene::of(json!({}));
    scene.servers = vec![];
    assert_eq!(scene.reason(), "WaitingForTenant");
    scene.tenant.as_mut().unwrap().spec.activity = Activity::Detached;
    assert_eq!(scene.reason(), "WaitingForTenant");
    scene.tenant = None;
    assert_eq!(scene.reason(), "TenantNotFound");
    let mut sharded = Scene::of(json!({"source": source()}));
    sharded.tenant.as_mut().unwrap().spec.sharding.count = 4;
    assert_eq!(sharded.reason(), "SourceNeedsOneShard");
}

#[test]
fn an_import_names_its_source_and_says_how_it_fares() {
    let mut scene = Scene::of(json!({"source": source(), "postgresVersion": 17}));
    let CallKind::Create(ID, Some(17), Origin::Import(source)) = scene.called() else { panic!("an import") };
    assert_eq!(source.primary.host, "pg-rw");
    for (reason, said) in [
        (Reason::SourceUnreachable, "SourceUnreachable"),
        (Reason::SourceRefused, "SourceRefused"),
        (Reason::SourceUnfit, "SourceUnfit"),
    ] {
        scene.answers.created.insert(ShardIndex::UNSHARDED, Err(refused(reason)));
        assert_eq!(scene.reason(), said);
        assert!(scene.decide().verdicts[0].message.starts_with("because; "));
        scene.called();
    }
    scene.answers.created.insert(ShardIndex::UNSHARDED, Ok(7));
    *scene.status() = scene.written();
    let mut importing = reported(ID, TimelineState::Importing, Some(SourceState::Importing));
    let source = importing.source.as_mut().unwrap();
    (source.imported_bytes, source.total_bytes) = (30, 100);
    scene.servers = vec![server(vec![importing])];
    let decision = scene.decide();
    assert_eq!(decision.verdicts[0].reason, "Importing");
    assert_eq!(decision.verdicts[0].message, "more than 25 % of the source is imported");
    assert_eq!((decision.verdicts[1].type_, decision.verdicts[1].reason), ("Following", "Importing"));
    assert_eq!(decision.action, Action::Wait(None), "the source was named when it was made");
}

#[test]
fn what_became_of_the_source_is_a_condition_with_a_remedy() {
    for (state, said) in [
        (SourceState::Streaming, "Streaming"),
        (SourceState::Disconnected, "SourceUnreachable"),
        (SourceState::SlotLost, "SlotLost"),
        (SourceState::Diverged, "Diverged"),
        (SourceState::Parted, "Parted"),
    ] {
        let mut scene = Scene::of(json!({"source": source()}));
        scene.answers.created.insert(ShardIndex::UNSHARDED, Ok(7));
        *scene.status() = scene.written();
        scene.servers = vec![server(vec![reported(ID, TimelineState::Active, Some(state))])];
        let verdicts = scene.decide().verdicts;
        assert_eq!((verdicts[0].reason, verdicts[0].status), ("Readable", ConditionStatus::True));
        assert_eq!((verdicts[1].type_, verdicts[1].reason), ("Following", said));
    }
}

fn branch(place: serde_json::Value) -> Scene {
    let mut ancestor = json!({"timelineRef": {"name": "parent"}});
    let serde_json::Value::Object(fields) = place else { panic!("{place} is no object") };
    ancestor.as_object_mut().unwrap().extend(fields);
    let mut scene = Scene::of(json!({"ancestor": ancestor}));
    let mut parent = timeline(json!({}));
    parent.metadata.name = Some("parent".into());
    let status = parent.status.as_mut().unwrap();
    status.timeline_id = Some(HexId(PARENT.to_string()));
    status.readable_from_lsn = Some(LsnText("0/1".into()));
    scene.ancestor = Some(parent);
    scene
}

#[test]
fn a_branch_at_an_lsn_is_written_down_before_it_is_made() {
    let mut scene = branch(json!({"lsn": "0/16B3748"}));
    assert_eq!(scene.written().ancestor_lsn, Some(LsnText("0/16B3748".into())));
    *scene.status() = scene.written();
    let lsn = "0/16B3748".parse().unwrap();
    assert_eq!(scene.called(), CallKind::Create(ID, None, Origin::Branch(PARENT, lsn)));
}

#[test]
fn a_branch_without_a_place_begins_at_its_ancestors_end_once() {
    let mut scene = branch(json!({}));
    assert_eq!(scene.called(), CallKind::FindEnd(PARENT));
    scene.answers.branch_point = Some(Ok((Lsn(0x100), LsnKind::Present)));
    *scene.status() = scene.written();
    scene.answers.branch_point = Some(Ok((Lsn(0x200), LsnKind::Present)));
    assert_eq!(scene.called(), CallKind::Create(ID, None, Origin::Branch(PARENT, Lsn(0x100))));
}

#[test]
fn a_branch_at_a_time_is_made_when_the_time_is_surely_over() {
    let at = |ago: i64| {
        let time = Timestamp::from_second(now().as_second() - ago).unwrap();
        branch(json!({"timestamp": Time(time)}))
    };
    let soon = at(10);
    assert_eq!(soon.reason(), "TimestampInFuture");
    assert_eq!(at(-5).reason(), "TimestampInFuture");
    assert!(matches!(at(-5).decide().action, Action::Wait(Some(pause)) if pause >= Duration::from_secs(35)));
    let mut scene = at(60);
    assert!(matches!(scene.called(), CallKind::FindTime(PARENT, _)));
    scene.answers.branch_point = Some(Ok((Lsn(0x100), LsnKind::Present)));
    assert_eq!(scene.written().ancestor_lsn, Some(LsnText("0/100".into())));
    scene.answers.branch_point = Some(Ok((Lsn(0), LsnKind::Past)));
    assert_eq!(scene.reason(), "OutOfHistory");
    scene.answers.branch_point = Some(Ok((Lsn(0), LsnKind::NoData)));
    assert_eq!(scene.reason(), "OutOfHistory");
    // Nothing was committed since: believed only of an ancestor that has all of its source.
    scene.answers.branch_point = Some(Ok((Lsn(0x100), LsnKind::Future)));
    scene.servers =
        vec![server(vec![reported(PARENT, TimelineState::Active, Some(SourceState::Disconnected))])];
    assert_eq!(scene.reason(), "OutOfHistory");
    scene.servers = vec![server(vec![reported(PARENT, TimelineState::Active, Some(SourceState::Streaming))])];
    assert_eq!(scene.written().ancestor_lsn, Some(LsnText("0/100".into())));
}

#[test]
fn a_branch_waits_for_an_ancestor_that_is_there_and_says_which_is_not() {
    let mut scene = branch(json!({"lsn": "0/1"}));
    scene.ancestor.as_mut().unwrap().status = None;
    assert_eq!(scene.reason(), "WaitingForAncestor");
    scene.ancestor = None;
    assert_eq!(scene.reason(), "AncestorNotFound");
    let mut foreign = branch(json!({"lsn": "0/1"}));
    foreign.ancestor.as_mut().unwrap().spec.tenant_ref.name = "other".into();
    assert_eq!(foreign.reason(), "AncestorNotFound");
}

#[test]
fn an_adopted_timeline_must_be_there() {
    let mut scene = Scene::of(json!({"timelineID": ID.to_string()}));
    assert_eq!(scene.reason(), "TimelineNotFound");
    scene.servers = vec![server(vec![reported(ID, TimelineState::Active, None)])];
    assert_eq!(scene.written().created["0000"], 7);
}

#[test]
fn a_state_that_changes_is_set_anew() {
    let mut scene = Scene::of(json!({"state": "Archived"}));
    scene.status().created.insert("0000".into(), 7);
    scene.status().readable_from_lsn = Some(LsnText("0/16B3748".into()));
    scene.servers = vec![server(vec![reported(ID, TimelineState::Active, None)])];
    let CallKind::Apply(ID, State::Archived, None, wanted) = scene.called() else { panic!("archives") };
    scene.answers.applied = Some((wanted.clone(), Ok(())));
    assert_eq!(scene.written().applied, Some(wanted));
}

#[test]
fn an_archived_timeline_says_what_it_waits_for_and_is_told_again_when_it_is_not_as_it_was_told() {
    let mut scene = Scene::of(json!({"state": "Archived", "source": source()}));
    scene.status().created.insert("0000".into(), 7);
    scene.status().readable_from_lsn = Some(LsnText("0/16B3748".into()));
    scene.servers = vec![server(vec![reported(ID, TimelineState::Active, Some(SourceState::Streaming))])];
    let told = |scene: &Scene, type_: &str| {
        let verdicts = scene.decide().verdicts;
        let verdict = verdicts.iter().find(|verdict| verdict.type_ == type_).unwrap();
        (verdict.status, verdict.reason)
    };
    assert_eq!(told(&scene, "Archived"), (ConditionStatus::False, "Archiving"));
    let CallKind::Apply(.., wanted) = scene.called() else { panic!("archives") };
    scene.answers.applied = Some((wanted.clone(), Err(refused(Reason::TimelineHasBranches))));
    assert_eq!(told(&scene, "Archived"), (ConditionStatus::False, "BlockedByBranches"));
    assert_eq!(told(&scene, "Ready"), (ConditionStatus::True, "Readable"));
    scene.answers.applied = Some((wanted.clone(), Ok(())));
    *scene.status() = scene.written();
    // The report is late, or another owner undid it: told again, and nothing is written meanwhile.
    scene.called();
    scene.servers = vec![server(vec![reported(ID, TimelineState::Archived, None)])];
    assert_eq!(scene.decide().action, Action::Wait(None));
    assert_eq!(told(&scene, "Archived"), (ConditionStatus::True, "Archived"));
    assert_eq!(told(&scene, "Ready"), (ConditionStatus::False, "Archived"));
    assert_eq!(told(&scene, "Following"), (ConditionStatus::False, "Archived"));

    scene.timeline.spec.state = State::Active;
    let CallKind::Apply(ID, State::Active, Some(_), wanted) = scene.called() else { panic!("opens") };
    assert_eq!(told(&scene, "Ready"), (ConditionStatus::False, "Unarchiving"));
    scene.answers.applied = Some((wanted, Err(refused(Reason::TimelineArchived))));
    assert_eq!(told(&scene, "Ready"), (ConditionStatus::False, "AncestorArchived"));
}

#[test]
fn an_adopted_timeline_that_is_archived_is_opened_unless_its_resource_says_archived() {
    let mut scene = Scene::of(json!({"timelineID": ID.to_string()}));
    scene.status().created.insert("0000".into(), 7);
    scene.status().readable_from_lsn = Some(LsnText("0/16B3748".into()));
    scene.servers = vec![server(vec![reported(ID, TimelineState::Archived, None)])];
    assert!(matches!(scene.called(), CallKind::Apply(ID, State::Active, None, _)));
    scene.timeline.spec.state = State::Archived;
    assert_eq!(scene.decide().action, Action::Wait(None));
}

#[test]
fn a_branch_leaves_its_ancestor_when_it_is_told_to_and_needs_its_resource_no_more() {
    let mut scene = branch(json!({"lsn": "0/16B3748"}));
    *scene.status() = scene.written();
    scene.answers.created.insert(ShardIndex::UNSHARDED, Ok(7));
    *scene.status() = scene.written();
    let hanging = |ancestor: TimelineId| Reported {
        ancestor_timeline_id: ancestor.to_string(),
        ..reported(ID, TimelineState::Active, None)
    };
    scene.servers = vec![server(vec![hanging(PARENT)])];
    *scene.status() = scene.written();
    assert_eq!(scene.decide().action, Action::Wait(None));
    scene.timeline.spec.detach_ancestor = true;
    let detached = |scene: &Scene| {
        let verdicts = scene.decide().verdicts;
        verdicts.iter().find(|verdict| verdict.type_ == "Detached").map(|verdict| verdict.reason)
    };
    assert_eq!((scene.called(), detached(&scene)), (CallKind::Detach(ID), Some("Detaching")));
    scene.answers.detached = Some(Err(refused(Reason::StorageUnavailable)));
    assert_eq!((scene.called(), detached(&scene)), (CallKind::Detach(ID), Some("StorageUnavailable")));
    scene.timeline.spec.state = State::Archived;
    assert_eq!(detached(&scene), Some("Archived"));
    scene.timeline.spec.state = State::Active;
    scene.answers.detached = Some(Ok(()));
    *scene.status() = scene.written();
    assert!(scene.status().detached);
    scene.servers = vec![server(vec![reported(ID, TimelineState::Active, None)])];
    scene.ancestor = None;
    assert_eq!((scene.decide().action, detached(&scene)), (Action::Wait(None), Some("Detached")));
    assert_eq!(scene.reason(), "Created");
}

#[test]
fn a_branch_that_was_moved_to_another_ancestor_says_to_which() {
    let mut scene = branch(json!({"lsn": "0/16B3748"}));
    *scene.status() = scene.written();
    scene.answers.created.insert(ShardIndex::UNSHARDED, Ok(7));
    *scene.status() = scene.written();
    let sibling = TimelineId([0xef; 16]);
    let moved =
        Reported { ancestor_timeline_id: sibling.to_string(), ..reported(ID, TimelineState::Active, None) };
    scene.servers = vec![server(vec![moved])];
    *scene.status() = scene.written();
    assert_eq!(scene.status().ancestor_timeline_id, Some(HexId(sibling.to_string())));
    assert_eq!(scene.decide().action, Action::Wait(None));
}

#[test]
fn a_branch_is_ready_before_the_postgres_that_it_is_to_follow_is_there() {
    let mut scene = branch(json!({"lsn": "0/16B3748"}));
    *scene.status() = scene.written();
    scene.timeline.spec.source = Some(serde_json::from_value(source()).unwrap());
    scene.answers.created.insert(ShardIndex::UNSHARDED, Ok(7));
    *scene.status() = scene.written();
    scene.servers = vec![server(vec![reported(ID, TimelineState::Active, None)])];
    *scene.status() = scene.written();
    let CallKind::Apply(ID, State::Active, Some(_), wanted) = scene.called() else { panic!("follows") };
    scene.answers.applied = Some((wanted.clone(), Err(refused(Reason::SourceUnreachable))));
    let said = scene.decide().verdicts;
    assert_eq!((said[0].type_, said[0].status), ("Ready", ConditionStatus::True));
    assert_eq!((said[1].type_, said[1].reason), ("Following", "SourceUnreachable"));
    scene.called();
    scene.answers.applied = Some((wanted.clone(), Ok(())));
    assert_eq!(scene.written().applied, Some(wanted));
}

fn deleting(spec: serde_json::Value) -> Scene {
    let mut scene = Scene::of(spec);
    scene.timeline.metadata.deletion_timestamp = Some(Time(now()));
    scene
}

#[test]
fn a_retained_timeline_lets_go_of_its_source_and_is_let_go() {
    assert_eq!(deleting(json!({})).decide().action, Action::RemoveFinalizer);
    let mut scene = deleting(json!({"source": source()}));
    assert_eq!(scene.called(), CallKind::Unfollow(ID));
    scene.answers.ended.insert(ShardIndex::UNSHARDED, Err(refused(Reason::StorageUnavailable)));
    scene.called();
    scene.answers.ended.insert(ShardIndex::UNSHARDED, Err(refused(Reason::SourceUnreachable)));
    assert_eq!(scene.decide().action, Action::RemoveFinalizer, "a source that is away keeps nobody");
    scene.answers.ended.insert(ShardIndex::UNSHARDED, Ok(()));
    assert_eq!(scene.decide().action, Action::RemoveFinalizer);
}

#[test]
fn a_timeline_is_deleted_after_its_branches_and_before_it_is_let_go() {
    let mut scene = deleting(json!({"retention": {"deletionPolicy": "Delete"}}));
    scene.branches = (0..7).map(|n| format!("b{n}")).collect();
    let said = &scene.decide().verdicts[0];
    assert_eq!(said.reason, "BlockedByChildren");
    assert_eq!(said.message, "7 branch off from it: b0, b1, b2, b3, b4, ...; delete them first");
    scene.branches.clear();
    assert_eq!(scene.called(), CallKind::Delete(ID));
    scene.answers.ended.insert(ShardIndex::UNSHARDED, Err(refused(Reason::TimelineHasBranches)));
    assert_eq!(scene.reason(), "BlockedByBranches");
    scene.answers.ended.insert(ShardIndex::UNSHARDED, Ok(()));
    assert_eq!(scene.decide().action, Action::RemoveFinalizer);
}

#[test]
fn a_timeline_does_not_wait_for_a_tenant_that_goes_with_all_its_data() {
    let mut scene = deleting(json!({"retention": {"deletionPolicy": "Delete"}}));
    let tenant = scene.tenant.as_mut().unwrap();
    tenant.spec.activity = Activity::Detached;
    assert_eq!(scene.reason(), "WaitingForTenant");
    let tenant = scene.tenant.as_mut().unwrap();
    tenant.metadata.deletion_timestamp = Some(Time(now()));
    tenant.spec.retention.deletion_policy = DeletionPolicy::Delete;
    assert_eq!(scene.decide().action, Action::RemoveFinalizer);
    scene.tenant = None;
    assert_eq!(scene.decide().action, Action::RemoveFinalizer);
}
