//! A new timeline from a base that lies on this server's disk: a backup made earlier, or a cluster that was shut down.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use engine::import::stored::{StoredBase, StoredWalError};
use engine::import::{ImportError, ImportProgress, SourceKind};
use engine::import_session::{ImportPlan, ImportSession, ImportedBase};
use engine::tenant::{ChangeError, Tenants};
use engine::timeline::Timeline;
use model::{TenantId, TimelineId, Tli};
use tokio_util::sync::CancellationToken;

use super::course::{SourceCourse, Stage};

/// Why a name is not that of a base.
#[derive(Debug, thiserror::Error)]
pub enum NoSuchBase {
    /// No directory of bases is configured.
    #[error("bases on disk are not offered: the setting base_dir is empty")]
    NotOffered,
    /// The name leads elsewhere, or nowhere.
    #[error("there is no base {0:?} below base_dir")]
    NotThere(String),
}

/// Why a stored base does not become a timeline.
#[derive(Debug, thiserror::Error)]
pub enum StoredBaseError {
    /// It is none, or it is damaged.
    #[error("the base cannot be imported")]
    Import(#[from] ImportError),
    /// Its WAL is not all there.
    #[error("the base's WAL cannot be taken in")]
    Wal(#[from] StoredWalError),
    /// The timeline could not be made.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The server stops.
    #[error("the server is shutting down")]
    Stopping,
}

/// Where the base called `name` lies. Only what is below `base_dir` is ever read, links followed.
pub fn place(base_dir: &str, name: &str) -> Result<PathBuf, NoSuchBase> {
    if base_dir.is_empty() {
        return Err(NoSuchBase::NotOffered);
    }
    let not_there = || NoSuchBase::NotThere(name.into());
    let is_below = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    let all = Path::new(base_dir).canonicalize().map_err(|_| not_there())?;
    let real = all.join(name).canonicalize().map_err(|_| not_there())?;
    if is_below && real != all && real.starts_with(&all) { Ok(real) } else { Err(not_there()) }
}

/// An import that is begun durably.
pub struct Begun {
    session: ImportSession,
    base: StoredBase,
}

/// Looks at a base and begins its timeline.
pub async fn begin(
    tenants: &Tenants,
    tenant: TenantId,
    timeline: TimelineId,
    place: &Path,
) -> Result<Begun, StoredBaseError> {
    let base = StoredBase::open(place).await?;
    let control = base.control();
    let plan = ImportPlan {
        pg: control.pg,
        system_identifier: control.system_identifier,
        wal_segment_size: control.wal_segment_size,
        data_checksums: control.has_checksums(),
        tli: control.tli(),
        source: None,
    };
    let session = tenants.begin_import(tenant, timeline, plan).await?;
    Ok(Begun { session, base })
}

/// Fills a timeline that was begun, to its end.
pub async fn run(
    begun: Begun,
    state: &Arc<SourceCourse>,
    stop: CancellationToken,
) -> Result<Timeline, StoredBaseError> {
    let Begun { mut session, base } = begun;
    let (wal, options) = (base.wal(), base.options().clone());
    let segment = base.control().wal_segment_size;
    let told = |progress: ImportProgress| {
        let stage = Stage::Importing { done: progress.bytes, total: 0 };
        state.set(stage, format!("importing: {} files, {} MiB", progress.files, progress.bytes >> 20));
    };
    let fill = async {
        let (report, layers) = base.import(session.layers(options.base_lsn), &told).await?;
        let (from, until, tli): (_, _, Tli) = (report.base_lsn, report.readable_from, report.tli);
        if options.kind == SourceKind::Backup {
            state.set(state.stage(), format!("importing: WAL from {from} to {until}"));
            wal.feed(&session.keep_wal(from), (tli, segment), from, until).await?;
        }
        Ok::<_, StoredBaseError>((ImportedBase { base_lsn: from, readable_from: until, tli }, layers))
    };
    let (base, layers) = tokio::select! {
        filled = fill => filled?,
        () = stop.cancelled() => return Err(StoredBaseError::Stopping),
    };
    state.set(state.stage(), "importing: opening the timeline");
    let timeline = session.finish(base, layers).await?;
    state.set(Stage::Imported, "imported from disk; no source");
    Ok(timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_the_directory_of_bases_is_found() {
        let home = tempfile::tempdir().unwrap();
        let bases = home.path().join("bases");
        std::fs::create_dir_all(bases.join("monday/pg")).unwrap();
        std::fs::create_dir(home.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(home.path().join("elsewhere"), bases.join("link")).unwrap();
        let bases = bases.to_str().unwrap();
        assert!(place(bases, "monday").is_ok_and(|found| found.ends_with("bases/monday")));
        assert!(place(bases, "monday/pg").is_ok());
        for bad in ["", ".", "..", "../elsewhere", "monday/../../elsewhere", "/etc", "link", "tuesday"] {
            assert!(place(bases, bad).is_err(), "{bad:?} was found");
        }
        assert!(matches!(place("", "monday"), Err(NoSuchBase::NotOffered)));
    }
}
