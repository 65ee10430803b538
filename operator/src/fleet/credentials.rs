//! How the operator proves to pageservers who it is. Files are read for every connection, so that a renewed certificate is used as soon as
//! the next connection is made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::api::pool::{ControlAuth, ControlAuthMode};

/// A connection that does not come about in this time has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection over which nothing comes is asked whether it is alive this often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long it has to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Files with our side of the proof.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// A directory with `tls.crt`, `tls.key` and `ca.crt`, as a Secret of cert-manager is mounted.
    pub tls_dir: Option<PathBuf>,
    /// A file with a shared secret.
    pub token_file: Option<PathBuf>,
}

/// A channel that says with every call who we are.
pub type AuthenticatedChannel = InterceptedService<Channel, Bearer>;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The operator was started without what the pool asks for.
    #[error("the pool's controlAuth.mode needs the operator's flag {0}")]
    NotGiven(&'static str),
    /// A file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has no token.
    #[error("{0} has no usable token")]
    Token(PathBuf),
    /// The pool asks for certificates and does not say in whose name.
    #[error("controlAuth.serverName is missing")]
    ServerName,
    /// Nobody answers, or not in the right name.
    #[error("cannot connect")]
    Transport(#[from] tonic::transport::Error),
}

impl Credentials {
    /// Connects to the control port of a pageserver.
    pub async fn connect(
        &self,
        ip: &str,
        port: u16,
        auth: &ControlAuth,
    ) -> Result<AuthenticatedChannel, ConnectError> {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let (scheme, tls, bearer) = match auth.mode {
            ControlAuthMode::MutualTLS => ("https", Some(self.tls(auth).await?), Bearer(None)),
            ControlAuthMode::BearerFile => ("http", None, self.bearer().await?),
        };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}:{port}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(InterceptedService::new(endpoint.connect().await?, bearer))
    }

    async fn tls(&self, auth: &ControlAuth) -> Result<ClientTlsConfig, ConnectError> {
        let dir = self.tls_dir.as_deref().ok_or(ConnectError::NotGiven("--control-tls-dir"))?;
        let name = auth.server_name.as_deref().ok_or(ConnectError::ServerName)?;
        let (certificate, key, authority) = (
            read(&dir.join("tls.crt")).await?,
            read(&dir.join("tls.key")).await?,
            read(&dir.join("ca.crt")).await?,
        );
        Ok(ClientTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .ca_certificate(Certificate::from_pem(authority))
            .domain_name(name))
    }

    async fn bearer(&self) -> Result<Bearer, ConnectError> {
        let path = self.token_file.as_deref().ok_or(ConnectError::NotGiven("--control-token-file"))?;
        let token = read(path).await?;
        let token = std::str::from_utf8(&token).map(str::trim).unwrap_or_default();
        let value = format!("Bearer {token}").parse().ok().filter(|_| !token.is_empty());
        Ok(Bearer(Some(value.ok_or_else(|| ConnectError::Token(path.into()))?)))
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    tokio::fs::read(path).await.map_err(|source| ConnectError::File { path: path.into(), source })
}

/// Adds the shared secret to every call, if there is one.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}
