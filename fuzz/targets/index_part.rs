//! `index_part.json`: what is read is kept when it is written again.
#![no_main]

use codec::index_part::{IndexPart, legacy_metadata};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = legacy_metadata::decode(data);
    if let Ok(index) = IndexPart::from_json(data) {
        let json = index.to_json();
        let again = IndexPart::from_json(&json).expect("what was written can be read");
        assert_eq!(again.to_json(), json);
    }
});
