//! A directory of this machine's file system.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::ReadWriteFlags;

use crate::ports::{Disk, DiskFile, DiskSpace};

/// Files in one directory, which nobody else uses.
#[derive(Clone, Debug)]
pub struct LocalDisk {
    directory: PathBuf,
}

impl LocalDisk {
    /// In this directory. It is made, or emptied, by [`Disk::clear`].
    pub fn new(directory: impl Into<PathBuf>) -> LocalDisk {
        LocalDisk { directory: directory.into() }
    }
}

impl Disk for LocalDisk {
    fn clear(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => std::fs::create_dir_all(&self.directory),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.directory.join(name);
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(LocalFile(file)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.directory.join(name))
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(&self.directory)?;
        // What is reserved for others is no room, and no use of it either: as `df` counts.
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let total = (used + stat.f_bavail) * stat.f_frsize;
        Ok(DiskSpace { total, available: stat.f_bavail * stat.f_frsize })
    }
}

/// A file of this machine.
#[derive(Debug)]
pub struct LocalFile(File);

impl LocalFile {
    /// One that exists, to be read.
    pub fn open(path: &Path) -> io::Result<LocalFile> {
        File::open(path).map(LocalFile)
    }
}

impl DiskFile for LocalFile {
    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool {
        let wanted = buffer.len();
        let buffers = &mut [io::IoSliceMut::new(buffer)];
        rustix::io::preadv2(&self.0, buffers, offset, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == wanted)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, how, range.start, range.end - range.start)?)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
