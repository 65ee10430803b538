//! A base backup becomes image layers.
//!
//! Files come in the archive's order and are passed on as they come: pages of a big relation go straight into layers of exactly their
//! blocks, everything small is gathered in [`batch`], sizes and directories follow at the end. Memory is bounded by
//! [`ImportOptions::buffer_bytes`] plus some two hundred bytes per file, whatever the size of the database; no disk is used here.
//!
//! Two kinds of source: a *backup* is taken from a running cluster; its files are of different moments, and only WAL from its start to its
//! end makes them agree. A *stopped* cluster agrees with itself. What is imported, what is left out and why: [`path`].
//!
//! Reading order: [`path`], [`layer_out`], [`batch`], [`importer`], [`directory`] (a data directory on disk), [`archives`] (archives
//! there), [`stored`] (either, with its WAL).

pub mod archives;
pub mod batch;
pub mod directory;
pub mod importer;
pub mod layer_out;
pub mod path;
pub mod stored;

pub use importer::{ImportError, ImportOptions, ImportProgress, ImportReport, Importer, SourceKind};
pub use layer_out::{LayerOut, LayerOutError};
