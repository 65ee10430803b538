//! What the fuzz targets share: the fuzzer's bytes as a source of decisions, and right checksums over wrong content, since no fuzzer guesses
//! a CRC.

use codec::tar_in::TAR_BLOCK;
use codec::wal::build::{BlockDraft, RecordDraft};
use model::{Fork, PgMajor, RelTag};

/// The fuzzer's bytes, taken from the front. At their end there are only zeros.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, low one first.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes, low one first.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Bytes behind their length, which takes two.
    pub fn short(&mut self) -> &'a [u8] {
        let length = self.u16().into();
        self.bytes(length)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A major version.
    pub fn major(&mut self) -> PgMajor {
        PgMajor::ALL[usize::from(self.u8()) % PgMajor::ALL.len()]
    }

    /// A record as the builder writes it, of any kind. Its form:
    ///
    /// ```text
    /// u8 resource manager | u8 info | u8 bit per block reference | u16 length, main data
    /// | per block reference: u8 flags (0x0F block number, 0x10 will_init, 0x60 fork) | u16 length, data
    /// ```
    pub fn record(&mut self) -> RecordDraft {
        let mut draft =
            RecordDraft { rmgr: self.u8() % 24, info: self.u8(), xid: 700, ..RecordDraft::default() };
        let blocks = self.u8();
        draft.main = self.short().to_vec();
        for id in (0..8).filter(|id| blocks & 1 << id != 0) {
            let flags = self.u8();
            let fork = Fork::ALL[usize::from(flags >> 5 & 3)];
            draft.blocks.push(BlockDraft {
                id,
                rel: RelTag { spc: 1663, db: 5, rel: 16384, fork },
                block: u32::from(flags & 0x0F),
                will_init: flags & 0x10 != 0,
                image: None,
                data: self.short().to_vec(),
            });
        }
        draft
    }

    /// A tar archive with right checksums. Per entry: its form, name, link, content; the size as text where it is not to be right.
    pub fn archive(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while !self.is_empty() && out.len() < 1 << 20 {
            let mut block = [0; TAR_BLOCK];
            let mut put = |at: usize, most: usize, bytes: &[u8]| {
                let bytes = &bytes[..bytes.len().min(most)];
                block[at..at + bytes.len()].copy_from_slice(bytes);
            };
            let form = self.u8();
            let name = self.u8();
            put(0, 100, self.bytes(usize::from(name % 104)));
            put(100, 8, b"0000600");
            put(136, 12, b"00000000000");
            put(156, 1, &[b"05xLKg27\0"[usize::from(form & 15) % 9]]);
            if form & 0x10 != 0 {
                let link = self.u8();
                put(157, 100, self.bytes(usize::from(link % 104)));
            }
            let content = if form & 0x80 != 0 { self.short() } else { &[] };
            let size = format!("{:011o}", content.len());
            put(124, 12, if form & 0x40 != 0 { self.bytes(12) } else { size.as_bytes() });
            put(257, 8, if form & 0x20 != 0 { b"ustar  \0" } else { b"ustar\x0000" });
            if form & 0x0F == 0x0F {
                let prefix = self.u8();
                put(345, 155, self.bytes(prefix.into()));
            }
            let sum: u32 = 8 * 32 + block.iter().map(|byte| u32::from(*byte)).sum::<u32>();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            block[155] = b' ';
            out.extend(block);
            out.extend(content);
            out.resize(out.len().next_multiple_of(TAR_BLOCK), 0);
        }
        // A terminator: whole, half, or none.
        out.resize(out.len() + out.len() / TAR_BLOCK % 3 * TAR_BLOCK, 0);
        out
    }
}

/// Writes the reverse of [`Input::record`]; `None` for a record that it cannot say.
pub fn put_record(record: &codec::wal::record::Record<'_>, out: &mut Vec<u8>) -> Option<()> {
    let ids =
        record.blocks.iter().map(|block| (block.id < 8).then(|| 1u8 << block.id)).sum::<Option<u8>>()?;
    out.extend([record.rmgr.0, record.info, ids]);
    put_short(record.main, out)?;
    for block in &record.blocks {
        let fork = Fork::ALL.iter().position(|fork| *fork == block.rel.fork)? as u8;
        out.push((block.block & 0x0F) as u8 | if block.will_init { 0x10 } else { 0 } | fork << 5);
        put_short(block.data, out)?;
    }
    Some(())
}

/// Writes the reverse of [`Input::short`].
pub fn put_short(bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend(u16::try_from(bytes.len()).ok()?.to_le_bytes());
    out.extend(bytes);
    Some(())
}

/// `bytes` with their CRC-32C behind them, low byte first.
pub fn sealed(bytes: &[u8]) -> Vec<u8> {
    [bytes, &crc32c::crc32c(bytes).to_le_bytes()].concat()
}

/// `pg_control` with the right version and checksum; the rest is as in `bytes` (up to where the checksum belongs), but for what must be
/// so if `usual`.
pub fn control_file(pg: PgMajor, bytes: &[u8], usual: bool) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(if pg == PgMajor::V18 { 292 } else { 288 }, 0);
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(8, &codec::control::format_version(pg).to_le_bytes());
    put(12, &codec::control::catalog_version(pg).to_le_bytes());
    if usual {
        put(208, &1_234_567f64.to_le_bytes());
        for (at, value) in [(204, 8u32), (216, 8192), (220, 131_072), (224, 8192), (228, 16 << 20)] {
            put(at, &value.to_le_bytes());
        }
        // Shut down; a state that there is not is no use to anyone.
        put(16, &[1, 0, 0, 0]);
        for at in [168, 176, 200] {
            put(at, &[bytes.get(at).copied().unwrap_or(0) & 1]);
        }
    }
    let mut out = sealed(&out);
    out.resize(codec::control::CONTROL_FILE_SIZE, 0);
    out
}

/// A relation map with the right checksum.
pub fn relation_map(pg: PgMajor, bytes: &[u8]) -> Vec<u8> {
    let mut map = bytes.to_vec();
    map.resize(if pg <= PgMajor::V15 { 504 } else { 520 }, 0);
    let mut map = sealed(&map);
    map.resize(codec::relmap::size(pg), 0);
    map
}
