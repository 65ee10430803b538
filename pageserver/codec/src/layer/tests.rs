use std::collections::BTreeMap;

use model::{BLOCK_SIZE, Fork, Key, LayerName, Lsn, RelTag, TenantId, TimelineId};
use proptest::prelude::*;

use super::blob::{BlobHead, Unpacker};
use super::*;
use crate::value::{Change, Value};

const REL: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };

fn tenant() -> TenantId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

fn timeline() -> TimelineId {
    "ffeeddccbbaa99887766554433221100".parse().unwrap()
}

fn whole(finished: &FinishedLayer, rest: &[u8]) -> Vec<u8> {
    let file = [&finished.block0[..], rest].concat();
    assert_eq!(file.len() as u64, finished.layout.file_size());
    assert_eq!(crc32c::crc32c(&file), finished.crc32c);
    file
}

fn image_file(values: &BTreeMap<Key, Vec<u8>>, lsn: Lsn, checksums: Checksums) -> Vec<u8> {
    let (mut writer, mut out) = (ImageWriter::new(tenant(), timeline(), checksums), Vec::new());
    for (key, value) in values {
        writer.push(*key, value, &mut out).unwrap();
    }
    let (first, last) = (*values.keys().next().unwrap(), *values.keys().last().unwrap());
    let estimate = writer.size();
    let finished = writer.finish(LayerName::Image { keys: first..last.next(), lsn }, &mut out).unwrap();
    assert!(finished.layout.file_size().abs_diff(estimate) <= 4 * BLOCK_BYTES);
    whole(&finished, &out)
}

type Changes = BTreeMap<(Key, Lsn), (bool, Vec<u8>)>;

fn delta_file(changes: &Changes, checksums: Checksums) -> Vec<u8> {
    let (mut writer, mut out) = (DeltaWriter::new(tenant(), timeline(), checksums), Vec::new());
    for ((key, lsn), (will_init, value)) in changes {
        writer.push(*key, *lsn, *will_init, value, &mut out).unwrap();
    }
    let lsns: Vec<Lsn> = changes.keys().map(|(_, lsn)| *lsn).collect();
    let lsns = *lsns.iter().min().unwrap()..Lsn(lsns.iter().max().unwrap().0 + 1);
    let finished = writer.finish(LayerName::Delta { keys: Key::ALL, lsns }, &mut out).unwrap();
    whole(&finished, &out)
}

fn postgres(will_init: bool, record: &[u8]) -> Vec<u8> {
    Value::Change(Change::Postgres { will_init, record }).to_bytes()
}

/// The expected file of a plain image layer of two keys, put together by hand from the format.
fn plain_image_of_two_keys() -> Vec<u8> {
    let mut file = hex::decode(concat!(
        "5a600003",
        "00112233445566778899aabbccddeeff",
        "ffeeddccbbaa99887766554433221100",
        "000000067f000000050000400000",
        "00000000",
        "000000067f000000050000400001",
        "00000000",
        "0000000002000000",
        "00000003",
        "00000000"
    ))
    .unwrap();
    file.resize(0x2000, 0);
    file.extend(hex::decode("80002000").unwrap());
    file.resize(0x4004, 0x11);
    file.extend(hex::decode("0401000000").unwrap());
    file.resize(0x6000, 0);
    file.extend(
        hex::decode(concat!(
            "0002000012",
            "000000067f00000005000040000000000000",
            "000000067f000000050000400000ffffffff",
            "0000002000",
            "0000004004"
        ))
        .unwrap(),
    );
    file.resize(0x8000, 0);
    file
}

#[test]
fn a_plain_image_layer_has_the_bytes_of_the_format() {
    let mut writer = ImageWriter::new(tenant(), timeline(), Checksums::Omit);
    let mut out = Vec::new();
    // Random enough not to compress: the expected file has the page as it is.
    let mut expected = plain_image_of_two_keys();
    let page = noise(BLOCK_SIZE, 7);
    expected[0x2004..0x4004].copy_from_slice(&page);
    writer.push(Key::rel_block(REL, 0), &page, &mut out).unwrap();
    writer.push(Key::rel_size(REL), &1u32.to_le_bytes(), &mut out).unwrap();
    let name: LayerName =
        "000000067F00000005000040000000000000-000000067F00000005000040000100000000__0000000002000000"
            .parse()
            .unwrap();
    let finished = writer.finish(name, &mut out).unwrap();
    let file = whole(&finished, &out);
    assert_eq!(file.len(), 32_768);
    assert!(file == expected, "the file differs from the worked example");
    let report = LayerFile::open(&file).unwrap().verify().unwrap();
    assert_eq!((report.entries, report.compressed, report.index_levels), (2, 0, 1));
}

