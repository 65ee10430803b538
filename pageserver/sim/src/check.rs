//! Looking whether all is as it must be: what is read against the model, what was promised against what is there, the bucket against itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use codec::index_part::IndexPart;
use codec::page::ZERO_PAGE;
use engine::as_of::{AsOf as _, ReadError};
use engine::collect::KeepHistory;
use engine::object_path::ObjectPath;
use engine::ports::{Bucket as _, ListRequest};
use engine::stored_wal::{StoredWal, wal_path};
use engine::tenant::TimelineView;
use engine::time::LsnAt;
use engine::timeline::Timeline;
use model::key::KeyKind;
use model::{Generation, Key, Lsn, PgTimestamp, RelTag, SlruKind, TimelineId};

use crate::cluster::{DB, SPC, no_such_relation};
use crate::dice::Dice;
use crate::history::{History, PageThere};
use crate::ledger::{Ledger, Line, Sure, shard};
use crate::process::Process;
use crate::world::{World, now};

/// How a comparison ended.
enum Seen {
    Same,
    /// Nothing was answered, for a reason that may be.
    Unanswered,
}

/// Compares what a process answers with what it must.
pub struct Reader<'a> {
    /// Told of what differs.
    pub world: &'a World,
    /// Whose answers.
    pub process: &'a Process,
    /// Of which line.
    pub line: usize,
    /// As it was opened.
    pub timeline: &'a Timeline,
    /// What must be answered.
    pub history: &'a History,
    /// What was promised.
    pub ledger: &'a Ledger,
    /// How much history is kept.
    pub keep: Option<KeepHistory>,
    /// Nothing stands in the way of an answer.
    pub must_answer: bool,
}

