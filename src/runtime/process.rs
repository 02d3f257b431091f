//! Native jobs: a program from its start to its end.
//!
//! Starts nothing itself (the spawner does) and decides nothing: time-outs, stops and retries are
//! the core's. What is prepared before and kept afterwards is attempt.rs.
//! A job begins in the directory that it is given; TMPDIR is that of its room, and so is
//! `UCP_JOB_CHECKPOINT_DIR`; standard input is
//! `/dev/null` or a file that is not in any of both; standard output and error are pipes. Where
//! the job has a room it is kept apart as the executor's plan says (isolation.rs).
//! Exit status 127: the program was not found; 126: it could not be executed.
//! Law: when this returns, no process of the attempt is left and its output is complete
//! (tests/exec.rs).

pub mod lease;
pub mod output;
pub mod stdin;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::proto::isolation::Isolation;
use crate::proto::limits;
use crate::proto::message::StartOrder;
use crate::proto::text::Text;
use crate::proto::time::Monotonic;
use crate::proto::units::Size;
use crate::runtime::spawner::{Ending, JobNumber, Link, Program, Room, Started, Step};

use lease::Lease;
use output::Output;

/// The exit status of a program that was not found.
const NOT_FOUND: i32 = 127;
/// The exit status of a program that could not be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// Bytes read from a pipe at a time.
const READ_BYTES: usize = 64 << 10;
/// Reads from one pipe before other jobs have their turn.
const READS_PER_TURN: usize = 4;

/// The environment variable that names the directory where a job leaves its state.
pub const CHECKPOINT_VARIABLE: &str = "UCP_JOB_CHECKPOINT_DIR";

/// Why an attempt without a lease is handed back.
pub const LAPSED: &str = "its lease is over";

/// A job that runs for so long has its output taken as it comes; that of a shorter one is taken at
/// its end.
const WATCHED_AFTER: Duration = Duration::from_millis(10);

/// The spawner died, so that what became of the job is not known; no result can be told.
#[derive(Debug)]
pub struct SpawnerGone;

/// By which a job that runs, or is about to, is told to end.
#[derive(Debug, Default)]
pub struct Control {
    job: Cell<Option<JobNumber>>,
    early: Cell<Option<i32>>,
    lease: Lease,
    told: Notify,
}

impl Control {
    /// Sends a signal to the job's processes. One that has not begun never will.
    pub fn signal(&self, link: &Link, signal: i32) {
        match self.job.get() {
            Some(job) => link.kill(job, signal),
            None => {
                self.early.set(Some(signal));
                self.told.notify_one();
            }
        }
    }

    /// Lets the job run until this moment and no longer. The spawner, or the thread of a module,
    /// ends it then by itself.
    pub fn renew(&self, link: &Link, until: Monotonic) {
        self.lease.set(until);
        if let Some(job) = self.job.get() {
            link.renew(job, until);
        }
    }

    /// The job's lease.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The job's processes have ended: a signal that comes now breaks off what is done with what
    /// they left, as [`Control::ended_early`].
    pub fn over(&self) {
        self.job.set(None);
        self.early.set(None);
    }

    /// Waits for a signal that comes before the job has begun, or after it has ended.
    pub async fn ended_early(&self) -> i32 {
        loop {
            if let Some(signal) = self.early.get() {
                return signal;
            }
            self.told.notified().await;
        }
    }
}

/// One attempt while it runs and until its result is acknowledged.
#[derive(Debug)]
pub struct Job {
    /// What ends it.
    pub control: Control,
    /// Its standard output.
    pub stdout: Arc<Output>,
    /// Its standard error.
    pub stderr: Arc<Output>,
    /// Whether files of it may be kept beside its streams.
    keeps_files: bool,
    state: State,
}

/// What becomes of the state that a job leaves on its way.
#[derive(Debug, Default)]
struct State {
    /// Some of it was kept.
    kept: Cell<bool>,
    /// Its last state is wanted.
    last: Cell<bool>,
    /// How many checkpoints are on their way to a broker.
    sending: Rc<Cell<usize>>,
}

/// As long as it lives, a checkpoint is on its way.
#[derive(Debug)]
pub struct SendsCheckpoint(Rc<Cell<usize>>);

impl Drop for SendsCheckpoint {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Job {
    /// A job that has not begun; long output goes to files in `directory`.
    #[must_use]
    pub fn new(order: &StartOrder, directory: &Path) -> Self {
        let path = |name| directory.join(format!("{}.{name}", order.attempt));
        let stream = |name| Arc::new(Output::new(path(name)));
        Self {
            control: Control::default(),
            stdout: stream("stdout"),
            stderr: stream("stderr"),
            keeps_files: !order.spec.outputs.is_empty(),
            state: State::default(),
        }
    }

