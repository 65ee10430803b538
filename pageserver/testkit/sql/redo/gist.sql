-- GiST: splits down from the root, page deletion, dead tuples.
SET wal_consistency_checking = 'gist';
CREATE TABLE gi (p point, n int);
CREATE INDEX gi_p ON gi USING gist (p);
INSERT INTO gi SELECT point(g * 37 % 1000, g * 91 % 1000), g FROM generate_series(1, 1800) g;
UPDATE gi SET p = point(n % 100, n % 33) WHERE n % 9 = 0;
DELETE FROM gi WHERE n % 4 <> 0;
VACUUM gi;
DELETE FROM gi WHERE n < 1600;
VACUUM gi;
VACUUM gi;
INSERT INTO gi SELECT point(g % 1000, g * 7 % 1000), g FROM generate_series(2001, 2300) g;
-- Wide keys: deep trees, splits into more than two pages.
CREATE TABLE gr (r int4range, t tsvector, n int);
CREATE INDEX gr_t ON gr USING gist (t tsvector_ops (siglen = 1000));
CREATE INDEX gr_r ON gr USING gist (r);
INSERT INTO gr SELECT int4range(g, g + g % 70), to_tsvector('simple', repeat('word' || g || ' other' || g % 9 || ' ', 3)), g
    FROM generate_series(1, 400) g;
DELETE FROM gr WHERE n % 2 = 0;
VACUUM gr;
-- Dead by a scan's mark (which a root does not get), removed by an insertion.
CREATE TABLE gk (p point, n int);
CREATE INDEX gk_p ON gk USING gist (p);
INSERT INTO gk SELECT point(1, g), g FROM generate_series(1, 500) g;
DELETE FROM gk WHERE n > 20;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM gk WHERE p <@ box '((0,0),(2,1000))';
SELECT count(*) FROM gk WHERE p <@ box '((0,0),(2,1000))';
INSERT INTO gk SELECT point(1, g), g FROM generate_series(1, 400) g;
-- Built in one go, and by way of buffers.
CREATE INDEX gi_b ON gi USING gist (box(p, p)) WITH (buffering = on);
CREATE INDEX gi_c ON gi USING gist (circle(p, 1));
