//! Import of a base backup or a stopped cluster: any files, most of them where a cluster has files.
#![no_main]

use async_trait::async_trait;
use codec::manifest::ChecksumAlgorithm;
use engine::import::{ImportError, ImportOptions, Importer, LayerOut, LayerOutError, SourceKind};
use fuzz::{Input, control_file, relation_map, sealed};
use libfuzzer_sys::fuzz_target;
use model::{Key, KeyRange, Lsn, PgMajor};

/// Keeps nothing, but checks what layers must be.
#[derive(Default)]
struct Checked {
    open: Option<(KeyRange, Option<Key>)>,
    written: Vec<KeyRange>,
}

#[async_trait]
impl LayerOut for Checked {
    async fn begin(&mut self, keys: KeyRange) -> Result<(), LayerOutError> {
        assert!(self.open.is_none(), "one layer at a time");
        assert!(keys.start < keys.end, "a layer has keys");
        let apart = self.written.iter().all(|other| keys.end <= other.start || other.end <= keys.start);
        assert!(apart, "layers of an import do not overlap");
        self.written.push(keys.clone());
        self.open = Some((keys, None));
        Ok(())
    }

    async fn put(&mut self, key: Key, _value: &[u8]) -> Result<(), LayerOutError> {
        let (keys, last) = self.open.as_mut().expect("within a layer");
        assert!(keys.contains(&key) && last.is_none_or(|last| last < key), "keys rise within their layer");
        *last = Some(key);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), LayerOutError> {
        let (_, last) = self.open.take().expect("a layer is open");
        assert!(last.is_some(), "no layer is empty");
        Ok(())
    }
}

const SLRUS: [&str; 4] = ["pg_xact", "pg_multixact/offsets", "pg_multixact/members", "pg_commit_ts"];

/// A file's path and content.
fn file(pg: PgMajor, input: &mut Input<'_>) -> (String, Vec<u8>) {
    let (kind, number) = (input.u8(), input.u8());
    let rel = 16384 + u32::from(number & 3);
    let suffix = ["", "_vm", "_fsm", "_init"][usize::from(number >> 2 & 3)];
    let segment = ["", ".1", ".2", ".32766"][usize::from(number >> 4 & 3)];
    let database = 4 + u32::from(number >> 6);
    let version = codec::control::tablespace_version_directory(pg);
    let pages = |input: &mut Input<'_>| {
        let length = usize::from(input.u16()) * if number & 1 == 0 { 8 } else { 1 };
        let mut content = input.short().to_vec();
        content.resize(length.min(200_000), 0);
        content
    };
    match kind % 16 {
        0 => ("PG_VERSION".into(), format!("{pg}\n").into()),
        1 => ("global/pg_control".into(), control_file(pg, input.short(), true)),
        2 => {
            let directory = if number & 1 == 0 { "global".into() } else { format!("base/{database}") };
            // Two entries.
            let map = [&0x0059_2717u32.to_le_bytes()[..], &2u32.to_le_bytes(), input.short()].concat();
            (format!("{directory}/pg_filenode.map"), relation_map(pg, &map))
        }
        3 => {
            let label = "START WAL LOCATION: 0/8 (file 000000010000000000000000)\nCHECKPOINT LOCATION: 0/8\n\
                         START TIMELINE: 1\n";
            ("backup_label".into(), [label.as_bytes(), input.short()].concat())
        }
        4 => ("tablespace_map".into(), input.short().into()),
        5 => (format!("{}/{:04X}", SLRUS[usize::from(number & 3)], number >> 2), pages(input)),
        6 => {
            let name = codec::two_phase::file_name(pg, number.into());
            (format!("pg_twophase/{name}"), sealed(input.short()))
        }
        7 => {
            let origins = sealed(&[&0x1257_DADEu32.to_le_bytes()[..], input.short()].concat());
            ("pg_logical/replorigin_checkpoint".into(), origins)
        }
        8 => (format!("base/{database}/PG_VERSION"), format!("{pg}\n").into()),
        9 => (format!("pg_tblspc/16400/{version}/{database}/{rel}{suffix}{segment}"), pages(input)),
        10 => (format!("global/{rel}{suffix}{segment}"), pages(input)),
        11 => (String::from_utf8_lossy(input.short()).into_owned(), input.short().into()),
        _ => (format!("base/{database}/{rel}{suffix}{segment}"), pages(input)),
    }
}

async fn import(input: &mut Input<'_>) -> Result<(), ImportError> {
    let how = input.u8();
    let pg = input.major();
    let kind = if how & 1 == 0 { SourceKind::Backup } else { SourceKind::Stopped };
    let mut options = ImportOptions::new(pg, kind, Lsn(8));
    if how & 2 != 0 {
        options.manifest = Some(ChecksumAlgorithm::Crc32c);
    }
    if how & 4 != 0 {
        options.buffer_bytes = 40_000;
        options.layer_bytes = 24_576;
        options.big_file_bytes = 24_576;
    }
    let mut importer = Importer::new(options, Checked::default());
    if how & 8 != 0 {
        let name = ["base.tar", "16400.tar", "0.tar", "x"][usize::from(how >> 6)];
        importer.archive_begin(name, Some("/elsewhere"))?;
        let archive = if how & 16 != 0 { input.archive() } else { input.0.to_vec() };
        for piece in archive.chunks(100 + usize::from(how) * 7) {
            importer.archive_data(piece).await?;
        }
    } else {
        while !input.is_empty() {
            let (path, content) = file(pg, input);
            importer.file_begin(&path, content.len() as u64)?;
            for piece in content.chunks(1000 + usize::from(how) * 100) {
                importer.file_data(piece).await?;
            }
            importer.file_end().await?;
        }
    }
    importer.end(Some(Lsn(0x100))).await?;
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let _ = runtime.block_on(import(&mut Input(data)));
});
