//! `pagectl ready`: waits until something answers, for tests of an installation and for init containers, where there is no shell to write a
//! loop in.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::indexes;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// "Do you speak TLS?": answered with one letter by whatever speaks Postgres' protocol, before anyone has logged in.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Waits until a server answers.
#[derive(Debug, Args)]
pub struct Ready {
    /// How long to wait at most, e.g. `60s`.
    #[arg(long, default_value = "60s", value_parser = parse_seconds)]
    within: Duration,
    /// `http://host:port/path`, which has to answer with success, or `host:port` of a libpq service.
    place: String,
}

/// `90`, `90s` or `2m`.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let (number, factor) = match text.strip_suffix('m') {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: Option<u64> = number.parse().ok().and_then(|number: u64| number.checked_mul(factor));
    number.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is no time such as 60s or 2m"))
}

/// Runs it.
pub async fn run(arguments: &Ready) -> Result<()> {
    let since = Instant::now();
    loop {
        let attempt = timeout(ATTEMPT, ask(&arguments.place)).await;
        let error = match attempt.context("no answer").and_then(|answer| answer) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if since.elapsed() >= arguments.within {
            return Err(error.context(format!("not ready within {:?}", arguments.within)));
        }
        sleep(PAUSE).await;
    }
}

async fn ask(place: &str) -> Result<()> {
    if place.starts_with("http://") {
        indexes::http_get(place).await.map(drop)
    } else {
        ask_libpq(place).await
    }
}

async fn ask_libpq(place: &str) -> Result<()> {
    let mut stream = TcpStream::connect(place).await.with_context(|| format!("cannot reach {place}"))?;
    stream.write_all(&SSL_REQUEST).await?;
    let letter = stream.read_u8().await.with_context(|| format!("{place} does not answer"))?;
    ensure!(matches!(letter, b'S' | b'N'), "{place} does not speak Postgres' protocol");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    fn at_once(place: String) -> Result<()> {
        let arguments = Ready { within: Duration::ZERO, place };
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&arguments))
    }

    /// A server that reads one request and answers.
    fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn what_answers_is_ready() {
        at_once(answering("N")).unwrap();
        at_once(answering("S")).unwrap();
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        at_once(format!("http://{}/readyz", answering(ok))).unwrap();
    }

    #[test]
    fn what_refuses_or_is_not_there_is_not() {
        let refused = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let error = at_once(format!("http://{}/readyz", answering(refused))).unwrap_err();
        assert!(format!("{error:#}").contains("503"), "{error:#}");
        at_once(answering("HTTP/1.1 400")).unwrap_err();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        at_once(gone.to_string()).unwrap_err();
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_seconds("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_seconds("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_seconds("2m"), Ok(Duration::from_mins(2)));
        assert!(parse_seconds("soon").is_err());
    }
}
