-- Hash: splits, overflow pages, squeezing them, dead tuples.
SET wal_consistency_checking = 'hash';
CREATE TABLE ha (k int, n int);
CREATE INDEX ha_k ON ha USING hash (k) WITH (fillfactor = 10);
INSERT INTO ha SELECT g, g FROM generate_series(1, 1500) g;
DELETE FROM ha WHERE k % 3 = 0;
VACUUM ha;
-- One bucket with a long chain, thinned and filled.
CREATE TABLE hb (k int, n int);
CREATE INDEX hb_k ON hb USING hash (k);
SET wal_consistency_checking = '';
INSERT INTO hb SELECT 7, g FROM generate_series(1, 4000) g;
SET wal_consistency_checking = 'hash';
INSERT INTO hb SELECT 7, g FROM generate_series(4001, 4500) g;
DELETE FROM hb WHERE n % 3 = 0;
VACUUM hb;
DELETE FROM hb WHERE n < 3500;
VACUUM hb;
INSERT INTO hb SELECT g, g FROM generate_series(1, 800) g;
-- Dead by a scan's mark, removed by an insertion.
CREATE TABLE hc (k int, n int);
CREATE INDEX hc_k ON hc USING hash (k);
INSERT INTO hc SELECT 5, g FROM generate_series(1, 400) g;
DELETE FROM hc WHERE n < 350;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM hc WHERE k = 5;
SELECT count(*) FROM hc WHERE k = 5;
INSERT INTO hc SELECT 5, g FROM generate_series(1, 300) g;
VACUUM hc;
-- A build that knows how many rows there are, and one that starts a bitmap of its own.
CREATE INDEX hc_n ON hc USING hash (n);
REINDEX INDEX ha_k;
CREATE UNLOGGED TABLE hu (k int);
CREATE INDEX hu_k ON hu USING hash (k);
