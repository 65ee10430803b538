//! Timelines of clusters that no Postgres wrote, for tests, benches and simulations: the least that a base holds, the index that names it, and WAL that goes on
//! from there.

use std::time::Duration;

use codec::checkpoint::CheckPoint;
use codec::control::ControlFile;
use codec::index_part::{IndexPart, TimelineMetadata, Unknown};
use codec::wal::build::WalBuilder;
use model::{Key, LayerName, Lsn, PgMajor, TimelineId, Tli, WalSegmentSize};

use crate::claim::Claim;
use crate::index_keeper::{IndexKeeper, metadata_of, vanilla_extension};
use crate::index_store::PutIndexError;
use crate::layer_write::{LayerStore, WriteLayerError};
use crate::timeline::TimelinePolicy;
use crate::wal_keeper::WalKeeping;

/// A cluster whose history begins at an LSN, on Postgres' first timeline.
#[derive(Clone, Copy, Debug)]
pub struct SyntheticCluster {
    /// Its major.
    pub pg: PgMajor,
    /// Its name for itself.
    pub system_identifier: u64,
    /// Bytes of its files of WAL.
    pub wal_segment_size: WalSegmentSize,
    /// Where its history begins.
    pub base: Lsn,
}

/// Why a timeline could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MakeError {
    #[error(transparent)]
    Layer(#[from] WriteLayerError),
    #[error(transparent)]
    Index(#[from] PutIndexError),
}

impl SyntheticCluster {
    /// One of Postgres 17.
    pub const fn at(base: Lsn) -> SyntheticCluster {
        SyntheticCluster {
            pg: PgMajor::V17,
            system_identifier: 7_000_000_000_000_000_001,
            wal_segment_size: WalSegmentSize::DEFAULT,
            base,
        }
    }

    /// Its control file.
    pub fn control_file(&self) -> ControlFile {
        ControlFile::new(self.pg, self.system_identifier, self.wal_segment_size)
    }

    /// The checkpoint at its beginning.
    pub fn checkpoint(&self) -> CheckPoint {
        CheckPoint {
            redo: self.base,
            tli: Tli(1),
            prev_tli: Tli(1),
            full_page_writes: true,
            wal_level: 1,
            next_xid: 1000,
            next_oid: 20_000,
            next_multi: 1,
            next_multi_offset: 0,
            oldest_xid: 3,
            oldest_xid_db: 1,
            oldest_multi: 1,
            oldest_multi_db: 1,
            time: 0,
            oldest_commit_ts_xid: 0,
            newest_commit_ts_xid: 0,
            oldest_active_xid: 0,
        }
    }

    /// What every base holds: control file and checkpoint, as values of their keys.
    pub fn counters(&self) -> [(Key, Vec<u8>); 2] {
        [
            (Key::CONTROL_FILE, self.control_file().encode()),
            (Key::CHECKPOINT, self.checkpoint().encode(self.pg).to_vec()),
        ]
    }

    /// The index of a timeline that begins with it, without layers.
    pub fn index(&self) -> IndexPart {
        let metadata = TimelineMetadata {
            disk_consistent_lsn: self.base,
            prev_record_lsn: None,
            ancestor_timeline: None,
            ancestor_lsn: Lsn(0),
            latest_gc_cutoff_lsn: self.base,
            initdb_lsn: self.base,
            pg_version: self.pg,
            unknown: Unknown::new(),
        };
        let mut extension =
            vanilla_extension(self.system_identifier, self.wal_segment_size, false, Tli(1), self.base);
        extension.readable_from = self.base;
        IndexPart::new(metadata, Some(extension))
    }

    /// The WAL that it writes from its beginning on.
    pub fn wal(&self) -> WalBuilder {
        self.wal_from(self.base, Lsn(0))
    }

    /// The WAL that it writes from an LSN on, behind a record at `prev`.
    pub fn wal_from(&self, from: Lsn, prev: Lsn) -> WalBuilder {
        WalBuilder::new(self.pg, self.wal_segment_size, self.system_identifier, Tli(1), from, prev)
    }

    /// Puts a timeline into the bucket whose base is one image of [`SyntheticCluster::counters`] and these values, in any order.
    pub async fn put(
        &self,
        store: &LayerStore,
        claim: Claim,
        timeline: TimelineId,
        values: impl IntoIterator<Item = (Key, Vec<u8>)>,
    ) -> Result<(), MakeError> {
        let mut values: Vec<_> = values.into_iter().chain(self.counters()).collect();
        values.sort();
        let mut image = store.begin_image()?;
        for (key, value) in &values {
            image.push(*key, value)?;
        }
        let written = store.finish_image(image, LayerName::Image { keys: Key::ALL, lsn: self.base }).await?;
        let mut part = self.index();
        part.layer_metadata.insert(written.finished.name.clone(), metadata_of(&written, &claim, None));
        IndexKeeper::create(claim, timeline, part).await?;
        Ok(())
    }
}

/// Nothing happens because of time: what is stored or listed was asked for.
pub fn only_when_asked() -> TimelinePolicy {
    let never = Duration::from_hours(1);
    let wal =
        WalKeeping { seal_age: never, idle_seal_age: never, validate_every: never, ..WalKeeping::default() };
    TimelinePolicy { wal, ..TimelinePolicy::default() }
}
