//! Telling the supervisor what is true of a daemon: ready, how it stands, alive, stopping.
//!
//! Says nothing unless `$NOTIFY_SOCKET` is set. A supervisor that cannot be told is no reason to
//! stop, so failures go to the log alone.
//! Law: the watchdog is fed by the loop that does the work and by nothing else, so that a loop that
//! is stuck falls silent (tests/supervised.rs).
//! Source: sd_notify(3), sd_watchdog_enabled(3): one datagram of `NAME=VALUE` lines to a Unix
//! socket.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::Instant;

use crate::proto::limits;

/// The environment variable with the supervisor's socket.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// The environment variable with the microseconds after which a silent daemon counts as stuck.
const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";
/// The environment variable with the process that the watchdog is meant for.
const WATCHDOG_PID_VARIABLE: &str = "WATCHDOG_PID";

/// Whoever started this daemon and wants to know how it stands.
#[derive(Debug)]
pub struct Supervisor {
    address: Option<SocketAddr>,
    /// How often it wants to hear that the loop turns.
    every: Option<Duration>,
    fed: Instant,
    is_ready: bool,
    said: String,
    said_at: Option<Instant>,
    /// Whether the loop has turned since the status was said.
    turned: bool,
    failed: bool,
}

impl Supervisor {
    /// The supervisor that the environment names; nobody where it names none.
    #[must_use]
    pub fn of_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name);
        let address = address_of(variable(SOCKET_VARIABLE));
        let every = interval_of(
            variable(WATCHDOG_VARIABLE),
            variable(WATCHDOG_PID_VARIABLE),
            std::process::id(),
        );
        Self::new(address, every)
    }

    fn new(address: Option<SocketAddr>, every: Option<Duration>) -> Self {
        let every = every.filter(|_| address.is_some());
        Self {
            address,
            every,
            fed: Instant::now(),
            is_ready: false,
            said: String::new(),
            said_at: None,
            turned: false,
            failed: false,
        }
    }

    /// Says that the daemon serves now; nothing when it was said before.
    pub fn ready(&mut self, status: String) {
        if self.address.is_some() && !std::mem::replace(&mut self.is_ready, true) {
            self.send(&format!("READY=1\nSTATUS={}\n", one_line(&status)));
            self.said = status;
            self.said_at = Some(Instant::now());
        }
    }

    /// When [`Self::tell`] is to be called at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let feed = self.every.map(|every| self.fed + every);
        let say = self.said_at.filter(|_| self.turned).map(|at| at + limits::STATUS_EVERY);
        feed.into_iter().chain(say).min()
    }

    /// Called in each turn of the loop: says that it turns, as often as the supervisor wants it,
    /// and how the daemon stands, if that changed and not too often.
    pub fn tell(&mut self, status: impl FnOnce() -> String) {
        if self.address.is_some() {
            self.tell_at(Instant::now(), status);
        }
    }

    fn tell_at(&mut self, now: Instant, status: impl FnOnce() -> String) {
        if self.every.is_some_and(|every| now >= self.fed + every) {
            self.fed = now;
            self.send("WATCHDOG=1\n");
        }
        self.turned = self.said_at.is_some_and(|at| now < at + limits::STATUS_EVERY);
        if !self.turned {
            let status = status();
            self.said_at = Some(now);
            if status != self.said {
                self.send(&format!("STATUS={}\n", one_line(&status)));
                self.said = status;
            }
        }
    }

    /// Says that the daemon has begun to end.
    pub fn stopping(&mut self) {
        if self.address.is_some() {
            self.send("STOPPING=1\nSTATUS=stopping\n");
            "stopping".clone_into(&mut self.said);
        }
    }

    fn send(&mut self, state: &str) {
        let Some(address) = &self.address else { return };
        match send(address, state) {
            Ok(()) => self.failed = false,
            // The same each second would only hide what else is said.
            Err(error) if !std::mem::replace(&mut self.failed, true) => {
                tracing::warn!("the supervisor cannot be told {:?}: {error}", state.trim_end());
            }
            Err(error) => tracing::debug!("the supervisor cannot be told: {error}"),
        }
    }
}

