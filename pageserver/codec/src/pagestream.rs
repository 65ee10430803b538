//! Pagestream: how a compute asks a pageserver for pages, versions 2 and 3. The messages are Neon's.
//!
//! Each message travels in one `CopyData`; answers come in the order of the requests. Integers are big-endian.
//!
//! ```text
//! request    u8 tag | v3: u64 id | u64 request LSN | u64 not modified since | body
//!     0 exists         u32 tablespace | u32 database | u32 relation | u8 fork
//!     1 size           the same
//!     2 page           the same | u32 block
//!     3 database size  u32 database
//!     4 SLRU segment   u8 kind | u32 segment
//!
//! answer     u8 tag | v3: u64 id | u64 request LSN | u64 not modified since, as received | v3, but for errors: request body | body
//!   100 exists         u8
//!   101 size           u32 blocks
//!   102 page           8,192 bytes
//!   103 error          UTF-8 text | 0
//!   104 database size  i64 bytes
//!   105 SLRU segment   u32 pages | pages of 8,192 bytes
//! ```

use std::borrow::Cow;

use model::{BLOCK_SIZE, Fork, Lsn, RelTag, SLRU_SEGMENT_PAGES};

use crate::bytes_in::{BytesIn, Truncated};
use crate::page::{self, Page};

const EXISTS: u8 = 0;
const SIZE: u8 = 1;
const PAGE: u8 = 2;
const DB_SIZE: u8 = 3;
const SLRU_SEGMENT: u8 = 4;
/// What an answer's tag adds to its request's.
const ANSWER: u8 = 100;
const ERROR: u8 = 103;
/// The error's tag takes the place that the database size's would have.
const DB_SIZE_ANSWER: u8 = 104;
const SLRU_SEGMENT_ANSWER: u8 = 105;

/// Most bytes that a request takes. Trailing bytes are ignored, but nobody has a reason to send many.
pub const MAX_REQUEST: usize = 64;

/// Most bytes that an error's text takes in an answer; longer ones are cut.
pub const MAX_ERROR_TEXT: usize = 8192;

/// Which form of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Answers carry nothing of their request.
    V2,
    /// Answers repeat what they answer.
    V3,
}

/// What every request says beside what it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    /// The client's number for the request; 0 in version 2.
    pub id: u64,
    /// As of when: the answer is right for any LSN from `not_modified_since` up to here. `u64::MAX`: the newest there is.
    pub request_lsn: Lsn,
    /// The client's promise that what it asks for did not change after this LSN, up to `request_lsn`.
    pub not_modified_since: Lsn,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// Whether a relation's fork exists.
    Exists(RelTag),
    /// How many blocks it has.
    Size(RelTag),
    /// One of its pages.
    Page {
        /// Of which fork.
        rel: RelTag,
        /// Which.
        block: u32,
    },
    /// Bytes of a database in the default tablespace.
    DbSize {
        /// Its oid.
        db: u32,
    },
    /// A whole segment of an SLRU.
    SlruSegment {
        /// Number of the kind, see [`model::SlruKind`]; not checked here, since a wrong one is answered and not fatal.
        kind: u8,
        /// Which segment.
        segment: u32,
    },
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// As of when.
    pub header: RequestHeader,
    /// What.
    pub query: Query,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Whether it exists.
    Exists(bool),
    /// Its blocks.
    Size(u32),
    /// The page.
    Page(&'a Page),
    /// Why there is no other answer. The stream goes on.
    Error(Cow<'a, str>),
    /// Bytes of the database.
    DbSize(i64),
    /// Pages of the segment, back to back: a multiple of 8,192 bytes, at most 32 pages.
    SlruSegment(&'a [u8]),
}

/// An answer as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// What it repeats of the request's header; nothing in version 2.
    pub header: Option<RequestHeader>,
    /// What it repeats of the request's body; nothing in version 2 and with errors.
    pub query: Option<Query>,
    /// The answer.
    pub answer: Answer<'a>,
}

/// Why a request cannot be served. All but [`RequestError::Field`] end the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No such request.
    #[error("invalid tag {0}")]
    Tag(u8),
    /// It ends too early.
    #[error("pagestream request is truncated: {0}")]
    Truncated(#[from] Truncated),
    /// Much longer than any request.
    #[error("pagestream request of {0} bytes is longer than {MAX_REQUEST} bytes")]
    TooLong(usize),
    /// It asks for something that cannot be. Its header is sound, so it can be answered with an error.
    #[error("Bad request: {what} is {found}, expected {expected}")]
    Field {
        /// Of the request.
        header: RequestHeader,
        /// Which field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
}

/// Why a server's answer makes no sense to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ResponseError {
    #[error("pagestream answer is truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("unknown pagestream answer tag {0}")]
    Tag(u8),
    #[error("pagestream answer: {what} is {found}, expected {expected}")]
    Field { what: &'static str, found: u64, expected: &'static str },
    #[error("{0} bytes are left over after the pagestream answer")]
    TrailingBytes(usize),
}

impl Request {
    /// Reads what a client sent in one `CopyData`.
    pub fn decode(version: Version, bytes: &[u8]) -> Result<Request, RequestError> {
        if bytes.len() > MAX_REQUEST {
            return Err(RequestError::TooLong(bytes.len()));
        }
        let mut input = BytesIn::new(bytes);
        let tag = input.u8()?;
        if tag > SLRU_SEGMENT {
            return Err(RequestError::Tag(tag));
        }
        let header = RequestHeader::decode(version, &mut input)?;
        let query = Query::decode(tag, &mut input)?;
        let query = query.map_err(|WrongFork(found)| RequestError::Field {
            header,
            what: "fork number",
            found: found.into(),
            expected: "0 to 3",
        })?;
        Ok(Request { header, query })
    }

    /// Appends the request as a client sends it.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        out.push(self.query.tag());
        self.header.encode(version, out);
        self.query.encode(out);
    }
}

