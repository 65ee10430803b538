//! Segment files of WAL, read as one stream of records.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use codec::wal::stream::{PageHeader, RawRecord, WalDecoder, WalError};
use model::lsn::LONG_PAGE_HEADER;
use model::{Lsn, PgMajor, Tli, WalSegmentSize};

/// Bytes read from a file at a time.
const READ_SIZE: usize = 1 << 20;

/// The segment files that make up one timeline's WAL: of each segment, the file of the newest Postgres timeline.
#[derive(Debug)]
pub struct WalFiles {
    /// Whose format it is.
    pub pg: PgMajor,
    /// Size of each file.
    pub segment: WalSegmentSize,
    /// Whose WAL it is.
    pub system_id: u64,
    files: BTreeMap<u64, (Tli, PathBuf)>,
}

/// How reading ended.
#[derive(Debug)]
pub enum WalEnd {
    /// The caller had enough.
    Enough,
    /// The files end here, on a record's end or within one.
    Files(Lsn),
    /// What follows is not valid WAL, as after a stop or a crash.
    Invalid(WalError),
}

impl WalFiles {
    /// Finds the segments in a directory, or takes one segment file. `tli` leaves out newer Postgres timelines.
    pub fn open(path: &Path, tli: Option<Tli>) -> Result<WalFiles> {
        let mut found = Vec::new();
        if path.is_dir() {
            for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
                let entry = entry?;
                if let Some(segment) = segment_name(&entry.file_name().to_string_lossy()) {
                    found.push((segment, entry.path()));
                }
            }
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let segment = segment_name(&name)
                .with_context(|| format!("{} is not named as a WAL segment is", path.display()))?;
            found.push((segment, path.to_owned()));
        }
        found.retain(|(segment, _)| tli.is_none_or(|newest| segment.tli <= newest));
        found.sort_by_key(|(segment, _)| *segment);
        let Some((_, any)) = found.first() else { bail!("no WAL segments in {}", path.display()) };

        let (pg, system_id, segment) = identify(any)?;
        let per_id = (1u64 << 32) / segment.bytes();
        let mut files = BTreeMap::new();
        for (name, path) in found {
            // Sorted by timeline first, so the newest one's file stays.
            files.insert(u64::from(name.high) * per_id + u64::from(name.low), (name.tli, path));
        }
        Ok(WalFiles { pg, segment, system_id, files })
    }

    /// LSN of the first byte there is.
    pub fn first(&self) -> Lsn {
        Lsn(self.files.keys().next().map_or(0, |number| number * self.segment.bytes()))
    }

    /// The files from the one that holds `start` on, up to a gap: where each begins, and whose it is.
    pub fn from(&self, start: Lsn) -> impl Iterator<Item = (Lsn, Tli, &Path)> {
        let first = self.segment.number(start);
        self.files
            .range(first..)
            .zip(first..)
            .take_while(|((number, _), expected)| *number == expected)
            .map(|((number, (tli, path)), _)| (Lsn(number * self.segment.bytes()), *tli, path.as_path()))
    }

    /// Hands every record that begins at or after `start` to `each`, from the first file without `start`. A `start` must be a
    /// record's.
    pub fn for_each(
        &self,
        start: Option<Lsn>,
        mut each: impl FnMut(&RawRecord<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<WalEnd> {
        let mut number = self.segment.number(start.unwrap_or_else(|| self.first()));
        let (tli, _) = self
            .files
            .get(&number)
            .with_context(|| format!("no segment holds {}", start.unwrap_or_else(|| self.first())))?;
        let mut decoder = match start {
            Some(start) => WalDecoder::new(self.pg, self.segment, *tli, start),
            None => WalDecoder::at_first_record_after(self.pg, self.segment, *tli, self.first()),
        }
        .expecting_system_id(self.system_id);
        let mut buffer = vec![0; READ_SIZE];
        while let Some((_, path)) = self.files.get(&number) {
            let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            let mut at = Lsn(number * self.segment.bytes());
            loop {
                let count =
                    file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
                if count == 0 {
                    break;
                }
                ensure!(
                    at.0 + count as u64 <= (number + 1) * self.segment.bytes(),
                    "{} is too long",
                    path.display()
                );
                decoder.feed(at, &buffer[..count])?;
                at = at.add(count as u64);
                loop {
                    match decoder.next() {
                        Ok(Some(record)) => {
                            if each(&record)?.is_break() {
                                return Ok(WalEnd::Enough);
                            }
                        }
                        Ok(None) => break,
                        Err(error) if error.may_end_wal() => return Ok(WalEnd::Invalid(error)),
                        Err(error) => {
                            return Err(error).with_context(|| format!("in {}", path.display()));
                        }
                    }
                }
            }
            number += 1;
            if at.0 < number * self.segment.bytes() {
                break; // a file that is still being written
            }
        }
        Ok(WalEnd::Files(decoder.taken_to()))
    }
}

/// The three numbers in a segment's file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SegmentName {
    tli: Tli,
    high: u32,
    low: u32,
}

fn segment_name(name: &str) -> Option<SegmentName> {
    if name.len() != 24 || !name.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let number = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    Some(SegmentName { tli: Tli(number(0)?), high: number(8)?, low: number(16)? })
}

/// Whose WAL a segment file says it is.
fn identify(path: &Path) -> Result<(PgMajor, u64, WalSegmentSize)> {
    let read = || -> Result<_> {
        let mut header = [0; LONG_PAGE_HEADER as usize];
        File::open(path)?.read_exact(&mut header)?;
        let header = PageHeader::parse(&header)?;
        let pg = PgMajor::from_wal_magic(header.magic)
            .with_context(|| format!("its magic {:#06x} is not that of Postgres 14 to 18", header.magic))?;
        let long = header.long.context("its first page has no long header")?;
        Ok((pg, long.system_id, WalSegmentSize::new(long.segment_size.into())?))
    };
    read().with_context(|| format!("{} is no WAL segment", path.display()))
}
