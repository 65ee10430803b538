//! Bytes in and out of one connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::wire::{self, HEAD, WireError};

/// Room kept free for reading: a client that pipelines 100 requests gets them all into one read.
const READ_ROOM: usize = 16 << 10;
/// Output beyond this is sent before more is made.
pub const OUTPUT_HIGH: usize = 256 << 10;
/// Buffers larger than this are given back when a connection idles.
const IDLE_BUFFER: usize = 32 << 10;
/// How long a connection is silent before it counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// A client's connection with its buffers.
pub struct Connection<S> {
    stream: S,
    /// Received and not yet consumed.
    pub input: BytesMut,
    /// Made and not yet sent.
    pub output: Vec<u8>,
    /// How much of `output` was sent.
    sent: usize,
    idle_timeout: Duration,
    stop: CancellationToken,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The client closed it.
    #[error("closed by the client")]
    Closed,
    /// Nothing came for too long.
    #[error("nothing received for {0:?}")]
    Idle(Duration),
    /// The server stops.
    #[error("shutdown")]
    Stopping,
    /// It broke.
    #[error("connection broke")]
    Io(#[from] io::Error),
    /// What was received is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Takes a connection over.
    pub fn new(stream: S, idle_timeout: Duration, stop: CancellationToken) -> Self {
        Connection { stream, input: BytesMut::new(), output: Vec::new(), sent: 0, idle_timeout, stop }
    }

    /// Receives what there is, or waits until there is something.
    pub async fn fill(&mut self) -> Result<(), ConnectionError> {
        self.fill_within(self.idle_timeout).await
    }

    /// The same with another limit of patience.
    pub async fn fill_within(&mut self, patience: Duration) -> Result<(), ConnectionError> {
        self.input.reserve(READ_ROOM);
        let first = IDLE_AFTER.min(patience);
        let received = tokio::select! {
            biased;
            received = self.stream.read_buf(&mut self.input) => received,
            () = self.stop.cancelled() => return Err(ConnectionError::Stopping),
            () = tokio::time::sleep(first) => self.fill_when_idle(patience.saturating_sub(first)).await?,
        };
        match received {
            Ok(0) => Err(ConnectionError::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Thousands of silent connections should cost little: gives the buffers' memory back before waiting on.
    async fn fill_when_idle(&mut self, patience: Duration) -> Result<io::Result<usize>, ConnectionError> {
        if self.output.is_empty() && self.output.capacity() > IDLE_BUFFER {
            self.output = Vec::new();
        }
        if self.input.is_empty() {
            self.input = BytesMut::with_capacity(1 << 10);
        }
        tokio::select! {
            biased;
            received = self.stream.read_buf(&mut self.input) => Ok(received),
            () = self.stop.cancelled() => Err(ConnectionError::Stopping),
            () = tokio::time::sleep(patience) => Err(ConnectionError::Idle(self.idle_timeout)),
        }
    }

    /// Waits for the first message; its tag and its body's length. The body is `input[HEAD..][..length]`, to be consumed by
    /// [`Self::consume`].
    pub async fn message(&mut self, limit: usize) -> Result<(u8, usize), ConnectionError> {
        loop {
            if let Some((tag, body)) = wire::frame(&self.input, limit)? {
                return Ok((tag, body.len()));
            }
            self.flush().await?;
            self.fill().await?;
        }
    }

    /// Drops a message whose body has this length from the input.
    pub fn consume(&mut self, body: usize) {
        self.input.advance(HEAD + body);
    }

    /// Sends everything that was made.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        if self.output.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            sent = self.stream.write_all(&self.output[self.sent..]) => sent?,
            () = self.stop.cancelled() => return Err(ConnectionError::Stopping),
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// Sends what was made, within a short time, also while stopping; then nothing more.
    pub async fn close(mut self) {
        let farewell = async {
            let _ = self.stream.write_all(&self.output[self.sent..]).await;
            let _ = self.stream.shutdown().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
    }

    /// Ends when the server stops.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }
}

/// Turns what is written into `CopyData` messages.
pub struct CopyOut<'a, S> {
    connection: &'a mut Connection<S>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> CopyOut<'a, S> {
    /// Writes into this connection.
    pub fn new(connection: &'a mut Connection<S>) -> Self {
        CopyOut { connection }
    }

    fn poll_drain(&mut self, context: &mut Context<'_>, down_to: usize) -> Poll<io::Result<()>> {
        let Connection { stream, output, sent, .. } = &mut *self.connection;
        while output.len() - *sent > down_to {
            let now = ready!(Pin::new(&mut *stream).poll_write(context, &output[*sent..]))?;
            if now == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *sent += now;
        }
        output.drain(..*sent);
        *sent = 0;
        Poll::Ready(Ok(()))
    }
}

/// Bytes of one `CopyData` at most.
const COPY_CHUNK: usize = 64 << 10;

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for CopyOut<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(context, COPY_CHUNK))?;
        let bytes = &bytes[..bytes.len().min(COPY_CHUNK)];
        if !bytes.is_empty() {
            wire::message(&mut self.connection.output, b'd', |out| out.put_slice(bytes));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context, 0))?;
        Pin::new(&mut self.connection.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