impl RequestHeader {
    fn decode(version: Version, input: &mut BytesIn<'_>) -> Result<Self, Truncated> {
        let id = if version == Version::V3 { input.u64_be()? } else { 0 };
        Ok(RequestHeader { id, request_lsn: Lsn(input.u64_be()?), not_modified_since: Lsn(input.u64_be()?) })
    }

    fn encode(&self, version: Version, out: &mut Vec<u8>) {
        if version == Version::V3 {
            out.extend_from_slice(&self.id.to_be_bytes());
        }
        out.extend_from_slice(&self.request_lsn.0.to_be_bytes());
        out.extend_from_slice(&self.not_modified_since.0.to_be_bytes());
    }

    /// As of which LSN to answer, given how far the timeline is, and what may have been collected. `readable_from` is the oldest LSN that
    /// can still be read; 0 when that does not matter, as with a lease.
    pub fn effective_lsn(&self, last_record: Lsn, readable_from: Lsn) -> Result<EffectiveLsn, Refusal> {
        let RequestHeader { request_lsn, not_modified_since, .. } = *self;
        if request_lsn < not_modified_since {
            return Err(Refusal::BadRequest(format!(
                "invalid request with request LSN {request_lsn} and not_modified_since {not_modified_since}"
            )));
        }
        if request_lsn == Lsn::INVALID {
            return Err(Refusal::BadRequest("invalid LSN(0) in request".into()));
        }
        if request_lsn < readable_from {
            return Err(Refusal::BadRequest(format!(
                "tried to request a page version that was garbage collected. requested at {request_lsn} gc cutoff {readable_from}"
            )));
        }
        Ok(if not_modified_since > last_record {
            EffectiveLsn::WaitFor(not_modified_since)
        } else {
            EffectiveLsn::Now(last_record.min(request_lsn))
        })
    }
}

/// As of which LSN to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectiveLsn {
    /// As of this one, at once.
    Now(Lsn),
    /// As of this one, once WAL has arrived up to it.
    WaitFor(Lsn),
}

