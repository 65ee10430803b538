//! A real S3 server over a local directory. Claims need creates that only one of many racing writers wins, which this
//! server gives.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::account;
use crate::port::Port;
use crate::process::Process;

/// Access key of every [`Versitygw`].
pub const ACCESS_KEY: &str = "palimpsest";
/// Secret key of every [`Versitygw`].
pub const SECRET_KEY: &str = "palimpsest-secret";

/// An S3 server with one bucket named `history`. Dropping it kills it and removes its objects.
#[derive(Debug)]
pub struct Versitygw {
    port: Port,
    process: Process,
    home: TempDir,
    /// Its directory in the cache.
    program: &'static str,
}

impl Versitygw {
    /// Name of the bucket that exists.
    pub const BUCKET: &str = "history";

    /// Starts the server and waits until it listens.
    pub async fn start() -> Result<Versitygw> {
        Self::start_program("versitygw").await
    }

    /// The same, of a version that knows no conditional writes: it overwrites what was to be created only if absent.
    pub async fn start_unconditional() -> Result<Versitygw> {
        Self::start_program("versitygw-unconditional").await
    }

    async fn start_program(program: &'static str) -> Result<Versitygw> {
        let home = tempfile::Builder::new().prefix("palimpsest-s3-").tempdir()?;
        std::fs::create_dir_all(home.path().join("objects").join(Self::BUCKET))?;
        let port = Port::take()?;
        let process = launch(program, home.path(), &port)?;
        let mut server = Versitygw { port, process, home, program };
        server.listening().await?;
        Ok(server)
    }

    /// kill -9, as when the object store is away.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts again on the same port and objects.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = launch(self.program, self.home.path(), &self.port)?;
        self.listening().await
    }

    /// Stops and goes on: requests hang in between.
    pub fn pause(&mut self, on: bool) {
        self.process.signal(if on { Signal::STOP } else { Signal::CONT });
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Environment that an S3 client needs to be let in.
    pub fn credentials() -> [(&'static str, &'static str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
    }

    /// The directory that holds the bucket's objects as files.
    pub fn objects(&self) -> std::path::PathBuf {
        self.home.path().join("objects").join(Self::BUCKET)
    }

    async fn listening(&mut self) -> Result<()> {
        let since = Instant::now();
        while tokio::net::TcpStream::connect(self.port.address()).await.is_err() {
            if let Some(status) = self.process.exit_status() {
                bail!("the S3 server ended with {status}:\n{}", self.process.log_tail());
            }
            ensure!(
                since.elapsed() < Duration::from_secs(20),
                "the S3 server does not listen:\n{}",
                self.process.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

fn launch(program: &str, home: &Path, port: &Port) -> Result<Process> {
    let program = account::cache_dir()?.join(program).join("versitygw").canonicalize();
    let program = program.context("the S3 server is not there: run scripts/install-versitygw.sh")?;
    let mut command: Command = account::command_as(None, &program);
    command
        .args(["--access", ACCESS_KEY, "--secret", SECRET_KEY, "--port", &port.address(), "posix"])
        .arg(home.join("objects"))
        .current_dir(home);
    Process::start("versitygw", command, &home.join("versitygw.log"))
}
