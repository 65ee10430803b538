//! A pageserver process as users run it: the real binary, a working directory, a bucket, two ports.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use model::{Lsn, TenantId, TimelineId};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::account;
use crate::page_client::{self, PageClient};
use crate::port::Port;
use crate::process::Process;
use crate::versitygw::Versitygw;

/// Where a pageserver keeps history.
#[derive(Clone, Debug)]
pub enum BucketAt {
    /// A local directory.
    Directory(PathBuf),
    /// An S3 endpoint with the bucket of [`Versitygw`].
    S3 {
        /// `http://127.0.0.1:<port>`, of the server itself or of a proxy before it.
        endpoint: String,
    },
}

/// A pageserver. Dropping it kills it and removes its working directory, not its bucket.
#[derive(Debug)]
pub struct Pageserver {
    bucket: BucketAt,
    settings: Vec<(String, String)>,
    libpq: Port,
    http: Port,
    process: Option<Process>,
    home: TempDir,
}

impl Pageserver {
    /// Starts a pageserver with an empty disk over `bucket` and waits until it answers `/v1/status`.
    ///
    /// `settings` go to it as `-c name=value`.
    pub async fn start(bucket: BucketAt, settings: &[(&str, &str)]) -> Result<Pageserver> {
        let mut server = Self::new(bucket, settings)?;
        server.start_again().await?;
        Ok(server)
    }

    fn new(bucket: BucketAt, settings: &[(&str, &str)]) -> Result<Pageserver> {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let home = tempfile::Builder::new().prefix("palimpsest-server-").tempdir()?;
        Ok(Pageserver { bucket, settings, libpq: Port::take()?, http: Port::take()?, process: None, home })
    }

    /// Starts a pageserver without waiting for it: one whose HTTP cannot be asked in clear text.
    pub fn launched(bucket: BucketAt, settings: &[(&str, &str)]) -> Result<Pageserver> {
        let mut server = Self::new(bucket, settings)?;
        server.launch()?;
        Ok(server)
    }

