//! What a set of facts says about each job and each element of an array, told by the simulator's
//! own small fold.
//!
//! Shares no code with `proto::fold`: it is the second opinion that the checkers compare with.
//! It knows one broker only, so one generation never has two accepts (the checkers see to that).
//! Shape: ordered map task → [`Book`], where every element of an array has a book of its own into
//! which each fact that covers it is written; facts must come log by log in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ucp::proto::clock::Clock;
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
    /// Whether it was lost as its executor's process had ended.
    pub with_process: bool,
    /// Whether it reported a result, perhaps after it was thought lost.
    pub reported: bool,
}

/// What ended a generation, or holds it back.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The attempt, the content's digest and the success of the accepted result.
    pub accepted: Option<(AttemptId, Digest, bool)>,
    /// Whether it is parked.
    pub parked: bool,
}

/// One job that is no array, or one element of one.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// The least `submitted` dot; absent while only results are held.
    pub birth: Option<Dot>,
    /// The greatest, one that is held itself before one that was only carried.
    pub owner: Option<(bool, Dot)>,
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
    /// Generation, state and dot of each end that is no result.
    pub ends: Vec<(u32, JobState, Dot)>,
    /// Generation and clock of each rerun.
    pub reruns: Vec<(u32, Clock)>,
    /// Generation, fence of the attempt, number and manifest of each checkpoint.
    pub checkpoints: Vec<(u32, u64, u64, Digest)>,
}

impl Book {
    /// The outcome of the current generation.
    pub fn outcome(&self) -> Outcome {
        self.outcomes.get(&self.generation).cloned().unwrap_or_default()
    }

    /// How a generation stands.
    pub fn state_of(&self, generation: u32) -> JobState {
        let outcome = self.outcomes.get(&generation);
        if let Some((_, _, success)) = outcome.and_then(|outcome| outcome.accepted.as_ref()) {
            return if *success { JobState::Succeeded } else { JobState::Failed };
        }
        if let Some(state) = self.ended_of(generation) {
            return state;
        }
        if outcome.is_some_and(|outcome| outcome.parked) {
            return JobState::Parked;
        }
        let lives = |a: &AttemptBook| a.generation == generation && a.end.is_none();
        if self.attempts.iter().any(lives) { JobState::Running } else { JobState::Waiting }
    }

    /// What ended a generation beside results: an end of it or of one before, unless a rerun that
    /// opened one in between knew of it.
    pub fn ended_of(&self, generation: u32) -> Option<JobState> {
        let undone = |dot: &Dot| {
            let mut reruns = self.reruns.iter();
            reruns.any(|(opened, clock)| *opened <= generation && clock.covers(dot))
        };
        let in_force = self.ends.iter().filter(|(of, _, dot)| *of <= generation && !undone(dot));
        // A cancel counts more than an expiry, and that more than a skip.
        let rank = |state: &JobState| match state {
            JobState::Cancelled => 3,
            JobState::Expired => 2,
            _ => 1,
        };
        in_force.map(|(_, state, _)| *state).max_by_key(rank)
    }

    /// Where the job stands.
    pub fn state(&self) -> JobState {
        self.state_of(self.generation)
    }

    /// The book of an attempt.
    pub fn attempt(&self, attempt: &AttemptId) -> Option<&AttemptBook> {
        self.attempts.iter().find(|book| book.attempt == *attempt)
    }

    /// The checkpoints that an attempt in a generation may begin with, the newest first.
    pub fn offered(&self, generation: u32) -> Vec<Digest> {
        let mut all: Vec<_> = self.checkpoints.iter().filter(|c| c.0 == generation).collect();
        all.sort_by_key(|checkpoint| std::cmp::Reverse((checkpoint.1, checkpoint.2)));
        all.into_iter().map(|checkpoint| checkpoint.3).take(3).collect()
    }

    /// A lost attempt is there again.
    fn regain(&mut self, attempt: &AttemptId) {
        if let Some(book) = self.attempts.iter_mut().find(|book| book.attempt == *attempt)
            && book.end == Some(End::Lost)
        {
            book.end = None;
        }
    }

