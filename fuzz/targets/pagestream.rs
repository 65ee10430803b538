//! Pagestream messages of both versions and directions.
#![no_main]

use codec::pagestream::{Request, Response, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for version in [Version::V2, Version::V3] {
        if let Ok(request) = Request::decode(version, data) {
            let mut bytes = Vec::new();
            request.encode(version, &mut bytes);
            assert_eq!(Request::decode(version, &bytes).as_ref(), Ok(&request));
        }
        let _ = Response::decode(version, data);
    }
});
