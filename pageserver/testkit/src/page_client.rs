//! A client of the page service that shares no code with it: startup, `pagestream_v3`, copy-out commands.
//!
//! Messages are Postgres' frontend/backend protocol 3.0; pagestream requests and answers are Neon's, big-endian.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use model::{Lsn, RelTag, SlruKind, TenantId, TimelineId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Bytes of a page.
pub const PAGE: usize = 8192;
/// Requests sent before their answers are read.
const PIPELINED: usize = 64;
/// The largest message believed: an SLRU segment of 32 pages and its header fit many times over.
const MESSAGE_LIMIT: usize = 64 << 20;

/// One libpq connection.
struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    async fn open(address: &str) -> Result<Connection> {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let mut connection = Connection { stream: BufReader::with_capacity(1 << 20, stream) };
        let mut startup = Vec::new();
        startup.extend_from_slice(&196_608_u32.to_be_bytes());
        startup.extend_from_slice(b"user\0testkit\0database\0postgres\0\0");
        let length = (startup.len() as u32 + 4).to_be_bytes();
        connection.stream.get_mut().write_all(&[&length[..], &startup].concat()).await?;
        while connection.message().await?.0 != b'Z' {}
        Ok(connection)
    }

    async fn query(&mut self, text: &str) -> Result<()> {
        self.send(b'Q', &[text.as_bytes(), b"\0"].concat()).await
    }

    async fn send(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        let mut message = vec![kind];
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        Ok(self.stream.get_mut().write_all(&message).await?)
    }

    /// The next message. An `ErrorResponse` is an `Err` with its text.
    async fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        let kind = self.stream.read_u8().await.context("the server closed the connection")?;
        let length = self.stream.read_u32().await? as usize;
        ensure!((4..MESSAGE_LIMIT).contains(&length), "a message of {length} bytes");
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).await?;
        if kind == b'E' {
            let fields = body.split(|byte| *byte == 0).filter(|f| !f.is_empty());
            let text: Vec<String> = fields.map(|f| String::from_utf8_lossy(&f[1..]).into_owned()).collect();
            bail!("the server answered {}", text.join(" "));
        }
        Ok((kind, body))
    }
}

/// Runs a command that answers with copy-out and writes the bytes to file `to`; how many.
pub async fn copy_out(address: &str, command: &str, to: &Path) -> Result<u64> {
    let mut connection = Connection::open(address).await?;
    connection.query(command).await?;
    let mut file = tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::create(to).await?);
    let mut length = 0;
    let mut whole = false;
    loop {
        match connection.message().await.with_context(|| command.to_owned())? {
            (b'd', data) => {
                file.write_all(&data).await?;
                length += data.len() as u64;
            }
            (b'c', _) => whole = true,
            (b'Z', _) => break,
            _ => {}
        }
    }
    ensure!(whole, "{command}: the copy did not end");
    file.flush().await?;
    Ok(length)
}

/// A `pagestream_v3` connection.
pub struct PageClient {
    connection: Connection,
    next_id: u64,
}

/// An answer after its echo was checked.
enum Answer {
    Ok(Vec<u8>),
    Error(String),
}

impl PageClient {
    /// Connects and enters the stream of a timeline.
    pub async fn connect(address: &str, tenant: TenantId, timeline: TimelineId) -> Result<PageClient> {
        let mut connection = Connection::open(address).await?;
        connection.query(&format!("pagestream_v3 {tenant} {timeline}")).await?;
        let (kind, _) = connection.message().await?;
        ensure!(kind == b'W', "pagestream answered with {:?}", kind as char);
        Ok(PageClient { connection, next_id: 1 })
    }

    /// Whether the relation fork exists.
    pub async fn exists(&mut self, rel: RelTag, lsn: Lsn) -> Result<bool> {
        let body = self.ask(0, lsn, &rel_bytes(rel)).await?;
        Ok(*body.last().context("an empty answer")? != 0)
    }

    /// Size of the relation fork, blocks.
    pub async fn nblocks(&mut self, rel: RelTag, lsn: Lsn) -> Result<u32> {
        let body = self.ask(1, lsn, &rel_bytes(rel)).await?;
        Ok(u32::from_be_bytes(body.try_into().ok().context("not 4 bytes")?))
    }

    /// Size of a database, bytes.
    pub async fn db_size(&mut self, db: u32, lsn: Lsn) -> Result<i64> {
        let body = self.ask(3, lsn, &db.to_be_bytes()).await?;
        Ok(i64::from_be_bytes(body.try_into().ok().context("not 8 bytes")?))
    }

