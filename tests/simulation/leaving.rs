//! The rules about what leaves the broker: nothing that depends on a fact that is not durable, and
//! nothing that says other than the durable facts do.
//!
//! Outputs leave in order and right after their batch became durable. A drain without a batch
//! changed nothing, so what it says must be just what the durable facts say (`exact`); one with a
//! batch may speak of the moment between two of its facts.

use std::collections::BTreeMap;

use ucp::proto::event::{Refusal, Reply};
use ucp::proto::id::{AttemptId, ExecutorId, JobId, LogId, RequestId, TaskId};
use ucp::proto::job::{JobSpec, Overlap};
use ucp::proto::message::{BrokerMessage, StartOrder};
use ucp::proto::ranges::Ranges;
use ucp::proto::text::Text;
use ucp::proto::view::{AuditView, Ended, JobState, JobView};

use super::broker_host::ELEMENTS_TOLD_MAX;
use super::checkers::Checks;
use super::history::{Book, End};

type Births = BTreeMap<LogId, BTreeMap<JobState, u64>>;

impl Checks {
    /// A reply leaves for a client.
    pub fn reply_leaves(&mut self, reply: &Reply) {
        match reply {
            Reply::Submitted { job, elements, .. } => {
                let held = self.durable.is_submitted(*job);
                self.demand("durable-first", held, || format!("{job} acknowledged, not durable"));
                let count = self.durable.arrays.get(job).map(Ranges::len);
                self.demand("array", *elements == count, || {
                    format!("{job} has {count:?} elements, told {elements:?}")
                });
                self.acknowledged.insert(*job);
            }
            Reply::Watched { .. } => {}
            Reply::Deployed { task, attempt, .. } => {
                let book = self.durable.tasks.get(task);
                let carried = book.is_some_and(|book| book.attempt(attempt).is_some());
                let held = self.durable.holds(&attempt.dot) || carried;
                let held = held && attempt.element == task.element;
                self.demand("durable-first", held, || {
                    format!("{task}: {attempt} told, not durable")
                });
            }
            Reply::Ended(ended) => self.end_leaves(ended),
            Reply::Done { task, state } => {
                let held = self.durable.is_submitted(task.job);
                self.demand("durable-first", held, || format!("{task}: done, not durable"));
                self.same_state("I2", *task, *state);
            }
            Reply::Job(view) => self.view_leaves(view),
            Reply::Why(view) => {
                let (task, state) = (TaskId::new(view.job, view.element), view.state);
                self.same_state("I2", task, state);
                let explained = !view.reasons.is_empty();
                self.demand("why", explained, || format!("{task} is {state:?}, no reason given"));
            }
            Reply::Jobs(rows) => {
                for row in rows {
                    self.same_state("I2", row.job.into(), row.state);
                    if self.exact {
                        let held = self.durable.states(row.job);
                        let held: BTreeMap<_, _> =
                            held.into_iter().map(|(state, e)| (state, e.len())).collect();
                        let same = row.elements == held;
                        self.demand("A2", same, || format!("listed {row:?}, held {held:?}"));
                    }
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
            Reply::Executors(_)
            | Reply::Refused { .. }
            | Reply::Status(_)
            | Reply::Heads { .. }
            | Reply::Imported { .. }
            | Reply::DeclaredLost { .. } => {}
        }
    }

    /// A reply leaves for this request; whether the broker has to wait now until some are taken.
    pub fn told_to(&mut self, request: RequestId, reply: &Reply) -> bool {
        let Reply::Ended(ended) = reply else { return false };
        if ended.element.is_none() {
            return false;
        }
        let untaken = self.untaken.entry(request).or_default();
        *untaken += 1;
        let untaken = *untaken;
        self.demand("credit", untaken <= ELEMENTS_TOLD_MAX, || {
            format!("{request:?} is told {untaken} ends before it took any")
        });
        untaken == ELEMENTS_TOLD_MAX
    }

    fn same_state(&mut self, rule: &'static str, task: TaskId, told: JobState) {
        if !self.exact {
            return;
        }
        let held = self.durable.state(task);
        self.demand(rule, held == Some(told), || format!("{task}: told {told:?}, held {held:?}"));
    }

    fn end_leaves(&mut self, ended: &Ended) {
        let task = TaskId::new(ended.job, ended.element);
        if ended.state == JobState::Parked && !self.exact {
            return;
        }
        let whole = ended.element.is_none() && self.durable.arrays.contains_key(&ended.job);
        self.demand("array", !whole, || format!("{task} is an array, told as one end"));
        let book = self.durable.tasks.get(&task);
        let state = book.map(|book| book.state_of(ended.generation));
        let outcome = book.and_then(|book| book.outcomes.get(&ended.generation));
        let accepted = outcome.and_then(|outcome| outcome.accepted.as_ref());
        let held = accepted.map(|(attempt, digest, _)| (attempt.clone(), *digest));
        let result = ended.result.as_ref().map(|(_, reported)| reported);
        let told = result.map(|reported| (reported.attempt.clone(), reported.digest));
        let same = state == Some(ended.state) && held == told;
        let foreign = book.is_some_and(|book| self.durable.is_foreign(book));
        self.demand("durable-first", same, || {
            format!("{task} told as {:?} {told:?}, held {state:?} {held:?}", ended.state)
        });
        if ended.state == JobState::Parked {
            return;
        }
        self.demand("I7", ended.is_final || foreign, || {
            format!("{task} ended, with one broker it is final")
        });
        let now = (ended.state, told.map(|(_, digest)| digest));
        let before = *self.told.entry((task, ended.generation)).or_insert(now);
        let stays = before == now;
        self.demand("I7", stays, || format!("{task} ended as {before:?}, now {:?}", ended.state));
    }

    fn view_leaves(&mut self, view: &JobView) {
        let task = TaskId::new(view.job, view.element);
        self.same_state("I2", task, view.state);
        if !self.exact {
            return;
        }
        if task.element.is_none() && self.durable.arrays.contains_key(&task.job) {
            let held = self.durable.states(task.job);
            let same = view.elements == held && view.attempts.is_empty();
            return self.demand("I2", same, || format!("shown {view:?}, held {held:?}"));
        }
        let Some(book) = self.durable.tasks.get(&task) else { return };
        let same = book.generation == view.generation
            && book.attempts.len() == view.attempts.len()
            && book.reports.len() == view.results.len()
            && book.birth.as_ref() == Some(&view.birth);
        let held = (!same).then(|| format!("{book:?}"));
        self.demand("I2", same, || format!("shown {view:?}, held {held:?}"));
    }

    /// A2: submitted = waiting + running + parked + ended, by the log of the birth; of an array
    /// each element counts.
    fn audit_leaves(&mut self, audit: &AuditView) {
        let mut states = Births::new();
        for book in self.durable.tasks.values() {
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
        let held = |job: &JobId| self.durable.is_submitted(*job);
        let right = match refusal {
            Refusal::NotFound(text) => match text.parse::<TaskId>() {
                Ok(TaskId { job, element: None }) => !held(&job),
                Ok(TaskId { job, element: Some(element) }) => {
                    self.durable.arrays.get(&job).is_none_or(|all| !all.contains(element))
                }
                Err(_) => true,
            },
            Refusal::AfterUnknown(job) => !held(job),
            Refusal::KeyConflict { job, .. } | Refusal::IdTaken(job) => held(job),
            Refusal::HasEnded { job, state } | Refusal::NotEnded { job, state } => {
                self.durable.state(*job) == Some(*state)
            }
            _ => true,
        };
        self.demand("refusal", right, || format!("refused, but the facts differ: {refusal}"));
    }

    /// A message leaves for an executor.
    pub fn message_leaves(&mut self, to: &ExecutorId, message: &BrokerMessage) {
        match message {
            BrokerMessage::Start(order) => self.order_leaves(to, order),
            BrokerMessage::Acknowledged { attempt, elements, .. } => {
                let named = |element| AttemptId::new(attempt.dot.clone(), element);
                let acknowledged: Vec<AttemptId> = match elements {
                    Some(elements) => elements.iter().map(|e| named(Some(e))).collect(),
                    None => vec![named(None)],
                };
                for attempt in acknowledged {
                    let held = self.reported.contains(&attempt);
                    self.demand("durable-first", held, || {
                        format!("the result of {attempt} is acknowledged, not durable")
                    });
                    self.acknowledged_results.insert(&attempt);
                }
            }
            _ => {}
        }
    }

    fn order_leaves(&mut self, to: &ExecutorId, order: &StartOrder) {
        let elements: Vec<Option<u64>> = match &order.elements {
            Some(elements) => elements.iter().map(Some).collect(),
            None => vec![None],
        };
        let array = self.durable.arrays.contains_key(&order.job);
        self.demand("array", array == order.elements.is_some(), || format!("{order:?}"));
        for (place, element) in elements.into_iter().enumerate() {
            self.order_of_task_leaves(to, order, place, TaskId::new(order.job, element));
        }
    }

    /// One attempt of an order; `place` is where its element stands among the order's.
    fn order_of_task_leaves(
        &mut self,
        to: &ExecutorId,
        order: &StartOrder,
        place: usize,
        task: TaskId,
    ) {
        let attempt = AttemptId::new(order.attempt.dot.clone(), task.element);
        let book = self.durable.tasks.get(&task);
        let Some((book, held)) = book.and_then(|book| Some((book, book.attempt(&attempt)?))) else {
            return self.fail("durable-first", format!("{attempt} ordered, not durable"));
        };
        let same = held.executor == *to
            && held.fence == order.fence
            && held.generation == order.generation
            // Within one drain it may be ordered over a session that turns out to be over.
            && (held.end.is_none() || (held.end == Some(End::Lost) && !self.exact))
            && book.spec.as_ref().is_some_and(|spec| is_spec(spec, &order.spec, task.element))
            && book.spec.as_ref().is_some_and(|spec| is_item(spec, order.items.get(place), task))
            && order.clock.covers(&attempt.dot)
            && order.lease.is_some() == is_forbidden(book);
        let offered = book.offered(order.generation);
        let alone = order.elements.as_ref().is_none_or(|elements| elements.len() == 1);
        let right = !self.exact || !alone || order.checkpoints == offered;
        let told = (!right).then(|| format!("{:?}, held {offered:?}", order.checkpoints));
        let some = alone || offered.is_empty();
        let held = (!same).then(|| format!("{held:?}"));
        self.demand("order", same, || format!("{attempt} at {to}: {order:?}, held {held:?}"));
        self.demand("A30", right, || format!("{attempt} begins from {told:?}"));
        self.demand("A30", some, || format!("{attempt} goes with others, with a checkpoint"));
    }
}

fn is_forbidden(book: &Book) -> bool {
    book.spec.as_ref().is_some_and(|spec| spec.overlap == Overlap::Forbid)
}

/// Whether an executor is told the spec that was submitted; of an array what all elements share.
fn is_spec(submitted: &JobSpec, told: &JobSpec, element: Option<u64>) -> bool {
    match element {
        None => submitted == told,
        Some(_) => {
            told.array.is_none()
                && told.items.is_empty()
                && (&told.command, &told.needs) == (&submitted.command, &submitted.needs)
                && (told.timeout, &told.placeholder) == (submitted.timeout, &submitted.placeholder)
        }
    }
}

/// Whether the item that comes with an element is the one that stands at its place in the array.
fn is_item(submitted: &JobSpec, told: Option<&Text>, task: TaskId) -> bool {
    let place = match (&submitted.array, task.element) {
        (Some(all), Some(element)) => all.iter().position(|number| number == element),
        _ => None,
    };
    place.and_then(|place| submitted.items.get(place)) == told
}
