//! Replication commands and the messages of a physical stream. Integers are big-endian, times are microseconds since 2000.
//!
//! ```text
//! WAL        w | start u64 | end of the source's WAL u64 | time i64 | bytes
//! keepalive  k | end of the source's WAL u64 | time i64 | reply wanted u8
//! status     r | written u64 | flushed u64 | applied u64 | time i64 | reply wanted u8
//! ```

use std::time::SystemTime;

use bytes::{Buf, Bytes};
use codec::history::TimelineHistory;
use model::{Lsn, PgMajor, PgTimestamp, Tli, WalSegmentSize};

use super::client::{Client, ClientError, Message, Row};

/// What a source says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIdentity {
    /// Of its cluster.
    pub system_identifier: u64,
    /// The Postgres timeline it is on.
    pub tli: Tli,
    /// The end of its flushed WAL.
    pub flushed: Lsn,
    /// Its major version.
    pub pg: PgMajor,
    /// Of its WAL.
    pub wal_segment_size: WalSegmentSize,
    /// Whether it replays another's WAL.
    pub is_standby: bool,
}

fn field(row: Option<&Row>, index: usize) -> Result<&str, ClientError> {
    row.and_then(|row| row.get(index))
        .and_then(Option::as_deref)
        .ok_or_else(|| ClientError::Protocol(format!("field {index} of a row is missing")))
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, ClientError> {
    text.parse().map_err(|error| ClientError::Protocol(format!("{text:?}: {error}")))
}

/// Asks a source who it is.
pub async fn identify(client: &mut Client) -> Result<SourceIdentity, ClientError> {
    let rows = client.query("IDENTIFY_SYSTEM").await?;
    let row = rows.first();
    let version: u32 = parsed(&client.show("server_version_num").await?)?;
    let pg = PgMajor::try_from(version).map_err(|error| ClientError::Protocol(error.to_string()))?;
    let segment = segment_bytes(&client.show("wal_segment_size").await?)?;
    Ok(SourceIdentity {
        system_identifier: parsed(field(row, 0)?)?,
        tli: Tli(parsed(field(row, 1)?)?),
        flushed: parsed(field(row, 2)?)?,
        pg,
        wal_segment_size: segment,
        // Reported at connection start by every supported major, to walsenders' peers too.
        is_standby: client.parameter("in_hot_standby") == Some("on"),
    })
}

/// `SHOW wal_segment_size` answers with a unit: `16MB`, `1GB`.
fn segment_bytes(text: &str) -> Result<WalSegmentSize, ClientError> {
    let wrong = || ClientError::Protocol(format!("wal_segment_size is {text:?}"));
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.checked_mul(unit).ok_or_else(wrong)?;
    WalSegmentSize::new(bytes).map_err(|error| ClientError::Protocol(error.to_string()))
}

/// The history of a Postgres timeline: how it came to be. The first one has no file.
pub async fn history(client: &mut Client, tli: Tli) -> Result<TimelineHistory, ClientError> {
    if tli == Tli(1) {
        return Ok(TimelineHistory::first(tli));
    }
    let rows = client.query(&format!("TIMELINE_HISTORY {tli}")).await?;
    let content = field(rows.first(), 1)?;
    TimelineHistory::parse(tli, content.as_bytes()).map_err(|error| ClientError::Protocol(error.to_string()))
}

/// A name as an identifier of the replication grammar.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Makes a physical slot that keeps WAL from now on. Answers whether it is new.
pub async fn create_slot(client: &mut Client, name: &str) -> Result<bool, ClientError> {
    // The spelling without parentheses is understood by all supported majors.
    let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", quoted(name));
    match client.query(&command).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_sqlstate("42710") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a slot; one that does not exist is no error.
pub async fn drop_slot(client: &mut Client, name: &str) -> Result<(), ClientError> {
    match client.query(&format!("DROP_REPLICATION_SLOT {}", quoted(name))).await {
        Err(error) if !error.is_sqlstate("42704") => Err(error),
        _ => Ok(()),
    }
}

/// Begins a stream at `start`. The error's SQLSTATE says what is wrong: 55006 when another walsender has the slot, 58P01 when the WAL is
/// gone.
pub async fn start(client: &mut Client, slot: Option<&str>, start: Lsn, tli: Tli) -> Result<(), ClientError> {
    let slot = slot.map(|name| format!("SLOT {} ", quoted(name))).unwrap_or_default();
    client.command(&format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {tli}")).await?;
    let answer = client.answer().await?;
    match answer.tag {
        b'W' => Ok(()),
        _ => Err(super::client::unexpected(&answer)),
    }
}

/// A message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamMessage {
    /// WAL.
    Wal {
        /// Where the bytes belong.
        start: Lsn,
        /// Up to where the source has WAL.
        end: Lsn,
        /// The source's clock.
        time: PgTimestamp,
        /// Cut anywhere.
        bytes: Bytes,
    },
    /// The source is alive.
    Keepalive {
        /// Up to where it sent WAL.
        end: Lsn,
        /// The source's clock.
        time: PgTimestamp,
        /// Whether it waits for a status.
        reply: bool,
    },
    /// The Postgres timeline ends here; [`next_timeline`] tells what follows.
    TimelineEnd,
}

/// Reads a message of a stream.
pub fn stream_message(message: &Message) -> Result<StreamMessage, ClientError> {
    let truncated = |_| ClientError::Protocol("message of the stream is truncated".into());
    if message.tag == b'c' {
        return Ok(StreamMessage::TimelineEnd);
    }
    // How a source that shuts down ends the stream, once all of it was reported as safe.
    if message.tag == b'C' {
        return Err(ClientError::Closed);
    }
    if message.tag != b'd' {
        return Err(super::client::unexpected(message));
    }
    let mut body = message.body.clone();
    match body.try_get_u8().map_err(truncated)? {
        b'w' => {
            let start = Lsn(body.try_get_u64().map_err(truncated)?);
            let end = Lsn(body.try_get_u64().map_err(truncated)?);
            let time = PgTimestamp(body.try_get_i64().map_err(truncated)?);
            if start.0.checked_add(body.len() as u64).is_none() {
                return Err(ClientError::Protocol(format!("WAL at {start} runs past the end of all WAL")));
            }
            Ok(StreamMessage::Wal { start, end, time, bytes: body })
        }
        b'k' => Ok(StreamMessage::Keepalive {
            end: Lsn(body.try_get_u64().map_err(truncated)?),
            time: PgTimestamp(body.try_get_i64().map_err(truncated)?),
            reply: body.try_get_u8().map_err(truncated)? != 0,
        }),
        other => Err(ClientError::Protocol(format!("unknown message {:?} in a stream", char::from(other)))),
    }
}

/// A status that claims no more than what is safe: written, flushed and applied are one.
pub fn status(flushed: Lsn, now: SystemTime) -> [u8; 34] {
    let mut status = [0; 34];
    status[0] = b'r';
    for at in [1, 9, 17] {
        status[at..at + 8].copy_from_slice(&flushed.0.to_be_bytes());
    }
    status[25..33].copy_from_slice(&PgTimestamp::from_system_time(now).0.to_be_bytes());
    status
}

/// After [`StreamMessage::TimelineEnd`]: which Postgres timeline goes on, and where. `None` when the stream just ended.
pub async fn next_timeline(client: &mut Client) -> Result<Option<(Tli, Lsn)>, ClientError> {
    client.copy_done().await?;
    let rows = client.rows_until_ready().await?;
    match rows.first() {
        None => Ok(None),
        row => Ok(Some((Tli(parsed(field(row, 0)?)?), parsed(field(row, 1)?)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_come_with_units() {
        assert_eq!(segment_bytes("16MB").unwrap().bytes(), 16 << 20);
        assert_eq!(segment_bytes("1GB").unwrap().bytes(), 1 << 30);
        for bad in ["", "16", "3MB", "1TB", "99999999999999999999MB"] {
            assert!(segment_bytes(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_stream_is_wal_and_keepalives() {
        let message = |body: &[u8]| Message { tag: b'd', body: Bytes::copy_from_slice(body) };
        let mut bytes = vec![b'w'];
        bytes.extend(5u64.to_be_bytes());
        bytes.extend(9u64.to_be_bytes());
        bytes.extend(1i64.to_be_bytes());
        bytes.extend(b"wal");
        let expected = StreamMessage::Wal {
            start: Lsn(5),
            end: Lsn(9),
            time: PgTimestamp(1),
            bytes: Bytes::from_static(b"wal"),
        };
        assert_eq!(stream_message(&message(&bytes)).unwrap(), expected);
        for cut in 0..25 {
            assert!(stream_message(&message(&bytes[..cut])).is_err());
        }
        bytes[1..9].fill(0xFF);
        assert!(stream_message(&message(&bytes)).is_err());
        for bytes in crate::libpq::garbage::any_bytes(1000) {
            let _ = stream_message(&message(&bytes));
        }
    }

    #[test]
    fn a_status_never_claims_more_than_what_is_safe() {
        let status = status(Lsn(0x0102), SystemTime::UNIX_EPOCH);
        assert_eq!(status[..25], *b"r\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x01\x02");
        assert_eq!(status[33], 0);
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
