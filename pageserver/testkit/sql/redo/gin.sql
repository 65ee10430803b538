-- GIN: entry trees, posting trees, pending lists.
SET wal_consistency_checking = 'gin';
CREATE TABLE ga (a int[], n int);
CREATE INDEX ga_a ON ga USING gin (a) WITH (fastupdate = off);
INSERT INTO ga SELECT ARRAY[g % 60, g % 7, g], g FROM generate_series(1, 700) g;
CREATE TABLE gt (t text[], n int);
CREATE INDEX gt_t ON gt USING gin (t) WITH (fastupdate = off);
INSERT INTO gt SELECT ARRAY[repeat(md5(g::text), 10), 'same'], g FROM generate_series(1, 600) g;
DELETE FROM gt WHERE n % 2 = 0;
VACUUM gt;
-- Posting trees of several pages, thinned until pages go.
SET wal_consistency_checking = '';
CREATE TABLE gp (a int[], n int);
INSERT INTO gp SELECT ARRAY[1, 2 + g % 2], g FROM generate_series(1, 45000) g;
CREATE INDEX gp_a ON gp USING gin (a) WITH (fastupdate = off);
SET wal_consistency_checking = 'gin';
INSERT INTO gp SELECT ARRAY[1, 2 + g % 2], g FROM generate_series(45001, 45600) g;
DELETE FROM gp WHERE n % 400 = 0;
VACUUM gp;
INSERT INTO gp SELECT ARRAY[1, 2 + g % 2], 10000 + g FROM generate_series(1, 400) g;
DELETE FROM gp WHERE n BETWEEN 3000 AND 42000;
VACUUM gp;
VACUUM gp;
INSERT INTO gp SELECT ARRAY[1], g FROM generate_series(1, 200) g;
-- A key that grows from a list in its entry to a tree.
CREATE TABLE gc (a int[]);
CREATE INDEX gc_a ON gc USING gin (a) WITH (fastupdate = off);
SET wal_consistency_checking = '';
INSERT INTO gc SELECT ARRAY[9] FROM generate_series(1, 1200) g;
SET wal_consistency_checking = 'gin';
INSERT INTO gc SELECT ARRAY[9] FROM generate_series(1, 1800) g;
-- Pending lists: made, cleaned by vacuum, and by their size.
CREATE TABLE gf (j jsonb);
CREATE INDEX gf_j ON gf USING gin (j) WITH (fastupdate = on, gin_pending_list_limit = 64);
INSERT INTO gf SELECT jsonb_build_object('id', g, 'tags', ARRAY[g % 10, g % 3], 'text', repeat('j', g % 50))
    FROM generate_series(1, 500) g;
VACUUM gf;
INSERT INTO gf SELECT jsonb_build_object('k', repeat(md5(g::text), 100)) FROM generate_series(1, 30) g;
SELECT gin_clean_pending_list('gf_j');
DELETE FROM gf WHERE j ? 'k';
VACUUM gf;
