//! What executors say about attempts: results, stops; and attempts that are lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::sessions::Tree;
use super::{Broker, Timer};
use crate::proto::clock::Clock;
use crate::proto::fact::{Body, Checkpointed, Ending, Fact, Reported};
use crate::proto::fold::{Attempt, Step, Tries};
use crate::proto::id::{AttemptId, Digest, Dot, ExecutorId, JobId, LogId, SessionId};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, CheckpointMessage, ExecutorMessage, ResultMessage};
use crate::proto::ranges::Ranges;
use crate::proto::result::JobResult;

/// What a `lost` fact says where nobody saw the end of the attempt's processes.
const UNPROVEN: &str = "processes of the attempt may still run on its host";
/// What a `revoked` fact says of an attempt that waited at its executor.
const UNBEGUN: &str = "it had not begun";
/// What it says of one that had begun.
const HANDED_BACK: &str = "its executor handed it back";

/// What elements of one deployment have in common that left the same. The deployment comes first:
/// facts are written in this order, and a job's id, which carries wall time, must decide nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    dot: Dot,
    digest: Digest,
    executor: ExecutorId,
    generation: u32,
    job: JobId,
}

/// What executors said since facts were written of it, so that one fact covers many elements.
#[derive(Debug, Default)]
pub(super) struct Reports {
    results: BTreeMap<Group, BTreeMap<u64, Report>>,
    unbegun: BTreeMap<(Dot, ExecutorId, JobId), Ranges>,
    /// What is acknowledged once the facts are durable: elements, or the attempt as a whole.
    acknowledged: BTreeMap<(SessionId, Dot, JobId), (Ranges, bool)>,
}

/// What an executor said of one element.
#[derive(Debug)]
struct Report {
    result: JobResult,
    clock: Clock,
    carried: Vec<Arc<str>>,
}

/// A result that its executor keeps.
#[derive(Debug)]
pub(super) struct Unreleased {
    executor: ExecutorId,
    dot: Dot,
    elements: Option<Ranges>,
}

impl Reports {
    fn acknowledge(&mut self, session: SessionId, attempt: AttemptId, job: JobId) {
        let of_job = (session, attempt.dot, job);
        let (elements, whole) = self.acknowledged.entry(of_job).or_default();
        match attempt.element {
            Some(element) => elements.insert(element),
            None => *whole = true,
        }
    }
}

impl Broker {
    pub(super) fn handle_message(&mut self, session: SessionId, message: ExecutorMessage) {
        let Some(executor) = self.fleet.sessions.get(&session).cloned() else { return };
        self.hear(&executor);
        match message {
            ExecutorMessage::Heartbeat { load, draining, number } => {
                self.rouse_ghosts();
                if let Some(seat) = self.fleet.seats.get_mut(&executor) {
                    seat.draining = draining;
                    if let Some(hello) = &mut seat.hello {
                        hello.load = load;
                    }
                }
                self.fleet.refresh(&executor);
                self.send(session, BrokerMessage::Heard { number });
            }
            ExecutorMessage::Result(message) => self.take_result(session, &executor, *message),
            ExecutorMessage::Stopped { attempt, unbegun, reason } => {
                self.take_stopped(&executor, &attempt, unbegun, reason.as_deref());
            }
            ExecutorMessage::Checkpoint(message) => self.take_checkpoint(&executor, *message),
            // A second hello says nothing new; live output does not pass through the core.
            ExecutorMessage::Hello(_)
            | ExecutorMessage::Output(_)
            | ExecutorMessage::OutputEnd { .. } => {}
        }
    }

    /// Takes a result, once; it is acknowledged when it is durable, however often it comes.
    fn take_result(&mut self, session: SessionId, executor: &ExecutorId, said: ResultMessage) {
        let took = said.took_us.map(Duration::from_micros);
        if let Some(seat) = self.fleet.seats.get_mut(executor) {
            seat.learn(self.now.mono, took);
        }
        let (attempt, job) = (said.attempt.clone(), said.job);
        let carries = !said.carried.is_empty();
        let success = said.result.is_success();
        if self.check_result(executor, &said) && self.record_result(executor, said) {
            self.learn_of_result(executor, success, took);
        }
        if carries {
            self.write_reports();
            self.expect_carried(job);
        }
        self.reports.acknowledge(session, attempt, job);
    }

