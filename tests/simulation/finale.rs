//! The second phase: nothing breaks any more, all is brought back, and everything that can end
//! must end within a bound of simulated time; then what is held is compared with what a broker
//! says that reads the same facts anew (I2).

use std::collections::BTreeSet;

use ucp::proto::arbitrate;
use ucp::proto::broker::{Broker, Opening};
use ucp::proto::event::{Input, JobRef, Output, Reply, Request};
use ucp::proto::fact::{Body, Fact, SealedFact};
use ucp::proto::id::{AttemptId, JobId, RequestId, TaskId};
use ucp::proto::ranges::Ranges;
use ucp::proto::rng::Rng;
use ucp::proto::time::Now;
use ucp::proto::view::{JobState, JobView};

use super::broker_host::config;
use super::clients::{Kind, Stage};
use super::cluster::World;
use super::counters::Sometimes;
use super::history::Book;
use super::queue::Event;
use super::trace::trace;
use super::workload::is_possible;

/// After so long without faults everything has ended (A3): the longest runs, the back-offs of the
/// retries, and the queue.
const LIVENESS_US: u64 = 400_000_000;
const LOOK_OVER_US: u64 = 250_000;

/// What is still to be done.
enum Business {
    /// Nothing.
    Done,
    /// Something that cannot be named yet: the broker is busy.
    Broker,
    /// A task has not ended.
    Task(TaskId),
    /// An operation of a client.
    Op(usize),
    /// An executor is busy or keeps a result.
    Executor(usize),
    /// What an executor was asked to keep has not come back.
    Owed(AttemptId),
}

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
        let text = match self.open_business() {
            Business::Done => return self.finish(),
            _ if self.now <= self.healed_at + LIVENESS_US => {
                return self.queue.push(self.now + LOOK_OVER_US, Event::LookOver);
            }
            Business::Broker => "the broker is busy".to_owned(),
            Business::Task(task) => {
                let book = self.checks.durable.tasks.get(&task);
                let state = book.map(Book::state);
                let said = format!("{book:?}");
                format!("{task} is {state:?}: {:?}; {said}", self.ask_why(task))
            }
            Business::Op(place) => format!("operation {place} of a client: {:?}", self.ops[place]),
            Business::Executor(place) => format!("executor {place} is busy or keeps a result"),
            Business::Owed(attempt) => {
                let text = format!("the result of {attempt} was to be kept, and did not come back");
                return self.checks.fail("courier", text);
            }
        };
        self.checks.fail("A3", format!("not done long after the last fault: {text}"));
    }

    /// What the broker says of a task that does not end.
    fn ask_why(&mut self, task: TaskId) -> Vec<String> {
        let now = self.broker.clock.now(self.now);
        let Some(core) = &mut self.broker.core else { return vec![] };
        let request = RequestId(u64::MAX);
        let body = Request::Why { job: JobRef(task.to_string()) };
        core.handle_input(now, Input::Request { request, body });
        let mut reasons = vec![];
        while let Some(output) = core.poll_output() {
            if let Output::Reply { reply: Reply::Why(view), .. } = output {
                reasons = view.reasons;
            }
        }
        reasons
    }

    /// What is still to be done; nothing where all that can end has ended.
    fn open_business(&self) -> Business {
        if self.disk.in_flight() > 0 || self.broker.core.is_none() {
            return Business::Broker;
        }
        let busy = self.executors.iter().position(|host| !host.is_idle());
        if let Some(place) = busy {
            return Business::Executor(place);
        }
        // Its executor may not have seen yet that the broker is another.
        if let Some(attempt) = self.checks.owed.missing_in(&self.checks.reported) {
            return Business::Owed(attempt);
        }
        let stuck = self.stuck_jobs();
        for (task, book) in &self.checks.durable.tasks {
            let Some(_) = book.birth else { continue };
            let state = book.state();
            if !state.is_ended() && state != JobState::Parked && !stuck.contains(task) {
                return Business::Task(*task);
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
                return Business::Op(place);
            }
        }
        Business::Done
    }

    /// What cannot end: no executor fits it, or it waits for a job that does not end.
    fn stuck_jobs(&self) -> BTreeSet<TaskId> {
        let held = &self.checks.durable;
        let mut stuck: BTreeSet<TaskId> = BTreeSet::new();
        let waits = |book: &Book| {
            let open = matches!(book.state(), JobState::Waiting | JobState::Running);
            if held.is_foreign(book) && open {
                return true;
            }
            book.spec.as_ref().is_some_and(|spec| spec.deadline.is_none())
                && book.state() == JobState::Waiting
        };
        let waiting: Vec<_> = held.tasks.iter().filter(|(_, book)| waits(book)).collect();
        loop {
            let before = stuck.len();
            for (task, book) in &waiting {
                let Some(spec) = &book.spec else { continue };
                let held_up = spec.after.iter().any(|other| {
                    let mut of_other = held.of_job(*other);
                    let stands = of_other.any(|(task, book)| {
                        book.state() == JobState::Parked || stuck.contains(task)
                    });
                    // Of one that a restored disk forgot a result may have come.
                    stands || !held.is_submitted(*other)
                });
                if held_up || held.is_foreign(book) || !is_possible(spec, &self.capabilities) {
                    stuck.insert(**task);
                }
            }
            if stuck.len() == before {
                return stuck;
            }
        }
    }

    fn finish(&mut self) {
        self.finished = true;
        let ended = |book: &Book| book.birth.is_none() || book.state().is_ended();
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
        self.count_verdicts();
        self.compare_with_second_broker();
    }

    /// Counts by which rules results were judged.
    fn count_verdicts(&mut self) {
        let Some(core) = &self.broker.core else { return };
        let detection = core.status().detection;
        let mut seen = vec![];
        for task in self.checks.durable.tasks.keys() {
            let Some(facts) = core.job_facts(task.job) else { continue };
            for view in arbitrate::result_views(&facts.task(task.element)) {
                seen.extend(match view.judgement.rule {
                    "first-accepted" => Some(Sometimes::JudgedFirst),
                    "decided-knowing-the-attempt" => Some(Sometimes::JudgedKnowing),
                    "concurrent-lesser-key" => Some(Sometimes::JudgedLesser),
                    "equivocation" => Some(Sometimes::JudgedEquivocation),
                    "older-generation" => Some(Sometimes::JudgedOlder),
                    "cancelled" => Some(Sometimes::JudgedCancelled),
                    "expired" => Some(Sometimes::JudgedExpired),
                    "greater-generation" => Some(Sometimes::JudgedSuperseded),
                    "failure-retried" => Some(Sometimes::JudgedRetried),
                    "attempt-unknown" => Some(Sometimes::JudgedUnknown),
                    _ => None,
                });
            }
        }
        seen.into_iter().for_each(|what| self.counters.count(what));
        self.note_detection(&detection);
    }

    /// I2: a broker that reads the facts anew says of every job what this one says.
    fn compare_with_second_broker(&mut self) {
        let now = self.broker.clock.now(self.now);
        let Some(first) = self.broker.core.take() else { return };
        let mut second = Broker::new(config(self.has_others), Rng::from_seed(1));
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