    /// Whether it may have left files beside its result.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.keeps_files || self.stdout.is_in_file() || self.stderr.is_in_file()
    }

    /// A checkpoint of it was made.
    pub fn made_checkpoint(&self) {
        self.state.kept.set(true);
    }

    /// Whether a checkpoint of it was made.
    #[must_use]
    pub fn has_checkpoint(&self) -> bool {
        self.state.kept.get()
    }

    /// Has the state kept in which it ends, for another executor.
    pub fn leave_state(&self) {
        self.state.last.set(true);
    }

    /// Whether the state is to be kept in which it ends.
    #[must_use]
    pub fn leaves_state(&self) -> bool {
        self.state.last.get()
    }

    /// A checkpoint of it is on its way to a broker until the answer is dropped.
    #[must_use]
    pub fn sending(&self) -> SendsCheckpoint {
        let sending = &self.state.sending;
        sending.set(sending.get() + 1);
        SendsCheckpoint(Rc::clone(sending))
    }

    /// Whether a checkpoint of it is on its way to a broker.
    #[must_use]
    pub fn sends_checkpoint(&self) -> bool {
        self.state.sending.get() > 0
    }

    /// Forgets the output: its files are removed. Who reads one already can read on.
    pub fn discard(&self) {
        self.stdout.discard();
        self.stderr.discard();
    }
}

/// Why a job never began.
#[derive(Debug)]
pub enum Unstarted {
    /// It was told to end before, by this signal.
    Killed(i32),
    /// The executor lacks something at the moment, which another one or a later moment may have.
    Unfit(String),
    /// It cannot run.
    Error {
        /// The exit status that says so.
        exit: i32,
        /// Why, in words.
        error: String,
    },
}

impl Unstarted {
    /// Something that the job needs cannot be had.
    #[must_use]
    pub const fn unable(error: String) -> Self {
        Self::Error { exit: NOT_EXECUTABLE, error }
    }
}

/// How a job that began has ended.
#[derive(Debug, Default)]
pub struct Used {
    /// Its exit status.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What went wrong, in words, where the status does not say it.
    pub error: Option<String>,
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// The most memory that it had, in bytes.
    pub memory_max: u64,
    /// What kept it apart from the machine.
    pub isolation: Isolation,
    /// It was ended as its lease was over.
    pub lapsed: bool,
}

/// Starts a program and waits for its end.
///
/// # Errors
/// The spawner died; what became of the job is not known.
pub async fn run(
    link: &Link,
    order: &StartOrder,
    job: &Job,
    cwd: &Path,
    room: Option<Room<'_>>,
    stdin: Option<OwnedFd>,
) -> Result<Result<Used, Unstarted>, SpawnerGone> {
    let pipes = pipe_pair().and_then(|stdout| Ok((stdout, pipe_pair()?)));
    let ((stdout, stdout_end), (stderr, stderr_end)) = match pipes {
        Ok(pipes) => pipes,
        Err(error) => {
            let error = format!("no pipe for its output: {error}");
            return Ok(Err(Unstarted::Unfit(error)));
        }
    };
    let attempt = order.attempt.to_string();
    let (id, fence) = (order.job.to_string(), order.fencing_token());
    let checkpoint = room.map(|room| room.directory.join("checkpoint"));
    let checkpoint =
        checkpoint.iter().map(|path| (CHECKPOINT_VARIABLE, path.as_os_str().as_bytes()));
    let own = [("UCP_JOB_ID", id.as_bytes()), ("UCP_JOB_FENCE", fence.as_bytes())];
    let given = order.spec.env.iter().map(|(name, value)| (name.as_str(), value.bytes()));
    let tmp = room.map(|room| room.directory.join("tmp"));
    let tmp = tmp.filter(|_| !order.spec.env.contains_key("TMPDIR"));
    let tmp = tmp.iter().map(|path| ("TMPDIR", path.as_os_str().as_bytes()));
    let env: Vec<_> = given.chain(tmp).chain(own).chain(checkpoint).collect();
    let argv = &order.spec.command;
    let memory = order.spec.needs.memory.map(|size| size.0);
    let lease = job.control.lease.until();
    let program = Program { argv, env: &env, cwd, attempt: &attempt, room, memory, lease };
    let started = link.spawn(&program, stdout_end, stderr_end, stdin);
    job.control.job.set(Some(started.job));
    match wait(started, job, stdout, stderr).await? {
        Ending::Exited { status, cpu_us, memory_max, strays, out_of_memory, lapsed, held } => {
            if strays > 0 {
                tracing::info!("attempt {attempt} left {strays} processes behind; killed");
            }
            let status = ExitStatus::from_raw(status);
            let (exit, signal) = (status.code(), status.signal());
            let error = memory
                .filter(|_| out_of_memory)
                .map(|bytes| format!("killed: it used more than its {} of memory", Size(bytes)));
            let isolation = link.isolation(held);
            let lapsed = lapsed && !status.success();
            Ok(Ok(Used { exit, signal, error, cpu_us, memory_max, isolation, lapsed }))
        }
        Ending::Failed { step, errno } => {
            let name = argv.first().cloned().unwrap_or_default();
            Ok(Err(unstarted(&name, step, Errno::from_raw(errno))))
        }
    }
}

