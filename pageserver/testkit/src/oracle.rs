//! Holds pages against the files of a stopped cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use codec::page::Page;
use model::{Fork, Lsn, RelLocator, RelTag, SlruKind, TenantId, TimelineId};

use crate::cluster_files::{self, PageKind, Relation, RelationFile};
use crate::page_client::{PAGE, PageClient};
use crate::page_compare::{Verdict, compare, visibility_bits};
use crate::pageserver::Pageserver;
use crate::postgres::{Postgres, Shutdown};

/// Where the clean shutdown's checkpoint record starts: WAL before and with it makes the files.
pub fn shutdown_checkpoint(postgres: &Postgres) -> Result<Lsn> {
    let bytes = std::fs::read(postgres.data_dir().join("global/pg_control"))?;
    let control = codec::control::ControlFile::parse(&bytes)?;
    // One byte further: served only when the record itself is.
    Ok(control.checkpoint_at.add(1))
}

/// Whose pages are held against the primary's files.
pub enum Pages {
    /// A pageserver's, as of an LSN.
    Served(PageClient, Lsn),
    /// Those of another stopped cluster: with a standby of Postgres' own, this tests the oracle itself.
    Files(PathBuf),
}

impl Pages {
    async fn size(&mut self, tag: RelTag) -> Result<Option<u32>> {
        match self {
            Pages::Served(client, lsn) => {
                if client.exists(tag, *lsn).await? {
                    Ok(Some(client.nblocks(tag, *lsn).await?))
                } else {
                    Ok(None)
                }
            }
            Pages::Files(data) => Ok(RelationFile::open(data, tag)?.map(|file| file.blocks())),
        }
    }

    async fn each(
        &mut self,
        tag: RelTag,
        count: u32,
        mut each: impl FnMut(u32, Result<Vec<u8>>) -> Result<()>,
    ) -> Result<()> {
        match self {
            Pages::Served(client, lsn) => client.pages(tag, count, *lsn, each).await,
            Pages::Files(data) => {
                let file = RelationFile::open(data, tag)?.context("it was there")?;
                (0..count).try_for_each(|block| each(block, file.read(block)))
            }
        }
    }

    async fn slru_segment(&mut self, kind: SlruKind, segment: u32) -> Result<Vec<u8>> {
        match self {
            Pages::Served(client, lsn) => client.slru_segment(kind, segment, *lsn).await,
            Pages::Files(data) => {
                cluster_files::slru_segments(data, kind)?.remove(&segment).context("no such segment")
            }
        }
    }
}

/// What came out of comparing pages.
#[derive(Debug, Default)]
pub struct Tally {
    /// Relations looked at.
    pub relations: u64,
    /// Pages by kind and verdict.
    pub verdicts: BTreeMap<(PageKind, Verdict), u64>,
    /// Pages that only the files have, zero or empty.
    pub excess_zero: u64,
    /// Visibility-map bits that the files have and we have not.
    pub visibility_missing: u64,
    /// Differences, in words.
    pub failures: Vec<String>,
}

impl Tally {
    fn fail(&mut self, what: String) {
        if self.failures.len() < 50 {
            self.failures.push(what);
        }
    }

    /// Fails if a page differs, or if too few were compared to mean anything.
    pub fn verdict(&self) -> Result<()> {
        let compared: u64 = self.verdicts.values().sum();
        ensure!(compared > 1_000, "only {compared} pages were compared");
        if self.failures.is_empty() {
            return Ok(());
        }
        bail!("{} differences:\n{}", self.failures.len(), self.failures.join("\n"))
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "  relations: {}, pages:", self.relations)?;
        for ((kind, verdict), count) in &self.verdicts {
            writeln!(f, "    {kind:?} {verdict:?}: {count}")?;
        }
        writeln!(
            f,
            "  pages only in the files, all zero or empty: {}; visibility bits that WAL did not carry: {}",
            self.excess_zero, self.visibility_missing
        )
    }
}

