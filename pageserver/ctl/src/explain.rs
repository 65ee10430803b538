//! `pagectl explain page`: what a read of a page takes.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use clap::{Args, Subcommand};
use codec::value::Value;
use engine::chunk_cache::CHUNK_SIZE;
use engine::explain::{Explained, Place};
use engine::onlooker::look;
use engine::ports::{Body, Bucket, BucketError, ETag, ListRequest, Listing, Object, ObjectMeta, PutIf};
use engine::read::Snapshot;
use model::{Key, Lsn, RelTag, TenantId, TenantShardId, TimelineId};

use crate::page::RelName;
use crate::{buckets, key_text};

/// Tells what reads take.
#[derive(Debug, Args)]
pub struct Explain {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Page(ExplainPage),
}

/// Reads a page from a bucket, with nothing at hand, and tells which layers, records and GETs that takes.
///
/// The bucket is only read. What a server has in memory or as WAL above its layers is not seen; what it has in its cache costs it no GET.
#[derive(Debug, Args)]
struct ExplainPage {
    /// The bucket: `s3://…` as in the pageserver's configuration, or a directory.
    url: String,
    /// Whose timeline: the tenant, or one of its shards.
    #[arg(long)]
    tenant: String,
    /// Which.
    #[arg(long)]
    timeline: TimelineId,
    /// The relation: TABLESPACE/DATABASE/RELATION oids, e.g. 1663/5/16384, with _fsm, _vm or _init for another fork.
    #[arg(long, value_name = "OIDS", required_unless_present = "key")]
    rel: Option<RelName>,
    /// Which block.
    #[arg(long, default_value_t = 0)]
    block: u32,
    /// In place of a page: any key, as 36 hexadecimal digits.
    #[arg(long, conflicts_with_all = ["rel", "block"])]
    key: Option<Key>,
    /// As of when; the end of the timeline's layers by default.
    #[arg(long)]
    lsn: Option<Lsn>,
}

/// Carries the verb out.
pub async fn run(arguments: &Explain) -> Result<()> {
    let Verb::Page(page) = &arguments.verb;
    let tenant: TenantShardId = match page.tenant.parse::<TenantId>() {
        Ok(tenant) => TenantShardId { tenant, shard: model::ShardIndex::UNSHARDED },
        Err(_) => page.tenant.parse().with_context(|| format!("{} is not a tenant", page.tenant))?,
    };
    let watched = Arc::new(Watched::new(buckets::open(&page.url, false).await?));
    let bucket: Arc<dyn Bucket> = watched.clone();
    let (_folder, cache) = buckets::temporary_cache(&bucket, 256 << 20, 1 << 30)?;
    let snapshot = look(&bucket, &cache, tenant, page.timeline).await?;
    let lsn = page.lsn.unwrap_or(snapshot.last);
    if lsn > snapshot.last {
        eprintln!(
            "layers end at {}: what is above it only the server knows, which has it in memory",
            snapshot.last
        );
    }
    let wanted = match (page.key, page.rel) {
        (Some(key), _) => Wanted::Key(key),
        (None, Some(rel)) => Wanted::Page(rel.0, page.block),
        (None, None) => bail!("neither a relation nor a key is named"),
    };
    print!("{}", explain(&watched, &snapshot, wanted, lsn).await?);
    Ok(())
}

/// What is read.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Page(RelTag, u32),
    Key(Key),
}

/// Reads as a server does, with nothing at hand; then once more, to tell what was found where.
async fn explain(watched: &Watched, snapshot: &Snapshot, wanted: Wanted, lsn: Lsn) -> Result<String> {
    watched.take();
    let begun = Instant::now();
    let (key, size) = match wanted {
        Wanted::Key(key) => {
            snapshot.get(key, lsn).await?;
            (key, None)
        }
        Wanted::Page(rel, block) => {
            // Size and page at once, as the page service does.
            let (size, page) = futures::join!(snapshot.rel_size(rel, lsn), snapshot.page(rel, block, lsn));
            page?;
            (Key::rel_block(rel, block), Some(size?))
        }
    };
    let took = begun.elapsed();
    let gets = watched.take();
    let told = snapshot.explain(key, lsn).await?;
    Ok(tell(&told, size, &gets, took))
}

