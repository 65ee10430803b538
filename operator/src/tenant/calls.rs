//! Carries out a decision's calls about a tenant, and says what was learnt from the answers.

use std::collections::BTreeMap;

use model::{Generation, ShardIndex};
use proto::v1::{
    AttachRequest, ConfigureTenantRequest, DeleteTenantDataRequest, DetachRequest, Mode, Reason, TenantConfig,
};

use super::decide::{Answers, Call, CallKind, Refusal};
use crate::api::tenant::{Settings, Tenant};
use crate::context::Context;
use crate::fleet::rpc::{CallError, FLUSH, LONG, SHORT, answer, duration, mutation};
use crate::pool::view::NewerOwner;

/// Makes a call about a tenant of the pool with this uid, whose pods are in this namespace.
pub async fn make(
    context: &Context,
    tenant: &Tenant,
    namespace: &str,
    pool_uid: &str,
    call: &Call,
) -> Result<Learnt, CallError> {
    let Some(mut client) = context.fleet.client(namespace, &call.pod, &call.instance) else {
        return Err(CallError::unanswered(format!("{} does not answer", call.pod)));
    };
    let metrics = &context.metrics;
    let mutation = Some(mutation(call.shard, call.generation, &call.attempt, &call.instance));
    // A configuration that makes no sense is told to the user, and not to pageservers.
    let settings = tenant.spec.config.settings().unwrap_or_default();
    match call.kind {
        CallKind::Attach => {
            let request = AttachRequest {
                mutation,
                mode: Mode::Single.into(),
                config: (settings != Settings::default()).then(|| config(settings)),
                stripe_size_pages: tenant.spec.sharding.stripe_size_pages,
                pool_uid: pool_uid.into(),
            };
            answer(metrics, "Attach", LONG, client.attach(request)).await?;
            Ok(Learnt::Attaching)
        }
        CallKind::Detach { flush } => {
            let request = DetachRequest { mutation, flush_within: flush.then(|| duration(FLUSH)) };
            match answer(metrics, "Detach", FLUSH + SHORT, client.detach(request)).await {
                Err(error) if error.reason() != Reason::NotAttached => Err(error),
                _ => Ok(Learnt::Detached),
            }
        }
        CallKind::Configure => {
            let request = ConfigureTenantRequest { mutation, config: Some(config(settings)) };
            answer(metrics, "ConfigureTenant", LONG, client.configure_tenant(request)).await?;
            Ok(Learnt::Configured(call.generation, tenant.spec.config.fingerprint()))
        }
        CallKind::DeleteData => {
            let request = DeleteTenantDataRequest { mutation };
            let deleted =
                answer(metrics, "DeleteTenantData", LONG, client.delete_tenant_data(request)).await?;
            Ok(Learnt::Deleted { done: deleted.done })
        }
    }
}

fn config(settings: Settings) -> TenantConfig {
    TenantConfig {
        pitr_interval: settings.pitr_interval.map(duration),
        gc_horizon_bytes: settings.gc_horizon,
        checkpoint_distance_bytes: settings.checkpoint_distance,
    }
}

/// What a call that went well taught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// It is claimed; how far it is comes with the pageserver's status.
    Attaching,
    /// It is not held there any more.
    Detached,
    /// This generation has this configuration.
    Configured(u32, String),
    /// Some data is deleted, or all.
    Deleted {
        /// All.
        done: bool,
    },
}

/// Adds to what is remembered of a shard what an answer says.
pub fn remember(all: &mut BTreeMap<ShardIndex, Answers>, call: &Call, answered: &Result<Learnt, CallError>) {
    let answers = all.entry(call.shard.shard).or_default();
    match (call.kind, answered) {
        (CallKind::Attach, Ok(_)) => answers.refused = None,
        (CallKind::Attach, Err(error)) => answers.refused = Some((call.attempt.clone(), refusal(error))),
        (_, Ok(Learnt::Configured(generation, config))) => {
            answers.configured = Some((*generation, config.clone()));
        }
        (_, Ok(Learnt::Deleted { done })) => {
            answers.deletion_begun = true;
            answers.deleted |= done;
        }
        _ => {}
    }
}

/// Why an attachment was refused.
fn refusal(error: &CallError) -> Refusal {
    let highest = error.detail.highest_generation;
    match error.reason() {
        Reason::TenantDeleted => Refusal::TenantDeleted,
        Reason::Superseded if highest == Generation::DELETED.0 => Refusal::TenantDeleted,
        Reason::Superseded => {
            Refusal::Superseded(NewerOwner { generation: highest, pool_uid: error.detail.pool_uid.clone() })
        }
        Reason::OtherInstance | Reason::Draining => Refusal::NotThere,
        Reason::StorageUnavailable | Reason::StorageUnsafe => Refusal::Storage(error.message.clone()),
        Reason::Invalid => Refusal::Invalid(error.message.clone()),
        _ => Refusal::Other(error.message.clone()),
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::ErrorDetail;

    use super::*;
    use crate::fixtures::shard;

    fn call(kind: CallKind) -> Call {
        Call {
            pod: "ps-0".into(),
            instance: "a".into(),
            shard: shard(1),
            generation: 3,
            attempt: "intended".into(),
            kind,
        }
    }

    fn failed(reason: Reason, highest_generation: u32) -> Result<Learnt, CallError> {
        let detail = ErrorDetail {
            reason: reason.into(),
            highest_generation,
            pool_uid: "pool".into(),
            ..Default::default()
        };
        Err(CallError { detail, message: "why".into() })
    }

    #[test]
    fn answers_are_remembered_by_what_they_mean() {
        let mut all = BTreeMap::new();
        let mut learn = |kind, answered: &Result<Learnt, CallError>| {
            remember(&mut all, &call(kind), answered);
            all[&ShardIndex::UNSHARDED].clone()
        };
        let refused = |reason, highest| failed(reason, highest);
        let superseded = learn(CallKind::Attach, &refused(Reason::Superseded, 9)).refused.unwrap();
        let newer = NewerOwner { generation: 9, pool_uid: "pool".into() };
        assert_eq!(superseded, ("intended".into(), Refusal::Superseded(newer)));
        let deleted = learn(CallKind::Attach, &refused(Reason::Superseded, u32::MAX)).refused.unwrap().1;
        assert_eq!(deleted, Refusal::TenantDeleted);
        let storage = learn(CallKind::Attach, &refused(Reason::StorageUnavailable, 0)).refused.unwrap().1;
        assert_eq!(storage, Refusal::Storage("why".into()));
        assert_eq!(learn(CallKind::Attach, &Ok(Learnt::Attaching)).refused, None);
        let configured = learn(CallKind::Configure, &Ok(Learnt::Configured(3, "f".into()))).configured;
        assert_eq!(configured, Some((3, "f".into())));
        let begun = learn(CallKind::DeleteData, &Ok(Learnt::Deleted { done: false }));
        assert!(begun.deletion_begun && !begun.deleted);
        assert!(learn(CallKind::DeleteData, &Ok(Learnt::Deleted { done: true })).deleted);
        let detach = learn(CallKind::Detach { flush: true }, &refused(Reason::Internal, 0));
        assert_eq!(detach.refused, None, "a failed detachment is just repeated");
    }
}
