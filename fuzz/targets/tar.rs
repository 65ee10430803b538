//! Tar archives, cut anywhere.
#![no_main]

use codec::tar_in::TarIn;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let mut tar = TarIn::new();
    for piece in data.chunks(1 + usize::from(*cut) * 3) {
        let mut input = piece;
        loop {
            match tar.next(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    let _ = tar.finish(true);
});
