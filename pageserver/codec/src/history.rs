//! Postgres' timeline history files (`timeline.c`): `<tli %08X>.history`, one line per ancestor, oldest first:
//! `<tli>\t<LSN where it was left>\t<reason>`. Empty lines, and those that begin with `#`, mean nothing.

use std::fmt::Write;

use model::{Lsn, Tli};

/// Where a Postgres timeline comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    tli: Tli,
    ancestors: Vec<Ancestor>,
}

/// A timeline that was left for the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Which.
    pub tli: Tli,
    /// Its WAL counts up to here.
    pub switch: Lsn,
    /// Why it was left, for people.
    pub reason: String,
}

/// A history that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum HistoryError {
    #[error(
        "line {line} of the history of timeline {tli} is {text:?}, expected a timeline, an LSN and a reason"
    )]
    Line { tli: Tli, line: usize, text: String },
    #[error("the history of timeline {tli} has timeline {found} after {before}")]
    Order { tli: Tli, found: Tli, before: Tli },
    #[error("the history of timeline {tli} has timeline {ancestor} left at {found}, before {before}")]
    SwitchOrder { tli: Tli, ancestor: Tli, found: Lsn, before: Lsn },
    #[error("timeline {ancestor} cannot be an ancestor of timeline {tli}")]
    Ancestor { tli: Tli, ancestor: Tli },
}

impl TimelineHistory {
    /// A timeline that no other came before, as `initdb` makes it. It has no history file.
    pub fn first(tli: Tli) -> Self {
        TimelineHistory { tli, ancestors: Vec::new() }
    }

