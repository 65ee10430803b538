//! Carries out a decision's calls about a timeline, and says what was learnt from the answers.

use k8s_openapi::jiff::Timestamp;
use model::{Lsn, TimelineId};
use proto::v1::{
    self, CreateTimelineRequest, DeleteTimelineRequest, DetachAncestorRequest, Empty,
    GetLsnByTimestampRequest, GetLsnsRequest, LsnKind, Reason, SetTimelineSourceRequest,
    SetTimelineStateRequest, TimelineState, create_timeline_request,
};

use super::decide::{Answers, Call, CallKind, Origin, Refusal};
use crate::api::timeline::{POOL_CREDENTIALS, Source, State};
use crate::context::Context;
use crate::fleet::link::Client;
use crate::fleet::rpc::{CallError, LONG, SHORT, answer, mutation};

/// What a call that went well taught.
#[derive(Clone, Debug, PartialEq)]
pub enum Learnt {
    /// Where a branch begins.
    BranchPoint(Lsn, LsnKind),
    /// Under which generation the timeline is there.
    Created(u32),
    /// What it follows and is, by fingerprint; what remains on a source that was left.
    Applied(String, String),
    /// It has left its ancestor.
    Detached,
    /// It is deleted, or follows nothing any more; what remains on its source.
    Ended(String),
}

/// Makes a call about a timeline, to a pageserver in this namespace.
pub async fn make(context: &Context, namespace: &str, call: &Call) -> Result<Learnt, CallError> {
    let Some(client) = context.fleet.client(namespace, &call.pod, &call.instance) else {
        return Err(CallError::unanswered(format!("{} does not answer", call.pod)));
    };
    let calling = Calling { context, call, client };
    match &call.kind {
        CallKind::FindTime(timeline, time) => calling.find_time(*timeline, *time).await,
        CallKind::FindEnd(timeline) => calling.find_end(*timeline).await,
        CallKind::Create(timeline, version, origin) => calling.create(*timeline, *version, origin).await,
        CallKind::Apply(timeline, state, source, fingerprint) => {
            let remains = calling.apply(*timeline, *state, source.as_ref()).await?;
            Ok(Learnt::Applied(fingerprint.clone(), remains))
        }
        CallKind::Detach(timeline) => calling.detach(*timeline).await,
        CallKind::Unfollow(timeline) => calling.follow(*timeline, None).await.map(Learnt::Ended),
        CallKind::Delete(timeline) => calling.delete(*timeline).await,
    }
}

struct Calling<'a> {
    context: &'a Context,
    call: &'a Call,
    client: Client,
}

impl Calling<'_> {
    /// The attempt is what is asked for: the same request is the same attempt.
    #[allow(clippy::unnecessary_wraps, reason = "as requests want it")]
    fn mutation(&self, attempt: &str) -> Option<v1::Mutation> {
        Some(mutation(self.call.shard, self.call.generation, attempt, &self.call.instance))
    }

    async fn find_time(mut self, timeline: TimelineId, time: Timestamp) -> Result<Learnt, CallError> {
        let request = GetLsnByTimestampRequest {
            tenant_shard_id: self.call.shard.to_string(),
            timeline_id: timeline.to_string(),
            timestamp: Some(prost_types::Timestamp {
                seconds: time.as_second(),
                nanos: time.subsec_nanosecond(),
            }),
        };
        let call = self.client.get_lsn_by_timestamp(request);
        let found = answer(&self.context.metrics, "GetLsnByTimestamp", LONG, call).await?;
        let kind = found.kind();
        let lsn = match kind {
            LsnKind::Present | LsnKind::Future => lsn(&found.lsn)?,
            LsnKind::Past | LsnKind::NoData | LsnKind::Unspecified => Lsn::INVALID,
        };
        Ok(Learnt::BranchPoint(lsn, kind))
    }

    async fn find_end(mut self, timeline: TimelineId) -> Result<Learnt, CallError> {
        let request = GetLsnsRequest { tenant_shard_id: self.call.shard.to_string() };
        let found = answer(&self.context.metrics, "GetLsns", SHORT, self.client.get_lsns(request)).await?;
        let id = timeline.to_string();
        let Some(found) = found.timelines.iter().find(|found| found.timeline_id == id) else {
            return Err(CallError::unanswered(format!("the ancestor {id} is not open yet")));
        };
        Ok(Learnt::BranchPoint(lsn(&found.last_record_lsn)?, LsnKind::Present))
    }

    async fn create(
        mut self,
        timeline: TimelineId,
        version: Option<u32>,
        origin: &Origin,
    ) -> Result<Learnt, CallError> {
        use create_timeline_request::Origin as Wire;
        let origin = match origin {
            Origin::Empty => Wire::Empty(Empty {}),
            Origin::Branch(ancestor, lsn) => {
                Wire::Branch(v1::Branch { ancestor_timeline_id: ancestor.to_string(), lsn: lsn.to_string() })
            }
            Origin::Import(source) => Wire::Import(primary(source)),
        };
        let request = CreateTimelineRequest {
            mutation: self.mutation(&format!("create-{timeline}")),
            timeline_id: timeline.to_string(),
            postgres_version: version.unwrap_or(0),
            origin: Some(origin),
        };
        let call = self.client.create_timeline(request);
        let created = answer(&self.context.metrics, "CreateTimeline", LONG, call).await?;
        Ok(Learnt::Created(created.generation))
    }

    async fn apply(
        mut self,
        timeline: TimelineId,
        state: State,
        source: Option<&Source>,
    ) -> Result<String, CallError> {
        let wanted = match state {
            State::Active => TimelineState::Active,
            State::Archived => TimelineState::Archived,
        };
        let request = SetTimelineStateRequest {
            mutation: self.mutation(&format!("{}-{timeline}", wanted.as_str_name())),
            timeline_id: timeline.to_string(),
            state: wanted.into(),
        };
        let call = self.client.set_timeline_state(request);
        let set = answer(&self.context.metrics, "SetTimelineState", LONG, call).await?;
        if state == State::Active { self.follow(timeline, source).await } else { Ok(set.warning) }
    }

    async fn detach(mut self, timeline: TimelineId) -> Result<Learnt, CallError> {
        let request = DetachAncestorRequest {
            mutation: self.mutation(&format!("detach-{timeline}")),
            timeline_id: timeline.to_string(),
        };
        let call = self.client.detach_ancestor(request);
        answer(&self.context.metrics, "DetachAncestor", LONG, call).await?;
        Ok(Learnt::Detached)
    }

    async fn follow(mut self, timeline: TimelineId, source: Option<&Source>) -> Result<String, CallError> {
        let request = SetTimelineSourceRequest {
            mutation: self.mutation(&format!("follow-{timeline}")),
            timeline_id: timeline.to_string(),
            primary: source.map(primary),
        };
        let call = self.client.set_timeline_source(request);
        Ok(answer(&self.context.metrics, "SetTimelineSource", LONG, call).await?.warning)
    }

    async fn delete(mut self, timeline: TimelineId) -> Result<Learnt, CallError> {
        let request = DeleteTimelineRequest {
            mutation: self.mutation(&format!("delete-{timeline}")),
            timeline_id: timeline.to_string(),
        };
        let call = self.client.delete_timeline(request);
        match answer(&self.context.metrics, "DeleteTimeline", LONG, call).await {
            Ok(deleted) => Ok(Learnt::Ended(deleted.warning)),
            Err(error) if matches!(error.reason(), Reason::TimelineUnknown | Reason::TimelineDeleted) => {
                Ok(Learnt::Ended(String::new()))
            }
            Err(error) => Err(error),
        }
    }
}

