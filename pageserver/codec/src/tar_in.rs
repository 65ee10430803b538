//! A tar archive read as it arrives: fed chunks cut anywhere, yields headers and slices of content. Holds no file in memory.
//!
//! Understood: regular files, directories and symbolic links, of ustar, GNU and pax form, as Postgres, `pg_basebackup` and `tar` write
//! them for a data directory. Everything else (hard links, devices, sparse files …) is refused by name.

use tar::{EntryType, Header};

/// Bytes of a tar block.
pub const TAR_BLOCK: usize = 512;
/// Longest extension (long name, pax records) that is read into memory.
const MAX_EXTENSION: u64 = 64 << 10;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
}

/// An entry's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// As in the archive, but for a leading `./` and trailing `/`; never absolute, never with `..`.
    pub path: String,
    /// What it is.
    pub kind: TarKind,
    /// Bytes of content that follow.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

/// What comes next in an archive.
#[derive(Debug, PartialEq, Eq)]
pub enum TarEvent<'a> {
    /// An entry begins.
    Entry(TarEntry),
    /// Some of the entry's content; never empty.
    Data(&'a [u8]),
    /// All of the entry's content was there.
    EntryEnd,
}

/// Why bytes are not an archive that we can use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("tar archive, offset {at}: {what}")]
pub struct TarError {
    /// Offset in the archive.
    pub at: u64,
    /// What is wrong there.
    pub what: String,
}

/// The reader. Feed it with [`TarIn::next`] until that answers `None`, and call [`TarIn::finish`] at the archive's end.
#[derive(Debug)]
pub struct TarIn {
    at: u64,
    state: State,
    block: Vec<u8>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    long_size: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Extension { kind: Extension, left: u64, padding: u64 },
    Data { left: u64, padding: u64 },
    Padding { left: u64, then_end: bool },
    OneZeroBlock,
    Terminated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    LongPath,
    LongLink,
    Pax,
}

impl Default for TarIn {
    fn default() -> Self {
        Self::new()
    }
}

impl TarIn {
    /// At the first byte of an archive.
    pub fn new() -> Self {
        TarIn {
            at: 0,
            state: State::Header,
            block: Vec::with_capacity(TAR_BLOCK),
            long_path: None,
            long_link: None,
            long_size: None,
        }
    }

    fn error(&self, what: impl Into<String>) -> TarError {
        TarError { at: self.at, what: what.into() }
    }

