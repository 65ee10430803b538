//! What a busy, untidy database does, from a seed: every index kind, DDL, vacuum, truncation, multixacts,
//! subtransactions, prepared transactions, TOAST, sequences, databases made both ways, a tablespace.
//!
//! [`Workload::record`] asks questions whose answers do not depend on plans, hints or time, and says as of which LSN
//! they hold: what a restore at that LSN must answer.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use model::Lsn;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::postgres::{Postgres, query};

/// A seeded run of work against one server.
pub struct Workload<'a> {
    postgres: &'a Postgres,
    random: StdRng,
    scale: u32,
    round: u32,
    /// Databases made by the workload that still exist.
    databases: Vec<String>,
    /// Prepared transactions that still wait.
    prepared: Vec<String>,
}

/// What the server answered as of an LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Everything the answers depend on ends at or before this place; nothing logical follows before the next step.
    pub lsn: Lsn,
    /// One line a question.
    pub answers: String,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Accounts,
    Indexes,
    Truncate,
    MultiXact,
    Subtransactions,
    Prepared,
    Toast,
    Sequences,
    Definitions,
    Databases,
    Tablespaces,
    Partitions,
    LargeObjects,
    Freeze,
    Checkpoint,
    SwitchWal,
}

const STEPS: [Step; 16] = [
    Step::Accounts,
    Step::Indexes,
    Step::Truncate,
    Step::MultiXact,
    Step::Subtransactions,
    Step::Prepared,
    Step::Toast,
    Step::Sequences,
    Step::Definitions,
    Step::Databases,
    Step::Tablespaces,
    Step::Partitions,
    Step::LargeObjects,
    Step::Freeze,
    Step::Checkpoint,
    Step::SwitchWal,
];

/// Tables with one index each, of every kind: name, index method and what it indexes, a question the index answers.
const INDEXED: [(&str, &str, &str); 15] = [
    ("btree_unique", "btree (n)", "n BETWEEN 100 AND 200"),
    ("btree_dup", "btree ((n % 7))", "n % 7 = 3"),
    ("btree_text", "btree (t text_pattern_ops)", "t LIKE 'a%'"),
    ("btree_desc", "btree (p DESC, n) INCLUDE (t)", "p > 50000"),
    ("hash_int", "hash (n)", "n = 77"),
    ("hash_dup", "hash ((n % 5))", "(n % 5) = 2"),
    ("gin_fast", "gin (a) WITH (fastupdate = on, gin_pending_list_limit = 64)", "a @> ARRAY[5]"),
    ("gin_slow", "gin (a) WITH (fastupdate = off)", "a && ARRAY[3, 9]"),
    ("gin_json", "gin (j jsonb_path_ops)", "j @> '{\"k\": 4}'"),
    ("gist_box", "gist (b)", "b && box(point(0, 0), point(300, 300))"),
    ("gist_range", "gist (r)", "r && int4range(50, 90)"),
    ("spgist_text", "spgist (t)", "t >= 'c' AND t < 'd'"),
    ("spgist_point", "spgist (q)", "q <@ box(point(0, 0), point(300, 300))"),
    ("brin_minmax", "brin (p) WITH (pages_per_range = 2, autosummarize = on)", "p BETWEEN 1000 AND 5000"),
    ("bloom_ints", "bloom (n, p)", "n = 42"),
];

