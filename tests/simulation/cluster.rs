//! The world of one seed: one broker, its executors and clients, and the loop that lets one event
//! after the other happen.
//!
//! Two phases: first everything may break and safety is checked; then nothing breaks any more, all
//! is brought back, and everything that can end must end (finale.rs).

use std::collections::BTreeMap;

use ucp::proto::capability::Capability;
use ucp::proto::event::Batch;
use ucp::proto::fact::{Body, Fact};
use ucp::proto::id::{AttemptId, ExecutorId, JobId, TaskId};
use ucp::proto::message::{BrokerMessage, ExecutorMessage};
use ucp::proto::ranges::Ranges;
use ucp::proto::rng::Rng;
use ucp::proto::view::JobState;

use super::broker_host::BrokerHost;
use super::checkers::{Checks, Failure};
use super::clients::Op;
use super::counters::{Counters, Sometimes};
use super::disk::Disk;
use super::executor_host::ExecutorHost;
use super::faults::{self, Fault};
use super::history::{Book, End, History};
use super::network::Network;
use super::processes::Processes;
use super::queue::{Draw, Event, Queue};
use super::trace::{Trace, trace};
use super::workload::{Arrays, Plan};

/// A fault of the harness itself, which a checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// None.
    None,
    /// What depends on a batch leaves before the batch is durable.
    AckBeforePersist,
    /// A broker goes on with its log though its disk was replaced by an older copy.
    TrustLostHead,
}

/// How a seed is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Sets everything.
    pub seed: u64,
    /// Whether wall clocks are wrong.
    pub skew: bool,
    /// Whether every event is written out.
    pub trace: bool,
    /// What is broken on purpose.
    pub harm: Harm,
}

/// Everything of one seed.
pub struct World {
    pub now: u64,
    pub queue: Queue,
    pub rng: Rng,
    pub skew: bool,
    pub harm: Harm,
    pub trace: Trace,
    pub net: Network,
    pub disk: Disk,
    pub broker: BrokerHost,
    pub executors: Vec<ExecutorHost>,
    pub capabilities: Vec<Capability>,
    pub plans: Vec<Plan>,
    pub arrays: Arrays,
    pub ops: Vec<Op>,
    /// How many of them each client has open.
    pub open_ops: Vec<usize>,
    pub known_jobs: Vec<JobId>,
    /// Those of them that are arrays, with their elements.
    pub known_arrays: BTreeMap<JobId, Ranges>,
    pub checks: Checks,
    pub counters: Counters,
    /// Messages between processes so far.
    pub messages: u64,
    /// Messages after which nothing breaks any more.
    pub target: u64,
    /// Whether nothing breaks any more, and since when.
    pub healing: bool,
    pub healed_at: u64,
    pub finished: bool,
    /// Percent of requests and of replies that are lost.
    pub loss: u64,
    /// Whether executors sometimes tell two stories.
    pub lying: bool,
    /// The longest pause of a client.
    pub pace_us: u64,
    pub faults: Vec<Fault>,
    pub fault_pause_us: u64,
    /// The processes as they truly are.
    pub processes: Processes,
    /// The broker's own link is down until then.
    pub cut_off_until: u64,
    /// Nothing breaks in this seed but the broker's own link.
    pub own_link_only: bool,
    /// Whether there is another broker, which at times holds what is durable here.
    pub has_others: bool,
    disk_us: u64,
}

