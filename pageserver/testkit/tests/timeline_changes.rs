//! Archiving, detaching, named and leased LSNs, as clients ask for them over HTTP and operators over gRPC; and what is refused, with its reason.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use model::{Lsn, RelTag, TenantId, TimelineId};
use proto::error::reason;
use proto::v1::{
    DeleteTimelineRequest, DetachAncestorRequest, ForgetNamedLsnRequest, LeaseLsnRequest,
    ListNamedLsnsRequest, NameLsnRequest, Reason, SetTimelineStateRequest, TimelineState,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use testkit::cluster_files::PageKind;
use testkit::{BucketAt, Operated, Pageserver, Postgres, PostgresConfig, Witness, witness};

const MAJOR: u32 = 17;
const PATIENCE: Duration = Duration::from_mins(1);

/// What makes history short and compaction busy.
const SHORT_HISTORY: [(&str, &str); 6] = [
    ("layer_size", "256KiB"),
    ("compaction_period", "100ms"),
    ("gc_period", "200ms"),
    ("pitr_interval", "0s"),
    ("gc_horizon", "256KiB"),
    ("wal_seal_age", "200ms"),
];

fn new_timeline() -> TimelineId {
    TimelineId(rand::random())
}

/// A primary, what is looked at of it, and a pageserver that follows it.
struct Followed {
    primary: Postgres,
    relations: Vec<(RelTag, PageKind)>,
    server: Pageserver,
    tenant: TenantId,
    trunk: TimelineId,
    random: StdRng,
    _bucket: tempfile::TempDir,
}

/// A primary without surprises, with a table of a thousand rows.
async fn primary() -> Result<Postgres> {
    let primary = Postgres::start(&PostgresConfig::new(MAJOR).set("autovacuum", "off")).await?;
    primary
        .sql(
            "CREATE TABLE t (id int PRIMARY KEY, n int, note text);
             INSERT INTO t SELECT id, 0, repeat('x', 200) FROM generate_series(1, 1000) id",
        )
        .await?;
    Ok(primary)
}

impl Followed {
    async fn start(settings: &[(&str, &str)]) -> Result<Followed> {
        let primary = primary().await?;
        let relations = vec![witness::relation(&primary, "t", PageKind::Heap).await?];
        let bucket = tempfile::tempdir()?;
        let at = BucketAt::Directory(bucket.path().to_owned());
        let mut server = Pageserver::start(at, settings).await?;
        let (tenant, trunk) = (TenantId(rand::random()), new_timeline());
        server.follow(tenant, trunk, &primary.dsn()).await?;
        server.wait_active(tenant, trunk, PATIENCE).await?;
        let random = StdRng::seed_from_u64(1);
        Ok(Followed { primary, relations, server, tenant, trunk, random, _bucket: bucket })
    }

    /// Writes, and tells how things are afterwards. The server has it all.
    async fn moment(&mut self) -> Result<Witness> {
        write(&self.primary).await?;
        let seen = Witness::take(&self.primary, &self.relations, 20, &mut self.random).await?;
        self.server.wait_for(self.tenant, self.trunk, seen.lsn, PATIENCE).await?;
        Ok(seen)
    }

    /// Writes until nothing before `lsn` is kept for its own sake.
    async fn outgrow(&mut self, lsn: Lsn) -> Result<()> {
        let since = Instant::now();
        loop {
            let detail = self.server.timeline(self.tenant, self.trunk).await?;
            let cutoff: Lsn = detail["applied_gc_cutoff_lsn"].as_str().context("no cutoff")?.parse()?;
            if cutoff > lsn {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "the cutoff stays at {cutoff}");
            self.moment().await?;
        }
    }

    async fn has(&mut self, timeline: TimelineId, seen: &Witness) -> Result<()> {
        seen.check(&self.server, (self.tenant, timeline), 20, &mut self.random).await
    }

    async fn ask(
        &self,
        method: Method,
        timeline: TimelineId,
        rest: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value)> {
        let path = format!("/v1/tenant/{}/timeline/{timeline}{rest}", self.tenant);
        self.server.http(method, &path, body.as_ref()).await
    }

    async fn archival(&self, timeline: TimelineId, state: &str) -> Result<(u16, Value)> {
        self.ask(Method::PUT, timeline, "/archival_config", Some(json!({ "state": state }))).await
    }

    async fn detach(&self, timeline: TimelineId) -> Result<(u16, Value)> {
        self.ask(Method::PUT, timeline, "/detach_ancestor", None).await
    }

    async fn name(&self, name: &str, lsn: Lsn, valid_for: Option<&str>) -> Result<(u16, Value)> {
        self.name_in(self.trunk, name, lsn, valid_for).await
    }

    async fn name_in(
        &self,
        timeline: TimelineId,
        name: &str,
        lsn: Lsn,
        valid_for: Option<&str>,
    ) -> Result<(u16, Value)> {
        let body = json!({ "lsn": lsn.to_string(), "valid_for": valid_for });
        self.ask(Method::PUT, timeline, &format!("/named_lsn/{name}"), Some(body)).await
    }

    async fn branch(&self, ancestor: TimelineId, at: Lsn) -> Result<TimelineId> {
        let new = new_timeline();
        self.server.branch(self.tenant, new, ancestor, at).await?;
        Ok(new)
    }
}

async fn write(primary: &Postgres) -> Result<()> {
    primary.sql("UPDATE t SET n = n + 1, note = repeat(md5(random()::text), 6) WHERE id % 5 = 0").await?;
    Ok(())
}

/// Fails unless a call was refused so, by words that name what is the matter.
fn refused((status, answer): (u16, Value), expected: u16, words: &[&str]) -> Result<()> {
    let told = answer["msg"].as_str().unwrap_or_default();
    ensure!(status == expected, "{status} {answer}, not {expected}");
    ensure!(words.iter().all(|word| told.contains(word)), "{told:?} does not tell of {words:?}");
    Ok(())
}

fn done((status, answer): (u16, Value)) -> Result<Value> {
    ensure!((200..300).contains(&status), "{status} {answer}");
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_timeline_is_in_the_bucket_only_and_comes_back_as_it_was() -> Result<()> {
    let mut all = Followed::start(&[]).await?;
    let (tenant, trunk) = (all.tenant, all.trunk);
    let first = all.moment().await?;
    let branch = all.branch(trunk, first.lsn).await?;
    let (trunk_id, branch_id) = (trunk.to_string(), branch.to_string());

    // With a branch that is open it is neither archived nor deleted.
    refused(all.archival(trunk, "Archived").await?, 412, &[&trunk_id, &branch_id, "not archived"])?;
    refused(all.ask(Method::DELETE, trunk, "", None).await?, 412, &[&trunk_id, &branch_id, "branches"])?;

    for _ in 0..2 {
        done(all.archival(branch, "Archived").await?)?;
    }
    // Now it may be archived, but not deleted: the branch needs it.
    refused(all.ask(Method::DELETE, trunk, "", None).await?, 412, &[&branch_id])?;
    let last = all.moment().await?;
    ensure!(done(all.archival(trunk, "Archived").await?)?.is_null());
    let slots = all.primary.value("SELECT count(*) FROM pg_replication_slots").await?;
    ensure!(slots == "0", "its slot keeps WAL on the primary");

    // Nothing of it can be read, named, leased, branched or detached, and everybody is told why.
    let read = format!("{:#}", all.has(trunk, &first).await.err().context("it is read")?);
    ensure!(read.contains("archived"), "{read}");
    let archived = ["archived", trunk_id.as_str()];
    refused(all.name("x", first.lsn, None).await?, 412, &archived)?;
    let lease = Some(json!({ "lsn": first.lsn.to_string() }));
    refused(all.ask(Method::POST, trunk, "/lsn_lease", lease).await?, 412, &archived)?;
    refused(all.detach(trunk).await?, 412, &archived)?;
    let body = json!({"new_timeline_id": new_timeline().to_string(), "ancestor_timeline_id": trunk_id});
    let path = format!("/v1/tenant/{tenant}/timeline");
    refused(all.server.http(Method::POST, &path, Some(&body)).await?, 412, &archived)?;
    refused(
        all.archival(branch, "Unarchived").await?,
        412,
        &[&branch_id, &trunk_id, "unarchive that first"],
    )?;

    // It is listed as what it is.
    let (_, listed) = all.server.http(Method::GET, &path, None).await?;
    ensure!(listed == json!([]), "{listed}");
    let path = format!("/v1/tenant/{tenant}/timeline_and_offloaded");
    let (_, listed) = all.server.http(Method::GET, &path, None).await?;
    ensure!(listed["offloaded"].as_array().map(Vec::len) == Some(2), "{listed}");
    let detail = all.server.timeline(tenant, trunk).await?;
    ensure!(detail["state"] == "Archived" && detail["is_archived"] == true, "{detail}");

    for timeline in [trunk, branch, trunk] {
        done(all.archival(timeline, "Unarchived").await?)?;
    }
    all.has(trunk, &last).await?;
    all.has(branch, &first).await?;
    let more = all.moment().await.context("it follows its primary again")?;
    all.has(trunk, &more).await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_leases_keep_what_is_read_there_until_they_are_over() -> Result<()> {
    let mut all = Followed::start(&[&SHORT_HISTORY[..], &[("lsn_lease_length", "4s")]].concat()).await?;
    let trunk = all.trunk;
    let too_old = all.server.last_record_lsn(all.tenant, trunk).await?;
    // Each is asked for while nothing was written after it: a moment later it may be below the cutoff.
    let good = all.moment().await?;
    let named = done(all.name("for-good", good.lsn, None).await?)?;
    ensure!(named["name"] == "for-good" && named["valid_until"].is_null(), "{named}");
    let ended = all.moment().await?;
    done(all.name("ended", ended.lsn, None).await?)?;
    let since = Instant::now();
    let short = all.moment().await?;
    let named = done(all.name("for-a-while", short.lsn, Some("5s")).await?)?;
    ensure!(named["valid_until"].as_str().is_some_and(|until| until.ends_with('Z')), "{named}");
    let leased = all.moment().await?;
    let lease = |lsn: Lsn| Some(json!({ "lsn": lsn.to_string() }));
    let answer = done(all.ask(Method::POST, trunk, "/lsn_lease", lease(leased.lsn)).await?)?;
    ensure!(answer["valid_until"].is_string(), "{answer}");

    // What is refused, and why.
    refused(all.name("for-good", short.lsn, None).await?, 409, &["for-good", &good.lsn.to_string()])?;
    refused(all.name("-x", good.lsn, None).await?, 400, &["-x", "letters"])?;
    refused(all.name("x", good.lsn, Some("a while")).await?, 400, &["a while"])?;
    let end = all.server.last_record_lsn(all.tenant, trunk).await?;
    let future = end.add(1 << 30);
    refused(all.name("x", future, None).await?, 406, &[&future.to_string(), "beyond"])?;
    refused(all.ask(Method::POST, trunk, "/lsn_lease", lease(future)).await?, 500, &["beyond"])?;

    // History goes on, and only what somebody asked for stays.
    done(all.ask(Method::DELETE, trunk, "/named_lsn/ended", None).await?)?;
    done(all.ask(Method::DELETE, trunk, "/named_lsn/ended", None).await?)?;
    all.outgrow(ended.lsn).await?;
    let is_early = since.elapsed() < Duration::from_millis(3_500);
    for seen in [&short, &leased] {
        // A machine that is slow may be late for this.
        ensure!(all.has(trunk, seen).await.is_ok() || !is_early, "{} went before its time", seen.lsn);
    }
    all.has(trunk, &good).await?;
    refused(all.name("x", too_old, None).await?, 406, &["below"])?;
    let gone = all.has(trunk, &ended).await.err().context("its name was ended, and it can be read")?;
    ensure!(format!("{gone:#}").contains(&ended.lsn.to_string()), "{gone:#}");

    // And then that goes, too.
    while since.elapsed() < Duration::from_secs(6) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for seen in [&short, &leased] {
        while all.has(trunk, seen).await.is_ok() {
            ensure!(since.elapsed() < PATIENCE, "{} stays", seen.lsn);
            all.moment().await?;
        }
    }
    let listed = done(all.ask(Method::GET, trunk, "/named_lsn", None).await?)?;
    ensure!(
        listed.as_array().is_some_and(|names| names.len() == 1 && names[0]["name"] == "for-good"),
        "{listed}"
    );
    all.server.kill();
    all.server.start_again().await?;
    all.has(trunk, &good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_leaves_its_ancestor_while_compaction_goes_on_and_takes_earlier_branches_with_it()
-> Result<()> {
    let mut all = Followed::start(&SHORT_HISTORY).await?;
    let (tenant, trunk) = (all.tenant, all.trunk);
    refused(all.detach(trunk).await?, 409, &[&trunk.to_string(), "no ancestor"])?;
    for round in 0..4 {
        let first = all.moment().await?;
        let sibling = all.branch(trunk, first.lsn).await?;
        let second = all.moment().await?;
        let branch = all.branch(trunk, second.lsn).await?;
        // Where the other begins must be kept in this one, too, if that shall come along.
        done(all.name_in(branch, "first", first.lsn, None).await?)?;
        let later = all.moment().await?;
        let stays = all.branch(trunk, later.lsn).await?;
        let path = format!("/v1/tenant/{tenant}/timeline/{branch}/detach_ancestor");
        let detaching = tokio::spawn(all.server.call(Method::PUT, path, None));
        while !detaching.is_finished() {
            write(&all.primary).await?;
        }
        let answer = done(detaching.await??)?;
        ensure!(answer["reparented_timelines"] == json!([sibling.to_string()]), "{answer}");
        ensure!(done(all.detach(branch).await?)? == answer, "asked again, it answers otherwise");
        all.outgrow(later.lsn).await?;
        for (timeline, seen, ancestor) in [
            (branch, &second, Value::Null),
            (sibling, &first, json!(branch.to_string())),
            (stays, &later, json!(trunk.to_string())),
        ] {
            all.has(timeline, seen).await.with_context(|| format!("round {round}"))?;
            let detail = all.server.timeline(tenant, timeline).await?;
            ensure!(detail["ancestor_timeline_id"] == ancestor, "{detail}, not {ancestor}");
        }
        // Nothing of the one it left is needed any more.
        refused(all.ask(Method::DELETE, branch, "", None).await?, 412, &[&sibling.to_string()])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_whose_own_cutoff_has_moved_on_leaves_its_ancestor() -> Result<()> {
    let mut all = Followed::start(&SHORT_HISTORY).await?;
    let (tenant, trunk) = (all.tenant, all.trunk);
    let before = all.moment().await?;
    done(all.name("before", before.lsn, None).await?)?;
    let at = all.moment().await?;
    let branch = all.branch(trunk, at.lsn).await?;
    let child = all.branch(branch, at.lsn).await?;
    // A cluster that goes on from the branch, and is followed in it.
    let home = all.server.restore(tenant, branch, at.lsn).await?;
    let restored = Postgres::start_existing(MAJOR, home, &[("autovacuum", "off")]).await?;
    let body = json!({ "dsn": restored.dsn() });
    done(all.ask(Method::PUT, branch, "/primary", Some(body)).await?)?;
    let since = Instant::now();
    let tip = loop {
        write(&restored).await?;
        let seen = Witness::take(&restored, &all.relations, 40, &mut all.random).await?;
        all.server.wait_for(tenant, branch, seen.lsn, PATIENCE).await?;
        let detail = all.server.timeline(tenant, branch).await?;
        let cutoff: Lsn = detail["applied_gc_cutoff_lsn"].as_str().context("no cutoff")?.parse()?;
        if cutoff > at.lsn.add(64 << 10) {
            break seen;
        }
        ensure!(since.elapsed() < PATIENCE, "the branch's cutoff stays at {cutoff}");
    };
    let answer = done(all.detach(branch).await?)?;
    ensure!(answer["reparented_timelines"] == json!([]), "{answer}");
    for _ in 0..2 {
        all.has(branch, &tip).await?;
        all.has(child, &at).await.context("a branch's branch")?;
        let gone = all.has(branch, &before).await.err().context("history before the cutoff is read")?;
        ensure!(format!("{gone:#}").contains(&before.lsn.to_string()), "{gone:#}");
        all.has(trunk, &before).await?;
        // Whoever owns it next finds the same.
        all.server.kill();
        all.server.wipe_disk()?;
        all.server.start_again().await?;
        all.server.wait_for(tenant, branch, tip.lsn, PATIENCE).await?;
    }
    write(&restored).await?;
    let more = Witness::take(&restored, &all.relations, 40, &mut all.random).await?;
    all.server.wait_for(tenant, branch, more.lsn, PATIENCE).await?;
    all.has(branch, &more).await
}

/// A server under an operator, with a timeline and a branch of it.
struct OperatedTree {
    primary: Postgres,
    server: Operated,
    tenant: TenantId,
    trunk: TimelineId,
    branch: TimelineId,
    at: Witness,
    random: StdRng,
    _bucket: tempfile::TempDir,
}

impl OperatedTree {
    async fn start() -> Result<OperatedTree> {
        let primary = primary().await?;
        let relations = [witness::relation(&primary, "t", PageKind::Heap).await?];
        let bucket = tempfile::tempdir()?;
        let at = BucketAt::Directory(bucket.path().to_owned());
        let mut server = Operated::start(at, "ps-0", &[("wal_seal_age", "200ms")]).await?;
        let (tenant, trunk, branch) = (TenantId(rand::random()), new_timeline(), new_timeline());
        server.attach(tenant, 1, "first").await?;
        server.import(tenant, 1, trunk, &primary.dsn()).await?;
        server.timeline_when(tenant, trunk, |told| told.state() == TimelineState::Active).await?;
        write(&primary).await?;
        let mut random = StdRng::seed_from_u64(1);
        let at = Witness::take(&primary, &relations, 20, &mut random).await?;
        server.wait_for(tenant, trunk, at.lsn).await?;
        server.branch(tenant, 1, branch, (trunk, at.lsn)).await?;
        Ok(OperatedTree { primary, server, tenant, trunk, branch, at, random, _bucket: bucket })
    }

    async fn set(&mut self, timeline: TimelineId, state: TimelineState) -> Result<(), tonic::Status> {
        let mutation = self.server.mutation(self.tenant, 1, "state");
        let (timeline_id, state) = (timeline.to_string(), state.into());
        let request = SetTimelineStateRequest { mutation, timeline_id, state };
        self.server.client.set_timeline_state(Operated::request(request)).await.map(drop)
    }

    async fn delete(&mut self, timeline: TimelineId) -> Result<(), tonic::Status> {
        let mutation = self.server.mutation(self.tenant, 1, "delete");
        let request = DeleteTimelineRequest { mutation, timeline_id: timeline.to_string() };
        self.server.client.delete_timeline(Operated::request(request)).await.map(drop)
    }

    async fn detach(&mut self, timeline: TimelineId) -> Result<Vec<String>, tonic::Status> {
        let mutation = self.server.mutation(self.tenant, 1, "detach");
        let request = DetachAncestorRequest { mutation, timeline_id: timeline.to_string() };
        let answer = self.server.client.detach_ancestor(Operated::request(request)).await?;
        Ok(answer.into_inner().reparented_timeline_ids)
    }

    async fn name(
        &mut self,
        name: &str,
        lsn: Lsn,
        seconds: Option<i64>,
    ) -> Result<Option<i64>, tonic::Status> {
        let request = NameLsnRequest {
            mutation: self.server.mutation(self.tenant, 1, "name"),
            timeline_id: self.trunk.to_string(),
            name: name.into(),
            lsn: lsn.to_string(),
            length: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        };
        let answer = self.server.client.name_lsn(Operated::request(request)).await?.into_inner();
        Ok(answer.named.and_then(|named| named.valid_until).map(|until| until.seconds))
    }

    async fn names(&mut self) -> Result<Vec<String>> {
        let request = ListNamedLsnsRequest {
            tenant_shard_id: self.tenant.to_string(),
            timeline_id: self.trunk.to_string(),
        };
        let listed = self.server.client.list_named_lsns(Operated::request(request)).await?.into_inner();
        Ok(listed.named.into_iter().map(|named| named.name).collect())
    }

    async fn lease(&mut self, lsn: Lsn, seconds: i64) -> Result<i64, tonic::Status> {
        let request = LeaseLsnRequest {
            mutation: self.server.mutation(self.tenant, 1, "lease"),
            timeline_id: self.trunk.to_string(),
            lsn: lsn.to_string(),
            length: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        let answer = self.server.client.lease_lsn(Operated::request(request)).await?.into_inner();
        Ok(answer.valid_until.map_or(0, |until| until.seconds))
    }

    async fn has_all(&mut self, timelines: &[TimelineId]) -> Result<()> {
        for timeline in timelines {
            self.at.check(&self.server.server, (self.tenant, *timeline), 20, &mut self.random).await?;
        }
        Ok(())
    }
}

/// Fails unless a call was refused for this reason, by words that name what is the matter.
fn refused_as<T>(answer: Result<T, tonic::Status>, expected: Reason, words: &[&str]) -> Result<()> {
    let refused = answer.err().context("it was not refused")?;
    ensure!(reason(&refused) == expected, "{refused}, not {expected:?}");
    let told = refused.message();
    ensure!(words.iter().all(|word| told.contains(word)), "{told:?} does not tell of {words:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_archives_and_detaches_and_is_told_what_stands_in_the_way() -> Result<()> {
    let mut all = OperatedTree::start().await?;
    let (trunk, branch) = (all.trunk, all.branch);
    let (trunk_id, branch_id) = (trunk.to_string(), branch.to_string());
    let has_branches = Reason::TimelineHasBranches;
    refused_as(all.set(trunk, TimelineState::Archived).await, has_branches, &[&trunk_id, &branch_id])?;
    refused_as(all.delete(trunk).await, has_branches, &[&trunk_id, &branch_id])?;
    refused_as(all.detach(trunk).await, Reason::Invalid, &[&trunk_id, "no ancestor"])?;

    for timeline in [branch, trunk, trunk] {
        all.set(timeline, TimelineState::Archived).await?;
    }
    all.server.timeline_when(all.tenant, trunk, |told| told.state() == TimelineState::Archived).await?;
    let slots = all.primary.value("SELECT count(*) FROM pg_replication_slots").await?;
    ensure!(slots == "0", "its slot keeps WAL on the primary");
    let archived = Reason::TimelineArchived;
    refused_as(all.set(branch, TimelineState::Active).await, archived, &[&branch_id, &trunk_id])?;
    refused_as(all.set(trunk, TimelineState::Stopped).await, archived, &[&trunk_id])?;
    refused_as(all.detach(branch).await, archived, &[&branch_id])?;
    refused_as(all.lease(all.at.lsn, 60).await, archived, &[&trunk_id])?;
    refused_as(all.name("x", all.at.lsn, None).await, archived, &[&trunk_id])?;
    refused_as(all.delete(trunk).await, has_branches, &[&branch_id])?;
    let read = format!("{:#}", all.has_all(&[trunk]).await.err().context("it is read")?);
    ensure!(read.contains("archived"), "{read}");

    for timeline in [trunk, branch, branch] {
        all.set(timeline, TimelineState::Active).await?;
    }
    all.has_all(&[trunk, branch]).await?;
    let lsn = all.at.lsn;
    let sibling = new_timeline();
    all.server.branch(all.tenant, 1, sibling, (trunk, lsn)).await?;
    for _ in 0..2 {
        ensure!(all.detach(branch).await? == [sibling.to_string()], "it was not taken along");
    }
    all.has_all(&[trunk, branch, sibling]).await?;
    refused_as(all.delete(branch).await, has_branches, &[&sibling.to_string()])?;
    for timeline in [trunk, sibling, branch, branch] {
        all.delete(timeline).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_names_and_leases_what_shall_stay_readable() -> Result<()> {
    let mut all = OperatedTree::start().await?;
    let lsn = all.at.lsn;
    ensure!(all.name("release", lsn, None).await?.is_none());
    let until = all.name("while", lsn, Some(4)).await?.context("it does not end")?;
    ensure!(all.names().await? == ["release", "while"]);
    // It lasts longer when it is asked for again, and never shorter.
    ensure!(all.name("while", lsn, Some(5)).await? >= Some(until));
    let leased = all.lease(lsn, 60).await?;
    ensure!(all.lease(lsn, 3_600).await? > leased, "it was not prolonged");

    let end = all.server.server.last_record_lsn(all.tenant, all.trunk).await?;
    refused_as(all.name("release", end, None).await, Reason::NameTaken, &["release", &lsn.to_string()])?;
    refused_as(all.name("no name", lsn, None).await, Reason::Invalid, &["no name"])?;
    refused_as(all.name("x", lsn, Some(-1)).await, Reason::Invalid, &["length"])?;
    let future = end.add(1 << 30);
    refused_as(all.name("x", future, None).await, Reason::OutOfHistory, &[&future.to_string()])?;
    refused_as(all.lease(future, 60).await, Reason::OutOfHistory, &[&future.to_string()])?;
    refused_as(all.lease(Lsn(8), 60).await, Reason::OutOfHistory, &["below"])?;
    refused_as(all.lease(lsn, 1_000_000).await, Reason::Invalid, &["length"])?;

    let since = Instant::now();
    while all.names().await? != ["release"] {
        ensure!(since.elapsed() < PATIENCE, "a name stays that is over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The next owner knows the same.
    ensure!(all.server.detach(all.tenant, 1).await?);
    all.server.attach(all.tenant, 2, "second").await?;
    all.server.wait_for(all.tenant, all.trunk, lsn).await?;
    ensure!(all.names().await? == ["release"]);
    all.has_all(&[all.trunk]).await?;
    for _ in 0..2 {
        let request = ForgetNamedLsnRequest {
            mutation: all.server.mutation(all.tenant, 2, "forget"),
            timeline_id: all.trunk.to_string(),
            name: "release".into(),
        };
        all.server.client.forget_named_lsn(Operated::request(request)).await?;
    }
    ensure!(all.names().await?.is_empty());
    Ok(())
}
