//! The spawner: the small process that starts and kills all jobs of an executor.
//!
//! [`fork`] makes it in `main`, before any thread or runtime exists. It has one thread, no runtime
//! and no state on disk; it starts each job in a process group of its own, is child subreaper, so
//! that whatever a job leaves behind becomes its child, and kills everything when its socket to
//! the executor closes, however the executor ended. (A parent-death signal on the jobs would not
//! do: it fires when the forking *thread* ends, and never reaches grandchildren.)
//!
//! It decides nothing: what runs, for how long and when it is killed comes from the executor.
//! Not caught: a process that cleared its environment, left its group and its parent stays until
//! the last job that ran when it was first seen has ended; then it is killed as well.
//! Law: when [`Ending::Exited`] is told, no process of that job is left (tests/exec.rs,
//! tests/spawner.rs). Source: prctl(2) `PR_SET_CHILD_SUBREAPER`; design section 5.

mod child;
mod frame;
mod link;
mod start;
mod sys;
mod tree;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use nix::unistd::{ForkResult, Pid};

pub use frame::{Ending, JobNumber};
pub use link::{Link, Started};

/// The environment variable by which a job's processes are found again.
pub const ATTEMPT_VARIABLE: &str = "UCP_JOB_ATTEMPT";

/// Why there is no spawner.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnerError {
    /// A system call failed. Nothing changed; trying again may help once resources are free.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread runs beside the calling one, so that a fork is not safe. Our bug.
    #[error("the spawner must be forked before any thread is started")]
    Threads,
}

/// A spawner that was forked and not yet spoken to.
#[derive(Debug)]
pub struct Spawner {
    socket: UnixStream,
    pid: Pid,
}

/// One program to start.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Program and arguments; the program is looked up in the job's PATH.
    pub argv: &'a [String],
    /// Variables beside the basic ones (PATH, HOME, LANG, TMPDIR, USER of the executor).
    pub env: &'a [(&'a str, &'a str)],
    /// The working directory.
    pub cwd: &'a std::path::Path,
    /// The attempt as text, the value of [`ATTEMPT_VARIABLE`], which the spawner sets itself.
    pub attempt: &'a str,
}

/// Forks the spawner. Must be called from the main thread while it is the only one; the main
/// thread then must live as long as the process.
///
/// # Errors
/// [`SpawnerError`]; no process was made.
pub fn fork() -> Result<Spawner, SpawnerError> {
    let failed = |what| move |source| SpawnerError::System { what, source };
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(SpawnerError::Threads);
    }
    let (ours, theirs) = UnixStream::pair().map_err(failed("make a pair of sockets"))?;
    let parent = nix::unistd::getpid();
    // The child begins with every signal blocked: one that comes before it has made itself deaf
    // to them would end it.
    let before = sys::block_signals().map_err(failed("block the signals"))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let forked = unsafe { nix::unistd::fork() };
    if !matches!(forked, Ok(ForkResult::Child)) {
        sys::restore_signals(&before).map_err(failed("let signals through again"))?;
    }
    match forked.map_err(io::Error::from).map_err(failed("fork the spawner"))? {
        ForkResult::Parent { child } => {
            drop(theirs);
            Ok(Spawner { socket: ours, pid: child })
        }
        ForkResult::Child => {
            drop(ours);
            let run = std::panic::AssertUnwindSafe(|| child::run(theirs, parent));
            let code = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => 0,
                Ok(Err(_)) | Err(_) => 70,
            };
            sys::exit(code)
        }
    }
}

impl Spawner {
    /// The spawner's process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Begins to speak with the spawner; needs a tokio runtime. When the runtime or this process
    /// ends, however that happens, the spawner kills everything and ends.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime; the spawner then ends.
    pub fn connect(self) -> io::Result<Link> {
        self.socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(self.socket)?;
        Ok(Link::new(socket, self.pid))
    }
}

/// Kills what a dead spawner left: all children of this process, until none is left or `tries`
/// rounds of 10 ms are over. The executor is child subreaper too, for this alone.
///
/// Returns whether nothing is left.
pub fn kill_orphans(tries: u32) -> bool {
    for _ in 0..tries {
        for pid in tree::Children::of_this_thread().list() {
            sys::kill(pid, nix::libc::SIGKILL);
        }
        loop {
            match sys::next_zombie() {
                sys::Zombie::NoChild => return true,
                sys::Zombie::NoneYet => break,
                sys::Zombie::Of(pid) => drop(sys::reap(pid)),
            }
        }
        #[allow(clippy::disallowed_methods, reason = "a pause between looks, within a deadline")]
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    false
}

/// Makes this process the one that orphans of its descendants are given to.
///
/// # Errors
/// The kernel is older than 3.4.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

fn raw(socket: &impl AsFd) -> i32 {
    socket.as_fd().as_raw_fd()
}
