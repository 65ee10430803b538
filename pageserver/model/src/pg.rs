//! Which Postgres: majors, resource managers, Postgres timelines, WAL segments.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Lsn;

/// A supported major version of Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum PgMajor {
    V14 = 14,
    V15 = 15,
    V16 = 16,
    V17 = 17,
    V18 = 18,
}

/// A major version that is not 14 to 18.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Postgres {0} is not supported (14 to 18 are)")]
pub struct UnsupportedPgMajor(pub String);

impl PgMajor {
    /// Every supported major, oldest first.
    pub const ALL: [PgMajor; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The number: 14 to 18.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The magic of every WAL page header (`XLOG_PAGE_MAGIC`).
    pub fn wal_magic(self) -> u16 {
        match self {
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }

    /// The major whose WAL page headers carry this magic.
    pub fn from_wal_magic(magic: u16) -> Option<PgMajor> {
        Self::ALL.into_iter().find(|major| major.wal_magic() == magic)
    }
}

impl TryFrom<u32> for PgMajor {
    type Error = UnsupportedPgMajor;

    /// From `15`, or from a `server_version_num` such as `150018`.
    fn try_from(number: u32) -> Result<Self, Self::Error> {
        let major = if number >= 10_000 { number / 10_000 } else { number };
        Self::ALL
            .into_iter()
            .find(|known| known.number() == major)
            .ok_or_else(|| UnsupportedPgMajor(number.to_string()))
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl FromStr for PgMajor {
    type Err = UnsupportedPgMajor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim().parse::<u32>().map_err(|_| UnsupportedPgMajor(text.into()))?.try_into()
    }
}

impl Serialize for PgMajor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.number())
    }
}

impl<'de> Deserialize<'de> for PgMajor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u32::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// Who wrote a WAL record and knows how to redo it. Ids are the same in 14 to 18; 128 and above are extensions'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RmgrId(pub u8);

#[allow(missing_docs, reason = "Postgres' own names, from rmgrlist.h")]
impl RmgrId {
    pub const XLOG: RmgrId = RmgrId(0);
    pub const XACT: RmgrId = RmgrId(1);
    pub const SMGR: RmgrId = RmgrId(2);
    pub const CLOG: RmgrId = RmgrId(3);
    pub const DBASE: RmgrId = RmgrId(4);
    pub const TBLSPC: RmgrId = RmgrId(5);
    pub const MULTIXACT: RmgrId = RmgrId(6);
    pub const RELMAP: RmgrId = RmgrId(7);
    pub const STANDBY: RmgrId = RmgrId(8);
    pub const HEAP2: RmgrId = RmgrId(9);
    pub const HEAP: RmgrId = RmgrId(10);
    pub const BTREE: RmgrId = RmgrId(11);
    pub const HASH: RmgrId = RmgrId(12);
    pub const GIN: RmgrId = RmgrId(13);
    pub const GIST: RmgrId = RmgrId(14);
    pub const SEQ: RmgrId = RmgrId(15);
    pub const SPGIST: RmgrId = RmgrId(16);
    pub const BRIN: RmgrId = RmgrId(17);
    pub const COMMIT_TS: RmgrId = RmgrId(18);
    pub const REPL_ORIGIN: RmgrId = RmgrId(19);
    pub const GENERIC: RmgrId = RmgrId(20);
    pub const LOGICAL_MSG: RmgrId = RmgrId(21);

    /// Names as `pg_waldump` prints them, by id.
    const NAMES: [&'static str; 22] = [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
    ];

    /// Whether an extension registered it.
    pub fn is_custom(self) -> bool {
        self.0 >= 128
    }

    /// Whether Postgres ships it.
    pub fn is_builtin(self) -> bool {
        usize::from(self.0) < Self::NAMES.len()
    }
}

impl fmt::Display for RmgrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None if self.is_custom() => write!(f, "custom{:03}", self.0),
            None => write!(f, "unknown{:03}", self.0),
        }
    }
}

/// A Postgres timeline (`TimeLineID`): counts the promotions in a cluster's history. Not one of our timelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tli(pub u32);

impl fmt::Display for Tli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes of one WAL segment file: a power of two from 1 MiB to 1 GiB, chosen at `initdb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct WalSegmentSize(u32);

/// A number that no cluster can have as its segment size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a WAL segment size (a power of two from 1 MiB to 1 GiB)")]
pub struct InvalidWalSegmentSize(pub u64);

impl WalSegmentSize {
    /// What `initdb` chooses unless told otherwise: 16 MiB.
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);

    /// Checks a size that came from outside.
    pub fn new(bytes: u64) -> Result<Self, InvalidWalSegmentSize> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(WalSegmentSize(bytes as u32))
        } else {
            Err(InvalidWalSegmentSize(bytes))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// The number of the segment that holds `lsn`.
    pub fn number(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// Where in its segment `lsn` lies.
    pub fn offset(self, lsn: Lsn) -> u64 {
        lsn.0 % self.bytes()
    }

    /// The first byte of the segment that holds `lsn`.
    pub fn start(self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 - self.offset(lsn))
    }

    /// The file name of the segment that holds `lsn` (`XLogFileName`): 24 hexadecimal digits.
    pub fn file_name(self, tli: Tli, lsn: Lsn) -> String {
        let per_id = (1u64 << 32) / self.bytes();
        let number = self.number(lsn);
        format!("{:08X}{:08X}{:08X}", tli.0, number / per_id, number % per_id)
    }
}

impl<'de> Deserialize<'de> for WalSegmentSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_come_from_numbers_of_either_form() {
        assert_eq!(PgMajor::try_from(150_018), Ok(PgMajor::V15));
        assert_eq!("18\n".parse(), Ok(PgMajor::V18));
        assert!(PgMajor::try_from(13).is_err());
        assert!(PgMajor::try_from(190_000).is_err());
    }

    #[test]
    fn segments_are_named_as_postgres_names_them() {
        let lsn: Lsn = "1/6B374D48".parse().unwrap();
        assert_eq!(WalSegmentSize::DEFAULT.file_name(Tli(3), lsn), "00000003000000010000006B");
        assert_eq!(WalSegmentSize::new(1 << 20).unwrap().file_name(Tli(1), lsn), "0000000100000001000006B3");
        assert!(WalSegmentSize::new(3 << 20).is_err());
        assert!(WalSegmentSize::new(1 << 19).is_err());
    }
}
