//! Postgres' write-ahead log, majors 14 to 18.
//!
//! Reading order: [`stream`] (bytes to records), [`record`] (one record), [`payload`] (what it says beyond its blocks), [`image`] (page images in it), [`crc`], [`build`] (the way back).

pub mod build;
pub mod crc;
pub mod image;
pub mod payload;
pub mod record;
pub mod stream;
