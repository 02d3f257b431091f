//! The loop of an executor: session, jobs, results.
//!
//! Decides nothing; the core (proto/executor.rs) does. Runs in one thread: the loop below takes
//! what happened, hands it to the core, and carries out its orders in their order. Beside it run
//! tasks for the connection (session.rs), for each job (runtime/process.rs), for each follower of
//! live output (follow.rs) and for each result with long output (blobs.rs).
//! Laws: what the core orders after a `Spool` leaves only when the result is on disk (or the disk
//! refused it: then it is tried again, and an end without it is a failure). A result whose output
//! is a blob is sent only to a broker that has the blob. Jobs outlive every session.
//! Source: design sections 4 and 5.

pub mod identity;

mod blobs;
mod cache;
mod checkpoints;
mod descriptors;
mod follow;
mod jobs;
mod kept;
mod orders;
mod session;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::proto::capability::Capability;
use crate::proto::executor::{Executor, ExecutorConfig, ExecutorInput};
use crate::proto::id::{AttemptId, ExecutorId, Incarnation, LogId};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, ResultMessage};
use crate::proto::result::JobResult;
use crate::proto::time::Monotonic;
use crate::runtime::attempt;
use crate::runtime::attempt::checkpoint::{Checkpoint, Checkpoints};
use crate::runtime::endpoint::{Address, EndpointError};
use crate::runtime::entropy;
use crate::runtime::isolation::leftovers::{self, Leftovers};
use crate::runtime::isolation::{Level, Owner, Plan};
use crate::runtime::measure::Meter;
use crate::runtime::process::{Job, SpawnerGone};
use crate::runtime::ready::Supervisor;
use crate::runtime::rooms::Rooms;
use crate::runtime::rundir::{self, DirError};
use crate::runtime::signals::Stop;
use crate::runtime::spawner::{self, Link, Spawner};
use crate::runtime::spool::{Spool, SpoolError};
use crate::runtime::wasm::{Runtime as Wasm, WasmError};

use checkpoints::Sending;
use follow::Followers;
use identity::IdentityError;
use kept::Kept;
use session::{Connected, Session};

/// What the flags say.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Brokers by flag, tried in turn.
    pub brokers: Vec<Address>,
    /// The start of the identity, where none is held yet.
    pub name: String,
    /// The data directory.
    pub data: PathBuf,
    /// What the executor has.
    pub capability: Capability,
    /// How often it says that it is there.
    pub heartbeat: Duration,
    /// How long it waits for its jobs when it is to end.
    pub drain_timeout: Duration,
    /// How often the state of jobs is looked at.
    pub checkpoint_interval: Duration,
    /// How far native jobs are kept apart.
    pub isolation: Level,
    /// Directories beside its own that a native job may write to.
    pub allow_write: Vec<PathBuf>,
}

/// Why an executor does not run, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The data directory cannot be used. Nothing was run.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The identity cannot be used. Nothing was run.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another process on this host has this executor's identity. Nothing was run, and nothing that
    /// it runs was touched.
    #[error("executor {executor} runs on this host already; is its data directory a copy?")]
    Copied {
        /// The identity.
        executor: ExecutorId,
    },
    /// `$UCP_BROKER` holds a text that is no address. Nothing was run.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The results of an earlier life cannot be read, or at the end some are neither on disk nor
    /// acknowledged: their brokers take them for lost and run them elsewhere.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// WASI jobs cannot be run. Nothing was run; `--no-wasm` does without.
    #[error(transparent)]
    Wasm(#[from] WasmError),
    /// The system refused something that the start needs. Nothing was run.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The spawner ended while the executor lived. Jobs that ran were killed; their brokers take
    /// them for lost and run them elsewhere. Starting again helps.
    #[error("the process that starts and kills jobs has died")]
    Spawner,
    /// Standard output cannot be written, so nobody learns that the executor is ready.
    #[error("cannot say that the executor is ready: {0}")]
    Announce(io::Error),
}