/// Why a program did not start, in words.
fn unstarted(name: &Text, step: Step, errno: Errno) -> Unstarted {
    let exit = match (step, errno) {
        (Step::Program, Errno::ENOENT) => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    let error = match (step, errno) {
        (Step::Lease, _) => return Unstarted::Unfit(LAPSED.into()),
        (Step::Program, Errno::ENOENT) => format!("program {name:?} was not found"),
        (Step::Program, _) => format!("program {name:?} cannot be executed: {}", errno.desc()),
        (Step::Directory, _) => {
            let words = format!("it cannot begin in its directory: {}", errno.desc());
            return Unstarted::Unfit(words);
        }
        (Step::Isolation, _) => {
            return Unstarted::Unfit(format!("it cannot be kept apart: {}", errno.desc()));
        }
        (Step::Process, _) => {
            return Unstarted::Unfit(format!("no process can be made: {}", errno.desc()));
        }
    };
    Unstarted::Error { exit, error }
}

fn pipe_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = std::io::pipe()?;
    // The job's end stays blocking.
    nix::fcntl::fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader.into(), writer.into()))
}

/// Takes output as it comes until no process is left, then what the pipes still hold.
async fn wait(
    mut started: Started,
    job: &Job,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<Ending, SpawnerGone> {
    // A short job's output fits its pipes: the runtime need not know of them.
    let ending = tokio::select! {
        biased;
        ending = &mut started.ended => Some(ending.map_err(|_| SpawnerGone)?),
        () = tokio::time::sleep(WATCHED_AFTER) => None,
    };
    if let Some(ending) = ending {
        take_rest(&stdout, &job.stdout);
        take_rest(&stderr, &job.stderr);
        return Ok(ending);
    }
    // Nothing need be asked about pipes that we made.
    let watched = pipe::Receiver::from_owned_fd_unchecked(stdout)
        .and_then(|stdout| Ok((stdout, pipe::Receiver::from_owned_fd_unchecked(stderr)?)));
    let (stdout, stderr) = match watched {
        Ok(watched) => watched,
        Err(error) => {
            tracing::error!("cannot watch a job's output: {error}; it is lost");
            return started.ended.await.map_err(|_| SpawnerGone);
        }
    };
    let (mut stdout_open, mut stderr_open) = (true, true);
    let ending = loop {
        tokio::select! {
            biased;
            ending = &mut started.ended => break ending.map_err(|_| SpawnerGone)?,
            open = take(&stdout, &job.stdout), if stdout_open => stdout_open = open,
            open = take(&stderr, &job.stderr), if stderr_open => stderr_open = open,
        }
    };
    take_rest(&stdout, &job.stdout);
    take_rest(&stderr, &job.stderr);
    Ok(ending)
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Takes what a pipe has when it has something; false at its end.
async fn take(pipe: &pipe::Receiver, output: &Output) -> bool {
    if pipe.readable().await.is_err() {
        return false;
    }
    BUFFER.with_borrow_mut(|buffer| {
        for _ in 0..READS_PER_TURN {
            match pipe.try_read(buffer) {
                Ok(0) => return false,
                Ok(count) => output.push(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(error) => {
                    tracing::warn!("cannot read a job's output: {error}");
                    return false;
                }
            }
        }
        true
    })
}

/// Takes what is left in a pipe whose writers are gone. If somebody outside the job was given its
/// end, it is not waited for: all that the job itself wrote is in the pipe by now.
fn take_rest(pipe: &impl AsFd, output: &Output) {
    BUFFER.with_borrow_mut(|buffer| {
        let mut left = limits::PIPE_BYTES_MAX;
        while left > 0 {
            // The runtime's own view of the pipe may be older than the last bytes.
            match nix::unistd::read(pipe.as_fd(), buffer) {
                Ok(0) => return,
                Ok(count) => {
                    output.push(&buffer[..count]);
                    left = left.saturating_sub(count);
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    });
}
