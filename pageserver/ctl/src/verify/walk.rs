//! The history of every key, over all layers of a timeline.
//!
//! Layers are read side by side in order of keys, each from when the walk reaches its first key, so that memory is that of layers which overlap. Of each key
//! all versions are seen at once: whether they go back to a whole value, whether what two layers both have is the same, and whether image layers have
//! all that exists. Whether a page exists that an image lacks, its relation's size tells, which comes after it: until then it is only suspected.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use codec::directory::{DbDirectory, RelDirectory, SlruSegmentDirectory, TwoPhaseDirectory};
use codec::index_part::{IndexPart, RelSizeMigration};
use codec::value::Value;
use engine::error_story::error_story;
use engine::layer_map::MapLayer as _;
use engine::layer_read::Layer;
use engine::layer_scan::{LayerScan, Stored, StoredValue};
use engine::read::Snapshot;
use model::key::KeyKind;
use model::{Key, KeyRange, LayerName, Lsn, PgMajor, RelTag, SlruKind};

use super::values::is_rel_directory;
use super::{Rule, Totals, Violations};

/// Suspicions that are kept until a size is known. More of one relation are the same trouble over and over.
const SUSPECTED: usize = 10_000;

/// Reads layers side by side, key by key.
struct Walk {
    range: KeyRange,
    /// By start key.
    waiting: VecDeque<Arc<Layer>>,
    open: Vec<Option<LayerScan>>,
    names: Vec<LayerName>,
    heads: BinaryHeap<Reverse<(Key, Lsn, usize)>>,
    values: Vec<Option<Stored>>,
}

/// Everything that layers say of one key.
struct KeyHistory {
    key: Key,
    /// What each has of it, by LSN; whole values of image layers after the changes of the same LSN.
    versions: Vec<(LayerName, Stored)>,
    /// Image layers that cover it and lack it.
    lacking: Vec<LayerName>,
}

impl Walk {
    fn new(snapshot: &Snapshot, range: KeyRange) -> Walk {
        let mut layers: Vec<Arc<Layer>> = snapshot
            .layers
            .all()
            .filter(|layer| layer.name().keys().start < range.end && range.start < layer.name().keys().end)
            .cloned()
            .collect();
        layers.sort_by_key(|layer| layer.name().keys().start);
        Walk {
            range,
            waiting: layers.into(),
            open: Vec::new(),
            names: Vec::new(),
            heads: BinaryHeap::new(),
            values: Vec::new(),
        }
    }

