//! The one place that tries again. It also bounds how much is under way, and counts.
//!
//! A put whose answer was lost may have been done, or may be done later. So when a later attempt finds the condition broken, the object is
//! read back: with our own bytes in it, the put succeeded.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use model::ShardIndex;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::unavailable;
use crate::blocking;
use crate::object_path::ObjectPath;
use crate::ports::{Body, Bucket, BucketError, ETag, ListRequest, Listing, Object, ObjectMeta, PutIf};

/// Bytes that are compared at a time when a put is read back.
const COMPARE_PART: u64 = 4 << 20;

/// From so many attempts on a failing request is worth a line in the log.
const WARN_AFTER: u32 = 3;

/// How often, how long and how much at once.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Pause after the first failure; it doubles with each one.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
    /// Reads of a part of an object answer an error when they failed for so long: they are on the way of a page that somebody waits for.
    /// All else (puts, deletes, listings, whole objects) goes on until cancelled: it is what an owner does to stay or become one, and when
    /// the bucket comes back after an hour it must go on as if nothing had been.
    pub reads_give_up_after: Duration,
    /// For one attempt that may move much: whole objects, files.
    pub timeout: Duration,
    /// For one attempt that moves little: listings, deletes, parts up to 1 MiB.
    pub small_timeout: Duration,
    /// Attempts to read or list under way at once.
    pub reads: usize,
    /// Attempts to put or delete under way at once.
    pub writes: usize,
    /// Where the numbers begin by which pauses are spread. Processes that failed together must differ in it; one that has it again does the same.
    pub spread_from: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            reads_give_up_after: Duration::from_mins(10),
            timeout: Duration::from_mins(2),
            small_timeout: Duration::from_secs(30),
            reads: 100,
            writes: 100,
            spread_from: rand::random(),
        }
    }
}

/// What was asked of a bucket and how it went. The names are Neon's where it has one.
#[derive(Clone, Debug)]
pub struct BucketMetrics {
    calls_started: IntCounterVec,
    calls_finished: IntCounterVec,
    bytes_started: IntCounterVec,
    bytes_finished: IntCounterVec,
    seconds: HistogramVec,
    failed_attempts: IntCounterVec,
}

const CALL_LABELS: [&str; 5] = ["tenant_id", "shard_id", "timeline_id", "file_kind", "op_kind"];

impl BucketMetrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("the name and labels are well-formed")
        };
        let call = |name, help| counter(name, help, &CALL_LABELS);
        BucketMetrics {
            calls_started: call(
                "pageserver_remote_timeline_client_calls_started",
                "Requests to the bucket that began",
            ),
            calls_finished: call(
                "pageserver_remote_timeline_client_calls_finished",
                "Requests to the bucket that ended, well or not",
            ),
            bytes_started: call(
                "pageserver_remote_timeline_client_bytes_started",
                "Bytes of puts that began",
            ),
            bytes_finished: call(
                "pageserver_remote_timeline_client_bytes_finished",
                "Bytes of puts that ended, well or not",
            ),
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "pageserver_remote_timeline_client_seconds_global",
                    "How long requests to the bucket took, pauses and repetitions included",
                )
                .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]),
                &["file_kind", "op_kind", "status"],
            )
            .expect("the name and labels are well-formed"),
            failed_attempts: counter(
                "palimpsest_bucket_failed_attempts",
                "Attempts that failed and were made again, or given up",
                &["op_kind"],
            ),
        }
    }

    /// Makes them visible.
    pub fn register(&self, registry: &prometheus::Registry) -> prometheus::Result<()> {
        for counter in [
            &self.calls_started,
            &self.calls_finished,
            &self.bytes_started,
            &self.bytes_finished,
            &self.failed_attempts,
        ] {
            registry.register(Box::new(counter.clone()))?;
        }
        registry.register(Box::new(self.seconds.clone()))
    }

    fn start(&self, operation: &'static str, path: &str, bytes: u64) -> Call<'_> {
        let call = Call {
            metrics: self,
            labels: Labels::of(path),
            operation,
            bytes,
            since: Instant::now(),
            ok: false,
        };
        call.with_labels(&self.calls_started).inc();
        if bytes > 0 {
            call.with_labels(&self.bytes_started).inc_by(bytes);
        }
        call
    }
}

