//! The page service over a history that is made up.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt};
use model::{BLOCK_SIZE, Fork, Lsn, RelTag};
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use super::garbage::{
    self, BLOCKS, FIRST, LAST, MadeUp, RELATION, TENANT, TIMELINE, into_pagestream, made_up_page,
};
use super::metrics::LibpqMetrics;
use super::service::Service;
use super::wire::{self, HEAD};

struct Server {
    port: u16,
    registry: Registry,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(max_connections: usize, idle_timeout: Duration) -> Server {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let port = listener.local_addr().unwrap().port();
        let registry = Registry::new();
        let service = Arc::new(Service {
            histories: MadeUp,
            settings: garbage::quick_settings(),
            tls: None,
            max_connections,
            idle_timeout,
            metrics: LibpqMetrics::register(&registry),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(listener, stop.clone()));
        Server { port, registry, stop, task }
    }

    async fn usual() -> Server {
        Self::start(10, Duration::from_mins(1)).await
    }

    async fn client(&self) -> tokio_postgres::Client {
        let parameters = format!("host=127.0.0.1 port={} user=cloud_admin", self.port);
        let (client, connection) = tokio_postgres::connect(&parameters, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A raw connection, in a pagestream.
    async fn stream(&self, version: u8) -> RawStream {
        let mut stream = RawStream {
            stream: TcpStream::connect(("127.0.0.1", self.port)).await.unwrap(),
            input: BytesMut::new(),
            version,
        };
        stream.stream.write_all(&into_pagestream(version)).await.unwrap();
        loop {
            match stream.message().await.expect("the stream begins").0 {
                b'W' => return stream,
                b'E' => panic!("refused"),
                _ => {}
            }
        }
    }
}

struct RawStream {
    stream: TcpStream,
    input: BytesMut,
    version: u8,
}

impl RawStream {
    async fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((tag, body)) = wire::frame(&self.input, 1 << 20).unwrap() {
                let message = (tag, body.to_vec());
                let _ = self.input.split_to(HEAD + message.1.len());
                return Some(message);
            }
            if self.stream.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }

    fn request(&self, out: &mut Vec<u8>, tag: u8, id: u64, lsns: (u64, u64), body: &[u8]) {
        wire::message(out, b'd', |out| {
            out.put_u8(tag);
            if self.version == 3 {
                out.put_u64(id);
            }
            out.put_u64(lsns.0);
            out.put_u64(lsns.1);
            out.put_slice(body);
        });
    }

    async fn ask(&mut self, tag: u8, id: u64, lsns: (u64, u64), body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.request(&mut out, tag, id, lsns, body);
        self.stream.write_all(&out).await.unwrap();
        let (tag, body) = self.message().await.expect("an answer");
        assert_eq!(tag, b'd', "{}", String::from_utf8_lossy(&body));
        body
    }
}

fn rel_bytes(rel: RelTag) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(rel.spc);
    bytes.put_u32(rel.db);
    bytes.put_u32(rel.rel);
    bytes.put_u8(rel.fork as u8);
    bytes
}

fn page_bytes(rel: RelTag, block: u32) -> Vec<u8> {
    [rel_bytes(rel), block.to_be_bytes().to_vec()].concat()
}

#[tokio::test]
async fn pipelined_pages_come_in_order_and_echo_their_requests() {
    let server = Server::usual().await;
    let mut stream = server.stream(3).await;
    let mut out = Vec::new();
    for id in 0..100u64 {
        let lsn = FIRST.0 + id;
        stream.request(&mut out, 2, id, (lsn, lsn), &page_bytes(RELATION, (id % 10) as u32));
    }
    stream.stream.write_all(&out).await.unwrap();
    for id in 0..100u64 {
        let (tag, body) = stream.message().await.unwrap();
        let lsn = FIRST.0 + id;
        let mut expected = vec![102];
        expected.put_u64(id);
        expected.put_u64(lsn);
        expected.put_u64(lsn);
        expected.extend(page_bytes(RELATION, (id % 10) as u32));
        expected.extend(made_up_page((id % 10) as u32, Lsn(lsn)));
        assert_eq!((tag, body), (b'd', expected), "request {id}");
    }
    let text = crate::metrics::text(&server.registry);
    assert!(
        text.contains("pageserver_smgr_query_started_global_count{smgr_query_type=\"get_page_at_lsn\"} 100")
    );
}

#[tokio::test]
async fn every_question_has_its_answer_in_both_versions() {
    let server = Server::usual().await;
    for version in [2, 3] {
        let mut stream = server.stream(version).await;
        let newest = (u64::MAX, FIRST.0);
        // What a v3 answer has between the tag and the value, past the header.
        let echo = |body: &[u8]| if version == 3 { 24 + body.len() } else { 0 };
        let other = RelTag { rel: 9, ..RELATION };
        let vm = RelTag { fork: Fork::Vm, ..other };

        for (rel, exists) in [(RELATION, 1), (other, 0)] {
            let body = rel_bytes(rel);
            let answer = stream.ask(0, 1, newest, &body).await;
            assert_eq!((answer[0], &answer[1 + echo(&body)..]), (100, &[exists][..]));
        }
        for (rel, blocks) in [(RELATION, BLOCKS), (vm, 0)] {
            let body = rel_bytes(rel);
            let answer = stream.ask(1, 1, newest, &body).await;
            assert_eq!((answer[0], &answer[1 + echo(&body)..]), (101, &blocks.to_be_bytes()[..]));
        }
        let body = page_bytes(RELATION, 3);
        let answer = stream.ask(2, 1, newest, &body).await;
        assert_eq!((answer[0], &answer[1 + echo(&body)..]), (102, &made_up_page(3, LAST)[..]));
        let body = page_bytes(RELATION, BLOCKS);
        let answer = stream.ask(2, 1, newest, &body).await;
        assert_eq!((answer[0], &answer[1 + echo(&body)..]), (102, &[0; BLOCK_SIZE][..]), "past the end");
        let body = 5u32.to_be_bytes();
        let answer = stream.ask(3, 1, newest, &body).await;
        assert_eq!((answer[0], &answer[1 + echo(&body)..]), (104, &81920u64.to_be_bytes()[..]));
        let body = [0, 0, 0, 0, 0];
        let answer = stream.ask(4, 1, newest, &body).await;
        assert_eq!((answer[0], answer.len()), (105, 1 + echo(&body) + 4 + BLOCK_SIZE));
    }
}

#[tokio::test]
async fn an_error_is_an_answer_and_the_stream_goes_on() {
    let server = Server::usual().await;
    let mut stream = server.stream(3).await;
    let other = RelTag { rel: 9, ..RELATION };
    let newest = (u64::MAX, FIRST.0);
    for (tag, lsns, body, text) in [
        (1, newest, rel_bytes(other), "Read error"),
        (2, newest, page_bytes(other, 0), "Read error"),
        (2, newest, page_bytes(RelTag { rel: 0, ..RELATION }, 0), "Read error"),
        (4, newest, vec![0, 0, 0, 0, 7], "Read error"),
        (4, newest, vec![9, 0, 0, 0, 0], "Bad request: "),
        (2, (5, 6), page_bytes(RELATION, 0), "Bad request: invalid request with request LSN 0/5"),
        (2, (0, 0), page_bytes(RELATION, 0), "Bad request: invalid LSN(0)"),
        (2, (FIRST.0 - 1, 0), page_bytes(RELATION, 0), "Bad request: tried to request a page version"),
        (2, (u64::MAX, LAST.0 + 8), page_bytes(RELATION, 0), "LSN timeout: Timed out while waiting for WAL"),
    ] {
        let answer = stream.ask(tag, 7, lsns, &body).await;
        let message = String::from_utf8_lossy(&answer[25..]).into_owned();
        assert_eq!(answer[0], 103);
        assert!(message.starts_with(text) && message.ends_with('\0'), "{message}");
    }
    assert_eq!(stream.ask(2, 8, newest, &page_bytes(RELATION, 1)).await[0], 102);
}

#[tokio::test]
async fn what_does_not_belong_into_a_stream_ends_it_with_an_error() {
    let server = Server::usual().await;
    for (bytes, text) in [
        (&b"c\0\0\0\x04"[..], "unexpected message 'c' during COPY"),
        (b"d\0\0\0\x20\x63aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "invalid tag 99"),
        (b"d\0\0\0\x06\x02a", "truncated"),
        (b"d\xff\xff\xff\xff", "expected 4 to"),
    ] {
        let mut stream = server.stream(3).await;
        stream.stream.write_all(bytes).await.unwrap();
        let (tag, body) = stream.message().await.unwrap();
        let message = String::from_utf8_lossy(&body).into_owned();
        assert!(tag == b'E' && message.contains(text), "{message}");
        assert_eq!(stream.message().await, None);
    }
}

#[tokio::test]
async fn a_driver_can_connect_and_ask() {
    let server = Server::usual().await;
    let client = server.client().await;
    let values = |messages: Vec<SimpleQueryMessage>| -> Vec<Option<String>> {
        messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(row.len() - 1).map(str::to_owned)),
                _ => None,
            })
            .collect()
    };
    client.batch_execute("set datestyle to 'ISO'").await.unwrap();
    assert_eq!(values(client.simple_query("show max_batch_size").await.unwrap()), [Some("32".into())]);
    assert_eq!(values(client.simple_query("SHOW ALL").await.unwrap()).len(), 2);
    for (lsn, until) in [("0/1000", Some("600000".to_owned())), ("0/FF8", None)] {
        let lease = format!("lease lsn {TENANT} {TIMELINE} {lsn}");
        assert_eq!(values(client.simple_query(&lease).await.unwrap()), [until], "{lsn}");
    }

    let refusals = [
        ("select 1".to_owned(), "unsupported command"),
        ("show nothing".to_owned(), "unrecognized configuration parameter"),
        (format!("fullbackup {TENANT} {TIMELINE} 0/10"), "invalid basebackup lsn"),
        (format!("fullbackup {TENANT} {TIMELINE} 0/FFFFFF"), "Timed out"),
        (format!("fullbackup {TENANT} {TENANT}"), "not found"),
        (format!("lease lsn {TENANT} {TIMELINE} 0/3000"), "beyond"),
        (format!("lease lsn {TENANT}-0001 {TIMELINE} 0/1000"), "not found"),
        (format!("fullbackup {TIMELINE} {TIMELINE}"), "another tenant"),
    ];
    for (command, text) in refusals {
        let error = client.simple_query(&command).await.unwrap_err();
        let error = error.as_db_error().expect("an answer of the server");
        assert!(error.message().contains(text), "{command}: {}", error.message());
        assert_eq!(error.code().code(), "XX000");
    }
    client.batch_execute("set x to y").await.unwrap();
}

