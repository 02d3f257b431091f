//! The executor as a state machine: it runs what it is told, once, and keeps results until a
//! broker has them.
//!
//! Pure, and used like the broker's: hand in an input, drain [`Executor::poll_output`], wait.
//!
//! Laws: an attempt is run at most once in a life, however often its order comes. A result is sent
//! in every session until it is acknowledged; it is on disk whenever no acknowledgement came
//! within [`limits::SPOOL_AFTER`], before the session is waited for, and before the process ends.
//! Attempts may be ordered ahead of free slots: they begin in the order in which they came, as
//! slots and memory get free. While more waits to begin, results are held back for a moment and
//! sent together.
//! An attempt that was told to stop has no result: it may end in good order without its work being
//! done. Only where it was killed at once, a success must have been there before.
//! An attempt of a job that must not overlap runs no longer than its lease (lease.rs). An executor
//! that was suspended begins nothing before its broker answered a heartbeat sent afterwards.
//! Source: design sections 4 and 5; Gray and Cheriton 1989 for leases.

mod lease;
mod results;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::proto::capability::{Capability, Load, Needs, Occupied};
use crate::proto::clock::Clock;
use crate::proto::id::{AttemptId, Digest, ExecutorId, Incarnation, JobId, LogId};
use crate::proto::limits;
use crate::proto::message::{
    BrokerMessage, CheckpointMessage, ExecutorMessage, ResultMessage, StartOrder,
};
use crate::proto::result::JobResult;
use crate::proto::time::{Monotonic, Now};

use lease::{Lease, Leases};

/// Who the executor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// Its lasting identity.
    pub executor: ExecutorId,
    /// Which of its lives this is.
    pub incarnation: Incarnation,
    /// Its process id.
    pub pid: u32,
    /// What it has.
    pub capability: Capability,
    /// The directory of the cgroup that its jobs are in, where there is one.
    pub cgroup: Option<String>,
    /// How often it sends heartbeats.
    pub heartbeat: Duration,
    /// Silence of the broker after which the session is given up.
    pub silence_max: Duration,
}

/// Something that happened outside.
#[derive(Debug, Clone)]
pub enum ExecutorInput {
    /// A connection to a broker stands; the executor says hello on it.
    Connected,
    /// The connection ended.
    Disconnected,
    /// The broker said something. `Follow`, `Window` and `Unfollow` do not pass through the core.
    Message(BrokerMessage),
    /// An attempt ended and none of its processes is left. Its `timed_out` is set by the core.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// What came of it.
        result: Box<JobResult>,
    },
    /// An attempt did not begin, as the machine lacks something at the moment: it is handed back,
    /// for another executor or a later moment.
    Unfit {
        /// Which.
        attempt: AttemptId,
        /// What is lacking, in words.
        reason: String,
    },
    /// State of an attempt was kept here; the broker gets the blobs before the message about it.
    Checkpointed {
        /// Which.
        attempt: AttemptId,
        /// The blob that lists the files.
        manifest: Digest,
        /// How many files there are.
        files: u64,
        /// Their bytes together.
        bytes: u64,
    },
    /// What the machine has at the moment.
    Measured(Load),
    /// Take nothing new; answered by `Drained` once nothing runs.
    Drain,
    /// Stop everything that runs and hand it back; comes after `Drain`.
    HandBack,
}

/// How a job's processes are told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// SIGTERM to its process group.
    Terminate,
    /// SIGKILL to the whole tree.
    Kill,
}