#[test]
fn a_plain_delta_layer_has_the_bytes_of_the_format() {
    let value = postgres(true, &[0xDE, 0xAD, 0xBE]);
    let changes = Changes::from([((Key::rel_block(REL, 0), Lsn(0x2000028)), (true, value))]);
    let (mut writer, mut out) = (DeltaWriter::new(tenant(), timeline(), Checksums::Omit), Vec::new());
    let ((key, lsn), (will_init, value)) = changes.first_key_value().unwrap();
    writer.push(*key, *lsn, *will_init, value, &mut out).unwrap();
    let name = LayerName::Delta { keys: Key::ALL, lsns: Lsn(0x2000001)..Lsn(0x2000029) };
    let file = whole(&writer.finish(name, &mut out).unwrap(), &out);

    let mut expected = hex::decode(concat!(
        "5a610003",
        "00112233445566778899aabbccddeeff",
        "ffeeddccbbaa99887766554433221100",
        "000000000000000000000000000000000000",
        "ffffffffffffffffffffffffffffffffffff",
        "0000000002000001",
        "0000000002000029",
        "00000002",
        "00000000"
    ))
    .unwrap();
    expected.resize(0x2000, 0);
    expected.extend(hex::decode("140000000100000000010000000000000003deadbe").unwrap());
    expected.resize(0x4000, 0);
    expected.extend(
        hex::decode("000100001a000000067f0000000500004000000000000000000000020000280000004001").unwrap(),
    );
    expected.resize(0x6000, 0);
    assert!(file == expected, "the file differs from the worked example");
}

#[test]
fn a_file_with_checksums_reads_the_same_to_one_who_ignores_them() {
    let values: BTreeMap<Key, Vec<u8>> =
        (0..40).map(|block| (Key::rel_block(REL, block), noise(8192, block.into()))).collect();
    let file = image_file(&values, Lsn(0x100), Checksums::PerBlock);
    // The plain reader's view: block 0 cut down to the plain summary.
    let mut plain = file.clone();
    plain[128..8192].fill(0);
    let plain = LayerFile::open(&plain).unwrap();
    assert!(plain.layout().checksums().is_none());
    for (key, value) in &values {
        assert_eq!(plain.image(*key).unwrap().unwrap(), &value[..]);
    }
}

#[test]
fn values_of_every_length_around_a_header_survive() {
    let lengths = [0, 1, 127, 128, 129, 4096, 8191, 8192, 8200, 70_000];
    let mut values = BTreeMap::new();
    for (n, length) in lengths.into_iter().enumerate() {
        values.insert(Key::rel_block(REL, 2 * n as u32), vec![7; length]);
        values.insert(Key::rel_block(REL, 2 * n as u32 + 1), noise(length, n as u64));
    }
    let file = image_file(&values, Lsn(9), Checksums::PerBlock);
    let file = LayerFile::open(&file).unwrap();
    for (key, value) in &values {
        assert_eq!(file.image(*key).unwrap().unwrap(), &value[..]);
    }
    assert_eq!(file.image(Key::rel_block(REL, 99)), Ok(None));
    let report = file.verify().unwrap();
    assert_eq!(report.entries, 20);
    assert_eq!(report.compressed, 7, "runs of one byte from 128 on are compressed, noise never is");
}

#[test]
fn a_value_that_expands_without_end_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; blob::MAX_EXPANDED + 1], 1).unwrap();
    let head = BlobHead { at: 8192, header: 4, stored: bomb.len(), compressed: true };
    assert!(matches!(Unpacker::default().unpack(&head, &bomb), Err(ReadLayerError::Zstd { at: 8192, .. })));
    let streamed = zstd::stream::encode_all(&vec![0; blob::MAX_EXPANDED + 1][..], 1).unwrap();
    assert_eq!(zstd::stream::decompressed_size(&streamed), None, "a stream does not say its length");
    let head = BlobHead { stored: streamed.len(), ..head };
    assert!(matches!(Unpacker::default().unpack(&head, &streamed), Err(ReadLayerError::Zstd { .. })));
    let streamed = zstd::stream::encode_all(&b"hello hello hello"[..], 1).unwrap();
    let head = BlobHead { stored: streamed.len(), ..head };
    assert_eq!(Unpacker::default().unpack(&head, &streamed).unwrap(), &b"hello hello hello"[..]);
}

