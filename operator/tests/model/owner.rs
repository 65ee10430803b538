//! What an owner does with the bucket: each function is a job that stops at every request.
//!
//! Claims, validation, indexes and their writer, the choice of the WAL that counts, tombstones and deletions are the engine's own. What a job
//! does between them is as in the engine's `tenant`, `timeline` and `wal_keeper`, which have tasks, disks and pages that are of no
//! interest here. Collecting layers is as it is to be: the engine does not do it yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use codec::history::TimelineHistory;
use codec::index_part::{
    Archived, IndexPart, LayerMetadata, Lease, Restore, TimelineMetadata, TliStart, Unknown, UtcTime,
};
use engine::claim::{Claim, ClaimedBy, ConfirmError, ValidateError};
use engine::deletion;
use engine::index_keeper::{IndexKeeper, IndexTrouble, vanilla_extension};
use engine::index_store::{IndexStore, LoadIndexError, PutIndexError};
use engine::lineage::{self, Course, Ours, Theirs};
use engine::object_path::{ObjectPath, index_prefix, tenant_prefix, timeline_prefix};
use engine::ports::{Body, Bucket, BucketError, ListRequest, PutIf};
use engine::stored_wal::{StoredWal, delete_wal, list_wal, wal_path};
use engine::wal_run::{WalRunError, contiguous_run};
use model::{
    Generation, Key, LayerName, LayerObjectName, Lsn, PgMajor, TenantShardId, TimelineId, Tli, WalSegmentSize,
};

use super::broken::Broken;
use super::bucket::SteppedBucket;
use super::source::{BASE, line_at};

/// The timeline that follows the source.
pub const MAIN: TimelineId = TimelineId([9; 16]);

/// When leases end, counted from 1970: after any test.
const FOR_GOOD: Duration = Duration::from_secs(10_000_000_000);

/// What an owner knows of the shard's timelines.
#[derive(Clone)]
pub struct Opened {
    /// The one that follows the source.
    pub main: Main,
    /// Its branches, and where each begins.
    pub branches: BTreeMap<TimelineId, (Arc<IndexKeeper>, Lsn)>,
    /// Those whose deletion was begun, with their indexes: nothing is said of them any more.
    pub going: BTreeMap<TimelineId, Arc<IndexKeeper>>,
}

/// The timeline that follows the source, as its owner has it.
#[derive(Clone)]
pub struct Main {
    /// The first one, or what goes on in its place.
    pub id: TimelineId,
    /// Where it branched off the one before.
    pub branched_at: Option<Lsn>,
    /// Its index.
    pub index: Arc<IndexKeeper>,
    /// Up to here layers cover everything.
    pub covered: Lsn,
    /// What a lease or a branch may still name.
    pub horizon: Lsn,
    /// The objects above that.
    pub wal: Vec<StoredWal>,
    /// Up to here the bucket has it.
    pub stored: Lsn,
    /// Up to here it is in memory.
    pub received: Lsn,
    /// The source's Postgres timelines, as far as known.
    pub lines: Vec<(Tli, Lsn)>,
}

/// What an owner does.
pub enum Work {
    /// Finds out whether the slot may be taken, given what the source is.
    Connect(Connection),
    /// Notes two restores of the end, one of which the source becomes.
    Restore,
    /// Stores what was received up to here, and says so.
    StoreWal(Lsn),
    /// Makes a layer of what was received.
    Flush,
    /// Makes one layer of all.
    Compact,
    /// Deletes what earlier owners left.
    Collect,
    /// Reads.
    Read,
    /// Lets go of history.
    MoveHorizon,
    /// Keeps an LSN readable.
    Lease(Lsn),
    /// Makes a branch.
    Branch(TimelineId, Lsn),
    /// Changes one a little.
    Touch(TimelineId),
    /// Deletes one for good.
    Bury(TimelineId),
    /// Removes old claims.
    Clean,
    /// Asks whether a newer owner is there, as an idle owner does now and then.
    Idle,
}

/// What a source shows of itself.
pub struct Connection {
    /// Its Postgres timelines.
    pub lines: Vec<(Tli, Lsn)>,
    /// The same, as its history file has it.
    pub history: TimelineHistory,
    /// The end of its WAL.
    pub flushed: Lsn,
    /// It may lack what was received and not reported.
    pub may_lack: bool,
    /// It is what cannot be followed.
    pub impostor: bool,
}