impl Default for BucketMetrics {
    fn default() -> Self {
        Self::new()
    }
}

struct Labels {
    tenant: String,
    shard: String,
    timeline: String,
    kind: &'static str,
}

impl Labels {
    /// A listing's prefix names no object; it counts for the node.
    fn of(path: &str) -> Labels {
        let (tenant, timeline, kind) = match path.parse() {
            Ok(ObjectPath::Layer { tenant, timeline, .. }) => (Some(tenant), Some(timeline), "layer"),
            Ok(ObjectPath::Index { tenant, timeline, .. }) => (Some(tenant), Some(timeline), "index"),
            Ok(ObjectPath::Wal { tenant, timeline, .. }) => (Some(tenant), Some(timeline), "wal"),
            Ok(ObjectPath::Tombstone { tenant, timeline }) => (Some(tenant), Some(timeline), "tombstone"),
            Ok(ObjectPath::HeatMap { tenant }) => (Some(tenant), None, "heatmap"),
            Ok(ObjectPath::Manifest { tenant, .. }) => (Some(tenant), None, "manifest"),
            Ok(ObjectPath::Claim { tenant, .. }) => (Some(tenant), None, "claim"),
            Ok(ObjectPath::Config { tenant, .. }) => (Some(tenant), None, "config"),
            Ok(ObjectPath::Metering { tenant, .. }) => (Some(tenant), None, "metering"),
            Ok(ObjectPath::Probe { .. }) | Err(_) => (None, None, "other"),
        };
        Labels {
            tenant: tenant.map(|tenant| tenant.tenant.to_string()).unwrap_or_default(),
            shard: tenant.map_or(ShardIndex::UNSHARDED, |tenant| tenant.shard).to_string(),
            timeline: timeline.map(|timeline| timeline.to_string()).unwrap_or_default(),
            kind,
        }
    }
}

/// One request under way; counted as finished when dropped.
struct Call<'a> {
    metrics: &'a BucketMetrics,
    labels: Labels,
    operation: &'static str,
    bytes: u64,
    since: Instant,
    ok: bool,
}

impl Call<'_> {
    fn with_labels(&self, counter: &IntCounterVec) -> prometheus::IntCounter {
        let Labels { tenant, shard, timeline, kind } = &self.labels;
        counter.with_label_values(&[tenant.as_str(), shard, timeline, kind, self.operation])
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.with_labels(&self.metrics.calls_finished).inc();
        if self.bytes > 0 {
            self.with_labels(&self.metrics.bytes_finished).inc_by(self.bytes);
        }
        let status = if self.ok { "success" } else { "failure" };
        let seconds = self.since.elapsed().as_secs_f64();
        self.metrics.seconds.with_label_values(&[self.labels.kind, self.operation, status]).observe(seconds);
    }
}

/// A bucket whose passing failures are waited out.
pub struct RetryingBucket {
    inner: Arc<dyn Bucket>,
    policy: RetryPolicy,
    reads: Semaphore,
    writes: Semaphore,
    cancel: CancellationToken,
    metrics: BucketMetrics,
    spread: AtomicU64,
}

/// The process is stopping.
#[derive(Debug, thiserror::Error)]
#[error("the process is stopping")]
struct Cancelled;

/// An attempt took too long.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct TimedOut(Duration);

/// An answer broke off.
#[derive(Debug, thiserror::Error)]
#[error("the answer has {found} bytes where {expected} were expected")]
struct CutShort {
    found: u64,
    expected: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// A read that gives up.
    PageRead,
    Read,
    Write,
}

