//! The calls of the control API.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::claim::ClaimedBy;
use engine::tenant::{
    AttachAs, BranchPoint, ChangeError, Mode as HoldMode, NotFound, Phase, Tenant, TenantConfig, Tenants,
    TimelineView,
};
use engine::time::LsnAt;
use futures::Stream;
use model::{PgTimestamp, TimelineId};
use proto::v1::create_timeline_request::Origin;
use proto::v1::pageserver_server::Pageserver;
use proto::v1::{
    AttachRequest, AttachResponse, ConfigureTenantRequest, ConfigureTenantResponse, CreateTimelineRequest,
    CreateTimelineResponse, DeleteTenantDataRequest, DeleteTenantDataResponse, DeleteTimelineRequest,
    DeleteTimelineResponse, DetachAncestorRequest, DetachAncestorResponse, DetachRequest, DetachResponse,
    ForgetNamedLsnRequest, ForgetNamedLsnResponse, GetLsnByTimestampRequest, GetLsnByTimestampResponse,
    GetLsnsRequest, GetLsnsResponse, GetStatusRequest, LeaseLsnRequest, LeaseLsnResponse,
    ListNamedLsnsRequest, ListNamedLsnsResponse, LsnKind, Mode, Mutation, NameLsnRequest, NameLsnResponse,
    NamedLsn, Primary, Reason, SetDrainingRequest, SetDrainingResponse, SetModeRequest, SetModeResponse,
    SetTimelineSourceRequest, SetTimelineSourceResponse, SetTimelineStateRequest, SetTimelineStateResponse,
    ShardState, Status as ServerStatus, TimelineLsn, TimelineLsns, TimelineState, WaitLsnRequest,
    WaitLsnResponse, WatchStatusRequest,
};
use tonic::{Code, Request, Response, Status};

use super::board::{Board, timeline_status};
use super::order::{Order, duration_of, length_of, lsn_of, meant_for, shard_of, timeline_of};
use super::refusal::{
    invalid, not_now, of_attach, of_change, of_lease, of_name, of_not_found, of_source, refused, superseded,
};
use super::storage::StorageWatch;
use crate::histories::LONGEST_NAME;
use crate::source::conninfo::quoted;
use crate::source::followers::Followers;

/// A watcher hears at least so often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long `WaitLsn` waits at most.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long one call of `DeleteTenantData` works before it answers that there is more.
const DELETE_SLICE: Duration = Duration::from_secs(20);

/// Longest lease that a request may ask for.
const LONGEST_LEASE: Duration = Duration::from_hours(24);

/// Which process this is, as claims tell others.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The pod's name.
    pub name: String,
    /// The pod.
    pub uid: String,
}

/// The control API of this process. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    /// The engine.
    pub tenants: Tenants,
    /// Sources.
    pub followers: Followers,
    /// What is told.
    pub board: Board,
    /// The bucket.
    pub storage: StorageWatch,
    /// Where we run.
    pub pod: Pod,
    /// How long a lease of an LSN lasts.
    pub lease_length: Duration,
}

type Answer<T> = Result<Response<T>, Status>;

impl Control {
    fn order(&self, mutation: Option<Mutation>) -> Result<Order, Status> {
        Order::of(mutation, self.board.instance())
    }

    /// The tenant shard of an order, attached here in its generation, and open.
    async fn attached(&self, order: &Order) -> Result<Arc<Tenant>, Status> {
        let tenant = self.tenants.tenant(order.shard.tenant).map_err(|error| of_not_found(&error))?;
        let here = tenant.claim().generation();
        if tenant.shard() != order.shard || here < order.generation {
            let message = format!("{} is not attached here in generation {}", order.shard, order.generation);
            return Err(refused(Code::FailedPrecondition, Reason::NotAttached, message));
        }
        if here > order.generation {
            let message = format!("{} is attached here in generation {here}", order.shard);
            return Err(superseded(here, String::new(), message));
        }
        // Whoever wants it opened before others has asked for it by this.
        let opened = tokio::time::timeout(LONGEST_WAIT, self.tenants.opened(&tenant)).await;
        match opened.map(|hold| hold.phase) {
            Ok(Phase::Active) => Ok(tenant),
            Ok(Phase::Detaching) => {
                let message = format!("{} is being detached", order.shard);
                Err(refused(Code::FailedPrecondition, Reason::NotAttached, message))
            }
            Ok(Phase::Loading(_)) | Err(_) => Err(not_now(Reason::Loading, "its timelines are being opened")),
        }
    }

