//! Routes and what they do.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use engine::budget::TailBudget;
use engine::chunk_cache::ChunkCache;
use engine::error_story::error_story;
use engine::tenant::{BranchPoint, ChangeError, Tenant, Tenants, TimelineState};
use engine::tenant_size::{size_inputs, synthetic_size};
use model::{Lsn, PgTimestamp, TenantId, TenantShardId, TimelineId};
use prometheus::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::answer::Refused;
use super::metrics::EngineMetrics;
use super::timelines::{
    archived_json, layer_map_json, named_lsn_json, parse_rfc3339, rfc3339, synthetic_size_json, tenant_json,
    timeline_json,
};
use crate::auth::{Access, Keys};
use crate::histories::LONGEST_NAME;
use crate::metrics::{self, ProcessMetrics};
use crate::source::followers::Followers;
use crate::source::stored;
use crate::supervisor::Supervisor;
use crate::tls::{Incoming, Tls};

/// Most bytes of a request's body: all are small.
const BODY_LIMIT: usize = 64 << 10;
/// How long a request may take. The slowest asks a source who it is and puts an index.
const REQUEST_LIMIT: Duration = Duration::from_secs(90);

/// How long an LSN that was found by its time stays readable, if that is asked for.
const LEASE_FOR_TIME: Duration = Duration::from_mins(1);

/// What requests work on.
pub struct Api {
    /// Of this pageserver.
    pub id: u64,
    /// What tokens are verified with; `None` where anybody may do everything.
    pub keys: Option<Keys>,
    /// Whether an operator decides what is here; requests then change nothing but leases and names.
    pub is_operated: bool,
    /// The engine.
    pub tenants: Tenants,
    /// Sources.
    pub followers: Followers,
    /// Tasks.
    pub supervisor: Supervisor,
    /// Local copies, for their counters.
    pub cache: Arc<ChunkCache>,
    /// Memory of tails, for its counters.
    pub budget: Arc<TailBudget>,
    /// Counters.
    pub registry: Registry,
    /// Counters that are refreshed at a scrape.
    pub process: ProcessMetrics,
    /// The same.
    pub engine: EngineMetrics,
    /// How long a lease of an LSN lasts.
    pub lease_length: Duration,
    /// Where bases lie that may be imported; empty when none may.
    pub base_dir: String,
    /// When the process started.
    pub launched: SystemTime,
}

type Answer = Result<Response, Refused>;
type Shared = State<Arc<Api>>;

/// Serves until told to stop, then lets requests in progress end.
pub async fn run(
    api: Arc<Api>,
    listener: Arc<TcpListener>,
    tls: Option<Tls>,
    stop: CancellationToken,
) -> io::Result<()> {
    let incoming = Incoming::new(listener, tls, None);
    axum::serve(incoming, routes(api)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn routes(api: Arc<Api>) -> Router {
    let timeline = "/v1/tenant/{tenant}/timeline/{timeline}";
    let launched: HeaderValue = rfc3339(api.launched).try_into().expect("a time is a header's value");
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/tasks", get(tasks))
        .route("/metrics", get(scrape))
        // The process is there; and it can take requests, which it can as soon as it listens. Neither asks the bucket: one that is away is no
        // reason to start anew or to send clients elsewhere.
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(async || "ok"))
        .route("/v1/tenant", get(list_tenants).post(create_tenant))
        .route("/v1/tenant/{tenant}", get(tenant_detail).delete(delete_tenant))
        .route("/v1/tenant/{tenant}/synthetic_size", get(synthetic_size_of))
        .route("/v1/tenant/{tenant}/timeline", get(list_timelines).post(create_timeline))
        .route(timeline, get(timeline_detail).delete(delete_timeline))
        .route("/v1/tenant/{tenant}/timeline_and_offloaded", get(list_all_timelines))
        .route(&format!("{timeline}/archival_config"), put(set_archival))
        .route(&format!("{timeline}/detach_ancestor"), put(detach_ancestor))
        .route(&format!("{timeline}/primary"), put(follow_primary))
        .route(&format!("{timeline}/get_lsn_by_timestamp"), get(lsn_by_timestamp))
        .route(&format!("{timeline}/lsn_lease"), post(lease_lsn))
        .route(&format!("{timeline}/named_lsn"), get(list_named_lsns))
        .route(&format!("{timeline}/named_lsn/{{name}}"), put(name_lsn).delete(forget_named_lsn))
        .route(&format!("{timeline}/layer"), get(layer_map))
        .route(&format!("{timeline}/checkpoint"), put(checkpoint))
        .fallback(async || Refused::new(StatusCode::NOT_FOUND, "page not found"))
        .method_not_allowed_fallback(async || {
            Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&api), refuse_changes))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), ask_for_token))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let launched = launched.clone();
            async move {
                let id = request.headers().get("x-request-id").cloned();
                let mut answer =
                    tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await.unwrap_or_else(|_| {
                        Refused::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response()
                    });
                let headers = answer.headers_mut();
                headers.insert(HeaderName::from_static("pageserver_launch_timestamp"), launched);
                let id = id.unwrap_or_else(|| {
                    hex::encode(rand::random::<[u8; 8]>())
                        .try_into()
                        .expect("hexadecimal is a header's value")
                });
                headers.insert(HeaderName::from_static("x-request-id"), id);
                answer
            }
        }))
        .with_state(api)
}

