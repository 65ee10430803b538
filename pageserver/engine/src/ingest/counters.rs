//! The counters that a cluster starts from, kept in the form of a checkpoint.
//!
//! They are stored when they change, but for the next transaction, which would be nearly every record: that one is stored some way ahead,
//! so that it is never too low, and exactly at shutdowns. A cluster that starts from it leaves out some numbers, as after a crash. It
//! never crosses into a commit-log page that was not begun: a step divides a page, and the first number of a page needs no page.

use codec::bytes_in::Truncated;
use codec::checkpoint::CheckPoint;
use codec::slru::{FIRST_NORMAL_XID, wraps_before, xid_precedes};
use codec::value::Value;
use model::{Key, Lsn, PgMajor, Tli};

use super::{At, IngestError, Latest, get, stored};
use crate::changes::Changes;

/// How far ahead the next transaction is stored.
const XID_STEP: u64 = 1_024;

/// The counters as of the last record.
#[derive(Debug)]
pub(super) struct Counters {
    pg: PgMajor,
    now: CheckPoint,
    stored: CheckPoint,
    is_changed: bool,
    /// The next transaction is to be stored as it is.
    is_exact: bool,
}

impl Counters {
    pub(super) async fn load(latest: &impl Latest, pg: PgMajor) -> Result<Counters, IngestError> {
        let at = At { start: Lsn::INVALID, end: Lsn::INVALID };
        let key = Key::CHECKPOINT;
        let bytes = get(latest, key, at).await?.ok_or_else(|| stored("checkpoint", key, &"it is missing"))?;
        let now = CheckPoint::decode(pg, &bytes).map_err(|problem| stored("checkpoint", key, &problem))?;
        Ok(Counters::from(pg, now))
    }

    fn from(pg: PgMajor, now: CheckPoint) -> Counters {
        Counters { pg, now, stored: now, is_changed: false, is_exact: false }
    }

    /// A transaction id was used.
    pub(super) fn saw_xid(&mut self, xid: u32) {
        let ahead = xid.wrapping_sub(self.now.next_xid as u32);
        if xid < FIRST_NORMAL_XID || ahead > i32::MAX as u32 {
            return;
        }
        let next = self.now.next_xid.saturating_add(u64::from(ahead) + 1);
        let reserved = u64::from(FIRST_NORMAL_XID.saturating_sub(next as u32));
        self.now.next_xid = next.saturating_add(reserved);
        self.is_changed |= self.now.next_xid > self.stored.next_xid;
    }

    /// A 32-bit transaction id that is not in the future, with its epoch.
    pub(super) fn with_epoch(&self, xid: u32) -> u64 {
        let next = self.now.next_xid;
        let same = next & !0xFFFF_FFFF | u64::from(xid);
        if same < next { same } else { same.saturating_sub(1 << 32) }
    }

    pub(super) fn next_multi(&self) -> u32 {
        self.now.next_multi
    }

    /// Which transactions ran.
    pub(super) fn running(&mut self, next_xid: u32, oldest_running: u32) {
        let last = next_xid.wrapping_sub(1);
        self.saw_xid(last);
        self.is_changed |= self.now.oldest_active_xid != oldest_running;
        self.now.oldest_active_xid = oldest_running;
    }

    pub(super) fn next_oid(&mut self, oid: u32) {
        self.is_changed = true;
        self.now.next_oid = oid;
    }

    /// A multixact was created; the next one has this number and its members begin there.
    pub(super) fn created_multi(&mut self, next: u32, next_offset: u32) {
        if wraps_before(self.now.next_multi, next) {
            self.is_changed = true;
            self.now.next_multi = next;
        }
        if wraps_before(self.now.next_multi_offset, next_offset) {
            self.is_changed = true;
            self.now.next_multi_offset = next_offset;
        }
    }

    pub(super) fn oldest_xid(&mut self, xid: u32, db: u32) {
        if xid_precedes(self.now.oldest_xid, xid) {
            self.is_changed = true;
            (self.now.oldest_xid, self.now.oldest_xid_db) = (xid, db);
        }
    }

    pub(super) fn oldest_multi(&mut self, multi: u32, db: u32) {
        if wraps_before(self.now.oldest_multi, multi) {
            self.is_changed = true;
            (self.now.oldest_multi, self.now.oldest_multi_db) = (multi, db);
        }
    }

    pub(super) fn oldest_commit_ts(&mut self, xid: u32) {
        let oldest = self.now.oldest_commit_ts_xid;
        if oldest != 0 && xid_precedes(oldest, xid) {
            self.is_changed = true;
            self.now.oldest_commit_ts_xid = xid;
        }
    }

