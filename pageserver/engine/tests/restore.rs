//! A real cluster is imported, written out again as of an LSN, and started by stock Postgres.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use codec::control::{ClusterState, ControlFile};
use codec::directory::DbDirectory;
use codec::history::TimelineHistory;
use codec::manifest::ChecksumAlgorithm;
use codec::page;
use codec::tar_in::{TarEvent, TarIn, TarKind};
use codec::wal::build::RecordDraft;
use engine::as_of::{AsOf, ReadError};
use engine::backup::{
    self, BackupError, BaseBackupOptions, FullBackupOptions, FullBackupReport, PrevLsn, TarSink,
};
use engine::import::directory::DataDirectory;
use engine::import::{
    ImportError, ImportOptions, ImportReport, Importer, LayerOut, LayerOutError, SourceKind,
};
use model::{Key, KeyRange, Lsn, PgMajor, RelTag, RmgrId};
use testkit::{Postgres, PostgresConfig, Shutdown};

/// Layers kept in a map. Refuses what a reader of layers could not cope with.
#[derive(Default)]
struct MapOut {
    values: BTreeMap<Key, Bytes>,
    ranges: Vec<KeyRange>,
    open: Option<(KeyRange, Option<Key>)>,
}

fn broken(why: String) -> LayerOutError {
    LayerOutError(why.into())
}

#[async_trait]
impl LayerOut for MapOut {
    async fn begin(&mut self, keys: KeyRange) -> Result<(), LayerOutError> {
        if self.open.is_some() || keys.is_empty() {
            return Err(broken(format!("layer {keys:?} begins at the wrong time or is empty")));
        }
        if let Some(other) = self.ranges.iter().find(|other| keys.start < other.end && other.start < keys.end)
        {
            return Err(broken(format!("layers {keys:?} and {other:?} overlap")));
        }
        self.open = Some((keys, None));
        Ok(())
    }

    async fn put(&mut self, key: Key, value: &[u8]) -> Result<(), LayerOutError> {
        let (keys, last) = self.open.as_mut().ok_or_else(|| broken("no layer is open".into()))?;
        if !keys.contains(&key) || last.is_some_and(|last| last >= key) {
            return Err(broken(format!("{key} after {last:?} in {keys:?}")));
        }
        *last = Some(key);
        self.values.insert(key, Bytes::copy_from_slice(value));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), LayerOutError> {
        let (keys, last) = self.open.take().ok_or_else(|| broken("no layer is open".into()))?;
        // All of the layer's last key is there: nothing was announced that did not come.
        if last.map(Key::next) != Some(keys.end) {
            return Err(broken(format!("layer {keys:?} ends after {last:?}")));
        }
        self.ranges.push(keys);
        Ok(())
    }
}

/// The map as of one LSN.
struct MapView {
    values: BTreeMap<Key, Bytes>,
    lsn: Lsn,
}

#[async_trait]
impl AsOf for MapView {
    fn lsn(&self) -> Lsn {
        self.lsn
    }

    async fn get(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
        Ok(self.values.get(&key).cloned())
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Bytes, ReadError> {
        let mut out = BytesMut::new();
        for block in blocks {
            let key = Key::rel_block(rel, block);
            let stored = self.values.get(&key).ok_or(ReadError::MissingKey { key, lsn: self.lsn })?;
            let at = out.len();
            out.extend_from_slice(stored);
            // What redo leaves: no checksum that anyone could rely on.
            if !page::is_new(stored[..].try_into().expect("a page")) {
                out[at + 8..at + 10].fill(0xEE);
            }
        }
        Ok(out.freeze())
    }

    async fn scan(&self, keys: KeyRange) -> Result<Vec<(Key, Bytes)>, ReadError> {
        Ok(self.values.range(keys).map(|(key, value)| (*key, value.clone())).collect())
    }
}

/// Unpacks the archive as it comes. The directory must exist.
struct Unpack<'a> {
    root: &'a Path,
    tar: TarIn,
    file: Option<std::fs::File>,
}

