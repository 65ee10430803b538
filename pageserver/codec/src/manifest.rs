//! `backup_manifest`: every file of a base backup with its size and checksum, and the WAL that the backup needs.
//!
//! The document is JSON, written by Postgres with one file a line; its last line holds the SHA-256 of everything before that line. It is read
//! line by line as it arrives, so that a cluster of a million files costs no memory here. A line that Postgres would not write is an error.

use model::{Lsn, Tli};
use serde::Deserialize;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// Longest line that is believed; a path has at most 1,024 bytes, each at most six in JSON.
const MAX_LINE: usize = 64 << 10;

/// How files are summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ChecksumAlgorithm {
    Crc32c,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl ChecksumAlgorithm {
    fn from_name(name: &str) -> Option<ChecksumAlgorithm> {
        Some(match name {
            "CRC32C" => ChecksumAlgorithm::Crc32c,
            "SHA224" => ChecksumAlgorithm::Sha224,
            "SHA256" => ChecksumAlgorithm::Sha256,
            "SHA384" => ChecksumAlgorithm::Sha384,
            "SHA512" => ChecksumAlgorithm::Sha512,
            _ => return None,
        })
    }
}

/// Sums up one file.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum FileSum {
    Crc32c(u32),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl FileSum {
    /// Of no bytes yet.
    pub fn new(algorithm: ChecksumAlgorithm) -> FileSum {
        match algorithm {
            ChecksumAlgorithm::Crc32c => FileSum::Crc32c(0),
            ChecksumAlgorithm::Sha224 => FileSum::Sha224(Sha224::new()),
            ChecksumAlgorithm::Sha256 => FileSum::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => FileSum::Sha384(Sha384::new()),
            ChecksumAlgorithm::Sha512 => FileSum::Sha512(Sha512::new()),
        }
    }

    /// Takes the file's next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            FileSum::Crc32c(sum) => *sum = crc32c::crc32c_append(*sum, bytes),
            FileSum::Sha224(sum) => sum.update(bytes),
            FileSum::Sha256(sum) => sum.update(bytes),
            FileSum::Sha384(sum) => sum.update(bytes),
            FileSum::Sha512(sum) => sum.update(bytes),
        }
    }

    /// The sum, as the manifest states it (a CRC in little-endian order).
    pub fn finish(self) -> Vec<u8> {
        match self {
            FileSum::Crc32c(sum) => sum.to_le_bytes().to_vec(),
            FileSum::Sha224(sum) => sum.finalize().to_vec(),
            FileSum::Sha256(sum) => sum.finalize().to_vec(),
            FileSum::Sha384(sum) => sum.finalize().to_vec(),
            FileSum::Sha512(sum) => sum.finalize().to_vec(),
        }
    }
}

/// A file that the backup must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Below the data directory; files of tablespaces below `pg_tblspc/<oid>/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Its checksum, unless the backup was taken without.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
}

/// WAL that the backup needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// On which Postgres timeline.
    pub tli: Tli,
    /// From here.
    pub start: Lsn,
    /// Up to here.
    pub end: Lsn,
}

/// Why a manifest cannot be believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ManifestError {
    #[error("backup_manifest line {line} is not what Postgres writes there")]
    Line { line: usize },
    #[error("backup_manifest line {line} is too long")]
    TooLong { line: usize },
    #[error("backup_manifest has version {0}, known are 1 and 2")]
    Version(u64),
    #[error("backup_manifest line {line} has the unknown checksum algorithm {name:?}")]
    Algorithm { line: usize, name: String },
    #[error("backup_manifest does not have the checksum that it states for itself")]
    OwnChecksum,
    #[error("backup_manifest ends too early")]
    Incomplete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Opening,
    FilesOrIdentifier,
    Files,
    RangesOpening,
    Ranges,
    OwnChecksum,
    Done,
}

