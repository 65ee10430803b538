//! The configuration that a restored cluster starts with. The source's own is not in its WAL.

use codec::control::ControlFile;
use model::{Lsn, PgMajor};

/// `postgresql.conf`. Sizes are at least the source's, so that all it did can be done here; nothing leads back to the source.
pub fn postgresql_conf(control: &ControlFile, lsn: Lsn, has_tablespaces: bool, wal_keep_mib: u32) -> String {
    let wal_level = if control.wal_level >= 2 { "logical" } else { "replica" };
    let segment_mib = control.wal_segment_size.bytes() >> 20;
    let on = |setting: bool| if setting { "on" } else { "off" };
    let mut text = format!(
        "# Written by Palimpsest for a cluster restored as of {lsn}.\n\
         # The source's own configuration is not part of its history: add to this what yours needs.\n\
         max_connections = {}\n\
         max_worker_processes = {}\n\
         max_wal_senders = {}\n\
         max_prepared_transactions = {}\n\
         max_locks_per_transaction = {}\n\
         max_replication_slots = 10\n\
         wal_level = {wal_level}\n\
         wal_log_hints = {}\n\
         track_commit_timestamp = {}\n\
         min_wal_size = {}MB\n\
         max_wal_size = {}MB\n\
         # Nothing of the source's: neither its archive nor its standbys.\n\
         archive_mode = off\n\
         synchronous_standby_names = ''\n\
         # Until WAL streams back over a slot, none of it may go.\n\
         wal_keep_size = {wal_keep_mib}MB\n",
        control.max_connections,
        control.max_worker_processes,
        control.max_wal_senders.max(5),
        control.max_prepared_xacts,
        control.max_locks_per_xact,
        on(control.wal_log_hints),
        on(control.track_commit_timestamp),
        // As initdb chooses them: 5 and 64 segments.
        5 * segment_mib,
        64 * segment_mib,
    );
    if has_tablespaces && control.pg >= PgMajor::V15 {
        text.push_str("# Tablespaces are directories below pg_tblspc.\nallow_in_place_tablespaces = on\n");
    }
    text
}

/// `pg_hba.conf`: whoever can reach the machine's own addresses may in, as after a plain `initdb`.
pub fn pg_hba_conf() -> &'static str {
    "# TYPE  DATABASE     USER  ADDRESS       METHOD\n\
     local   all          all                 trust\n\
     host    all          all   127.0.0.1/32  trust\n\
     host    all          all   ::1/128       trust\n\
     local   replication  all                 trust\n\
     host    replication  all   127.0.0.1/32  trust\n\
     host    replication  all   ::1/128       trust\n"
}
