//! The run directory and the data directories: where they are, who may use them, who has them.
//!
//! Binds no socket and opens no store; it says where, and holds the locks. All locks are `flock`s:
//! they end with the process, however it ends, so a lock file that is left behind means nothing.
//! Shapes: run directory `$XDG_RUNTIME_DIR/ucp`, `/run/ucp` for root, else `/tmp/ucp-UID`; data
//! `$XDG_STATE_HOME/ucp/KIND`, `/var/lib/ucp/KIND` for root; both 0700 and of our own user.
//! Law: of several brokers on one run directory each has a socket of its own, and a socket is
//! removed only by who holds its lock (tests in `rundir/tests.rs`).
//! Source: XDG Base Directory Specification 0.8.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::geteuid;

use crate::proto::id::LogId;
use crate::proto::limits;

#[cfg(test)]
mod tests;

/// The mode of a directory that only its owner uses.
pub const PRIVATE_MODE: u32 = 0o700;
/// The socket of the first broker of a run directory.
pub const SOCKET_NAME: &str = "broker.sock";

/// Why a directory, a lock or a socket's place cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// Neither `$XDG_STATE_HOME` nor `$HOME` says where data belong. Nothing changed.
    #[error("no place for data: neither XDG_STATE_HOME nor HOME is an absolute path")]
    NoHome,
    /// A directory cannot be created. Parents of it may have been; trying again may help.
    #[error("cannot create directory {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A directory or file cannot be looked at. Nothing changed.
    #[error("cannot inspect {}", path.display())]
    Inspect {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something else stands where a directory is wanted. Nothing changed.
    #[error("{} is not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// The directory, or the link to it, belongs to somebody else. Nothing changed.
    #[error("{} belongs to user {owner}, not to user {own}", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// Everybody may write to the directory. Nothing changed.
    #[error("everybody may write to {} (mode {mode:03o})", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A lock file cannot be opened or locked. Nothing changed; trying again may help.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process works on the data directory. Trying again helps when it has ended.
    #[error("{} is in use by another process{}", path.display(), by(*.pid))]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process, where it said so.
        pid: Option<u32>,
    },
    /// Another process listens on the socket. Trying again helps when it has ended.
    #[error("another process listens on {}", .0.display())]
    Taken(PathBuf),
    /// What stands where a socket is wanted is no socket, so it is not removed. Nothing changed.
    #[error("{} exists and is not a socket", .0.display())]
    NotSocket(PathBuf),
    /// The kernel does not take so long a path for a socket. Nothing changed.
    #[error("{} is over the {} bytes that a socket's path may have", .0.display(),
        limits::SOCKET_PATH_BYTES_MAX)]
    Long(PathBuf),
    /// A stale socket cannot be removed. Nothing changed.
    #[error("cannot remove the stale socket {}", path.display())]
    Remove {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", pid {pid}")).unwrap_or_default()
}

impl DirError {
    /// What a person can do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoHome => Some("say where with --data DIR"),
            Self::Create { .. } => Some("say another place with --data DIR or --run-dir DIR"),
            Self::Owner { .. } => Some("use a directory of your own"),
            Self::Open { .. } => Some("take the right away with 'chmod o-w'"),
            Self::InUse { .. } => Some("stop that process, or use another directory"),
            Self::Taken(_) => Some("stop that process, or listen on another path"),
            Self::NotSocket(_) => Some("move that file away, or listen on another path"),
            Self::Long(_) => Some("say a shorter path"),
            Self::NotDirectory(_)
            | Self::Inspect { .. }
            | Self::Lock { .. }
            | Self::Remove { .. } => None,
        }
    }

    /// Whether the same may succeed later with nothing changed by anybody's hand.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Taken(_))
    }
}

/// Whose data a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataKind {
    /// A broker's store and blobs.
    Broker,
    /// An executor's identity and results.
    Exec,
    /// What a client spooled.
    Submit,
}

impl DataKind {
    const fn word(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Exec => "exec",
            Self::Submit => "submit",
        }
    }
}

/// The run directory by the rule of the command lines. It need not exist; see [`ensure_dir`].
#[must_use]
pub fn run_dir() -> PathBuf {
    run_dir_of(std::env::var_os("XDG_RUNTIME_DIR"), geteuid().as_raw())
}

fn run_dir_of(runtime: Option<OsString>, user: u32) -> PathBuf {
    match absolute(runtime) {
        Some(path) => path.join("ucp"),
        None if user == 0 => PathBuf::from("/run/ucp"),
        None => PathBuf::from(format!("/tmp/ucp-{user}")),
    }
}

/// The data directory by the rule of the command lines. It need not exist; see [`ensure_dir`].
///
/// # Errors
/// [`DirError::NoHome`].
pub fn data_dir(kind: DataKind) -> Result<PathBuf, DirError> {
    let variable = |name| std::env::var_os(name);
    let state = data_home_of(variable("XDG_STATE_HOME"), variable("HOME"), geteuid().as_raw());
    Ok(state.ok_or(DirError::NoHome)?.join("ucp").join(kind.word()))
}

fn data_home_of(state: Option<OsString>, home: Option<OsString>, user: u32) -> Option<PathBuf> {
    if let Some(path) = absolute(state) {
        return Some(path);
    }
    if user == 0 {
        return Some(PathBuf::from("/var/lib"));
    }
    absolute(home).map(|home| home.join(".local/state"))
}

/// The specification has relative paths ignored.
fn absolute(path: Option<OsString>) -> Option<PathBuf> {
    path.map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Creates a directory, and the parents that it lacks, with this mode, or checks the one there is
/// (see [`check_dir`]). An existing directory's mode is left as its owner set it.
///
/// # Errors
/// [`DirError`]; parents may have been created.
pub fn ensure_dir(path: &Path, mode: u32) -> Result<(), DirError> {
    let created = DirBuilder::new().recursive(true).mode(mode).create(path);
    created.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => DirError::NotDirectory(path.to_owned()),
        _ => DirError::Create { path: path.to_owned(), source },
    })?;
    check_dir(path)
}

