//! The hot path: pagestream requests in, pages out.
//!
//! One task per connection reads what has arrived, answers consecutive `GetPage` requests together, and sends once nothing more is
//! waiting to be answered. No other task takes part, so a page at hand costs no hand-off between threads.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use engine::as_of::ReadError;
use model::{BLOCK_SIZE, Fork, Lsn, SlruKind, TenantId, TimelineId};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, ConnectionError, OUTPUT_HIGH};
use super::messages::{self, Header, Question, Request, Version};
use super::metrics::{LibpqMetrics, QueryKind};
use super::wire;
use crate::histories::{Histories, History, HistoryNotFound, PageRequest, WaitFailure};

/// A request is at most 42 bytes; what is longer is garbage.
const LONGEST_REQUEST: usize = 256;

/// How a stream is served.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// `GetPage` requests answered together at most.
    pub max_batch: usize,
    /// How long a request may wait for WAL.
    pub wait_lsn_timeout: Duration,
}

/// Why a stream ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    /// The connection cannot go on.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The client should connect anew: a newer owner has the tenant.
    #[error("reconnect")]
    Reconnect,
    /// The timeline or the server stops.
    #[error("shutdown")]
    Stopping,
    /// A message that does not belong here.
    #[error("unexpected message {:?} during COPY", char::from(*.0))]
    Unexpected(u8),
    /// A request that cannot be decoded.
    #[error(transparent)]
    Undecodable(#[from] messages::DecodeError),
}

