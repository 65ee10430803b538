//! One WAL record (`xlogrecord.h`), parsed without copying.
//!
//! ```text
//! header, 24 bytes: u32 total length | u32 xid | u64 prev | u8 info | u8 rmgr | 2 pad | u32 crc
//! then references until the lengths they announce are all that is left:
//!   0..=32  block: u8 id | u8 fork and flags | u16 data length
//!                  [image: u16 length | u16 hole offset | u8 info | [u16 hole length]]
//!                  [unless same relation as before: u32 tablespace | u32 database | u32 relation] | u32 block
//!   253     u16 replication origin      252  u32 top-level xid
//!   255     u8 main data length         254  u32 main data length
//! then per block, in order: image, data; then main data
//! ```

use std::borrow::Cow;

use model::{BLOCK_SIZE, Fork, Lsn, PgMajor, RelLocator, RelTag, RmgrId};
use smallvec::SmallVec;

use crate::bytes_in::{BytesIn, Truncated};

/// Bytes of a record's header.
pub const HEADER_SIZE: usize = 24;
/// Longest record that Postgres writes (`XLogRecordMaxSize`).
pub const MAX_RECORD_SIZE: u32 = 1020 * 1024 * 1024;
/// Highest block reference id.
pub const MAX_BLOCK_ID: u8 = 32;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;
const ID_MAIN_SHORT: u8 = 255;
const ID_MAIN_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOP_XID: u8 = 252;

/// A parsed record; borrows the bytes it was parsed from.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Whose format this is.
    pub pg: PgMajor,
    /// Bytes of the record, header included, padding not.
    pub total_len: u32,
    /// The transaction that wrote it; 0 for none.
    pub xid: u32,
    /// Start of the record before it.
    pub prev: Lsn,
    /// Flags: the high four bits are the resource manager's, the low four Postgres'.
    pub info: u8,
    /// Who redoes it.
    pub rmgr: RmgrId,
    /// CRC-32C as stored; [`Record::parse`] does not check it, the stream decoder does.
    pub crc: u32,
    /// Replication origin of the transaction, when one is set.
    pub origin: Option<u16>,
    /// Top-level transaction of a subtransaction, for logical decoding.
    pub top_xid: Option<u32>,
    /// Blocks it touches, ids ascending.
    pub blocks: SmallVec<[BlockRef<'a>; 4]>,
    /// Data that belongs to no block.
    pub main: &'a [u8],
}

/// A block that a record touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef<'a> {
    /// 0 to 32; what a block is to its record goes by this, not by its place in the list.
    pub id: u8,
    /// Which relation and fork.
    pub rel: RelTag,
    /// Which block of it.
    pub block: u32,
    /// Redo initialises the page; its older content does not matter.
    pub will_init: bool,
    /// The page's image after the change, when there is one.
    pub image: Option<BlockImage<'a>>,
    /// Data for this block; empty when there is none.
    pub data: &'a [u8],
    /// Whether data was announced, even if it is empty (`BKPBLOCK_HAS_DATA`).
    pub has_data: bool,
}

impl BlockRef<'_> {
    /// Whether redo needs no older version of the page.
    pub fn is_base(&self) -> bool {
        self.will_init || self.image.is_some_and(|image| image.apply)
    }
}

/// A page image in a record, perhaps compressed, without its hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockImage<'a> {
    /// As stored.
    pub bytes: &'a [u8],
    /// Where the hole begins in the page.
    pub hole_offset: u16,
    /// Bytes left out there.
    pub hole_length: u16,
    /// How it is compressed.
    pub compression: ImageCompression,
    /// To be restored at redo; otherwise it is there only to compare with.
    pub apply: bool,
    /// The flags as stored (`bimg_info`); their meaning differs between 14 and later majors.
    pub info: u8,
}

/// How a page image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ImageCompression {
    None,
    Pglz,
    Lz4,
    Zstd,
}

