//! Follows a source: WAL in, and out only the LSN up to which it is safe in the bucket.
//!
//! What is reported as written, flushed and applied is one LSN: the end of WAL that is in the bucket after which this owner was still the
//! newest. The source forgets what is below it and shuts down only when it is the end, so a keepalive that waits for an answer is answered
//! as soon as everything received is there, or the connection is closed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use codec::history::TimelineHistory;
use engine::claim::{Claim, ValidateError};
use engine::lineage::{self, Course, Diverged, Ours, Theirs};
use engine::timeline::restore::SwitchError;
use engine::timeline::{AppendError, Timeline};
use engine::wal_keeper::KeepWalError;
use engine::wal_target::WalTarget;
use model::{Lsn, Tli, WalSegmentSize};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::client::{Client, ClientError, Purpose};
use super::conninfo::ConnInfo;
use super::course::{SourceCourse, Stage};
use super::replication::{self, SourceIdentity, StreamMessage};

/// How often a status is sent at least: the source drops a peer that is silent for `wal_sender_timeout`, 60 s by default.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// How often claims are listed while we hold the slot.
const CLAIMS_EVERY: Duration = Duration::from_mins(1);
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
    /// The physical slot there; `None` while another owner has it: the source then keeps no WAL for us.
    pub slot: Option<String>,
    /// Which cluster the WAL must be of.
    pub system_identifier: u64,
    /// The Postgres timeline of the base that is being imported.
    pub tli: Tli,
    /// Of the cluster.
    pub wal_segment_size: WalSegmentSize,
    /// What is told of it.
    pub state: Arc<SourceCourse>,
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
    /// Its history is not ours.
    #[error(transparent)]
    Diverged(#[from] Diverged),
    /// Its history left ours before the end of what we have, and goes on: the timeline is to be archived and continued in a new one.
    #[error(
        "the source's history left ours at {at}, before the end of what we have, and is on Postgres timeline {tli}"
    )]
    Parted {
        /// Where.
        at: Lsn,
        /// The source's Postgres timeline.
        tli: Tli,
    },
    /// The WAL that comes next is gone on the source.
    #[error(
        "the source no longer has the WAL at {wanted} that comes next; import it anew as another timeline: {reason}"
    )]
    SlotLost {
        /// What comes next.
        wanted: Lsn,
        /// In the source's words.
        reason: String,
    },
    /// Somebody else uses the slot that was chosen.
    #[error("the slot {slot} is in use by {by}: choose another name for ours, or end that one")]
    SlotTaken {
        /// Which.
        slot: String,
        /// Who, as the source shows it.
        by: String,
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

impl FollowError {
    /// Whether trying again is wrong: another owner has the tenant.
    pub fn is_final(&self) -> bool {
        match self {
            FollowError::Claim(error) | FollowError::Switch(SwitchError::Validate(error)) => {
                !matches!(error, ValidateError::Bucket(_))
            }
            FollowError::Keep(KeepWalError::Superseded(_))
            | FollowError::Append(AppendError::Keep(KeepWalError::Superseded(_))) => true,
            _ => false,
        }
    }
}

/// What is to be done with a source, as seen from an open timeline.
pub async fn course_of(
    timeline: &Timeline,
    identity: &SourceIdentity,
    history: &TimelineHistory,
) -> Result<Course, FollowError> {
    let last = timeline.settled().await?;
    let part = timeline.index().part().await;
    let index = part.palimpsest.as_ref().ok_or(SwitchError::NoPostgres)?;
    let branched_at = timeline.facts().branched_at;
    let ours = Ours { index, last, received: timeline.received().max(last), branched_at };
    Ok(lineage::course(ours, Theirs { history, flushed: identity.flushed })?)
}

/// Drops a slot on a source, even when a walsender of ours has it.
pub async fn release_slot(source: &ConnInfo, slot: &str) -> Result<(), FollowError> {
    let mut attempt = 0;
    loop {
        let mut client = Client::connect(source, Purpose::Replication).await?;
        match replication::drop_slot(&mut client, slot).await {
            Err(error) if error.is_sqlstate("55006") && attempt < SLOT_ATTEMPTS => {
                attempt += 1;
                end_walsender(source, slot).await?;
                tokio::time::sleep(Duration::from_millis(50) * attempt).await;
            }
            dropped => {
                client.close().await;
                return Ok(dropped?);
            }
        }
    }
}

/// Ends the walsender that has a slot. Under the name that we make of a timeline's id it can only be of an owner before us or a dead connection of
/// our own; under one that was chosen it must show itself as ours.
async fn end_walsender(source: &ConnInfo, slot: &str) -> Result<(), FollowError> {
    if source.has_chosen_slot() {
        let by = "(SELECT coalesce(application_name, 'another role') FROM pg_stat_replication WHERE pid = active_pid)";
        let by = slot_field(source, slot, by).await?;
        if let Some(by) = by.filter(|by| Some(by) != source.application_name.as_ref()) {
            return Err(FollowError::SlotTaken { slot: slot.to_owned(), by });
        }
    }
    slot_field(source, slot, "pg_terminate_backend(active_pid)").await?;
    Ok(())
}

/// An expression over the slot's row in `pg_replication_slots`; `None` without such a slot. Replication connections run no SQL: this is another.
async fn slot_field(source: &ConnInfo, slot: &str, expression: &str) -> Result<Option<String>, ClientError> {
    let mut client = Client::connect(source, Purpose::Sql).await?;
    let slot = slot.replace('\'', "''");
    let rows = client
        .query(&format!("SELECT {expression} FROM pg_replication_slots WHERE slot_name = '{slot}'"))
        .await?;
    client.close().await;
    Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
}

/// What the source says when it has no WAL at `wanted`: the file is gone, or the slot was given up (from Postgres 18 on).
fn lost_or(error: ClientError, wanted: Lsn) -> FollowError {
    if error.is_sqlstate("58P01") || error.is_sqlstate("55000") {
        return FollowError::SlotLost { wanted, reason: error.to_string() };
    }
    error.into()
}

impl Receiver {
    /// Connects, follows until told to stop or until something fails.
    pub async fn follow(&self, stop: CancellationToken) -> Result<(), FollowError> {
        self.state.set(Stage::Connecting, "connecting");
        let followed = self.connected(&stop).await;
        match &followed {
            Ok(()) => self.state.set(Stage::Stopped, "stopped"),
            Err(error @ FollowError::SlotLost { .. }) => {
                self.state.set(Stage::SlotLost, format!("SlotLost: {error}"));
            }
            Err(error @ FollowError::Diverged(_)) => {
                self.state.set(Stage::Diverged, format!("Diverged: {error}"));
            }
            Err(error) => self.state.set(Stage::Disconnected, format!("disconnected: {error}")),
        }
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
        let (mut client, history) = tokio::select! {
            prepared = self.prepare() => prepared?,
            () = stop.cancelled() => return Ok(()),
        };
        // To its end, also when we are to stop: the source carries out what it was sent after we closed the connection, and a slot made after
        // a deletion dropped it would keep WAL for ever.
        if let Some(slot) = &self.slot {
            self.have_slot(&mut client, slot).await?;
        }
        let followed = tokio::select! {
            followed = self.follow_history(&mut client, &history, stop) => followed,
            trouble = self.watch_claim() => Err(trouble.into()),
            () = stop.cancelled() => return Ok(()),
        };
        match &followed {
            Ok(()) => client.close().await,
            Err(FollowError::SlotLost { .. }) => {
                drop(client);
                // It would keep WAL that is of no use here until the source's disk is full.
                if let Some(slot) = &self.slot
                    && let Err(error) = release_slot(&self.source, slot).await
                {
                    tracing::warn!(slot, "cannot drop the lost slot: {error}");
                }
            }
            Err(_) => {}
        }
        followed
    }

    /// Everything before the slot.
    async fn prepare(&self) -> Result<(Client, TimelineHistory), FollowError> {
        // Before the slot is taken: an owner that was superseded must not take it from its successor.
        self.claim.validate().await?;
        let mut client = Client::connect(&self.source, Purpose::Replication).await?;
        let identity = replication::identify(&mut client).await?;
        self.check(&identity)?;
        self.warn_of_synchronous_commit(&mut client).await;
        let history = replication::history(&mut client, identity.tli).await?;
        self.join(&identity, &history).await?;
        Ok((client, history))
    }

    /// Finds our place in the source's history, and notes the Postgres timelines that it went through there.
    async fn join(&self, identity: &SourceIdentity, history: &TimelineHistory) -> Result<(), FollowError> {
        let WalTarget::Open(timeline) = &self.target else {
            let received = self.target.received();
            if identity.tli != self.tli {
                return Err(FollowError::SwitchedDuringImport(identity.tli));
            }
            if identity.flushed < received {
                return Err(Diverged::Behind { flushed: identity.flushed, received, tli: self.tli }.into());
            }
            return Ok(());
        };
        if let Course::Part { at } = course_of(timeline, identity, history).await? {
            return Err(FollowError::Parted { at, tli: identity.tli });
        }
        let part = timeline.index().part().await;
        let starts = part.palimpsest.as_ref().map(|ours| &*ours.tli_history).unwrap_or_default();
        let mut tli = starts.last().ok_or(SwitchError::NoPostgres)?.tli;
        let last = timeline.last_record_lsn();
        let is_restored_here = history
            .left_at(tli)
            .is_some_and(|(at, next)| at == last && lineage::restore_nonce(history, next).is_some());
        if !is_restored_here {
            timeline.begin_at_branch_point(history.tli_at(last)).await?;
        }
        while let Some((switch, next)) = history.left_at(tli).filter(|(at, _)| *at <= timeline.received()) {
            self.note_switch(history, next, switch).await?;
            if timeline.tli() < next && timeline.received() > switch {
                return Err(Diverged::OtherBytes { at: switch }.into());
            }
            tli = next;
        }
        Ok(())
    }

    /// Streams, from one Postgres timeline to the next. What is known of the newest WAL is asked for again, to be compared.
    async fn follow_history(
        &self,
        client: &mut Client,
        history: &TimelineHistory,
        stop: &CancellationToken,
    ) -> Result<(), FollowError> {
        let received = self.target.received();
        let segment = self.wal_segment_size.bytes();
        // Of the segment that the slot keeps in any case.
        let mut start = self.target.known_from().max(Lsn(received.0 - received.0 % segment)).min(received);
        let mut tli = history.tli_at(start);
        loop {
            self.start(client, start, tli).await?;
            tracing::info!(%start, %received, %tli, "following {}", self.source);
            // A source that has nothing new says nothing.
            self.state.set(Stage::Streaming, format!("streaming, received {received}"));
            match self.stream(client, tli, stop).await? {
                StreamEnd::Stopped => return Ok(()),
                StreamEnd::NextTimeline(None) => return Err(ClientError::Closed.into()),
                StreamEnd::NextTimeline(Some((next, switch))) => {
                    let received = self.target.received();
                    if switch > received {
                        return Err(KeepWalError::Gap { expected: received, got: switch }.into());
                    }
                    self.note_switch(history, next, switch).await?;
                    (start, tli) = (switch, next);
                }
            }
        }
    }

    /// Before the first WAL of another Postgres timeline is taken, the index says where that one begins: else the next owner could not tell
    /// which of the objects count.
    async fn note_switch(
        &self,
        history: &TimelineHistory,
        next: Tli,
        switch: Lsn,
    ) -> Result<(), FollowError> {
        match &self.target {
            WalTarget::Open(timeline) => {
                timeline.note_switch(next, switch, lineage::restore_nonce(history, next)).await?;
            }
            WalTarget::Importing(_) => return Err(FollowError::SwitchedDuringImport(next)),
        }
        tracing::info!(%switch, to = %next, "the source's Postgres timeline changed");
        Ok(())
    }

    /// Sees to it that the source has our slot. One that the source gave up keeps nothing; whether the WAL is still there shows when it is asked for.
    async fn have_slot(&self, client: &mut Client, slot: &str) -> Result<(), FollowError> {
        let is_lost = match slot_field(&self.source, slot, "wal_status").await {
            Ok(status) => status.as_deref() == Some("lost"),
            Err(error) => {
                tracing::debug!("cannot ask how the slot is: {error}");
                false
            }
        };
        if is_lost {
            tracing::warn!(slot, "the source gave the slot up; making it anew");
            replication::drop_slot(client, slot).await?;
        }
        if replication::create_slot(client, slot).await? {
            tracing::info!(slot, received = %self.target.received(), "created the slot");
        }
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

    /// Begins to stream; takes the slot from another walsender of ours.
    async fn start(&self, client: &mut Client, start: Lsn, tli: Tli) -> Result<(), FollowError> {
        let mut attempt = 0;
        loop {
            match replication::start(client, self.slot.as_deref(), start, tli).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_sqlstate("55006") && attempt < SLOT_ATTEMPTS => {
                    attempt += 1;
                    client.rows_until_ready().await?;
                    tracing::info!(slot = ?self.slot, "the slot is in use; ending its walsender");
                    if let Some(slot) = &self.slot {
                        end_walsender(&self.source, slot).await?;
                    }
                    tokio::time::sleep(Duration::from_millis(100) * attempt).await;
                }
                Err(error) => return Err(lost_or(error, start)),
            }
        }
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
                message = client.message() => match message {
                    Ok(message) => Event::Message(replication::stream_message(&message)?),
                    // Whether it has the WAL, the source says only here.
                    Err(error) => return Err(lost_or(error, self.target.received())),
                },
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
                    self.tell(received, end);
                }
                Event::Message(StreamMessage::Keepalive { end, time, reply }) => {
                    self.target.note_source_time(time);
                    self.tell(self.target.received(), end);
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
                taken = &mut append => return match taken {
                    Err(AppendError::Keep(KeepWalError::Differs(at))) => Err(Diverged::OtherBytes { at }.into()),
                    taken => Ok(taken?),
                },
                () = tokio::time::sleep(STATUS_EVERY) => {
                    self.state.set(Stage::Streaming, "waiting for memory or the bucket");
                    self.report(client).await?;
                }
            }
        }
    }

    fn tell(&self, received: Lsn, end: Lsn) {
        self.state.set(Stage::Streaming, format!("streaming, received {received}, the source is at {end}"));
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
