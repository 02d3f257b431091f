//! Questions about jobs, executors and the broker itself: nothing changes by asking.

use std::collections::BTreeMap;

use super::Broker;
use crate::proto::arbitrate;
use crate::proto::event::{JobRef, Refusal, Reply, Request};
use crate::proto::fact::Fact;
use crate::proto::id::{ExecutorId, JobId, RequestId};
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::time::Monotonic;
use crate::proto::view::{AuditView, ExecutorView, JobState, JobSummary, JobView, StatusView};

impl Broker {
    /// Answers a question; requests that change something are handled elsewhere.
    pub(super) fn answer(&mut self, request: RequestId, query: Request) -> Result<(), Refusal> {
        let reply = match query {
            Request::Show { job } => Reply::Job(Box::new(self.show(&job)?)),
            Request::Why { job } => self.why(&job)?,
            Request::List { state, limit } => Reply::Jobs(self.list(state, limit)?),
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Executors => Reply::Executors(self.executors()),
            Request::Audit => Reply::Audit(Box::new(self.audit())),
            Request::Heads => self.heads(),
            Request::Submit { .. }
            | Request::Taken { .. }
            | Request::Watch { .. }
            | Request::Cancel { .. }
            | Request::Rerun { .. }
            | Request::DeclareLost { .. }
            | Request::Import { .. } => unreachable!("handled before"),
        };
        self.reply(request, reply);
        Ok(())
    }

    fn show(&self, job: &JobRef) -> Result<JobView, Refusal> {
        let missing = || Refusal::NotFound(job.0.clone());
        let task = self.find(job)?;
        let whole = &self.jobs.get(&task.job).ok_or_else(missing)?.facts;
        let facts = whole.task(task.element);
        let (born, submitted) = whole.submitted().ok_or_else(missing)?;
        let is_array = facts.states().is_some();
        let seen = super::sessions::running(&facts).into_iter();
        let observed = seen.map(|(_, executor)| {
            let heard = self.heard_ms(&executor);
            (executor, heard)
        });
        Ok(JobView {
            job: task.job,
            element: task.element,
            elements: facts.states().cloned().unwrap_or_default(),
            birth: born.dot.clone(),
            owner: self.carried_on_by(&born.dot.log).clone(),
            state: facts.state().ok_or_else(missing)?,
            generation: facts.generation(),
            spec: submitted.spec.clone(),
            clock: whole.clock().clone(),
            submitted_at: born.at.clone(),
            attempts: if is_array { vec![] } else { facts.attempt_views() },
            results: if is_array { vec![] } else { arbitrate::result_views(&facts) },
            ended: self.ended(task),
            observed: observed.collect(),
        })
    }

    pub(super) fn heard_ms(&self, executor: &ExecutorId) -> Option<u64> {
        let seat = self.fleet.seats.get(executor).filter(|seat| seat.session.is_some())?;
        Some(millis(self.now.mono.since(seat.heard)))
    }

    fn list(&self, state: Option<JobState>, limit: usize) -> Result<Vec<JobSummary>, Refusal> {
        if limit > limits::LIST_ROWS_MAX {
            return Err(Refusal::TooMany { what: "rows", limit: limits::LIST_ROWS_MAX });
        }
        let newest = self.arrivals.iter().rev().filter_map(|id| self.jobs.get_key_value(id));
        let wanted = newest.filter(|(_, job)| {
            job.state.is_some() && state.is_none_or(|wanted| job.state == Some(wanted))
        });
        Ok(wanted.take(limit).filter_map(|(id, job)| summary(*id, job)).collect())
    }

    /// The broker at a glance.
    ///
    /// # Panics
    /// No log is open yet.
    #[must_use]
    pub fn status(&self) -> StatusView {
        let mut jobs = BTreeMap::new();
        for ((_, state), count) in &self.counts {
            *jobs.entry(*state).or_default() += count;
        }
        StatusView {
            log: self.log.clone().expect("requests come after the log is open"),
            uptime_ms: millis(self.now.mono.since(self.opened)),
            vector: self.logs.vector(),
            digest: self.logs.digest(),
            jobs,
            executors: self.fleet.sessions.len() as u64,
            queued: self.queue.levels().clone(),
            detection: self.detection(),
            waits_for: self.open_logs().filter(|log| !self.is_own(log)).cloned().collect(),
        }
    }

