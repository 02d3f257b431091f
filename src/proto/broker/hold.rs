//! Jobs that are held back as an earlier attempt may still run.
//!
//! Where processes of a dead executor may be left on this broker's own host, its jobs wait for
//! `lost_after`. A job that must not overlap waits until its attempt's lease is over by this
//! broker's clock: counted from the last word of the executor, which came after the heartbeat from
//! whose sending the executor counts, and longer by [`limits::LEASE_DRIFT_PERCENT`]. After its own
//! start the broker waits a full lease, as it does not know what it answered before.
//! Law: of a job that must not overlap no two attempts run at one time, as long as clocks run
//! within that drift (case A10).
//! Source: design section 4.

use std::time::Duration;

use super::fleet::Seat;
use super::sessions::Tree;
use super::{Broker, Timer};
use crate::proto::fact::{Deployed, Fact};
use crate::proto::fold::{Attempt, JobFacts};
use crate::proto::id::{AttemptId, JobId, SessionId};
use crate::proto::job::Overlap;
use crate::proto::limits;
use crate::proto::message::BrokerMessage;
use crate::proto::ranges::Ranges;
use crate::proto::time::Monotonic;
use crate::proto::view::JobState;

/// How long this broker counts a lease.
fn counted(lease: Duration) -> Duration {
    lease + lease / 100 * limits::LEASE_DRIFT_PERCENT + limits::LEASE_GRANULE
}

impl Broker {
    pub(super) fn forbids_overlap(&self, id: JobId) -> bool {
        let submitted = self.jobs.get(&id).and_then(|job| job.facts.submitted());
        submitted.is_some_and(|(_, body)| body.spec.overlap == Overlap::Forbid)
    }

    /// The lease of an attempt that is deployed now.
    pub(super) fn lease_ms(&self, id: JobId) -> Option<u64> {
        let millis = u64::try_from(self.config.lost_after.as_millis()).unwrap_or(u64::MAX);
        self.forbids_overlap(id).then_some(millis)
    }

    /// Renews the lease of an attempt that was announced and is wanted.
    pub(super) fn confirm_lease(
        &mut self,
        session: Option<SessionId>,
        id: JobId,
        attempt: &AttemptId,
    ) {
        if let (Some(session), true) = (session, self.forbids_overlap(id)) {
            self.send(session, BrokerMessage::Keep { attempt: attempt.clone() });
        }
    }

    /// An executor is given up: holds back its jobs that may still run there.
    pub(super) fn hold_back(&mut self, seat: &Seat, tree: Tree) {
        let attempts: Vec<(AttemptId, JobId)> = seat
            .assigned
            .iter()
            .filter_map(|(attempt, assigned)| Some((attempt.clone(), assigned.job?)))
            .collect();
        for (attempt, id) in attempts {
            self.hold_back_one(&attempt, id, seat.heard, tree);
        }
    }

    /// The same for one attempt; its executor was last heard of at `heard`.
    pub(super) fn hold_back_one(
        &mut self,
        attempt: &AttemptId,
        id: JobId,
        heard: Monotonic,
        tree: Tree,
    ) {
        let forbids = self.forbids_overlap(id);
        let (now, lost_after) = (self.now.mono, self.config.lost_after);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let lease = job.facts.attempt(attempt).and_then(|(_, deployed)| deployed.lease_ms);
        let lease = lease.map_or(lost_after, Duration::from_millis);
        let until = match tree {
            Tree::Gone => return,
            _ if forbids => heard.after(counted(lease)),
            Tree::Loose => now.after(lost_after),
            Tree::Unproven => return,
        };
        match (attempt.element, &mut job.array) {
            (Some(element), Some(work)) => {
                work.delay(element, until);
                self.set_timer(until, Timer::Retry(id));
            }
            _ => job.held_until = job.held_until.max(until),
        }
    }

    /// After a start: whatever must not overlap waits until no lease is left. What the log does not
    /// know of may have been deployed by the one that it continues.
    pub(super) fn hold_all_after_start(&mut self) {
        let leases = self.jobs.values().flat_map(|job| job.facts.deployed());
        let known = leases.filter_map(|(_, deployed)| deployed.lease_ms).max();
        let lease = Duration::from_millis(known.unwrap_or(0)).max(self.config.lost_after);
        self.leases_over = self.opened.after(counted(lease));
    }

    /// After a start: a job that must not overlap waits for the longest lease of its attempts, any
    /// other for `lost_after` where one was lost of which processes may be left.
    pub(super) fn hold_after_start(&mut self, id: JobId) {
        let (opened, lost_after) = (self.opened, self.config.lost_after);
        let forbids = self.forbids_overlap(id);
        let longest = |task: &JobFacts| {
            if forbids { longest_lease(task, lost_after) } else { was_loose(task, lost_after) }
        };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(all) = job.facts.elements() else {
            if let Some(lease) = longest(&job.facts) {
                job.held_until = job.held_until.max(opened.after(counted(lease)));
            }
            return;
        };
        let held = job.facts.parts(all).into_iter().filter_map(|(first, last)| {
            let lease = longest(&job.facts.task(Some(first)))?;
            Some((first, last, opened.after(counted(lease))))
        });
        let held: Vec<_> = held.collect();
        let Some(work) = &mut job.array else { return };
        for (first, last, until) in &held {
            (*first..=*last).for_each(|element| work.delay(element, *until));
        }
        for (.., until) in held {
            self.set_timer(until, Timer::Retry(id));
        }
    }

    /// Tasks of a job that must not overlap of which an attempt is known to be at an executor: the
    /// job itself, or elements.
    pub(super) fn occupied(&self, id: JobId) -> (bool, Ranges) {
        let (mut whole, mut elements) = (false, Ranges::default());
        if !self.forbids_overlap(id) {
            return (whole, elements);
        }
        for seat in self.fleet.seats.values() {
            for (attempt, assigned) in &seat.assigned {
                match attempt.element {
                    _ if assigned.job != Some(id) => {}
                    Some(element) => elements.insert(element),
                    None => whole = true,
                }
            }
        }
        (whole, elements)
    }
}

/// How long to wait for what may be left of lost attempts.
fn was_loose(task: &JobFacts, lost_after: Duration) -> Option<Duration> {
    if task.state() != Some(JobState::Waiting) {
        return None;
    }
    let current = task.generation();
    let left = |fact: &Fact| {
        let lost = matches!(task.standing(fact), Attempt::Lost(_));
        fact.generation == current && lost && !task.is_proven_over(fact)
    };
    task.deployed().any(|(fact, _)| left(fact)).then_some(lost_after)
}

/// The longest lease of those attempts that may still run.
fn longest_lease(task: &JobFacts, default: Duration) -> Option<Duration> {
    let open = task.deployed().filter(|(fact, _)| !task.is_proven_over(fact));
    let lease = |(_, deployed): (&Fact, &Deployed)| {
        deployed.lease_ms.map_or(default, Duration::from_millis)
    };
    open.map(lease).max()
}
