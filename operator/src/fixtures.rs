//! Small pools and tenants for tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use model::{ShardIndex, TenantId, TenantShardId};

use crate::api::tenant::{
    Activity, Config, Placement, PoolRef, ShardStatus, Sharding, Tenant, TenantRetention, TenantSpec,
};
use crate::pool::view::{Contact, OpenPool, Pageserver, Report, ReportedShard, ShardState, Storage};
use crate::tenant::decide::FINALIZER;

/// The uid of [`pool`].
pub const POOL_UID: &str = "pool-uid";

/// The tenant with this number.
pub fn shard(number: u8) -> TenantShardId {
    TenantShardId { tenant: TenantId([number.wrapping_mul(37); 16]), shard: ShardIndex::UNSHARDED }
}

/// A pageserver that is well and holds nothing.
pub fn answering(pod: &str, instance: &str) -> Pageserver {
    let report = Report { instance: instance.into(), storage: Storage::Conditional, ..Report::default() };
    Pageserver {
        pod: pod.into(),
        pod_uid: format!("uid-{pod}"),
        ip: Some("10.0.0.1".into()),
        node: None,
        zone: None,
        leaving: None,
        contact: Contact::Answering(Arc::new(report)),
        placed: 0,
    }
}

/// A pageserver that has not answered for so many seconds.
pub fn silent(pod: &str, seconds: u64) -> Pageserver {
    Pageserver { contact: Contact::Silent(Duration::from_secs(seconds)), ..answering(pod, "") }
}

/// What an answering pageserver says, to be changed.
pub fn report_mut(pageserver: &mut Pageserver) -> &mut Report {
    match &mut pageserver.contact {
        Contact::Answering(report) => Arc::make_mut(report),
        contact => panic!("{contact:?} says nothing"),
    }
}

/// The same pageserver, holding a shard.
pub fn holding(
    mut pageserver: Pageserver,
    shard: TenantShardId,
    generation: u32,
    state: ShardState,
) -> Pageserver {
    let reported = ReportedShard {
        generation,
        attempt: "earlier".into(),
        state,
        message: String::new(),
        superseded: None,
        timelines: Vec::new(),
    };
    report_mut(&mut pageserver).shards.insert(shard, reported);
    pageserver
}

/// A pool of these pageservers.
pub fn pool(pageservers: impl IntoIterator<Item = Pageserver>) -> OpenPool {
    OpenPool {
        uid: POOL_UID.into(),
        patience: Duration::from_secs(15),
        held: false,
        max_shards: 100,
        disk_high_watermark_percent: 85,
        best_effort: false,
        pageservers: pageservers.into_iter().map(|one| (one.pod.clone(), one)).collect(),
    }
}

/// A tenant that was just made.
pub fn fresh_tenant() -> Tenant {
    let spec = TenantSpec {
        pool_ref: PoolRef { namespace: None, name: "main".into() },
        tenant_id: None,
        sharding: Sharding::default(),
        activity: Activity::default(),
        standbys: 0,
        placement: Placement::default(),
        config: Config::default(),
        retention: TenantRetention::default(),
    };
    let mut tenant = Tenant::new("acme", spec);
    tenant.metadata.namespace = Some("team".into());
    tenant.metadata.uid = Some("tenant-uid".into());
    tenant.metadata.generation = Some(1);
    tenant
}

/// A tenant with finalizer and id, whose only shard is `entry`.
pub fn tenant(entry: ShardStatus) -> Tenant {
    let mut tenant = fresh_tenant();
    tenant.metadata.finalizers = Some(vec![FINALIZER.into()]);
    let status = tenant.status.get_or_insert_default();
    status.tenant_id = Some(crate::api::text::HexId(shard(1).tenant.to_string()));
    status.shards = vec![entry];
    tenant
}

/// The moment at which fixtures play.
pub fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

/// No answers.
pub fn no_answers() -> BTreeMap<ShardIndex, crate::tenant::decide::Answers> {
    BTreeMap::new()
}