    fn executors(&self) -> Vec<ExecutorView> {
        let seats = self.fleet.seats.iter().filter_map(|(executor, seat)| {
            let hello = seat.hello.as_ref()?;
            let now = self.now.mono;
            let silent = now.since(seat.heard) >= self.config.suspect_after;
            let later = |until: Option<Monotonic>| until.is_some_and(|until| until > now);
            let state = match seat.session {
                _ if later(seat.doubted_until) => "doubted",
                None => "away",
                Some(_) if silent => "suspect",
                Some(_) if seat.draining => "draining",
                Some(_) if later(seat.avoided_until.max(seat.failing_until)) => "avoided",
                Some(_) => "alive",
            };
            let lost_at = seat.away_until.unwrap_or(seat.heard.after(self.config.lost_after));
            let lost_at = lost_at.max(seat.doubted_until.unwrap_or_default());
            Some(ExecutorView {
                executor: executor.clone(),
                state: state.into(),
                local: seat.local,
                lost_in_ms: Some(millis(lost_at.since(now))),
                equivocations: seat.equivocations,
                heard_ms: millis(now.since(seat.heard)),
                pid: hello.pid,
                incarnation: Some(hello.incarnation.clone()),
                capability: hello.capability.clone(),
                load: hello.load,
                attempts: seat.assigned.keys().cloned().collect(),
            })
        });
        seats.collect()
    }

    /// The books: counted anew from the jobs, and compared with what was counted all along.
    fn audit(&self) -> AuditView {
        let mut view = AuditView {
            submitted: BTreeMap::new(),
            states: BTreeMap::new(),
            rows: BTreeMap::new(),
            vector: self.logs.vector(),
            faults: vec![],
        };
        for (id, job) in &self.jobs {
            let Some((born, _)) = job.facts.submitted() else { continue };
            let log = &born.dot.log;
            let count = job.facts.elements().map_or(1, Ranges::len);
            *view.submitted.entry(log.clone()).or_default() += count;
            if let Some(state) = job.facts.state() {
                *view.rows.entry(log.clone()).or_default().entry(state).or_default() += 1;
            }
            match job.facts.state() {
                Some(_) if job.facts.states().is_some() => {
                    let states = view.states.entry(log.clone()).or_default();
                    for (state, elements) in job.facts.states().into_iter().flatten() {
                        *states.entry(*state).or_default() += elements.len();
                    }
                }
                Some(state) => {
                    let states = view.states.entry(log.clone()).or_default();
                    *states.entry(state).or_default() += 1;
                }
                None => view.faults.push(format!("job {id} has no state")),
            }
            self.audit_job(*id, &mut view.faults);
        }
        let counted = self.counts.iter().filter(|(_, count)| **count > 0);
        let counted: BTreeMap<_, u64> = counted.map(|(key, count)| (key.clone(), *count)).collect();
        let mut anew = BTreeMap::new();
        for (log, states) in &view.states {
            for (state, count) in states {
                anew.insert((log.clone(), *state), *count);
            }
        }
        if counted != anew {
            view.faults.push("the counts of jobs per state differ from the jobs".into());
        }
        view
    }

    fn audit_job(&self, id: JobId, faults: &mut Vec<String>) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.state != job.facts.state() {
            faults.push(format!("job {id} was not settled after its last fact"));
        }
        // What another broker deployed is watched there.
        let ours = self.is_ours(id);
        let running = super::sessions::running(&job.facts).into_iter().filter(|_| ours);
        for (attempt, executor) in running {
            let seat = self.fleet.seats.get(&executor);
            if !seat.is_some_and(|seat| seat.assigned.contains_key(&attempt)) {
                faults.push(format!("attempt {attempt} runs on no executor that is watched"));
            }
        }
        let waits = match job.facts.states() {
            Some(states) => states.contains_key(&JobState::Waiting),
            None => job.state == Some(JobState::Waiting),
        };
        if job.queued.is_some() && !waits {
            faults.push(format!("job {id} stands in the queue but does not wait"));
        }
    }
}

pub(super) fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn summary(id: JobId, job: &super::Job) -> Option<JobSummary> {
    let facts = &job.facts;
    let (born, submitted): (&Fact, _) = facts.submitted()?;
    let generation = facts.generation();
    if let Some(states) = facts.states() {
        let elements = states.iter().map(|(state, elements)| (*state, elements.len())).collect();
        return Some(JobSummary {
            job: id,
            state: job.state?,
            generation,
            spec: submitted.spec.clone(),
            submitted_at: born.at.clone(),
            executor: None,
            attempts: 0,
            exit: None,
            signal: None,
            elements,
        });
    }
    let reported = facts.winner(generation).and_then(|(_, accepted)| {
        facts.reported().find(|(fact, _)| fact.dot == accepted.reported).map(|(_, body)| body)
    });
    Some(JobSummary {
        job: id,
        state: job.state?,
        generation,
        spec: submitted.spec.clone(),
        submitted_at: born.at.clone(),
        executor: facts.deployed().last().map(|(_, deployed)| deployed.executor.clone()),
        attempts: u32::try_from(facts.deployed().count()).unwrap_or(u32::MAX),
        exit: reported.and_then(|body| body.result.exit),
        signal: reported.and_then(|body| body.result.signal),
        elements: BTreeMap::new(),
    })
}
