//! What a set of facts says about each job and each element of an array, told by the simulator's
//! own small fold.
//!
//! Shares no code with `proto::fold`: it is the second opinion that the checkers compare with.
//! It knows one broker only, so one generation never has two accepts (the checkers see to that).
//! Shape: ordered map task → [`Book`], where every element of an array has a book of its own into
//! which each fact that covers it is written; facts must come log by log in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use ucp::proto::fact::{Body, Fact, SealedFact};
use ucp::proto::id::{AttemptId, Digest, Dot, ExecutorId, JobId, LogId, TaskId};
use ucp::proto::job::JobSpec;
use ucp::proto::log::{LogError, Logs};
use ucp::proto::ranges::Ranges;
use ucp::proto::view::JobState;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its executor was gone.
    Lost,
    /// It was stopped on purpose.
    Revoked,
    /// It reported a result.
    Reported,
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct AttemptBook {
    /// Its id.
    pub attempt: AttemptId,
    /// Its generation.
    pub generation: u32,
    /// Where it was deployed.
    pub executor: ExecutorId,
    /// Its fence.
    pub fence: u64,
    /// How it ended first.
    pub end: Option<End>,
    /// Whether it reported a result, perhaps after it was thought lost.
    pub reported: bool,
}

/// What ended a generation, or holds it back.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The attempt, the content's digest and the success of the accepted result.
    pub accepted: Option<(AttemptId, Digest, bool)>,
    /// The state by a cancel, an expiry or a skip.
    pub ended: Option<JobState>,
    /// Whether it is parked.
    pub parked: bool,
}

/// One job that is no array, or one element of one.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// The first `submitted` dot; absent while only results are held.
    pub birth: Option<Dot>,
    /// What it is to do.
    pub spec: Option<Arc<JobSpec>>,
    /// The current generation.
    pub generation: u32,
    /// In order of their facts.
    pub attempts: Vec<AttemptBook>,
    /// By generation.
    pub outcomes: BTreeMap<u32, Outcome>,
    /// Attempt, digest and dot of each reported result.
    pub reports: Vec<(AttemptId, Digest, Dot)>,
}

impl Book {
    /// The outcome of the current generation.
    pub fn outcome(&self) -> Outcome {
        self.outcomes.get(&self.generation).cloned().unwrap_or_default()
    }

    /// How a generation stands.
    pub fn state_of(&self, generation: u32) -> JobState {
        let outcome = self.outcomes.get(&generation);
        if let Some(outcome) = outcome {
            if let Some((_, _, success)) = outcome.accepted {
                return if success { JobState::Succeeded } else { JobState::Failed };
            }
            if let Some(state) = outcome.ended {
                return state;
            }
            if outcome.parked {
                return JobState::Parked;
            }
        }
        let lives = |a: &AttemptBook| a.generation == generation && a.end.is_none();
        if self.attempts.iter().any(lives) { JobState::Running } else { JobState::Waiting }
    }

    /// Where the job stands.
    pub fn state(&self) -> JobState {
        self.state_of(self.generation)
    }

    /// The book of an attempt.
    pub fn attempt(&self, attempt: &AttemptId) -> Option<&AttemptBook> {
        self.attempts.iter().find(|book| book.attempt == *attempt)
    }

    fn end(&mut self, attempt: &AttemptId, end: End) {
        if let Some(book) = self.attempts.iter_mut().find(|book| book.attempt == *attempt) {
            book.end = book.end.or(Some(end));
            book.reported |= end == End::Reported;
        }
    }

    fn apply(&mut self, fact: &Fact, element: Option<u64>) {
        let generation = fact.generation;
        let named = |attempt: &AttemptId| AttemptId::new(attempt.dot.clone(), element);
        match &fact.body {
            Body::Joined(_) => {}
            Body::Submitted(body) => {
                self.birth.get_or_insert_with(|| fact.dot.clone());
                self.spec.get_or_insert_with(|| Arc::clone(&body.spec));
                self.generation = self.generation.max(1);
            }
            Body::Deployed(body) => self.attempts.push(AttemptBook {
                attempt: AttemptId::new(fact.dot.clone(), element),
                generation,
                executor: body.executor.clone(),
                fence: body.fence,
                end: None,
                reported: self.reports.iter().any(|(attempt, ..)| attempt.dot == fact.dot),
            }),
            Body::Lost(body) => self.end(&named(&body.attempt), End::Lost),
            Body::Revoked(body) => self.end(&named(&body.attempt), End::Revoked),
            Body::Reported(body) => {
                self.end(&named(&body.attempt), End::Reported);
                self.reports.push((named(&body.attempt), body.digest, fact.dot.clone()));
            }
            Body::Accepted(body) => {
                let accepted = (named(&body.attempt), body.digest, body.success);
                self.outcomes.entry(generation).or_default().accepted = Some(accepted);
            }
            Body::Rerun(_) => self.generation = self.generation.max(generation),
            Body::Parked(_) => self.outcomes.entry(generation).or_default().parked = true,
            Body::Cancelled(_) => self.end_generation(generation, JobState::Cancelled),
            Body::Expired(_) => self.end_generation(generation, JobState::Expired),
            Body::Skipped(_) => self.end_generation(generation, JobState::Skipped),
        }
    }

