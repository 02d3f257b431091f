//! Facts of other brokers: what is held is said, and what comes is taken; and whose logs are whose.
//!
//! What can be taken is sorted out by `proto::sync`; a fact that is taken counts like one that was
//! written here, as the fold does not ask who wrote it. Only the owner of a job does what is to be
//! done about it (deploy.rs).

use std::collections::BTreeSet;

use super::Broker;
use crate::proto::event::Reply;
use crate::proto::id::{JobId, LogId, RequestId};
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

    /// What our log continues is ours, whoever else claims it: a copy of the data directory does.
    pub(super) fn own_continued(&mut self, log: &LogId) {
        let (mut at, mut seen) = (log.clone(), BTreeSet::new());
        self.continued.remove(&at);
        while seen.insert(at.clone())
            && let Some(older) = self.continues.get(&at).cloned()
        {
            self.continued.insert(older.clone(), at);
            at = older;
        }
    }

    /// A log says that it carries on an older one; of two that say so the greater does.
    pub(super) fn learn_continued(&mut self, older: &LogId, log: &LogId) {
        self.continues.insert(log.clone(), older.clone());
        if self.log.is_some() && self.is_own(older) && Some(log) != self.log.as_ref() {
            return self.notice(format!(
                "log {log} says that it continues {older}, which is of this broker: one of the \
                 two data directories is a copy"
            ));
        }
        let next = self.continued.entry(older.clone()).or_insert_with(|| log.clone());
        if *next < *log {
            *next = log.clone();
        }
    }

    /// The log that carries on `log` in the end.
    pub(super) fn carried_on_by<'a>(&'a self, mut log: &'a LogId) -> &'a LogId {
        for _ in 0..=self.continued.len() {
            match self.continued.get(log) {
                Some(next) => log = next,
                None => break,
            }
        }
        log
    }

    /// Whether outcomes can change no more: with one open log every outcome is settled at once.
    pub(super) fn is_final(&self) -> bool {
        self.open_logs().count() <= 1
    }

    /// The logs that no other one continues.
    pub(super) fn open_logs(&self) -> impl Iterator<Item = &LogId> {
        self.logs.iter().map(|(log, _)| log).filter(|log| !self.continued.contains_key(*log))
    }
}
