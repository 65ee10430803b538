//! Which WAL objects in the bucket count.
//!
//! Objects of several generations and Postgres timelines may lie there: some inherited, some of the present owner, some put by an owner after
//! it was superseded. The index says which: those that it names as inherited, and those of its own generation. Of these only the contiguous run
//! that follows what layers cover, along the switch points of Postgres timelines, is history.

use model::{Generation, Lsn, Tli};

use crate::stored_wal::StoredWal;

/// What an index says about WAL.
#[derive(Clone, Debug, Default)]
pub struct WalHistory {
    /// The generation that wrote the index; its own objects count without being named.
    pub generation: Option<Generation>,
    /// Objects of earlier generations that count.
    pub inherited: Vec<StoredWal>,
    /// Postgres timelines and where each begins, oldest first.
    pub switches: Vec<(Tli, Lsn)>,
}

impl WalHistory {
    /// The Postgres timeline whose WAL follows `lsn`.
    pub fn tli_at(&self, lsn: Lsn) -> Tli {
        self.switches
            .iter()
            .rev()
            .find(|(_, begin)| *begin <= lsn)
            .or(self.switches.first())
            .map_or(Tli(1), |(tli, _)| *tli)
    }

    /// Where a Postgres timeline was left for the next one. Bytes of it past that place mean nothing.
    pub fn left_at(&self, tli: Tli) -> Option<Lsn> {
        let place = self.switches.iter().position(|(known, _)| *known == tli)?;
        self.switches.get(place + 1).map(|(_, begin)| *begin)
    }

    /// Where the Postgres timeline that follows `lsn` ends, if another follows it.
    fn switch_after(&self, lsn: Lsn) -> Option<Lsn> {
        self.switches.iter().map(|(_, begin)| *begin).find(|begin| *begin > lsn)
    }
}

/// Why the objects are not a history.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WalRunError {
    #[error("WAL object {}-{} of Postgres timeline {} and generation {}, which the index names, is missing", .0.start, .0.end, .0.tli, .0.generation)]
    Missing(Box<StoredWal>),
    #[error("WAL object {path} does not hold what its name says")]
    WrongObject { path: String },
    #[error("WAL object {path} differs at {at} from the object before it")]
    Differ { path: String, at: Lsn },
}

/// The objects that go on from `covered` without a gap. Objects may overlap; each adds something.
pub fn contiguous_run(
    history: &WalHistory,
    listed: Vec<StoredWal>,
    covered: Lsn,
) -> Result<Vec<StoredWal>, WalRunError> {
    let same = |a: &StoredWal, b: &StoredWal| {
        (a.tli, a.start, a.end, a.generation) == (b.tli, b.start, b.end, b.generation)
    };
    for named in history.inherited.iter().filter(|object| object.end > covered) {
        if !listed.iter().any(|object| same(object, named)) {
            return Err(WalRunError::Missing(Box::new(named.clone())));
        }
    }
    let mut counted: Vec<StoredWal> = listed
        .into_iter()
        .filter(|object| {
            Some(object.generation) == history.generation
                || history.inherited.iter().any(|named| same(object, named))
        })
        .filter(|object| object.end > covered)
        .collect();
    counted.sort_by_key(|object| (object.start, object.end));
    let mut run: Vec<StoredWal> = Vec::new();
    let mut reached = covered;
    loop {
        let (tli, switch) = (history.tli_at(reached), history.switch_after(reached));
        // Of all that go on from here, the one that reaches furthest on the Postgres timeline that is current here.
        let next = counted
            .iter()
            .filter(|object| object.tli == tli && object.start <= reached && object.end > reached)
            .max_by_key(|object| object.end);
        let Some(next) = next else { return Ok(run) };
        reached = switch.map_or(next.end, |switch| next.end.min(switch));
        run.push(next.clone());
    }
}

/// Compares what two objects share; the place of the first difference is the error.
pub fn check_overlap(start: Lsn, older: &[u8], newer_start: Lsn, newer: &[u8]) -> Result<(), Lsn> {
    let from = start.max(newer_start);
    let to = start.add(older.len() as u64).min(newer_start.add(newer.len() as u64));
    for at in from.0..to.0.max(from.0) {
        if older[(at - start.0) as usize] != newer[(at - newer_start.0) as usize] {
            return Err(Lsn(at));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(tli: u32, start: u64, end: u64, generation: u32) -> StoredWal {
        StoredWal {
            tli: Tli(tli),
            start: Lsn(start),
            end: Lsn(end),
            generation: Generation(generation),
            size: 1,
        }
    }

    fn history(generation: u32, inherited: &[StoredWal]) -> WalHistory {
        WalHistory {
            generation: Some(Generation(generation)),
            inherited: inherited.to_vec(),
            switches: vec![(Tli(1), Lsn(0))],
        }
    }

    #[test]
    fn only_own_and_inherited_objects_count() {
        let inherited = object(1, 100, 200, 7);
        let orphan = object(1, 200, 300, 7); // put by 7 after 8 had listed
        let own = object(1, 200, 260, 8);
        let run = contiguous_run(
            &history(8, std::slice::from_ref(&inherited)),
            vec![inherited.clone(), orphan, own.clone()],
            Lsn(150),
        );
        assert_eq!(run.unwrap(), [inherited, own]);
    }

    #[test]
    fn a_gap_ends_the_run_and_a_missing_inherited_object_is_an_error() {
        let (a, b, c) = (object(1, 100, 200, 8), object(1, 200, 300, 8), object(1, 16_400, 16_500, 8));
        assert_eq!(
            contiguous_run(&history(8, &[]), vec![a.clone(), b.clone(), c], Lsn(120)).unwrap(),
            [a.clone(), b.clone()]
        );
        let missing = contiguous_run(&history(9, &[a.clone(), b.clone()]), vec![b.clone()], Lsn(120));
        assert!(matches!(missing, Err(WalRunError::Missing(object)) if *object == a));
        assert_eq!(
            contiguous_run(&history(9, &[a.clone(), b.clone()]), vec![b.clone()], Lsn(200)).unwrap(),
            [b]
        );
    }

    #[test]
    fn the_run_follows_switches_of_the_postgres_timeline() {
        let mut history = history(8, &[]);
        history.switches.push((Tli(2), Lsn(250)));
        let old = object(1, 100, 300, 8); // bytes past the switch were received before it was known
        let stray = object(1, 300, 400, 8);
        let new = object(2, 250, 350, 8);
        let run = contiguous_run(&history, vec![old.clone(), stray, new.clone()], Lsn(100)).unwrap();
        assert_eq!(run, [old, new]);
    }

    #[test]
    fn overlapping_bytes_must_be_equal() {
        assert_eq!(check_overlap(Lsn(10), b"abcdef", Lsn(13), b"defgh"), Ok(()));
        assert_eq!(check_overlap(Lsn(10), b"abcdef", Lsn(13), b"dXfgh"), Err(Lsn(14)));
        assert_eq!(check_overlap(Lsn(10), b"abc", Lsn(13), b"def"), Ok(()));
    }
}
