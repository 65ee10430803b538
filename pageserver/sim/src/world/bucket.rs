//! The bucket as processes reach it: what befalls requests on their way there and back.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::object_path::ObjectPath;
use engine::ports::{Body, Bucket, BucketError, ETag, ListRequest, Listing, Object, ObjectMeta, PutIf};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Planted, ProcessId, World};
use crate::dice::Dice;
use crate::doctor::without_a_version;
use crate::scenario::{Class, Fault};

#[derive(Clone, Debug)]
enum Request {
    Get(String, Option<Range<u64>>),
    Put(String, Bytes, PutIf),
    List { prefix: String, after: Option<String>, delimiter: bool, limit: Option<usize> },
    Head(String),
    Delete(Vec<String>),
}

enum Answer {
    Object(Object),
    Tag(ETag),
    Listing(Listing),
    Meta(ObjectMeta),
    Done,
}

type Answered = Result<Answer, BucketError>;

/// What becomes of a request.
struct Plan {
    before: Duration,
    after: Duration,
    fault: Option<Fault>,
    /// It arrives although its sender died while it was on its way.
    outlives: bool,
}

impl World {
    /// Decides what befalls a request.
    fn plan(&self, process: ProcessId, request: &Request) -> Plan {
        let mut state = self.state();
        let class = class_of(request);
        let path = request.path();
        let name = format!("{} {path}", request.name());
        let count = state.sent.entry(name.clone()).or_default();
        *count += 1;
        // Of its own name and number alone, so that a step less changes as little as may be.
        let mut dice = Dice::new(self.seed ^ *count, &name);
        let time = |dice: &mut Dice| {
            let usual = dice.from(1..20);
            Duration::from_millis(if dice.permille(20) { usual * 50 } else { usual })
        };
        let (before, after) = (time(&mut dice), time(&mut dice));
        let fits = |armed: &Class| {
            *armed == class || *armed == Class::Any || (*armed == Class::Put && is_put(class))
        };
        let armed = state.armed.iter().position(|(armed, _)| fits(armed));
        let fault = armed.map(|at| state.armed.remove(at).1);
        state.counts.requests += 1;
        let reach = &mut state.processes[process];
        if let Some(left) = reach.dies_in.as_mut() {
            if *left == 0 {
                reach.dies_in = None;
                drop(state);
                self.befell("crash at a request");
                self.kill(process);
            } else {
                *left -= 1;
            }
        }
        Plan { before, after, fault, outlives: dice.permille(500) }
    }

    async fn ask(self: &Arc<Self>, process: ProcessId, request: Request) -> Answered {
        self.go_on(process).await;
        let plan = self.plan(process, &request);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(Arc::clone(self).carry_out(process, request, plan, answer));
        let answered = match answered.await {
            Ok(answered) => answered,
            Err(_) => std::future::pending().await, // it is lost, and nobody says so
        };
        self.go_on(process).await;
        answered
    }

    async fn carry_out(
        self: Arc<Self>,
        process: ProcessId,
        request: Request,
        plan: Plan,
        answer: oneshot::Sender<Answered>,
    ) {
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        tokio::time::sleep(plan.before).await;
        match plan.fault {
            Some(Fault::Fail) => {
                self.befell("request failed");
                let _ = answer.send(Err(request.unavailable("it was made to fail")));
                return;
            }
            Some(Fault::Late(delay)) => {
                self.befell("request arrived late");
                let _ = answer.send(Err(request.unavailable("it is still on its way")));
                tokio::time::sleep(ms(delay)).await;
                let _ = self.arrive(process, &request);
                return;
            }
            Some(Fault::Slow(delay)) => {
                self.befell("request was slow");
                tokio::time::sleep(ms(delay)).await;
            }
            _ => {}
        }
        let (outage, no_bucket_until, alive) = {
            let state = self.state();
            let reach = state.processes[process];
            (state.outage, reach.no_bucket_until, reach.alive)
        };
        let is_silent = match outage.filter(|(until, _)| *until > Instant::now()) {
            Some((_, silent)) => Some(silent),
            None => (no_bucket_until > Instant::now()).then_some(true),
        };
        match is_silent {
            Some(true) => {
                self.befell("request into silence");
                // A connection that hangs is broken at last, long after whoever waits gave up.
                tokio::time::sleep(Duration::from_hours(1)).await;
                drop(answer);
                return;
            }
            Some(false) => {
                self.befell("request refused");
                let _ = answer.send(Err(request.unavailable("the bucket is away")));
                return;
            }
            None => {}
        }
        if !alive && !plan.outlives {
            return;
        }
        let answered = self.arrive(process, &request);
        match plan.fault {
            Some(Fault::LoseAnswer) => {
                self.befell("answer was lost");
                let _ = answer.send(Err(request.unavailable("its answer was lost")));
                return;
            }
            Some(Fault::SlowAnswer(delay)) => {
                self.befell("answer was slow");
                tokio::time::sleep(ms(delay)).await;
            }
            Some(Fault::Twice(delay)) => {
                self.befell("request arrived twice");
                let world = Arc::clone(&self);
                tokio::spawn(async move {
                    tokio::time::sleep(ms(delay)).await;
                    let _ = world.arrive(process, &request);
                });
            }
            Some(Fault::CutShort) => {
                if let Ok(Answer::Object(mut object)) = answered {
                    self.befell("answer was cut short");
                    object.bytes.truncate(object.bytes.len() / 2);
                    let _ = answer.send(Ok(Answer::Object(object)));
                    return;
                }
            }
            _ => {}
        }
        tokio::time::sleep(plan.after).await;
        let _ = answer.send(answered);
    }

