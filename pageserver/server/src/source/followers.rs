//! All sources that this process follows, each in a supervised task.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use codec::index_part::{IndexPart, Source, Unknown};
use engine::error_story::error_story;
use engine::index_keeper::Changed;
use engine::index_store::PutIndexError;
use engine::tenant::{BranchPoint, ChangeError, Mode, NotFound, Tenant, Tenants};
use engine::timeline::Timeline;
use engine::timeline::restore::SwitchError;
use engine::wal_target::WalTarget;
use futures::future::BoxFuture;
use model::{Lsn, TenantId, TimelineId, Tli};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Purpose};
use super::conninfo::{ConnInfo, ConnInfoError, Secrets};
use super::course::{SourceCourse, Stage};
use super::import::{self, ImportFailure};
use super::receiver::{FollowError, Receiver, course_of, release_slot};
use super::replication;
use super::stored::{self, StoredBaseError};
use crate::supervisor::{OnFailure, Supervisor, TaskHandle};

/// Bases that are imported from sources at once. Each takes two connections of its source and some megabytes of ours.
const IMPORTS_AT_ONCE: usize = 4;

/// Imports and receivers. Cheap to clone.
#[derive(Clone)]
pub struct Followers {
    inner: Arc<Inner>,
}

struct Inner {
    tenants: Tenants,
    supervisor: Supervisor,
    secrets: Secrets,
    // Guards the table; held for look-ups and updates only.
    table: Mutex<HashMap<TimelineId, Follower>>,
    /// Timelines that have a source which is not to be followed.
    // Held for look-ups and updates only.
    paused: Mutex<HashSet<TimelineId>>,
    /// Whose turn it is to import.
    turns: Semaphore,
}

#[derive(Clone)]
struct Follower {
    tenant: TenantId,
    /// None while a base is imported that lies on disk.
    source: Option<ConnInfo>,
    state: Arc<SourceCourse>,
    task: TaskHandle,
}

