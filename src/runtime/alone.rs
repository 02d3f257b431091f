//! One job without a broker: the path of an attempt, with somebody else who decides.
//!
//! Stands in for the core where there is none: ends an attempt whose time is over, repeats a
//! failed one from the state in which it ended, ends all when a signal asks for it. Reads no spec
//! and prints nothing. Everything is kept below one directory, which the caller makes and removes.
//! Law: when this returns, no process of the job is left (tests/exec/run.rs).

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::proto::clock::Clock;
use crate::proto::id::{AttemptId, Digest, Dot, JobId, LogId};
use crate::proto::job::{AfterDeadline, JobSpec};
use crate::proto::limits;
use crate::proto::message::StartOrder;
use crate::proto::result::JobResult;
use crate::proto::rng::Rng;
use crate::runtime::attempt::checkpoint::{self, Checkpoint, Checkpoints};
use crate::runtime::attempt::outputs::Place;
use crate::runtime::attempt::{self, Workshop};
use crate::runtime::entropy;
use crate::runtime::isolation::Plan;
use crate::runtime::process::stdin::Fetch;
use crate::runtime::process::{self, Job, SpawnerGone};
use crate::runtime::rooms::Rooms;
use crate::runtime::rundir::{self, DirError, PRIVATE_MODE};
use crate::runtime::signals::Stop;
use crate::runtime::spawner::{self, Spawner};
use crate::runtime::wasm::{Runtime as Wasm, WasmError};

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AloneError {
    /// The directory cannot be used. Nothing was run.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The system refused something that the start needs. Nothing was run.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// WASI modules cannot be run. Nothing was run.
    #[error(transparent)]
    Wasm(#[from] WasmError),
    /// The spawner died; what ran was killed.
    #[error("the process that starts and kills jobs has died")]
    Spawner,
}

/// How a job ended.
#[derive(Debug)]
pub struct Finished {
    /// The job's number, drawn here.
    pub job: JobId,
    /// The last attempt.
    pub attempt: AttemptId,
    /// What came of it.
    pub result: JobResult,
    /// The signal that asked for the end, if one did.
    pub stopped: Option<i32>,
    /// Its deadline was over before it could succeed.
    pub expired: bool,
    output: PathBuf,
}

impl Finished {
    /// The file of a stream that is not in the result itself; `stdout` or `stderr`.
    #[must_use]
    pub fn stream(&self, name: &str) -> PathBuf {
        self.output.join(format!("{}.{name}", self.attempt))
    }

    /// The kept files, with their paths in the job's directory.
    pub fn files(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        let place = Place::new(&self.output, &self.attempt);
        let paths = self.result.outputs.keys().enumerate();
        paths.map(move |(n, path)| (path.as_str(), place.file(n)))
    }
}

/// There are no blobs where there is no broker, but those of the attempt before: the state in which
/// it ended.
#[derive(Debug, Default)]
struct OwnBlobs {
    place: RefCell<Option<PathBuf>>,
}

impl Fetch for OwnBlobs {
    fn fetch(&self, digest: Digest) -> impl Future<Output = Result<File, String>> {
        let place = self.place.borrow();
        let opened =
            place.as_ref().and_then(|place| File::open(place.join(digest.to_string())).ok());
        let absent = || format!("blob {digest}: there is no broker to ask for it");
        std::future::ready(opened.ok_or_else(absent))
    }
}

/// Runs a job to its end, or until a signal asks for that.
///
/// # Errors
/// [`AloneError`]: there is no result.
pub fn run(
    spec: JobSpec,
    plan: &Plan,
    spawner: Spawner,
    directory: &Path,
) -> Result<Finished, AloneError> {
    let guard = spawner.guard();
    let failed = |what| move |source| AloneError::System { what, source };
    for name in ["output", "rooms", "checkpoints"] {
        rundir::ensure_dir(&directory.join(name), PRIVATE_MODE)?;
    }
    spawner::become_subreaper().map_err(failed("take orphans in"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("start the runtime"))?;
    let finished = LocalSet::new().block_on(&runtime, async {
        let workshop = Workshop {
            link: spawner.connect().map_err(failed("speak with the spawner"))?,
            rooms: Rooms::open(directory.join("rooms")).map_err(failed("make a place for it"))?,
            output: directory.join("output"),
            wasm: spec.wasm.as_ref().map(|_| Wasm::new(directory, 1)).transpose()?,
            fetch: OwnBlobs::default(),
            checkpoints: Checkpoints { directory: directory.join("checkpoints"), interval: None },
        };
        let stop = Stop::listen().map_err(failed("listen for signals"))?;
        let finished = try_often(&workshop, Arc::new(spec), stop).await;
        workshop.rooms.settle(limits::ROOMS_GONE_WITHIN).await;
        finished
    });
    if matches!(finished, Err(AloneError::Spawner)) {
        if !spawner::await_tree_gone(guard, limits::GUARD_WITHIN) {
            tracing::error!("processes of the job are left that cannot be killed");
        }
        // The guard does it, unless it was killed.
        plan.clear();
    }
    runtime.shutdown_background();
    finished
}

/// The result where there is no other executor.
fn cannot_run(reason: String) -> JobResult {
    let at = entropy::wall().to_string();
    let exit = Some(process::NOT_EXECUTABLE);
    let (started_at, ended_at) = (at.clone(), at);
    JobResult { exit, error: Some(reason), started_at, ended_at, ..JobResult::default() }
}

async fn try_often(
    workshop: &Workshop<OwnBlobs>,
    spec: Arc<JobSpec>,
    mut stop: Stop,
) -> Result<Finished, AloneError> {
    let mut rng = Rng::from_seed(entropy::seed());
    let job = JobId::random(entropy::wall(), &mut rng);
    let log: LogId = format!("run-{:08x}", rng.next_u64() & u64::from(u32::MAX))
        .parse()
        .expect("a short name of plain letters");
    let mut pause = limits::RETRY_BACKOFF_FIRST;
    let mut tries = 1;
    let state = Cell::new(None);
    let deadline = spec.deadline.map(|span| Instant::now() + span.duration());
    let stop_at = deadline.filter(|_| spec.after_deadline == AfterDeadline::Stop);
    loop {
        let attempt = AttemptId::from(Dot { log: log.clone(), seq: tries });
        let order = StartOrder {
            attempt: attempt.clone(),
            job,
            generation: 1,
            fence: tries,
            clock: Clock::default(),
            elements: None,
            items: vec![],
            lease: None,
            checkpoints: state.get().into_iter().collect(),
            carried: vec![],
            spec: Arc::clone(&spec),
        };
        let kept = Job::new(&order, &workshop.output);
        if tries <= u64::from(spec.retries) {
            kept.leave_state();
        }
        let ended = try_once(workshop, &order, &kept, stop_at, &mut stop, &state).await?;
        let Ended { result, mut stopped, mut expired } = ended;
        let again = !result.is_success() && stopped.is_none() && !expired;
        let again = again && tries <= u64::from(spec.retries);
        if again && deadline.is_some_and(|deadline| deadline <= Instant::now() + pause) {
            expired = true;
        } else if again {
            tracing::info!("attempt {tries} failed; trying again");
            tokio::select! {
                signal = stop.next() => stopped = Some(signal),
                () = tokio::time::sleep(pause) => {
                    kept.discard();
                    if kept.has_checkpoint() {
                        let directory = &workshop.checkpoints.directory;
                        let place = checkpoint::place(directory, &attempt);
                        workshop.fetch.place.replace(Some(place));
                    }
                    Place::new(&workshop.output, &attempt).discard();
                    pause = (pause * 2).min(limits::RETRY_BACKOFF_MAX);
                    tries += 1;
                    continue;
                }
            }
        }
        let output = workshop.output.clone();
        let finished = Finished { job, attempt, result, stopped, expired, output };
        return Ok(finished);
    }
}

/// How one attempt ended.
struct Ended {
    result: JobResult,
    /// The signal that asked for the end, if one did.
    stopped: Option<i32>,
    /// It was stopped as the deadline was over.
    expired: bool,
}

/// One attempt with its time-out and the moment at which its deadline stops it. The first signal
/// asks its processes to end, the second one and the end of the grace kill them.
async fn try_once(
    workshop: &Workshop<OwnBlobs>,
    order: &StartOrder,
    job: &Job,
    stop_at: Option<Instant>,
    stop: &mut Stop,
    state: &Cell<Option<Digest>>,
) -> Result<Ended, AloneError> {
    let far = limits::TIMEOUT_MAX;
    let within = order.spec.timeout.map_or(far, |span| span.duration());
    let timeout = Instant::now() + within.min(far);
    let mut kill_at = None::<Instant>;
    let (mut timed_out, mut expired, mut stopped) = (false, false, None);
    let stop_at = stop_at.unwrap_or(timeout + far);
    let keep = async |made: Checkpoint| state.set(Some(made.manifest));
    let running = attempt::run(workshop, order, job, &keep);
    tokio::pin!(running);
    let tell = |signal| job.control.signal(&workshop.link, signal);
    loop {
        let kill = kill_at.unwrap_or(timeout);
        tokio::select! {
            biased;
            ended = &mut running => {
                let ended = ended.map_err(|SpawnerGone| AloneError::Spawner)?;
                let mut result = ended.unwrap_or_else(cannot_run);
                result.timed_out = timed_out;
                return Ok(Ended { expired: expired && !result.is_success(), result, stopped });
            }
            signal = stop.next() => {
                tell(if stopped.is_some() { libc::SIGKILL } else { libc::SIGTERM });
                stopped.get_or_insert(signal);
                kill_at.get_or_insert(Instant::now() + limits::KILL_GRACE);
            }
            () = workshop.link.died() => return Err(AloneError::Spawner),
            () = tokio::time::sleep_until(kill), if kill_at.is_some() => {
                tell(libc::SIGKILL);
                kill_at = Some(Instant::now() + limits::KILL_GRACE);
            }
            () = tokio::time::sleep_until(timeout.min(stop_at)), if kill_at.is_none() => {
                expired = stop_at <= timeout;
                timed_out = !expired;
                tell(libc::SIGTERM);
                kill_at = Some(Instant::now() + limits::KILL_GRACE);
            }
        }
    }
}
