//! Our reading of WAL against Postgres' own, record by record: `pg_waldump` for 15, 16 and 18, `pg_walinspect` for 15 to 18, and for all
//! majors the chain of prev pointers and CRCs up to the record that the control data names.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use codec::control::ControlFile;
use codec::wal::describe::describe;
use codec::wal::image;
use codec::wal::kind_name::kind_name;
use codec::wal::payload::{self, PayloadError};
use codec::wal::record::Record;
use codec::wal::stream::WalDecoder;
use model::{BLOCK_SIZE, Lsn, PgMajor, RmgrId, Tli, WalSegmentSize};
use testkit::{Postgres, PostgresConfig, Shutdown};

/// What both sides say of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    start: Lsn,
    end: Lsn,
    tli: Tli,
    rmgr: String,
    kind: String,
    prev: Lsn,
    xid: u32,
    total_len: usize,
    images_len: usize,
    main_len: usize,
    /// As `pg_waldump` prints it, up to its kind.
    head: String,
    /// As `pg_waldump --bkp-details` prints them.
    blocks: Vec<String>,
}

/// All records in the segment files of `dir`: of each segment, the newest timeline's file. Everything in them is parsed on the way. WAL ends with
/// what is no WAL, or, when a server was killed just after it filled a segment, with the last file.
fn read_wal(dir: &Path, pg: PgMajor, segment: WalSegmentSize, chunk: usize) -> Result<Vec<Seen>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == 24 && u64::from_str_radix(&name[8..], 16).is_ok() {
            files.insert((name[8..].to_owned(), name[..8].to_owned()), entry.path());
        }
    }
    let newest: BTreeMap<_, _> = files.into_iter().map(|((place, tli), path)| (place, (tli, path))).collect();
    let mut seen = Vec::new();
    let mut decoder: Option<WalDecoder> = None;
    let mut at = Lsn(0);
    for (place, (tli, path)) in newest {
        let number = |digits: &str| u64::from_str_radix(digits, 16);
        let start = Lsn((number(&place[..8])? << 32) + number(&place[8..])? * segment.bytes());
        let decoder = decoder.get_or_insert_with(|| {
            at = start;
            let tli = Tli(u32::from_str_radix(&tli, 16).unwrap_or(1));
            WalDecoder::at_first_record_after(pg, segment, tli, start)
        });
        ensure!(start == at, "segments are missing before {}", path.display());
        for bytes in std::fs::read(&path)?.chunks(chunk) {
            decoder.feed(at, bytes)?;
            at = at.add(bytes.len() as u64);
            loop {
                match decoder.next() {
                    Ok(Some(raw)) => {
                        let record = raw.parse().with_context(|| format!("record at {}", raw.start))?;
                        check_content(&record).with_context(|| format!("record at {}", raw.start))?;
                        let mut text = String::new();
                        describe(raw.start, &record, true, &mut text);
                        let mut lines = text.lines();
                        let images = record.blocks.iter().filter_map(|block| block.image);
                        seen.push(Seen {
                            start: raw.start,
                            end: raw.end,
                            tli: raw.tli,
                            rmgr: record.rmgr.to_string(),
                            kind: kind_name(pg, record.rmgr, record.info).unwrap_or("?").to_owned(),
                            prev: record.prev,
                            xid: record.xid,
                            total_len: record.total_len as usize,
                            images_len: images.map(|image| image.bytes.len()).sum(),
                            main_len: record.main.len(),
                            head: lines.next().unwrap_or("").trim_end().to_owned(),
                            blocks: lines.map(ToOwned::to_owned).collect(),
                        });
                    }
                    Ok(None) => break,
                    Err(error) => {
                        ensure!(error.may_end_wal(), "{error}");
                        return Ok(seen);
                    }
                }
            }
        }
    }
    Ok(seen)
}

/// Every typed parser accepts what Postgres wrote, and every image is a page.
fn check_content(record: &Record<'_>) -> Result<()> {
    parse_payload(record)?;
    for block in &record.blocks {
        if let Some(stored) = &block.image {
            let mut page = [0; BLOCK_SIZE];
            image::restore(stored, &mut page)?;
            let is_page = page[18..20] == [0x04, 0x20] || page[14..16] == [0, 0];
            ensure!(is_page, "the image of {} block {} is no page", block.rel, block.block);
        }
    }
    Ok(())
}

fn parse_payload(record: &Record<'_>) -> Result<(), PayloadError> {
    use payload::*;
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
        _ => heap::vm_clears(record).map(drop),
    }
}

