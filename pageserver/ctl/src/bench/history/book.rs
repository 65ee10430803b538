//! What every page must read as: for each page the ends of the records that changed it and which version each made.

use std::collections::BTreeMap;

use engine::retention::Retention;
use model::Lsn;

/// A page: the number of its relation, and which block.
pub type PageId = (u32, u32);

/// All pages and all their versions that may be read again.
#[derive(Clone, Default)]
pub struct Book {
    relations: BTreeMap<u32, Chapter>,
}

#[derive(Clone, Default)]
struct Chapter {
    /// Blocks from an LSN on; `None` when it was dropped.
    sizes: Vec<(Lsn, Option<u32>)>,
    blocks: Vec<Block>,
}

#[derive(Clone, Default)]
struct Block {
    versions: Vec<(Lsn, u32)>,
    /// Between which checkpoints it was written whole last.
    whole_in: u32,
}

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

impl Book {
    /// Notes a relation's size; `None`: it was dropped.
    pub fn resize(&mut self, rel: u32, lsn: Lsn, size: Option<u32>) {
        self.relations.entry(rel).or_default().sizes.push((lsn, size));
    }

    /// Notes a version.
    pub fn write(&mut self, (rel, block): PageId, lsn: Lsn, version: u32) {
        let blocks = &mut self.relations.entry(rel).or_default().blocks;
        if blocks.len() <= block as usize {
            blocks.resize_with(block as usize + 1, Block::default);
        }
        blocks[block as usize].versions.push((lsn, version));
    }

    /// Whether a page is not written whole yet since checkpoint `epoch`; from now on it is.
    pub fn is_first_since(&mut self, (rel, block): PageId, epoch: u32) -> bool {
        let found = self.relations.get_mut(&rel).and_then(|chapter| chapter.blocks.get_mut(block as usize));
        found.is_none_or(|block| std::mem::replace(&mut block.whole_in, epoch) != epoch)
    }

    /// Blocks of a relation; `None` when it does not exist.
    pub fn size(&self, rel: u32, lsn: Lsn) -> Option<u32> {
        last_at(&self.relations.get(&rel)?.sizes, lsn)?.1
    }

    /// Version of a page and the end of its record.
    pub fn version(&self, (rel, block): PageId, lsn: Lsn) -> Option<(Lsn, u32)> {
        last_at(&self.relations.get(&rel)?.blocks.get(block as usize)?.versions, lsn)
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
            let differs = |(at, block): &(usize, &Block)| {
                *at as u32 >= later || last_at(&block.versions, lsn) != last_at(&block.versions, next)
            };
            chapter.blocks.iter().take(size as usize).enumerate().filter(differs).count() as u64
        };
        self.relations.values().map(of).sum()
    }

    /// Forgets what nobody can read any more.
    pub fn forget(&mut self, retention: &Retention) {
        for chapter in self.relations.values_mut() {
            keep(&mut chapter.sizes, retention);
            for block in &mut chapter.blocks {
                if block.versions.len() > 1 {
                    keep(&mut block.versions, retention);
                }
            }
        }
        self.relations.retain(|_, chapter| !matches!(&chapter.sizes[..], [(_, None)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_point_or_the_cutoff_reads_is_remembered_and_nothing_else() {
        let mut book = Book::default();
        book.resize(1, Lsn(10), Some(1));
        for (lsn, version) in [(10, 1), (20, 2), (30, 3), (40, 4), (50, 5)] {
            book.write((1, 0), Lsn(lsn), version);
        }
        book.forget(&Retention::new(Lsn(45), [Lsn(25)]));
        let of = |lsn| book.version((1, 0), Lsn(lsn)).map(|(_, version)| version);
        assert_eq!([of(25), of(45), of(50)], [Some(2), Some(4), Some(5)]);
        assert_eq!(of(35), Some(2), "version 3 is forgotten");
        assert_eq!(book.differing(Lsn(25), Lsn(45)), 1);
    }
}