/// Bytes that are not a WAL record of the given major.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RecordError {
    #[error("record is truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("record says that it is {stated} bytes long but {actual} are there")]
    Length { stated: u32, actual: usize },
    #[error("{what} at offset {at} of the record")]
    Malformed { what: &'static str, at: usize },
    #[error("unknown block reference id {id} at offset {at} of the record")]
    UnknownId { id: u8, at: usize },
    #[error("unknown fork {fork} in block reference {id}")]
    UnknownFork { id: u8, fork: u8 },
    #[error("unknown flags {info:#04x} of the image of block reference {id}")]
    UnknownImageFlags { id: u8, info: u8 },
}

impl<'a> Record<'a> {
    /// Parses one whole record, header included. Everything is checked against the record's own length; the CRC is not.
    pub fn parse(pg: PgMajor, bytes: &'a [u8]) -> Result<Record<'a>, RecordError> {
        let mut record = Record::empty(pg);
        record.read(bytes)?;
        Ok(record)
    }

    /// Nothing yet, to be filled by [`Record::read`].
    pub fn empty(pg: PgMajor) -> Record<'a> {
        Record {
            pg,
            total_len: 0,
            xid: 0,
            prev: Lsn::INVALID,
            info: 0,
            rmgr: RmgrId(0),
            crc: 0,
            origin: None,
            top_xid: None,
            blocks: SmallVec::new(),
            main: &[],
        }
    }

    /// As [`Record::parse`], into a record that is at hand: who parses many in a row saves moving each. After an error it holds rubbish.
    pub fn read(&mut self, bytes: &'a [u8]) -> Result<(), RecordError> {
        let mut input = BytesIn::new(bytes);
        let mut header = BytesIn::new(input.take(HEADER_SIZE)?);
        self.total_len = header.u32_le()?;
        if self.total_len as usize != bytes.len() {
            return Err(RecordError::Length { stated: self.total_len, actual: bytes.len() });
        }
        self.xid = header.u32_le()?;
        self.prev = Lsn(header.u64_le()?);
        self.info = header.u8()?;
        self.rmgr = RmgrId(header.u8()?);
        header.skip(2)?;
        self.crc = header.u32_le()?;
        self.origin = None;
        self.top_xid = None;
        self.blocks.clear();
        let mut lengths = Lengths::default();
        self.parse_references(&mut input, &mut lengths)?;
        self.attach_data(&mut input, &lengths)
    }

    #[inline]
    fn parse_references(
        &mut self,
        input: &mut BytesIn<'a>,
        lengths: &mut Lengths,
    ) -> Result<(), RecordError> {
        let mut rel: Option<RelLocator> = None;
        while input.remaining() > lengths.total {
            let at = input.position();
            match input.u8()? {
                id @ 0..=MAX_BLOCK_ID => {
                    if self.blocks.last().is_some_and(|last| last.id >= id) {
                        return Err(RecordError::Malformed { what: "block references out of order", at });
                    }
                    self.parse_block(id, input, &mut rel, lengths)?;
                }
                ID_ORIGIN => self.origin = Some(input.u16_le()?),
                ID_TOP_XID => self.top_xid = Some(input.u32_le()?),
                id @ (ID_MAIN_SHORT | ID_MAIN_LONG) => {
                    lengths.main =
                        if id == ID_MAIN_SHORT { usize::from(input.u8()?) } else { input.u32_le()? as usize };
                    lengths.total += lengths.main;
                    break; // main data comes last
                }
                id => return Err(RecordError::UnknownId { id, at }),
            }
        }
        if input.remaining() != lengths.total {
            return Err(RecordError::Malformed {
                what: "announced lengths do not add up",
                at: input.position(),
            });
        }
        Ok(())
    }