/// Compares with `pg_waldump` of exactly this version, where there is one. `seen` must be all of one timeline's tail.
fn compare_with_waldump(
    postgres: &Postgres,
    segment: WalSegmentSize,
    tli: Tli,
    seen: &[Seen],
) -> Result<usize> {
    let Some(program) = postgres.installation().own_program("pg_waldump") else { return Ok(0) };
    let first = seen.first().context("no records")?;
    // Without names of files it learns the size of segments from any of them, and one that was made ahead says zero.
    let begin = segment.file_name(tli, first.start);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(postgres.wal_dir())? {
        files.push(entry?.file_name().to_string_lossy().into_owned());
    }
    files.retain(|name| name.len() == begin.len() && name.starts_with(&begin[..8]));
    let end = files.into_iter().max().context("no WAL")?;
    let output = Command::new(program)
        .arg("-b")
        .args(["-s", &first.start.to_string()])
        .arg(postgres.wal_dir().join(begin))
        .arg(end)
        .output()?;
    // It fails at the end of WAL, always: what counts is what it printed before.
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let mut ours = seen.iter();
    let mut blocks: Option<std::slice::Iter<'_, String>> = None;
    let mut count = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("rmgr: ") {
            ensure!(blocks.is_none_or(|mut left| left.next().is_none()), "we have more blocks before {line}");
            let record = ours.next().with_context(|| format!("we lack {line}"))?;
            let description = rest.find("desc: ").with_context(|| format!("no description in {line}"))?;
            let kind = rest[description + 6..].split(' ').next().unwrap_or("");
            let head = format!("rmgr: {}desc: {kind}", &rest[..description]);
            ensure!(head == record.head, "pg_waldump: {head}\nwe:         {}", record.head);
            blocks = Some(record.blocks.iter());
            count += 1;
        } else if line.starts_with("\tblkref ") {
            let block = blocks.as_mut().and_then(Iterator::next).map_or("", String::as_str);
            ensure!(line == block, "pg_waldump: {line}\nwe:         {block}");
        }
    }
    if let Some(more) = ours.next() {
        anyhow::bail!("pg_waldump ends before {}: {complaint}", more.head);
    }
    Ok(count)
}

/// Compares with the extension `pg_walinspect` (since 15).
async fn compare_with_walinspect(postgres: &Postgres, seen: &[Seen]) -> Result<usize> {
    if postgres.major() < 15 {
        return Ok(0);
    }
    postgres.sql("CREATE EXTENSION IF NOT EXISTS pg_walinspect").await?;
    let (first, last) = (seen.first().context("no records")?, seen.last().context("no records")?);
    let rows = postgres
        .sql(&format!(
            "SELECT start_lsn, end_lsn, prev_lsn, xid, resource_manager, record_type, record_length, main_data_length, \
             fpi_length, block_ref FROM pg_get_wal_records_info('{}', '{}')",
            first.start, last.end
        ))
        .await?;
    let mut count = 0;
    for (row, seen) in rows.iter().zip(seen) {
        let theirs: Vec<&str> = row.iter().map(|value| value.as_deref().unwrap_or("").trim()).collect();
        let blocks: Vec<&str> = seen.blocks.iter().map(|block| block.trim()).collect();
        let ours = [
            seen.start.to_string(),
            seen.end.to_string(),
            seen.prev.to_string(),
            seen.xid.to_string(),
            seen.rmgr.clone(),
            seen.kind.clone(),
            seen.total_len.to_string(),
            seen.main_len.to_string(),
            seen.images_len.to_string(),
            blocks.join(" "),
        ];
        ensure!(theirs == ours, "pg_walinspect: {theirs:?}\nwe:            {ours:?}");
        count += 1;
    }
    ensure!(rows.len() == seen.len(), "pg_walinspect has {} records, we have {}", rows.len(), seen.len());
    Ok(count)
}

