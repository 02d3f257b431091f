//! An executor's machine: its process, the jobs' processes, its disk for results, its death.
//!
//! The same loop as the real one: hand in one input, carry out the outputs in order, and hold
//! everything behind a result that is being written until it is on disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ucp::proto::capability::{Capability, Load, Needs};
use ucp::proto::executor::{Executor, ExecutorConfig, ExecutorInput, ExecutorOutput};
use ucp::proto::id::{AttemptId, ExecutorId, Incarnation};
use ucp::proto::limits;
use ucp::proto::message::{BrokerMessage, ExecutorMessage, ResultMessage};
use ucp::proto::ranges::Ranges;
use ucp::proto::result::Stream;
use ucp::proto::rng::Rng;
use ucp::proto::time::Monotonic;
use ucp::proto::units::Size;

use super::clocks::HostClock;
use super::cluster::World;
use super::counters::Sometimes;
use super::history::Attempts;
use super::queue::{Draw, Event};
use super::trace::trace;
use super::workload::capability;

/// So long an attempt may stand at an executor without any result of it: what the broker bears
/// with, and messages there and back on a slow network.
const STANDING_MAX_US: u64 = 250_000 + 2_250_000;

fn named(attempt: &AttemptId, elements: Option<&Ranges>) -> Vec<AttemptId> {
    let of = |element| AttemptId::new(attempt.dot.clone(), Some(element));
    elements.map_or_else(|| vec![attempt.clone()], |elements| elements.iter().map(of).collect())
}

/// A job's processes.
pub struct Running {
    /// Of which plan.
    pub plan: usize,
    /// Which run of it.
    pub run: u32,
    /// What it occupies.
    pub needs: Needs,
}

/// An executor's machine and process.
pub struct ExecutorHost {
    /// Its lasting identity.
    pub id: ExecutorId,
    /// What it has.
    pub capability: Capability,
    /// Whether it runs on the broker's machine, which then sees its process end.
    pub local: bool,
    /// How many processes there were.
    pub life: u32,
    /// How many boots there were.
    boot: u32,
    /// The process, if one runs.
    pub core: Option<Executor>,
    /// The machine's clocks.
    pub clock: HostClock,
    /// Stopped (as by SIGSTOP) until then.
    pub paused_until: u64,
    /// Until then a fault may be the reason for whatever is said of it.
    pub troubled_until: u64,
    /// Nothing disturbs it, its session or the broker from then on.
    pub calm_from: u64,
    /// The connection, if there is one.
    pub link: Option<usize>,
    /// Orders that stand here and have not begun, with the times when they came.
    standing: BTreeMap<AttemptId, u64>,
    /// When the last result left.
    result_at: u64,
    /// Results that left at that moment.
    results_together: u32,
    /// Results that it was asked to keep.
    pub kept: BTreeSet<AttemptId>,
    /// Whether its jobs are in a cgroup, so that their end can be proven.
    pub cgroup: bool,
    /// Nobody reaches it until then.
    pub unreachable_until: u64,
    /// When its process began.
    pub began_at: u64,
    /// Until when attempts may run that must not overlap, by its clock.
    pub leases: BTreeMap<AttemptId, Monotonic>,
    /// The processes of its jobs.
    pub running: BTreeMap<AttemptId, Running>,
    /// The results on its disk.
    pub spool: BTreeMap<AttemptId, ResultMessage>,
    /// The result that was removed last: the removal may be undone by a crash.
    removed: Option<ResultMessage>,
    gate: VecDeque<ExecutorOutput>,
    spooling: Option<Box<ResultMessage>>,
    timer_at: u64,
}