/// Compares every fork that WAL describes of every relation with the files of a stopped cluster.
pub async fn compare_relations(
    postgres: &Postgres,
    relations: &BTreeMap<RelLocator, Relation>,
    pages: &mut Pages,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for (locator, relation) in relations {
        tally.relations += 1;
        for fork in cluster_files::LOGGED_FORKS {
            let tag = locator.fork(fork);
            let file = RelationFile::open(postgres.data_dir(), tag)?;
            let size = pages.size(tag).await?;
            let Some(file) = file else {
                if size.is_some() {
                    tally.fail(format!("{} {tag} has no file, and we say it exists", relation.name));
                }
                continue;
            };
            let Some(size) = size else {
                // WAL need not tell of an empty file, nor of map bits that it did not carry.
                if fork == Fork::Vm {
                    for block in 0..file.blocks() {
                        tally.visibility_missing +=
                            visibility_bits(&to_page(&file.read(block)?)?, &[0; PAGE]).0;
                    }
                } else if file.blocks() > 0 || fork == Fork::Main {
                    tally.fail(format!(
                        "{} {tag} has {} blocks, and we say there is none",
                        relation.name,
                        file.blocks()
                    ));
                }
                continue;
            };
            if size > file.blocks() {
                tally.fail(format!(
                    "{} {tag}: ours has {size} blocks, the file {}",
                    relation.name,
                    file.blocks()
                ));
            }
            for block in size..file.blocks() {
                let page = file.read(block)?;
                if fork == Fork::Vm {
                    tally.visibility_missing += visibility_bits(&to_page(&page)?, &[0; PAGE]).0;
                } else if compare(relation.kind, block, &to_page(&page)?, &[0; PAGE])? == Verdict::Different {
                    tally.fail(format!(
                        "{} {tag}: the file's block {block} beyond our {size} is not zero",
                        relation.name
                    ));
                } else {
                    tally.excess_zero += 1;
                }
            }
            let both = size.min(file.blocks());
            pages
                .each(tag, both, |block, ours| {
                    let ours = match ours {
                        Ok(page) => to_page(&page)?,
                        Err(error) => {
                            tally.fail(format!("{} {tag} block {block}: {error:#}", relation.name));
                            return Ok(());
                        }
                    };
                    let theirs = to_page(&file.read(block)?)?;
                    if fork == Fork::Vm {
                        let (missing, extra) = visibility_bits(&theirs, &ours);
                        tally.visibility_missing += missing;
                        if extra > 0 {
                            tally.fail(format!(
                                "{} {tag} block {block}: {extra} visibility bits too many",
                                relation.name
                            ));
                        }
                        return Ok(());
                    }
                    match compare(relation.kind, block, &theirs, &ours) {
                        Ok(Verdict::Different) => tally.fail(format!(
                            "{} ({:?}) {tag} block {block}: {}",
                            relation.name,
                            relation.kind,
                            first_difference(&theirs, &ours)
                        )),
                        Ok(verdict) => *tally.verdicts.entry((relation.kind, verdict)).or_default() += 1,
                        Err(error) => tally.fail(format!("{} {tag} block {block}: {error:#}", relation.name)),
                    }
                    Ok(())
                })
                .await?;
        }
    }
    Ok(tally)
}

fn to_page(bytes: &[u8]) -> Result<Page> {
    bytes.try_into().ok().context("not 8192 bytes")
}

/// LSNs and the first differing bytes of two pages, unmasked.
fn first_difference(theirs: &Page, ours: &Page) -> String {
    let places: Vec<usize> = (10..PAGE).filter(|at| theirs[*at] != ours[*at]).collect();
    let shown: Vec<String> =
        places.iter().take(12).map(|at| format!("{at}: {:02x} not {:02x}", ours[*at], theirs[*at])).collect();
    format!(
        "{} bytes differ (LSN ours {}, theirs {}): {}",
        places.len(),
        codec::page::lsn(ours),
        codec::page::lsn(theirs),
        shown.join(", ")
    )
}

