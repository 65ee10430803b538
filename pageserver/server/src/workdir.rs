//! The working directory, and the lock that keeps a second process out of it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// A working directory that is ours until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Workdir {
    path: PathBuf,
    _lock: File,
}

/// Why a working directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkdirError {
    /// Another process has it.
    #[error("working directory {0} is in use by another pageserver")]
    InUse(PathBuf),
    /// It cannot be created, or the lock file in it cannot.
    #[error("cannot use working directory {path}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Workdir {
    /// Creates the directory if need be and locks it. The lock file holds the process id, for people; the lock itself is the kernel's.
    pub fn lock(path: &Path) -> Result<Workdir, WorkdirError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| WorkdirError::Io { path, source }
        };
        std::fs::create_dir_all(path).map_err(io(path))?;
        let lock_path = path.join("pageserver.pid");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
            if errno == rustix::io::Errno::WOULDBLOCK {
                WorkdirError::InUse(path.into())
            } else {
                WorkdirError::Io { path: lock_path.clone(), source: errno.into() }
            }
        })?;
        lock.set_len(0).map_err(io(&lock_path))?;
        writeln!(lock, "{}", std::process::id()).map_err(io(&lock_path))?;
        Ok(Workdir { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/work");
        let first = Workdir::lock(&path).unwrap();
        assert!(matches!(Workdir::lock(&path), Err(WorkdirError::InUse(_))));
        drop(first);
        Workdir::lock(&path).unwrap();
    }
}
