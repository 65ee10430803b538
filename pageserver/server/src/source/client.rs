//! A connection to a Postgres: ordinary, or as a physical walsender's peer. Authentication, simple queries, copy messages.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::conninfo::{ConnInfo, Place};
use super::secure::Secured;
use crate::libpq::wire::{self, HEAD, WireError};

/// Longest message believed. WAL comes in at most 128 KiB, a backup in less; nothing else is long.
const LONGEST_MESSAGE: usize = 16 << 20;
/// Room kept free for reading.
const READ_ROOM: usize = 256 << 10;
/// How long an answer to a command may take that does no work to speak of.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// Bytes of one answer's rows, at most: they are a few lines for each tablespace. What sends more is no Postgres, and must not have our memory.
const LONGEST_ANSWER: usize = 16 << 20;
/// Settings that a server tells unasked, and bytes of each, at most; what is beyond is not kept. A Postgres tells a dozen short ones.
const MOST_PARAMETERS: usize = 100;
const LONGEST_PARAMETER: usize = 1 << 10;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Physical replication: replication commands only.
    Replication,
    /// SQL.
    Sql,
}

/// Why a Postgres did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address answered. The last one's reason.
    #[error("cannot connect to {place}")]
    Connect {
        /// Which address.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// It speaks no method of authentication that we do, or wants a password and we have none.
    #[error("cannot authenticate: {0}")]
    Authentication(String),
    /// TLS is not as it was asked for.
    #[error("no TLS with the source: {0}")]
    Tls(String),
    /// It said no.
    #[error("the source answered: {message} (SQLSTATE {sqlstate})")]
    Server {
        /// Five characters.
        sqlstate: String,
        /// In its words.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to the source broke")]
    Io(#[from] io::Error),
    /// It closed the connection.
    #[error("the source closed the connection")]
    Closed,
    /// It did not answer in time.
    #[error("no answer from the source in {0:?}")]
    Silent(Duration),
    /// What it sent makes no sense.
    #[error("unexpected answer from the source: {0}")]
    Protocol(String),
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        ClientError::Protocol(error.to_string())
    }
}

impl ClientError {
    /// Whether the server answered with this SQLSTATE.
    pub fn is_sqlstate(&self, wanted: &str) -> bool {
        matches!(self, ClientError::Server { sqlstate, .. } if sqlstate == wanted)
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Fields of a row, as text.
pub type Row = Vec<Option<String>>;

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub tag: u8,
    /// What it says.
    pub body: Bytes,
}

/// A connection.
pub struct Client {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: BytesMut,
    parameters: BTreeMap<String, String>,
}

impl Client {
    /// Connects to the first place that answers.
    pub async fn connect(info: &ConnInfo, purpose: Purpose) -> Result<Client, ClientError> {
        let mut last = None;
        for place in &info.places {
            match tokio::time::timeout(info.connect_timeout, Self::connect_to(info, place, purpose)).await {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {
                    let source = io::ErrorKind::TimedOut.into();
                    last = Some(ClientError::Connect {
                        place: format!("{}:{}", place.host, place.port),
                        source,
                    });
                }
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Protocol("no address to connect to".into())))
    }

    async fn connect_to(info: &ConnInfo, place: &Place, purpose: Purpose) -> Result<Client, ClientError> {
        let unreachable =
            |source| ClientError::Connect { place: format!("{}:{}", place.host, place.port), source };
        if place.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", place.host, place.port);
            let stream = UnixStream::connect(path).await.map_err(unreachable)?;
            Client::over(stream, info, place, purpose).await
        } else {
            let stream = TcpStream::connect((place.host.as_str(), place.port)).await.map_err(unreachable)?;
            stream.set_nodelay(true)?;
            // A source that vanished is noticed by keepalives, long before TCP gives up on data.
            socket2::SockRef::from(&stream).set_keepalive(true)?;
            match info.security.establish(stream, &place.host).await? {
                Secured::Clear(stream) => Client::over(stream, info, place, purpose).await,
                Secured::Tls(stream) => Client::over(stream, info, place, purpose).await,
            }
        }
    }

    /// Begins a session over a stream to the Postgres at `place`.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        info: &ConnInfo,
        place: &Place,
        purpose: Purpose,
    ) -> Result<Client, ClientError> {
        let mut client = Client {
            stream: Box::new(stream),
            input: BytesMut::new(),
            output: BytesMut::new(),
            parameters: BTreeMap::new(),
        };
        let application_name = info.application_name.as_deref().unwrap_or("palimpsest");
        let mut parameters = vec![
            ("user", info.user.as_str()),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
        ];
        match purpose {
            Purpose::Replication => parameters.push(("replication", "true")),
            Purpose::Sql => parameters.push(("database", info.dbname.as_str())),
        }
        frontend::startup_message(parameters, &mut client.output)?;
        client.send().await?;
        // Read here rather than kept in the settings, as libpq does.
        let environment = std::env::var("PGPASSWORD").ok();
        let password = || {
            let missing = || ClientError::Authentication(info.no_password());
            info.password_for(place, environment.as_deref()).ok_or_else(missing)
        };
        client.authenticate(&info.user, password).await?;
        loop {
            match client.message().await? {
                Message { tag: b'Z', .. } => return Ok(client),
                Message { tag: b'K', .. } => {}
                other => return Err(unexpected(&other)),
            }
        }
    }

    async fn authenticate(
        &mut self,
        user: &str,
        password: impl Fn() -> Result<String, ClientError>,
    ) -> Result<(), ClientError> {
        let mut scram: Option<ScramSha256> = None;
        let failed = |error: io::Error| ClientError::Authentication(error.to_string());
        loop {
            let message = self.message().await?;
            if message.tag != b'R' || message.body.len() < 4 {
                return Err(unexpected(&message));
            }
            let mut body = message.body;
            match (body.get_u32(), &mut scram) {
                (0, _) => return Ok(()),
                (3, _) => frontend::password_message(password()?.as_bytes(), &mut self.output)?,
                (5, _) => {
                    let salt = body.get(..4).and_then(|salt| salt.try_into().ok());
                    let salt = salt.ok_or_else(|| ClientError::Protocol("short md5 salt".into()))?;
                    let hash = md5_hash(user.as_bytes(), password()?.as_bytes(), salt);
                    frontend::password_message(hash.as_bytes(), &mut self.output)?;
                }
                (10, None) => {
                    let offered = body.split(|byte| *byte == 0).any(|name| name == SCRAM_SHA_256.as_bytes());
                    if !offered {
                        return Err(ClientError::Authentication("no known SASL method is offered".into()));
                    }
                    let exchange = ScramSha256::new(password()?.as_bytes(), ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), &mut self.output)?;
                    scram = Some(exchange);
                }
                (11, Some(exchange)) => {
                    exchange.update(&body).map_err(failed)?;
                    frontend::sasl_response(exchange.message(), &mut self.output)?;
                }
                (12, Some(exchange)) => exchange.finish(&body).map_err(failed)?,
                (method, _) => {
                    return Err(ClientError::Authentication(format!("method {method} is not offered here")));
                }
            }
            self.send().await?;
        }
    }

    /// What the server reported of itself, such as `server_version` or `in_hot_standby`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The next message. Errors of the server are errors; notices and parameters are dealt with. May be dropped at any time without loss.
    pub async fn message(&mut self) -> Result<Message, ClientError> {
        loop {
            while let Some((tag, body)) = wire::frame(&self.input, LONGEST_MESSAGE)? {
                let length = body.len();
                self.input.advance(HEAD);
                let message = Message { tag, body: self.input.split_to(length).freeze() };
                match tag {
                    b'E' => return Err(server_error(&message.body)),
                    b'N' => tracing::debug!("the source notes: {}", server_error(&message.body)),
                    b'S' => {
                        if let Some((name, rest)) = wire::cstring(&message.body)
                            && let Some((value, _)) = wire::cstring(rest)
                            && self.parameters.len() < MOST_PARAMETERS
                            && length <= LONGEST_PARAMETER
                        {
                            self.parameters.insert(name.into(), value.into());
                        }
                    }
                    b'A' => {}
                    _ => return Ok(message),
                }
            }
            self.input.reserve(READ_ROOM);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }

    /// The same, within the time in which a quick answer must come.
    pub async fn answer(&mut self) -> Result<Message, ClientError> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.message())
            .await
            .unwrap_or(Err(ClientError::Silent(ANSWER_TIMEOUT)))
    }

    /// Sends a query or replication command, whose answers are to be read by [`Self::message`].
    pub async fn command(&mut self, text: &str) -> Result<(), ClientError> {
        frontend::query(text, &mut self.output)?;
        self.send().await
    }

    /// Runs a query or replication command that answers rows or nothing.
    pub async fn query(&mut self, text: &str) -> Result<Vec<Row>, ClientError> {
        self.command(text).await?;
        let mut rows = Rows::default();
        let mut failure = None;
        loop {
            match self.answer().await {
                Ok(message) => match message.tag {
                    b'D' => rows.add(&message.body)?,
                    b'T' | b'C' | b'I' => {}
                    b'Z' => return failure.map_or(Ok(rows.rows), Err),
                    _ => return Err(unexpected(&message)),
                },
                // ReadyForQuery follows, so the connection can be used further.
                Err(error @ ClientError::Server { .. }) if failure.is_none() => failure = Some(error),
                Err(error) => return Err(failure.unwrap_or(error)),
            }
        }
    }

    /// The value of a setting of the server.
    pub async fn show(&mut self, name: &str) -> Result<String, ClientError> {
        let rows = self.query(&format!("SHOW {name}")).await?;
        rows.into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten())
            .ok_or_else(|| ClientError::Protocol(format!("no value for {name}")))
    }

    /// Reads what follows a copy: rows, until the server is ready again.
    pub async fn rows_until_ready(&mut self) -> Result<Vec<Row>, ClientError> {
        let mut rows = Rows::default();
        loop {
            let message = self.answer().await?;
            match message.tag {
                b'D' => rows.add(&message.body)?,
                b'Z' => return Ok(rows.rows),
                b'T' | b'C' | b'c' | b'd' => {}
                _ => return Err(unexpected(&message)),
            }
        }
    }

    /// Sends one message of a copy.
    pub async fn copy_data(&mut self, data: &[u8]) -> Result<(), ClientError> {
        frontend::CopyData::new(data)?.write(&mut self.output);
        self.send().await
    }

    /// Ends our side of a copy.
    pub async fn copy_done(&mut self) -> Result<(), ClientError> {
        frontend::copy_done(&mut self.output);
        self.send().await
    }

    /// Says good-bye, so that the server does not log a broken connection.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.output);
        let farewell = async {
            let _ = self.send().await;
            let _ = self.stream.shutdown().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
    }

    async fn send(&mut self) -> Result<(), ClientError> {
        self.stream.write_all_buf(&mut self.output).await?;
        Ok(self.stream.flush().await?)
    }
}

