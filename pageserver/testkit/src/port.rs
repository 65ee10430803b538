//! Free TCP ports that stay free: two tests never get the same one, in one process or in several.

use std::fs::File;
use std::net::TcpListener;

use anyhow::{Result, bail};
use rustix::fs::{FlockOperation, flock};

/// A port of 127.0.0.1 that is ours while this lives.
///
/// Asking the kernel for port 0 and closing the socket would give the port to whoever asks next, e.g. to an outgoing
/// connection. So ports are below the range the kernel hands out, and a locked file says that one is taken.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a free port.
    pub fn take() -> Result<Port> {
        for _ in 0..2_000 {
            let number = rand::random_range(12_000..32_000u16);
            let path = std::env::temp_dir().join(format!(".palimpsest-port-{number}"));
            let Ok(lock) = File::options().create(true).truncate(false).write(true).open(&path) else {
                continue;
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Ok(Port { number, _lock: lock });
            }
        }
        bail!("no free port between 12000 and 32000")
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<number>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_not_given_again() {
        let ports: Vec<Port> = (0..50).map(|_| Port::take().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
    }
}
