//! What an executor says first, and what its broker says to it.

use super::{Executor, ExecutorOutput};
use crate::proto::id::{AttemptId, JobId};
use crate::proto::message::{BrokerMessage, ExecutorMessage, Hello, SESSION_VERSION};
use crate::proto::time::Now;
use crate::proto::units::Span;

impl Executor {
    pub(super) fn say_hello(&mut self, now: Now) {
        (self.connected, self.registered, self.heard) = (true, false, now.mono);
        self.unsaid.clear();
        self.leases.begin_session();
        let (attempts, jobs) = self.announced();
        let hello = Hello {
            v: SESSION_VERSION,
            executor: self.config.executor.clone(),
            incarnation: self.config.incarnation.clone(),
            pid: self.config.pid,
            capability: self.config.capability.clone(),
            load: self.load,
            heartbeat: self.config.heartbeat.into(),
            cgroup: self.config.cgroup.clone(),
            attempts,
            jobs,
        };
        self.send(ExecutorMessage::Hello(hello));
    }

    /// The attempts that are here, with the job of each.
    fn announced(&self) -> (Vec<AttemptId>, Vec<JobId>) {
        let running = self.running.iter().map(|(attempt, running)| (attempt, running.job));
        let held = self.held.iter().map(|(attempt, held)| (attempt, held.message.job));
        let waiting = self.waiting.iter().map(|order| (&order.attempt, order.job));
        let here = running.chain(held).chain(waiting);
        here.map(|(attempt, job)| (attempt.clone(), job)).unzip()
    }

    pub(super) fn handle_message(&mut self, now: Now, message: BrokerMessage) {
        if !self.connected {
            return;
        }
        self.heard = now.mono;
        match message {
            BrokerMessage::Welcome { log, heartbeat_max, continues } => {
                self.registered = true;
                let most = heartbeat_max.map_or(self.config.heartbeat, Span::duration);
                self.heartbeat = self.config.heartbeat.min(most);
                self.broker = continues.into_iter().chain([log.clone()]).collect();
                self.outputs.push_back(ExecutorOutput::Registered(log));
                (self.together, self.together_at) = (vec![], None);
                for message in std::mem::take(&mut self.unsaid) {
                    self.send(message);
                }
                self.send_all_held();
                self.send_heartbeat(now);
                // What was ordered in an earlier session may count no more.
                self.leases.validate_if(!self.waiting.is_empty());
            }
            BrokerMessage::Refused { code, detail } => {
                (self.connected, self.registered) = (false, false);
                let reason = format!("the broker refused ({code}): {detail}");
                self.outputs.push_back(ExecutorOutput::Reconnect { reason });
            }
            BrokerMessage::Start(order) => {
                for order in order.each() {
                    self.confirm(order.attempt.clone(), order.lease.is_some());
                    self.start(Box::new(order));
                }
            }
            BrokerMessage::Keep { attempt } => self.confirm(attempt, true),
            BrokerMessage::Recall => self.hand_back_waiting(),
            BrokerMessage::Stop { attempt, .. } => self.stop(now, attempt),
            BrokerMessage::Acknowledged { attempt, elements, keep } => {
                for attempt in self.held_of(&attempt, elements.as_ref()) {
                    // The broker that deployed it may still wait for it, and order it again.
                    let home = self.broker.contains(&attempt.dot.log);
                    if keep || !home { self.keep(attempt) } else { self.forget(attempt) }
                }
            }
            BrokerMessage::Released { attempt, elements } => {
                let released = self.held_of(&attempt, elements.as_ref());
                released.into_iter().for_each(|attempt| self.forget(attempt));
            }
            BrokerMessage::Heard { number } => self.renew(now, number),
            BrokerMessage::Leaving => {
                let text = "the broker ends; what runs here goes on".to_owned();
                self.outputs.push_back(ExecutorOutput::Notice(text));
            }
            BrokerMessage::Follow { .. }
            | BrokerMessage::Window { .. }
            | BrokerMessage::Unfollow { .. } => {}
        }
    }
}
