//! How a server is told from beside it that it is to be emptied, and tells when it is: by files in its working directory.
//!
//! A pod's preStop hook is another process in the same container. It has neither the operator's certificate nor a shell; what it shares with the
//! server is the directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the waiting process looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The files.
#[derive(Clone, Debug)]
pub struct DrainFiles {
    wanted: PathBuf,
    done: PathBuf,
}

impl DrainFiles {
    /// Of a working directory.
    pub fn of(workdir: &Path) -> DrainFiles {
        DrainFiles { wanted: workdir.join("draining"), done: workdir.join("drained") }
    }

    /// Forgets what was wanted of the process before.
    pub fn forget(&self) -> io::Result<()> {
        for file in [&self.wanted, &self.done] {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the server is to be emptied.
    pub fn is_wanted(&self) -> bool {
        self.wanted.exists()
    }

    /// Tells whether the server is empty.
    pub fn tell(&self, is_empty: bool) {
        let told = if is_empty { std::fs::write(&self.done, "") } else { std::fs::remove_file(&self.done) };
        match told {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.done.display(), "cannot tell whether the server is empty: {error}");
            }
            _ => {}
        }
    }
}

/// Has the server of a working directory emptied; waits for it so long, or not at all. Answers whether it is empty, as far as that was waited for.
pub fn drain(workdir: &Path, wait: Option<Duration>) -> io::Result<bool> {
    let files = DrainFiles::of(workdir);
    std::fs::write(&files.wanted, "")?;
    let Some(wait) = wait else { return Ok(true) };
    let since = Instant::now();
    while since.elapsed() < wait {
        if files.done.exists() {
            return Ok(true);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(files.done.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_asks_and_waits_and_the_other_tells() {
        let home = tempfile::tempdir().unwrap();
        let files = DrainFiles::of(home.path());
        files.forget().unwrap();
        assert!(!files.is_wanted());
        assert!(!drain(home.path(), Some(Duration::ZERO)).unwrap());
        assert!(files.is_wanted());
        files.tell(true);
        assert!(drain(home.path(), Some(Duration::from_secs(5))).unwrap());
        files.tell(false);
        assert!(!drain(home.path(), Some(Duration::ZERO)).unwrap());
        files.forget().unwrap();
        files.forget().unwrap();
        assert!(!files.is_wanted());
    }
}
