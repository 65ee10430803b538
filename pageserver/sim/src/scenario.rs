//! A run as a list of decisions: what is asked of the engine and what befalls it, each some time after the one before. A seed makes one; a text
//! keeps one, so that what once went wrong is a test.

use std::fmt;
use std::str::FromStr;

use crate::dice::Dice;
use crate::world::DiskTrouble;

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Decides all that the steps leave open: policies, latencies, pages.
    pub seed: u64,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// A step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// So many milliseconds after the step before.
    pub after: u64,
    /// What happens then.
    pub what: What,
}

/// Where a branch begins. Parts are thousandths of the history that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// At the newest record.
    Tip,
    /// At the end of a record.
    Lsn(u16),
    /// At a time between the first and the last commit.
    Time(u16),
}

#[allow(missing_docs, reason = "what each does is said, and its fields are named")]
/// What happens. Timelines are counted in the order in which they were asked for, round and round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The source of a timeline writes records.
    Write { timeline: u8, records: u16, salt: u32 },
    /// The source of a timeline asks for an answer now, as one that shuts down does.
    Seal { timeline: u8 },
    /// All of a timeline's WAL is to become layers.
    Checkpoint { timeline: u8 },
    /// A branch is asked for.
    Branch { parent: u8, point: Point },
    /// A timeline is to be deleted.
    Delete { timeline: u8 },
    /// A timeline that was deleted is asked for again, as by one who does not know.
    Revive { timeline: u8 },
    /// A timeline is to be in the bucket only.
    Archive { timeline: u8 },
    /// A timeline is to be read again.
    Unarchive { timeline: u8 },
    /// A branch is to stand alone.
    Detach { timeline: u8 },
    /// An LSN of a timeline is leased.
    Lease { timeline: u8, part: u16, minutes: u16 },
    /// An LSN of a timeline gets a name, for good if for no minutes; or the last one that it has is to last longer.
    Name { timeline: u8, part: u16, minutes: u16 },
    /// One of a timeline's names is to be forgotten.
    Forget { timeline: u8, which: u8 },
    /// Pages and sizes are read and compared.
    Read { timeline: u8, count: u8, salt: u32 },
    /// Times are looked up and compared.
    LsnAt { timeline: u8, salt: u32 },
    /// The newest process ends in order, and another one starts.
    Restart,
    /// The newest process dies at its n-th request to the bucket from now; another one starts some milliseconds later.
    Crash { requests: u16, away: u32 },
    /// Another process starts while the newest one runs, or that one is attached anew.
    TakeOver,
    /// The newest process stands still.
    Pause { ms: u32 },
    /// The newest process does not reach the bucket.
    CutOff { ms: u32 },
    /// The newest process does not reach the sources.
    NoSource { ms: u32 },
    /// The bucket answers nobody, or only that it is unavailable.
    Outage { ms: u32, silent: bool },
    /// The disk of the newest process is in trouble.
    Disk { trouble: DiskTrouble, ms: u32 },
    /// The next request of a kind meets with a fault.
    Fault { class: Class, fault: Fault },
    /// The wall clock of the newest process, and of those after it, jumps.
    Clock { seconds: i32 },
    /// Faults end, what is under way comes to an end, and everything is looked at.
    Quiet,
}

/// Requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Class {
    Any,
    Get,
    List,
    Put,
    PutIndex,
    PutLayer,
    PutWal,
    PutClaim,
    Delete,
}

/// What befalls a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not done, and answers that the store is unavailable.
    Fail,
    /// It is done, and answers that the store is unavailable.
    LoseAnswer,
    /// It answers that the store is unavailable, and is done so many milliseconds later.
    Late(u32),
    /// It takes so many milliseconds before it is done.
    Slow(u32),
    /// It is done, and the answer takes so many milliseconds.
    SlowAnswer(u32),
    /// It is done, and once more so many milliseconds later.
    Twice(u32),
    /// A get misses its last bytes.
    CutShort,
}

/// Which things happen in a run: not all kinds in each, so that some come far enough to go wrong in ways that take long.
struct Mood {
    things: Vec<(u64, Thing)>,
    faults: Vec<(u64, u8)>,
    classes: Vec<Class>,
    /// Longest usual time between steps.
    pace: u64,
}

#[derive(Clone, Copy)]
enum Thing {
    Write,
    Seal,
    Checkpoint,
    Branch,
    Delete,
    Revive,
    Archive,
    Unarchive,
    Detach,
    Lease,
    Name,
    Forget,
    Read,
    LsnAt,
    Restart,
    Crash,
    TakeOver,
    Pause,
    CutOff,
    NoSource,
    Outage,
    Disk,
    Fault,
    Clock,
    Quiet,
}

