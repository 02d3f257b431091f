//! The rules that must hold at every moment, checked apart from the cluster.
//!
//! Looks only at what the broker writes ([`Checks::written`]), at what becomes durable
//! ([`Checks::durable`]) and at what leaves ([`Checks::leaving`] in leaving.rs). The first broken
//! rule is kept and ends the seed. Invariants by the numbers of docs/design.md section 8.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ucp::proto::capability::Capability;
use ucp::proto::event::Batch;
use ucp::proto::fact::{Body, Checkpointed, Deployed, Fact, Regained, Reported, SealedFact};
use ucp::proto::id::{AttemptId, Digest, ExecutorId, JobId, LogId, RequestId, TaskId};
use ucp::proto::message::Hello;
use ucp::proto::time::Monotonic;
use ucp::proto::view::JobState;

use super::deadlines::Deadlines;
use super::history::{AttemptBook, Attempts, Book, End, History};
use super::oracle::Oracle;
use super::queueing::Waiting;

/// A broken rule.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The rule's name.
    pub rule: &'static str,
    /// What was seen.
    pub text: String,
}

/// What the checkers remember.
#[derive(Default)]
pub struct Checks {
    /// The first broken rule.
    pub failure: Option<Failure>,
    /// What the broker's core holds.
    pub held: History,
    /// What its disk holds.
    pub durable: History,
    /// Every fact that ever became durable, over all lives, in order.
    pub all: Vec<SealedFact>,
    /// Jobs whose submission was acknowledged to a client, on the disk that is in use.
    pub acknowledged: BTreeSet<JobId>,
    /// Attempts whose result was acknowledged to the executor, likewise.
    pub acknowledged_results: Attempts,
    /// Attempts of which the disk holds a result.
    pub reported: Attempts,
    /// How each generation ended, as told to clients.
    pub told: BTreeMap<(TaskId, u32), (JobState, Option<Digest>)>,
    /// How often each attempt was started.
    pub starts: BTreeMap<AttemptId, u32>,
    /// The checkpoints that each attempt made.
    pub checkpoints: BTreeMap<AttemptId, Vec<Digest>>,
    /// Attempts whose result another broker holds.
    pub safe: Attempts,
    /// Attempts whose result an executor was asked to keep and a restored disk has lost: they must
    /// come back.
    pub owed: Attempts,
    /// The contents that each attempt produced.
    pub produced: BTreeMap<AttemptId, Vec<Digest>>,
    /// What each executor has, by its name.
    pub capabilities: BTreeMap<ExecutorId, Capability>,
    /// Whether what leaves now must say just what the durable facts say.
    pub exact: bool,
    /// Ends of elements that each request was told and did not take.
    pub untaken: BTreeMap<RequestId, usize>,
    oracle: Oracle,
    lines: BTreeMap<LogId, Vec<Arc<str>>>,
    waiting: Waiting,
    deadlines: Deadlines,
}

impl Checks {
    /// Notes a broken rule, unless one is noted.
    pub fn fail(&mut self, rule: &'static str, text: String) {
        self.failure.get_or_insert(Failure { rule, text });
    }

    /// Notes a broken rule if it is broken.
    pub fn demand(&mut self, rule: &'static str, holds: bool, text: impl FnOnce() -> String) {
        if !holds && self.failure.is_none() {
            self.failure = Some(Failure { rule, text: text() });
        }
    }

    /// The core hands out a batch; `mono` is the time at which it took the inputs.
    pub fn written(&mut self, mono: Monotonic, batch: &Batch) {
        self.demand("persist-empty", !batch.facts.is_empty(), || "a batch without facts".into());
        for sealed in &batch.facts {
            self.written_fact(mono, sealed);
        }
        self.check_shared_commit(batch);
        self.check_rows(batch);
    }

