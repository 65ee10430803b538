//! A disk in memory, for tests and simulations.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ports::{Disk, DiskFile, DiskSpace};

/// Unit of allocation, which divides a chunk.
const PIECE: u64 = 16 << 10;

/// Files in a map, on a disk of a certain size.
#[derive(Debug)]
pub struct MemoryDisk {
    files: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
    room: Arc<Room>,
}

/// How full the disk is.
#[derive(Debug)]
struct Room {
    total: AtomicU64,
    /// By files that somebody can still read.
    used: AtomicU64,
    /// By what is not ours.
    others: AtomicU64,
}

impl Room {
    fn available(&self) -> u64 {
        let used = self.used.load(Ordering::SeqCst) + self.others.load(Ordering::SeqCst);
        self.total.load(Ordering::SeqCst).saturating_sub(used)
    }
}

impl MemoryDisk {
    /// Nothing on it yet.
    pub fn new(total: u64) -> MemoryDisk {
        let room = Room { total: total.into(), used: 0.into(), others: 0.into() };
        MemoryDisk { files: Mutex::default(), room: Arc::new(room) }
    }

    /// How much of the disk others use from now on.
    pub fn set_others(&self, bytes: u64) {
        self.room.others.store(bytes, Ordering::SeqCst);
    }

    /// Bytes that its files occupy.
    pub fn used(&self) -> u64 {
        self.room.used.load(Ordering::SeqCst)
    }

    /// Names of the files on it.
    pub fn names(&self) -> Vec<String> {
        self.files().keys().cloned().collect()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Arc<MemoryFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for MemoryDisk {
    fn clear(&self) -> io::Result<()> {
        self.files().clear();
        Ok(())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.files().entry(name.into()) {
            Entry::Occupied(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Entry::Vacant(place) => {
                let file = MemoryFile { room: Arc::clone(&self.room), content: Mutex::default() };
                Ok(Arc::clone(place.insert(Arc::new(file))) as Arc<dyn DiskFile>)
            }
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        Ok(DiskSpace { total: self.room.total.load(Ordering::SeqCst), available: self.room.available() })
    }
}

/// A sparse file.
#[derive(Debug)]
struct MemoryFile {
    room: Arc<Room>,
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    length: u64,
    /// By number; all of the same size.
    pieces: BTreeMap<u64, Box<[u8]>>,
}

impl MemoryFile {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pieces of `unit` bytes that a stretch of a file touches: which, where in the piece, and where in the stretch.
pub fn pieces(unit: u64, range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    (range.start / unit..range.end.div_ceil(unit)).map(move |piece| {
        let from = range.start.max(piece * unit);
        let to = range.end.min((piece + 1) * unit);
        let within = (from - piece * unit) as usize..(to - piece * unit) as usize;
        (piece, within, (from - range.start) as usize..(to - range.start) as usize)
    })
}

impl DiskFile for MemoryFile {
    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.read_at(buffer, offset).is_ok()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content();
        let end = offset + buffer.len() as u64;
        if end > content.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (piece, within, part) in pieces(PIECE, offset..end) {
            match content.pieces.get(&piece) {
                Some(bytes) => buffer[part].copy_from_slice(&bytes[within]),
                None => buffer[part].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.content();
        let end = offset + bytes.len() as u64;
        for (piece, within, part) in pieces(PIECE, offset..end) {
            let place = match content.pieces.entry(piece) {
                Entry::Occupied(place) => place.into_mut(),
                Entry::Vacant(place) => {
                    if self.room.available() < PIECE {
                        return Err(io::ErrorKind::StorageFull.into());
                    }
                    self.room.used.fetch_add(PIECE, Ordering::SeqCst);
                    place.insert(vec![0; PIECE as usize].into())
                }
            };
            place[within].copy_from_slice(&bytes[part]);
        }
        content.length = content.length.max(end);
        Ok(())
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let mut content = self.content();
        for (piece, within, _) in pieces(PIECE, range) {
            if within.len() as u64 == PIECE {
                if content.pieces.remove(&piece).is_some() {
                    self.room.used.fetch_sub(PIECE, Ordering::SeqCst);
                }
            } else if let Some(bytes) = content.pieces.get_mut(&piece) {
                bytes[within].fill(0);
            }
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content().length)
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let pieces = self.content().pieces.len() as u64;
        self.room.used.fetch_sub(pieces * PIECE, Ordering::SeqCst);
    }
}
