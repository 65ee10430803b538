//! A WAL byte stream, cut anywhere, to whole records (`xlogreader.c` is the model for what is valid).
//!
//! ```text
//! page header, at every multiple of 8192:
//!   u16 magic | u16 info | u32 timeline | u64 address of this page | u32 bytes left of the record that began before | 4 pad
//!   the first page of a segment goes on: u64 system identifier | u32 segment size | u32 page size
//! info: 1 page begins within a record, 2 long header, 4 backup blocks removable, 8 page begins where an aborted record would go on
//! ```
//!
//! Records begin at multiples of 8 and are cut by page headers wherever these fall; the first four bytes, their length, never are.
//! After `XLOG_SWITCH` the rest of the segment is unused.

use model::lsn::{LONG_PAGE_HEADER, SHORT_PAGE_HEADER, WAL_PAGE_SIZE};
use model::{Lsn, PgMajor, RmgrId, Tli, WalSegmentSize};

use crate::bytes_in::{BytesIn, Truncated};
use crate::wal::crc;
use crate::wal::record::{HEADER_SIZE, MAX_RECORD_SIZE, Record, RecordError};

/// Page begins with the rest of a record.
pub const PAGE_FIRST_IS_CONTRECORD: u16 = 0x01;
/// Page header is the long one.
pub const PAGE_LONG_HEADER: u16 = 0x02;
/// Nothing on the page needs its full-page images (`XLP_BKP_REMOVABLE`).
pub const PAGE_BKP_REMOVABLE: u16 = 0x04;
/// Page begins where the rest of a record would be that a crash cut off.
pub const PAGE_FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x08;
const PAGE_ALL_FLAGS: u16 = 0x0F;

/// `XLOG_SWITCH`, of the resource manager XLOG.
pub const INFO_XLOG_SWITCH: u8 = 0x40;
/// `XLOG_OVERWRITE_CONTRECORD`, of the resource manager XLOG.
pub const INFO_XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;
/// The bits of a record's info that belong to its resource manager.
pub const INFO_RMGR_MASK: u8 = 0xF0;

/// No cluster's WAL gets this far; arithmetic below it cannot overflow.
const LAST_START: u64 = 1 << 62;

/// Buffers that grew beyond this for one record are given back after it.
const KEPT_CAPACITY: usize = 1 << 20;

/// Cuts a WAL byte stream into records and checks everything that can be checked of them.
///
/// Feed it contiguous bytes ([`WalDecoder::feed`]), take records ([`WalDecoder::next`]) until it answers `None`, feed again.
/// It holds what was fed and not yet taken, plus the part of one record that is still incomplete.
#[derive(Debug)]
pub struct WalDecoder {
    pg: PgMajor,
    segment: WalSegmentSize,
    /// Highest page timeline so far: later pages must not have a lower one.
    tli: Tli,
    system_id: Option<u64>,
    /// Start of the last record taken, when known.
    prev: Option<Lsn>,
    /// End of the last record taken.
    taken_to: Lsn,
    state: State,
    /// Set once the first bytes came.
    started: bool,
    /// Bytes fed; those before `used` are done with.
    input: Vec<u8>,
    used: usize,
    /// LSN of `input[used]`.
    at: Lsn,
    /// What is there of a record that spans pages.
    partial: Vec<u8>,
    /// Where the record began that a page said was aborted; the next record must confirm it.
    aborted: Option<Lsn>,
    failed: Option<WalError>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the first record: at the header of the page that holds the start, or before that page.
    Seek { start: Lsn },
    /// At the page to start with; a record that began before it is skipped.
    Resync,
    /// Skipping the rest of a record that began before the place to start.
    Continuation { left: u32 },
    /// Bytes before this place mean nothing; a record begins there.
    Skip { until: Lsn },
    /// A record begins here (or a page header does, and then a record).
    Between,
    /// In a record that spans pages: `partial` holds its beginning.
    Within { start: Lsn, total: u32, header_checked: bool },
}

/// A whole record with a right CRC, on loan from the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// Whose format it is.
    pub pg: PgMajor,
    /// Where it begins.
    pub start: Lsn,
    /// Where the next one may begin (aligned, before a page header if one follows): the LSN that redo stamps pages with. After
    /// `XLOG_SWITCH` this is the start of the next segment.
    pub end: Lsn,
    /// The Postgres timeline of the page that it ends on.
    pub tli: Tli,
    /// Header and all, without page headers and padding.
    pub bytes: &'a [u8],
}

impl<'a> RawRecord<'a> {
    /// Takes it apart.
    pub fn parse(&self) -> Result<Record<'a>, RecordError> {
        Record::parse(self.pg, self.bytes)
    }
}

