//! Any bytes at all, sent to a session: what fuzzers call, over a small history made up from its own addresses.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use engine::as_of::ReadError;
use engine::timeline::lease::{LeaseError, OutOfHistory};
use model::{BLOCK_SIZE, Fork, Key, Lsn, RelTag, SlruKind, TenantId, TenantShardId, TimelineId};
use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::metrics::LibpqMetrics;
use super::pagestream::StreamSettings;
use super::session::{self, SessionSettings};
use crate::histories::{
    BackupFailure, BackupKind, Histories, History, HistoryNotFound, PageRequest, WaitFailure,
};

/// The one tenant of [`MadeUp`].
pub const TENANT: TenantId = TenantId([0x11; 16]);
/// Its one timeline.
pub const TIMELINE: TimelineId = TimelineId([0x22; 16]);
/// Where it ends.
pub const LAST: Lsn = Lsn(0x2000);
/// Where it begins.
pub const FIRST: Lsn = Lsn(0x1000);
/// The one relation it has, of [`BLOCKS`] blocks.
pub const RELATION: RelTag = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };
/// Blocks of [`RELATION`].
pub const BLOCKS: u32 = 10;

/// A history whose pages say which they are: block number and LSN, then zeros.
#[derive(Clone, Debug)]
pub struct MadeUp;

/// Page `block` of [`RELATION`] as of `lsn`.
pub fn made_up_page(block: u32, lsn: Lsn) -> [u8; BLOCK_SIZE] {
    let mut page = [0; BLOCK_SIZE];
    page[..8].copy_from_slice(&lsn.0.to_be_bytes());
    page[8..12].copy_from_slice(&block.to_be_bytes());
    page
}

impl Histories for MadeUp {
    type History = MadeUp;

    async fn history(&self, tenant: TenantId, timeline: TimelineId) -> Result<MadeUp, HistoryNotFound> {
        if (tenant, timeline) == (TENANT, TIMELINE) {
            Ok(MadeUp)
        } else {
            Err(HistoryNotFound(format!("Timeline {tenant}/{timeline} was not found")))
        }
    }
}

impl History for MadeUp {
    type Page = [u8; BLOCK_SIZE];

    fn last_record_lsn(&self) -> Lsn {
        LAST
    }

    fn readable_from(&self) -> Lsn {
        FIRST
    }

    fn disk_consistent_lsn(&self) -> Lsn {
        FIRST
    }

    fn source_status(&self) -> String {
        "none".into()
    }

    fn is_elsewhere(&self) -> bool {
        false
    }

    async fn wait_for(&self, lsn: Lsn, timeout: Duration) -> Result<(), WaitFailure> {
        if lsn <= LAST {
            return Ok(());
        }
        tokio::time::sleep(timeout).await;
        Err(WaitFailure::TimedOut)
    }

    async fn get_pages(&self, requests: &[PageRequest], out: &mut Vec<Result<Self::Page, ReadError>>) {
        out.extend(requests.iter().map(|(rel, block, lsn)| {
            if *rel == RELATION && *block < BLOCKS {
                Ok(made_up_page(*block, *lsn))
            } else if *rel == RELATION {
                Ok([0; BLOCK_SIZE])
            } else {
                Err(ReadError::MissingKey { key: Key::rel_block(*rel, *block), lsn: *lsn })
            }
        }));
    }

    async fn rel_size(&self, rel: RelTag, _lsn: Lsn) -> Result<Option<u32>, ReadError> {
        Ok((rel == RELATION).then_some(BLOCKS))
    }

    async fn db_size(&self, db: u32, _lsn: Lsn) -> Result<u64, ReadError> {
        Ok(if db == RELATION.db { u64::from(BLOCKS) * BLOCK_SIZE as u64 } else { 0 })
    }

    async fn slru_segment(
        &self,
        kind: SlruKind,
        segment: u32,
        _lsn: Lsn,
    ) -> Result<Option<Bytes>, ReadError> {
        Ok((kind == SlruKind::Clog && segment == 0).then(|| Bytes::from(vec![0x55; BLOCK_SIZE])))
    }

    fn tenant_shard(&self) -> TenantShardId {
        TenantShardId::unsharded(TENANT)
    }

    async fn lease(&self, lsn: Lsn, length: Duration) -> Result<Option<SystemTime>, LeaseError> {
        if lsn > LAST {
            return Err(LeaseError::OutOfHistory(OutOfHistory::Future { asked: lsn, last: LAST }));
        }
        Ok((lsn >= FIRST).then(|| SystemTime::UNIX_EPOCH + length))
    }

    async fn backup(
        &self,
        kind: BackupKind,
        lsn: Lsn,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<(), BackupFailure> {
        // Larger than any buffer on the way.
        for block in 0..100 {
            // One backup breaks off.
            if (kind, lsn, block) == (BackupKind::Base, LAST, 50) {
                return Err(BackupFailure::Failed("half of it is lost".into()));
            }
            out.write_all(&made_up_page(block, lsn)).await.map_err(BackupFailure::Send)?;
        }
        Ok(())
    }
}

/// Settings under which nothing takes long.
pub fn quick_settings() -> SessionSettings {
    SessionSettings {
        keys: None,
        stream: StreamSettings { max_batch: 32, wait_lsn_timeout: Duration::from_millis(10) },
        lease_length: Duration::from_mins(10),
        shown: Arc::new(vec![("id".into(), "1".into()), ("max_batch_size".into(), "32".into())]),
    }
}

/// Serves a session whose client sends just these bytes and then closes; answers what the client received.
pub async fn session_of(bytes: &[u8]) -> BytesMut {
    let metrics = LibpqMetrics::register(&Registry::new());
    let (mut client, server) = tokio::io::duplex(16 << 10);
    let connection = Connection::new(server, Duration::from_secs(1), CancellationToken::new());
    let settings = quick_settings();
    let serve = session::serve(connection, &MadeUp, &settings, &metrics);
    let send_and_receive = async {
        let (mut read, mut write) = tokio::io::split(&mut client);
        let send = async {
            let _ = write.write_all(bytes).await;
            let _ = write.shutdown().await;
        };
        let receive = async {
            let mut received = BytesMut::new();
            while matches!(read.read_buf(&mut received).await, Ok(count) if count > 0) {}
            received
        };
        tokio::join!(send, receive).1
    };
    tokio::join!(serve, send_and_receive).1
}

/// The packet and query that bring a session into a pagestream of [`MadeUp`], to be put before fuzzed bytes.
pub fn into_pagestream(version: u8) -> Vec<u8> {
    let mut bytes = b"\0\0\0\x17\0\x03\0\0user\0someone\0\0\0".to_vec();
    bytes[3] = bytes.len() as u8;
    let query = format!("pagestream_v{version} {TENANT} {TIMELINE}\0");
    bytes.push(b'Q');
    bytes.extend((4 + query.len() as u32).to_be_bytes());
    bytes.extend(query.as_bytes());
    bytes
}

/// Runs of random bytes of random lengths, the same at every run.
#[cfg(test)]
pub(crate) fn any_bytes(count: usize) -> impl Iterator<Item = Vec<u8>> {
    use rand::{RngExt as _, SeedableRng as _};
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    (0..count).map(move |_| {
        let length = random.random_range(0..100);
        (0..length).map(|_| random.random()).collect()
    })
}
