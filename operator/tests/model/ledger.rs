//! What was promised and given, and whether the world keeps to it.

use std::collections::{BTreeMap, BTreeSet};

use codec::index_part::{IndexPart, WalObjectEntry};
use engine::object_path::{ObjectPath, claims_prefix, index_prefix};
use engine::stored_wal::{StoredWal, wal_path};
use model::{Generation, LayerObjectName, Lsn, TimelineId, Tli};
use operator::api::tenant::{ShardStatus, TenantStatus};

use super::World;
use crate::owner::{MAIN, Opened, Said};

/// What was promised and given.
#[derive(Default)]
pub struct Ledger {
    /// To which process each generation was given, by each etcd that there was.
    given: BTreeMap<(u32, u32), String>,
    /// How often etcd was restored.
    pub restored: u32,
    /// By which process each generation was claimed.
    claimed: BTreeMap<u32, String>,
    /// Up to where an owner of each generation has WAL; none for one that has not opened its timelines.
    pub received: BTreeMap<Generation, Lsn>,
    /// Branches that there are.
    branches: BTreeMap<TimelineId, Lsn>,
    /// Branches that there are not any more.
    buried: BTreeSet<TimelineId>,
    /// An LSN that stays readable.
    lease: Option<Lsn>,
}

impl Ledger {
    /// Who asks for another lease needs the one before no more.
    pub fn end_lease(&mut self) {
        self.lease = None;
    }

    /// Nobody's history has more than this.
    pub fn cut(&mut self, at: Lsn) {
        for received in self.received.values_mut() {
            *received = at.min(*received);
        }
    }

    /// Somebody begins to delete a branch: nothing is promised of it, unless an owner acknowledges it again.
    pub fn withdraw(&mut self, branch: TimelineId) {
        self.branches.remove(&branch);
    }
}

impl World {
    /// A status is about to be written: no generation is given twice, and none goes back.
    pub fn check_commit(&mut self, before: &TenantStatus, next: &TenantStatus) {
        let place = |status: &ShardStatus| status.attached.as_ref().map_or(0, |place| place.generation);
        for (old, new) in before.shards.iter().zip(&next.shards) {
            if new.generation < old.generation || (new.attached.is_some() && place(new) < place(old)) {
                self.violated(format!("a generation went back: {old:?} became {new:?}"));
            }
            let Some(target) = new.target.as_ref().filter(|target| old.target.as_ref() != Some(target))
            else {
                continue;
            };
            let process = format!("{}/{}/{}", target.pod, target.instance, target.attempt);
            let key = (target.generation, self.ledger.restored);
            let first = self.ledger.given.entry(key).or_insert_with(|| process.clone()).clone();
            if first != process {
                self.violated(format!(
                    "generation {} was given to {first} and to {process}",
                    target.generation
                ));
            }
        }
    }

    /// A process claimed a generation: it was meant to, and is the only one.
    pub fn check_claimed(&mut self, which: usize, generation: Generation) {
        let process = format!("{}/{}", self.servers[which].pod, self.servers[which].instance);
        let first = self.ledger.claimed.entry(generation.0).or_insert_with(|| process.clone()).clone();
        if first != process {
            self.violated(format!("generation {generation} was claimed by {first} and by {process}"));
        }
        let mut meant = self.ledger.given.range((generation.0, 0)..=(generation.0, u32::MAX));
        if !meant.any(|(_, to)| to.starts_with(&format!("{process}/"))) {
            self.violated(format!("generation {generation} is held by {process}, which it was not given to"));
        }
    }

    /// An owner opened its timelines: all that was promised before is there.
    pub fn check_opened(&mut self, generation: Generation, opened: &Opened) {
        let received = self.ledger.received.entry(generation).or_default();
        *received = opened.main.received.max(*received);
        // What one has who is superseded already is read by nobody.
        if self.highest_claim() != Some(generation) {
            return;
        }
        let (told, by) = (self.source.told, self.source.told_by);
        if opened.main.stored < told {
            let at = opened.main.stored;
            self.violated(format!("the source was told {told} by {by}, and {generation} begins at {at}"));
        }
        for (branch, begin) in &self.ledger.branches {
            if opened.branches.get(branch).is_none_or(|(_, found)| found != begin) {
                let text =
                    format!("branch {branch} at {begin} was acknowledged, and {generation} does not have it");
                return self.violated(text);
            }
        }
        if let Some(branch) = opened.branches.keys().find(|branch| self.ledger.buried.contains(branch)) {
            return self.violated(format!("branch {branch} was deleted, and {generation} has it"));
        }
        if let Some((branch, (_, begin))) =
            opened.branches.iter().find(|(_, (_, at))| *at > opened.main.stored)
        {
            let at = opened.main.stored;
            return self.violated(format!("branch {branch} begins at {begin}, and its parent ends at {at}"));
        }
        self.check_horizon();
    }

    /// What was said by an owner, right when it is heard.
    pub fn check_said(&mut self, which: usize, generation: Generation, said: Said) {
        match said {
            Said::Nothing | Said::MayConnect { .. } => {}
            Said::Parted(at) => {
                self.ledger.received.insert(generation, at);
            }
            Said::Restored(nonce, tli, at) => self.restored(generation, nonce, tli, at),
            Said::Reported(lsn) => self.report(which, generation, lsn),
            Said::Branched(branch, begin) => self.branched(generation, branch, begin),
            Said::Buried(branch) => {
                self.ledger.buried.insert(branch);
            }
            Said::Leased(lsn) => {
                self.ledger.lease = Some(lsn);
                self.check_horizon();
            }
            Said::Collected => self.check_horizon(),
            Said::Deleted(paths) => self.check_deleted(&paths),
        }
    }

