//! The hot path: pagestream requests in, pages out.
//!
//! One task per connection reads what has arrived, answers consecutive `GetPage` requests together, and sends once nothing more is
//! waiting to be answered. No other task takes part, so a page at hand costs no hand-off between threads.

use std::time::{Duration, Instant};

use codec::pagestream::{
    Answer, EffectiveLsn, MAX_REQUEST, Query, Refusal, Request, RequestError, RequestHeader, Version,
};
use engine::as_of::ReadError;
use engine::error_story::error_story;
use model::{BLOCK_SIZE, Fork, Lsn, SlruKind, TenantId, TimelineId};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, ConnectionError, OUTPUT_HIGH};
use super::metrics::{LibpqMetrics, QueryKind};
use super::wire;
use crate::histories::{Histories, History, PageRequest, WaitFailure};

/// Longest message of a client: its length counts itself.
const LONGEST_MESSAGE: usize = MAX_REQUEST + 4;

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
    Undecodable(#[from] RequestError),
}

/// Why one request gets an error for an answer; the stream goes on unless the error means that it cannot.
enum Trouble {
    Refusal(Refusal),
    Read(ReadError),
    /// What is asked for does not exist where it must.
    Absent(&'static str),
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Trouble::Read(error)
    }
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
    let mut stream: Stream<'_, H::History> = Stream {
        version,
        history: None,
        settings,
        metrics,
        requests: Vec::with_capacity(settings.max_batch),
        wanted: Vec::with_capacity(settings.max_batch),
        pages: Vec::with_capacity(settings.max_batch),
        last_record_lsn: Lsn::INVALID,
    };
    loop {
        let (body_length, request) =
            match wire::frame(&connection.input, LONGEST_MESSAGE).map_err(ConnectionError::from)? {
                Some((b'd', body)) => (body.len(), Request::decode(version, body)),
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
        match request {
            Ok(request) => {
                if stream.history.is_none() {
                    match histories.history(tenant, timeline).await {
                        Ok(history) => stream.history = Some(history),
                        Err(error) => {
                            let refusal = Refusal::NotFound(error.to_string());
                            stream.refuse(
                                &mut connection.output,
                                &request.header,
                                Trouble::Refusal(refusal),
                            )?;
                            continue;
                        }
                    }
                }
                stream.take(connection, &request).await?;
            }
            Err(error @ RequestError::Field { header, .. }) => {
                stream.answer_batch(&mut connection.output).await?;
                wire::message(&mut connection.output, b'd', |out| {
                    Answer::encode_error(version, &header, &error.to_string(), out);
                });
            }
            Err(error) => {
                stream.answer_batch(&mut connection.output).await?;
                return Err(error.into());
            }
        }
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
    requests: Vec<Request>,
    /// Parallel to `requests`.
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
        if history.is_elsewhere() {
            return Err(StreamEnd::Reconnect);
        }
        if self.requests.is_empty() || request.header.not_modified_since > self.last_record_lsn {
            self.last_record_lsn = history.last_record_lsn();
        }
        let lsn = match request.header.effective_lsn(self.last_record_lsn, history.readable_from()) {
            Ok(EffectiveLsn::Now(lsn)) => Ok(lsn),
            Ok(EffectiveLsn::WaitFor(lsn)) => {
                // What came before must not wait too.
                self.answer_batch(&mut connection.output).await?;
                connection.flush().await?;
                self.wait_for(connection, &history, lsn).await?.map(|()| lsn).map_err(Trouble::Refusal)
            }
            Err(refusal) => Err(Trouble::Refusal(refusal)),
        };
        if let (Ok(lsn), Query::Page { rel, block }) = (&lsn, request.query)
            && rel.rel != 0
        {
            self.requests.push(*request);
            self.wanted.push((rel, block, *lsn));
            if self.requests.len() >= self.settings.max_batch {
                self.answer_batch(&mut connection.output).await?;
            }
            return Ok(());
        }
        self.answer_batch(&mut connection.output).await?;
        let kind = kind_of(&request.query);
        self.metrics.queries_started[kind as usize].inc();
        let begun = Instant::now();
        let answered = match lsn {
            Ok(lsn) => self.answer(&mut connection.output, &history, request, lsn).await,
            Err(trouble) => Err(trouble),
        };
        self.metrics.answered(kind, 1, begun.elapsed().as_secs_f64());
        answered.or_else(|trouble| self.refuse(&mut connection.output, &request.header, trouble))
    }

    /// Waits for WAL; an end of the connection or the server ends the wait.
    async fn wait_for<S>(
        &mut self,
        connection: &Connection<S>,
        history: &H,
        lsn: Lsn,
    ) -> Result<Result<(), Refusal>, StreamEnd>
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
            Err(WaitFailure::Elsewhere) => Err(StreamEnd::Reconnect),
            Err(WaitFailure::Stopping) => Err(StreamEnd::Stopping),
            Err(failure) => Ok(Err(timed_out(history, lsn, &failure))),
        }
    }

    /// Answers the gathered `GetPage` requests.
    async fn answer_batch(&mut self, output: &mut Vec<u8>) -> Result<(), StreamEnd> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let history = self.history.clone().expect("a batch has only checked requests");
        let begun = Instant::now();
        self.metrics.queries_started[QueryKind::GetPage as usize].inc_by(self.requests.len() as u64);
        self.metrics.batch_size.observe(self.requests.len() as f64);
        self.pages.clear();
        history.get_pages(&self.wanted, &mut self.pages).await;
        debug_assert_eq!(self.pages.len(), self.wanted.len(), "one answer to every request");

        output.reserve(self.requests.len() * (BLOCK_SIZE + 64));
        let mut pages = std::mem::take(&mut self.pages);
        for (request, page) in self.requests.iter().zip(pages.drain(..)) {
            let page = page.as_ref().map(AsRef::as_ref).map(<&[u8; BLOCK_SIZE]>::try_from);
            match page {
                Ok(Ok(page)) => answer(output, self.version, request, &Answer::Page(page)),
                Ok(Err(_length)) => {
                    self.refuse(output, &request.header, Trouble::Absent("the page has not 8,192 bytes"))?;
                }
                Err(error) => self.refuse_read(output, &request.header, error)?,
            }
        }
        self.pages = pages;
        self.metrics.answered(QueryKind::GetPage, self.requests.len(), begun.elapsed().as_secs_f64());
        self.requests.clear();
        self.wanted.clear();
        Ok(())
    }

    /// Answers anything else.
    async fn answer(
        &self,
        output: &mut Vec<u8>,
        history: &H,
        request: &Request,
        lsn: Lsn,
    ) -> Result<(), Trouble> {
        let pages;
        let given = match request.query {
            Query::Exists(rel) | Query::Size(rel) | Query::Page { rel, .. } if rel.rel == 0 => {
                return Err(Trouble::Absent("relation number 0"));
            }
            Query::Page { .. } => unreachable!("pages of relations are answered in batches"),
            Query::Exists(rel) => Answer::Exists(history.rel_size(rel, lsn).await?.is_some()),
            Query::Size(rel) => match history.rel_size(rel, lsn).await? {
                Some(size) => Answer::Size(size),
                None if matches!(rel.fork, Fork::Fsm | Fork::Vm) => Answer::Size(0),
                None => return Err(Trouble::Absent("the relation does not exist")),
            },
            Query::DbSize { db } => {
                Answer::DbSize(i64::try_from(history.db_size(db, lsn).await?).unwrap_or(i64::MAX))
            }
            Query::SlruSegment { kind, segment } => {
                let slru = SlruKind::from_number(kind).ok_or_else(|| {
                    Trouble::Refusal(Refusal::BadRequest(format!("SLRU kind {kind} does not exist")))
                })?;
                pages = history
                    .slru_segment(slru, segment, lsn)
                    .await?
                    .ok_or(Trouble::Absent("the SLRU segment does not exist"))?;
                Answer::SlruSegment(&pages)
            }
        };
        answer(output, self.version, request, &given);
        Ok(())
    }

    /// Answers a request with its error, or ends the stream when that is what the error means.
    fn refuse(
        &self,
        output: &mut Vec<u8>,
        header: &RequestHeader,
        trouble: Trouble,
    ) -> Result<(), StreamEnd> {
        let refusal = match trouble {
            Trouble::Read(error) => return self.refuse_read(output, header, &error),
            Trouble::Absent(what) => {
                tracing::debug!("a read failed: {what}");
                Refusal::Read
            }
            Trouble::Refusal(refusal) => {
                tracing::debug!("refused: {refusal}");
                refusal
            }
        };
        wire::message(output, b'd', |out| {
            Answer::encode_error(self.version, header, &refusal.to_string(), out);
        });
        Ok(())
    }

    fn refuse_read(
        &self,
        output: &mut Vec<u8>,
        header: &RequestHeader,
        error: &ReadError,
    ) -> Result<(), StreamEnd> {
        match error {
            ReadError::Superseded => Err(StreamEnd::Reconnect),
            ReadError::Stopping => Err(StreamEnd::Stopping),
            error => {
                // The client reads only that it failed; the log has the cause.
                tracing::warn!("a read failed: {}", error_story(error));
                self.refuse(output, header, Trouble::Refusal(Refusal::Read))
            }
        }
    }
}

fn answer(output: &mut Vec<u8>, version: Version, request: &Request, given: &Answer<'_>) {
    wire::message(output, b'd', |out| given.encode(version, request, out));
}

fn kind_of(query: &Query) -> QueryKind {
    match query {
        Query::Exists(_) => QueryKind::Exists,
        Query::Size(_) => QueryKind::Nblocks,
        Query::Page { .. } => QueryKind::GetPage,
        Query::DbSize { .. } => QueryKind::DbSize,
        Query::SlruSegment { .. } => QueryKind::GetSlruSegment,
    }
}

/// What the client reads when WAL did not arrive.
pub fn timed_out<H: History>(history: &H, wanted: Lsn, failure: &WaitFailure) -> Refusal {
    Refusal::LsnTimeout {
        wanted,
        last_record: history.last_record_lsn(),
        disk_consistent: history.disk_consistent_lsn(),
        receiver: match failure {
            WaitFailure::Broken(reason) => format!("ingest has stopped: {reason}"),
            _ => history.source_status(),
        },
    }
}
