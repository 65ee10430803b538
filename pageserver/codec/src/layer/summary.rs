//! Block 0 of a layer file: what the file is, and where its index begins.
//!
//! ```text
//! image                                         delta
//!  0 u16 magic 5A60    2 u16 version 3           0 u16 magic 5A61    2 u16 version 3
//!  4 [16] tenant      20 [16] timeline           4 [16] tenant      20 [16] timeline
//! 36 [18] first key   54 [18] end key           36 [18] first key   54 [18] end key
//! 72 u64 lsn                                    72 u64 first lsn    80 u64 end lsn
//! 80 u32 index start  84 u32 index root         88 u32 index start  92 u32 index root
//! ```
//!
//! The rest of the block is zeros in the plain format. Ours holds an extension there:
//!
//! ```text
//! 128 [8] "PLMPSEST"  136 u16 version 1  138 u16 zero  140 u32 first block of the checksum table
//! 144 u32 blocks that the table covers   148 u32 CRC-32C of block 0, taken with these four bytes as zeros
//! ```

use model::{BLOCK_SIZE, Key, LayerName, Lsn, TenantId, TimelineId};

use super::{Block, ChecksumTable, LayerKind, Layout, ReadLayerError};
use crate::bytes_in::{BytesIn, Truncated};
use crate::page::ZERO_PAGE;

const IMAGE_MAGIC: u16 = 0x5A60;
const DELTA_MAGIC: u16 = 0x5A61;
const FORMAT_VERSION: u16 = 3;

const EXTENSION_AT: usize = 128;
const EXTENSION_MAGIC: &[u8; 8] = b"PLMPSEST";
const EXTENSION_VERSION: u16 = 1;
const BLOCK_CRC_AT: usize = 148;
const EXTENSION_END: usize = 152;

/// What block 0 says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Whose it is.
    pub tenant: TenantId,
    /// The timeline that it was written for; a branch may have adopted it since.
    pub timeline: TimelineId,
    /// Which keys and LSNs it covers.
    pub name: LayerName,
    /// First block of the index.
    pub index_start_block: u32,
    /// Root of the index, counted from its first block.
    pub index_root_block: u32,
    /// First block of the checksum table and the number of blocks that it covers; absent in plain files.
    pub checksums: Option<(u32, u32)>,
}

