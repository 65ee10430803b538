//! Whatever a record says and whatever the page holds: redo gives a page or an error.

use codec::page::Page;
use codec::value::{Change, Value};
use codec::wal::build::{BlockDraft, RecordDraft};
use codec::wal::record::Record;
use model::{BLOCK_SIZE, Fork, Key, Lsn, PgMajor, RelTag, RmgrId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use redo::{mask, reconstruct};

const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };

/// Kinds of records that redo knows.
fn kinds() -> Vec<(RmgrId, u8)> {
    (0..=u8::MAX)
        .map(RmgrId)
        .flat_map(|rmgr| (0..16).map(move |operation| (rmgr, operation << 4)))
        .filter(|(rmgr, info)| redo::knows(*rmgr, *info))
        .collect()
}

/// Bytes like those of records: mostly small numbers.
fn small_bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![6 => Just(0), 6 => 0..4u8, 3 => 4..64u8, 1 => any::<u8>()], 0..longest)
}

/// A page with a header that mostly makes sense, and line pointers that sometimes do.
fn page() -> impl Strategy<Value = Box<Page>> {
    let header = (
        prop_oneof![8 => 6..40u16, 1 => Just(6), 1 => any::<u16>()],
        prop_oneof![8 => 1000..8184u16, 1 => any::<u16>()],
        prop_oneof![3 => select(vec![8192u16, 8184, 8176]), 1 => any::<u16>()],
    );
    let pointers = vec((any::<u16>(), 0..4u32, 0..200u32, 0..8u8), 0..40);
    (header, pointers, small_bytes(64), any::<[u8; 16]>()).prop_map(
        |((lower, upper, special), pointers, filler, tail)| {
            let mut page = Box::new([0; BLOCK_SIZE]);
            if !filler.is_empty() {
                for (at, byte) in page.iter_mut().enumerate().skip(24) {
                    *byte = filler[at % filler.len()];
                }
            }
            page[..24].fill(0);
            page[12..14].copy_from_slice(&lower.wrapping_mul(4).to_le_bytes());
            page[14..16].copy_from_slice(&upper.to_le_bytes());
            page[16..18].copy_from_slice(&special.to_le_bytes());
            for (index, (at, state, length, wild)) in pointers.iter().enumerate() {
                let at = if *wild == 0 { *at } else { upper.saturating_add(at % 1000) & !7 };
                let state = if *wild < 3 { *state } else { 1 };
                let pointer = u32::from(at) & 0x7FFF | state << 15 | length << 17;
                page[24 + index * 4..28 + index * 4].copy_from_slice(&pointer.to_le_bytes());
            }
            page[BLOCK_SIZE - 16..].copy_from_slice(&tail);
            page
        },
    )
}

#[derive(Clone, Debug)]
struct Case {
    pg: PgMajor,
    kind: (RmgrId, u8),
    main: Vec<u8>,
    data: Vec<u8>,
    blocks: u8,
    id: u8,
    fork: Fork,
    page: Box<Page>,
}

fn case() -> impl Strategy<Value = Case> {
    let record = (select(PgMajor::ALL.to_vec()), select(kinds()), small_bytes(120), small_bytes(400));
    let blocks = (1..8u8, any::<u8>(), prop_oneof![8 => Just(Fork::Main), 1 => Just(Fork::Vm)]);
    (record, blocks, page()).prop_map(|((pg, kind, main, data), (blocks, id, fork), page)| Case {
        pg,
        kind,
        main,
        data,
        blocks,
        id: id % blocks,
        fork,
        page,
    })
}

impl Case {
    fn record(&self, will_init: bool) -> Vec<u8> {
        let (rmgr, info) = self.kind;
        let block = |id| BlockDraft {
            id,
            rel: REL.locator().fork(if id == self.id { self.fork } else { Fork::Main }),
            block: u32::from(id),
            will_init,
            image: None,
            data: if id == self.id { self.data.clone() } else { Vec::new() },
        };
        let blocks = (0..self.blocks).map(block).collect();
        RecordDraft { rmgr: rmgr.0, info, xid: 700, origin: None, blocks, main: self.main.clone() }
            .encode(self.pg, Lsn(8))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_record_on_any_page_gives_a_page_or_an_error(case in case(), will_init: bool) {
        let bytes = case.record(will_init);
        let record = Record::parse(case.pg, &bytes).unwrap();
        let block = record.block(case.id).unwrap();
        let mut page = case.page.clone();
        let _ = redo::apply(&record, block, Lsn(u64::MAX), &mut page);
        // What came out is no better than what went in: masks and the next record must bear it.
        let _ = redo::apply(&record, block, Lsn(u64::MAX), &mut page);
        let mut strictly = page.clone();
        let _ = mask::mask_strictly(case.kind.0, case.fork, 1, &mut strictly);
        let _ = mask::mask(case.kind.0, 1, &mut page);
        let _ = mask::clear_gist_tuples_deleted(&mut page);
    }

    #[test]
    fn any_change_of_any_key_gives_a_value_or_an_error(
        key: [u8; 18],
        kind in 0..4u8,
        number: u32,
        changes in vec((small_bytes(80), 0..12u8, any::<u32>()), 0..6),
        base in proptest::option::of((select(vec![0usize, 4, 8191, 8192, 8200]), any::<u8>())),
    ) {
        let key = match kind {
            0 => Key::from_bytes(&key),
            1 => Key::rel_block(REL.locator().fork(Fork::Vm), 1),
            2 => Key::slru_page(model::SlruKind::ALL[(number % 4) as usize], number % 9, number % 32),
            _ => Key::rel_block(REL, number),
        };
        let encoded: Vec<Vec<u8>> = changes
            .iter()
            .map(|(bytes, tag, number)| {
                let xids = vec![*number];
                let change = match tag {
                    0 => return bytes.clone(),
                    1 => return Value::Image(bytes).to_bytes(),
                    2 => Change::ClearVisibilityMap {
                        new_heap_block: Some(*number),
                        old_heap_block: None,
                        bits: bytes.len() as u8,
                    },
                    3 => Change::Committed { xids, time: model::PgTimestamp(5) },
                    4 => Change::Aborted { xids },
                    5 => Change::MultiXactOffset { multi: *number, offset: 1 },
                    6 => Change::MultiXactMembers { first: *number, members: vec![(1, 2), (3, 4)] },
                    7 => Change::TruncateVisibilityMap { byte: u64::from(*number), bit: 1 << (bytes.len() % 9) },
                    8 => Change::ZeroPage,
                    9 => Change::MultiXactOffsets { first: *number, offsets: vec![1, 2] },
                    10 => Change::CommitTimestamps { xids, time: model::PgTimestamp(5), origin: 0 },
                    _ => Change::Postgres { will_init: false, record: bytes },
                };
                Value::Change(change).to_bytes()
            })
            .collect();
        let changes = encoded.iter().enumerate().map(|(at, bytes)| (Lsn(at as u64 + 1), bytes.as_slice()));
        let base = base.map(|(length, byte)| vec![byte; length]);
        let _ = reconstruct(base.as_deref(), changes, PgMajor::V16, key);
    }
}
