//! All WAL of a workload, ingested over the cluster as it was before, makes the files that a clean shutdown leaves.

mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use codec::checkpoint::CheckPoint;
use codec::control::{ControlFile, tablespace_version_directory};
use codec::directory::{DbDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::page::{Page, ZERO_PAGE};
use codec::tablespaces::Tablespaces;
use codec::two_phase;
use codec::value::Value;
use codec::wal::stream::WalDecoder;
use engine::ingest::Ingest;
use model::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use model::{
    BLOCK_SIZE, Fork, Key, Lsn, PgMajor, RELATION_SEGMENT_BLOCKS, RelLocator, RelTag, RmgrId,
    SLRU_SEGMENT_PAGES, SlruKind,
};
use store::Store;
use testkit::postgres::Shutdown;
use testkit::workload::Workload;
use testkit::{Postgres, PostgresConfig};

/// What lies in a data directory of a cluster that is shut down.
#[derive(Default)]
struct Files {
    relations: BTreeMap<RelTag, Vec<u8>>,
    maps: BTreeMap<(u32, u32), Vec<u8>>,
    slrus: BTreeMap<(SlruKind, u32), Vec<u8>>,
    two_phase: BTreeMap<u64, Vec<u8>>,
    tablespaces: Tablespaces,
    /// Tablespace and database of each database's directory.
    databases: BTreeSet<(u32, u32)>,
}

fn read(data: &Path, pg: PgMajor) -> Result<Files> {
    let mut files = Files::default();
    read_database(&data.join("global"), GLOBAL_TABLESPACE, 0, &mut files)?;
    read_tablespace(&data.join("base"), DEFAULT_TABLESPACE, &mut files)?;
    for (name, path) in entries(&data.join("pg_tblspc"))? {
        let oid = name.parse()?;
        let target = fs::read_link(&path).unwrap_or_default();
        files.tablespaces.paths.insert(oid, target.to_str().context("the path is UTF-8")?.into());
        read_tablespace(&path.join(tablespace_version_directory(pg)), oid, &mut files)?;
    }
    for kind in SlruKind::ALL {
        for (name, path) in entries(&data.join(kind.directory()))? {
            files.slrus.insert((kind, u32::from_str_radix(&name, 16)?), fs::read(path)?);
        }
    }
    for (name, path) in entries(&data.join("pg_twophase"))? {
        let xid = two_phase::parse_file_name(pg, &name).context("a state file's name")?;
        files.two_phase.insert(xid, two_phase::strip_checksum(&fs::read(path)?)?.to_vec());
    }
    Ok(files)
}

fn entries(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let read = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    read.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name().into_string().ok().context("the name is UTF-8")?, entry.path()))
    })
    .collect()
}

fn read_tablespace(dir: &Path, spc: u32, files: &mut Files) -> Result<()> {
    if dir.exists() {
        for (name, path) in entries(dir)? {
            if let Ok(db) = name.parse() {
                read_database(&path, spc, db, files)?;
            }
        }
    }
    Ok(())
}

/// A file of a running server may go away at any time.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(read?)),
    }
}

fn read_database(dir: &Path, spc: u32, db: u32, files: &mut Files) -> Result<()> {
    let Ok(listed) = entries(dir) else { return Ok(()) };
    files.databases.insert((spc, db));
    for (name, path) in listed {
        if name == "pg_filenode.map" {
            files.maps.extend(read_if_there(&path)?.map(|map| ((spc, db), map)));
        }
        let (name, segment) = name.split_once('.').unwrap_or((&name, "0"));
        let (number, suffix) = name.split_at(name.find('_').unwrap_or(name.len()));
        let Some(fork) = Fork::ALL.into_iter().find(|fork| fork.suffix() == suffix) else { continue };
        let (Ok(rel), Ok(segment)) = (number.parse(), segment.parse::<usize>()) else { continue };
        let Some(bytes) = read_if_there(&path)? else { continue };
        // A page that is being added may be there in part.
        let bytes = &bytes[..bytes.len() / BLOCK_SIZE * BLOCK_SIZE];
        let whole = files.relations.entry(RelLocator { spc, db, rel }.fork(fork)).or_default();
        let at = segment * RELATION_SEGMENT_BLOCKS as usize * BLOCK_SIZE;
        whole.resize(whole.len().max(at + bytes.len()), 0);
        whole[at..at + bytes.len()].copy_from_slice(bytes);
    }
    Ok(())
}

