//! Claiming tenants, opening them, and letting them go.

use std::sync::Arc;
use std::time::Duration;

use model::{Generation, TenantShardId};
use tracing::{info, warn};

use super::config::{self, TenantConfig, TenantConfigError};
use super::{ChangeError, Hold, Mode, Phase, Superseded, Tenant, Tenants};
use crate::claim::{Claim, ClaimedBy, ConfirmError, TakeClaimError, claimed_by};
use crate::error_story::error_story;
use crate::ports::{BucketError, ListRequest};

/// Pause before timelines are looked for again after the bucket did not answer; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often old claims are removed, and how old an owner is that does so.
const A_DAY: Duration = Duration::from_hours(24);

/// How long the tasks of a tenant may take to end that is not flushed, and those of one that another attachment replaces.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// Why tenants could not be attached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AttachError {
    #[error("cannot claim tenant {tenant}")]
    Claim { tenant: TenantShardId, source: TakeClaimError },
    #[error("cannot list the bucket")]
    Bucket(#[from] BucketError),
    #[error("cannot read the configuration of tenant {tenant}")]
    Config { tenant: TenantShardId, source: TenantConfigError },
    #[error("cannot find the timelines of tenant {tenant}")]
    Timelines { tenant: TenantShardId, source: BucketError },
}

/// What an operator wants attached.
#[derive(Clone, Debug)]
pub struct AttachAs {
    /// Which shard of which tenant.
    pub shard: TenantShardId,
    /// As which owner: allocated by the operator, confirmed here.
    pub generation: Generation,
    /// How.
    pub mode: Mode,
    /// What the claim tells others.
    pub by: ClaimedBy,
    /// What the tenant is to do otherwise than the server does; `None` for what it was told before.
    pub config: Option<TenantConfig>,
}

