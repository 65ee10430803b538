//! Any bytes at the ports of a real pageserver: it goes on, without a panic and without growing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::Method;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use testkit::pageserver::{BucketAt, Pageserver};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TENANT: &str = "11111111111111111111111111111111";
const TIMELINE: &str = "22222222222222222222222222222222";
const STARTUP: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0me\0\0\0";
/// Memory that connections may take up.
const MOST_GROWTH: u64 = 64 << 20;

fn any_bytes(random: &mut StdRng, longest: usize) -> Vec<u8> {
    let length = random.random_range(0..longest);
    (0..length).map(|_| random.random()).collect()
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(4 + body.len() as u32).to_be_bytes(), body].concat()
}

fn to_libpq(random: &mut StdRng) -> Vec<u8> {
    let garbage = any_bytes(random, 300);
    match random.random_range(0..8) {
        0 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        1 => [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..], &garbage].concat(),
        2 => [STARTUP, &garbage].concat(),
        3 => [STARTUP, &message(random.random(), &garbage)].concat(),
        4 => {
            let query = format!("pagestream_v3 {TENANT} {TIMELINE}\0");
            [STARTUP, &message(b'Q', query.as_bytes()), &message(b'd', &garbage)].concat()
        }
        // A long message that is announced and does not come.
        5 => [STARTUP, b"Q\x7f\xff\xff\xff", &garbage[..]].concat(),
        _ => garbage,
    }
}

fn to_http(random: &mut StdRng) -> Vec<u8> {
    let garbage = any_bytes(random, 300);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let paths = [
        "/v1/status".to_owned(),
        "/v1/tenant".to_owned(),
        format!("/v1/tenant/{TENANT}/timeline"),
        format!("/v1/tenant/{TENANT}/timeline/{TIMELINE}/primary"),
        format!("/v1/tenant/{TENANT}/timeline/{TIMELINE}/get_lsn_by_timestamp?timestamp={}", hex(&garbage)),
        format!("/v1/tenant/{}/timeline/{}", hex(&garbage), hex(&garbage)),
    ];
    let path = &paths[random.random_range(0..paths.len())];
    let method = ["GET", "POST", "PUT", "DELETE"][random.random_range(0..4)];
    let json = format!(r#"{{"new_timeline_id":"{TIMELINE}","primary":{{"dsn":{:?}}}}}"#, text(&garbage));
    let body = match random.random_range(0..4) {
        0 => garbage,
        1 => json.into_bytes(),
        2 => json.as_bytes()[..json.len() / 2].to_vec(),
        // Deeper than any stack.
        _ => vec![b'['; 100_000],
    };
    match random.random_range(0..5) {
        0 => body,
        // A body that is announced and does not come.
        1 => {
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n").into_bytes()
        }
        _ => {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), &body].concat()
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02x}")).collect()
}

/// Sends it all, takes what comes, and leaves.
async fn throw(address: &str, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address).await.context("nobody listens any more")?;
    // It may hang up before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer))
        .await
        .with_context(|| format!("no end to the answer to {:?}", String::from_utf8_lossy(bytes)))?;
    Ok(())
}

#[tokio::test]
async fn garbage_on_any_port_never_takes_the_server_down() -> Result<()> {
    let bucket = tempfile::tempdir()?;
    let mut server = Pageserver::start(BucketAt::Directory(bucket.path().into()), &[]).await?;
    let mut random = StdRng::seed_from_u64(7);
    throw(&server.libpq_address(), STARTUP).await?;
    let before = server.resident_bytes()?;
    for _ in 0..1000 {
        throw(&server.libpq_address(), &to_libpq(&mut random)).await?;
        throw(&server.http_address(), &to_http(&mut random)).await?;
    }
    // Half-sent greetings that stay must not be in anyone's way.
    let mut idle = Vec::new();
    for address in [server.libpq_address(), server.http_address()] {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(&address).await?;
            stream.write_all(b"\0\0").await?;
            idle.push(stream);
        }
    }
    let (status, _) = server.http(Method::GET, "/v1/status", None).await?;
    ensure!(status == 200, "/v1/status answers {status}");
    let mut stream = TcpStream::connect(server.libpq_address()).await?;
    stream.write_all(&[STARTUP, &message(b'Q', b"show all\0"), b"X\0\0\0\x04"].concat()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(String::from_utf8_lossy(&answer).contains("setting"), "no answer to a query: {answer:?}");
    let grown = server.resident_bytes()?.saturating_sub(before);
    ensure!(grown < MOST_GROWTH, "it has grown by {grown} bytes");
    drop(idle);
    server.stop().await?;
    ensure!(!server.log().contains("panicked"), "something has panicked");
    Ok(())
}
