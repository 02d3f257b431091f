//! The queue: which waiting job goes next.
//!
//! Pure. Jobs with the same needs wait in one class, ordered by [`Rank`]; of all classes that fit
//! a free executor the one whose head has the least rank is served (invariant I8). Ranks are
//! unique, since they hold the order of arrival.

use std::collections::BTreeMap;

use crate::proto::capability::Needs;
use crate::proto::id::JobId;
use crate::proto::precedence::{Precedence, Rank};

/// The jobs that wait for an executor.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    classes: BTreeMap<Needs, BTreeMap<Rank, (JobId, Precedence)>>,
    levels: BTreeMap<Precedence, u64>,
}

impl Queue {
    /// Adds a job.
    pub fn insert(&mut self, needs: &Needs, rank: Rank, job: JobId, precedence: Precedence) {
        let class = match self.classes.get_mut(needs) {
            Some(class) => class,
            None => self.classes.entry(needs.clone()).or_default(),
        };
        if class.insert(rank, (job, precedence)).is_none() {
            *self.levels.entry(precedence).or_default() += 1;
        }
    }

    /// Takes a job out.
    pub fn remove(&mut self, needs: &Needs, rank: Rank) {
        let Some(class) = self.classes.get_mut(needs) else { return };
        if let Some((_, precedence)) = class.remove(&rank)
            && let Some(count) = self.levels.get_mut(&precedence)
        {
            *count -= 1;
        }
        if class.is_empty() {
            self.classes.remove(needs);
        }
    }

    /// The first job of each class.
    pub fn heads(&self) -> impl Iterator<Item = (&Needs, Rank, JobId)> {
        self.classes.iter().filter_map(|(needs, class)| {
            class.first_key_value().map(|(rank, (job, _))| (needs, *rank, *job))
        })
    }

    /// Jobs that wait, by level.
    #[must_use]
    pub fn levels(&self) -> &BTreeMap<Precedence, u64> {
        &self.levels
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }
}
