//! A real, unpatched Postgres in a directory of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::account::{self, Unprivileged};
use crate::port::Port;
use crate::process::Process;

/// The majors that tests run on.
pub const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

/// What cluster to make.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// 14 to 18.
    pub major: u32,
    /// Data checksums.
    pub checksums: bool,
    /// `wal_segment_size`, MiB: a power of two from 1 to 1024.
    pub wal_segment_mib: u32,
    /// Archive finished WAL segments into [`Postgres::archive_dir`].
    pub archive: bool,
    /// Further lines of `postgresql.conf`; they win over ours.
    pub settings: Vec<(String, String)>,
}

impl PostgresConfig {
    /// A cluster as people have them: checksums, 16 MiB segments.
    pub fn new(major: u32) -> Self {
        PostgresConfig { major, checksums: true, wal_segment_mib: 16, archive: false, settings: Vec::new() }
    }

    /// Adds a line to `postgresql.conf`.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "numbers and literals read best by value")]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// With or without data checksums.
    #[must_use]
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// With this `wal_segment_size`.
    #[must_use]
    pub fn wal_segment_mib(mut self, mib: u32) -> Self {
        self.wal_segment_mib = mib;
        self
    }

    /// With WAL archiving.
    #[must_use]
    pub fn archive(mut self) -> Self {
        self.archive = true;
        self
    }
}

/// How to ask Postgres to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends sessions, writes a shutdown checkpoint (SIGINT).
    Fast,
    /// Ends at once; the next start recovers (SIGQUIT).
    Immediate,
}

/// The programs of one major.
#[derive(Clone, Debug)]
pub struct Installation {
    major: u32,
    root: PathBuf,
}

impl Installation {
    /// Finds what `scripts/install-postgres.sh` put there.
    pub fn find(major: u32) -> Result<Installation> {
        let named = account::cache_dir()?.join("postgres").join(major.to_string());
        // The stable name may lie where an unprivileged user cannot look.
        let root = named.canonicalize().with_context(|| {
            format!("Postgres {major} is not at {}: run scripts/install-postgres.sh {major}", named.display())
        })?;
        Ok(Installation { major, root })
    }

    /// A program: the server's own, one of exactly this version, or a client that speaks with every major.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        ["bin", "same", "clients"]
            .iter()
            .map(|dir| self.root.join(dir).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("no {name} for Postgres {} here", self.major))
    }

    /// A program of exactly this version, which alone can read this version's files, or `None` where there is none
    /// (14 and 17 have neither `pg_waldump` nor `pg_controldata`).
    pub fn own_program(&self, name: &str) -> Option<PathBuf> {
        ["bin", "same"].iter().map(|dir| self.root.join(dir).join(name)).find(|path| path.exists())
    }

    fn command(&self, user: Option<Unprivileged>, program: &Path) -> Command {
        let mut command = account::command_as(user, program);
        if program.starts_with(self.root.join("bin")) {
            command.env("LD_LIBRARY_PATH", self.root.join("lib"));
        }
        command
    }
}

/// A Postgres server. Dropping it kills it and removes its directory.
#[derive(Debug)]
pub struct Postgres {
    installation: Installation,
    user: Option<Unprivileged>,
    port: Port,
    process: Option<Process>,
    data: PathBuf,
    home: TempDir,
}

