//! What a read does: any changes of any key, folded into its value.
#![no_main]

use codec::value::{Change, Value};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use model::{Fork, Key, Lsn, PgTimestamp, RelTag, SlruKind};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let pg = input.major();
    let number = input.u32();
    let rel = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };
    let key = match input.u8() % 8 {
        0 => Key::from_bytes(&std::array::from_fn(|_| input.u8())),
        1 => Key::rel_block(RelTag { fork: Fork::Vm, ..rel }, number % 4),
        2 => Key::rel_block(RelTag { fork: Fork::Fsm, ..rel }, number),
        kind @ 3..6 => {
            let kind = SlruKind::ALL[usize::from(kind + input.u8() % 8) % SlruKind::ALL.len()];
            Key::slru_page(kind, number >> 8, number)
        }
        _ => Key::rel_block(rel, number & 0x0F),
    };
    // Numbers that fit to the key, mostly: near `number`.
    let near = |input: &mut Input<'_>| number.wrapping_add(input.u8().into());
    let base = match input.u8() % 8 {
        0 => Some(vec![0; 8192]),
        1 => Some(vec![0; 8200]),
        2 => Some(input.short().to_vec()),
        3 => {
            let mut page = input.short().to_vec();
            page.resize(8192, 0);
            Some(page)
        }
        _ => None,
    };
    let mut changes = Vec::new();
    while !input.is_empty() && changes.len() < 12 {
        let tag = input.u8() % 16;
        let record;
        let change = match tag {
            0 => {
                changes.push(input.short().to_vec());
                continue;
            }
            1 => {
                changes.push(Value::Image(input.short()).to_bytes());
                continue;
            }
            2 => Change::ClearVisibilityMap {
                new_heap_block: (input.u8() & 1 != 0).then(|| near(&mut input)),
                old_heap_block: (input.u8() & 1 != 0).then(|| input.u32()),
                bits: input.u8(),
            },
            3 => Change::Committed { xids: vec![near(&mut input), near(&mut input)], time: PgTimestamp(5) },
            4 => Change::Aborted { xids: vec![near(&mut input), input.u32()] },
            5 => Change::MultiXactOffset { multi: near(&mut input), offset: input.u32() },
            6 => Change::MultiXactMembers {
                first: near(&mut input),
                members: (0..input.u8()).map(|at| (at.into(), input.u8().into())).collect(),
            },
            7 => Change::TruncateVisibilityMap { byte: input.u16().into(), bit: input.u8().into() },
            8 => Change::ZeroPage,
            9 => Change::MultiXactOffsets {
                first: near(&mut input),
                offsets: vec![input.u32(); input.u8().into()],
            },
            10 => Change::CommitTimestamps {
                xids: vec![near(&mut input), near(&mut input)],
                time: PgTimestamp(input.u32().into()),
                origin: input.u16(),
            },
            _ => {
                record = input.record().encode(pg, Lsn(8));
                Change::Postgres { will_init: tag & 1 != 0, record: &record }
            }
        };
        changes.push(Value::Change(change).to_bytes());
    }
    let changes = changes.iter().enumerate().map(|(at, bytes)| (Lsn(at as u64 + 1), bytes.as_slice()));
    let _ = redo::reconstruct(base.as_deref(), changes, pg, key);
});
