//! Postgres' write-ahead log, majors 14 to 18.

pub mod record;