/// Pure. `size` is that of a page's relation.
#[allow(
    clippy::option_option,
    reason = "a relation that was not asked for and one that does not exist are told differently"
)]
fn tell(told: &Explained, size: Option<Option<u32>>, gets: &[Get], took: Duration) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    line(&format!("{} as of {}  (key {})", key_text::key(told.key), told.lsn, told.key));
    match size {
        Some(None) => line("its relation does not exist then"),
        Some(Some(blocks)) => line(&format!("its relation has {blocks} blocks then")),
        None => {}
    }
    let mut timeline = None;
    for step in &told.steps {
        if timeline.replace(step.timeline) != Some(step.timeline) {
            line(&format!("timeline {}, up to {}", step.timeline, step.up_to));
        }
        let object = match &step.place {
            Place::Tail => {
                line("  in memory");
                None
            }
            Place::Layer { name, object, size } => {
                let kind = match (name.is_l0(), name.is_delta()) {
                    (true, _) => "L0 delta",
                    (_, true) => "delta",
                    _ => "image",
                };
                line(&format!("  {kind} {name}, {}", key_text::bytes(*size)));
                Some(object)
            }
        };
        for get in gets.iter().filter(|get| Some(&get.path) == object) {
            line(&format!("    {}", get.told()));
        }
        for version in &step.versions {
            let what =
                Value::decode(&version.value).map_or_else(|error| error.to_string(), |v| key_text::value(&v));
            line(&format!("    {} {what}, {}", version.lsn, key_text::bytes(version.value.len() as u64)));
        }
        match step.image {
            Some(bytes) => line(&format!("    the whole value, {}", key_text::bytes(bytes as u64))),
            None if step.versions.is_empty() => line("    nothing of this key"),
            None => {}
        }
    }
    for name in &told.spared {
        line(&format!(
            "  not needed, but asked for with the others when the first had to be waited for: {name}"
        ));
    }
    let of_steps = |get: &&Get| {
        told.steps
            .iter()
            .any(|step| matches!(&step.place, Place::Layer { object, .. } if *object == get.path))
    };
    let others: Vec<&Get> = gets.iter().filter(|get| !of_steps(get)).collect();
    if !others.is_empty() {
        line("for the relation's size, and from layers that were not needed");
        for get in &others {
            line(&format!("    {} of {}", get.told(), get.path.rsplit('/').next().unwrap_or_default()));
        }
    }
    let bytes: u64 = gets.iter().map(|get| get.bytes).sum();
    line(&format!(
        "{} layers, {} changes redone, {} ancestors; {} GETs, {} of them one after the other, {} in {:.1} ms",
        told.layers,
        told.changes,
        told.ancestors,
        gets.len(),
        waits(gets),
        key_text::bytes(bytes),
        took.as_secs_f64() * 1e3
    ));
    match &told.value {
        None => line("the key has no value: a page that was never written is zeros"),
        Some(value) => line(&format!("the value has {}", key_text::bytes(value.len() as u64))),
    }
    text
}

/// The longest chain of GETs of which each began after the one before it had ended.
fn waits(gets: &[Get]) -> usize {
    let mut by_begin: Vec<&Get> = gets.iter().collect();
    by_begin.sort_by_key(|get| get.begun);
    let mut depth: Vec<usize> = Vec::new();
    for (at, get) in by_begin.iter().enumerate() {
        let before = by_begin[..at].iter().zip(&depth).filter(|(other, _)| other.ended <= get.begun);
        depth.push(1 + before.map(|(_, depth)| *depth).max().unwrap_or(0));
    }
    depth.into_iter().max().unwrap_or(0)
}

/// One GET that was sent.
#[derive(Clone, Debug)]
struct Get {
    path: String,
    range: Option<Range<u64>>,
    bytes: u64,
    begun: Instant,
    ended: Instant,
}

impl Get {
    fn told(&self) -> String {
        let which = match &self.range {
            None => "all of it".into(),
            Some(range) => {
                let (first, last) = (range.start / CHUNK_SIZE, range.end.saturating_sub(1) / CHUNK_SIZE);
                if first == last { format!("chunk {first}") } else { format!("chunks {first} to {last}") }
            }
        };
        let took = self.ended.duration_since(self.begun).as_secs_f64() * 1e3;
        format!("GET {which}, {}, {took:.1} ms", key_text::bytes(self.bytes))
    }
}

/// A bucket that is only read, and remembers how.
struct Watched {
    bucket: Arc<dyn Bucket>,
    gets: Mutex<Vec<Get>>,
}

impl Watched {
    fn new(bucket: Arc<dyn Bucket>) -> Watched {
        Watched { bucket, gets: Mutex::default() }
    }

