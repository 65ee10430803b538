//! Accepts connections and gives each a task of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::connection::Connection;
use super::metrics::LibpqMetrics;
use super::session::{self, SessionSettings};
use super::wire;
use crate::histories::Histories;

/// Pause after a failed accept, which most often means that file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the page service runs with.
pub struct Service<H> {
    /// What it serves.
    pub histories: H,
    /// How.
    pub settings: SessionSettings,
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
        let connection = Connection::new(stream, self.idle_timeout, stop);
        if let Some(end) = session::serve(connection, &self.histories, &self.settings, &self.metrics).await {
            tracing::info!("connection ended: {}", engine::error_story::error_story(&end));
        }
    }
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
