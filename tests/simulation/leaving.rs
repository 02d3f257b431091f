//! The rules about what leaves the broker: nothing that depends on a fact that is not durable, and
//! nothing that says other than the durable facts do.
//!
//! Outputs leave in order and right after their batch became durable. A drain without a batch
//! changed nothing, so what it says must be just what the durable facts say (`exact`); one with a
//! batch may speak of the moment between two of its facts.

use std::collections::BTreeMap;

use ucp::proto::event::{Refusal, Reply};
use ucp::proto::id::{ExecutorId, JobId, LogId};
use ucp::proto::message::{BrokerMessage, StartOrder};
use ucp::proto::view::{AuditView, Ended, JobState, JobView};

use super::checkers::Checks;
use super::history::{Book, End};

type Births = BTreeMap<LogId, BTreeMap<JobState, u64>>;

impl Checks {
    /// A reply leaves for a client.
    pub fn reply_leaves(&mut self, reply: &Reply) {
        match reply {
            Reply::Submitted { job, .. } => {
                let held = self.durable.jobs.get(job).is_some_and(|book| book.birth.is_some());
                self.demand("durable-first", held, || format!("{job} acknowledged, not durable"));
                self.acknowledged.insert(*job);
            }
            Reply::Deployed { job, attempt, .. } => {
                let held = self.durable.holds(&attempt.0);
                self.demand("durable-first", held, || {
                    format!("{job}: {attempt} told, not durable")
                });
            }
            Reply::Ended(ended) => self.end_leaves(ended),
            Reply::Done { job, state } => {
                let held = self.durable.jobs.contains_key(job);
                self.demand("durable-first", held, || format!("{job}: done, not durable"));
                self.same_state("I2", job, *state);
            }
            Reply::Job(view) => self.view_leaves(view),
            Reply::Why(view) => {
                let (job, state) = (&view.job, view.state);
                self.same_state("I2", job, state);
                let explained = !view.reasons.is_empty();
                self.demand("why", explained, || format!("{job} is {state:?}, no reason given"));
            }
            Reply::Jobs(rows) => {
                for row in rows {
                    self.same_state("I2", &row.job, row.state);
                }
            }
            Reply::Status(status) if self.exact => {
                let (told, held) = (&status.vector, self.durable.logs.vector());
                let same = *told == held;
                self.demand("A38", same, || format!("status says {told:?}, held is {held:?}"));
                let digest = status.digest == self.durable.logs.digest();
                self.demand("A38", digest, || "status has another digest than the disk".into());
            }
            Reply::Audit(audit) => {
                let faults = &audit.faults;
                self.demand("core", faults.is_empty(), || format!("core's faults: {faults:?}"));
                if self.exact {
                    self.audit_leaves(audit);
                }
            }
            Reply::Refused { refusal, .. } if self.exact => self.refusal_leaves(refusal),
            Reply::Executors(_) | Reply::Refused { .. } | Reply::Status(_) => {}
        }
    }

    fn same_state(&mut self, rule: &'static str, job: &JobId, told: JobState) {
        if !self.exact {
            return;
        }
        let held = self.durable.jobs.get(job).map(Book::state);
        self.demand(rule, held == Some(told), || format!("{job}: told {told:?}, held {held:?}"));
    }

    fn end_leaves(&mut self, ended: &Ended) {
        let job = ended.job;
        if ended.state == JobState::Parked && !self.exact {
            return;
        }
        let book = self.durable.jobs.get(&job);
        let state = book.map(|book| book.state_of(ended.generation));
        let outcome = book.and_then(|book| book.outcomes.get(&ended.generation));
        let accepted = outcome.and_then(|outcome| outcome.accepted.as_ref());
        let digest = accepted.map(|(_, digest, _)| *digest);
        let told = ended.result.as_ref().map(|(_, reported)| reported.digest);
        let same = state == Some(ended.state) && digest == told;
        self.demand("durable-first", same, || {
            format!("{job} told as {:?} {told:?}, held {state:?} {digest:?}", ended.state)
        });
        if ended.state == JobState::Parked {
            return;
        }
        self.demand("I7", ended.is_final, || format!("{job} ended, with one broker it is final"));
        let before = *self.told.entry((job, ended.generation)).or_insert((ended.state, told));
        let stays = before == (ended.state, told);
        self.demand("I7", stays, || format!("{job} ended as {before:?}, now {:?}", ended.state));
    }