    /// Reads the history file of `tli`.
    pub fn parse(tli: Tli, file: &[u8]) -> Result<Self, HistoryError> {
        let mut history = TimelineHistory::first(tli);
        for (number, line) in file.split(|byte| *byte == b'\n').enumerate() {
            let text = String::from_utf8_lossy(line);
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let bad = || HistoryError::Line { tli, line: number + 1, text: text.chars().take(100).collect() };
            let (ancestor, rest) = text.split_once(char::is_whitespace).ok_or_else(bad)?;
            let rest = rest.trim_start();
            let (switch, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            history.push(Ancestor {
                tli: Tli(ancestor.parse().map_err(|_| bad())?),
                switch: switch.parse().map_err(|_| bad())?,
                reason: reason.trim_start().to_owned(),
            })?;
        }
        Ok(history)
    }

    /// The history of a new timeline that leaves this one at `switch`. `reason` must be one line; line breaks in it become spaces.
    pub fn branch(&self, tli: Tli, switch: Lsn, reason: &str) -> Result<Self, HistoryError> {
        let mut history = TimelineHistory { tli, ancestors: self.ancestors.clone() };
        history.push(Ancestor { tli: self.tli, switch, reason: reason.replace(['\n', '\r'], " ") })?;
        Ok(history)
    }

    fn push(&mut self, ancestor: Ancestor) -> Result<(), HistoryError> {
        let tli = self.tli;
        if ancestor.tli >= tli || ancestor.tli == Tli(0) {
            return Err(HistoryError::Ancestor { tli, ancestor: ancestor.tli });
        }
        if let Some(before) = self.ancestors.last() {
            if ancestor.tli <= before.tli {
                return Err(HistoryError::Order { tli, found: ancestor.tli, before: before.tli });
            }
            if ancestor.switch < before.switch {
                return Err(HistoryError::SwitchOrder {
                    tli,
                    ancestor: ancestor.tli,
                    found: ancestor.switch,
                    before: before.switch,
                });
            }
        }
        self.ancestors.push(ancestor);
        Ok(())
    }

    /// The file's content.
    pub fn to_text(&self) -> String {
        self.ancestors.iter().fold(String::new(), |mut text, Ancestor { tli, switch, reason }| {
            let _ = writeln!(text, "{tli}\t{switch}\t{reason}"); // writing to a string cannot fail
            text
        })
    }

    /// The file's name.
    pub fn file_name(tli: Tli) -> String {
        format!("{:08X}.history", tli.0)
    }

    /// Whose history this is.
    pub fn tli(&self) -> Tli {
        self.tli
    }

    /// The timelines that came before, oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// Where `tli`'s WAL begins and, unless it is the newest, where it was left. `None` when it is not in this history.
    pub fn span(&self, tli: Tli) -> Option<(Lsn, Option<Lsn>)> {
        let place = self.timelines().position(|(known, _)| known == tli)?;
        let start = place.checked_sub(1).map_or(Lsn(0), |before| self.ancestors[before].switch);
        Some((start, self.ancestors.get(place).map(|ancestor| ancestor.switch)))
    }

    /// Whether WAL of `tli` that ends at `end` is all part of this history: so that a reader who has it may go on here.
    pub fn contains(&self, tli: Tli, end: Lsn) -> bool {
        self.span(tli).is_some_and(|(start, left)| start <= end && left.is_none_or(|left| end <= left))
    }

    /// The timeline that the byte at `lsn` belongs to.
    pub fn tli_at(&self, lsn: Lsn) -> Tli {
        self.ancestors.iter().find(|ancestor| lsn < ancestor.switch).map_or(self.tli, |ancestor| ancestor.tli)
    }

    /// Where `tli` was left, and for which timeline. `None` when it is the newest, or not in this history.
    pub fn left_at(&self, tli: Tli) -> Option<(Lsn, Tli)> {
        let place = self.ancestors.iter().position(|ancestor| ancestor.tli == tli)?;
        let next = self.ancestors.get(place + 1).map_or(self.tli, |ancestor| ancestor.tli);
        Some((self.ancestors[place].switch, next))
    }

    /// Up to where this history and `other` are the same WAL. `None` when they are of the same timeline: neither was left.
    pub fn forks_from(&self, other: &TimelineHistory) -> Option<Lsn> {
        let mut mine = self.timelines();
        let mut theirs = other.timelines();
        let mut same_to = Lsn(0);
        loop {
            match (mine.next(), theirs.next()) {
                (Some((a, left_a)), Some((b, left_b))) if a == b => match (left_a, left_b) {
                    (None, None) => return None,
                    (Some(left), None) | (None, Some(left)) => return Some(left),
                    (Some(left_a), Some(left_b)) if left_a == left_b => same_to = left_a,
                    (Some(left_a), Some(left_b)) => return Some(left_a.min(left_b)),
                },
                _ => return Some(same_to),
            }
        }
    }

    /// Every timeline, oldest first, and where it was left.
    fn timelines(&self) -> impl Iterator<Item = (Tli, Option<Lsn>)> {
        let ancestors = self.ancestors.iter().map(|ancestor| (ancestor.tli, Some(ancestor.switch)));
        ancestors.chain([(self.tli, None)])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &[u8] = b"1\t0/3000148\tno recovery target specified\n\n# comment\n2\t0/5000000\tbefore 2026-01-01 00:00:00+00\n";

    #[test]
    fn a_file_of_postgres_is_read() {
        let history = TimelineHistory::parse(Tli(4), FILE).unwrap();
        assert_eq!(history.ancestors()[1].reason, "before 2026-01-01 00:00:00+00");
        assert_eq!(history.span(Tli(1)), Some((Lsn(0), Some(Lsn(0x300_0148)))));
        assert_eq!(history.span(Tli(2)), Some((Lsn(0x300_0148), Some(Lsn(0x500_0000)))));
        assert_eq!(history.span(Tli(4)), Some((Lsn(0x500_0000), None)));
        assert_eq!(history.span(Tli(3)), None);
        assert_eq!(TimelineHistory::file_name(Tli(0x2A)), "0000002A.history");
    }

    #[test]
    fn a_place_lies_in_a_history_up_to_where_its_timeline_was_left() {
        let history = TimelineHistory::parse(Tli(4), FILE).unwrap();
        for (tli, lsn, inside) in [
            (1, 0x300_0148, true),
            (1, 0x300_0150, false),
            (2, 0x300_0140, false),
            (2, 0x300_0148, true),
            (3, 0x400_0000, false),
            (4, 0x4FF_FFF8, false),
            (4, 0x900_0000, true),
        ] {
            assert_eq!(history.contains(Tli(tli), Lsn(lsn)), inside, "{tli} {lsn:x}");
        }
        assert_eq!(history.tli_at(Lsn(0x300_0147)), Tli(1));
        assert_eq!(history.tli_at(Lsn(0x300_0148)), Tli(2));
        assert_eq!(history.tli_at(Lsn(0x900_0000)), Tli(4));
        assert_eq!(history.left_at(Tli(1)), Some((Lsn(0x300_0148), Tli(2))));
        assert_eq!(history.left_at(Tli(2)), Some((Lsn(0x500_0000), Tli(4))));
        assert_eq!(history.left_at(Tli(4)), None);
    }

    #[test]
    fn two_histories_fork_where_their_common_timeline_was_left() {
        let one = TimelineHistory::first(Tli(1));
        let two = one.branch(Tli(2), Lsn(0x2000), "").unwrap();
        let three = one.branch(Tli(3), Lsn(0x3000), "").unwrap();
        let four = two.branch(Tli(4), Lsn(0x4000), "").unwrap();
        assert_eq!(one.forks_from(&one), None);
        assert_eq!(one.forks_from(&two), Some(Lsn(0x2000)));
        assert_eq!(two.forks_from(&three), Some(Lsn(0x2000)));
        assert_eq!(four.forks_from(&two), Some(Lsn(0x4000)));
        assert_eq!(four.forks_from(&three), Some(Lsn(0x2000)));
        assert_eq!(TimelineHistory::first(Tli(9)).forks_from(&one), Some(Lsn(0)));
    }

    #[test]
    fn an_impossible_history_is_refused() {
        for (bad, what) in [
            (&b"x\t0/1\t"[..], "a timeline that is no number"),
            (b"1", "no LSN"),
            (b"1\t1", "half an LSN"),
            (b"4\t0/1\t", "itself as an ancestor"),
            (b"0\t0/1\t", "timeline 0"),
            (b"2\t0/1\t\n1\t0/2\t", "falling timelines"),
            (b"1\t0/2\t\n2\t0/1\t", "falling LSNs"),
            (b"1\t0/2\t\n1\t0/3\t", "a timeline twice"),
        ] {
            assert!(TimelineHistory::parse(Tli(4), bad).is_err(), "{what} was accepted");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(steps in prop::collection::vec((1..9u32, 0..1u64 << 40, "[a-z ]{0,20}"), 0..8)) {
            let mut history = TimelineHistory::first(Tli(1));
            let mut switch = 0;
            for (tli, bytes, reason) in steps {
                switch += bytes;
                history = history.branch(Tli(history.tli().0 + tli), Lsn(switch), reason.trim()).unwrap();
            }
            prop_assert_eq!(TimelineHistory::parse(history.tli(), history.to_text().as_bytes()), Ok(history));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = TimelineHistory::parse(Tli(5), &bytes);
        }
    }
}
