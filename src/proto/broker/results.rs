//! What executors say about attempts: results, stops; and attempts that are lost.

use std::sync::Arc;

use super::sessions::Tree;
use super::{Broker, Timer};
use crate::proto::fact::{Body, Ending, Reported};
use crate::proto::fold::{Step, Tries};
use crate::proto::id::{AttemptId, ExecutorId, JobId, SessionId};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, ExecutorMessage, ResultMessage};

/// What a `lost` fact says where nobody saw the end of the attempt's processes.
const UNPROVEN: &str = "processes of the attempt may still run on its host";

impl Broker {
    pub(super) fn handle_message(&mut self, session: SessionId, message: ExecutorMessage) {
        let Some(executor) = self.fleet.sessions.get(&session).cloned() else { return };
        self.hear(&executor);
        match message {
            ExecutorMessage::Heartbeat { load, draining } => {
                if let Some(seat) = self.fleet.seats.get_mut(&executor) {
                    seat.draining = draining;
                    if let Some(hello) = &mut seat.hello {
                        hello.load = load;
                    }
                }
                self.fleet.refresh(&executor);
                self.send(session, BrokerMessage::Heard);
            }
            ExecutorMessage::Result(message) => self.take_result(session, &executor, *message),
            ExecutorMessage::Stopped { attempt } => self.take_stopped(&executor, &attempt),
            // A second hello says nothing new; live output does not pass through the core.
            ExecutorMessage::Hello(_)
            | ExecutorMessage::Output(_)
            | ExecutorMessage::OutputEnd { .. } => {}
        }
    }

    /// Takes a result, once; it is acknowledged when it is durable, however often it comes.
    fn take_result(&mut self, session: SessionId, executor: &ExecutorId, said: ResultMessage) {
        let ResultMessage { attempt, job: id, generation, result, clock } = said;
        let assigned = self.release(executor, &attempt).flatten();
        if let Some(real) = assigned.filter(|real| *real != id) {
            self.notice(format!("executor {executor} took {attempt} for one of job {id}"));
            let reason = "its result named another job";
            self.lose_attempt(real, &attempt, executor, reason, Tree::Gone);
            self.send(session, BrokerMessage::Acknowledged { attempt });
            return;
        }
        let held = self.jobs.get(&id).map(|job| &job.facts);
        let deployed = held.and_then(|facts| facts.attempt(&attempt));
        let foreign = deployed.is_some_and(|(_, deployed)| deployed.executor != *executor);
        if foreign {
            self.notice(format!("executor {executor} sent a result of {attempt}, not its own"));
            self.send(session, BrokerMessage::Acknowledged { attempt });
            return;
        }
        if !result.is_consistent() {
            self.notice(format!("executor {executor} sent a malformed result of {attempt}"));
            let reason = "its result was malformed";
            self.lose_attempt(id, &attempt, executor, reason, Tree::Gone);
            self.send(session, BrokerMessage::Acknowledged { attempt });
            return;
        }
        let digest = result.digest();
        let generation = deployed.map_or(generation.max(1), |(fact, _)| fact.generation);
        let known = held.is_some_and(|facts| {
            facts.reported().any(|(_, body)| body.attempt == attempt && body.digest == digest)
        });
        if !known {
            let failed = !result.is_success();
            let body = Reported {
                attempt: attempt.clone(),
                executor: executor.clone(),
                digest,
                result,
                clock,
            };
            self.write_job(id, generation, Body::Reported(Arc::new(body)));
            if failed {
                self.back_off_by_facts(id, |step| step.failed);
            }
        }
        self.send(session, BrokerMessage::Acknowledged { attempt });
    }

    fn take_stopped(&mut self, executor: &ExecutorId, attempt: &AttemptId) {
        let draining = self.fleet.seats.get(executor).is_some_and(|seat| seat.draining);
        let Some(assigned) = self.release(executor, attempt) else { return };
        let Some(id) = assigned else { return };
        let running = self
            .jobs
            .get(&id)
            .is_some_and(|job| job.facts.running().any(|(fact, _)| fact.dot == attempt.0));
        if running {
            let body = Ending {
                attempt: attempt.clone(),
                executor: executor.clone(),
                reason: "its executor handed it back".into(),
                unproven: None,
            };
            let generation = self.generation_of(id);
            self.write_job(id, generation, Body::Revoked(body));
            // One that ends hands back for good; one that goes on might do so for ever.
            if !draining {
                self.back_off_by_facts(id, |step| step.revoked);
                self.avoid(executor);
            }
        }
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
        let running = self.jobs.get(&id).and_then(|job| {
            let found = job.facts.running().find(|(fact, _)| fact.dot == attempt.0);
            found.map(|(fact, _)| fact.generation)
        });
        let Some(generation) = running else { return };
        let body = Ending {
            attempt: attempt.clone(),
            executor: executor.clone(),
            reason: reason.to_owned(),
            unproven: (tree == Tree::Unproven).then(|| UNPROVEN.to_owned()),
        };
        self.write_job(id, generation, Body::Lost(body));
        // The first loss is made good at once; only a job that goes on losing has to wait.
        self.back_off_by_facts(id, |step| step.lost.saturating_sub(1));
    }

    fn back_off_by_facts(&mut self, id: JobId, times: impl Fn(&Tries) -> u32) {
        let step = self.jobs.get(&id).map(|job| job.facts.step());
        if let Some(Step::Deploy { tries, .. }) = step {
            self.back_off(id, times(&tries));
        }
    }
}
