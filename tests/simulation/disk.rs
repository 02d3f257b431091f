//! The broker's simulated disk: batches become durable one after the other, after a while; a crash
//! takes what is not durable; a boot takes the head file; a restore brings an older copy back.
//!
//! Shape: facts in commit order, and how far the head file has them. Law: what is durable is a
//! prefix of what was written in this life, batch by batch, never part of a batch.

use std::collections::VecDeque;

use ucp::proto::broker::Opening;
use ucp::proto::fact::SealedFact;
use ucp::proto::id::LogId;
use ucp::proto::rng::Rng;

use super::queue::Draw;

/// What is to happen to the disk while the broker is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Only what was not durable is lost.
    None,
    /// The machine boots: the head file is gone too.
    Reboot,
    /// The head file is gone for another reason.
    HeadLost,
    /// An older copy takes the disk's place.
    Restored,
}

/// The disk.
#[derive(Default)]
pub struct Disk {
    /// What is durable, in commit order.
    pub durable: Vec<SealedFact>,
    /// How many facts were durable after each batch, in the order of commits.
    ends: Vec<usize>,
    pending: VecDeque<Vec<SealedFact>>,
    head: Option<LogId>,
    busy_until: u64,
    stalled_until: u64,
}

impl Disk {
    /// Takes a batch and says when it will be durable.
    pub fn write(&mut self, now: u64, latency: u64, facts: Vec<SealedFact>) -> u64 {
        let start = now.max(self.busy_until).max(self.stalled_until);
        self.busy_until = start + latency;
        self.pending.push_back(facts);
        self.busy_until
    }

    /// Batches that are not durable yet.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Nothing becomes durable before `until` that is not on its way.
    pub fn stall(&mut self, until: u64) {
        self.stalled_until = self.stalled_until.max(until);
    }

    /// The oldest batch is durable; returns where its facts begin.
    pub fn complete(&mut self) -> usize {
        let batch = self.pending.pop_front().expect("a batch is in flight");
        let from = self.commit(batch);
        self.head = self.durable.last().map(|fact| fact.fact.dot.log.clone());
        from
    }

    fn commit(&mut self, batch: Vec<SealedFact>) -> usize {
        let from = self.durable.len();
        self.durable.extend(batch);
        self.ends.push(self.durable.len());
        from
    }

    /// The process dies: of the batches in flight a drawn number of the oldest survive. Returns
    /// where the facts begin that survived unseen, and how many batches did and did not.
    pub fn crash(&mut self, rng: &mut Rng) -> (usize, usize, usize) {
        let (from, in_flight) = (self.durable.len(), self.pending.len());
        let survive = rng.place(in_flight + 1);
        for _ in 0..survive {
            let batch = self.pending.pop_front().expect("counted");
            self.commit(batch);
        }
        self.pending.clear();
        (self.busy_until, self.stalled_until) = (0, 0);
        (from, survive, in_flight - survive)
    }

    /// Damages a disk that no process uses; returns how many facts are left.
    pub fn damage(&mut self, damage: Damage, rng: &mut Rng) -> usize {
        if damage != Damage::None {
            self.head = None;
        }
        if damage == Damage::Restored && !self.ends.is_empty() {
            let keep = self.ends.len() - rng.place(self.ends.len().min(40));
            self.ends.truncate(keep);
            self.durable.truncate(*self.ends.last().unwrap_or(&0));
        }
        self.durable.len()
    }

    /// The log that was written last.
    pub fn last_log(&self) -> Option<LogId> {
        self.durable.last().map(|fact| fact.fact.dot.log.clone())
    }

    /// The log to write next: the same where its continuity is proven, else a fresh one.
    /// `trusting` is a broken machine that believes in a head it does not have.
    pub fn opening(&self, trusting: bool, rng: &mut Rng) -> Opening {
        let last = self.last_log();
        let hex = rng.next_u64() & 0xffff_ffff;
        match &last {
            Some(log) if trusting || self.head.as_ref() == Some(log) => {
                Opening::Continue(log.clone())
            }
            _ => Opening::Fresh {
                log: format!("north-{hex:08x}").parse().expect("a name"),
                continues: last,
            },
        }
    }
}