impl<'a> Workload<'a> {
    /// A workload over `postgres`. `scale` 1 writes some ten megabytes of data a round.
    pub fn new(postgres: &'a Postgres, seed: u64, scale: u32) -> Workload<'a> {
        Workload {
            postgres,
            random: StdRng::seed_from_u64(seed),
            scale,
            round: 0,
            databases: Vec::new(),
            prepared: Vec::new(),
        }
    }

    /// Makes the tables.
    pub async fn prepare(&mut self) -> Result<()> {
        let space = self.postgres.make_dir("space one")?;
        self.postgres.sql(&format!("CREATE TABLESPACE one LOCATION '{}'", space.display())).await?;
        let mut sql = String::from(
            "CREATE EXTENSION bloom; CREATE EXTENSION amcheck;
             CREATE TABLE branches (bid int PRIMARY KEY, balance int) WITH (fillfactor = 10);
             CREATE TABLE tellers (tid int PRIMARY KEY, bid int, balance int) WITH (fillfactor = 10);
             CREATE TABLE accounts (aid int PRIMARY KEY, bid int, balance int, filler char(84)) WITH (fillfactor = 90);
             CREATE TABLE history (tid int, bid int, aid int, delta int, at int);
             CREATE TABLE shrinking (n int, filler text);
             CREATE TABLE locked (n int PRIMARY KEY, v int);
             CREATE TABLE nested (n int, level int);
             CREATE TABLE promised (gid text, n int);
             CREATE TABLE toasted (n int PRIMARY KEY, body text, packed text);
             ALTER TABLE toasted ALTER body SET STORAGE external;
             CREATE SEQUENCE tickets; CREATE SEQUENCE steps INCREMENT 10 CACHE 5;
             CREATE TABLE ticketed (id bigserial PRIMARY KEY, n int);
             CREATE UNLOGGED TABLE forgotten (n int PRIMARY KEY, t text);
             CREATE INDEX ON forgotten USING hash (n); CREATE INDEX ON forgotten USING gist (box(point(n, n), point(n, n)));
             CREATE TABLE abroad (n int PRIMARY KEY USING INDEX TABLESPACE one, t text) TABLESPACE one;
             CREATE TABLE parted (n int, t text) PARTITION BY RANGE (n);
             CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (1000);
             CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (1000) TO (1000000);
             CREATE TABLE big (id oid);
             CREATE MATERIALIZED VIEW seen AS SELECT bid, count(*) AS c FROM history GROUP BY bid;",
        );
        for (name, method, _) in INDEXED {
            write!(
                sql,
                "CREATE TABLE {name} (n int, p int, t text, a int[], j jsonb, b box, q point, r int4range) WITH (autovacuum_enabled = {});
                 CREATE INDEX {name}_x ON {name} USING {method};",
                self.random.random_bool(0.5)
            )?;
        }
        let accounts = 2_000 * self.scale;
        write!(
            sql,
            "INSERT INTO branches SELECT g, 0 FROM generate_series(1, 5) g;
             INSERT INTO tellers SELECT g, g % 5 + 1, 0 FROM generate_series(1, 50) g;
             INSERT INTO accounts SELECT g, g % 5 + 1, 0, '' FROM generate_series(1, {accounts}) g;
             INSERT INTO locked SELECT g, 0 FROM generate_series(1, 500) g;
             INSERT INTO abroad SELECT g, repeat('x', g % 200) FROM generate_series(1, 1000) g;
             INSERT INTO forgotten SELECT g, 'gone' FROM generate_series(1, 500) g;"
        )?;
        for (name, _, _) in INDEXED {
            sql.push_str(&self.insert_indexed(name, 1_500));
        }
        self.postgres.sql(&sql).await.map(drop)
    }

    /// One round: every kind of step once, in an order of the seed's.
    pub async fn round(&mut self) -> Result<()> {
        self.round += 1;
        let mut steps = STEPS;
        steps.shuffle(&mut self.random);
        for step in steps {
            self.step(step).await.with_context(|| format!("round {}, {step:?}", self.round))?;
        }
        Ok(())
    }

    /// This many steps of the seed's choice.
    pub async fn some_steps(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.round += 1;
            let step = STEPS[self.random.random_range(0..STEPS.len())];
            self.step(step).await.with_context(|| format!("round {}, {step:?}", self.round))?;
        }
        Ok(())
    }

    /// A round without the steps that need directories outside the cluster, for a server with a standby.
    pub async fn quiet_round(&mut self) -> Result<()> {
        self.round += 1;
        for step in STEPS {
            if !matches!(step, Step::Tablespaces | Step::Databases) {
                self.step(step).await.with_context(|| format!("round {}, {step:?}", self.round))?;
            }
        }
        Ok(())
    }

    /// Asks everything and says as of which LSN. No step runs meanwhile.
    pub async fn record(&self) -> Result<Moment> {
        let answers = answers(self.postgres).await?;
        let lsn = self.postgres.flushed_lsn().await?.parse()?;
        Ok(Moment { lsn, answers })
    }