const WORKLOAD: &str = "
CREATE TABLE t (id int PRIMARY KEY, a text, b int[], p point, v varchar);
CREATE INDEX ON t USING gin (b);
CREATE INDEX ON t USING gist (p);
CREATE INDEX ON t USING spgist (p);
CREATE INDEX ON t USING hash (id);
CREATE INDEX ON t USING brin (id);
CREATE UNLOGGED TABLE u (id serial PRIMARY KEY);
INSERT INTO t SELECT n, repeat('x', n % 100), ARRAY[n % 7, n], point(n, n % 13), 'v' || n FROM generate_series(1, 3000) n;
UPDATE t SET a = a || 'y' WHERE id % 3 = 0;
DELETE FROM t WHERE id % 10 = 1;
VACUUM (FREEZE) t;
CHECKPOINT;
UPDATE t SET v = 'w' WHERE id < 200;
SELECT * FROM t WHERE id < 50 FOR UPDATE;
CREATE SEQUENCE s; SELECT nextval('s') FROM generate_series(1, 100);
BEGIN; INSERT INTO t VALUES (-1); SAVEPOINT a; INSERT INTO t VALUES (-2); SAVEPOINT b; INSERT INTO t VALUES (-3);
CREATE TABLE dropped_at_commit (x int); DROP TABLE dropped_at_commit; COMMIT;
BEGIN; CREATE TABLE rolled_back AS SELECT generate_series(1, 100); ROLLBACK;
BEGIN; CREATE TABLE prepared (x int); INSERT INTO prepared VALUES (1); SAVEPOINT a; DELETE FROM t WHERE id = 5;
PREPARE TRANSACTION 'a gid';
COMMIT PREPARED 'a gid';
BEGIN; CREATE TABLE never (x int); DROP TABLE prepared; PREPARE TRANSACTION 'another'; ROLLBACK PREPARED 'another';
CREATE TABLE big AS SELECT repeat(md5(n::text), 200) FROM generate_series(1, 50) n;
TRUNCATE big;
DELETE FROM t WHERE id > 1500; VACUUM t;
VACUUM FULL pg_class;
SELECT pg_logical_emit_message(true, 'prefix', 'transactional'), pg_logical_emit_message(false, 'prefix', 'not');
SELECT pg_create_restore_point('a restore point');
SELECT pg_replication_origin_create('an origin');
SELECT pg_replication_origin_session_setup('an origin');
BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); INSERT INTO t VALUES (-9); COMMIT;
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_advance('an origin', '0/5678');
SELECT pg_replication_origin_drop('an origin');
CREATE DATABASE copied;
ALTER DATABASE copied SET work_mem = '5MB';
DROP DATABASE copied;
SELECT pg_switch_wal();
INSERT INTO t SELECT n, 'after the switch' FROM generate_series(100001, 100200) n;
";

/// Two sessions hold the same rows at once: multixacts.
async fn share_rows(postgres: &Postgres) -> Result<()> {
    let (one, two) = (postgres.connect("postgres").await?, postgres.connect("postgres").await?);
    one.batch_execute("BEGIN; SELECT 1 FROM t WHERE id < 100 FOR KEY SHARE").await?;
    two.batch_execute("BEGIN; SELECT 1 FROM t WHERE id < 100 FOR SHARE; COMMIT").await?;
    one.batch_execute("UPDATE t SET a = 'shared' WHERE id < 20; COMMIT").await?;
    Ok(())
}

async fn run_workload(postgres: &Postgres) -> Result<()> {
    // One at a time: several of these may not run within a transaction.
    let session = postgres.connect("postgres").await?;
    for statement in WORKLOAD.split(";\n").flat_map(|line| line.split("; ")) {
        let statement = statement.trim();
        if !statement.is_empty() {
            session.simple_query(statement).await.with_context(|| statement.to_owned())?;
        }
    }
    share_rows(postgres).await?;
    // Images in every compression that this server knows, to be applied and to compare with.
    let methods =
        postgres.sql("SELECT unnest(enumvals) FROM pg_settings WHERE name = 'wal_compression'").await?;
    let mut methods: Vec<String> = methods.into_iter().flatten().flatten().collect();
    methods.push("on".to_owned());
    for method in methods {
        for settings in ["", "SET wal_consistency_checking = 'all';"] {
            session
                .simple_query(&format!(
                    "CHECKPOINT; SET wal_compression = '{method}'; {settings}
                     UPDATE t SET a = '{method}' || id, v = repeat(md5(id::text), 3) WHERE id BETWEEN 200 AND 500;
                     RESET wal_consistency_checking; RESET wal_compression"
                ))
                .await
                .with_context(|| method.clone())?;
        }
    }
    Ok(())
}

fn control_file(postgres: &Postgres) -> Result<ControlFile> {
    Ok(ControlFile::parse(&std::fs::read(postgres.data_dir().join("global/pg_control"))?)?)
}

/// After a clean stop: WAL ends with the checkpoint that the control data names.
fn ends_as_the_control_data_says(postgres: &Postgres, seen: &[Seen]) -> Result<()> {
    let control = control_file(postgres)?;
    let last = seen.last().context("no records")?;
    ensure!(last.kind == "CHECKPOINT_SHUTDOWN", "the last record is {}", last.head);
    ensure!(
        last.start == control.checkpoint_at,
        "control data names {}, we end with {}",
        control.checkpoint_at,
        last.head
    );
    ensure!(seen.windows(2).all(|pair| pair[1].prev == pair[0].start), "the chain of records is broken");
    Ok(())
}

