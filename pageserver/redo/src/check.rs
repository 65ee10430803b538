//! Redo compared with Postgres: under `wal_consistency_checking` every record carries, for each of its blocks, the page that must come
//! out. For tests and `pagectl redo-check`; reads of pages never come here.

use std::collections::{BTreeMap, HashMap};

use codec::bytes_in::BytesIn;
use codec::page::{self, Page, ZERO_PAGE};
use codec::wal::image;
use codec::wal::record::{BlockRef, Record, trimmed};
use model::{Fork, Lsn, RelTag, RmgrId};

use crate::visibility::{self, map_block};
use crate::{Applied, Fault, RedoError, apply, mask};

/// A kind of record: resource manager and the high four bits of its info.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordKind {
    /// Whose record.
    pub rmgr: u8,
    /// Which operation.
    pub operation: u8,
}

/// What became of the blocks of a kind of record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records of the kind.
    pub records: u64,
    /// Blocks that they touch.
    pub blocks: u64,
    /// Blocks whose image was to be restored.
    pub restored: u64,
    /// Blocks whose page before the record was not known: the image is believed.
    pub seeded: u64,
    /// Blocks that were not changed, or were as new already.
    pub unchanged: u64,
    /// Pages compared with an image; the sum of what follows but errors.
    pub compared: u64,
    /// Equal in every byte but LSN and checksum.
    pub equal: u64,
    /// Equal under the stricter mask, see [`mask::mask_strictly`].
    pub equal_strictly: u64,
    /// Equal only under Postgres' own mask.
    pub equal_masked: u64,
    /// Different in the one flag that redo sets and the primary does not, see [`mask`].
    pub documented: u64,
    /// Visibility-map pages with fewer bits set than Postgres': safe, and known where a map was copied by `CREATE DATABASE`.
    pub map_behind: u64,
    /// Visibility-map pages with bits that Postgres has not. Before 17.11 and 18.6 a backend clears a bit a little before its record.
    pub map_ahead: u64,
    /// Different.
    pub different: u64,
    /// Blocks that could not be redone.
    pub errors: u64,
}

impl Tally {
    /// Adds another's figures.
    pub fn add(&mut self, other: &Tally) {
        let Tally { records, blocks, restored, seeded, unchanged, compared, .. } = *other;
        self.records += records;
        self.blocks += blocks;
        self.restored += restored;
        self.seeded += seeded;
        self.unchanged += unchanged;
        self.compared += compared;
        self.equal += other.equal;
        self.equal_strictly += other.equal_strictly;
        self.equal_masked += other.equal_masked;
        self.documented += other.documented;
        self.map_behind += other.map_behind;
        self.map_ahead += other.map_ahead;
        self.different += other.different;
        self.errors += other.errors;
    }

    fn count(&mut self, verdict: Verdict) {
        self.compared += 1;
        *match verdict {
            Verdict::Equal => &mut self.equal,
            Verdict::EqualStrictly => &mut self.equal_strictly,
            Verdict::EqualMasked => &mut self.equal_masked,
            Verdict::Documented => &mut self.documented,
            Verdict::MapBehind => &mut self.map_behind,
            Verdict::MapAhead => &mut self.map_ahead,
            Verdict::Different => &mut self.different,
        } += 1;
    }
}

/// How two pages compare. Each is a count of [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "said at the counts")]
pub enum Verdict {
    Equal,
    EqualStrictly,
    EqualMasked,
    Documented,
    MapBehind,
    MapAhead,
    Different,
}

/// Compares a page that redo made with the one that Postgres made, after a record of `rmgr`.
pub fn compare(rmgr: RmgrId, fork: Fork, block: u32, ours: &Page, theirs: &Page) -> Result<Verdict, Fault> {
    const LSN_AND_CHECKSUM: usize = 10;
    const MAP: usize = 24;
    if ours[LSN_AND_CHECKSUM..] == theirs[LSN_AND_CHECKSUM..] {
        return Ok(Verdict::Equal);
    }
    let equal_under = |mask: &dyn Fn(&mut Page) -> Result<(), Fault>| -> Result<bool, Fault> {
        let (mut ours, mut theirs) = (*ours, *theirs);
        mask(&mut ours)?;
        mask(&mut theirs)?;
        Ok(ours == theirs)
    };
    if equal_under(&|page| mask::mask_strictly(rmgr, fork, block, page))? {
        return Ok(Verdict::EqualStrictly);
    }
    if fork == Fork::Vm {
        let is_subset = ours[MAP..].iter().zip(&theirs[MAP..]).all(|(ours, theirs)| ours & !theirs == 0);
        return Ok(if is_subset { Verdict::MapBehind } else { Verdict::MapAhead });
    }
    if equal_under(&|page| mask::mask(rmgr, block, page))? {
        return Ok(Verdict::EqualMasked);
    }
    let has_documented = rmgr == RmgrId::GIST
        && equal_under(&|page| {
            mask::mask(rmgr, block, page)?;
            mask::clear_gist_tuples_deleted(page)
        })?;
    Ok(if has_documented { Verdict::Documented } else { Verdict::Different })
}

