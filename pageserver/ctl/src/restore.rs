//! `pagectl restore`: a timeline as of an LSN becomes a data directory that stock Postgres starts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use codec::tar_in::{TarEntry, TarEvent, TarIn, TarKind};
use model::{Lsn, TenantId, TimelineId};

use crate::copy_out::{CopyOut, Server};

/// Under what name the control file waits until everything else is there.
const UNFINISHED: &str = "global/pg_control.unfinished";
const CONTROL_FILE: &str = "global/pg_control";

/// Restores a timeline, as of an LSN, into a data directory.
///
/// Stock Postgres of the same major starts on it at once. Its tablespaces lie inside it unless --tablespace says otherwise.
#[derive(Debug, Args)]
pub struct Restore {
    /// The pageserver: host:port of its libpq service, or a postgres:// URL. A password is taken from PGPASSWORD.
    #[arg(long, default_value = "127.0.0.1:64000")]
    server: Server,
    /// Whose timeline.
    #[arg(long)]
    tenant: TenantId,
    /// Which.
    #[arg(long)]
    timeline: TimelineId,
    /// As of when; the newest there is by default.
    #[arg(long)]
    lsn: Option<Lsn>,
    /// Put a tablespace elsewhere: its oid, and an absolute path to a directory that is empty or not there. May be given several times.
    #[arg(long = "tablespace", value_name = "OID=DIRECTORY", value_parser = parse_mapping)]
    tablespaces: Vec<(u32, PathBuf)>,
    /// Leave it to the operating system when files reach the disk.
    #[arg(long)]
    no_sync: bool,
    /// Say nothing while it goes on.
    #[arg(long, short)]
    quiet: bool,
    /// Where to: a directory that is empty or not there.
    directory: PathBuf,
}

fn parse_mapping(text: &str) -> Result<(u32, PathBuf), String> {
    let (oid, path) = text.split_once('=').ok_or("expected OID=DIRECTORY")?;
    let oid = oid.parse().map_err(|_| format!("{oid:?} is not the oid of a tablespace"))?;
    let path = PathBuf::from(path);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain {
        Ok((oid, path))
    } else {
        Err(format!("{} is not an absolute path", path.display()))
    }
}

/// Runs it.
pub fn run(arguments: &Restore) -> Result<()> {
    let mut place = Placement::new(&arguments.directory, &arguments.tablespaces, !arguments.no_sync)?;
    let lsn = arguments.lsn.map(|lsn| format!(" {lsn}")).unwrap_or_default();
    let command = format!("fullbackup {} {}{lsn}", arguments.tenant, arguments.timeline);
    let mut stream = CopyOut::start(&arguments.server, &command)?;
    let mut progress = Progress::new(arguments.quiet);
    let mut tar = TarIn::new();
    let received = receive(&mut stream, &mut tar, &mut place, &mut progress);
    if let Err(error) = received {
        return Err(error.context(format!(
            "the restore is incomplete: {} is left as it is and will not start",
            arguments.directory.display()
        )));
    }
    place.finish()?;
    progress.end(&place);
    Ok(())
}

fn receive(
    stream: &mut CopyOut,
    tar: &mut TarIn,
    place: &mut Placement,
    progress: &mut Progress,
) -> Result<()> {
    while let Some(chunk) = stream.next()? {
        let mut input = &chunk[..];
        while let Some(event) = tar.next(&mut input)? {
            place.take(event)?;
        }
        progress.add(chunk.len(), place);
    }
    tar.finish(true)?;
    ensure!(place.has_control_file, "there is no {CONTROL_FILE} in it");
    for oid in place.mapped.keys() {
        ensure!(place.mapped_seen.contains(oid), "there is no tablespace {oid} in it");
    }
    Ok(())
}

/// Where entries go.
struct Placement {
    root: PathBuf,
    mapped: BTreeMap<u32, PathBuf>,
    mapped_seen: Vec<u32>,
    sync: bool,
    file: Option<fs::File>,
    directories: Vec<PathBuf>,
    files: u64,
    has_control_file: bool,
}