impl ExecutorHost {
    /// A machine without a process.
    pub fn new(index: usize, skew: bool, rng: &mut Rng) -> Self {
        Self {
            id: format!("van{index}-{index:08x}").parse().expect("a name"),
            capability: capability(index, rng),
            local: rng.chance(40),
            kept: BTreeSet::new(),
            cgroup: rng.chance(50),
            unreachable_until: 0,
            began_at: 0,
            leases: BTreeMap::new(),
            life: 0,
            boot: 1,
            core: None,
            clock: HostClock::boot(0, skew, rng),
            paused_until: 0,
            troubled_until: 0,
            calm_from: 0,
            link: None,
            standing: BTreeMap::new(),
            result_at: 0,
            results_together: 0,
            running: BTreeMap::new(),
            spool: BTreeMap::new(),
            removed: None,
            gate: VecDeque::new(),
            spooling: None,
            timer_at: u64::MAX,
        }
    }

    /// Whether nothing runs and no result waits.
    pub fn is_idle(&self) -> bool {
        self.core.as_ref().is_some_and(Executor::is_idle)
    }
}

impl World {
    /// An executor's process begins with the results on its disk.
    pub fn start_executor(&mut self, index: usize) {
        let seed = self.rng.next_u64();
        let load = self.draw_load();
        let host = &mut self.executors[index];
        if host.core.is_some() {
            return;
        }
        host.life += 1;
        host.began_at = self.now;
        host.leases.clear();
        let config = ExecutorConfig {
            cgroup: host.cgroup.then(|| "/cgroup".to_owned()),
            executor: host.id.clone(),
            incarnation: Incarnation { boot: format!("boot{}", host.boot), life: seed },
            pid: host.life,
            capability: host.capability.clone(),
            heartbeat: limits::HEARTBEAT,
            silence_max: Duration::from_secs(4),
        };
        let spooled: Vec<ResultMessage> = host.spool.values().cloned().collect();
        if !spooled.is_empty() {
            self.counters.count(Sometimes::SpoolRead);
        }
        host.core = Some(Executor::new(config, spooled));
        host.paused_until = 0;
        host.timer_at = u64::MAX;
        let life = host.life;
        trace!(self, "executor {index} begins life {life}");
        self.kill_leftovers(index);
        self.tell_executor(index, ExecutorInput::Measured(load));
        self.queue.push(self.now + 100, Event::ExecutorConnect { executor: index, life });
    }

    /// What a machine has at the moment; plenty once the faults are over.
    pub fn draw_load(&mut self) -> Load {
        let rich = self.healing || self.rng.chance(60);
        let battery = u8::try_from(self.rng.range(0, 100)).expect("percent");
        let cpu_free = u8::try_from(self.rng.range(0, 100)).expect("percent");
        let disk = self.rng.range(0, 100) << 30;
        if rich {
            return Load { disk_free: Size(1 << 40), cpu_free: 100, battery: Some(100) };
        }
        Load { disk_free: Size(disk), cpu_free, battery: Some(battery) }
    }

    /// An executor tries to connect.
    pub fn executor_connects(&mut self, index: usize, life: u32) {
        let host = &mut self.executors[index];
        if host.life != life || host.core.is_none() || host.link.is_some() {
            return;
        }
        let cut_off = !host.local && self.now < self.cut_off_until;
        let unreachable = cut_off || self.now < host.unreachable_until;
        if self.broker.core.is_none() || self.now < host.paused_until || unreachable {
            let pause = self.rng.range(20_000, 400_000);
            let event = Event::ExecutorConnect { executor: index, life };
            return self.queue.push(self.now + pause, event);
        }
        host.link = Some(self.net.connect(index));
        trace!(self, "executor {index} connects: session {}", host.link.unwrap_or(0) + 1);
        self.tell_executor(index, ExecutorInput::Connected);
    }

    /// Hands an input to an executor and carries out what comes of it.
    pub fn tell_executor(&mut self, index: usize, input: ExecutorInput) {
        let host = &mut self.executors[index];
        let Some(core) = &mut host.core else { return };
        let now = host.clock.now(self.now);
        core.handle_input(now, input);
        self.drain_executor(index);
    }

