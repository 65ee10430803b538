//! What was asked for, what was promised, and what must therefore be there: one line for each timeline that was ever asked for, with its source.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;
use engine::collect::KeepHistory;
use model::{Generation, Lsn, PgTimestamp, TenantShardId, TimelineId, Tli};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::world::ProcessId;

/// The one tenant.
pub fn shard() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().expect("it is one")
}

/// How sure something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sure {
    /// Nobody asked for it.
    No,
    /// It was asked for, and may or may not be.
    Maybe,
    /// It was promised.
    Yes,
}

/// What was asked for and not answered yet, of what can be done and undone: how it is now is known when the last question was answered and none
/// before it is open.
#[derive(Debug, Default)]
pub struct Questions {
    last: u64,
    open: BTreeSet<(ProcessId, u64)>,
}

impl Questions {
    /// Something is asked of a process.
    pub fn ask(&mut self, process: ProcessId) -> u64 {
        self.last += 1;
        self.open.insert((process, self.last));
        self.last
    }

    /// It was answered. Whether that tells how it is now.
    pub fn answered(&mut self, process: ProcessId, question: u64) -> bool {
        self.open.remove(&(process, question)) && self.open.is_empty() && question == self.last
    }

    /// Whether a process has still to answer something.
    pub fn is_open(&self, process: ProcessId) -> bool {
        self.open.iter().any(|(of, _)| *of == process)
    }

    /// The dead answer nothing any more.
    fn forget_all_but(&mut self, process: ProcessId) {
        self.open.retain(|(of, _)| *of == process);
    }
}

/// A name of an LSN that was promised.
#[derive(Clone, Debug)]
pub struct Name {
    /// What it names.
    pub lsn: Lsn,
    /// Until when; `None`: for good.
    pub until: Option<SystemTime>,
    /// Whether it was to be forgotten.
    pub forgotten: Sure,
    /// It was to last longer, which may have come after it was forgotten.
    pub prolonged: bool,
}

/// How a timeline is in the process that owns it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// What it hangs on.
    pub ancestor: Option<TimelineId>,
    /// Whether it is in the bucket only. Not sure as long as only the index of an earlier owner says so, which that one may still have asked to change.
    pub archived: Sure,
}

/// A timeline that was asked for.
pub struct Line {
    /// Its name.
    pub id: TimelineId,
    /// Which line it branched from.
    pub born_of: Option<usize>,
    /// Which line it hangs on; `None` when it stands alone.
    pub parent: Option<usize>,
    /// It may hang on another or on none by now: detachments were asked for.
    pub unsettled: bool,
    /// When it stands alone: what is older was not kept by then.
    pub floor: Lsn,
    /// Detachments that are not answered.
    pub detachings: Questions,
    /// Whether it is in the bucket only.
    pub archived: Sure,
    /// Archivings and the opposite that are not answered.
    pub archivings: Questions,
    /// Names of LSNs.
    pub names: BTreeMap<String, Name>,
    /// How many names were ever asked for.
    pub names_asked: u32,
    /// Whether it must be there.
    pub made: Sure,
    /// Whether it must be gone.
    pub deleted: Sure,
    /// A deletion came so far that it may be there, whatever was answered.
    pub deletion_begun: bool,
    /// How often its deletion was asked for.
    pub deletions: u32,
    /// The source is lost: it is asked for nothing any more.
    pub lost: bool,
    /// Its source and its history; none until it is known where it branched off.
    pub cluster: Option<Cluster>,
    /// Up to here its source was told that WAL is safe: it has none before that any more.
    pub reported: Lsn,
    /// Leased LSNs, and until when.
    pub leases: Vec<(Lsn, SystemTime)>,
    /// Counts connections to the source: only the last one is open.
    connection: u64,
    /// What each owner received, and when.
    received: Vec<(Generation, Lsn, Instant)>,
}

/// All lines of a run.
pub struct Ledger {
    lines: Mutex<Vec<Line>>,
    /// A source wrote, or somebody connected to it.
    pub moved: Notify,
}

