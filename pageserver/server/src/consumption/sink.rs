//! Where events go: an HTTP endpoint, or a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, FutureExt as _};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::event::Event;
use crate::tls::certificates;

/// Most bytes of an answer that are looked at, for a message.
const ANSWER_LIMIT: usize = 4 << 10;

/// Where the roots of certificates are on most systems.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `http://` or `https://`: events are posted there.
    Http(Uri),
    /// `file://`: events are appended, a line each.
    File(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("file://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Endpoint::File(path))
            } else {
                Err("expected file:///path".into())
            };
        }
        let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(_)) => Ok(Endpoint::Http(uri)),
            _ => Err("expected http://, https:// or file:///path".into()),
        }
    }
}

/// What became of events that were sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Whether they were taken is not known, or they were not: they may be sent again.
    #[error("{0}")]
    Later(String),
    /// They are refused, and would be again.
    #[error("{0}")]
    Refused(String),
}

fn later(error: impl std::fmt::Display) -> SendError {
    SendError::Later(error.to_string())
}

/// Sends events.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Where to.
    pub endpoint: Endpoint,
    /// File of the roots of the endpoint's certificate; `None`: the system's.
    pub roots: Option<PathBuf>,
    /// File of a token that the endpoint wants to see.
    pub token: Option<PathBuf>,
    /// How long the endpoint may take for one answer.
    pub timeout: Duration,
}

impl Sink {
    /// Sends events; `Ok` when they were taken.
    pub async fn send(&self, events: &[Event]) -> Result<(), SendError> {
        match &self.endpoint {
            Endpoint::Http(uri) => tokio::time::timeout(self.timeout, self.post(uri, events))
                .await
                .unwrap_or_else(|_| Err(later(format_args!("no answer within {:?}", self.timeout)))),
            Endpoint::File(path) => append(path.clone(), events).await,
        }
    }

    /// One connection for each request: there are few, and a broken one never matters.
    async fn post(&self, uri: &Uri, events: &[Event]) -> Result<(), SendError> {
        let body = json!({ "events": events.iter().map(Event::json).collect::<Vec<_>>() }).to_string();
        let host = uri.host().unwrap_or_default();
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, uri.authority().map_or(host, |authority| authority.as_str()))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(file) = &self.token {
            // Read each time: it may be renewed.
            let token = tokio::fs::read_to_string(file).await.map_err(later)?;
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(later)?;
        let stream = TcpStream::connect((bare, port)).await.map_err(later)?;
        if is_tls {
            let connector = TlsConnector::from(Arc::new(self.tls()?));
            let name = ServerName::try_from(bare.to_owned()).map_err(later)?;
            exchange(connector.connect(name, stream).await.map_err(later)?, request).await
        } else {
            exchange(stream, request).await
        }
    }

    fn tls(&self) -> Result<ClientConfig, SendError> {
        let file = match &self.roots {
            Some(file) => file.clone(),
            None => SYSTEM_ROOTS
                .iter()
                .map(PathBuf::from)
                .find(|file| file.exists())
                .ok_or_else(|| later("the system has no file of certificates' roots"))?,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&file).map_err(later)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Ok(builder.map_err(later)?.with_root_certificates(roots).with_no_client_auth())
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(), SendError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(later)?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(later)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        let text =
            body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
        let story = format!("the endpoint answers {status}: {}", text.trim());
        Err(match status {
            // These events are what is wrong. Anything else may be mended without them.
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                SendError::Refused(story)
            }
            _ => SendError::Later(story),
        })
    };
    // When the connection ends first, the request says why.
    let driven = connection.then(|_| std::future::pending::<()>());
    match futures::future::select(std::pin::pin!(asked), std::pin::pin!(driven)).await {
        Either::Left((answered, _)) => answered,
        Either::Right(((), _)) => Err(later("the connection ended")),
    }
}

/// Appends events to a file and waits until the disk has them.
async fn append(path: PathBuf, events: &[Event]) -> Result<(), SendError> {
    let mut lines = String::new();
    for event in events {
        lines.push_str(&event.json().to_string());
        lines.push('\n');
    }
    let write = move || {
        let mut file = std::fs::File::options().append(true).create(true).open(&path)?;
        // What an earlier attempt left of a line would spoil the next.
        if is_cut(&path)? {
            file.write_all(b"\n")?;
        }
        file.write_all(lines.as_bytes())?;
        file.sync_data()
    };
    tokio::task::spawn_blocking(write).await.map_err(later)?.map_err(later)
}

/// Whether a file ends within a line.
fn is_cut(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path)?;
    let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte[0] != b'\n')
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use testkit::certificate::Issuer;
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls::{Incoming, Tls, TlsFiles};

    #[tokio::test]
    async fn over_tls_the_endpoint_shows_who_it_is_and_gets_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (ours, other) = (Issuer::new("ours").unwrap(), Issuer::new("another").unwrap());
        let (certificate, key) = ours.issue("localhost").unwrap();
        for (name, text) in [
            ("tls.crt", certificate),
            ("tls.key", key),
            ("ours.crt", ours.pem()),
            ("other.crt", other.pem()),
            ("token", "sesame\n".into()),
        ] {
            std::fs::write(at(name), text).unwrap();
        }
        let files = TlsFiles {
            certificate: at("tls.crt"),
            key: at("tls.key"),
            client_roots: None,
            protocol: "http/1.1",
        };
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let port = listener.local_addr().unwrap().port();
        let incoming = Incoming::new(listener, Some(Tls::read(files).unwrap()), None);
        let usage = async |headers: HeaderMap| match headers.get(header::AUTHORIZATION) {
            Some(token) if token == "Bearer sesame" => StatusCode::ACCEPTED,
            _ => StatusCode::UNAUTHORIZED,
        };
        let routes = axum::Router::new().route("/usage", axum::routing::post(usage));
        tokio::spawn(async move { axum::serve(incoming, routes).await });

        let endpoint = format!("https://localhost:{port}/usage").parse().unwrap();
        let timeout = Duration::from_secs(10);
        let sink = Sink { endpoint, roots: Some(at("ours.crt")), token: Some(at("token")), timeout };
        sink.send(&[]).await.unwrap();
        let nameless = Sink { token: None, ..sink.clone() };
        let refused = nameless.send(&[]).await;
        assert!(matches!(&refused, Err(SendError::Later(why)) if why.contains("401")), "{refused:?}");
        let fooled = Sink { roots: Some(at("other.crt")), ..sink };
        assert!(matches!(fooled.send(&[]).await, Err(SendError::Later(_))));
    }
}