    /// Frees what the attempt occupied; false where its result is not to be recorded.
    fn check_result(&mut self, executor: &ExecutorId, said: &ResultMessage) -> bool {
        let ResultMessage { attempt, job: id, result, .. } = said;
        let assigned = self.release(executor, attempt).flatten();
        if let Some(real) = assigned.filter(|real| real != id) {
            self.notice(format!("executor {executor} took {attempt} for one of job {id}"));
            let reason = "its result named another job";
            self.lose_attempt(real, attempt, executor, reason, Tree::Gone);
            return false;
        }
        let held = self.jobs.get(id).map(|job| job.facts.task(attempt.element));
        if held.as_ref().is_some_and(|facts| facts.states().is_some()) {
            self.notice(format!("executor {executor} sent a result of no element of job {id}"));
            return false;
        }
        let job = self.jobs.get(id).filter(|job| job.facts.submitted().is_some());
        if job.is_some_and(|job| attempt.element.is_some() && job.facts.elements().is_none()) {
            self.notice(format!("executor {executor} sent a result of {attempt}, of no array"));
            return false;
        }
        let deployed = held.as_ref().and_then(|facts| facts.attempt(attempt));
        if deployed.is_some_and(|(_, deployed)| deployed.executor != *executor) {
            self.notice(format!("executor {executor} sent a result of {attempt}, not its own"));
            return false;
        }
        if !result.is_consistent() {
            self.notice(format!("executor {executor} sent a malformed result of {attempt}"));
            let reason = "its result was malformed";
            self.lose_attempt(*id, attempt, executor, reason, Tree::Gone);
            return false;
        }
        true
    }

    /// Whether there was anything new in it.
    fn record_result(&mut self, executor: &ExecutorId, said: ResultMessage) -> bool {
        let carried = self.wanted_of(&said);
        let ResultMessage { attempt, job: id, generation, result, clock, .. } = said;
        let digest = result.digest();
        let held = self.jobs.get(&id).map(|job| job.facts.task(attempt.element));
        let deployed = held.as_ref().and_then(|facts| facts.attempt(&attempt));
        let generation = deployed.map_or(generation.max(1), |(fact, _)| fact.generation);
        let (mut known, mut other) = (false, false);
        for (_, body) in held.iter().flat_map(|facts| facts.reported()) {
            let same = body.attempt.dot == attempt.dot;
            known |= same && body.digest == digest;
            other |= same && body.digest != digest;
        }
        drop(held);
        if known {
            return false;
        }
        if other {
            self.notice(format!("executor {executor} says two things of {attempt}: equivocation"));
            self.detection.equivocations += 1;
            if let Some(seat) = self.fleet.seats.get_mut(executor) {
                seat.equivocations += 1;
            }
        }
        let AttemptId { dot, element } = attempt;
        let Some(element) = element else {
            let failed = !result.is_success();
            let executor = executor.clone();
            let attempt = AttemptId::from(dot);
            let runs = vec![];
            let body = Reported { attempt, executor, digest, result, runs, clock, carried };
            self.write_job(id, generation, Body::Reported(Arc::new(body)));
            if failed {
                self.back_off_by_facts(id, |step| step.failed);
            }
            return true;
        };
        let group = Group { job: id, generation, dot, digest, executor: executor.clone() };
        let report = Report { result, clock, carried };
        self.reports.results.entry(group).or_default().insert(element, report);
        true
    }

    /// Of the facts that a result carries those that are not held here.
    fn wanted_of(&mut self, said: &ResultMessage) -> Vec<Arc<str>> {
        if said.carried.is_empty() {
            return vec![];
        }
        let held = self.jobs.get(&said.job).map(|job| &job.facts);
        let lines = said.carried.iter().take(limits::CARRIED_FACTS_MAX);
        let mut bad = 0;
        let wanted = lines.filter(|line| {
            let Ok(fact) = Fact::parse(line) else {
                bad += 1;
                return false;
            };
            let ours = Some(&fact.dot.log) == self.log.as_ref();
            fact.job == Some(said.job)
                && !ours
                && held.and_then(|facts| facts.get(&fact.dot)).is_none()
        });
        let wanted: Vec<Arc<str>> = wanted.cloned().collect();
        if bad > 0 {
            self.notice(format!("{bad} lines carried with {} are no facts", said.attempt));
        }
        wanted
    }