/// Why a generation was not attached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AttachAsError {
    #[error(transparent)]
    Confirm(#[from] ConfirmError),
    #[error(transparent)]
    Config(#[from] TenantConfigError),
    #[error("generation {own} of tenant {tenant} is older than {here}, which is attached here")]
    Older { tenant: TenantShardId, own: Generation, here: Generation },
    #[error("generation {generation} of tenant {tenant} was attached by another attempt")]
    OtherAttempt { tenant: TenantShardId, generation: Generation },
    #[error("another shard of tenant {0} is attached here, which is not offered")]
    OtherShard(TenantShardId),
    #[error("the server is stopping")]
    Stopping,
}

impl Tenants {
    /// Claims every tenant in the bucket and opens its timelines. Meant to be called once, at start.
    pub async fn attach_all(&self) -> Result<(), AttachError> {
        let mut after: Option<String> = None;
        loop {
            let request =
                ListRequest { prefix: "tenants/", after: after.as_deref(), delimiter: true, limit: None };
            let page = self.inner.bucket.list(request).await?;
            for prefix in &page.prefixes {
                let Some(shard) =
                    prefix.strip_prefix("tenants/").and_then(|name| name.trim_end_matches('/').parse().ok())
                else {
                    warn!(%prefix, "not a tenant's prefix, left alone");
                    continue;
                };
                match self.attach(shard).await {
                    Ok(_) => {}
                    Err(AttachError::Claim { source: TakeClaimError::Deleted(_), .. }) => {
                        info!(tenant = %shard, "tenant was deleted, left alone");
                    }
                    Err(error) => return Err(error),
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Claims the next generation of a tenant and opens its timelines, ancestors first: what a process on its own does.
    pub async fn attach(&self, shard: TenantShardId) -> Result<Arc<Tenant>, AttachError> {
        let claim = Claim::take(Arc::clone(&self.inner.bucket), shard)
            .await
            .map_err(|source| AttachError::Claim { tenant: shard, source })?
            .with_clock(Arc::clone(&self.inner.clock));
        info!(tenant = %shard, generation = %claim.generation(), "claimed");
        let config =
            config::load(&claim).await.map_err(|source| AttachError::Config { tenant: shard, source })?;
        let tenant = Arc::new(Tenant::new(claim, Mode::Single, None));
        tenant.go_by(config, &self.inner.policy);
        self.end_when_superseded(&tenant);
        self.open_timelines(&tenant)
            .await
            .map_err(|source| AttachError::Timelines { tenant: shard, source })?;
        tenant.change_hold(|hold| hold.phase = Phase::Active);
        self.put(&tenant);
        self.clean_claims_daily(&tenant);
        Ok(tenant)
    }

    /// Confirms a generation that an operator allocated. Answers once it is claimed; its timelines are opened by and by, at once when somebody asks
    /// for one. The same attempt again changes nothing; a newer generation replaces an older one that is here.
    pub async fn attach_as(&self, wanted: AttachAs) -> Result<Arc<Tenant>, AttachAsError> {
        let AttachAs { shard, generation, mode, by, config } = wanted;
        let _one = self.change_of(shard.tenant).await;
        if self.inner.stop.is_cancelled() {
            return Err(AttachAsError::Stopping);
        }
        if let Ok(here) = self.tenant(shard.tenant) {
            if here.shard() != shard {
                return Err(AttachAsError::OtherShard(shard));
            }
            let own = here.claim().generation();
            if own > generation {
                return Err(AttachAsError::Older { tenant: shard, own: generation, here: own });
            }
            if own == generation {
                return match here.attempt() {
                    Some(attempt) if attempt == by.attempt => Ok(here),
                    _ => Err(AttachAsError::OtherAttempt { tenant: shard, generation }),
                };
            }
            self.let_go(&here, Some(CLOSE_PATIENCE)).await;
        }
        let claim = Claim::confirm(Arc::clone(&self.inner.bucket), shard, generation, &by)
            .await?
            .with_clock(Arc::clone(&self.inner.clock));
        let config = config::settle(&claim, config).await?;
        info!(tenant = %shard, %generation, ?mode, "attached");
        let tenant = Arc::new(Tenant::new(claim, mode, Some(by.attempt)));
        tenant.go_by(config, &self.inner.policy);
        self.hold_as_stale_when_superseded(&tenant);
        self.put(&tenant);
        self.open_soon(&tenant);
        self.clean_claims_daily(&tenant);
        Ok(tenant)
    }

    /// Lets a tenant shard go that is attached in this generation or an older one. With `flush_within`, what is in memory is stored first, for at
    /// most so long. Answers whether everything received is in the bucket; `None` when nothing of the kind is attached.
    pub async fn detach(
        &self,
        shard: TenantShardId,
        generation: Generation,
        flush_within: Option<Duration>,
    ) -> Option<bool> {
        let _one = self.change_of(shard.tenant).await;
        let here = self.tenant(shard.tenant).ok()?;
        if here.shard() != shard || here.claim().generation() > generation {
            return None;
        }
        Some(self.let_go(&here, flush_within).await)
    }

    /// Replaces what a tenant is told to do otherwise than the server does, durably. Its timelines go by it at once.
    pub async fn configure(&self, tenant: &Tenant, config: TenantConfig) -> Result<(), ChangeError> {
        config.check().map_err(ChangeError::Refused)?;
        let _one = tenant.change().await?;
        if tenant.config() == config {
            return Ok(tenant.claim().validate().await?);
        }
        config::store(tenant.claim(), &config).await?;
        tenant.go_by(config, &self.inner.policy);
        Ok(())
    }

    /// Changes how an attached tenant shard is held. A superseded one stays stale.
    pub fn set_mode(&self, tenant: &Tenant, mode: Mode) {
        tenant.change_hold(|hold| {
            if hold.superseded.is_none() {
                hold.mode = mode;
            }
        });
    }

    /// Waits until the timelines of a tenant are open, and has them opened before those of others.
    pub async fn opened(&self, tenant: &Tenant) -> Hold {
        let mut hold = tenant.hold();
        if matches!(hold.borrow().phase, Phase::Loading(_)) {
            tenant.wanted.notify_one();
        }
        let opened = hold.wait_for(|hold| !matches!(hold.phase, Phase::Loading(_))).await;
        opened.map(|hold| hold.clone()).expect("the tenant keeps the sender")
    }

    fn put(&self, tenant: &Arc<Tenant>) {
        let mut tenants = self.inner.tenants.write().expect("no holder panics");
        tenants.insert(tenant.shard().tenant, Arc::clone(tenant));
    }

    async fn let_go(&self, tenant: &Tenant, flush_within: Option<Duration>) -> bool {
        tenant.change_hold(|hold| hold.phase = Phase::Detaching);
        tenant.detached.cancel();
        // No timeline comes to be while the others are closed.
        let _no_other = tenant.changing.lock().await;
        // What a stale owner would store is not read by anybody.
        let flush = flush_within.is_some() && tenant.mode() != Mode::Stale;
        let flushed = tenant.close_timelines(flush, flush_within.unwrap_or(CLOSE_PATIENCE)).await;
        self.inner.tenants.write().expect("no holder panics").remove(&tenant.shard().tenant);
        info!(tenant = %tenant.shard(), generation = %tenant.claim().generation(), flushed, "detached");
        flushed
    }

    fn clean_claims_daily(&self, tenant: &Arc<Tenant>) {
        let (tenant, stop) = (Arc::clone(tenant), self.inner.stop.clone());
        self.inner.tasks.spawn(async move {
            let (claim, detached) = (tenant.claim(), tenant.detached.clone());
            loop {
                tokio::select! {
                    biased;
                    () = detached.cancelled() => return,
                    () = tenant.deleting.cancelled() => return,
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(A_DAY) => {}
                }
                // Before it is open, its own indexes may be missing.
                if tenant.hold().borrow().phase != Phase::Active {
                    continue;
                }
                match claim.clean_older().await {
                    Ok(0) => {}
                    Ok(count) => info!(tenant = %tenant.shard(), count, "removed old claims"),
                    Err(error) => {
                        warn!(tenant = %tenant.shard(), "old claims remain for now: {}", error_story(&error));
                    }
                }
            }
        });
    }

    fn open_soon(&self, tenant: &Arc<Tenant>) {
        let (this, tenant) = (self.clone(), Arc::clone(tenant));
        self.inner.tasks.spawn(async move {
            let detached = tenant.detached.clone();
            tokio::select! {
                biased;
                () = detached.cancelled() => {}
                () = this.inner.stop.cancelled() => {}
                () = this.open_patiently(&tenant) => {}
            }
        });
    }

    async fn open_patiently(&self, tenant: &Arc<Tenant>) {
        let _turn = tokio::select! {
            biased;
            turn = self.inner.opening.acquire() => Some(turn),
            () = tenant.wanted.notified() => None,
        };
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.open_timelines(tenant).await {
            let trouble = error_story(&error);
            warn!(tenant = %tenant.shard(), error = trouble, "cannot find its timelines, tries again in {pause:?}");
            tenant.change_hold(|hold| hold.phase = Phase::Loading(Some(trouble.into())));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        tenant.change_hold(|hold| {
            if matches!(hold.phase, Phase::Loading(_)) {
                hold.phase = Phase::Active;
            }
        });
    }

    fn end_when_superseded(&self, tenant: &Tenant) {
        let claim = tenant.claim().clone();
        let (deleting, detached) = (tenant.deleting.clone(), tenant.detached.clone());
        let token = claim.superseded().clone();
        let (superseded, stop) = (self.inner.superseded.clone(), self.inner.stop.clone());
        let (tenant, generation) = (claim.tenant(), claim.generation());
        self.inner.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = detached.cancelled() => {}
                () = token.cancelled() => {
                    // The claim by which we delete the tenant is above ours.
                    if deleting.is_cancelled() && claim.superseded_by() == Some(Generation::DELETED) {
                        return;
                    }
                    let story = format!("generation {generation} of tenant {tenant} was superseded by a newer owner");
                    superseded.send_replace(Some(story));
                }
            }
        });
    }

    fn hold_as_stale_when_superseded(&self, tenant: &Arc<Tenant>) {
        let (tenant, stop) = (Arc::clone(tenant), self.inner.stop.clone());
        self.inner.tasks.spawn(async move {
            let claim = tenant.claim();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tenant.detached.cancelled() => return,
                () = claim.superseded().cancelled() => {}
            }
            let Some(generation) = claim.superseded_by() else { return };
            warn!(tenant = %tenant.shard(), own = %claim.generation(), newer = %generation, "superseded: held as stale from now on");
            tenant.supersede(generation);
            // Who it is helps people; that it is there is what counts.
            if let Ok(by @ Some(_)) = claimed_by(&**claim.bucket(), claim.tenant(), generation).await {
                tenant.change_hold(|hold| hold.superseded = Some(Superseded { generation, by }));
            }
        });
    }
}