/// The files as a timeline's first versions.
fn load(files: &Files, control: &ControlFile, control_bytes: &[u8]) -> Store {
    // Of a running cluster the files are newer than this; pages say by how much, and the rest is redone over itself.
    let (pg, lsn) = (control.pg, control.redo());
    let mut store = Store::new(pg);
    let mut databases: BTreeMap<_, _> = files.databases.iter().map(|database| (*database, false)).collect();
    for (rel, bytes) in &files.relations {
        for (block, page) in bytes.chunks_exact(BLOCK_SIZE).enumerate() {
            store.put(Key::rel_block(*rel, block as u32), lsn, &Value::Image(page));
        }
        let size = (bytes.len() / BLOCK_SIZE) as u32;
        store.put(Key::rel_size(*rel), lsn, &Value::Image(&size.to_le_bytes()));
        store.put(Key::rel_directory_entry(*rel), lsn, &Value::Image(b"r"));
    }
    for ((spc, db), map) in &files.maps {
        store.put(Key::relation_map(*spc, *db), lsn, &Value::Image(map));
        databases.insert((*spc, *db), true);
    }
    store.put(Key::DB_DIRECTORY, lsn, &Value::Image(&DbDirectory { databases }.encode()));
    for kind in SlruKind::ALL {
        let mut segments = BTreeSet::new();
        for ((_, segment), bytes) in files.slrus.range((kind, 0)..=(kind, u32::MAX)) {
            segments.insert(*segment);
            let pages = bytes.chunks_exact(BLOCK_SIZE);
            let size = pages.len() as u32;
            store.put(Key::slru_size(kind, *segment), lsn, &Value::Image(&size.to_le_bytes()));
            for (page, bytes) in pages.enumerate() {
                store.put(Key::slru_page(kind, *segment, page as u32), lsn, &Value::Image(bytes));
            }
        }
        let directory = SlruSegmentDirectory { segments };
        store.put(Key::slru_directory(kind), lsn, &Value::Image(&directory.encode()));
    }
    store.put(Key::TABLESPACE_DIRECTORY, lsn, &Value::Image(&files.tablespaces.encode()));
    store.put(Key::CONTROL_FILE, lsn, &Value::Image(control_bytes));
    store.put(Key::CHECKPOINT, lsn, &Value::Image(&control.checkpoint));
    store
}

/// Ingests WAL from the files of `wal` from `start` to its end. Answers the number of records.
async fn ingest_wal(store: &mut Store, wal: &Path, control: &ControlFile, until: Lsn) -> Result<usize> {
    let (pg, segment, tli) = (control.pg, control.wal_segment_size, control.tli());
    let mut ingest = Ingest::load(store, pg).await?;
    let mut decoder =
        WalDecoder::new(pg, segment, tli, control.redo()).expecting_system_id(control.system_identifier);
    let mut at = segment.start(control.redo());
    // The files do not say it: what there is at the start is counted while ingest goes on.
    let (mut count, counted_after) = (0, store.stored_size().is_none().then_some(100));
    let base = store.counted_size();
    while at < until {
        let bytes = fs::read(wal.join(segment.file_name(tli, at)))
            .with_context(|| format!("WAL at {at} is no longer there"))?;
        decoder.feed(at, &bytes)?;
        loop {
            let raw = match decoder.next() {
                Ok(Some(raw)) => raw,
                Ok(None) => break,
                Err(error) if error.may_end_wal() => {
                    ensure!(store.stored_size() == Some(store.counted_size()), "the logical size at the end");
                    return Ok(count);
                }
                Err(error) => return Err(error.into()),
            };
            let record = raw.parse()?;
            store.ingest(&mut ingest, &record, raw.bytes, raw.start, raw.end).await?;
            count += 1;
            if counted_after == Some(count) {
                ensure!(ingest.counted_size().set(base).is_ok() && store.stored_size().is_none());
            }
            if count % 997 == 0 {
                ensure!(store.stored_size() == Some(store.counted_size()), "the logical size at {}", raw.end);
            }
            if count % 5_000 == 0 {
                // A restart in the middle changes nothing.
                ingest = Ingest::load(store, pg).await?;
            }
        }
        at = at.add(segment.bytes());
    }
    ensure!(store.stored_size() == Some(store.counted_size()), "the logical size at the end");
    Ok(count)
}

