//! `index_part.json`: what is read is kept when it is written again.
#![no_main]

use codec::index_part::{IndexPart, legacy_metadata};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = legacy_metadata::decode(data);
    let Ok(index) = IndexPart::from_json(data) else { return };
    let json = index.to_json();
    let again = IndexPart::from_json(&json).expect("what was written can be read");
    assert_eq!(again.to_json(), json);
    for (name, layer) in &index.layer_metadata {
        let _ = layer.layout(name);
    }
    for lease in index.palimpsest.iter().flat_map(|ours| &ours.leases) {
        let _ = lease.valid_until.to_system_time();
    }
});
