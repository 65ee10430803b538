//! Bringing the timelines of a claimed tenant back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::TimelineId;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::slots::{Running, Slot};
use super::{ArchivedTimeline, Tenant, Tenants};
use crate::claim::ValidateError;
use crate::error_story::error_story;
use crate::index_keeper::IndexKeeper;
use crate::index_store::LoadIndexError;
use crate::ports::BucketError;
use crate::timeline::{Timeline, TimelineSurroundings, TimelineTasks, open};

impl Tenants {
    pub(super) async fn open_timelines(&self, tenant: &Arc<Tenant>) -> Result<(), BucketError> {
        let mut waiting = Vec::new();
        for timeline in tenant.index_store.timelines().await? {
            if tenant.slot(timeline).is_some() {
                continue; // an attempt before this one came so far
            }
            match tenant.index_store.find(timeline).await {
                // Whoever asked for that asks again, and then it goes on.
                Ok(Some(found)) if found.index.deleted_at.is_some() => tenant.set(timeline, Slot::Deleting),
                Ok(Some(found)) if found.index.is_archived() => {
                    let archived = ArchivedTimeline::of(timeline, &found.index).expect("it is archived");
                    tenant.note_wishes(timeline, Some(archived.wishes(tenant.claim().surely_now())));
                    tenant.set(timeline, Slot::Archived(Arc::new(archived)));
                }
                Ok(Some(found)) => {
                    let index = Arc::new(IndexKeeper::new(tenant.claim().clone(), timeline, found));
                    tenant.note_wishes(timeline, Some(index.wishes().await));
                    waiting.push((timeline, index));
                }
                // One that was deleted only now, as an earlier owner had been asked to, is as little there as one whose tombstone came before the list.
                Ok(None) | Err(LoadIndexError::Buried(_)) => {}
                Err(LoadIndexError::Bucket { source, .. }) => return Err(source),
                Err(error) => {
                    tenant.note_wishes(timeline, None);
                    tenant.set(timeline, Slot::Broken(error_story(&error).into()));
                }
            }
        }
        // Ancestors first; what is left at the end has an ancestor that is not here.
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut later = Vec::new();
            for (timeline, index) in waiting {
                let ancestor = index.ancestor().await.map(|(ancestor, _)| ancestor);
                match ancestor {
                    Some(ancestor) if tenant.slot(ancestor).is_none() => later.push((timeline, index)),
                    _ => self.open_found(tenant, timeline, index, ancestor).await?,
                }
            }
            if later.len() == before {
                for (timeline, _) in later.drain(..) {
                    tenant.set(timeline, Slot::Broken("its ancestor is not in the bucket".into()));
                }
            }
            waiting = later;
        }
        self.settle_detachments(tenant).await;
        self.name_archived(tenant).await;
        Ok(())
    }

    async fn open_found(
        &self,
        tenant: &Arc<Tenant>,
        timeline: TimelineId,
        index: Arc<IndexKeeper>,
        ancestor: Option<TimelineId>,
    ) -> Result<(), BucketError> {
        if index.import_in_progress().await {
            // Nothing of an unfinished import can be read; whoever asked for it asks again, and what it left is collected then.
            tenant.set(timeline, Slot::Importing { index: Some(index), running: false });
            return Ok(());
        }
        let reason = match ancestor.map(|ancestor| tenant.timeline(ancestor)).transpose() {
            Err(error) => error.to_string(),
            Ok(parent) => {
                let points = tenant.known_points(timeline);
                match open(&self.surroundings(tenant), index, parent.as_ref(), points).await {
                    Ok((opened, tasks)) => {
                        info!(%timeline, last = %opened.last_record_lsn(), "timeline is open");
                        self.watch_tasks(tenant, &opened, tasks);
                        tenant.set(timeline, Slot::Open(opened));
                        return Ok(());
                    }
                    // Nothing is wrong with it. Whoever opens the tenant tries again, or gives it up.
                    Err(error) if error.is_away() => {
                        let path = format!("{}/timelines/{timeline}", tenant.shard());
                        return Err(BucketError::Unavailable {
                            operation: "open",
                            path,
                            source: error.into(),
                        });
                    }
                    // What seems to be missing may be what a newer owner deleted.
                    Err(error) => match tenant.claim().validate().await {
                        Err(superseded @ ValidateError::Superseded { .. }) => superseded.to_string(),
                        _ => error_story(&error),
                    },
                }
            }
        };
        error!(%timeline, %reason, "timeline cannot be opened");
        tenant.set(timeline, Slot::Broken(reason.into()));
        Ok(())
    }

    pub(crate) fn surroundings(&self, tenant: &Tenant) -> TimelineSurroundings {
        TimelineSurroundings {
            bucket: Arc::clone(&self.inner.bucket),
            claim: tenant.claim().clone(),
            cache: Arc::clone(&self.inner.cache),
            budget: Arc::clone(&self.inner.budget),
            policy: self.inner.policy.clone(),
            freeze_bytes: tenant.freeze_bytes(),
            reads: Arc::clone(&self.inner.reads),
        }
    }

    /// Sees to it that the end of a timeline's tasks is noticed.
    pub(super) fn watch_tasks(&self, tenant: &Arc<Tenant>, open: &Timeline, mut tasks: TimelineTasks) {
        let (tenant, timeline) = (Arc::clone(tenant), open.id());
        let ended = CancellationToken::new();
        let failed = Arc::new(AtomicBool::new(false));
        let running = Running { timeline: open.clone(), ended: ended.clone(), failed: Arc::clone(&failed) };
        tenant.now_running(running);
        self.inner.tasks.spawn(async move {
            let _at_end = ended.drop_guard();
            while let Some(ended) = tasks.join_next().await {
                let trouble = match ended {
                    Ok((_, Ok(()))) => None,
                    Ok((task, Err(error))) => Some(format!("{task}: {error}")),
                    Err(panic) => Some(format!("a task of the timeline panicked: {panic}")),
                };
                let Some(trouble) = trouble else { continue };
                failed.store(true, Ordering::Relaxed);
                if tenant.claim().superseded().is_cancelled() {
                    warn!(%timeline, error = %trouble, "a task of a superseded owner ended");
                } else if !tenant.is_stopped(timeline) {
                    error!(%timeline, error = %trouble, "timeline stopped");
                    if let Ok(open) = tenant.timeline(timeline) {
                        open.stop();
                    }
                    tenant.set(timeline, Slot::Broken(trouble.into()));
                }
            }
            tenant.no_longer_running(timeline);
        });
    }
}
