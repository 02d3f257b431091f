//! Attempts that are there again after they were given up.
//!
//! A *ghost* is an attempt that an executor announces though the facts call it lost, or do not
//! speak of it at all. It is kept if its job has no result and no further attempt: `regained` says
//! so, and it counts as if it had not been lost. If a further attempt runs, the ghost is stopped,
//! but only after that one's executor was heard of again: until then it may be the only one that
//! lives.
//! While a ghost lives that no fact speaks of, its job is not deployed. What belongs to a job that
//! is not known here is left alone: its result will bring the facts along (executors are couriers).
//! Source: design section 5.

use std::collections::BTreeMap;

use super::Broker;
use super::fleet::Assigned;
use crate::proto::capability::Needs;
use crate::proto::fact::{Body, Regained};
use crate::proto::fold::{Attempt, Step};
use crate::proto::id::{AttemptId, Dot, ExecutorId, JobId, SessionId};
use crate::proto::message::BrokerMessage;
use crate::proto::ranges::Ranges;
use crate::proto::time::Monotonic;
use crate::proto::view::JobState;

/// An attempt that is there again.
#[derive(Debug, Clone)]
pub(super) struct Ghost {
    executor: ExecutorId,
    /// Since when.
    since: Monotonic,
}

/// The ghosts of each job.
pub(super) type Ghosts = BTreeMap<JobId, BTreeMap<AttemptId, Ghost>>;

/// What becomes of an attempt that an executor announces and the books do not know.
enum Claim {
    /// It counts no more.
    Stop,
    /// It may be kept.
    Ghost(JobId),
    /// Its job is not known here.
    Unknown,
}

impl Broker {
    /// An executor announces an attempt that is not in its books here.
    pub(super) fn meet(
        &mut self,
        session: SessionId,
        executor: &ExecutorId,
        attempt: &AttemptId,
        said: Option<JobId>,
    ) {
        let claim = self.claim(executor, attempt, said);
        let known = said.and_then(|id| self.jobs.get(&id)).and_then(|job| job.facts.submitted());
        let needs = known.map_or_else(Needs::default, |(_, body)| body.spec.needs.clone());
        let job = said.filter(|id| self.jobs.contains_key(id));
        let stopping = matches!(claim, Claim::Stop);
        let assigned = Assigned { job, needs, stopping };
        if let Some(seat) = self.fleet.seats.get_mut(executor) {
            seat.assign(attempt.clone(), assigned);
        }
        match claim {
            Claim::Stop => {
                let (attempt, reason) = (attempt.clone(), "it counts no more".to_owned());
                self.send(session, BrokerMessage::Stop { attempt, reason });
            }
            Claim::Ghost(id) => {
                let ghost = Ghost { executor: executor.clone(), since: self.now.mono };
                self.ghosts.entry(id).or_default().insert(attempt.clone(), ghost);
                self.unsettle_task(id, attempt.element);
            }
            Claim::Unknown => {}
        }
    }

    fn claim(&self, executor: &ExecutorId, attempt: &AttemptId, said: Option<JobId>) -> Claim {
        let Some(id) = said else { return Claim::Stop };
        let Some(job) = self.jobs.get(&id) else { return Claim::Unknown };
        let task = job.facts.task(attempt.element);
        let open = match task.state() {
            Some(state) => matches!(state, JobState::Waiting | JobState::Running),
            None => return Claim::Unknown,
        };
        let wanted = match task.attempt(attempt) {
            None => open,
            Some((fact, deployed)) => {
                let lives = matches!(task.standing(fact), Attempt::Lost(_) | Attempt::Running);
                let current = fact.generation == task.generation();
                open && lives && current && deployed.executor == *executor
            }
        };
        if wanted { Claim::Ghost(id) } else { Claim::Stop }
    }

    /// Has a job settled again, of an array one element.
    pub(super) fn unsettle_task(&mut self, id: JobId, element: Option<u64>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let (Some(work), Some(element)) = (&mut job.array, element) {
            work.dirty.insert(element);
        }
        self.unsettled.insert((job.arrival, id));
    }

    /// An executor gave a sign of life: ghosts of what runs there may be stopped now.
    pub(super) fn rouse_ghosts(&mut self) {
        let ghosts = self.ghosts.iter();
        let tasks = ghosts.flat_map(|(id, of_job)| of_job.keys().map(|a| (*id, a.element)));
        let tasks: Vec<_> = tasks.collect();
        tasks.into_iter().for_each(|(id, element)| self.unsettle_task(id, element));
    }

    /// Forgets a ghost that is there no more.
    pub(super) fn lay_ghost(&mut self, id: JobId, attempt: &AttemptId) {
        let Some(of_job) = self.ghosts.get_mut(&id) else { return };
        if of_job.remove(attempt).is_none() {
            return;
        }
        if of_job.is_empty() {
            self.ghosts.remove(&id);
        }
        self.unsettle_task(id, attempt.element);
    }