/// An order to the outside.
#[derive(Debug, Clone)]
pub enum ExecutorOutput {
    /// Send to the broker.
    Send(ExecutorMessage),
    /// Run an attempt; answered by `Ended`, also when it cannot be started, or by `Unfit`.
    Run(Box<StartOrder>),
    /// An attempt of a job that must not overlap may run until this moment and no longer, whatever
    /// becomes of this process. Comes before its `Run`, and again whenever it is put off.
    Lease {
        /// Which.
        attempt: AttemptId,
        /// When it is over.
        until: Monotonic,
    },
    /// End an attempt's processes; answered by `Ended` when they are gone.
    Kill {
        /// Which.
        attempt: AttemptId,
        /// How.
        kill: Kill,
    },
    /// Write a result to disk before anything that follows leaves.
    Spool(Box<ResultMessage>),
    /// Remove a result from disk.
    Unspool(AttemptId),
    /// Nothing is wanted of an attempt any more, nor of what it left.
    Forget(AttemptId),
    /// The session is registered with the broker that has this log.
    Registered(LogId),
    /// Give up the connection and make another.
    Reconnect {
        /// Why, in words.
        reason: String,
    },
    /// Nothing runs any more and every result is on disk or acknowledged: the process may end.
    Drained,
    /// Tell the operator.
    Notice(String),
}

/// An attempt that runs.
#[derive(Debug)]
struct Running {
    /// When it began.
    since: Monotonic,
    needs: Needs,
    job: JobId,
    generation: u32,
    clock: Clock,
    /// When its time is over.
    deadline: Option<Monotonic>,
    /// When it is killed if it has not ended after it was told to.
    kill_at: Option<Monotonic>,
    timed_out: bool,
    /// No result is wanted of it.
    stopping: bool,
    /// It was told to end, so that its exit says nothing.
    told_to_end: bool,
    lease: Option<Lease>,
    /// How often its state was kept, and the latest.
    checkpoints: u64,
    checkpoint: Option<Box<CheckpointMessage>>,
    carried: Vec<Arc<str>>,
}

/// A result that is kept.
#[derive(Debug)]
struct Held {
    message: ResultMessage,
    spooled: bool,
    spool_at: Option<Monotonic>,
    /// A broker has it, and asked to keep it all the same.
    acknowledged: bool,
}

/// One executor.
#[derive(Debug)]
pub struct Executor {
    config: ExecutorConfig,
    load: Load,
    connected: bool,
    registered: bool,
    draining: bool,
    drained: bool,
    /// When the broker was last heard of.
    heard: Monotonic,
    heartbeat_at: Monotonic,
    /// The pause between heartbeats: our own, or less where the broker asks for it.
    heartbeat: Duration,
    running: BTreeMap<AttemptId, Running>,
    /// What those occupy.
    occupied: Occupied,
    /// Orders that wait for a free slot, in the order in which they came.
    waiting: VecDeque<Box<StartOrder>>,
    held: BTreeMap<AttemptId, Held>,
    /// Results that are sent together, and when at the latest.
    together: Vec<AttemptId>,
    together_at: Option<Monotonic>,
    /// What a hello named and is no longer here, to be said once the broker welcomes us.
    unsaid: Vec<ExecutorMessage>,
    /// The latest attempts that were stopped after they had begun.
    stopped: VecDeque<AttemptId>,
    /// The log of the broker that welcomed us last, and those that it carries on.
    broker: BTreeSet<LogId>,
    leases: Leases,
    /// The results that are kept though a broker has them, the oldest first.
    kept: VecDeque<AttemptId>,
    outputs: VecDeque<ExecutorOutput>,
}