/// Like axum's own extractors, but what is wrong is said in our form.
struct Body<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let parsed: Result<axum::Json<T>, JsonRejection> = axum::Json::from_request(request, state).await;
        parsed
            .map(|axum::Json(body)| Body(body))
            .map_err(|error| Refused::new(error.status(), error.body_text()))
    }
}

/// Ids in the path.
struct Ids<T>(T);

impl<T: serde::de::DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Ids<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Refused> {
        let parsed: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        parsed.map(|Path(ids)| Ids(ids)).map_err(|error| Refused::bad_request(error.body_text()))
    }
}

/// Parameters after `?`.
struct Parameters<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Refused> {
        let parsed: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        parsed.map(|Query(query)| Parameters(query)).map_err(|error| Refused::bad_request(error.body_text()))
    }
}

fn json_answer(status: StatusCode, body: Value) -> Response {
    (status, axum::Json(body)).into_response()
}

#[allow(clippy::unnecessary_wraps, reason = "handlers answer this")]
fn ok(body: Value) -> Answer {
    Ok(json_answer(StatusCode::OK, body))
}

async fn status(State(api): Shared) -> Answer {
    ok(json!({ "id": api.id }))
}

async fn tasks(State(api): Shared) -> Answer {
    ok(json!(api.supervisor.list()))
}

async fn scrape(State(api): Shared) -> Response {
    api.process.refresh();
    api.engine.refresh(&api.tenants, &api.followers, &api.cache, &api.budget).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::text(&api.registry)).into_response()
}

fn tenant_of(api: &Api, shard: TenantShardId) -> Result<Arc<Tenant>, Refused> {
    let absent = || Refused::new(StatusCode::NOT_FOUND, format!("NotFound: tenant {shard}"));
    let tenant = api.tenants.tenant(shard.tenant).map_err(|_| absent())?;
    if tenant.shard() == shard { Ok(tenant) } else { Err(absent()) }
}

async fn list_tenants(State(api): Shared) -> Answer {
    ok(api.tenants.list().iter().map(tenant_json).collect())
}

#[derive(Deserialize)]
struct CreateTenant {
    new_tenant_id: TenantShardId,
}

async fn create_tenant(State(api): Shared, Body(request): Body<CreateTenant>) -> Answer {
    api.tenants.create_tenant(request.new_tenant_id.tenant).await?;
    Ok(json_answer(StatusCode::CREATED, json!(request.new_tenant_id)))
}

async fn tenant_detail(State(api): Shared, Ids(shard): Ids<TenantShardId>) -> Answer {
    let tenant = tenant_of(&api, shard)?;
    let info = api.tenants.list().into_iter().find(|info| info.id == shard);
    let mut detail = info.as_ref().map_or(Value::Null, tenant_json);
    detail["walredo"] = Value::Null;
    detail["current_physical_size"] = tenant.remote_physical_size().into();
    detail["timelines"] = tenant.list().iter().map(|state| json!(state.id())).collect();
    ok(detail)
}