/// Whose page it is, by its special space.
fn owner(page: &Page) -> RmgrId {
    let word = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let (special, last) = (usize::from(word(16)), word(BLOCK_SIZE - 2));
    match BLOCK_SIZE.saturating_sub(special) {
        0 => RmgrId::HEAP,
        16 if last == 0xFF80 => RmgrId::HASH,
        16 if last == 0xFF81 => RmgrId::GIST,
        16 => RmgrId::BTREE,
        8 if last == 0xFF82 => RmgrId::SPGIST,
        8 if (0xF091..=0xF093).contains(&last) => RmgrId::BRIN,
        8 if word(BLOCK_SIZE - 8) == 0x1717 => RmgrId::SEQ,
        8 => RmgrId::GIN,
        _ => RmgrId::GENERIC,
    }
}

/// What was compared, for a look at whether that was enough.
#[derive(Debug, Default)]
struct Compared {
    pages: usize,
    map_pages: usize,
    missing_map_bits: u32,
    slru_pages: usize,
}

fn compare(store: &Store, files: &Files, control: &ControlFile) -> Result<Compared> {
    let pg = control.pg;
    let mut compared = Compared::default();
    let mut wrong = Vec::new();
    let is_unlogged = |rel: &RelTag| {
        files.relations.contains_key(&rel.locator().fork(Fork::Init)) && rel.fork != Fork::Init
    };
    for (rel, theirs) in files.relations.iter().filter(|(rel, _)| !is_unlogged(rel) && rel.fork != Fork::Fsm)
    {
        // Postgres makes a map without telling, when it looks for bits in it.
        let missing_map = (rel.fork == Fork::Vm).then_some(0);
        let Some(size) = store.size(Key::rel_size(*rel)).or(missing_map) else {
            wrong.push(format!("{rel}: missing, {} blocks in the file", theirs.len() / BLOCK_SIZE));
            continue;
        };
        let their_size = theirs.len() / BLOCK_SIZE;
        let excess = theirs.get(size as usize * BLOCK_SIZE..);
        let is_empty = |excess: &[u8]| match rel.fork {
            Fork::Vm => excess.chunks_exact(BLOCK_SIZE).all(|page| page[24..].iter().all(|byte| *byte == 0)),
            _ => excess.iter().all(|byte| *byte == 0),
        };
        if !excess.is_some_and(is_empty) {
            wrong.push(format!("{rel}: {size} blocks, {their_size} in the file"));
        }
        for (block, theirs) in theirs.chunks_exact(BLOCK_SIZE).enumerate().take(size as usize) {
            let theirs: &Page = theirs.first_chunk().context("a page")?;
            let value = match store.value(Key::rel_block(*rel, block as u32)) {
                Ok(value) => value.unwrap_or_else(|| ZERO_PAGE.to_vec()),
                Err(error) => {
                    wrong.push(format!("{rel} block {block}: {:#}", anyhow::Error::new(error)));
                    continue;
                }
            };
            let ours: &Page = value.first_chunk().context("a page")?;
            if rel.fork == Fork::Vm {
                compared.map_pages += 1;
                for (ours, theirs) in ours[24..].iter().zip(&theirs[24..]) {
                    compared.missing_map_bits += (theirs & !ours).count_ones();
                    if ours & !theirs != 0 {
                        wrong.push(format!("{rel} block {block}: a bit is set that must not be"));
                        break;
                    }
                }
                continue;
            }
            compared.pages += 1;
            let (mut ours, mut theirs) = (*ours, *theirs);
            if ours == ZERO_PAGE && theirs == ZERO_PAGE {
                continue;
            }
            let rmgr = owner(&theirs);
            redo::mask::mask(rmgr, block as u32, &mut ours)?;
            redo::mask::mask(rmgr, block as u32, &mut theirs)?;
            if rmgr == RmgrId::SEQ {
                // WAL is some values ahead of what was given out, and the file remembers how many.
                let value =
                    |page: &Page| page[8_160..8_168].first_chunk().map_or(0, |v| i64::from_le_bytes(*v));
                if value(&ours) < value(&theirs) {
                    wrong.push(format!("sequence {rel}: {} is behind {}", value(&ours), value(&theirs)));
                }
                ours[8_160..8_177].copy_from_slice(&theirs[8_160..8_177]);
            }
            // The rest of an SP-GiST index's first page remembers where there is room, as a hint.
            let end = if rmgr == RmgrId::SPGIST && block == 0 { 28 } else { BLOCK_SIZE };
            if let Some(at) = (10..end).find(|at| ours[*at] != theirs[*at]) {
                let (ours, theirs) = (ours[at], theirs[at]);
                wrong.push(format!(
                    "{rel} block {block} ({rmgr}): byte {at} is {ours:#x}, {theirs:#x} in the file"
                ));
            }
        }
    }
    for key in store.versions.range(Key::rel_directory_all()).map(|(key, _)| *key) {
        let Some(model::key::KeyKind::RelDirectoryEntry(rel)) = key.kind() else { bail!("{key}") };
        let exists = store.value(key)?.is_some_and(|value| !value.is_empty());
        if exists != store.size(Key::rel_size(rel)).is_some() {
            wrong.push(format!("{rel}: directory and size disagree"));
        }
        if exists && !files.relations.contains_key(&rel) {
            wrong.push(format!("{rel}: exists, has no file"));
        }
    }
    compare_slrus(store, files, &mut compared, &mut wrong)?;
    for ((spc, db), map) in &files.maps {
        if store.value(Key::relation_map(*spc, *db))?.as_ref() != Some(map) {
            wrong.push(format!("relation map of {spc}/{db}"));
        }
    }
    let directory = store.value(Key::DB_DIRECTORY)?.context("a directory")?;
    let ours: BTreeSet<_> = DbDirectory::decode(&directory)?.databases.into_keys().collect();
    if ours != files.databases {
        wrong.push(format!("databases {ours:?}, in files {:?}", files.databases));
    }
    let tablespaces = store.value(Key::TABLESPACE_DIRECTORY)?.context("a directory")?;
    if Tablespaces::decode(&tablespaces)? != files.tablespaces {
        wrong.push("tablespaces".into());
    }
    let xids = match store.value(Key::TWO_PHASE_DIRECTORY)? {
        Some(bytes) => TwoPhaseDirectory::decode(&bytes, pg)?.xids,
        None => BTreeSet::new(),
    };
    if !xids.iter().eq(files.two_phase.keys()) {
        wrong.push(format!("prepared {xids:?}, files {:?}", files.two_phase.keys()));
    }
    for (xid, theirs) in &files.two_phase {
        if store.value(Key::two_phase_file(*xid))?.as_ref() != Some(theirs) {
            wrong.push(format!("state of prepared transaction {xid}"));
        }
    }
    let checkpoint = store.value(Key::CHECKPOINT)?.context("a checkpoint")?;
    let (ours, theirs) = (CheckPoint::decode(pg, &checkpoint)?, CheckPoint::decode(pg, &control.checkpoint)?);
    if ours != theirs {
        wrong.push(format!("{ours:#?}\nin the control file {theirs:#?}"));
    }
    let stored = ControlFile::parse(&store.value(Key::CONTROL_FILE)?.context("a control file")?)?;
    ensure!(
        (stored.track_commit_timestamp, stored.max_connections, stored.wal_level)
            == (control.track_commit_timestamp, control.max_connections, control.wal_level),
        "settings in the control file"
    );
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
    Ok(compared)
}

