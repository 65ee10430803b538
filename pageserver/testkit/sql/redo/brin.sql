-- BRIN: summaries made, grown, moved, taken away; several range maps' worth is too much for a small corpus.
SET wal_consistency_checking = 'brin';
CREATE TABLE br (n int, t text, p point) WITH (fillfactor = 40);
CREATE INDEX br_n ON br USING brin (n) WITH (pages_per_range = 1);
CREATE INDEX br_t ON br USING brin (t) WITH (pages_per_range = 1);
CREATE INDEX br_p ON br USING brin (box(p, p) box_inclusion_ops) WITH (pages_per_range = 1);
INSERT INTO br SELECT g, repeat('b', g % 40), point(g, g % 9) FROM generate_series(1, 3000) g;
SELECT brin_summarize_new_values('br_n');
SELECT brin_summarize_new_values('br_t');
SELECT brin_summarize_new_values('br_p');
UPDATE br SET n = n * 100 WHERE n % 29 = 0;
-- Summaries of long values that no compression shortens outgrow their pages.
UPDATE br SET t = 'y' || (SELECT string_agg(md5((n * i)::text), '') FROM generate_series(1, 20) i) WHERE n % 23 = 0;
UPDATE br SET t = 'z' || (SELECT string_agg(md5((n * i)::text), '') FROM generate_series(1, 38) i) WHERE n % 37 = 0;
UPDATE br SET p = point(n * 1000, n) WHERE n % 41 = 0;
INSERT INTO br SELECT g, 'new', NULL FROM generate_series(1, 1500) g;
VACUUM br;
SELECT brin_desummarize_range('br_n', 3);
SELECT brin_desummarize_range('br_t', 0);
SELECT brin_summarize_range('br_n', 3);
VACUUM br;