/// Bytes that do not go on as valid WAL.
///
/// In a stream each is an error. In files most mean that WAL ends here: see [`WalError::may_end_wal`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WalError {
    #[error("WAL bytes at {found} were fed where those at {expected} were expected")]
    Gap { expected: Lsn, found: Lsn },
    #[error("{at} is no place in any cluster's WAL")]
    OutOfRange { at: Lsn },
    #[error("WAL page at {at} has magic {found:#06x}, expected {expected:#06x}")]
    Magic { at: Lsn, found: u16, expected: u16 },
    #[error("WAL page at {at} has flags {found:#06x}, expected {expected}")]
    PageFlags { at: Lsn, found: u16, expected: &'static str },
    #[error("WAL page at {at} says that it belongs at {found}")]
    PageAddress { at: Lsn, found: Lsn },
    #[error("WAL page at {at} is of timeline {found}, after pages of timeline {highest}")]
    Timeline { at: Lsn, found: Tli, highest: Tli },
    #[error("WAL page at {at} is of the cluster with system identifier {found}, expected {expected}")]
    SystemId { at: Lsn, found: u64, expected: u64 },
    #[error("WAL segment at {at} says that segments have {found} bytes, expected {expected}")]
    SegmentSize { at: Lsn, found: u32, expected: u64 },
    #[error("WAL segment at {at} says that pages have {found} bytes, expected {WAL_PAGE_SIZE}")]
    PageSize { at: Lsn, found: u32 },
    #[error("WAL page at {at} does not go on with the record at {start}: expected {expected} bytes of it")]
    NoContinuation { at: Lsn, start: Lsn, expected: u32 },
    #[error("WAL page at {at} says that {found} bytes of a record are left, expected {expected}")]
    ContinuationLength { at: Lsn, found: u32, expected: u32 },
    #[error("WAL page at {at} begins within a record, but one should begin there")]
    UnexpectedContinuation { at: Lsn },
    #[error("WAL page at {at} takes the place of an aborted record, but none was begun")]
    UnexpectedOverwrite { at: Lsn },
    #[error("record at {at} has length {found}, expected {HEADER_SIZE} to {MAX_RECORD_SIZE}")]
    Length { at: Lsn, found: u32 },
    #[error("record at {at} has the unknown resource manager {found}")]
    Rmgr { at: Lsn, found: u8 },
    #[error("record at {at} follows the one at {found}, expected {expected}")]
    PrevLink { at: Lsn, found: Lsn, expected: Lsn },
    #[error("record at {at} follows the one at {found}, which is not before it")]
    PrevNotBefore { at: Lsn, found: Lsn },
    #[error("record at {at} has CRC {found:#010x}, its bytes have {expected:#010x}")]
    Crc { at: Lsn, found: u32, expected: u32 },
    #[error("record at {at} should say that it takes the place of the aborted record at {expected}")]
    NotOverwrite { at: Lsn, expected: Lsn },
    #[error("record at {at} takes the place of the aborted record at {found}, expected {expected}")]
    OverwriteLsn { at: Lsn, found: Lsn, expected: Lsn },
    #[error("WAL at {at} is truncated: {source}")]
    Truncated { at: Lsn, source: Truncated },
}

impl WalError {
    /// Whether this is how the end of WAL looks in segment files after a stop or a crash: unwritten zeros, a recycled segment's old
    /// pages, a torn record. Then nothing after it counts. The other errors say that the bytes are not this cluster's WAL at all.
    pub fn may_end_wal(&self) -> bool {
        match self {
            WalError::Magic { .. }
            | WalError::PageFlags { .. }
            | WalError::PageAddress { .. }
            | WalError::NoContinuation { .. }
            | WalError::ContinuationLength { .. }
            | WalError::UnexpectedContinuation { .. }
            | WalError::UnexpectedOverwrite { .. }
            | WalError::Length { .. }
            | WalError::Rmgr { .. }
            | WalError::PrevLink { .. }
            | WalError::PrevNotBefore { .. }
            | WalError::Crc { .. } => true,
            WalError::Gap { .. }
            | WalError::OutOfRange { .. }
            | WalError::Timeline { .. }
            | WalError::SystemId { .. }
            | WalError::SegmentSize { .. }
            | WalError::PageSize { .. }
            | WalError::NotOverwrite { .. }
            | WalError::OverwriteLsn { .. }
            | WalError::Truncated { .. } => false,
        }
    }
}

/// A header at the beginning of a WAL page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// Tells the major.
    pub magic: u16,
    /// See the module.
    pub info: u16,
    /// When the page was begun.
    pub tli: Tli,
    /// Where it belongs.
    pub address: Lsn,
    /// Bytes of the record that the page begins within, headers of later pages not counted.
    pub continuation: u32,
    /// On the first page of a segment.
    pub long: Option<LongPageHeader>,
}

/// What the header of a segment's first page says besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongPageHeader {
    /// The cluster's identifier.
    pub system_id: u64,
    /// Bytes of a segment.
    pub segment_size: u32,
    /// Bytes of a WAL page.
    pub page_size: u32,
}