#[test]
fn entries_out_of_order_or_out_of_the_name_are_refused() {
    let (a, b) = (Key::rel_block(REL, 1), Key::rel_block(REL, 2));
    let mut out = Vec::new();
    let mut image = ImageWriter::new(tenant(), timeline(), Checksums::PerBlock);
    image.push(b, b"x", &mut out).unwrap();
    assert!(matches!(image.push(b, b"x", &mut out), Err(WriteLayerError::OutOfOrder { .. })));
    assert!(matches!(image.push(a, b"x", &mut out), Err(WriteLayerError::OutOfOrder { .. })));
    let name = LayerName::Image { keys: a..b, lsn: Lsn(1) };
    assert!(matches!(image.finish(name, &mut out), Err(WriteLayerError::OutsideOfName { .. })));

    let delta = || {
        let (mut delta, mut out) = (DeltaWriter::new(tenant(), timeline(), Checksums::Omit), Vec::new());
        delta.push(a, Lsn(8), true, b"x", &mut out).unwrap();
        delta
    };
    assert!(delta().push(a, Lsn(8), true, b"x", &mut out).is_err());
    assert!(delta().push(a, Lsn(16), true, b"x", &mut out).is_ok());
    let name = |lsns| LayerName::Delta { keys: Key::ALL, lsns };
    assert!(delta().finish(name(Lsn(8)..Lsn(9)), &mut out).is_ok());
    assert!(matches!(
        delta().finish(name(Lsn(9)..Lsn(10)), &mut out),
        Err(WriteLayerError::OutsideOfName { .. })
    ));
    assert!(matches!(
        delta().finish(LayerName::Image { keys: Key::ALL, lsn: Lsn(8) }, &mut out),
        Err(WriteLayerError::WrongKind(_))
    ));
    let empty = DeltaWriter::new(tenant(), timeline(), Checksums::Omit);
    assert_eq!(empty.finish(name(Lsn(8)..Lsn(9)), &mut out).unwrap_err(), WriteLayerError::Empty);
}

#[test]
fn reconstruction_reads_back_to_the_newest_whole_value_only() {
    let key = Key::rel_block(REL, 3);
    let mut changes = Changes::new();
    for n in 1..=5000u64 {
        let will_init = n % 1000 == 0;
        changes.insert((key, Lsn(n * 8)), (will_init, postgres(will_init, &n.to_be_bytes())));
    }
    let file = delta_file(&changes, Checksums::PerBlock);
    let file = LayerFile::open(&file).unwrap();
    let found = file.changes(key, &(Lsn(0)..Lsn(3005 * 8 + 1))).unwrap();
    let lsns: Vec<u64> = found.iter().map(|entry| entry.lsn.0 / 8).collect();
    assert_eq!(lsns, [3005, 3004, 3003, 3002, 3001, 3000]);
    assert!(found.last().unwrap().will_init);
    let found = file.changes(key, &(Lsn(2990 * 8)..Lsn(2995 * 8))).unwrap();
    assert_eq!(found.len(), 5);
    assert_eq!(file.changes(key.next(), &(Lsn(0)..Lsn::MAX)), Ok(vec![]));
}

