//! Nothing is deployed after its deadline, nothing expires before it, and what may finish is not
//! stopped.
//!
//! Own bookkeeping of when each deadline began to count. A life of the broker that goes on with
//! its log goes on counting; for reruns and for jobs of an older log its opening counts. An array
//! has one deadline, which a rerun of any element begins anew. That what waits does expire is
//! checked at the end: such jobs have no excuse (finale.rs).

use std::collections::BTreeMap;

use ucp::proto::fact::{Body, Fact};
use ucp::proto::id::{JobId, LogId, TaskId};
use ucp::proto::job::AfterDeadline;
use ucp::proto::time::Monotonic;
use ucp::proto::view::JobState;

use super::history::{Book, History};

#[derive(Debug)]
struct Begin {
    mono: Monotonic,
    life: u64,
    log: LogId,
}

/// When the deadlines of all jobs began to count.
#[derive(Default)]
pub struct Deadlines {
    opened: Monotonic,
    life: u64,
    /// By job and whether a rerun began it: one that was never durable leaves the other in force.
    begins: BTreeMap<(JobId, bool), Begin>,
    /// Deadlines that ended in another life than they began in, on one count.
    pub carried_on: u64,
}

impl Deadlines {
    /// A life of the broker begins.
    pub fn life(&mut self, opened: Monotonic) {
        self.opened = opened;
        self.life += 1;
    }

    /// A fact about these tasks is written.
    ///
    /// # Errors
    /// It comes too early or too late.
    pub fn written(
        &mut self,
        mono: Monotonic,
        fact: &Fact,
        tasks: &[TaskId],
        held: &History,
    ) -> Result<(), String> {
        let Some(job) = fact.job else { return Ok(()) };
        if matches!(fact.body, Body::Submitted(_) | Body::Rerun(_)) {
            let (log, rerun) = (fact.dot.log.clone(), matches!(fact.body, Body::Rerun(_)));
            self.begins.insert((job, rerun), Begin { mono, life: self.life, log });
        }
        // A job that a result makes known begins to count then, as far as this life goes.
        let unknown = || !held.is_submitted(job);
        if matches!(&fact.body, Body::Reported(body) if !body.carried.is_empty()) && unknown() {
            // Only the log that a submission stands in can go on with its count.
            let carried = fact.carried();
            let log = carried.first().map_or(&fact.dot.log, |carried| &carried.dot.log).clone();
            let begin = || Begin { mono, life: self.life, log: log.clone() };
            self.begins.insert((job, false), begin());
            self.begins.insert((job, true), begin());
        }
        let mut books = tasks.iter().filter_map(|task| held.tasks.get(task));
        let Some(book) = books.next() else { return Ok(()) };
        let expires = matches!(fact.body, Body::Expired(_));
        if !expires && !matches!(fact.body, Body::Deployed(_)) {
            return Ok(());
        }
        let spec = book.spec.as_ref();
        let Some(span) = spec.and_then(|spec| spec.deadline) else {
            let ok = !expires;
            return ok.then_some(()).ok_or(format!("{} expires without a deadline", fact.dot));
        };
        let rerun = held.of_job(job).any(|(_, book)| book.generation > 1);
        let (began, carried_on) = self.began(job, rerun, &fact.dot.log);
        let over = mono >= began.after(span.duration());
        self.carried_on += u64::from(expires && carried_on);
        let stays = spec.is_some_and(|spec| spec.after_deadline == AfterDeadline::Finish);
        if over != expires {
            return Err(format!("{} of {job} at {mono:?}, {span} from {began:?}", fact.dot));
        }
        let runs = |book: &Book| book.state() == JobState::Running;
        if expires && stays && (runs(book) || books.any(runs)) {
            return Err(format!("{} ends an attempt of {job} that may finish", fact.dot));
        }
        Ok(())
    }

    /// When the deadline began to count, and whether that was in another life.
    fn began(&self, job: JobId, rerun: bool, log: &LogId) -> (Monotonic, bool) {
        match self.begins.get(&(job, rerun)) {
            Some(begin) if begin.life == self.life => (begin.mono, false),
            Some(begin) if begin.log == *log && !rerun => (begin.mono, true),
            _ => (self.opened, false),
        }
    }
}
