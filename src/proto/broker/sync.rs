//! Facts of other brokers: what is held is said, and what comes is taken.
//!
//! What can be taken is sorted out by `proto::sync`; a fact that is taken counts like one that was
//! written here, as the fold does not ask who wrote it. Only the owner of a job does what is to be
//! done about it (deploy.rs).

use std::collections::BTreeSet;

use super::Broker;
use crate::proto::event::Reply;
use crate::proto::id::{JobId, RequestId};
use crate::proto::sync::{self, Mark, Received, Sorted};

impl Broker {
    pub(super) fn heads(&self) -> Reply {
        let log = self.log.clone().expect("nobody asks before the log is open");
        Reply::Heads { log, marks: sync::marks(&self.logs), digest: self.logs.digest() }
    }

    pub(super) fn import(&mut self, request: RequestId, facts: Vec<Received>, marks: &[Mark]) {
        let log = self.log.clone().expect("nobody sends facts before the log is open");
        let Sorted { take, known, left, faults } = sync::sort_out(&self.logs, &log, facts, marks);
        for fault in &faults {
            self.notice(fault.to_string());
        }
        let new = take.len() as u64;
        let mut jobs: BTreeSet<JobId> = BTreeSet::new();
        for sealed in take {
            self.logs.advance(&sealed);
            self.take(&sealed.fact);
            jobs.extend(sealed.fact.job);
            self.pending.facts.push(sealed);
        }
        for job in &jobs {
            self.expect_carried(*job);
        }
        self.touched.extend(jobs);
        self.reply(request, Reply::Imported { new, known, left, faults });
    }
}
