//! The jobs of an executor: what they do, keep and leave, as their plans say.

use ucp::proto::executor::{ExecutorInput, Kill};
use ucp::proto::id::{AttemptId, Digest};
use ucp::proto::message::StartOrder;
use ucp::proto::result::{JobResult, Stream};

use super::cluster::World;
use super::counters::Sometimes;
use super::executor_host::Running;
use super::queue::{Draw, Event};
use super::trace::trace;
use super::workload::plan_of;

impl World {
    /// A job's processes begin.
    pub fn begin(&mut self, index: usize, order: &StartOrder) {
        if !self.process_begins(index, order) {
            let (executor, life) = (index, self.executors[index].life);
            let (plan, needs) = (plan_of(&order.spec), order.spec.needs.clone());
            let attempt = order.attempt.clone();
            self.executors[index].running.insert(attempt.clone(), Running { plan, run: 0, needs });
            let event = Event::JobEnd { executor, life, attempt, signal: Some(9) };
            return self.queue.push(self.now + 1, event);
        }
        self.checks.started(&order.attempt);
        if order.lease.is_some() {
            self.counters.count(Sometimes::Leased);
        }
        if !order.checkpoints.is_empty() {
            self.counters.count(Sometimes::Resumed);
        }
        self.check_room(index, order);
        let plan = plan_of(&order.spec);
        let element = order.attempt.element;
        let job = &mut self.plans[plan];
        let right = job.runs_as(&order.spec, element);
        self.checks.demand("array", right, || format!("{element:?} runs as {:?}", order.spec));
        let run = job.begin(element);
        let (poison, unstartable) = (job.is_poison(element), job.unstartable);
        let (from, to) = job.duration_us;
        let host = &mut self.executors[index];
        let (executor, life) = (index, host.life);
        let needs = order.spec.needs.clone();
        host.running.insert(order.attempt.clone(), Running { plan, run, needs });
        if self.rng.chance(1) && !self.healing {
            let attempt = order.attempt.clone();
            return self.queue.push(self.now + 50, Event::JobUnfit { executor, life, attempt });
        }
        let duration = if unstartable { 1 } else { self.rng.range(from, to) };
        trace!(self, "executor {index} runs {} of plan {plan}, run {run}", order.attempt);
        if poison && !self.healing {
            let soon = self.now + self.rng.range(100, 30_000);
            return self.queue.push(soon, Event::ExecutorKill { executor, life });
        }
        let attempt = order.attempt.clone();
        if duration > 30_000 && self.rng.chance(40) {
            let at = self.now + self.rng.range(duration / 20, duration / 2);
            let attempt = attempt.clone();
            self.queue.push(at, Event::JobCheckpoint { executor, life, attempt });
        }
        let event = Event::JobEnd { executor, life, attempt, signal: None };
        self.queue.push(self.now + duration, event);
    }

    /// A job's state was kept.
    pub fn job_checkpoints(&mut self, index: usize, life: u32, attempt: AttemptId) {
        let host = &self.executors[index];
        if host.life != life || !host.running.contains_key(&attempt) {
            return;
        }
        let made = self.checks.checkpoints.entry(attempt.clone()).or_default();
        let manifest = Digest::of(format!("{attempt} {}", made.len()).as_bytes());
        made.push(manifest);
        let bytes = made.len() as u64;
        if self.rng.chance(60) {
            let at = self.now + self.rng.range(10_000, 600_000);
            let attempt = attempt.clone();
            self.queue.push(at, Event::JobCheckpoint { executor: index, life, attempt });
        }
        let kept = ExecutorInput::Checkpointed { attempt, manifest, files: 1, bytes };
        self.tell_executor(index, kept);
    }

    /// An executor runs no more than it has room for; what needs more than there is runs alone.
    fn check_room(&mut self, index: usize, order: &StartOrder) {
        let host = &self.executors[index];
        let needs = || host.running.values().map(|r| &r.needs).chain([&order.spec.needs]);
        let cores: u64 = needs().map(|needs| u64::from(needs.cores)).sum();
        let memory: u64 = needs().filter_map(|needs| needs.memory).map(|size| size.0).sum();
        let has = &host.capability;
        let fits = cores <= u64::from(has.slots) && memory <= has.memory.0;
        let alone = host.running.is_empty();
        self.checks.demand("room", fits || alone, || {
            format!("{} begins: {cores} slots, {memory} bytes at {has:?}", order.attempt)
        });
    }

    /// A job's processes could not begin.
    pub fn job_unfit(&mut self, index: usize, life: u32, attempt: AttemptId) {
        let host = &mut self.executors[index];
        if host.life != life || host.running.remove(&attempt).is_none() {
            return;
        }
        self.counters.count(Sometimes::Unfit);
        // It did not begin, so it may be begun later.
        self.checks.starts.remove(&attempt);
        self.process_ends(&attempt);
        let reason = "no pipe".to_owned();
        self.tell_executor(index, ExecutorInput::Unfit { attempt, reason });
    }

    pub fn signal(&mut self, index: usize, attempt: AttemptId, kill: Kill) {
        let host = &self.executors[index];
        let Some(running) = host.running.get(&attempt) else { return };
        let ignores = self.plans[running.plan].ignores_term;
        let (signal, delay) = match kill {
            Kill::Terminate if ignores => return,
            Kill::Terminate => (15, self.rng.range(50, 30_000)),
            Kill::Kill => (9, self.rng.range(50, 2_000)),
        };
        let event =
            Event::JobEnd { executor: index, life: host.life, attempt, signal: Some(signal) };
        self.queue.push(self.now + delay, event);
    }

    /// A job's processes end.
    pub fn job_ends(&mut self, index: usize, life: u32, attempt: AttemptId, signal: Option<i32>) {
        let host = &mut self.executors[index];
        if host.life != life {
            return;
        }
        let Some(running) = host.running.remove(&attempt) else { return };
        host.leases.remove(&attempt);
        self.process_ends(&attempt);
        let host = &self.executors[index];
        if signal == Some(9) {
            self.counters.count(Sometimes::KillNeeded);
        }
        let plan = &self.plans[running.plan];
        let wall = host.clock.now(self.now).wall.to_string();
        let mut result = JobResult {
            stdout: Stream::inline(plan.output(attempt.element, running.run).into_bytes()),
            started_at: wall.clone(),
            ended_at: wall,
            // Whatever a job says of its time, nothing may rest on it.
            cpu_us: self.rng.next_u64() >> 12,
            ..JobResult::default()
        };
        match signal {
            Some(number) => result.signal = Some(number),
            None if plan.unstartable => {
                self.counters.count(Sometimes::CouldNotStart);
                result.exit = Some(127);
                result.error = Some("no such file".into());
            }
            None if plan.fails(attempt.element, running.run) => result.exit = Some(1),
            None => result.exit = Some(0),
        }
        trace!(self, "executor {index}: {attempt} ends, {:?} {:?}", result.exit, result.signal);
        // Where there is a time-out both digests: whether the core calls it timed out is its
        // affair.
        let made = self.checks.produced.entry(attempt.clone()).or_default();
        made.push(result.digest());
        if plan.spec.timeout.is_some() {
            made.push(JobResult { timed_out: true, ..result.clone() }.digest());
        }
        self.tell_executor(index, ExecutorInput::Ended { attempt, result: Box::new(result) });
    }
}
