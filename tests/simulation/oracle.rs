//! The oracle: what truly happened before what, recorded by the simulation itself.
//!
//! It sees every fact at the moment of its writing and knows what the writer held then, without
//! looking at any clock. Law checked: for two facts X and Y of one job, Y's clock covers X's dot
//! exactly if Y's writer held X; and a clock has entries only of logs that wrote about the job.
//! Facts that never became durable never happened: nothing that depends on them left.
//! A clock's entry covers just the dots up to it. So of each log it is enough to compare the entry
//! with the last fact that is held and the first that is not.

use std::collections::BTreeMap;

use ucp::proto::fact::Fact;
use ucp::proto::id::{Dot, JobId, LogId};

use super::history::History;

#[derive(Debug)]
struct Seen {
    seq: u64,
    held: bool,
    durable: bool,
}

/// The facts of one log about one job, in the order of their writing.
#[derive(Debug)]
struct OfLog {
    log: LogId,
    seen: Vec<Seen>,
    /// The greatest seq that is held.
    held: Option<u64>,
    /// The least seq that is not.
    missing: Option<u64>,
}

impl OfLog {
    fn look_over(&mut self) {
        self.held = self.seen.iter().filter(|seen| seen.held).map(|seen| seen.seq).max();
        self.missing = self.seen.iter().filter(|seen| !seen.held).map(|seen| seen.seq).min();
    }
}

/// All facts that were written, by job and log.
#[derive(Default)]
pub struct Oracle {
    seen: BTreeMap<JobId, Vec<OfLog>>,
}

impl Oracle {
    /// A broker that holds just what is held now writes `fact`.
    ///
    /// # Errors
    /// Where its clock tells another story than the oracle.
    pub fn written(&mut self, fact: &Fact) -> Result<(), String> {
        let Some(job) = fact.job else { return Ok(()) };
        let logs = self.seen.entry(job).or_default();
        for of_log in logs.iter() {
            let counted = fact.clock.seq(&of_log.log);
            let (unknown, known) = (
                of_log.held.filter(|held| counted < *held),
                of_log.missing.filter(|missing| counted >= *missing),
            );
            if let Some(other) = unknown.or(known) {
                let truth = if unknown.is_some() { "knew" } else { "did not know" };
                let (dot, log, clock) = (&fact.dot, &of_log.log, &fact.clock);
                return Err(format!(
                    "the writer of {dot} {truth} {log}.{other}, its clock: {clock:?}"
                ));
            }
        }
        for (actor, counter) in fact.clock.iter() {
            if fact.dot.log.as_str() == actor.as_str() && fact.dot.seq == counter {
                continue;
            }
            let of_log = logs.iter().find(|of_log| of_log.log.as_str() == actor.as_str());
            let stands = of_log.is_some_and(|of_log| {
                of_log.seen.iter().rev().any(|seen| seen.held && seen.seq == counter)
            });
            if !stands {
                let dot = &fact.dot;
                return Err(format!("{dot} counts {actor} at {counter}: no fact of its job"));
            }
        }
        let Dot { log, seq } = &fact.dot;
        let seen = Seen { seq: *seq, held: true, durable: false };
        match logs.iter_mut().find(|of_log| of_log.log == *log) {
            Some(of_log) => {
                of_log.seen.push(seen);
                of_log.held = of_log.held.max(Some(*seq));
            }
            None => {
                let (log, held) = (log.clone(), Some(*seq));
                logs.push(OfLog { log, seen: vec![seen], held, missing: None });
            }
        }
        Ok(())
    }

    /// A fact became durable.
    pub fn durable(&mut self, fact: &Fact) {
        let logs = fact.job.and_then(|job| self.seen.get_mut(&job)).into_iter().flatten();
        for of_log in logs.filter(|of_log| of_log.log == fact.dot.log) {
            // It is one of the last; an older one with its dot was durable before.
            let same = |seen: &&mut Seen| seen.seq == fact.dot.seq;
            if let Some(entry) = of_log.seen.iter_mut().rev().find(same) {
                entry.durable = true;
            }
        }
    }

    /// A new life begins that holds what is durable.
    pub fn life(&mut self, durable: &History) {
        for of_log in self.seen.values_mut().flatten() {
            let head = durable.head(&of_log.log);
            of_log.seen.retain(|entry| entry.durable);
            for entry in &mut of_log.seen {
                entry.held = entry.seq <= head;
            }
            of_log.look_over();
        }
    }
}