impl RetryingBucket {
    /// Retries what `inner` calls unavailable, until `cancel`.
    pub fn new(
        inner: Arc<dyn Bucket>,
        policy: RetryPolicy,
        metrics: BucketMetrics,
        cancel: CancellationToken,
    ) -> Self {
        let (reads, writes) = (Semaphore::new(policy.reads.max(1)), Semaphore::new(policy.writes.max(1)));
        let spread = AtomicU64::new(policy.spread_from);
        RetryingBucket { inner, policy, reads, writes, cancel, metrics, spread }
    }

    /// Runs `attempt` until it answers anything but unavailable. It is told how many attempts came before.
    async fn retry<T, F: Future<Output = Result<T, BucketError>>>(
        &self,
        side: Side,
        operation: &'static str,
        path: &str,
        timeout: Duration,
        mut attempt: impl FnMut(u32) -> F,
    ) -> Result<T, BucketError> {
        let (permits, give_up_after) = match side {
            Side::PageRead => (&self.reads, Some(self.policy.reads_give_up_after)),
            Side::Read => (&self.reads, None),
            Side::Write => (&self.writes, None),
        };
        let since = tokio::time::Instant::now();
        let work = async {
            for attempts in 0.. {
                // Held for an attempt, not for a pause: what waits out a failure takes no one's place.
                let permit = permits.acquire().await.map_err(|error| unavailable(operation, path, error))?;
                let result = tokio::time::timeout(timeout, attempt(attempts))
                    .await
                    .unwrap_or_else(|_| Err(unavailable(operation, path, TimedOut(timeout))));
                drop(permit);
                let source = match result {
                    Err(BucketError::Unavailable { source, .. }) => source,
                    other => return other,
                };
                self.metrics.failed_attempts.with_label_values(&[operation]).inc();
                let pause = self.pause_after(attempts);
                if give_up_after.is_some_and(|limit| since.elapsed() + pause > limit) {
                    return Err(unavailable(operation, path, source));
                }
                if attempts + 1 >= WARN_AFTER {
                    let error = source.as_ref();
                    tracing::warn!(
                        operation,
                        path,
                        attempts = attempts + 1,
                        error,
                        "the bucket is unavailable, trying again"
                    );
                }
                tokio::time::sleep(pause).await;
            }
            unreachable!("the loop ends by returning")
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(unavailable(operation, path, Cancelled)),
            result = work => result,
        }
    }

    /// Doubles, and is spread over its upper half so that many do not come back at once.
    fn pause_after(&self, attempts: u32) -> Duration {
        let doubled = self.policy.first_pause.saturating_mul(1u32 << attempts.min(20));
        doubled.min(self.policy.longest_pause).mul_f64(1.0 - self.next_fraction() / 2.0)
    }

    /// From 0 to 1, as good as chance: the upper bits of a sequence that meets every number (`SplitMix64`).
    fn next_fraction(&self) -> f64 {
        let mut number = self.spread.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (number ^ number >> 31) as f64 / u64::MAX as f64
    }

    fn timeout_for(&self, bytes: Option<u64>) -> Duration {
        match bytes {
            Some(bytes) if bytes <= 1 << 20 => self.policy.small_timeout,
            _ => self.policy.timeout,
        }
    }
}