/// Whether a commit-log page differs from theirs in nothing but a few transactions that aborted there and are still in progress here.
///
/// An abort is logged before it is noted in the commit log, and a checkpoint does not wait for the one after the other (for commits it does). So
/// the base backup that begins between the two has neither the record nor the note. Whatever is not committed and not running has aborted: every
/// standby lives with this.
fn only_aborts_are_missing(theirs: &[u8], ours: &[u8]) -> bool {
    const IN_PROGRESS: u8 = 0;
    const ABORTED: u8 = 2;
    /// As many as could be between log and note at one moment.
    const AT_ONCE: usize = 8;
    let statuses = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().flat_map(|byte| (0..4).map(move |slot| byte >> (2 * slot) & 3)).collect()
    };
    let (theirs, ours) = (statuses(theirs), statuses(ours));
    let differing: Vec<(u8, u8)> =
        theirs.into_iter().zip(ours.iter().copied()).filter(|(a, b)| a != b).collect();
    ours.len() == 4 * PAGE
        && differing.len() <= AT_ONCE
        && differing.iter().all(|pair| *pair == (ABORTED, IN_PROGRESS))
}

/// The first bytes that differ, in words.
fn differing_bytes(theirs: &[u8], ours: &[u8]) -> String {
    let differing = theirs.iter().zip(ours).enumerate().filter(|(_, (a, b))| a != b);
    let words: Vec<String> =
        differing.take(8).map(|(at, (a, b))| format!("at {at} theirs {a:02x} ours {b:02x}")).collect();
    words.join(", ")
}

/// Compares every SLRU page in the directories of a stopped cluster; how many.
pub async fn compare_slrus(postgres: &Postgres, pages: &mut Pages) -> Result<u64> {
    let mut compared = 0;
    for kind in [SlruKind::Clog, SlruKind::MultiXactOffsets, SlruKind::MultiXactMembers] {
        for (segment, theirs) in cluster_files::slru_segments(postgres.data_dir(), kind)? {
            let ours =
                pages.slru_segment(kind, segment).await.with_context(|| format!("{kind:?} {segment:X}"))?;
            for (number, page) in theirs.chunks(PAGE).enumerate() {
                let same = ours.get(number * PAGE..(number + 1) * PAGE) == Some(page);
                let absent_and_zero = ours.len() <= number * PAGE && page.iter().all(|byte| *byte == 0);
                if !same && !absent_and_zero {
                    let ours = ours.get(number * PAGE..(number + 1) * PAGE).unwrap_or_default();
                    ensure!(
                        kind == SlruKind::Clog && only_aborts_are_missing(page, ours),
                        "{kind:?} segment {segment:X} page {number} differs (ours has {} bytes): {}",
                        ours.len(),
                        differing_bytes(page, ours)
                    );
                }
                compared += 1;
            }
        }
    }
    Ok(compared)
}

/// Stops the primary and holds every relation and SLRU page of `timeline` against its files. `limit` is how long its last WAL may take to arrive.
pub async fn same_as_primary(
    postgres: &mut Postgres,
    server: &mut Pageserver,
    (tenant, timeline): (TenantId, TimelineId),
    limit: Duration,
) -> Result<()> {
    let relations = cluster_files::permanent_relations(postgres).await?;
    let took = postgres.stop(Shutdown::Fast).await?;
    ensure!(took < Duration::from_secs(10), "the primary took {took:?} to stop");
    server.wait_for(tenant, timeline, shutdown_checkpoint(postgres)?, limit).await?;
    let last = server.last_record_lsn(tenant, timeline).await?;
    let mut pages = Pages::Served(server.pages(tenant, timeline).await?, last);
    let tally = compare_relations(postgres, &relations, &mut pages).await?;
    compare_slrus(postgres, &mut pages).await?;
    tally.verdict()
}