impl Placement {
    fn new(root: &Path, mapped: &[(u32, PathBuf)], sync: bool) -> Result<Placement> {
        for directory in std::iter::once(root).chain(mapped.iter().map(|(_, path)| path.as_path())) {
            prepare(directory)?;
        }
        Ok(Placement {
            root: root.into(),
            mapped: mapped.iter().cloned().collect(),
            mapped_seen: Vec::new(),
            sync,
            file: None,
            directories: Vec::new(),
            files: 0,
            has_control_file: false,
        })
    }

    fn take(&mut self, event: TarEvent<'_>) -> Result<()> {
        match event {
            TarEvent::Entry(entry) => {
                self.entry(&entry).with_context(|| format!("cannot write {}", entry.path))
            }
            TarEvent::Data(data) => {
                Ok(self.file.as_mut().context("content of what is no file")?.write_all(data)?)
            }
            TarEvent::EntryEnd => {
                if let Some(file) = self.file.take()
                    && self.sync
                {
                    file.sync_all()?;
                }
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: &TarEntry) -> Result<()> {
        ensure!(!self.has_control_file, "an entry after {CONTROL_FILE}");
        let path = self.path_of(&entry.path)?;
        match &entry.kind {
            TarKind::Directory => match path {
                To::Here(path) => {
                    fs::DirBuilder::new().mode(0o700).create(&path)?;
                    self.directories.push(path);
                }
                To::Root(_) => {}
            },
            TarKind::File => {
                let To::Here(mut path) = path else { bail!("it is a file where a tablespace belongs") };
                if entry.path == CONTROL_FILE {
                    path = self.root.join(UNFINISHED);
                    self.has_control_file = true;
                }
                self.file = Some(fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?);
                self.files += 1;
            }
            TarKind::Symlink { target } => match path {
                // The links that Postgres 14 gets lead to a directory beside pg_tblspc; none leads out.
                To::Here(path) => {
                    let inside = target.strip_prefix("../").is_some_and(|rest| !rest.contains(".."));
                    ensure!(inside, "its target {target:?} leads out of the data directory");
                    std::os::unix::fs::symlink(target, path)?;
                }
                To::Root(_) => {}
            },
        }
        Ok(())
    }

    /// Where an entry goes. The root of a mapped tablespace becomes a link the first time it is named.
    fn path_of(&mut self, path: &str) -> Result<To> {
        let below = ["pg_tblspc/", "tablespaces/"].iter().find_map(|parent| path.strip_prefix(parent));
        let Some((oid, rest)) = below.map(|below| below.split_once('/').unwrap_or((below, ""))) else {
            return Ok(To::Here(self.root.join(path)));
        };
        let mapped = oid.parse().ok().and_then(|oid| self.mapped.get(&oid).map(|to| (oid, to.clone())));
        let Some((oid, to)) = mapped else { return Ok(To::Here(self.root.join(path))) };
        if !self.mapped_seen.contains(&oid) {
            std::os::unix::fs::symlink(&to, self.root.join(format!("pg_tblspc/{oid}")))?;
            self.mapped_seen.push(oid);
        }
        Ok(if rest.is_empty() { To::Root(to) } else { To::Here(to.join(rest)) })
    }

    /// Everything is there: the control file gets its name, and the directory can be started.
    fn finish(&mut self) -> Result<()> {
        fs::rename(self.root.join(UNFINISHED), self.root.join(CONTROL_FILE))?;
        if self.sync {
            self.directories.push(self.root.clone());
            self.directories.extend(self.mapped.values().cloned());
            for directory in &self.directories {
                fs::File::open(directory)?.sync_all()?;
            }
        }
        Ok(())
    }
}

enum To {
    Here(PathBuf),
    /// A mapped tablespace itself, which is there.
    Root(#[allow(dead_code, reason = "says which in a debugger")] PathBuf),
}

/// Makes a directory, or finds that it is there and empty.
fn prepare(directory: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut entries = fs::read_dir(directory)
                .with_context(|| format!("cannot look into {}", directory.display()))?;
            ensure!(entries.next().is_none(), "{} is not empty", directory.display());
            // Postgres refuses a data directory that others can write to.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(directory, mode)?;
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("cannot make {}", directory.display())),
    }
}

/// Says how far it has come, once a second.
struct Progress {
    quiet: bool,
    since: Instant,
    said: Instant,
    bytes: u64,
}

impl Progress {
    fn new(quiet: bool) -> Progress {
        let now = Instant::now();
        Progress { quiet, since: now, said: now, bytes: 0 }
    }

