//! From a time to an LSN: commit times lie in the versions of commit-log pages, and each layer knows its oldest and newest.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use codec::checkpoint::CheckPoint;
use codec::value::{Change, Value};
use model::{Key, KeyRange, Lsn, PgTimestamp, SlruKind};
use serde::Serialize;

use crate::as_of::ReadError;
use crate::read::Snapshot;
use crate::tail::{Tail, Version};
use crate::timeline::Timeline;

/// Where a time lies in a timeline's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "lsn", rename_all = "lowercase")]
pub enum LsnAt {
    /// There are commits after it, and commits or a base before it: everything up to this LSN was committed by then, what follows was not.
    Present(Lsn),
    /// No commit is newer: the end of the timeline.
    Future(Lsn),
    /// All commits are newer, and perhaps the base, too: the beginning.
    Past(Lsn),
    /// There are no commits, and the base is not known to be older.
    NoData(Lsn),
}

impl LsnAt {
    /// The LSN, whatever it means.
    pub fn lsn(self) -> Lsn {
        match self {
            LsnAt::Present(lsn) | LsnAt::Future(lsn) | LsnAt::Past(lsn) | LsnAt::NoData(lsn) => lsn,
        }
    }
}

/// What a checkpoint's time lacks at most.
const ROUNDED: Duration = Duration::from_secs(1);

/// Commits of one place, in no order.
type Commits = Vec<(Lsn, PgTimestamp)>;

impl Timeline {
    /// The LSN as of `time`: just before the first commit after it, as Postgres' own recovery to a time would stop. Before the first commit of the
    /// history, too, if the base is known to be older.
    pub async fn lsn_at(&self, time: PgTimestamp) -> Result<LsnAt, ReadError> {
        let start = self.readable_from();
        let mut snapshot = self.view().load_full();
        let end = snapshot.last;
        let mut bound = end;
        let mut first_later: Option<Lsn> = None;
        let mut last_before: Option<Lsn> = None;
        // In the base, and not as of `time`.
        let mut too_late = false;
        loop {
            // Newest first: as long as whole places are later than `time`, older ones may hold the first later commit.
            for place in places(&snapshot) {
                if place.commit_times().is_none() {
                    continue;
                }
                let (commits, of_base): (Commits, Commits) = place
                    .commits()
                    .await?
                    .into_iter()
                    .filter(|(lsn, _)| *lsn <= bound)
                    .partition(|(lsn, _)| *lsn >= start);
                too_late |= of_base.iter().any(|(_, at)| *at > time);
                let later = commits.iter().filter(|(_, at)| *at > time).map(|(lsn, _)| *lsn).min();
                first_later = later.or(first_later);
                let limit = first_later.unwrap_or(Lsn::MAX);
                last_before = commits.iter().map(|(lsn, _)| *lsn).filter(|lsn| *lsn < limit).max();
                if last_before.is_some() {
                    break;
                }
            }
            if last_before.is_some() {
                break;
            }
            match &snapshot.ancestor {
                Some(ancestor) => {
                    bound = bound.min(ancestor.lsn);
                    snapshot = ancestor.view.load_full();
                }
                None => break,
            }
        }
        let knows_the_base = last_before.is_none() && !too_late && self.base_is_older_than(time).await?;
        Ok(match (last_before, first_later) {
            (None, Some(_)) if knows_the_base => LsnAt::Present(start),
            (None, None) if knows_the_base => LsnAt::Future(end),
            (Some(_), None) => LsnAt::Future(end),
            (Some(lsn), Some(_)) => LsnAt::Present(lsn),
            (None, Some(_)) => LsnAt::Past(start),
            (None, None) => LsnAt::NoData(end),
        })
    }

    /// Whether what can be read first began with a checkpoint before `time`. Commits before that checkpoint are older than it, and those since are
    /// in the history.
    async fn base_is_older_than(&self, time: PgTimestamp) -> Result<bool, ReadError> {
        let stored = self.view().load_full().get(Key::CHECKPOINT, self.readable_from()).await?;
        let checkpoint = stored.and_then(|bytes| CheckPoint::decode(self.facts().pg, &bytes).ok());
        // Its time is in whole seconds, cut off.
        let seconds = checkpoint.and_then(|checkpoint| u64::try_from(checkpoint.time).ok());
        let began =
            seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + ROUNDED));
        Ok(began.is_some_and(|began| PgTimestamp::from_system_time(began) <= time))
    }
}

/// Where commits are.
enum Place<'a> {
    Tail(&'a Tail),
    Layer(&'a Arc<crate::layer_read::Layer>),
}

/// Newest first.
fn places(snapshot: &Snapshot) -> impl Iterator<Item = Place<'_>> {
    std::iter::once(&snapshot.open)
        .chain(snapshot.frozen.iter().rev())
        .map(Place::Tail)
        .chain(snapshot.layers.deltas().iter().map(Place::Layer))
}

impl Place<'_> {
    fn commit_times(&self) -> Option<(PgTimestamp, PgTimestamp)> {
        match self {
            Place::Tail(tail) => tail.commit_times(),
            Place::Layer(layer) => layer.commit_times(),
        }
    }

    async fn commits(&self) -> Result<Commits, ReadError> {
        let keys: KeyRange = Key::slru_range(SlruKind::Clog);
        let mut commits = Commits::new();
        match self {
            Place::Tail(tail) => {
                for batch in tail.batches() {
                    batch.range(&keys).for_each(|version| commits.extend(commit_of(&version)));
                }
            }
            Place::Layer(layer) => {
                commits.extend(layer.versions_of(&keys).await?.iter().filter_map(commit_of));
            }
        }
        Ok(commits)
    }
}

fn commit_of(version: &Version) -> Option<(Lsn, PgTimestamp)> {
    match Value::decode(&version.value) {
        Ok(Value::Change(Change::Committed { time, .. })) => Some((version.lsn, time)),
        _ => None,
    }
}