#[async_trait]
impl TarSink for Unpack<'_> {
    async fn send(&mut self, chunk: Bytes) -> io::Result<()> {
        assert!(chunk.len() <= 256 << 10, "a chunk of {} bytes", chunk.len());
        let mut input = &chunk[..];
        while let Some(event) = self.tar.next(&mut input).map_err(io::Error::other)? {
            match event {
                TarEvent::Entry(entry) => {
                    let path = self.root.join(&entry.path);
                    match entry.kind {
                        TarKind::Directory => std::fs::create_dir(path)?,
                        TarKind::Symlink { target } => std::os::unix::fs::symlink(target, path)?,
                        TarKind::File => self.file = Some(std::fs::File::create_new(path)?),
                    }
                }
                TarEvent::Data(data) => {
                    io::Write::write_all(self.file.as_mut().expect("a file is open"), data)?;
                }
                TarEvent::EntryEnd => self.file = None,
            }
        }
        Ok(())
    }
}

async fn restore_into(root: &Path, view: &MapView, tli: model::Tli) -> Result<FullBackupReport> {
    let mut options = FullBackupOptions::new(TimelineHistory::first(tli), [0xAB; 16]);
    if view_major(view)? >= PgMajor::V17 {
        options.settings = "summarize_wal = on\n".into();
    }
    let mut out = Unpack { root, tar: TarIn::new(), file: None };
    let report = backup::full::write(view, &options, &mut out).await?;
    out.tar.finish(true)?;
    Ok(report)
}

fn view_major(view: &MapView) -> Result<PgMajor> {
    Ok(ControlFile::parse(view.values.get(&Key::CONTROL_FILE).context("no control file")?)?.pg)
}

/// An archive's entries in order; directories have no content.
#[derive(Default)]
struct Entries {
    tar: TarIn,
    list: Vec<(String, Option<Vec<u8>>)>,
}

#[async_trait]
impl TarSink for Entries {
    async fn send(&mut self, chunk: Bytes) -> io::Result<()> {
        let mut input = &chunk[..];
        while let Some(event) = self.tar.next(&mut input).map_err(io::Error::other)? {
            match event {
                TarEvent::Entry(entry) => {
                    let content = (entry.kind == TarKind::File).then(Vec::new);
                    self.list.push((entry.path.trim_end_matches('/').to_owned(), content));
                }
                TarEvent::Data(data) => {
                    let content = self.list.last_mut().and_then(|(_, content)| content.as_mut());
                    content.expect("only files have content").extend_from_slice(data);
                }
                TarEvent::EntryEnd => {}
            }
        }
        Ok(())
    }
}

impl Entries {
    fn file(&self, path: &str) -> Result<&[u8]> {
        let found = self.list.iter().filter(|(name, _)| name == path).collect::<Vec<_>>();
        let [(_, Some(content))] = found[..] else { anyhow::bail!("{path} is there {} times", found.len()) };
        Ok(content)
    }

    fn below(&self, prefix: &str) -> Vec<&(String, Option<Vec<u8>>)> {
        self.list.iter().filter(|(name, content)| name.starts_with(prefix) && content.is_some()).collect()
    }
}

/// Directories of a base backup, as Neon's computes know them.
fn expected_directories(major: u32) -> Vec<&'static str> {
    let mut expected = vec!["global", "pg_wal/archive_status"];
    expected.extend((major >= 17).then_some("pg_wal/summaries"));
    expected.extend(
        "pg_commit_ts pg_dynshmem pg_notify pg_serial pg_snapshots pg_subtrans pg_twophase".split(' '),
    );
    expected.extend("pg_multixact pg_multixact/members pg_multixact/offsets base base/1".split(' '));
    expected.extend("pg_replslot pg_tblspc pg_stat pg_stat_tmp pg_xact".split(' '));
    expected.extend("pg_logical pg_logical/snapshots pg_logical/mappings".split(' '));
    expected
}