    #[inline]
    fn parse_block(
        &mut self,
        id: u8,
        input: &mut BytesIn<'a>,
        rel: &mut Option<RelLocator>,
        lengths: &mut Lengths,
    ) -> Result<(), RecordError> {
        let at = input.position();
        let malformed = |what| RecordError::Malformed { what, at };
        let flags = input.u8()?;
        let data_len = input.u16_le()?;
        let fork = Fork::from_number(flags & FORK_MASK)
            .ok_or(RecordError::UnknownFork { id, fork: flags & FORK_MASK })?;
        let has_data = flags & HAS_DATA != 0;
        if has_data != (data_len != 0) {
            return Err(malformed("block data flag and length disagree"));
        }
        let mut image_len = 0;
        let mut image = None;
        if flags & HAS_IMAGE != 0 {
            image_len = input.u16_le()?;
            image = Some(parse_image(self.pg, id, input, image_len)?);
        }
        if flags & SAME_REL == 0 {
            *rel = Some(RelLocator { spc: input.u32_le()?, db: input.u32_le()?, rel: input.u32_le()? });
        }
        let rel = rel.ok_or(malformed("first block reference has no relation"))?.fork(fork);
        let block = input.u32_le()?;
        if block == u32::MAX {
            return Err(malformed("block number is invalid"));
        }
        let will_init = flags & WILL_INIT != 0;
        self.blocks.push(BlockRef { id, rel, block, will_init, image, data: &[], has_data });
        lengths.blocks.push((image_len, data_len));
        lengths.total += usize::from(image_len) + usize::from(data_len);
        Ok(())
    }

    #[inline]
    fn attach_data(&mut self, input: &mut BytesIn<'a>, lengths: &Lengths) -> Result<(), RecordError> {
        for (block, (image_len, data_len)) in self.blocks.iter_mut().zip(&lengths.blocks) {
            let image = input.take(usize::from(*image_len))?;
            if let Some(stored) = &mut block.image {
                stored.bytes = image;
            }
            block.data = input.take(usize::from(*data_len))?;
        }
        self.main = input.take(lengths.main)?;
        Ok(())
    }

    /// The block reference with this id.
    #[inline]
    pub fn block(&self, id: u8) -> Option<&BlockRef<'a>> {
        // Ids are nearly always 0, 1, 2 … without a gap.
        self.blocks
            .get(usize::from(id))
            .filter(|block| block.id == id)
            .or_else(|| self.blocks.iter().find(|block| block.id == id))
    }

    /// The reference to this block, whatever its id.
    pub fn block_of(&self, rel: RelTag, block: u32) -> Option<&BlockRef<'a>> {
        self.blocks.iter().find(|reference| reference.block == block && reference.rel == rel)
    }
}

/// Lengths that the references announced.
#[derive(Default)]
struct Lengths {
    blocks: SmallVec<[(u16, u16); 4]>,
    main: usize,
    total: usize,
}

fn parse_image<'a>(
    pg: PgMajor,
    id: u8,
    input: &mut BytesIn<'_>,
    length: u16,
) -> Result<BlockImage<'a>, RecordError> {
    let at = input.position();
    let malformed = |what| RecordError::Malformed { what, at };
    let hole_offset = input.u16_le()?;
    let info = input.u8()?;
    let unknown = RecordError::UnknownImageFlags { id, info };
    let (apply, compression) = match pg {
        PgMajor::V14 if info & !0x07 != 0 => return Err(unknown),
        PgMajor::V14 => {
            (info & 0x04 != 0, if info & 0x02 != 0 { ImageCompression::Pglz } else { ImageCompression::None })
        }
        _ => {
            let compression = match info & !0x03 {
                0x00 => ImageCompression::None,
                0x04 => ImageCompression::Pglz,
                0x08 => ImageCompression::Lz4,
                0x10 => ImageCompression::Zstd,
                _ => return Err(unknown),
            };
            (info & 0x02 != 0, compression)
        }
    };
    let has_hole = info & IMAGE_HAS_HOLE != 0;
    let page = BLOCK_SIZE as u16;
    if length > page {
        return Err(malformed("image is longer than a page"));
    }
    let hole_length = match (compression, has_hole) {
        (ImageCompression::None, _) => page - length,
        (_, true) => input.u16_le()?,
        (_, false) => 0,
    };
    if has_hole != (hole_length != 0) || (!has_hole && hole_offset != 0) {
        return Err(malformed("image hole flag and length disagree"));
    }
    if usize::from(hole_offset) + usize::from(hole_length) > BLOCK_SIZE {
        return Err(malformed("image hole reaches past the page"));
    }
    if compression != ImageCompression::None && length >= page {
        return Err(malformed("compressed image is as long as a page"));
    }
    Ok(BlockImage { bytes: &[], hole_offset, hole_length, compression, apply, info })
}