/// What of a timeline's size is asked for.
#[derive(Clone, Copy, Deserialize)]
struct SizeWanted {
    /// Wait until it is known.
    #[serde(default, rename = "force-await-initial-logical-size")]
    awaited: bool,
    /// Count it, too, from the sizes of all relations.
    #[serde(default, rename = "include-non-incremental-logical-size")]
    recounted: bool,
}

/// A timeline with as much of its size as is asked for.
async fn sized_json(
    api: &Api,
    tenant: &Tenant,
    state: &TimelineState,
    wanted: SizeWanted,
) -> Result<Value, Refused> {
    let (TimelineState::Active(info), true) = (state, wanted.awaited || wanted.recounted) else {
        return Ok(timeline_json(tenant, state, &api.followers));
    };
    let timeline = tenant.timeline(info.facts.timeline)?;
    if wanted.awaited {
        timeline.counted_logical_size().await?;
    }
    let info = timeline.info();
    let recounted = if wanted.recounted {
        Some(timeline.recounted_logical_size(info.last_record_lsn).await?.bytes())
    } else {
        None
    };
    let mut json = timeline_json(tenant, &TimelineState::Active(Box::new(info)), &api.followers);
    json["current_logical_size_non_incremental"] = json!(recounted);
    Ok(json)
}

async fn list_timelines(
    State(api): Shared,
    Ids(shard): Ids<TenantShardId>,
    Parameters(wanted): Parameters<SizeWanted>,
) -> Answer {
    let tenant = tenant_of(&api, shard)?;
    ok(unarchived(&api, &tenant, wanted).await?)
}

/// The timelines that are not archived.
async fn unarchived(api: &Api, tenant: &Tenant, wanted: SizeWanted) -> Result<Value, Refused> {
    let mut timelines = Vec::new();
    for state in tenant.list() {
        if !matches!(state, TimelineState::Archived(_)) {
            timelines.push(sized_json(api, tenant, &state, wanted).await?);
        }
    }
    Ok(timelines.into())
}

async fn list_all_timelines(
    State(api): Shared,
    Ids(shard): Ids<TenantShardId>,
    Parameters(wanted): Parameters<SizeWanted>,
) -> Answer {
    let tenant = tenant_of(&api, shard)?;
    let offloaded: Value = tenant.archived().iter().map(|archived| archived_json(shard, archived)).collect();
    ok(json!({ "timelines": unarchived(&api, &tenant, wanted).await?, "offloaded": offloaded }))
}

#[derive(Deserialize)]
struct SyntheticSizeWanted {
    #[serde(default)]
    inputs_only: bool,
    retention_period: Option<u64>,
}

async fn synthetic_size_of(
    State(api): Shared,
    Ids(shard): Ids<TenantShardId>,
    Parameters(wanted): Parameters<SyntheticSizeWanted>,
) -> Answer {
    let tenant = tenant_of(&api, shard)?;
    let now = SystemTime::now();
    if wanted.inputs_only {
        let inputs = size_inputs(&tenant, wanted.retention_period, now).await?;
        return ok(synthetic_size_json(shard, &inputs, None));
    }
    let made = synthetic_size(&tenant, wanted.retention_period, now).await?;
    ok(synthetic_size_json(shard, &made.inputs, Some((made.size, &made.cost))))
}

/// How a timeline comes to be: as a branch, from a running primary, or from a base on this server's disk.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateTimeline {
    new_timeline_id: TimelineId,
    ancestor_timeline_id: Option<TimelineId>,
    ancestor_start_lsn: Option<Lsn>,
    /// RFC 3339; instead of an LSN.
    ancestor_start_timestamp: Option<String>,
    primary: Option<Primary>,
    base: Option<Base>,
    /// Accepted and not looked at: a branch has its ancestor's, an import its source's.
    #[serde(rename = "pg_version")]
    _pg_version: Option<u32>,
    /// Accepted and not looked at: nothing distinguishes such timelines here.
    #[serde(rename = "read_only")]
    _read_only: Option<bool>,
}

