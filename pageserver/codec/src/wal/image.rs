//! Page images in WAL records, back to whole pages.

use model::BLOCK_SIZE;

use crate::page::Page;
use crate::wal::record::{BlockImage, ImageCompression};

/// An image that is not a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImageError {
    #[error("page image has {found} bytes, expected {expected}")]
    Length { found: usize, expected: usize },
    #[error("hole of {length} bytes at {offset} does not fit a page")]
    Hole { offset: u16, length: u16 },
    #[error("page image is not valid pglz: {what} at offset {at}")]
    Pglz { what: &'static str, at: usize },
    #[error("page image is not valid {method}: {reason}")]
    Compressed { method: &'static str, reason: String },
}

/// Writes the page that `image` is of into `page`. On an error `page` holds rubbish.
pub fn restore(image: &BlockImage<'_>, page: &mut Page) -> Result<(), ImageError> {
    let (offset, hole) = (usize::from(image.hole_offset), usize::from(image.hole_length));
    if offset + hole > BLOCK_SIZE {
        return Err(ImageError::Hole { offset: image.hole_offset, length: image.hole_length });
    }
    let expected = BLOCK_SIZE - hole;
    let stored = &mut page[..expected];
    match image.compression {
        ImageCompression::None => {
            if image.bytes.len() != expected {
                return Err(ImageError::Length { found: image.bytes.len(), expected });
            }
            stored.copy_from_slice(image.bytes);
        }
        ImageCompression::Pglz => decompress_pglz(image.bytes, stored)?,
        ImageCompression::Lz4 => {
            let found = lz4_flex::block::decompress_into(image.bytes, stored)
                .map_err(|error| ImageError::Compressed { method: "LZ4", reason: error.to_string() })?;
            if found != expected {
                return Err(ImageError::Length { found, expected });
            }
        }
        ImageCompression::Zstd => {
            let found = zstd::bulk::decompress_to_buffer(image.bytes, stored)
                .map_err(|error| ImageError::Compressed { method: "zstd", reason: error.to_string() })?;
            if found != expected {
                return Err(ImageError::Length { found, expected });
            }
        }
    }
    page.copy_within(offset..expected, offset + hole);
    page[offset..offset + hole].fill(0);
    Ok(())
}

/// Postgres' own compression (`pg_lzcompress.c`): a control byte, lowest bit first, says of each of the next eight items whether it is
/// a byte (0) or a copy of what came before (1): `length-3:4 | offset high:4`, `offset low:8`, and a third byte to add to a length of 18.
/// `out` must come out exactly full, from exactly all of `input`.
pub fn decompress_pglz(input: &[u8], out: &mut [u8]) -> Result<(), ImageError> {
    let (mut from, mut to) = (0, 0);
    while from < input.len() && to < out.len() {
        let mut control = input[from];
        from += 1;
        for _ in 0..8 {
            if from >= input.len() || to >= out.len() {
                break;
            }
            if control & 1 == 0 {
                out[to] = input[from];
                from += 1;
                to += 1;
            } else {
                let broken = |what| ImageError::Pglz { what, at: from };
                let tag = input.get(from..from + 2).ok_or(broken("a copy is cut off"))?;
                let mut length = usize::from(tag[0] & 0x0F) + 3;
                let distance = usize::from(tag[0] & 0xF0) << 4 | usize::from(tag[1]);
                let mut used = 2;
                if length == 18 {
                    length += usize::from(*input.get(from + 2).ok_or(broken("a copy's length is cut off"))?);
                    used = 3;
                }
                if distance == 0 || distance > to {
                    return Err(broken("a copy reaches before the beginning"));
                }
                if length > out.len() - to {
                    return Err(broken("a copy reaches past the end"));
                }
                for _ in 0..length {
                    out[to] = out[to - distance]; // the two may overlap, byte by byte is the meaning
                    to += 1;
                }
                from += used;
            }
            control >>= 1;
        }
    }
    if to != out.len() {
        return Err(ImageError::Length { found: to, expected: out.len() });
    }
    if from != input.len() {
        return Err(ImageError::Pglz { what: "bytes are left over", at: from });
    }
    Ok(())
}