    /// What was sent since the last time.
    fn take(&self) -> Vec<Get> {
        std::mem::take(&mut self.gets.lock().expect("no holder panics"))
    }
}

fn refused(operation: &'static str, path: &str) -> BucketError {
    BucketError::Rejected { operation, path: path.into(), source: "the bucket is only looked at".into() }
}

#[async_trait]
impl Bucket for Watched {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let begun = Instant::now();
        let object = self.bucket.get(path, range.clone()).await?;
        let get =
            Get { path: path.into(), range, bytes: object.bytes.len() as u64, begun, ended: Instant::now() };
        self.gets.lock().expect("no holder panics").push(get);
        Ok(object)
    }

    async fn put(&self, path: &str, _: Body, _: PutIf) -> Result<ETag, BucketError> {
        Err(refused("put", path))
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        self.bucket.list(request).await
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        self.bucket.head(path).await
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        Err(refused("delete", paths.first().map_or("", |path| path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::{History, Server, copy, make, rel, tenant, trunk};

    async fn asked(
        bucket: &Arc<dyn Bucket>,
        timeline: TimelineId,
        block: u32,
        lsn: Option<Lsn>,
    ) -> (Explained, String, usize) {
        let watched = Arc::new(Watched::new(bucket.clone()));
        let dynamic: Arc<dyn Bucket> = watched.clone();
        let (_folder, cache) = buckets::temporary_cache(&dynamic, 16 << 20, 1 << 30).unwrap();
        let snapshot = look(&dynamic, &cache, tenant(), timeline).await.unwrap();
        let lsn = lsn.unwrap_or(snapshot.last);
        let text = explain(&watched, &snapshot, Wanted::Page(rel(0), block), lsn).await.unwrap();
        watched.take();
        let told = snapshot.explain(Key::rel_block(rel(0), block), lsn).await.unwrap();
        (told, text, watched.take().len())
    }

    #[tokio::test]
    async fn an_explanation_names_what_was_read_and_each_get_and_a_page_is_what_the_server_reads() {
        let bucket = make().await;
        let server = Server::start(&bucket).await;
        let timeline = server.timeline(trunk());
        let mut history = History::new();
        for number in 0..4 {
            history.write(0, 0, number);
            history.write(0, 1, number);
            history.feed(&timeline).await;
            timeline.checkpoint().await.unwrap();
        }
        let branch: TimelineId = "000000000000000000000000000000b0".parse().unwrap();
        let at = timeline.last_record_lsn();
        server.branch(branch, trunk(), at).await;
        let left = copy(&bucket).await;
        let (told, text, more) = asked(&left, trunk(), 0, Some(at)).await;
        assert_eq!(told.value, Some(timeline.page(rel(0), 0, at).await.unwrap()));
        assert_eq!((told.layers, told.changes, told.ancestors, more), (1, 1, 0, 0), "{text}");
        assert_eq!(told.spared.len(), 4, "{text}");
        assert!(text.contains("L0 delta") && text.contains("record XLOG 0xB0"), "{text}");
        assert!(text.contains("    GET ") && text.contains("its relation has 2 blocks"), "{text}");
        let (told, text, _) = asked(&left, branch, 1, None).await;
        assert_eq!((told.layers, told.ancestors), (1, 1), "{text}");
        assert!(text.contains(&format!("timeline {}, up to {at}", trunk())), "{text}");
        assert_eq!(told.value, Some(timeline.page(rel(0), 1, at).await.unwrap()));
        server.stop().await;
    }

    #[test]
    fn gets_that_overlap_are_one_wait() {
        let start = Instant::now();
        let get = |begun, ended| Get {
            path: String::new(),
            range: None,
            bytes: 1,
            begun: start + Duration::from_millis(begun),
            ended: start + Duration::from_millis(ended),
        };
        assert_eq!(waits(&[]), 0);
        assert_eq!(waits(&[get(0, 10), get(1, 9), get(2, 30)]), 1);
        assert_eq!(waits(&[get(0, 10), get(0, 12), get(10, 20), get(21, 22), get(13, 40)]), 3);
    }

    #[tokio::test]
    async fn a_bucket_that_is_watched_is_not_written_to() {
        let watched = Watched::new(make().await);
        let put = watched.put("x", Body::Bytes(bytes::Bytes::new()), PutIf::Absent).await;
        assert!(matches!(put, Err(BucketError::Rejected { .. })));
        assert!(matches!(watched.delete(&["x".into()]).await, Err(BucketError::Rejected { .. })));
    }
}
