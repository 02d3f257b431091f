//! The process at the other end of a Unix socket: is it still there?
//!
//! Knows nothing of processes on other hosts or in other process namespaces. The socket of a
//! killed process closes a moment before its pidfd tells, so the question takes a short wait.
//! Tested in tests/broker/sessions.rs: a process has to end for it.
//! Source: pidfd_open(2), unix(7) under SO_PEERCRED.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that can be asked whether it has ended.
#[derive(Debug)]
pub enum Peer {
    /// It is watched by its pidfd.
    Watched(AsyncFd<OwnedFd>),
    /// It had ended before it could be watched.
    Gone,
    /// It is not on this host, or the kernel does not tell.
    Unknown,
}

impl Peer {
    /// Begins to watch the process of a peer; `pid` as the kernel told it for the socket.
    #[must_use]
    pub fn watch(pid: Option<i32>) -> Self {
        let Some(pid) = pid.filter(|pid| *pid > 0) else { return Self::Unknown };
        match pidfd(pid) {
            // SAFETY: an `OwnedFd` keeps its descriptor open, and the same one, while it lives.
            Ok(fd) => match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
                Ok(fd) => Self::Watched(fd),
                Err(error) => {
                    tracing::debug!("process {pid} cannot be watched: {error}");
                    Self::Unknown
                }
            },
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Self::Gone,
            Err(error) => {
                tracing::debug!("process {pid} cannot be watched: {error}");
                Self::Unknown
            }
        }
    }

    /// Whether the process is known to have ended, now or within `wait`.
    pub async fn is_gone_within(&self, wait: Duration) -> bool {
        match self {
            Self::Watched(fd) => tokio::time::timeout(wait, fd.readable()).await.is_ok(),
            Self::Gone => true,
            Self::Unknown => false,
        }
    }
}

fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