    fn view_leaves(&mut self, view: &JobView) {
        self.same_state("I2", &view.job, view.state);
        if !self.exact {
            return;
        }
        let Some(book) = self.durable.jobs.get(&view.job) else { return };
        let same = book.generation == view.generation
            && book.attempts.len() == view.attempts.len()
            && book.reports.len() == view.results.len()
            && book.birth.as_ref() == Some(&view.birth);
        let held = (!same).then(|| format!("{book:?}"));
        self.demand("I2", same, || format!("shown {view:?}, held {held:?}"));
    }

    /// A2: submitted = waiting + running + parked + ended, by the log of the birth.
    fn audit_leaves(&mut self, audit: &AuditView) {
        let mut states = Births::new();
        for book in self.durable.jobs.values() {
            if let Some(birth) = &book.birth {
                let counts = states.entry(birth.log.clone()).or_default();
                *counts.entry(book.state()).or_default() += 1;
            }
        }
        let strip = |births: &Births| -> Births {
            let some = |counts: &BTreeMap<JobState, u64>| {
                counts.iter().filter(|(_, n)| **n > 0).map(|(s, n)| (*s, *n)).collect()
            };
            let all = births.iter().map(|(log, counts)| (log.clone(), some(counts)));
            all.filter(|(_, counts): &(LogId, BTreeMap<_, _>)| !counts.is_empty()).collect()
        };
        let told = strip(&audit.states);
        self.demand("A2", told == states, || format!("audit says {told:?}, held {states:?}"));
        for (log, submitted) in &audit.submitted {
            let sum: u64 = states.get(log).map_or(0, |counts| counts.values().sum());
            let adds_up = sum == *submitted;
            self.demand("A2", adds_up, || format!("{log}: {submitted} submitted, {sum} in states"));
        }
        let (told, held) = (&audit.vector, self.durable.logs.vector());
        self.demand("A38", *told == held, || format!("audit says {told:?}, held is {held:?}"));
    }

    fn refusal_leaves(&mut self, refusal: &Refusal) {
        let held = |job: &JobId| self.durable.jobs.get(job).is_some_and(|b| b.birth.is_some());
        let right = match refusal {
            Refusal::NotFound(text) => match text.parse::<JobId>() {
                Ok(job) => !held(&job),
                Err(_) => true,
            },
            Refusal::AfterUnknown(job) => !held(job),
            Refusal::KeyConflict { job, .. } | Refusal::IdTaken(job) => held(job),
            Refusal::HasEnded { job, state } | Refusal::NotEnded { job, state } => {
                self.durable.jobs.get(job).map(Book::state) == Some(*state)
            }
            _ => true,
        };
        self.demand("refusal", right, || format!("refused, but the facts differ: {refusal}"));
    }

    /// A message leaves for an executor.
    pub fn message_leaves(&mut self, to: &ExecutorId, message: &BrokerMessage) {
        match message {
            BrokerMessage::Start(order) => self.order_leaves(to, order),
            BrokerMessage::Acknowledged { attempt } => {
                let held = |b: &Book| b.reports.iter().any(|(a, ..)| a == attempt);
                let held = self.durable.jobs.values().any(held);
                self.demand("durable-first", held, || {
                    format!("the result of {attempt} is acknowledged, not durable")
                });
                self.acknowledged_results.insert(attempt.clone());
            }
            _ => {}
        }
    }

    fn order_leaves(&mut self, to: &ExecutorId, order: &StartOrder) {
        let (attempt, job) = (&order.attempt, order.job);
        let book = self.durable.jobs.get(&job);
        let Some((book, held)) = book.and_then(|book| Some((book, book.attempt(attempt)?))) else {
            return self.fail("durable-first", format!("{attempt} ordered, not durable"));
        };
        let same = held.executor == *to
            && held.fence == order.fence
            && held.generation == order.generation
            // Within one drain it may be ordered over a session that turns out to be over.
            && (held.end.is_none() || (held.end == Some(End::Lost) && !self.exact))
            && book.spec.as_ref() == Some(&order.spec)
            && order.clock.covers(&attempt.0);
        let held = (!same).then(|| format!("{held:?}"));
        self.demand("order", same, || format!("{attempt} at {to}: {order:?}, held {held:?}"));
    }
}
