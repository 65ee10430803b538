//! The local disks of machines: files that processes leave behind when they die, as a crash leaves what was not synced, and disks that fail.
//!
//! Nothing on a disk has to outlive its process, and nothing that was left may be believed by the next one. So a machine keeps its files from one
//! process to the next, some of them torn, and a read of bytes that nobody wrote since the file came to be is wrong.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::disk::pieces;
use engine::ports::{Disk, DiskFile, DiskSpace};

use crate::dice::Dice;
use crate::world::{DiskTrouble, ProcessId, World};

/// Unit of allocation, which divides whatever is written or given back at once.
const PIECE: u64 = 8 << 10;
/// What the cache keeps of an object begins at a multiple of this; a layer that is being written begins behind its first block.
const CHUNK: u64 = 64 << 10;
/// Bytes of a disk.
const TOTAL: u64 = 1 << 30;

/// A machine, with what its processes have written.
#[derive(Debug, Default)]
pub struct Machine {
    files: Mutex<BTreeMap<String, Arc<SimFile>>>,
}

impl Machine {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Arc<SimFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its processes have died, and the machine with them: nothing was synced. Of each file there is all, a part, nothing, or not even a name.
    pub fn crash(&self, dice: &mut Dice) {
        self.files().retain(|_, file| {
            let left = match dice.below(4) {
                0 => return false,
                1 => Content::default(),
                2 => file.content().torn(dice),
                _ => file.content().clone(),
            };
            // Whoever had it open is dead, and keeps what it had.
            *file = Arc::new(SimFile { content: Mutex::new(left), reach: file.reach.clone() });
            true
        });
    }
}

/// Who reads and writes.
#[derive(Clone)]
struct Reach {
    world: Arc<World>,
    process: ProcessId,
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reach").field(&self.process).finish()
    }
}

impl Reach {
    fn meets(&self, trouble: DiskTrouble) -> bool {
        self.world.disk_meets(self.process, trouble)
    }
}

/// The disk of a machine, as one process has it.
#[derive(Debug)]
pub struct SimDisk {
    machine: Arc<Machine>,
    reach: Reach,
}

impl SimDisk {
    /// As `process` has it.
    pub fn new(machine: Arc<Machine>, world: Arc<World>, process: ProcessId) -> SimDisk {
        SimDisk { machine, reach: Reach { world, process } }
    }
}

impl Disk for SimDisk {
    fn clear(&self) -> io::Result<()> {
        self.machine.files().clear();
        Ok(())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        if self.reach.meets(DiskTrouble::Failing) {
            return Err(failing());
        }
        let mut files = self.machine.files();
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(SimFile { content: Mutex::default(), reach: self.reach.clone() });
        files.insert(name.into(), Arc::clone(&file));
        Ok(file)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.machine.files().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let used: u64 = self.machine.files().values().map(|file| file.content().used()).sum();
        let is_full = self.reach.meets(DiskTrouble::Full);
        Ok(DiskSpace { total: TOTAL, available: if is_full { 0 } else { TOTAL.saturating_sub(used) } })
    }
}

fn failing() -> io::Error {
    io::Error::other("the disk fails")
}

/// An open file.
#[derive(Debug)]
struct SimFile {
    content: Mutex<Content>,
    reach: Reach,
}

#[derive(Clone, Debug, Default)]
struct Content {
    length: u64,
    /// What was written, by number.
    pieces: BTreeMap<u64, Vec<u8>>,
    /// It is a copy of what the bucket has, not a layer that is on its way there.
    is_copy: Option<bool>,
}

impl Content {
    fn used(&self) -> u64 {
        self.pieces.len() as u64 * PIECE
    }

    /// With some of its pieces lost, and perhaps its end.
    fn torn(&self, dice: &mut Dice) -> Content {
        let mut torn = self.clone();
        torn.pieces.retain(|_, _| dice.permille(500));
        torn.length = dice.below(self.length + 1);
        torn
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        for (piece, within, part) in pieces(PIECE, offset..end) {
            let place = self.pieces.entry(piece).or_insert_with(|| vec![0; PIECE as usize]);
            place[within].copy_from_slice(&bytes[part]);
        }
        self.length = self.length.max(end);
    }
}

impl SimFile {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskFile for SimFile {
    fn read_at_hand(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.read_at(buffer, offset).is_ok()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.reach.meets(DiskTrouble::Failing) {
            return Err(failing());
        }
        let content = self.content();
        let end = offset + buffer.len() as u64;
        if end > content.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (piece, within, part) in pieces(PIECE, offset..end) {
            if let Some(bytes) = content.pieces.get(&piece) {
                buffer[part].copy_from_slice(&bytes[within]);
            } else {
                self.reach.world.violate(|| {
                    format!("a local file is read at {}, where nothing was written", piece * PIECE)
                });
                buffer[part].fill(0);
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.reach.meets(DiskTrouble::Failing) {
            return Err(failing());
        }
        if self.reach.meets(DiskTrouble::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut content = self.content();
        let is_copy = *content.is_copy.get_or_insert(offset.is_multiple_of(CHUNK));
        if is_copy && self.reach.meets(DiskTrouble::Rotting) {
            let mut rotten = bytes.to_vec();
            rotten[bytes.len() / 2..].fill(0);
            content.write(&rotten, offset);
        } else {
            content.write(bytes, offset);
        }
        Ok(())
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let mut content = self.content();
        for (piece, within, _) in pieces(PIECE, range) {
            if within.len() as u64 == PIECE {
                content.pieces.remove(&piece);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(machine: &Arc<Machine>, world: &Arc<World>) -> SimDisk {
        SimDisk::new(Arc::clone(machine), Arc::clone(world), world.new_process())
    }

    #[tokio::test]
    async fn a_crash_leaves_files_torn_and_whoever_had_them_open_does_not_see_it() {
        let (world, machine) = (World::new(1, None, false), Arc::new(Machine::default()));
        let before = disk(&machine, &world);
        let files: Vec<_> = (0..40).map(|n| before.create(&n.to_string()).unwrap()).collect();
        for file in &files {
            file.write_at(&vec![7; 100_000], 0).unwrap();
        }
        machine.crash(&mut Dice::new(1, "crash"));
        let left = machine.files().values().map(|file| file.content().used()).collect::<Vec<_>>();
        assert!(left.len() < 40 && left.contains(&0) && left.contains(&(13 * PIECE)));
        assert!(files.iter().all(|file| file.length().unwrap() == 100_000));
        let after = disk(&machine, &world);
        after.clear().unwrap();
        assert_eq!(after.space().unwrap().available, TOTAL);
        after.create("0").unwrap();
    }

    #[tokio::test]
    async fn what_nobody_wrote_must_not_be_read() {
        let (world, machine) = (World::new(1, None, false), Arc::new(Machine::default()));
        let file = disk(&machine, &world).create("a").unwrap();
        file.write_at(&[1; 8192], CHUNK).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, CHUNK + 8191).unwrap();
        assert_eq!((byte, world.violation()), ([1], None));
        file.read_at(&mut byte, 0).unwrap();
        assert!(world.violation().is_some());
    }
}
