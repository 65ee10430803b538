//! `backup_manifest`, with the right checksum of itself.
#![no_main]

use codec::manifest::ManifestIn;
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let how = input.u8();
    let chunk = 1 + usize::from(how >> 1) * 5;
    let mut text = input.0.to_vec();
    if how & 1 != 0 {
        let sum = Sha256::digest(&text);
        text.extend(b"\"Manifest-Checksum\": \"");
        text.extend(sum.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
        text.extend(b"\"}\n");
    }
    let mut manifest = ManifestIn::new();
    if text.chunks(chunk).all(|piece| manifest.push(piece, drop).is_ok()) {
        let _ = manifest.finish();
    }
});