/// Something that should not be.
#[derive(Clone, Debug)]
pub struct Finding {
    /// End of the record.
    pub lsn: Lsn,
    /// Its kind.
    pub kind: RecordKind,
    /// Id of the block reference.
    pub id: u8,
    /// The block.
    pub rel: RelTag,
    /// Its number.
    pub block: u32,
    /// What happened.
    pub what: What,
}

/// What a [`Finding`] is about.
#[derive(Clone, Debug)]
pub enum What {
    /// Redo made another page than Postgres.
    Difference {
        /// How they differ.
        verdict: Verdict,
        /// Redo's.
        ours: Box<Page>,
        /// Postgres'.
        theirs: Box<Page>,
    },
    /// Redo failed, or the pages cannot be compared.
    Error(String),
}

/// Replays WAL block by block and compares.
pub struct Checker<B> {
    pages: HashMap<(RelTag, u32), Box<Page>>,
    base: B,
    tallies: BTreeMap<RecordKind, Tally>,
}

impl<B: FnMut(RelTag, u32) -> Option<Box<Page>>> Checker<B> {
    /// `base` gives a page as it was before the first record, if it is known.
    pub fn new(base: B) -> Self {
        Checker { pages: HashMap::new(), base, tallies: BTreeMap::new() }
    }

    /// The figures so far.
    pub fn tallies(&self) -> &BTreeMap<RecordKind, Tally> {
        &self.tallies
    }

    /// The pages so far.
    pub fn pages(&self) -> impl Iterator<Item = (RelTag, u32, &Page)> {
        self.pages.iter().map(|((rel, block), page)| (*rel, *block, &**page))
    }

