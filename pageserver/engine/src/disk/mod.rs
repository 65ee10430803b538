//! Disks: a directory of this machine, and one in memory.

mod local;
mod memory;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use local::{LocalDisk, LocalFile};
pub use memory::{MemoryDisk, pieces};

use crate::ports::{Disk, DiskFile};

/// A file that goes away with its last owner. Whoever still holds it can go on reading.
pub struct OwnFile {
    disk: Arc<dyn Disk>,
    name: String,
    file: Arc<dyn DiskFile>,
}

impl OwnFile {
    /// A new, empty file.
    pub fn create(disk: Arc<dyn Disk>, name: String) -> io::Result<OwnFile> {
        let file = disk.create(&name)?;
        Ok(OwnFile { disk, name, file })
    }

    /// To read and write it.
    pub fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }
}

impl fmt::Debug for OwnFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnFile").field(&self.name).finish()
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // A file that cannot be removed goes when the disk is cleared at the next start.
        let _ = self.disk.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every disk has to do.
    fn keeps_the_contract(disk: &Arc<dyn Disk>) {
        disk.clear().unwrap();
        let file = disk.create("a").unwrap();
        assert!(disk.create("a").is_err(), "a name has one file");
        file.write_at(&vec![1; 100_000], 65_536).unwrap();
        assert_eq!(file.length().unwrap(), 165_536);
        let mut bytes = [9; 3];
        file.read_at(&mut bytes, 65_535).unwrap();
        assert_eq!(bytes, [0, 1, 1], "what was not written is zero");
        assert!(file.read_at(&mut bytes, 165_534).is_err(), "past the end there is nothing");
        file.punch_hole(65_536..131_072).unwrap();
        file.read_at(&mut bytes, 131_070).unwrap();
        assert_eq!(bytes, [0, 0, 1]);
        assert_eq!(file.length().unwrap(), 165_536);
        file.punch_hole(131_072..196_608).unwrap();
        file.read_at(&mut bytes, 165_533).unwrap();
        assert_eq!((bytes, file.length().unwrap()), ([0; 3], 165_536));

        let own = OwnFile::create(Arc::clone(disk), "b".into()).unwrap();
        let held = Arc::clone(own.file());
        held.write_at(b"xyz", 0).unwrap();
        drop(own);
        held.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"xyz");
        disk.create("b").unwrap();
        assert!(disk.remove("c").is_err());
        let space = disk.space().unwrap();
        assert!(space.total > 0 && space.available <= space.total);

        disk.clear().unwrap();
        disk.create("a").unwrap();
    }

    #[test]
    fn a_directory_keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(LocalDisk::new(folder.path().join("disk")));
        keeps_the_contract(&disk);
    }

    #[test]
    fn memory_keeps_the_contract() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(1 << 30));
        keeps_the_contract(&disk);
    }

    #[test]
    fn bytes_at_hand_are_read_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let disks: [Arc<dyn Disk>; 2] =
            [Arc::new(LocalDisk::new(folder.path())), Arc::new(MemoryDisk::new(1 << 20))];
        for disk in disks {
            disk.clear().unwrap();
            let file = disk.create("a").unwrap();
            file.write_at(b"abc", 0).unwrap();
            let mut bytes = [0; 3];
            // A file system may have nothing at hand; if it answers, the answer is right.
            assert!(!file.read_at_hand(&mut bytes, 0) || &bytes == b"abc");
            assert!(!file.read_at_hand(&mut bytes, 1), "there are only two");
        }
    }
}
