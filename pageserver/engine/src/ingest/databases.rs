//! Databases: their directory, and copying or dropping one whole.

use std::ops::Range;

use codec::directory::DbDirectory;
use codec::page::ZERO_PAGE;
use codec::value::Value;
use model::{BLOCK_SIZE, Key, Lsn, RelTag};

use super::{At, Ingest, IngestError, Latest, Part, get, push_zero, stored};
use crate::as_of::ReadError;
use crate::changes::Changes;

/// Which databases are in which tablespaces.
#[derive(Debug)]
pub(super) struct Databases {
    directory: DbDirectory,
    is_changed: bool,
}

impl Databases {
    pub(super) async fn load(latest: &impl Latest) -> Result<Databases, IngestError> {
        let at = At { start: Lsn::INVALID, end: Lsn::INVALID };
        let directory = match get(latest, Key::DB_DIRECTORY, at).await? {
            None => DbDirectory::default(),
            Some(bytes) => DbDirectory::decode(&bytes)
                .map_err(|problem| stored("database directory", Key::DB_DIRECTORY, &problem))?,
        };
        Ok(Databases { directory, is_changed: false })
    }

    /// A database has files in a tablespace.
    pub(super) fn ensure(&mut self, spc: u32, db: u32) {
        self.directory.databases.entry((spc, db)).or_insert_with(|| {
            self.is_changed = true;
            false
        });
    }

    /// A database's relation map was written.
    pub(super) fn has_relation_map(&mut self, spc: u32, db: u32) {
        self.is_changed |= self.directory.databases.insert((spc, db), true) != Some(true);
    }

    fn remove(&mut self, spc: u32, db: u32) {
        self.is_changed |= self.directory.databases.remove(&(spc, db)).is_some();
    }

    pub(super) fn push_changed(&mut self, changes: &mut Changes, lsn: Lsn) {
        if std::mem::take(&mut self.is_changed) {
            changes.push(Key::DB_DIRECTORY, lsn, &Value::Image(&self.directory.encode()));
        }
    }
}

impl Ingest {
    /// A database's directory in a tablespace is removed, with all its relations.
    pub(super) async fn drop_database(
        &mut self,
        spc: u32,
        db: u32,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        self.remove_all(spc, db, latest).await?;
        if self.databases.directory.databases.get(&(spc, db)).copied().unwrap_or(false) {
            changes.push(Key::relation_map(spc, db), self.at.end, &Value::Image(&[]));
        }
        self.databases.remove(spc, db);
        Ok(())
    }

    /// A tablespace is removed, and with it what directories databases still had there.
    pub(super) async fn drop_databases_in(
        &mut self,
        spc: u32,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let within = (spc, 0)..=(spc, u32::MAX);
        let dbs: Vec<u32> =
            self.databases.directory.databases.range(within).map(|((_, db), _)| *db).collect();
        for db in dbs {
            self.drop_database(spc, db, changes, latest).await?;
        }
        Ok(())
    }

    /// A database's directory is copied as it is: every file of `source` (tablespace, database) is one of `target` from now on. What
    /// `target` had before is gone. Pages are copied in parts.
    pub(super) async fn copy_database(
        &mut self,
        source: (u32, u32),
        target: (u32, u32),
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        self.remove_all(target.0, target.1, latest).await?;
        self.databases.ensure(target.0, target.1);
        if let Some(map) = get(latest, Key::relation_map(source.0, source.1), self.at).await? {
            self.databases.has_relation_map(target.0, target.1);
            changes.push(Key::relation_map(target.0, target.1), self.at.end, &Value::Image(&map));
        }
        let sources = self.entries(Key::rel_directory_range(source.0, source.1), latest).await?;
        self.learn_sizes(&sources, latest).await?;
        for from in sources {
            let Some(size) = self.size(from, latest).await? else { continue };
            let to = RelTag { spc: target.0, db: target.1, ..from };
            self.size(to, latest).await?;
            self.set_size(to, Some(size));
            if size > 0 {
                self.unfinished.push(Part::Copy { from, to, blocks: 0..size });
            }
        }
        // Parts are taken from the end.
        self.unfinished.reverse();
        Ok(())
    }

    /// Pushes pages of one relation as pages of another.
    pub(super) async fn copy_pages(
        &mut self,
        from: RelTag,
        to: RelTag,
        blocks: Range<u32>,
        changes: &mut Changes,
        latest: &impl Latest,
    ) -> Result<(), IngestError> {
        let At { start: at, end } = self.at;
        let pages = match latest.pages(from, blocks.clone()).await {
            // Pages of an extension's resource manager cannot be made here; the others of the relation can.
            Err(ReadError::Redo { .. }) if blocks.len() > 1 => {
                for block in blocks {
                    Box::pin(self.copy_pages(from, to, block..block + 1, changes, latest)).await?;
                }
                return Ok(());
            }
            Err(source @ ReadError::Redo { .. }) => {
                let source: &dyn std::error::Error = &source;
                tracing::warn!(error = source, %from, %to, block = blocks.start, "a page cannot be copied with its database");
                return Ok(());
            }
            pages => pages.map_err(|source| IngestError::Read { at, source })?,
        };
        if pages.len() != blocks.len() * BLOCK_SIZE {
            let problem = format!("{} bytes were read for {} pages", pages.len(), blocks.len());
            return Err(stored("relation", Key::rel_block(from, blocks.start), &problem));
        }
        for (block, page) in blocks.zip(pages.chunks_exact(BLOCK_SIZE)) {
            let key = Key::rel_block(to, block);
            if page == ZERO_PAGE {
                push_zero(changes, key, end);
            } else {
                changes.push(key, end, &Value::Image(page));
            }
        }
        Ok(())
    }
}