impl Reader<'_> {
    fn wrong(&self, what: impl FnOnce() -> String) {
        self.world.violate(|| format!("p{} line {}: {}", self.process.id, self.line, what()));
    }

    /// Whether what the line was at `lsn` must be readable now.
    pub fn must_be_kept(&self, lsn: Lsn) -> bool {
        self.ledger.must_keep(self.line, lsn, self.keep, self.world.time())
    }

    /// Whether the engine says now that this can be read.
    fn is_kept(&self, lsn: Lsn) -> bool {
        self.timeline.check_kept(lsn).is_ok()
    }

    /// Something was read. That must not be where the engine had said before that it cannot be.
    fn answered(&self, what: &dyn std::fmt::Display, lsn: Lsn, was_kept: bool) {
        if !was_kept {
            self.wrong(|| format!("{what} at {lsn} was read, though history of then is not kept"));
        }
    }

    /// What to make of a read that failed.
    fn failed(&self, what: &dyn std::fmt::Display, lsn: Lsn, error: &ReadError) -> Seen {
        if let ReadError::BehindCutoff { asked, cutoff } = error {
            if self.must_be_kept(lsn) && self.process.is_alive() {
                self.wrong(|| {
                    format!("{what} at {lsn} is not kept, but must be: asked for {asked}, cutoff {cutoff}")
                });
            }
            return Seen::Unanswered;
        }
        let story = story(error);
        let generation = self.process.tenant().map_or(Generation(0), |tenant| tenant.claim().generation());
        // Objects that an index names are only deleted by newer owners, or with their timeline.
        let is_there = self.world.superseded_since(generation).is_none() && self.process.expects(self.line);
        let is_lost = story.contains("does not exist") && is_there;
        let is_wrong = matches!(error, ReadError::MissingKey { .. } | ReadError::Redo { .. }) || is_lost;
        if self.process.is_alive() && (is_wrong || (self.must_answer && is_there)) {
            self.wrong(|| format!("{what} at {lsn} cannot be read: {story}"));
        }
        Seen::Unanswered
    }

    async fn page(&self, rel: RelTag, block: u32, lsn: Lsn) -> Seen {
        let was_kept = self.is_kept(lsn);
        let answer = self.timeline.page(rel, block, lsn).await;
        if answer.is_ok() {
            self.answered(&format_args!("block {block} of {rel}"), lsn, was_kept);
        }
        let wanted = self.history.page(rel, block, lsn);
        let same = match (&answer, &wanted) {
            (Err(ReadError::MissingKey { .. }), PageThere::NoRelation) => return Seen::Same,
            (Err(error), _) => return self.failed(&format_args!("block {block} of {rel}"), lsn, error),
            (Ok(_), PageThere::NoRelation) => false,
            (Ok(page), PageThere::Zeros) => page[..] == ZERO_PAGE,
            (Ok(page), PageThere::Page(wanted)) => page[..] == wanted[..],
        };
        if !same {
            self.wrong(|| {
                let got = answer.map(|page| describe(&page)).unwrap_or_default();
                let wanted = match wanted {
                    PageThere::NoRelation => "no relation".into(),
                    PageThere::Zeros => "zeros".into(),
                    PageThere::Page(page) => describe(&page[..]),
                };
                format!("block {block} of {rel} at {lsn} is {got}, and must be {wanted}")
            });
        }
        Seen::Same
    }

    async fn size(&self, rel: RelTag, lsn: Lsn) -> Seen {
        let was_kept = self.is_kept(lsn);
        match self.timeline.rel_size(rel, lsn).await {
            Err(error) => self.failed(&format_args!("size of {rel}"), lsn, &error),
            Ok(size) => {
                self.answered(&format_args!("size of {rel}"), lsn, was_kept);
                let wanted = self.history.size(Key::rel_size(rel), lsn);
                if size != wanted {
                    self.wrong(|| format!("size of {rel} at {lsn} is {size:?}, and must be {wanted:?}"));
                }
                Seen::Same
            }
        }
    }

    async fn relations(&self, lsn: Lsn) -> Seen {
        let listed = self.timeline.at(lsn).scan(Key::rel_directory_range(SPC, DB)).await;
        let listed = match listed {
            Err(error) => return self.failed(&"list of relations", lsn, &error),
            Ok(listed) => listed,
        };
        let there = listed.iter().filter(|(_, value)| !value.is_empty());
        let there: BTreeSet<RelTag> = there
            .filter_map(|(key, _)| match key.kind() {
                Some(KeyKind::RelDirectoryEntry(rel)) => Some(rel),
                _ => None,
            })
            .collect();
        let wanted: BTreeSet<RelTag> = self.history.relations(lsn).into_keys().collect();
        if there != wanted {
            self.wrong(|| format!("relations at {lsn} are {there:?}, and must be {wanted:?}"));
        }
        Seen::Same
    }

    async fn transactions(&self, segment: u32, lsn: Lsn) -> Seen {
        match self.timeline.slru_segment(SlruKind::Clog, segment, lsn).await {
            Err(error) => self.failed(&"commit log", lsn, &error),
            Ok(pages) => {
                let wanted = self.history.slru_segment(SlruKind::Clog, segment, lsn);
                if pages.as_deref() != wanted.as_deref() {
                    let length = |bytes: Option<&[u8]>| bytes.map(<[u8]>::len);
                    let (got, wanted) = (length(pages.as_deref()), length(wanted.as_deref()));
                    self.wrong(|| {
                        format!("segment {segment} of the commit log at {lsn} ({got:?} bytes) differs ({wanted:?} bytes)")
                    });
                }
                Seen::Same
            }
        }
    }

    /// Reads some pages and sizes at some LSNs.
    pub async fn some(&self, count: u64, dice: &mut Dice) {
        let last = self.timeline.last_record_lsn();
        let mut compared = 0;
        let rels: Vec<RelTag> = self.history.all_relations().into_iter().collect();
        let pages: Vec<Key> = self.history.page_keys().collect();
        for _ in 0..count {
            if self.world.violation().is_some() {
                break;
            }
            let lsn = self.any_lsn(dice, last);
            let rel =
                if dice.permille(20) || rels.is_empty() { no_such_relation() } else { *dice.pick(&rels) };
            let seen = match dice.below(20) {
                0 => self.relations(lsn).await,
                1 => self.transactions(dice.below(5) as u32, lsn).await,
                2..=5 => self.size(rel, lsn).await,
                6..=7 => self.page(rel, dice.below(26) as u32, lsn).await,
                _ if pages.is_empty() => continue,
                _ => {
                    let key = *dice.pick(&pages);
                    let Some(KeyKind::RelBlock { rel, block }) = key.kind() else { continue };
                    // Where it changes is where something can be wrong.
                    let changes: Vec<Lsn> = self.history.changes_of(key).filter(|at| *at <= last).collect();
                    let lsn = match dice.below(3) {
                        0 => lsn,
                        _ if changes.is_empty() => lsn,
                        1 => *dice.pick(&changes),
                        _ => Lsn(dice.pick(&changes).0 - 8).max(self.history.base),
                    };
                    self.page(rel, block, lsn).await
                }
            };
            compared += u64::from(matches!(seen, Seen::Same));
            if !self.process.is_alive() {
                break;
            }
        }
        self.world.compared(compared);
    }

    /// Where history that is known without gaps begins.
    fn known_from(&self) -> Lsn {
        let mut from = self.timeline.retention().cutoff;
        let (mut timeline, mut at) = (self.timeline.clone(), Lsn::MAX);
        while let Some((ancestor, began)) = timeline.ancestor() {
            at = at.min(began);
            let Some(next) = self.process.tenant().and_then(|tenant| tenant.timeline(ancestor).ok()) else {
                return from.max(at);
            };
            from = from.max(next.retention().cutoff.min(at));
            timeline = next;
        }
        from
    }

    fn any_lsn(&self, dice: &mut Dice, last: Lsn) -> Lsn {
        let (base, cutoff) = (self.history.base, self.timeline.retention().cutoff.min(last));
        let mut points = self.ledger.points(self.line, self.world.time());
        // What was leased before it was safe is there when the source sends it again.
        points.retain(|point| *point <= last);
        match dice.below(8) {
            0 => last,
            1 => base,
            2 => self.history.record_end_at(Lsn(dice.from(base.0..last.0 + 1))),
            3 | 4 if !points.is_empty() => *dice.pick(&points),
            5 => cutoff.max(base),
            6 => {
                let oldest = self.ledger.oldest_kept(self.line, self.keep, self.world.time());
                oldest.filter(|oldest| *oldest <= last).unwrap_or(last)
            }
            _ => self.history.record_end_at(Lsn(dice.from(cutoff.max(base).0..last.0 + 1))),
        }
    }

    /// Reads everything at some LSNs.
    pub async fn everything(&self, moments: u64, dice: &mut Dice) {
        let last = self.timeline.last_record_lsn();
        let mut compared = 0;
        for moment in 0..moments {
            let lsn = if moment == 0 { last } else { self.any_lsn(dice, last) };
            let mut seen = vec![self.relations(lsn).await];
            for segment in 0..5 {
                seen.push(self.transactions(segment, lsn).await);
            }
            for rel in self.history.all_relations() {
                seen.push(self.size(rel, lsn).await);
                let size = self.history.size(Key::rel_size(rel), lsn);
                for block in 0..size.map_or(1, |size| size + 1) {
                    seen.push(self.page(rel, block, lsn).await);
                }
                if self.world.violation().is_some() {
                    return;
                }
            }
            compared += seen.iter().filter(|seen| matches!(seen, Seen::Same)).count() as u64;
        }
        self.world.compared(compared);
    }

    /// Looks up times.
    pub async fn times(&self, dice: &mut Dice) {
        let (base, commits) = (self.history.base, &self.history.commits);
        for _ in 0..4 {
            let time = match dice.below(4) {
                0 => PgTimestamp(0),
                _ if commits.is_empty() => self.world.pg_time(),
                1 => PgTimestamp(dice.pick(commits).1.0 - 1),
                _ => dice.pick(commits).1,
            };
            let before = self.timeline.last_record_lsn();
            let mut found = self.timeline.lsn_at(time).await;
            if matches!(found, Err(ReadError::BehindCutoff { .. })) {
                found = self.timeline.lsn_at(time).await; // the cutoff moved on between two looks
            }
            if self.timeline.last_record_lsn() != before || before > self.history.end() {
                continue; // more came meanwhile, or since the history was looked at: either answer may be
            }
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    self.failed(&format_args!("time {}", time.0), before, &error);
                    continue;
                }
            };
            let around = self.history.around(time, base, before);
            // What happened before is not known any more.
            if around.0.is_none_or(|lsn| lsn < self.known_from()) && self.known_from() > base {
                continue;
            }
            // The base is as old as the epoch, by its checkpoint.
            let base_is_older =
                time.to_system_time() > SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
            let wanted = match around {
                (Some(lsn), Some(_)) => LsnAt::Present(lsn),
                (Some(_), None) => LsnAt::Future(before),
                (None, Some(_)) if base_is_older => LsnAt::Present(base),
                (None, None) if base_is_older => LsnAt::Future(before),
                (None, Some(_)) => LsnAt::Past(base),
                (None, None) => LsnAt::NoData(before),
            };
            if found != wanted {
                self.wrong(|| format!("time {} is at {found:?}, and must be at {wanted:?}", time.0));
            }
            self.world.compared(1);
        }
    }
}

