//! The broker's process: its loop, its disk, its death and its new life.
//!
//! The same loop as the real one: take what has come in, let the core do what is due, drain its
//! outputs, send the batch to the disk, and hold everything behind it, in order, until it is
//! durable; go on meanwhile with several batches in flight.

use std::collections::{BTreeMap, VecDeque};

use ucp::proto::broker::{Broker, BrokerConfig, Opening};
use ucp::proto::event::{Batch, Input, Output};
use ucp::proto::id::{LogId, RequestId, SessionId};
use ucp::proto::limits;
use ucp::proto::message::ExecutorMessage;
use ucp::proto::rng::Rng;
use ucp::proto::time::Now;
use ucp::proto::view::Detection;

use super::checkers::Checks;
use super::clocks::HostClock;
use super::cluster::{Harm, World};
use super::counters::Sometimes;
use super::disk::Damage;
use super::network::Network;
use super::queue::{Draw, Event};
use super::trace::trace;

/// What one drain of the core gave: it leaves when it is durable and all before it has left.
struct Parcel {
    durable: bool,
    /// Whether it came with a batch.
    changed: bool,
    outputs: Vec<Output>,
}

/// The broker's machine and process.
pub struct BrokerHost {
    /// The process, if one runs.
    pub core: Option<Broker>,
    /// How many processes there were.
    pub life: u32,
    /// The machine's clocks.
    pub clock: HostClock,
    /// The log that this life writes.
    pub log: Option<LogId>,
    /// Stopped (as by SIGSTOP) until then.
    pub paused_until: u64,
    /// Whose reply goes where: operation and attempt of a client.
    pub requests: BTreeMap<RequestId, (usize, u32)>,
    inbox: VecDeque<Input>,
    wake_at: u64,
    gate: VecDeque<Parcel>,
    next_request: u64,
}

impl BrokerHost {
    /// A machine without a process.
    pub fn new(skew: bool, rng: &mut Rng) -> Self {
        Self {
            core: None,
            life: 0,
            clock: HostClock::boot(0, skew, rng),
            log: None,
            paused_until: 0,
            requests: BTreeMap::new(),
            inbox: VecDeque::new(),
            wake_at: u64::MAX,
            gate: VecDeque::new(),
            next_request: 0,
        }
    }

    /// A number for a request of a client.
    pub fn register(&mut self, op: usize, attempt: u32) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.requests.insert(request, (op, attempt));
        request
    }
}

/// Ends of elements that are told to a client before it took any.
pub const ELEMENTS_TOLD_MAX: usize = 4;

/// How this simulation's brokers are set.
pub fn config(has_others: bool) -> BrokerConfig {
    let elements_told_max = ELEMENTS_TOLD_MAX;
    let name = "north".into();
    BrokerConfig { name, elements_told_max, has_others, ..BrokerConfig::default() }
}

impl World {
    /// The broker's process begins with what its disk has.
    pub fn start_broker(&mut self) {
        if self.broker.core.is_some() {
            return;
        }
        let seed = self.rng.next_u64();
        let mut core = Broker::new(config(self.has_others), Rng::from_seed(seed));
        for sealed in &self.disk.durable {
            if let Err(error) = core.restore(sealed) {
                self.checks.fail("restore", error.to_string());
                return;
            }
        }
        let opening = self.disk.opening(self.harm == Harm::TrustLostHead, &mut self.rng);
        trace!(self, "broker begins life {} with {opening:?}", self.broker.life + 1);
        let now = self.broker.clock.now(self.now);
        self.checks.life(now.mono);
        self.broker.life += 1;
        self.broker.log = Some(match &opening {
            Opening::Continue(log) => log.clone(),
            Opening::Fresh { log, .. } => log.clone(),
        });
        core.open(now, opening);
        self.broker.core = Some(core);
        self.broker.paused_until = 0;
        self.broker.wake_at = u64::MAX;
        self.drain(now);
    }

    /// Something comes in for the broker's loop.
    pub fn tell_broker(&mut self, input: Input) {
        if self.broker.core.is_some() {
            self.broker.inbox.push_back(input);
            let pace = self.rng.range(1, 150);
            self.wake_broker_at(self.now + pace);
        }
    }

    fn wake_broker_at(&mut self, time: u64) {
        let time = time.max(self.broker.paused_until);
        if time < self.broker.wake_at {
            self.broker.wake_at = time;
            self.queue.push(time, Event::BrokerWake { life: self.broker.life });
        }
    }

    /// The loop takes what has come in.
    pub fn broker_wakes(&mut self, life: u32) {
        if life != self.broker.life || self.now < self.broker.wake_at {
            return;
        }
        if self.now < self.broker.paused_until {
            self.broker.wake_at = u64::MAX;
            return self.wake_broker_at(self.broker.paused_until);
        }
        let Some(mut core) = self.broker.core.take() else { return };
        self.broker.wake_at = u64::MAX;
        // A full pipeline: the disk's completion wakes the loop again.
        if self.disk.in_flight() >= limits::BATCHES_IN_FLIGHT_MAX {
            self.broker.core = Some(core);
            return;
        }
        let now = self.broker.clock.now(self.now);
        for _ in 0..limits::INPUTS_PER_BATCH_MAX {
            let Some(input) = self.broker.inbox.pop_front() else { break };
            core.handle_input(now, input);
        }
        if core.poll_timeout().is_some_and(|at| at <= now.mono) {
            core.handle_timeout(now);
        }
        self.broker.core = Some(core);
        self.drain(now);
    }

