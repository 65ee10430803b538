//! A client of the pageserver's libpq service, for commands that answer with a stream of bytes.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longest message that is believed.
const MAX_MESSAGE: usize = 16 << 20;

/// Where a pageserver listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    address: String,
    user: String,
    password: Option<String>,
}

impl FromStr for Server {
    type Err = String;

    /// `host:port`, or `postgres://[user[:password]@]host[:port][/…]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = text.strip_prefix("postgres://").or(text.strip_prefix("postgresql://"));
        let rest = url.unwrap_or(text);
        let rest = rest.split(['/', '?']).next().unwrap_or(rest);
        let (login, address) =
            rest.rsplit_once('@').map_or((None, rest), |(login, address)| (Some(login), address));
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => ("pagectl".into(), None),
            Some((user, password)) => {
                (user.into(), Some(password.to_owned()).filter(|text| !text.is_empty()))
            }
        };
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = match (has_port, url) {
            (true, _) => address.into(),
            (false, Some(_)) if !address.is_empty() => format!("{address}:64000"),
            _ => return Err(format!("{text:?} is neither host:port nor a postgres:// URL")),
        };
        Ok(Server { address, user, password })
    }
}

/// The stream that a command answers with.
pub struct CopyOut {
    stream: BufReader<TcpStream>,
}

impl CopyOut {
    /// Connects, sends the command, and waits for its stream to begin.
    pub fn start(server: &Server, command: &str) -> Result<CopyOut> {
        let stream = TcpStream::connect(&server.address)
            .with_context(|| format!("cannot reach {}", server.address))?;
        stream.set_nodelay(true)?;
        // A silent server is told from a slow one by TCP; this only bounds a dead peer.
        stream.set_read_timeout(Some(Duration::from_mins(5)))?;
        let mut client = CopyOut { stream: BufReader::with_capacity(256 << 10, stream) };
        client.log_in(server)?;
        let mut query = command.as_bytes().to_vec();
        query.push(0);
        client.send(Some(b'Q'), &query)?;
        loop {
            match client.message()? {
                (b'H' | b'W', _) => return Ok(client),
                (b'E', body) => bail!("{}", error_text(&body)),
                (b'N' | b'S', _) => {}
                (kind, _) => bail!("the server answered {command:?} with a message {:?}", char::from(kind)),
            }
        }
    }

    /// The next bytes; `None` at the stream's proper end.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut done = false;
        loop {
            match self.message().context("the stream broke off")? {
                (b'd', body) if !done => return Ok(Some(body)),
                (b'c', _) => done = true,
                (b'Z', _) if done => return Ok(None),
                (b'E', body) => bail!("the server ended the stream: {}", error_text(&body)),
                (b'C' | b'N' | b'S', _) => {}
                (kind, _) => bail!("a message {:?} within the stream", char::from(kind)),
            }
        }
    }

    /// Sends bytes the other way, where the command's stream goes both ways.
    pub fn give(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(Some(b'd'), bytes)
    }

    /// Sends several messages with one write.
    pub fn give_all<'a>(&mut self, messages: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
        let mut bytes = Vec::new();
        for message in messages {
            bytes.push(b'd');
            bytes.extend_from_slice(&(message.len() as u32 + 4).to_be_bytes());
            bytes.extend_from_slice(message);
        }
        Ok(self.stream.get_mut().write_all(&bytes)?)
    }

    fn log_in(&mut self, server: &Server) -> Result<()> {
        let mut startup = 0x0003_0000u32.to_be_bytes().to_vec();
        for text in ["user", &server.user, "database", &server.user, "application_name", "pagectl", ""] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
        self.send(None, &startup)?;
        loop {
            match self.message()? {
                (b'R', body) => match body.first_chunk().map(|kind| u32::from_be_bytes(*kind)) {
                    Some(0) => {}
                    Some(3) => {
                        let from_environment = std::env::var("PGPASSWORD").ok();
                        let mut password = server
                            .password
                            .clone()
                            .or(from_environment)
                            .context("the server wants a password: set PGPASSWORD")?
                            .into_bytes();
                        password.push(0);
                        self.send(Some(b'p'), &password)?;
                    }
                    kind => bail!("the server wants an unknown kind of password ({kind:?})"),
                },
                (b'Z', _) => return Ok(()),
                (b'E', body) => bail!("{}", error_text(&body)),
                (b'K' | b'N' | b'S', _) => {}
                (kind, _) => bail!("the server greets with a message {:?}", char::from(kind)),
            }
        }
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> Result<()> {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        Ok(self.stream.get_mut().write_all(&message)?)
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).context("the server closed the connection")?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        ensure!((4..=MAX_MESSAGE).contains(&length), "a message of {length} bytes: this is no pageserver");
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).context("the server closed the connection")?;
        Ok((head[0], body))
    }
}

/// The message field of an error.
fn error_text(body: &[u8]) -> String {
    let fields: Vec<&[u8]> = body.split(|byte| *byte == 0).collect();
    let message = fields.iter().find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(message.unwrap_or(b"an error without a message")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_by_address_or_url() {
        let server: Server = "localhost:64000".parse().unwrap();
        assert_eq!((server.address.as_str(), server.user.as_str()), ("localhost:64000", "pagectl"));
        let server: Server = "postgres://me:secret@host/x?y=z".parse().unwrap();
        assert_eq!((server.address.as_str(), server.user.as_str()), ("host:64000", "me"));
        assert_eq!(server.password.as_deref(), Some("secret"));
        assert!("localhost".parse::<Server>().is_err());
        assert!("".parse::<Server>().is_err());
    }

    #[test]
    fn an_error_shows_its_message() {
        assert_eq!(error_text(b"SERROR\0C58000\0Mtimeline not found\0\0"), "timeline not found");
    }
}