/// Why a request is answered with an error while its stream goes on. The texts begin as clients and their logs know them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The page could not be reconstructed; the cause is in the server's log.
    #[error("Read error")]
    Read,
    /// WAL did not arrive in time.
    #[error(
        "LSN timeout: Timed out while waiting for WAL record at LSN {wanted} to arrive, last_record_lsn {last_record} disk consistent LSN={disk_consistent}, WalReceiver status: {receiver}"
    )]
    LsnTimeout {
        /// Waited for.
        wanted: Lsn,
        /// How far the timeline is.
        last_record: Lsn,
        /// How far its layers are.
        disk_consistent: Lsn,
        /// What the WAL receiver says of itself.
        receiver: String,
    },
    /// No such tenant or timeline, or it cannot be served.
    #[error("Not found: {0}")]
    NotFound(String),
    /// What is asked for makes no sense.
    #[error("Bad request: {0}")]
    BadRequest(String),
}

/// Not a fork's number.
struct WrongFork(u8);

impl Query {
    fn tag(&self) -> u8 {
        match self {
            Query::Exists(_) => EXISTS,
            Query::Size(_) => SIZE,
            Query::Page { .. } => PAGE,
            Query::DbSize { .. } => DB_SIZE,
            Query::SlruSegment { .. } => SLRU_SEGMENT,
        }
    }

    /// Reads a body; `tag` is one of the requests'.
    fn decode(tag: u8, input: &mut BytesIn<'_>) -> Result<Result<Query, WrongFork>, Truncated> {
        Ok(Ok(match tag {
            DB_SIZE => Query::DbSize { db: input.u32_be()? },
            SLRU_SEGMENT => Query::SlruSegment { kind: input.u8()?, segment: input.u32_be()? },
            _ => {
                let (spc, db, rel) = (input.u32_be()?, input.u32_be()?, input.u32_be()?);
                let fork = input.u8()?;
                let block = if tag == PAGE { input.u32_be()? } else { 0 };
                let Some(fork) = Fork::from_number(fork) else { return Ok(Err(WrongFork(fork))) };
                let rel = RelTag { spc, db, rel, fork };
                match tag {
                    EXISTS => Query::Exists(rel),
                    SIZE => Query::Size(rel),
                    _ => Query::Page { rel, block },
                }
            }
        }))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Query::Exists(rel) | Query::Size(rel) | Query::Page { rel, .. } => {
                for oid in [rel.spc, rel.db, rel.rel] {
                    out.extend_from_slice(&oid.to_be_bytes());
                }
                out.push(rel.fork as u8);
                if let Query::Page { block, .. } = self {
                    out.extend_from_slice(&block.to_be_bytes());
                }
            }
            Query::DbSize { db } => out.extend_from_slice(&db.to_be_bytes()),
            Query::SlruSegment { kind, segment } => {
                out.push(*kind);
                out.extend_from_slice(&segment.to_be_bytes());
            }
        }
    }
}

impl<'a> Answer<'a> {
    fn tag(&self) -> u8 {
        match self {
            Answer::Exists(_) => ANSWER + EXISTS,
            Answer::Size(_) => ANSWER + SIZE,
            Answer::Page(_) => ANSWER + PAGE,
            Answer::Error(_) => ERROR,
            Answer::DbSize(_) => DB_SIZE_ANSWER,
            Answer::SlruSegment(_) => SLRU_SEGMENT_ANSWER,
        }
    }

    /// Appends the answer to `request` as a server sends it. The answer is of the request's kind, or an error.
    pub fn encode(&self, version: Version, request: &Request, out: &mut Vec<u8>) {
        self.encode_start(version, &request.header, out);
        if version == Version::V3 && !matches!(self, Answer::Error(_)) {
            request.query.encode(out);
        }
        match self {
            Answer::Exists(exists) => out.push(u8::from(*exists)),
            Answer::Size(blocks) => out.extend_from_slice(&blocks.to_be_bytes()),
            Answer::Page(page) => page::append(&page[..], out),
            Answer::Error(text) => encode_text(text, out),
            Answer::DbSize(bytes) => out.extend_from_slice(&bytes.to_be_bytes()),
            Answer::SlruSegment(pages) => {
                debug_assert!(pages.len().is_multiple_of(BLOCK_SIZE), "an SLRU segment is whole pages");
                out.extend_from_slice(&((pages.len() / BLOCK_SIZE) as u32).to_be_bytes());
                out.extend_from_slice(pages);
            }
        }
    }