fn describe(page: &[u8]) -> String {
    match page.first_chunk() {
        Some(head) if page.len() == model::BLOCK_SIZE => {
            let mut whole = ZERO_PAGE;
            whole.copy_from_slice(page);
            let _: &[u8; 1] = head;
            let zeros = if page.iter().all(|byte| *byte == 0) { " (zeros)" } else { "" };
            format!(
                "a page of {} with checksum {:08x}{zeros}",
                codec::page::lsn(&whole),
                crc32c::crc32c(page)
            )
        }
        _ => format!("{} bytes", page.len()),
    }
}

/// An error with its causes.
pub fn story(error: &dyn std::error::Error) -> String {
    let mut story = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        story.push_str(": ");
        story.push_str(&error.to_string());
        cause = error.source();
    }
    story
}

/// What is said of an LSN that is not kept.
const NOT_KEPT: &str = "before which only branch points, leases and named LSNs can be read";

/// Whether all lines are as they were promised, as the newest owner has them.
pub fn promises(world: &World, ledger: &Ledger, process: &Process) {
    let Some(tenant) = process.tenant() else { return };
    let views = tenant.views();
    let lines = ledger.lines();
    for (number, line) in lines.iter().enumerate() {
        let view = views.iter().find(|(id, _)| *id == line.id).map(|(_, view)| view);
        match (line.made, line.deleted, view) {
            // What a superseded owner put, and promised to nobody, may begin where nothing was kept for it.
            (Sure::Maybe, _, Some(TimelineView::Broken(reason))) if reason.contains(NOT_KEPT) => {}
            (_, _, Some(TimelineView::Broken(reason))) => {
                world.violate(|| format!("line {number} is broken: {reason}"));
            }
            (Sure::Yes, Sure::No, Some(TimelineView::Open(_))) if line.archived == Sure::Yes => {
                world.violate(|| format!("line {number} was archived, and is open"));
            }
            (Sure::Yes, Sure::No, Some(TimelineView::Open(_))) => {}
            (Sure::Yes, Sure::No, Some(TimelineView::Archived(_))) if line.archived != Sure::No => {}
            (Sure::Yes, Sure::No, _) => {
                world.violate(|| format!("line {number} was promised, and is not there"));
            }
            (_, Sure::Yes, Some(TimelineView::Open(_) | TimelineView::Archived(_))) => {
                world.violate(|| format!("line {number} was deleted, and is there again"));
            }
            _ => {}
        }
    }
}

