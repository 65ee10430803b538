//! Raw WAL objects.
#![no_main]

use codec::wal_object::{self, HEADER_SIZE};
use fuzz::sealed;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok((header, raw)) = wal_object::decode(data) {
        assert_eq!(header.end.since(header.start), raw.len() as u64);
    }
    // Past the header's checksum, which no guess gets right.
    if let Some((header, _)) = data.split_at_checked(HEADER_SIZE - 4) {
        let object = [&sealed(header)[..], &data[HEADER_SIZE - 4..]].concat();
        if let Ok((header, raw)) = wal_object::decode(&object) {
            assert_eq!(header.end.since(header.start), raw.len() as u64);
        }
    }
});