/// What a compute starts from: entry by entry, and against the full backup of the same LSN.
async fn check_base_backup(view: &MapView, postgres: &Postgres) -> Result<()> {
    let major = postgres.major();
    let options = BaseBackupOptions { tli: model::Tli(1), prev: PrevLsn::At(Lsn(0x12_3456_7890)) };
    let mut refused = Entries::default();
    let error =
        backup::base::write(view, options, &mut refused).await.err().context("it has a tablespace")?;
    ensure!(matches!(error, BackupError::UserTablespace { .. }) && refused.list.is_empty(), "{error}");

    // Without what lies in the tablespace.
    let mut databases = DbDirectory::decode(&view.values[&Key::DB_DIRECTORY])?;
    databases.databases.retain(|(spc, _), _| matches!(spc, 1663 | 1664));
    let mut values = view.values.clone();
    values.insert(Key::DB_DIRECTORY, databases.encode().into());
    values.remove(&Key::TABLESPACE_DIRECTORY);
    let view = MapView { values, lsn: view.lsn };
    let mut base = Entries::default();
    let report = backup::base::write(&view, options, &mut base).await?;
    ensure!(report.bytes.is_multiple_of(512));
    std::mem::take(&mut base.tar).finish(true)?;
    let mut full = Entries::default();
    backup::full::write(
        &view,
        &FullBackupOptions::new(TimelineHistory::first(model::Tli(1)), [1; 16]),
        &mut full,
    )
    .await?;

    // Order.
    let names: Vec<&str> = base.list.iter().map(|(name, _)| name.as_str()).collect();
    let directories = expected_directories(major);
    assert_eq!(names[..directories.len()], directories);
    let rest = &names[directories.len()..];
    assert_eq!(rest[..3], ["pg_hba.conf", "pg_ident.conf", "postgresql.auto.conf"]);
    let at = |name: &str| rest.iter().position(|other| *other == name).with_context(|| format!("no {name}"));
    let first_of = |prefix: &str| {
        rest.iter().position(|other| other.starts_with(prefix)).with_context(|| format!("no {prefix}"))
    };
    let order = [
        at("pg_xact/0000")?,
        first_of("pg_multixact/members/")?,
        first_of("pg_multixact/offsets/")?,
        first_of("base/")?,
        at("PG_VERSION")?,
        at("global/pg_filenode.map")?,
        first_of("pg_twophase/")?,
    ];
    ensure!(order.is_sorted(), "{order:?}: {rest:?}");
    let [.., neon, zenith, control_file, segment] = rest else { anyhow::bail!("{rest:?}") };
    assert_eq!([*neon, *zenith, *control_file], ["neon.signal", "zenith.signal", "global/pg_control"]);
    // Every directory that initdb makes is there.
    for entry in std::fs::read_dir(postgres.data_dir())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        ensure!(
            !entry.file_type()?.is_dir()
                || name == "log"
                || names.iter().any(|other| other.split('/').next() == Some(&name)),
            "no {name}"
        );
    }

    // Contents.
    assert_eq!(base.file("neon.signal")?, b"PREV LSN: 12/34567890");
    assert_eq!(base.file("zenith.signal")?, b"PREV LSN: 12/34567890");
    let newline = if major >= 16 { "\n" } else { "" };
    assert_eq!(base.file("PG_VERSION")?, format!("{major}{newline}").as_bytes());
    assert_eq!(
        base.file("base/5/PG_VERSION").or_else(|_| base.file("base/1/PG_VERSION"))?,
        format!("{major}{newline}").as_bytes()
    );
    assert_eq!(base.file("global/pg_filenode.map")?, full.file("global/pg_filenode.map")?);
    for prefix in ["pg_xact/", "pg_multixact/", "pg_commit_ts/", "pg_twophase/", "pg_logical/"] {
        assert_eq!(base.below(prefix), full.below(prefix), "{prefix}");
    }
    let mut unlogged = 0;
    for (name, content) in base.below("base/") {
        let own = name.rsplit('/').next().unwrap_or_default();
        if own == "PG_VERSION" || own == "pg_filenode.map" {
            continue;
        }
        ensure!(
            base.list.iter().any(|(other, _)| *other == format!("{}_init", name.trim_end_matches("_init"))),
            "{name}"
        );
        assert_eq!(content.as_deref(), Some(full.file(name)?), "{name}");
        unlogged += 1;
    }
    // A table, its index, its TOAST table, the index of that: each as init and as main fork.
    assert_eq!(unlogged, 8);
    assert_eq!(base.below("global/").len(), 2);

    let source = ControlFile::parse(&view.values[&Key::CONTROL_FILE])?;
    let control = ControlFile::parse(base.file("global/pg_control")?)?;
    assert_eq!(base.file("global/pg_control")?.len(), 8192);
    let segment_size = source.wal_segment_size;
    let begin = view.lsn.normalized(segment_size.bytes());
    assert_eq!(
        (control.state, control.checkpoint_at, control.redo()),
        (ClusterState::ShutDown, Lsn(0), begin)
    );
    assert_eq!(
        (control.system_identifier, control.max_connections, control.data_checksum_version),
        (source.system_identifier, source.max_connections, source.data_checksum_version)
    );
    assert_eq!(*segment, format!("pg_wal/{}", segment_size.file_name(model::Tli(1), view.lsn)));
    assert_eq!(base.file(segment)?.len() as u64, segment_size.bytes());

    let home = home()?;
    let data = home.path().join("data");
    for directory in ["global", "pg_wal"] {
        std::fs::create_dir(data.join(directory))?;
    }
    std::fs::write(data.join("global/pg_control"), base.file("global/pg_control")?)?;
    if let Some(controldata) = postgres.installation().own_program("pg_controldata") {
        let output = postgres
            .run_program(controldata.to_str().context("UTF-8")?, &["-D", data.to_str().context("UTF-8")?])
            .await?;
        ensure!(output.contains("shut down\n") && !output.contains("WARNING"), "{output}");
        ensure!(output.contains(&format!("REDO location:    {begin}\n")), "{output}");
    }
    if let Some(waldump) = postgres.installation().own_program("pg_waldump") {
        // What a compute would write first.
        let record = RecordDraft::new(RmgrId::XLOG, 0x20, vec![0; 8]).encode(source.pg, Lsn(0));
        let mut wal = base.file(segment)?.to_vec();
        wal[segment_size.offset(begin) as usize..][..record.len()].copy_from_slice(&record);
        std::fs::write(data.join(segment), wal)?;
        let path = data.join(segment);
        let output = postgres
            .run_program(waldump.to_str().context("UTF-8")?, &["-n", "1", path.to_str().context("UTF-8")?])
            .await?;
        ensure!(output.contains("rmgr: XLOG") && output.contains("NOOP"), "{output}");
        println!("pg_waldump: {output}");
    }
    Ok(())
}