/// A line end would begin another assignment.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An absolute path, or `@` and a name in the abstract namespace.
fn address_of(socket: Option<OsString>) -> Option<SocketAddr> {
    let socket = socket.filter(|socket| !socket.is_empty())?;
    let found = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(OsStr::from_bytes(socket.as_bytes())),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    let unusable = |error| tracing::warn!("${SOCKET_VARIABLE} {socket:?} cannot be used: {error}");
    found.map_err(unusable).ok()
}

/// Half of what the supervisor bears with, if it means this process.
fn interval_of(
    microseconds: Option<OsString>,
    meant: Option<OsString>,
    own: u32,
) -> Option<Duration> {
    let number = |text: OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
    if meant.is_some_and(|meant| number(meant) != Some(u64::from(own))) {
        return None;
    }
    let half = number(microseconds?)? / 2;
    (half > 0).then(|| Duration::from_micros(half))
}

fn send(address: &SocketAddr, state: &str) -> io::Result<()> {
    let datagram = UnixDatagram::unbound()?;
    // A supervisor that does not read must not hold up the work.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.as_bytes(), address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(supervisor: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 256];
        let size = supervisor.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..size]).into_owned())
    }

    fn listening(path: &std::path::Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket's mode");
        socket
    }

    #[test]
    fn status_is_said_once_a_second_and_the_watchdog_is_fed_in_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let socket = listening(&path);
        let address = address_of(Some(path.into()));
        let mut supervisor = Supervisor::new(address, Some(Duration::from_secs(3)));
        let began = supervisor.fed;
        supervisor.ready("no\njobs".into());
        supervisor.ready("again".into());
        assert_eq!(heard(&socket).as_deref(), Some("READY=1\nSTATUS=no jobs\n"));
        let said = supervisor.said_at.expect("it was said");
        supervisor.tell_at(said, || "1 job".into());
        assert_eq!(heard(&socket), None, "too early, and ready only once");
        assert_eq!(supervisor.due(), Some(said + limits::STATUS_EVERY));
        supervisor.tell_at(said + limits::STATUS_EVERY, || "1 job".into());
        assert_eq!(heard(&socket).as_deref(), Some("STATUS=1 job\n"));
        assert_eq!(supervisor.due(), Some(began + Duration::from_secs(3)));
        supervisor.tell_at(began + Duration::from_secs(3), || "1 job".into());
        assert_eq!(heard(&socket).as_deref(), Some("WATCHDOG=1\n"));
        assert_eq!(heard(&socket), None, "nothing changed");
        supervisor.stopping();
        assert_eq!(heard(&socket).as_deref(), Some("STOPPING=1\nSTATUS=stopping\n"));
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let of = |usec: &str, pid: Option<&str>| {
            interval_of(Some(usec.into()), pid.map(OsString::from), 42)
        };
        assert_eq!(of("3000000", None), Some(Duration::from_millis(1500)));
        assert_eq!(of("3000000", Some("42")), Some(Duration::from_millis(1500)));
        for (usec, pid) in [("3000000", "43"), ("3000000", "x"), ("0", "42"), ("soon", "42")] {
            assert_eq!(of(usec, Some(pid)), None, "{usec} {pid}");
        }
        assert_eq!(interval_of(None, None, 42), None);
    }

    #[test]
    fn a_supervisor_that_cannot_be_told_is_no_failure() {
        let absent = address_of(Some("/nowhere/at/all".into()));
        assert!(send(absent.as_ref().expect("an address"), "READY=1\n").is_err());
        assert!(address_of(Some("relative".into())).is_none());
        assert!(address_of(Some("".into())).is_none() && address_of(None).is_none());
        let mut nobody = Supervisor::new(None, Some(Duration::from_secs(1)));
        nobody.ready("x".into());
        nobody.tell(|| unreachable!("nobody listens"));
        assert_eq!(nobody.due(), None);
    }
}