    /// The same, where it may be written to.
    async fn writable(&self, order: &Order) -> Result<Arc<Tenant>, Status> {
        let tenant = self.attached(order).await?;
        match tenant.mode() {
            HoldMode::Single => Ok(tenant),
            HoldMode::Multi | HoldMode::Stale => Err(of_change(ChangeError::Stale(order.shard))),
        }
    }

    /// Whether this is the source that a timeline has.
    async fn has_source(&self, tenant: &Tenant, timeline: TimelineId, dsn: &str) -> Result<bool, Status> {
        let wanted = self.followers.stored_form(dsn).map_err(|error| of_source(error.into()))?;
        Ok(tenant.source_of(timeline).await.is_some_and(|source| source.conninfo == wanted))
    }

    /// Follows the sources of a tenant once it is open, unless it is let go before, or may not write.
    fn follow_when_open(&self, tenant: &Arc<Tenant>) {
        let (this, tenant) = (self.clone(), Arc::clone(tenant));
        tokio::spawn(async move {
            let mut hold = tenant.hold();
            let opened = hold.wait_for(|hold| !matches!(hold.phase, Phase::Loading(_))).await;
            let is_ours =
                opened.is_ok_and(|hold| hold.phase == Phase::Active && hold.mode == HoldMode::Single);
            if is_ours {
                this.followers.resume_tenant(&tenant).await;
                this.board.look();
            }
        });
    }

    fn existing(&self, tenant: &Tenant, timeline: TimelineId) -> Option<TimelineState> {
        let view = tenant.views().into_iter().find(|(id, _)| *id == timeline)?.1;
        Some(timeline_status(timeline, &view, &self.followers).state())
    }

    async fn create_branch(
        &self,
        tenant: &Arc<Tenant>,
        new: TimelineId,
        branch: &proto::v1::Branch,
    ) -> Result<TimelineState, Status> {
        let ancestor = timeline_of(&branch.ancestor_timeline_id)?;
        let point =
            if branch.lsn.is_empty() { BranchPoint::Tip } else { BranchPoint::Lsn(lsn_of(&branch.lsn)?) };
        match self.tenants.branch(tenant.shard().tenant, new, ancestor, point).await {
            Ok(_) => Ok(TimelineState::Active),
            // It was made, and put away since.
            Err(ChangeError::NotFound(NotFound::Archived(archived))) if archived == new => {
                Ok(TimelineState::Archived)
            }
            Err(error) => Err(of_change(error)),
        }
    }

    async fn create_import(
        &self,
        tenant: &Arc<Tenant>,
        new: TimelineId,
        primary: &Primary,
    ) -> Result<TimelineState, Status> {
        let dsn = dsn_of(primary)?;
        if let Some(state) = self.existing(tenant, new) {
            if state == TimelineState::Deleting {
                return Err(of_change(ChangeError::Buried(new)));
            }
            if !self.has_source(tenant, new, &dsn).await? {
                return Err(of_change(ChangeError::Conflict(new)));
            }
            // Nothing is acknowledged by an owner that was superseded.
            tenant.claim().validate().await.map_err(|error| of_change(error.into()))?;
            return Ok(state);
        }
        self.followers.create(tenant.shard().tenant, new, &dsn).await.map_err(of_source)?;
        Ok(TimelineState::Importing)
    }
}

