//! What is done about jobs whose facts changed, and which waiting job goes where.

use std::time::Duration;

use super::fleet::Assigned;
use super::{Broker, Timer};
use crate::proto::event::{Output, Reply};
use crate::proto::fact::{Accepted, Body, Deployed, Reason};
use crate::proto::fold::{Attempt, Step};
use crate::proto::id::{AttemptId, Dot, ExecutorId, JobId, SessionId};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, StartOrder};
use crate::proto::precedence::Rank;
use crate::proto::view::{Ended, JobState};

/// Whether the jobs that another one waits for let it run.
enum Dependencies {
    Met,
    Open,
    Failed(JobId, JobState),
}

impl Broker {
    /// Does for every job whose facts changed what its owner has to do.
    pub(super) fn settle(&mut self) {
        if self.log.is_none() {
            return;
        }
        while let Some((_, id)) = self.unsettled.pop_first() {
            self.settle_job(id);
        }
        self.trim_cache();
    }

    fn settle_job(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let step = if self.is_ours(id) { job.facts.step() } else { Step::Nothing };
        let generation = job.facts.generation();
        let mut ready = false;
        match step {
            Step::Nothing => {}
            Step::Accept(reported) => self.accept(id, &reported),
            Step::Park { lost } => {
                let reason = format!("it took down {lost} executors");
                self.write_job(id, generation, Body::Parked(Reason { reason }));
            }
            Step::Deploy { .. } => match self.dependencies(id) {
                Dependencies::Met => ready = true,
                Dependencies::Open => {}
                Dependencies::Failed(other, state) => {
                    let reason = format!("job {other} ended as {}", state.word());
                    self.write_job(id, generation, Body::Skipped(Reason { reason }));
                }
            },
        }
        self.account(id);
        self.enqueue(id, ready);
        self.stop_orphans(id);
    }

    fn is_ours(&self, id: JobId) -> bool {
        let born = self.jobs.get(&id).and_then(|job| job.facts.birth());
        born.is_some_and(|birth| Some(self.carried_on_by(&birth.log)) == self.log.as_ref())
    }

