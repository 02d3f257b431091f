//! The executor as a state machine: it runs what it is told, once, and keeps results until a
//! broker has them.
//!
//! Pure, and used like the broker's: hand in an input, drain [`Executor::poll_output`], wait.
//!
//! Laws: an attempt is run at most once in a life, however often its order comes. A result is sent
//! in every session until it is acknowledged; it is on disk whenever no acknowledgement came
//! within [`limits::SPOOL_AFTER`], before the session is waited for, and before the process ends.
//! An attempt that was told to stop has no result, unless it had succeeded already: work that was
//! really done is not thrown away.
//! Source: design sections 4 and 5.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::proto::capability::{Capability, Load};
use crate::proto::clock::Clock;
use crate::proto::id::{AttemptId, ExecutorId, Incarnation, JobId, LogId};
use crate::proto::limits;
use crate::proto::message::{
    BrokerMessage, ExecutorMessage, Hello, ResultMessage, SESSION_VERSION, StartOrder,
};
use crate::proto::result::JobResult;
use crate::proto::time::{Monotonic, Now};
use crate::proto::units::Span;

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
}

/// A result that is not acknowledged.
#[derive(Debug)]
struct Held {
    message: ResultMessage,
    spooled: bool,
    spool_at: Option<Monotonic>,
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
    held: BTreeMap<AttemptId, Held>,
    outputs: VecDeque<ExecutorOutput>,
}

impl Executor {
    /// An executor with the results that an earlier life left on disk.
    #[must_use]
    pub fn new(config: ExecutorConfig, spooled: Vec<ResultMessage>) -> Self {
        let held = spooled.into_iter().map(|message| {
            (message.attempt.clone(), Held { message, spooled: true, spool_at: None })
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
            held: held.collect(),
            outputs: VecDeque::new(),
        }
    }

    /// Whether nothing runs and no result waits to be acknowledged.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.held.is_empty()
    }

