//! Collection: the cutoff moves on, and from then on what only older LSNs need may go.
//!
//! The cutoff is where history of the wanted length begins: by the times of commits and by bytes of WAL, whichever keeps more. It moves in two steps
//! under the lock that creating branches takes, too. First the index in the bucket says it, in one change with a look at leases and names, so that
//! neither overlooks the other; then reads go by it, together with the points below it that stay. Only then does compaction rewrite or drop anything.
//!
//! Time comes from the source, too: a local clock that is ahead collects nothing that the newest commit does not make old.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{Lsn, PgTimestamp};
use tracing::{debug, info};

use crate::as_of::ReadError;
use crate::index_keeper::{Changed, wishes_of};
use crate::index_store::PutIndexError;
use crate::retention::Retention;
use crate::tenant::{ChangeError, Mode, Tenant, TimelineView};
use crate::timeline::Timeline;

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepHistory {
    /// Of commits this young; zero: time is not looked at.
    pub interval: Duration,
    /// So many bytes of WAL.
    pub bytes: u64,
}

impl Default for KeepHistory {
    fn default() -> Self {
        KeepHistory { interval: Duration::from_hours(7 * 24), bytes: 64 << 20 }
    }
}

/// Where the cutoff would be, from where it could be by time and by bytes. `None`: where it is.
///
/// Whichever keeps more counts. It never goes back, never beyond what is in layers, nor before where the timeline begins.
pub fn next_cutoff(
    now: Lsn,
    by_time: Option<Lsn>,
    last: Lsn,
    durable: Lsn,
    begins: Lsn,
    bytes: u64,
) -> Option<Lsn> {
    let by_bytes = Lsn(last.0.saturating_sub(bytes));
    let next = by_time?.min(by_bytes).min(durable);
    (next > now.max(begins)).then_some(next)
}

impl Tenant {
    /// Moves the cutoff of a timeline on and has reads go by it, and by the points that are to stay below it now. Answers what can be read.
    ///
    /// Refused while something of the tenant says that nothing may be collected, or while it is not known what other timelines read of this one.
    pub async fn move_cutoff(
        &self,
        timeline: &Timeline,
        keep: KeepHistory,
        now: SystemTime,
    ) -> Result<Arc<Retention>, ChangeError> {
        let _one = self.change().await?;
        if self.mode() == Mode::Multi {
            return Err(ChangeError::Multi(self.shard()));
        }
        self.refresh_wishes().await;
        self.check_unblocked().await?;
        let points = self.kept_points(timeline.id())?;
        let before = timeline.retention();
        let by_time = timeline.time_cutoff(keep.interval, now).await?;
        let (last, durable) = (timeline.last_record_lsn(), timeline.disk_consistent_lsn());
        let facts = timeline.facts();
        let begins = facts.readable_from.max(timeline.ancestor().map_or(Lsn::INVALID, |(_, lsn)| lsn));
        let next = match next_cutoff(before.cutoff, by_time, last, durable, begins, keep.bytes) {
            // Where so many bytes end, no record need do so; and whoever asks for the oldest moment gets a place where history may branch.
            Some(next) => {
                timeline.last_commit_up_to(next).await?.filter(|commit| *commit > before.cutoff.max(begins))
            }
            None => None,
        };
        let cutoff = next.map_or(before.cutoff, |next| next.max(before.cutoff));
        let mut retention = self.record(timeline, &before, cutoff, points).await?;
        self.publish(timeline, &before, &retention).await?;
        // A descendant that leased an LSN of its ancestor's looks at what the ancestor keeps *after* its lease is durable; we look at leases *after* saying
        // what is kept. So one of the two sees the other.
        self.refresh_wishes().await;
        let mut late = self.kept_points(timeline.id())?;
        late.extend(&retention.points);
        if late.iter().any(|point| before.keeps(*point) && !retention.keeps(*point)) {
            let with_late = self.record(timeline, &before, cutoff, late).await?;
            self.publish(timeline, &retention, &with_late).await?;
            retention = with_late;
        }
        Ok(retention)
    }