    fn written_fact(&mut self, mono: Monotonic, sealed: &SealedFact) {
        let fact = &sealed.fact;
        if let Err(text) = self.oracle.written(fact) {
            self.fail("happened-before", text);
        }
        let tasks = self.held.tasks_of(fact);
        match &fact.body {
            Body::Deployed(body) => self.check_deployed(fact, body, &tasks),
            Body::Accepted(body) => {
                for task in &tasks {
                    let attempt = AttemptId::new(body.attempt.dot.clone(), task.element);
                    self.check_accepted(*task, fact, &attempt, &body.digest);
                }
                let reported = self.held.holds(&body.reported);
                self.demand("I3", reported, || format!("{} accepts what is not held", fact.dot));
            }
            Body::Reported(body) => self.check_reported(fact, body, &tasks),
            Body::Checkpointed(body) => self.check_checkpointed(fact, body, &tasks),
            Body::Regained(body) => self.check_regained(fact, body, &tasks),
            _ => {}
        }
        if let Err(text) = self.waiting.written(mono, fact, &tasks, &self.held) {
            self.fail("I8", text);
        }
        if let Err(text) = self.deadlines.written(mono, fact, &tasks, &self.held) {
            self.fail("deadline", text);
        }
        if let Err(error) = self.held.apply_written(sealed, &tasks) {
            self.fail("log-sequence", error.to_string());
        }
    }

    /// I3: what is reported was made, of every element that the fact covers; and each once.
    fn check_reported(&mut self, fact: &Fact, body: &Reported, tasks: &[TaskId]) {
        let dot = &fact.dot;
        for task in tasks {
            let attempt = AttemptId::new(body.attempt.dot.clone(), task.element);
            let made = self.produced.get(&attempt);
            let real = made.is_some_and(|made| made.contains(&body.digest));
            self.demand("I3", real, || format!("{dot} reports of {task} what nobody made"));
            let told = fact.report(task.element);
            let same = told.as_ref().is_some_and(|told| {
                told.attempt == attempt
                    && told.digest == body.digest
                    && told.result.digest() == body.digest
            });
            self.demand("I3", same, || format!("{dot} says of {task} {told:?}"));
            let book = self.held.tasks.get(task);
            let twice = book.is_some_and(|book| {
                book.reports.iter().any(|(a, d, _)| *a == attempt && *d == body.digest)
            });
            self.demand("duplicate", !twice, || format!("{dot} reports {attempt} twice"));
        }
    }

    /// What is checkpointed was made, in its order, of an attempt that may still go on.
    fn check_checkpointed(&mut self, fact: &Fact, body: &Checkpointed, tasks: &[TaskId]) {
        let dot = &fact.dot;
        self.demand("A30", tasks.len() == 1, || format!("{dot} keeps state of many"));
        for task in tasks {
            let attempt = AttemptId::new(body.attempt.dot.clone(), task.element);
            let made = self.checkpoints.get(&attempt).map(Vec::as_slice).unwrap_or_default();
            let place = usize::try_from(body.number - 1).expect("fits");
            let real = made.get(place) == Some(&body.manifest);
            self.demand("A30", real, || format!("{dot} keeps what {attempt} did not make"));
        }
    }

    /// Only what was lost is regained, where nothing else runs and nothing has ended the task.
    fn check_regained(&mut self, fact: &Fact, body: &Regained, tasks: &[TaskId]) {
        let dot = &fact.dot;
        for task in tasks {
            let attempt = AttemptId::new(body.attempt.dot.clone(), task.element);
            let book = self.held.tasks.get(task);
            let lost = book.and_then(|book| book.attempt(&attempt)).is_some_and(|held| {
                held.end == Some(End::Lost)
                    && held.generation == fact.generation
                    && held.executor == body.executor
            });
            let state = book.map(Book::state);
            self.demand("regained", lost && state == Some(JobState::Waiting), || {
                format!("{dot} regains {attempt}: {state:?}, lost: {lost}")
            });
        }
    }

