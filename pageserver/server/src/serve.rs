//! The process from start to end: lock, bind, serve, and on a signal stop accepting, flush, upload, go.

use std::time::Duration;

use anyhow::Context as _;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::logging;
use crate::metrics::ProcessMetrics;
use crate::supervisor::Supervisor;
use crate::workdir::Workdir;

/// Serves until a signal, or until going on would be wrong. `complaints` are logged first.
pub fn run(config: Config, complaints: &[String]) -> anyhow::Result<()> {
    let registry = Registry::new();
    let process = ProcessMetrics::register(&registry);
    logging::start(config.log_format, &config.log_filter, process.log_events.clone());
    logging::log_panics();
    for complaint in complaints {
        tracing::warn!("{complaint}");
    }
    let workdir = Workdir::lock(&config.workdir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("pageserver")
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(&config, &workdir, &registry, process));
    // Whatever still runs is past its time; it must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn serve(
    config: &Config,
    workdir: &Workdir,
    _registry: &Registry,
    _process: ProcessMetrics,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let libpq = TcpListener::bind(config.listen_pg_addr)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen_pg_addr))?;
    let http = TcpListener::bind(config.listen_http_addr)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen_http_addr))?;
    let supervisor = Supervisor::new();
    tracing::info!(
        libpq = %libpq.local_addr()?,
        http = %http.local_addr()?,
        workdir = %workdir.path().display(),
        bucket = config.bucket,
        "listening"
    );

    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{name}: stopping within {}", config.shutdown_timeout);
    drop((libpq, http));
    tokio::select! {
        done = supervisor.shut_down(config.shutdown_timeout.0) => {
            if !done {
                tracing::warn!("some tasks did not end in time");
            }
        }
        _ = terminate.recv() => tracing::warn!("second signal: leaving at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: leaving at once"),
    }
    Ok(())
}