    /// Says in the index what is kept from now on, in one change with a look at leases and names. Of these points only those that were kept before can be:
    /// what others need may be gone, and stays so for later owners, too, whatever lands in the bucket late.
    async fn record(
        &self,
        timeline: &Timeline,
        before: &Retention,
        cutoff: Lsn,
        points: BTreeSet<Lsn>,
    ) -> Result<Arc<Retention>, ChangeError> {
        let mut retention = before.clone();
        timeline
            .index()
            .change(|part| {
                let points = points.into_iter().chain(wishes_of(part).lsns);
                retention =
                    Retention::new(before.segment, cutoff, points.filter(|point| before.keeps(*point)));
                if retention == *before {
                    return Ok::<_, PutIndexError>(Changed::No);
                }
                part.update_metadata(|metadata| {
                    metadata.latest_gc_cutoff_lsn = metadata.latest_gc_cutoff_lsn.max(cutoff);
                });
                if let Some(ours) = &mut part.palimpsest {
                    ours.kept_lsns = Some(retention.points.clone());
                }
                Ok(Changed::Yes)
            })
            .await?;
        if retention != *before {
            self.claim().validate().await?;
            info!(timeline = %timeline.id(), %cutoff, from = %before.cutoff, points = retention.points.len(), "other history may go");
        }
        Ok(Arc::new(retention))
    }

    async fn publish(
        &self,
        timeline: &Timeline,
        before: &Retention,
        now: &Arc<Retention>,
    ) -> Result<(), ChangeError> {
        if **now == *before {
            return Ok(());
        }
        debug!(timeline = %timeline.id(), cutoff = %now.cutoff, points = now.points.len(), "what can be read");
        timeline.retain(Arc::clone(now)).await.map_err(|_| ReadError::Stopping)?;
        Ok(())
    }

    /// Whether anything of a timeline may be collected: nothing of the tenant says no, and what others read of it is known.
    pub(crate) async fn may_collect(&self, timeline: &Timeline) -> bool {
        self.check_unblocked().await.is_ok() && self.kept_points(timeline.id()).is_ok()
    }

    /// Nothing is collected while an index of the tenant says so.
    async fn check_unblocked(&self) -> Result<(), ChangeError> {
        for (id, view) in self.views() {
            if let TimelineView::Open(open) = view
                && let Some(blocking) = &open.index().part().await.gc_blocking
            {
                return Err(ChangeError::Refused(format!(
                    "collection is blocked by timeline {id}: {}",
                    blocking.reasons.join(", ")
                )));
            }
        }
        Ok(())
    }
}

impl Timeline {
    /// Up to where history is older than `interval`: the last commit that is. `None` when no commit is known to be.
    async fn time_cutoff(&self, interval: Duration, now: SystemTime) -> Result<Option<Lsn>, ReadError> {
        if interval.is_zero() {
            return Ok(Some(self.last_record_lsn()));
        }
        let Some(newest) = self.newest_commit() else { return Ok(None) };
        // A clock that is ahead makes nothing old; one that is behind keeps more.
        let now = PgTimestamp::from_system_time(now).min(newest.max(self.source_time().unwrap_or(newest)));
        let micros = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX);
        self.last_commit_at(PgTimestamp(now.0.saturating_sub(micros))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cutoff_keeps_what_either_time_or_bytes_want_and_never_goes_back() {
        let next = |now, by_time: Option<u64>, last, durable| {
            next_cutoff(Lsn(now), by_time.map(Lsn), Lsn(last), Lsn(durable), Lsn(100), 50).map(|lsn| lsn.0)
        };
        assert_eq!(next(100, Some(300), 400, 400), Some(300));
        assert_eq!(next(100, Some(390), 400, 400), Some(350), "bytes keep more");
        assert_eq!(next(100, Some(390), 400, 320), Some(320), "only what is in layers can go");
        assert_eq!(next(320, Some(300), 400, 400), None);
        assert_eq!(next(100, None, 400, 400), None, "no commit is known to be old");
        assert_eq!(next(8, Some(90), 400, 400), None, "history begins later");
        assert_eq!(next(8, Some(90), 40, 40), None);
    }
}