/// A source that is not asked as it should be.
#[derive(Debug)]
pub struct Broken(pub String);

fn id_of(line: usize) -> TimelineId {
    format!("{:032x}", 0x7100_0000_u64 + line as u64).parse().expect("32 digits are one")
}

impl Ledger {
    /// With a first line that is being made.
    pub fn new(cluster: Cluster) -> Ledger {
        let main = Line { made: Sure::Maybe, cluster: Some(cluster), ..line(0, None) };
        Ledger { lines: Mutex::new(vec![main]), moved: Notify::new() }
    }

    /// All lines. Not to be held while anything is awaited.
    pub fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lines().len()
    }

    /// Somebody asks for a branch.
    pub fn ask_for_branch(&self, parent: usize) -> (usize, TimelineId) {
        let mut lines = self.lines();
        let number = lines.len();
        // It may be moved before anybody hears of it.
        let unsettled = lines.iter().any(|other| other.parent == Some(parent) && other.unsettled);
        lines.push(Line { made: Sure::Maybe, unsettled, ..line(number, Some(parent)) });
        (number, id_of(number))
    }

    /// Somebody asks that a line stand alone: from now on nobody knows what it and its siblings hang on.
    pub fn ask_to_detach(&self, number: usize, process: ProcessId) -> u64 {
        let mut lines = self.lines();
        let parent = lines[number].parent;
        let began = |line: &Line| line.cluster.as_ref().map(|cluster| cluster.tli_from);
        let at = began(&lines[number]);
        for (other, line) in lines.iter_mut().enumerate() {
            // A branch may not have been promised yet: then nobody was told where it begins.
            let is_before = began(line).zip(at).is_none_or(|(lsn, at)| lsn <= at);
            let may_move = parent.is_some() && line.parent == parent && is_before;
            line.unsettled |= other == number || may_move;
        }
        lines[number].detachings.ask(process)
    }

    /// It turns out that a line stands alone.
    pub fn stands_alone(&self, number: usize, keep: Option<KeepHistory>, now: SystemTime) {
        stands_alone(&mut self.lines(), number, keep, now);
    }

    /// It turns out that a line hangs on another now.
    pub fn hangs_on(&self, number: usize, parent: usize) {
        let line = &mut self.lines()[number];
        if line.parent.is_some() {
            line.parent = Some(parent);
        }
    }

    /// Whether a process has still to answer what was asked of it.
    pub fn waits_for(&self, process: ProcessId) -> bool {
        self.lines().iter().any(|line| line.archivings.is_open(process) || line.detachings.is_open(process))
    }

    /// The owner, of whom nothing is asked at the moment, shows how its timelines are: so it is.
    pub fn settle(
        &self,
        owner: ProcessId,
        seen: &BTreeMap<TimelineId, Seen>,
        keep: Option<KeepHistory>,
        now: SystemTime,
    ) {
        let mut lines = self.lines();
        for line in lines.iter_mut() {
            line.archivings.forget_all_but(owner);
            line.detachings.forget_all_but(owner);
        }
        for number in 0..lines.len() {
            let Some(seen) = seen.get(&lines[number].id) else { continue };
            if lines[number].archived == Sure::Maybe {
                lines[number].archived = seen.archived;
            }
            if lines[number].unsettled {
                match seen.ancestor {
                    None => stands_alone(&mut lines, number, keep, now),
                    Some(ancestor) => {
                        lines[number].parent = lines.iter().position(|line| line.id == ancestor);
                        lines[number].unsettled = false;
                    }
                }
            }
        }
    }

    /// It turns out where a branch began: from now on it has a source of its own, a standby that was promoted there.
    pub fn begins_at(&self, number: usize, lsn: Lsn) -> Result<(), Broken> {
        let mut lines = self.lines();
        if lines[number].cluster.is_some() {
            return Ok(());
        }
        let Some(parent) = lines[number].born_of else { return Ok(()) };
        let Some(theirs) = &lines[parent].cluster else {
            return Err(Broken(format!(
                "line {number} branched from line {parent}, of which nothing is known"
            )));
        };
        if theirs.history.record_end_at(lsn) != lsn {
            return Err(Broken(format!(
                "line {number} branched at {lsn}, where no record of line {parent} ends"
            )));
        }
        let tli = Tli(theirs.tli.0 + 1);
        lines[number].cluster = Some(theirs.promoted_at(lsn, tli));
        Ok(())
    }

    /// Whether what a line was at `lsn` must be readable, when so much history is kept.
    pub fn must_keep(&self, number: usize, lsn: Lsn, keep: Option<KeepHistory>, now: SystemTime) -> bool {
        let Some(keep) = keep else { return true };
        must_keep(&self.lines(), number, lsn, keep, now)
    }

    /// The oldest record end of a line that must be readable for its age.
    pub fn oldest_kept(&self, number: usize, keep: Option<KeepHistory>, now: SystemTime) -> Option<Lsn> {
        oldest_young(&self.lines(), number, keep?, now)
    }

    /// LSNs of a line that must be readable for a reason of their own.
    pub fn points(&self, number: usize, now: SystemTime) -> Vec<Lsn> {
        points(&self.lines(), number, now)
    }

    /// Which line a timeline is.
    pub fn number_of(&self, id: TimelineId) -> Option<usize> {
        self.lines().iter().position(|line| line.id == id)
    }

    /// Opens a connection to a source, and so ends the one before.
    pub fn connect(&self, number: usize) -> u64 {
        let connection = {
            let line = &mut self.lines()[number];
            line.connection += 1;
            line.connection
        };
        self.moved.notify_waiters();
        connection
    }

    /// Whether a connection is still the last one.
    pub fn is_connected(&self, number: usize, connection: u64) -> bool {
        self.lines()[number].connection == connection
    }

    /// WAL from `from` on; empty when there is none yet.
    pub fn wal(&self, number: usize, from: Lsn, most: usize) -> Result<Option<(Tli, Bytes)>, Broken> {
        let lines = self.lines();
        let line = &lines[number];
        let Some(cluster) = line.cluster.as_ref().filter(|_| !line.lost) else { return Ok(None) };
        if from < line.reported {
            return Err(Broken(format!(
                "the source of line {number} is asked for WAL at {from}, and was told that it is safe up to {}",
                line.reported
            )));
        }
        if from > cluster.end() {
            return Err(Broken(format!(
                "the source of line {number} is asked for WAL at {from}, and ends at {}",
                cluster.end()
            )));
        }
        let bytes = cluster.wal(from, most);
        Ok((!bytes.is_empty()).then(|| (cluster.tli, Bytes::copy_from_slice(bytes))))
    }

    /// An owner took WAL up to here.
    pub fn took(&self, number: usize, generation: Generation, end: Lsn) {
        let line = &mut self.lines()[number];
        line.received.push((generation, end, Instant::now()));
        // Older ones matter no more than the newest below them.
        if line.received.len() > 256 {
            line.received.drain(..128);
        }
    }

    /// An owner says that WAL is safe. `superseded` is when a newer owner came to be.
    pub fn report(
        &self,
        number: usize,
        generation: Generation,
        lsn: Lsn,
        superseded: Option<Instant>,
    ) -> Result<(), Broken> {
        let mut lines = self.lines();
        let line = &mut lines[number];
        if let Some(since) = superseded {
            let too_late = line
                .received
                .iter()
                .find(|(owner, end, at)| *owner == generation && *end <= lsn && *at > since);
            if let Some((_, end, _)) = too_late {
                return Err(Broken(format!(
                    "generation {generation} reports WAL of line {number} up to {lsn} as safe, of which it received what ends at {end} after a newer owner was there"
                )));
            }
        }
        let end = line.cluster.as_ref().map_or(Lsn(0), Cluster::end);
        if lsn > end {
            return Err(Broken(format!("WAL of line {number} is reported up to {lsn}, and ends at {end}")));
        }
        line.reported = line.reported.max(lsn);
        Ok(())
    }
}

