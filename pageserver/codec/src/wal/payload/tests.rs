use model::{Fork, PgMajor, RelTag};
use proptest::prelude::*;

use super::heap::{VmClear, vm_clears};
use super::*;
use crate::wal::build::{BlockDraft, RecordDraft};

/// The record that a draft becomes, handed to `check`.
fn with<T>(pg: PgMajor, draft: &RecordDraft, check: impl FnOnce(&Record<'_>) -> T) -> T {
    let bytes = draft.encode(pg, Lsn(8));
    check(&Record::parse(pg, &bytes).unwrap())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn xact(info: u8, main: &[u8]) -> RecordDraft {
    RecordDraft { xid: 700, ..RecordDraft::new(RmgrId::XACT, info, main.to_vec()) }
}

#[test]
fn a_plain_commit_is_a_time() {
    let parsed = with(PgMajor::V14, &xact(0, &77i64.to_le_bytes()), |record| {
        let xact::XactRecord::Commit(commit) = xact::XactRecord::parse(record).unwrap() else { panic!() };
        (commit.time, commit.xid(record), commit.dropped.len())
    });
    assert_eq!(parsed, (PgTimestamp(77), 700, 0));
}

#[test]
fn a_prepared_commit_has_all_its_parts() {
    for (pg, stats) in [(PgMajor::V17, vec![1, 5, 9]), (PgMajor::V18, vec![1, 5, 9, 2])] {
        let mut main = 77i64.to_le_bytes().to_vec();
        main.extend(words(&[0x1BF, 5, 1663, 2, 701, 702, 1, 1663, 5, 16384, 1]));
        main.extend(words(&stats));
        main.extend(words(&[1, 0, 0, 0, 0, 690]));
        main.extend(b"gid\0");
        main.extend(0x1234u64.to_le_bytes());
        main.extend(66i64.to_le_bytes());
        with(pg, &xact(0x80 | 0x30, &main), |record| {
            let xact::XactRecord::Commit(commit) = xact::XactRecord::parse(record).unwrap() else { panic!() };
            assert_eq!(commit.xid(record), 690);
            assert_eq!(commit.subxids, [701, 702]);
            assert_eq!(commit.dropped, [RelLocator { spc: 1663, db: 5, rel: 16384 }]);
            assert_eq!(commit.dropped_stats[0].object, if pg == PgMajor::V18 { 9 | 2 << 32 } else { 9 });
            assert_eq!(commit.invalidations.len(), INVALIDATION_SIZE);
            assert_eq!(commit.two_phase.unwrap().gid, Some(&b"gid"[..]));
            assert_eq!(commit.origin, Some((Lsn(0x1234), PgTimestamp(66))));
            assert_eq!(commit.commit_timestamp(), PgTimestamp(66));
        });
        for cut in 0..main.len() {
            with(pg, &xact(0x80 | 0x30, &main[..cut]), |record| {
                assert!(xact::XactRecord::parse(record).is_err(), "accepted when cut at {cut}");
            });
        }
        main.push(0);
        with(pg, &xact(0x80 | 0x30, &main), |record| {
            let error = xact::XactRecord::parse(record).unwrap_err();
            assert_eq!(error, PayloadError::TrailingBytes { record: "commit prepared", left: 1 });
        });
    }
}

#[test]
fn a_commit_is_prepared_exactly_when_its_kind_says_so() {
    let mut main = 77i64.to_le_bytes().to_vec();
    main.extend(words(&[0x10, 690]));
    with(PgMajor::V16, &xact(0x80, &main), |record| assert!(xact::XactRecord::parse(record).is_err()));
    with(PgMajor::V16, &xact(0xB0, &main), |record| assert!(xact::XactRecord::parse(record).is_ok()));
}

#[test]
fn an_absurd_count_is_refused_before_anything_is_allocated() {
    let mut main = 77i64.to_le_bytes().to_vec();
    main.extend(words(&[2, i32::MAX as u32, 1]));
    with(PgMajor::V16, &xact(0x80, &main), |record| {
        let error = xact::XactRecord::parse(record).unwrap_err();
        assert!(
            matches!(error, PayloadError::Truncated { source: Truncated { left: 4, .. }, .. }),
            "{error}"
        );
    });
    main[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    with(PgMajor::V16, &xact(0x80, &main), |record| {
        assert!(matches!(xact::XactRecord::parse(record), Err(PayloadError::Field { found: -1, .. })));
    });
}

#[test]
fn database_records_were_renumbered_in_15() {
    let drop_main = words(&[5, 1, 1663]);
    let draft = RecordDraft::new(RmgrId::DBASE, 0x10, drop_main.clone());
    with(PgMajor::V14, &draft, |record| {
        let expected = dbase::DbaseRecord::Drop { db: 5, spcs: vec![1663] };
        assert_eq!(dbase::DbaseRecord::parse(record), Ok(expected));
    });
    with(PgMajor::V15, &draft, |record| {
        assert_eq!(
            dbase::DbaseRecord::parse(record),
            Err(PayloadError::TrailingBytes { record: "database create", left: 4 })
        );
    });
    with(PgMajor::V15, &RecordDraft { info: 0x20, ..draft.clone() }, |record| {
        assert!(matches!(dbase::DbaseRecord::parse(record), Ok(dbase::DbaseRecord::Drop { db: 5, .. })));
    });
    with(PgMajor::V14, &RecordDraft { info: 0x20, ..draft }, |record| {
        assert!(matches!(dbase::DbaseRecord::parse(record), Err(PayloadError::UnknownKind { .. })));
    });
}

#[test]
fn slru_pages_are_wide_since_17() {
    for (pg, main) in [(PgMajor::V16, words(&[9])), (PgMajor::V17, words(&[9, 0]))] {
        with(pg, &RecordDraft::new(RmgrId::CLOG, 0, main.clone()), |record| {
            assert_eq!(clog::ClogRecord::parse(record), Ok(clog::ClogRecord::ZeroPage(9)));
        });
        with(pg, &RecordDraft::new(RmgrId::COMMIT_TS, 0, main.clone()), |record| {
            assert_eq!(commit_ts::CommitTsRecord::parse(record), Ok(commit_ts::CommitTsRecord::ZeroPage(9)));
        });
        let mut truncate = main;
        truncate.extend(words(&[730, 5]));
        with(pg, &RecordDraft::new(RmgrId::CLOG, 0x10, truncate), |record| {
            let expected = clog::ClogRecord::Truncate { page: 9, oldest_xid: 730, oldest_xid_db: 5 };
            assert_eq!(clog::ClogRecord::parse(record), Ok(expected));
        });
    }
}

#[test]
fn a_multixact_has_members_of_known_status() {
    let main = words(&[3, 7, 2, 700, 1, 701, 5]);
    with(PgMajor::V18, &RecordDraft::new(RmgrId::MULTIXACT, 0x20, main.clone()), |record| {
        let expected =
            multixact::MultiXactRecord::Create { multi: 3, offset: 7, members: vec![(700, 1), (701, 5)] };
        assert_eq!(multixact::MultiXactRecord::parse(record), Ok(expected));
    });
    let mut bad = main;
    bad[24] = 6;
    with(PgMajor::V18, &RecordDraft::new(RmgrId::MULTIXACT, 0x20, bad), |record| {
        assert!(multixact::MultiXactRecord::parse(record).is_err());
    });
}

fn heap_draft(rmgr: RmgrId, info: u8, main: Vec<u8>, blocks: &[(u8, Fork, u32)]) -> RecordDraft {
    let blocks = blocks
        .iter()
        .map(|(id, fork, block)| BlockDraft {
            id: *id,
            rel: RelTag { spc: 1663, db: 5, rel: 16384, fork: *fork },
            block: *block,
            will_init: false,
            image: None,
            data: vec![1],
        })
        .collect();
    RecordDraft { blocks, ..RecordDraft::new(rmgr, info, main) }
}

fn clears(draft: &RecordDraft) -> (Vec<(u32, u8, bool)>, bool) {
    with(PgMajor::V17, draft, |record| {
        let found = vm_clears(record).unwrap();
        let clear = |clear: &VmClear| (clear.heap_block, clear.bits, clear.is_old);
        (found.clears.iter().map(clear).collect(), found.is_registered)
    })
}

#[test]
fn an_insert_clears_both_bits_if_it_says_so() {
    let blocks = [(0, Fork::Main, 40_000)];
    let quiet = heap_draft(RmgrId::HEAP, 0x00, vec![1, 0, 0], &blocks);
    assert_eq!(clears(&quiet), (vec![], false));
    let loud = heap_draft(RmgrId::HEAP, 0x80, vec![1, 0, 1], &blocks);
    assert_eq!(clears(&loud), (vec![(40_000, 3, false)], false));
    with(PgMajor::V14, &loud, |record| assert_eq!(vm_clears(record).unwrap().clears[0].vm_block(), 1));
}

#[test]
fn an_update_may_clear_bits_of_two_heap_blocks() {
    let main = |flags| vec![0, 0, 0, 0, 1, 0, 0, flags, 0, 0, 0, 0, 2, 0];
    let two = [(0, Fork::Main, 8), (1, Fork::Main, 3)];
    assert_eq!(clears(&heap_draft(RmgrId::HEAP, 0x20, main(3), &two)).0, [(8, 3, false), (3, 3, true)]);
    assert_eq!(clears(&heap_draft(RmgrId::HEAP, 0x20, main(1), &two)).0, [(3, 3, true)]);
    assert_eq!(clears(&heap_draft(RmgrId::HEAP, 0x20, main(2), &two)).0, [(8, 3, false)]);
    let one = [(0, Fork::Main, 8)];
    assert_eq!(clears(&heap_draft(RmgrId::HEAP, 0x40, main(1), &one)).0, [(8, 3, true)]);
    assert_eq!(clears(&heap_draft(RmgrId::HEAP, 0x40, main(3), &one)).0, [(8, 3, false)]);
    let registered = [(0, Fork::Main, 8), (2, Fork::Vm, 0)];
    assert_eq!(clears(&heap_draft(RmgrId::HEAP, 0x40, main(3), &registered)), (vec![(8, 3, false)], true));
}

#[test]
fn a_lock_clears_only_the_frozen_bit() {
    let main = vec![0, 0, 0, 0, 1, 0, 0, 1];
    let blocks = [(0, Fork::Main, 8)];
    assert_eq!(clears(&heap_draft(RmgrId::HEAP, 0x60, main.clone(), &blocks)).0, [(8, 2, false)]);
    assert_eq!(clears(&heap_draft(RmgrId::HEAP2, 0x60, main, &blocks)).0, [(8, 2, false)]);
}

/// Parses with the parser of the record's resource manager.
fn parse_any(record: &Record<'_>) -> Result<(), PayloadError> {
    match record.rmgr {
        RmgrId::XLOG => xlog::XlogRecord::parse(record).map(drop),
        RmgrId::XACT => xact::XactRecord::parse(record).map(drop),
        RmgrId::SMGR => smgr::SmgrRecord::parse(record).map(drop),
        RmgrId::CLOG => clog::ClogRecord::parse(record).map(drop),
        RmgrId::DBASE => dbase::DbaseRecord::parse(record).map(drop),
        RmgrId::TBLSPC => tblspc::TblspcRecord::parse(record).map(drop),
        RmgrId::MULTIXACT => multixact::MultiXactRecord::parse(record).map(drop),
        RmgrId::RELMAP => relmap::RelmapUpdate::parse(record).map(drop),
        RmgrId::STANDBY => standby::StandbyRecord::parse(record).map(drop),
        RmgrId::COMMIT_TS => commit_ts::CommitTsRecord::parse(record).map(drop),
        RmgrId::REPL_ORIGIN => replorigin::ReplOriginRecord::parse(record).map(drop),
        RmgrId::LOGICAL_MSG => logical_message::LogicalMessage::parse(record).map(drop),
        _ => vm_clears(record).map(drop),
    }
}

proptest! {
    #[test]
    fn any_main_data_is_survived(
        major in 0..5usize,
        rmgr in 0..22u8,
        info: u8,
        main in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200),
    ) {
        with(PgMajor::ALL[major], &RecordDraft::new(RmgrId(rmgr), info, main), |record| drop(parse_any(record)));
    }

    #[test]
    fn any_prepared_state_is_survived(major in 0..5usize, body in prop::collection::vec(0..4u8, 0..300)) {
        let mut state = words(&[xact::TWO_PHASE_MAGIC, body.len() as u32 + 12]);
        state.extend(body);
        let _ = xact::prepare_state(PgMajor::ALL[major], &state);
    }
}
