//! Accepts connections and gives each a task of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::connection::Connection;
use super::metrics::LibpqMetrics;
use super::session::{self, SessionSettings};
use super::startup::{self, Early};
use super::wire;
use crate::histories::Histories;
use crate::tls::Tls;

/// How long a client may take to ask for TLS.
const EARLY_PATIENCE: Duration = Duration::from_secs(10);

/// Pause after a failed accept, which most often means that file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the page service runs with.
pub struct Service<H> {
    /// What it serves.
    pub histories: H,
    /// How.
    pub settings: SessionSettings,
    /// For everybody, or nobody.
    pub tls: Option<Tls>,
    /// Connections at once.
    pub max_connections: usize,
    /// A connection that is silent for so long is closed.
    pub idle_timeout: Duration,
    /// What it counts.
    pub metrics: LibpqMetrics,
}

impl<H: Histories> Service<H> {
    /// Accepts until told to stop, then waits for the connections to end, which `stop` tells them to do.
    pub async fn run(self: Arc<Self>, listener: Arc<TcpListener>, stop: CancellationToken) -> io::Result<()> {
        let seats = Arc::new(Semaphore::new(self.max_connections));
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(seat) = seats.clone().try_acquire_owned() else {
                self.metrics.connections_refused.inc();
                connections.spawn(turn_away(stream));
                continue;
            };
            let (this, stop) = (self.clone(), stop.clone());
            let span = tracing::info_span!("libpq", %peer);
            connections.spawn(
                async move {
                    let _counted = Counted::new(&this.metrics);
                    this.serve(stream, stop).await;
                    drop(seat);
                }
                .instrument(span),
            );
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }

    async fn serve(&self, stream: TcpStream, stop: CancellationToken) {
        // A peer that vanished without a word is noticed by the kernel's probes, or by the idle timeout.
        let options = stream.set_nodelay(true);
        if let Err(error) = options.and_then(|()| socket2::SockRef::from(&stream).set_keepalive(true)) {
            tracing::debug!("cannot set socket options: {error}");
        }
        let Some(tls) = &self.tls else { return self.converse(stream, stop).await };
        let secured = tokio::select! {
            secured = within_tls(stream, tls) => secured,
            () = stop.cancelled() => return,
        };
        match secured {
            Ok(Some(stream)) => self.converse(stream, stop).await,
            Ok(None) => {}
            Err(error) => tracing::debug!("no TLS: {error}"),
        }
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send>(&self, stream: S, stop: CancellationToken) {
        let connection = Connection::new(stream, self.idle_timeout, stop);
        if let Some(end) = session::serve(connection, &self.histories, &self.settings, &self.metrics).await {
            tracing::info!("connection ended: {}", engine::error_story::error_story(&end));
        }
    }
}

/// Has the client ask for TLS, and does the handshake. `None` when it was turned away.
async fn within_tls(mut stream: TcpStream, tls: &Tls) -> io::Result<Option<TlsStream<TcpStream>>> {
    let asked = async {
        loop {
            // Long enough for each request that stands before a startup packet, and for the beginning of that.
            let mut first = [0; 8];
            stream.read_exact(&mut first).await?;
            match startup::early_request(first) {
                Some(Early::Tls) => {
                    stream.write_all(b"S").await?;
                    return Ok::<_, io::Error>(true);
                }
                Some(Early::Gss) => stream.write_all(b"N").await?,
                None => return Ok(false),
            }
        }
    };
    let asked = tokio::time::timeout(EARLY_PATIENCE, asked).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if asked {
        return tls.accept(stream).await.map(Some);
    }
    let mut output = Vec::new();
    wire::error_response(&mut output, "28000", "TLS is required");
    stream.write_all(&output).await?;
    stream.shutdown().await?;
    Ok(None)
}

/// Counts a connection's end however it ends.
struct Counted<'a>(&'a LibpqMetrics);

impl<'a> Counted<'a> {
    fn new(metrics: &'a LibpqMetrics) -> Self {
        metrics.connections_started.inc();
        Counted(metrics)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections_finished.inc();
    }
}

async fn turn_away(mut stream: TcpStream) {
    let mut output = Vec::new();
    wire::error_response(&mut output, "53300", "too many connections");
    let farewell = async {
        let _ = stream.write_all(&output).await;
        let _ = stream.shutdown().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
}
