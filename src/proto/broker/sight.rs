//! Whom the broker sees, and when it doubts its own eyes.
//!
//! Silence counts only while the broker listened: time during which its own loop stood still (a
//! stopped process, a suspended machine) is added to everybody's account. And a broker that loses
//! sight of more than half of its executors at once suspects its own link first: they are lost only
//! after another `lost_after`. Executors on its own host have no link, and are not counted.
//! An executor on which everything fails at once, while others do the same kind of work well, is
//! left alone for a while, longer each time.
//! Source: design section 5; Lifeguard (Dadgar et al. 2018) for local health.

use std::time::Duration;

use super::fleet::Seat;
use super::{Broker, Timer};
use crate::proto::id::ExecutorId;
use crate::proto::limits;
use crate::proto::message::BrokerMessage;
use crate::proto::time::{Monotonic, Now};
use crate::proto::view::Detection;

impl Broker {
    /// Before anything else is done: time that nobody was listened to is nobody's silence.
    pub(super) fn notice_own_pause(&mut self, now: Now) {
        let Some((due, _)) = self.timers.first() else { return };
        let late = now.mono.since((*due).max(self.now.mono));
        if late < limits::OWN_PAUSE_MIN || self.log.is_none() {
            return;
        }
        self.detection.own_pauses += 1;
        for seat in self.fleet.seats.values_mut() {
            seat.heard = seat.heard.after(late);
            let put_off = |until: Monotonic| until.after(late);
            seat.away_until = seat.away_until.map(put_off);
            seat.doubted_until = seat.doubted_until.map(put_off);
        }
    }

    /// Has the broker wake often enough to notice that it stood still.
    pub(super) fn keep_looking(&mut self) {
        if !std::mem::replace(&mut self.looking, true) {
            let bound = self.config.suspect_after.min(self.config.lost_after);
            let due = self.now.mono.after((bound / 4).max(limits::OWN_PAUSE_MIN));
            self.set_timer(due, Timer::Look);
        }
    }

    pub(super) fn look(&mut self) {
        self.looking = false;
        if !self.fleet.seats.is_empty() {
            self.keep_looking();
        }
    }

    /// An executor's time is over: whether it is given another `lost_after`, as it may be this
    /// broker that is cut off.
    pub(super) fn doubts(&mut self, executor: &ExecutorId) -> bool {
        let now = self.now.mono;
        let Some(seat) = self.fleet.seats.get(executor) else { return false };
        if let Some(until) = seat.doubted_until {
            if until > now {
                self.set_timer(until, Timer::Executor(executor.clone()));
            }
            return until > now;
        }
        if seat.local {
            return false;
        }
        let remote = self.fleet.seats.values().filter(|seat| !seat.local);
        let (mut all, mut unseen) = (0_usize, 0_usize);
        for seat in remote {
            all += 1;
            unseen += usize::from(self.is_unseen(seat));
        }
        if unseen < limits::UNSEEN_MIN || unseen * 2 <= all {
            return false;
        }
        let until = now.after(self.config.lost_after);
        if let Some(seat) = self.fleet.seats.get_mut(executor) {
            seat.doubted_until = Some(until);
        }
        self.set_timer(until, Timer::Executor(executor.clone()));
        self.detection.doubts += 1;
        if !self.doubting(executor) {
            let wait = self.config.lost_after;
            self.notice(format!(
                "lost sight of {unseen} of {all} executors at once: the broker suspects its own \
                 link, and waits {wait:?} more before their jobs go elsewhere"
            ));
        }
        true
    }

    /// Whether any other executor is held for lost only in doubt.
    fn doubting(&self, but: &ExecutorId) -> bool {
        let now = self.now.mono;
        let doubted = |seat: &Seat| seat.doubted_until.is_some_and(|until| until > now);
        self.fleet.seats.iter().any(|(executor, seat)| executor != but && doubted(seat))
    }

    fn is_unseen(&self, seat: &Seat) -> bool {
        seat.session.is_none() || self.now.mono.since(seat.heard) >= self.config.suspect_after
    }

    /// How executors were lost and found so far.
    pub(super) fn detection(&self) -> Detection {
        self.detection
    }

    /// A result came: whether its executor fails everything fast that others do well.
    pub(super) fn learn_of_result(
        &mut self,
        executor: &ExecutorId,
        success: bool,
        took: Option<Duration>,
    ) {
        let now = self.now.mono;
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        if success {
            // It does not fail everything, so it is not left alone any longer either.
            (seat.succeeded_at, seat.failures, seat.avoided) = (Some(now), 0, 0);
            seat.failing_until = None;
            return;
        }
        if took.is_none_or(|took| took > limits::FAILS_FAST_WITHIN) {
            return;
        }
        if seat.failures == 0 {
            seat.failing_since = now;
        }
        seat.failures += 1;
        let (failures, since) = (seat.failures, seat.failing_since);
        if failures < limits::FAILS_FAST_MIN {
            return;
        }
        let well = |(other, seat): (&ExecutorId, &Seat)| {
            other != executor && seat.succeeded_at.is_some_and(|at| at >= since)
        };
        if !self.fleet.seats.iter().any(well) {
            return;
        }
        let Some(seat) = self.fleet.seats.get_mut(executor) else { return };
        let factor = 1_u32.checked_shl(seat.avoided).unwrap_or(u32::MAX);
        let wait = limits::AVOID_FAILING_FIRST.saturating_mul(factor);
        let wait = wait.min(limits::AVOID_FAILING_MAX);
        // One more failure after that time is enough.
        (seat.avoided, seat.failures) = (seat.avoided + 1, limits::FAILS_FAST_MIN - 1);
        let until = now.after(wait);
        seat.failing_until = Some(until);
        let session = seat.session;
        self.detection.avoided += 1;
        self.set_timer(until, Timer::Executor(executor.clone()));
        self.notice(format!(
            "executor {executor} failed {failures} attempts in a row, while others \
             did well: it is left alone for {wait:?}"
        ));
        if let Some(session) = session {
            self.send(session, BrokerMessage::Recall);
        }
    }
}