impl Mood {
    fn of(dice: &mut Dice) -> Mood {
        let mut things = vec![
            (30, Thing::Write),
            (8, Thing::Seal),
            (10, Thing::Checkpoint),
            (10, Thing::Read),
            (1, Thing::Quiet),
        ];
        let mut sometimes = |dice: &mut Dice, chance, weight: u64, thing| {
            if dice.permille(chance) {
                things.push((dice.from(1..weight + 1), thing));
            }
        };
        sometimes(dice, 700, 10, Thing::Branch);
        if dice.permille(500) {
            sometimes(dice, 1000, 6, Thing::Delete);
            sometimes(dice, 700, 8, Thing::Revive);
        }
        if dice.permille(400) {
            sometimes(dice, 1000, 4, Thing::Archive);
            sometimes(dice, 1000, 6, Thing::Unarchive);
        }
        sometimes(dice, 400, 5, Thing::Detach);
        sometimes(dice, 400, 5, Thing::Lease);
        if dice.permille(400) {
            sometimes(dice, 1000, 6, Thing::Name);
            sometimes(dice, 500, 3, Thing::Forget);
        }
        sometimes(dice, 500, 4, Thing::LsnAt);
        sometimes(dice, 400, 4, Thing::Restart);
        sometimes(dice, 600, 8, Thing::Crash);
        sometimes(dice, 400, 5, Thing::TakeOver);
        sometimes(dice, 300, 4, Thing::Pause);
        sometimes(dice, 300, 4, Thing::CutOff);
        sometimes(dice, 200, 4, Thing::NoSource);
        sometimes(dice, 300, 4, Thing::Outage);
        sometimes(dice, 300, 4, Thing::Disk);
        sometimes(dice, 700, 40, Thing::Fault);
        sometimes(dice, 200, 3, Thing::Clock);
        let faults: Vec<(u64, u8)> =
            (0..7).map(|kind| (u64::from(dice.permille(600)) * dice.from(1..10), kind)).collect();
        let faults = if faults.iter().all(|(weight, _)| *weight == 0) { vec![(1, 0)] } else { faults };
        let mut classes: Vec<Class> =
            CLASSES.iter().map(|(class, _)| *class).filter(|_| dice.permille(500)).collect();
        if classes.is_empty() {
            classes.push(Class::Any);
        }
        Mood { things, faults, classes, pace: *dice.pick(&[50, 1_000, 20_000, 600_000]) }
    }

    fn what(&self, dice: &mut Dice) -> What {
        let timeline = dice.below(8) as u8;
        let salt = dice.draw() as u32;
        let while_ms = |dice: &mut Dice| {
            let most = if dice.permille(200) { 40 * 60_000 } else { 60_000 };
            dice.skewed(most) as u32
        };
        match dice.weighted(&self.things) {
            Thing::Write => What::Write { timeline, records: 1 + dice.skewed(60) as u16, salt },
            Thing::Seal => What::Seal { timeline },
            Thing::Checkpoint => What::Checkpoint { timeline },
            Thing::Branch => {
                let part = dice.below(1001) as u16;
                let point = *dice.pick(&[Point::Tip, Point::Lsn(part), Point::Lsn(part), Point::Time(part)]);
                What::Branch { parent: timeline, point }
            }
            Thing::Delete => What::Delete { timeline },
            Thing::Revive => What::Revive { timeline },
            Thing::Archive => What::Archive { timeline },
            Thing::Unarchive => What::Unarchive { timeline },
            Thing::Detach => What::Detach { timeline },
            Thing::Name => {
                let minutes = if dice.permille(500) { dice.skewed(6000) as u16 } else { 0 };
                What::Name { timeline, part: dice.below(1001) as u16, minutes }
            }
            Thing::Forget => What::Forget { timeline, which: dice.below(4) as u8 },
            Thing::Lease => {
                What::Lease { timeline, part: dice.below(1001) as u16, minutes: dice.skewed(6000) as u16 }
            }
            Thing::Read => What::Read { timeline, count: 1 + dice.skewed(20) as u8, salt },
            Thing::LsnAt => What::LsnAt { timeline, salt },
            Thing::Restart => What::Restart,
            Thing::Crash => {
                What::Crash { requests: dice.skewed(60) as u16, away: dice.skewed(60_000) as u32 }
            }
            Thing::TakeOver => What::TakeOver,
            Thing::Pause => What::Pause { ms: while_ms(dice) },
            Thing::CutOff => What::CutOff { ms: while_ms(dice) },
            Thing::NoSource => What::NoSource { ms: while_ms(dice) },
            Thing::Outage => What::Outage { ms: while_ms(dice), silent: dice.permille(500) },
            Thing::Disk => {
                let (trouble, _) = dice.pick(&TROUBLES);
                What::Disk { trouble: *trouble, ms: while_ms(dice) }
            }
            Thing::Fault => {
                let ms = while_ms(dice);
                let fault = match dice.weighted(&self.faults) {
                    0 => Fault::Fail,
                    1 => Fault::LoseAnswer,
                    2 => Fault::Late(ms),
                    3 => Fault::Slow(ms),
                    4 => Fault::SlowAnswer(ms),
                    5 => Fault::Twice(ms),
                    _ => Fault::CutShort,
                };
                What::Fault { class: *dice.pick(&self.classes), fault }
            }
            Thing::Clock => {
                let seconds = *dice.pick(&[3_600, 86_400, 604_800]);
                What::Clock { seconds: if dice.permille(500) { seconds } else { -seconds } }
            }
            Thing::Quiet => What::Quiet,
        }
    }
}