fn must_keep(lines: &[Line], number: usize, lsn: Lsn, keep: KeepHistory, now: SystemTime) -> bool {
    points(lines, number, now).contains(&lsn) || is_young(lines, number, lsn, keep, now)
}

/// Whether history of then is kept for its age, here and in ancestors that it is read from.
fn is_young(lines: &[Line], number: usize, lsn: Lsn, keep: KeepHistory, now: SystemTime) -> bool {
    let line = &lines[number];
    let Some(cluster) = &line.cluster else { return false };
    let began = cluster.tli_from;
    let is_alone = line.parent.is_none() || line.unsettled;
    let old = PgTimestamp::from_system_time(now.checked_sub(keep.interval).unwrap_or(SystemTime::UNIX_EPOCH));
    let by_time = if keep.interval.is_zero() {
        Some(cluster.history.end())
    } else {
        // Only commits of its own make a timeline's history old.
        let own = cluster.history.commits.iter().filter(|(at, _)| *at > began || is_alone);
        own.filter(|(_, time)| *time <= old).map(|(at, _)| *at).next_back()
    };
    let by_bytes = Lsn(cluster.history.end().0.saturating_sub(keep.bytes));
    let is_young_here = by_time.is_none_or(|by_time| lsn >= by_time.min(by_bytes));
    match line.parent {
        _ if lsn >= began => is_young_here,
        _ if line.unsettled => false,
        // At its very beginning it is itself the reason why its parent keeps that.
        Some(parent) => is_young_here && is_young(lines, parent, lsn, keep, now),
        None => is_young_here && lsn >= line.floor,
    }
}