    async fn advance(&mut self, at: usize) -> Result<()> {
        let Some(scan) = &mut self.open[at] else { return Ok(()) };
        let next = scan.next().await.with_context(|| format!("cannot read layer {}", self.names[at]))?;
        match &next {
            Some(stored) => self.heads.push(Reverse((stored.key, stored.lsn, at))),
            None => self.open[at] = None,
        }
        self.values[at] = next;
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<KeyHistory>> {
        loop {
            let reached = self.heads.peek().map(|Reverse((key, ..))| *key);
            let starts = self.waiting.front().map(|layer| layer.name().keys().start);
            let is_reached = |starts| reached.is_none_or(|reached| starts <= reached);
            if starts.is_none_or(|starts| !is_reached(starts)) {
                break;
            }
            let Some(layer) = self.waiting.pop_front() else { break };
            self.names.push(layer.name().clone());
            self.open.push(Some(LayerScan::open(layer, &self.range).await?));
            self.values.push(None);
            self.advance(self.names.len() - 1).await?;
        }
        let Some(Reverse((key, ..))) = self.heads.peek().copied() else { return Ok(None) };
        let mut versions = Vec::new();
        let mut having = BTreeSet::new();
        while let Some(Reverse((next, _, at))) = self.heads.peek().copied()
            && next == key
        {
            self.heads.pop();
            versions.extend(self.values[at].take().map(|stored| (self.names[at].clone(), stored)));
            having.insert(at);
            self.advance(at).await?;
        }
        versions.sort_by_key(|(_, stored)| (stored.lsn, matches!(stored.value, StoredValue::Image(_))));
        let lacks = |(at, name): &(usize, &LayerName)| {
            !having.contains(at) && !name.is_delta() && name.keys().contains(&key)
        };
        let lacking = self.names.iter().enumerate().filter(lacks).map(|(_, name)| name.clone()).collect();
        Ok(Some(KeyHistory { key, versions, lacking }))
    }
}

/// Whole values of one key, by LSN.
type Wholes = Vec<(Lsn, Bytes)>;

fn at(wholes: &Wholes, lsn: Lsn) -> Option<&Bytes> {
    wholes[..wholes.partition_point(|(from, _)| *from <= lsn)].last().map(|(_, value)| value)
}

fn whole_of(stored: &Stored) -> Option<Bytes> {
    match &stored.value {
        StoredValue::Image(bytes) => Some(bytes.clone()),
        StoredValue::Encoded(bytes) => match Value::decode(bytes) {
            Ok(Value::Image(whole)) => Some(Bytes::copy_from_slice(whole)),
            _ => None,
        },
    }
}

fn wholes(history: &KeyHistory) -> Wholes {
    history.versions.iter().filter_map(|(_, stored)| Some((stored.lsn, whole_of(stored)?))).collect()
}

/// What of a cluster's lists is needed to tell what exists.
struct Lists {
    pg: PgMajor,
    databases: Wholes,
    two_phase: Wholes,
    /// By number of SLRU.
    segments: BTreeMap<u8, Wholes>,
    /// The list of the database that the walk is in.
    relations: Option<((u32, u32), Wholes)>,
    /// Whether each relation exists, where each has a key of its own.
    entries: BTreeMap<Key, Wholes>,
    is_migrated: bool,
}

impl Lists {
    fn has_database(&self, spc: u32, db: u32, lsn: Lsn) -> bool {
        let listed = at(&self.databases, lsn).and_then(|value| DbDirectory::decode(value).ok());
        listed.is_some_and(|listed| listed.databases.contains_key(&(spc, db)))
    }

    fn has_relation(&self, rel: RelTag, lsn: Lsn) -> bool {
        if self.is_migrated {
            let entry = self.entries.get(&Key::rel_directory_entry(rel)).and_then(|entry| at(entry, lsn));
            return entry.is_some_and(|entry| !entry.is_empty());
        }
        match &self.relations {
            Some((database, relations)) if *database == (rel.spc, rel.db) => at(relations, lsn)
                .and_then(|value| RelDirectory::decode(value).ok())
                .is_some_and(|listed| listed.relations.contains(&(rel.rel, rel.fork))),
            _ => false,
        }
    }

    fn has_segment(&self, slru: SlruKind, segment: u32, lsn: Lsn) -> bool {
        let listed = self.segments.get(&(slru as u8)).and_then(|list| at(list, lsn));
        let listed = listed.and_then(|value| SlruSegmentDirectory::decode(value).ok());
        listed.is_some_and(|listed| listed.segments.contains(&segment))
    }

    fn has_prepared(&self, xid: u64, lsn: Lsn) -> bool {
        let listed =
            at(&self.two_phase, lsn).and_then(|value| TwoPhaseDirectory::decode(value, self.pg).ok());
        listed.is_some_and(|listed| listed.xids.contains(&xid))
    }

