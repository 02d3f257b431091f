//! What an executor on this host left of its jobs when it ended: is anything of them there?
//!
//! Asked only when the executor's process is gone. Two things prove that nothing is:
//! - Its cgroup is removed: nothing can begin in it any more, nor beside it (rooms.rs). The cgroup
//!   was seen when the session began; it must be of cgroup v2 and bear the executor's name, so that
//!   nobody has another's processes killed.
//! - Where there is none: its spawner, its guard or it itself has seen its last child end and said
//!   so (spawner/mark.rs). All are subreapers, so no process of a job escapes them, also not one
//!   that cleared its environment and left its group, session and parent.
//!
//! Where all of them were killed before they could say so, `/proc` is looked through for the
//! executor's id and life in environments, and what is found is killed, until none is found twice
//! in a row. That is no proof: a process with a cleared environment is not found, and then the
//! `lost` facts say so. Only what this life of the executor began is killed: its next may run by
//! now. What cannot be seen from here is not proven either.
//! Tested in tests/exec/isolation.rs: processes have to end for it.
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, `cgroup.kill`, `cgroup.events`.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::proto::limits;
use crate::proto::message::Hello;
use crate::runtime::entropy;
use crate::runtime::isolation::{Owner, cgroup, leftovers};
use crate::runtime::spawner::Witness;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// The tree of an executor's processes, as far as it can be seen from here.
#[derive(Debug)]
pub(super) struct Tree {
    /// The cgroup of its jobs.
    cgroup: Option<PathBuf>,
    /// By which its processes say that none is left.
    witness: Option<Witness>,
    /// Its name and its life, where it is on this host.
    executor: Option<(String, u64)>,
}

impl Tree {
    /// Looks for the cgroup that an executor names, if it is on this host; `process` as the kernel
    /// told it for the socket.
    pub(super) fn watch(hello: &Hello, process: Option<i32>) -> Self {
        let path = hello.cgroup.as_ref().map(PathBuf::from);
        let is_here = entropy::boot_id().is_ok_and(|boot| boot == hello.incarnation.boot);
        let process = process.filter(|pid| is_here && *pid > 0);
        Self {
            cgroup: path.filter(|path| is_of(path, hello).unwrap_or(false)),
            witness: process.and_then(Witness::of),
            executor: process.map(|_| (hello.executor.to_string(), hello.incarnation.life)),
        }
    }

    /// Kills what is left there, and waits for the proof that nothing is.
    pub(super) async fn is_gone_within(&self, wait: Duration) -> bool {
        if self.cgroup.is_none() && self.executor.is_none() {
            return false;
        }
        let gone = async {
            // The executor's guard ends the cgroup as well; who comes first is all the same.
            while !self.is_gone() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        if tokio::time::timeout(wait, gone).await.is_ok() {
            return true;
        }
        let within = limits::LEFTOVERS_KILLED_WITHIN;
        if let Some((executor, life)) = self.executor.clone() {
            // On a thread that may wait; nobody waits for it, as it proves nothing.
            tokio::task::spawn_blocking(move || {
                let killed = leftovers::kill_of(Owner { executor: &executor, life }, within);
                if killed > 0 {
                    tracing::warn!("killed {killed} processes that {executor} left behind");
                }
            });
        }
        false
    }

    fn is_gone(&self) -> bool {
        match (&self.cgroup, &self.witness) {
            (Some(path), _) => cgroup::try_remove(path),
            (None, Some(witness)) => witness.is_set(),
            (None, None) => false,
        }
    }
}

fn is_of(path: &Path, hello: &Hello) -> Option<bool> {
    let named = cgroup::is_named(path.file_name()?, hello.executor.as_str());
    if !named || entropy::boot_id().ok()? != hello.incarnation.boot {
        return None;
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let kind = fstatfs(&directory).ok()?.filesystem_type();
    Some(kind == CGROUP2_SUPER_MAGIC)
}