/// All objects in the bucket.
pub fn objects(world: &World) -> Vec<String> {
    let mut after: Option<String> = None;
    let mut paths = Vec::new();
    loop {
        let request = ListRequest { prefix: "", after: after.as_deref(), ..ListRequest::default() };
        let page = now(world.store().list(request)).expect("a bucket in memory lists");
        paths.extend(page.objects.into_iter().map(|object| object.path));
        match page.next {
            Some(next) => after = Some(next),
            None => return paths,
        }
    }
}

/// The newest index of a timeline in the bucket.
pub fn newest_index(
    world: &World,
    timeline: TimelineId,
    paths: &[String],
) -> Option<(Generation, Arc<IndexPart>)> {
    let newest = paths
        .iter()
        .filter_map(|path| match path.parse() {
            Ok(ObjectPath::Index { timeline: of, generation: Some(generation), .. }) if of == timeline => {
                Some((generation, path))
            }
            _ => None,
        })
        .max()?;
    let object = now(world.store().get(newest.1, None)).ok()?;
    match IndexPart::from_json(&object.bytes) {
        Ok(part) => Some((newest.0, Arc::new(part))),
        Err(error) => {
            world.violate(|| format!("{} is no index: {error}", newest.1));
            None
        }
    }
}

/// Whether the bucket agrees with itself: what the newest indexes name is there, and everything that is there has a name that is known.
pub fn bucket(world: &World, ledger: &Ledger, time: SystemTime) {
    let paths = objects(world);
    let there: BTreeSet<&str> = paths.iter().map(String::as_str).collect();
    for path in &paths {
        if path.parse::<ObjectPath>().is_err() {
            world.violate(|| format!("nobody knows what {path} is"));
        }
    }
    let lines = ledger.lines();
    for (number, line) in lines.iter().enumerate() {
        let tombstone = ObjectPath::Tombstone { tenant: shard(), timeline: line.id }.to_string();
        let is_buried = there.contains(tombstone.as_str());
        if line.deleted == Sure::Yes && !is_buried {
            world.violate(|| format!("line {number} was deleted, and has no tombstone"));
        }
        if is_buried {
            if line.deleted == Sure::No {
                world.violate(|| format!("line {number} has a tombstone, and nobody deleted it"));
            }
            continue;
        }
        let Some((generation, index)) = newest_index(world, line.id, &paths) else {
            if line.made == Sure::Yes && line.deleted == Sure::No {
                world.violate(|| format!("line {number} was promised, and has no index"));
            }
            continue;
        };
        if index.deleted_at.is_some() {
            continue;
        }
        for (name, metadata) in &index.layer_metadata {
            let name = model::LayerObjectName { layer: name.clone(), generation: metadata.generation };
            let path = ObjectPath::Layer { tenant: shard(), timeline: line.id, name }.to_string();
            match now(world.store().head(&path)) {
                Ok(meta) if meta.size == metadata.file_size => {}
                Ok(meta) => world.violate(|| {
                    format!(
                        "{path} has {} bytes, and index {generation} says {}",
                        meta.size, metadata.file_size
                    )
                }),
                Err(_) => world.violate(|| {
                    format!("{path} is missing, and index {generation} of line {number} names it")
                }),
            }
        }
        let Some(ours) = &index.palimpsest else {
            world.violate(|| format!("index {generation} of line {number} is not ours"));
            continue;
        };
        for object in
            ours.wal_objects.iter().filter(|object| object.end > index.metadata().disk_consistent_lsn)
        {
            let (tli, start, end, generation) = (object.tli, object.start, object.end, object.generation);
            let path =
                wal_path(shard(), line.id, &StoredWal { tli, start, end, generation, size: object.size });
            if !there.contains(path.as_str()) {
                world.violate(|| format!("{path} is missing, and the index of line {number} names it"));
            }
        }
        line_is_as_promised(world, &lines, number, &index);
        for (lsn, until) in line.leases.iter().filter(|(_, until)| *until > time) {
            let is_kept = ours.leases.iter().any(|lease| {
                // The index keeps whole milliseconds or less.
                lease.lsn == *lsn
                    && lease.valid_until.to_system_time() + std::time::Duration::from_secs(1) >= *until
            });
            if !is_kept {
                world.violate(|| format!("{lsn} of line {number} was leased, and the index does not say so"));
            }
        }
    }
}

