//! What clients ask for: submit, watch, cancel, rerun, declare an executor lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sessions::Tree;
use super::{Broker, Watcher};
use crate::proto::event::{JobRef, Refusal, Reply, Request, Submission};
use crate::proto::fact::{Body, Reason, Submitted};
use crate::proto::id::{ExecutorId, JobId, RequestId, TaskId};
use crate::proto::ranges::Ranges;
use crate::proto::view::JobState;

impl Broker {
    pub(super) fn handle_request(&mut self, request: RequestId, body: Request) {
        let done = match body {
            Request::Submit { submissions, watch } => {
                for submission in submissions {
                    self.submit(request, &submission, watch);
                }
                Ok(())
            }
            Request::Taken { count } => {
                self.take_told(request, count);
                Ok(())
            }
            Request::Watch { job, attempts } => self.watch(request, &job, attempts),
            Request::Cancel { job, reason } => self.cancel(request, &job, reason),
            Request::Rerun { job, reason } => self.rerun(request, &job, reason),
            Request::DeclareLost { executor, reason } => {
                self.declare_lost(request, executor, &reason)
            }
            Request::Import { facts, marks } => {
                self.import(request, facts, &marks);
                Ok(())
            }
            query => self.answer(request, query),
        };
        if let Err(refusal) = done {
            self.reply(request, Reply::Refused { index: None, refusal });
        }
    }

    /// Nobody waits for this request any more.
    pub(super) fn close_request(&mut self, request: RequestId) {
        self.credits.remove(&request);
        for task in self.watched.remove(&request).unwrap_or_default() {
            if let Some(watchers) = self.watchers.get_mut(&task) {
                watchers.retain(|watcher| watcher.request != request);
                if watchers.is_empty() {
                    self.watchers.remove(&task);
                }
            }
            if let Some(watches) = self.array_watches.get_mut(&task.job) {
                watches.remove(&request);
                if watches.is_empty() {
                    self.array_watches.remove(&task.job);
                }
            }
        }
    }

    /// The job or element that a client means.
    pub(super) fn find(&self, named: &JobRef) -> Result<TaskId, Refusal> {
        let missing = || Refusal::NotFound(named.0.chars().take(80).collect());
        let Some((job, element)) = named.0.split_once('/') else {
            return self.find_job(&named.0).map(TaskId::from);
        };
        let id = self.find_job(job)?;
        let digits = !element.is_empty() && element.bytes().all(|b| b.is_ascii_digit());
        let element: u64 = element.parse().ok().filter(|_| digits).ok_or_else(missing)?;
        let elements = self.jobs.get(&id).and_then(|job| job.facts.elements());
        match elements {
            Some(elements) if elements.contains(element) => Ok(TaskId::new(id, Some(element))),
            _ => Err(missing()),
        }
    }

