//! A new timeline from a running primary: its base over one connection, while another already stores its WAL.

use std::sync::Arc;
use std::time::Duration;

use codec::manifest::ChecksumAlgorithm;
use engine::import::{ImportError, ImportOptions, Importer, SourceKind};
use engine::import_session::{ImportLayers, ImportPlan, ImportSession, ImportedBase};
use engine::tenant::ChangeError;
use engine::timeline::Timeline;
use engine::wal_target::WalTarget;
use model::Lsn;
use tokio_util::sync::CancellationToken;

use super::base_backup::{BaseBackup, Part};
use super::client::{Client, ClientError, Purpose};
use super::conninfo::ConnInfo;
use super::course::{SourceCourse, Stage};
use super::receiver::{FollowError, Receiver};
use super::replication::{self, SourceIdentity};

/// Why an import ended without a timeline.
#[derive(Debug, thiserror::Error)]
pub enum ImportFailure {
    /// The source is not a primary.
    #[error("the source is a standby; a primary is needed")]
    Standby,
    /// The source did not do what it was asked, or is away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// WAL could not be followed meanwhile.
    #[error("cannot store WAL during the import")]
    Follow(#[from] FollowError),
    /// The backup makes no sense.
    #[error("the base backup cannot be imported")]
    Import(#[from] ImportError),
    /// The timeline could not be made.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The server stops.
    #[error("the server is shutting down")]
    Stopping,
}

/// Asks a source what an import must know: who it is, and whether its pages carry checksums.
pub async fn survey(source: &ConnInfo) -> Result<(SourceIdentity, bool), ImportFailure> {
    let mut client = Client::connect(source, Purpose::Replication).await?;
    let identity = replication::identify(&mut client).await?;
    if identity.is_standby {
        return Err(ImportFailure::Standby);
    }
    let checksums = client.show("data_checksums").await? == "on";
    client.close().await;
    Ok((identity, checksums))
}

/// The plan for a source that was surveyed.
pub fn plan(identity: &SourceIdentity, data_checksums: bool, source: &ConnInfo, slot: &str) -> ImportPlan {
    ImportPlan {
        pg: identity.pg,
        system_identifier: identity.system_identifier,
        wal_segment_size: identity.wal_segment_size,
        data_checksums,
        tli: identity.tli,
        source: Some(codec::index_part::Source {
            conninfo: source.to_string(),
            slot: Some(slot.to_owned()),
            paused: false,
            unknown: codec::index_part::Unknown::new(),
        }),
    }
}

/// Fills a timeline that was begun, to its end. `receiver` makes a receiver for a target.
pub async fn run(
    mut session: ImportSession,
    identity: &SourceIdentity,
    source: &ConnInfo,
    slot: &str,
    receiver: impl Fn(WalTarget) -> Receiver,
    state: &Arc<SourceCourse>,
    stop: CancellationToken,
) -> Result<Timeline, ImportFailure> {
    let begun = Stage::Importing { done: 0, total: 0 };
    state.set(begun, "importing: waiting for the source's checkpoint");
    let mut client = Client::connect(source, Purpose::Replication).await?;
    // Before the backup begins: from now on the source keeps the WAL that the backup needs.
    replication::create_slot(&mut client, slot).await?;
    let backup = tokio::select! {
        backup = BaseBackup::begin(&mut client, identity.pg) => backup?,
        () = stop.cancelled() => return Err(ImportFailure::Stopping),
    };
    let (base_lsn, tli) = (backup.start, backup.tli);
    let target = session.keep_wal(base_lsn);
    let mut out = Some(session.layers(base_lsn));

    let stop_receiving = stop.child_token();
    let receiver = receiver(target.clone());
    let receive = receive_through_failures(&receiver, stop_receiving.clone());
    let fill = async {
        let layers = out.take().expect("filled once");
        let filled = fill(backup, identity, base_lsn, layers, state).await?;
        // Consistent only with the WAL up to its end.
        state.set(state.stage(), format!("importing: waiting for WAL up to {}", filled.0.readable_from));
        while target.received() < filled.0.readable_from {
            tokio::time::sleep(WAL_POLL).await;
        }
        Ok::<_, ImportFailure>(filled)
    };
    let (base, layers) = {
        tokio::pin!(receive);
        let filled = tokio::select! {
            filled = fill => filled,
            () = stop.cancelled() => Err(ImportFailure::Stopping),
            error = &mut receive => return Err(error.map_or(ImportFailure::Stopping, ImportFailure::Follow)),
        };
        // Dropped neither in the middle of handing bytes on (the timeline then opens with all that was received) nor while the source makes
        // our slot.
        stop_receiving.cancel();
        receive.await;
        filled?
    };
    client.close().await;
    state.set(state.stage(), "importing: opening the timeline");
    Ok(session.finish(ImportedBase { tli, ..base }, layers).await?)
}

/// How often the end of the needed WAL is looked for; the receiver reports it nowhere else.
const WAL_POLL: Duration = Duration::from_millis(20);
/// Pause before a receiver that failed connects again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Follows until told to stop. A connection that breaks is made again; what cannot get better ends it.
async fn receive_through_failures(receiver: &Receiver, stop: CancellationToken) -> Option<FollowError> {
    loop {
        match receiver.follow(stop.clone()).await {
            Ok(()) => return None,
            Err(FollowError::Client(error)) => {
                tracing::warn!("following the source during its import: {error}");
                tokio::select! {
                    () = tokio::time::sleep(RECONNECT_PAUSE) => {}
                    () = stop.cancelled() => return None,
                }
            }
            Err(error) => return Some(error),
        }
    }
}

/// The backup's parts into layers.
async fn fill(
    mut backup: BaseBackup<'_>,
    identity: &SourceIdentity,
    base_lsn: Lsn,
    layers: ImportLayers,
    state: &SourceCourse,
) -> Result<(ImportedBase, ImportLayers), ImportFailure> {
    let options = ImportOptions {
        manifest: Some(ChecksumAlgorithm::Crc32c),
        ..ImportOptions::new(identity.pg, SourceKind::Backup, base_lsn)
    };
    let mut importer = Importer::new(options, layers);
    let expected = backup.estimated_bytes >> 20;
    let mut shown = 0;
    while let Some(part) = backup.next().await? {
        match part {
            Part::Archive { name, location } => importer.archive_begin(&name, location.as_deref())?,
            Part::Data(bytes) => importer.archive_data(&bytes).await?,
            Part::Manifest(bytes) => importer.manifest_data(&bytes)?,
        }
        let done = importer.progress().bytes >> 20;
        if done != shown {
            shown = done;
            let stage = Stage::Importing { done: done << 20, total: expected << 20 };
            state.set(stage, format!("importing: {done} of about {expected} MiB"));
        }
    }
    let (end, _) = backup.end().await?;
    let (report, layers) = importer.end(Some(end)).await?;
    tracing::info!(
        base_lsn = %report.base_lsn,
        readable_from = %report.readable_from,
        files = report.files,
        bytes = report.bytes,
        layers = report.layers,
        "imported the base"
    );
    if report.unknown_count > 0 {
        tracing::warn!(
            count = report.unknown_count,
            "files of the source that are not kept: {:?}",
            report.unknown
        );
    }
    Ok((
        ImportedBase { base_lsn: report.base_lsn, readable_from: report.readable_from, tli: report.tli },
        layers,
    ))
}