impl World {
    /// The world as the seed sets it, with everything about to begin.
    pub fn new(options: Options) -> Self {
        let mut rng = Rng::from_seed(options.seed);
        let skew = options.skew;
        let faults = faults::draw_kinds(&mut rng);
        let count = usize::try_from(rng.range(1, 8)).expect("small");
        let executors: Vec<_> =
            (0..count).map(|index| ExecutorHost::new(index, skew, &mut rng)).collect();
        let calm = faults.is_empty();
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            skew,
            harm: options.harm,
            trace: Trace { on: options.trace },
            net: Network::new(&mut rng),
            disk: Disk::default(),
            broker: BrokerHost::new(skew, &mut rng),
            capabilities: executors.iter().map(|host| host.capability.clone()).collect(),
            executors,
            plans: Vec::new(),
            arrays: Arrays::draw(&mut rng),
            ops: Vec::new(),
            open_ops: Vec::new(),
            known_jobs: Vec::new(),
            known_arrays: BTreeMap::new(),
            checks: Checks::default(),
            counters: Counters::default(),
            messages: 0,
            target: rng.range(700, 2_200),
            healing: false,
            healed_at: 0,
            finished: false,
            loss: if calm { 0 } else { *rng.pick(&[0, 2, 15]) },
            lying: !calm && rng.chance(25),
            pace_us: *rng.pick(&[60_000, 300_000, 900_000]),
            faults,
            fault_pause_us: *rng.pick(&[400_000, 2_000_000, 6_000_000]),
            processes: Processes::default(),
            cut_off_until: 0,
            own_link_only: false,
            has_others: rng.chance(30),
            disk_us: *rng.pick(&[50, 500, 4_000, 30_000]),
            rng,
        };
        world.checks.capabilities =
            world.executors.iter().map(|host| (host.id.clone(), host.capability.clone())).collect();
        if calm {
            world.counters.count(Sometimes::Calm);
        }
        if world.rng.chance(5) {
            world.only_own_link();
        }
        world.prepare();
        world
    }

    fn prepare(&mut self) {
        self.queue.push(0, Event::BrokerStart);
        for executor in 0..self.executors.len() {
            let start = self.rng.below(300_000);
            self.queue.push(start, Event::ExecutorStart { executor });
            self.queue.push(start + 500_000, Event::ExecutorMeasure { executor });
        }
        self.open_ops = vec![0; usize::try_from(self.rng.range(1, 6)).expect("small")];
        for client in 0..self.open_ops.len() {
            let start = self.rng.below(200_000);
            self.queue.push(start, Event::ClientActs { client });
        }
        let first = self.rng.below(2_000_000);
        self.queue.push(first, Event::Fault);
        if self.has_others {
            self.queue.push(1_000_000, Event::HeldElsewhere);
        }
    }

    /// Lets everything happen; the broken rule if one is broken.
    pub fn run(&mut self) -> Option<Failure> {
        while !self.finished && self.checks.failure.is_none() {
            let Some((time, event)) = self.queue.pop() else { break };
            self.now = self.now.max(time);
            if !self.healing && (self.messages >= self.target || self.now > 150_000_000) {
                self.heal();
            }
            self.happen(event);
        }
        if self.checks.deadlines_carried_on() > 0 {
            self.counters.count(Sometimes::DeadlineCarriedOn);
        }
        if self.checks.overtakings() > 0 {
            self.counters.count(Sometimes::Overtaken);
        }
        self.checks.failure.clone()
    }

    fn happen(&mut self, event: Event) {
        let Some(event) = self.defer(event) else { return };
        match event {
            Event::BrokerStart => self.start_broker(),
            Event::BrokerWake { life } => self.broker_wakes(life),
            Event::DiskDone { life } => self.disk_done(life),
            Event::ToBroker { link, message } => self.message_reaches_broker(link, *message),
            Event::ToExecutor { link, message } => self.message_reaches_executor(link, *message),
            Event::BrokerSeesClose { link, process_gone, tree_gone } => {
                self.broker_sees_close(link, process_gone, tree_gone);
            }
            Event::JobCheckpoint { executor, life, attempt } => {
                self.job_checkpoints(executor, life, attempt);
            }
            Event::LeaseOver { executor, life, attempt } => {
                self.lease_over(executor, life, attempt);
            }
            Event::ProcessGone { attempt } => self.process_ends(&attempt),
            Event::Flap { executor, left } => self.flap(executor, left),
            Event::HeldElsewhere => self.held_elsewhere(),
            Event::ExecutorSeesClose { link } => self.executor_sees_close(link),
            Event::ExecutorStart { executor } => self.start_executor(executor),
            Event::ExecutorKill { executor, life } => {
                if self.executors[executor].life == life {
                    let back = self.now + self.rng.range(1_000, 2_000_000);
                    self.kill_executor(executor, false, back);
                }
            }
            Event::ExecutorConnect { executor, life } => self.executor_connects(executor, life),
            Event::ExecutorTimer { executor, life } => self.executor_timer(executor, life),
            Event::ExecutorMeasure { executor } => self.executor_measures(executor),
            Event::SpoolDone { executor, life } => self.spool_done(executor, life),
            Event::JobEnd { executor, life, attempt, signal } => {
                self.job_ends(executor, life, attempt, signal);
            }
            Event::JobUnfit { executor, life, attempt } => self.job_unfit(executor, life, attempt),
            Event::TakenArrives { life, request, count } => {
                self.taken_arrives(life, request, count);
            }
            Event::ClientActs { client } => self.client_acts(client),
            Event::RequestArrives { op, attempt } => self.request_arrives(op, attempt),
            Event::ReplyArrives { op, attempt, reply } => self.reply_arrives(op, attempt, &reply),
            Event::RequestClosed { life, request } => self.request_closed(life, request),
            Event::OpTimeout { op, attempt } => self.op_timeout(op, attempt),
            Event::Fault => self.break_something(),
            Event::LookOver => self.look_over(),
        }
    }

    /// What comes to a stopped executor waits until it goes on, in order.
    fn defer(&mut self, event: Event) -> Option<Event> {
        let executor = match &event {
            Event::ToExecutor { link, .. } | Event::ExecutorSeesClose { link } => {
                self.net.link(*link).executor
            }
            Event::ExecutorTimer { executor, .. }
            | Event::SpoolDone { executor, .. }
            | Event::JobUnfit { executor, .. }
            | Event::JobCheckpoint { executor, .. }
            | Event::JobEnd { executor, .. } => *executor,
            _ => return Some(event),
        };
        let host = &self.executors[executor];
        if self.now < host.paused_until && host.core.is_some() {
            if let Event::JobEnd { attempt, life, .. } = &event
                && *life == host.life
            {
                // Its processes end all the same; only nobody takes note yet.
                let attempt = attempt.clone();
                self.process_ends(&attempt);
            }
            let host = &self.executors[executor];
            self.queue.push(host.paused_until, event);
            return None;
        }
        Some(event)
    }

    fn executor_measures(&mut self, executor: usize) {
        let load = self.draw_load();
        self.tell_executor(executor, ucp::proto::executor::ExecutorInput::Measured(load));
        let pause = self.rng.range(500_000, 3_000_000);
        self.queue.push(self.now + pause, Event::ExecutorMeasure { executor });
    }

    /// How long a batch takes to become durable.
    pub fn draw_disk_latency(&mut self) -> u64 {
        self.rng.range(self.disk_us / 2, self.disk_us * 2)
    }

    /// Sends to an executor.
    pub fn send_down(&mut self, link: usize, message: BrokerMessage) {
        let delay = self.net.delay(&mut self.rng);
        if let Some(at) = self.net.link(link).down.arrival(self.now, delay) {
            self.queue.push(at, Event::ToExecutor { link, message: Box::new(message) });
        }
    }

    /// The broker's end of a connection says goodbye.
    pub fn fin_down(&mut self, link: usize) {
        let delay = self.net.delay(&mut self.rng);
        if let Some(at) = self.net.link(link).down.arrival(self.now, delay) {
            self.queue.push(at, Event::ExecutorSeesClose { link });
        }
    }

    /// Counts what a batch shows, and finds losses without any reason.
    pub fn observe_written(&mut self, batch: &Batch) {
        for sealed in &batch.facts {
            let fact = &sealed.fact;
            trace!(self, "written {}", sealed.line);
            if let Body::Lost(body) = &fact.body {
                self.counters.count(Sometimes::LostAttempt);
                self.check_loss(fact, &body.executor);
                self.check_doubt(fact, &body.executor, &body.reason);
            }
            let tasks = self.checks.held.tasks_of(fact);
            for task in &tasks {
                let book = self.checks.held.tasks.get(task);
                let seen = book.and_then(|book| observed(fact, task.element, book));
                seen.into_iter().for_each(|seen| self.counters.count(seen));
            }
            let whole = fact.job.is_some_and(|job| self.checks.held.arrays.contains_key(&job));
            if whole || matches!(&fact.body, Body::Submitted(body) if body.spec.array.is_some()) {
                observed_of_array(fact, &tasks, &self.checks.held)
                    .into_iter()
                    .for_each(|seen| self.counters.count(seen));
            }
        }
    }

    /// I6: an executor that lives and is reachable, at a broker that lives, loses nothing.
    fn check_loss(&mut self, fact: &Fact, executor: &ExecutorId) {
        let now = self.now;
        let host = self.executors.iter().find(|host| host.id == *executor);
        let reason = host.is_some_and(|host| host.troubled_until >= now);
        let dot = &fact.dot;
        self.checks.demand("I6", reason, || format!("{dot}: {executor} lost without a reason"));
    }

    /// Counts what an executor's message shows.
    pub fn observe_message(&mut self, message: &ExecutorMessage) {
        let ExecutorMessage::Result(said) = message else { return };
        if said.result.timed_out {
            self.counters.count(Sometimes::TimedOut);
        }
        let task = TaskId::new(said.job, said.attempt.element);
        let Some(book) = self.checks.held.tasks.get(&task) else { return };
        for (attempt, held, _) in &book.reports {
            if *attempt == said.attempt {
                let same = *held == said.result.digest();
                let seen = if same { Sometimes::SameResultTwice } else { Sometimes::OtherContent };
                self.counters.count(seen);
            }
        }
    }
}

