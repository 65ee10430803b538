//! A primary, a pageserver that follows it twice with little history kept, what of that must be there, and trouble.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use model::{Lsn, RelTag, TenantId, TimelineId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::cluster_files::PageKind;
use testkit::{
    BucketAt, Fault, FaultProxy, Pageserver, Postgres, PostgresConfig, Versitygw, Witness, witness,
};

/// How long anything may take once nothing is in its way.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Moments of a timeline that are kept readable at once; of the rest only the last megabytes stay.
const KEPT: usize = 4;

/// What makes a few megabytes of WAL pass through everything that becomes of layers, and history short.
const SMALL_LAYERS: [(&str, &str); 7] = [
    ("layer_size", "256KiB"),
    ("compaction_period", "100ms"),
    ("gc_period", "300ms"),
    ("pitr_interval", "0s"),
    ("gc_horizon", "2MiB"),
    ("orphan_grace", "1s"),
    ("wal_seal_age", "200ms"),
];

/// A request of the HTTP API.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
}

/// What is done to a server, or on its way to the bucket.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// kill -9, and it starts again.
    Kill,
    /// The same, with its disk lost.
    Lose,
    /// The same, and it is killed again while it starts.
    Twice,
    /// The bucket is away or bad for a while.
    Fault(Fault),
    /// What is on its way to an object of such a name when the server is killed gets there after the next one has started.
    Late(&'static str),
}

/// A moment that was promised to stay readable.
struct Kept {
    timeline: TimelineId,
    name: String,
    seen: Arc<Witness>,
}

/// Counts what happened.
#[derive(Debug, Default)]
pub struct Counts {
    kills: u32,
    disks_lost: u32,
    faults: u32,
    late: u32,
    /// Moments that were looked at.
    checks: u32,
}

/// All of it.
pub struct World {
    pub postgres: Postgres,
    pub server: Pageserver,
    pub tenant: TenantId,
    /// Follows the primary all the time.
    pub trunk: TimelineId,
    /// Follows the same primary unless it is archived.
    pub second: TimelineId,
    pub random: StdRng,
    pub counts: Counts,
    kept: Vec<Kept>,
    relations: Vec<(RelTag, PageKind)>,
    written: Lsn,
    steps: u32,
    proxy: Option<FaultProxy>,
    _store: Option<Versitygw>,
    _directory: TempDir,
}

impl World {
    /// Starts everything, over a directory or over a real S3 server behind a proxy.
    pub async fn start(over_s3: bool, seed: u64) -> Result<World> {
        let config = PostgresConfig::new(17).set("autovacuum", "off").set("wal_keep_size", "2GB");
        let postgres = Postgres::start(&config).await?;
        postgres
            .sql(
                "ALTER DATABASE template0 ALLOW_CONNECTIONS true;
                 CREATE TABLE t (id int PRIMARY KEY, n int, note text) WITH (fillfactor = 70);
                 INSERT INTO t SELECT id, 0, repeat('x', 200) FROM generate_series(1, 4000) id",
            )
            .await?;
        let relations = vec![
            witness::relation(&postgres, "t", PageKind::Heap).await?,
            witness::relation(&postgres, "t_pkey", PageKind::Btree).await?,
        ];
        let directory = tempfile::tempdir()?;
        let (mut store, mut proxy) = (None, None);
        let mut bucket = BucketAt::Directory(directory.path().to_owned());
        if over_s3 {
            let server = store.insert(Versitygw::start().await?);
            let before = proxy.insert(FaultProxy::start(server.port()).await?);
            bucket = BucketAt::S3 { endpoint: before.endpoint() };
        }
        let mut server = Pageserver::start(bucket, &SMALL_LAYERS).await?;
        let (tenant, trunk, second) = (TenantId(rand::random()), new_timeline(), new_timeline());
        for timeline in [trunk, second] {
            server.follow(tenant, timeline, &postgres.dsn()).await?;
            server.wait_active(tenant, timeline, PATIENCE).await?;
        }
        let mut world = World {
            postgres,
            server,
            tenant,
            trunk,
            second,
            random: StdRng::seed_from_u64(seed),
            counts: Counts::default(),
            kept: Vec::new(),
            relations,
            written: Lsn(0),
            steps: 0,
            proxy,
            _store: store,
            _directory: directory,
        };
        for _ in 0..KEPT {
            world.write().await?;
            world.keep(&[trunk, second]).await?;
        }
        Ok(world)
    }