    /// The request reaches the bucket, and is done.
    fn arrive(&self, process: ProcessId, request: &Request) -> Answered {
        let answered = match request {
            Request::Get(path, range) => now(self.store.get(path, range.clone())).map(Answer::Object),
            Request::Put(path, body, condition) => self.put(path, body, condition).map(Answer::Tag),
            Request::List { prefix, after, delimiter, limit } => {
                let limit = Some(limit.map_or(self.list_page, |limit| limit.min(self.list_page)));
                let request = ListRequest { prefix, after: after.as_deref(), delimiter: *delimiter, limit };
                now(self.store.list(request))
                    .map(|listing| Answer::Listing(self.as_listed(after.is_some(), listing)))
            }
            Request::Head(path) if self.is_hidden(path) => Err(BucketError::NotFound(path.clone())),
            Request::Head(path) => now(self.store.head(path)).map(Answer::Meta),
            Request::Delete(paths) => {
                if self.planted == Some(Planted::LayerLost)
                    && let Some(lost) = self.neighbour(&paths[0])
                {
                    now(self.store.delete(&[lost]))?;
                }
                now(self.store.delete(paths)).map(|()| Answer::Done)
            }
        };
        let outcome = outcome(&answered);
        // Claims tell the process id of whoever runs this.
        let size = if request.path().contains("/claims/") { 0 } else { request.size() };
        self.trace((process, request.name(), request.path(), size, &outcome));
        self.tell(|| format!("p{process} {} {} {outcome}", request.name(), request.path()));
        answered
    }

    fn put(&self, path: &str, body: &Bytes, condition: &PutIf) -> Result<ETag, BucketError> {
        let parsed = path.parse::<ObjectPath>();
        if self.planted == Some(Planted::PutsUnconditional) && matches!(parsed, Ok(ObjectPath::Index { .. }))
        {
            now(self.store.delete(&[path.to_owned()]))?;
            return now(self.store.put(path, Body::Bytes(body.clone()), PutIf::Absent));
        }
        let is_unsynced = match self.planted {
            Some(Planted::PutsUnsynced) => true,
            Some(Planted::PutsTorn) => {
                matches!(parsed, Ok(ObjectPath::Layer { .. } | ObjectPath::Wal { .. }))
            }
            _ => false,
        };
        let before = is_unsynced.then(|| now(self.store.get(path, None)).ok().map(|object| object.bytes));
        let body = match &parsed {
            Ok(ObjectPath::Layer { name, .. })
                if self.planted == Some(Planted::MergeDropsVersion)
                    && name.layer.is_delta()
                    && !name.layer.is_l0() =>
            {
                without_a_version(body).unwrap_or_else(|| body.clone())
            }
            _ => body.clone(),
        };
        let tag = now(self.store.put(path, Body::Bytes(body), condition.clone()))?;
        if let Some(before) = before {
            self.state().unsynced.push((Instant::now(), path.into(), before));
        }
        match parsed {
            Ok(ObjectPath::Claim { generation, .. }) => {
                self.state().claims.entry(generation.0).or_insert_with(Instant::now);
            }
            Ok(ObjectPath::Wal { .. }) => {
                self.state().wal_put.insert(path.into(), Instant::now());
            }
            _ => {}
        }
        Ok(tag)
    }

    /// A layer beside one that is deleted.
    fn neighbour(&self, path: &str) -> Option<String> {
        let Ok(ObjectPath::Layer { .. }) = path.parse() else { return None };
        let prefix = &path[..=path.rfind('/')?];
        let all = now(self.store.list(ListRequest { prefix, ..ListRequest::default() })).ok()?.objects;
        let is_layer = |path: &str| matches!(path.parse(), Ok(ObjectPath::Layer { .. }));
        all.into_iter().map(|object| object.path).find(|other| other != path && is_layer(other))
    }

    fn is_hidden(&self, path: &str) -> bool {
        self.planted == Some(Planted::TombstonesHidden) && path.contains("/tombstones/")
    }

