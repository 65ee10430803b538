//! `BASE_BACKUP` as a stream of parts.
//!
//! Postgres 14 sends a list of tablespaces and then one copy for each, and the manifest in a last one. From 15 on everything comes in one
//! copy, in which each message begins with what it is: `n` a new archive (name and path), `m` the manifest begins, `d` data, `p` progress.

use bytes::{Buf, Bytes};
use model::{Lsn, PgMajor, Tli};

use super::client::{Client, ClientError, Message, Row, data_row, unexpected};
use crate::libpq::wire;

/// A part of a backup, in the order of its arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// An archive begins; the one before it is over.
    Archive {
        /// `base.tar` or `<oid>.tar`.
        name: String,
        /// Where the tablespace lies on the source.
        location: Option<String>,
    },
    /// Bytes of the archive.
    Data(Bytes),
    /// Bytes of the manifest.
    Manifest(Bytes),
}

/// A backup that is being received.
pub struct BaseBackup<'a> {
    client: &'a mut Client,
    /// Where WAL must be replayed from.
    pub start: Lsn,
    /// The Postgres timeline of the start.
    pub tli: Tli,
    /// Bytes that the source thinks there are, for progress; an estimate.
    pub estimated_bytes: u64,
    form: Form,
    in_manifest: bool,
}

enum Form {
    /// 14: a copy for each of these archives, in this order, then the manifest's.
    Copies { waiting: std::vec::IntoIter<(String, Option<String>)>, in_copy: bool },
    /// 15 and later: one copy.
    Messages,
}

