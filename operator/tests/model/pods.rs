//! The pageservers: what processes do with calls, with their work, and with the slot of the source.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use engine::claim::{Claim, ClaimedBy, ConfirmError};
use model::{Generation, Lsn, TimelineId};
use operator::fleet::rpc::CallError;
use operator::pool::view::NewerOwner;
use operator::tenant::calls::Learnt;
use operator::tenant::decide::CallKind;
use proto::v1::{ErrorDetail, Reason};
use rand::RngExt as _;

use super::operators::{Message, Reply};
use super::{POOL_UID, SourceFate, World};
use crate::broken::Broken;
use crate::owner::{self, Connection, Deleter, Opened, Owner, Said, Trouble, Work};
use crate::source::{BASE, Stream};

/// Branches that may come to be.
const BRANCHES: u8 = 5;

/// The numbers by which work is chosen: up to the first of these is what must go on, then comes housekeeping, and then what users may want.
const FIRST_CHORE: u32 = 37;
pub const FIRST_WISH: u32 = 65;
pub const LAST_WISH: u32 = 100;

/// What came of a job.
pub enum Done {
    /// Of an attachment.
    Claimed(Result<Claim, ConfirmError>),
    /// Of the opening of the timelines.
    Opened(Result<Opened, Trouble>),
    /// Of an owner's work.
    Worked(Opened, Result<Said, Trouble>),
    /// Of the first half of the tenant's deletion.
    DeletionBegun(Result<(), Trouble>),
    /// Of the second.
    Deleted(Result<(), Trouble>),
}

type Running = Pin<Box<dyn Future<Output = Done> + Send>>;

/// A pod, and the process in it.
#[allow(clippy::struct_excessive_bools, reason = "each of them goes wrong for itself")]
pub struct Server {
    /// Its name.
    pub pod: String,
    /// Whether a process runs.
    pub up: bool,
    /// Which.
    pub instance: String,
    /// No operator hears of it.
    pub cut_off: bool,
    /// It does nothing, and goes on later as if no time had passed.
    pub paused: bool,
    /// Since when no operator hears of it.
    pub silent_since: Option<i64>,
    /// It is to be emptied.
    pub leaving: bool,
    /// The shard, if it has it.
    pub held: Option<Held>,
    /// The call that the running attachment or deletion answers.
    answering: Option<Message>,
    job: Option<Running>,
}

/// A shard that a process has, or is about to.
pub struct Held {
    /// As which owner.
    pub generation: Generation,
    /// By which attempt.
    pub attempt: String,
    /// Once it is claimed.
    pub claim: Option<Claim>,
    /// Once its timelines are open.
    pub opened: Option<Opened>,
    /// A newer owner.
    pub superseded: Option<NewerOwner>,
    /// Its deletion was asked for: users are told so when they want anything.
    deleting: bool,
}

impl Server {
    /// A pod that holds nothing.
    pub fn new(number: usize) -> Server {
        Server {
            pod: format!("ps-{number}"),
            up: true,
            instance: format!("{number}.0"),
            cut_off: false,
            paused: false,
            silent_since: None,
            leaving: false,
            held: None,
            answering: None,
            job: None,
        }
    }

    /// Whether operators hear of it.
    pub fn is_heard(&self) -> bool {
        self.up && !self.cut_off && !self.paused
    }

    /// Whether it has something to do to its end.
    pub fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Notes since when it is not heard.
    pub fn note_contact(&mut self, now: i64) {
        self.silent_since = if self.is_heard() { None } else { Some(self.silent_since.unwrap_or(now)) };
    }
}

impl World {
    // Calls.

    /// One of the calls on their way, which is not on its way any more.
    pub fn take_call(&mut self) -> Option<Message> {
        if self.calls.is_empty() {
            return None;
        }
        let which = self.random.random_range(0..self.calls.len());
        Some(self.calls.swap_remove(which))
    }

