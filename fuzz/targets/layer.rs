//! Layer files: any bytes; files of our own writer, of both kinds, in which bytes were changed; the same with checksums, which must notice.
#![no_main]

use codec::layer::{Checksums, DeltaOutline, DeltaWriter, ImageWriter, LayerFile};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use model::{BLOCK_SIZE, Key, LayerName, Lsn, TenantId, TimelineId};

fn read(bytes: &[u8], keys: &[Key]) {
    let Ok(file) = LayerFile::open(bytes) else { return };
    let _ = file.images();
    let _ = file.deltas();
    for key in keys.iter().take(4).chain([&Key::CHECKPOINT]) {
        let _ = file.image(*key);
        let _ = file.changes(*key, &(Lsn(0)..Lsn::MAX));
    }
    let _ = file.verify();
    outline(&file);
}

/// Walks the inner nodes of an index, as of a delta; none of them twice, whatever they say.
fn outline(file: &LayerFile<'_>) {
    let (mut outline, mut found, mut fed) = (DeltaOutline::new(file.layout()), Vec::new(), 0);
    while let Some(block) = outline.wants() {
        let Ok(block) = file.block(block) else { return };
        if outline.feed(block, &mut found).is_err() {
            return;
        }
        fed += 1;
        assert!(fed <= file.layout().blocks(), "a block was wanted twice");
    }
}

/// A file of the entries that the input tells, and its keys.
fn write(input: &mut Input<'_>, is_delta: bool, checksums: Checksums) -> Option<(Vec<u8>, Vec<Key>)> {
    let (tenant, timeline) = (TenantId([1; 16]), TimelineId([2; 16]));
    let keys = Key::MIN..Key::MAX;
    let mut out = Vec::new();
    let mut used = Vec::new();
    let mut key = Key::rel_block(model::RelTag { spc: 1663, db: 5, rel: 16384, fork: model::Fork::Main }, 0);
    let mut lsn = Lsn(0x100);
    // Few, or so many that the index has levels; after the input's end all are alike.
    let count = match input.u8() {
        count @ 0..250 => 1 + usize::from(count),
        count => usize::from(count - 240) * 150,
    };
    let mut entry =
        |n: usize, out: &mut Vec<u8>, add: &mut dyn FnMut(Key, Lsn, &[u8], &mut Vec<u8>) -> bool| {
            let (step, length, fill) = (input.u8(), usize::from(input.u8()), input.u8());
            if step & 0xC0 != 0x40 || n == 0 {
                key = Key { field6: key.field6 + 1 + u32::from(step & 3), ..key };
                if step & 0x3C == 0x3C {
                    key = Key { field5: step & 3, field4: key.field4 + 1, ..key };
                }
                lsn = Lsn(0x100);
            } else if is_delta {
                lsn = Lsn(lsn.0 + 1 + u64::from(step & 7));
            } else {
                return true;
            }
            used.push(key);
            let value = vec![fill; if step & 0x80 != 0 { length * 40 } else { length }];
            add(key, lsn, &value, out)
        };
    let finished = if is_delta {
        let mut writer = DeltaWriter::new(tenant, timeline, checksums);
        for n in 0..count {
            let mut add = |key, lsn, value: &[u8], out: &mut Vec<u8>| {
                writer.push(key, lsn, value.first() == Some(&1), value, out).is_ok()
            };
            if !entry(n, &mut out, &mut add) || out.len() > 200_000 {
                break;
            }
        }
        writer.finish(LayerName::Delta { keys, lsns: Lsn(1)..Lsn::MAX }, &mut out)
    } else {
        let mut writer = ImageWriter::new(tenant, timeline, checksums);
        for n in 0..count {
            let mut add = |key, _, value: &[u8], out: &mut Vec<u8>| writer.push(key, value, out).is_ok();
            if !entry(n, &mut out, &mut add) || out.len() > 200_000 {
                break;
            }
        }
        writer.finish(LayerName::Image { keys, lsn: Lsn(0x100) }, &mut out)
    };
    let file = [&finished.ok()?.block0[..], &out].concat();
    Some((file, used))
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let how = input.u8();
    if how & 7 == 7 {
        return read(input.0, &[]);
    }
    let checksums = if how & 1 != 0 { Checksums::PerBlock } else { Checksums::Omit };
    let changes_length = usize::from(how >> 3) * 4;
    let (mut entries, mut changes) = {
        let changes = input.bytes(changes_length);
        (input, Input(changes))
    };
    let Some((mut file, keys)) = write(&mut entries, how & 2 != 0, checksums) else { return };
    let written = file.clone();
    let index =
        LayerFile::open(&file).expect("what we wrote").layout().index_start_block() as usize * BLOCK_SIZE;
    while !changes.is_empty() {
        let (place, change) = (changes.u16(), changes.u16());
        let (area, at) = (place >> 14, usize::from(place & 0x3FFF));
        let at = match area {
            0 => at % 160,
            1 => index + at,
            2 => file.len() - BLOCK_SIZE + at % BLOCK_SIZE,
            _ => BLOCK_SIZE + at,
        };
        if let Some(byte) = file.get_mut(at) {
            *byte = change as u8;
        }
    }
    if how & 5 == 5 && file.len() >= BLOCK_SIZE {
        // Past the checksum of block 0, which no guess gets right.
        let (before, rest) = file.split_at(148);
        let crc = crc32c::crc32c_append(
            crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]),
            &rest[4..BLOCK_SIZE - 148],
        );
        file[148..152].copy_from_slice(&crc.to_be_bytes());
    } else if checksums == Checksums::PerBlock && file != written {
        let noticed = LayerFile::open(&file).map_or(true, |file| file.verify().is_err());
        assert!(noticed, "a changed byte of a file with checksums went unnoticed");
    }
    read(&file, &keys);
});
