//! Reads that are compared with the book, and what they took.

use anyhow::{Context as _, Result, ensure};
use engine::error_story::error_story;
use engine::timeline::Timeline;
use model::Lsn;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::book::{Book, PageId};
use super::pages::{page_of, relation};

/// How often each number was seen.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    /// Notes one.
    pub fn add(&mut self, number: usize) {
        if self.counts.len() <= number {
            self.counts.resize(number + 1, 0);
        }
        self.counts[number] += 1;
    }

    /// Notes all of another.
    pub fn merge(&mut self, other: &Histogram) {
        for (number, count) in other.counts.iter().enumerate() {
            if *count > 0 {
                self.counts.resize(self.counts.len().max(number + 1), 0);
                self.counts[number] += count;
            }
        }
    }

    /// The number that this share of those seen did not exceed.
    pub fn quantile(&self, share: f64) -> usize {
        let wanted = (self.counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let reached = |count: &u64| {
            seen += count;
            seen >= wanted
        };
        self.counts.iter().position(reached).unwrap_or(0)
    }

    /// How many were seen.
    pub fn len(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// What reads took.
#[derive(Clone, Debug, Default)]
pub struct Depth {
    pub layers: Histogram,
    pub changes: Histogram,
}

impl Depth {
    /// Notes all of another.
    pub fn merge(&mut self, other: &Depth) {
        self.layers.merge(&other.layers);
        self.changes.merge(&other.changes);
    }
}

/// Reads a page and compares it.
pub async fn read_page(
    timeline: &Timeline,
    book: &Book,
    page: PageId,
    lsn: Lsn,
    depth: &mut Depth,
) -> Result<()> {
    let (rel, block) = page;
    let Some((written, version)) = book.version(page, lsn) else { return Ok(()) };
    let found = timeline
        .explain(relation(rel), block, lsn)
        .await
        .map_err(|error| anyhow::anyhow!("block {block} of {rel} at {lsn}: {}", error_story(&error)))?;
    depth.layers.add(found.layers);
    depth.changes.add(found.changes);
    let value = found.value.with_context(|| format!("block {block} of {rel} at {lsn} has no value"))?;
    ensure!(
        value[..] == page_of(rel, block, version, written)[..],
        "block {block} of {rel} at {lsn} is not version {version} of {written}; its LSN is {}",
        value.first_chunk().map_or(Lsn::INVALID, codec::page::lsn),
    );
    Ok(())
}

/// Compares pages as of an LSN: all, or as many as `most` at random. Answers how many.
pub async fn compare(timeline: &Timeline, book: &Book, lsn: Lsn, most: usize, seed: u64) -> Result<usize> {
    const BATCH: usize = 256;
    for rel in book.dropped(lsn) {
        let size = timeline.rel_size(relation(rel), lsn).await?;
        ensure!(size.is_none(), "relation {rel} was dropped and has {size:?} blocks at {lsn}");
    }
    let mut pages: Vec<PageId> = Vec::new();
    for (rel, size) in book.existing(lsn) {
        let found = timeline.rel_size(relation(rel), lsn).await?;
        ensure!(found == Some(size), "relation {rel} has {found:?} blocks at {lsn} instead of {size}");
        pages.extend(book.blocks(size).map(|block| (rel, block)));
    }
    let mut random = StdRng::seed_from_u64(seed ^ lsn.0);
    if pages.len() > most {
        for at in 0..most {
            let other = random.random_range(at..pages.len());
            pages.swap(at, other);
        }
        pages.truncate(most);
        pages.sort_unstable();
    }
    for batch in pages.chunks(BATCH) {
        let asked: Vec<_> = batch.iter().map(|(rel, block)| (relation(*rel), *block, lsn)).collect();
        let mut found = Vec::with_capacity(asked.len());
        timeline.get_pages(&asked, &mut found).await;
        for (page, found) in batch.iter().zip(found) {
            let (rel, block) = *page;
            let found = found.map_err(|error| {
                anyhow::anyhow!("block {block} of {rel} at {lsn}: {}", error_story(&error))
            })?;
            let (written, version) =
                book.version(*page, lsn).with_context(|| format!("the book lacks block {block} of {rel}"))?;
            ensure!(
                found[..] == page_of(rel, block, version, written)[..],
                "block {block} of {rel} at {lsn} is not version {version} of {written}"
            );
        }
    }
    Ok(pages.len())
}
