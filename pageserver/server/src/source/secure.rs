//! TLS to a source, as libpq's `sslmode` and its companions ask for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::ClientError;
use crate::tls::certificates;

/// What asks a Postgres for TLS: a packet of eight bytes with the code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];

/// How much a source must show, in libpq's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Clear text.
    Disable,
    /// TLS where it is offered, with whoever answers.
    #[default]
    Prefer,
    /// TLS, with whoever answers; with roots, as [`SslMode::VerifyCa`].
    Require,
    /// A certificate that one of the roots vouches for.
    VerifyCa,
    /// The same, made out to the host that was asked for.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "disable" => Ok(SslMode::Disable),
            // One that would rather not does no harm with it.
            "allow" | "prefer" => Ok(SslMode::Prefer),
            "require" => Ok(SslMode::Require),
            "verify-ca" => Ok(SslMode::VerifyCa),
            "verify-full" => Ok(SslMode::VerifyFull),
            other => Err(format!(
                "sslmode={other:?} is none of disable, allow, prefer, require, verify-ca, verify-full"
            )),
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        })
    }
}

/// TLS of a connection string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// How much the source must show.
    pub mode: SslMode,
    /// File of roots.
    pub roots: Option<PathBuf>,
    /// File of our own certificate.
    pub certificate: Option<PathBuf>,
    /// File of its key.
    pub key: Option<PathBuf>,
}

fn failed(reason: impl fmt::Display) -> ClientError {
    ClientError::Tls(reason.to_string())
}

/// What became of asking for TLS.
pub enum Secured {
    /// It is clear text: none was asked for, or none is offered and none was insisted on.
    Clear(TcpStream),
    /// It is within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Security {
    /// Asks the source for TLS and does the handshake. Files are read anew each time, so that a renewed certificate is used at once.
    pub async fn establish(&self, mut stream: TcpStream, host: &str) -> Result<Secured, ClientError> {
        if self.mode == SslMode::Disable {
            return Ok(Secured::Clear(stream));
        }
        stream.write_all(&SSL_REQUEST).await?;
        match stream.read_u8().await? {
            b'S' => {}
            b'N' if self.mode == SslMode::Prefer => return Ok(Secured::Clear(stream)),
            b'N' => return Err(failed("the source offers none")),
            other => return Err(failed(format!("the source answered {:?}", char::from(other)))),
        }
        let connector = TlsConnector::from(Arc::new(self.config()?));
        let name = ServerName::try_from(host.to_owned()).map_err(failed)?;
        let stream = connector.connect(name, stream).await.map_err(failed)?;
        Ok(Secured::Tls(Box::new(stream)))
    }

    fn config(&self) -> Result<ClientConfig, ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = self.verifier(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        match (&self.certificate, &self.key) {
            (None, None) => Ok(builder.with_no_client_auth()),
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate).map_err(failed)?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| failed(format!("{}: {error}", key.display())))?;
                builder.with_client_auth_cert(chain, key).map_err(failed)
            }
            _ => Err(failed("sslcert and sslkey go together")),
        }
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, ClientError> {
        let roots = match (self.mode, &self.roots) {
            (SslMode::Disable | SslMode::Prefer, _) | (SslMode::Require, None) => None,
            (_, Some(roots)) => Some(read_roots(roots)?),
            (_, None) => return Err(failed(format!("sslmode={} needs sslrootcert", self.mode))),
        };
        let Some(roots) = roots else {
            return Ok(Arc::new(Lenient { inner: None, provider: Arc::clone(provider) }));
        };
        let strict = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let strict = strict.build().map_err(failed)?;
        Ok(match self.mode {
            SslMode::VerifyFull => strict,
            _ => Arc::new(Lenient { inner: Some(strict), provider: Arc::clone(provider) }),
        })
    }
}

fn read_roots(file: &Path) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(file).map_err(failed)? {
        roots.add(root).map_err(failed)?;
    }
    Ok(roots)
}

/// Looks at less than a name: at who vouches, or at nothing but that the peer has the certificate's key.
#[derive(Debug)]
struct Lenient {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
