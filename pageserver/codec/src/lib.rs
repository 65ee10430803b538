//! Bytes to nouns and back. Pure: no I/O, no clock, no tokio.
//!
//! Every parser here takes bytes from outside (a socket, the bucket, a disk, another program's files) and answers bad ones with an error
//! that says where and what was expected; none panics, none allocates more than its input justifies.
//!
//! Reading order: [`bytes_in`], [`wal`], [`page`], [`value`], [`layer`], [`index_part`], [`tenant_manifest`], [`heatmap`]; what else a cluster keeps: [`directory`],
//! [`checkpoint`], [`slru`], [`relmap`], [`two_phase`], [`tablespaces`]; who asks for pages: [`shard`], [`pagestream`].

pub mod backup_label;
pub mod bytes_in;
pub mod checkpoint;
pub mod control;
pub mod directory;
pub mod heatmap;
pub mod history;
pub mod index_part;
pub mod layer;
pub mod logical_size;
pub mod manifest;
pub mod page;
pub mod pagestream;
pub mod relmap;
pub mod replorigin;
pub mod shard;
pub mod slru;
pub mod tablespace_map;
pub mod tablespaces;
pub mod tar_in;
pub mod tar_out;
pub mod tenant_manifest;
pub mod two_phase;
pub mod value;
pub mod wal;
pub mod wal_object;
