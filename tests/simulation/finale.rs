//! The second phase: nothing breaks any more, all is brought back, and everything that can end
//! must end within a bound of simulated time; then what is held is compared with what a broker
//! says that reads the same facts anew (I2).

use std::collections::BTreeSet;

use ucp::proto::broker::{Broker, Opening};
use ucp::proto::event::{Input, JobRef, Output, Reply, Request};
use ucp::proto::fact::{Body, Fact, SealedFact};
use ucp::proto::id::{JobId, RequestId, TaskId};
use ucp::proto::ranges::Ranges;
use ucp::proto::rng::Rng;
use ucp::proto::time::Now;
use ucp::proto::view::{JobState, JobView};

use super::broker_host::config;
use super::clients::{Kind, Stage};
use super::cluster::World;
use super::counters::Sometimes;
use super::queue::Event;
use super::trace::trace;
use super::workload::is_possible;

/// After so long without faults everything has ended (A3): the longest runs, the back-offs of the
/// retries, and the queue.
const LIVENESS_US: u64 = 400_000_000;
const LOOK_OVER_US: u64 = 250_000;

impl World {
    /// From now on nothing breaks.
    pub fn heal(&mut self) {
        trace!(self, "all faults end");
        self.healing = true;
        self.healed_at = self.now;
        self.queue.push(self.now + LOOK_OVER_US, Event::LookOver);
    }

    /// Is everything done?
    pub fn look_over(&mut self) {
        self.checks.check_promises();
        match self.open_business() {
            None => self.finish(),
            Some(text) if self.now > self.healed_at + LIVENESS_US => {
                self.checks.fail("A3", format!("not done long after the last fault: {text}"));
            }
            Some(_) => self.queue.push(self.now + LOOK_OVER_US, Event::LookOver),
        }
    }

    /// What is still to be done; nothing where all that can end has ended.
    fn open_business(&self) -> Option<String> {
        if self.disk.in_flight() > 0 || self.broker.core.is_none() {
            return Some("the broker is busy".to_owned());
        }
        let stuck = self.stuck_jobs();
        for (task, book) in &self.checks.durable.tasks {
            let Some(_) = book.birth else { continue };
            let state = book.state();
            if !state.is_ended() && state != JobState::Parked && !stuck.contains(task) {
                return Some(format!("{task} is {state:?}: {book:?}"));
            }
        }
        let is_stuck = |task: TaskId| stuck.contains(&task);
        let all_stuck = |job: JobId, left: &Ranges| {
            left.iter().all(|element| is_stuck(TaskId::new(job, Some(element))))
        };
        for (place, op) in self.ops.iter().enumerate().filter(|(_, op)| !op.done) {
            let excused = match &op.kind {
                Kind::Submit { stages, .. } => stages.iter().all(|stage| match stage {
                    Stage::Sent => false,
                    Stage::Watched(job) => is_stuck(TaskId::from(*job)),
                    Stage::Elements { job, left } => all_stuck(*job, left),
                    Stage::Over => true,
                }),
                Kind::Watch { task, left } => match left {
                    Some(left) => all_stuck(task.job, left),
                    None => is_stuck(*task),
                },
                _ => false,
            };
            if !excused {
                return Some(format!("operation {place} of a client: {op:?}"));
            }
        }
        let busy = self.executors.iter().position(|host| !host.is_idle());
        busy.map(|place| format!("executor {place} is busy or keeps a result"))
    }

    /// What cannot end: no executor fits it, or it waits for a job that does not end.
    fn stuck_jobs(&self) -> BTreeSet<TaskId> {
        let held = &self.checks.durable;
        let mut stuck: BTreeSet<TaskId> = BTreeSet::new();
        loop {
            let before = stuck.len();
            for (task, book) in &held.tasks {
                let Some(spec) = &book.spec else { continue };
                let held_up = spec.after.iter().any(|other| {
                    let mut of_other = held.of_job(*other);
                    let stands = of_other.any(|(task, book)| {
                        book.state() == JobState::Parked || stuck.contains(task)
                    });
                    stands || held.of_job(*other).next().is_none()
                });
                if spec.deadline.is_some() {
                    continue;
                }
                let possible = is_possible(spec, &self.capabilities);
                if book.state() == JobState::Waiting && (held_up || !possible) {
                    stuck.insert(*task);
                }
            }
            if stuck.len() == before {
                return stuck;
            }
        }
    }