#[tokio::test]
async fn the_extended_protocol_serves_too() {
    let server = Server::usual().await;
    let client = server.client().await;
    let command = format!("fullbackup {TENANT} {TIMELINE} 0/1800");
    let statement = client.prepare(&command).await.unwrap();
    let stream = client.copy_out(&statement).await.unwrap();
    let bytes: Vec<_> = stream.try_collect().await.unwrap();
    let bytes = bytes.concat();
    assert_eq!(bytes.len(), 100 * BLOCK_SIZE);
    assert_eq!(bytes[99 * BLOCK_SIZE..], made_up_page(99, Lsn(0x1800)));

    let statement = client.prepare("nonsense here").await.unwrap();
    assert!(client.execute(&statement, &[]).await.is_err());
    client.batch_execute("set x to y").await.expect("the session goes on after an error");
}

#[tokio::test]
async fn a_failed_backup_is_an_error_inside_the_copy() {
    let server = Server::usual().await;
    let client = server.client().await;
    for flags in ["", "--gzip", "latest --replica"] {
        let command = format!("basebackup {TENANT} {TIMELINE} {flags}");
        let mut stream = std::pin::pin!(client.copy_out(&command).await.unwrap());
        let mut sent = Vec::new();
        let error = loop {
            match stream.next().await.expect("an error comes before the end") {
                Ok(chunk) => sent.extend_from_slice(&chunk),
                Err(error) => break error,
            }
        };
        let error = error.as_db_error().expect("an answer of the server");
        assert!(error.message().contains("half of it is lost"), "{error}");
        if flags == "--gzip" {
            assert!(gunzipped(&sent).await.is_err(), "what broke off must not unpack");
        }
    }
    client.batch_execute("set x to y").await.expect("the session goes on");
}

