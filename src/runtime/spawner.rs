//! The spawner: the small process that starts and kills all jobs of an executor.
//!
//! [`fork`] makes it in `main`, before any thread or runtime exists, beneath a guard (guard.rs). It
//! has one thread, no runtime and no state on disk; it starts each job in a process group of its
//! own and, where it may, in a cgroup of its own and under Landlock's rules. It is child subreaper,
//! so that whatever a job leaves behind becomes its child, and kills everything when its socket to
//! the executor closes, however the executor ended.
//!
//! It decides nothing: what runs, for how long and when it is killed comes from the executor. A job
//! with a lease it kills by itself when that is over, also while the executor stands still.
//! Not caught where there is no cgroup: a process that cleared its environment, left its group and
//! its parent stays until the last job that ran when it was first seen has ended.
//! Law: when [`Ending::Exited`] is told, no process of that job is left (tests/exec.rs,
//! tests/spawner.rs). Source: prctl(2) `PR_SET_CHILD_SUBREAPER`; design section 5.

mod child;
mod clone;
mod frame;
mod guard;
mod leases;
mod link;
mod mark;
mod rooms;
mod start;
mod sys;
mod tree;

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

use crate::proto::isolation::Isolation;
use crate::proto::text::Text;
use crate::proto::time::Monotonic;
use crate::runtime::isolation::Plan;

pub use clone::Step;
pub use frame::{Ending, Held, JobNumber, Kept};
pub use link::{Link, Started};
pub use mark::Mark;
pub(crate) use mark::Witness;
pub(crate) use tree::{environment, parent_of};

/// The environment variable by which a job's processes are found again.
pub const ATTEMPT_VARIABLE: &str = "UCP_JOB_ATTEMPT";
/// The environment variable by which an executor's processes are found when it has ended; its value
/// names the executor and its life.
pub const EXECUTOR_VARIABLE: &str = "UCP_JOB_EXECUTOR";

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
    guard: Pid,
    isolation: Isolation,
    mark: Mark,
}

/// One program to start.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Program and arguments; the program is looked up in the job's PATH.
    pub argv: &'a [Text],
    /// Variables beside the basic ones (PATH, HOME, LANG, TMPDIR, USER of the executor).
    pub env: &'a [(&'a str, &'a [u8])],
    /// The working directory.
    pub cwd: &'a std::path::Path,
    /// The attempt as text, the value of [`ATTEMPT_VARIABLE`], which the spawner sets itself.
    pub attempt: &'a str,
    /// The place that the job has to itself; none where it shares the machine.
    pub room: Option<Room<'a>>,
    /// Bytes of memory that the job may use; unbounded where absent.
    pub memory: Option<u64>,
    /// When it is killed unless [`Link::renew`] puts that off; it is not started where that is
    /// over.
    pub lease: Option<Monotonic>,
}

/// A place that one job at a time has to itself.
#[derive(Debug, Clone, Copy)]
pub struct Room<'a> {
    /// Its number; what belongs to it (a cgroup, a ruleset) is made once and used again.
    pub number: u32,
    /// The directory where the job may write, absolute.
    pub directory: &'a std::path::Path,
}

/// Forks the guard and beneath it the spawner. Must be called from the main thread while it is the
/// only one; the main thread then must live as long as the process.
///
/// # Errors
/// [`SpawnerError`]; no process was made.
pub fn fork(plan: &Plan) -> Result<Spawner, SpawnerError> {
    let failed = |what| move |source| SpawnerError::System { what, source };
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(SpawnerError::Threads);
    }
    let mark = Mark::new();
    let (mut ours, theirs) = UnixStream::pair().map_err(failed("make a pair of sockets"))?;
    // The child begins with every signal blocked: one that comes before it has made itself deaf
    // to them would end it.
    let before = sys::block_signals().map_err(failed("block the signals"))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let forked = unsafe { nix::unistd::fork() };
    if !matches!(forked, Ok(ForkResult::Child)) {
        sys::restore_signals(&before).map_err(failed("let signals through again"))?;
    }
    match forked.map_err(io::Error::from).map_err(failed("fork the guard"))? {
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut pid = [0; 4];
            ours.read_exact(&mut pid).map_err(failed("fork the spawner"))?;
            let pid = Pid::from_raw(i32::from_le_bytes(pid));
            let isolation = plan.isolation().clone();
            Ok(Spawner { socket: ours, pid, guard: child, isolation, mark })
        }
        ForkResult::Child => {
            drop(ours);
            let plan = plan.clone();
            let run = std::panic::AssertUnwindSafe(|| guard::run(theirs, plan, &mark));
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

    /// The guard's process id.
    #[must_use]
    pub fn guard(&self) -> Pid {
        self.guard
    }

    /// By what others see that nothing of the jobs is left.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark.share()
    }

    /// Begins to speak with the spawner; needs a tokio runtime. When the runtime or this process
    /// ends, however that happens, the spawner kills everything and ends.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime; the spawner then ends.
    pub fn connect(self) -> io::Result<Link> {
        self.socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(self.socket)?;
        Ok(Link::new(socket, self.pid, self.isolation, self.mark))
    }
}

/// Tries a ruleset and a cgroup out: a child puts itself under them and ends.
///
/// # Errors
/// What the kernel said.
pub(crate) fn probe(
    ruleset: Option<BorrowedFd<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let confinement =
        clone::Confinement { no_new_privileges: true, ruleset, cgroup, ..clone::Confinement::NONE };
    let before = sys::block_signals().map_err(|_| Errno::EINVAL)?;
    let tried = clone::start(&mut clone::Stack::new(), None, confinement);
    // It was set a moment ago.
    let _ = sys::restore_signals(&before);
    tried.map(drop).map_err(|failure| failure.errno)
}

/// After the death of the spawner or its guard: waits until the guard has killed all, and kills
/// what became a child of this process, until none is left or `within` is over for each. The
/// executor is child subreaper too, for this alone.
///
/// Returns whether nothing is left.
#[must_use]
pub fn await_tree_gone(guard: Pid, within: std::time::Duration) -> bool {
    let rounds = u32::try_from(within.as_millis() / sys::PAUSE.as_millis()).unwrap_or(u32::MAX);
    let ended = guard::has_ended(guard, rounds);
    kill_children(rounds) && ended
}

/// Kills all children of this process until none is left or so many rounds are over.
fn kill_children(rounds: u32) -> bool {
    let children = tree::Children::of_this_thread();
    for _ in 0..rounds {
        for pid in children.list() {
            sys::kill(pid, nix::libc::SIGKILL);
        }
        loop {
            match sys::next_zombie() {
                sys::Zombie::NoChild => return true,
                sys::Zombie::NoneYet => break,
                sys::Zombie::Of(pid) => drop(sys::reap(pid)),
            }
        }
        sys::pause();
    }
    false
}

/// Kills a process that an earlier life left; one that is gone is fine.
pub(crate) fn send_kill(pid: i32) {
    sys::kill(pid, nix::libc::SIGKILL);
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