/// What a fact shows about an array of which it covers these elements.
fn observed_of_array(fact: &Fact, tasks: &[TaskId], held: &History) -> Vec<Sometimes> {
    let (many, one) = (tasks.len() > 1, tasks.len() == 1);
    let whole = fact.job.and_then(|job| held.arrays.get(&job));
    let all = whole.is_some_and(|all| all.len() == tasks.len() as u64);
    let lost_before = tasks.iter().filter_map(|task| held.tasks.get(task)).any(|book| {
        let last = book.attempts.iter().rfind(|a| a.generation == fact.generation);
        last.is_some_and(|a| a.end == Some(End::Lost))
    });
    let seen = match &fact.body {
        Body::Submitted(body) if body.spec.items.is_empty() => Some(Sometimes::ArraySubmitted),
        Body::Submitted(_) => Some(Sometimes::ArrayOfItems),
        Body::Deployed(_) if many => Some(Sometimes::ManyDeployed),
        Body::Deployed(_) if lost_before => Some(Sometimes::Cautious),
        Body::Reported(_) if many => Some(Sometimes::ManyReported),
        Body::Accepted(_) if many => Some(Sometimes::ManyAccepted),
        Body::Lost(_) if many => Some(Sometimes::ManyLost),
        Body::Revoked(_) if many => Some(Sometimes::ManyRevoked),
        Body::Parked(_) if !all => Some(Sometimes::ElementParked),
        Body::Expired(_) if !all => Some(Sometimes::ElementsExpired),
        Body::Skipped(_) if many => Some(Sometimes::ArraySkipped),
        Body::Cancelled(_) if one && !all => Some(Sometimes::ElementCancelled),
        Body::Cancelled(_) if many => Some(Sometimes::ArrayCancelled),
        Body::Rerun(_) if one && !all => Some(Sometimes::ElementRerun),
        Body::Rerun(_) if many => Some(Sometimes::ArrayRerun),
        _ => None,
    };
    seen.into_iter().collect()
}