impl Scenario {
    /// What a seed means.
    pub fn of(seed: u64) -> Scenario {
        let mut dice = Dice::new(seed, "scenario");
        let mood = Mood::of(&mut dice);
        let count = dice.from(15..70);
        let steps = (0..count).map(|_| {
            let most = if dice.permille(30) { 3 * 86_400_000 } else { mood.pace };
            let after = dice.skewed(most);
            Step { after, what: mood.what(&mut dice) }
        });
        Scenario { seed, steps: steps.collect() }
    }
}

const CLASSES: [(Class, &str); 9] = [
    (Class::Any, "any"),
    (Class::Get, "get"),
    (Class::List, "list"),
    (Class::Put, "put"),
    (Class::PutIndex, "put-index"),
    (Class::PutLayer, "put-layer"),
    (Class::PutWal, "put-wal"),
    (Class::PutClaim, "put-claim"),
    (Class::Delete, "delete"),
];

const TROUBLES: [(DiskTrouble, &str); 3] =
    [(DiskTrouble::Full, "full"), (DiskTrouble::Failing, "failing"), (DiskTrouble::Rotting, "rotting")];

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            What::Write { timeline, records, salt } => write!(f, "write {timeline} {records} {salt}"),
            What::Seal { timeline } => write!(f, "seal {timeline}"),
            What::Checkpoint { timeline } => write!(f, "checkpoint {timeline}"),
            What::Branch { parent, point } => match point {
                Point::Tip => write!(f, "branch {parent} tip 0"),
                Point::Lsn(part) => write!(f, "branch {parent} lsn {part}"),
                Point::Time(part) => write!(f, "branch {parent} time {part}"),
            },
            What::Delete { timeline } => write!(f, "delete {timeline}"),
            What::Revive { timeline } => write!(f, "revive {timeline}"),
            What::Archive { timeline } => write!(f, "archive {timeline}"),
            What::Unarchive { timeline } => write!(f, "unarchive {timeline}"),
            What::Detach { timeline } => write!(f, "detach {timeline}"),
            What::Lease { timeline, part, minutes } => write!(f, "lease {timeline} {part} {minutes}"),
            What::Name { timeline, part, minutes } => write!(f, "name {timeline} {part} {minutes}"),
            What::Forget { timeline, which } => write!(f, "forget {timeline} {which}"),
            What::Read { timeline, count, salt } => write!(f, "read {timeline} {count} {salt}"),
            What::LsnAt { timeline, salt } => write!(f, "lsn-at {timeline} {salt}"),
            What::Restart => write!(f, "restart"),
            What::Crash { requests, away } => write!(f, "crash {requests} {away}"),
            What::TakeOver => write!(f, "take-over"),
            What::Pause { ms } => write!(f, "pause {ms}"),
            What::CutOff { ms } => write!(f, "cut-off {ms}"),
            What::NoSource { ms } => write!(f, "no-source {ms}"),
            What::Outage { ms, silent } => {
                write!(f, "outage {ms} {}", if silent { "silent" } else { "refusing" })
            }
            What::Disk { trouble, ms } => {
                let known = TROUBLES.iter().find(|(known, _)| *known == trouble);
                write!(f, "disk {} {ms}", known.map_or("full", |(_, name)| name))
            }
            What::Fault { class, fault } => {
                let class = CLASSES.iter().find(|(known, _)| *known == class).map_or("any", |(_, name)| name);
                match fault {
                    Fault::Fail => write!(f, "fault {class} fail 0"),
                    Fault::LoseAnswer => write!(f, "fault {class} lose-answer 0"),
                    Fault::Late(ms) => write!(f, "fault {class} late {ms}"),
                    Fault::Slow(ms) => write!(f, "fault {class} slow {ms}"),
                    Fault::SlowAnswer(ms) => write!(f, "fault {class} slow-answer {ms}"),
                    Fault::Twice(ms) => write!(f, "fault {class} twice {ms}"),
                    Fault::CutShort => write!(f, "fault {class} cut-short 0"),
                }
            }
            What::Clock { seconds } => write!(f, "clock {seconds}"),
            What::Quiet => write!(f, "quiet"),
        }
    }
}

