//! SLRUs: which segments they have, how long those are, and what becomes of their pages.

use std::collections::HashMap;

use codec::directory::SlruSegmentDirectory;
use codec::slru::{self, PageAt, place};
use codec::value::{Change, Value};
use model::{Key, Lsn, SlruKind};

use super::{At, Ingest, IngestError, Latest, decode_size, get, push_zero, stored};
use crate::changes::Changes;

/// All four of them.
#[derive(Debug)]
pub(super) struct Slrus {
    by_kind: [Slru; 4],
}

#[derive(Debug, Default)]
struct Slru {
    directory: SlruSegmentDirectory,
    is_changed: bool,
    /// Pages of the segments that were used. Segments are files of 256 KiB: even all of a kind are few.
    sizes: HashMap<u32, u32>,
    /// Segments whose stored size is no longer right.
    resized: Vec<u32>,
}

impl Slrus {
    pub(super) async fn load(latest: &impl Latest) -> Result<Slrus, IngestError> {
        let at = At { start: Lsn::INVALID, end: Lsn::INVALID };
        let mut by_kind: [Slru; 4] = Default::default();
        for kind in SlruKind::ALL {
            let key = Key::slru_directory(kind);
            if let Some(bytes) = get(latest, key, at).await? {
                by_kind[kind as usize].directory = SlruSegmentDirectory::decode(&bytes)
                    .map_err(|problem| stored("SLRU segment directory", key, &problem))?;
            }
        }
        Ok(Slrus { by_kind })
    }

    /// Removes the segments that lie before this page.
    pub(super) fn truncate(&mut self, kind: SlruKind, cutoff: u32) {
        self.remove_segments(kind, |segment| slru::segment_is_truncated(kind, segment, cutoff));
    }

    /// Removes offsets of multixacts before `oldest` and members from `start` up to `end`.
    pub(super) fn truncate_multixacts(&mut self, oldest: u32, start: u32, end: u32) {
        self.remove_segments(SlruKind::MultiXactMembers, |segment| {
            slru::members_segment_is_truncated(segment, start, end)
        });
        // The page before is kept if it holds the last multixact that is gone: readers of the next one may look at it.
        self.truncate(SlruKind::MultiXactOffsets, slru::offsets_page(slru::previous_multi(oldest)));
    }

    /// Removes segments.
    pub(super) fn remove_segments(&mut self, kind: SlruKind, is_gone: impl Fn(u32) -> bool) {
        let slru = &mut self.by_kind[kind as usize];
        let gone: Vec<u32> =
            slru.directory.segments.iter().copied().filter(|segment| is_gone(*segment)).collect();
        for segment in gone {
            slru.is_changed = true;
            slru.directory.segments.remove(&segment);
            slru.sizes.remove(&segment);
            slru.resized.push(segment);
        }
    }

    /// Pushes directories and sizes that changed; the size of a segment that is gone is an empty value.
    pub(super) fn push_changed(&mut self, changes: &mut Changes, lsn: Lsn) {
        for (kind, slru) in SlruKind::ALL.into_iter().zip(&mut self.by_kind) {
            if std::mem::take(&mut slru.is_changed) {
                changes.push(Key::slru_directory(kind), lsn, &Value::Image(&slru.directory.encode()));
            }
            slru.resized.sort_unstable();
            slru.resized.dedup();
            for segment in slru.resized.drain(..) {
                let size = slru.sizes.get(&segment).map(|size| size.to_le_bytes());
                let size = size.as_ref().map_or(&[][..], |size| &size[..]);
                changes.push(Key::slru_size(kind, segment), lsn, &Value::Image(size));
            }
        }
    }
}