/// Whether an object holds exactly what `body` says; answers its tag then.
pub async fn read_back(bucket: &dyn Bucket, path: &str, body: &Body) -> Result<Option<ETag>, BucketError> {
    let meta = match bucket.head(path).await {
        Ok(meta) => meta,
        Err(BucketError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = body.length();
    if meta.size != length {
        return Ok(None);
    }
    let mut at = 0;
    while at < length {
        let part = at..(at + COMPARE_PART).min(length);
        at = part.end;
        let expected = body.part(part.clone()).await.map_err(|error| unavailable("put", path, error))?;
        let found = get_part(bucket, path, part).await?;
        if found.bytes != expected || found.meta.etag != meta.etag {
            return Ok(None);
        }
    }
    Ok(Some(meta.etag))
}

/// Whether two objects hold the same; answers the tag of the second then.
pub async fn same_object(bucket: &dyn Bucket, from: &str, to: &str) -> Result<Option<ETag>, BucketError> {
    let (first, second) = (bucket.head(from).await?, bucket.head(to).await?);
    if first.size != second.size {
        return Ok(None);
    }
    let mut at = 0;
    while at < first.size {
        let part = at..(at + COMPARE_PART).min(first.size);
        at = part.end;
        if get_part(bucket, from, part.clone()).await?.bytes != get_part(bucket, to, part).await?.bytes {
            return Ok(None);
        }
    }
    Ok(Some(second.etag))
}

/// A part of an object that has it. What lacks its last bytes was broken off on the way, and is no other object.
async fn get_part(bucket: &dyn Bucket, path: &str, part: Range<u64>) -> Result<Object, BucketError> {
    let object = bucket.get(path, Some(part.clone())).await?;
    let (found, expected) = (object.bytes.len() as u64, part.end - part.start);
    if found < expected {
        return Err(unavailable("get", path, CutShort { found, expected }));
    }
    Ok(object)
}

impl Body {
    /// Bytes that will be stored.
    pub fn length(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { length, .. } => *length,
        }
    }

    /// A part of what will be stored; `range` lies within it.
    pub(super) async fn part(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        match self {
            Body::Bytes(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Body::File { file, .. } => {
                let file = Arc::clone(file);
                let read = move || {
                    let mut part = vec![0; (range.end - range.start) as usize];
                    file.read_at(&mut part, range.start)?;
                    Ok(part.into())
                };
                blocking::run(read).await.map_err(std::io::Error::other)?
            }
        }
    }
}

#[async_trait]
impl Bucket for RetryingBucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let mut call = self.metrics.start("download", path, 0);
        let timeout = self.timeout_for(range.as_ref().map(|range| range.end.saturating_sub(range.start)));
        let side = if range.is_some() { Side::PageRead } else { Side::Read };
        let whole = || async {
            let object = self.inner.get(path, range.clone()).await?;
            let start = range.as_ref().map_or(0, |range| range.start);
            let end = range.as_ref().map_or(object.meta.size, |range| range.end.min(object.meta.size));
            let (found, expected) = (object.bytes.len() as u64, end.saturating_sub(start));
            // What lacks its last bytes was broken off on the way.
            if found < expected {
                return Err(unavailable("get", path, CutShort { found, expected }));
            }
            Ok(object)
        };
        let result = self.retry(side, "get", path, timeout, |_| whole()).await;
        call.ok = result.is_ok();
        result
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let mut call = self.metrics.start("upload", path, body.length());
        let timeout = self.timeout_for(Some(body.length()));
        let result = self
            .retry(Side::Write, "put", path, timeout, |attempts| {
                let (body, condition) = (body.clone(), condition.clone());
                async move {
                    match self.inner.put(path, body.clone(), condition).await {
                        // An attempt before this one may be what is in the way.
                        Err(BucketError::Precondition(path)) if attempts > 0 => {
                            let ours = read_back(&*self.inner, &path, &body).await?;
                            ours.ok_or(BucketError::Precondition(path))
                        }
                        result => result,
                    }
                }
            })
            .await;
        call.ok = result.is_ok();
        result
    }

    async fn copy(&self, from: &str, to: &str) -> Result<ETag, BucketError> {
        let mut call = self.metrics.start("copy", to, 0);
        let result = self
            .retry(Side::Write, "copy", to, self.policy.timeout, |attempts| async move {
                match self.inner.copy(from, to).await {
                    // An attempt before this one may be what is in the way.
                    Err(BucketError::Precondition(path)) if attempts > 0 => {
                        same_object(&*self.inner, from, to).await?.ok_or(BucketError::Precondition(path))
                    }
                    result => result,
                }
            })
            .await;
        call.ok = result.is_ok();
        result
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        let mut call = self.metrics.start("list", request.prefix, 0);
        let timeout = self.policy.small_timeout;
        let result =
            self.retry(Side::Read, "list", request.prefix, timeout, |_| self.inner.list(request)).await;
        call.ok = result.is_ok();
        result
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        let mut call = self.metrics.start("head", path, 0);
        let timeout = self.policy.small_timeout;
        let result = self.retry(Side::Read, "head", path, timeout, |_| self.inner.head(path)).await;
        call.ok = result.is_ok();
        result
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        let path = paths.first().map_or("", String::as_str);
        let mut call = self.metrics.start("delete", path, 0);
        let timeout = self.policy.small_timeout;
        let result = self.retry(Side::Write, "delete", path, timeout, |_| self.inner.delete(paths)).await;
        call.ok = result.is_ok();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::bucket::faulty::{Fault, FaultyBucket, Operation, held};

    fn retrying(policy: RetryPolicy) -> (Arc<FaultyBucket>, Arc<RetryingBucket>, CancellationToken) {
        let faulty = FaultyBucket::new(Arc::new(MemoryBucket::default()));
        let cancel = CancellationToken::new();
        let bucket = RetryingBucket::new(faulty.clone(), policy, BucketMetrics::new(), cancel.clone());
        (faulty, Arc::new(bucket), cancel)
    }

    /// Tests should not take the time that stores do.
    fn quick() -> RetryPolicy {
        RetryPolicy {
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(4),
            reads_give_up_after: Duration::from_millis(50),
            small_timeout: Duration::from_millis(500),
            ..RetryPolicy::default()
        }
    }

    fn body(text: &'static str) -> Body {
        Body::Bytes(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn the_retrying_bucket_keeps_the_contract() {
        let (_, bucket, _) = retrying(quick());
        crate::bucket::contract::keeps_the_contract(bucket).await;
    }

    #[tokio::test]
    async fn a_put_whose_answer_was_lost_succeeds_when_its_own_bytes_are_there() {
        let (faulty, bucket, _) = retrying(quick());
        faulty.once(Operation::Put, "a", Fault::LoseAnswer);
        let etag = bucket.put("a", body("mine"), PutIf::Absent).await.unwrap();
        faulty.once(Operation::Put, "a", Fault::LoseAnswer);
        let newer = bucket.put("a", body("newer"), PutIf::Matches(etag)).await.unwrap();
        assert_eq!(bucket.head("a").await.unwrap().etag, newer);
    }

    #[tokio::test]
    async fn a_put_that_fails_and_then_finds_anothers_bytes_is_refused() {
        let (faulty, bucket, _) = retrying(quick());
        let (gate, mut second) = held();
        faulty.once(Operation::Put, "a", Fault::Fail);
        faulty.once(Operation::Put, "a", Fault::Hold(gate));
        let put = tokio::spawn({
            let bucket = bucket.clone();
            async move { bucket.put("a", body("mine"), PutIf::Absent).await }
        });
        second.arrived().await;
        bucket.put("a", body("them"), PutIf::Absent).await.unwrap();
        second.release();
        assert!(matches!(put.await.unwrap(), Err(BucketError::Precondition(_))));
    }

    #[tokio::test]
    async fn a_first_attempt_that_is_refused_is_not_read_back() {
        let (faulty, bucket, _) = retrying(quick());
        bucket.put("a", body("same"), PutIf::Absent).await.unwrap();
        assert!(matches!(
            bucket.put("a", body("same"), PutIf::Absent).await,
            Err(BucketError::Precondition(_))
        ));
        assert_eq!(faulty.count(Operation::Head, ""), 0);
    }

    #[tokio::test]
    async fn a_late_put_cannot_undo_a_newer_one() {
        let (faulty, bucket, _) = retrying(quick());
        faulty.once(Operation::Put, "a", Fault::Late);
        let first = bucket.put("a", body("first"), PutIf::Absent).await.unwrap();
        faulty.once(Operation::Put, "a", Fault::Late);
        bucket.put("a", body("second"), PutIf::Matches(first)).await.unwrap();
        let late = faulty.land_late().await;
        assert_eq!(late.len(), 2);
        assert!(late.iter().all(|result| matches!(result, Err(BucketError::Precondition(_)))));
        assert_eq!(&bucket.get("a", None).await.unwrap().bytes[..], b"second");
    }

    #[tokio::test]
    async fn an_answer_that_broke_off_is_asked_for_again() {
        let (faulty, bucket, _) = retrying(quick());
        bucket.put("a", body("whole"), PutIf::Absent).await.unwrap();
        for range in [None, Some(0..5), Some(3..100)] {
            faulty.once(Operation::Get, "a", Fault::CutShort);
            let before = faulty.count(Operation::Get, "a");
            let found = bucket.get("a", range.clone()).await.unwrap();
            assert_eq!(found.bytes.len(), if range == Some(3..100) { 2 } else { 5 });
            assert_eq!(faulty.count(Operation::Get, "a") - before, 2);
        }
    }

    #[tokio::test]
    async fn reads_of_parts_give_up_and_all_else_waits_until_the_bucket_is_back() {
        let (faulty, bucket, _) = retrying(quick());
        faulty.set_down(true);
        assert!(matches!(bucket.get("a", Some(0..1)).await, Err(BucketError::Unavailable { .. })));
        let list = tokio::spawn({
            let bucket = bucket.clone();
            async move { bucket.list(ListRequest::default()).await }
        });
        let put = tokio::spawn({
            let bucket = bucket.clone();
            async move { bucket.put("a", body("x"), PutIf::Absent).await }
        });
        // Far beyond what a read waits, and then some.
        while faulty.count(Operation::Put, "a") < 50 {
            tokio::task::yield_now().await;
        }
        assert!(!put.is_finished() && !list.is_finished());
        faulty.set_down(false);
        put.await.unwrap().unwrap();
        list.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn cancelling_ends_what_waits() {
        let (faulty, bucket, cancel) = retrying(quick());
        faulty.set_down(true);
        let put = tokio::spawn(async move { bucket.put("a", body("x"), PutIf::Absent).await });
        while faulty.count(Operation::Put, "a") < 3 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
        assert!(matches!(put.await.unwrap(), Err(BucketError::Unavailable { .. })));
    }

    #[tokio::test]
    async fn an_attempt_without_an_answer_is_made_again() {
        let (faulty, bucket, _) = retrying(quick());
        let (gate, _stays_shut) = held();
        faulty.once(Operation::Put, "a", Fault::Hold(gate));
        bucket.put("a", body("x"), PutIf::Absent).await.unwrap();
        assert_eq!(faulty.count(Operation::Put, "a"), 2);
    }

    #[tokio::test]
    async fn no_more_is_under_way_than_was_allowed() {
        let (faulty, bucket, _) = retrying(RetryPolicy { writes: 2, ..quick() });
        let mut gates = Vec::new();
        for _ in 0..5 {
            let (gate, held) = held();
            faulty.once(Operation::Put, "a", Fault::Hold(gate));
            gates.push(held);
        }
        let puts: Vec<_> = (0..5)
            .map(|n| {
                let bucket = bucket.clone();
                tokio::spawn(async move { bucket.put(&format!("a{n}"), body("x"), PutIf::Absent).await })
            })
            .collect();
        for gate in &mut gates[..2] {
            gate.arrived().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(faulty.count(Operation::Put, "a"), 2);
        gates.into_iter().for_each(crate::bucket::faulty::Held::release);
        for put in puts {
            put.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn calls_are_counted_by_what_the_object_is() {
        let (_, bucket, _) = retrying(quick());
        let registry = prometheus::Registry::new();
        bucket.metrics.register(&registry).unwrap();
        let claim = "palimpsest/claims/00112233445566778899aabbccddeeff-0102/00000001";
        bucket.put(claim, body("12345"), PutIf::Absent).await.unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let line = "pageserver_remote_timeline_client_bytes_finished{file_kind=\"claim\",op_kind=\"upload\",shard_id=\"0102\",\
                    tenant_id=\"00112233445566778899aabbccddeeff\",timeline_id=\"\"} 5";
        assert!(text.contains(line), "{text}");
    }
}
