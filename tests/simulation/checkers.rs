//! The rules that must hold at every moment, checked apart from the cluster.
//!
//! Looks only at what the broker writes ([`Checks::written`]), at what becomes durable
//! ([`Checks::durable`]) and at what leaves ([`Checks::leaving`] in leaving.rs). The first broken
//! rule is kept and ends the seed. Invariants by the numbers of docs/design.md section 8.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ucp::proto::event::Batch;
use ucp::proto::fact::{Body, Fact, SealedFact};
use ucp::proto::id::{AttemptId, Digest, JobId, LogId};
use ucp::proto::time::Monotonic;
use ucp::proto::view::JobState;

use super::history::{AttemptBook, End, History};
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
    pub acknowledged_results: BTreeSet<AttemptId>,
    /// How each generation ended, as told to clients.
    pub told: BTreeMap<(JobId, u32), (JobState, Option<Digest>)>,
    /// How often each attempt was started.
    pub starts: BTreeMap<AttemptId, u32>,
    /// The contents that each attempt produced.
    pub produced: BTreeMap<AttemptId, Vec<Digest>>,
    /// Whether what leaves now must say just what the durable facts say.
    pub exact: bool,
    oracle: Oracle,
    lines: BTreeMap<LogId, Vec<Arc<str>>>,
    waiting: Waiting,
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
        match &fact.body {
            Body::Deployed(body) => self.check_deployed(fact, body.fence),
            Body::Accepted(body) => {
                self.check_accepted(fact, &body.attempt, &body.digest);
                let reported = self.held.holds(&body.reported);
                self.demand("I3", reported, || format!("{} accepts what is not held", fact.dot));
            }
            Body::Reported(body) => {
                let made = self.produced.get(&body.attempt);
                let real = made.is_some_and(|made| made.contains(&body.digest));
                self.demand("I3", real, || format!("{} reports what nobody made", fact.dot));
                let digest = body.result.digest() == body.digest;
                self.demand("I3", digest, || format!("{} has a wrong digest", fact.dot));
                let book = fact.job.and_then(|job| self.held.jobs.get(&job));
                let twice = book.is_some_and(|book| {
                    book.reports.iter().any(|(a, d, _)| *a == body.attempt && *d == body.digest)
                });
                self.demand("duplicate", !twice, || format!("{} reports twice", fact.dot));
            }
            _ => {}
        }
        if let Err(text) = self.waiting.written(mono, fact, &self.held) {
            self.fail("I8", text);
        }
        if let Err(error) = self.held.apply_written(sealed) {
            self.fail("log-sequence", error.to_string());
        }
    }

    /// I6: a further attempt in a generation needs the end of the one before.
    fn check_deployed(&mut self, fact: &Fact, fence: u64) {
        let Some(book) = fact.job.and_then(|job| self.held.jobs.get(&job)) else {
            return self.fail("I6", format!("{} deploys a job that is not held", fact.dot));
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
        self.demand("I6", current, || format!("{dot} deploys in another generation"));
        self.demand("I6", double.is_none(), || format!("{dot} deploys while {double:?} lives"));
        self.demand("I6", state == JobState::Waiting, || format!("{dot} deploys a {state:?} job"));
        let times = || format!("{dot} goes on after {failed} failures and {lost} losses");
        self.demand("I6", allowed, times);
        self.demand("fence", fence == most + 1, || format!("{dot} has fence {fence} after {most}"));
    }

    /// At most one accept in a generation of one history, and it is of a real attempt.
    pub fn check_accepted(&mut self, fact: &Fact, attempt: &AttemptId, digest: &Digest) {
        let Some(book) = fact.job.and_then(|job| self.held.jobs.get(&job)) else {
            return self.fail("I3", format!("{} accepts for a job that is not held", fact.dot));
        };
        let accepted = book.outcomes.get(&fact.generation).and_then(|o| o.accepted.as_ref());
        let first = accepted.map(|(attempt, ..)| attempt.clone());
        let real = book.attempt(attempt).is_some_and(|a| a.generation == fact.generation);
        let reported = book.reports.iter().any(|(a, d, _)| a == attempt && d == digest);
        let (dot, current) = (&fact.dot, book.generation == fact.generation);
        let open = book.outcomes.get(&fact.generation).is_none_or(|o| o.ended.is_none());
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
            let Some(book) = self.held.jobs.get(&row.job) else { continue };
            let state = book.birth.as_ref().map(|_| book.state());
            let digest = book.outcome().accepted.map(|(_, digest, _)| digest);
            let same = row.birth == book.birth
                && row.state == state
                && (state.is_none() || row.generation == book.generation)
                && row.digest == digest;
            let told = format!("{state:?} in {}, {digest:?}", book.generation);
            self.demand("rows", same, || format!("{row:?}, but the facts say {told}"));
        }
    }

    /// A fact became durable (I5: no dot is used for two facts, over all lives).
    pub fn durable(&mut self, sealed: &SealedFact) {
        let dot = &sealed.fact.dot;
        let lines = self.lines.entry(dot.log.clone()).or_default();
        let place = usize::try_from(dot.seq - 1).expect("fits");
        match lines.get(place) {
            Some(_) => self.fail("I5", format!("{dot} is used for two facts")),
            None if place == lines.len() => lines.push(Arc::clone(&sealed.line)),
            None => self.fail("log-sequence", format!("{dot} leaves a gap")),
        }
        if let Err(error) = self.durable.apply(sealed) {
            self.fail("log-sequence", error.to_string());
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
        self.acknowledged.retain(|job| durable.jobs.get(job).is_some_and(|b| b.birth.is_some()));
        let reported: BTreeSet<&AttemptId> =
            durable.jobs.values().flat_map(|b| b.reports.iter().map(|(a, ..)| a)).collect();
        self.acknowledged_results.retain(|attempt| reported.contains(attempt));
        self.told.clear();
    }

    /// Urgent jobs that were deployed before older ones.
    pub fn overtakings(&self) -> u64 {
        self.waiting.overtakings
    }

    /// A life of the broker begins with what is durable; `mono` is its opening.
    pub fn life(&mut self, mono: Monotonic) {
        self.held = self.durable.clone();
        self.oracle.life(&self.durable);
        self.waiting.life(mono, &self.durable);
        self.check_promises();
    }

    /// I1 and I4: whatever was acknowledged is durable.
    pub fn check_promises(&mut self) {
        let held = |job: &&JobId| self.durable.jobs.get(job).is_some_and(|b| b.birth.is_some());
        if let Some(job) = self.acknowledged.iter().find(|job| !held(job)) {
            return self.fail("I1", format!("job {job} was acknowledged and is not durable"));
        }
        let reported: BTreeSet<&AttemptId> =
            self.durable.jobs.values().flat_map(|b| b.reports.iter().map(|(a, ..)| a)).collect();
        let lost = self.acknowledged_results.iter().find(|attempt| !reported.contains(attempt));
        if let Some(attempt) = lost {
            self.fail("I4", format!("the result of {attempt} was acknowledged, is not durable"));
        }
    }

    /// An executor begins an attempt.
    pub fn started(&mut self, attempt: &AttemptId) {
        let starts = self.starts.entry(attempt.clone()).or_default();
        *starts += 1;
        let starts = *starts;
        self.demand("I6", starts == 1, || format!("{attempt} was started {starts} times"));
        let durable = self.durable.holds(&attempt.0);
        let ever = self.lines.get(&attempt.0.log).map_or(0, |lines| lines.len() as u64);
        let known = durable || ever >= attempt.0.seq;
        self.demand("durable-first", known, || format!("{attempt} runs, no fact of it is durable"));
    }
}
