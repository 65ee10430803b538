//! The gRPC server of the control API, and who may call it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::pageserver_server::PageserverServer;
use rustls_pki_types::ServerName;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::transport::Server;
use tonic::{Request, Status};

use super::service::Control;
use crate::tls::{Incoming, Tls};

/// Shortest token believed to be one.
const SHORTEST_TOKEN: usize = 16;
/// A peer that is silent for so long is asked whether it is there …
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// … and dropped when it does not answer.
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(10);

/// A token that every call must carry.
#[derive(Clone)]
pub struct Bearer {
    expected: Arc<str>,
}

impl Bearer {
    /// The first line of a file.
    pub fn read(file: &Path) -> std::io::Result<Bearer> {
        let text = std::fs::read_to_string(file)?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < SHORTEST_TOKEN {
            return Err(std::io::Error::other(format!(
                "the token is shorter than {SHORTEST_TOKEN} characters"
            )));
        }
        Ok(Bearer { expected: format!("Bearer {token}").into() })
    }

    fn admits(&self, metadata: &MetadataMap) -> bool {
        let given =
            metadata.get("authorization").map(tonic::metadata::MetadataValue::as_bytes).unwrap_or_default();
        // How long it takes must not tell how much of it was right.
        let expected = self.expected.as_bytes();
        given.len() == expected.len()
            && given.iter().zip(expected).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// How an operator shows that it is one.
#[derive(Clone)]
pub enum Guard {
    /// By a certificate, before anything is said.
    Certificate(Tls, ServerName<'static>),
    /// By a token in every call.
    Token(Bearer),
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match self {
            Guard::Token(bearer) if !bearer.admits(request.metadata()) => {
                Err(Status::unauthenticated("the call carries no token, or a wrong one"))
            }
            _ => Ok(request),
        }
    }
}

/// Serves until told to stop. `grpc.health.v1` needs no token.
pub async fn run(
    control: Control,
    guard: Guard,
    listener: Arc<TcpListener>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PageserverServer<Control>>().await;
    let incoming = match &guard {
        Guard::Certificate(tls, name) => Incoming::new(listener, Some(tls.clone()), Some(name.clone())),
        Guard::Token(_) => Incoming::new(listener, None, None),
    };
    let connections = futures::stream::unfold(incoming, |mut incoming| async move {
        Some((Ok::<_, std::io::Error>(incoming.next().await), incoming))
    });
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
        .add_service(health_service)
        .add_service(PageserverServer::with_interceptor(control, guard))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_carries_the_token_of_the_file_or_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "short\n").unwrap();
        assert!(Bearer::read(file.path()).is_err());
        std::fs::write(file.path(), "0123456789abcdef\nanother line\n").unwrap();
        let bearer = Bearer::read(file.path()).unwrap();
        let admits = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().unwrap());
            bearer.admits(&metadata)
        };
        assert!(admits("Bearer 0123456789abcdef"));
        for wrong in ["Bearer 0123456789abcdeg", "Bearer 0123456789abcde", "0123456789abcdef", ""] {
            assert!(!admits(wrong), "{wrong:?}");
        }
        assert!(!bearer.admits(&MetadataMap::new()));
    }
}