    /// Some hundred kilobytes of WAL.
    pub async fn write(&mut self) -> Result<()> {
        self.steps += 1;
        let step = self.steps;
        let of = self.random.random_range(0..40);
        let mut sql = format!(
            "UPDATE t SET n = n + 1, note = repeat(md5(random()::text), 6) WHERE id % 40 = {of};
             UPDATE t SET n = {step} WHERE id % 7 = 0 AND id < 1000;"
        );
        match step % 8 {
            2 => sql += "CREATE TABLE passing AS SELECT n FROM generate_series(1, 3000) n;",
            5 => sql += "DROP TABLE IF EXISTS passing;",
            _ => {}
        }
        self.postgres.sql(&sql).await?;
        if step.is_multiple_of(4) {
            self.postgres.sql("VACUUM t").await?;
        }
        self.written = self.postgres.value("SELECT pg_current_wal_insert_lsn()").await?.parse()?;
        // So that a record ends beyond what is to be seen.
        self.postgres.sql("SELECT pg_logical_emit_message(true, 'written', '')").await?;
        Ok(())
    }

    /// Keeps how things are now readable in these timelines, under a name.
    pub async fn keep(&mut self, timelines: &[TimelineId]) -> Result<()> {
        let seen = Witness::take(&self.postgres, &self.relations, 20, &mut self.random).await?;
        let seen = Arc::new(seen);
        for timeline in timelines {
            self.server.wait_for(self.tenant, *timeline, seen.lsn, PATIENCE).await?;
            ensure!(self.name(*timeline, Arc::clone(&seen)).await?, "{} is not kept in {timeline}", seen.lsn);
            while self.kept.iter().filter(|kept| kept.timeline == *timeline).count() > KEPT {
                self.forget_oldest(*timeline).await?;
            }
        }
        Ok(())
    }

    /// Keeps a moment readable in a timeline. Answers whether it can: a branch promises nothing below the cutoff that its ancestor had.
    pub async fn name(&mut self, timeline: TimelineId, seen: Arc<Witness>) -> Result<bool> {
        let name = format!("at-{}", seen.lsn.to_string().replace('/', "-"));
        let body = json!({ "lsn": seen.lsn.to_string() });
        let call = self.call(Method::PUT, timeline, &format!("/named_lsn/{name}"), Some(body));
        let (status, _) = self.until(&call, &[200, 406]).await?;
        if status == 200 {
            self.kept.push(Kept { timeline, name, seen });
        }
        Ok(status == 200)
    }

    /// Lets the oldest moment of a timeline go.
    pub async fn forget_oldest(&mut self, timeline: TimelineId) -> Result<()> {
        let at = self.kept.iter().position(|kept| kept.timeline == timeline).context("nothing is kept")?;
        let gone = self.kept.remove(at);
        let call = self.call(Method::DELETE, timeline, &format!("/named_lsn/{}", gone.name), None);
        self.until_done(&call).await?;
        Ok(())
    }

    /// The moments of a timeline that are kept, oldest first.
    pub fn moments(&self, timeline: TimelineId) -> Vec<Arc<Witness>> {
        let kept = self.kept.iter().filter(|kept| kept.timeline == timeline);
        kept.map(|kept| Arc::clone(&kept.seen)).collect()
    }

    /// A request about a timeline.
    pub fn call(&self, method: Method, timeline: TimelineId, rest: &str, body: Option<Value>) -> Call {
        Call { method, path: format!("/v1/tenant/{}/timeline/{timeline}{rest}", self.tenant), body }
    }

