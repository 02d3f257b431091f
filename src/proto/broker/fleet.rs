//! The executors as this broker sees them: presence, never facts.
//!
//! Shape: ordered map executor → seat. A seat outlives its session for as long as attempts are
//! expected to come back with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::proto::capability::{self, Kind, Needs, Occupied, Unmet};
use crate::proto::id::{AttemptId, ExecutorId, JobId, SessionId};
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
    /// Whether it takes nothing new.
    pub draining: bool,
    /// It handed an attempt back, and is left alone until then.
    pub avoided_until: Option<Monotonic>,
    /// The attempts that occupy it.
    pub assigned: BTreeMap<AttemptId, Assigned>,
    /// The sum of what they occupy.
    pub occupied: Occupied,
}

impl Seat {
    pub(super) fn away(now: Monotonic, until: Monotonic) -> Self {
        Self {
            session: None,
            hello: None,
            heard: now,
            away_until: Some(until),
            draining: false,
            avoided_until: None,
            assigned: BTreeMap::new(),
            occupied: Occupied::default(),
        }
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

    fn free_slots(&self) -> u64 {
        let slots = self.hello.as_ref().map_or(0, |hello| u64::from(hello.capability.slots));
        slots.saturating_sub(self.occupied.cores)
    }
}

/// All executors.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    pub seats: BTreeMap<ExecutorId, Seat>,
    pub sessions: BTreeMap<SessionId, ExecutorId>,
    /// Executors with a session and a free slot.
    open: BTreeSet<ExecutorId>,
}

impl Fleet {
    /// Brings the set of executors with free slots up to date after a change of one seat.
    pub(super) fn refresh(&mut self, executor: &ExecutorId) {
        let free = self
            .seats
            .get(executor)
            .is_some_and(|seat| seat.session.is_some() && !seat.draining && seat.free_slots() > 0);
        if !free {
            self.open.remove(executor);
        } else if !self.open.contains(executor) {
            self.open.insert(executor.clone());
        }
    }

    /// Whether any executor has a free slot.
    pub(super) fn has_room(&self) -> bool {
        !self.open.is_empty()
    }

    /// The executor that fits these needs, is not suspect, and has the most free slots.
    pub(super) fn choose(
        &self,
        kind: Kind,
        needs: &Needs,
        now: Monotonic,
        suspect_after: Duration,
    ) -> Option<&ExecutorId> {
        let seats = self.open.iter().filter_map(|id| self.seats.get(id).map(|seat| (id, seat)));
        let fitting = seats.filter(|(_, seat)| {
            now.since(seat.heard) < suspect_after
                && seat.avoided_until.is_none_or(|until| until <= now)
                && seat.fits(kind, needs).is_ok()
        });
        fitting.max_by_key(|(id, seat)| (seat.free_slots(), std::cmp::Reverse(*id))).map(|s| s.0)
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