impl PageHeader {
    /// Reads a header as it is; the long one if its flag is set. Checks nothing.
    pub fn parse(bytes: &[u8]) -> Result<PageHeader, Truncated> {
        let mut input = BytesIn::new(bytes);
        let magic = input.u16_le()?;
        let info = input.u16_le()?;
        let tli = Tli(input.u32_le()?);
        let address = Lsn(input.u64_le()?);
        let continuation = input.u32_le()?;
        input.skip(4)?;
        let long = if info & PAGE_LONG_HEADER == 0 {
            None
        } else {
            Some(LongPageHeader {
                system_id: input.u64_le()?,
                segment_size: input.u32_le()?,
                page_size: input.u32_le()?,
            })
        };
        Ok(PageHeader { magic, info, tli, address, continuation, long })
    }

    /// Appends the header's bytes: [`LONG_PAGE_HEADER`] of them with a long part, else [`SHORT_PAGE_HEADER`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.magic.to_le_bytes());
        out.extend_from_slice(&self.info.to_le_bytes());
        out.extend_from_slice(&self.tli.0.to_le_bytes());
        out.extend_from_slice(&self.address.0.to_le_bytes());
        out.extend_from_slice(&self.continuation.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        if let Some(long) = &self.long {
            out.extend_from_slice(&long.system_id.to_le_bytes());
            out.extend_from_slice(&long.segment_size.to_le_bytes());
            out.extend_from_slice(&long.page_size.to_le_bytes());
        }
    }
}

/// Bytes of the page header at `page`.
pub fn page_header_size(page: Lsn, segment: WalSegmentSize) -> u64 {
    if segment.offset(page) == 0 { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER }
}

/// Where a whole record lies.
enum Found {
    /// In the input, from this offset.
    Input(usize),
    /// In `partial`.
    Partial,
}

impl WalDecoder {
    /// Starts at `start`, where a record begins: its first byte, or the page header before it, or the end of the record before it.
    /// `tli` is the lowest Postgres timeline that pages may have.
    pub fn new(pg: PgMajor, segment: WalSegmentSize, tli: Tli, start: Lsn) -> Self {
        Self::with_state(pg, segment, tli, start, State::Seek { start })
    }

    /// Starts with the first record that begins at or after `page`, which is rounded up to a page's beginning. For WAL whose record
    /// boundaries are not known, such as a segment file on its own.
    pub fn at_first_record_after(pg: PgMajor, segment: WalSegmentSize, tli: Tli, page: Lsn) -> Self {
        let page = Lsn(page.0.div_ceil(WAL_PAGE_SIZE).saturating_mul(WAL_PAGE_SIZE));
        Self::with_state(pg, segment, tli, page, State::Resync)
    }

    fn with_state(pg: PgMajor, segment: WalSegmentSize, tli: Tli, start: Lsn, state: State) -> Self {
        WalDecoder {
            pg,
            segment,
            tli,
            system_id: None,
            prev: None,
            taken_to: start,
            state,
            started: false,
            input: Vec::new(),
            used: 0,
            at: start,
            partial: Vec::new(),
            aborted: None,
            failed: None,
        }
    }

    /// Also checks that segments are of this cluster. Without it, they must be of the cluster that the first one names.
    #[must_use]
    pub fn expecting_system_id(mut self, system_id: u64) -> Self {
        self.system_id = Some(system_id);
        self
    }

    /// Also checks that the first record follows the one at `prev`.
    #[must_use]
    pub fn expecting_prev(mut self, prev: Lsn) -> Self {
        self.prev = Some(prev);
        self
    }

    /// The highest Postgres timeline seen so far.
    pub fn tli(&self) -> Tli {
        self.tli
    }

    /// The cluster that the WAL belongs to, once it is known.
    pub fn system_id(&self) -> Option<u64> {
        self.system_id
    }

    /// End of the last record taken; the start before there was one. Everything below is decoded; streaming can start again from here.
    pub fn taken_to(&self) -> Lsn {
        self.taken_to
    }

    /// Start of the last record taken, or as told by [`WalDecoder::expecting_prev`].
    pub fn last_record(&self) -> Option<Lsn> {
        self.prev
    }

    /// Where the next bytes to feed belong. Before any were fed: the latest place that is early enough.
    pub fn fed_to(&self) -> Lsn {
        self.at.add((self.input.len() - self.used) as u64)
    }

    /// Bytes that it holds in memory.
    pub fn held_bytes(&self) -> usize {
        self.input.capacity() + self.partial.capacity()
    }

