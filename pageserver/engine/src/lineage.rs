//! Whether a source's history is ours: what to do when a connection is made. No I/O.
//!
//! Postgres timelines are told apart by their numbers and by where they leave each other. Two clusters that were restored from one place have the
//! same numbers; the nonce in the reason of the restore's switch tells them apart.

use crate::timeline::restore::RESTORED_REASON;
use codec::history::TimelineHistory;
use codec::index_part::{Extension, Restore};
use model::{Lsn, Tli};

/// What we have.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    /// The timeline's own history of Postgres timelines, and the restores made from it.
    pub index: &'a Extension,
    /// End of the last whole record.
    pub last: Lsn,
    /// End of what was received, which may be in the middle of a record.
    pub received: Lsn,
    /// Where the timeline branched off, if it did.
    pub branched_at: Option<Lsn>,
}

/// What a source has.
#[derive(Clone, Copy, Debug)]
pub struct Theirs<'a> {
    /// How its Postgres timeline came to be.
    pub history: &'a TimelineHistory,
    /// The end of its WAL.
    pub flushed: Lsn,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// All we have is its history: go on.
    Follow,
    /// It left our history at this place, before the end of what we have, and is newer: ours is to be archived, and its to be taken from there on.
    Part {
        /// Where.
        at: Lsn,
    },
}

/// Why the source cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Diverged {
    /// It has no WAL where we have some.
    #[error(
        "the source has diverged: it ends at {flushed} on Postgres timeline {tli}, and we have WAL of that up to {received}"
    )]
    Behind {
        /// The end of its WAL.
        flushed: Lsn,
        /// The end of ours.
        received: Lsn,
        /// On this Postgres timeline.
        tli: Tli,
    },
    /// It is an older line that ours left behind.
    #[error(
        "the source has diverged: it is on Postgres timeline {theirs}, our history left its at {fork} and is on Postgres timeline {ours}"
    )]
    Stale {
        /// Where the histories part.
        fork: Lsn,
        /// Our newest Postgres timeline.
        ours: Tli,
        /// Its newest.
        theirs: Tli,
    },
    /// It was restored, but not from here, or is another restore than the one that is followed.
    #[error(
        "the source has diverged: its Postgres timeline {tli} was restored by Palimpsest at {at} with nonce {nonce}, which is none that this timeline may follow"
    )]
    OtherRestore {
        /// The Postgres timeline that the restore made.
        tli: Tli,
        /// As of when.
        at: Lsn,
        /// Its nonce.
        nonce: String,
    },
    /// The histories have nothing in common here.
    #[error("the source has diverged: its history shares nothing with ours above {from}")]
    Unrelated {
        /// Where ours begins.
        from: Lsn,
    },
    /// The same place, other bytes.
    #[error("the source has diverged: its WAL at {at} differs from what was received before")]
    OtherBytes {
        /// The first byte that differs.
        at: Lsn,
    },
}

/// Compares histories.
pub fn course(ours: Ours<'_>, theirs: Theirs<'_>) -> Result<Course, Diverged> {
    let Ours { index, last, received, branched_at } = ours;
    let starts = &index.tli_history;
    let history = theirs.history;
    let begin =
        starts.first().map_or(Lsn::INVALID, |first| first.from).max(branched_at.unwrap_or(Lsn::INVALID));
    let newest = starts.last().map_or(Tli(0), |start| start.tli);
    let part = |fork: Lsn| {
        check_restores(index, history, last)?;
        if history.tli() <= newest {
            return Err(Diverged::Stale { fork, ours: newest, theirs: history.tli() });
        }
        if fork < begin { Err(Diverged::Unrelated { from: begin }) } else { Ok(Course::Part { at: fork }) }
    };
    for (place, start) in starts.iter().enumerate() {
        if history.span(start.tli).is_none() {
            return Err(Diverged::Unrelated { from: begin });
        }
        let left = history.left_at(start.tli);
        match (starts.get(place + 1), left) {
            (Some(next), Some(left)) if left == (next.from, next.tli) => {}
            (Some(next), left) => return part(left.map_or(next.from, |(left, _)| left.min(next.from))),
            (None, Some((left, _))) if left < last => return part(left),
            (None, None) if theirs.flushed < received => {
                return Err(Diverged::Behind { flushed: theirs.flushed, received, tli: start.tli });
            }
            (None, _) => {}
        }
    }
    check_restores(index, history, last)?;
    Ok(Course::Follow)
}

/// Every restore in the source's history must be the one that we follow there, or one of ours that may be followed now.
fn check_restores(index: &Extension, history: &TimelineHistory, last: Lsn) -> Result<(), Diverged> {
    for ancestor in history.ancestors() {
        let Some((at, tli)) = history.left_at(ancestor.tli) else { continue };
        let ours: Vec<&Restore> = index.restores.iter().filter(|restore| restore.tli == tli).collect();
        let taken = index.tli_history.iter().any(|start| (start.tli, start.from) == (tli, at));
        match restore_nonce(history, tli) {
            Some(nonce) => {
                let known = ours.iter().find(|restore| restore.nonce == nonce);
                let before_us = index.tli_history.first().is_some_and(|first| tli <= first.tli);
                if !before_us && !known.is_some_and(|restore| restore.followed || !taken) {
                    return Err(Diverged::OtherRestore { tli, at, nonce: nonce.to_owned() });
                }
            }
            // We follow a restore there, and this is something else of the same number.
            None if taken && at <= last && ours.iter().any(|restore| restore.followed) => {
                return Err(Diverged::OtherRestore { tli, at, nonce: "none".into() });
            }
            None => {}
        }
    }
    Ok(())
}