/// A line leaves what it hangs on, and takes with it what is young enough by now to have been kept until then.
fn stands_alone(lines: &mut [Line], number: usize, keep: Option<KeepHistory>, now: SystemTime) {
    if let (Some(parent), Some(cluster)) = (lines[number].parent, &lines[number].cluster) {
        let began = cluster.tli_from;
        lines[number].floor = keep.map_or(Lsn(0), |keep| {
            oldest_young(lines, parent, keep, now).map_or(began, |lsn| lsn.min(began))
        });
    }
    lines[number].parent = None;
    lines[number].unsettled = false;
}

fn oldest_young(lines: &[Line], number: usize, keep: KeepHistory, now: SystemTime) -> Option<Lsn> {
    let records = &lines[number].cluster.as_ref()?.history.records;
    // Whatever is later than one that must be kept must be, too.
    let first = records.partition_point(|(_, end)| !is_young(lines, number, *end, keep, now));
    records.get(first).map(|(_, end)| *end)
}

fn points(lines: &[Line], number: usize, now: SystemTime) -> Vec<Lsn> {
    let own = lines[number].leases.iter().filter(|(_, until)| *until > now).map(|(lsn, _)| *lsn);
    let is_valid = |name: &&Name| name.forgotten == Sure::No && name.until.is_none_or(|until| until > now);
    let names = lines[number].names.values().filter(is_valid).map(|name| name.lsn);
    let mut all: Vec<Lsn> = own.chain(names).collect();
    let hangs_here = |line: &Line| line.parent == Some(number) && !line.unsettled;
    for (child, line) in lines.iter().enumerate().filter(|(_, line)| hangs_here(line)) {
        if let (Some(cluster), Sure::Yes, Sure::No) = (&line.cluster, line.made, line.deleted) {
            let at = cluster.tli_from;
            all.push(at);
            all.extend(points(lines, child, now).into_iter().filter(|lsn| *lsn < at));
        }
    }
    all
}

fn line(number: usize, parent: Option<usize>) -> Line {
    Line {
        id: id_of(number),
        born_of: parent,
        parent,
        unsettled: false,
        floor: Lsn(0),
        detachings: Questions::default(),
        archived: Sure::No,
        archivings: Questions::default(),
        names: BTreeMap::new(),
        names_asked: 0,
        made: Sure::No,
        deleted: Sure::No,
        deletion_begun: false,
        deletions: 0,
        lost: false,
        cluster: None,
        reported: Lsn(0),
        leases: Vec::new(),
        connection: 0,
        received: Vec::new(),
    }
}