/// Whether an index says of names, of archiving and of what the line hangs on what was promised.
fn line_is_as_promised(world: &World, lines: &[Line], number: usize, index: &IndexPart) {
    let (line, time) = (&lines[number], world.time());
    let Some(ours) = &index.palimpsest else { return };
    for (name, promised) in &line.names {
        let is_over = promised.until.is_some_and(|until| until <= time);
        match (promised.forgotten, ours.named_lsns.get(name)) {
            (Sure::No, found) if !is_over && found.is_none_or(|found| found.lsn != promised.lsn) => {
                world.violate(|| {
                    format!(
                        "{} of line {number} was named {name}, and the index does not say so",
                        promised.lsn
                    )
                });
            }
            // One that is over goes with the next change of the index.
            (Sure::Yes, Some(_)) if !promised.prolonged && !is_over => {
                world.violate(|| {
                    format!("the name {name} of line {number} was forgotten, and the index has it")
                });
            }
            _ => {}
        }
    }
    if line.made != Sure::Yes || line.deleted != Sure::No {
        return;
    }
    if (line.archived == Sure::Yes && !index.is_archived())
        || (line.archived == Sure::No && index.is_archived())
    {
        world.violate(|| {
            format!("line {number} was archived: {:?}, and the index says otherwise", line.archived)
        });
    }
    let ancestor = index.metadata().ancestor_timeline;
    if !line.unsettled && ancestor != line.parent.map(|parent| lines[parent].id) {
        world
            .violate(|| format!("line {number} hangs on {:?}, and the index says {ancestor:?}", line.parent));
    }
}

