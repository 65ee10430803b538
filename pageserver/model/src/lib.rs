//! The nouns of Palimpsest. Everything here is a plain value: no I/O, no clock, no tokio.
//!
//! Reading order: [`lsn`], [`id`], [`generation`], [`pg`], [`rel`], [`key`], [`layer_name`], [`time`].

pub mod generation;
pub mod id;
pub mod key;
pub mod layer_name;
pub mod lsn;
pub mod pg;
pub mod rel;
pub mod time;

pub use generation::Generation;
pub use id::{ShardIndex, TenantId, TenantShardId, TimelineId};
pub use key::{Key, KeyRange};
pub use layer_name::{LayerName, LayerObjectName};
pub use lsn::{Lsn, LsnRange};
pub use pg::{InvalidWalSegmentSize, PgMajor, RmgrId, Tli, WalSegmentSize};
pub use rel::{Fork, RelLocator, RelTag, SlruKind};
pub use time::PgTimestamp;

/// Bytes of one Postgres page, and of one block of a layer file.
pub const BLOCK_SIZE: usize = 8192;

/// Blocks of one relation segment file (1 GiB).
pub const RELATION_SEGMENT_BLOCKS: u32 = 131_072;

/// Pages of one SLRU segment file.
pub const SLRU_SEGMENT_PAGES: u32 = 32;