fn lsn(text: &str) -> Result<Lsn, CallError> {
    text.parse().map_err(|_| CallError::unanswered(format!("the pageserver answered {text:?} for an LSN")))
}

/// A source in the words of the control API. The password, if any, is in a file that only pageservers read.
fn primary(source: &Source) -> v1::Primary {
    let primary = &source.primary;
    let conninfo = format!(
        "host={} port={} user={} sslmode={}",
        quoted(&primary.host),
        primary.port,
        quoted(&primary.user),
        primary.ssl_mode.as_str()
    );
    v1::Primary {
        conninfo,
        credentials_key: if source.credentials == POOL_CREDENTIALS {
            String::new()
        } else {
            source.credentials.clone()
        },
        slot_name: primary.slot_name.clone().unwrap_or_default(),
    }
}

/// A value as libpq's key=value form wants it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Adds to what is remembered of a timeline what an answer says.
pub fn remember(answers: &mut Answers, call: &Call, answered: &Result<Learnt, CallError>) {
    let shard = call.shard.shard;
    let refused = |error: &CallError| Refusal { reason: error.reason(), message: error.message.clone() };
    match (&call.kind, answered) {
        (CallKind::FindTime(..) | CallKind::FindEnd(_), Ok(Learnt::BranchPoint(lsn, kind))) => {
            answers.branch_point = Some(Ok((*lsn, *kind)));
        }
        (CallKind::FindTime(..) | CallKind::FindEnd(_), Err(error)) => {
            answers.branch_point = Some(Err(refused(error)));
        }
        (CallKind::Create(..), Ok(Learnt::Created(generation))) => {
            answers.created.insert(shard, Ok(*generation));
        }
        (CallKind::Create(..), Err(error)) => {
            answers.created.insert(shard, Err(refused(error)));
        }
        (CallKind::Detach(_), Ok(Learnt::Detached)) => answers.detached = Some(Ok(())),
        (CallKind::Detach(_), Err(error)) => answers.detached = Some(Err(refused(error))),
        (CallKind::Apply(..), Ok(Learnt::Applied(applied, _))) => {
            answers.applied = Some((applied.clone(), Ok(())));
        }
        (CallKind::Apply(.., applied), Err(error)) => {
            answers.applied = Some((applied.clone(), Err(refused(error))));
        }
        (CallKind::Unfollow(_) | CallKind::Delete(_), Ok(_)) => {
            answers.ended.insert(shard, Ok(()));
        }
        (CallKind::Unfollow(_) | CallKind::Delete(_), Err(error)) => {
            answers.ended.insert(shard, Err(refused(error)));
        }
        (_, Ok(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_without_a_password_and_with_its_quotes() {
        let source: Source = serde_json::from_value(serde_json::json!({
            "primary": {"host": "pg-rw.team", "user": "o'brien\\x", "sslMode": "require", "slotName": "s"}, "credentials": "acme",
        }))
        .unwrap();
        let primary = primary(&source);
        assert_eq!(primary.conninfo, r"host='pg-rw.team' port=5432 user='o\'brien\\x' sslmode=require");
        assert_eq!((primary.credentials_key.as_str(), primary.slot_name.as_str()), ("acme", "s"));
        let pool = Source { credentials: POOL_CREDENTIALS.into(), ..source };
        assert_eq!(super::primary(&pool).credentials_key, "");
    }
}
