//! The jobs' processes as they truly are, whatever any executor or broker thinks of them.
//!
//! A process lives from its start to its end in true time, also while its executor is stopped, and
//! perhaps for a while after that has died. Rules: of a job that must not overlap no two processes
//! live at one time (A10); and no further attempt begins while processes of an earlier one are left
//! on the broker's own host by an executor that is dead (`tree`).

use std::collections::BTreeMap;

use ucp::proto::id::{AttemptId, TaskId};
use ucp::proto::job::Overlap;
use ucp::proto::message::StartOrder;

use super::cluster::World;
use super::counters::Sometimes;
use super::history::End;
use super::queue::{Draw, Event};
use super::trace::trace;

/// So long a broker waits for the proof that a dead executor's jobs are gone.
const PROOF_WITHIN_US: u64 = 300_000;

/// The processes of one attempt.
#[derive(Debug, Clone)]
struct Live {
    attempt: AttemptId,
    executor: usize,
    /// Its executor is dead.
    left: bool,
}

/// All processes that live.
#[derive(Debug, Default)]
pub struct Processes {
    of_task: BTreeMap<TaskId, Vec<Live>>,
    task_of: BTreeMap<AttemptId, TaskId>,
}

impl Processes {
    fn end(&mut self, attempt: &AttemptId) {
        let Some(task) = self.task_of.remove(attempt) else { return };
        if let Some(live) = self.of_task.get_mut(&task) {
            live.retain(|one| one.attempt != *attempt);
            if live.is_empty() {
                self.of_task.remove(&task);
            }
        }
    }
}

impl World {
    /// An attempt's processes begin; false where the spawner refuses, as the lease is over.
    pub fn process_begins(&mut self, index: usize, order: &StartOrder) -> bool {
        let attempt = &order.attempt;
        let task = TaskId::new(order.job, attempt.element);
        let host = &self.executors[index];
        let now = host.clock.now(self.now).mono;
        let forbids = order.spec.overlap == Overlap::Forbid;
        let lease = host.leases.get(attempt).copied();
        self.checks.demand("A10", forbids == lease.is_some(), || {
            format!("{attempt} begins with the lease {lease:?}")
        });
        if lease.is_some_and(|until| until <= now) {
            self.counters.count(Sometimes::LeaseRefused);
            return false;
        }
        let others = self.processes.of_task.get(&task).cloned().unwrap_or_default();
        for other in others {
            self.checks.demand("A10", !forbids, || {
                format!("{attempt} begins at executor {index} while {other:?} lives")
            });
            // Of one that a restored disk has forgotten nobody can know.
            let book = self.checks.durable.tasks.get(&task);
            let known = book.and_then(|book| book.attempt(&other.attempt));
            let lost = known.is_some_and(|a| a.end == Some(End::Lost) && a.with_process);
            let near = other.left && lost && self.executors[other.executor].local;
            self.checks.demand("tree", !near, || {
                format!("{attempt} begins at executor {index} while {other:?} is left")
            });
            self.counters.count(Sometimes::RanTwice);
        }
        let live = Live { attempt: attempt.clone(), executor: index, left: false };
        self.processes.of_task.entry(task).or_default().push(live);
        self.processes.task_of.insert(attempt.clone(), task);
        true
    }

    /// An attempt's processes have ended; once is enough.
    pub fn process_ends(&mut self, attempt: &AttemptId) {
        self.processes.end(attempt);
    }

    /// An executor's process died, with or without its machine. What it ran is killed at once by
    /// its guard, or lives on for a while where that was killed too. Says how long at the most.
    pub fn leave_processes(&mut self, index: usize, boots: bool) -> u64 {
        let span = match self.rng.below(10) {
            0..6 => 0,
            6..9 => self.rng.range(1_000, PROOF_WITHIN_US - 50_000),
            _ => self.rng.range(1_000, 4_000_000),
        };
        let span = if boots { 0 } else { span };
        let host = &self.executors[index];
        let now = self.now;
        let running: Vec<(AttemptId, u64)> = host
            .running
            .keys()
            .map(|attempt| {
                let lease = host.leases.get(attempt).map(|until| host.clock.when(*until));
                (attempt.clone(), lease.unwrap_or(u64::MAX).min(now + span))
            })
            .collect();
        for (attempt, end) in running {
            if end <= now {
                self.processes.end(&attempt);
                continue;
            }
            self.counters.count(Sometimes::ProcessesLeft);
            let task = self.processes.task_of.get(&attempt).copied();
            let of_task = task.and_then(|task| self.processes.of_task.get_mut(&task));
            let live = of_task.into_iter().flatten().find(|live| live.attempt == attempt);
            if let Some(live) = live {
                live.left = true;
            }
            trace!(self, "{attempt} outlives executor {index} until {end}");
            self.queue.push(end, Event::ProcessGone { attempt });
        }
        span
    }

    /// When and as what the broker on the same host sees the death: with the proof that nothing is
    /// left, or after it waited for that in vain.
    pub fn proof(&self, index: usize, left_for: u64) -> (u64, bool) {
        let proven = self.executors[index].cgroup && left_for <= PROOF_WITHIN_US;
        (self.now + left_for.min(PROOF_WITHIN_US), proven)
    }

    /// A new process of an executor kills what the one before left.
    pub fn kill_leftovers(&mut self, index: usize) {
        let all = self.processes.of_task.values().flatten();
        let left = all.filter(|live| live.executor == index && live.left);
        let left: Vec<AttemptId> = left.map(|live| live.attempt.clone()).collect();
        left.iter().for_each(|attempt| self.processes.end(attempt));
    }

    /// A lease may be over: the spawner kills, also for an executor that is stopped.
    pub fn lease_over(&mut self, index: usize, life: u32, attempt: AttemptId) {
        let host = &self.executors[index];
        let now = host.clock.now(self.now).mono;
        let over = host.leases.get(&attempt).is_some_and(|until| *until <= now);
        if host.life != life || !over || !host.running.contains_key(&attempt) {
            return;
        }
        self.counters.count(Sometimes::LeaseLapsed);
        trace!(self, "the spawner of executor {index} kills {attempt}: its lease is over");
        self.processes.end(&attempt);
        let event = Event::JobEnd { executor: index, life, attempt, signal: Some(9) };
        self.queue.push(self.now, event);
    }
}