/// What is there that nothing names at this moment.
pub fn unnamed(world: &World, ledger: &Ledger, own: Generation) -> BTreeSet<String> {
    let paths = objects(world);
    let mut named: BTreeSet<String> = BTreeSet::new();
    let mut lines: BTreeSet<TimelineId> = BTreeSet::new();
    for line in ledger.lines().iter() {
        let Some((generation, index)) = newest_index(world, line.id, &paths) else { continue };
        if generation != own || index.deleted_at.is_some() {
            continue;
        }
        lines.insert(line.id);
        for (name, metadata) in &index.layer_metadata {
            let name = model::LayerObjectName { layer: name.clone(), generation: metadata.generation };
            named.insert(ObjectPath::Layer { tenant: shard(), timeline: line.id, name }.to_string());
        }
        for object in index.palimpsest.iter().flat_map(|ours| &ours.wal_objects) {
            let (tli, start, end, generation) = (object.tli, object.start, object.end, object.generation);
            named.insert(wal_path(
                shard(),
                line.id,
                &StoredWal { tli, start, end, generation, size: object.size },
            ));
        }
    }
    let is_unnamed = |path: &String| {
        let timeline = match path.parse() {
            Ok(ObjectPath::Layer { timeline, .. }) => timeline,
            Ok(ObjectPath::Wal { timeline, generation, .. }) if generation != own => timeline,
            _ => return false,
        };
        // Of one whose deletion was begun, what remains goes when it is asked for again.
        lines.contains(&timeline) && !named.contains(path)
    };
    paths.iter().filter(|path| is_unnamed(path)).cloned().collect()
}