    /// Appends an error as the answer to a request of which only the header is sound.
    pub fn encode_error(version: Version, header: &RequestHeader, text: &str, out: &mut Vec<u8>) {
        Answer::Error(text.into()).encode_start(version, header, out);
        encode_text(text, out);
    }

    fn encode_start(&self, version: Version, header: &RequestHeader, out: &mut Vec<u8>) {
        out.push(self.tag());
        if version == Version::V3 {
            header.encode(version, out);
        }
    }

    /// Bytes that [`Answer::encode`] appends: what goes into the length of its `CopyData`.
    pub fn encoded_len(&self, version: Version) -> usize {
        let rel = 13;
        let (query, body) = match self {
            Answer::Exists(_) => (rel, 1),
            Answer::Size(_) => (rel, 4),
            Answer::Page(_) => (rel + 4, BLOCK_SIZE),
            Answer::Error(text) => (0, cut(text).len() + 1),
            Answer::DbSize(_) => (4, 8),
            Answer::SlruSegment(pages) => (5, 4 + pages.len()),
        };
        match version {
            Version::V2 => 1 + body,
            Version::V3 => 1 + 24 + query + body,
        }
    }

    /// The answer of a kind that `request` asks for, or an error.
    fn decode(tag: u8, input: &mut BytesIn<'a>) -> Result<Self, ResponseError> {
        let field = |what, found: u64, expected| ResponseError::Field { what, found, expected };
        Ok(match tag {
            ERROR => {
                let bytes = input.take(input.remaining())?;
                let [text @ .., 0] = bytes else {
                    return Err(field("end of an error's text", bytes.len() as u64, "a zero byte"));
                };
                Answer::Error(String::from_utf8_lossy(text))
            }
            SLRU_SEGMENT_ANSWER => {
                let pages = input.u32_be()?;
                if pages > SLRU_SEGMENT_PAGES {
                    return Err(field("number of SLRU pages", pages.into(), "at most 32"));
                }
                Answer::SlruSegment(input.take(pages as usize * BLOCK_SIZE)?)
            }
            DB_SIZE_ANSWER => Answer::DbSize(input.i64_be()?),
            tag => match tag.checked_sub(ANSWER) {
                Some(EXISTS) => match input.u8()? {
                    0 => Answer::Exists(false),
                    1 => Answer::Exists(true),
                    found => return Err(field("whether it exists", found.into(), "0 or 1")),
                },
                Some(SIZE) => Answer::Size(input.u32_be()?),
                Some(PAGE) => {
                    let page = input.take(BLOCK_SIZE)?;
                    Answer::Page(page.try_into().expect("as many bytes as a page has"))
                }
                _ => return Err(ResponseError::Tag(tag)),
            },
        })
    }
}

impl<'a> Response<'a> {
    /// Reads what a server sent in one `CopyData`.
    pub fn decode(version: Version, bytes: &'a [u8]) -> Result<Self, ResponseError> {
        let mut input = BytesIn::new(bytes);
        let tag = input.u8()?;
        let (mut header, mut query) = (None, None);
        if version == Version::V3 {
            header = Some(RequestHeader::decode(version, &mut input)?);
            let request_tag = match tag {
                ERROR => None,
                DB_SIZE_ANSWER => Some(DB_SIZE),
                SLRU_SEGMENT_ANSWER => Some(SLRU_SEGMENT),
                tag => {
                    let request = tag.checked_sub(ANSWER).filter(|tag| *tag <= PAGE);
                    Some(request.ok_or(ResponseError::Tag(tag))?)
                }
            };
            if let Some(tag) = request_tag {
                let decoded = Query::decode(tag, &mut input)?;
                query = Some(decoded.map_err(|WrongFork(found)| ResponseError::Field {
                    what: "fork number",
                    found: found.into(),
                    expected: "0 to 3",
                })?);
            }
        }
        let answer = Answer::decode(tag, &mut input)?;
        match input.remaining() {
            0 => Ok(Response { header, query, answer }),
            left => Err(ResponseError::TrailingBytes(left)),
        }
    }

