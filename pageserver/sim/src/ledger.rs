//! What was asked for, what was promised, and what must therefore be there: one line for each timeline that was ever asked for, with its source.

use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;
use engine::collect::KeepHistory;
use model::{Generation, Lsn, PgTimestamp, TenantShardId, TimelineId, Tli};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::Cluster;

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

/// A timeline that was asked for.
pub struct Line {
    /// Its name.
    pub id: TimelineId,
    /// Which line it branched from.
    pub parent: Option<usize>,
    /// Whether it must be there.
    pub made: Sure,
    /// Whether it must be gone.
    pub deleted: Sure,
    /// A deletion came so far that it may be there, whatever was answered.
    pub deletion_begun: bool,
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
        lines.push(Line { made: Sure::Maybe, ..line(number, Some(parent)) });
        (number, id_of(number))
    }

    /// It turns out where a branch began: from now on it has a source of its own, a standby that was promoted there.
    pub fn begins_at(&self, number: usize, lsn: Lsn) -> Result<(), Broken> {
        let mut lines = self.lines();
        if lines[number].cluster.is_some() {
            return Ok(());
        }
        let Some(parent) = lines[number].parent else { return Ok(()) };
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

    /// Whether what a line was at `lsn` must be readable, when so much history is kept, and leases count.
    pub fn must_keep(
        &self,
        number: usize,
        lsn: Lsn,
        keep: Option<KeepHistory>,
        now: SystemTime,
        leases: bool,
    ) -> bool {
        let Some(keep) = keep else { return true };
        must_keep(&self.lines(), number, lsn, keep, now, leases)
    }

    /// The oldest record end of a line that must be readable for its age.
    pub fn oldest_kept(&self, number: usize, keep: Option<KeepHistory>, now: SystemTime) -> Option<Lsn> {
        let (lines, keep) = (self.lines(), keep?);
        let records = &lines[number].cluster.as_ref()?.history.records;
        // Whatever is later than one that must be kept must be, too.
        let first = records.partition_point(|(_, end)| !is_young(&lines, number, *end, keep, now));
        records.get(first).map(|(_, end)| *end)
    }

    /// LSNs of a line that must be readable for a reason of their own.
    pub fn points(&self, number: usize, now: SystemTime, leases: bool) -> Vec<Lsn> {
        points(&self.lines(), number, now, leases)
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

fn must_keep(
    lines: &[Line],
    number: usize,
    lsn: Lsn,
    keep: KeepHistory,
    now: SystemTime,
    leases: bool,
) -> bool {
    points(lines, number, now, leases).contains(&lsn) || is_young(lines, number, lsn, keep, now)
}

/// Whether history of then is kept for its age, here and in ancestors that it is read from.
fn is_young(lines: &[Line], number: usize, lsn: Lsn, keep: KeepHistory, now: SystemTime) -> bool {
    let line = &lines[number];
    let Some(cluster) = &line.cluster else { return false };
    let began = cluster.tli_from;
    let old = PgTimestamp::from_system_time(now.checked_sub(keep.interval).unwrap_or(SystemTime::UNIX_EPOCH));
    let by_time = if keep.interval.is_zero() {
        Some(cluster.history.end())
    } else {
        // Only commits of its own make a timeline's history old.
        let own = cluster.history.commits.iter().filter(|(at, _)| *at > began || line.parent.is_none());
        own.filter(|(_, time)| *time <= old).map(|(at, _)| *at).next_back()
    };
    let by_bytes = Lsn(cluster.history.end().0.saturating_sub(keep.bytes));
    let is_young_here = by_time.is_none_or(|by_time| lsn >= by_time.min(by_bytes));
    match line.parent {
        // At its very beginning it is itself the reason why its parent keeps that.
        Some(parent) if lsn < began => is_young_here && is_young(lines, parent, lsn, keep, now),
        _ => is_young_here,
    }
}

fn points(lines: &[Line], number: usize, now: SystemTime, leases: bool) -> Vec<Lsn> {
    let own = lines[number].leases.iter().filter(|(_, until)| leases && *until > now).map(|(lsn, _)| *lsn);
    let mut all: Vec<Lsn> = own.collect();
    for (child, line) in lines.iter().enumerate().filter(|(_, line)| line.parent == Some(number)) {
        if let (Some(cluster), Sure::Yes, Sure::No) = (&line.cluster, line.made, line.deleted) {
            let at = cluster.tli_from;
            all.push(at);
            all.extend(points(lines, child, now, leases).into_iter().filter(|lsn| *lsn < at));
        }
    }
    all
}

fn line(number: usize, parent: Option<usize>) -> Line {
    Line {
        id: id_of(number),
        parent,
        made: Sure::No,
        deleted: Sure::No,
        deletion_begun: false,
        lost: false,
        cluster: None,
        reported: Lsn(0),
        leases: Vec::new(),
        connection: 0,
        received: Vec::new(),
    }
}
