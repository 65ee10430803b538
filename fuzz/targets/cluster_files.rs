//! Files of a cluster and lists of the key space: control data, checkpoint, maps, labels, manifest, directories.
#![no_main]

use codec::backup_label::BackupLabel;
use codec::checkpoint::CheckPoint;
use codec::control::ControlFile;
use codec::directory::{DbDirectory, RelDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::manifest::ManifestIn;
use codec::relmap::RelationMap;
use codec::tablespaces::Tablespaces;
use codec::{tablespace_map, two_phase};
use libfuzzer_sys::fuzz_target;
use model::PgMajor;

fuzz_target!(|data: &[u8]| {
    let _ = ControlFile::parse(data);
    for pg in PgMajor::ALL {
        let _ = CheckPoint::decode(pg, data);
        let _ = RelationMap::decode(pg, data);
        let _ = TwoPhaseDirectory::decode(data, pg);
        if let Ok(text) = std::str::from_utf8(data) {
            let _ = two_phase::parse_file_name(pg, text);
        }
    }
    let _ = two_phase::strip_checksum(data);
    let _ = DbDirectory::decode(data);
    let _ = SlruSegmentDirectory::decode(data);
    let _ = RelDirectory::decode(data);
    let _ = Tablespaces::decode(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = BackupLabel::parse(text);
        let _ = tablespace_map::parse(text);
    }
    let mut manifest = ManifestIn::new();
    if data.chunks(100).all(|piece| manifest.push(piece, drop).is_ok()) {
        let _ = manifest.finish();
    }
});