/// What a fact shows about a task that stood as `book` says before.
fn observed(fact: &Fact, element: Option<u64>, book: &Book) -> Option<Sometimes> {
    let named = |attempt: &AttemptId| AttemptId::new(attempt.dot.clone(), element);
    let outcome = book.outcomes.get(&fact.generation);
    match &fact.body {
        Body::Deployed(_) => {
            let last = book.attempts.iter().rfind(|a| a.generation == fact.generation)?;
            match last.end? {
                End::Lost => Some(Sometimes::RedeployedAfterLost),
                End::Reported => Some(Sometimes::Retry),
                End::Revoked => None,
            }
        }
        Body::Revoked(body) if body.reason == "it had not begun" => Some(Sometimes::Unbegun),
        Body::Revoked(body) if body.reason.ends_with("lease ran out") => {
            Some(Sometimes::LeaseEnded)
        }
        Body::Revoked(_) => Some(Sometimes::Revoked),
        Body::Regained(_) => Some(Sometimes::Regained),
        Body::Checkpointed(_) => Some(Sometimes::Checkpointed),
        Body::Reported(body) if !body.carried.is_empty() => Some(Sometimes::Carried),
        Body::Reported(body) => match book.attempt(&named(&body.attempt)) {
            None => Some(Sometimes::UnknownResult),
            Some(_) => outcome
                .filter(|o| o.accepted.is_some())
                .map(|_| ())
                .or_else(|| book.ended_of(fact.generation).map(|_| ()))
                .map(|_| Sometimes::LateResult),
        },
        Body::Accepted(body)
            if book
                .attempt(&named(&body.attempt))
                .is_some_and(|a| a.attempt.dot.log != fact.dot.log)
                && book.birth.as_ref().is_some_and(|birth| birth.log != fact.dot.log) =>
        {
            Some(Sometimes::CourierAccepted)
        }
        Body::Accepted(body) => {
            let lost = book.attempt(&named(&body.attempt))?.end == Some(End::Lost);
            lost.then_some(Sometimes::ResultBeforeLost)
        }
        Body::Cancelled(_) if book.state() == JobState::Running => Some(Sometimes::CancelRunning),
        Body::Cancelled(_) => Some(Sometimes::CancelWaiting),
        Body::Rerun(_) if book.state() == JobState::Parked => Some(Sometimes::ParkedRerun),
        Body::Rerun(_) => Some(Sometimes::Rerun),
        Body::Expired(_) if book.state() == JobState::Running => Some(Sometimes::ExpiredRunning),
        Body::Expired(_) => Some(Sometimes::ExpiredWaiting),
        Body::Skipped(_) => Some(Sometimes::Skipped),
        Body::Parked(_) => Some(Sometimes::Parked),
        _ => None,
    }
}