    fn take<'a>(&mut self, input: &mut &'a [u8], at_most: u64) -> &'a [u8] {
        let count = input.len().min(usize::try_from(at_most).unwrap_or(usize::MAX));
        let (taken, rest) = input.split_at(count);
        *input = rest;
        self.at += count as u64;
        taken
    }

    /// Takes bytes from the front of `input` and says what they are; `None` when all were taken and more are needed.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarError> {
        loop {
            match self.state {
                State::Data { left: 0, padding } => {
                    self.state = State::Padding { left: padding, then_end: true };
                }
                State::Padding { left: 0, then_end } => {
                    self.state = State::Header;
                    if then_end {
                        return Ok(Some(TarEvent::EntryEnd));
                    }
                }
                _ if input.is_empty() => return Ok(None),
                State::Data { left, padding } => {
                    let data = self.take(input, left);
                    self.state = State::Data { left: left - data.len() as u64, padding };
                    return Ok(Some(TarEvent::Data(data)));
                }
                State::Padding { left, then_end } => {
                    let skipped = self.take(input, left).len() as u64;
                    self.state = State::Padding { left: left - skipped, then_end };
                }
                State::Extension { kind, left, padding } => {
                    let data = self.take(input, left);
                    self.block.extend_from_slice(data);
                    let left = left - data.len() as u64;
                    self.state = State::Extension { kind, left, padding };
                    if left == 0 {
                        self.extension(kind)?;
                        self.state = State::Padding { left: padding, then_end: false };
                    }
                }
                State::Header | State::OneZeroBlock => {
                    let wanted = (TAR_BLOCK - self.block.len()) as u64;
                    let data = self.take(input, wanted);
                    self.block.extend_from_slice(data);
                    if self.block.len() == TAR_BLOCK
                        && let Some(entry) = self.header()?
                    {
                        return Ok(Some(TarEvent::Entry(entry)));
                    }
                }
                State::Terminated => {
                    let rest = self.take(input, u64::MAX);
                    if rest.iter().any(|byte| *byte != 0) {
                        return Err(self.error("data after the end of the archive"));
                    }
                }
            }
        }
    }

    /// Checks that the archive ended where it may. Postgres 14 leaves out the terminator (two zero blocks): then `must_terminate` is false.
    pub fn finish(&self, must_terminate: bool) -> Result<(), TarError> {
        match self.state {
            State::Terminated => Ok(()),
            State::Header | State::OneZeroBlock if !must_terminate && self.block.is_empty() => {
                if self.long_path.is_some() || self.long_link.is_some() || self.long_size.is_some() {
                    return Err(self.error("it ends after an extended header"));
                }
                Ok(())
            }
            State::Header | State::OneZeroBlock => Err(self.error("it ends without its terminator")),
            _ => Err(self.error("it ends within an entry")),
        }
    }

    fn header(&mut self) -> Result<Option<TarEntry>, TarError> {
        let block: [u8; TAR_BLOCK] =
            std::mem::take(&mut self.block).try_into().expect("called with a whole block");
        if block.iter().all(|byte| *byte == 0) {
            self.state =
                if self.state == State::OneZeroBlock { State::Terminated } else { State::OneZeroBlock };
            return Ok(None);
        }
        if self.state == State::OneZeroBlock {
            return Err(self.error("a header after a zero block"));
        }
        let header = Header::from_byte_slice(&block);
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.error("header checksum is wrong"));
        }
        let bad_number =
            |what: &str| TarError { at: self.at, what: format!("{what} of the header is no number") };
        let stated = header.entry_size().map_err(|_| bad_number("size"))?;
        let mode = header.mode().map_err(|_| bad_number("mode"))?;
        let padding_of = |size: u64| size.wrapping_neg() % TAR_BLOCK as u64;
        let entry_type = header.entry_type();
        let extension = match entry_type {
            EntryType::GNULongName => Some(Extension::LongPath),
            EntryType::GNULongLink => Some(Extension::LongLink),
            EntryType::XHeader => Some(Extension::Pax),
            _ => None,
        };
        if let Some(kind) = extension {
            if stated > MAX_EXTENSION {
                return Err(self.error(format!("an extended header of {stated} bytes")));
            }
            self.state = State::Extension { kind, left: stated, padding: padding_of(stated) };
            if stated == 0 {
                self.extension(kind)?;
                self.state = State::Header;
            }
            return Ok(None);
        }
        let path = self.long_path.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            self.long_link.take().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let size = self.long_size.take().unwrap_or(stated);
        let path = self.clean_path(path)?;
        let kind = match entry_type {
            EntryType::Regular => TarKind::File,
            EntryType::Directory => TarKind::Directory,
            EntryType::Symlink => {
                let target = String::from_utf8(link.unwrap_or_default())
                    .map_err(|_| self.error(format!("the target of link {path:?} is not UTF-8")))?;
                TarKind::Symlink { target }
            }
            other => {
                let code = char::from(other.as_byte());
                return Err(self.error(format!("{path:?} has the unsupported entry type {code:?}")));
            }
        };
        if kind != TarKind::File && size != 0 {
            return Err(self.error(format!("{path:?} is no file but has content")));
        }
        self.state = State::Data { left: size, padding: padding_of(size) };
        Ok(Some(TarEntry { path, kind, size, mode: mode & 0o7777 }))
    }

    fn extension(&mut self, kind: Extension) -> Result<(), TarError> {
        let mut content = std::mem::take(&mut self.block);
        match kind {
            Extension::LongPath | Extension::LongLink => {
                while content.last() == Some(&0) {
                    content.pop();
                }
                let slot =
                    if kind == Extension::LongPath { &mut self.long_path } else { &mut self.long_link };
                *slot = Some(content);
            }
            Extension::Pax => self.pax(&content)?,
        }
        Ok(())
    }

    fn pax(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while !records.is_empty() {
            let bad = || TarError { at: self.at, what: "malformed pax record".into() };
            let blank = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length: usize = std::str::from_utf8(&records[..blank])
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(bad)?;
            if length <= blank + 2 || length > records.len() || records[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &records[blank + 1..length - 1];
            records = &records[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.long_path = Some(value.to_vec()),
                b"linkpath" => self.long_link = Some(value.to_vec()),
                b"size" => {
                    let digits = std::str::from_utf8(value).map_err(|_| bad())?;
                    self.long_size = Some(digits.parse().map_err(|_| bad())?);
                }
                b"mtime" | b"atime" | b"ctime" | b"uid" | b"gid" | b"uname" | b"gname" | b"comment" => {}
                other => {
                    let name = String::from_utf8_lossy(other);
                    return Err(self.error(format!("unknown pax record {name:?}")));
                }
            }
        }
        Ok(())
    }

    fn clean_path(&self, raw: Vec<u8>) -> Result<String, TarError> {
        let text = String::from_utf8(raw).map_err(|_| self.error("a path that is not UTF-8"))?;
        if text.starts_with('/') || text.split('/').any(|part| part == "..") || text.contains('\0') {
            return Err(self.error(format!("the path {text:?} leads out of the archive")));
        }
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        Ok(parts.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar_out;
    use proptest::prelude::*;

    /// All entries with their content, the archive fed in chunks of `chunk` bytes.
    fn read(
        archive: &[u8],
        chunk: usize,
        must_terminate: bool,
    ) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
        let mut tar = TarIn::new();
        let mut entries: Vec<(TarEntry, Vec<u8>)> = Vec::new();
        let mut ended = 0;
        for mut input in archive.chunks(chunk) {
            while let Some(event) = tar.next(&mut input)? {
                match event {
                    TarEvent::Entry(entry) => entries.push((entry, Vec::new())),
                    TarEvent::Data(data) => entries.last_mut().unwrap().1.extend_from_slice(data),
                    TarEvent::EntryEnd => ended += 1,
                }
            }
        }
        tar.finish(must_terminate)?;
        assert_eq!(ended, entries.len());
        Ok(entries)
    }

    fn sample() -> Vec<u8> {
        let mut archive = tar_out::directory("base", 0o700, 0);
        let long = format!("base/{}", "x".repeat(150));
        for (path, content) in [("PG_VERSION", &b"15\n"[..]), ("base/empty", b""), (&long, &[7; 1500])] {
            archive.extend(tar_out::file(path, content.len() as u64, 0));
            archive.extend_from_slice(content);
            archive.extend(tar_out::padding(content.len() as u64));
        }
        archive.extend(tar_out::symlink("pg_tblspc/16384", &format!("/srv/{}", "y".repeat(120)), 0));
        archive.extend(tar_out::TERMINATOR);
        archive
    }

    #[test]
    fn entries_come_out_whatever_the_chunks() {
        let whole = read(&sample(), usize::MAX, true).unwrap();
        assert_eq!(whole.len(), 5);
        assert_eq!(whole[1].0.path, "PG_VERSION");
        assert_eq!(whole[1].1, b"15\n");
        assert_eq!(whole[3].0.path.len(), 155);
        assert_eq!(whole[3].1, [7; 1500]);
        assert!(matches!(&whole[4].0.kind, TarKind::Symlink { target } if target.len() == 125));
        for chunk in [1, 7, 511, 512, 513, 4096] {
            assert_eq!(read(&sample(), chunk, true).unwrap(), whole);
        }
    }

    #[test]
    fn a_cut_archive_is_noticed_at_every_block() {
        let archive = sample();
        let end = archive.len() - tar_out::TERMINATOR.len();
        for cut in (0..archive.len()).step_by(256) {
            assert!(read(&archive[..cut], 4096, true).is_err(), "cut at {cut}");
        }
        assert!(read(&archive[..end], 4096, false).is_ok());
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_noticed() {
        let archive = sample();
        for bit in 0..512 * 8 {
            let mut flipped = archive.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Bits that the checksum's own number does not depend on, such as the blank after it, may flip unseen.
            if !(148..156).contains(&(bit / 8)) {
                assert!(read(&flipped, 4096, true).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn paths_that_lead_out_and_kinds_we_do_not_know_are_refused() {
        for path in ["/etc/passwd", "a/../../b"] {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(0);
            header.set_mode(0o600);
            header.set_cksum();
            let error = read(header.as_bytes(), 512, false).unwrap_err();
            assert!(error.what.contains("leads out"), "{error}");
        }
        let mut header = Header::new_gnu();
        header.set_path("x").unwrap();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        header.set_mode(0o600);
        header.set_cksum();
        assert!(read(header.as_bytes(), 512, false).unwrap_err().what.contains("unsupported"));
    }

    #[test]
    fn pax_records_give_path_and_size() {
        let mut archive = Vec::new();
        let path = "p".repeat(300);
        let record = |key: &str, value: &str| {
            let body = format!(" {key}={value}\n");
            let length =
                (body.len()..body.len() + 9).find(|n| n.to_string().len() + body.len() == *n).unwrap();
            format!("{length}{body}")
        };
        let pax = record("path", &path) + &record("size", "5") + &record("mtime", "1.5");
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(pax.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(pax.as_bytes());
        archive.extend(tar_out::padding(pax.len() as u64));
        archive.extend(tar_out::file("short", 0, 0));
        archive.extend_from_slice(b"hello");
        archive.extend(tar_out::padding(5));
        archive.extend(tar_out::TERMINATOR);
        let entries = read(&archive, 100, true).unwrap();
        assert_eq!(entries[0].0.path, path);
        assert_eq!(entries[0].1, b"hello");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), at in 0usize..512) {
            let _ = read(&bytes, 100, true).is_ok();
            let mut archive = sample();
            let length = bytes.len().min(archive.len() - at);
            archive[at..at + length].copy_from_slice(&bytes[..length]);
            let _ = read(&archive, 333, true).is_ok();
        }
    }
}
