//! The executors as this broker sees them: presence, never facts.
//!
//! Shape: ordered map executor → seat. A seat outlives its session for as long as attempts are
//! expected to come back with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::proto::capability::{self, Kind, Needs, Occupied, Unmet};
use crate::proto::id::{AttemptId, ExecutorId, JobId, SessionId};
use crate::proto::limits;
use crate::proto::message::Hello;
use crate::proto::time::Monotonic;

/// An attempt that occupies an executor.
#[derive(Debug, Clone)]
pub(super) struct Assigned {
    /// Its job; unknown for an attempt that only the executor spoke of.
    pub job: Option<JobId>,
    /// What it occupies.
    pub needs: Needs,
    /// Whether it was told to stop.
    pub stopping: bool,
}

/// One executor.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    /// The connection, if there is one.
    pub session: Option<SessionId>,
    /// What it said when it last connected to this process.
    pub hello: Option<Hello>,
    /// When it was last heard of; for one that is away, when that began.
    pub heard: Monotonic,
    /// One that is away is lost then.
    pub away_until: Option<Monotonic>,
    /// Whether it is on this host.
    pub local: bool,
    /// Its time is over, but this broker may be cut off itself: it is lost then.
    pub doubted_until: Option<Monotonic>,
    /// Whether it takes nothing new.
    pub draining: bool,
    /// It handed an attempt back, and is left alone until then.
    pub avoided_until: Option<Monotonic>,
    /// The attempts that occupy it.
    pub assigned: BTreeMap<AttemptId, Assigned>,
    /// The sum of what they occupy.
    pub occupied: Occupied,
    /// How long its attempts took lately; unknown where absent.
    pub took: Option<Duration>,
    /// When a result of it came in last.
    pub result_at: Monotonic,
    /// Whether it is watched for attempts that do not begin.
    pub recall_watched: bool,
    /// When an attempt succeeded there last.
    pub succeeded_at: Option<Monotonic>,
    /// Attempts that failed there fast since then, and since when.
    pub failures: u32,
    pub failing_since: Monotonic,
    /// How often it was left alone for that.
    pub avoided: u32,
    /// It is left alone until then, as far as others can do what it would.
    pub failing_until: Option<Monotonic>,
    /// Results that contradict an earlier one of the same attempt.
    pub equivocations: u64,
}

impl Seat {
    pub(super) fn away(now: Monotonic, until: Monotonic) -> Self {
        Self {
            session: None,
            hello: None,
            heard: now,
            away_until: Some(until),
            local: false,
            doubted_until: None,
            draining: false,
            avoided_until: None,
            assigned: BTreeMap::new(),
            occupied: Occupied::default(),
            took: None,
            result_at: now,
            recall_watched: false,
            succeeded_at: None,
            failures: 0,
            failing_since: now,
            avoided: 0,
            failing_until: None,
            equivocations: 0,
        }
    }

    /// Learns from a result how long attempts take there: slow ones are believed at once.
    pub(super) fn learn(&mut self, now: Monotonic, took: Option<Duration>) {
        self.result_at = now;
        let Some(took) = took else { return };
        self.took = Some(match self.took {
            Some(before) if took < before * 4 => (before * 7 + took) / 8,
            _ => took,
        });
    }

    pub(super) fn assign(&mut self, attempt: AttemptId, assigned: Assigned) {
        self.occupied.add(&assigned.needs);
        if let Some(before) = self.assigned.insert(attempt, assigned) {
            self.occupied.remove(&before.needs);
        }
    }

    pub(super) fn release(&mut self, attempt: &AttemptId) -> Option<Assigned> {
        let assigned = self.assigned.remove(attempt)?;
        self.occupied.remove(&assigned.needs);
        Some(assigned)
    }

    /// Whether it could take a job with these needs now.
    pub(super) fn fits(&self, kind: Kind, needs: &Needs) -> Result<(), Unmet> {
        match &self.hello {
            Some(hello) if self.session.is_some() && !self.draining => {
                capability::fits(kind, needs, &hello.capability, &hello.load, &self.occupied)
            }
            _ => Err(Unmet::Busy),
        }
    }

    fn slots(&self) -> u64 {
        self.hello.as_ref().map_or(0, |hello| u64::from(hello.capability.slots))
    }

    /// Slots that may be handed out: those that are free, and ahead of those that are not as many
    /// as short attempts keep busy for [`limits::AHEAD_SPAN`].
    fn slots_to_give(&self) -> u64 {
        (self.slots() + self.ahead()).saturating_sub(self.occupied.cores)
    }

    /// Slots that may be handed out before they are free.
    fn ahead(&self) -> u64 {
        let took = self.took.unwrap_or(limits::AHEAD_SPAN);
        let rounds = limits::AHEAD_SPAN.as_micros() / took.as_micros().max(1);
        let rounds = u64::try_from(rounds).unwrap_or(u64::MAX).saturating_sub(1);
        self.slots().saturating_mul(rounds).min(limits::AHEAD_MAX)
    }