    fn finish(&mut self) {
        self.finished = true;
        let ended = |book: &super::history::Book| book.birth.is_none() || book.state().is_ended();
        if self.checks.durable.tasks.values().all(ended) {
            self.counters.count(Sometimes::AllEnded);
        }
        for sealed in self.checks.all.iter().step_by(7) {
            let again = Fact::parse(&sealed.line);
            let same = again.as_ref() == Ok(&*sealed.fact);
            if !same {
                let text = format!("{} reads back as {again:?}", sealed.line);
                self.checks.fail("verbatim", text);
                return;
            }
        }
        self.compare_with_second_broker();
    }

    /// I2: a broker that reads the facts anew says of every job what this one says.
    fn compare_with_second_broker(&mut self) {
        let now = self.broker.clock.now(self.now);
        let Some(first) = self.broker.core.take() else { return };
        let mut second = Broker::new(config(), Rng::from_seed(1));
        for sealed in &self.disk.durable {
            if let Err(error) = second.restore(sealed) {
                return self.checks.fail("restore", error.to_string());
            }
        }
        let log = self.broker.log.clone().expect("it was open");
        second.open(now, Opening::Continue(log));
        while second.poll_output().is_some() {}
        let mut both = [first, second];
        let elements = self.checks.durable.tasks.keys().copied();
        let arrays = self.checks.durable.arrays.keys().map(|job| TaskId::from(*job));
        let tasks: Vec<TaskId> = elements.chain(arrays).collect();
        for task in tasks {
            let [mine, theirs] = both.each_mut().map(|broker| show(broker, now, task));
            self.checks.demand("I2", mine == theirs, || {
                format!("{task}: lived through {mine:?}, read anew {theirs:?}")
            });
        }
        let [mine, theirs] = both.each_mut().map(|broker| broker.logs().digest());
        self.checks.demand("A38", mine == theirs, || "the digests differ".into());
    }
}

fn show(broker: &mut Broker, now: Now, task: TaskId) -> Option<JobView> {
    let request = RequestId(u64::MAX);
    let body = Request::Show { job: JobRef(task.to_string()) };
    broker.handle_input(now, Input::Request { request, body });
    let mut view = None;
    while let Some(output) = broker.poll_output() {
        if let Output::Reply { reply: Reply::Job(found), .. } = output {
            view = Some(*found);
        }
    }
    if let Some(view) = &mut view {
        view.observed.clear();
        // Outputs of results that were read from the store are left out of memory.
        let reports = view.results.iter_mut().map(|result| &mut result.reported);
        let ended =
            view.ended.iter_mut().filter_map(|ended| ended.result.as_mut().map(|r| &mut r.1));
        for reported in reports.chain(ended) {
            let mut stripped = (**reported).clone();
            (stripped.result.stdout.text, stripped.result.stderr.text) = (None, None);
            *reported = stripped.into();
        }
    }
    view
}

/// The decisions of a seed: all durable facts without their wall times, with jobs named by the
/// order in which they appear (their ids carry the time).
pub fn decisions(facts: &[SealedFact]) -> Vec<String> {
    let mut names: Vec<JobId> = Vec::new();
    let mut lines = Vec::new();
    for sealed in facts {
        let fact = &sealed.fact;
        let name = fact.job.map(|job| {
            let found = names.iter().position(|held| *held == job);
            found.unwrap_or_else(|| {
                names.push(job);
                names.len() - 1
            })
        });
        let said = match &fact.body {
            Body::Deployed(body) => format!("{} {}", body.executor, body.fence),
            Body::Lost(body) | Body::Revoked(body) => format!("{} {}", body.attempt, body.executor),
            Body::Reported(body) => format!("{} {}", body.attempt, body.digest),
            Body::Accepted(body) => format!("{} {}", body.attempt, body.success),
            _ => String::new(),
        };
        let (dot, kind, generation) = (&fact.dot, fact.body.kind(), fact.generation);
        let elements = fact.elements.as_ref().map(Ranges::to_string).unwrap_or_default();
        let clock = &fact.clock;
        let what = format!("job {name:?} {elements} {generation} {kind}");
        lines.push(format!("{dot} {what} {said} {clock:?}"));
    }
    lines
}