    fn drain(&mut self, now: Now) {
        let Some(core) = &mut self.broker.core else { return };
        let mut batch = None;
        let mut outputs = Vec::new();
        while let Some(output) = core.poll_output() {
            match output {
                Output::Persist(_) if batch.is_some() || !outputs.is_empty() => {
                    self.checks.fail("persist-first", "a batch is not the first output".into());
                }
                Output::Persist(written) => batch = Some(written),
                other => outputs.push(other),
            }
        }
        let timeout = core.poll_timeout();
        match batch {
            Some(batch) => self.persist(now, batch, outputs),
            None if self.harm == Harm::AckBeforePersist => self.leave(outputs),
            None => self.broker.gate.push_back(Parcel { durable: true, changed: false, outputs }),
        }
        self.open_gate();
        if !self.broker.inbox.is_empty() {
            self.wake_broker_at(self.now + 1);
        }
        if let Some(at) = timeout {
            let when = self.broker.clock.when(at).max(self.now + 1);
            self.wake_broker_at(when);
        }
    }

    fn persist(&mut self, now: Now, batch: Batch, outputs: Vec<Output>) {
        self.observe_written(&batch);
        self.checks.written(now.mono, &batch);
        if self.disk.in_flight() > 0 {
            self.counters.count(Sometimes::Pipelined);
        }
        let latency = self.draw_disk_latency();
        let done = self.disk.write(self.now, latency, batch.facts);
        self.queue.push(done, Event::DiskDone { life: self.broker.life });
        if self.harm == Harm::AckBeforePersist {
            self.broker.gate.push_back(Parcel {
                durable: false,
                changed: true,
                outputs: Vec::new(),
            });
            return self.leave(outputs);
        }
        self.broker.gate.push_back(Parcel { durable: false, changed: true, outputs });
    }

    /// The oldest batch is durable.
    pub fn disk_done(&mut self, life: u32) {
        if life != self.broker.life || self.broker.core.is_none() {
            return;
        }
        if self.now < self.broker.paused_until {
            let until = self.broker.paused_until;
            return self.queue.push(until, Event::DiskDone { life });
        }
        let was_full = self.disk.in_flight() >= limits::BATCHES_IN_FLIGHT_MAX;
        let from = self.disk.complete();
        self.note_durable(from);
        if let Some(parcel) = self.broker.gate.iter_mut().find(|parcel| !parcel.durable) {
            parcel.durable = true;
        }
        self.open_gate();
        if was_full || !self.broker.inbox.is_empty() {
            self.wake_broker_at(self.now + 1);
        }
    }

    fn note_durable(&mut self, from: usize) {
        for place in from..self.disk.durable.len() {
            trace!(self, "durable {}", self.disk.durable[place].line);
            self.checks.durable(&self.disk.durable[place]);
        }
    }

    fn open_gate(&mut self) {
        while self.broker.gate.front().is_some_and(|parcel| parcel.durable) {
            let parcel = self.broker.gate.pop_front().expect("looked at");
            self.checks.exact = !parcel.changed;
            self.leave(parcel.outputs);
        }
    }

