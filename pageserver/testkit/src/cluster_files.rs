//! The files of a stopped cluster, as the server left them: what pages are held against.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use model::{BLOCK_SIZE, Fork, RelLocator, RelTag, SlruKind};

use crate::postgres::{Postgres, query};

/// Blocks in a segment file of a relation.
const SEGMENT_BLOCKS: u32 = 131_072;
/// Pages in a segment file of an SLRU.
const SLRU_SEGMENT_PAGES: usize = 32;

/// What kind of pages a relation has: decides how two of them are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageKind {
    /// Tables, TOAST tables, materialized views.
    Heap,
    /// A sequence.
    Sequence,
    /// B-tree.
    Btree,
    /// Hash.
    Hash,
    /// GIN.
    Gin,
    /// `GiST`.
    Gist,
    /// SP-GiST.
    Spgist,
    /// BRIN.
    Brin,
    /// An extension's, logged generically.
    Generic,
}

/// A permanent relation as the catalog names it.
#[derive(Clone, Debug)]
pub struct Relation {
    /// `database.relation`, for messages.
    pub name: String,
    /// Its kind of pages.
    pub kind: PageKind,
}

/// Every permanent relation of every database that can be connected to, by where it lies.
pub async fn permanent_relations(postgres: &Postgres) -> Result<BTreeMap<RelLocator, Relation>> {
    let mut found = BTreeMap::new();
    let databases = postgres.sql("SELECT datname FROM pg_database WHERE datallowconn").await?;
    for database in databases.into_iter().filter_map(|row| row[0].clone()) {
        let client = postgres.connect(&database).await?;
        let rows = query(
            &client,
            "SELECT CASE WHEN relisshared THEN 1664 WHEN reltablespace = 0 THEN dattablespace ELSE reltablespace END,
                    CASE WHEN relisshared THEN 0 ELSE d.oid END, pg_relation_filenode(c.oid), relname, relkind, amname
             FROM pg_class c LEFT JOIN pg_am a ON a.oid = relam, pg_database d
             WHERE d.datname = current_database() AND relpersistence = 'p' AND pg_relation_filenode(c.oid) IS NOT NULL",
        )
        .await?;
        for row in rows {
            let cell = |n: usize| row[n].as_deref().unwrap_or_default();
            let kind = match (cell(4), cell(5)) {
                ("S", _) => PageKind::Sequence,
                ("i", "btree") => PageKind::Btree,
                ("i", "hash") => PageKind::Hash,
                ("i", "gin") => PageKind::Gin,
                ("i", "gist") => PageKind::Gist,
                ("i", "spgist") => PageKind::Spgist,
                ("i", "brin") => PageKind::Brin,
                ("i", _) => PageKind::Generic,
                _ => PageKind::Heap,
            };
            found.insert(
                RelLocator { spc: cell(0).parse()?, db: cell(1).parse()?, rel: cell(2).parse()? },
                Relation { name: format!("{database}.{}", cell(3)), kind },
            );
        }
    }
    Ok(found)
}

/// A relation fork's files, read block by block.
#[derive(Debug)]
pub struct RelationFile {
    segments: Vec<std::fs::File>,
    blocks: u32,
}

impl RelationFile {
    /// Opens a fork of a relation of the cluster in `data`; `None` where it has no file.
    pub fn open(data: &Path, rel: RelTag) -> Result<Option<RelationFile>> {
        let first = path_of(data, rel)?;
        let mut segments = Vec::new();
        let mut blocks = 0;
        loop {
            let path = if segments.is_empty() {
                first.clone()
            } else {
                PathBuf::from(format!("{}.{}", first.display(), segments.len()))
            };
            let Ok(file) = std::fs::File::open(&path) else { break };
            let length = file.metadata()?.len() / BLOCK_SIZE as u64;
            blocks += length as u32;
            segments.push(file);
            if length < u64::from(SEGMENT_BLOCKS) {
                break;
            }
        }
        Ok((!segments.is_empty()).then_some(RelationFile { segments, blocks }))
    }

    /// Size in blocks.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// One block.
    pub fn read(&self, block: u32) -> Result<Vec<u8>> {
        let file = self.segments.get((block / SEGMENT_BLOCKS) as usize).context("no such segment")?;
        let mut page = vec![0; BLOCK_SIZE];
        file.read_exact_at(&mut page, u64::from(block % SEGMENT_BLOCKS) * BLOCK_SIZE as u64)?;
        Ok(page)
    }
}

fn path_of(data: &Path, rel: RelTag) -> Result<PathBuf> {
    let name = format!("{}{}", rel.rel, rel.fork.suffix());
    Ok(match rel.spc {
        model::rel::GLOBAL_TABLESPACE => data.join("global").join(name),
        model::rel::DEFAULT_TABLESPACE => data.join("base").join(rel.db.to_string()).join(name),
        spc => {
            let space = data.join("pg_tblspc").join(spc.to_string());
            let version = std::fs::read_dir(&space)
                .with_context(|| format!("no tablespace at {}", space.display()))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("PG_")))
                .context("a tablespace without a directory of this version")?;
            version.join(rel.db.to_string()).join(name)
        }
    })
}

/// The forks that WAL fully describes: all but the free-space map.
pub const LOGGED_FORKS: [Fork; 3] = [Fork::Main, Fork::Vm, Fork::Init];

/// The pages of every SLRU segment in the cluster's directory, by segment number.
pub fn slru_segments(data: &Path, kind: SlruKind) -> Result<BTreeMap<u32, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(data.join(kind.directory()))? {
        let entry = entry?;
        if let Ok(number) = u32::from_str_radix(&entry.file_name().to_string_lossy(), 16) {
            let bytes = std::fs::read(entry.path())?;
            anyhow::ensure!(
                bytes.len() <= SLRU_SEGMENT_PAGES * BLOCK_SIZE,
                "{} is too long",
                entry.path().display()
            );
            found.insert(number, bytes);
        }
    }
    Ok(found)
}