    fn add(&mut self, bytes: usize, place: &Placement) {
        self.bytes += bytes as u64;
        if !self.quiet && self.said.elapsed() >= Duration::from_secs(1) {
            self.said = Instant::now();
            eprintln!("{}", self.line(place));
        }
    }

    fn end(&self, place: &Placement) {
        if !self.quiet {
            eprintln!("{}: complete in {}", self.line(place), place.root.display());
        }
    }

    fn line(&self, place: &Placement) -> String {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let seconds = self.since.elapsed().as_secs_f64().max(0.001);
        format!("{} files, {mib:.1} MiB, {:.1} MiB/s", place.files, mib / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::tar_out;

    fn unpack(archive: &[u8], root: &Path, mapped: &[(u32, PathBuf)]) -> Result<()> {
        let mut place = Placement::new(root, mapped, false)?;
        let mut tar = TarIn::new();
        let mut input = archive;
        while let Some(event) = tar.next(&mut input)? {
            place.take(event)?;
        }
        tar.finish(true)?;
        place.finish()
    }

    fn archive(terminated: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for directory in ["global", "pg_tblspc", "pg_tblspc/16384", "pg_tblspc/16384/PG_15_202209061"] {
            out.extend(tar_out::directory(directory, 0o700, 0));
        }
        for file in ["pg_tblspc/16384/PG_15_202209061/7", "global/pg_control"] {
            out.extend(tar_out::file(file, 3, 0));
            out.extend_from_slice(b"abc");
            out.extend(tar_out::padding(3));
        }
        if terminated {
            out.extend(tar_out::TERMINATOR);
        }
        out
    }

    #[test]
    fn a_tablespace_goes_where_it_is_mapped() {
        let home = tempfile::tempdir().unwrap();
        let (root, space) = (home.path().join("data"), home.path().join("space"));
        unpack(&archive(true), &root, &[(16384, space.clone())]).unwrap();
        assert_eq!(fs::read_link(root.join("pg_tblspc/16384")).unwrap(), space);
        assert_eq!(fs::read(space.join("PG_15_202209061/7")).unwrap(), b"abc");
        assert_eq!(fs::read(root.join("global/pg_control")).unwrap(), b"abc");
        // A second restore to the same place is refused.
        assert!(unpack(&archive(true), &root, &[]).unwrap_err().to_string().contains("is not empty"));
    }

    #[test]
    fn a_stream_that_broke_off_leaves_no_control_file() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("data");
        assert!(unpack(&archive(false), &root, &[]).is_err());
        assert!(!root.join("global/pg_control").exists());
        assert!(root.join("pg_tblspc/16384/PG_15_202209061/7").exists());
    }

    #[test]
    fn links_that_lead_out_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("data");
        let mut out = tar_out::directory("pg_tblspc", 0o700, 0);
        out.extend(tar_out::symlink("pg_tblspc/16384", "/etc", 0));
        out.extend(tar_out::TERMINATOR);
        let error = format!("{:#}", unpack(&out, &root, &[]).unwrap_err());
        assert!(error.contains("leads out"), "{error}");
    }
}
