//! One record: parsing, trimming to a block, the typed payloads, its line of text, and its images.
#![no_main]

use codec::wal::describe::describe;
use codec::wal::payload::{
    clog, commit_ts, dbase, heap, logical_message, multixact, relmap, replorigin, smgr, standby, tblspc,
    xact, xlog,
};
use codec::wal::record::{Record, trimmed};
use libfuzzer_sys::fuzz_target;
use model::{BLOCK_SIZE, Lsn, PgMajor};

fuzz_target!(|data: &[u8]| {
    let Some((major, bytes)) = data.split_first() else { return };
    let pg = PgMajor::ALL[usize::from(*major) % 5];
    let mut bytes = bytes.to_vec();
    if let Some(length) = bytes.first_chunk_mut::<4>() {
        // Nothing but the right length gets anywhere, and it says nothing.
        *length = ((data.len() - 1) as u32).to_le_bytes();
    }
    let Ok(record) = Record::parse(pg, &bytes) else { return };
    describe(Lsn(8), &record, data.len() % 2 == 0, &mut String::new());
    for block in &record.blocks {
        let trimmed = trimmed(&record, &bytes, block.id);
        let again = Record::parse(pg, &trimmed).expect("a trimmed record is a record");
        let kept = again.block(block.id).expect("the block that it was trimmed to");
        assert_eq!((kept.data, kept.rel, kept.block), (block.data, block.rel, block.block));
        assert_eq!(again.main, record.main);
        let _ = redo::apply(&record, block, Lsn(8), &mut [0; BLOCK_SIZE]);
    }
    let _ = xlog::XlogRecord::parse(&record);
    let _ = xact::XactRecord::parse(&record);
    let _ = smgr::SmgrRecord::parse(&record);
    let _ = clog::ClogRecord::parse(&record);
    let _ = dbase::DbaseRecord::parse(&record);
    let _ = tblspc::TblspcRecord::parse(&record);
    let _ = multixact::MultiXactRecord::parse(&record);
    let _ = relmap::RelmapUpdate::parse(&record);
    let _ = standby::StandbyRecord::parse(&record);
    let _ = commit_ts::CommitTsRecord::parse(&record);
    let _ = replorigin::ReplOriginRecord::parse(&record);
    let _ = logical_message::LogicalMessage::parse(&record);
    let _ = heap::vm_clears(&record);
    let _ = xact::prepare_state(pg, &bytes);
});
