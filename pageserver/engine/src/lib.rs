//! The life of a timeline: WAL in, pages out, everything in the bucket.
//!
//! Reading order: [`ports`] (what the engine asks of the world), [`disk`] and [`clock`] (what it is answered here), [`blocking`], [`object_path`] (every object we write), [`bucket`], [`claim`] (who owns a tenant),
//! [`index_store`] and [`index_keeper`] (what a timeline consists of), [`stored_wal`] and [`wal_keeper`] (WAL to the bucket first) and [`wal_run`] (which of it counts), [`lineage`] (whether a source's history is ours);
//! [`ingest`] (which versions a record makes), [`changes`], [`tail`], [`layer_map`], [`chunk_cache`], [`held_objects`], [`layer_read`], [`layer_write`]; then
//! [`read`], [`read_counts`], [`explain`], [`onlooker`], [`as_of`], [`time`], [`timeline`], [`inherit`] (a branch's own copy of what it shares), and on top [`tenant`], [`tenant_size`], [`deletion`] and [`heatmap`];
//! how a timeline begins: [`import`], or for tests [`synthetic`]; what a cluster is restored from: [`backup`].

pub mod as_of;
pub mod backup;
pub mod blocking;
pub mod bucket;
pub mod budget;
pub mod changes;
pub mod chunk_cache;
pub mod claim;
pub mod clock;
pub mod collect;
pub mod compact;
pub mod deletion;
pub mod disk;
pub mod error_story;
pub mod explain;
pub mod heatmap;
pub mod held_objects;
pub mod import;
pub mod import_session;
pub mod index_keeper;
pub mod index_store;
pub mod ingest;
pub mod inherit;
pub mod layer_map;
pub mod layer_read;
pub mod layer_scan;
pub mod layer_write;
pub mod lineage;
pub mod listing;
pub mod metering;
pub mod object_path;
pub mod onlooker;
pub mod ports;
pub mod read;
pub mod read_counts;
pub mod retention;
pub mod stored_wal;
pub mod sweep;
pub mod synthetic;
pub mod tail;
pub mod tenant;
pub mod tenant_size;
pub mod time;
pub mod timeline;
pub mod wal_keeper;
pub mod wal_memory;
pub mod wal_run;
pub mod wal_target;