    /// A transaction got a commit timestamp.
    pub(super) fn commit_ts(&mut self, xid: u32) {
        let CheckPoint { newest_commit_ts_xid: newest, .. } = self.now;
        if newest == 0 || xid_precedes(newest, xid) {
            self.now.newest_commit_ts_xid = xid;
            self.is_changed |= !self.stored_covers_commit_ts();
        }
    }

    /// Commit timestamps are kept from now on. Answers the first transaction that gets one.
    pub(super) fn commit_timestamps_on(&mut self) -> u32 {
        let next = self.now.next_xid as u32;
        if self.now.oldest_commit_ts_xid == 0 {
            self.is_changed = true;
            self.now.oldest_commit_ts_xid = next;
            self.now.newest_commit_ts_xid = next;
        }
        next
    }

    /// None are kept any more.
    pub(super) fn commit_timestamps_off(&mut self) {
        self.is_changed = true;
        self.now.oldest_commit_ts_xid = 0;
        self.now.newest_commit_ts_xid = 0;
    }

    pub(super) fn full_page_writes(&mut self, on: bool) {
        self.is_changed |= self.now.full_page_writes != on;
        self.now.full_page_writes = on;
    }

    pub(super) fn wal_level(&mut self, wal_level: i32) {
        if self.pg >= PgMajor::V17 {
            self.is_changed |= self.now.wal_level != wal_level;
            self.now.wal_level = wal_level;
        }
    }

    pub(super) fn timeline(&mut self, tli: Tli, prev_tli: Tli) {
        self.is_changed = true;
        (self.now.tli, self.now.prev_tli) = (tli, prev_tli);
    }

    /// A checkpoint: at a shutdown its counters are exact; else they were read one by one while others advanced them, and count only
    /// where they are ahead of what records said.
    pub(super) fn checkpoint(&mut self, bytes: &[u8], is_shutdown: bool) -> Result<(), Truncated> {
        let seen = CheckPoint::decode(self.pg, bytes)?;
        let before = std::mem::replace(&mut self.now, seen);
        self.is_changed = true;
        self.is_exact |= is_shutdown;
        if is_shutdown {
            return Ok(());
        }
        let now = &mut self.now;
        now.next_xid = now.next_xid.max(before.next_xid);
        now.next_oid = before.next_oid;
        if wraps_before(now.next_multi, before.next_multi) {
            now.next_multi = before.next_multi;
        }
        if wraps_before(now.next_multi_offset, before.next_multi_offset) {
            now.next_multi_offset = before.next_multi_offset;
        }
        if xid_precedes(now.oldest_xid, before.oldest_xid) {
            (now.oldest_xid, now.oldest_xid_db) = (before.oldest_xid, before.oldest_xid_db);
        }
        if wraps_before(now.oldest_multi, before.oldest_multi) {
            (now.oldest_multi, now.oldest_multi_db) = (before.oldest_multi, before.oldest_multi_db);
        }
        let newer = |a: u32, b: u32| if a == 0 || b != 0 && xid_precedes(a, b) { b } else { a };
        now.oldest_commit_ts_xid = newer(now.oldest_commit_ts_xid, before.oldest_commit_ts_xid);
        now.newest_commit_ts_xid = newer(now.newest_commit_ts_xid, before.newest_commit_ts_xid);
        Ok(())
    }

    fn stored_covers_commit_ts(&self) -> bool {
        let (stored, now) = (self.stored.newest_commit_ts_xid, self.now.newest_commit_ts_xid);
        stored != 0 && now != 0 && !xid_precedes(stored, now) || stored == now
    }

    /// Pushes the counters if the stored ones no longer do.
    pub(super) fn push_changed(&mut self, changes: &mut Changes, lsn: Lsn) {
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        let mut next = self.now;
        if !std::mem::take(&mut self.is_exact) {
            next.next_xid = if self.stored.next_xid >= next.next_xid {
                self.stored.next_xid
            } else {
                ahead(next.next_xid)
            };
            if self.stored_covers_commit_ts() {
                next.newest_commit_ts_xid = self.stored.newest_commit_ts_xid;
            } else if next.newest_commit_ts_xid != 0 {
                // As far ahead as the next transaction is.
                next.newest_commit_ts_xid = (next.next_xid as u32).wrapping_sub(1).max(FIRST_NORMAL_XID);
            }
        }
        if next != self.stored {
            changes.push(Key::CHECKPOINT, lsn, &Value::Image(&next.encode(self.pg)));
            self.stored = next;
        }
    }
}