    /// Adds bytes, of which the first belongs at `at`: where the bytes fed before ended. The first call may begin anywhere before the
    /// start; if it includes the header of the start's page, that is checked too.
    pub fn feed(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), WalError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut bytes = bytes;
        if self.started {
            if at != self.fed_to() {
                return Err(WalError::Gap { expected: self.fed_to(), found: at });
            }
        } else {
            if self.at.0 > LAST_START || at.0 > LAST_START {
                return Err(WalError::OutOfRange { at: self.at.max(at) });
            }
            let start = self.at.align_up();
            if at > start {
                return Err(WalError::Gap { expected: start, found: at });
            }
            let wanted = if at <= start.page_start() { start.page_start() } else { start };
            let before = wanted.since(at);
            if before >= bytes.len() as u64 {
                return Ok(());
            }
            // Not truncated: it is less than the slice's length.
            bytes = &bytes[before as usize..];
            self.at = wanted;
            self.started = true;
        }
        if self.used == self.input.len() {
            self.input.clear();
        } else {
            self.input.drain(..self.used);
        }
        self.used = 0;
        if self.input.capacity() > KEPT_CAPACITY && self.input.len() + bytes.len() < KEPT_CAPACITY {
            self.input.shrink_to(KEPT_CAPACITY);
        }
        self.input.extend_from_slice(bytes);
        Ok(())
    }

    /// The next record; `None` when more bytes are needed first. After an error it answers the same error for good.
    #[allow(clippy::should_implement_trait, reason = "it lends, an Iterator cannot")]
    pub fn next(&mut self) -> Result<Option<RawRecord<'_>>, WalError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        match self.advance() {
            Ok(None) => Ok(None),
            Ok(Some((start, end, found, total))) => {
                let bytes = match found {
                    Found::Input(from) => &self.input[from..from + total],
                    Found::Partial => &self.partial[..],
                };
                Ok(Some(RawRecord { pg: self.pg, start, end, tli: self.tli, bytes }))
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    fn unread(&self) -> &[u8] {
        &self.input[self.used..]
    }

    /// Bytes from here to the end of the page.
    fn left_on_page(&self) -> usize {
        (WAL_PAGE_SIZE - self.at.0 % WAL_PAGE_SIZE) as usize
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
        self.at = self.at.add(count as u64);
    }

    fn advance(&mut self) -> Result<Option<(Lsn, Lsn, Found, usize)>, WalError> {
        loop {
            if self.unread().is_empty() {
                return Ok(None);
            }
            if let State::Skip { until } = self.state {
                let count = until.since(self.at).min(self.unread().len() as u64);
                self.consume(count as usize);
                if self.at == until {
                    self.state = State::Between;
                }
                continue;
            }
            if self.at.0.is_multiple_of(WAL_PAGE_SIZE) {
                if !self.page_begins()? {
                    return Ok(None);
                }
                continue;
            }
            match self.state {
                // Without its page's header: the start is taken at its word.
                State::Seek { start } => self.state = State::Skip { until: start.align_up() },
                State::Skip { .. } | State::Resync => self.state = State::Between,
                State::Continuation { left } => {
                    let count = (left as usize).min(self.unread().len()).min(self.left_on_page());
                    self.consume(count);
                    let left = left - count as u32;
                    self.state = if left == 0 {
                        State::Skip { until: self.at.align_up() }
                    } else {
                        State::Continuation { left }
                    };
                }
                State::Between => {
                    let Some(length) = self.unread().first_chunk::<4>() else { return Ok(None) };
                    let total = u32::from_le_bytes(*length);
                    if !(HEADER_SIZE as u32..=MAX_RECORD_SIZE).contains(&total) {
                        return Err(WalError::Length { at: self.at, found: total });
                    }
                    let start = self.at;
                    if total as usize > self.left_on_page() {
                        self.partial.clear();
                        if self.partial.capacity() > KEPT_CAPACITY {
                            self.partial.shrink_to(KEPT_CAPACITY);
                        }
                        self.state = State::Within { start, total, header_checked: false };
                    } else if self.unread().len() < total as usize {
                        return Ok(None);
                    } else {
                        let from = self.used;
                        let bytes = &self.input[from..from + total as usize];
                        self.check_header(start, bytes)?;
                        let is_switch = self.check_record(start, bytes)?;
                        self.consume(total as usize);
                        let end = self.finish(start, is_switch);
                        return Ok(Some((start, end, Found::Input(from), total as usize)));
                    }
                }
                State::Within { start, total, header_checked } => {
                    let missing = total as usize - self.partial.len();
                    let count = missing.min(self.unread().len()).min(self.left_on_page());
                    self.partial.extend_from_slice(&self.input[self.used..self.used + count]);
                    self.consume(count);
                    if !header_checked && self.partial.len() >= HEADER_SIZE {
                        // Before the record's length is believed any further.
                        self.check_header(start, &self.partial)?;
                        self.state = State::Within { start, total, header_checked: true };
                    }
                    if count == missing {
                        let is_switch = self.check_record(start, &self.partial)?;
                        let end = self.finish(start, is_switch);
                        return Ok(Some((start, end, Found::Partial, total as usize)));
                    }
                }
            }
        }
    }

    /// Reads the page header here. `false` when it is not all there yet.
    fn page_begins(&mut self) -> Result<bool, WalError> {
        let at = self.at;
        let size = page_header_size(at, self.segment) as usize;
        let Some(bytes) = self.unread().get(..size) else { return Ok(false) };
        let header = self.checked_page_header(at, bytes)?;
        self.tli = header.tli;
        if let Some(long) = &header.long {
            self.system_id = Some(long.system_id);
        }
        let continues = header.info & PAGE_FIRST_IS_CONTRECORD != 0;
        let overwrites = header.info & PAGE_FIRST_IS_OVERWRITE_CONTRECORD != 0;
        self.state = match self.state {
            State::Seek { start } => {
                let start = start.align_up();
                let first = at.add(size as u64);
                if start <= first {
                    // The page header is part of what leads up to the start, so the page must not begin within a record.
                    if continues {
                        return Err(WalError::UnexpectedContinuation { at });
                    }
                    State::Between
                } else {
                    State::Skip { until: start }
                }
            }
            State::Resync if continues => State::Continuation { left: header.continuation },
            State::Continuation { left } if continues => {
                if header.continuation != left {
                    return Err(WalError::ContinuationLength {
                        at,
                        found: header.continuation,
                        expected: left,
                    });
                }
                State::Continuation { left }
            }
            State::Continuation { left } if !overwrites => {
                return Err(WalError::NoContinuation { at, start: self.taken_to, expected: left });
            }
            State::Within { start, .. } if overwrites => {
                self.aborted = Some(start);
                self.partial.clear();
                State::Between
            }
            State::Within { start, total, header_checked } => {
                let expected = total - self.partial.len() as u32;
                if !continues {
                    return Err(WalError::NoContinuation { at, start, expected });
                }
                if header.continuation != expected {
                    return Err(WalError::ContinuationLength { at, found: header.continuation, expected });
                }
                State::Within { start, total, header_checked }
            }
            State::Between | State::Skip { .. } if continues => {
                return Err(WalError::UnexpectedContinuation { at });
            }
            State::Between | State::Skip { .. } if overwrites => {
                return Err(WalError::UnexpectedOverwrite { at });
            }
            State::Resync | State::Continuation { .. } | State::Between | State::Skip { .. } => {
                State::Between
            }
        };
        self.consume(size);
        Ok(true)
    }

    fn checked_page_header(&self, at: Lsn, bytes: &[u8]) -> Result<PageHeader, WalError> {
        let is_first = self.segment.offset(at) == 0;
        let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
        let info = u16::from_le_bytes([bytes[2], bytes[3]]);
        if magic != self.pg.wal_magic() {
            return Err(WalError::Magic { at, found: magic, expected: self.pg.wal_magic() });
        }
        if info & !PAGE_ALL_FLAGS != 0 {
            return Err(WalError::PageFlags { at, found: info, expected: "only known ones" });
        }
        if (info & PAGE_LONG_HEADER != 0) != is_first {
            let expected =
                if is_first { "that of a long header" } else { "none of a long header within a segment" };
            return Err(WalError::PageFlags { at, found: info, expected });
        }
        let header = PageHeader::parse(bytes).map_err(|source| WalError::Truncated { at, source })?;
        if let Some(long) = &header.long {
            if let Some(expected) = self.system_id.filter(|expected| *expected != long.system_id) {
                return Err(WalError::SystemId { at, found: long.system_id, expected });
            }
            if u64::from(long.segment_size) != self.segment.bytes() {
                return Err(WalError::SegmentSize {
                    at,
                    found: long.segment_size,
                    expected: self.segment.bytes(),
                });
            }
            if u64::from(long.page_size) != WAL_PAGE_SIZE {
                return Err(WalError::PageSize { at, found: long.page_size });
            }
        }
        if header.address != at {
            return Err(WalError::PageAddress { at, found: header.address });
        }
        if header.tli < self.tli {
            return Err(WalError::Timeline { at, found: header.tli, highest: self.tli });
        }
        Ok(header)
    }

    /// Checks what the header says without the rest of the record.
    fn check_header(&self, at: Lsn, bytes: &[u8]) -> Result<(), WalError> {
        let mut input = BytesIn::new(bytes);
        let truncated = |source| WalError::Truncated { at, source };
        input.skip(8).map_err(truncated)?;
        let prev = Lsn(input.u64_le().map_err(truncated)?);
        input.skip(1).map_err(truncated)?;
        let rmgr = RmgrId(input.u8().map_err(truncated)?);
        // Extensions have resource managers since 15.
        let is_known = rmgr.is_builtin() || rmgr.is_custom() && self.pg >= PgMajor::V15;
        if !is_known {
            return Err(WalError::Rmgr { at, found: rmgr.0 });
        }
        match self.prev {
            Some(expected) if prev != expected => Err(WalError::PrevLink { at, found: prev, expected }),
            None if prev >= at => Err(WalError::PrevNotBefore { at, found: prev }),
            _ => Ok(()),
        }
    }

    /// Checks the whole record. Says whether it ends its segment.
    fn check_record(&self, at: Lsn, bytes: &[u8]) -> Result<bool, WalError> {
        let (found, expected) = (crc::stored_crc(bytes), crc::record_crc(bytes));
        if let (Some(found), Some(expected)) = (found, expected)
            && found != expected
        {
            return Err(WalError::Crc { at, found, expected });
        }
        let is_xlog = |info| bytes[17] == RmgrId::XLOG.0 && bytes[16] & INFO_RMGR_MASK == info;
        if let Some(expected) = self.aborted {
            if !is_xlog(INFO_XLOG_OVERWRITE_CONTRECORD) {
                return Err(WalError::NotOverwrite { at, expected });
            }
            let found = Record::parse(self.pg, bytes)
                .ok()
                .and_then(|record| BytesIn::new(record.main).u64_le().ok())
                .map_or(Lsn::INVALID, Lsn);
            if found != expected {
                return Err(WalError::OverwriteLsn { at, found, expected });
            }
        }
        Ok(is_xlog(INFO_XLOG_SWITCH))
    }

    /// The record at `start` ends here and is good.
    fn finish(&mut self, start: Lsn, is_switch: bool) -> Lsn {
        let mut end = self.at.align_up();
        if is_switch && self.segment.offset(end) != 0 {
            end = self.segment.start(end).add(self.segment.bytes());
        }
        self.prev = Some(start);
        self.taken_to = end;
        self.aborted = None;
        self.state = State::Skip { until: end };
        end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wal::build::{RecordDraft, WalBuilder};

    const SYSTEM_ID: u64 = 0x6B37_4D48_0000_0001;
    const SEGMENT: u64 = 1 << 20;
    const START: Lsn = Lsn(5 * SEGMENT + 0x28);

    fn segment() -> WalSegmentSize {
        WalSegmentSize::new(SEGMENT).unwrap()
    }

    fn builder(start: Lsn) -> WalBuilder {
        WalBuilder::new(PgMajor::V16, segment(), SYSTEM_ID, Tli(1), start, Lsn(0x1000))
    }

    fn draft(length: usize) -> RecordDraft {
        RecordDraft::new(RmgrId::XLOG, 0x20, (0..length).map(|n| n as u8).collect())
    }

    fn decoder(start: Lsn) -> WalDecoder {
        WalDecoder::new(PgMajor::V16, segment(), Tli(1), start)
    }

    type Owned = (Lsn, Lsn, Tli, Vec<u8>);

    fn drain(decoder: &mut WalDecoder, out: &mut Vec<Owned>) -> Result<(), WalError> {
        while let Some(record) = decoder.next()? {
            out.push((record.start, record.end, record.tli, record.bytes.to_vec()));
        }
        Ok(())
    }

    fn decode(mut decoder: WalDecoder, base: Lsn, bytes: &[u8]) -> (Vec<Owned>, Result<(), WalError>) {
        let mut out = Vec::new();
        let result = decoder.feed(base, bytes).and_then(|()| drain(&mut decoder, &mut out));
        (out, result)
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let mut wal = builder(START);
        let places: Vec<_> =
            [0, 5, 300, 8000, 9000, 40_000, 1].iter().map(|length| wal.push(&draft(*length))).collect();
        let (records, result) = decode(decoder(START), wal.base(), wal.bytes());
        result.unwrap();
        assert_eq!(records.iter().map(|record| (record.0, record.1)).collect::<Vec<_>>(), places);
        assert_eq!(records[3].3.len(), 24 + 5 + 8000);
    }

    #[test]
    fn a_record_may_end_exactly_with_its_page() {
        let mut wal = builder(START);
        let (_, end) = wal.push(&draft(8192 - 0x28 - 24 - 5));
        assert_eq!(end, Lsn(5 * SEGMENT + 8192));
        let (next, _) = wal.push(&draft(1));
        assert_eq!(next, end.add(24));
        for start in [START, end, next] {
            let (records, result) = decode(decoder(start), wal.base(), wal.bytes());
            assert_eq!((records.last().unwrap().0, result), (next, Ok(())));
        }
    }

    #[test]
    fn after_a_switch_the_next_segment_goes_on() {
        let mut wal = builder(START);
        let (switch, end) = wal.push(&RecordDraft::new(RmgrId::XLOG, INFO_XLOG_SWITCH, vec![]));
        assert_eq!(end, Lsn(6 * SEGMENT));
        let (next, _) = wal.push(&draft(7));
        let (records, result) = decode(decoder(START), wal.base(), wal.bytes());
        result.unwrap();
        assert_eq!((records[0].0, records[0].1, records[1].0), (switch, end, next));
    }

    #[test]
    fn a_fabricated_beginning_leads_to_the_first_record() {
        for offset in [0, 8, 0x28, 0x30, 8192 - 8, 8192, 8192 + 8, 8192 + 24, 8192 + 32, 5 * 8192 + 4000] {
            let start = Lsn(5 * SEGMENT + offset);
            let mut wal = builder(start);
            let (first, _) = wal.push(&draft(10));
            let header = if offset < 8192 { 40 } else { 24 };
            assert_eq!(first, start.max(start.page_start().add(header)));
            let found = WalDecoder::at_first_record_after(PgMajor::V16, segment(), Tli(1), wal.base());
            let (records, result) = decode(found, wal.base(), wal.bytes());
            result.unwrap();
            assert_eq!(records.len(), 1, "start {start}");
            assert_eq!(records[0].0, first);
        }
    }

    #[test]
    fn a_decoder_can_start_at_any_record_with_any_bytes_before_it() {
        let mut wal = builder(START);
        let places: Vec<_> = (0..40).map(|n| wal.push(&draft(n * 97))).collect();
        for (skipped, (start, _)) in places.iter().enumerate() {
            for early in [0, 8, 100, 9000] {
                let from = Lsn(start.0.saturating_sub(early).max(wal.base().0));
                let bytes = &wal.bytes()[from.since(wal.base()) as usize..];
                let (records, result) = decode(decoder(*start), from, bytes);
                result.unwrap();
                assert_eq!(records.len(), places.len() - skipped);
            }
        }
    }

    #[test]
    fn an_aborted_record_is_dropped_and_its_successor_names_it() {
        for keep in [8, 9000, 20_000] {
            let mut wal = builder(START);
            wal.push(&draft(8000));
            let aborted = wal.push_aborted(&draft(30_000), keep);
            let mut overwrite = aborted.0.to_le_bytes().to_vec();
            overwrite.extend_from_slice(&[0; 8]);
            let right = RecordDraft::new(RmgrId::XLOG, INFO_XLOG_OVERWRITE_CONTRECORD, overwrite.clone());
            let mut good = wal.clone();
            good.push(&right);
            good.push(&draft(9));
            let (records, result) = decode(decoder(START), good.base(), good.bytes());
            result.unwrap();
            assert_eq!(records.len(), 3);

            let mut other = wal.clone();
            overwrite[0] ^= 8;
            other.push(&RecordDraft { main: overwrite, ..right.clone() });
            let (_, result) = decode(decoder(START), other.base(), other.bytes());
            assert!(matches!(result, Err(WalError::OverwriteLsn { expected, .. }) if expected == aborted));

            let mut other = wal.clone();
            other.push(&draft(9));
            let (_, result) = decode(decoder(START), other.base(), other.bytes());
            assert!(matches!(result, Err(WalError::NotOverwrite { expected, .. }) if expected == aborted));
        }
    }

    #[test]
    fn timelines_may_rise_but_not_fall() {
        let mut wal = builder(START);
        wal.push(&draft(9000));
        wal.set_tli(Tli(3));
        wal.push(&draft(9000));
        let mut rising = decoder(START);
        rising.feed(wal.base(), wal.bytes()).unwrap();
        let mut out = Vec::new();
        drain(&mut rising, &mut out).unwrap();
        assert_eq!((out[0].2, out[1].2, rising.tli()), (Tli(1), Tli(3), Tli(3)));
        wal.set_tli(Tli(2));
        wal.push(&draft(9000));
        let (_, result) = decode(decoder(START), wal.base(), wal.bytes());
        assert!(matches!(result, Err(WalError::Timeline { found: Tli(2), highest: Tli(3), .. })));
    }

    #[test]
    fn another_clusters_wal_is_refused() {
        let mut wal = builder(START);
        wal.push(&draft(9));
        let (_, result) = decode(decoder(START).expecting_system_id(7), wal.base(), wal.bytes());
        assert!(matches!(result, Err(WalError::SystemId { found: SYSTEM_ID, expected: 7, .. })));
        let (_, result) = decode(decoder(START).expecting_prev(Lsn(0x2000)), wal.base(), wal.bytes());
        assert_eq!(result, Err(WalError::PrevLink { at: START, found: Lsn(0x1000), expected: Lsn(0x2000) }));
        let other_size = WalDecoder::new(PgMajor::V16, WalSegmentSize::DEFAULT, Tli(1), Lsn(0));
        assert!(decode(other_size, Lsn(0), wal.bytes()).1.is_err());
        let other_major = WalDecoder::new(PgMajor::V15, segment(), Tli(1), START);
        assert!(matches!(decode(other_major, wal.base(), wal.bytes()).1, Err(WalError::Magic { .. })));
    }

    #[test]
    fn unwritten_zeros_and_recycled_pages_end_wal_in_files() {
        let mut wal = builder(START);
        wal.push(&draft(9));
        wal.push(&draft(12));
        let whole = wal.clone().into_segments();
        let (records, result) = decode(decoder(START), wal.base(), &whole);
        assert_eq!(records.len(), 2);
        let error = result.unwrap_err();
        assert_eq!(error, WalError::Length { at: wal.end(), found: 0 });
        assert!(error.may_end_wal());

        wal.push(&draft(8192 - 0x28 - 9 - 24 - 5));
        let mut recycled = wal.bytes()[..8192].to_vec();
        let mut old = builder(Lsn(2 * SEGMENT + 8192));
        old.push(&draft(100));
        recycled.extend_from_slice(&old.bytes()[8192..]);
        let error = decode(decoder(START), wal.base(), &recycled).1.unwrap_err();
        assert!(error.may_end_wal(), "{error}");
    }

    #[test]
    fn bytes_must_be_contiguous() {
        let mut wal = builder(START);
        wal.push(&draft(900));
        let mut decoder = decoder(START);
        assert!(matches!(decoder.feed(START.add(8), &[0]), Err(WalError::Gap { .. })));
        decoder.feed(wal.base(), &wal.bytes()[..100]).unwrap();
        assert_eq!(decoder.next(), Ok(None));
        let expected = wal.base().add(100);
        assert_eq!(decoder.fed_to(), expected);
        assert_eq!(
            decoder.feed(expected.add(1), &[0]),
            Err(WalError::Gap { expected, found: expected.add(1) })
        );
        decoder.feed(expected, &wal.bytes()[100..]).unwrap();
        assert!(decoder.next().unwrap().is_some());
    }

    #[test]
    fn an_absurd_length_is_refused_before_it_is_believed() {
        let mut wal = builder(START);
        wal.push(&draft(40_000));
        let mut bytes = wal.bytes().to_vec();
        bytes[0x28..0x2C].copy_from_slice(&u32::MAX.to_le_bytes());
        let (_, result) = decode(decoder(START), wal.base(), &bytes);
        assert_eq!(result, Err(WalError::Length { at: START, found: u32::MAX }));
    }

    #[test]
    fn memory_does_not_grow_with_what_was_read() {
        let mut wal = builder(START);
        for _ in 0..200 {
            wal.push(&draft(20_000));
        }
        let mut decoder = decoder(START);
        let mut count = 0;
        for (n, chunk) in wal.bytes().chunks(4096).enumerate() {
            decoder.feed(wal.base().add(n as u64 * 4096), chunk).unwrap();
            while decoder.next().unwrap().is_some() {
                count += 1;
            }
        }
        assert_eq!(count, 200);
        assert!(decoder.held_bytes() < 128 << 10, "{} bytes are held", decoder.held_bytes());
    }

    /// A log that does not print all its bytes when a test fails.
    #[derive(Clone)]
    struct Log(WalBuilder);

    impl std::fmt::Debug for Log {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "WAL from {} to {}", self.0.base(), self.0.end())
        }
    }

    fn any_log() -> impl Strategy<Value = Log> {
        let lengths = prop::collection::vec(prop_oneof![0..200usize, 7000..9000usize, 0..40_000usize], 1..24);
        (lengths, 0..4096u64, any::<prop::sample::Index>()).prop_map(|(lengths, offset, switch)| {
            let switch = switch.index(lengths.len());
            let mut wal = builder(START.add(offset * 8));
            for (n, length) in lengths.iter().enumerate() {
                if n == switch {
                    wal.push(&RecordDraft::new(RmgrId::XLOG, INFO_XLOG_SWITCH, vec![]));
                }
                wal.push(&draft(*length));
            }
            Log(wal)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cuts_do_not_matter(Log(wal) in any_log(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
            let find = || WalDecoder::at_first_record_after(PgMajor::V16, segment(), Tli(1), wal.base());
            let (whole, result) = decode(find(), wal.base(), wal.bytes());
            prop_assert_eq!(result, Ok(()));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wal.bytes().len())).collect();
            cuts.extend([0, wal.bytes().len()]);
            cuts.sort_unstable();
            let mut decoder = find();
            let mut pieces = Vec::new();
            for pair in cuts.windows(2) {
                decoder.feed(wal.base().add(pair[0] as u64), &wal.bytes()[pair[0]..pair[1]]).unwrap();
                drain(&mut decoder, &mut pieces).unwrap();
            }
            prop_assert_eq!(whole, pieces);
            prop_assert_eq!(decoder.taken_to(), wal.end());
        }

        #[test]
        fn a_flipped_bit_never_yields_another_record(Log(wal) in any_log(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let find = || WalDecoder::at_first_record_after(PgMajor::V16, segment(), Tli(1), wal.base());
            let (whole, _) = decode(find(), wal.base(), wal.bytes());
            let mut bytes = wal.bytes().to_vec();
            bytes[at.index(wal.bytes().len())] ^= 1 << bit;
            let (records, _) = decode(find(), wal.base(), &bytes);
            for record in &records {
                prop_assert!(whole.iter().any(|good| good.0 == record.0 && good.3 == record.3), "invented {:?}", record.0);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..20_000), start: u64) {
            let _ = decode(WalDecoder::new(PgMajor::V18, segment(), Tli(1), Lsn(start)), Lsn(start), &bytes);
            let _ = decode(WalDecoder::at_first_record_after(PgMajor::V18, segment(), Tli(1), Lsn(start)), Lsn(start), &bytes);
        }
    }
}
