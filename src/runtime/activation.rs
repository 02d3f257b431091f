//! Listening sockets that a supervisor made and hands over: socket activation.
//!
//! Binds nothing and accepts nothing. Whoever handed a socket over keeps it, with its file, so it
//! is never removed here; connections that come while no broker runs wait in it.
//! Law: after [`take`] no child of this process takes them for its own: the variables are gone
//! and the descriptors close on exec.
//! Source: sd_listen_fds(3): `$LISTEN_FDS` descriptors from 3 on for process `$LISTEN_PID`, with
//! names in `$LISTEN_FDNAMES`, separated by colons.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage};
use nix::sys::socket::{getsockname, getsockopt, sockopt};

use crate::proto::limits;

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;
const COUNT_VARIABLE: &str = "LISTEN_FDS";
const PID_VARIABLE: &str = "LISTEN_PID";
const NAMES_VARIABLE: &str = "LISTEN_FDNAMES";

/// Why what was handed over cannot be listened on. Nothing was served; trying again cannot help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// The number of descriptors makes no sense.
    #[error("${COUNT_VARIABLE} is {0:?}: a number up to {max} is expected",
        max = limits::INHERITED_SOCKETS_MAX)]
    Count(OsString),
    /// A descriptor is not open, or no socket, or not one that connections come in at.
    #[error("{what}, which was handed over, {why}")]
    Unfit {
        /// Which.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A listening socket that was handed over.
#[derive(Debug)]
pub struct Inherited {
    /// The socket.
    pub socket: Socket,
    /// Its descriptor and its name, for messages.
    pub what: String,
}

/// A listening socket of a kind that is served.
#[derive(Debug)]
pub enum Socket {
    /// A Unix socket and its path.
    Unix(UnixListener, PathBuf),
    /// A TCP socket and where it is bound.
    Tcp(TcpListener, SocketAddr),
}

/// Takes the sockets that were handed over to this process, each once. Must be called before any
/// thread is started, as it changes the environment.
///
/// # Errors
/// [`ActivationError`]; the variables are gone then too.
pub fn take() -> Result<Vec<Inherited>, ActivationError> {
    let meant = std::env::var_os(PID_VARIABLE);
    let count = std::env::var_os(COUNT_VARIABLE);
    let names = std::env::var_os(NAMES_VARIABLE).unwrap_or_default();
    for name in [PID_VARIABLE, COUNT_VARIABLE, NAMES_VARIABLE] {
        // SAFETY: no other thread runs yet that could read the environment at the same time.
        unsafe { std::env::remove_var(name) };
    }
    let own = std::process::id().to_string();
    let (Some(count), true) = (count, meant.is_some_and(|meant| meant == *own)) else {
        return Ok(vec![]);
    };
    let number = count.to_str().and_then(|text| text.parse::<usize>().ok());
    let Some(number) = number.filter(|number| *number <= limits::INHERITED_SOCKETS_MAX) else {
        return Err(ActivationError::Count(count));
    };
    let names = names.to_string_lossy().into_owned();
    let mut names = names.split(':');
    let descriptors = FIRST..FIRST + RawFd::try_from(number).expect("checked above");
    descriptors.map(|descriptor| inherit(descriptor, names.next())).collect()
}

/// Takes one descriptor, which nothing else of this process knows.
fn inherit(descriptor: RawFd, name: Option<&str>) -> Result<Inherited, ActivationError> {
    let what = match name.filter(|name| !name.is_empty()) {
        Some(name) => format!("descriptor {descriptor} ({})", name.escape_debug()),
        None => format!("descriptor {descriptor}"),
    };
    let unfit = |why: String| ActivationError::Unfit { what: what.clone(), why };
    // SAFETY: borrowed for this question alone; one that is not open is answered with EBADF.
    let asked = unsafe { BorrowedFd::borrow_raw(descriptor) };
    fcntl(asked, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| unfit(format!("is not open: {error}")))?;
    // SAFETY: it is open, and by the protocol it was opened for us alone; FIRST is above those of
    // the standard library, and nothing else was opened before with these numbers.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let socket = of_kind(descriptor).map_err(unfit)?;
    Ok(Inherited { socket, what })
}

/// What kind of socket it is, or why it is none that can be served.
fn of_kind(descriptor: OwnedFd) -> Result<Socket, String> {
    let kind = getsockopt(&descriptor, sockopt::SockType);
    let kind = kind.map_err(|_| "is no socket".to_owned())?;
    if kind != SockType::Stream {
        return Err("is no stream socket".to_owned());
    }
    if !getsockopt(&descriptor, sockopt::AcceptConn).unwrap_or(false) {
        return Err("does not listen".to_owned());
    }
    let system = |error: &dyn std::fmt::Display| format!("cannot be asked where it is: {error}");
    let bound = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&descriptor));
    match bound.map_err(|error| system(&error))?.family() {
        Some(AddressFamily::Unix) => {
            let listener = UnixListener::from(descriptor);
            let address = listener.local_addr().map_err(|error| system(&error))?;
            match address.as_pathname() {
                Some(path) => Ok(Socket::Unix(listener, path.to_owned())),
                None => Err("has no path, so no mode guards it".to_owned()),
            }
        }
        Some(AddressFamily::Inet | AddressFamily::Inet6) => {
            let listener = TcpListener::from(descriptor);
            let address = listener.local_addr().map_err(|error| system(&error))?;
            Ok(Socket::Tcp(listener, address))
        }
        _ => Err("is neither a Unix nor a TCP socket".to_owned()),
    }
}