/// The connection string of a primary, with the key of its password and the name of its slot.
fn dsn_of(primary: &Primary) -> Result<String, Status> {
    if primary.conninfo.is_empty() {
        return Err(invalid("conninfo", "is missing"));
    }
    let is_uri = primary.conninfo.contains("://");
    let mut dsn = primary.conninfo.clone();
    for (option, value) in [("credentials", &primary.credentials_key), ("slot", &primary.slot_name)] {
        if value.is_empty() {
            continue;
        }
        if is_uri {
            let why = format!("must have the key=value form where {option} is given beside it");
            return Err(invalid("conninfo", &why));
        }
        dsn = format!("{dsn} {option}={}", quoted(value));
    }
    Ok(dsn)
}

/// What was begun goes on when the caller does not wait for it.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_panic| Err(refused(Code::Internal, Reason::Internal, "the log has the reason")))
}

fn named_lsn(name: String, named: &codec::index_part::NamedLsn) -> NamedLsn {
    let time = |time: &codec::index_part::UtcTime| time.to_system_time().into();
    NamedLsn {
        name,
        lsn: named.lsn.to_string(),
        valid_until: named.valid_until.as_ref().map(time),
        created_at: named.created_at.as_ref().map(time),
    }
}

fn config_in(config: proto::v1::TenantConfig) -> Result<TenantConfig, Status> {
    let pitr_interval = config.pitr_interval.map(Duration::try_from).transpose();
    let pitr_interval = pitr_interval.map_err(|_| invalid("config.pitr_interval", "is negative"))?;
    let config = TenantConfig {
        pitr_interval_seconds: pitr_interval.map(|interval| interval.as_secs()),
        gc_horizon_bytes: config.gc_horizon_bytes,
        checkpoint_distance_bytes: config.checkpoint_distance_bytes,
    };
    config.check().map_err(|what| refused(Code::InvalidArgument, Reason::Invalid, what))?;
    Ok(config)
}

fn mode_in(mode: Mode) -> Result<HoldMode, Status> {
    match mode {
        Mode::Single => Ok(HoldMode::Single),
        Mode::Multi => Ok(HoldMode::Multi),
        Mode::Stale => Ok(HoldMode::Stale),
        Mode::Unspecified => Err(invalid("mode", "is missing")),
    }
}

fn shard_state(tenant: &Tenant) -> ShardState {
    match tenant.hold().borrow().phase {
        Phase::Loading(_) => ShardState::Loading,
        Phase::Active => ShardState::Active,
        Phase::Detaching => ShardState::Detaching,
    }
}

#[tonic::async_trait]
impl Pageserver for Control {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Answer<ServerStatus> {
        Ok(Response::new(self.board.everything()))
    }

    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<ServerStatus, Status>> + Send>>;

    async fn watch_status(&self, request: Request<WatchStatusRequest>) -> Answer<Self::WatchStatusStream> {
        let since = request.into_inner().since_revision;
        let board = self.board.clone();
        let first = match since {
            0 => board.everything(),
            since => board.since(since).ok_or_else(|| {
                refused(
                    Code::OutOfRange,
                    Reason::Invalid,
                    "since_revision is none of this process, or too old",
                )
            })?,
        };
        let told = first.revision;
        let news = futures::stream::unfold((board, told), |(board, told)| async move {
            let mut revision = board.revision();
            let changed = revision.wait_for(|revision| *revision > told);
            let _ = tokio::time::timeout(HEARTBEAT, changed).await;
            let status = board.since(told).unwrap_or_else(|| board.everything());
            let told = status.revision;
            Some((Ok(status), (board, told)))
        });
        let first = futures::stream::once(std::future::ready(Ok(first)));
        Ok(Response::new(Box::pin(futures::StreamExt::chain(first, news))))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let mode = mode_in(request.mode())?;
        let order = self.order(request.mutation)?;
        self.storage.check()?;
        if self.board.is_draining() {
            return Err(refused(Code::FailedPrecondition, Reason::Draining, "the server is being emptied"));
        }
        if order.shard.shard.count > 1 {
            return Err(invalid(
                "tenant_shard_id",
                "is of a tenant with several shards, and this version serves tenants of one: make the tenant anew with one shard",
            ));
        }
        let config = request.config.map(config_in).transpose()?;
        let by = ClaimedBy {
            pool_uid: request.pool_uid,
            pod: self.pod.name.clone(),
            pod_uid: self.pod.uid.clone(),
            instance: self.board.instance().into(),
            attempt: order.attempt.clone(),
        };
        let this = self.clone();
        let state = to_its_end(async move {
            let before = this.tenants.tenant(order.shard.tenant).ok();
            // An older attachment that is here is replaced: nothing may feed it any more.
            if before.as_ref().is_some_and(|before| before.claim().generation() < order.generation) {
                this.followers.pause_tenant(order.shard.tenant).await;
            }
            let wanted = AttachAs { shard: order.shard, generation: order.generation, mode, by, config };
            let tenant = this.tenants.attach_as(wanted).await.map_err(of_attach)?;
            if before.is_none_or(|before| !Arc::ptr_eq(&before, &tenant)) {
                this.follow_when_open(&tenant);
            }
            Ok(shard_state(&tenant))
        });
        let state = state.await?;
        self.board.look();
        Ok(Response::new(AttachResponse { state: state.into() }))
    }

