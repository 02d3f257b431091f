//! What breaks: drawn from the seed, each seed with kinds of faults of its own.
//!
//! A fault only breaks; what follows from it is found out by the processes themselves. Every fault
//! says of which executors it may be the reason for a loss (`trouble`), so that the checkers can
//! tell a loss without any reason (I6).

use ucp::proto::executor::ExecutorInput;
use ucp::proto::fact::Fact;
use ucp::proto::id::ExecutorId;
use ucp::proto::rng::Rng;

use super::cluster::World;
use super::counters::Sometimes;
use super::disk::Damage;
use super::executor_host::ExecutorHost;
use super::queue::{Draw, Event};
use super::trace::trace;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    BrokerKill,
    BrokerReboot,
    HeadLost,
    DiskRestore,
    BrokerStop,
    DiskStall,
    ExecutorKill,
    ExecutorReboot,
    ExecutorStop,
    ExecutorDrain,
    SessionCut,
    HalfOpen,
    Stall,
    Flap,
    OwnLink,
    WallJump,
}

const ALL: [Fault; 16] = [
    Fault::BrokerKill,
    Fault::BrokerReboot,
    Fault::HeadLost,
    Fault::DiskRestore,
    Fault::BrokerStop,
    Fault::DiskStall,
    Fault::ExecutorKill,
    Fault::ExecutorReboot,
    Fault::ExecutorStop,
    Fault::ExecutorDrain,
    Fault::SessionCut,
    Fault::HalfOpen,
    Fault::Stall,
    Fault::Flap,
    Fault::OwnLink,
    Fault::WallJump,
];

/// The kinds that a seed uses; none for a calm one.
pub fn draw_kinds(rng: &mut Rng) -> Vec<Fault> {
    if rng.chance(6) {
        return Vec::new();
    }
    let share = *rng.pick(&[15, 40, 70]);
    let mut kinds: Vec<Fault> = ALL.into_iter().filter(|_| rng.chance(share)).collect();
    if kinds.is_empty() {
        kinds.push(*rng.pick(&ALL));
    }
    kinds
}

impl World {
    /// Something breaks.
    pub fn break_something(&mut self) {
        if self.healing || self.faults.is_empty() {
            return;
        }
        let mut pause = self.rng.range(1_000, self.fault_pause_us);
        if self.own_link_only {
            pause += 30_000_000;
        }
        self.queue.push(self.now + pause, Event::Fault);
        let fault = *self.rng.pick(&self.faults);
        let executor = self.rng.place(self.executors.len());
        trace!(self, "fault: {fault:?}, executor {executor}");
        match fault {
            Fault::BrokerKill => self.crash_broker(Damage::None),
            Fault::BrokerReboot => self.crash_broker(Damage::Reboot),
            Fault::HeadLost => self.crash_broker(Damage::HeadLost),
            Fault::DiskRestore => self.crash_broker(Damage::Restored),
            Fault::BrokerStop => {
                let span = self.rng.range(1_000, 8_000_000);
                self.broker.paused_until = self.broker.paused_until.max(self.now + span);
                self.trouble_all(span);
                self.counters.count(Sometimes::BrokerStopped);
            }
            Fault::DiskStall => {
                let span = self.rng.range(1_000, 2_000_000);
                self.disk.stall(self.now + span);
                self.trouble_all(span);
                self.counters.count(Sometimes::DiskStalled);
            }
            Fault::WallJump => self.jump(executor),
            Fault::ExecutorKill | Fault::ExecutorReboot | Fault::ExecutorStop => {
                self.hit_executor(fault, executor);
            }
            Fault::ExecutorDrain => self.drain_out(executor),
            Fault::Flap => {
                self.counters.count(Sometimes::Flapped);
                self.trouble(executor, 22_000_000);
                self.queue.push(self.now, Event::Flap { executor, left: 5 });
            }
            Fault::OwnLink => self.cut_own_link(),
            Fault::SessionCut | Fault::HalfOpen | Fault::Stall => self.hit_session(fault, executor),
        }
    }

    /// In this seed nothing breaks but the broker's own link, and seldom.
    pub fn only_own_link(&mut self) {
        (self.faults, self.own_link_only) = (vec![Fault::OwnLink], true);
        (self.loss, self.lying) = (0, false);
    }

    /// The broker's own link is down for a while: it sees nobody but who is on its host.
    fn cut_own_link(&mut self) {
        self.counters.count(Sometimes::OwnLinkCut);
        let span = self.rng.range(500_000, 8_000_000);
        self.cut_off_until = self.now + span;
        for executor in 0..self.executors.len() {
            if self.executors[executor].local {
                continue;
            }
            self.trouble(executor, span);
            if let Some(link) = self.executors[executor].link {
                let line = self.net.link(link);
                line.up.stall(self.cut_off_until);
                line.down.stall(self.cut_off_until);
            }
        }
    }