/// That a message does not belong where it came.
pub fn unexpected(message: &Message) -> ClientError {
    ClientError::Protocol(format!("message {:?} of {} bytes", char::from(message.tag), message.body.len()))
}

/// An answer's rows so far.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    bytes: usize,
}

impl Rows {
    fn add(&mut self, body: &Bytes) -> Result<(), ClientError> {
        // A short row takes more memory than it has bytes.
        self.bytes += body.len() + 64;
        if self.bytes > LONGEST_ANSWER {
            return Err(ClientError::Protocol(format!("an answer of more than {LONGEST_ANSWER} bytes")));
        }
        self.rows.push(data_row(body)?);
        Ok(())
    }
}

/// The fields of a `DataRow`.
pub fn data_row(mut body: &[u8]) -> Result<Row, ClientError> {
    let short = || ClientError::Protocol("row is truncated".into());
    let count = body.try_get_u16().map_err(|_| short())?;
    let mut row = Row::new();
    for _ in 0..count {
        let length = body.try_get_i32().map_err(|_| short())?;
        row.push(match usize::try_from(length) {
            Err(_) => None,
            Ok(length) => {
                let (value, rest) = body.split_at_checked(length).ok_or_else(short)?;
                body = rest;
                Some(String::from_utf8_lossy(value).into_owned())
            }
        });
    }
    Ok(row)
}

