//! A timeline as of one LSN becomes a tar of a data directory that looks cleanly shut down.
//!
//! The *full* backup is a whole cluster that stock Postgres starts at once. The trick is one fabricated WAL record: a shutdown checkpoint at
//! exactly that LSN ([`full_wal`]), and a control file that names it. Pages are reconstructed at the LSN, so nothing is left to recover. The
//! cluster is on a new Postgres timeline, whose history file carries a nonce: two restores of one LSN are told apart by it.
//!
//! The *base* backup is Neon's: what a compute that reads its pages from here starts from. It has no relations but unlogged ones.
//!
//! Reading order: [`cluster`] (what both have), [`full_wal`], [`settings`], [`full`]; [`base_wal`], [`base`].

pub mod base;
pub mod base_wal;
mod cluster;
pub mod full;
pub mod full_wal;
pub mod settings;

pub use base::{BaseBackupOptions, BaseBackupReport, PrevLsn};
pub use cluster::{BackupError, TarSink};
pub use full::{FullBackupOptions, FullBackupReport};
