//! Native jobs: from an order to a result.
//!
//! Starts nothing itself (the spawner does) and decides nothing: time-outs, stops and retries are
//! the core's. Whatever goes wrong becomes a result with an `error`; there is no other way out.
//! A job begins in the executor's one working directory, shared by all its jobs; standard input is
//! `/dev/null` or a file that is not in any directory; standard output and error are pipes.
//! Exit status 127: the program was not found; 126: it could not be executed, or its standard
//! input could not be had.
//! Law: when a result is returned, no process of the attempt is left and its output is complete
//! (tests/exec.rs).

pub mod output;
pub mod stdin;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::proto::limits;
use crate::proto::message::StartOrder;
use crate::proto::result::JobResult;
use crate::runtime::entropy;
use crate::runtime::spawner::{Ending, JobNumber, Link, Program, Started};

use output::Output;

/// The exit status of a program that was not found.
const NOT_FOUND: i32 = 127;
/// The exit status of a program that could not be executed.
const NOT_EXECUTABLE: i32 = 126;
/// Bytes read from a pipe at a time.
const READ_BYTES: usize = 64 << 10;
/// Reads from one pipe before other jobs have their turn.
const READS_PER_TURN: usize = 4;

/// The spawner died, so that what became of the job is not known; no result can be told.
#[derive(Debug)]
pub struct SpawnerGone;

/// By which a job that runs, or is about to, is told to end.
#[derive(Debug, Default)]
pub struct Control {
    job: Cell<Option<JobNumber>>,
    early: Cell<Option<i32>>,
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

    async fn ended_early(&self) -> i32 {
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
    pub stdout: Output,
    /// Its standard error.
    pub stderr: Output,
}

impl Job {
    /// A job that has not begun; long output goes to files in `directory`.
    #[must_use]
    pub fn new(order: &StartOrder, directory: &Path) -> Self {
        let stream = |name| Output::new(directory.join(format!("{}.{name}", order.attempt)));
        Self { control: Control::default(), stdout: stream("stdout"), stderr: stream("stderr") }
    }

    /// Forgets the output: its files are removed. Who reads one already can read on.
    pub fn discard(&self) {
        self.stdout.discard();
        self.stderr.discard();
    }
}

/// Runs a job to its end.
///
/// # Errors
/// The spawner died; there is no result.
pub async fn run(
    link: &Link,
    order: &StartOrder,
    job: &Job,
    cwd: &Path,
    fetch: &impl stdin::Fetch,
) -> Result<JobResult, SpawnerGone> {
    let mut result = JobResult { started_at: entropy::wall().to_string(), ..JobResult::default() };
    let prepared = tokio::select! {
        biased;
        signal = job.control.ended_early() => Err(Unstarted::Killed(signal)),
        stdin = stdin::prepare(order, fetch) => stdin.map_err(|error| {
            Unstarted::Error { exit: NOT_EXECUTABLE, error: format!("standard input: {error}") }
        }),
    };
    let ended = match prepared {
        Ok(stdin) => start_and_wait(link, order, job, cwd, stdin).await?,
        Err(unstarted) => Err(unstarted),
    };
    job.stdout.end();
    job.stderr.end();
    match ended {
        Ok(used) => fill(&mut result, &used),
        Err(Unstarted::Killed(signal)) => result.signal = Some(signal),
        Err(Unstarted::Error { exit, error }) => {
            (result.exit, result.error) = (Some(exit), Some(error));
        }
    }
    result.stdout = job.stdout.stream();
    result.stderr = job.stderr.stream();
    result.ended_at = entropy::wall().to_string();
    Ok(result)
}

/// Why a job never began.
enum Unstarted {
    Killed(i32),
    Error { exit: i32, error: String },
}

struct Used {
    status: ExitStatus,
    cpu_us: u64,
    memory_max: u64,
}

fn fill(result: &mut JobResult, used: &Used) {
    result.exit = used.status.code();
    result.signal = used.status.signal();
    result.cpu_us = used.cpu_us;
    result.memory_max = used.memory_max;
}

async fn start_and_wait(
    link: &Link,
    order: &StartOrder,
    job: &Job,
    cwd: &Path,
    stdin: Option<OwnedFd>,
) -> Result<Result<Used, Unstarted>, SpawnerGone> {
    let pipes = pipe_pair().and_then(|stdout| Ok((stdout, pipe_pair()?)));
    let ((stdout, stdout_end), (stderr, stderr_end)) = match pipes {
        Ok(pipes) => pipes,
        Err(error) => {
            let error = format!("no pipe for its output: {error}");
            return Ok(Err(Unstarted::Error { exit: NOT_EXECUTABLE, error }));
        }
    };
    let attempt = order.attempt.to_string();
    let (id, fence) = (order.job.to_string(), order.fencing_token());
    let own = [("UCP_JOB_ID", id.as_str()), ("UCP_JOB_FENCE", fence.as_str())];
    let given = order.spec.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let env: Vec<_> = given.chain(own).collect();
    let argv = &order.spec.command;
    let program = Program { argv, env: &env, cwd, attempt: &attempt };
    let started = link.spawn(&program, stdout_end, stderr_end, stdin);
    job.control.job.set(Some(started.job));
    match wait(started, job, stdout, stderr).await? {
        Ending::Exited { status, cpu_us, memory_max, strays } => {
            if strays > 0 {
                tracing::info!("attempt {attempt} left {strays} processes behind; killed");
            }
            Ok(Ok(Used { status: ExitStatus::from_raw(status), cpu_us, memory_max }))
        }
        Ending::Failed { errno } => {
            let errno = Errno::from_raw(errno);
            let exit = if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE };
            let name = argv.first().map_or("", String::as_str);
            let error = match errno {
                Errno::ENOENT => format!("program {name:?} was not found"),
                other => format!("program {name:?} cannot be executed: {}", other.desc()),
            };
            Ok(Err(Unstarted::Error { exit, error }))
        }
    }
}

fn pipe_pair() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = std::io::pipe()?;
    // The job's end stays blocking. Nothing need be asked about a pipe that was just made.
    nix::fcntl::fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((pipe::Receiver::from_owned_fd_unchecked(reader.into())?, writer.into()))
}

/// Takes output as it comes until no process is left, then what the pipes still hold.
async fn wait(
    mut started: Started,
    job: &Job,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
) -> Result<Ending, SpawnerGone> {
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
fn take_rest(pipe: &pipe::Receiver, output: &Output) {
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
