//! I8: of jobs that could be given to an executor none of lower effective precedence goes first.
//!
//! To be *given* to an executor is to begin there, or to stand there ahead of its free slots, in
//! the order of the giving (the executor keeps to it, executor_host.rs); how long anything may
//! stand there is bounded (`check_standing` there).
//! Own bookkeeping: when each job was submitted in this life, in which order, and which of them,
//! or which elements of an array, have never been deployed. It judges only pairs where no doubt is
//! possible: what was passed over waits for nothing but an executor and needs no more, in any
//! respect, than what was deployed, so it could have been given to the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ucp::proto::capability::Needs;
use ucp::proto::fact::{Body, Fact};
use ucp::proto::id::{ExecutorId, JobId, TaskId};
use ucp::proto::job::{JobSpec, Overlap};
use ucp::proto::precedence::Rank;
use ucp::proto::time::Monotonic;

use super::history::History;

/// An executor may be left alone after so many failures in a row; the broker waits for more.
const FAILURES_MIN: u32 = 8;

#[derive(Debug, Clone)]
struct Entry {
    rank: Rank,
    spec: Arc<JobSpec>,
}

/// The jobs of this life of the broker, as they wait.
#[derive(Default)]
pub struct Waiting {
    opened: Monotonic,
    arrivals: u64,
    /// The least rank that each job of this life can have.
    ranks: BTreeMap<JobId, Rank>,
    /// Those that were never deployed and wait for nothing else.
    clean: BTreeMap<TaskId, Entry>,
    /// Tasks of which an executor announced an attempt in this life: while one lives that no fact
    /// speaks of, its task waits for it.
    announced: BTreeSet<TaskId>,
    /// Failures in a row of each executor.
    failures: BTreeMap<ExecutorId, u32>,
    /// Jobs that were deployed before an older one of a lower level.
    pub overtakings: u64,
}

/// Whether whatever fits `more` fits `less` too.
fn needs_no_more(less: &Needs, more: &Needs) -> bool {
    less.cores <= more.cores
        && less.memory.unwrap_or_default() <= more.memory.unwrap_or_default()
        && less.disk.unwrap_or_default() <= more.disk.unwrap_or_default()
        && less.battery.unwrap_or(0) <= more.battery.unwrap_or(0)
        && less.cpu_free.unwrap_or(0) <= more.cpu_free.unwrap_or(0)
        && less.labels.iter().all(|label| more.labels.contains(label))
}

impl Waiting {
    /// A life begins: what it takes over counts as waiting since then, in no known order.
    pub fn life(&mut self, opened: Monotonic, durable: &History) {
        (self.opened, self.arrivals) = (opened, 0);
        self.ranks.clear();
        self.clean.clear();
        self.announced.clear();
        self.failures.clear();
        for (task, book) in &durable.tasks {
            let fresh = book.attempts.is_empty() && book.reports.is_empty();
            let fresh = fresh && !durable.is_foreign(book);
            if let Some(spec) = &book.spec
                && fresh
                && spec.after.is_empty()
                && spec.overlap == Overlap::Allow
                && book.outcomes.is_empty()
                && book.ends.is_empty()
                && book.generation == 1
            {
                let rank = Rank::new(spec.precedence, opened, 0);
                self.clean.insert(*task, Entry { rank, spec: Arc::clone(spec) });
            }
        }
    }

    /// An executor announces an attempt at a task.
    pub fn announce(&mut self, task: TaskId) {
        self.clean.remove(&task);
        self.announced.insert(task);
    }

    /// A fact about these tasks is written.
    ///
    /// # Errors
    /// A job is deployed before one that had to go first.
    pub fn written(
        &mut self,
        mono: Monotonic,
        fact: &Fact,
        tasks: &[TaskId],
        held: &History,
    ) -> Result<(), String> {
        let Some(job) = fact.job else { return Ok(()) };
        match &fact.body {
            Body::Submitted(body) => {
                self.arrivals += 1;
                // One that a result made known before has an older place among equals.
                let fresh = held.of_job(job).next().is_none();
                let arrival = if fresh { self.arrivals } else { 0 };
                let rank = Rank::new(body.spec.precedence, mono, arrival);
                self.ranks.insert(job, rank);
                // What must not overlap may have to wait for a lease.
                let free = body.spec.overlap == Overlap::Allow;
                if body.spec.after.is_empty() && fresh && free {
                    for task in tasks.iter().filter(|task| !self.announced.contains(task)) {
                        let spec = Arc::clone(&body.spec);
                        self.clean.insert(*task, Entry { rank, spec });
                    }
                }
                Ok(())
            }
            Body::Reported(body) => {
                for carried in fact.carried() {
                    held.tasks_of(&carried).iter().for_each(|task| drop(self.clean.remove(task)));
                }
                let failures = self.failures.entry(body.executor.clone()).or_default();
                let all = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
                // One that failed much may be left alone by jobs that can go elsewhere.
                if *failures < FAILURES_MIN {
                    *failures = if body.result.is_success() { 0 } else { *failures + all };
                }
                tasks.iter().for_each(|task| drop(self.clean.remove(task)));
                Ok(())
            }
            Body::Deployed(body) => {
                tasks.iter().for_each(|task| drop(self.clean.remove(task)));
                let held = tasks.first().and_then(|task| held.tasks.get(task));
                let Some(spec) = held.and_then(|book| book.spec.as_ref()) else {
                    return Ok(());
                };
                let least = Rank::new(spec.precedence, self.opened, 0);
                let rank = self.ranks.get(&job).copied().unwrap_or(least);
                if self.failures.get(&body.executor).is_some_and(|n| *n >= FAILURES_MIN) {
                    return Ok(());
                }
                self.judge(job, rank, spec)
            }
            _ => {
                tasks.iter().for_each(|task| drop(self.clean.remove(task)));
                Ok(())
            }
        }
    }

    fn judge(&mut self, job: JobId, rank: Rank, spec: &JobSpec) -> Result<(), String> {
        for (other, entry) in self.clean.iter().filter(|(other, _)| other.job != job) {
            let fits = needs_no_more(&entry.spec.needs, &spec.needs);
            if fits && entry.rank < rank && entry.rank.effective != rank.effective
                || fits && entry.rank < rank && entry.rank.arrival > 0 && rank.arrival > 0
            {
                let (mine, theirs) = (rank, entry.rank);
                return Err(format!("{job} {mine:?} was deployed before {other} {theirs:?}"));
            }
            if entry.rank.arrival < rank.arrival && entry.spec.precedence < spec.precedence {
                self.overtakings += 1;
            }
        }
        Ok(())
    }
}
