//! A Postgres that answers anything: authentication, queries, a stream of WAL, a base backup.
#![no_main]

use std::cell::LazyCell;

use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use model::{Lsn, Tli};
use server::source::base_backup::BaseBackup;
use server::source::client::{Client, ClientError, Purpose};
use server::source::replication;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: LazyCell<Runtime> =
        LazyCell::new(|| Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime"));
}

/// Goes on until the source has said something that ends the conversation.
async fn converse(
    stream: tokio::io::DuplexStream,
    what: u8,
    input: &mut Input<'_>,
) -> Result<(), ClientError> {
    let info = "host=h user=me password=secret".parse().expect("a connection string");
    let mut client = Client::over(stream, &info, &info.places[0], Purpose::Replication).await?;
    match what % 4 {
        0 => {
            let identity = replication::identify(&mut client).await?;
            replication::history(&mut client, identity.tli).await?;
            replication::create_slot(&mut client, "a").await?;
        }
        1 => {
            replication::start(&mut client, Some("a"), Lsn(8), Tli(1)).await?;
            loop {
                let message = client.message().await?;
                if replication::stream_message(&message)? == replication::StreamMessage::TimelineEnd {
                    replication::next_timeline(&mut client).await?;
                    return Ok(());
                }
            }
        }
        2 => {
            let mut backup = BaseBackup::begin(&mut client, input.major()).await?;
            while backup.next().await?.is_some() {}
            backup.end().await?;
        }
        _ => drop(client.query("SELECT 1").await?),
    }
    client.close().await;
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let what = input.u8();
    let mut bytes = Vec::new();
    if what & 4 != 0 {
        bytes.extend(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
    }
    let mut major = Input(input.bytes(1));
    if what & 8 != 0 {
        while !input.is_empty() && bytes.len() < 1 << 16 {
            let (tag, body) = (input.u8(), input.short());
            bytes.push(tag);
            bytes.extend((4 + body.len() as u32).to_be_bytes());
            bytes.extend(body);
        }
    }
    bytes.extend(input.0);
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            let answers = async {
                theirs.write_all(&bytes).await.expect("there is room, or we read");
                theirs.shutdown().await.expect("it is in memory");
                // What we say is not looked at, but must find room.
                let _ = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
            };
            let (_, _) = tokio::join!(
                async {
                    let _ = converse(ours, what, &mut major).await;
                },
                answers
            );
        });
    });
});