/// What was promised, or done for good, when a job went well.
#[derive(Clone, Debug)]
pub enum Said {
    /// Nothing to anybody.
    Nothing,
    /// The source may forget what is below.
    Reported(Lsn),
    /// The slot may be taken, of the source or of what is there instead.
    MayConnect {
        /// Whether it is that.
        impostor: bool,
    },
    /// Another timeline goes on from here.
    Parted(Lsn),
    /// There is a cluster by this name, on this Postgres timeline, as of here.
    Restored(String, Tli, Lsn),
    /// There is a branch here.
    Branched(TimelineId, Lsn),
    /// There is this timeline no more, and never again.
    Buried(TimelineId),
    /// This LSN stays readable.
    Leased(Lsn),
    /// What is below cannot be read any more.
    Collected,
    /// These objects are gone.
    Deleted(Vec<String>),
}

/// Why a job did not go well.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// There is a newer owner, or the tenant is being deleted.
    Superseded(Generation),
    /// The bucket failed: nothing is known.
    Away,
    /// It makes no sense any more, and changed nothing.
    Refused,
    /// What must not be.
    Violation(String),
}

type Outcome = Result<Said, Trouble>;

impl From<ValidateError> for Trouble {
    fn from(error: ValidateError) -> Self {
        match error {
            ValidateError::Superseded { by, .. } => Trouble::Superseded(by),
            ValidateError::Bucket(_) => Trouble::Away,
            error @ ValidateError::Missing { .. } => Trouble::Violation(error.to_string()),
        }
    }
}

impl From<PutIndexError> for Trouble {
    fn from(error: PutIndexError) -> Self {
        match error {
            PutIndexError::Bucket { .. } | PutIndexError::Together { .. } => Trouble::Away,
            // An earlier try of the same owner, with other content, got there: to be looked at again.
            PutIndexError::Stopped { .. } => Trouble::Refused,
            error @ PutIndexError::Plain(_) => Trouble::Violation(error.to_string()),
        }
    }
}

impl From<BucketError> for Trouble {
    fn from(_: BucketError) -> Self {
        Trouble::Away
    }
}

impl From<IndexTrouble> for Trouble {
    fn from(error: IndexTrouble) -> Self {
        Trouble::Violation(error.to_string())
    }
}

impl From<LoadIndexError> for Trouble {
    fn from(error: LoadIndexError) -> Self {
        match error {
            LoadIndexError::Bucket { .. } => Trouble::Away,
            LoadIndexError::Buried(_) => Trouble::Refused,
            error @ LoadIndexError::Malformed { .. } => Trouble::Violation(error.to_string()),
        }
    }
}

/// Confirms an allocated generation.
pub async fn claim(
    bucket: SteppedBucket,
    shard: TenantShardId,
    generation: Generation,
    by: ClaimedBy,
    broken: Broken,
) -> Result<Claim, ConfirmError> {
    let bucket = if broken == Broken::ClaimsUnread { bucket.blinded() } else { bucket };
    let claim = Claim::confirm(Arc::new(bucket.clone()), shard, generation, &by).await;
    bucket.open_eyes();
    claim
}

/// As whom a tenant is deleted.
pub enum Deleter {
    /// As its owner.
    Owner(Claim),
    /// As anyone.
    Anyone,
}

/// Begins to delete the tenant for good. Anyone may go on with that, once it has begun.
pub async fn begin_deletion(
    bucket: SteppedBucket,
    shard: TenantShardId,
    deleter: Deleter,
    broken: Broken,
) -> Result<(), Trouble> {
    match deleter {
        Deleter::Owner(claim) => deletion::validate_deleter(&claim).await?,
        Deleter::Anyone if broken == Broken::OnlyOwnersDelete => return Err(Trouble::Refused),
        Deleter::Anyone => {
            let begun = ObjectPath::Claim { tenant: shard, generation: Generation::DELETED };
            match bucket.head(&begun.to_string()).await {
                Err(BucketError::NotFound(_)) => return Err(Trouble::Refused),
                found => drop(found?),
            }
        }
    }
    if broken == Broken::DeletionUnclaimed {
        return Ok(());
    }
    match deletion::claim_deletion(&bucket, shard).await {
        Ok(()) => Ok(()),
        Err(deletion::DeleteTenantError::ForeignClaim { .. }) => Err(Trouble::Refused),
        Err(deletion::DeleteTenantError::Bucket(_)) => Err(Trouble::Away),
    }
}