impl Summary {
    /// The block as it is written.
    pub fn encode(&self) -> Box<Block> {
        let mut bytes = Vec::with_capacity(BLOCK_SIZE);
        let magic = if self.name.is_delta() { DELTA_MAGIC } else { IMAGE_MAGIC };
        bytes.extend_from_slice(&magic.to_be_bytes());
        bytes.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.tenant.0);
        bytes.extend_from_slice(&self.timeline.0);
        bytes.extend_from_slice(&self.name.keys().start.to_bytes());
        bytes.extend_from_slice(&self.name.keys().end.to_bytes());
        match &self.name {
            LayerName::Image { lsn, .. } => bytes.extend_from_slice(&lsn.0.to_be_bytes()),
            LayerName::Delta { lsns, .. } => {
                bytes.extend_from_slice(&lsns.start.0.to_be_bytes());
                bytes.extend_from_slice(&lsns.end.0.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&self.index_start_block.to_be_bytes());
        bytes.extend_from_slice(&self.index_root_block.to_be_bytes());
        if let Some((start, covered)) = self.checksums {
            bytes.resize(EXTENSION_AT, 0);
            bytes.extend_from_slice(EXTENSION_MAGIC);
            bytes.extend_from_slice(&EXTENSION_VERSION.to_be_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&start.to_be_bytes());
            bytes.extend_from_slice(&covered.to_be_bytes());
        }
        bytes.resize(BLOCK_SIZE, 0);
        let mut block: Box<Block> = bytes.try_into().expect("resized to a block");
        if self.checksums.is_some() {
            let crc = crc_without_itself(&block);
            block[BLOCK_CRC_AT..EXTENSION_END].copy_from_slice(&crc.to_be_bytes());
        }
        block
    }

    /// Reads the block. With our extension its checksum is verified before anything else is believed.
    pub fn decode(block: &Block) -> Result<Summary, ReadLayerError> {
        let checksums = decode_extension(block)?;
        let mut input = BytesIn::new(block);
        let magic = input.u16_be()?;
        let kind = match magic {
            IMAGE_MAGIC => LayerKind::Image,
            DELTA_MAGIC => LayerKind::Delta,
            _ => return Err(field(0, "magic", magic, "5A60 (image layer) or 5A61 (delta layer)")),
        };
        let version = input.u16_be()?;
        if version != FORMAT_VERSION {
            return Err(field(2, "format version", version, "3"));
        }
        let tenant = TenantId(input.array()?);
        let timeline = TimelineId(input.array()?);
        let keys = Key::from_bytes(&input.array()?)..Key::from_bytes(&input.array()?);
        if keys.is_empty() {
            return Err(field(36, "first key's kind", keys.start.field1, "a first key below the end key"));
        }
        let lsn = Lsn(input.u64_be()?);
        let name = match kind {
            LayerKind::Image if lsn == Lsn::MAX => {
                return Err(field(72, "lsn", lsn.0, "less than the highest LSN"));
            }
            LayerKind::Image => LayerName::Image { keys, lsn },
            LayerKind::Delta => {
                let lsns = lsn..Lsn(input.u64_be()?);
                if lsns.is_empty() {
                    return Err(field(72, "first lsn", lsn.0, "less than the end lsn"));
                }
                LayerName::Delta { keys, lsns }
            }
        };
        let (index_start_block, index_root_block) = (input.u32_be()?, input.u32_be()?);
        let written = input.position();
        let summary = Summary { tenant, timeline, name, index_start_block, index_root_block, checksums };
        let tail = if summary.checksums.is_some() { EXTENSION_END } else { EXTENSION_AT };
        for padding in [written..EXTENSION_AT, tail..BLOCK_SIZE] {
            // Compared as a whole, as this is done whenever a layer's first chunk is fetched.
            if block[padding.clone()] != ZERO_PAGE[padding.clone()] {
                let at = padding.clone().find(|at| block[*at] != 0).unwrap_or(padding.start);
                return Err(field(at, "padding of block 0", block[at], "0"));
            }
        }
        Ok(summary)
    }

    /// Where things are in the file of `file_size` bytes that this block begins.
    pub fn layout(&self, file_size: u64) -> Result<Layout, ReadLayerError> {
        let kind = if self.name.is_delta() { LayerKind::Delta } else { LayerKind::Image };
        let layout = Layout::new(
            kind,
            file_size,
            self.index_start_block,
            self.index_root_block,
            self.checksums.map(|(start, _)| start),
        )?;
        match (self.checksums, layout.checksums().map(ChecksumTable::covered)) {
            (Some((_, said)), Some(counted)) if said != counted => Err(field(
                144,
                "number of blocks with checksums",
                said,
                "the number that the file's size gives",
            )),
            _ => Ok(layout),
        }
    }
}

/// The checksum table's first block and what it covers, when there is an extension.
fn decode_extension(block: &Block) -> Result<Option<(u32, u32)>, ReadLayerError> {
    let extension = &block[EXTENSION_AT..EXTENSION_END];
    if extension.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let mut input = BytesIn::new(extension);
    if input.array()? != *EXTENSION_MAGIC {
        return Err(field(EXTENSION_AT, "extension's first byte", extension[0], "zeros, or \"PLMPSEST\""));
    }
    let version = input.u16_be()?;
    let reserved = input.u16_be()?;
    let (start, covered, stored) = (input.u32_be()?, input.u32_be()?, input.u32_be()?);
    let computed = crc_without_itself(block);
    if stored != computed {
        return Err(ReadLayerError::Checksum { at: 0, stored, computed });
    }
    if version != EXTENSION_VERSION || reserved != 0 {
        return Err(field(136, "extension's version", version, "1"));
    }
    Ok(Some((start, covered)))
}

fn crc_without_itself(block: &Block) -> u32 {
    let crc = crc32c::crc32c(&block[..BLOCK_CRC_AT]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &block[EXTENSION_END..])
}

fn field(at: usize, what: &'static str, found: impl Into<u64>, expected: &'static str) -> ReadLayerError {
    ReadLayerError::Field { at: at as u64, what, found: found.into(), expected }
}

impl From<Truncated> for ReadLayerError {
    fn from(error: Truncated) -> Self {
        let Truncated { at, wanted, left } = error;
        ReadLayerError::Truncated { at: at as u64, what: "block 0", wanted: wanted as u64, left: left as u64 }
    }
}
