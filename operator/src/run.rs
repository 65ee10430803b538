//! `operator run`: watches, leads, reconciles, ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use kube::api::ListParams;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{PageserverPool, Tenant, Timeline};
use crate::error_story::story;
use crate::fleet::credentials::Credentials;
use crate::http;
use crate::lease::{Leadership, LeaseSettings};
use crate::metrics::Metrics;
use crate::supervisor::Supervisor;
use crate::watch::Scope;
use crate::world::{Clients, World};

/// Settings of `operator run`.
#[allow(clippy::doc_markdown, reason = "these are the texts of --help")]
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Namespaces to watch, separated by commas; all when empty
    #[arg(long, value_delimiter = ',', env = "OPERATOR_WATCH_NAMESPACES", value_name = "NAMESPACES")]
    watch_namespaces: Vec<String>,
    /// Namespace of the lease by which one of several operators leads
    #[arg(long, env = "OPERATOR_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// Name of that lease
    #[arg(long, env = "OPERATOR_LEASE_NAME", default_value = "palimpsest-operator", value_name = "NAME")]
    lease_name: String,
    /// Who this operator is, in the lease and in events; POD_NAME or the host's name by default
    #[arg(long, env = "OPERATOR_IDENTITY", value_name = "NAME")]
    identity: Option<String>,
    /// Where /healthz, /readyz and /metrics are
    #[arg(long, env = "OPERATOR_LISTEN_HTTP_ADDR", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    listen_http_addr: SocketAddr,
    /// Directory with tls.crt, tls.key and ca.crt, for pools with controlAuth.mode MutualTLS
    #[arg(long, env = "OPERATOR_CONTROL_TLS_DIR", value_name = "DIRECTORY")]
    control_tls_dir: Option<PathBuf>,
    /// File with the secret that pageservers share, for pools with controlAuth.mode BearerFile
    #[arg(long, env = "OPERATOR_CONTROL_TOKEN_FILE", value_name = "FILE")]
    control_token_file: Option<PathBuf>,
    /// How log lines look
    #[arg(long, env = "OPERATOR_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Which of them are written, as in RUST_LOG
    #[arg(long, env = "OPERATOR_LOG_FILTER", default_value = "info,kube=warn", value_name = "FILTER")]
    log_filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One object each.
    Json,
}

impl Settings {
    fn scope(&self) -> Scope {
        let names: Vec<_> = self.watch_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect();
        if names.is_empty() { Scope::Cluster } else { Scope::Namespaces(names) }
    }

    fn credentials(&self) -> Credentials {
        Credentials { tls_dir: self.control_tls_dir.clone(), token_file: self.control_token_file.clone() }
    }

    fn lease(&self) -> LeaseSettings {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host =
            || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
        LeaseSettings {
            namespace: self
                .lease_namespace
                .clone()
                .or_else(|| variable("POD_NAMESPACE"))
                .unwrap_or_else(|| "default".into()),
            name: self.lease_name.clone(),
            identity: self
                .identity
                .clone()
                .or_else(|| variable("POD_NAME"))
                .or_else(host)
                .unwrap_or_else(|| "operator".into()),
        }
    }
}

/// Runs until told to end by a signal, or until it does not lead any more.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    log(settings);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(operate(settings))
}

fn log(settings: &Settings) {
    use tracing_subscriber::EnvFilter;
    let filter = settings.log_filter.parse().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    match settings.log_format {
        LogFormat::Text => lines.with_ansi(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

async fn operate(settings: &Settings) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let metrics = Metrics::new().context("cannot make the metrics")?;
    let config = kube::Config::infer().await.context("cannot find out how to reach the API server")?;
    let mut never_again = config.clone();
    never_again.default_retry = false;
    let client = Client::try_from(config).context("cannot make a client of the API server")?;
    let strict = Client::try_from(never_again).context("cannot make a client of the API server")?;

    // They answer and watch to the last; what reconciles ends before them.
    let base = CancellationToken::new();
    let supervisor = Supervisor::new(base.clone(), metrics.clone());
    let (ready, is_ready) = watch::channel(false);
    let (address, shown) = (settings.listen_http_addr, metrics.clone());
    supervisor.start("http", move |stop| http::serve(address, shown.clone(), is_ready.clone(), stop));

    stop.run_until_cancelled(resources_exist(&client, &settings.scope())).await;
    let clients = Clients { client, strict: strict.clone() };
    let lease = settings.lease();
    let world = World::watch(
        clients,
        &settings.scope(),
        settings.credentials(),
        &lease.identity,
        &metrics,
        &supervisor,
    );
    if stop.run_until_cancelled(world.surroundings_seen()).await.is_some_and(|seen| seen.is_ok()) {
        ready.send_replace(true);
    }

    let mut leadership = Leadership::new(strict, lease);
    leadership.acquire(&stop).await;
    let ended = if stop.is_cancelled() { Ok(()) } else { lead(world, &mut leadership, &metrics, stop).await };
    base.cancel();
    supervisor.ended().await;
    ended
}

fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to end");
        stop.cancel();
    });
    Ok(())
}

/// Waits until the custom resources are there.
async fn resources_exist(client: &Client, scope: &Scope) {
    loop {
        let Err(error) = list_one(client, scope).await else { return };
        tracing::warn!("the custom resources cannot be listed; are they installed? {}", story(&error));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn list_one(client: &Client, scope: &Scope) -> kube::Result<()> {
    let one = ListParams::default().limit(1);
    for api in scope.apis::<PageserverPool>(client) {
        api.list_metadata(&one).await?;
    }
    for api in scope.apis::<Tenant>(client) {
        api.list_metadata(&one).await?;
    }
    for api in scope.apis::<Timeline>(client) {
        api.list_metadata(&one).await?;
    }
    Ok(())
}

/// Leads until told to stop, or until someone else does.
async fn lead(
    world: World,
    leadership: &mut Leadership,
    metrics: &Metrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    metrics.leader.set(1);
    // Passes end by themselves when told to stop, and at once when the lease is lost.
    let lost = CancellationToken::new();
    let working = CancellationToken::new();
    let lease = leadership.keep(&working);
    let work = lost.run_until_cancelled(async {
        world.reconcile(stop).await;
        working.cancel();
    });
    let (kept, _) = tokio::join!(
        async {
            let kept = lease.await;
            lost.cancel();
            kept
        },
        work
    );
    metrics.leader.set(0);
    kept.context("another operator leads, or nobody can: start again")
}
