//! What a key can belong to: relations and their forks, SLRUs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Oid of the tablespace under `base/`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// Oid of the tablespace under `global/`.
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// A fork of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "Postgres' own names")]
pub enum Fork {
    Main = 0,
    Fsm = 1,
    Vm = 2,
    Init = 3,
}

impl Fork {
    /// Every fork, in Postgres' order.
    pub const ALL: [Fork; 4] = [Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init];

    /// The fork with this number.
    pub fn from_number(number: u8) -> Option<Fork> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// What Postgres appends to the file name: empty for the main fork.
    pub fn suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::Fsm => "_fsm",
            Fork::Vm => "_vm",
            Fork::Init => "_init",
        }
    }
}

/// A relation as storage knows it (Postgres' `RelFileLocator`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelLocator {
    /// Tablespace oid.
    pub spc: u32,
    /// Database oid; 0 for shared relations.
    pub db: u32,
    /// Relation file number.
    pub rel: u32,
}

impl RelLocator {
    /// This relation's fork.
    pub fn fork(self, fork: Fork) -> RelTag {
        RelTag { spc: self.spc, db: self.db, rel: self.rel, fork }
    }
}

impl fmt::Display for RelLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.spc, self.db, self.rel)
    }
}

/// One fork of one relation: what has a size in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelTag {
    /// Tablespace oid.
    pub spc: u32,
    /// Database oid; 0 for shared relations.
    pub db: u32,
    /// Relation file number.
    pub rel: u32,
    /// Which fork.
    pub fork: Fork,
}

impl RelTag {
    /// The relation without its fork.
    pub fn locator(self) -> RelLocator {
        RelLocator { spc: self.spc, db: self.db, rel: self.rel }
    }
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.locator(), self.fork.suffix())
    }
}

/// A kind of SLRU ("simple least-recently-used" area of Postgres: fixed pages indexed by transaction numbers).
///
/// 0 to 2 are numbered as Neon numbers them; 3 is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "named after their directories")]
pub enum SlruKind {
    Clog = 0,
    MultiXactMembers = 1,
    MultiXactOffsets = 2,
    CommitTs = 3,
}

impl SlruKind {
    /// Every kind.
    pub const ALL: [SlruKind; 4] =
        [SlruKind::Clog, SlruKind::MultiXactMembers, SlruKind::MultiXactOffsets, SlruKind::CommitTs];

    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<SlruKind> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its directory under the data directory.
    pub fn directory(self) -> &'static str {
        match self {
            SlruKind::Clog => "pg_xact",
            SlruKind::MultiXactMembers => "pg_multixact/members",
            SlruKind::MultiXactOffsets => "pg_multixact/offsets",
            SlruKind::CommitTs => "pg_commit_ts",
        }
    }
}