/// The reader. Feed it with [`ManifestIn::push`], then ask [`ManifestIn::finish`].
#[derive(Debug)]
pub struct ManifestIn {
    line: Vec<u8>,
    lines: usize,
    part: Part,
    sum: Sha256,
    system_identifier: Option<u64>,
    wal_ranges: Vec<WalRange>,
}

/// What a manifest says besides its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEnd {
    /// Whose backup it is; 17 and later say so.
    pub system_identifier: Option<u64>,
    /// The WAL it needs, newest Postgres timeline first.
    pub wal_ranges: Vec<WalRange>,
}

impl Default for ManifestIn {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLine {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    _modified: Option<String>,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeLine {
    #[serde(rename = "Timeline")]
    tli: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl ManifestIn {
    /// At the first byte.
    pub fn new() -> Self {
        ManifestIn {
            line: Vec::new(),
            lines: 0,
            part: Part::Opening,
            sum: Sha256::new(),
            system_identifier: None,
            wal_ranges: Vec::new(),
        }
    }

    /// Takes the next bytes; `file` is called for every file line that they complete. What the files say is to be believed only once
    /// [`ManifestIn::finish`] has found the manifest's own checksum right.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        mut file: impl FnMut(ManifestFile),
    ) -> Result<(), ManifestError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&bytes[..=end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.take_line(&line, &mut file)?;
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > MAX_LINE {
            return Err(ManifestError::TooLong { line: self.lines + 1 });
        }
        Ok(())
    }

    /// The end of the manifest: its checksum is right and nothing is missing.
    pub fn finish(self) -> Result<ManifestEnd, ManifestError> {
        if self.part != Part::Done || !self.line.is_empty() {
            return Err(ManifestError::Incomplete);
        }
        Ok(ManifestEnd { system_identifier: self.system_identifier, wal_ranges: self.wal_ranges })
    }

    fn take_line(&mut self, line: &[u8], file: &mut impl FnMut(ManifestFile)) -> Result<(), ManifestError> {
        self.lines += 1;
        let bad = ManifestError::Line { line: self.lines };
        if line.len() > MAX_LINE {
            return Err(ManifestError::TooLong { line: self.lines });
        }
        let text =
            std::str::from_utf8(line).map_err(|_| ManifestError::Line { line: self.lines })?.trim_end();
        if self.part != Part::OwnChecksum {
            self.sum.update(line);
        }
        match self.part {
            Part::Opening => {
                let version = text
                    .strip_prefix("{ \"PostgreSQL-Backup-Manifest-Version\": ")
                    .and_then(|rest| rest.strip_suffix(','))
                    .and_then(|number| number.parse::<u64>().ok())
                    .ok_or(bad)?;
                if !(1..=2).contains(&version) {
                    return Err(ManifestError::Version(version));
                }
                self.part = Part::FilesOrIdentifier;
            }
            Part::FilesOrIdentifier => {
                if let Some(rest) = text.strip_prefix("\"System-Identifier\": ") {
                    let number = rest.strip_suffix(',').and_then(|number| number.parse().ok()).ok_or(bad)?;
                    self.system_identifier = Some(number);
                } else if text == "\"Files\": [" {
                    self.part = Part::Files;
                } else {
                    return Err(bad);
                }
            }
            Part::Files if text == "]," => self.part = Part::RangesOpening,
            Part::Files if text.is_empty() => {}
            Part::Files => file(self.file(text)?),
            Part::RangesOpening if text == "\"WAL-Ranges\": [" => self.part = Part::Ranges,
            Part::Ranges if text == "]," => self.part = Part::OwnChecksum,
            Part::Ranges => {
                let range: RangeLine =
                    serde_json::from_str(text.strip_suffix(',').unwrap_or(text)).map_err(|_| bad)?;
                self.wal_ranges.push(WalRange { tli: Tli(range.tli), start: range.start, end: range.end });
            }
            Part::OwnChecksum => {
                let stated = text
                    .strip_prefix("\"Manifest-Checksum\": \"")
                    .and_then(|rest| rest.strip_suffix("\"}"))
                    .and_then(|digits| hex::decode(digits).ok())
                    .ok_or(bad)?;
                if stated[..] != self.sum.clone().finalize()[..] {
                    return Err(ManifestError::OwnChecksum);
                }
                self.part = Part::Done;
            }
            Part::RangesOpening | Part::Done => return Err(bad),
        }
        Ok(())
    }

