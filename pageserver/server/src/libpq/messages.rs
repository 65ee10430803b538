//! Pagestream messages: requests decoded, answers encoded straight into the output. Integers are big-endian.
//!
//! ```text
//! request   | tag u8 | v3: id u64 | request_lsn u64 | not_modified_since u64 | body |
//! answer    | tag u8 | v3: id u64, request_lsn u64, not_modified_since u64, body of the request | value |
//! ```

use bytes::{BufMut, BytesMut};
use model::{BLOCK_SIZE, Fork, Lsn, RelTag};

use super::wire;

/// Which form messages have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Version {
    V2,
    V3,
}

/// What every request begins with and a v3 answer echoes as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in the layout")]
pub struct Header {
    /// 0 in v2, which has none.
    pub id: u64,
    pub request_lsn: Lsn,
    pub not_modified_since: Lsn,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Request {
    pub header: Header,
    pub question: Question,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Question {
    Exists { rel: RelTag },
    Nblocks { rel: RelTag },
    GetPage { rel: RelTag, block: u32 },
    DbSize { db: u32 },
    GetSlruSegment { kind: u8, segment: u32 },
}

/// Bytes that are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a known tag.
    #[error("invalid tag {0}")]
    Tag(u8),
    /// It ends too early.
    #[error("request of {0} bytes is too short")]
    Short(usize),
    /// No such fork.
    #[error("invalid fork number {0}")]
    Fork(u8),
}

/// Reads a request. Bytes after it are not looked at.
pub fn decode(version: Version, bytes: &[u8]) -> Result<Request, DecodeError> {
    let mut rest = bytes;
    let tag = take::<1>(&mut rest, bytes)?[0];
    let id = match version {
        Version::V2 => 0,
        Version::V3 => u64::from_be_bytes(take(&mut rest, bytes)?),
    };
    let mut u64_be = || take(&mut rest, bytes).map(u64::from_be_bytes);
    let header = Header { id, request_lsn: Lsn(u64_be()?), not_modified_since: Lsn(u64_be()?) };
    let u32_be = |rest: &mut _| take(rest, bytes).map(u32::from_be_bytes);
    let rel = |rest: &mut _| {
        let (spc, db, rel) = (u32_be(rest)?, u32_be(rest)?, u32_be(rest)?);
        let [number] = take(rest, bytes)?;
        let fork = Fork::from_number(number).ok_or(DecodeError::Fork(number))?;
        Ok(RelTag { spc, db, rel, fork })
    };
    let rest = &mut rest;
    let question = match tag {
        0 => Question::Exists { rel: rel(rest)? },
        1 => Question::Nblocks { rel: rel(rest)? },
        2 => Question::GetPage { rel: rel(rest)?, block: u32_be(rest)? },
        3 => Question::DbSize { db: u32_be(rest)? },
        4 => Question::GetSlruSegment { kind: take::<1>(rest, bytes)?[0], segment: u32_be(rest)? },
        _ => return Err(DecodeError::Tag(tag)),
    };
    Ok(Request { header, question })
}

fn take<const N: usize>(rest: &mut &[u8], whole: &[u8]) -> Result<[u8; N], DecodeError> {
    let (taken, left) = rest.split_first_chunk::<N>().ok_or(DecodeError::Short(whole.len()))?;
    *rest = left;
    Ok(*taken)
}

fn answer(out: &mut BytesMut, version: Version, tag: u8, header: &Header, body: impl FnOnce(&mut BytesMut)) {
    wire::message(out, b'd', |out| {
        out.put_u8(tag);
        if version == Version::V3 {
            out.put_u64(header.id);
            out.put_u64(header.request_lsn.0);
            out.put_u64(header.not_modified_since.0);
        }
        body(out);
    });
}

fn put_rel(out: &mut BytesMut, version: Version, rel: RelTag) {
    if version == Version::V3 {
        out.put_u32(rel.spc);
        out.put_u32(rel.db);
        out.put_u32(rel.rel);
        out.put_u8(rel.fork as u8);
    }
}

/// Answers `Exists`.
pub fn exists(out: &mut BytesMut, version: Version, header: &Header, rel: RelTag, exists: bool) {
    answer(out, version, 100, header, |out| {
        put_rel(out, version, rel);
        out.put_u8(u8::from(exists));
    });
}

/// Answers `Nblocks`.
pub fn nblocks(out: &mut BytesMut, version: Version, header: &Header, rel: RelTag, blocks: u32) {
    answer(out, version, 101, header, |out| {
        put_rel(out, version, rel);
        out.put_u32(blocks);
    });
}

/// Answers `GetPage`.
pub fn page(out: &mut BytesMut, version: Version, header: &Header, rel: RelTag, block: u32, page: &[u8]) {
    answer(out, version, 102, header, |out| {
        put_rel(out, version, rel);
        if version == Version::V3 {
            out.put_u32(block);
        }
        out.put_slice(page);
    });
}

/// Answers anything with an error; the request is not echoed.
pub fn error(out: &mut BytesMut, version: Version, header: &Header, text: &str) {
    answer(out, version, 103, header, |out| {
        out.extend(text.bytes().filter(|byte| *byte != 0));
        out.put_u8(0);
    });
}

/// Answers `DbSize`.
pub fn db_size(out: &mut BytesMut, version: Version, header: &Header, db: u32, bytes: u64) {
    answer(out, version, 104, header, |out| {
        if version == Version::V3 {
            out.put_u32(db);
        }
        out.put_u64(bytes);
    });
}

/// Answers `GetSlruSegment`.
pub fn slru_segment(
    out: &mut BytesMut,
    version: Version,
    header: &Header,
    kind: u8,
    segment: u32,
    pages: &[u8],
) {
    answer(out, version, 105, header, |out| {
        if version == Version::V3 {
            out.put_u8(kind);
            out.put_u32(segment);
        }
        out.put_u32((pages.len() / BLOCK_SIZE) as u32);
        out.put_slice(pages);
    });
}