    /// An executor's timer may be due.
    pub fn executor_timer(&mut self, index: usize, life: u32) {
        let host = &mut self.executors[index];
        if host.life != life || self.now < host.timer_at {
            return;
        }
        let Some(core) = &mut host.core else { return };
        let now = host.clock.now(self.now);
        host.timer_at = u64::MAX;
        if core.poll_timeout().is_some_and(|at| at <= now.mono) {
            core.handle_timeout(now);
        }
        self.drain_executor(index);
        self.check_standing(index);
    }

    /// What stands at an executor ahead of its slots begins or is called back: it does not stand
    /// there for longer than the broker waits for a result and messages take, counted from the
    /// last result, as long as nothing disturbs any of them.
    fn check_standing(&mut self, index: usize) {
        let host = &self.executors[index];
        let Some((attempt, came)) = host.standing.iter().min_by_key(|(_, came)| **came) else {
            return;
        };
        let since = host.result_at.max(host.calm_from).max(*came);
        let span = self.now.saturating_sub(since);
        self.checks.demand("standing", span <= STANDING_MAX_US, || {
            format!("{attempt} stands at executor {index} for {span} us")
        });
    }

    fn drain_executor(&mut self, index: usize) {
        let host = &mut self.executors[index];
        let Some(core) = &mut host.core else { return };
        while let Some(output) = core.poll_output() {
            host.gate.push_back(output);
        }
        let timeout = core.poll_timeout();
        if let Some(at) = timeout {
            let when = host.clock.when(at).max(self.now + 1);
            if when < host.timer_at {
                host.timer_at = when;
                let event = Event::ExecutorTimer { executor: index, life: host.life };
                self.queue.push(when, event);
            }
        }
        self.note_standing(index);
        self.open_executor_gate(index);
    }

    fn open_executor_gate(&mut self, index: usize) {
        loop {
            let host = &mut self.executors[index];
            if host.spooling.is_some() || host.core.is_none() {
                return;
            }
            let Some(output) = host.gate.pop_front() else { return };
            self.carry_out(index, output);
        }
    }

    fn carry_out(&mut self, index: usize, output: ExecutorOutput) {
        let life = self.executors[index].life;
        match output {
            ExecutorOutput::Send(message) => self.send_up(index, message),
            ExecutorOutput::Run(order) => self.begin(index, &order),
            ExecutorOutput::Kill { attempt, kill } => self.signal(index, attempt, kill),
            ExecutorOutput::Spool(message) => {
                self.counters.count(Sometimes::SpoolUsed);
                let latency = self.rng.range(100, 20_000);
                self.executors[index].spooling = Some(message);
                self.queue.push(self.now + latency, Event::SpoolDone { executor: index, life });
            }
            ExecutorOutput::Lease { attempt, until } => {
                let host = &mut self.executors[index];
                host.leases.insert(attempt.clone(), until);
                let at = host.clock.when(until);
                self.queue.push(at, Event::LeaseOver { executor: index, life, attempt });
            }
            ExecutorOutput::Unspool(attempt) => {
                let host = &mut self.executors[index];
                host.removed = host.spool.remove(&attempt);
            }
            ExecutorOutput::Reconnect { reason } => {
                trace!(self, "executor {index} gives its session up: {reason}");
                self.executor_closes(index);
                if self.rng.chance(50) {
                    self.tell_executor(index, ExecutorInput::Disconnected);
                }
            }
            ExecutorOutput::Drained => {
                self.counters.count(Sometimes::Drained);
                let back = self.now + self.rng.range(10_000, 2_000_000);
                self.kill_executor(index, false, back);
            }
            ExecutorOutput::Forget(_)
            | ExecutorOutput::Registered(_)
            | ExecutorOutput::Notice(_) => {}
        }
    }