    fn end_generation(&mut self, generation: u32, state: JobState) {
        let outcome = self.outcomes.entry(generation).or_default();
        // A cancel counts more than an expiry, and that more than a skip.
        let rank = |state: JobState| match state {
            JobState::Cancelled => 3,
            JobState::Expired => 2,
            _ => 1,
        };
        if outcome.ended.is_none_or(|held| rank(state) > rank(held)) {
            outcome.ended = Some(state);
        }
    }
}

/// A set of facts and what it says.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The jobs that are no arrays, and the elements of those that are.
    pub tasks: BTreeMap<TaskId, Book>,
    /// The elements of the arrays whose submission is held.
    pub arrays: BTreeMap<JobId, Ranges>,
    /// How far each log goes.
    pub logs: Logs,
    /// How far the log that is being written goes.
    written: BTreeMap<LogId, u64>,
}

impl History {
    /// What these facts say.
    ///
    /// # Errors
    /// A fact does not continue its log.
    pub fn of(facts: &[SealedFact]) -> Result<Self, LogError> {
        let mut history = Self::default();
        for sealed in facts {
            history.apply(sealed)?;
        }
        Ok(history)
    }

    /// Adds a fact.
    ///
    /// # Errors
    /// It does not continue its log.
    pub fn apply(&mut self, sealed: &SealedFact) -> Result<(), LogError> {
        self.logs.extend(sealed)?;
        self.write_down(&sealed.fact);
        Ok(())
    }

    /// Adds a fact that the broker's core has just sealed: its chain is checked when it is durable.
    ///
    /// # Errors
    /// It does not follow the last fact of its log.
    pub fn apply_written(&mut self, sealed: &SealedFact) -> Result<(), LogError> {
        let dot = &sealed.fact.dot;
        let held = self.written.get(&dot.log).copied();
        let held = held.unwrap_or_else(|| self.logs.head(&dot.log).seq);
        if dot.seq != held + 1 {
            return Err(LogError::Gap { dot: dot.clone(), held });
        }
        self.written.insert(dot.log.clone(), dot.seq);
        self.write_down(&sealed.fact);
        Ok(())
    }

    fn write_down(&mut self, fact: &Fact) {
        if let (Some(job), Body::Submitted(body)) = (fact.job, &fact.body)
            && let Some(elements) = &body.spec.array
        {
            self.arrays.entry(job).or_insert_with(|| elements.clone());
        }
        for task in self.tasks_of(fact) {
            self.tasks.entry(task).or_default().apply(fact, task.element);
        }
    }

    /// The tasks that a fact is about, as far as it is known by now which there are.
    pub fn tasks_of(&self, fact: &Fact) -> Vec<TaskId> {
        let Some(job) = fact.job else { return vec![] };
        let submitted = match &fact.body {
            Body::Submitted(body) => body.spec.array.as_ref(),
            _ => None,
        };
        let elements = fact.elements.as_ref().or(submitted).or_else(|| self.arrays.get(&job));
        match elements {
            Some(elements) => elements.iter().map(|e| TaskId::new(job, Some(e))).collect(),
            None => vec![job.into()],
        }
    }

    /// All that is held of a job, by element where it is an array.
    pub fn of_job(&self, job: JobId) -> impl Iterator<Item = (&TaskId, &Book)> {
        self.tasks.range(TaskId::from(job)..=TaskId::new(job, Some(u64::MAX)))
    }

    /// Whether the job's submission is held.
    pub fn is_submitted(&self, job: JobId) -> bool {
        self.of_job(job).any(|(_, book)| book.birth.is_some())
    }

    /// Where a job, an element, or an array as a whole stands; nothing where no submission of it
    /// is held.
    pub fn state(&self, task: TaskId) -> Option<JobState> {
        if task.element.is_some() || !self.arrays.contains_key(&task.job) {
            return self.tasks.get(&task).filter(|book| book.birth.is_some()).map(Book::state);
        }
        let of_elements = self.of_job(task.job).filter(|(_, book)| book.birth.is_some());
        // Whatever is still to come counts more than how others ended, and any bad end more than
        // the good ones.
        let weight = |state: &JobState| match state {
            JobState::Running => 8,
            JobState::Waiting => 7,
            JobState::Parked => 6,
            JobState::Failed => 5,
            JobState::Cancelled => 4,
            JobState::Expired => 3,
            JobState::Skipped => 2,
            JobState::Succeeded => 1,
        };
        of_elements.map(|(_, book)| book.state()).max_by_key(weight)
    }

    /// The elements of an array in each state.
    pub fn states(&self, job: JobId) -> BTreeMap<JobState, Ranges> {
        let mut states: BTreeMap<JobState, Ranges> = BTreeMap::new();
        for (task, book) in self.of_job(job).filter(|(_, book)| book.birth.is_some()) {
            if let Some(element) = task.element {
                states.entry(book.state()).or_default().insert(element);
            }
        }
        states
    }

    /// Whether a fact with this dot is held.
    pub fn holds(&self, dot: &Dot) -> bool {
        let written = self.written.get(&dot.log).copied().unwrap_or(0);
        written.max(self.logs.head(&dot.log).seq) >= dot.seq
    }
}
