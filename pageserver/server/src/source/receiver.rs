//! Follows a source: WAL in, and out only the LSN up to which it is safe in the bucket.
//!
//! What is reported as written, flushed and applied is one LSN: the end of WAL that is in the bucket after which this owner was still the
//! newest. The source forgets what is below it and shuts down only when it is the end, so a keepalive that waits for an answer is answered
//! as soon as everything received is there, or the connection is closed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use engine::claim::{Claim, ValidateError};
use engine::timeline::AppendError;
use engine::timeline::restore::SwitchError;
use engine::wal_keeper::KeepWalError;
use engine::wal_target::WalTarget;
use model::{Lsn, Tli};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::client::{Client, ClientError, Purpose};
use super::conninfo::ConnInfo;
use super::replication::{self, SourceIdentity, StreamMessage};

/// How often a status is sent at least: the source drops a peer that is silent for `wal_sender_timeout`, 60 s by default.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// How often claims are listed while we hold the slot.
const CLAIMS_EVERY: Duration = Duration::from_secs(60);
/// A source that waits for an answer gets it in this time or is left: its shutdown hangs on us.
const SEAL_PATIENCE: Duration = Duration::from_secs(8);
/// Attempts to get a slot that another walsender has, each after ending that one.
const SLOT_ATTEMPTS: u32 = 10;

/// Follows one source into one target. Each run is one connection.
#[derive(Clone)]
pub struct Receiver {
    /// Where WAL goes.
    pub target: WalTarget,
    /// Ownership of the tenant.
    pub claim: Claim,
    /// The source.
    pub source: ConnInfo,
    /// The physical slot there.
    pub slot: String,
    /// Which cluster the WAL must be of.
    pub system_identifier: u64,
    /// The Postgres timeline of the newest WAL received.
    pub tli: Tli,
    /// What is told of it.
    pub state: Arc<ReceiverState>,
}

/// What a receiver is doing, for people.
#[derive(Debug, Default)]
pub struct ReceiverState {
    // Guards one text.
    text: Mutex<String>,
}

impl ReceiverState {
    /// In words.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what it does now.
    pub fn set(&self, text: impl Into<String>) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }
}