fn compare_slrus(
    store: &Store,
    files: &Files,
    compared: &mut Compared,
    wrong: &mut Vec<String>,
) -> Result<()> {
    for kind in SlruKind::ALL {
        let directory = store.value(Key::slru_directory(kind))?.context("a directory")?;
        let segments = SlruSegmentDirectory::decode(&directory)?.segments;
        let theirs: BTreeSet<u32> =
            files.slrus.keys().filter(|(of, _)| *of == kind).map(|(_, s)| *s).collect();
        if segments != theirs {
            wrong.push(format!("{kind:?} has segments {segments:?}, in files {theirs:?}"));
        }
        for segment in segments.intersection(&theirs) {
            let theirs = &files.slrus[&(kind, *segment)];
            let size = store.size(Key::slru_size(kind, *segment)).unwrap_or(0);
            let their_size = theirs.len() / BLOCK_SIZE;
            ensure!(size <= SLRU_SEGMENT_PAGES, "{kind:?} segment {segment} has {size} pages");
            if size as usize != their_size {
                wrong.push(format!("{kind:?} segment {segment}: {size} pages, {their_size} in the file"));
            }
            for (page, theirs) in theirs.chunks_exact(BLOCK_SIZE).enumerate().take(size as usize) {
                compared.slru_pages += 1;
                let ours = store.value(Key::slru_page(kind, *segment, page as u32))?.unwrap_or_default();
                if ours.get(..BLOCK_SIZE) != Some(theirs) {
                    let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
                    wrong.push(format!("{kind:?} segment {segment} page {page} differs at {at:?}"));
                }
            }
        }
    }
    Ok(())
}