    /// I6: a further attempt in a generation needs the end of the one before; the fence is the
    /// next after the greatest of all that the fact covers.
    fn check_deployed(&mut self, fact: &Fact, body: &Deployed, tasks: &[TaskId]) {
        let mut most = 0;
        for task in tasks {
            let fences = self.check_deployed_task(fact, *task);
            most = most.max(fences);
        }
        let (dot, fence) = (&fact.dot, body.fence);
        self.demand("fence", fence == most + 1, || format!("{dot} has fence {fence} after {most}"));
        let lost = |task: &TaskId| {
            let book = self.held.tasks.get(task);
            let of_generation = |a: &&AttemptBook| a.generation == fact.generation && !a.reported;
            let mut ended = book.into_iter().flat_map(|book| book.attempts.iter());
            ended.any(|a| of_generation(&a) && a.end == Some(End::Lost))
        };
        if tasks.iter().any(lost) {
            self.check_cautious(fact, body, tasks);
        }
    }

    /// What lost an executor before is deployed by itself, and only where it begins at once: it
    /// is not to be counted among those that take executors down only as it stood behind them.
    fn check_cautious(&mut self, fact: &Fact, body: &Deployed, tasks: &[TaskId]) {
        let dot = &fact.dot;
        let alone = tasks.len() == 1;
        self.demand("cautious", alone, || format!("{dot} deploys more than one that lost before"));
        let cores = |task: &TaskId| {
            let spec = self.held.tasks.get(task).and_then(|book| book.spec.as_ref());
            spec.map_or(1, |spec| u64::from(spec.needs.cores))
        };
        let there = |a: &AttemptBook| a.executor == body.executor && a.end.is_none();
        let over = |book: &Book, a: &AttemptBook| {
            let open = book.state_of(a.generation) == JobState::Running;
            !(open && a.generation == book.generation)
        };
        let taken: u64 = self
            .held
            .tasks
            .iter()
            .flat_map(|(task, book)| book.attempts.iter().map(move |a| (task, book, a)))
            .filter(|(_, book, a)| there(a) && !over(book, a) && !self.held.is_foreign(book))
            .map(|(task, ..)| cores(task))
            .sum();
        let needed: u64 = tasks.iter().map(cores).sum();
        let slots = self.capabilities.get(&body.executor).map_or(0, |has| u64::from(has.slots));
        self.demand("cautious", taken + needed <= slots, || {
            format!("{dot} waits behind others: {needed} slots beside {taken} of {slots}")
        });
    }

    /// The greatest fence of the task's attempts.
    fn check_deployed_task(&mut self, fact: &Fact, task: TaskId) -> u64 {
        let Some(book) = self.held.tasks.get(&task).filter(|book| book.birth.is_some()) else {
            self.fail("I6", format!("{} deploys {task}, which is not held", fact.dot));
            return 0;
        };
        let current = book.generation == fact.generation;
        let state = book.state();
        let lives =
            |a: &&AttemptBook| a.generation == fact.generation && a.end.is_none() && !a.reported;
        let double = book.attempts.iter().find(lives).map(|a| a.attempt.clone());
        let counted = |end: fn(&AttemptBook) -> bool| {
            book.attempts.iter().filter(|a| a.generation == fact.generation && end(a)).count()
        };
        let (failed, lost) =
            (counted(|a| a.reported), counted(|a| !a.reported && a.end == Some(End::Lost)));
        let spec = book.spec.clone();
        let allowed = spec.is_some_and(|spec| {
            failed as u64 <= u64::from(spec.retries) && (lost as u64) < u64::from(spec.max_lost)
        });
        let most = book.attempts.iter().map(|a| a.fence).max().unwrap_or(0);
        let dot = &fact.dot;
        self.demand("I6", current, || format!("{dot} deploys {task} in another generation"));
        self.demand("I6", double.is_none(), || {
            format!("{dot} deploys {task} while {double:?} lives")
        });
        self.demand("I6", state == JobState::Waiting, || {
            format!("{dot} deploys {task}, which is {state:?}")
        });
        let times = || format!("{dot}: {task} goes on after {failed} failures and {lost} losses");
        self.demand("I6", allowed, times);
        most
    }

