//! Why a job stands where it stands: what it waits for, where it runs, how it ended.
//!
//! For people: sentences without a job's id, the most telling first, at most
//! [`limits::REASONS_MAX`]. What programs need of a running job stands beside them.
//! Law: there is always a reason (tests/simulation/leaving.rs).

use std::collections::BTreeMap;

use super::Broker;
use super::queries::millis;
use crate::proto::capability::Unmet;
use crate::proto::event::{JobRef, Refusal, Reply};
use crate::proto::fact::{Deployed, Fact};
use crate::proto::fold::{JobFacts, Step};
use crate::proto::id::{JobId, LogId, TaskId};
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::view::{AttemptView, JobState, RunningView, WhyView};

impl Broker {
    pub(super) fn why(&self, job: &JobRef) -> Result<Reply, Refusal> {
        let task = self.find(job)?;
        let state = self.state_of(task);
        let running = self.running_of(task);
        let states = self.jobs.get(&task.job).and_then(|job| job.facts.states());
        let mut reasons = match states.filter(|_| task.element.is_none()) {
            Some(states) => self.why_array(task.job, states),
            None => self.why_task(task, state, &running),
        };
        if let Some(deadline) = self.why_deadline(task.job, state) {
            reasons.insert(reasons.len().min(1), deadline);
        }
        if reasons.len() > limits::REASONS_MAX {
            let more = reasons.len() - (limits::REASONS_MAX - 1);
            reasons.truncate(limits::REASONS_MAX - 1);
            reasons.push(format!("and {more} more"));
        }
        let spec = self.jobs.get(&task.job).and_then(|job| job.facts.submitted());
        let name = spec.and_then(|(_, submitted)| submitted.spec.name.clone());
        let TaskId { job, element } = task;
        Ok(Reply::Why(Box::new(WhyView { job, element, name, state, reasons, running })))
    }

    fn why_task(&self, task: TaskId, state: JobState, running: &[RunningView]) -> Vec<String> {
        match state {
            JobState::Waiting => self.why_waiting(task),
            JobState::Running => running.iter().map(where_it_runs).collect(),
            _ => self.why_ended(task, state),
        }
    }

    /// How many elements stand where, and of those that did not simply succeed why the first one
    /// does.
    fn why_array(&self, id: JobId, states: &BTreeMap<JobState, Ranges>) -> Vec<String> {
        let mut reasons = vec![];
        for (state, elements) in states {
            let (count, word) = (elements.len(), state.word());
            let plural = if count == 1 { "" } else { "s" };
            reasons.push(format!("{count} element{plural} {word}"));
            let first = elements.first().filter(|_| *state != JobState::Succeeded);
            if let Some(element) = first {
                let task = TaskId::new(id, Some(element));
                let why = self.why_task(task, *state, &self.running_of(task));
                let why = why.into_iter().take(limits::REASONS_MAX / 4);
                reasons.extend(why.map(|why| format!("element {element}: {why}")));
            }
        }
        reasons
    }

    /// The attempts under way; of an array as a whole the first.
    fn running_of(&self, task: TaskId) -> Vec<RunningView> {
        let Some(job) = self.jobs.get(&task.job) else { return vec![] };
        let first = |states: &BTreeMap<JobState, Ranges>| {
            states.get(&JobState::Running).and_then(Ranges::first)
        };
        let facts = match task.element.or_else(|| job.facts.states().and_then(first)) {
            None if job.facts.states().is_some() => return vec![],
            element => job.facts.task(element),
        };
        let view = |(fact, deployed): (&Fact, &Deployed)| RunningView {
            attempt: facts.attempt_id(fact),
            executor: deployed.executor.clone(),
            since: fact.at.clone(),
            heard_ms: self.heard_ms(&deployed.executor),
        };
        facts.running().map(view).collect()
    }

    fn why_ended(&self, task: TaskId, state: JobState) -> Vec<String> {
        let Some(ended) = self.ended(task) else { return vec![] };
        let mut reasons: Vec<String> = ended.reason.into_iter().collect();
        if let Some((_, reported)) = &ended.result {
            let (result, executor) = (&reported.result, &reported.executor);
            let at = &result.ended_at;
            reasons.push(match (result.exit, result.signal) {
                (Some(exit), _) => format!("it ended with status {exit} on {executor}, {at}"),
                (None, Some(signal)) => format!("signal {signal} ended it on {executor}, {at}"),
                (None, None) => format!("it could not run on {executor}, {at}"),
            });
            reasons.extend(result.error.clone());
            reasons.extend(result.timed_out.then(|| "its time was over".to_owned()));
            reasons.extend(result.unproven.clone());
        }
        if state == JobState::Parked {
            reasons.push(format!("'ucp-submit rerun {task}' releases it"));
            let attempts = self.jobs.get(&task.job);
            let attempts = attempts.map(|job| job.facts.task(task.element).attempt_views());
            let of_generation = |attempt: &AttemptView| attempt.generation == ended.generation;
            let attempts = attempts.into_iter().flatten().filter(of_generation);
            reasons.extend(attempts.filter_map(|attempt| befallen(&attempt)));
        }
        if reasons.is_empty() {
            reasons.push(format!("it is {}", state.word()));
        }
        reasons
    }

