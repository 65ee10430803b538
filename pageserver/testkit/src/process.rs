//! One running server: started in its own process group, ended with its handle or with us.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How long the kernel may take over ending what was killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A child process and its group.
///
/// The thread that spawned a child with a parent-death signal must outlive it, as the kernel sends the signal at the
/// end of that *thread*. So each process has a thread that spawns it, waits for it and reports its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    ended: mpsc::Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; what it prints goes to the end of file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let output = std::fs::File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let (started, has_started) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new().name(format!("wait {name}")).spawn(move || match command.spawn() {
            Ok(mut child) => {
                started.send(Ok(child.id())).ok();
                if let Ok(status) = child.wait() {
                    end.send(status).ok();
                }
            }
            Err(error) => {
                started.send(Err(error)).ok();
            }
        })?;
        let pid = has_started
            .recv()
            .context("the waiting thread is gone")?
            .with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_raw(pid as i32).context("a child has a pid")?;
        Ok(Process { name: name.to_owned(), pid, log: log.to_owned(), ended, status: None })
    }

    /// What it is, as it was started.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.ended.try_recv().ok();
        }
        self.status
    }

    /// Sends `signal` to the process alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none() {
            kill_process(self.pid, signal).ok();
        }
    }

    /// kill -9 for the process, its group and everything it started, and waits until all of it is gone: what lives on a moment longer may still
    /// write files, or hold what the next start needs.
    pub fn kill(&mut self) {
        // Stopped first, it starts nothing more while we look. Children may have left the group (Postgres' all do): they are found while
        // their parent still names them.
        let runs = self.exit_status().is_none();
        if runs {
            kill_process(self.pid, Signal::STOP).ok();
        }
        let children = descendants(self.pid());
        if runs {
            kill_process(self.pid, Signal::KILL).ok();
            kill_process_group(self.pid, Signal::KILL).ok();
        }
        for child in children.iter().filter_map(|child| Pid::from_raw(*child as i32)) {
            kill_process(child, Signal::KILL).ok();
        }
        if self.status.is_none() {
            self.status = self.ended.recv_timeout(PATIENCE).ok();
        }
        let since = Instant::now();
        while since.elapsed() < PATIENCE && children.iter().any(|child| is_alive(*child)) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits at most `limit` for the process to end by itself.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            if since.elapsed() > limit {
                bail!("{} still runs after {limit:?}:\n{}", self.name, self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The last lines it logged, for error messages.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Resident memory now, bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit_status().is_none() {
            self.kill();
        }
    }
}

/// State and parent of a process.
fn state_of(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything: the fields start after the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process can still do something: one that only waits to be asked how it ended cannot.
fn is_alive(pid: u32) -> bool {
    state_of(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Every process below `root` now.
fn descendants(root: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pairs: Vec<(u32, u32)> = entries
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            state_of(pid).map(|(_, parent)| (pid, parent))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(pairs.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_process_ends_its_children_too() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 1000 & sleep 1000"]);
        let process = Process::start("sh", command, log.path()).unwrap();
        let since = Instant::now();
        let children = loop {
            let children = descendants(process.pid());
            if children.len() >= 2 {
                break children;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "sh started no children");
            std::thread::sleep(Duration::from_millis(5));
        };
        drop(process);
        for child in children {
            let since = Instant::now();
            while alive(child) {
                assert!(since.elapsed() < Duration::from_secs(10), "{child} lives on");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn alive(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
        })
    }
}