    async fn set_mode(&self, request: Request<SetModeRequest>) -> Answer<SetModeResponse> {
        let request = request.into_inner();
        let mode = mode_in(request.mode())?;
        let flush_within = duration_of("flush_within", request.flush_within)?;
        let order = self.order(request.mutation)?;
        let tenant = self.attached(&order).await?;
        if tenant.mode() == mode {
            return Ok(Response::new(SetModeResponse { flushed: false }));
        }
        let this = self.clone();
        let flushed = to_its_end(async move {
            let flushed = match flush_within {
                Some(within) if mode == HoldMode::Stale => {
                    tokio::time::timeout(within, tenant.flush()).await.unwrap_or(false)
                }
                _ => false,
            };
            this.tenants.set_mode(&tenant, mode);
            // With slots or without, or not at all.
            this.followers.pause_tenant(order.shard.tenant).await;
            this.follow_when_open(&tenant);
            Ok(flushed)
        });
        let flushed = flushed.await?;
        self.board.look();
        Ok(Response::new(SetModeResponse { flushed }))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Answer<DetachResponse> {
        let request = request.into_inner();
        let flush_within = duration_of("flush_within", request.flush_within)?;
        let order = self.order(request.mutation)?;
        let this = self.clone();
        let flushed = to_its_end(async move {
            let here = this.tenants.tenant(order.shard.tenant);
            if here.is_ok_and(|here| here.claim().generation() <= order.generation) {
                this.followers.pause_tenant(order.shard.tenant).await;
            }
            Ok(this.tenants.detach(order.shard, order.generation, flush_within).await)
        });
        let flushed = flushed.await?.unwrap_or(false);
        self.board.look();
        Ok(Response::new(DetachResponse { flushed }))
    }

    async fn configure_tenant(
        &self,
        request: Request<ConfigureTenantRequest>,
    ) -> Answer<ConfigureTenantResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let config = config_in(request.config.unwrap_or_default())?;
        let tenant = self.attached(&order).await?;
        let tenants = self.tenants.clone();
        to_its_end(async move { tenants.configure(&tenant, config).await.map_err(of_change) }).await?;
        Ok(Response::new(ConfigureTenantResponse {}))
    }

    async fn delete_tenant_data(
        &self,
        request: Request<DeleteTenantDataRequest>,
    ) -> Answer<DeleteTenantDataResponse> {
        let order = self.order(request.into_inner().mutation)?;
        self.storage.check()?;
        if let Ok(here) = self.tenants.tenant(order.shard.tenant)
            && here.claim().generation() > order.generation
        {
            let message = format!("{} is attached here in a newer generation", order.shard);
            return Err(superseded(here.claim().generation(), String::new(), message));
        }
        let this = self.clone();
        let deletion = to_its_end(async move {
            let leave = |timelines: Vec<TimelineId>| async {
                futures::future::join_all(
                    timelines.into_iter().map(|timeline| this.followers.leave(timeline)),
                )
                .await
            };
            match this.tenants.delete_tenant(order.shard, leave).await {
                // Or nothing is left of it.
                Ok(_) | Err(ChangeError::NotFound(_)) => Ok(true),
                Err(error) => Err(of_change(error)),
            }
        });
        let done = match tokio::time::timeout(DELETE_SLICE, deletion).await {
            Ok(done) => done?,
            Err(_) => false,
        };
        self.board.look();
        Ok(Response::new(DeleteTenantDataResponse { done, deleted_objects: 0 }))
    }

