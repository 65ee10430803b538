-- Heap: every way to make, change, lock, prune and freeze a tuple.
SET wal_consistency_checking = 'heap,heap2,sequence';
CREATE TABLE h (id int PRIMARY KEY, n int, t text) WITH (fillfactor = 70);
INSERT INTO h SELECT g, g, repeat('x', g % 90) FROM generate_series(1, 1500) g;
UPDATE h SET n = n + 1 WHERE id % 2 = 0;
UPDATE h SET t = 'begin' || t WHERE id % 5 = 0;
UPDATE h SET t = t || 'end' WHERE id % 7 = 0;
UPDATE h SET id = id + 100000 WHERE id % 11 = 0;
UPDATE h SET n = NULL WHERE id % 13 = 0;
DELETE FROM h WHERE id % 17 = 0;
SELECT count(*) FROM (SELECT * FROM h WHERE id < 60 FOR UPDATE) s;
SELECT count(*) FROM (SELECT * FROM h WHERE id < 60 FOR NO KEY UPDATE) s;
SELECT count(*) FROM (SELECT * FROM h WHERE id < 60 FOR SHARE) s;
SELECT count(*) FROM (SELECT * FROM h WHERE id < 60 FOR KEY SHARE) s;

-- One transaction after another locks and updates in subtransactions: multixacts.
BEGIN;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 100 AND 130 FOR KEY SHARE) s;
SAVEPOINT a;
UPDATE h SET n = 0 WHERE id BETWEEN 100 AND 120;
SAVEPOINT b;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 110 AND 130 FOR UPDATE) s;
ROLLBACK TO b;
UPDATE h SET n = 1 WHERE id BETWEEN 115 AND 125;
COMMIT;

-- Updates within a page are pruned by reads; vacuum takes the rest, then clears what it marked visible.
UPDATE h SET n = n + 1 WHERE id < 400;
UPDATE h SET n = n + 1 WHERE id < 400;
SELECT count(*) FROM h WHERE n > 0;
VACUUM h;
INSERT INTO h SELECT g, g, 'back' FROM generate_series(200001, 200100) g;
UPDATE h SET n = -1 WHERE id % 50 = 1;
DELETE FROM h WHERE id % 50 = 2;
VACUUM FREEZE h;
SELECT count(*) FROM (SELECT * FROM h WHERE id % 50 = 3 FOR UPDATE) s;
SELECT count(*) FROM (SELECT * FROM h WHERE id % 50 = 4 FOR KEY SHARE) s;
UPDATE h SET n = -2 WHERE id % 50 = 5;
UPDATE h SET t = repeat('y', 300) WHERE id % 50 = 6;
DELETE FROM h WHERE id > 900;
VACUUM FREEZE h;
VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) h;
DELETE FROM h WHERE id > 300;
VACUUM h;

-- Many at once: COPY, onto fresh and used pages, frozen at once.
COPY (SELECT g, g, repeat('z', g % 200) FROM generate_series(300001, 301500) g) TO PROGRAM 'cat > redo_copy';
COPY h FROM PROGRAM 'cat redo_copy';
BEGIN;
CREATE TABLE f (id int, n int, t text);
COPY f FROM PROGRAM 'cat redo_copy' WITH (FREEZE);
COMMIT;
VACUUM f;
INSERT INTO f SELECT g, g, 'more' FROM generate_series(1, 50) g;
COPY f FROM PROGRAM 'cat redo_copy';
TRUNCATE f;
COPY f FROM PROGRAM 'cat redo_copy';

-- Speculative insertion, partition moves, values out of line, prepared transactions, rewrites.
CREATE TABLE s (k int PRIMARY KEY, v text);
INSERT INTO s SELECT g % 200, 'first' FROM generate_series(1, 300) g ON CONFLICT DO NOTHING;
INSERT INTO s SELECT g, 'next' FROM generate_series(1, 200) g ON CONFLICT (k) DO UPDATE SET v = excluded.v;
CREATE TABLE p (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200);
INSERT INTO p SELECT g, 'here' FROM generate_series(0, 99) g;
UPDATE p SET k = k + 100 WHERE k % 3 = 0;
CREATE TABLE o (id int PRIMARY KEY, t text);
ALTER TABLE o ALTER t SET STORAGE EXTERNAL;
INSERT INTO o SELECT g, repeat(md5(g::text), 300) FROM generate_series(1, 30) g;
UPDATE o SET t = t || 'a' WHERE id % 3 = 0;
DELETE FROM o WHERE id % 5 = 0;
VACUUM o;
BEGIN;
UPDATE s SET v = 'prepared' WHERE k < 20;
PREPARE TRANSACTION 'one';
BEGIN;
DELETE FROM s WHERE k > 180;
PREPARE TRANSACTION 'two';
-- Locks follow a row to the version that a transaction in progress made of it.
SELECT count(*) FROM (SELECT * FROM s WHERE k < 20 FOR KEY SHARE) s;
CHECKPOINT;
COMMIT PREPARED 'one';
ROLLBACK PREPARED 'two';
CLUSTER h USING h_pkey;
VACUUM FULL s;
ANALYZE h;
ANALYZE s;
ALTER TABLE p1 SET (autovacuum_enabled = off);
VACUUM (FREEZE) pg_class;
VACUUM pg_attribute;
UPDATE pg_class SET reltuples = reltuples WHERE relname IN ('h', 's', 'p1');

CREATE SEQUENCE q;
SELECT count(nextval('q')) FROM generate_series(1, 100);
SELECT setval('q', 5000);
ALTER SEQUENCE q RESTART;
SELECT nextval('q');
CREATE TABLE i (id bigserial, v int);
INSERT INTO i (v) SELECT g FROM generate_series(1, 200) g;

CREATE UNLOGGED TABLE u (id int PRIMARY KEY, v text);
INSERT INTO u SELECT g, 'unlogged' FROM generate_series(1, 100) g;
DROP TABLE f;