    /// A call arrives.
    pub fn deliver_call(&mut self) {
        let Some(message) = self.take_call() else { return };
        let Some(which) = self.servers.iter().position(|server| server.pod == message.call.pod) else {
            return;
        };
        if !self.servers[which].is_heard() {
            let unanswered = Err(CallError::unanswered("away"));
            self.replies.push(Reply { to: message, answered: unanswered });
            return;
        }
        let is_meant = message.call.instance == self.servers[which].instance;
        if !is_meant && self.broken != Broken::AnyInstanceAccepted {
            self.refuse(message, Reason::OtherInstance, 0, "");
            return;
        }
        match message.call.kind {
            CallKind::Attach => self.attach(which, message),
            CallKind::Detach { .. } => self.detach(which, message),
            CallKind::DeleteData => self.delete_data(which, message),
            CallKind::Configure => self.violated("nobody asked for it".into()),
        }
    }

    fn attach(&mut self, which: usize, message: Message) {
        let server = &mut self.servers[which];
        let generation = Generation(message.call.generation);
        if let Some(held) = &server.held {
            if held.generation == generation && held.attempt == message.call.attempt {
                self.replies.push(Reply { to: message, answered: Ok(Learnt::Attaching) });
                return;
            }
            if held.generation >= generation {
                let highest = held.generation.0;
                self.refuse(message, Reason::Superseded, highest, POOL_UID);
                return;
            }
        }
        if server.leaving {
            self.refuse(message, Reason::Draining, 0, "");
            return;
        }
        let by = ClaimedBy {
            pool_uid: POOL_UID.into(),
            pod: server.pod.clone(),
            pod_uid: server.pod.clone(),
            instance: server.instance.clone(),
            attempt: message.call.attempt.clone(),
        };
        let attempt = message.call.attempt.clone();
        self.let_go(which);
        let server = &mut self.servers[which];
        server.held =
            Some(Held { generation, attempt, claim: None, opened: None, superseded: None, deleting: false });
        server.answering = Some(message);
        let claiming = owner::claim(self.bucket.clone(), self.shard, generation, by, self.broken);
        server.job = Some(Box::pin(async { Done::Claimed(claiming.await) }));
    }

    fn detach(&mut self, which: usize, message: Message) {
        let generation = Generation(message.call.generation);
        if self.servers[which].held.as_ref().is_some_and(|held| held.generation <= generation) {
            self.let_go(which);
        }
        self.replies.push(Reply { to: message, answered: Ok(Learnt::Detached) });
    }

    fn delete_data(&mut self, which: usize, message: Message) {
        let server = &mut self.servers[which];
        if server.answering.is_some() {
            self.refuse(message, Reason::Loading, 0, "");
            return;
        }
        let deleter = match &mut server.held {
            Some(held) if held.generation.0 > message.call.generation => {
                let highest = held.generation.0;
                self.refuse(message, Reason::Superseded, highest, "");
                return;
            }
            Some(held) => {
                held.deleting = true;
                Deleter::Owner(held.claim.clone().expect("no attachment is running"))
            }
            None => Deleter::Anyone,
        };
        let beginning = owner::begin_deletion(self.bucket.clone(), self.shard, deleter, self.broken);
        server.answering = Some(message);
        server.job = Some(Box::pin(async { Done::DeletionBegun(beginning.await) }));
    }

    /// Its timelines are closed, and then what there is of them is deleted.
    fn deletion_begun(&mut self, which: usize) {
        self.close_stream(which);
        let server = &mut self.servers[which];
        if let Some(held) = &mut server.held {
            let pool_uid = POOL_UID.into();
            held.superseded = Some(NewerOwner { generation: Generation::DELETED.0, pool_uid });
        }
        let finishing = owner::finish_deletion(self.bucket.clone(), self.shard, self.broken);
        server.job = Some(Box::pin(async { Done::Deleted(finishing.await) }));
    }

    fn refuse(&mut self, to: Message, reason: Reason, highest: u32, pool_uid: &str) {
        let detail = ErrorDetail {
            reason: reason.into(),
            highest_generation: highest,
            pool_uid: pool_uid.into(),
            ..ErrorDetail::default()
        };
        self.replies.push(Reply { to, answered: Err(CallError { detail, message: String::new() }) });
    }

