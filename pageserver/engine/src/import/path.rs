//! What a file of a data directory is, judged by its path alone.

use model::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use model::{Fork, PgMajor, RelTag, SlruKind};

/// What a file is to an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A segment of a relation's fork.
    Relation {
        /// Of which.
        rel: RelTag,
        /// 0-based; each has 131,072 blocks but the last.
        segment: u32,
    },
    /// `pg_filenode.map`.
    RelationMap {
        /// Tablespace.
        spc: u32,
        /// Database; 0 for the shared one.
        db: u32,
    },
    /// A database's `PG_VERSION`.
    DatabaseVersion {
        /// Tablespace.
        spc: u32,
        /// Database.
        db: u32,
    },
    /// The cluster's `PG_VERSION`.
    ClusterVersion,
    /// A segment of an SLRU.
    Slru {
        /// Of which.
        kind: SlruKind,
        /// Its number.
        segment: u32,
    },
    /// A prepared transaction's state.
    TwoPhase {
        /// Which; with its epoch from 17 on.
        xid: u64,
    },
    /// `pg_logical/replorigin_checkpoint`.
    ReplicationOrigins,
    /// `global/pg_control`.
    ControlFile,
    /// `backup_label`.
    BackupLabel,
    /// `tablespace_map`.
    TablespaceMap,
    /// Not part of a cluster's history, and why.
    Ignored(&'static str),
    /// Nothing that Postgres puts there.
    Unknown,
}

/// Directories and files that are not imported, each with its reason. A directory stands for all below it.
const IGNORED: &[(&str, &str)] = &[
    ("backup_label.old", "left over from an earlier restore"),
    ("backup_manifest", "checked apart"),
    ("current_logfiles", "of the running server"),
    ("global/pg_internal.init", "a cache"),
    ("log", "logs"),
    ("pg_dynshmem", "of the running server"),
    ("pg_hba.conf", "configuration"),
    ("pg_ident.conf", "configuration"),
    ("pg_log", "logs"),
    ("pg_logical/mappings", "logical decoding does not survive a restore"),
    ("pg_logical/snapshots", "logical decoding does not survive a restore"),
    ("pg_notify", "of the running server"),
    ("pg_replslot", "slots do not survive a restore"),
    ("pg_serial", "of the running server"),
    ("pg_snapshots", "of the running server"),
    ("pg_stat", "statistics"),
    ("pg_stat_tmp", "statistics"),
    ("pg_subtrans", "made anew at start"),
    ("pg_wal", "WAL comes from its own source"),
    ("postgresql.auto.conf", "configuration"),
    ("postgresql.conf", "configuration"),
    ("postmaster.opts", "of the running server"),
    ("postmaster.pid", "of the running server"),
    ("tablespace_map.old", "left over from an earlier restore"),
];

/// Whether a directory holds nothing that is imported, so that it need not be walked.
pub fn is_ignored_directory(path: &str) -> bool {
    IGNORED.iter().any(|(ignored, _)| path == *ignored) || is_temporary(path)
}

fn is_temporary(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with("pgsql_tmp"))
}

/// Judges a file by its path below the data directory; files of tablespaces lie below `pg_tblspc/<oid>/`.
pub fn kind_of(pg: PgMajor, path: &str) -> FileKind {
    match path {
        "PG_VERSION" => return FileKind::ClusterVersion,
        "backup_label" => return FileKind::BackupLabel,
        "tablespace_map" => return FileKind::TablespaceMap,
        "global/pg_control" => return FileKind::ControlFile,
        "pg_logical/replorigin_checkpoint" => return FileKind::ReplicationOrigins,
        _ => {}
    }
    if is_temporary(path) {
        return FileKind::Ignored("temporary");
    }
    for (ignored, why) in IGNORED {
        if path.strip_prefix(ignored).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            return FileKind::Ignored(why);
        }
    }
    for kind in SlruKind::ALL {
        if let Some(name) = path.strip_prefix(kind.directory()).and_then(|rest| rest.strip_prefix('/')) {
            return slru_segment(name).map_or(FileKind::Unknown, |segment| FileKind::Slru { kind, segment });
        }
    }
    if let Some(name) = path.strip_prefix("pg_twophase/") {
        return codec::two_phase::parse_file_name(pg, name)
            .map_or(FileKind::Unknown, |xid| FileKind::TwoPhase { xid });
    }
    in_database(pg, path).unwrap_or(FileKind::Unknown)
}

/// The tablespace that a directory or link below `pg_tblspc` is.
pub fn tablespace_of(path: &str) -> Option<u32> {
    path.strip_prefix("pg_tblspc/").and_then(oid)
}