/// Why one request gets an error for an answer; the stream goes on. The texts are what Neon's computes look for.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("Not found: {0}")]
    NotFound(#[from] HistoryNotFound),
    #[error("Bad request: {0}")]
    Bad(String),
    #[error("LSN timeout: {0}")]
    Timeout(String),
    #[error("Read error")]
    Read(#[source] ReadError),
    #[error("Read error")]
    Absent(&'static str),
}

/// Serves a stream until the client ends it.
pub async fn serve<S, H>(
    connection: &mut Connection<S>,
    histories: &H,
    version: Version,
    (tenant, timeline): (TenantId, TimelineId),
    settings: StreamSettings,
    metrics: &LibpqMetrics,
) -> Result<(), StreamEnd>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Histories,
{
    wire::copy_response(&mut connection.output, b'W');
    connection.flush().await?;
    let mut stream = Stream::<H::History> {
        version,
        history: None,
        settings,
        metrics,
        headers: Vec::with_capacity(settings.max_batch),
        wanted: Vec::with_capacity(settings.max_batch),
        pages: Vec::with_capacity(settings.max_batch),
        last_record_lsn: Lsn::INVALID,
    };
    loop {
        let (body_length, request) =
            match wire::frame(&connection.input, LONGEST_REQUEST).map_err(ConnectionError::from)? {
                Some((b'd', body)) => (body.len(), messages::decode(version, body)?),
                Some((b'X', _)) => {
                    stream.answer_batch(&mut connection.output).await?;
                    return Ok(());
                }
                Some((tag, _)) => return Err(StreamEnd::Unexpected(tag)),
                None => {
                    // Nothing more is waiting: answer what is gathered, send, and wait.
                    stream.answer_batch(&mut connection.output).await?;
                    connection.flush().await?;
                    match connection.fill().await {
                        Err(ConnectionError::Closed) if connection.input.is_empty() => return Ok(()),
                        other => other?,
                    }
                    continue;
                }
            };
        connection.consume(body_length);
        if stream.history.is_none() {
            match histories.history(tenant, timeline) {
                Ok(history) => stream.history = Some(history),
                Err(error) => {
                    messages::error(&mut connection.output, version, &request.header, &error_text(&error.into()));
                    continue;
                }
            }
        }
        stream.take(connection, &request).await?;
        if connection.output.len() >= OUTPUT_HIGH {
            connection.flush().await?;
        }
    }
}

/// What a stream remembers between messages. The vectors keep their memory, so a steady stream allocates nothing.
struct Stream<'a, H: History> {
    version: Version,
    /// Looked up at the first request: the client is told that copying begins before anything else.
    history: Option<H>,
    settings: StreamSettings,
    metrics: &'a LibpqMetrics,
    /// The batch: `GetPage` requests that are checked and wait to be answered together.
    headers: Vec<Header>,
    /// Parallel to `headers`.
    wanted: Vec<PageRequest>,
    /// Room for their answers.
    pages: Vec<Result<H::Page, ReadError>>,
    /// As of the first look in this batch; a look per request would be as right, and slower.
    last_record_lsn: Lsn,
}

impl<H: History> Stream<'_, H> {
    /// Puts a request into the batch, or answers the batch and then the request.
    async fn take<S>(&mut self, connection: &mut Connection<S>, request: &Request) -> Result<(), StreamEnd>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let history = self.history.clone().expect("looked up before the first request is taken");
        if self.headers.is_empty() || request.header.not_modified_since > self.last_record_lsn {
            self.last_record_lsn = history.last_record_lsn();
        }
        let lsn = match effective_lsn(&request.header, self.last_record_lsn, history.readable_from()) {
            Effective::Now(lsn) => Ok(lsn),
            Effective::Invalid(reason) => Err(RequestError::Bad(reason)),
            Effective::After(lsn) => {
                // What came before must not wait too.
                self.answer_batch(&mut connection.output).await?;
                connection.flush().await?;
                self.wait_for(connection, &history, lsn).await?.map(|()| lsn)
            }
        };
        let answer = match (lsn, request.question) {
            (Ok(lsn), Question::GetPage { rel, block }) if rel.rel != 0 => {
                self.headers.push(request.header);
                self.wanted.push((rel, block, lsn));
                if self.headers.len() >= self.settings.max_batch {
                    self.answer_batch(&mut connection.output).await?;
                }
                return Ok(());
            }
            (Ok(lsn), question) => {
                self.answer_batch(&mut connection.output).await?;
                let kind = kind_of(question);
                self.metrics.queries_started[kind as usize].inc();
                let begun = Instant::now();
                let answer = self.answer(&mut connection.output, &history, &request.header, question, lsn).await;
                self.metrics.answered(kind, 1, begun.elapsed().as_secs_f64());
                answer
            }
            (Err(error), _) => {
                self.answer_batch(&mut connection.output).await?;
                Err(error)
            }
        };
        match answer {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(&mut connection.output, &request.header, error),
        }
    }

    /// Waits for WAL; an end of the connection or the server ends the wait.
    async fn wait_for<S>(
        &mut self,
        connection: &Connection<S>,
        history: &H,
        lsn: Lsn,
    ) -> Result<Result<(), RequestError>, StreamEnd>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let begun = Instant::now();
        let stop = connection.stopping();
        let waited = tokio::select! {
            waited = history.wait_for(lsn, self.settings.wait_lsn_timeout) => waited,
            () = stop.cancelled() => Err(WaitFailure::Stopping),
        };
        self.metrics.wait_lsn_seconds.observe(begun.elapsed().as_secs_f64());
        self.last_record_lsn = history.last_record_lsn();
        match waited {
            Ok(()) => Ok(Ok(())),
            Err(WaitFailure::Stopping) => Err(StreamEnd::Stopping),
            Err(WaitFailure::TimedOut) => Ok(Err(RequestError::Timeout(timeout_text(history, lsn)))),
        }
    }

    /// Answers the gathered `GetPage` requests.
    async fn answer_batch(&mut self, output: &mut BytesMut) -> Result<(), StreamEnd> {
        if self.headers.is_empty() {
            return Ok(());
        }
        let history = self.history.clone().expect("a batch has only checked requests");
        let begun = Instant::now();
        self.metrics.queries_started[QueryKind::GetPage as usize].inc_by(self.headers.len() as u64);
        self.metrics.batch_size.observe(self.headers.len() as f64);
        self.pages.clear();
        history.get_pages(&self.wanted, &mut self.pages).await;
        debug_assert_eq!(self.pages.len(), self.wanted.len(), "one answer to every request");

        output.reserve(self.headers.len() * (BLOCK_SIZE + 64));
        let mut pages = std::mem::take(&mut self.pages);
        for (index, page) in pages.drain(..).enumerate() {
            let (header, (rel, block, lsn)) = (self.headers[index], self.wanted[index]);
            match page {
                Ok(page) => messages::page(output, self.version, &header, rel, block, page.as_ref()),
                Err(error) => match absent_page(&history, error, rel, block, lsn).await {
                    Ok(()) => messages::page(output, self.version, &header, rel, block, &[0; BLOCK_SIZE]),
                    Err(error) => self.refuse(output, &header, error)?,
                },
            }
        }
        self.pages = pages;
        self.metrics.answered(QueryKind::GetPage, self.headers.len(), begun.elapsed().as_secs_f64());
        self.headers.clear();
        self.wanted.clear();
        Ok(())
    }

    /// Answers anything else.
    async fn answer(
        &self,
        output: &mut BytesMut,
        history: &H,
        header: &Header,
        question: Question,
        lsn: Lsn,
    ) -> Result<(), RequestError> {
        let version = self.version;
        match question {
            Question::GetPage { .. } => Err(RequestError::Absent("relation number 0")),
            Question::Exists { rel } if rel.rel == 0 => Err(RequestError::Absent("relation number 0")),
            Question::Exists { rel } => {
                let exists = history.rel_size(rel, lsn).await.map_err(RequestError::Read)?.is_some();
                messages::exists(output, version, header, rel, exists);
                Ok(())
            }
            Question::Nblocks { rel } => {
                let size = history.rel_size(rel, lsn).await.map_err(RequestError::Read)?;
                let size = match size {
                    Some(size) => size,
                    None if matches!(rel.fork, Fork::Fsm | Fork::Vm) && rel.rel != 0 => 0,
                    None => return Err(RequestError::Absent("the relation does not exist")),
                };
                messages::nblocks(output, version, header, rel, size);
                Ok(())
            }
            Question::DbSize { db } => {
                let size = history.db_size(db, lsn).await.map_err(RequestError::Read)?;
                messages::db_size(output, version, header, db, size);
                Ok(())
            }
            Question::GetSlruSegment { kind, segment } => {
                let slru = SlruKind::from_number(kind)
                    .ok_or_else(|| RequestError::Bad(format!("SLRU kind {kind} does not exist")))?;
                let pages = history.slru_segment(slru, segment, lsn).await.map_err(RequestError::Read)?;
                let pages = pages.ok_or(RequestError::Absent("the SLRU segment does not exist"))?;
                messages::slru_segment(output, version, header, kind, segment, &pages);
                Ok(())
            }
        }
    }

    /// Answers a request with its error, or ends the stream when that is what the error means.
    fn refuse(&self, output: &mut BytesMut, header: &Header, error: RequestError) -> Result<(), StreamEnd> {
        match error {
            RequestError::Read(ReadError::Superseded) => Err(StreamEnd::Reconnect),
            RequestError::Read(ReadError::Stopping) => Err(StreamEnd::Stopping),
            error => {
                messages::error(output, self.version, header, &error_text(&error));
                Ok(())
            }
        }
    }
}

