//! kill -9, lost disks and a bad bucket while history is made small or changes its shape: nothing that was readable is lost, what was acknowledged
//! stays done, what was not can be asked for again, and in the end nothing lies about.
//!
//! Five operations take turns: compaction, collection, archiving and bringing back, detaching a branch from its ancestor, deletion. What must be
//! there is known from the primary's own files: a sample of them whenever it is quiet, all of them at the end.
//!
//! `HISTORY_KILLS` says how often each is interrupted; `HISTORY_SEED` chooses another seed.

mod history;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use history::{Call, PATIENCE, Trouble, World, new_timeline};
use hyper::Method;
use model::TimelineId;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use testkit::oracle::{Pages, compare_relations, same_as_primary};
use testkit::{Fault, Witness, cluster_files};

/// What is interrupted.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Compaction,
    Collection,
    Archive,
    Detach,
    Delete,
}

const OPERATIONS: [Operation; 5] =
    [Operation::Compaction, Operation::Collection, Operation::Archive, Operation::Detach, Operation::Delete];

/// Rounds of each operation, unless `HISTORY_KILLS` says otherwise.
const KILLS: u32 = 20;
const FAULTS: u32 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_history_changes_its_shape_it_loses_nothing_and_leaves_nothing() {
    let kill = |random: &mut StdRng| match random.random_range(0..5) {
        0 => Trouble::Lose,
        1 => Trouble::Twice,
        _ => Trouble::Kill,
    };
    let rounds = number("HISTORY_KILLS").map_or(KILLS, |kills| kills as u32);
    troubled(false, rounds, kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_bad_bucket_history_changes_its_shape_all_the_same() {
    let trouble = |random: &mut StdRng| match random.random_range(0..12) {
        0 => Trouble::Fault(Fault::Refuse),
        1 => Trouble::Fault(Fault::Status(503)),
        2 => Trouble::Fault(Fault::Slow { bytes_a_second: 100_000 }),
        3 => Trouble::Fault(Fault::Stall),
        4 | 5 => Trouble::Fault(Fault::CutAfter { bytes: random.random_range(1..20_000) }),
        6 => Trouble::Late("index_part"),
        7 => Trouble::Late("PUT /"),
        8 => Trouble::Late("tombstones"),
        9 => Trouble::Late("manifest"),
        10 => Trouble::Lose,
        _ => Trouble::Kill,
    };
    let rounds = number("HISTORY_KILLS").map_or(FAULTS, |kills| kills as u32);
    troubled(true, rounds, trouble).await;
}

async fn troubled(over_s3: bool, rounds: u32, trouble: impl Fn(&mut StdRng) -> Trouble) {
    let seed = number("HISTORY_SEED").unwrap_or(1);
    let told = || format!("over S3: {over_s3}, seed {seed}");
    let world = World::start(over_s3, seed).await.with_context(told).unwrap();
    let of_child = world.moments(world.second)[0].clone();
    let mut run = Run {
        world,
        child: new_timeline(),
        of_child,
        archived: Archived::Nothing,
        paces: [FIRST_PACE; 5],
        broken_off: [0; 5],
    };
    run.all(rounds, trouble).await.with_context(told).unwrap();
}

/// How far the archiving of the second timeline and of its branch got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Archived {
    Nothing,
    Child,
    Both,
}

/// A call is interrupted within so long, at first.
const FIRST_PACE: Duration = Duration::from_millis(100);
/// Compaction and collection go on by themselves: trouble comes within so long after WAL did.
const BACKGROUND: Duration = Duration::from_millis(700);

struct Run {
    world: World,
    /// A branch of the second timeline, and how things are at its end.
    child: TimelineId,
    of_child: Arc<Witness>,
    archived: Archived,
    /// Of each operation: within how long it is interrupted, and how many calls had no answer by that.
    paces: [Duration; 5],
    broken_off: [u32; 5],
}

impl Run {
    async fn all(&mut self, rounds: u32, trouble: impl Fn(&mut StdRng) -> Trouble) -> Result<()> {
        self.world.branch(self.child, self.world.second, self.of_child.lsn).await?;
        let began = Instant::now();
        for round in 0..rounds {
            for operation in OPERATIONS {
                let trouble = trouble(&mut self.world.random);
                let took = Instant::now();
                self.round(operation, trouble)
                    .await
                    .with_context(|| format!("round {round}: {operation:?}, {trouble:?}"))?;
                println!("round {round}: {operation:?}, {trouble:?}: {:.1?}", took.elapsed());
            }
        }
        println!("{:?} in {:.1?}", self.world.counts, began.elapsed());
        println!("calls without an answer, of {rounds} each: {OPERATIONS:?} {:?}", self.broken_off);
        self.end().await
    }

    async fn round(&mut self, operation: Operation, trouble: Trouble) -> Result<()> {
        self.world.write().await?;
        match operation {
            Operation::Compaction => {
                self.world.in_trouble(None, trouble, BACKGROUND).await?;
            }
            Operation::Collection => self.collection(trouble).await?,
            Operation::Archive => self.archive(trouble).await?,
            Operation::Detach => self.detach(trouble).await?,
            Operation::Delete => self.delete(trouble).await?,
        }
        self.world.check(3).await
    }

    /// Makes trouble during a call, at a random moment of what such calls took before. Answers whether it was acknowledged all the same.
    async fn interrupt(&mut self, operation: Operation, call: &Call, trouble: Trouble) -> Result<bool> {
        let pace = self.paces[operation as usize];
        let took = self.world.in_trouble(Some(call), trouble, pace).await?;
        // So that about every second one is interrupted.
        let next = took.map_or(pace * 5 / 4, |took| (pace + took) / 2);
        self.paces[operation as usize] = next.clamp(Duration::from_millis(2), FIRST_PACE);
        self.broken_off[operation as usize] += u32::from(took.is_none());
        Ok(took.is_some())
    }

    /// What is not kept any more goes while what is kept must stay.
    async fn collection(&mut self, trouble: Trouble) -> Result<()> {
        let trunk = self.world.trunk;
        let open = [trunk, self.world.second];
        let open = if self.archived == Archived::Both { &open[..1] } else { &open[..] };
        // It lets the oldest go.
        self.world.keep(open).await?;
        self.world.write().await?;
        self.world.in_trouble(None, trouble, BACKGROUND).await?;
        Ok(())
    }

    async fn archive(&mut self, trouble: Trouble) -> Result<()> {
        let (timeline, state, then) = match self.archived {
            Archived::Nothing => (self.child, "Archived", Archived::Child),
            Archived::Child if self.world.random.random() => (self.child, "Unarchived", Archived::Nothing),
            Archived::Child => (self.world.second, "Archived", Archived::Both),
            Archived::Both => (self.world.second, "Unarchived", Archived::Child),
        };
        let call = self.archival(timeline, state);
        let is_acknowledged = self.interrupt(Operation::Archive, &call, trouble).await?;
        let is_archived = state == "Archived";
        if is_acknowledged {
            let (status, detail) = self.world.status(timeline).await?;
            ensure!(
                status == 200 && (detail["state"] == "Archived") == is_archived,
                "{state} was acknowledged: {status} {detail}"
            );
        }
        self.world.until_done(&call).await?;
        self.archived = then;
        let seen = if timeline == self.child {
            Arc::clone(&self.of_child)
        } else {
            self.world.moments(timeline)[0].clone()
        };
        if is_archived {
            let refused =
                self.world.has(timeline, &seen, 1).await.err().context("what is archived is read")?;
            ensure!(format!("{refused:#}").contains("archived"), "{refused:#}");
            return Ok(());
        }
        if timeline == self.world.second {
            // It goes on where it was left.
            let last = self.world.moments(self.world.trunk).last().context("kept")?.lsn;
            self.world.server.wait_for(self.world.tenant, timeline, last, PATIENCE).await?;
        }
        self.world.has(timeline, &seen, 20).await
    }

    fn archival(&self, timeline: TimelineId, state: &str) -> Call {
        self.world.call(Method::PUT, timeline, "/archival_config", Some(json!({ "state": state })))
    }

    /// A branch, or a branch of a branch, stands alone; another one that begins below goes with it.
    async fn detach(&mut self, trouble: Trouble) -> Result<()> {
        let trunk = self.world.trunk;
        self.world.keep(&[trunk]).await?;
        let moments = self.world.moments(trunk);
        let (tip, older) = moments.split_last().context("kept")?;
        let older = older[self.world.random.random_range(0..older.len())].clone();
        let (branch, sibling) = (new_timeline(), new_timeline());
        self.world.branch(sibling, trunk, older.lsn).await?;
        self.world.branch(branch, trunk, tip.lsn).await?;
        let is_nested = self.world.random.random_ratio(1, 3);
        let leaf = if is_nested { new_timeline() } else { branch };
        if is_nested {
            self.world.branch(leaf, branch, tip.lsn).await?;
        }
        let is_kept = self.world.name(leaf, older.clone()).await?;

        let call = self.world.call(Method::PUT, leaf, "/detach_ancestor", None);
        let is_acknowledged = self.interrupt(Operation::Detach, &call, trouble).await?;
        if is_acknowledged {
            let (_, detail) = self.world.status(leaf).await?;
            ensure!(detail["ancestor_timeline_id"].is_null(), "it was detached: {detail}");
        }
        let answer = self.world.until_done(&call).await?;
        let (_, detail) = self.world.status(leaf).await?;
        ensure!(detail["ancestor_timeline_id"].is_null(), "it was detached: {detail}");
        for (timeline, seen) in [(leaf, tip), (leaf, &older), (sibling, &older), (branch, tip)] {
            if timeline == leaf && seen.lsn == older.lsn && !is_kept {
                continue;
            }
            self.world
                .has(timeline, seen, 10)
                .await
                .with_context(|| format!("{leaf} was detached: {answer}"))?;
        }
        let (_, moved) = self.world.status(sibling).await?;
        // It stays where it is if where it begins is not kept in the one that leaves.
        let may_hang_on = match (is_nested, is_kept) {
            (true, _) => vec![trunk],
            (false, true) => vec![leaf],
            (false, false) => vec![leaf, trunk],
        };
        let on = moved["ancestor_timeline_id"].as_str().unwrap_or_default();
        ensure!(may_hang_on.iter().any(|may| may.to_string() == on), "{moved}, {answer}");
        for timeline in [sibling, leaf, branch] {
            self.world.delete(timeline).await?;
        }
        Ok(())
    }

    /// A branch with layers of its own or without, archived or not, goes for good.
    async fn delete(&mut self, trouble: Trouble) -> Result<()> {
        let trunk = self.world.trunk;
        let moments = self.world.moments(trunk);
        let at = moments[self.world.random.random_range(0..moments.len())].lsn;
        let branch = new_timeline();
        self.world.branch(branch, trunk, at).await?;
        if self.world.random.random_ratio(2, 3) {
            let detach = self.world.call(Method::PUT, branch, "/detach_ancestor", None);
            self.world.until_done(&detach).await?;
        }
        if self.world.random.random_ratio(1, 3) {
            self.world.until_done(&self.archival(branch, "Archived")).await?;
        }
        let call = self.world.call(Method::DELETE, branch, "", None);
        let is_acknowledged = self.interrupt(Operation::Delete, &call, trouble).await?;
        if is_acknowledged {
            let (status, detail) = self.world.status(branch).await?;
            ensure!(status == 404, "its deletion was acknowledged: {status} {detail}");
        }
        self.world.until(&call, &[202, 404]).await?;
        let (status, detail) = self.world.status(branch).await?;
        ensure!(status == 404, "it was deleted: {status} {detail}");
        let body = json!({"new_timeline_id": branch.to_string(), "ancestor_timeline_id": trunk.to_string()});
        let path = format!("/v1/tenant/{}/timeline", self.world.tenant);
        let (status, answer) = self.world.server.http(Method::POST, &path, Some(&body)).await?;
        ensure!(status == 409, "a deleted timeline was made again: {status} {answer}");
        Ok(())
    }

    /// Everything is there, by the primary's own files; nothing else is; and the layers are what Neon can read.
    async fn end(&mut self) -> Result<()> {
        let Run { world, child, of_child, .. } = self;
        for timeline in [world.second, *child] {
            let call =
                world.call(Method::PUT, timeline, "/archival_config", Some(json!({"state": "Unarchived"})));
            world.until_done(&call).await?;
        }
        world.write().await?;
        world.keep(&[world.trunk, world.second]).await?;
        world.check(usize::MAX).await?;
        world.has(*child, of_child, usize::MAX).await?;
        let alone = new_timeline();
        let tip = world.moments(world.trunk).last().context("kept")?.clone();
        world.branch(alone, world.trunk, tip.lsn).await?;
        world.until_done(&world.call(Method::PUT, alone, "/detach_ancestor", None)).await?;

        let relations = cluster_files::permanent_relations(&world.postgres).await?;
        let trunk = (world.tenant, world.trunk);
        same_as_primary(&mut world.postgres, &mut world.server, trunk, PATIENCE).await?;
        let last = world.server.last_record_lsn(world.tenant, world.trunk).await?;
        world.server.wait_for(world.tenant, world.second, last, PATIENCE).await?;
        let served = world.server.pages(world.tenant, world.second).await?;
        compare_relations(&world.postgres, &relations, &mut Pages::Served(served, last)).await?.verdict()?;

        world.scrubbed().await?;
        println!("{}", world.swept().await?);
        for timeline in [*child, world.second] {
            let call =
                world.call(Method::PUT, timeline, "/archival_config", Some(json!({"state": "Archived"})));
            world.until_done(&call).await?;
        }
        world.scrubbed().await.context("with archived timelines")?;
        world.has(alone, &tip, usize::MAX).await?;
        world.server.stop().await?;
        world.readable_by_neon().await
    }
}