    /// Redoes a record on all its blocks. Each block gets the record trimmed to it, as it is stored.
    pub fn check(&mut self, record: &Record<'_>, bytes: &[u8], end: Lsn, found: &mut dyn FnMut(Finding)) {
        let kind = RecordKind { rmgr: record.rmgr.0, operation: record.info & 0xF0 };
        self.tallies.entry(kind).or_default().records += 1;
        let mut tally = Tally::default();
        let report = |block: &BlockRef<'_>, what| Finding {
            lsn: end,
            kind,
            id: block.id,
            rel: block.rel,
            block: block.block,
            what,
        };
        if let Err(error) = self.follow_unregistered(record) {
            tally.errors += 1;
            if let Some(block) = record.blocks.first() {
                found(report(block, What::Error(error.to_string())));
            }
        }
        for block in &record.blocks {
            tally.blocks += 1;
            let theirs = match block.image.map(|image| {
                let mut page = Box::new(ZERO_PAGE);
                image::restore(&image, &mut page).map(|()| page)
            }) {
                Some(Err(error)) => {
                    tally.errors += 1;
                    found(report(block, What::Error(error.to_string())));
                    continue;
                }
                Some(Ok(page)) => Some(page),
                None => None,
            };
            match self.check_block(record, block, bytes, end, theirs.as_deref(), &mut tally) {
                Ok(None) => {}
                Ok(Some((verdict, ours))) => {
                    let theirs = theirs.unwrap_or_else(|| Box::new(ZERO_PAGE));
                    found(report(block, What::Difference { verdict, ours, theirs }));
                }
                Err(error) => {
                    tally.errors += 1;
                    self.adopt(block, theirs.as_deref(), end);
                    found(report(block, What::Error(error)));
                }
            }
        }
        self.tallies.entry(kind).or_default().add(&tally);
    }

    fn check_block(
        &mut self,
        record: &Record<'_>,
        block: &BlockRef<'_>,
        bytes: &[u8],
        end: Lsn,
        theirs: Option<&Page>,
        tally: &mut Tally,
    ) -> Result<Option<(Verdict, Box<Page>)>, String> {
        let key = (block.rel, block.block);
        if !self.pages.contains_key(&key) {
            let base = if block.is_base() { Some(Box::new(ZERO_PAGE)) } else { (self.base)(key.0, key.1) };
            let Some(base) = base else {
                tally.seeded += 1;
                self.adopt(block, theirs, end);
                return Ok(None);
            };
            self.pages.insert(key, base);
        }
        let Some(page) = self.pages.get_mut(&key) else { return Ok(None) };
        let stored = trimmed(record, bytes, block.id);
        let stored = Record::parse(record.pg, &stored).map_err(|error| describe(&error))?;
        let reference = stored.block_of(block.rel, block.block).ok_or("the block was trimmed away")?;
        match apply(&stored, reference, end, page).map_err(|error: RedoError| describe(&error))? {
            Applied::Changed => {}
            Applied::SkippedOlder | Applied::Nothing => {
                tally.unchanged += 1;
                return Ok(None);
            }
        }
        if block.image.is_some_and(|image| image.apply) {
            tally.restored += 1; // the image is what it would be compared with
            return Ok(None);
        }
        let Some(theirs) = theirs else { return Ok(None) };
        let verdict = compare(record.rmgr, block.rel.fork, block.block, page, theirs)
            .map_err(|fault| fault.to_string())?;
        tally.count(verdict);
        if matches!(verdict, Verdict::Equal | Verdict::EqualStrictly) {
            return Ok(None);
        }
        let ours = page.clone();
        if matches!(verdict, Verdict::Different | Verdict::MapAhead | Verdict::MapBehind) {
            // Say a difference once, not at every later record.
            self.adopt(block, Some(theirs), end);
        }
        Ok(Some((verdict, ours)))
    }

    /// Goes on with Postgres' page.
    fn adopt(&mut self, block: &BlockRef<'_>, theirs: Option<&Page>, end: Lsn) {
        let key = (block.rel, block.block);
        match theirs {
            Some(theirs) => {
                let mut page = Box::new(*theirs);
                if !page::is_new(&page) {
                    page::set_lsn(&mut page, end);
                }
                self.pages.insert(key, page);
            }
            None => {
                self.pages.remove(&key);
            }
        }
    }

    /// Changes that a record makes to pages that are not among its blocks.
    fn follow_unregistered(&mut self, record: &Record<'_>) -> Result<(), Fault> {
        const TRUNCATE: u8 = 0x20;
        if let Some(heap) = record.blocks.first()
            && record.blocks.iter().all(|block| block.rel.fork != Fork::Vm)
        {
            let map = heap.rel.locator().fork(Fork::Vm);
            for clear in visibility::clears(record)?.into_iter().flatten() {
                if let Some(page) = self.pages.get_mut(&(map, map_block(clear.heap_block))) {
                    visibility::clear(page, clear.heap_block, clear.bits);
                }
            }
        }
        if record.rmgr == RmgrId::SMGR && record.info & 0xF0 == TRUNCATE {
            self.truncate(record)?;
        }
        Ok(())
    }

    /// `u32 blocks | u32 tablespace | u32 database | u32 relation | u32 flags: 1 heap, 2 visibility map, 4 free-space map`
    fn truncate(&mut self, record: &Record<'_>) -> Result<(), Fault> {
        const HEAP: u32 = 1;
        const MAP: u32 = 2;
        let mut main = BytesIn::new(record.main);
        let blocks = main.u32_le()?;
        let rel = model::RelLocator { spc: main.u32_le()?, db: main.u32_le()?, rel: main.u32_le()? };
        let flags = main.u32_le()?;
        let first_cut = map_block(blocks);
        self.pages.retain(|(of, block), _| {
            let is_cut = match of.fork {
                Fork::Main => flags & HEAP != 0 && *block >= blocks,
                Fork::Vm => flags & MAP != 0 && *block > first_cut,
                Fork::Fsm | Fork::Init => false,
            };
            of.locator() != rel || !is_cut
        });
        if flags & MAP != 0
            && let Some(page) = self.pages.get_mut(&(rel.fork(Fork::Vm), first_cut))
        {
            let within = u64::from(blocks % visibility::HEAP_BLOCKS_PER_PAGE);
            visibility::truncate(page, within / 4, within % 4 * 2)?;
        }
        Ok(())
    }
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += ": ";
        text += &inner.to_string();
        cause = inner.source();
    }
    text
}