fn in_database(pg: PgMajor, path: &str) -> Option<FileKind> {
    let (spc, db, name) = if let Some(name) = path.strip_prefix("global/") {
        (GLOBAL_TABLESPACE, 0, name)
    } else if let Some(rest) = path.strip_prefix("base/") {
        let (db, name) = rest.split_once('/')?;
        (DEFAULT_TABLESPACE, oid(db)?, name)
    } else {
        let (spc, rest) = path.strip_prefix("pg_tblspc/")?.split_once('/')?;
        let (version, rest) = rest.split_once('/')?;
        if version != codec::control::tablespace_version_directory(pg) {
            let of_another = version.starts_with("PG_");
            return of_another.then_some(FileKind::Ignored("of another release in the same tablespace"));
        }
        let (db, name) = rest.split_once('/')?;
        (oid(spc)?, oid(db)?, name)
    };
    match name {
        "pg_filenode.map" => return Some(FileKind::RelationMap { spc, db }),
        "PG_VERSION" if db != 0 => return Some(FileKind::DatabaseVersion { spc, db }),
        "pg_internal.init" => return Some(FileKind::Ignored("a cache")),
        _ if name.starts_with("pg_internal.init.") => return Some(FileKind::Ignored("a cache")),
        _ if name.starts_with("pg_filenode.map.") => {
            return Some(FileKind::Ignored("left over from a crash"));
        }
        _ if is_temporary_relation(name) => return Some(FileKind::Ignored("temporary")),
        _ => {}
    }
    relation_file(name)
        .map(|(rel, fork, segment)| FileKind::Relation { rel: RelTag { spc, db, rel, fork }, segment })
}

/// `<file number>[_fork][.segment]`.
fn relation_file(name: &str) -> Option<(u32, Fork, u32)> {
    let (name, segment) = match name.split_once('.') {
        Some((name, digits)) => (name, oid(digits)?),
        None => (name, 0),
    };
    let digits = name.find('_').unwrap_or(name.len());
    let (number, suffix) = name.split_at(digits);
    let fork = Fork::ALL.into_iter().find(|fork| fork.suffix() == suffix)?;
    // The last block number is never used, so neither is the rest of the last possible segment.
    (segment < u32::MAX / model::RELATION_SEGMENT_BLOCKS).then_some((oid(number)?, fork, segment))
}

/// `t<backend>_<relation file>`.
fn is_temporary_relation(name: &str) -> bool {
    let Some((backend, rest)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else {
        return false;
    };
    !backend.is_empty() && backend.bytes().all(|byte| byte.is_ascii_digit()) && relation_file(rest).is_some()
}

/// A number as Postgres writes it into file names: decimal, above 0, no leading zero.
fn oid(digits: &str) -> Option<u32> {
    let wellformed = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    wellformed.then(|| digits.parse().ok()).flatten()
}

/// Four to six upper-case hexadecimal digits; from 17 on, fifteen are possible by option, which no SLRU here uses.
fn slru_segment(name: &str) -> Option<u32> {
    let wellformed = (4..=6).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    wellformed.then(|| u32::from_str_radix(name, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_a_cluster_has_its_kind() {
        let pg = PgMajor::V15;
        let rel =
            |spc, db, rel, fork, segment| FileKind::Relation { rel: RelTag { spc, db, rel, fork }, segment };
        for (path, kind) in [
            ("global/1262", rel(1664, 0, 1262, Fork::Main, 0)),
            ("base/5/16385_init", rel(1663, 5, 16385, Fork::Init, 0)),
            ("base/5/16385_vm.12", rel(1663, 5, 16385, Fork::Vm, 12)),
            ("pg_tblspc/16384/PG_15_202209061/5/16385.1", rel(16384, 5, 16385, Fork::Main, 1)),
            (
                "pg_tblspc/16384/PG_14_202107181/5/16385",
                FileKind::Ignored("of another release in the same tablespace"),
            ),
            ("base/5/PG_VERSION", FileKind::DatabaseVersion { spc: 1663, db: 5 }),
            ("global/pg_filenode.map", FileKind::RelationMap { spc: 1664, db: 0 }),
            ("pg_multixact/members/001A", FileKind::Slru { kind: SlruKind::MultiXactMembers, segment: 26 }),
            ("pg_twophase/000002D5", FileKind::TwoPhase { xid: 725 }),
            ("base/5/t3_16390_fsm", FileKind::Ignored("temporary")),
            ("base/pgsql_tmp/pgsql_tmp12.0", FileKind::Ignored("temporary")),
            ("pg_wal/archive_status/x.ready", FileKind::Ignored("WAL comes from its own source")),
            ("pg_walrus", FileKind::Unknown),
            ("base/5/16385_xyz", FileKind::Unknown),
            ("base/5/016385", FileKind::Unknown),
            ("base/5/16385.0", FileKind::Unknown),
            ("base/5/16385.4294967295", FileKind::Unknown),
            ("base/x/1", FileKind::Unknown),
            ("base", FileKind::Unknown),
            ("", FileKind::Unknown),
        ] {
            assert_eq!(kind_of(pg, path), kind, "{path:?}");
        }
    }
}