    /// Whether it failed everything lately.
    pub(super) fn is_failing(&self, now: Monotonic) -> bool {
        self.failing_until.is_some_and(|until| until > now)
    }

    /// Whether attempts were handed out ahead of free slots.
    pub(super) fn is_ahead(&self) -> bool {
        let memory = self.hello.as_ref().map_or(0, |hello| hello.capability.memory.0);
        self.occupied.cores > self.slots() || self.occupied.memory > memory
    }

    /// How many jobs with these needs would begin at once.
    pub(super) fn begins(&self, needs: &Needs) -> u64 {
        self.slots().saturating_sub(self.occupied.cores) / u64::from(needs.cores.max(1))
    }

    /// How many jobs with these needs it may be given, where one fits. What needs less may be given
    /// wherever what needs more may (I8).
    pub(super) fn room(&self, needs: &Needs) -> u64 {
        let has = self.hello.as_ref().map_or(0, |hello| hello.capability.memory.0);
        let free = has.saturating_sub(self.occupied.memory);
        let memory = needs.memory.map_or(0, |memory| memory.0);
        let by_memory = free.checked_div(memory).map(|count| count.min(self.begins(needs)));
        match by_memory {
            Some(count) if count > 0 => count,
            // Nothing is known of when memory will be free.
            Some(_) if self.ahead() == 0 => 0,
            _ => self.slots_to_give() / u64::from(needs.cores.max(1)),
        }
    }

    /// Whether it could be given a job with these needs now; `ahead` says whether before a slot is
    /// free.
    fn takes(&self, kind: Kind, needs: &Needs, ahead: bool) -> bool {
        match self.fits(kind, needs) {
            Ok(()) => true,
            Err(Unmet::Busy) if ahead && self.room(needs) > 0 => match &self.hello {
                Some(hello) if self.session.is_some() && !self.draining => {
                    let nothing = Occupied::default();
                    capability::fits(kind, needs, &hello.capability, &hello.load, &nothing).is_ok()
                }
                _ => false,
            },
            Err(_) => false,
        }
    }
}

/// All executors.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    pub seats: BTreeMap<ExecutorId, Seat>,
    pub sessions: BTreeMap<SessionId, ExecutorId>,
    /// Executors with a session and a slot to give.
    open: BTreeSet<ExecutorId>,
}

impl Fleet {
    /// Brings the set of executors with free slots up to date after a change of one seat.
    pub(super) fn refresh(&mut self, executor: &ExecutorId) {
        let free = self.seats.get(executor).is_some_and(|seat| {
            seat.session.is_some() && !seat.draining && seat.slots_to_give() > 0
        });
        if !free {
            self.open.remove(executor);
        } else if !self.open.contains(executor) {
            self.open.insert(executor.clone());
        }
    }

    /// Whether any executor has a slot to give.
    pub(super) fn has_room(&self) -> bool {
        !self.open.is_empty()
    }

    /// The executor that fits these needs, is not suspect, and has the most free slots; with
    /// `ahead` also one that would begin soon.
    pub(super) fn choose(
        &self,
        (kind, needs, ahead): (Kind, &Needs, bool),
        now: Monotonic,
        suspect_after: Duration,
    ) -> Option<&ExecutorId> {
        let seats = self.open.iter().filter_map(|id| self.seats.get(id).map(|seat| (id, seat)));
        let fitting = seats.filter(|(_, seat)| {
            now.since(seat.heard) < suspect_after
                && seat.avoided_until.is_none_or(|until| until <= now)
                && seat.takes(kind, needs, ahead)
                && !(seat.is_failing(now) && self.has_other(kind, needs, now))
        });
        // Of those that are full the one with the fewest in front.
        let free = |seat: &Seat| i128::from(seat.slots()) - i128::from(seat.occupied.cores);
        fitting.max_by_key(|(id, seat)| (free(seat), std::cmp::Reverse(*id))).map(|s| s.0)
    }

    /// Whether one could ever do this that does not fail everything.
    fn has_other(&self, kind: Kind, needs: &Needs, now: Monotonic) -> bool {
        let other = |seat: &Seat| match &seat.hello {
            Some(hello) if seat.session.is_some() && !seat.draining && !seat.is_failing(now) => {
                capability::capable(kind, needs, &hello.capability).is_ok()
            }
            _ => false,
        };
        self.seats.values().any(other)
    }

    /// Removes an executor altogether.
    pub(super) fn remove(&mut self, executor: &ExecutorId) -> Option<Seat> {
        self.open.remove(executor);
        let seat = self.seats.remove(executor)?;
        if let Some(session) = seat.session {
            self.sessions.remove(&session);
        }
        Some(seat)
    }
}
