//! All sources that this process follows, each in a supervised task.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use codec::index_part::{Source, Unknown};
use engine::tenant::{ChangeError, Tenants};
use engine::timeline::Timeline;
use engine::wal_target::WalTarget;
use model::{TenantId, TimelineId};
use tokio_util::sync::CancellationToken;

use super::conninfo::{ConnInfo, ConnInfoError};
use super::import::{self, ImportFailure};
use super::receiver::{Receiver, ReceiverState};
use crate::supervisor::{OnFailure, Supervisor};

/// Imports and receivers. Cheap to clone.
#[derive(Clone)]
pub struct Followers {
    inner: Arc<Inner>,
}

struct Inner {
    tenants: Tenants,
    supervisor: Supervisor,
    passfile: PathBuf,
    // Guards the table; held for look-ups and updates only.
    table: Mutex<HashMap<TimelineId, Follower>>,
}

#[derive(Clone)]
struct Follower {
    source: ConnInfo,
    state: Arc<ReceiverState>,
    stop: CancellationToken,
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
    /// It is another cluster than the timeline's.
    #[error("the source is cluster {found}, the timeline's is {expected}")]
    OtherCluster {
        /// Its system identifier.
        found: u64,
        /// The timeline's.
        expected: u64,
    },
}

impl Followers {
    /// Nobody yet. `passfile` may be empty.
    pub fn new(tenants: Tenants, supervisor: Supervisor, passfile: PathBuf) -> Self {
        Followers { inner: Arc::new(Inner { tenants, supervisor, passfile, table: Mutex::default() }) }
    }

    /// The name of our slot on a timeline's source.
    pub fn slot_name(timeline: TimelineId) -> String {
        format!("palimpsest_{timeline}")
    }

    /// What the follower of a timeline does, for people.
    pub fn status(&self, timeline: TimelineId) -> String {
        self.get(timeline).map_or_else(|| "no source".into(), |follower| follower.state.text())
    }

    /// Where a timeline's WAL comes from, without secrets.
    pub fn source(&self, timeline: TimelineId) -> Option<String> {
        self.get(timeline).map(|follower| follower.source.to_string())
    }

    /// How many sources are followed or imported.
    pub fn count(&self) -> usize {
        self.table().len()
    }

    /// Goes on with everything that was followed when the process last ended.
    pub async fn resume(&self) {
        let tenants = &self.inner.tenants;
        for info in tenants.list() {
            let Ok(tenant) = tenants.tenant(info.id.tenant) else { continue };
            for followed in tenant.followed().await {
                let source = match followed.source.conninfo.parse::<ConnInfo>() {
                    Ok(source) => source.or_passfile(&self.inner.passfile),
                    Err(error) => {
                        tracing::error!(timeline = %followed.id, "cannot follow its source: {error}");
                        continue;
                    }
                };
                match followed.timeline {
                    Some(timeline) => self.follow(&timeline, source),
                    None => self.import(info.id.tenant, followed.id, source, None),
                }
            }
        }
    }

    /// Makes a timeline from a source. Answers once that is begun durably; filling it goes on in a task.
    pub async fn create(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        dsn: &str,
    ) -> Result<(), FollowRequestError> {
        let source = dsn.parse::<ConnInfo>()?.or_passfile(&self.inner.passfile);
        if source.password.is_some() {
            tracing::warn!(%timeline, "the source's password is not stored: after a restart it must come from a password file");
        }
        let begun = begin(&self.inner.tenants, tenant, timeline, &source).await?;
        self.import(tenant, timeline, source, Some(begun));
        Ok(())
    }

