//! Redo of any record on any page.
#![no_main]

use codec::wal::build::{BlockDraft, RecordDraft};
use codec::wal::record::Record;
use libfuzzer_sys::fuzz_target;
use model::{BLOCK_SIZE, Fork, Lsn, PgMajor, RelTag, RmgrId};

/// Takes up to `count` bytes off the front.
fn take<'a>(data: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(count.min(data.len()));
    *data = rest;
    taken
}

fuzz_target!(|data: &[u8]| {
    let [major, rmgr, info, blocks, which, main_len, rest @ ..] = data else { return };
    let pg = PgMajor::ALL[usize::from(*major) % 5];
    let mut rest = rest;
    let mut draft =
        RecordDraft::new(RmgrId(rmgr % 24), *info, take(&mut rest, usize::from(*main_len)).to_vec());
    draft.xid = 700;
    for id in 0..5u8 {
        if blocks & 1 << id != 0 {
            let [flags, length, ..] = rest else { break };
            let (flags, length) = (*flags, usize::from(*length) * 2);
            rest = &rest[2..];
            let fork = if flags & 0x80 != 0 { Fork::Vm } else { Fork::Main };
            draft.blocks.push(BlockDraft {
                id,
                rel: RelTag { spc: 1663, db: 5, rel: 16384, fork },
                block: u32::from(flags & 0x0F),
                will_init: flags & 0x10 != 0,
                image: None,
                data: take(&mut rest, length).to_vec(),
            });
        }
    }
    let bytes = draft.encode(pg, Lsn(8));
    let record = Record::parse(pg, &bytes).expect("what the builder writes is a record");
    let Some(block) = record.blocks.get(usize::from(*which) % record.blocks.len().max(1)) else { return };
    // A page that could be one: the given bytes at its beginning and at its end, its header made plausible half of the time.
    let mut page = [0; BLOCK_SIZE];
    let (head, tail) = rest.split_at(rest.len().min(512) / 2);
    page[..head.len()].copy_from_slice(head);
    let tail = &tail[..tail.len().min(4096)];
    page[BLOCK_SIZE - tail.len()..].copy_from_slice(tail);
    if which & 0x80 == 0 {
        page[0..8].fill(0);
        let special = BLOCK_SIZE - usize::from(which & 0x70) / 2;
        let lower = 24 + usize::from(page[12] & 0x3F) * 4;
        let upper = lower + usize::from(page[14]) * 8;
        for (at, value) in [(12, lower), (14, upper.min(special)), (16, special), (18, 0x2004)] {
            page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        }
    }
    let _ = redo::apply(&record, block, Lsn(0x1_0000), &mut page);
});