async fn ingested_wal_makes_the_files(config: &PostgresConfig, scale: u32) -> Result<()> {
    let mut postgres = Postgres::start(config).await?;
    postgres.stop(Shutdown::Fast).await?;
    let control_path = postgres.data_dir().join("global/pg_control");
    let before_bytes = fs::read(&control_path)?;
    let before = ControlFile::parse(&before_bytes)?;
    let mut store = load(&read(postgres.data_dir(), before.pg)?, &before, &before_bytes);
    postgres.start_again().await?;
    {
        let mut work = Workload::new(&postgres, 7, scale);
        work.prepare().await?;
        work.round().await?;
        postgres.sql("CHECKPOINT").await?;
        work.round().await?;
    }
    // 14 knows the copy of files only.
    let strategy = if config.major > 14 { "STRATEGY file_copy" } else { "" };
    postgres.sql(&format!("CREATE DATABASE copied TEMPLATE template0 {strategy}")).await?;
    postgres.sql_in("copied", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i").await?;
    let end: Lsn = postgres.flushed_lsn().await?.parse()?;
    postgres.stop(Shutdown::Fast).await?;
    let after = ControlFile::parse(&fs::read(&control_path)?)?;
    assert!(after.redo() >= end);
    let since = Instant::now();
    let records = ingest_wal(&mut store, &postgres.wal_dir(), &before, after.redo().add(1)).await?;
    let took = since.elapsed();
    let compared = compare(&store, &read(postgres.data_dir(), after.pg)?, &after)?;
    println!("Postgres {}: {records} records in {took:?}, {compared:?}", config.major);
    let cost = |versions: &[(Lsn, Vec<u8>)]| {
        let since = versions.iter().filter(|(lsn, _)| *lsn > before.redo());
        since.fold((0, 0), |(count, bytes), (_, value)| (count + 1, bytes + value.len() + 26))
    };
    let of_size = store.versions.get(&Key::LOGICAL_SIZE).map_or((0, 0), |versions| cost(versions));
    let (count, bytes) =
        store.versions.values().map(|versions| cost(versions)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("the logical size is {} of {count} versions, {} of {bytes} bytes", of_size.0, of_size.1);
    ensure!(of_size.1 * 100 <= bytes, "the logical size takes {} of {bytes} bytes", of_size.1);
    ensure!(records > 10_000 && compared.pages > 2_000 && compared.slru_pages > 4, "too little was compared");
    Ok(())
}

/// As a base backup is taken: file by file, while the cluster changes.
async fn ingested_wal_mends_files_that_were_read_while_they_changed(config: &PostgresConfig) -> Result<()> {
    let mut postgres = Postgres::start(config).await?;
    let control_path = postgres.data_dir().join("global/pg_control");
    let (before, mut store) = {
        let mut work = Workload::new(&postgres, 11, 1);
        work.prepare().await?;
        postgres.sql("CHECKPOINT").await?;
        let before_bytes = fs::read(&control_path)?;
        let before = ControlFile::parse(&before_bytes)?;
        let (data, pg) = (postgres.data_dir().to_owned(), before.pg);
        let reading = tokio::task::spawn_blocking(move || read(&data, pg));
        work.round().await?;
        let store = load(&reading.await??, &before, &before_bytes);
        work.round().await?;
        (before, store)
    };
    postgres.stop(Shutdown::Fast).await?;
    let after = ControlFile::parse(&fs::read(&control_path)?)?;
    let records = ingest_wal(&mut store, &postgres.wal_dir(), &before, after.redo().add(1)).await?;
    let compared = compare(&store, &read(postgres.data_dir(), after.pg)?, &after)?;
    println!("Postgres {}, fuzzy: {records} records, {compared:?}", config.major);
    Ok(())
}

#[tokio::test]
async fn files_of_15_that_were_read_while_they_changed_are_mended() -> Result<()> {
    ingested_wal_mends_files_that_were_read_while_they_changed(&config(15)).await
}

#[tokio::test]
async fn files_of_18_that_were_read_while_they_changed_are_mended() -> Result<()> {
    ingested_wal_mends_files_that_were_read_while_they_changed(&config(18)).await
}

fn config(major: u32) -> PostgresConfig {
    PostgresConfig::new(major).set("track_commit_timestamp", "on").set("wal_keep_size", "4GB")
}

#[tokio::test]
async fn wal_of_14_makes_the_files_of_14() -> Result<()> {
    ingested_wal_makes_the_files(&config(14).checksums(false), 1).await
}

#[tokio::test]
async fn wal_of_15_without_full_pages_makes_the_files_of_15() -> Result<()> {
    ingested_wal_makes_the_files(&config(15).set("full_page_writes", "off").wal_segment_mib(1), 1).await
}

#[tokio::test]
async fn wal_of_16_makes_the_files_of_16() -> Result<()> {
    ingested_wal_makes_the_files(&config(16).set("wal_compression", "on"), 1).await
}

#[tokio::test]
async fn wal_of_17_makes_the_files_of_17() -> Result<()> {
    ingested_wal_makes_the_files(&config(17).wal_segment_mib(64), 1).await
}

#[tokio::test]
async fn wal_of_18_makes_the_files_of_18() -> Result<()> {
    ingested_wal_makes_the_files(&config(18).checksums(false).set("full_page_writes", "off"), 1).await
}
