//! How long an attempt may run that must not overlap with another, and whether anything may begin.
//!
//! Pure. The executor counts a lease from the moment at which it *sent* the latest heartbeat that
//! was answered; the broker counts it from the arrival of that heartbeat and a little longer. So
//! the executor's end comes first, however long messages take, as long as both clocks run at the
//! same rate within [`limits::LEASE_DRIFT_PERCENT`]. It is enforced by the spawner as well, for an
//! executor that is stopped.
//! An attempt of an earlier session is renewed only after this session's broker said that it is
//! wanted: another broker's answers say nothing of it.
//! Source: design section 4; Gray and Cheriton 1989.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Executor, ExecutorOutput, Kill, Running};
use crate::proto::id::AttemptId;
use crate::proto::limits;
use crate::proto::time::{Monotonic, Now};
use crate::proto::units::Span;

/// Why an attempt was stopped.
pub(super) const LAPSED: &str = "its lease ran out";

/// The lease of an attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    span: Duration,
    /// When it is over.
    pub(super) until: Monotonic,
}

/// What heartbeats and their answers allow.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// The number of the latest heartbeat.
    number: u64,
    /// Those of this session that were not answered, with the moments at which they were sent.
    sent: VecDeque<(u64, Monotonic)>,
    /// When the latest one was sent that was answered in this session.
    answered: Option<Monotonic>,
    /// Attempts with a lease that this session's broker wants.
    wanted: BTreeSet<AttemptId>,
    /// Nothing begins before the heartbeat with this number is answered.
    validating: Option<u64>,
    /// When the core was last driven.
    driven: Option<Monotonic>,
}

impl Leases {
    pub(super) fn begin_session(&mut self) {
        self.sent.clear();
        self.wanted.clear();
        self.answered = None;
        if self.validating.is_some() {
            self.validating = Some(u64::MAX);
        }
    }

    /// Numbers a heartbeat that is sent now.
    pub(super) fn count(&mut self, now: Monotonic) -> u64 {
        self.number += 1;
        if self.sent.len() >= limits::HEARTBEATS_UNANSWERED_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        self.number
    }

    /// Has nothing begin before the latest heartbeat is answered, if there is anything to begin.
    pub(super) fn validate_if(&mut self, wanted: bool) {
        self.validating = wanted.then_some(self.number);
    }

    pub(super) fn is_validating(&self) -> bool {
        self.validating.is_some()
    }

    /// Whether no heartbeat is on its way that would renew a lease.
    pub(super) fn wants_heartbeat(&self) -> bool {
        self.sent.is_empty()
    }

    /// Whether this session's broker answered and did not say that it wants an attempt.
    pub(super) fn is_unwanted(&self, attempt: &AttemptId) -> bool {
        self.answered.is_some() && !self.wanted.contains(attempt)
    }

    fn until(&self, span: Option<Span>) -> Option<Lease> {
        let span = span?.duration();
        Some(Lease { span, until: self.answered?.after(span) })
    }

    /// Whether an attempt may begin now as far as its lease goes.
    pub(super) fn allow(&self, attempt: &AttemptId, span: Option<Span>, now: Monotonic) -> bool {
        let valid = || self.until(span).is_some_and(|lease| lease.until > now);
        span.is_none() || self.wanted.contains(attempt) && valid()
    }

    /// The lease of an attempt that begins.
    pub(super) fn grant(&self, span: Option<Span>) -> Option<Lease> {
        self.until(span)
    }
}

impl Running {
    /// When its lease is over, unless it is being stopped already.
    pub(super) fn lease_ends(&self) -> Option<Monotonic> {
        self.lease.filter(|_| !self.stopping).map(|lease| lease.until)
    }

    pub(super) fn has_lapsed(&self, now: Monotonic) -> bool {
        self.lease.is_some_and(|lease| lease.until <= now)
    }
}

impl Executor {
    /// This session's broker wants an attempt.
    pub(super) fn confirm(&mut self, attempt: AttemptId, leased: bool) {
        if leased {
            self.leases.wanted.insert(attempt);
        }
    }

    /// A heartbeat was answered; one without a number stands for all.
    pub(super) fn renew(&mut self, now: Now, number: u64) {
        let leases = &mut self.leases;
        while let Some((sent, at)) = leases.sent.front().copied() {
            if number != 0 && sent > number {
                break;
            }
            leases.answered = Some(at);
            leases.sent.pop_front();
        }
        if leases.validating.is_some_and(|wanted| number == 0 || number >= wanted) {
            leases.validating = None;
        }
        let Some(answered) = leases.answered else { return };
        for (attempt, running) in &mut self.running {
            let Some(lease) = &mut running.lease else { continue };
            let until = answered.after(lease.span);
            // What is over stays over: the spawner has killed it.
            let valid = lease.until > now.mono && until > lease.until;
            if valid && !running.stopping && leases.wanted.contains(attempt) {
                lease.until = until;
                let attempt = attempt.clone();
                self.outputs.push_back(ExecutorOutput::Lease { attempt, until });
            }
        }
    }

    /// Kills what has no lease any more. The spawner does so by itself at the same moment.
    pub(super) fn end_lapsed(&mut self, now: Now) {
        for (attempt, running) in &mut self.running {
            if running.lease_ends().is_some_and(|until| until <= now.mono) {
                running.stopping = true;
                running.deadline = None;
                let (attempt, kill) = (attempt.clone(), Kill::Kill);
                self.outputs.push_back(ExecutorOutput::Kill { attempt, kill });
            }
        }
    }

    /// Where the process, or its whole machine, stood still for longer than its broker bears with,
    /// what was ordered before may run elsewhere by now.
    pub(super) fn notice_suspension(&mut self, now: Now) {
        let before = self.leases.driven.replace(now.mono);
        let gap = before.map_or(Duration::ZERO, |before| now.mono.since(before));
        if gap < self.heartbeat * 3 || self.waiting.is_empty() {
            return;
        }
        if self.registered {
            self.send_heartbeat(now);
            self.leases.validate_if(true);
        } else {
            self.leases.validating = Some(u64::MAX);
        }
    }
}
