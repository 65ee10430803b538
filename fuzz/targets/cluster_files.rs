//! Binary files of a cluster and binary lists of the key space. The first byte says which; those with a checksum get a right one.
#![no_main]

use codec::checkpoint::CheckPoint;
use codec::directory::{DbDirectory, RelDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::index_part::legacy_metadata;
use codec::relmap::RelationMap;
use codec::tablespaces::Tablespaces;
use codec::{replorigin, two_phase};
use fuzz::{Input, relation_map, sealed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let kind = input.u8();
    let pg = input.major();
    let bytes = input.0;
    match kind % 9 {
        0 => {
            if let Ok(checkpoint) = CheckPoint::decode(pg, bytes) {
                assert_eq!(CheckPoint::decode(pg, &checkpoint.encode(pg)).as_ref(), Ok(&checkpoint));
            }
        }
        1 => {
            if let Ok(map) = RelationMap::decode(pg, &relation_map(pg, bytes)) {
                assert_eq!(RelationMap::decode(pg, &map.encode(pg)).as_ref(), Ok(&map));
            }
            let _ = RelationMap::decode(pg, bytes);
        }
        2 => {
            if let Ok(origins) = replorigin::decode(&sealed(bytes)) {
                assert_eq!(replorigin::decode(&replorigin::encode(&origins)).as_ref(), Ok(&origins));
            }
            let _ = replorigin::decode(bytes);
        }
        3 => {
            assert_eq!(two_phase::strip_checksum(&sealed(bytes)), Ok(bytes));
            let _ = two_phase::strip_checksum(bytes);
        }
        4 => {
            if let Ok(list) = TwoPhaseDirectory::decode(bytes, pg) {
                assert_eq!(TwoPhaseDirectory::decode(&list.encode(pg), pg).as_ref(), Ok(&list));
            }
        }
        5 => {
            if let Ok(list) = DbDirectory::decode(bytes) {
                assert_eq!(DbDirectory::decode(&list.encode()).as_ref(), Ok(&list));
            }
        }
        6 => {
            if let Ok(list) = SlruSegmentDirectory::decode(bytes) {
                assert_eq!(SlruSegmentDirectory::decode(&list.encode()).as_ref(), Ok(&list));
            }
            let _ = RelDirectory::decode(bytes);
        }
        7 => {
            if let Ok(list) = Tablespaces::decode(bytes) {
                assert_eq!(Tablespaces::decode(&list.encode()).as_ref(), Ok(&list));
            }
        }
        _ => drop(legacy_metadata::decode(bytes)),
    }
});