/// A text that is not a scenario.
#[derive(Debug)]
pub struct NotAScenario(pub String);

impl fmt::Display for NotAScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a step of a scenario: {}", self.0)
    }
}

impl std::error::Error for NotAScenario {}

/// Words of a line, one after the other.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn number<T: FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }
}

fn parse_what(line: &str) -> Option<What> {
    let mut words = Words(line.split_whitespace());
    let what = match words.word()? {
        "write" => What::Write { timeline: words.number()?, records: words.number()?, salt: words.number()? },
        "seal" => What::Seal { timeline: words.number()? },
        "checkpoint" => What::Checkpoint { timeline: words.number()? },
        "branch" => {
            let parent = words.number()?;
            let point = match (words.word()?, words.number()?) {
                ("tip", _) => Point::Tip,
                ("lsn", part) => Point::Lsn(part),
                ("time", part) => Point::Time(part),
                _ => return None,
            };
            What::Branch { parent, point }
        }
        "delete" => What::Delete { timeline: words.number()? },
        "revive" => What::Revive { timeline: words.number()? },
        "archive" => What::Archive { timeline: words.number()? },
        "unarchive" => What::Unarchive { timeline: words.number()? },
        "detach" => What::Detach { timeline: words.number()? },
        "name" => What::Name { timeline: words.number()?, part: words.number()?, minutes: words.number()? },
        "forget" => What::Forget { timeline: words.number()?, which: words.number()? },
        "lease" => What::Lease { timeline: words.number()?, part: words.number()?, minutes: words.number()? },
        "read" => What::Read { timeline: words.number()?, count: words.number()?, salt: words.number()? },
        "lsn-at" => What::LsnAt { timeline: words.number()?, salt: words.number()? },
        "restart" => What::Restart,
        "crash" => What::Crash { requests: words.number()?, away: words.number()? },
        "take-over" => What::TakeOver,
        "pause" => What::Pause { ms: words.number()? },
        "cut-off" => What::CutOff { ms: words.number()? },
        "no-source" => What::NoSource { ms: words.number()? },
        "outage" => What::Outage { ms: words.number()?, silent: words.word()? == "silent" },
        "disk" => {
            let name = words.word()?;
            let trouble = TROUBLES.iter().find(|(_, known)| *known == name)?.0;
            What::Disk { trouble, ms: words.number()? }
        }
        "fault" => {
            let name = words.word()?;
            let class = CLASSES.iter().find(|(_, known)| *known == name)?.0;
            let fault = match (words.word()?, words.number()?) {
                ("fail", _) => Fault::Fail,
                ("lose-answer", _) => Fault::LoseAnswer,
                ("late", ms) => Fault::Late(ms),
                ("slow", ms) => Fault::Slow(ms),
                ("slow-answer", ms) => Fault::SlowAnswer(ms),
                ("twice", ms) => Fault::Twice(ms),
                ("cut-short", _) => Fault::CutShort,
                _ => return None,
            };
            What::Fault { class, fault }
        }
        "clock" => What::Clock { seconds: words.number()? },
        "quiet" => What::Quiet,
        _ => return None,
    };
    words.word().is_none().then_some(what)
}

impl fmt::Display for Scenario {
    /// `seed N`, then a line for each step: `+milliseconds what`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "+{} {}", step.after, step.what))
    }
}

impl FromStr for Scenario {
    type Err = NotAScenario;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let seed = lines.next().and_then(|line| line.strip_prefix("seed ")?.parse().ok());
        let seed = seed.ok_or_else(|| NotAScenario("it must begin with `seed N`".into()))?;
        let step = |line: &str| {
            let (after, what) = line.strip_prefix('+')?.split_once(' ')?;
            Some(Step { after: after.parse().ok()?, what: parse_what(what)? })
        };
        let steps = lines.map(|line| step(line).ok_or_else(|| NotAScenario(line.into())));
        Ok(Scenario { seed, steps: steps.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_read_as_it_was_written() {
        for seed in 0..200 {
            let scenario = Scenario::of(seed);
            assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        }
        assert!("seed 1\n+5 dance".parse::<Scenario>().is_err());
        assert!("seed 1\n+5 seal 1 2".parse::<Scenario>().is_err());
        assert!("+5 quiet".parse::<Scenario>().is_err());
    }
}