    /// Whether this answers `request`: with version 3, whether it repeats it; with version 2, whether it is of the right kind.
    pub fn answers(&self, request: &Request) -> bool {
        let kind = matches!(
            (&self.answer, &request.query),
            (Answer::Error(_), _)
                | (Answer::Exists(_), Query::Exists(_))
                | (Answer::Size(_), Query::Size(_))
                | (Answer::Page(_), Query::Page { .. })
                | (Answer::DbSize(_), Query::DbSize { .. })
                | (Answer::SlruSegment(_), Query::SlruSegment { .. })
        );
        kind && self.header.is_none_or(|header| header == request.header)
            && self.query.is_none_or(|query| query == request.query)
    }
}

/// The longest beginning of a text that may be sent: up to a zero byte or the limit.
fn cut(text: &str) -> &str {
    let end = text.bytes().position(|byte| byte == 0).unwrap_or(text.len());
    &text[..text.floor_char_boundary(end.min(MAX_ERROR_TEXT))]
}

fn encode_text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(cut(text).as_bytes());
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Vm };
    const HEADER: RequestHeader =
        RequestHeader { id: 7, request_lsn: Lsn::MAX, not_modified_since: Lsn(0x1_0000_0028) };

    fn request(query: Query) -> Request {
        Request { header: HEADER, query }
    }

    fn encoded(version: Version, request: &Request) -> String {
        let mut out = Vec::new();
        request.encode(version, &mut out);
        hex::encode(out)
    }

    #[test]
    fn requests_have_the_bytes_of_the_protocol() {
        let page = request(Query::Page { rel: REL, block: 9 });
        let lsns = "ffffffffffffffff0000000100000028";
        let body = "0000067f00000005000040000200000009";
        assert_eq!(encoded(Version::V2, &page), format!("02{lsns}{body}"));
        assert_eq!(encoded(Version::V3, &page), format!("020000000000000007{lsns}{body}"));
        let slru = request(Query::SlruSegment { kind: 1, segment: 0x10 });
        assert_eq!(encoded(Version::V2, &slru), format!("04{lsns}0100000010"));
        let size = request(Query::DbSize { db: 5 });
        assert_eq!(encoded(Version::V2, &size), format!("03{lsns}00000005"));
    }

    #[test]
    fn answers_have_the_bytes_of_the_protocol() {
        let exists = request(Query::Exists(REL));
        let bytes = |version, answer: &Answer<'_>| {
            let mut out = Vec::new();
            answer.encode(version, &exists, &mut out);
            assert_eq!(out.len(), answer.encoded_len(version));
            hex::encode(out)
        };
        let header = "0000000000000007ffffffffffffffff0000000100000028";
        assert_eq!(bytes(Version::V2, &Answer::Exists(true)), "6401");
        assert_eq!(
            bytes(Version::V3, &Answer::Exists(true)),
            format!("64{header}0000067f00000005000040000201")
        );
        let error = Answer::Error("Read error".into());
        assert_eq!(bytes(Version::V2, &error), "6752656164206572726f7200");
        assert_eq!(bytes(Version::V3, &error), format!("67{header}52656164206572726f7200"));
    }

    #[test]
    fn what_is_no_request_says_why() {
        assert_eq!(Request::decode(Version::V2, &[99]), Err(RequestError::Tag(99)));
        assert_eq!(RequestError::Tag(99).to_string(), "invalid tag 99");
        assert!(matches!(Request::decode(Version::V2, &[]), Err(RequestError::Truncated(_))));
        assert!(matches!(Request::decode(Version::V3, &[0; 1000]), Err(RequestError::TooLong(1000))));
        let mut bytes = Vec::new();
        request(Query::Size(REL)).encode(Version::V3, &mut bytes);
        *bytes.last_mut().unwrap() = 4;
        let error = Request::decode(Version::V3, &bytes).unwrap_err();
        assert_eq!(error.to_string(), "Bad request: fork number is 4, expected 0 to 3");
        assert!(matches!(error, RequestError::Field { header: HEADER, .. }));
    }

    #[test]
    fn an_error_text_is_cut_where_it_must_be() {
        for (text, sent) in
            [("a\0b", 1), (&"ä".repeat(5000)[..], 8192), (&format!("x{}", "ä".repeat(5000))[..], 8191)]
        {
            let mut out = Vec::new();
            Answer::encode_error(Version::V3, &HEADER, text, &mut out);
            assert_eq!(out.len(), 25 + sent + 1);
            let response = Response::decode(Version::V3, &out).unwrap();
            assert_eq!(response.header, Some(HEADER));
            assert!(matches!(response.answer, Answer::Error(got) if text.starts_with(&*got)));
        }
    }

    #[test]
    fn the_effective_lsn_follows_the_pair() {
        let resolve = |request_lsn, not_modified_since, last, oldest| {
            RequestHeader {
                id: 0,
                request_lsn: Lsn(request_lsn),
                not_modified_since: Lsn(not_modified_since),
            }
            .effective_lsn(Lsn(last), Lsn(oldest))
        };
        assert_eq!(resolve(u64::MAX, 50, 100, 10), Ok(EffectiveLsn::Now(Lsn(100))));
        assert_eq!(resolve(80, 50, 100, 10), Ok(EffectiveLsn::Now(Lsn(80))));
        assert_eq!(resolve(500, 50, 100, 10), Ok(EffectiveLsn::Now(Lsn(100))));
        assert_eq!(resolve(u64::MAX, 120, 100, 10), Ok(EffectiveLsn::WaitFor(Lsn(120))));
        assert_eq!(resolve(5, 5, 100, 0), Ok(EffectiveLsn::Now(Lsn(5))));
        for (request_lsn, not_modified_since) in [(40, 50), (0, 0), (9, 9)] {
            let refusal = resolve(request_lsn, not_modified_since, 100, 10).unwrap_err();
            assert!(refusal.to_string().starts_with("Bad request: "), "{refusal}");
        }
    }

    fn any_query() -> impl Strategy<Value = Query> {
        let rel = (any::<u32>(), any::<u32>(), any::<u32>(), 0u8..4).prop_map(|(spc, db, rel, fork)| {
            RelTag { spc, db, rel, fork: Fork::from_number(fork).expect("below 4") }
        });
        prop_oneof![
            rel.clone().prop_map(Query::Exists),
            rel.clone().prop_map(Query::Size),
            (rel, any::<u32>()).prop_map(|(rel, block)| Query::Page { rel, block }),
            any::<u32>().prop_map(|db| Query::DbSize { db }),
            (any::<u8>(), any::<u32>()).prop_map(|(kind, segment)| Query::SlruSegment { kind, segment }),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(query in any_query(), id: u64, lsns: (u64, u64), number: u32, pages in 0usize..33, v3: bool) {
            let version = if v3 { Version::V3 } else { Version::V2 };
            let header = RequestHeader {
                id: if v3 { id } else { 0 },
                request_lsn: Lsn(lsns.0),
                not_modified_since: Lsn(lsns.1),
            };
            let request = Request { header, query };
            let mut bytes = Vec::new();
            request.encode(version, &mut bytes);
            prop_assert_eq!(Request::decode(version, &bytes), Ok(request));
            prop_assert!(Request::decode(version, &bytes[..bytes.len() - 1]).is_err());

            let data = vec![number as u8; pages * BLOCK_SIZE];
            let page: Box<Page> = Box::new([number as u8; BLOCK_SIZE]);
            let answer = match query {
                Query::Exists(_) => Answer::Exists(number % 2 == 0),
                Query::Size(_) => Answer::Size(number),
                Query::Page { .. } => Answer::Page(&page),
                Query::DbSize { .. } => Answer::DbSize(number.into()),
                Query::SlruSegment { .. } => Answer::SlruSegment(&data),
            };
            for answer in [answer, Answer::Error("Read error".into())] {
                let mut bytes = Vec::new();
                answer.encode(version, &request, &mut bytes);
                prop_assert_eq!(bytes.len(), answer.encoded_len(version));
                let response = Response::decode(version, &bytes).unwrap();
                prop_assert!(response.answers(&request));
                prop_assert_eq!(&response.answer, &answer);
                prop_assert!(Response::decode(version, &bytes[..bytes.len() - 1]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100), tag in 98u8..107) {
            for version in [Version::V2, Version::V3] {
                let _ = Request::decode(version, &bytes);
                let _ = Response::decode(version, &bytes);
                let _ = Response::decode(version, &[&[tag], &bytes[..]].concat());
            }
        }
    }
}