    fn file(&self, text: &str) -> Result<ManifestFile, ManifestError> {
        let bad = || ManifestError::Line { line: self.lines };
        let line: FileLine =
            serde_json::from_str(text.strip_suffix(',').unwrap_or(text)).map_err(|_| bad())?;
        let path = match (line.path, line.encoded_path) {
            (Some(path), None) => path,
            (None, Some(digits)) => {
                hex::decode(digits).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(bad)?
            }
            _ => return Err(bad()),
        };
        let checksum = match (line.algorithm, line.checksum) {
            (None, None) => None,
            (Some(name), Some(digits)) => {
                let algorithm = ChecksumAlgorithm::from_name(&name)
                    .ok_or(ManifestError::Algorithm { line: self.lines, name })?;
                Some((algorithm, hex::decode(digits).map_err(|_| bad())?))
            }
            _ => return Err(bad()),
        };
        Ok(ManifestFile { path, size: line.size, checksum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(version: u32) -> String {
        let identifier = if version == 2 { "\"System-Identifier\": 7710606737096929117,\n" } else { "" };
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n{identifier}\"Files\": [\n\
             {{ \"Path\": \"backup_label\", \"Size\": 225, \"Last-Modified\": \"2026-11-21 12:54:32 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"305fa787\" }},\n\
             {{ \"Encoded-Path\": \"7461\", \"Size\": 8192, \"Last-Modified\": \"2026-11-21 12:54:32 GMT\" }}\n],\n\
             \"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
        );
        let sum = hex::encode(Sha256::digest(body.as_bytes()));
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    fn read(text: &[u8], chunk: usize) -> Result<(Vec<ManifestFile>, ManifestEnd), ManifestError> {
        let mut manifest = ManifestIn::new();
        let mut files = Vec::new();
        for bytes in text.chunks(chunk) {
            manifest.push(bytes, |file| files.push(file))?;
        }
        Ok((files, manifest.finish()?))
    }

    #[test]
    fn files_ranges_and_identifier_are_read_whatever_the_chunks() {
        for chunk in [1, 5, 10_000] {
            let (files, end) = read(sample(2).as_bytes(), chunk).unwrap();
            assert_eq!(files.len(), 2);
            assert_eq!(files[0].checksum, Some((ChecksumAlgorithm::Crc32c, vec![0x30, 0x5f, 0xa7, 0x87])));
            assert_eq!((files[1].path.as_str(), files[1].size, &files[1].checksum), ("ta", 8192, &None));
            assert_eq!(end.system_identifier, Some(7_710_606_737_096_929_117));
            assert_eq!(
                end.wal_ranges,
                [WalRange { tli: Tli(1), start: Lsn(0x2000028), end: Lsn(0x2000100) }]
            );
        }
        assert_eq!(read(sample(1).as_bytes(), 100).unwrap().1.system_identifier, None);
    }

    #[test]
    fn no_flipped_bit_goes_unseen() {
        let text = sample(2).into_bytes();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The case of a hexadecimal digit and the kind of blank at the very end say nothing.
            let same_case = bit % 8 == 5 && text[bit / 8].is_ascii_alphabetic();
            if bit / 8 < text.len() - 1 && !same_case {
                assert!(read(&flipped, 4096).is_err(), "bit {bit}: {}", String::from_utf8_lossy(&flipped));
            }
        }
    }

    #[test]
    fn a_cut_manifest_is_incomplete() {
        let text = sample(1);
        for cut in 0..text.len() {
            assert!(read(&text.as_bytes()[..cut], 4096).is_err(), "cut at {cut}");
        }
    }
}
