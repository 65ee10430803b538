//! TLS of what is listened on, with certificates that are read again when they change.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How often files of certificates and keys are looked at.
pub const READ_EVERY: Duration = Duration::from_secs(10);
/// How long a peer may take over a handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes at once; further peers wait in the kernel's queue.
const MOST_HANDSHAKES: usize = 256;
/// Pause after a failed accept, which most often means that file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where certificates are, in PEM form.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Ours, with those that lead to a root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who vouches for clients; `None` where they need no certificate.
    pub client_roots: Option<PathBuf>,
    /// The protocol that is spoken inside.
    pub protocol: &'static str,
}

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not in PEM form.
    #[error("cannot use {path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The parts do not fit.
    #[error("the certificate, its key and the roots do not fit")]
    Config(#[from] rustls::Error),
    /// The roots are none.
    #[error("the roots of clients cannot be used")]
    Roots(#[from] rustls::server::VerifierBuilderError),
}

/// A configuration that follows its files. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    files: Arc<TlsFiles>,
    current: Arc<ArcSwap<ServerConfig>>,
}

impl Tls {
    /// Of files that must be there and fit now.
    pub fn read(files: TlsFiles) -> Result<Tls, TlsError> {
        let config = config_of(&files)?;
        Ok(Tls { files: Arc::new(files), current: Arc::new(ArcSwap::from_pointee(config)) })
    }

    /// Follows the files, and looks at them so often. Ones that cannot be used change nothing; new connections have what was read last.
    pub async fn keep(
        self,
        every: Duration,
        stop: CancellationToken,
    ) -> Result<(), std::convert::Infallible> {
        let mut known = contents(&self.files);
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => return Ok(()),
            }
            let now = contents(&self.files);
            if now == known {
                continue;
            }
            match config_of(&self.files) {
                Ok(config) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "the certificate changed");
                    self.current.store(Arc::new(config));
                    known = now;
                }
                // Half of it may be written; it is looked at again.
                Err(error) => tracing::warn!("the certificate stays as it was: {error}"),
            }
        }
    }

    /// Does the handshake with a peer.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await {
            Ok(accepted) => accepted,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn contents(files: &TlsFiles) -> Vec<Option<Vec<u8>>> {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_roots.as_ref()];
    paths.into_iter().flatten().map(|path| std::fs::read(path).ok()).collect()
}

