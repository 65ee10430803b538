//! Page images in every compression.
#![no_main]

use codec::wal::image::restore;
use codec::wal::record::{BlockImage, ImageCompression};
use libfuzzer_sys::fuzz_target;
use model::BLOCK_SIZE;

fuzz_target!(|data: &[u8]| {
    let [method, a, b, c, d, bytes @ ..] = data else { return };
    let compression = match method % 4 {
        0 => ImageCompression::None,
        1 => ImageCompression::Pglz,
        2 => ImageCompression::Lz4,
        _ => ImageCompression::Zstd,
    };
    let image = BlockImage {
        bytes,
        hole_offset: u16::from_le_bytes([*a, *b]),
        hole_length: u16::from_le_bytes([*c, *d]),
        compression,
        apply: true,
        info: 0,
    };
    let _ = restore(&image, &mut [0xAA; BLOCK_SIZE]);
});
