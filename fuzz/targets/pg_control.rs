//! `pg_control`: as it is, and with a right version and checksum.
#![no_main]

use codec::checkpoint::CheckPoint;
use codec::control::{CONTROL_FILE_SIZE, ControlFile};
use fuzz::{Input, control_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let how = input.u8();
    let pg = input.major();
    let bytes = if how & 1 == 0 {
        let covered = input.bytes(292);
        control_file(pg, covered, how & 2 == 0)
    } else {
        input.0.to_vec()
    };
    let Ok(control) = ControlFile::parse(&bytes) else { return };
    let file = control.encode();
    assert_eq!(file.len(), CONTROL_FILE_SIZE);
    assert_eq!(ControlFile::parse(&file).as_ref(), Ok(&control));
    let _ = CheckPoint::decode(control.pg, &control.checkpoint);
    let _ = (control.redo(), control.tli(), control.has_checksums(), control.default_char_signed());
});