async fn fill(postgres: &Postgres) -> Result<()> {
    let space = postgres.make_dir("space")?;
    postgres.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).await?;
    postgres.sql("CREATE DATABASE other").await?;
    postgres.sql_in("other", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i").await?;
    postgres
        .sql(
            "CREATE TABLE big (i int PRIMARY KEY, t text, p point, a int[]);
             INSERT INTO big SELECT i, repeat('x', 300) || i, point(i, -i), ARRAY[i, i % 10] FROM generate_series(1, 20000) i;
             CREATE INDEX ON big USING hash (t); CREATE INDEX ON big USING gist (p); CREATE INDEX ON big USING gin (a);
             CREATE INDEX ON big USING brin (i); CREATE INDEX ON big USING spgist (p);
             DELETE FROM big WHERE i % 7 = 0;
             CREATE UNLOGGED TABLE volatile (i int PRIMARY KEY, t text);
             INSERT INTO volatile SELECT i, 'gone' FROM generate_series(1, 1000) i;
             CREATE TABLE empty ();
             CREATE SEQUENCE s; SELECT nextval('s');
             CREATE TABLE elsewhere (i int) TABLESPACE space;
             INSERT INTO elsewhere SELECT generate_series(1, 5000);
             CREATE TABLE locked (i int PRIMARY KEY); INSERT INTO locked VALUES (1);
             BEGIN; SELECT * FROM locked FOR SHARE; SAVEPOINT x; SELECT * FROM locked FOR UPDATE; COMMIT;",
        )
        .await?;
    postgres.sql("VACUUM big").await?;
    postgres.sql("BEGIN; INSERT INTO elsewhere VALUES (-1); PREPARE TRANSACTION 'waiting'").await?;
    Ok(())
}