    fn end(&mut self, attempt: &AttemptId, end: End) {
        if let Some(book) = self.attempts.iter_mut().find(|book| book.attempt == *attempt) {
            book.end = book.end.or(Some(end));
            book.reported |= end == End::Reported;
        }
    }

    fn apply(&mut self, fact: &Fact, element: Option<u64>, carried: bool) {
        let generation = fact.generation;
        let named = |attempt: &AttemptId| AttemptId::new(attempt.dot.clone(), element);
        match &fact.body {
            Body::Joined(_) => {}
            Body::Submitted(body) => {
                if self.birth.as_ref().is_none_or(|birth| *birth > fact.dot) {
                    self.birth = Some(fact.dot.clone());
                }
                self.owner = self.owner.take().max(Some((!carried, fact.dot.clone())));
                self.spec.get_or_insert_with(|| Arc::clone(&body.spec));
                self.generation = self.generation.max(1);
            }
            // A fact may be carried by more than one result.
            Body::Deployed(_) if self.attempts.iter().any(|a| a.attempt.dot == fact.dot) => {}
            Body::Deployed(body) => self.attempts.push(AttemptBook {
                attempt: AttemptId::new(fact.dot.clone(), element),
                generation,
                executor: body.executor.clone(),
                fence: body.fence,
                end: None,
                with_process: false,
                reported: self.reports.iter().any(|(attempt, ..)| attempt.dot == fact.dot),
            }),
            Body::Lost(body) => {
                self.end(&named(&body.attempt), End::Lost);
                let ended = ["process ended", "was restarted"];
                if ended.iter().any(|words| body.reason.ends_with(words)) {
                    let attempt = named(&body.attempt);
                    let book = self.attempts.iter_mut().find(|book| book.attempt == attempt);
                    book.into_iter().for_each(|book| book.with_process = true);
                }
            }
            Body::Revoked(body) => self.end(&named(&body.attempt), End::Revoked),
            Body::Regained(body) => self.regain(&named(&body.attempt)),
            Body::Checkpointed(body) => {
                let fence = self.attempt(&named(&body.attempt)).map_or(0, |a| a.fence);
                self.checkpoints.push((generation, fence, body.number, body.manifest));
            }
            Body::Reported(body) => {
                self.end(&named(&body.attempt), End::Reported);
                self.reports.push((named(&body.attempt), body.digest, fact.dot.clone()));
            }
            Body::Accepted(body) => {
                let accepted = (named(&body.attempt), body.digest, body.success);
                self.outcomes.entry(generation).or_default().accepted = Some(accepted);
            }
            Body::Rerun(_) => {
                self.generation = self.generation.max(generation);
                self.reruns.push((generation, fact.clock.clone()));
            }
            Body::Parked(_) => self.outcomes.entry(generation).or_default().parked = true,
            Body::Cancelled(_) => {
                self.ends.push((generation, JobState::Cancelled, fact.dot.clone()));
            }
            Body::Expired(_) => self.ends.push((generation, JobState::Expired, fact.dot.clone())),
            Body::Skipped(_) => self.ends.push((generation, JobState::Skipped, fact.dot.clone())),
        }
    }
}

/// A set of attempts, by log, so that looking one up compares numbers and few names.
#[derive(Debug, Clone, Default)]
pub struct Attempts(BTreeMap<LogId, BTreeSet<(u64, Option<u64>)>>);

impl Attempts {
    /// Adds one.
    pub fn insert(&mut self, attempt: &AttemptId) {
        let AttemptId { dot, element } = attempt;
        match self.0.get_mut(&dot.log) {
            Some(held) => drop(held.insert((dot.seq, *element))),
            None => drop(self.0.insert(dot.log.clone(), BTreeSet::from([(dot.seq, *element)]))),
        }
    }

    /// Adds all of others.
    pub fn extend(&mut self, others: &Self) {
        for (log, places) in &others.0 {
            self.0.entry(log.clone()).or_default().extend(places);
        }
    }

    /// Takes out what is among `others`.
    pub fn subtract(&mut self, others: &Self) {
        self.0.retain(|log, held| {
            let of_log = others.0.get(log);
            held.retain(|place| of_log.is_none_or(|of_log| !of_log.contains(place)));
            !held.is_empty()
        });
    }