    async fn step(&mut self, step: Step) -> Result<()> {
        let scale = self.scale;
        let some = self.random.random_range(1..=1_000_000u32);
        let postgres = self.postgres;
        match step {
            Step::Accounts => self.accounts().await?,
            Step::Indexes => {
                for (name, _, _) in INDEXED {
                    let mut sql = self.insert_indexed(name, 400 * scale);
                    let modulus = self.random.random_range(3..9);
                    writeln!(
                        sql,
                        "UPDATE {name} SET p = p + 1, t = t || 'u', a = a || {modulus} WHERE n % {modulus} = 1;"
                    )?;
                    if self.random.random_bool(0.6) {
                        let from = self.random.random_range(0..2_000);
                        writeln!(sql, "DELETE FROM {name} WHERE n BETWEEN {from} AND {};", from + 700)?;
                    }
                    postgres.sql(&sql).await?;
                    // Reads that find dead entries mark them, which later deletions of index entries use.
                    postgres
                        .sql(&format!("SET enable_seqscan = off; SELECT count(*) FROM {name} WHERE n < 500"))
                        .await?;
                    if self.random.random_bool(0.6) {
                        postgres.sql(&format!("VACUUM {name}")).await?;
                    }
                }
                postgres.sql("SELECT brin_summarize_new_values('brin_minmax_x'); SELECT gin_clean_pending_list('gin_fast_x')").await?;
            }
            Step::Truncate => {
                let rows = 5_000 * scale;
                postgres
                    .sql(&format!(
                        "INSERT INTO shrinking SELECT g, repeat(md5(g::text), 3) FROM generate_series(1, {rows}) g;
                         DELETE FROM shrinking WHERE n > {}",
                        some % rows
                    ))
                    .await?;
                postgres.sql("VACUUM (TRUNCATE) shrinking").await?;
                if self.random.random_bool(0.4) {
                    postgres
                        .sql("BEGIN; TRUNCATE shrinking; INSERT INTO shrinking VALUES (1, 'after'); COMMIT; BEGIN; TRUNCATE nested; ROLLBACK")
                        .await?;
                }
            }
            Step::MultiXact => self.multixact().await?,
            Step::Subtransactions => {
                let mut sql = String::from("BEGIN;");
                for level in 0..self.random.random_range(70..200) {
                    write!(sql, "SAVEPOINT s{level}; INSERT INTO nested VALUES ({some}, {level});")?;
                    if self.random.random_bool(0.3) {
                        write!(sql, "ROLLBACK TO s{level};")?;
                    }
                }
                sql.push_str(if self.random.random_bool(0.8) { "COMMIT" } else { "ROLLBACK" });
                postgres.sql(&sql).await?;
                postgres
                    .sql(
                        "DO $$ BEGIN FOR i IN 1..300 LOOP BEGIN INSERT INTO nested VALUES (i, -1);
                         IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
                    )
                    .await?;
            }
            Step::Prepared => self.prepared().await?,
            Step::Toast => {
                postgres
                    .sql(&format!(
                        "INSERT INTO toasted SELECT g + {some} * 100, repeat(md5(g::text), 300 + g), repeat('squeeze', 2000 * g)
                         FROM generate_series(1, {}) g ON CONFLICT DO NOTHING;
                         UPDATE toasted SET body = body || md5(n::text) WHERE n % 3 = 0;
                         DELETE FROM toasted WHERE n % 7 = {};",
                        10 * scale,
                        some % 7
                    ))
                    .await?;
                postgres.sql("VACUUM toasted").await?;
            }
            Step::Sequences => {
                postgres
                    .sql(&format!(
                        "SELECT count(nextval('tickets')) FROM generate_series(1, {}); SELECT nextval('steps');
                         INSERT INTO ticketed (n) SELECT g FROM generate_series(1, 50) g; SELECT setval('steps', {some})",
                        some % 300 + 1
                    ))
                    .await?;
                if self.random.random_bool(0.3) {
                    postgres.sql("ALTER SEQUENCE steps RESTART; ALTER SEQUENCE tickets INCREMENT 3").await?;
                }
            }
            Step::Definitions => self.definitions(some).await?,
            Step::Databases => self.databases(some).await?,
            Step::Tablespaces => {
                let target = if self.random.random_bool(0.5) { "one" } else { "pg_default" };
                postgres
                    .sql(&format!(
                        "INSERT INTO abroad SELECT g + {some}, 'here' FROM generate_series(1, 200) g ON CONFLICT DO NOTHING;
                         ALTER TABLE abroad SET TABLESPACE {target};"
                    ))
                    .await?;
                let space = postgres.make_dir(&format!("passing-{}", self.round))?;
                postgres.sql(&format!("CREATE TABLESPACE passing LOCATION '{}'", space.display())).await?;
                postgres.sql("CREATE TABLE guest TABLESPACE passing AS SELECT generate_series(1, 5000) AS n; DROP TABLE guest").await?;
                // A dropped table's first file stays until the next checkpoint.
                postgres.sql("CHECKPOINT").await?;
                postgres.sql("DROP TABLESPACE passing").await?;
            }
            Step::Partitions => {
                postgres
                    .sql(&format!(
                        "INSERT INTO parted SELECT g, 'p' FROM generate_series({}, {}) g;
                         UPDATE parted SET n = n + 1000 WHERE n % 10 = 3 AND n < 1000; REFRESH MATERIALIZED VIEW seen",
                        some % 900,
                        some % 900 + 150
                    ))
                    .await?;
            }
            Step::LargeObjects => {
                postgres
                    .sql(&format!(
                        "INSERT INTO big SELECT lo_from_bytea(0, decode(repeat(md5('{some}'), 1000), 'hex'));
                         SELECT lo_put(id, 5000, 'patched') FROM big ORDER BY id LIMIT 2;"
                    ))
                    .await?;
                if self.random.random_bool(0.4) {
                    postgres.sql("WITH gone AS (DELETE FROM big WHERE id = (SELECT min(id) FROM big) RETURNING id) SELECT lo_unlink(id) FROM gone").await?;
                }
            }
            Step::Freeze => {
                let table = ["accounts", "history", "locked", "toasted", "btree_unique", "shrinking"]
                    [self.random.random_range(0..6)];
                postgres.sql(&format!("VACUUM (FREEZE) {table}")).await?;
                postgres.sql("ANALYZE").await?;
            }
            Step::Checkpoint => drop(postgres.sql("CHECKPOINT").await?),
            Step::SwitchWal => drop(postgres.sql("SELECT pg_switch_wal()").await?),
        }
        Ok(())
    }

