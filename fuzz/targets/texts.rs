//! Names, numbers, labels, histories: what is parsed from text. The first byte says which.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use codec::backup_label::BackupLabel;
use codec::history::TimelineHistory;
use codec::{tablespace_map, two_phase};
use libfuzzer_sys::fuzz_target;
use model::{
    Generation, Key, LayerName, LayerObjectName, Lsn, PgMajor, ShardIndex, TenantId, TenantShardId, Tli,
};

/// What parses says itself in a form that parses to the same.
fn round_trip<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(&value.to_string().parse::<T>().expect("what we say, we understand"), &value);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    if kind % 13 == 0 {
        if let Ok(history) = TimelineHistory::parse(Tli(9), bytes) {
            assert_eq!(TimelineHistory::parse(Tli(9), history.to_text().as_bytes()).as_ref(), Ok(&history));
        }
        return;
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match kind % 13 {
        1 => round_trip::<Lsn>(text),
        2 => round_trip::<Key>(text),
        3 => round_trip::<LayerName>(text),
        4 => round_trip::<LayerObjectName>(text),
        5 => round_trip::<TenantId>(text),
        6 => round_trip::<TenantShardId>(text),
        7 => round_trip::<ShardIndex>(text),
        8 => round_trip::<Generation>(text),
        9 => drop(BackupLabel::parse(text)),
        10 => drop(tablespace_map::parse(text)),
        11 => {
            for pg in PgMajor::ALL {
                if let Some(xid) = two_phase::parse_file_name(pg, text) {
                    assert_eq!(two_phase::file_name(pg, xid), text);
                }
            }
        }
        _ => drop(text.parse::<PgMajor>()),
    }
});