    /// Makes a call, then trouble within `within`. Answers how long the call took if it was done all the same; the server runs again.
    pub async fn in_trouble(
        &mut self,
        call: Option<&Call>,
        trouble: Trouble,
        within: Duration,
    ) -> Result<Option<Duration>> {
        let since = Instant::now();
        let asked = call.cloned().map(|Call { method, path, body }| {
            let call = self.server.call(method, path, body);
            tokio::spawn(async move { anyhow::Ok((call.await?.0, since.elapsed())) })
        });
        tokio::time::sleep(within.mul_f64(self.random.random_range(0.0..1.0))).await;
        self.make(trouble).await.with_context(|| format!("{trouble:?}"))?;
        let Some(asked) = asked else { return Ok(None) };
        // A server that was killed answers no more; one whose bucket was away does in the end.
        let done = asked.await?.ok().filter(|(status, _)| (200..300).contains(status)).map(|(_, took)| took);
        Ok(done)
    }

    async fn make(&mut self, trouble: Trouble) -> Result<()> {
        let length = Duration::from_millis(self.random.random_range(50..1_000));
        match trouble {
            Trouble::Kill | Trouble::Lose | Trouble::Twice => {
                self.server.kill();
                self.counts.kills += 1;
                if matches!(trouble, Trouble::Twice) {
                    self.server.launch()?;
                    tokio::time::sleep(length / 5).await;
                    self.server.kill();
                    self.counts.kills += 1;
                }
                if matches!(trouble, Trouble::Lose) {
                    self.counts.disks_lost += 1;
                    self.server.wipe_disk()?;
                }
                self.server.start_again().await
            }
            Trouble::Fault(fault) => {
                self.counts.faults += 1;
                let proxy = self.proxy.as_ref().context("there is no proxy")?;
                proxy.set(fault);
                tokio::time::sleep(length).await;
                proxy.set(Fault::None);
                Ok(())
            }
            Trouble::Late(name) => {
                self.counts.late += 1;
                let proxy = self.proxy.as_ref().context("there is no proxy")?;
                proxy.set(Fault::StallAt(name));
                tokio::time::sleep(length / 2).await;
                self.server.kill();
                let (started, ()) = tokio::join!(self.server.start_again(), async {
                    tokio::time::sleep(length / 2).await;
                    proxy.set(Fault::None);
                });
                started
            }
        }
    }

    /// Asks until it is done: nothing stands in its way any more.
    pub async fn until_done(&self, call: &Call) -> Result<Value> {
        Ok(self.until(call, &[200, 201, 202]).await?.1)
    }