    /// A39: while just the broker's own link is down nobody is lost for it.
    pub fn check_doubt(&mut self, fact: &Fact, executor: &ExecutorId, reason: &str) {
        let lived = |host: &&ExecutorHost| {
            !host.local && host.core.is_some() && host.began_at + 20_000_000 < self.now
        };
        // Jobs may have taken the others down: of one alone the broker cannot tell.
        if !self.own_link_only || self.executors.iter().filter(lived).count() < 2 {
            return;
        }
        let host = self.executors.iter().find(|host| host.id == *executor);
        let lived = host.as_ref().is_some_and(lived);
        let unseen = reason.ends_with("silent") || reason.ends_with("away");
        let dot = &fact.dot;
        self.checks.demand("A39", !(lived && unseen), || {
            format!("{dot}: {executor} is lost, {reason}, while the broker's own link was down")
        });
    }

    /// A link that breaks every four seconds, for two.
    pub fn flap(&mut self, executor: usize, left: u32) {
        if self.healing {
            return;
        }
        let until = self.now + 2_000_000;
        self.executors[executor].unreachable_until = until;
        self.trouble(executor, 2_000_000);
        self.hit_session(Fault::SessionCut, executor);
        if left > 0 {
            self.queue.push(self.now + 4_000_000, Event::Flap { executor, left: left - 1 });
        }
    }

    fn crash_broker(&mut self, damage: Damage) {
        // Each takes all facts in anew, so there are fewer of these than of the others.
        if self.broker.core.is_none() || self.rng.chance(85) {
            return;
        }
        let longest = *self.rng.pick(&[200_000, 3_000_000, 12_000_000]);
        let span = self.rng.range(1_000, longest);
        self.trouble_all(span);
        self.counters.count(match damage {
            Damage::None => Sometimes::BrokerKilled,
            Damage::Reboot => Sometimes::BrokerRebooted,
            Damage::HeadLost => Sometimes::HeadLost,
            Damage::Restored => Sometimes::DiskRestored,
        });
        self.kill_broker(damage, self.now + span);
    }

    fn trouble_all(&mut self, span: u64) {
        for executor in 0..self.executors.len() {
            self.trouble(executor, span);
        }
    }

    fn jump(&mut self, executor: usize) {
        self.counters.count(Sometimes::WallJump);
        if self.rng.chance(50) {
            self.broker.clock.jump(&mut self.rng);
        } else {
            self.executors[executor].clock.jump(&mut self.rng);
        }
    }

    fn hit_executor(&mut self, fault: Fault, executor: usize) {
        if self.executors[executor].core.is_none() {
            return;
        }
        let longest = *self.rng.pick(&[100_000, 2_000_000, 15_000_000]);
        let span = self.rng.range(1_000, longest);
        let back = self.now + span;
        self.trouble(executor, span);
        match fault {
            Fault::ExecutorKill => {
                self.counters.count(Sometimes::ExecutorKilled);
                self.kill_executor(executor, false, back);
            }
            Fault::ExecutorReboot => {
                self.counters.count(Sometimes::ExecutorRebooted);
                self.kill_executor(executor, true, back);
            }
            _ => {
                self.counters.count(Sometimes::ExecutorStopped);
                let host = &mut self.executors[executor];
                host.paused_until = host.paused_until.max(back);
            }
        }
    }

    fn drain_out(&mut self, executor: usize) {
        self.trouble(executor, 4_000_000);
        self.tell_executor(executor, ExecutorInput::Drain);
        if self.rng.chance(70) {
            self.tell_executor(executor, ExecutorInput::HandBack);
        }
    }

    fn hit_session(&mut self, fault: Fault, executor: usize) {
        let Some(link) = self.executors[executor].link else { return };
        let span = self.rng.range(1_000, 7_000_000);
        self.trouble(executor, span);
        let (now, soon) = (self.now, self.now + self.rng.below(20_000));
        let which = self.rng.below(3);
        let late = [self.rng.range(1, 400_000), self.rng.range(1, 400_000)];
        let line = self.net.link(link);
        match fault {
            Fault::SessionCut => {
                self.counters.count(Sometimes::SessionCut);
                line.up.kill(soon);
                line.down.kill(soon);
                let (up, down) = (soon + late[0], soon + late[1]);
                let (process_gone, tree_gone) = (false, false);
                self.queue.push(up, Event::BrokerSeesClose { link, process_gone, tree_gone });
                self.queue.push(down, Event::ExecutorSeesClose { link });
            }
            Fault::HalfOpen => {
                self.counters.count(Sometimes::HalfOpen);
                if which != 0 {
                    line.up.kill(soon);
                }
                if which != 1 {
                    line.down.kill(soon);
                }
            }
            _ => {
                self.counters.count(Sometimes::Stalled);
                if which != 0 {
                    line.up.stall(now + span);
                }
                if which != 1 {
                    line.down.stall(now + span);
                }
            }
        }
    }
}