async fn gunzipped(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    async_compression::tokio::bufread::GzipDecoder::new(bytes).read_to_end(&mut out).await?;
    Ok(out)
}

#[tokio::test]
async fn a_compressed_base_backup_unpacks_to_the_plain_one() {
    let server = Server::usual().await;
    let client = server.client().await;
    let mut sent = Vec::new();
    for flags in ["", "--gzip --replica"] {
        let command = format!("basebackup {TENANT} {TIMELINE} 0/1800 {flags}");
        let stream = client.copy_out(&command).await.unwrap();
        let chunks: Vec<Bytes> = stream.try_collect().await.unwrap();
        sent.push(chunks.concat());
    }
    assert_eq!(sent[0].len(), 100 * BLOCK_SIZE);
    assert!(sent[1].len() < sent[0].len() / 2);
    assert_eq!(gunzipped(&sent[1]).await.unwrap(), sent[0]);
}

#[tokio::test]
async fn too_many_connections_are_turned_away_and_room_comes_back() {
    let server = Server::start(1, Duration::from_mins(1)).await;
    let first = server.client().await;
    let parameters = format!("host=127.0.0.1 port={} user=x", server.port);
    let refused = tokio_postgres::connect(&parameters, NoTls).await.err().expect("refused");
    assert!(refused.as_db_error().is_some_and(|error| error.code().code() == "53300"), "{refused}");
    drop(first);
    for _ in 0..100 {
        if tokio_postgres::connect(&parameters, NoTls).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the seat was not given back");
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let server = Server::start(10, Duration::from_millis(50)).await;
    let mut stream = server.stream(3).await;
    let (tag, body) = stream.message().await.unwrap();
    assert!(tag == b'E' && String::from_utf8_lossy(&body).contains("nothing received"));
    assert_eq!(stream.message().await, None);
}

#[tokio::test]
async fn stopping_tells_clients_and_waits_for_them() {
    let server = Server::usual().await;
    let mut stream = server.stream(2).await;
    server.stop.cancel();
    let (tag, body) = stream.message().await.unwrap();
    assert!(tag == b'E' && String::from_utf8_lossy(&body).contains("57P01"));
    assert_eq!(stream.message().await, None);
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn garbage_gets_an_error_or_a_close_and_the_server_serves_on() {
    let server = Server::usual().await;
    let mut start = into_pagestream(3);
    start.truncate(usize::from(start[3]));
    let followed_by = |bytes: &[u8]| [&start[..], bytes].concat();
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".to_vec(),
        vec![0; 100],
        vec![0xFF; 100],
        followed_by(b"Q\0\0\0\x05x"),
        followed_by(b"Q\0\0\0\x08\xff\xfe\xfd\0"),
        followed_by(b"P\0\0\0\x04"),
        followed_by(b"E\0\0\0\x05\0"),
        followed_by(b"d\0\0\0\x04"),
        followed_by(b"\0\0\0\0\0\0"),
        followed_by(b"Z\x7f\xff\xff\xff"),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer))
            .await
            .expect("ends");
    }
    let mut stream = server.stream(3).await;
    assert_eq!(stream.ask(2, 8, (u64::MAX, FIRST.0), &page_bytes(RELATION, 1)).await[0], 102);
}

#[tokio::test]
async fn any_bytes_at_any_stage_end_a_session_in_time() {
    let start = {
        let mut start = into_pagestream(3);
        start.truncate(usize::from(start[3]));
        start
    };
    for bytes in garbage::any_bytes(200) {
        let framed = [&b"d"[..], &(4 + bytes.len() as u32).to_be_bytes(), &bytes].concat();
        for before in [&[][..], &start, &into_pagestream(3), &into_pagestream(2)] {
            for bytes in [&bytes, &framed] {
                let sent = [before, bytes].concat();
                let session = garbage::session_of(&sent);
                tokio::time::timeout(Duration::from_secs(10), session.map(drop)).await.expect("ends");
            }
        }
    }
}