    /// Starts it again on the same ports, disk and bucket.
    pub async fn start_again(&mut self) -> Result<()> {
        self.launch()?;
        let since = Instant::now();
        while self.http(Method::GET, "/v1/status", None).await.is_err() {
            let process = self.process.as_mut().context("just started")?;
            if let Some(status) = process.exit_status() {
                bail!("the pageserver ended with {status} at start:\n{}", process.log_tail());
            }
            ensure!(
                since.elapsed() < Duration::from_mins(1),
                "no answer after a minute:\n{}",
                process.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Starts the process without waiting for it.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = account::command_as(None, &binary("pageserver")?);
        command.arg("-D").arg(self.home.path().join("work"));
        command.args(["--listen-pg-addr", &self.libpq.address(), "--listen-http-addr", &self.http.address()]);
        match &self.bucket {
            BucketAt::Directory(path) => {
                command.arg("--bucket").arg(format!("file://{}", path.display()));
            }
            BucketAt::S3 { endpoint } => {
                command
                    .arg("--bucket")
                    .arg(format!("s3://{}", Versitygw::BUCKET))
                    .arg("--s3-endpoint")
                    .arg(endpoint);
                command.envs(Versitygw::credentials());
            }
        }
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        self.process = Some(Process::start("pageserver", command, &self.home.path().join("pageserver.log"))?);
        Ok(())
    }

    /// Its disk.
    pub fn workdir(&self) -> PathBuf {
        self.home.path().join("work")
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Removes its working directory. Only while it does not run.
    pub fn wipe_disk(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "it runs");
        let work = self.home.path().join("work");
        if work.exists() {
            std::fs::remove_dir_all(work)?;
        }
        Ok(())
    }

    /// SIGTERM, and how long it took to go. Fails after 15 s or when it reports an error.
    pub async fn stop(&mut self) -> Result<Duration> {
        let since = Instant::now();
        let mut process = self.process.take().context("it does not run")?;
        process.signal(Signal::TERM);
        let status = process.wait(Duration::from_secs(15)).await?;
        ensure!(status.success(), "the pageserver ended with {status}:\n{}", process.log_tail());
        Ok(since.elapsed())
    }

    /// The process, while it runs.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Resident memory now, bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.process.as_ref().context("it does not run")?.resident_bytes()
    }

    /// Address of the libpq page service.
    pub fn libpq_address(&self) -> String {
        self.libpq.address()
    }

    /// Address of the HTTP API.
    pub fn http_address(&self) -> String {
        self.http.address()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.home.path().join("pageserver.log"));
        log.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// One HTTP request; status and body (`Null` where the body is no JSON).
    pub async fn http(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let (status, bytes) = self.http_bytes(method, path, body).await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// One HTTP request; status and body as text.
    pub async fn http_text(&self, path: &str) -> Result<(u16, String)> {
        let (status, bytes) = self.http_bytes(Method::GET, path, None).await?;
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    async fn http_bytes(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>)> {
        request(&self.http.address(), method, path, body).await
    }

    /// The same, as a future that outlives a change of the server, such as its end; the body as JSON.
    pub fn call(
        &self,
        method: Method,
        path: String,
        body: Option<Value>,
    ) -> impl Future<Output = Result<(u16, Value)>> + Send + use<> {
        let address = self.http.address();
        async move {
            let (status, bytes) = request(&address, method, &path, body.as_ref()).await?;
            Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
        }
    }

    /// Runs `pagectl verb … bucket rest…` over its bucket. Answers its exit status and what it printed on standard output; what it said besides goes to ours.
    pub async fn pagectl(&self, verb: &[&str], rest: &[&str]) -> Result<(Option<i32>, String)> {
        let url = match &self.bucket {
            BucketAt::Directory(path) => format!("file://{}", path.display()),
            BucketAt::S3 { endpoint } => {
                format!("s3://{}?endpoint={endpoint}&region=us-east-1&path_style=true", Versitygw::BUCKET)
            }
        };
        let mut command = tokio::process::Command::new(binary("pagectl")?);
        command.args(verb).arg(url).args(rest).envs(Versitygw::credentials());
        let output = command.stderr(std::process::Stdio::inherit()).kill_on_drop(true).output().await?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Detail of a timeline.
    pub async fn timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<Value> {
        let path = format!("/v1/tenant/{tenant}/timeline/{timeline}");
        let (status, detail) = self.http(Method::GET, &path, None).await?;
        ensure!(status == 200, "{path}: {status} {detail}");
        Ok(detail)
    }

    /// The end of the last record that the timeline serves.
    pub async fn last_record_lsn(&self, tenant: TenantId, timeline: TimelineId) -> Result<Lsn> {
        last_record_lsn(&self.timeline(tenant, timeline).await?)
    }

    /// Makes a timeline that imports the primary at `dsn` and follows it. Returns when that is accepted.
    pub async fn follow(&self, tenant: TenantId, timeline: TimelineId, dsn: &str) -> Result<()> {
        let path = format!("/v1/tenant/{tenant}/timeline");
        let body = serde_json::json!({"new_timeline_id": timeline.to_string(), "primary": {"dsn": dsn}});
        let (status, answer) = self.http(Method::POST, &path, Some(&body)).await?;
        ensure!((200..300).contains(&status), "{path}: {status} {answer}");
        Ok(())
    }

    /// Makes a branch of `ancestor` at `lsn`.
    pub async fn branch(
        &self,
        tenant: TenantId,
        new: TimelineId,
        ancestor: TimelineId,
        lsn: Lsn,
    ) -> Result<()> {
        let path = format!("/v1/tenant/{tenant}/timeline");
        let body = serde_json::json!({
            "new_timeline_id": new.to_string(),
            "ancestor_timeline_id": ancestor.to_string(),
            "ancestor_start_lsn": lsn.to_string(),
        });
        let (status, answer) = self.http(Method::POST, &path, Some(&body)).await?;
        ensure!(status == 201, "{path}: {status} {answer}");
        Ok(())
    }

    /// Keeps an LSN readable for as long as the server's setting says.
    pub async fn lease(&self, tenant: TenantId, timeline: TimelineId, lsn: Lsn) -> Result<()> {
        let path = format!("/v1/tenant/{tenant}/timeline/{timeline}/lsn_lease");
        let (status, answer) = self.http(Method::POST, &path, Some(&json!({ "lsn": lsn }))).await?;
        ensure!(status == 200, "no lease of {lsn}: {status} {answer}");
        Ok(())
    }

    /// Waits until the timeline's import is done and it can be read.
    pub async fn wait_active(
        &mut self,
        tenant: TenantId,
        timeline: TimelineId,
        limit: Duration,
    ) -> Result<()> {
        self.wait_until((tenant, timeline), limit, "active", |detail| Ok(detail["state"] == "Active")).await
    }

    /// Waits until the timeline serves everything before `lsn`.
    pub async fn wait_for(
        &mut self,
        tenant: TenantId,
        timeline: TimelineId,
        lsn: Lsn,
        limit: Duration,
    ) -> Result<()> {
        let what = format!("at {lsn}");
        self.wait_until((tenant, timeline), limit, &what, |detail| Ok(last_record_lsn(detail)? >= lsn)).await
    }

    /// Waits until a timeline's detail is as wanted; says what it was instead, and how the server fares, when it takes too long.
    async fn wait_until(
        &mut self,
        (tenant, timeline): (TenantId, TimelineId),
        limit: Duration,
        what: &str,
        is_reached: impl Fn(&Value) -> Result<bool>,
    ) -> Result<()> {
        let since = Instant::now();
        loop {
            let now = self.timeline(tenant, timeline).await;
            if now.as_ref().is_ok_and(|detail| is_reached(detail).unwrap_or(false)) {
                return Ok(());
            }
            let process = self.process.as_mut().context("it does not run")?;
            if let Some(status) = process.exit_status() {
                bail!("the pageserver ended with {status}:\n{}", process.log_tail());
            }
            ensure!(
                since.elapsed() < limit,
                "not {what} after {limit:?}, but: {now:?}\n{}",
                process.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A pagestream connection.
    pub async fn pages(&self, tenant: TenantId, timeline: TimelineId) -> Result<PageClient> {
        PageClient::connect(&self.libpq.address(), tenant, timeline).await
    }

    /// Streams a fullbackup at `lsn` and unpacks it into `<new directory>/data`.
    pub async fn restore(&self, tenant: TenantId, timeline: TimelineId, lsn: Lsn) -> Result<TempDir> {
        let home = account::temp_dir_for(account::postgres_account()?)?;
        let command = format!("fullbackup {tenant} {timeline} {lsn}");
        let tar_path = home.path().join("backup.tar");
        page_client::copy_out(&self.libpq.address(), &command, &tar_path).await?;
        let data = home.path().join("data");
        let unpacked = data.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            std::fs::create_dir(&unpacked)?;
            let mut archive = tar::Archive::new(std::io::BufReader::new(std::fs::File::open(&tar_path)?));
            archive.set_preserve_permissions(true);
            archive.unpack(&unpacked).context("the fullbackup is no whole tar")?;
            std::fs::remove_file(&tar_path)?;
            Ok(())
        })
        .await??;
        Ok(home)
    }
}

async fn request(address: &str, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>)> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let body = body.map(ToString::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address)
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body)))?;
    let answer = tokio::time::timeout(Duration::from_mins(2), sender.send_request(request)).await;
    let answer = answer.with_context(|| format!("no answer to {path}"))??;
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await?.to_bytes().to_vec();
    driver.abort();
    Ok((status, bytes))
}

fn last_record_lsn(detail: &Value) -> Result<Lsn> {
    let text = detail["last_record_lsn"].as_str().with_context(|| format!("no last_record_lsn: {detail}"))?;
    Ok(text.parse()?)
}

impl Drop for Pageserver {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "last lines of the pageserver:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

/// A binary of this workspace: `<NAME>_BIN` in the environment, or beside the running test.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(format!("{}_BIN", name.to_uppercase())) {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let found = test.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("no binary {name} beside {}: run `cargo build --bins` first", Path::new(&test).display())
    })
}
