//! Tar archives, cut anywhere: any bytes, and headers with right checksums.
#![no_main]

use codec::tar_in::TarIn;
use fuzz::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let how = input.u8();
    let cut = 1 + usize::from(input.u8()) * 3;
    let archive = if how & 1 == 0 { input.0.to_vec() } else { input.archive() };
    let mut tar = TarIn::new();
    for piece in archive.chunks(cut) {
        let mut bytes = piece;
        loop {
            match tar.next(&mut bytes) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(bytes.is_empty(), "all is taken before more is asked for");
    }
    let _ = tar.finish(how & 2 != 0);
});