/// A Postgres to import and to follow.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Primary {
    /// In either form that libpq takes.
    dsn: String,
}

/// A backup, or a cluster that was shut down.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    /// Below the server's `base_dir`.
    path: String,
}

async fn create_timeline(
    State(api): Shared,
    Ids(shard): Ids<TenantShardId>,
    Body(request): Body<CreateTimeline>,
) -> Answer {
    let new = request.new_timeline_id;
    let is_whole = shard == TenantShardId::unsharded(shard.tenant);
    match (request.ancestor_timeline_id, request.primary, request.base) {
        (Some(ancestor), None, None) => {
            let point = match (request.ancestor_start_lsn, &request.ancestor_start_timestamp) {
                (None, None) => BranchPoint::Tip,
                (Some(lsn), None) => BranchPoint::Lsn(lsn),
                (None, Some(time)) => BranchPoint::Time(timestamp(time)?),
                (Some(_), Some(_)) => {
                    return Err(Refused::bad_request("an LSN and a timestamp: give one"));
                }
            };
            tenant_of(&api, shard)?;
            api.tenants.branch(shard.tenant, new, ancestor, point).await?;
        }
        (None, Some(_), None) | (None, None, Some(_)) if !is_whole => {
            return Err(Refused::bad_request("only a tenant that is not sharded can be imported into"));
        }
        (None, Some(primary), None) => {
            api.tenants.create_tenant(shard.tenant).await?;
            api.followers.create(shard.tenant, new, &primary.dsn).await?;
        }
        (None, None, Some(base)) => {
            let place = stored::place(&api.base_dir, &base.path)?;
            api.tenants.create_tenant(shard.tenant).await?;
            api.followers.create_from_disk(shard.tenant, new, &place).await?;
        }
        _ => {
            return Err(Refused::bad_request(
                "a timeline is a branch (ancestor_timeline_id), follows a primary (primary.dsn) or is imported from a base on \
                 the server's disk (base.path): give one",
            ));
        }
    }
    Ok(json_answer(StatusCode::CREATED, one_timeline(&api, shard, new)?))
}

fn one_timeline(api: &Api, shard: TenantShardId, timeline: TimelineId) -> Result<Value, Refused> {
    let (tenant, state) = timeline_state(api, shard, timeline)?;
    Ok(timeline_json(&tenant, &state, &api.followers))
}

fn timeline_state(
    api: &Api,
    shard: TenantShardId,
    timeline: TimelineId,
) -> Result<(Arc<Tenant>, TimelineState), Refused> {
    let tenant = tenant_of(api, shard)?;
    let state = tenant.list().into_iter().find(|state| state.id() == timeline).ok_or_else(|| {
        Refused::new(StatusCode::NOT_FOUND, format!("NotFound: Timeline {shard}/{timeline} was not found"))
    })?;
    Ok((tenant, state))
}

/// What anybody may ask.
const OPEN: [&str; 4] = ["/v1/status", "/metrics", "/healthz", "/readyz"];

/// Lets a request through whose token opens what it asks for.
async fn ask_for_token(State(api): Shared, request: Request, next: Next) -> Response {
    let Some(keys) = api.keys.as_ref().filter(|_| !OPEN.contains(&request.uri().path())) else {
        return next.run(request).await;
    };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = given.and_then(|given| given.strip_prefix("Bearer ")) else {
        let msg = "Unauthorized: missing or malformed authorization header";
        return Refused::new(StatusCode::UNAUTHORIZED, msg).into_response();
    };
    let opens = match keys.verify(token) {
        Ok(Access::Everything) => true,
        Ok(access @ Access::Tenant(_)) => tenant_asked(&request).is_some_and(|tenant| access.opens(tenant)),
        Err(error) => {
            tracing::debug!("a token was refused: {error}");
            false
        }
    };
    if opens {
        next.run(request).await
    } else {
        Refused::new(StatusCode::FORBIDDEN, "Forbidden: JWT authentication error").into_response()
    }
}