/// Deletes the tenant's data, once that has begun.
pub async fn finish_deletion(
    bucket: SteppedBucket,
    shard: TenantShardId,
    broken: Broken,
) -> Result<(), Trouble> {
    if broken == Broken::DeletionUnclaimed {
        let paths = bucket.peek_list(&tenant_prefix(shard));
        return Ok(bucket.delete(&paths).await?);
    }
    Ok(deletion::delete_tenant_objects(&bucket, shard).await.map(drop)?)
}

/// An owner at work.
#[derive(Clone)]
pub struct Owner {
    /// As whom.
    pub claim: Claim,
    /// Where.
    pub bucket: SteppedBucket,
    /// What is wrong.
    pub broken: Broken,
    /// Different each time.
    pub drawn: u64,
}

impl Owner {
    fn shard(&self) -> TenantShardId {
        self.claim.tenant()
    }

    fn generation(&self) -> Generation {
        self.claim.generation()
    }

    /// Does it, to its end or as far as it goes.
    pub async fn work(&self, opened: &mut Opened, work: Work) -> Outcome {
        match work {
            Work::Connect(source) => self.connect(opened, &source).await,
            Work::Restore => self.restore(opened).await,
            Work::StoreWal(through) => self.store_wal(opened, through).await,
            Work::Flush => self.flush(opened).await,
            Work::Compact => self.compact(opened).await,
            Work::Collect => self.collect(opened).await,
            Work::Read => self.read(opened).await,
            Work::MoveHorizon => self.move_horizon(opened).await,
            Work::Lease(lsn) => self.lease(opened, lsn).await,
            Work::Branch(branch, lsn) => self.branch(opened, branch, lsn).await,
            Work::Touch(branch) => self.touch(opened, branch).await,
            Work::Bury(branch) => self.bury(opened, branch).await,
            Work::Clean => self.claim.clean_older().await.map(|_| Said::Nothing).map_err(Trouble::from),
            Work::Idle => self.validate_unless(Broken::SlotUnlisted).await.map(|()| Said::Nothing),
        }
    }

    /// No newer owner was there when the call began.
    async fn validate(&self) -> Result<(), Trouble> {
        if self.broken == Broken::NoValidation {
            return Ok(());
        }
        Ok(self.claim.validate().await?)
    }

    /// The same, unless just this one is left out.
    async fn validate_unless(&self, broken: Broken) -> Result<(), Trouble> {
        if self.broken == broken { Ok(()) } else { self.validate().await }
    }

    // Opening.