/// An `ErrorResponse`: fields of a tag and a text, ended by a zero byte.
fn server_error(mut body: &[u8]) -> ClientError {
    let (mut sqlstate, mut message) = (String::new(), String::new());
    while let Some((tag, rest)) = body.split_first()
        && *tag != 0
    {
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        let text = String::from_utf8_lossy(&rest[..end]);
        match tag {
            b'C' => sqlstate = text.into_owned(),
            b'M' => message = text.into_owned(),
            b'D' => {
                message.push_str("; ");
                message.push_str(&text);
            }
            _ => {}
        }
        body = rest.get(end + 1..).unwrap_or_default();
    }
    ClientError::Server { sqlstate, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_server_keeps_its_code_and_words() {
        let error = server_error(b"SERROR\0VERROR\0C55006\0Mslot is active\0Dby 7\0\0");
        assert!(error.is_sqlstate("55006"));
        assert!(error.to_string().contains("slot is active; by 7"), "{error}");
    }

    #[test]
    fn any_bytes_are_a_row_or_an_error() {
        assert_eq!(data_row(b"\0\x02\0\0\0\x01x\xff\xff\xff\xff").unwrap(), vec![Some("x".to_owned()), None]);
        for bytes in crate::libpq::garbage::any_bytes(1000) {
            let _ = data_row(&bytes);
            let _ = server_error(&bytes);
        }
    }
}