    fn learn(&mut self, history: &KeyHistory) {
        match history.key.kind() {
            Some(KeyKind::DbDirectory) => self.databases = wholes(history),
            Some(KeyKind::TwoPhaseDirectory) => self.two_phase = wholes(history),
            Some(KeyKind::SlruDirectory(slru)) => drop(self.segments.insert(slru as u8, wholes(history))),
            None if is_rel_directory(history.key) => {
                self.relations = Some(((history.key.field2, history.key.field3), wholes(history)));
            }
            _ => {}
        }
    }
}

/// A page that an image layer lacks, though there was a version before.
struct Suspicion {
    key: Key,
    number: u32,
    layer: LayerName,
}

/// Checks every key.
pub async fn check(
    snapshot: &Snapshot,
    index: &IndexPart,
    totals: &mut Totals,
    violations: &mut Violations,
) -> Result<()> {
    match walk(snapshot, index, totals, violations).await {
        Ok(()) => Ok(()),
        Err(error) => {
            violations.add(Rule::Readable, None, None, None, format!("{error:#}"));
            Ok(())
        }
    }
}

async fn walk(
    snapshot: &Snapshot,
    index: &IndexPart,
    totals: &mut Totals,
    violations: &mut Violations,
) -> Result<()> {
    let mut lists = Lists {
        pg: index.metadata().pg_version,
        databases: Vec::new(),
        two_phase: Vec::new(),
        segments: BTreeMap::new(),
        relations: None,
        entries: BTreeMap::new(),
        is_migrated: index.rel_size_migration == Some(RelSizeMigration::Migrated),
    };
    let mut entries = Walk::new(snapshot, Key::rel_directory_all());
    while let Some(history) = entries.next().await? {
        lists.entries.insert(history.key, wholes(&history));
    }
    let mut seen: BTreeSet<Key> = BTreeSet::new();
    let mut suspected: Vec<Suspicion> = Vec::new();
    let mut walk = Walk::new(snapshot, Key::ALL);
    while let Some(history) = walk.next().await? {
        totals.keys += 1;
        totals.versions += history.versions.len() as u64;
        if is_of_every_cluster(history.key) {
            seen.insert(history.key);
        }
        lists.learn(&history);
        if suspected.first().is_some_and(|first| size_key(first.key) < Some(history.key)) {
            // Their size has no key at all, so nothing says that they exist.
            suspected.clear();
        }
        check_contents(&history, violations);
        let lacking = check_history(snapshot, &history, violations).await?;
        for layer in lacking {
            judge(&lists, history.key, layer, &mut suspected, violations);
        }
        if suspected.first().is_some_and(|first| size_key(first.key) == Some(history.key)) {
            let sizes = wholes(&history);
            for Suspicion { key, number, layer } in suspected.drain(..) {
                let lsn = layer.lsns().start;
                let size =
                    at(&sizes, lsn).and_then(|size| Some(u32::from_le_bytes(size[..].try_into().ok()?)));
                if size.is_some_and(|size| number < size) {
                    lacks(&layer, key, violations);
                }
            }
        }
    }
    if snapshot.ancestor.is_none() {
        for key in every_cluster() {
            if !seen.contains(&key) {
                violations.add(Rule::Cluster, None, Some(key), None, "no layer has it");
            }
        }
        let end = index.disk_consistent_lsn();
        let listed =
            at(&lists.databases, end).and_then(|value| DbDirectory::decode(value).ok()).unwrap_or_default();
        for ((spc, db), _) in listed.databases.iter().filter(|(_, has_map)| **has_map) {
            let key = Key::relation_map(*spc, *db);
            match snapshot.get(key, end).await {
                Ok(Some(_)) => {}
                Ok(None) => violations.add(
                    Rule::Cluster,
                    None,
                    Some(key),
                    Some(end),
                    "the list of databases has it, no layer does",
                ),
                Err(error) => violations.add(Rule::Readable, None, Some(key), Some(end), error_story(&error)),
            }
        }
    }
    Ok(())
}

fn every_cluster() -> [Key; 7] {
    [
        Key::DB_DIRECTORY,
        Key::slru_directory(SlruKind::Clog),
        Key::slru_directory(SlruKind::MultiXactMembers),
        Key::slru_directory(SlruKind::MultiXactOffsets),
        Key::TWO_PHASE_DIRECTORY,
        Key::CONTROL_FILE,
        Key::CHECKPOINT,
    ]
}

fn is_of_every_cluster(key: Key) -> bool {
    every_cluster().contains(&key)
}

/// The key that tells whether a page exists.
fn size_key(key: Key) -> Option<Key> {
    match key.kind() {
        Some(KeyKind::RelBlock { rel, .. }) => Some(Key::rel_size(rel)),
        Some(KeyKind::SlruPage { slru, segment, .. }) => Some(Key::slru_size(slru, segment)),
        _ => None,
    }
}

/// Whatever two layers both have is the same.
fn check_contents(history: &KeyHistory, violations: &mut Violations) {
    for pair in history.versions.windows(2) {
        let [(_, a), (layer, b)] = pair else { continue };
        let both_changes = matches!((&a.value, &b.value), (StoredValue::Encoded(_), StoredValue::Encoded(_)));
        if a.lsn == b.lsn && both_changes && a.value != b.value {
            let what = "another layer has another version of this key and LSN";
            violations.add(Rule::OneContent, Some(layer), Some(history.key), Some(b.lsn), what);
        }
    }
}

/// Whether each version has what it builds upon. Answers image layers that lack the key though it had a value.
async fn check_history(
    snapshot: &Snapshot,
    history: &KeyHistory,
    violations: &mut Violations,
) -> Result<Vec<LayerName>> {
    let key = history.key;
    let ancestor = snapshot.ancestor.as_ref().filter(|_| key.is_inherited());
    // Nothing is asked of the ancestor before it is needed.
    let mut inherited: Option<bool> = ancestor.is_none().then_some(false);
    let mut exists: Option<bool> = inherited;
    let mut lacking: Vec<&LayerName> = history.lacking.iter().collect();
    lacking.sort_by_key(|name| name.lsns().start);
    let mut lacking = lacking.into_iter().peekable();
    let mut had = Vec::new();
    for (layer, stored) in &history.versions {
        while let Some(without) = lacking.next_if(|name| name.lsns().start < stored.lsn) {
            had.extend((exists == Some(true)).then(|| without.clone()));
            // What an image layer lacks does not exist for those who read down to it.
            exists = Some(false);
        }
        if stored.will_init {
            // An empty value is none, where a key may have one.
            exists = Some(whole_of(stored).is_none_or(|whole| !whole.is_empty()));
            continue;
        }
        if exists.is_none() {
            if inherited.is_none()
                && let Some(ancestor) = ancestor
            {
                let value = ancestor.view.load_full().get(key, ancestor.lsn).await?;
                inherited = Some(value.is_some_and(|value| !value.is_empty()));
            }
            exists = inherited;
        }
        if exists != Some(true) {
            let what = "nothing that it builds upon is there: no image, no version that needs none, nothing in an ancestor";
            violations.add(Rule::History, Some(layer), Some(key), Some(stored.lsn), what);
            exists = Some(true); // once is enough
        }
    }
    if exists == Some(true) {
        had.extend(lacking.cloned());
    }
    Ok(had)
}

/// Whether what an image layer lacks had to be in it.
fn judge(
    lists: &Lists,
    key: Key,
    layer: LayerName,
    suspected: &mut Vec<Suspicion>,
    violations: &mut Violations,
) {
    let lsn = layer.lsns().start;
    let exists = match key.kind() {
        Some(KeyKind::RelBlock { rel, block }) => {
            if lists.has_relation(rel, lsn) && suspected.len() < SUSPECTED {
                suspected.push(Suspicion { key, number: block, layer });
            }
            return;
        }
        Some(KeyKind::SlruPage { slru, segment, page }) => {
            if lists.has_segment(slru, segment, lsn) && suspected.len() < SUSPECTED {
                suspected.push(Suspicion { key, number: page, layer });
            }
            return;
        }
        Some(KeyKind::RelSize(rel)) => lists.has_relation(rel, lsn),
        Some(KeyKind::SlruSize { slru, segment }) => lists.has_segment(slru, segment, lsn),
        Some(KeyKind::RelationMap { spc, db }) => lists.has_database(spc, db, lsn),
        Some(KeyKind::TwoPhaseFile { xid }) => lists.has_prepared(xid, lsn),
        None if is_rel_directory(key) => lists.has_database(key.field2, key.field3, lsn),
        _ => true,
    };
    if exists {
        lacks(&layer, key, violations);
    }
}

fn lacks(layer: &LayerName, key: Key, violations: &mut Violations) {
    let what = "the key exists there, and the image layer that covers it lacks it";
    violations.add(Rule::CompleteImage, Some(layer), Some(key), Some(layer.lsns().start), what);
}
