//! Raw WAL objects, and timeline histories.
#![no_main]

use codec::history::TimelineHistory;
use codec::wal_object;
use libfuzzer_sys::fuzz_target;
use model::Tli;

fuzz_target!(|data: &[u8]| {
    if let Ok((header, raw)) = wal_object::decode(data) {
        assert_eq!(header.end.since(header.start), raw.len() as u64);
    }
    // Past the header's checksum, which no guess gets right.
    if let Some((header, _)) = data.split_at_checked(wal_object::HEADER_SIZE - 4) {
        let mut object = header.to_vec();
        object.extend(crc32c(header).to_le_bytes());
        object.extend(&data[wal_object::HEADER_SIZE - 4..]);
        let _ = wal_object::decode(&object);
    }
    if let Ok(history) = TimelineHistory::parse(Tli(9), data) {
        assert_eq!(TimelineHistory::parse(Tli(9), history.to_text().as_bytes()).as_ref(), Ok(&history));
    }
});

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8)
            .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (0u32.wrapping_sub(crc & 1))))
    })
}
