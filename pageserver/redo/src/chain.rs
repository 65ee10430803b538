//! A version of one key from a base and the changes after it.

use codec::page::{self, Page, ZERO_PAGE};
use codec::value::{Change, Value};
use codec::wal::record::Record;
use model::key::KeyKind;
use model::{BLOCK_SIZE, Fork, Key, Lsn, PgMajor, SLRU_SEGMENT_PAGES, SlruKind};

use crate::{RedoError, apply, slru, visibility};

/// The value of `key` that `changes`, encoded values with the LSNs of their ends, oldest first, make of `base`.
///
/// Without a base the first change must need none; only pages of a visibility map or free-space map begin as zeros, since Postgres
/// extends those without telling.
pub fn reconstruct<'a>(
    base: Option<&[u8]>,
    changes: impl IntoIterator<Item = (Lsn, &'a [u8])>,
    pg: PgMajor,
    key: Key,
) -> Result<Vec<u8>, RedoError> {
    let kind = key.kind();
    let mut value: Option<Vec<u8>> = base.map(|base| {
        let mut value = Vec::with_capacity(base.len().max(slru::CLOG_WITH_TIME));
        page::append(base, &mut value);
        value
    });
    let mut record = Record::empty(pg);
    for (lsn, bytes) in changes {
        match Value::decode(bytes).map_err(|source| RedoError::Value { key, lsn, source })? {
            Value::Image(image) => {
                let value = value.get_or_insert_default();
                value.clear();
                page::append(image, value);
            }
            Value::Change(change) => Link { key, kind, lsn }.apply(&change, &mut record, &mut value)?,
        }
    }
    value.ok_or(RedoError::Nothing { key })
}

/// One change of the chain.
struct Link {
    key: Key,
    kind: Option<KeyKind>,
    lsn: Lsn,
}

impl Link {
    /// `parsed` is room for the record, if the change is one.
    #[inline]
    fn apply<'a>(
        &self,
        change: &Change<'a>,
        parsed: &mut Record<'a>,
        value: &mut Option<Vec<u8>>,
    ) -> Result<(), RedoError> {
        let Link { key, lsn, .. } = *self;
        let fault = |source| RedoError::Change { key, lsn, source };
        match (change, self.kind) {
            (Change::Postgres { record, .. }, Some(KeyKind::RelBlock { rel, block })) => {
                parsed.read(record).map_err(|source| RedoError::Record { key, lsn, source })?;
                let record = &*parsed;
                let block = record.block_of(rel, block).ok_or(RedoError::OtherBlock { key, lsn })?;
                let page = self.page(value, block.is_base() || is_map(rel.fork))?;
                apply(record, block, lsn, page).map(drop)
            }
            (
                Change::ClearVisibilityMap { new_heap_block, old_heap_block, bits },
                Some(KeyKind::RelBlock { rel, block }),
            ) if rel.fork == Fork::Vm => {
                let page = self.page(value, true)?;
                for heap_block in [new_heap_block, old_heap_block].into_iter().flatten() {
                    if visibility::map_block(*heap_block) != block {
                        return Err(fault(crate::Fault::OtherPage { number: *heap_block }));
                    }
                    visibility::clear(page, *heap_block, *bits);
                }
                Ok(())
            }
            (Change::TruncateVisibilityMap { byte, bit }, Some(KeyKind::RelBlock { rel, .. }))
                if rel.fork == Fork::Vm =>
            {
                visibility::truncate(self.page(value, true)?, *byte, *bit).map_err(fault)
            }
            (Change::ZeroPage, Some(KeyKind::RelBlock { .. } | KeyKind::SlruPage { .. })) => {
                let value = value.get_or_insert_default();
                value.clear();
                value.extend_from_slice(&ZERO_PAGE);
                Ok(())
            }
            (change, Some(KeyKind::SlruPage { slru, segment, page })) => {
                let number = segment.wrapping_mul(SLRU_SEGMENT_PAGES).wrapping_add(page);
                self.apply_to_slru(change, slru, number, value)
            }
            _ => Err(RedoError::WrongKind { key, lsn }),
        }
    }

    fn apply_to_slru(
        &self,
        change: &Change<'_>,
        kind: SlruKind,
        number: u32,
        value: &mut Option<Vec<u8>>,
    ) -> Result<(), RedoError> {
        let Link { key, lsn, .. } = *self;
        let page = self.page(value, false)?;
        match (change, kind) {
            (Change::Committed { xids, .. }, SlruKind::Clog) => slru::set_committed(page, number, xids),
            (Change::Aborted { xids }, SlruKind::Clog) => slru::set_aborted(page, number, xids),
            (Change::MultiXactOffset { multi, offset }, SlruKind::MultiXactOffsets) => {
                slru::set_multixact_offsets(page, number, *multi, &[*offset])
            }
            (Change::MultiXactOffsets { first, offsets }, SlruKind::MultiXactOffsets) => {
                slru::set_multixact_offsets(page, number, *first, offsets)
            }
            (Change::MultiXactMembers { first, members }, SlruKind::MultiXactMembers) => {
                slru::set_multixact_members(page, number, *first, members)
            }
            (Change::CommitTimestamps { xids, time, origin }, SlruKind::CommitTs) => {
                slru::set_commit_times(page, number, xids, *time, *origin)
            }
            _ => return Err(RedoError::WrongKind { key, lsn }),
        }
        .map_err(|source| RedoError::Change { key, lsn, source })?;
        if let (Change::Committed { time, .. }, Some(value)) = (change, value) {
            value.truncate(BLOCK_SIZE);
            value.extend_from_slice(&time.0.to_be_bytes());
        }
        Ok(())
    }

    /// The page so far.
    fn page<'v>(
        &self,
        value: &'v mut Option<Vec<u8>>,
        may_be_missing: bool,
    ) -> Result<&'v mut Page, RedoError> {
        let Link { key, lsn, .. } = *self;
        if value.is_none() && !may_be_missing {
            return Err(RedoError::NoBase { key, lsn });
        }
        let value = value.get_or_insert_with(|| ZERO_PAGE.to_vec());
        let length = value.len();
        let is_clog = matches!(self.kind, Some(KeyKind::SlruPage { slru: SlruKind::Clog, .. }));
        if length != BLOCK_SIZE && !(is_clog && length == slru::CLOG_WITH_TIME) {
            return Err(RedoError::NotAPage { key, lsn, length });
        }
        value.first_chunk_mut().ok_or(RedoError::NotAPage { key, lsn, length })
    }
}

/// Whether pages of the fork come into being without a record.
fn is_map(fork: Fork) -> bool {
    matches!(fork, Fork::Vm | Fork::Fsm)
}