    /// The process has nothing of the shard any more; what it was doing ends where it is.
    pub fn let_go(&mut self, which: usize) {
        self.close_stream(which);
        let server = &mut self.servers[which];
        server.held = None;
        server.job = None;
        if let Some(message) = server.answering.take() {
            let unanswered = Err(CallError::unanswered("let go"));
            self.replies.push(Reply { to: message, answered: unanswered });
        }
    }

    // The slot.

    /// Whether it receives from the source, as the owner that it is now.
    pub fn streams(&self, which: usize) -> bool {
        let generation = self.servers[which].held.as_ref().map(|held| held.generation);
        let stream = self.source.stream.as_ref();
        stream.is_some_and(|stream| stream.server == which && Some(stream.generation) == generation)
    }

    fn close_stream(&mut self, which: usize) {
        if self.source.stream.as_ref().is_some_and(|stream| stream.server == which) {
            self.source.stream = None;
        }
    }

    /// It takes the slot; who had it is thrown out.
    fn take_slot(&mut self, which: usize, generation: Generation, opened: &Opened) {
        let taken = self.source.stream.is_some() && self.broken == Broken::ActiveSlotWaitedFor;
        if taken || self.source.down || opened.main.lines != self.source.lines {
            return;
        }
        if self.source.impostor {
            return self.violated(format!("{generation} takes WAL of another restore than before"));
        }
        self.source.followed = self.source.restored.is_some();
        let (received, told) = (opened.main.received, self.source.told);
        if received < told && self.highest_claim() == Some(generation) {
            self.violated(format!(
                "{generation} wants WAL from {received} on, and the source may have forgotten it up to {told}"
            ));
        }
        self.source.stream = Some(Stream { server: which, generation });
        self.story(|| format!("ps-{which} streams from {received}"));
    }

    /// It receives some of what the source has.
    fn receive(&mut self, which: usize) {
        let records = self.random.random_range(0..4);
        let end = self.source.end;
        let Some(held) = &mut self.servers[which].held else { return };
        let Some(opened) = &mut held.opened else { return };
        let main = &mut opened.main;
        main.received = main.received.max(end.min(Lsn(main.received.0 + 8 * records)));
        let received = self.ledger.received.entry(held.generation).or_insert(BASE);
        *received = main.received.max(*received);
    }

    // Work.

