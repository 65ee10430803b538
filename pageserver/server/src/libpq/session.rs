//! One connection from its first packet to its end.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_compression::Level;
use async_compression::tokio::write::GzipEncoder;
use engine::error_story::error_story;
use model::{Lsn, TenantId, TenantShardId, TimelineId};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::command::Command;
use super::connection::{Connection, ConnectionError, CopyOut};
use super::metrics::LibpqMetrics;
use super::pagestream::{self, StreamEnd, StreamSettings, timed_out};
use super::startup::{self, Opening, StartupError};
use super::wire::{self, HEAD};
use crate::auth::{Access, Keys, TokenError};
use crate::histories::{BackupFailure, BackupKind, Histories, History, WaitFailure};
use engine::as_of::ReadError;

/// Longest message of a command. Drivers send short texts; a longer one is garbage or an attack.
const LONGEST_COMMAND: usize = 64 << 10;
/// How long a client may take over its startup packet.
const STARTUP_PATIENCE: Duration = Duration::from_mins(1);

/// How sessions are served.
#[derive(Clone)]
pub struct SessionSettings {
    /// The hot path's.
    pub stream: StreamSettings,
    /// How long a lease of an LSN lasts.
    pub lease_length: Duration,
    /// What `show` shows: names and values, in order of name.
    pub shown: Arc<Vec<(String, String)>>,
    /// What tokens are verified with; `None` where anybody may read everything.
    pub keys: Option<Keys>,
}

/// Why a session ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The connection cannot go on.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The first packet is none.
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// Another connection is to be cancelled, which is not offered.
    #[error("cancel requests are not supported")]
    Cancel,
    /// The client has no token that opens anything.
    #[error("JWT authentication error")]
    Token(#[source] TokenError),
    /// A message that does not belong here.
    #[error("unexpected message {:?}", char::from(*.0))]
    Unexpected(u8),
    /// A message that is not as it should be.
    #[error("malformed message {:?}", char::from(*.0))]
    Malformed(u8),
    /// A stream's end that ends the session too.
    #[error(transparent)]
    Stream(StreamEnd),
}

impl SessionEnd {
    /// SQLSTATE and text of the last message to the client; `None` when there is nobody to tell.
    fn farewell(&self) -> Option<(&'static str, String)> {
        let farewell = match self {
            SessionEnd::Connection(ConnectionError::Closed | ConnectionError::Io(_)) => return None,
            SessionEnd::Connection(ConnectionError::Stopping) | SessionEnd::Stream(StreamEnd::Stopping) => {
                ("57P01", "shutdown".into())
            }
            SessionEnd::Token(_) => ("XX000", self.to_string()),
            SessionEnd::Stream(StreamEnd::Reconnect) => ("08006", "reconnect".into()),
            SessionEnd::Stream(StreamEnd::Connection(_))
            | SessionEnd::Connection(ConnectionError::Idle(_)) => ("08006", self.to_string()),
            _ => ("08P01", self.to_string()),
        };
        Some(farewell)
    }
}

impl From<StreamEnd> for SessionEnd {
    fn from(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Connection(error) => SessionEnd::Connection(error),
            end => SessionEnd::Stream(end),
        }
    }
}

/// Serves a connection to its end; answers why it ended, when not by the client's wish.
pub async fn serve<S, H>(
    mut connection: Connection<S>,
    histories: &H,
    settings: &SessionSettings,
    metrics: &LibpqMetrics,
) -> Option<SessionEnd>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Histories,
{
    let mut session = Session {
        connection: &mut connection,
        histories,
        settings,
        metrics,
        access: Access::Everything,
        tenant: None,
        prepared: None,
    };
    let end = match session.start().await {
        Ok(()) => session.commands().await.err(),
        Err(end) => Some(end),
    };
    if let Some((sqlstate, text)) = end.as_ref().and_then(SessionEnd::farewell) {
        wire::error_response(&mut connection.output, sqlstate, &text);
    }
    connection.close().await;
    end.filter(|end| !matches!(end, SessionEnd::Connection(ConnectionError::Closed)))
}

struct Session<'a, S, H> {
    connection: &'a mut Connection<S>,
    histories: &'a H,
    settings: &'a SessionSettings,
    metrics: &'a LibpqMetrics,
    /// What its token opens.
    access: Access,
    /// A connection serves one tenant; which one, its first command says.
    tenant: Option<TenantId>,
    /// Text of the one unnamed statement.
    prepared: Option<String>,
}