    /// Notes that state of an attempt was kept, once.
    fn take_checkpoint(&mut self, executor: &ExecutorId, said: CheckpointMessage) {
        let CheckpointMessage { attempt, job: id, number, manifest, files, bytes, clock } = said;
        let held = self.jobs.get(&id).map(|job| job.facts.task(attempt.element));
        let Some(facts) = held else { return };
        let Some((fact, deployed)) = facts.attempt(&attempt) else { return };
        let generation = fact.generation;
        let wanted = deployed.executor == *executor
            && number <= limits::COUNTER_MAX
            && facts.state().is_some_and(|state| !state.is_ended())
            && generation == facts.generation()
            && !matches!(facts.standing(fact), Attempt::Ended)
            && facts.checkpointed(&attempt.dot).all(|(_, held)| held.number < number);
        drop(facts);
        if !wanted {
            return;
        }
        let elements = attempt.element.map(Ranges::one);
        let attempt = AttemptId::from(attempt.dot);
        let executor = executor.clone();
        let body = Checkpointed { attempt, executor, number, manifest, files, bytes, clock };
        self.write_elements(id, generation, elements, Body::Checkpointed(body));
    }

    /// Writes what executors said about elements: one fact for all of a deployment that left the
    /// same.
    pub(super) fn write_reports(&mut self) {
        let Reports { results, unbegun, acknowledged } = std::mem::take(&mut self.reports);
        for (group, elements) in results {
            self.write_results(&group, elements);
        }
        for ((dot, executor, id), elements) in unbegun {
            self.write_unbegun(id, &dot, &executor, &elements);
        }
        for ((session, dot, job), (elements, whole)) in acknowledged {
            if whole {
                self.acknowledge(session, &dot, job, None);
            }
            if !elements.is_empty() {
                self.acknowledge(session, &dot, job, Some(elements));
            }
        }
        self.settle();
    }

    /// Tells an executor that results are durable; it keeps them while no other broker has them and
    /// one can be reached.
    fn acknowledge(&mut self, session: SessionId, dot: &Dot, job: JobId, elements: Option<Ranges>) {
        let reported = self.reported_at(job, dot).filter(|_| self.config.has_others);
        let keep = reported.is_some();
        if let (Some(reported), Some(executor)) = (reported, self.fleet.sessions.get(&session)) {
            let (executor, dot) = (executor.clone(), dot.clone());
            let unreleased = Unreleased { executor, dot, elements: elements.clone() };
            self.unreleased.entry(reported).or_default().push(unreleased);
        }
        let attempt = AttemptId::from(dot.clone());
        self.send(session, BrokerMessage::Acknowledged { attempt, elements, keep });
    }

    /// The last fact that reported of an attempt, if no other broker is known to hold it.
    fn reported_at(&self, job: JobId, dot: &Dot) -> Option<Dot> {
        let facts = &self.jobs.get(&job)?.facts;
        let of_attempt = facts.reported().filter(|(_, body)| body.attempt.dot == *dot);
        let last = of_attempt.map(|(fact, _)| &fact.dot).max()?;
        (!self.is_held_elsewhere(last)).then(|| last.clone())
    }

    fn is_held_elsewhere(&self, dot: &Dot) -> bool {
        self.held_elsewhere.get(&dot.log).is_some_and(|seq| *seq >= dot.seq)
    }

    /// Another broker holds this much: executors may forget what was reported there.
    /// Another broker can be reached, or none any more: then nobody waits for a second one.
    pub(super) fn learn_reachable(&mut self, others: bool) {
        self.config.has_others = others;
        if !others {
            let all = std::mem::take(&mut self.unreleased);
            all.into_values().flatten().for_each(|one| self.release_one(one));
        }
    }

