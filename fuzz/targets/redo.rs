//! Redo of any records, one after the other, on any page.
#![no_main]

use codec::page;
use codec::wal::record::Record;
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use model::{BLOCK_SIZE, Lsn};
use redo::mask;

/// Records redone on a page.
const MOST: usize = 16;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let pg = input.major();
    let form = input.u8();
    // A page that could be one: the given bytes at its beginning and at its end, its header made plausible half of the time.
    let mut page = [0; BLOCK_SIZE];
    if form & 1 != 0 {
        let head = input.short();
        let head = &head[..head.len().min(BLOCK_SIZE)];
        page[..head.len()].copy_from_slice(head);
        let tail = input.short();
        let tail = &tail[..tail.len().min(BLOCK_SIZE)];
        page[BLOCK_SIZE - tail.len()..].copy_from_slice(tail);
    }
    if form & 2 != 0 {
        let special = BLOCK_SIZE - usize::from(form >> 4) * 8;
        let lower = 24 + usize::from(page[12] & 0x3F) * 4;
        let upper = lower + usize::from(page[14]) * 32;
        for (at, value) in [(12, lower), (14, upper.min(special)), (16, special), (18, 0x2004)] {
            page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        }
    }
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let which = usize::from(input.u8());
        let draft = input.record();
        let bytes = draft.encode(pg, Lsn(8));
        let record = Record::parse(pg, &bytes).expect("what the builder writes is a record");
        let Some(block) = record.blocks.get(which % record.blocks.len().max(1)) else { continue };
        // Nothing may be skipped for the sake of the page's own LSN.
        page[0..8].fill(0);
        let before = page;
        let is_done = redo::apply(&record, block, Lsn(0x1_0000), &mut page);
        match is_done {
            Ok(redo::Applied::Changed) => assert!(page::is_new(&page) || page::lsn(&page) == Lsn(0x1_0000)),
            Ok(_) => assert_eq!(page, before, "nothing was changed"),
            // After an error it holds rubbish, which whoever looks at it next must bear.
            Err(_) => {}
        }
        let mut masked = page;
        let _ = mask::mask(record.rmgr, block.block, &mut masked);
        masked = page;
        let _ = mask::mask_strictly(record.rmgr, block.rel.fork, block.block, &mut masked);
    }
});
