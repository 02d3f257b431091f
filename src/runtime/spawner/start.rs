//! One program becomes a process: where it is found, what it inherits.
//!
//! Uses `posix_spawn`, which shares the spawner's memory until the program is there and copies no
//! page tables. A job begins with an empty signal mask, default actions, a group of its own, the
//! basic environment, and no descriptor but 0, 1 and 2.
//! Source: POSIX.1-2024 `posix_spawn`; exit statuses 126 and 127 as in its shell language, 2.8.2.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags};
use nix::sys::signal::SigSet;
use nix::unistd::Pid;

use super::ATTEMPT_VARIABLE;

/// The variables that every job inherits from the executor, where it has them.
const BASIC_VARIABLES: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "USER"];
/// Where programs are looked for when the job has no PATH.
const PATH_DEFAULT: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// Starts programs.
pub(super) struct Starter {
    attributes: PosixSpawnAttr,
    basic: Vec<(Vec<u8>, Vec<u8>)>,
    /// The spawner's own working directory, which a program inherits.
    cwd: Vec<u8>,
}

impl Starter {
    /// Reads the basic environment of this process.
    pub(super) fn new() -> io::Result<Self> {
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK,
        )?;
        attributes.set_pgroup(Pid::from_raw(0))?;
        attributes.set_sigdefault(&SigSet::all())?;
        attributes.set_sigmask(&SigSet::empty())?;
        let held =
            |name: &&str| Some((name.as_bytes().to_vec(), std::env::var_os(name)?.into_vec()));
        let basic = BASIC_VARIABLES.iter().filter_map(held).collect();
        Ok(Self { attributes, basic, cwd: vec![] })
    }

    /// Starts a program with stdout, stderr and perhaps stdin; `/dev/null` is the default.
    pub(super) fn start(
        &mut self,
        argv: &[Vec<u8>],
        env: &[(Vec<u8>, Vec<u8>)],
        cwd: &[u8],
        attempt: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<Pid, Errno> {
        if self.cwd != cwd {
            nix::unistd::chdir(Path::new(OsStr::from_bytes(cwd)))?;
            self.cwd = cwd.to_vec();
        }
        let name = argv.first().ok_or(Errno::EINVAL)?;
        let basic = self.basic.iter().filter(|(held, _)| !env.iter().any(|(own, _)| own == held));
        let marked = (ATTEMPT_VARIABLE.as_bytes().to_vec(), attempt.to_vec());
        let all: Vec<_> = basic.chain(env).chain(std::iter::once(&marked)).collect();
        let path = all.iter().find(|(name, _)| name == b"PATH");
        let program = find(name, path.map_or(PATH_DEFAULT, |(_, value)| value), cwd)?;
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::EINVAL);
        let argv = argv.iter().map(|argument| text(argument.clone()));
        let argv = argv.collect::<Result<Vec<_>, _>>()?;
        let variables = all.iter().map(|(name, value)| text([name, &b"="[..], value].concat()));
        let variables = variables.collect::<Result<Vec<_>, _>>()?;
        let mut actions = PosixSpawnFileActions::init()?;
        let [stdout, stderr, stdin @ ..] = descriptors else { return Err(Errno::EINVAL) };
        if let Some(stdin) = stdin.first() {
            actions.add_dup2(stdin.as_raw_fd(), 0)?;
        }
        actions.add_dup2(stdout.as_raw_fd(), 1)?;
        actions.add_dup2(stderr.as_raw_fd(), 2)?;
        nix::spawn::posix_spawn(&program, &actions, &self.attributes, &argv, &variables)
    }
}

/// Finds a program as execvp(3) does: a name with a slash is a path, any other is looked for in
/// PATH; the first file that may be executed is it.
fn find(name: &[u8], path: &[u8], cwd: &[u8]) -> Result<PathBuf, Errno> {
    let cwd = Path::new(OsStr::from_bytes(cwd));
    if name.contains(&b'/') {
        return Ok(cwd.join(OsStr::from_bytes(name)));
    }
    let mut errno = Errno::ENOENT;
    for directory in path.split(|byte| *byte == b':') {
        let candidate = cwd.join(OsStr::from_bytes(directory)).join(OsStr::from_bytes(name));
        match candidate.metadata() {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(_) => errno = Errno::EACCES,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                errno = Errno::EACCES;
            }
            Err(_) => {}
        }
    }
    Err(errno)
}
