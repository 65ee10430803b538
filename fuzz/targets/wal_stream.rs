//! The WAL stream decoder: on raw bytes, and on valid WAL in which some bytes were changed, cut anywhere.
#![no_main]

use codec::wal::build::{RecordDraft, WalBuilder};
use codec::wal::stream::WalDecoder;
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use model::{Lsn, PgMajor, RmgrId, Tli, WalSegmentSize};

const SEGMENT: u64 = 1 << 20;

fn decode(pg: PgMajor, start: Lsn, bytes: &[u8], chunk: usize) {
    // Byte by byte only what is short.
    let chunk = chunk.max(bytes.len() / 512);
    let segment = WalSegmentSize::new(SEGMENT).expect("a valid size");
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
        assert!(decoder.taken_to() <= decoder.fed_to().max(start).add(SEGMENT));
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let pg = input.major();
    let chunk = 1 + usize::from(input.u8()) * 67;
    let kinds = input.u8();
    if kinds & 0x80 != 0 {
        decode(pg, Lsn(0x30_0000), input.0, chunk);
        return;
    }
    // The first pages of a segment, or its last and the first of the next one, which takes longer since the builder fills a segment.
    let start = match kinds & 0x60 {
        0 => Lsn(0x40_0000 - 0x2000 * u64::from(kinds & 3) + 24 - 8 * u64::from(kinds >> 2 & 7)),
        _ => Lsn(0x40_0000 + 0x400 * u64::from(kinds & 15)),
    };
    let segment = WalSegmentSize::new(SEGMENT).expect("a valid size");
    let mut wal = WalBuilder::new(pg, segment, 7, Tli(1), start, Lsn(8));
    let skipped = wal.bytes().len();
    for _ in 0..input.u8() % 12 {
        let (rmgr, length, info) = (input.u8(), input.u16(), input.u8());
        let record = RecordDraft::new(RmgrId(rmgr & 31), info, vec![info; usize::from(length) % 20_000]);
        let room = 0x2000 - wal.end().0 % 0x2000;
        if rmgr >= 0xF0 && u64::from(length) % 20_000 > room {
            wal.push_aborted(&record, usize::from(info) * 64);
        } else if wal.bytes().len() < 3 << 20 {
            wal.push(&record);
        }
    }
    // From the page of the first record on: what is before says nothing.
    let from = skipped / 0x2000 * 0x2000;
    let mut bytes = wal.bytes()[from..].to_vec();
    while !input.is_empty() && !bytes.is_empty() {
        // Near the beginning of a page are its header and what most records say of themselves.
        let (page, at, change) = (input.u8(), input.u16(), input.u8());
        let at = (usize::from(page) * 0x2000 + usize::from(at) % 0x2000) % bytes.len();
        bytes[at] ^= change;
    }
    decode(pg, wal.base().add(from as u64), &bytes, chunk);
});
