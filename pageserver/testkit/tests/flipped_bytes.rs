//! The page comparison fails when any byte that Postgres itself compares is flipped.
//!
//! Which bytes Postgres ignores is written down here once more, by hand, from its masking rules: the test would be worth nothing if it asked the masks.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use codec::page::{self, Page};
use model::Fork;
use testkit::cluster_files::{PageKind, RelationFile, permanent_relations};
use testkit::page_compare::{Verdict, compare};
use testkit::postgres::{Postgres, PostgresConfig, Shutdown};

const TABLES: &str = "
    CREATE EXTENSION bloom;
    CREATE TABLE t (a int, b text, p point, r int[]);
    INSERT INTO t SELECT i, md5(i::text), point(i, i % 7), ARRAY[i, i % 10] FROM generate_series(1, 3000) i;
    CREATE INDEX ON t USING btree (a);
    CREATE INDEX ON t USING hash (b);
    CREATE INDEX ON t USING gin (r);
    CREATE INDEX ON t USING gist (p);
    CREATE INDEX ON t USING spgist (p);
    CREATE INDEX ON t USING brin (a);
    CREATE INDEX ON t USING bloom (a);
    CREATE SEQUENCE s;
    SELECT nextval('s');
    CHECKPOINT";

/// Pages of one kind that are looked at.
const PAGES: u32 = 4;

fn word(page: &Page, at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

/// Whether Postgres ignores all of this byte in its own comparison of a page of this kind.
fn is_ignored(kind: PageKind, page: &Page, at: usize) -> bool {
    let (lower, upper, special) = (word(page, 12), word(page, 14), word(page, 16));
    let header = at < 10 || (20..24).contains(&at) && !matches!(kind, PageKind::Sequence | PageKind::Generic);
    let hole = (lower..upper).contains(&at);
    header
        || hole
        || match kind {
            PageKind::Heap => in_ignored_tuple_part(page, lower, at),
            PageKind::Sequence => {
                (upper + 24..upper + 48).contains(&at) || in_ignored_tuple_part(page, lower, at)
            }
            PageKind::Btree => (8190..8192).contains(&at),
            PageKind::Gist => (special..special + 8).contains(&at),
            _ => false,
        }
}

/// Command id, high byte of the hint bits, and the padding behind a tuple.
fn in_ignored_tuple_part(page: &Page, lower: usize, at: usize) -> bool {
    (24..lower).step_by(4).any(|pointer| {
        let item =
            u32::from_le_bytes([page[pointer], page[pointer + 1], page[pointer + 2], page[pointer + 3]])
                as usize;
        let (start, length) = (item & 0x7FFF, item >> 17);
        let end = start + length;
        (start + 8..start + 12).contains(&at)
            || at == start + 21
            || (end..end.next_multiple_of(8)).contains(&at)
    })
}

fn check_page(kind: PageKind, block: u32, original: &Page) -> Result<usize> {
    let mut found = 0;
    for at in 0..original.len() {
        let mut flipped = *original;
        flipped[at] ^= 0xFF;
        // A page that no longer makes sense is a difference as well.
        let differs = !matches!(
            compare(kind, block, original, &flipped),
            Ok(Verdict::Same | Verdict::SameMasked | Verdict::Unlogged(_))
        );
        ensure!(
            differs || is_ignored(kind, original, at),
            "{kind:?} block {block}: a flipped byte at {at} (of value {:#04x}) goes unnoticed",
            original[at]
        );
        found += usize::from(differs);
    }
    Ok(found)
}

#[tokio::test]
async fn a_flipped_byte_of_any_kind_of_page_is_a_difference() -> Result<()> {
    let mut postgres = Postgres::start(&PostgresConfig::new(15)).await?;
    let client = postgres.connect("postgres").await?;
    client.batch_execute(TABLES).await?;
    drop(client);
    let relations = permanent_relations(&postgres).await?;
    postgres.stop(Shutdown::Fast).await?;

    let mut noticed: BTreeMap<PageKind, usize> = BTreeMap::new();
    for (locator, relation) in relations.iter().filter(|(_, relation)| relation.name.starts_with("postgres."))
    {
        let Some(file) = RelationFile::open(postgres.data_dir(), locator.fork(Fork::Main))? else { continue };
        let of_user = locator.rel >= 16384;
        if !of_user || noticed.get(&relation.kind).is_some_and(|count| *count > 40_000) {
            continue;
        }
        // Block 0 of SP-GiST caches what no record carries.
        let first = u32::from(relation.kind == PageKind::Spgist);
        for block in first..file.blocks().min(first + PAGES) {
            let bytes = file.read(block)?;
            let page: &Page = bytes.as_slice().try_into().context("a page of another size")?;
            if !page::is_new(page) {
                *noticed.entry(relation.kind).or_default() += check_page(relation.kind, block, page)?;
            }
        }
    }
    for kind in [
        PageKind::Heap,
        PageKind::Sequence,
        PageKind::Btree,
        PageKind::Hash,
        PageKind::Gin,
        PageKind::Gist,
        PageKind::Spgist,
        PageKind::Brin,
        PageKind::Generic,
    ] {
        let count = noticed.get(&kind).copied().unwrap_or_default();
        println!("{kind:?}: {count} flipped bytes noticed");
        ensure!(count > 50, "{kind:?}: only {count} flipped bytes were noticed");
    }
    Ok(())
}