/// The nonce of the restore that made `tli`, if one did.
pub fn restore_nonce(history: &TimelineHistory, tli: Tli) -> Option<&str> {
    let left = history
        .ancestors()
        .iter()
        .find(|left| history.left_at(left.tli).is_some_and(|(_, next)| next == tli))?;
    left.reason.strip_prefix(RESTORED_REASON).map(str::trim)
}

#[cfg(test)]
mod tests {
    use crate::index_keeper::vanilla_extension;
    use codec::index_part::TliStart;
    use model::WalSegmentSize;

    use super::*;

    fn index(starts: &[(u32, u64)], restores: &[(&str, u64, u32, bool)]) -> Extension {
        let segment = WalSegmentSize::new(16 << 20).unwrap();
        let mut index = vanilla_extension(7, segment, true, Tli(1), Lsn(0x100));
        index.tli_history =
            starts.iter().map(|(tli, from)| TliStart { tli: Tli(*tli), from: Lsn(*from) }).collect();
        index.restores = restores
            .iter()
            .map(|(nonce, lsn, tli, followed)| Restore {
                nonce: (*nonce).into(),
                lsn: Lsn(*lsn),
                tli: Tli(*tli),
                followed: *followed,
            })
            .collect();
        index
    }

    fn history(newest: u32, left: &[(u32, u64, &str)]) -> TimelineHistory {
        let text =
            left.iter().map(|(tli, at, reason)| format!("{tli}\t0/{at:X}\t{reason}\n")).collect::<String>();
        TimelineHistory::parse(Tli(newest), text.as_bytes()).unwrap()
    }

    fn decide(index: &Extension, history: &TimelineHistory, flushed: u64) -> Result<Course, Diverged> {
        let ours = Ours { index, last: Lsn(0x1000), received: Lsn(0x1010), branched_at: None };
        course(ours, Theirs { history, flushed: Lsn(flushed) })
    }

    #[test]
    fn a_source_is_followed_when_it_left_our_history_at_our_last_record_or_later() {
        let plain = index(&[(1, 0x100)], &[]);
        assert_eq!(decide(&plain, &history(1, &[]), 0x1010), Ok(Course::Follow));
        for (left, course) in
            [(0x2000, Course::Follow), (0x1000, Course::Follow), (0xFF8, Course::Part { at: Lsn(0xFF8) })]
        {
            assert_eq!(decide(&plain, &history(2, &[(1, left, "")]), 0x3000), Ok(course), "{left:x}");
        }
    }

    #[test]
    fn a_source_below_us_or_on_an_older_line_has_diverged() {
        let plain = index(&[(1, 0x100)], &[]);
        assert!(matches!(decide(&plain, &history(1, &[]), 0x1008), Err(Diverged::Behind { .. })));
        let switched = index(&[(1, 0x100), (2, 0x800)], &[]);
        assert!(matches!(
            decide(&switched, &history(1, &[]), 0x9000),
            Err(Diverged::Stale { fork: Lsn(0x800), .. })
        ));
        assert!(matches!(
            decide(&switched, &history(2, &[(1, 0x700, "")]), 0x9000),
            Err(Diverged::Stale { .. })
        ));
        assert_eq!(
            decide(&switched, &history(3, &[(1, 0x700, "")]), 0x9000),
            Ok(Course::Part { at: Lsn(0x700) })
        );
        assert_eq!(decide(&switched, &history(2, &[(1, 0x800, "")]), 0x9000), Ok(Course::Follow));
        assert!(matches!(
            decide(&plain, &history(2, &[(1, 0x80, "")]), 0x9000),
            Err(Diverged::Unrelated { .. })
        ));
    }

    #[test]
    fn two_restores_of_one_place_are_told_apart() {
        let a = "restored by Palimpsest, aa";
        let b = "restored by Palimpsest, bb";
        let fresh = index(&[(1, 0x100)], &[("aa", 0x1000, 2, false), ("bb", 0x1000, 2, false)]);
        assert_eq!(decide(&fresh, &history(2, &[(1, 0x1000, a)]), 0x2000), Ok(Course::Follow));
        assert!(matches!(
            decide(&fresh, &history(2, &[(1, 0x1000, "restored by Palimpsest, cc")]), 0x2000),
            Err(Diverged::OtherRestore { .. })
        ));
        let follows_a = index(&[(1, 0x100), (2, 0x800)], &[("aa", 0x800, 2, true), ("bb", 0x800, 2, false)]);
        assert_eq!(decide(&follows_a, &history(2, &[(1, 0x800, a)]), 0x2000), Ok(Course::Follow));
        for other in [b, "no recovery target specified"] {
            assert!(matches!(
                decide(&follows_a, &history(2, &[(1, 0x800, other)]), 0x2000),
                Err(Diverged::OtherRestore { .. })
            ));
        }
        // Its promoted standby, and a cluster of before our time.
        assert_eq!(
            decide(&follows_a, &history(3, &[(1, 0x800, a), (2, 0x1000, "")]), 0x2000),
            Ok(Course::Follow)
        );
        let later = index(&[(3, 0x900)], &[]);
        let long = history(3, &[(1, 0x100, a), (2, 0x900, b)]);
        assert_eq!(decide(&later, &long, 0x2000), Ok(Course::Follow));
    }
}
