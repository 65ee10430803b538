//! Redo against Postgres itself: WAL of every major with the page that each record must produce (`wal_consistency_checking`).

use std::process::Command;

use anyhow::{Context, Result, ensure};
use testkit::{Postgres, PostgresConfig, Shutdown};

/// What makes WAL of every kind; each sets what is checked, since checking everything makes much WAL.
const SCRIPTS: [&str; 8] = ["heap", "btree", "hash", "gin", "gist", "spgist", "brin", "others"];

/// Kinds of records that the scripts must have made and compared, by the names that `pg_waldump` gives them; what is rarest of each.
const COMPARED: [&str; 24] = [
    "Heap/HOT_UPDATE",
    "Heap/LOCK",
    "Heap/HEAP_CONFIRM",
    "Heap/INPLACE",
    "Heap2/VISIBLE",
    "Heap2/MULTI_INSERT",
    "Heap2/LOCK_UPDATED",
    "Btree/SPLIT_L",
    "Btree/INSERT_META",
    "Btree/INSERT_POST",
    "Btree/DEDUP",
    "Btree/DELETE",
    "Btree/UNLINK_PAGE_META",
    "Hash/SQUEEZE_PAGE",
    "Hash/MOVE_PAGE_CONTENTS",
    "Gin/VACUUM_DATA_LEAF_PAGE",
    "Gin/DELETE_PAGE",
    "Gin/DELETE_LISTPAGE",
    "Gist/PAGE_SPLIT",
    "Gist/PAGE_DELETE",
    "SPGist/PICKSPLIT",
    "SPGist/VACUUM_REDIRECT",
    "BRIN/UPDATE",
    "Sequence/LOG",
];

async fn redo_equals_postgres(major: u32) -> Result<()> {
    let config = PostgresConfig::new(major)
        .set("full_page_writes", "off")
        .set("autovacuum", "off")
        .set("wal_keep_size", "2GB");
    let mut postgres = Postgres::start(&config).await?;
    for name in SCRIPTS {
        let source =
            testkit::source_dir(env!("CARGO_MANIFEST_DIR")).join(format!("../testkit/sql/redo/{name}.sql"));
        let script = postgres.home().join(format!("{name}.sql"));
        std::fs::copy(&source, &script).with_context(|| format!("cannot copy {}", source.display()))?;
        let script = script.to_str().context("the path is UTF-8")?;
        postgres.run_program("psql", &["-Xq", "-v", "ON_ERROR_STOP=1", "-f", script]).await?;
    }
    postgres.stop(Shutdown::Fast).await?;
    let output =
        Command::new(env!("CARGO_BIN_EXE_pagectl")).arg("redo-check").arg(postgres.wal_dir()).output()?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{table}");
    ensure!(output.status.success(), "{table}\n{}", String::from_utf8_lossy(&output.stderr));
    for kind in COMPARED {
        ensure!(compared(&table, kind) > 0, "no page was compared for {kind}:\n{table}");
    }
    ensure!(compared(&table, "all") > 50_000, "few pages were compared:\n{table}");
    Ok(())
}

/// The column "compared" of a kind's line.
fn compared(table: &str, kind: &str) -> u64 {
    const COLUMN: usize = 6;
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|columns| columns.first() == Some(&kind))
        .and_then(|columns| columns.get(COLUMN)?.parse().ok())
        .unwrap_or(0)
}

macro_rules! on_each_major {
    ($($name:ident: $major:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() -> Result<()> {
            redo_equals_postgres($major).await
        })*
    };
}

on_each_major! {
    redo_makes_the_pages_of_postgres_14: 14;
    redo_makes_the_pages_of_postgres_15: 15;
    redo_makes_the_pages_of_postgres_16: 16;
    redo_makes_the_pages_of_postgres_17: 17;
    redo_makes_the_pages_of_postgres_18: 18;
}
