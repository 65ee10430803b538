//! The memory tier: checked chunks, values that were decompressed, and a window for those who come by once.
//!
//! Chunks of indexes and checksums have a budget of their own, so that data never pushes them out: a read of a page whose index is at hand costs
//! one GET at most.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::queues::{Queues, Use, hash_of};
use super::{CHUNK_SIZE, PieceKind, ReadFor};

/// Readers of different chunks seldom meet at one lock, which is held for a lookup only.
const MOST_SHARDS: usize = 32;

/// Chunks for which a shard has room at least.
const SHARD_CHUNKS: usize = 8;

/// What memory holds of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    Chunk(u32),
    /// The decompressed value whose header begins at this offset.
    Value(u64),
    /// A chunk that nobody has checked yet.
    Unchecked(u32),
}

/// Object and piece.
pub(super) type PieceKey = (u64, Piece);

type Pieces = Queues<PieceKey, Bytes>;

pub(super) struct MemoryTier {
    shards: Vec<Mutex<Shard>>,
    /// What scans have read just now, and what comes next. Oldest first out.
    window: Mutex<Pieces>,
    used: AtomicUsize,
    pinned: AtomicUsize,
}

struct Shard {
    data: Pieces,
    pinned: Pieces,
}

impl Shard {
    fn of(&mut self, kind: PieceKind) -> &mut Pieces {
        match kind {
            PieceKind::Data => &mut self.data,
            PieceKind::Index => &mut self.pinned,
        }
    }
}

impl MemoryTier {
    /// Of `memory` bytes, up to `pinned` of them, and not more than half, for indexes.
    pub(super) fn new(memory: usize, pinned: usize) -> MemoryTier {
        let chunk = CHUNK_SIZE as usize;
        let pinned = pinned.min(memory / 2);
        let window = (memory / 16).max(16 * chunk).min(memory / 4);
        let data = memory - pinned - window;
        let shards = (pinned.min(data) / (SHARD_CHUNKS * chunk)).clamp(1, MOST_SHARDS);
        let shard = || Shard {
            data: Queues::new((data / shards).max(chunk)),
            pinned: Queues::new((pinned / shards).max(chunk)),
        };
        MemoryTier {
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            window: Mutex::new(Queues::new(window)),
            used: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
        }
    }

    /// Bytes of all pieces, and those of indexes among them.
    pub(super) fn used(&self) -> (usize, usize) {
        let window = self.window.lock().expect("no holder panics").used();
        let pinned = self.pinned.load(Ordering::Relaxed);
        (self.used.load(Ordering::Relaxed) + pinned + window, pinned)
    }

    fn shard(&self, key: PieceKey) -> &Mutex<Shard> {
        // The table within the shard goes by other bits.
        &self.shards[(hash_of(&key) >> 40) as usize % self.shards.len()]
    }

    pub(super) fn get(&self, key: PieceKey, kind: PieceKind, reading: ReadFor) -> Option<Bytes> {
        let counts = if reading == ReadFor::Reader { Use::Counts } else { Use::Leaves };
        let found = self.shard(key).lock().expect("no holder panics").of(kind).get(&key, counts);
        if found.is_some() || reading == ReadFor::Reader {
            return found;
        }
        self.window.lock().expect("no holder panics").get(&key, Use::Leaves)
    }

    /// Whether a piece is kept for readers.
    pub(super) fn has(&self, key: PieceKey, kind: PieceKind) -> bool {
        self.shard(key).lock().expect("no holder panics").of(kind).get(&key, Use::Leaves).is_some()
    }

    /// Keeps a piece. Of a scan, only in the window, but for indexes.
    pub(super) fn insert(&self, key: PieceKey, kind: PieceKind, reading: ReadFor, bytes: Bytes) {
        let size = bytes.len();
        if reading == ReadFor::Scan && kind == PieceKind::Data {
            self.window.lock().expect("no holder panics").insert(key, bytes, size);
            return;
        }
        let mut shard = self.shard(key).lock().expect("no holder panics");
        let pieces = shard.of(kind);
        let before = pieces.used();
        pieces.insert(key, bytes, size);
        let grown = pieces.used().wrapping_sub(before);
        drop(shard);
        let sum = if kind == PieceKind::Index { &self.pinned } else { &self.used };
        sum.fetch_add(grown, Ordering::Relaxed);
    }

    /// Whether a chunk of data is here because it was used again and again.
    pub(super) fn is_hot(&self, object: u64, chunk: u32) -> bool {
        let key = (object, Piece::Chunk(chunk));
        let shard = self.shard(key).lock().expect("no holder panics");
        shard.data.is_hot(&key) || shard.pinned.is_hot(&key)
    }
}