    /// Makes an existing timeline follow a source, such as a cluster that was restored from it.
    pub async fn attach(&self, timeline: &Timeline, dsn: &str) -> Result<(), FollowRequestError> {
        let source = dsn.parse::<ConnInfo>()?.or_passfile(&self.inner.passfile);
        let (identity, _) = import::survey(&source).await?;
        let expected = timeline.facts().system_identifier;
        if identity.system_identifier != expected {
            return Err(FollowRequestError::OtherCluster { found: identity.system_identifier, expected });
        }
        let stored = Source {
            conninfo: source.to_string(),
            slot: Some(Self::slot_name(timeline.id())),
            unknown: Unknown::new(),
        };
        timeline
            .index()
            .update(|part| {
                if let Some(ours) = &mut part.palimpsest {
                    ours.source = Some(stored);
                }
            })
            .await
            .map_err(ChangeError::from)?;
        timeline.index().claim().validate().await.map_err(ChangeError::from)?;
        self.follow(timeline, source);
        Ok(())
    }

    /// Stops following, as before a deletion. The slot remains on the source.
    pub fn stop(&self, timeline: TimelineId) {
        if let Some(follower) = self.table().remove(&timeline) {
            follower.stop.cancel();
            tracing::warn!(
                %timeline,
                "the slot {} remains on the source and keeps WAL there until it is dropped",
                Self::slot_name(timeline)
            );
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<TimelineId, Follower>> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, timeline: TimelineId) -> Option<Follower> {
        self.table().get(&timeline).cloned()
    }

    fn enter(
        &self,
        timeline: TimelineId,
        source: ConnInfo,
        stop: CancellationToken,
        state: Arc<ReceiverState>,
    ) {
        if let Some(before) = self.table().insert(timeline, Follower { source, state, stop }) {
            before.stop.cancel();
        }
    }

    fn follow(&self, timeline: &Timeline, source: ConnInfo) {
        let state = Arc::new(ReceiverState::default());
        let (timeline, from) = (timeline.clone(), source.clone());
        let id = timeline.id();
        let told = Arc::clone(&state);
        let stop = self.inner.supervisor.start(format!("receiver {id}"), OnFailure::Restart, move |stop| {
            let receiver = receiver_of(&timeline, from.clone(), Arc::clone(&told));
            async move { receiver.follow(stop).await }
        });
        self.enter(id, source, stop, state);
    }

    fn import(&self, tenant: TenantId, id: TimelineId, source: ConnInfo, begun: Option<Begun>) {
        let state = Arc::new(ReceiverState::default());
        let (this, from, told) = (self.clone(), source.clone(), Arc::clone(&state));
        let mut begun = begun;
        let stop = self.inner.supervisor.start(format!("import {id}"), OnFailure::Restart, move |stop| {
            let (this, source, state, begun) = (this.clone(), from.clone(), Arc::clone(&told), begun.take());
            async move {
                let begun = match begun {
                    Some(begun) => begun,
                    None => begin(&this.inner.tenants, tenant, id, &source).await?,
                };
                let slot = Self::slot_name(id);
                let claim = this.inner.tenants.tenant(tenant).map_err(ChangeError::from)?.claim().clone();
                let receiver = |target: WalTarget| Receiver {
                    target,
                    claim: claim.clone(),
                    source: source.clone(),
                    slot: slot.clone(),
                    system_identifier: begun.identity.system_identifier,
                    tli: begun.identity.tli,
                    state: Arc::default(),
                };
                let timeline =
                    import::run(begun.session, &begun.identity, &source, &slot, receiver, &state, stop)
                        .await?;
                this.follow(&timeline, source.clone());
                Ok::<(), ImportFailure>(())
            }
        });
        self.enter(id, source, stop, state);
    }
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
    let plan = import::plan(&identity, checksums, source, &Followers::slot_name(timeline));
    let session = tenants.begin_import(tenant, timeline, plan).await?;
    Ok(Begun { session, identity })
}

fn receiver_of(timeline: &Timeline, source: ConnInfo, state: Arc<ReceiverState>) -> Receiver {
    Receiver {
        target: WalTarget::Open(timeline.clone()),
        claim: timeline.index().claim().clone(),
        source,
        slot: Followers::slot_name(timeline.id()),
        system_identifier: timeline.facts().system_identifier,
        tli: timeline.tli(),
        state,
    }
}