/// Why following ended.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The source did not do what it was asked, or is away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It is another cluster.
    #[error("the source is cluster {found}, expected {expected}")]
    OtherCluster {
        /// Its system identifier.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// It replays another's WAL.
    #[error("the source is a standby; a primary is needed")]
    Standby,
    /// Its history left ours before the end of what we have.
    #[error(
        "the source's history left ours at {fork}, and we have WAL up to {received} of Postgres timeline {tli}"
    )]
    Diverged {
        /// Where the histories part.
        fork: Lsn,
        /// Ours went on to here.
        received: Lsn,
        /// On this Postgres timeline.
        tli: Tli,
    },
    /// The WAL that comes next is gone on the source.
    #[error("the slot is lost: the source no longer has WAL at {wanted}: {reason}")]
    SlotLost {
        /// What comes next.
        wanted: Lsn,
        /// In the source's words.
        reason: String,
    },
    /// A newer owner has the tenant.
    #[error(transparent)]
    Claim(#[from] ValidateError),
    /// The index does not take the switch to another Postgres timeline.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The source was promoted while its base was being imported; the import has to begin anew.
    #[error("the source went on as Postgres timeline {0} during its import")]
    SwitchedDuringImport(Tli),
    /// WAL is not taken.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// WAL cannot be stored.
    #[error(transparent)]
    Keep(#[from] KeepWalError),
    /// The source waited for what is not in the bucket yet.
    #[error("WAL up to {0} was not safe in the bucket in {SEAL_PATIENCE:?}, while the source waited")]
    TooSlow(Lsn),
}

/// How a stream ended without an error.
enum StreamEnd {
    /// We are to stop.
    Stopped,
    /// The Postgres timeline ended: which one goes on, and where.
    NextTimeline(Option<(Tli, Lsn)>),
}

impl Receiver {
    /// Connects, follows until told to stop or until something fails.
    pub async fn follow(&self, stop: CancellationToken) -> Result<(), FollowError> {
        self.state.set("connecting");
        let followed = tokio::select! {
            followed = self.connected(&stop) => followed,
            trouble = self.watch_claim() => Err(trouble.into()),
            () = stop.cancelled() => Ok(()),
        };
        self.state.set(match &followed {
            Ok(()) => "stopped".to_owned(),
            Err(error) => format!("disconnected: {error}"),
        });
        followed
    }

    /// Lists claims once a minute; ends when a newer owner has the tenant. A bucket that is away says nothing about owners, and nothing
    /// is reported meanwhile.
    async fn watch_claim(&self) -> ValidateError {
        loop {
            tokio::time::sleep(CLAIMS_EVERY).await;
            match self.claim.validate().await {
                Ok(()) => {}
                Err(ValidateError::Bucket(error)) => tracing::warn!("cannot list claims: {error}"),
                Err(error) => return error,
            }
        }
    }

    async fn connected(&self, stop: &CancellationToken) -> Result<(), FollowError> {
        // Before the slot is taken: an owner that was superseded must not take it from its successor.
        self.claim.validate().await?;
        let mut client = Client::connect(&self.source, Purpose::Replication).await?;
        let identity = replication::identify(&mut client).await?;
        self.check(&identity)?;
        self.warn_of_synchronous_commit(&mut client).await;
        let created = replication::create_slot(&mut client, &self.slot).await?;
        let history = replication::history(&mut client, identity.tli).await?;
        let received = self.target.received();
        if created {
            tracing::info!(slot = self.slot, %received, "created the slot");
        }
        let mut tli = history.tli_at(received);
        if !history.contains(self.tli, received) {
            let fork = history.left_at(self.tli).map_or(Lsn::INVALID, |(fork, _)| fork);
            return Err(FollowError::Diverged { fork, received, tli: self.tli });
        }
        if identity.tli == self.tli && identity.flushed < received {
            return Err(FollowError::Diverged { fork: identity.flushed, received, tli: self.tli });
        }
        let mut ours = self.tli;
        while ours != tli
            && let Some((switch, next)) = history.left_at(ours)
        {
            self.note_switch(next, switch).await?;
            ours = next;
        }
        loop {
            let start = self.target.received();
            self.start(&mut client, start, tli).await?;
            tracing::info!(%start, %tli, "following {}", self.source);
            match self.stream(&mut client, tli, stop).await? {
                StreamEnd::Stopped => {
                    client.close().await;
                    return Ok(());
                }
                StreamEnd::NextTimeline(None) => return Err(ClientError::Closed.into()),
                StreamEnd::NextTimeline(Some((next, switch))) => {
                    let received = self.target.received();
                    if switch != received {
                        return Err(FollowError::Diverged { fork: switch, received, tli });
                    }
                    self.note_switch(next, switch).await?;
                    tli = next;
                }
            }
        }
    }

    /// Before the first WAL of another Postgres timeline is taken, the index says where that one begins: else the next owner could not tell
    /// which of the objects count.
    async fn note_switch(&self, next: Tli, switch: Lsn) -> Result<(), FollowError> {
        match &self.target {
            WalTarget::Open(timeline) => timeline.note_switch(next, switch).await?,
            WalTarget::Importing(_) => return Err(FollowError::SwitchedDuringImport(next)),
        }
        tracing::info!(%switch, to = %next, "the source's Postgres timeline changed");
        Ok(())
    }

    fn check(&self, identity: &SourceIdentity) -> Result<(), FollowError> {
        if identity.system_identifier != self.system_identifier {
            return Err(FollowError::OtherCluster {
                found: identity.system_identifier,
                expected: self.system_identifier,
            });
        }
        if identity.is_standby { Err(FollowError::Standby) } else { Ok(()) }
    }

    /// Whether commits on the source would wait for us, which is seldom what anybody wants: we report only what is in the bucket.
    async fn warn_of_synchronous_commit(&self, client: &mut Client) {
        let names = client.show("synchronous_standby_names").await.unwrap_or_default();
        let ours = self.source.application_name.as_deref().unwrap_or("palimpsest");
        let matches = names
            .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*'))
            .any(|name| name == "*" || name.eq_ignore_ascii_case(ours));
        if matches {
            tracing::warn!(
                names,
                "synchronous_standby_names of the source matches {ours:?}: its commits will wait until they are in the bucket"
            );
        }
    }

    /// Begins to stream; takes the slot from another walsender, which can only be of an owner before us or a dead connection of our own.
    async fn start(&self, client: &mut Client, start: Lsn, tli: Tli) -> Result<(), FollowError> {
        let mut attempt = 0;
        loop {
            match replication::start(client, Some(&self.slot), start, tli).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_sqlstate("55006") && attempt < SLOT_ATTEMPTS => {
                    attempt += 1;
                    client.rows_until_ready().await?;
                    tracing::info!(slot = self.slot, "the slot is in use; ending its walsender");
                    self.end_walsender().await?;
                    tokio::time::sleep(Duration::from_millis(100) * attempt).await;
                }
                Err(error) if error.is_sqlstate("58P01") || error.is_sqlstate("55000") => {
                    return Err(FollowError::SlotLost { wanted: start, reason: error.to_string() });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn end_walsender(&self) -> Result<(), ClientError> {
        let mut client = Client::connect(&self.source, Purpose::Sql).await?;
        let slot = self.slot.replace('\'', "''");
        client
            .query(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
            ))
            .await?;
        client.close().await;
        Ok(())
    }

    async fn stream(
        &self,
        client: &mut Client,
        tli: Tli,
        stop: &CancellationToken,
    ) -> Result<StreamEnd, FollowError> {
        let mut flushed = self.target.flushed();
        let mut tick = tokio::time::interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            enum Event {
                Message(StreamMessage),
                Flushed,
                Tick,
                Stop,
            }
            let event = tokio::select! {
                message = client.message() => Event::Message(replication::stream_message(&message?)?),
                changed = flushed.changed() => match changed {
                    Ok(()) => Event::Flushed,
                    Err(_) => return Err(KeepWalError::Stopped.into()),
                },
                _ = tick.tick() => Event::Tick,
                () = stop.cancelled() => Event::Stop,
            };
            match event {
                Event::Message(StreamMessage::Wal { start, end, bytes, .. }) => {
                    self.take(client, start, tli, bytes).await?;
                    let received = self.target.received();
                    self.state.set(format!("streaming, received {received}, the source is at {end}"));
                }
                Event::Message(StreamMessage::Keepalive { end, reply, .. }) => {
                    self.state.set(format!(
                        "streaming, received {}, the source is at {end}",
                        self.target.received()
                    ));
                    if reply {
                        self.answer(client, end).await?;
                    }
                }
                Event::Message(StreamMessage::TimelineEnd) => {
                    return Ok(StreamEnd::NextTimeline(replication::next_timeline(client).await?));
                }
                Event::Flushed | Event::Tick => self.report(client).await?,
                Event::Stop => {
                    self.report(client).await?;
                    return Ok(StreamEnd::Stopped);
                }
            }
        }
    }

    /// Hands WAL on. That waits while memory or the bucket is short, and the source must hear of us meanwhile.
    async fn take(
        &self,
        client: &mut Client,
        start: Lsn,
        tli: Tli,
        bytes: bytes::Bytes,
    ) -> Result<(), FollowError> {
        let append = self.target.append(start, tli, bytes);
        tokio::pin!(append);
        loop {
            tokio::select! {
                taken = &mut append => return Ok(taken?),
                () = tokio::time::sleep(STATUS_EVERY) => {
                    self.state.set("waiting for memory or the bucket");
                    self.report(client).await?;
                }
            }
        }
    }

    async fn report(&self, client: &mut Client) -> Result<(), ClientError> {
        let flushed = *self.target.flushed().borrow();
        client.copy_data(&replication::status(flushed, SystemTime::now())).await
    }

    /// The source waits for an answer. When it has sent all it has, it may be shutting down, and ends only when all of it is safe.
    async fn answer(&self, client: &mut Client, end: Lsn) -> Result<(), FollowError> {
        let received = self.target.received();
        if received >= end && *self.target.flushed().borrow() < received {
            let begun = Instant::now();
            match tokio::time::timeout(SEAL_PATIENCE, self.target.seal_now()).await {
                Ok(sealed) => {
                    let sealed = sealed?;
                    tracing::debug!(%sealed, "sealed for a source that waits, in {:?}", begun.elapsed());
                }
                Err(_) => return Err(FollowError::TooSlow(received)),
            }
        }
        Ok(self.report(client).await?)
    }
}