impl Postgres {
    /// Makes a cluster and starts it.
    pub async fn start(config: &PostgresConfig) -> Result<Postgres> {
        let installation = Installation::find(config.major)?;
        let user = account::postgres_account()?;
        let home = account::temp_dir_for(user)?;
        let data = home.path().join("data");
        let mut initdb = installation.command(user, &installation.program("initdb")?);
        initdb
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .arg(format!("--wal-segsize={}", config.wal_segment_mib));
        if config.checksums {
            initdb.arg("--data-checksums");
        } else if config.major >= 18 {
            initdb.arg("--no-data-checksums");
        }
        run(initdb).await?;

        let archive = home.path().join("archive");
        std::fs::create_dir(&archive)?;
        account::give_to(user, &archive)?;
        let mut lines = String::from(
            "wal_level = replica\nmax_wal_senders = 10\nmax_replication_slots = 10\nfsync = off\nautovacuum_naptime = 1s\n\
             max_prepared_transactions = 20\nshared_buffers = 64MB\nmax_wal_size = 1GB\nlog_checkpoints = off\n\
             max_connections = 60\nlog_line_prefix = '%m [%p] '\n",
        );
        if config.archive {
            writeln!(lines, "archive_mode = on\narchive_command = 'cp \"%p\" \"{}/%f\"'", archive.display())?;
        }
        for (name, value) in &config.settings {
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        append(&data.join("postgresql.conf"), &lines)?;
        append(
            &data.join("pg_hba.conf"),
            "local replication all trust\nhost replication all 127.0.0.1/32 trust\n",
        )?;
        Postgres::run_in(installation, user, home, data).await
    }

    /// Starts a cluster that is already in `home/data`, e.g. a restored one. The tree is given to the server's user.
    ///
    /// `settings` go to the end of its `postgresql.conf`.
    pub async fn start_existing(major: u32, home: TempDir, settings: &[(&str, &str)]) -> Result<Postgres> {
        let installation = Installation::find(major)?;
        let user = account::postgres_account()?;
        let data = home.path().join("data");
        let mut lines = String::from("\nfsync = off\n");
        for (name, value) in settings {
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        append(&data.join("postgresql.conf"), &lines)?;
        std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        account::give_tree_to(user, home.path())?;
        Postgres::run_in(installation, user, home, data).await
    }

    async fn run_in(
        installation: Installation,
        user: Option<Unprivileged>,
        home: TempDir,
        data: PathBuf,
    ) -> Result<Postgres> {
        let mut postgres = Postgres { installation, user, port: Port::take()?, process: None, data, home };
        postgres.start_again().await?;
        Ok(postgres)
    }

    /// Starts the server again after [`Postgres::stop`] or [`Postgres::crash`], and waits until it accepts queries.
    pub async fn start_again(&mut self) -> Result<()> {
        self.launch()?;
        let since = Instant::now();
        loop {
            match self.connect("postgres").await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    let process = self.process.as_mut().context("just started")?;
                    if let Some(status) = process.exit_status() {
                        bail!("Postgres ended with {status} at start:\n{}", process.log_tail());
                    }
                    ensure!(
                        since.elapsed() < Duration::from_mins(1),
                        "Postgres accepts no connection after a minute: {error:#}\n{}",
                        process.log_tail()
                    );
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Starts the server without waiting for it.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.process.as_mut().is_none_or(|p| p.exit_status().is_some()), "it runs already");
        let mut command = self.installation.command(self.user, &self.installation.program("postgres")?);
        command.arg("-D").arg(&self.data).args([
            "-c",
            &format!("port={}", self.port.number()),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            &format!("unix_socket_directories={}", self.home.path().display()),
        ]);
        command.current_dir(self.home.path());
        let log = self.home.path().join("postgres.log");
        self.process = Some(Process::start("postgres", command, &log)?);
        Ok(())
    }

    /// Stops the server and says how long that took. Fails after two minutes.
    pub async fn stop(&mut self, how: Shutdown) -> Result<Duration> {
        let since = Instant::now();
        if let Some(process) = &mut self.process {
            process.signal(match how {
                Shutdown::Fast => Signal::INT,
                Shutdown::Immediate => Signal::QUIT,
            });
            process.wait(Duration::from_mins(2)).await?;
        }
        self.process = None;
        Ok(since.elapsed())
    }

    /// kill -9 of every process of the server at once.
    pub fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.installation.major
    }

    /// The programs of this major.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Connection string to the database `postgres`.
    pub fn dsn(&self) -> String {
        self.dsn_of("postgres")
    }

    /// Connection string to `database`.
    pub fn dsn_of(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port.number())
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// `pg_wal`.
    pub fn wal_dir(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    /// Where [`PostgresConfig::archive`] puts segments.
    pub fn archive_dir(&self) -> PathBuf {
        self.home.path().join("archive")
    }

    /// A directory that the server's user can write to; tablespaces go here.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Makes a directory below [`Postgres::home`] that belongs to the server's user, e.g. for a tablespace.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.home.path().join(name);
        std::fs::create_dir(&path)?;
        account::give_to(self.user, &path)?;
        Ok(path)
    }

    /// What the server logged so far.
    pub fn log(&self) -> String {
        std::fs::read(self.home.path().join("postgres.log"))
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// A connection to `database`.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let (client, connection) = tokio_postgres::connect(&self.dsn_of(database), NoTls).await?;
        tokio::spawn(async move {
            connection.await.ok();
        });
        Ok(client)
    }

    /// Runs SQL (several statements may stand in it) in the database `postgres`; rows as text, of all statements.
    pub async fn sql(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.sql_in("postgres", sql).await
    }

    /// Runs SQL in `database`.
    pub async fn sql_in(&self, database: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let client = self.connect(database).await?;
        query(&client, sql).await
    }

    /// The one value that `sql` gives, in the database `postgres`.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let rows = self.sql(sql).await?;
        rows.into_iter()
            .next()
            .and_then(|r| r.into_iter().next())
            .flatten()
            .with_context(|| format!("no value: {sql}"))
    }

    /// Where the server writes WAL next, `X/X`, after making everything before it durable.
    pub async fn flushed_lsn(&self) -> Result<String> {
        let lsn = self.value("SELECT pg_current_wal_insert_lsn()").await?;
        // A commit of a transaction that has an id flushes all WAL before it.
        self.sql("SELECT txid_current()").await?;
        Ok(lsn)
    }

    /// Runs one of the programs of this major against this server's files, as the server's user; its output.
    pub async fn run_program(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.installation.command(self.user, &self.installation.program(name)?);
        command
            .args(arguments)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.number().to_string())
            .env("PGUSER", "postgres")
            .current_dir(self.home.path());
        run(command).await
    }

    /// Takes a base backup with `pg_basebackup` into `<home>/<name>`, plain format, WAL included.
    pub async fn base_backup(&self, name: &str) -> Result<PathBuf> {
        let target = self.home.path().join(name);
        let target_text = target.to_str().context("the path is UTF-8")?.to_owned();
        self.run_program("pg_basebackup", &["-D", &target_text, "-X", "stream", "-c", "fast", "--no-sync"])
            .await?;
        Ok(target)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
        if std::thread::panicking() || std::env::var_os("TESTKIT_KEEP").is_some() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "last lines of Postgres {}:\n{}",
                self.major(),
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
    }
}

/// Runs SQL over `client`; rows of all its statements as text.
pub async fn query(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    let messages = client
        .simple_query(sql)
        .await
        .with_context(|| format!("failed: {}", sql.chars().take(300).collect::<String>()))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        })
        .collect())
}

/// Runs a program to its end off the async threads; its standard output, or an error with all it printed.
pub async fn run(mut command: Command) -> Result<String> {
    let output = tokio::task::spawn_blocking(move || {
        command
            .output()
            .with_context(|| format!("cannot run {command:?}"))
            .map(|output| (format!("{command:?}"), output))
    })
    .await??;
    let (shown, output) = output;
    ensure!(
        output.status.success(),
        "{shown} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn append(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::options().append(true).create(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
