//! What clients ask for: submit, watch, cancel, rerun.

use std::sync::Arc;

use super::{Broker, Watcher};
use crate::proto::event::{JobRef, Refusal, Reply, Request, Submission};
use crate::proto::fact::{Body, Reason, Submitted};
use crate::proto::id::{AttemptId, JobId, RequestId};
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
            Request::Watch { job, attempts } => self.watch(request, &job, attempts),
            Request::Cancel { job, reason } => self.cancel(request, &job, reason),
            Request::Rerun { job, reason } => self.rerun(request, &job, reason),
            query => self.answer(request, query),
        };
        if let Err(refusal) = done {
            self.reply(request, Reply::Refused { index: None, refusal });
        }
    }

    /// Nobody waits for this request any more.
    pub(super) fn close_request(&mut self, request: RequestId) {
        for job in self.watched.remove(&request).unwrap_or_default() {
            if let Some(watchers) = self.watchers.get_mut(&job) {
                watchers.retain(|watcher| watcher.request != request);
                if watchers.is_empty() {
                    self.watchers.remove(&job);
                }
            }
        }
    }

    /// The job that a client means.
    pub(super) fn find(&self, job: &JobRef) -> Result<JobId, Refusal> {
        let shown = || job.0.chars().take(80).collect::<String>();
        let known = |id: &JobId| self.jobs.get(id).is_some_and(|job| job.state.is_some());
        if let Ok(id) = job.0.parse::<JobId>() {
            return if known(&id) { Ok(id) } else { Err(Refusal::NotFound(shown())) };
        }
        let suffix = job.0.to_ascii_lowercase();
        let legal = |b: u8| b.is_ascii_hexdigit() || b == b'-';
        if suffix.is_empty() || !suffix.bytes().all(legal) {
            return Err(Refusal::NotFound(shown()));
        }
        let ends = |id: &&JobId| known(id) && id.to_string().ends_with(&suffix);
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
                self.reply(request, Reply::Submitted { index, job, known });
                if watch {
                    self.add_watcher(request, job, false);
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
        let known = |id: &JobId| self.jobs.get(id).is_some_and(|job| job.facts.birth().is_some());
        if let Some(other) = spec.after.iter().find(|other| !known(other)) {
            return Err(Refusal::AfterUnknown(*other));
        }
        if self.count(JobState::Waiting) >= self.config.queued_max {
            return Err(Refusal::QueueFull(self.config.queued_max));
        }
        let retention_ms = self.config.retention_ms;
        let body = Submitted { spec: Arc::clone(spec), retention_ms };
        self.write_job(id, 1, Body::Submitted(body));
        self.settle();
        Ok((id, false))
    }

    /// Jobs in a state, over all logs.
    pub(super) fn count(&self, state: JobState) -> u64 {
        let of_state = self.counts.iter().filter(|((_, counted), _)| *counted == state);
        of_state.map(|(_, count)| *count).sum()
    }

    fn watch(&mut self, request: RequestId, job: &JobRef, attempts: bool) -> Result<(), Refusal> {
        let id = self.find(job)?;
        if attempts {
            self.tell_current_attempt(request, id);
        }
        self.add_watcher(request, id, attempts);
        Ok(())
    }

    fn tell_current_attempt(&mut self, request: RequestId, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some((fact, deployed)) = job.facts.running().last() else { return };
        let reply = Reply::Deployed {
            job: id,
            attempt: AttemptId(fact.dot.clone()),
            executor: deployed.executor.clone(),
            session: self.fleet.seats.get(&deployed.executor).and_then(|seat| seat.session),
        };
        self.reply(request, reply);
    }

    /// Tells the end at once where there is one, else when it comes.
    fn add_watcher(&mut self, request: RequestId, id: JobId, attempts: bool) {
        match self.ended(id) {
            Some(ended) => self.reply(request, Reply::Ended(Box::new(ended))),
            None => {
                self.watchers.entry(id).or_default().insert(Watcher { request, attempts });
                self.watched.entry(request).or_default().insert(id);
            }
        }
    }

    fn cancel(&mut self, request: RequestId, job: &JobRef, reason: String) -> Result<(), Refusal> {
        let id = self.find(job)?;
        let state = self.state_of(id);
        if state.is_ended() {
            return Err(Refusal::HasEnded { job: id, state });
        }
        let generation = self.generation_of(id);
        self.write_job(id, generation, Body::Cancelled(Reason { reason }));
        self.settle();
        let state = self.state_of(id);
        self.reply(request, Reply::Done { job: id, state });
        Ok(())
    }

    fn rerun(&mut self, request: RequestId, job: &JobRef, reason: String) -> Result<(), Refusal> {
        let id = self.find(job)?;
        let state = self.state_of(id);
        if !state.is_ended() && state != JobState::Parked {
            return Err(Refusal::NotEnded { job: id, state });
        }
        let generation = self.generation_of(id) + 1;
        if let Some(job) = self.jobs.get_mut(&id) {
            (job.since, job.not_before) = (self.now.mono, self.now.mono);
        }
        self.write_job(id, generation, Body::Rerun(Reason { reason }));
        self.settle();
        let state = self.state_of(id);
        self.reply(request, Reply::Done { job: id, state });
        Ok(())
    }

    /// The state of a job that `find` found.
    pub(super) fn state_of(&self, id: JobId) -> JobState {
        self.jobs.get(&id).and_then(|job| job.state).unwrap_or(JobState::Waiting)
    }

    pub(super) fn generation_of(&self, id: JobId) -> u32 {
        self.jobs.get(&id).map_or(1, |job| job.facts.generation())
    }
}
