//! How long commits take and how much each holds, counted by the writer and read by anybody.
//!
//! Decides nothing, takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::proto::time::Monotonic;
use crate::runtime::metrics::Histogram;

/// What the writer tells about its commits.
#[derive(Debug)]
pub struct CommitMeter {
    /// Transactions from their begin until they are durable, with the continuity file.
    pub times: Histogram,
    /// Facts in one transaction.
    pub facts: Histogram,
    /// Batches of the core in one transaction.
    pub batches: Histogram,
    /// When the commit that is under way began; zero where there is none.
    since: AtomicU64,
}

impl Default for CommitMeter {
    fn default() -> Self {
        Self {
            times: Histogram::of_times(),
            facts: Histogram::of_sizes(),
            batches: Histogram::of_sizes(),
            since: AtomicU64::new(0),
        }
    }
}

impl CommitMeter {
    /// A commit begins.
    pub fn began(&self, now: Monotonic) {
        self.since.store(now.0.max(1), Ordering::Relaxed);
    }

    /// It is durable, with so many facts and batches.
    pub fn ended(&self, now: Monotonic, facts: usize, batches: usize) {
        let since = Monotonic(self.since.swap(0, Ordering::Relaxed));
        self.times.observe_time(now.since(since));
        self.facts.observe(facts as u64);
        self.batches.observe(batches as u64);
    }

    /// How long the commit that is under way has taken so far; zero where there is none.
    #[must_use]
    pub fn under_way(&self, now: Monotonic) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now.since(Monotonic(since)),
        }
    }
}