impl Ingest {
    /// Makes sure that an SLRU has this page, and answers whether it had it before. Pages of the segment before it read as zeros if they
    /// were not there.
    async fn extend_slru(
        &mut self,
        kind: SlruKind,
        at: PageAt,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<bool, IngestError> {
        let slru = &mut self.slrus.by_kind[kind as usize];
        let size = match slru.sizes.get(&at.segment) {
            Some(size) => *size,
            None if slru.directory.segments.contains(&at.segment) => {
                let key = Key::slru_size(kind, at.segment);
                let size = match get(latest, key, self.at).await? {
                    Some(bytes) => decode_size("SLRU segment size", key, &bytes)?,
                    None => 0,
                };
                slru.sizes.insert(at.segment, size);
                size
            }
            None => 0,
        };
        if at.page < size {
            return Ok(true);
        }
        for page in size..at.page {
            push_zero(changes, Key::slru_page(kind, at.segment, page), self.at.end);
        }
        slru.is_changed |= slru.directory.segments.insert(at.segment);
        slru.sizes.insert(at.segment, at.page + 1);
        slru.resized.push(at.segment);
        Ok(false)
    }

    /// A page begins, all zeros.
    pub(super) async fn zero_page(
        &mut self,
        kind: SlruKind,
        page: u32,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let at = place(page);
        self.extend_slru(kind, at, changes, latest).await?;
        push_zero(changes, Key::slru_page(kind, at.segment, at.page), self.at.end);
        Ok(())
    }

    /// A page begins if it is not there: commit timestamps are kept from transaction `next` on.
    pub(super) async fn begin_commit_timestamps(
        &mut self,
        next: u32,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let at = place(slru::commit_ts_page(next));
        if !self.extend_slru(SlruKind::CommitTs, at, changes, latest).await? {
            push_zero(changes, Key::slru_page(SlruKind::CommitTs, at.segment, at.page), self.at.end);
        }
        Ok(())
    }

    /// A page of multixact offsets begins, unless the last multixact of the page before began it already by saying where the next one's
    /// members are: zeroing it would lose that. Such a page is the next multixact's, which is the first on it.
    pub(super) async fn zero_offsets_page(
        &mut self,
        page: u32,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let at = place(page);
        let existed = self.extend_slru(SlruKind::MultiXactOffsets, at, changes, latest).await?;
        let next = self.counters.next_multi();
        let is_begun = existed && slru::offsets_page(next) == page && next % slru::OFFSETS_PER_PAGE <= 1;
        if !is_begun {
            let key = Key::slru_page(SlruKind::MultiXactOffsets, at.segment, at.page);
            push_zero(changes, key, self.at.end);
        }
        Ok(())
    }

    /// Pushes a change to a page. Like recovery, takes a page that is missing (its segment was truncated later, before a base backup
    /// copied it) for one of zeros.
    pub(super) async fn change_slru(
        &mut self,
        kind: SlruKind,
        page: u32,
        value: &Value<'_>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let at = place(page);
        let key = Key::slru_page(kind, at.segment, at.page);
        if self.extend_slru(kind, at, changes, latest).await? {
            changes.push(key, self.at.end, value);
            return Ok(());
        }
        let bytes = value.to_bytes();
        let image =
            redo::reconstruct(Some(&codec::page::ZERO_PAGE), [(self.at.end, &bytes[..])], self.pg, key)
                .map_err(|problem| stored("page of zeros", key, &problem))?;
        changes.push(key, self.at.end, &Value::Image(&image));
        Ok(())
    }

    /// A new multixact: where its members begin, who they are, and where the next one's members will begin. The latter is what releases
    /// since 2026 rely on and redo themselves, also from records of older ones.
    pub(super) async fn create_multixact(
        &mut self,
        multi: u32,
        offset: u32,
        members: &[(u32, u32)],
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        use SlruKind::{MultiXactMembers, MultiXactOffsets};
        let count = members.len() as u32;
        let next = slru::next_multi(multi);
        // Offset 0 is never used: it means that there is none.
        let next_offset = offset.wrapping_add(count).max(1);
        let (page, next_page) = (slru::offsets_page(multi), slru::offsets_page(next));
        if page == next_page {
            let change =
                Value::Change(Change::MultiXactOffsets { first: multi, offsets: vec![offset, next_offset] });
            self.change_slru(MultiXactOffsets, page, &change, changes, latest).await?;
        } else {
            let change = Value::Change(Change::MultiXactOffset { multi, offset });
            self.change_slru(MultiXactOffsets, page, &change, changes, latest).await?;
            let change = Value::Change(Change::MultiXactOffset { multi: next, offset: next_offset });
            self.change_slru(MultiXactOffsets, next_page, &change, changes, latest).await?;
        }
        let mut first = offset;
        let mut rest = members;
        while !rest.is_empty() {
            let page = slru::members_page(first);
            // The last page of all is shorter: the number space ends on it.
            let in_page = slru::MEMBERS_PER_PAGE - first % slru::MEMBERS_PER_PAGE;
            let until_wrap = (u32::MAX - first).saturating_add(1);
            let take = rest.len().min(in_page.min(until_wrap) as usize);
            let (now, later) = rest.split_at(take);
            let change = Value::Change(Change::MultiXactMembers { first, members: now.to_vec() });
            self.change_slru(MultiXactMembers, page, &change, changes, latest).await?;
            first = first.wrapping_add(take as u32);
            rest = later;
        }
        for (xid, _) in members {
            self.counters.saw_xid(*xid);
        }
        self.counters.created_multi(next, offset.wrapping_add(count));
        Ok(())
    }
}