impl Executor {
    /// An executor with the results that an earlier life left on disk.
    #[must_use]
    pub fn new(config: ExecutorConfig, spooled: Vec<ResultMessage>) -> Self {
        let held = spooled.into_iter().map(|message| {
            let held = Held { message, spooled: true, spool_at: None, acknowledged: false };
            (held.message.attempt.clone(), held)
        });
        let heartbeat = config.heartbeat;
        Self {
            config,
            load: Load::default(),
            connected: false,
            registered: false,
            draining: false,
            drained: false,
            heard: Monotonic::default(),
            heartbeat_at: Monotonic::default(),
            heartbeat,
            running: BTreeMap::new(),
            occupied: Occupied::default(),
            waiting: VecDeque::new(),
            held: held.collect(),
            together: vec![],
            together_at: None,
            unsaid: vec![],
            stopped: VecDeque::new(),
            broker: BTreeSet::new(),
            leases: Leases::default(),
            kept: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Whether nothing runs and no result waits to be acknowledged.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let told = self.held.values().all(|held| held.acknowledged);
        self.running.is_empty() && self.waiting.is_empty() && told
    }

    /// The attempts that wait here to begin, in the order in which they came.
    pub fn waiting(&self) -> impl Iterator<Item = &AttemptId> {
        self.waiting.iter().map(|order| &order.attempt)
    }

    /// Whether the result of an attempt waits to be acknowledged.
    #[must_use]
    pub fn holds(&self, attempt: &AttemptId) -> bool {
        self.held.contains_key(attempt)
    }

    /// Takes an input.
    pub fn handle_input(&mut self, now: Now, input: ExecutorInput) {
        self.notice_suspension(now);
        match input {
            ExecutorInput::Connected => self.say_hello(now),
            ExecutorInput::Disconnected => {
                (self.connected, self.registered) = (false, false);
                self.spool_all();
            }
            ExecutorInput::Message(message) => self.handle_message(now, message),
            ExecutorInput::Ended { attempt, result } => self.handle_ended(now, &attempt, *result),
            ExecutorInput::Unfit { attempt, reason } => self.handle_unfit(attempt, &reason),
            ExecutorInput::Checkpointed { attempt, manifest, files, bytes } => {
                self.handle_checkpointed(&attempt, manifest, files, bytes);
            }
            ExecutorInput::Measured(load) => self.load = load,
            ExecutorInput::Drain => {
                self.draining = true;
                if self.registered {
                    self.send_heartbeat(now);
                }
                self.hand_back_waiting();
            }
            ExecutorInput::HandBack => {
                self.draining = true;
                self.hand_back_waiting();
                let running: Vec<AttemptId> = self.running.keys().cloned().collect();
                running.into_iter().for_each(|attempt| self.stop(now, attempt));
            }
        }
        self.begin_waiting(now);
        self.send_together(now);
        self.check_drained();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.notice_suspension(now);
        self.end_lapsed(now);
        if self.connected && now.mono >= self.heard.after(self.config.silence_max) {
            let reason = "the broker was silent".to_owned();
            (self.connected, self.registered) = (false, false);
            self.outputs.push_back(ExecutorOutput::Reconnect { reason });
            self.spool_all();
        }
        if self.registered && now.mono >= self.heartbeat_at {
            self.send_heartbeat(now);
        }
        for (attempt, running) in &mut self.running {
            let due = |at: Option<Monotonic>| at.is_some_and(|at| at <= now.mono);
            let kill = if due(running.kill_at) {
                running.kill_at = None;
                Kill::Kill
            } else if due(running.deadline) {
                running.deadline = None;
                (running.timed_out, running.told_to_end) = (true, true);
                running.kill_at = Some(now.mono.after(limits::KILL_GRACE));
                Kill::Terminate
            } else {
                continue;
            };
            self.outputs.push_back(ExecutorOutput::Kill { attempt: attempt.clone(), kill });
        }
        self.send_together(now);
        for held in self.held.values_mut() {
            if held.spool_at.is_some_and(|at| at <= now.mono) {
                spool(held, &mut self.outputs);
            }
        }
    }

    /// When [`Executor::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let silence = self.connected.then(|| self.heard.after(self.config.silence_max));
        let heartbeat = self.registered.then_some(self.heartbeat_at);
        let running = self.running.values();
        let running = running.flat_map(|r| [r.deadline, r.kill_at, r.lease_ends()]).flatten();
        let held = self.held.values().filter_map(|held| held.spool_at);
        let together = self.together_at;
        silence.into_iter().chain(heartbeat).chain(running).chain(held).chain(together).min()
    }

    /// The next order to the outside.
    pub fn poll_output(&mut self) -> Option<ExecutorOutput> {
        self.outputs.pop_front()
    }