/// The tenant that a request is about, if a token of one tenant may ask that at all: to read it, and whatever is below it.
fn tenant_asked(request: &Request) -> Option<TenantId> {
    let mut parts = request.uri().path().strip_prefix("/v1/tenant/")?.splitn(2, '/');
    let shard: TenantShardId = parts.next()?.parse().ok()?;
    let is_below = parts.next().is_some();
    (is_below || matches!(*request.method(), Method::GET | Method::HEAD)).then_some(shard.tenant)
}

/// What an operator keeps is changed through its resources: it would undo anything else.
async fn refuse_changes(State(api): Shared, request: Request, next: Next) -> Response {
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path();
    let is_harmless =
        path.ends_with("/lsn_lease") || path.contains("/named_lsn/") || path.ends_with("/checkpoint");
    if api.is_operated && is_change && !is_harmless {
        let msg =
            "Forbidden: this server is managed by an operator; change its Tenant and Timeline resources";
        return Refused::new(StatusCode::FORBIDDEN, msg).into_response();
    }
    next.run(request).await
}

type TimelinePath = Ids<(TenantShardId, TimelineId)>;

async fn timeline_detail(
    State(api): Shared,
    Ids((shard, timeline)): TimelinePath,
    Parameters(wanted): Parameters<SizeWanted>,
) -> Answer {
    let (tenant, state) = timeline_state(&api, shard, timeline)?;
    ok(sized_json(&api, &tenant, &state, wanted).await?)
}

async fn delete_timeline(State(api): Shared, Ids((shard, timeline)): TimelinePath) -> Answer {
    tenant_of(&api, shard)?;
    let remains = to_its_end(async move {
        let leave = api.followers.leave(timeline);
        api.tenants.delete_timeline(shard.tenant, timeline, leave).await
    })
    .await?;
    let warning = remains.map_or(Value::Null, |remains| json!({ "warning": remains }));
    Ok(json_answer(StatusCode::ACCEPTED, warning))
}

async fn delete_tenant(State(api): Shared, Ids(shard): Ids<TenantShardId>) -> Answer {
    let remains = to_its_end(async move {
        let leave = |timelines: Vec<TimelineId>| async {
            let left = timelines.into_iter().map(|timeline| api.followers.leave(timeline));
            futures::future::join_all(left).await
        };
        api.tenants.delete_tenant(shard, leave).await
    })
    .await?;
    let warnings: Vec<String> = remains.into_iter().flatten().collect();
    ok(if warnings.is_empty() { Value::Null } else { json!({ "warning": warnings.join("; ") }) })
}

/// What was begun goes on when the client does not wait for it.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> Result<T, Refused> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(done?),
        Err(_panic) => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the log has the reason")),
    }
}

#[derive(Deserialize)]
struct ArchivalConfig {
    state: Archival,
}

#[derive(Clone, Copy, Deserialize)]
enum Archival {
    Archived,
    Unarchived,
}

async fn set_archival(
    State(api): Shared,
    Ids((shard, timeline)): TimelinePath,
    Body(request): Body<ArchivalConfig>,
) -> Answer {
    tenant_of(&api, shard)?;
    let remains = to_its_end(async move {
        match request.state {
            Archival::Archived => api.followers.archive(shard.tenant, timeline).await,
            Archival::Unarchived => api.followers.unarchive(shard.tenant, timeline).await.map(|_| None),
        }
    })
    .await?;
    ok(remains.map_or(Value::Null, |remains| json!({ "warning": remains })))
}