    /// A listing as this world shows it.
    fn as_listed(&self, from_a_place: bool, mut listing: Listing) -> Listing {
        match self.planted {
            // Who validates lists from its own claim on.
            Some(Planted::ValidationSkipped) if from_a_place && are_claims(&listing) => {
                listing.objects.truncate(1);
                listing.next = None;
            }
            Some(Planted::TombstonesHidden) => listing.objects.retain(|object| !self.is_hidden(&object.path)),
            Some(Planted::WalListedLate) => {
                let state = self.state();
                let is_new = |path: &str| {
                    state.wal_put.get(path).is_some_and(|at| at.elapsed() < Duration::from_mins(5))
                };
                listing.objects.retain(|object| !is_new(&object.path));
            }
            _ => {}
        }
        listing
    }
}

impl Request {
    fn name(&self) -> &'static str {
        match self {
            Request::Get(..) => "get",
            Request::Put(..) => "put",
            Request::List { .. } => "list",
            Request::Head(..) => "head",
            Request::Delete(..) => "delete",
        }
    }

    fn path(&self) -> &str {
        match self {
            Request::Get(path, _) | Request::Put(path, ..) | Request::Head(path) => path,
            Request::List { prefix, .. } => prefix,
            Request::Delete(paths) => paths.first().map_or("", String::as_str),
        }
    }

    fn size(&self) -> usize {
        match self {
            Request::Put(_, body, _) => body.len(),
            Request::Delete(paths) => paths.len(),
            _ => 0,
        }
    }

    fn unavailable(&self, why: &'static str) -> BucketError {
        BucketError::Unavailable { operation: self.name(), path: self.path().into(), source: why.into() }
    }
}

fn are_claims(listing: &Listing) -> bool {
    listing.objects.first().is_some_and(|object| object.path.contains("/claims/"))
}

fn class_of(request: &Request) -> Class {
    match request {
        Request::Get(..) | Request::Head(..) => Class::Get,
        Request::List { .. } => Class::List,
        Request::Delete(..) => Class::Delete,
        Request::Put(path, ..) => match path.parse() {
            Ok(ObjectPath::Index { .. }) => Class::PutIndex,
            Ok(ObjectPath::Layer { .. }) => Class::PutLayer,
            Ok(ObjectPath::Wal { .. }) => Class::PutWal,
            Ok(ObjectPath::Claim { .. }) => Class::PutClaim,
            _ => Class::Put,
        },
    }
}

fn is_put(class: Class) -> bool {
    matches!(class, Class::PutIndex | Class::PutLayer | Class::PutWal | Class::PutClaim)
}

fn outcome(answered: &Answered) -> String {
    match answered {
        Ok(Answer::Object(object)) => format!("{} bytes", object.bytes.len()),
        Ok(Answer::Tag(_) | Answer::Done) => "done".into(),
        Ok(Answer::Listing(listing)) => format!("{} entries", listing.objects.len() + listing.prefixes.len()),
        Ok(Answer::Meta(_)) => "there".into(),
        Err(BucketError::NotFound(_)) => "not found".into(),
        Err(BucketError::Precondition(_)) => "precondition".into(),
        Err(_) => "error".into(),
    }
}

/// The answer of the bucket in memory, which never waits.
pub fn now<T>(request: impl Future<Output = T>) -> T {
    let mut request = std::pin::pin!(request);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match request.as_mut().poll(&mut context) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("a bucket in memory answers at once"),
    }
}

/// The bucket, as one process reaches it.
pub struct SimBucket {
    world: Arc<World>,
    process: ProcessId,
}

impl SimBucket {
    /// As `process` reaches it.
    pub fn new(world: Arc<World>, process: ProcessId) -> SimBucket {
        SimBucket { world, process }
    }
}

#[async_trait]
impl Bucket for SimBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        match self.world.ask(self.process, Request::Get(path.into(), range)).await? {
            Answer::Object(object) => Ok(object),
            _ => unreachable!("a get is answered with an object"),
        }
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let bytes = match body {
            Body::Bytes(bytes) => bytes,
            Body::File { file, length } => {
                let mut bytes = vec![0; length as usize];
                file.read_at(&mut bytes, 0).map_err(|error| BucketError::Unavailable {
                    operation: "put",
                    path: path.into(),
                    source: error.into(),
                })?;
                bytes.into()
            }
        };
        match self.world.ask(self.process, Request::Put(path.into(), bytes, condition)).await? {
            Answer::Tag(tag) => Ok(tag),
            _ => unreachable!("a put is answered with a tag"),
        }
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        let ListRequest { prefix, after, delimiter, limit } = request;
        let request = Request::List { prefix: prefix.into(), after: after.map(Into::into), delimiter, limit };
        match self.world.ask(self.process, request).await? {
            Answer::Listing(listing) => Ok(listing),
            _ => unreachable!("a list is answered with a listing"),
        }
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        match self.world.ask(self.process, Request::Head(path.into())).await? {
            Answer::Meta(meta) => Ok(meta),
            _ => unreachable!("a head is answered with what is known of an object"),
        }
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        self.world.ask(self.process, Request::Delete(paths.to_vec())).await.map(drop)
    }
}
