//! Relation files (`storage_xlog.h`).

use model::{Fork, RelLocator, RelTag, RmgrId};

use crate::wal::payload::{Fields, PayloadError, kind_of, unknown_kind};
use crate::wal::record::Record;

/// A record about relation files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmgrRecord {
    /// The fork's file exists from now on, empty if it was not there.
    Create(RelTag),
    /// Blocks from `blocks` on are gone.
    Truncate(Truncate),
}

/// Which forks are cut, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// Which relation.
    pub rel: RelLocator,
    /// New size of the main fork in blocks; the sizes of the other forks follow from it.
    pub blocks: u32,
    /// The main fork is cut.
    pub main: bool,
    /// The visibility map is cut.
    pub vm: bool,
    /// The free space map is cut.
    pub fsm: bool,
}

impl SmgrRecord {
    /// Parses a record of resource manager [`RmgrId::SMGR`].
    pub fn parse(record: &Record<'_>) -> Result<SmgrRecord, PayloadError> {
        match kind_of(record, RmgrId::SMGR)? {
            0x10 => {
                let mut fields = Fields::of(record, "relation create");
                let rel = fields.locator()?;
                let number = fields.i32()?;
                let fork = u8::try_from(number)
                    .ok()
                    .and_then(Fork::from_number)
                    .ok_or_else(|| fields.field("fork", i64::from(number), "0 to 3"))?;
                fields.end(SmgrRecord::Create(rel.fork(fork)))
            }
            0x20 => {
                let mut fields = Fields::of(record, "relation truncate");
                let blocks = fields.u32()?;
                let rel = fields.locator()?;
                let flags = fields.i32()?;
                if !(0..=7).contains(&flags) {
                    return Err(fields.field("flags", i64::from(flags), "only known ones"));
                }
                let has = |flag| flags & flag != 0;
                fields.end(SmgrRecord::Truncate(Truncate {
                    rel,
                    blocks,
                    main: has(1),
                    vm: has(2),
                    fsm: has(4),
                }))
            }
            _ => Err(unknown_kind(record)),
        }
    }
}