    fn accept(&mut self, id: JobId, reported: &Dot) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(fact) = job.facts.get(reported) else { return };
        let Body::Reported(body) = &fact.body else { return };
        let Some((_, deployed)) = job.facts.attempt(&body.attempt) else { return };
        let accepted = Accepted {
            attempt: body.attempt.clone(),
            reported: reported.clone(),
            digest: body.digest,
            success: body.result.is_success(),
            fence: deployed.fence,
        };
        let generation = fact.generation;
        assert!(
            job.facts.accepted().all(|(fact, _)| fact.generation != generation),
            "a broker that knows an accept of a generation writes no other"
        );
        self.write_job(id, generation, Body::Accepted(accepted));
    }

    fn dependencies(&self, id: JobId) -> Dependencies {
        let Some((_, submitted)) = self.jobs.get(&id).and_then(|job| job.facts.submitted()) else {
            return Dependencies::Open;
        };
        let mut met = true;
        for other in &submitted.spec.after {
            match self.jobs.get(other).and_then(|job| job.facts.state()) {
                Some(JobState::Succeeded) => {}
                Some(state) if state.is_ended() => return Dependencies::Failed(*other, state),
                _ => met = false,
            }
        }
        if met { Dependencies::Met } else { Dependencies::Open }
    }

    /// Brings counts, watchers and dependants in line with the job's state.
    fn account(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (state, born) = (job.facts.state(), job.facts.birth().map(|dot| dot.log.clone()));
        if (state, &born) == (job.state, &job.born) {
            return;
        }
        if let (Some(state), Some(born)) = (job.state, job.born.take())
            && let Some(count) = self.counts.get_mut(&(born, state))
        {
            *count -= 1;
        }
        (job.state, job.born) = (state, born.clone());
        let (Some(state), Some(born)) = (state, born) else { return };
        *self.counts.entry((born, state)).or_default() += 1;
        if state.is_ended() || state == JobState::Parked {
            self.tell_end(id);
        }
        if state.is_ended() {
            let dependants = self.dependants.get(&id).cloned().unwrap_or_default();
            dependants.into_iter().for_each(|dependant| self.unsettle(dependant));
        }
    }

    fn tell_end(&mut self, id: JobId) {
        let Some(watchers) = self.watchers.remove(&id) else { return };
        let Some(ended) = self.ended(id) else { return };
        for watcher in watchers {
            if let Some(watched) = self.watched.get_mut(&watcher.request) {
                watched.remove(&id);
                if watched.is_empty() {
                    self.watched.remove(&watcher.request);
                }
            }
            self.reply(watcher.request, Reply::Ended(Box::new(ended.clone())));
        }
    }

    /// How a job ended, or why it is parked; nothing while it waits or runs.
    pub(super) fn ended(&self, id: JobId) -> Option<Ended> {
        let job = self.jobs.get(&id)?;
        let state = job.facts.state()?;
        if !state.is_ended() && state != JobState::Parked {
            return None;
        }
        let generation = job.facts.generation();
        let result = job.facts.winner(generation).and_then(|(_, accepted)| {
            let fact = job.facts.get(&accepted.reported)?;
            match &fact.body {
                Body::Reported(body) => Some((fact.dot.clone(), std::sync::Arc::clone(body))),
                _ => None,
            }
        });
        let said = |body: &Body| match body {
            Body::Cancelled(body) | Body::Expired(body) | Body::Skipped(body) => {
                Some(body.reason.clone())
            }
            Body::Parked(body) => Some(body.reason.clone()),
            _ => None,
        };
        let end = job.facts.end(generation).map(|(_, fact)| fact);
        let why = end.or_else(|| job.facts.parked(generation)).filter(|_| result.is_none());
        Some(Ended {
            job: id,
            state,
            generation,
            result,
            is_final: state.is_ended() && self.is_final(),
            clock: job.facts.clock().clone(),
            reason: why.and_then(|fact| said(&fact.body)),
        })
    }

    /// Puts a job into the queue, takes it out, or sets the alarm for the end of its back-off.
    fn enqueue(&mut self, id: JobId, ready: bool) {
        let now = self.now.mono;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let spec = std::sync::Arc::clone(&submitted.spec);
        if ready && job.not_before > now {
            let due = job.not_before;
            self.set_timer(due, Timer::Retry(id));
            return;
        }
        match (ready, job.queued) {
            (true, None) => {
                let rank = Rank::new(spec.precedence, job.since, job.arrival);
                job.queued = Some(rank);
                self.queue.insert(spec.kind(), &spec.needs, rank, id, spec.precedence);
            }
            (false, Some(rank)) => {
                job.queued = None;
                self.queue.remove(spec.kind(), &spec.needs, rank);
            }
            _ => {}
        }
    }

    /// Tells executors to stop attempts that count no more.
    fn stop_orphans(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let mut orphans: Vec<(AttemptId, ExecutorId, String)> = Vec::new();
        for (fact, deployed) in job.facts.deployed() {
            let attempt = AttemptId(fact.dot.clone());
            let seat = self.fleet.seats.get(&deployed.executor);
            let assigned = seat.and_then(|seat| seat.assigned.get(&attempt));
            if assigned.is_none_or(|assigned| assigned.stopping) {
                continue;
            }
            let reason = match job.facts.standing(fact) {
                Attempt::Running => continue,
                Attempt::Ended => "its result came in",
                Attempt::Lost(reason) | Attempt::Revoked(reason) => reason,
            };
            orphans.push((attempt, deployed.executor.clone(), reason.to_owned()));
        }
        for (attempt, executor, reason) in orphans {
            let Some(seat) = self.fleet.seats.get_mut(&executor) else { continue };
            if let Some(assigned) = seat.assigned.get_mut(&attempt) {
                assigned.stopping = true;
            }
            if let Some(session) = seat.session {
                self.send(session, BrokerMessage::Stop { attempt, reason });
            }
        }
    }

    pub(super) fn send(&mut self, session: SessionId, message: BrokerMessage) {
        self.outputs.push_back(Output::Send { session, message });
    }

    /// Deploys what waits on what is free, the least rank first, until nothing fits.
    pub(super) fn deploy_waiting(&mut self) {
        self.backlog = false;
        while self.log.is_some() && self.fleet.has_room() && !self.queue.is_empty() {
            if self.pending.facts.len() >= limits::FACTS_PER_BATCH_MAX {
                self.backlog = true;
                return;
            }
            let (now, suspect_after) = (self.now.mono, self.config.suspect_after);
            let candidates = self.queue.heads().filter_map(|(kind, needs, rank, job)| {
                let executor = self.fleet.choose(kind, needs, now, suspect_after)?;
                Some((rank, job, executor))
            });
            let Some((_, job, executor)) = candidates.min_by_key(|(rank, ..)| *rank) else {
                return;
            };
            let executor = executor.clone();
            self.deploy(job, &executor);
            self.settle();
        }
    }

    fn deploy(&mut self, id: JobId, executor: &ExecutorId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Step::Deploy { fence, .. } = job.facts.step() else {
            unreachable!("only jobs that want an attempt stand in the queue");
        };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let spec = std::sync::Arc::clone(&submitted.spec);
        let Some(hello) = self.fleet.seats.get(executor).and_then(|seat| seat.hello.as_ref())
        else {
            return;
        };
        let life = hello.incarnation.life;
        let generation = self.generation_of(id);
        let body = Deployed { executor: executor.clone(), life, fence };
        let attempt = AttemptId(self.write_job(id, generation, Body::Deployed(body)));
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        let assigned = Assigned { job: Some(id), needs: spec.needs.clone(), stopping: false };
        seat.assign(attempt.clone(), assigned);
        let session = seat.session;
        self.fleet.refresh(executor);
        self.start(session, id, &attempt);
        self.tell_deployed(id, &attempt, executor, session);
    }

    /// Tells those who watch a job's attempts where one of them runs now.
    pub(super) fn tell_deployed(
        &mut self,
        id: JobId,
        attempt: &AttemptId,
        executor: &ExecutorId,
        session: Option<SessionId>,
    ) {
        let watchers = self.watchers.get(&id).cloned().unwrap_or_default();
        for watcher in watchers.into_iter().filter(|watcher| watcher.attempts) {
            let (attempt, executor) = (attempt.clone(), executor.clone());
            let reply = Reply::Deployed { job: id, attempt, executor, session };
            self.reply(watcher.request, reply);
        }
    }

    /// Sends the order to run an attempt.
    pub(super) fn start(&mut self, session: Option<SessionId>, id: JobId, attempt: &AttemptId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some((fact, deployed)) = job.facts.attempt(attempt) else { return };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let order = StartOrder {
            attempt: attempt.clone(),
            job: id,
            generation: fact.generation,
            fence: deployed.fence,
            clock: fact.clock.clone(),
            spec: std::sync::Arc::clone(&submitted.spec),
        };
        if let Some(session) = session {
            self.send(session, BrokerMessage::Start(Box::new(order)));
        }
    }

    /// Holds a job back after its attempts failed or were lost so many times.
    pub(super) fn back_off(&mut self, id: JobId, times: u32) {
        if times == 0 {
            return;
        }
        let factor = 1_u32.checked_shl(times - 1).unwrap_or(u32::MAX);
        let wait: Duration = limits::RETRY_BACKOFF_FIRST.saturating_mul(factor);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.not_before = self.now.mono.after(wait.min(limits::RETRY_BACKOFF_MAX));
        }
    }
}