    fn find_job(&self, text: &str) -> Result<JobId, Refusal> {
        let shown = || text.chars().take(80).collect::<String>();
        let known = |id: &JobId| self.jobs.get(id).is_some_and(|job| job.state.is_some());
        if let Ok(id) = text.parse::<JobId>() {
            return if known(&id) { Ok(id) } else { Err(Refusal::NotFound(shown())) };
        }
        let suffix = text.to_ascii_lowercase();
        let legal = |b: u8| b.is_ascii_hexdigit() || b == b'-';
        if suffix.is_empty() || !suffix.bytes().all(legal) {
            return Err(Refusal::NotFound(shown()));
        }
        let ends = |id: &&JobId| id.ends_with(&suffix) && known(id);
        let mut found = self.jobs.keys().filter(ends);
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(*id),
            (None, _) => Err(Refusal::NotFound(shown())),
            (Some(_), Some(_)) => Err(Refusal::Ambiguous(shown())),
        }
    }

    fn submit(&mut self, request: RequestId, submission: &Submission, watch: bool) {
        let index = submission.index;
        match self.take_submission(submission) {
            Err(refusal) => self.reply(request, Reply::Refused { index: Some(index), refusal }),
            Ok((job, known)) => {
                let elements = submission.spec.array.as_ref().map(Ranges::len);
                self.reply(request, Reply::Submitted { index, job, known, elements });
                match elements {
                    _ if !watch => {}
                    Some(_) => self.watch_array(request, job),
                    None => self.add_watcher(request, job.into(), false),
                }
            }
        }
    }

    /// Takes a job, unless it has been taken before; says which it was.
    fn take_submission(&mut self, submission: &Submission) -> Result<(JobId, bool), Refusal> {
        let spec = &submission.spec;
        spec.validate()?;
        let id = match &spec.key {
            Some(key) => JobId::keyed(key, &spec.digest()),
            None => submission.id.unwrap_or_else(|| JobId::random(self.now.wall, &mut self.rng)),
        };
        if let Some((_, held)) = self.jobs.get(&id).and_then(|job| job.facts.submitted()) {
            return if held.spec == *spec { Ok((id, true)) } else { Err(Refusal::IdTaken(id)) };
        }
        if let Some(key) = &spec.key
            && let Some(job) = self.keys.get(key)
        {
            return Err(Refusal::KeyConflict { key: key.clone(), job: *job });
        }
        if let Some(home) = &spec.home
            && Some(self.carried_on_by(home)) != self.log.as_ref()
        {
            return Err(Refusal::HomeElsewhere(home.clone()));
        }
        let known = |id: &JobId| self.jobs.get(id).is_some_and(|job| job.facts.birth().is_some());
        if let Some(other) = spec.after.iter().find(|other| !known(other)) {
            return Err(Refusal::AfterUnknown(*other));
        }
        let more = spec.array.as_ref().map_or(1, Ranges::len);
        // What waits for another broker is no burden of ours.
        if self.count_own(JobState::Waiting).saturating_add(more) > self.config.queued_max {
            return Err(Refusal::QueueFull(self.config.queued_max));
        }
        let retention_ms = self.config.retention_ms;
        let began_us = spec.deadline.map(|_| self.now.mono.0);
        let body = Submitted { spec: Arc::clone(spec), retention_ms, began_us };
        self.write_job(id, 1, Body::Submitted(body));
        self.settle();
        Ok((id, false))
    }

    /// Jobs in a state, over all logs.
    fn count_own(&self, state: JobState) -> u64 {
        let of_state =
            self.counts.iter().filter(|((log, counted), _)| *counted == state && self.is_own(log));
        of_state.map(|(_, count)| *count).sum()
    }

    fn watch(&mut self, request: RequestId, job: &JobRef, attempts: bool) -> Result<(), Refusal> {
        let task = self.find(job)?;
        let all = self.jobs.get(&task.job).and_then(|job| job.facts.elements()).map(Ranges::len);
        if let (None, Some(elements)) = (task.element, all) {
            self.reply(request, Reply::Watched { elements });
            self.watch_array(request, task.job);
            return Ok(());
        }
        if attempts {
            self.tell_current_attempt(request, task);
        }
        self.add_watcher(request, task, attempts);
        Ok(())
    }

    fn tell_current_attempt(&mut self, request: RequestId, task: TaskId) {
        let Some(job) = self.jobs.get(&task.job) else { return };
        let facts = job.facts.task(task.element);
        let Some((fact, deployed)) = facts.running().last() else { return };
        let reply = Reply::Deployed {
            task,
            attempt: facts.attempt_id(fact),
            executor: deployed.executor.clone(),
            session: self.fleet.seats.get(&deployed.executor).and_then(|seat| seat.session),
        };
        drop(facts);
        self.reply(request, reply);
    }

    /// Tells the end at once where there is one, else when it comes.
    fn add_watcher(&mut self, request: RequestId, task: TaskId, attempts: bool) {
        match self.ended(task) {
            Some(ended) => self.reply(request, Reply::Ended(Box::new(ended))),
            None => {
                self.watchers.entry(task).or_default().insert(Watcher { request, attempts });
                self.watched.entry(request).or_default().insert(task);
            }
        }
    }

    fn cancel(&mut self, request: RequestId, job: &JobRef, reason: String) -> Result<(), Refusal> {
        let task = self.find(job)?;
        let state = self.state_of(task);
        if state.is_ended() {
            return Err(Refusal::HasEnded { job: task, state });
        }
        for (generation, elements) in self.elements_meant(task, |state| !state.is_ended()) {
            let body = Body::Cancelled(Reason { reason: reason.clone() });
            self.write_elements(task.job, generation, elements, body);
        }
        self.settle();
        let state = self.state_of(task);
        self.reply(request, Reply::Done { task, state });
        Ok(())
    }

    fn rerun(&mut self, request: RequestId, job: &JobRef, reason: String) -> Result<(), Refusal> {
        let task = self.find(job)?;
        let state = self.state_of(task);
        if !state.is_ended() && state != JobState::Parked {
            return Err(Refusal::NotEnded { job: task, state });
        }
        if let Some(job) = self.jobs.get_mut(&task.job) {
            (job.since, job.not_before) = (self.now.mono, self.now.mono);
            job.began = self.now.mono;
        }
        let ended = |state: JobState| state.is_ended() || state == JobState::Parked;
        for (generation, elements) in self.elements_meant(task, ended) {
            let body = Body::Rerun(Reason { reason: reason.clone() });
            self.write_elements(task.job, generation + 1, elements, body);
        }
        self.settle();
        let state = self.state_of(task);
        self.reply(request, Reply::Done { task, state });
        Ok(())
    }

    /// Gives up an executor on its operator's word. One that lives all the same comes back as
    /// after a cut.
    fn declare_lost(
        &mut self,
        request: RequestId,
        executor: ExecutorId,
        reason: &str,
    ) -> Result<(), Refusal> {
        let Some(seat) = self.fleet.seats.get(&executor) else {
            return Err(Refusal::NoExecutor(executor));
        };
        let ours = seat.assigned.iter().filter(|(_, assigned)| assigned.job.is_some());
        let attempts = ours.map(|(attempt, _)| attempt.clone()).collect();
        self.detection.lost_declared += 1;
        self.lose_executor(&executor, reason, Tree::Unproven);
        self.reply(request, Reply::DeclaredLost { executor, attempts });
        Ok(())
    }

    /// What a client means of a job by its name, by generation: the job, the one element, or of an
    /// array all elements whose state is `wanted`.
    fn elements_meant(
        &self,
        task: TaskId,
        wanted: impl Fn(JobState) -> bool,
    ) -> BTreeMap<u32, Option<Ranges>> {
        let Some(job) = self.jobs.get(&task.job) else { return BTreeMap::new() };
        let Some(states) = job.facts.states().filter(|_| task.element.is_none()) else {
            let elements = task.element.map(Ranges::one);
            return BTreeMap::from([(self.generation_of(task), elements)]);
        };
        let mut meant: BTreeMap<u32, Option<Ranges>> = BTreeMap::new();
        for (_, elements) in states.iter().filter(|(state, _)| wanted(**state)) {
            for (first, last) in job.facts.parts(elements) {
                let generation = job.facts.task(Some(first)).generation();
                let held = meant.entry(generation).or_default().get_or_insert_default();
                held.insert_run(first, last);
            }
        }
        meant
    }

    /// The state of a job or element that `find` found.
    pub(super) fn state_of(&self, task: TaskId) -> JobState {
        let Some(job) = self.jobs.get(&task.job) else { return JobState::Waiting };
        let state = match task.element {
            Some(_) => job.facts.task(task.element).state(),
            None => job.state,
        };
        state.unwrap_or(JobState::Waiting)
    }

    pub(super) fn generation_of(&self, task: TaskId) -> u32 {
        self.jobs.get(&task.job).map_or(1, |job| job.facts.task(task.element).generation())
    }
}