/// The record with only what redo of block `keep` needs: all block tags and flags, that block's data and, if it is to be applied, its
/// image, and the main data. Other blocks' data, and images that are there only for comparison, are left out.
///
/// The result parses as a record of the same major. Its CRC is 0 when anything was left out: it is no longer Postgres' record.
pub fn trimmed<'a>(record: &Record<'_>, bytes: &'a [u8], keep: u8) -> Cow<'a, [u8]> {
    let mut out = Vec::new();
    if trim_into(record, bytes, keep, &mut out) { Cow::Owned(out) } else { Cow::Borrowed(bytes) }
}

/// Puts what [`trimmed`] answers into `out`, which must be empty; `false`, and nothing is put there, when the whole record is needed.
pub fn trim_into(record: &Record<'_>, bytes: &[u8], keep: u8, out: &mut Vec<u8>) -> bool {
    let keeps_image = |block: &BlockRef<'_>| block.id == keep && block.image.is_some_and(|image| image.apply);
    let is_whole = record.blocks.iter().all(|block| {
        (block.id == keep || block.data.is_empty()) && (block.image.is_none() || keeps_image(block))
    });
    if is_whole {
        return false;
    }
    out.reserve(bytes.len().min(BLOCK_SIZE + record.main.len() + 256));
    out.extend_from_slice(&bytes[..HEADER_SIZE]);
    let mut last_rel = None;
    for block in &record.blocks {
        let kept = block.id == keep;
        let image = block.image.filter(|_| keeps_image(block));
        let data = if kept { block.data } else { &[] };
        let same_rel = last_rel == Some(block.rel.locator());
        last_rel = Some(block.rel.locator());
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        let flags = block.rel.fork as u8
            | flag(image.is_some(), HAS_IMAGE)
            | flag(!data.is_empty(), HAS_DATA)
            | flag(block.will_init, WILL_INIT)
            | flag(same_rel, SAME_REL);
        out.extend_from_slice(&[block.id, flags]);
        out.extend_from_slice(&(data.len() as u16).to_le_bytes());
        if let Some(image) = image {
            out.extend_from_slice(&(image.bytes.len() as u16).to_le_bytes());
            out.extend_from_slice(&image.hole_offset.to_le_bytes());
            out.push(image.info);
            if image.compression != ImageCompression::None && image.hole_length != 0 {
                out.extend_from_slice(&image.hole_length.to_le_bytes());
            }
        }
        if !same_rel {
            for word in [block.rel.spc, block.rel.db, block.rel.rel] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        out.extend_from_slice(&block.block.to_le_bytes());
    }
    if let Some(origin) = record.origin {
        out.push(ID_ORIGIN);
        out.extend_from_slice(&origin.to_le_bytes());
    }
    if let Some(xid) = record.top_xid {
        out.push(ID_TOP_XID);
        out.extend_from_slice(&xid.to_le_bytes());
    }
    match u8::try_from(record.main.len()) {
        Ok(0) => {}
        Ok(length) => out.extend_from_slice(&[ID_MAIN_SHORT, length]),
        Err(_) => {
            out.push(ID_MAIN_LONG);
            out.extend_from_slice(&(record.main.len() as u32).to_le_bytes());
        }
    }
    if let Some(block) = record.block(keep) {
        if let Some(image) = block.image.filter(|image| image.apply) {
            out.extend_from_slice(image.bytes);
        }
        out.extend_from_slice(block.data);
    }
    out.extend_from_slice(record.main);
    let length = out.len() as u32;
    out[0..4].copy_from_slice(&length.to_le_bytes());
    out[20..24].fill(0);
    true
}