const QUESTIONS: &[(&str, &str)] = &[
    ("SELECT count(*), sum(i), min(length(t)) FROM big", "rows"),
    ("SET enable_seqscan = off; SELECT count(*) FROM big WHERE a @> ARRAY[3]", "gin"),
    ("SET enable_seqscan = off; SELECT count(*) FROM big WHERE p <@ box '(0,0),(500,-500)'", "gist"),
    ("SELECT count(*) FROM elsewhere", "tablespace"),
    ("SELECT gid FROM pg_prepared_xacts", "prepared"),
    ("SELECT last_value FROM s", "sequence"),
    ("SELECT count(*) FROM pg_class", "catalog"),
];

async fn answers(postgres: &Postgres) -> Result<Vec<Vec<Vec<Option<String>>>>> {
    let mut answers = Vec::new();
    for (question, what) in QUESTIONS {
        answers.push(postgres.sql(question).await.with_context(|| (*what).to_owned())?);
    }
    answers.push(postgres.sql_in("other", "SELECT count(*), sum(i) FROM t").await?);
    Ok(answers)
}

async fn import(
    directory: &Path,
    shape: impl FnOnce(&mut ImportOptions),
) -> Result<(ImportReport, MapOut), ImportError> {
    let mut source = DataDirectory::open(directory).await?;
    shape(&mut source.options);
    source.import(MapOut::default(), None, &|_| ()).await
}

