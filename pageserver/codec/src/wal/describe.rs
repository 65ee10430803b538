//! Records as lines of text, in the format of `pg_waldump` without its descriptions of main data.

use std::fmt::Write as _;

use model::{BLOCK_SIZE, Fork, Lsn};

use crate::wal::kind_name::kind_name;
use crate::wal::record::{BlockRef, ImageCompression, Record};
use crate::wal::stream::INFO_RMGR_MASK;

/// Appends the line of the record that begins at `start`. With `details` each block has a line of its own, which says more about images
/// (`--bkp-details`).
pub fn describe(start: Lsn, record: &Record<'_>, details: bool, out: &mut String) {
    let images: usize =
        record.blocks.iter().filter_map(|block| block.image).map(|image| image.bytes.len()).sum();
    let kind = kind_name(record.pg, record.rmgr, record.info)
        .map_or_else(|| format!("UNKNOWN ({:x})", record.info & INFO_RMGR_MASK), ToOwned::to_owned);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "rmgr: {:<11} len (rec/tot): {:>6}/{:>6}, tx: {:>10}, lsn: {}, prev {}, desc: {kind} ",
        record.rmgr.to_string(),
        record.total_len as usize - images,
        record.total_len,
        record.xid,
        padded(start),
        padded(record.prev),
    );
    if details {
        out.push('\n');
    }
    for block in &record.blocks {
        let BlockRef { id, rel, block: number, image, .. } = block;
        if details {
            let fork = rel.fork.suffix().strip_prefix('_').unwrap_or("main");
            let _ = write!(out, "\tblkref #{id}: rel {} fork {fork} blk {number}", rel.locator());
        } else if rel.fork == Fork::Main {
            let _ = write!(out, ", blkref #{id}: rel {} blk {number}", rel.locator());
        } else {
            let fork = &rel.fork.suffix()[1..];
            let _ = write!(out, ", blkref #{id}: rel {} fork {fork} blk {number}", rel.locator());
        }
        if let Some(image) = image {
            let purpose = if image.apply { "" } else { " for WAL verification" };
            if details {
                let (offset, length) = (image.hole_offset, image.hole_length);
                let _ = write!(out, " (FPW{purpose}); hole: offset: {offset}, length: {length}");
                let method = match image.compression {
                    ImageCompression::None => None,
                    ImageCompression::Pglz => Some("pglz"),
                    ImageCompression::Lz4 => Some("lz4"),
                    ImageCompression::Zstd => Some("zstd"),
                };
                if let Some(method) = method {
                    let saved = BLOCK_SIZE - usize::from(length) - image.bytes.len();
                    let _ = write!(out, ", compression saved: {saved}, method: {method}");
                }
            } else {
                let _ = write!(out, " FPW{purpose}");
            }
        }
        if details {
            out.push('\n');
        }
    }
    if !details {
        out.push('\n');
    }
}

/// An LSN as `pg_waldump` prints it: the lower half with all its digits.
fn padded(lsn: Lsn) -> String {
    format!("{:X}/{:08X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF)
}

#[cfg(test)]
mod tests {
    use model::{PgMajor, RelTag, RmgrId};

    use super::*;
    use crate::wal::build::{BlockDraft, RecordDraft};

    #[test]
    fn lines_are_pg_waldumps() {
        let block = |id, fork, image| BlockDraft {
            id,
            rel: RelTag { spc: 1663, db: 5, rel: 16384, fork },
            block: 9,
            will_init: false,
            image,
            data: vec![],
        };
        let mut draft = RecordDraft::new(RmgrId::HEAP, 0x80, vec![1, 0, 0]);
        draft.xid = 731;
        draft.blocks = vec![
            block(0, Fork::Main, Some((Box::new([7; BLOCK_SIZE]), true))),
            block(1, Fork::Vm, Some((Box::new([7; BLOCK_SIZE]), false))),
        ];
        let bytes = draft.encode(PgMajor::V15, Lsn(0x1_0000_0028));
        let record = Record::parse(PgMajor::V15, &bytes).unwrap();
        let mut lines = String::new();
        describe(Lsn(0x1_0000_0100), &record, false, &mut lines);
        describe(Lsn(0x1_0000_0100), &record, true, &mut lines);
        let expected = "\
rmgr: Heap        len (rec/tot):     79/ 16463, tx:        731, lsn: 1/00000100, prev 1/00000028, desc: INSERT+INIT , \
blkref #0: rel 1663/5/16384 blk 9 FPW, blkref #1: rel 1663/5/16384 fork vm blk 9 FPW for WAL verification
rmgr: Heap        len (rec/tot):     79/ 16463, tx:        731, lsn: 1/00000100, prev 1/00000028, desc: INSERT+INIT \n\
\tblkref #0: rel 1663/5/16384 fork main blk 9 (FPW); hole: offset: 0, length: 0
\tblkref #1: rel 1663/5/16384 fork vm blk 9 (FPW for WAL verification); hole: offset: 0, length: 0\n";
        assert_eq!(lines, expected);
    }
}