/// What the client reads, while the log gets the cause.
fn error_text(error: &RequestError) -> String {
    match error {
        RequestError::Read(cause) => {
            tracing::warn!("a read failed: {}", chain(cause));
        }
        RequestError::Absent(what) => tracing::debug!("a read failed: {what}"),
        _ => tracing::debug!("{error}"),
    }
    error.to_string()
}

/// Whether a page that has no value is a page of zeros: in a relation that exists, past its end.
async fn absent_page<H: History>(
    history: &H,
    error: ReadError,
    rel: model::RelTag,
    block: u32,
    lsn: Lsn,
) -> Result<(), RequestError> {
    if !matches!(error, ReadError::MissingKey { .. }) {
        return Err(RequestError::Read(error));
    }
    match history.rel_size(rel, lsn).await {
        Ok(Some(size)) if block >= size => Ok(()),
        Ok(None) if matches!(rel.fork, Fork::Fsm | Fork::Vm) => Ok(()),
        Ok(None) => Err(RequestError::Absent("the relation does not exist")),
        Ok(Some(_)) => Err(RequestError::Read(error)),
        Err(error) => Err(RequestError::Read(error)),
    }
}

fn kind_of(question: Question) -> QueryKind {
    match question {
        Question::Exists { .. } => QueryKind::Exists,
        Question::Nblocks { .. } => QueryKind::Nblocks,
        Question::GetPage { .. } => QueryKind::GetPage,
        Question::DbSize { .. } => QueryKind::DbSize,
        Question::GetSlruSegment { .. } => QueryKind::GetSlruSegment,
    }
}

