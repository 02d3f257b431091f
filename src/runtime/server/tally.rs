//! What the broker's thread counts about itself, for `GET /metrics`.
//!
//! Decides nothing. One thread counts and reads, so there is no lock; a count costs one addition.
//! Times of jobs are differences of the wall clocks in their facts: they need no memory and go on
//! over a restart, and where a clock was set back they are left out.
//! Shape: labels are routes, statuses, codes and kinds of facts, all of them words of ours.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::proto::fact::{Body, Fact};
use crate::proto::fold::JobFacts;
use crate::proto::time::WallTime;
use crate::runtime::metrics::Histogram;

/// All counts.
#[derive(Debug)]
pub struct Tally {
    /// Requests by method, path of the route and status.
    pub requests: RefCell<BTreeMap<(&'static str, &'static str, u16), u64>>,
    /// Problem documents by code, as answers and as lines.
    pub problems: RefCell<BTreeMap<Cow<'static, str>, u64>>,
    /// Facts that became durable since the start, by kind.
    pub facts: RefCell<BTreeMap<&'static str, u64>>,
    /// Connections that were one too many.
    pub turned_away: Cell<u64>,
    /// From the last byte of a submission to its acknowledgement.
    pub submit_ack: Histogram,
    /// From a job's submission or rerun to each of its deployments.
    pub queue_wait: Histogram,
    /// From a deployment to the result of that attempt.
    pub run: Histogram,
    /// From a job's submission or rerun to the acceptance of a result.
    pub submit_result: Histogram,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            requests: RefCell::default(),
            problems: RefCell::default(),
            facts: RefCell::default(),
            turned_away: Cell::new(0),
            submit_ack: Histogram::of_times(),
            queue_wait: Histogram::of_times(),
            run: Histogram::of_times(),
            submit_result: Histogram::of_times(),
        }
    }
}

impl Tally {
    /// A request was answered; `path` is that of its route.
    pub fn request(&self, method: &'static str, path: &'static str, status: u16) {
        *self.requests.borrow_mut().entry((method, path, status)).or_default() += 1;
    }

    /// A problem document was sent.
    pub fn problem(&self, code: Cow<'static, str>) {
        *self.problems.borrow_mut().entry(code).or_default() += 1;
    }

    /// A fact is durable.
    pub fn fact(&self, kind: &'static str) {
        *self.facts.borrow_mut().entry(kind).or_default() += 1;
    }

    /// A fact of a job was written: the times that end with it.
    pub fn times(&self, fact: &Fact, job: &JobFacts) {
        let span = |histogram: &Histogram, from: Option<&str>| {
            let read = |text| WallTime::parse(text).map(|at| at.0);
            let ended = from.and_then(read).zip(read(&fact.at));
            if let Some(time) = ended.and_then(|(from, to)| to.checked_sub(from)) {
                histogram.observe(time.saturating_mul(1000));
            }
        };
        match &fact.body {
            Body::Deployed(_) => span(&self.queue_wait, begin(fact, job)),
            Body::Reported(body) => {
                let deployed = job.attempt(&body.attempt);
                span(&self.run, deployed.map(|(deployed, _)| &*deployed.at));
            }
            Body::Accepted(_) => span(&self.submit_result, begin(fact, job)),
            _ => {}
        }
    }
}

/// When the generation of a fact began.
fn begin<'a>(fact: &Fact, job: &'a JobFacts) -> Option<&'a str> {
    if fact.generation <= 1 {
        return job.submitted().map(|(submitted, _)| &*submitted.at);
    }
    let opens = |held: &&'a std::sync::Arc<Fact>| {
        held.generation == fact.generation && matches!(held.body, Body::Rerun(_))
    };
    job.iter().find(opens).map(|rerun| &*rerun.at)
}
