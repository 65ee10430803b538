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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page with `hole` zeros at `offset` and easily compressed content around them.
    fn page_with_hole(offset: usize, hole: usize) -> Page {
        let mut page = [0; BLOCK_SIZE];
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = (at / 7 % 11) as u8 + 1;
        }
        page[offset..offset + hole].fill(0);
        page
    }

    fn without_hole(page: &Page, offset: usize, hole: usize) -> Vec<u8> {
        [&page[..offset], &page[offset + hole..]].concat()
    }

    fn image(bytes: &[u8], compression: ImageCompression, offset: usize, hole: usize) -> BlockImage<'_> {
        let (hole_offset, hole_length) = (offset as u16, hole as u16);
        BlockImage { bytes, hole_offset, hole_length, compression, apply: true, info: 0 }
    }

    /// A plain encoder: every match that a short window finds, as the decoder's opposite.
    fn compress_pglz(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let control_at = out.len();
            out.push(0);
            for bit in 0..8 {
                if at == bytes.len() {
                    break;
                }
                let matching = |distance: usize| {
                    (0..273.min(bytes.len() - at))
                        .take_while(|n| bytes[at + n] == bytes[at + n - distance])
                        .count()
                };
                let (length, distance) =
                    (1..=at.min(200)).map(|distance| (matching(distance), distance)).max().unwrap_or((0, 0));
                if length < 3 {
                    out.push(bytes[at]);
                    at += 1;
                    continue;
                }
                out[control_at] |= 1 << bit;
                let low = if length >= 18 { 15 } else { length - 3 };
                out.extend_from_slice(&[(distance >> 4 & 0xF0 | low) as u8, distance as u8]);
                if length >= 18 {
                    out.push((length - 18) as u8);
                }
                at += length;
            }
        }
        out
    }

    fn compressed(method: ImageCompression, bytes: &[u8]) -> Vec<u8> {
        match method {
            ImageCompression::None => bytes.to_vec(),
            ImageCompression::Pglz => compress_pglz(bytes),
            ImageCompression::Lz4 => lz4_flex::block::compress(bytes),
            ImageCompression::Zstd => zstd::bulk::compress(bytes, 3).unwrap(),
        }
    }

    const METHODS: [ImageCompression; 4] =
        [ImageCompression::None, ImageCompression::Pglz, ImageCompression::Lz4, ImageCompression::Zstd];

    #[test]
    fn every_compression_gives_the_page_back() {
        for (offset, hole) in [(0, 0), (24, 8168), (400, 5000), (0, 100), (8092, 100)] {
            let page = page_with_hole(offset, hole);
            let bytes = without_hole(&page, offset, hole);
            for method in METHODS {
                let mut restored = [0xAA; BLOCK_SIZE];
                restore(&image(&compressed(method, &bytes), method, offset, hole), &mut restored).unwrap();
                assert!(restored == page, "{method:?}, hole of {hole} at {offset}");
            }
        }
    }

    #[test]
    fn an_image_of_the_wrong_length_is_refused() {
        let page = page_with_hole(100, 1000);
        let bytes = without_hole(&page, 100, 1000);
        for method in METHODS {
            for other in [&bytes[..bytes.len() - 1], &[&bytes[..], &[1]].concat()] {
                let stored = compressed(method, other);
                let mut restored = [0; BLOCK_SIZE];
                assert!(restore(&image(&stored, method, 100, 1000), &mut restored).is_err(), "{method:?}");
            }
        }
    }

    #[test]
    fn a_hole_past_the_page_is_refused() {
        let mut page = [0; BLOCK_SIZE];
        let error = restore(&image(&[], ImageCompression::None, 8000, 8192), &mut page).unwrap_err();
        assert_eq!(error, ImageError::Hole { offset: 8000, length: 8192 });
    }

    #[test]
    fn pglz_copies_may_overlap_themselves_but_not_reach_before_the_beginning() {
        let mut out = [0; 21];
        decompress_pglz(&[0b10, b'a', 0x0F, 1, 2], &mut out).unwrap();
        assert_eq!(&out, b"aaaaaaaaaaaaaaaaaaaaa");
        for broken in
            [&[0b10, b'a', 0x0F, 2, 2][..], &[0b10, b'a', 0x0F, 0, 2], &[0b10, b'a', 0x0F, 1], &[0b1, 0x0F]]
        {
            assert!(matches!(decompress_pglz(broken, &mut out), Err(ImageError::Pglz { .. })), "{broken:?}");
        }
        assert!(matches!(decompress_pglz(&[0, 1, 2], &mut [0]), Err(ImageError::Pglz { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            method in prop::sample::select(&METHODS[..]),
            offset: u16,
            hole: u16,
        ) {
            let _ = restore(&image(&bytes, method, usize::from(offset), usize::from(hole)), &mut [0; BLOCK_SIZE]);
        }
    }
}