    fn insert_indexed(&mut self, table: &str, rows: u32) -> String {
        let start = self.random.random_range(0..4_000u32);
        let salt = self.random.random_range(0..1_000_000u32);
        format!(
            "INSERT INTO {table} SELECT g, g * 7919 % 100000, md5((g + {salt})::text),
                ARRAY[g % 11, g % 13, g % 17], jsonb_build_object('k', g % 10, 'v', md5(g::text)),
                box(point(g % 1000, g % 777), point(g % 1000 + 5, g % 777 + 5)), point(g * 31 % 1000, g * 17 % 1000),
                int4range(g % 500, g % 500 + g % 20 + 1)
             FROM generate_series({start}, {}) g;",
            start + rows
        )
    }

    /// Concurrent small transactions, as pgbench's.
    async fn accounts(&mut self) -> Result<()> {
        let accounts = 2_000 * self.scale;
        let mut sessions = Vec::new();
        for _ in 0..4 {
            let mut random = StdRng::seed_from_u64(self.random.random());
            let client = self.postgres.connect("postgres").await?;
            let transactions = 60 * self.scale;
            sessions.push(tokio::spawn(async move {
                for _ in 0..transactions {
                    let (a, t, b, d) = (
                        random.random_range(1..=accounts),
                        random.random_range(1..=50),
                        random.random_range(1..=5),
                        random.random_range(-5_000..5_000),
                    );
                    query(
                        &client,
                        &format!(
                            "BEGIN; UPDATE accounts SET balance = balance + {d} WHERE aid = {a}; SELECT balance FROM accounts WHERE aid = {a};
                             UPDATE tellers SET balance = balance + {d} WHERE tid = {t}; UPDATE branches SET balance = balance + {d} WHERE bid = {b};
                             INSERT INTO history VALUES ({t}, {b}, {a}, {d}, 0); {}",
                            if random.random_bool(0.05) { "ROLLBACK" } else { "COMMIT" }
                        ),
                    )
                    .await?;
                }
                anyhow::Ok(())
            }));
        }
        for session in sessions {
            session.await??;
        }
        Ok(())
    }