    /// A process does a bit of its work: up to the next request to the bucket.
    pub fn work(&mut self, which: usize) {
        if !self.servers[which].up || self.servers[which].paused {
            return;
        }
        if self.servers[which].job.is_none() {
            self.start_job(which);
        }
        let Some(mut job) = self.servers[which].job.take() else { return };
        match job.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => self.servers[which].job = Some(job),
            Poll::Ready(done) => self.finish(which, done),
        }
    }

    fn start_job(&mut self, which: usize) {
        if self.streams(which) {
            self.receive(which);
        }
        self.drawn += 1;
        let Some(held) = &self.servers[which].held else { return };
        let is_going = held.deleting;
        let Some(claim) = held.claim.clone() else { return };
        if held.superseded.is_some() {
            return;
        }
        let owner = Owner { claim, bucket: self.bucket.clone(), broken: self.broken, drawn: self.drawn };
        let Some(mut opened) = held.opened.clone() else {
            self.servers[which].job = Some(Box::pin(async move { Done::Opened(owner.open().await) }));
            return;
        };
        let mut work = self.choose_work(which, &opened);
        let is_promise = matches!(work, Work::Branch(..) | Work::Bury(_));
        // Of what goes on elsewhere nobody wants anything.
        let changes_history =
            is_promise || matches!(work, Work::MoveHorizon | Work::Lease(_) | Work::Touch(_));
        if (is_going && is_promise) || (changes_history && self.fate == SourceFate::LacksWhatWasNotReported) {
            work = Work::Idle;
        }
        match &work {
            Work::Bury(branch) => self.ledger.withdraw(*branch),
            Work::Lease(_) => self.ledger.end_lease(),
            _ => {}
        }
        self.servers[which].job = Some(Box::pin(async move {
            let said = owner.work(&mut opened, work).await;
            Done::Worked(opened, said)
        }));
    }

    /// What an owner does next.
    fn choose_work(&mut self, which: usize, opened: &Opened) -> Work {
        let streams = self.streams(which);
        let main = &opened.main;
        // A keeper stores by itself what ends in a commit; the rest when it is asked, or in time.
        let asked = self.source.stopping && streams && self.broken != Broken::KeepaliveIgnored;
        let due = self.source.committed > main.stored || asked;
        let through = if due { main.received } else { main.stored };
        let has_to_say = streams && self.source.told < through;
        let branch = TimelineId([1 + self.random.random_range(0..BRANCHES); 16]);
        // In the end an owner idles. Before, users want one thing above all others, another in each world.
        let choice = match self.random.random_range(0..10) {
            0..3 if !self.calm => self.favourite,
            _ => self.random.random_range(0..if self.calm { FIRST_CHORE } else { LAST_WISH }),
        };
        match choice {
            0..10 if self.fate == SourceFate::Restored && self.source.down => Work::Restore,
            0..30 if !streams => Work::Connect(Connection {
                lines: self.source.lines.clone(),
                history: self.source.history(),
                flushed: self.source.end,
                may_lack: self.fate == SourceFate::LacksWhatWasNotReported,
                impostor: self.source.impostor,
            }),
            0..30 if has_to_say => Work::StoreWal(through),
            30..37 => Work::Read,
            37..49 if main.covered < main.received => Work::Flush,
            49..56 => Work::Compact,
            56..61 => Work::Collect,
            61..63 => Work::Clean,
            65..77 => Work::MoveHorizon,
            77..81 => Work::Lease(self.some_lsn(opened)),
            81..88 => Work::Branch(branch, self.some_lsn(opened)),
            88..92 => Work::Bury(branch),
            92..95 => Work::Touch(branch),
            _ => Work::Idle,
        }
    }

    /// An LSN that can be read: a late one, since none below the first that is promised is ever let go of.
    fn some_lsn(&mut self, opened: &Opened) -> Lsn {
        let (horizon, to) = (opened.main.horizon.0 / 8, opened.main.received.0 / 8);
        Lsn(8 * self.random.random_range(horizon.max(to.saturating_sub(3))..=to))
    }

    fn finish(&mut self, which: usize, done: Done) {
        self.story(|| format!("ps-{which}: {}", brief(&done)));
        match done {
            Done::Claimed(Ok(claim)) => self.claimed(which, claim),
            Done::Claimed(Err(error)) => self.not_claimed(which, &error),
            Done::Opened(Ok(opened)) => {
                let Some(held) = &mut self.servers[which].held else { return };
                let generation = held.generation;
                held.opened = Some(opened.clone());
                self.check_opened(generation, &opened);
            }
            Done::Opened(Err(trouble)) => self.heed(which, trouble),
            Done::Worked(opened, said) => self.worked(which, opened, said),
            Done::DeletionBegun(Ok(())) => self.deletion_begun(which),
            Done::DeletionBegun(Err(trouble)) => self.deleted(which, Err(trouble)),
            Done::Deleted(deleted) => self.deleted(which, deleted),
        }
    }

    fn claimed(&mut self, which: usize, claim: Claim) {
        let generation = claim.generation();
        if let Some(held) = &mut self.servers[which].held {
            held.claim = Some(claim);
        }
        self.check_claimed(which, generation);
        if let Some(message) = self.servers[which].answering.take() {
            self.replies.push(Reply { to: message, answered: Ok(Learnt::Attaching) });
        }
    }

    fn not_claimed(&mut self, which: usize, error: &ConfirmError) {
        let Some(message) = self.servers[which].answering.take() else { return };
        self.let_go(which);
        match error {
            ConfirmError::Superseded { highest, by, .. } => {
                let pool = by.as_ref().map_or("", |by| by.pool_uid.as_str());
                self.refuse(message, Reason::Superseded, highest.0, pool);
            }
            ConfirmError::Deleted(_) if self.broken == Broken::DeletionIsAnOwner => {
                self.refuse(message, Reason::Superseded, Generation::LAST_OWNER.0, POOL_UID);
            }
            ConfirmError::Deleted(_) => {
                self.refuse(message, Reason::TenantDeleted, Generation::DELETED.0, "");
            }
            ConfirmError::Bucket(_) => self.refuse(message, Reason::StorageUnavailable, 0, ""),
        }
    }

    fn worked(&mut self, which: usize, opened: Opened, said: Result<Said, Trouble>) {
        let Some(generation) = self.servers[which].held.as_ref().map(|held| held.generation) else { return };
        // A connection does not outlive what it was made to.
        if let Ok(Said::MayConnect { impostor }) = said
            && impostor == self.source.impostor
        {
            self.take_slot(which, generation, &opened);
        }
        if let Some(held) = &mut self.servers[which].held {
            held.opened = Some(opened);
        }
        match said {
            Ok(said) => self.check_said(which, generation, said),
            Err(trouble) => self.heed(which, trouble),
        }
    }

    fn heed(&mut self, which: usize, trouble: Trouble) {
        match trouble {
            Trouble::Away | Trouble::Refused => {}
            Trouble::Violation(text) => self.violated(text),
            Trouble::Superseded(by) => {
                self.close_stream(which);
                let by = if by == Generation::DELETED && self.broken == Broken::DeletionIsAnOwner {
                    Generation::LAST_OWNER
                } else {
                    by
                };
                if let Some(held) = &mut self.servers[which].held {
                    held.superseded = Some(NewerOwner { generation: by.0, pool_uid: POOL_UID.into() });
                }
            }
        }
    }

    fn deleted(&mut self, which: usize, deleted: Result<(), Trouble>) {
        let Some(message) = self.servers[which].answering.take() else { return };
        match deleted {
            Ok(()) => {
                self.let_go(which);
                self.replies.push(Reply { to: message, answered: Ok(Learnt::Deleted { done: true }) });
            }
            Err(Trouble::Superseded(by)) => {
                self.refuse(message, Reason::Superseded, by.0, POOL_UID);
                self.heed(which, Trouble::Superseded(by));
            }
            Err(Trouble::Violation(text)) => self.violated(text),
            Err(Trouble::Away) => self.refuse(message, Reason::StorageUnavailable, 0, ""),
            Err(Trouble::Refused) => self.refuse(message, Reason::NotAttached, 0, ""),
        }
    }
}

fn brief(done: &Done) -> String {
    let trouble = |trouble: &Trouble| match trouble {
        Trouble::Superseded(by) => format!("{by} is newer"),
        Trouble::Away => "the bucket failed".into(),
        Trouble::Refused => "refused".into(),
        Trouble::Violation(text) => text.clone(),
    };
    match done {
        Done::Claimed(Ok(claim)) => format!("claimed {}", claim.generation()),
        Done::Claimed(Err(error)) => error.to_string(),
        Done::Opened(Ok(opened)) => {
            let branches: Vec<_> =
                opened.branches.iter().map(|(id, (_, at))| format!("{id} at {at}")).collect();
            format!("opened at {}, with branches {branches:?}", opened.main.stored)
        }
        Done::Worked(opened, Ok(said)) => format!("{said:?} (it has {})", opened.main.received),
        Done::DeletionBegun(Ok(())) => "begins to delete the tenant's data".into(),
        Done::Deleted(Ok(())) => "deleted the tenant's data".into(),
        Done::Opened(Err(error))
        | Done::Worked(_, Err(error))
        | Done::DeletionBegun(Err(error))
        | Done::Deleted(Err(error)) => trouble(error),
    }
}
