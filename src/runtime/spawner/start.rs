//! One program becomes a process: where it is found, what it inherits.
//!
//! Makes no process itself (clone.rs does) and confines nothing (rooms.rs says under what). A job
//! begins with an empty signal mask, default actions, a group of its own, the basic environment, no
//! descriptor but 0, 1 and 2, and ends with the spawner.
//! Source: exit statuses 126 and 127 as in the shell language of POSIX.1-2024, 2.8.2.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, c_char};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::clone::{self, Confinement, Failure, Image, Stack, Step};
use super::frame::Order;
use super::{ATTEMPT_VARIABLE, EXECUTOR_VARIABLE};
use crate::proto::time::Monotonic;
use crate::runtime::entropy;

/// The variables that every job inherits from the executor, where it has them.
const BASIC_VARIABLES: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "USER"];
/// Where programs are looked for when the job has no PATH.
const PATH_DEFAULT: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// So long a program that was found and is still there is not looked for again: one that is put
/// before it in PATH is seen then.
const FOUND_FOR: Duration = Duration::from_secs(1);
/// Programs that are kept.
const FOUND_MAX: usize = 64;

/// A name, and the PATH in which it was looked for.
type Wanted = (Vec<u8>, Vec<u8>);

/// Starts programs.
pub(super) struct Starter {
    stack: Stack,
    found: HashMap<Wanted, (Monotonic, PathBuf)>,
    basic: Vec<(Vec<u8>, Vec<u8>)>,
    owner: Option<(Vec<u8>, Vec<u8>)>,
}

impl Starter {
    /// Reads the basic environment of this process.
    pub(super) fn new(owner: Option<&str>) -> Self {
        let held =
            |name: &&str| Some((name.as_bytes().to_vec(), std::env::var_os(name)?.into_vec()));
        let basic = BASIC_VARIABLES.iter().filter_map(held).collect();
        let named = |id: &str| (EXECUTOR_VARIABLE.as_bytes().to_vec(), id.as_bytes().to_vec());
        let found = HashMap::new();
        Self { stack: Stack::new(), found, basic, owner: owner.map(named) }
    }

    /// Starts a program with stdout, stderr and perhaps stdin; `/dev/null` is the default.
    pub(super) fn start(
        &mut self,
        order: &Order,
        descriptors: &[OwnedFd],
        confinement: Confinement<'_>,
    ) -> Result<i32, Failure> {
        let failed = |errno| Failure { step: Step::Program, errno };
        let Order { argv, env, cwd, attempt, .. } = order;
        let name = argv.first().ok_or(failed(Errno::EINVAL))?;
        let basic = self.basic.iter().filter(|(held, _)| !env.iter().any(|(own, _)| own == held));
        let marked = (ATTEMPT_VARIABLE.as_bytes().to_vec(), attempt.clone());
        let marks = std::iter::once(&marked).chain(&self.owner);
        let all: Vec<_> = marks.chain(basic).chain(env).collect();
        let path = all.iter().find(|(name, _)| name == b"PATH");
        let path = path.map_or(PATH_DEFAULT, |(_, value)| value);
        let program = look_up(&mut self.found, name, path, cwd);
        let program = text(program.map_err(failed)?.as_os_str().as_bytes().to_vec())?;
        let argv = argv.iter().map(|argument| text(argument.clone()));
        let argv = argv.collect::<Result<Vec<_>, _>>()?;
        let variables = all.iter().map(|(name, value)| text([name, &b"="[..], value].concat()));
        let variables = variables.collect::<Result<Vec<_>, _>>()?;
        let [stdout, stderr, stdin @ ..] = descriptors else { return Err(failed(Errno::EINVAL)) };
        let image = Image {
            path: &program,
            argv: &pointers(&argv),
            envp: &pointers(&variables),
            cwd: &text(cwd.clone())?,
            streams: [stdin.first().map(AsFd::as_fd), Some(stdout.as_fd()), Some(stderr.as_fd())],
        };
        clone::start(&mut self.stack, Some(image), confinement)
    }
}

fn text(bytes: Vec<u8>) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| Failure { step: Step::Program, errno: Errno::EINVAL })
}

/// The pointers to some texts, and a null one.
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Finds a program, in PATH not more often than [`FOUND_FOR`] says.
fn look_up(
    found: &mut HashMap<Wanted, (Monotonic, PathBuf)>,
    name: &[u8],
    path: &[u8],
    cwd: &[u8],
) -> Result<PathBuf, Errno> {
    // Relative parts of PATH depend on the directory, which is another for each room.
    let relative = || path.split(|byte| *byte == b':').any(|part| !part.starts_with(b"/"));
    if name.contains(&b'/') || relative() {
        return find(name, path, cwd);
    }
    let wanted = (name.to_vec(), path.to_vec());
    let now = entropy::now().mono;
    if let Some((since, program)) = found.get(&wanted)
        && now.since(*since) < FOUND_FOR
        && may_be_run(program) == Ok(true)
    {
        return Ok(program.clone());
    }
    let program = find(name, path, cwd)?;
    if found.len() >= FOUND_MAX {
        found.clear();
    }
    found.insert(wanted, (now, program.clone()));
    Ok(program)
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
        match may_be_run(&candidate) {
            Ok(true) => return Ok(candidate),
            Ok(false) | Err(io::ErrorKind::PermissionDenied) => errno = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(errno)
}

/// Whether there is a file that somebody may execute.
fn may_be_run(path: &Path) -> Result<bool, io::ErrorKind> {
    let found = path.metadata().map_err(|error| error.kind())?;
    Ok(found.is_file() && found.permissions().mode() & 0o111 != 0)
}