/// What there is to say when the executor is registered for the first time.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    /// The executor.
    pub executor: &'a ExecutorId,
    /// The broker's address.
    pub broker: &'a Address,
}

/// What happens outside of the loop.
enum Event {
    Connected(Box<Connected>),
    Message(u64, BrokerMessage),
    Closed(u64, String),
    Checkpointed(AttemptId, Checkpoint),
    /// A message that waited has left.
    Sent,
    Ended(AttemptId, Result<Result<Box<JobResult>, String>, SpawnerGone>),
}

/// What the tasks of all jobs share.
type Workshop = attempt::Workshop<blobs::Source>;

/// How far the end has come.
enum Phase {
    Working,
    /// No new jobs; those that run are handed back at this moment.
    Draining(Instant),
    /// All are told to end.
    HandingBack,
    /// Nothing runs; the last acknowledgements are waited for until this moment.
    Drained(Instant),
}

/// How an executor ended that was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its jobs ended or were handed back, and no result is only in memory.
    Drained,
    /// By a second signal, which has this number; the spawner kills what ran.
    AtOnce(i32),
}

type Announce<'a> = &'a mut dyn FnMut(Registration<'_>) -> io::Result<()>;

/// An executor that has its data directory, with nothing left of an earlier life.
pub struct Opened {
    kept: Kept,
    plan: Plan,
}

impl Opened {
    /// What the spawner puts on each job.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Takes the data directory, kills what an earlier life left, and finds out how jobs can be kept
/// apart. Starts no thread, so that the spawner can be forked afterwards.
///
/// # Errors
/// [`ExecutorError`]. Nothing was run.
pub fn open(settings: &Settings) -> Result<Opened, ExecutorError> {
    let kept = Kept::open(settings)?;
    crate::runtime::endpoint::candidates(&settings.brokers)?;
    let executor = kept.executor.as_str();
    let Leftovers { killed, proven, left } = leftovers::kill(&settings.data, executor);
    if killed > 0 {
        let proof = if proven { "; its cgroup is empty" } else { ", as far as /proc shows them" };
        tracing::warn!("killed {killed} processes that an earlier life left behind{proof}");
    }
    if left > 0 {
        tracing::error!("{left} processes that an earlier life left behind cannot be killed");
    }
    let owner = Owner { executor, life: kept.life };
    let plan = Plan::make(settings.isolation, settings.allow_write.clone(), Some(owner));
    if let Err(error) = leftovers::record(&settings.data, &plan) {
        tracing::warn!("a next life will not know the cgroup of this one: {error}");
    }
    Ok(Opened { kept, plan })
}

/// Runs an executor until a signal asks for its end, and then until it is drained.
///
/// # Errors
/// [`ExecutorError`] says what became of its jobs.
pub fn run(
    settings: &Settings,
    opened: Opened,
    spawner: Spawner,
    mut announce: impl FnMut(Registration<'_>) -> io::Result<()>,
) -> Result<Ended, ExecutorError> {
    let failed = |what| move |source| ExecutorError::System { what, source };
    let (guard, mark) = (spawner.guard(), spawner.mark());
    spawner::become_subreaper().map_err(failed("take orphans in"))?;
    descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("start the runtime"))?;
    let tasks = LocalSet::new();
    let ended = tasks.block_on(&runtime, async {
        let link = spawner.connect().map_err(failed("speak with the spawner"))?;
        let stop = Stop::listen().map_err(failed("listen for signals"))?;
        let Capability { wasm, slots, .. } = settings.capability;
        // Not before the spawner was forked, which has no use for so much address space.
        let wasm = wasm.then(|| Wasm::new(&opened.kept.data, slots)).transpose()?;
        let mut shell = Shell::new(settings, &opened.plan, opened.kept, wasm, link)?;
        shell.serve(stop, &mut announce).await
    });
    if matches!(ended, Err(ExecutorError::Spawner)) {
        if spawner::await_tree_gone(guard, limits::GUARD_WITHIN) {
            mark.set();
        } else {
            tracing::error!("processes of jobs are left that cannot be killed");
        }
        // The guard does it, unless it was killed.
        opened.plan.clear();
    }
    // Whatever still waits (a blob on its way, a name look-up) must not hold up the end.
    runtime.shutdown_background();
    ended
}

struct Shell<'a> {
    settings: &'a Settings,
    executor: ExecutorId,
    core: Executor,
    spool: Spool,
    /// Results that the disk refused.
    unspooled: BTreeMap<AttemptId, ResultMessage>,
    spool_error: Option<SpoolError>,
    workshop: Rc<Workshop>,
    jobs: BTreeMap<AttemptId, Rc<Job>>,
    /// The leases of attempts that are about to begin.
    leases: BTreeMap<AttemptId, Monotonic>,
    /// Ended attempts that the core has not spoken of since.
    ended: Vec<AttemptId>,
    session: Option<Rc<Session>>,
    followers: Followers,
    sending: Sending,
    /// What the broker said of followers, to be heeded when the core's orders are carried out: an
    /// attempt may have been ordered just before.
    follows: Vec<(Rc<Session>, BrokerMessage)>,
    registered: Option<LogId>,
    announced: bool,
    drained: bool,
    pause: session::Pause,
    /// Why the broker does not take us, once it has said so.
    refused: Option<String>,
    /// The latest reason that was told why a broker does not take us.
    told: Option<String>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    meter: Meter,
    measure_at: Instant,
    retry_spool: bool,
    phase: Phase,
    supervisor: Supervisor,
    _lock: rundir::DataLock,
    _sole: UnixListener,
}

impl<'a> Shell<'a> {
    fn new(
        settings: &'a Settings,
        plan: &Plan,
        kept: Kept,
        wasm: Option<Wasm>,
        link: Link,
    ) -> Result<Self, ExecutorError> {
        let boot = entropy::boot_id();
        let what = "read the boot id";
        let boot = boot.map_err(|source| ExecutorError::System { what, source })?;
        let config = ExecutorConfig {
            executor: kept.executor.clone(),
            incarnation: Incarnation { boot, life: kept.life },
            pid: std::process::id(),
            capability: Capability {
                slots: descriptors::affordable(settings.capability.slots),
                isolation: plan.isolation().clone(),
                ..settings.capability.clone()
            },
            cgroup: plan.cgroup().and_then(|path| path.to_str()).map(str::to_owned),
            heartbeat: settings.heartbeat,
            silence_max: limits::LOST_AFTER.max(settings.heartbeat * 3),
        };
        let (sender, events) = mpsc::channel(limits::INPUTS_QUEUED_MAX);
        let output = kept.data.join("output");
        let what = "take over the jobs' directories";
        let rooms = Rooms::open(kept.data.join("rooms"));
        let rooms = rooms.map_err(|source| ExecutorError::System { what, source })?;
        let interval = Some(settings.checkpoint_interval);
        let checkpoints = Checkpoints { directory: kept.data.join("checkpoints"), interval };
        let fetch = blobs::Source::new(kept.data.join("cache/blobs"));
        Ok(Self {
            settings,
            executor: kept.executor,
            core: Executor::new(config, kept.results),
            spool: kept.spool,
            unspooled: BTreeMap::new(),
            spool_error: None,
            workshop: Rc::new(Workshop { link, rooms, output, checkpoints, wasm, fetch }),
            jobs: BTreeMap::new(),
            leases: BTreeMap::new(),
            ended: vec![],
            session: None,
            followers: Followers::default(),
            sending: Sending::default(),
            follows: vec![],
            registered: None,
            announced: false,
            drained: false,
            pause: session::Pause::new(),
            refused: None,
            told: None,
            events,
            sender,
            meter: Meter::new(settings.data.clone()),
            measure_at: Instant::now(),
            retry_spool: false,
            phase: Phase::Working,
            supervisor: Supervisor::of_environment(),
            _lock: kept.lock,
            _sole: kept.sole,
        })
    }

    async fn serve(
        &mut self,
        mut stop: Stop,
        announce: Announce<'_>,
    ) -> Result<Ended, ExecutorError> {
        self.measure();
        self.connect();
        let link = self.workshop.link.clone();
        loop {
            let wake = self.wake_at();
            tokio::select! {
                event = self.events.recv() => {
                    let event = event.expect("the loop holds a sender itself");
                    self.take(event)?;
                }
                () = tokio::time::sleep_until(wake) => {}
                signal = stop.next() => {
                    if !matches!(self.phase, Phase::Working) {
                        tracing::warn!("signal {signal}: ending at once");
                        return Ok(Ended::AtOnce(signal));
                    }
                    self.drain();
                }
                () = link.died() => return Err(self.give_up().await),
            }
            for _ in 0..limits::INPUTS_PER_BATCH_MAX {
                let Ok(event) = self.events.try_recv() else { break };
                self.take(event)?;
            }
            self.do_what_is_due();
            if std::mem::take(&mut self.retry_spool) {
                self.spool(vec![]).await;
            }
            self.carry_out(announce).await?;
            self.serve_followers();
            if self.is_over() {
                return self.leave().await.map(|()| Ended::Drained);
            }
        }
    }

    fn input(&mut self, input: ExecutorInput) {
        self.core.handle_input(entropy::now(), input);
    }

    fn take(&mut self, event: Event) -> Result<(), ExecutorError> {
        match event {
            Event::Connected(connected) => {
                let session = Session::begin(*connected, self.sender.clone());
                self.workshop.fetch.set(session.address());
                self.session = Some(session);
                self.input(ExecutorInput::Connected);
            }
            Event::Message(number, message) => {
                let current = self.session.clone().filter(|session| session.number() == number);
                if let Some(session) = current {
                    self.hear(&session, message);
                }
            }
            Event::Closed(number, reason) => {
                if let Some(session) = self.session.clone().filter(|now| now.number() == number) {
                    if session.is_garbled() {
                        self.pause.distrust(session.address());
                    }
                    // What it said before it closed says more.
                    let reason = self.refused.take().unwrap_or(reason);
                    self.disconnect(&reason);
                    self.input(ExecutorInput::Disconnected);
                }
            }
            Event::Checkpointed(attempt, Checkpoint { manifest, files, bytes }) => {
                self.input(ExecutorInput::Checkpointed { attempt, manifest, files, bytes });
            }
            Event::Sent => {}
            Event::Ended(attempt, Ok(Err(reason))) => {
                self.ended.push(attempt.clone());
                self.input(ExecutorInput::Unfit { attempt, reason });
            }
            Event::Ended(attempt, Ok(Ok(result))) => {
                self.ended.push(attempt.clone());
                self.input(ExecutorInput::Ended { attempt, result });
            }
            Event::Ended(_, Err(SpawnerGone)) => {
                // The link tells of it as well, and the loop ends there.
            }
        }
        Ok(())
    }

    fn hear(&mut self, session: &Rc<Session>, message: BrokerMessage) {
        match message {
            BrokerMessage::Follow { .. }
            | BrokerMessage::Window { .. }
            | BrokerMessage::Unfollow { .. } => {
                self.follows.push((Rc::clone(session), message));
            }
            message => {
                if let BrokerMessage::Refused { code, detail } = &message {
                    self.refused = Some(format!("it refused ({code}): {detail}"));
                    self.pause.refused(session.address());
                }
                self.input(ExecutorInput::Message(message));
            }
        }
    }

    fn serve_followers(&mut self) {
        for (session, message) in std::mem::take(&mut self.follows) {
            if session.is_closed() {
                continue;
            }
            match message {
                BrokerMessage::Follow { follow, attempt, stdout_from, stderr_from, window } => {
                    let job = self.jobs.get(&attempt).cloned();
                    let from = follow::From { stdout: stdout_from, stderr: stderr_from };
                    self.followers.begin(&session, follow, job, from, window);
                }
                BrokerMessage::Window { follow, bytes } => self.followers.grant(follow, bytes),
                BrokerMessage::Unfollow { follow } => self.followers.end(follow),
                _ => {}
            }
        }
    }

    /// Ends the session on this side and begins to look for a broker again.
    fn disconnect(&mut self, reason: &str) {
        if let Some(session) = self.session.take() {
            session.close();
            let broker = session.address();
            match self.registered.take() {
                Some(log) => tracing::warn!("lost broker {log} at {broker}: {reason}"),
                // The same at every try would only hide what else is said.
                None if self.told.as_deref() != Some(reason) => {
                    tracing::warn!("broker at {broker}: {reason}");
                    self.told = Some(reason.to_owned());
                }
                None => {}
            }
        }
        self.refused = None;
        self.followers.clear();
        self.connect();
    }

    fn connect(&mut self) {
        let (brokers, sender) = (self.settings.brokers.clone(), self.sender.clone());
        let pause = self.pause.clone();
        tokio::task::spawn_local(async move {
            let connected = session::connect(&brokers, pause).await;
            // The loop is gone only when the process ends.
            let _ = sender.send(Event::Connected(Box::new(connected))).await;
        });
    }

    fn measure(&mut self) {
        let now = entropy::now();
        let load = self.meter.measure(now.mono);
        self.measure_at = Instant::now() + self.settings.heartbeat;
        self.input(ExecutorInput::Measured(load));
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let due = self.core.poll_timeout().map(|at| now + at.since(entropy::now().mono));
        let phase = match self.phase {
            Phase::Draining(at) | Phase::Drained(at) => Some(at),
            Phase::Working | Phase::HandingBack => None,
        };
        [due, phase, self.supervisor.due()]
            .into_iter()
            .flatten()
            .fold(self.measure_at, Instant::min)
    }

    fn do_what_is_due(&mut self) {
        self.tell();
        let instant = Instant::now();
        if instant >= self.measure_at {
            self.measure();
            self.retry_spool = !self.unspooled.is_empty();
        }
        if matches!(self.phase, Phase::Draining(at) if instant >= at) {
            tracing::warn!("jobs that still run are told to end and handed back");
            self.phase = Phase::HandingBack;
            self.jobs.values().for_each(|job| job.leave_state());
            self.input(ExecutorInput::HandBack);
        }
        let now = entropy::now();
        if self.core.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.core.handle_timeout(now);
        }
    }

    fn drain(&mut self) {
        self.supervisor.stopping();
        tracing::info!("draining: {} attempts are here", self.jobs.len());
        self.phase = Phase::Draining(Instant::now() + self.settings.drain_timeout);
        self.input(ExecutorInput::Drain);
    }

    fn is_over(&mut self) -> bool {
        if !self.drained || self.sending.holds_any() {
            return false;
        }
        match self.phase {
            Phase::Drained(until) => {
                let unheard = self.registered.is_none() || Instant::now() >= until;
                self.core.is_idle() || unheard
            }
            _ => {
                self.phase = Phase::Drained(Instant::now() + limits::DRAIN_ACKNOWLEDGED_WITHIN);
                self.registered.is_none() || self.core.is_idle()
            }
        }
    }

    /// Lets the last messages go out.
    async fn leave(&mut self) -> Result<(), ExecutorError> {
        if let Some(session) = self.session.take() {
            session.finish(limits::DRAIN_ACKNOWLEDGED_WITHIN).await;
        }
        self.spool(vec![]).await;
        self.workshop.rooms.settle(limits::ROOMS_GONE_WITHIN).await;
        match self.spool_error.take() {
            Some(error) if !self.unspooled.is_empty() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The spawner is dead: what is known of results goes to disk, and that is all.
    async fn give_up(&mut self) -> ExecutorError {
        self.input(ExecutorInput::Disconnected);
        match self.carry_out(&mut |_| Ok(())).await {
            Ok(()) => ExecutorError::Spawner,
            Err(error) => error,
        }
    }
}
