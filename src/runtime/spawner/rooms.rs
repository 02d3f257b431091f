//! What belongs to a room: its cgroup and its Landlock ruleset, made once and used again.
//!
//! Starts nothing. A room's directory that was removed and made again is another file, so the
//! ruleset is kept with the file that it speaks of; while it is kept the kernel gives that number
//! to no other. Law: a job is started under what the plan says, or it is told what was refused.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::clone::{Bound, Confinement, Failure, Step};
use super::frame::{Held, Kept};
use crate::proto::limits;
use crate::runtime::isolation::cgroup::Group;
use crate::runtime::isolation::{Level, Plan, landlock};

/// The cgroup of all rooms was removed under a living executor: nothing more may begin here.
const GONE: Failure = Failure { step: Step::Isolation, errno: Errno::ENODEV };

/// What is kept for the numbers of rooms.
pub(super) struct Rooms {
    plan: Plan,
    kept: HashMap<u32, Room>,
    /// Bounds that hold of every job.
    bounds: Vec<Bound>,
}

#[derive(Default)]
struct Room {
    group: Option<Group>,
    /// How many cgroups it has had.
    turns: u32,
    /// The ruleset, and the device and number of the directory that it speaks of.
    ruleset: Option<(u64, u64, OwnedFd)>,
}

/// What a job is about to be started under.
pub(super) struct Prepared {
    number: Option<u32>,
    pub(super) held: Held,
    bounds: Vec<Bound>,
    /// How often memory was used up in the cgroup before.
    pub(super) memory_kills: u64,
}

impl Rooms {
    /// Raises this process' own limit of open files; jobs begin with the limit from before.
    pub(super) fn new(plan: Plan) -> Self {
        let mut bounds = vec![];
        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // What stays as it is costs a few rooms at the most.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
            let soft = match plan.level {
                Level::Full => soft.min(limits::JOB_OPEN_FILES_MAX),
                Level::None => soft,
            };
            let resource = Resource::RLIMIT_NOFILE as i32;
            bounds.push(Bound { resource, soft, hard });
        }
        if plan.level == Level::Full {
            let resource = Resource::RLIMIT_CORE as i32;
            bounds.push(Bound { resource, soft: 0, hard: 0 });
        }
        Self { plan, kept: HashMap::new(), bounds }
    }

    /// Makes ready what a job with this room begins under.
    pub(super) fn prepare(
        &mut self,
        room: Option<&(u32, Vec<u8>)>,
        memory: Option<u64>,
    ) -> Result<Prepared, Failure> {
        let mut prepared = Prepared {
            number: room.map(|(number, _)| *number),
            held: Held { cgroup: Kept::Off, landlock: Kept::Off },
            bounds: self.bounds.clone(),
            memory_kills: 0,
        };
        let mut bounded = false;
        if let Some((number, directory)) = room {
            let kept = self.kept.entry(*number).or_default();
            if self.plan.tree.is_some() {
                match kept.enter(&self.plan, *number, memory) {
                    Ok((bounds, kills)) => {
                        prepared.held.cgroup = Kept::Yes;
                        (bounded, prepared.memory_kills) = (bounds, kills);
                    }
                    Err(_) if self.plan.tree.as_ref().is_some_and(|tree| tree.path.is_dir()) => {
                        prepared.held.cgroup = Kept::Refused;
                    }
                    // Somebody took the tree away, for one who sees this executor's end.
                    Err(_) => return Err(GONE),
                }
            }
            if self.plan.landlock {
                let failed = |error: io::Error| {
                    let errno = error.raw_os_error().map_or(Errno::EACCES, Errno::from_raw);
                    Failure { step: Step::Isolation, errno }
                };
                let directory = Path::new(std::ffi::OsStr::from_bytes(directory));
                kept.restrict(&self.plan, directory).map_err(failed)?;
                prepared.held.landlock = Kept::Yes;
            }
        }
        if let Some(bytes) = memory.filter(|_| !bounded && self.plan.level == Level::Full) {
            let (_, hard) = getrlimit(Resource::RLIMIT_DATA).unwrap_or((bytes, bytes));
            let most = bytes.min(hard);
            let resource = Resource::RLIMIT_DATA as i32;
            prepared.bounds.push(Bound { resource, soft: most, hard: most });
        }
        Ok(prepared)
    }

    /// What the child puts on.
    pub(super) fn confinement<'a>(&'a self, prepared: &'a Prepared) -> Confinement<'a> {
        let room = prepared.number.and_then(|number| self.kept.get(&number));
        let ruleset = room.and_then(|room| room.ruleset.as_ref());
        let ruleset = ruleset.filter(|_| prepared.held.landlock == Kept::Yes);
        let group = room.and_then(|room| room.group.as_ref());
        let group = group.filter(|_| prepared.held.cgroup == Kept::Yes);
        Confinement {
            no_new_privileges: self.plan.level == Level::Full,
            ruleset: ruleset.map(|(_, _, ruleset)| ruleset.as_fd()),
            cgroup: group.map(|group| group.directory.as_fd()),
            bounds: &prepared.bounds,
        }
    }

    /// The cgroup of a room.
    pub(super) fn group(&self, number: u32) -> Option<&Group> {
        self.kept.get(&number)?.group.as_ref()
    }

    /// Forgets a cgroup that could not be entered: somebody may have removed it.
    pub(super) fn leave(&mut self, number: u32) {
        if let Some(room) = self.kept.get_mut(&number) {
            room.group = None;
        }
    }

    /// Whether the cgroup of all rooms is there still.
    pub(super) fn has_tree(&self) -> bool {
        self.plan.tree.as_ref().is_some_and(|tree| tree.path.is_dir())
    }

    /// Kills everything in all rooms.
    pub(super) fn kill_all(&self) {
        if let Some(tree) = &self.plan.tree {
            crate::runtime::isolation::cgroup::kill(&tree.path);
        }
    }

    /// The executor whose jobs these are, in this life of it.
    pub(super) fn owner(&self) -> Option<&str> {
        self.plan.owner.as_deref()
    }
}

impl Room {
    /// Makes the cgroup ready: whether it bounds memory, and how often memory was used up in it.
    fn enter(&mut self, plan: &Plan, number: u32, memory: Option<u64>) -> io::Result<(bool, u64)> {
        let tree = plan.tree.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if self.group.as_ref().is_some_and(Group::is_spent) {
            self.group = None;
        }
        let group = match &mut self.group {
            Some(group) => group,
            none => {
                let turn = self.turns;
                self.turns += 1;
                none.insert(tree.room(number, turn)?)
            }
        };
        let bounded = group.bound_memory(memory)?;
        Ok((bounded, group.memory_kills()))
    }

    /// Makes the ruleset ready, anew where the directory is another.
    fn restrict(&mut self, plan: &Plan, directory: &Path) -> io::Result<()> {
        let found = fs::metadata(directory)?;
        let speaks_of = self.ruleset.as_ref().map(|(device, inode, _)| (*device, *inode));
        if speaks_of != Some((found.dev(), found.ino())) {
            self.ruleset = None;
            let made = landlock::ruleset(Some(directory), &plan.writable);
            let made = made.map_err(io::Error::other)?;
            self.ruleset = Some((found.dev(), found.ino(), made));
        }
        Ok(())
    }
}