    /// Several sessions lock the same rows at once, in modes that go together; then some are updated.
    async fn multixact(&mut self) -> Result<()> {
        let mut sessions = Vec::new();
        for mode in ["FOR SHARE", "FOR KEY SHARE", "FOR SHARE", "FOR KEY SHARE"] {
            let client = self.postgres.connect("postgres").await?;
            query(
                &client,
                &format!("BEGIN; SELECT count(*) FROM (SELECT n FROM locked WHERE n % 3 = 0 {mode}) x"),
            )
            .await?;
            sessions.push(client);
        }
        for client in &sessions {
            query(client, if self.random.random_bool(0.8) { "COMMIT" } else { "ROLLBACK" }).await?;
        }
        // Updates of other columns go together with key-share locks: a multixact with an update in it.
        let (locker, updater) =
            (self.postgres.connect("postgres").await?, self.postgres.connect("postgres").await?);
        query(&locker, "BEGIN; SELECT count(*) FROM (SELECT n FROM locked WHERE n % 5 = 0 FOR KEY SHARE) x")
            .await?;
        query(&updater, "BEGIN; UPDATE locked SET v = v + 1 WHERE n % 5 = 0").await?;
        query(&updater, "COMMIT").await?;
        query(&locker, "SELECT count(*) FROM (SELECT n FROM locked WHERE n % 5 = 0 FOR KEY SHARE) x; COMMIT")
            .await?;
        Ok(())
    }

    /// Two-phase commits; one or two stay prepared until a later round.
    async fn prepared(&mut self) -> Result<()> {
        for gid in std::mem::take(&mut self.prepared) {
            let verb = if self.random.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" };
            self.postgres.sql(&format!("{verb} PREPARED '{gid}'")).await?;
        }
        for number in 0..4 {
            let gid = format!("round {} number {number}", self.round);
            self.postgres
                .sql(&format!(
                    "BEGIN; INSERT INTO promised SELECT '{gid}', g FROM generate_series(1, 20) g; SAVEPOINT a;
                     INSERT INTO promised VALUES ('{gid}', 0); SAVEPOINT b; INSERT INTO promised VALUES ('{gid}', -1); PREPARE TRANSACTION '{gid}'"
                ))
                .await?;
            match number {
                0 => drop(self.postgres.sql(&format!("COMMIT PREPARED '{gid}'")).await?),
                1 => drop(self.postgres.sql(&format!("ROLLBACK PREPARED '{gid}'")).await?),
                _ => self.prepared.push(gid),
            }
        }
        Ok(())
    }

    async fn definitions(&mut self, some: u32) -> Result<()> {
        let postgres = self.postgres;
        postgres
            .sql(&format!(
                "CREATE TABLE passing_{some} (n int PRIMARY KEY, t text); INSERT INTO passing_{some} SELECT g, md5(g::text) FROM generate_series(1, 2000) g;
                 ALTER TABLE passing_{some} ADD COLUMN late int DEFAULT 5; ALTER TABLE passing_{some} ALTER n TYPE bigint;
                 CREATE INDEX ON passing_{some} (t); CREATE INDEX ON passing_{some} USING gin (to_tsvector('simple', t))"
            ))
            .await?;
        if self.random.random_bool(0.5) {
            postgres.sql(&format!("CLUSTER passing_{some} USING passing_{some}_pkey")).await?;
        }
        if self.random.random_bool(0.7) {
            postgres.sql(&format!("DROP TABLE passing_{some}")).await?;
        }
        let table =
            ["history", "toasted", "pg_class", "pg_attribute", "gist_box"][self.random.random_range(0..5)];
        postgres.sql(&format!("VACUUM FULL {table}")).await?;
        let (name, _, _) = INDEXED[self.random.random_range(0..INDEXED.len())];
        postgres.sql(&format!("REINDEX INDEX {name}_x")).await?;
        // A concurrent build waits for prepared transactions that hold locks on the table: these hold none there.
        postgres.sql(&format!("REINDEX INDEX CONCURRENTLY {name}_x")).await?;
        postgres
            .sql("BEGIN; CREATE TABLE never AS SELECT generate_series(1, 3000); DROP TABLE locked; ROLLBACK")
            .await?;
        Ok(())
    }

