//! Landlock: what a job may write, and whom it may send signals.
//!
//! Restricts nothing itself: a ruleset is made here and put on by the child that becomes the job.
//! Reading and executing stay as the file modes have them, TCP and named sockets stay free. Writes
//! reach the job's own directory, the directories that `--allow-write` names, and the devices that
//! every program expects. From ABI 6 on signals and abstract sockets reach the job's own processes.
//! Below ABI 3 a file elsewhere could still be cut short, so what there is is used, and said to be
//! absent. Law: tests/exec/isolation.rs. Source: landlock(7), the `landlock` crate.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use nix::libc;

use crate::proto::isolation::Enforcement;

/// The newest version whose rights were weighed; further ones are left alone.
const ABI_USED: ABI = ABI::V7;
/// The first version that covers every write.
const ABI_WRITES: i64 = 3;
/// The first version with scopes.
const ABI_SCOPES: i64 = 6;
/// Devices and places that every program expects to write to.
const WRITABLE: [&str; 9] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/shm",
];

/// The kernel's version of Landlock; 0 where it has none or was started without it.
pub(super) fn version() -> i64 {
    const VERSION: libc::c_uint = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call reads no memory and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    version.max(0)
}

/// How files and signals stand with that version, if the kernel lets us have it.
pub(super) fn standing(version: i64) -> (Enforcement, Enforcement) {
    let from = |first| match version >= first {
        true => Enforcement::Enforced,
        false => Enforcement::Absent,
    };
    (from(ABI_WRITES), from(ABI_SCOPES))
}

/// Makes the ruleset of a job that may write in `own` and in `further`.
///
/// # Errors
/// One of them cannot be opened, or the kernel has no room.
pub(crate) fn ruleset(own: Option<&Path>, further: &[PathBuf]) -> Result<OwnedFd, RulesetFailed> {
    let all = AccessFs::from_write(ABI_USED);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(ABI_USED))?;
    let mut ruleset = ruleset.create()?;
    for path in own.into_iter().chain(further.iter().map(PathBuf::as_path)) {
        let path = PathFd::new(path).map_err(RulesetFailed::Path)?;
        ruleset = ruleset.add_rule(PathBeneath::new(path, all))?;
    }
    for path in WRITABLE {
        let is_directory = Path::new(path).is_dir();
        // One that a container does not have cannot be written to anyway.
        let Ok(path) = PathFd::new(path) else { continue };
        let access = if is_directory { all } else { all & AccessFs::from_file(ABI_USED) };
        ruleset = ruleset.add_rule(PathBeneath::new(path, access))?;
    }
    Option::<OwnedFd>::from(ruleset).ok_or(RulesetFailed::Absent)
}

/// Why there is no ruleset. Nothing was restricted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RulesetFailed {
    /// A directory cannot be opened.
    #[error("{0}")]
    Path(landlock::PathFdError),
    /// The kernel refuses a part of it.
    #[error("{0}")]
    Ruleset(#[from] RulesetError),
    /// The kernel has no Landlock.
    #[error("the kernel has no Landlock")]
    Absent,
}