    /// Opens all timelines, with nothing but the bucket.
    pub async fn open(&self) -> Result<Opened, Trouble> {
        let store = IndexStore::new(&self.claim);
        let (mut found, mut going) = (BTreeMap::new(), BTreeMap::new());
        for timeline in store.timelines().await? {
            let index = match store.find(timeline).await {
                Ok(Some(index)) => index,
                // Deleted in between.
                Ok(None) | Err(LoadIndexError::Buried(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let is_going = index.index.deleted_at.is_some();
            let index = Arc::new(IndexKeeper::new(self.claim.clone(), timeline, index));
            if is_going {
                going.insert(timeline, index)
            } else {
                found.insert(timeline, index)
            };
        }
        let mut main = match found.remove(&MAIN) {
            Some(index) => self.open_main(index).await?,
            None => self.import().await?,
        };
        // What goes on in its place, and in that one's.
        while let Some(archived) = archived(&main.index).await {
            let successor = archived.successor.unwrap_or_else(|| self.new_timeline());
            main = match found.remove(&successor) {
                Some(index) => self.open_main(index).await?,
                None => self.go_on_in(&main, successor, archived.at.expect("it says where")).await?,
            };
        }
        let mut branches = BTreeMap::new();
        for (timeline, index) in found {
            self.open_branch(&index).await?;
            let begin = index.ancestor().await.map_or(BASE, |(_, begin)| begin);
            branches.insert(timeline, (index, begin));
        }
        Ok(Opened { main, branches, going })
    }

    /// The source's base.
    async fn import(&self) -> Result<Main, Trouble> {
        let (tenant, timeline) = (self.shard(), MAIN);
        if deletion::is_buried(&self.bucket, tenant, timeline).await? {
            return Err(Trouble::Refused);
        }
        let name = LayerName::Image { keys: Key::ALL, lsn: BASE };
        // Each try finds the same base.
        let metadata = self.put_layer(timeline, &name, 1).await?;
        let mut part = index(BASE, None, vec![TliStart { tli: Tli(1), from: BASE }]);
        part.layer_metadata.insert(name, metadata);
        let index = IndexKeeper::create(self.claim.clone(), timeline, part).await?;
        self.validate().await?;
        self.open_main(Arc::new(index)).await
    }

    async fn open_main(&self, index: Arc<IndexKeeper>) -> Result<Main, Trouble> {
        let facts = index.facts().await?;
        let (id, branched_at) = (index.timeline(), facts.facts.branched_at);
        let covered = facts.disk_consistent_lsn;
        let listed = list_wal(&self.bucket, self.shard(), id).await?;
        let history = facts.wal;
        let run = match contiguous_run(&history, listed, covered) {
            Ok(run) => run,
            Err(WalRunError::Missing(object)) => {
                return Err(self.gone(&wal_path(self.shard(), id, &object)).await);
            }
            Err(error) => return Err(Trouble::Violation(error.to_string())),
        };
        if self.broken != Broken::NoOwnIndex {
            index.inherit(&run).await?;
            self.validate().await?;
        }
        for object in &run {
            self.look_at(&wal_path(self.shard(), id, object), None).await?;
        }
        let stored = run.iter().fold(covered, |reached, object| {
            object.end.min(line_at(&history.switches, reached).1.unwrap_or(Lsn::MAX))
        });
        let horizon = index.part().await.metadata().latest_gc_cutoff_lsn;
        Ok(Main {
            id,
            branched_at,
            index,
            covered,
            horizon,
            wal: run,
            stored,
            received: stored,
            lines: history.switches,
        })
    }

    async fn open_branch(&self, index: &IndexKeeper) -> Result<(), Trouble> {
        if self.broken != Broken::NoOwnIndex {
            index.inherit(&[]).await?;
            self.validate().await?;
        }
        Ok(())
    }

    /// Finds an object that an index names, as big as it says.
    async fn look_at(&self, path: &str, size: Option<u64>) -> Result<(), Trouble> {
        match self.bucket.head(path).await {
            Ok(found) if size.is_some_and(|size| size != found.size) => {
                Err(Trouble::Violation(format!("{path} does not have the bytes that its index was told of")))
            }
            Ok(_) => Ok(()),
            Err(BucketError::NotFound(_)) => Err(self.gone(path).await),
            Err(error) => Err(error.into()),
        }
    }

    /// Why an object is not there: a newer owner may have deleted it.
    async fn gone(&self, path: &str) -> Trouble {
        if self.broken == Broken::MissingBelieved {
            return Trouble::Violation(format!("{path} is believed to be lost"));
        }
        match self.claim.validate().await {
            Ok(()) => Trouble::Violation(format!("{path} is gone, and nobody claimed since")),
            Err(error) => error.into(),
        }
    }

    // The source.

    /// Finds out whether the slot may be taken, and notes how the source went on since.
    async fn connect(&self, opened: &mut Opened, source: &Connection) -> Outcome {
        self.validate_unless(Broken::SlotUnlisted).await?;
        let main = &mut opened.main;
        let part = main.index.part().await;
        let mut known = part.palimpsest.clone().expect("every index here has our part");
        let nonces_count = self.broken != Broken::NonceIgnored;
        if !nonces_count {
            known.restores.clear();
        }
        let history = if nonces_count { source.history.clone() } else { plain(&source.lines) };
        let have = Ours {
            index: &known,
            last: main.received,
            received: main.received,
            branched_at: main.branched_at,
        };
        match lineage::course(have, Theirs { history: &history, flushed: source.flushed }) {
            Ok(Course::Follow) => {}
            Ok(Course::Part { at }) if source.may_lack => return self.part(opened, at).await,
            Err(_) if source.impostor => return Err(Trouble::Refused),
            diverged => {
                self.claim.validate().await?;
                return Err(Trouble::Violation(format!(
                    "the owner has {}, and its source went on without that: {diverged:?}",
                    main.received
                )));
            }
        }
        let starts = source.lines.iter().map(|(tli, from)| TliStart { tli: *tli, from: *from });
        let new: Vec<TliStart> = starts.filter(|start| !known.tli_history.contains(start)).collect();
        if !new.is_empty() && self.broken != Broken::SwitchNotNoted {
            let note = |part: &mut IndexPart| {
                for restore in &mut ours(part).restores {
                    let nonce = lineage::restore_nonce(&history, restore.tli);
                    restore.followed |= nonce == Some(restore.nonce.as_str());
                }
                ours(part).tli_history.extend(new);
            };
            main.index.update(note).await?;
            self.validate().await?;
        }
        main.lines.clone_from(&source.lines);
        Ok(Said::MayConnect { impostor: source.impostor })
    }

    /// The source left what this owner has: that is kept as it is, and another timeline goes on from there.
    async fn part(&self, opened: &mut Opened, at: Lsn) -> Outcome {
        let main = &mut opened.main;
        if archived(&main.index).await.is_none() {
            // No source has this WAL any more.
            self.put_wal(main, main.received).await?;
            let successor = (self.broken != Broken::SuccessorUnrecorded).then(|| self.new_timeline());
            let reason = "the source went on without it".into();
            let archived = Archived {
                reason,
                on_request: false,
                slot_dropped: false,
                successor,
                at: Some(at),
                unknown: Unknown::new(),
            };
            main.index.update(|part| ours(part).archived = Some(archived)).await?;
        }
        self.validate().await?;
        let archived = archived(&main.index).await.ok_or(Trouble::Refused)?;
        let successor = archived.successor.unwrap_or_else(|| self.new_timeline());
        let at = archived.at.expect("it says where");
        opened.main = self.go_on_in(main, successor, at).await?;
        Ok(Said::Parted(at))
    }

    /// Makes what goes on in place of an archived timeline.
    async fn go_on_in(&self, older: &Main, successor: TimelineId, at: Lsn) -> Result<Main, Trouble> {
        let starts = older.lines.iter().filter(|(_, from)| *from <= at);
        let starts = starts.map(|(tli, from)| TliStart { tli: *tli, from: *from }).collect();
        let part = index(at, Some(older.id), starts);
        let index = match IndexKeeper::create(self.claim.clone(), successor, part).await {
            // It was begun before, and got further than anybody was told.
            Err(PutIndexError::Stopped { .. }) => {
                let found = IndexStore::new(&self.claim).find(successor).await?.ok_or(Trouble::Refused)?;
                IndexKeeper::new(self.claim.clone(), successor, found)
            }
            made => made?,
        };
        self.validate().await?;
        self.open_main(Arc::new(index)).await
    }

    fn new_timeline(&self) -> TimelineId {
        let mut id = [8; 16];
        id[..8].copy_from_slice(&self.drawn.to_be_bytes());
        TimelineId(id)
    }

    /// Remembers two restores of the end, of which nobody knows which will be followed.
    async fn restore(&self, opened: &mut Opened) -> Outcome {
        let main = &mut opened.main;
        if main.stored < main.received {
            return Err(Trouble::Refused);
        }
        let (lsn, tli) = (main.stored, Tli(main.lines.last().expect("there is a first").0.0 + 1));
        let restores =
            ["first", "another"].map(|nonce| Restore { nonce: nonce.into(), lsn, tli, followed: false });
        main.index.update(|part| ours(part).restores.extend(restores)).await?;
        self.validate().await?;
        Ok(Said::Restored("first".into(), tli, lsn))
    }

    /// Puts what was received up to here into the bucket, and says so once that is validated.
    async fn store_wal(&self, opened: &mut Opened, through: Lsn) -> Outcome {
        if self.broken == Broken::MemoryReported {
            self.validate().await?;
            return Ok(Said::Reported(opened.main.received));
        }
        if self.broken == Broken::ValidationBeforePut {
            self.validate().await?;
        }
        self.put_wal(&mut opened.main, through).await?;
        self.validate_unless(Broken::ValidationBeforePut).await?;
        Ok(Said::Reported(opened.main.stored))
    }

    async fn put_wal(&self, main: &mut Main, through: Lsn) -> Result<(), Trouble> {
        while main.stored < through {
            let (tli, line_end) = line_at(&main.lines, main.stored);
            let end = through.min(line_end.unwrap_or(Lsn::MAX));
            let object = StoredWal { tli, start: main.stored, end, generation: self.generation(), size: 1 };
            let path = wal_path(self.shard(), main.id, &object);
            match self.bucket.put(&path, body(1), PutIf::Absent).await {
                // What is there under this name is of this owner, and has the same bytes.
                Ok(_) | Err(BucketError::Precondition(_)) => {}
                Err(error) => return Err(error.into()),
            }
            main.stored = end;
            main.wal.push(object);
        }
        Ok(())
    }

    /// Makes a layer of what was received; the WAL below is not needed any more.
    async fn flush(&self, opened: &mut Opened) -> Outcome {
        let main = &mut opened.main;
        let last = main.received;
        let name = LayerName::Delta { keys: Key::ALL, lsns: main.covered..last };
        let metadata = self.put_layer(main.id, &name, self.other_bytes()).await?;
        main.index
            .update(|part| {
                part.layer_metadata.insert(name, metadata);
                part.update_metadata(|metadata| metadata.disk_consistent_lsn = last);
                ours(part).wal_objects.retain(|object| object.end > last);
            })
            .await?;
        main.covered = last;
        self.validate_unless(Broken::WalDeletedUnvalidated).await?;
        let (below, above) = main.wal.drain(..).partition(|object| object.end <= last);
        main.wal = above;
        let below: Vec<StoredWal> = below;
        delete_wal(&self.bucket, self.shard(), main.id, &below).await;
        Ok(Said::Deleted(below.iter().map(|object| wal_path(self.shard(), main.id, object)).collect()))
    }

    // Layers.

    /// How many bytes a layer has that has other ones in each try.
    fn other_bytes(&self) -> u64 {
        1 + self.drawn % 509
    }

    async fn put_layer(
        &self,
        timeline: TimelineId,
        name: &LayerName,
        file_size: u64,
    ) -> Result<LayerMetadata, Trouble> {
        let path = self.layer_path(timeline, name, Some(self.generation()));
        match self.bucket.put(&path, body(file_size), PutIf::Absent).await {
            Ok(_) => {}
            // An earlier try got there. Only if it had the same bytes it is this layer.
            Err(BucketError::Precondition(_)) => {
                if self.bucket.head(&path).await?.size != file_size {
                    return Err(Trouble::Refused);
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(LayerMetadata {
            file_size,
            generation: Some(self.generation()),
            shard: self.shard().shard,
            palimpsest: None,
            unknown: Unknown::new(),
        })
    }

    fn layer_path(&self, timeline: TimelineId, layer: &LayerName, generation: Option<Generation>) -> String {
        let name = LayerObjectName { layer: layer.clone(), generation };
        ObjectPath::Layer { tenant: self.shard(), timeline, name }.to_string()
    }

    /// Makes one layer of all, and deletes those.
    async fn compact(&self, opened: &mut Opened) -> Outcome {
        let main = &opened.main;
        let before = main.index.part().await.layer_metadata.clone();
        if before.len() < 2 {
            return Ok(Said::Nothing);
        }
        let name = LayerName::Image { keys: Key::ALL, lsn: main.covered };
        let metadata = self.put_layer(main.id, &name, self.other_bytes()).await?;
        main.index
            .update(|part| {
                part.layer_metadata.clear();
                part.layer_metadata.insert(name, metadata);
            })
            .await?;
        self.validate_unless(Broken::DeletesUnvalidated).await?;
        let path =
            |(name, metadata): (&_, &LayerMetadata)| self.layer_path(main.id, name, metadata.generation);
        let old = before.iter().map(path).collect();
        self.delete(old).await
    }

    /// Deletes what earlier owners left and this owner's index, and so every later one, does not name.
    async fn collect(&self, opened: &mut Opened) -> Outcome {
        self.validate_unless(Broken::DeletesUnvalidated).await?;
        let (id, part) = (opened.main.id, opened.main.index.part().await);
        let mut named: Vec<String> = part
            .layer_metadata
            .iter()
            .map(|(name, metadata)| self.layer_path(id, name, metadata.generation))
            .collect();
        named.extend(opened.main.wal.iter().map(|object| wal_path(self.shard(), id, object)));
        let prefix = timeline_prefix(self.shard(), id);
        let listed = self.bucket.list(ListRequest { prefix: &prefix, ..ListRequest::default() }).await?;
        let mut found: Vec<String> = listed.objects.into_iter().map(|object| object.path).collect();
        let wal = list_wal(&self.bucket, self.shard(), id).await?;
        found.extend(wal.iter().map(|object| wal_path(self.shard(), id, object)));
        let (any, all) = (self.broken == Broken::CollectsAnyGeneration, self.broken == Broken::CollectsNamed);
        found.retain(|path| all || !named.contains(path));
        found.retain(|path| writer(path).is_some_and(|writer| any || writer < self.generation()));
        self.delete(found).await
    }

    async fn delete(&self, paths: Vec<String>) -> Outcome {
        if paths.is_empty() {
            return Ok(Said::Nothing);
        }
        self.bucket.delete(&paths).await?;
        Ok(Said::Deleted(paths))
    }

    /// Reads: finds a layer that the index names.
    async fn read(&self, opened: &mut Opened) -> Outcome {
        let layers = opened.main.index.part().await.layer_metadata.clone();
        let which = self.drawn as usize % layers.len().max(1);
        if let Some((name, metadata)) = layers.iter().nth(which) {
            self.look_at(
                &self.layer_path(opened.main.id, name, metadata.generation),
                Some(metadata.file_size),
            )
            .await?;
        }
        Ok(Said::Nothing)
    }

    /// Lets go of history below everything that was promised.
    async fn move_horizon(&self, opened: &mut Opened) -> Outcome {
        let branches = opened.branches.values().map(|(_, begin)| *begin).min().unwrap_or(Lsn::MAX);
        let main = &mut opened.main;
        let wanted = main.covered.min(branches);
        let mut horizon = wanted;
        let put = main
            .index
            .update(|part| {
                let leased = ours(part).leases.iter().map(|lease| lease.lsn).min().unwrap_or(Lsn::MAX);
                horizon = wanted.min(leased);
                part.update_metadata(|metadata| metadata.latest_gc_cutoff_lsn = horizon);
            })
            .await;
        // Also when the answer was lost: it may be what the next owner reads.
        main.horizon = main.horizon.max(horizon);
        put?;
        self.validate().await?;
        Ok(Said::Collected)
    }

    // Promises.

    /// Keeps an LSN readable in place of the one before.
    async fn lease(&self, opened: &mut Opened, lsn: Lsn) -> Outcome {
        if lsn < opened.main.horizon {
            return Err(Trouble::Refused);
        }
        let valid_until = UtcTime::from_system_time(SystemTime::UNIX_EPOCH + FOR_GOOD);
        opened.main.index.update(|part| ours(part).leases = vec![Lease { lsn, valid_until }]).await?;
        self.validate_unless(Broken::LeaseUnvalidated).await?;
        Ok(Said::Leased(lsn))
    }

    /// Makes a branch.
    async fn branch(&self, opened: &mut Opened, new: TimelineId, lsn: Lsn) -> Outcome {
        if let Some((_, begin)) = opened.branches.get(&new) {
            let begin = *begin;
            if begin < opened.main.horizon {
                return Err(Trouble::Refused);
            }
            self.validate_unless(Broken::BranchUnvalidated).await?;
            return Ok(Said::Branched(new, begin));
        }
        if opened.going.contains_key(&new) {
            return Err(Trouble::Refused);
        }
        let is_buried = deletion::is_buried(&self.bucket, self.shard(), new).await?;
        if (is_buried && self.broken != Broken::TombstoneIgnored) || lsn < opened.main.horizon {
            return Err(Trouble::Refused);
        }
        if lsn > opened.main.covered && self.broken != Broken::BranchBeforeWal {
            let received = opened.main.received;
            self.put_wal(&mut opened.main, received).await?;
            self.validate().await?;
        }
        let part = index(lsn, Some(MAIN), Vec::new());
        let index = IndexKeeper::create(self.claim.clone(), new, part).await?;
        opened.branches.insert(new, (Arc::new(index), lsn));
        self.validate_unless(Broken::BranchUnvalidated).await?;
        Ok(Said::Branched(new, lsn))
    }

    /// Changes a branch a little.
    async fn touch(&self, opened: &mut Opened, which: TimelineId) -> Outcome {
        let Some((index, _)) = opened.branches.get(&which) else { return Err(Trouble::Refused) };
        index.update(|_| {}).await?;
        self.validate().await?;
        Ok(Said::Nothing)
    }

    /// Says in its index that a branch is to be deleted. From then on, whatever the bucket answers, nothing is said of it.
    async fn mark_deleted(&self, opened: &mut Opened, which: TimelineId) -> Result<(), Trouble> {
        if self.broken == Broken::DeletionUnmarked {
            return Ok(());
        }
        if let Some((index, _)) = opened.branches.remove(&which) {
            opened.going.insert(which, index);
        }
        match opened.going.get(&which) {
            Some(index) => Ok(index.mark_deleted().await?),
            // There is none; perhaps some of one is left.
            None if deletion::is_buried(&self.bucket, self.shard(), which).await? => Ok(()),
            None => Err(Trouble::Refused),
        }
    }

    /// Deletes a branch for good.
    async fn bury(&self, opened: &mut Opened, which: TimelineId) -> Outcome {
        if self.broken == Broken::NoTombstone {
            self.validate().await?;
            let prefix = index_prefix(self.shard(), which);
            let listed = self.bucket.list(ListRequest { prefix: &prefix, ..ListRequest::default() }).await?;
            self.delete(listed.objects.into_iter().map(|object| object.path).collect()).await?;
        } else {
            self.mark_deleted(opened, which).await?;
            deletion::delete_timeline_data(&self.claim, which).await?;
        }
        opened.branches.remove(&which);
        opened.going.remove(&which);
        Ok(Said::Buried(which))
    }
}

/// How a timeline was archived, if it was.
async fn archived(index: &IndexKeeper) -> Option<Archived> {
    index.part().await.palimpsest.as_ref().and_then(|ours| ours.archived.clone())
}

/// A history without a word of why.
fn plain(lines: &[(Tli, Lsn)]) -> TimelineHistory {
    let (first, later) = lines.split_first().expect("there is a first");
    later.iter().fold(TimelineHistory::first(first.0), |history, (tli, from)| {
        history.branch(*tli, *from, "promoted").expect("each begins where the one before was left")
    })
}

/// A timeline's first index.
fn index(begin: Lsn, ancestor: Option<TimelineId>, tli_history: Vec<TliStart>) -> IndexPart {
    let metadata = TimelineMetadata {
        disk_consistent_lsn: begin,
        prev_record_lsn: None,
        ancestor_timeline: ancestor,
        ancestor_lsn: if ancestor.is_some() { begin } else { Lsn(0) },
        latest_gc_cutoff_lsn: BASE,
        initdb_lsn: BASE,
        pg_version: PgMajor::V17,
        unknown: Unknown::new(),
    };
    let segment = WalSegmentSize::new(16 << 20).expect("a size that Postgres has");
    let mut ours = vanilla_extension(1, segment, false, Tli(1), BASE);
    ours.readable_from = BASE;
    ours.tli_history = tli_history;
    IndexPart::new(metadata, Some(ours))
}

fn ours(part: &mut IndexPart) -> &mut codec::index_part::Extension {
    part.palimpsest.as_mut().expect("every index here has our part")
}

fn body(size: u64) -> Body {
    Body::Bytes(vec![b'x'; size as usize].into())
}

/// Who wrote a layer or WAL; an index is neither.
fn writer(path: &str) -> Option<Generation> {
    match path.parse().ok()? {
        ObjectPath::Layer { name, .. } => name.generation,
        ObjectPath::Wal { generation, .. } => Some(generation),
        _ => None,
    }
}
