//! The directory of tablespaces: which exist and where they are on the source. Ours; Neon has none.
//!
//! ```text
//! u8 version 1 | u32 count | then per tablespace, oids ascending: u32 oid | u16 length | path     (all big-endian)
//! ```
//!
//! An empty path is an in-place tablespace (`pg_tblspc/<oid>` is a directory, not a link). Paths are bytes, as on any Unix.

use std::collections::BTreeMap;

use crate::bytes_in::{BytesIn, Truncated};

const VERSION: u8 = 1;

/// Tablespaces by oid, with their path on the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tablespaces {
    /// Oid to path; an empty path is in place.
    pub paths: BTreeMap<u32, Vec<u8>>,
}

/// Bytes that are not a directory of tablespaces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TablespacesError {
    #[error("tablespace directory is truncated: {0}")]
    Truncated(#[from] Truncated),
    #[error("tablespace directory has version {0}, expected 1")]
    Version(u8),
    #[error("tablespace directory lists tablespace {0} out of order")]
    Order(u32),
    #[error("{0} bytes are left over after the tablespace directory")]
    TrailingBytes(usize),
}

impl Tablespaces {
    /// Reads the directory; no bytes at all are an empty one.
    pub fn decode(bytes: &[u8]) -> Result<Tablespaces, TablespacesError> {
        let mut paths = BTreeMap::new();
        if bytes.is_empty() {
            return Ok(Tablespaces { paths });
        }
        let mut input = BytesIn::new(bytes);
        match input.u8()? {
            VERSION => {}
            version => return Err(TablespacesError::Version(version)),
        }
        for _ in 0..input.u32_be()? {
            let oid = input.u32_be()?;
            if paths.last_key_value().is_some_and(|(last, _)| *last >= oid) {
                return Err(TablespacesError::Order(oid));
            }
            let length = usize::from(input.u16_be()?);
            paths.insert(oid, input.take(length)?.to_vec());
        }
        match input.remaining() {
            0 => Ok(Tablespaces { paths }),
            left => Err(TablespacesError::TrailingBytes(left)),
        }
    }

    /// The directory's bytes. A path longer than 65,535 bytes, which no Unix allows, is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&(self.paths.len() as u32).to_be_bytes());
        for (oid, path) in &self.paths {
            let path = &path[..path.len().min(usize::from(u16::MAX))];
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&(path.len() as u16).to_be_bytes());
            out.extend_from_slice(path);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_bytes_are_no_tablespaces() {
        assert_eq!(Tablespaces::decode(&[]), Ok(Tablespaces::default()));
        assert_eq!(Tablespaces::decode(&[2]), Err(TablespacesError::Version(2)));
    }

    proptest! {
        #[test]
        fn directories_round_trip(paths: BTreeMap<u32, Vec<u8>>, cut in 0usize..64) {
            let directory = Tablespaces { paths };
            let bytes = directory.encode();
            prop_assert_eq!(Tablespaces::decode(&bytes), Ok(directory));
            let cut = bytes.len().saturating_sub(1 + cut);
            prop_assert!(cut == 0 || Tablespaces::decode(&bytes[..cut]).is_err());
        }
    }
}