    /// At most one accept in a generation of one history, and it is of a real attempt.
    pub fn check_accepted(
        &mut self,
        task: TaskId,
        fact: &Fact,
        attempt: &AttemptId,
        digest: &Digest,
    ) {
        let Some(book) = self.held.tasks.get(&task) else {
            return self.fail("I3", format!("{} accepts for {task}, not held", fact.dot));
        };
        let accepted = book.outcomes.get(&fact.generation).and_then(|o| o.accepted.as_ref());
        let first = accepted.map(|(attempt, ..)| attempt.clone());
        let real = book.attempt(attempt).is_some_and(|a| a.generation == fact.generation);
        let reported = book.reports.iter().any(|(a, d, _)| a == attempt && d == digest);
        let (dot, current) = (&fact.dot, book.generation == fact.generation);
        let open = book.ended_of(fact.generation).is_none();
        self.demand("one-accept", first.is_none(), || {
            format!("{dot} accepts {attempt} after {first:?} in generation {}", fact.generation)
        });
        self.demand("I3", real, || {
            format!("{dot} accepts {attempt}: no attempt of that generation")
        });
        self.demand("I3", reported, || format!("{dot} accepts what was not reported"));
        self.demand("late", current, || format!("{dot} accepts in an older generation"));
        self.demand("late", open, || format!("{dot} accepts in an ended generation"));
    }

    /// A success is reported and accepted in one commit.
    fn check_shared_commit(&mut self, batch: &Batch) {
        for sealed in &batch.facts {
            if let Body::Accepted(body) = &sealed.fact.body
                && body.success
            {
                let here = batch.facts.iter().any(|other| other.fact.dot == body.reported);
                let dot = &sealed.fact.dot;
                self.demand("one-commit", here, || {
                    format!("{dot} accepts an older commit's result")
                });
            }
        }
    }

    /// The rows of the job table are those of the jobs in the batch, and say what the facts say.
    fn check_rows(&mut self, batch: &Batch) {
        let touched: BTreeSet<JobId> = batch.facts.iter().filter_map(|f| f.fact.job).collect();
        let rows: BTreeSet<JobId> = batch.rows.iter().map(|row| row.job).collect();
        let fits = touched == rows && rows.len() == batch.rows.len();
        self.demand("rows", fits, || format!("rows {rows:?} for facts about {touched:?}"));
        for row in &batch.rows {
            let state = self.held.state(row.job.into());
            let books = || self.held.of_job(row.job).map(|(_, book)| book);
            let birth = books().find_map(|book| book.birth.clone());
            let generation = books().map(|book| book.generation).max().unwrap_or(0);
            // An array has many results, so none of them stands in its row.
            let plain = self.held.tasks.get(&row.job.into());
            let digest = plain.and_then(|book| book.outcome().accepted.map(|(_, d, _)| d));
            let same = row.birth == birth
                && row.state == state
                && (state.is_none() || row.generation == generation)
                && row.digest == digest;
            self.demand("rows", same, || {
                let told = format!("{state:?} in {generation}, {digest:?}");
                format!("{row:?}, but the facts say {told}")
            });
        }
    }

