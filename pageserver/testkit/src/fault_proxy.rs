//! A proxy between a pageserver and its bucket (or its source) that can be told to misbehave.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the proxy does to connections from now on. A change also ends the connections of before, except for a change
/// between [`Fault::None`], [`Fault::Slow`], [`Fault::Stall`] and [`Fault::StallAt`], which they follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: passes bytes on.
    None,
    /// Closes every connection at once.
    Refuse,
    /// Answers every HTTP request with this status and no body.
    Status(u16),
    /// Passes at most this many bytes on each second and direction.
    Slow {
        /// Bytes a second.
        bytes_a_second: u64,
    },
    /// Takes bytes and passes none on.
    Stall,
    /// The same, from bytes on that hold this text. They are passed on later also when their sender is gone by then.
    StallAt(&'static str),
    /// Passes this many bytes of answers on in each connection, then cuts it.
    CutAfter {
        /// Bytes of answers.
        bytes: u64,
    },
}

impl Fault {
    fn is_gentle(self) -> bool {
        matches!(self, Fault::None | Fault::Slow { .. } | Fault::Stall | Fault::StallAt(_))
    }

    fn stalls(self, bytes: &[u8]) -> bool {
        match self {
            Fault::Stall => true,
            Fault::StallAt(text) => bytes.windows(text.len()).any(|window| window == text.as_bytes()),
            _ => false,
        }
    }
}

/// The proxy. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    fault: watch::Sender<Fault>,
    stalled: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl FaultProxy {
    /// Listens on a port of its own and passes on to `127.0.0.1:<target>`.
    pub async fn start(target: u16) -> Result<FaultProxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (fault, faults) = watch::channel(Fault::None);
        let (stalls, stalled) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, target, faults.clone(), stalls.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(FaultProxy { port, fault, stalled, _tasks: tasks })
    }

    /// From now on, this fault.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Waits until bytes were stalled, at any time since the start.
    pub async fn has_stalled(&self) {
        let mut stalled = self.stalled.clone();
        stalled.wait_for(|count| *count > 0).await.ok();
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn serve(
    client: TcpStream,
    target: u16,
    mut faults: watch::Receiver<Fault>,
    stalls: watch::Sender<usize>,
) {
    let fault = *faults.borrow_and_update();
    match fault {
        Fault::Refuse => {}
        Fault::Status(status) => answer_each(client, status, faults).await,
        Fault::None | Fault::Slow { .. } | Fault::Stall | Fault::StallAt(_) | Fault::CutAfter { .. } => {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
            client.set_nodelay(true).ok();
            server.set_nodelay(true).ok();
            let limit = if let Fault::CutAfter { bytes } = fault { bytes } else { u64::MAX };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = changes_from(fault, faults.clone()) => {}
                () = pass(from_server, to_client, limit, faults.clone(), &stalls) => {}
                // A client that stops sending still reads its answer.
                () = async { pass(from_client, to_server, u64::MAX, faults, &stalls).await; std::future::pending().await } => {}
            }
        }
    }
}

/// Returns when the fault becomes one that old connections must not outlive.
async fn changes_from(first: Fault, mut faults: watch::Receiver<Fault>) {
    loop {
        let now = *faults.borrow_and_update();
        if now != first && !(now.is_gentle() && first.is_gentle()) {
            return;
        }
        if faults.changed().await.is_err() {
            return;
        }
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut limit: u64,
    mut faults: watch::Receiver<Fault>,
    stalls: &watch::Sender<usize>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let fault = *faults.borrow_and_update();
        match fault {
            stall if stall.stalls(&buffer[..length]) => {
                stalls.send_modify(|count| *count += 1);
                // Nothing passes until the fault is another; what was read is kept.
                while *faults.borrow_and_update() == stall {
                    if faults.changed().await.is_err() {
                        return;
                    }
                }
            }
            Fault::Slow { bytes_a_second } => {
                let wait = Duration::from_secs_f64(length as f64 / bytes_a_second.max(1) as f64);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = faults.changed() => {}
                }
            }
            _ => {}
        }
        let passed = length.min(usize::try_from(limit).unwrap_or(usize::MAX));
        if to.write_all(&buffer[..passed]).await.is_err() {
            break;
        }
        limit -= passed as u64;
        if limit == 0 {
            break;
        }
    }
    to.shutdown().await.ok();
}

/// Reads requests, bodies and all, and answers each with `status`.
async fn answer_each(mut client: TcpStream, status: u16, mut faults: watch::Receiver<Fault>) {
    // One answer a connection: reading on to find the next request would need all of HTTP's framing.
    let mut head = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let whole_head = async {
        while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 64 * 1024 {
            match client.read(&mut buffer).await {
                Ok(length @ 1..) => head.extend_from_slice(&buffer[..length]),
                _ => return,
            }
        }
        let answer = format!("HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        client.write_all(answer.as_bytes()).await.ok();
        // Closing with unread bytes would reset the connection and lose the answer.
        let drain = async { while matches!(client.read(&mut buffer).await, Ok(1..)) {} };
        tokio::time::timeout(Duration::from_millis(200), drain).await.ok();
    };
    tokio::select! {
        () = whole_head => {}
        _ = faults.changed() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each connection's first bytes with 100,000 bytes, then closes.
    async fn server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0; 16];
                    if matches!(stream.read(&mut byte).await, Ok(1..)) {
                        stream.write_all(&vec![7; 100_000]).await.ok();
                    }
                });
            }
        });
        port
    }

    async fn ask(proxy: &FaultProxy) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        answer
    }

    #[tokio::test]
    async fn each_fault_does_what_it_says() {
        let proxy = FaultProxy::start(server().await).await.unwrap();
        assert_eq!(ask(&proxy).await.len(), 100_000);
        proxy.set(Fault::Refuse);
        assert_eq!(ask(&proxy).await.len(), 0);
        proxy.set(Fault::Status(503));
        assert!(ask(&proxy).await.starts_with(b"HTTP/1.1 503 "));
        proxy.set(Fault::CutAfter { bytes: 1_000 });
        assert_eq!(ask(&proxy).await.len(), 1_000);
        proxy.set(Fault::Slow { bytes_a_second: 400_000 });
        let since = std::time::Instant::now();
        assert_eq!(ask(&proxy).await.len(), 100_000);
        assert!(since.elapsed() > Duration::from_millis(200), "too fast: {:?}", since.elapsed());
        proxy.set(Fault::StallAt("POST"));
        assert_eq!(ask(&proxy).await.len(), 100_000);
        for stall in [Fault::Stall, Fault::StallAt("GET")] {
            proxy.set(stall);
            let asked = ask(&proxy);
            tokio::pin!(asked);
            assert!(tokio::time::timeout(Duration::from_millis(100), &mut asked).await.is_err());
            proxy.has_stalled().await;
            proxy.set(Fault::None);
            assert_eq!(asked.await.len(), 100_000);
        }
    }
}
