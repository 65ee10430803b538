//! The process from start to end: lock, bind, serve, and on a signal stop accepting, flush, upload, go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use engine::bucket::{BucketConfig, BucketMetrics};
use engine::budget::TailBudget;
use engine::chunk_cache::{CacheLimits, ChunkCache};
use engine::tenant::Tenants;
use engine::timeline::TimelinePolicy;
use engine::wal_keeper::WalKeeping;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::http;
use crate::http::metrics::EngineMetrics;
use crate::http::service::Api;
use crate::libpq::metrics::LibpqMetrics;
use crate::libpq::pagestream::StreamSettings;
use crate::libpq::service::Service;
use crate::libpq::session::SessionSettings;
use crate::logging;
use crate::metrics::ProcessMetrics;
use crate::served::Served;
use crate::source::followers::Followers;
use crate::supervisor::{OnFailure, Supervisor};
use crate::workdir::Workdir;

/// Serves until a signal, or until going on would be wrong. `complaints` are logged first.
pub fn run(config: &Config, complaints: &[String]) -> anyhow::Result<()> {
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
    let outcome = runtime.block_on(serve(config, &workdir, &registry, process));
    // Whatever still runs is past its time; it must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn serve(
    config: &Config,
    workdir: &Workdir,
    registry: &Registry,
    process: ProcessMetrics,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    // Bound first: a port that is taken should not cost a claim.
    let libpq = TcpListener::bind(config.listen_pg_addr)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen_pg_addr))?;
    let http = TcpListener::bind(config.listen_http_addr)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen_http_addr))?;

    let supervisor = Supervisor::new();
    let bucket_metrics = BucketMetrics::new();
    bucket_metrics.register(registry).context("cannot register metrics")?;
    let bucket = BucketConfig::new(config.bucket_url());
    let cancel_bucket = CancellationToken::new();
    let bucket = tokio::select! {
        bucket = bucket.open(bucket_metrics, cancel_bucket.clone()) => bucket.context("cannot open the bucket")?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let limits = CacheLimits { memory: config.cache_memory.0 as usize, disk: config.cache_disk.0 };
    let cache = ChunkCache::new(Arc::clone(&bucket), &workdir.path().join("cache"), limits)
        .context("cannot use the cache directory")?;
    let budget = Arc::new(TailBudget::new(config.tail_memory.0 as usize));
    let policy = TimelinePolicy {
        freeze_bytes: config.layer_size.0 as usize,
        wal: WalKeeping {
            seal_bytes: config.wal_seal_bytes.0 as usize,
            seal_age: config.wal_seal_age.0,
            idle_seal_age: config.wal_idle_seal_age.0,
            validate_every: config.wal_report_every.0,
            ..WalKeeping::default()
        },
        ..TimelinePolicy::default()
    };
    let tenants = Tenants::new(bucket, Arc::clone(&cache), Arc::clone(&budget), policy);
    let mut superseded = tenants.superseded();
    tokio::select! {
        attached = tenants.attach_all() => attached.context("cannot attach the tenants in the bucket")?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let followers =
        Followers::new(tenants.clone(), supervisor.clone(), PathBuf::from(config.passfile.as_str()));
    followers.resume().await;

    tracing::info!(
        libpq = %libpq.local_addr()?,
        http = %http.local_addr()?,
        workdir = %workdir.path().display(),
        bucket = config.bucket,
        tenants = tenants.list().len(),
        "serving"
    );
    let service = Arc::new(Service {
        histories: Served { tenants: tenants.clone(), followers: followers.clone() },
        settings: SessionSettings {
            stream: StreamSettings {
                max_batch: config.max_batch_size,
                wait_lsn_timeout: config.wait_lsn_timeout.0,
            },
            lease_length: config.lsn_lease_length.0,
            shown: Arc::new(config.shown()),
        },
        max_connections: config.max_connections,
        idle_timeout: config.idle_timeout.0,
        metrics: LibpqMetrics::register(registry),
    });
    let listener = Arc::new(libpq);
    supervisor.start("page service", OnFailure::Restart, move |stop| {
        Arc::clone(&service).run(Arc::clone(&listener), stop)
    });
    let api = Arc::new(Api {
        id: config.id,
        tenants: tenants.clone(),
        followers,
        supervisor: supervisor.clone(),
        cache,
        budget,
        registry: registry.clone(),
        process,
        engine: EngineMetrics::register(registry),
        lease_length: config.lsn_lease_length.0,
        base_dir: config.base_dir.clone(),
        launched: SystemTime::now(),
    });
    let listener = Arc::new(http);
    supervisor.start("http", OnFailure::Restart, move |stop| {
        http::service::run(Arc::clone(&api), Arc::clone(&listener), stop)
    });

    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        // Every bit of state here may be stale; the newer owner has what counts.
        story = superseded.wait_for(Option::is_some) => {
            let story = story.ok().and_then(|story| story.clone()).unwrap_or_default();
            bail!("{story}");
        }
    };
    tracing::info!("{name}: stopping within {}", config.shutdown_timeout);
    tokio::select! {
        () = stop_all(&supervisor, &tenants, config.shutdown_timeout.0) => {}
        _ = terminate.recv() => tracing::warn!("second signal: leaving at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: leaving at once"),
    }
    cancel_bucket.cancel();
    Ok(())
}

/// First nothing more comes in, then what is here is stored. Whatever is not stored in time is stored from the source's WAL later.
async fn stop_all(supervisor: &Supervisor, tenants: &Tenants, within: Duration) {
    let until = Instant::now() + within.saturating_sub(Duration::from_millis(200));
    if !supervisor.shut_down(within / 3).await {
        tracing::warn!("some tasks did not end in time");
    }
    if !tenants.shut_down(until.saturating_duration_since(Instant::now())).await {
        tracing::warn!("not everything was stored in time; the next start reads it from the source again");
    }
}