    async fn create_timeline(
        &self,
        request: Request<CreateTimelineRequest>,
    ) -> Answer<CreateTimelineResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let timeline = timeline_of(&request.timeline_id)?;
        let origin = request.origin.ok_or_else(|| invalid("origin", "is missing"))?;
        let tenant = self.writable(&order).await?;
        let this = self.clone();
        let state = to_its_end(async move {
            match origin {
                Origin::Branch(branch) => this.create_branch(&tenant, timeline, &branch).await,
                Origin::Import(primary) => this.create_import(&tenant, timeline, &primary).await,
                Origin::Empty(_) => Err(Status::unimplemented("a timeline needs an ancestor or a source")),
            }
        });
        let state = state.await?;
        self.board.look();
        Ok(Response::new(CreateTimelineResponse { generation: order.generation.0, state: state.into() }))
    }

    async fn set_timeline_source(
        &self,
        request: Request<SetTimelineSourceRequest>,
    ) -> Answer<SetTimelineSourceResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let timeline = timeline_of(&request.timeline_id)?;
        let tenant = self.writable(&order).await?;
        let open = tenant.timeline(timeline).map_err(|error| of_not_found(&error))?;
        let this = self.clone();
        let warning = to_its_end(async move {
            let Some(primary) = request.primary else {
                return this.followers.forget_source(&open).await.map_err(of_change);
            };
            let dsn = dsn_of(&primary)?;
            if this.has_source(&tenant, timeline, &dsn).await? && this.followers.stage(timeline).is_some() {
                return Ok(None);
            }
            this.followers.attach(&open, &dsn).await.map_err(of_source)?;
            Ok(None)
        });
        let warning = warning.await?.unwrap_or_default();
        self.board.look();
        Ok(Response::new(SetTimelineSourceResponse { warning }))
    }

    async fn set_timeline_state(
        &self,
        request: Request<SetTimelineStateRequest>,
    ) -> Answer<SetTimelineStateResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation.clone())?;
        let timeline = timeline_of(&request.timeline_id)?;
        let wanted = request.state();
        if !matches!(wanted, TimelineState::Active | TimelineState::Stopped | TimelineState::Archived) {
            return Err(invalid("state", "is neither active nor stopped nor archived"));
        }
        let tenant = self.writable(&order).await?;
        let followers = self.followers.clone();
        let warning = to_its_end(async move {
            let id = tenant.shard().tenant;
            if wanted == TimelineState::Archived {
                return followers.archive(id, timeline).await.map_err(of_change);
            }
            let open = match tenant.timeline(timeline) {
                Err(NotFound::Archived(_)) if wanted == TimelineState::Active => {
                    followers.unarchive(id, timeline).await.map_err(of_change)?
                }
                open => open.map_err(|error| of_not_found(&error))?,
            };
            let is_paused = wanted == TimelineState::Stopped;
            followers.set_paused(&open, is_paused).await.map(|()| None).map_err(of_change)
        });
        let warning = warning.await?.unwrap_or_default();
        self.board.look();
        Ok(Response::new(SetTimelineStateResponse { state: request.state, warning }))
    }

    async fn detach_ancestor(
        &self,
        request: Request<DetachAncestorRequest>,
    ) -> Answer<DetachAncestorResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let timeline = timeline_of(&request.timeline_id)?;
        let tenant = self.writable(&order).await?.shard().tenant;
        let tenants = self.tenants.clone();
        let moved =
            to_its_end(async move { tenants.detach_ancestor(tenant, timeline).await.map_err(of_change) });
        let moved = moved.await?;
        self.board.look();
        let reparented_timeline_ids = moved.iter().map(ToString::to_string).collect();
        Ok(Response::new(DetachAncestorResponse { reparented_timeline_ids }))
    }

    async fn delete_timeline(
        &self,
        request: Request<DeleteTimelineRequest>,
    ) -> Answer<DeleteTimelineResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let timeline = timeline_of(&request.timeline_id)?;
        let tenant = self.attached(&order).await?.shard().tenant;
        let this = self.clone();
        let remains = to_its_end(async move {
            let leave = this.followers.leave(timeline);
            match this.tenants.delete_timeline(tenant, timeline, leave).await {
                Ok(remains) => Ok(remains),
                Err(ChangeError::NotFound(_)) => Ok(None),
                Err(error) => Err(of_change(error)),
            }
        });
        let warning = remains.await?.unwrap_or_default();
        self.board.look();
        Ok(Response::new(DeleteTimelineResponse { warning }))
    }

    async fn lease_lsn(&self, request: Request<LeaseLsnRequest>) -> Answer<LeaseLsnResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let (timeline, lsn) = (timeline_of(&request.timeline_id)?, lsn_of(&request.lsn)?);
        let length = length_of(request.length, LONGEST_LEASE)?.unwrap_or(self.lease_length);
        // Also while it moves: whoever reads here needs it.
        let tenant = self.attached(&order).await?;
        if tenant.mode() == HoldMode::Stale {
            return Err(of_change(ChangeError::Stale(order.shard)));
        }
        let open = tenant.timeline(timeline).map_err(|error| of_not_found(&error))?;
        let until =
            to_its_end(async move { open.lease_lsn(lsn, length, SystemTime::now()).await.map_err(of_lease) });
        Ok(Response::new(LeaseLsnResponse { valid_until: Some(until.await?.into()) }))
    }

    async fn name_lsn(&self, request: Request<NameLsnRequest>) -> Answer<NameLsnResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let (timeline, lsn) = (timeline_of(&request.timeline_id)?, lsn_of(&request.lsn)?);
        let length = length_of(request.length, LONGEST_NAME)?;
        let tenant = self.writable(&order).await?;
        let open = tenant.timeline(timeline).map_err(|error| of_not_found(&error))?;
        let named = to_its_end(async move {
            let named = open.name_lsn(&request.name, lsn, length, SystemTime::now()).await;
            named.map(|named| named_lsn(request.name, &named)).map_err(of_name)
        });
        Ok(Response::new(NameLsnResponse { named: Some(named.await?) }))
    }

    async fn list_named_lsns(&self, request: Request<ListNamedLsnsRequest>) -> Answer<ListNamedLsnsResponse> {
        let request = request.into_inner();
        let shard = shard_of(&request.tenant_shard_id)?;
        let tenant = self.tenants.tenant(shard.tenant).map_err(|error| of_not_found(&error))?;
        let open = tenant.timeline(timeline_of(&request.timeline_id)?);
        let open = open.map_err(|error| of_not_found(&error))?;
        let named = open.named_lsns(SystemTime::now()).await;
        let named = named.into_iter().map(|(name, named)| named_lsn(name, &named)).collect();
        Ok(Response::new(ListNamedLsnsResponse { named }))
    }

    async fn forget_named_lsn(
        &self,
        request: Request<ForgetNamedLsnRequest>,
    ) -> Answer<ForgetNamedLsnResponse> {
        let request = request.into_inner();
        let order = self.order(request.mutation)?;
        let timeline = timeline_of(&request.timeline_id)?;
        let tenant = self.writable(&order).await?;
        let open = tenant.timeline(timeline).map_err(|error| of_not_found(&error))?;
        to_its_end(async move { open.forget_named_lsn(&request.name).await.map_err(of_name) }).await?;
        Ok(Response::new(ForgetNamedLsnResponse {}))
    }

    async fn get_lsns(&self, request: Request<GetLsnsRequest>) -> Answer<GetLsnsResponse> {
        let shard = shard_of(&request.into_inner().tenant_shard_id)?;
        let tenant = self.tenants.tenant(shard.tenant).map_err(|error| of_not_found(&error))?;
        let timelines = tenant.views().into_iter().filter_map(|(id, view)| match view {
            TimelineView::Open(timeline) => Some(TimelineLsns {
                timeline_id: id.to_string(),
                last_record_lsn: timeline.last_record_lsn().to_string(),
                remote_consistent_lsn: timeline.disk_consistent_lsn().to_string(),
                wal_flushed_lsn: timeline.flushed().borrow().to_string(),
            }),
            TimelineView::Archived(archived) => Some(TimelineLsns {
                timeline_id: id.to_string(),
                last_record_lsn: archived.disk_consistent_lsn.to_string(),
                remote_consistent_lsn: archived.disk_consistent_lsn.to_string(),
                wal_flushed_lsn: archived.disk_consistent_lsn.to_string(),
            }),
            _ => None,
        });
        Ok(Response::new(GetLsnsResponse { timelines: timelines.collect() }))
    }

    async fn wait_lsn(&self, request: Request<WaitLsnRequest>) -> Answer<WaitLsnResponse> {
        let request = request.into_inner();
        let shard = shard_of(&request.tenant_shard_id)?;
        let wait = duration_of("wait", request.wait)?.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        let tenant = self.tenants.tenant(shard.tenant).map_err(|error| of_not_found(&error))?;
        let mut waits = Vec::new();
        for wanted in &request.wanted {
            let lsn = lsn_of(&wanted.lsn)?;
            let timeline = tenant.timeline(timeline_of(&wanted.timeline_id)?);
            waits.push((timeline.map_err(|error| of_not_found(&error))?, lsn));
        }
        let all = waits.iter().map(|(timeline, lsn)| timeline.wait_for(*lsn, wait));
        let reached = futures::future::join_all(all).await.iter().all(Result::is_ok);
        let current = waits.iter().map(|(timeline, _)| TimelineLsn {
            timeline_id: timeline.id().to_string(),
            lsn: timeline.last_record_lsn().to_string(),
        });
        Ok(Response::new(WaitLsnResponse { reached, current: current.collect() }))
    }

    async fn get_lsn_by_timestamp(
        &self,
        request: Request<GetLsnByTimestampRequest>,
    ) -> Answer<GetLsnByTimestampResponse> {
        let request = request.into_inner();
        let shard = shard_of(&request.tenant_shard_id)?;
        let time = request.timestamp.ok_or_else(|| invalid("timestamp", "is missing"))?;
        let time = SystemTime::try_from(time).map_err(|_| invalid("timestamp", "is none"))?;
        let tenant = self.tenants.tenant(shard.tenant).map_err(|error| of_not_found(&error))?;
        let timeline = tenant.timeline(timeline_of(&request.timeline_id)?);
        let timeline = timeline.map_err(|error| of_not_found(&error))?;
        let found = timeline.lsn_at(PgTimestamp::from_system_time(time)).await;
        let found = found.map_err(|error| of_change(error.into()))?;
        let kind = match found {
            LsnAt::Present(_) => LsnKind::Present,
            LsnAt::Future(_) => LsnKind::Future,
            LsnAt::Past(_) => LsnKind::Past,
            LsnAt::NoData(_) => LsnKind::NoData,
        };
        Ok(Response::new(GetLsnByTimestampResponse { lsn: found.lsn().to_string(), kind: kind.into() }))
    }

    async fn set_draining(&self, request: Request<SetDrainingRequest>) -> Answer<SetDrainingResponse> {
        let request = request.into_inner();
        meant_for(&request.expected_instance, self.board.instance())?;
        self.board.set_draining(request.draining);
        let attached_shards = self.tenants.attached().len() as u32;
        Ok(Response::new(SetDrainingResponse { attached_shards }))
    }
}