/// Why a command got an `ErrorResponse`; the session goes on.
struct Refusal(String);

impl<T: std::error::Error + 'static> From<T> for Refusal {
    fn from(error: T) -> Self {
        Refusal(error_story(&error))
    }
}

/// How a command ended.
type Outcome = Result<Result<(), Refusal>, SessionEnd>;

impl<S, H> Session<'_, S, H>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Histories,
{
    async fn start(&mut self) -> Result<(), SessionEnd> {
        let started = Instant::now();
        let application_name = loop {
            match startup::parse(&self.connection.input)? {
                None => {
                    let patience = STARTUP_PATIENCE.saturating_sub(started.elapsed());
                    self.connection.fill_within(patience).await?;
                }
                Some((opening, length)) => {
                    let _ = self.connection.input.split_to(length);
                    match opening {
                        Opening::Encryption => {
                            self.connection.output.extend_from_slice(b"N");
                            self.connection.flush().await?;
                        }
                        Opening::Cancel => return Err(SessionEnd::Cancel),
                        Opening::Start { application_name } => break application_name,
                    }
                }
            }
        };
        if let Some(keys) = &self.settings.keys {
            self.access = self.authenticate(keys).await?;
        }
        tracing::debug!(application_name, "connected");
        let output = &mut self.connection.output;
        wire::authentication_ok(output);
        wire::parameter_status(output, "client_encoding", "UTF8");
        wire::parameter_status(output, "integer_datetimes", "on");
        // What Neon's answers; drivers choose features by it.
        wire::parameter_status(output, "server_version", "14.1");
        wire::ready_for_query(output);
        Ok(self.connection.flush().await?)
    }

    /// Asks for the token, which comes as a password in clear text.
    async fn authenticate(&mut self, keys: &Keys) -> Result<Access, SessionEnd> {
        wire::authentication_cleartext(&mut self.connection.output);
        self.connection.flush().await?;
        let (tag, length) = tokio::time::timeout(STARTUP_PATIENCE, self.connection.message(LONGEST_COMMAND))
            .await
            .map_err(|_| ConnectionError::Idle(STARTUP_PATIENCE))??;
        if tag != b'p' {
            return Err(SessionEnd::Unexpected(tag));
        }
        let body = &self.connection.input[HEAD..HEAD + length];
        let (token, _) = wire::cstring(body).ok_or(SessionEnd::Malformed(tag))?;
        let access = keys.verify(token).map_err(SessionEnd::Token)?;
        self.connection.consume(length);
        Ok(access)
    }

    async fn commands(&mut self) -> Result<(), SessionEnd> {
        // After an error in the extended protocol everything up to Sync is skipped, as clients expect.
        let mut skip_to_sync = false;
        loop {
            let (tag, length) = match self.connection.message(LONGEST_COMMAND).await {
                Err(ConnectionError::Closed) if self.connection.input.is_empty() => return Ok(()),
                other => other?,
            };
            if skip_to_sync && !matches!(tag, b'S' | b'X') {
                self.connection.consume(length);
                continue;
            }
            let body = &self.connection.input[HEAD..HEAD + length];
            let malformed = SessionEnd::Malformed(tag);
            let output = &mut self.connection.output;
            match tag {
                b'Q' => {
                    let (text, _) = wire::cstring(body).ok_or(malformed)?;
                    let text = text.to_owned();
                    self.connection.consume(length);
                    let outcome = self.run(&text).await?;
                    self.refuse(outcome);
                    wire::ready_for_query(&mut self.connection.output);
                    continue;
                }
                b'P' => {
                    let (_name, rest) = wire::cstring(body).ok_or(SessionEnd::Malformed(tag))?;
                    let (text, rest) = wire::cstring(rest).ok_or(malformed)?;
                    if rest == [0, 0] {
                        self.prepared = Some(text.to_owned());
                        wire::bare(output, b'1');
                    } else {
                        wire::error_response(output, "XX000", "parameters are not supported");
                        skip_to_sync = true;
                    }
                }
                b'D' if body.first() == Some(&b'S') => {
                    wire::message(output, b't', |out| out.extend_from_slice(&[0, 0]));
                    wire::bare(output, b'n');
                }
                b'B' if body.first() == Some(&0) => wire::bare(output, b'2'),
                b'D' | b'B' => {
                    wire::error_response(output, "XX000", "named portals are not supported");
                    skip_to_sync = true;
                }
                b'E' => {
                    let (_portal, rows) = wire::cstring(body).ok_or(malformed)?;
                    let all_rows = rows == [0; 4];
                    self.connection.consume(length);
                    let outcome = match self.prepared.clone() {
                        Some(text) if all_rows => self.run(&text).await?,
                        Some(_) => Err(Refusal("a limit of rows is not supported".into())),
                        None => Err(Refusal("nothing was prepared".into())),
                    };
                    skip_to_sync = self.refuse(outcome);
                    continue;
                }
                b'C' => wire::bare(output, b'3'),
                b'S' => {
                    skip_to_sync = false;
                    wire::ready_for_query(output);
                }
                b'H' => {}
                b'X' => return Ok(()),
                tag => return Err(SessionEnd::Unexpected(tag)),
            }
            self.connection.consume(length);
            if tag == b'H' {
                self.connection.flush().await?;
            }
        }
    }