    /// A result is on an executor's disk.
    pub fn spool_done(&mut self, index: usize, life: u32) {
        let host = &mut self.executors[index];
        if host.life != life || host.core.is_none() {
            return;
        }
        if let Some(message) = host.spooling.take() {
            host.spool.insert(message.attempt.clone(), *message);
        }
        self.open_executor_gate(index);
    }

    fn executor_closes(&mut self, index: usize) {
        if let Some(link) = self.executors[index].link.take() {
            let delay = self.net.delay(&mut self.rng);
            let line = self.net.link(link);
            line.executor_open = false;
            if let Some(at) = line.up.arrival(self.now, delay) {
                let (process_gone, tree_gone) = (false, false);
                self.queue.push(at, Event::BrokerSeesClose { link, process_gone, tree_gone });
            }
        }
        let life = self.executors[index].life;
        let pause = self.rng.range(10_000, 500_000);
        self.queue.push(self.now + pause, Event::ExecutorConnect { executor: index, life });
    }

    /// The executor's end of a connection learns that it is over.
    pub fn executor_sees_close(&mut self, link: usize) {
        let line = self.net.link(link);
        let index = line.executor;
        if !line.executor_open || self.executors[index].link != Some(link) {
            return;
        }
        line.executor_open = false;
        line.up.kill(self.now);
        self.executors[index].link = None;
        trace!(self, "executor {index} sees the end of its session");
        self.executor_closes(index);
        self.tell_executor(index, ExecutorInput::Disconnected);
    }

    /// The broker's message reaches the executor's machine.
    pub fn message_reaches_executor(&mut self, link: usize, message: BrokerMessage) {
        let line = self.net.link(link);
        let index = line.executor;
        let open = line.executor_open && line.down.carries(self.now);
        if !open || self.executors[index].link != Some(link) {
            return;
        }
        self.messages += 1;
        trace!(self, "executor {index} gets {message:?}");
        self.note_orders(index, &message);
        self.tell_executor(index, ExecutorInput::Message(message));
    }

    /// Notes what comes to stand at an executor.
    fn note_orders(&mut self, index: usize, message: &BrokerMessage) {
        let now = self.now;
        let host = &mut self.executors[index];
        match message {
            BrokerMessage::Acknowledged { attempt, elements, keep } => {
                for attempt in named(attempt, elements.as_ref()) {
                    host.kept.remove(&attempt);
                    if *keep {
                        host.kept.insert(attempt);
                    }
                }
                if *keep {
                    self.counters.count(Sometimes::Kept);
                }
            }
            BrokerMessage::Released { attempt, elements } => {
                for attempt in named(attempt, elements.as_ref()) {
                    host.kept.remove(&attempt);
                }
            }
            BrokerMessage::Stop { reason, .. } if reason == "another attempt counts" => {
                self.counters.count(Sometimes::GhostStopped);
            }
            BrokerMessage::Start(order) => {
                let dot = &order.attempt.dot;
                let mut comes = |element| {
                    let attempt = AttemptId::new(dot.clone(), element);
                    host.standing.entry(attempt).or_insert(now);
                };
                match &order.elements {
                    Some(elements) => elements.iter().for_each(|element| comes(Some(element))),
                    None => comes(order.attempt.element),
                }
            }
            BrokerMessage::Recall if !host.standing.is_empty() => {
                self.counters.count(Sometimes::Recalled);
            }
            _ => {}
        }
    }

    /// Notes what does not stand at an executor any more, and counts what stays behind.
    fn note_standing(&mut self, index: usize) {
        let host = &mut self.executors[index];
        let Some(core) = &host.core else { return };
        if host.standing.is_empty() {
            return;
        }
        // What waits has come, so as many are the same ones.
        if core.waiting().count() != host.standing.len() {
            let here: BTreeSet<&AttemptId> = core.waiting().collect();
            host.standing.retain(|attempt, _| here.contains(attempt));
        }
        if host.standing.is_empty() {
            return;
        }
        self.counters.count(Sometimes::Ahead);
        let cores: u64 = host.running.values().map(|r| u64::from(r.needs.cores)).sum();
        if cores < u64::from(host.capability.slots) {
            self.counters.count(Sometimes::MemoryAwaited);
        }
    }

