//! Postgres' write-ahead log, majors 14 to 18.
//!
//! Reading order: [`stream`] (bytes to records), [`record`] (one record), [`payload`] (what it says beyond its blocks), [`image`] (page
//! images in it), [`kind_name`] and [`describe`] (for people), [`crc`], [`build`] (the way back).

pub mod build;
pub mod crc;
pub mod describe;
pub mod image;
pub mod kind_name;
pub mod payload;
pub mod record;
pub mod stream;
