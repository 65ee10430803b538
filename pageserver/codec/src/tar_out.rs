//! Tar headers for what a data directory holds: files (0600), directories and symbolic links, in GNU form.

use tar::{EntryType, Header};

use crate::tar_in::TAR_BLOCK;

/// What ends an archive: two blocks of zeros. Written only when everything before it was.
pub const TERMINATOR: [u8; 2 * TAR_BLOCK] = [0; 2 * TAR_BLOCK];

/// Bytes of a path or a link target that fit into a header.
const NAME_ROOM: usize = 100;

/// The header of a file whose `size` bytes of content, and then [`padding`], follow. `mtime` is in seconds since 1970.
pub fn file(path: &str, size: u64, mtime: u64) -> Vec<u8> {
    entry(EntryType::Regular, path, "", 0o600, size, mtime)
}

/// The header of a directory with these permissions.
pub fn directory(path: &str, mode: u32, mtime: u64) -> Vec<u8> {
    entry(EntryType::Directory, &format!("{path}/"), "", mode, 0, mtime)
}

/// The header of a symbolic link.
pub fn symlink(path: &str, target: &str, mtime: u64) -> Vec<u8> {
    entry(EntryType::Symlink, path, target, 0o777, 0, mtime)
}

/// Zeros that fill up the last block of `size` bytes of content.
pub fn padding(size: u64) -> Vec<u8> {
    vec![0; (size.wrapping_neg() % TAR_BLOCK as u64) as usize]
}

fn entry(kind: EntryType, path: &str, target: &str, mode: u32, size: u64, mtime: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(TAR_BLOCK);
    for (long, kind) in [(path, EntryType::GNULongName), (target, EntryType::GNULongLink)] {
        if long.len() > NAME_ROOM {
            out.extend_from_slice(header(kind, "././@LongLink", "", 0, long.len() as u64 + 1, 0).as_bytes());
            out.extend_from_slice(long.as_bytes());
            out.push(0);
            out.extend(padding(long.len() as u64 + 1));
        }
    }
    out.extend_from_slice(header(kind, path, target, mode, size, mtime).as_bytes());
    out
}

fn header(kind: EntryType, path: &str, target: &str, mode: u32, size: u64, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    let raw = header.as_old_mut();
    for (field, text) in [(&mut raw.name, path), (&mut raw.linkname, target)] {
        let bytes = text.as_bytes();
        let length = bytes.len().min(NAME_ROOM);
        field[..length].copy_from_slice(&bytes[..length]);
    }
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}