    pub(super) fn is_ghost(&self, id: JobId, attempt: &AttemptId) -> bool {
        self.ghosts.get(&id).is_some_and(|of_job| of_job.contains_key(attempt))
    }

    /// Keeps ghosts whose tasks would be deployed anew, and stops those that count no more. Says of
    /// which tasks one lives that no fact speaks of: the job itself, or elements.
    pub(super) fn settle_ghosts(&mut self, id: JobId, ours: bool) -> (bool, Ranges) {
        let (mut whole, mut blocked) = (false, Ranges::default());
        let Some(of_job) = self.ghosts.get(&id).cloned() else { return (whole, blocked) };
        let mut block = |attempt: &AttemptId| match attempt.element {
            Some(element) => blocked.insert(element),
            None => whole = true,
        };
        // Of several ghosts of one task the newest is kept.
        let mut kept: BTreeMap<Option<u64>, (u64, u32, AttemptId)> = BTreeMap::new();
        let mut stopped = vec![];
        for (attempt, ghost) in &of_job {
            match self.judge_ghost(id, attempt, ghost) {
                Judged::Stop => stopped.push((attempt.clone(), ghost.executor.clone())),
                Judged::Wait => {}
                Judged::Block => block(attempt),
                Judged::Keep { fence, generation } => {
                    let candidate = (fence, generation, attempt.clone());
                    let held = kept.entry(attempt.element).or_insert_with(|| candidate.clone());
                    if *held < candidate {
                        *held = candidate;
                    }
                }
            }
        }
        let mut regained: BTreeMap<(Dot, u32, ExecutorId), Option<Ranges>> = BTreeMap::new();
        for (element, (_, generation, attempt)) in kept {
            let Some(ghost) = of_job.get(&attempt).filter(|_| ours) else { continue };
            let key = (attempt.dot.clone(), generation, ghost.executor.clone());
            let elements = regained.entry(key).or_default();
            if let Some(element) = element {
                elements.get_or_insert_default().insert(element);
            }
            self.lay_ghost(id, &attempt);
        }
        for ((dot, generation, executor), elements) in regained {
            self.detection.regained += elements.as_ref().map_or(1, Ranges::len);
            let session = self.fleet.seats.get(&executor).and_then(|seat| seat.session);
            let attempt = AttemptId::from(dot.clone());
            let body = Body::Regained(Regained { attempt, executor: executor.clone() });
            let each: Vec<Option<u64>> = match &elements {
                Some(elements) => elements.iter().map(Some).collect(),
                None => vec![None],
            };
            self.write_elements(id, generation, elements, body);
            for element in each {
                let attempt = AttemptId::new(dot.clone(), element);
                self.confirm_lease(session, id, &attempt);
                self.tell_deployed(id, &attempt, &executor, session);
            }
        }
        for (attempt, executor) in stopped {
            self.lay_ghost(id, &attempt);
            self.stop(vec![(attempt, executor, "another attempt counts".to_owned())]);
        }
        (whole, blocked)
    }

    fn judge_ghost(&self, id: JobId, attempt: &AttemptId, ghost: &Ghost) -> Judged {
        let Some(job) = self.jobs.get(&id) else { return Judged::Wait };
        let task = job.facts.task(attempt.element);
        let state = task.state();
        if !matches!(state, Some(JobState::Waiting | JobState::Running)) {
            return Judged::Stop;
        }
        // It is confirmed by a word of its executor that came after the ghost.
        let confirmed = task.running().any(|(fact, deployed)| {
            let rival = task.attempt_id(fact);
            let seat = self.fleet.seats.get(&deployed.executor);
            rival != *attempt
                && seat.is_some_and(|seat| {
                    let assigned = seat.assigned.get(&rival);
                    seat.session.is_some()
                        && seat.heard > ghost.since
                        && assigned.is_some_and(|assigned| !assigned.stopping)
                })
        });
        if confirmed {
            return Judged::Stop;
        }
        let wanted = matches!(task.step(), Step::Deploy { .. });
        match task.attempt(attempt) {
            None if wanted => Judged::Block,
            None => Judged::Wait,
            Some((fact, deployed)) => match task.standing(fact) {
                Attempt::Ended | Attempt::Revoked(_) => Judged::Stop,
                Attempt::Lost(_) if wanted && fact.generation == task.generation() => {
                    Judged::Keep { fence: deployed.fence, generation: fact.generation }
                }
                Attempt::Lost(_) | Attempt::Running => Judged::Wait,
            },
        }
    }
}

/// What is to be done about a ghost.
enum Judged {
    Stop,
    /// Nothing yet.
    Wait,
    /// Its task is not to be deployed.
    Block,
    Keep {
        fence: u64,
        generation: u32,
    },
}
