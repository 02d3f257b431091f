//! When jobs must not run any longer, whatever becomes of the executor.
//!
//! Kills nothing. A lease is a moment of `CLOCK_BOOTTIME`, which goes on while the machine is
//! suspended; the timeout of poll(2) does not, so a timer of that clock wakes the loop. It is set
//! to the earliest lease. Law: [`Leases::over`] names each job once, at its lease or later, never
//! before (tests/spawner.rs). Source: timerfd_create(2).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::frame::JobNumber;
use crate::proto::time::Monotonic;

/// The leases of jobs that run.
pub(super) struct Leases {
    timer: TimerFd,
    until: BTreeMap<JobNumber, Monotonic>,
    due: BTreeSet<(Monotonic, JobNumber)>,
    /// What the timer is set to.
    set: Option<Monotonic>,
}

impl Leases {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        Ok(Self { timer, until: BTreeMap::new(), due: BTreeSet::new(), set: None })
    }

    /// A job may run until this moment.
    pub(super) fn hold(&mut self, job: JobNumber, until: Monotonic) {
        self.forget(job);
        self.until.insert(job, until);
        self.due.insert((until, job));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Whether a job that runs has a lease; one that is over is none.
    pub(super) fn has(&self, job: JobNumber) -> bool {
        self.until.contains_key(&job)
    }

    /// A job has no lease any more.
    pub(super) fn forget(&mut self, job: JobNumber) {
        if let Some(until) = self.until.remove(&job) {
            self.due.remove(&(until, job));
        }
    }

    /// The jobs whose lease is over. They are forgotten.
    pub(super) fn over(&mut self, now: Monotonic) -> Vec<JobNumber> {
        let mut over = vec![];
        while let Some((until, job)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(until, job));
            self.until.remove(&job);
            over.push(job);
        }
        over
    }

    /// Sets the timer to the earliest lease, where it is not.
    pub(super) fn set_timer(&mut self) -> io::Result<()> {
        let first = self.due.first().map(|(until, _)| *until);
        if first == self.set {
            return Ok(());
        }
        match first {
            None => self.timer.unset()?,
            Some(until) => {
                // Zero would switch it off.
                let at = TimeSpec::from_duration(Duration::from_micros(until.0.max(1)));
                let at = Expiration::OneShot(at);
                self.timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
        }
        self.set = first;
        Ok(())
    }
}

impl AsFd for Leases {
    /// Readable from the earliest lease on, until [`Leases::set_timer`] sets another.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
