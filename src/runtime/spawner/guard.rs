//! The guard: a process between the executor and the spawner that waits, and then kills.
//!
//! Starts no job and speaks with nobody. It is child subreaper, so that whatever a dead spawner
//! leaves becomes its child; then it kills until none is left, sets the mark (mark.rs), removes the
//! cgroup and ends, which tells the executor, its parent, that the tree is gone. When the executor
//! dies the spawner ends by itself and the guard follows; when the guard dies the spawner kills
//! everything and ends.
//! Law: of executor, spawner and guard any two may be killed at one instant, and no process of a
//! job survives (tests/exec/isolation.rs). Source: prctl(2) `PR_SET_CHILD_SUBREAPER`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};

use super::{Mark, child, sys};
use crate::runtime::isolation::{Plan, cgroup};

/// Forks the spawner and guards it to its end; in the spawner, runs that. All signals are blocked.
pub(super) fn run(mut socket: UnixStream, plan: Plan, mark: &Mark) -> io::Result<()> {
    sys::quiet_signals()?;
    nix::unistd::setsid()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let guard = nix::unistd::getpid();
    // SAFETY: this process was forked from one with one thread and has one itself.
    let spawner = match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => return child::run(socket, guard, plan, mark),
        ForkResult::Parent { child } => child,
    };
    nix::sys::prctl::set_name(c"ucp-guard")?;
    // If nobody hears it the executor is dead, and the spawner will see that.
    let _ = socket.write_all(&spawner.as_raw().to_le_bytes());
    drop(socket);
    sys::close_others(mark.descriptor().into_iter().collect());
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        // What the executor's own streams are must not stay open for the guard's sake.
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
    while waitpid(spawner, None) == Err(Errno::EINTR) {}
    if let Some(tree) = &plan.tree {
        cgroup::kill(&tree.path);
    }
    while !super::kill_children(u32::MAX) {}
    mark.set();
    plan.clear();
    Ok(())
}

/// Waits until the guard has ended, for so many rounds at the most. True if it has.
pub(super) fn has_ended(guard: Pid, rounds: u32) -> bool {
    for _ in 0..rounds {
        match waitpid(guard, Some(WaitPidFlag::WNOHANG)) {
            Ok(nix::sys::wait::WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return true,
        }
        sys::pause();
    }
    false
}
