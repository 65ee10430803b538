//! What every page must read as: for each page the ends of the records that changed it and which version each made.

use std::collections::BTreeMap;

use engine::retention::Retention;
use model::Lsn;

/// A page: the number of its relation, and which block.
pub type PageId = (u32, u32);

/// All pages and all their versions that may be read again.
#[derive(Clone)]
pub struct Book {
    relations: BTreeMap<u32, Chapter>,
    step: u32,
}

#[derive(Clone, Default)]
struct Chapter {
    /// Blocks from an LSN on; `None` when it was dropped.
    sizes: Vec<(Lsn, Option<u32>)>,
    blocks: Vec<Versions>,
}

type Versions = Vec<(Lsn, u32)>;

fn last_at<T: Copy>(entries: &[(Lsn, T)], lsn: Lsn) -> Option<(Lsn, T)> {
    entries[..entries.partition_point(|(at, _)| *at <= lsn)].last().copied()
}

/// Of entries in order of LSN those that somebody can still read.
fn keep<T>(entries: &mut Vec<(Lsn, T)>, retention: &Retention) {
    let ends: Vec<Lsn> = entries.iter().skip(1).map(|(at, _)| Lsn(at.0 - 1)).chain([Lsn::MAX]).collect();
    let mut at = 0;
    entries.retain(|(from, _)| {
        let end = ends[at];
        at += 1;
        retention.first_from(*from) <= end
    });
}

impl Default for Book {
    fn default() -> Self {
        Book { relations: BTreeMap::new(), step: 1 }
    }
}

impl Book {
    /// A book of each `step`th block only: of a large database that is enough to compare.
    pub fn of_each(step: u32) -> Book {
        Book { step, ..Book::default() }
    }

    /// Blocks of a relation of so many that are in the book.
    pub fn blocks(&self, size: u32) -> impl Iterator<Item = u32> {
        (0..size).step_by(self.step as usize)
    }

    /// Notes a relation's size; `None`: it was dropped.
    pub fn resize(&mut self, rel: u32, lsn: Lsn, size: Option<u32>) {
        self.relations.entry(rel).or_default().sizes.push((lsn, size));
    }

    /// Notes a version.
    pub fn write(&mut self, (rel, block): PageId, lsn: Lsn, version: u32) {
        if !block.is_multiple_of(self.step) {
            return;
        }
        let blocks = &mut self.relations.entry(rel).or_default().blocks;
        let at = (block / self.step) as usize;
        if blocks.len() <= at {
            blocks.resize_with(at + 1, Versions::new);
        }
        blocks[at].push((lsn, version));
    }

    /// Blocks of a relation; `None` when it does not exist.
    pub fn size(&self, rel: u32, lsn: Lsn) -> Option<u32> {
        last_at(&self.relations.get(&rel)?.sizes, lsn)?.1
    }

    /// Version of a page and the end of its record.
    pub fn version(&self, (rel, block): PageId, lsn: Lsn) -> Option<(Lsn, u32)> {
        if !block.is_multiple_of(self.step) {
            return None;
        }
        let block = block / self.step;
        last_at(self.relations.get(&rel)?.blocks.get(block as usize)?, lsn)
    }

    /// Relations that exist, with their sizes.
    pub fn existing(&self, lsn: Lsn) -> Vec<(u32, u32)> {
        self.relations
            .iter()
            .filter_map(|(rel, chapter)| Some((*rel, last_at(&chapter.sizes, lsn)?.1?)))
            .collect()
    }

    /// Relations that were dropped and are not forgotten.
    pub fn dropped(&self, lsn: Lsn) -> Vec<u32> {
        let is_gone =
            |chapter: &Chapter| last_at(&chapter.sizes, lsn).is_some_and(|(_, size)| size.is_none());
        self.relations.iter().filter(|(_, chapter)| is_gone(chapter)).map(|(rel, _)| *rel).collect()
    }

    /// How many pages exist.
    pub fn live(&self, lsn: Lsn) -> u64 {
        self.existing(lsn).iter().map(|(_, size)| u64::from(*size)).sum()
    }

    /// How many pages read otherwise as of `lsn` than as of `next`.
    pub fn differing(&self, lsn: Lsn, next: Lsn) -> u64 {
        let of = |chapter: &Chapter| {
            let size = last_at(&chapter.sizes, lsn).and_then(|(_, size)| size).unwrap_or(0);
            let later = last_at(&chapter.sizes, next).and_then(|(_, size)| size).unwrap_or(0);
            let differs = |(at, versions): &(usize, &Versions)| {
                *at as u32 >= later || last_at(versions, lsn) != last_at(versions, next)
            };
            chapter.blocks.iter().take(size as usize).enumerate().filter(differs).count() as u64
        };
        self.relations.values().map(of).sum()
    }

    /// Forgets what nobody can read any more.
    pub fn forget(&mut self, retention: &Retention) {
        for chapter in self.relations.values_mut() {
            keep(&mut chapter.sizes, retention);
            for versions in chapter.blocks.iter_mut().filter(|versions| versions.len() > 1) {
                keep(versions, retention);
            }
        }
        self.relations.retain(|_, chapter| !matches!(&chapter.sizes[..], [(_, None)]));
    }
}

#[cfg(test)]
mod tests {
    use model::WalSegmentSize;

    use super::*;

    #[test]
    fn what_a_point_or_the_cutoff_reads_is_remembered_and_nothing_else() {
        let mut book = Book::default();
        book.resize(1, Lsn(10), Some(1));
        for (lsn, version) in [(10, 1), (20, 2), (30, 3), (40, 4), (50, 5)] {
            book.write((1, 0), Lsn(lsn), version);
        }
        book.forget(&Retention::new(WalSegmentSize::DEFAULT, Lsn(45), [Lsn(25)]));
        let of = |lsn| book.version((1, 0), Lsn(lsn)).map(|(_, version)| version);
        assert_eq!([of(25), of(45), of(50)], [Some(2), Some(4), Some(5)]);
        assert_eq!(of(35), Some(2), "version 3 is forgotten");
        assert_eq!(book.differing(Lsn(25), Lsn(45)), 1);
    }
}
