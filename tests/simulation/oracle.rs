//! The oracle: what truly happened before what, recorded by the simulation itself.
//!
//! It sees every fact at the moment of its writing and knows what the writer held then, without
//! looking at any clock. Law checked: for two facts X and Y of one job, Y's clock covers X's dot
//! exactly if Y's writer held X; and a clock has entries only of logs that wrote about the job.
//! Facts that never became durable never happened: nothing that depends on them left.

use std::collections::BTreeMap;

use ucp::proto::fact::Fact;
use ucp::proto::id::{Dot, JobId};

use super::history::History;

#[derive(Debug)]
struct Seen {
    dot: Dot,
    held: bool,
    durable: bool,
}

/// All facts that were written, by job.
#[derive(Default)]
pub struct Oracle {
    seen: BTreeMap<JobId, Vec<Seen>>,
}

impl Oracle {
    /// A broker that holds just what is `held` now writes `fact`.
    ///
    /// # Errors
    /// Where its clock tells another story than the oracle.
    pub fn written(&mut self, fact: &Fact) -> Result<(), String> {
        let Some(job) = fact.job else { return Ok(()) };
        let seen = self.seen.entry(job).or_default();
        for before in seen.iter() {
            if fact.clock.covers(&before.dot) != before.held {
                let truth = if before.held { "knew" } else { "did not know" };
                let (dot, other, clock) = (&fact.dot, &before.dot, &fact.clock);
                return Err(format!("the writer of {dot} {truth} {other}, its clock: {clock:?}"));
            }
        }
        for (actor, counter) in fact.clock.iter() {
            let names = |dot: &Dot| dot.log.as_str() == actor.as_str() && dot.seq == counter;
            if !names(&fact.dot) && !seen.iter().any(|before| before.held && names(&before.dot)) {
                return Err(format!(
                    "{} counts {actor} at {counter}: no fact of its job",
                    fact.dot
                ));
            }
        }
        seen.push(Seen { dot: fact.dot.clone(), held: true, durable: false });
        Ok(())
    }

    /// A fact became durable.
    pub fn durable(&mut self, fact: &Fact) {
        let seen = fact.job.and_then(|job| self.seen.get_mut(&job));
        if let Some(entry) = seen.and_then(|seen| seen.iter_mut().find(|s| s.dot == fact.dot)) {
            entry.durable = true;
        }
    }

    /// A new life begins that holds what is durable.
    pub fn life(&mut self, durable: &History) {
        for seen in self.seen.values_mut() {
            seen.retain(|entry| entry.durable);
            for entry in seen {
                entry.held = durable.holds(&entry.dot);
            }
        }
    }
}