/// Kills the server while the end of a record is still in memory, compares what is left, and starts it again; answers its WAL then.
///
/// A record of several megabytes: what its buffers cannot hold is in files, its end only when something flushes. On a busy machine
/// something may, just before the kill: then once more.
async fn crash_within_a_record(
    postgres: &mut Postgres,
    pg: PgMajor,
    segment: WalSegmentSize,
) -> Result<Vec<Seen>> {
    for _ in 0..5 {
        let session = postgres.connect("postgres").await?;
        session.simple_query("BEGIN").await?;
        session.simple_query("SELECT pg_logical_emit_message(false, 'large', repeat('x', 5000000))").await?;
        postgres.crash();
        let before = read_wal(&postgres.wal_dir(), pg, segment, 1 << 20)?;
        compare_with_waldump(postgres, segment, Tli(1), &before).context("after the crash")?;
        postgres.start_again().await?;
        postgres
            .sql("DROP TABLE IF EXISTS after_the_crash; CREATE TABLE after_the_crash AS SELECT generate_series(1, 5000) n")
            .await?;
        let seen = read_wal(&postgres.wal_dir(), pg, segment, 1 << 20)?;
        if seen.iter().any(|record| record.kind == "OVERWRITE_CONTRECORD") {
            return Ok(seen);
        }
    }
    anyhow::bail!("five crashes, none of them within a record")
}

async fn compare(major: u32, segment_mib: u32) -> Result<()> {
    let pg = PgMajor::try_from(major)?;
    let segment = WalSegmentSize::new(u64::from(segment_mib) << 20)?;
    let config = PostgresConfig::new(major)
        .wal_segment_mib(segment_mib)
        .set("wal_keep_size", "2GB")
        .set("wal_level", "logical")
        .set("track_commit_timestamp", "on")
        .set("wal_writer_delay", "10s")
        .set("wal_buffers", "1MB")
        .set("min_wal_size", if segment_mib == 64 { "128MB" } else { "80MB" });
    let mut postgres = Postgres::start(&config).await?;
    run_workload(&postgres).await?;

    let seen = crash_within_a_record(&mut postgres, pg, segment).await?;
    let known = compare_with_walinspect(&postgres, &seen).await?;
    postgres.stop(Shutdown::Fast).await?;

    let seen = read_wal(&postgres.wal_dir(), pg, segment, 1 << 20)?;
    ends_as_the_control_data_says(&postgres, &seen)?;
    let dumped = compare_with_waldump(&postgres, segment, Tli(1), &seen)?;
    let has = |kind: &str| seen.iter().any(|record| record.kind == kind);
    for kind in ["SWITCH", "PREPARE", "COMMIT_PREPARED", "ABORT_PREPARED", "CREATE_ID", "MESSAGE"] {
        ensure!(has(kind), "the workload made no {kind}");
    }
    let pieces = read_wal(&postgres.wal_dir(), pg, segment, 7777)?;
    ensure!(pieces == seen, "cutting WAL into small pieces changes what is read");

    // Recovery that is told to begin a new timeline.
    let conf = postgres.data_dir().join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf)?;
    text.push_str("\nrestore_command = 'false'\n");
    std::fs::write(&conf, text)?;
    std::fs::write(postgres.data_dir().join("recovery.signal"), "")?;
    postgres.start_again().await?;
    // It answers before it has left recovery.
    while postgres.value("SELECT pg_is_in_recovery()").await? == "t" {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    postgres.sql("CREATE TABLE on_timeline_2 AS SELECT generate_series(1, 5000) n").await?;
    postgres.stop(Shutdown::Fast).await?;
    let seen = read_wal(&postgres.wal_dir(), pg, segment, 1 << 20)?;
    ends_as_the_control_data_says(&postgres, &seen)?;
    ensure!(seen.last().context("no records")?.tli == Tli(2), "the new timeline is not seen");
    let switch = seen.iter().rposition(|record| record.tli == Tli(1)).context("no timeline 1")? + 1;
    compare_with_waldump(&postgres, segment, Tli(2), &seen[switch..]).context("on timeline 2")?;
    println!(
        "Postgres {major}, {segment_mib} MiB segments: {} records, {dumped} as pg_waldump, {known} as pg_walinspect",
        seen.len()
    );
    Ok(())
}

#[tokio::test]
async fn wal_of_14_is_read_to_the_end_that_the_control_data_names() -> Result<()> {
    compare(14, 16).await
}

#[tokio::test]
async fn wal_of_15_in_small_segments_is_read_as_postgres_reads_it() -> Result<()> {
    compare(15, 1).await
}

#[tokio::test]
async fn wal_of_16_in_large_segments_is_read_as_postgres_reads_it() -> Result<()> {
    compare(16, 64).await
}

#[tokio::test]
async fn wal_of_17_is_read_as_postgres_reads_it() -> Result<()> {
    compare(17, 1).await
}

#[tokio::test]
async fn wal_of_18_is_read_as_postgres_reads_it() -> Result<()> {
    compare(18, 16).await
}
