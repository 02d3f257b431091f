//! Where the broker listens: Unix sockets, claimed under a lock, TCP, and what a supervisor hands
//! on.
//!
//! Speaks no HTTP. A Unix socket is guarded by its mode and by who the peer is; TCP by nothing
//! yet, so other addresses than loopback are refused unless the operator insists.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::net::{TcpListener, TcpStream, UnixListener, lookup_host};

use crate::runtime::activation::{Inherited, Socket};
use crate::runtime::endpoint::{Address, Stream};
use crate::runtime::rundir::{DirError, SocketClaim, claim_path};

/// Why the broker cannot listen. Nothing was served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The place of a socket cannot be had. Trying again may help.
    #[error(transparent)]
    Claim(#[from] DirError),
    /// The system refused the address. Trying again may help.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The event loop cannot take a socket that was handed over.
    #[error("cannot use {what}, which was handed over")]
    Inherited {
        /// Which.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever reaches this address could run anything here. Trying again cannot help.
    #[error("{address} can be reached from other machines, and nothing guards it")]
    Open {
        /// Where.
        address: Address,
    },
}

/// One place where connections come in.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket; removed when this is dropped.
    Unix(UnixListener, SocketClaim),
    /// A Unix socket that a supervisor made and keeps, and its path.
    Inherited(UnixListener, PathBuf),
    /// A TCP port.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on a Unix socket whose place is claimed.
    ///
    /// # Errors
    /// [`ListenError::Bind`].
    pub fn on_claim(claim: SocketClaim) -> Result<Self, ListenError> {
        let path = claim.path().to_owned();
        let bound = UnixListener::bind(&path).and_then(|listener| {
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, private).map(|()| listener)
        });
        match bound {
            Ok(listener) => Ok(Self::Unix(listener, claim)),
            Err(source) => Err(ListenError::Bind { address: Address::Unix(path), source }),
        }
    }

    /// Listens on an address. `insecure` lets other machines in.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn on(address: &Address, insecure: bool) -> Result<Self, ListenError> {
        let (host, port) = match address {
            Address::Unix(path) => return Self::on_claim(claim_path(path)?),
            Address::Http { host, port } => (host.as_str(), *port),
        };
        let failed = |source| ListenError::Bind { address: address.clone(), source };
        let found: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(failed)?.collect();
        // A name may stand for addresses of both kinds: all must be harmless.
        if !insecure && found.iter().any(|found| !found.ip().is_loopback()) {
            return Err(ListenError::Open { address: address.clone() });
        }
        TcpListener::bind(found.as_slice()).await.map(Self::Tcp).map_err(failed)
    }

    /// Listens on a socket that was handed over. `insecure` lets other machines in.
    ///
    /// # Errors
    /// [`ListenError::Open`]; [`ListenError::Inherited`] if the event loop cannot take it.
    pub fn inherited(socket: Inherited, insecure: bool) -> Result<Self, ListenError> {
        let Inherited { socket, what } = socket;
        let failed = |source| ListenError::Inherited { what: what.clone(), source };
        match socket {
            Socket::Unix(listener, path) => {
                listener.set_nonblocking(true).map_err(failed)?;
                UnixListener::from_std(listener)
                    .map(|listener| Self::Inherited(listener, path))
                    .map_err(failed)
            }
            Socket::Tcp(listener, bound) => {
                if !insecure && !bound.ip().is_loopback() {
                    let (host, port) = (bound.ip().to_string(), bound.port());
                    return Err(ListenError::Open { address: Address::Http { host, port } });
                }
                listener.set_nonblocking(true).map_err(failed)?;
                TcpListener::from_std(listener).map(Self::Tcp).map_err(failed)
            }
        }
    }

    /// The address as clients write it, with the port that was taken.
    #[must_use]
    pub fn address(&self) -> Address {
        match self {
            Self::Unix(_, claim) => Address::Unix(PathBuf::from(claim.path())),
            Self::Inherited(_, path) => Address::Unix(path.clone()),
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(bound) => Address::Http { host: bound.ip().to_string(), port: bound.port() },
                Err(_) => Address::Http { host: "localhost".into(), port: 0 },
            },
        }
    }

    /// The next connection, with the process at its other end where that is on this host.
    ///
    /// # Errors
    /// The system refused: often for want of descriptors, so that trying again later helps.
    pub async fn accept(&self) -> io::Result<(Stream, Option<i32>)> {
        match self {
            Self::Unix(listener, _) | Self::Inherited(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
                Ok((Stream::Unix(stream), peer))
            }
            Self::Tcp(listener) => {
                let (stream, _): (TcpStream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), None))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn listen(address: &str, insecure: bool) -> Result<Listener, ListenError> {
        Listener::on(&address.parse().expect("an address"), insecure).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn other_machines_are_let_in_only_on_insistence() {
        for address in ["http://0.0.0.0:0", "http://[::]:0"] {
            let refused = listen(address, false).await.expect_err(address);
            assert!(matches!(refused, ListenError::Open { .. }), "{refused}");
        }
        let open = listen("http://0.0.0.0:0", true).await.expect("the operator insists");
        assert!(matches!(open.address(), Address::Http { port, .. } if port != 0));
        let loopback = listen("http://127.0.0.1:0", false).await.expect("loopback is harmless");
        assert!(matches!(loopback.address(), Address::Http { port, .. } if port != 0));
    }
}