/// An error with all that caused it.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What the client reads when WAL did not arrive in time.
pub fn timeout_text<H: History>(history: &H, lsn: Lsn) -> String {
    format!(
        "Timed out while waiting for WAL record at LSN {lsn} to arrive, last_record_lsn {} disk consistent LSN={}, \
         WalReceiver status: {}",
        history.last_record_lsn(),
        history.disk_consistent_lsn(),
        history.source_status()
    )
}

/// As of when a request is to be answered.
#[derive(Debug, PartialEq, Eq)]
enum Effective {
    /// As of this LSN, which is there.
    Now(Lsn),
    /// As of this LSN, once it is there.
    After(Lsn),
    /// Never.
    Invalid(String),
}

/// The pair of LSNs says: as of `request_lsn`, and nothing changed after `not_modified_since` up to there. So a request for the future is
/// answered from what is there already, as long as that reaches `not_modified_since`.
fn effective_lsn(header: &Header, last_record_lsn: Lsn, readable_from: Lsn) -> Effective {
    let Header { request_lsn, not_modified_since, .. } = *header;
    if request_lsn < not_modified_since {
        return Effective::Invalid(format!(
            "invalid request with request LSN {request_lsn} and not_modified_since {not_modified_since}"
        ));
    }
    if !request_lsn.is_valid() {
        return Effective::Invalid("invalid LSN(0) in request".into());
    }
    if request_lsn < readable_from {
        return Effective::Invalid(format!(
            "tried to request a page version that was garbage collected. requested at {request_lsn} gc cutoff \
             {readable_from}"
        ));
    }
    if not_modified_since > last_record_lsn {
        return Effective::After(not_modified_since);
    }
    let lsn = request_lsn.min(last_record_lsn);
    if lsn < readable_from { Effective::After(readable_from) } else { Effective::Now(lsn) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lsn_of_a_request_is_chosen_by_its_pair() {
        let (last, oldest) = (Lsn(1000), Lsn(100));
        let at = |request_lsn, not_modified_since| {
            let (request_lsn, not_modified_since) = (Lsn(request_lsn), Lsn(not_modified_since));
            effective_lsn(&Header { id: 0, request_lsn, not_modified_since }, last, oldest)
        };
        assert_eq!(at(u64::MAX, 500), Effective::Now(last), "the newest there is");
        assert_eq!(at(u64::MAX, 1001), Effective::After(Lsn(1001)), "waits only for the last change");
        assert_eq!(at(5000, 1000), Effective::Now(last), "the future equals the present until it changes");
        assert_eq!(at(700, 700), Effective::Now(Lsn(700)));
        assert_eq!(at(100, 0), Effective::Now(oldest));
        for (request_lsn, not_modified_since, text) in
            [(5, 6, "invalid request with"), (0, 0, "invalid LSN(0)"), (99, 0, "garbage collected")]
        {
            let Effective::Invalid(reason) = at(request_lsn, not_modified_since) else { panic!("was accepted") };
            assert!(reason.contains(text), "{reason}");
        }
    }
}