    fn send(&mut self, message: ExecutorMessage) {
        self.outputs.push_back(ExecutorOutput::Send(message));
    }

    /// Says that an attempt is here no more. A later hello says it by leaving it out.
    fn send_stopped(&mut self, attempt: AttemptId, unbegun: bool, reason: Option<&str>) {
        if !unbegun {
            if self.stopped.len() >= limits::STOPPED_REMEMBERED_MAX {
                self.stopped.pop_front();
            }
            self.stopped.push_back(attempt.clone());
        }
        let reason = reason.map(str::to_owned);
        let message = ExecutorMessage::Stopped { attempt, unbegun, reason };
        if self.registered {
            self.send(message);
        } else if self.connected {
            self.unsaid.push(message);
        }
    }

    fn send_heartbeat(&mut self, now: Now) {
        self.heartbeat_at = now.mono.after(self.heartbeat);
        let (load, draining) = (self.load, self.draining);
        let number = self.leases.count(now.mono);
        self.send(ExecutorMessage::Heartbeat { load, draining, number });
    }

    fn start(&mut self, order: Box<StartOrder>) {
        let attempt = &order.attempt;
        let here = self.running.contains_key(attempt) || self.held.contains_key(attempt);
        if here || self.waiting.iter().any(|waiting| waiting.attempt == *attempt) {
            return;
        }
        if self.draining || self.waiting.len() >= limits::ATTEMPTS_PER_EXECUTOR_MAX {
            return self.send_stopped(order.attempt, true, None);
        }
        if self.stopped.contains(attempt) {
            return self.send_stopped(order.attempt, false, Some("it was stopped before"));
        }
        self.waiting.push_back(order);
    }

    /// Begins what there is room for, in order. What needs more than there is at all begins alone.
    fn begin_waiting(&mut self, now: Now) {
        while let Some(order) = self.waiting.front().filter(|_| !self.leases.is_validating()) {
            let (has, needs) = (&self.config.capability, &order.spec.needs);
            let mut occupied = self.occupied;
            occupied.add(needs);
            let fits = occupied.cores <= u64::from(has.slots) && occupied.memory <= has.memory.0;
            if !fits && !self.running.is_empty() {
                return;
            }
            if order.lease.is_some() && self.leases.is_unwanted(&order.attempt) {
                let Some(order) = self.waiting.pop_front() else { return };
                self.send_stopped(order.attempt, true, None);
                continue;
            }
            if !self.leases.allow(&order.attempt, order.lease, now.mono) {
                if self.registered && self.leases.wants_heartbeat() {
                    self.send_heartbeat(now);
                }
                return;
            }
            let Some(order) = self.waiting.pop_front() else { return };
            self.begin(now, order);
        }
    }

    fn begin(&mut self, now: Now, order: Box<StartOrder>) {
        let mut clock = order.clock.clone();
        clock.tick(&self.config.executor.actor());
        let lease = self.leases.grant(order.lease);
        if let Some(lease) = &lease {
            let (attempt, until) = (order.attempt.clone(), lease.until);
            self.outputs.push_back(ExecutorOutput::Lease { attempt, until });
        }
        let running = Running {
            since: now.mono,
            needs: order.spec.needs.clone(),
            job: order.job,
            generation: order.generation,
            clock,
            deadline: order.spec.timeout.map(|span| now.mono.after(span.duration())),
            kill_at: None,
            timed_out: false,
            stopping: false,
            told_to_end: false,
            lease,
            checkpoints: 0,
            checkpoint: None,
            carried: order.carried.clone(),
        };
        self.occupied.add(&running.needs);
        self.running.insert(order.attempt.clone(), running);
        self.outputs.push_back(ExecutorOutput::Run(order));
    }

    /// Takes an attempt that is over from those that run.
    fn end(&mut self, attempt: &AttemptId) -> Option<Running> {
        let running = self.running.remove(attempt)?;
        self.occupied.remove(&running.needs);
        Some(running)
    }