    fn why_waiting(&self, task: TaskId) -> Vec<String> {
        let Some(job) = self.jobs.get(&task.job) else { return vec![] };
        let Some((_, submitted)) = job.facts.submitted() else { return vec![] };
        let spec = &submitted.spec;
        let mut reasons = self.awaited(spec);
        if !reasons.is_empty() {
            return reasons;
        }
        let delayed = match (&job.array, task.element) {
            (Some(work), Some(element)) => work.delayed_until(element),
            _ => Some(job.not_before),
        };
        if let Some(until) = delayed.filter(|until| *until > self.now.mono) {
            let wait = millis(until.since(self.now.mono));
            reasons.push(format!("it is tried again in {wait} ms"));
        }
        let leases_over =
            if self.forbids_overlap(task.job) { self.leases_over } else { self.now.mono };
        let held_until = job.held_until.max(leases_over);
        if held_until > self.now.mono {
            let wait = millis(held_until.since(self.now.mono));
            reasons
                .push(format!("an earlier attempt may still run: it is held back {wait} ms more"));
        }
        let lingering = self.lingering(task);
        if !lingering.is_empty() {
            reasons.extend(lingering);
            return reasons;
        }
        if !self.is_ours(task.job) {
            let owner = job.facts.owner().map_or("another", LogId::as_str);
            reasons.push(format!("broker {owner} deploys it, and is not reached from here"));
            return reasons;
        }
        reasons.extend(tried_before(&job.facts.task(task.element)));
        reasons.extend(self.where_it_does_not_fit(spec));
        reasons
    }

    /// Attempts whose end it waits for.
    fn lingering(&self, task: TaskId) -> Vec<String> {
        let forbids = self.forbids_overlap(task.job);
        let mut reasons = vec![];
        for (executor, seat) in &self.fleet.seats {
            let here = |id: &crate::proto::id::AttemptId| id.element == task.element;
            for (attempt, assigned) in seat.assigned.iter().filter(|(attempt, _)| here(attempt)) {
                let ours = assigned.job == Some(task.job);
                if ours && (forbids || self.is_ghost(task.job, attempt)) {
                    reasons.push(format!("attempt {attempt} is still at {executor}"));
                }
            }
        }
        reasons
    }

    /// The other jobs that it waits for.
    fn awaited(&self, spec: &JobSpec) -> Vec<String> {
        let mut reasons = vec![];
        for other in &spec.after {
            match self.jobs.get(other).and_then(|job| job.facts.state()) {
                Some(JobState::Succeeded) => {}
                Some(state) => {
                    reasons.push(format!("it waits for job {other}, which is {}", state.word()));
                }
                None => {
                    reasons.push(format!("it waits for job {other}, which is not known here"));
                }
            }
        }
        reasons
    }

    /// Why no executor takes it. Those that never could come together, by what they lack.
    fn where_it_does_not_fit(&self, spec: &JobSpec) -> Vec<String> {
        let mut reasons = vec![];
        if self.fleet.sessions.is_empty() {
            reasons.push("no executor is connected".to_owned());
        }
        let mut unfit: BTreeMap<String, u32> = BTreeMap::new();
        for (executor, seat) in &self.fleet.seats {
            let silent = self.now.mono.since(seat.heard) >= self.config.suspect_after;
            let reason = match seat.fits(spec.kind(), &spec.needs) {
                _ if seat.session.is_none() => "is not connected".to_owned(),
                _ if seat.draining => "takes nothing new, it is about to end".to_owned(),
                _ if silent => "has been silent for too long".to_owned(),
                Err(unmet @ Unmet::Busy) => {
                    let (count, slots) = (seat.assigned.len(), slots_of(seat));
                    let plural = if count == 1 { "" } else { "s" };
                    format!("{unmet}: {count} attempt{plural} on {slots} slots")
                }
                Err(unmet) => unmet.to_string(),
                Ok(()) => "fits, others go first".to_owned(),
            };
            if reasons.len() < limits::REASONS_MAX / 2 {
                reasons.push(format!("{executor}: {reason}"));
            } else {
                *unfit.entry(reason).or_default() += 1;
            }
        }
        let more = unfit.into_iter().map(|(reason, count)| match count {
            1 => format!("1 more executor: {reason}"),
            count => format!("{count} more executors: {reason}"),
        });
        reasons.extend(more);
        reasons
    }
}

fn slots_of(seat: &super::fleet::Seat) -> u32 {
    seat.hello.as_ref().map_or(0, |hello| hello.capability.slots)
}

fn where_it_runs(running: &RunningView) -> String {
    let RunningView { attempt, executor, since, heard_ms } = running;
    match heard_ms {
        Some(ms) => {
            format!("it runs on {executor} since {since}, heard of {ms} ms ago ({attempt})")
        }
        None => format!("it runs on {executor} since {since}, not connected now ({attempt})"),
    }
}

/// What befell an attempt that left no result.
fn befallen(attempt: &AttemptView) -> Option<String> {
    let reason = attempt.reason.as_ref()?;
    let AttemptView { attempt, executor, state, unproven, .. } = attempt;
    let unproven = unproven.as_ref().map_or(String::new(), |what| format!("; {what}"));
    Some(format!("attempt {attempt} on {executor} is {state}: {reason}{unproven}"))
}

pub(super) fn tried_before(facts: &JobFacts) -> Vec<String> {
    let Step::Deploy { tries, .. } = facts.step() else { return vec![] };
    let counts =
        [(tries.failed, "failed"), (tries.lost, "were lost"), (tries.revoked, "were handed back")];
    let before = counts.into_iter().filter(|(count, _)| *count > 0);
    before.map(|(count, what)| format!("{count} attempts {what} before")).collect()
}
