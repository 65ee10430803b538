//! What Postgres calls the kinds of records (`rm_identify` of each resource manager), as `pg_waldump` prints them.

use model::{PgMajor, RmgrId};

use crate::wal::stream::INFO_RMGR_MASK;

/// The name of a record's kind. `None` when this major has no such kind, or the resource manager is an extension's.
///
/// Only the bits of `info` that belong to the resource manager matter.
pub fn kind_name(pg: PgMajor, rmgr: RmgrId, info: u8) -> Option<&'static str> {
    let kind = info & INFO_RMGR_MASK;
    Some(match rmgr {
        RmgrId::XLOG => match kind {
            0x00 => "CHECKPOINT_SHUTDOWN",
            0x10 => "CHECKPOINT_ONLINE",
            0x20 => "NOOP",
            0x30 => "NEXTOID",
            0x40 => "SWITCH",
            0x50 => "BACKUP_END",
            0x60 => "PARAMETER_CHANGE",
            0x70 => "RESTORE_POINT",
            0x80 => "FPW_CHANGE",
            0x90 => "END_OF_RECOVERY",
            0xA0 => "FPI_FOR_HINT",
            0xB0 => "FPI",
            0xD0 => "OVERWRITE_CONTRECORD",
            0xE0 if pg >= PgMajor::V17 => "CHECKPOINT_REDO",
            _ => return None,
        },
        // 0x80 says only that there is more than a time in it.
        RmgrId::XACT => match kind & 0x70 {
            0x00 => "COMMIT",
            0x10 => "PREPARE",
            0x20 => "ABORT",
            0x30 => "COMMIT_PREPARED",
            0x40 => "ABORT_PREPARED",
            0x50 => "ASSIGNMENT",
            0x60 => "INVALIDATION",
            _ => return None,
        },
        RmgrId::SMGR => match kind {
            0x10 => "CREATE",
            0x20 => "TRUNCATE",
            _ => return None,
        },
        RmgrId::CLOG | RmgrId::COMMIT_TS => match kind {
            0x00 => "ZEROPAGE",
            0x10 => "TRUNCATE",
            _ => return None,
        },
        RmgrId::DBASE => match (kind, pg) {
            (0x00, PgMajor::V14) => "CREATE",
            (0x10, PgMajor::V14) => "DROP",
            (_, PgMajor::V14) => return None,
            (0x00, _) => "CREATE_FILE_COPY",
            (0x10, _) => "CREATE_WAL_LOG",
            (0x20, _) => "DROP",
            _ => return None,
        },
        RmgrId::TBLSPC => match kind {
            0x00 => "CREATE",
            0x10 => "DROP",
            _ => return None,
        },
        RmgrId::MULTIXACT => match kind {
            0x00 => "ZERO_OFF_PAGE",
            0x10 => "ZERO_MEM_PAGE",
            0x20 => "CREATE_ID",
            0x30 => "TRUNCATE_ID",
            _ => return None,
        },
        RmgrId::RELMAP if kind == 0x00 => "UPDATE",
        RmgrId::STANDBY => match kind {
            0x00 => "LOCK",
            0x10 => "RUNNING_XACTS",
            0x20 => "INVALIDATIONS",
            _ => return None,
        },
        RmgrId::HEAP2 => match (kind, pg >= PgMajor::V17) {
            (0x00, _) => "REWRITE",
            (0x10, false) => "PRUNE",
            (0x20, false) => "VACUUM",
            (0x30, false) => "FREEZE_PAGE",
            (0x10, true) => "PRUNE_ON_ACCESS",
            (0x20, true) => "PRUNE_VACUUM_SCAN",
            (0x30, true) => "PRUNE_VACUUM_CLEANUP",
            (0x40, _) => "VISIBLE",
            (0x50, _) => "MULTI_INSERT",
            (0xD0, _) => "MULTI_INSERT+INIT",
            (0x60, _) => "LOCK_UPDATED",
            (0x70, _) => "NEW_CID",
            _ => return None,
        },
        RmgrId::HEAP => match kind {
            0x00 => "INSERT",
            0x80 => "INSERT+INIT",
            0x10 => "DELETE",
            0x20 => "UPDATE",
            0xA0 => "UPDATE+INIT",
            0x30 => "TRUNCATE",
            0x40 => "HOT_UPDATE",
            0xC0 => "HOT_UPDATE+INIT",
            0x50 => "HEAP_CONFIRM",
            0x60 => "LOCK",
            0x70 => "INPLACE",
            _ => return None,
        },
        RmgrId::BTREE => match kind {
            0x00 => "INSERT_LEAF",
            0x10 => "INSERT_UPPER",
            0x20 => "INSERT_META",
            0x30 => "SPLIT_L",
            0x40 => "SPLIT_R",
            0x50 => "INSERT_POST",
            0x60 => "DEDUP",
            0x70 => "DELETE",
            0x80 => "UNLINK_PAGE",
            0x90 => "UNLINK_PAGE_META",
            0xA0 => "NEWROOT",
            0xB0 => "MARK_PAGE_HALFDEAD",
            0xC0 => "VACUUM",
            0xD0 => "REUSE_PAGE",
            0xE0 => "META_CLEANUP",
            _ => return None,
        },
        RmgrId::HASH => match kind {
            0x00 => "INIT_META_PAGE",
            0x10 => "INIT_BITMAP_PAGE",
            0x20 => "INSERT",
            0x30 => "ADD_OVFL_PAGE",
            0x40 => "SPLIT_ALLOCATE_PAGE",
            0x50 => "SPLIT_PAGE",
            0x60 => "SPLIT_COMPLETE",
            0x70 => "MOVE_PAGE_CONTENTS",
            0x80 => "SQUEEZE_PAGE",
            0x90 => "DELETE",
            0xA0 => "SPLIT_CLEANUP",
            0xB0 => "UPDATE_META_PAGE",
            0xC0 => "VACUUM_ONE_PAGE",
            _ => return None,
        },
        RmgrId::GIN => match kind {
            0x10 => "CREATE_PTREE",
            0x20 => "INSERT",
            0x30 => "SPLIT",
            0x40 => "VACUUM_PAGE",
            0x50 => "DELETE_PAGE",
            0x60 => "UPDATE_META_PAGE",
            0x70 => "INSERT_LISTPAGE",
            0x80 => "DELETE_LISTPAGE",
            0x90 => "VACUUM_DATA_LEAF_PAGE",
            _ => return None,
        },
        RmgrId::GIST => match kind {
            0x00 => "PAGE_UPDATE",
            0x10 => "DELETE",
            0x20 => "PAGE_REUSE",
            0x30 => "PAGE_SPLIT",
            0x60 => "PAGE_DELETE",
            0x70 => "ASSIGN_LSN",
            _ => return None,
        },
        RmgrId::SEQ if kind == 0x00 => "LOG",
        RmgrId::SPGIST => match kind {
            0x10 => "ADD_LEAF",
            0x20 => "MOVE_LEAFS",
            0x30 => "ADD_NODE",
            0x40 => "SPLIT_TUPLE",
            0x50 => "PICKSPLIT",
            0x60 => "VACUUM_LEAF",
            0x70 => "VACUUM_ROOT",
            0x80 => "VACUUM_REDIRECT",
            _ => return None,
        },
        RmgrId::BRIN => match kind {
            0x00 => "CREATE_INDEX",
            0x10 => "INSERT",
            0x90 => "INSERT+INIT",
            0x20 => "UPDATE",
            0xA0 => "UPDATE+INIT",
            0x30 => "SAMEPAGE_UPDATE",
            0x40 => "REVMAP_EXTEND",
            0x50 => "DESUMMARIZE",
            _ => return None,
        },
        RmgrId::REPL_ORIGIN => match kind {
            0x00 => "SET",
            0x10 => "DROP",
            _ => return None,
        },
        RmgrId::GENERIC => "Generic",
        RmgrId::LOGICAL_MSG if kind == 0x00 => "MESSAGE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_major() {
        let heap2 = |pg| kind_name(pg, RmgrId::HEAP2, 0x1F);
        assert_eq!(heap2(PgMajor::V16), Some("PRUNE"));
        assert_eq!(heap2(PgMajor::V17), Some("PRUNE_ON_ACCESS"));
        assert_eq!(kind_name(PgMajor::V14, RmgrId::DBASE, 0x10), Some("DROP"));
        assert_eq!(kind_name(PgMajor::V15, RmgrId::DBASE, 0x10), Some("CREATE_WAL_LOG"));
        assert_eq!(kind_name(PgMajor::V15, RmgrId::XACT, 0x80), Some("COMMIT"));
        assert_eq!(kind_name(PgMajor::V15, RmgrId(200), 0), None);
    }
}
