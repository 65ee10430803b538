//! Who runs the servers. Postgres refuses root; under root we become `postgres`, or `nobody` where there is no such
//! user, by util-linux' `setpriv`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// A user to run a server as, when we are root and are not to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unprivileged {
    uid: u32,
    gid: u32,
}

/// Whom to run Postgres as. `None`: as ourselves, since we are not root.
pub fn postgres_account() -> Result<Option<Unprivileged>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    for name in ["postgres", "nobody"] {
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f[0] == name);
        if let Some([_, _, uid, gid, ..]) = fields.as_deref() {
            return Ok(Some(Unprivileged { uid: uid.parse()?, gid: gid.parse()? }));
        }
    }
    bail!("we are root and there is neither a user postgres nor nobody to run Postgres as")
}

/// A command that runs `program` as `user` and that the kernel kills when the thread that spawned it ends: spawn it
/// through [`crate::process::Process`], which keeps that thread.
pub fn command_as(user: Option<Unprivileged>, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(Unprivileged { uid, gid }) = user {
        command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSSLMODE", "PGPASSFILE"]
    {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    command
}

/// A new temporary directory that `user` can pass through and write to. It goes with its handle.
pub fn temp_dir_for(user: Option<Unprivileged>) -> Result<TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("palimpsest-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .context("cannot make a temporary directory")?;
    give_to(user, dir.path())?;
    Ok(dir)
}

/// Hands `path` itself (not what is below it) to `user`.
pub fn give_to(user: Option<Unprivileged>, path: &Path) -> Result<()> {
    if let Some(Unprivileged { uid, gid }) = user {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to user {uid}", path.display()))?;
    }
    Ok(())
}

/// Hands `path` and all below it to `user`. Symlinks are not followed.
pub fn give_tree_to(user: Option<Unprivileged>, path: &Path) -> Result<()> {
    let Some(Unprivileged { uid, gid }) = user else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_tree_to(user, &entry?.path())?;
        }
    }
    Ok(())
}

/// Where the scripts put what they fetch.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("TESTKIT_CACHE") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".cache/palimpsest"))
}
