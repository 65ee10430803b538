//! From a time to an LSN: commit times lie in the versions of commit-log pages, and each layer knows its oldest and newest.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use codec::checkpoint::CheckPoint;
use codec::slru;
use codec::value::{Change, Value};
use model::{Key, KeyRange, Lsn, PgTimestamp, SlruKind};
use serde::Serialize;

use crate::as_of::ReadError;
use crate::layer_map::MapLayer as _;
use crate::layer_read::Layer;
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
        let start = self.kept_from();
        let mut snapshot = self.view().load_full();
        let end = snapshot.last;
        let mut bound = end;
        let mut first_later: Option<Lsn> = None;
        let mut last_before: Option<Lsn> = None;
        // In the base, and not as of `time`.
        let mut too_late = false;
        let from = self.readable_from();
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
                    .partition(|(lsn, _)| *lsn >= from);
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
        // Of what was collected up to `start`, a later commit than those that are left may be in images only.
        let is_below = last_before.is_none_or(|lsn| lsn < start);
        let knows_the_base = is_below && !too_late && self.base_is_older_than(time).await?;
        Ok(match (last_before, first_later) {
            (_, Some(_)) if knows_the_base => LsnAt::Present(start),
            (_, None) if knows_the_base => LsnAt::Future(end),
            (Some(_), None) => LsnAt::Future(end),
            (Some(lsn), Some(_)) if lsn < start => LsnAt::Past(start),
            (Some(lsn), Some(_)) => LsnAt::Present(lsn),
            (None, Some(_)) => LsnAt::Past(start),
            (None, None) => LsnAt::NoData(end),
        })
    }

    /// The newest commit of the timeline itself, by what its tail and the names of its layers tell.
    pub fn newest_commit(&self) -> Option<PgTimestamp> {
        let snapshot = self.view().load_full();
        let newest = places(&snapshot).iter().filter_map(Place::commit_times).map(|(_, newest)| newest).max();
        newest.max(self.info().newest_commit)
    }

    /// The last commit of the timeline itself up to `time`, looked for in no more than one place: what is wholly later is passed over.
    pub(crate) async fn last_commit_at(&self, time: PgTimestamp) -> Result<Option<Lsn>, ReadError> {
        let snapshot = self.view().load_full();
        for place in places(&snapshot) {
            if place.commit_times().is_none_or(|(oldest, _)| oldest > time) {
                continue;
            }
            let commits = place.commits().await?;
            let first_later = commits.iter().filter(|(_, at)| *at > time).map(|(lsn, _)| *lsn).min();
            let limit = first_later.unwrap_or(Lsn::MAX);
            let last = commits.iter().map(|(lsn, _)| *lsn).filter(|lsn| *lsn < limit).max();
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// The last commit of the timeline itself up to `lsn`. What is wholly above is passed over.
    pub(crate) async fn last_commit_up_to(&self, lsn: Lsn) -> Result<Option<Lsn>, ReadError> {
        let snapshot = self.view().load_full();
        for place in places(&snapshot) {
            let is_above = match &place {
                Place::Tail(_) => false,
                Place::Layers(layers) => layers.iter().all(|layer| layer.name().lsns().start > lsn),
            };
            if is_above || place.commit_times().is_none() {
                continue;
            }
            let commits = place.commits().await?;
            let last = commits.iter().map(|(at, _)| *at).filter(|at| *at <= lsn).max();
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// From here on every LSN can be read, those before a branch point included, which are read from ancestors that may keep less.
    fn kept_from(&self) -> Lsn {
        let mut snapshot = self.view().load_full();
        let (mut from, mut bound) = (self.readable_from(), Lsn::MAX);
        loop {
            from = from.max(snapshot.retention.cutoff.min(bound));
            let Some(ancestor) = &snapshot.ancestor else { return from };
            bound = bound.min(ancestor.lsn);
            let next = ancestor.view.load_full();
            snapshot = next;
        }
    }

    /// Whether what can be read first is as of a time up to `time`: it began with a checkpoint before, as commits before that checkpoint are older than it and
    /// those since are in the history. Where history was collected, a page of the commit log tells when its last commit was.
    async fn base_is_older_than(&self, time: PgTimestamp) -> Result<bool, ReadError> {
        loop {
            let start = self.kept_from();
            match self.at_is_older_than(start, time).await {
                // Where an ancestor's cutoff moved on in the meantime, history begins later now.
                Err(ReadError::BehindCutoff { .. }) if self.kept_from() > start => {}
                other => return other,
            }
        }
    }

    async fn at_is_older_than(&self, start: Lsn, time: PgTimestamp) -> Result<bool, ReadError> {
        let view = self.view().load_full();
        let stored = view.get(Key::CHECKPOINT, start).await?;
        let Some(checkpoint) = stored.and_then(|bytes| CheckPoint::decode(self.facts().pg, &bytes).ok())
        else {
            return Ok(false);
        };
        let newest = (checkpoint.next_xid as u32).wrapping_sub(1) / slru::CLOG_PER_PAGE;
        for page in [newest, newest.wrapping_sub(1)] {
            let at = slru::place(page);
            let page = view.get(Key::slru_page(SlruKind::Clog, at.segment, at.page), start).await?;
            if let Some(last) = page.and_then(|page| redo::slru::last_commit(&page)) {
                return Ok(last <= time);
            }
        }
        // Its time is in whole seconds, cut off.
        let seconds = u64::try_from(checkpoint.time).ok();
        let began =
            seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + ROUNDED));
        Ok(began.is_some_and(|began| PgTimestamp::from_system_time(began) <= time))
    }
}

/// Where commits are.
enum Place<'a> {
    Tail(&'a Tail),
    /// Layers whose LSNs overlap: pieces of what was one stretch of history. They share no key, so their order says nothing.
    Layers(Vec<&'a Arc<Layer>>),
}

/// Newest first.
fn places(snapshot: &Snapshot) -> Vec<Place<'_>> {
    let layers = snapshot.layers.all().filter(|layer| layer.is_delta() && layer.commit_times().is_some());
    let mut layers: Vec<&Arc<Layer>> = layers.collect();
    layers.sort_by_key(|layer| std::cmp::Reverse((layer.name().lsns().end, layer.name().lsns().start)));
    let mut stretches: Vec<Vec<&Arc<Layer>>> = Vec::new();
    for layer in layers {
        let overlaps = |newer: &&Arc<Layer>| newer.name().lsns().start < layer.name().lsns().end;
        match stretches.last_mut() {
            Some(stretch) if stretch.iter().any(overlaps) => stretch.push(layer),
            _ => stretches.push(vec![layer]),
        }
    }
    std::iter::once(&snapshot.open)
        .chain(snapshot.frozen.iter().rev())
        .map(Place::Tail)
        .chain(stretches.into_iter().map(Place::Layers))
        .collect()
}

impl Place<'_> {
    fn commit_times(&self) -> Option<(PgTimestamp, PgTimestamp)> {
        match self {
            Place::Tail(tail) => tail.commit_times(),
            Place::Layers(layers) => {
                let times = layers.iter().filter_map(|layer| layer.commit_times());
                times.reduce(|(oldest, newest), (old, new)| (oldest.min(old), newest.max(new)))
            }
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
            Place::Layers(layers) => {
                for layer in layers {
                    commits.extend(layer.versions_of(&keys).await?.iter().filter_map(commit_of));
                }
            }
        }
        Ok(commits)
    }
}

/// The commit that a version of a commit-log page notes. A page that was made whole by compaction carries the time of the last commit on it.
pub(crate) fn commit_of(version: &Version) -> Option<(Lsn, PgTimestamp)> {
    match Value::decode(&version.value) {
        Ok(Value::Change(Change::Committed { time, .. })) => Some((version.lsn, time)),
        Ok(Value::Image(page)) => Some((version.lsn, redo::slru::last_commit(page)?)),
        _ => None,
    }
}
