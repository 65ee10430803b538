-- SP-GiST: quad trees, k-d trees, radix trees, ranges; vacuum of each.
SET wal_consistency_checking = 'spgist';
CREATE TABLE sq (p point, n int);
CREATE INDEX sq_q ON sq USING spgist (p);
INSERT INTO sq SELECT point(g * 37 % 1000, g * 91 % 1000), g FROM generate_series(1, 900) g;
INSERT INTO sq SELECT NULL, g FROM generate_series(1, 50) g;
INSERT INTO sq SELECT point(5, 5), g FROM generate_series(901, 1300) g;
DELETE FROM sq WHERE n % 3 = 0;
VACUUM sq;
INSERT INTO sq SELECT point(g % 50, g % 20), g FROM generate_series(2001, 2300) g;
DELETE FROM sq WHERE n % 2 = 0;
VACUUM sq;
CREATE TABLE sk (p point, n int);
CREATE INDEX sk_k ON sk USING spgist (p kd_point_ops);
INSERT INTO sk SELECT point(g * 13 % 500, g * 7 % 500), g FROM generate_series(1, 600) g;
DELETE FROM sk WHERE n < 400;
VACUUM sk;
-- Long common beginnings: inner tuples with prefixes, split and extended.
CREATE TABLE st (t text, n int);
CREATE INDEX st_t ON st USING spgist (t);
INSERT INTO st SELECT 'prefix' || repeat(chr(97 + g % 26), g % 20) || md5(g::text) || repeat('t', g % 300), g
    FROM generate_series(1, 900) g;
INSERT INTO st SELECT 'pre' || g, g FROM generate_series(1, 200) g;
INSERT INTO st SELECT repeat('deep', g), g FROM generate_series(1, 100) g;
INSERT INTO st SELECT chr(200 + g % 300) || repeat(chr(300 + g % 77), 3), g FROM generate_series(1, 400) g;
DELETE FROM st WHERE n % 2 = 0;
VACUUM st;
INSERT INTO st SELECT 'prefix' || md5(g::text), g FROM generate_series(2001, 2300) g;
VACUUM st;
CREATE TABLE sr (r int8range, n int);
CREATE INDEX sr_r ON sr USING spgist (r);
INSERT INTO sr SELECT int8range(g * 31 % 700, g * 31 % 700 + g % 50), g FROM generate_series(1, 500) g;
DELETE FROM sr WHERE n < 480;
VACUUM sr;
-- A root that is a leaf, emptied.
CREATE TABLE sl (p point, n int);
CREATE INDEX sl_p ON sl USING spgist (p);
INSERT INTO sl SELECT point(g, g), g FROM generate_series(1, 30) g;
DELETE FROM sl WHERE n < 20;
VACUUM sl;
INSERT INTO sl SELECT point(g, g), g FROM generate_series(1, 300) g;
REINDEX INDEX st_t;
