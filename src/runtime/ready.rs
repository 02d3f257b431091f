//! Telling the supervisor what is true of a daemon: ready, stopping.
//!
//! Says nothing unless `$NOTIFY_SOCKET` is set. A supervisor that cannot be told is no reason to
//! stop, so failures go to the log alone.
//! Source: sd_notify(3): one datagram of `NAME=VALUE` lines to a Unix socket.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The environment variable with the supervisor's socket.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The daemon serves now.
pub fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={status}\n"));
}

/// The daemon has begun to end.
pub fn stopping() {
    notify("STOPPING=1\n");
}

fn notify(state: &str) {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else { return };
    if let Err(error) = send(socket.as_bytes(), state) {
        tracing::warn!("the supervisor cannot be told {:?}: {error}", state.trim_end());
    }
}

fn send(socket: &[u8], state: &str) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_gets_one_datagram() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).expect("a socket");
        send(path.as_os_str().as_bytes(), "READY=1\n").expect("it listens");
        let mut buffer = [0; 64];
        let size = supervisor.recv(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..size], b"READY=1\n");
        let absent = directory.path().join("absent");
        assert!(send(absent.as_os_str().as_bytes(), "READY=1\n").is_err());
    }
}