/// Checks that a directory is our own user's and that not everybody may write to it. A symbolic
/// link to it must be ours or root's, so that nobody else can turn it elsewhere.
///
/// # Errors
/// [`DirError`]; nothing changed.
pub fn check_dir(path: &Path) -> Result<(), DirError> {
    let inspect = |source| DirError::Inspect { path: path.to_owned(), source };
    let own = geteuid().as_raw();
    let link = path.symlink_metadata().map_err(inspect)?;
    if link.is_symlink() && ![own, 0].contains(&link.uid()) {
        return Err(DirError::Owner { path: path.to_owned(), owner: link.uid(), own });
    }
    let found = path.metadata().map_err(inspect)?;
    if !found.is_dir() {
        return Err(DirError::NotDirectory(path.to_owned()));
    }
    if found.uid() != own {
        return Err(DirError::Owner { path: path.to_owned(), owner: found.uid(), own });
    }
    let mode = found.mode() & 0o777;
    if mode & 0o002 != 0 {
        return Err(DirError::Open { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Locks a file, creating it where absent; nothing where another process has it locked. The lock
/// is that of the file that the path names, even if locked files of this name are removed.
pub(crate) fn try_lock_file(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(source),
        }
        let held = file.metadata()?;
        match path.symlink_metadata() {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                return Ok(Some(file));
            }
            Ok(_) => {}
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(source),
        }
    }
}

/// A data directory that no other process of ours works on, as long as this is held.
#[derive(Debug)]
pub struct DataLock(#[allow(dead_code, reason = "the lock lasts as long as the file")] File);

/// Takes a data directory for this process. The directory must exist.
///
/// A process that forks afterwards shares the lock with its child: fork first.
///
/// # Errors
/// [`DirError::InUse`] if another process has it; [`DirError::Lock`].
pub fn lock_data(directory: &Path) -> Result<DataLock, DirError> {
    let path = directory.join("lock");
    let failed = |source| DirError::Lock { path: path.clone(), source };
    let Some(mut file) = try_lock_file(&path).map_err(failed)? else {
        return Err(DirError::InUse { path: directory.to_owned(), pid: read_pid(&path) });
    };
    // The number is for people only, so that a full disk is not the end.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(DataLock(file))
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// A path that this process alone may bind; what was left there is removed. On drop the socket is
/// removed.
#[derive(Debug)]
pub struct SocketClaim {
    path: PathBuf,
    lock_path: PathBuf,
    #[allow(dead_code, reason = "the lock lasts as long as the file")]
    lock: File,
}

impl SocketClaim {
    /// Where to bind.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketClaim {
    fn drop(&mut self) {
        // Both are removed while the lock is held, so they are this claim's.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Claims the first broker's socket of a run directory, or `broker-LOG.sock` where another broker
/// has that one. Sockets of brokers that are gone are removed.
///
/// # Errors
/// [`DirError`]; stale sockets may have been removed.
pub fn claim_socket(run_dir: &Path, log: &LogId) -> Result<SocketClaim, DirError> {
    // One broker at a time, so that none takes another one's sweep for a broker that listens.
    let path = run_dir.join("sockets.lock");
    let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
    let _turn = locked.map_err(|source| DirError::Lock { path, source })?;
    sweep(run_dir);
    match claim_path(&run_dir.join(SOCKET_NAME)) {
        Err(DirError::Taken(_)) => claim_path(&run_dir.join(format!("broker-{log}.sock"))),
        claimed => claimed,
    }
}

/// Removes the sockets that brokers which are gone left in a run directory.
fn sweep(run_dir: &Path) {
    for entry in run_dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_bytes();
        if name.starts_with(b"broker-") && name.ends_with(b".sock") {
            // The claim is dropped at once, and the socket goes with it. One that is in use, or
            // that cannot be claimed for another reason, stays as it is.
            let _ = claim_path(&entry.path());
        }
    }
}

/// Claims a path for a socket. A stale socket there is removed.
///
/// # Errors
/// [`DirError::Taken`] where another process listens; [`DirError::NotSocket`] where something
/// else stands; [`DirError::Long`]; [`DirError::Lock`]; [`DirError::Remove`]. Nothing changed.
pub fn claim_path(path: &Path) -> Result<SocketClaim, DirError> {
    if path.as_os_str().len() > limits::SOCKET_PATH_BYTES_MAX {
        return Err(DirError::Long(path.to_owned()));
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let failed = |source| DirError::Lock { path: lock_path.clone(), source };
    let Some(lock) = try_lock_file(&lock_path).map_err(failed)? else {
        return Err(DirError::Taken(path.to_owned()));
    };
    match clear(path) {
        Ok(()) => Ok(SocketClaim { path: path.to_owned(), lock_path, lock }),
        Err(error) => {
            let _ = std::fs::remove_file(&lock_path);
            Err(error)
        }
    }
}

/// Makes room for a socket; the lock must be held. Who listens without the lock (a supervisor
/// that hands its sockets on) answers a connection, and keeps its socket.
fn clear(path: &Path) -> Result<(), DirError> {
    match path.symlink_metadata() {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(DirError::Inspect { path: path.to_owned(), source }),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(DirError::NotSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            let removed = std::fs::remove_file(path);
            removed.map_err(|source| DirError::Remove { path: path.to_owned(), source })
        }
        // Connected, or the queue of those who wait is full: somebody is there.
        _ => Err(DirError::Taken(path.to_owned())),
    }
}
