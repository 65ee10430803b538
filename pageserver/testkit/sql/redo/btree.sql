-- B-tree: splits at every level, posting lists, deletions of all kinds.
SET wal_consistency_checking = 'btree';
-- Wide keys make deep trees of few rows.
CREATE TABLE b (k text, n int);
CREATE INDEX b_k ON b (k);
INSERT INTO b SELECT repeat(md5(g::text), 12) || g, g FROM generate_series(1, 900) g;
INSERT INTO b SELECT repeat('a', 400) || lpad(g::text, 6, '0'), g FROM generate_series(1, 500) g;
INSERT INTO b SELECT repeat('z', 400) || lpad((1000 - g)::text, 6, '0'), g FROM generate_series(1, 300) g;
DELETE FROM b WHERE k LIKE 'a%' OR n % 3 <> 0;
VACUUM b;
VACUUM b;
INSERT INTO b SELECT repeat(md5(g::text), 12) || g, g FROM generate_series(2001, 2300) g;
VACUUM b;
-- Down to a single chain of pages (a fast root), then up again.
DELETE FROM b WHERE k < (SELECT max(k) FROM b);
VACUUM b;
VACUUM b;
INSERT INTO b SELECT repeat('~', 400) || g, g FROM generate_series(1001, 1100) g;
INSERT INTO b SELECT repeat(md5(g::text), 12) || g, g FROM generate_series(3001, 3300) g;

-- Few keys, many rows: posting lists, splits of them, and of pages in their middle.
SET wal_consistency_checking = '';
CREATE TABLE d (k int, n int) WITH (fillfactor = 60);
INSERT INTO d SELECT g % 40, g FROM generate_series(1, 12000) g;
CREATE INDEX d_k ON d (k);
DELETE FROM d WHERE n % 3 = 0;
SET wal_consistency_checking = 'btree';
VACUUM d;
INSERT INTO d SELECT g % 40, g FROM generate_series(1, 3000) g;
DELETE FROM d WHERE k = 7;
VACUUM d;
DELETE FROM d WHERE n % 5 = 0;
VACUUM d;

-- Dead by a scan's mark, then removed by an insertion; versions of rows, removed bottom-up.
CREATE TABLE m (id int PRIMARY KEY, k int, v text);
CREATE INDEX m_k ON m (k);
INSERT INTO m SELECT g, g % 300, repeat('m', 20) FROM generate_series(1, 1500) g;
DELETE FROM m WHERE k < 150;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM m WHERE k < 160;
SELECT count(*) FROM m WHERE id > 0;
INSERT INTO m SELECT g, g % 150, repeat('m', 20) FROM generate_series(5001, 6500) g;
DO $$
BEGIN
    FOR round IN 1..8 LOOP
        UPDATE m SET k = k + 1, v = v || round WHERE id BETWEEN 5001 AND 5250;
    END LOOP;
END $$;
SELECT count(*) FROM m WHERE k >= 0;
DO $$
BEGIN
    FOR round IN 1..12 LOOP
        UPDATE m SET k = k - 1 WHERE id BETWEEN 5001 AND 5040;
        COMMIT;
    END LOOP;
END $$;
VACUUM m;
REINDEX INDEX m_k;
CREATE UNIQUE INDEX m_u ON m (v, id) INCLUDE (k);
INSERT INTO m SELECT g, g % 100, 'unique' FROM generate_series(8001, 8400) g;
