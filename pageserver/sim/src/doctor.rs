//! Layers as a faulty merge would have made them: whole, with all their checksums right, and one version short.

use bytes::Bytes;
use codec::layer::{BLOCK_BYTES, LayerFile};
use model::BLOCK_SIZE;
use model::key::KEY_SIZE;

/// Bytes of an index node before its keys, and of each of its values.
const NODE_HEADER: usize = 5;
const VALUE: usize = 5;

/// A delta layer in which the last version that has another of its key before it says again what that one says. `None` where there is none.
pub fn without_a_version(layer: &[u8]) -> Option<Bytes> {
    let layout = *LayerFile::open(layer).ok()?.layout();
    let mut bytes = layer.to_vec();
    let block = (layout.index_start_block()..layout.blocks()).rev().find(|block| {
        let at = *block as usize * BLOCK_SIZE;
        repeat_last(&mut bytes[at..at + BLOCK_SIZE])
    })?;
    let at = block as usize * BLOCK_SIZE;
    let sum = crc32c::crc32c(&bytes[at..at + BLOCK_SIZE]);
    let place = layout.checksums()?.locate(block)?;
    let table = (u64::from(place.table_block) * BLOCK_BYTES) as usize;
    bytes[table + place.slot * 4..][..4].copy_from_slice(&sum.to_be_bytes());
    let sum = crc32c::crc32c(&bytes[table..table + BLOCK_SIZE - 4]);
    bytes[table + BLOCK_SIZE - 4..table + BLOCK_SIZE].copy_from_slice(&sum.to_be_bytes());
    Some(bytes.into())
}

/// Makes the last of a leaf's entries that has one of the same key before it point where that one does.
fn repeat_last(node: &mut [u8]) -> bool {
    let entries = usize::from(u16::from_be_bytes([node[0], node[1]]));
    let (level, prefix, suffix) = (node[2], usize::from(node[3]), usize::from(node[4]));
    if level != 0 {
        return false;
    }
    let keys = NODE_HEADER + prefix;
    // As much of a suffix as says what changed; when follows.
    let of_key = KEY_SIZE.saturating_sub(prefix);
    let key = |slot: usize| &node[keys + slot * suffix..][..of_key];
    let Some(slot) = (1..entries).rev().find(|slot| key(*slot) == key(slot - 1)) else { return false };
    let values = keys + entries * suffix;
    node.copy_within(values + (slot - 1) * VALUE..values + slot * VALUE, values + slot * VALUE);
    true
}

#[cfg(test)]
mod tests {
    use codec::layer::blob::Unpacker;
    use codec::layer::{Checksums, DeltaWriter};
    use model::{Key, LayerName, Lsn};

    use super::*;

    #[test]
    fn a_version_is_missing_and_nothing_else_can_be_told() {
        let key = |n| Key { field6: n, ..Key::MIN };
        let tenant = "00112233445566778899aabbccddeeff".parse().unwrap();
        let timeline = "ffeeddccbbaa99887766554433221100".parse().unwrap();
        let mut writer = DeltaWriter::new(tenant, timeline, Checksums::PerBlock);
        let mut file = vec![0; BLOCK_SIZE];
        for (n, lsn, value) in [(1, 8, b"a"), (2, 8, b"b"), (2, 16, b"c"), (3, 8, b"d")] {
            writer.push(key(n), Lsn(lsn), true, value, &mut file).unwrap();
        }
        let name = LayerName::Delta { keys: key(1)..key(4), lsns: Lsn(8)..Lsn(17) };
        let finished = writer.finish(name, &mut file).unwrap();
        file[..BLOCK_SIZE].copy_from_slice(&finished.block0[..]);
        let doctored = without_a_version(&file).unwrap();
        assert_eq!(doctored.len(), file.len());
        let layer = LayerFile::open(&doctored).unwrap();
        let mut unpacker = Unpacker::default();
        let values: Vec<Vec<u8>> = layer
            .deltas()
            .unwrap()
            .iter()
            .map(|entry| layer.value(entry.at, &mut unpacker).unwrap().1.into_owned())
            .collect();
        assert_eq!(values, [b"a", b"b", b"b", b"d"]);
    }
}