    /// One page.
    pub async fn page(&mut self, rel: RelTag, block: u32, lsn: Lsn) -> Result<Vec<u8>> {
        self.ask(2, lsn, &[&rel_bytes(rel)[..], &block.to_be_bytes()].concat()).await
    }

    /// Pages `0..count` of a relation fork, pipelined, each handed to `each` with its block number.
    pub async fn pages(
        &mut self,
        rel: RelTag,
        count: u32,
        lsn: Lsn,
        mut each: impl FnMut(u32, Result<Vec<u8>>) -> Result<()>,
    ) -> Result<()> {
        let mut start = 0;
        while start < count {
            let end = count.min(start + PIPELINED as u32);
            let first_id = self.next_id;
            for block in start..end {
                self.request(2, lsn, &[&rel_bytes(rel)[..], &block.to_be_bytes()].concat()).await?;
            }
            for block in start..end {
                let echo = [&rel_bytes(rel)[..], &block.to_be_bytes()].concat();
                let answer = self.answer(2, first_id + u64::from(block - start), lsn, &echo).await?;
                each(
                    block,
                    match answer {
                        Answer::Ok(page) if page.len() == PAGE => Ok(page),
                        Answer::Ok(page) => Err(anyhow::anyhow!("a page of {} bytes", page.len())),
                        Answer::Error(text) => Err(anyhow::anyhow!(text)),
                    },
                )?;
            }
            start = end;
        }
        Ok(())
    }

    /// The pages of an SLRU segment.
    pub async fn slru_segment(&mut self, kind: SlruKind, segment: u32, lsn: Lsn) -> Result<Vec<u8>> {
        let body = self.ask(4, lsn, &[&[kind as u8][..], &segment.to_be_bytes()].concat()).await?;
        let (count, pages) = body.split_at_checked(4).context("no page count")?;
        let count = u32::from_be_bytes(count.try_into()?) as usize;
        ensure!(pages.len() == count * PAGE, "{count} pages in {} bytes", pages.len());
        Ok(pages.to_vec())
    }

    async fn ask(&mut self, tag: u8, lsn: Lsn, body: &[u8]) -> Result<Vec<u8>> {
        let id = self.next_id;
        self.request(tag, lsn, body).await?;
        match self.answer(tag, id, lsn, body).await? {
            Answer::Ok(bytes) => Ok(bytes),
            Answer::Error(text) => bail!(text),
        }
    }

    async fn request(&mut self, tag: u8, lsn: Lsn, body: &[u8]) -> Result<()> {
        let mut message = vec![tag];
        message.extend_from_slice(&self.next_id.to_be_bytes());
        // Both LSNs the same: the page exactly as of this LSN, and wait until that LSN has arrived.
        message.extend_from_slice(&lsn.0.to_be_bytes());
        message.extend_from_slice(&lsn.0.to_be_bytes());
        message.extend_from_slice(body);
        self.next_id += 1;
        self.connection.send(b'd', &message).await
    }

    /// Reads the answer to a request and checks that it echoes that request.
    async fn answer(&mut self, tag: u8, id: u64, lsn: Lsn, body: &[u8]) -> Result<Answer> {
        let (kind, message) = self.connection.message().await?;
        ensure!(kind == b'd', "a message {:?} in a pagestream", kind as char);
        let (header, rest) = message.split_at_checked(25).context("an answer shorter than its header")?;
        let echoed = [&id.to_be_bytes()[..], &lsn.0.to_be_bytes(), &lsn.0.to_be_bytes()].concat();
        ensure!(header[1..] == echoed, "an answer to another request");
        if header[0] == 103 {
            return Ok(Answer::Error(String::from_utf8_lossy(rest).trim_end_matches('\0').to_owned()));
        }
        ensure!(header[0] == tag + 100 + u8::from(tag >= 3), "answer {} to request {tag}", header[0]);
        let rest = rest.strip_prefix(body).context("an answer that echoes another request's body")?;
        Ok(Answer::Ok(rest.to_vec()))
    }
}

fn rel_bytes(rel: RelTag) -> [u8; 13] {
    let mut bytes = [0; 13];
    bytes[..4].copy_from_slice(&rel.spc.to_be_bytes());
    bytes[4..8].copy_from_slice(&rel.db.to_be_bytes());
    bytes[8..12].copy_from_slice(&rel.rel.to_be_bytes());
    bytes[12] = rel.fork as u8;
    bytes
}
