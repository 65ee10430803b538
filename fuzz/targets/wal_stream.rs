//! The WAL stream decoder: on raw bytes, and on valid WAL in which some bytes were changed, cut anywhere.
#![no_main]

use codec::wal::build::{RecordDraft, WalBuilder};
use codec::wal::stream::WalDecoder;
use libfuzzer_sys::fuzz_target;
use model::{Lsn, PgMajor, RmgrId, Tli, WalSegmentSize};

fn decode(pg: PgMajor, start: Lsn, bytes: &[u8], chunk: usize) {
    let segment = WalSegmentSize::new(1 << 20).expect("a valid size");
    for mut decoder in [
        WalDecoder::new(pg, segment, Tli(1), start),
        WalDecoder::at_first_record_after(pg, segment, Tli(1), start),
    ] {
        let mut at = start;
        'feeding: for piece in bytes.chunks(chunk) {
            if decoder.feed(at, piece).is_err() {
                break;
            }
            at = at.add(piece.len() as u64);
            loop {
                match decoder.next() {
                    Ok(Some(record)) => {
                        assert!(record.start < record.end);
                        let _ = record.parse();
                    }
                    Ok(None) => break,
                    Err(_) => break 'feeding,
                }
            }
        }
        assert!(decoder.taken_to() <= decoder.fed_to().max(start).add(1 << 20));
    }
}

fuzz_target!(|data: &[u8]| {
    let [major, chunk, records, changes, rest @ ..] = data else { return };
    let pg = PgMajor::ALL[usize::from(*major) % 5];
    let chunk = 1 + usize::from(*chunk) * 67;
    decode(pg, Lsn(0x30_0000), rest, chunk);

    let (drafts, rest) = rest.split_at(rest.len().min(usize::from(*records % 32) * 4));
    let segment = WalSegmentSize::new(1 << 20).expect("a valid size");
    let mut wal = WalBuilder::new(pg, segment, 7, Tli(1), Lsn(0x30_0028), Lsn(8));
    for draft in drafts.chunks_exact(4) {
        let main = vec![draft[3]; usize::from(draft[1]) * usize::from(draft[2])];
        let record = RecordDraft::new(RmgrId(draft[0] & 31), draft[3], main);
        if draft[0] >= 0xF0 {
            wal.push_aborted(&record, usize::from(draft[1]) * 64);
        } else {
            wal.push(&record);
        }
    }
    let mut bytes = wal.bytes().to_vec();
    for change in rest.chunks_exact(4).take(usize::from(*changes % 8)) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize % bytes.len();
        bytes[at] ^= change[3];
    }
    decode(pg, wal.base(), &bytes, chunk);
});
