//! The link to one pageserver process: what it says of itself, as long as it answers.
//!
//! A stream brings changes as they come; a poll beside it notices a process that hangs. Whatever fails ends the connection, and another is
//! made.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::v1::pageserver_client::PageserverClient;
use proto::v1::{GetStatusRequest, Status as Told, WatchStatusRequest};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::credentials::{AuthenticatedChannel, ConnectError, Credentials};
use crate::api::pool::ControlAuth;
use crate::error_story::story;
use crate::pool::view::{Contact, Report};

/// An answer to a question about its status takes no longer.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// So many shards of one pageserver, each with its timelines, may come in one message.
const MESSAGE_LIMIT: usize = 64 << 20;

/// A client of one pageserver.
pub type Client = PageserverClient<AuthenticatedChannel>;

/// Where a pageserver is, and how it is spoken to. Another value is another link.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// Of its pod: another pod may get the same address later.
    pub pod_uid: String,
    /// Its address.
    pub ip: String,
    /// Its control port.
    pub port: u16,
    /// How the pool wants to be spoken to.
    pub auth: ControlAuth,
    /// How often it is asked, at least.
    pub poll: Duration,
}

/// A link, kept up by [`Link::run`] until it is dropped.
pub struct Link {
    /// To where.
    pub address: Address,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

struct State {
    /// When it was heard last; at first, when the link was made.
    heard: Instant,
    /// What it said last, while it answers.
    report: Option<Arc<Report>>,
    client: Option<Client>,
    /// Why it does not answer.
    failure: Option<String>,
}

impl Link {
    /// A link that is being made. `changed` is notified of everything new.
    pub fn start(address: Address, credentials: Credentials, changed: Arc<Notify>) -> Link {
        let state =
            Arc::new(Mutex::new(State { heard: Instant::now(), report: None, client: None, failure: None }));
        let stop = CancellationToken::new();
        let task = Task { address: address.clone(), credentials, state: state.clone(), changed };
        tokio::spawn(stop.clone().run_until_cancelled_owned(task.run()));
        Link { address, state, stop }
    }

    /// Whether it answers.
    pub fn contact(&self) -> Contact {
        let state = lock(&self.state);
        match &state.report {
            Some(report) => Contact::Answering(report.clone()),
            None => Contact::Silent(state.heard.elapsed()),
        }
    }

    /// A client, while it answers.
    pub fn client(&self) -> Option<Client> {
        lock(&self.state).client.clone()
    }

    /// Why it does not answer.
    pub fn failure(&self) -> Option<String> {
        lock(&self.state).failure.clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    address: Address,
    credentials: Credentials,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// Why a pageserver is not heard any more.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("its status: {0}")]
    Call(#[from] Box<tonic::Status>),
    #[error("it did not answer within {} s", STATUS_DEADLINE.as_secs())]
    Late,
    #[error("it ended the stream of its status")]
    Ended,
}

impl Task {
    async fn run(self) {
        loop {
            let Err(error) = self.listen().await;
            let why = story(&error);
            tracing::info!(
                pod_uid = self.address.pod_uid,
                ip = self.address.ip,
                "pageserver not heard: {why}"
            );
            {
                let mut state = lock(&self.state);
                state.report = None;
                state.client = None;
                state.failure = Some(why);
            }
            self.changed.notify_one();
            tokio::time::sleep(self.address.poll.min(Duration::from_secs(1))).await;
        }
    }

    /// Hears it until it is not heard any more.
    async fn listen(&self) -> Result<std::convert::Infallible, LinkError> {
        let channel =
            self.credentials.connect(&self.address.ip, self.address.port, &self.address.auth).await?;
        let mut client = PageserverClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        let whole = ask(&mut client).await?;
        let since_revision = whole.revision;
        let mut told = whole;
        self.hear(&told, Some(&client));
        let request = WatchStatusRequest { since_revision };
        let stream = within(client.watch_status(request)).await?;
        let mut stream = stream.into_inner();
        let mut poll = tokio::time::interval(self.address.poll);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.message() => {
                    let change = message.map_err(Box::new)?.ok_or(LinkError::Ended)?;
                    if change.instance != told.instance {
                        return Err(LinkError::Ended);
                    }
                    merge(&mut told, change);
                }
                _ = poll.tick() => told = ask(&mut client).await?,
            }
            self.hear(&told, None);
        }
    }

    fn hear(&self, told: &Told, client: Option<&Client>) {
        let report = super::report::report(told);
        let mut state = lock(&self.state);
        state.heard = Instant::now();
        state.failure = None;
        if let Some(client) = client {
            state.client = Some(client.clone());
        }
        if state.report.as_deref() != Some(&report) {
            state.report = Some(Arc::new(report));
            self.changed.notify_one();
        }
    }
}

async fn ask(client: &mut Client) -> Result<Told, LinkError> {
    Ok(within(client.get_status(GetStatusRequest {})).await?.into_inner())
}

async fn within<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, LinkError> {
    match tokio::time::timeout(STATUS_DEADLINE, call).await {
        Ok(answer) => answer.map_err(|status| Box::new(status).into()),
        Err(_) => Err(LinkError::Late),
    }
}

/// What is known after a message of the stream.
fn merge(told: &mut Told, change: Told) {
    if change.complete {
        *told = change;
        return;
    }
    let changed = |id: &str| {
        change.shards.iter().any(|shard| shard.tenant_shard_id == id)
            || change.gone.iter().any(|gone| gone == id)
    };
    let mut shards: Vec<_> = std::mem::take(&mut told.shards)
        .into_iter()
        .filter(|shard| !changed(&shard.tenant_shard_id))
        .collect();
    shards.extend(change.shards.iter().cloned());
    *told = Told { shards, complete: true, gone: Vec::new(), ..change };
}

#[cfg(test)]
mod tests {
    use proto::v1::ShardStatus;

    use super::*;

    fn held(id: &str, generation: u32) -> ShardStatus {
        ShardStatus { tenant_shard_id: id.into(), generation, ..ShardStatus::default() }
    }

    #[test]
    fn changes_are_laid_over_what_was_known() {
        let mut told = Told {
            complete: true,
            shards: vec![held("a", 1), held("b", 1), held("c", 1)],
            ..Told::default()
        };
        let change = Told {
            shards: vec![held("b", 2), held("d", 1)],
            gone: vec!["c".into()],
            draining: true,
            ..Told::default()
        };
        merge(&mut told, change);
        let shards: Vec<_> = told.shards.iter().map(|s| (s.tenant_shard_id.as_str(), s.generation)).collect();
        assert_eq!(shards, [("a", 1), ("b", 2), ("d", 1)]);
        assert!(told.draining && told.complete);
        merge(&mut told, Told { complete: true, shards: vec![held("z", 9)], ..Told::default() });
        assert_eq!(told.shards.len(), 1);
    }
}