    /// Tells the client of a refusal; answers whether there was one.
    fn refuse(&mut self, outcome: Result<(), Refusal>) -> bool {
        match outcome {
            Ok(()) => false,
            Err(Refusal(text)) => {
                tracing::debug!("refused: {text}");
                wire::error_response(&mut self.connection.output, "XX000", &text);
                true
            }
        }
    }

    async fn run(&mut self, text: &str) -> Outcome {
        let command: Command = match text.parse() {
            Ok(command) => command,
            Err(error) => {
                self.metrics.commands.with_label_values(&["unknown"]).inc();
                return Ok(Err(Refusal::from(error)));
            }
        };
        let (label, tenant) = match &command {
            Command::PageStream { version: codec::pagestream::Version::V2, tenant, .. } => {
                ("pagestream_v2", Some(*tenant))
            }
            Command::PageStream { tenant, .. } => ("pagestream_v3", Some(*tenant)),
            Command::BaseBackup { tenant, .. } => ("basebackup", Some(*tenant)),
            Command::FullBackup { tenant, .. } => ("fullbackup", Some(*tenant)),
            Command::LeaseLsn { tenant, .. } => ("lease_lsn", Some(tenant.tenant)),
            Command::Show { .. } => ("show", None),
            Command::Set => ("set", None),
        };
        self.metrics.commands.with_label_values(&[label]).inc();
        if tenant.is_some_and(|tenant| !self.access.opens(tenant)) {
            return Ok(Err(Refusal("JWT authentication error".into())));
        }
        if let Some(tenant) = tenant
            && *self.tenant.get_or_insert(tenant) != tenant
        {
            return Ok(Err(Refusal("this connection serves another tenant".into())));
        }
        match command {
            Command::PageStream { version, tenant, timeline } => {
                let stream = self.settings.stream;
                let ids = (tenant, timeline);
                let end =
                    pagestream::serve(self.connection, self.histories, version, ids, stream, self.metrics)
                        .await;
                let outcome = match &end {
                    Ok(()) => "ok",
                    Err(StreamEnd::Stopping) => "shutdown",
                    Err(StreamEnd::Reconnect) => "reconnect",
                    Err(StreamEnd::Connection(_)) => "disconnect",
                    Err(_) => "error",
                };
                self.metrics.pagestream_results.with_label_values(&[outcome]).inc();
                end?;
                // The client is gone or has said Terminate; either way nothing follows.
                Err(ConnectionError::Closed.into())
            }
            Command::BaseBackup { tenant, timeline, lsn, gzip, replica: _ } => {
                self.backup(BackupKind::Base, gzip, (tenant, timeline), lsn).await
            }
            // The previous record's LSN goes into the control file of what is restored; the engine knows it better than the client.
            Command::FullBackup { tenant, timeline, lsn, prev_lsn: _ } => {
                self.backup(BackupKind::Full, false, (tenant, timeline), lsn).await
            }
            Command::LeaseLsn { tenant, timeline, lsn } => Ok(self.lease((tenant, timeline), lsn).await),
            Command::Show { name } => {
                let rows: Vec<_> =
                    self.settings.shown.iter().filter(|(known, _)| name == "all" || *known == name).collect();
                if rows.is_empty() {
                    return Ok(Err(Refusal(format!("unrecognized configuration parameter {name:?}"))));
                }
                let output = &mut self.connection.output;
                wire::row_description(output, &["name", "setting"]);
                for (name, value) in rows {
                    wire::data_row(output, &[Some(name), Some(value)]);
                }
                wire::command_complete(output);
                Ok(Ok(()))
            }
            Command::Set => {
                wire::command_complete(&mut self.connection.output);
                Ok(Ok(()))
            }
        }
    }

