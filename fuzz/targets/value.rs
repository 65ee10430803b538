//! Values of keys: what decodes, encodes to the same bytes.
#![no_main]

use codec::value::Value;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = Value::decode(data) {
        assert_eq!(value.to_bytes(), data);
    }
});
