//! What an executor keeps for brokers: results, and the latest state of what runs.
//!
//! Pure. A result is kept until a broker has it, and then, if that broker asks for it, until a
//! second broker has it too. With a result an executor keeps the facts that explain it, so that any
//! broker can make use of it, also one that never heard of the job: executors are couriers.

use std::collections::BTreeSet;

use crate::proto::id::{AttemptId, Digest, LogId};
use crate::proto::limits;
use crate::proto::message::{CheckpointMessage, ExecutorMessage, ResultMessage};
use crate::proto::ranges::Ranges;

use super::{Executor, ExecutorOutput, spool};

/// A result as a broker gets it: with what explains it where the broker may not have that.
pub(super) fn outgoing(message: &ResultMessage, broker: &BTreeSet<LogId>) -> ExecutorMessage {
    let mut message = message.clone();
    if broker.contains(&message.attempt.dot.log) {
        message.carried.clear();
    }
    ExecutorMessage::Result(Box::new(message))
}

impl Executor {
    /// Sends a broker that welcomed us what it may not have.
    pub(super) fn send_all_held(&mut self) {
        let broker = &self.broker;
        for held in self.held.values() {
            let message = outgoing(&held.message, broker);
            self.outputs.push_back(ExecutorOutput::Send(message));
        }
        for checkpoint in self.running.values().filter_map(|running| running.checkpoint.as_ref()) {
            let message = ExecutorMessage::Checkpoint(checkpoint.clone());
            self.outputs.push_back(ExecutorOutput::Send(message));
        }
    }

    /// The results that a broker's message is about.
    pub(super) fn held_of(&self, attempt: &AttemptId, elements: Option<&Ranges>) -> Vec<AttemptId> {
        let Some(elements) = elements else { return vec![attempt.clone()] };
        // Only what is held: a range may say more numbers than there are.
        let of_dot = AttemptId::new(attempt.dot.clone(), None)
            ..=AttemptId::new(attempt.dot.clone(), Some(u64::MAX));
        let held = self.held.range(of_dot).map(|(held, _)| held);
        let held = held.filter(|held| held.element.is_some_and(|e| elements.contains(e)));
        held.cloned().collect()
    }

    /// Lets go of a result.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        let Some(held) = self.held.remove(&attempt) else { return };
        if held.acknowledged {
            self.kept.retain(|kept| *kept != attempt);
        }
        if held.spooled {
            self.outputs.push_back(ExecutorOutput::Unspool(attempt.clone()));
        }
        self.outputs.push_back(ExecutorOutput::Forget(attempt));
    }

    /// A broker has a result, and wants it kept all the same.
    pub(super) fn keep(&mut self, attempt: AttemptId) {
        let Some(held) = self.held.get_mut(&attempt) else { return };
        spool(held, &mut self.outputs);
        if !std::mem::replace(&mut held.acknowledged, true) {
            self.kept.push_back(attempt);
        }
        if self.kept.len() > limits::RESULTS_KEPT_MAX
            && let Some(oldest) = self.kept.front().cloned()
        {
            self.forget(oldest);
        }
    }

    /// State of an attempt was kept.
    pub(super) fn handle_checkpointed(
        &mut self,
        attempt: &AttemptId,
        manifest: Digest,
        files: u64,
        bytes: u64,
    ) {
        let actor = self.config.executor.actor();
        let Some(running) = self.running.get_mut(attempt) else { return };
        running.clock.tick(&actor);
        running.checkpoints += 1;
        let message = CheckpointMessage {
            attempt: attempt.clone(),
            job: running.job,
            number: running.checkpoints,
            manifest,
            files,
            bytes,
            clock: running.clock.clone(),
        };
        let message = Box::new(message);
        running.checkpoint = Some(message.clone());
        if self.registered {
            self.send(ExecutorMessage::Checkpoint(message));
        }
    }
}