    fn send_up(&mut self, index: usize, message: ExecutorMessage) {
        let Some(link) = self.executors[index].link else { return };
        if matches!(message, ExecutorMessage::Result(_)) {
            let now = self.now;
            let host = &mut self.executors[index];
            let more = host.result_at == now;
            host.results_together = if more { host.results_together + 1 } else { 1 };
            host.result_at = now;
            if host.results_together == 2 {
                self.counters.count(Sometimes::Together);
            }
        }
        let lie = match &message {
            ExecutorMessage::Result(said) if self.lying && self.rng.chance(3) => {
                let mut other = said.clone();
                other.result.stdout = Stream::inline(b"another story".to_vec());
                let made = self.checks.produced.entry(other.attempt.clone()).or_default();
                made.push(other.result.digest());
                Some(ExecutorMessage::Result(other))
            }
            _ => None,
        };
        for message in [Some(message), lie].into_iter().flatten() {
            let delay = self.net.delay(&mut self.rng);
            if let Some(at) = self.net.link(link).up.arrival(self.now, delay) {
                let message = Box::new(message);
                self.queue.push(at, Event::ToBroker { link, message });
            }
        }
    }

    /// An executor's process dies with all its jobs, perhaps with its machine.
    pub fn kill_executor(&mut self, index: usize, boots: bool, back_at: u64) {
        let now = self.now;
        let host = &mut self.executors[index];
        if host.core.take().is_none() {
            return;
        }
        trace!(self, "executor {index} dies, machine boots: {boots}");
        if !host.running.is_empty() {
            self.counters.count(Sometimes::ExecutorKilledBusy);
        }
        let left_for = self.leave_processes(index, boots);
        let (seen_at, tree_gone) = self.proof(index, left_for);
        let host = &mut self.executors[index];
        // What was asked for in the last moment may not have got to the disk.
        let mut unwritten = Attempts::default();
        let spool = &host.spool;
        host.kept.retain(|attempt| {
            let written = spool.contains_key(attempt);
            if !written {
                unwritten.insert(attempt);
            }
            written
        });
        self.checks.owed.subtract(&unwritten);
        host.running.clear();
        host.leases.clear();
        host.standing.clear();
        host.gate.clear();
        if host.spooling.take().is_some() {
            self.counters.count(Sometimes::UnsyncedSpoolLost);
        }
        let removed = host.removed.take();
        if boots {
            host.boot += 1;
            host.clock = HostClock::boot(now, self.skew, &mut self.rng);
            if let Some(message) = removed {
                host.spool.insert(message.attempt.clone(), message);
            }
        }
        let gone = host.local && !boots;
        let link = host.link.take();
        self.trouble(index, back_at - now);
        if let Some(link) = link {
            let noticed = !boots || self.rng.chance(50);
            let delay = self.net.delay(&mut self.rng);
            let line = self.net.link(link);
            line.executor_open = false;
            let from = if boots { back_at } else { now };
            if noticed && let Some(at) = line.up.arrival(from, delay) {
                let at = if gone { at.max(seen_at) } else { at };
                let (process_gone, tree_gone) = (gone, gone && tree_gone);
                self.queue.push(at, Event::BrokerSeesClose { link, process_gone, tree_gone });
            }
        }
        self.queue.push(back_at, Event::ExecutorStart { executor: index });
    }

    /// For a while whatever is said of an executor has a reason.
    pub fn trouble(&mut self, index: usize, span: u64) {
        let until = self.now + span + 15_000_000;
        let calm = self.now + span + 8_000_000;
        let host = &mut self.executors[index];
        host.troubled_until = host.troubled_until.max(until);
        host.calm_from = host.calm_from.max(calm);
    }
}