/// Why a source is not followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowRequestError {
    /// The connection string is none.
    #[error(transparent)]
    ConnInfo(#[from] ConnInfoError),
    /// The source cannot be used, or the import could not begin.
    #[error(transparent)]
    Import(#[from] ImportFailure),
    /// The timeline could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Its history is not the timeline's.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The timeline takes no WAL any more.
    #[error("the timeline is archived: {0}")]
    Archived(String),
    /// It is another cluster than the timeline's.
    #[error("the source is cluster {found}, the timeline's is {expected}")]
    OtherCluster {
        /// Its system identifier.
        found: u64,
        /// The timeline's.
        expected: u64,
    },
}

/// Why a receiver ended.
#[derive(Debug, thiserror::Error)]
enum ReceiverFailure {
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error("cannot archive the timeline that the source left: {0}")]
    Archive(#[from] SwitchError),
    #[error("cannot continue in a new timeline: {0}")]
    Continue(#[from] ChangeError),
}

/// The slot of an archived timeline is not dropped yet.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SlotRemains(String);

/// How long a deletion waits for the source to drop our slot.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

impl Followers {
    /// Nobody yet.
    pub fn new(tenants: Tenants, supervisor: Supervisor, secrets: Secrets) -> Self {
        Followers {
            inner: Arc::new(Inner {
                tenants,
                supervisor,
                secrets,
                table: Mutex::default(),
                paused: Mutex::default(),
                turns: Semaphore::new(IMPORTS_AT_ONCE),
            }),
        }
    }

    /// What the follower of a timeline does, for people.
    pub fn status(&self, timeline: TimelineId) -> String {
        self.get(timeline).map_or_else(|| "no source".into(), |follower| follower.state.text())
    }

    /// How far a timeline's source is; `None` without one.
    pub fn stage(&self, timeline: TimelineId) -> Option<Stage> {
        self.get(timeline).map(|follower| follower.state.stage())
    }

    /// Whether a timeline was archived.
    pub fn is_archived(&self, timeline: TimelineId) -> bool {
        matches!(self.stage(timeline), Some(Stage::Archived { .. }))
    }

    /// Where a timeline's WAL comes from, without secrets.
    pub fn source(&self, timeline: TimelineId) -> Option<String> {
        self.get(timeline).and_then(|follower| follower.source).map(|source| source.to_string())
    }

    /// How many sources are followed or imported.
    pub fn count(&self) -> usize {
        self.table().len()
    }

    /// Goes on with everything that was followed when the process last ended.
    pub async fn resume(&self) {
        for tenant in self.inner.tenants.attached() {
            self.resume_tenant(&tenant).await;
        }
    }

    /// Goes on with everything of an open tenant that was followed when its last owner ended. One that is held while another place has the
    /// slots streams without them, and imports nothing.
    pub async fn resume_tenant(&self, tenant: &Tenant) {
        let is_single = tenant.mode() == Mode::Single;
        let mut retired = Vec::new();
        for followed in tenant.followed().await {
            let Some(source) = self.conninfo_of(followed.id, &followed.source) else { continue };
            if followed.source.paused {
                self.paused().insert(followed.id);
                continue;
            }
            match followed.timeline {
                Some(timeline) if timeline.succession().await.is_some() => retired.push((timeline, source)),
                Some(timeline) => self.follow_as(&timeline, source, is_single),
                None if !is_single => {}
                None => self.import(tenant.shard().tenant, followed.id, source, None),
            }
        }
        // Now it is known which successors exist and are followed.
        for (timeline, source) in retired.into_iter().filter(|_| is_single) {
            self.continue_in_a_task(timeline, source);
        }
        for archived in tenant.archived().iter().filter(|_| is_single) {
            if let Some(source) =
                archived.left.as_ref().and_then(|left| self.conninfo_of(archived.timeline, left))
            {
                self.leave_in_a_task(tenant.shard().tenant, archived.timeline, source);
            }
        }
    }

    fn conninfo_of(&self, timeline: TimelineId, source: &Source) -> Option<ConnInfo> {
        match source.conninfo.parse::<ConnInfo>() {
            Ok(source) => Some(source.or_secrets(&self.inner.secrets)),
            Err(error) => {
                tracing::error!(%timeline, "its source cannot be used: {error}");
                None
            }
        }
    }

    /// Archives a timeline, and leaves its source. Answers what remains there.
    pub async fn archive(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Option<String>, ChangeError> {
        let leave = async |source: Source| {
            self.paused().remove(&timeline);
            // Also where nobody followed it just now, so that no slot keeps WAL for ever.
            let followed = self.end(timeline).await;
            match followed.or_else(|| self.conninfo_of(timeline, &source)) {
                Some(source) => drop_our_slot(timeline, source).await,
                None => Some(format!("its source {} is no connection string", source.conninfo)),
            }
        };
        self.inner.tenants.archive_timeline(tenant, timeline, leave).await
    }

    /// Opens an archived timeline, and follows its source again if it had one.
    pub async fn unarchive(&self, tenant: TenantId, timeline: TimelineId) -> Result<Timeline, ChangeError> {
        let open = self.inner.tenants.unarchive_timeline(tenant, timeline).await?;
        // What looked for its slot.
        if self.stage(timeline) == Some(Stage::Stopped) {
            self.end(timeline).await;
        }
        if let Some((stored, _)) = open.index().source().await
            && self.get(timeline).is_none()
            && let Some(source) = self.conninfo_of(timeline, &stored)
        {
            if stored.paused {
                self.paused().insert(timeline);
            } else if open.succession().await.is_some() {
                self.continue_in_a_task(open.clone(), source);
            } else {
                self.follow(&open, source);
            }
        }
        Ok(open)
    }

    /// Drops the slot of an archived timeline whose archiving broke off before that.
    fn leave_in_a_task(&self, tenant: TenantId, id: TimelineId, source: ConnInfo) {
        let state = Arc::new(SourceCourse::default());
        state.set(Stage::Stopped, "archived: its slot on the source is to be dropped");
        let (this, from) = (self.clone(), source.clone());
        let task = self.inner.supervisor.start(format!("slot of {id}"), OnFailure::Restart, move |stop| {
            let (this, source) = (this.clone(), from.clone());
            async move {
                let leave = async |_: Source| drop_our_slot(id, source).await;
                // Whoever unarchives or deletes the timeline waits for this task, and may hold what it waits for.
                let left = tokio::select! {
                    left = this.inner.tenants.finish_archiving(tenant, id, leave) => left,
                    () = stop.cancelled() => return Ok(()),
                };
                match left {
                    Ok(None) => Ok(()),
                    Ok(Some(remains)) => Err(SlotRemains(remains)),
                    Err(error) => Err(SlotRemains(error_story(&error))),
                }
            }
        });
        self.put(id, Follower { tenant, source: Some(source), state, task });
    }

    fn continue_in_a_task(&self, timeline: Timeline, source: ConnInfo) {
        let state = Arc::new(SourceCourse::default());
        let (this, from, told) = (self.clone(), source.clone(), Arc::clone(&state));
        let (id, tenant) = (timeline.id(), timeline.facts().tenant_shard.tenant);
        let task =
            self.inner.supervisor.start(format!("successor of {id}"), OnFailure::Restart, move |stop| {
                let (this, source, state) = (this.clone(), from.clone(), Arc::clone(&told));
                let timeline = timeline.clone();
                async move {
                    // Whoever deletes the timeline waits for this task, and may hold what it waits for.
                    tokio::select! {
                        continued = this.continue_archived(&timeline, source, &state) => continued,
                        () = stop.cancelled() => Ok(()),
                    }
                }
            });
        self.put(id, Follower { tenant, source: Some(source), state, task });
    }

    /// Stops following all timelines of a tenant that is let go, and waits until nothing of it runs any more. Its slots stay, for its next owner.
    pub async fn pause_tenant(&self, tenant: TenantId) {
        loop {
            let of_tenant: Vec<TimelineId> = {
                let table = self.table();
                table.iter().filter(|(_, follower)| follower.tenant == tenant).map(|(id, _)| *id).collect()
            };
            if of_tenant.is_empty() {
                return; // an import that ended meanwhile may have started a receiver, hence the loop
            }
            futures::future::join_all(of_tenant.into_iter().map(|timeline| self.end(timeline))).await;
        }
    }

    /// Ends what feeds a timeline, and what that may have started meanwhile. Answers the source, if it had one.
    async fn end(&self, timeline: TimelineId) -> Option<ConnInfo> {
        let mut source = None;
        // An import that ends meanwhile may have started a receiver.
        loop {
            let follower = self.table().remove(&timeline);
            let Some(follower) = follower else { break };
            follower.task.end().await;
            source = source.or(follower.source);
        }
        for task in ["import", "receiver", "successor of", "slot of"] {
            self.inner.supervisor.forget(&format!("{task} {timeline}"));
        }
        source
    }

    /// Archives a timeline that the source left at `at`, and goes on in a new one.
    async fn part(
        &self,
        timeline: &Timeline,
        at: Lsn,
        tli: Tli,
        source: ConnInfo,
        state: &SourceCourse,
    ) -> Result<(), ReceiverFailure> {
        let received = timeline.received();
        let reason = format!(
            "the source went on as Postgres timeline {tli} from {at}, before {received}, the end of what was received"
        );
        let archived = timeline.retire(&reason, TimelineId(rand::random()), at).await?;
        tracing::warn!(timeline = %timeline.id(), successor = ?archived.successor, "archived: {}", archived.reason);
        Ok(self.continue_archived(timeline, source, state).await?)
    }

    /// Makes the successor of an archived timeline unless it exists, and follows the source in it.
    async fn continue_archived(
        &self,
        timeline: &Timeline,
        source: ConnInfo,
        state: &SourceCourse,
    ) -> Result<(), ChangeError> {
        let Some(archived) = timeline.succession().await else { return Ok(()) };
        let stage = Stage::Archived { successor: archived.successor };
        state.set(stage.clone(), format!("archived: {}", archived.reason));
        let (Some(successor), Some(at)) = (archived.successor, archived.at) else { return Ok(()) };
        let tenant = timeline.facts().tenant_shard.tenant;
        let made = self.inner.tenants.branch(tenant, successor, timeline.id(), BranchPoint::Lsn(at)).await;
        let next = match made {
            // Somebody deleted it since.
            Err(ChangeError::Buried(_)) => return Ok(()),
            made => made?,
        };
        state.set(stage, format!("archived: {}; goes on as timeline {successor}", archived.reason));
        let onwards = source.clone().without_slot();
        if next.index().source().await.is_none() {
            self.store_source(&next, &onwards).await?;
        }
        if next.succession().await.is_none() && self.get(successor).is_none() {
            self.follow(&next, onwards);
        }
        let source = source.shown_as(timeline.id());
        let slot = source.slot_of(timeline.id());
        let released = tokio::time::timeout(RELEASE_PATIENCE, release_slot(&source, &slot)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::warn!(slot, "the slot of the archived timeline may remain on the source");
        }
        Ok(())
    }

    async fn store_source(&self, timeline: &Timeline, source: &ConnInfo) -> Result<(), ChangeError> {
        let stored = Source {
            conninfo: source.to_string(),
            slot: Some(source.slot_of(timeline.id())),
            paused: false,
            unknown: Unknown::new(),
        };
        timeline
            .index()
            .update(|part| {
                if let Some(ours) = &mut part.palimpsest {
                    ours.source = Some(stored);
                }
            })
            .await?;
        Ok(timeline.index().claim().validate().await?)
    }

    /// Makes a timeline from a source. Answers once that is begun durably; filling it goes on in a task.
    pub async fn create(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        dsn: &str,
    ) -> Result<(), FollowRequestError> {
        let source = dsn.parse::<ConnInfo>()?.or_secrets(&self.inner.secrets);
        if source.password.is_some() {
            tracing::warn!(%timeline, "the source's password is not stored: after a restart it must come from a password file");
        }
        let begun = begin(&self.inner.tenants, tenant, timeline, &source).await?;
        self.import(tenant, timeline, source, Some(begun));
        Ok(())
    }

    /// Makes a timeline from a base that lies at `place`. Answers once that is begun durably; filling it goes on in a task. What fails is not tried
    /// again by itself: the files would have to change.
    pub async fn create_from_disk(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        place: &Path,
    ) -> Result<(), StoredBaseError> {
        let mut begun = Some(stored::begin(&self.inner.tenants, tenant, timeline, place).await?);
        let state = Arc::new(SourceCourse::default());
        let told = Arc::clone(&state);
        let name = format!("import {timeline}");
        let task = self.inner.supervisor.start(name, OnFailure::Keep, move |stop| {
            let (state, begun) = (Arc::clone(&told), begun.take());
            async move {
                let Some(begun) = begun else { return Err(StoredBaseError::Stopping) }; // it runs once
                let imported = stored::run(begun, &state, stop).await;
                if let Err(error) = &imported {
                    state.set(Stage::Disconnected, format!("the import failed: {}", error_story(error)));
                }
                imported.map(drop)
            }
        });
        self.put(timeline, Follower { tenant, source: None, state, task });
        Ok(())
    }

    /// Makes an existing timeline follow a source, such as a cluster that was restored from it.
    pub async fn attach(&self, timeline: &Timeline, dsn: &str) -> Result<(), FollowRequestError> {
        let source = dsn.parse::<ConnInfo>()?.or_secrets(&self.inner.secrets);
        if let Some(archived) = timeline.succession().await {
            return Err(FollowRequestError::Archived(archived.reason));
        }
        let (identity, _) = import::survey(&source).await?;
        let expected = timeline.facts().system_identifier;
        if identity.system_identifier != expected {
            return Err(FollowRequestError::OtherCluster { found: identity.system_identifier, expected });
        }
        let mut client = Client::connect(&source, Purpose::Replication).await.map_err(FollowError::from)?;
        let history = replication::history(&mut client, identity.tli).await.map_err(FollowError::from)?;
        course_of(timeline, &identity, &history).await?;
        // Before the answer: from it on, the source may be counted on to keep the WAL that comes next.
        let slot = source.slot_of(timeline.id());
        let is_new = replication::create_slot(&mut client, &slot).await.map_err(FollowError::from)?;
        if let Err(error) = self.store_source(timeline, &source).await {
            if is_new && let Err(error) = replication::drop_slot(&mut client, &slot).await {
                tracing::warn!(slot, "remains on the source {source}: {error}");
            }
            return Err(error.into());
        }
        client.close().await;
        self.paused().remove(&timeline.id());
        self.follow(timeline, source);
        Ok(())
    }

    /// Stops following a timeline that is deleted, waits until nothing of it runs any more, and drops its slot on the source. Answers what
    /// remains there, if that failed.
    pub async fn leave(&self, timeline: TimelineId) -> Option<String> {
        self.paused().remove(&timeline);
        drop_our_slot(timeline, self.end(timeline).await?).await
    }

    /// How a connection string is kept in the index: without secrets, in one form.
    pub fn stored_form(&self, dsn: &str) -> Result<String, ConnInfoError> {
        Ok(dsn.parse::<ConnInfo>()?.or_secrets(&self.inner.secrets).to_string())
    }

    /// Whether a timeline was told not to follow its source for now.
    pub fn is_paused(&self, timeline: TimelineId) -> bool {
        self.paused().contains(&timeline)
    }

    /// Stops following a timeline's source, durably, or goes on with it. The slot stays: the source keeps WAL meanwhile.
    pub async fn set_paused(&self, timeline: &Timeline, paused: bool) -> Result<(), ChangeError> {
        let change = |part: &mut IndexPart| {
            let source = part.palimpsest.as_mut().and_then(|ours| ours.source.as_mut());
            match source.filter(|source| source.paused != paused) {
                None => Ok::<_, PutIndexError>(Changed::No),
                Some(source) => {
                    source.paused = paused;
                    Ok(Changed::Yes)
                }
            }
        };
        timeline.index().change(change).await?;
        timeline.index().claim().validate().await?;
        let id = timeline.id();
        if paused {
            self.paused().insert(id);
            self.end(id).await;
        } else if self.paused().remove(&id)
            && let Some((source, _)) = timeline.index().source().await
            && let Ok(source) = source.conninfo.parse::<ConnInfo>()
        {
            self.follow(timeline, source.or_secrets(&self.inner.secrets));
        }
        Ok(())
    }

    /// Makes a timeline follow nobody any more, durably, and drops its slot on the source. Answers what remains there, if that failed.
    pub async fn forget_source(&self, timeline: &Timeline) -> Result<Option<String>, ChangeError> {
        timeline
            .index()
            .update(|part| {
                if let Some(ours) = &mut part.palimpsest {
                    ours.source = None;
                }
            })
            .await?;
        timeline.index().claim().validate().await?;
        Ok(self.leave(timeline.id()).await)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<TimelineId, Follower>> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paused(&self) -> std::sync::MutexGuard<'_, HashSet<TimelineId>> {
        self.inner.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, timeline: TimelineId) -> Option<Follower> {
        self.table().get(&timeline).cloned()
    }

    fn put(&self, timeline: TimelineId, follower: Follower) {
        if let Some(before) = self.table().insert(timeline, follower) {
            before.task.stop();
        }
    }

    fn follow(&self, timeline: &Timeline, source: ConnInfo) {
        self.follow_as(timeline, source, true);
    }

    /// The same; without our slot while another owner has it.
    fn follow_as(&self, timeline: &Timeline, source: ConnInfo, with_slot: bool) {
        let state = Arc::new(SourceCourse::default());
        let (timeline, from) = (timeline.clone(), source.clone());
        let (id, tenant) = (timeline.id(), timeline.facts().tenant_shard.tenant);
        let told = Arc::clone(&state);
        let this = self.clone();
        let is_final =
            |error: &ReceiverFailure| matches!(error, ReceiverFailure::Follow(error) if error.is_final());
        let task = self.inner.supervisor.start_unless(format!("receiver {id}"), is_final, move |stop| {
            let receiver = receiver_of(&timeline, from.clone(), with_slot, Arc::clone(&told));
            let (this, timeline, source, state) =
                (this.clone(), timeline.clone(), from.clone(), Arc::clone(&told));
            // Boxed: the successor's receiver is started from within.
            let run: BoxFuture<'static, Result<(), ReceiverFailure>> = Box::pin(async move {
                match receiver.follow(stop.clone()).await {
                    Err(FollowError::Parted { at, tli }) => tokio::select! {
                        parted = this.part(&timeline, at, tli, source, &state) => parted,
                        () = stop.cancelled() => Ok(()),
                    },
                    followed => Ok(followed?),
                }
            });
            run
        });
        self.put(id, Follower { tenant, source: Some(source), state, task });
    }

    fn import(&self, tenant: TenantId, id: TimelineId, source: ConnInfo, begun: Option<Begun>) {
        let state = Arc::new(SourceCourse::default());
        let (this, from, told) = (self.clone(), source.clone(), Arc::clone(&state));
        let mut begun = begun;
        // What is gone for good is not tried again.
        let is_final = |error: &ImportFailure| {
            let ImportFailure::Change(error) = error else { return false };
            matches!(
                error,
                ChangeError::NotFound(NotFound::Tenant(_))
                    | ChangeError::Deleting(_)
                    | ChangeError::Buried(_)
            )
        };
        let task = self.inner.supervisor.start_unless(format!("import {id}"), is_final, move |stop| {
            let (this, source, state, begun) = (this.clone(), from.clone(), Arc::clone(&told), begun.take());
            async move {
                let imported = this.import_once(tenant, id, source, begun, &state, stop).await;
                if let Err(error) = &imported
                    && !matches!(error, ImportFailure::Stopping)
                {
                    let told = format!("the import failed: {}", error_story(error));
                    state.set(Stage::Disconnected, told);
                }
                imported
            }
        });
        self.put(id, Follower { tenant, source: Some(source), state, task });
    }

    /// Imports a source's base from its beginning, and follows the source then.
    async fn import_once(
        &self,
        tenant: TenantId,
        id: TimelineId,
        source: ConnInfo,
        begun: Option<Begun>,
        state: &Arc<SourceCourse>,
        stop: CancellationToken,
    ) -> Result<(), ImportFailure> {
        let begun = if let Some(begun) = begun {
            begun
        } else {
            tokio::select! {
                begun = begin(&self.inner.tenants, tenant, id, &source) => begun?,
                () = stop.cancelled() => return Err(ImportFailure::Stopping),
            }
        };
        let _turn = tokio::select! {
            turn = self.inner.turns.acquire() => turn.expect("nobody closes it"),
            () = stop.cancelled() => return Err(ImportFailure::Stopping),
        };
        let (shown, slot) = (source.clone().shown_as(id), source.slot_of(id));
        let claim = self.inner.tenants.tenant(tenant).map_err(ChangeError::from)?.claim().clone();
        let receiver = |target: WalTarget| Receiver {
            target,
            claim: claim.clone(),
            source: shown.clone(),
            slot: Some(slot.clone()),
            system_identifier: begun.identity.system_identifier,
            tli: begun.identity.tli,
            wal_segment_size: begun.identity.wal_segment_size,
            state: Arc::default(),
        };
        let timeline =
            import::run(begun.session, &begun.identity, &shown, &slot, receiver, state, stop).await?;
        self.follow(&timeline, source);
        Ok(())
    }
}

/// Drops the slot of a timeline on its source. Answers what remains there, if that failed.
async fn drop_our_slot(timeline: TimelineId, source: ConnInfo) -> Option<String> {
    let source = source.shown_as(timeline);
    let slot = source.slot_of(timeline);
    let why = match tokio::time::timeout(RELEASE_PATIENCE, release_slot(&source, &slot)).await {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {RELEASE_PATIENCE:?}"),
    };
    let remains = format!(
        "the slot {slot} remains on the source {source} and keeps WAL there until it is dropped: {why}"
    );
    tracing::warn!(%timeline, "{remains}");
    Some(remains)
}

/// An import that is begun durably.
struct Begun {
    session: engine::import_session::ImportSession,
    identity: super::replication::SourceIdentity,
}

async fn begin(
    tenants: &Tenants,
    tenant: TenantId,
    timeline: TimelineId,
    source: &ConnInfo,
) -> Result<Begun, ImportFailure> {
    let (identity, checksums) = import::survey(source).await?;
    let plan = import::plan(&identity, checksums, source, &source.slot_of(timeline));
    let session = tenants.begin_import(tenant, timeline, plan).await?;
    Ok(Begun { session, identity })
}

fn receiver_of(timeline: &Timeline, source: ConnInfo, with_slot: bool, state: Arc<SourceCourse>) -> Receiver {
    Receiver {
        target: WalTarget::Open(timeline.clone()),
        claim: timeline.index().claim().clone(),
        slot: with_slot.then(|| source.slot_of(timeline.id())),
        source: source.shown_as(timeline.id()),
        system_identifier: timeline.facts().system_identifier,
        tli: timeline.tli(),
        wal_segment_size: timeline.facts().wal_segment_size,
        state,
    }
}
