//! Postgres' `CheckPoint` struct (`pg_control.h`): in checkpoint records, in the control file, and under the checkpoint key.
//!
//! 88 bytes in every major, the C image on a 64-bit little-endian machine, padding included:
//!
//! ```text
//!  0 u64 redo          8 u32 timeline       12 u32 previous timeline   16 bool full-page writes
//! 20 i32 wal_level (17 and later; padding before)                      24 u64 next transaction, with epoch
//! 32 u32 next oid     36 u32 next multixact 40 u32 next multixact offset
//! 44 u32 oldest xid   48 u32 its database   52 u32 oldest multixact    56 u32 its database
//! 64 i64 time, seconds since 1970           72 u32 oldest xid with a commit timestamp    76 u32 newest
//! 80 u32 oldest active xid
//! ```

use model::{Lsn, PgMajor, Tli};

use crate::bytes_in::{BytesIn, Truncated};

/// Bytes of the struct.
pub const CHECKPOINT_SIZE: usize = 88;

/// The counters that a cluster starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckPoint {
    /// Where replay would start.
    pub redo: Lsn,
    /// Postgres' timeline.
    pub tli: Tli,
    /// The timeline before, when this one began here; else the same.
    pub prev_tli: Tli,
    /// Whether `full_page_writes` is on.
    pub full_page_writes: bool,
    /// `wal_level` as a number: 0 minimal, 1 replica, 2 logical. Only 17 and later store it; 0 before.
    pub wal_level: i32,
    /// Next transaction id, the epoch in its high half.
    pub next_xid: u64,
    /// Next oid.
    pub next_oid: u32,
    /// Next multixact.
    pub next_multi: u32,
    /// Where the next multixact's members begin.
    pub next_multi_offset: u32,
    /// Cluster-wide minimum of `datfrozenxid`.
    pub oldest_xid: u32,
    /// The database that holds it.
    pub oldest_xid_db: u32,
    /// Cluster-wide minimum of `datminmxid`.
    pub oldest_multi: u32,
    /// The database that holds it.
    pub oldest_multi_db: u32,
    /// When, in seconds since 1970.
    pub time: i64,
    /// Oldest transaction with a commit timestamp; 0 for none.
    pub oldest_commit_ts_xid: u32,
    /// Newest transaction with a commit timestamp; 0 for none.
    pub newest_commit_ts_xid: u32,
    /// Oldest transaction that was running; 0 in a shutdown checkpoint.
    pub oldest_active_xid: u32,
}

impl CheckPoint {
    /// Reads the struct from the beginning of `bytes`; what follows is ignored.
    pub fn decode(pg: PgMajor, bytes: &[u8]) -> Result<CheckPoint, Truncated> {
        let mut input = BytesIn::new(bytes);
        let redo = Lsn(input.u64_le()?);
        let tli = Tli(input.u32_le()?);
        let prev_tli = Tli(input.u32_le()?);
        let full_page_writes = input.u8()? != 0;
        input.skip(3)?;
        let wal_level = input.i32_le()?;
        let next_xid = input.u64_le()?;
        let next_oid = input.u32_le()?;
        let next_multi = input.u32_le()?;
        let next_multi_offset = input.u32_le()?;
        let oldest_xid = input.u32_le()?;
        let oldest_xid_db = input.u32_le()?;
        let oldest_multi = input.u32_le()?;
        let oldest_multi_db = input.u32_le()?;
        input.skip(4)?;
        let time = input.i64_le()?;
        let oldest_commit_ts_xid = input.u32_le()?;
        let newest_commit_ts_xid = input.u32_le()?;
        let oldest_active_xid = input.u32_le()?;
        input.skip(4)?;
        Ok(CheckPoint {
            redo,
            tli,
            prev_tli,
            full_page_writes,
            wal_level: if has_wal_level(pg) { wal_level } else { 0 },
            next_xid,
            next_oid,
            next_multi,
            next_multi_offset,
            oldest_xid,
            oldest_xid_db,
            oldest_multi,
            oldest_multi_db,
            time,
            oldest_commit_ts_xid,
            newest_commit_ts_xid,
            oldest_active_xid,
        })
    }

    /// The struct's bytes; padding is zero.
    pub fn encode(&self, pg: PgMajor) -> [u8; CHECKPOINT_SIZE] {
        let mut out = [0; CHECKPOINT_SIZE];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.redo.0.to_le_bytes());
        put(8, &self.tli.0.to_le_bytes());
        put(12, &self.prev_tli.0.to_le_bytes());
        put(16, &[u8::from(self.full_page_writes)]);
        if has_wal_level(pg) {
            put(20, &self.wal_level.to_le_bytes());
        }
        put(24, &self.next_xid.to_le_bytes());
        let words = [
            self.next_oid,
            self.next_multi,
            self.next_multi_offset,
            self.oldest_xid,
            self.oldest_xid_db,
            self.oldest_multi,
            self.oldest_multi_db,
        ];
        for (at, word) in (32..).step_by(4).zip(words) {
            put(at, &word.to_le_bytes());
        }
        put(64, &self.time.to_le_bytes());
        put(72, &self.oldest_commit_ts_xid.to_le_bytes());
        put(76, &self.newest_commit_ts_xid.to_le_bytes());
        put(80, &self.oldest_active_xid.to_le_bytes());
        out
    }
}

fn has_wal_level(pg: PgMajor) -> bool {
    pg >= PgMajor::V17
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_field_lies_where_c_puts_it() {
        let bytes: Vec<u8> = (0..88).collect();
        let found = CheckPoint::decode(PgMajor::V17, &bytes).unwrap();
        assert_eq!(found.redo, Lsn(0x0706_0504_0302_0100));
        assert_eq!(found.wal_level, 0x1716_1514);
        assert_eq!(found.next_xid, 0x1F1E_1D1C_1B1A_1918);
        assert_eq!(found.oldest_multi_db, 0x3B3A_3938);
        assert_eq!(found.time, 0x4746_4544_4342_4140);
        assert_eq!(found.oldest_active_xid, 0x5352_5150);
        assert_eq!(CheckPoint::decode(PgMajor::V16, &bytes).unwrap().wal_level, 0);
        assert!(CheckPoint::decode(PgMajor::V16, &bytes[..87]).is_err());
    }

    proptest! {
        #[test]
        fn bytes_round_trip_but_for_padding(mut bytes: [u8; CHECKPOINT_SIZE], fpw: bool) {
            bytes[16] = u8::from(fpw);
            bytes[17..20].fill(0);
            bytes[60..64].fill(0);
            bytes[84..88].fill(0);
            prop_assert_eq!(CheckPoint::decode(PgMajor::V18, &bytes).unwrap().encode(PgMajor::V18), bytes);
            bytes[20..24].fill(0);
            prop_assert_eq!(CheckPoint::decode(PgMajor::V14, &bytes).unwrap().encode(PgMajor::V14), bytes);
        }
    }
}