#[derive(Deserialize)]
struct DetachAncestor {
    detach_behavior: Option<DetachBehavior>,
    /// Accepted and not looked at: how much is done at once is our own matter.
    #[serde(rename = "rewrite_concurrency")]
    _rewrite_concurrency: Option<u32>,
    #[serde(rename = "copy_concurrency")]
    _copy_concurrency: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum DetachBehavior {
    /// From however many ancestors.
    #[serde(alias = "v1")]
    NoAncestorAndReparent,
    #[serde(alias = "v2")]
    MultiLevelAndNoReparent,
}

async fn detach_ancestor(
    State(api): Shared,
    Ids((shard, timeline)): TimelinePath,
    Parameters(how): Parameters<DetachAncestor>,
) -> Answer {
    tenant_of(&api, shard)?;
    if matches!(how.detach_behavior, Some(DetachBehavior::MultiLevelAndNoReparent)) {
        return Err(Refused::bad_request(
            "branches that begin below are moved over, always: leave detach_behavior out",
        ));
    }
    let moved = to_its_end(async move { api.tenants.detach_ancestor(shard.tenant, timeline).await }).await?;
    ok(json!({ "reparented_timelines": moved }))
}

async fn follow_primary(
    State(api): Shared,
    Ids((shard, timeline)): TimelinePath,
    Body(primary): Body<Primary>,
) -> Answer {
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    api.followers.attach(&open, &primary.dsn).await?;
    ok(one_timeline(&api, shard, timeline)?)
}

#[derive(Deserialize)]
struct AtTime {
    timestamp: String,
    #[serde(default)]
    with_lease: bool,
}

fn timestamp(text: &str) -> Result<PgTimestamp, Refused> {
    parse_rfc3339(text)
        .map(PgTimestamp::from_system_time)
        .ok_or_else(|| Refused::bad_request(format!("{text:?} is not a time in RFC 3339")))
}

async fn lsn_by_timestamp(
    State(api): Shared,
    Ids((shard, timeline)): TimelinePath,
    Parameters(at): Parameters<AtTime>,
) -> Answer {
    let time = timestamp(&at.timestamp)?;
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    let found = open.lsn_at(time).await?;
    let mut answer = json!(found);
    if at.with_lease {
        // Long enough to make a branch there. Without one the answer is an answer all the same.
        let length = LEASE_FOR_TIME.min(api.lease_length);
        match open.lease_lsn(found.lsn(), length, SystemTime::now()).await {
            Ok(until) => answer["valid_until"] = json!(rfc3339(until)),
            Err(error) => tracing::debug!(%timeline, "no lease: {}", error_story(&error)),
        }
    }
    ok(answer)
}

#[derive(Deserialize)]
struct LeaseLsn {
    lsn: Lsn,
}

async fn lease_lsn(
    State(api): Shared,
    Ids((shard, timeline)): TimelinePath,
    Body(request): Body<LeaseLsn>,
) -> Answer {
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    let until = open.lease_lsn(request.lsn, api.lease_length, SystemTime::now()).await?;
    ok(json!({ "valid_until": rfc3339(until) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NameLsn {
    lsn: Lsn,
    /// How long, such as `30days`; for good without.
    valid_for: Option<String>,
}

type NamePath = Ids<(TenantShardId, TimelineId, String)>;

async fn name_lsn(
    State(api): Shared,
    Ids((shard, timeline, name)): NamePath,
    Body(request): Body<NameLsn>,
) -> Answer {
    let length = request.valid_for.as_deref().map(name_length).transpose()?;
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    let named = open.name_lsn(&name, request.lsn, length, SystemTime::now()).await?;
    ok(named_lsn_json(&name, &named))
}

fn name_length(text: &str) -> Result<Duration, Refused> {
    let length = humantime::parse_duration(text).ok().filter(|length| *length <= LONGEST_NAME);
    length.ok_or_else(|| Refused::bad_request(format!("{text:?} is not a duration of at most 100 years")))
}

async fn list_named_lsns(State(api): Shared, Ids((shard, timeline)): TimelinePath) -> Answer {
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    let named = open.named_lsns(SystemTime::now()).await;
    ok(named.iter().map(|(name, named)| named_lsn_json(name, named)).collect())
}

async fn forget_named_lsn(State(api): Shared, Ids((shard, timeline, name)): NamePath) -> Answer {
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    open.forget_named_lsn(&name).await?;
    ok(Value::Null)
}

async fn layer_map(State(api): Shared, Ids((shard, timeline)): TimelinePath) -> Answer {
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    let part = open.index().part().await;
    ok(layer_map_json(&open.info(), &part))
}

async fn checkpoint(State(api): Shared, Ids((shard, timeline)): TimelinePath) -> Answer {
    let open = tenant_of(&api, shard)?.timeline(timeline)?;
    let lsn = open
        .checkpoint()
        .await
        .map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    ok(json!({ "disk_consistent_lsn": lsn }))
}