    async fn databases(&mut self, some: u32) -> Result<()> {
        let postgres = self.postgres;
        if self.databases.len() > 2 {
            let name = self.databases.remove(0);
            postgres.sql(&format!("DROP DATABASE {name}")).await?;
        }
        let strategies: &[&str] =
            if postgres.major() >= 15 { &["STRATEGY wal_log", "STRATEGY file_copy"] } else { &[""] };
        for (number, strategy) in strategies.iter().enumerate() {
            let name = format!("made_{}_{number}", self.round);
            postgres.sql(&format!("CREATE DATABASE {name} {strategy}")).await?;
            postgres
                .sql_in(&name, &format!("CREATE TABLE inside (n int PRIMARY KEY, t text); INSERT INTO inside SELECT g, 'db{some}' FROM generate_series(1, 1000) g"))
                .await?;
            self.databases.push(name);
        }
        if let Some(from) = self.databases.last().cloned()
            && self.random.random_bool(0.5)
        {
            let name = format!("copy_{}", self.round);
            let strategy = strategies[self.random.random_range(0..strategies.len())];
            postgres
                .sql(&format!("CREATE DATABASE {name} TEMPLATE {from} TABLESPACE one {strategy}"))
                .await?;
            if self.random.random_bool(0.5) {
                postgres.sql(&format!("ALTER DATABASE {name} SET TABLESPACE pg_default")).await?;
            }
            self.databases.push(name);
        }
        Ok(())
    }
}

/// Everything that two servers with the same history answer alike: databases, tables and their rows, what indexes
/// find, prepared transactions, large objects. Not: sequences' next values (WAL runs ahead of them), statistics,
/// unlogged tables.
pub async fn answers(postgres: &Postgres) -> Result<String> {
    let mut text = String::new();
    let databases = postgres
        .sql("SELECT datname, spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datallowconn ORDER BY 1")
        .await?;
    for question in [
        "SELECT string_agg(gid, ', ' ORDER BY gid) FROM pg_prepared_xacts",
        "SELECT string_agg(rolname, ', ' ORDER BY rolname) FROM pg_roles WHERE rolname !~ '^pg_'",
        "SELECT string_agg(spcname, ', ' ORDER BY spcname) FROM pg_tablespace",
    ] {
        writeln!(text, "{question}: {:?}", postgres.sql(question).await?)?;
    }
    for row in databases {
        let database = row[0].clone().context("a database has a name")?;
        writeln!(text, "database {database} in {:?}", row[1])?;
        let client = postgres.connect(&database).await?;
        let tables = query(
            &client,
            "SELECT quote_ident(nspname) || '.' || quote_ident(relname), relkind, spcname
             FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_tablespace t ON t.oid = reltablespace
             WHERE relkind IN ('r', 'm', 'i', 'S') AND relpersistence = 'p' AND nspname = 'public' ORDER BY 1",
        )
        .await?;
        for table in tables {
            let (name, kind) = (table[0].clone().unwrap_or_default(), table[1].clone().unwrap_or_default());
            write!(text, "  {kind} {name} in {:?}", table[2])?;
            if kind == "r" || kind == "m" {
                let digest = query(
                    &client,
                    &format!("SELECT count(*), md5(coalesce(string_agg(md5(x::text), '' ORDER BY md5(x::text)), '')) FROM {name} x"),
                )
                .await?;
                write!(text, ": {:?}", digest[0])?;
            }
            text.push('\n');
        }
        if database == "postgres" {
            for (table, _, condition) in INDEXED {
                let found = query(
                    &client,
                    &format!(
                        "SET enable_seqscan = off; SELECT count(*), sum(n) FROM {table} WHERE {condition}"
                    ),
                )
                .await?;
                writeln!(text, "  {table} where {condition}: {:?}", found[0])?;
            }
            let large = query(
                &client,
                "SELECT count(*), md5(coalesce(string_agg(md5(lo_get(oid)), '' ORDER BY oid), '')) FROM pg_largeobject_metadata",
            )
            .await?;
            writeln!(text, "  large objects: {:?}", large[0])?;
        }
    }
    Ok(text)
}