#[test]
fn an_outline_has_the_first_key_of_each_leaf() {
    for count in [1u32, 100, 1_000, 300_000] {
        let change = |n| ((Key::rel_block(REL, n), Lsn(8)), (true, vec![b'x']));
        let bytes = delta_file(&(0..count).map(change).collect(), Checksums::Omit);
        let file = LayerFile::open(&bytes).unwrap();
        let (mut outline, mut found, mut fed) = (DeltaOutline::new(file.layout()), Vec::new(), 0);
        while let Some(block) = outline.wants() {
            outline.feed(file.block(block).unwrap(), &mut found).unwrap();
            fed += 1;
        }
        let blocks = file.layout().blocks() - file.layout().index_start_block();
        // What it did not read are the leaves, but for one that is the root.
        assert_eq!(found.len() as u32, blocks - fed + u32::from(blocks == 1));
        let numbers: Vec<u32> = found.iter().map(|key| key.field6).collect();
        assert_eq!(numbers[0], 0);
        let most = numbers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(count);
        assert!(numbers.is_sorted() && count - numbers[numbers.len() - 1] <= most);
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let values: BTreeMap<Key, Vec<u8>> = (0..700)
        .map(|block| (Key::rel_block(REL, block), vec![block as u8; 100]))
        .chain([(Key::rel_size(REL), vec![9; 4])])
        .collect();
    let image = image_file(&values, Lsn(0x100), Checksums::PerBlock);
    let changes: Changes = (0..400u64)
        .map(|n| ((Key::rel_block(REL, n as u32 / 3), Lsn(n * 8)), (true, postgres(true, &noise(40, n)))))
        .collect();
    let delta = delta_file(&changes, Checksums::PerBlock);
    for mut file in [image, delta] {
        LayerFile::open(&file).unwrap().verify().unwrap();
        let bits = file.len() * 8;
        // Every bit of block 0's used part; elsewhere samples, by a stride that has no factor in common with a block.
        for bit in (0..152 * 8).chain((152 * 8..bits).step_by(401)) {
            file[bit / 8] ^= 1 << (bit % 8);
            let outcome =
                LayerFile::open(&file).map_err(VerifyLayerError::from).and_then(|file| file.verify());
            assert!(outcome.is_err(), "flipping bit {bit} went unnoticed");
            file[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_file_cut_at_any_block_is_refused() {
    let changes: Changes = (0..3000u64)
        .map(|n| ((Key::rel_block(REL, n as u32), Lsn(8)), (true, postgres(true, &noise(40, n)))))
        .collect();
    let with_sums = delta_file(&changes, Checksums::PerBlock);
    for length in (0..with_sums.len()).step_by(BLOCK_SIZE).chain([100, with_sums.len() - 1]) {
        assert!(LayerFile::open(&with_sums[..length]).is_err(), "{length} bytes were accepted");
    }
    // Without our extension only the index can tell.
    let plain = delta_file(&changes, Checksums::Omit);
    for length in (0..plain.len()).step_by(BLOCK_SIZE) {
        let outcome =
            LayerFile::open(&plain[..length]).map_err(VerifyLayerError::from).and_then(|file| file.verify());
        assert!(outcome.is_err(), "{length} bytes were accepted");
    }
}

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        (0u32..4, 0u32..3000)
            .prop_map(|(rel, block)| Key::rel_block(RelTag { rel: 16384 + rel, ..REL }, block)),
        any::<[u8; 18]>().prop_map(|bytes| Key::from_bytes(&bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn images_answer_as_a_map_does(
        values in proptest::collection::btree_map(any_key(), (0usize..300, any::<u64>()), 1..1500),
        probes in proptest::collection::vec(any_key(), 20),
        omit: bool,
    ) {
        let values: BTreeMap<Key, Vec<u8>> = values
            .into_iter()
            .filter(|(key, _)| *key != Key::MAX)
            .map(|(key, (length, seed))| (key, noise(length, seed)))
            .collect();
        prop_assume!(!values.is_empty());
        let checksums = if omit { Checksums::Omit } else { Checksums::PerBlock };
        let file = image_file(&values, Lsn(1), checksums);
        let file = LayerFile::open(&file).unwrap();
        prop_assert_eq!(file.verify().unwrap().entries, values.len() as u64);
        for key in probes.iter().chain(values.keys().step_by(97)) {
            let image = file.image(*key).unwrap();
            prop_assert_eq!(image.as_deref(), values.get(key).map(Vec::as_slice));
        }
        let mut bounds = [probes[0], probes[1]];
        bounds.sort();
        let mut scan = ImageScan::range(file.layout(), &(bounds[0]..bounds[1]));
        let mut found = Vec::new();
        while let Some(block) = scan.wants() {
            scan.feed(file.block(block).unwrap(), &mut found).unwrap();
        }
        let keys: Vec<Key> = found.iter().map(|entry| entry.key).collect();
        let expected: Vec<Key> = values.range(bounds[0]..bounds[1]).map(|(key, _)| *key).collect();
        prop_assert_eq!(keys, expected);
    }

    #[test]
    fn deltas_answer_as_a_map_does(
        changes in proptest::collection::btree_map((any_key(), 1u64..1 << 40), (any::<bool>(), 0usize..200), 1..1500),
        probes in proptest::collection::vec((any_key(), 0u64..1 << 40, 0u64..1 << 40), 20),
    ) {
        let changes: Changes = changes
            .into_iter()
            .filter(|((key, _), _)| *key != Key::MAX)
            .map(|((key, lsn), (init, length))| ((key, Lsn(lsn)), (init, postgres(init, &noise(length, lsn)))))
            .collect();
        prop_assume!(!changes.is_empty());
        let file = delta_file(&changes, Checksums::PerBlock);
        let file = LayerFile::open(&file).unwrap();
        prop_assert_eq!(file.verify().unwrap().entries, changes.len() as u64);
        let known = changes.keys().step_by(61).map(|(key, lsn)| (*key, lsn.0 / 2, lsn.0 + 1));
        for (key, a, b) in probes.into_iter().chain(known) {
            let lsns = Lsn(a.min(b))..Lsn(a.max(b));
            let found = file.changes(key, &lsns).unwrap();
            let mut expected = Vec::new();
            for ((_, lsn), (will_init, _)) in changes.range((key, lsns.start)..(key, lsns.end)).rev() {
                expected.push((*lsn, *will_init));
                if *will_init {
                    break;
                }
            }
            let seen: Vec<(Lsn, bool)> = found.iter().map(|entry| (entry.lsn, entry.will_init)).collect();
            prop_assert_eq!(seen, expected);
            for entry in found {
                let (head, value) = file.value(entry.at, &mut Unpacker::default()).unwrap();
                prop_assert_eq!(&value[..], &changes[&(key, entry.lsn)].1[..]);
                prop_assert!(entry.next.is_none_or(|next| next == head.end()));
            }
        }
    }

    /// Without checksums damage reaches the parsers.
    #[test]
    fn damage_to_a_plain_file_is_an_error_or_harmless_and_always_ends(
        spots in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        in_index: bool,
    ) {
        let changes: Changes = (0..4000u64)
            .map(|n| ((Key::rel_block(REL, n as u32 / 2), Lsn(n * 8)), (n % 2 == 0, postgres(n % 2 == 0, b"x"))))
            .collect();
        let mut bytes = delta_file(&changes, Checksums::Omit);
        let index = LayerFile::open(&bytes).unwrap().layout().index_start_block() as usize * BLOCK_SIZE;
        let start = if in_index { index } else { 0 };
        for (spot, byte) in spots {
            let at = start + spot.index(bytes.len() - start);
            bytes[at] = byte;
        }
        if let Ok(file) = LayerFile::open(&bytes) {
            let _ = file.verify();
            let blocks = file.layout().blocks();
            for mut scan in [
                DeltaScan::all(file.layout()),
                DeltaScan::key(file.layout(), Key::rel_block(REL, 700), &(Lsn(0)..Lsn::MAX)),
            ] {
                let (mut found, mut fed) = (Vec::new(), 0);
                while let Some(block) = scan.wants() {
                    if scan.feed(file.block(block).unwrap(), &mut found).is_err() {
                        break;
                    }
                    fed += 1;
                }
                prop_assert!(fed <= blocks, "{} blocks fed, the file has {}", fed, blocks);
            }
            let (mut outline, mut found, mut fed) = (DeltaOutline::new(file.layout()), Vec::new(), 0);
            while let Some(block) = outline.wants() {
                if outline.feed(file.block(block).unwrap(), &mut found).is_err() {
                    break;
                }
                fed += 1;
            }
            prop_assert!(fed <= blocks, "{} blocks fed, the file has {}", fed, blocks);
        }
    }

    #[test]
    fn any_bytes_are_a_layer_or_an_error(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..40_000),
        header: bool,
    ) {
        if header && bytes.len() > 8192 {
            bytes.truncate(bytes.len() / BLOCK_SIZE * BLOCK_SIZE);
            let blocks = (bytes.len() / BLOCK_SIZE) as u32;
            let summary = Summary {
                tenant: tenant(),
                timeline: timeline(),
                name: LayerName::Image { keys: Key::ALL, lsn: Lsn(1) },
                index_start_block: blocks.saturating_sub(2).max(1),
                index_root_block: 0,
                checksums: None,
            };
            bytes[..BLOCK_SIZE].copy_from_slice(&summary.encode()[..]);
        }
        if let Ok(file) = LayerFile::open(&bytes) {
            let _ = file.verify();
            let _ = file.image(Key::rel_block(REL, 0));
        }
    }
}