    /// Whether it is there.
    pub fn contains(&self, attempt: &AttemptId) -> bool {
        let held = self.0.get(&attempt.dot.log);
        held.is_some_and(|held| held.contains(&(attempt.dot.seq, attempt.element)))
    }

    /// One of these that is not among `others`.
    pub fn missing_in(&self, others: &Self) -> Option<AttemptId> {
        self.0.iter().find_map(|(log, held)| {
            let of_log = others.0.get(log);
            // Both are sorted: this walks each of them once.
            if of_log.is_some_and(|of_log| held.is_subset(of_log)) {
                return None;
            }
            let missing = |place: &&(u64, _)| of_log.is_none_or(|of_log| !of_log.contains(place));
            let (seq, element) = held.iter().find(missing)?;
            Some(AttemptId::new(Dot { log: log.clone(), seq: *seq }, *element))
        })
    }

    /// Takes out what is not among `others`.
    pub fn keep(&mut self, others: &Self) {
        self.0.retain(|log, held| {
            let of_log = others.0.get(log);
            held.retain(|place| of_log.is_some_and(|of_log| of_log.contains(place)));
            !held.is_empty()
        });
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
        let tasks = self.tasks_of(&sealed.fact);
        self.write_down(&sealed.fact, &tasks);
        Ok(())
    }

    /// Adds a fact that the broker's core has just sealed and that is about these tasks: its chain
    /// is checked when it is durable.
    ///
    /// # Errors
    /// It does not follow the last fact of its log.
    pub fn apply_written(&mut self, sealed: &SealedFact, tasks: &[TaskId]) -> Result<(), LogError> {
        let dot = &sealed.fact.dot;
        let held = self.written.get(&dot.log).copied();
        let held = held.unwrap_or_else(|| self.logs.head(&dot.log).seq);
        if dot.seq != held + 1 {
            return Err(LogError::Gap { dot: dot.clone(), held });
        }
        match self.written.get_mut(&dot.log) {
            Some(written) => *written = dot.seq,
            None => drop(self.written.insert(dot.log.clone(), dot.seq)),
        }
        self.write_down(&sealed.fact, tasks);
        Ok(())
    }

    fn write_down(&mut self, fact: &Fact, tasks: &[TaskId]) {
        for carried in fact.carried() {
            let tasks = self.tasks_of(&carried);
            self.write_down_one(&carried, &tasks, true);
        }
        self.write_down_one(fact, tasks, false);
    }

    fn write_down_one(&mut self, fact: &Fact, tasks: &[TaskId], carried: bool) {
        if let (Some(job), Body::Submitted(body)) = (fact.job, &fact.body)
            && let Some(elements) = &body.spec.array
        {
            self.arrays.entry(job).or_insert_with(|| elements.clone());
        }
        for task in tasks {
            self.tasks.entry(*task).or_default().apply(fact, task.element, carried);
        }
    }

    /// The tasks that a fact is about, as far as it is known by now which there are.
    pub fn tasks_of(&self, fact: &Fact) -> Vec<TaskId> {
        let Some(job) = fact.job else { return vec![] };
        let submitted = match &fact.body {
            Body::Submitted(body) => body.spec.array.as_ref(),
            _ => None,
        };
        if fact.elements.is_none() && submitted.is_none() && self.arrays.is_empty() {
            return vec![job.into()];
        }
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

    /// Whether a task belongs to a broker that nobody carries on: only results of it are known.
    pub fn is_foreign(&self, book: &Book) -> bool {
        book.owner.as_ref().is_some_and(|(_, owner)| self.head(&owner.log) == 0)
    }

    /// The last seq that is held of a log.
    pub fn head(&self, log: &LogId) -> u64 {
        let written = self.written.get(log).copied();
        written.unwrap_or(0).max(self.logs.head(log).seq)
    }

    /// Whether a fact with this dot is held.
    pub fn holds(&self, dot: &Dot) -> bool {
        self.head(&dot.log) >= dot.seq
    }
}