    /// The same, with the answers that say so.
    pub async fn until(&self, call: &Call, done: &[u16]) -> Result<(u16, Value)> {
        let since = Instant::now();
        loop {
            let Call { method, path, body } = call.clone();
            let answer = self.server.call(method, path, body).await;
            match answer {
                Ok((status, answer)) if done.contains(&status) => return Ok((status, answer)),
                answer => ensure!(
                    since.elapsed() < PATIENCE,
                    "{} {} is not done: {answer:?}",
                    call.method,
                    call.path
                ),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes a branch, if need be by asking again.
    pub async fn branch(&self, new: TimelineId, ancestor: TimelineId, at: Lsn) -> Result<()> {
        let body = json!({
            "new_timeline_id": new.to_string(),
            "ancestor_timeline_id": ancestor.to_string(),
            "ancestor_start_lsn": at.to_string(),
        });
        let path = format!("/v1/tenant/{}/timeline", self.tenant);
        self.until_done(&Call { method: Method::POST, path, body: Some(body) }).await?;
        Ok(())
    }

    /// Deletes a timeline, and forgets what was kept of it.
    pub async fn delete(&mut self, timeline: TimelineId) -> Result<()> {
        let call = self.call(Method::DELETE, timeline, "", None);
        self.until(&call, &[202, 404]).await?;
        self.kept.retain(|kept| kept.timeline != timeline);
        Ok(())
    }

    /// What the server says of a timeline.
    pub async fn status(&self, timeline: TimelineId) -> Result<(u16, Value)> {
        let Call { method, path, body } = self.call(Method::GET, timeline, "", None);
        self.server.call(method, path, body).await
    }

    /// Fails unless a timeline has a moment.
    pub async fn has(&mut self, timeline: TimelineId, seen: &Witness, pages: usize) -> Result<()> {
        self.counts.checks += 1;
        seen.check(&self.server, (self.tenant, timeline), pages, &mut self.random).await
    }

    /// Fails unless the trunk has all that was written, and everything that was kept can be read. `pages` of each moment are looked at.
    pub async fn check(&mut self, pages: usize) -> Result<()> {
        self.server.wait_for(self.tenant, self.trunk, self.written, PATIENCE).await?;
        let kept: Vec<_> =
            self.kept.iter().map(|kept| (kept.timeline, kept.name.clone(), Arc::clone(&kept.seen))).collect();
        for (timeline, name, seen) in kept {
            let (status, detail) = self.status(timeline).await?;
            ensure!(status == 200, "timeline {timeline} with the name {name}: {status} {detail}");
            if detail["state"] == "Archived" {
                continue;
            }
            self.has(timeline, &seen, pages).await.with_context(|| format!("the name {name}"))?;
            let call = self.call(Method::GET, timeline, "/named_lsn", None);
            let names = self.until_done(&call).await?;
            let is_named = names.as_array().is_some_and(|names| names.iter().any(|one| one["name"] == *name));
            ensure!(is_named, "timeline {timeline} forgot the name {name}: {names}");
        }
        Ok(())
    }

    /// Waits until a look at everything finds neither damage nor waste.
    pub async fn scrubbed(&self) -> Result<()> {
        let since = Instant::now();
        loop {
            let (code, found) = self.server.pagectl(&["scrub", "--grace", "0s", "--json"], &[]).await?;
            let last: Value = serde_json::from_str(found.lines().last().context("it said nothing")?)?;
            ensure!(last["damage"] == 0, "the bucket is damaged:\n{found}");
            let rest = last["totals"]["of_present_owner"].as_u64().context("no totals")?;
            if code == Some(0) && rest == 0 {
                println!("{last}");
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                bail!("waste stays:\n{found}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// How many objects were found since the last start that nothing names: what trouble in the midst of something left.
    pub async fn swept(&self) -> Result<String> {
        let (_, metrics) = self.server.http_text("/metrics").await?;
        let is_of_orphans =
            |line: &&str| line.starts_with("palimpsest_maintenance{what=\"orphans_deleted\"}");
        Ok(metrics.lines().find(is_of_orphans).context("no such metric")?.to_owned())
    }

    /// Fails unless the layers are what Neon can read, but for values that only we know: its timelines say that they have those.
    pub async fn readable_by_neon(&self) -> Result<()> {
        let (_, told) = self.server.pagectl(&["verify", "--neon", "--all", "--json"], &[]).await?;
        let mut lines: Vec<&str> = told.lines().collect();
        let last = lines.pop().context("it said nothing")?;
        // An empty size says that the relation was dropped.
        let ours = [
            "a change that Neon does not know",
            "it has 0 bytes, expected [4]",
            "commit timestamps are unknown to Neon",
            "tablespaces are unknown to Neon",
        ];
        let is_ours = |line: &str| -> Result<bool> {
            let violation: Value = serde_json::from_str(line)?;
            Ok(ours.iter().any(|what| violation["what"] == *what))
        };
        let mut wrong = Vec::new();
        for line in lines {
            if !is_ours(line)? {
                wrong.push(line);
            }
        }
        ensure!(wrong.is_empty(), "{} violations:\n{}", wrong.len(), wrong.join("\n"));
        let totals: Value = serde_json::from_str(last)?;
        ensure!(totals["totals"]["layers"].as_u64() > Some(0), "{totals}");
        println!("{totals}");
        Ok(())
    }
}

/// A name for a timeline.
pub fn new_timeline() -> TimelineId {
    TimelineId(rand::random())
}
