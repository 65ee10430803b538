//! Pages of a primary's own files at a quiet moment, to be found again as of then, whatever became of layers since.

use anyhow::{Context, Result, ensure};
use codec::page::Page;
use model::{BLOCK_SIZE, Fork, Lsn, RelLocator, RelTag, TenantId, TimelineId};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::cluster_files::{PageKind, RelationFile};
use crate::page_compare::{Verdict, compare};
use crate::pageserver::Pageserver;
use crate::postgres::Postgres;

/// What some pages were as of an LSN.
#[derive(Debug)]
pub struct Witness {
    /// As of when.
    pub lsn: Lsn,
    pages: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    rel: RelTag,
    kind: PageKind,
    block: u32,
    bytes: Box<Page>,
}

/// A relation of the primary's database `postgres`, whose pages are looked at.
pub async fn relation(postgres: &Postgres, name: &str, kind: PageKind) -> Result<(RelTag, PageKind)> {
    let number = format!("SELECT pg_relation_filenode('{name}')");
    let db = "SELECT oid FROM pg_database WHERE datname = current_database()";
    let locator = RelLocator {
        spc: model::rel::DEFAULT_TABLESPACE,
        db: postgres.value(db).await?.parse()?,
        rel: postgres.value(&number).await?.parse()?,
    };
    Ok((locator.fork(Fork::Main), kind))
}

impl Witness {
    /// Takes up to `count` pages of each relation from the primary's files. Nobody writes to the primary meanwhile.
    pub async fn take(
        postgres: &Postgres,
        relations: &[(RelTag, PageKind)],
        count: usize,
        random: &mut StdRng,
    ) -> Result<Witness> {
        let lsn = postgres.value("SELECT pg_current_wal_insert_lsn()").await?.parse()?;
        // Whatever it writes besides is no change of a page that counts; and it is WAL that ends beyond that LSN.
        postgres.sql("CHECKPOINT").await?;
        let mut pages = Vec::new();
        for (rel, kind) in relations {
            let file = RelationFile::open(postgres.data_dir(), *rel)?.context("it has no file")?;
            let all = file.blocks();
            for _ in 0..count.min(all as usize) {
                let block = random.random_range(0..all);
                let bytes = file.read(block)?.try_into().ok().context("no whole page")?;
                pages.push(Seen { rel: *rel, kind: *kind, block, bytes: Box::new(bytes) });
            }
        }
        Ok(Witness { lsn, pages })
    }

    /// Fails unless a timeline has what was seen, as of then; at most `count` pages are asked for, from a random one on.
    pub async fn check(
        &self,
        server: &Pageserver,
        (tenant, timeline): (TenantId, TimelineId),
        count: usize,
        random: &mut StdRng,
    ) -> Result<()> {
        let what = || format!("timeline {timeline} at {}", self.lsn);
        let mut client = server.pages(tenant, timeline).await.with_context(what)?;
        let from = random.random_range(0..self.pages.len());
        for seen in self.pages.iter().cycle().skip(from).take(count.min(self.pages.len())) {
            let Seen { rel, kind, block, bytes } = seen;
            let size = client.nblocks(*rel, self.lsn).await.with_context(what)?;
            let ours: Page = if *block < size {
                let page = client.page(*rel, *block, self.lsn).await.with_context(what)?;
                page.try_into().ok().context("no whole page")?
            } else {
                [0; BLOCK_SIZE]
            };
            let verdict = compare(*kind, *block, bytes, &ours)?;
            let (theirs, now) = (codec::page::lsn(bytes), codec::page::lsn(&ours));
            ensure!(
                verdict != Verdict::Different,
                "{}: {rel} block {block} of {size} is not what the primary had: LSN {now}, not {theirs}",
                what()
            );
        }
        Ok(())
    }
}