    /// Gives back what has not begun.
    fn hand_back_waiting(&mut self) {
        for order in std::mem::take(&mut self.waiting) {
            self.send_stopped(order.attempt, true, None);
        }
    }

    fn stop(&mut self, now: Now, attempt: AttemptId) {
        match self.running.get_mut(&attempt) {
            Some(running) if !running.stopping => {
                (running.stopping, running.told_to_end) = (true, true);
                running.deadline = None;
                running.kill_at = Some(now.mono.after(limits::KILL_GRACE));
                self.outputs.push_back(ExecutorOutput::Kill { attempt, kill: Kill::Terminate });
            }
            Some(_) => {}
            // Its result is on the way, and will be acknowledged.
            None if self.held.contains_key(&attempt) => {}
            None => {
                self.waiting.retain(|waiting| waiting.attempt != attempt);
                self.send_stopped(attempt, true, None);
            }
        }
    }

    /// Sends results that were held back: when nothing waits to begin any more, when there are
    /// many, or when the first has been held back for long enough.
    fn send_together(&mut self, now: Now) {
        if self.together.is_empty() || !self.registered {
            return;
        }
        let full = self.together.len() >= limits::RESULTS_TOGETHER_MAX;
        let due = self.together_at.is_some_and(|at| at <= now.mono);
        if !full && !due && !self.waiting.is_empty() {
            return;
        }
        self.together_at = None;
        for attempt in std::mem::take(&mut self.together) {
            let Some(held) = self.held.get_mut(&attempt) else { continue };
            if !held.spooled {
                held.spool_at = Some(now.mono.after(limits::SPOOL_AFTER));
            }
            let message = results::outgoing(&held.message, &self.broker);
            self.outputs.push_back(ExecutorOutput::Send(message));
        }
    }

    fn handle_ended(&mut self, now: Now, attempt: &AttemptId, mut result: JobResult) {
        let Some(mut running) = self.end(attempt) else { return };
        result.timed_out = running.timed_out;
        let done = result.is_success() && !running.told_to_end;
        if running.has_lapsed(now.mono) && !done {
            return self.send_stopped(attempt.clone(), false, Some(lease::LAPSED));
        }
        if running.stopping && !done {
            return self.send_stopped(attempt.clone(), false, None);
        }
        running.clock.tick(&self.config.executor.actor());
        let message = ResultMessage {
            attempt: attempt.clone(),
            job: running.job,
            generation: running.generation,
            result,
            clock: running.clock,
            carried: running.carried,
            took_us: u64::try_from(now.mono.since(running.since).as_micros()).ok(),
        };
        let mut held = Held { message, spooled: false, spool_at: None, acknowledged: false };
        if self.registered {
            self.together.push(attempt.clone());
            let within = now.mono.after(limits::RESULTS_TOGETHER_WITHIN);
            self.together_at.get_or_insert(within);
        } else {
            spool(&mut held, &mut self.outputs);
        }
        self.held.insert(attempt.clone(), held);
    }

    fn handle_unfit(&mut self, attempt: AttemptId, reason: &str) {
        if self.end(&attempt).is_none() {
            return;
        }
        self.outputs
            .push_back(ExecutorOutput::Notice(format!("{attempt} is handed back: {reason}")));
        self.send_stopped(attempt, false, Some(reason));
    }

    fn spool_all(&mut self) {
        (self.together, self.together_at) = (vec![], None);
        for held in self.held.values_mut() {
            spool(held, &mut self.outputs);
        }
    }

    fn check_drained(&mut self) {
        if self.draining && !self.drained && self.running.is_empty() {
            self.drained = true;
            self.spool_all();
            self.outputs.push_back(ExecutorOutput::Drained);
        }
    }
}

fn spool(held: &mut Held, outputs: &mut VecDeque<ExecutorOutput>) {
    held.spool_at = None;
    if !std::mem::replace(&mut held.spooled, true) {
        outputs.push_back(ExecutorOutput::Spool(Box::new(held.message.clone())));
    }
}
