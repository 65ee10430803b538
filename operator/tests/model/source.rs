//! The Postgres whose history is kept: its WAL, its one slot, and the line of primaries that it is.

use codec::history::TimelineHistory;
use engine::timeline::restore::RESTORED_REASON;
use model::{Generation, Lsn, Tli};

/// Where its WAL begins to matter.
pub const BASE: Lsn = Lsn(0x1000);

/// A primary, and after it whoever was promoted.
#[allow(clippy::struct_excessive_bools, reason = "each of them happens for itself")]
pub struct Source {
    /// Postgres timelines, and where each begins.
    pub lines: Vec<(Tli, Lsn)>,
    /// End of its WAL.
    pub end: Lsn,
    /// End of its last commit: so far keepers store by themselves.
    pub committed: Lsn,
    /// What was reported to be safe. It may have forgotten what is below.
    pub told: Lsn,
    /// By whom.
    pub told_by: Generation,
    /// Who receives, if anybody: there is one slot.
    pub stream: Option<Stream>,
    /// The primary died, and no standby goes on yet.
    pub down: bool,
    /// The Postgres timeline that a restore made, if one did, and by which it is known.
    pub restored: Option<(Tli, String)>,
    /// It was followed since: another restore of the same place is something else.
    pub followed: bool,
    /// Such another one is there instead.
    pub impostor: bool,
    /// It shuts down, and waits until all of its WAL is reported to be safe.
    pub stopping: bool,
}

/// Who receives from the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Which pod.
    pub server: usize,
    /// As which owner.
    pub generation: Generation,
}

impl Source {
    /// A primary that has done nothing yet.
    pub fn new() -> Source {
        Source {
            lines: vec![(Tli(1), BASE)],
            end: BASE,
            committed: BASE,
            told: BASE,
            told_by: Generation(0),
            stream: None,
            down: false,
            restored: None,
            followed: false,
            impostor: false,
            stopping: false,
        }
    }

    /// It writes some WAL, which may end in a commit.
    pub fn write(&mut self, records: u64, commits: bool) {
        if self.down || self.impostor {
            return;
        }
        self.end = Lsn(self.end.0 + 8 * records);
        if commits {
            self.committed = self.end;
        }
    }

    /// How it came to be, as its history file says.
    pub fn history(&self) -> TimelineHistory {
        let (first, later) = self.lines.split_first().expect("there is a first");
        later.iter().fold(TimelineHistory::first(first.0), |history, (tli, from)| {
            let restored = self.restored.as_ref().filter(|(made, _)| made == tli);
            let reason = match restored {
                Some(_) if self.impostor => format!("{RESTORED_REASON}another"),
                Some((_, nonce)) => format!("{RESTORED_REASON}{nonce}"),
                None => "promoted".into(),
            };
            history.branch(*tli, *from, &reason).expect("each begins where the one before was left")
        })
    }

    /// A cluster that was restored at the end of what it has takes its place.
    pub fn restore(&mut self, nonce: String, tli: Tli, at: Lsn) {
        self.fail_over(at);
        debug_assert_eq!(self.lines.last(), Some(&(tli, at)));
        self.restored = Some((tli, nonce));
    }

    /// The primary dies.
    pub fn die(&mut self) {
        self.down = true;
        self.stream = None;
    }

    /// A standby takes over that has nothing from here on.
    pub fn fail_over(&mut self, at: Lsn) {
        self.down = false;
        let last = self.lines.last().expect("there is a first").0;
        self.lines.push((Tli(last.0 + 1), at));
        self.end = at;
        self.committed = self.committed.min(at);
        self.stream = None;
    }
}

/// The Postgres timeline of the WAL that follows `lsn`, and where it ends if another follows it.
pub fn line_at(lines: &[(Tli, Lsn)], lsn: Lsn) -> (Tli, Option<Lsn>) {
    let tli = lines.iter().rev().find(|(_, begin)| *begin <= lsn).map_or(Tli(1), |(tli, _)| *tli);
    (tli, lines.iter().map(|(_, begin)| *begin).find(|begin| *begin > lsn))
}
