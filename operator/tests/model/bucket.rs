//! A bucket in memory in which every request can be stopped: before it takes effect, or before its answer is heard.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use async_trait::async_trait;
use engine::bucket::MemoryBucket;
use engine::ports::{Body, Bucket, BucketError, ETag, ListRequest, Listing, Object, ObjectMeta, PutIf};
use futures::FutureExt as _;

use super::broken::Broken;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    Answered,
    /// It fails and has no effect.
    Refused,
    /// It takes effect and its answer is lost.
    AnswerLost,
    /// Its sender gives up; it takes effect later, if it still can.
    Late,
}

/// A change whose sender gave up on it.
enum Late {
    Put { path: String, body: Body, condition: PutIf },
    Delete(Vec<String>),
}

/// The bucket that all pageservers share.
#[derive(Clone)]
pub struct SteppedBucket {
    memory: Arc<MemoryBucket>,
    state: Arc<Mutex<State>>,
    broken: Broken,
    /// Listings through this handle, and those made from it, come back empty.
    blind: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    /// Of the next requests; when there is none, requests are answered.
    fates: VecDeque<Fate>,
    late: Vec<Late>,
}

impl SteppedBucket {
    /// With nothing in it.
    pub fn new(broken: Broken) -> SteppedBucket {
        SteppedBucket { memory: Arc::default(), state: Arc::default(), broken, blind: Arc::default() }
    }

    /// The same bucket through a handle whose listings come back empty until its eyes are opened.
    pub fn blinded(&self) -> SteppedBucket {
        SteppedBucket { blind: Arc::new(AtomicBool::new(true)), ..self.clone() }
    }

    /// Listings come back as they are from now on.
    pub fn open_eyes(&self) {
        self.blind.store(false, Ordering::Relaxed);
    }

    /// Decides what happens to the next requests.
    pub fn next_fates(&self, fates: impl IntoIterator<Item = Fate>) {
        self.state.lock().unwrap().fates = fates.into_iter().collect();
    }

    /// How many changes are on their way.
    pub fn late(&self) -> usize {
        self.state.lock().unwrap().late.len()
    }

    /// One of them arrives. Answers what it was.
    pub fn land(&self, which: usize) -> String {
        let late = self.state.lock().unwrap().late.remove(which);
        match late {
            Late::Put { path, body, condition } => {
                let outcome =
                    if self.put_now(&path, body, condition).is_ok() { "lands" } else { "is refused" };
                format!("a late put of {path} {outcome}")
            }
            Late::Delete(paths) => {
                let _ = now(self.memory.delete(&paths));
                format!("a late deletion lands: {paths:?}")
            }
        }
    }

    /// Looks at an object without being stopped.
    pub fn peek(&self, path: &str) -> Option<Vec<u8>> {
        now(self.memory.get(path, None)).ok().map(|object| object.bytes.to_vec())
    }

    /// Paths that begin so, without being stopped.
    pub fn peek_list(&self, prefix: &str) -> Vec<String> {
        let listing = now(self.memory.list(ListRequest { prefix, ..ListRequest::default() }));
        listing.expect("memory does not fail").objects.into_iter().map(|object| object.path).collect()
    }

    async fn stop(&self) -> Fate {
        let mut stopped = false;
        poll_fn(|context| {
            if std::mem::replace(&mut stopped, true) {
                return Poll::Ready(());
            }
            // Who polls several requests at once asks only those that woke it.
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.state.lock().unwrap().fates.pop_front().unwrap_or(Fate::Answered)
    }

    fn put_now(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let condition = if self.heeds_conditions(path) {
            condition
        } else {
            let _ = now(self.memory.delete(&[path.into()]));
            PutIf::Absent
        };
        match now(self.memory.put(path, body, condition)) {
            Err(BucketError::Precondition(_)) if self.takes_refusal_for_success(path) => {
                Ok(ETag(String::new()))
            }
            answer => answer,
        }
    }

    fn heeds_conditions(&self, path: &str) -> bool {
        let is_index = path.contains("/index_part.json");
        match self.broken {
            Broken::IndexPutUnconditional => !is_index,
            Broken::LayerPutUnconditional => is_index || !path.starts_with("tenants/"),
            _ => true,
        }
    }

    fn takes_refusal_for_success(&self, path: &str) -> bool {
        self.broken == Broken::RefusedClaimIgnored && path.starts_with("palimpsest/claims/")
    }
}

/// The value of a future that never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a bucket in memory does not wait")
}

fn failed(path: &str) -> BucketError {
    BucketError::Unavailable {
        operation: "request",
        path: path.into(),
        source: "a fault of the model".into(),
    }
}

#[async_trait]
impl Bucket for SteppedBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        match self.stop().await {
            Fate::Answered => self.memory.get(path, range).await,
            _ => Err(failed(path)),
        }
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        match self.stop().await {
            Fate::Answered => self.put_now(path, body, condition),
            Fate::Refused => Err(failed(path)),
            Fate::AnswerLost => {
                let _ = self.put_now(path, body, condition);
                Err(failed(path))
            }
            Fate::Late => {
                self.state.lock().unwrap().late.push(Late::Put { path: path.into(), body, condition });
                Err(failed(path))
            }
        }
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        match self.stop().await {
            Fate::Answered if self.blind.load(Ordering::Relaxed) => Ok(Listing::default()),
            Fate::Answered => self.memory.list(request).await,
            _ => Err(failed(request.prefix)),
        }
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        match self.stop().await {
            Fate::Answered => self.memory.head(path).await,
            _ => Err(failed(path)),
        }
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        match self.stop().await {
            Fate::Answered => return self.memory.delete(paths).await,
            Fate::Refused => {}
            Fate::AnswerLost => self.memory.delete(paths).await?,
            Fate::Late => self.state.lock().unwrap().late.push(Late::Delete(paths.to_vec())),
        }
        Err(failed("a deletion"))
    }
}