    fn branched(&mut self, generation: Generation, branch: TimelineId, begin: Lsn) {
        if self.ledger.buried.contains(&branch) {
            self.violated(format!(
                "branch {branch} was deleted for good, and is acknowledged by {generation}"
            ));
        }
        self.ledger.branches.insert(branch, begin);
        let newer = self.newer_owner(generation, |opened| !opened.branches.contains_key(&branch));
        if let Some(newer) = newer {
            self.violated(format!("{generation} acknowledged branch {branch}, and {newer} has none"));
        }
        self.check_horizon();
    }

    /// A cluster was restored by who is the newest owner still: it takes the source's place.
    fn restored(&mut self, generation: Generation, nonce: String, tli: Tli, at: Lsn) {
        if self.highest_claim() != Some(generation) || !self.source.down || self.source.restored.is_some() {
            return;
        }
        self.source.restore(nonce, tli, at);
        self.ledger.cut(at);
        self.story(|| format!("a cluster that was restored at {at} takes the source's place"));
    }

    /// The source hears that its WAL is safe, if this owner is the one who receives it.
    fn report(&mut self, which: usize, generation: Generation, lsn: Lsn) {
        if !self.streams(which) {
            return;
        }
        let newer = self.newer_owner(generation, |opened| opened.main.received < lsn);
        if let Some(newer) = newer {
            self.violated(format!("{generation} told the source {lsn}, and {newer} began below that"));
        }
        if lsn > self.source.told {
            self.source.told = lsn;
            self.source.told_by = generation;
        }
    }

    /// An owner above this one for whose timelines this is so.
    fn newer_owner(&self, generation: Generation, is_so: impl Fn(&Opened) -> bool) -> Option<Generation> {
        let held = self.servers.iter().filter_map(|server| server.held.as_ref());
        let mut newer = held.filter(|held| held.generation > generation);
        newer.find(|held| held.opened.as_ref().is_some_and(&is_so)).map(|held| held.generation)
    }

    /// What is deleted is not what the newest owner has.
    fn check_deleted(&mut self, paths: &[String]) {
        if paths.is_empty() {
            return;
        }
        if let Some(path) = self.named().into_iter().find(|path| paths.contains(path)) {
            self.violated(format!("{path} was deleted, and the newest index names it"));
        }
    }

    /// What the newest owner has is there.
    pub fn check_named(&self) -> Result<(), String> {
        match self.named().into_iter().find(|path| self.bucket.peek(path).is_none()) {
            Some(path) => Err(format!("{path} is gone, and the newest index names it")),
            None => Ok(()),
        }
    }

    /// The objects that the newest index names.
    fn named(&self) -> Vec<String> {
        let Some((timeline, newest)) = self.newest_index() else { return Vec::new() };
        let covered = newest.disk_consistent_lsn();
        let layers = newest.layer_metadata.iter().map(|(layer, metadata)| {
            let name = LayerObjectName { layer: layer.clone(), generation: metadata.generation };
            ObjectPath::Layer { tenant: self.shard, timeline, name }.to_string()
        });
        let wal = newest.palimpsest.iter().flat_map(|ours| &ours.wal_objects);
        let wal = wal.filter(|object| object.end > covered).map(|entry| {
            let WalObjectEntry { tli, start, end, generation, size, .. } = *entry;
            wal_path(self.shard, timeline, &StoredWal { tli, start, end, generation, size })
        });
        layers.chain(wal).collect()
    }

    /// What the newest owner lets go of is not what somebody was promised.
    fn check_horizon(&mut self) {
        let Some((_, newest)) = self.newest_index() else { return };
        let horizon = newest.metadata().latest_gc_cutoff_lsn;
        let promised = self.ledger.lease.iter().chain(self.ledger.branches.values());
        if let Some(lsn) = promised.into_iter().find(|lsn| **lsn < horizon) {
            self.violated(format!("{lsn} was promised, and the newest index ends at {horizon}"));
        }
    }

    /// The index from which the next owner would go on.
    fn newest_index(&self) -> Option<(TimelineId, IndexPart)> {
        let newest = |timeline| {
            let path = self.bucket.peek_list(&index_prefix(self.shard, timeline)).into_iter().max()?;
            Some((timeline, IndexPart::from_json(&self.bucket.peek(&path)?).expect("written by the engine")))
        };
        let goes_on_in = |part: &IndexPart| part.palimpsest.as_ref()?.archived.as_ref()?.successor;
        let mut found = newest(MAIN)?;
        while let Some(next) = goes_on_in(&found.1).and_then(newest) {
            found = next;
        }
        Some(found)
    }

    /// The highest claim in the bucket.
    pub fn highest_claim(&self) -> Option<Generation> {
        let path = self.bucket.peek_list(&claims_prefix(self.shard)).into_iter().max()?;
        match path.parse() {
            Ok(ObjectPath::Claim { generation, .. }) => Some(generation),
            _ => None,
        }
    }

    /// Whether the tenant's data is deleted, or being deleted.
    pub fn is_being_deleted(&self) -> bool {
        self.highest_claim() == Some(Generation::DELETED)
    }

    /// The end of what every owner from now on has of the source, when that is known.
    pub fn safe_end(&self) -> Option<Lsn> {
        let received = self.ledger.received.get(&self.highest_claim()?)?;
        Some(self.source.told.max(*received))
    }
}
