//! The process from start to end: lock, bind, serve, and on a signal stop accepting, flush, upload, go.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use engine::bucket::{BucketConfig, BucketMetrics};
use engine::budget::TailBudget;
use engine::chunk_cache::{CacheLimits, ChunkCache, Watermarks};
use engine::clock::SystemClock;
use engine::disk::LocalDisk;
use engine::heatmap::{HeatMapPolicy, HeatMaps};
use engine::ports::Bucket;
use engine::tenant::Tenants;
use engine::timeline::TimelinePolicy;
use engine::wal_keeper::WalKeeping;
use engine::wal_memory::WalMemory;
use prometheus::Registry;
use rustls_pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::auth::Keys;
use crate::config::{ConditionalWrites, Config};
use crate::consumption::Consumption;
use crate::consumption::delivery::ConsumptionMetrics;
use crate::control;
use crate::control::board::{Board, BoardSources};
use crate::control::listen::{Bearer, Guard};
use crate::control::service::{Control, Pod};
use crate::control::storage::StorageWatch;
use crate::drain::DrainFiles;
use crate::http;
use crate::http::metrics::EngineMetrics;
use crate::http::service::Api;
use crate::libpq::metrics::LibpqMetrics;
use crate::libpq::pagestream::StreamSettings;
use crate::libpq::service::Service;
use crate::libpq::session::SessionSettings;
use crate::logging;
use crate::metrics::ProcessMetrics;
use crate::served::{Readers, Served};
use crate::sizes::{self, SizeMetrics};
use crate::source::conninfo::Secrets;
use crate::source::followers::Followers;
use crate::supervisor::{OnFailure, Supervisor};
use crate::tls::{READ_EVERY, Tls};
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

    let control = match config.control_addr() {
        Some(addr) => {
            let listener =
                TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
            Some((listener, guard_of(config)?))
        }
        None => None,
    };
    let tls = |protocol| config.client_tls(protocol).map(Tls::read).transpose().context("cannot offer TLS");
    let (libpq_tls, http_tls) = (tls("postgresql")?, tls("http/1.1")?);
    let keys = match config.jwt_public_key_dir.as_str() {
        "" => None,
        path => Some(Keys::read(Path::new(path)).context("cannot use the keys of tokens")?),
    };
    let drain = DrainFiles::of(workdir.path());
    drain.forget().context("cannot use the working directory")?;

    let supervisor = Supervisor::new();
    for (name, tls) in [("certificate of libpq", &libpq_tls), ("certificate of http", &http_tls)] {
        if let Some(tls) = tls.clone() {
            supervisor.start(name, OnFailure::Restart, move |stop| tls.clone().keep(READ_EVERY, stop));
        }
    }
    if let Some(keys) = keys.clone() {
        supervisor
            .start("keys of tokens", OnFailure::Restart, move |stop| keys.clone().keep(READ_EVERY, stop));
    }
    let bucket_metrics = BucketMetrics::new();
    bucket_metrics.register(registry).context("cannot register metrics")?;
    let bucket = BucketConfig::new(config.bucket_url());
    let cancel_bucket = CancellationToken::new();
    let open_bucket = async {
        let cancel = cancel_bucket.clone();
        // Under an operator, a bucket that cannot be used is told and asked again.
        match &control {
            Some(_) => bucket.connect(bucket_metrics, cancel).await,
            None => bucket.open(bucket_metrics, cancel).await,
        }
    };
    let bucket = tokio::select! {
        bucket = open_bucket => bucket.context("cannot open the bucket")?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let limits = CacheLimits {
        memory: config.cache_memory.0 as usize,
        index_memory: config.cache_index_memory.0 as usize,
        disk: config.cache_disk.0,
        watermarks: Watermarks {
            most_used_percent: config.cache_disk_most_used,
            least_free: config.cache_disk_least_free.0,
        },
    };
    let cache =
        ChunkCache::new(Arc::clone(&bucket), Arc::new(LocalDisk::new(workdir.path().join("cache"))), limits)
            .context("cannot use the cache directory")?;
    let budget = Arc::new(TailBudget::new(config.tail_memory.0 as usize));
    let policy = TimelinePolicy {
        freeze_bytes: config.layer_size.0 as usize,
        wal: WalKeeping {
            seal_bytes: config.wal_seal_bytes.0 as usize,
            seal_age: config.wal_seal_age.0,
            idle_seal_age: config.wal_idle_seal_age.0,
            validate_every: config.wal_report_every.0,
            // Beside the tails that are made of it.
            memory: WalMemory::new(config.tail_memory.0 as usize / 4),
            ..WalKeeping::default()
        },
        max_l0: config.maintenance().map(|maintenance| maintenance.compaction.l0_limit),
        ..TimelinePolicy::default()
    };
    let tenants = Tenants::new(
        Arc::clone(&bucket),
        Arc::clone(&cache),
        Arc::clone(&budget),
        policy,
        Arc::new(SystemClock),
    );
    tenants.reads().register(registry).context("cannot register metrics")?;
    let compaction = config.maintenance().map(|maintenance| maintenance.compaction).unwrap_or_default();
    start_cache(&supervisor, config, &tenants, &cache);
    let mut superseded = tenants.superseded();
    let secrets = Secrets {
        passfile: config.passfile.clone().into(),
        directory: config.credentials_dir.clone().into(),
    };
    let followers = Followers::new(tenants.clone(), supervisor.clone(), secrets);
    let is_operated = control.is_some();
    if !is_operated {
        tokio::select! {
            attached = tenants.attach_all() => attached.context("cannot attach the tenants in the bucket")?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        followers.resume().await;
    }
    let readers = Readers::default();
    if let Some(maintenance) = config.maintenance() {
        let tenants = tenants.clone();
        supervisor.start("maintenance", OnFailure::Restart, move |stop| {
            let (tenants, maintenance) = (tenants.clone(), maintenance.clone());
            async move {
                tenants.maintain(maintenance, stop).await;
                Ok::<_, std::convert::Infallible>(())
            }
        });
    }

    tracing::info!(
        libpq = %libpq.local_addr()?,
        http = %http.local_addr()?,
        workdir = %workdir.path().display(),
        bucket = config.bucket,
        tenants = tenants.list().len(),
        "serving"
    );
    let service = Arc::new(Service {
        histories: Served {
            tenants: tenants.clone(),
            followers: followers.clone(),
            readers: readers.clone(),
        },
        settings: SessionSettings {
            stream: StreamSettings {
                max_batch: config.max_batch_size,
                wait_lsn_timeout: config.wait_lsn_timeout.0,
            },
            lease_length: config.lsn_lease_length.0,
            shown: Arc::new(config.shown()),
            keys: keys.clone(),
        },
        tls: libpq_tls,
        max_connections: config.max_connections,
        idle_timeout: config.idle_timeout.0,
        metrics: LibpqMetrics::register(registry),
    });
    let listener = Arc::new(libpq);
    supervisor.start("page service", OnFailure::Restart, move |stop| {
        Arc::clone(&service).run(Arc::clone(&listener), stop)
    });
    if let Some((listener, guard)) = control {
        let sources = BoardSources {
            tenants: tenants.clone(),
            followers: followers.clone(),
            readers,
            storage: StorageWatch::default(),
            cache: Arc::clone(&cache),
            cache_limit: config.cache_disk.0,
            drain,
        };
        start_control(&supervisor, config, bucket, sources, (listener, guard));
    }
    let (sized, size_metrics) = (tenants.clone(), SizeMetrics::register(registry));
    let size_every = config.synthetic_size_calculation_interval.0;
    supervisor.start("synthetic sizes", OnFailure::Restart, move |stop| {
        sizes::keep(sized.clone(), size_metrics.clone(), size_every, stop)
    });
    if let Some(sink) = config.consumption_sink() {
        let consumption = Consumption {
            tenants: tenants.clone(),
            sink,
            every: config.metric_collection_interval.0,
            server: if config.pod_name.is_empty() { config.id.to_string() } else { config.pod_name.clone() },
            metrics: ConsumptionMetrics::register(registry),
        };
        supervisor.start("consumption", OnFailure::Restart, move |stop| consumption.clone().run(stop));
    }
    let api = Arc::new(Api {
        id: config.id,
        keys,
        is_operated,
        tenants: tenants.clone(),
        followers,
        supervisor: supervisor.clone(),
        cache,
        budget,
        registry: registry.clone(),
        process,
        engine: EngineMetrics::register(registry, config.timeline_gauges, compaction),
        lease_length: config.lsn_lease_length.0,
        base_dir: config.base_dir.clone(),
        launched: SystemTime::now(),
    });
    let listener = Arc::new(http);
    supervisor.start("http", OnFailure::Restart, move |stop| {
        http::service::run(Arc::clone(&api), Arc::clone(&listener), http_tls.clone(), stop)
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

/// What the cache does by itself: keeping within its limits, and heat maps.
fn start_cache(supervisor: &Supervisor, config: &Config, tenants: &Tenants, cache: &Arc<ChunkCache>) {
    let policy = HeatMapPolicy { period: config.heatmap_period.0, warm_up_rate: config.warm_up_rate.0 };
    let maps = HeatMaps::new(tenants.clone(), Arc::clone(cache), policy);
    let cache = Arc::clone(cache);
    supervisor.start("cache", OnFailure::Restart, move |stop| done(Arc::clone(&cache).keep(stop)));
    let saved = maps.clone();
    supervisor.start("heat maps", OnFailure::Restart, move |stop| done(saved.clone().save(stop)));
    supervisor.start("warm-up", OnFailure::Restart, move |stop| done(maps.clone().warm_up(stop)));
}

/// Work that cannot fail.
async fn done(work: impl Future<Output = ()>) -> Result<(), Infallible> {
    work.await;
    Ok(())
}

/// How operators show that they are ours.
fn guard_of(config: &Config) -> anyhow::Result<Guard> {
    let Some(files) = config.control_tls() else {
        let file = &config.control_token_file;
        let bearer = Bearer::read(Path::new(file)).with_context(|| format!("cannot use {file}"))?;
        tracing::warn!(
            "the control API has no TLS: whoever reads its traffic or {file} can delete all history"
        );
        return Ok(Guard::Token(bearer));
    };
    let name = config.control_client_name.clone();
    let name = ServerName::try_from(name).context("setting control_client_name is no DNS name")?;
    let tls = Tls::read(files).context("cannot offer the control API")?;
    Ok(Guard::Certificate(tls, name))
}

/// What an operator needs: the calls, what is told of us, and whether the bucket can be trusted.
fn start_control(
    supervisor: &Supervisor,
    config: &Config,
    bucket: Arc<dyn Bucket>,
    sources: BoardSources,
    (listener, guard): (TcpListener, Guard),
) {
    let instance = hex::encode(rand::random::<u64>().to_be_bytes());
    tracing::info!(instance, "waiting for an operator");
    let board = Board::new(instance, sources.clone());
    let control = Control {
        tenants: sources.tenants,
        followers: sources.followers,
        board: board.clone(),
        storage: sources.storage.clone(),
        pod: Pod { name: config.pod_name.clone(), uid: config.pod_uid.clone() },
        lease_length: config.lsn_lease_length.0,
    };
    let storage = sources.storage;
    let required = config.conditional_writes == ConditionalWrites::Required;
    if let Guard::Certificate(tls, _) = &guard {
        let tls = tls.clone();
        supervisor.start("certificate of control", OnFailure::Restart, move |stop| {
            tls.clone().keep(READ_EVERY, stop)
        });
    }
    supervisor.start("bucket probe", OnFailure::Restart, move |stop| {
        storage.clone().find_out(Arc::clone(&bucket), required, stop)
    });
    supervisor.start("status board", OnFailure::Restart, move |stop| board.clone().keep(stop));
    let listener = Arc::new(listener);
    supervisor.start("control", OnFailure::Restart, move |stop| {
        control::listen::run(control.clone(), guard.clone(), Arc::clone(&listener), stop)
    });
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