    fn leave(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Persist(_) => {}
                Output::Reply { request, reply } => {
                    trace!(self, "broker replies {request:?} {reply:?}");
                    self.checks.reply_leaves(&reply);
                    if self.checks.told_to(request, &reply) {
                        self.counters.count(Sometimes::CreditUsedUp);
                    }
                    self.reply_leaves(request, reply);
                }
                Output::Send { session, message } => {
                    let Some(link) = self.net.of_session(session) else {
                        self.checks.fail("session", format!("{session:?} never was"));
                        continue;
                    };
                    let executor = self.net.link(link).executor;
                    self.checks.message_leaves(&self.executors[executor].id, &message);
                    self.send_down(link, message);
                }
                Output::Close { session } => self.broker_closes(session),
                Output::Notice(text) => trace!(self, "broker notices: {text}"),
            }
        }
    }

    fn broker_closes(&mut self, session: SessionId) {
        let Some(link) = self.net.of_session(session) else { return };
        trace!(self, "broker closes {session:?}");
        if !self.net.link(link).broker_open {
            return;
        }
        self.net.link(link).broker_open = false;
        self.fin_down(link);
        // The real session's task may end with a word about it, or without.
        if self.rng.chance(50) {
            self.tell_broker(Input::SessionClosed {
                session,
                process_gone: false,
                tree_gone: false,
            });
        }
    }

    /// An executor's message reaches the broker's machine.
    pub fn message_reaches_broker(&mut self, link: usize, message: ExecutorMessage) {
        let at = self.now;
        let line = self.net.link(link);
        if !line.broker_open || !line.up.carries(at) {
            return;
        }
        self.messages += 1;
        let session = Network::session(link);
        let input = match message {
            ExecutorMessage::Hello(hello) => {
                line.greeted = true;
                let local = self.executors[line.executor].local;
                self.checks.announced(&hello);
                Input::SessionOpened { session, hello, local }
            }
            message => {
                self.observe_message(&message);
                Input::Message { session, message }
            }
        };
        trace!(self, "broker gets {input:?}");
        self.tell_broker(input);
    }

    /// The broker's end of a connection learns that it is over.
    pub fn broker_sees_close(&mut self, link: usize, process_gone: bool, tree_gone: bool) {
        let line = self.net.link(link);
        if !line.broker_open {
            return;
        }
        line.broker_open = false;
        let greeted = line.greeted;
        line.down.kill(self.now);
        trace!(self, "broker sees the end of session {}", link + 1);
        if greeted {
            if process_gone {
                self.counters.count(Sometimes::LocalDeathSeen);
            }
            let session = Network::session(link);
            self.tell_broker(Input::SessionClosed { session, process_gone, tree_gone });
        }
    }

    /// The broker's process dies, perhaps with its machine; a new one begins later.
    pub fn kill_broker(&mut self, damage: Damage, back_at: u64) {
        let Some(core) = self.broker.core.take() else { return };
        self.note_detection(&core.status().detection);
        trace!(self, "broker dies: {damage:?}");
        self.broker.inbox.clear();
        self.broker.gate.clear();
        if self.disk.in_flight() > 0 {
            self.counters.count(Sometimes::BrokerKilledInFlight);
        }
        let (from, survived, lost) = self.disk.crash(&mut self.rng);
        self.note_durable(from);
        if survived > 0 {
            self.counters.count(Sometimes::UnseenBatchSurvived);
        }
        if lost > 0 {
            self.counters.count(Sometimes::UnsyncedBatchLost);
        }
        let before = self.disk.durable.len();
        let left = self.disk.damage(damage, &mut self.rng);
        if left < before {
            self.counters.count(Sometimes::FactsForgotten);
        }
        if damage == Damage::Restored {
            self.checks.restored(&self.disk.durable);
            for attempt in self.executors.iter().flat_map(|host| &host.kept) {
                let Checks { safe, reported, .. } = &self.checks;
                if !reported.contains(attempt) && !safe.contains(attempt) {
                    self.checks.owed.insert(attempt);
                    self.counters.count(Sometimes::OwedReturned);
                }
            }
        }
        let boots = matches!(damage, Damage::Reboot | Damage::Restored);
        self.end_links_of_broker(boots, back_at);
        self.end_requests(boots);
        if boots {
            let skew = self.skew;
            self.broker.clock = HostClock::boot(self.now, skew, &mut self.rng);
        }
        self.queue.push(back_at, Event::BrokerStart);
    }

    fn end_links_of_broker(&mut self, boots: bool, back_at: u64) {
        for link in self.net.open_at_broker() {
            let delay = self.net.delay(&mut self.rng);
            let noticed = !boots || self.rng.chance(50);
            let line = self.net.link(link);
            line.broker_open = false;
            let from = if boots { back_at } else { self.now };
            if noticed && let Some(at) = line.down.arrival(from, delay) {
                self.queue.push(at, Event::ExecutorSeesClose { link });
            }
        }
    }

    /// Counts how executors were lost and found in one life.
    pub fn note_detection(&mut self, seen: &Detection) {
        let seen = [
            (seen.doubts, Sometimes::Doubted),
            (seen.own_pauses, Sometimes::OwnPause),
            (seen.lost_ended, Sometimes::LostEnded),
            (seen.lost_silent, Sometimes::LostSilent),
            (seen.lost_away, Sometimes::LostAway),
            (seen.clones, Sometimes::CloneRefused),
            (seen.avoided, Sometimes::Avoided),
            (seen.equivocations, Sometimes::Equivocation),
        ];
        let seen = seen.into_iter().filter(|(count, _)| *count > 0);
        seen.for_each(|(_, what)| self.counters.count(what));
    }

    /// Another broker holds by now what is durable here.
    pub fn held_elsewhere(&mut self) {
        let pause = self.rng.range(200_000, 9_000_000);
        let pause = if self.healing { 200_000 } else { pause };
        self.queue.push(self.now + pause, Event::HeldElsewhere);
        let vector = self.checks.durable.logs.vector();
        let Checks { safe, reported, .. } = &mut self.checks;
        safe.extend(reported);
        self.tell_broker(Input::HeldElsewhere { by: None, vector });
    }

    fn end_requests(&mut self, boots: bool) {
        let requests = std::mem::take(&mut self.broker.requests);
        for (_, (op, attempt)) in requests {
            if !boots && self.rng.chance(80) {
                let delay = self.net.delay(&mut self.rng);
                self.queue.push(self.now + delay, Event::OpTimeout { op, attempt });
            }
        }
    }
}