    /// Takes an input.
    pub fn handle_input(&mut self, now: Now, input: ExecutorInput) {
        match input {
            ExecutorInput::Connected => self.say_hello(now),
            ExecutorInput::Disconnected => {
                (self.connected, self.registered) = (false, false);
                self.spool_all();
            }
            ExecutorInput::Message(message) => self.handle_message(now, message),
            ExecutorInput::Ended { attempt, result } => self.handle_ended(now, &attempt, *result),
            ExecutorInput::Unfit { attempt, reason } => self.handle_unfit(attempt, &reason),
            ExecutorInput::Measured(load) => self.load = load,
            ExecutorInput::Drain => {
                self.draining = true;
                if self.registered {
                    self.send_heartbeat(now);
                }
            }
            ExecutorInput::HandBack => {
                self.draining = true;
                for (attempt, running) in &mut self.running {
                    running.stopping = true;
                    let kill = Kill::Kill;
                    self.outputs.push_back(ExecutorOutput::Kill { attempt: attempt.clone(), kill });
                }
            }
        }
        self.check_drained();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
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
                running.timed_out = true;
                running.kill_at = Some(now.mono.after(limits::KILL_GRACE));
                Kill::Terminate
            } else {
                continue;
            };
            self.outputs.push_back(ExecutorOutput::Kill { attempt: attempt.clone(), kill });
        }
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
        let running = self.running.values().flat_map(|r| [r.deadline, r.kill_at]).flatten();
        let held = self.held.values().filter_map(|held| held.spool_at);
        silence.into_iter().chain(heartbeat).chain(running).chain(held).min()
    }

    /// The next order to the outside.
    pub fn poll_output(&mut self) -> Option<ExecutorOutput> {
        self.outputs.pop_front()
    }

    fn send(&mut self, message: ExecutorMessage) {
        self.outputs.push_back(ExecutorOutput::Send(message));
    }

    fn say_hello(&mut self, now: Now) {
        (self.connected, self.registered, self.heard) = (true, false, now.mono);
        let hello = Hello {
            v: SESSION_VERSION,
            executor: self.config.executor.clone(),
            incarnation: self.config.incarnation.clone(),
            pid: self.config.pid,
            capability: self.config.capability.clone(),
            load: self.load,
            heartbeat: self.config.heartbeat.into(),
            cgroup: self.config.cgroup.clone(),
            attempts: self.running.keys().chain(self.held.keys()).cloned().collect(),
        };
        self.send(ExecutorMessage::Hello(hello));
    }

    fn send_heartbeat(&mut self, now: Now) {
        self.heartbeat_at = now.mono.after(self.heartbeat);
        let (load, draining) = (self.load, self.draining);
        self.send(ExecutorMessage::Heartbeat { load, draining });
    }

    fn handle_message(&mut self, now: Now, message: BrokerMessage) {
        if !self.connected {
            return;
        }
        self.heard = now.mono;
        match message {
            BrokerMessage::Welcome { log, heartbeat_max } => {
                self.registered = true;
                let most = heartbeat_max.map_or(self.config.heartbeat, Span::duration);
                self.heartbeat = self.config.heartbeat.min(most);
                self.outputs.push_back(ExecutorOutput::Registered(log));
                for held in self.held.values() {
                    let message = ExecutorMessage::Result(Box::new(held.message.clone()));
                    self.outputs.push_back(ExecutorOutput::Send(message));
                }
                self.send_heartbeat(now);
            }
            BrokerMessage::Refused { code, detail } => {
                (self.connected, self.registered) = (false, false);
                let reason = format!("the broker refused ({code}): {detail}");
                self.outputs.push_back(ExecutorOutput::Reconnect { reason });
            }
            BrokerMessage::Start(order) => self.start(now, order),
            BrokerMessage::Stop { attempt, .. } => self.stop(now, attempt),
            BrokerMessage::Acknowledged { attempt } => {
                if self.held.remove(&attempt).is_some_and(|held| held.spooled) {
                    self.outputs.push_back(ExecutorOutput::Unspool(attempt));
                }
            }
            BrokerMessage::Heard
            | BrokerMessage::Follow { .. }
            | BrokerMessage::Window { .. }
            | BrokerMessage::Unfollow { .. } => {}
        }
    }

    fn start(&mut self, now: Now, order: Box<StartOrder>) {
        let attempt = order.attempt.clone();
        if self.running.contains_key(&attempt) || self.held.contains_key(&attempt) {
            return;
        }
        if self.draining {
            self.send(ExecutorMessage::Stopped { attempt });
            return;
        }
        let mut clock = order.clock.clone();
        clock.tick(&self.config.executor.actor());
        let running = Running {
            job: order.job,
            generation: order.generation,
            clock,
            deadline: order.spec.timeout.map(|span| now.mono.after(span.duration())),
            kill_at: None,
            timed_out: false,
            stopping: false,
        };
        self.running.insert(attempt, running);
        self.outputs.push_back(ExecutorOutput::Run(order));
    }

    fn stop(&mut self, now: Now, attempt: AttemptId) {
        match self.running.get_mut(&attempt) {
            Some(running) if !running.stopping => {
                running.stopping = true;
                running.deadline = None;
                running.kill_at = Some(now.mono.after(limits::KILL_GRACE));
                self.outputs.push_back(ExecutorOutput::Kill { attempt, kill: Kill::Terminate });
            }
            Some(_) => {}
            // Its result is on the way, and will be acknowledged.
            None if self.held.contains_key(&attempt) => {}
            None => self.send(ExecutorMessage::Stopped { attempt }),
        }
    }

    fn handle_ended(&mut self, now: Now, attempt: &AttemptId, mut result: JobResult) {
        let Some(mut running) = self.running.remove(attempt) else { return };
        result.timed_out = running.timed_out;
        if running.stopping && !result.is_success() {
            if self.registered {
                self.send(ExecutorMessage::Stopped { attempt: attempt.clone() });
            }
            return;
        }
        running.clock.tick(&self.config.executor.actor());
        let message = ResultMessage {
            attempt: attempt.clone(),
            job: running.job,
            generation: running.generation,
            result,
            clock: running.clock,
        };
        let mut held = Held { message, spooled: false, spool_at: None };
        if self.registered {
            held.spool_at = Some(now.mono.after(limits::SPOOL_AFTER));
            self.send(ExecutorMessage::Result(Box::new(held.message.clone())));
        } else {
            spool(&mut held, &mut self.outputs);
        }
        self.held.insert(attempt.clone(), held);
    }

    fn handle_unfit(&mut self, attempt: AttemptId, reason: &str) {
        if self.running.remove(&attempt).is_none() {
            return;
        }
        self.outputs
            .push_back(ExecutorOutput::Notice(format!("{attempt} is handed back: {reason}")));
        // In a later session the hello does not name it, which says the same.
        if self.registered {
            self.send(ExecutorMessage::Stopped { attempt });
        }
    }

    fn spool_all(&mut self) {
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
