//! A timeline as of one LSN becomes a tar of a cleanly shut down cluster, which stock Postgres starts at once.
//!
//! The trick is one fabricated WAL record: a shutdown checkpoint at exactly that LSN ([`wal`]), and a control file that names it. Pages are
//! reconstructed at the LSN, so nothing is left to recover. The cluster is on a new Postgres timeline, whose history file carries a nonce:
//! two restores of one LSN are told apart by it.
//!
//! Reading order: [`wal`], [`settings`], [`stream`].

pub mod settings;
pub mod stream;
pub mod wal;

pub use stream::{FullBackupError, FullBackupOptions, FullBackupReport, TarSink, write};
