//! Values as they lie in a layer file: back to back from offset 8192, without alignment, across block borders.
//!
//! ```text
//! length below 128    1 byte length, bytes
//! otherwise           u32 kind << 28 | stored length, bytes       kind 8: as they are, 9: one zstd frame
//! ```
//!
//! Values of image layers are compressed, large ones of delta layers may be, each for itself, and only where that makes them smaller.

use std::borrow::Cow;
use std::io::Read;

use zstd::bulk::{Compressor, Decompressor};

use super::{Layout, ReadLayerError, VALUES_START};

/// Most bytes that a header takes. The bytes of a header before them are enough to tell.
pub const MAX_HEADER: usize = 4;

/// Most bytes that a value takes in the file.
pub const MAX_STORED: usize = 0x0FFF_FFFF;

/// Most bytes that a compressed value may expand to; larger ones are stored as they are, so that a few bytes never ask for much memory.
pub const MAX_EXPANDED: usize = 16 << 20;

const SHORT: usize = 128;
const RAW: u8 = 0x80;
const ZSTD: u8 = 0x90;
const KIND_MASK: u8 = 0xF0;
const ZSTD_LEVEL: i32 = 1;

/// What the header of a value says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHead {
    /// Where the header begins in the file.
    pub at: u64,
    /// Bytes of the header.
    pub header: usize,
    /// Bytes after the header.
    pub stored: usize,
    /// Whether these are a zstd frame.
    pub compressed: bool,
}

impl BlobHead {
    /// Reads the header at `at` from the bytes that begin there. `bytes` may be longer than the header; when it is shorter than the
    /// header needs, the error is [`ReadLayerError::Truncated`] ([`MAX_HEADER`] bytes always do). The value is sure to end within the
    /// values' area of `layout`.
    pub fn parse(layout: &Layout, at: u64, bytes: &[u8]) -> Result<BlobHead, ReadLayerError> {
        if !(VALUES_START..layout.values_end()).contains(&at) {
            return Err(ReadLayerError::Field {
                at,
                what: "offset of a value",
                found: at,
                expected: "an offset in the area of values",
            });
        }
        let short = |wanted: u64| ReadLayerError::Truncated {
            at,
            what: "header of a value",
            wanted,
            left: bytes.len() as u64,
        };
        let first = *bytes.first().ok_or_else(|| short(1))?;
        let head = if usize::from(first) < SHORT {
            BlobHead { at, header: 1, stored: first.into(), compressed: false }
        } else {
            let word = u32::from_be_bytes(*bytes.first_chunk::<4>().ok_or_else(|| short(4))?);
            let compressed = match first & KIND_MASK {
                RAW => false,
                ZSTD => true,
                kind => {
                    return Err(ReadLayerError::Field {
                        at,
                        what: "kind of a value",
                        found: kind.into(),
                        expected: "80 (as it is) or 90 (zstd)",
                    });
                }
            };
            BlobHead { at, header: 4, stored: word as usize & MAX_STORED, compressed }
        };
        if head.end() > layout.values_end() {
            return Err(ReadLayerError::Truncated {
                at,
                what: "value",
                wanted: head.end() - at,
                left: layout.values_end() - at,
            });
        }
        Ok(head)
    }

    /// Where the stored bytes begin in the file.
    pub fn start(&self) -> u64 {
        self.at + self.header as u64
    }

    /// Where the value ends in the file.
    pub fn end(&self) -> u64 {
        self.start() + self.stored as u64
    }
}

/// Turns stored bytes into values. Keep one where many are read: a decompressor is costly to make.
#[derive(Default)]
pub struct Unpacker {
    zstd: Decompressor<'static>,
}

impl Unpacker {
    /// The value whose stored bytes (without header) these are; `stored` is exactly [`BlobHead::stored`] bytes long.
    pub fn unpack<'a>(&mut self, head: &BlobHead, stored: &'a [u8]) -> Result<Cow<'a, [u8]>, ReadLayerError> {
        if stored.len() != head.stored {
            return Err(ReadLayerError::Truncated {
                at: head.start(),
                what: "value",
                wanted: head.stored as u64,
                left: stored.len() as u64,
            });
        }
        if !head.compressed {
            return Ok(Cow::Borrowed(stored));
        }
        let damaged = |reason: String| ReadLayerError::Zstd { at: head.at, reason };
        let too_large = || damaged(format!("it expands to more than {MAX_EXPANDED} bytes"));
        let Some(size) = zstd::stream::decompressed_size(stored) else {
            // Written by a streaming compressor that did not know the size beforehand.
            let mut value = Vec::new();
            zstd::stream::Decoder::with_buffer(stored)
                .and_then(|decoder| decoder.take(MAX_EXPANDED as u64 + 1).read_to_end(&mut value))
                .map_err(|error| damaged(error.to_string()))?;
            return if value.len() > MAX_EXPANDED { Err(too_large()) } else { Ok(Cow::Owned(value)) };
        };
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_EXPANDED).ok_or_else(too_large)?;
        let value = self.zstd.decompress(stored, size).map_err(|error| damaged(error.to_string()))?;
        if value.len() != size {
            return Err(damaged(format!("{} bytes came out, {size} were promised", value.len())));
        }
        Ok(Cow::Owned(value))
    }
}

/// The header of a value that is stored in `stored` bytes, at most [`MAX_STORED`].
pub(super) fn put_header(stored: usize, compressed: bool, out: &mut Vec<u8>) {
    debug_assert!(stored <= MAX_STORED, "the writer checks the length");
    if stored < SHORT && !compressed {
        out.push(stored as u8);
    } else {
        let kind = if compressed { ZSTD } else { RAW };
        out.extend_from_slice(&(u32::from(kind) << 24 | stored as u32).to_be_bytes());
    }
}

/// Compresses values where that pays.
pub(super) struct Packer {
    zstd: Compressor<'static>,
    frame: Vec<u8>,
}

impl Default for Packer {
    fn default() -> Self {
        let zstd = Compressor::new(ZSTD_LEVEL).expect("level 1 is a level of zstd");
        Packer { zstd, frame: Vec::new() }
    }
}

impl Packer {
    /// The value as a zstd frame, if that is smaller.
    pub(super) fn pack(&mut self, value: &[u8]) -> Option<&[u8]> {
        if !(SHORT..=MAX_EXPANDED).contains(&value.len()) {
            return None;
        }
        self.frame.clear();
        self.frame.reserve(zstd::zstd_safe::compress_bound(value.len()));
        self.zstd.compress_to_buffer(value, &mut self.frame).ok()?;
        (self.frame.len() < value.len()).then_some(&self.frame)
    }
}