/// The next multiple of the step; not one that begins an epoch, whose first numbers are reserved.
fn ahead(xid: u64) -> u64 {
    match xid.checked_next_multiple_of(XID_STEP) {
        Some(stepped) if stepped as u32 != 0 => stepped,
        _ => xid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(next_xid: u64) -> Counters {
        let zero = CheckPoint::decode(PgMajor::V15, &[0; 88]).unwrap();
        Counters::from(
            PgMajor::V15,
            CheckPoint { next_xid, next_multi: 1, oldest_xid: 3, oldest_multi: 1, ..zero },
        )
    }

    fn pushed(counters: &mut Counters) -> Option<CheckPoint> {
        let mut changes = Changes::default();
        counters.push_changed(&mut changes, Lsn(8));
        let entry = changes.entries.first()?;
        let Ok(Value::Image(bytes)) = Value::decode(changes.value_bytes(entry)) else { panic!("no image") };
        Some(CheckPoint::decode(PgMajor::V15, bytes).unwrap())
    }

    #[test]
    fn the_next_transaction_is_stored_in_steps_and_exactly_at_a_shutdown() {
        let mut counters = counters(700);
        counters.saw_xid(699);
        assert_eq!(pushed(&mut counters), None, "nothing new");
        counters.saw_xid(700);
        assert_eq!(pushed(&mut counters).unwrap().next_xid, 1_024);
        counters.saw_xid(1_023);
        assert_eq!(pushed(&mut counters), None, "1,024 is next, as stored");
        counters.saw_xid(1_024);
        assert_eq!(pushed(&mut counters).unwrap().next_xid, 2_048);
        let shutdown = CheckPoint { next_xid: 1_025, ..counters.now };
        counters.checkpoint(&shutdown.encode(PgMajor::V15), true).unwrap();
        assert_eq!(pushed(&mut counters).unwrap().next_xid, 1_025);
    }

    #[test]
    fn an_epoch_begins_after_the_last_transaction_and_skips_reserved_numbers() {
        let mut counters = counters(0xFFFF_FFF0);
        counters.saw_xid(0xFFFF_FFF5);
        assert_eq!(
            pushed(&mut counters).unwrap().next_xid,
            0xFFFF_FFF6,
            "a step would end on a reserved number"
        );
        assert_eq!(counters.with_epoch(0xFFFF_FFF5), 0xFFFF_FFF5);
        counters.saw_xid(0xFFFF_FFFF);
        assert_eq!(counters.now.next_xid, 0x1_0000_0003);
        assert_eq!(counters.with_epoch(0xFFFF_FFF5), 0xFFFF_FFF5, "of the epoch before");
        counters.saw_xid(3);
        assert_eq!(counters.with_epoch(3), 0x1_0000_0003);
        counters.saw_xid(0xFFFF_FFF5);
        assert_eq!(counters.now.next_xid, 0x1_0000_0004, "an old one changes nothing");
    }

    #[test]
    fn an_online_checkpoint_takes_nothing_back() {
        let mut counters = counters(700);
        counters.saw_xid(800);
        counters.next_oid(24_576);
        counters.created_multi(9, 40);
        let seen = CheckPoint {
            next_xid: 750,
            next_oid: 16_384,
            next_multi: 5,
            next_multi_offset: 20,
            time: 7,
            ..counters.now
        };
        counters.checkpoint(&seen.encode(PgMajor::V15), false).unwrap();
        let stored = pushed(&mut counters).unwrap();
        assert_eq!((stored.next_xid, stored.next_oid, stored.time), (1_024, 24_576, 7));
        assert_eq!((stored.next_multi, stored.next_multi_offset), (9, 40));
    }

    #[test]
    fn the_newest_commit_timestamp_is_never_stored_too_low() {
        let mut counters = counters(700);
        assert_eq!(counters.commit_timestamps_on(), 700);
        assert_eq!(pushed(&mut counters).unwrap().oldest_commit_ts_xid, 700);
        for xid in 700..3_000 {
            counters.saw_xid(xid);
            counters.commit_ts(xid);
            pushed(&mut counters);
            assert!(counters.stored.newest_commit_ts_xid >= xid);
            assert!(u64::from(counters.stored.newest_commit_ts_xid) < counters.stored.next_xid);
        }
        counters.commit_timestamps_off();
        assert_eq!(pushed(&mut counters).unwrap().newest_commit_ts_xid, 0);
    }
}
