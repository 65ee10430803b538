//! What is asked of a process, and what becomes of the answers.

use std::sync::Arc;
use std::time::Duration;

use engine::as_of::ReadError;
use engine::tenant::{BranchPoint, ChangeError, NotFound};
use engine::timeline::Timeline;
use engine::timeline::lease::{LeaseError, OutOfHistory};
use engine::timeline::named::NameError;
use model::{Lsn, PgTimestamp, TimelineId};
use tokio::time::Instant;

use crate::check::{Reader, story};
use crate::cluster::SEGMENT;
use crate::dice::Dice;
use crate::ledger::{Name, Sure, shard};
use crate::process::Process;
use crate::run::{MOST_LINES, Run};
use crate::scenario::Point;

/// What is read.
#[derive(Clone, Copy)]
pub enum Reading {
    /// So many pages and sizes.
    Some(u64),
    /// Times.
    Times,
}

impl Run {
    pub(crate) fn branch(self: &Arc<Self>, process: &Arc<Process>, parent: usize, point: Point) {
        let Some(theirs) = Self::timeline(process, parent, &self.ledger) else { return };
        if self.ledger.count() >= MOST_LINES || self.ledger.lines()[parent].cluster.is_none() {
            return;
        }
        self.world.did("branch");
        let last = theirs.last_record_lsn();
        let (point, wanted) = {
            let lines = self.ledger.lines();
            let Some(cluster) = &lines[parent].cluster else { return };
            let history = &cluster.history;
            let part = |part: u16| {
                let base = history.base;
                history.record_end_at(Lsn(base.0 + last.since(base) * u64::from(part) / 1000))
            };
            match point {
                Point::Tip => (BranchPoint::Tip, None),
                Point::Lsn(at) => (BranchPoint::Lsn(part(at)), Some(part(at))),
                Point::Time(at) => {
                    let time = history
                        .commits
                        .get(history.commits.len() * usize::from(at) / 1001)
                        .map(|(_, at)| *at);
                    (BranchPoint::Time(time.unwrap_or(PgTimestamp(1 << 40))), None)
                }
            }
        };
        let (line, id) = self.ledger.ask_for_branch(parent);
        let parent_id = self.ledger.lines()[parent].id;
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            match process.tenants.branch(shard().tenant, id, parent_id, point).await {
                Ok(timeline) => {
                    let at = timeline.ancestor().map(|(_, at)| at);
                    if let (Some(wanted), Some(at)) = (wanted, at)
                        && at != wanted
                    {
                        this.world
                            .violate(|| format!("line {line} was asked for at {wanted}, and begins at {at}"));
                    }
                    if process.promised("branch", asked) {
                        this.world.tell(|| format!("line {line} was promised, from line {parent} at {at:?}"));
                        process.follow(line, timeline);
                        this.ledger.lines()[line].made = Sure::Yes;
                    }
                }
                Err(error) => {
                    this.world.tell(|| format!("line {line} was not promised: {}", story(&error)));
                    let is_wrong = match &error {
                        ChangeError::Refused(_) => wanted.is_some(),
                        ChangeError::Read(ReadError::BehindCutoff { asked, .. }) => {
                            this.must_keep(parent, *asked)
                        }
                        ChangeError::Conflict(_) | ChangeError::Buried(_) => true,
                        _ => false,
                    };
                    if is_wrong && process.is_alive() {
                        this.world.violate(|| format!("line {line} was refused: {}", story(&error)));
                    }
                }
            }
        });
    }

    pub(crate) fn delete(self: &Arc<Self>, process: &Arc<Process>, line: usize) {
        if line == 0 {
            return; // all else branches from it
        }
        self.world.did("delete");
        let id = self.ledger.lines()[line].id;
        let (before, asked_for) = {
            let line = &mut self.ledger.lines()[line];
            let before = line.deleted;
            line.deleted = if before == Sure::Yes { Sure::Yes } else { Sure::Maybe };
            line.deletions += 1;
            (before, line.deletions)
        };
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            match process.tenants.delete_timeline(shard().tenant, id, async {}).await {
                Ok(()) => {
                    if process.promised("deletion", asked) {
                        this.world.tell(|| format!("line {line} was deleted"));
                        this.ledger.lines()[line].deleted = Sure::Yes;
                    }
                }
                Err(error) => {
                    this.world.tell(|| format!("line {line} was not deleted: {}", story(&error)));
                    // Nothing was begun: it stays as it was, if nobody else asked.
                    let was_refused = matches!(
                        error,
                        ChangeError::HasChildren(..)
                            | ChangeError::NotFound(NotFound::Tenant(_) | NotFound::Loading(_))
                            | ChangeError::Stale(_)
                    );
                    let mut lines = this.ledger.lines();
                    if was_refused {
                        let is_only_one = before == Sure::No && lines[line].deletions == asked_for;
                        if is_only_one && !lines[line].deletion_begun {
                            lines[line].deleted = Sure::No;
                        }
                    } else {
                        lines[line].deletion_begun = true;
                    }
                }
            }
        });
    }

    /// A name that was deleted is never used again.
    pub(crate) fn revive(self: &Arc<Self>, process: &Arc<Process>, line: usize) {
        let (id, parent) = {
            let lines = self.ledger.lines();
            let Some(parent) = lines[line].born_of.filter(|_| lines[line].deleted == Sure::Yes) else {
                return;
            };
            (lines[line].id, lines[parent].id)
        };
        self.world.did("ask for what was deleted");
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        process.clone().spawn(async move {
            let again = process.tenants.branch(shard().tenant, id, parent, BranchPoint::Tip).await;
            if again.is_ok() && process.is_alive() {
                this.world.violate(|| format!("line {line} was deleted, and was made again"));
            }
        });
    }

    pub(crate) fn lease(self: &Arc<Self>, process: &Arc<Process>, line: usize, part: u16, length: Duration) {
        let Some(timeline) = Self::timeline(process, line, &self.ledger) else { return };
        let Some(lsn) = self.part_of(&timeline, line, part) else { return };
        self.world.did("lease");
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            let now = this.world.time_of(process.id);
            match timeline.lease_lsn(lsn, length, now).await {
                Ok(until) => {
                    if process.promised("lease", asked) {
                        let lsn = lsn.normalized(SEGMENT);
                        this.ledger.lines()[line].leases.push((lsn, until));
                    }
                }
                Err(LeaseError::OutOfHistory(OutOfHistory::TooOld { .. })) => {
                    if this.must_keep(line, lsn) && process.is_alive() {
                        this.world.violate(|| format!("{lsn} of line {line} is too old to be leased"));
                    }
                }
                Err(LeaseError::OutOfHistory(OutOfHistory::Future { .. }) | LeaseError::NoPostgres) => {
                    this.world.violate(|| format!("{lsn} of line {line} was not leased"));
                }
                Err(_) => {}
            }
        });
    }

    /// Where a record ends, so many thousandths into a timeline's history.
    fn part_of(&self, timeline: &Timeline, line: usize, part: u16) -> Option<Lsn> {
        let base = timeline.readable_from();
        let lsn = Lsn(base.0 + timeline.last_record_lsn().since(base) * u64::from(part) / 1000);
        Some(self.ledger.lines()[line].cluster.as_ref()?.history.record_end_at(lsn))
    }

    pub(crate) fn archive(self: &Arc<Self>, process: &Arc<Process>, line: usize) {
        self.world.did("archive");
        let (id, question) = self.ask_to_archive(process, line);
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            let archived = process.tenants.archive_timeline(shard().tenant, id, async |_| None).await;
            if let Err(error) = &archived {
                this.world.tell(|| format!("line {line} was not archived: {}", story(error)));
            }
            let is_promised = archived.is_ok() && process.promised("archiving", asked);
            this.archiving_answered(&process, line, question, is_promised.then_some(Sure::Yes));
        });
    }

    pub(crate) fn unarchive(self: &Arc<Self>, process: &Arc<Process>, line: usize) {
        self.world.did("unarchive");
        let (id, question) = self.ask_to_archive(process, line);
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            let opened = process.tenants.unarchive_timeline(shard().tenant, id).await;
            let mut is_promised = false;
            match opened {
                Ok(timeline) => {
                    is_promised = process.promised("unarchiving", asked);
                    if is_promised {
                        process.follow(line, timeline);
                    }
                }
                Err(error) => {
                    this.world.tell(|| format!("line {line} was not unarchived: {}", story(&error)));
                }
            }
            this.archiving_answered(&process, line, question, is_promised.then_some(Sure::No));
        });
    }

    /// What is known is what was promised, if nobody else was asked meanwhile.
    fn archiving_answered(&self, process: &Process, line: usize, question: u64, promised: Option<Sure>) {
        if process.is_alive() {
            let line = &mut self.ledger.lines()[line];
            let is_only_one = line.archivings.answered(process.id, question);
            if let Some(promised) = promised.filter(|_| is_only_one) {
                line.archived = promised;
            }
        }
    }

    fn ask_to_archive(&self, process: &Process, line: usize) -> (TimelineId, u64) {
        let line = &mut self.ledger.lines()[line];
        line.archived = Sure::Maybe;
        (line.id, line.archivings.ask(process.id))
    }

    pub(crate) fn detach(self: &Arc<Self>, process: &Arc<Process>, line: usize) {
        self.world.did("detach");
        let id = self.ledger.lines()[line].id;
        let question = self.ledger.ask_to_detach(line, process.id);
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            match process.tenants.detach_ancestor(shard().tenant, id).await {
                Ok(moved) if process.promised("detachment", asked) => {
                    this.world.tell(|| format!("line {line} stands alone, with {moved:?}"));
                    this.ledger.stands_alone(line, this.settings.keep(), this.world.time());
                    for sibling in moved.iter().filter_map(|id| this.ledger.number_of(*id)) {
                        this.ledger.hangs_on(sibling, line);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    this.world.tell(|| format!("line {line} was not detached: {}", story(&error)));
                    if matches!(error, ChangeError::NoAncestor(_))
                        && this.ledger.lines()[line].born_of.is_some()
                        && process.is_alive()
                    {
                        this.world.violate(|| format!("line {line} is said never to have had an ancestor"));
                    }
                }
            }
            if process.is_alive() {
                this.ledger.lines()[line].detachings.answered(process.id, question);
            }
        });
    }

    pub(crate) fn name(
        self: &Arc<Self>,
        process: &Arc<Process>,
        line: usize,
        part: u16,
        length: Option<Duration>,
    ) {
        let Some(timeline) = Self::timeline(process, line, &self.ledger) else { return };
        let Some(mut lsn) = self.part_of(&timeline, line, part) else { return };
        self.world.did("name");
        let name = {
            let line = &mut self.ledger.lines()[line];
            let known = line.names.iter_mut().next_back().filter(|(_, known)| known.forgotten == Sure::No);
            if let Some((name, known)) = known.filter(|_| part.is_multiple_of(4)) {
                lsn = known.lsn;
                known.prolonged = true;
                name.clone()
            } else {
                line.names_asked += 1;
                format!("name-{:04}", line.names_asked)
            }
        };
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            let now = this.world.time_of(process.id);
            match timeline.name_lsn(&name, lsn, length, now).await {
                Ok(named) => {
                    if process.promised("name", asked) {
                        let until = named.valid_until.map(|until| until.to_system_time());
                        let lsn = lsn.normalized(SEGMENT);
                        let given = Name { lsn, until, forgotten: Sure::No, prolonged: false };
                        let line = &mut this.ledger.lines()[line];
                        let known = line.names.entry(name).or_insert(given);
                        // Answers may come in another order than they were given in.
                        known.until = known.until.and_then(|known| until.map(|until| until.max(known)));
                    }
                }
                Err(NameError::OutOfHistory(OutOfHistory::TooOld { .. })) => {
                    if this.must_keep(line, lsn) && process.is_alive() {
                        this.world.violate(|| format!("{lsn} of line {line} is too old to be named"));
                    }
                }
                Err(error @ (NameError::Malformed(_) | NameError::NoPostgres | NameError::Taken { .. })) => {
                    this.world.violate(|| format!("{lsn} of line {line} was not named: {}", story(&error)));
                }
                Err(_) => {}
            }
        });
    }

    pub(crate) fn forget(self: &Arc<Self>, process: &Arc<Process>, line: usize, which: u8) {
        let Some(timeline) = Self::timeline(process, line, &self.ledger) else { return };
        let name = {
            let names = &mut self.ledger.lines()[line].names;
            let at = usize::from(which) % names.len().max(1);
            let Some((name, known)) = names.iter_mut().nth(at) else { return };
            if known.forgotten == Sure::No {
                known.forgotten = Sure::Maybe;
            }
            name.clone()
        };
        self.world.did("forget a name");
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        let asked = Instant::now();
        process.clone().spawn(async move {
            if timeline.forget_named_lsn(&name).await.is_ok()
                && process.promised("end of a name", asked)
                && let Some(known) = this.ledger.lines()[line].names.get_mut(&name)
            {
                known.forgotten = Sure::Yes;
            }
        });
    }

    pub(crate) fn compare(
        self: &Arc<Self>,
        process: &Arc<Process>,
        line: usize,
        salt: u32,
        reading: Reading,
    ) {
        let Some(timeline) = Self::timeline(process, line, &self.ledger) else { return };
        let Some(history) = self.ledger.lines()[line].cluster.as_ref().map(|cluster| cluster.history.clone())
        else {
            return;
        };
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        process.clone().spawn(async move {
            let mut dice = Dice::new(this.world.seed() ^ u64::from(salt), "read");
            let reader = Reader {
                world: &this.world,
                process: &process,
                line,
                timeline: &timeline,
                history: &history,
                ledger: &this.ledger,
                keep: this.settings.keep(),
                must_answer: false,
            };
            match reading {
                Reading::Some(count) => reader.some(count, &mut dice).await,
                Reading::Times => reader.times(&mut dice).await,
            }
        });
    }
}
