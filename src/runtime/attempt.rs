//! One attempt: from an order to a result, whatever runs it.
//!
//! Takes a room, puts in what the job begins with (attempt/inputs.rs), runs it as a native program
//! (process.rs) or as a WASI module, keeps its state meanwhile (attempt/checkpoint.rs) and what it
//! left (attempt/outputs.rs), and gives the room back. Decides nothing: time-outs, stops and
//! retries are the core's.
//! Whatever goes wrong becomes a result with an `error`; there is no other way out.
//! Exit status 126: something that the job needs could not be had.
//! Law: when a result is returned, nothing of the attempt runs, its output is complete, and of its
//! files only those remain that the result names (tests/exec.rs).

pub mod checkpoint;
pub mod inputs;
pub mod outputs;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::proto::capability::Kind;
use crate::proto::id::Digest;
use crate::proto::message::StartOrder;
use crate::proto::result::JobResult;
use crate::runtime::entropy;
use crate::runtime::process::stdin::{self, Fetch};
use crate::runtime::process::{self, Control, Job, SpawnerGone, Unstarted, Used};
use crate::runtime::rooms::{Room, Rooms};
use crate::runtime::spawner::{self, Link};
use crate::runtime::wasm::Runtime as Wasm;

use checkpoint::restore::restore;
use checkpoint::{Checkpoint, Checkpoints, Watcher};

/// What all attempts of an executor share.
#[derive(Debug)]
pub struct Workshop<F> {
    /// By whom programs are started.
    pub link: Link,
    /// Where jobs run.
    pub rooms: Rooms,
    /// Where long outputs and the files of results are kept.
    pub output: PathBuf,
    /// How the state of jobs is kept while they run.
    pub checkpoints: Checkpoints,
    /// What runs WASI modules; nothing where they are not run.
    pub wasm: Option<Wasm>,
    /// Where blobs come from.
    pub fetch: F,
}

/// What a job begins with.
struct Ready {
    stdin: Option<OwnedFd>,
    /// The checkpoint that it goes on from.
    state: Option<Digest>,
}

/// Whether work for a job is to be broken off; shared with the thread that does it.
#[derive(Debug, Clone, Default)]
pub struct BrokenOff(Arc<AtomicBool>);