    fn release_one(&mut self, one: Unreleased) {
        let Unreleased { executor, dot, elements } = one;
        let session = self.fleet.seats.get(&executor).and_then(|seat| seat.session);
        if let Some(session) = session {
            let attempt = AttemptId::from(dot);
            self.send(session, BrokerMessage::Released { attempt, elements });
        }
    }

    pub(super) fn release_results(&mut self, vector: BTreeMap<LogId, u64>) {
        for (log, seq) in vector {
            let held = self.held_elsewhere.entry(log).or_default();
            *held = (*held).max(seq);
        }
        let released = self.unreleased.keys().filter(|dot| self.is_held_elsewhere(dot));
        for dot in released.cloned().collect::<Vec<_>>() {
            let released = self.unreleased.remove(&dot).into_iter().flatten();
            released.for_each(|one| self.release_one(one));
        }
    }

    fn write_results(&mut self, group: &Group, reports: BTreeMap<u64, Report>) {
        let Group { dot, digest, executor, generation, job } = group;
        let results: Vec<&JobResult> = reports.values().map(|report| &report.result).collect();
        let merged = JobResult::merge_runs(&results);
        if merged.is_none() && results.len() > 1 {
            // They differ in more than their times: one fact for each.
            for (element, report) in reports {
                self.write_results(group, BTreeMap::from([(element, report)]));
            }
            return;
        }
        let elements: Ranges = reports.keys().copied().collect();
        let Some((_, last)) = reports.into_iter().next_back() else { return };
        let Report { result: last, clock, carried } = last;
        let unmerged = || (last.clone(), vec![last.run()]);
        let (result, runs) = merged.unwrap_or_else(unmerged);
        let failed = !result.is_success();
        let (attempt, executor) = (AttemptId::from(dot.clone()), executor.clone());
        let body = Reported { attempt, executor, digest: *digest, result, runs, clock, carried };
        let body = Body::Reported(Arc::new(body));
        self.write_elements(*job, *generation, Some(elements.clone()), body);
        if failed {
            self.back_off_elements(*job, &elements, |tries| tries.failed);
        }
    }

    fn write_unbegun(&mut self, id: JobId, dot: &Dot, executor: &ExecutorId, elements: &Ranges) {
        for (generation, elements) in self.running_of_lease(id, dot, elements) {
            let body = Ending { unbegun: true, ..ending(dot, executor, UNBEGUN, Tree::Gone) };
            self.write_elements(id, generation, Some(elements), Body::Revoked(body));
        }
    }

    /// Gives up the attempts of one deployment at some elements.
    pub(super) fn lose_elements(
        &mut self,
        id: JobId,
        dot: &Dot,
        elements: &Ranges,
        executor: &ExecutorId,
        reason: &str,
        tree: Tree,
    ) {
        for (generation, elements) in self.running_of_lease(id, dot, elements) {
            let body = ending(dot, executor, reason, tree);
            self.write_elements(id, generation, Some(elements.clone()), Body::Lost(body));
            // The first loss is made good at once; only a job that goes on losing has to wait.
            self.back_off_elements(id, &elements, |tries| tries.lost.saturating_sub(1));
        }
    }

    /// Of some elements those where this deployment is under way, by generation.
    fn running_of_lease(&self, id: JobId, dot: &Dot, elements: &Ranges) -> BTreeMap<u32, Ranges> {
        let mut running: BTreeMap<u32, Ranges> = BTreeMap::new();
        let Some(job) = self.jobs.get(&id) else { return running };
        for (first, last) in job.facts.parts(elements) {
            let task = job.facts.task(Some(first));
            if let Some((fact, _)) = task.running().find(|(fact, _)| fact.dot == *dot) {
                running.entry(fact.generation).or_default().insert_run(first, last);
            }
        }
        running
    }