    async fn lease(
        &mut self,
        (shard, timeline): (TenantShardId, TimelineId),
        lsn: Lsn,
    ) -> Result<(), Refusal> {
        let history = self.histories.history(shard.tenant, timeline).await?;
        if history.tenant_shard() != shard {
            return Err(Refusal("not found".into()));
        }
        let until = history.lease(lsn, self.settings.lease_length).await?;
        let until = until.map(|until| {
            until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis().to_string()
        });
        tracing::debug!(%timeline, %lsn, ?until, "lease");
        let output = &mut self.connection.output;
        wire::row_description(output, &["valid_until"]);
        wire::data_row(output, &[until.as_deref()]);
        wire::command_complete(output);
        Ok(())
    }

    async fn backup(
        &mut self,
        kind: BackupKind,
        gzip: bool,
        (tenant, timeline): (TenantId, TimelineId),
        asked: Option<Lsn>,
    ) -> Outcome {
        let history = match self.histories.history(tenant, timeline).await {
            Ok(history) => history,
            Err(_absent) => return Ok(Err(Refusal("not found".into()))),
        };
        let stop = self.connection.stopping();
        let lsn = asked.unwrap_or_else(|| history.last_record_lsn()).max(history.readable_from());
        if let Some(asked) = asked
            && asked < history.readable_from()
        {
            let oldest = history.readable_from();
            return Ok(Err(Refusal(format!("invalid basebackup lsn {asked}: history begins at {oldest}"))));
        }
        let waited = tokio::select! {
            waited = history.wait_for(lsn, self.settings.stream.wait_lsn_timeout) => waited,
            () = stop.cancelled() => Err(WaitFailure::Stopping),
        };
        match waited {
            Ok(()) => {}
            Err(failure @ (WaitFailure::TimedOut | WaitFailure::Broken(_))) => {
                return Ok(Err(Refusal(timed_out(&history, lsn, &failure).to_string())));
            }
            Err(WaitFailure::Elsewhere) => return Err(StreamEnd::Reconnect.into()),
            Err(WaitFailure::Stopping) => return Err(ConnectionError::Stopping.into()),
        }

        let begun = Instant::now();
        wire::copy_response(&mut self.connection.output, b'H');
        let written = {
            let out = CopyOut::new(self.connection);
            let written = async {
                if gzip {
                    // One member. Its end, too, is only written when all is well.
                    let mut out = GzipEncoder::with_quality(out, Level::Fastest);
                    history.backup(kind, lsn, &mut out).await?;
                    out.shutdown().await.map_err(BackupFailure::Send)
                } else {
                    let mut out = out;
                    history.backup(kind, lsn, &mut out).await?;
                    out.flush().await.map_err(BackupFailure::Send)
                }
            };
            tokio::select! {
                written = written => written,
                () = stop.cancelled() => return Err(ConnectionError::Stopping.into()),
            }
        };
        let result = if written.is_ok() { "ok" } else { "error" };
        self.metrics.basebackup_seconds.with_label_values(&[result]).observe(begun.elapsed().as_secs_f64());
        match written {
            Ok(()) => {
                wire::bare(&mut self.connection.output, b'c');
                wire::command_complete(&mut self.connection.output);
                Ok(Ok(()))
            }
            Err(BackupFailure::Send(error)) => Err(ConnectionError::Io(error).into()),
            Err(BackupFailure::Read(ReadError::Superseded)) => Err(SessionEnd::Stream(StreamEnd::Reconnect)),
            Err(BackupFailure::Read(ReadError::Stopping)) => Err(SessionEnd::Stream(StreamEnd::Stopping)),
            Err(error) => {
                tracing::warn!(%tenant, %timeline, %lsn, "backup failed: {}", error_story(&error));
                Ok(Err(Refusal::from(error)))
            }
        }
    }
}