impl BrokenOff {
    /// Asks for the end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs an attempt to its end. Where the executor lacks something at the moment, so that it could
/// not begin, there is no result but the reason: another executor may have it. `tell` is told of
/// each checkpoint, before the end.
///
/// # Errors
/// The spawner died; there is no result.
pub async fn run<F: Fetch>(
    workshop: &Workshop<F>,
    order: &StartOrder,
    job: &Job,
    tell: &impl AsyncFn(Checkpoint),
) -> Result<Result<JobResult, String>, SpawnerGone> {
    let mut result = JobResult { started_at: entropy::wall().to_string(), ..JobResult::default() };
    let room = match workshop.rooms.take() {
        Ok(room) => room,
        Err(error) => return Ok(Err(format!("no directory for the job can be made: {error}"))),
    };
    let done = run_in(workshop, order, job, &room, &mut result, tell).await;
    let clean = done.is_ok() && result.unproven.is_none();
    workshop.rooms.give_back(room, clean).await;
    let unfit = done?.err();
    job.stdout.end();
    job.stderr.end();
    if let Some(reason) = unfit {
        return Ok(Err(reason));
    }
    result.stdout = job.stdout.stream();
    result.stderr = job.stderr.stream();
    result.ended_at = entropy::wall().to_string();
    Ok(Ok(result))
}

async fn run_in<F: Fetch>(
    workshop: &Workshop<F>,
    order: &StartOrder,
    job: &Job,
    room: &Room,
    result: &mut JobResult,
    tell: &impl AsyncFn(Checkpoint),
) -> Result<Result<(), String>, SpawnerGone> {
    let mut watcher = Watcher::new(&workshop.checkpoints, order, room, job);
    let ended = match prepare(workshop, order, job, room).await {
        Ok(ready) => {
            watcher.begins_with(ready.state);
            let running = run_prepared(workshop, order, job, room, ready);
            watcher.watch(running, tell).await?
        }
        Err(unstarted) => Err(unstarted),
    };
    job.stdout.end();
    job.stderr.end();
    match ended {
        Ok(used) if used.lapsed => return Ok(Err(process::LAPSED.into())),
        Ok(used) => {
            fill(result, used);
            job.control.over();
            if job.leaves_state()
                && let Some(made) = watcher.last().await
            {
                tell(made).await;
            }
            collect(workshop, order, job, room, result).await;
        }
        Err(Unstarted::Unfit(reason)) => return Ok(Err(reason)),
        Err(Unstarted::Killed(signal)) => result.signal = Some(signal),
        Err(Unstarted::Error { exit, error }) => {
            (result.exit, result.error) = (Some(exit), Some(error));
        }
    }
    Ok(Ok(()))
}

async fn prepare<F: Fetch>(
    workshop: &Workshop<F>,
    order: &StartOrder,
    job: &Job,
    room: &Room,
) -> Result<Ready, Unstarted> {
    let stdin = tokio::select! {
        biased;
        signal = job.control.ended_early() => return Err(Unstarted::Killed(signal)),
        stdin = stdin::prepare(order, &workshop.fetch) => stdin,
    };
    let unable = |error| Unstarted::unable(format!("standard input: {error}"));
    let stdin = stdin.map_err(unable)?;
    inputs::put_all(&workshop.fetch, order, &job.control, room.work()).await?;
    let state = restore(&workshop.fetch, order, &job.control, room.checkpoint()).await?;
    Ok(Ready { stdin, state })
}

async fn run_prepared<F: Fetch>(
    workshop: &Workshop<F>,
    order: &StartOrder,
    job: &Job,
    room: &Room,
    ready: Ready,
) -> Result<Result<Used, Unstarted>, SpawnerGone> {
    match order.spec.kind() {
        Kind::Native => {
            let own = spawner::Room { number: room.number(), directory: room.directory() };
            process::run(&workshop.link, order, job, room.work(), Some(own), ready.stdin).await
        }
        Kind::Wasm => match &workshop.wasm {
            Some(wasm) => {
                let places = (room.work(), room.checkpoint());
                Ok(wasm.run(&workshop.fetch, order, job, places, ready.stdin).await)
            }
            None => Ok(Err(Unstarted::unable("this executor runs no WASI modules".into()))),
        },
    }
}

/// Keeps what the job left behind and its spec names.
async fn collect<F>(
    workshop: &Workshop<F>,
    order: &StartOrder,
    job: &Job,
    room: &Room,
    result: &mut JobResult,
) {
    if order.spec.outputs.is_empty() {
        return;
    }
    let spec = Arc::clone(&order.spec);
    let work = match room.open_work() {
        Ok(work) => work,
        Err(error) => {
            let words = format!("the job's directory cannot be read: {error}; no outputs are kept");
            result.error = Some(result.error.take().map_or(words.clone(), |e| e + "; " + &words));
            return;
        }
    };
    let place = outputs::Place::new(&workshop.output, &order.attempt);
    // What a job that failed did not get to make is not worth a word.
    let all = result.exit == Some(0);
    let kept = beside(&job.control, move |broken_off| {
        outputs::keep(work, &spec.outputs, all, &place, broken_off)
    });
    let (kept, _) = kept.await;
    result.outputs = kept.files;
    result.error = match (result.error.take(), kept.error) {
        (Some(first), Some(second)) => Some(format!("{first}; {second}")),
        (first, second) => first.or(second),
    };
}

/// Does something on a thread that may wait for the disk, always to its end: it writes to a room
/// that another job has next. A signal to the job asks it to break off, and is returned.
async fn beside<T: Send + 'static>(
    control: &Control,
    work: impl FnOnce(&BrokenOff) -> T + Send + 'static,
) -> (T, Option<i32>) {
    let broken_off = BrokenOff::default();
    let asked = broken_off.clone();
    let mut task = tokio::task::spawn_blocking(move || work(&asked));
    let done = "work for a job does not panic";
    tokio::select! {
        biased;
        signal = control.ended_early() => {
            broken_off.set();
            (task.await.expect(done), Some(signal))
        }
        ended = &mut task => (ended.expect(done), None),
    }
}

fn fill(result: &mut JobResult, used: Used) {
    result.exit = used.exit;
    result.signal = used.signal;
    result.error = used.error;
    result.cpu_us = used.cpu_us;
    result.memory_max = used.memory_max;
    result.isolation = used.isolation;
}
