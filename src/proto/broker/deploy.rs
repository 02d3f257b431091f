//! What is done about jobs whose facts changed, and which waiting job goes where.

use std::time::Duration;

use super::fleet::Assigned;
use super::{Broker, Timer};
use crate::proto::event::{Output, Reply};
use crate::proto::fact::{Accepted, Body, Deployed, Reason};
use crate::proto::fold::{Attempt, JobFacts, Step};
use crate::proto::id::{AttemptId, Digest, Dot, ExecutorId, JobId, LogId, SessionId, TaskId};
use crate::proto::job::Overlap;
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, StartOrder};
use crate::proto::precedence::Rank;
use crate::proto::ranges::Ranges;
use crate::proto::time::Monotonic;
use crate::proto::units::Span;
use crate::proto::view::{Ended, JobState};

/// Whether the jobs that another one waits for let it run.
pub(super) enum Dependencies {
    Met,
    Open,
    Failed(JobId, JobState),
}

/// An attempt that counts no more, where it is, and why.
type Orphan = (AttemptId, ExecutorId, String);

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
        if job.array.is_some() {
            self.settle_array(id, self.is_ours(id));
            let ready = self.has_ready(id);
            return self.enqueue(id, ready);
        }
        let ours = self.is_ours(id);
        let (held, _) = self.settle_ghosts(id, ours);
        let Some(job) = self.jobs.get(&id) else { return };
        let step = match job.facts.step() {
            step if ours => step,
            Step::Accept(reported) if self.accepts_for_another(id, &reported) => {
                Step::Accept(reported)
            }
            _ => Step::Nothing,
        };
        let generation = job.facts.generation();
        let mut ready = false;
        match step {
            _ if self.expire(id, &step) => {}
            Step::Nothing => {}
            Step::Accept(reported) => self.accept(id, &reported, None),
            Step::Park { lost } => {
                let reason = format!("it took down {lost} executors");
                self.write_job(id, generation, Body::Parked(Reason { reason }));
            }
            Step::Deploy { .. } => match self.dependencies(id) {
                Dependencies::Met => ready = !held && !self.occupied(id).0,
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

    pub(super) fn is_ours(&self, id: JobId) -> bool {
        let owner = self.jobs.get(&id).and_then(|job| job.facts.owner());
        owner.is_some_and(|log| self.is_own(log))
    }

    /// Whether a log is the one that is written here, or one that it continues.
    pub(super) fn is_own(&self, log: &LogId) -> bool {
        Some(self.carried_on_by(log)) == self.log.as_ref()
    }

    /// Whether a fact was written by another broker. What is known only as a result brought it
    /// along may be of a log of ours that a restored disk forgot.
    pub(super) fn is_of_another(&self, dot: &Dot) -> bool {
        !self.is_own(&dot.log) && self.logs.head(&dot.log).seq >= dot.seq
    }

    /// Whether a result of another broker's job is accepted here: a success that was reported here,
    /// while that broker cannot be reached.
    pub(super) fn accepts_for_another(&self, id: JobId, reported: &Dot) -> bool {
        let Some(fact) = self.jobs.get(&id).and_then(|job| job.facts.get(reported)) else {
            return false;
        };
        let here = Some(self.carried_on_by(&reported.log)) == self.log.as_ref();
        matches!(&fact.body, Body::Reported(body) if here && body.result.is_success())
    }

    /// Writes the accept of a report, of an array's job for some elements.
    pub(super) fn accept(&mut self, id: JobId, reported: &Dot, elements: Option<Ranges>) {
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
        let task = job.facts.task(elements.as_ref().and_then(Ranges::first));
        assert!(
            task.accepted().all(|(fact, _)| fact.generation != generation),
            "a broker that knows an accept of a generation writes no other"
        );
        drop(task);
        self.write_elements(id, generation, elements, Body::Accepted(accepted));
    }

    pub(super) fn dependencies(&self, id: JobId) -> Dependencies {
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
            self.tell_end(id.into());
        }
        if state.is_ended() {
            let dependants = self.dependants.get(&id).cloned().unwrap_or_default();
            dependants.into_iter().for_each(|dependant| self.unsettle(dependant));
        }
    }

    pub(super) fn tell_end(&mut self, task: TaskId) {
        let Some(watchers) = self.watchers.remove(&task) else { return };
        let Some(ended) = self.ended(task) else { return };
        for watcher in watchers {
            if let Some(watched) = self.watched.get_mut(&watcher.request) {
                watched.remove(&task);
                if watched.is_empty() {
                    self.watched.remove(&watcher.request);
                }
            }
            self.reply(watcher.request, Reply::Ended(Box::new(ended.clone())));
        }
    }

    /// How a task ended, or why it is parked; nothing while it waits or runs. Of an array as a
    /// whole there is only the state.
    pub(super) fn ended(&self, task: TaskId) -> Option<Ended> {
        let job = self.jobs.get(&task.job)?;
        let facts = job.facts.task(task.element);
        let state = facts.state()?;
        if !state.is_ended() && state != JobState::Parked {
            return None;
        }
        let generation = facts.generation();
        let whole = facts.states().is_some();
        let winner = if whole { None } else { facts.winner(generation) };
        let result = winner.and_then(|(_, accepted)| {
            let fact = facts.get(&accepted.reported)?;
            Some((fact.dot.clone(), fact.report(task.element)?))
        });
        let said = |body: &Body| match body {
            Body::Cancelled(body) | Body::Expired(body) | Body::Skipped(body) => {
                Some(body.reason.clone())
            }
            Body::Parked(body) => Some(body.reason.clone()),
            _ => None,
        };
        let end = facts.end(generation).map(|(_, fact)| fact);
        let why = end.or_else(|| facts.parked(generation));
        let why = why.filter(|_| result.is_none() && !whole);
        let submitted = facts.submitted().or_else(|| job.facts.submitted());
        let item = task.element.and_then(|element| submitted?.1.spec.item(element).cloned());
        Some(Ended {
            job: task.job,
            element: task.element,
            item,
            state,
            generation,
            result,
            is_final: state.is_ended() && self.is_final() && self.is_ours(task.job),
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
        let due = job.not_before.max(job.held_until);
        let due = if spec.overlap == Overlap::Forbid { due.max(self.leases_over) } else { due };
        if ready && due > now {
            if let Some(rank) = job.queued.take() {
                self.queue.remove(spec.kind(), &spec.needs, rank);
            }
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
        let mut orphans = vec![];
        self.find_orphans(id, &job.facts, &mut orphans);
        self.stop(orphans);
    }

    /// The same for elements of an array.
    pub(super) fn stop_orphans_of(&mut self, id: JobId, elements: &Ranges) {
        let Some(job) = self.jobs.get(&id) else { return };
        let mut orphans = vec![];
        for (first, last) in job.facts.parts(elements) {
            // Those of one part have the same attempts; most parts have none that is to stop.
            let standing = job.facts.task(Some(first));
            let is_elsewhere =
                |deployed: &Deployed| !self.fleet.seats.contains_key(&deployed.executor);
            let stays = |(fact, deployed): (&_, &Deployed)| {
                is_elsewhere(deployed) || standing.standing(fact) == Attempt::Running
            };
            if standing.deployed().all(stays) {
                continue;
            }
            for element in first..=last {
                self.find_orphans(id, &job.facts.task(Some(element)), &mut orphans);
            }
        }
        self.stop(orphans);
    }

    fn find_orphans(&self, id: JobId, facts: &JobFacts, orphans: &mut Vec<Orphan>) {
        for (fact, deployed) in facts.deployed() {
            let attempt = facts.attempt_id(fact);
            let seat = self.fleet.seats.get(&deployed.executor);
            let assigned = seat.and_then(|seat| seat.assigned.get(&attempt));
            let judged = self.is_ghost(id, &attempt);
            if assigned.is_none_or(|assigned| assigned.stopping) || judged {
                continue;
            }
            let reason = match facts.standing(fact) {
                Attempt::Running => continue,
                Attempt::Ended => "its result came in",
                Attempt::Lost(reason) | Attempt::Revoked(reason) => reason,
            };
            orphans.push((attempt, deployed.executor.clone(), reason.to_owned()));
        }
    }

    pub(super) fn stop(&mut self, orphans: Vec<Orphan>) {
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
            let Some((job, executor)) = self.next_to_deploy() else { return };
            if self.jobs.get(&job).is_some_and(|job| job.array.is_some()) {
                self.deploy_elements(job, &executor);
            } else {
                self.deploy(job, &executor);
            }
            self.settle();
        }
    }

    /// The waiting job of the least rank that fits anywhere, and where.
    fn next_to_deploy(&self) -> Option<(JobId, ExecutorId)> {
        let (now, suspect_after) = (self.now.mono, self.config.suspect_after);
        let mut heads: Vec<_> = self.queue.heads().collect();
        heads.sort_unstable_by_key(|(_, _, rank, _)| *rank);
        let mut ahead = true;
        for (kind, needs, _, job) in heads {
            // One whose executor was lost before must not stand behind others; until a slot is
            // free for it nobody is let in front of it.
            let cautious = self.is_cautious(job);
            let wanted = (kind, needs, ahead && !cautious);
            if let Some(executor) = self.fleet.choose(wanted, now, suspect_after) {
                return Some((job, executor.clone()));
            }
            ahead &= !cautious;
        }
        None
    }

    /// Has an executor looked after that was given attempts ahead of its free slots.
    pub(super) fn watch_recall(&mut self, executor: &ExecutorId, now: Monotonic) {
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        if seat.is_ahead() && !std::mem::replace(&mut seat.recall_watched, true) {
            seat.result_at = now;
            let due = now.after(limits::RECALL_AFTER);
            self.set_timer(due, Timer::Recall(executor.clone()));
        }
    }

    /// Calls back what did not begin where nothing has ended for a while: others may be free.
    pub(super) fn check_recall(&mut self, executor: &ExecutorId) {
        let now = self.now.mono;
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        seat.recall_watched = false;
        if !seat.is_ahead() {
            return;
        }
        let due = seat.result_at.after(limits::RECALL_AFTER);
        if due > now {
            seat.recall_watched = true;
            self.set_timer(due, Timer::Recall(executor.clone()));
            return;
        }
        seat.took = None;
        if let Some(session) = seat.session {
            self.send(session, BrokerMessage::Recall);
        }
    }

    fn deploy(&mut self, id: JobId, executor: &ExecutorId) {
        let Some(job) = self.jobs.get(&id) else { return };
        if self.is_overdue(id) {
            // Its timer is due as well, and comes after this.
            return self.unsettle(id);
        }
        let Step::Deploy { fence, .. } = job.facts.step() else {
            return self.forget_queued(id);
        };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let spec = std::sync::Arc::clone(&submitted.spec);
        let Some(hello) = self.fleet.seats.get(executor).and_then(|seat| seat.hello.as_ref())
        else {
            return;
        };
        let life = hello.incarnation.life;
        let generation = job.facts.generation();
        let lease_ms = self.lease_ms(id);
        let body = Deployed { executor: executor.clone(), life, fence, lease_ms };
        let attempt = AttemptId::from(self.write_job(id, generation, Body::Deployed(body)));
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        let assigned = Assigned { job: Some(id), needs: spec.needs.clone(), stopping: false };
        seat.assign(attempt.clone(), assigned);
        let session = seat.session;
        self.fleet.refresh(executor);
        self.start(session, id, &attempt, None);
        self.watch_recall(executor, self.now.mono);
        self.tell_deployed(id, &attempt, executor, session);
    }

    /// Takes a job out of the queue that does not want an attempt: a fault of ours, but none that
    /// work may end for.
    pub(super) fn forget_queued(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.queued = None;
        }
        self.queue.purge(id);
        self.notice(format!("job {id} stood in the queue though it wants no attempt"));
    }

    /// Tells those who watch a job's attempts where one of them runs now.
    pub(super) fn tell_deployed(
        &mut self,
        id: JobId,
        attempt: &AttemptId,
        executor: &ExecutorId,
        session: Option<SessionId>,
    ) {
        let task = TaskId::new(id, attempt.element);
        let watchers = self.watchers.get(&task).cloned().unwrap_or_default();
        for watcher in watchers.into_iter().filter(|watcher| watcher.attempts) {
            let (attempt, executor) = (attempt.clone(), executor.clone());
            let reply = Reply::Deployed { task, attempt, executor, session };
            self.reply(watcher.request, reply);
        }
    }

    /// Sends the order to run an attempt, or those at some elements of an array.
    pub(super) fn start(
        &mut self,
        session: Option<SessionId>,
        id: JobId,
        attempt: &AttemptId,
        elements: Option<&Ranges>,
    ) {
        let lean = elements.and_then(|_| self.lean_spec(id));
        let Some(job) = self.jobs.get(&id) else { return };
        let Some((fact, deployed)) = job.facts.attempt(attempt) else { return };
        let Some((_, submitted)) = job.facts.submitted() else { return };
        let spec = &submitted.spec;
        let items = elements.into_iter().flat_map(Ranges::iter);
        let order = StartOrder {
            attempt: AttemptId::from(attempt.dot.clone()),
            job: id,
            generation: fact.generation,
            fence: deployed.fence,
            clock: fact.clock.clone(),
            spec: lean.unwrap_or_else(|| std::sync::Arc::clone(spec)),
            items: items.filter_map(|element| spec.item(element).cloned()).collect(),
            elements: elements.cloned(),
            lease: deployed.lease_ms.map(Span::from_millis),
            checkpoints: task_checkpoints(&job.facts, attempt, elements, fact.generation),
            carried: carried(&job.facts, attempt),
        };
        if let Some(session) = session {
            self.send(session, BrokerMessage::Start(Box::new(order)));
        }
    }

    /// Holds a job back after its attempts failed or were lost so many times.
    pub(super) fn back_off(&mut self, id: JobId, times: u32) {
        if let (Some(wait), Some(job)) = (back_off(times), self.jobs.get_mut(&id)) {
            job.not_before = self.now.mono.after(wait);
        }
    }
}

/// What an attempt may begin with. Elements that have any are deployed by themselves.
fn task_checkpoints(
    facts: &JobFacts,
    attempt: &AttemptId,
    elements: Option<&Ranges>,
    generation: u32,
) -> Vec<Digest> {
    let alone = elements.filter(|elements| elements.len() == 1).and_then(Ranges::first);
    if elements.is_some() && alone.is_none() {
        return vec![];
    }
    facts.task(alone.or(attempt.element)).checkpoints(generation)
}

/// The facts that explain an attempt, where they are not too long to be carried about.
fn carried(facts: &JobFacts, attempt: &AttemptId) -> Vec<std::sync::Arc<str>> {
    let lines = facts.explanation(attempt);
    let bytes: usize = lines.iter().map(|line| line.len()).sum();
    if bytes > limits::CARRIED_BYTES_MAX { vec![] } else { lines }
}

/// How long a task waits that failed or was lost so many times.
pub(super) fn back_off(times: u32) -> Option<Duration> {
    let factor = 1_u32.checked_shl(times.checked_sub(1)?).unwrap_or(u32::MAX);
    let wait = limits::RETRY_BACKOFF_FIRST.saturating_mul(factor);
    Some(wait.min(limits::RETRY_BACKOFF_MAX))
}
