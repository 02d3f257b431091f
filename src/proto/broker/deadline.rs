//! Deadlines: a job whose time is over is begun no more.
//!
//! Counted in running time by the broker that deploys the job, from its submission or rerun; wall
//! clocks have no part in it. When it is over a job that waits (for an executor, for another job,
//! for its back-off) gets an `expired` fact. What runs goes on, and is only not tried again, or is
//! stopped, as the spec says. One that is parked stays so.
//! A broker that starts again goes on counting where its log goes on, which proves the same boot
//! and so the same clock; for a job of an older log and for a rerun the count begins anew.
//! Law: nothing is deployed after its deadline, and nothing expires before it
//! (tests/simulation/deadlines.rs).

use std::collections::BTreeMap;

use super::queries::millis;
use super::why::tried_before;
use super::{Broker, Timer};
use crate::proto::fact::{Body, Reason};
use crate::proto::fold::{JobFacts, Step};
use crate::proto::id::{JobId, LogId};
use crate::proto::job::AfterDeadline;
use crate::proto::ranges::Ranges;
use crate::proto::time::Monotonic;
use crate::proto::units::Span;
use crate::proto::view::JobState;

/// When the deadline of a job that comes from the store began to count.
pub(super) fn begin(facts: &JobFacts, log: Option<&LogId>, now: Monotonic) -> Monotonic {
    let written = facts.submitted().and_then(|(fact, submitted)| {
        let ours = Some(&fact.dot.log) == log && facts.generation() == 1;
        submitted.began_us.filter(|_| ours).map(Monotonic)
    });
    written.map_or(now, |began| began.min(now))
}

/// A job's deadline.
struct Deadline {
    span: Span,
    due: Monotonic,
    after: AfterDeadline,
}

impl Broker {
    fn deadline_of(&self, id: JobId) -> Option<Deadline> {
        let job = self.jobs.get(&id)?;
        let (_, submitted) = job.facts.submitted()?;
        let (span, after) = (submitted.spec.deadline?, submitted.spec.after_deadline);
        Some(Deadline { span, due: job.began.after(span.duration()), after })
    }

    /// Whether the job's deadline is over.
    pub(super) fn is_overdue(&self, id: JobId) -> bool {
        self.deadline_of(id).is_some_and(|deadline| deadline.due <= self.now.mono)
    }

    /// Ends a job of ours whose deadline is over, if `step` leaves it nothing else; says whether
    /// it did. Sets the alarm where the deadline is still to come.
    pub(super) fn expire(&mut self, id: JobId, step: &Step) -> bool {
        let Some(deadline) = self.deadline_of(id).filter(|_| self.is_ours(id)) else {
            return false;
        };
        let Some(job) = self.jobs.get(&id) else { return false };
        let state = job.facts.state();
        if !matches!(state, Some(JobState::Waiting | JobState::Running)) {
            return false;
        }
        if deadline.due > self.now.mono {
            self.set_timer(deadline.due, Timer::Retry(id));
            return false;
        }
        let stopped = state == Some(JobState::Running) && deadline.after == AfterDeadline::Stop;
        let over = matches!(step, Step::Deploy { .. }) || *step == Step::Nothing && stopped;
        if !over {
            return false;
        }
        let mut words = vec![format!("its deadline of {} is over", deadline.span)];
        words.extend(stopped.then(|| "it was stopped".to_owned()));
        words.extend(tried_before(&job.facts));
        let generation = job.facts.generation();
        self.write_job(id, generation, Body::Expired(Reason { reason: words.join("; ") }));
        true
    }

    /// The same for elements of an array whose facts changed; gives back those that it ended.
    pub(super) fn expire_elements(&mut self, id: JobId, elements: &Ranges) -> Ranges {
        let mut over = Ranges::default();
        let Some(deadline) = self.deadline_of(id) else { return over };
        if deadline.due > self.now.mono {
            self.set_timer(deadline.due, Timer::Retry(id));
            return over;
        }
        let Some(job) = self.jobs.get(&id) else { return over };
        let mut ends: BTreeMap<(u32, String), Ranges> = BTreeMap::new();
        for (first, last) in job.facts.parts(elements) {
            let facts = job.facts.task(Some(first));
            let stopped =
                facts.state() == Some(JobState::Running) && deadline.after == AfterDeadline::Stop;
            let step = facts.step();
            let applies = matches!(step, Step::Deploy { .. }) || step == Step::Nothing && stopped;
            if !applies {
                continue;
            }
            let mut words = vec![format!("its deadline of {} is over", deadline.span)];
            words.extend(stopped.then(|| "it was stopped".to_owned()));
            words.extend(tried_before(&facts));
            let end = ends.entry((facts.generation(), words.join("; "))).or_default();
            end.insert_run(first, last);
        }
        for ((generation, reason), elements) in ends {
            over.extend(&elements);
            let body = Body::Expired(Reason { reason });
            self.write_elements(id, generation, Some(elements), body);
        }
        over
    }

    /// What is left until the deadline, and what comes then.
    pub(super) fn why_deadline(&self, id: JobId, state: JobState) -> Option<String> {
        let deadline = self.deadline_of(id)?;
        let (span, left) = (deadline.span, millis(deadline.due.since(self.now.mono)));
        let then = match (state, deadline.after) {
            (JobState::Waiting, _) => "it expires",
            (JobState::Running, AfterDeadline::Stop) => "it is stopped",
            (JobState::Running, AfterDeadline::Finish) => "it goes on, but is not tried again",
            _ => return None,
        };
        Some(match left {
            0 => format!("its deadline of {span} is over: {then}"),
            left => format!("its deadline of {span} is over in {left} ms; then {then}"),
        })
    }
}