/// Starts what was restored and looks at it from all sides.
async fn check_restored(
    home: tempfile::TempDir,
    major: u32,
    expected: &[Vec<Vec<Option<String>>>],
    report: &FullBackupReport,
) -> Result<()> {
    let data = home.path().join("data");
    let control = ControlFile::parse(&std::fs::read(data.join("global/pg_control"))?)?;
    ensure!(control.state == ClusterState::ShutDown && control.checkpoint_at == report.checkpoint);
    let mut postgres = Postgres::start_existing(major, home, &[("log_min_messages", "debug1")]).await?;
    ensure!(!postgres.log().contains("redo starts"), "it recovered:\n{}", postgres.log());
    ensure!(!postgres.log().contains("not properly shut down"), "it recovered:\n{}", postgres.log());
    assert_eq!(answers(&postgres).await?, expected);
    assert_eq!(postgres.value("SELECT count(*) FROM volatile").await?, "0");
    postgres.sql("INSERT INTO volatile SELECT i, 'new' FROM generate_series(1, 1000) i").await?;
    assert_eq!(
        postgres.value("SELECT timeline_id FROM pg_control_checkpoint()").await?,
        report.tli.to_string()
    );
    assert_eq!(
        postgres.value("SELECT redo_lsn::text FROM pg_control_checkpoint()").await?,
        report.checkpoint.to_string()
    );
    // In-place tablespaces have no location outside; whatever it is, asking must not fail, as pg_dumpall asks.
    let location = postgres
        .value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'")
        .await?;
    ensure!(!location.starts_with('/'), "{location}");
    postgres.run_program("pg_dumpall", &["--globals-only", "-l", "postgres"]).await?;
    for database in ["postgres", "other", "template1"] {
        postgres.sql_in(database, "CREATE EXTENSION IF NOT EXISTS amcheck").await?;
    }
    postgres.run_program("pg_amcheck", &["--all", "--heapallindexed", "--parent-check"]).await?;
    postgres.sql("COMMIT PREPARED 'waiting'").await?;
    assert_eq!(postgres.value("SELECT count(*) FROM elsewhere").await?, "5001");
    for statement in [
        "INSERT INTO big SELECT -i, 'more' FROM generate_series(1, 5000) i",
        "CHECKPOINT",
        "SELECT pg_switch_wal()",
        "CHECKPOINT",
    ] {
        postgres.sql(statement).await?;
    }
    if major >= 17 {
        // The summarizer gets past the WAL that we made up.
        let summarized = || {
            postgres.value("SELECT summarized_lsn > pending_lsn - 67108864 AND summarized_tli = 2 FROM pg_get_wal_summarizer_state()")
        };
        let since = std::time::Instant::now();
        while postgres.value("SELECT count(*) FROM pg_available_wal_summaries() WHERE tli = 2").await? == "0"
        {
            ensure!(
                since.elapsed().as_secs() < 20,
                "no WAL summary of the new timeline:\n{}",
                postgres.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        ensure!(summarized().await? == "t", "{}", postgres.log());
        ensure!(!postgres.log().contains("could not find a valid record"), "{}", postgres.log());
    }
    let mut location = postgres.data_dir().to_owned();
    postgres.stop(Shutdown::Fast).await?;
    if let Some(checksums) = postgres.installation().own_program("pg_checksums") {
        let arguments = ["--check", "-D", location.to_str().context("UTF-8")?];
        let output = postgres.run_program(checksums.to_str().context("UTF-8")?, &arguments).await?;
        ensure!(output.contains("Bad checksums:  0"), "{output}");
    }
    postgres.start_again().await?;
    assert_eq!(postgres.value("SELECT count(*) FROM volatile").await?, "1000");
    // It can be followed again: its own base backup is a source.
    location = postgres.home().join("again");
    take_backup(&postgres, &location, &["-Ft"]).await?;
    let again = import_archives(&location, major).await?;
    ensure!(again.unknown_count == 0 || major == 14, "{:?}", again.unknown);
    assert_eq!(again.tli, report.tli);
    Ok(())
}

async fn round_trip(config: PostgresConfig) -> Result<()> {
    // Backups are restored without WAL here: nobody may write while they are taken, autovacuum neither.
    let config = config.set("autovacuum", "off");
    let major = config.major;
    let mut postgres = Postgres::start(&config).await?;
    fill(&postgres).await?;
    let expected = answers(&postgres).await?;
    let backup = postgres.home().join("backup");
    let mapping = format!("{0}/space={0}/copied space", postgres.home().display());
    take_backup(&postgres, &backup, &["-Fp", "-T", &mapping]).await?;
    let archives = postgres.home().join("archives");
    take_backup(&postgres, &archives, &["-Ft"]).await?;
    postgres.stop(Shutdown::Fast).await?;

    // A stopped cluster, with plenty of memory and with hardly any.
    let (report, layers) = import(postgres.data_dir(), |_| ()).await?;
    assert_eq!(report.unknown, Vec::<String>::new());
    assert_eq!(report.base_lsn, report.checkpoint.redo);
    ensure!(layers.ranges.len() < 16, "{} layers of a small cluster", layers.ranges.len());
    let (tight, narrow) = import(postgres.data_dir(), |options| {
        options.buffer_bytes = 1 << 20;
        options.layer_bytes = 1 << 20;
        options.big_file_bytes = 256 << 10;
    })
    .await?;
    ensure!(narrow.ranges.len() > 20 && tight.layers == narrow.ranges.len() as u64);
    ensure!(layers.values.keys().filter(|key| !narrow.values.contains_key(key)).count() == 0);
    let view = MapView { values: narrow.values, lsn: report.base_lsn };
    check_base_backup(&view, &postgres).await.context("the base backup of the stopped cluster")?;
    let home = home()?;
    let restored = restore_into(&home.path().join("data"), &view, report.tli).await?;
    check_restored(home, major, &expected, &restored).await.context("restored from the stopped cluster")?;

    // A base backup of the idle cluster: consistent as it is, since nothing was written meanwhile.
    let (report, layers) = import(&backup, |_| ()).await?;
    ensure!(report.readable_from > report.base_lsn);
    let at = Lsn(report.readable_from.0 + 3);
    let view = MapView { values: layers.values, lsn: at };
    let home = self::home()?;
    let restored = restore_into(&home.path().join("data"), &view, report.tli).await?;
    check_restored(home, major, &expected, &restored).await.context("restored from the base backup")?;

    let again = import_archives(&archives, major).await?;
    assert_eq!((again.tli, again.checkpoint.next_oid), (report.tli, report.checkpoint.next_oid));
    Ok(())
}

async fn take_backup(postgres: &Postgres, to: &Path, arguments: &[&str]) -> Result<()> {
    let to = to.to_str().context("UTF-8")?;
    let all = [&["-D", to, "-X", "none", "-c", "fast", "--no-sync"], arguments].concat();
    postgres.run_program("pg_basebackup", &all).await?;
    Ok(())
}

fn home() -> Result<tempfile::TempDir> {
    let home = tempfile::tempdir()?;
    std::fs::create_dir(home.path().join("data"))?;
    Ok(home)
}

/// As the replication protocol brings them: tablespaces, then base, then the manifest, in chunks.
async fn import_archives(directory: &Path, major: u32) -> Result<ImportReport> {
    let base = std::fs::read(directory.join("base.tar"))?;
    let start =
        base.windows(20).position(|window| window == b"START WAL LOCATION: ").context("no label")? + 20;
    let text = std::str::from_utf8(&base[start..start + 30])?;
    let lsn: Lsn = text.split(' ').next().context("no LSN")?.parse()?;
    let mut options = ImportOptions::new(PgMajor::try_from(major)?, SourceKind::Backup, lsn);
    options.manifest = Some(ChecksumAlgorithm::Crc32c);
    options.buffer_bytes = 2 << 20;
    let mut importer = Importer::new(options, MapOut::default());
    let mut names: Vec<String> = std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == "tar"));
    names.sort_by_key(|name| name == "base.tar");
    for name in names {
        importer.archive_begin(&name, (name != "base.tar").then_some("/somewhere"))?;
        for chunk in std::fs::read(directory.join(&name))?.chunks(100_001) {
            importer.archive_data(chunk).await?;
        }
    }
    importer.manifest_data(&std::fs::read(directory.join("backup_manifest"))?)?;
    Ok(importer.end(None).await?.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_14_comes_back_as_it_was() -> Result<()> {
    round_trip(PostgresConfig::new(14)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_15_comes_back_as_it_was() -> Result<()> {
    round_trip(PostgresConfig::new(15).wal_segment_mib(64)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_16_comes_back_as_it_was() -> Result<()> {
    round_trip(PostgresConfig::new(16).set("track_commit_timestamp", "on").wal_segment_mib(1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_17_comes_back_as_it_was() -> Result<()> {
    round_trip(PostgresConfig::new(17).checksums(false)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_18_comes_back_as_it_was() -> Result<()> {
    round_trip(PostgresConfig::new(18).set("wal_level", "logical")).await
}