fn config_of(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unusable(&files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &files.client_roots {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![files.protocol.as_bytes().to_vec()];
    Ok(config)
}

/// The certificates of a PEM file; at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(unusable(path, &"it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: reason.to_string() }
}

/// A connection that was accepted.
pub enum Accepted {
    /// As it is.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connections of a listener, after their handshakes: a peer that is slow with its own keeps nobody else waiting.
pub struct Incoming {
    listener: Arc<TcpListener>,
    tls: Option<Tls>,
    /// What a client's certificate must be made out to.
    client_name: Option<ServerName<'static>>,
    handshakes: FuturesUnordered<BoxFuture<'static, io::Result<TlsStream<TcpStream>>>>,
}

impl Incoming {
    /// Of a listener that may outlive this.
    pub fn new(
        listener: Arc<TcpListener>,
        tls: Option<Tls>,
        client_name: Option<ServerName<'static>>,
    ) -> Incoming {
        Incoming { listener, tls, client_name, handshakes: FuturesUnordered::new() }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection. Peers that fail their handshakes are dropped.
    pub async fn next(&mut self) -> Accepted {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.handshakes.len() < MOST_HANDSHAKES => match accepted {
                    Ok((stream, peer)) => {
                        stream.set_nodelay(true).ok();
                        let Some(tls) = self.tls.clone() else { return Accepted::Plain(stream) };
                        tracing::trace!(%peer, "handshake");
                        self.handshakes.push(Box::pin(async move { tls.accept(stream).await }));
                    }
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(done) = self.handshakes.next() => match done {
                    Ok(stream) if self.is_expected(&stream) => return Accepted::Tls(Box::new(stream)),
                    Ok(_) => tracing::warn!("a client's certificate is made out to somebody else"),
                    Err(error) => tracing::debug!("a handshake failed: {error}"),
                },
            }
        }
    }

    fn is_expected(&self, stream: &TlsStream<TcpStream>) -> bool {
        let Some(name) = &self.client_name else { return true };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        certificate.is_some_and(|certificate| {
            webpki::EndEntityCert::try_from(certificate)
                .is_ok_and(|certificate| certificate.verify_is_valid_for_subject_name(name).is_ok())
        })
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Accepted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Accepted, SocketAddr) {
        let accepted = self.next().await;
        let stream = match &accepted {
            Accepted::Plain(stream) => stream,
            Accepted::Tls(stream) => stream.get_ref().0,
        };
        // A peer that is gone already; nobody asks for its address.
        let peer = stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        (accepted, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Incoming::local_addr(self)
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Accepted::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Accepted::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Accepted::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Accepted::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Accepted::Plain(stream) => Pin::new(stream).poll_flush(context),
            Accepted::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Accepted::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Accepted::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl tonic::transport::server::Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use rustls::ClientConfig;
    use testkit::certificate::Issuer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;

    use super::*;

    fn issuer() -> Issuer {
        Issuer::new("who vouches in tests").unwrap()
    }

    struct Home {
        folder: tempfile::TempDir,
        files: TlsFiles,
    }

    impl Home {
        fn new(server: &Issuer, clients: Option<&Issuer>) -> Home {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            let client_roots = clients.map(|issuer| {
                std::fs::write(at("ca.crt"), issuer.pem()).unwrap();
                at("ca.crt")
            });
            let files =
                TlsFiles { certificate: at("tls.crt"), key: at("tls.key"), client_roots, protocol: "h2" };
            let home = Home { folder, files };
            home.issue(server, "server.test");
            home
        }

        fn issue(&self, issuer: &Issuer, name: &str) {
            let (certificate, key) = issuer.issue(name).unwrap();
            std::fs::write(self.folder.path().join("tls.crt"), certificate).unwrap();
            std::fs::write(self.folder.path().join("tls.key"), key).unwrap();
        }
    }

    async fn echo(tls: Tls, client_name: Option<&'static str>) -> SocketAddr {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let name = client_name.map(|name| ServerName::try_from(name).unwrap());
        let mut incoming = Incoming::new(listener, Some(tls), name);
        let address = incoming.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let mut stream = incoming.next().await;
                tokio::spawn(async move {
                    let mut bytes = [0; 4];
                    if stream.read_exact(&mut bytes).await.is_ok() {
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.shutdown().await;
                    }
                });
            }
        });
        address
    }

    async fn ask(
        address: SocketAddr,
        roots: &Issuer,
        name: &'static str,
        own: Option<(String, String)>,
    ) -> io::Result<[u8; 4]> {
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from_pem_slice(roots.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(store);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name).unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_client_is_let_in_with_a_certificate_of_the_right_name_and_issuer_only() {
        let (issuer, stranger) = (issuer(), issuer());
        let home = Home::new(&issuer, Some(&issuer));
        let address = echo(Tls::read(home.files.clone()).unwrap(), Some("operator.test")).await;
        let operator = issuer.issue("operator.test").unwrap();
        assert_eq!(ask(address, &issuer, "server.test", Some(operator)).await.unwrap(), *b"ping");
        for own in
            [None, Some(issuer.issue("other.test").unwrap()), Some(stranger.issue("operator.test").unwrap())]
        {
            assert!(ask(address, &issuer, "server.test", own).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_keeps_nobody_waiting() {
        let issuer = issuer();
        let home = Home::new(&issuer, None);
        let address = echo(Tls::read(home.files.clone()).unwrap(), None).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(ask(address, &issuer, "server.test", None).await.unwrap(), *b"ping");
    }

    #[tokio::test]
    async fn a_certificate_that_changes_is_shown_soon_and_half_a_one_changes_nothing() {
        let issuer = issuer();
        let home = Home::new(&issuer, None);
        let tls = Tls::read(home.files.clone()).unwrap();
        let address = echo(tls.clone(), None).await;
        let stop = CancellationToken::new();
        let every = Duration::from_millis(5);
        let keeper = tokio::spawn(tls.keep(every, stop.clone()));
        std::fs::write(&home.files.key, "half").unwrap();
        tokio::time::sleep(every * 20).await;
        assert!(ask(address, &issuer, "server.test", None).await.is_ok());
        home.issue(&issuer, "renamed.test");
        tokio::time::sleep(every * 20).await;
        assert!(ask(address, &issuer, "renamed.test", None).await.is_ok());
        stop.cancel();
        let _ = keeper.await;
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let issuer = issuer();
        let home = Home::new(&issuer, None);
        let absent = TlsFiles { key: home.folder.path().join("absent"), ..home.files.clone() };
        assert!(matches!(Tls::read(absent).map(|_| ()), Err(TlsError::File { .. })));
        std::fs::write(&home.files.key, issuer.issue("server.test").unwrap().1).unwrap();
        assert!(matches!(Tls::read(home.files.clone()).map(|_| ()), Err(TlsError::Config(_))));
    }
}
