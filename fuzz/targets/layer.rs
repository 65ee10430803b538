//! Layer files.
#![no_main]

use codec::layer::LayerFile;
use libfuzzer_sys::fuzz_target;
use model::{Key, Lsn};

fuzz_target!(|data: &[u8]| {
    let Ok(file) = LayerFile::open(data) else { return };
    let _ = file.images();
    let _ = file.deltas();
    let _ = file.image(Key::CHECKPOINT);
    let _ = file.changes(Key::CHECKPOINT, &(Lsn(0)..Lsn::MAX));
    let _ = file.verify();
});
