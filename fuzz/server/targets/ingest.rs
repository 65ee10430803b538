//! Ingest of any records, one after the other, over a timeline in a map.
#![no_main]

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use codec::checkpoint::CheckPoint;
use codec::page::ZERO_PAGE;
use codec::wal::record::Record;
use engine::as_of::ReadError;
use engine::changes::Changes;
use engine::ingest::{Ingest, Latest, Outcome};
use fuzz::{Input, control_file};
use libfuzzer_sys::fuzz_target;
use model::{Key, KeyRange, Lsn, PgMajor, RelTag};

/// The newest value of every key. A page that redo cannot make is as it was before.
struct Store {
    pg: PgMajor,
    values: BTreeMap<Key, Vec<u8>>,
}

impl Store {
    fn take(&mut self, changes: &mut Changes) {
        for entry in &changes.entries {
            let change = [(entry.lsn, changes.value_bytes(entry))];
            let base = self.values.get(&entry.key).map(Vec::as_slice);
            if let Ok(value) = redo::reconstruct(base, change, self.pg, entry.key) {
                self.values.insert(entry.key, value);
            }
        }
        changes.clear();
    }
}

impl Latest for Store {
    async fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        Ok(self.values.get(&key).map(|value| Bytes::copy_from_slice(value)))
    }

    async fn scan(&self, keys: KeyRange) -> Result<Vec<(Key, Bytes)>, ReadError> {
        Ok(self.values.range(keys).map(|(key, value)| (*key, Bytes::copy_from_slice(value))).collect())
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Bytes, ReadError> {
        let page = |block| self.values.get(&Key::rel_block(rel, block)).map_or(&ZERO_PAGE[..], Vec::as_slice);
        Ok(blocks.flat_map(|block| page(block).to_vec()).collect())
    }
}

async fn ingest(input: &mut Input<'_>) {
    let pg = input.major();
    let mut store = Store { pg, values: BTreeMap::new() };
    let zero = CheckPoint::decode(pg, &[0; 88]).expect("long enough");
    let checkpoint = CheckPoint { next_xid: 700, next_multi: 1, oldest_xid: 3, oldest_multi: 1, ..zero };
    store.values.insert(Key::CHECKPOINT, checkpoint.encode(pg).to_vec());
    store.values.insert(Key::CONTROL_FILE, control_file(pg, input.short(), true));
    let mut ingest = Ingest::load(&store, pg).await.expect("a sound beginning");
    let mut lsn = Lsn(0x1000);
    let mut changes = Changes::default();
    for _ in 0..24 {
        if input.is_empty() {
            break;
        }
        let mut draft = input.record();
        if draft.info & 8 != 0 {
            draft.xid = input.u32();
        }
        let bytes = draft.encode(pg, lsn);
        let record = Record::parse(pg, &bytes).expect("what the builder writes is a record");
        let (start, end) = (lsn, lsn.add(bytes.len() as u64).align_up());
        lsn = end;
        let mut outcome = ingest.record(&record, &bytes, start, end, &mut changes, &store).await;
        let mut parts = 0;
        while matches!(outcome, Ok(Outcome::Unfinished)) && parts < 8 {
            store.take(&mut changes);
            outcome = ingest.resume(&mut changes, &store).await;
            parts += 1;
        }
        if !matches!(outcome, Ok(Outcome::Whole)) {
            return;
        }
        store.take(&mut changes);
    }
    // What ingest has pushed, the next one can begin with.
    Ingest::load(&store, pg).await.expect("what was ingested can be loaded");
}

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(ingest(&mut Input(data)));
});
