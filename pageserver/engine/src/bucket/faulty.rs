//! A bucket that misbehaves as told: for tests and simulations, never for use.
//!
//! What a network can do to a request: it is never done; it is done and the answer is lost; it is done much later, when its sender has
//! long given up; it takes its time; a part of the answer is missing.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::unavailable;
use crate::ports::{Body, Bucket, BucketError, ETag, ListRequest, Listing, Object, ObjectMeta, PutIf};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Bucket::get`]
    Get,
    /// [`Bucket::put`], and [`Bucket::copy`] on the path that it makes.
    Put,
    /// [`Bucket::list`]
    List,
    /// [`Bucket::head`]
    Head,
    /// [`Bucket::delete`]; its path is the first of the paths.
    Delete,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Fault {
    /// It is not done, and answers that the store is unavailable.
    Fail,
    /// It is not done, and answers that the store rejects it.
    Reject,
    /// It is done, and answers that the store is unavailable.
    LoseAnswer,
    /// A put or delete that answers that the store is unavailable, and is done when [`FaultyBucket::land_late`] is called.
    Late,
    /// It is done after a while.
    Slow(Duration),
    /// It is done when the gate opens.
    Hold(Gate),
    /// A get that answers with its last bytes missing.
    CutShort,
}

/// The request's side of a [`held`] gate.
#[derive(Debug)]
pub struct Gate {
    arrived: Option<oneshot::Sender<()>>,
    open: oneshot::Receiver<()>,
}

/// The test's side of a [`held`] gate.
#[derive(Debug)]
pub struct Held {
    arrived: oneshot::Receiver<()>,
    open: oneshot::Sender<()>,
}

/// A gate that holds one request until the test lets it go.
pub fn held() -> (Gate, Held) {
    let (arrived, has_arrived) = oneshot::channel();
    let (open, opens) = oneshot::channel();
    (Gate { arrived: Some(arrived), open: opens }, Held { arrived: has_arrived, open })
}

impl Held {
    /// Waits until the request has come.
    pub async fn arrived(&mut self) {
        let _ = (&mut self.arrived).await;
    }

    /// Lets the request go on.
    pub fn release(self) {
        let _ = self.open.send(());
    }
}

/// A bucket behind a bad network.
pub struct FaultyBucket {
    inner: Arc<dyn Bucket>,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    once: Vec<(Operation, String, Fault)>,
    down: bool,
    late: Vec<Late>,
    seen: Vec<(Operation, String)>,
}

enum Late {
    Put(String, Body, PutIf),
    Copy(String, String),
    Delete(Vec<String>),
}

impl FaultyBucket {
    /// Behaves until told otherwise.
    pub fn new(inner: Arc<dyn Bucket>) -> Arc<Self> {
        Arc::new(FaultyBucket { inner, plan: Mutex::default() })
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `fault` to the next such request whose path contains `path`. Several for the same requests are used up in order.
    pub fn once(&self, operation: Operation, path: &str, fault: Fault) {
        self.plan().once.push((operation, path.into(), fault));
    }

    /// Forgets faults that no request has met yet.
    pub fn forget(&self) {
        self.plan().once.clear();
    }

    /// While it is down every request that has no other fault fails.
    pub fn set_down(&self, down: bool) {
        self.plan().down = down;
    }

    /// Does what was sent with [`Fault::Late`], in the order of sending, and answers how each ended.
    pub async fn land_late(&self) -> Vec<Result<(), BucketError>> {
        let late = std::mem::take(&mut self.plan().late);
        let mut results = Vec::new();
        for request in late {
            results.push(match request {
                Late::Put(path, body, condition) => self.inner.put(&path, body, condition).await.map(drop),
                Late::Copy(from, to) => self.inner.copy(&from, &to).await.map(drop),
                Late::Delete(paths) => self.inner.delete(&paths).await,
            });
        }
        results
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<(Operation, String)> {
        self.plan().seen.clone()
    }

    /// How many requests so far were `operation` on a path that contains `path`.
    pub fn count(&self, operation: Operation, path: &str) -> usize {
        self.plan().seen.iter().filter(|(op, seen)| *op == operation && seen.contains(path)).count()
    }

    /// The fault of a request that just came.
    fn next(&self, operation: Operation, path: &str) -> Option<Fault> {
        let mut plan = self.plan();
        plan.seen.push((operation, path.into()));
        let planned =
            plan.once.iter().position(|(op, part, _)| *op == operation && path.contains(part.as_str()));
        match planned {
            Some(at) => Some(plan.once.remove(at).2),
            None => plan.down.then_some(Fault::Fail),
        }
    }

    /// Runs a request under its fault; `late` keeps what is to be done later.
    async fn run<T>(
        &self,
        operation: Operation,
        path: &str,
        request: impl Future<Output = Result<T, BucketError>>,
        late: impl FnOnce() -> Option<Late>,
    ) -> Result<T, BucketError> {
        let name = match operation {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::List => "list",
            Operation::Head => "head",
            Operation::Delete => "delete",
        };
        match self.next(operation, path) {
            None | Some(Fault::CutShort) => request.await,
            Some(Fault::Fail) => Err(unavailable(name, path, "it was made to fail")),
            Some(Fault::Reject) => Err(super::rejected(name, path, "it was made to be rejected")),
            Some(Fault::LoseAnswer) => {
                let _ = request.await;
                Err(unavailable(name, path, "its answer was lost"))
            }
            Some(Fault::Late) => {
                self.plan().late.extend(late());
                Err(unavailable(name, path, "it is still on its way"))
            }
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                request.await
            }
            Some(Fault::Hold(mut gate)) => {
                if let Some(arrived) = gate.arrived.take() {
                    let _ = arrived.send(());
                }
                let _ = gate.open.await;
                request.await
            }
        }
    }
}

#[async_trait]
impl Bucket for FaultyBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let cut = {
            let plan = self.plan();
            let planned =
                plan.once.iter().find(|(op, part, _)| *op == Operation::Get && path.contains(part.as_str()));
            matches!(planned, Some((_, _, Fault::CutShort)))
        };
        let mut object = self.run(Operation::Get, path, self.inner.get(path, range), || None).await?;
        if cut {
            object.bytes.truncate(object.bytes.len() / 2);
        }
        Ok(object)
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let request = self.inner.put(path, body.clone(), condition.clone());
        self.run(Operation::Put, path, request, || Some(Late::Put(path.into(), body, condition))).await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<ETag, BucketError> {
        let late = || Some(Late::Copy(from.into(), to.into()));
        self.run(Operation::Put, to, self.inner.copy(from, to), late).await
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        self.run(Operation::List, request.prefix, self.inner.list(request), || None).await
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        self.run(Operation::Head, path, self.inner.head(path), || None).await
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        let first = paths.first().map_or("", String::as_str);
        self.run(Operation::Delete, first, self.inner.delete(paths), || Some(Late::Delete(paths.to_vec())))
            .await
    }
}