    /// An attempt left no result: it did not begin, was stopped as ordered, or is handed back.
    fn take_stopped(
        &mut self,
        executor: &ExecutorId,
        attempt: &AttemptId,
        unbegun: bool,
        said: Option<&str>,
    ) {
        let draining = self.fleet.seats.get(executor).is_some_and(|seat| seat.draining);
        let Some(assigned) = self.release(executor, attempt) else { return };
        let Some(id) = assigned else { return };
        if unbegun && let Some(element) = attempt.element {
            let lease = (attempt.dot.clone(), executor.clone(), id);
            self.reports.unbegun.entry(lease).or_default().insert(element);
            return;
        }
        let Some(generation) = self.generation_if_running(id, attempt) else { return };
        let mut reason = if unbegun { UNBEGUN } else { HANDED_BACK }.to_owned();
        if let Some(said) = said.filter(|_| !unbegun) {
            let said: String = said.chars().take(limits::REASON_CHARS_MAX).collect();
            reason = format!("{reason}: {said}");
        }
        let body = Ending { unbegun, ..ending(&attempt.dot, executor, &reason, Tree::Gone) };
        let elements = attempt.element.map(Ranges::one);
        self.write_elements(id, generation, elements.clone(), Body::Revoked(body));
        // One that ends hands back for good; one that goes on might do so for ever.
        if !draining && !unbegun {
            self.back_off_task(id, elements.as_ref(), |tries| tries.revoked);
            self.avoid(executor);
        }
    }

    /// The generation of an attempt that is under way.
    fn generation_if_running(&self, id: JobId, attempt: &AttemptId) -> Option<u32> {
        let task = self.jobs.get(&id)?.facts.task(attempt.element);
        let found = task.running().find(|(fact, _)| fact.dot == attempt.dot);
        found.map(|(fact, _)| fact.generation)
    }

    /// Leaves an executor alone for a moment that could not begin what it was given: it would look
    /// free all the time.
    fn avoid(&mut self, executor: &ExecutorId) {
        let until = self.now.mono.after(limits::AVOID_AFTER_HAND_BACK);
        if let Some(seat) = self.fleet.seats.get_mut(executor) {
            seat.avoided_until = Some(until);
            self.set_timer(until, Timer::Executor(executor.clone()));
        }
    }

    /// Frees what an attempt occupied; says its job if it occupied anything.
    fn release(&mut self, executor: &ExecutorId, attempt: &AttemptId) -> Option<Option<JobId>> {
        let assigned = self.fleet.seats.get_mut(executor)?.release(attempt)?;
        self.fleet.refresh(executor);
        if let Some(job) = assigned.job {
            self.released(job, attempt);
        }
        Some(assigned.job)
    }

    /// Gives up an attempt that is under way; its job goes elsewhere.
    pub(super) fn lose_attempt(
        &mut self,
        id: JobId,
        attempt: &AttemptId,
        executor: &ExecutorId,
        reason: &str,
        tree: Tree,
    ) {
        if let Some(element) = attempt.element {
            let elements = Ranges::one(element);
            return self.lose_elements(id, &attempt.dot, &elements, executor, reason, tree);
        }
        let Some(generation) = self.generation_if_running(id, attempt) else { return };
        let body = ending(&attempt.dot, executor, reason, tree);
        self.write_job(id, generation, Body::Lost(body));
        self.back_off_by_facts(id, |tries| tries.lost.saturating_sub(1));
    }

    fn back_off_task(
        &mut self,
        id: JobId,
        elements: Option<&Ranges>,
        times: impl Fn(&Tries) -> u32,
    ) {
        match elements {
            Some(elements) => self.back_off_elements(id, elements, times),
            None => self.back_off_by_facts(id, times),
        }
    }

    fn back_off_by_facts(&mut self, id: JobId, times: impl Fn(&Tries) -> u32) {
        let step = self.jobs.get(&id).map(|job| job.facts.step());
        if let Some(Step::Deploy { tries, .. }) = step {
            self.back_off(id, times(&tries));
        }
    }
}

fn ending(dot: &Dot, executor: &ExecutorId, reason: &str, tree: Tree) -> Ending {
    Ending {
        attempt: AttemptId::from(dot.clone()),
        executor: executor.clone(),
        reason: reason.to_owned(),
        unproven: (tree != Tree::Gone).then(|| UNPROVEN.to_owned()),
        unbegun: false,
    }
}