impl<'a> BaseBackup<'a> {
    /// Asks for a backup. The source makes a checkpoint at once.
    pub async fn begin(client: &'a mut Client, pg: PgMajor) -> Result<BaseBackup<'a>, ClientError> {
        let command = if pg >= PgMajor::V15 {
            "BASE_BACKUP (LABEL 'palimpsest', PROGRESS, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP, \
             MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        } else {
            "BASE_BACKUP LABEL 'palimpsest' PROGRESS FAST NOWAIT TABLESPACE_MAP MANIFEST 'yes' \
             MANIFEST_CHECKSUMS 'CRC32C'"
        };
        client.command(command).await?;
        // The checkpoint may take long; the rows come after it.
        let (start, tli) = place(&one_result(client).await?)?;
        let tablespaces = one_result(client).await?;
        let mut archives = Vec::new();
        let mut estimated_bytes = 0;
        for row in &tablespaces {
            let text = |index: usize| row.get(index).cloned().flatten().filter(|text| !text.is_empty());
            let kilobytes: u64 = text(2).and_then(|size| size.parse().ok()).unwrap_or(0);
            estimated_bytes += kilobytes.saturating_mul(1024);
            archives.push(match text(0) {
                None => ("base.tar".to_owned(), None),
                Some(oid) => (format!("{oid}.tar"), text(1)),
            });
        }
        let form = if pg >= PgMajor::V15 {
            let message = client.message().await?;
            if message.tag != b'H' {
                return Err(unexpected(&message));
            }
            Form::Messages
        } else {
            Form::Copies { waiting: archives.into_iter(), in_copy: false }
        };
        Ok(BaseBackup { client, start, tli, estimated_bytes, form, in_manifest: false })
    }

    /// The next part; `None` when all have come.
    pub async fn next(&mut self) -> Result<Option<Part>, ClientError> {
        loop {
            let message = self.client.message().await?;
            match (&mut self.form, message.tag) {
                (Form::Messages, b'd') => {
                    if let Some(part) = part_of(message.body, &mut self.in_manifest)? {
                        return Ok(Some(part));
                    }
                }
                (Form::Messages, b'c') => return Ok(None),
                (Form::Copies { waiting, in_copy }, b'H') if !*in_copy => {
                    *in_copy = true;
                    match waiting.next() {
                        Some((name, location)) => return Ok(Some(Part::Archive { name, location })),
                        None => self.in_manifest = true,
                    }
                }
                (Form::Copies { in_copy: true, .. }, b'd') => {
                    let part = if self.in_manifest { Part::Manifest } else { Part::Data };
                    return Ok(Some(part(message.body)));
                }
                (Form::Copies { in_copy, .. }, b'c') if *in_copy => {
                    *in_copy = false;
                    if self.in_manifest {
                        return Ok(None);
                    }
                }
                _ => return Err(unexpected(&message)),
            }
        }
    }

    /// After the last part: where the backup's WAL ends, from which on it is consistent.
    pub async fn end(self) -> Result<(Lsn, Tli), ClientError> {
        // The source waits for nothing here but its own WAL, yet that may be slow: no limit but the connection's.
        let place = place(&one_result(self.client).await?)?;
        loop {
            match self.client.message().await? {
                Message { tag: b'Z', .. } => return Ok(place),
                Message { tag: b'C', .. } => {}
                other => return Err(unexpected(&other)),
            }
        }
    }
}

/// Rows up to the end of one result.
async fn one_result(client: &mut Client) -> Result<Vec<Row>, ClientError> {
    let mut rows = Vec::new();
    loop {
        let message = client.message().await?;
        match message.tag {
            b'T' => {}
            b'D' => rows.push(data_row(&message.body)?),
            b'C' => return Ok(rows),
            _ => return Err(unexpected(&message)),
        }
    }
}

/// An LSN and its Postgres timeline, from the only row of a result.
fn place(rows: &[Row]) -> Result<(Lsn, Tli), ClientError> {
    let wrong = || ClientError::Protocol(format!("expected an LSN and a timeline, got {rows:?}"));
    let [row] = rows else { return Err(wrong()) };
    let [Some(lsn), Some(tli)] = &row[..] else { return Err(wrong()) };
    Ok((lsn.parse().map_err(|_| wrong())?, Tli(tli.parse().map_err(|_| wrong())?)))
}

/// A message of the one copy of 15 and later; `None` for progress.
fn part_of(mut body: Bytes, in_manifest: &mut bool) -> Result<Option<Part>, ClientError> {
    let wrong = |what: &str| ClientError::Protocol(format!("{what} in a base backup"));
    match body.try_get_u8().map_err(|_| wrong("empty message"))? {
        b'n' => {
            let (name, rest) = wire::cstring(&body).ok_or_else(|| wrong("malformed archive name"))?;
            let (location, _) = wire::cstring(rest).ok_or_else(|| wrong("malformed archive path"))?;
            *in_manifest = false;
            let location = (!location.is_empty()).then(|| location.to_owned());
            Ok(Some(Part::Archive { name: name.to_owned(), location }))
        }
        b'm' => {
            *in_manifest = true;
            Ok(None)
        }
        b'd' if *in_manifest => Ok(Some(Part::Manifest(body))),
        b'd' => Ok(Some(Part::Data(body))),
        b'p' => Ok(None),
        other => Err(wrong(&format!("unknown message {:?}", char::from(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_newer_form_are_told_apart() {
        let mut in_manifest = false;
        let mut part = |bytes: &'static [u8]| part_of(Bytes::from_static(bytes), &mut in_manifest).unwrap();
        let archive = Part::Archive { name: "16400.tar".into(), location: Some("/x".into()) };
        assert_eq!(part(b"n16400.tar\0/x\0"), Some(archive));
        assert_eq!(part(b"dabc"), Some(Part::Data(Bytes::from_static(b"abc"))));
        assert_eq!(part(b"p\0\0\0\0\0\0\0\0"), None);
        assert_eq!(part(b"m"), None);
        assert_eq!(part(b"d{}"), Some(Part::Manifest(Bytes::from_static(b"{}"))));
        assert_eq!(part(b"nbase.tar\0\0"), Some(Part::Archive { name: "base.tar".into(), location: None }));
        for bytes in crate::libpq::garbage::any_bytes(1000) {
            let _ = part_of(bytes.into(), &mut in_manifest);
        }
    }
}
