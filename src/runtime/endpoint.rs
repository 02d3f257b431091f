//! Where brokers are: addresses, the places that are looked at, and one stream type for both kinds.
//!
//! Binds no socket and speaks no HTTP (server.rs, client.rs). A run directory that belongs to
//! somebody else is never looked into: whoever owns it could pose as a broker.
//! Shape: `unix:/path.sock`, `http://host:port`, or a bare path, which means `unix:`.
//! Law: an address reads back from what it shows (tests below).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::proto::limits;
use crate::runtime::rundir::{self, DirError, run_dir};

/// The environment variable with addresses of brokers, separated by spaces.
pub const BROKER_VARIABLE: &str = "UCP_BROKER";
/// The name of the first broker's socket in the run directory.
pub const BROKER_SOCKET: &str = "broker.sock";

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// HTTP over TCP.
    Http {
        /// Host name or IP address; IPv6 without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Why no broker could be reached, or an address is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// A text is no address. Nothing changed; trying again cannot help.
    #[error("{0:?} is no address: unix:/path.sock, http://host:port or a path is expected")]
    Form(String),
    /// The address asks for TLS. Nothing changed; trying again cannot help.
    #[error("{0:?} cannot be used: not yet spoken by this build: TLS")]
    Tls(String),
    /// The run directory belongs to somebody else, who could pose as a broker. Nothing changed;
    /// trying again cannot help.
    #[error(transparent)]
    RunDir(#[from] DirError),
    /// Nobody answers there. Nothing changed; trying again may help.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answered anywhere in the time given. Nothing changed; trying again may help.
    #[error("no broker reachable: {why}")]
    NoBroker {
        /// What the last attempt failed with.
        why: String,
        /// Every place that was looked at.
        looked: Vec<String>,
    },
}

impl FromStr for Address {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let form = || EndpointError::Form(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(form()) } else { Ok(Self::Unix(path.into())) };
        }
        if text.starts_with("https://") {
            return Err(EndpointError::Tls(text.chars().take(200).collect()));
        }
        if let Some(rest) = text.strip_prefix("http://") {
            let rest = rest.strip_suffix('/').unwrap_or(rest);
            let (host, port) = rest.rsplit_once(':').ok_or_else(form)?;
            let port = port.parse().map_err(|_| form())?;
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host = match bare {
                Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => host,
                Some(_) => return Err(form()),
                None => host,
            };
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if host.is_empty() || (bare.is_none() && !host.chars().all(legal)) {
                return Err(form());
            }
            return Ok(Self::Http { host: host.to_owned(), port });
        }
        let is_path = text.contains('/') && !text.contains("://");
        if is_path { Ok(Self::Unix(text.into())) } else { Err(form()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Http { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

impl Address {
    /// What the `Host` header of a request to this address says.
    #[must_use]
    pub fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Http { .. } => self.to_string().split_off("http://".len()),
        }
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Stream {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP, without Nagle's delay.
    Tcp(TcpStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Connects to one address.
///
/// # Errors
/// [`EndpointError::Connect`] names the address.
pub async fn connect(address: &Address) -> Result<Stream, EndpointError> {
    let connected = match address {
        Address::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
        Address::Http { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await;
            stream.and_then(|stream| stream.set_nodelay(true).map(|()| Stream::Tcp(stream)))
        }
    };
    connected.map_err(|source| EndpointError::Connect { address: address.clone(), source })
}

/// The addresses to try, best first: those given by flags; else those of `$UCP_BROKER`; else the
/// default socket and every other socket in the run directory.
///
/// # Errors
/// `$UCP_BROKER` holds a text that is no address, or the run directory is not ours.
pub fn candidates(flags: &[Address]) -> Result<Vec<Address>, EndpointError> {
    if !flags.is_empty() {
        return Ok(flags.to_vec());
    }
    let named = std::env::var(BROKER_VARIABLE).unwrap_or_default();
    let named: Vec<Address> = named.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    if named.is_empty() { sockets_in(&run_dir()) } else { Ok(named) }
}

/// The sockets of a run directory: `broker.sock` first, whether or not it is there yet.
fn sockets_in(directory: &Path) -> Result<Vec<Address>, EndpointError> {
    let first = directory.join(BROKER_SOCKET);
    let mut found = vec![];
    if directory.exists() {
        rundir::check_dir(directory)?;
    }
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        let is_socket = path.extension().is_some_and(|extension| extension == "sock");
        if is_socket && path != first && found.len() < limits::SOCKETS_TRIED_MAX {
            found.push(path);
        }
    }
    found.sort();
    found.insert(0, first);
    Ok(found.into_iter().map(Address::Unix).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_write_the_same_text() {
        for text in ["unix:/a/b.sock", "http://127.0.0.1:4717", "http://[::1]:80", "http://a.b:1"] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
        }
        let bare: Address = "./x.sock".parse().expect("a path");
        assert_eq!(bare, Address::Unix("./x.sock".into()));
        let ipv6: Address = "http://[::1]:80/".parse().expect("IPv6");
        assert_eq!(ipv6.authority(), "[::1]:80");
    }

    #[test]
    fn what_is_no_address_is_refused_with_words() {
        for text in
            ["", "unix:", "host", "http://", "http://h", "http://h:x", "http://a/b:1", "ftp://h:1"]
        {
            let said = text.parse::<Address>().expect_err(text).to_string();
            assert!(said.contains("is expected"), "{said}");
        }
        let said = "https://h:1".parse::<Address>().expect_err("TLS").to_string();
        assert!(said.contains("not yet spoken by this build: TLS"), "{said}");
    }

    #[test]
    fn the_default_socket_comes_first_and_others_follow_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["broker-b.sock", "broker-a.sock", "lock", "broker.sock"] {
            std::fs::write(directory.path().join(name), "").expect("a file");
        }
        let found = sockets_in(directory.path()).expect("a directory of ours");
        let names: Vec<_> = found.iter().map(|address| address.to_string()).collect();
        let tail = |name: &str| format!("unix:{}/{name}", directory.path().display());
        assert_eq!(names, ["broker.sock", "broker-a.sock", "broker-b.sock"].map(tail));
    }
}