    /// A fact became durable (I5: no dot is used for two facts, over all lives).
    pub fn durable(&mut self, sealed: &SealedFact) {
        let dot = &sealed.fact.dot;
        if !self.lines.contains_key(&dot.log) {
            self.lines.insert(dot.log.clone(), Vec::new());
        }
        let lines = self.lines.get_mut(&dot.log).expect("it is there");
        let place = usize::try_from(dot.seq - 1).expect("fits");
        match lines.get(place) {
            Some(_) => self.fail("I5", format!("{dot} is used for two facts")),
            None if place == lines.len() => lines.push(Arc::clone(&sealed.line)),
            None => self.fail("log-sequence", format!("{dot} leaves a gap")),
        }
        if let Err(error) = self.durable.apply(sealed) {
            self.fail("log-sequence", error.to_string());
        }
        note_reported(&mut self.reported, &sealed.fact);
        if matches!(sealed.fact.body, Body::Reported(_)) {
            self.owed.subtract(&self.reported);
        }
        self.oracle.durable(&sealed.fact);
        self.all.push(sealed.clone());
    }

    /// An older copy took the disk's place: what only the lost part held is promised no more.
    pub fn restored(&mut self, facts: &[SealedFact]) {
        match History::of(facts) {
            Ok(history) => self.durable = history,
            Err(error) => self.fail("log-sequence", error.to_string()),
        }
        let durable = &self.durable;
        self.acknowledged.retain(|job| durable.is_submitted(*job));
        self.reported = Attempts::default();
        facts.iter().for_each(|sealed| note_reported(&mut self.reported, &sealed.fact));
        self.acknowledged_results.keep(&self.reported);
        self.told.clear();
    }

    /// An executor announces attempts to the broker.
    pub fn announced(&mut self, hello: &Hello) {
        for (attempt, job) in hello.attempts.iter().zip(&hello.jobs) {
            self.waiting.announce(TaskId::new(*job, attempt.element));
        }
    }

    /// Urgent jobs that were deployed before older ones.
    pub fn overtakings(&self) -> u64 {
        self.waiting.overtakings
    }

    /// Deadlines that a life took over from the one before, and ended.
    pub fn deadlines_carried_on(&self) -> u64 {
        self.deadlines.carried_on
    }

    /// A life of the broker begins with what is durable; `mono` is its opening.
    pub fn life(&mut self, mono: Monotonic) {
        self.held = self.durable.clone();
        self.untaken.clear();
        self.oracle.life(&self.durable);
        self.waiting.life(mono, &self.durable);
        self.deadlines.life(mono);
        self.check_promises();
    }

    /// I1 and I4: whatever was acknowledged is durable.
    pub fn check_promises(&mut self) {
        let held = |job: &&JobId| self.durable.is_submitted(**job);
        if let Some(job) = self.acknowledged.iter().find(|job| !held(job)) {
            return self.fail("I1", format!("job {job} was acknowledged and is not durable"));
        }
        if let Some(attempt) = self.acknowledged_results.missing_in(&self.reported) {
            self.fail("I4", format!("the result of {attempt} was acknowledged, is not durable"));
        }
    }

    /// A client says how many ends of elements it took.
    pub fn taken_arrives(&mut self, request: RequestId, count: usize) {
        if let Some(untaken) = self.untaken.get_mut(&request) {
            *untaken = untaken.saturating_sub(count);
        }
    }

    /// An executor begins an attempt.
    pub fn started(&mut self, attempt: &AttemptId) {
        let starts = self.starts.entry(attempt.clone()).or_default();
        *starts += 1;
        let starts = *starts;
        self.demand("I6", starts == 1, || format!("{attempt} was started {starts} times"));
        let durable = self.durable.holds(&attempt.dot);
        let ever = self.lines.get(&attempt.dot.log).map_or(0, |lines| lines.len() as u64);
        let known = durable || ever >= attempt.dot.seq;
        self.demand("durable-first", known, || format!("{attempt} runs, no fact of it is durable"));
    }
}

/// Notes the attempts whose results a fact holds.
fn note_reported(reported: &mut Attempts, fact: &Fact) {
    let Body::Reported(body) = &fact.body else { return };
    match &fact.elements {
        None => reported.insert(&body.attempt),
        Some(elements) => {
            let named = |element| AttemptId::new(body.attempt.dot.clone(), Some(element));
            elements.iter().for_each(|element| reported.insert(&named(element)));
        }
    }
}
