//! What keeps native jobs apart from the machine and from each other: the plan, made once.
//!
//! Confines nothing itself: the plan goes into the spawner, which heeds it at each start. What the
//! kernel has is tried out before the first job, by a child that confines itself and ends, so that
//! an executor says what is in force and not what it hopes for. `full` is everything that the
//! machine offers; `none` leaves process groups, closed descriptors and the killing of trees.
//! Law: each mechanism is said to be enforced, absent, refused or off (tests/exec/isolation.rs).

use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::proto::isolation::{Enforcement, Isolation, Mechanism};
use crate::runtime::spawner::{self, Held, Kept};

use cgroup::{Found, Tree};

pub(crate) mod cgroup;
pub(crate) mod landlock;
pub mod leftovers;

/// How far jobs are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// As far as the machine lets us.
    #[default]
    Full,
    /// Process groups, closed descriptors and the killing of trees alone.
    None,
}

/// Whose jobs they are: an executor in one life of it. Written as `ID.LIFE`, which stands in each
/// job's environment, so that what it left is found and another life's jobs are spared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The executor's id.
    pub executor: &'a str,
    /// The random number of its process ([`crate::proto::id::Incarnation`]).
    pub life: u64,
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.executor, self.life)
    }
}

/// What is put on each job.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) level: Level,
    /// The executor in this life of it, as every job's environment names it.
    pub(crate) owner: Option<String>,
    /// Directories beside its own that a job may write to.
    pub(crate) writable: Vec<PathBuf>,
    pub(crate) landlock: bool,
    pub(crate) tree: Option<Tree>,
    isolation: Isolation,
}

impl Plan {
    /// Nothing but process groups, closed descriptors and the killing of trees.
    #[must_use]
    pub fn none() -> Self {
        Self::make(Level::None, vec![], None)
    }

    /// Tries out what the machine offers. With an owner its jobs get a cgroup, where it may be
    /// made; what an earlier life left must be gone (leftovers.rs).
    #[must_use]
    pub fn make(level: Level, writable: Vec<PathBuf>, owner: Option<Owner<'_>>) -> Self {
        let mut isolation = Isolation::default();
        for mechanism in [Mechanism::ProcessGroup, Mechanism::Descriptors] {
            isolation.set(mechanism, Enforcement::Enforced);
        }
        let kept = match level {
            Level::Full => Enforcement::Enforced,
            Level::None => Enforcement::Off,
        };
        isolation.set(Mechanism::NoNewPrivileges, kept);
        isolation.set(Mechanism::Rlimits, kept);
        let (files, signals) = match level {
            Level::Full => probe_landlock(&writable),
            Level::None => (Enforcement::Off, Enforcement::Off),
        };
        isolation.set(Mechanism::LandlockFiles, files);
        isolation.set(Mechanism::LandlockSignals, signals);
        let found = match (level, &owner) {
            (Level::Full, Some(owner)) => probe_cgroup(cgroup::make(owner.executor)),
            _ => Found::all(Enforcement::Off),
        };
        isolation.set(Mechanism::CgroupKill, found.kill);
        isolation.set(Mechanism::CgroupMemory, found.memory);
        isolation.set(Mechanism::CgroupProcesses, found.processes);
        let landlock =
            level == Level::Full && files != Enforcement::Refused && landlock::version() > 0;
        let owner = owner.map(|owner| owner.to_string());
        Self { level, owner, writable, landlock, tree: found.tree, isolation }
    }

    /// What is in force for a job that has a room.
    #[must_use]
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// The cgroup of all jobs, where there is one.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.tree.as_ref().map(|tree| tree.path.as_path())
    }

    /// Removes the cgroup; for the end, when no job is left.
    pub(crate) fn clear(&self) {
        if let Some(tree) = &self.tree
            && !cgroup::remove(&tree.path)
        {
            tracing::debug!("{} cannot be removed", tree.path.display());
        }
    }
}

/// What was in force for one job: the plan's, less what its start could not have.
#[must_use]
pub(crate) fn of_job(plan: &Isolation, held: Held) -> Isolation {
    let mut isolation = plan.clone();
    let groups = [Mechanism::CgroupKill, Mechanism::CgroupMemory, Mechanism::CgroupProcesses];
    let files = [Mechanism::LandlockFiles, Mechanism::LandlockSignals];
    for (kept, mechanisms) in [(held.cgroup, &groups[..]), (held.landlock, &files[..])] {
        let instead = match kept {
            Kept::Yes => continue,
            Kept::Refused => Enforcement::Refused,
            Kept::Off => Enforcement::Off,
        };
        for mechanism in mechanisms.iter().filter(|mechanism| plan.enforces(**mechanism)) {
            isolation.set(*mechanism, instead);
        }
    }
    isolation
}

/// Puts a ruleset on a child that ends.
fn probe_landlock(writable: &[PathBuf]) -> (Enforcement, Enforcement) {
    let version = landlock::version();
    if version == 0 {
        return (Enforcement::Absent, Enforcement::Absent);
    }
    let tried = landlock::ruleset(None, writable).map_err(|error| error.to_string());
    let tried = tried.and_then(|ruleset| {
        spawner::probe(Some(ruleset.as_fd()), None).map_err(|errno| errno.desc().to_owned())
    });
    match tried {
        Ok(()) => landlock::standing(version),
        Err(error) => {
            tracing::debug!("Landlock is refused: {error}");
            (Enforcement::Refused, Enforcement::Refused)
        }
    }
}

/// Begins a child in a cgroup of the tree.
fn probe_cgroup(mut found: Found) -> Found {
    let Some(tree) = &found.tree else { return found };
    let tried = tree.room(0, 0).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)));
    let tried = tried.and_then(|group| spawner::probe(None, Some(group.directory.as_fd())));
    if let Err(errno) = tried {
        tracing::debug!("no process can begin in {}: {errno}", tree.path.display());
        cgroup::remove(&tree.path);
        found = Found::all(match errno {
            Errno::ENOSYS => Enforcement::Absent,
            _ => Enforcement::Refused,
        });
    }
    found
}

/// A directory that `--allow-write` names, without links.
///
/// # Errors
/// It is no directory, or cannot be reached.
pub fn writable(path: &str) -> Result<PathBuf, String> {
    let found = fs::canonicalize(path).map_err(|error| error.to_string())?;
    if found.is_dir() { Ok(found) } else { Err("it is no directory".to_owned()) }
}
